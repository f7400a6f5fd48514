//! Intensity changes of one channel of a patch that augmentation asks for, with the formulas of MONAI and nnU-Net (batchgenerators), in float32.

use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;

use super::intensity;

/// Gamma curve over the range of the values (MONAI `AdjustContrast`): `invert` turns the image over before and back after, so that dark parts are spread where
/// bright ones would be; `retain_stats` brings mean and sample standard deviation (÷ (N − 1)) back to what they were.
pub fn gamma(values: &mut [f32], gamma: f32, invert: bool, retain_stats: bool) {
    let negate = |values: &mut [f32]| values.iter_mut().for_each(|v| *v = -*v);
    if invert {
        negate(values);
    }
    let before = retain_stats.then(|| sample_stats(values));
    intensity::adjust_contrast(values, gamma);
    if let Some((mean, std)) = before {
        let (new_mean, new_std) = sample_stats(values);
        values.iter_mut().for_each(|v| *v = ((*v as f64 - new_mean) / (new_std + 1e-8) * std + mean) as f32);
    }
    if invert {
        negate(values);
    }
}

/// Mean and sample standard deviation; of a single value the deviation is 0.
fn sample_stats(values: &[f32]) -> (f64, f64) {
    let (mean, std, n) = intensity::mean_std(values, |_, _| true);
    (mean, if n > 1 { std * (n as f64 / (n as f64 - 1.0)).sqrt() } else { 0.0 })
}

/// `(x − mean) · factor + mean`, held in the range that the values had (nnU-Net's ContrastTransform).
pub fn contrast(values: &mut [f32], factor: f32) {
    let Some((low, high)) = intensity::range(values) else { return };
    let (mean, _, _) = intensity::mean_std(values, |_, _| true);
    let mean = mean as f32;
    values.iter_mut().for_each(|v| *v = ((*v - mean) * factor + mean).clamp(low, high));
}

/// What a scanner of lower resolution would have seen: down to `coarse` voxels by the closest voxel (`floor((d + ½)·n/m)`), up again trilinear with centres at
/// `(i + ½)·m/n − ½`, held at the edge (nnU-Net's SimulateLowResolution; torch's `nearest-exact` and `trilinear`).
/// - values: `[z, y, x]` of `size`
pub fn low_resolution(values: &[f32], size: Zyx<usize>, coarse: Zyx<usize>) -> Vec<f32> {
    let down = |n: usize, m: usize| -> Vec<usize> { (0..m).map(|d| ((2 * d + 1) * n / (2 * m)).min(n - 1)).collect() };
    let up = |n: usize, m: usize| -> Vec<(usize, usize, f32)> {
        let one = |i: usize| {
            let p = ((i as f64 + 0.5) * m as f64 / n as f64 - 0.5).max(0.0);
            let low = (p.floor() as usize).min(m - 1);
            (low, (low + 1).min(m - 1), (p - low as f64) as f32)
        };
        (0..n).map(one).collect()
    };
    let from = size.zip(coarse).map(|(n, m)| down(n, m));
    let to = size.zip(coarse).map(|(n, m)| up(n, m));
    // Voxel (z, y, x) of the coarse grid is this voxel of the fine one.
    let at = |z: usize, y: usize, x: usize| values[(from.z[z] * size.y + from.y[y]) * size.x + from.x[x]];
    let mut out = Vec::with_capacity(values.len());
    for (z0, z1, tz) in &to.z {
        for (y0, y1, ty) in &to.y {
            let line = |x: usize| {
                let z_at = |z: usize| at(z, *y0, x) * (1.0 - ty) + at(z, *y1, x) * ty;
                z_at(*z0) * (1.0 - tz) + z_at(*z1) * tz
            };
            let coarse_row: Vec<f32> = (0..coarse.x).map(line).collect();
            out.extend(to.x.iter().map(|(x0, x1, tx)| coarse_row[*x0] * (1.0 - tx) + coarse_row[*x1] * tx));
        }
    }
    out
}

