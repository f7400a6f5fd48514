//! What may be drawn for a patch ([`Random`]: the ranges of the YAML) and the draws themselves. A draw is a pure function of (seed, epoch, sample,
//! place in the list): a counter-based generator keyed by their hash, so neither threads nor the other entries of the list move it.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;

use crate::ops::augment::{Axis, Step};
use crate::ops::warp::Bend;
use crate::stage::Finding;

/// An augmentation with its ranges. `probability` is the chance that a patch gets it, 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Random {
    /// Mirrors each of these axes with the given chance, each on its own.
    Flip {
        /// Axes of the volume: z, y, x.
        axes: Vec<Axis>,
        /// Chance of each axis.
        probability: f64,
    },
    /// One to three quarter turns in a plane. The patch must be as long on one axis as on the other.
    Rotate90 {
        /// The two axes that span the plane.
        axes: [Axis; 2],
        probability: f64,
    },
    /// Rotation, shear and zoom about the centre of the patch in one interpolation; always the first thing done, wherever it stands in the list.
    Affine {
        /// Largest angle about each axis, degrees; the angle is uniform between minus and plus this.
        #[serde(default)]
        rotation_degrees: Zyx<f64>,
        /// Zoom is uniform between 1 − scale and 1 + scale; above 1 things look larger.
        #[serde(default)]
        scale: f64,
        /// Each of the six shears (one axis pushed along another, mm per mm) is uniform between minus and plus this.
        #[serde(default, skip_serializing_if = "is_zero")]
        shear: f64,
        probability: f64,
    },
    /// Bends the patch (MONAI `Rand3DElastic`): noise uniform in −1…1 for each axis and voxel, blurred by a Gaussian, times a magnitude, in voxels. Away from the
    /// border the way along an axis has a standard deviation of 0.086 · magnitude ÷ sigma^1.5 voxels. Shares its interpolation with `affine`, before which it acts.
    Elastic {
        /// The standard deviation of the blur is uniform between these, voxels.
        sigma_low: f64,
        sigma_high: f64,
        /// The magnitude is uniform between these, voxels.
        magnitude_low: f64,
        magnitude_high: f64,
        probability: f64,
    },
    /// Normal noise; its standard deviation is uniform between 0 and `std`, in units of the image.
    Noise { std: f64, probability: f64 },
    /// `x · (1 + f)`, f uniform between minus and plus `factor`.
    ScaleIntensity { factor: f64, probability: f64 },
    /// `x + o`, o uniform between minus and plus `offset`, in units of the image.
    ShiftIntensity { offset: f64, probability: f64 },
    /// Gamma curve over the range of the patch; the exponent is log-uniform between `low` and `high`.
    Gamma {
        low: f64,
        high: f64,
        /// Turn the image over before and back after.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        invert: bool,
        /// Bring mean and standard deviation back to what they were.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        retain_stats: bool,
        probability: f64,
    },
    /// `(x − mean) · f + mean`, held in the range of the patch (nnU-Net). Where `low` < 1 < `high`, half of the factors lie below 1 and half above, uniform on
    /// each side.
    Contrast { low: f64, high: f64, probability: f64 },
    /// What a coarser scan would show (nnU-Net, MONAI `RandSimulateLowResolution`): down to a share of the voxels of each axis, uniform between `low` and
    /// `high` (0 to 1), by the closest voxel, and up again trilinear.
    LowResolution { low: f64, high: f64, probability: f64 },
    /// Blanks boxes at random places of the patch in every channel (MONAI `RandCoarseDropout`); labels stay.
    Cutout {
        /// How many.
        holes: u32,
        /// Voxels of each along z, y, x; where the patch is smaller, as much as it has.
        size: Zyx<usize>,
        /// What stands there then, in units of the image.
        #[serde(default)]
        value: f64,
        probability: f64,
    },
    /// Gaussian blur; the standard deviation of each axis is uniform between `low` and `high` voxels.
    Blur { low: f64, high: f64, probability: f64 },
}

fn is_zero(v: &f64) -> bool {
    *v == 0.0
}

/// The dice of one draw.
pub struct Dice(ChaCha8Rng);

