//! Values of a volume at points anywhere: the general way, for grids that lie askew. `size` is that of the whole array, of which a part is at hand.

use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;

use super::intensity::Map;
use super::lanes::{Lanes, on_lanes};
use super::matrix::{self, Affine};
use super::plan::{Part, Voxel};
use super::resample::Outside;
use super::separable::Stored;

/// Voxels of the input of `size` that a region reads through `map`: those beside its points. `None`: none.
pub fn needs(map: &Affine, region: Region, size: Zyx<usize>, outside: Outside) -> Option<Region> {
    let (first, last) = (region.start, region.end().map(|e| e - 1));
    let corner = |k: usize| {
        let pick = |bit: usize, a: i64, b: i64| (if k >> bit & 1 == 1 { b } else { a }) as f64;
        matrix::apply(map, [pick(0, first.x, last.x), pick(1, first.y, last.y), pick(2, first.z, last.z)])
    };
    let axis = |a: usize, n: usize| -> Option<(i64, usize)> {
        let ends = (0..8).map(|k| corner(k)[a]);
        let (low, high) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), p| (low.min(p), high.max(p)));
        let top = n as i64 - 1;
        // The points of a row are counted up from its first: room for rounding.
        let (mut low, mut high) = ((low - 1e-6).floor() as i64, (high + 1e-6).floor() as i64 + 1);
        match outside {
            // Beyond an edge the last two voxels are read, one of them with a weight of 0.
            Outside::Edge => (low, high) = (low.clamp(0, (top - 1).max(0)), high.clamp(top.min(1), top)),
            Outside::Value(_) | Outside::Fade => (low, high) = ((low - 1).max(0), (high + 1).min(top)),
            Outside::Reflect if low < 0 || high > top => (low, high) = (0, top),
            Outside::Reflect => {}
        }
        (low <= high).then(|| (low, (high - low + 1) as usize))
    };
    let (z, y, x) = (axis(2, size.z)?, axis(1, size.y)?, axis(0, size.x)?);
    Some(Region { start: Zyx::new(z.0, y.0, x.0), size: Zyx::new(z.1, y.1, x.1) })
}

/// `value` of the source point of each voxel, for the rows of `tile` in `out`, which is `[z, y, x]` of `slab`.
pub fn sample<U: Stored>(
    map: &Affine,
    tile: Region,
    slab: Region,
    maps: &[Map],
    lanes: Lanes,
    out: &mut [U],
    value: impl Fn(Zyx<f64>) -> f32,
) {
    let mut scratch = Vec::new();
    for (row, z, y) in rows(tile, slab, out) {
        U::fill(row, &mut scratch, maps, lanes, |row| for_each_point(map, z, y, tile, |i, p| row[i] = value(p)));
    }
}

/// The trilinear value at each point, for the rows of `tile` in `out`, which is `[z, y, x]` of `slab`.
#[allow(clippy::too_many_arguments)]
pub fn linear<T: Voxel, U: Stored>(
    part: Part<T>,
    map: &Affine,
    size: Zyx<usize>,
    outside: Outside,
    tile: Region,
    slab: Region,
    maps: &[Map],
    lanes: Lanes,
    out: &mut [U],
) {
    let mut scratch = Vec::new();
    // 32-bit places within the part are enough for all but absurd ones.
    let is_small = part.voxels.len() < i32::MAX as usize;
    for (row, z, y) in rows(tile, slab, out) {
        let line = Line {
            base: matrix::apply(map, [0.0, y as f64, z as f64]),
            step: [map[0][0], map[1][0], map[2][0]],
            first: tile.start.x as usize,
        };
        // With a repeated edge every point has its neighbours, if there are two voxels along each axis.
        let folds = outside == Outside::Edge && size.to_array().iter().all(|n| *n > 1);
        let free = if folds { 0..row.len() } else { line.inside(size, row.len()) };
        let free = Some(free).filter(|r| is_small && r.len() >= SIDE).unwrap_or(0..0);
        U::fill(row, &mut scratch, maps, lanes, |row| {
            let edge = |k: usize, row: &mut [f32]| row[k] = linear_at(part, size, line.at(k), outside) as f32;
            (0..free.start).for_each(|k| edge(k, row));
            (free.end..row.len()).for_each(|k| edge(k, row));
            if !free.is_empty() {
                many(lanes, part, line, size, free.start, &mut row[free]);
            }
        });
    }
}

