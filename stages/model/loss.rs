//! Losses for segmentation, with MONAI's formulas and argument names: Dice, focal (sigmoid and softmax form), cross-entropy, boundary.
//! Logits are [n, class, z, y, x], targets one-hot maps of the same shape that may be averages over boxes of voxels (see `target`).

use std::sync::Arc;

use burn::tensor::activation::{log_sigmoid, log_softmax, softmax};
use burn::tensor::{Tensor, TensorData, s};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Zyx;

use super::device::Device;
use super::kernels::{self, HeadLoss};
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
    /// Weight of the cross-entropy over all classes, background included.
    #[serde(default)]
    pub cross_entropy: f64,
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
            cross_entropy: 1.0,
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
        let weights = [("dice", self.dice), ("focal", self.focal), ("cross_entropy", self.cross_entropy), ("boundary", self.boundary)];
        for (name, w) in weights {
            if !(w >= 0.0 && w.is_finite()) {
                out.push(Finding::error(&format!("loss.{name}"), format!("its weight is {w}"), "give 0 or more"));
            }
        }
        if weights.iter().all(|(_, w)| *w == 0.0) {
            out.push(Finding::error("loss", "every loss has weight 0", "give one a weight, such as dice: 0.7, focal: 0.3"));
        } else if weights[..3].iter().all(|(_, w)| *w == 0.0) {
            out.push(Finding::warning("loss.boundary", "a boundary loss alone does not train", "add dice or cross_entropy"));
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
        let probabilities = (self.dice > 0.0 || self.boundary > 0.0).then(|| softmax(logits.clone(), 1));
        if self.dice > 0.0 {
            let p = probabilities.as_ref().expect("made for dice");
            terms.push(dice(kept(p), kept(&truth), head.box_voxels, self.smooth) * self.dice);
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
            let ce = (log_softmax(logits, 1) * truth).sum() * (-1.0 / (n * positions) as f64);
            terms.push(ce * self.cross_entropy);
        }
        if self.boundary > 0.0 {
            let p = probabilities.expect("made for boundary").slice(s![.., 1..classes, ..]);
            let distance = constant(head.distance.as_ref().expect("made where the boundary loss has a weight"), classes - 1);
            terms.push((p * distance).mean() * self.boundary);
        }
        terms.into_iter().reduce(|a, b| a + b).expect("findings refuse a loss without terms") * head.weight
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

/// 1 − (2·Σpg + ε) / (Σp + Σg + ε) for each sample and class, then the mean. Maps are [n, class, voxel].
fn dice(p: Tensor<3>, g: Tensor<3>, box_voxels: usize, smooth: f64) -> Tensor<1> {
    let smooth = smooth / box_voxels as f64;
    let both = (p.clone() * g.clone()).sum_dim(2) * 2.0 + smooth;
    let either = p.sum_dim(2) + g.sum_dim(2) + smooth;
    (both / either).mean() * -1.0 + 1.0
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
    fn a_coarse_head_costs_what_its_copy_at_full_size_costs() {
        let (full, shape) = (Zyx::splat(4), [1, 2, 2, 2, 2]);
        let labels: Vec<u8> = (0..64).map(|v| (v % 5 == 0) as u8).collect();
        let batch = Labels { labels: &labels, n: 1, classes: 2, size: full };
        let loss: Loss = serde_json::from_value(json!({ "dice": 0.5, "focal": 1, "cross_entropy": 0.3 })).unwrap();
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
