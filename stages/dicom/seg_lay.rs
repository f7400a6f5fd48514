//! A segmentation → the grid of an image. Where a frame lies is decided by its geometry; the source images it names are a cross-check, and the
//! only guide where it has no position.

use std::collections::BTreeMap;

use voxmill_schemas::geometry::{Geometry, Zyx};

use super::place::{Grid, Plane, is_reindexed, nearest_voxels};
use super::seg::{Frame, Kind, Seg};
use crate::error::Error;

/// A stack of planes spans at most so many times the pixels of the segmentation and of the image together.
const MAX_STACK_RATIO: usize = 8;

/// How a segmentation came to lie on a grid.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Placed {
    /// True when every pixel was copied, none interpolated.
    pub is_exact: bool,
    /// Frames with content that lie beside the grid.
    pub frames_outside: usize,
    /// Voxels (or pixels) with a label that lie beside the grid, in frames that lie on it.
    pub frames_clipped: usize,
    /// Frames whose source image lies on another slice than their own position says.
    pub wrong_references: usize,
}

/// Where the frames go: each on a slice of the image, or all together as a stack of their own that is looked up voxel by voxel.
enum Places {
    Slices(Vec<Option<usize>>),
    Stack,
}

impl Seg {
    /// Calls `put(class, voxel)` for every voxel (C order index) of the grid that lies in a segment; `class_of`: segment number → class.
    /// Fractional segments hold a voxel from `threshold` (0…1) on.
    pub fn lay(
        &self,
        grid: &Grid,
        class_of: &BTreeMap<u16, u8>,
        threshold: Option<f64>,
        put: &mut dyn FnMut(u8, usize),
    ) -> Result<Placed, Error> {
        let cut = match (self.kind, threshold) {
            (Kind::Fractional { maximum, .. }, Some(t)) => (t * maximum as f64).ceil().max(1.0) as u16,
            (Kind::Fractional { is_probability, .. }, None) => {
                let what = if is_probability { "probabilities" } else { "occupied shares of voxels" };
                return Err(self.labels(format!("it holds {what}: set fractional_threshold (0…1) in the stage's config")));
            }
            _ => 1,
        };
        let class = |frame: &Frame, value: u16| -> Option<u8> {
            match (self.kind, frame.segment) {
                (Kind::Labelmap { background }, _) => (value != background).then(|| class_of.get(&value).copied()).flatten(),
                (_, Some(segment)) => (value >= cut).then(|| class_of.get(&segment).copied()).flatten(),
                (_, None) => None,
            }
        };
        let wanted: Vec<usize> = (0..self.frames.len())
            .filter(|i| self.frames[*i].segment.is_none_or(|s| class_of.contains_key(&s) || matches!(self.kind, Kind::Labelmap { .. })))
            .collect();
        let mut placed = Placed { is_exact: true, ..Placed::default() };
        match self.places(grid, &wanted, &mut placed)? {
            Places::Slices(slices) => {
                for (i, slice) in wanted.into_iter().zip(slices) {
                    let (frame, pixels) = (&self.frames[i], self.pixels.frame(i)?);
                    let Some(k) = slice else {
                        placed.frames_outside += usize::from(pixels.iter().any(|v| class(frame, *v).is_some()));
                        continue;
                    };
                    self.lay_on_slice(grid, frame, &pixels, k, &|v| class(frame, v), &mut placed, put)?;
                }
            }
            Places::Stack => self.lay_stack(grid, &wanted, &class, &mut placed, put)?,
        }
        Ok(placed)
    }

    fn labels(&self, why: impl Into<String>) -> Error {
        Error::Labels { what: self.file.clone(), why: why.into() }
    }

    fn places(&self, grid: &Grid, wanted: &[usize], placed: &mut Placed) -> Result<Places, Error> {
        let mut slices = Vec::with_capacity(wanted.len());
        for i in wanted {
            let frame = &self.frames[*i];
            let named = frame.sources.iter().find_map(|s| grid.slice_of.get(s)).copied();
            let Some(plane) = &frame.plane else {
                // No frame of reference: only the source image says where the frame lies.
                let k = named
                    .ok_or_else(|| self.labels(format!("frame {} has neither a position nor a source image in this series", i + 1)))?;
                slices.push(Some(k));
                continue;
            };
            if !grid.is_parallel(plane) {
                return Ok(Places::Stack);
            }
            let (k, d) = grid.nearest(plane.origin);
            let gap = grid.gap_mm(k);
            let is_beyond = (d < 0.0 && k == 0) || (d > 0.0 && k + 1 == grid.along_mm.len());
            if d.abs() <= 0.1 * gap {
                placed.wrong_references += usize::from(named.is_some_and(|n| n != k));
                slices.push(Some(k));
            } else if is_beyond && d.abs() >= 0.9 * gap {
                slices.push(None);
            } else {
                return Ok(Places::Stack);
            }
        }
        Ok(Places::Slices(slices))
    }

    #[allow(clippy::too_many_arguments)]
    fn lay_on_slice(
        &self,
        grid: &Grid,
        frame: &Frame,
        pixels: &[u16],
        k: usize,
        class: &dyn Fn(u16) -> Option<u8>,
        placed: &mut Placed,
        put: &mut dyn FnMut(u8, usize),
    ) -> Result<(), Error> {
        let (ny, nx) = (grid.geometry.size.y, grid.geometry.size.x);
        let plane = match frame.plane {
            Some(plane) => plane,
            None if (self.rows, self.columns) == (ny, nx) => grid.plane(k),
            None => {
                let why = format!("found {}×{} pixels without a position, expected {ny}×{nx} as the image", self.rows, self.columns);
                return Err(self.labels(why));
            }
        };
        let lookup = grid.lookup(k, &plane);
        placed.is_exact &= lookup.is_exact((ny, nx));
        let mut hits = 0;
        for y in 0..ny {
            for x in 0..nx {
                if let Some(id) = lookup.nearest(y, x, self.rows, self.columns).and_then(|p| class(pixels[p])) {
                    hits += 1;
                    put(id, (k * ny + y) * nx + x);
                }
            }
        }
        if placed.is_exact {
            placed.frames_clipped += usize::from(pixels.iter().filter(|v| class(**v).is_some()).count() > hits);
        }
        Ok(())
    }

