//! Trains a network on random patches and keeps the weights of the best validation. The loop stands in `fit/training.rs`, what feeds it in `sample/`,
//! what it computes in `model/`.

use std::collections::BTreeSet;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::{Kind, Port, Scope};
use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::tables::{HistoryRow, PatchRow};

use crate::error::Error;
use crate::fit::card::{Card, WEIGHTS};
use crate::fit::events;
use crate::fit::parts::{self, Parts};
use crate::fit::training::{self, EarlyStopping, Terms, Trained, Validation};
use crate::model::schedule::{Every, Rates, Warmup};
use crate::model::{self, Loss, Network, Optimiser, Schedule};
use crate::sample::feed::AHEAD;
use crate::sample::plan::{Case, Foreground, Plan};
use crate::sample::{self, Random, Rank, Sampler, cut};
use crate::stage::{Cx, Facts, Finding, Info, Inputs, Progress, Stage};
use crate::table;

/// A checkpoint is written when this much time went by since the last, and when the run is stopped.
const BETWEEN_CHECKPOINTS: Duration = Duration::from_secs(20);

/// Trains a segmentation network on random patches of the training cases and validates it by sliding window on the validation cases. The weights of
/// the best mean validation Dice are kept. Stopped or killed, it goes on from its last checkpoint to the same result.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Size of a patch in voxels; a multiple of the product of the network's strides. Volumes smaller than this are padded with 0.
    pub patch: Zyx<usize>,
    /// Patches in a step.
    pub batch: usize,
    /// How many epochs are trained, each of `steps_per_epoch` steps.
    pub epochs: usize,
    /// Steps in an epoch. Default: as many as it takes to see every training case once (cases ÷ batch, rounded up). The order of the cases runs on
    /// across epochs, so all are seen equally often whatever this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps_per_epoch: Option<u64>,
    /// Share of the patches that are centred on a random voxel of a random class; the others lie anywhere. 0 to 1.
    #[serde(default = "a_third")]
    pub foreground: f64,
    /// What is done to patches at random, in this order.
    #[serde(default)]
    pub augment: Vec<Random>,
    pub network: Network,
    #[serde(default)]
    pub loss: Loss,
    pub optimiser: Optimiser,
    /// How the learning rate moves.
    #[serde(default)]
    pub schedule: Schedule,
    /// A straight way up before the schedule begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<Warmup>,
    /// Whether the rate is set before every step or once an epoch.
    #[serde(default, skip_serializing_if = "is_default")]
    pub lr_every: Every,
    #[serde(default)]
    pub validation: Validation,
    /// Ends the training where the validation gets no better. Default: all epochs are trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStopping>,
    /// The batch goes through the network in this many parts, whose gradients add up: memory of a smaller batch, steps of the whole one (gradient
    /// accumulation). Must divide `batch`.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub accumulate: usize,
    /// A class of the labels that is none: its voxels were not annotated and count neither in the loss nor in the validation, and the network has no output
    /// for it (nnU-Net's ignore label). It has the highest id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore: Option<String>,
    /// The fold of the split to validate on, from 0.
    #[serde(default)]
    pub fold: u32,
    /// `cpu`, `auto`, `cuda`, `cuda:1`, `wgpu`. On the same kind of CPU the same seed gives the same bytes; on a GPU the last bits may differ.
    #[serde(default = "cpu")]
    pub device: String,
}

fn is_default<T: Default + PartialEq>(v: &T) -> bool {
    *v == T::default()
}

fn one() -> usize {
    1
}

fn is_one(n: &usize) -> bool {
    *n == 1
}

fn a_third() -> f64 {
    0.33
}

fn cpu() -> String {
    "cpu".into()
}

