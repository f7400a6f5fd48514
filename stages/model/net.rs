//! Runs a [`Graph`] on tensors. The parameters are flat and stand in the graph's order.

use std::sync::Arc;

use burn::module::{Devices, Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::activation::{leaky_relu, relu, sigmoid};
use burn::tensor::{Device, Tensor, s};

use super::dropout::Dropout;
use super::graph::{self, At, Gate, Graph, Op};
use super::kernels;

/// A network with its parameters.
#[derive(Clone, Debug)]
pub struct Net {
    pub params: Vec<Param<Tensor<1>>>,
    pub graph: Arc<Graph>,
}

/// By hand, so that visitors meet each parameter under its name in the graph.
impl Module for Net {
    fn num_params(&self) -> usize {
        self.graph.n_parameters()
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        for (spec, param) in self.graph.params.iter().zip(&self.params) {
            visitor.enter_module(&spec.name, "Net");
            Module::visit(param, visitor);
            visitor.exit_module(&spec.name, "Net");
        }
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        let graph = self.graph;
        let one = |(spec, param): (&graph::Spec, Param<Tensor<1>>)| {
            mapper.enter_module(&spec.name, "Net");
            let mapped = Module::map(param, mapper);
            mapper.exit_module(&spec.name, "Net");
            mapped
        };
        let params = graph.params.iter().zip(self.params).map(one).collect();
        Self { params, graph }
    }

    fn collect_devices(&self, devices: Devices) -> Devices {
        self.params.collect_devices(devices)
    }

    fn to_device(self, device: &Device) -> Self {
        Self { params: self.params.to_device(device), graph: self.graph }
    }

    fn fork(self, device: &Device) -> Self {
        Self { params: self.params.fork(device), graph: self.graph }
    }

    fn valid(&self) -> Self {
        Self { params: self.params.valid(), graph: self.graph.clone() }
    }

    fn train(self) -> Self {
        Self { params: self.params.train(), graph: self.graph }
    }

    fn materialize(self) -> Self {
        Self { params: self.params.materialize(), graph: self.graph }
    }
}

impl Net {
    /// All parameters 0; `weights::initialise` fills them.
    pub fn new(graph: Graph, device: &Device) -> Self {
        let zeros = |p: &graph::Spec| Param::from_tensor(Tensor::zeros([p.shape.iter().product::<usize>()], device));
        Self { params: graph.params.iter().map(zeros).collect(), graph: Arc::new(graph) }
    }

    /// Logits at full resolution, [n, class, z, y, x].
    pub fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        self.run(x, &mut Dropout::off(), &self.graph.heads[..1]).remove(0)
    }

    /// The logits of every head, each at its own resolution, full resolution first.
    pub fn forward_heads(&self, x: Tensor<5>, dropout: &mut Dropout) -> Vec<Tensor<5>> {
        self.run(x, dropout, &self.graph.heads)
    }

    /// The values `wanted`. A value is let go once nobody reads it any more.
    fn run(&self, input: Tensor<5>, dropout: &mut Dropout, wanted: &[At]) -> Vec<Tensor<5>> {
        let g = &self.graph;
        let needed = g.needed(wanted);
        let mut readers = vec![0usize; g.ops.len()];
        let ops = || g.ops.iter().enumerate().filter(|(at, _)| needed[*at]);
        ops().flat_map(|(_, op)| op.reads()).chain(wanted.iter().copied()).for_each(|x| readers[x] += 1);
        let samples = input.dims()[0];
        let mut values: Vec<Option<Tensor<5>>> = vec![None; g.ops.len()];
        let mut input = Some(input);
        for (at, op) in ops() {
            let mut read = |x: At| take(&mut values, &mut readers, x);
            let made = match op {
                Op::Input => input.take().expect("a graph has one input"),
                Op::Conv { x, weight, bias, stride, padding } => {
                    kernels::conv3d(read(*x), self.weight(*weight), bias.map(|b| self.vector(b)), stride.to_array(), padding.to_array())
                }
                Op::UpConv { x, weight, bias } => kernels::upsample_conv3d(read(*x), self.weight(*weight), bias.map(|b| self.vector(b))),
                Op::InstanceNorm { x, affine, slope } => {
                    kernels::instance_norm(read(*x), affine.map(|(w, b)| (self.vector(w), self.vector(b))), *slope)
                }
                Op::GroupNorm { x, groups, affine: (w, b), slope } => {
                    group_norm(read(*x), *groups, self.vector(*w), self.vector(*b), *slope)
                }
                Op::Leaky { x, slope } => activate(read(*x), *slope),
                Op::Add { a, b } => {
                    let a = read(*a);
                    a + read(*b)
                }
                Op::Cat { a, b } => {
                    let a = read(*a);
                    Tensor::cat(vec![a, read(*b)], 1)
                }
                Op::Double { x } => double(read(*x)),
                Op::Pool { x, size } => pool(read(*x), size.to_array()),
                Op::Excite { x, squeeze, excite, gate } => {
                    let layer = |(w, b): (usize, usize)| (self.matrix(w), self.vector(b));
                    self::excite(read(*x), layer(*squeeze), layer(*excite), *gate)
                }
                Op::Dropout { x } => dropout.apply(read(*x)),
                Op::Stack { x, slices } => stack(read(*x), *slices),
                Op::Unstack { x } => unstack(read(*x), samples),
            };
            values[at] = Some(made);
        }
        wanted.iter().map(|x| take(&mut values, &mut readers, *x)).collect()
    }

    fn vector(&self, p: graph::Param) -> Tensor<1> {
        self.params[p].val()
    }

    fn matrix(&self, p: graph::Param) -> Tensor<2> {
        let [rows, columns] = self.graph.params[p].shape[..] else { unreachable!("a linear layer has a matrix") };
        self.params[p].val().reshape([rows, columns])
    }

    fn weight(&self, p: graph::Param) -> Tensor<5> {
        let [a, b, z, y, x] = self.graph.params[p].shape[..] else { unreachable!("a convolution has a kernel of five axes") };
        self.params[p].val().reshape([a, b, z, y, x])
    }
}

