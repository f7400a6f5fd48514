//! A pipeline's workspace, opened: the store with its budgets, lineage, heads. And what can be wrong before any stage runs.

use std::path::{Path, PathBuf};

use voxmill_schemas::artifact::{ContentHash, canonical};
use voxmill_schemas::spec::{RamLimit, parse_size};
use voxmill_schemas::tables::RunRow;
use voxmill_stages::dicom::contents::Contents;
use voxmill_stages::error::Error;
use voxmill_stages::store::{Limits, Store};

use crate::cli::FileArgs;
use crate::heads::Heads;
use crate::lineage::{Lineage, told};
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
    #[error(
        "the model in this workspace was made with another {node} than the file describes ({what}): run the pipeline first, or give the same --set"
    )]
    OtherTraining { node: String, what: String },
    #[error("{} is not a folder: give the folder that holds the DICOM study", path.display())]
    NoFolder { path: PathBuf },
    #[error("--memory {text}: expected a size such as 8GiB or 512MiB")]
    BadSize { text: String },
    #[error("--memory {text}: the program alone needs 256 MiB, give at least that (a case that needs more than what is given runs alone)")]
    SmallMemory { text: String },
    #[error("cannot use {} as workspace: give another (`workspace:` in the file, `--workspace` of convert)", path.display())]
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
            | Fault::SmallMemory { .. }
            | Fault::Stage(Error::Query { .. } | Error::Nothing { .. })
            | Fault::Wrong(_) => 2,
            Fault::Told(code) => *code,
            Fault::NotTrained { .. } | Fault::OtherTraining { .. } | Fault::Workspace { .. } | Fault::Stage(_) => 1,
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
}

impl Session {
    /// Makes the workspace where it is missing. `memory`: what `--memory` says, else 75 % of what is free; the RAM shelf takes its share of that.
    pub fn open(plan: &Plan, memory: Option<&str>) -> Result<Self, Fault> {
        let memory_bytes = match memory {
            Some(text) => given_bytes(text)?,
            None => free_memory_bytes() / 4 * 3,
        };
        let (ram_bytes, work_bytes) = shares(memory_bytes, plan.cache.ram_limit);
        let workspace = plan.workspace.clone();
        usable(&workspace).map_err(|source| Fault::Workspace { path: workspace.clone(), source })?;
        let store = Store::open(&Limits {
            disk_dir: store_dir(&workspace),
            disk_bytes: plan.cache.disk_limit_bytes,
            nvme: plan.cache.nvme.as_ref().map(|n| (PathBuf::from(&n.dir), n.limit_bytes)),
            ram_bytes,
        })?;
        Ok(Self { workspace, store, work_bytes })
    }

    /// Starts the record of a command. Every run of one file with one configuration has one `config_hash`.
    pub fn begin(&self, plan: &Plan, file: &FileArgs, jobs: usize, purpose: &str) -> Result<Lineage, Fault> {
        // The file, not what was made of it: under pseudonyms that names an archive which the file of `convert` does not.
        let yaml = std::fs::read_to_string(&file.file).ok();
        let mut variables: serde_json::Map<String, serde_json::Value> =
            plan.variables.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
        if purpose == "run" {
            let set = file.sets.iter().filter_map(|s| s.split_once('='));
            variables.extend(set.map(|(key, value)| (key.to_string(), value.into())));
        }
        Ok(Lineage::begin(
            &self.workspace,
            RunRow {
                pipeline: plan.name.clone(),
                file: file.file.display().to_string(),
                config_hash: config_hash(plan).hex(),
                purpose: purpose.into(),
                seed: plan.seed as i64,
                jobs: jobs as i64,
                voxmill: env!("CARGO_PKG_VERSION").into(),
                commit: option_env!("VOXMILL_COMMIT").map(str::to_string),
                features: Some(told::features()),
                cpu: told::cpu(),
                yaml,
                variables: Some(serde_json::Value::Object(variables).to_string()),
                ..RunRow::default()
            },
        )?)
    }

