//! The header of a DICOM file as plain data: all that grouping, geometry and pixel decoding ask for, and nothing that names a patient but PatientID.
//! Multi-frame functional groups (PS3.3 C.7.6.16) are folded into one [`FrameHeader`] a frame, so that classic and enhanced files look alike below here.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::Arc;

use dicom::dictionary_std::tags as t;
use serde::{Deserialize, Serialize};

use super::bytes::{Source, Wrapping};
use super::fields::{WANTED, header_of};
use super::identity::Identity;
use super::level::Level;
use super::mosaic::Mosaic;
use super::scan::{self, Element, Fault, PixelElement, Scan};

/// A DICOM file up to its pixel data. Sizes are as the file states them: nothing is allocated by them here. What stands in [`Common`] is asked as if it
/// stood here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// One piece of memory for all slices of a series that agree in it. Packed apart ([`super::pattern`]).
    #[serde(skip)]
    pub common: Arc<Common>,
    pub sop_instance: String,
    pub instance_number: Option<i64>,
    pub acquisition_number: Option<i64>,
    pub temporal_position: Option<i64>,
    /// Seconds of the day, for ordering repeats of one position.
    pub acquisition_time_s: Option<f64>,
    pub content_time_s: Option<f64>,
    /// One a frame where functional groups say so, else one for all.
    pub frames: Vec<FrameHeader>,
    pub pixel: Option<PixelElement>,
    /// ExtendedOffsetTable, empty where absent.
    pub extended_offsets: Vec<u64>,
}

/// What the slices of a series say alike, as a rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Common {
    /// UID; where the file has no meta group, the one that its bytes show.
    pub transfer_syntax: String,
    pub is_big_endian: bool,
    pub wrapping: Wrapping,
    pub sop_class: String,
    /// Names of the UIDs that are none by PS3.5 section 9.1 (too long, leading zeros, other characters), kept as found.
    pub odd_uids: Vec<String>,
    pub study: String,
    pub series: String,
    pub patient: String,
    pub modality: String,
    pub description: String,
    pub body_part: String,
    pub manufacturer: String,
    pub frame_of_reference: String,
    pub image_type: Vec<String>,
    pub rows: u32,
    pub columns: u32,
    /// NumberOfFrames, 1 where absent.
    pub n_frames: u32,
    pub samples: u32,
    pub photometric: String,
    /// PlanarConfiguration: 1 where samples come plane by plane.
    pub planar: u32,
    pub bits_allocated: u32,
    pub bits_stored: u32,
    pub high_bit: u32,
    pub is_signed: bool,
    /// PixelPaddingValue, and PixelPaddingRangeLimit where it is a range (stored values).
    pub padding: Option<i64>,
    pub padding_limit: Option<i64>,
    /// RescaleType or, for PET, Units.
    pub unit: String,
    pub has_modality_lut: bool,
    /// ImagerPixelSpacing, between rows and between columns: at the detector, not in the patient (projection images).
    pub imager_spacing_mm: Option<[f64; 2]>,
    /// FrameTimeVector, or FrameTime alone: milliseconds from frame to frame of a loop.
    pub frame_times_ms: Vec<f64>,
    /// This file holds a part of one object.
    pub concatenation: Option<Concatenation>,
    /// DimensionIndexPointer, one for each of a frame's [`FrameHeader::dimensions`].
    pub dimension_pointers: Vec<u32>,
    /// A Siemens mosaic: `frames` are the tiles of its one picture; or why it cannot be cut.
    pub mosaic: Option<Result<Mosaic, String>>,
    /// Why the object is no volume whatever its frames say.
    pub refused: Option<String>,
    /// Items of the per-frame functional groups, whether or not they became frames.
    pub n_frame_groups: u32,
    /// Labels only: series and instances they were drawn on, names of segments or ROIs.
    pub references: Vec<String>,
    pub referenced_instances: Vec<String>,
    pub labels: Vec<String>,
    /// How many of `labels` were replaced, because they held what tells who the patient is.
    pub hidden_labels: u32,
    /// Under pseudonyms: which of `labels` are not asked again, being replaced or the words of a public code.
    pub is_settled: Vec<bool>,
    /// Under pseudonyms: the marks of who the patient is ([`Identity::marks`]), one after another.
    pub marks: String,
    /// Until the header is hidden: what the file says of who the patient is, and the labels that are the words of a public code.
    #[serde(skip)]
    pub identity: Identity,
    #[serde(skip)]
    pub coded_labels: Vec<String>,
}

