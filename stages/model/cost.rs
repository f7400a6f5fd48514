//! What a network costs: parameters, operations, memory and how far an output voxel sees. Counted from its graph, nothing is run.

use voxmill_schemas::geometry::Zyx;

use super::graph::{Graph, Op};

/// The cost of one patch, batch 1, float32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    pub n_parameters: usize,
    /// Voxels that one output voxel depends on through convolutions, on each axis. What norms and squeeze-and-excitation average over is the whole patch.
    pub receptive_field: Zyx<usize>,
    /// Floating-point operations of one forward pass; a multiply-add is two.
    pub flops: u64,
    /// Bytes of all values of one training step at its peak: what the backward pass needs, and the gradients that live beside it.
    pub step_bytes: u64,
    /// Bytes that a forward pass alone holds at its peak.
    pub forward_bytes: u64,
}

/// Where the receptive field of a value stands on one axis, in voxels of the patch.
#[derive(Clone, Copy)]
struct Sight {
    field: f64,
    /// Patch voxels from one of its voxels to the next.
    step: f64,
}

impl Graph {
    pub fn n_parameters(&self) -> usize {
        self.params.iter().map(|p| p.shape.iter().product::<usize>()).sum()
    }

    /// Size of the kernel of a parameter that is one.
    fn kernel_of(&self, weight: usize) -> Zyx<usize> {
        let [.., z, y, x] = self.params[weight].shape[..] else { return Zyx::splat(1) };
        Zyx::new(z, y, x)
    }

    /// Samples a patch becomes, and their size, for each value.
    pub fn sizes(&self, patch: Zyx<usize>) -> Vec<(usize, Zyx<usize>)> {
        let mut all: Vec<(usize, Zyx<usize>)> = Vec::with_capacity(self.ops.len());
        for op in &self.ops {
            let size = match op {
                Op::Input => (1, patch),
                Op::Conv { x, weight, stride, padding, .. } => {
                    let (n, size) = all[*x];
                    let spread = size.zip(*padding).zip(self.kernel_of(*weight)).map(|((n, p), k)| (n + 2 * p).saturating_sub(k));
                    (n, spread.zip(*stride).map(|(n, s)| n / s + 1))
                }
                Op::UpConv { x, weight, .. } => (all[*x].0, all[*x].1.zip(self.kernel_of(*weight)).map(|(n, k)| n.saturating_mul(k))),
                Op::Double { x } => (all[*x].0, all[*x].1.map(|n| n.saturating_mul(2))),
                Op::Pool { x, size } => (all[*x].0, all[*x].1.zip(*size).map(|(n, s)| n / s)),
                Op::Stack { x, slices } => {
                    let (n, size) = all[*x];
                    (n * (size.z + 1).saturating_sub(*slices), Zyx { z: 1, ..size })
                }
                Op::Unstack { x } => (1, Zyx { z: all[*x].0, ..all[*x].1 }),
                other => all[other.reads()[0]],
            };
            all.push(size);
        }
        all
    }
}

impl Cost {
    pub fn of(g: &Graph, patch: Zyx<usize>) -> Self {
        let sizes = g.sizes(patch);
        let voxels = |at: usize| {
            let (n, size) = sizes[at];
            size.to_array().iter().fold(n as u64, |a, v| a.saturating_mul(*v as u64))
        };
        let bytes = |at: usize| voxels(at).saturating_mul(4 * g.channels[at] as u64);
        let numbers = |p: usize| g.params[p].shape.iter().product::<usize>() as u64;
        let flops = g.ops.iter().enumerate().map(|(at, op)| match op {
            Op::Conv { weight, .. } => voxels(at).saturating_mul(2 * numbers(*weight)),
            Op::UpConv { x, weight, .. } => voxels(*x).saturating_mul(2 * numbers(*weight)),
            _ => 0,
        });
        // Dropout is rarely on, an Unstack is a view.
        let kept =
            g.ops.iter().enumerate().filter(|(_, op)| !matches!(op, Op::Dropout { .. } | Op::Unstack { .. })).map(|(at, _)| bytes(at));
        let (kept, largest) = kept.fold((0u64, 0u64), |(sum, max), b| (sum.saturating_add(b), max.max(b)));
        // The loss holds the logits, the truth and their gradients of every head.
        let losses = g.heads.iter().fold(0u64, |a, h| a.saturating_add(bytes(*h).saturating_mul(3)));
        let parameters = 4 * g.n_parameters() as u64;
        Self {
            n_parameters: g.n_parameters(),
            receptive_field: receptive_field(g),
            flops: flops.fold(0, u64::saturating_add),
            step_bytes: kept.saturating_add(kept / 4).saturating_add(largest.saturating_mul(2)).saturating_add(losses),
            forward_bytes: peak(g, &bytes).saturating_add(parameters),
        }
    }
}

