//! What a head is compared with: class ids become one-hot maps, averaged over the box of voxels that one logit of a coarser head stands
//! for, and signed distances likewise. All losses here are linear in the one-hot map (its square is itself), so the loss of a coarse head on averaged
//! maps equals the loss of its logits copied to full resolution (nearest neighbour, as DynUNet does it) and costs a fraction.

use std::sync::Arc;

use voxmill_schemas::geometry::Zyx;

use super::loss::{Labels, Loss};
use crate::ops::distance;

/// One-hot maps averaged over boxes of `factor` voxels: labels [n, z, y, x] → [n, class, z / factor, …]. The size must be a multiple of `factor`. Ignored
/// voxels are 0 in every class.
pub fn one_hot(batch: &Labels, factor: Zyx<usize>) -> Vec<f32> {
    let (size, classes) = (batch.size, batch.classes);
    let small = size.zip(factor).map(|(n, f)| n / f);
    let share = 1.0 / factor.count() as f32;
    let mut out = vec![0f32; batch.n * classes * small.count()];
    for b in 0..batch.n {
        let labels = &batch.labels[b * size.count()..][..size.count()];
        let maps = &mut out[b * classes * small.count()..][..classes * small.count()];
        for (zy, row) in labels.chunks_exact(size.x).enumerate() {
            let (z, y) = (zy / size.y, zy % size.y);
            let at = ((z / factor.z) * small.y + y / factor.y) * small.x;
            for (x, class) in row.iter().enumerate().filter(|(_, l)| Some(**l) != batch.ignore) {
                maps[*class as usize * small.count() + at + x / factor.x] += share;
            }
        }
    }
    out
}

/// The share of each box that counts: one-hot [n, class, position] → [n, position].
pub fn valid(one_hot: &[f32], n: usize, classes: usize) -> Vec<f32> {
    let positions = one_hot.len() / (n * classes);
    let mut out = Vec::with_capacity(n * positions);
    for maps in one_hot.chunks_exact(classes * positions) {
        out.extend((0..positions).map(|i| maps.iter().skip(i).step_by(positions).sum::<f32>()));
    }
    out
}

/// Averages over boxes of `factor` voxels: [maps, z, y, x] → [maps, z / factor, …].
pub fn average(values: &[f32], maps: usize, size: Zyx<usize>, factor: Zyx<usize>) -> Vec<f32> {
    let small = size.zip(factor).map(|(n, f)| n / f);
    let share = 1.0 / factor.count() as f32;
    let mut out = vec![0f32; maps * small.count()];
    for m in 0..maps {
        for (zy, row) in values[m * size.count()..][..size.count()].chunks_exact(size.x).enumerate() {
            let (z, y) = (zy / size.y, zy % size.y);
            let at = m * small.count() + ((z / factor.z) * small.y + y / factor.y) * small.x;
            for (x, v) in row.iter().enumerate() {
                out[at + x / factor.x] += share * v;
            }
        }
    }
    out
}

/// What the boundary and the Hausdorff loss need of the labels, at full resolution; each is made where its loss has a weight.
#[derive(Clone, Debug, Default)]
pub struct Distances {
    /// Signed distance of every class that counts, in voxels, [n, class, z, y, x]. Outside: distance to the class, inside: 1 − distance to its complement,
    /// so 0 on its inner rim. 0 everywhere where the class is absent or fills the patch (MONAI's BoundaryLoss), and at ignored voxels.
    pub signed: Option<Vec<f32>>,
    pub rims: Option<Arc<Rims>>,
}

/// What the Hausdorff loss is measured with (MONAI `HausdorffDTLoss`).
#[derive(Debug)]
pub struct Rims {
    labels: Vec<u8>,
    size: Zyx<usize>,
    ignore: Option<u8>,
    first_class: usize,
    power: f32,
    /// Distance to the other side of the truth, to the power: [n, class, z, y, x].
    truth: Vec<f32>,
}

/// The error of a voxel, p² − 2pg + g, is weighted with its distances D: boxes of voxels hold the means of D and of D·g. [n, class, position] both.
pub struct RimMaps {
    pub all: Vec<f32>,
    pub on_truth: Vec<f32>,
}

impl Distances {
    pub fn of(loss: &Loss, batch: &Labels) -> Self {
        let (first, size) = (loss.first_class(), batch.size);
        let of_classes = |of: &dyn Fn(&[u8]) -> Vec<f32>| {
            let mut out = Vec::with_capacity(batch.n * (batch.classes - first) * size.count());
            for labels in batch.labels.chunks_exact(size.count()).take(batch.n) {
                for class in first..batch.classes {
                    let mask: Vec<u8> = labels.iter().map(|l| (*l as usize == class && Some(*l) != batch.ignore) as u8).collect();
                    let mut map = of(&mask);
                    if batch.ignore.is_some() {
                        map.iter_mut().zip(labels).filter(|(_, l)| Some(**l) == batch.ignore).for_each(|(v, _)| *v = 0.0);
                    }
                    out.extend(map);
                }
            }
            out
        };
        let power = loss.hausdorff_power as f32;
        Self {
            signed: (loss.boundary > 0.0).then(|| of_classes(&|mask| distance::signed_mm(mask, size, Zyx::splat(1.0), 1.0))),
            rims: (loss.hausdorff > 0.0).then(|| {
                Arc::new(Rims {
                    labels: batch.labels.to_vec(),
                    size,
                    ignore: batch.ignore,
                    first_class: first,
                    power,
                    truth: of_classes(&|mask| across(mask, size, power)),
                })
            }),
        }
    }
}