impl From<Common> for Header {
    fn from(common: Common) -> Self {
        Header { common: Arc::new(common), ..Header::default() }
    }
}

impl Deref for Header {
    type Target = Common;
    fn deref(&self) -> &Common {
        &self.common
    }
}

impl DerefMut for Header {
    fn deref_mut(&mut self) -> &mut Common {
        Arc::make_mut(&mut self.common)
    }
}

/// One of several files that hold the frames of one object (PS3.3 C.7.6.16.2.2.4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Concatenation {
    pub uid: String,
    /// InConcatenationNumber, from 1.
    pub number: i64,
    /// InConcatenationTotalNumber.
    pub total: Option<i64>,
    /// ConcatenationFrameOffsetNumber: frames in the parts before this one.
    pub offset: Option<i64>,
}

/// What may differ from frame to frame. No `skip_serializing_if` here: a header is remembered by the order of its fields ([`super::pack`]).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FrameHeader {
    /// ImagePositionPatient: centre of the first voxel, LPS mm.
    pub position: Option<[f64; 3]>,
    /// ImageOrientationPatient: direction of growing column index, then of growing row index.
    pub orientation: Option<[f64; 6]>,
    /// PixelSpacing: between rows (y), between columns (x).
    pub spacing_mm: Option<[f64; 2]>,
    pub thickness_mm: Option<f64>,
    pub between_mm: Option<f64>,
    pub slope: Option<f64>,
    pub intercept: Option<f64>,
    pub frame_type: Vec<String>,
    pub stack: Option<String>,
    pub in_stack: Option<i64>,
    pub temporal_index: Option<i64>,
    pub echo_time_ms: Option<f64>,
    pub echo_number: Option<i64>,
    pub b_value: Option<f64>,
    pub trigger_ms: Option<f64>,
    /// FrameAcquisitionDateTime, as [`Header::acquisition_time_s`].
    pub acquired_s: Option<f64>,
    /// DimensionIndexValues.
    pub dimensions: Vec<i64>,
}

/// Why a file gives no header.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum NoHeader {
    NotDicom,
    Empty,
    /// What is wrong, and the series (study, series UID) where that much could be read.
    Broken {
        why: String,
        series: Option<(String, String)>,
    },
}

/// No header of a real object is larger; a file that claims so is refused before it fills memory.
const MAX_HEADER_BYTES: usize = 512 << 20;

/// Reads the header of a file on disk: a small prefix first, more only where the header is longer.
pub fn read(path: &Path, member: Option<&str>) -> std::io::Result<Result<Header, NoHeader>> {
    of_source(&Source::open_at(path, member)?)
}

/// The header of an opened (and, where it was compressed as a whole, unwrapped) file.
pub fn of_source(source: &Source) -> std::io::Result<Result<Header, NoHeader>> {
    let mut buffer = Vec::new();
    of_prefixes(Some(source.len()), source.wrapping(), &mut buffer, |n, buffer| {
        let there = n.min(source.len() as usize);
        let have = buffer.len();
        buffer.resize(there, 0);
        source.read_into(have as u64, &mut buffer[have..])
    })
}

/// First bytes of a file that are looked at; most headers of slices end within them.
pub const FIRST_BYTES: usize = 8 << 10;

/// The header of a file of which longer and longer beginnings are asked for.
/// - `len`: of the (unwrapped) file, where it is known
/// - `buffer`: the beginning so far; `more` fills it up to `n` bytes, or to the end of the file
pub fn of_prefixes(
    len: Option<u64>,
    wrapping: Wrapping,
    buffer: &mut Vec<u8>,
    more: impl FnMut(usize, &mut Vec<u8>) -> std::io::Result<()>,
) -> std::io::Result<Result<Header, NoHeader>> {
    of_scan(len, FIRST_BYTES, buffer, more, |bytes, s| checked(bytes, &s, wrapping))
}

