//! The contract between the engine and a stage. A stage is a struct: its fields are its YAML keys under `with`, its doc comments are its help.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::RecordBatch;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use voxmill_schemas::artifact::{CaseId, ContentHash, Kind, Manifest, Port, Scope};
use voxmill_schemas::geometry::Zyx;

use crate::error::Error;
use crate::sample::Sampler;
use crate::store::Store;

/// A step. Public API of every stage in this crate.
pub trait Stage: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    const INFO: Info;
    /// Whether the stage draws from `cx.seed`: only then is the seed part of its key.
    const RANDOM: bool = false;

    /// Makes one artifact inside `cx.draft`. Depends on nothing but `self`, `inputs` and `cx.seed`.
    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error>;

    /// What is wrong or doubtful about the values and the JSON Schema cannot say (`low < high`).
    fn check(&self) -> Vec<Finding> {
        Vec::new()
    }

    /// What is wrong or doubtful about the node: a setting that needs a port, a port that no setting uses, a setting that does nothing beside the others.
    fn check_node(&self, _node: &Wiring) -> Vec<Finding> {
        Vec::new()
    }

    /// The classes that the labels of its volumes may have, as far as that is known before anything runs: no names where there are never labels.
    /// Untouched, they are those of the first volume that comes in.
    fn classes(&self, node: &Wiring) -> Option<Vec<String>> {
        let first = Self::INFO.ports.iter().filter(|p| p.kind == Kind::Volume).find_map(|p| node.ports.get(p.name));
        first.and_then(|wire| wire.classes.clone())
    }

    /// The configuration as recipes, manifests and lineage hold it: a stage hides in it what may name a patient.
    fn recorded(&self) -> Value {
        serde_json::to_value(self).expect("a stage's config is plain data")
    }

    /// The cases that a table opens. Only for stages of scope `Case` whose first port is a table.
    fn cases(&self, _tables: &BTreeMap<String, Rows>) -> Result<Vec<Opened>, Error> {
        Ok(Vec::new())
    }

    /// What of the table at `port` belongs to the case whose volume is `of`: the rows enter the key of this case alone.
    /// `None`: this stage has nothing to do for the case, which is then left out, not failed.
    fn rows_of(&self, _port: &str, table: &Rows, _of: &Manifest) -> Result<Option<Rows>, Error> {
        Ok(Some(table.clone()))
    }

    /// Whether what it makes of a volume can stay a list of steps ([`crate::volume::Step`]) that are done when voxels are asked for.
    fn is_step(&self) -> bool {
        false
    }

    /// Which volumes at its other ports go with the case of the first port.
    fn partners(&self) -> Partners {
        Partners::Case
    }

    /// The range of intensities that it looks at, in the unit of what comes in, and what it becomes: pictures are windowed by them.
    fn window(&self) -> Option<[(f64, f64); 2]> {
        None
    }

    /// What it draws patches from, for stages that train: the same batches can then be had without it.
    fn sampler(&self, _inputs: &Inputs, _seed: u64) -> Result<Option<Sampler>, Error> {
        Ok(None)
    }

    /// Peak memory of one run, bytes. The engine admits cases side by side while their sum stays under `--memory`.
    fn memory_bytes(&self, inputs: &Inputs) -> u64 {
        default_memory_bytes(inputs)
    }
}

/// How the volumes at several ports of a stage of scope `Case` find one another. The first port of [`Info::ports`] that is connected leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partners {
    /// The same case: several ways of one series. Where one is missing (it failed above) there is nothing to do.
    Case,
    /// Every volume with the same text in this fact (`study`, `patient`); there may be none or several, which the stage judges.
    Fact(&'static str),
}

/// What the engine, the help and the schema need to know of a stage.
#[derive(Clone, Copy, Debug)]
pub struct Info {
    pub name: &'static str,
    /// Goes up whenever the same inputs and config give other bytes.
    pub version: u32,
    pub scope: Scope,
    /// A stage without ports is a source: it always looks, and its artifact is keyed by what it found.
    pub ports: &'static [Port],
    pub gives: Kind,
    /// One line: a verb and what it does.
    pub summary: &'static str,
    /// A YAML fragment, the body of a node: `uses: …`, `from: …`, `with: …`. A test parses it.
    pub example: &'static str,
    /// In inference on a new study there are no labels: a stage that only adds them steps aside and passes this port on.
    pub absent_in_inference: Option<&'static str>,
}

