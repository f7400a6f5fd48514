//! Cubic B-spline interpolation (order 3) as scipy's `map_coordinates` with mode `nearest` and MONAI with an integer mode do it: 12 voxels of repeated edge at
//! both ends, a recursive filter with pole √3 − 2 that turns values into coefficients, then four taps an axis (Unser, IEEE Signal Processing Magazine 1999).

use std::collections::VecDeque;
use std::ops::Range;

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

    /// Bytes of the planes that are held while a region is made.
    pub fn between_bytes(&self, region: Region) -> usize {
        8 * PLANES.min(self.from.z) * region.size.y * region.size.x
    }

    /// The voxels that a region of the output reads: whole rows and columns, of the planes that the blocks of its first and its last plane take.
    pub fn needs(&self, region: Region) -> Option<Region> {
        let at = &self.at.z[region.start.z as usize..][..region.size.z];
        let blocks = at.iter().map(|p| block(*p, self.from.z));
        let (low, high) = (blocks.clone().min()?, blocks.max()?);
        let planes = voxels(&window(low, self.from.z), self.from.z).start..voxels(&window(high, self.from.z), self.from.z).end;
        Some(Region { start: Zyx::new(planes.start as i64, 0, 0), size: Zyx { z: planes.len(), ..self.from } })
    }
}

/// Coefficients along z are made in blocks of so many, which begin at multiples of it: a block is the same whatever region asks for it.
const BLOCK: usize = 32;
/// So many values before and after a block the filter starts anew: what it begins with has faded to |pole|²⁰ < 4e-12 where the block begins.
const HALO: usize = 20;
/// Planes that are in memory at once, at most.
const PLANES: usize = BLOCK + 3 + 2 * HALO;

/// The block that holds the first coefficient of a point's four; the three after the block are made with it.
fn block(p: f64, n: usize) -> usize {
    taps(p, n + 2 * PAD).0 / BLOCK
}

/// The padded values that a block is made from.
fn window(block: usize, n: usize) -> Range<usize> {
    (block * BLOCK).saturating_sub(HALO)..((block + 1) * BLOCK + 3 + HALO).min(n + 2 * PAD)
}

/// Where a padded value comes from.
fn inside(i: usize, n: usize) -> usize {
    i.saturating_sub(PAD).min(n - 1)
}

/// The voxels behind padded values.
fn voxels(window: &Range<usize>, n: usize) -> Range<usize> {
    inside(window.start, n)..inside(window.end - 1, n) + 1
}

/// Cubic resampling between parallel grids, axis by axis.
///
/// - part: covers what [`Axes::needs`] says of `region`
/// - out: `[z, y, x]` of `region`
///
/// Costs 8 bytes a voxel of `[min(from.z, PLANES), region.y, region.x]` beside input and output.
pub fn separable<T: Voxel, U: Stored>(part: Part<T>, axes: &Axes, region: Region, maps: &[Map], lanes: Lanes, out: &mut [U]) {
    if out.is_empty() {
        return;
    }
    let (from, outside, to) = (axes.from, axes.outside, region.size);
    let first = region.start.map(|s| s as usize);
    let (at_z, at_y, at_x) = (&axes.at.z[first.z..][..to.z], &axes.at.y[first.y..][..to.y], &axes.at.x[first.x..][..to.x]);
    let plane = to.y * to.x;
    let beyond_x: Vec<usize> = (0..to.x).filter(|x| outside.covers(at_x[*x], from.x)).collect();
    // Planes `[to.y, to.x]` of neighbouring input z, of which the first is `from_z`.
    let (mut held, mut from_z) = (VecDeque::<Vec<f64>>::new(), 0);
    let mut rest = out;
    for at_z in at_z.chunk_by(|a, b| block(*a, from.z) == block(*b, from.z)) {
        let (out, after) = std::mem::take(&mut rest).split_at_mut(at_z.len() * plane);
        rest = after;
        let window = window(block(at_z[0], from.z), from.z);
        let planes = voxels(&window, from.z);
        let kept = (from_z..from_z + held.len()).contains(&planes.start).then(|| planes.start - from_z);
        let mut spare: Vec<Vec<f64>> = held.drain(..kept.unwrap_or(held.len())).collect();
        from_z = planes.start;
        let mut fresh: Vec<Vec<f64>> = (from_z + held.len()..planes.end).map(|_| spare.pop().unwrap_or_else(|| vec![0.0; plane])).collect();
        drop(spare);
        let next = from_z + held.len();
        fresh.par_iter_mut().enumerate().for_each_init(Room::default, |room, (i, inner)| {
            in_plane(part, next + i, from, at_y, at_x, lanes, room, inner);
        });
        held.extend(fresh);
        // Rows of the output by their y, so that each y can go through z on its own.
        let mut by_y: Vec<Vec<&mut [U]>> = (0..to.y).map(|_| Vec::with_capacity(at_z.len())).collect();
        out.chunks_exact_mut(to.x).enumerate().for_each(|(i, row)| by_y[i % to.y].push(row));
        by_y.into_par_iter().enumerate().for_each_init(Room::default, |room, (y, rows)| {
            room.line.clear();
            window.clone().for_each(|i| room.line.extend_from_slice(&held[inside(i, from.z) - from_z][y * to.x..][..to.x]));
            filter(lanes, &mut room.line, to.x);
            room.out.resize(to.x, 0.0);
            let mut scratch = Vec::new();
            for (row, p) in rows.into_iter().zip(at_z) {
                U::fill(row, &mut scratch, maps, lanes, |row| {
                    if outside.covers(*p, from.z) || outside.covers(at_y[y], from.y) {
                        return row.fill(outside.value());
                    }
                    evaluate(lanes, &room.line, window.start, from.z, to.x, std::slice::from_ref(p), &mut room.out);
                    lanes::narrow(lanes, &room.out, row);
                    beyond_x.iter().for_each(|x| row[*x] = outside.value());
                });
            }
        });
    }
}

