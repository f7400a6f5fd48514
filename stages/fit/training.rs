//! The training loop, top to bottom: batches come in, the network takes steps, epochs end with a validation, the best weights are kept, checkpoints are
//! written. Nothing that depends on the clock or on threads enters the result.

use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::tables::{HistoryRow, StepRow, ValidationRow};

use super::card::{Card, WEIGHTS};
use super::checkpoint::{self, State};
use super::parts::Parts;
use super::predict::{self, Looks};
use crate::error::Error;
use crate::model::schedule::Rates;
use crate::model::{Blend, Device, Loss, Optimiser, Predictor, Trainer, Window};
use crate::ops::metrics;
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

/// When a training ends before its last epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopping {
    /// Epochs without a better mean validation Dice after which the training ends. A multiple of `validation.every_epochs`, or it is rounded up to one.
    pub patience: u64,
    /// A Dice counts as better where it is larger by more than this.
    #[serde(default)]
    pub min_gain: f64,
}

impl EarlyStopping {
    /// Whether a training with this history is over.
    pub fn ends(&self, history: &[HistoryRow]) -> bool {
        let validated = history.iter().filter_map(|r| Some((r.epoch, r.val_dice?)));
        let (mut best, mut at, mut last) = (f64::NEG_INFINITY, 0, 0);
        for (epoch, dice) in validated {
            last = epoch;
            if dice > best + self.min_gain || at == 0 {
                (best, at) = (dice, epoch);
            }
        }
        last - at >= self.patience as i64 && at > 0
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
    pub rates: Rates<'a>,
    pub epochs: usize,
    pub validation: &'a Validation,
    pub early_stopping: Option<&'a EarlyStopping>,
    /// Parts that a batch goes through the network in.
    pub accumulate: usize,
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
    pulse: Pulse,
}

/// How fast it goes; nothing of it enters the result.
#[derive(Default)]
struct Pulse {
    patches: usize,
    waited: Duration,
    since: Option<Instant>,
    /// When something was last said.
    said: Option<Instant>,
}

/// A training says where it stands when it said nothing for so long.
const SILENCE: Duration = Duration::from_secs(10);

impl Pulse {
    fn begin(&mut self) {
        let now = Instant::now();
        self.since.get_or_insert(now);
        self.said.get_or_insert(now);
    }

