//! Resampling between two grids whose axes are parallel, axis by axis: the fast way. Rows are blended along y, then x, then z, in float64 (values of ±1000 HU
//! and a tolerance of 1e-5 need it), in strips of rows that stay in the cache; the maps that follow run on each row before it leaves.

use half::f16;
use half::slice::HalfFloatSliceExt;
use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;

use super::intensity::Map;
use super::lanes::{self, Lanes, Picks};
use super::matrix::Affine;
use super::plan::{Part, Voxel};
use super::points::rows;
use super::resample::Outside;

/// Where one output index of an axis reads: the lower neighbour and the weight of the upper one. `None`: outside.
pub type Taps = Vec<Option<(usize, f64)>>;

/// The plan of a separable resampling.
#[derive(Clone, Debug)]
pub struct Axes {
    pub from: Zyx<usize>,
    pub to: Zyx<usize>,
    pub taps: Zyx<Taps>,
    pub outside: f32,
}

impl Axes {
    pub fn linear(map: &Affine, from: Zyx<usize>, to: Zyx<usize>, outside: Outside) -> Self {
        Self::of(map, from, to, outside, |p, n, _| {
            let low = (p.floor() as usize).min(n.saturating_sub(2));
            (low, p - low as f64)
        })
    }

    /// Weights are all 0: the lower neighbour is the voxel.
    pub fn nearest(map: &Affine, from: Zyx<usize>, to: Zyx<usize>, outside: Outside) -> Self {
        Self::of(map, from, to, outside, |_, n, place| (place.clamp(0.0, n as f64 - 1.0).round_ties_even() as usize, 0.0))
    }

    fn of(map: &Affine, from: Zyx<usize>, to: Zyx<usize>, outside: Outside, tap: impl Fn(f64, usize, f64) -> (usize, f64)) -> Self {
        let axis = |a: usize, n: usize, m: usize| -> Taps {
            let (step, start) = (map[a][a], map[a][3]);
            (0..m)
                .map(|i| {
                    let p = step * i as f64 + start;
                    (!outside.covers(p, n)).then(|| tap(outside.fold(p, n), n, torch_coordinate(step, start, i, n, m)))
                })
                .collect()
        };
        let taps = Zyx::new(axis(2, from.z, to.z), axis(1, from.y, to.y), axis(0, from.x, to.x));
        Self { from, to, taps, outside: outside.value() }
    }

    /// The voxels that a region of the output reads.
    pub fn needs(&self, region: Region) -> Option<Region> {
        let axis = |taps: &Taps, start: i64, n: usize| -> Option<(i64, usize)> {
            let read = taps[start as usize..][..n].iter().flatten();
            let (low, high) = read.fold((usize::MAX, 0), |(low, high), (i, t)| (low.min(*i), high.max(i + (*t != 0.0) as usize)));
            (low <= high).then(|| (low as i64, high - low + 1))
        };
        let z = axis(&self.taps.z, region.start.z, region.size.z)?;
        let y = axis(&self.taps.y, region.start.y, region.size.y)?;
        let x = axis(&self.taps.x, region.start.x, region.size.x)?;
        Some(Region { start: Zyx::new(z.0, y.0, x.0), size: Zyx::new(z.1, y.1, x.1) })
    }
}

/// The source coordinate as `torch.nn.functional.affine_grid` and `grid_sample` (align_corners false) round it: through coordinates normalised to ±1. It
/// differs from step·i + start in its last bits, which decide where half-way points go.
fn torch_coordinate(step: f64, start: f64, i: usize, n: usize, m: usize) -> f64 {
    let (n, m) = (n as f64, m as f64);
    // (src · X) · dst⁻¹ with src = diag(2/n) and last column 1/n − 1, dst likewise of m.
    let (src, dst) = (2.0 / n, 2.0 / m);
    let (src_shift, dst_shift) = (1.0 / n - 1.0, 1.0 / m - 1.0);
    let (scaled, shifted) = (src * step, src * start + src_shift);
    let inverse = 1.0 / dst;
    let scale = scaled * inverse;
    let shift = scaled * (-dst_shift * inverse) + shifted;
    // linspace(−1, 1, m) is built from both ends, then drawn together to the centres of the voxels.
    let base = if m > 1.0 {
        let h = 2.0 / (m - 1.0);
        // Multiplied and added in one rounding, as torch's own build does it.
        let line = if (i as f64) < (m / 2.0).floor() { h.mul_add(i as f64, -1.0) } else { (-h).mul_add(m - 1.0 - i as f64, 1.0) };
        line * (m - 1.0) / m
    } else {
        0.0
    };
    let g = base * scale + shift;
    ((g + 1.0) * n - 1.0) / 2.0
}

