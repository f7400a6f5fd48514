//! Instance norm with scale, shift and leaky ReLU in one go, and its backward pass. One (sample, channel) map at a time, each summed in one
//! order whatever the processor and the number of threads.

use rayon::prelude::*;

use super::lanes::Lanes;

pub const EPSILON: f64 = 1e-5;

/// Scale and shift of a map, and the slope of the leaky ReLU behind them.
#[derive(Clone, Copy)]
struct Affine {
    weight: f32,
    bias: f32,
    slope: f32,
}

/// Maps [n, channel, voxel], weight and bias [channel]: leaky((x − mean) / √(variance + ε) · weight + bias).
pub fn forward(x: &[f32], voxels: usize, weight: &[f32], bias: &[f32], slope: f32, lanes: Lanes) -> Vec<f32> {
    let mut out = vec![0f32; x.len()];
    out.par_chunks_exact_mut(voxels).zip(x.par_chunks_exact(voxels)).enumerate().for_each(|(map, (out, x))| {
        let c = map % weight.len();
        let affine = Affine { weight: weight[c], bias: bias[c], slope };
        match lanes.width {
            // SAFETY: `Lanes` has this width only where the processor has the instructions.
            16 => unsafe { forward_avx512(x, out, affine) },
            // SAFETY: as above.
            _ => unsafe { forward_avx2(x, out, affine) },
        }
    });
    out
}

/// Gradients of x [n, channel, voxel], weight and bias [channel].
pub fn backward(
    x: &[f32],
    grad: &[f32],
    voxels: usize,
    weight: &[f32],
    bias: &[f32],
    slope: f32,
    lanes: Lanes,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let channels = weight.len();
    let mut gx = vec![0f32; x.len()];
    let sums: Vec<(f64, f64)> = gx
        .par_chunks_exact_mut(voxels)
        .zip(x.par_chunks_exact(voxels).zip(grad.par_chunks_exact(voxels)))
        .enumerate()
        .map(|(map, (gx, (x, g)))| {
            let affine = Affine { weight: weight[map % channels], bias: bias[map % channels], slope };
            match lanes.width {
                // SAFETY: `Lanes` has this width only where the processor has the instructions.
                16 => unsafe { backward_avx512(x, g, gx, affine) },
                // SAFETY: as above.
                _ => unsafe { backward_avx2(x, g, gx, affine) },
            }
        })
        .collect();
    let over_batch = |pick: fn(&(f64, f64)) -> f64| {
        (0..channels).map(|c| sums.iter().skip(c).step_by(channels).map(pick).sum::<f64>() as f32).collect::<Vec<_>>()
    };
    (gx, over_batch(|s| s.1), over_batch(|s| s.0))
}

/// The same code for two instruction sets.
macro_rules! versions {
    ($forward:ident, $backward:ident, $feature:literal) => {
        #[cfg_attr(target_arch = "x86_64", target_feature(enable = $feature))]
        unsafe fn $forward(x: &[f32], out: &mut [f32], affine: Affine) {
            forward_map(x, out, affine)
        }

        #[cfg_attr(target_arch = "x86_64", target_feature(enable = $feature))]
        unsafe fn $backward(x: &[f32], g: &[f32], gx: &mut [f32], affine: Affine) -> (f64, f64) {
            backward_map(x, g, gx, affine)
        }
    };
}
versions!(forward_avx512, backward_avx512, "avx512f");
versions!(forward_avx2, backward_avx2, "avx2");

#[inline(always)]
fn forward_map(x: &[f32], out: &mut [f32], affine: Affine) {
    let s = stats(x);
    let (a, b) = (s.scale * affine.weight, affine.bias);
    for (out, x) in out.iter_mut().zip(x) {
        let v = (x - s.mean) * a + b;
        *out = v * leak(v, affine.slope);
    }
}

/// Fills `gx` and gives the gradients of bias and weight.
#[inline(always)]
fn backward_map(x: &[f32], g: &[f32], gx: &mut [f32], affine: Affine) -> (f64, f64) {
    let s = stats(x);
    let (a, b, n) = (s.scale * affine.weight, affine.bias, x.len() as f64);
    // Gradient before the leaky ReLU, and the normalised value that it belongs to.
    let at = |x: f32, g: f32| {
        let centred = x - s.mean;
        (g * leak(centred * a + b, affine.slope), centred * s.scale)
    };
    let (sum, dot) = sums(x, g, at);
    let (mean, mean_dot) = ((sum / n) as f32, (dot / n) as f32);
    for (gx, (x, g)) in gx.iter_mut().zip(x.iter().zip(g)) {
        let (g, norm) = at(*x, *g);
        *gx = a * (g - mean - norm * mean_dot);
    }
    (sum, dot)
}

/// What the leaky ReLU multiplies `v` by.
#[inline(always)]
fn leak(v: f32, slope: f32) -> f32 {
    if v > 0.0 { 1.0 } else { slope }
}

/// What one map is normalised with.
struct Stats {
    mean: f32,
    /// 1 / √(variance + ε)
    scale: f32,
}

