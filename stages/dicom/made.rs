//! DICOM objects made for tests, and what the program reads from an archive of them.

use std::path::Path;

use dicom::core::value::PrimitiveValue;
use dicom::core::{Tag, VR};
use dicom::dictionary_std::tags as t;
use voxmill_schemas::tables::{InstanceRow, SeriesRow};

use super::names::Names;
use super::order::How;
use super::read::{self, Reading, Stacked};
use super::suv::Suv;
use super::tree::Dataset;
use super::write::{self, Encoding, put};
use super::{catalog, rows, walk};

/// Text elements.
pub fn text(d: &mut Dataset, values: &[(Tag, VR, &str)]) {
    values.iter().for_each(|(tag, vr, value)| put(d, *tag, *vr, *value));
}

/// US elements.
pub fn ints(d: &mut Dataset, values: &[(Tag, u16)]) {
    values.iter().for_each(|(tag, value)| put(d, *tag, VR::US, PrimitiveValue::from(*value)));
}

/// An object of unsigned 16-bit grey pixels, without place and pixels.
/// - `size`: rows and columns
pub fn object(sop_class: &str, modality: &str, size: [u16; 2], n_frames: u32) -> Dataset {
    let mut d = write::empty();
    text(
        &mut d,
        &[
            (t::SOP_CLASS_UID, VR::UI, sop_class),
            (t::SOP_INSTANCE_UID, VR::UI, "1.2.3.1"),
            (t::STUDY_INSTANCE_UID, VR::UI, "1.2.3"),
            (t::SERIES_INSTANCE_UID, VR::UI, "1.2.3.4"),
            (t::FRAME_OF_REFERENCE_UID, VR::UI, "1.2.3.5"),
            (t::PATIENT_ID, VR::LO, "P"),
            (t::MODALITY, VR::CS, modality),
            (t::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2"),
        ],
    );
    if n_frames > 1 {
        put(&mut d, t::NUMBER_OF_FRAMES, VR::IS, n_frames.to_string());
    }
    ints(
        &mut d,
        &[
            (t::SAMPLES_PER_PIXEL, 1),
            (t::ROWS, size[0]),
            (t::COLUMNS, size[1]),
            (t::BITS_ALLOCATED, 16),
            (t::BITS_STORED, 16),
            (t::HIGH_BIT, 15),
            (t::PIXEL_REPRESENTATION, 0),
        ],
    );
    d
}

/// A file of an object whose pixel data are fragments: an empty basic offset table, then the fragments of one frame after another.
pub fn encapsulated(d: Dataset, transfer_syntax: &str, frames: &[Vec<Vec<u8>>]) -> Vec<u8> {
    let plain = write::file(d, Encoding::ExplicitLittle).unwrap();
    // Preamble, DICM and the element that says how long the group of the file's own elements is.
    let group = u32::from_le_bytes(plain[140..144].try_into().unwrap()) as usize;
    let mut syntax = transfer_syntax.as_bytes().to_vec();
    syntax.resize(syntax.len().next_multiple_of(2), 0);
    let element = |tag: [u8; 4], vr: &[u8; 2], value: &[u8]| [&tag[..], vr, &(value.len() as u16).to_le_bytes(), value].concat();
    let syntax = element([2, 0, 0x10, 0], b"UI", &syntax);
    let item = |bytes: &[u8]| [&[0xfe, 0xff, 0, 0xe0], &(bytes.len() as u32).to_le_bytes()[..], bytes].concat();
    let mut out =
        [&plain[..132], &element([2, 0, 0, 0], b"UL", &(syntax.len() as u32).to_le_bytes()), &syntax, &plain[144 + group..]].concat();
    out.extend([0xe0, 0x7f, 0x10, 0, b'O', b'B', 0, 0, 0xff, 0xff, 0xff, 0xff]);
    out.extend(item(&[]));
    frames.iter().flatten().for_each(|f| out.extend(item(f)));
    out.extend([0xfe, 0xff, 0xdd, 0xe0, 0, 0, 0, 0]);
    out
}

/// The image volumes of an archive of these objects, or why one is none.
pub fn volumes(objects: Vec<Dataset>) -> Vec<Result<Stacked, String>> {
    volumes_with(objects, How { keeps_single: true, ..How::default() })
}

pub fn volumes_with(objects: Vec<Dataset>, how: How) -> Vec<Result<Stacked, String>> {
    volumes_in(archive(objects).path(), how)
}

/// A folder with a file of each.
pub fn archive(objects: Vec<Dataset>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (i, d) in objects.into_iter().enumerate() {
        std::fs::write(dir.path().join(format!("{i}.dcm")), write::file(d, Encoding::ExplicitLittle).unwrap()).unwrap();
    }
    dir
}

pub fn volumes_in(folder: &Path, how: How) -> Vec<Result<Stacked, String>> {
    volumes_by(folder, how, None)
}

/// In the order of the index.
pub fn volumes_by(folder: &Path, how: How, suv: Option<Suv>) -> Vec<Result<Stacked, String>> {
    let made = index(folder, &Names::Own);
    let volume = |s: &SeriesRow| {
        if let Some(why) = &s.refused {
            return Err(why.clone());
        }
        let of = made.instances.iter().filter(|i| (&i.series, i.volume) == (&s.series, s.volume));
        let is_repeat = s.repeat.is_some_and(|n| n > 0);
        let reading = Reading { how, limit_bytes: 1 << 30, keeps_colour: true, suv, is_repeat, step: &|_| Ok(()) };
        read::volume(&of.cloned().collect::<Vec<InstanceRow>>(), &reading).map_err(|e| crate::error::chain(&e))
    };
    made.series.iter().filter(|s| s.kind == "image").map(volume).collect()
}

/// The rows of an archive.
pub fn index(folder: &Path, names: &Names) -> rows::Made {
    let catalog = catalog::read_all(walk::walk(folder).unwrap(), names, None, &|_| Ok(())).unwrap();
    rows::of(&catalog, &Default::default(), names)
}
