//! Labels of real sets on the grids of their images, against each other and against what other programs read. The folder is `VOXMILL_DATA`, by
//! default the small part in `tests/data` and `examples/data`; what of the sets is not there is passed over, but never all of it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use voxmill_schemas::geometry::{Geometry, Lps, Zyx};
use voxmill_schemas::tables::InstanceRow;
use voxmill_stages::dicom::order::How;
use voxmill_stages::dicom::place::{self, Grid};
use voxmill_stages::dicom::read::{self, Reading};
use voxmill_stages::dicom::{Fill, rtstruct, seg, source};
use voxmill_stages::nifti;

/// The folder of a set, where it is there.
fn set(name: &str) -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let places = match std::env::var_os("VOXMILL_DATA") {
        Some(folder) => vec![PathBuf::from(folder).join(name)],
        None => vec![here.join("tests/data").join(name), here.join("examples/data").join(name)],
    };
    places.into_iter().find(|p| p.is_dir())
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

fn rows(paths: &[PathBuf]) -> Vec<InstanceRow> {
    let row = |p: &PathBuf| InstanceRow {
        series: "image".into(),
        path: p.to_string_lossy().into_owned(),
        file: p.file_name().unwrap().to_string_lossy().into_owned(),
        content: blake3::hash(&std::fs::read(p).unwrap()).to_hex().to_string(),
        ..InstanceRow::default()
    };
    paths.iter().map(row).collect()
}

/// The grid of the series in a folder.
fn grid(folder: &Path) -> Grid {
    let rows = rows(&files(folder));
    let reading = Reading {
        how: How { keeps_single: true, ..How::default() },
        limit_bytes: 1 << 32,
        keeps_colour: false,
        suv: None,
        is_repeat: false,
        step: &|_| Ok(()),
    };
    let geometry = read::volume(&rows, &reading).unwrap().geometry;
    Grid::with_slices(&geometry, &source::slices(&rows).unwrap())
}

/// Segments of the given labels as classes 1, 2, …; overlaps go to the later one.
fn lay(file: &Path, labels: &[&str], grid: &Grid, threshold: Option<f64>) -> (Vec<u8>, seg::Placed) {
    let s = seg::read(file, &file.to_string_lossy()).unwrap();
    let id = |label: &str| labels.iter().position(|l| *l == label).map(|i| i as u8 + 1);
    let class_of: BTreeMap<u16, u8> = s.segments.iter().filter_map(|x| Some((x.number, id(&x.label)?))).collect();
    assert_eq!(class_of.len(), labels.len(), "{}: {:?}", file.display(), s.segments);
    let mut out = vec![0; grid.geometry.size.count()];
    let placed = s.lay(grid, &class_of, threshold, &mut |id, voxel| out[voxel] = id).unwrap();
    (out, placed)
}

fn count(labels: &[u8], id: u8) -> usize {
    labels.iter().filter(|v| **v == id).count()
}

