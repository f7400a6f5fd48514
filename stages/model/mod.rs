//! Networks, losses, training steps and inference. Burn enters here and nowhere else: what goes in and comes out is plain `f32`.
//! Arrays are `[n, channel, z, y, x]`, slowest axis first. Nothing here reads volumes or knows what a case is.

mod blocks;
mod cost;
pub mod device;
mod dropout;
mod dynunet;
pub mod graph;
mod kernels;
pub mod loss;
mod net;
mod nnunet;
pub mod onnx;
pub mod optimiser;
mod overlap;
mod predictor;
mod rules;
pub mod schedule;
mod segresnet;
mod slices;
mod slide;
mod target;
mod trainer;
pub mod weights;
pub mod window;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Zyx;

use crate::stage::Finding;
use graph::Graph;

pub use blocks::{Excitation, Form, PerAxis, squeeze_excitation};
pub use cost::Cost;
pub use device::{Device, device};
pub use dynunet::{Dynunet, Heads, Norm};
pub use loss::Loss;
pub use nnunet::Nnunet;
pub use optimiser::Optimiser;
pub use predictor::Predictor;
pub use schedule::Schedule;
pub use segresnet::Segresnet;
pub use slices::Slices;
pub use slide::{Field, slide, slide_layers};
pub use trainer::Trainer;
pub use window::{Blend, Window};

/// The architecture. `kind` names it, the other keys are its arguments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Network {
    /// MONAI's DynUNet (nnU-Net's plain U-Net), with the same arguments.
    Dynunet(Dynunet),
    /// MONAI's SegResNet, a residual encoder with a light decoder, with the same arguments.
    Segresnet(Segresnet),
    /// nnU-Net v2's own networks, for its checkpoints, with the arguments of its plans.
    Nnunet(Nnunet),
    /// 2.5-D: a 2-D DynUNet that sees a slice and its neighbours and answers for the slice in the middle.
    Slices(Slices),
    /// Space and time: a DynUNet whose z axis is time (cine loops, ultrasound) and whose convolutions come in two, over the frame and along time. Arguments
    /// as for `dynunet`.
    Spacetime(Dynunet),
}

impl Network {
    /// What is wrong or doubtful about this network for patches of `patch` voxels and `classes` classes, background included.
    pub fn findings(&self, patch: Zyx<usize>, classes: usize) -> Vec<Finding> {
        rules::findings(self, patch, classes)
    }

    /// Arguments that make no network.
    fn structure_findings(&self, classes: usize) -> Vec<Finding> {
        match self {
            Network::Dynunet(d) | Network::Spacetime(d) => d.structure_findings(),
            Network::Segresnet(s) => s.structure_findings(classes),
            Network::Nnunet(n) => n.structure_findings(),
            Network::Slices(s) => s.structure_findings(),
        }
    }

    /// Doubts that go with no size.
    fn doubts(&self) -> Vec<Finding> {
        match self {
            Network::Dynunet(d) | Network::Spacetime(d) => d.doubts(),
            Network::Segresnet(s) => s.doubts(),
            Network::Slices(s) => s.plane().doubts(),
            Network::Nnunet(_) => Vec::new(),
        }
    }

    /// What comes out must be a multiple of this on each axis.
    pub fn divisor(&self) -> Zyx<usize> {
        match self {
            Network::Dynunet(d) | Network::Spacetime(d) => d.divisor(),
            Network::Segresnet(s) => s.divisor(),
            Network::Nnunet(n) => n.divisor(),
            Network::Slices(s) => s.plane().divisor(),
        }
    }

    /// Voxels at either end of each axis that are looked at and have no answer: the logits are so much smaller than the patch.
    pub fn margin(&self) -> Zyx<usize> {
        match self {
            Network::Slices(s) => s.margin(),
            _ => Zyx::splat(0),
        }
    }

    /// How many times it makes the grid coarser.
    fn downsamplings(&self) -> usize {
        match self {
            Network::Dynunet(d) | Network::Spacetime(d) => d.downsamplings(),
            Network::Segresnet(s) => s.blocks_down.len().saturating_sub(1),
            Network::Nnunet(n) => n.downsamplings(),
            Network::Slices(s) => s.plane().downsamplings(),
        }
    }

    /// Whether the logits lie on a coarser grid than the patch.
    pub fn shrinks(&self) -> bool {
        match self {
            Network::Dynunet(d) | Network::Spacetime(d) => d.shrinks(),
            Network::Segresnet(_) => false,
            Network::Nnunet(n) => n.shrinks(),
            Network::Slices(s) => s.plane().shrinks(),
        }
    }

    /// Outputs that a loss looks at in training: the last one and those of deep supervision.
    pub fn heads(&self) -> usize {
        match self {
            Network::Dynunet(d) | Network::Spacetime(d) => d.deep_supervision.0 + 1,
            Network::Segresnet(_) => 1,
            Network::Nnunet(n) => n.heads(),
            Network::Slices(s) => s.deep_supervision.0 + 1,
        }
    }

    /// Probability of dropping a value in training.
    pub fn dropout(&self) -> f64 {
        match self {
            Network::Dynunet(d) | Network::Spacetime(d) => d.dropout,
            Network::Slices(s) => s.dropout,
            Network::Segresnet(_) | Network::Nnunet(_) => 0.0,
        }
    }

    /// Its operations and the names of its parameters, for `channels` channels in and `classes` out. The network must have no error among its findings.
    pub fn graph(&self, channels: usize, classes: usize) -> Graph {
        match self {
            Network::Dynunet(d) => d.graph(channels, classes),
            Network::Segresnet(s) => s.graph(channels, classes),
            Network::Nnunet(n) => n.graph(channels, classes),
            Network::Slices(s) => s.graph(channels, classes),
            Network::Spacetime(d) => d.factorised_graph(channels, classes),
        }
    }

    /// Parameters, operations and memory for a patch; `None` where an error stands among the findings.
    pub fn cost(&self, channels: usize, classes: usize, patch: Zyx<usize>) -> Option<Cost> {
        let is_sound = self.findings(patch, classes).iter().all(|f| f.is_warning);
        is_sound.then(|| Cost::of(&self.graph(channels, classes), patch))
    }

    /// Bytes that one training step on `n` patches holds at its peak, roughly.
    pub fn step_bytes(&self, channels: usize, classes: usize, n: usize, patch: Zyx<usize>) -> u64 {
        self.cost(channels, classes, patch).map_or(0, |c| c.step_bytes.saturating_mul(n as u64))
    }
}
