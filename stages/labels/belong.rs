//! Which labels belong to which image: by the series they name, the slices they name, the names of files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use arrow::array::{Array, BooleanArray, RecordBatch, StringArray};
use serde_json::Value;
use voxmill_schemas::artifact::Manifest;
use voxmill_schemas::tables::{InstanceRow, SeriesRow};

use super::Found;
use crate::dicom::place::Slice;
use crate::dicom::source;
use crate::error::Error;

/// The image that is to be labelled.
pub struct Target {
    /// SOP instance and frame number (1 for single frames) of its slices.
    slices: BTreeSet<(String, u32)>,
    /// Instances of the other volumes of its series (echoes, phases).
    others: Vec<InstanceRow>,
    frame_of_reference: Option<String>,
}

impl Target {
    pub fn new(slices: &[Slice], others: Vec<InstanceRow>, frame_of_reference: Option<String>) -> Target {
        Target { slices: names(slices), others, frame_of_reference }
    }

    /// Labels that name slices of another volume of the series, and none of this one, belong to that one.
    pub fn has(&self, found: &Found) -> Result<bool, Error> {
        let images = found.images();
        if images.is_empty() || self.others.is_empty() || self.is_named(&images) {
            return Ok(true);
        }
        let others = names(&source::slices(&self.others)?);
        Ok(!images.iter().any(|i| others.contains(*i)))
    }

    /// Refuses labels of another frame of reference, unless they name slices of the image: then their numbers mean what those of the image mean.
    pub fn check_frame_of_reference(&self, found: &Found) -> Result<(), Error> {
        let frames = found.frames_of_reference();
        let Some(mine) = self.frame_of_reference.as_deref() else { return Ok(()) };
        if frames.is_empty() || frames.contains(mine) || self.is_named(&found.images()) {
            return Ok(());
        }
        let why = "it lies in another frame of reference than the image and names none of its slices: register it first".to_string();
        Err(Error::Labels { what: found.file().into(), why })
    }

    fn is_named(&self, images: &BTreeSet<&(String, u32)>) -> bool {
        images.iter().any(|i| self.slices.contains(*i))
    }
}

fn names(slices: &[Slice]) -> BTreeSet<(String, u32)> {
    slices.iter().map(|s| (s.sop_instance.clone(), s.frame.unwrap_or(1))).collect()
}

/// Values of a text column; empty texts where there is none.
pub fn texts<'a>(batch: &'a RecordBatch, column: &str) -> Box<dyn Iterator<Item = &'a str> + 'a> {
    match batch.column_by_name(column).and_then(|c| c.as_any().downcast_ref::<StringArray>()) {
        Some(c) => Box::new((0..c.len()).map(move |i| c.value(i))),
        None => Box::new(std::iter::repeat_n("", batch.num_rows())),
    }
}

/// The rows with a `true`.
pub fn filter(batch: &RecordBatch, keep: &[bool]) -> RecordBatch {
    arrow::compute::filter_record_batch(batch, &BooleanArray::from(keep.to_vec())).expect("one bool a row")
}

