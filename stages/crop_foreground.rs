//! Cuts a volume to the box around what is brighter than a threshold, or around the body. Labels are cut with it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::{Kind, Port, Scope};
use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;

use crate::error::Error;
use crate::ops::crop::{bounding_box, grow};
use crate::ops::intensity;
use crate::ops::morphology::{Neighbours, largest_component};
use crate::stage::{Cx, Facts, Finding, Info, Inputs, Stage};
use crate::volume::{Filling, Outline, Step, StoredVolume, Volume, looked_bytes, streamed_bytes};

/// Cuts a volume and its labels to the box around the foreground (MONAI `CropForeground`). The box ends with the image unless it may stick out.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CropForeground {
    /// Voxels above this intensity, in any channel, are foreground. There is no default: 0 means water in HU and the mean after a z-score.
    #[serde(default)]
    pub above: Option<f64>,
    /// Instead of `above`: the largest connected piece brighter than air, −500 in HU, else what Otsu's threshold on the first channel parts from the background.
    #[serde(default)]
    pub body: bool,
    /// Millimetres kept around the box, rounded up to voxels; the box still ends with the image.
    #[serde(default)]
    pub margin_mm: f64,
    /// Voxels kept around the box, if the margin is not in millimetres.
    #[serde(default)]
    pub margin_voxels: usize,
    /// Let a margin stick out of the image and fill what is missing with `value`, so that it is the same on all sides (MONAI's `allow_smaller: false`).
    #[serde(default, skip_serializing_if = "is_no")]
    pub stick_out: bool,
    /// Grow each axis of the box to the next multiple of this many voxels, half of what is missing before it (MONAI `k_divisible`). It may stick out of the
    /// image, where `value` fills. 0 or 1 leaves an axis as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divisible_by: Option<Zyx<usize>>,
    /// What voxels beyond the image hold; labels are background there. Left out: the smallest value of the volume, air in CT (MONAI fills with 0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
}

fn is_no(v: &bool) -> bool {
    !*v
}

/// Air and lung lie below, everything else above.
const AIR_HU: f32 = -500.0;

impl CropForeground {
    fn region(&self, v: &Volume) -> Result<Region, Error> {
        let (size, values) = (v.geometry.size, v.voxels.to_f32());
        let (found, wanted) = match self.above {
            Some(above) => (bounding_box(&values, size, |x| x > above as f32), format!("voxels above {above}")),
            None => {
                let first = &values[..size.count().min(values.len())];
                let threshold = if v.about.unit == "HU" { AIR_HU } else { otsu(first) };
                let mask: Vec<u8> = first.iter().map(|x| (*x > threshold) as u8).collect();
                let body = largest_component(&mask, size, Neighbours::Faces);
                (bounding_box(&body, size, |b| b != 0), format!("a body above {threshold}"))
            }
        };
        let found = found.ok_or_else(|| Error::Input {
            what: "foreground".into(),
            found: match intensity::range(&values) {
                Some((low, high)) => format!("intensities from {low} to {high} ({})", v.about.unit),
                None => "no finite intensity".into(),
            },
            expected: wanted,
        })?;
        let margin = v.geometry.spacing_mm().map(|s| self.margin_voxels.max((self.margin_mm / s - 1e-6).ceil().max(0.0) as usize));
        // No axis needs more margin than it has voxels.
        let margin = margin.zip(size).map(|(m, n): (usize, usize)| m.min(n));
        let grown = grow(found, margin);
        let grown = if self.stick_out { grown } else { grown.intersect(&Region::whole(size)).expect("the box holds a voxel of the image") };
        Ok(self.divisible_by.map_or(grown, |k| divisible(grown, k)))
    }

    fn steps(&self, v: &Volume) -> Result<Vec<Step>, Error> {
        v.check_regular()?;
        let region = self.region(v)?;
        let whole = region == Region::whole(v.geometry.size);
        if whole {
            return Ok(Vec::new());
        }
        let fill = match self.value {
            // Nothing is filled in.
            _ if Region::whole(v.geometry.size).contains(&region) => Filling::Edge,
            Some(value) => Filling::Value(value as f32),
            None => Filling::Value(intensity::range(&v.voxels.to_f32()).map_or(0.0, |(low, _)| low)),
        };
        Ok(vec![Step::Cut { region, fill }])
    }
}

/// The box grown about its middle to multiples of `k`; an odd voxel goes to the far end.
fn divisible(region: Region, k: Zyx<usize>) -> Region {
    let size = region.size.zip(k).map(|(n, k)| n.next_multiple_of(k.max(1)));
    let start = region.start.zip(size.zip(region.size)).map(|(s, (new, old))| s - ((new - old) / 2) as i64);
    Region { start, size }
}

