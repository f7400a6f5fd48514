//! One training: a network, its loss, its optimiser. A step takes plain arrays and gives the loss; the loop around it lives elsewhere.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use voxmill_schemas::geometry::Zyx;

use super::device::Device;
use super::dropout::Dropout;
use super::loss::{Labels, Loss, Whole};
use super::net::Net;
use super::optimiser::{self, Grads, Memory, Optimiser, State};
use super::predictor::{Predictor, shape_of};
use super::weights::{self, Weight, Weights};
use super::{Network, predictor};
use crate::error::Error;

/// Names of the files of a checkpoint.
const WEIGHTS: &str = "weights.safetensors";
const OPTIMISER: &str = "optimiser.safetensors";

/// A network in training. Equal seeds and equal batches give equal weights on one kind of CPU, bit for bit, whatever the number of threads.
pub struct Trainer {
    network: Network,
    net: Net,
    loss: Loss,
    /// The loss of the epoch in hand.
    now: Loss,
    optimiser: Optimiser,
    state: State,
    /// Parts that a batch goes through the network in.
    parts: usize,
    /// Voxels of this label count nowhere.
    ignore: Option<u8>,
    seed: u64,
    channels: usize,
    classes: usize,
    device: Device,
}

impl Trainer {
    /// A fresh network, its weights drawn from `seed`. `classes` counts the background.
    pub fn new(
        network: &Network,
        channels: usize,
        classes: usize,
        loss: &Loss,
        optimiser: &Optimiser,
        seed: u64,
        device: &Device,
    ) -> Result<Self, Error> {
        predictor::refuse_errors(loss.findings(Some(classes), network.heads()).into_iter().chain(optimiser.findings()))?;
        let net = predictor::build(network, channels, classes, &device.training())?;
        Ok(Self {
            network: network.clone(),
            net: weights::initialise(net, seed)?,
            loss: loss.clone(),
            now: loss.at(0),
            optimiser: optimiser.clone(),
            state: State::default(),
            parts: 1,
            ignore: None,
            seed,
            channels,
            classes,
            device: device.clone(),
        })
    }

    /// Starts from the weights of a file (ours, MONAI's safetensors or `.pt`) instead of drawn ones; the optimiser forgets.
    pub fn start_from(&mut self, file: &Path) -> Result<(), Error> {
        let found = weights::read(file, predictor::file_limit(&self.net))?;
        self.net = weights::load(self.net.clone(), found, &file.display().to_string())?;
        self.state = State::default();
        Ok(())
    }

    /// Voxels with this label count nowhere from now on.
    pub fn ignore(&mut self, label: Option<u8>) {
        self.ignore = label;
    }

    /// From now on a batch goes through the network in `parts` parts of equal size, whose gradients add up to those of the whole: memory of a small batch,
    /// steps of a large one.
    pub fn accumulate(&mut self, parts: usize) {
        self.parts = parts.max(1);
    }

    /// Sets the weights of the losses to those of `epoch`, from 0.
    pub fn begin_epoch(&mut self, epoch: u64) {
        self.now = self.loss.at(epoch);
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.state.steps
    }

    /// One step; gives the loss before it. A loss that is not finite, or has a gradient that is not (the loss is then NaN), changes no weight.
    /// - images: [n, channel, z, y, x], labels: [n, z, y, x], below `classes`; n is a multiple of the parts of [`accumulate`](Self::accumulate)
    /// - size: a multiple of `Network::divisor`, and `Network::margin` on either side, whose labels are not looked at
    pub fn step(&mut self, images: Vec<f32>, labels: &[u8], n: usize, size: Zyx<usize>, lr: f64) -> Result<f32, Error> {
        let Some((value, grads)) = self.gradients(images, labels, n, size)? else { return Ok(f32::NAN) };
        match self.optimiser.step(self.net.clone(), grads, lr, &mut self.state)? {
            Some(net) => self.net = net,
            None => return Ok(f32::NAN),
        }
        Ok(value)
    }

    /// The patches of a batch, by their place in it, whose loss or gradient is not finite when they go through the network alone.
    pub fn offenders(&self, images: &[f32], labels: &[u8], n: usize, size: Zyx<usize>) -> Result<Vec<usize>, Error> {
        let (pixels, voxels) = (images.len() / n.max(1), size.count());
        let mut out = Vec::new();
        for slot in 0..n {
            let image = images[slot * pixels..][..pixels].to_vec();
            let alone = self.gradients(image, &labels[slot * voxels..][..voxels], 1, size)?;
            if !alone.map(|(_, grads)| grads.norm()).transpose()?.is_some_and(f64::is_finite) {
                out.push(slot);
            }
        }
        Ok(out)
    }

