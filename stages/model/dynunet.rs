//! DynUNet: MONAI's configurable U-Net (the network of nnU-Net), same arguments, same parameter names, same numbers.
//! Source: monai/networks/nets/dynunet.py, monai/networks/blocks/dynunet_block.py (1.6.1).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Zyx;

use super::blocks::{Excitation, PerAxis};
use super::graph::{At, Graph, Kernel, Param};
use crate::stage::Finding;

/// Arguments of MONAI's DynUNet. Lists run from full resolution to the bottleneck, at least three entries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dynunet {
    /// Convolution kernel of each level: a number, `[z, y, x]` or `{ z: 1, y: 3, x: 3 }`; odd.
    pub kernel_size: Vec<PerAxis>,
    /// Stride into each level; the first is 1 in most networks. Patches must be multiples of their product.
    pub strides: Vec<PerAxis>,
    /// Channels of each level. Default: 32, 64, 128, … up to 320.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filters: Option<Vec<usize>>,
    /// Kernel and stride of each upsampling. Default: the strides without the first, which is the only choice that fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upsample_kernel_size: Option<Vec<PerAxis>>,
    /// `instance_affine` is MONAI's default (`("INSTANCE", {"affine": True})`); MONAI's plain "INSTANCE" is `instance`: no learnable
    /// scale and shift.
    #[serde(default)]
    pub norm: Norm,
    /// Residual blocks on the way down (MONAI's `res_block`).
    #[serde(default)]
    pub res_block: bool,
    /// Bias in the transposed convolutions.
    #[serde(default)]
    pub trans_bias: bool,
    /// How many lower resolutions have a loss of their own in training (MONAI's `deep_supr_num`); 0, `none` or `false` switch it off,
    /// `true` is 1. Fewer than levels − 1.
    #[serde(default)]
    pub deep_supervision: Heads,
    /// Probability of dropping a value after each convolution, training only.
    #[serde(default)]
    pub dropout: f64,
    /// Squeeze-and-excitation in every block: attention over channels for next to no cost. Default: none, as in MONAI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub squeeze_excitation: Option<Excitation>,
}

/// Instance norm with or without learnable scale and shift.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    Instance,
    #[default]
    InstanceAffine,
}

/// A number of extra heads: `2`, `true` (1), `false` or `none` (0).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "HeadsText", into = "usize")]
pub struct Heads(#[schemars(with = "HeadsText")] pub usize);

#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum HeadsText {
    Number(usize),
    Switch(bool),
    Word(String),
    Null(()),
}

impl TryFrom<HeadsText> for Heads {
    type Error = String;

    fn try_from(t: HeadsText) -> Result<Self, String> {
        match t {
            HeadsText::Number(n) => Ok(Heads(n)),
            HeadsText::Switch(on) => Ok(Heads(on as usize)),
            HeadsText::Null(()) => Ok(Heads(0)),
            HeadsText::Word(w) if w == "none" => Ok(Heads(0)),
            HeadsText::Word(w) => Err(format!("deep_supervision is {w:?}: write a number of heads, true, false or none")),
        }
    }
}

impl From<Heads> for usize {
    fn from(h: Heads) -> usize {
        h.0
    }
}

impl Dynunet {
    pub fn levels(&self) -> usize {
        self.strides.len()
    }

    /// Channels of each level.
    pub fn channels(&self) -> Vec<usize> {
        let default = || (0..self.levels()).map(|i| 320.min(32usize.saturating_mul(1 << i.min(20)))).collect();
        self.filters.clone().map_or_else(default, |f| f[..self.levels().min(f.len())].to_vec())
    }

    fn upsample_strides(&self) -> Vec<PerAxis> {
        self.upsample_kernel_size.clone().unwrap_or_else(|| self.strides.iter().skip(1).copied().collect())
    }

    pub fn divisor(&self) -> Zyx<usize> {
        self.strides.iter().fold(Zyx::splat(1), |a, s| a.zip(s.0).map(|(a, s)| a.saturating_mul(s.max(1))))
    }

    /// Levels that are entered by a stride.
    pub fn downsamplings(&self) -> usize {
        self.strides.iter().filter(|s| s.0 != Zyx::splat(1)).count()
    }

    /// Whether the logits lie on a coarser grid than the patch.
    pub fn shrinks(&self) -> bool {
        self.strides.first().is_some_and(|s| s.0 != Zyx::splat(1))
    }

