//! A trained network, ready to look at patches.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use voxmill_schemas::geometry::Zyx;

use super::Network;
use super::device::Device;
use super::graph::Spec;
use super::net::Net;
use super::weights;
use crate::error::Error;
use crate::stage::Finding;

/// A network for inference. Holds no gradients.
pub struct Predictor {
    network: Network,
    net: Net,
    channels: usize,
    classes: usize,
    device: Device,
}

impl Predictor {
    pub(super) fn of(network: &Network, net: Net, channels: usize, classes: usize, device: &Device) -> Self {
        Self { network: network.clone(), net, channels, classes, device: device.clone() }
    }

    /// Reads weights (safetensors, `.pt`, `.pth`) that must fit the network exactly. `classes` counts the background.
    pub fn load(network: &Network, channels: usize, classes: usize, file: &Path, device: &Device) -> Result<Self, Error> {
        let net = build(network, channels, classes, &device.burn)?;
        let weights = weights::read(file, file_limit(&net))?;
        let net = weights::load(net, weights, &file.display().to_string())?;
        Ok(Self::of(network, net, channels, classes, device))
    }

    /// Writes safetensors under MONAI's names, each parameter once. Equal weights give equal bytes.
    pub fn save(&self, file: &Path) -> Result<(), Error> {
        weights::write(file, &weights::collect(&self.net)?)
    }

    /// Number of parameters.
    pub fn n_parameters(&self) -> usize {
        self.net.num_params()
    }

    /// Voxels around what it answers for that it reads ([`Network::margin`]).
    pub fn margin(&self) -> Zyx<usize> {
        self.network.margin()
    }

    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Logits of n patches: [n, channel, z, y, x] → [n, class, z, y, x], smaller by twice [`margin`](Self::margin). What comes out must be a multiple of
    /// `Network::divisor`.
    pub fn forward(&self, images: Vec<f32>, n: usize, size: Zyx<usize>) -> Result<Vec<f32>, Error> {
        let shape = shape_of(&self.network, images.len(), self.channels, n, size)?;
        let images = Tensor::from_data(TensorData::new(images, shape), &self.device.burn);
        weights::values(self.net.forward(images))
    }
}

/// The network with all weights 0, or the first error among its findings.
pub(super) fn build(network: &Network, channels: usize, classes: usize, device: &burn::tensor::Device) -> Result<Net, Error> {
    if channels == 0 {
        return Err(Error::Model { why: "a network needs at least one channel".into() });
    }
    // Any patch that the strides divide will do: the real ones are checked one by one.
    let patch = network.divisor().zip(network.margin()).map(|(d, m)| d.saturating_mul(4).saturating_add(2 * m));
    refuse_errors(network.findings(patch, classes))?;
    Ok(Net::new(network.graph(channels, classes), device))
}

pub(super) fn refuse_errors(findings: impl IntoIterator<Item = Finding>) -> Result<(), Error> {
    match findings.into_iter().find(|f| !f.is_warning) {
        Some(f) => Err(Error::Model { why: format!("{}: {}; {}", f.field, f.message, f.help) }),
        None => Ok(()),
    }
}

/// Largest weights file we read for this network: aliases, optimiser state and names included.
pub(super) fn file_limit(net: &Net) -> u64 {
    let one = |p: &Spec| 4 * p.shape.iter().product::<usize>() as u64 + 4096;
    (net.graph.params.iter().map(one).sum::<u64>() + (1 << 20)).saturating_mul(8)
}

/// The shape of a batch, or what is wrong with it.
pub(super) fn shape_of(network: &Network, found: usize, channels: usize, n: usize, size: Zyx<usize>) -> Result<[usize; 5], Error> {
    let wanted = size.checked_count().and_then(|v| v.checked_mul(channels)?.checked_mul(n));
    if n == 0 || wanted != Some(found) || found == 0 {
        return Err(Error::Model { why: format!("{found} values for {n} patches of {channels} channel(s) and {size} voxels") });
    }
    answered(network, size)?;
    Ok([n, channels, size.z, size.y, size.x])
}

/// The voxels of a patch that have an answer.
pub(super) fn answered(network: &Network, size: Zyx<usize>) -> Result<Zyx<usize>, Error> {
    let (divisor, margin) = (network.divisor(), network.margin());
    let inner = size.zip(margin).map(|(n, m)| n.saturating_sub(2 * m));
    let odd = inner.zip(divisor).map(|(n, d)| n == 0 || n % d != 0);
    if odd.z || odd.y || odd.x {
        let beside = if margin == Zyx::splat(0) { String::new() } else { format!(" without the margin of {margin}") };
        return Err(Error::Model { why: format!("a patch of {size} voxels{beside} is no multiple of the network's strides, {divisor}") });
    }
    Ok(inner)
}
