//! Augmentations as plain data ([`Augment`]: the dice, already thrown) and the pure functions that apply them to a patch. What is drawn and how often
//! stands in `sample/draw.rs`. Channels and labels move together; intensity steps touch the channels only.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;

use super::warp::{Bend, warp};
use super::{smooth, tone};

/// What is done to one patch, in this order. Empty: nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Augment(pub Vec<Step>);

/// One drawn augmentation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Rotation, shear and zoom about the centre, and a bend, in one interpolation. The patch comes in on a larger box (see `sample::plan`) and leaves with
    /// `size`.
    Affine {
        /// Rows: index on the way in, relative to the centre, = row · (index on the way out, relative to the centre, plus the bend). Voxels.
        to_input: Zyx<Zyx<f64>>,
        size: Zyx<usize>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bend: Option<Bend>,
    },
    /// Reverses the axes.
    Flip { axes: Vec<Axis> },
    /// `quarter_turns` (1…3) in the plane of two axes, from the first towards the second (`numpy.rot90`).
    Rotate90 { from: Axis, to: Axis, quarter_turns: u8 },
    /// Adds a normal deviate of this standard deviation to every voxel; the deviates are a function of `seed`.
    Noise { std: f64, seed: u64 },
    /// `x · (1 + factor)` (MONAI ScaleIntensity).
    ScaleIntensity { factor: f64 },
    /// `x + offset`.
    ShiftIntensity { offset: f64 },
    /// `((x − min) / (max − min + 1e-7))^gamma · (max − min) + min` of each channel of the patch (MONAI AdjustContrast); see [`tone::gamma`].
    Gamma {
        gamma: f64,
        #[serde(default, skip_serializing_if = "is_false")]
        invert: bool,
        #[serde(default, skip_serializing_if = "is_false")]
        retain_stats: bool,
    },
    /// `(x − mean) · factor + mean` of each channel, held in its range ([`tone::contrast`]).
    Contrast { factor: f64 },
    /// Down to so many voxels and up again ([`tone::low_resolution`]).
    LowResolution { coarse: Zyx<usize> },
    /// Every channel of these boxes becomes `value`; labels stay.
    Cutout { boxes: Vec<Region>, value: f64 },
    /// Gaussian of this standard deviation in voxels; beyond the border stands the border.
    Blur { sigma: Zyx<f64> },
}

fn is_false(v: &bool) -> bool {
    !v
}

/// An axis of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    Z,
    Y,
    X,
}

/// A patch on its way through the steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub size: Zyx<usize>,
    pub channels: usize,
    /// `[c, z, y, x]`
    pub voxels: Vec<f32>,
    /// `[z, y, x]`
    pub labels: Option<Vec<u8>>,
}

/// Applies the steps in their order.
pub fn apply(augment: &Augment, mut s: Sample) -> Sample {
    for step in &augment.0 {
        // Of the patch as it is by now.
        let voxels_a_channel = s.size.count().max(1);
        s = match step {
            Step::Affine { to_input, size, bend } => warp(&s, *to_input, *size, bend.as_ref()),
            Step::Flip { axes } => {
                rearranged(&s, s.size, |i| axes.iter().fold(i, |i, a| with(i, *a, *pick(&s.size, *a) - 1 - *pick(&i, *a))))
            }
            Step::Rotate90 { from, to, quarter_turns } => rotate90(&s, *from, *to, *quarter_turns),
            Step::Noise { std, seed } => {
                add_noise(&mut s.voxels, *std as f32, *seed);
                s
            }
            Step::ScaleIntensity { factor } => mapped(s, |v| v * (1.0 + *factor as f32)),
            Step::ShiftIntensity { offset } => mapped(s, |v| v + *offset as f32),
            Step::Gamma { gamma, invert, retain_stats } => {
                s.voxels.chunks_mut(voxels_a_channel).for_each(|channel| tone::gamma(channel, *gamma as f32, *invert, *retain_stats));
                s
            }
            Step::Contrast { factor } => {
                s.voxels.chunks_mut(voxels_a_channel).for_each(|channel| tone::contrast(channel, *factor as f32));
                s
            }
            Step::LowResolution { coarse } => {
                s.voxels = s.voxels.chunks(voxels_a_channel).flat_map(|channel| tone::low_resolution(channel, s.size, *coarse)).collect();
                s
            }
            Step::Cutout { boxes, value } => {
                s.voxels.chunks_mut(voxels_a_channel).for_each(|channel| tone::cutout(channel, s.size, boxes, *value as f32));
                s
            }
            Step::Blur { sigma } => {
                s.voxels = smooth::gaussian(&s.voxels, s.size, *sigma, smooth::Edge::Repeat);
                s
            }
        };
    }
    s
}

