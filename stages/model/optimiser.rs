//! AdamW and SGD with PyTorch's semantics, on flat tensors by parameter name, so that their state has a stable form on disk.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{kernels, weights};
use crate::error::Error;
use crate::stage::Finding;

/// How weights follow their gradients. Every parameter decays, norms and biases too, as without parameter groups in PyTorch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Optimiser {
    /// `adamw` or `sgd`.
    #[serde(default)]
    pub kind: Rule,
    /// Learning rate at the start; the schedule moves it.
    pub lr: f64,
    /// Decay of the weights; AdamW: decoupled (w ← w·(1 − lr·decay)), SGD: added to the gradient. PyTorch's AdamW uses 0.01.
    #[serde(default = "decay")]
    pub weight_decay: f64,
    /// AdamW: memory of the mean gradient.
    #[serde(default = "beta1")]
    pub beta1: f64,
    /// AdamW: memory of the mean squared gradient.
    #[serde(default = "beta2")]
    pub beta2: f64,
    /// AdamW: added to the root of the squared gradient.
    #[serde(default = "eps")]
    pub eps: f64,
    /// SGD: momentum; nnU-Net uses 0.99.
    #[serde(default = "momentum")]
    pub momentum: f64,
    /// SGD: Nesterov's form of momentum.
    #[serde(default = "yes")]
    pub nesterov: bool,
    /// Gradients are scaled down together when their global norm is above this; nnU-Net uses 12. Default: no clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Keep an average of the weights, which is what is validated and saved: after each step it keeps this share of itself and takes the rest from the
    /// weights; it begins with the weights after the first step (`torch.optim.swa_utils.get_ema_avg_fn`). 0.999 looks back over about 1,000 steps.
    /// Default: no average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
}

/// The update rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    #[default]
    Adamw,
    Sgd,
}

fn decay() -> f64 {
    1e-2
}
fn beta1() -> f64 {
    0.9
}
fn beta2() -> f64 {
    0.999
}
fn eps() -> f64 {
    1e-8
}
fn momentum() -> f64 {
    0.99
}
fn yes() -> bool {
    true
}

impl Default for Optimiser {
    /// PyTorch's AdamW: lr 1e-3, weight decay 1e-2.
    fn default() -> Self {
        serde_json::from_value(serde_json::json!({ "lr": 1e-3 })).expect("every other field has a default")
    }
}

impl Optimiser {
    pub fn findings(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        let mut want = |ok: bool, field: &str, value: f64, help: &str| {
            if !ok {
                out.push(Finding::error(&format!("optimiser.{field}"), format!("{field} is {value}"), help));
            }
        };
        want(self.lr > 0.0 && self.lr.is_finite(), "lr", self.lr, "give a number above 0");
        want(self.weight_decay >= 0.0 && self.weight_decay.is_finite(), "weight_decay", self.weight_decay, "give 0 or more");
        want((0.0..1.0).contains(&self.beta1), "beta1", self.beta1, "give 0 or more and less than 1");
        want((0.0..1.0).contains(&self.beta2), "beta2", self.beta2, "give 0 or more and less than 1");
        want((0.0..1.0).contains(&self.momentum), "momentum", self.momentum, "give 0 or more and less than 1");
        want(self.eps > 0.0, "eps", self.eps, "give a small number above 0");
        want(self.clip_norm.is_none_or(|c| c > 0.0), "clip_norm", self.clip_norm.unwrap_or(0.0), "give a number above 0");
        want(
            self.ema.is_none_or(|e| (0.0..1.0).contains(&e)),
            "ema",
            self.ema.unwrap_or(0.0),
            "give 0 or more and less than 1, such as 0.999",
        );
        out
    }

    /// The network after one step; `None`, and nothing has changed, where a gradient is not finite. `state` grows its entries at the first step.
    pub(super) fn step<M: Module>(&self, net: M, grads: Grads, lr: f64, state: &mut State) -> Result<Option<M>, Error> {
        let norm = grads.norm()?;
        if !norm.is_finite() {
            return Ok(None);
        }
        state.steps += 1;
        // PyTorch's clip_grad_norm_: limit / (norm + 1e-6), at most 1.
        let scale = self.clip_norm.map_or(1.0, |limit| (limit / (norm + 1e-6)).min(1.0));
        Ok(Some(net.map(&mut Update { optimiser: self, grads, lr, scale, state, path: Vec::new() })))
    }

    /// One parameter, its gradient and its memory, all flat.
    fn update(&self, w: Tensor<1>, g: Tensor<1>, lr: f64, memory: Option<Memory>, t: u64) -> (Tensor<1>, Memory) {
        match self.kind {
            Rule::Adamw => {
                let (m, v) = match memory {
                    Some(Memory { first, second: Some(second), .. }) => {
                        (first * self.beta1 + g.clone() * (1.0 - self.beta1), second * self.beta2 + g.clone() * g * (1.0 - self.beta2))
                    }
                    _ => (g.clone() * (1.0 - self.beta1), g.clone() * g * (1.0 - self.beta2)),
                };
                let (bias1, bias2) = (1.0 - self.beta1.powf(t as f64), 1.0 - self.beta2.powf(t as f64));
                let root = v.clone().sqrt() * (1.0 / bias2.sqrt()) + self.eps;
                let w = w * (1.0 - lr * self.weight_decay) - m.clone() * (lr / bias1) / root;
                (w, Memory { first: m, second: Some(v), average: None })
            }
            Rule::Sgd => {
                let g = g + w.clone() * self.weight_decay;
                let buffer = match memory {
                    Some(Memory { first, .. }) => first * self.momentum + g.clone(),
                    None => g.clone(),
                };
                let direction = if self.nesterov { g + buffer.clone() * self.momentum } else { buffer.clone() };
                (w - direction * lr, Memory { first: buffer, second: None, average: None })
            }
        }
    }
}

