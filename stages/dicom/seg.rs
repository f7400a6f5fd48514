//! DICOM Segmentation (PS3.3 A.51): BINARY, FRACTIONAL and LABELMAP, laid on the grid of an image. Where a frame lies is decided by its
//! geometry; the source images it names are a cross-check, and the only guide where it has no position.

use std::collections::BTreeMap;
use std::path::Path;

use dicom::dictionary_std::{tags, uids};
use voxmill_schemas::geometry::{Geometry, Zyx};
use voxmill_schemas::tables::InstanceRow;

use super::place::{Grid, Plane, is_reindexed, nearest_voxels};
use super::seg_frames::Frames;
use super::source::frame_plane;
use super::tree::{self, Dataset, Opened};
use crate::error::Error;

/// A stack of planes spans at most so many times the pixels of the segmentation and of the image together.
const MAX_STACK_RATIO: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Binary,
    /// Values are `stored / maximum`: a probability, or the share of the voxel that is occupied.
    Fractional {
        maximum: u16,
        is_probability: bool,
    },
    /// A pixel value is a segment number, or `background`.
    Labelmap {
        background: u16,
    },
}

/// A code of a terminology (PS3.3 8): `91723000`, `SCT`, `Anatomical Structure`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Code {
    pub value: String,
    pub scheme: String,
    pub meaning: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    pub number: u16,
    pub label: String,
    pub category: Option<Code>,
    pub kind: Option<Code>,
    pub algorithm: Option<String>,
}

/// One frame's place, without its pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// `None` in a labelmap, which holds all segments.
    pub segment: Option<u16>,
    pub plane: Option<Plane>,
    /// SOP instances (and frames, 1 where none is named) it was drawn on.
    pub sources: Vec<(String, u32)>,
}

/// A segmentation object.
#[derive(Debug)]
pub struct Seg {
    pub file: String,
    pub kind: Kind,
    pub rows: usize,
    pub columns: usize,
    pub segments: Vec<Segment>,
    pub frames: Vec<Frame>,
    pub frame_of_reference: Option<String>,
    /// SegmentsOverlap: `YES`, `NO` or `UNDEFINED`.
    pub overlap: Option<String>,
    /// ContentDate and ContentTime: `20180101 120000`.
    pub made: String,
    /// SpacingBetweenSlices, mm.
    between_mm: Option<f64>,
    pixels: Frames,
}

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

/// `name`: what messages call the file.
pub fn read(path: &Path, name: &str) -> Result<Seg, Error> {
    of_opened(tree::open(path, name)?, name)
}

/// A file of an index; refused when its bytes have changed since.
pub fn read_indexed(row: &InstanceRow) -> Result<Seg, Error> {
    of_opened(tree::open_row(row)?, &row.file)
}