    /// Frames that do not lie on slices of the image (another orientation, spacing between): a regular stack of their own.
    fn lay_stack(
        &self,
        grid: &Grid,
        wanted: &[usize],
        class: &dyn Fn(&Frame, u16) -> Option<u8>,
        placed: &mut Placed,
        put: &mut dyn FnMut(u8, usize),
    ) -> Result<(), Error> {
        let (stack, level_of) = self.stack()?;
        // Three planes in a few hostile places would span any number of voxels.
        let pixels = self.frames.len().saturating_mul(self.rows).saturating_mul(self.columns);
        let limit = pixels.saturating_add(grid.geometry.size.count()).saturating_mul(MAX_STACK_RATIO);
        if stack.size.count() > limit {
            return Err(Error::TooLarge { what: self.file.clone(), wanted_bytes: stack.size.count() as u64, limit_bytes: limit as u64 });
        }
        placed.is_exact = is_reindexed(&stack, &grid.geometry);
        let n = self.rows * self.columns;
        let mut by_segment: BTreeMap<Option<u16>, Vec<usize>> = BTreeMap::new();
        for i in wanted {
            by_segment.entry(self.frames[*i].segment).or_default().push(*i);
        }
        for frames in by_segment.into_values() {
            // [level, row, column] of one segment; 0 is outside, so a class is held as itself (ids start at 1).
            let mut classes = vec![0u8; stack.size.count()];
            for i in frames {
                let (frame, at) = (&self.frames[i], level_of[i] * n);
                for (to, v) in classes[at..at + n].iter_mut().zip(self.pixels.frame(i)?) {
                    *to = class(frame, v).unwrap_or(*to);
                }
            }
            for (voxel, from) in nearest_voxels(&stack, &grid.geometry).enumerate() {
                match from.map(|f| classes[f]) {
                    None | Some(0) => {}
                    Some(id) => put(id, voxel),
                }
            }
        }
        Ok(())
    }

    /// The regular grid on which all frames lie and the level of each.
    fn stack(&self) -> Result<(Geometry, Vec<usize>), Error> {
        let planes: Option<Vec<Plane>> = self.frames.iter().map(|f| f.plane).collect();
        let planes = planes
            .filter(|p| !p.is_empty())
            .ok_or_else(|| self.labels("some frames have no position, others not on the image's slices"))?;
        let first = planes[0];
        let normal = first.normal();
        let is_same = |p: &Plane| {
            p.along_row.dot(first.along_row) > 1.0 - 1e-6
                && p.along_column.dot(first.along_column) > 1.0 - 1e-6
                && (p.row_spacing_mm - first.row_spacing_mm).abs() < 1e-4 * first.row_spacing_mm
                && (p.column_spacing_mm - first.column_spacing_mm).abs() < 1e-4 * first.column_spacing_mm
        };
        if !planes.iter().all(is_same) {
            return Err(self.labels("its frames have several orientations or pixel spacings and do not lie on the slices of the image"));
        }
        let along: Vec<f64> = planes.iter().map(|p| p.origin.dot(normal)).collect();
        let mut sorted = along.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.dedup_by(|b, a| (*b - *a).abs() < 1e-3);
        let smallest = sorted.windows(2).map(|w| w[1] - w[0]).min_by(f64::total_cmp);
        let step = match (smallest, self.between_mm) {
            (Some(s), Some(b)) if b < s => b,
            (Some(s), _) => s,
            (None, b) => b.ok_or_else(|| self.labels("its only plane has no thickness and does not lie on a slice of the image"))?,
        };
        let low = sorted[0];
        let level = |a: f64| ((a - low) / step).round();
        if let Some(off) = along.iter().find(|a| ((**a - low) / step - level(**a)).abs() > 0.1) {
            let why = format!(
                "its planes are not evenly spaced ({:.3} mm is no multiple of {step:.3} mm) and do not lie on the slices of the image",
                off - low
            );
            return Err(self.labels(why));
        }
        let levels: Vec<usize> = along.iter().map(|a| level(*a) as usize).collect();
        let n_levels = levels.iter().max().map_or(1, |l| l + 1);
        if n_levels > 100_000 {
            return Err(self.labels(format!("its planes span {n_levels} levels of {step:.4} mm")));
        }
        let at_level = |l: usize| levels.iter().position(|x| *x == l).map(|i| planes[i].origin);
        let origin = at_level(0).expect("the lowest plane has level 0");
        // The way from the lowest to the highest plane, so that a tilted stack keeps its shear.
        let top = at_level(n_levels - 1).expect("the highest plane has the last level");
        let z = if n_levels > 1 { (top - origin).scale(1.0 / (n_levels - 1) as f64) } else { normal.scale(step) };
        let axes_mm = Zyx::new(z, first.along_column.scale(first.row_spacing_mm), first.along_row.scale(first.column_spacing_mm));
        let size = Zyx::new(n_levels, self.rows, self.columns);
        size.checked_count().filter(|n| *n < 1 << 34).ok_or_else(|| self.labels(format!("its planes span {size} voxels")))?;
        Ok((Geometry { size, origin, axes_mm }, levels))
    }
}
