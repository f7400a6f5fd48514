//! A file that holds labels: SEG, RTSTRUCT or NIfTI, read once and held against the index.

use std::collections::BTreeSet;

use voxmill_schemas::tables::InstanceRow;

use crate::dicom::names::HIDDEN_LABEL;
use crate::dicom::{rtstruct, seg};
use crate::error::Error;
use crate::nifti;

/// A file that may label the case.
pub enum Found {
    Seg(Box<seg::Seg>),
    RtStruct(rtstruct::RtStruct),
    /// `values`: those present apart from 0. `layers`: `[z, y, x]` of a value each; several where there is a volume of 0 and 1 for each class.
    Nifti {
        file: String,
        image: Box<nifti::Image>,
        layers: Vec<Vec<u32>>,
        values: BTreeSet<u32>,
    },
}

/// What a label is called.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Label {
    pub name: String,
    /// `SCT:71341001`, of its type.
    pub code: Option<String>,
    /// The same of all that is said of it: category, type, modifiers, region.
    pub codes: BTreeSet<String>,
}

impl Found {
    /// Reads a label file of the index; `None` for a kind that holds no labels.
    pub fn read(kind: &str, row: &InstanceRow) -> Result<Option<Found>, Error> {
        Ok(match kind {
            "seg" => Some(Found::Seg(Box::new(seg::read_indexed(row)?))),
            "rtstruct" => Some(Found::RtStruct(rtstruct::read_indexed(row)?)),
            "nifti" => Some(Found::nifti(&row.file, nifti::read_indexed(row)?)?),
            _ => None,
        })
    }

    /// Calls its labels as the index does, where that has hidden names; what `is_wanted` (a class or alias that somebody wrote down) keeps its name.
    /// - `indexed`: the names in the index, empty ones left out, in the order of the file
    pub fn call_as_indexed(&mut self, indexed: &[String], is_wanted: &dyn Fn(&str) -> bool) {
        let names: Vec<&mut String> = match self {
            Found::Seg(s) => s.segments.iter_mut().map(|x| &mut x.label).collect(),
            Found::RtStruct(r) => r.rois.iter_mut().map(|x| &mut x.name).collect(),
            Found::Nifti { .. } => return,
        };
        let known: BTreeSet<&str> = indexed.iter().map(|l| l.trim()).collect();
        let mine: BTreeSet<String> = names.iter().map(|n| n.trim().to_string()).collect();
        let hidden: Vec<&String> = indexed.iter().filter(|l| l.starts_with(HIDDEN_LABEL) && !mine.contains(l.trim())).collect();
        if hidden.is_empty() {
            return;
        }
        let others: Vec<&mut String> = names.into_iter().filter(|n| !known.contains(n.trim())).collect();
        // A label without a name is none of the index: which is which cannot be told then, and none is called by its name.
        let is_told = others.len() == hidden.len();
        for (i, name) in others.into_iter().enumerate().filter(|(_, n)| !is_wanted(n)) {
            *name = if is_told { hidden[i].clone() } else { HIDDEN_LABEL.trim_end_matches('-').into() };
        }
    }

    fn nifti(file: &str, image: nifti::Image) -> Result<Found, Error> {
        let wrong = |why: String| Err(Error::Nifti { file: file.into(), why });
        if image.is_colour {
            return wrong("it holds colours, expected whole numbers as labels have them".into());
        }
        let read = image.voxels.to_f32();
        if let Some(v) = read.iter().find(|v| v.fract() != 0.0 || !v.is_finite() || **v < 0.0) {
            return wrong(format!("found the value {v}, expected whole numbers from 0 as labels have them"));
        }
        let n = image.geometry.size.count();
        let layers: Vec<Vec<u32>> = if image.channels == 1 {
            vec![read.iter().map(|v| *v as u32).collect()]
        } else {
            if let Some(v) = read.iter().find(|v| **v > 1.0) {
                let why = format!(
                    "it holds {} volumes with values up to {v} (labels over time?), expected one with a value for each class, or one of 0 and 1 for each class",
                    image.channels
                );
                return wrong(why);
            }
            // Where every voxel is in exactly one volume, the first is the background.
            let has_background = (0..n).all(|i| read.iter().skip(i).step_by(n).filter(|v| **v > 0.0).count() == 1);
            let value = |channel: usize| channel as u32 + u32::from(!has_background);
            read.chunks_exact(n).enumerate().map(|(c, layer)| layer.iter().map(|v| if *v > 0.0 { value(c) } else { 0 }).collect()).collect()
        };
        drop(read);
        let mut values = BTreeSet::new();
        let mut last = 0;
        for v in layers.iter().flatten() {
            if *v != last {
                values.insert(*v);
                last = *v;
            }
        }
        values.remove(&0);
        Ok(Found::Nifti { file: file.into(), image: Box::new(image), layers, values })
    }

