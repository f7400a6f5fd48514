//! The loss of a network's heads: what each is compared with, and who computes it.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use voxmill_schemas::geometry::Zyx;

use super::Loss;
use crate::error::Error;
use crate::model::device::Device;
use crate::model::kernels::{self, HeadLoss};
use crate::model::target::{self, Distances};

/// The class ids of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    /// [n, z, y, x], each below `classes` or `ignore`.
    pub labels: &'a [u8],
    pub n: usize,
    pub classes: usize,
    pub size: Zyx<usize>,
    /// Voxels of this id count nowhere: they enter no sum and no mean divides by them (nnU-Net's ignore label, `ignore_index` of PyTorch and MONAI; MONAI's
    /// focal loss alone then divides by voxels, not by voxels and classes).
    pub ignore: Option<u8>,
}

impl Labels<'_> {
    /// The first id that is neither a class nor ignored.
    pub fn unknown(&self) -> Option<u8> {
        self.labels.iter().copied().find(|l| *l as usize >= self.classes && Some(*l) != self.ignore)
    }
}

/// What the means of a step are taken over: the whole batch, also where it goes through the network in parts. The losses of the parts add up to that of the
/// batch, but for overlaps over the batch (`batch: true`), which are then overlaps over each part.
#[derive(Clone, Debug, PartialEq)]
pub struct Whole {
    pub n: usize,
    pub parts: usize,
    /// Voxels of each class in the batch.
    pub class_voxels: Vec<f64>,
}

impl Whole {
    pub fn of(batch: &Labels, parts: usize) -> Self {
        let mut counts = [0u64; 256];
        batch.labels.iter().for_each(|l| counts[*l as usize] += 1);
        if let Some(ignored) = batch.ignore {
            counts[ignored as usize] = 0;
        }
        Self { n: batch.n, parts, class_voxels: counts[..batch.classes.min(256)].iter().map(|n| *n as f64).collect() }
    }
}

impl Loss {
    /// The head-weighted sum over all heads, [1]. Logits may be smaller than the labels by whole factors: they count as if copied up.
    pub(in crate::model) fn of_heads(&self, heads: Vec<Tensor<5>>, batch: &Labels, whole: &Arc<Whole>) -> Tensor<1> {
        let weights = self.head_weights(heads.len());
        let distances = Distances::of(self, batch);
        heads
            .into_iter()
            .zip(weights)
            .filter(|(_, w)| *w > 0.0)
            .map(|(logits, w)| {
                let head = self.head((batch, whole), logits.dims(), w, &distances);
                if kernels::is_on_cpu(&logits) { kernels::head_loss(logits, head) } else { self.composed(logits, &head) }
            })
            .reduce(|a, b| a + b)
            .expect("there is a head with a weight")
    }

    /// What a head whose logits have `shape` is measured with.
    pub(super) fn head(&self, (batch, whole): (&Labels, &Arc<Whole>), shape: [usize; 5], weight: f64, distances: &Distances) -> HeadLoss {
        let [n, classes, z, y, x] = shape;
        let small = Zyx::new(z, y, x);
        let factor = batch.size.zip(small).map(|(full, small)| full / small);
        let one_hot = target::one_hot(batch, factor);
        let valid = batch.ignore.map(|_| target::valid(&one_hot, n, classes));
        let kept = classes - self.first_class();
        HeadLoss {
            loss: self.clone(),
            weight,
            whole: whole.clone(),
            n,
            classes,
            positions: small.count(),
            box_voxels: factor.count(),
            one_hot: Arc::new(one_hot),
            valid: valid.map(Arc::new),
            signed: distances.signed.as_deref().map(|d| Arc::new(target::average(d, n * kept, batch.size, factor))),
            rims: distances.rims.clone().map(|rims| (rims, factor)),
        }
    }
}

/// Loss of full-resolution logits and its gradient, [n, class, z, y, x] both. The ramps stand where they begin.
pub fn value_and_gradient(loss: &Loss, logits: &[f32], batch: &Labels, device: &Device) -> Result<(f32, Vec<f32>), Error> {
    let Zyx { z, y, x } = batch.size;
    let shape = [batch.n, batch.classes, z, y, x];
    if logits.len() != shape.iter().product::<usize>() || batch.labels.len() != batch.n * batch.size.count() {
        return Err(Error::Model { why: format!("{} logits and {} labels for shape {shape:?}", logits.len(), batch.labels.len()) });
    }
    if let Some(bad) = batch.unknown() {
        return Err(Error::Model { why: format!("a label is {bad}, but there are {} classes", batch.classes) });
    }
    let d = device.training();
    let leaf = Tensor::<5>::from_data(TensorData::new(logits.to_vec(), shape), &d).require_grad();
    let value = loss.at(0).of_heads(vec![leaf.clone()], batch, &Arc::new(Whole::of(batch, 1)));
    let mut grads = value.backward();
    let gradient = leaf.grad_remove(&mut grads).ok_or_else(|| Error::Model { why: "the loss does not depend on the logits".into() })?;
    Ok((value.into_scalar::<f32>(), crate::model::weights::values(gradient)?))
}
