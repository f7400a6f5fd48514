//! The YAML language: text → [`PipelineSpec`], or all mistakes with their places. The only place that knows YAML. What stages and their `with`
//! mean is not known here: `with` stays a tree whose values keep their places.

mod include;
mod nearest;
mod overrides;
mod read;
mod size;
mod tree;
mod variables;
mod yaml;

use std::path::Path;
use std::sync::Arc;

pub use nearest::{did_you_mean, nearest};
pub use read::{ByPort, NODE_KEYS, TOP_KEYS, first_line};
pub use size::{SIZE_HELP, parse_size, size_text};
pub use tree::{Data, Entry, Node, Place, Placed, Scalar, Source};

/// What a file says.
#[derive(Clone, Debug)]
pub struct PipelineSpec {
    pub name: Placed<String>,
    pub seed: u64,
    /// Everything the pipeline makes lies here, relative to the current folder. Default `work/NAME`.
    pub workspace: String,
    pub cache: CacheSpec,
    /// In the order of the file.
    pub stages: Vec<NodeSpec>,
}

/// Budgets of the three shelves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CacheSpec {
    /// Bytes the durable artifacts may take; `None`: as much as the disk has.
    pub disk_limit_bytes: Option<u64>,
    pub nvme: Option<NvmeSpec>,
    pub ram_limit: RamLimit,
}

/// A fast local disk for evictable bricks.
#[derive(Clone, Debug, PartialEq)]
pub struct NvmeSpec {
    pub dir: String,
    pub limit_bytes: u64,
}

/// How much memory decoded bricks may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RamLimit {
    Bytes(u64),
    /// Of what `--memory` allows, 0…100.
    Percent(f64),
}

impl Default for RamLimit {
    fn default() -> Self {
        RamLimit::Percent(25.0)
    }
}

impl RamLimit {
    pub fn bytes(self, memory_bytes: u64) -> u64 {
        match self {
            RamLimit::Bytes(b) => b.min(memory_bytes),
            RamLimit::Percent(p) => (memory_bytes as f64 * p / 100.0) as u64,
        }
    }
}

/// A node: one use of a stage.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    pub name: Placed<String>,
    /// The stage; `None` where the file does not say it, which is a mistake already noted.
    pub uses: Option<Placed<String>>,
    pub from: FromSpec,
    /// The stage's fields; `None` where the key is absent or empty.
    pub with: Option<Node>,
    /// Where the word `with` stands.
    pub with_key: Option<Place>,
    /// Whether the voxels of what it makes are written out; `None` leaves it to the engine.
    pub keep: Option<Placed<bool>>,
}

/// Where a node's inputs come from.
#[derive(Clone, Debug, Default)]
pub enum FromSpec {
    #[default]
    Nothing,
    /// Something that was told as a mistake.
    Wrong,
    /// `from: NODE`
    One(Placed<String>),
    /// `from: { PORT: NODE }` or `{ PORT: [NODE, …] }`, with the place of `from`.
    Ports(Place, Vec<ByPort>),
}

/// Something wrong in a file or on the command line.
#[derive(Clone, Debug)]
pub struct Mistake {
    pub message: String,
    pub help: String,
    /// What to underline, each with a word beside it; the first is where the mistake is.
    pub places: Vec<(Place, String)>,
}

impl Mistake {
    pub fn at(place: &Place, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: help.into(), places: vec![(place.clone(), String::new())] }
    }
    pub fn nowhere(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: help.into(), places: Vec::new() }
    }
    pub fn label(mut self, label: &str) -> Self {
        if let Some(last) = self.places.last_mut() {
            last.1 = label.into();
        }
        self
    }
    pub fn and(mut self, place: &Place, label: &str) -> Self {
        self.places.push((place.clone(), label.into()));
        self
    }
}

/// The text of a file, or why there is none (message, help).
pub type TextOf<'a> = dyn Fn(&Path) -> Result<String, (String, String)> + 'a;

/// What the language sees of the world outside: this floor opens no file and asks no environment itself.
pub struct World<'a> {
    pub text_of: &'a TextOf<'a>,
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// `KEY=VALUE` of each `--set`, in order; later ones win.
    pub sets: &'a [String],
}

/// Reads a file, its includes, variables and `--set`s. A spec comes back wherever the file has a shape at all, so that a caller can look for further
/// mistakes in it; only without mistakes does it mean what the file says.
pub fn read(file: &Path, world: &World) -> (Option<PipelineSpec>, Vec<Mistake>) {
    let mut mistakes = Vec::new();
    let sets = overrides::parse(world.sets, &mut mistakes);
    let mut reader = include::Reader::new(world, &sets);
    let root = reader.file(file, &mut mistakes);
    overrides::refuse_unknown_variables(&sets, &reader.variables, &mut mistakes);
    let is_whole = !reader.has_missing_file;
    let Some(mut root) = root else { return (None, mistakes) };
    overrides::apply(&sets, &mut root, &reader.variables, &mut mistakes);
    (read::pipeline(&root, is_whole, &mut mistakes), mistakes)
}

/// A value that came from a variable and is written as a list or mapping (`--set FILTERS=[8,16]`), read as one. Everything in it stands where the
/// variable stands.
pub fn structured(node: &Node) -> Option<Node> {
    let Data::Scalar(s) = &node.data else { return None };
    if !s.has_variable || !s.text.trim_start().starts_with(['[', '{']) {
        return None;
    }
    let source = option_source("a variable", &s.text);
    let mut parsed = yaml::parse(&source, 0..s.text.len(), &mut Vec::new())?;
    move_to(&mut parsed, &node.place);
    Some(parsed)
}

fn move_to(node: &mut Node, place: &Place) {
    node.place = place.clone();
    match &mut node.data {
        Data::Scalar(_) => {}
        Data::List(items) => items.iter_mut().for_each(|n| move_to(n, place)),
        Data::Map(entries) => entries.iter_mut().for_each(|e| {
            e.key_place = place.clone();
            move_to(&mut e.value, place);
        }),
    }
}

/// A source of text that is no file: an option of the command line.
fn option_source(name: &str, text: &str) -> Arc<Source> {
    Arc::new(Source { name: name.into(), text: text.into() })
}