impl Dice {
    /// Dice for one place in the whole training. `what` tells apart the uses: the order of cases, the box, each entry of the augment list.
    pub fn new(seed: u64, epoch: u64, sample: u64, what: &str) -> Self {
        let mut h = blake3::Hasher::new();
        h.update(b"voxmill sample 1\0");
        [seed, epoch, sample].iter().for_each(|v| {
            h.update(&v.to_le_bytes());
        });
        h.update(what.as_bytes());
        Self(ChaCha8Rng::from_seed(*h.finalize().as_bytes()))
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in 0…n−1; 0 for n = 0.
    pub fn below(&mut self, n: u64) -> u64 {
        ((self.0.next_u64() as u128 * n as u128) >> 64) as u64
    }

    pub fn word(&mut self) -> u64 {
        self.0.next_u64()
    }
}

impl Random {
    /// The step for one patch, or `None` where the dice say no. `spacing_mm`: of the case, so that a rotation turns the patient and does not shear it.
    pub fn draw(&self, dice: &mut Dice, patch: Zyx<usize>, spacing_mm: Zyx<f64>) -> Option<Step> {
        match self {
            Random::Flip { axes, probability } => {
                let axes: Vec<Axis> = axes.iter().copied().filter(|_| dice.unit() < *probability).collect();
                (!axes.is_empty()).then_some(Step::Flip { axes })
            }
            _ if dice.unit() >= self.probability() => None,
            Random::Rotate90 { axes: [from, to], .. } => {
                Some(Step::Rotate90 { from: *from, to: *to, quarter_turns: 1 + dice.below(3) as u8 })
            }
            Random::Affine { rotation_degrees: r, scale, shear, .. } => {
                let angle = r.map(|max| dice.between(-max, max).to_radians());
                let zoom = dice.between(1.0 - scale, 1.0 + scale);
                let shears = if *shear > 0.0 { std::array::from_fn(|_| dice.between(-shear, *shear)) } else { [0.0; 6] };
                Some(Step::Affine { to_input: turn(angle, shears, zoom, spacing_mm), size: patch, bend: None })
            }
            Random::Elastic { sigma_low, sigma_high, magnitude_low, magnitude_high, .. } => {
                let sigma = dice.between(*sigma_low, *sigma_high);
                let bend = Bend { sigma, magnitude: dice.between(*magnitude_low, *magnitude_high), seed: dice.word() };
                Some(Step::Affine { to_input: UNTURNED, size: patch, bend: Some(bend) })
            }
            Random::Noise { std, .. } => Some(Step::Noise { std: dice.between(0.0, *std), seed: dice.word() }),
            Random::ScaleIntensity { factor, .. } => Some(Step::ScaleIntensity { factor: dice.between(-factor, *factor) }),
            Random::ShiftIntensity { offset, .. } => Some(Step::ShiftIntensity { offset: dice.between(-offset, *offset) }),
            Random::Gamma { low, high, invert, retain_stats, .. } => {
                let gamma = dice.between(low.ln(), high.ln()).exp();
                Some(Step::Gamma { gamma, invert: *invert, retain_stats: *retain_stats })
            }
            Random::Contrast { low, high, .. } => {
                let below = dice.unit() < 0.5;
                let (low, high) = match (*low < 1.0, *high > 1.0) {
                    (true, true) if below => (*low, 1.0),
                    (true, true) => (1.0, *high),
                    _ => (*low, *high),
                };
                Some(Step::Contrast { factor: dice.between(low, high) })
            }
            Random::LowResolution { low, high, .. } => {
                let share = dice.between(*low, *high);
                Some(Step::LowResolution { coarse: patch.map(|n| ((n as f64 * share).round_ties_even() as usize).clamp(1, n.max(1))) })
            }
            Random::Cutout { holes, size, value, .. } => {
                let size = size.zip(patch).map(|(r, n)| r.min(n));
                let one = |dice: &mut Dice| size.zip(patch).map(|(r, n)| dice.below((n - r + 1) as u64) as i64);
                let boxes = (0..*holes).map(|_| Region { start: one(dice), size }).collect();
                Some(Step::Cutout { boxes, value: *value })
            }
            Random::Blur { low, high, .. } => Some(Step::Blur { sigma: Zyx::splat(()).map(|()| dice.between(*low, *high)) }),
        }
    }

