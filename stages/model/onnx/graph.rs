//! A network as a list of operations on named tensors: what an ONNX file says, before it is written. Made from the network's graph and its weights alone.

use super::super::Network;
use super::super::graph::{Graph as Layers, Op as Layer};
use super::super::weights::{Weight, Weights};
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

/// The slope that [`Op::LeakyRelu`] has.
const SLOPE: f32 = 0.01;

impl Graph {
    /// The path to the logits at full resolution; heads for training are left out.
    /// - weights: by the names of the network's graph, as it was trained
    pub fn of(network: &Network, mut weights: Weights, channels: usize, classes: usize) -> Result<Graph, Error> {
        let layers = network.graph(channels, classes);
        let mut last = layers.heads[0];
        while let Layer::Dropout { x } = layers.ops[last] {
            last = x;
        }
        let needed = layers.needed(&[last]);
        let mut b = Builder { layers: &layers, given: &mut weights, nodes: Vec::new(), used: Weights::new(), values: vec![IMAGE.into()] };
        for at in 1..layers.ops.len() {
            let value = if needed[at] { b.layer(at, at == last)? } else { String::new() };
            b.values.push(value);
        }
        let (nodes, used) = (b.nodes, b.used);
        Ok(Graph { nodes, weights: used, channels, classes })
    }
}

struct Builder<'a> {
    layers: &'a Layers,
    given: &'a mut Weights,
    nodes: Vec<Node>,
    used: Weights,
    /// Name of the tensor of each layer so far.
    values: Vec<String>,
}

impl Builder<'_> {
    fn node(&mut self, op: Op, inputs: Vec<String>, output: String) -> String {
        self.nodes.push(Node { op, inputs, output: output.clone() });
        output
    }

    /// Makes a weight a constant of the file.
    fn taken(&mut self, param: usize) -> Result<String, Error> {
        let name = self.layers.params[param].name.clone();
        if !self.used.contains_key(&name) {
            let weight = self.given.remove(&name);
            let lacks = || Error::Model { why: format!("no parameter {name} among the weights; are they of this network?") };
            self.used.insert(name.clone(), weight.ok_or_else(lacks)?);
        }
        Ok(name)
    }

    /// The nodes of one layer; gives the name of its value.
    fn layer(&mut self, at: usize, is_last: bool) -> Result<String, Error> {
        let name = if is_last { LOGITS.to_string() } else { format!("layer_{at}") };
        let x = |b: &Self, at: &usize| b.values[*at].clone();
        let with_bias = |b: &mut Self, at: &usize, weight: usize, bias: Option<usize>| {
            let mut inputs = vec![b.values[*at].clone(), b.taken(weight)?];
            inputs.extend(bias.map(|p| b.taken(p)).transpose()?);
            Ok::<_, Error>(inputs)
        };
        let layers = self.layers;
        Ok(match &layers.ops[at] {
            Layer::Conv { x, weight, bias, stride, padding } => {
                let inputs = with_bias(self, x, *weight, *bias)?;
                self.node(Op::Conv { stride: stride.to_array(), padding: padding.to_array() }, inputs, name)
            }
            Layer::UpConv { x, weight, bias } => {
                let [.., z, y, w] = layers.params[*weight].shape[..] else { unreachable!("a kernel has five axes") };
                let inputs = with_bias(self, x, *weight, *bias)?;
                self.node(Op::ConvTranspose { stride: [z, y, w] }, inputs, name)
            }
            Layer::InstanceNorm { x: from, affine, slope } if *slope == SLOPE || *slope == 1.0 => {
                let (scale, shift) = match affine {
                    Some((w, b)) => (self.taken(*w)?, self.taken(*b)?),
                    None => {
                        // ONNX knows no norm without scale and shift.
                        let names = (format!("ones_{at}"), format!("zeros_{at}"));
                        let n = layers.channels[at];
                        self.used.insert(names.0.clone(), Weight { shape: vec![n], values: vec![1.0; n] });
                        self.used.insert(names.1.clone(), Weight { shape: vec![n], values: vec![0.0; n] });
                        names
                    }
                };
                let inputs = vec![x(self, from), scale, shift];
                if *slope == 1.0 {
                    return Ok(self.node(Op::InstanceNormalization, inputs, name));
                }
                let norm = self.node(Op::InstanceNormalization, inputs, format!("layer_{at}.norm"));
                self.node(Op::LeakyRelu, vec![norm], name)
            }
            Layer::Leaky { x: from, slope } if *slope == SLOPE => {
                let inputs = vec![x(self, from)];
                self.node(Op::LeakyRelu, inputs, name)
            }
            Layer::Add { a, b } => {
                let inputs = vec![x(self, a), x(self, b)];
                self.node(Op::Add, inputs, name)
            }
            Layer::Cat { a, b } => {
                let inputs = vec![x(self, a), x(self, b)];
                self.node(Op::Concat, inputs, name)
            }
            Layer::Dropout { x: from } => x(self, from),
            other => {
                let why = format!("this network has a layer that is not written as ONNX yet: {other:?}");
                return Err(Error::Model { why });
            }
        })
    }
}