    /// `5.1 patches/s, 3 % of it waiting for them`, since it was last asked.
    fn take(&mut self) -> String {
        let took = self.since.map_or(0.0, |s| s.elapsed().as_secs_f64()).max(1e-9);
        let text = format!("{:.1} patches/s, waits {:.0} %", self.patches as f64 / took, 100.0 * self.waited.as_secs_f64() / took);
        *self = Pulse { since: Some(Instant::now()), said: Some(Instant::now()), ..Pulse::default() };
        text
    }
}

impl<'a> Training<'a> {
    /// From the last checkpoint, where there is one.
    fn begin(terms: &'a Terms<'a>, cx: &'a Cx<'a>) -> Result<Self, Error> {
        let (t, card) = (terms, terms.card);
        let (channels, n_outputs) = (card.channels.len(), card.n_outputs());
        let new = || {
            let mut net = Trainer::new(&card.network, channels, n_outputs, t.loss, t.optimiser, cx.seed, t.device)?;
            net.accumulate(t.accumulate);
            net.ignore(t.parts.ignore);
            Ok::<_, Error>(net)
        };
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
        Ok(Self { terms, cx, net, best, state, saved: Instant::now(), pulse: Pulse::default() })
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
            while !self.is_over() {
                self.pulse.begin();
                let asked = Instant::now();
                let Some(batch) = feed.next() else { break };
                self.pulse.waited += asked.elapsed();
                (self.cx.progress)(Progress::Waited(asked.elapsed()));
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

    /// Whether the validations say that more epochs would be for nothing.
    fn is_over(&self) -> bool {
        self.terms.early_stopping.is_some_and(|e| e.ends(&self.state.history))
    }

    fn step(&mut self, batch: Batch) -> Result<(), Error> {
        let lr = self.terms.rates.at(self.state.done);
        self.net.begin_epoch(self.state.done / self.terms.plan.steps);
        let loss = self.net.step(batch.images, &batch.labels, batch.n, batch.size, lr)?;
        if !loss.is_finite() {
            return Err(self.not_finite(loss));
        }
        self.state.loss_sum += loss as f64;
        let epoch = (self.state.done / self.terms.plan.steps) as i64 + 1;
        self.state.done += 1;
        self.state.steps.push(StepRow { epoch, step: self.state.done as i64, lr, loss: loss as f64 });
        self.pulse.patches += batch.n;
        if self.pulse.said.is_some_and(|said| said.elapsed() >= SILENCE) {
            let (steps, done) = (self.terms.plan.steps, self.state.done);
            let (epoch, step) = ((done - 1) / steps + 1, (done - 1) % steps + 1);
            let mean = self.state.loss_sum / step as f64;
            let pace = self.pulse.take();
            self.cx.say(format!("epoch {epoch}/{}  step {step}/{steps}  loss {mean:.3}  {pace}", self.terms.epochs));
        }
        Ok(())
    }

    /// Says which patches of the step in hand it was: they are cut once more and go through the network one by one.
    fn not_finite(&self, value: f32) -> Error {
        let (plan, sources, done) = (self.terms.plan, &self.terms.parts.train, self.state.done);
        let patches = plan.step(done / plan.steps, done % plan.steps);
        let batch = cut::batch(sources, &patches, plan.patch, self.cx.store, &Pool::default()).ok();
        let found = batch.and_then(|b| self.net.offenders(&b.images, &b.labels, b.n, b.size).ok()).unwrap_or_default();
        let named = |slots: &mut dyn Iterator<Item = usize>| {
            let name = |slot: usize| {
                let at = &patches[slot];
                format!("{} from voxel {}", sources[at.case as usize].case, at.region.start)
            };
            slots.map(name).collect::<Vec<_>>().join("; ")
        };
        // Where none is at fault alone, it was all of them together.
        let cases = if found.is_empty() { named(&mut (0..patches.len())) } else { named(&mut found.into_iter()) };
        Error::NotFinite { value, step: done + 1, cases }
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
        let pace = self.pulse.take();
        let predictor = self.net.predictor();
        let class_dice = if is_validated { self.validate(&predictor, epoch as i64)? } else { Vec::new() };
        let seen: Vec<f64> = class_dice.iter().copied().filter(|d| !d.is_nan()).collect();
        let val_dice = (!seen.is_empty()).then(|| seen.iter().sum::<f64>() / seen.len() as f64);
        let row = HistoryRow {
            epoch: epoch as i64,
            step: self.state.done as i64,
            lr: self.terms.rates.at(self.state.done - 1),
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
        line.push_str(&format!("  {pace}"));
        self.cx.say(line);
        if val_dice.is_some_and(|d| d > best_so_far) {
            (self.best, self.state.best_epoch) = (Some(predictor), Some(epoch as i64));
        }
        self.state.history.push(row);
        self.state.loss_sum = 0.0;
        // The next epoch is not slower for the validation of this one.
        self.pulse = Pulse::default();
        Ok(())
    }

    fn best_row(&self) -> Option<&HistoryRow> {
        let epoch = self.state.best_epoch?;
        self.state.history.iter().find(|r| r.epoch == epoch)
    }

    /// Dice of each class: the mean over the validation cases that have it (in truth or prediction), NaN where none has.
    fn validate(&mut self, predictor: &Predictor, epoch: i64) -> Result<Vec<f64>, Error> {
        let v = &self.terms.validation;
        let window = Window { overlap: v.overlap, blend: v.blend, batch: v.batch, ..Window::of(self.terms.card.window()) };
        let n_outputs = self.terms.card.n_outputs();
        let mut found: Vec<Vec<f64>> = vec![Vec::new(); self.terms.parts.classes.len()];
        let mut told = Vec::new();
        for source in &self.terms.parts.val {
            let mut go_on = || self.cx.check_cancelled();
            let grid = &source.volume.geometry;
            let mut predicted =
                predict::labels(&source.volume, &Looks::one(predictor), &window, n_outputs, grid, self.cx.store, &mut go_on)?;
            let mut truth = source.volume.labels()?.expect("cases without labels were refused");
            if let Some(ignored) = self.terms.parts.ignore {
                truth.iter_mut().zip(&mut predicted).filter(|(t, _)| **t == ignored).for_each(|(t, p)| (*t, *p) = (0, 0));
            }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn patience_counts_epochs_since_the_best_validation() {
        let history = |dices: &[Option<f64>]| -> Vec<HistoryRow> {
            let row = |(i, d): (usize, &Option<f64>)| HistoryRow { epoch: i as i64 + 1, val_dice: *d, ..HistoryRow::default() };
            dices.iter().enumerate().map(row).collect()
        };
        let ends = |patience, min_gain, dices: &[Option<f64>]| EarlyStopping { patience, min_gain }.ends(&history(dices));
        assert!(!ends(2, 0.0, &[]));
        assert!(!ends(2, 0.0, &[Some(0.5), Some(0.4)]));
        assert!(ends(2, 0.0, &[Some(0.5), Some(0.4), Some(0.5)]), "as good is no better");
        assert!(!ends(2, 0.0, &[Some(0.5), None, None]), "only a validation can end it");
        assert!(ends(2, 0.0, &[Some(0.5), None, None, Some(0.4)]));
        assert!(!ends(2, 0.0, &[Some(0.5), Some(0.4), Some(0.6)]));
        assert!(ends(2, 0.1, &[Some(0.5), Some(0.55), Some(0.59)]), "small gains do not count");
        assert!(!ends(2, 0.1, &[Some(0.5), Some(0.55), Some(0.61)]));
    }
}
