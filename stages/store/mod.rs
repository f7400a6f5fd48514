//! The three shelves: disk (durable artifacts), NVMe and RAM (evictable bricks of volumes). This folder does not know what HU is.

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod conformance;
mod disk;
mod draft;
mod future;
mod keep;
mod ledger;
mod nvme;
mod ram;
mod rewrite;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use voxmill_schemas::artifact::Key;

pub use self::disk::{Disk, Lock};
pub use self::draft::{Commit, Draft, Hashed, link, note_hashes};
pub use self::future::{Ratios, Trace, simulate};
use self::keep::Holds;
pub use self::keep::{Pin, Swept};
use self::nvme::Nvme;
pub use self::nvme::Shelved;
use self::ram::Ram;
use crate::error::{Error, chain};

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

/// Names a brick on the evictable shelves: the artifact, which of its arrays, and the brick's index there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Brick {
    pub artifact: Key,
    pub array: u32,
    /// `[c, z, y, x]`, counted in bricks.
    pub index: [u32; 4],
}

impl Brick {
    /// A hash of the name: what the shelves file it under.
    fn id(&self) -> [u8; 32] {
        let mut h = blake3::Hasher::new();
        h.update(&self.artifact.0);
        h.update(&self.array.to_le_bytes());
        for i in self.index {
            h.update(&i.to_le_bytes());
        }
        *h.finalize().as_bytes()
    }
}

pub struct Store {
    pub disk: Disk,
    holds: Holds,
    ram: Ram,
    nvme_at: Option<(PathBuf, u64)>,
    /// Opened when the first brick is asked for: counting what stands there costs a walk that most commands never need.
    nvme: OnceLock<Option<Nvme>>,
    ram_hits: AtomicU64,
    nvme_hits: AtomicU64,
    disk_reads: AtomicU64,
}

impl Store {
    /// Makes the folders of the disk shelf where they are missing and sweeps what dead processes left in `drafts/`.
    pub fn open(limits: &Limits) -> Result<Self, Error> {
        Ok(Self {
            disk: Disk::open(&limits.disk_dir, limits.disk_bytes)?,
            holds: Holds::default(),
            ram: Ram::new(limits.ram_bytes),
            nvme_at: limits.nvme.clone(),
            nvme: OnceLock::new(),
            ram_hits: AtomicU64::new(0),
            nvme_hits: AtomicU64::new(0),
            disk_reads: AtomicU64::new(0),
        })
    }

    pub fn counts(&self) -> Counts {
        Counts {
            ram_hits: self.ram_hits.load(Ordering::Relaxed),
            nvme_hits: self.nvme_hits.load(Ordering::Relaxed),
            disk_reads: self.disk_reads.load(Ordering::Relaxed),
        }
    }

    /// Says that this process works with an artifact, there or yet to be made: `voxmill cache gc` leaves it alone until the process has ended.
    pub fn hold(&self, key: &Key) -> Result<(), Error> {
        self.disk.hold(&self.holds, key)
    }

    /// What the NVMe shelf holds; `None` where the pipeline has none. With `verify` every entry is read, and what is damaged is dropped and counted.
    pub fn nvme_holds(&self, verify: bool) -> Result<Option<Shelved>, Error> {
        let Some((dir, limit_bytes)) = &self.nvme_at else { return Ok(None) };
        if !dir.is_dir() {
            return Ok(Some(Shelved { limit_bytes: *limit_bytes, ..Shelved::default() }));
        }
        Nvme::open(dir, *limit_bytes)?.inventory(verify).map(Some)
    }

    /// Takes every brick off the NVMe shelf: they are hashed names and voxels, and say no more whose they are. Gives how many there were.
    pub fn clear_nvme(&self) -> Result<usize, Error> {
        match &self.nvme_at {
            Some((dir, limit_bytes)) if dir.is_dir() => Nvme::open(dir, *limit_bytes)?.clear(),
            _ => Ok(0),
        }
    }

    /// Tells the RAM shelf which bricks will be asked for, in which order: it keeps what is needed soonest. `None`: nothing is known. Decides speed, no byte.
    pub fn foresee(&self, trace: Option<&Trace>) {
        self.ram.foresee(trace);
    }

    /// All requests before this one of the foreseen trace are answered.
    pub fn passed(&self, request: u32) {
        self.ram.passed(request);
    }

    /// One brick of an array, from the fastest shelf that has it; `decode` reads it from the disk shelf. Threads that want the same brick at
    /// the same time wait for one of them to fetch it, so `decode` must not wait for other threads itself (no rayon inside).
    /// An evictable shelf that fails is a warning and a slower read, never an error.
    pub fn brick(&self, name: &Brick, decode: impl FnOnce() -> Result<Vec<u8>, Error>) -> Result<Arc<Vec<u8>>, Error> {
        let (bytes, was_there) = self.ram.get_or_load(name, || self.load_through_nvme(name, decode))?;
        if was_there {
            self.ram_hits.fetch_add(1, Ordering::Relaxed);
        }
        Ok(bytes)
    }

    fn load_through_nvme(&self, name: &Brick, decode: impl FnOnce() -> Result<Vec<u8>, Error>) -> Result<Vec<u8>, Error> {
        let nvme = self.nvme();
        if let Some(nvme) = nvme {
            match nvme.get(name) {
                Ok(Some(bytes)) => {
                    self.nvme_hits.fetch_add(1, Ordering::Relaxed);
                    return Ok(bytes);
                }
                Ok(None) => {}
                Err(e) => nvme.failed(&e),
            }
        }
        self.disk_reads.fetch_add(1, Ordering::Relaxed);
        let bytes = decode()?;
        if let Some(nvme) = nvme
            && let Err(e) = nvme.put(name, &bytes)
        {
            nvme.failed(&e);
        }
        Ok(bytes)
    }

    fn nvme(&self) -> Option<&Nvme> {
        let opened = self.nvme.get_or_init(|| {
            let (dir, limit_bytes) = self.nvme_at.as_ref()?;
            Nvme::open(dir, *limit_bytes)
                .inspect_err(|e| tracing::warn!(dir = %dir.display(), error = chain(e), "the NVMe shelf is not used, reads are slower"))
                .ok()
        });
        opened.as_ref().filter(|n| n.works())
    }
}
