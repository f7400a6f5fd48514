//! One segmentation in many forms: byte orders, compressions, orders of frames, grids. Each is read as the same voxels.

use std::collections::BTreeMap;
use std::path::Path;

use voxmill_stages::dicom::seg::{self, Placed};

use super::{ask, grid, here, python, rows};

const WRITE: &str = include_str!("variants.py");

#[test]
fn a_segmentation_is_the_same_in_every_form() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let case = here("examples/data/hippocampus/hippocampus_001");
    let (binary, labelmap) = (case.join("SEG_binary.dcm"), case.join("SEG_labelmap.dcm"));
    let grid = grid(&rows(&case.join("MR"))).1;
    let lay = |file: &Path, name: &str| {
        let s = seg::read(file, name).unwrap();
        let class_of: BTreeMap<u16, u8> = s.segments.iter().filter(|x| x.number > 0).map(|x| (x.number, x.number as u8)).collect();
        let mut labels = vec![0; grid.geometry.size.count()];
        let placed = s.lay(&grid, &class_of, Some(0.5), &mut |id, voxel| labels[voxel] = id).unwrap_or_else(|e| panic!("{e}"));
        (labels, placed)
    };
    let wanted = lay(&binary, "binary").0;
    assert!(lay(&labelmap, "labelmap").0 == wanted, "the set agrees with itself");
    let names: Vec<String> = serde_json::from_value(ask(&python, WRITE, &[&binary, &labelmap, dir.path()])).unwrap();
    assert!(names.len() >= 25, "{names:?}");
    for name in names {
        let (labels, placed) = lay(&dir.path().join(format!("{name}.dcm")), &name);
        let differ = labels.iter().zip(&wanted).filter(|(a, b)| a != b).count();
        assert_eq!((differ, placed), (0, Placed { is_exact: name != "finer", ..Placed::default() }), "{name}");
    }
}
