//! DICOM SEG that we write: dciodvfy finds no error, highdicom reads the same mask on the original slices.

use serde_json::Value;
use voxmill_stages::dicom::phantom::{self, Phantom};
use voxmill_stages::dicom::seg::{self, Code};
use voxmill_stages::dicom::write::Encoding;
use voxmill_stages::dicom::write_seg::{self, SegOut, SegmentOut};
use voxmill_stages::dicom::{place, source};

use super::{ask, here, judge, labels_of, python, rows};

const JUDGE: &str = include_str!("seg.py");

fn is_right(told: &Value, kind: &str, n_labelled: usize) {
    assert_eq!(told["verified"], true, "dciodvfy: {told}");
    assert_eq!(told["errors"].as_array().unwrap().len(), 0, "{told}");
    assert_eq!((told["differ"].as_u64(), told["moved"].as_u64()), (Some(0), Some(0)), "{told}");
    assert_eq!((told["type"].as_str(), told["labelled"].as_u64()), (Some(kind), Some(n_labelled as u64)));
    assert!(told["study"] == true && told["patient"] == true && told["new_series"] == true, "{told}");
}

#[test]
fn judges_accept_the_labels_of_the_phantom() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("archive");
    phantom::write(&out, &Phantom { patients: 1, slices: 20, size: 40, slice_spacing_mm: None, seed: 7 }, &mut |_| {}).unwrap();
    let patient = std::fs::read_dir(&out).unwrap().next().unwrap().unwrap().path();
    let (ct, file) = (patient.join("CT"), patient.join("SEG.dcm"));
    let (_, labels) = labels_of(&rows(&ct), &file);
    let n = labels.iter().filter(|v| **v > 0).count();
    assert!(n > 500, "{n}");
    is_right(&judge(&python, JUDGE, &file, &ct, &labels), "BINARY", n);
}

#[test]
fn judges_accept_an_export_of_a_real_case() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let case = here("examples/data/hippocampus/hippocampus_004");
    let (mr, rows) = (case.join("MR"), rows(&case.join("MR")));
    let (grid, labels) = labels_of(&rows, &case.join("SEG_binary.dcm"));
    let series = source::open(&rows).unwrap();
    let code = |value: &str, meaning: &str| Code { value: value.into(), scheme: "SCT".into(), meaning: meaning.into() };
    let segments = [(1, "Anterior"), (2, "Posterior")].map(|(id, label)| SegmentOut {
        id,
        label: label.into(),
        category: code("91723000", "Anatomical Structure"),
        kind: code("85756007", "Tissue"),
        rgb: [255, 20 * id, 0],
    });
    let slices = place::on_grid(&grid, &series.slices, &[]).unwrap();
    let n = labels.iter().filter(|v| **v > 0).count();
    for (is_labelmap, kind) in [(false, "BINARY"), (true, "LABELMAP")] {
        for encoding in [Encoding::ExplicitLittle, Encoding::ImplicitLittle] {
            let out = SegOut {
                series: &series,
                slices: &slices,
                size: grid.geometry.size,
                labels: &labels,
                segments: &segments,
                is_labelmap,
                is_manual: false,
                algorithm_name: "voxmill",
                series_description: "Voxmill segmentation",
                encoding,
            };
            let bytes = write_seg::seg(&out).unwrap();
            assert!(bytes == write_seg::seg(&out).unwrap(), "equal input gives equal bytes");
            let file = dir.path().join("seg.dcm");
            std::fs::write(&file, bytes).unwrap();
            is_right(&judge(&python, JUDGE, &file, &mr, &labels), kind, n);
            let (_, again) = labels_of(&rows, &file);
            assert!(again == labels, "{kind} {encoding:?} is read back as it was written");
        }
    }
}

