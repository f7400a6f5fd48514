//! Any bytes as a structure set: its contours, and the voxels they hold on a fixed grid and on one that begins where they do.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use voxmill_fuzz::dicom::place::Grid;
use voxmill_fuzz::dicom::{Fill, rtstruct};
use voxmill_fuzz::{file, mutated, within_promise};
use voxmill_schemas::geometry::{Geometry, Zyx};

fuzz_target!(|bytes: &[u8]| {
    within_promise(bytes.len(), || {
        let path = file("x.dcm", bytes);
        let Ok(set) = rtstruct::read(&path, "x.dcm") else { return };
        let fixed = Geometry::axis_aligned(Zyx::new(4, 32, 32), Zyx::new(3.0, 1.0, 1.0));
        let begins = set.rois.iter().flat_map(|r| &r.contours).find_map(|c| c.points.first()).copied();
        for geometry in [Some(fixed), begins.map(|origin| Geometry { origin, ..fixed })].into_iter().flatten() {
            let (grid, n) = (Grid::of(&geometry), geometry.size.count());
            for roi in &set.rois {
                for fill in [Fill::Xor, Fill::Union] {
                    rtstruct::draw(roi, &grid, fill, &mut |voxel| assert!(voxel < n, "a voxel beside the grid"));
                }
            }
        }
    });
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| { mutated(data, size, max_size, seed) });