impl Stage for Train {
    const INFO: Info = Info {
        name: "train",
        version: 4,
        scope: Scope::Set,
        ports: &[
            Port { name: "cases", kind: Kind::Volume, required: true, about: "preprocessed volumes with labels" },
            Port { name: "split", kind: Kind::Table, required: true, about: "which case plays which part" },
        ],
        gives: Kind::Model,
        summary: "train a network on random patches and keep the best validated weights",
        example: "\
uses: train
from: { cases: ready, split: folds }
with:
  patch: { z: 32, y: 48, x: 32 }
  batch: 2
  epochs: 30
  foreground: 0.5
  augment:
    - flip: { axes: [z, y], probability: 0.5 }
    - noise: { std: 0.1, probability: 0.2 }
  network: { kind: dynunet, filters: [16, 32, 64], kernel_size: [3, 3, 3], strides: [1, 2, 2], deep_supervision: 1 }
  loss: { dice: 0.7, focal: 0.3, gamma: 2 }
  optimiser: { lr: 0.002, weight_decay: 0.00001 }
  schedule: { cosine_warm_restarts: { t0: 10, t_mult: 2, min_lr: 0.000001 } }
  validation: { every_epochs: 5 }
",
        absent_in_inference: None,
    };
    const RANDOM: bool = true;

    fn check(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        let mut want = |ok: bool, field: &str, message: String, help: &str| {
            if !ok {
                out.push(Finding::error(field, message, help));
            }
        };
        want(self.batch > 0, "batch", "an empty batch".into(), "give at least 1");
        want(self.epochs > 0, "epochs", "no epoch".into(), "give at least 1");
        want(self.steps_per_epoch != Some(0), "steps_per_epoch", "no step in an epoch".into(), "leave it out or give at least 1");
        want(
            (0.0..=1.0).contains(&self.foreground),
            "foreground",
            format!("a share of {}", self.foreground),
            "a share lies between 0 and 1",
        );
        let parts = format!("{} parts of a batch of {}", self.accumulate, self.batch);
        want(
            self.accumulate > 0 && self.batch.is_multiple_of(self.accumulate),
            "accumulate",
            parts,
            "give a number that divides the batch",
        );
        if let Some(e) = &self.early_stopping {
            want(e.patience > 0, "early_stopping.patience", "no epoch of patience".into(), "give at least 1");
            want(e.min_gain >= 0.0, "early_stopping.min_gain", format!("a gain of {}", e.min_gain), "give 0 or more");
        }
        let v = &self.validation;
        want(v.every_epochs > 0, "validation.every_epochs", "0 epochs".into(), "give at least 1");
        want(v.batch > 0, "validation.batch", "an empty batch".into(), "give at least 1");
        want(
            (0.0..1.0).contains(&v.overlap),
            "validation.overlap",
            format!("an overlap of {}", v.overlap),
            "it lies between 0 and below 1",
        );
        out.extend(sample::draw::check(&self.augment, self.patch, "augment"));
        // The number of classes is known when the cases are; `Trainer::new` looks again.
        let classes = 3;
        if self.network.shrinks() {
            let help =
                "begin with 1: a network that begins smaller answers on a grid that the windows of validation and inference do not have";
            out.push(Finding::error("network.strides", "the first stride is not 1", help));
        }
        out.extend(self.network.findings(self.patch, classes));
        out.extend(self.loss.findings(None, self.network.heads()));
        if self.loss.batch && self.accumulate > 1 {
            let message = "`batch: true` then takes each part of the batch as one, not the whole batch";
            out.push(Finding::warning("accumulate", message, "leave `batch` out, or make the parts as large as memory allows"));
        }
        out.extend(self.optimiser.findings());
        out.extend(self.schedule.findings(self.epochs, self.warmup.as_ref()));
        out
    }

    fn sampler(&self, inputs: &Inputs, seed: u64) -> Result<Option<Sampler>, Error> {
        let split = inputs.one("split").rows.as_ref().expect("the engine opens the tables of a set stage");
        let parts = parts::open(inputs.all("cases"), split, self.fold, self.ignore.as_deref())?;
        Ok(Some(Sampler {
            cases: look_at(&parts, &|| Ok(()))?,
            steps: steps_per_epoch(self, &parts),
            sources: parts.train,
            seed,
            patch: self.patch,
            batch: self.batch,
            epochs: self.epochs as u64,
            foreground: self.foreground,
            augment: self.augment.clone(),
            rank: Rank::ALONE,
        }))
    }

