//! Losses that are functions of a few sums a class, over the voxels of a sample or of the batch. Dice, Jaccard, Tversky and generalised Dice with MONAI's
//! formulas (`DiceLoss`, `TverskyLoss`, `GeneralizedDiceLoss`), in float64.

use super::loss::{Loss, Reduction, VolumeWeights};

/// Σpg, Σp, Σg and Σp² of a class.
pub type OfClass = [f64; 4];

/// The weighted sum of these losses for one group of voxels and what it changes with each probability.
pub struct Overlap {
    pub value: f64,
    /// d value / d p = slope[0] + slope[1] · g + slope[2] · p, for each class.
    pub slopes: Vec<[f64; 3]>,
}

/// - `sums`: of each class, background first
/// - `box_voxels`: voxels of full resolution that one position stands for
pub fn overlap(loss: &Loss, sums: &[OfClass], box_voxels: usize) -> Overlap {
    let mut out = Overlap { value: 0.0, slopes: vec![[0.0; 3]; sums.len()] };
    let kept = loss.first_class()..sums.len();
    let n = if loss.reduction == Reduction::Mean { kept.len() as f64 } else { 1.0 };
    let share = box_voxels as f64;
    let (smooth_above, smooth) = (loss.smooth_above() / share, loss.smooth / share);
    for c in kept.clone() {
        let [both, p, g, squares] = sums[c];
        let slope = &mut out.slopes[c];
        if loss.dice > 0.0 {
            let share = loss.dice * loss.balance(c, sums.len()) / n;
            let p = if loss.squared { squares } else { p };
            // Jaccard: 2·(Σp + Σg − Σpg) below.
            let (whole, both_below) = if loss.jaccard { (2.0 * (p + g - both) + smooth, -2.0) } else { (p + g + smooth, 0.0) };
            let p_below = if loss.jaccard { 2.0 } else { 1.0 };
            let above = 2.0 * both + smooth_above;
            out.value += share * (1.0 - above / whole);
            let of_p = share * above * p_below / (whole * whole);
            // Σp² changes by 2p.
            if loss.squared {
                slope[2] += 2.0 * of_p
            } else {
                slope[0] += of_p
            }
            slope[1] += share * (above * both_below / (whole * whole) - 2.0 / whole);
        }
        if loss.tversky > 0.0 {
            let share = loss.tversky / n;
            // Σpg + α·Σp(1 − g) + β·Σ(1 − p)g
            let (alpha, beta) = (loss.alpha, loss.beta);
            let whole = both + alpha * (p - both) + beta * (g - both) + smooth;
            let above = both + smooth_above;
            out.value += share * (1.0 - above / whole);
            slope[0] += share * above * alpha / (whole * whole);
            slope[1] += share * (above * (1.0 - alpha - beta) / (whole * whole) - 1.0 / whole);
        }
    }
    if loss.generalised_dice > 0.0 {
        let weights = volume_weights(loss.generalised_weights, &sums[kept.clone()]);
        let scale = loss.generalised_weights.smoothing(share);
        let sum = |of: &dyn Fn(&OfClass) -> f64| sums[kept.clone()].iter().zip(&weights).map(|(s, w)| w * of(s)).sum::<f64>();
        let above = 2.0 * sum(&|s| s[0]) + loss.smooth_above() * scale;
        let whole = sum(&|s| s[1] + s[2]) + loss.smooth * scale;
        out.value += loss.generalised_dice * (1.0 - above / whole);
        for (c, w) in kept.zip(&weights) {
            out.slopes[c][0] += loss.generalised_dice * w * above / (whole * whole);
            out.slopes[c][1] -= loss.generalised_dice * 2.0 * w / whole;
        }
    }
    out
}

impl VolumeWeights {
    /// What the smoothing is multiplied by where positions stand for boxes of voxels: weights of smaller volumes are larger, so sums are, too.
    pub fn smoothing(self, box_voxels: f64) -> f64 {
        match self {
            VolumeWeights::Square => box_voxels,
            VolumeWeights::Simple => 1.0,
            VolumeWeights::Uniform => 1.0 / box_voxels,
        }
    }
}

/// The weight of each class by its volume Σg; a class without voxels has the largest weight of the others.
pub fn volume_weights(rule: VolumeWeights, sums: &[OfClass]) -> Vec<f64> {
    let weight = |g: f64| match rule {
        VolumeWeights::Uniform => 1.0,
        _ if g == 0.0 => 0.0,
        VolumeWeights::Square => 1.0 / (g * g),
        VolumeWeights::Simple => 1.0 / g,
    };
    let top = sums.iter().map(|s| weight(s[2])).fold(0.0, f64::max);
    sums.iter().map(|s| if s[2] > 0.0 { weight(s[2]) } else { top }).collect()
}
