//! Losses that are functions of three sums a class: Σpg, Σp and Σg over the voxels of a sample, or of the batch. Dice, Jaccard, Tversky and generalised
//! Dice with MONAI's formulas (`DiceLoss`, `TverskyLoss`, `GeneralizedDiceLoss` with squared volumes), in float64.

use super::loss::Loss;

/// The weighted sum of these losses for one group of voxels and what it changes with each probability.
pub struct Overlap {
    pub value: f64,
    /// d value / d p = slope[0] + slope[1] · g, for each class.
    pub slopes: Vec<[f64; 2]>,
}

/// - `sums`: Σpg, Σp and Σg of each class, background first
/// - `first`: the first class that counts
/// - `box_voxels`: voxels of full resolution that one position stands for
pub fn overlap(loss: &Loss, sums: &[[f64; 3]], first: usize, box_voxels: usize) -> Overlap {
    let mut out = Overlap { value: 0.0, slopes: vec![[0.0; 2]; sums.len()] };
    let kept = first..sums.len();
    let n = kept.len() as f64;
    let smooth = loss.smooth / box_voxels as f64;
    for c in kept.clone() {
        let [both, p, g] = sums[c];
        let slope = &mut out.slopes[c];
        if loss.dice > 0.0 {
            let share = loss.dice / n;
            // Jaccard: 2·(Σp + Σg − Σpg) below.
            let (whole, both_below) = if loss.jaccard { (2.0 * (p + g - both) + smooth, -2.0) } else { (p + g + smooth, 0.0) };
            let p_below = if loss.jaccard { 2.0 } else { 1.0 };
            let above = 2.0 * both + smooth;
            out.value += share * (1.0 - above / whole);
            slope[0] += share * above * p_below / (whole * whole);
            slope[1] += share * (above * both_below / (whole * whole) - 2.0 / whole);
        }
        if loss.tversky > 0.0 {
            let share = loss.tversky / n;
            // Σpg + α·Σp(1 − g) + β·Σ(1 − p)g
            let (alpha, beta) = (loss.alpha, loss.beta);
            let whole = both + alpha * (p - both) + beta * (g - both) + smooth;
            let above = both + smooth;
            out.value += share * (1.0 - above / whole);
            slope[0] += share * above * alpha / (whole * whole);
            slope[1] += share * (above * (1.0 - alpha - beta) / (whole * whole) - 1.0 / whole);
        }
    }
    if loss.generalised_dice > 0.0 {
        let weights = volume_weights(&sums[kept.clone()]);
        // Weights of smaller volumes are larger by the square: the smoothing keeps its share.
        let smooth = loss.smooth * box_voxels as f64;
        let sum = |of: &dyn Fn(&[f64; 3]) -> f64| sums[kept.clone()].iter().zip(&weights).map(|(s, w)| w * of(s)).sum::<f64>();
        let above = 2.0 * sum(&|s| s[0]) + smooth;
        let whole = sum(&|s| s[1] + s[2]) + smooth;
        out.value += loss.generalised_dice * (1.0 - above / whole);
        for (c, w) in kept.zip(&weights) {
            out.slopes[c][0] += loss.generalised_dice * w * above / (whole * whole);
            out.slopes[c][1] -= loss.generalised_dice * 2.0 * w / whole;
        }
    }
    out
}

/// 1 / Σg² of each class; a class without voxels has the largest weight of the others.
pub fn volume_weights(sums: &[[f64; 3]]) -> Vec<f64> {
    let weight = |g: f64| if g > 0.0 { 1.0 / (g * g) } else { 0.0 };
    let top = sums.iter().map(|s| weight(s[2])).fold(0.0, f64::max);
    sums.iter().map(|s| if s[2] > 0.0 { weight(s[2]) } else { top }).collect()
}