/// Output rows that are worked on together: their blended rows of two input planes stay in the cache while z is walked.
const STRIP: usize = 16;

/// Trilinear values for the rows of `tile` in `out`, which is `[z, y, x]` of `slab`.
///
/// - part: covers what [`Axes::needs`] says of `tile`
pub fn linear<T: Voxel, U: Stored>(part: Part<T>, axes: &Axes, tile: Region, slab: Region, maps: &[Map], lanes: Lanes, out: &mut [U]) {
    let xs = &axes.taps.x[tile.start.x as usize..][..tile.size.x];
    if part.region.is_empty() || xs.iter().all(Option::is_none) {
        return rows(tile, slab, out).for_each(|(row, ..)| U::fill(row, &mut Vec::new(), maps, lanes, |row| row.fill(axes.outside)));
    }
    let start = part.region.start.x as usize;
    // Where nothing is read, anything that is there may stand in.
    let any = xs.iter().flatten().map(|t| (t.0, 0.0)).next().expect("just looked");
    let picks = Picks::new(&xs.iter().map(|t| t.unwrap_or(any)).map(|(i, t)| (i - start, t)).collect::<Vec<_>>());
    let gaps: Vec<usize> = xs.iter().enumerate().filter(|(_, t)| t.is_none()).map(|(x, _)| x).collect();
    let mut strip = Strip { part, axes, wide: vec![0.0; picks.reach().max(part.region.size.x)], planes: Default::default(), picks, gaps };
    for first in (0..tile.size.y).step_by(STRIP) {
        let rows = STRIP.min(tile.size.y - first);
        strip.fill(
            Region { start: Zyx { y: tile.start.y + first as i64, ..tile.start }, size: Zyx { y: rows, ..tile.size } },
            slab,
            maps,
            lanes,
            out,
        );
    }
}

/// A few rows on their way through all planes.
struct Strip<'a, T> {
    part: Part<'a, T>,
    axes: &'a Axes,
    picks: Picks,
    /// Outputs of a row that lie outside.
    gaps: Vec<usize>,
    /// One row of the input, blended along y.
    wide: Vec<f64>,
    /// Rows of two input planes, blended along y and x, and which planes they are; a plane and the next one never share a place.
    planes: [(usize, Vec<f64>); 2],
}

impl<T: Voxel> Strip<'_, T> {
    fn fill<U: Stored>(&mut self, tile: Region, slab: Region, maps: &[Map], lanes: Lanes, out: &mut [U]) {
        let (axes, pitch) = (self.axes, self.picks.padded());
        self.planes.iter_mut().for_each(|p| {
            p.0 = usize::MAX;
            p.1.resize(tile.size.y * pitch, 0.0);
        });
        let mut scratch = Vec::new();
        for (i, (row, z, y)) in rows(tile, slab, out).enumerate() {
            let k = i % tile.size.y * pitch;
            U::fill(row, &mut scratch, maps, lanes, |row| {
                let (Some((low, t)), Some(_)) = (axes.taps.z[z], axes.taps.y[y]) else { return row.fill(axes.outside) };
                // A weight of 0 must not read its voxel: were it not a number, it would spread.
                (low..=low + (t != 0.0) as usize).for_each(|z| self.plane(z, tile, lanes));
                let a = &self.planes[low & 1].1[k..];
                match t == 0.0 {
                    true => lanes::narrow(lanes, a, row),
                    false => lanes::blend_out(lanes, a, &self.planes[(low + 1) & 1].1[k..], t, row),
                }
                self.gaps.iter().for_each(|x| row[*x] = axes.outside);
            });
        }
    }

    /// Blends the rows of an input plane, unless they are there.
    fn plane(&mut self, z: usize, tile: Region, lanes: Lanes) {
        let (part, pitch) = (&self.part, self.picks.padded());
        let (at, rows) = &mut self.planes[z & 1];
        if *at == z {
            return;
        }
        *at = z;
        for (out, tap) in rows.chunks_exact_mut(pitch).zip(&self.axes.taps.y[tile.start.y as usize..][..tile.size.y]) {
            let Some((low, t)) = *tap else { continue };
            let (a, _) = part.row(z, low);
            match t == 0.0 {
                true => lanes::widen(lanes, a, &mut self.wide),
                false => lanes::blend_rows(lanes, a, part.row(z, low + 1).0, t, &mut self.wide),
            }
            self.picks.blend(lanes, &self.wide, out);
        }
    }
}

