//! Brings a volume to another spacing: the new grid is `ops::respace`, the values `ops::resample`. Channels and labels land on one grid.

use schemars::JsonSchema;
use serde::de::{MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize};
use voxmill_schemas::artifact::{Kind, Port, Scope};
use voxmill_schemas::geometry::{Geometry, Zyx};

use crate::error::Error;
use crate::ops::padded::Padded;
use crate::ops::resample::{Interpolation, LabelInterpolation};
use crate::ops::respace::respaced;
use crate::stage::{Cx, Extent, Facts, Finding, Info, Inputs, Stage, default_memory_bytes};
use crate::volume::{About, Labels, Outline, Step, StoredVolume, Volume, Voxels, apply};

/// Brings a volume and its labels to another spacing.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resample {
    /// Millimetres from voxel to voxel: one number for every axis, or `{ z: …, y: …, x: … }`. An axis that is 0, null or left out keeps its spacing, and so
    /// does one that lies within 0.001 mm of the wish. The first voxel stays where it is; a tilted gantry is straightened unless `keep_tilt`.
    pub spacing_mm: SpacingMm,
    /// How image values are found: `linear`, `nearest` (keeps the voxel type) or `cubic` (B-spline of order 3; may overshoot).
    #[serde(default = "linear")]
    pub interpolation: Interpolation,
    /// How class ids are found: `nearest`, or `linear` on each class with the strongest winning (smoother, thin structures may vanish).
    #[serde(default = "nearest")]
    pub labels: LabelInterpolation,
    /// Blur before an axis gets coarser, so that fine detail does not come back as false pattern (Gaussian, σ = (new/old − 1)/2 voxels). MONAI's `Spacing` does
    /// not, so the default is not to.
    #[serde(default)]
    pub anti_alias: bool,
    /// Keep the shear of a tilted gantry instead of cutting straight slices through it.
    #[serde(default)]
    pub keep_tilt: bool,
}

fn linear() -> Interpolation {
    Interpolation::Linear
}

fn nearest() -> LabelInterpolation {
    LabelInterpolation::Nearest
}

/// A spacing an axis; 0 keeps what is there.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SpacingMm(pub Zyx<f64>);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Axes {
    /// Along the slices, mm.
    z: Option<f64>,
    /// Along the rows' stack, mm.
    y: Option<f64>,
    /// Along a row, mm.
    x: Option<f64>,
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code)]
enum NumberOrAxes {
    Number(f64),
    Axes(Axes),
}

impl JsonSchema for SpacingMm {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SpacingMm".into()
    }
    fn json_schema(g: &mut schemars::SchemaGenerator) -> schemars::Schema {
        NumberOrAxes::json_schema(g)
    }
}

/// By hand, because an untagged enum would only say that nothing matched.
impl<'de> Deserialize<'de> for SpacingMm {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = SpacingMm;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("millimetres as a number, or as { z, y, x }")
            }
            fn visit_f64<E>(self, v: f64) -> Result<SpacingMm, E> {
                Ok(SpacingMm(Zyx::splat(v)))
            }
            fn visit_u64<E>(self, v: u64) -> Result<SpacingMm, E> {
                Ok(SpacingMm(Zyx::splat(v as f64)))
            }
            fn visit_i64<E>(self, v: i64) -> Result<SpacingMm, E> {
                Ok(SpacingMm(Zyx::splat(v as f64)))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<SpacingMm, A::Error> {
                let a = Axes::deserialize(MapAccessDeserializer::new(map))?;
                Ok(SpacingMm(Zyx::new(a.z, a.y, a.x).map(Option::unwrap_or_default)))
            }
        }
        d.deserialize_any(Either)
    }
}

impl Resample {
    fn grid(&self, from: &Geometry) -> Result<Geometry, Error> {
        respaced(from, self.spacing_mm.0, self.keep_tilt)
    }

    /// - `has_padding`: whether a voxel has one of these values
    fn steps(&self, of: &Outline, has_padding: impl FnOnce([f64; 2]) -> Result<bool, Error>) -> Result<Vec<Step>, Error> {
        let (from, to) = (of.geometry, self.grid(&of.geometry)?);
        if from.same_grid(&to, 1e-3) {
            return Ok(Vec::new());
        }
        let is_nearest = self.interpolation == Interpolation::Nearest;
        let coarser = |(old, new): (f64, f64)| if self.anti_alias && !is_nearest { ((new / old - 1.0) / 2.0).max(0.0) } else { 0.0 };
        let padding = match of.about.padding.filter(|_| !is_nearest) {
            Some(range) if has_padding(range)? => Some(range),
            _ => None,
        };
        let sigma = from.spacing_mm().zip(to.spacing_mm()).map(coarser);
        Ok(vec![Step::Resample { to, image: self.interpolation, labels: self.labels, sigma, padding }])
    }
}