    fn memory_bytes(&self, inputs: &Inputs) -> u64 {
        let facts = |name: &str| inputs.all("cases").iter().filter_map(|i| i.manifest.facts.get(name)).collect::<Vec<_>>();
        let voxels = facts("voxels").iter().filter_map(|v| v.as_u64()).max().unwrap_or(0);
        let channels = facts("channels").iter().filter_map(|v| Some(v.as_array()?.len())).max().unwrap_or(1);
        let classes = facts("classes").iter().filter_map(|v| Some(v.as_object()?.len() + 1)).max().unwrap_or(2);
        let step = self.network.step_bytes(channels, classes, self.batch / self.accumulate.max(1), self.patch);
        let queue = (AHEAD as u64 + 1) * sample::batch::bytes(self.batch, channels, self.patch);
        step + queue + voxels * 4 * (channels + 2 * classes + 1) as u64
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        train(self, inputs, cx, BETWEEN_CHECKPOINTS)
    }
}

fn train(config: &Train, inputs: &Inputs, cx: &Cx, between_checkpoints: Duration) -> Result<Facts, Error> {
    let split = inputs.one("split").rows.as_ref().expect("the engine opens the tables of a set stage");
    let parts = parts::open(inputs.all("cases"), split, config.fold, config.ignore.as_deref())?;
    let cases = look_at(&parts, &|| cx.check_cancelled())?;
    for (name, id) in &parts.classes {
        if !cases.iter().any(|c| c.foreground.classes.iter().any(|f| f.class == *id)) {
            (cx.progress)(Progress::Warn(format!("no training case has class {name}: the network cannot learn it")));
        }
    }
    let device = model::device(&config.device)?;
    if let Some(note) = &device.note {
        (cx.progress)(Progress::Warn(note.clone()));
    }
    let steps = steps_per_epoch(config, &parts);
    let plan = Plan {
        seed: cx.seed,
        patch: config.patch,
        batch: config.batch,
        steps,
        foreground: config.foreground,
        augment: &config.augment,
        cases: &cases,
        rank: Rank::ALONE,
    };
    let spacing_mm = parts.train[0].volume.geometry.spacing_mm();
    let card = Card::new(config.network.clone(), parts.channels.clone(), parts.classes.clone(), config.patch, spacing_mm);
    let cost = card.network.cost(card.channels.len(), card.n_outputs(), config.patch);
    if let Some(cost) = cost {
        cx.say(format!("{} in a batch of {}", cost.line(), config.batch));
    }
    let terms = Terms {
        parts: &parts,
        plan: &plan,
        card: &card,
        loss: &config.loss,
        optimiser: &config.optimiser,
        rates: Rates {
            lr: config.optimiser.lr,
            schedule: &config.schedule,
            warmup: config.warmup.as_ref(),
            every: config.lr_every,
            epochs: config.epochs,
            steps_per_epoch: steps,
        },
        epochs: config.epochs,
        validation: &config.validation,
        early_stopping: config.early_stopping.as_ref(),
        accumulate: config.accumulate,
        device: &device,
        between_checkpoints,
    };
    let trained = training::train(&terms, cx)?;
    trained.weights.save(&cx.draft.join(WEIGHTS))?;
    card.write(cx.draft)?;
    table::write_rows(cx.draft, &trained.history)?;
    table::write_rows(cx.draft, &trained.steps_told)?;
    table::write_rows(cx.draft, &trained.validation)?;
    write_patches(&terms, trained.history.len() as u64, cx)?;
    events::write(cx.draft, &trained.steps_told, &trained.history, &parts.classes)?;
    Ok(facts(&terms, &trained).with("flops", cost.map(|c| c.flops)).with("receptive_field", cost.map(|c| c.receptive_field)))
}

