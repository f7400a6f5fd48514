//! A pipeline's workspace, opened: the store with its budgets, lineage, heads. And what can be wrong before any stage runs.

use std::path::{Path, PathBuf};

use voxmill_stages::error::Error;
use voxmill_stages::store::{Limits, Store};

use crate::cli::FileArgs;
use crate::heads::Heads;
use crate::lineage::Lineage;
use crate::plan::Plan;

/// What stops a command as a whole.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("there is no node {name}: this file has {nodes}")]
    NoSuchNode { name: String, nodes: String },
    #[error("no node of this file predicts: `infer` needs one that takes a model and gives volumes")]
    NoPrediction,
    #[error("several nodes predict: choose one of {nodes} with --node")]
    ManyPredictions { nodes: String },
    #[error("node {node} has no trained model in this workspace yet: run the pipeline first (`voxmill run FILE {node}`)")]
    NotTrained { node: String },
    #[error("{} is not a folder: give the folder that holds the DICOM study", path.display())]
    NoFolder { path: PathBuf },
    #[error("--memory {text}: expected a size such as 8GiB or 512MiB")]
    BadSize { text: String },
    #[error("cannot use {} as workspace: give another with `workspace:` in the file", path.display())]
    Workspace { path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Wrong(String),
    /// The problems were already shown.
    #[error("the file has mistakes")]
    Told(u8),
    #[error(transparent)]
    Stage(#[from] Error),
}

impl Fault {
    pub fn exit_code(&self) -> u8 {
        match self {
            Fault::NoSuchNode { .. }
            | Fault::NoPrediction
            | Fault::ManyPredictions { .. }
            | Fault::NoFolder { .. }
            | Fault::BadSize { .. }
            | Fault::Wrong(_) => 2,
            Fault::Told(code) => *code,
            Fault::NotTrained { .. } | Fault::Workspace { .. } | Fault::Stage(_) => 1,
        }
    }
}

/// Cores this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Bytes of memory that a new program may take, from the cgroup or the kernel; 4 GiB where neither tells.
fn free_memory_bytes() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find(|l| l.starts_with(name))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
    };
    let cgroup = |f: &str| std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(f)).ok()?.trim().parse::<u64>().ok();
    let room = match (cgroup("memory.max"), cgroup("memory.current")) {
        (Some(max), Some(now)) => max.saturating_sub(now),
        _ => u64::MAX,
    };
    field("MemAvailable:").unwrap_or(4 << 30).min(room)
}

/// An open workspace.
pub struct Session {
    pub workspace: PathBuf,
    pub store: Store,
    /// What `--memory` leaves for the cases in hand after the RAM shelf.
    pub work_bytes: u64,
    memory_bytes: u64,
}
