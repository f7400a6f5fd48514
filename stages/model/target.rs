//! What a head is compared with: class ids become one-hot maps, averaged over the box of voxels that one logit of a coarser head stands
//! for, and signed distances likewise. All losses here are linear in the one-hot map, so the loss of a coarse head on averaged maps equals
//! the loss of its logits copied to full resolution (nearest neighbour, as DynUNet does it) and costs a fraction.

use voxmill_schemas::geometry::Zyx;

use crate::ops::distance;

/// One-hot maps averaged over boxes of `factor` voxels: labels [n, z, y, x] → [n, class, z / factor, …].
/// `size` must be a multiple of `factor`, labels below `classes`.
pub fn one_hot(labels: &[u8], n: usize, classes: usize, size: Zyx<usize>, factor: Zyx<usize>) -> Vec<f32> {
    let small = size.zip(factor).map(|(n, f)| n / f);
    let share = 1.0 / factor.count() as f32;
    let mut out = vec![0f32; n * classes * small.count()];
    for b in 0..n {
        let labels = &labels[b * size.count()..][..size.count()];
        let maps = &mut out[b * classes * small.count()..][..classes * small.count()];
        for (zy, row) in labels.chunks_exact(size.x).enumerate() {
            let (z, y) = (zy / size.y, zy % size.y);
            let at = ((z / factor.z) * small.y + y / factor.y) * small.x;
            for (x, class) in row.iter().enumerate() {
                maps[*class as usize * small.count() + at + x / factor.x] += share;
            }
        }
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

/// Signed distance of every foreground class, in voxels: labels [n, z, y, x] → [n, classes − 1, z, y, x].
/// Outside: distance to the class, inside: 1 − distance to its complement, so 0 on its inner rim. 0 everywhere where the class is absent
/// or fills the patch (MONAI's BoundaryLoss).
pub fn signed_distance(labels: &[u8], n: usize, classes: usize, size: Zyx<usize>) -> Vec<f32> {
    let voxels = size.count();
    let mut out = Vec::with_capacity(n * (classes - 1) * voxels);
    for labels in labels.chunks_exact(voxels).take(n) {
        for class in 1..classes {
            let mask: Vec<u8> = labels.iter().map(|l| (*l as usize == class) as u8).collect();
            out.extend(distance::signed_mm(&mask, size, Zyx::splat(1.0), 1.0));
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn boxes_hold_the_share_of_each_class() {
        let labels = [0, 1, 2, 2, 1, 1, 2, 0];
        let got = one_hot(&labels, 1, 3, Zyx::new(1, 2, 4), Zyx::new(1, 2, 2));
        assert_eq!(got, [0.25, 0.25, 0.75, 0.0, 0.0, 0.75]);
        let full = one_hot(&labels, 1, 3, Zyx::new(1, 2, 4), Zyx::splat(1));
        assert_eq!(average(&full, 3, Zyx::new(1, 2, 4), Zyx::new(1, 2, 2)), got);
    }

    #[test]
    fn distance_equals_brute_force() {
        let size = Zyx::new(5, 6, 7);
        let labels: Vec<u8> = (0..size.count()).map(|v| (v * 7919 % 31 == 0) as u8).collect();
        let place = |v: usize| [v / 42, v / 7 % 6, v % 7].map(|p| p as f64);
        let got = signed_distance(&labels, 1, 2, size);
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
        assert!(signed_distance(&[1; 8], 1, 3, size).iter().all(|v| *v == 0.0));
        let one = signed_distance(&[1, 0, 0, 0, 0, 0, 0, 0], 1, 2, size);
        assert_eq!(one[0], 0.0);
        assert_eq!(one[7], 3f32.sqrt());
    }
}
