//! Blurs each channel with a Gaussian. Labels pass through: a blurred class id means nothing.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::{Kind, Port, Scope};
use voxmill_schemas::geometry::Zyx;

use crate::error::Error;
use crate::ops::smooth::Edge;
use crate::stage::{Cx, Facts, Finding, Info, Inputs, Stage};
use crate::volume::{Outline, Step, StoredVolume, streamed_bytes};

/// Blurs each channel with a Gaussian whose kernel is integrated over each voxel and ends at 4 standard deviations (MONAI `GaussianSmooth`, `approx: erf`).
/// Pixel padding stays what it is and is not mixed into tissue.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Smooth {
    /// Standard deviation along each axis in millimetres: the same blur in the patient whatever the spacing. 0 leaves an axis alone. Not beside `sigma_voxels`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sigma_mm: Option<Zyx<f64>>,
    /// Standard deviation along each axis in voxels, as MONAI counts. 0 leaves an axis alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sigma_voxels: Option<Zyx<f64>>,
    /// What the kernel meets beyond the image: `repeat` (the edge goes on: a constant stays that constant) or `zero` (MONAI: borders move toward 0, which is
    /// water in HU).
    #[serde(default)]
    pub edge: Edge,
}

/// A kernel reaches 4σ on either side: more is no smoothing of an image.
const MAX_SIGMA_VOXELS: f64 = 100.0;

impl Smooth {
    fn sigma(&self, spacing_mm: Zyx<f64>) -> Zyx<f64> {
        match (self.sigma_mm, self.sigma_voxels) {
            (Some(mm), _) => mm.zip(spacing_mm).map(|(s, mm)| s / mm),
            (None, Some(voxels)) => voxels,
            (None, None) => Zyx::splat(0.0),
        }
    }

    /// - `has_padding`: whether a voxel has one of these values
    fn steps(&self, of: &Outline, has_padding: impl FnOnce([f64; 2]) -> Result<bool, Error>) -> Result<Vec<Step>, Error> {
        of.check_regular()?;
        let spacing_mm = of.geometry.spacing_mm();
        let sigma = self.sigma(spacing_mm);
        if !sigma.to_array().iter().all(|s| (0.0..=MAX_SIGMA_VOXELS).contains(s)) {
            return Err(Error::Input {
                what: "the blur".into(),
                found: format!("a standard deviation of {sigma} voxels at a spacing of {spacing_mm} mm"),
                expected: format!("at most {MAX_SIGMA_VOXELS} voxels along each axis"),
            });
        }
        if sigma == Zyx::splat(0.0) {
            return Ok(Vec::new());
        }
        let padding = match of.about.padding {
            Some(range) if has_padding(range)? => Some(range),
            _ => None,
        };
        Ok(vec![Step::Smooth { sigma, edge: self.edge, padding }])
    }
}

impl Stage for Smooth {
    const INFO: Info = Info {
        name: "smooth",
        version: 1,
        scope: Scope::Case,
        ports: &[Port { name: "volume", kind: Kind::Volume, required: true, about: "what is blurred; labels pass through" }],
        gives: Kind::Volume,
        summary: "blur each channel with a Gaussian, in millimetres or voxels",
        example: "uses: smooth\nfrom: iso\nwith: { sigma_mm: { z: 1, y: 1, x: 1 } }\n",
        absent_in_inference: None,
    };

    fn check(&self) -> Vec<Finding> {
        let (field, sigma) = match (self.sigma_mm, self.sigma_voxels) {
            (Some(mm), None) => ("sigma_mm", mm),
            (None, Some(voxels)) => ("sigma_voxels", voxels),
            _ => return vec![Finding::error("", "the blur must be given once", "either `sigma_mm` or `sigma_voxels`, as { z, y, x }")],
        };
        let mut out = Vec::new();
        if !sigma.to_array().iter().all(|s| *s >= 0.0 && s.is_finite()) {
            out.push(Finding::error(field, format!("a standard deviation of {sigma}"), "0 or more along each axis"));
        } else if field == "sigma_voxels" && sigma.to_array().iter().any(|s| *s > MAX_SIGMA_VOXELS) {
            out.push(Finding::error(field, format!("a standard deviation of {sigma} voxels"), format!("at most {MAX_SIGMA_VOXELS}")));
        } else if sigma == Zyx::splat(0.0) {
            out.push(Finding::warning(field, "nothing is blurred", "give at least one axis, or leave the stage out"));
        }
        out
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let input = inputs.one("volume");
        let v = StoredVolume::open(&input.dir, input.manifest.key)?;
        cx.bytes(input.manifest.bytes);
        let of = v.outline();
        v.then(self.steps(&of, |range| v.has_value(range))?, cx)
    }

    fn is_step(&self) -> bool {
        true
    }

