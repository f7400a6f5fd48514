//! 2.5-D: a 2-D DynUNet that sees a slice with its neighbours as channels and answers for the slice in the middle. A patch of z slices gives
//! z − slices + 1 answers. Its weights are those of MONAI's DynUNet with `spatial_dims=2` and `slices` · channels inputs, the slices of a channel together.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Zyx;

use super::blocks::{Excitation, PerAxis};
use super::dynunet::{Builder, Dynunet, Heads, Norm};
use super::graph::Graph;
use crate::stage::Finding;

/// A 2-D DynUNet over neighbouring slices. Lists run from full resolution to the bottleneck, at least three entries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Slices {
    /// Slices that are looked at together, odd; the middle one is answered for. A patch has at least so many along z.
    #[serde(default = "five")]
    pub slices: usize,
    /// Convolution kernel of each level: a number or `[y, x]`; odd.
    pub kernel_size: Vec<PerPlane>,
    /// Stride into each level, a number or `[y, x]`; the first is 1.
    pub strides: Vec<PerPlane>,
    /// Channels of each level. Default: 32, 64, 128, … up to 512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filters: Option<Vec<usize>>,
    /// `instance_affine` is MONAI's default; `instance` has no learnable scale and shift.
    #[serde(default)]
    pub norm: Norm,
    /// Residual blocks on the way down (MONAI's `res_block`).
    #[serde(default)]
    pub res_block: bool,
    /// Bias in the transposed convolutions.
    #[serde(default)]
    pub trans_bias: bool,
    /// How many lower resolutions have a loss of their own in training; 0, `none` or `false` switch it off, `true` is 1.
    #[serde(default)]
    pub deep_supervision: Heads,
    /// Probability of dropping a value after each convolution, training only.
    #[serde(default)]
    pub dropout: f64,
    /// Squeeze-and-excitation in every block. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub squeeze_excitation: Option<Excitation>,
}

fn five() -> usize {
    5
}

/// A size in the plane: one number for both axes or `[y, x]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum PerPlane {
    Same(usize),
    List([usize; 2]),
}

impl From<PerPlane> for PerAxis {
    fn from(p: PerPlane) -> Self {
        let (y, x) = match p {
            PerPlane::Same(n) => (n, n),
            PerPlane::List([y, x]) => (y, x),
        };
        PerAxis(Zyx::new(1, y, x))
    }
}

impl Slices {
    /// The network that sees one slice and its neighbours.
    pub(super) fn plane(&self) -> Dynunet {
        let flat = |v: &[PerPlane]| v.iter().copied().map(PerAxis::from).collect::<Vec<_>>();
        let default = || (0..self.strides.len()).map(|i| 512.min(32usize << i.min(20))).collect();
        Dynunet {
            kernel_size: flat(&self.kernel_size),
            strides: flat(&self.strides),
            filters: Some(self.filters.clone().unwrap_or_else(default)),
            upsample_kernel_size: None,
            norm: self.norm,
            res_block: self.res_block,
            trans_bias: self.trans_bias,
            deep_supervision: self.deep_supervision,
            dropout: self.dropout,
            squeeze_excitation: self.squeeze_excitation,
        }
    }

    /// Slices at either end of a patch that have no answer.
    pub fn margin(&self) -> Zyx<usize> {
        Zyx::new(self.slices / 2, 0, 0)
    }

    /// Arguments that make no network.
    pub fn structure_findings(&self) -> Vec<Finding> {
        let mut out = self.plane().structure_findings();
        if self.slices.is_multiple_of(2) || self.slices > 63 {
            let message = format!("{} slices have none in the middle", self.slices);
            out.push(Finding::error("network.slices", message, "give an odd number up to 63"));
        }
        out
    }

    pub(super) fn graph(&self, channels: usize, classes: usize) -> Graph {
        let mut g = Graph::new(channels);
        g.aliases = vec!["skip_layers."];
        let plane = g.stack(Graph::INPUT, self.slices);
        let heads = Builder { config: &self.plane(), factorised: false }.unet(&mut g, plane, classes);
        g.heads = heads.into_iter().map(|h| g.unstack(h)).collect();
        g
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_patch_of_as_many_slices_gives_one_answer() {
        let config = json!({ "slices": 3, "kernel_size": [3, [1, 3], 3], "strides": [1, 2, [1, 2]], "filters": [4, 8, 8] });
        let slices: Slices = serde_json::from_value(config).unwrap();
        assert!(slices.structure_findings().is_empty());
        let g = slices.graph(2, 3);
        assert_eq!(g.params[0].shape, [4, 6, 1, 3, 3]);
        let out = |z| g.sizes(Zyx::new(z, 8, 8))[g.heads[0]];
        assert_eq!(out(3), (1, Zyx::new(1, 8, 8)));
        assert_eq!(out(7), (1, Zyx::new(5, 8, 8)));
        let even: Slices = serde_json::from_value(json!({ "slices": 4, "kernel_size": [3, 3, 3], "strides": [1, 2, 2] })).unwrap();
        assert_eq!(even.structure_findings()[0].field, "network.slices");
    }
}