/// Sums run side by side in so many lanes; the compiler makes vectors of them.
const LANES: usize = 64;
/// Lanes are added up in float64 after so many values.
const RUN: usize = 4096;

#[inline(always)]
fn stats(x: &[f32]) -> Stats {
    let n = x.len() as f64;
    let mean = (total(x, |v| v) / n) as f32;
    let variance = total(x, |v| (v - mean) * (v - mean)) / n;
    Stats { mean, scale: (1.0 / (variance + EPSILON).sqrt()) as f32 }
}

#[inline(always)]
fn total(x: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut sum = 0f64;
    for run in x.chunks(RUN) {
        let mut lanes = [0f32; LANES];
        let (whole, rest) = run.as_chunks::<LANES>();
        for v in whole {
            for l in 0..LANES {
                lanes[l] += f(v[l]);
            }
        }
        sum += lanes.iter().map(|v| f64::from(*v)).sum::<f64>();
        for v in rest {
            sum += f64::from(f(*v));
        }
    }
    sum
}

/// Σg and Σg·norm.
#[inline(always)]
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Two samples of three channels.
    fn example() -> (Vec<f32>, Vec<f32>, [f32; 3], [f32; 3]) {
        let value = |i: usize, m: usize| ((i * 2654435761 + m) % 10007) as f32 / 5003.5 - 0.7;
        let n = 6 * 5003;
        ((0..n).map(|i| value(i, 1) * 3.0 + 2.0).collect(), (0..n).map(|i| value(i, 77)).collect(), [1.5, 0.3, -1.0], [0.2, 0.0, -0.4])
    }

    /// The loss Σ g · forward(x) and its derivatives by differences, in float64.
    fn loss(x: &[f64], g: &[f32], weight: &[f64], bias: &[f64], slope: f64) -> f64 {
        let voxels = 5003;
        let mut sum = 0.0;
        for (map, x) in x.chunks_exact(voxels).enumerate() {
            let mean = x.iter().sum::<f64>() / voxels as f64;
            let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / voxels as f64;
            for (i, v) in x.iter().enumerate() {
                let y = (v - mean) / (variance + EPSILON).sqrt() * weight[map % 3] + bias[map % 3];
                sum += f64::from(g[map * voxels + i]) * if y > 0.0 { y } else { y * slope };
            }
        }
        sum
    }

    #[test]
    fn gradients_equal_differences_of_the_loss() {
        let Some(lanes) = Lanes::all().into_iter().next() else { return };
        let (x, g, weight, bias) = example();
        let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
        let (gx, gw, gb) = backward(&x, &g, 5003, &weight, &bias, 0.01, lanes);
        let y = forward(&x, 5003, &weight, &bias, 0.01, lanes);
        let value: f64 = y.iter().zip(&g).map(|(y, g)| f64::from(*y) * f64::from(*g)).sum();
        let base = loss(&wide(&x), &g, &wide(&weight), &wide(&bias), 0.01);
        assert!((value - base).abs() < 1e-3 * base.abs().max(1.0));
        let h = 1e-4;
        for at in [0, 17, 5003, 5003 * 6 - 1] {
            let (mut up, mut down) = (wide(&x), wide(&x));
            (up[at], down[at]) = (up[at] + h, down[at] - h);
            let want = [up, down].map(|x| loss(&x, &g, &wide(&weight), &wide(&bias), 0.01));
            let want = (want[0] - want[1]) / (2.0 * h);
            assert!((f64::from(gx[at]) - want).abs() < 2e-3, "{} instead of {want}", gx[at]);
        }
        for c in 0..3 {
            let shift =
                |v: &[f32], h: f64| v.iter().enumerate().map(|(i, v)| f64::from(*v) + if i == c { h } else { 0.0 }).collect::<Vec<_>>();
            let by = |f: &dyn Fn(f64) -> f64| (f(1e-5) - f(-1e-5)) / 2e-5;
            let want_w = by(&|h| loss(&wide(&x), &g, &shift(&weight, h), &wide(&bias), 0.01));
            let want_b = by(&|h| loss(&wide(&x), &g, &wide(&weight), &shift(&bias, h), 0.01));
            assert!((f64::from(gw[c]) - want_w).abs() < 1e-2 * want_w.abs().max(10.0), "{} instead of {want_w}", gw[c]);
            assert!((f64::from(gb[c]) - want_b).abs() < 1e-2 * want_b.abs().max(10.0), "{} instead of {want_b}", gb[c]);
        }
    }

    #[test]
    fn both_instruction_sets_give_the_same_bits() {
        let Some(lanes) = Lanes::all().into_iter().next() else { return };
        let (x, g, weight, bias) = example();
        let mut narrow = lanes;
        narrow.width = 8;
        assert!(forward(&x, 5003, &weight, &bias, 0.01, lanes) == forward(&x, 5003, &weight, &bias, 0.01, narrow));
        assert!(backward(&x, &g, 5003, &weight, &bias, 0.01, lanes) == backward(&x, &g, 5003, &weight, &bias, 0.01, narrow));
    }
}
