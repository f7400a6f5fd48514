//! Values of a volume on another grid: linear, nearest or cubic B-spline (MONAI `SpatialResample` on float64), what may stand outside, and whole volumes in
//! one call. Right-angled pairs of grids go axis by axis (`separable`), oblique ones voxel by voxel (`points`); `plan` decides and runs regions.

use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::{Geometry, Zyx};
use voxmill_schemas::region::Region;

use super::matrix::{self, Affine};
use super::plan::{Part, Plan, Voxel};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Trilinear, from the 8 voxels around a point.
    Linear,
    /// The closest voxel.
    Nearest,
    /// Cubic B-spline through the voxels (order 3): sharper, may overshoot the range of its input.
    Cubic,
}

/// How class ids are carried over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LabelInterpolation {
    /// The class of the closest voxel.
    Nearest,
    /// Each class is interpolated linearly and the strongest wins, the lower id on a tie: smoother surfaces, and thin structures may vanish.
    Linear,
}

/// What stands where the input grid has no voxels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outside {
    /// The closest voxel of the edge, however far (MONAI `border`).
    Edge,
    /// This value from half a voxel beyond the outermost centres on; up to there the edge.
    Value(f32),
    /// The neighbours of a point that lie outside count as 0 (MONAI `zeros`): the edge fades over one voxel.
    Fade,
    /// The picture mirrored at half a voxel beyond the outermost centres (MONAI `reflection`).
    Reflect,
}

/// Largest sum of cross terms, in voxels, with which a map still counts as right-angled.
const RIGHT_ANGLED_VOXELS: f64 = 1e-9;

/// Channels on another grid.
///
/// - values: `[c, z, y, x]` on `from`; the result is `[c, z, y, x]` on `to`
///
/// Grids that agree within a thousandth of a voxel give the values untouched. Neither grid may be degenerate.
pub fn resample_to<T: Voxel>(values: &[T], from: &Geometry, to: &Geometry, how: Interpolation, outside: Outside) -> Vec<f32> {
    run_channels(&Plan::new(from, to, how, outside), values)
}

/// Class ids on another grid. [`Outside::Value`] gives that class, rounded; [`Outside::Fade`] is background.
///
/// - labels: `[z, y, x]` on `from`; the result is `[z, y, x]` on `to`
pub fn resample_labels(labels: &[u8], from: &Geometry, to: &Geometry, how: LabelInterpolation, outside: Outside) -> Vec<u8> {
    let plan = Plan::labels(from, to, how, outside);
    let mut out = vec![0; to.size.count()];
    plan.run_labels(Part::whole(labels, from.size), Region::whole(to.size), &mut out);
    out
}

/// Values at the points `map`·(x, y, z, 1) of each output index: the general way, any affine map.
///
/// - values: `[c, z, y, x]` of `size`; the result is `[c, z, y, x]` of `to`
pub fn sample<T: Voxel>(values: &[T], map: &Affine, size: Zyx<usize>, to: Zyx<usize>, how: Interpolation, outside: Outside) -> Vec<f32> {
    run_channels(&Plan::of_map(map, size, to, how, outside), values)
}

fn run_channels<T: Voxel>(plan: &Plan, values: &[T]) -> Vec<f32> {
    let (from, to) = (plan.from.count().max(1), plan.to.count());
    let mut out = vec![0.0f32; values.len() / from * to];
    for (values, out) in values.chunks_exact(from).zip(out.chunks_exact_mut(to.max(1))) {
        plan.run(Part::whole(values, plan.from), Region::whole(plan.to), &[], out);
    }
    out
}

/// From an index of `to` to the index of `from` at the same point, in the order x, y, z.
pub fn index_map(from: &Geometry, to: &Geometry) -> Affine {
    matrix::solve(&from.affine_ras_xyz(), &to.affine_ras_xyz())
}

/// Whether each axis of the output runs along its own axis of the input.
pub fn right_angled(map: &Affine, size: Zyx<usize>) -> bool {
    let last = [size.x, size.y, size.z].map(|n| n.saturating_sub(1) as f64);
    (0..3).all(|r| (0..3).filter(|c| *c != r).map(|c| (map[r][c] * last[c]).abs()).sum::<f64>() <= RIGHT_ANGLED_VOXELS)
}

