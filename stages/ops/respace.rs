//! The grid that a volume gets with another spacing (MONAI `Spacing`): its size, its first voxel and its axes. No voxel is touched here.

use voxmill_schemas::geometry::{Geometry, Zyx};

use super::matrix::{self, Affine};
use crate::error::Error;

/// Millimetres within which a spacing counts as reached and is left as it is (MONAI `AFFINE_TOL`).
pub const SPACING_TOLERANCE_MM: f64 = 1e-3;

/// More voxels along an axis than any scanner makes: a spacing that asks for them is a mistake of unit.
const MAX_AXIS: f64 = 65_536.0;

/// The grid of `g` with steps of `spacing_mm`; a value of 0 or less, or within [`SPACING_TOLERANCE_MM`] of what the axis has, keeps that axis.
///
/// Voxel 0 stays on voxel 0 where axes keep their direction, and the size is round((n − 1)·old/new + 1), half to even: the far edge moves by up to half a
/// voxel. Shear (gantry tilt) is removed unless `keep_shear`: x keeps its direction, y its plane with x, and z becomes their normal; the grid then starts at
/// the corner that lies lowest on all axes, or shares its centre with `g` where no corner does.
pub fn respaced(g: &Geometry, spacing_mm: Zyx<f64>, keep_shear: bool) -> Result<Geometry, Error> {
    if g.is_degenerate() {
        return Err(Error::Geometry { what: "respacing".into(), why: format!("the axes {:?} do not span space", g.axes_mm) });
    }
    // From here on in the order x, y, z of affines.
    let a = g.affine_ras_xyz();
    let (own, n) = (g.spacing_mm(), [g.size.x, g.size.y, g.size.z].map(|n| n as f64));
    let keep = |own: f64, wanted: f64| if wanted > 0.0 && (own - wanted).abs() > SPACING_TOLERANCE_MM { wanted } else { own };
    let spacing = [keep(own.x, spacing_mm.x), keep(own.y, spacing_mm.y), keep(own.z, spacing_mm.z)];
    let m: [[f64; 3]; 3] = std::array::from_fn(|r| std::array::from_fn(|c| a[r][c]));
    let own = [own.x, own.y, own.z];
    let unit: [[f64; 3]; 3] =
        if keep_shear { std::array::from_fn(|r| std::array::from_fn(|c| m[r][c] / own[c])) } else { matrix::without_shear(&m) };
    let mut to: Affine = matrix::IDENTITY;
    for r in 0..3 {
        for c in 0..3 {
            to[r][c] = unit[r][c] * spacing[c];
        }
    }

    let map = matrix::solve(&to, &a);
    let corners: [[f64; 3]; 8] =
        std::array::from_fn(|k| std::array::from_fn(|axis| if k >> (2 - axis) & 1 == 1 { n[axis] - 1.0 } else { 0.0 }));
    let there = corners.map(|c| matrix::apply(&map, c));
    let extreme = |axis: usize, pick: fn(f64, f64) -> f64| there.iter().map(|c| c[axis]).reduce(pick).expect("eight corners");
    let lowest: [f64; 3] = std::array::from_fn(|axis| extreme(axis, f64::min));
    let mut size = [0usize; 3];
    for axis in 0..3 {
        let voxels = rounded(extreme(axis, f64::max) - lowest[axis] + 1.0);
        if !(voxels <= MAX_AXIS) {
            return Err(Error::Geometry {
                what: "respacing".into(),
                why: format!(
                    "{} voxels along {} at {} mm are more than {MAX_AXIS}: spacings are in millimetres",
                    voxels,
                    ["x", "y", "z"][axis],
                    spacing[axis]
                ),
            });
        }
        size[axis] = (voxels as usize).max(1);
    }
    let first = there.iter().position(|c| (0..3).all(|axis| (lowest[axis] - c[axis]).abs() <= 1e-8));
    let offset = match first {
        Some(k) => matrix::apply(&a, corners[k]),
        None => {
            // Axes sheared so that no corner of the new grid lies on one of the old: index n/2 of both is one place (MONAI's compute_shape_offset). It lies half
            // a voxel from the middle; the affine says where, so nothing is moved by it.
            let old = matrix::apply(&a, n.map(|n| n / 2.0));
            let new = matrix::apply(&to, size.map(|n| n as f64 / 2.0));
            std::array::from_fn(|r| old[r] - new[r])
        }
    };
    (0..3).for_each(|r| to[r][3] = offset[r]);
    Ok(Geometry::from_affine_ras_xyz(Zyx::new(size[2], size[1], size[0]), to))
}

