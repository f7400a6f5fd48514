//! Turning, shearing, zooming and bending a patch in one interpolation: each voxel of the result is asked for once, wherever the parts together send it.
//! MONAI's `Rand3DElastic`: a centred grid, a smoothed random offset added to it, then the matrix.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Zyx;

use super::augment::Sample;
use super::smooth::erf;

/// Elastic displacement: noise uniform in −1…1 for each axis and voxel, blurred by a Gaussian that is cut at 3 σ, beyond the patch 0, times the magnitude.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bend {
    /// Standard deviation of the blur, voxels.
    pub sigma: f64,
    /// What the blurred noise is multiplied with, voxels.
    pub magnitude: f64,
    /// The noise is a function of it.
    pub seed: u64,
}

impl Bend {
    /// How far a voxel may be moved along an axis, voxels: 6 standard deviations of the blurred noise, which one voxel in 10⁸ passes.
    pub fn reach(&self) -> f64 {
        let squares: f64 = kernel(self.sigma).iter().map(|w| (*w as f64).powi(2)).sum();
        (6.0 * (squares.powi(3) / 3.0).sqrt()).min(1.0) * self.magnitude
    }

    /// Where each voxel of a patch goes on the way in, voxels: along z, y and x, each `[z, y, x]`.
    pub fn field(&self, size: Zyx<usize>) -> Zyx<Vec<f32>> {
        let kernel = kernel(self.sigma);
        Zyx::new(0u8, 1, 2).map(|axis| {
            let mut h = blake3::Hasher::new();
            h.update(b"voxmill bend 1\0").update(&self.seed.to_le_bytes()).update(&[axis]);
            let mut rng = ChaCha8Rng::from_seed(*h.finalize().as_bytes());
            let unit = 1.0 / (1u32 << 23) as f32;
            // 24 bits, from −1 to just below 1.
            let noise = (0..size.count()).map(|_| (rng.next_u32() >> 8) as f32 * unit - 1.0).collect();
            let mut out = blurred(noise, size, &kernel);
            out.iter_mut().for_each(|v| *v *= self.magnitude as f32);
            out
        })
    }
}

/// Half the difference of erf at the borders of each voxel, to int(max(3σ, ½) + ½) voxels on either side (MONAI `GaussianFilter(truncated=3)`).
fn kernel(sigma: f64) -> Vec<f32> {
    if !(sigma > 0.0) {
        return vec![1.0];
    }
    let tail = ((3.0 * sigma).max(0.5) + 0.5).floor() as i64;
    let t = std::f64::consts::FRAC_1_SQRT_2 / sigma;
    (-tail..=tail).map(|i| (0.5 * (erf(t * (i as f64 + 0.5)) - erf(t * (i as f64 - 0.5)))).max(0.0) as f32).collect()
}

/// The same kernel along every axis, zeros beyond the edge.
/// - values: `[z, y, x]`
fn blurred(values: Vec<f32>, size: Zyx<usize>, kernel: &[f32]) -> Vec<f32> {
    let plane = size.y * size.x;
    if kernel.len() == 1 || values.is_empty() {
        return values;
    }
    // The weights that fall on an axis of `n` at place `i`, with where they fall.
    let reach = |i: usize, n: usize| {
        let tail = kernel.len() / 2;
        let first = i.saturating_sub(tail);
        (first..(i + tail + 1).min(n)).map(move |j| (kernel[j + tail - i], j))
    };
    let add = |to: &mut [f32], w: f32, from: &[f32]| to.iter_mut().zip(from).for_each(|(t, f)| *t += w * f);
    let mut out = vec![0f32; values.len()];
    out.par_chunks_mut(plane).enumerate().for_each_init(
        || (vec![0f32; plane], vec![0f32; plane]),
        |(a, b), (z, out)| {
            a.fill(0.0);
            reach(z, size.z).for_each(|(w, j)| add(a, w, &values[j * plane..][..plane]));
            b.fill(0.0);
            for (y, row) in b.chunks_exact_mut(size.x).enumerate() {
                reach(y, size.y).for_each(|(w, j)| add(row, w, &a[j * size.x..][..size.x]));
            }
            let tail = kernel.len() / 2;
            for (row, line) in out.chunks_exact_mut(size.x).zip(b.chunks_exact(size.x)) {
                // The symmetric kernel, weight by weight along the whole row: row[x] += w · line[x + shift].
                for (k, w) in kernel.iter().enumerate() {
                    match k.checked_sub(tail) {
                        Some(shift) if shift < size.x => add(&mut row[..size.x - shift], *w, &line[shift..]),
                        None if tail - k < size.x => add(&mut row[tail - k..], *w, line),
                        _ => {}
                    }
                }
            }
        },
    );
    out
}

