//! Brings a volume to another spacing: the new grid is `ops::respace`, the values `ops::resample`. Channels and labels land on one grid.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::{Kind, Manifest, Port, Scope};
use voxmill_schemas::geometry::{Geometry, Zyx};

use crate::error::Error;
use crate::ops::resample::{Interpolation, LabelInterpolation};
use crate::ops::respace::{blur_before, coarse_axis, refilled, respaced};
use crate::ops::spacing::SpacingMm;
use crate::stage::{Cx, Facts, Finding, Info, Inputs, Partners, Rows, Stage, Wiring};
use crate::table::together::By;
use crate::volume::{Outline, Precision, Step, StoredVolume, apply, straightened, streamed_bytes};

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
    /// Which volume at the port `like` is meant: that of the same `case`, or the only one of the same `study` (another series of the examination) or `patient`.
    /// Of another case than this one, the volume must lie in the same frame of reference, which the index at the port `series` knows.
    #[serde(default = "case", skip_serializing_if = "is_case")]
    pub by: By,
    /// Take a volume of another frame of reference (DICOM FrameOfReferenceUID), too: the patient may have moved between them, so only where they were registered
    /// before.
    #[serde(default, skip_serializing_if = "is_no")]
    pub any_frame: bool,
    /// Type that the values are stored as: `float32`, or `float16` in half the space, rounded to 11 bits (three digits); values beyond ±65504 are refused. Without it the
    /// closest voxel keeps its type.
    #[serde(default, skip_serializing_if = "Precision::is_full")]
    pub dtype: Precision,
}

fn is_no(v: &bool) -> bool {
    !*v
}

fn case() -> By {
    By::Case
}

fn is_case(v: &By) -> bool {
    *v == By::Case
}

fn linear() -> Interpolation {
    Interpolation::Linear
}

fn nearest() -> LabelInterpolation {
    LabelInterpolation::Nearest
}

impl Resample {
    /// As asked for; 0 keeps an axis.
    fn wanted_mm(&self) -> Zyx<f64> {
        self.spacing_mm.map_or(Zyx::splat(0.0), |s| s.0)
    }

