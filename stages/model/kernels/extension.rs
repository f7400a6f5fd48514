//! The door between our kernels and Burn: a backend extension on plain CPU tensors, and its backward passes for autodiff.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Tensor, TensorData};

use super::conv;
use super::lanes::Lanes;
use super::lines::ConvShape;
use super::loss::HeadLoss;
use super::norm;

/// Operations that the CPU does our way.
#[backend_extension(Flex, Autodiff)]
pub trait Kernels: Backend {
    /// x [n, from, …size], weight [to, from, …kernel] → [n, to, …out].
    fn conv(x: FloatTensor<Self>, weight: FloatTensor<Self>, shape: ConvShape) -> FloatTensor<Self>;
    /// y [n, to, …out], weight [to, from, …kernel] → [n, from, …size].
    fn conv_transposed(y: FloatTensor<Self>, weight: FloatTensor<Self>, shape: ConvShape) -> FloatTensor<Self>;
    /// x [n, channel, …], weight and bias [channel] → x normalised, scaled, shifted, leaky.
    fn norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>, slope: f32) -> FloatTensor<Self>;
    /// logits [n, class, …] → the head's share of the loss [1].
    fn head_loss(logits: FloatTensor<Self>, head: HeadLoss) -> FloatTensor<Self>;
}

pub fn conv(x: Tensor<5>, weight: Tensor<5>, shape: ConvShape) -> Tensor<5> {
    Tensor::from_dispatch(<Dispatch as Kernels>::conv(x.into_dispatch(), weight.into_dispatch(), shape))
}

pub fn conv_transposed(y: Tensor<5>, weight: Tensor<5>, shape: ConvShape) -> Tensor<5> {
    Tensor::from_dispatch(<Dispatch as Kernels>::conv_transposed(y.into_dispatch(), weight.into_dispatch(), shape))
}

pub fn norm(x: Tensor<5>, weight: Tensor<1>, bias: Tensor<1>, slope: f32) -> Tensor<5> {
    Tensor::from_dispatch(<Dispatch as Kernels>::norm(x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch(), slope))
}

/// The share of one head in the loss, [1].
pub fn head_loss(logits: Tensor<5>, head: HeadLoss) -> Tensor<1> {
    Tensor::from_dispatch(<Dispatch as Kernels>::head_loss(logits.into_dispatch(), head))
}

fn lanes() -> Lanes {
    Lanes::here().expect("`is_ours` has asked")
}

/// The values of a tensor in array order; copies only what is a view.
fn dense(t: &FlexTensor) -> FlexTensor {
    t.to_contiguous()
}

fn floats(t: &FlexTensor) -> &[f32] {
    t.as_slice().expect("a dense float32 tensor")
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

fn spatial(n: usize, channels: usize, [z, y, x]: [usize; 3]) -> [usize; 5] {
    [n, channels, z, y, x]
}

fn voxels(t: &FlexTensor) -> usize {
    t.layout().shape().iter().skip(2).product()
}

impl Kernels for Flex {
    fn conv(x: FlexTensor, weight: FlexTensor, s: ConvShape) -> FlexTensor {
        let (x, weight) = (dense(&x), dense(&weight));
        tensor(conv::forward(floats(&x), floats(&weight), &s, lanes()), spatial(s.n, s.to, s.out()))
    }

    fn conv_transposed(y: FlexTensor, weight: FlexTensor, s: ConvShape) -> FlexTensor {
        let (y, weight) = (dense(&y), dense(&weight));
        tensor(conv::backward_input(floats(&y), floats(&weight), &s, lanes()), spatial(s.n, s.from, s.size))
    }

    fn norm(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, slope: f32) -> FlexTensor {
        let (x, weight, bias) = (dense(&x), dense(&weight), dense(&bias));
        let out = norm::forward(floats(&x), voxels(&x), floats(&weight), floats(&bias), slope, lanes());
        FlexTensor::from_data(TensorData::new(out, x.layout().shape().clone()))
    }

    fn head_loss(logits: FlexTensor, head: HeadLoss) -> FlexTensor {
        tensor(vec![head.value_and_gradient(floats(&dense(&logits))).0], [1])
    }
}

/// Gradient of the weights, given what the convolution read and the gradient of what it wrote.
fn weight_gradient(x: &FlexTensor, y: &FlexTensor, s: &ConvShape) -> FlexTensor {
    let (x, y) = (dense(x), dense(y));
    let [kz, ky, kx] = s.kernel;
    tensor(conv::backward_weight(floats(&x), floats(&y), s, lanes()), [s.to, s.from, kz, ky, kx])
}

#[derive(Debug)]
struct ConvBackward;

impl Backward<Flex, 2> for ConvBackward {
    type State = (NodeId, NodeId, ConvShape);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let ([node_x, node_weight], (x, weight, shape)) = (ops.parents, ops.state);
        let grad = grads.consume::<Flex>(&ops.node);
        let x: FlexTensor = checkpointer.retrieve_node_output(x);
        let weight: FlexTensor = checkpointer.retrieve_node_output(weight);
        if let Some(node) = node_weight {
            grads.register::<Flex>(node.id, weight_gradient(&x, &grad, &shape));
        }
        if let Some(node) = node_x {
            grads.register::<Flex>(node.id, Flex::conv_transposed(grad, weight, shape));
        }
    }
}

