//! Cubic B-spline interpolation (order 3) as scipy's `map_coordinates` with mode `nearest` and MONAI with an integer mode do it: 12 voxels of repeated edge at
//! both ends, a recursive filter with pole √3 − 2 that turns values into coefficients, then four taps an axis (Unser, IEEE Signal Processing Magazine 1999).

use rayon::prelude::*;
use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;

use super::intensity::Map;
use super::lanes::{self, Lanes, on_lanes};
use super::matrix::Affine;
use super::plan::{Part, Voxel};
use super::resample::Outside;
use super::separable::Stored;

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
pub fn separable<T: Voxel, U: Stored>(part: Part<T>, axes: &Axes, region: Region, maps: &[Map], lanes: Lanes, out: &mut [U]) {
    if out.is_empty() {
        return;
    }
    let (from, outside, to) = (axes.from, axes.outside, region.size);
    let first = region.start.map(|s| s as usize);
    let (at_z, at_y, at_x) = (&axes.at.z[first.z..][..to.z], &axes.at.y[first.y..][..to.y], &axes.at.x[first.x..][..to.x]);
    let plane = to.y * to.x;
    // [from.z, to.y, to.x]
    let mut inner = vec![0.0f64; from.z * plane];
    inner.par_chunks_mut(plane).enumerate().for_each_init(Room::default, |room, (z, inner)| {
        room.wide.resize(from.y * to.x, 0.0);
        for y in (0..from.y).step_by(SIDE) {
            let rows: [&[T]; SIDE] = std::array::from_fn(|k| part.row(z, (y + k).min(from.y - 1)).0);
            abreast(lanes, rows, &mut room.line);
            filter(lanes, &mut room.line, SIDE);
            room.out.resize(to.x * SIDE, 0.0);
            evaluate(lanes, &room.line, SIDE, at_x, &mut room.out);
            let rows = SIDE.min(from.y - y);
            apart(lanes, &room.out, to.x, &mut room.wide[y * to.x..][..rows * to.x]);
        }
        padded(&mut room.line, room.wide.chunks_exact(to.x), to.x);
        filter(lanes, &mut room.line, to.x);
        evaluate(lanes, &room.line, to.x, at_y, inner);
    });
    // Rows of the output by their y, so that each y can go through z on its own.
    let mut by_y: Vec<Vec<&mut [U]>> = (0..to.y).map(|_| Vec::with_capacity(to.z)).collect();
    out.chunks_exact_mut(to.x).enumerate().for_each(|(i, row)| by_y[i % to.y].push(row));
    let beyond_x: Vec<usize> = (0..to.x).filter(|x| outside.covers(at_x[*x], from.x)).collect();
    by_y.into_par_iter().enumerate().for_each_init(Room::default, |room, (y, rows)| {
        padded(&mut room.line, (0..from.z).map(|z| &inner[z * plane + y * to.x..][..to.x]), to.x);
        filter(lanes, &mut room.line, to.x);
        room.out.resize(to.x, 0.0);
        let mut scratch = Vec::new();
        for (row, p) in rows.into_iter().zip(at_z) {
            U::fill(row, &mut scratch, maps, lanes, |row| {
                if outside.covers(*p, from.z) || outside.covers(at_y[y], from.y) {
                    return row.fill(outside.value());
                }
                evaluate(lanes, &room.line, to.x, std::slice::from_ref(p), &mut room.out);
                lanes::narrow(lanes, &room.out, row);
                beyond_x.iter().for_each(|x| row[*x] = outside.value());
            });
        }
    });
}

/// Rows of a plane that go through the filter side by side.
const SIDE: usize = 16;

/// Memory that one task uses again.
#[derive(Default)]
struct Room {
    line: Vec<f64>,
    out: Vec<f64>,
    wide: Vec<f64>,
}

on_lanes! {
    /// Rows side by side, `[n + 24, SIDE]`, with the first and the last voxel repeated `PAD` times.
    pub fn abreast<T: Voxel>(rows: [&[T]; SIDE], out: &mut Vec<f64>) {
        let n = rows[0].len();
        out.resize((n + 2 * PAD) * SIDE, 0.0);
        let (lines, _) = out.as_chunks_mut::<SIDE>();
        for x in (0..n).step_by(8) {
            let x = x.min(n.saturating_sub(8));
            let width = 8.min(n);
            for (k, row) in rows.iter().enumerate() {
                for (i, v) in row[x..x + width].iter().enumerate() {
                    lines[PAD + x + i][k] = v.wide();
                }
            }
        }
        let (first, last) = (lines[PAD], lines[PAD + n - 1]);
        lines[..PAD].fill(first);
        lines[PAD + n..].fill(last);
    }
}

on_lanes! {
    /// `[n, SIDE]` back into rows of `n`; as many as `out` has.
    pub fn apart(lines: &[f64], n: usize, out: &mut [f64]) {
        let (lines, _) = lines.as_chunks::<SIDE>();
        for x in (0..n).step_by(8) {
            let width = 8.min(n - x);
            for (k, row) in out.chunks_exact_mut(n).enumerate() {
                for (i, o) in row[x..x + width].iter_mut().enumerate() {
                    *o = lines[x + i][k];
                }
            }
        }
    }
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

/// `[n + 24, lanes]`: the rows given, the first and the last repeated [`PAD`] times.
fn padded<'a>(out: &mut Vec<f64>, rows: impl Iterator<Item = &'a [f64]>, lanes: usize) {
    out.clear();
    out.resize(PAD * lanes, 0.0);
    rows.for_each(|row| out.extend_from_slice(row));
    let end = out.len();
    out.resize(end + PAD * lanes, 0.0);
    for k in 0..PAD {
        out.copy_within(PAD * lanes..(PAD + 1) * lanes, k * lanes);
        out.copy_within(end - lanes..end, end + k * lanes);
    }
}

on_lanes! {
    /// `prefilter`.
    pub fn filter(c: &mut [f64], lanes_abreast: usize) {
        match lanes_abreast {
            // The number of rows side by side is known: their values stay in registers.
            SIDE => prefilter(c, SIDE),
            n => prefilter(c, n),
        }
    }
}

/// Values → coefficients in place along the slow axis of `[n, lanes]`, whole-sample mirror at both ends, gain 6.
#[inline(always)]
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

on_lanes! {
    /// The spline at each of `at`, along the slow axis of padded coefficients `[n + 24, abreast]`, into `[at, abreast]`.
    pub fn evaluate(c: &[f64], abreast: usize, at: &[f64], out: &mut [f64]) {
        let n = c.len() / abreast;
        for (p, out) in at.iter().zip(out.chunks_exact_mut(abreast)) {
            let (first, w) = taps(*p, n);
            let [a, b, c, d]: [&[f64]; 4] = std::array::from_fn(|k| &c[(first + k) * abreast..][..abreast]);
            for (o, (((a, b), c), d)) in out.iter_mut().zip(a.iter().zip(b).zip(c).zip(d)) {
                *o = w[0] * a + w[1] * b + w[2] * c + w[3] * d;
            }
        }
    }
}
