//! Network output back onto another grid of the same patient: logits are interpolated, then the largest wins. Blending logits and choosing last keeps
//! borders smooth, which resampling finished labels does not.

use rayon::prelude::*;
use voxmill_schemas::geometry::{Geometry, Zyx};
use voxmill_schemas::region::Region;

use super::plan::{Part, Plan};
use super::resample::{Interpolation, Outside};

/// The class with the largest logit, the smaller id on a tie.
///
/// - logits: `[class, z, y, x]`
/// - returns: `[z, y, x]`
pub fn argmax(logits: &[f32], n_classes: usize) -> Vec<u8> {
    let n = logits.len() / n_classes.max(1);
    (0..n).into_par_iter().map(|i| largest((0..n_classes).map(|c| logits[c * n + i]))).collect()
}

/// Class ids on the grid `to` from logits on the grid `from`: trilinear, then the largest wins, the smaller id on a tie. Every part of a volume's history
/// that is a geometry (crop, pad, flip, respacing) is undone by it. A voxel centre more than half a voxel outside `from` is background: nothing was predicted there.
///
/// - logits: `[class, z, y, x]` on `from`
/// - returns: `[z, y, x]` on `to`
pub fn labels_on(logits: &[f32], n_classes: usize, from: &Geometry, to: &Geometry) -> Vec<u8> {
    assert_eq!(logits.len(), from.size.count() * n_classes, "one logit a class and voxel");
    let mut stitch = Stitch::new(n_classes, from, to);
    stitch.push(logits);
    stitch.finish()
}

/// [`labels_on`] for logits that come plane by plane: each part of the output is made as soon as the planes that it reads are there, and planes that no part
/// reads any more are dropped. Where the two grids share the direction of their slices, few planes are held; where they do not, many.
pub struct Stitch {
    plan: Plan,
    from: Zyx<usize>,
    /// Size of the output.
    to: Zyx<usize>,
    /// Parts of the output that are not made yet and what they read, those that are ready first at the end.
    left: Vec<(Region, Region)>,
    /// Planes that came so far.
    seen: usize,
    /// The first plane that is held.
    first: usize,
    /// Of each class: `[planes held, y, x]`.
    held: Vec<Vec<f32>>,
    out: Vec<u8>,
}

/// The plane after the last one that is read.
fn end(need: &Region) -> i64 {
    if need.size.count() == 0 { 0 } else { need.start.z + need.size.z as i64 }
}

/// Planes of the output that are made together.
const PLANES: usize = 8;

impl Stitch {
    pub fn new(n_classes: usize, from: &Geometry, to: &Geometry) -> Self {
        // Below every logit: class 0 wins where nothing was predicted.
        let plan = Plan::new(from, to, Interpolation::Linear, Outside::Value(f32::NEG_INFINITY));
        // Cut along the axis whose parts read the fewest planes; z on a tie, as its parts lie together.
        let parts = |axis: usize| -> Vec<(Region, Region)> {
            let n = to.size.to_array()[axis];
            let part = |start: usize| {
                let (mut first, mut size) = ([0i64; 3], to.size.to_array());
                (first[axis], size[axis]) = (start as i64, PLANES.min(n - start));
                let region = Region { start: Zyx::from_array(first), size: Zyx::from_array(size) };
                (region, plan.needs(region))
            };
            (0..n).step_by(PLANES).map(part).collect()
        };
        let cost = |parts: &Vec<(Region, Region)>| parts.iter().map(|(_, need)| need.size.z).max().unwrap_or(0);
        let mut left = (0..3).map(parts).reduce(|a, b| if cost(&b) < cost(&a) { b } else { a }).expect("three axes");
        left.sort_by_key(|(_, need)| std::cmp::Reverse(end(need)));
        let out = vec![0u8; to.size.count()];
        Self { plan, from: from.size, to: to.size, left, seen: 0, first: 0, held: vec![Vec::new(); n_classes], out }
    }