/// Whether a volume in memory has padding.
fn has_padding(v: &Volume, range: [f64; 2]) -> bool {
    v.voxels.to_f32().iter().any(|v| Padded::is_padding(range, *v))
}

impl Resample {
    /// Slices that were kept where they lie, on planes of even distance: the spacing asked for along z, or the median of theirs. Image values are mixed of
    /// the two slices beside a plane, labels are those of the nearer one. Predictions go back to this grid: no file holds it.
    fn straightened(&self, v: Volume, check_size: &dyn Fn(Zyx<usize>, usize) -> Result<(), Error>) -> Result<Volume, Error> {
        if v.about.is_regular() {
            return Ok(v);
        }
        let z = v.about.z_positions_mm.clone();
        let (size, own_mm) = (v.geometry.size, v.geometry.spacing_mm().z);
        let step_mm = if self.spacing_mm.0.z > 0.0 { self.spacing_mm.0.z } else { own_mm };
        let planes = (z[z.len() - 1] / step_mm + 1e-3).floor() as usize + 1;
        let new_size = Zyx { z: planes, ..size };
        check_size(new_size, v.channels.len())?;
        // Slice below each plane, and the share of the one above it.
        let between: Vec<(usize, f64)> = (0..planes)
            .map(|k| {
                let at = k as f64 * step_mm;
                let low = z.partition_point(|z| *z <= at).saturating_sub(1).min(z.len() - 2);
                (low, ((at - z[low]) / (z[low + 1] - z[low])).clamp(0.0, 1.0))
            })
            .collect();
        let plane = size.y * size.x;
        let is_nearest = self.interpolation == Interpolation::Nearest;
        let padding = v.about.padding;
        let is_padding = |v: f32| padding.is_some_and(|[low, high]| low <= v as f64 && v as f64 <= high);
        let mut voxels = Vec::with_capacity(v.channels.len() * new_size.count());
        for channel in v.voxels.to_f32().chunks_exact(size.count()) {
            for (low, share) in &between {
                let (a, b) = (&channel[low * plane..][..plane], &channel[(low + 1) * plane..][..plane]);
                voxels.extend(a.iter().zip(b).map(|(a, b)| {
                    let nearer = if *share > 0.5 { *b } else { *a };
                    let apart = is_padding(*a) || is_padding(*b);
                    if is_nearest || apart { nearer } else { (*a as f64 + (*b as f64 - *a as f64) * share) as f32 }
                }));
            }
        }
        let voxels = match &v.voxels {
            Voxels::U8(_) if is_nearest => Voxels::U8(integers(voxels, |v| v as u8)),
            Voxels::I16(_) if is_nearest => Voxels::I16(integers(voxels, |v| v as i16)),
            Voxels::U16(_) if is_nearest => Voxels::U16(integers(voxels, |v| v as u16)),
            _ => Voxels::F32(voxels),
        };
        let labels = v.labels.map(|l| {
            let slice = |(low, share): &(usize, f64)| low + (*share > 0.5) as usize;
            let voxels = between.iter().flat_map(|b| &l.voxels[slice(b) * plane..][..plane]).copied().collect();
            Labels { voxels, ..l }
        });
        let mut geometry = Geometry { size: new_size, ..v.geometry };
        geometry.axes_mm.z = geometry.axes_mm.z.scale(step_mm / own_mm);
        let about = About { z_positions_mm: Vec::new(), source: geometry, ..v.about };
        Ok(Volume { geometry, voxels, labels, about, channels: v.channels })
    }
}

/// Integers that went through float32 unharmed: all of 16 bits do.
fn integers<T>(values: Vec<f32>, narrow: impl Fn(f32) -> T) -> Vec<T> {
    values.into_iter().map(narrow).collect()
}

impl Stage for Resample {
    const INFO: Info = Info {
        name: "resample",
        version: 3,
        scope: Scope::Case,
        ports: &[Port { name: "volume", kind: Kind::Volume, required: true, about: "what gets another spacing, labels included" }],
        gives: Kind::Volume,
        summary: "bring a volume to another spacing, labels with it",
        example: "uses: resample\nfrom: masks\nwith: { spacing_mm: { z: 1, y: 1, x: 1 } }\n",
        absent_in_inference: None,
    };