/// The source points of a row.
#[derive(Clone, Copy)]
pub struct Line {
    /// x, y, z of the point of output x = 0, and from one output to the next.
    base: [f64; 3],
    step: [f64; 3],
    /// The x of the first output of the row.
    first: usize,
}

impl Line {
    /// The source point of output `k` of the row.
    fn at(&self, k: usize) -> Zyx<f64> {
        let k = (self.first + k) as f64;
        let p: [f64; 3] = std::array::from_fn(|a| self.base[a] + self.step[a] * k);
        Zyx::new(p[2], p[1], p[0])
    }

    /// The outputs whose 8 neighbours all lie in an array of `size`. Coordinates rise or fall along the row, rounding included: they are neighbours.
    fn inside(&self, size: Zyx<usize>, n: usize) -> std::ops::Range<usize> {
        let free = |k: usize| {
            let p = self.at(k);
            let axis = |p: f64, n: usize| p >= 0.0 && p < n as f64 - 1.0;
            axis(p.z, size.z) && axis(p.y, size.y) && axis(p.x, size.x)
        };
        // A first guess by division, then as many steps as rounding asks for.
        let (mut low, mut high) = (0.0f64, n as f64);
        for (a, n) in [size.x, size.y, size.z].into_iter().enumerate() {
            let (base, step) = (self.base[a] + self.step[a] * self.first as f64, self.step[a]);
            if step == 0.0 {
                continue;
            }
            let (p, q) = ((0.0 - base) / step, (n as f64 - 1.0 - base) / step);
            (low, high) = (low.max(p.min(q)), high.min(p.max(q)));
        }
        if !(low <= high) {
            return 0..0;
        }
        let (mut start, mut end) = ((low.floor() as usize).saturating_sub(1).min(n), (high.ceil() as usize + 1).min(n));
        while start < end && !free(start) {
            start += 1;
        }
        while end > start && !free(end - 1) {
            end -= 1;
        }
        start..end
    }
}

/// Points that are worked on side by side.
const SIDE: usize = 16;

on_lanes! {
    /// The trilinear values of the outputs from `skip` on of a row, at least `SIDE` of them; the edge of an array of `size`, at least 2 voxels along each
    /// axis, is repeated. What they read lies in the part.
    pub fn many<T: Voxel>(part: Part<T>, line: Line, size: Zyx<usize>, skip: usize, out: &mut [f32]) {
        let start = part.region.start.map(|s| s as i32).to_array();
        let (row, plane) = (part.region.size.x, part.region.size.y * part.region.size.x);
        let (pitch, size) = ([plane as i32, row as i32, 1], size.to_array());
        let blocks = out.len().div_ceil(SIDE);
        for block in 0..blocks {
            // The last block ends with the row: some outputs are made twice.
            let from = (block * SIDE).min(out.len() - SIDE);
            let first = (line.first + skip + from) as f64;
            let (mut at, mut t) = ([0i32; SIDE], [[0.0f64; SIDE]; 3]);
            for a in 0..3 {
                let (base, step) = (line.base[2 - a], line.step[2 - a]);
                for k in 0..SIDE {
                    let p = (base + step * (first + k as f64)).max(0.0).min(size[a] as f64 - 1.0);
                    // SAFETY: `max` and `min` have left a number from 0 to the last voxel of an axis, which 31 bits hold as they hold the part.
                    let low = unsafe { p.to_int_unchecked::<i32>() }.min(size[a] as i32 - 2);
                    t[a][k] = p - low as f64;
                    at[k] = at[k].wrapping_add((low - start[a]).wrapping_mul(pitch[a]));
                }
            }
            let (low, high) = at.iter().fold((i32::MAX, i32::MIN), |(low, high), at| (low.min(*at), high.max(*at)));
            assert!(low >= 0 && (high as usize) + plane + row + 1 < part.voxels.len(), "every neighbour lies in the part");
            let mut corners = [[[T::default(); 2]; SIDE]; 4];
            for k in 0..SIDE {
                for (c, more) in [0, row, plane, plane + row].into_iter().enumerate() {
                    // SAFETY: two voxels from a place that was just seen to lie in the part.
                    corners[c][k] = unsafe { part.voxels.as_ptr().add(at[k] as usize + more).cast::<[T; 2]>().read() };
                }
            }
            let out = &mut out[from..][..SIDE];
            for k in 0..SIDE {
                let line = |c: usize| blend(corners[c][k][0].wide(), corners[c][k][1].wide(), t[2][k]);
                let (front, back) = (blend(line(0), line(1), t[1][k]), blend(line(2), line(3), t[1][k]));
                out[k] = blend(front, back, t[0][k]) as f32;
            }
        }
    }
}

