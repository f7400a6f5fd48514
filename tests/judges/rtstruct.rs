//! RTSTRUCT that we write: dciodvfy finds no error, the plain rule in Python and our own reader see the very voxels.

use std::path::Path;

use voxmill_schemas::geometry::Zyx;
use voxmill_stages::dicom::phantom::{self, Phantom};
use voxmill_stages::dicom::seg::Code;
use voxmill_stages::dicom::write_rtstruct::{self, RoiOut, RtOut};
use voxmill_stages::dicom::{Fill, Holes, place, rtstruct, source};

use super::{ask, grid, here, judge, labels_of, python, rows};

const JUDGE: &str = include_str!("rtstruct.py");

/// Writes the labels of an image in both forms, and has them read by all.
fn comes_back(python: &str, image: &Path, labels: &[u8], names: &[&str], keyhole_syntax: &str) {
    let dir = tempfile::tempdir().unwrap();
    let rows = rows(image);
    let (geometry, grid) = grid(&rows);
    let series = source::open(&rows).unwrap();
    let slices = place::on_grid(&grid, &series.slices, &[]).unwrap();
    let kind = Code { value: "85756007".into(), scheme: "SCT".into(), meaning: "Tissue".into() };
    let roi =
        |(i, name): (usize, &&str)| RoiOut { id: i as u8 + 1, name: name.to_string(), kind: Some(kind.clone()), rgb: [255, 0, i as u8] };
    let rois: Vec<RoiOut> = names.iter().enumerate().map(roi).collect();
    for (holes, kinds) in [(Holes::Keyhole, "CLOSED_PLANAR"), (Holes::Xor, "CLOSEDPLANAR_XOR")] {
        let out = RtOut {
            series: &series,
            slices: &slices,
            size: geometry.size,
            labels,
            rois: &rois,
            holes,
            algorithm_name: "voxmill",
            series_description: "Voxmill segmentation",
        };
        let file = dir.path().join("rtstruct.dcm");
        let bytes = write_rtstruct::rtstruct(&out).unwrap();
        assert!(bytes == write_rtstruct::rtstruct(&out).unwrap(), "equal input gives equal bytes");
        std::fs::write(&file, bytes).unwrap();

        let read = rtstruct::read(&file, "RTSTRUCT").unwrap();
        assert_eq!(read.rois.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), names);
        // Keyholes mean the same to those who add contours up, and a contour of type XOR cuts out for them as well.
        for fill in [Fill::Xor, Fill::Union] {
            let mut again = vec![0; labels.len()];
            for (i, roi) in read.rois.iter().enumerate() {
                let drawn = rtstruct::draw(roi, &grid, fill, &mut |voxel| again[voxel] = i as u8 + 1);
                assert!(drawn.skipped.is_empty() && drawn.wrong_references == 0 && drawn.crossing_planes == 0, "{drawn:?}");
            }
            assert!(again == labels, "{holes:?} read by {fill:?}");
        }

        let told = judge(python, JUDGE, &file, image, labels);
        assert_eq!((told["verified"].as_bool(), told["errors"].as_array().map(Vec::len)), (Some(true), Some(0)), "{told}");
        assert_eq!((told["differ"].as_u64(), told["named"] == told["contours"]), (Some(0), true), "{told}");
        let syntax = if holes == Holes::Keyhole { keyhole_syntax } else { EXPLICIT };
        assert_eq!((&told["kinds"][0], told["syntax"].as_str()), (&kinds.into(), Some(syntax)), "{told}");
        for fact in ["study", "patient", "new_series", "same_series", "frame", "images"] {
            assert_eq!(told[fact], true, "{fact}: {told}");
        }
        assert!(told["off_mm"].as_f64().unwrap() < 1e-3, "{told}");
    }
}

const EXPLICIT: &str = "1.2.840.10008.1.2.1";
const IMPLICIT: &str = "1.2.840.10008.1.2";

