//! The parts that 3-D networks are made of: convolutions, instance norm, the blocks of DynUNet, squeeze-and-excitation.
//! Fields are named so that a parameter's path is its name in MONAI's `state_dict`. Tensors are [n, channel, z, y, x].

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Zyx;

use super::device::Device;
use super::dropout::Dropout;
use super::kernels;
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

/// Weights of a convolution. Named as PyTorch's module.
#[derive(Module, Debug)]
pub struct Kernel {
    /// [out, in, kz, ky, kx]; transposed: [in, out, kz, ky, kx].
    pub weight: Param<Tensor<5>>,
    /// [out]
    pub bias: Option<Param<Tensor<1>>>,
}

impl Kernel {
    /// Zeros; `weights::initialise` fills them.
    fn new(shape: [usize; 5], bias: Option<usize>, device: &burn::tensor::Device) -> Self {
        Self {
            weight: Param::from_tensor(Tensor::zeros(shape, device)),
            bias: bias.map(|n| Param::from_tensor(Tensor::zeros([n], device))),
        }
    }
}

/// Convolution with MONAI's padding, int((k − s + 1) / 2) on each axis.
#[derive(Module, Debug)]
pub struct Conv {
    pub conv: Kernel,
    #[module(skip)]
    pub stride: [usize; 3],
    #[module(skip)]
    pub padding: [usize; 3],
}

impl Conv {
    pub fn new(from: usize, to: usize, kernel: Zyx<usize>, stride: Zyx<usize>, bias: bool, device: &burn::tensor::Device) -> Self {
        let [kz, ky, kx] = kernel.to_array();
        Self {
            conv: Kernel::new([to, from, kz, ky, kx], bias.then_some(to), device),
            stride: stride.to_array(),
            padding: kernel.zip(stride).map(|(k, s)| (k + 1).saturating_sub(s) / 2).to_array(),
        }
    }

    pub fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        let bias = self.conv.bias.as_ref().map(Param::val);
        kernels::conv3d(x, self.conv.weight.val(), bias, self.stride, self.padding)
    }
}

/// Transposed convolution whose kernel equals its stride: every input voxel becomes one box of output voxels.
#[derive(Module, Debug)]
pub struct UpConv {
    pub conv: Kernel,
}

impl UpConv {
    pub fn new(from: usize, to: usize, stride: Zyx<usize>, bias: bool, device: &burn::tensor::Device) -> Self {
        let [sz, sy, sx] = stride.to_array();
        Self { conv: Kernel::new([from, to, sz, sy, sx], bias.then_some(to), device) }
    }

    pub fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        kernels::upsample_conv3d(x, self.conv.weight.val(), self.conv.bias.as_ref().map(Param::val))
    }
}

/// Learnable scale and shift of an instance norm, both [channel].
#[derive(Module, Debug)]
pub struct Affine {
    pub weight: Param<Tensor<1>>,
    pub bias: Param<Tensor<1>>,
}

impl Affine {
    fn new(channels: usize, device: &burn::tensor::Device) -> Self {
        Self { weight: Param::from_tensor(Tensor::ones([channels], device)), bias: Param::from_tensor(Tensor::zeros([channels], device)) }
    }
}

/// Instance norm (per sample and channel over space, biased variance, ε = 1e-5), then leaky ReLU with `slope`; 1 leaves it out.
fn norm(x: Tensor<5>, affine: &Option<Affine>, slope: f32) -> Tensor<5> {
    kernels::instance_norm(x, affine.as_ref().map(|a| (a.weight.val(), a.bias.val())), slope)
}

/// Slope of the leaky ReLU in all blocks.
const SLOPE: f32 = 0.01;

/// Two convolutions, each with norm and leaky ReLU; the residual form adds the (projected) input before the last leaky ReLU.
/// MONAI: UnetBasicBlock and UnetResBlock.
#[derive(Module, Debug)]
pub struct Block {
    pub conv1: Conv,
    pub conv2: Conv,
    /// Residual form only, and there only where channels or size change.
    pub conv3: Option<Conv>,
    pub norm1: Option<Affine>,
    pub norm2: Option<Affine>,
    pub norm3: Option<Affine>,
    #[module(skip)]
    pub residual: bool,
}

/// What distinguishes one block from another.
#[derive(Clone, Copy, Debug)]
pub struct BlockShape {
    pub from: usize,
    pub to: usize,
    pub kernel: Zyx<usize>,
    pub stride: Zyx<usize>,
    pub affine: bool,
    pub residual: bool,
}

