//! What a file answers, without a runtime for ONNX: its operations one after another in float32, each result rounded as the file's precision rounds it. Measures
//! the ranges that int8 needs, and what a precision costs before anybody deploys it.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use voxmill_schemas::geometry::Zyx;

use super::graph::{Graph, IMAGE, LOGITS, Node, Op};
use super::{Precision, Ranges, Scale, eight_bits, is_quantised, rounded_to_half};
use crate::error::Error;
use crate::model::weights;
use crate::model::{Device, kernels};

/// A graph whose constants are on a device.
pub struct Session {
    graph: Graph,
    precision: Precision,
    ranges: Ranges,
    device: Device,
    kernels: BTreeMap<String, Tensor<5>>,
    vectors: BTreeMap<String, Tensor<1>>,
}

impl Session {
    /// - ranges: for int8, see [`Graph::to_onnx`]
    pub fn new(graph: Graph, precision: Precision, ranges: Ranges, device: &Device) -> Result<Session, Error> {
        let eight: Vec<&String> =
            graph.nodes.iter().filter(|n| precision == Precision::Int8 && is_quantised(n)).map(|n| &n.inputs[1]).collect();
        let (mut kernels, mut vectors) = (BTreeMap::new(), BTreeMap::new());
        for (name, w) in &graph.weights {
            let values = match precision {
                Precision::Fp16 => w.values.iter().map(|v| rounded_to_half(*v)).collect(),
                _ if eight.contains(&name) => {
                    let (bytes, scales) = eight_bits(&w.values, w.shape[0]);
                    let each = w.values.len() / scales.len().max(1);
                    bytes.iter().enumerate().map(|(i, b)| f32::from(*b) * scales[i / each.max(1)]).collect()
                }
                _ => w.values.clone(),
            };
            match w.shape[..] {
                [a, b, c, d, e] => {
                    kernels.insert(name.clone(), Tensor::from_data(TensorData::new(values, [a, b, c, d, e]), &device.burn));
                }
                [n] => {
                    vectors.insert(name.clone(), Tensor::from_data(TensorData::new(values, [n]), &device.burn));
                }
                _ => return Err(Error::Model { why: format!("{name} has {} axes", w.shape.len()) }),
            }
        }
        Ok(Session { graph, precision, ranges, device: device.clone(), kernels, vectors })
    }

    /// Logits of n patches: [n, channel, z, y, x] → [n, class, z, y, x].
    pub fn forward(&self, images: Vec<f32>, n: usize, size: Zyx<usize>) -> Result<Vec<f32>, Error> {
        self.run(images, n, size, &mut |_, t| Ok(t))
    }

    /// [`Session::forward`], and `ranges` widened to what convolutions take and give on these patches.
    pub fn measure(&self, images: Vec<f32>, n: usize, size: Zyx<usize>, ranges: &mut Ranges) -> Result<Vec<f32>, Error> {
        let wanted: Vec<&str> =
            self.graph.nodes.iter().filter(|n| is_quantised(n)).flat_map(|n| [n.inputs[0].as_str(), n.output.as_str()]).collect();
        self.run(images, n, size, &mut |name, t| {
            if wanted.contains(&name) {
                let ends = [t.clone().min(), t.clone().max()].map(weights::values);
                let [low, high] = [&ends[0], &ends[1]].map(|v| v.as_ref().ok().and_then(|v| v.first()).copied());
                let (Some(low), Some(high)) = (low, high) else { return Err(Error::Model { why: format!("cannot read {name} back") }) };
                let range = ranges.entry(name.into()).or_insert((low, high));
                *range = (range.0.min(low), range.1.max(high));
            }
            Ok(t)
        })
    }

    fn run(
        &self,
        images: Vec<f32>,
        n: usize,
        size: Zyx<usize>,
        see: &mut dyn FnMut(&str, Tensor<5>) -> Result<Tensor<5>, Error>,
    ) -> Result<Vec<f32>, Error> {
        if n == 0 || Some(images.len()) != size.checked_count().and_then(|v| v.checked_mul(n * self.graph.channels)) {
            return Err(Error::Model {
                why: format!("{} values for {n} patches of {} channel(s) and {size} voxels", images.len(), self.graph.channels),
            });
        }
        let shape = [n, self.graph.channels, size.z, size.y, size.x];
        let image = Tensor::<5>::from_data(TensorData::new(images, shape), &self.device.burn);
        let mut values = BTreeMap::from([(IMAGE, see(IMAGE, self.rounded(image)?)?)]);
        for (at, node) in self.graph.nodes.iter().enumerate() {
            let out = self.apply(node, &values)?;
            let out = self.rounded(out)?;
            values.insert(&node.output, see(&node.output, out)?);
            let is_needed = |name: &str| name == LOGITS || self.graph.nodes[at + 1..].iter().any(|n| n.inputs.iter().any(|i| i == name));
            values.retain(|name, _| is_needed(name));
        }
        let logits = values.remove(LOGITS).ok_or_else(|| Error::Model { why: "a graph without logits".into() })?;
        weights::values(logits)
    }

