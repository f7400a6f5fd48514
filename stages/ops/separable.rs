//! Resampling between two grids whose axes are parallel, axis by axis: the fast way. Blends run in float64 (values of ±1000 HU and a tolerance of 1e-5 need
//! it) on planes that stay in the cache; slabs of output planes run side by side.

use rayon::prelude::*;
use voxmill_schemas::geometry::Zyx;

use super::matrix::Affine;
use super::resample::Outside;

/// Where one output index of an axis reads: the lower neighbour and the weight of the upper one. `None`: outside.
pub type Taps = Vec<Option<(usize, f64)>>;

/// The plan of a separable resampling.
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

/// Trilinear.
///
/// - values: `[c, z, y, x]` of `axes.from`; the result is `[c, z, y, x]` of `axes.to`
pub fn linear<T: Copy + Sync>(values: &[T], value: &(impl Fn(T) -> f64 + Sync), axes: &Axes) -> Vec<f32> {
    let (from, to) = (axes.from.count(), axes.to.count());
    let channels = values.len().checked_div(from).unwrap_or(0);
    let mut out = vec![0.0f32; channels * to];
    let plane = axes.to.y * axes.to.x;
    if out.is_empty() {
        return out;
    }
    let depth = slab_depth(axes.to.z);
    for (values, out) in values.chunks_exact(from).zip(out.chunks_exact_mut(to)) {
        out.par_chunks_mut(plane * depth).enumerate().for_each(|(slab, out)| {
            let mut planes = Planes::new(values, value, axes);
            out.chunks_exact_mut(plane).enumerate().for_each(|(k, out)| planes.write(slab * depth + k, out));
        });
    }
    out
}

/// The strongest channel of a trilinear resampling, the lowest on a tie and outside.
///
/// - scores: `[class, z, y, x]` of `axes.from`; the result is `[z, y, x]` of `axes.to`
pub fn strongest(scores: &[f32], axes: &Axes) -> Vec<u8> {
    let from = axes.from.count();
    let mut out = vec![0u8; axes.to.count()];
    let plane = axes.to.y * axes.to.x;
    if out.is_empty() || from == 0 {
        return out;
    }
    let depth = slab_depth(axes.to.z);
    out.par_chunks_mut(plane * depth).enumerate().for_each(|(slab, out)| {
        let (mut best, mut here) = (vec![f32::NEG_INFINITY; out.len()], vec![0.0f32; plane]);
        for (class, scores) in scores.chunks_exact(from).enumerate() {
            let mut planes = Planes::new(scores, &|v| v as f64, axes);
            for (k, (out, best)) in out.chunks_exact_mut(plane).zip(best.chunks_exact_mut(plane)).enumerate() {
                planes.write(slab * depth + k, &mut here);
                for ((out, best), here) in out.iter_mut().zip(best).zip(&here) {
                    if *here > *best {
                        (*best, *out) = (*here, class as u8);
                    }
                }
            }
        }
    });
    out
}

/// The closest voxel.
///
/// - values: `[c, z, y, x]` of `axes.from`; the result is `[c, z, y, x]` of `axes.to`
pub fn nearest<T: Copy + Sync, U: Copy + Send + Sync + Default>(values: &[T], value: impl Fn(T) -> U + Sync, axes: &Axes) -> Vec<U>
where
    f32: As<U>,
{
    let (from, to) = (axes.from, axes.to);
    let channels = values.len().checked_div(from.count()).unwrap_or(0);
    let mut out = vec![axes.outside.as_(); channels * to.count()];
    let plane = (to.y * to.x).max(1);
    // Only where every axis has a voxel is there something to read.
    let rows: Vec<(usize, usize)> = axes.taps.x.iter().enumerate().filter_map(|(x, t)| t.map(|t| (x, t.0))).collect();
    out.par_chunks_mut(plane).enumerate().for_each(|(i, out)| {
        let Some((z, _)) = axes.taps.z[i % to.z] else { return };
        let channel = &values[i / to.z * from.count()..][..from.count()];
        for (out, tap) in out.chunks_exact_mut(to.x).zip(&axes.taps.y) {
            let Some((y, _)) = tap else { continue };
            let line = &channel[(z * from.y + y) * from.x..][..from.x];
            rows.iter().for_each(|(x, source)| out[*x] = value(line[*source]));
        }
    });
    out
}

