//! Maps two percentiles of a volume to two values. Its own percentiles: every volume lands in the same range whatever its scanner stored.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::{Kind, Port, Scope};

use crate::error::Error;
use crate::ops::intensity::{self, Map};
use crate::ops::padded::Padded;
use crate::stage::{Cx, Facts, Finding, Info, Inputs, Progress, Stage};
use crate::volume::{Outline, Precision, Step, StoredVolume, Volume, Voxels, apply, looked_bytes, streamed_bytes};

/// Maps the percentiles `lower` and `upper` to `to_low` and `to_high` (MONAI `ScaleIntensityRangePercentiles`). Pixel padding takes no part and goes to the low
/// end.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// Percentile that becomes `to_low`, 0 to 100. Between order statistics it is interpolated, as numpy does.
    pub lower: f64,
    /// Percentile that becomes `to_high`.
    pub upper: f64,
    /// What `lower` becomes (MONAI `b_min`).
    #[serde(default)]
    pub to_low: f64,
    /// What `upper` becomes (MONAI `b_max`).
    #[serde(default = "one")]
    pub to_high: f64,
    /// Hold intensities beyond the two percentiles at `to_low` and `to_high` (MONAI does not unless told).
    #[serde(default = "yes")]
    pub clip: bool,
    /// The percentiles become the same percentages of the range `to_low`…`to_high`: of 0…255, the 10th becomes 25.5.
    #[serde(default)]
    pub relative: bool,
    /// Percentiles of each channel on its own; `false`: of all channels together (what MONAI does unless told).
    #[serde(default = "yes")]
    pub channel_wise: bool,
    /// Type that the values are stored as: `float32`, or `float16` in half the space, rounded to 11 bits (three digits); values beyond ±65504 are refused.
    #[serde(default, skip_serializing_if = "Precision::is_full")]
    pub dtype: Precision,
}

fn one() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

impl Scale {
    /// What becomes of the values of one channel, or of all together; `None` without a finite one. And whether they are all the same.
    fn maps(&self, values: &[f32], padding: Option<[f64; 2]>) -> Option<(Vec<Map>, bool)> {
        let tissue = values.iter().copied().filter(|v| padding.is_none_or(|p| !Padded::is_padding(p, *v)));
        let ends = intensity::percentiles(tissue, &[self.lower, self.upper])?;
        let (low, high) = (ends[0] as f32, ends[1] as f32);
        let at = |percent: f64, end: f64| {
            if self.relative { (self.to_high - self.to_low) * percent / 100.0 + self.to_low } else { end }
        };
        let (to_low, to_high) = (at(self.lower, self.to_low) as f32, at(self.upper, self.to_high) as f32);
        let window = Map::Window { low, high, to_low, to_high, clip: self.clip };
        let hidden = padding.map(|from| Map::Replace { from, to: low });
        Some((hidden.into_iter().chain([window]).collect(), low == high))
    }

    /// The step where one says it for every channel; where each has its own, the volume itself. And the channels in which nothing differs.
    fn apply(&self, v: Volume) -> Result<(Made, Vec<String>), Error> {
        let padding = v.about.padding;
        let n = v.geometry.size.count().max(1);
        let none = |what: String| Error::Input { what, found: "no finite voxel".into(), expected: "an image".into() };
        if !self.channel_wise || v.channels.len() == 1 {
            let (maps, is_flat) =
                self.maps(&v.voxels.to_f32(), padding).ok_or_else(|| none(format!("channel {}", v.channels.join(", "))))?;
            let flat = if is_flat { v.channels.clone() } else { Vec::new() };
            return Ok((Made::Step(Step::Map { maps, unit: "normalised".into() }), flat));
        }
        let mut flat = Vec::new();
        let mut values = v.voxels.into_f32();
        for (name, values) in v.channels.iter().zip(values.chunks_exact_mut(n)) {
            let (maps, is_flat) = self.maps(values, padding).ok_or_else(|| none(format!("channel {name}")))?;
            maps.into_iter().for_each(|m| m.apply(values));
            if is_flat {
                flat.push(name.clone());
            }
        }
        let mut about = v.about;
        (about.unit, about.padding) = ("normalised".into(), None);
        Ok((Made::Volume(Box::new(Volume { voxels: Voxels::F32(values), about, ..v })), flat))
    }
}

/// What the stage leaves.
enum Made {
    Step(Step),
    Volume(Box<Volume>),
}

impl Stage for Scale {
    const INFO: Info = Info {
        name: "scale",
        version: 1,
        scope: Scope::Case,
        ports: &[Port { name: "volume", kind: Kind::Volume, required: true, about: "what is scaled; labels pass through" }],
        gives: Kind::Volume,
        summary: "map two percentiles of each volume to a range, 0 to 1 unless told otherwise",
        example: "uses: scale\nfrom: iso\nwith: { lower: 0.5, upper: 99.5, to_low: 0, to_high: 1, clip: true }\n",
        absent_in_inference: None,
    };