impl Outside {
    /// What stands where there is nothing; only `Value` has a say.
    pub fn value(self) -> f32 {
        if let Outside::Value(v) = self { v } else { 0.0 }
    }

    /// Whether a coordinate on an axis of `n` voxels is one that the outside fills whole.
    pub fn covers(self, p: f64, n: usize) -> bool {
        let beyond = |margin: f64| !(p >= -margin && p <= (n as f64 - 1.0) + margin);
        match self {
            // Grids that differ by a crop meet at exactly half a voxel: leave room for rounding.
            Outside::Value(_) => beyond(0.5 + 1e-6),
            Outside::Fade => beyond(1.0),
            Outside::Edge | Outside::Reflect => false,
        }
    }

    /// The coordinate that is looked at instead. Not a number becomes 0.
    pub fn fold(self, p: f64, n: usize) -> f64 {
        let last = n as f64 - 1.0;
        match self {
            Outside::Fade => p,
            Outside::Reflect => {
                // Mirrors at −½ and n − ½: a saw-tooth of period 2n.
                let q = (p + 0.5).rem_euclid(2.0 * n as f64);
                (if q > n as f64 { 2.0 * n as f64 - q } else { q } - 0.5).max(0.0).min(last)
            }
            // `max` before `min`: NaN becomes 0.
            Outside::Edge | Outside::Value(_) => p.max(0.0).min(last),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use voxmill_schemas::geometry::Lps;

    use super::*;
    use crate::ops::respace::respaced;

    fn noise(n: usize) -> Vec<f32> {
        (0..n as u64)
            .map(|i| ((i.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407) >> 33) % 2001) as f32 - 1000.0)
            .collect()
    }

    fn grid(spacing: [f64; 3], turn: f64) -> Geometry {
        let mut g = Geometry::axis_aligned(Zyx::new(6, 9, 11), Zyx::from_array(spacing));
        let (s, c) = turn.sin_cos();
        g.axes_mm = g.axes_mm.map(|v| Lps([c * v.0[0] - s * v.0[1], s * v.0[0] + c * v.0[1], v.0[2]]));
        g.origin = Lps([12.0, -30.0, 7.0]);
        g
    }

    /// What is linear in the patient's millimetres stays so, whatever the grid: voxels keep their place.
    #[test]
    fn a_ramp_in_the_patient_survives_any_grid_inside_the_volume() {
        let from = grid([2.5, 0.8, 0.7], 0.3);
        let ramp = |g: &Geometry| -> Vec<f32> {
            (0..g.size.count())
                .map(|i| {
                    let at = Zyx::new(i / (g.size.y * g.size.x), i / g.size.x % g.size.y, i % g.size.x).map(|v| v as f64);
                    g.to_lps(at).dot(Lps([1.0, -2.0, 0.5])) as f32
                })
                .collect()
        };
        // Inside `from`, along its axes and across them.
        let start = from.to_lps(Zyx::new(1.2, 2.1, 2.4));
        let along = Geometry { size: Zyx::splat(3), origin: start, axes_mm: from.axes_mm.map(|a| a.scale(0.9)) };
        let across = Geometry {
            size: Zyx::splat(3),
            origin: start,
            axes_mm: Zyx::new(Lps([0.1, 0.2, 0.9]), Lps([0.0, 0.8, -0.2]), Lps([0.5, 0.0, 0.3])),
        };
        let exchanged = Geometry {
            size: Zyx::splat(3),
            origin: start,
            axes_mm: Zyx::new(from.axes_mm.x, from.axes_mm.z.scale(0.5), from.axes_mm.y.scale(-0.5)),
        };
        for to in [along, across, exchanged] {
            let (got, wanted) = (resample_to(&ramp(&from), &from, &to, Interpolation::Linear, Outside::Edge), ramp(&to));
            assert!(got.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-4), "{got:?} {wanted:?}");
        }
    }