/// Distance of every voxel to the nearest one on the other side of the mask, in voxels, to the power; 0 where there is no other side.
fn across(mask: &[u8], size: Zyx<usize>, power: f32) -> Vec<f32> {
    let mut d = distance::signed_mm(mask, size, Zyx::splat(1.0), 0.0);
    d.iter_mut().for_each(|v| *v = if power == 2.0 { *v * *v } else { v.abs().powf(power) });
    d
}

impl Rims {
    /// - `p(b, class)`: the probabilities of a sample and class (counted from the first that counts), one a box of `factor` voxels
    pub fn maps<'a>(&self, n: usize, classes: usize, factor: Zyx<usize>, p: impl Fn(usize, usize) -> &'a [f32]) -> RimMaps {
        let (size, voxels) = (self.size, self.size.count());
        let small = size.zip(factor).map(|(n, f)| n / f);
        let share = 1.0 / factor.count() as f32;
        let length = n * classes * small.count();
        let mut out = RimMaps { all: vec![0.0; length], on_truth: vec![0.0; length] };
        let position = |v: usize| {
            let (z, y, x) = (v / (size.y * size.x), v / size.x % size.y, v % size.x);
            ((z / factor.z) * small.y + y / factor.y) * small.x + x / factor.x
        };
        for b in 0..n {
            let labels = &self.labels[b * voxels..][..voxels];
            for class in 0..classes {
                let p = p(b, class);
                let mask: Vec<u8> = (0..voxels).map(|v| (p[position(v)] > 0.5) as u8).collect();
                let predicted = across(&mask, size, self.power);
                let map = b * classes + class;
                let (at, truth) = (map * small.count(), &self.truth[map * voxels..][..voxels]);
                for v in (0..voxels).filter(|v| Some(labels[*v]) != self.ignore) {
                    let d = share * (predicted[v] + truth[v]);
                    out.all[at + position(v)] += d;
                    if labels[v] as usize == class + self.first_class {
                        out.on_truth[at + position(v)] += d;
                    }
                }
            }
        }
        out
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn batch(labels: &[u8], classes: usize, size: Zyx<usize>) -> Labels<'_> {
        Labels { labels, n: 1, classes, size, ignore: None }
    }

    fn signed(labels: &[u8], classes: usize, size: Zyx<usize>) -> Vec<f32> {
        let loss: Loss = serde_json::from_value(json!({ "boundary": 1 })).unwrap();
        Distances::of(&loss, &batch(labels, classes, size)).signed.unwrap()
    }

    #[test]
    fn boxes_hold_the_share_of_each_class() {
        let labels = [0, 1, 2, 2, 1, 1, 2, 0];
        let size = Zyx::new(1, 2, 4);
        let got = one_hot(&batch(&labels, 3, size), Zyx::new(1, 2, 2));
        assert_eq!(got, [0.25, 0.25, 0.75, 0.0, 0.0, 0.75]);
        let full = one_hot(&batch(&labels, 3, size), Zyx::splat(1));
        assert_eq!(average(&full, 3, size, Zyx::new(1, 2, 2)), got);
        let ignoring = one_hot(&Labels { ignore: Some(2), ..batch(&labels, 2, size) }, Zyx::new(1, 2, 2));
        assert_eq!((&ignoring[..], &valid(&ignoring, 1, 2)[..]), (&[0.25, 0.25, 0.75, 0.0][..], &[1.0, 0.25][..]));
    }

    #[test]
    fn distance_equals_brute_force() {
        let size = Zyx::new(5, 6, 7);
        let labels: Vec<u8> = (0..size.count()).map(|v| (v * 7919 % 31 == 0) as u8).collect();
        let place = |v: usize| [v / 42, v / 7 % 6, v % 7].map(|p| p as f64);
        let got = signed(&labels, 2, size);
        let to_nearest = |v: usize, class: u8| {
            let to = |s: usize| place(v).iter().zip(place(s)).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
            (0..size.count()).filter(|s| labels[*s] == class).map(to).fold(f64::INFINITY, f64::min).sqrt()
        };
        for v in 0..size.count() {
            let want = if labels[v] == 1 { 1.0 - to_nearest(v, 0) as f32 } else { to_nearest(v, 1) as f32 };
            assert_eq!(got[v], want);
        }
    }

    #[test]
    fn absent_and_full_classes_have_no_distance() {
        let size = Zyx::splat(2);
        assert!(signed(&[1; 8], 3, size).iter().all(|v| *v == 0.0));
        let one = signed(&[1, 0, 0, 0, 0, 0, 0, 0], 2, size);
        assert_eq!(one[0], 0.0);
        assert_eq!(one[7], 3f32.sqrt());
    }
}
