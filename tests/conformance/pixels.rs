//! Every file that another reader decodes gives the voxels that it gives: `pixels.tsv`, made once by pydicom and dcmdjpeg.

use voxmill_stages::dicom::contents::FileRef;
use voxmill_stages::dicom::header;
use voxmill_stages::dicom::pixels::{self, How};
use voxmill_stages::volume::Voxels;

use crate::archive::{is_whole, root};

const TABLE: &str = include_str!("pixels.tsv");

#[test]
fn voxels_are_those_of_pydicom_and_dcmdjpeg() {
    let mut held = 0;
    let mut wrong = Vec::new();
    for line in TABLE.lines().filter(|l| !l.starts_with('#')) {
        let [name, kind, expected] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("a row of three: {line}") };
        let path = root().join(name);
        if !path.is_file() {
            continue;
        }
        held += 1;
        let found = match read(&path) {
            Ok(voxels) => format!("{}\t{}", voxels.dtype(), &hash(&voxels)[..32]),
            Err(why) => format!("refused\t{why}"),
        };
        if found != format!("{kind}\t{expected}") {
            wrong.push(format!("{name}: {found}, expected {kind} {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(held, if is_whole() { 108 } else { 13 });
}

pub fn read(path: &std::path::Path) -> Result<Voxels, String> {
    let h = header::read(path, None).unwrap().map_err(|why| format!("{why:?}"))?;
    let file = FileRef { path: path.into(), member: None, name: String::new(), content: String::new(), seen: String::new() };
    let frames: Vec<_> = (0..h.n_frames as usize).map(|frame| (0, frame)).collect();
    let how = How { keeps_colour: true, suv: None, is_repeat: false, step: &|_| Ok(()) };
    let decoded = pixels::decode(&[file], std::slice::from_ref(&h), &frames, h.rows as usize, h.columns as usize, &how);
    decoded.map(|d| d.voxels).map_err(|e| voxmill_stages::error::chain(&e).trim_start_matches(": ").to_string())
}

fn hash(voxels: &Voxels) -> String {
    let bytes: Vec<u8> = match voxels {
        Voxels::U8(v) => v.clone(),
        Voxels::I16(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Voxels::U16(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Voxels::F16(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Voxels::F32(v) => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    blake3::hash(&bytes).to_hex().to_string()
}