    proptest! {
        #[test]
        fn the_two_ways_agree(z in 0.5..4.0, y in 0.4..2.0, x in 0.4..2.0, cubic in any::<bool>(), value in any::<bool>()) {
            let (from, how) = (grid([2.5, 0.8, 0.7], 0.2), if cubic { Interpolation::Cubic } else { Interpolation::Linear });
            let mut to = respaced(&from, Zyx::new(z, y, x), false).unwrap();
            // Let the grid stick out on both sides.
            to = to.crop(voxmill_schemas::region::Region { start: Zyx::splat(-2), size: to.size.map(|n| n + 4) });
            let outside = if value { Outside::Value(-7.0) } else { Outside::Edge };
            let values = noise(2 * from.size.count());
            let fast = resample_to(&values, &from, &to, how, outside);
            let general = sample(&values, &index_map(&from, &to), from.size, to.size, how, outside);
            for (a, b) in fast.iter().zip(&general) {
                prop_assert!((a - b).abs() < 2e-3, "{a} {b}");
            }
        }

        #[test]
        fn own_spacing_and_there_and_back_on_a_finer_grid_keep_every_label(bits in proptest::collection::vec(0u8..3, 6 * 9 * 11), linear in any::<bool>()) {
            let from = grid([2.5, 0.8, 0.7], -0.4);
            let how = if linear { LabelInterpolation::Linear } else { LabelInterpolation::Nearest };
            let own = respaced(&from, from.spacing_mm(), false).unwrap();
            prop_assert_eq!(&resample_labels(&bits, &from, &own, how, Outside::Edge), &bits);
            let fine = respaced(&from, from.spacing_mm().map(|s| s / 2.0), false).unwrap();
            let there = resample_labels(&bits, &from, &fine, how, Outside::Edge);
            prop_assert_eq!(&resample_labels(&there, &fine, &from, how, Outside::Edge), &bits);
        }

        #[test]
        fn labels_by_class_are_the_strongest_of_their_masks(bits in proptest::collection::vec(0u8..4, 6 * 9 * 11), s in 0.3..2.0) {
            let from = grid([2.5, 0.8, 0.7], 0.1);
            let to = respaced(&from, Zyx::splat(s), false).unwrap();
            let masks: Vec<f32> = (0..4u8).flat_map(|c| bits.iter().map(move |b| (*b == c) as u8 as f32)).collect();
            let scores = resample_to(&masks, &from, &to, Interpolation::Linear, Outside::Edge);
            let got = resample_labels(&bits, &from, &to, LabelInterpolation::Linear, Outside::Edge);
            let n = to.size.count();
            for (i, class) in got.iter().enumerate() {
                let best = (0..4).map(|c| scores[c * n + i]).fold(0.0, f32::max);
                prop_assert!(scores[*class as usize * n + i] >= best - 1e-5);
            }
        }
    }

    #[test]
    fn what_lies_outside_is_the_edge_a_value_or_fades() {
        let from = Geometry::axis_aligned(Zyx::new(1, 1, 3), Zyx::splat(1.0));
        let to = Geometry { size: Zyx::new(1, 1, 5), origin: Lps([-0.8, 0.0, 0.0]), axes_mm: from.axes_mm.map(|a| a.scale(0.9)) };
        let row = |outside| resample_to(&[10.0, 20.0, 30.0], &from, &to, Interpolation::Linear, outside);
        let near = |a: Vec<f32>, b: [f32; 5]| assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4), "{a:?} {b:?}");
        near(row(Outside::Edge), [10.0, 11.0, 20.0, 29.0, 30.0]);
        near(row(Outside::Value(-1.0)), [-1.0, 11.0, 20.0, 29.0, -1.0]);
        near(row(Outside::Fade), [2.0, 11.0, 20.0, 29.0, 6.0]);
        near(row(Outside::Reflect), [10.0, 11.0, 20.0, 29.0, 30.0]);
    }

    #[test]
    fn cubic_is_scipy_map_coordinates() {
        // scipy.ndimage.map_coordinates(a, [p], order=3, mode="nearest") of a = [1, 5, 2, 8, 3].
        let values = [1.0f32, 5.0, 2.0, 8.0, 3.0];
        let from = Geometry::axis_aligned(Zyx::new(1, 1, 5), Zyx::splat(1.0));
        let to = Geometry { size: Zyx::new(1, 1, 6), origin: Lps([0.3, 0.0, 0.0]), axes_mm: from.axes_mm.map(|a| a.scale(0.75)) };
        let got = resample_to(&values, &from, &to, Interpolation::Cubic, Outside::Edge);
        let wanted = [2.399411179755482, 4.945674629547731, 2.0271988156919165, 5.498790509522489, 7.390462674373469, 2.7998192176016827];
        assert!(got.iter().zip(wanted).all(|(a, b)| (*a as f64 - b).abs() < 1e-5), "{got:?} {wanted:?}");
    }
}
