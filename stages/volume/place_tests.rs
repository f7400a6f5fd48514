//! A voxel that knows where it is in the patient: after any chain of geometry steps it must be where the grid of the result says.

use proptest::prelude::*;
use voxmill_schemas::geometry::{Geometry, Lps, Zyx};
use voxmill_schemas::region::Region;

use super::*;
use crate::ops::orient::{Axcodes, Turn};
use crate::ops::resample::{Interpolation, LabelInterpolation};
use crate::ops::respace::respaced;

/// Oblique about two axes, sheared as a tilted gantry does, and mirrored where a spacing is negative.
fn grid(size: Zyx<usize>, turn: [f64; 2], shear: f64, spacing: [f64; 3]) -> Geometry {
    let ((s, c), (u, v)) = (turn[0].sin_cos(), turn[1].sin_cos());
    let turned = |a: Lps| {
        let b = [c * a.0[0] - s * a.0[1], s * a.0[0] + c * a.0[1], a.0[2]];
        Lps([b[0], v * b[1] - u * b[2], u * b[1] + v * b[2]])
    };
    let axes = Zyx::new(Lps([0.0, shear, 1.0]), Lps([0.0, 1.0, 0.0]), Lps([1.0, 0.0, 0.0]));
    let axes_mm = axes.zip(Zyx::from_array(spacing)).map(|(a, s)| turned(a).scale(s));
    Geometry { size, origin: Lps([12.0, -30.0, 7.0]), axes_mm }
}

fn index(i: usize, size: Zyx<usize>) -> Zyx<f64> {
    Zyx::new(i / (size.y * size.x), i / size.x % size.y, i % size.x).map(|v| v as f64)
}

/// Three channels that hold the place of each voxel, LPS in millimetres: what is linear in the patient is kept by linear interpolation.
fn places(geometry: Geometry) -> Volume {
    let n = geometry.size.count();
    let voxels = (0..3 * n).map(|i| geometry.to_lps(index(i % n, geometry.size)).0[i / n] as f32).collect();
    Volume {
        geometry,
        channels: ["left", "posterior", "superior"].map(String::from).to_vec(),
        voxels: Voxels::F32(voxels),
        labels: None,
        about: About::of(geometry),
    }
}

const CODES: [&str; 6] = ["RAS", "LPS", "SAR", "PIL", "AIL", "ILP"];

/// What orient, resample, crop and pad make of a draw.
fn step(kind: usize, g: &Geometry, a: [f64; 3], keep_tilt: bool, image: Interpolation) -> Step {
    match kind {
        0 => Step::Turn(Turn::toward(g, Axcodes::parse(CODES[(a[0] * 5.999) as usize]).unwrap()).unwrap()),
        1 => {
            let spacing = g.spacing_mm().zip(Zyx::from_array(a)).map(|(s, a)| s * (0.5 + 1.5 * a));
            let to = respaced(g, spacing, keep_tilt).unwrap();
            Step::Resample { to, image, labels: LabelInterpolation::Nearest, sigma: Zyx::splat(0.0), padding: None, outside: None }
        }
        _ => {
            let start = Zyx::from_array(a).zip(g.size).map(|(a, n)| ((a - 0.5) * n as f64) as i64);
            let size = Zyx::from_array(a).zip(g.size).map(|(a, n)| 1 + ((1.3 - a) * n as f64) as usize);
            Step::Cut { region: Region { start, size }, fill: Filling::Edge }
        }
    }
}

prop_compose! {
    fn grids()(
        size in prop::array::uniform3(1usize..9),
        turn in prop_oneof![Just([0.0, 0.0]), prop::array::uniform2(-0.7..0.7f64)],
        shear in prop_oneof![Just(0.0), -0.4..0.4f64],
        spacing in prop::array::uniform3(0.4..5.0f64),
        mirror in any::<[bool; 3]>(),
    ) -> Geometry {
        let spacing = std::array::from_fn(|k| if mirror[k] { -spacing[k] } else { spacing[k] });
        grid(Zyx::from_array(size), turn, shear, spacing)
    }
}

type Draw = (usize, [f64; 3], bool);

fn draws() -> impl Strategy<Value = Vec<Draw>> {
    proptest::collection::vec((0usize..3, prop::array::uniform3(0.0..1.0f64), any::<bool>()), 1..5)
}

