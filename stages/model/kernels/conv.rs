//! 3-D convolution and both its gradients as correlations along one line.
//!
//! With the arrays laid out by phase (`lines`), the innermost loop runs straight along memory, across the ends of rows; the few positions that
//! belong to no output voxel are computed and dropped. The gradient of the input reads the output's gradient at p − offset(t), the gradient of
//! the weights sums products over all p.

use rayon::prelude::*;

use super::lanes::{BLOCK, Lanes, MAX_SUMS, MAX_TILE, TAPS};
use super::lines::{ConvShape, Lines, volume};

/// An output that tasks write into, each at places of its own.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: whoever writes through it says why no two tasks write to one place.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// `at` must be inside the array and no other task may write or read there.
    unsafe fn write(self, at: usize, value: f32) {
        // SAFETY: the caller vouches for it.
        unsafe { *self.0.add(at) = value }
    }

    /// # Safety
    /// As `write`, for all places of `values`.
    unsafe fn copy(self, at: usize, values: &[f32]) {
        // SAFETY: the caller vouches for it.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.0.add(at), values.len()) }
    }
}

/// Tiles that one task computes.
const TILES: usize = 8;

/// x [n, from, size], weight [to, from, kernel] → [n, to, out].
pub fn forward(x: &[f32], weight: &[f32], s: &ConvShape, lanes: Lanes) -> Vec<f32> {
    let (taps, k, span) = (s.taps(), volume(s.kernel), s.span());
    let ([_, gy, gx], [oz, oy, ox]) = (s.grid(), s.out());
    let voxels = oz * oy * ox;
    let packed = pack(s.to, s.from, k, |o, c, t| weight[(o * s.from + c) * k + t]);
    let mut lines = Lines::new(s.from * s.n_phases(), volume(s.grid()), 0);
    let offsets: Vec<isize> = taps.iter().map(|t| (t.phase * lines.pitch + t.offset) as isize).collect();
    let mut out = vec![0f32; s.n * s.to * voxels];
    for (x, out) in x.chunks_exact(s.from * volume(s.size)).zip(out.chunks_exact_mut(s.to * voxels)) {
        lines.fill_phases(x, s);
        let (channel_pitch, shared) = (s.n_phases() * lines.pitch, Shared(out.as_mut_ptr()));
        (0..span.div_ceil(TILES * lanes.tile)).into_par_iter().for_each(|task| {
            let shared = &shared;
            let mut tile = [0f32; BLOCK * MAX_TILE];
            let mut pieces = Vec::new();
            for first in (0..TILES).map(|i| (task * TILES + i) * lanes.tile).take_while(|p| *p < span) {
                // Pieces of output rows in this tile: (place in the tile, place in the output map, length).
                pieces.clear();
                let end = (first + lanes.tile).min(span);
                for row in first / gx..end.div_ceil(gx) {
                    let (z, y) = (row / gy, row % gy);
                    let (from, to) = (first.max(row * gx), end.min(row * gx + ox));
                    if y < oy && from < to {
                        pieces.push((from - first, (z * oy + y) * ox + from - row * gx, to - from));
                    }
                }
                for block in 0..s.to.div_ceil(BLOCK) {
                    let weights = packed[block * s.from * k * BLOCK..].as_ptr();
                    // SAFETY: tap offsets stay on the grid for every output position, and `Lines` adds a tile of zeros behind it.
                    unsafe { lanes.gather(lines.start().wrapping_add(first), s.from, channel_pitch, &offsets, weights, &mut tile) };
                    for o in 0..BLOCK.min(s.to - block * BLOCK) {
                        for (at, place, length) in &pieces {
                            let values = &tile[o * MAX_TILE + at..][..*length];
                            // SAFETY: z < oz because first < span; positions of different tiles are different output voxels.
                            unsafe { shared.copy((block * BLOCK + o) * voxels + place, values) };
                        }
                    }
                }
            }
        });
    }
    out
}

