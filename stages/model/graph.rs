//! A network as a list of operations on named parameters. Configurations build it, `net` runs it, `cost` counts it, and whoever writes a network into
//! another format reads it. Pure data: no tensor here. Values are [n, channel, z, y, x]; sizes are z, y, x.

use voxmill_schemas::geometry::Zyx;

/// A value: the index of the operation that makes it.
pub type At = usize;
/// A parameter: its index in [`Graph::params`].
pub type Param = usize;

/// A parameter of a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Its name in the `state_dict` of the network that ours is modelled on.
    pub name: String,
    /// Slowest axis first, as PyTorch has it.
    pub shape: Vec<usize>,
}

/// How a squeeze-and-excitation gate acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// MONAI ChannelSELayer: ReLU, sigmoid, x·gate.
    Channel,
    /// MONAI ResidualSELayer: leaky ReLU (0.01), ReLU, x·gate + x.
    Residual,
}

/// One operation. It reads values that stand before it.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// The patch, [n, channel, z, y, x].
    Input,
    /// Zero-padded convolution; weight `[to, from, kz, ky, kx]`, bias `[to]`.
    Conv {
        x: At,
        weight: Param,
        bias: Option<Param>,
        stride: Zyx<usize>,
        padding: Zyx<usize>,
    },
    /// Transposed convolution whose stride is its kernel: a voxel becomes a box; weight [from, to, kz, ky, kx].
    UpConv {
        x: At,
        weight: Param,
        bias: Option<Param>,
    },
    /// Instance norm, ε = 1e-5, then leaky ReLU with `slope` (1: none, 0: ReLU); scale and shift `[channel]`.
    InstanceNorm {
        x: At,
        affine: Option<(Param, Param)>,
        slope: f32,
    },
    /// Group norm, ε = 1e-5, with scale and shift `[channel]`, then leaky ReLU.
    GroupNorm {
        x: At,
        groups: usize,
        affine: (Param, Param),
        slope: f32,
    },
    Leaky {
        x: At,
        slope: f32,
    },
    Add {
        a: At,
        b: At,
    },
    /// Channels of `a`, then those of `b`.
    Cat {
        a: At,
        b: At,
    },
    /// Twice as large on every axis, linear between voxel centres, the border repeated (PyTorch `align_corners=False`).
    Double {
        x: At,
    },
    /// The mean of boxes of `size` voxels.
    Pool {
        x: At,
        size: Zyx<usize>,
    },
    /// Squeeze-and-excitation: weights [reduced, channel] and [channel, reduced], each with its bias.
    Excite {
        x: At,
        squeeze: (Param, Param),
        excite: (Param, Param),
        gate: Gate,
    },
    /// Where dropout strikes in training.
    Dropout {
        x: At,
    },
    /// Every slice that has `slices / 2` neighbours on both sides becomes a sample of its own, it and its neighbours its channels:
    /// [n, c, z, y, x] → [n·(z − slices + 1), c·slices, 1, y, x], slices fastest among the channels.
    Stack {
        x: At,
        slices: usize,
    },
    /// The way back: samples become slices again, [n·z, c, 1, y, x] → [n, c, z, y, x].
    Unstack {
        x: At,
    },
}

impl Op {
    /// The values it reads.
    pub fn reads(&self) -> Vec<At> {
        match self {
            Op::Input => vec![],
            Op::Add { a, b } | Op::Cat { a, b } => vec![*a, *b],
            Op::Conv { x, .. }
            | Op::UpConv { x, .. }
            | Op::InstanceNorm { x, .. }
            | Op::GroupNorm { x, .. }
            | Op::Leaky { x, .. }
            | Op::Double { x }
            | Op::Pool { x, .. }
            | Op::Excite { x, .. }
            | Op::Dropout { x }
            | Op::Stack { x, .. }
            | Op::Unstack { x } => vec![*x],
        }
    }
}

/// A network.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// In the order in which they were asked for; names are unique.
    pub params: Vec<Spec>,
    /// In an order in which they can run; the first is [`Op::Input`].
    pub ops: Vec<Op>,
    /// Channels of each operation's value.
    pub channels: Vec<usize>,
    /// What comes out: logits at full resolution, then those of the lower heads that only training has.
    pub heads: Vec<At>,
    /// Names in files that begin with one of these (or, where it begins with a dot, have it inside) stand for parameters which this network has under another
    /// name, or does not use.
    pub aliases: Vec<&'static str>,
}

impl Graph {
    pub fn new(channels: usize) -> Self {
        Self { params: Vec::new(), ops: vec![Op::Input], channels: vec![channels], heads: Vec::new(), aliases: Vec::new() }
    }

    pub const INPUT: At = 0;

