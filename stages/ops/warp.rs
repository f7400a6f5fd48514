//! Turning, shearing, zooming and bending a patch in one interpolation: each voxel of the result is asked for once, wherever the parts together send it.
//! MONAI's `Rand3DElastic`: a centred grid, a smoothed random offset added to it, then the matrix.

use std::cell::Cell;
use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Zyx;

use super::augment::Sample;
use super::lanes::{Lanes, on_lanes};
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

    /// The displacement of a patch of this size, but for its blur along z, which [`Field::rows`] adds where it is asked for.
    fn field(&self, size: Zyx<usize>) -> Field {
        let (kernel, plane, lanes) = (kernel(self.sigma), size.y * size.x, Lanes::here());
        let mut planes = FLAT.take();
        let pitch = pitch(plane);
        planes.resize(3 * size.z * pitch, 0.0);
        let seeds = [0u8, 1, 2].map(|axis| {
            let mut h = blake3::Hasher::new();
            h.update(b"voxmill bend 2\0").update(&self.seed.to_le_bytes()).update(&[axis]);
            ChaCha8Rng::from_seed(*h.finalize().as_bytes())
        });
        let tail = kernel.len() / 2;
        planes.par_chunks_mut(pitch).enumerate().for_each_init(
            || (vec![0u8; 4 * plane.div_ceil(2)], vec![0f32; plane], vec![0f32; size.x + 2 * tail]),
            |(bytes, noise, line), (at, out)| {
                // One stream of words an axis, each plane with its own stretch of it.
                let mut rng = seeds[at / size.z].clone();
                rng.set_word_pos((at % size.z * plane.div_ceil(2)) as u128);
                rng.fill_bytes(bytes);
                uniform(lanes, bytes, noise);
                for (y, row) in out[..plane].chunks_exact_mut(size.x.max(1)).enumerate() {
                    let (k, n, first) = reach(y, size.y, tail);
                    weighted(lanes, &kernel[k..k + n], &noise[first * size.x..], size.x, 1.0, &mut line[tail..tail + size.x]);
                    weighted(lanes, &kernel, line, 1, self.magnitude as f32, row);
                }
            },
        );
        Field { size, kernel, planes }
    }
}

/// Noise of each axis blurred along y and x, `[axis, z, y, x]` with [`pitch`] between planes, in voxels.
struct Field {
    size: Zyx<usize>,
    kernel: Vec<f32>,
    planes: Vec<f32>,
}

