//! DICOM Segmentation (PS3.3 A.51): BINARY, FRACTIONAL and LABELMAP, as it stands in the file. Where its frames lie on an image: `seg_lay`.

use std::path::Path;

use dicom::dictionary_std::{tags, uids};
use voxmill_schemas::tables::InstanceRow;

use super::place::Plane;
use super::seg_frames::Frames;
pub use super::seg_lay::Placed;
use super::view::{self, Opened, View};
use crate::error::Error;

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
    /// What narrows category and type: a side, the region and its own side.
    pub modifiers: Vec<Code>,
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
    pub(super) between_mm: Option<f64>,
    pub(super) pixels: Frames,
}

/// `name`: what messages call the file.
pub fn read(path: &Path, name: &str) -> Result<Seg, Error> {
    of_opened(view::open(path, name)?, name)
}

/// A file of an index; refused when its bytes have changed since.
pub fn read_indexed(row: &InstanceRow) -> Result<Seg, Error> {
    of_opened(view::open_row(row)?, &row.file)
}

impl Seg {
    /// The stored values of a frame, `[row, column]`; 0 or 1 for single bits.
    pub fn values(&self, frame: usize) -> Result<Vec<u16>, Error> {
        self.pixels.frame(frame)
    }
}

fn of_opened(opened: Opened, name: &str) -> Result<Seg, Error> {
    let (d, header, file) = (opened.data(), &opened.header, name.to_string());
    let wrong = |why: String| Error::Dicom { file: file.clone(), why };
    if ![uids::SEGMENTATION_STORAGE, uids::LABEL_MAP_SEGMENTATION_STORAGE].contains(&header.sop_class.as_str()) {
        return Err(wrong(format!("found SOP class {}, expected a segmentation", header.sop_class)));
    }
    let positive = |tag, name: &str| {
        let n = d.int(tag).and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        n.ok_or_else(|| wrong(format!("{name} is missing or not positive")))
    };
    let (rows, columns) = (positive(tags::ROWS, "Rows")?, positive(tags::COLUMNS, "Columns")?);
    let segments = d.items(tags::SEGMENT_SEQUENCE).filter_map(segment).collect::<Vec<_>>();
    let kind = match d.text(tags::SEGMENTATION_TYPE).as_deref() {
        Some("BINARY") => Kind::Binary,
        Some("FRACTIONAL") => Kind::Fractional {
            maximum: d.int(tags::MAXIMUM_FRACTIONAL_VALUE).and_then(|v| u16::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(255),
            is_probability: d.text(tags::SEGMENTATION_FRACTIONAL_TYPE).as_deref() != Some("OCCUPANCY"),
        },
        Some("LABELMAP") => Kind::Labelmap { background: background(d, &segments) },
        other => return Err(wrong(format!("SegmentationType is {}, expected BINARY, FRACTIONAL or LABELMAP", other.unwrap_or("missing")))),
    };
    let shared = d.item(tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE);
    let per_frame = || d.items(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE);
    let n_frames = d.int(tags::NUMBER_OF_FRAMES).unwrap_or(1);
    let n_frames = usize::try_from(n_frames).map_err(|_| wrong(format!("NumberOfFrames is {n_frames}")))?;
    let organisation = d.text(tags::DIMENSION_ORGANIZATION_TYPE).unwrap_or_default();
    let of_slide = |d: View| d.item(tags::PLANE_POSITION_SLIDE_SEQUENCE).is_some();
    if organisation == "TILED_FULL" || d.has(tags::TOTAL_PIXEL_MATRIX_COLUMNS) || shared.is_some_and(of_slide) || per_frame().any(of_slide)
    {
        return Err(wrong(
            "it is drawn on tiles of a microscope slide, which have no place in a patient: volumes are labelled here".into(),
        ));
    }
    let n_groups = per_frame().count();
    if n_groups != n_frames {
        return Err(wrong(format!("found {n_groups} per-frame groups for {n_frames} frames")));
    }
    let frames = per_frame().map(|f| frame(f, shared)).collect::<Vec<_>>();
    if matches!(kind, Kind::Binary | Kind::Fractional { .. })
        && let Some(i) = frames.iter().position(|f| f.segment.is_none())
    {
        return Err(wrong(format!("frame {} names no segment", i + 1)));
    }
    let between_mm = shared
        .and_then(|s| s.item(tags::PIXEL_MEASURES_SEQUENCE))
        .or_else(|| per_frame().next().and_then(|f| f.item(tags::PIXEL_MEASURES_SEQUENCE)))
        .and_then(|m| m.float(tags::SPACING_BETWEEN_SLICES).or_else(|| m.float(tags::SLICE_THICKNESS)))
        .filter(|s| *s > 0.0);
    let made = [tags::CONTENT_DATE, tags::CONTENT_TIME].map(|t| d.text(t).unwrap_or_default()).join(" ");
    let (frame_of_reference, overlap) = (d.text(tags::FRAME_OF_REFERENCE_UID), d.text(tags::SEGMENTS_OVERLAP));
    let pixels = Frames::open(opened.source, opened.header, name)?;
    Ok(Seg { file, kind, rows, columns, segments, frames, frame_of_reference, overlap, made, between_mm, pixels })
}

fn segment(d: View) -> Option<Segment> {
    let number = u16::try_from(d.int(tags::SEGMENT_NUMBER)?).ok()?;
    let label = d.text(tags::SEGMENT_LABEL).unwrap_or_else(|| format!("segment {number}"));
    let algorithm = d.text(tags::SEGMENT_ALGORITHM_NAME);
    let category = d.item(tags::SEGMENTED_PROPERTY_CATEGORY_CODE_SEQUENCE);
    let kind = d.item(tags::SEGMENTED_PROPERTY_TYPE_CODE_SEQUENCE);
    let region = d.item(tags::ANATOMIC_REGION_SEQUENCE);
    let of_kind = kind.into_iter().flat_map(|k| k.items(tags::SEGMENTED_PROPERTY_TYPE_MODIFIER_CODE_SEQUENCE));
    let of_region = region.into_iter().flat_map(|r| r.items(tags::ANATOMIC_REGION_MODIFIER_SEQUENCE));
    let modifiers = of_kind.chain(region).chain(of_region).map(code).collect();
    Some(Segment { number, label, category: category.map(code), kind: kind.map(code), modifiers, algorithm })
}

fn code(c: View) -> Code {
    // Long codes and URNs stand elsewhere (PS3.3 8.8).
    let value = [tags::CODE_VALUE, tags::LONG_CODE_VALUE, tags::URN_CODE_VALUE].into_iter().find_map(|t| c.text(t));
    Code {
        value: value.unwrap_or_default(),
        scheme: c.text(tags::CODING_SCHEME_DESIGNATOR).unwrap_or_default(),
        meaning: c.text(tags::CODE_MEANING).unwrap_or_default(),
    }
}

/// PS3.3 C.8.20.2: PixelPaddingValue is the background of a labelmap. Without it, 0, unless a segment other than a background is described as 0.
fn background(d: View, segments: &[Segment]) -> u16 {
    let padding = d.int(tags::PIXEL_PADDING_VALUE).and_then(|v| u16::try_from(v).ok());
    let zero_is_used = || segments.iter().any(|s| s.number == 0 && !s.label.to_lowercase().contains("background"));
    // A value that no pixel of a described segment can have, so that nothing is background.
    padding.unwrap_or(if zero_is_used() { u16::MAX } else { 0 })
}

fn frame(d: View, shared: Option<View>) -> Frame {
    let segment = view::group(d, shared, tags::SEGMENT_IDENTIFICATION_SEQUENCE)
        .and_then(|s| s.int(tags::REFERENCED_SEGMENT_NUMBER))
        .and_then(|n| u16::try_from(n).ok());
    let derivations = [Some(d), shared].into_iter().flatten().flat_map(|g| g.items(tags::DERIVATION_IMAGE_SEQUENCE));
    let sources = derivations.flat_map(|g| g.items(tags::SOURCE_IMAGE_SEQUENCE)).filter_map(|s| {
        let frame = s.int(tags::REFERENCED_FRAME_NUMBER).and_then(|n| u32::try_from(n).ok()).unwrap_or(1);
        Some((s.text(tags::REFERENCED_SOP_INSTANCE_UID)?, frame))
    });
    Frame { segment, plane: view::frame_plane(d, shared), sources: sources.collect() }
}