/// The grid of `g` with steps of about `spacing_mm` that fills the same box, outer faces included (nnU-Net, ITK): the size is round(n·old/new), half to even, and
/// the spacing what n·old/size then is. Axes keep their directions, shear included; 0 or less keeps an axis.
pub fn refilled(g: &Geometry, spacing_mm: Zyx<f64>) -> Result<Geometry, Error> {
    if g.is_degenerate() {
        return Err(Error::Geometry { what: "respacing".into(), why: format!("the axes {:?} do not span space", g.axes_mm) });
    }
    let wanted = g.spacing_mm().zip(spacing_mm).zip(g.size).map(|((own, wanted), n): ((f64, f64), usize)| {
        if wanted > 0.0 { (n as f64 * own / wanted).round_ties_even().max(1.0) } else { n as f64 }
    });
    if !wanted.to_array().iter().all(|n| *n <= MAX_AXIS) {
        let why = format!("{wanted:?} voxels are more than {MAX_AXIS} along an axis: spacings are in millimetres");
        return Err(Error::Geometry { what: "respacing".into(), why });
    }
    let size = wanted.map(|n| n as usize);
    let step = g.size.zip(size).map(|(n, m)| n as f64 / m as f64);
    let origin = g.to_lps(step.map(|s| 0.5 * s - 0.5));
    Ok(Geometry { size, origin, axes_mm: g.axes_mm.zip(step).map(|(axis, s)| axis.scale(s)) })
}

/// Ratio of spacings from which on nnU-Net calls a volume anisotropic.
const ANISOTROPIC: f64 = 3.0;
/// Ratios of spacings closer than this differ by rounding alone.
const EQUAL: f64 = 1e-6;

/// The axis (0 is z) that nnU-Net resamples apart from the others: where the largest spacing is more than three times the smallest, the axis that has it, if one
/// alone does. Of the volume as it is, else as it shall be (nnU-Net v2 `determine_do_sep_z_and_axis`).
pub fn coarse_axis(from_mm: Zyx<f64>, to_mm: Zyx<f64>) -> Option<usize> {
    [from_mm, to_mm]
        .into_iter()
        .map(Zyx::to_array)
        .find_map(|mm| {
            let (low, high) = mm.iter().fold((f64::INFINITY, 0.0f64), |(low, high), s| (low.min(*s), high.max(*s)));
            let axes: Vec<usize> = (0..3).filter(|a| mm[*a] > high * (1.0 - EQUAL)).collect();
            (high / low > ANISOTROPIC + EQUAL).then_some(axes)
        })
        .and_then(|axes| (axes.len() == 1).then(|| axes[0]))
}

/// To the nearest, half to even. What is half but for the rounding of turned axes counts as half: a volume has one size however it lies (MONAI's follows that
/// noise there).
fn rounded(voxels: f64) -> f64 {
    let half = voxels.floor() + 0.5;
    if (voxels - half).abs() < 1e-9 { half.round_ties_even() } else { voxels.round_ties_even() }
}