fn of_opened(opened: Opened, name: &str) -> Result<Seg, Error> {
    let Opened { header, data, source } = opened;
    let (d, file) = (&data, name.to_string());
    let wrong = |why: String| Error::Dicom { file: file.clone(), why };
    if ![uids::SEGMENTATION_STORAGE, uids::LABEL_MAP_SEGMENTATION_STORAGE].contains(&header.sop_class.as_str()) {
        return Err(wrong(format!("found SOP class {}, expected a segmentation", header.sop_class)));
    }
    let positive = |tag, name: &str| {
        let n = tree::int(d, tag).and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        n.ok_or_else(|| wrong(format!("{name} is missing or not positive")))
    };
    let (rows, columns) = (positive(tags::ROWS, "Rows")?, positive(tags::COLUMNS, "Columns")?);
    let segments = tree::items(d, tags::SEGMENT_SEQUENCE).iter().filter_map(segment).collect::<Vec<_>>();
    let kind = match tree::text(d, tags::SEGMENTATION_TYPE).as_deref() {
        Some("BINARY") => Kind::Binary,
        Some("FRACTIONAL") => Kind::Fractional {
            maximum: tree::int(d, tags::MAXIMUM_FRACTIONAL_VALUE).and_then(|v| u16::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(255),
            is_probability: tree::text(d, tags::SEGMENTATION_FRACTIONAL_TYPE).as_deref() != Some("OCCUPANCY"),
        },
        Some("LABELMAP") => Kind::Labelmap { background: background(d, &segments) },
        other => return Err(wrong(format!("SegmentationType is {}, expected BINARY, FRACTIONAL or LABELMAP", other.unwrap_or("missing")))),
    };
    let shared = tree::item(d, tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE);
    let per_frame = tree::items(d, tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE);
    let n_frames = tree::int(d, tags::NUMBER_OF_FRAMES).unwrap_or(1);
    let n_frames = usize::try_from(n_frames).map_err(|_| wrong(format!("NumberOfFrames is {n_frames}")))?;
    let organisation = tree::text(d, tags::DIMENSION_ORGANIZATION_TYPE);
    if organisation.as_deref() == Some("TILED_FULL") {
        return Err(wrong("it is drawn on tiles of a slide (TILED_FULL), which have no place in a patient".into()));
    }
    if per_frame.len() != n_frames {
        return Err(wrong(format!("found {} per-frame groups for {n_frames} frames", per_frame.len())));
    }
    let frames = per_frame.iter().map(|f| frame(f, shared)).collect::<Vec<_>>();
    if matches!(kind, Kind::Binary | Kind::Fractional { .. })
        && let Some(i) = frames.iter().position(|f| f.segment.is_none())
    {
        return Err(wrong(format!("frame {} names no segment", i + 1)));
    }
    let between_mm = shared
        .and_then(|s| tree::item(s, tags::PIXEL_MEASURES_SEQUENCE))
        .or_else(|| per_frame.first().and_then(|f| tree::item(f, tags::PIXEL_MEASURES_SEQUENCE)))
        .and_then(|m| tree::float(m, tags::SPACING_BETWEEN_SLICES).or_else(|| tree::float(m, tags::SLICE_THICKNESS)))
        .filter(|s| *s > 0.0);
    let made = [tags::CONTENT_DATE, tags::CONTENT_TIME].map(|t| tree::text(d, t).unwrap_or_default()).join(" ");
    let (frame_of_reference, overlap) = (tree::text(d, tags::FRAME_OF_REFERENCE_UID), tree::text(d, tags::SEGMENTS_OVERLAP));
    let pixels = Frames::open(source, header, name)?;
    Ok(Seg { file, kind, rows, columns, segments, frames, frame_of_reference, overlap, made, between_mm, pixels })
}

fn segment(d: &Dataset) -> Option<Segment> {
    let number = u16::try_from(tree::int(d, tags::SEGMENT_NUMBER)?).ok()?;
    let label = tree::text(d, tags::SEGMENT_LABEL).unwrap_or_else(|| format!("segment {number}"));
    let algorithm = tree::text(d, tags::SEGMENT_ALGORITHM_NAME);
    let code = |tag| {
        tree::item(d, tag).map(|c| Code {
            value: tree::text(c, tags::CODE_VALUE).unwrap_or_default(),
            scheme: tree::text(c, tags::CODING_SCHEME_DESIGNATOR).unwrap_or_default(),
            meaning: tree::text(c, tags::CODE_MEANING).unwrap_or_default(),
        })
    };
    let (category, kind) = (code(tags::SEGMENTED_PROPERTY_CATEGORY_CODE_SEQUENCE), code(tags::SEGMENTED_PROPERTY_TYPE_CODE_SEQUENCE));
    Some(Segment { number, label, category, kind, algorithm })
}

/// PS3.3 C.8.20.2: PixelPaddingValue is the background of a labelmap. Without it, 0, unless a segment other than a background is described as 0.
fn background(d: &Dataset, segments: &[Segment]) -> u16 {
    let padding = tree::int(d, tags::PIXEL_PADDING_VALUE).and_then(|v| u16::try_from(v).ok());
    let zero_is_used = || segments.iter().any(|s| s.number == 0 && !s.label.to_lowercase().contains("background"));
    // A value that no pixel of a described segment can have, so that nothing is background.
    padding.unwrap_or(if zero_is_used() { u16::MAX } else { 0 })
}

fn frame(d: &Dataset, shared: Option<&Dataset>) -> Frame {
    let segment = tree::group(Some(d), shared, tags::SEGMENT_IDENTIFICATION_SEQUENCE)
        .and_then(|s| tree::int(s, tags::REFERENCED_SEGMENT_NUMBER))
        .and_then(|n| u16::try_from(n).ok());
    let derivations = [Some(d), shared].into_iter().flatten().flat_map(|g| tree::items(g, tags::DERIVATION_IMAGE_SEQUENCE));
    let sources = derivations.flat_map(|g| tree::items(g, tags::SOURCE_IMAGE_SEQUENCE)).filter_map(|s| {
        let frame = tree::int(s, tags::REFERENCED_FRAME_NUMBER).and_then(|n| u32::try_from(n).ok()).unwrap_or(1);
        Some((tree::text(s, tags::REFERENCED_SOP_INSTANCE_UID)?, frame))
    });
    Frame { segment, plane: frame_plane(d, shared), sources: sources.collect() }
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