/// A case that a table opens, with the rows it stands for.
#[derive(Clone, Debug)]
pub struct Opened {
    pub case: CaseId,
    /// Port → its rows of this case.
    pub rows: BTreeMap<String, Rows>,
}

/// Rows of a table artifact: file stem (`series`, `instances`) → rows.
#[derive(Clone, Debug, Default)]
pub struct Rows(pub BTreeMap<String, RecordBatch>);

impl Rows {
    /// Hash of what the rows say, without the columns marked volatile (paths, times).
    pub fn content(&self) -> ContentHash {
        let mut h = blake3::Hasher::new();
        for (name, batch) in &self.0 {
            h.update(name.as_bytes());
            h.update(&voxmill_schemas::tables::digest(batch).0);
        }
        ContentHash(*h.finalize().as_bytes())
    }
}

/// One artifact that comes in.
#[derive(Clone, Debug)]
pub struct Input {
    /// Folder of the artifact, read-only.
    pub dir: PathBuf,
    pub manifest: Arc<Manifest>,
    /// Tables only: the rows chosen for this case ([`Stage::rows_of`], [`Stage::cases`]), or all rows for a stage of scope `Set`.
    pub rows: Option<Rows>,
}

/// What comes in, by port. A port of a set stage holds one input a case, sorted by case.
#[derive(Clone, Debug, Default)]
pub struct Inputs(pub BTreeMap<String, Vec<Input>>);

impl Inputs {
    /// The single input of a port that the engine has checked to be there.
    pub fn one(&self, port: &str) -> &Input {
        self.maybe(port).expect("the plan refuses a node whose required port is not connected")
    }
    pub fn maybe(&self, port: &str) -> Option<&Input> {
        self.all(port).first()
    }
    pub fn all(&self, port: &str) -> &[Input] {
        self.0.get(port).map_or(&[], Vec::as_slice)
    }
}

/// What a stage runs in.
pub struct Cx<'a> {
    /// An empty folder: what the stage writes here becomes the artifact.
    pub draft: &'a Path,
    pub case: Option<&'a CaseId>,
    /// The pipeline's seed.
    pub seed: u64,
    /// A folder for what may be remembered between runs and lost at any time (file hashes, checkpoints of a training in hand).
    /// Its name depends on the recipe for stages with ports, on the node for sources.
    pub memo: &'a Path,
    pub store: &'a Store,
    /// Leave the volume as steps where the stage can ([`Stage::is_step`]): what comes after makes the voxels it needs.
    pub lazy: bool,
    /// Threads the stage may use.
    pub jobs: usize,
    pub memory_bytes: u64,
    pub cancel: &'a AtomicBool,
    pub progress: &'a (dyn Fn(Progress) + Sync),
}

impl Cx<'_> {
    /// Called between units of work: `Err(Error::Cancelled)` after Ctrl-C.
    pub fn check_cancelled(&self) -> Result<(), Error> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }
    pub fn bytes(&self, n: u64) {
        (self.progress)(Progress::Bytes(n));
    }
    /// Refuses a float32 volume that cannot be held, before it is allocated. Up to 4 GiB pass under any `--memory`: a case larger than the bound runs alone.
    pub fn check_size(&self, size: Zyx<usize>, channels: usize) -> Result<(), Error> {
        let wanted_bytes = size.checked_count().and_then(|n| n.checked_mul(4 * channels.max(1))).map_or(u64::MAX, |n| n as u64);
        let limit_bytes = self.memory_bytes.max(4 << 30);
        if wanted_bytes <= limit_bytes {
            return Ok(());
        }
        Err(Error::TooLarge { what: format!("a volume of {size} voxels (a larger `--memory` allows more)"), wanted_bytes, limit_bytes })
    }
    pub fn say(&self, text: impl Into<String>) {
        (self.progress)(Progress::Say(text.into()));
    }
}

/// News from inside a stage.
#[derive(Clone, Debug)]
pub enum Progress {
    /// That many more bytes read or written.
    Bytes(u64),
    /// Work done of work known, in the stage's own units (steps of a training).
    Steps { done: u64, of: u64 },
    /// A sentence for the line beside the bar: `epoch 3: loss 0.412, Dice 0.71`.
    Say(String),
    /// A network waited that long for its next batch.
    Waited(std::time::Duration),
    /// A training wrote a checkpoint.
    Saved { epoch: u64, step: u64, best_epoch: Option<i64>, best_dice: Option<f64> },
    /// Something the user should know and the result carries on with. Names no patient.
    Warn(String),
}