/// Standard deviations, in voxels, of the Gaussian that keeps detail finer than the new grid from coming back as false pattern: (new/old − 1)/2 along an axis that
/// gets coarser (skimage `resize`), 0 along the others.
/// - `is_across`: the axes of the new grid may lie across; what counts then is how far its steps go along each axis of the old
pub fn blur_before(from: &Geometry, to: &Geometry, is_across: bool) -> Zyx<f64> {
    let coarser = |(old, new): (f64, f64)| ((new / old - 1.0) / 2.0).max(0.0);
    if !is_across {
        return from.spacing_mm().zip(to.spacing_mm()).map(coarser);
    }
    let steps = to.axes_mm.map(|axis| from.to_index(from.origin + axis)).to_array();
    let along = |of: fn(&Zyx<f64>) -> f64| steps.iter().map(|s| of(s).powi(2)).sum::<f64>().sqrt();
    Zyx::new(along(|s| s.z), along(|s| s.y), along(|s| s.x)).map(|voxels| coarser((1.0, voxels)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use voxmill_schemas::geometry::Lps;

    use super::*;

    #[test]
    fn half_a_voxel_is_rounded_to_even_whatever_the_noise() {
        let noise = [-3e-15, 0.0, 3e-15];
        assert_eq!(noise.map(|e| rounded(14.5 + e)), [14.0; 3]);
        assert_eq!(noise.map(|e| rounded(15.5 + e)), [16.0; 3]);
        assert_eq!([14.499, 14.501, 14.0].map(rounded), [14.0, 15.0, 14.0]);
    }

    proptest! {
        #[test]
        fn respacing_to_the_own_spacing_is_the_identity(z in 0.3..6.0, y in 0.3..2.0, x in 0.3..2.0, turn in -3.0..3.0f64) {
            let mut g = Geometry::axis_aligned(Zyx::new(9, 20, 31), Zyx::new(z, y, x));
            let (s, c) = turn.sin_cos();
            g.axes_mm = g.axes_mm.map(|v| Lps([c * v.0[0] - s * v.0[2], v.0[1], s * v.0[0] + c * v.0[2]]));
            g.origin = Lps([1.0, 2.0, 3.0]);
            prop_assert!(respaced(&g, g.spacing_mm(), false).unwrap().same_grid(&g, 1e-9));
            prop_assert!(respaced(&g, Zyx::splat(0.0), true).unwrap().same_grid(&g, 1e-9));
        }

        #[test]
        fn the_first_voxel_stays_and_the_far_edge_moves_by_half_a_voxel_at_most(s in 0.2..5.0, t in 0.2..5.0, n in 2usize..60) {
            let g = Geometry::axis_aligned(Zyx::splat(n), Zyx::splat(s));
            let r = respaced(&g, Zyx::splat(t), false).unwrap();
            prop_assert!((r.origin - g.origin).norm() < 1e-9);
            let far = |g: &Geometry| g.to_lps(g.size.map(|n| n as f64 - 1.0)).0[0];
            prop_assert!((far(&g) - far(&r)).abs() <= 0.5 * r.spacing_mm().x + 1e-9);
        }
    }

    #[test]
    fn a_refilled_box_keeps_its_outer_faces() {
        let g = tilted();
        let r = refilled(&g, Zyx::new(3.0, 0.7, 0.0)).unwrap();
        assert_eq!(r.size, Zyx::new(7, 11, 8));
        for (a, b) in [(Zyx::splat(-0.5), Zyx::splat(-0.5)), (g.size.map(|n| n as f64 - 0.5), r.size.map(|n| n as f64 - 0.5))] {
            assert!((g.to_lps(a) - r.to_lps(b)).norm() < 1e-9);
        }
        assert!(refilled(&g, Zyx::splat(1e-5)).is_err());
        assert!(refilled(&g, Zyx::splat(0.0)).unwrap().same_grid(&g, 1e-12));
    }

    #[test]
    fn one_axis_much_coarser_than_the_others_goes_apart() {
        let one = Zyx::splat(1.0);
        assert_eq!(coarse_axis(Zyx::new(5.0, 0.7, 0.7), one), Some(0));
        assert_eq!(coarse_axis(Zyx::new(0.7, 0.7, 2.2), one), Some(2));
        assert_eq!(coarse_axis(Zyx::new(2.1, 0.7, 0.7), one), None, "three times is not more than three times");
        assert_eq!(coarse_axis(Zyx::new(5.0, 5.0, 0.7), Zyx::new(6.0, 1.0, 1.0)), None, "two coarse axes of the volume decide");
        assert_eq!(coarse_axis(one, Zyx::new(1.0, 4.0, 1.0)), Some(1));
    }

    fn tilted() -> Geometry {
        let mut g = Geometry::axis_aligned(Zyx::new(10, 8, 8), Zyx::new(2.0, 1.0, 1.0));
        g.axes_mm.z = Lps([0.0, 2.0 * 15f64.to_radians().tan(), 2.0]);
        g
    }

    #[test]
    fn tilt_is_removed_by_turning_the_slice_step_and_kept_on_request() {
        let straight = respaced(&tilted(), Zyx::splat(1.0), false).unwrap();
        assert!(straight.tilt_degrees() < 1e-6);
        assert_eq!(straight.axes_mm.x, Lps([1., 0., 0.]));
        assert!(straight.size.y > 8, "the sheared box is wider than its slices: {}", straight.size);
        let kept = respaced(&tilted(), Zyx::splat(1.0), true).unwrap();
        assert!((kept.tilt_degrees() - tilted().tilt_degrees()).abs() < 1e-9);
    }

    #[test]
    fn a_spacing_within_a_micrometre_keeps_its_exact_value() {
        let g = Geometry::axis_aligned(Zyx::splat(5), Zyx::new(1.0009, 1.0, 0.7));
        assert_eq!(respaced(&g, Zyx::splat(1.0), false).unwrap().spacing_mm().z, 1.0009);
    }

    #[test]
    fn an_absurd_spacing_is_refused_before_anything_is_allocated() {
        let g = Geometry::axis_aligned(Zyx::splat(512), Zyx::splat(1.0));
        assert!(respaced(&g, Zyx::splat(0.002), false).unwrap_err().to_string().contains("millimetres"));
    }
}
