//! Any bytes as a segmentation: its frames, and where they lie on a grid of its own and on another one.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use voxmill_fuzz::dicom::place::Grid;
use voxmill_fuzz::dicom::seg;
use voxmill_fuzz::{file, mutated, within_promise};
use voxmill_schemas::geometry::{Geometry, Zyx};

/// No image is larger here: its memory is not the file's.
const MAX_SIDE: usize = 64;
/// Frames that are read for themselves; all are laid.
const N_FRAMES: usize = 16;

fuzz_target!(|bytes: &[u8]| {
    within_promise(bytes.len(), || {
        let path = file("x.dcm", bytes);
        let Ok(seg) = seg::read(&path, "x.dcm") else { return };
        for frame in 0..seg.frames.len().min(N_FRAMES) {
            let _ = seg.values(frame);
        }
        let class_of: BTreeMap<u16, u8> = seg.segments.iter().zip(1..=u8::MAX).map(|(s, id)| (s.number, id)).collect();
        let mut grids = vec![Geometry::axis_aligned(Zyx::new(4, 16, 16), Zyx::new(3.0, 1.0, 1.0))];
        if let Some(plane) = seg.frames.first().and_then(|f| f.plane) {
            let axes_mm =
                Zyx::new(plane.normal(), plane.along_column.scale(plane.row_spacing_mm), plane.along_row.scale(plane.column_spacing_mm));
            let size = Zyx::new(8, seg.rows.min(MAX_SIDE), seg.columns.min(MAX_SIDE));
            grids.push(Geometry { size, origin: plane.origin, axes_mm });
        }
        for geometry in grids {
            let n = geometry.size.count();
            for threshold in [None, Some(0.5)] {
                let _ = seg.lay(&Grid::of(&geometry), &class_of, threshold, &mut |_, voxel| assert!(voxel < n, "a voxel beside the grid"));
            }
        }
    });
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| { mutated(data, size, max_size, seed) });