fn take(values: &mut [Option<Tensor<5>>], readers: &mut [usize], x: At) -> Tensor<5> {
    readers[x] -= 1;
    let value = if readers[x] == 0 { values[x].take() } else { values[x].clone() };
    value.expect("operations stand behind what they read")
}

/// Leaky ReLU; a slope of 0 is ReLU, of 1 nothing.
fn activate(x: Tensor<5>, slope: f32) -> Tensor<5> {
    match slope {
        0.0 => relu(x),
        1.0 => x,
        _ => leaky_relu(x, slope as f64),
    }
}

/// PyTorch's GroupNorm, ε = 1e-5, then leaky ReLU: the channels of a group are normalised as one map.
fn group_norm(x: Tensor<5>, groups: usize, weight: Tensor<1>, bias: Tensor<1>, slope: f32) -> Tensor<5> {
    let shape @ [n, c, z, y, w] = x.dims();
    if groups == c {
        return kernels::instance_norm(x, Some((weight, bias)), slope);
    }
    let x = kernels::instance_norm(x.reshape([n, groups, c / groups * z, y, w]), None, 1.0).reshape(shape);
    activate(x * weight.reshape([1, c, 1, 1, 1]) + bias.reshape([1, c, 1, 1, 1]), slope)
}

/// See [`Op::Double`].
fn double(x: Tensor<5>) -> Tensor<5> {
    let x = double_axis::<2>(x);
    let x = double_axis::<3>(x);
    double_axis::<4>(x)
}

/// Output 2i lies a quarter before input i, output 2i + 1 a quarter behind it.
fn double_axis<const AXIS: usize>(x: Tensor<5>) -> Tensor<5> {
    let mut shape = x.dims();
    let n = shape[AXIS];
    if n == 1 {
        return Tensor::cat(vec![x.clone(), x], AXIS);
    }
    let before = Tensor::cat(vec![x.clone().narrow(AXIS, 0, 1), x.clone().narrow(AXIS, 0, n - 1)], AXIS);
    let behind = Tensor::cat(vec![x.clone().narrow(AXIS, 1, n - 1), x.clone().narrow(AXIS, n - 1, 1)], AXIS);
    let near = x * 0.75;
    let (even, odd) = (near.clone() + before * 0.25, near + behind * 0.25);
    let both: Tensor<6> = Tensor::stack(vec![even, odd], AXIS + 1);
    shape[AXIS] = 2 * n;
    both.reshape(shape)
}

/// See [`Op::Pool`].
fn pool(x: Tensor<5>, size: [usize; 3]) -> Tensor<5> {
    (0..3).filter(|a| size[*a] > 1).fold(x, |x, a| {
        let [n, c, mut shape @ ..] = x.dims();
        shape[a] /= size[a];
        let [z, y, w] = shape;
        let behind: usize = shape[a + 1..].iter().product();
        let boxes: Tensor<3> = x.reshape([n * c * z * y * w / behind, size[a], behind]);
        boxes.mean_dim(1).reshape([n, c, z, y, w])
    })
}

/// See [`Op::Excite`].
pub(super) fn excite(x: Tensor<5>, squeeze: (Tensor<2>, Tensor<1>), excite: (Tensor<2>, Tensor<1>), gate: Gate) -> Tensor<5> {
    let [n, c, z, y, w] = x.dims();
    let pooled = x.clone().reshape([n, c, z * y * w]).mean_dim(2).reshape([n, c]);
    let linear = |x: Tensor<2>, (weight, bias): (Tensor<2>, Tensor<1>)| x.matmul(weight.transpose()) + bias.unsqueeze_dim::<2>(0);
    let hidden = linear(pooled, squeeze);
    match gate {
        Gate::Channel => {
            let gate = sigmoid(linear(relu(hidden), excite));
            x * gate.reshape([n, c, 1, 1, 1])
        }
        Gate::Residual => {
            let gate = relu(linear(leaky_relu(hidden, 0.01), excite));
            x * (gate + 1.0).reshape([n, c, 1, 1, 1])
        }
    }
}

/// See [`Op::Stack`].
fn stack(x: Tensor<5>, slices: usize) -> Tensor<5> {
    let [n, c, z, y, w] = x.dims();
    let whole = z + 1 - slices;
    // [n, c, slice, whole, y, x]
    let shifted: Tensor<6> = Tensor::stack((0..slices).map(|i| x.clone().slice(s![.., .., i..i + whole, .., ..])).collect(), 2);
    shifted.permute([0, 3, 1, 2, 4, 5]).reshape([n * whole, c * slices, 1, y, w])
}

/// See [`Op::Unstack`].
fn unstack(x: Tensor<5>, samples: usize) -> Tensor<5> {
    let [all, c, _, y, w] = x.dims();
    x.reshape([samples, all / samples, c, y, w]).permute([0, 2, 1, 3, 4])
}