/// NIfTI files carry no reference. One belongs to a series when it, or a folder above it, is called like the case, patient or series; or
/// when it stands in or above the folder of the series and no other image series lies there.
pub fn nifti_of(all: &[SeriesRow], instances: &RecordBatch, of: &Manifest, image: &str) -> Vec<String> {
    let names: Vec<String> =
        [of.case.as_ref().map(|c| c.0.clone()), of.facts.get("patient").and_then(Value::as_str).map(String::from), Some(image.to_string())]
            .into_iter()
            .flatten()
            .filter(|n| !n.is_empty())
            .collect();
    let mut files: BTreeMap<&str, &Path> = BTreeMap::new();
    let mut folders: Vec<(&str, &Path)> = Vec::new();
    for (series, file) in texts(instances, "series").zip(texts(instances, "file")) {
        files.entry(series).or_insert(Path::new(file));
        if let Some(folder) = Path::new(file).parent() {
            folders.push((series, folder));
        }
    }
    folders.dedup();
    let is_image = |s: &str| all.iter().any(|r| r.series == s && r.kind == "image");
    let belongs = |row: &SeriesRow| {
        let Some(path) = files.get(row.series.as_str()) else { return false };
        // The index gives a NIfTI file the patient of its name, so that names meet under pseudonyms as well.
        if names.contains(&row.patient) {
            return true;
        }
        let stem = |p: &std::ffi::OsStr| {
            let name = p.to_string_lossy().into_owned();
            name.trim_end_matches(".gz").trim_end_matches(".nii").to_string()
        };
        if path.iter().any(|part| names.contains(&stem(part))) {
            return true;
        }
        let Some(folder) = path.parent() else { return false };
        let below: BTreeSet<&str> = folders.iter().filter(|(s, f)| f.starts_with(folder) && is_image(s)).map(|(s, _)| *s).collect();
        below.len() == 1 && below.contains(image)
    };
    all.iter().filter(|r| r.kind == "nifti" && r.references.is_empty() && belongs(r)).map(|r| r.series.clone()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::geometry::Lps;

    use super::*;
    use crate::dicom::place::Plane;
    use crate::dicom::rtstruct::{Contour, Roi, RtStruct};

    fn drawn_on(sop: &str, frame_of_reference: &str) -> Found {
        let contours = vec![Contour { points: Vec::new(), images: vec![(sop.to_string(), 1)] }];
        let roi = Roi { contours, frame_of_reference: Some(frame_of_reference.into()), ..Roi::default() };
        Found::RtStruct(RtStruct { file: "plan.dcm".into(), rois: vec![roi], made: String::new() })
    }

    fn target() -> Target {
        let plane = Plane::new([0.0; 3], [1.0, 0.0, 0.0, 0.0, 1.0, 0.0], [1.0, 1.0]).unwrap();
        assert_eq!(plane.origin, Lps([0.0; 3]));
        let slice =
            Slice { sop_class: String::new(), sop_instance: "1.1".into(), frame: None, plane, rows: 4, columns: 4, thickness_mm: None };
        Target::new(&[slice], Vec::new(), Some("9".into()))
    }

    #[test]
    fn another_frame_of_reference_needs_a_named_slice() {
        assert!(target().check_frame_of_reference(&drawn_on("2.2", "9")).is_ok());
        assert!(target().check_frame_of_reference(&drawn_on("1.1", "8")).is_ok());
        let e = target().check_frame_of_reference(&drawn_on("2.2", "8")).unwrap_err().to_string();
        assert!(e.starts_with("plan.dcm: it lies in another frame of reference"), "{e}");
    }

    #[test]
    fn labels_that_name_another_volume_of_the_series_are_not_for_this_one() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let small = crate::dicom::phantom::Phantom { patients: 1, slices: 4, size: 16, slice_spacing_mm: None, seed: 1 };
        crate::dicom::phantom::write(&out, &small, &mut |_| {}).unwrap();
        let patient = std::fs::read_dir(&out).unwrap().next().unwrap().unwrap().path();
        let row = |path: std::path::PathBuf| InstanceRow {
            content: blake3::hash(&std::fs::read(&path).unwrap()).to_hex().to_string(),
            path: path.to_string_lossy().into_owned(),
            ..InstanceRow::default()
        };
        let rows: Vec<InstanceRow> = std::fs::read_dir(patient.join("CT")).unwrap().map(|e| row(e.unwrap().path())).collect();
        let other = source::slices(&rows).unwrap()[0].sop_instance.clone();
        let image = Target { others: rows, ..target() };
        assert!(image.has(&drawn_on("1.1", "9")).unwrap(), "it names a slice of this volume");
        assert!(image.has(&drawn_on("7.7", "9")).unwrap(), "it names nothing of the series");
        assert!(!image.has(&drawn_on(&other, "9")).unwrap(), "it names a slice of the other volume");
    }
}
