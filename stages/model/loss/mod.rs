//! Losses for segmentation, with MONAI's formulas and argument names: Dice, generalised Dice, Tversky, focal (sigmoid and softmax form), cross-entropy,
//! boundary, Hausdorff by distance transforms. Here stands what they are made with; `heads` measures the logits of a network with them.

mod check;
mod composed;
mod heads;
mod ramps;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use heads::{Labels, Whole, value_and_gradient};
pub use ramps::{Ramp, Ramps};

/// A weighted sum of losses; a weight of 0 leaves a loss out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Loss {
    /// Weight of the Dice loss on softmax probabilities (MONAI's `lambda_dice`).
    #[serde(default)]
    pub dice: f64,
    /// Weight of the focal loss (MONAI's `lambda_focal`).
    #[serde(default)]
    pub focal: f64,
    /// Weight of the generalised Dice loss (MONAI `GeneralizedDiceLoss`): one fraction over all classes, each weighted by `generalised_weights`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub generalised_dice: f64,
    /// Weight of the Tversky loss (MONAI `TverskyLoss`): Dice in which false positives count `alpha` and false negatives `beta`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tversky: f64,
    /// Tversky: what a false positive counts; ½ for both is Dice.
    #[serde(default = "half", skip_serializing_if = "is_half")]
    pub alpha: f64,
    /// Tversky: what a false negative counts. Above `alpha`, misses cost more.
    #[serde(default = "half", skip_serializing_if = "is_half")]
    pub beta: f64,
    /// Generalised Dice: what a class counts (MONAI's `w_type`).
    #[serde(default, skip_serializing_if = "is_default")]
    pub generalised_weights: VolumeWeights,
    /// Whether Dice divides by the union, not by the sum of both (MONAI's `jaccard`).
    #[serde(default, skip_serializing_if = "is_false")]
    pub jaccard: bool,
    /// Whether Dice squares the probabilities below the fraction (MONAI's `squared_pred`, V-Net's Dice).
    #[serde(default, skip_serializing_if = "is_false")]
    pub squared: bool,
    /// Whether Dice, generalised Dice and Tversky take the batch as one, not sample by sample: steadier where a class stands in few patches (nnU-Net's
    /// batch Dice, MONAI's `batch`).
    #[serde(default, skip_serializing_if = "is_false")]
    pub batch: bool,
    /// Weight of the cross-entropy over all classes, background included.
    #[serde(default)]
    pub cross_entropy: f64,
    /// What each class counts, background first, in Dice, focal loss and cross-entropy (MONAI's `weight`). Dice and focal loss are multiplied by it;
    /// the cross-entropy is divided by the weights of all voxels (PyTorch's `weight`). A single class beside the background has nothing to balance in the
    /// first two. Default: all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_weights: Option<Vec<f64>>,
    /// Cross-entropy: this share of every voxel is spread over all classes, 0 to below 1 (PyTorch's `label_smoothing`).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub label_smoothing: f64,
    /// Weight of the boundary loss (Kervadec; MONAI `BoundaryLoss`): probability times signed distance in voxels. Meant to be added to a region loss;
    /// it can be negative.
    #[serde(default)]
    pub boundary: f64,
    /// Weight of the Hausdorff loss by distance transforms (Karimi; MONAI `HausdorffDTLoss`): squared error times the distances, in voxels, to the rims
    /// of truth and prediction. Meant to be added to a region loss.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub hausdorff: f64,
    /// Hausdorff: the power of the distances (MONAI's `alpha`).
    #[serde(default = "two", skip_serializing_if = "is_two")]
    pub hausdorff_power: f64,
    /// How strongly the focal loss looks away from easy voxels.
    #[serde(default = "two")]
    pub gamma: f64,
    /// `sigmoid`: each class for itself on raw logits, the form inside MONAI's DiceFocalLoss whatever its `softmax` flag says.
    /// `softmax`: classes compete.
    #[serde(default)]
    pub focal_form: FocalForm,
    /// Focal loss: MONAI's `alpha`. One number: what a voxel of the class counts, the others count 1 less that (with `focal_form: softmax`: what each
    /// class counts, the background 1 less that; without the background it does nothing there). A list, background first: what a voxel of that class
    /// counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub focal_alpha: Option<FocalAlpha>,
    /// Whether all losses but the cross-entropy count the background class too; the cross-entropy always does.
    #[serde(default)]
    pub include_background: bool,
    /// Added above and below the fraction of Dice, generalised Dice and Tversky (MONAI's `smooth_nr` and `smooth_dr`).
    #[serde(default = "smooth")]
    pub smooth: f64,
    /// Added above the fraction instead of `smooth` (MONAI's `smooth_nr`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smooth_above: Option<f64>,
    /// `mean`, or `sum`, which adds up where the mean divides: over samples and classes, in the cross-entropy over voxels (`reduction` in MONAI and
    /// PyTorch).
    #[serde(default, skip_serializing_if = "is_default")]
    pub reduction: Reduction,
    /// Weight of each head with deep supervision: a convention by name, or a list, full resolution first, that is divided by its sum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_weights: Option<HeadWeights>,
    /// Weights that change over the epochs: each is multiplied by its ramp.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ramps: Ramps,
}

/// The two focal losses that MONAI has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FocalForm {
    #[default]
    Sigmoid,
    Softmax,
}

