//! DynUNet: MONAI's configurable U-Net (the network of nnU-Net), same arguments, same parameter names, same numbers.
//! Source: monai/networks/nets/dynunet.py, monai/networks/blocks/dynunet_block.py (1.6.1).

use burn::module::Module;
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Zyx;

use super::blocks::{Block, BlockShape, OutBlock, PerAxis, UpBlock, UpConv};
use super::dropout::Dropout;
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

    /// Sizes of the feature maps for an input of `patch`, full resolution first.
    fn sizes(&self, patch: Zyx<usize>) -> Vec<Zyx<usize>> {
        let mut size = patch;
        self.strides
            .iter()
            .map(|s| {
                size = size.zip(s.0).map(|(n, s)| n / s.max(1));
                size
            })
            .collect()
    }

    pub fn findings(&self, patch: Zyx<usize>, classes: usize) -> Vec<Finding> {
        let mut out = self.structure_findings();
        if classes < 2 {
            out.push(Finding::error(
                "network",
                format!("{classes} class(es) with the background"),
                "name at least one class in the labels",
            ));
        }
        if !out.is_empty() {
            return out;
        }
        let divisor = self.divisor();
        let wrong = patch.zip(divisor).map(|(n, d)| n == 0 || n % d != 0);
        if wrong.z || wrong.y || wrong.x {
            let fitted = patch.zip(divisor).map(|(n, d)| n.div_ceil(d).max(1) * d);
            out.push(Finding::error(
                "patch",
                format!("a patch of {patch} voxels is no multiple of the product of the strides, {divisor}"),
                format!("use z: {}, y: {}, x: {}", fitted.z, fitted.y, fitted.x),
            ));
            return out;
        }
        let bottom = *self.sizes(patch).last().expect("structure_findings wants three levels");
        if bottom.count() == 1 {
            out.push(Finding::error(
                "patch",
                format!("a patch of {patch} voxels is a single voxel at the bottleneck, where instance norm has nothing to average"),
                "take a larger patch or fewer levels",
            ));
        } else if bottom.z.min(bottom.y).min(bottom.x) < 4 {
            out.push(Finding::warning(
                "patch",
                format!("the bottleneck sees only {bottom} voxels"),
                "take a larger patch, or stride 1 on the short axis at one level",
            ));
        }
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
    fn structure_findings(&self) -> Vec<Finding> {
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
        // The same fault on three axes is one fault.
        out.dedup();
        out
    }

    pub fn step_bytes(&self, channels: usize, classes: usize, n: usize, patch: Zyx<usize>) -> u64 {
        let voxels = |s: Zyx<usize>| s.to_array().iter().fold(1u64, |a, v| a.saturating_mul(*v as u64));
        let (sizes, filters) = (self.sizes(patch), self.channels());
        let mut floats = voxels(patch).saturating_mul((channels + 4 * classes) as u64);
        for (i, (size, f)) in sizes.iter().zip(&filters).enumerate() {
            // Down: two convolutions and two norms; up: the same, the upsampled half, the concatenation.
            let maps = if i + 1 < sizes.len() { 4 + 4 + 1 + 2 } else { 4 };
            floats = floats.saturating_add(voxels(*size).saturating_mul(maps * *f as u64));
        }
        // Values are kept for the backward pass; at any moment a few gradients live beside them.
        floats.saturating_mul(4 * n as u64).saturating_mul(3) / 2
    }
}

/// The network itself. Field names are MONAI's.
#[derive(Module, Debug)]
pub struct Net {
    pub input_block: Block,
    pub downsamples: Vec<Block>,
    pub bottleneck: Block,
    /// The deepest first.
    pub upsamples: Vec<UpBlock>,
    pub output_block: OutBlock,
    pub deep_supervision_heads: Vec<OutBlock>,
}