/// The threshold that parts a histogram of 256 bins into two groups as far apart as can be (Otsu, IEEE SMC 9, 1979). 0 without a finite value.
fn otsu(values: &[f32]) -> f32 {
    const BINS: usize = 256;
    let Some((low, high)) = intensity::range(values) else { return 0.0 };
    let step = ((high - low) / BINS as f32).max(f32::MIN_POSITIVE);
    let mut counts = [0u64; BINS];
    values.iter().filter(|v| v.is_finite()).for_each(|v| counts[(((v - low) / step) as usize).min(BINS - 1)] += 1);
    let (total, sum) = counts.iter().enumerate().fold((0.0, 0.0), |(n, s), (i, c)| (n + *c as f64, s + i as f64 * *c as f64));
    let (mut n, mut s, mut best) = (0.0, 0.0, (0.0, 0usize));
    for (i, c) in counts.iter().enumerate() {
        n += *c as f64;
        s += i as f64 * *c as f64;
        if n == 0.0 || n == total {
            continue;
        }
        let between = n * (total - n) * (s / n - (sum - s) / (total - n)).powi(2);
        if between > best.0 {
            best = (between, i);
        }
    }
    low + step * (best.1 + 1) as f32
}

impl Stage for CropForeground {
    const INFO: Info = Info {
        name: "crop_foreground",
        version: 1,
        scope: Scope::Case,
        ports: &[Port { name: "volume", kind: Kind::Volume, required: true, about: "what is cut, labels included" }],
        gives: Kind::Volume,
        summary: "cut a volume to the box around its foreground or the body",
        example: "uses: crop_foreground\nfrom: iso\nwith: { above: -500, margin_mm: 10 }\n",
        absent_in_inference: None,
    };

    fn check(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        if self.above.is_some() == self.body {
            out.push(Finding::error("above", "what the foreground is must be said once", "either `above: INTENSITY` or `body: true`"));
        }
        if !(self.margin_mm >= 0.0 && self.margin_mm.is_finite()) {
            out.push(Finding::error("margin_mm", format!("a margin of {} mm", self.margin_mm), "0 or more millimetres"));
        }
        if self.divisible_by.is_some_and(|k| k.to_array().iter().any(|k| *k > 4096)) {
            out.push(Finding::error("divisible_by", "a multiple of more than 4096 voxels", "voxels, for example 16"));
        }
        if self.value.is_some_and(|v| !v.is_finite()) {
            out.push(Finding::error("value", "the value is no number", "a finite number"));
        }
        let sticks_out = self.stick_out && (self.margin_mm > 0.0 || self.margin_voxels > 0);
        let divides = self.divisible_by.is_some_and(|k| k.to_array().iter().any(|k| *k > 1));
        if self.stick_out && !sticks_out {
            out.push(Finding::error(
                "stick_out",
                "there is no margin that could stick out",
                "leave it out, or give `margin_mm` or `margin_voxels`",
            ));
        }
        if self.value.is_some() && !sticks_out && !divides {
            let help = "leave it out, or let the box stick out: `stick_out` with a margin, or `divisible_by`";
            out.push(Finding::error("value", "the box ends with the image, so nothing is filled", help));
        }
        if self.margin_mm > 0.0 && self.margin_voxels > 0 {
            out.push(Finding::error("margin_voxels", "the margin is given twice", "either `margin_mm` or `margin_voxels`"));
        }
        out
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let input = inputs.one("volume");
        let v = StoredVolume::open(&input.dir, input.manifest.key)?;
        let steps = self.steps(&v.whole()?)?;
        cx.bytes(input.manifest.bytes);
        if let Some(Step::Cut { region, .. }) = steps.first() {
            cx.check_size(region.size, v.channels.len())?;
        }
        cx.check_cancelled()?;
        v.then(steps, cx)
    }

    /// The box has to be looked for, the cut not to be written.
    fn is_step(&self) -> bool {
        true
    }

