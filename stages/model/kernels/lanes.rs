//! The inner loops, once for AVX-512 and once for AVX2 with FMA. Everything else in this folder is plain Rust.
//! Numbers are multiplied and added in the same order whatever the width, except for the sums over space of `reduce`.

use std::sync::LazyLock;

/// Output channels that one call works on; weights are packed in blocks of it.
pub const BLOCK: usize = 8;
/// Room for the widest tile.
pub const MAX_TILE: usize = 48;
/// Products that `reduce` sums side by side.
pub const TAPS: usize = 3;
/// Products that `gather` adds up before they join the whole, roughly.
const RUN: usize = 48;
/// Room for the partial sums of the widest lanes.
pub const MAX_SUMS: usize = BLOCK * TAPS * 16;

/// The inner loops for this processor.
#[derive(Clone, Copy)]
pub struct Lanes {
    /// Positions that `gather` fills at once.
    pub tile: usize,
    /// Values in a vector.
    pub width: usize,
    gather: unsafe fn(*const f32, usize, usize, &[isize], *const f32, &mut [f32; BLOCK * MAX_TILE]),
    reduce: unsafe fn(*const f32, usize, [*const f32; TAPS], usize, &mut [f32; MAX_SUMS]),
}

impl Lanes {
    /// `None` on processors without AVX2 and FMA.
    pub fn here() -> Option<Lanes> {
        static HERE: LazyLock<Option<Lanes>> = LazyLock::new(|| detect().into_iter().flatten().next());
        *HERE
    }

    /// Every width that this processor has, so that tests on a wide one hold the narrow loops too.
    #[cfg(test)]
    pub fn all() -> Vec<Lanes> {
        let all: Vec<Lanes> = detect().into_iter().flatten().collect();
        if all.is_empty() {
            eprintln!("skipped: this processor has no AVX2 with FMA, so these loops never run on it");
        }
        all
    }

    /// For each of `BLOCK` output channels o and each position p of a tile:
    /// `out[o][p] = Σ over channels c and taps t of weights[c][t][o] · x[c · pitch + taps[t] + p]`. Rows of `out` are `MAX_TILE` long.
    ///
    /// # Safety
    /// `x` must be readable at every offset named above for p < tile, `weights` hold channels × taps × BLOCK values.
    #[inline]
    pub unsafe fn gather(
        &self,
        x: *const f32,
        channels: usize,
        pitch: usize,
        taps: &[isize],
        weights: *const f32,
        out: &mut [f32; BLOCK * MAX_TILE],
    ) {
        // SAFETY: the caller vouches for the pointers, `detect`, which alone makes `Lanes`, for the instructions.
        unsafe { (self.gather)(x, channels, pitch, taps, weights, out) }
    }

    /// For each of `BLOCK` channels o and `TAPS` rows t, adds lane by lane:
    /// `sums[(o · TAPS + t) · width + lane] += Σ over steps s of g[o · pitch + s · width + lane] · x[t][s · width + lane]`.
    ///
    /// # Safety
    /// All rows must be readable for steps × width values.
    #[inline]
    pub unsafe fn reduce(&self, g: *const f32, pitch: usize, x: [*const f32; TAPS], steps: usize, sums: &mut [f32; MAX_SUMS]) {
        // SAFETY: the caller vouches for the pointers, `detect`, which alone makes `Lanes`, for the instructions.
        unsafe { (self.reduce)(g, pitch, x, steps, sums) }
    }
}