    fn check(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        let mm = self.spacing_mm.0;
        for (axis, s) in [("z", mm.z), ("y", mm.y), ("x", mm.x)] {
            let field = format!("spacing_mm.{axis}");
            if !(s >= 0.0 && s.is_finite()) {
                out.push(Finding::error(
                    &field,
                    format!("a spacing of {s} mm"),
                    "a positive number of millimetres, or 0 to keep the axis as it is",
                ));
            } else if s > 0.0 && !(0.01..=50.0).contains(&s) {
                out.push(Finding::warning(&field, format!("a spacing of {s} mm is unusual"), "spacings are in millimetres"));
            }
        }
        if mm == Zyx::splat(0.0) {
            out.push(Finding::warning("spacing_mm", "every axis keeps its spacing", "give at least one axis, or leave the stage out"));
        }
        out
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let input = inputs.one("volume");
        let v = StoredVolume::open(&input.dir, input.manifest.key)?;
        cx.bytes(input.manifest.bytes);
        let of = v.outline();
        if of.about.is_regular() {
            cx.check_size(self.grid(&of.geometry)?.size, of.channels.len())?;
            return v.then(self.steps(&of, |range| Ok(has_padding(&v.whole()?, range)))?, cx);
        }
        // Evened out, slices are others, even where there are as many of them as before: no step of a chain.
        let v = self.straightened(v.whole()?, &|size, channels| cx.check_size(size, channels))?;
        cx.check_size(self.grid(&v.geometry)?.size, v.channels.len())?;
        let steps = self.steps(&Outline::of(&v), |range| Ok(has_padding(&v, range)))?;
        let v = apply(v, steps)?;
        cx.check_cancelled()?;
        v.write(cx.draft, None)?;
        Ok(v.facts())
    }

    fn is_step(&self) -> bool {
        true
    }