    pub fn probability(&self) -> f64 {
        match self {
            Random::Flip { probability, .. }
            | Random::Rotate90 { probability, .. }
            | Random::Affine { probability, .. }
            | Random::Noise { probability, .. }
            | Random::ScaleIntensity { probability, .. }
            | Random::ShiftIntensity { probability, .. }
            | Random::Gamma { probability, .. }
            | Random::Elastic { probability, .. }
            | Random::Contrast { probability, .. }
            | Random::LowResolution { probability, .. }
            | Random::Cutout { probability, .. }
            | Random::Blur { probability, .. } => *probability,
        }
    }
}

/// Every voxel stays where it is.
const UNTURNED: Zyx<Zyx<f64>> = Zyx::new(Zyx::new(1.0, 0.0, 0.0), Zyx::new(0.0, 1.0, 0.0), Zyx::new(0.0, 0.0, 1.0));

/// Rows from an output offset to an input offset in voxels: the shears, then rotation about z, then y, then x, in millimetres, over `zoom` (MONAI's R·Sh·Sc).
/// - `shear`: of z along y and x, of y along z and x, of x along z and y
fn turn(angle: Zyx<f64>, shear: [f64; 6], zoom: f64, spacing_mm: Zyx<f64>) -> Zyx<Zyx<f64>> {
    let about = |axis: usize, a: f64| {
        let (i, j) = [(1, 2), (2, 0), (0, 1)][axis];
        let mut m = [[0.0; 3]; 3];
        m[axis][axis] = 1.0;
        (m[i][i], m[i][j], m[j][i], m[j][j]) = (a.cos(), -a.sin(), a.sin(), a.cos());
        m
    };
    let product = |a: [[f64; 3]; 3], b: [[f64; 3]; 3]| {
        let mut m = [[0.0; 3]; 3];
        for (i, row) in m.iter_mut().enumerate() {
            for (j, v) in row.iter_mut().enumerate() {
                *v = (0..3).map(|k| a[i][k] * b[k][j]).sum();
            }
        }
        m
    };
    let mut r = product(about(2, angle.x), product(about(1, angle.y), about(0, angle.z)));
    if shear != [0.0; 6] {
        // One after the other from the left: E₅·…·E₀.
        let places = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)];
        let identity = std::array::from_fn(|i| std::array::from_fn(|j| (i == j) as u8 as f64));
        let sheared = places.iter().zip(shear).fold(identity, |m, ((i, j), by)| {
            let mut e: [[f64; 3]; 3] = identity;
            e[*i][*j] = by;
            product(e, m)
        });
        r = product(r, sheared);
    }
    let s = spacing_mm.to_array();
    let row = |i: usize| Zyx::new(0, 1, 2).map(|j: usize| r[i][j] * s[j] / s[i] / zoom);
    Zyx::new(row(0), row(1), row(2))
}