/// The closest voxel of each point, as it is.
#[allow(clippy::too_many_arguments)]
pub fn pick<T: Copy>(
    part: Part<T>,
    map: &Affine,
    size: Zyx<usize>,
    outside: Outside,
    tile: Region,
    slab: Region,
    beyond: T,
    out: &mut [T],
) {
    for (row, z, y) in rows(tile, slab, out) {
        for_each_point(map, z, y, tile, |i, p| row[i] = nearest_at(size, p, outside).map_or(beyond, |i| part.voxels[part.at(i)]));
    }
}

/// The class with the most weight at each point.
#[allow(clippy::too_many_arguments)]
pub fn strongest(part: Part<u8>, map: &Affine, size: Zyx<usize>, outside: Outside, tile: Region, slab: Region, beyond: u8, out: &mut [u8]) {
    for (row, z, y) in rows(tile, slab, out) {
        for_each_point(map, z, y, tile, |i, p| row[i] = strongest_at(part, size, p, outside).unwrap_or(beyond));
    }
}

/// The rows of a tile in an array of a slab, each with its z and y.
pub(super) fn rows<U>(tile: Region, slab: Region, out: &mut [U]) -> impl Iterator<Item = (&mut [U], usize, usize)> {
    let (y0, ys) = ((tile.start.y - slab.start.y) as usize, tile.size.y);
    let (x0, xs) = ((tile.start.x - slab.start.x) as usize, tile.size.x);
    let z0 = (tile.start.z - slab.start.z) as usize;
    let plane = slab.size.y * slab.size.x;
    out.chunks_exact_mut(plane.max(1)).skip(z0).take(tile.size.z).enumerate().flat_map(move |(z, out)| {
        out.chunks_exact_mut(slab.size.x)
            .skip(y0)
            .take(ys)
            .enumerate()
            .map(move |(y, row)| (&mut row[x0..x0 + xs], tile.start.z as usize + z, tile.start.y as usize + y))
    })
}

/// Calls `f` with the index in the row and the source point (z, y, x) of every voxel of a row of `tile`.
pub fn for_each_point(map: &Affine, z: usize, y: usize, tile: Region, mut f: impl FnMut(usize, Zyx<f64>)) {
    let base = matrix::apply(map, [0.0, y as f64, z as f64]);
    for i in 0..tile.size.x {
        let k = (tile.start.x as usize + i) as f64;
        f(i, Zyx::new(base[2] + map[2][0] * k, base[1] + map[1][0] * k, base[0] + map[0][0] * k));
    }
}

pub fn nearest_at(size: Zyx<usize>, p: Zyx<f64>, outside: Outside) -> Option<Zyx<usize>> {
    let mut index = [0; 3];
    for (index, (p, n)) in index.iter_mut().zip(p.to_array().into_iter().zip(size.to_array())) {
        if outside.covers(p, n) {
            return None;
        }
        let i = outside.fold(p, n).round_ties_even();
        if !(i >= 0.0 && i < n as f64) {
            return None;
        }
        *index = i as usize;
    }
    Some(Zyx::from_array(index))
}

/// Where the neighbours of a point inside the array start: no edge is in reach.
fn inside(size: Zyx<usize>, p: Zyx<f64>) -> Option<Zyx<usize>> {
    let free = |p: f64, n: usize| p >= 0.0 && p < n as f64 - 1.0;
    // Truncation is the floor of what is not negative.
    (free(p.z, size.z) && free(p.y, size.y) && free(p.x, size.x)).then(|| p.map(|p| p as usize))
}

