//! The training loop, top to bottom: batches come in, the network takes steps, epochs end with a validation, the best weights are kept, checkpoints are
//! written. Nothing that depends on the clock or on threads enters the result.

use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::tables::{HistoryRow, StepRow, ValidationRow};

use super::card::{Card, WEIGHTS};
use super::checkpoint::{self, State};
use super::parts::Parts;
use super::predict;
use crate::error::Error;
use crate::model::{Blend, Device, Loss, Optimiser, Predictor, Schedule, Trainer, Window};
use crate::ops::{metrics, regrid};
use crate::sample::feed::{AHEAD, Pace, feed};
use crate::sample::foresight::Foresight;
use crate::sample::plan::Plan;
use crate::sample::{Batch, Pool, cut};
use crate::stage::{Cx, Progress};

/// When and how the validation cases are predicted.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Validation {
    /// Validate after this many epochs, and after the last.
    pub every_epochs: usize,
    /// How far neighbouring windows overlap, 0 to below 1. A window has the size of a patch.
    pub overlap: f64,
    pub blend: Blend,
    /// Windows in one pass through the network.
    pub batch: usize,
}

impl Default for Validation {
    fn default() -> Self {
        Self { every_epochs: 1, overlap: 0.25, blend: Blend::Gaussian, batch: 2 }
    }
}

/// What a training goes by.
pub struct Terms<'a> {
    pub parts: &'a Parts,
    pub plan: &'a Plan<'a>,
    /// Network, channels and classes.
    pub card: &'a Card,
    pub loss: &'a Loss,
    pub optimiser: &'a Optimiser,
    pub schedule: &'a Schedule,
    pub epochs: usize,
    pub validation: &'a Validation,
    pub device: &'a Device,
    /// A checkpoint is written when this much time went by since the last, and when the run is stopped.
    pub between_checkpoints: Duration,
}

/// What came of it.
pub struct Trained {
    /// Of the best validation; without validation cases, of the last step.
    pub weights: Predictor,
    pub history: Vec<HistoryRow>,
    pub steps_told: Vec<StepRow>,
    pub validation: Vec<ValidationRow>,
    /// The epoch of the weights, where there was a validation.
    pub best: Option<HistoryRow>,
    pub steps: u64,
}

/// Trains to the end, from the last checkpoint in `cx.memo` where there is one.
pub fn train(terms: &Terms, cx: &Cx) -> Result<Trained, Error> {
    let mut t = Training::begin(terms, cx)?;
    t.go()?;
    let best = t.best_row().cloned();
    let weights = t.best.take().unwrap_or_else(|| t.net.predictor());
    let State { history, steps: steps_told, validation, done: steps, .. } = t.state;
    Ok(Trained { weights, history, steps_told, validation, best, steps })
}

/// A training in hand.
struct Training<'a> {
    terms: &'a Terms<'a>,
    cx: &'a Cx<'a>,
    net: Trainer,
    best: Option<Predictor>,
    state: State,
    saved: Instant,
}

impl<'a> Training<'a> {
    /// From the last checkpoint, where there is one.
    fn begin(terms: &'a Terms<'a>, cx: &'a Cx<'a>) -> Result<Self, Error> {
        let (t, card) = (terms, terms.card);
        let (channels, n_outputs) = (card.channels.len(), card.n_outputs());
        let new = || Trainer::new(&card.network, channels, n_outputs, t.loss, t.optimiser, cx.seed, t.device);
        let mut net = new()?;
        let (mut best, mut state) = (None, State::default());
        if let Some((found, dir)) = checkpoint::newest(cx.memo) {
            let mut load = || {
                net.load(&dir.join("net"))?;
                let file = dir.join(WEIGHTS);
                file.exists().then(|| Predictor::load(&card.network, channels, n_outputs, &file, t.device)).transpose()
            };
            match load() {
                Ok(weights) => {
                    (best, state) = (weights, found);
                    cx.say(format!("goes on after step {}", state.done));
                }
                Err(_) => {
                    // Written by another version: its files are whole but say something else.
                    net = new()?;
                    (cx.progress)(Progress::Warn("the checkpoint of an earlier run cannot be read: training starts again".into()));
                }
            }
        }
        Ok(Self { terms, cx, net, best, state, saved: Instant::now() })
    }

    /// All steps that are left.
    fn go(&mut self) -> Result<(), Error> {
        let (steps, of) = (self.terms.plan.steps, self.terms.plan.steps * self.terms.epochs as u64);
        let pace = Pace { workers: self.cx.jobs.clamp(1, AHEAD), ahead: AHEAD };
        let (plan, sources, size, store) = (self.terms.plan, &self.terms.parts.train, self.terms.plan.patch, self.cx.store);
        let foresight = Foresight::new(plan, sources, store, of);
        let pool = Pool::default();
        let make = |n: u64| {
            foresight.at(n, n.saturating_sub((AHEAD + pace.workers) as u64));
            cut::batch(sources, &plan.step(n / steps, n % steps), size, store, &pool)
        };
        let ended = feed(self.state.done..of, pace, self.cx.cancel, make, |feed| -> Result<(), Error> {
            // A training that was stopped while it validated has that left to do.
            self.end_epoch_if_due()?;
            let progress = self.cx.progress;
            let mut next = || {
                let asked = Instant::now();
                let batch = feed.next();
                progress(Progress::Waited(asked.elapsed()));
                batch
            };
            while let Some(batch) = next() {
                self.step(batch?)?;
                (self.cx.progress)(Progress::Steps { done: self.state.done, of });
                self.end_epoch_if_due()?;
                if self.saved.elapsed() >= self.terms.between_checkpoints {
                    self.save()?;
                }
            }
            Ok(())
        });
        if matches!(ended, Err(Error::Cancelled)) {
            self.save()?;
        }
        ended
    }