/// What the optimiser remembers of one parameter, flat.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    /// AdamW: mean gradient; SGD: momentum.
    pub first: Tensor<1>,
    /// AdamW: mean squared gradient.
    pub second: Option<Tensor<1>>,
    /// With `ema`: the average of the parameter.
    pub average: Option<Tensor<1>>,
}

/// What the optimiser remembers, by parameter name.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub steps: u64,
    pub memory: BTreeMap<String, Memory>,
}

/// Gradients by parameter name, flat, summed over the parts of a batch.
#[derive(Default)]
pub(super) struct Grads(BTreeMap<String, Tensor<1>>);

impl Grads {
    /// Adds the gradients of one backward pass.
    pub fn add<M: Module>(&mut self, net: &M, found: Gradients) {
        struct Take<'a> {
            found: Gradients,
            path: Vec<String>,
            sum: &'a mut BTreeMap<String, Tensor<1>>,
        }
        impl ModuleVisitor for Take<'_> {
            fn enter_module(&mut self, name: &str, _container: &str) {
                self.path.push(name.into());
            }
            fn exit_module(&mut self, _name: &str, _container: &str) {
                self.path.pop();
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let value = param.val();
                let Some(grad) = value.grad_remove(&mut self.found) else { return };
                let grad = grad.reshape([value.dims().iter().product::<usize>()]);
                let name = self.path.join(".");
                let sum = match self.sum.remove(&name) {
                    Some(before) => before + grad,
                    None => grad,
                };
                self.sum.insert(name, sum);
            }
        }
        net.visit(&mut Take { found, path: Vec::new(), sum: &mut self.0 });
    }

    /// Differences, parameter by parameter.
    #[cfg(test)]
    pub fn minus(&self, other: &Grads) -> Grads {
        Grads(self.0.iter().map(|(name, g)| (name.clone(), g.clone() - other.0[name].clone())).collect())
    }

    /// √Σg² over all parameters, in the order of their names. On the CPU it is summed in float64 over the values where they lie; other devices sum the
    /// squares of each parameter themselves and one read brings all sums.
    pub fn norm(&self) -> Result<f64, Error> {
        let squares = |values: &[f32]| values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>();
        let mut sum = 0.0;
        let mut elsewhere = Vec::new();
        for g in self.0.values() {
            if kernels::is_on_cpu(g) {
                sum += squares(&weights::values(g.clone())?);
            } else {
                elsewhere.push((g.clone() * g.clone()).sum());
            }
        }
        if !elsewhere.is_empty() {
            sum += weights::values(Tensor::cat(elsewhere, 0))?.into_iter().map(f64::from).sum::<f64>();
        }
        Ok(sum.sqrt())
    }
}

struct Update<'a> {
    optimiser: &'a Optimiser,
    grads: Grads,
    lr: f64,
    scale: f64,
    state: &'a mut State,
    path: Vec<String>,
}

impl ModuleMapper for Update<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.join(".");
        let (id, value, mapper) = param.consume();
        let shape = value.dims();
        let Some(mut grad) = self.grads.0.remove(&name) else { return Param::from_mapped_value(id, value, mapper) };
        let count = shape.iter().product::<usize>();
        let flat = value.inner().reshape([count]);
        if self.scale != 1.0 {
            grad = grad * self.scale;
        }
        let mut memory = self.state.memory.remove(&name);
        let average = memory.as_mut().and_then(|m| m.average.take());
        let (flat, mut memory) = self.optimiser.update(flat, grad, self.lr, memory, self.state.steps);
        memory.average = self.optimiser.ema.map(|keep| match average {
            Some(average) => average * keep + flat.clone() * (1.0 - keep),
            None => flat.clone(),
        });
        self.state.memory.insert(name, memory);
        let value = flat.reshape(shape).autodiff().require_grad();
        Param::from_mapped_value(id, value, mapper)
    }
}

/// The network with the averages of its parameters in their place, where there are any.
pub(super) fn averaged<M: Module>(net: M, state: &State) -> M {
    struct Average<'a> {
        state: &'a State,
        path: Vec<String>,
    }
    impl ModuleMapper for Average<'_> {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.into());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let average = self.state.memory.get(&self.path.join(".")).and_then(|m| m.average.clone());
            match average {
                Some(average) => Param::from_tensor(average.reshape(param.val().dims())),
                None => param,
            }
        }
    }
    net.map(&mut Average { state, path: Vec::new() })
}
