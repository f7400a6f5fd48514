//! A graph as the bytes of an ONNX file.

use std::collections::BTreeSet;

use half::f16;
use prost::Message;

use super::graph::{Graph, IMAGE, LOGITS, Node, Op};
use super::proto::{self, FLOAT, FLOAT16, INT8, UINT8};
use super::{Precision, Ranges, Scale, eight_bits, is_quantised};
use crate::error::Error;
use crate::model::weights::Weight;

/// A protobuf message must stay below 2 GiB.
const LIMIT_BYTES: u64 = (1 << 31) - (1 << 20);

impl Graph {
    /// The file. Batch and sizes are open: any that the strides of the network divide.
    /// - ranges: for int8, of every tensor that a convolution takes or gives
    /// - metadata: pairs that a reader finds in `metadata_props`
    pub fn to_onnx(&self, precision: Precision, ranges: &Ranges, metadata: &[(&str, String)]) -> Result<Vec<u8>, Error> {
        let bytes: u64 = self.weights.values().map(|w| 4 * w.values.len() as u64).sum();
        if bytes > LIMIT_BYTES {
            return Err(Error::TooLarge { what: "the ONNX file".into(), wanted_bytes: bytes, limit_bytes: LIMIT_BYTES });
        }
        let mut w = Writer { precision, ranges, nodes: Vec::new(), initializers: Vec::new(), done: BTreeSet::new() };
        let half = precision == Precision::Fp16;
        if half {
            w.cast(IMAGE, "image.half", FLOAT16);
        }
        for node in &self.nodes {
            w.node(self, node)?;
        }
        if half {
            w.cast("logits.half", LOGITS, FLOAT);
        }
        let dim =
            |value: Option<usize>, name: &str| proto::Dim { value: value.map(|v| v as i64), name: value.is_none().then(|| name.into()) };
        let info = |name: &str, channels: usize| {
            let dims = vec![dim(None, "n"), dim(Some(channels), ""), dim(None, "z"), dim(None, "y"), dim(None, "x")];
            let tensor = proto::TensorType { element: FLOAT, shape: Some(proto::Shape { dims }) };
            proto::ValueInfo { name: name.into(), r#type: Some(proto::Type { tensor: Some(tensor) }) }
        };
        let graph = proto::Graph {
            name: "voxmill".into(),
            nodes: w.nodes,
            initializers: w.initializers,
            inputs: vec![info(IMAGE, self.channels)],
            outputs: vec![info(LOGITS, self.classes)],
        };
        let model = proto::Model {
            ir_version: 8,
            producer_name: "voxmill".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            graph: Some(graph),
            opset_import: vec![proto::Opset { domain: String::new(), version: 18 }],
            metadata: metadata.iter().map(|(key, value)| proto::Entry { key: (*key).into(), value: value.clone() }).collect(),
        };
        Ok(model.encode_to_vec())
    }
}

struct Writer<'a> {
    precision: Precision,
    ranges: &'a Ranges,
    nodes: Vec<proto::Node>,
    initializers: Vec<proto::Tensor>,
    /// Names that are written: a tensor that several nodes read goes through 8 bits once.
    done: BTreeSet<String>,
}

fn ints(name: &str, ints: impl IntoIterator<Item = usize>) -> proto::Attribute {
    proto::Attribute { name: name.into(), kind: 7, ints: ints.into_iter().map(|v| v as i64).collect(), ..Default::default() }
}

fn int(name: &str, i: i64) -> proto::Attribute {
    proto::Attribute { name: name.into(), kind: 2, i: Some(i), ..Default::default() }
}

fn float(name: &str, f: f32) -> proto::Attribute {
    proto::Attribute { name: name.into(), kind: 1, f: Some(f), ..Default::default() }
}