/// A source of several frames: each plane names the frame it was drawn on.
#[test]
fn a_segmentation_of_a_multi_frame_image_names_its_frames() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let set = here("tests/data/dcmqi/segmentations/24x38x3");
    let image = set.join("multiframe/mf.dcm");
    let rows = rows(&image);
    let (grid, labels) = labels_of(&rows, &set.join("seg/label.seg"));
    assert_eq!(labels.iter().filter(|v| **v > 0).count(), 315);
    // On every slice: the liver, and a pattern.
    let labels: Vec<u8> = labels.iter().enumerate().map(|(i, v)| *v | u8::from(i % 7 == 0)).collect();
    let series = source::open(&rows).unwrap();
    let code = |value: &str, meaning: &str| Code { value: value.into(), scheme: "SCT".into(), meaning: meaning.into() };
    let segments = [SegmentOut {
        id: 1,
        label: "Liver".into(),
        category: code("91723000", "Anatomical Structure"),
        kind: code("10200004", "Liver"),
        rgb: [221, 130, 101],
    }];
    let slices = place::on_grid(&grid, &series.slices, &[]).unwrap();
    for is_labelmap in [false, true] {
        let out = SegOut {
            series: &series,
            slices: &slices,
            size: grid.geometry.size,
            labels: &labels,
            segments: &segments,
            is_labelmap,
            is_manual: false,
            algorithm_name: "voxmill",
            series_description: "Voxmill segmentation",
            encoding: Encoding::ExplicitLittle,
        };
        let file = dir.path().join("seg.dcm");
        std::fs::write(&file, write_seg::seg(&out).unwrap()).unwrap();
        assert!(labels_of(&rows, &file).1 == labels);
        let told = ask(&python, FRAMES, &[&file, &image]);
        assert_eq!((&told["errors"], &told["misplaced"], &told["frames"]), (&serde_json::json!([]), &0.into(), &3.into()), "{told}");
    }
}

const FRAMES: &str = r#"
import json, pathlib, subprocess, sys, pydicom
seg, image = (pydicom.dcmread(f) for f in sys.argv[1:])
misplaced = 0
for f in seg.PerFrameFunctionalGroupsSequence:
    s = f.DerivationImageSequence[0].SourceImageSequence[0]
    source = image.PerFrameFunctionalGroupsSequence[int(s.ReferencedFrameNumber) - 1]
    same = source.PlanePositionSequence[0].ImagePositionPatient == f.PlanePositionSequence[0].ImagePositionPatient
    misplaced += not (same and s.ReferencedSOPInstanceUID == image.SOPInstanceUID)
verify = subprocess.run([str(pathlib.Path(sys.executable).parent / "dciodvfy"), sys.argv[1]], capture_output=True, text=True)
errors = [l for l in (verify.stdout + verify.stderr).splitlines() if l.startswith("Error")]
print(json.dumps({"misplaced": misplaced, "frames": int(seg.NumberOfFrames), "errors": errors}))
"#;

/// The test data of highdicom: binary, fractional, overlapping, a labelmap with a palette, without a frame of reference; and slides, which are refused.
#[test]
fn every_frame_is_what_highdicom_reads() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("VOXMILL_DATA").map_or(here("tests/data"), std::path::PathBuf::from).join("highdicom");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.file_name().unwrap().to_string_lossy().starts_with("seg_"));
    files.sort();
    let arguments: Vec<&std::path::Path> = std::iter::once(dir.path()).chain(files.iter().map(|f| f.as_path())).collect();
    let told = ask(&python, include_str!("frames.py"), &arguments);
    let (mut read, mut refused) = (0, 0);
    for (i, (file, told)) in files.iter().zip(told.as_array().unwrap()).enumerate() {
        let s = match seg::read(file, "SEG") {
            Ok(s) => s,
            Err(e) => {
                assert!(told["slide"] == true && e.to_string().contains("microscope slide"), "{told}: {e}");
                refused += 1;
                continue;
            }
        };
        assert_eq!(told["slide"], false, "{told}");
        let wanted = std::fs::read(dir.path().join(format!("{i}.raw"))).unwrap();
        let n = s.rows * s.columns;
        assert_eq!(told["shape"], serde_json::json!([s.frames.len(), s.rows, s.columns]));
        for (f, wanted) in wanted.chunks(n).enumerate() {
            assert!(s.values(f).unwrap().iter().zip(wanted).all(|(a, b)| *a == u16::from(*b)), "{told}: frame {f}");
            assert_eq!(told["segments"][f].as_u64(), s.frames[f].segment.map(u64::from), "{told}: frame {f}");
        }
        read += 1;
    }
    assert!(read >= 5 && refused >= 3, "{read} read, {refused} refused");
}
