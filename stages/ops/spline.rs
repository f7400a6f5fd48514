//! Cubic B-spline interpolation (order 3) as scipy's `map_coordinates` with mode `nearest` and MONAI with an integer mode do it: 12 voxels of repeated edge at
//! both ends, a recursive filter with pole √3 − 2 that turns values into coefficients, then four taps an axis (Unser, IEEE Signal Processing Magazine 1999).

use rayon::prelude::*;
use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;

use super::intensity::Map;
use super::matrix::Affine;
use super::plan::{Part, Voxel};
use super::resample::Outside;

/// Repeated edge voxels at either end of an axis.
const PAD: usize = 12;
const POLE: f64 = -0.267_949_192_431_122_7; // √3 − 2

/// The plan of a separable cubic resampling.
#[derive(Clone, Debug)]
pub struct Axes {
    from: Zyx<usize>,
    /// Source coordinates of the output indices of each axis.
    at: Zyx<Vec<f64>>,
    outside: Outside,
}

impl Axes {
    pub fn new(map: &Affine, from: Zyx<usize>, to: Zyx<usize>, outside: Outside) -> Self {
        let at = |axis: usize, m: usize| -> Vec<f64> { (0..m).map(|i| map[axis][axis] * i as f64 + map[axis][3]).collect() };
        Self { from, at: Zyx::new(at(2, to.z), at(1, to.y), at(0, to.x)), outside }
    }

    /// The voxels that a region of the output reads: the filter runs along whole axes.
    pub fn needs(&self, _region: Region) -> Option<Region> {
        Some(Region::whole(self.from))
    }
}

/// Cubic resampling between parallel grids, axis by axis.
///
/// - part: covers what [`Axes::needs`] says of `region`
/// - out: `[z, y, x]` of `region`
///
/// Costs 8 bytes a voxel of `[from.z, region.y, region.x]` beside input and output.
pub fn separable<T: Voxel>(part: Part<T>, axes: &Axes, region: Region, maps: &[Map], out: &mut [f32]) {
    if out.is_empty() {
        return;
    }
    let (from, outside, to) = (axes.from, axes.outside, region.size);
    let first = region.start.map(|s| s as usize);
    let (at_z, at_y, at_x) = (&axes.at.z[first.z..][..to.z], &axes.at.y[first.y..][..to.y], &axes.at.x[first.x..][..to.x]);
    let plane = to.y * to.x;
    // [from.z, to.y, to.x]
    let mut inner = vec![0.0f64; from.z * plane];
    inner.par_chunks_mut(plane).enumerate().for_each(|(z, inner)| {
        let mut wide: Vec<f64> = vec![0.0; from.y * to.x];
        let mut line = Vec::new();
        for (y, wide) in wide.chunks_exact_mut(to.x).enumerate() {
            padded(&mut line, part.row(z, y).0.iter().map(|v| v.wide()), 1);
            prefilter(&mut line, 1);
            evaluate(&line, 1, at_x, wide);
        }
        padded(&mut line, wide.into_iter(), to.x);
        prefilter(&mut line, to.x);
        evaluate(&line, to.x, at_y, inner);
    });
    // Rows of the output by their y, so that each y can go through z on its own.
    let mut by_y: Vec<Vec<&mut [f32]>> = (0..to.y).map(|_| Vec::with_capacity(to.z)).collect();
    out.chunks_exact_mut(to.x).enumerate().for_each(|(i, row)| by_y[i % to.y].push(row));
    by_y.into_par_iter().enumerate().for_each(|(y, rows)| {
        let mut line = Vec::new();
        padded(&mut line, (0..from.z).flat_map(|z| inner[z * plane + y * to.x..][..to.x].iter().copied()), to.x);
        prefilter(&mut line, to.x);
        let mut whole = vec![0.0; to.z * to.x];
        evaluate(&line, to.x, at_z, &mut whole);
        for (z, (row, whole)) in rows.into_iter().zip(whole.chunks_exact(to.x)).enumerate() {
            let outside_zy = outside.covers(at_z[z], from.z) || outside.covers(at_y[y], from.y);
            for ((o, v), x) in row.iter_mut().zip(whole).zip(at_x) {
                *o = if outside_zy || outside.covers(*x, from.x) { outside.value() } else { *v as f32 };
            }
            maps.iter().for_each(|m| m.apply(row));
        }
    });
}

/// B-spline coefficients of one channel, padded, for points anywhere.
pub struct Coefficients {
    size: Zyx<usize>,
    /// `[z, y, x]` of `size` + 2·[`PAD`]
    values: Vec<f64>,
}

impl Coefficients {
    /// - values: `[z, y, x]`. Costs 8 bytes a voxel of the padded array.
    pub fn of<T: Voxel>(values: &[T], size: Zyx<usize>) -> Self {
        let wide = size.map(|n| n + 2 * PAD);
        let inner = |i: usize, n: usize| i.saturating_sub(PAD).min(n - 1);
        let plane = wide.y * wide.x;
        let mut c = vec![0.0f64; wide.count()];
        c.par_chunks_mut(plane).enumerate().for_each(|(z, c)| {
            let z = inner(z, size.z);
            for (y, row) in c.chunks_exact_mut(wide.x).enumerate() {
                let line = &values[(z * size.y + inner(y, size.y)) * size.x..][..size.x];
                row.iter_mut().enumerate().for_each(|(x, v)| *v = line[inner(x, size.x)].wide());
                prefilter(row, 1);
            }
            prefilter(c, wide.x);
        });
        prefilter(&mut c, plane);
        Self { size, values: c }
    }