/// The 8 neighbours of a point: index and weight. A neighbour outside the array has weight 0.
fn neighbours(size: Zyx<usize>, p: Zyx<f64>, outside: Outside) -> Option<[(Zyx<usize>, f64); 8]> {
    let mut index = [[0usize; 3]; 8];
    let mut weights = [1.0f64; 8];
    for (axis, (p, n)) in p.to_array().into_iter().zip(size.to_array()).enumerate() {
        if outside.covers(p, n) {
            return None;
        }
        let p = outside.fold(p, n);
        let low = p.floor();
        let t = p - low;
        for (k, (index, weight)) in index.iter_mut().zip(&mut weights).enumerate() {
            let high = k >> (2 - axis) & 1;
            let i = low as i64 + high as i64;
            let inside = (0..n as i64).contains(&i);
            index[axis] = i.clamp(0, n as i64 - 1) as usize;
            *weight *= match (inside, high) {
                (false, _) => 0.0,
                (true, 0) => 1.0 - t,
                (true, _) => t,
            };
        }
    }
    Some(std::array::from_fn(|k| (Zyx::from_array(index[k]), weights[k])))
}

/// a + (b − a)·t; a voxel whose weight is 0 is not looked at, were it infinite.
#[inline(always)]
fn blend(a: f64, b: f64, t: f64) -> f64 {
    let mixed = a + (b - a) * t;
    let mixed = if t == 1.0 { b } else { mixed };
    if t == 0.0 { a } else { mixed }
}

/// The trilinear value of one channel of `size` at a point.
#[inline]
pub fn linear_at<T: Voxel>(part: Part<T>, size: Zyx<usize>, p: Zyx<f64>, outside: Outside) -> f64 {
    let folds = outside == Outside::Edge && size.to_array().iter().all(|n| *n > 1);
    let p = if folds { p.zip(size).map(|(p, n)| outside.fold(p, n)) } else { p };
    let low = if folds { Some(p.zip(size).map(|(p, n)| (p as usize).min(n - 2))) } else { inside(size, p) };
    if let Some(low) = low {
        let t = p.zip(low).map(|(p, low)| p - low as f64);
        let (row, plane) = (part.region.size.x, part.region.size.y * part.region.size.x);
        let at = part.at(low);
        let line = |at: usize| blend(part.voxels[at].wide(), part.voxels[at + 1].wide(), t.x);
        let sheet = |at: usize| blend(line(at), line(at + row), t.y);
        return blend(sheet(at), sheet(at + plane), t.z);
    }
    match neighbours(size, p, outside) {
        // A weight of 0 must silence its voxel, were it infinite.
        Some(n) => n.iter().filter(|(_, w)| *w > 0.0).map(|(i, w)| part.voxels[part.at(*i)].wide() * w).sum(),
        None => outside.value() as f64,
    }
}

fn strongest_at(part: Part<u8>, size: Zyx<usize>, p: Zyx<f64>, outside: Outside) -> Option<u8> {
    let near = neighbours(size, p, outside)?.map(|(i, w)| (if w > 0.0 { part.voxels[part.at(i)] } else { 0 }, w));
    let first = near.iter().find(|n| n.1 > 0.0)?.0;
    let total: f64 = near.iter().map(|n| n.1).sum();
    // What fades out is background.
    if total > 1.0 - 1e-9 && near.iter().all(|(class, w)| *class == first || *w == 0.0) {
        return Some(first);
    }
    let weight_of = |class: u8| near.iter().filter(|n| n.0 == class).map(|n| n.1).sum::<f64>();
    let mut best = (0u8, weight_of(0) + (1.0 - total).max(0.0));
    for (class, _) in near {
        let w = weight_of(class);
        // Weights are sums of products: a difference in the last bits is a tie.
        if class != best.0 && (w > best.1 + 1e-12 || (w > best.1 - 1e-12 && class < best.0)) {
            best = (class, w);
        }
    }
    Some(best.0)
}