/// The transposed convolution is the input gradient of `conv`, so its own gradients are `conv` and the same weight gradient with input and
/// output gradient in each other's place.
#[derive(Debug)]
struct ConvTransposedBackward;

impl Backward<Flex, 2> for ConvTransposedBackward {
    type State = (NodeId, NodeId, ConvShape);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let ([node_y, node_weight], (y, weight, shape)) = (ops.parents, ops.state);
        let grad = grads.consume::<Flex>(&ops.node);
        let y: FlexTensor = checkpointer.retrieve_node_output(y);
        let weight: FlexTensor = checkpointer.retrieve_node_output(weight);
        if let Some(node) = node_weight {
            grads.register::<Flex>(node.id, weight_gradient(&grad, &y, &shape));
        }
        if let Some(node) = node_y {
            grads.register::<Flex>(node.id, Flex::conv(grad, weight, shape));
        }
    }
}

#[derive(Debug)]
struct NormBackward;

impl Backward<Flex, 3> for NormBackward {
    type State = (NodeId, NodeId, NodeId, f32);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let ([node_x, node_weight, node_bias], (x, weight, bias, slope)) = (ops.parents, ops.state);
        let grad = dense(&grads.consume::<Flex>(&ops.node));
        let [x, weight, bias] = [x, weight, bias].map(|id| dense(&checkpointer.retrieve_node_output::<FlexTensor>(id)));
        let (gx, gw, gb) = norm::backward(floats(&x), floats(&grad), voxels(&x), floats(&weight), floats(&bias), slope, lanes());
        let channels = gw.len();
        for (node, values) in [(node_weight, gw), (node_bias, gb)] {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, tensor(values, [channels]));
            }
        }
        if let Some(node) = node_x {
            grads.register::<Flex>(node.id, FlexTensor::from_data(TensorData::new(gx, x.layout().shape().clone())));
        }
    }
}

/// The gradient is known with the value; it waits here for the backward pass.
#[derive(Debug)]
struct HeadLossBackward;

impl Backward<Flex, 1> for HeadLossBackward {
    type State = FlexTensor;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [node] = ops.parents;
        let scale = dense(&grads.consume::<Flex>(&ops.node));
        if let Some(node) = node {
            let scale = floats(&scale)[0];
            // Heads enter the sum of the losses as they are, so this is 1 and costs nothing.
            let grad = if scale == 1.0 { ops.state } else { Flex::float_mul_scalar(ops.state, scale.into()) };
            grads.register::<Flex>(node.id, grad);
        }
    }
}

impl<C: CheckpointStrategy> Kernels for Autodiff<Flex, C> {
    fn head_loss(logits: FloatTensor<Self>, head: HeadLoss) -> FloatTensor<Self> {
        let prep = HeadLossBackward.prepare::<C>([logits.node()]).compute_bound().stateful();
        let logits = dense(&logits.into_primitive());
        let (value, gradient) = head.value_and_gradient(floats(&logits));
        let value = tensor(vec![value], [1]);
        match prep {
            OpsKind::Tracked(prep) => {
                let gradient = FlexTensor::from_data(TensorData::new(gradient, logits.layout().shape().clone()));
                prep.finish(gradient, value)
            }
            OpsKind::UnTracked(prep) => prep.finish(value),
        }
    }

    fn conv(x: FloatTensor<Self>, weight: FloatTensor<Self>, shape: ConvShape) -> FloatTensor<Self> {
        let prep = ConvBackward.prepare::<C>([x.node(), weight.node()]).compute_bound().stateful();
        match prep {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), prep.checkpoint(&weight), shape.clone());
                prep.finish(state, Flex::conv(x.into_primitive(), weight.into_primitive(), shape))
            }
            OpsKind::UnTracked(prep) => prep.finish(Flex::conv(x.into_primitive(), weight.into_primitive(), shape)),
        }
    }

    fn conv_transposed(y: FloatTensor<Self>, weight: FloatTensor<Self>, shape: ConvShape) -> FloatTensor<Self> {
        let prep = ConvTransposedBackward.prepare::<C>([y.node(), weight.node()]).compute_bound().stateful();
        match prep {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&y), prep.checkpoint(&weight), shape.clone());
                prep.finish(state, Flex::conv_transposed(y.into_primitive(), weight.into_primitive(), shape))
            }
            OpsKind::UnTracked(prep) => prep.finish(Flex::conv_transposed(y.into_primitive(), weight.into_primitive(), shape)),
        }
    }

    fn norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>, slope: f32) -> FloatTensor<Self> {
        let prep = NormBackward.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful();
        match prep {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), prep.checkpoint(&weight), prep.checkpoint(&bias), slope);
                prep.finish(state, Flex::norm(x.into_primitive(), weight.into_primitive(), bias.into_primitive(), slope))
            }
            OpsKind::UnTracked(prep) => prep.finish(Flex::norm(x.into_primitive(), weight.into_primitive(), bias.into_primitive(), slope)),
        }
    }
}