    /// Doubts that go with no size.
    pub fn doubts(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        if self.norm == Norm::Instance {
            out.push(Finding::warning(
                "network.norm",
                "instance norm has no learnable scale and shift (MONAI's norm_name=\"INSTANCE\")",
                "norm: instance_affine is MONAI's default and nnU-Net's choice",
            ));
        }
        out
    }

    /// Arguments that make no network.
    pub fn structure_findings(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        let mut refuse = |field: &str, message: String, help: &str| out.push(Finding::error(&format!("network.{field}"), message, help));
        let levels = self.levels();
        if levels < 3 {
            refuse("strides", format!("{levels} level(s)"), "give at least three strides, one a level, the first for full resolution");
        }
        if self.kernel_size.len() != levels {
            refuse("kernel_size", format!("{} kernels for {levels} strides", self.kernel_size.len()), "give one kernel a level");
        }
        for (k, s) in self.kernel_size.iter().zip(&self.strides) {
            for (k, s) in k.0.zip(s.0).to_array() {
                if k == 0 || k % 2 == 0 || k > 31 {
                    refuse("kernel_size", format!("a kernel of {k}"), "kernels are odd, 1 to 31, so that sizes stay what the strides say");
                } else if s == 0 || s > 16 {
                    refuse("strides", format!("a stride of {s}"), "strides are 1 to 16");
                } else if k + 1 < s {
                    refuse("strides", format!("stride {s} with kernel {k} would leave voxels unseen"), "a stride is at most kernel + 1");
                }
            }
        }
        if let Some(f) = &self.filters
            && (f.len() != levels || f.iter().any(|n| *n == 0 || *n > 4096))
        {
            refuse("filters", format!("{f:?} for {levels} levels"), "give one number of channels a level, 1 to 4096");
        }
        if self.upsample_strides() != self.strides.iter().skip(1).copied().collect::<Vec<_>>() {
            refuse("upsample_kernel_size", "it differs from the strides".into(), "leave it out: an upsampling must undo its stride");
        }
        let heads = self.deep_supervision.0;
        if heads > 0 && heads + 1 >= levels.max(2) {
            refuse(
                "deep_supervision",
                format!("{heads} heads in a network of {levels} levels"),
                "at most levels − 2: the bottleneck and full resolution have none",
            );
        }
        if !(0.0..1.0).contains(&self.dropout) {
            refuse("dropout", format!("probability {}", self.dropout), "give 0 or more and less than 1");
        }
        if let Some(se) = &self.squeeze_excitation {
            let narrowest = self.channels().into_iter().min().unwrap_or(0);
            if se.reduction == 0 || se.reduction > narrowest {
                refuse(
                    "squeeze_excitation.reduction",
                    format!("{} where the narrowest level has {narrowest} channels", se.reduction),
                    "give at least 1 and at most the channels of the narrowest level",
                );
            }
        }
        // The same fault on three axes is one fault.
        out.dedup();
        out
    }
}

/// Slope of the leaky ReLU in all blocks.
const SLOPE: f32 = 0.01;

/// What distinguishes one block from another.
#[derive(Clone, Copy)]
struct Shape {
    to: usize,
    kernel: Zyx<usize>,
    stride: Zyx<usize>,
    residual: bool,
}

impl Dynunet {
    /// The network under MONAI's names. The configuration must have no error among its findings.
    pub(super) fn graph(&self, channels: usize, classes: usize) -> Graph {
        let mut g = Graph::new(channels);
        g.aliases = vec!["skip_layers."];
        g.heads = Builder { config: self, factorised: false }.unet(&mut g, Graph::INPUT, classes);
        g
    }

    /// The same network with each convolution in two: over y and x, then along z (R(2+1)D of Tran et al. 2018; its width keeps the number of parameters).
    pub(super) fn factorised_graph(&self, channels: usize, classes: usize) -> Graph {
        let mut g = Graph::new(channels);
        g.heads = Builder { config: self, factorised: true }.unet(&mut g, Graph::INPUT, classes);
        g
    }
}

/// Writes a configuration down as operations.
pub(super) struct Builder<'a> {
    pub config: &'a Dynunet,
    pub factorised: bool,
}

