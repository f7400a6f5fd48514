//! What a stage does to a volume, as data: a step. What comes out is known without a voxel but for the voxels themselves, and any box of them can be made
//! from the box of the input that it needs; it has the same bits as that box of the whole.

use half::f16;
use half::slice::HalfFloatSliceExt;
use indexmap::IndexMap;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::{Geometry, Zyx};
use voxmill_schemas::region::Region;

use super::layout::Dtype;
use super::{About, Labels, Volume, Voxels};
use crate::error::Error;
use crate::ops::crop::{self, Fill};
use crate::ops::intensity::Map;
use crate::ops::orient::Turn;
use crate::ops::padded::Padded;
use crate::ops::plan::{Part, Plan, Voxel};
use crate::ops::resample::{Interpolation, LabelInterpolation, Outside};
use crate::ops::smooth::{Blur, Edge};
use crate::stage::Facts;

/// All of a volume but its voxels.
#[derive(Clone, Debug, PartialEq)]
pub struct Outline {
    pub geometry: Geometry,
    pub channels: Vec<String>,
    /// `None` without labels.
    pub classes: Option<IndexMap<String, u8>>,
    pub dtype: Dtype,
    pub about: About,
}

/// A step of a chain. Geometry moves channels and labels, intensity channels alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// Axes reversed and exchanged.
    Turn(Turn),
    /// Another grid. Interpolated values are float32, the closest voxel keeps its type.
    Resample {
        to: Geometry,
        image: Interpolation,
        labels: LabelInterpolation,
        /// Standard deviation of the Gaussian before, in voxels; 0 for none.
        sigma: Zyx<f64>,
        /// Values that are no tissue and must not be mixed into it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        padding: Option<[f64; 2]>,
        /// What lies beyond the volume, with background as labels; in a volume with padding that is padding. `None`: the edge goes on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        outside: Option<f32>,
    },
    /// A Gaussian blur on the grid as it is, in float32. Labels stay.
    Smooth {
        /// Standard deviation in voxels; 0 leaves an axis alone.
        sigma: Zyx<f64>,
        edge: Edge,
        /// Values that are no tissue, stay what they are and must not be mixed into it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        padding: Option<[f64; 2]>,
    },
    /// A box, which may stick out: a crop, a pad. Where a value does not fit the type of the voxels they become float32.
    Cut { region: Region, fill: Filling },
    /// Each value by itself, in float32. What was padding is none any more.
    Map { maps: Vec<Map>, unit: String },
    /// Each value rounded to float16, to the nearest and half to even.
    Half,
}

/// What stands where a box sticks out. Labels follow; beside a value they are background.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filling {
    Value(f32),
    Edge,
    Reflect,
}

impl Filling {
    fn of<T>(self, value: T) -> Fill<T> {
        match self {
            Filling::Value(_) => Fill::Value(value),
            Filling::Edge => Fill::Edge,
            Filling::Reflect => Fill::Reflect,
        }
    }
}

const NOTHING: Region = Region { start: Zyx::new(0, 0, 0), size: Zyx::new(0, 0, 0) };

/// A step made ready for volumes of one outline.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    /// What goes in and what comes out.
    pub before: Outline,
    pub after: Outline,
    how: How,
}

#[derive(Clone, Debug)]
enum How {
    Turn(Turn),
    Resample { plan: Box<Plan>, blur: Option<Blur>, beyond: f32, labels: Box<Plan> },
    Padded { padded: Box<Padded>, labels: Box<Plan> },
    Cut { region: Region, filling: Filling },
    Map(Vec<Map>),
    Half,
}

