//! Learning rates over time, as in `torch.optim.lr_scheduler`. Pure functions of the epoch.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::stage::Finding;

/// How the learning rate falls. The rate is set anew before every step; epochs count from 0 and may be fractional (epoch + step ÷ steps).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// The same rate throughout.
    #[default]
    Constant,
    /// Cosine annealing with warm restarts (SGDR, PyTorch's `CosineAnnealingWarmRestarts`): with t0 = 10 and t_mult = 2 it restarts at
    /// epochs 10, 30, 70, 150.
    CosineWarmRestarts {
        /// Epochs of the first cycle.
        t0: f64,
        /// Each cycle is this many times as long as the one before.
        #[serde(default = "one")]
        t_mult: f64,
        /// The rate at the end of a cycle.
        #[serde(default)]
        min_lr: f64,
    },
    /// `lr · (1 − epoch / epochs)^power`, nnU-Net's schedule.
    Poly {
        /// nnU-Net uses 0.9.
        #[serde(default = "nnunet_power")]
        power: f64,
    },
}

fn one() -> f64 {
    1.0
}

fn nnunet_power() -> f64 {
    0.9
}

impl Schedule {
    /// The learning rate at `epoch` (fractional, from 0) of a training of `epochs`.
    /// A restart lies on its own epoch: at `epoch` = t0 the rate is `lr0` again.
    pub fn lr(&self, lr0: f64, epoch: f64, epochs: usize) -> f64 {
        match *self {
            Schedule::Constant => lr0,
            Schedule::CosineWarmRestarts { t0, t_mult, min_lr } => {
                let (t, cycle) = place_in_cycle(epoch.max(0.0), t0, t_mult);
                min_lr + (lr0 - min_lr) * (1.0 + (std::f64::consts::PI * t / cycle).cos()) / 2.0
            }
            Schedule::Poly { power } => lr0 * (1.0 - epoch / epochs.max(1) as f64).clamp(0.0, 1.0).powf(power),
        }
    }

    /// The first epoch of each cycle within a training of `epochs`, without 0.
    pub fn restarts(&self, epochs: usize) -> Vec<usize> {
        let Schedule::CosineWarmRestarts { t0, t_mult, .. } = *self else { return Vec::new() };
        let (mut at, mut cycle, mut out) = (0.0, t0.max(1.0), Vec::new());
        loop {
            at += cycle;
            cycle *= t_mult.max(1.0);
            if at >= epochs as f64 {
                return out;
            }
            out.push(at.ceil() as usize);
        }
    }

    /// Values that the JSON Schema cannot refuse, and trainings that end in the middle of a cycle (epochs are counted, not steps).
    pub fn findings(&self, epochs: usize) -> Vec<Finding> {
        let mut out = Vec::new();
        match *self {
            Schedule::Constant => {}
            Schedule::Poly { power } => {
                if !(power > 0.0) {
                    out.push(Finding::error("schedule.poly.power", format!("power is {power}"), "give a number above 0, nnU-Net uses 0.9"));
                }
            }
            Schedule::CosineWarmRestarts { t0, t_mult, min_lr } => {
                let at = |f: &str| format!("schedule.cosine_warm_restarts.{f}");
                if !(t0 >= 1.0) {
                    out.push(Finding::error(&at("t0"), format!("the first cycle lasts {t0} epochs"), "give at least 1"));
                }
                if !(t_mult >= 1.0) {
                    out.push(Finding::error(&at("t_mult"), format!("cycles grow by {t_mult}"), "give at least 1"));
                }
                if !(min_lr >= 0.0) {
                    out.push(Finding::error(&at("min_lr"), format!("the lowest rate is {min_lr}"), "give 0 or more"));
                }
                if out.is_empty() && epochs > 0 {
                    let (t, cycle) = place_in_cycle(epochs as f64, t0, t_mult);
                    if t != 0.0 && t < 0.5 * cycle && epochs as f64 > t0 {
                        let last = (epochs as f64 - t).round();
                        out.push(Finding::warning(
                            &at("t0"),
                            format!("the training stops {t:.0} epochs into a cycle of {cycle:.0}, while the rate is still high"),
                            format!("end with a cycle: epochs: {last:.0} or {:.0}", last + cycle),
                        ));
                    }
                }
            }
        }
        out
    }
}

/// Position in the current cycle and the cycle's length, both in epochs.
fn place_in_cycle(epoch: f64, t0: f64, t_mult: f64) -> (f64, f64) {
    let (mut t, mut cycle) = (epoch, t0);
    if t_mult == 1.0 {
        return (t % cycle, cycle);
    }
    while t >= cycle && cycle.is_finite() {
        t -= cycle;
        cycle *= t_mult;
    }
    (t, cycle)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sgdr() -> Schedule {
        serde_json::from_value(serde_json::json!({ "cosine_warm_restarts": { "t0": 10, "t_mult": 2, "min_lr": 0.000001 } })).unwrap()
    }

    #[test]
    fn cycle_ends_low_and_restarts_at_the_full_rate() {
        let s = sgdr();
        assert!((s.lr(1e-4, 9.0, 150) - 3.42e-6).abs() < 1e-8);
        for restart in [0.0, 10.0, 30.0, 70.0] {
            assert_eq!(s.lr(1e-4, restart, 150), 1e-4);
        }
        assert_eq!(s.restarts(150), [10, 30, 70]);
        assert_eq!(s.restarts(151), [10, 30, 70, 150]);
    }

    #[test]
    fn poly_falls_to_zero() {
        let s: Schedule = serde_json::from_value(serde_json::json!({ "poly": {} })).unwrap();
        assert_eq!(s.lr(0.01, 0.0, 100), 0.01);
        assert!((s.lr(0.01, 50.0, 100) - 0.01 * 0.5f64.powf(0.9)).abs() < 1e-15);
        assert_eq!(s.lr(0.01, 100.0, 100), 0.0);
    }

    #[test]
    fn stopping_early_in_a_cycle_is_a_warning() {
        assert!(sgdr().findings(30).is_empty());
        assert!(sgdr().findings(35)[0].is_warning);
        let bad = Schedule::CosineWarmRestarts { t0: 0.0, t_mult: 1.0, min_lr: 0.0 };
        assert!(!bad.findings(10)[0].is_warning);
    }
}
