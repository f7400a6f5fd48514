//! Intensity transforms in float32 with MONAI's formulas, and the order statistics and moments they need. Sums run in float64 over blocks of fixed length that
//! are added in order, so they are the same on any number of threads. Values that are not finite are left out of every statistic.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::lanes::{Lanes, on_lanes};

/// Voxels of one partial sum.
const BLOCK: usize = 1 << 16;

/// A change of one value that looks at nothing else, in float32: what may be done while values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Map {
    /// Values of `from`, both ends included, become `to`: padding that shall not be seen.
    Replace { from: [f64; 2], to: f32 },
    /// `low`…`high` to `to_low`…`to_high`, values beyond held at the ends if `clip` (MONAI `ScaleIntensityRange`). Where high = low, x − low + to_low.
    Window { low: f32, high: f32, to_low: f32, to_high: f32, clip: bool },
    /// (x − mean) / std (MONAI `NormalizeIntensity`), 0 left alone if `nonzero`.
    Normalize { mean: f32, std: f32, nonzero: bool },
    /// Values beyond `low` and `high` are held there.
    Clip { low: f32, high: f32 },
}

impl Map {
    /// Changes all values.
    pub fn apply(self, values: &mut [f32]) {
        self.apply_on(Lanes::here(), values);
    }

    /// [`Map::apply`] with instructions of choice: the bits are the same.
    pub fn apply_on(self, lanes: Lanes, values: &mut [f32]) {
        match self {
            Map::Replace { from, to } => replace(lanes, values, from, to),
            Map::Window { low, high, to_low, to_high, clip } => window_all(lanes, values, low, high, to_low, to_high, clip),
            Map::Normalize { mean, std, nonzero } => normalize(lanes, values, mean, std, nonzero),
            Map::Clip { low, high } => hold(lanes, values, low, high),
        }
    }
}

on_lanes! {
    pub fn replace(values: &mut [f32], from: [f64; 2], to: f32) {
        values.iter_mut().for_each(|v| *v = if from[0] <= *v as f64 && *v as f64 <= from[1] { to } else { *v });
    }
}

on_lanes! {
    pub fn window_all(values: &mut [f32], low: f32, high: f32, to_low: f32, to_high: f32, clip: bool) {
        let (range, to_range) = (high - low, to_high - to_low);
        let (floor, ceiling) = (to_low.min(to_high), to_low.max(to_high));
        if range == 0.0 {
            values.iter_mut().for_each(|v| *v = *v - low + to_low);
        } else if clip {
            values.iter_mut().for_each(|v| *v = ((*v - low) / range * to_range + to_low).max(floor).min(ceiling));
        } else {
            values.iter_mut().for_each(|v| *v = (*v - low) / range * to_range + to_low);
        }
    }
}

on_lanes! {
    pub fn normalize(values: &mut [f32], mean: f32, std: f32, nonzero: bool) {
        values.iter_mut().for_each(|v| *v = if nonzero && *v == 0.0 { *v } else { (*v - mean) / std });
    }
}

on_lanes! {
    pub fn hold(values: &mut [f32], low: f32, high: f32) {
        values.iter_mut().for_each(|v| *v = v.max(low).min(high));
    }
}

/// [`Map::Window`] of all values.
pub fn window(values: &mut [f32], low: f32, high: f32, to_low: f32, to_high: f32, clip: bool) {
    let map = Map::Window { low, high, to_low, to_high, clip };
    values.par_chunks_mut(BLOCK).for_each(|values| map.apply(values));
}

/// Mean and population standard deviation (÷ N) of the finite values that `keep` accepts, and how many they are. Two passes: no cancellation.
pub fn mean_std(values: &[f32], keep: impl Fn(usize, f32) -> bool + Sync) -> (f64, f64, usize) {
    let sum = |f: &(dyn Fn(f64) -> f64 + Sync)| -> (f64, usize) {
        let parts: Vec<(f64, usize)> = values
            .par_chunks(BLOCK)
            .enumerate()
            .map(|(block, values)| {
                let kept = values.iter().enumerate().filter(|(i, v)| v.is_finite() && keep(block * BLOCK + i, **v));
                kept.fold((0.0, 0), |(sum, n), (_, v)| (sum + f(*v as f64), n + 1))
            })
            .collect();
        parts.into_iter().fold((0.0, 0), |(a, n), (b, m)| (a + b, n + m))
    };
    let (total, n) = sum(&|v| v);
    if n == 0 {
        return (0.0, 0.0, 0);
    }
    let mean = total / n as f64;
    let (squares, _) = sum(&|v| (v - mean) * (v - mean));
    (mean, (squares / n as f64).sqrt(), n)
}

