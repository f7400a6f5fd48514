//! The three shelves: disk (durable artifacts), NVMe and RAM (evictable bricks of volumes). This folder does not know what HU is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use voxmill_schemas::artifact::{CaseId, ContentHash, Key, Kind, Manifest, Recipe};

use crate::error::Error;

/// Budgets and places of the shelves.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Folder of the disk shelf: `artifacts/`, `drafts/`, `locks/` stand in it.
    pub disk_dir: PathBuf,
    pub disk_bytes: Option<u64>,
    /// `None`: no NVMe shelf.
    pub nvme: Option<(PathBuf, u64)>,
    pub ram_bytes: u64,
}

/// Hits since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub ram_hits: u64,
    pub nvme_hits: u64,
    pub disk_reads: u64,
}

pub struct Store {
    pub disk: Disk,
}

pub struct Disk {
    pub root: PathBuf,
}

/// An artifact in the making: a folder that a dead process cannot keep (its lock is gone) and that is dropped unless committed.
pub struct Draft {
    pub path: PathBuf,
}

/// What makes a draft an artifact.
pub struct Commit<'a> {
    pub key: Key,
    pub kind: Kind,
    pub case: Option<CaseId>,
    pub recipe: Recipe,
    pub input_keys: BTreeMap<String, Vec<Key>>,
    pub facts: serde_json::Map<String, serde_json::Value>,
    /// Stands in for the hash of the files.
    pub content: Option<ContentHash>,
    /// Files of a draft that are hard links into one of these need no second hash.
    pub inputs_dirs: &'a [(PathBuf, Arc<Manifest>)],
}

/// Held while an artifact is made; released on drop, and by the kernel when the process dies.
pub struct Lock;

impl Store {
    pub fn open(_limits: &Limits) -> Result<Self, Error> {
        unimplemented!()
    }
    pub fn counts(&self) -> Counts {
        unimplemented!()
    }
    /// One brick of an array, from the fastest shelf that has it; `decode` reads it from the disk shelf. The name of a brick is the key of its artifact, the
    /// array in it and the brick's index.
    pub fn brick(
        &self,
        _key: &Key,
        _array: &str,
        _index: [usize; 4],
        _decode: impl FnOnce() -> Result<Vec<u8>, Error>,
    ) -> Result<Arc<Vec<u8>>, Error> {
        unimplemented!()
    }
}

impl Disk {
    /// `artifacts/ab/KEY` of a key.
    pub fn dir(&self, _key: &Key) -> PathBuf {
        unimplemented!()
    }
    pub fn manifest(&self, _key: &Key) -> Result<Option<Manifest>, Error> {
        unimplemented!()
    }
    /// Waits until no other process makes this artifact.
    pub fn lock(&self, _key: &Key) -> Result<Lock, Error> {
        unimplemented!()
    }
    pub fn draft(&self) -> Result<Draft, Error> {
        unimplemented!()
    }
    /// All manifests on the shelf, in the order of their keys.
    pub fn manifests(&self) -> Result<Vec<Manifest>, Error> {
        unimplemented!()
    }
}

impl Draft {
    /// Hashes and syncs the files, writes the manifest last, renames the folder into place. Where the key already stands there, that artifact wins.
    pub fn commit(self, _c: Commit) -> Result<Manifest, Error> {
        unimplemented!()
    }
}

/// Gives `to` the bytes of `from` without copying where the file system allows.
pub fn link(_from: &Path, _to: &Path) -> Result<(), Error> {
    unimplemented!()
}
