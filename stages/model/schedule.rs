//! Learning rates over time, as in `torch.optim.lr_scheduler`. Pure functions of the step.

use std::f64::consts::PI;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::stage::Finding;

/// How the learning rate moves. Epochs count from 0 and may be fractional (epoch + step ÷ steps).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// The same rate throughout.
    #[default]
    Constant,
    /// Half a cosine from the full rate to `min_lr` at the end of the training (PyTorch's `CosineAnnealingLR`).
    Cosine {
        /// The rate at the end.
        #[serde(default)]
        min_lr: f64,
    },
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
    /// `lr · (1 − epoch / epochs)^power`, nnU-Net's schedule (PyTorch's `PolynomialLR`).
    Poly {
        /// nnU-Net uses 0.9.
        #[serde(default = "nnunet_power")]
        power: f64,
    },
    /// One cycle up to the full rate and down far below where it began (PyTorch's `OneCycleLR`, `optimiser.lr` being its `max_lr`; momentum and betas
    /// stay as they are).
    OneCycle {
        /// Share of the steps on the way up.
        #[serde(default = "pct_start")]
        pct_start: f64,
        /// The form of the ways up and down.
        #[serde(default)]
        anneal: Anneal,
        /// The full rate is this many times the first.
        #[serde(default = "div_factor")]
        div_factor: f64,
        /// The first rate is this many times the last.
        #[serde(default = "final_div_factor")]
        final_div_factor: f64,
        /// Back to the first rate in as many steps as up, and only then to the last.
        #[serde(default)]
        three_phase: bool,
    },
}

/// The form of a way from one rate to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Anneal {
    #[default]
    Cos,
    Linear,
}

/// A straight way up before the schedule begins (PyTorch's `LinearLR` and then the schedule, in a `SequentialLR`): the schedule has the epochs that are left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Warmup {
    /// How many epochs it lasts; fractions are counted in steps.
    pub epochs: f64,
    /// Share of the first rate of the schedule that the first step has (PyTorch's `start_factor`).
    #[serde(default = "start_factor")]
    pub from: f64,
}

/// When the rate is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Every {
    /// Before every step.
    #[default]
    Step,
    /// Once an epoch, as nnU-Net does.
    Epoch,
}

fn one() -> f64 {
    1.0
}
fn nnunet_power() -> f64 {
    0.9
}
fn pct_start() -> f64 {
    0.3
}
fn div_factor() -> f64 {
    25.0
}
fn final_div_factor() -> f64 {
    1e4
}
fn start_factor() -> f64 {
    1.0 / 3.0
}

/// All that decides the rate of a step.
#[derive(Clone, Debug)]
pub struct Rates<'a> {
    /// The full rate.
    pub lr: f64,
    pub schedule: &'a Schedule,
    pub warmup: Option<&'a Warmup>,
    pub every: Every,
    pub epochs: usize,
    pub steps_per_epoch: u64,
}

impl Rates<'_> {
    /// The learning rate of step `n`, from 0.
    pub fn at(&self, n: u64) -> f64 {
        let (n, per_epoch) = match self.every {
            Every::Step => (n as f64, self.steps_per_epoch.max(1) as f64),
            Every::Epoch => ((n / self.steps_per_epoch.max(1)) as f64, 1.0),
        };
        let Some(warmup) = self.warmup else { return self.schedule.lr(self.lr, n, per_epoch, self.epochs as f64) };
        let steps = (warmup.epochs * per_epoch).round();
        let left = self.epochs as f64 - steps / per_epoch;
        let rate = |n: f64| self.schedule.lr(self.lr, n, per_epoch, left);
        if n < steps { rate(0.0) * (warmup.from + (1.0 - warmup.from) * n / steps) } else { rate(n - steps) }
    }
}

