//! Brings a volume to another spacing: the new grid is `ops::respace`, the values `ops::resample`. Channels and labels land on one grid.

use schemars::JsonSchema;
use serde::de::{MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize};
use voxmill_schemas::artifact::{Kind, Port, Scope};
use voxmill_schemas::geometry::{Geometry, Zyx};

use crate::error::Error;
use crate::ops::padded::Padded;
use crate::ops::resample::{Interpolation, LabelInterpolation};
use crate::ops::respace::{coarse_axis, refilled, respaced};
use crate::ops::spline::PLANES;
use crate::stage::{Cx, Extent, Facts, Finding, Info, Inputs, Stage, default_memory_bytes};
use crate::volume::{About, Labels, Outline, Step, StoredVolume, Volume, Voxels, apply};

/// Brings a volume and its labels to another spacing.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resample {
    /// Millimetres from voxel to voxel: one number for every axis, or `{ z: …, y: …, x: … }`. An axis that is 0, null or left out keeps its spacing, and so
    /// does one that lies within 0.001 mm of the wish. The first voxel stays where it is; a tilted gantry is straightened unless `keep_tilt`. Left out where
    /// the port `like` is connected: the volume then gets the grid of that one, wherever it lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spacing_mm: Option<SpacingMm>,
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
    /// Fill the same box, outer faces included, instead of keeping the first voxel (nnU-Net, ITK): the size is round(n·old/new) and the spacing what then fits,
    /// which may differ from `spacing_mm` by a few per cent. A tilted gantry keeps its tilt.
    #[serde(default, skip_serializing_if = "is_no")]
    pub keep_extent: bool,
    /// Where one axis is more than three times as coarse as the finest, interpolate within its slices only and take the nearest slice along it, image and labels
    /// alike (nnU-Net's rule for anisotropic volumes, of the volume or else of its new grid). With `interpolation: cubic`, `labels: linear` and `keep_extent`
    /// the grids and numbers are nnU-Net's, but that values which overshoot are kept.
    #[serde(default, skip_serializing_if = "is_no")]
    pub separate_z: bool,
    /// What lies beyond the volume on the grid of `like`, in the volume's unit; labels are background there. Left out, the edge goes on (MONAI
    /// `ResampleToMatch`). A volume with pixel padding has padding there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<f64>,
}

