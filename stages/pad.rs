//! Brings a volume to a size in voxels: pads evenly about the middle and, if asked, crops there.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::{Kind, Port, Scope};
use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;

use crate::error::Error;
use crate::ops::crop::centered;
use crate::ops::intensity;
use crate::stage::{Cx, Facts, Finding, Info, Inputs, Stage};
use crate::volume::{Filling, Outline, Step, StoredVolume, streamed_bytes};

/// Pads a volume and its labels about the middle to at least a size (MONAI `SpatialPad`; with `crop`, `ResizeWithPadOrCrop`).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pad {
    /// Voxels along each axis; 0 leaves an axis as it is. Larger axes stay unless `crop`. An odd voxel goes to the far end. May be left out beside
    /// `divisible_by`.
    #[serde(default)]
    pub size: Zyx<usize>,
    /// Pad each axis further, to the next multiple of this many voxels (MONAI `DivisiblePad`): what a network that halves its input k times wants is 2^k. 0 or
    /// 1 leaves an axis as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divisible_by: Option<Zyx<usize>>,
    /// What new voxels hold in mode `constant`. Left out: the smallest value of the volume, air in CT.
    #[serde(default)]
    pub value: Option<f64>,
    /// `constant`, `edge` (the edge repeated) or `reflect` (mirrored at the outermost voxels). Labels follow; in mode `constant` they are background.
    #[serde(default)]
    pub mode: Mode,
    /// Crop axes that are larger, about the middle, to exactly `size`.
    #[serde(default)]
    pub crop: bool,
}

/// What fills the new voxels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One value.
    #[default]
    Constant,
    /// The closest voxel.
    Edge,
    /// The image mirrored.
    Reflect,
}

impl Pad {
    fn region(&self, size: Zyx<usize>) -> Region {
        let target = self.size.zip(size).map(|(wanted, n)| match wanted {
            0 => n,
            w if self.crop => w,
            w => w.max(n),
        });
        let target = target.zip(self.divisible_by.unwrap_or(Zyx::splat(1))).map(|(n, k)| n.next_multiple_of(k.max(1)));
        centered(size, target)
    }

    /// - `lowest`: the smallest finite value of the volume
    fn steps(&self, of: &Outline, lowest: impl FnOnce() -> Result<f32, Error>) -> Result<Vec<Step>, Error> {
        of.check_regular()?;
        let (size, region) = (of.geometry.size, self.region(of.geometry.size));
        if region == Region::whole(size) {
            return Ok(Vec::new());
        }
        let fill = match (self.mode, self.value) {
            (Mode::Constant, Some(value)) => Filling::Value(value as f32),
            // Nothing is filled in.
            (Mode::Constant, None) if Region::whole(size).contains(&region) => Filling::Value(0.0),
            (Mode::Constant, None) => Filling::Value(lowest()?),
            (Mode::Edge, _) => Filling::Edge,
            (Mode::Reflect, _) => Filling::Reflect,
        };
        Ok(vec![Step::Cut { region, fill }])
    }
}

impl Stage for Pad {
    const INFO: Info = Info {
        name: "pad",
        version: 1,
        scope: Scope::Case,
        ports: &[Port { name: "volume", kind: Kind::Volume, required: true, about: "what is padded, labels included" }],
        gives: Kind::Volume,
        summary: "pad a volume about the middle to a size in voxels, or crop it there",
        example: "uses: pad\nfrom: iso\nwith: { size: { z: 96, y: 96, x: 96 } }\n",
        absent_in_inference: None,
    };

    fn check(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        let divides = self.divisible_by.is_some_and(|k| k.to_array().iter().any(|k| *k > 1));
        if self.size == Zyx::splat(0) && !divides {
            out.push(Finding::error("size", "every axis keeps its size", "at least one axis greater than 0, or `divisible_by`"));
        }
        if self.divisible_by.is_some_and(|k| k.to_array().iter().any(|k| *k > 4096)) {
            out.push(Finding::error("divisible_by", "a multiple of more than 4096 voxels", "voxels, for example 16"));
        }
        if self.size.to_array().iter().any(|n| *n > 65_536) {
            out.push(Finding::error("size", format!("{} voxels", self.size), "at most 65536 voxels along an axis: the unit is voxels"));
        }
        if self.value.is_some_and(|v| !v.is_finite()) {
            out.push(Finding::error("value", "the value is no number", "a finite number"));
        }
        if self.value.is_some() && self.mode != Mode::Constant {
            out.push(Finding::error("value", "a value does nothing in this mode", "leave `value` out, or use `mode: constant`"));
        }
        if self.crop && self.size == Zyx::splat(0) {
            out.push(Finding::error("crop", "there is no size to crop to", "leave it out, or give `size`"));
        }
        out
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let input = inputs.one("volume");
        let v = StoredVolume::open(&input.dir, input.manifest.key)?;
        cx.bytes(input.manifest.bytes);
        let of = v.outline();
        cx.check_size(self.region(of.geometry.size).size, of.channels.len())?;
        let lowest = || {
            let mut lowest = None;
            v.each(|slab| {
                let low = intensity::range(&slab.to_f32()).map(|(low, _)| low);
                lowest = low.into_iter().chain(lowest).reduce(f32::min);
            })?;
            Ok(lowest.unwrap_or(0.0))
        };
        v.then(self.steps(&of, lowest)?, cx)
    }