    /// The spline at a point. Fading is that of scipy's `nearest`: none.
    pub fn at(&self, p: Zyx<f64>, outside: Outside) -> f32 {
        let (p, size) = (p.to_array(), self.size.to_array());
        if p.iter().zip(size).any(|(p, n)| outside.covers(*p, n)) {
            return outside.value();
        }
        let taps: [(usize, [f64; 4]); 3] = std::array::from_fn(|a| {
            let p = if outside == Outside::Reflect { outside.fold(p[a], size[a]) } else { p[a] };
            taps(p, size[a] + 2 * PAD)
        });
        let (ny, nx) = (size[1] + 2 * PAD, size[2] + 2 * PAD);
        let mut sum = 0.0;
        for (dz, wz) in taps[0].1.iter().enumerate() {
            for (dy, wy) in taps[1].1.iter().enumerate() {
                let line = &self.values[((taps[0].0 + dz) * ny + taps[1].0 + dy) * nx + taps[2].0..][..4];
                sum += wz * wy * line.iter().zip(taps[2].1).map(|(c, w)| c * w).sum::<f64>();
            }
        }
        sum as f32
    }
}

/// `[n, lanes]` with the first and the last entry repeated [`PAD`] times.
fn padded(out: &mut Vec<f64>, values: impl Iterator<Item = f64>, lanes: usize) {
    out.clear();
    out.resize(PAD * lanes, 0.0);
    out.extend(values);
    let end = out.len();
    out.resize(end + PAD * lanes, 0.0);
    for k in 0..PAD {
        out.copy_within(PAD * lanes..(PAD + 1) * lanes, k * lanes);
        out.copy_within(end - lanes..end, end + k * lanes);
    }
}

/// Values → coefficients in place along the slow axis of `[n, lanes]`, whole-sample mirror at both ends, gain 6.
fn prefilter(c: &mut [f64], lanes: usize) {
    let n = c.len() / lanes;
    if n < 2 {
        return;
    }
    c.iter_mut().for_each(|v| *v *= 6.0);
    // c⁺[0] of the mirrored signal. Terms beyond the 60th are below the last bit of the first.
    let last = POLE.powi(n as i32 - 1);
    let mut first: Vec<f64> = (0..lanes).map(|l| c[l] + last * c[(n - 1) * lanes + l]).collect();
    for i in 1..(n - 1) {
        let w = POLE.powi(i as i32) + POLE.powi(2 * (n as i32 - 1) - i as i32);
        if i > 60 && w.abs() < 1e-40 {
            break;
        }
        first.iter_mut().zip(&c[i * lanes..]).for_each(|(f, v)| *f += w * v);
    }
    let gain = 1.0 - last * last;
    c[..lanes].iter_mut().zip(first).for_each(|(c, f)| *c = f / gain);
    for i in 1..n {
        let (done, rest) = c.split_at_mut(i * lanes);
        rest.iter_mut().zip(&done[(i - 1) * lanes..]).for_each(|(c, before)| *c += POLE * before);
    }
    let scale = POLE / (POLE * POLE - 1.0);
    let (before, end) = c.split_at_mut((n - 1) * lanes);
    end.iter_mut().zip(&before[(n - 2) * lanes..]).for_each(|(c, b)| *c = scale * (*c + POLE * b));
    for i in (0..n - 1).rev() {
        let (rest, done) = c.split_at_mut((i + 1) * lanes);
        rest[i * lanes..].iter_mut().zip(&*done).for_each(|(c, after)| *c = POLE * (after - *c));
    }
}

/// The first of the four coefficients around a point of the unpadded axis, and their weights.
fn taps(p: f64, padded: usize) -> (usize, [f64; 4]) {
    // One voxel of room at both ends for the outer taps: the repeated edge is flat there.
    let q = (p + PAD as f64).max(1.0).min(padded as f64 - 3.0);
    let low = q.floor();
    let t = q - low;
    let s = 1.0 - t;
    (low as usize - 1, [s * s * s / 6.0, (t * t * (3.0 * t - 6.0) + 4.0) / 6.0, (3.0 * t * (1.0 + t - t * t) + 1.0) / 6.0, t * t * t / 6.0])
}

/// The spline at each of `at`, along the slow axis of padded coefficients `[n + 24, lanes]`, into `[at, lanes]`.
fn evaluate(c: &[f64], lanes: usize, at: &[f64], out: &mut [f64]) {
    let n = c.len() / lanes;
    for (p, out) in at.iter().zip(out.chunks_exact_mut(lanes)) {
        let (first, w) = taps(*p, n);
        let rows: [&[f64]; 4] = std::array::from_fn(|k| &c[(first + k) * lanes..][..lanes]);
        for (l, o) in out.iter_mut().enumerate() {
            *o = w[0] * rows[0][l] + w[1] * rows[1][l] + w[2] * rows[2][l] + w[3] * rows[3][l];
        }
    }
}