#[test]
fn seg_rtstruct_and_nifti_of_the_hippocampus_say_the_same() {
    let folder = set("hippocampus").expect("the hippocampus set");
    // Voxel counts of the set's manifest: all cases of it, or those of the examples.
    let known: Vec<(String, usize, usize)> = match std::fs::read(folder.join("manifest.json")) {
        Ok(text) => {
            let all: Vec<serde_json::Value> = serde_json::from_slice(&text).unwrap();
            let n = |c: &serde_json::Value, k: &str| c[k].as_u64().unwrap() as usize;
            all.iter().map(|c| (c["case"].as_str().unwrap().to_string(), n(c, "vox1"), n(c, "vox2"))).collect()
        }
        Err(_) => EXAMPLES.iter().map(|(c, a, p)| (c.to_string(), *a, *p)).collect(),
    };
    let twins = set("hippocampus_nifti").map(|f| f.join("labels"));
    let mut seen = [0; 4];
    for (case, anterior, posterior) in &known {
        let (dir, grid) = (folder.join(case), grid(&folder.join(case).join("MR")));
        assert_eq!(grid.slice_of.len(), grid.geometry.size.z, "{case}");
        let (binary, placed) = lay(&dir.join("SEG_binary.dcm"), &["Anterior", "Posterior"], &grid, None);
        assert_eq!(placed, seg::Placed { is_exact: true, ..seg::Placed::default() }, "{case}");
        assert_eq!((count(&binary, 1), count(&binary, 2)), (*anterior, *posterior), "{case}");
        seen[0] += 1;
        if dir.join("SEG_labelmap.dcm").exists() {
            let (labelmap, placed) = lay(&dir.join("SEG_labelmap.dcm"), &["Anterior", "Posterior"], &grid, None);
            assert!(labelmap == binary && placed.is_exact, "{case}: labelmap");
            seen[1] += 1;
        }
        if dir.join("RTSTRUCT.dcm").exists() {
            let r = rtstruct::read(&dir.join("RTSTRUCT.dcm"), "RTSTRUCT.dcm").unwrap();
            for (id, name) in [(1, "Anterior"), (2, "Posterior")] {
                let roi = r.rois.iter().find(|r| r.name == name).unwrap();
                let mut mask = vec![0; binary.len()];
                let drawn = rtstruct::draw(roi, &grid, Fill::Xor, &mut |voxel| mask[voxel] = id);
                let differ = mask.iter().zip(&binary).filter(|(m, b)| (**m == id) != (**b == id)).count();
                assert_eq!(differ, 0, "{case}: voxels of {name} where RTSTRUCT and SEG differ");
                assert!(drawn.skipped.is_empty() && drawn.wrong_references == 0, "{case}: {drawn:?}");
            }
            seen[2] += 1;
        }
        let Some(twin) = twins.as_ref().map(|t| t.join(format!("{case}.nii.gz"))).filter(|t| t.exists()) else { continue };
        let nifti = nifti::read(&twin).unwrap();
        assert!(nifti.is_placed && place::is_reindexed(&nifti.geometry, &grid.geometry), "{case}: NIfTI");
        let values = nifti.voxels.to_f32();
        let laid: Vec<u8> = place::nearest_voxels(&nifti.geometry, &grid.geometry).map(|v| v.map_or(0, |v| values[v] as u8)).collect();
        assert!(laid == binary, "{case}: NIfTI");
        seen[3] += 1;
    }
    assert!(seen[0] >= 12 && seen[1] >= 4 && seen[2] >= 2 && seen[3] >= 2, "{seen:?}");
    eprintln!("{} binary SEG, {} labelmap SEG, {} RTSTRUCT, {} NIfTI", seen[0], seen[1], seen[2], seen[3]);
}

/// Voxels of the anterior and posterior part, from the manifest of the whole set.
const EXAMPLES: [(&str, usize, usize); 12] = [
    ("hippocampus_001", 1324, 1624),
    ("hippocampus_004", 1832, 1866),
    ("hippocampus_006", 2314, 1949),
    ("hippocampus_007", 1842, 1530),
    ("hippocampus_008", 1725, 1523),
    ("hippocampus_011", 1912, 1544),
    ("hippocampus_014", 2017, 1605),
    ("hippocampus_015", 1511, 1308),
    ("hippocampus_017", 2135, 1343),
    ("hippocampus_020", 2146, 1465),
    ("hippocampus_023", 1748, 1820),
    ("hippocampus_024", 2011, 2019),
];

/// A NRRD label map as dcmqi wrote it: `[z, y, x]` and its grid (left-posterior-superior).
fn nrrd(path: &Path) -> (Geometry, Vec<i16>) {
    let bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(2).position(|w| w == b"\n\n").unwrap();
    let header = std::str::from_utf8(&bytes[..at]).unwrap();
    let field = |name: &str| header.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_else(|| panic!("{name} in {}", path.display()));
    assert_eq!((field("type: "), field("encoding: ")), ("short", "gzip"));
    let numbers = |text: &str| -> Vec<f64> {
        text.split(|c: char| !(c.is_ascii_digit() || "+-.e".contains(c))).filter(|t| !t.is_empty()).map(|t| t.parse().unwrap()).collect()
    };
    let (size, axes, origin) = (numbers(field("sizes: ")), numbers(field("space directions: ")), numbers(field("space origin: ")));
    let lps = |v: &[f64]| Lps([v[0], v[1], v[2]]);
    let geometry = Geometry {
        size: Zyx::new(size[2] as usize, size[1] as usize, size[0] as usize),
        origin: lps(&origin),
        axes_mm: Zyx::new(lps(&axes[6..9]), lps(&axes[3..6]), lps(&axes[..3])),
    };
    let mut raw = Vec::new();
    flate2::read::GzDecoder::new(&bytes[at + 2..]).read_to_end(&mut raw).unwrap();
    (geometry, raw.chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]])).collect())
}