/// Gradient of the output [n, to, out], weight [to, from, kernel] → gradient of the input [n, from, size].
/// Also the transposed convolution itself.
pub fn backward_input(grad: &[f32], weight: &[f32], s: &ConvShape, lanes: Lanes) -> Vec<f32> {
    let (taps, k, grid) = (s.taps(), volume(s.kernel), volume(s.grid()));
    let ([_, gy, gx], [sz, sy, sx]) = (s.grid(), s.stride);
    let (voxels, reach) = (volume(s.size), taps.iter().map(|t| t.offset).max().unwrap_or(0));
    // For each phase the taps that read from it, and their weights.
    let phases: Vec<(Vec<isize>, Vec<f32>)> = (0..s.n_phases())
        .map(|phase| {
            let here: Vec<usize> = (0..k).filter(|t| taps[*t].phase == phase).collect();
            let packed = pack(s.from, s.to, here.len(), |c, o, t| weight[(o * s.from + c) * k + here[t]]);
            (here.iter().map(|t| -(taps[*t].offset as isize)).collect(), packed)
        })
        .collect();
    let mut lines = Lines::new(s.to, grid, reach);
    let mut out = vec![0f32; s.n * s.from * voxels];
    for (grad, out) in grad.chunks_exact(s.to * volume(s.out())).zip(out.chunks_exact_mut(s.from * voxels)) {
        lines.fill_outputs(grad, s);
        let shared = Shared(out.as_mut_ptr());
        let tasks = grid.div_ceil(TILES * lanes.tile);
        (0..s.n_phases() * tasks).into_par_iter().filter(|task| !phases[task / tasks].0.is_empty()).for_each(|task| {
            let shared = &shared;
            let (phase, task) = (task / tasks, task % tasks);
            let (offsets, packed) = &phases[phase];
            let (pz, py, px) = (phase / sx / sy, phase / sx % sy, phase % sx);
            let mut tile = [0f32; BLOCK * MAX_TILE];
            let mut pieces = Vec::new();
            for first in (0..TILES).map(|i| (task * TILES + i) * lanes.tile).take_while(|p| *p < grid) {
                // Pieces of input rows in this tile: (place in the tile, place in the input map, length); input voxels are sx apart.
                pieces.clear();
                let end = (first + lanes.tile).min(grid);
                for row in first / gx..end.div_ceil(gx) {
                    let (z, y) = (row / gy * sz + pz, row % gy * sy + py);
                    let inside = |v: usize, a: usize| v >= s.padding[a] && v - s.padding[a] < s.size[a];
                    if !inside(z, 0) || !inside(y, 1) {
                        continue;
                    }
                    // x = column · sx + px − padding must lie in 0..size.
                    let lowest = s.padding[2].saturating_sub(px).div_ceil(sx);
                    let highest = (s.size[2] + s.padding[2]).saturating_sub(px).div_ceil(sx);
                    let (from, to) = (first.max(row * gx + lowest), end.min(row * gx + highest.min(gx)));
                    if from < to {
                        let x = (from - row * gx) * sx + px - s.padding[2];
                        let place = ((z - s.padding[0]) * s.size[1] + y - s.padding[1]) * s.size[2] + x;
                        pieces.push((from - first, place, to - from));
                    }
                }
                if pieces.is_empty() {
                    continue;
                }
                for block in 0..s.from.div_ceil(BLOCK) {
                    let weights = packed[block * s.to * offsets.len() * BLOCK..].as_ptr();
                    // SAFETY: the pointer is to the whole buffer; every row has at least `reach` zeros before its grid, the farthest that a tap
                    // looks back, and a tile of zeros behind it.
                    unsafe { lanes.gather(lines.start().wrapping_add(first), s.to, lines.pitch, offsets, weights, &mut tile) };
                    for c in 0..BLOCK.min(s.from - block * BLOCK) {
                        let map = (block * BLOCK + c) * voxels;
                        for (at, place, length) in &pieces {
                            let values = &tile[c * MAX_TILE + at..][..*length];
                            // SAFETY: places are inside the input map; a voxel belongs to one phase and one position in it.
                            unsafe {
                                if sx == 1 {
                                    shared.copy(map + place, values);
                                } else {
                                    values.iter().enumerate().for_each(|(i, v)| shared.write(map + place + i * sx, *v));
                                }
                            }
                        }
                    }
                }
            }
        });
    }
    out
}

