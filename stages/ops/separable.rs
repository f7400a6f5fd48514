//! Resampling between two grids whose axes are parallel, axis by axis: the fast way. Rows are blended along y, then x, then z, in float64 (values of ±1000 HU
//! and a tolerance of 1e-5 need it), in strips of rows that stay in the cache; the maps that follow run on each row before it leaves.

use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;

use super::intensity::Map;
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
        let line = if (i as f64) < (m / 2.0).floor() { -1.0 + h * i as f64 } else { 1.0 - h * (m - 1.0 - i as f64) };
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
pub fn linear<T: Voxel>(part: Part<T>, axes: &Axes, tile: Region, slab: Region, maps: &[Map], out: &mut [f32]) {
    if part.region.is_empty() {
        return rows(tile, slab, out).for_each(|(row, ..)| {
            row.fill(axes.outside);
            maps.iter().for_each(|m| m.apply(row));
        });
    }
    for first in (0..tile.size.y).step_by(STRIP) {
        let rows = STRIP.min(tile.size.y - first);
        let tile = Region { start: Zyx { y: tile.start.y + first as i64, ..tile.start }, size: Zyx { y: rows, ..tile.size } };
        strip(part, axes, tile, slab, maps, out);
    }
}

fn strip<T: Voxel>(part: Part<T>, axes: &Axes, tile: Region, slab: Region, maps: &[Map], out: &mut [f32]) {
    let n = tile.size.x;
    let xs: Vec<(usize, f64)> =
        axes.taps.x[tile.start.x as usize..][..n].iter().map(|t| t.unwrap_or((part.region.start.x as usize, 0.0))).collect();
    let xs: Vec<(usize, f64)> = xs.into_iter().map(|(i, t)| (i - part.region.start.x as usize, t)).collect();
    let has_gaps = axes.taps.x[tile.start.x as usize..][..n].iter().any(Option::is_none);
    let mut wide = vec![0.0f64; part.region.size.x];
    // Input planes blended in y and x, each with its index; an index and the next one never share a place.
    let mut strips = [(usize::MAX, vec![0.0f64; tile.size.y * n]), (usize::MAX, vec![0.0f64; tile.size.y * n])];
    for (i, (row, z, y)) in rows(tile, slab, out).enumerate() {
        let (Some((low, t)), Some(_)) = (axes.taps.z[z], axes.taps.y[y]) else {
            row.fill(axes.outside);
            maps.iter().for_each(|m| m.apply(row));
            continue;
        };
        let k = i % tile.size.y;
        // A weight of 0 must not read its voxel: were it not a number, it would spread.
        for z in low..=low + (t != 0.0) as usize {
            let strip = &mut strips[z & 1];
            if strip.0 != z {
                strip.0 = z;
                for (k, out) in strip.1.chunks_exact_mut(n).enumerate() {
                    let Some((low, t)) = axes.taps.y[tile.start.y as usize + k] else { continue };
                    let (a, _) = part.row(z, low);
                    if t == 0.0 {
                        wide.iter_mut().zip(a).for_each(|(w, a)| *w = a.wide());
                    } else {
                        let (b, _) = part.row(z, low + 1);
                        wide.iter_mut().zip(a.iter().zip(b)).for_each(|(w, (a, b))| *w = a.wide() + (b.wide() - a.wide()) * t);
                    }
                    for (o, (i, t)) in out.iter_mut().zip(&xs) {
                        *o = if *t == 0.0 { wide[*i] } else { wide[*i] + (wide[i + 1] - wide[*i]) * t };
                    }
                }
            }
        }
        let a = &strips[low & 1].1[k * n..][..n];
        if t == 0.0 {
            row.iter_mut().zip(a).for_each(|(o, a)| *o = *a as f32);
        } else {
            let b = &strips[(low + 1) & 1].1[k * n..][..n];
            row.iter_mut().zip(a.iter().zip(b)).for_each(|(o, (a, b))| *o = (a + (b - a) * t) as f32);
        }
        if has_gaps {
            row.iter_mut().zip(&axes.taps.x[tile.start.x as usize..]).filter(|(_, x)| x.is_none()).for_each(|(o, _)| *o = axes.outside);
        }
        maps.iter().for_each(|m| m.apply(row));
    }
}

/// The closest voxel for the rows of `tile` in `out`, which is `[z, y, x]` of `slab`; `after` runs on each row.
#[allow(clippy::too_many_arguments)]
pub fn nearest<T: Copy, U: Copy>(
    part: Part<T>,
    axes: &Axes,
    tile: Region,
    slab: Region,
    value: impl Fn(T) -> U,
    beyond: U,
    after: impl Fn(&mut [U]),
    out: &mut [U],
) {
    let xs = &axes.taps.x[tile.start.x as usize..][..tile.size.x];
    for (row, z, y) in rows(tile, slab, out) {
        match (axes.taps.z[z], axes.taps.y[y]) {
            (Some((z, _)), Some((y, _))) if !part.region.is_empty() => {
                let (line, start) = part.row(z, y);
                row.iter_mut().zip(xs).for_each(|(o, x)| *o = x.map_or(beyond, |(i, _)| value(line[i - start])));
            }
            _ => row.fill(beyond),
        }
        after(row);
    }
}

/// The voxels themselves.
pub fn copy<T: Copy, U>(part: Part<T>, tile: Region, slab: Region, value: impl Fn(T) -> U, after: impl Fn(&mut [U]), out: &mut [U]) {
    for (row, z, y) in rows(tile, slab, out) {
        let (line, start) = part.row(z, y);
        row.iter_mut().zip(&line[tile.start.x as usize - start..]).for_each(|(o, v)| *o = value(*v));
        after(row);
    }
}