impl Cost {
    /// One line for people.
    pub fn line(&self) -> String {
        let f = self.receptive_field;
        format!(
            "{} parameters, an output voxel sees {f} voxels; a patch costs {} FLOP forward, {} in inference and {} in training",
            with_unit(self.n_parameters as f64, 1000.0, ["", " k", " M", " G", " T"]),
            with_unit(self.flops as f64, 1000.0, ["", " k", " M", " G", " T"]),
            with_unit(self.forward_bytes as f64, 1024.0, [" B", " KiB", " MiB", " GiB", " TiB"]),
            with_unit(self.step_bytes as f64, 1024.0, [" B", " KiB", " MiB", " GiB", " TiB"]),
        )
    }
}

/// A number with three digits or so: `5.60 M`.
fn with_unit(mut v: f64, base: f64, units: [&str; 5]) -> String {
    let mut unit = 0;
    while v >= base && unit + 1 < units.len() {
        (v, unit) = (v / base, unit + 1);
    }
    let digits = if unit == 0 || v >= 100.0 {
        0
    } else if v >= 10.0 {
        1
    } else {
        2
    };
    format!("{v:.digits$}{}", units[unit])
}

/// Bytes of the values that live at the same time, at most, in a forward pass.
fn peak(g: &Graph, bytes: &impl Fn(usize) -> u64) -> u64 {
    let wanted = &g.heads[..1.min(g.heads.len())];
    let needed = g.needed(wanted);
    let mut last = vec![0; g.ops.len()];
    for (at, op) in g.ops.iter().enumerate().filter(|(at, _)| needed[*at]) {
        last[at] = at;
        op.reads().into_iter().for_each(|x| last[x] = at);
    }
    wanted.iter().for_each(|at| last[*at] = g.ops.len());
    let (mut alive, mut peak) = (0u64, 0u64);
    for at in (0..g.ops.len()).filter(|at| needed[*at]) {
        alive = alive.saturating_add(bytes(at));
        peak = peak.max(alive);
        let gone = (0..=at).filter(|x| needed[*x] && last[*x] == at).map(bytes).fold(0, u64::saturating_add);
        alive = alive.saturating_sub(gone);
    }
    peak
}

fn receptive_field(g: &Graph) -> Zyx<usize> {
    let mut all: Vec<[Sight; 3]> = Vec::with_capacity(g.ops.len());
    for op in &g.ops {
        let merged = |x: usize, f: &dyn Fn(usize, Sight) -> Sight| [0, 1, 2].map(|a| f(a, all[x][a]));
        let sight = match op {
            Op::Input => [Sight { field: 1.0, step: 1.0 }; 3],
            Op::Conv { x, weight, stride, .. } => {
                let (kernel, stride) = (g.kernel_of(*weight).to_array(), stride.to_array());
                merged(*x, &|a, s| Sight { field: s.field + (kernel[a] - 1) as f64 * s.step, step: s.step * stride[a] as f64 })
            }
            Op::UpConv { x, weight, .. } => {
                let kernel = g.kernel_of(*weight).to_array();
                merged(*x, &|a, s| Sight { step: s.step / kernel[a] as f64, ..s })
            }
            Op::Double { x } => merged(*x, &|_, s| Sight { field: s.field + s.step, step: s.step / 2.0 }),
            Op::Pool { x, size } => {
                let size = size.to_array();
                merged(*x, &|a, s| Sight { field: s.field + (size[a] - 1) as f64 * s.step, step: s.step * size[a] as f64 })
            }
            Op::Stack { x, slices } => {
                merged(*x, &|a, s| Sight { field: s.field + if a == 0 { (slices - 1) as f64 * s.step } else { 0.0 }, ..s })
            }
            Op::Add { a, b } | Op::Cat { a, b } => {
                let (a, b) = (all[*a], all[*b]);
                [0, 1, 2].map(|i| Sight { field: a[i].field.max(b[i].field), ..a[i] })
            }
            other => all[other.reads()[0]],
        };
        all.push(sight);
    }
    let of_head = g.heads.first().map_or([1.0; 3], |h| all[*h].map(|s| s.field));
    Zyx::from_array(of_head.map(|f| f.round() as usize))
}