/// What a stage found worth telling; goes into the manifest and into lineage. Names no patient.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub facts: serde_json::Map<String, Value>,
    /// Stands in for the hash of the files where part of them is volatile (tables with paths in them).
    pub content: Option<ContentHash>,
    /// Members of the input that could not be used, each with its reason; the run ends with exit code 3.
    pub quarantined: Vec<Quarantined>,
}

impl Facts {
    /// Adds a fact.
    pub fn with(mut self, name: &str, value: impl Serialize) -> Self {
        self.facts.insert(name.into(), serde_json::to_value(value).expect("facts are plain data"));
        self
    }
}

/// A file or series that a set stage had to leave out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// Path relative to the archive, or a series or case name.
    pub what: String,
    pub why: String,
}

/// How a node stands in its pipeline, as far as that is known before anything runs.
#[derive(Clone, Debug, Default)]
pub struct Wiring {
    /// Port → what feeds it.
    pub ports: BTreeMap<&'static str, Wire>,
    /// The keys under `with` that ask for something: their value is neither null nor false.
    pub written: BTreeSet<String>,
}

/// What feeds a port.
#[derive(Clone, Debug, Default)]
pub struct Wire {
    /// Name of the node.
    pub node: String,
    /// Classes that its labels may have ([`Stage::classes`]); `None`: not known before a run.
    pub classes: Option<Vec<String>>,
    /// The node that opened its cases, a reader of a table; nodes with another one have other cases. `None` without cases.
    pub opened_by: Option<String>,
}

impl Wiring {
    pub fn has(&self, port: &str) -> bool {
        self.ports.contains_key(port)
    }

    /// The two nodes at these ports, where other nodes opened their cases: a case of the one is hardly one of the other.
    pub fn strangers(&self, a: &str, b: &str) -> Option<(&Wire, &Wire)> {
        let (a, b) = (self.ports.get(a)?, self.ports.get(b)?);
        (a.opened_by.is_some() && b.opened_by.is_some() && a.opened_by != b.opened_by).then_some((a, b))
    }

    /// An error for each of these keys that is written: it does nothing, for a reason that goes on from "does nothing".
    pub fn idle(&self, fields: &[&str], why: &str, help: &str) -> Vec<Finding> {
        let written = fields.iter().filter(|f| self.written.contains(**f));
        written.map(|f| Finding::error(f, format!("`{f}` does nothing {why}"), help)).collect()
    }
}

#[cfg(test)]
impl Wiring {
    /// A node with these ports connected and these settings.
    pub fn of(ports: &[&'static str], with: &Value) -> Self {
        let asks = |v: &Value| !v.is_null() && *v != false;
        let written = with.as_object().into_iter().flatten().filter(|(_, v)| asks(v)).map(|(k, _)| k.clone());
        Self { ports: ports.iter().map(|p| (*p, Wire::default())).collect(), written: written.collect() }
    }
}

/// Something wrong (or, as a warning, doubtful) in a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Dotted path under `with`, `""` for the whole: `spacing_mm.z`.
    pub field: String,
    /// It lies in what is connected to this port instead.
    pub port: Option<&'static str>,
    pub message: String,
    pub help: String,
    pub is_warning: bool,
}

impl Finding {
    pub fn error(field: &str, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { field: field.into(), port: None, message: message.into(), help: help.into(), is_warning: false }
    }
    pub fn at_port(port: &'static str, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { port: Some(port), ..Self::error("", message, help) }
    }
    /// `lower` and `upper` are percentiles that span something.
    pub fn of_percentiles(lower: f64, upper: f64) -> Option<Self> {
        let is_percent = |p: f64| (0.0..=100.0).contains(&p);
        let is_right = is_percent(lower) && is_percent(upper) && lower < upper;
        (!is_right).then(|| Self::error("lower", format!("percentiles {lower} to {upper}"), "0 ≤ lower < upper ≤ 100"))
    }
    pub fn warning(field: &str, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { is_warning: true, ..Self::error(field, message, help) }
    }
}

/// A parsed stage, as the engine holds it.
pub trait AnyStage: Send + Sync {
    fn info(&self) -> Info;
    fn is_random(&self) -> bool;
    /// Canonical config with defaults filled in.
    fn config(&self) -> Value;
    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error>;
    fn check(&self) -> Vec<Finding>;
    fn check_node(&self, node: &Wiring) -> Vec<Finding>;
    fn classes(&self, node: &Wiring) -> Option<Vec<String>>;
    fn cases(&self, tables: &BTreeMap<String, Rows>) -> Result<Vec<Opened>, Error>;
    fn rows_of(&self, port: &str, table: &Rows, of: &Manifest) -> Result<Option<Rows>, Error>;
    fn is_step(&self) -> bool;
    fn partners(&self) -> Partners;
    fn window(&self) -> Option<[(f64, f64); 2]>;
    fn sampler(&self, inputs: &Inputs, seed: u64) -> Result<Option<Sampler>, Error>;
    fn memory_bytes(&self, inputs: &Inputs) -> u64;
}

