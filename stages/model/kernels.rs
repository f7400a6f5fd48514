//! The heavy operations of a network, composed from Burn's own.

use burn::tensor::Tensor;
use burn::tensor::activation::leaky_relu;
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};

/// 3-D convolution, zero padded, no dilation, one group.
pub fn conv3d(x: Tensor<5>, weight: Tensor<5>, bias: Option<Tensor<1>>, stride: [usize; 3], padding: [usize; 3]) -> Tensor<5> {
    burn::tensor::module::conv3d(x, weight, bias, ConvOptions::new(stride, padding, [1; 3], 1))
}

/// Transposed convolution with stride = kernel.
pub fn upsample_conv3d(x: Tensor<5>, weight: Tensor<5>, bias: Option<Tensor<1>>) -> Tensor<5> {
    let [_, _, kz, ky, kx] = weight.dims();
    let options = ConvTransposeOptions::new([kz, ky, kx], [0; 3], [0; 3], [1; 3], 1);
    burn::tensor::module::conv_transpose3d(x, weight, bias, options)
}

/// Instance norm, ε = 1e-5, optional scale and shift, then leaky ReLU with `slope` (1: none).
pub fn instance_norm(x: Tensor<5>, affine: Option<(Tensor<1>, Tensor<1>)>, slope: f32) -> Tensor<5> {
    let shape @ [n, c, z, y, w] = x.dims();
    let x = x.reshape([n, c, z * y * w]);
    let centred = x.clone() - x.mean_dim(2);
    let variance = (centred.clone() * centred.clone()).mean_dim(2);
    let mut out = centred / (variance + 1e-5).sqrt();
    if let Some((weight, bias)) = affine {
        out = out * weight.reshape([1, c, 1]) + bias.reshape([1, c, 1]);
    }
    if slope != 1.0 {
        out = leaky_relu(out, slope as f64);
    }
    out.reshape(shape)
}
