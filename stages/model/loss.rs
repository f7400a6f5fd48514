//! Losses for segmentation, with MONAI's formulas and argument names: Dice, generalised Dice, Tversky, focal (sigmoid and softmax form), cross-entropy,
//! boundary.
//! Logits are [n, class, z, y, x], targets one-hot maps of the same shape that may be averages over boxes of voxels (see `target`).

use std::sync::Arc;

use burn::tensor::activation::{log_sigmoid, log_softmax, softmax};
use burn::tensor::{Tensor, TensorData, s};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Zyx;

use super::device::Device;
use super::kernels::{self, HeadLoss};
use super::overlap::volume_weights;
use super::target;
use crate::error::Error;
use crate::stage::Finding;

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
    /// Weight of the generalised Dice loss (MONAI `GeneralizedDiceLoss`): one fraction over all classes, each weighted by 1 / volume².
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
    /// Whether Dice divides by the union, not by the sum of both (MONAI's `jaccard`).
    #[serde(default, skip_serializing_if = "is_false")]
    pub jaccard: bool,
    /// Whether Dice, generalised Dice and Tversky take the batch as one, not sample by sample: steadier where a class stands in few patches (nnU-Net's
    /// batch Dice, MONAI's `batch`).
    #[serde(default, skip_serializing_if = "is_false")]
    pub batch: bool,
    /// Weight of the cross-entropy over all classes, background included.
    #[serde(default)]
    pub cross_entropy: f64,
    /// What a voxel of each class counts in the cross-entropy, background first; the sum is divided by the weights of all voxels (PyTorch's `weight`).
    /// Default: all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_weights: Option<Vec<f64>>,
    /// Weight of the boundary loss (Kervadec): probability times signed distance in voxels, foreground only. Meant to be added to a
    /// region loss; it can be negative.
    #[serde(default)]
    pub boundary: f64,
    /// How strongly the focal loss looks away from easy voxels.
    #[serde(default = "two")]
    pub gamma: f64,
    /// `sigmoid`: each class for itself on raw logits, the form inside MONAI's DiceFocalLoss whatever its `softmax` flag says.
    /// `softmax`: classes compete.
    #[serde(default)]
    pub focal_form: FocalForm,
    /// Whether Dice and focal loss count the background class too.
    #[serde(default)]
    pub include_background: bool,
    /// Added above and below the Dice fraction.
    #[serde(default = "smooth")]
    pub smooth: f64,
    /// Weight of each head with deep supervision, full resolution first; they are divided by their sum. Default: 1, ½, ¼, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_weights: Option<Vec<f64>>,
}

/// The two focal losses that MONAI has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FocalForm {
    #[default]
    Sigmoid,
    Softmax,
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

fn two() -> f64 {
    2.0
}

fn smooth() -> f64 {
    1e-5
}

impl Default for Loss {
    /// Dice and cross-entropy, equally weighted: nnU-Net's loss.
    fn default() -> Self {
        Self {
            dice: 1.0,
            focal: 0.0,
            generalised_dice: 0.0,
            tversky: 0.0,
            alpha: half(),
            beta: half(),
            jaccard: false,
            batch: false,
            cross_entropy: 1.0,
            class_weights: None,
            boundary: 0.0,
            gamma: two(),
            focal_form: FocalForm::Sigmoid,
            include_background: false,
            smooth: smooth(),
            head_weights: None,
        }
    }
}