impl Block {
    pub fn new(s: BlockShape, device: &burn::tensor::Device) -> Self {
        let one = Zyx::splat(1);
        let projects = s.residual && (s.from != s.to || s.stride != one);
        let affine = |wanted: bool| (wanted && s.affine).then(|| Affine::new(s.to, device));
        Self {
            conv1: Conv::new(s.from, s.to, s.kernel, s.stride, false, device),
            conv2: Conv::new(s.to, s.to, s.kernel, one, false, device),
            conv3: projects.then(|| Conv::new(s.from, s.to, one, s.stride, false, device)),
            norm1: affine(true),
            norm2: affine(true),
            norm3: affine(projects),
            residual: s.residual,
        }
    }

    pub fn forward(&self, x: Tensor<5>, dropout: &mut Dropout) -> Tensor<5> {
        let shortcut = self.residual.then(|| x.clone());
        let y = norm(dropout.apply(self.conv1.forward(x)), &self.norm1, SLOPE);
        let y = dropout.apply(self.conv2.forward(y));
        let Some(shortcut) = shortcut else { return norm(y, &self.norm2, SLOPE) };
        let y = norm(y, &self.norm2, 1.0);
        let shortcut = match &self.conv3 {
            Some(conv) => norm(dropout.apply(conv.forward(shortcut)), &self.norm3, 1.0),
            None => shortcut,
        };
        burn::tensor::activation::leaky_relu(y + shortcut, SLOPE as f64)
    }
}

/// Upsampling, concatenation (upsampled first, then the skip), basic block. MONAI: UnetUpBlock.
#[derive(Module, Debug)]
pub struct UpBlock {
    pub transp_conv: UpConv,
    pub conv_block: Block,
}

impl UpBlock {
    pub fn forward(&self, x: Tensor<5>, skip: Tensor<5>, dropout: &mut Dropout) -> Tensor<5> {
        let x = dropout.apply(self.transp_conv.forward(x));
        self.conv_block.forward(Tensor::cat(vec![x, skip], 1), dropout)
    }
}

/// 1×1×1 convolution with bias, features to logits. MONAI: UnetOutBlock.
#[derive(Module, Debug)]
pub struct OutBlock {
    pub conv: Conv,
}

impl OutBlock {
    pub fn new(from: usize, classes: usize, device: &burn::tensor::Device) -> Self {
        Self { conv: Conv::new(from, classes, Zyx::splat(1), Zyx::splat(1), true, device) }
    }

    pub fn forward(&self, x: Tensor<5>, dropout: &mut Dropout) -> Tensor<5> {
        dropout.apply(self.conv.forward(x))
    }
}

/// Squeeze-and-excitation on plain arrays (MONAI: ChannelSELayer): average over space → linear → ReLU → linear → sigmoid → scale channels.
/// - x: [n, c, z, y, x]
/// - squeeze: weight `[r, c]` and bias `[r]`; excite: weight `[c, r]` and bias `[c]`
pub fn squeeze_excitation(
    x: Vec<f32>,
    n: usize,
    size: Zyx<usize>,
    squeeze: (&[f32], &[f32]),
    excite: (&[f32], &[f32]),
    device: &Device,
) -> Result<Vec<f32>, Error> {
    let (reduced, channels) = (squeeze.1.len(), excite.1.len());
    let voxels = size.checked_count().unwrap_or(usize::MAX);
    let wanted = n.saturating_mul(channels).saturating_mul(voxels);
    if x.len() != wanted || squeeze.0.len() != reduced * channels || excite.0.len() != reduced * channels {
        let why = format!("squeeze-and-excitation of {n}×{channels}×{size} voxels got {} values", x.len());
        return Err(Error::Model { why });
    }
    let d = &device.burn;
    let matrix = |v: &[f32], rows: usize, columns: usize| Tensor::<2>::from_data(TensorData::new(v.to_vec(), [rows, columns]), d);
    let x = Tensor::<3>::from_data(TensorData::new(x, [n, channels, voxels]), d);
    let pooled = x.clone().mean_dim(2).reshape([n, channels]);
    let hidden = pooled.matmul(matrix(squeeze.0, reduced, channels).transpose()) + matrix(squeeze.1, 1, reduced);
    let gate =
        burn::tensor::activation::relu(hidden).matmul(matrix(excite.0, channels, reduced).transpose()) + matrix(excite.1, 1, channels);
    let y = x * burn::tensor::activation::sigmoid(gate).reshape([n, channels, 1]);
    super::weights::values(y)
}