/// Subtracts the mean and divides by the standard deviation (1 where it is 0) of the values that `keep` accepts; the others stay as they are
/// (MONAI `NormalizeIntensity`, whose `nonzero` is `|_, v| v != 0.0`). Without an accepted value nothing changes. Gives what [`mean_std`] found.
pub fn zscore(values: &mut [f32], keep: impl Fn(usize, f32) -> bool + Sync) -> (f64, f64, usize) {
    let found = mean_std(values, &keep);
    if found.2 == 0 {
        return found;
    }
    let (mean, std) = (found.0 as f32, if found.1 == 0.0 { 1.0 } else { found.1 as f32 });
    values.par_chunks_mut(BLOCK).enumerate().for_each(|(block, values)| {
        for (i, v) in values.iter_mut().enumerate() {
            if keep(block * BLOCK + i, *v) {
                *v = (*v - mean) / std;
            }
        }
    });
    found
}

/// Percentiles of the finite values, interpolated linearly between the order statistics at q/100·(n − 1) as numpy does. `None` without a finite value.
/// Copies the values.
pub fn percentiles(values: impl Iterator<Item = f32>, percents: &[f64]) -> Option<Vec<f64>> {
    let mut v: Vec<f32> = values.filter(|v| v.is_finite()).collect();
    let last = v.len().checked_sub(1)?;
    Some(
        percents
            .iter()
            .map(|q| {
                let at = (q / 100.0).clamp(0.0, 1.0) * last as f64;
                let (low, t) = (at.floor() as usize, at.fract());
                let (_, a, above) = v.select_nth_unstable_by(low, f32::total_cmp);
                let a = *a as f64;
                let b = above.iter().copied().fold(f32::INFINITY, f32::min);
                if t == 0.0 || b.is_infinite() { a } else { a + (b as f64 - a) * t }
            })
            .collect(),
    )
}

/// Smallest and largest finite value.
pub fn range(values: &[f32]) -> Option<(f32, f32)> {
    let lanes = Lanes::here();
    let block = |values: &[f32]| {
        let mut ends = (f32::INFINITY, f32::NEG_INFINITY);
        ends_of(lanes, values, &mut ends);
        ends
    };
    // Put together in order: which of 0 and −0 is the smaller must not depend on the threads.
    let blocks: Vec<(f32, f32)> = values.par_chunks(BLOCK).map(block).collect();
    let (low, high) = blocks.into_iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), (a, b)| (low.min(a), high.max(b)));
    (low <= high).then_some((low, high))
}

on_lanes! {
    /// Widens `ends` to hold every finite value.
    pub fn ends_of(values: &[f32], ends: &mut (f32, f32)) {
        let (mut low, mut high) = ([ends.0; SIDE], [ends.1; SIDE]);
        let (blocks, rest) = values.as_chunks::<SIDE>();
        for block in blocks {
            for i in 0..SIDE {
                let v = block[i];
                low[i] = if v.is_finite() && v < low[i] { v } else { low[i] };
                high[i] = if v.is_finite() && v > high[i] { v } else { high[i] };
            }
        }
        let all = low.iter().chain(&high).chain(rest).filter(|v| v.is_finite());
        *ends = all.fold(*ends, |(low, high), v| (low.min(*v), high.max(*v)));
    }
}

/// ((x − min)/(max − min + 1e-7))^γ·(max − min) + min (MONAI `AdjustContrast`). γ > 1 darkens.
pub fn adjust_contrast(values: &mut [f32], gamma: f32) {
    let Some((min, max)) = range(values) else { return };
    let lanes = Lanes::here();
    values.par_chunks_mut(BLOCK).for_each(|values| curve(lanes, values, gamma, min, max));
}

/// Values whose powers are worked out side by side.
const SIDE: usize = 16;

on_lanes! {
    /// [`adjust_contrast`] with a range of choice.
    pub fn curve(values: &mut [f32], gamma: f32, min: f32, max: f32) {
        let width = max - min;
        let (blocks, rest) = values.as_chunks_mut::<SIDE>();
        for block in blocks {
            block.iter_mut().for_each(|v| *v = (*v - min) / (width + 1e-7));
            power(block, gamma);
            block.iter_mut().for_each(|v| *v = *v * width + min);
        }
        rest.iter_mut().for_each(|v| *v = ((*v - min) / (width + 1e-7)).powf(gamma) * width + min);
    }
}

