//! Network output back onto another grid of the same patient: logits are interpolated, then the largest wins. Blending logits and choosing last keeps
//! borders smooth, which resampling finished labels does not.

use rayon::prelude::*;
use voxmill_schemas::geometry::Geometry;
use voxmill_schemas::region::Region;

use super::plan::{self, Part, Plan};
use super::resample::{Interpolation, Outside};

/// The class with the largest logit, the smaller id on a tie.
///
/// - logits: `[class, z, y, x]`
/// - returns: `[z, y, x]`
pub fn argmax(logits: &[f32], n_classes: usize) -> Vec<u8> {
    let n = logits.len() / n_classes.max(1);
    (0..n).into_par_iter().map(|i| largest((0..n_classes).map(|c| logits[c * n + i]))).collect()
}

/// Class ids on the grid `to` from logits on the grid `from`: trilinear, then [`argmax`]. Every part of a volume's history that is a geometry (crop, pad,
/// flip, respacing) is undone by it. A voxel centre more than half a voxel outside `from` is background: nothing was predicted there.
///
/// - logits: `[class, z, y, x]` on `from`
/// - returns: `[z, y, x]` on `to`
pub fn labels_on(logits: &[f32], n_classes: usize, from: &Geometry, to: &Geometry) -> Vec<u8> {
    let n = from.size.count();
    assert_eq!(logits.len(), n * n_classes, "one logit a class and voxel");
    // Below every logit: class 0 wins where nothing was predicted.
    let plan = Plan::new(from, to, Interpolation::Linear, Outside::Value(f32::NEG_INFINITY));
    let mut out = vec![0u8; to.size.count()];
    // A slab at a time: one plane of logits a class would not fit in memory.
    plan::slabs(Region::whole(to.size), &mut out, |slab, out| {
        let (mut best, mut here) = (vec![f32::NEG_INFINITY; out.len()], vec![0.0f32; out.len()]);
        for (class, logits) in logits.chunks_exact(n.max(1)).enumerate() {
            plan.run(Part::whole(logits, from.size), slab, &[], &mut here);
            for ((out, best), here) in out.iter_mut().zip(&mut best).zip(&here) {
                if *here > *best {
                    (*best, *out) = (*here, class as u8);
                }
            }
        }
    });
    out
}

fn largest(values: impl Iterator<Item = f32>) -> u8 {
    let (class, _) = values.enumerate().fold((0, f32::NEG_INFINITY), |best, (c, v)| if v > best.1 { (c, v) } else { best });
    class as u8
}

#[cfg(test)]
mod tests {
    use voxmill_schemas::geometry::{Lps, Zyx};
    use voxmill_schemas::region::Region;

    use super::*;

    fn one_hot(labels: &[u8], n_classes: usize) -> Vec<f32> {
        (0..n_classes).flat_map(|c| labels.iter().map(move |l| if *l as usize == c { 4.0 } else { -4.0 })).collect()
    }

    fn blocks(size: Zyx<usize>) -> Vec<u8> {
        (0..size.count()).map(|i| ((i / (size.y * size.x) / 2 + i % size.x / 3) % 3) as u8).collect()
    }

    #[test]
    fn the_same_grid_gives_the_largest_logit() {
        let g = Geometry::axis_aligned(Zyx::new(4, 5, 6), Zyx::new(2.0, 0.7, 0.9));
        let labels = blocks(g.size);
        let logits = one_hot(&labels, 3);
        assert_eq!(argmax(&logits, 3), labels);
        assert_eq!(labels_on(&logits, 3, &g, &g), labels);
    }

    #[test]
    fn a_crop_goes_back_to_its_place_and_the_rest_is_background() {
        let g = Geometry::axis_aligned(Zyx::new(6, 6, 6), Zyx::new(1.5, 0.3, 0.3));
        let crop = g.crop(Region { start: Zyx::new(1, 2, 3), size: Zyx::new(4, 3, 2) });
        let out = labels_on(&one_hot(&[2; 24], 3), 3, &crop, &g);
        for (i, v) in out.iter().enumerate() {
            let (z, y, x) = (i / 36, i / 6 % 6, i % 6);
            let inside = (1..5).contains(&z) && (2..5).contains(&y) && (3..5).contains(&x);
            assert_eq!(*v, if inside { 2 } else { 0 }, "at {z} {y} {x}");
        }
    }

    #[test]
    fn a_flipped_and_permuted_grid_is_undone() {
        let g = Geometry::axis_aligned(Zyx::new(2, 3, 4), Zyx::new(3.0, 1.0, 2.0));
        // x reversed, z and y exchanged.
        let turned = Geometry {
            size: Zyx::new(3, 2, 4),
            origin: g.to_lps(Zyx::new(0., 0., 3.)),
            axes_mm: Zyx::new(g.axes_mm.y, g.axes_mm.z, g.axes_mm.x.scale(-1.0)),
        };
        let on_turned: Vec<u8> = (0..24).map(|i| (i % 3) as u8).collect();
        let back = labels_on(&one_hot(&on_turned, 3), 3, &turned, &g);
        for z in 0..2 {
            for y in 0..3 {
                for x in 0..4 {
                    assert_eq!(back[(z * 3 + y) * 4 + x], on_turned[(y * 2 + z) * 4 + (3 - x)]);
                }
            }
        }
    }

    #[test]
    fn finer_grids_see_smooth_borders() {
        let coarse = Geometry::axis_aligned(Zyx::new(1, 1, 4), Zyx::splat(1.0));
        let fine = Geometry { size: Zyx::new(1, 1, 8), origin: Lps([-0.25, 0., 0.]), axes_mm: coarse.axes_mm.map(|a| a.scale(0.5)) };
        assert_eq!(labels_on(&one_hot(&[0, 0, 1, 1], 2), 2, &coarse, &fine), [0, 0, 0, 0, 1, 1, 1, 1]);
    }
}