/// The balance of the focal loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum FocalAlpha {
    /// The class against the rest.
    Same(f64),
    /// One a class, background first.
    Each(Vec<f64>),
}

/// What a class counts in the generalised Dice loss; one without voxels has the largest weight of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeWeights {
    /// 1 / volume².
    #[default]
    Square,
    /// 1 / volume.
    Simple,
    /// 1.
    Uniform,
}

/// What is done with the losses of samples and classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    #[default]
    Mean,
    Sum,
}

/// Weights of the heads of deep supervision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum HeadWeights {
    Named(HeadRule),
    /// Full resolution first; divided by their sum.
    List(Vec<f64>),
}

/// Conventions for the weights of heads, full resolution first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HeadRule {
    /// 1, ½, ¼, … divided by their sum.
    #[default]
    Halves,
    /// nnU-Net's: 1, ½, ¼, … but 0 for the coarsest head, divided by their sum.
    Nnunet,
    /// MONAI's `DeepSupervisionLoss(weight_mode="exp")`: 1, ½, ¼, … not below 1/16, and not divided by anything.
    Monai,
    /// MONAI's `weight_mode="two"`: 1, ½, ½, … not divided.
    MonaiTwo,
    /// MONAI's `weight_mode="same"`: 1 each, not divided.
    MonaiSame,
}

fn half() -> f64 {
    0.5
}

fn is_half(v: &f64) -> bool {
    *v == 0.5
}

fn is_zero(v: &f64) -> bool {
    *v == 0.0
}

fn is_false(v: &bool) -> bool {
    !v
}

fn is_two(v: &f64) -> bool {
    *v == 2.0
}

fn is_default<T: Default + PartialEq>(v: &T) -> bool {
    *v == T::default()
}

fn two() -> f64 {
    2.0
}

fn smooth() -> f64 {
    1e-5
}

impl Default for Loss {
    /// Dice and cross-entropy, equally weighted: nnU-Net's loss.
    fn default() -> Self {
        serde_json::from_value(serde_json::json!({ "dice": 1, "cross_entropy": 1 })).expect("every other field has a default")
    }
}

impl Loss {
    /// Weights of `heads` heads, full resolution first.
    pub fn head_weights(&self, heads: usize) -> Vec<f64> {
        let halves = || (0..heads).map(|h| 0.5f64.powi(h as i32));
        let shares = |raw: Vec<f64>| {
            let sum: f64 = raw.iter().sum();
            raw.into_iter().map(|w| w / sum).collect()
        };
        match self.head_weights.as_ref().unwrap_or(&HeadWeights::Named(HeadRule::Halves)) {
            HeadWeights::List(list) => shares(list.clone()),
            HeadWeights::Named(HeadRule::Halves) => shares(halves().collect()),
            HeadWeights::Named(HeadRule::Nnunet) => {
                shares(halves().enumerate().map(|(h, w)| if h > 0 && h + 1 == heads { 0.0 } else { w }).collect())
            }
            HeadWeights::Named(HeadRule::Monai) => halves().map(|w| w.max(0.0625)).collect(),
            HeadWeights::Named(HeadRule::MonaiTwo) => (0..heads).map(|h| if h == 0 { 1.0 } else { 0.5 }).collect(),
            HeadWeights::Named(HeadRule::MonaiSame) => vec![1.0; heads],
        }
    }

    /// Whether a loss has a weight that is made of overlaps.
    pub(super) fn has_overlap(&self) -> bool {
        self.dice > 0.0 || self.generalised_dice > 0.0 || self.tversky > 0.0
    }

    /// The first class that counts in all losses but the cross-entropy.
    pub(super) fn first_class(&self) -> usize {
        if self.include_background { 0 } else { 1 }
    }

    /// What is added above a fraction.
    pub(super) fn smooth_above(&self) -> f64 {
        self.smooth_above.unwrap_or(self.smooth)
    }

    pub(super) fn class_weight(&self, class: usize) -> f64 {
        self.class_weights.as_ref().map_or(1.0, |w| w.get(class).copied().unwrap_or(1.0))
    }

    /// What a class counts beside the others in Dice and focal loss. Where only one counts there is nothing to balance (MONAI's DiceLoss).
    pub(super) fn balance(&self, class: usize, classes: usize) -> f64 {
        if classes - self.first_class() == 1 { 1.0 } else { self.class_weight(class) }
    }

    /// What a voxel of a class, and what one of the others, counts in the focal loss of that class.
    pub(super) fn focal_factors(&self, class: usize, classes: usize) -> [f64; 2] {
        let [truth, rest] = match (&self.focal_alpha, self.focal_form) {
            (None, _) => [1.0, 1.0],
            (Some(FocalAlpha::Each(list)), _) => [list.get(class).copied().unwrap_or(1.0), 1.0],
            (Some(FocalAlpha::Same(a)), FocalForm::Sigmoid) => [*a, 1.0 - a],
            (Some(FocalAlpha::Same(_)), FocalForm::Softmax) if !self.include_background => [1.0, 1.0],
            (Some(FocalAlpha::Same(a)), FocalForm::Softmax) => [if class == 0 { 1.0 - a } else { *a }, 1.0],
        };
        let weight = self.balance(class, classes);
        [truth * weight, rest * weight]
    }
}