impl Step {
    /// Refuses what no stage makes: a step may come from a file.
    pub(super) fn ready(&self, before: Outline) -> Result<Ready, Error> {
        let refuse = |why: String| Err(Error::Geometry { what: "step of a chain".into(), why });
        let mut after = before.clone();
        let size = before.geometry.size;
        let how = match self {
            Step::Turn(turn) => {
                let mut axes = turn.from;
                axes.sort();
                if axes != [0, 1, 2] {
                    return refuse(format!("axes {:?} are no order of three", turn.from));
                }
                after.geometry = turn.geometry(&before.geometry);
                How::Turn(*turn)
            }
            Step::Resample { to, image, labels, sigma, padding, outside } => {
                if to.size.checked_count().is_none_or(|n| n == 0) || to.is_degenerate() {
                    return refuse(format!("{} voxels on axes {:?} are no grid", to.size, to.axes_mm));
                }
                if !sigma.to_array().iter().all(|s| (0.0..1e3).contains(s)) {
                    return refuse(format!("a blur of {sigma:?} voxels"));
                }
                let from = before.geometry;
                after.geometry = *to;
                let blurs = sigma.to_array().iter().any(|s| *s > 0.0);
                let blur = blurs.then(|| Blur::new(size, *sigma, Edge::Repeat));
                let (beyond, background) = outside.map_or((Outside::Edge, Outside::Edge), |v| (Outside::Value(v), Outside::Value(0.0)));
                let labels = Box::new(Plan::labels(&from, to, *labels, background));
                if *image != Interpolation::Nearest || outside.is_some_and(|v| !before.dtype.holds(v)) {
                    after.dtype = Dtype::F32;
                }
                match padding {
                    Some(range) if *image != Interpolation::Nearest => {
                        How::Padded { padded: Box::new(Padded::new(&from, to, *image, blur, *range, outside.is_some())), labels }
                    }
                    _ => {
                        How::Resample { plan: Box::new(Plan::new(&from, to, *image, beyond)), blur, beyond: outside.unwrap_or(0.0), labels }
                    }
                }
            }
            Step::Smooth { sigma, edge, padding } => {
                if !sigma.to_array().iter().all(|s| (0.0..1e3).contains(s)) {
                    return refuse(format!("a blur of {sigma:?} voxels"));
                }
                let (grid, blur) = (before.geometry, Blur::new(size, *sigma, *edge));
                after.dtype = Dtype::F32;
                let labels = Box::new(Plan::labels(&grid, &grid, LabelInterpolation::Nearest, Outside::Edge));
                match padding {
                    Some(range) => How::Padded {
                        padded: Box::new(Padded::new(&grid, &grid, Interpolation::Linear, Some(blur), *range, false)),
                        labels,
                    },
                    None => How::Resample {
                        plan: Box::new(Plan::new(&grid, &grid, Interpolation::Linear, Outside::Edge)),
                        blur: Some(blur),
                        beyond: 0.0,
                        labels,
                    },
                }
            }
            Step::Cut { region, fill } => {
                let bounded = region.start.to_array().iter().all(|s| s.unsigned_abs() < 1 << 32);
                if !bounded || region.size.checked_count().is_none_or(|n| n == 0) {
                    return refuse(format!("a box of {} at {:?}", region.size, region.start));
                }
                after.geometry = before.geometry.crop(*region);
                // The type stays where it can hold the value.
                if let Filling::Value(v) = fill
                    && !before.dtype.holds(*v)
                {
                    after.dtype = Dtype::F32;
                }
                How::Cut { region: *region, filling: *fill }
            }
            Step::Map { maps, unit } => {
                after.dtype = Dtype::F32;
                after.about.unit = unit.clone();
                after.about.padding = None;
                How::Map(maps.clone())
            }
            Step::Half => {
                after.dtype = Dtype::F16;
                How::Half
            }
        };
        Ok(Ready { before, after, how })
    }
}

impl Ready {
    /// Whether labels go through untouched.
    pub fn leaves_labels(&self) -> bool {
        matches!(self.how, How::Map(_) | How::Half) || self.before.geometry == self.after.geometry
    }

    /// Maps of an intensity step: what stands before may do them on its way.
    pub fn maps(&self) -> Option<&[Map]> {
        if let How::Map(maps) = &self.how { Some(maps) } else { None }
    }

    /// Whether the step can do maps on its way.
    pub fn takes_maps(&self) -> bool {
        matches!(&self.how, How::Resample { .. } | How::Map(_)) && self.after.dtype == Dtype::F32
    }

    /// The box of the input that a box of the output is made from; inside the input, empty where nothing is needed.
    pub fn needs(&self, region: Region) -> Region {
        if region.is_empty() {
            return NOTHING;
        }
        let size = self.before.geometry.size;
        match &self.how {
            How::Turn(turn) => turn.region_before(region, size),
            How::Resample { plan, blur, .. } => {
                let read = plan.needs(region);
                blur.as_ref().filter(|_| !read.is_empty()).map_or(read, |b| b.needs(read))
            }
            How::Padded { padded, .. } => padded.needs(region),
            How::Cut { region: cut, filling } => crop::needs(size, shifted(region, cut), filling.of(0u8)),
            How::Map(_) | How::Half => region,
        }
    }

    /// Whether values are changed where they are.
    pub fn is_in_place(&self) -> bool {
        matches!(self.how, How::Map(_)) && self.before.dtype == Dtype::F32
    }