/// The same, with what is made of a file that could be scanned.
/// - `first`: bytes to begin with
pub(super) fn of_scan<T>(
    len: Option<u64>,
    first: usize,
    buffer: &mut Vec<u8>,
    mut more: impl FnMut(usize, &mut Vec<u8>) -> std::io::Result<()>,
    mut make: impl FnMut(&[u8], Scan) -> Result<T, NoHeader>,
) -> std::io::Result<Result<T, NoHeader>> {
    let mut want = first;
    loop {
        if buffer.len() < want {
            more(want, buffer)?;
        }
        let is_whole = buffer.len() < want || len == Some(buffer.len() as u64);
        if buffer.is_empty() {
            return Ok(Err(NoHeader::Empty));
        }
        let file_len = if is_whole { buffer.len() as u64 } else { len.unwrap_or(u64::MAX) };
        match scan::scan(buffer, file_len, &WANTED) {
            Err(Fault::NeedsMore) if !is_whole && want < MAX_HEADER_BYTES => want = (want * 8).min(MAX_HEADER_BYTES),
            Err(Fault::NeedsMore) => {
                let why = format!("no pixel data or end within {} bytes of header", buffer.len());
                return Ok(Err(NoHeader::Broken { why, series: None }));
            }
            Err(Fault::NotDicom) => return Ok(Err(NoHeader::NotDicom)),
            Err(Fault::Broken { why, so_far }) => return Ok(Err(broken(buffer, why, &so_far))),
            Ok(s) => return Ok(make(buffer, s)),
        }
    }
}

/// What there is to say of a file that breaks off after these elements.
fn broken(bytes: &[u8], why: String, so_far: &[Element]) -> NoHeader {
    // Bytes that break before any SOP class was seen were never DICOM (a text that begins like a group number).
    if so_far.is_empty() && bytes.get(128..132) != Some(b"DICM") {
        return NoHeader::NotDicom;
    }
    let uids = Level::new(bytes, so_far, false);
    let (study, series) = (uids.text(t::STUDY_INSTANCE_UID), uids.text(t::SERIES_INSTANCE_UID));
    NoHeader::Broken { why, series: (!series.is_empty()).then_some((study, series)) }
}

pub(super) fn checked(bytes: &[u8], s: &Scan, wrapping: Wrapping) -> Result<Header, NoHeader> {
    let mut h = header_of(bytes, s);
    h.wrapping = wrapping;
    if !h.sop_class.is_empty() || !h.series.is_empty() {
        return Ok(h);
    }
    let is_marked = [bytes.get(128..132), bytes.get(..4)].contains(&Some(b"DICM"));
    if !is_marked && s.transfer_syntax.is_empty() && s.elements.is_empty() {
        return Err(NoHeader::NotDicom);
    }
    Err(NoHeader::Broken { why: "neither SOPClassUID nor SeriesInstanceUID".into(), series: None })
}

impl Header {
    /// Rows and columns of a slice: of the picture, or of a tile of a mosaic.
    pub fn slice_size(&self) -> [u32; 2] {
        match &self.mosaic {
            Some(Ok(m)) => [m.rows, m.columns],
            _ => [self.rows, self.columns],
        }
    }

    /// Whether each frame has a header of its own, so that it is known where each lies.
    pub fn has_frame_headers(&self) -> bool {
        matches!(self.mosaic, Some(Ok(_)))
            || (self.frames.len() == self.n_frames as usize && [0, self.n_frames].contains(&self.n_frame_groups))
    }