    /// Loss and gradients of a batch; `None` where the loss is not finite.
    fn gradients(&self, images: Vec<f32>, labels: &[u8], n: usize, size: Zyx<usize>) -> Result<Option<(f32, Grads)>, Error> {
        let shape = shape_of(&self.network, images.len(), self.channels, n, size)?;
        let inner = predictor::answered(&self.network, size)?;
        if labels.len() != n * size.count() {
            return Err(Error::Model { why: format!("{} labels for {n} patches of {size} voxels", labels.len()) });
        }
        let labels = within(labels, size, inner);
        let batch = Labels { labels: &labels, n, classes: self.classes, size: inner, ignore: self.ignore };
        if let Some(bad) = batch.unknown() {
            return Err(Error::Model { why: format!("a label is {bad}, but the network has {} classes", self.classes) });
        }
        let parts = if n.is_multiple_of(self.parts) { self.parts } else { 1 };
        let part = n / parts;
        let whole = Arc::new(Whole::of(&batch, parts));
        let device = self.device.training();
        let mut dropout = Dropout::new(self.network.dropout(), self.seed, self.state.steps);
        let (mut value, mut grads) = (0.0, Grads::default());
        let pixels = images.len() / parts;
        let mut left = images;
        for (p, labels) in labels.chunks_exact(part * inner.count()).enumerate() {
            // The whole batch is moved, not copied, where it is one part.
            let rest = if p + 1 < parts { left.split_off(pixels) } else { Vec::new() };
            let images = Tensor::from_data(
                TensorData::new(std::mem::replace(&mut left, rest), [part, shape[1], shape[2], shape[3], shape[4]]),
                &device,
            );
            let heads = self.net.forward_heads(images, &mut dropout);
            let loss = self.now.of_heads(heads, &Labels { labels, n: part, ..batch }, &whole);
            value += weights::values(loss.clone())?[0];
            if !value.is_finite() {
                return Ok(None);
            }
            grads.add(&self.net, loss.backward());
        }
        Ok(Some((value, grads)))
    }

    /// The logits of every head in train mode (dropout off), each [n, class, z, y, x] at the size of the first: coarse heads are copied up by nearest
    /// neighbour as DynUNet does it. Full resolution first.
    pub fn heads(&self, images: Vec<f32>, n: usize, size: Zyx<usize>) -> Result<Vec<Vec<f32>>, Error> {
        let shape = shape_of(&self.network, images.len(), self.channels, n, size)?;
        let images = Tensor::from_data(TensorData::new(images, shape), &self.device.burn);
        let heads = self.net.valid().forward_heads(images, &mut Dropout::off());
        let [.., z, y, x] = heads[0].dims();
        let full = Zyx::new(z, y, x);
        heads
            .into_iter()
            .map(|h| {
                let [_, c, z, y, x] = h.dims();
                Ok(copy_up(&weights::values(h)?, n * c, Zyx::new(z, y, x), full))
            })
            .collect()
    }

    /// The network as it is now, for inference; with `ema` the average of its weights.
    pub fn predictor(&self) -> Predictor {
        let net = optimiser::averaged(self.net.valid(), &self.state);
        Predictor::of(&self.network, net, self.channels, self.classes, &self.device)
    }