#[test]
fn dcmqi_segmentations_equal_the_label_maps_they_were_made_of() {
    let folder = set("dcmqi").expect("the dcmqi set").join("segmentations");
    // SEG, segment, NRRD, its value there.
    let cases = [
        ("liver.dcm", "Liver", "liver_seg.nrrd", 1),
        ("partial_overlaps.dcm", "GREEN", "partial_overlaps-1.nrrd", 1),
        ("partial_overlaps.dcm", "ORANGE", "partial_overlaps-2.nrrd", 2),
        ("partial_overlaps.dcm", "PURPLE", "partial_overlaps-3.nrrd", 3),
        ("partial_overlaps.dcm", "LIGHT_BLUE", "partial_overlaps-1.nrrd", 4),
        ("partial_overlaps.dcm", "DARK_BLUE", "partial_overlaps-1.nrrd", 5),
        ("24x38x3/seg/label.seg", "Liver", "24x38x3/nrrd/label.nrrd", 1),
        ("23x38x3/seg/label.seg", "Liver", "23x38x3/nrrd/label.nrrd", 1),
        // A plane is missing; elsewhere the background is 0, or PixelPaddingValue 5.
        ("sparse-labelmap-noppv.dcm", "Liver", "sparse_labelmap_noppv_seg.nrrd", 1),
        ("sparse-labelmap-ppv5.dcm", "Liver", "sparse_labelmap_ppv5_seg.nrrd", 1),
    ];
    for (file, segment, truth, value) in cases {
        let (geometry, truth) = nrrd(&folder.join(truth));
        let (laid, placed) = lay(&folder.join(file), &[segment], &Grid::of(&geometry), None);
        let differ = laid.iter().zip(&truth).filter(|(a, b)| (**a == 1) != (**b == value)).count();
        assert_eq!(differ, 0, "voxels of {segment} in {file} that differ");
        assert!(placed.is_exact && placed.frames_outside == 0, "{file}: {placed:?}");
        assert!(laid.contains(&1));
    }
}

#[test]
fn frames_and_the_images_they_name_agree() {
    let folder = set("dcmqi").expect("the dcmqi set").join("segmentations/24x38x3");
    let grid = grid(&folder.join("image"));
    let (laid, placed) = lay(&folder.join("seg/label.seg"), &["Liver"], &grid, None);
    assert_eq!((count(&laid, 1), placed.wrong_references, placed.is_exact), (315, 0, true));
    // The same anatomy one slice higher: positions win, and the references are seen to be off.
    let mut moved = grid.clone();
    moved.slice_of.values_mut().for_each(|k| *k = (*k + 1) % 3);
    let (again, placed) = lay(&folder.join("seg/label.seg"), &["Liver"], &moved, None);
    assert_eq!((again == laid, placed.wrong_references), (true, 3));
}

#[test]
fn a_segmentation_on_a_finer_or_turned_grid_is_resampled() {
    let folder = set("dcmqi").expect("the dcmqi set").join("segmentations");
    let (geometry, truth) = nrrd(&folder.join("24x38x3/nrrd/label.nrrd"));
    let file = folder.join("24x38x3/seg/label.seg");
    // Turned: slices become rows. Every voxel has its twin.
    let turned = Geometry {
        size: Zyx::new(geometry.size.y, geometry.size.z, geometry.size.x),
        origin: geometry.origin,
        axes_mm: Zyx::new(geometry.axes_mm.y, geometry.axes_mm.z, geometry.axes_mm.x),
    };
    let (laid, placed) = lay(&file, &["Liver"], &Grid::of(&turned), None);
    let n = geometry.size;
    assert!(placed.is_exact);
    for (z, y, x) in (0..n.z).flat_map(|z| (0..n.y).flat_map(move |y| (0..n.x).map(move |x| (z, y, x)))) {
        assert_eq!(laid[(y * n.z + z) * n.x + x] as i16, truth[(z * n.y + y) * n.x + x]);
    }
    // Twice as fine along x: every voxel comes twice.
    let fine = Geometry {
        size: Zyx::new(n.z, n.y, 2 * n.x),
        origin: geometry.origin - geometry.axes_mm.x.scale(0.25),
        axes_mm: Zyx::new(geometry.axes_mm.z, geometry.axes_mm.y, geometry.axes_mm.x.scale(0.5)),
    };
    let (laid, placed) = lay(&file, &["Liver"], &Grid::of(&fine), None);
    assert_eq!((count(&laid, 1), placed.is_exact), (2 * 315, false));
}