proptest! {
    #[test]
    fn what_a_voxel_shows_is_where_the_grid_says(from in grids(), draws in draws()) {
        let mut v = places(from);
        for (kind, a, keep_tilt) in draws {
            let before = v.geometry;
            let step = step(kind, &before, a, keep_tilt, Interpolation::Linear);
            v = apply(v, vec![step]).unwrap();
            // Beyond the edge it is repeated and shows another place: blanked, and what is made of it with it.
            let (grid, n, mut x) = (v.geometry, v.geometry.size.count(), v.voxels.into_f32());
            for i in 0..n {
                let at = before.to_index(grid.to_lps(index(i, grid.size))).zip(before.size);
                if !at.to_array().iter().all(|(p, n)| *p >= -1e-6 && *p <= *n as f64 - 1.0 + 1e-6) {
                    (0..3).for_each(|c| x[c * n + i] = f32::NAN);
                }
            }
            v.voxels = Voxels::F32(x);
        }
        let (x, n) = (v.voxels.to_f32(), v.geometry.size.count());
        for i in 0..n {
            let place = v.geometry.to_lps(index(i, v.geometry.size));
            for c in 0..3 {
                let (shown, wanted) = (x[c * n + i] as f64, place.0[c]);
                prop_assert!(shown.is_nan() || (shown - wanted).abs() < 1e-3, "channel {c}, voxel {i}: {shown} is not {wanted}");
            }
        }
    }

    #[test]
    fn labels_stay_with_their_image(from in grids(), draws in draws()) {
        // The image is the label: by the closest voxel both must go the same way.
        let n = from.size.count();
        let ids: Vec<u8> = (0..n).map(|i| (i * 7 % 5) as u8).collect();
        let mut v = Volume {
            geometry: from,
            channels: vec!["image".into()],
            voxels: Voxels::U8(ids.clone()),
            labels: Some(Labels { classes: (1..5).map(|c| (format!("c{c}"), c)).collect(), voxels: ids }),
            about: About::of(from),
        };
        for (kind, a, keep_tilt) in draws {
            let step = step(kind, &v.geometry, a, keep_tilt, Interpolation::Nearest);
            v = apply(v, vec![step]).unwrap();
        }
        let Voxels::U8(image) = &v.voxels else { panic!("the closest voxel keeps its type") };
        prop_assert_eq!(image, &v.labels.unwrap().voxels);
    }

    #[test]
    fn a_marked_voxel_is_found_at_its_place_in_the_patient(from in grids(), draws in draws(), at in prop::array::uniform3(0.0..1.0f64)) {
        // One voxel is 1, all others 0: each voxel of the result shows as much of it as its place, by the two grids alone, is close to the mark.
        let mark = Zyx::from_array(at).zip(from.size).map(|(a, n)| (a * n as f64) as usize);
        let mut values = vec![0.0; from.size.count()];
        values[(mark.z * from.size.y + mark.y) * from.size.x + mark.x] = 1.0;
        let v = Volume { geometry: from, channels: vec!["mark".into()], voxels: Voxels::F32(values), labels: None, about: About::of(from) };
        let (kind, a, keep_tilt) = draws[0];
        let step = step(kind, &from, a, keep_tilt, Interpolation::Linear);
        let v = apply(v, vec![step]).unwrap();
        for (i, x) in v.voxels.to_f32().iter().enumerate() {
            let seen = from.to_index(v.geometry.to_lps(index(i, v.geometry.size)));
            let away = seen.zip(mark).zip(from.size).map(|((p, m), n)| (p.clamp(0.0, n as f64 - 1.0) - m as f64).abs());
            let wanted: f64 = away.to_array().iter().map(|d| (1.0 - d).max(0.0)).product();
            prop_assert!((*x as f64 - wanted).abs() < 1e-4, "voxel {i}: {x} is not {wanted}");
        }
    }

    #[test]
    fn the_own_spacing_keeps_every_bit(from in grids()) {
        let v = places(from);
        let to = respaced(&from, from.spacing_mm(), true).unwrap();
        prop_assert_eq!(to.size, from.size);
        let image = Interpolation::Cubic;
        let same = Step::Resample { to, image, labels: LabelInterpolation::Linear, sigma: Zyx::splat(0.0), padding: None, outside: None };
        prop_assert_eq!(apply(v.clone(), vec![same]).unwrap().voxels, v.voxels);
    }

    #[test]
    fn a_part_of_the_new_grid_is_that_part_of_the_result(
        from in grids(), a in prop::array::uniform3(0.0..1.0f64), start in prop::array::uniform3(-0.3..0.9f64), extent in prop::array::uniform3(0.1..1.2f64),
        image in prop_oneof![Just(Interpolation::Linear), Just(Interpolation::Cubic)], keep_tilt in any::<bool>(),
    ) {
        let v = places(from);
        let spacing = from.spacing_mm().zip(Zyx::from_array(a)).map(|(s, a)| s * (0.5 + 1.5 * a));
        let to = respaced(&from, spacing, keep_tilt).unwrap();
        let at = |k: [f64; 3]| Zyx::from_array(k).zip(to.size).map(|(k, n)| k * n as f64);
        let region = Region { start: at(start).map(|v| v as i64), size: at(extent).map(|v| 1 + v as usize) };
        let on = |to| Step::Resample { to, image, labels: LabelInterpolation::Nearest, sigma: Zyx::splat(0.0), padding: None, outside: None };
        let resampled_part = apply(v.clone(), vec![on(to.crop(region))]).unwrap();
        let inside = region.intersect(&Region::whole(to.size));
        let part_of_resampled = apply(v, vec![on(to), Step::Cut { region, fill: Filling::Edge }]).unwrap();
        prop_assert_eq!(resampled_part.geometry, part_of_resampled.geometry);
        // Beyond the new grid the one repeats its last voxel, the other goes on to where the volume ends.
        let (x, y, n) = (resampled_part.voxels.to_f32(), part_of_resampled.voxels.to_f32(), region.size.count());
        for i in 0..3 * n {
            let at = index(i % n, region.size).zip(region.start).map(|(i, s)| i as i64 + s);
            let is_inside = inside.is_some_and(|r| r.contains(&Region { start: at, size: Zyx::splat(1) }));
            prop_assert!(!is_inside || (x[i] - y[i]).abs() < 2e-3, "voxel {i}: {} is not {}", x[i], y[i]);
        }
    }

    #[test]
    fn affines_go_to_ras_and_back(from in grids()) {
        let a = from.affine_ras_xyz();
        let back = Geometry::from_affine_ras_xyz(from.size, a);
        prop_assert_eq!(back, from);
        // RAS is LPS with the first two signs turned.
        let at = Zyx::new(1.0, 2.0, 3.0);
        let ras: [f64; 3] = std::array::from_fn(|r| a[r][0] * at.x + a[r][1] * at.y + a[r][2] * at.z + a[r][3]);
        let lps = from.to_lps(at).0;
        let wanted = [-lps[0], -lps[1], lps[2]];
        prop_assert!(ras.iter().zip(wanted).all(|(r, w)| (r - w).abs() < 1e-9), "{:?} {:?}", ras, wanted);
    }
}
