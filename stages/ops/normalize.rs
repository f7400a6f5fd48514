//! Brings values to a common scale: by their own mean and deviation or percentiles, or by those of a set of images. In float32, with MONAI's formulas.

use rayon::prelude::*;

use super::intensity;
use super::padded::Padded;

/// By which numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// (x − mean) / standard deviation (÷ N), a constant instead of either where given; divided by 1 instead of 0 (MONAI `NormalizeIntensity`).
    Zscore { subtrahend: Option<f64>, divisor: Option<f64> },
    /// Two percentiles become 0 and 1; values beyond are held there (MONAI `ScaleIntensityRangePercentiles`).
    Percentiles { lower: f64, upper: f64 },
    /// Held within `low` and `high`, less `mean`, over `std` (nnU-Net `CTNormalization`).
    Set { low: f64, high: f64, mean: f64, std: f64 },
}

/// Which voxels the numbers are taken from, and which are changed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Among<'a> {
    /// Voxels at 0 take no part and stay.
    pub nonzero: bool,
    /// Values that are no tissue: they take no part and become the lowest value there is afterwards.
    pub padding: Option<[f64; 2]>,
    /// `[z, y, x]`, again for every channel: numbers are taken here alone, every voxel is changed.
    pub mask: Option<&'a [bool]>,
    /// What voxels outside the mask become.
    pub outside: Option<f32>,
}

/// Changes the values of one channel, or of several by common numbers. Gives how far those that were looked at spread: 0 where all are one value. `None`: not
/// one is finite, and nothing is changed.
pub fn normalize(values: &mut [f32], scale: Scale, among: Among) -> Option<f64> {
    if !values.iter().any(|v| v.is_finite()) {
        return None;
    }
    let is_padding = |v: f32| among.padding.is_some_and(|p| Padded::is_padding(p, v));
    let skips = |v: f32| (among.nonzero && v == 0.0) || is_padding(v);
    let is_inside = |i: usize| among.mask.is_none_or(|m| m[i % m.len()]);
    let keeps = |i: usize, v: f32| !skips(v) && is_inside(i);
    let padded: Vec<bool> = if among.padding.is_some() { values.iter().map(|v| is_padding(*v)).collect() } else { Vec::new() };
    let spread = match scale {
        Scale::Zscore { subtrahend, divisor } => {
            let (mean, std, n) = intensity::mean_std(values, keeps);
            if n > 0 {
                let (mean, by) = (subtrahend.unwrap_or(mean) as f32, not_zero(divisor.unwrap_or(std)));
                values.par_iter_mut().filter(|v| !skips(**v)).for_each(|v| *v = (*v - mean) / by);
            }
            if n > 0 { std } else { 0.0 }
        }
        Scale::Percentiles { lower, upper } => {
            let kept = values.iter().enumerate().filter(|(i, v)| keeps(*i, **v)).map(|(_, v)| *v);
            match intensity::percentiles(kept, &[lower, upper]) {
                // Everything is 0 and left as it is.
                None => 0.0,
                Some(ends) => {
                    let before = if among.nonzero { values.to_vec() } else { Vec::new() };
                    intensity::window(values, ends[0] as f32, ends[1] as f32, 0.0, 1.0, true);
                    values.iter_mut().zip(before).filter(|(_, b)| *b == 0.0).for_each(|(v, _)| *v = 0.0);
                    ends[1] - ends[0]
                }
            }
        }
        Scale::Set { low, high, mean, std } => {
            let (floor, ceiling, mean, std) = (low as f32, high as f32, mean as f32, std.max(1e-8) as f32);
            values.iter_mut().filter(|v| !skips(**v)).for_each(|v| *v = (v.clamp(floor, ceiling.max(floor)) - mean) / std);
            high - low
        }
    };
    // Padding is no tissue: it becomes the lowest value of what is, so that nothing stands out.
    let lowest = values.iter().zip(&padded).filter(|(v, p)| !**p && v.is_finite()).map(|(v, _)| *v).reduce(f32::min);
    values.iter_mut().zip(&padded).filter(|(_, p)| **p).for_each(|(v, _)| *v = lowest.unwrap_or(0.0));
    if let Some(outside) = among.outside.filter(|_| among.mask.is_some()) {
        values.iter_mut().enumerate().filter(|(i, _)| !is_inside(*i)).for_each(|(_, v)| *v = outside);
    }
    Some(spread)
}

/// What is divided by: 1 instead of 0.
pub fn not_zero(std: f64) -> f32 {
    if std as f32 == 0.0 { 1.0 } else { std as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZSCORE: Scale = Scale::Zscore { subtrahend: None, divisor: None };
    const ENDS: Scale = Scale::Percentiles { lower: 0.0, upper: 100.0 };

    fn on(values: &[f32], scale: Scale, among: Among) -> Vec<f32> {
        let mut out = values.to_vec();
        normalize(&mut out, scale, among);
        out
    }

    #[test]
    fn background_at_zero_is_left_alone() {
        let nonzero = Among { nonzero: true, ..Among::default() };
        assert_eq!(on(&[0., 0., 2., 4., 6.], ENDS, nonzero), [0., 0., 0., 0.5, 1.]);
        let v = on(&[0., 0., 2., 4., 6.], ZSCORE, nonzero);
        assert_eq!((v[0], v[3]), (0.0, 0.0));
        assert!(v[2] < 0.0 && v[4] > 0.0);
        assert_eq!(on(&[0.0; 3], ENDS, nonzero), [0.0; 3]);
    }

    #[test]
    fn padding_takes_no_part() {
        let padded = |range| Among { padding: Some(range), ..Among::default() };
        let image = [-2000., 1., 2., 3., -2000.];
        let v = on(&image, ZSCORE, padded([-2000., -2000.]));
        assert_eq!((v[0], v[4], v[2]), (v[1], v[1], 0.0), "{v:?}");
        assert_eq!(on(&image, ENDS, padded([-2000., -1000.])), [0., 0., 0.5, 1., 0.]);
    }

    #[test]
    fn the_numbers_of_a_set_clip_and_scale_every_image_alike() {
        let set = Scale::Set { low: -100.0, high: 300.0, mean: 50.0, std: 25.0 };
        let image = [-1000., 50., 75., 3000., -100.];
        assert_eq!(on(&image, set, Among::default()), [-6., 0., 1., 10., -6.]);
        assert_eq!(
            on(&image, set, Among { padding: Some([3000., 3000.]), ..Among::default() }),
            [-6., 0., 1., -6., -6.],
            "padding is no bone"
        );
        let flat = Scale::Set { low: 0.0, high: 0.0, mean: 0.0, std: 0.0 };
        assert_eq!(on(&[0.0, 5.0], flat, Among::default()), [0.0, 0.0], "no deviation divides by 1e-8, not by 0");
    }

    #[test]
    fn an_image_of_nothing_finite_has_no_scale() {
        let mut v = [f32::NAN, f32::INFINITY];
        assert_eq!(normalize(&mut v, ZSCORE, Among::default()), None);
    }
}
