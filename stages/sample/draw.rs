//! What may be drawn for a patch ([`Random`]: the ranges of the YAML) and the draws themselves. A draw is a pure function of (seed, epoch, sample,
//! place in the list): a counter-based generator keyed by their hash, so neither threads nor the other entries of the list move it.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Zyx;

use crate::ops::augment::{Axis, Step};
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
    /// Rotation and zoom about the centre of the patch in one interpolation; always the first thing done, wherever it stands in the list.
    Affine {
        /// Largest angle about each axis, degrees; the angle is uniform between minus and plus this.
        #[serde(default)]
        rotation_degrees: Zyx<f64>,
        /// Zoom is uniform between 1 − scale and 1 + scale; above 1 things look larger.
        #[serde(default)]
        scale: f64,
        probability: f64,
    },
    /// Normal noise; its standard deviation is uniform between 0 and `std`, in units of the image.
    Noise { std: f64, probability: f64 },
    /// `x · (1 + f)`, f uniform between minus and plus `factor`.
    ScaleIntensity { factor: f64, probability: f64 },
    /// `x + o`, o uniform between minus and plus `offset`, in units of the image.
    ShiftIntensity { offset: f64, probability: f64 },
    /// Gamma curve over the range of the patch; the exponent is log-uniform between `low` and `high`.
    Gamma { low: f64, high: f64, probability: f64 },
    /// Gaussian blur; the standard deviation of each axis is uniform between `low` and `high` voxels.
    Blur { low: f64, high: f64, probability: f64 },
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
            Random::Affine { rotation_degrees: r, scale, .. } => {
                let angle = r.map(|max| dice.between(-max, max).to_radians());
                let zoom = dice.between(1.0 - scale, 1.0 + scale);
                Some(Step::Affine { to_input: turn(angle, zoom, spacing_mm), size: patch })
            }
            Random::Noise { std, .. } => Some(Step::Noise { std: dice.between(0.0, *std), seed: dice.word() }),
            Random::ScaleIntensity { factor, .. } => Some(Step::ScaleIntensity { factor: dice.between(-factor, *factor) }),
            Random::ShiftIntensity { offset, .. } => Some(Step::ShiftIntensity { offset: dice.between(-offset, *offset) }),
            Random::Gamma { low, high, .. } => Some(Step::Gamma { gamma: dice.between(low.ln(), high.ln()).exp() }),
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
            | Random::Blur { probability, .. } => *probability,
        }
    }
}

/// Rows from an output offset to an input offset in voxels: rotation about z, then y, then x in millimetres, over `zoom`.
fn turn(angle: Zyx<f64>, zoom: f64, spacing_mm: Zyx<f64>) -> Zyx<Zyx<f64>> {
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
    let r = product(about(2, angle.x), product(about(1, angle.y), about(0, angle.z)));
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
            Random::Affine { rotation_degrees: r, scale, .. } => {
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