impl Net {
    /// All weights 0. `config` must have no error among its findings.
    pub fn new(config: &Dynunet, channels: usize, classes: usize, device: &burn::tensor::Device) -> Self {
        let f = config.channels();
        let last = f.len() - 1;
        let block = |level: usize, from: usize| {
            let shape = BlockShape {
                from,
                to: f[level],
                kernel: config.kernel_size[level].0,
                stride: config.strides[level].0,
                affine: config.norm == Norm::InstanceAffine,
                residual: config.res_block,
            };
            Block::new(shape, device)
        };
        let up = |level: usize| {
            let shape = BlockShape {
                from: 2 * f[level],
                to: f[level],
                kernel: config.kernel_size[level + 1].0,
                stride: Zyx::splat(1),
                affine: config.norm == Norm::InstanceAffine,
                residual: false,
            };
            UpBlock {
                transp_conv: UpConv::new(f[level + 1], f[level], config.strides[level + 1].0, config.trans_bias, device),
                conv_block: Block::new(shape, device),
            }
        };
        Self {
            input_block: block(0, channels),
            downsamples: (1..last).map(|i| block(i, f[i - 1])).collect(),
            bottleneck: block(last, f[last - 1]),
            upsamples: (0..last).rev().map(up).collect(),
            output_block: OutBlock::new(f[0], classes, device),
            deep_supervision_heads: (1..=config.deep_supervision.0).map(|level| OutBlock::new(f[level], classes, device)).collect(),
        }
    }

    /// Logits at full resolution, [n, class, z, y, x].
    pub fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        self.decode(x, &mut Dropout::off(), false).remove(0)
    }

    /// The logits of every head, each at its own resolution, full resolution first.
    pub fn forward_heads(&self, x: Tensor<5>, dropout: &mut Dropout) -> Vec<Tensor<5>> {
        self.decode(x, dropout, true)
    }

    fn decode(&self, x: Tensor<5>, dropout: &mut Dropout, heads: bool) -> Vec<Tensor<5>> {
        let mut skips = vec![self.input_block.forward(x, dropout)];
        for down in &self.downsamples {
            let last = skips.last().expect("the input block gave the first").clone();
            skips.push(down.forward(last, dropout));
        }
        let mut x = self.bottleneck.forward(skips.last().expect("the input block gave the first").clone(), dropout);
        let mut lower = Vec::new();
        for up in &self.upsamples {
            let level = skips.len() - 1;
            let skip = skips.pop().expect("as many upsamplings as skips");
            x = up.forward(x, skip, dropout);
            // Head h reads what comes out h + 1 levels below full resolution.
            if heads
                && level >= 1
                && let Some(head) = self.deep_supervision_heads.get(level - 1)
            {
                lower.push(head.forward(x.clone(), dropout));
            }
        }
        let mut out = vec![self.output_block.forward(x, dropout)];
        out.extend(lower.into_iter().rev());
        out
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

    fn errors(d: &Dynunet, patch: Zyx<usize>) -> Vec<String> {
        d.findings(patch, 3).into_iter().filter(|f| !f.is_warning).map(|f| f.field).collect()
    }

    #[test]
    fn the_recipe_has_monai_s_number_of_parameters() {
        let net = Net::new(&parse(recipe()).unwrap(), 1, 3, &burn::tensor::Device::flex());
        assert_eq!(net.num_params(), 5_598_342);
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
    fn traps_are_found_before_training() {
        let clinic = Zyx::new(32, 256, 256);
        let recipe = parse(recipe()).unwrap();
        let found = recipe.findings(clinic, 3);
        assert!(found.iter().all(|f| f.is_warning) && found[0].field == "network.norm");
        assert_eq!(errors(&recipe, Zyx::new(32, 250, 256)), ["patch"]);
        assert!(recipe.findings(Zyx::new(32, 250, 256), 3)[0].help.contains("z: 32, y: 256, x: 256"));
        assert!(recipe.findings(Zyx::new(16, 256, 256), 3).iter().any(|f| f.is_warning && f.message.contains("2×32×32")));
        assert_eq!(errors(&recipe, Zyx::splat(8)), ["patch"]);
        assert_eq!(errors(&with("deep_supervision", json!(3)), clinic), ["network.deep_supervision"]);
        assert_eq!(errors(&with("filters", json!([8, 16])), clinic), ["network.filters"]);
        assert_eq!(errors(&with("kernel_size", json!([3, 3, 3, 2])), clinic), ["network.kernel_size"]);
        assert_eq!(errors(&with("upsample_kernel_size", json!([2, 2, 1])), clinic), ["network.upsample_kernel_size"]);
        assert_eq!(errors(&with("dropout", json!(1.0)), clinic), ["network.dropout"]);
        assert!(recipe.findings(clinic, 1).iter().any(|f| !f.is_warning));
    }

    #[test]
    fn every_way_to_write_a_size_is_in_the_schema() {
        let schema = serde_json::to_string(&schemars::schema_for!(Dynunet)).unwrap();
        assert!(schema.contains("\"minItems\":3") && schema.contains("\"boolean\""), "{schema}");
    }
}