    /// Looked through in float32, for the body with a mask and its components; the cut is streamed and no larger, but for a margin.
    fn memory_bytes(&self, inputs: &Inputs) -> u64 {
        let (volume, all) = (inputs.one("volume"), Region::whole);
        let cut = |of: &Outline| Ok(vec![Step::Cut { region: grow(all(of.geometry.size), Zyx::splat(1)), fill: Filling::Edge }]);
        looked_bytes(volume, if self.body { 3 } else { 1 }).max(streamed_bytes(volume, cut))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::geometry::Geometry;

    use super::*;
    use crate::volume::{About, Labels, Voxels, apply};

    /// Air with a body of 2×2×2 at (1, 2, 3) and a speck in the corner.
    fn volume(unit: &str) -> Volume {
        let size = Zyx::new(4, 6, 8);
        let geometry = Geometry::axis_aligned(size, Zyx::new(5.0, 1.0, 1.0));
        let at = |z: usize, y: usize, x: usize| (z * size.y + y) * size.x + x;
        let (mut values, mut labels) = (vec![-1000i16; size.count()], vec![0u8; size.count()]);
        for i in 0..8 {
            values[at(1 + i / 4, 2 + i / 2 % 2, 3 + i % 2)] = 40;
        }
        values[at(0, 0, 0)] = 300;
        labels[at(1, 2, 3)] = 1;
        let text = || "x".to_string();
        let about = About {
            modality: "CT".into(),
            unit: unit.into(),
            patient: text(),
            study: text(),
            series: text(),
            volume: 0,
            ..About::of(geometry)
        };
        let labels = Some(Labels { classes: [("Bone".to_string(), 1)].into_iter().collect(), voxels: labels });
        Volume { geometry, channels: vec!["CT".into()], voxels: Voxels::I16(values), labels, about }
    }

    fn cropped(with: serde_json::Value, v: Volume) -> Result<Volume, Error> {
        let steps = stage(with).steps(&v)?;
        apply(v, steps)
    }

    fn stage(with: serde_json::Value) -> CropForeground {
        serde_json::from_value(with).unwrap()
    }

    #[test]
    fn the_box_holds_all_that_is_above_and_labels_move_along() {
        let v = cropped(serde_json::json!({ "above": 0 }), volume("HU")).unwrap();
        assert_eq!(v.geometry.size, Zyx::new(3, 4, 5));
        assert_eq!(v.labels.as_ref().unwrap().voxels.iter().position(|l| *l == 1), Some(20 + 2 * 5 + 3));
    }

    #[test]
    fn the_body_is_the_largest_piece_and_keeps_its_place_in_the_patient() {
        for unit in ["HU", "stored"] {
            let v = cropped(serde_json::json!({ "body": true }), volume(unit)).unwrap();
            assert_eq!(v.geometry.size, Zyx::splat(2), "{unit}");
            assert_eq!(v.geometry.origin.0, [3.0, 2.0, 5.0]);
            assert_eq!(v.voxels, Voxels::I16(vec![40; 8]));
        }
    }

    #[test]
    fn margins_are_voxels_or_millimetres_and_end_with_the_image() {
        let size = |v| cropped(v, volume("HU")).unwrap().geometry.size;
        assert_eq!(size(serde_json::json!({ "body": true, "margin_mm": 2 })), Zyx::new(4, 6, 6));
        assert_eq!(size(serde_json::json!({ "body": true, "margin_voxels": 100 })), Zyx::new(4, 6, 8));
    }

    #[test]
    fn a_box_may_stick_out_and_grow_to_multiples_as_in_monai() {
        // The body lies at (1, 2, 3), 2×2×2 voxels of 4×6×8. MONAI: CropForeground(margin=2, allow_smaller=False) starts at (−1, 0, 1), 6 voxels an axis.
        let out = cropped(serde_json::json!({ "body": true, "margin_voxels": 2, "stick_out": true, "value": 0 }), volume("HU")).unwrap();
        assert_eq!((out.geometry.size, out.geometry.origin.0), (Zyx::splat(6), [1.0, 0.0, -5.0]));
        let Voxels::I16(x) = &out.voxels else { panic!("the type holds the value") };
        assert_eq!((&x[..36], x[36 + 2 * 6 + 2], x[2 * 36 + 2 * 6 + 2]), (&[0; 36][..], -1000, 40));
        assert_eq!(out.labels.unwrap().voxels[2 * 36 + 2 * 6 + 2], 1);
        // k_divisible=4: 2 voxels become 4, one of the two that are missing before: start (0, 1, 2).
        let four = serde_json::json!({ "z": 4, "y": 4, "x": 4 });
        let v = cropped(serde_json::json!({ "body": true, "divisible_by": four }), volume("HU")).unwrap();
        assert_eq!((v.geometry.size, v.geometry.origin.0), (Zyx::splat(4), [2.0, 1.0, 0.0]));
        // An odd voxel more goes to the far end; air fills what no value was given for.
        let v = cropped(serde_json::json!({ "body": true, "divisible_by": { "z": 5, "y": 1, "x": 0 } }), volume("HU")).unwrap();
        assert_eq!((v.geometry.size, v.geometry.origin.0), (Zyx::new(5, 2, 2), [3.0, 2.0, 0.0]));
        assert!(v.voxels.to_f32()[16..].iter().all(|v| *v == -1000.0));
        let bad = serde_json::json!({ "body": true, "divisible_by": { "z": 9000, "y": 1, "x": 1 } });
        assert_eq!(stage(bad).check().len(), 1);
    }

    #[test]
    fn nothing_above_is_an_error_that_tells_the_range() {
        let e = cropped(serde_json::json!({ "above": 1000 }), volume("HU")).unwrap_err().to_string();
        assert!(e.contains("-1000 to 300") && e.contains("above 1000"), "{e}");
        assert_eq!(stage(serde_json::json!({})).check().len(), 1);
        assert_eq!(stage(serde_json::json!({ "above": 1, "body": true, "margin_mm": 1, "margin_voxels": 1 })).check().len(), 2);
    }
}
