//! Files that include files. A mapping with `include: FILE` (or a list of files) takes over what the file holds; its own keys win, mappings are merged
//! key by key. Paths are relative to the file that includes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::overrides::Set;
use super::tree::{Data, Entry, Node, Source};
use super::{Mistake, World, variables, yaml};

const MAX_DEPTH: usize = 16;
const MAX_FILES: usize = 256;

pub struct Reader<'a> {
    world: &'a World<'a>,
    sets: &'a [Set],
    /// Every variable that a file names.
    pub variables: BTreeSet<String>,
    /// An include was not found, or has no shape.
    pub has_missing_file: bool,
    open: Vec<PathBuf>,
    n_files: usize,
}

impl<'a> Reader<'a> {
    pub fn new(world: &'a World<'a>, sets: &'a [Set]) -> Self {
        Self { world, sets, variables: BTreeSet::new(), has_missing_file: false, open: Vec::new(), n_files: 0 }
    }

    /// The file's tree with variables replaced and includes taken in.
    pub fn file(&mut self, path: &Path, mistakes: &mut Vec<Mistake>) -> Option<Node> {
        match (self.world.text_of)(path) {
            Ok(text) => self.text(path, text, mistakes),
            Err((message, help)) => {
                mistakes.push(Mistake::nowhere(message, help));
                None
            }
        }
    }

    fn text(&mut self, path: &Path, text: String, mistakes: &mut Vec<Mistake>) -> Option<Node> {
        let source = Arc::new(Source { name: path.display().to_string(), text });
        let before = mistakes.len();
        let Some(mut node) = yaml::parse(&source, 0..source.text.len(), mistakes) else {
            if mistakes.len() == before {
                mistakes.push(Mistake::nowhere(format!("{} is empty", path.display()), "a pipeline begins with `name:` and `stages:`"));
            }
            return None;
        };
        let (world, sets) = (self.world, self.sets);
        let lookup = |name: &str| {
            let set = sets.iter().rev().find(|s| s.key == name);
            set.map(|s| s.value().to_string()).or_else(|| (world.variable)(name))
        };
        variables::substitute(&mut node, &lookup, &mut self.variables, mistakes);
        self.open.push(path.to_path_buf());
        self.expand(&mut node, path, mistakes);
        self.open.pop();
        Some(node)
    }

    fn expand(&mut self, node: &mut Node, path: &Path, mistakes: &mut Vec<Mistake>) {
        match &mut node.data {
            Data::Scalar(_) => {}
            Data::List(items) => items.iter_mut().for_each(|n| self.expand(n, path, mistakes)),
            Data::Map(entries) => {
                let included = entries.iter().position(|e| e.key == "include").map(|i| entries.remove(i));
                entries.iter_mut().for_each(|e| self.expand(&mut e.value, path, mistakes));
                let Some(included) = included else { return };
                let files: &[Node] = match &included.value.data {
                    Data::List(files) => files,
                    _ => std::slice::from_ref(&included.value),
                };
                // The first file wins over the second, as own keys win over both.
                for file in files {
                    match self.included(file, path, mistakes) {
                        Some(more) => merge(entries, more),
                        None => self.has_missing_file = true,
                    }
                }
            }
        }
    }

    fn included(&mut self, file: &Node, from: &Path, mistakes: &mut Vec<Mistake>) -> Option<Vec<Entry>> {
        let Data::Scalar(name) = &file.data else {
            mistakes.push(Mistake::at(
                &file.place,
                format!("`include` takes a file, not {}", file.what()),
                "write include: FILE.yaml or include: [A.yaml, B.yaml]",
            ));
            return None;
        };
        if name.text.is_empty() {
            mistakes.push(Mistake::at(&file.place, "`include` names no file", "write include: FILE.yaml, relative to this file"));
            return None;
        }
        let path = tidy(&from.parent().unwrap_or(Path::new("")).join(&name.text));
        if let Some(i) = self.open.iter().position(|p| *p == path) {
            let round: Vec<_> = self.open[i..].iter().chain([&path]).map(|p| p.display().to_string()).collect();
            mistakes.push(Mistake::at(
                &file.place,
                format!("this file includes itself: {}", round.join(" → ")),
                "remove one of these includes",
            ));
            return None;
        }
        self.n_files += 1;
        if self.open.len() > MAX_DEPTH || self.n_files > MAX_FILES {
            let message = format!("more than {MAX_DEPTH} files inside one another, or {MAX_FILES} in all");
            mistakes.push(Mistake::at(&file.place, message, "include fewer files"));
            return None;
        }
        match (self.world.text_of)(&path) {
            Err((message, _)) => {
                let help = format!("the path is relative to the file that includes it: {} was looked for", path.display());
                mistakes.push(Mistake::at(&file.place, message, help));
                None
            }
            Ok(text) => {
                let node = self.text(&path, text, mistakes)?;
                match node.data {
                    Data::Map(entries) => Some(entries),
                    _ => {
                        let message = format!("an included file holds a mapping, not {}", node.what());
                        mistakes.push(
                            Mistake::at(&node.place, message, "its keys are taken over where `include` stands")
                                .and(&file.place, "included here"),
                        );
                        None
                    }
                }
            }
        }
    }
}

/// Adds what is not there yet; mappings on both sides are merged.
fn merge(own: &mut Vec<Entry>, more: Vec<Entry>) {
    for entry in more {
        match own.iter_mut().find(|e| e.key == entry.key) {
            None => own.push(entry),
            Some(mine) => {
                if let (Data::Map(a), Data::Map(_)) = (&mut mine.value.data, &entry.value.data) {
                    let Data::Map(b) = entry.value.data else { continue };
                    merge(a, b);
                }
            }
        }
    }
}

/// `a/./b/../c` → `a/c`, so that one file has one name.
fn tidy(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir if out.file_name().is_some() => drop(out.pop()),
            other => out.push(other),
        }
    }
    out
}
