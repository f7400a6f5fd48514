//! SegResNet: MONAI's residual encoder with a light decoder that adds its skips, same arguments, same parameter names, same numbers.
//! Source: monai/networks/nets/segresnet.py, monai/networks/blocks/{segresnet_block,upsample}.py (1.6.1), after Myronenko 2018.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Zyx;

use super::graph::{At, Graph};
use crate::stage::Finding;

/// Arguments of MONAI's SegResNet, with its defaults. Each level has half the size and twice the channels of the one above.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Segresnet {
    /// Channels at full resolution.
    #[serde(default = "eight")]
    pub init_filters: usize,
    /// Residual blocks on each level, full resolution first. Their number is that of the levels.
    #[serde(default = "blocks_down")]
    pub blocks_down: Vec<usize>,
    /// Residual blocks after each upsampling, the deepest first: one fewer than `blocks_down`.
    #[serde(default = "blocks_up")]
    pub blocks_up: Vec<usize>,
    /// `group` is MONAI's default, `instance` has no learnable scale and shift (MONAI's plain "INSTANCE"), `instance_affine` has.
    #[serde(default)]
    pub norm: Norm,
    /// Group norm: channels are normalised together in so many groups; `init_filters` must be a multiple.
    #[serde(default = "eight")]
    pub num_groups: usize,
    /// `nontrainable` interpolates linearly, `deconv` is a transposed convolution.
    #[serde(default)]
    pub upsample_mode: Upsample,
    /// Norm, ReLU and a 1×1×1 convolution at the end. Without it the features come out, `init_filters` of them: then there must be as many classes.
    #[serde(default = "yes")]
    pub use_conv_final: bool,
    /// Slope of the activation below 0: 0 is MONAI's ReLU, 0.01 a leaky ReLU.
    #[serde(default)]
    pub negative_slope: f32,
}

/// How features are normalised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    #[default]
    Group,
    Instance,
    InstanceAffine,
}

/// How the decoder comes back to a finer grid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Upsample {
    #[default]
    Nontrainable,
    Deconv,
}

fn eight() -> usize {
    8
}

fn blocks_down() -> Vec<usize> {
    vec![1, 2, 2, 4]
}

fn blocks_up() -> Vec<usize> {
    vec![1, 1, 1]
}

fn yes() -> bool {
    true
}

impl Segresnet {
    fn levels(&self) -> usize {
        self.blocks_down.len()
    }

    pub fn divisor(&self) -> Zyx<usize> {
        Zyx::splat(1usize << self.levels().saturating_sub(1).min(20))
    }

    /// Arguments that make no network.
    pub fn structure_findings(&self, classes: usize) -> Vec<Finding> {
        let mut out = Vec::new();
        let mut refuse = |field: &str, message: String, help: &str| out.push(Finding::error(&format!("network.{field}"), message, help));
        let levels = self.levels();
        if !(2..=8).contains(&levels) {
            refuse("blocks_down", format!("{levels} level(s)"), "give one number of blocks a level, for 2 to 8 levels");
        }
        if self.blocks_up.len() + 1 != levels {
            let message = format!("{} numbers for {levels} levels", self.blocks_up.len());
            refuse("blocks_up", message, "give one fewer than blocks_down, the deepest first");
        }
        for (field, blocks) in [("blocks_down", &self.blocks_down), ("blocks_up", &self.blocks_up)] {
            if blocks.iter().any(|n| *n > 64) {
                refuse(field, format!("{blocks:?} blocks"), "at most 64 blocks a level");
            }
        }
        let widest = self.init_filters.saturating_mul(1 << levels.clamp(1, 9).saturating_sub(1));
        if self.init_filters == 0 || widest > 4096 {
            refuse(
                "init_filters",
                format!("{} channels, {widest} at the bottleneck", self.init_filters),
                "from 1, and at most 4096 at the bottleneck",
            );
        }
        if self.norm == Norm::Group && (self.num_groups == 0 || !self.init_filters.is_multiple_of(self.num_groups)) {
            let message = format!("{} groups of {} channels", self.num_groups, self.init_filters);
            refuse("num_groups", message, "init_filters must be a multiple of it");
        }
        if !self.use_conv_final && classes != self.init_filters {
            let message = format!("{} features come out for {classes} classes, background included", self.init_filters);
            refuse("use_conv_final", message, "leave it true: a convolution then makes the classes of the features");
        }
        if !(0.0..1.0).contains(&self.negative_slope) {
            refuse("negative_slope", format!("a slope of {}", self.negative_slope), "give 0 (ReLU) or more and less than 1");
        }
        out
    }