/// Channels trilinear, labels by the class with the largest trilinear weight (the smaller id on a tie). A point beyond the box takes its border.
/// - `to_input`: rows from an offset to the centre on the way out to one on the way in, voxels
pub fn warp(s: &Sample, to_input: Zyx<Zyx<f64>>, size: Zyx<usize>, bend: Option<&Bend>) -> Sample {
    let n = s.size.count();
    let centre_in = s.size.map(|n| (n as f64 - 1.0) / 2.0);
    let centre_out = size.map(|n| (n as f64 - 1.0) / 2.0);
    let field = bend.map(|b| b.field(size));
    let plane = size.y * size.x;
    let one_plane = |z: usize| {
        let mut voxels = vec![0f32; s.channels * plane];
        let mut labels = s.labels.as_ref().map(|_| vec![0u8; plane]);
        for o in 0..plane {
            let i = Zyx::new(z, o / size.x, o % size.x);
            let mut d = i.zip(centre_out).map(|(i, c)| i as f64 - c);
            if let Some(field) = &field {
                let at = z * plane + o;
                d = Zyx::new(d.z + field.z[at] as f64, d.y + field.y[at] as f64, d.x + field.x[at] as f64);
            }
            let p = to_input.map(|row| row.z * d.z + row.y * d.y + row.x * d.x).zip(centre_in).map(|(v, c)| v + c);
            let (z, y, x) = (taps(p.z, s.size.z), taps(p.y, s.size.y), taps(p.x, s.size.x));
            let mut corners = [(0usize, 0f32); 8];
            for (k, corner) in corners.iter_mut().enumerate() {
                let ((zi, zw), (yi, yw), (xi, xw)) = (z[k >> 2], y[k >> 1 & 1], x[k & 1]);
                *corner = ((zi * s.size.y + yi) * s.size.x + xi, zw * yw * xw);
            }
            for c in 0..s.channels {
                let channel = &s.voxels[c * n..][..n];
                voxels[c * plane + o] = corners.iter().map(|(at, w)| channel[*at] * w).sum();
            }
            if let (Some(out), Some(old)) = (&mut labels, &s.labels) {
                out[o] = heaviest(corners.map(|(at, w)| (old[at], w)));
            }
        }
        (voxels, labels)
    };
    let planes: Vec<(Vec<f32>, Option<Vec<u8>>)> = (0..size.z).into_par_iter().map(one_plane).collect();
    let mut voxels = Vec::with_capacity(s.channels * size.count());
    for c in 0..s.channels {
        planes.iter().for_each(|(v, _)| voxels.extend_from_slice(&v[c * plane..][..plane]));
    }
    let labels = s.labels.as_ref().map(|_| planes.iter().flat_map(|(_, l)| l.iter().flatten().copied()).collect());
    Sample { size, channels: s.channels, voxels, labels }
}

/// The two neighbours of a coordinate on an axis of `n` voxels and their weights, clamped to the axis.
fn taps(p: f64, n: usize) -> [(usize, f32); 2] {
    let p = p.clamp(0.0, n.saturating_sub(1) as f64);
    let low = p.floor();
    let t = (p - low) as f32;
    let low = low as usize;
    [(low, 1.0 - t), ((low + 1).min(n - 1), t)]
}

