//! Trained networks as ONNX files (opset 18) in float32, float16 or int8, and what they answer, worked out here node by node. Sources: onnx/onnx.proto,
//! the operator reference of ONNX, ONNX Runtime's notes on quantised models (QDQ format).

mod graph;
mod proto;
mod run;
mod write;

use std::collections::BTreeMap;

use half::f16;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use graph::{Graph, IMAGE, LOGITS};
pub use run::Session;

/// Numbers that the operations of a file work with. What goes in and comes out is float32 in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    Fp32,
    Fp16,
    /// Convolutions on 8-bit integers, weights with a scale for each output channel, everything else in float32.
    Int8,
}

impl Precision {
    pub fn name(self) -> &'static str {
        match self {
            Precision::Fp32 => "fp32",
            Precision::Fp16 => "fp16",
            Precision::Int8 => "int8",
        }
    }
}

/// Smallest and largest value of the tensors that a convolution of a file in int8 takes and gives, by their names. Empty for the other precisions.
pub type Ranges = BTreeMap<String, (f32, f32)>;

/// A tensor in 8 bits: value = scale · (byte − zero).
#[derive(Clone, Copy, Debug, PartialEq)]
struct Scale {
    scale: f32,
    zero: u8,
}

impl Scale {
    /// 0 is among the values, as a convolution pads with it.
    fn of((low, high): (f32, f32)) -> Scale {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let scale = ((high - low) / 255.0).max(f32::MIN_POSITIVE);
        Scale { scale, zero: (-low / scale).round_ties_even().clamp(0.0, 255.0) as u8 }
    }

    fn there_and_back(self, v: f32) -> f32 {
        let q = ((v / self.scale).round_ties_even() + f32::from(self.zero)).clamp(0.0, 255.0);
        (q - f32::from(self.zero)) * self.scale
    }
}

/// The weights of a convolution in 8 bits, from −127 to 127, with the scale of each output channel (the first axis).
fn eight_bits(values: &[f32], outputs: usize) -> (Vec<i8>, Vec<f32>) {
    let each = (values.len() / outputs.max(1)).max(1);
    let scales: Vec<f32> =
        values.chunks(each).map(|w| (w.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0).max(f32::MIN_POSITIVE)).collect();
    let bytes =
        values.chunks(each).zip(&scales).flat_map(|(w, s)| w.iter().map(move |v| (v / s).round_ties_even().clamp(-127.0, 127.0) as i8));
    (bytes.collect(), scales)
}

/// Whether a convolution is done in 8 bits: all but the one that gives the logits, whose steps would be seen in the answer.
fn is_quantised(node: &graph::Node) -> bool {
    matches!(node.op, graph::Op::Conv { .. }) && node.output != LOGITS
}

fn rounded_to_half(v: f32) -> f32 {
    f16::from_f32(v).to_f32()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn eight_bits_hold_a_range_with_zero_in_it() {
        for range in [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0)] {
            let s = Scale::of(range);
            assert_eq!(s.there_and_back(0.0), 0.0);
            for v in [range.0, range.1, (range.0 + range.1) / 2.0] {
                assert!((s.there_and_back(v) - v).abs() <= s.scale * 0.501, "{v} of {range:?}");
            }
            assert!(s.there_and_back(1e9).is_finite());
        }
    }

    #[test]
    fn every_output_channel_has_its_own_scale() {
        let (bytes, scales) = eight_bits(&[1.0, -2.0, 0.0, 0.0, 0.25, 0.1], 3);
        assert_eq!(bytes, [64, -127, 0, 0, 127, 51]);
        assert!((scales[0] - 2.0 / 127.0).abs() < 1e-9 && scales[1] > 0.0 && (scales[2] - 0.25 / 127.0).abs() < 1e-9);
    }
}