    /// Looking for the smallest value takes all voxels.
    fn is_step(&self) -> bool {
        self.mode != Mode::Constant || self.value.is_some()
    }

    fn memory_bytes(&self, inputs: &Inputs) -> u64 {
        streamed_bytes(inputs.one("volume"), |of| self.steps(of, || Ok(0.0)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::geometry::{Geometry, Lps};

    use super::*;
    use crate::volume::{About, Labels, Volume, Voxels, apply};

    fn padded(with: serde_json::Value) -> Volume {
        let geometry = Geometry::axis_aligned(Zyx::new(1, 1, 3), Zyx::new(1.0, 1.0, 2.0));
        let text = || "x".to_string();
        let about = About {
            modality: "CT".into(),
            unit: "HU".into(),
            patient: text(),
            study: text(),
            series: text(),
            volume: 0,
            ..About::of(geometry)
        };
        let labels = Some(Labels { classes: [("Bone".to_string(), 1)].into_iter().collect(), voxels: vec![1, 0, 1] });
        let v = Volume { geometry, channels: vec!["CT".into()], voxels: Voxels::I16(vec![5, -7, 9]), labels, about };
        let lowest = || Ok(-7.0);
        let steps = serde_json::from_value::<Pad>(with).unwrap().steps(&Outline::of(&v), lowest).unwrap();
        apply(v, steps).unwrap()
    }

    #[test]
    fn padding_is_even_holds_air_and_keeps_places() {
        let v = padded(serde_json::json!({ "size": { "z": 1, "y": 0, "x": 6 } }));
        assert_eq!(v.voxels, Voxels::I16(vec![-7, 5, -7, 9, -7, -7]));
        assert_eq!(v.labels.unwrap().voxels, [0, 1, 0, 1, 0, 0]);
        assert_eq!(v.geometry.to_lps(Zyx::new(0.0, 0.0, 1.0)), Lps([0.0, 0.0, 0.0]));
    }

    #[test]
    fn an_axis_grows_to_the_next_multiple() {
        let size = |with| padded(with).geometry.size;
        assert_eq!(size(serde_json::json!({ "divisible_by": { "z": 1, "y": 0, "x": 4 } })), Zyx::new(1, 1, 4));
        assert_eq!(size(serde_json::json!({ "divisible_by": { "z": 2, "y": 3, "x": 3 } })), Zyx::new(2, 3, 3));
        assert_eq!(size(serde_json::json!({ "size": { "z": 0, "y": 0, "x": 5 }, "divisible_by": { "z": 1, "y": 1, "x": 4 } })).x, 8);
        let check = |with| serde_json::from_value::<Pad>(with).unwrap().check().len();
        assert_eq!(check(serde_json::json!({ "divisible_by": { "z": 1, "y": 1, "x": 1 } })), 1);
        assert_eq!(check(serde_json::json!({ "divisible_by": { "z": 8, "y": 8, "x": 8 } })), 0);
    }

    #[test]
    fn a_value_that_the_type_cannot_hold_widens_it() {
        let v = padded(serde_json::json!({ "size": { "z": 1, "y": 1, "x": 4 }, "value": 0.5 }));
        assert_eq!(v.voxels, Voxels::F32(vec![5.0, -7.0, 9.0, 0.5]));
    }

    #[test]
    fn larger_axes_stay_unless_cropping_is_asked_for() {
        assert_eq!(padded(serde_json::json!({ "size": { "z": 1, "y": 1, "x": 2 } })).geometry.size.x, 3);
        assert_eq!(padded(serde_json::json!({ "size": { "z": 1, "y": 1, "x": 2 }, "crop": true })).voxels, Voxels::I16(vec![5, -7]));
        let v = padded(serde_json::json!({ "size": { "z": 1, "y": 1, "x": 7 }, "mode": "reflect" }));
        assert_eq!((v.voxels, v.labels.unwrap().voxels), (Voxels::I16(vec![9, -7, 5, -7, 9, -7, 5]), vec![1, 0, 1, 0, 1, 0, 1]));
    }
}
