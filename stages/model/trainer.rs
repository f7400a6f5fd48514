//! One training: a network, its loss, its optimiser. A step takes plain arrays and gives the loss; the loop around it lives elsewhere.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use voxmill_schemas::geometry::Zyx;

use super::device::Device;
use super::dropout::Dropout;
use super::dynunet::Net;
use super::loss::{Labels, Loss};
use super::optimiser::{Memory, Optimiser, State};
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
    optimiser: Optimiser,
    state: State,
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
        let Network::Dynunet(config) = network;
        let heads = config.deep_supervision.0 + 1;
        predictor::refuse_errors(loss.findings(classes, heads).into_iter().chain(optimiser.findings()))?;
        if let Some(w) = loss.class_weights.as_ref().filter(|w| w.len() != classes) {
            return Err(Error::Model {
                why: format!("loss.class_weights has {} numbers for {classes} classes, background included", w.len()),
            });
        }
        let net = predictor::build(network, channels, classes, &device.training())?;
        Ok(Self {
            network: network.clone(),
            net: weights::initialise(net, seed)?,
            loss: loss.clone(),
            optimiser: optimiser.clone(),
            state: State::default(),
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

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.state.steps
    }

    /// One step; gives the loss before it. A loss that is not finite, or has a gradient that is not (the loss is then NaN), changes no weight.
    /// - images: [n, channel, z, y, x], labels: [n, z, y, x], below `classes`
    /// - size: a multiple of `Network::divisor`
    pub fn step(&mut self, images: Vec<f32>, labels: &[u8], n: usize, size: Zyx<usize>, lr: f64) -> Result<f32, Error> {
        let shape = shape_of(&self.network, images.len(), self.channels, n, size)?;
        if labels.len() != n * size.count() {
            return Err(Error::Model { why: format!("{} labels for {n} patches of {size} voxels", labels.len()) });
        }
        if let Some(bad) = labels.iter().find(|l| **l as usize >= self.classes) {
            return Err(Error::Model { why: format!("a label is {bad}, but the network has {} classes", self.classes) });
        }
        let device = self.device.training();
        let images = Tensor::from_data(TensorData::new(images, shape), &device);
        let Network::Dynunet(config) = &self.network;
        let mut dropout = Dropout::new(config.dropout, self.seed, self.state.steps);
        let heads = self.net.forward_heads(images, &mut dropout);
        let batch = Labels { labels, n, classes: self.classes, size };
        let loss = self.loss.of_heads(heads, &batch);
        let value = weights::values(loss.clone())?[0];
        if value.is_finite() {
            let grads = loss.backward();
            match self.optimiser.step(self.net.clone(), grads, lr, &mut self.state) {
                Some(net) => self.net = net,
                None => return Ok(f32::NAN),
            }
        }
        Ok(value)
    }

    /// The logits of every head in train mode (dropout off), each [n, class, z, y, x] at full size: coarse heads are copied up by nearest
    /// neighbour as DynUNet does it. Full resolution first.
    pub fn heads(&self, images: Vec<f32>, n: usize, size: Zyx<usize>) -> Result<Vec<Vec<f32>>, Error> {
        let shape = shape_of(&self.network, images.len(), self.channels, n, size)?;
        let images = Tensor::from_data(TensorData::new(images, shape), &self.device.burn);
        let heads = self.net.valid().forward_heads(images, &mut Dropout::off());
        heads
            .into_iter()
            .map(|h| {
                let [_, c, z, y, x] = h.dims();
                Ok(copy_up(&weights::values(h)?, n * c, Zyx::new(z, y, x), size))
            })
            .collect()
    }

    /// The network as it is now, for inference.
    pub fn predictor(&self) -> Predictor {
        Predictor::of(&self.network, self.net.valid(), self.channels, self.classes, &self.device)
    }

    /// Writes `weights.safetensors` and `optimiser.safetensors` into `dir`. Equal states give equal bytes.
    /// Each file is replaced at once; both carry the step count, so a torn pair is found on loading.
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        let mut params = weights::collect(&self.net)?;
        params.insert(STEPS.into(), count(self.state.steps));
        let mut memory = Weights::from([(STEPS.to_string(), count(self.state.steps))]);
        for (name, m) in &self.state.memory {
            let shape = params[name].shape.clone();
            memory.insert(format!("first.{name}"), Weight { shape: shape.clone(), values: weights::values(m.first.clone())? });
            if let Some(second) = &m.second {
                memory.insert(format!("second.{name}"), Weight { shape, values: weights::values(second.clone())? });
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
        for (name, w) in memory {
            let (kind, param) = name.split_once('.').unwrap_or(("", &name));
            if shapes.get(param).is_none_or(|p| p.shape != w.shape) || !matches!(kind, "first" | "second") {
                return Err(Error::Model { why: format!("{}: {name} belongs to no parameter of this network", optimiser_path.display()) });
            }
            let length = w.values.len();
            let value = Tensor::<1>::from_data(TensorData::new(w.values, [length]), &self.device.burn);
            // In name order every `first.…` comes before every `second.…`.
            match (kind, state.memory.get_mut(param)) {
                ("second", Some(m)) => m.second = Some(value),
                _ => {
                    state.memory.insert(param.into(), Memory { first: value, second: None });
                }
            }
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
        let network = json!({
            "kind": "dynunet", "filters": [4, 8, 12], "kernel_size": [[1, 3, 3], 3, 3], "strides": [1, [1, 2, 2], 2],
            "res_block": true, "trans_bias": true, "deep_supervision": 1, "dropout": dropout,
        });
        let loss = json!({ "dice": 0.7, "focal": 0.3, "cross_entropy": 0.1, "boundary": 0.01 });
        let optimiser = json!({ "lr": 0.01, "weight_decay": 0.01, "clip_norm": 1.0 });
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
        let mut whole = trainer(0.2, 7);
        let losses = steps(&mut whole, 0..6);
        let mut first = trainer(0.2, 7);
        let mut resumed_losses = steps(&mut first, 0..3);
        let dir = tempfile::tempdir().unwrap();
        first.save(dir.path()).unwrap();
        let mut second = trainer(0.2, 7);
        second.load(dir.path()).unwrap();
        assert_eq!(second.steps(), 3);
        resumed_losses.extend(steps(&mut second, 3..6));
        assert_eq!(losses, resumed_losses);
        assert!(bytes(&whole) == bytes(&second));
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