#[test]
fn contours_of_a_real_case_come_back() {
    let Some(python) = python() else { return };
    let case = here("examples/data/hippocampus/hippocampus_004");
    let (_, labels) = labels_of(&rows(&case.join("MR")), &case.join("SEG_binary.dcm"));
    comes_back(&python, &case.join("MR"), &labels, &["Anterior", "Posterior"], EXPLICIT);
}

#[test]
fn contours_on_frames_of_one_file_come_back() {
    let Some(python) = python() else { return };
    let set = here("tests/data/dcmqi/segmentations/24x38x3");
    let image = set.join("multiframe/mf.dcm");
    let (_, labels) = labels_of(&rows(&image), &set.join("seg/label.seg"));
    comes_back(&python, &image, &labels, &["Liver"], EXPLICIT);
}

/// Single pixels, lines, rings in rings and regions that touch at corners; and an ROI without a voxel.
#[test]
fn shapes_that_no_organ_has_come_back() {
    let Some(python) = python() else { return };
    let case = here("examples/data/hippocampus/hippocampus_004/MR");
    let size = grid(&rows(&case)).0.size;
    let labels = drawn(size, |z, y, x| match z % 4 {
        0 => ((x * 7 + y * 13 + z * 5) % 11 < 3) as u8,
        1 => (y.abs_diff(size.y / 2).max(x.abs_diff(size.x / 2)) % 3) as u8,
        2 => u8::from(x == y % size.x || (y == 3 && x > 4)) * (1 + (x % 2) as u8),
        _ => ((x + y) % 2) as u8,
    });
    comes_back(&python, &case, &labels, &["One", "Two", "Nothing"], EXPLICIT);
}

/// A contour of more bytes than an explicit VR can count.
#[test]
fn a_very_long_contour_is_written_with_an_implicit_vr() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("archive");
    phantom::write(&out, &Phantom { patients: 1, slices: 2, size: 96, slice_spacing_mm: Some(2.0), seed: 7 }, &mut |_| {}).unwrap();
    let ct = std::fs::read_dir(&out).unwrap().next().unwrap().unwrap().path().join("CT");
    let labels = drawn(grid(&rows(&ct)).0.size, |z, y, x| u8::from(z == 0 && (x + y) % 2 == 0));
    comes_back(&python, &ct, &labels, &["Chessboard"], IMPLICIT);
}

/// Slices that lie askew: each contour on its own.
#[test]
fn contours_of_a_tilted_series_come_back() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("archive");
    phantom::write(&out, &Phantom { patients: 1, slices: 6, size: 40, slice_spacing_mm: Some(2.0), seed: 7 }, &mut |_| {}).unwrap();
    let ct = std::fs::read_dir(&out).unwrap().next().unwrap().unwrap().path().join("CT");
    assert_eq!(ask(&python, TILT, &[&ct]), 6);
    let (geometry, _) = grid(&rows(&ct));
    assert!((geometry.tilt_degrees() - 16.7).abs() < 0.1, "{}", geometry.tilt_degrees());
    let labels = drawn(geometry.size, |z, y, x| u8::from((y / 8 + x / 8 + z) % 3 == 0) * (1 + u8::from(x % 8 > 3)));
    comes_back(&python, &ct, &labels, &["Left", "Right"], EXPLICIT);
}

const TILT: &str = r#"
import glob, sys, pydicom
files = glob.glob(sys.argv[1] + "/*")
for f in files:
    d = pydicom.dcmread(f)
    d.ImagePositionPatient[1] += 0.3 * d.ImagePositionPatient[2]
    d.save_as(f)
print(len(files))
"#;

fn drawn(size: Zyx<usize>, value: impl Fn(usize, usize, usize) -> u8) -> Vec<u8> {
    let at = |i: usize| value(i / (size.y * size.x), i / size.x % size.y, i % size.x);
    (0..size.count()).map(at).collect()
}
