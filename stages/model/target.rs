//! What a head is compared with: class ids become one-hot maps, averaged over the box of voxels that one logit of a coarser head stands
//! for, and signed distances likewise. All losses here are linear in the one-hot map, so the loss of a coarse head on averaged maps equals
//! the loss of its logits copied to full resolution (nearest neighbour, as DynUNet does it) and costs a fraction.

use voxmill_schemas::geometry::Zyx;

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
            let inside = |v: usize| labels[v] as usize == class;
            let count = (0..voxels).filter(|v| inside(*v)).count();
            if count == 0 || count == voxels {
                out.resize(out.len() + voxels, 0.0);
                continue;
            }
            let to_class = squared_distance(size, inside);
            let to_rest = squared_distance(size, |v| !inside(v));
            out.extend((0..voxels).map(|v| if inside(v) { 1.0 - to_rest[v].sqrt() as f32 } else { to_class[v].sqrt() as f32 }));
        }
    }
    out
}

/// Squared Euclidean distance in voxels to the nearest voxel where `seed` holds; at least one must.
/// Felzenszwalb and Huttenlocher, "Distance Transforms of Sampled Functions": one lower envelope of parabolas a line and axis.
fn squared_distance(size: Zyx<usize>, seed: impl Fn(usize) -> bool) -> Vec<f64> {
    let far = (size.z * size.z + size.y * size.y + size.x * size.x) as f64 * 4.0;
    let mut d: Vec<f64> = (0..size.count()).map(|v| if seed(v) { 0.0 } else { far }).collect();
    let [nz, ny, nx] = size.to_array();
    for (length, step) in [(nx, 1), (ny, nx), (nz, nx * ny)] {
        let (mut line, mut hull, mut cuts) = (vec![0.0; length], vec![0usize; length], vec![0.0; length + 1]);
        for start in (0..size.count()).filter(|v| v / step % length == 0) {
            for (i, v) in line.iter_mut().enumerate() {
                *v = d[start + i * step];
            }
            lower_envelope(&line, &mut hull, &mut cuts);
            let mut k = 0;
            for i in 0..length {
                while cuts[k + 1] < i as f64 {
                    k += 1;
                }
                let p = hull[k];
                let away = i as f64 - p as f64;
                d[start + i * step] = away * away + line[p];
            }
        }
    }
    d
}

/// The parabolas that make up min over p of (x − p)² + f[p]: their places in `hull`, their borders in `cuts` (from −∞ to +∞).
fn lower_envelope(f: &[f64], hull: &mut [usize], cuts: &mut [f64]) {
    let mut k = 0;
    hull[0] = 0;
    (cuts[0], cuts[1]) = (f64::NEG_INFINITY, f64::INFINITY);
    for q in 1..f.len() {
        loop {
            let p = hull[k];
            let cross = ((f[q] + (q * q) as f64) - (f[p] + (p * p) as f64)) / (2.0 * (q as f64 - p as f64));
            // cuts[0] is −∞, so this ends at k = 0 at the latest.
            if cross <= cuts[k] {
                k -= 1;
                continue;
            }
            k += 1;
            hull[k] = q;
            (cuts[k], cuts[k + 1]) = (cross, f64::INFINITY);
            break;
        }
    }
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
        let got = squared_distance(size, |v| labels[v] == 1);
        for v in 0..size.count() {
            let want = (0..size.count())
                .filter(|s| labels[*s] == 1)
                .map(|s| place(v).iter().zip(place(s)).map(|(a, b)| (a - b) * (a - b)).sum::<f64>())
                .fold(f64::INFINITY, f64::min);
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