    /// Doubts that go with no size.
    pub fn doubts(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        if self.norm == Norm::Instance {
            out.push(Finding::warning(
                "network.norm",
                "instance norm has no learnable scale and shift (MONAI's norm=\"INSTANCE\")",
                "norm: group is MONAI's default",
            ));
        }
        out
    }

    pub(super) fn graph(&self, channels: usize, classes: usize) -> Graph {
        let mut g = Graph::new(channels);
        let f = |level: usize| self.init_filters << level;
        let mut x = self.conv(&mut g, "convInit", Graph::INPUT, f(0), 3, 1);
        let mut skips = Vec::new();
        for (level, blocks) in self.blocks_down.iter().enumerate() {
            if level > 0 {
                x = self.conv(&mut g, &format!("down_layers.{level}.0"), x, f(level), 3, 2);
            }
            for b in 0..*blocks {
                x = self.block(&mut g, &format!("down_layers.{level}.{}", b + 1), x);
            }
            skips.push(x);
        }
        for (i, blocks) in self.blocks_up.iter().enumerate() {
            let level = self.levels() - 2 - i;
            x = self.conv(&mut g, &format!("up_samples.{i}.0"), x, f(level), 1, 1);
            x = match self.upsample_mode {
                Upsample::Nontrainable => g.double(x),
                Upsample::Deconv => g.up_conv(&format!("up_samples.{i}.1.deconv"), x, f(level), Zyx::splat(2), true),
            };
            x = g.add(x, skips[level]);
            for b in 0..*blocks {
                x = self.block(&mut g, &format!("up_layers.{i}.{b}"), x);
            }
        }
        if self.use_conv_final {
            x = self.norm(&mut g, "conv_final.0", x);
            let one = Zyx::splat(1);
            let kernel = g.kernel("conv_final.2.conv", f(0), classes, one, true);
            x = g.conv(x, kernel, one, Zyx::splat(0));
        } else {
            // MONAI makes these layers and does not use them.
            g.aliases = vec!["conv_final."];
        }
        g.heads = vec![x];
        g
    }

    /// Norm, activation, convolution, twice, and the input added (MONAI ResBlock).
    fn block(&self, g: &mut Graph, name: &str, x: At) -> At {
        let to = g.channels[x];
        let y = self.norm(g, &format!("{name}.norm1"), x);
        let y = self.conv(g, &format!("{name}.conv1"), y, to, 3, 1);
        let y = self.norm(g, &format!("{name}.norm2"), y);
        let y = self.conv(g, &format!("{name}.conv2"), y, to, 3, 1);
        g.add(y, x)
    }

    /// Norm and activation.
    fn norm(&self, g: &mut Graph, name: &str, x: At) -> At {
        let channels = g.channels[x];
        match self.norm {
            Norm::Group => {
                let affine = g.affine(name, channels);
                g.group_norm(x, self.num_groups, affine, self.negative_slope)
            }
            Norm::Instance => g.instance_norm(x, None, self.negative_slope),
            Norm::InstanceAffine => {
                let affine = g.affine(name, channels);
                g.instance_norm(x, Some(affine), self.negative_slope)
            }
        }
    }

    /// Convolution without bias, padded by half its kernel.
    fn conv(&self, g: &mut Graph, name: &str, x: At, to: usize, size: usize, stride: usize) -> At {
        let kernel = g.kernel(&format!("{name}.conv"), g.channels[x], to, Zyx::splat(size), false);
        g.conv(x, kernel, Zyx::splat(stride), Zyx::splat(size / 2))
    }
}