    /// The newest artifacts of this pipeline. What inference makes of a study has a place of its own: the archive's heads stay as they are.
    pub fn heads(&self, plan: &Plan, infer: bool) -> Heads {
        Heads::open(&self.workspace, &if infer { format!("{}/infer", plan.name) } else { plan.name.clone() })
    }

    /// What is known of the bytes of the files that were ever read here.
    pub fn contents(&self) -> Contents {
        Contents::open(&self.workspace.join("memo"))
    }
}

/// The disk shelf of a workspace.
pub fn store_dir(workspace: &Path) -> PathBuf {
    workspace.join("store")
}

/// Less than this is a unit forgotten (`--memory 8`), not a bound.
const LEAST_BYTES: u64 = 256 << 20;

/// What `--memory` says.
fn given_bytes(text: &str) -> Result<u64, Fault> {
    match parse_size(text) {
        None => Err(Fault::BadSize { text: text.into() }),
        Some(bytes) if bytes < LEAST_BYTES => Err(Fault::SmallMemory { text: text.into() }),
        Some(bytes) => Ok(bytes),
    }
}

/// Bytes for the RAM shelf and for the cases in hand. The shelf never takes more than half: what is cached must not starve what is made.
fn shares(memory_bytes: u64, limit: RamLimit) -> (u64, u64) {
    let ram = limit.bytes(memory_bytes).min(memory_bytes / 2);
    (ram, memory_bytes - ram)
}

/// Whether files can be made in the folder; makes it where it is missing.
fn usable(workspace: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(workspace)?;
    let probe = workspace.join(format!(".probe.{}", std::process::id()));
    std::fs::write(&probe, "")?;
    std::fs::remove_file(&probe)
}

/// Hash of everything the file says about what is made: nodes, their configuration and connections, and the seed.
fn config_hash(plan: &Plan) -> ContentHash {
    let nodes = plan.nodes.iter().map(|n| {
        let named = |up: &usize| serde_json::Value::from(plan.nodes[*up].name.clone());
        let names = |ups: &Vec<usize>| match &ups[..] {
            [up] => named(up),
            _ => ups.iter().map(named).collect(),
        };
        let from: serde_json::Map<String, serde_json::Value> = n.from.iter().map(|(port, ups)| (port.clone(), names(ups))).collect();
        serde_json::json!([n.name, n.def.info.name, n.def.info.version, n.stage.config(), from])
    });
    let said = serde_json::json!({ "name": plan.name, "seed": plan.seed, "nodes": nodes.collect::<Vec<_>>() });
    ContentHash::of(canonical(said).to_string().as_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_ram_shelf_leaves_half_to_the_cases() {
        assert_eq!(shares(8 << 30, RamLimit::Percent(25.0)), (2 << 30, 6 << 30));
        assert_eq!(shares(8 << 30, RamLimit::Bytes(1 << 30)), (1 << 30, 7 << 30));
        assert_eq!(shares(8 << 30, RamLimit::Bytes(1 << 40)), (4 << 30, 4 << 30));
        assert_eq!(shares(8 << 30, RamLimit::Percent(100.0)), (4 << 30, 4 << 30));
    }

    #[test]
    fn memory_without_a_unit_is_not_taken_for_a_bound() {
        assert_eq!(given_bytes("256MiB").unwrap(), 256 << 20);
        for text in ["1", "8", "100MiB"] {
            assert!(given_bytes(text).unwrap_err().to_string().contains("at least"), "{text}");
        }
        assert!(given_bytes("much").unwrap_err().to_string().contains("such as 8GiB"));
    }

    #[test]
    fn a_file_in_the_place_of_the_workspace_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("work");
        std::fs::write(&place, "a file").unwrap();
        assert!(usable(&place).is_err());
        assert!(usable(&dir.path().join("deep/er")).is_ok());
        assert_eq!(std::fs::read_dir(dir.path().join("deep/er")).unwrap().count(), 0);
    }
}
