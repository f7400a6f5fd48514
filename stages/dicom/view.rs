//! A label file as a view of its bytes. A segmentation has thousands of items and a structure set millions of numbers: of each element it is kept where it
//! stands, twelve bytes, and its value is read when it is asked for. As trees (`tree`) they would take many times their size.

use std::path::Path;
use std::sync::LazyLock;

use dicom::core::Tag;
use dicom::core::VR;
use dicom::core::dictionary::{DataDictionary, DataDictionaryEntry, VirtualVr};
use dicom::dictionary_std::{StandardDataDictionary, tags as t};
use voxmill_schemas::tables::InstanceRow;

use super::bytes::Source;
use super::contents::{self, FileRef};
use super::header::{self, Header, NoHeader};
use super::level::Level;
use super::place::Plane;
use super::scan::{self, Element, Fault, Wanted};
use crate::error::Error;

/// A larger header is refused; the pixels are not part of it.
const MAX_BYTES: u64 = 512 << 20;

/// An opened label file.
pub struct Opened {
    pub header: Header,
    pub source: Source,
    bytes: Vec<u8>,
    elements: Vec<Element>,
    charset: Vec<String>,
}

/// A data set or an item.
#[derive(Clone, Copy)]
pub struct View<'a> {
    level: Level<'a>,
    charset: &'a [String],
}

/// What label files are asked for.
#[rustfmt::skip]
static WANTED: LazyLock<Wanted> = LazyLock::new(|| {
    let values = vec![
        t::SPECIFIC_CHARACTER_SET, t::SOP_CLASS_UID, t::ROWS, t::COLUMNS, t::NUMBER_OF_FRAMES, t::CONTENT_DATE, t::CONTENT_TIME,
        t::FRAME_OF_REFERENCE_UID, t::SEGMENTS_OVERLAP, t::DIMENSION_ORGANIZATION_TYPE, t::TOTAL_PIXEL_MATRIX_COLUMNS, t::SEGMENTATION_TYPE,
        t::SEGMENTATION_FRACTIONAL_TYPE, t::MAXIMUM_FRACTIONAL_VALUE, t::PIXEL_PADDING_VALUE, t::SEGMENT_NUMBER, t::SEGMENT_LABEL,
        t::SEGMENT_ALGORITHM_NAME, t::CODE_VALUE, t::LONG_CODE_VALUE, t::URN_CODE_VALUE, t::CODING_SCHEME_DESIGNATOR, t::CODE_MEANING,
        t::REFERENCED_SEGMENT_NUMBER, t::REFERENCED_FRAME_NUMBER, t::REFERENCED_SOP_INSTANCE_UID, t::IMAGE_POSITION_PATIENT,
        t::IMAGE_ORIENTATION_PATIENT, t::PIXEL_SPACING, t::SPACING_BETWEEN_SLICES, t::SLICE_THICKNESS, t::STRUCTURE_SET_DATE,
        t::STRUCTURE_SET_TIME, t::ROI_NUMBER, t::ROI_NAME, t::REFERENCED_FRAME_OF_REFERENCE_UID, t::REFERENCED_ROI_NUMBER,
        t::CONTOUR_GEOMETRIC_TYPE, t::CONTOUR_DATA,
    ];
    let sequences = vec![
        t::SEGMENT_SEQUENCE, t::SEGMENTED_PROPERTY_CATEGORY_CODE_SEQUENCE, t::SEGMENTED_PROPERTY_TYPE_CODE_SEQUENCE,
        t::SEGMENTED_PROPERTY_TYPE_MODIFIER_CODE_SEQUENCE, t::ANATOMIC_REGION_SEQUENCE, t::ANATOMIC_REGION_MODIFIER_SEQUENCE,
        t::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, t::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, t::PLANE_POSITION_SLIDE_SEQUENCE,
        t::PIXEL_MEASURES_SEQUENCE, t::PLANE_POSITION_SEQUENCE, t::PLANE_ORIENTATION_SEQUENCE, t::SEGMENT_IDENTIFICATION_SEQUENCE,
        t::DERIVATION_IMAGE_SEQUENCE, t::SOURCE_IMAGE_SEQUENCE, t::STRUCTURE_SET_ROI_SEQUENCE, t::ROI_CONTOUR_SEQUENCE, t::CONTOUR_SEQUENCE,
        t::CONTOUR_IMAGE_SEQUENCE,
    ];
    Wanted::new(values, sequences)
});

/// - `name`: what messages call the file
pub fn open(path: &Path, name: &str) -> Result<Opened, Error> {
    of_source(Source::open(path).map_err(unread(name))?, name)
}

/// A file of an index; refused when its bytes have changed since.
pub fn open_row(row: &InstanceRow) -> Result<Opened, Error> {
    of_source(contents::open(&FileRef::of(row))?, &row.file)
}

fn unread(name: &str) -> impl Fn(std::io::Error) -> Error {
    move |e| Error::Dicom { file: name.to_string(), why: format!("it cannot be read: {e}") }
}

fn of_source(source: Source, name: &str) -> Result<Opened, Error> {
    let wrong = |why: String| Error::Dicom { file: name.to_string(), why };
    let (header, bytes) = up_to_pixels(&source, name)?;
    let elements = match scan::scan(&bytes, source.len(), &WANTED) {
        Ok(scan) => scan.elements,
        Err(Fault::Broken { why, .. }) => return Err(wrong(why)),
        Err(Fault::NotDicom | Fault::NeedsMore) => return Err(wrong("it is not DICOM".into())),
    };
    let charset = Level::new(&bytes, &elements, header.is_big_endian).texts(t::SPECIFIC_CHARACTER_SET);
    Ok(Opened { header, source, bytes, elements, charset })
}