/// The value outside in the type of the output.
pub trait As<U> {
    fn as_(self) -> U;
}
impl As<f32> for f32 {
    fn as_(self) -> f32 {
        self
    }
}
impl As<u8> for f32 {
    fn as_(self) -> u8 {
        self.clamp(0.0, 255.0) as u8
    }
}

/// Planes of a slab: a few a task, so that its two blended input planes are used again, and enough tasks for every thread.
fn slab_depth(planes: usize) -> usize {
    planes.div_ceil(4 * rayon::current_num_threads()).max(8)
}

/// Input planes of one channel, blended in y and x and kept while output planes need them.
struct Planes<'a, T, V> {
    values: &'a [T],
    value: &'a V,
    axes: &'a Axes,
    x: Vec<(u32, f64)>,
    /// Input rows blended in x, and input planes blended in y and x, each with its index; an index and the next one never share a place.
    rows: [(usize, Vec<f64>); 2],
    planes: [(usize, Vec<f64>); 2],
}

impl<'a, T: Copy, V: Fn(T) -> f64> Planes<'a, T, V> {
    fn new(values: &'a [T], value: &'a V, axes: &'a Axes) -> Self {
        let line = || (usize::MAX, vec![0.0; axes.to.x]);
        let plane = || (usize::MAX, vec![0.0; axes.to.y * axes.to.x]);
        let x = axes.taps.x.iter().map(|t| t.map_or((0, 0.0), |(i, w)| (i as u32, w))).collect();
        Self { values, value, axes, x, rows: [line(), line()], planes: [plane(), plane()] }
    }

    /// One output plane.
    fn write(&mut self, z: usize, out: &mut [f32]) {
        let axes = self.axes;
        let Some((low, t)) = axes.taps.z[z] else { return out.fill(axes.outside) };
        // A weight of 0 must not read its voxel: were it not a number, it would spread.
        self.plane(low);
        if t == 0.0 {
            out.iter_mut().zip(&self.planes[low & 1].1).for_each(|(o, a)| *o = *a as f32);
        } else {
            self.plane(low + 1);
            let (a, b) = (&self.planes[low & 1].1, &self.planes[(low + 1) & 1].1);
            out.iter_mut().zip(a.iter().zip(b)).for_each(|(o, (a, b))| *o = (a + (b - a) * t) as f32);
        }
        if axes.taps.y.iter().chain(&axes.taps.x).any(Option::is_none) {
            for (row, y) in out.chunks_exact_mut(axes.to.x).zip(&axes.taps.y) {
                row.iter_mut().zip(&axes.taps.x).filter(|(_, x)| y.is_none() || x.is_none()).for_each(|(o, _)| *o = axes.outside);
            }
        }
    }

    fn plane(&mut self, z: usize) {
        if self.planes[z & 1].0 == z {
            return;
        }
        self.rows.iter_mut().for_each(|r| r.0 = usize::MAX);
        let mut plane = std::mem::take(&mut self.planes[z & 1].1);
        for (out, tap) in plane.chunks_exact_mut(self.axes.to.x).zip(&self.axes.taps.y) {
            let Some((low, t)) = *tap else { continue };
            self.row(z, low);
            if t == 0.0 {
                out.copy_from_slice(&self.rows[low & 1].1);
            } else {
                self.row(z, low + 1);
                let (a, b) = (&self.rows[low & 1].1, &self.rows[(low + 1) & 1].1);
                out.iter_mut().zip(a.iter().zip(b)).for_each(|(o, (a, b))| *o = a + (b - a) * t);
            }
        }
        self.planes[z & 1] = (z, plane);
    }

    fn row(&mut self, z: usize, y: usize) {
        let slot = &mut self.rows[y & 1];
        if slot.0 == y {
            return;
        }
        slot.0 = y;
        let n = self.axes.from.x;
        let line = &self.values[(z * self.axes.from.y + y) * n..][..n];
        for (out, (i, t)) in slot.1.iter_mut().zip(&self.x) {
            let i = *i as usize;
            let a = (self.value)(line[i]);
            *out = if *t == 0.0 { a } else { a + ((self.value)(line[i + 1]) - a) * t };
        }
    }
}