impl<S: Stage> AnyStage for S {
    fn info(&self) -> Info {
        S::INFO
    }
    fn is_random(&self) -> bool {
        S::RANDOM
    }
    fn config(&self) -> Value {
        voxmill_schemas::artifact::canonical(Stage::recorded(self))
    }
    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        Stage::run(self, inputs, cx)
    }
    fn check(&self) -> Vec<Finding> {
        Stage::check(self)
    }
    fn check_node(&self, node: &Wiring) -> Vec<Finding> {
        Stage::check_node(self, node)
    }
    fn classes(&self, node: &Wiring) -> Option<Vec<String>> {
        Stage::classes(self, node)
    }
    fn cases(&self, tables: &BTreeMap<String, Rows>) -> Result<Vec<Opened>, Error> {
        Stage::cases(self, tables)
    }
    fn rows_of(&self, port: &str, table: &Rows, of: &Manifest) -> Result<Option<Rows>, Error> {
        Stage::rows_of(self, port, table, of)
    }
    fn is_step(&self) -> bool {
        Stage::is_step(self)
    }
    fn partners(&self) -> Partners {
        Stage::partners(self)
    }
    fn window(&self) -> Option<[(f64, f64); 2]> {
        Stage::window(self)
    }
    fn sampler(&self, inputs: &Inputs, seed: u64) -> Result<Option<Sampler>, Error> {
        Stage::sampler(self, inputs, seed)
    }
    fn memory_bytes(&self, inputs: &Inputs) -> u64 {
        Stage::memory_bytes(self, inputs)
    }
}

/// A line of the registry in `lib.rs`.
#[derive(Clone, Copy)]
pub struct StageDef {
    pub info: Info,
    /// JSON Schema of `with`.
    pub schema: fn() -> schemars::Schema,
    /// `with` as JSON → the stage.
    pub parse: fn(Value) -> Result<Box<dyn AnyStage>, serde_json::Error>,
}

impl StageDef {
    pub const fn of<S: Stage>() -> Self {
        Self {
            info: S::INFO,
            schema: || schemars::generate::SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<S>(),
            parse: |with| Ok(Box::new(serde_json::from_value::<S>(with)?)),
        }
    }
}

/// Four times the float32 size of the volumes that come in, or 256 MiB.
pub fn default_memory_bytes(inputs: &Inputs) -> u64 {
    let voxels: u64 = inputs.0.values().flatten().filter_map(|i| i.manifest.facts.get("voxels")?.as_u64()).max().unwrap_or(0);
    (voxels * 16).max(256 << 20)
}

/// The same of one volume.
pub fn default_memory_bytes_of(input: &Input) -> u64 {
    default_memory_bytes(&Inputs([("volume".to_string(), vec![input.clone()])].into()))
}

/// What the facts of a volume say about its size, for estimates of memory before it is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Extent {
    pub size: Zyx<usize>,
    pub spacing_mm: Zyx<f64>,
    /// Voxels of all channels.
    pub voxels: u64,
    /// Bytes of all channels as they lie in memory.
    pub bytes: u64,
    /// Bytes of the labels, 0 without.
    pub label_bytes: u64,
}

impl Extent {
    /// `None` where the port is not connected or its facts do not tell.
    pub fn of(inputs: &Inputs, port: &str) -> Option<Self> {
        let facts = &inputs.maybe(port)?.manifest.facts;
        let size: Zyx<usize> = serde_json::from_value(facts.get("size")?.clone()).ok()?;
        let spacing_mm = serde_json::from_value(facts.get("spacing_mm")?.clone()).ok()?;
        let voxels = facts.get("voxels")?.as_u64()?;
        let dtype = facts.get("dtype")?.as_str()?;
        let width = if dtype.ends_with("16") {
            2
        } else if dtype.ends_with('8') {
            1
        } else {
            4
        };
        let label_bytes = if facts.contains_key("classes") { size.checked_count()? as u64 } else { 0 };
        Some(Self { size, spacing_mm, voxels, bytes: voxels.checked_mul(width)?, label_bytes })
    }
}
