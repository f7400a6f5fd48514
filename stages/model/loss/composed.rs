//! The losses in tensor operations, for devices that have no kernel of ours: the formulas of `kernels/loss.rs` once more.

use burn::tensor::activation::{log_sigmoid, log_softmax, softmax};
use burn::tensor::{Tensor, TensorData, s};

use super::{FocalForm, Loss};
use crate::model::kernels::HeadLoss;
use crate::model::overlap::volume_weights;
use crate::model::weights;

impl Loss {
    /// The loss of one head, [1].
    pub(super) fn composed(&self, logits: Tensor<5>, head: &HeadLoss) -> Tensor<1> {
        let (n, classes, positions) = (head.n, head.classes, head.positions);
        let device = logits.device();
        let constant = |v: &[f32], c: usize| Tensor::<3>::from_data(TensorData::new(v.to_vec(), [n, c, positions]), &device);
        let per_class = |v: Vec<f64>| {
            let v: Vec<f32> = v.into_iter().map(|v| v as f32).collect();
            let count = v.len();
            Tensor::<3>::from_data(TensorData::new(v, [1, count, 1]), &device)
        };
        let logits = logits.reshape([n, classes, positions]);
        let truth = constant(&head.one_hot, classes);
        let valid = match &head.valid {
            Some(v) => constant(v, 1),
            None => Tensor::<3>::ones([n, 1, positions], &device),
        };
        let first = self.first_class();
        let kept = |t: &Tensor<3>| t.clone().slice(s![.., first..classes, ..]);
        let mut terms: Vec<Tensor<1>> = Vec::new();
        let needs_softmax = self.has_overlap() || self.boundary > 0.0 || self.hausdorff > 0.0;
        let p = needs_softmax.then(|| kept(&softmax(logits.clone(), 1)));
        if self.has_overlap() {
            let p = p.clone().expect("made for it");
            let weights = per_class((first..classes).map(|c| self.balance(c, classes)).collect());
            terms.push(self.overlap(p, kept(&truth), valid.clone(), weights, head));
        }
        if self.focal > 0.0 {
            let factors: Vec<[f64; 2]> = (first..classes).map(|c| self.focal_factors(c, classes)).collect();
            let [of_truth, of_rest] = [0, 1].map(|i| per_class(factors.iter().map(|f| f[i]).collect()));
            let (x, g) = (kept(&logits), kept(&truth));
            let sum = match self.focal_form {
                FocalForm::Sigmoid => {
                    let rest = (valid.clone() - g.clone()) * of_rest;
                    focal_sigmoid(x, g * of_truth, rest, self.gamma)
                }
                FocalForm::Softmax => focal_softmax(x, g * of_truth, self.gamma),
            };
            terms.push(sum * (self.focal / head.elements(false)));
        }
        if self.cross_entropy > 0.0 {
            let smoothing = self.label_smoothing;
            let spread = truth * (1.0 - smoothing) + valid * (smoothing / classes as f64);
            let weighted = spread * per_class((0..classes).map(|c| self.class_weight(c)).collect());
            let ce = (log_softmax(logits, 1) * weighted).sum() * (-1.0 / head.entropy_divisor());
            terms.push(ce * self.cross_entropy);
        }
        if let Some(signed) = &head.signed {
            let p = p.clone().expect("made for boundary");
            terms.push((p * constant(signed, classes - first)).sum() * (self.boundary / head.elements(self.batch)));
        }
        if head.rims.is_some() {
            let p = p.expect("made for Hausdorff");
            let seen = weights::values(p.clone().detach()).expect("probabilities are float32");
            let maps = head.hausdorff_maps(|b, class| &seen[(b * (classes - first) + class) * positions..][..positions]);
            let (all, on_truth) = (constant(&maps.all, classes - first), constant(&maps.on_truth, classes - first));
            let sum = (p.clone() * p.clone() * all - p * on_truth.clone() * 2.0 + on_truth).sum();
            terms.push(sum * (self.hausdorff / head.elements(self.batch)));
        }
        let sum = terms.into_iter().reduce(|a, b| a + b).expect("findings refuse a loss without terms");
        sum * head.weight
    }