    /// - `like`: the grid of the volume at that port
    fn grid(&self, from: &Geometry, like: Option<&Geometry>) -> Result<Geometry, Error> {
        match (like, self.spacing_mm) {
            (Some(like), _) => Ok(*like),
            (None, Some(mm)) => self.respaced(from, mm.0),
            // `check_node` told; a study that is predicted may lack what was there in training.
            (None, None) => Err(Error::Input {
                what: "the new grid".into(),
                found: "neither `spacing_mm` nor a volume at the port `like`".into(),
                expected: "one of the two".into(),
            }),
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
        let moved = self.moves(of, like, has_padding)?;
        Ok(moved.into_iter().chain(self.dtype.step()).collect())
    }

    fn moves(
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
        let padding = match of.about.padding.filter(|_| !is_nearest) {
            Some(range) if has_padding(range)? => Some(range),
            _ => None,
        };
        let sigma = if self.anti_alias && !is_nearest { blur_before(&from, &to, like.is_some()) } else { Zyx::splat(0.0) };
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

impl Stage for Resample {
    const INFO: Info = Info {
        name: "resample",
        version: 5,
        scope: Scope::Case,
        ports: &[
            Port { name: "volume", kind: Kind::Volume, required: true, about: "what gets another spacing, labels included" },
            Port { name: "like", kind: Kind::Volume, required: false, about: "a volume whose grid it gets; `by` says which" },
            Port {
                name: "series",
                kind: Kind::Table,
                required: false,
                about: "the index, which knows the frames of reference; beside `by: study` or `patient`",
            },
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
        if self.any_frame {
            let help = "leave it out unless they were registered before: the patient may have moved";
            out.push(Finding::warning("any_frame", "the grid may be one of another frame of reference", help));
        }
        if self.outside.is_some_and(|v| !v.is_finite()) {
            out.push(Finding::error("outside", "the value is no number", "a finite number"));
        }
        if self.spacing_mm.is_some() && mm == Zyx::splat(0.0) {
            out.push(Finding::warning("spacing_mm", "every axis keeps its spacing", "give at least one axis, or leave the stage out"));
        }
        out
    }

    fn check_node(&self, node: &Wiring) -> Vec<Finding> {
        let mut out = Vec::new();
        let has_like = node.has("like");
        match (has_like, self.spacing_mm) {
            (true, Some(_)) => out.push(Finding::error(
                "spacing_mm",
                "the grid is given twice: by `spacing_mm` and by the volume at the port `like`",
                "leave `spacing_mm` out, or take `like` out of `from`",
            )),
            (false, None) => out.push(Finding::error(
                "",
                "it is not said which grid the volume gets",
                "write spacing_mm: { z: …, y: …, x: … }, or connect a volume whose grid it gets: from: { volume: …, like: NODE }",
            )),
            _ => {}
        }
        if has_like {
            let why = "beside the port `like`, whose volume is the grid";
            out.extend(node.idle(&["keep_tilt", "keep_extent", "separate_z"], why, "leave it out, or give `spacing_mm` instead of `like`"));
            let other_case = self.by != By::Case;
            if let Some((a, b)) = node.strangers("volume", "like").filter(|_| !other_case) {
                let help = "where both are series of one study, write `by: study` and connect the index: from: { …, series: NODE }";
                out.push(Finding {
                    is_warning: true,
                    ..Finding::at_port("like", format!("only cases that are in both {} and {} get the other grid", a.node, b.node), help)
                });
            }
            if other_case && !node.has("series") && !self.any_frame {
                let help = "connect the index: from: { volume: …, like: …, series: NODE }";
                out.push(Finding::error("by", "who compares places of two series must know their frames of reference", help));
            }
            if !other_case {
                out.extend(node.idle(&["any_frame"], "where both volumes are of one case", "leave it out"));
            }
        } else {
            let help = "leave it out, or connect a volume: from: { volume: …, like: NODE }";
            out.extend(node.idle(&["outside", "by", "any_frame"], "without a volume at the port `like`", help));
        }
        if node.has("series") && !(has_like && self.by != By::Case) {
            let help = "take `series` out of `from`, or write `by: study` beside the port `like`";
            out.push(Finding::at_port("series", "the index does nothing here: it is for volumes of other cases", help));
        }
        if self.interpolation == Interpolation::Nearest {
            if self.anti_alias {
                out.extend(node.idle(
                    &["anti_alias"],
                    "with `interpolation: nearest`, which takes voxels as they are",
                    "leave it out, or take `linear`",
                ));
            }
            if self.separate_z && self.labels == LabelInterpolation::Nearest {
                out.extend(node.idle(
                    &["separate_z"],
                    "where image and labels are `nearest` anyway",
                    "leave it out, or take `linear` or `cubic`",
                ));
            }
        }
        out
    }

    fn partners(&self) -> Partners {
        self.by.partners()
    }

    fn rows_of(&self, _port: &str, table: &Rows, of: &Manifest) -> Result<Option<Rows>, Error> {
        self.by.series_of(table, of).map(Some)
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let input = inputs.one("volume");
        let v = StoredVolume::open(&input.dir, input.manifest.key)?;
        cx.bytes(input.manifest.bytes);
        let of = v.outline();
        let like = self.by.partner("like", ("volume", &v), inputs, self.any_frame)?.map(|l| l.geometry);
        if of.about.is_regular() {
            cx.check_size(self.grid(&of.geometry, like.as_ref())?.size, of.channels.len())?;
            return v.then(self.steps(&of, like.as_ref(), |range| v.has_value(range))?, cx);
        }
        // Evened out, slices are others, even where there are as many of them as before: no step of a chain.
        let v = straightened(v.whole()?, self.wanted_mm().z, self.interpolation, &|size, channels| cx.check_size(size, channels))?;
        cx.check_size(self.grid(&v.geometry, like.as_ref())?.size, v.channels.len())?;
        let steps = self.steps(&Outline::of(&v), like.as_ref(), |range| Ok(v.voxels.has_value(range)))?;
        let v = apply(v, steps)?;
        cx.check_cancelled()?;
        v.write(cx.draft, None)?;
        Ok(v.facts())
    }

    fn is_step(&self) -> bool {
        true
    }

    fn memory_bytes(&self, inputs: &Inputs) -> u64 {
        let volume = inputs.one("volume");
        // Slices that are evened out are held whole, before and after.
        let evened = |of: &Outline| if of.about.is_regular() { 0 } else { 8 * (of.channels.len() * of.geometry.size.count()) as u64 };
        let mut held = 0;
        let like = inputs.maybe("like").and_then(|l| StoredVolume::open(&l.dir, l.manifest.key).ok()).map(|l| l.geometry);
        let streamed = streamed_bytes(volume, |of| {
            held = evened(of);
            // A size that no memory holds is refused when the case runs.
            let to = self.grid(&of.geometry, like.as_ref())?;
            if to.size.checked_count().is_none_or(|n| n > 1 << 36) {
                return Ok(Vec::new());
            }
            self.steps(of, like.as_ref(), |_| Ok(true))
        });
        streamed + held
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::volume::{About, Labels, Volume, Voxels};

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
        let steps = s.steps(&Outline::of(&v), None, |range| Ok(v.voxels.has_value(range))).unwrap();
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
    }
}
