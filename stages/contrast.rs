//! Bends the intensities of each volume by a gamma curve over their range.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::{Kind, Port, Scope};

use crate::error::Error;
use crate::ops::padded::Padded;
use crate::ops::{intensity, tone};
use crate::stage::{Cx, Facts, Finding, Info, Inputs, Stage};
use crate::volume::{StoredVolume, Volume, Voxels, whole_bytes};

/// Gamma curve over the range of the values, ((x − min)/(max − min))^gamma·(max − min) + min (MONAI `AdjustContrast`). Pixel padding takes no part and becomes
/// the lowest value.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Contrast {
    /// Exponent: above 1 darkens the middle, below 1 brightens it, 1 changes nothing.
    pub gamma: f64,
    /// Turn the image over before and back after, so that gamma works on the bright end instead of the dark one.
    #[serde(default)]
    pub invert_image: bool,
    /// Bring mean and standard deviation (÷ (N − 1)) back to what they were.
    #[serde(default)]
    pub retain_stats: bool,
    /// Range and statistics of each channel on its own; `false`: of all channels together (MONAI).
    #[serde(default = "yes")]
    pub channel_wise: bool,
}

fn yes() -> bool {
    true
}

impl Contrast {
    fn apply(&self, v: Volume) -> Result<Volume, Error> {
        let padding = v.about.padding;
        let mut values = v.voxels.into_f32();
        let block = if self.channel_wise { v.geometry.size.count() } else { values.len() };
        for values in values.chunks_exact_mut(block.max(1)) {
            self.bend(values, padding).ok_or_else(|| Error::Input {
                what: format!("channel {}", v.channels.join(", ")),
                found: "no finite voxel".into(),
                expected: "an image".into(),
            })?;
        }
        let mut about = v.about;
        (about.unit, about.padding) = ("normalised".into(), None);
        Ok(Volume { voxels: Voxels::F32(values), about, ..v })
    }

    /// `None` without a finite value that is no padding.
    fn bend(&self, values: &mut [f32], padding: Option<[f64; 2]>) -> Option<()> {
        let is_padding = |v: f32| padding.is_some_and(|p| Padded::is_padding(p, v));
        if !values.iter().any(|v| is_padding(*v)) {
            intensity::range(values)?;
            tone::gamma(values, self.gamma as f32, self.invert_image, self.retain_stats);
            return Some(());
        }
        // Tissue alone sets range and statistics.
        let mut tissue: Vec<f32> = values.iter().copied().filter(|v| !is_padding(*v)).collect();
        intensity::range(&tissue)?;
        tone::gamma(&mut tissue, self.gamma as f32, self.invert_image, self.retain_stats);
        let (lowest, _) = intensity::range(&tissue)?;
        let mut tissue = tissue.into_iter();
        values.iter_mut().for_each(|v| {
            *v = if is_padding(*v) { lowest } else { tissue.next().expect("one for each voxel that is no padding") };
        });
        Some(())
    }
}

impl Stage for Contrast {
    const INFO: Info = Info {
        name: "contrast",
        version: 2,
        scope: Scope::Case,
        ports: &[Port { name: "volume", kind: Kind::Volume, required: true, about: "what is changed; labels pass through" }],
        gives: Kind::Volume,
        summary: "bend the intensities of each volume by a gamma curve",
        example: "uses: contrast\nfrom: iso\nwith: { gamma: 0.7 }\n",
        absent_in_inference: None,
    };

    fn check(&self) -> Vec<Finding> {
        if self.gamma > 0.0 && self.gamma.is_finite() {
            return Vec::new();
        }
        vec![Finding::error("gamma", format!("an exponent of {}", self.gamma), "a number above 0")]
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let input = inputs.one("volume");
        let v = Volume::read(&input.dir)?;
        cx.bytes(input.manifest.bytes);
        cx.check_cancelled()?;
        let v = self.apply(v)?;
        v.write_sharing(cx.draft, None, Some(&input.dir))?;
        Ok(v.facts())
    }

    /// The volume in float32, and tissue apart from its padding.
    fn memory_bytes(&self, inputs: &Inputs) -> u64 {
        let volume = inputs.one("volume");
        let is_padded = StoredVolume::open(&volume.dir, volume.manifest.key).is_ok_and(|v| v.about.padding.is_some());
        whole_bytes(volume, is_padded as u64)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::geometry::{Geometry, Zyx};

    use super::*;
    use crate::volume::About;

    fn bent(with: serde_json::Value, values: Vec<f32>, channels: usize, padding: Option<[f64; 2]>) -> Result<Vec<f32>, Error> {
        let geometry = Geometry::axis_aligned(Zyx::new(1, 1, values.len() / channels), Zyx::splat(1.0));
        let about = About { padding, ..About::of(geometry) };
        let channels = (0..channels).map(|c| format!("c{c}")).collect();
        let v = Volume { geometry, channels, voxels: Voxels::F32(values), labels: None, about };
        Ok(serde_json::from_value::<Contrast>(with).unwrap().apply(v)?.voxels.into_f32())
    }

    fn close(a: &[f32], b: &[f32]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4)
    }

    #[test]
    fn a_gamma_bends_turns_over_and_keeps_statistics() {
        // numpy, float64: x = [0, 1, 3, 4], γ = 2.
        let x = vec![0.0, 1.0, 3.0, 4.0];
        let with = |invert: bool, retain: bool| serde_json::json!({ "gamma": 2, "invert_image": invert, "retain_stats": retain });
        assert!(close(&bent(with(false, false), x.clone(), 1, None).unwrap(), &[0.0, 0.25, 2.25, 4.0]));
        assert!(close(&bent(with(true, false), x.clone(), 1, None).unwrap(), &[0.0, 1.75, 3.75, 4.0]));
        assert!(close(&bent(with(false, true), x, 1, None).unwrap(), &[0.418861, 0.662113, 2.60813, 4.310895]));
    }

    #[test]
    fn channels_have_ranges_of_their_own_or_one() {
        let two = vec![0.0, 1.0, 2.0, 0.0, 2.0, 4.0];
        assert!(close(&bent(serde_json::json!({ "gamma": 2 }), two.clone(), 2, None).unwrap(), &[0.0, 0.5, 2.0, 0.0, 1.0, 4.0]));
        let one = serde_json::json!({ "gamma": 2, "channel_wise": false });
        assert!(close(&bent(one, two, 2, None).unwrap(), &[0.0, 0.25, 1.0, 0.0, 1.0, 4.0]));
    }

    #[test]
    fn padding_sets_no_range() {
        let v = bent(serde_json::json!({ "gamma": 2 }), vec![-2000.0, 0.0, 1.0, 2.0], 1, Some([-2000.0, -2000.0])).unwrap();
        assert!(close(&v, &[0.0, 0.0, 0.5, 2.0]), "{v:?}");
        assert!(bent(serde_json::json!({ "gamma": 2 }), vec![f32::NAN; 3], 1, None).unwrap_err().to_string().contains("no finite"));
        assert_eq!(serde_json::from_value::<Contrast>(serde_json::json!({ "gamma": 0 })).unwrap().check().len(), 1);
    }
}