impl Loss {
    /// What is wrong or doubtful for `classes` classes (background included) and `heads` heads (1 without deep supervision).
    pub fn findings(&self, classes: usize, heads: usize) -> Vec<Finding> {
        let mut out = Vec::new();
        let weights = [
            ("dice", self.dice),
            ("focal", self.focal),
            ("cross_entropy", self.cross_entropy),
            ("generalised_dice", self.generalised_dice),
            ("tversky", self.tversky),
            ("boundary", self.boundary),
        ];
        for (name, w) in weights {
            if !(w >= 0.0 && w.is_finite()) {
                out.push(Finding::error(&format!("loss.{name}"), format!("its weight is {w}"), "give 0 or more"));
            }
        }
        if weights.iter().all(|(_, w)| *w == 0.0) {
            out.push(Finding::error("loss", "every loss has weight 0", "give one a weight, such as dice: 0.7, focal: 0.3"));
        } else if weights[..5].iter().all(|(_, w)| *w == 0.0) {
            out.push(Finding::warning("loss.boundary", "a boundary loss alone does not train", "add dice or cross_entropy"));
        }
        for (name, v) in [("alpha", self.alpha), ("beta", self.beta)] {
            if !(v >= 0.0 && v.is_finite()) || self.alpha + self.beta <= 0.0 {
                out.push(Finding::error(
                    &format!("loss.{name}"),
                    format!("{name} is {v}"),
                    "give 0 or more to both and more than 0 to one; ½ and ½ is Dice",
                ));
            }
        }
        if let Some(w) = &self.class_weights
            && (w.len() < 2 || w.iter().any(|v| !(*v >= 0.0 && v.is_finite())) || w.iter().sum::<f64>() <= 0.0)
        {
            let help = "give one number of 0 or more a class, background first";
            out.push(Finding::error("loss.class_weights", format!("the weights are {w:?}"), help));
        }
        if !(self.gamma >= 0.0) {
            out.push(Finding::error("loss.gamma", format!("gamma is {}", self.gamma), "give 0 or more, usually 2"));
        }
        if !(self.smooth > 0.0) {
            out.push(Finding::error("loss.smooth", format!("smooth is {}", self.smooth), "give a small number above 0, MONAI uses 1e-5"));
        }
        if self.focal > 0.0 && self.focal_form == FocalForm::Softmax && !self.include_background && classes == 2 {
            out.push(Finding::error(
                "loss.focal_form",
                "softmax over the one class that is left without the background is always 1, so this loss is always 0",
                "use focal_form: sigmoid or include_background: true",
            ));
        }
        if let Some(w) = &self.head_weights
            && (w.len() != heads || w.iter().any(|v| !(*v >= 0.0 && v.is_finite())) || w.iter().sum::<f64>() <= 0.0)
        {
            out.push(Finding::error(
                "loss.head_weights",
                format!("{w:?} for {heads} head(s)"),
                "give one weight a head, full resolution first (deep_supervision + 1 of them)",
            ));
        }
        out
    }

    /// Weights of `heads` heads, adding up to 1.
    pub fn head_weights(&self, heads: usize) -> Vec<f64> {
        let raw = self.head_weights.clone().unwrap_or_else(|| (0..heads).map(|h| 0.5f64.powi(h as i32)).collect());
        let sum: f64 = raw.iter().sum();
        raw.iter().map(|w| w / sum).collect()
    }