    fn check(&self) -> Vec<Finding> {
        let mut out: Vec<Finding> = Finding::of_percentiles(self.lower, self.upper).into_iter().collect();
        if self.to_low == self.to_high || !self.to_low.is_finite() || !self.to_high.is_finite() {
            out.push(Finding::error("to_high", format!("a range from {} to {}", self.to_low, self.to_high), "two different numbers"));
        }
        out
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let input = inputs.one("volume");
        let stored = StoredVolume::open(&input.dir, input.manifest.key)?;
        let v = stored.whole()?;
        cx.bytes(input.manifest.bytes);
        cx.check_cancelled()?;
        let (made, flat) = self.apply(v)?;
        if !flat.is_empty() {
            (cx.progress)(Progress::Warn(format!("the percentiles of channel {} are one value", flat.join(", "))));
        }
        match made {
            Made::Step(step) => stored.then([step].into_iter().chain(self.dtype.step()).collect(), cx),
            Made::Volume(v) => {
                let v = apply(*v, self.dtype.step().into_iter().collect())?;
                v.write_sharing(cx.draft, None, Some(&input.dir))?;
                Ok(v.facts())
            }
        }
    }

    /// The percentiles have to be looked for, the result not to be written.
    fn is_step(&self) -> bool {
        true
    }

    /// Looked through in float32 with a copy to order; written as a step, or held whole where each channel has its own.
    fn memory_bytes(&self, inputs: &Inputs) -> u64 {
        let volume = inputs.one("volume");
        let map = Map::Clip { low: 0.0, high: 1.0 };
        let step = |_: &Outline| Ok(vec![Step::Map { maps: vec![map], unit: String::new() }]);
        looked_bytes(volume, 2).max(streamed_bytes(volume, step))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::geometry::{Geometry, Zyx};

    use super::*;
    use crate::volume::{About, apply};

    fn stage(with: serde_json::Value) -> Scale {
        serde_json::from_value(with).unwrap()
    }

    fn scaled(with: serde_json::Value, values: Vec<f32>, channels: usize, padding: Option<[f64; 2]>) -> (Vec<f32>, Vec<String>) {
        let geometry = Geometry::axis_aligned(Zyx::new(1, 1, values.len() / channels), Zyx::splat(1.0));
        let about = About { padding, ..About::of(geometry) };
        let channels = (0..channels).map(|c| format!("c{c}")).collect();
        let v = Volume { geometry, channels, voxels: Voxels::F32(values), labels: None, about };
        let (made, flat) = stage(with).apply(v.clone()).unwrap();
        let v = match made {
            Made::Step(step) => apply(v, vec![step]).unwrap(),
            Made::Volume(v) => *v,
        };
        assert_eq!((v.about.unit.as_str(), v.about.padding), ("normalised", None));
        (v.voxels.to_f32().into_owned(), flat)
    }

    #[test]
    fn percentiles_become_the_ends_of_the_range() {
        let ramp: Vec<f32> = (0..=20).map(|v| v as f32).collect();
        // numpy: percentile([0…20], [10, 90]) = 2, 18; (x − 2)/16·4 − 1.
        let (v, _) = scaled(serde_json::json!({ "lower": 10, "upper": 90, "to_low": -1, "to_high": 3 }), ramp.clone(), 1, None);
        assert_eq!((v[0], v[2], v[10], v[18], v[20]), (-1.0, -1.0, 1.0, 3.0, 3.0));
        let (v, _) =
            scaled(serde_json::json!({ "lower": 10, "upper": 90, "to_low": -1, "to_high": 3, "clip": false }), ramp.clone(), 1, None);
        assert_eq!((v[0], v[20]), (-1.5, 3.5));
        // Relative: 10 % and 90 % of 0…200.
        let (v, _) = scaled(serde_json::json!({ "lower": 10, "upper": 90, "to_high": 200, "relative": true }), ramp, 1, None);
        assert_eq!((v[0], v[2], v[10], v[18], v[20]), (20.0, 20.0, 100.0, 180.0, 180.0));
    }

    #[test]
    fn channels_are_scaled_each_on_its_own_or_together() {
        let two = vec![0.0, 1.0, 2.0, 10.0, 20.0, 30.0];
        let ends = serde_json::json!({ "lower": 0, "upper": 100 });
        assert_eq!(scaled(ends, two.clone(), 2, None).0, [0.0, 0.5, 1.0, 0.0, 0.5, 1.0]);
        let together = serde_json::json!({ "lower": 0, "upper": 100, "to_high": 30, "channel_wise": false });
        assert_eq!(scaled(together, two.clone(), 2, None).0, two);
    }

    #[test]
    fn padding_takes_no_part_and_what_is_flat_is_told() {
        let ends = serde_json::json!({ "lower": 0, "upper": 100 });
        let (v, flat) = scaled(ends.clone(), vec![-2000.0, 1.0, 2.0, 3.0, 5.0, 5.0, 5.0, -2000.0], 2, Some([-2000.0, -2000.0]));
        assert_eq!((&v[..4], flat), (&[0.0, 0.0, 0.5, 1.0][..], vec!["c1".to_string()]));
        let bad = serde_json::json!({ "lower": 50, "upper": 50, "to_high": 0 });
        assert_eq!((stage(ends).check().len(), stage(bad).check().len()), (0, 2));
    }
}