impl Schedule {
    /// The learning rate of `step` (from 0) of a training of `epochs`, `per_epoch` steps each. A restart lies on its own epoch: at `epoch` = t0 the rate
    /// is `lr0` again.
    pub fn lr(&self, lr0: f64, step: f64, per_epoch: f64, epochs: f64) -> f64 {
        let epoch = step / per_epoch;
        match *self {
            Schedule::Constant => lr0,
            Schedule::Cosine { min_lr } => cos_way(lr0, min_lr, (epoch / epochs).clamp(0.0, 1.0)),
            Schedule::CosineWarmRestarts { t0, t_mult, min_lr } => {
                let (t, cycle) = place_in_cycle(epoch.max(0.0), t0, t_mult);
                cos_way(lr0, min_lr, t / cycle)
            }
            Schedule::Poly { power } => lr0 * (1.0 - epoch / epochs.max(1.0)).clamp(0.0, 1.0).powf(power),
            Schedule::OneCycle { pct_start, anneal, div_factor, final_div_factor, three_phase } => {
                let total = epochs * per_epoch;
                let (first, last) = (lr0 / div_factor, lr0 / div_factor / final_div_factor);
                let up = pct_start * total - 1.0;
                let ways = if three_phase {
                    let back = 2.0 * pct_start * total - 2.0;
                    vec![(0.0, up, first, lr0), (up, back, lr0, first), (back, total - 1.0, first, last)]
                } else {
                    vec![(0.0, up, first, lr0), (up, total - 1.0, lr0, last)]
                };
                let (start, end, from, to) = *ways.iter().find(|w| step <= w.1).unwrap_or(&ways[ways.len() - 1]);
                // A way up of one step or none has no length.
                let way = if end > start { ((step - start) / (end - start)).clamp(0.0, 1.0) } else { 1.0 };
                match anneal {
                    Anneal::Cos => cos_way(from, to, way),
                    Anneal::Linear => from + (to - from) * way,
                }
            }
        }
    }

