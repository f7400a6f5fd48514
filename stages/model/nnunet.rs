//! The networks of nnU-Net v2, PlainConvUNet and ResidualEncoderUNet, under their own parameter names, so that its checkpoints fit. They are not MONAI's
//! DynUNet: convolutions have biases, decoders take the kernel of the skip's stage, and every stage of the decoder has a head.
//! Source: dynamic_network_architectures 0.4.4 (architectures/unet.py, building_blocks/*.py).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Zyx;

use super::blocks::PerAxis;
use super::graph::{At, Graph};
use crate::stage::Finding;

/// The arguments of nnU-Net v2's plans (`architecture.arch_kwargs`). Lists run from full resolution to the bottleneck.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nnunet {
    /// Channels of each stage.
    pub features_per_stage: Vec<usize>,
    /// Convolution kernel of each stage: a number, `[z, y, x]` or `{ z: 1, y: 3, x: 3 }`; odd. For a 2-D plan z is 1.
    pub kernel_sizes: Vec<PerAxis>,
    /// Stride into each stage; the first is 1. For a 2-D plan z is 1.
    pub strides: Vec<PerAxis>,
    /// Convolutions of each stage of a plain encoder (PlainConvUNet). Not beside `n_blocks_per_stage`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_conv_per_stage: Option<Vec<usize>>,
    /// Residual blocks of each stage of a residual encoder (ResidualEncoderUNet).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_blocks_per_stage: Option<Vec<usize>>,
    /// Convolutions of each stage of the decoder, the deepest first: one fewer than stages.
    pub n_conv_per_stage_decoder: Vec<usize>,
    /// Bias in convolutions.
    #[serde(default = "yes")]
    pub conv_bias: bool,
    /// Train with a loss on every stage of the decoder. The heads are there either way.
    #[serde(default = "yes")]
    pub deep_supervision: bool,
}

fn yes() -> bool {
    true
}

/// Slope of the leaky ReLU.
const SLOPE: f32 = 0.01;

/// One convolution with what follows it.
#[derive(Clone, Copy)]
struct Unit {
    to: usize,
    kernel: Zyx<usize>,
    stride: Zyx<usize>,
    /// 1: no activation.
    slope: f32,
    bias: bool,
}

impl Nnunet {
    fn stages(&self) -> usize {
        self.features_per_stage.len()
    }

    pub fn divisor(&self) -> Zyx<usize> {
        self.strides.iter().fold(Zyx::splat(1), |a, s| a.zip(s.0).map(|(a, s)| a.saturating_mul(s.max(1))))
    }

    pub fn downsamplings(&self) -> usize {
        self.strides.iter().filter(|s| s.0 != Zyx::splat(1)).count()
    }

    pub fn heads(&self) -> usize {
        if self.deep_supervision { self.stages().saturating_sub(1).max(1) } else { 1 }
    }

    /// Arguments that make no network.
    pub fn structure_findings(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        let mut refuse = |field: &str, message: String, help: &str| out.push(Finding::error(&format!("network.{field}"), message, help));
        let stages = self.stages();
        if !(2..=12).contains(&stages) || self.features_per_stage.iter().any(|f| *f == 0 || *f > 4096) {
            let help = "give 1 to 4096 channels for each of 2 to 12 stages";
            refuse("features_per_stage", format!("{:?}", self.features_per_stage), help);
        }
        for (field, found, wanted) in [
            ("kernel_sizes", self.kernel_sizes.len(), stages),
            ("strides", self.strides.len(), stages),
            ("n_conv_per_stage_decoder", self.n_conv_per_stage_decoder.len(), stages.saturating_sub(1)),
        ] {
            if found != wanted {
                refuse(field, format!("{found} entries for {stages} stages"), &format!("give {wanted}"));
            }
        }
        let per_stage = match (&self.n_conv_per_stage, &self.n_blocks_per_stage) {
            (Some(n), None) => Some(("n_conv_per_stage", n)),
            (None, Some(n)) => Some(("n_blocks_per_stage", n)),
            _ => None,
        };
        match per_stage {
            None => refuse(
                "n_conv_per_stage",
                "the encoder is neither plain nor residual, or both".into(),
                "give n_conv_per_stage or n_blocks_per_stage",
            ),
            Some((field, n)) if n.len() != stages || n.iter().any(|n| *n == 0 || *n > 64) => {
                refuse(field, format!("{n:?} for {stages} stages"), "give 1 to 64 a stage");
            }
            Some(_) => {}
        }
        if self.n_conv_per_stage_decoder.iter().any(|n| *n == 0 || *n > 64) {
            refuse("n_conv_per_stage_decoder", format!("{:?}", self.n_conv_per_stage_decoder), "give 1 to 64 a stage");
        }
        for k in self.kernel_sizes.iter().flat_map(|k| k.0.to_array()) {
            if k % 2 == 0 || k > 31 {
                refuse("kernel_sizes", format!("a kernel of {k}"), "kernels are odd, 1 to 31");
            }
        }
        for s in self.strides.iter().flat_map(|s| s.0.to_array()) {
            if s == 0 || s > 16 {
                refuse("strides", format!("a stride of {s}"), "strides are 1 to 16");
            }
        }
        out.dedup();
        out
    }