    /// The loss of one head in tensor operations, for devices that have no kernel of ours. [1]
    fn composed(&self, logits: Tensor<5>, head: &HeadLoss) -> Tensor<1> {
        let (n, classes, positions) = (head.n, head.classes, head.positions);
        let device = logits.device();
        let constant = |v: &[f32], c: usize| Tensor::<3>::from_data(TensorData::new(v.to_vec(), [n, c, positions]), &device);
        let logits = logits.reshape([n, classes, positions]);
        let truth = constant(&head.one_hot, classes);
        let first = if self.include_background { 0 } else { 1 };
        let kept = |t: &Tensor<3>| t.clone().slice(s![.., first..classes, ..]);
        let mut terms: Vec<Tensor<1>> = Vec::new();
        let probabilities = (self.has_overlap() || self.boundary > 0.0).then(|| softmax(logits.clone(), 1));
        if self.has_overlap() {
            let p = probabilities.as_ref().expect("made for them");
            terms.push(self.overlap(kept(p), kept(&truth), head));
        }
        if self.focal > 0.0 {
            let (x, g) = (kept(&logits), kept(&truth));
            let focal = match self.focal_form {
                FocalForm::Sigmoid => focal_sigmoid(x, g, self.gamma),
                FocalForm::Softmax => focal_softmax(x, g, self.gamma),
            };
            terms.push(focal * self.focal);
        }
        if self.cross_entropy > 0.0 {
            let weighted = match &self.class_weights {
                None => truth,
                Some(w) => {
                    let w: Vec<f32> = w.iter().map(|w| *w as f32).collect();
                    truth * Tensor::<3>::from_data(TensorData::new(w, [1, classes, 1]), &device)
                }
            };
            let ce = (log_softmax(logits, 1) * weighted).sum() * (-1.0 / head.entropy_weight());
            terms.push(ce * self.cross_entropy);
        }
        if self.boundary > 0.0 {
            let p = probabilities.expect("made for boundary").slice(s![.., 1..classes, ..]);
            let distance = constant(head.distance.as_ref().expect("made where the boundary loss has a weight"), classes - 1);
            terms.push((p * distance).mean() * self.boundary);
        }
        terms.into_iter().reduce(|a, b| a + b).expect("findings refuse a loss without terms") * head.weight
    }

    /// Whether a loss has a weight that is made of overlaps.
    pub(super) fn has_overlap(&self) -> bool {
        self.dice > 0.0 || self.generalised_dice > 0.0 || self.tversky > 0.0
    }

    /// The losses of [`overlap`](super::overlap) in tensor operations. Maps are [n, class, voxel] of the classes that count.
    fn overlap(&self, p: Tensor<3>, g: Tensor<3>, head: &HeadLoss) -> Tensor<1> {
        // [group, class, 1]
        let sum = |t: Tensor<3>| {
            let t = t.sum_dim(2);
            if self.batch { t.sum_dim(0) } else { t }
        };
        let (both, p, g) = (sum(p.clone() * g.clone()), sum(p), sum(g));
        let smooth = self.smooth / head.box_voxels as f64;
        let loss = |above: Tensor<3>, whole: Tensor<3>| (above / whole).mean() * -1.0 + 1.0;
        let mut terms: Vec<Tensor<1>> = Vec::new();
        if self.dice > 0.0 {
            let either = p.clone() + g.clone();
            let whole = if self.jaccard { (either - both.clone()) * 2.0 } else { either };
            terms.push(loss(both.clone() * 2.0 + smooth, whole + smooth) * self.dice);
        }
        if self.tversky > 0.0 {
            let whole = both.clone() * (1.0 - self.alpha - self.beta) + p.clone() * self.alpha + g.clone() * self.beta;
            terms.push(loss(both.clone() + smooth, whole + smooth) * self.tversky);
        }
        if self.generalised_dice > 0.0 {
            let weights: Vec<f32> = head.truth_sums().iter().flat_map(|sums| volume_weights(sums)).map(|w| w as f32).collect();
            let weights = Tensor::<3>::from_data(TensorData::new(weights, both.dims()), &both.device());
            let smooth = self.smooth * head.box_voxels as f64;
            let of = |t: Tensor<3>| (t * weights.clone()).sum_dim(1);
            terms.push(loss(of(both) * 2.0 + smooth, of(p + g) + smooth) * self.generalised_dice);
        }
        terms.into_iter().reduce(|a, b| a + b).expect("one of them has a weight")
    }

    /// The head-weighted mean over all heads, [1].
    pub(super) fn of_heads(&self, heads: Vec<Tensor<5>>, batch: &Labels) -> Tensor<1> {
        let weights = self.head_weights(heads.len());
        let distance = (self.boundary > 0.0).then(|| target::signed_distance(batch.labels, batch.n, batch.classes, batch.size));
        heads
            .into_iter()
            .zip(weights)
            .filter(|(_, w)| *w > 0.0)
            .map(|(logits, w)| {
                let head = self.head(batch, logits.dims(), w, distance.as_deref());
                if kernels::is_on_cpu(&logits) { kernels::head_loss(logits, head) } else { self.composed(logits, &head) }
            })
            .reduce(|a, b| a + b)
            .expect("there is a head with a weight")
    }

