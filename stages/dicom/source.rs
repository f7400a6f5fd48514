//! The slices of an image series as their headers have them: what labels refer to and what an export goes back to.

use std::path::Path;

use dicom::dictionary_std::tags;

use super::place::{Plane, Slice};
use super::tree::{self, Dataset};
use crate::error::Error;

/// A series that labels were drawn on or go back to.
pub struct Series {
    pub uid: String,
    /// In the order of the paths; frames of a multi-frame instance in the order of the file. Frames without a position are left out.
    pub slices: Vec<Slice>,
    /// Header of its first instance: patient, study, equipment.
    pub(super) header: Dataset,
}

/// Reads the headers of the instances at these paths.
pub fn open(paths: &[impl AsRef<Path>]) -> Result<Series, Error> {
    let mut slices = Vec::with_capacity(paths.len());
    let mut first = None;
    for path in paths {
        let header = tree::open_header(path.as_ref())?.into_inner();
        slices_of(&header, &mut slices);
        first.get_or_insert(header);
    }
    let header = first.unwrap_or_else(Dataset::new_empty);
    Ok(Series { uid: tree::text(&header, tags::SERIES_INSTANCE_UID).unwrap_or_default(), slices, header })
}

/// Adds the slices of one header.
pub fn slices_of(d: &Dataset, out: &mut Vec<Slice>) {
    let (Some(sop_class), Some(sop_instance)) = (tree::text(d, tags::SOP_CLASS_UID), tree::text(d, tags::SOP_INSTANCE_UID)) else { return };
    let size = |tag| tree::int(d, tag).and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    let (rows, columns) = (size(tags::ROWS), size(tags::COLUMNS));
    let slice = |frame, plane, thickness_mm| Slice {
        sop_class: sop_class.clone(),
        sop_instance: sop_instance.clone(),
        frame,
        plane,
        rows,
        columns,
        thickness_mm,
    };
    let per_frame = tree::items(d, tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE);
    if per_frame.is_empty() {
        out.extend(plane_of(Some(d), Some(d), Some(d)).map(|p| slice(None, p, tree::float(d, tags::SLICE_THICKNESS))));
        return;
    }
    let shared = tree::item(d, tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE);
    for (i, f) in per_frame.iter().enumerate() {
        let measures = tree::group(Some(f), shared, tags::PIXEL_MEASURES_SEQUENCE);
        let thickness = measures.and_then(|m| tree::float(m, tags::SLICE_THICKNESS));
        out.extend(frame_plane(f, shared).map(|p| slice(Some(i as u32 + 1), p, thickness)));
    }
}

/// The plane of a frame from its functional groups, `None` where position, orientation or spacing is missing or nonsense.
pub fn frame_plane(per_frame: &Dataset, shared: Option<&Dataset>) -> Option<Plane> {
    let group = |tag| tree::group(Some(per_frame), shared, tag);
    plane_of(group(tags::PLANE_POSITION_SEQUENCE), group(tags::PLANE_ORIENTATION_SEQUENCE), group(tags::PIXEL_MEASURES_SEQUENCE))
}

fn plane_of(position: Option<&Dataset>, orientation: Option<&Dataset>, measures: Option<&Dataset>) -> Option<Plane> {
    Plane::new(
        tree::floats::<3>(position?, tags::IMAGE_POSITION_PATIENT)?,
        tree::floats::<6>(orientation?, tags::IMAGE_ORIENTATION_PATIENT)?,
        tree::floats::<2>(measures?, tags::PIXEL_SPACING)?,
    )
}
