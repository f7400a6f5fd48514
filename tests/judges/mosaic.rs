//! Siemens mosaics: nibabel cuts the same slices out of the same pictures and puts them in the same places.

use voxmill_schemas::geometry::{Geometry, Zyx};
use voxmill_stages::dicom::place::nearest_voxels;
use voxmill_stages::dicom::read::{self, Reading};
use voxmill_stages::nifti;
use voxmill_stages::volume::Voxels;

use super::{ask, python, rows};

const JUDGE: &str = include_str!("mosaic.py");

#[test]
fn nibabel_cuts_mosaics_in_the_same_way() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<String> = serde_json::from_value(ask(&python, JUDGE, &[dir.path()])).unwrap();
    for name in names {
        let reading =
            Reading { how: Default::default(), limit_bytes: 1 << 30, keeps_colour: false, suv: None, is_repeat: false, step: &|_| Ok(()) };
        let ours = read::volume(&rows(&dir.path().join(format!("{name}.dcm"))), &reading).unwrap();
        let truth = nifti::read(&dir.path().join(format!("{name}.nii"))).unwrap();
        assert_eq!(ours.geometry.size, Zyx::new(48, 128, 128));
        let (Voxels::I16(a), Voxels::I16(b)) = (&ours.pixels.voxels, &truth.voxels) else { panic!("{name}: int16 in both") };
        // Corner by corner in the patient, whatever the order in the file; a thousandth of a millimetre is what its decimals leave.
        let corners = |g: &Geometry| {
            let last = g.size.map(|n| n as f64 - 1.0);
            let mut at: Vec<[i64; 3]> = (0..8)
                .map(|k| {
                    let pick = |bit: usize, v: f64| if k >> bit & 1 == 1 { v } else { 0.0 };
                    let p = g.to_lps(Zyx::new(pick(0, last.z), pick(1, last.y), pick(2, last.x)));
                    p.0.map(|v| (v * 100.0).round() as i64)
                })
                .collect();
            at.sort_unstable();
            at
        };
        for (a, b) in corners(&ours.geometry).iter().flatten().zip(corners(&truth.geometry).iter().flatten()) {
            assert!((a - b).abs() <= 1, "{name}: {:?}\n{:?}", ours.geometry, truth.geometry);
        }
        let from = nearest_voxels(&truth.geometry, &ours.geometry);
        let differ = b.iter().zip(from).filter(|(b, from)| a[from.expect("both lie in one place")] != **b).count();
        assert_eq!(differ, 0, "{name}");
    }
}