    /// What a head whose logits have `shape` is measured with.
    fn head(&self, batch: &Labels, shape: [usize; 5], weight: f64, distance: Option<&[f32]>) -> HeadLoss {
        let [n, classes, z, y, x] = shape;
        let factor = batch.size.zip(Zyx::new(z, y, x)).map(|(full, small)| full / small);
        HeadLoss {
            loss: self.clone(),
            weight,
            n,
            classes,
            positions: z * y * x,
            box_voxels: factor.count(),
            one_hot: Arc::new(target::one_hot(batch.labels, n, classes, batch.size, factor)),
            distance: distance.map(|d| Arc::new(target::average(d, n * (classes - 1), batch.size, factor))),
        }
    }
}

/// The class ids of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    /// [n, z, y, x], each below `classes`.
    pub labels: &'a [u8],
    pub n: usize,
    pub classes: usize,
    pub size: Zyx<usize>,
}

/// Mean over all elements of (1 − q)^γ · e, e the binary cross-entropy with logits and q = exp(−e).
fn focal_sigmoid(x: Tensor<3>, g: Tensor<3>, gamma: f64) -> Tensor<1> {
    // ln σ(x) and ln σ(−x) = ln σ(x) − x.
    let yes = log_sigmoid(x.clone());
    let no = yes.clone() - x;
    let on_truth = (no.clone() * gamma).exp() * yes.clone();
    let on_rest = (yes * gamma).exp() * no;
    let of_rest = g.clone() * -1.0 + 1.0;
    (on_truth * g + on_rest * of_rest).mean() * -1.0
}

/// Mean over all elements of −(1 − p)^γ · ln p · g, p the softmax over the classes given.
fn focal_softmax(x: Tensor<3>, g: Tensor<3>, gamma: f64) -> Tensor<1> {
    let log_p = log_softmax(x, 1);
    let miss = log_p.clone().exp() * -1.0 + 1.0;
    let factor = if gamma == 2.0 { miss.clone() * miss } else { miss.clamp_min(1e-12).powf_scalar(gamma) };
    (factor * log_p * g).mean() * -1.0
}

