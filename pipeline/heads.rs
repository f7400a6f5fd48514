//! The newest artifact of every node and case in a workspace: `heads/PIPELINE/NODE.json`, case → key. It serves explanations (`plan`, `why`), `infer` and
//! `query`; losing it loses no artifact.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use voxmill_schemas::artifact::Key;
use voxmill_stages::error::Error;
use voxmill_stages::stage::Input;

#[derive(Clone, Debug)]
pub struct Heads {
    folder: PathBuf,
}

impl Heads {
    pub fn open(workspace: &Path, pipeline: &str) -> Self {
        Self { folder: workspace.join("heads").join(pipeline) }
    }

    /// Case (empty for a node over the set) → key. Empty where nothing was run yet.
    pub fn read(&self, node: &str) -> BTreeMap<String, Key> {
        std::fs::read(self.folder.join(format!("{node}.json"))).ok().and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default()
    }

    /// The newest artifacts of every pipeline and inference in a workspace, with the name of their node.
    pub fn all(workspace: &Path) -> BTreeMap<Key, String> {
        let mut todo = vec![workspace.join("heads")];
        let mut out = BTreeMap::new();
        while let Some(folder) = todo.pop() {
            let heads = Self { folder };
            todo.extend(std::fs::read_dir(&heads.folder).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()));
            for node in heads.nodes() {
                out.extend(heads.read(&node).into_values().map(|key| (key, node.clone())));
            }
        }
        out
    }

    /// Takes entries out of every pipeline's list: those of these artifacts and those that `named` is true of.
    pub fn forget(workspace: &Path, keys: &BTreeSet<Key>, named: &dyn Fn(&str) -> bool) -> Result<(), Error> {
        let mut todo = vec![workspace.join("heads")];
        while let Some(folder) = todo.pop() {
            let heads = Self { folder };
            todo.extend(std::fs::read_dir(&heads.folder).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()));
            for node in heads.nodes() {
                let left = heads.read(&node).into_iter().filter(|(case, key)| !keys.contains(key) && !named(case)).collect();
                heads.put(&node, &left)?;
            }
        }
        Ok(())
    }

    /// Every node that has run here.
    pub fn nodes(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(&self.folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.strip_suffix(".json").map(str::to_string))
            .filter(|n| !n.starts_with('.'))
            .collect();
        names.sort();
        names
    }

    /// Replaces a node's entry.
    pub fn write(&self, node: &str, items: &[Input]) -> Result<(), Error> {
        self.put(node, &keys_of(items))
    }

    /// Replaces the entries of these cases; those of others stay.
    pub fn add(&self, node: &str, items: &[Input]) -> Result<(), Error> {
        let mut heads = self.read(node);
        heads.extend(keys_of(items));
        self.put(node, &heads)
    }

    /// Beside and renamed.
    fn put(&self, node: &str, heads: &BTreeMap<String, Key>) -> Result<(), Error> {
        if *heads == self.read(node) {
            return Ok(());
        }
        std::fs::create_dir_all(&self.folder).map_err(Error::io("make folder", &self.folder))?;
        let (to, beside) = (self.folder.join(format!("{node}.json")), self.folder.join(format!(".{node}.{}.new", std::process::id())));
        std::fs::write(&beside, serde_json::to_vec_pretty(heads).expect("plain data")).map_err(Error::io("write", &beside))?;
        std::fs::rename(&beside, &to).map_err(Error::io("write", &to))
    }
}

fn keys_of(items: &[Input]) -> BTreeMap<String, Key> {
    items.iter().map(|i| (i.manifest.case.as_ref().map(|c| c.0.clone()).unwrap_or_default(), i.manifest.key)).collect()
}
