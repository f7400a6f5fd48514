//! Reading values out of a DICOM dataset by tag: absent, empty and wrong values are `None`, never a guess.

use std::path::Path;

use dicom::core::Tag;
use dicom::dictionary_std::tags;
use dicom::object::{DefaultDicomObject, InMemDicomObject, OpenFileOptions};

use crate::error::{Error, chain};

pub type Dataset = InMemDicomObject;

/// What a file is called in messages: its name and the folder it stands in.
pub fn name_of(path: &Path) -> String {
    let tail: Vec<_> = path.components().rev().take(2).map(|c| c.as_os_str().to_string_lossy()).collect();
    tail.into_iter().rev().collect::<Vec<_>>().join("/")
}

/// A whole file.
pub fn open(path: &Path) -> Result<DefaultDicomObject, Error> {
    OpenFileOptions::new()
        .open_file(path)
        .map_err(|e| Error::Dicom { file: name_of(path), why: format!("it cannot be read as DICOM ({})", chain(&e)) })
}

/// A file up to its pixels.
pub fn open_header(path: &Path) -> Result<DefaultDicomObject, Error> {
    OpenFileOptions::new()
        .read_until(tags::PIXEL_DATA)
        .open_file(path)
        .map_err(|e| Error::Dicom { file: name_of(path), why: format!("it cannot be read as DICOM ({})", chain(&e)) })
}

/// A text without the padding of DICOM (spaces and NUL at either end); `None` when nothing is left.
pub fn text(d: &Dataset, tag: Tag) -> Option<String> {
    let raw = d.get(tag)?.value().to_str().ok()?;
    let clean = raw.trim_matches([' ', '\0']).to_string();
    (!clean.is_empty()).then_some(clean)
}

pub fn int(d: &Dataset, tag: Tag) -> Option<i64> {
    d.get(tag)?.value().to_int::<i64>().ok()
}

/// Exactly `N` finite numbers.
pub fn floats<const N: usize>(d: &Dataset, tag: Tag) -> Option<[f64; N]> {
    let v: [f64; N] = d.get(tag)?.value().to_multi_float64().ok()?.try_into().ok()?;
    v.iter().all(|x| x.is_finite()).then_some(v)
}

pub fn float(d: &Dataset, tag: Tag) -> Option<f64> {
    floats::<1>(d, tag).map(|[v]| v)
}

/// The items of a sequence; none where the tag is absent or holds something else.
pub fn items(d: &Dataset, tag: Tag) -> &[Dataset] {
    d.get(tag).and_then(|e| e.value().items()).unwrap_or(&[])
}

pub fn item(d: &Dataset, tag: Tag) -> Option<&Dataset> {
    items(d, tag).first()
}

/// The item of a functional group macro: per frame, else shared (PS3.3 C.7.6.16.1).
pub fn group<'a>(per_frame: Option<&'a Dataset>, shared: Option<&'a Dataset>, tag: Tag) -> Option<&'a Dataset> {
    per_frame.and_then(|d| item(d, tag)).or_else(|| shared.and_then(|d| item(d, tag)))
}