/// The header of a file and its bytes up to the value of the pixel data.
pub fn up_to_pixels(source: &Source, name: &str) -> Result<(Header, Vec<u8>), Error> {
    let wrong = |why: String| Error::Dicom { file: name.to_string(), why };
    let header = match header::of_source(source).map_err(unread(name))? {
        Ok(header) => header,
        Err(NoHeader::Broken { why, .. }) => return Err(wrong(why)),
        Err(NoHeader::NotDicom) => return Err(wrong("it is not DICOM".into())),
        Err(NoHeader::Empty) => return Err(wrong("it is empty".into())),
    };
    let end = header.pixel.map_or(source.len(), |p| p.offset);
    if end > MAX_BYTES {
        return Err(Error::TooLarge { what: name.into(), wanted_bytes: end, limit_bytes: MAX_BYTES });
    }
    let bytes = source.read_at(0, end as usize).map_err(unread(name))?;
    Ok((header, bytes))
}

impl Opened {
    pub fn data(&self) -> View<'_> {
        View { level: Level::new(&self.bytes, &self.elements, self.header.is_big_endian), charset: &self.charset }
    }
}

impl<'a> View<'a> {
    pub fn has(self, tag: Tag) -> bool {
        !self.level.bytes(tag).is_empty()
    }

    /// A text without the padding of DICOM; `None` when nothing is left.
    pub fn text(self, tag: Tag) -> Option<String> {
        Some(self.level.free_text(tag, self.charset)).filter(|text| !text.is_empty())
    }

    pub fn int(self, tag: Tag) -> Option<i64> {
        let is_text = StandardDataDictionary.by_tag(tag).is_some_and(|e| e.vr() == VirtualVr::Exact(VR::IS));
        match self.level.bytes(tag).len() {
            _ if is_text => self.level.int(tag),
            4.. => self.level.ul(tag).first().copied(),
            _ => self.level.us(tag).map(i64::from),
        }
    }

    /// All numbers of a value; `None` where it holds none, or something else.
    pub fn numbers(self, tag: Tag) -> Option<Vec<f64>> {
        let text = self.level.bytes(tag);
        let n = text.iter().filter(|b| **b == b'\\').count() + 1;
        let v: Vec<f64> = self.level.floats(tag).collect();
        (!text.is_empty() && v.len() == n).then_some(v)
    }

    pub fn float(self, tag: Tag) -> Option<f64> {
        self.numbers(tag).filter(|v| v.len() == 1).map(|v| v[0])
    }

    /// The items of a sequence; none where the tag is absent or holds something else.
    pub fn items(self, tag: Tag) -> impl Iterator<Item = View<'a>> {
        self.level.items(tag).map(move |level| View { level, charset: self.charset })
    }

    pub fn item(self, tag: Tag) -> Option<View<'a>> {
        self.items(tag).next()
    }
}

/// The item of a functional group macro: per frame, else shared (PS3.3 C.7.6.16.1).
pub fn group<'a>(per_frame: View<'a>, shared: Option<View<'a>>, tag: Tag) -> Option<View<'a>> {
    per_frame.item(tag).or_else(|| shared?.item(tag))
}

/// The plane of a frame from its functional groups, `None` where position, orientation or spacing is missing or nonsense.
pub fn frame_plane(per_frame: View, shared: Option<View>) -> Option<Plane> {
    let numbers = |sequence, tag| group(per_frame, shared, sequence)?.numbers(tag);
    Plane::new(
        numbers(t::PLANE_POSITION_SEQUENCE, t::IMAGE_POSITION_PATIENT)?.try_into().ok()?,
        numbers(t::PLANE_ORIENTATION_SEQUENCE, t::IMAGE_ORIENTATION_PATIENT)?.try_into().ok()?,
        numbers(t::PIXEL_MEASURES_SEQUENCE, t::PIXEL_SPACING)?.try_into().ok()?,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(bytes: Vec<u8>) -> Opened {
        of_source(Source::of_raw(bytes), "f").expect("it is read")
    }

    #[test]
    fn what_a_writer_called_unknown_is_read_by_its_tag() {
        // ROIContourSequence, its item, ContourSequence as UN, in it implicit VR: an item with ContourData.
        let data = b"\x06\x30\x50\x00\x06\x00\x00\x001\\2\\3 ";
        let item = [b"\xfe\xff\x00\xe0", &(data.len() as u32).to_le_bytes()[..], data].concat();
        let contours = [b"\x06\x30\x40\x00UN\0\0", &(item.len() as u32).to_le_bytes()[..], &item].concat();
        let body = [b"\x06\x30\x39\x00SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff", &contours[..]].concat();
        let end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0";
        let class = b"\x08\x00\x16\x00UI\x04\x001.2\0";
        let o = opened([&class[..], &body, end].concat());
        let contour = o.data().item(t::ROI_CONTOUR_SEQUENCE).and_then(|roi| roi.item(t::CONTOUR_SEQUENCE)).expect("an item");
        assert_eq!(contour.numbers(t::CONTOUR_DATA), Some(vec![1.0, 2.0, 3.0]));
    }

    #[test]
    fn numbers_are_read_whole_or_not_at_all() {
        let of = |data: &[u8]| {
            let class = &b"\x08\x00\x16\x00UI\x04\x001.2\0"[..];
            let o = opened([class, b"\x28\x00\x30\x00DS", &(data.len() as u16).to_le_bytes(), data].concat());
            o.data().numbers(t::PIXEL_SPACING)
        };
        assert_eq!(of(b"0.5\\ 2e0 "), Some(vec![0.5, 2.0]));
        assert_eq!((of(b"0.5\\x "), of(b"1\\inf "), of(b"")), (None, None, None));
    }
}