/// Each value to the power of `gamma`, as exp2(γ·log2 v) in float64: within a unit in the last place of float32.
#[inline(always)]
fn power(block: &mut [f32; SIDE], gamma: f32) {
    // What the series are not for: 0, below 0, what is no number, and what lies at the ends of the range.
    let fits = block.iter().fold(gamma.abs() <= 64.0, |fits, v| fits & (*v >= 1e-30) & (*v < 1e30));
    if !fits {
        return block.iter_mut().for_each(|v| *v = v.powf(gamma));
    }
    let gamma = f64::from(gamma);
    let mut y = [0f64; SIDE];
    for i in 0..SIDE {
        let bits = f64::from(block[i]).to_bits();
        // v = m · 2^e with m from √½ to √2.
        let more = u64::from(bits & FRACTION > SQRT_2_FRACTION);
        let m = f64::from_bits(((bits & FRACTION) | ONE) - (more << 52));
        // The exponent as a float: below 2^52 the fraction of 2^52 counts.
        let e = f64::from_bits(((bits >> 52) + more) | COUNTS) - (COUNTED + 1023.0);
        let s = (m - 1.0) / (m + 1.0);
        let q = s * s;
        // 2·atanh(s), s at most 0.172: what is left out is below 1e-13.
        let series = 1.0 + q * (1.0 / 3.0 + q * (1.0 / 5.0 + q * (1.0 / 7.0 + q * (1.0 / 9.0 + q * (1.0 / 11.0 + q * (1.0 / 13.0))))));
        y[i] = gamma * (e + 2.0 * std::f64::consts::LOG2_E * s * series);
    }
    for i in 0..SIDE {
        let y = y[i].clamp(-1000.0, 1000.0);
        // Added, this leaves the nearest whole number, and in its last bits what to add to an exponent.
        let whole = y + ROUNDS;
        let f = (y - (whole - ROUNDS)) * std::f64::consts::LN_2;
        let sum = TAYLOR.iter().fold(0.0, |sum, c| c + f * sum);
        block[i] = (sum * f64::from_bits((whole.to_bits() << 52).wrapping_add(ONE))) as f32;
    }
}

/// 1/k! from k = 11 down to 0: e^f for |f| up to ½·ln 2, what is left out is below 1e-14.
const TAYLOR: [f64; 12] = {
    let mut c = [1.0; 12];
    let mut k = 11;
    while k > 0 {
        c[k - 1] = c[k] / (12 - k) as f64;
        k -= 1;
    }
    c
};
const ROUNDS: f64 = 1.5 * (1u64 << 52) as f64;
const FRACTION: u64 = (1 << 52) - 1;
const ONE: u64 = 1023 << 52;
const COUNTED: f64 = (1u64 << 52) as f64;
const COUNTS: u64 = COUNTED.to_bits();
/// The fraction bits of √2.
const SQRT_2_FRACTION: u64 = std::f64::consts::SQRT_2.to_bits() & FRACTION;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_those_of_powf_on_every_path() {
        let values: Vec<f32> =
            (0..4000).map(|i| (i as f32 / 3999.0).powi(3) * 40.0).chain([f32::NAN, 1e-38, 1e35, -1.0, f32::INFINITY, 1.0]).collect();
        for gamma in [0.3f32, 0.7, 1.0, 1.5, 2.0, 4.5] {
            let run = |lanes| {
                let mut v = values.clone();
                curve(lanes, &mut v, gamma, 0.0, 1.0);
                v
            };
            let plain = run(Lanes::here());
            for (v, got) in values.iter().zip(&plain) {
                let wanted = f64::from(*v / (1.0 + 1e-7)).powf(f64::from(gamma));
                let same = (wanted.is_nan() && got.is_nan())
                    || (f64::from(*got) - wanted).abs() <= wanted.abs() * 2e-7
                    || f64::from(*got) == wanted
                    || wanted.abs() < f64::from(f32::MIN_POSITIVE);
                assert!(same || wanted > f64::from(f32::MAX), "{v}^{gamma}: {got} instead of {wanted}");
            }
            for lanes in Lanes::all() {
                assert!(run(lanes).iter().zip(&plain).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        }
    }

    #[test]
    fn window_maps_its_ends_and_clips_on_request() {
        let mut v = [-2000.0, -1000.0, 0.0, 1000.0, 3000.0];
        window(&mut v, -1000.0, 1000.0, 0.0, 1.0, true);
        assert_eq!(v, [0.0, 0.0, 0.5, 1.0, 1.0]);
        window(&mut v, 0.0, 1.0, 10.0, -10.0, false);
        assert_eq!(v, [10.0, 10.0, 0.0, -10.0, -10.0]);
        let mut v = [5.0, 7.0];
        window(&mut v, 5.0, 5.0, 1.0, 2.0, true);
        assert_eq!(v, [1.0, 3.0]);
    }

    #[test]
    fn zscore_of_nonzero_voxels_leaves_the_others() {
        let mut v = [0.0, 2.0, 4.0, 0.0];
        zscore(&mut v, |_, v| v != 0.0);
        assert_eq!(v, [0.0, -1.0, 1.0, 0.0]);
        let mut flat = [3.0; 4];
        zscore(&mut flat, |_, _| true);
        assert_eq!(flat, [0.0; 4]);
        let mut none = [0.0; 3];
        zscore(&mut none, |_, v| v != 0.0);
        assert_eq!(none, [0.0; 3]);
    }

    #[test]
    fn percentiles_interpolate_between_order_statistics() {
        let v = [9.0, 1.0, f32::NAN, 5.0, 3.0];
        assert_eq!(percentiles(v.into_iter(), &[0.0, 50.0, 75.0, 100.0]).unwrap(), [1.0, 4.0, 6.0, 9.0]);
        assert_eq!(percentiles([].into_iter(), &[50.0]), None);
    }

    #[test]
    fn moments_leave_out_what_is_not_finite() {
        assert_eq!(mean_std(&[1.0, f32::NAN, 3.0, f32::INFINITY], |_, _| true), (2.0, 1.0, 2));
    }
}