/// Positions that go through all taps before the next ones do, so that they stay in the first cache.
const RUN: usize = 512;
/// Runs that are summed in float32 before they go into float64.
const RUNS: usize = 16;
/// Groups of `TAPS` products that one task sums.
const GROUPS: usize = 9;

/// x [n, from, size], gradient of the output [n, to, out] → gradient of the weights [to, from, kernel].
pub fn backward_weight(x: &[f32], grad: &[f32], s: &ConvShape, lanes: Lanes) -> Vec<f32> {
    let (taps, k, span) = (s.taps(), volume(s.kernel), s.span());
    let (blocks, n_rows) = (s.to.div_ceil(BLOCK), s.from * k);
    let chunks = n_rows.div_ceil(GROUPS * TAPS);
    let mut inputs = Lines::new(s.from * s.n_phases(), volume(s.grid()), 0);
    let mut grads = Lines::new(blocks * BLOCK, volume(s.grid()), 0);
    // [block, chunk][row in chunk, output channel]
    let mut totals = vec![[[0f64; BLOCK]; GROUPS * TAPS]; blocks * chunks];
    for (x, grad) in x.chunks_exact(s.from * volume(s.size)).zip(grad.chunks_exact(s.to * volume(s.out()))) {
        inputs.fill_phases(x, s);
        grads.fill_outputs(grad, s);
        totals.par_iter_mut().enumerate().for_each(|(task, totals)| {
            let (block, first_row) = (task / chunks, task % chunks * GROUPS * TAPS);
            let g = grads.row(block * BLOCK).as_ptr();
            // Where input channel and tap of a row begin; past the last row the last one again, its sums are dropped.
            let lines: [*const f32; GROUPS * TAPS] = std::array::from_fn(|i| {
                let row = (first_row + i).min(n_rows - 1);
                let tap = taps[row % k];
                inputs.row(row / k * s.n_phases() + tap.phase)[tap.offset..].as_ptr()
            });
            let groups = (n_rows - first_row).div_ceil(TAPS).min(GROUPS);
            let mut sums = [[0f32; MAX_SUMS]; GROUPS];
            let mut start = 0;
            let mut runs = 0;
            while start < span {
                let steps = RUN.min(span - start).div_ceil(lanes.width);
                for (group, sums) in sums[..groups].iter_mut().enumerate() {
                    let rows = std::array::from_fn(|t| lines[group * TAPS + t].wrapping_add(start));
                    // SAFETY: behind its grid every line has a tile of zeros, more than the vector that may reach over `span`.
                    unsafe { lanes.reduce(g.wrapping_add(start), grads.pitch, rows, steps, sums) };
                }
                start += RUN;
                runs += 1;
                if runs % RUNS == 0 || start >= span {
                    for (i, total) in totals.iter_mut().enumerate().take(groups * TAPS) {
                        for (o, total) in total.iter_mut().enumerate() {
                            let at = (o * TAPS + i % TAPS) * lanes.width;
                            let lanes = &mut sums[i / TAPS][at..][..lanes.width];
                            *total += lanes.iter().map(|v| f64::from(*v)).sum::<f64>();
                            lanes.fill(0.0);
                        }
                    }
                }
            }
        });
    }
    let mut out = vec![0f32; s.to * n_rows];
    for (o, row) in out.chunks_exact_mut(n_rows).enumerate() {
        for (r, v) in row.iter_mut().enumerate() {
            *v = totals[o / BLOCK * chunks + r / (GROUPS * TAPS)][r % (GROUPS * TAPS)][o % BLOCK] as f32;
        }
    }
    out
}