    fn memory_bytes(&self, inputs: &Inputs) -> u64 {
        streamed_bytes(inputs.one("volume"), |of| self.steps(of, |_| Ok(true)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::geometry::Geometry;

    use super::*;
    use crate::ops::smooth::erf;
    use crate::volume::{About, Labels, Volume, Voxels, apply};

    const SIZE: Zyx<usize> = Zyx::new(3, 6, 9);

    fn volume(padding: Option<[f64; 2]>) -> Volume {
        let geometry = Geometry::axis_aligned(SIZE, Zyx::new(2.0, 1.0, 0.5));
        let values = (0..SIZE.count() as i32).map(|i| if i % 9 == 8 { -3000 } else { ((i * 7919) % 211) as i16 }).collect();
        let labels =
            Labels { classes: [("Bone".to_string(), 1)].into_iter().collect(), voxels: (0..SIZE.count()).map(|i| (i % 2) as u8).collect() };
        let about = About { padding, unit: "HU".into(), ..About::of(geometry) };
        Volume { geometry, channels: vec!["CT".into()], voxels: Voxels::I16(values), labels: Some(labels), about }
    }

    fn stage(with: serde_json::Value) -> Smooth {
        serde_json::from_value(with).unwrap()
    }

    fn smoothed(with: serde_json::Value, v: Volume) -> Volume {
        let steps = stage(with).steps(&Outline::of(&v), |_| Ok(true)).unwrap();
        apply(v, steps).unwrap()
    }

    /// MONAI's `gaussian_1d(sigma, truncated=4, approx="erf")` and a convolution in zeros, all three axes at once, in float64.
    fn by_hand(v: &[f32], sigma: Zyx<f64>) -> Vec<f64> {
        let kernel = |s: f64| -> Vec<f64> {
            let tail = ((s * 4.0).max(0.5) + 0.5) as i64;
            let t = std::f64::consts::FRAC_1_SQRT_2 / s.abs();
            (-tail..=tail).map(|k| (0.5 * (erf(t * (k as f64 + 0.5)) - erf(t * (k as f64 - 0.5)))).max(0.0)).collect()
        };
        let k = sigma.map(kernel);
        let mut out = vec![0.0; v.len()];
        for (i, o) in out.iter_mut().enumerate() {
            let at = [i / 54, i / 9 % 6, i % 9].map(|v| v as i64);
            for (dz, wz) in k.z.iter().enumerate() {
                for (dy, wy) in k.y.iter().enumerate() {
                    for (dx, wx) in k.x.iter().enumerate() {
                        let p: Vec<i64> = [(dz, &k.z), (dy, &k.y), (dx, &k.x)]
                            .iter()
                            .zip(at)
                            .map(|((d, k), a)| a + *d as i64 - (k.len() / 2) as i64)
                            .collect();
                        if (0..3).contains(&p[0]) && (0..6).contains(&p[1]) && (0..9).contains(&p[2]) {
                            *o += wz * wy * wx * v[((p[0] * 6 + p[1]) * 9 + p[2]) as usize] as f64;
                        }
                    }
                }
            }
        }
        out
    }

    #[test]
    fn millimetres_are_voxels_times_spacing_and_the_numbers_those_of_monai() {
        let mm = serde_json::json!({ "sigma_mm": { "z": 1.0, "y": 1.5, "x": 0.6 }, "edge": "zero" });
        let voxels = serde_json::json!({ "sigma_voxels": { "z": 0.5, "y": 1.5, "x": 1.2 }, "edge": "zero" });
        let before = volume(None);
        let (a, b) = (smoothed(mm, before.clone()), smoothed(voxels, before.clone()));
        assert_eq!(a.voxels, b.voxels);
        let wanted = by_hand(&before.voxels.to_f32(), Zyx::new(0.5, 1.5, 1.2));
        assert!(a.voxels.to_f32().iter().zip(wanted).all(|(a, b)| (*a as f64 - b).abs() < 1e-4 * b.abs().max(1.0)));
        assert_eq!((a.labels, a.geometry, a.about.unit), (before.labels, before.geometry, before.about.unit));
    }

    #[test]
    fn padding_stays_padding_and_does_not_bleed() {
        for edge in ["repeat", "zero"] {
            let with = serde_json::json!({ "sigma_voxels": { "z": 1, "y": 1, "x": 2 }, "edge": edge });
            let v = smoothed(with, volume(Some([-3000.0, -2000.0])));
            assert_eq!(v.about.padding, Some([-3000.0, -2000.0]));
            let x = v.voxels.to_f32();
            assert!(x.iter().enumerate().all(|(i, v)| if i % 9 == 8 { *v == -3000.0 } else { (0.0..=211.0).contains(v) }), "{x:?}");
        }
    }

    #[test]
    fn a_blur_given_twice_or_too_wide_is_refused() {
        assert_eq!(stage(serde_json::json!({})).check().len(), 1);
        let one = serde_json::json!({ "z": 1, "y": 1, "x": 1 });
        assert_eq!(stage(serde_json::json!({ "sigma_mm": one, "sigma_voxels": one })).check().len(), 1);
        assert!(stage(serde_json::json!({ "sigma_mm": one })).check().is_empty());
        assert!(!stage(serde_json::json!({ "sigma_mm": { "z": -1, "y": 0, "x": 0 } })).check()[0].is_warning);
        assert!(stage(serde_json::json!({ "sigma_mm": { "z": 0, "y": 0, "x": 0 } })).check()[0].is_warning);
        let wide = stage(serde_json::json!({ "sigma_mm": { "z": 0, "y": 0, "x": 900 } }));
        assert!(wide.steps(&Outline::of(&volume(None)), |_| Ok(false)).unwrap_err().to_string().contains("at most 100 voxels"));
    }
}