/// Enough to see every training case once, unless it is given.
fn steps_per_epoch(config: &Train, parts: &Parts) -> u64 {
    config.steps_per_epoch.unwrap_or(parts.train.len().div_ceil(config.batch) as u64)
}

/// Epochs of patches that are told at a time.
const EPOCHS_AT_ONCE: u64 = 16;

/// Which voxels of which case were in which step. The plan is a pure function, so it is told once all steps are done, whatever they were stopped by.
fn write_patches(t: &Terms, epochs: u64, cx: &Cx) -> Result<(), Error> {
    let plan = t.plan;
    let of_step = |epoch: u64, step: u64| {
        let patches = plan.step(epoch, step).into_iter().enumerate();
        patches.map(move |(slot, at)| PatchRow {
            epoch: epoch as i64 + 1,
            step: (epoch * plan.steps + step) as i64 + 1,
            slot: slot as i64,
            case: t.parts.train[at.case as usize].case.0.clone(),
            start_z: at.region.start.z,
            start_y: at.region.start.y,
            start_x: at.region.start.x,
            size_z: at.region.size.z as i64,
            size_y: at.region.size.y as i64,
            size_x: at.region.size.x as i64,
            augment: serde_json::to_string(&at.augment).expect("plain data"),
        })
    };
    let portions = (0..epochs).step_by(EPOCHS_AT_ONCE as usize).map(|first| {
        cx.check_cancelled()?;
        let epochs = first..(first + EPOCHS_AT_ONCE).min(epochs);
        Ok(epochs.flat_map(|e| (0..plan.steps).flat_map(move |s| of_step(e, s))).collect())
    });
    table::write_portions(cx.draft, portions)
}

/// What the plan needs to know of the training cases: their labels are read once.
fn look_at(parts: &Parts, next: &dyn Fn() -> Result<(), Error>) -> Result<Vec<Case>, Error> {
    let mut cases = Vec::with_capacity(parts.train.len());
    for source in &parts.train {
        next()?;
        let v = &source.volume;
        let mut labels = v.labels()?.unwrap_or_default();
        if let Some(ignored) = parts.ignore {
            labels.iter_mut().filter(|l| **l == ignored).for_each(|l| *l = 0);
        }
        cases.push(Case { size: v.geometry.size, spacing_mm: v.geometry.spacing_mm(), foreground: Foreground::of(&labels) });
    }
    Ok(cases)
}

fn facts(t: &Terms, trained: &Trained) -> Facts {
    let patients = |sources: &[cut::Source]| {
        let all: BTreeSet<&str> = sources.iter().map(|s| s.volume.about.patient.as_str()).collect();
        all.into_iter().map(String::from).collect::<Vec<_>>()
    };
    let dice_of_classes = |best: &HistoryRow| -> serde_json::Map<String, serde_json::Value> {
        t.parts.classes.keys().cloned().zip(best.class_dice.iter().map(|d| serde_json::json!(d))).collect()
    };
    Facts::default()
        .with("epochs", trained.history.len())
        .with("steps", trained.steps)
        .with("parameters", trained.weights.n_parameters())
        .with("device", &t.device.name)
        .with("cases", serde_json::json!({ "train": t.parts.train.len(), "val": t.parts.val.len() }))
        .with("patients", serde_json::json!({ "train": patients(&t.parts.train), "val": patients(&t.parts.val) }))
        .with("loss", trained.history.last().map(|r| r.loss))
        .with("best_epoch", trained.best.as_ref().map(|b| b.epoch))
        .with("best_dice", trained.best.as_ref().and_then(|b| b.val_dice))
        .with("class_dice", trained.best.as_ref().map(dice_of_classes))
        .with("report", report(t, trained))
}

