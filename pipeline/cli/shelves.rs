//! What `voxmill feed` and `voxmill cache` are told.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{FileArgs, PlanFormat};

/// What `voxmill feed` is told.
#[derive(Args)]
pub struct FeedArgs {
    #[command(flatten)]
    pub file: FileArgs,
    /// The node that trains [default: the only one]
    pub node: Option<String>,
    /// Steps to make [default: one epoch]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: Option<u64>,
    /// Epochs to make
    #[arg(long, value_name = "N", conflicts_with = "steps", value_parser = clap::value_parser!(u64).range(1..))]
    pub epochs: Option<u64>,
    /// Milliseconds that a model would take for a step
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub step_ms: u64,
    /// Worker threads [default: the number of cores, up to 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub jobs: Option<u32>,
    /// Memory to stay under, such as 8GiB; the RAM shelf takes its share of it [default: 75% of what is free]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    #[arg(long, default_value = "table")]
    pub format: PlanFormat,
}

/// What `voxmill cache simulate` is told.
#[derive(Args)]
pub struct SimulateArgs {
    #[command(flatten)]
    pub file: FileArgs,
    /// The node that trains [default: the only one]
    pub node: Option<String>,
    /// Budgets of the RAM shelf: sizes (8GiB) or shares of what is read (25%), by commas
    #[arg(long, value_name = "SIZE", value_delimiter = ',', default_values_t = ["10%", "25%", "50%", "75%"].map(String::from))]
    pub ram: Vec<String>,
    /// Epochs to go through; fewer where memory for so many uses is short
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    pub epochs: u64,
    /// Milliseconds that the model takes for a step, to say what a step waits for
    #[arg(long, value_name = "MS")]
    pub step_ms: Option<u64>,
    /// Print it as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What `voxmill cache` is asked.
#[derive(Subcommand)]
pub enum CacheCommand {
    /// Bytes and artifacts of each shelf, by node, and what could go
    Status {
        #[command(flatten)]
        file: FileArgs,
        /// Print it as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Read every byte of every shelf and compare it with what was written
    Verify {
        #[command(flatten)]
        file: FileArgs,
        /// Take damaged artifacts off the shelf, so that the next run makes them again
        #[arg(long)]
        repair: bool,
        /// Print it as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Remove what no newest result, pin or running process needs
    Gc {
        #[command(flatten)]
        file: FileArgs,
        /// Say what would go, and leave it
        #[arg(long)]
        dry_run: bool,
        /// Leave what was made later than that ago, such as 7d or 12h
        #[arg(long, value_name = "TIME")]
        older_than: Option<String>,
        /// Print it as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Keep artifacts, and what they were made from, from gc
    Pin {
        #[command(flatten)]
        file: FileArgs,
        /// NODE, NODE/CASE or the first digits of a key
        #[arg(required = true)]
        what: Vec<String>,
    },
    /// Take a pin back
    Unpin {
        #[command(flatten)]
        file: FileArgs,
        /// NODE, NODE/CASE or the first digits of a key
        #[arg(required = true)]
        what: Vec<String>,
    },
    /// What a training's RAM shelf would hit at other budgets, beside the optimum and least-recently-used, and what a step would wait for
    Simulate(SimulateArgs),
    /// Copy artifacts out of the workspace, as OME-Zarr, Parquet or files
    Export {
        #[command(flatten)]
        file: FileArgs,
        /// NODE, NODE/CASE or the first digits of a key
        what: String,
        /// The folder to write into
        out: PathBuf,
    },
}

impl CacheCommand {
    pub fn file(&self) -> &FileArgs {
        match self {
            CacheCommand::Status { file, .. }
            | CacheCommand::Verify { file, .. }
            | CacheCommand::Gc { file, .. }
            | CacheCommand::Pin { file, .. }
            | CacheCommand::Unpin { file, .. }
            | CacheCommand::Export { file, .. } => file,
            CacheCommand::Simulate(a) => &a.file,
        }
    }
}