/// A plane of the input at the places of the output along y and x.
/// - out: `[at_y, at_x]`
#[allow(clippy::too_many_arguments)]
fn in_plane<T: Voxel>(
    part: Part<T>,
    z: usize,
    from: Zyx<usize>,
    at_y: &[f64],
    at_x: &[f64],
    lanes: Lanes,
    room: &mut Room,
    out: &mut [f64],
) {
    let n = at_x.len();
    room.wide.resize(from.y * n, 0.0);
    for y in (0..from.y).step_by(SIDE) {
        let rows: [&[T]; SIDE] = std::array::from_fn(|k| part.row(z, (y + k).min(from.y - 1)).0);
        abreast(lanes, rows, &mut room.line);
        filter(lanes, &mut room.line, SIDE);
        room.out.resize(n * SIDE, 0.0);
        evaluate(lanes, &room.line, 0, from.x, SIDE, at_x, &mut room.out);
        let rows = SIDE.min(from.y - y);
        apart(lanes, &room.out, n, &mut room.wide[y * n..][..rows * n]);
    }
    padded(&mut room.line, room.wide.chunks_exact(n), n);
    filter(lanes, &mut room.line, n);
    evaluate(lanes, &room.line, 0, from.y, n, at_y, out);
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

/// Bytes of the coefficients of one channel.
pub fn coefficients_bytes(size: Zyx<usize>) -> usize {
    8 * size.map(|n| n + 2 * PAD).count()
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
    // c⁺[0] of the mirrored signal, without the terms that are far below its last bit.
    let last = POLE.powi(n as i32 - 1);
    let mut first: Vec<f64> = (0..lanes).map(|l| c[l] + last * c[(n - 1) * lanes + l]).collect();
    for i in 1..(n - 1) {
        let w = POLE.powi(i as i32) + POLE.powi(2 * (n as i32 - 1) - i as i32);
        if w.abs() < 1e-20 {
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
    /// The spline at each of `at`, along the slow axis of padded coefficients `[.., abreast]`, into `[at, abreast]`.
    /// - begin: which of the `n + 24` coefficients of the axis is the first of `c`
    pub fn evaluate(c: &[f64], begin: usize, n: usize, abreast: usize, at: &[f64], out: &mut [f64]) {
        for (p, out) in at.iter().zip(out.chunks_exact_mut(abreast)) {
            let (first, w) = taps(*p, n + 2 * PAD);
            let [a, b, c, d]: [&[f64]; 4] = std::array::from_fn(|k| &c[(first - begin + k) * abreast..][..abreast]);
            for (o, (((a, b), c), d)) in out.iter_mut().zip(a.iter().zip(b).zip(c).zip(d)) {
                *o = w[0] * a + w[1] * b + w[2] * c + w[3] * d;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::matrix::Affine;

    #[test]
    fn blocks_along_z_are_the_filter_along_all_of_it_and_read_no_more_than_their_planes() {
        let (from, to) = (Zyx::new(190, 3, 4), Zyx::new(400, 3, 4));
        let values: Vec<i16> = (0..from.count()).map(|i| ((i.wrapping_mul(2_654_435_761) >> 12) % 4000) as i16 - 1000).collect();
        let mut map: Affine = [[0.0; 4]; 4];
        map.iter_mut().enumerate().for_each(|(i, row)| row[i] = if i == 2 { 0.47 } else { 1.0 });
        let axes = Axes::new(&map, from, to, Outside::Edge);
        let mut out = vec![0f32; to.count()];
        separable(Part::whole(&values, from), &axes, Region::whole(to), &[], Lanes::here(), &mut out);
        let c = Coefficients::of(&values, from);
        for (o, v) in out.iter().enumerate() {
            let p = Zyx::new((o / 12) as f64 * 0.47, (o / 4 % 3) as f64, (o % 4) as f64);
            assert!((v - c.at(p, Outside::Edge)).abs() < 1e-3, "voxel {o}");
        }
        let middle = Region { start: Zyx::new(200, 0, 0), size: Zyx { z: 20, ..to } };
        let needs = axes.needs(middle).expect("a box");
        assert!(needs.size.z <= PLANES + BLOCK && needs.size.z < from.z, "{needs:?}");
        let cut = &values[needs.start.z as usize * 12..][..needs.size.count()];
        let mut part = vec![0f32; middle.size.count()];
        separable(Part { voxels: cut, region: needs }, &axes, middle, &[], Lanes::here(), &mut part);
        assert!(part == out[200 * 12..][..part.len()], "to the bit");
    }
}