/// Puts `value` into boxes, as far as they lie in the array.
/// - values: `[z, y, x]` of `size`
pub fn cutout(values: &mut [f32], size: Zyx<usize>, boxes: &[Region], value: f32) {
    for inside in boxes.iter().filter_map(|b| b.intersect(&Region::whole(size))) {
        let (from, to) = (inside.start.map(|v| v as usize), inside.end().map(|v| v as usize));
        for z in from.z..to.z {
            for y in from.y..to.y {
                let row = (z * size.y + y) * size.x;
                values[row + from.x..row + to.x].fill(value);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn gamma_turns_over_and_keeps_its_statistics_as_monai_does() {
        // By numpy: x = [0, 1, 3, 4], γ = 2; AdjustContrast(invert_image=True, retain_stats=True).
        let mut v = [0.0, 1.0, 3.0, 4.0];
        gamma(&mut v, 2.0, false, false);
        assert!(v.iter().zip([0.0, 0.25, 2.25, 4.0]).all(|(a, b)| (a - b).abs() < 1e-5), "{v:?}");
        let mut v = [0.0, 1.0, 3.0, 4.0];
        gamma(&mut v, 2.0, true, false);
        // −x = [0, −1, −3, −4]: ((x + 4)/4)²·4 − 4 = [0, −1.75, −3.75, −4].
        assert!(v.iter().zip([0.0, 1.75, 3.75, 4.0]).all(|(a, b)| (a - b).abs() < 1e-5), "{v:?}");
        let mut v = [0.0, 1.0, 3.0, 4.0];
        gamma(&mut v, 2.0, false, true);
        // [0, .25, 2.25, 4]: mean 1.625, sample std 1.8874586; before 2 and 1.8257419.
        let wanted = [0.418861, 0.662113, 2.60813, 4.310895];
        assert!(v.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-4), "{v:?}");
        let mut flat = [2.0; 5];
        gamma(&mut flat, 3.0, true, true);
        assert!(flat.iter().all(|v| (v - 2.0).abs() < 1e-5));
    }

    #[test]
    fn contrast_spreads_about_the_mean_and_keeps_the_range() {
        let mut v = [0.0, 4.0, 5.0, 7.0];
        contrast(&mut v, 0.5);
        assert_eq!(v, [2.0, 4.0, 4.5, 5.5]);
        contrast(&mut v, 10.0);
        assert_eq!(v, [2.0, 4.0, 5.5, 5.5]);
    }

    #[test]
    fn low_resolution_is_that_of_torch() {
        // interpolate(interpolate(arange(6), 3, mode="nearest-exact"), 6, mode="linear"): 1, 3, 5 → held, then quarters.
        let row: Vec<f32> = (0..6).map(|v| v as f32).collect();
        let size = Zyx::new(1, 1, 6);
        assert_eq!(low_resolution(&row, size, Zyx::new(1, 1, 3)), [1.0, 1.5, 2.5, 3.5, 4.5, 5.0]);
        assert_eq!(low_resolution(&row, size, size), row);
        let z: Vec<f32> = (0..12).map(|v| (v / 2) as f32).collect();
        let wanted: Vec<f32> = [1.0, 1.5, 2.5, 3.5, 4.5, 5.0].iter().flat_map(|v| [*v, *v]).collect();
        assert_eq!(low_resolution(&z, Zyx::new(6, 1, 2), Zyx::new(3, 1, 2)), wanted);
    }

    #[test]
    fn boxes_are_blanked_as_far_as_they_reach() {
        let mut v = [1.0; 8];
        let b = Region { start: Zyx::new(-1, 1, 1), size: Zyx::splat(2) };
        cutout(&mut v, Zyx::splat(2), &[b], 0.0);
        assert_eq!(v, [1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]);
    }
}