impl Writer<'_> {
    fn push(&mut self, op: &str, inputs: Vec<String>, output: &str, attributes: Vec<proto::Attribute>) {
        let node = proto::Node { inputs, outputs: vec![output.into()], name: format!("{output}:{op}"), op_type: op.into(), attributes };
        self.nodes.push(node);
    }

    fn cast(&mut self, from: &str, to: &str, element: i32) {
        self.push("Cast", vec![from.into()], to, vec![int("to", element.into())]);
    }

    fn constant(&mut self, name: &str, dims: &[usize], data_type: i32, raw_data: Vec<u8>) {
        if self.done.insert(name.into()) {
            let dims = dims.iter().map(|d| *d as i64).collect();
            self.initializers.push(proto::Tensor { dims, data_type, name: name.into(), raw_data });
        }
    }

    fn weight(&mut self, name: &str, w: &Weight) -> Result<(), Error> {
        if self.precision == Precision::Fp16 {
            let halves: Vec<f16> = w.values.iter().map(|v| f16::from_f32(*v)).collect();
            if let Some(at) = halves.iter().position(|v| !v.is_finite()) {
                return Err(Error::Model { why: format!("{name} holds {}, more than float16 does; write fp32", w.values[at]) });
            }
            self.constant(name, &w.shape, FLOAT16, halves.iter().flat_map(|v| v.to_le_bytes()).collect());
        } else {
            self.constant(name, &w.shape, FLOAT, w.values.iter().flat_map(|v| v.to_le_bytes()).collect());
        }
        Ok(())
    }

    /// The name under which a tensor of the graph is read: in float16 that of its half.
    fn named(&self, name: &str) -> String {
        match (self.precision, name) {
            (Precision::Fp16, IMAGE | LOGITS) => format!("{name}.half"),
            _ => name.into(),
        }
    }

    /// A tensor through 8 bits and back, as runtimes look for it around a convolution.
    fn through_bytes(&mut self, from: &str, to: &str, name: &str) -> Result<(), Error> {
        if !self.done.insert(to.to_string()) {
            return Ok(());
        }
        let range = self.ranges.get(name).ok_or_else(|| Error::Model { why: format!("no range of {name} was measured") })?;
        let Scale { scale, zero } = Scale::of(*range);
        let (scale_at, zero_at, bytes_at) = (format!("{name}.scale"), format!("{name}.zero"), format!("{name}.bytes"));
        self.constant(&scale_at, &[], FLOAT, scale.to_le_bytes().into());
        self.constant(&zero_at, &[], UINT8, vec![zero]);
        self.push("QuantizeLinear", vec![from.into(), scale_at.clone(), zero_at.clone()], &bytes_at, vec![]);
        self.push("DequantizeLinear", vec![bytes_at, scale_at, zero_at], to, vec![]);
        Ok(())
    }

    fn quantised(&mut self, graph: &Graph, node: &Node, attributes: Vec<proto::Attribute>) -> Result<(), Error> {
        let (x, weight_at) = (&node.inputs[0], &node.inputs[1]);
        let seen = format!("{x}.seen");
        self.through_bytes(x, &seen, x)?;
        let weight = &graph.weights[weight_at];
        let (bytes, scales) = eight_bits(&weight.values, weight.shape[0]);
        let (bytes_at, scale_at, zero_at) = (format!("{weight_at}.bytes"), format!("{weight_at}.scale"), format!("{weight_at}.zero"));
        self.constant(&bytes_at, &weight.shape, INT8, bytes.into_iter().map(|b| b as u8).collect());
        self.constant(&zero_at, &[scales.len()], INT8, vec![0; scales.len()]);
        self.constant(&scale_at, &[scales.len()], FLOAT, scales.iter().flat_map(|v| v.to_le_bytes()).collect());
        self.push("DequantizeLinear", vec![bytes_at, scale_at, zero_at], weight_at, vec![int("axis", 0)]);
        let raw = format!("{}.raw", node.output);
        let mut inputs = vec![seen, weight_at.clone()];
        if let Some(bias) = node.inputs.get(2) {
            self.weight(bias, &graph.weights[bias])?;
            inputs.push(bias.clone());
        }
        self.push("Conv", inputs, &raw, attributes);
        self.through_bytes(&raw, &node.output, &node.output)
    }

    fn node(&mut self, graph: &Graph, node: &Node) -> Result<(), Error> {
        let kernel = |at: usize| graph.weights.get(&node.inputs[at]).map_or(Vec::new(), |w| w.shape[2..].to_vec());
        let (op, attributes) = match &node.op {
            Op::Conv { stride, padding } => {
                let pads = padding.iter().chain(padding).copied();
                ("Conv", vec![ints("kernel_shape", kernel(1)), ints("strides", *stride), ints("pads", pads)])
            }
            Op::ConvTranspose { stride } => ("ConvTranspose", vec![ints("kernel_shape", kernel(1)), ints("strides", *stride)]),
            Op::InstanceNormalization => ("InstanceNormalization", vec![float("epsilon", 1e-5)]),
            Op::LeakyRelu => ("LeakyRelu", vec![float("alpha", 0.01)]),
            Op::Add => ("Add", vec![]),
            Op::Concat => ("Concat", vec![int("axis", 1)]),
        };
        if self.precision == Precision::Int8 && is_quantised(node) {
            return self.quantised(graph, node, attributes);
        }
        for input in &node.inputs {
            if let Some(w) = graph.weights.get(input) {
                self.weight(input, w)?;
            }
        }
        let inputs = node.inputs.iter().map(|i| self.named(i)).collect();
        let output = self.named(&node.output);
        self.push(op, inputs, &output, attributes);
        Ok(())
    }
}