/// What is wrong with a list of augmentations. `field`: its name under `with`.
pub fn check(augment: &[Random], patch: Zyx<usize>, field: &str) -> Vec<Finding> {
    let mut out = Vec::new();
    for (i, a) in augment.iter().enumerate() {
        let field = format!("{field}.{i}");
        let mut bad = |message: String, help: &str| out.push(Finding::error(&field, message, help));
        if !(0.0..=1.0).contains(&a.probability()) {
            bad(format!("probability is {}", a.probability()), "a chance lies between 0 and 1");
        }
        match a {
            Random::Flip { axes, .. } => {
                let mut seen = axes.clone();
                seen.sort();
                seen.dedup();
                if axes.is_empty() || seen.len() < axes.len() {
                    bad("flip needs each axis once".into(), "for example `axes: [z, y]`");
                }
            }
            Random::Rotate90 { axes: [a, b], .. } => {
                let n = |axis: &Axis| match axis {
                    Axis::Z => patch.z,
                    Axis::Y => patch.y,
                    Axis::X => patch.x,
                };
                if a == b {
                    bad("rotate90 needs two different axes".into(), "for example `axes: [y, x]`");
                } else if n(a) != n(b) {
                    bad(
                        format!("a quarter turn would change the patch: it is {} long on one axis and {} on the other", n(a), n(b)),
                        "turn in a plane where the patch is square",
                    );
                }
            }
            Random::Affine { rotation_degrees: r, scale, shear, .. } => {
                if !(0.0..=1.0).contains(shear) {
                    bad(format!("shear is {shear}"), "0.1 pushes an axis by up to a tenth of another; it lies between 0 and 1");
                }
                if !(0.0..1.0).contains(scale) {
                    bad(format!("scale is {scale}"), "0.2 means zoom between 0.8 and 1.2; it lies in 0 ≤ scale < 1");
                }
                if !r.to_array().iter().all(|v| (0.0..=180.0).contains(v)) {
                    bad("an angle lies outside 0…180 degrees".into(), "give the largest angle to either side");
                }
                if augment.iter().filter(|a| matches!(a, Random::Affine { .. })).count() > 1 {
                    bad("more than one affine".into(), "put rotation and scale into one entry: they share one interpolation");
                }
            }
            Random::Elastic { sigma_low, sigma_high, magnitude_low, magnitude_high, .. } => {
                if !(0.5 <= *sigma_low && sigma_low <= sigma_high && *sigma_high <= 64.0) {
                    bad(
                        format!("sigma runs from {sigma_low} to {sigma_high}"),
                        "from 0.5 to 64 voxels, low first: MONAI's examples have 5 to 8",
                    );
                }
                if !(0.0 <= *magnitude_low && magnitude_low <= magnitude_high && *magnitude_high <= 100_000.0) {
                    bad(
                        format!("the magnitude runs from {magnitude_low} to {magnitude_high}"),
                        "at least 0, low first: MONAI's examples have 100 to 200",
                    );
                }
                // The box that is read grows by it on every side.
                let worst = Bend { sigma: *sigma_low, magnitude: *magnitude_high, seed: 0 };
                if *sigma_low >= 0.5 && worst.reach() > 64.0 {
                    bad(
                        format!("voxels may be moved by {:.0} voxels", worst.reach()),
                        "a lower magnitude or a higher sigma, so that none goes beyond 64 voxels",
                    );
                }
                if augment.iter().filter(|a| matches!(a, Random::Elastic { .. })).count() > 1 {
                    bad("more than one elastic".into(), "one bend is all that a patch can take: it shares the interpolation of `affine`");
                }
            }
            Random::Contrast { low, high, .. } => {
                if !(*low >= 0.0 && low <= high && *high <= 16.0) {
                    bad(format!("the range is {low} to {high}"), "factors from 0 to 16, low first: nnU-Net has 0.75 to 1.25");
                }
            }
            Random::LowResolution { low, high, .. } => {
                if !(*low > 0.0 && low <= high && *high <= 1.0) {
                    bad(
                        format!("the range is {low} to {high}"),
                        "shares of the voxels above 0 and up to 1, low first: nnU-Net has 0.5 to 1",
                    );
                }
            }
            Random::Cutout { holes, size, value, .. } => {
                if !(1..=1000).contains(holes) {
                    bad(format!("{holes} holes"), "from 1 to 1000");
                }
                if size.to_array().contains(&0) {
                    bad(format!("a hole of {size} voxels"), "at least one voxel along each axis");
                }
                if !value.is_finite() {
                    bad("the value is no number".into(), "a finite number in units of the image");
                }
            }
            Random::Noise { std: v, .. } | Random::ShiftIntensity { offset: v, .. } => {
                if !(v.is_finite() && *v >= 0.0) {
                    bad(format!("the range is {v}"), "give a number of at least 0");
                }
            }
            Random::ScaleIntensity { factor, .. } => {
                if !(0.0..=1.0).contains(factor) {
                    bad(format!("factor is {factor}"), "0.2 means times 0.8 to 1.2; it lies between 0 and 1");
                }
            }
            Random::Gamma { low, high, .. } | Random::Blur { low, high, .. } => {
                let least = if matches!(a, Random::Gamma { .. }) { f64::MIN_POSITIVE } else { 0.0 };
                if !(*low >= least && low <= high && *high <= 16.0) {
                    bad(format!("the range is {low} to {high}"), "low must not exceed high, gamma is above 0, and neither goes beyond 16");
                }
            }
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn random(with: serde_json::Value) -> Random {
        serde_json::from_value(with).unwrap()
    }

    fn drawn(with: serde_json::Value, n: u64) -> Vec<Step> {
        let r = random(with);
        (0..n).map(|i| r.draw(&mut Dice::new(7, 0, i, "augment 0"), Zyx::new(16, 32, 32), Zyx::splat(1.0)).unwrap()).collect()
    }

    #[test]
    fn shears_are_multiplied_in_the_order_of_monai() {
        // numpy: E5 @ E4 @ E3 @ E2 @ E1 @ E0 with coefficients .1, .2, .3, .4, .5, .6 at (0,1), (0,2), (1,0), (1,2), (2,0), (2,1).
        let m = turn(Zyx::splat(0.0), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 1.0, Zyx::splat(1.0));
        let wanted = [[1.0, 0.1, 0.2], [0.3, 1.03, 0.46], [0.68, 0.668, 1.376]];
        for (row, wanted) in m.to_array().iter().zip(wanted) {
            assert!(row.to_array().iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-12), "{m:?}");
        }
        // Millimetres: an axis of half the spacing is pushed by twice as many voxels.
        let m = turn(Zyx::splat(0.0), [0.1, 0.0, 0.0, 0.0, 0.0, 0.0], 1.0, Zyx::new(0.5, 1.0, 1.0));
        assert!((m.z.y - 0.2).abs() < 1e-12);
    }

    #[test]
    fn factors_of_contrast_lie_half_below_one_and_half_above() {
        let factors: Vec<f64> = drawn(serde_json::json!({ "contrast": { "low": 0.5, "high": 3.0, "probability": 1 } }), 2000)
            .iter()
            .map(|s| if let Step::Contrast { factor } = s { *factor } else { panic!("{s:?}") })
            .collect();
        let below = factors.iter().filter(|f| **f < 1.0).count();
        assert!((900..1100).contains(&below) && factors.iter().all(|f| (0.5..=3.0).contains(f)), "{below} of 2000");
    }

    #[test]
    fn holes_lie_in_the_patch_and_coarse_grids_keep_a_voxel() {
        for step in drawn(serde_json::json!({ "cutout": { "holes": 3, "size": { "z": 4, "y": 8, "x": 64 }, "probability": 1 } }), 50) {
            let Step::Cutout { boxes, .. } = step else { panic!("a cutout") };
            assert!(
                boxes.len() == 3 && boxes.iter().all(|b| Region::whole(Zyx::new(16, 32, 32)).contains(b) && b.size == Zyx::new(4, 8, 32))
            );
        }
        for step in drawn(serde_json::json!({ "low_resolution": { "low": 0.01, "high": 1.0, "probability": 1 } }), 50) {
            let Step::LowResolution { coarse } = step else { panic!("a resolution") };
            assert!(coarse.z >= 1 && coarse.z <= 16 && coarse.y == coarse.x && coarse.x <= 32);
        }
    }

    #[test]
    fn ranges_that_make_no_sense_are_named() {
        let wrong = |with: serde_json::Value| check(&[random(with)], Zyx::splat(32), "augment").len();
        let elastic = |low: f64, high: f64, magnitude: f64| serde_json::json!({ "elastic": { "sigma_low": low, "sigma_high": high, "magnitude_low": 0, "magnitude_high": magnitude, "probability": 1 } });
        assert_eq!(wrong(elastic(5.0, 8.0, 200.0)), 0);
        assert_eq!(wrong(elastic(8.0, 5.0, 200.0)), 1);
        assert_eq!(wrong(elastic(1.0, 5.0, 5000.0)), 1);
        assert_eq!(wrong(serde_json::json!({ "affine": { "shear": 2, "probability": 0.1 } })), 1);
        assert_eq!(wrong(serde_json::json!({ "contrast": { "low": 2, "high": 1, "probability": 0.1 } })), 1);
        assert_eq!(wrong(serde_json::json!({ "low_resolution": { "low": 0, "high": 1, "probability": 0.1 } })), 1);
        assert_eq!(wrong(serde_json::json!({ "cutout": { "holes": 0, "size": { "z": 0, "y": 1, "x": 1 }, "probability": 0.1 } })), 2);
    }
}