/// The parameters of a convolution: in one, or over y and x, norm, and along z.
enum Parts {
    Whole(Kernel),
    Split { space: Kernel, norm: Option<(Param, Param)>, time: Kernel },
}

impl Builder<'_> {
    /// Adds the network to `g`; gives its heads, full resolution first.
    pub fn unet(&self, g: &mut Graph, input: At, classes: usize) -> Vec<At> {
        let c = self.config;
        let f = c.channels();
        let last = f.len() - 1;
        let down = |level: usize| Shape { to: f[level], kernel: c.kernel_size[level].0, stride: c.strides[level].0, residual: c.res_block };
        let mut skips = vec![self.block(g, "input_block", input, down(0))];
        for level in 1..last {
            skips.push(self.block(g, &format!("downsamples.{}", level - 1), skips[level - 1], down(level)));
        }
        let mut x = self.block(g, "bottleneck", skips[last - 1], down(last));
        let mut lower = Vec::new();
        for (i, level) in (0..last).rev().enumerate() {
            x = g.up_conv(&format!("upsamples.{i}.transp_conv.conv"), x, f[level], c.strides[level + 1].0, c.trans_bias);
            x = self.dropped(g, x);
            x = g.cat(x, skips[level]);
            let shape = Shape { to: f[level], kernel: c.kernel_size[level + 1].0, stride: Zyx::splat(1), residual: false };
            x = self.block(g, &format!("upsamples.{i}.conv_block"), x, shape);
            // Head h reads what comes out h + 1 levels below full resolution.
            if (1..=c.deep_supervision.0).contains(&level) {
                lower.push(self.out(g, &format!("deep_supervision_heads.{}", level - 1), x, classes));
            }
        }
        let mut heads = vec![self.out(g, "output_block", x, classes)];
        heads.extend(lower.into_iter().rev());
        heads
    }

    fn dropped(&self, g: &mut Graph, x: At) -> At {
        if self.config.dropout > 0.0 { g.dropout(x) } else { x }
    }

    /// 1×1×1 convolution with bias, features to logits (MONAI UnetOutBlock).
    fn out(&self, g: &mut Graph, name: &str, x: At, classes: usize) -> At {
        let one = Zyx::splat(1);
        let kernel = g.kernel(&format!("{name}.conv.conv"), g.channels[x], classes, one, true);
        let x = g.conv(x, kernel, one, Zyx::splat(0));
        self.dropped(g, x)
    }

    /// Two convolutions, each with norm and leaky ReLU; the residual form adds the (projected) input before the last leaky ReLU
    /// (MONAI UnetBasicBlock, UnetResBlock). Squeeze-and-excitation stands where MONAI's SEBlock has it: behind the last norm.
    fn block(&self, g: &mut Graph, name: &str, x: At, s: Shape) -> At {
        let (from, one) = (g.channels[x], Zyx::splat(1));
        let projects = s.residual && (from != s.to || s.stride != one);
        let conv1 = self.parts(g, &format!("{name}.conv1"), from, s.to, s.kernel);
        let conv2 = self.parts(g, &format!("{name}.conv2"), s.to, s.to, s.kernel);
        let conv3 = projects.then(|| Parts::Whole(g.kernel(&format!("{name}.conv3.conv"), from, s.to, one, false)));
        let (norm1, norm2) = (self.affine(g, &format!("{name}.norm1"), s.to), self.affine(g, &format!("{name}.norm2"), s.to));
        let norm3 = if projects { self.affine(g, &format!("{name}.norm3"), s.to) } else { None };
        let y = self.convolve(g, x, conv1, s.stride);
        let y = g.instance_norm(y, norm1, SLOPE);
        let y = self.convolve(g, y, conv2, one);
        let excited = self.config.squeeze_excitation;
        if !s.residual && excited.is_none() {
            return g.instance_norm(y, norm2, SLOPE);
        }
        let mut y = g.instance_norm(y, norm2, 1.0);
        if let Some(se) = excited {
            y = g.excite(&format!("{name}.se_layer"), y, s.to / se.reduction, se.gate());
        }
        if s.residual {
            let shortcut = match conv3 {
                Some(conv) => {
                    let projected = self.convolve(g, x, conv, s.stride);
                    g.instance_norm(projected, norm3, 1.0)
                }
                None => x,
            };
            y = g.add(y, shortcut);
        }
        g.leaky(y, SLOPE)
    }

    fn affine(&self, g: &mut Graph, name: &str, channels: usize) -> Option<(Param, Param)> {
        (self.config.norm == Norm::InstanceAffine).then(|| g.affine(name, channels))
    }

    fn parts(&self, g: &mut Graph, name: &str, from: usize, to: usize, kernel: Zyx<usize>) -> Parts {
        let plane = kernel.y * kernel.x;
        if !self.factorised || kernel.z == 1 || plane == 1 {
            return Parts::Whole(g.kernel(&format!("{name}.conv"), from, to, kernel, false));
        }
        let between = (kernel.z * plane * from * to / (plane * from + kernel.z * to)).max(1);
        Parts::Split {
            space: g.kernel(&format!("{name}.space"), from, between, Zyx { z: 1, ..kernel }, false),
            norm: self.affine(g, &format!("{name}.norm"), between),
            time: g.kernel(&format!("{name}.time"), between, to, Zyx::new(kernel.z, 1, 1), false),
        }
    }

    fn convolve(&self, g: &mut Graph, x: At, parts: Parts, stride: Zyx<usize>) -> At {
        match parts {
            Parts::Whole(kernel) => self.padded(g, x, kernel, stride),
            Parts::Split { space, norm, time } => {
                let x = self.padded(g, x, space, Zyx { z: 1, ..stride });
                let x = g.instance_norm(x, norm, SLOPE);
                self.padded(g, x, time, Zyx::new(stride.z, 1, 1))
            }
        }
    }

    /// Convolution with MONAI's padding, int((k − s + 1) / 2) on each axis.
    fn padded(&self, g: &mut Graph, x: At, kernel: Kernel, stride: Zyx<usize>) -> At {
        let padding = kernel.size.zip(stride).map(|(k, s)| (k + 1).saturating_sub(s) / 2);
        let x = g.conv(x, kernel, stride, padding);
        self.dropped(g, x)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(v: Value) -> Result<Dynunet, String> {
        serde_json::from_value(v).map_err(|e| e.to_string())
    }

    /// The reference recipe.
    fn recipe() -> Value {
        json!({ "filters": [32, 64, 128, 256], "kernel_size": [3, 3, 3, 3], "strides": [1, 2, 2, 2], "deep_supervision": true, "norm": "instance" })
    }

    fn with(key: &str, value: Value) -> Dynunet {
        let mut v = recipe();
        v[key] = value;
        parse(v).unwrap()
    }

    #[test]
    fn the_recipe_has_monai_s_number_of_parameters() {
        let graph = parse(recipe()).unwrap().graph(1, 3);
        assert_eq!(graph.n_parameters(), 5_598_342);
        assert_eq!(graph.params.len(), 21);
    }

    #[test]
    fn sizes_are_written_in_three_ways() {
        let all = parse(json!({ "kernel_size": [3, [1, 3, 3], { "z": 3, "y": 3, "x": 3 }], "strides": [1, [1, 2, 2], 2] })).unwrap();
        assert_eq!(all.kernel_size[1].0, Zyx::new(1, 3, 3));
        assert_eq!(all.divisor(), Zyx::new(2, 4, 4));
        assert_eq!(all.channels(), [32, 64, 128]);
        assert_eq!(all.norm, Norm::InstanceAffine);
        assert!(parse(json!({ "kernel_size": [[3, 3]], "strides": [1] })).is_err());
        assert!(parse(json!({ "kernel_size": [3], "strides": [1], "stride": [1] })).unwrap_err().contains("stride"));
    }

    #[test]
    fn deep_supervision_is_a_number_or_a_switch() {
        for (text, heads) in [(json!(2), 2), (json!(true), 1), (json!(false), 0), (json!("none"), 0), (json!(null), 0)] {
            assert_eq!(with("deep_supervision", text).deep_supervision.0, heads);
        }
        let mut v = recipe();
        v["deep_supervision"] = json!("all");
        assert!(parse(v).unwrap_err().contains("number of heads"));
    }

    #[test]
    fn every_way_to_write_a_size_is_in_the_schema() {
        let schema = serde_json::to_string(&schemars::schema_for!(Dynunet)).unwrap();
        assert!(schema.contains("\"minItems\":3") && schema.contains("\"boolean\""), "{schema}");
    }
}
