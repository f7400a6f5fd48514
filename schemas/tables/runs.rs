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
        /// The node that has it as its newest artifact; empty for an older one.
        node: Option<String>,
        patient: String,
        case: String,
        /// `train`: weights were fitted to it. `val`: it chose among them. `test`: it was dealt in and not looked at.
        /// `unknown`, `forgotten`: the volume is no longer on the shelf, the latter in a model that lost a patient to `voxmill forget`.
        part: String,
        series: String,
        /// Key of the volume as the training read it.
        volume: String,
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