    /// The next planes, `[class, planes, y, x]`.
    pub fn push(&mut self, planes: &[f32]) {
        let plane = self.from.y * self.from.x;
        let each = planes.len() / self.held.len().max(1);
        self.held.iter_mut().zip(planes.chunks_exact(each.max(1))).for_each(|(held, new)| held.extend_from_slice(new));
        self.seen += each / plane.max(1);
        let waiting = self.left.partition_point(|(_, need)| end(need) > self.seen as i64);
        let ready = self.left.split_off(waiting);
        let made: Vec<Vec<u8>> = ready.par_iter().map(|(region, need)| self.make(*region, *need)).collect();
        for ((region, _), made) in ready.iter().zip(&made) {
            let start = region.start.map(|s| s as usize);
            for (row, line) in made.chunks_exact(region.size.x.max(1)).enumerate() {
                let (z, y) = (start.z + row / region.size.y, start.y + row % region.size.y);
                self.out[(z * self.to.y + y) * self.to.x + start.x..][..line.len()].copy_from_slice(line);
            }
        }
        let wanted =
            self.left.iter().filter(|(_, need)| need.size.count() > 0).map(|(_, need)| need.start.z as usize).min().unwrap_or(self.seen);
        let dropped = wanted.clamp(self.first, self.seen) - self.first;
        if dropped > 0 {
            self.held.iter_mut().for_each(|held| drop(held.drain(..dropped * plane)));
            self.first += dropped;
        }
    }

    fn make(&self, region: Region, need: Region) -> Vec<u8> {
        let n = region.size.count();
        let mut out = vec![0u8; n];
        if need.size.count() == 0 {
            return out;
        }
        let (mut best, mut here) = (vec![f32::NEG_INFINITY; n], vec![0.0f32; n]);
        let held = Region { start: Zyx::new(self.first as i64, 0, 0), size: Zyx::new(self.seen - self.first, self.from.y, self.from.x) };
        for (class, logits) in self.held.iter().enumerate() {
            self.plan.run(Part { voxels: logits, region: held }, region, &[], &mut here);
            for ((out, best), here) in out.iter_mut().zip(&mut best).zip(&here) {
                if *here > *best {
                    (*best, *out) = (*here, class as u8);
                }
            }
        }
        out
    }

    /// The labels, `[z, y, x]`, once all planes came.
    pub fn finish(self) -> Vec<u8> {
        assert!(self.left.is_empty(), "all planes were given");
        self.out
    }
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
    fn planes_one_by_one_give_the_labels_of_the_whole() {
        let from = Geometry::axis_aligned(Zyx::new(30, 7, 9), Zyx::new(1.0, 0.8, 0.6));
        let logits: Vec<f32> = (0..3 * from.size.count()).map(|v| (v * 7919 % 1009) as f32 / 100.0).collect();
        let along = Geometry {
            size: Zyx::new(44, 8, 6),
            origin: Lps([0.1, -0.4, 0.3]),
            axes_mm: Zyx::new(0.7, 0.75, 0.9).zip(from.axes_mm).map(|(s, a)| a.scale(s)),
        };
        // Slices run the other way, and along another axis.
        let back = Geometry {
            origin: from.to_lps(Zyx::new(29.0, 0.0, 0.0)),
            axes_mm: Zyx::new(from.axes_mm.z.scale(-1.0), from.axes_mm.y, from.axes_mm.x),
            ..from
        };
        let turned = Geometry { size: Zyx::new(7, 30, 9), axes_mm: Zyx::new(from.axes_mm.y, from.axes_mm.z, from.axes_mm.x), ..from };
        let plane = 63;
        for (to, most) in [(from, 9), (along, 9), (back, 9), (turned, 9)] {
            let want = labels_on(&logits, 3, &from, &to);
            let mut stitch = Stitch::new(3, &from, &to);
            for z in 0..30 {
                let planes: Vec<f32> = (0..3).flat_map(|c| logits[(c * 30 + z) * plane..][..plane].to_vec()).collect();
                stitch.push(&planes);
                assert!(stitch.held[0].len() <= most * plane, "{} planes are held", stitch.held[0].len() / plane);
            }
            assert!(stitch.finish() == want);
        }
    }

    #[test]
    fn finer_grids_see_smooth_borders() {
        let coarse = Geometry::axis_aligned(Zyx::new(1, 1, 4), Zyx::splat(1.0));
        let fine = Geometry { size: Zyx::new(1, 1, 8), origin: Lps([-0.25, 0., 0.]), axes_mm: coarse.axes_mm.map(|a| a.scale(0.5)) };
        assert_eq!(labels_on(&one_hot(&[0, 0, 1, 1], 2), 2, &coarse, &fine), [0, 0, 0, 0, 1, 1, 1, 1]);
    }
}