    /// Writes `weights.safetensors` and `optimiser.safetensors` into `dir`. Equal states give equal bytes.
    /// Each file is replaced at once; both carry the step count, so a torn pair is found on loading.
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        let mut params = weights::collect(&self.net)?;
        params.insert(STEPS.into(), count(self.state.steps));
        let mut memory = Weights::from([(STEPS.to_string(), count(self.state.steps))]);
        for (name, m) in &self.state.memory {
            let shape = params[name].shape.clone();
            let kept = [("first", Some(&m.first)), ("second", m.second.as_ref()), ("average", m.average.as_ref())];
            for (kind, tensor) in kept.into_iter().filter_map(|(kind, t)| Some((kind, t?))) {
                memory.insert(format!("{kind}.{name}"), Weight { shape: shape.clone(), values: weights::values(tensor.clone())? });
            }
        }
        weights::write(&dir.join(OPTIMISER), &memory)?;
        weights::write(&dir.join(WEIGHTS), &params)
    }

    /// Takes up what `save` wrote; network, channels and classes must be the same.
    pub fn load(&mut self, dir: &Path) -> Result<(), Error> {
        let limit_bytes = predictor::file_limit(&self.net);
        let (weights_path, optimiser_path) = (dir.join(WEIGHTS), dir.join(OPTIMISER));
        let mut params = weights::read(&weights_path, limit_bytes)?;
        let mut memory = weights::read(&optimiser_path, limit_bytes)?;
        let steps = [params.remove(STEPS), memory.remove(STEPS)].map(|s| s.as_ref().and_then(counted));
        let (Some(steps), true) = (steps[0], steps[0] == steps[1]) else {
            return Err(Error::Model { why: format!("{}: weights and optimiser state are not of the same step", dir.display()) });
        };
        let net = weights::load(self.net.clone(), params, &weights_path.display().to_string())?;
        let shapes: Weights = weights::collect(&net)?;
        let mut state = State { steps, ..State::default() };
        let mut found: BTreeMap<String, [Option<Tensor<1>>; 3]> = BTreeMap::new();
        for (name, w) in memory {
            let (kind, param) = name.split_once('.').unwrap_or(("", &name));
            let kind = ["first", "second", "average"].iter().position(|k| *k == kind);
            let (Some(kind), true) = (kind, shapes.get(param).is_some_and(|p| p.shape == w.shape)) else {
                return Err(Error::Model { why: format!("{}: {name} belongs to no parameter of this network", optimiser_path.display()) });
            };
            let length = w.values.len();
            found.entry(param.into()).or_default()[kind] = Some(Tensor::from_data(TensorData::new(w.values, [length]), &self.device.burn));
        }
        for (param, [first, second, average]) in found {
            let Some(first) = first else {
                return Err(Error::Model { why: format!("{}: what is remembered of {param} is not whole", optimiser_path.display()) });
            };
            state.memory.insert(param, Memory { first, second, average });
        }
        (self.net, self.state) = (net, state);
        Ok(())
    }
}

/// The step count stands among the tensors, as three values below 2²² that float32 holds exactly.
const STEPS: &str = "steps";

fn count(steps: u64) -> Weight {
    let part = |i: u32| ((steps >> (22 * i)) & 0x3f_ffff) as f32;
    Weight { shape: vec![3], values: vec![part(0), part(1), part(2)] }
}

fn counted(w: &Weight) -> Option<u64> {
    let [a, b, c] = w.values[..] else { return None };
    [c, b, a].into_iter().try_fold(0u64, |sum, v| (0.0..4194304.0).contains(&v).then_some((sum << 22) | v as u64))
}

/// The middle of labels: [n, size] → [n, inner].
fn within(labels: &[u8], size: Zyx<usize>, inner: Zyx<usize>) -> Cow<'_, [u8]> {
    if size == inner {
        return Cow::Borrowed(labels);
    }
    let first = size.zip(inner).map(|(n, i)| (n - i) / 2);
    let mut out = Vec::with_capacity(labels.len());
    for labels in labels.chunks_exact(size.count()) {
        for z in 0..inner.z {
            for y in 0..inner.y {
                let row = ((first.z + z) * size.y + first.y + y) * size.x + first.x;
                out.extend_from_slice(&labels[row..row + inner.x]);
            }
        }
    }
    Cow::Owned(out)
}

