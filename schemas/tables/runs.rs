//! What was run, made and asked: the lineage.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Field, Schema};
use serde::{Deserialize, Serialize};

use super::{Cell, Row, TableError, rows};

rows! {
    /// One command that ran.
    RunRow = "runs" {
        run: String,
        pipeline: String,
        /// Path of the YAML as it was given.
        file: String,
        /// Hash of the YAML with variables filled in.
        config_hash: String,
        purpose: String,
        seed: i64,
        jobs: i64,
        voxmill: String,
        started_ms: i64,
        ended_ms: Option<i64>,
        /// `done`, `quarantined`, `failed` or `cancelled`; `running` where no end was written (in hand, or killed).
        status: String,
        /// Commit that the program was built from; empty where it was built from no repository.
        commit: Option<String>,
        /// Cargo features that it was built with.
        features: Option<String>,
        /// Model of the CPU, and the widest instructions that are used.
        cpu: Option<String>,
        /// What networks were computed on, as the models of the run say.
        device: Option<String>,
        /// The YAML as it was, without what it includes.
        yaml: Option<String>,
        /// A JSON object: the variables of the YAML and the values set from outside.
        variables: Option<String>,
    }
}

rows! {
    /// One artifact that a run made, reused or failed to make.
    ExecutionRow = "executions" {
        run: String,
        node: String,
        stage: String,
        version: i64,
        case: Option<String>,
        key: String,
        content: String,
        input_keys: Vec<String>,
        config_hash: String,
        config: String,
        /// `made`, `reused`, `quarantined`, `failed` or `cancelled`.
        status: String,
        /// Which part of the key was new, for what was made.
        why: Option<String>,
        started_ms: i64,
        ended_ms: i64,
        took_ms: i64,
        bytes: i64,
        /// Bricks from each shelf since the row before.
        ram_hits: i64,
        nvme_hits: i64,
        disk_reads: i64,
        facts: String,
        error: Option<String>,
    }
}

rows! {
    /// An artifact that a run made, with what is known of it; what was reused has its row in the run that made it.
    ArtifactRow = "artifacts" {
        run: String,
        /// Hash of what it was made from and how.
        key: String,
        /// Hash of what it holds.
        content: String,
        /// `table`, `volume`, `model` or `files`.
        kind: String,
        node: String,
        stage: String,
        version: i64,
        /// Empty for one over the set.
        case: Option<String>,
        /// As the index names them.
        patient: Option<String>,
        study: Option<String>,
        series: Option<String>,
        modality: Option<String>,
        /// What a voxel value means: `HU`, `stored`, `SUV`, `normalised`.
        unit: Option<String>,
        /// Of a volume; 0 where labels stand alone (a prediction).
        n_channels: Option<i64>,
        /// Voxels along z, y, x; empty where it is no volume.
        size_zyx: Vec<i64>,
        spacing_zyx_mm: Vec<f64>,
        bytes: i64,
        n_files: i64,
        /// Milliseconds since 1970.
        made_ms: i64,
    }
}

rows! {
    /// One artifact that went into the making of another.
    EdgeRow = "edges" {
        run: String,
        /// Of what was made.
        key: String,
        /// Where it went in.
        port: String,
        /// Key of what went in.
        input: String,
    }
}

rows! {
    /// A state of a training that was written to disk, to go on from after a stop.
    CheckpointRow = "checkpoints" {
        run: String,
        node: String,
        /// Key of the model that it will be.
        model: String,
        /// Epochs that had ended.
        epoch: i64,
        /// Steps since the beginning.
        step: i64,
        /// Epoch (from 1) of the best validation so far.
        best_epoch: Option<i64>,
        best_dice: Option<f64>,
        /// Milliseconds since 1970.
        at_ms: i64,
    }
}

rows! {
    /// Where bricks of volumes came from in about a second of a run, by the node at work.
    TrafficRow = "traffic" {
        run: String,
        node: String,
        /// Its end, milliseconds since 1970; it begins with the row before.
        at_ms: i64,
        /// Bricks from each shelf.
        ram_hits: i64,
        nvme_hits: i64,
        disk_reads: i64,
        /// Time in which a network had to wait for its next batch.
        waited_ms: i64,
    }
}

rows! {
    /// Something that had to be left out, and why.
    QuarantineRow = "quarantine" {
        run: String,
        node: String,
        what: String,
        why: String,
    }
}

rows! {
    /// A case that a model saw: answer of `voxmill saw`.
    SawRow = "saw" {
        /// Key of the model.
        model: String,
        /// The node that made it; empty where lineage does not know it any more.
        node: Option<String>,
        patient: String,
        case: String,
        /// `train`: weights were fitted to it. `val`: it chose among them. `test`: it was dealt in and not looked at.
        /// `unknown`, `forgotten`: the volume is no longer on the shelf, the latter in a model that lost a patient to `voxmill forget`.
        part: String,
        series: String,
        /// Key of the volume as the training read it.
        volume: String,
        /// How many patches of it the training saw; empty for a model that keeps no table of them.
        patches: Option<i64>,
    }
}

rows! {
    /// What became of a node and case the last time that it was reached: answer of `voxmill why`.
    WhyRow = "why" {
        case: Option<String>,
        /// As in `executions`.
        status: String,
        /// Which part of the key was new, or what went wrong.
        why: String,
        took_ms: i64,
        /// The first digits.
        key: String,
        run: String,
        /// The run that made what the case has.
        made_in: Option<String>,
    }
}

rows! {
    /// Something that differs between two runs: answer of `voxmill diff`.
    DifferenceRow = "differences" {
        /// `program`, `pipeline`, `node`, `config`, `code`, `case` or `result`.
        what: String,
        node: Option<String>,
        name: String,
        old: Option<String>,
        new: Option<String>,
    }
}