fn pick<T>(v: &Zyx<T>, axis: Axis) -> &T {
    match axis {
        Axis::Z => &v.z,
        Axis::Y => &v.y,
        Axis::X => &v.x,
    }
}

fn with<T>(mut v: Zyx<T>, axis: Axis, value: T) -> Zyx<T> {
    match axis {
        Axis::Z => v.z = value,
        Axis::Y => v.y = value,
        Axis::X => v.x = value,
    }
    v
}

fn mapped(mut s: Sample, f: impl Fn(f32) -> f32) -> Sample {
    s.voxels.iter_mut().for_each(|v| *v = f(*v));
    s
}

/// Voxel `i` of the result is voxel `source(i)` of `s`.
fn rearranged(s: &Sample, size: Zyx<usize>, source: impl Fn(Zyx<usize>) -> Zyx<usize>) -> Sample {
    let at = |i: Zyx<usize>| (i.z * s.size.y + i.y) * s.size.x + i.x;
    let order: Vec<usize> = indices(size).map(|i| at(source(i))).collect();
    let n = s.size.count();
    let voxels = (0..s.channels).flat_map(|c| order.iter().map(move |o| s.voxels[c * n + o])).collect();
    Sample { size, channels: s.channels, voxels, labels: s.labels.as_ref().map(|l| order.iter().map(|o| l[*o]).collect()) }
}

fn indices(size: Zyx<usize>) -> impl Iterator<Item = Zyx<usize>> {
    (0..size.z).flat_map(move |z| (0..size.y).flat_map(move |y| (0..size.x).map(move |x| Zyx::new(z, y, x))))
}

fn rotate90(s: &Sample, from: Axis, to: Axis, quarter_turns: u8) -> Sample {
    (0..quarter_turns % 4).fold(s.clone(), |s, _| {
        let (n_from, n_to) = (*pick(&s.size, from), *pick(&s.size, to));
        let turned = with(with(s.size, from, n_to), to, n_from);
        // numpy.rot90(k = 1): out[i, j] = in[j, n − 1 − i].
        rearranged(&s, turned, |i| with(with(i, from, *pick(&i, to)), to, n_to - 1 - *pick(&i, from)))
    })
}