    /// Bytes between what is read and what is made of a box.
    /// - `from`: what [`Ready::needs`] says
    pub fn between_bytes(&self, from: Region, to: Region) -> usize {
        let (n, read, made) = (self.before.channels.len(), from.size.count(), to.size.count());
        let wide = |has_room: bool| if has_room { 0 } else { 4 * n * read };
        let is_wide = self.before.dtype == Dtype::F32;
        match &self.how {
            How::Turn(_) => made * self.after.dtype.bytes(),
            How::Resample { plan, blur, .. } => {
                let smooth = blur.as_ref().map_or(0, |_| 4 * plan.needs(to).size.count());
                smooth + plan.between_bytes(to) + wide(self.before.dtype != Dtype::F16)
            }
            How::Padded { padded, .. } => wide(is_wide) + padded.between_bytes(from, to),
            How::Cut { .. } => wide(is_wide || self.after.dtype != Dtype::F32),
            How::Half => wide(is_wide),
            How::Map(_) => 0,
        }
    }

    /// A box of the output.
    /// - `voxels`: `[c, z, y, x]` of `have`, which covers what [`Ready::needs`] says
    /// - `then`: maps done on the way; only where [`Ready::takes_maps`]
    pub fn run(&self, voxels: Voxels, have: Region, region: Region, then: &[Map]) -> Result<Voxels, Error> {
        let size = self.before.geometry.size;
        // Wide at once: value by value costs several times as much.
        let voxels = match voxels {
            Voxels::F16(_) if self.after.dtype == Dtype::F32 => Voxels::F32(voxels.into_f32()),
            other => other,
        };
        Ok(match &self.how {
            How::Half => return half(voxels, &self.before.about.unit),
            How::Turn(turn) => same_type!(&voxels, x => self.each(x, have, region, |part, out| {
                out.copy_from_slice(&turn.cut(part, size, region));
            })),
            How::Resample { plan, blur: None, beyond, .. } => match &voxels {
                Voxels::F32(x) => Voxels::F32(self.each(x, have, region, |part, out| plan.run(part, region, then, out))),
                other if self.after.dtype != Dtype::F32 => {
                    // It holds the value: `ready` has looked.
                    match other {
                        Voxels::U8(x) => Voxels::U8(self.each(x, have, region, |part, out| plan.pick(part, region, *beyond as u8, out))),
                        Voxels::I16(x) => Voxels::I16(self.each(x, have, region, |part, out| plan.pick(part, region, *beyond as i16, out))),
                        Voxels::U16(x) => Voxels::U16(self.each(x, have, region, |part, out| plan.pick(part, region, *beyond as u16, out))),
                        Voxels::F16(x) => {
                            let beyond = f16::from_f32(*beyond);
                            Voxels::F16(self.each(x, have, region, |part, out| plan.pick(part, region, beyond, out)))
                        }
                        Voxels::F32(x) => Voxels::F32(self.each(x, have, region, |part, out| plan.pick(part, region, *beyond, out))),
                    }
                }
                other => Voxels::F32(any_type!(other, x => self.each(x, have, region, |part, out| plan.run(part, region, then, out)))),
            },
            How::Resample { plan, blur: Some(blur), .. } => Voxels::F32(any_type!(&voxels, x => self.each(x, have, region, |part, out| {
                let read = plan.needs(region);
                let mut smooth = vec![0.0f32; read.size.count()];
                blur.run(part, read, &mut smooth);
                plan.run(Part { voxels: &smooth, region: read }, region, then, out);
            }))),
            How::Padded { padded, .. } => {
                let x = voxels.to_f32();
                Voxels::F32(self.each(&x, have, region, |part, out| padded.run(part, region, out)))
            }
            How::Cut { region: cut, filling } => {
                let (at, value) = (shifted(region, cut), if let Filling::Value(v) = filling { *v } else { 0.0 });
                let voxels = if self.after.dtype == Dtype::F32 { Voxels::F32(voxels.into_f32()) } else { voxels };
                match &voxels {
                    Voxels::U8(x) => {
                        Voxels::U8(self.each(x, have, region, |p, out| crop::cut_part(p, size, at, filling.of(value as u8), out)))
                    }
                    Voxels::I16(x) => {
                        Voxels::I16(self.each(x, have, region, |p, out| crop::cut_part(p, size, at, filling.of(value as i16), out)))
                    }
                    Voxels::U16(x) => {
                        Voxels::U16(self.each(x, have, region, |p, out| crop::cut_part(p, size, at, filling.of(value as u16), out)))
                    }
                    Voxels::F16(x) => {
                        let value = f16::from_f32(value);
                        Voxels::F16(self.each(x, have, region, |p, out| crop::cut_part(p, size, at, filling.of(value), out)))
                    }
                    Voxels::F32(x) => Voxels::F32(self.each(x, have, region, |p, out| crop::cut_part(p, size, at, filling.of(value), out))),
                }
            }
            How::Map(maps) => {
                let mut x = voxels.into_f32();
                x.par_chunks_mut(1 << 14).for_each(|x| maps.iter().chain(then).for_each(|m| m.apply(x)));
                Voxels::F32(x)
            }
        })
    }