    /// Input and output side by side; what blur and cubic need between them.
    fn memory_bytes(&self, inputs: &Inputs) -> u64 {
        let Some(e) = Extent::of(inputs, "volume") else { return default_memory_bytes(inputs) };
        let growth = e.spacing_mm.zip(self.spacing_mm.0).map(|(old, new)| if new > 0.0 { old / new } else { 1.0 });
        let scaled = |n: u64, k: f64| (n as f64 * k).min(1e18) as u64;
        let all = growth.z * growth.y * growth.x;
        let output = scaled(4 * e.voxels + e.label_bytes, all);
        let between = match self.interpolation {
            Interpolation::Cubic => scaled(8 * e.voxels, growth.y * growth.x),
            _ => 0,
        };
        let blur = if self.anti_alias { 8 * e.voxels } else { 0 };
        // A quarter more for chunks on their way to the disk.
        e.bytes + e.label_bytes + output + output / 4 + between + blur
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn volume() -> Volume {
        let geometry = Geometry::axis_aligned(Zyx::new(3, 4, 5), Zyx::new(2.0, 1.0, 1.0));
        let about = About {
            modality: "CT".into(),
            unit: "HU".into(),
            patient: "p".into(),
            study: "s".into(),
            series: "t".into(),
            volume: 0,
            ..About::of(geometry)
        };
        let labels =
            Labels { classes: [("Bone".to_string(), 1)].into_iter().collect(), voxels: (0..60).map(|i| (i % 5 > 2) as u8).collect() };
        let voxels = Voxels::I16((0..60).map(|i| (i / 20) * 100).collect());
        Volume { geometry, channels: vec!["CT".into()], voxels, labels: Some(labels), about }
    }

    fn stage(with: serde_json::Value) -> Resample {
        serde_json::from_value(with).unwrap()
    }

    fn on(s: &Resample, v: Volume) -> Volume {
        let steps = s.steps(&Outline::of(&v), |range| Ok(has_padding(&v, range))).unwrap();
        apply(v, steps).unwrap()
    }

    fn resampled(with: serde_json::Value) -> Volume {
        on(&stage(with), volume())
    }

    #[test]
    fn image_and_labels_land_on_one_grid() {
        let v = resampled(serde_json::json!({ "spacing_mm": 1 }));
        assert_eq!(v.geometry.size, Zyx::new(5, 4, 5));
        let Voxels::F32(x) = &v.voxels else { panic!("float32 after interpolation") };
        assert_eq!([x[0], x[20], x[40], x[60], x[80]], [0.0, 50.0, 100.0, 150.0, 200.0]);
        let l = v.labels.unwrap().voxels;
        assert_eq!((l.len(), &l[..5]), (100, &[0u8, 0, 0, 1, 1][..]));
    }

    #[test]
    fn slices_kept_where_they_lie_become_even_planes() {
        let mut v = volume();
        v.about.z_positions_mm = vec![0.0, 2.0, 6.0];
        let s = stage(serde_json::json!({ "spacing_mm": { "z": 1 } }));
        let v = s.straightened(v, &|_, _| Ok(())).unwrap();
        assert_eq!((v.geometry.size, v.geometry.spacing_mm().z), (Zyx::new(7, 4, 5), 1.0));
        let x = v.voxels.to_f32();
        // 0, 100 and 200 at 0, 2 and 6 mm.
        assert_eq!((0..7).map(|k| x[k * 20]).collect::<Vec<_>>(), [0.0, 50.0, 100.0, 125.0, 150.0, 175.0, 200.0]);
        assert!(v.about.is_regular() && v.about.source == v.geometry && v.labels.unwrap().voxels.len() == 140);
    }

    #[test]
    fn padding_is_not_mixed_into_tissue() {
        let geometry = Geometry::axis_aligned(Zyx::new(1, 1, 4), Zyx::splat(1.0));
        let about = About { padding: Some([-3000.0, -2000.0]), ..About::of(geometry) };
        let voxels = Voxels::I16(vec![-3000, -3000, 40, 60]);
        for how in ["linear", "cubic"] {
            let v = Volume { geometry, channels: vec!["CT".into()], voxels: voxels.clone(), labels: None, about: about.clone() };
            let s = stage(serde_json::json!({ "spacing_mm": { "x": 0.5 }, "interpolation": how }));
            let x = on(&s, v).voxels.to_f32().into_owned();
            assert!(x.iter().all(|v| *v == -3000.0 || (40.0..=60.0).contains(v)), "{how}: {x:?}");
            assert_eq!((x[0], x[4], x[6]), (-3000.0, 40.0, 60.0), "{how}");
        }
    }

    #[test]
    fn nearest_keeps_the_voxel_type_and_the_own_spacing_keeps_everything() {
        assert!(matches!(resampled(serde_json::json!({ "spacing_mm": { "z": 1 }, "interpolation": "nearest" })).voxels, Voxels::I16(_)));
        assert_eq!(resampled(serde_json::json!({ "spacing_mm": { "z": 2, "y": null, "x": 0 } })), volume());
    }

    #[test]
    fn cubic_of_a_ramp_is_the_ramp_in_the_middle_and_blur_keeps_a_constant() {
        let v = resampled(serde_json::json!({ "spacing_mm": { "z": 1 }, "interpolation": "cubic", "labels": "linear" }));
        let Voxels::F32(x) = &v.voxels else { panic!("float32 after interpolation") };
        assert!((x[40] - 100.0).abs() < 1e-4, "{}", x[40]);
        let mut flat = volume();
        flat.voxels = Voxels::I16(vec![70; 60]);
        let s = stage(serde_json::json!({ "spacing_mm": 3, "anti_alias": true }));
        assert!(on(&s, flat).voxels.to_f32().iter().all(|v| (v - 70.0).abs() < 1e-4));
    }

    #[test]
    fn spacing_is_a_number_or_axes_and_mistakes_are_named() {
        assert_eq!(
            stage(serde_json::json!({ "spacing_mm": 1.5 })).spacing_mm,
            stage(serde_json::json!({ "spacing_mm": { "z": 1.5, "y": 1.5, "x": 1.5 } })).spacing_mm
        );
        let error = |v| serde_json::from_value::<Resample>(v).unwrap_err().to_string();
        assert!(error(serde_json::json!({ "spacing_mm": { "zz": 1 } })).contains("zz"));
        assert!(error(serde_json::json!({ "spacing_mm": "1 mm" })).contains("millimetres"));
        assert!(!stage(serde_json::json!({ "spacing_mm": -1 })).check()[0].is_warning);
        assert!(stage(serde_json::json!({ "spacing_mm": 700 })).check().iter().all(|f| f.is_warning));
        assert!(stage(serde_json::json!({ "spacing_mm": 1 })).check().is_empty());
    }
    #[test]
    fn memory_grows_with_the_output() {
        let hash = voxmill_schemas::artifact::ContentHash::of(b"");
        let manifest = voxmill_schemas::artifact::Manifest {
            key: voxmill_schemas::artifact::Key::of(b""),
            content: hash,
            kind: Kind::Volume,
            case: None,
            recipe: voxmill_schemas::artifact::Recipe {
                stage: "annotate".into(),
                version: 1,
                config: serde_json::Value::Null,
                inputs: Default::default(),
                seed: 0,
            },
            input_keys: Default::default(),
            facts: volume().facts().facts,
            files: Default::default(),
            bytes: 0,
            layout: 1,
        };
        let input = crate::stage::Input { dir: Default::default(), manifest: std::sync::Arc::new(manifest), rows: None };
        let inputs = Inputs([("volume".to_string(), vec![input])].into_iter().collect());
        let bytes = |with| stage(with).memory_bytes(&inputs);
        // 60 voxels of int16 with labels; as many, or 8 times as many, float32 with labels and a quarter of that again.
        assert_eq!(bytes(serde_json::json!({ "spacing_mm": 0 })), 180 + 300 + 75);
        assert_eq!(bytes(serde_json::json!({ "spacing_mm": { "z": 1, "y": 0.5, "x": 0.5 } })), 180 + 2400 + 600);
        assert!(bytes(serde_json::json!({ "spacing_mm": 1, "interpolation": "cubic" })) > bytes(serde_json::json!({ "spacing_mm": 1 })));
    }
}
