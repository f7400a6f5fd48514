//! A network as a list of operations on named tensors: what an ONNX file says, before it is written. Made from the network's arguments and its weights alone.

use super::super::blocks::PerAxis;
use super::super::dynunet::Dynunet;
use super::super::weights::{Weight, Weights};
use super::super::{Network, Norm};
use crate::error::Error;

/// Name of the tensor that goes in, `[n, channel, z, y, x]`.
pub const IMAGE: &str = "image";
/// Name of the tensor that comes out, `[n, class, z, y, x]`.
pub const LOGITS: &str = "logits";

/// An operation as ONNX defines it, opset 18.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Inputs: x, weight `[out, in, kz, ky, kx]`, bias if there is one.
    Conv {
        stride: [usize; 3],
        padding: [usize; 3],
    },
    /// Inputs: x, weight `[in, out, kz, ky, kx]`, bias if there is one. The kernel is the stride.
    ConvTranspose {
        stride: [usize; 3],
    },
    /// Inputs: x, scale, shift. ε = 1e-5.
    InstanceNormalization,
    /// Slope 0.01.
    LeakyRelu,
    Add,
    /// Along the channels.
    Concat,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub op: Op,
    pub inputs: Vec<String>,
    pub output: String,
}

/// Nodes in an order in which every input is there before it is needed.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    pub nodes: Vec<Node>,
    /// Constants by name, all of which some node reads.
    pub weights: Weights,
    pub channels: usize,
    pub classes: usize,
}

impl Graph {
    /// The path to the logits at full resolution; heads for training are left out.
    /// - weights: by MONAI's names, as the network was trained
    pub fn of(network: &Network, weights: Weights, channels: usize, classes: usize) -> Result<Graph, Error> {
        let mut b = Builder { nodes: Vec::new(), given: weights, used: Weights::new() };
        match network {
            Network::Dynunet(config) => b.dynunet(config)?,
        }
        Ok(Graph { nodes: b.nodes, weights: b.used, channels, classes })
    }
}

struct Builder {
    nodes: Vec<Node>,
    given: Weights,
    used: Weights,
}

impl Builder {
    fn node(&mut self, op: Op, inputs: Vec<String>, output: &str) -> String {
        self.nodes.push(Node { op, inputs, output: output.into() });
        output.into()
    }

    /// Makes a weight a constant of the graph, if the network has it.
    fn taken(&mut self, name: &str) -> Option<String> {
        if !self.used.contains_key(name) {
            self.used.insert(name.into(), self.given.remove(name)?);
        }
        Some(name.into())
    }

    fn wanted(&mut self, name: &str) -> Result<String, Error> {
        self.taken(name).ok_or_else(|| Error::Model { why: format!("no parameter {name} among the weights; are they of this network?") })
    }

    /// MONAI's padding, int((k − s + 1) / 2) on each axis.
    fn conv(&mut self, x: &str, at: &str, stride: PerAxis) -> Result<String, Error> {
        let weight = self.wanted(&format!("{at}.conv.weight"))?;
        let kernel: [usize; 3] =
            self.used[&weight].shape[2..].try_into().map_err(|_| Error::Model { why: format!("{weight} is no 3-D kernel") })?;
        let stride = stride.0.to_array();
        let padding = std::array::from_fn(|a| (kernel[a] + 1).saturating_sub(stride[a]) / 2);
        let inputs = [Some(x.to_string()), Some(weight), self.taken(&format!("{at}.conv.bias"))].into_iter().flatten().collect();
        Ok(self.node(Op::Conv { stride, padding }, inputs, at))
    }

    fn norm(&mut self, x: &str, at: &str, affine: bool, channels: usize) -> Result<String, Error> {
        let (weight, bias) = (format!("{at}.weight"), format!("{at}.bias"));
        if affine {
            (self.wanted(&weight)?, self.wanted(&bias)?);
        } else {
            // ONNX knows no norm without scale and shift.
            self.used.insert(weight.clone(), Weight { shape: vec![channels], values: vec![1.0; channels] });
            self.used.insert(bias.clone(), Weight { shape: vec![channels], values: vec![0.0; channels] });
        }
        Ok(self.node(Op::InstanceNormalization, vec![x.into(), weight, bias], at))
    }

    fn block(&mut self, x: &str, at: &str, channels: usize, stride: PerAxis, config: &Dynunet, residual: bool) -> Result<String, Error> {
        let (one, affine) = (PerAxis(voxmill_schemas::geometry::Zyx::splat(1)), config.norm == Norm::InstanceAffine);
        let part = |name: &str| format!("{at}.{name}");
        let y = self.conv(x, &part("conv1"), stride)?;
        let y = self.norm(&y, &part("norm1"), affine, channels)?;
        let y = self.node(Op::LeakyRelu, vec![y], &part("lrelu1"));
        let y = self.conv(&y, &part("conv2"), one)?;
        let mut y = self.norm(&y, &part("norm2"), affine, channels)?;
        if residual {
            let mut shortcut = x.to_string();
            if self.given.contains_key(&part("conv3.conv.weight")) {
                shortcut = self.conv(x, &part("conv3"), stride)?;
                shortcut = self.norm(&shortcut, &part("norm3"), affine, channels)?;
            }
            y = self.node(Op::Add, vec![y, shortcut], &part("add"));
        }
        Ok(self.node(Op::LeakyRelu, vec![y], &part("lrelu2")))
    }

    fn dynunet(&mut self, config: &Dynunet) -> Result<(), Error> {
        let (f, last, one) = (config.channels(), config.levels() - 1, PerAxis(voxmill_schemas::geometry::Zyx::splat(1)));
        let mut skips = vec![self.block(IMAGE, "input_block", f[0], config.strides[0], config, config.res_block)?];
        for level in 1..last {
            let x = skips[level - 1].clone();
            skips.push(self.block(&x, &format!("downsamples.{}", level - 1), f[level], config.strides[level], config, config.res_block)?);
        }
        let mut x = self.block(&skips[last - 1].clone(), "bottleneck", f[last], config.strides[last], config, config.res_block)?;
        for (i, level) in (0..last).rev().enumerate() {
            let at = format!("upsamples.{i}");
            let weight = self.wanted(&format!("{at}.transp_conv.conv.weight"))?;
            let bias = self.taken(&format!("{at}.transp_conv.conv.bias"));
            let inputs = [Some(x), Some(weight), bias].into_iter().flatten().collect();
            let up = self.node(Op::ConvTranspose { stride: config.strides[level + 1].0.to_array() }, inputs, &format!("{at}.transp_conv"));
            let both = self.node(Op::Concat, vec![up, skips[level].clone()], &format!("{at}.concat"));
            x = self.block(&both, &format!("{at}.conv_block"), f[level], one, config, false)?;
        }
        self.conv(&x, "output_block.conv", one)?;
        self.nodes.last_mut().expect("the output block").output = LOGITS.into();
        Ok(())
    }
}