    /// SOP instances and frames that it says it was drawn on.
    pub fn images(&self) -> BTreeSet<&(String, u32)> {
        match self {
            Found::Seg(s) => s.frames.iter().flat_map(|f| &f.sources).collect(),
            Found::RtStruct(r) => r.rois.iter().flat_map(|r| &r.contours).flat_map(|c| &c.images).collect(),
            Found::Nifti { .. } => BTreeSet::new(),
        }
    }

    /// What it is drawn by, frames or contours: which label, and the images it names. A frame of all labels counts as one label.
    pub fn parts(&self) -> Vec<(usize, &[(String, u32)])> {
        match self {
            Found::Seg(s) => s.frames.iter().map(|f| (f.segment.map_or(0, usize::from), f.sources.as_slice())).collect(),
            Found::RtStruct(r) => {
                r.rois.iter().enumerate().flat_map(|(i, roi)| roi.contours.iter().map(move |c| (i, c.images.as_slice()))).collect()
            }
            Found::Nifti { .. } => Vec::new(),
        }
    }

    /// Frames of reference in which it lies, where it says so.
    pub fn frames_of_reference(&self) -> BTreeSet<&str> {
        match self {
            Found::Seg(s) => s.frame_of_reference.iter().map(String::as_str).collect(),
            Found::RtStruct(r) => r.rois.iter().filter_map(|r| r.frame_of_reference.as_deref()).collect(),
            Found::Nifti { .. } => BTreeSet::new(),
        }
    }

    pub fn file(&self) -> &str {
        match self {
            Found::Seg(s) => &s.file,
            Found::RtStruct(r) => &r.file,
            Found::Nifti { file, .. } => file,
        }
    }

    /// The lower, the better.
    pub fn rank(&self) -> u8 {
        match self {
            Found::Seg(s) => match s.kind {
                seg::Kind::Binary => 0,
                seg::Kind::Labelmap { .. } => 1,
                seg::Kind::Fractional { .. } => 2,
            },
            Found::RtStruct(_) => 3,
            Found::Nifti { .. } => 4,
        }
    }

