//! A trained network, ready to look at patches.

use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};
use voxmill_schemas::geometry::Zyx;

use super::Network;
use super::device::Device;
use super::dynunet::Net;
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

    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Logits of n patches: [n, channel, z, y, x] → [n, class, z, y, x]. `size` must be a multiple of `Network::divisor`.
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
    let patch = network.divisor().map(|d| d.saturating_mul(4));
    refuse_errors(network.findings(patch, classes))?;
    let Network::Dynunet(config) = network;
    Ok(Net::new(config, channels, classes, device))
}

pub(super) fn refuse_errors(findings: impl IntoIterator<Item = Finding>) -> Result<(), Error> {
    match findings.into_iter().find(|f| !f.is_warning) {
        Some(f) => Err(Error::Model { why: format!("{}: {}; {}", f.field, f.message, f.help) }),
        None => Ok(()),
    }
}

/// Largest weights file we read for this network: aliases, optimiser state and names included.
pub(super) fn file_limit(net: &Net) -> u64 {
    struct Count(u64);
    impl ModuleVisitor for Count {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0 += 4 * param.lazy_shape().num_elements() as u64 + 4096;
        }
    }
    let mut count = Count(1 << 20);
    net.visit(&mut count);
    count.0.saturating_mul(8)
}

/// The shape of a batch, or what is wrong with it.
pub(super) fn shape_of(network: &Network, found: usize, channels: usize, n: usize, size: Zyx<usize>) -> Result<[usize; 5], Error> {
    let wanted = size.checked_count().and_then(|v| v.checked_mul(channels)?.checked_mul(n));
    if n == 0 || wanted != Some(found) || found == 0 {
        return Err(Error::Model { why: format!("{found} values for {n} patches of {channels} channel(s) and {size} voxels") });
    }
    let divisor = network.divisor();
    let odd = size.zip(divisor).map(|(n, d)| n % d != 0);
    if odd.z || odd.y || odd.x {
        return Err(Error::Model { why: format!("a patch of {size} voxels is no multiple of the network's strides, {divisor}") });
    }
    Ok([n, channels, size.z, size.y, size.x])
}
