//! `voxmill convert`: an archive becomes files without a YAML file, the counts reconcile, and nothing is done twice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::bench::{Bench, Ran};

fn convert(b: &Bench, args: &[&str]) -> Ran {
    b.voxmill(&[&["convert", "archive", "out", "--json", "--quiet"], args].concat())
}

fn json(r: &Ran) -> Value {
    serde_json::from_str(&r.stdout).unwrap_or_else(|e| panic!("{e} in {}{}", r.stdout, r.stderr))
}

/// Files under OUT without the workspace, by their relative path, with their hash.
fn files(b: &Bench) -> BTreeMap<String, String> {
    let root = b.path("out");
    let mut out = BTreeMap::new();
    let mut todo = vec![root.clone()];
    while let Some(p) = todo.pop() {
        if p.is_dir() {
            todo.extend(std::fs::read_dir(p).unwrap().map(|e| e.unwrap().path()).filter(|p| !p.ends_with(".voxmill")));
        } else {
            let name = p.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
            out.insert(name, blake3::hash(&std::fs::read(&p).unwrap()).to_hex().to_string());
        }
    }
    out
}

fn ending<'a>(all: &'a BTreeMap<String, String>, end: &str) -> Vec<&'a String> {
    all.keys().filter(|f| f.ends_with(end)).collect()
}

fn reconciles(told: &Value) {
    let n = |path: &str| told.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} in {told}"));
    assert_eq!(n("/files/seen"), n("/files/indexed") + n("/files/skipped") + n("/files/failed"), "{told}");
    for kind in ["images", "labels"] {
        let part = |what: &str| n(&format!("/{kind}/{what}"));
        assert_eq!(part("all"), part("converted") + part("refused") + part("left_out"), "{told}");
    }
}

#[test]
fn an_archive_becomes_nifti_with_labels_and_a_second_run_makes_nothing() {
    let b = Bench::new(2);
    let told = json(&convert(&b, &["--to", "nifti", "--labels"]).expect(0));
    reconciles(&told);
    assert_eq!((told["images"]["converted"].as_u64(), told["images"]["refused"].as_u64()), (Some(2), Some(0)), "{told}");
    let before = files(&b);
    assert_eq!((ending(&before, "_labels.nii.gz").len(), ending(&before, ".nii.gz").len()), (2, 4), "{before:?}");
    for name in ["report.html", "series.parquet", "files.parquet", "instances.parquet"] {
        assert!(before.contains_key(name), "{name}");
    }
    let sidecar = ending(&before, ".json")[0];
    let told: Value = serde_json::from_slice(&std::fs::read(b.path("out").join(sidecar)).unwrap()).unwrap();
    let classes: Vec<&String> = told["classes"].as_object().unwrap().keys().collect();
    assert_eq!(classes, ["Anterior", "Posterior"]);
    convert(&b, &["--to", "nifti", "--labels"]).expect(0);
    assert_eq!(before, files(&b));
    // One more case: what stood there stays as it is.
    b.add_case(2);
    convert(&b, &["--to", "nifti", "--labels"]).expect(0);
    let after = files(&b);
    assert_eq!(ending(&after, "_labels.nii.gz").len(), 3);
    assert!(ending(&before, ".nii.gz").iter().all(|f| after[*f] == before[*f]));
    // And one less: its files go, those of others stay.
    std::fs::write(b.path("out/mine.txt"), "mine").unwrap();
    let case = std::fs::read_dir(b.archive()).unwrap().map(|e| e.unwrap().path()).max().unwrap();
    std::fs::remove_dir_all(case).unwrap();
    convert(&b, &["--to", "nifti", "--labels"]).expect(0);
    assert_eq!(ending(&files(&b), "_labels.nii.gz").len(), 2);
    assert!(b.path("out/mine.txt").is_file());
}

#[test]
fn every_format_stands_beside_the_others() {
    let b = Bench::new(1);
    for (to, end) in [("ome-zarr", ".ome.zarr/zarr.json"), ("nifti", ".nii.gz"), ("dicom", ".dcm")] {
        reconciles(&json(&convert(&b, &["--to", to]).expect(0)));
        assert!(!ending(&files(&b), end).is_empty(), "{to}");
    }
    assert!(!ending(&files(&b), ".ome.zarr/zarr.json").is_empty() && !ending(&files(&b), ".nii.gz").is_empty());
}

#[test]
fn bad_files_are_counted_and_stop_nobody() {
    let b = Bench::new(2);
    let slices = slices(&b.archive().join(b.archive().read_dir().unwrap().next().unwrap().unwrap().file_name()).join("MR"));
    let bytes = std::fs::read(&slices[3]).unwrap();
    std::fs::write(&slices[3], &bytes[..bytes.len() / 2]).unwrap();
    std::fs::write(b.archive().join("empty.dcm"), "").unwrap();
    std::fs::write(b.archive().join("letter.txt"), "Dear colleague").unwrap();
    let told = json(&convert(&b, &["--to", "nifti"]).expect(3));
    reconciles(&told);
    assert_eq!((told["images"]["converted"].as_u64(), told["images"]["refused"].as_u64()), (Some(1), Some(1)), "{told}");
    assert_eq!(told["refused"].as_array().unwrap().len(), 1);
}

#[test]
fn the_pipeline_that_is_shown_can_be_run() {
    let b = Bench::new(1);
    for more in
        [&["--to", "nifti", "--labels", "--gaps", "fill"][..], &["--to", "ome-zarr", "--where", "modality = 'MR'"], &["--to", "dicom"]]
    {
        let shown = convert(&b, &[more, &["--show-yaml"]].concat()).expect(0).stdout;
        std::fs::write(b.path("own.yaml"), shown).unwrap();
        b.voxmill(&["check", "own.yaml"]).expect(0);
    }
    assert!(!b.path("out").exists(), "showing makes nothing");
}

#[test]
fn names_of_patients_stay_behind_and_places_are_checked() {
    let b = Bench::new(1);
    convert(&b, &["--to", "nifti"]).expect(0);
    let folder = b.archive().read_dir().unwrap().next().unwrap().unwrap().file_name().to_string_lossy().into_owned();
    for name in files(&b).keys() {
        assert!(!name.contains(&folder), "{name}");
        let bytes = std::fs::read(b.path("out").join(name)).unwrap();
        assert!(!bytes.windows(folder.len()).any(|w| w == folder.as_bytes()), "{folder} in {name}");
    }
    b.voxmill(&["convert", "archive", "archive/out", "--to", "nifti"]).expect(2).says("lie in one another");
    b.voxmill(&["convert", "nowhere", "out", "--to", "nifti"]).expect(2).says("there is no archive nowhere");
}

fn slices(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}