    pub fn kind(&self) -> &'static str {
        ["binary SEG", "labelmap SEG", "fractional SEG", "RTSTRUCT", "NIfTI"][self.rank() as usize]
    }

    pub fn made(&self) -> &str {
        match self {
            Found::Seg(s) => &s.made,
            Found::RtStruct(r) => &r.made,
            Found::Nifti { .. } => "",
        }
    }

    /// What its labels are called.
    pub fn labels(&self) -> Vec<Label> {
        match self {
            Found::Seg(s) => {
                let text = |c: &seg::Code| format!("{}:{}", c.scheme, c.value);
                let label = |x: &seg::Segment| Label {
                    name: x.label.clone(),
                    code: x.kind.as_ref().map(text),
                    codes: x.category.iter().chain(&x.kind).chain(&x.modifiers).map(text).collect(),
                };
                s.segments.iter().map(label).collect()
            }
            Found::RtStruct(r) => r.rois.iter().map(|x| Label { name: x.name.clone(), ..Label::default() }).collect(),
            // A file may hold any number of values; so many say what it is.
            Found::Nifti { values, .. } => {
                values.iter().take(20).map(|v| Label { name: format!("value {v}"), ..Label::default() }).collect()
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::geometry::{Geometry, Zyx};

    use super::*;
    use crate::volume::Voxels;

    fn written(values: Vec<u8>) -> (tempfile::TempDir, InstanceRow) {
        stacked(1, values)
    }

    fn stacked(channels: usize, values: Vec<u8>) -> (tempfile::TempDir, InstanceRow) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("labels.nii.gz");
        nifti::write(
            &path,
            &Geometry::axis_aligned(Zyx::new(1, 1, values.len() / channels), Zyx::splat(1.0)),
            channels,
            &Voxels::U8(values),
            &nifti::Options::default(),
        )
        .unwrap();
        let content = blake3::hash(&std::fs::read(&path).unwrap()).to_hex().to_string();
        (dir, InstanceRow { path: path.to_string_lossy().into_owned(), file: "labels".into(), content, ..InstanceRow::default() })
    }

    #[test]
    fn a_nifti_holds_the_values_that_are_in_it() {
        let (_dir, row) = written(vec![0, 3, 3, 0, 1]);
        let found = Found::read("nifti", &row).unwrap().unwrap();
        assert_eq!(found.labels().into_iter().map(|l| l.name).collect::<Vec<_>>(), ["value 1", "value 3"]);
        let (_dir, row) = written(vec![0; 5]);
        assert!(Found::read("nifti", &row).unwrap().unwrap().labels().is_empty());
    }

    #[test]
    fn a_volume_for_each_class_is_read_and_labels_over_time_are_not() {
        let layers = |channels, values: &[u8]| {
            let (_dir, row) = stacked(channels, values.to_vec());
            match Found::read("nifti", &row)? {
                Some(Found::Nifti { layers, .. }) => Ok::<_, Error>(layers),
                _ => panic!("it is a NIfTI"),
            }
        };
        // The first of three is the background: every voxel is in one of them.
        assert_eq!(layers(3, &[1, 0, 0, 0, 1, 0, 0, 0, 1]).unwrap(), [[0, 0, 0], [0, 1, 0], [0, 0, 2]]);
        // Without a background, and with a voxel of two classes.
        assert_eq!(layers(2, &[0, 1, 0, 0, 1, 1]).unwrap(), [[0, 1, 0], [0, 2, 2]]);
        let e = layers(2, &[0, 1, 2, 0]).unwrap_err().to_string();
        assert!(e.starts_with("labels: it holds 2 volumes with values up to 2 (labels over time?)"), "{e}");
    }

    #[test]
    fn labels_are_called_as_the_index_calls_them() {
        let called = |names: &[&str], indexed: &[&str], wanted: &str| {
            let roi = |name: &&str| rtstruct::Roi { name: name.to_string(), ..Default::default() };
            let rois = names.iter().map(roi).collect();
            let mut found = Found::RtStruct(rtstruct::RtStruct { file: "plan".into(), rois, made: String::new() });
            let indexed: Vec<String> = indexed.iter().map(|l| l.to_string()).collect();
            found.call_as_indexed(&indexed, &|name| name == wanted);
            found.labels().into_iter().map(|l| l.name).collect::<Vec<_>>().join(", ")
        };
        let names = ["Femur", "Doe GTV", "Doe CTV"];
        let indexed = ["Femur", "label-1", "label-2"];
        assert_eq!(called(&names, &names, ""), "Femur, Doe GTV, Doe CTV");
        assert_eq!(called(&names, &indexed, ""), "Femur, label-1, label-2");
        assert_eq!(called(&names, &indexed, "Doe CTV"), "Femur, label-1, Doe CTV");
        assert_eq!(called(&["Doe GTV", "ROI 3"], &["label-1"], ""), "label, label");
    }

    #[test]
    fn a_nifti_that_is_no_longer_the_indexed_one_is_refused() {
        let (_dir, row) = written(vec![0, 1]);
        std::fs::copy(written(vec![0, 2]).0.path().join("labels.nii.gz"), &row.path).unwrap();
        let e = Found::read("nifti", &row).err().unwrap();
        assert_eq!(e.to_string(), "labels: the file has changed since it was indexed: run again");
    }
}