    fn step(&mut self, batch: Batch) -> Result<(), Error> {
        let lr = self.lr(self.state.done);
        let names =
            |cases: &[u32]| cases.iter().map(|c| self.terms.parts.train[*c as usize].case.0.as_str()).collect::<Vec<_>>().join(", ");
        let loss = self.net.step(batch.images, &batch.labels, batch.n, batch.size, lr)?;
        if !loss.is_finite() {
            return Err(Error::NotFinite { value: loss, step: self.state.done + 1, cases: names(&batch.cases) });
        }
        self.state.loss_sum += loss as f64;
        let epoch = (self.state.done / self.terms.plan.steps) as i64 + 1;
        self.state.done += 1;
        self.state.steps.push(StepRow { epoch, step: self.state.done as i64, lr, loss: loss as f64 });
        Ok(())
    }

    /// Learning rate of step `n` from the beginning.
    fn lr(&self, n: u64) -> f64 {
        self.terms.schedule.lr(self.terms.optimiser.lr, n as f64 / self.terms.plan.steps as f64, self.terms.epochs)
    }

    /// After the last step of an epoch: validate, keep the best, write the row.
    fn end_epoch_if_due(&mut self) -> Result<(), Error> {
        let epoch = self.state.done / self.terms.plan.steps;
        if !self.state.done.is_multiple_of(self.terms.plan.steps) || self.state.history.len() as u64 == epoch {
            return Ok(());
        }
        let epoch = epoch as usize;
        let is_last = epoch == self.terms.epochs;
        let is_validated = !self.terms.parts.val.is_empty() && (is_last || epoch.is_multiple_of(self.terms.validation.every_epochs));
        let predictor = self.net.predictor();
        let class_dice = if is_validated { self.validate(&predictor, epoch as i64)? } else { Vec::new() };
        let seen: Vec<f64> = class_dice.iter().copied().filter(|d| !d.is_nan()).collect();
        let val_dice = (!seen.is_empty()).then(|| seen.iter().sum::<f64>() / seen.len() as f64);
        let row = HistoryRow {
            epoch: epoch as i64,
            step: self.state.done as i64,
            lr: self.lr(self.state.done - 1),
            loss: self.state.loss_sum / self.terms.plan.steps as f64,
            val_dice,
            class_dice,
        };
        let best_so_far = self.best_row().and_then(|r| r.val_dice).unwrap_or(f64::NEG_INFINITY);
        let mut line = format!("epoch {epoch}/{}  loss {:.3}", self.terms.epochs, row.loss);
        match val_dice {
            Some(dice) if dice < best_so_far => line.push_str(&format!("  Dice {dice:.3} (best {best_so_far:.3})")),
            Some(dice) => line.push_str(&format!("  Dice {dice:.3}")),
            None if best_so_far.is_finite() => line.push_str(&format!("  best Dice {best_so_far:.3}")),
            None => {}
        }
        self.cx.say(line);
        if val_dice.is_some_and(|d| d > best_so_far) {
            (self.best, self.state.best_epoch) = (Some(predictor), Some(epoch as i64));
        }
        self.state.history.push(row);
        self.state.loss_sum = 0.0;
        Ok(())
    }

    fn best_row(&self) -> Option<&HistoryRow> {
        let epoch = self.state.best_epoch?;
        self.state.history.iter().find(|r| r.epoch == epoch)
    }

    /// Dice of each class: the mean over the validation cases that have it (in truth or prediction), NaN where none has.
    fn validate(&mut self, predictor: &Predictor, epoch: i64) -> Result<Vec<f64>, Error> {
        let v = &self.terms.validation;
        let window = Window { overlap: v.overlap, blend: v.blend, batch: v.batch, ..Window::of(self.terms.plan.patch) };
        let n_outputs = self.terms.card.n_outputs();
        let mut found: Vec<Vec<f64>> = vec![Vec::new(); self.terms.parts.classes.len()];
        let mut told = Vec::new();
        for source in &self.terms.parts.val {
            let mut go_on = || self.cx.check_cancelled();
            let (logits, patch) = predict::volume(&source.volume, predictor, &window, n_outputs, self.cx.store, &mut go_on)?;
            let truth = patch.labels.expect("cases without labels were refused");
            let predicted = regrid::argmax(&logits, n_outputs);
            for (dices, (class, id)) in found.iter_mut().zip(&self.terms.parts.classes) {
                let dice = metrics::dice(&predicted, &truth, *id);
                dices.extend(dice);
                told.push(ValidationRow { epoch, case: source.case.0.clone(), class: class.clone(), dice });
            }
        }
        // A validation that was stopped is done again from its beginning.
        self.state.validation.extend(told);
        Ok(found.iter().map(|d| d.iter().sum::<f64>() / d.len() as f64).collect())
    }

    fn save(&mut self) -> Result<(), Error> {
        checkpoint::save(self.cx.memo, &self.state, |dir| {
            let net = dir.join("net");
            std::fs::create_dir_all(&net).map_err(Error::io("make folder", &net))?;
            self.net.save(&net)?;
            self.best.as_ref().map_or(Ok(()), |b| b.save(&dir.join(WEIGHTS)))
        })?;
        self.saved = Instant::now();
        let best = self.best_row();
        let (best_epoch, best_dice) = (best.map(|b| b.epoch), best.and_then(|b| b.val_dice));
        (self.cx.progress)(Progress::Saved { epoch: self.state.history.len() as u64, step: self.state.done, best_epoch, best_dice });
        Ok(())
    }
}