/// Nearest neighbour, whole factors: [maps, small] → [maps, full].
fn copy_up(values: &[f32], maps: usize, small: Zyx<usize>, full: Zyx<usize>) -> Vec<f32> {
    let factor = full.zip(small).map(|(f, s)| f / s);
    let mut out = Vec::with_capacity(maps * full.count());
    for map in values.chunks_exact(small.count()).take(maps) {
        for z in 0..full.z {
            for y in 0..full.y {
                let row = (z / factor.z * small.y + y / factor.y) * small.x;
                out.extend((0..full.x).map(|x| map[row + x / factor.x]));
            }
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn trainer(dropout: f64, seed: u64) -> Trainer {
        with(dropout, seed, json!({ "lr": 0.01, "weight_decay": 0.01, "clip_norm": 1.0 }))
    }

    fn with(dropout: f64, seed: u64, optimiser: serde_json::Value) -> Trainer {
        let network = json!({
            "kind": "dynunet", "filters": [4, 8, 12], "kernel_size": [[1, 3, 3], 3, 3], "strides": [1, [1, 2, 2], 2],
            "res_block": true, "trans_bias": true, "deep_supervision": 1, "dropout": dropout,
        });
        let loss = json!({ "dice": 0.7, "focal": 0.3, "cross_entropy": 0.1, "boundary": 0.01 });
        let from = |v| serde_json::from_value(v);
        Trainer::new(
            &from(network).unwrap(),
            2,
            3,
            &serde_json::from_value(loss).unwrap(),
            &serde_json::from_value(optimiser).unwrap(),
            seed,
            &Device::cpu(),
        )
        .unwrap()
    }

    const SIZE: Zyx<usize> = Zyx::new(8, 16, 20);

    /// Images whose second channel shows where the classes are.
    fn batch(step: usize) -> (Vec<f32>, Vec<u8>) {
        let mut images = Vec::new();
        let mut labels = Vec::new();
        for b in 0..2 {
            let class = |v: usize| ((v / 20 % 16 + step + b) / 6 % 3) as u8;
            images.extend((0..SIZE.count()).map(|v| ((v * 37 + step * 11) % 97) as f32 / 97.0 - 0.5));
            images.extend((0..SIZE.count()).map(|v| class(v) as f32 + ((v * 53 + step) % 89) as f32 / 89.0));
            labels.extend((0..SIZE.count()).map(class));
        }
        (images, labels)
    }

    fn steps(t: &mut Trainer, range: std::ops::Range<usize>) -> Vec<f32> {
        range
            .map(|step| {
                let (images, labels) = batch(step);
                t.step(images, &labels, 2, SIZE, 0.01).unwrap()
            })
            .collect()
    }

    fn bytes(t: &Trainer) -> Vec<Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        t.save(dir.path()).unwrap();
        [WEIGHTS, OPTIMISER].map(|f| std::fs::read(dir.path().join(f)).unwrap()).to_vec()
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut t = trainer(0.0, 7);
                (steps(&mut t, 0..3), bytes(&t))
            })
        };
        let one = run(1);
        assert!(one.0.iter().all(|l| l.is_finite()));
        for threads in [2, 3, 5] {
            assert!(run(threads) == one, "{threads} threads gave other weights than one");
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit_of_a_large_patch() {
        let size = Zyx::new(32, 48, 48);
        let images: Vec<f32> = (0..4 * size.count()).map(|v| (v * 7919 % 1009) as f32 / 500.0 - 1.0).collect();
        let labels: Vec<u8> = (0..2 * size.count()).map(|v| (v / 48 % 3) as u8).collect();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut t = trainer(0.0, 7);
                t.step(images.clone(), &labels, 2, size, 0.01).unwrap();
                bytes(&t)
            })
        };
        assert!(run(1) == run(2));
    }

    #[test]
    fn a_resumed_training_goes_on_as_if_never_stopped() {
        for optimiser in [json!({ "lr": 0.01, "ema": 0.9 }), json!({ "kind": "sgd", "lr": 0.01, "ema": 0.5, "clip_norm": 0.5 })] {
            let fresh = || {
                let mut t = with(0.2, 7, optimiser.clone());
                t.accumulate(2);
                t
            };
            let mut whole = fresh();
            let losses = steps(&mut whole, 0..6);
            let mut first = fresh();
            let mut resumed_losses = steps(&mut first, 0..3);
            let dir = tempfile::tempdir().unwrap();
            first.save(dir.path()).unwrap();
            let mut second = fresh();
            second.load(dir.path()).unwrap();
            assert_eq!(second.steps(), 3);
            resumed_losses.extend(steps(&mut second, 3..6));
            assert_eq!(losses, resumed_losses);
            assert!(bytes(&whole) == bytes(&second));
            let (images, _) = batch(0);
            let say = |t: &Trainer| t.predictor().forward(images.clone(), 2, SIZE).unwrap();
            assert!(say(&whole) == say(&second), "the average goes on as well");
        }
    }

    #[test]
    fn parts_of_a_batch_add_up_to_the_whole() {
        let run = |parts: usize| {
            let mut t = with(0.0, 7, json!({ "lr": 0.01, "clip_norm": 1.0 }));
            t.loss.class_weights = Some(vec![0.3, 1.0, 2.0]);
            t.ignore(Some(3));
            t.accumulate(parts);
            t.begin_epoch(0);
            let losses: Vec<f32> = (0..3)
                .map(|step| {
                    let (images, mut labels) = batch(step);
                    // One patch has many voxels that do not count, the other few.
                    labels[..SIZE.count() / 2].fill(3);
                    t.step(images, &labels, 2, SIZE, 0.01).unwrap()
                })
                .collect();
            let weights: Vec<f32> = weights::collect(&t.net).unwrap().into_values().flat_map(|w| w.values).collect();
            (losses, weights)
        };
        let (whole, parts) = (run(1), run(2));
        let worst = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(worst(&whole.0, &parts.0) < 1e-6, "{:?} and {:?}", whole.0, parts.0);
        // AdamW divides by the root of what it has seen: gradients near 0 move weights by rounding alone, so the bound is that of three rates.
        assert!(worst(&whole.1, &parts.1) < 1e-3, "weights differ by {}", worst(&whole.1, &parts.1));
    }

    #[test]
    fn gradients_of_parts_are_those_of_the_whole() {
        let gradients = |parts: usize| {
            let mut t = trainer(0.0, 7);
            t.accumulate(parts);
            let (images, labels) = batch(1);
            t.gradients(images, &labels, 2, SIZE).unwrap().unwrap().1
        };
        let (whole, parts) = (gradients(1), gradients(2));
        let norm = whole.norm().unwrap();
        let off = whole.minus(&parts).norm().unwrap();
        assert!(off < 1e-6 * norm.max(1.0), "off by {off} of {norm}");
    }

    #[test]
    fn the_average_of_the_weights_is_that_of_torch() {
        let mut t = with(0.0, 7, json!({ "lr": 0.01, "ema": 0.75 }));
        let weights = |t: &Trainer| weights::collect(&t.net).unwrap()["output_block.conv.conv.bias"].values.clone();
        let mut average: Vec<f32> = Vec::new();
        for step in 0..4 {
            steps(&mut t, step..step + 1);
            let now = weights(&t);
            average = if step == 0 { now } else { average.iter().zip(&now).map(|(a, w)| a * 0.75 + w * 0.25).collect() };
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(WEIGHTS);
        t.predictor().save(&file).unwrap();
        let kept = weights::read(&file, 1 << 20).unwrap()["output_block.conv.conv.bias"].values.clone();
        assert!(kept.iter().zip(&average).all(|(a, b)| (a - b).abs() < 1e-7), "{kept:?} instead of {average:?}");
        assert!(kept != weights(&t));
    }

    #[test]
    fn a_patch_that_is_not_finite_is_named_and_changes_nothing() {
        let mut t = trainer(0.0, 7);
        let before = bytes(&t);
        let (mut images, labels) = batch(0);
        let place = images.len() - 5;
        images[place] = f32::INFINITY;
        assert!(t.step(images.clone(), &labels, 2, SIZE, 0.01).unwrap().is_nan());
        assert!(bytes(&t) == before);
        assert_eq!(t.offenders(&images, &labels, 2, SIZE).unwrap(), [1]);
    }

    #[test]
    fn seeds_differ_and_training_learns() {
        let mut t = trainer(0.0, 1);
        let losses = steps(&mut t, 0..25);
        assert!(losses[24] < 0.6 * losses[0], "{losses:?}");
        assert!(bytes(&trainer(0.0, 1)) != bytes(&trainer(0.0, 2)));
    }

    #[test]
    fn a_predictor_is_saved_and_loaded() {
        let t = trainer(0.0, 3);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("weights.safetensors");
        t.predictor().save(&file).unwrap();
        let back = Predictor::load(&t.network, 2, 3, &file, &Device::cpu()).unwrap();
        let (images, _) = batch(0);
        assert_eq!(back.forward(images.clone(), 2, SIZE).unwrap(), t.predictor().forward(images.clone(), 2, SIZE).unwrap());
        let other = Predictor::load(&t.network, 1, 3, &file, &Device::cpu());
        assert!(other.err().unwrap().to_string().contains("input_block.conv1.conv.weight has shape"));
        assert!(back.forward(images, 2, Zyx::new(8, 16, 19)).is_err());
    }

    #[test]
    fn a_torn_checkpoint_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut t = trainer(0.0, 3);
        t.save(dir.path()).unwrap();
        let old = std::fs::read(dir.path().join(OPTIMISER)).unwrap();
        steps(&mut t, 0..1);
        t.save(dir.path()).unwrap();
        std::fs::write(dir.path().join(OPTIMISER), old).unwrap();
        assert!(trainer(0.0, 3).load(dir.path()).unwrap_err().to_string().contains("not of the same step"));
    }

    #[test]
    fn labels_beyond_the_classes_are_refused() {
        let (images, mut labels) = batch(0);
        labels[5] = 3;
        assert!(trainer(0.0, 3).step(images, &labels, 2, SIZE, 0.01).unwrap_err().to_string().contains("a label is 3"));
    }

    #[test]
    fn step_counts_survive_the_file() {
        for steps in [0, 1, (1 << 22) + 5, (1 << 50) + 3] {
            assert_eq!(counted(&count(steps)), Some(steps));
        }
    }
}
