//! Words that the configurations of several networks share, and squeeze-and-excitation by itself.

use burn::tensor::{Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Zyx;

use super::device::Device;
use super::graph::Gate;
use crate::error::Error;

/// A size for each axis: one number for all, `[z, y, x]`, or `{ z: …, y: …, x: … }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "PerAxisText", into = "Zyx<usize>")]
pub struct PerAxis(#[schemars(with = "PerAxisText")] pub Zyx<usize>);

#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum PerAxisText {
    Same(usize),
    List([usize; 3]),
    Axes(Zyx<usize>),
}

impl From<PerAxisText> for PerAxis {
    fn from(t: PerAxisText) -> Self {
        PerAxis(match t {
            PerAxisText::Same(n) => Zyx::splat(n),
            PerAxisText::List(a) => Zyx::from_array(a),
            PerAxisText::Axes(z) => z,
        })
    }
}

impl From<PerAxis> for Zyx<usize> {
    fn from(p: PerAxis) -> Self {
        p.0
    }
}

/// Squeeze-and-excitation (Hu et al. 2018): the mean of each channel goes through two small layers and comes back as a factor for the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Excitation {
    /// How many times fewer channels the hidden layer has (MONAI's `r`).
    #[serde(default = "two")]
    pub reduction: usize,
    /// `channel`: ReLU inside, sigmoid, x·gate (MONAI ChannelSELayer). `residual`: leaky ReLU inside, ReLU, x·gate + x (ResidualSELayer).
    #[serde(default)]
    pub form: Form,
}

fn two() -> usize {
    2
}

/// The two layers that MONAI has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    #[default]
    Channel,
    Residual,
}

impl Excitation {
    pub(super) fn gate(&self) -> Gate {
        match self.form {
            Form::Channel => Gate::Channel,
            Form::Residual => Gate::Residual,
        }
    }
}

/// Squeeze-and-excitation on plain arrays.
/// - x: [n, c, z, y, x]
/// - squeeze: weight `[r, c]` and bias `[r]`; excite: weight `[c, r]` and bias `[c]`
pub fn squeeze_excitation(
    x: Vec<f32>,
    n: usize,
    size: Zyx<usize>,
    squeeze: (&[f32], &[f32]),
    excite: (&[f32], &[f32]),
    form: Form,
    device: &Device,
) -> Result<Vec<f32>, Error> {
    let (reduced, channels) = (squeeze.1.len(), excite.1.len());
    let voxels = size.checked_count().unwrap_or(usize::MAX);
    let wanted = n.saturating_mul(channels).saturating_mul(voxels);
    if wanted == 0 || x.len() != wanted || squeeze.0.len() != reduced * channels || excite.0.len() != reduced * channels {
        let why = format!("squeeze-and-excitation of {n}×{channels}×{size} voxels got {} values", x.len());
        return Err(Error::Model { why });
    }
    let d = &device.burn;
    let layer = |(w, b): (&[f32], &[f32]), from: usize| {
        let weight = Tensor::<2>::from_data(TensorData::new(w.to_vec(), [b.len(), from]), d);
        (weight, Tensor::<1>::from_data(TensorData::new(b.to_vec(), [b.len()]), d))
    };
    let x = Tensor::from_data(TensorData::new(x, [n, channels, size.z, size.y, size.x]), d);
    let gate = Excitation { reduction: 1, form }.gate();
    super::weights::values(super::net::excite(x, layer(squeeze, channels), layer(excite, reduced), gate))
}