thread_local! {
    /// The memory of the last field of this thread: a feed asks for the same size again and again, and fresh pages cost as much as the noise.
    static FLAT: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

impl Field {
    /// Where some voxels of plane z go on the way in.
    /// - side: places in the plane
    /// - out: along z, y and x, each as long as `side`
    fn rows(&self, lanes: Lanes, z: usize, side: Range<usize>, out: &mut [Vec<f32>; 3]) {
        let (k, n, first) = reach(z, self.size.z, self.kernel.len() / 2);
        let pitch = pitch(self.size.y * self.size.x);
        for (axis, out) in out.iter_mut().enumerate() {
            let from = &self.planes[(axis * self.size.z + first) * pitch + side.start..];
            weighted(lanes, &self.kernel[k..k + n], from, pitch, 1.0, &mut out[..side.len()]);
        }
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        FLAT.set(std::mem::take(&mut self.planes));
    }
}

/// From one plane of a field to the next: planes of a power of two would push each other out of the processor's caches.
fn pitch(plane: usize) -> usize {
    plane.next_multiple_of(16) + 80
}

/// The first of the weights that fall on an axis of `n` at place `i`, how many do, and where the first falls.
fn reach(i: usize, n: usize, tail: usize) -> (usize, usize, usize) {
    let first = i.saturating_sub(tail);
    (first + tail - i, (i + tail + 1).min(n) - first, first)
}

on_lanes! {
    /// 16 bits a value, from −1 to 1, both left out.
    pub fn uniform(bytes: &[u8], out: &mut [f32]) {
        for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *o = (f32::from(u16::from_le_bytes(*b)) - 32767.5) / 32768.0;
        }
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

/// Sums that are made side by side.
const BLOCK: usize = 64;

on_lanes! {
    /// `out[i] = scale · Σ weights[k] · from[k · pitch + i]`, summed in the order of k.
    pub fn weighted(weights: &[f32], from: &[f32], pitch: usize, scale: f32, out: &mut [f32]) {
        let n = out.len();
        let mut at = 0;
        while at + BLOCK <= n {
            let mut sums = [0f32; BLOCK];
            for (k, w) in weights.iter().enumerate() {
                let from: &[f32; BLOCK] = from[k * pitch + at..][..BLOCK].try_into().expect("a block");
                for i in 0..BLOCK {
                    sums[i] += w * from[i];
                }
            }
            for i in 0..BLOCK {
                out[at + i] = sums[i] * scale;
            }
            at += BLOCK;
        }
        for i in at..n {
            let sum = weights.iter().enumerate().fold(0f32, |sum, (k, w)| sum + w * from[k * pitch + i]);
            out[i] = sum * scale;
        }
    }
}

/// Channels trilinear, labels by the class with the largest trilinear weight (the smaller id on a tie). A point beyond the box takes its border.
/// - `to_input`: rows from an offset to the centre on the way out to one on the way in, voxels
pub fn warp(s: &Sample, to_input: Zyx<Zyx<f64>>, size: Zyx<usize>, bend: Option<&Bend>) -> Sample {
    let (n, n_out) = (s.size.count(), size.count());
    assert!(n < i32::MAX as usize && s.voxels.len() == n * s.channels, "a patch");
    let map =
        Map { to_input, from: s.size, centre_in: s.size.map(|n| (n as f64 - 1.0) / 2.0), centre_out: size.map(|n| (n as f64 - 1.0) / 2.0) };
    let (lanes, field, plane) = (Lanes::here(), bend.map(|b| b.field(size)), (size.y * size.x).max(1));
    let mut voxels = vec![0f32; s.channels * n_out];
    let mut labels = s.labels.as_ref().map(|_| vec![0u8; n_out]);
    // A task is a strip of all planes: what blurring along z reads stays near.
    let strip = (plane / 8).clamp(1, STRIP).next_multiple_of(SIDE);
    let mut strips: Vec<Vec<Part>> = (0..plane.div_ceil(strip)).map(|_| (0..size.z).map(|_| (Vec::new(), None)).collect()).collect();
    for channel in voxels.chunks_mut(n_out.max(1)) {
        for (z, plane) in channel.chunks_mut(plane).enumerate() {
            strips.iter_mut().zip(plane.chunks_mut(strip)).for_each(|(parts, part)| parts[z].0.push(part));
        }
    }
    for (z, plane) in labels.iter_mut().flat_map(|l| l.chunks_mut(plane)).enumerate() {
        strips.iter_mut().zip(plane.chunks_mut(strip)).for_each(|(parts, part)| parts[z].1 = Some(part));
    }
    let steps = steps(s.size);
    strips.into_par_iter().enumerate().for_each(|(strip_at, parts)| {
        let mut points = Points { at: [0; SIDE], weights: [[0.0; SIDE]; 8] };
        let mut bent = [(); 3].map(|_| vec![0f32; strip]);
        let whole = strip_at * strip..((strip_at + 1) * strip).min(plane);
        for (z, (mut channels, mut labels)) in parts.into_iter().enumerate() {
            if let Some(field) = &field {
                field.rows(lanes, z, whole.clone(), &mut bent);
            }
            for from in (0..whole.len()).step_by(SIDE) {
                let side = from..(from + SIDE).min(whole.len());
                let bent = field.as_ref().map(|_| Zyx::from_array([0, 1, 2].map(|a: usize| &bent[a][side.clone()])));
                place(lanes, &map, z, whole.start + side.start..whole.start + side.end, size.x, bent, &mut points);
                for (c, out) in channels.iter_mut().enumerate() {
                    interpolate(lanes, &s.voxels[c * n..][..n], s.size, &points, &mut out[side.clone()]);
                }
                if let (Some(out), Some(old)) = (&mut labels, &s.labels) {
                    for (k, out) in out[side].iter_mut().enumerate() {
                        *out = heaviest(std::array::from_fn(|c| (old[points.at[k] as usize + steps[c]], points.weights[c][k])));
                    }
                }
            }
        }
    });
    Sample { size, channels: s.channels, voxels, labels }
}

/// A strip of plane z of every channel and of the labels.
type Part<'a> = (Vec<&'a mut [f32]>, Option<&'a mut [u8]>);

/// Where points of the result lie in the input.
pub struct Map {
    to_input: Zyx<Zyx<f64>>,
    from: Zyx<usize>,
    centre_in: Zyx<f64>,
    centre_out: Zyx<f64>,
}

/// Points that are worked on side by side.
const SIDE: usize = 16;
/// Most voxels of a plane in one task: of three fields and 40 planes they are 1 MiB.
const STRIP: usize = 2048;

/// The first of the 8 neighbours of each point, all of which lie in the input, and their weights, x fastest.
pub struct Points {
    at: [i32; SIDE],
    weights: [[f32; SIDE]; 8],
}

/// How far the 8 neighbours stand from the first. An axis of one voxel has no second.
fn steps(size: Zyx<usize>) -> [usize; 8] {
    let step = |n: usize, pitch: usize| if n > 1 { pitch } else { 0 };
    let (z, y, x) = (step(size.z, size.y * size.x), step(size.y, size.x), step(size.x, 1));
    std::array::from_fn(|k| (k >> 2) * z + (k >> 1 & 1) * y + (k & 1) * x)
}

on_lanes! {
    /// - side: places in plane `z` of the result, whose rows are `n_x` long
    /// - bent: how far each of them is moved first
    pub fn place(map: &Map, z: usize, side: Range<usize>, n_x: usize, bent: Option<Zyx<&[f32]>>, points: &mut Points) {
        let mut d = [[0f64; SIDE]; 3];
        let (width, rows_a_voxel) = (n_x as f64, 1.0 / n_x as f64);
        for k in 0..SIDE {
            let o = (side.start + k).min(side.end - 1) as f64;
            // Half a voxel away from the ends of the row: what is lost in rounding does not matter.
            let y = ((o + 0.5) * rows_a_voxel).floor();
            d[0][k] = z as f64 - map.centre_out.z;
            d[1][k] = y - map.centre_out.y;
            d[2][k] = o - y * width - map.centre_out.x;
        }
        if let Some(bent) = bent {
            for (d, bent) in d.iter_mut().zip([bent.z, bent.y, bent.x]) {
                d.iter_mut().zip(bent).for_each(|(d, bent)| *d += *bent as f64);
            }
        }
        let (rows, centre, size) = (map.to_input.to_array(), map.centre_in.to_array(), map.from.to_array());
        let pitch = [(size[1] * size[2]) as i32, size[2] as i32, 1];
        let mut t = [[0f32; SIDE]; 3];
        points.at = [0; SIDE];
        for a in 0..3 {
            let (top, last) = (size[a] as f64 - 1.0, (size[a] as i32 - 2).max(0));
            for k in 0..SIDE {
                let p = rows[a].z * d[0][k] + rows[a].y * d[1][k] + rows[a].x * d[2][k] + centre[a];
                // A point that is no number stays at the edge.
                let p = p.max(0.0).min(top);
                // SAFETY: `max` and `min` have left a number from 0 to the last voxel of an axis, which 31 bits hold as they hold the patch.
                let low = unsafe { p.to_int_unchecked::<i32>() }.min(last);
                t[a][k] = (p - low as f64) as f32;
                points.at[k] += low * pitch[a];
            }
        }
        for (c, weights) in points.weights.iter_mut().enumerate() {
            let side = |a: usize, k: usize| if c >> (2 - a) & 1 == 1 { t[a][k] } else { 1.0 - t[a][k] };
            for k in 0..SIDE {
                weights[k] = side(0, k) * side(1, k) * side(2, k);
            }
        }
    }
}

on_lanes! {
    /// The trilinear values at the points.
    /// - channel: `[z, y, x]` of `size`
    pub fn interpolate(channel: &[f32], size: Zyx<usize>, points: &Points, out: &mut [f32]) {
        let steps = steps(size);
        let mut sums = [0f32; SIDE];
        for c in 0..8 {
            let mut corner = [0f32; SIDE];
            for k in 0..SIDE {
                corner[k] = channel[points.at[k] as usize + steps[c]];
            }
            for k in 0..SIDE {
                sums[k] += corner[k] * points.weights[c][k];
            }
        }
        out.copy_from_slice(&sums[..out.len()]);
    }
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

    /// The displacement along z, y and x, each `[z, y, x]`.
    fn whole(bend: &Bend, size: Zyx<usize>) -> Zyx<Vec<f32>> {
        let (field, plane) = (bend.field(size), size.y * size.x);
        let mut all = [(); 3].map(|_| Vec::new());
        for z in 0..size.z {
            let mut rows = [(); 3].map(|_| vec![0f32; plane]);
            field.rows(Lanes::here(), z, 0..plane, &mut rows);
            all.iter_mut().zip(rows).for_each(|(all, rows)| all.extend(rows));
        }
        Zyx::from_array(all)
    }

    #[test]
    fn a_field_is_its_noise_blurred_by_the_kernel() {
        let size = Zyx::new(7, 9, 8);
        let (sharp, bend) = (Bend { sigma: 0.0, magnitude: 1.0, seed: 5 }, Bend { sigma: 1.2, magnitude: 30.0, seed: 5 });
        let (noise, field) = (whole(&sharp, size), whole(&bend, size));
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
        let field = whole(&bend, size);
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

    #[test]
    fn every_width_gives_the_same_bits() {
        let (from, size) = (Zyx::new(9, 11, 13), Zyx::new(5, 7, 23));
        let voxels: Vec<f32> = (0..from.count()).map(|o| (o * 37 % 101) as f32 / 7.0).collect();
        let map = Map {
            to_input: Zyx::new(Zyx::new(0.9, 0.2, -0.1), Zyx::new(-0.2, 1.1, 0.05), Zyx::new(0.1, 0.0, 0.8)),
            from,
            centre_in: Zyx::new(4.0, 5.0, 6.0),
            centre_out: Zyx::new(2.0, 3.0, 11.0),
        };
        let field = whole(&Bend { sigma: 1.5, magnitude: 9.0, seed: 3 }, size);
        let run = |lanes: Lanes| {
            let mut points = Points { at: [0; SIDE], weights: [[0.0; SIDE]; 8] };
            let mut out = vec![0f32; 21];
            for (from, to) in [(0, SIDE), (SIDE, 21)] {
                let bent = Zyx::new(&field.z[from..to], &field.y[from..to], &field.x[from..to]);
                place(lanes, &map, 3, from..to, size.x, Some(bent), &mut points);
                interpolate(lanes, &voxels, map.from, &points, &mut out[from..to]);
            }
            let mut sums = vec![0f32; 130];
            weighted(lanes, &[0.1, 0.7, 0.2], &voxels, 3, 1.7, &mut sums);
            out.into_iter().chain(sums).map(f32::to_bits).collect::<Vec<_>>()
        };
        let plain = Lanes::all().pop().map(run).unwrap();
        assert!(Lanes::all().into_iter().all(|lanes| run(lanes) == plain) && plain.iter().any(|b| *b != 0));
    }
}
