//! Instance norm with scale, shift and leaky ReLU in one go, and its backward pass. One (sample, channel) map at a time, each summed in a
//! fixed order.

use rayon::prelude::*;

pub const EPSILON: f64 = 1e-5;

/// What one map is normalised with.
#[derive(Clone, Copy)]
struct Stats {
    mean: f32,
    /// 1 / √(variance + ε)
    scale: f32,
}

/// Maps [n, channel, voxel], weight and bias [channel]: leaky((x − mean) / √(variance + ε) · weight + bias).
pub fn forward(x: &[f32], voxels: usize, weight: &[f32], bias: &[f32], slope: f32) -> Vec<f32> {
    let mut out = vec![0f32; x.len()];
    out.par_chunks_exact_mut(voxels).zip(x.par_chunks_exact(voxels)).enumerate().for_each(|(map, (out, x))| {
        let s = stats(x);
        let c = map % weight.len();
        let (a, b) = (s.scale * weight[c], bias[c]);
        for (out, x) in out.iter_mut().zip(x) {
            let v = (x - s.mean) * a + b;
            *out = if v > 0.0 { v } else { v * slope };
        }
    });
    out
}

/// Gradients of x [n, channel, voxel], weight and bias [channel].
pub fn backward(x: &[f32], grad: &[f32], voxels: usize, weight: &[f32], bias: &[f32], slope: f32) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let channels = weight.len();
    let mut gx = vec![0f32; x.len()];
    let sums: Vec<(f64, f64)> = gx
        .par_chunks_exact_mut(voxels)
        .zip(x.par_chunks_exact(voxels).zip(grad.par_chunks_exact(voxels)))
        .enumerate()
        .map(|(map, (gx, (x, g)))| {
            let s = stats(x);
            let (a, b) = (s.scale * weight[map % channels], bias[map % channels]);
            // Gradient before the leaky ReLU, and the normalised value that it belongs to.
            let at = |x: f32, g: f32| {
                let centred = x - s.mean;
                (if centred * a + b > 0.0 { g } else { g * slope }, centred * s.scale)
            };
            let (sum, dot) = sums(x, g, at);
            let (mean, mean_dot) = ((sum / voxels as f64) as f32, (dot / voxels as f64) as f32);
            for (gx, (x, g)) in gx.iter_mut().zip(x.iter().zip(g)) {
                let (g, norm) = at(*x, *g);
                *gx = a * (g - mean - norm * mean_dot);
            }
            (sum, dot)
        })
        .collect();
    let over_batch = |pick: fn(&(f64, f64)) -> f64| {
        (0..channels).map(|c| sums.iter().skip(c).step_by(channels).map(pick).sum::<f64>() as f32).collect::<Vec<_>>()
    };
    (gx, over_batch(|s| s.1), over_batch(|s| s.0))
}

/// Side by side, so that the compiler uses vectors; the order of additions does not depend on anything else.
const LANES: usize = 32;
/// Lanes are added up in float64 after so many values.
const RUN: usize = 4096;

fn stats(x: &[f32]) -> Stats {
    let n = x.len() as f64;
    let mean = (total(x, |v| v) / n) as f32;
    let variance = total(x, |v| (v - mean) * (v - mean)) / n;
    Stats { mean, scale: (1.0 / (variance + EPSILON).sqrt()) as f32 }
}

fn total(x: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut sum = 0f64;
    for run in x.chunks(RUN) {
        let mut lanes = [0f32; LANES];
        let (whole, rest) = run.as_chunks::<LANES>();
        for v in whole {
            for (l, v) in lanes.iter_mut().zip(v) {
                *l += f(*v);
            }
        }
        sum += lanes.iter().chain(rest.iter().map(|v| f(*v)).collect::<Vec<_>>().iter()).map(|v| f64::from(*v)).sum::<f64>();
    }
    sum
}

/// Σg and Σg·norm.
fn sums(x: &[f32], g: &[f32], at: impl Fn(f32, f32) -> (f32, f32)) -> (f64, f64) {
    let (mut sum, mut dot) = (0f64, 0f64);
    for (x, g) in x.chunks(RUN).zip(g.chunks(RUN)) {
        let (mut sums, mut dots) = ([0f32; LANES], [0f32; LANES]);
        let ((xs, x_rest), (gs, g_rest)) = (x.as_chunks::<LANES>(), g.as_chunks::<LANES>());
        for (x, g) in xs.iter().zip(gs) {
            for l in 0..LANES {
                let (g, norm) = at(x[l], g[l]);
                sums[l] += g;
                dots[l] += g * norm;
            }
        }
        for (x, g) in x_rest.iter().zip(g_rest) {
            let (g, norm) = at(*x, *g);
            sum += f64::from(g);
            dot += f64::from(g) * f64::from(norm);
        }
        sum += sums.iter().map(|v| f64::from(*v)).sum::<f64>();
        dot += dots.iter().map(|v| f64::from(*v)).sum::<f64>();
    }
    (sum, dot)
}