/// Loss of full-resolution logits and its gradient, [n, class, z, y, x] both.
pub fn value_and_gradient(loss: &Loss, logits: &[f32], batch: &Labels, device: &Device) -> Result<(f32, Vec<f32>), Error> {
    let Zyx { z, y, x } = batch.size;
    let shape = [batch.n, batch.classes, z, y, x];
    if logits.len() != shape.iter().product::<usize>() || batch.labels.len() != batch.n * batch.size.count() {
        return Err(Error::Model { why: format!("{} logits and {} labels for shape {shape:?}", logits.len(), batch.labels.len()) });
    }
    if let Some(bad) = batch.labels.iter().find(|l| **l as usize >= batch.classes) {
        return Err(Error::Model { why: format!("a label is {bad}, but there are {} classes", batch.classes) });
    }
    let d = device.training();
    let leaf = Tensor::<5>::from_data(TensorData::new(logits.to_vec(), shape), &d).require_grad();
    let value = loss.of_heads(vec![leaf.clone()], batch);
    let mut grads = value.backward();
    let gradient = leaf.grad_remove(&mut grads).ok_or_else(|| Error::Model { why: "the loss does not depend on the logits".into() })?;
    Ok((value.into_scalar::<f32>(), super::weights::values(gradient)?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kernel_and_tensor_operations_agree() {
        let (n, classes, full) = (2, 3, Zyx::new(4, 6, 8));
        let labels: Vec<u8> = (0..n * full.count()).map(|v| (v * 7 % 11 % 3) as u8).collect();
        let batch = Labels { labels: &labels, n, classes, size: full };
        let d = Device::cpu().training();
        for config in [
            json!({ "dice": 0.7, "focal": 0.3 }),
            json!({ "focal": 1, "gamma": 1.5, "include_background": true }),
            json!({ "focal": 1, "focal_form": "softmax" }),
            json!({ "focal": 1, "focal_form": "softmax", "gamma": 0.5, "include_background": true }),
            json!({ "dice": 1, "cross_entropy": 1, "include_background": true }),
            json!({ "dice": 0.5, "boundary": 0.2 }),
            json!({ "dice": 1, "jaccard": true, "batch": true }),
            json!({ "generalised_dice": 0.6, "tversky": 0.4, "alpha": 0.3, "beta": 0.7 }),
            json!({ "generalised_dice": 1, "batch": true, "include_background": true }),
            json!({ "tversky": 1, "alpha": 1, "beta": 0, "batch": true }),
            json!({ "cross_entropy": 1, "class_weights": [0.2, 1, 3] }),
        ] {
            let loss: Loss = serde_json::from_value(config.clone()).unwrap();
            let distance = target::signed_distance(&labels, n, classes, full);
            for factor in [1, 2] {
                let shape = [n, classes, 4 / factor, 6 / factor, 8 / factor];
                let logits: Vec<f32> = (0..shape.iter().product()).map(|v: usize| (v * 37 % 101) as f32 / 12.0 - 4.0).collect();
                let head = loss.head(&batch, shape, 0.4, (loss.boundary > 0.0).then_some(&distance[..]));
                let leaf = Tensor::<5>::from_data(TensorData::new(logits.clone(), shape), &d).require_grad();
                let value = loss.composed(leaf.clone(), &head);
                let want = super::super::weights::values(leaf.grad(&value.backward()).unwrap()).unwrap();
                let (got, gradient) = head.value_and_gradient(&logits);
                let value = value.into_scalar::<f32>();
                assert!((got - value).abs() < 1e-5 * value.abs().max(0.1), "{config} {factor}: {got} instead of {value}");
                let top = want.iter().fold(0f32, |m, v| m.max(v.abs()));
                for (a, b) in gradient.iter().zip(&want) {
                    assert!((a - b).abs() < 2e-5 * top, "{config} {factor}: gradient {a} instead of {b}");
                }
            }
        }
    }

    #[test]
    fn overlaps_and_weights_are_those_of_monai_and_torch() {
        let (n, classes, size) = (2, 3, Zyx::new(2, 3, 4));
        let logits: Vec<f32> = (0..144).map(|i: usize| (i * 7919 % 1009) as f32 / 250.0 - 2.0).collect();
        let labels: Vec<u8> = (0..48).map(|i: usize| if i < 24 { i * 31 % 7 % 3 } else { i * 17 % 5 % 2 } as u8).collect();
        // MONAI 1.6.1 and torch 2.15 in float64: the loss and its gradient at logits 0, 5, 30, 71, 100 and 143.
        let all: [(serde_json::Value, f32, [f32; 6]); 9] = [
            (json!({ "generalised_dice": 1 }), 0.8066537, [-0.0001056, 0.0001689, -0.0053041, 0.0000269, -0.0065943, 0.0000500]),
            (
                json!({ "generalised_dice": 1, "include_background": true }),
                0.742323,
                [-0.0004083, 0.0001316, -0.0044898, 0.0001041, -0.0050441, 0.0001413],
            ),
            (
                json!({ "generalised_dice": 1, "batch": true }),
                0.8736165,
                [-0.0001599, -0.0000689, -0.0023141, 0.0002230, -0.0022178, 0.0002230],
            ),
            (
                json!({ "tversky": 1, "alpha": 0.3, "beta": 0.7 }),
                0.8364886,
                [-0.0000731, 0.0002184, -0.0056622, 0.0000263, -0.0046650, -0.0001326],
            ),
            (
                json!({ "tversky": 1, "alpha": 0.3, "beta": 0.7, "batch": true, "include_background": true }),
                0.7108336,
                [-0.0005399, 0.0001943, -0.0031958, 0.0001197, -0.0039792, 0.0001197],
            ),
            (json!({ "dice": 1, "batch": true }), 0.822728, [-0.0001044, 0.0001444, -0.0045147, -0.0000649, -0.0052094, -0.0000649]),
            (
                json!({ "dice": 1, "batch": true, "include_background": true }),
                0.70271,
                [-0.0005251, 0.0002636, -0.0030414, 0.0000729, -0.0040360, 0.0000729],
            ),
            (json!({ "dice": 1, "jaccard": true }), 0.9067533, [-0.0000634, 0.0000958, -0.0030970, 0.0000234, -0.0032504, -0.0001723]),
            (
                json!({ "cross_entropy": 1, "class_weights": [0.2, 1, 3] }),
                1.9924658,
                [-0.0049884, 0.0010996, -0.0213256, 0.0003015, -0.0061464, 0.0003015],
            ),
        ];
        for (config, value, gradient) in all {
            let loss: Loss = serde_json::from_value(config.clone()).unwrap();
            let batch = Labels { labels: &labels, n, classes, size };
            let (got, slopes) = value_and_gradient(&loss, &logits, &batch, &Device::cpu()).unwrap();
            assert!((got - value).abs() < 2e-6, "{config}: {got} instead of {value}");
            for (at, want) in [0, 5, 30, 71, 100, 143].into_iter().zip(gradient) {
                assert!((slopes[at] - want).abs() < 1e-6, "{config}: {} instead of {want} at {at}", slopes[at]);
            }
        }
    }

    #[test]
    fn a_coarse_head_costs_what_its_copy_at_full_size_costs() {
        let (full, shape) = (Zyx::splat(4), [1, 2, 2, 2, 2]);
        let labels: Vec<u8> = (0..64).map(|v| (v % 5 == 0) as u8).collect();
        let batch = Labels { labels: &labels, n: 1, classes: 2, size: full };
        let loss: Loss = serde_json::from_value(
            json!({ "dice": 0.5, "focal": 1, "cross_entropy": 0.3, "generalised_dice": 0.4, "tversky": 1, "alpha": 0.2 }),
        )
        .unwrap();
        let coarse: Vec<f32> = (0..16).map(|v| v as f32 / 4.0 - 2.0).collect();
        let copied: Vec<f32> = (0..128).map(|v| coarse[v / 64 * 8 + v / 32 % 2 * 4 + v / 8 % 2 * 2 + v / 2 % 2]).collect();
        let (a, _) = loss.head(&batch, shape, 1.0, None).value_and_gradient(&coarse);
        let (b, _) = loss.head(&batch, [1, 2, 4, 4, 4], 1.0, None).value_and_gradient(&copied);
        assert!((a - b).abs() < 1e-6, "{a} instead of {b}");
    }

    #[test]
    fn traps_are_findings() {
        let loss = |v| serde_json::from_value::<Loss>(v).unwrap();
        assert!(loss(json!({ "dice": 0.7, "focal": 0.3 })).findings(3, 2).is_empty());
        assert_eq!(loss(json!({})).findings(3, 1)[0].field, "loss");
        assert_eq!(loss(json!({ "focal": 1, "focal_form": "softmax" })).findings(2, 1)[0].field, "loss.focal_form");
        assert_eq!(loss(json!({ "dice": 1, "head_weights": [1, 0.5] })).findings(3, 1)[0].field, "loss.head_weights");
        assert!(loss(json!({ "boundary": 1 })).findings(3, 1)[0].is_warning);
    }
}