    fn apply(&self, node: &Node, values: &BTreeMap<&str, Tensor<5>>) -> Result<Tensor<5>, Error> {
        let is_eight = self.precision == Precision::Int8 && is_quantised(node);
        let tensor = |i: usize| values.get(node.inputs[i].as_str()).cloned().expect("inputs come before what reads them");
        let x = if is_eight { self.in_bytes(&node.inputs[0], tensor(0))? } else { tensor(0) };
        let bias = node.inputs.get(2).map(|b| self.vectors[b].clone());
        let out = match &node.op {
            Op::Conv { stride, padding } => kernels::conv3d(x, self.kernels[&node.inputs[1]].clone(), bias, *stride, *padding),
            Op::ConvTranspose { .. } => kernels::upsample_conv3d(x, self.kernels[&node.inputs[1]].clone(), bias),
            Op::InstanceNormalization => {
                let affine = bias.map(|shift| (self.vectors[&node.inputs[1]].clone(), shift));
                kernels::instance_norm(x, affine, 1.0)
            }
            Op::LeakyRelu => burn::tensor::activation::leaky_relu(x, 0.01),
            Op::Add => x + tensor(1),
            Op::Concat => Tensor::cat(vec![x, tensor(1)], 1),
        };
        if is_eight { self.in_bytes(&node.output, out) } else { Ok(out) }
    }

    /// As float16 leaves it behind.
    fn rounded(&self, t: Tensor<5>) -> Result<Tensor<5>, Error> {
        if self.precision != Precision::Fp16 {
            return Ok(t);
        }
        self.each(t, rounded_to_half)
    }

    fn in_bytes(&self, name: &str, t: Tensor<5>) -> Result<Tensor<5>, Error> {
        let range = self.ranges.get(name).ok_or_else(|| Error::Model { why: format!("no range of {name} was measured") })?;
        let scale = Scale::of(*range);
        self.each(t, |v| scale.there_and_back(v))
    }

    fn each(&self, t: Tensor<5>, f: impl Fn(f32) -> f32) -> Result<Tensor<5>, Error> {
        let shape = t.dims();
        let values: Vec<f32> = weights::values(t)?.into_iter().map(f).collect();
        Ok(Tensor::from_data(TensorData::new(values, shape), &self.device.burn))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::{Loss, Network, Optimiser, Predictor, Trainer};

    #[test]
    fn a_graph_answers_as_its_network_and_int8_near_it() {
        let dir = tempfile::tempdir().unwrap();
        let (device, size, file) = (Device::cpu(), Zyx::splat(16), dir.path().join("w.safetensors"));
        for (residual, norm, kernel) in [(false, "instance_affine", json!(3)), (true, "instance", json!([1, 3, 3]))] {
            let network: Network = serde_json::from_value(json!({
                "kind": "dynunet", "filters": [4, 6, 8], "kernel_size": [kernel, 3, 3], "strides": [1, 2, [1, 2, 2]], "res_block": residual, "norm": norm,
                "deep_supervision": 1, "trans_bias": residual
            }))
            .unwrap();
            Trainer::new(&network, 1, 2, &Loss::default(), &Optimiser::default(), 1, &device).unwrap().predictor().save(&file).unwrap();
            let graph = || Graph::of(&network, weights::read(&file, 1 << 30).unwrap(), 1, 2).unwrap();
            let image: Vec<f32> = (0..2 * size.count()).map(|i| (i * 31 % 97) as f32 / 40.0 - 1.0).collect();
            let wanted = Predictor::load(&network, 1, 2, &file, &device).unwrap().forward(image.clone(), 2, size).unwrap();
            let most = wanted.iter().fold(0f32, |m, v| m.max(v.abs()));
            let apart = |a: &[f32]| a.iter().zip(&wanted).map(|(a, b)| (a - b).abs() / most).fold(0f32, f32::max);
            let mut ranges = Ranges::new();
            let plain = Session::new(graph(), Precision::Fp32, Ranges::new(), &device).unwrap();
            assert!(apart(&plain.measure(image.clone(), 2, size, &mut ranges).unwrap()) < 1e-5);
            assert!(ranges.contains_key(IMAGE) && ranges.values().all(|(low, high)| low < high));
            let half = Session::new(graph(), Precision::Fp16, Ranges::new(), &device).unwrap().forward(image.clone(), 2, size).unwrap();
            let byte = Session::new(graph(), Precision::Int8, ranges, &device).unwrap().forward(image.clone(), 2, size).unwrap();
            assert!(apart(&half) < 0.01 && apart(&half) > 0.0, "{}", apart(&half));
            assert!(apart(&byte) < 0.2 && apart(&byte) > apart(&half), "{}", apart(&byte));
            let unmeasured = Session::new(graph(), Precision::Int8, Ranges::new(), &device).unwrap().forward(image, 2, size);
            assert!(unmeasured.unwrap_err().to_string().contains("no range of"));
        }
    }
}