fn is_no(v: &bool) -> bool {
    !*v
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
    /// As asked for; 0 keeps an axis.
    fn wanted_mm(&self) -> Zyx<f64> {
        self.spacing_mm.map_or(Zyx::splat(0.0), |s| s.0)
    }

    /// - `like`: the grid of the volume at that port
    fn grid(&self, from: &Geometry, like: Option<&Geometry>) -> Result<Geometry, Error> {
        let refuse = |found: &str| {
            let (what, found) = ("the new grid".into(), found.into());
            Err(Error::Input { what, found, expected: "either `spacing_mm`, or a volume at the port `like`".into() })
        };
        match (like, self.spacing_mm) {
            (Some(_), Some(_)) => refuse("`spacing_mm` beside the port `like`"),
            (Some(_), None) if self.keep_extent || self.separate_z => Err(Error::Input {
                what: format!("`{}`", if self.keep_extent { "keep_extent" } else { "separate_z" }),
                found: "it stands beside a volume at the port `like`, which is the grid".into(),
                expected: "one of the two: leave it out, or take `like` from `from:` and give `spacing_mm`".into(),
            }),
            (Some(like), None) => Ok(*like),
            (None, None) => refuse("neither of the two"),
            (None, Some(mm)) => self.respaced(from, mm.0),
        }
    }

    fn respaced(&self, from: &Geometry, mm: Zyx<f64>) -> Result<Geometry, Error> {
        if self.keep_extent { refilled(from, mm) } else { respaced(from, mm, self.keep_tilt) }
    }

    /// - `has_padding`: whether a voxel has one of these values
    fn steps(
        &self,
        of: &Outline,
        like: Option<&Geometry>,
        has_padding: impl FnOnce([f64; 2]) -> Result<bool, Error>,
    ) -> Result<Vec<Step>, Error> {
        let (from, to) = (of.geometry, self.grid(&of.geometry, like)?);
        if from.same_grid(&to, 1e-3) {
            return Ok(Vec::new());
        }
        let is_nearest = self.interpolation == Interpolation::Nearest;
        let coarser = |(old, new): (f64, f64)| if self.anti_alias && !is_nearest { ((new / old - 1.0) / 2.0).max(0.0) } else { 0.0 };
        let padding = match of.about.padding.filter(|_| !is_nearest) {
            Some(range) if has_padding(range)? => Some(range),
            _ => None,
        };
        let sigma = match like {
            None => from.spacing_mm().zip(to.spacing_mm()).map(coarser),
            // The axes of another volume may lie across: how far its steps go along each axis of this one, in voxels.
            Some(_) => {
                let steps = to.axes_mm.map(|axis| from.to_index(from.origin + axis));
                let along = |of: fn(&Zyx<f64>) -> f64| steps.to_array().iter().map(|s| of(s).powi(2)).sum::<f64>().sqrt();
                Zyx::new(along(|s| s.z), along(|s| s.y), along(|s| s.x)).map(|steps| coarser((1.0, steps)))
            }
        };
        let outside = self.outside.map(|v| v as f32).filter(|_| like.is_some());
        let apart = if self.separate_z && like.is_none() { coarse_axis(from.spacing_mm(), to.spacing_mm()) } else { None };
        let Some(axis) = apart else {
            return Ok(vec![Step::Resample { to, image: self.interpolation, labels: self.labels, sigma, padding, outside }]);
        };
        // Within the slices first, then the nearest of them.
        let without = |v: Zyx<f64>| {
            let mut v = v.to_array();
            v[axis] = 0.0;
            Zyx::from_array(v)
        };
        let sheets = self.respaced(&from, without(self.wanted_mm()))?;
        let within =
            Step::Resample { to: sheets, image: self.interpolation, labels: self.labels, sigma: without(sigma), padding, outside: None };
        let (image, labels) = (Interpolation::Nearest, LabelInterpolation::Nearest);
        let across = Step::Resample { to, image, labels, sigma: Zyx::splat(0.0), padding: None, outside: None };
        let is_same = |a: &Geometry, b: &Geometry| a.same_grid(b, 1e-3);
        let steps = [(is_same(&from, &sheets), within), (is_same(&sheets, &to), across)];
        Ok(steps.into_iter().filter(|(same, _)| !same).map(|(_, s)| s).collect())
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
        let step_mm = if self.wanted_mm().z > 0.0 { self.wanted_mm().z } else { own_mm };
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
        version: 4,
        scope: Scope::Case,
        ports: &[
            Port { name: "volume", kind: Kind::Volume, required: true, about: "what gets another spacing, labels included" },
            Port { name: "like", kind: Kind::Volume, required: false, about: "a volume of the same case, whose grid it gets" },
        ],
        gives: Kind::Volume,
        summary: "bring a volume to another spacing, labels with it",
        example: "uses: resample\nfrom: masks\nwith: { spacing_mm: { z: 1, y: 1, x: 1 } }\n",
        absent_in_inference: None,
    };

    fn check(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        let mm = self.wanted_mm();
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
        if self.spacing_mm.is_some() && self.outside.is_some() {
            out.push(Finding::error("outside", "a spacing leads nowhere beyond the volume", "leave it out: it goes with the port `like`"));
        }
        if self.outside.is_some_and(|v| !v.is_finite()) {
            out.push(Finding::error("outside", "the value is no number", "a finite number"));
        }
        if self.spacing_mm.is_some() && mm == Zyx::splat(0.0) {
            out.push(Finding::warning("spacing_mm", "every axis keeps its spacing", "give at least one axis, or leave the stage out"));
        }
        out
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let input = inputs.one("volume");
        let v = StoredVolume::open(&input.dir, input.manifest.key)?;
        cx.bytes(input.manifest.bytes);
        let of = v.outline();
        let like = inputs.maybe("like").map(|l| StoredVolume::open(&l.dir, l.manifest.key)).transpose()?;
        if let Some(l) = &like {
            l.outline().check_regular()?;
        }
        let like = like.map(|l| l.geometry);
        if of.about.is_regular() {
            cx.check_size(self.grid(&of.geometry, like.as_ref())?.size, of.channels.len())?;
            return v.then(self.steps(&of, like.as_ref(), |range| Ok(has_padding(&v.whole()?, range)))?, cx);
        }
        // Evened out, slices are others, even where there are as many of them as before: no step of a chain.
        let v = self.straightened(v.whole()?, &|size, channels| cx.check_size(size, channels))?;
        cx.check_size(self.grid(&v.geometry, like.as_ref())?.size, v.channels.len())?;
        let steps = self.steps(&Outline::of(&v), like.as_ref(), |range| Ok(has_padding(&v, range)))?;
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
        let to = Extent::of(inputs, "like").filter(|_| self.spacing_mm.is_none());
        let growth = match to {
            Some(to) => to.size.zip(e.size).map(|(new, old)| new as f64 / old.max(1) as f64),
            None => e.spacing_mm.zip(self.wanted_mm()).map(|(old, new)| if new > 0.0 { old / new } else { 1.0 }),
        };
        let scaled = |n: u64, k: f64| (n as f64 * k).min(1e18) as u64;
        let all = growth.z * growth.y * growth.x;
        let output = scaled(4 * e.voxels + e.label_bytes, all);
        let between = match self.interpolation {
            // The planes that a cubic holds at once; which axis they lie across depends on the turn.
            Interpolation::Cubic => {
                let depth = e.size.to_array().into_iter().min().unwrap_or(1).max(1);
                scaled(8 * e.voxels, growth.y * growth.x * (PLANES as f64 / depth as f64).min(1.0))
            }
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
        let steps = s.steps(&Outline::of(&v), None, |range| Ok(has_padding(&v, range))).unwrap();
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
    fn slices_far_apart_are_resampled_apart_with_the_numbers_of_nnunet() {
        // skimage.transform.resize(slice, (7, 4), 3, mode="edge", anti_aliasing=False, clip=False) of each slice, then map_coordinates of order 0 along z at
        // (k + ½)·4/9 − ½, as nnU-Net v2 does; rows 0, 3 and 6 of slices 0, 3 and 8.
        let geometry = Geometry::axis_aligned(Zyx::new(4, 5, 6), Zyx::new(9.0, 1.4, 1.0));
        let voxels = Voxels::I16((0..120).map(|i| (i * 7919 % 211) as i16).collect());
        let v = Volume { geometry, channels: vec!["CT".into()], voxels, labels: None, about: About::of(geometry) };
        let with = serde_json::json!({ "spacing_mm": { "z": 4, "y": 1, "x": 1.5 }, "interpolation": "cubic", "keep_extent": true, "separate_z": true });
        let v = on(&stage(with), v);
        assert_eq!(v.geometry.size, Zyx::new(9, 7, 4));
        let x = v.voxels.to_f32();
        #[rustfmt::skip]
        let wanted = [
            (0, [29.7407, 24.1769, 110.9239, 101.1449, 109.3514, 105.5939, 201.1882, 18.9406, 129.944, 155.4642, 92.0217, 113.3267]),
            (3, [175.4012, 194.9547, 65.2953, 93.3958, 93.569, 88.1227, 173.8773, 168.431, 114.1512, 139.663, 75.7178, 101.2403]),
            (8, [127.3289, 171.2116, 93.0456, 121.1968, 61.569, 56.1227, 141.8773, 136.431, 75.7368, 105.1556, 27.7946, 56.084]),
        ];
        for (z, wanted) in wanted {
            let got: Vec<f32> = [0, 3, 6].iter().flat_map(|y| &x[(z * 7 + y) * 4..][..4]).copied().collect();
            assert!(got.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-3), "{z}: {got:?}");
        }
        assert!((x.iter().map(|v| *v as f64).sum::<f64>() - 26249.793382).abs() < 1e-2);
    }

    #[test]
    fn the_grid_of_another_volume_is_taken_over_and_what_lies_beyond_is_said() {
        let v = volume();
        let mut like = v.geometry;
        like.size = Zyx::new(3, 4, 3);
        like.origin = v.geometry.to_lps(Zyx::new(0.0, 0.0, 3.0));
        let s = stage(serde_json::json!({ "interpolation": "nearest", "outside": -1024 }));
        let steps = s.steps(&Outline::of(&v), Some(&like), |_| Ok(false)).unwrap();
        let on_like = apply(v.clone(), steps).unwrap();
        assert_eq!(on_like.geometry, like);
        let Voxels::I16(x) = &on_like.voxels else { panic!("nearest keeps the type") };
        assert_eq!((&x[..3], &x[24..27]), (&[0, 0, -1024][..], &[200, 200, -1024][..]));
        assert_eq!(on_like.labels.unwrap().voxels[..3], [1, 1, 0], "background beyond");
        let edge = stage(serde_json::json!({}));
        let steps = edge.steps(&Outline::of(&v), Some(&like), |_| Ok(false)).unwrap();
        assert_eq!(apply(v.clone(), steps).unwrap().voxels.to_f32()[26], 200.0);
        assert!(edge.grid(&v.geometry, None).unwrap_err().to_string().contains("neither"));
        assert!(stage(serde_json::json!({ "spacing_mm": 1 })).grid(&v.geometry, Some(&like)).is_err());
        assert_eq!(stage(serde_json::json!({ "spacing_mm": 1, "outside": 0 })).check().len(), 1);
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
