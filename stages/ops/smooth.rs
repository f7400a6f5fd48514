//! Gaussian blur, axis by axis, with the integrated (`erf`) kernel of MONAI's `GaussianSmooth`.

use rayon::prelude::*;
use voxmill_schemas::geometry::Zyx;

/// What the kernel meets beyond the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// Zeros, and a kernel as it is cut: borders darken (MONAI `GaussianSmooth`).
    Zero,
    /// The edge repeated, and a kernel that sums to 1: a constant stays that constant.
    Repeat,
}

/// Blurs every channel with a standard deviation of `sigma` voxels an axis; 0 leaves that axis alone. The kernel ends at 4 standard deviations.
///
/// - values: `[c, z, y, x]`
pub fn gaussian(values: &[f32], size: Zyx<usize>, sigma: Zyx<f64>, edge: Edge) -> Vec<f32> {
    let kernels = sigma.map(|s| kernel(s, edge));
    let plane = size.y * size.x;
    if values.is_empty() {
        return Vec::new();
    }
    let mut out = vec![0.0f32; values.len()];
    out.par_chunks_mut(plane).enumerate().for_each_init(
        || (vec![0.0f64; plane], vec![0.0f64; plane]),
        |(a, b), (i, out)| {
            let channel = &values[i / size.z * size.count()..][..size.count()];
            a.fill(0.0);
            for (w, z) in reach(&kernels.z, i % size.z, size.z, edge) {
                a.iter_mut().zip(&channel[z * plane..]).for_each(|(a, v)| *a += w * *v as f64);
            }
            b.fill(0.0);
            for (y, row) in b.chunks_exact_mut(size.x).enumerate() {
                for (w, y) in reach(&kernels.y, y, size.y, edge) {
                    row.iter_mut().zip(&a[y * size.x..]).for_each(|(b, a)| *b += w * a);
                }
            }
            for (row, line) in out.chunks_exact_mut(size.x).zip(b.chunks_exact(size.x)) {
                for (x, o) in row.iter_mut().enumerate() {
                    *o = reach(&kernels.x, x, size.x, edge).map(|(w, x)| w * line[x]).sum::<f64>() as f32;
                }
            }
        },
    );
    out
}

/// The kernel's weights at an index, with the index each falls on.
fn reach(kernel: &[f64], at: usize, n: usize, edge: Edge) -> impl Iterator<Item = (f64, usize)> {
    let tail = (kernel.len() / 2) as i64;
    kernel.iter().enumerate().filter_map(move |(k, w)| {
        let i = at as i64 + k as i64 - tail;
        match edge {
            Edge::Zero => (0..n as i64).contains(&i).then_some((*w, i as usize)),
            Edge::Repeat => Some((*w, i.clamp(0, n as i64 - 1) as usize)),
        }
    })
}

/// Half the difference of erf at the borders of each voxel, to int(max(4σ, ½) + ½) voxels on either side.
fn kernel(sigma: f64, edge: Edge) -> Vec<f64> {
    if !(sigma > 0.0) {
        return vec![1.0];
    }
    let tail = ((4.0 * sigma).max(0.5) + 0.5).floor() as i64;
    let t = std::f64::consts::FRAC_1_SQRT_2 / sigma;
    let mut k: Vec<f64> = (-tail..=tail).map(|i| (0.5 * (erf(t * (i as f64 + 0.5)) - erf(t * (i as f64 - 0.5)))).max(0.0)).collect();
    if edge == Edge::Repeat {
        let sum: f64 = k.iter().sum();
        k.iter_mut().for_each(|w| *w /= sum);
    }
    k
}

/// Error function by the series 2/√π·exp(−x²)·Σ 2ⁿx²ⁿ⁺¹/(2n + 1)!!, whose terms are all of one sign (Abramowitz and Stegun 7.1.6). Good to 1e-15.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..300 {
        term *= 2.0 * x * x / (2 * n + 1) as f64;
        sum += term;
        if term.abs() < 1e-17 * sum.abs() {
            break;
        }
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_that_of_the_tables() {
        for (x, y) in
            [(0.0, 0.0), (0.5, 0.5204998778130465), (1.0, 0.8427007929497149), (2.5, 0.999593047982555), (-4.0, -0.9999999845827421)]
        {
            assert!((erf(x) - y).abs() < 1e-14, "erf({x}) = {}", erf(x));
        }
    }

    #[test]
    fn a_constant_stays_constant_when_the_edge_repeats_and_darkens_when_not() {
        let size = Zyx::new(4, 5, 6);
        let flat = vec![7.0f32; 2 * size.count()];
        assert!(gaussian(&flat, size, Zyx::new(1.0, 0.5, 2.0), Edge::Repeat).iter().all(|v| (v - 7.0).abs() < 1e-5));
        assert!(gaussian(&flat, size, Zyx::splat(1.0), Edge::Zero)[0] < 3.0);
        assert_eq!(gaussian(&flat, size, Zyx::splat(0.0), Edge::Zero), flat);
    }
}