    pub fn shrinks(&self) -> bool {
        self.strides.first().is_some_and(|s| s.0 != Zyx::splat(1))
    }

    pub(super) fn graph(&self, channels: usize, classes: usize) -> Graph {
        let mut g = Graph::new(channels);
        g.aliases = vec!["decoder.encoder.", ".all_modules."];
        let (f, last, one) = (&self.features_per_stage, self.stages() - 1, Zyx::splat(1));
        let unit = |to: usize, kernel: Zyx<usize>| Unit { to, kernel, stride: one, slope: SLOPE, bias: self.conv_bias };
        let mut x = Graph::INPUT;
        if self.n_blocks_per_stage.is_some() {
            x = self.convolve(&mut g, "encoder.stem.convs.0", x, unit(f[0], self.kernel_sizes[0].0));
        }
        let mut skips = Vec::new();
        for s in 0..=last {
            let (kernel, stride) = (self.kernel_sizes[s].0, self.strides[s].0);
            let nth = |i: usize| Unit { stride: if i == 0 { stride } else { one }, ..unit(f[s], kernel) };
            match (&self.n_blocks_per_stage, &self.n_conv_per_stage) {
                (Some(blocks), _) => {
                    for i in 0..blocks[s] {
                        x = self.residual(&mut g, &format!("encoder.stages.{s}.blocks.{i}"), x, nth(i));
                    }
                }
                (None, convs) => {
                    for i in 0..convs.as_ref().map_or(0, |c| c[s]) {
                        x = self.convolve(&mut g, &format!("encoder.stages.{s}.0.convs.{i}"), x, nth(i));
                    }
                }
            }
            skips.push(x);
        }
        let mut heads = Vec::new();
        for (i, level) in (0..last).rev().enumerate() {
            x = g.up_conv(&format!("decoder.transpconvs.{i}"), x, f[level], self.strides[level + 1].0, self.conv_bias);
            x = g.cat(x, skips[level]);
            for c in 0..self.n_conv_per_stage_decoder[i] {
                x = self.convolve(&mut g, &format!("decoder.stages.{i}.convs.{c}"), x, unit(f[level], self.kernel_sizes[level].0));
            }
            let head = g.kernel(&format!("decoder.seg_layers.{i}"), f[level], classes, one, true);
            heads.push(g.conv(x, head, one, Zyx::splat(0)));
        }
        heads.reverse();
        heads.truncate(self.heads());
        g.heads = heads;
        g
    }

    /// Convolution, instance norm with scale and shift, leaky ReLU (ConvDropoutNormReLU).
    fn convolve(&self, g: &mut Graph, name: &str, x: At, u: Unit) -> At {
        let conv = g.kernel(&format!("{name}.conv"), g.channels[x], u.to, u.kernel, u.bias);
        let affine = g.affine(&format!("{name}.norm"), u.to);
        let x = g.conv(x, conv, u.stride, u.kernel.map(|k| (k - 1) / 2));
        g.instance_norm(x, Some(affine), u.slope)
    }

    /// BasicBlockD: two convolutions, and the input beside them, averaged where there is a stride and projected where channels change.
    fn residual(&self, g: &mut Graph, name: &str, x: At, u: Unit) -> At {
        let one = Zyx::splat(1);
        let y = self.convolve(g, &format!("{name}.conv1"), x, u);
        let y = self.convolve(g, &format!("{name}.conv2"), y, Unit { stride: one, slope: 1.0, ..u });
        let mut shortcut = x;
        if u.stride != one {
            shortcut = g.pool(shortcut, u.stride);
        }
        if g.channels[x] != u.to {
            // The projection stands behind the average in PyTorch's Sequential.
            let place = usize::from(u.stride != one);
            let projection = Unit { kernel: one, stride: one, slope: 1.0, bias: false, ..u };
            shortcut = self.convolve(g, &format!("{name}.skip.{place}"), shortcut, projection);
        }
        let y = g.add(y, shortcut);
        g.leaky(y, SLOPE)
    }
}