    pub fn param(&mut self, name: String, shape: &[usize]) -> Param {
        self.params.push(Spec { name, shape: shape.to_vec() });
        self.params.len() - 1
    }

    fn op(&mut self, op: Op, channels: usize) -> At {
        self.ops.push(op);
        self.channels.push(channels);
        self.ops.len() - 1
    }

    /// Parameters of a convolution under `name`.
    pub fn kernel(&mut self, name: &str, from: usize, to: usize, kernel: Zyx<usize>, bias: bool) -> Kernel {
        let weight = self.param(format!("{name}.weight"), &[to, from, kernel.z, kernel.y, kernel.x]);
        Kernel { weight, bias: bias.then(|| self.param(format!("{name}.bias"), &[to])), to, size: kernel }
    }

    /// Scale and shift of a norm under `name`.
    pub fn affine(&mut self, name: &str, channels: usize) -> (Param, Param) {
        (self.param(format!("{name}.weight"), &[channels]), self.param(format!("{name}.bias"), &[channels]))
    }

    pub fn conv(&mut self, x: At, k: Kernel, stride: Zyx<usize>, padding: Zyx<usize>) -> At {
        self.op(Op::Conv { x, weight: k.weight, bias: k.bias, stride, padding }, k.to)
    }

    /// A transposed convolution under `name`.
    pub fn up_conv(&mut self, name: &str, x: At, to: usize, stride: Zyx<usize>, bias: bool) -> At {
        let weight = self.param(format!("{name}.weight"), &[self.channels[x], to, stride.z, stride.y, stride.x]);
        let bias = bias.then(|| self.param(format!("{name}.bias"), &[to]));
        self.op(Op::UpConv { x, weight, bias }, to)
    }

    pub fn instance_norm(&mut self, x: At, affine: Option<(Param, Param)>, slope: f32) -> At {
        self.op(Op::InstanceNorm { x, affine, slope }, self.channels[x])
    }

    pub fn group_norm(&mut self, x: At, groups: usize, affine: (Param, Param), slope: f32) -> At {
        self.op(Op::GroupNorm { x, groups, affine, slope }, self.channels[x])
    }

    pub fn leaky(&mut self, x: At, slope: f32) -> At {
        self.op(Op::Leaky { x, slope }, self.channels[x])
    }

    pub fn add(&mut self, a: At, b: At) -> At {
        self.op(Op::Add { a, b }, self.channels[a])
    }

    pub fn cat(&mut self, a: At, b: At) -> At {
        self.op(Op::Cat { a, b }, self.channels[a] + self.channels[b])
    }

    pub fn double(&mut self, x: At) -> At {
        self.op(Op::Double { x }, self.channels[x])
    }

    pub fn pool(&mut self, x: At, size: Zyx<usize>) -> At {
        self.op(Op::Pool { x, size }, self.channels[x])
    }

    pub fn dropout(&mut self, x: At) -> At {
        self.op(Op::Dropout { x }, self.channels[x])
    }

    /// A squeeze-and-excitation layer under `name`, its hidden layer `reduced` wide.
    pub fn excite(&mut self, name: &str, x: At, reduced: usize, gate: Gate) -> At {
        let channels = self.channels[x];
        let mut linear = |i: usize, from: usize, to: usize| {
            (self.param(format!("{name}.fc.{i}.weight"), &[to, from]), self.param(format!("{name}.fc.{i}.bias"), &[to]))
        };
        let (squeeze, excite) = (linear(0, channels, reduced), linear(2, reduced, channels));
        self.op(Op::Excite { x, squeeze, excite, gate }, channels)
    }

    pub fn stack(&mut self, x: At, slices: usize) -> At {
        self.op(Op::Stack { x, slices }, self.channels[x] * slices)
    }

    pub fn unstack(&mut self, x: At) -> At {
        self.op(Op::Unstack { x }, self.channels[x])
    }

    /// Whether a file names something so that this network has under another name, or does not use.
    pub fn is_alias(&self, name: &str) -> bool {
        self.aliases.iter().any(|a| if a.starts_with('.') { name.contains(a) } else { name.starts_with(a) })
    }

    /// For each operation, whether one of `wanted` depends on it.
    pub fn needed(&self, wanted: &[At]) -> Vec<bool> {
        let mut needed = vec![false; self.ops.len()];
        wanted.iter().for_each(|at| needed[*at] = true);
        for at in (0..self.ops.len()).rev() {
            if needed[at] {
                self.ops[at].reads().into_iter().for_each(|x| needed[x] = true);
            }
        }
        needed
    }
}

/// Parameters of a convolution that is yet to be placed.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    pub weight: Param,
    pub bias: Option<Param>,
    pub to: usize,
    pub size: Zyx<usize>,
}