    /// Values that the JSON Schema cannot refuse, and trainings that end in the middle of a cycle (epochs are counted, not steps).
    pub fn findings(&self, epochs: usize, warmup: Option<&Warmup>) -> Vec<Finding> {
        let mut out = Vec::new();
        let mut want = |ok: bool, field: &str, message: String, help: &str| {
            if !ok {
                out.push(Finding::error(field, message, help));
            }
        };
        if let Some(w) = warmup {
            let left = format!("{} of {epochs} epochs", w.epochs);
            want(w.epochs > 0.0 && w.epochs < epochs.max(1) as f64, "warmup.epochs", left, "give more than 0 and fewer than all epochs");
            want((0.0..=1.0).contains(&w.from), "warmup.from", format!("it begins at {} of the rate", w.from), "give a share from 0 to 1");
        }
        match *self {
            Schedule::Constant => {}
            Schedule::Cosine { min_lr } => {
                want(min_lr >= 0.0, "schedule.cosine.min_lr", format!("the lowest rate is {min_lr}"), "give 0 or more")
            }
            Schedule::Poly { power } => {
                want(power > 0.0, "schedule.poly.power", format!("power is {power}"), "give a number above 0, nnU-Net uses 0.9")
            }
            Schedule::OneCycle { pct_start, div_factor, final_div_factor, three_phase, .. } => {
                let at = |f: &str| format!("schedule.one_cycle.{f}");
                let most = if three_phase { 0.5 } else { 1.0 };
                let help = "give a share above 0 and below 1, with three_phase at most 0.5";
                want(pct_start > 0.0 && pct_start <= most && pct_start < 1.0, &at("pct_start"), format!("a share of {pct_start}"), help);
                want(div_factor >= 1.0, &at("div_factor"), format!("it is {div_factor}"), "give at least 1, PyTorch uses 25");
                want(
                    final_div_factor >= 1.0,
                    &at("final_div_factor"),
                    format!("it is {final_div_factor}"),
                    "give at least 1, PyTorch uses 1e4",
                );
            }
            Schedule::CosineWarmRestarts { t0, t_mult, min_lr } => {
                let at = |f: &str| format!("schedule.cosine_warm_restarts.{f}");
                want(t0 >= 1.0, &at("t0"), format!("the first cycle lasts {t0} epochs"), "give at least 1");
                want(t_mult >= 1.0, &at("t_mult"), format!("cycles grow by {t_mult}"), "give at least 1");
                want(min_lr >= 0.0, &at("min_lr"), format!("the lowest rate is {min_lr}"), "give 0 or more");
                if out.is_empty() && epochs > 0 {
                    let before = warmup.map_or(0.0, |w| w.epochs);
                    let (t, cycle) = place_in_cycle(epochs as f64 - before, t0, t_mult);
                    if t != 0.0 && t < 0.5 * cycle && epochs as f64 - before > t0 {
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

/// Half a cosine, `way` from 0 to 1.
fn cos_way(from: f64, to: f64, way: f64) -> f64 {
    to + (from - to) * (1.0 + (PI * way).cos()) / 2.0
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
    use serde_json::json;

    use super::*;

    fn schedule(v: serde_json::Value) -> Schedule {
        serde_json::from_value(v).unwrap()
    }

    fn sgdr() -> Schedule {
        schedule(json!({ "cosine_warm_restarts": { "t0": 10, "t_mult": 2, "min_lr": 0.000001 } }))
    }

    #[test]
    fn cycle_ends_low_and_restarts_at_the_full_rate() {
        let s = sgdr();
        assert!((s.lr(1e-4, 9.0, 1.0, 150.0) - 3.42e-6).abs() < 1e-8);
        for restart in [0.0, 10.0, 30.0, 70.0] {
            assert_eq!(s.lr(1e-4, restart, 1.0, 150.0), 1e-4);
        }
    }

    #[test]
    fn poly_falls_to_zero() {
        let s = schedule(json!({ "poly": {} }));
        assert_eq!(s.lr(0.01, 0.0, 1.0, 100.0), 0.01);
        assert!((s.lr(0.01, 50.0, 1.0, 100.0) - 0.01 * 0.5f64.powf(0.9)).abs() < 1e-15);
        assert_eq!(s.lr(0.01, 100.0, 1.0, 100.0), 0.0);
    }

    #[test]
    fn rates_are_those_of_torch() {
        // torch 2.15 with lr 0.01: OneCycleLR, CosineAnnealingLR, and LinearLR followed by PolynomialLR(power=0.9).
        let close = |got: f64, want: f64, what: &str| assert!((got - want).abs() < 1e-10, "{what}: {got} instead of {want}");
        let cases: [(serde_json::Value, &[f64]); 3] = [
            (
                json!({ "one_cycle": {} }),
                &[
                    0.0004,
                    0.00131671843,
                    0.00371671843,
                    0.00668328157,
                    0.00908328157,
                    0.01,
                    0.00987464006,
                    0.00950484632,
                    0.00890916178,
                    0.00811745654,
                    0.00716943002,
                    0.00611262022,
                    0.00500002,
                    0.00388741978,
                    0.00283060998,
                    0.00188258346,
                    0.00109087822,
                    0.00049519368,
                    0.000125399938,
                    4e-08,
                ],
            ),
            (
                json!({ "one_cycle": {
                    "pct_start": 0.25, "anneal": "linear", "div_factor": 10, "final_div_factor": 100, "three_phase": true
                } }),
                &[0.001, 0.005, 0.009, 0.007, 0.003, 0.000934, 0.000802, 0.00067, 0.000538, 0.000406, 0.000274, 0.000142, 1e-05],
            ),
            (
                json!({ "cosine": { "min_lr": 0.001 } }),
                &[0.01, 0.0096574579, 0.00868198052, 0.00722207545, 0.0055, 0.00377792455, 0.00231801948, 0.0013425421],
            ),
        ];
        for (config, rates) in cases {
            for (n, want) in rates.iter().enumerate() {
                close(schedule(config.clone()).lr(0.01, n as f64, 1.0, rates.len() as f64), *want, &config.to_string());
            }
        }
        let (poly, warmup) = (schedule(json!({ "poly": {} })), Warmup { epochs: 4.0, from: 1.0 / 3.0 });
        let warm = Rates { lr: 0.01, schedule: &poly, warmup: Some(&warmup), every: Every::Step, epochs: 10, steps_per_epoch: 1 };
        for (n, want) in [
            0.00333333333,
            0.005,
            0.00666666667,
            0.00833333333,
            0.01,
            0.00848666147,
            0.00694253163,
            0.00535886731,
            0.00372041058,
            0.00199371866,
        ]
        .into_iter()
        .enumerate()
        {
            close(warm.at(n as u64), want, "warm-up");
        }
    }

    #[test]
    fn a_rate_that_is_set_once_an_epoch_stays_within_it() {
        let (poly, warmup) = (schedule(json!({ "poly": {} })), Warmup { epochs: 2.0, from: 0.1 });
        let rates = |every, warmup| Rates { lr: 0.01, schedule: &poly, warmup, every, epochs: 4, steps_per_epoch: 5 };
        let nnunet = rates(Every::Epoch, None);
        assert!((5..10).all(|n| nnunet.at(n) == 0.01 * 0.75f64.powf(0.9)));
        let up = rates(Every::Step, Some(&warmup));
        assert!((0..10).all(|n| (up.at(n) - 0.01 * (0.1 + 0.09 * n as f64)).abs() < 1e-15));
        assert_eq!((up.at(10), up.at(15)), (0.01, 0.01 * 0.5f64.powf(0.9)));
    }

    #[test]
    fn stopping_early_in_a_cycle_is_a_warning() {
        assert!(sgdr().findings(30, None).is_empty());
        assert!(sgdr().findings(35, None)[0].is_warning);
        assert!(sgdr().findings(35, Some(&Warmup { epochs: 5.0, from: 0.0 })).is_empty());
        let bad = Schedule::CosineWarmRestarts { t0: 0.0, t_mult: 1.0, min_lr: 0.0 };
        assert!(!bad.findings(10, None)[0].is_warning);
        assert_eq!(Schedule::Constant.findings(5, Some(&Warmup { epochs: 5.0, from: 0.0 }))[0].field, "warmup.epochs");
    }
}
