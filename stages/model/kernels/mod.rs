//! The heavy operations of a network. On the CPU they are our own, with their own backward passes: Burn's convolution builds a 27 times
//! larger matrix first and its instance norm is a chain of ten operations. On other devices they are composed from Burn's operations.

mod conv;
mod extension;
mod lanes;
mod lines;
mod loss;
mod norm;

use burn::backend::DispatchDevice;
use burn::tensor::Tensor;
use burn::tensor::activation::leaky_relu;
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};

pub use extension::head_loss;
use lines::ConvShape;
pub use loss::HeadLoss;

/// True for tensors on the CPU.
pub fn is_on_cpu<const D: usize>(x: &Tensor<D>) -> bool {
    matches!(x.device().inner().as_dispatch(), DispatchDevice::Flex(_))
}

/// True where our own convolution and norm run: on CPUs that have the instructions.
fn is_ours(x: &Tensor<5>) -> bool {
    is_on_cpu(x) && lanes::Lanes::here().is_some()
}

/// 3-D convolution, zero padded, no dilation, one group.
/// - x: [n, in, z, y, x], weight: [out, in, kz, ky, kx], bias: [out]
pub fn conv3d(x: Tensor<5>, weight: Tensor<5>, bias: Option<Tensor<1>>, stride: [usize; 3], padding: [usize; 3]) -> Tensor<5> {
    if !is_ours(&x) {
        return burn::tensor::module::conv3d(x, weight, bias, ConvOptions::new(stride, padding, [1; 3], 1));
    }
    let ([n, from, z, y, w], [to, _, kz, ky, kx]) = (x.dims(), weight.dims());
    let shape = ConvShape { n, from, to, size: [z, y, w], kernel: [kz, ky, kx], stride, padding };
    add_bias(extension::conv(x, weight, shape), bias)
}

/// Transposed convolution with stride = kernel: every voxel becomes a box of `kernel` voxels.
/// - x: [n, in, z, y, x], weight: [in, out, kz, ky, kx], bias: [out]
pub fn upsample_conv3d(x: Tensor<5>, weight: Tensor<5>, bias: Option<Tensor<1>>) -> Tensor<5> {
    let ([n, from, z, y, w], [_, to, kz, ky, kx]) = (x.dims(), weight.dims());
    if !is_ours(&x) {
        let options = ConvTransposeOptions::new([kz, ky, kx], [0; 3], [0; 3], [1; 3], 1);
        return burn::tensor::module::conv_transpose3d(x, weight, bias, options);
    }
    // It is the backward pass of the convolution that leads from its output to its input.
    let shape =
        ConvShape { n, from: to, to: from, size: [z * kz, y * ky, w * kx], kernel: [kz, ky, kx], stride: [kz, ky, kx], padding: [0; 3] };
    add_bias(extension::conv_transposed(x, weight, shape), bias)
}

fn add_bias(x: Tensor<5>, bias: Option<Tensor<1>>) -> Tensor<5> {
    match bias {
        Some(b) => {
            let channels = b.dims()[0];
            x + b.reshape([1, channels, 1, 1, 1])
        }
        None => x,
    }
}

/// Instance norm (ε = 1e-5), optional scale and shift [channel], then leaky ReLU with `slope` (1: none).
pub fn instance_norm(x: Tensor<5>, affine: Option<(Tensor<1>, Tensor<1>)>, slope: f32) -> Tensor<5> {
    let shape @ [n, c, z, y, w] = x.dims();
    if is_ours(&x) {
        let (weight, bias) = affine.unwrap_or_else(|| {
            let device = x.device();
            (Tensor::ones([c], &device), Tensor::zeros([c], &device))
        });
        return extension::norm(x, weight, bias, slope);
    }
    let x = x.reshape([n, c, z * y * w]);
    let centred = x.clone() - x.mean_dim(2);
    let variance = (centred.clone() * centred.clone()).mean_dim(2);
    let mut out = centred / (variance + norm::EPSILON).sqrt();
    if let Some((weight, bias)) = affine {
        out = out * weight.reshape([1, c, 1]) + bias.reshape([1, c, 1]);
    }
    if slope != 1.0 {
        out = leaky_relu(out, slope as f64);
    }
    out.reshape(shape)
}
