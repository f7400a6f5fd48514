//! What is known of a set of cases and of a training on it: parts, fingerprint, recommendation, history, scores.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Field, Schema};
use serde::{Deserialize, Serialize};

use super::{Cell, Row, TableError, rows};

rows! {
    /// The part a case plays in a fold. Without k folds a case has one row, of fold 0; with k folds it has one row a fold, and is `val` in exactly one
    /// of them (or `test` in all). [`SplitRow::parts`] reads it.
    SplitRow = "split" {
        case: String,
        patient: String,
        /// From 0.
        fold: i64,
        /// `train`, `val` or `test`.
        part: String,
    }
}

impl SplitRow {
    /// Case → `train`, `val` or `test` in one fold. Empty where there is no such fold.
    pub fn parts(rows: &[SplitRow], fold: i64) -> BTreeMap<String, String> {
        rows.iter().filter(|r| r.fold == fold).map(|r| (r.case.clone(), r.part.clone())).collect()
    }
}

rows! {
    /// A case and class, judged. Null distances: one of the two masks is empty.
    ScoreRow = "scores" {
        case: String,
        part: Option<String>,
        class: String,
        dice: Option<f64>,
        hd95_mm: Option<f64>,
        /// Share of both surfaces that lies within the tolerance of the other; 0 where one mask is empty, null where both are.
        nsd: Option<f64>,
        /// Truth has voxels, the prediction none.
        missed: bool,
        /// The prediction has voxels, truth none.
        spurious: bool,
        truth_ml: f64,
        prediction_ml: f64,
    }
}

rows! {
    /// A case as the fingerprint of a set saw it.
    FingerprintCaseRow = "fingerprint_cases" {
        case: String,
        modality: String,
        size_z: i64,
        size_y: i64,
        size_x: i64,
        spacing_z_mm: f64,
        spacing_y_mm: f64,
        spacing_x_mm: f64,
        /// Size of the box around all voxels that are not 0 in some channel; the whole size where all are 0.
        crop_z: i64,
        crop_y: i64,
        crop_x: i64,
        /// Voxels of that box by all voxels.
        cropped_share: f64,
        /// Voxels whose intensities were taken.
        foreground_voxels: i64,
    }
}

rows! {
    /// Intensities of a channel over the foreground of a set. Every case counts the same, however large its foreground (nnU-Net).
    FingerprintChannelRow = "fingerprint_channels" {
        channel: String,
        unit: String,
        /// Cases with foreground.
        cases: i64,
        /// Their foreground voxels.
        voxels: i64,
        mean: f64,
        /// Population standard deviation (÷ N).
        std: f64,
        median: f64,
        percentile_00_5: f64,
        percentile_99_5: f64,
        min: f64,
        max: f64,
    }
}

rows! {
    /// A class over a set. Volumes over the cases that have it.
    FingerprintClassRow = "fingerprint_classes" {
        class: String,
        id: i64,
        /// Cases with at least one voxel of it.
        cases: i64,
        voxels: i64,
        mean_ml: f64,
        median_ml: f64,
        min_ml: f64,
        max_ml: f64,
        /// Mean number of connected pieces (26 neighbours) a case; null where they were not counted.
        mean_components: Option<f64>,
    }
}

rows! {
    /// What a training is recommended to look like, from a fingerprint and a memory. Lists run from full resolution to the bottleneck; axes are z, y, x.
    RecommendRow = "recommend" {
        spacing_mm: Vec<f64>,
        /// Median size of the cases at this spacing, voxels.
        median_size: Vec<f64>,
        patch: Vec<i64>,
        batch: i64,
        /// How often each axis is halved.
        pooled: Vec<i64>,
        filters: Vec<i64>,
        /// Three numbers a level.
        strides: Vec<i64>,
        /// Three numbers a level.
        kernel_size: Vec<i64>,
        /// `ct` or `zscore`.
        normalize: String,
        /// Values in all feature maps of one patch.
        feature_values: f64,
        memory_gb: f64,
    }
}

rows! {
    /// One patch that a training saw: which voxels of which case, in which step, and what was done to them. `voxmill replay` makes it again.
    PatchRow = "patches" {
        /// From 1.
        epoch: i64,
        /// From 1, over all epochs.
        step: i64,
        /// Its place in the batch, from 0.
        slot: i64,
        case: String,
        /// The first voxel that is read; it may lie before the volume, which ends in zeros.
        start_z: i64,
        start_y: i64,
        start_x: i64,
        /// Larger than the patch where it is turned or bent.
        size_z: i64,
        size_y: i64,
        size_x: i64,
        /// What was drawn for it, a JSON list in the order in which it is done.
        augment: String,
    }
}

rows! {
    /// One step of a training: a batch. `patches` has what was in it.
    StepRow = "steps" {
        /// From 1.
        epoch: i64,
        /// From 1, over all epochs.
        step: i64,
        /// Learning rate.
        lr: f64,
        /// Of the batch, before the step.
        loss: f64,
    }
}

rows! {
    /// A validation case and class after an epoch, on the preprocessed grid.
    ValidationRow = "validation" {
        /// From 1.
        epoch: i64,
        case: String,
        class: String,
        /// Empty where the class stands neither in the truth nor in the prediction.
        dice: Option<f64>,
    }
}

rows! {
    /// One epoch of a training.
    HistoryRow = "history" {
        /// From 1.
        epoch: i64,
        /// Steps since the beginning.
        step: i64,
        /// Learning rate of the epoch's last step.
        lr: f64,
        /// Mean over the epoch's steps.
        loss: f64,
        /// Mean over the classes; empty where the epoch was not validated.
        val_dice: Option<f64>,
        /// One a class, in the order of the ids: the mean over the validation cases, NaN for a class that none of them has.
        class_dice: Vec<f64>,
    }
}
