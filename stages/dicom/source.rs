//! The slices of an image series as their headers have them: what labels refer to and what an export goes back to.

use dicom::dictionary_std::tags;
use rayon::prelude::*;
use voxmill_schemas::tables::InstanceRow;

use super::contents::{self, FileRef};
use super::header::{self, Header};
use super::place::{Plane, Slice};
use super::tree::{self, Dataset};
use crate::error::Error;

/// A series that labels were drawn on or go back to.
pub struct Series {
    pub uid: String,
    pub frame_of_reference: Option<String>,
    /// In the order of the instances; frames of a multi-frame instance in the order of the file. Frames without a position are left out.
    pub slices: Vec<Slice>,
    /// Tree of its first instance: patient, study, equipment.
    pub(super) first: Dataset,
}

/// Reads the slices of these instances; a file whose bytes have changed since it was indexed is refused.
pub fn slices(instances: &[InstanceRow]) -> Result<Vec<Slice>, Error> {
    let of_file = |i: &InstanceRow| -> Result<Vec<Slice>, Error> {
        let source = contents::open(&FileRef::of(i))?;
        match header::of_source(&source).map_err(|e| Error::Dicom { file: i.file.clone(), why: format!("it cannot be read: {e}") })? {
            Ok(h) => Ok(slices_of(&h).filter(|s| i.frames.is_empty() || i.frames.contains(&(s.frame.unwrap_or(1) as i64 - 1))).collect()),
            Err(_) => Err(Error::Dicom { file: i.file.clone(), why: "its header cannot be read any more: run again".into() }),
        }
    };
    let files: Vec<Vec<Slice>> = instances.par_iter().map(of_file).collect::<Result<_, _>>()?;
    Ok(files.into_iter().flatten().collect())
}

/// Reads the slices of these instances and what their study says of the patient.
pub fn open(instances: &[InstanceRow]) -> Result<Series, Error> {
    let slices = slices(instances)?;
    let first = match instances.first() {
        Some(i) => tree::open_row(i)?,
        None => Dataset::new_empty(),
    };
    let frame_of_reference = tree::text(&first, tags::FRAME_OF_REFERENCE_UID);
    Ok(Series { uid: tree::text(&first, tags::SERIES_INSTANCE_UID).unwrap_or_default(), frame_of_reference, slices, first })
}

fn slices_of(h: &Header) -> impl Iterator<Item = Slice> + '_ {
    // Tiles of a mosaic are slices of one frame.
    let is_multi_frame = h.n_frames > 1 || (h.frames.len() > 1 && h.mosaic.is_none());
    let [rows, columns] = h.slice_size().map(|n| n as usize);
    h.frames.iter().enumerate().filter_map(move |(i, f)| {
        Some(Slice {
            sop_class: h.sop_class.clone(),
            sop_instance: h.sop_instance.clone(),
            frame: is_multi_frame.then_some(i as u32 + 1),
            plane: Plane::new(f.position?, f.orientation?, f.spacing_mm?)?,
            rows,
            columns,
            thickness_mm: f.thickness_mm,
        })
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{rtstruct, seg};
    use super::*;

    #[test]
    fn a_file_that_is_no_longer_the_indexed_one_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"drawn anew").unwrap();
        let row = InstanceRow {
            path: file.path().to_string_lossy().into_owned(),
            file: "labels/a".into(),
            content: blake3::hash(b"as indexed").to_hex().to_string(),
            ..InstanceRow::default()
        };
        let told = [
            slices(std::slice::from_ref(&row)).err().unwrap(),
            open(std::slice::from_ref(&row)).err().unwrap(),
            seg::read_indexed(&row).err().unwrap(),
            rtstruct::read_indexed(&row).err().unwrap(),
        ];
        for e in told {
            assert_eq!(e.to_string(), "labels/a: the file has changed since it was indexed: run again");
        }
    }
}