    /// Each channel of a box on its own.
    fn each<T: Voxel, U: Copy + Default>(&self, values: &[T], have: Region, region: Region, f: impl Fn(Part<T>, &mut [U])) -> Vec<U> {
        let (n, to) = (have.size.count(), region.size.count());
        let mut out = vec![U::default(); self.before.channels.len() * to];
        for (c, out) in out.chunks_exact_mut(to.max(1)).enumerate() {
            f(Part { voxels: &values[c * n..][..n], region: have }, out);
        }
        out
    }

    /// The labels, whole. `[z, y, x]` of `before` to `[z, y, x]` of `after`.
    pub fn labels(&self, labels: Vec<u8>) -> Vec<u8> {
        let (size, to) = (self.before.geometry.size, Region::whole(self.after.geometry.size));
        match &self.how {
            How::Turn(turn) => turn.apply(&labels, size),
            How::Resample { labels: plan, .. } | How::Padded { labels: plan, .. } => {
                let mut out = vec![0; to.size.count()];
                plan.run_labels(Part::whole(&labels, size), to, &mut out);
                out
            }
            How::Cut { region, filling } => crop::cut(&labels, size, *region, filling.of(0)),
            How::Map(_) | How::Half => labels,
        }
    }
}

/// Values in float16. Refuses one that is too large for it: it would be infinite.
fn half(voxels: Voxels, unit: &str) -> Result<Voxels, Error> {
    let values = match voxels {
        Voxels::F16(v) => return Ok(Voxels::F16(v)),
        other => other.into_f32(),
    };
    let mut out = vec![f16::ZERO; values.len()];
    let large = |(values, out): (&[f32], &mut [f16])| {
        out.convert_from_f32_slice(values);
        values.iter().zip(out).find(|(v, h)| v.is_finite() && h.is_infinite()).map(|(v, _)| *v)
    };
    match values.par_chunks(1 << 14).zip(out.par_chunks_mut(1 << 14)).find_map_first(large) {
        None => Ok(Voxels::F16(out)),
        Some(v) => Err(Error::Input {
            what: "`dtype: float16`".into(),
            found: format!("a value of {v} ({unit})"),
            expected: "values within ±65504: leave `dtype` out, or bring them to another range first".into(),
        }),
    }
}

/// A box of the output of a cut, in indices of its input.
fn shifted(region: Region, cut: &Region) -> Region {
    Region { start: region.start.zip(cut.start).map(|(a, b)| a + b), ..region }
}

impl Outline {
    pub fn of(v: &Volume) -> Self {
        Self {
            geometry: v.geometry,
            channels: v.channels.clone(),
            classes: v.labels.as_ref().map(|l| l.classes.clone()),
            dtype: v.voxels.kind(),
            about: v.about.clone(),
        }
    }

    /// What every stage that gives a volume tells: `size`, `spacing_mm`, `voxels`, `channels`, `dtype`, `modality`, `unit`, `patient`, `study`, `series` and, with
    /// labels, `classes` and `label_voxels` (class → count). `series` is what `rows_of` of annotate and export joins on.
    pub fn facts(&self, labels: Option<&Labels>) -> Facts {
        let facts = Facts::default()
            .with("size", self.geometry.size)
            .with("spacing_mm", self.geometry.spacing_mm())
            .with("voxels", self.channels.len() * self.geometry.size.count())
            .with("channels", &self.channels)
            .with("dtype", self.dtype.name())
            .with("modality", &self.about.modality)
            .with("unit", &self.about.unit)
            .with("patient", &self.about.patient)
            .with("study", &self.about.study)
            .with("series", &self.about.series)
            .with("volume", self.about.volume);
        match labels {
            Some(l) => facts.with("classes", &l.classes).with("label_voxels", l.counts()),
            None => facts,
        }
    }

    /// Refuses slices that stand at positions of their own (`gaps: keep`): what works on a regular grid would put them in wrong places.
    pub fn check_regular(&self) -> Result<(), Error> {
        super::check_regular(&self.geometry, &self.about)
    }

    /// A volume of this outline.
    pub fn with(&self, voxels: Voxels, labels: Option<Vec<u8>>) -> Volume {
        let labels = labels.zip(self.classes.clone()).map(|(voxels, classes)| Labels { classes, voxels });
        Volume { geometry: self.geometry, channels: self.channels.clone(), voxels, labels, about: self.about.clone() }
    }
}
