//! NIfTI that we write: nibabel reads the same values, places, units and colours.

use serde_json::{Value, json};
use voxmill_schemas::geometry::{Geometry, Lps, Zyx};
use voxmill_stages::dicom::read::{self, Reading};
use voxmill_stages::nifti::{self, Channels, Options};
use voxmill_stages::volume::Voxels;

use super::{ask, python, rows};

const JUDGE: &str = include_str!("nifti.py");

fn read_by_nibabel(python: &str, geometry: &Geometry, channels: usize, voxels: &Voxels, options: &Options) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let (file, raw) = (dir.path().join(if options.level == 0 { "a.nii" } else { "a.nii.gz" }), dir.path().join("raw"));
    nifti::write(&file, geometry, channels, voxels, options).unwrap();
    std::fs::write(&raw, voxels.as_bytes()).unwrap();
    ask(python, JUDGE, &[&file, &raw])
}

#[test]
fn nibabel_reads_what_was_written() {
    let Some(python) = python() else { return };
    let straight = Geometry {
        size: Zyx::new(3, 40, 50),
        origin: Lps([10., -20., 30.]),
        axes_mm: Zyx::new(Lps([0., 0., -2.5]), Lps([0.3, 0.4, 0.]), Lps([-0.6, 0.45, 0.])),
    };
    let tilted = Geometry { axes_mm: Zyx { z: Lps([0., 0.7, -2.5]), ..straight.axes_mm }, ..straight };
    let n = straight.size.count();
    let int16 = Voxels::I16((0..n).map(|i| (i * 7919 % 4000) as i16 - 1000).collect());
    for (geometry, has_qform) in [(straight, 1), (tilted, 0)] {
        for level in [0, 1, 6] {
            let told = read_by_nibabel(&python, &geometry, 1, &int16, &Options { level, ..Options::default() });
            assert_eq!((&told["same"], &told["shape"], &told["dtype"]), (&json!(true), &json!([50, 40, 3]), &json!("int16")), "{told}");
            assert_eq!(
                (&told["sform"], &told["qform"], &told["units"]),
                (&json!(1), &json!(has_qform), &json!(["mm", "unknown"])),
                "{told}"
            );
            assert!(has_qform == 0 || told["off"].as_f64().unwrap() < 1e-5, "{told}");
            let affine: Vec<Vec<f64>> = serde_json::from_value(told["affine"].clone()).unwrap();
            let off =
                affine.iter().flatten().zip(geometry.affine_ras_xyz().iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(off < 1e-5, "{told}");
        }
    }
    let times = Voxels::U8((0..4 * n).map(|i| (i % 251) as u8).collect());
    let time = Options { channels: Channels::Time { step_s: 2.5 }, ..Options::default() };
    let told = read_by_nibabel(&python, &straight, 4, &times, &time);
    assert_eq!((&told["same"], &told["shape"], &told["units"]), (&json!(true), &json!([50, 40, 3, 4]), &json!(["mm", "sec"])), "{told}");
    assert_eq!(told["zooms"][3], 2.5);
    let colours = Voxels::U8((0..3 * n).map(|i| (i % 251) as u8).collect());
    let told = read_by_nibabel(&python, &straight, 3, &colours, &Options { channels: Channels::Colour, ..Options::default() });
    assert_eq!((&told["same"], &told["shape"], &told["bytes"]), (&json!(true), &json!([50, 40, 3]), &json!(352 + 3 * n)), "{told}");
}

/// A colour series as NIfTI is what dicom2nifti makes of it.
#[test]
fn colours_are_those_of_the_ground_truth() {
    let Some(data) = std::env::var_os("VOXMILL_DATA") else { return };
    let folder = std::path::Path::new(&data).join("dicom2nifti/generic/rgb");
    let reading = Reading {
        how: voxmill_stages::dicom::order::How { keeps_single: true, ..Default::default() },
        limit_bytes: 1 << 32,
        keeps_colour: true,
        suv: None,
        is_repeat: false,
        step: &|_| Ok(()),
    };
    let stacked = read::volume(&rows(&folder.join("001")), &reading).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rgb.nii.gz");
    let colour = Options { channels: Channels::Colour, ..Options::default() };
    nifti::write(&file, &stacked.geometry, 3, &stacked.pixels.voxels, &colour).unwrap();
    let (ours, truth) = (nifti::read(&file).unwrap(), nifti::read(&folder.join("001_ground_truth.nii.gz")).unwrap());
    assert!(ours.is_colour && truth.is_colour);
    let n = ours.geometry.size.count();
    assert_eq!((truth.geometry.size.count(), truth.channels), (n, 3));
    // Voxel by voxel where the patient has it: the order in the file may differ.
    let (Voxels::U8(a), Voxels::U8(b)) = (&ours.voxels, &truth.voxels) else { panic!("colours are bytes") };
    let mut differ = 0;
    for (to, from) in voxmill_stages::dicom::place::nearest_voxels(&truth.geometry, &ours.geometry).enumerate() {
        let from = from.expect("both lie in one place");
        differ += (0..3).filter(|c| a[c * n + to] != b[c * n + from]).count();
    }
    assert_eq!(differ, 0);
}