/// A type that values are stored as.
pub trait Stored: Copy + Default + Send + Sync + 'static {
    /// A row: `make` gives its values as float32, the maps run on them in the cache, then they are stored.
    fn fill(row: &mut [Self], scratch: &mut Vec<f32>, maps: &[Map], lanes: Lanes, make: impl FnOnce(&mut [f32]));
}

impl Stored for f32 {
    fn fill(row: &mut [f32], _: &mut Vec<f32>, maps: &[Map], lanes: Lanes, make: impl FnOnce(&mut [f32])) {
        make(row);
        maps.iter().for_each(|m| m.apply_on(lanes, row));
    }
}

/// Rounded to the nearest, half to even.
impl Stored for f16 {
    fn fill(row: &mut [f16], scratch: &mut Vec<f32>, maps: &[Map], lanes: Lanes, make: impl FnOnce(&mut [f32])) {
        scratch.resize(row.len(), 0.0);
        f32::fill(scratch, &mut Vec::new(), maps, lanes, make);
        row.convert_from_f32_slice(scratch);
    }
}

/// The closest voxel for the rows of `tile` in `out`, which is `[z, y, x]` of `slab`.
pub fn nearest<T: Copy>(part: Part<T>, axes: &Axes, tile: Region, slab: Region, beyond: T, out: &mut [T]) {
    rows(tile, slab, out).for_each(|(row, z, y)| nearest_row(part, axes, (z, y), tile, |v| v, beyond, row));
}

/// [`nearest`] as values, with the maps that follow.
pub fn nearest_values<T: Voxel, U: Stored>(
    part: Part<T>,
    axes: &Axes,
    tile: Region,
    slab: Region,
    maps: &[Map],
    lanes: Lanes,
    out: &mut [U],
) {
    let mut scratch = Vec::new();
    for (row, z, y) in rows(tile, slab, out) {
        let make = |row: &mut [f32]| nearest_row(part, axes, (z, y), tile, |v: T| v.wide() as f32, axes.outside, row);
        U::fill(row, &mut scratch, maps, lanes, make);
    }
}

fn nearest_row<T: Copy, U: Copy>(
    part: Part<T>,
    axes: &Axes,
    (z, y): (usize, usize),
    tile: Region,
    value: impl Fn(T) -> U,
    beyond: U,
    row: &mut [U],
) {
    match (axes.taps.z[z], axes.taps.y[y]) {
        (Some((z, _)), Some((y, _))) if !part.region.is_empty() => {
            let (line, start) = part.row(z, y);
            let xs = &axes.taps.x[tile.start.x as usize..];
            row.iter_mut().zip(xs).for_each(|(o, x)| *o = x.map_or(beyond, |(i, _)| value(line[i - start])));
        }
        _ => row.fill(beyond),
    }
}

/// The voxels themselves.
pub fn copy<T: Copy>(part: Part<T>, tile: Region, slab: Region, out: &mut [T]) {
    for (row, z, y) in rows(tile, slab, out) {
        let (line, start) = part.row(z, y);
        row.copy_from_slice(&line[tile.start.x as usize - start..][..row.len()]);
    }
}

/// The voxels themselves as values, with the maps that follow.
pub fn copy_values<T: Voxel, U: Stored>(part: Part<T>, tile: Region, slab: Region, maps: &[Map], lanes: Lanes, out: &mut [U]) {
    let mut scratch = Vec::new();
    for (row, z, y) in rows(tile, slab, out) {
        let (line, start) = part.row(z, y);
        let make = |row: &mut [f32]| row.iter_mut().zip(&line[tile.start.x as usize - start..]).for_each(|(o, v)| *o = v.wide() as f32);
        U::fill(row, &mut scratch, maps, lanes, make);
    }
}
