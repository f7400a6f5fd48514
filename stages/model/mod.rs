//! Networks, losses, training steps and inference. Burn enters here and nowhere else: what goes in and comes out is plain `f32`.
//! Arrays are `[n, channel, z, y, x]`, slowest axis first. Nothing here reads volumes or knows what a case is.

mod blocks;
pub mod device;
mod dropout;
mod dynunet;
mod kernels;
pub mod loss;
pub mod onnx;
pub mod optimiser;
mod overlap;
mod predictor;
pub mod schedule;
mod slide;
mod target;
mod trainer;
pub mod weights;
pub mod window;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Zyx;

use crate::stage::Finding;

pub use blocks::{PerAxis, squeeze_excitation};
pub use device::{Device, device};
pub use dynunet::{Dynunet, Heads, Norm};
pub use loss::Loss;
pub use optimiser::Optimiser;
pub use predictor::Predictor;
pub use schedule::Schedule;
pub use slide::{Field, slide, slide_layers};
pub use trainer::Trainer;
pub use window::{Blend, Window};

/// The architecture. `kind` names it, the other keys are its arguments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Network {
    /// MONAI's DynUNet (nnU-Net's plain U-Net), with the same arguments.
    Dynunet(Dynunet),
}

impl Network {
    /// What is wrong or doubtful about this network for patches of `patch` voxels and `classes` classes, background included.
    pub fn findings(&self, patch: Zyx<usize>, classes: usize) -> Vec<Finding> {
        match self {
            Network::Dynunet(d) => d.findings(patch, classes),
        }
    }

    /// Input sizes must be multiples of this on each axis.
    pub fn divisor(&self) -> Zyx<usize> {
        match self {
            Network::Dynunet(d) => d.divisor(),
        }
    }

    /// Bytes that one training step on `n` patches holds at its peak, roughly: every activation and its gradient, in float32.
    pub fn step_bytes(&self, channels: usize, classes: usize, n: usize, patch: Zyx<usize>) -> u64 {
        match self {
            Network::Dynunet(d) => d.step_bytes(channels, classes, n, patch),
        }
    }
}