fn add_noise(voxels: &mut [f32], std: f32, seed: u64) {
    let mut rng = ChaCha8Rng::from_seed(*blake3::hash(&seed.to_le_bytes()).as_bytes());
    // 24 bits in (0, 1]: the logarithm stays finite.
    let mut uniform = || ((rng.next_u32() >> 8) + 1) as f32 / (1 << 24) as f32;
    for pair in voxels.chunks_mut(2) {
        // Box and Muller.
        let (radius, angle) = ((-2.0 * uniform().ln()).sqrt() * std, std::f32::consts::TAU * uniform());
        pair[0] += radius * angle.cos();
        if let Some(second) = pair.get_mut(1) {
            *second += radius * angle.sin();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Voxel values and labels tell their place.
    fn ramp(size: Zyx<usize>) -> Sample {
        let n = size.count();
        Sample { size, channels: 2, voxels: (0..2 * n).map(|v| v as f32).collect(), labels: Some((0..n).map(|v| (v % 7) as u8).collect()) }
    }

    fn identity(size: Zyx<usize>) -> Step {
        let row = |z, y, x| Zyx::new(z, y, x);
        Step::Affine { to_input: Zyx::new(row(1., 0., 0.), row(0., 1., 0.), row(0., 0., 1.)), size, bend: None }
    }

    #[test]
    fn flip_twice_is_nothing_and_moves_labels_along() {
        let s = ramp(Zyx::new(3, 4, 5));
        let flip = Step::Flip { axes: vec![Axis::Z, Axis::X] };
        let once = apply(&Augment(vec![flip.clone()]), s.clone());
        assert_eq!(once.voxels[0], 2.0 * 20.0 + 4.0, "the first voxel was the last of z and x");
        assert_eq!(once.labels.as_ref().unwrap()[0], 44 % 7);
        assert_eq!(apply(&Augment(vec![flip.clone(), flip]), s.clone()), s);
    }

    #[test]
    fn quarter_turns_follow_numpy() {
        let s = Sample { size: Zyx::new(1, 2, 2), channels: 1, voxels: vec![1., 2., 3., 4.], labels: None };
        let turn = |k| apply(&Augment(vec![Step::Rotate90 { from: Axis::Y, to: Axis::X, quarter_turns: k }]), s.clone()).voxels;
        assert_eq!(turn(1), [2., 4., 1., 3.]);
        assert_eq!(turn(2), [4., 3., 2., 1.]);
        assert_eq!(turn(3), [3., 1., 4., 2.]);
        let s = ramp(Zyx::new(2, 3, 5));
        let four = vec![Step::Rotate90 { from: Axis::Z, to: Axis::X, quarter_turns: 1 }; 4];
        assert_eq!(apply(&Augment(four), s.clone()), s);
    }

    #[test]
    fn affine_identity_cuts_the_middle() {
        let s = ramp(Zyx::new(5, 5, 5));
        assert_eq!(apply(&Augment(vec![identity(s.size)]), s.clone()), s);
        let middle = apply(&Augment(vec![identity(Zyx::splat(3))]), s.clone());
        assert_eq!(middle.voxels[0], s.voxels[25 + 5 + 1]);
        assert_eq!(middle.labels.unwrap()[0], s.labels.unwrap()[25 + 5 + 1]);
    }

    #[test]
    fn noise_is_a_function_of_its_seed_and_has_its_std() {
        let s = Sample { size: Zyx::splat(32), channels: 1, voxels: vec![0.0; 32768], labels: None };
        let noisy = |seed| apply(&Augment(vec![Step::Noise { std: 0.5, seed }]), s.clone()).voxels;
        let a = noisy(1);
        assert_eq!(a, noisy(1));
        assert_ne!(a, noisy(2));
        let mean = a.iter().map(|v| *v as f64).sum::<f64>() / 32768.0;
        let std = (a.iter().map(|v| (*v as f64 - mean).powi(2)).sum::<f64>() / 32768.0).sqrt();
        assert!(mean.abs() < 0.02 && (std - 0.5).abs() < 0.02, "mean {mean}, std {std}");
    }

    #[test]
    fn gamma_keeps_the_range_and_blur_keeps_a_constant() {
        let s = Sample { size: Zyx::new(1, 1, 5), channels: 1, voxels: vec![-2., -1., 0., 1., 2.], labels: None };
        let g = apply(&Augment(vec![Step::Gamma { gamma: 2.0, invert: false, retain_stats: false }]), s).voxels;
        assert!((g[0] + 2.0).abs() < 1e-6 && (g[4] - 2.0).abs() < 1e-5 && (g[2] + 1.0).abs() < 1e-5, "{g:?}");
        let flat = Sample { size: Zyx::new(3, 4, 5), channels: 1, voxels: vec![3.0; 60], labels: None };
        let b = apply(&Augment(vec![Step::Blur { sigma: Zyx::new(0.5, 1.0, 2.0) }]), flat).voxels;
        assert!(b.iter().all(|v| (v - 3.0).abs() < 1e-5));
    }

    #[test]
    fn augmentation_survives_json() {
        let region = Region { start: Zyx::splat(1), size: Zyx::splat(2) };
        let Step::Affine { to_input, size, .. } = identity(Zyx::splat(2)) else { panic!("an affine") };
        let a = Augment(vec![
            Step::Affine { to_input, size, bend: Some(Bend { sigma: 5.0, magnitude: 0.1, seed: u64::MAX }) },
            Step::Flip { axes: vec![Axis::Y] },
            Step::Noise { std: 0.1, seed: u64::MAX },
            Step::Gamma { gamma: 0.7, invert: true, retain_stats: true },
            Step::Contrast { factor: 1.25 },
            Step::LowResolution { coarse: Zyx::new(1, 2, 3) },
            Step::Cutout { boxes: vec![region], value: -0.5 },
        ]);
        let text = serde_json::to_string(&a).unwrap();
        assert_eq!(serde_json::from_str::<Augment>(&text).unwrap(), a);
        // What older lineage holds is read, too.
        let old = r#"[{ "gamma": { "gamma": 2.0 } }]"#;
        let gamma = Step::Gamma { gamma: 2.0, invert: false, retain_stats: false };
        assert_eq!(serde_json::from_str::<Augment>(old).unwrap().0, [gamma]);
    }
}