/// The class with the largest sum of weights; the smaller id on a tie.
fn heaviest(votes: [(u8, f32); 8]) -> u8 {
    let first = votes[0].0;
    if votes.iter().all(|(class, _)| *class == first) {
        return first;
    }
    let sum = |class: u8| votes.iter().filter(|(c, _)| *c == class).map(|(_, w)| w).sum::<f32>();
    votes
        .iter()
        .map(|(class, _)| (*class, sum(*class)))
        .fold((u8::MAX, -1.0), |best, now| if now.1 > best.1 || (now.1 == best.1 && now.0 < best.0) { now } else { best })
        .0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ops::resample::{Interpolation, Outside, sample};

    const UNTURNED: Zyx<Zyx<f64>> = Zyx::new(Zyx::new(1., 0., 0.), Zyx::new(0., 1., 0.), Zyx::new(0., 0., 1.));

    #[test]
    fn a_field_is_its_noise_blurred_by_the_kernel() {
        let size = Zyx::new(7, 9, 8);
        let (sharp, bend) = (Bend { sigma: 0.0, magnitude: 1.0, seed: 5 }, Bend { sigma: 1.2, magnitude: 30.0, seed: 5 });
        let (noise, field) = (sharp.field(size), bend.field(size));
        assert!(noise.z.iter().all(|v| (-1.0..1.0).contains(v)) && noise.z != noise.y && noise.y != noise.x);
        // By hand, at every voxel, in 3-D: MONAI cuts 1.2 at int(3.6 + 0.5) = 4 voxels.
        let k = |d: i64| 0.5 * (erf((d as f64 + 0.5) / (1.2 * 2f64.sqrt())) - erf((d as f64 - 0.5) / (1.2 * 2f64.sqrt())));
        let (nz, ny, nx) = (size.z as i64, size.y as i64, size.x as i64);
        for o in 0..size.count() as i64 {
            let (z, y, x) = (o / (ny * nx), o / nx % ny, o % nx);
            let mut wanted = 0.0;
            for (a, b, c) in (0..nz).flat_map(|a| (0..ny).flat_map(move |b| (0..nx).map(move |c| (a, b, c)))) {
                if (a - z).abs() <= 4 && (b - y).abs() <= 4 && (c - x).abs() <= 4 {
                    wanted += k(a - z) * k(b - y) * k(c - x) * noise.y[((a * ny + b) * nx + c) as usize] as f64;
                }
            }
            assert!((field.y[o as usize] as f64 - 30.0 * wanted).abs() < 1e-5, "voxel {o}");
        }
    }

    #[test]
    fn a_ramp_is_moved_by_the_field_and_no_further_than_it_reaches() {
        let size = Zyx::new(12, 14, 16);
        let bend = Bend { sigma: 2.0, magnitude: 20.0, seed: 9 };
        let n = size.count();
        let voxels: Vec<f32> = (0..n).map(|o| (o % size.x) as f32).chain((0..n).map(|o| (o / (size.y * size.x)) as f32)).collect();
        let s = Sample { size, channels: 2, voxels, labels: None };
        let out = warp(&s, UNTURNED, size, Some(&bend));
        let field = bend.field(size);
        for o in 0..n {
            let x = ((o % size.x) as f32 + field.x[o]).clamp(0.0, 15.0);
            let z = ((o / (size.y * size.x)) as f32 + field.z[o]).clamp(0.0, 11.0);
            assert!((out.voxels[o] - x).abs() < 1e-4 && (out.voxels[n + o] - z).abs() < 1e-4);
        }
        let most = field.z.iter().chain(&field.y).chain(&field.x).fold(0f32, |m, v| m.max(v.abs())) as f64;
        assert!(most > 0.3 && most <= bend.reach(), "{most} of {}", bend.reach());
    }

    #[test]
    fn a_matrix_alone_is_what_resampling_makes_of_it() {
        let (size, to) = (Zyx::new(6, 7, 8), Zyx::new(5, 6, 9));
        let voxels: Vec<f32> = (0..2 * size.count()).map(|o| (o * 37 % 101) as f32).collect();
        let m = [[0.9, 0.2, -0.1], [-0.2, 1.1, 0.05], [0.1, 0.0, 0.8]];
        let row = |r: usize| Zyx::from_array(m[r]);
        let out = warp(&Sample { size, channels: 2, voxels: voxels.clone(), labels: None }, Zyx::new(row(0), row(1), row(2)), to, None);
        // The same map in the order x, y, z, with the centres in its last column.
        let centre = |n: Zyx<usize>| n.map(|n| (n as f64 - 1.0) / 2.0).to_array();
        let (from, at) = (centre(size), centre(to));
        let mut map = [[0.0; 4]; 4];
        map[3][3] = 1.0;
        for (r, c) in (0..3).flat_map(|r| (0..3).map(move |c| (r, c))) {
            map[2 - r][2 - c] = m[r][c];
            map[2 - r][3] -= m[r][c] * at[c];
        }
        (0..3).for_each(|r| map[2 - r][3] += from[r]);
        let wanted = sample(&voxels, &map, size, to, Interpolation::Linear, Outside::Edge);
        assert!(out.voxels.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-3) && out.voxels.len() == wanted.len());
    }

    #[test]
    fn labels_move_as_the_image_does() {
        let size = Zyx::splat(16);
        let far = |o: usize| (o / 256).abs_diff(8).pow(2) + (o / 16 % 16).abs_diff(8).pow(2) + (o % 16).abs_diff(8).pow(2);
        let inside: Vec<bool> = (0..4096).map(|o| far(o) <= 25).collect();
        let labels: Vec<u8> = inside.iter().map(|i| 3 * *i as u8).collect();
        let s = Sample { size, channels: 1, voxels: inside.iter().map(|i| *i as u8 as f32).collect(), labels: Some(labels) };
        let out = warp(&s, UNTURNED, size, Some(&Bend { sigma: 3.0, magnitude: 60.0, seed: 1 }));
        let agree = out.voxels.iter().zip(out.labels.as_ref().unwrap()).all(|(v, l)| (*v - 0.5).abs() < 1e-3 || (*v > 0.5) == (*l == 3));
        assert!(agree && out.labels != s.labels);
    }
}