    /// Bytes of one frame as stored uncompressed; `None` when that number does not exist.
    pub fn frame_bytes(&self) -> Option<u64> {
        let bits = (self.rows as u64)
            .checked_mul(self.columns as u64)?
            .checked_mul(self.samples as u64)?
            .checked_mul(self.bits_allocated as u64)?;
        Some(bits.div_ceil(8)).filter(|b| *b > 0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use dicom::core::Tag;

    use super::*;

    fn element(tag: Tag, vr: &[u8; 2], value: &[u8]) -> Vec<u8> {
        let mut b = [tag.0.to_le_bytes(), tag.1.to_le_bytes()].concat();
        b.extend(vr);
        if vr == b"SQ" {
            b.extend([0, 0]);
            b.extend((value.len() as u32).to_le_bytes());
        } else {
            b.extend((value.len() as u16).to_le_bytes());
        }
        b.extend(value);
        b
    }

    fn item(elements: &[Vec<u8>]) -> Vec<u8> {
        let body = elements.concat();
        [vec![0xfe, 0xff, 0x00, 0xe0], (body.len() as u32).to_le_bytes().to_vec(), body].concat()
    }

    fn parse_all(bytes: &[u8]) -> Header {
        of_source(&Source::of_raw(bytes.to_vec())).unwrap().unwrap()
    }

    #[test]
    fn uids_lose_their_padding_and_numbers_their_spaces() {
        let bytes = [
            element(t::SOP_CLASS_UID, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0"),
            element(t::SERIES_INSTANCE_UID, b"UI", b"1.02.3\0\0 "),
            element(t::INSTANCE_NUMBER, b"IS", b" 12 "),
            element(t::IMAGE_POSITION_PATIENT, b"DS", b"-1.5\\ 2e1\\3 "),
            element(t::PIXEL_SPACING, b"DS", b"0.7\\x "),
        ]
        .concat();
        let h = parse_all(&bytes);
        assert_eq!((h.series.as_str(), h.instance_number), ("1.02.3", Some(12)));
        assert_eq!(h.frames[0].position, Some([-1.5, 20.0, 3.0]));
        assert_eq!(h.frames[0].spacing_mm, None, "half a spacing is none");
    }

    #[test]
    fn a_frame_takes_its_own_group_before_the_shared_one() {
        let position = |z: &str| {
            let p = element(t::IMAGE_POSITION_PATIENT, b"DS", format!("0\\0\\{z}").as_bytes());
            item(&[element(t::PLANE_POSITION_SEQUENCE, b"SQ", &item(&[p]))])
        };
        let measures = item(&[element(t::PIXEL_SPACING, b"DS", b"2\\3 ")]);
        let shared = item(&[element(t::PIXEL_MEASURES_SEQUENCE, b"SQ", &measures)]);
        let bytes = [
            element(t::SOP_CLASS_UID, b"UI", b"1.2.840.10008.5.1.4.1.1.4.1\0"),
            element(t::NUMBER_OF_FRAMES, b"IS", b"2 "),
            element(t::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, b"SQ", &shared),
            element(t::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, b"SQ", &[position("4 "), position("6 ")].concat()),
        ]
        .concat();
        let h = parse_all(&bytes);
        assert_eq!(h.frames.iter().map(|f| f.position.unwrap()[2]).collect::<Vec<_>>(), [4.0, 6.0]);
        assert!(h.frames.iter().all(|f| f.spacing_mm == Some([2.0, 3.0])));
    }

    #[test]
    fn what_frames_share_is_not_held_once_a_frame_where_it_is_absurd() {
        let long = item(&[element(t::FRAME_TYPE, b"CS", &b"A\\".repeat(9_000)), element(t::STACK_ID, b"SH", b"1 ")]);
        let shared = item(&[element(t::CT_IMAGE_FRAME_TYPE_SEQUENCE, b"SQ", &long), element(t::FRAME_CONTENT_SEQUENCE, b"SQ", &long)]);
        let bytes = [
            element(t::SOP_CLASS_UID, b"UI", b"1.2.840.10008.5.1.4.1.1.2.1\0"),
            element(t::NUMBER_OF_FRAMES, b"IS", b"9 "),
            element(t::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, b"SQ", &shared),
            element(t::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, b"SQ", &item(&[]).repeat(9)),
        ]
        .concat();
        let h = parse_all(&bytes);
        assert_eq!(h.frames.len(), 9);
        assert!(h.frames.iter().all(|f| f.frame_type.is_empty() && f.stack.as_deref() == Some("1")));
    }

    #[test]
    fn times_keep_their_order() {
        let at = |s: &str| {
            let bytes = [element(t::SOP_CLASS_UID, b"UI", b"1.2"), element(t::ACQUISITION_TIME, b"TM", s.as_bytes())].concat();
            parse_all(&bytes).acquisition_time_s
        };
        assert_eq!(at("101530.25"), Some(36930.25));
        assert_eq!(at("1015"), Some(36900.0));
        assert_eq!(at(""), None);
    }
}