/// Pixels of each frame as highdicom 0.28.2 reads them.
#[test]
fn highdicom_segmentations_are_read_as_highdicom_reads_them() {
    let Some(folder) = set("highdicom") else { return };
    // Three slices of a CT that lies beside them in the pydicom set.
    let geometry = Geometry {
        size: Zyx::new(3, 16, 16),
        origin: Lps([-125.0, -128.100006, 103.019997]),
        axes_mm: Zyx::new(Lps([0., 0., 1.25]), Lps([0., 0.488281, 0.]), Lps([0.488281, 0., 0.])),
    };
    let grid = Grid::of(&geometry);
    let by_slice = |laid: &[u8], id| laid.chunks(256).map(|s| count(s, id)).collect::<Vec<_>>();
    for file in ["seg_image_ct_binary.dcm", "seg_image_ct_binary_fractional.dcm"] {
        let (laid, placed) = lay(&folder.join(file), &["first segment"], &grid, Some(0.5));
        assert_eq!(by_slice(&laid, 1), [127, 256, 255], "{file}");
        assert!(placed.is_exact && placed.frames_outside == 0);
    }
    let (laid, _) = lay(&folder.join("seg_image_ct_true_fractional.dcm"), &["first segment"], &grid, Some(1e-6));
    assert_eq!(by_slice(&laid, 1), [149, 256, 256]);
    let s = seg::read(&folder.join("seg_image_ct_true_fractional.dcm"), "f").unwrap();
    let e = s.lay(&grid, &BTreeMap::from([(1, 1)]), None, &mut |_, _| {}).unwrap_err();
    assert!(e.to_string().contains("fractional_threshold"), "{e}");

    // A fourth slice lies 200 mm away; both segments claim four pixels of each slice.
    let overlap = folder.join("seg_image_ct_binary_overlap.dcm");
    let (laid, placed) = lay(&overlap, &["first segment", "second segment"], &grid, None);
    assert_eq!(by_slice(&laid, 2), [4, 4, 4]);
    assert_eq!(placed.frames_outside, 2);
    let (alone, _) = lay(&overlap, &["first segment"], &grid, None);
    assert_eq!(by_slice(&alone, 1), [16, 16, 16]);

    // No frame of reference and no position: only the source image says where the frame lies.
    let s = seg::read(&folder.join("seg_image_cr_binary.dcm"), "f").unwrap();
    let mut plane = Grid::of(&Geometry::axis_aligned(Zyx::new(1, 16, 16), Zyx::splat(1.0)));
    let e = s.lay(&plane, &BTreeMap::from([(1, 1)]), None, &mut |_, _| {}).unwrap_err();
    assert!(e.to_string().contains("neither a position nor a source image"), "{e}");
    plane.slice_of.insert(("1.3.6.1.4.1.5962.1.1.0.0.0.1196527414.5534.0.11".into(), 1), 0);
    let mut n = 0;
    s.lay(&plane, &BTreeMap::from([(1, 1)]), None, &mut |_, _| n += 1).unwrap();
    assert_eq!(n, 151);

    // Segmentations of slides have no place in a patient.
    for file in ["seg_image_sm_control.dcm", "seg_image_sm_control_labelmap.dcm", "seg_image_sm_dots_tiled_full.dcm"] {
        let e = match seg::read(&folder.join(file), file) {
            Ok(s) => s.lay(&grid, &BTreeMap::from([(1, 1)]), None, &mut |_, _| {}).unwrap_err(),
            Err(e) => e,
        };
        assert!(e.to_string().contains("position") || e.to_string().contains("slide"), "{file}: {e}");
    }
}

#[test]
fn contours_of_another_image_are_counted_not_drawn() {
    let Some(folder) = set("rt-utils") else { return };
    let folder = folder.join("mock_data");
    let rows = rows(&[folder.join("ct_1.dcm"), folder.join("ct_2.dcm")]);
    let slices = source::slices(&rows).unwrap();
    let reading = Reading {
        how: How { keeps_single: true, ..How::default() },
        limit_bytes: 1 << 32,
        keeps_colour: false,
        suv: None,
        is_repeat: false,
        step: &|_| Ok(()),
    };
    let grid = Grid::with_slices(&read::volume(&rows, &reading).unwrap().geometry, &slices);
    let draw = |file: &str| {
        let r = rtstruct::read(&folder.join(file), file).unwrap();
        r.rois
            .iter()
            .map(|roi| {
                let mut n = 0;
                let drawn = rtstruct::draw(roi, &grid, Fill::Xor, &mut |_| n += 1);
                (n, drawn.contours, drawn.skipped.values().sum::<usize>())
            })
            .collect::<Vec<_>>()
    };
    for file in ["rt.dcm", "invalid_reference_rt.dcm", "non_existent_reference_rt.dcm"] {
        for (voxels, contours, skipped) in draw(file) {
            eprintln!("{file}: {voxels} voxels, {contours} contours drawn, {skipped} not");
            assert!((voxels > 0) == (contours > 0), "{file}");
            assert!(contours + skipped >= 2, "{file}: every contour has a verdict");
        }
    }
}