/// What this processor has, the widest first.
#[cfg(target_arch = "x86_64")]
fn detect() -> [Option<Lanes>; 2] {
    let has_avx512 = std::arch::is_x86_feature_detected!("avx512f");
    let has_avx2 = std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma");
    [
        has_avx512.then_some(Lanes { tile: 48, width: 16, gather: avx512::gather, reduce: avx512::reduce }),
        has_avx2.then_some(Lanes { tile: 24, width: 8, gather: avx2::gather, reduce: avx2::reduce }),
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> [Option<Lanes>; 2] {
    [None, None]
}

/// Both loops for one instruction set. `$rows` output channels × `$vectors` vectors of sums stay in registers.
#[cfg(target_arch = "x86_64")]
macro_rules! lanes {
    ($name:ident, $feature:literal, $width:literal, $vectors:literal, $rows:literal, $zero:ident, $load:ident, $store:ident, $splat:ident, $add:ident, $fma:ident) => {
        mod $name {
            use std::arch::x86_64::{$add, $fma, $load, $splat, $store, $zero};

            use super::{BLOCK, MAX_SUMS, MAX_TILE, RUN, TAPS};

            #[target_feature(enable = $feature)]
            pub unsafe fn gather(
                x: *const f32,
                channels: usize,
                pitch: usize,
                taps: &[isize],
                weights: *const f32,
                out: &mut [f32; BLOCK * MAX_TILE],
            ) {
                // Channels whose products are summed before they are added to the whole: short sums round less.
                let group = RUN.div_ceil(taps.len());
                for first in (0..BLOCK).step_by($rows) {
                    let mut w = weights.wrapping_add(first);
                    for start in (0..channels).step_by(group) {
                        let mut sums = [[$zero(); $vectors]; $rows];
                        for c in start..channels.min(start + group) {
                            let x = x.wrapping_add(c * pitch);
                            for tap in taps {
                                let x = x.wrapping_offset(*tap);
                                // SAFETY: inside what the caller of `Lanes::gather` vouched for.
                                let values: [_; $vectors] = std::array::from_fn(|v| unsafe { $load(x.wrapping_add(v * $width)) });
                                for o in 0..$rows {
                                    // SAFETY: as above.
                                    let weight = $splat(unsafe { *w.wrapping_add(o) });
                                    for v in 0..$vectors {
                                        sums[o][v] = $fma(values[v], weight, sums[o][v]);
                                    }
                                }
                                w = w.wrapping_add(BLOCK);
                            }
                        }
                        for (o, row) in sums.iter().enumerate() {
                            let out = &mut out[(first + o) * MAX_TILE..][..$vectors * $width];
                            for (v, sum) in row.iter().enumerate() {
                                let place = out.as_mut_ptr().wrapping_add(v * $width);
                                // SAFETY: the slice is as long as all vectors together.
                                unsafe { $store(place, if start == 0 { *sum } else { $add(*sum, $load(place)) }) };
                            }
                        }
                    }
                }
            }

            #[target_feature(enable = $feature)]
            pub unsafe fn reduce(g: *const f32, pitch: usize, x: [*const f32; TAPS], steps: usize, sums: &mut [f32; MAX_SUMS]) {
                for first in (0..BLOCK).step_by($rows) {
                    let sums = &mut sums[first * TAPS * $width..][..$rows * TAPS * $width];
                    let mut totals = [[$zero(); TAPS]; $rows];
                    for (i, total) in totals.as_flattened_mut().iter_mut().enumerate() {
                        // SAFETY: the slice holds $rows × TAPS vectors.
                        *total = unsafe { $load(sums.as_ptr().add(i * $width)) };
                    }
                    for s in 0..steps {
                        // SAFETY: inside what the caller of `Lanes::reduce` vouched for.
                        let values: [_; TAPS] = std::array::from_fn(|t| unsafe { $load(x[t].wrapping_add(s * $width)) });
                        for o in 0..$rows {
                            // SAFETY: as above.
                            let g = unsafe { $load(g.wrapping_add((first + o) * pitch + s * $width)) };
                            for t in 0..TAPS {
                                totals[o][t] = $fma(g, values[t], totals[o][t]);
                            }
                        }
                    }
                    for (i, total) in totals.as_flattened().iter().enumerate() {
                        // SAFETY: the slice holds $rows × TAPS vectors.
                        unsafe { $store(sums.as_mut_ptr().add(i * $width), *total) };
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
lanes!(avx512, "avx512f", 16, 3, 8, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_add_ps, _mm512_fmadd_ps);
#[cfg(target_arch = "x86_64")]
lanes!(avx2, "avx2,fma", 8, 3, 4, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_add_ps, _mm256_fmadd_ps);