    /// The losses of [`overlap`](crate::model::overlap). Maps are [n, class, voxel] of the classes that count, `valid` [n, 1, voxel].
    fn overlap(&self, p: Tensor<3>, g: Tensor<3>, valid: Tensor<3>, weights: Tensor<3>, head: &HeadLoss) -> Tensor<1> {
        // [group, class, 1]
        let sum = |t: Tensor<3>| {
            let t = t.sum_dim(2);
            if self.batch { t.sum_dim(0) } else { t }
        };
        let counted = p.clone() * valid;
        let squares = self.squared.then(|| sum(p.clone() * counted.clone()));
        let (both, p, g) = (sum(p * g.clone()), sum(counted), sum(g));
        let share = head.box_voxels as f64;
        let (above, below) = (self.smooth_above() / share, self.smooth / share);
        let groups = head.groups();
        let loss = |above: Tensor<3>, whole: Tensor<3>| (above / whole) * -1.0 + 1.0;
        let mut terms: Vec<Tensor<1>> = Vec::new();
        let per_class = head.of_sum(groups * both.dims()[1] as f64);
        if self.dice > 0.0 {
            let either = squares.unwrap_or(p.clone()) + g.clone();
            let whole = if self.jaccard { (either - both.clone()) * 2.0 } else { either };
            terms.push((loss(both.clone() * 2.0 + above, whole + below) * weights).sum() * (self.dice / per_class));
        }
        if self.tversky > 0.0 {
            let whole = both.clone() * (1.0 - self.alpha - self.beta) + p.clone() * self.alpha + g.clone() * self.beta;
            terms.push(loss(both.clone() + above, whole + below).sum() * (self.tversky / per_class));
        }
        if self.generalised_dice > 0.0 {
            let of_volume: Vec<f32> =
                head.truth_sums().iter().flat_map(|sums| volume_weights(self.generalised_weights, sums)).map(|w| w as f32).collect();
            let of_volume = Tensor::<3>::from_data(TensorData::new(of_volume, both.dims()), &both.device());
            let scale = self.generalised_weights.smoothing(share);
            let (above, below) = (self.smooth_above() * scale, self.smooth * scale);
            let of = |t: Tensor<3>| (t * of_volume.clone()).sum_dim(1);
            let sum = loss(of(both) * 2.0 + above, of(p + g) + below).sum();
            terms.push(sum * (self.generalised_dice / head.of_sum(groups)));
        }
        terms.into_iter().reduce(|a, b| a + b).expect("one of them has a weight")
    }
}

/// Sum of (1 − q)^γ · e, e the binary cross-entropy with logits and q = exp(−e); `g` and `rest` say what both sides count.
fn focal_sigmoid(x: Tensor<3>, g: Tensor<3>, rest: Tensor<3>, gamma: f64) -> Tensor<1> {
    // ln σ(x) and ln σ(−x) = ln σ(x) − x.
    let yes = log_sigmoid(x.clone());
    let no = yes.clone() - x;
    let on_truth = (no.clone() * gamma).exp() * yes.clone();
    let on_rest = (yes * gamma).exp() * no;
    (on_truth * g + on_rest * rest).sum() * -1.0
}

/// Sum of −(1 − p)^γ · ln p · g, p the softmax over the classes given.
fn focal_softmax(x: Tensor<3>, g: Tensor<3>, gamma: f64) -> Tensor<1> {
    let log_p = log_softmax(x, 1);
    let miss = log_p.clone().exp() * -1.0 + 1.0;
    let factor = if gamma == 2.0 { miss.clone() * miss } else { miss.clamp_min(1e-12).powf_scalar(gamma) };
    (factor * log_p * g).sum() * -1.0
}