fn report(t: &Terms, trained: &Trained) -> Vec<String> {
    let (done, n_train, n_val) = (trained.history.len(), t.parts.train.len(), t.parts.val.len());
    let epochs = if done < t.epochs { format!("{done} of {} epochs, no better for long,", t.epochs) } else { format!("{done} epochs") };
    let Some(best) = &trained.best else {
        return vec![format!("trained {epochs} on {n_train} cases; {}", why_not_validated(n_val))];
    };
    let mut lines = vec![format!(
        "trained {epochs} on {n_train} cases; best epoch {}: mean Dice {:.3} over {n_val} validation cases, on the preprocessed grid",
        best.epoch,
        best.val_dice.unwrap_or(f64::NAN)
    )];
    let width = t.parts.classes.keys().map(|c| c.chars().count()).max().unwrap_or(0);
    lines.extend(t.parts.classes.keys().zip(&best.class_dice).map(|(name, dice)| format!("  {name:width$}  {dice:.3}")));
    lines
}

/// Cases without a best epoch: no Dice is defined where a class stands neither in the truth nor in the prediction.
fn why_not_validated(n_val: usize) -> String {
    match n_val {
        0 => "not validated: the split has no case for it".into(),
        n => format!("not validated: no class stands in the {n} validation cases, neither in the truth nor in the prediction"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::fit::checkpoint;
    use crate::fit::trial::{self, Trial};
    use crate::volume::{Volume, Voxels};

    static CALM: AtomicBool = AtomicBool::new(false);

    fn config(epochs: usize) -> Train {
        serde_json::from_value(serde_json::json!({
            "patch": { "z": 16, "y": 16, "x": 16 }, "batch": 2, "epochs": epochs, "steps_per_epoch": 3, "foreground": 0.5,
            "augment": [{ "flip": { "axes": ["y"], "probability": 0.5 } }, { "noise": { "std": 0.2, "probability": 0.5 } }],
            "network": { "kind": "dynunet", "filters": [4, 8, 8], "kernel_size": [3, 3, 3], "strides": [1, 2, 2], "deep_supervision": 1 },
            "loss": { "dice": 0.7, "focal": 0.3, "gamma": 2 },
            "optimiser": { "lr": 0.02, "weight_decay": 0.00001, "ema": 0.5 },
            "accumulate": 2,
            "schedule": { "cosine_warm_restarts": { "t0": 3, "t_mult": 1, "min_lr": 0.000001 } },
            "validation": { "every_epochs": 2 },
        }))
        .unwrap()
    }

    fn run(t: &Trial, draft: &str, memo: &str, jobs: usize) -> (PathBuf, Facts) {
        let (draft, memo) = (t.folder(draft), t.folder(memo));
        let facts = train(&config(3), &t.inputs(), &t.cx(&draft, &memo, jobs, &CALM, &|_| ()), BETWEEN_CHECKPOINTS).unwrap();
        (draft, facts)
    }

    #[test]
    fn threads_do_not_move_a_byte() {
        let t = Trial::new(3);
        let (one, facts) = run(&t, "one", "memo1", 1);
        let (four, same) = run(&t, "four", "memo4", 4);
        assert_eq!(
            trial::bytes(&one).keys().collect::<Vec<_>>(),
            [
                "events.out.tfevents.0.voxmill",
                "history.parquet",
                "model.json",
                "patches.parquet",
                "steps.parquet",
                "validation.parquet",
                "weights.safetensors"
            ]
        );
        assert_eq!(trial::bytes(&one), trial::bytes(&four));
        assert_eq!(facts.facts, same.facts);
        assert_eq!((facts.facts["steps"].as_u64(), facts.facts["cases"]["val"].as_u64()), (Some(9), Some(1)));
    }

    #[test]
    fn a_training_that_is_stopped_or_killed_ends_with_the_bytes_of_a_calm_one() {
        let t = Trial::new(3);
        let (calm, calm_facts) = run(&t, "calm", "memo", 2);
        // Stopped in the middle of an epoch, then on the step that ends the first validated one.
        let (memo, draft) = (t.folder("stopped"), t.folder("stopped draft"));
        for at in [4, 6] {
            let cancel = AtomicBool::new(false);
            let stop = |p: Progress| match p {
                Progress::Steps { done, .. } if done == at => cancel.store(true, Ordering::Relaxed),
                _ => {}
            };
            let ended = train(&config(3), &t.inputs(), &t.cx(&draft, &memo, 2, &cancel, &stop), BETWEEN_CHECKPOINTS);
            assert!(matches!(ended, Err(Error::Cancelled)), "at step {at}");
        }
        let (stopped, facts) = run(&t, "stopped draft", "stopped", 2);
        assert_eq!((trial::bytes(&calm), &calm_facts.facts), (trial::bytes(&stopped), &facts.facts));

        // Killed: what is left is the checkpoint of an earlier step.
        let (memo, draft) = (t.folder("killed"), t.folder("killed draft"));
        for at in [3, 8] {
            let die = |p: Progress| assert!(!matches!(p, Progress::Steps { done, .. } if done == at));
            let cx = t.cx(&draft, &memo, 2, &CALM, &die);
            assert!(catch_unwind(AssertUnwindSafe(|| train(&config(3), &t.inputs(), &cx, Duration::ZERO))).is_err());
        }
        assert_eq!(checkpoint::newest(&memo).unwrap().0.done, 7);
        let (killed, facts) = run(&t, "killed draft", "killed", 2);
        assert_eq!((trial::bytes(&calm), &calm_facts.facts), (trial::bytes(&killed), &facts.facts));
    }

    #[test]
    fn a_small_network_learns_a_ball_and_a_box() {
        let t = Trial::new(6);
        let (draft, memo) = (t.folder("draft"), t.folder("memo"));
        let c = Train { steps_per_epoch: Some(40), ..config(6) };
        let facts = c.run(&t.inputs(), &t.cx(&draft, &memo, 2, &CALM, &|_| ())).unwrap().facts;
        for class in ["Ball", "Box"] {
            let dice = facts["class_dice"][class].as_f64().unwrap();
            assert!(dice > 0.8, "{class} {dice}: {facts:?}");
        }
        let line = facts["report"][0].as_str().unwrap();
        assert!(line.contains("mean Dice") && line.ends_with("on the preprocessed grid"), "{line}");
        assert_eq!(Card::read(&draft).unwrap().classes["Box"], 2);
    }

    #[test]
    fn a_training_ends_early_where_it_gets_no_better_and_goes_on_from_there() {
        let t = Trial::new(3);
        let c: Train = {
            let mut v = serde_json::to_value(config(9)).unwrap();
            // Nothing is learnt with a rate of next to nothing.
            v["optimiser"]["lr"] = 1e-12.into();
            v["validation"] = serde_json::json!({ "every_epochs": 1 });
            v["early_stopping"] = serde_json::json!({ "patience": 2, "min_gain": 0.5 });
            serde_json::from_value(v).unwrap()
        };
        let (draft, memo) = (t.folder("draft"), t.folder("memo"));
        let run = || c.run(&t.inputs(), &t.cx(&draft, &memo, 2, &CALM, &|_| ())).unwrap().facts;
        let facts = run();
        assert_eq!((facts["epochs"].as_u64(), facts["steps"].as_u64(), facts["best_epoch"].as_u64()), (Some(3), Some(9), Some(1)));
        assert!(facts["report"][0].as_str().unwrap().contains("3 of 9 epochs"), "{}", facts["report"][0]);
        let rows: Vec<PatchRow> = table::rows_of(&table::open(&draft).unwrap()).unwrap();
        assert_eq!(rows.iter().map(|r| r.epoch).max(), Some(3));
    }

    #[test]
    fn ignored_voxels_are_no_class() {
        let mut t = Trial::new(3);
        for case in 0..3 {
            let mut v = trial::volume(case as u64);
            let labels = v.labels.as_mut().unwrap();
            labels.classes.insert("Unseen".into(), 3);
            labels.voxels.iter_mut().take(2000).for_each(|l| *l = 3);
            t.cases[case] = trial::put(&t.dir.path().join("ignoring"), &format!("case_{case}"), &v);
        }
        let (draft, memo) = (t.folder("draft"), t.folder("memo"));
        let with = |name: Option<&str>| Train { ignore: name.map(String::from), ..config(1) };
        let cx = t.cx(&draft, &memo, 2, &CALM, &|_| ());
        with(Some("Unseen")).run(&t.inputs(), &cx).unwrap();
        assert_eq!(Card::read(&draft).unwrap().n_outputs(), 3);
        let why = with(Some("Ball")).run(&t.inputs(), &cx).unwrap_err().to_string();
        assert!(why.contains("highest id"), "{why}");
        let why = with(Some("Cube")).run(&t.inputs(), &cx).unwrap_err().to_string();
        assert!(why.contains("a class Cube"), "{why}");
    }

    #[test]
    fn a_patch_that_breaks_the_loss_is_named() {
        let mut t = Trial::new(3);
        put(&mut t, "broken", |v| {
            let Voxels::F32(values) = &mut v.voxels else { panic!("float32") };
            values.iter_mut().for_each(|v| *v = f32::INFINITY);
        });
        let (draft, memo) = (t.folder("draft"), t.folder("memo"));
        let e = config(1).run(&t.inputs(), &t.cx(&draft, &memo, 2, &CALM, &|_| ())).unwrap_err();
        let Error::NotFinite { cases, .. } = &e else { panic!("{e}") };
        assert!(cases.starts_with("case_1 from voxel") && !cases.contains("case_0"), "{cases}");
    }

    #[test]
    fn the_report_tells_no_validation_from_one_that_says_nothing() {
        assert!(why_not_validated(0).contains("the split has no case"));
        let said = why_not_validated(2);
        assert!(said.contains("2 validation cases") && !said.contains("split"), "{said}");
    }

    fn refusal(t: &Trial) -> String {
        let (draft, memo) = (t.folder("draft"), t.folder("memo"));
        config(1).run(&t.inputs(), &t.cx(&draft, &memo, 1, &CALM, &|_| ())).unwrap_err().to_string()
    }

    /// Puts another volume in the place of case 1.
    fn put(t: &mut Trial, folder: &str, change: impl Fn(&mut Volume)) {
        let mut v = trial::volume(9);
        change(&mut v);
        t.cases[1] = trial::put(&t.dir.path().join(folder), "case_1", &v);
    }

    #[test]
    fn cases_that_do_not_fit_together_are_refused_by_name() {
        let mut t = Trial::new(3);
        put(&mut t, "a", |v| v.labels = None);
        let why = refusal(&t);
        assert!(why.contains("case_1") && why.contains("no labels"), "{why}");
        put(&mut t, "b", |v| v.channels[0] = "CT".into());
        let why = refusal(&t);
        assert!(why.contains("channels of case case_1") && why.contains("found CT"), "{why}");
        put(&mut t, "c", |v| {
            v.labels.as_mut().unwrap().classes.insert("Third".into(), 3);
        });
        let why = refusal(&t);
        assert!(why.contains("classes of case case_1") && why.contains("Third = 3"), "{why}");
    }

    #[test]
    fn nonsense_is_found_before_a_run() {
        let fields = |change: fn(&mut Train)| {
            let mut c = config(3);
            change(&mut c);
            c.check().into_iter().filter(|f| !f.is_warning).map(|f| f.field).collect::<Vec<_>>()
        };
        assert!(fields(|_| ()).is_empty());
        assert_eq!(fields(|c| c.patch.y = 15), ["patch"]);
        assert_eq!(fields(|c| c.foreground = 2.0), ["foreground"]);
        assert_eq!(fields(|c| (c.batch, c.epochs) = (0, 0)), ["batch", "epochs"]);
        assert_eq!(fields(|c| c.augment.push(Random::Noise { std: 1.0, probability: 3.0 })), ["augment.2"]);
        assert_eq!(fields(|c| c.validation.overlap = 1.0), ["validation.overlap"]);
    }
}
