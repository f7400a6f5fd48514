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

/// A network in training. Equal seeds and equal batches give equal weights on the CPU, bit for bit, whatever the number of threads.
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

    /// One step; gives the loss before it. A loss that is not finite changes no weight.
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
        let loss = self.loss.of_heads(heads, &batch, &device);
        let value = weights::values(loss.clone())?[0];
        if value.is_finite() {
            let grads = loss.backward();
            self.net = self.optimiser.step(self.net.clone(), grads, lr, &mut self.state);
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
    [c, b, a].into_iter().try_fold(0u64, |sum, v| (v >= 0.0 && v < 4194304.0).then_some((sum << 22) | v as u64))
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