/// Weights in the order in which `gather` reads them: [block of outputs, input, tap, output in the block], zeros past the last output.
fn pack(outputs: usize, inputs: usize, taps: usize, weight: impl Fn(usize, usize, usize) -> f32) -> Vec<f32> {
    let mut out = vec![0f32; outputs.next_multiple_of(BLOCK) * inputs * taps];
    for o in 0..outputs {
        for c in 0..inputs {
            for t in 0..taps {
                out[((o / BLOCK * inputs + c) * taps + t) * BLOCK + o % BLOCK] = weight(o, c, t);
            }
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: u64) -> Vec<f32> {
        (0..n as u64).map(|i| ((i * 2654435761 + seed * 40503) % 1000003) as f32 / 500001.5 - 1.0).collect()
    }

    /// Calls `f(output, input, weight)` for every product of the convolution.
    fn products(s: &ConvShape, mut f: impl FnMut(usize, usize, usize)) {
        let (out, k) = (s.out(), volume(s.kernel));
        for (b, to, from) in (0..s.n * s.to * s.from).map(|i| (i / s.to / s.from, i / s.from % s.to, i % s.from)) {
            for v in 0..volume(out) {
                let at = [v / out[2] / out[1], v / out[2] % out[1], v % out[2]];
                for t in 0..k {
                    let tap = [t / s.kernel[2] / s.kernel[1], t / s.kernel[2] % s.kernel[1], t % s.kernel[2]];
                    let place: [Option<usize>; 3] =
                        std::array::from_fn(|a| (at[a] * s.stride[a] + tap[a]).checked_sub(s.padding[a]).filter(|p| *p < s.size[a]));
                    if let [Some(z), Some(y), Some(x)] = place {
                        let input = (b * s.from + from) * volume(s.size) + (z * s.size[1] + y) * s.size[2] + x;
                        f((b * s.to + to) * volume(out) + v, input, (to * s.from + from) * k + t);
                    }
                }
            }
        }
    }

    fn assert_near(what: &str, got: &[f32], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            assert!((f64::from(*g) - w).abs() < 1e-4 * w.abs().max(1.0), "{what} [{i}]: {g} instead of {w}");
        }
    }

    fn check(s: &ConvShape) {
        let x = noise(s.n * s.from * volume(s.size), 1);
        let w = noise(s.to * s.from * volume(s.kernel), 2);
        let g = noise(s.n * s.to * volume(s.out()), 3);
        let (mut y, mut gx, mut gw) = (vec![0f64; g.len()], vec![0f64; x.len()], vec![0f64; w.len()]);
        products(s, |o, i, k| {
            y[o] += f64::from(x[i]) * f64::from(w[k]);
            gx[i] += f64::from(g[o]) * f64::from(w[k]);
            gw[k] += f64::from(g[o]) * f64::from(x[i]);
        });
        for lanes in Lanes::all() {
            assert_near("output", &forward(&x, &w, s, lanes), &y);
            assert_near("input gradient", &backward_input(&g, &w, s, lanes), &gx);
            assert_near("weight gradient", &backward_weight(&x, &g, s, lanes), &gw);
        }
    }

    #[test]
    fn network_shapes_equal_the_definition() {
        let base = ConvShape { n: 2, from: 3, to: 5, size: [6, 7, 9], kernel: [3; 3], stride: [1; 3], padding: [1; 3] };
        check(&base);
        check(&ConvShape { size: [6, 8, 10], stride: [2; 3], ..base.clone() });
        check(&ConvShape { kernel: [1; 3], padding: [0; 3], to: 17, ..base.clone() });
        check(&ConvShape { kernel: [2; 3], stride: [2; 3], padding: [0; 3], size: [4, 6, 34], from: 9, ..base.clone() });
        check(&ConvShape { kernel: [1, 3, 3], stride: [1, 2, 2], padding: [0, 1, 1], size: [5, 8, 8], ..base });
    }

    #[test]
    fn any_shape_equals_the_definition() {
        let mut dice = 88172645463325252u64;
        let mut draw = |from: usize, to: usize| {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            from + (dice % (to - from) as u64) as usize
        };
        for _ in 0..80 {
            let (n, from, to) = (draw(1, 3), draw(1, 10), draw(1, 10));
            let kernel = [draw(1, 5), draw(1, 5), draw(1, 5)];
            let stride = [draw(1, 4), draw(1, 4), draw(1, 4)];
            let padding = [draw(0, 3), draw(0, 3), draw(0, 3)];
            let size = std::array::from_fn(|a| kernel[a].saturating_sub(2 * padding[a]).max(1) + draw(0, 9));
            check(&ConvShape { n, from, to, size, kernel, stride, padding });
        }
    }
}
