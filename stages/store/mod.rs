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
mod pack;
mod ram;
mod resident;
mod rewrite;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::hash::{BuildHasherDefault, Hasher};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use voxmill_schemas::artifact::Key;
use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;

pub use self::disk::{Disk, Lock, MANIFEST};
pub use self::draft::{Commit, Draft, Hashed, link, note_hashes};
use self::future::VIEW_SHARE;
pub use self::future::{Ratios, Trace, simulate};
use self::keep::Holds;
pub use self::keep::{Pin, Swept};
use self::nvme::Nvme;
pub use self::nvme::Shelved;
use self::pack::Grid;
pub use self::pack::{Bricks, Take};
use self::ram::Ram;
use self::resident::{Held, Residents};
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

/// Names a brick on the RAM shelf: the artifact, which of its arrays, and the brick's index there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Brick {
    pub artifact: Key,
    pub array: u32,
    /// `[c, z, y, x]`, counted in bricks.
    pub index: [u32; 4],
}

impl Brick {
    /// What it is filed under in memory: spread evenly, and cheap beside the copy of a row.
    fn short_id(&self) -> u64 {
        let word = |i: usize| u64::from_le_bytes(self.artifact.0[8 * i..8 * i + 8].try_into().expect("eight bytes"));
        let [c, z, y, x] = self.index.map(u64::from);
        [word(1), c << 32 | self.array as u64, z << 32 | y, x].into_iter().fold(word(0), |h, w| {
            // The finaliser of SplitMix64.
            let h = (h ^ w).wrapping_add(0x9e37_79b9_7f4a_7c15);
            let h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            h ^ (h >> 31)
        })
    }
}

/// Tables of short ids, which are mixed well enough to be their own hash.
type Ids = BuildHasherDefault<Itself>;

#[derive(Default)]
struct Itself(u64);

impl Hasher for Itself {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.0 = self.0.rotate_left(8) ^ *b as u64);
    }
    fn write_u64(&mut self, id: u64) {
        self.0 = id;
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// Names a layer of an array: the planes of one channel that one layer of its bricks covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    pub artifact: Key,
    pub array: u32,
    pub channel: u32,
    /// Counted in bricks.
    pub z: u32,
}

impl Layer {
    /// A hash of the name: what the NVMe shelf files it under.
    fn id(&self) -> [u8; 32] {
        let mut h = blake3::Hasher::new();
        h.update(b"voxmill layer 1\0");
        h.update(&self.artifact.0);
        for n in [self.array, self.channel, self.z] {
            h.update(&n.to_le_bytes());
        }
        *h.finalize().as_bytes()
    }
}

/// An array that a training reads.
#[derive(Clone, Copy, Debug)]
pub struct Array {
    pub artifact: Key,
    pub array: u32,
    pub channels: usize,
    /// Layers of bricks of a channel.
    pub layers: usize,
    /// Decoded.
    pub bytes: u64,
}

/// A box of a layer that is wanted.
#[derive(Clone, Copy, Debug)]
pub struct BoxOfLayer {
    pub layer: Layer,
    /// Voxels of the layer, bytes of each.
    pub size: Zyx<usize>,
    pub voxel: usize,
    /// Inside the layer.
    pub region: Region,
    /// Bricks of the disk shelf that it touches: what hits are counted in.
    pub bricks: u64,
}

/// What came of asking for a box of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// All its voxels were given.
    Given,
    /// All of the layer is zero.
    Zeros,
    No,
}

/// What the NVMe shelf is laid out for where nothing is known.
const ANY_PATCH: Zyx<usize> = Zyx::splat(96);

pub struct Store {
    pub disk: Disk,
    holds: Holds,
    ram: Ram,
    ram_bytes: u64,
    residents: Residents,
    /// What they take of `ram_bytes`.
    whole_bytes: AtomicU64,
    /// Boxes of about this size will be asked for.
    patch: Mutex<Option<Zyx<usize>>>,
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
            ram_bytes: limits.ram_bytes,
            residents: Residents::default(),
            whole_bytes: AtomicU64::new(0),
            patch: Mutex::default(),
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
    /// The view takes its bytes from the budget.
    pub fn foresee(&self, trace: Option<&Trace>) {
        self.ram.resize(self.brick_bytes().saturating_sub(trace.map_or(0, Trace::view_bytes)));
        self.ram.foresee(trace);
    }

    /// All requests before this one of the foreseen trace are answered.
    pub fn passed(&self, request: u32) {
        self.ram.passed(request);
    }

    /// Bytes that making a view of what comes may take.
    pub fn view_bytes(&self) -> u64 {
        self.ram_bytes / VIEW_SHARE
    }

    /// Holds these arrays whole in memory from now on, where the budget covers them all; `false` where it does not.
    pub fn hold_whole(&self, arrays: &[Array]) -> bool {
        let bytes = arrays.iter().map(|a| a.bytes).sum::<u64>();
        let holds = bytes <= self.ram_bytes && self.residents.hold(arrays);
        if holds {
            self.whole_bytes.store(bytes, Ordering::Relaxed);
            self.ram.resize(self.brick_bytes());
        }
        holds
    }

    /// Gives back what [`Store::hold_whole`] took.
    pub fn release_whole(&self) {
        self.residents.release();
        self.whole_bytes.store(0, Ordering::Relaxed);
        self.ram.resize(self.brick_bytes());
    }

    /// The budget without what is held whole.
    fn brick_bytes(&self) -> u64 {
        self.ram_bytes - self.whole_bytes.load(Ordering::Relaxed)
    }

    /// Boxes of about this size will be asked for: the NVMe shelf lays new layers out for them. `None`: of any size.
    pub fn expect_boxes(&self, patch: Option<Zyx<usize>>) {
        *self.patch.lock().expect("no holder panics") = patch;
    }

    /// A box of a layer, from memory where arrays are held whole, or straight from the NVMe shelf where no RAM shelf stands before it. `false`: neither is so,
    /// and the box is to be read brick by brick. What was given until then may be incomplete.
    /// - `decode`: the layer from the disk shelf, `None` where all of it is zero; it must not wait for other threads (no rayon inside)
    pub fn layer(&self, b: &BoxOfLayer, decode: &dyn Fn() -> Result<Option<Vec<u8>>, Error>, take: &mut Take) -> Result<Found, Error> {
        let load = || self.whole_layer(b, decode);
        match self.residents.get(&b.layer, load)? {
            Held::Yes(layer, was_there) => {
                if was_there {
                    self.ram_hits.fetch_add(b.bricks, Ordering::Relaxed);
                }
                return Ok(match layer {
                    Some(layer) => {
                        take(Bricks::one(&layer, Zyx::splat(0), b.size));
                        Found::Given
                    }
                    None => Found::Zeros,
                });
            }
            Held::No => {}
        }
        if self.ram_bytes > 0 { Ok(Found::No) } else { self.packed(b, decode, take) }
    }

    /// A layer that is to be held: from the NVMe shelf, else from disk.
    fn whole_layer(&self, b: &BoxOfLayer, decode: &dyn Fn() -> Result<Option<Vec<u8>>, Error>) -> Result<Option<Vec<u8>>, Error> {
        let all = BoxOfLayer { region: Region::whole(b.size), ..*b };
        let mut bytes = vec![0; b.size.count() * b.voxel];
        let found = self.packed(&all, decode, &mut |bricks| {
            bricks.pieces(b.voxel, |at, piece| {
                let to = ((at.z * b.size.y + at.y) * b.size.x + at.x) * b.voxel;
                bytes[to..to + piece.len()].copy_from_slice(piece);
            });
        })?;
        match found {
            Found::Given => Ok(Some(bytes)),
            Found::Zeros => Ok(None),
            Found::No => {
                self.disk_reads.fetch_add(b.bricks, Ordering::Relaxed);
                decode()
            }
        }
    }

    /// A box of a layer from the NVMe shelf. A layer that is not there is put there first, where there is room for it.
    pub fn packed(&self, b: &BoxOfLayer, decode: &dyn Fn() -> Result<Option<Vec<u8>>, Error>, take: &mut Take) -> Result<Found, Error> {
        let Some(nvme) = self.nvme() else { return Ok(Found::No) };
        let id = b.layer.id();
        match nvme.read(&id, b.size, b.voxel, b.region, take) {
            Ok(true) => {
                self.nvme_hits.fetch_add(b.bricks, Ordering::Relaxed);
                return Ok(Found::Given);
            }
            Ok(false) => {}
            Err(e) => {
                nvme.failed(&e);
                return Ok(Found::No);
            }
        }
        let patch = self.patch.lock().expect("no holder panics").unwrap_or(ANY_PATCH);
        let grid = Grid::chosen(b.size, b.voxel, patch);
        let Some(_making) = nvme.make(&id, &grid) else { return Ok(Found::No) };
        self.disk_reads.fetch_add(b.bricks, Ordering::Relaxed);
        let Some(layer) = decode()? else { return Ok(Found::Zeros) };
        if let Err(e) = nvme.put(&id, &grid, &layer) {
            nvme.failed(&e);
        }
        take(Bricks::one(&layer, Zyx::splat(0), b.size));
        Ok(Found::Given)
    }

    /// One brick of an array by way of the RAM shelf; `load` reads it from a slower one. Threads that want the same brick at the same time wait for one of
    /// them to fetch it, so `load` must not wait for other threads itself (no rayon inside).
    pub fn brick(&self, name: &Brick, load: impl FnOnce() -> Result<Vec<u8>, Error>) -> Result<Arc<Vec<u8>>, Error> {
        let (bytes, was_there) = self.ram.get_or_load(name, load)?;
        if was_there {
            self.ram_hits.fetch_add(1, Ordering::Relaxed);
        }
        Ok(bytes)
    }

    /// Whether bricks are kept in memory.
    pub fn keeps_bricks(&self) -> bool {
        self.ram_bytes > 0
    }

    pub fn has_nvme(&self) -> bool {
        self.nvme().is_some()
    }

    /// Counts a brick that was decoded from the disk shelf.
    pub fn count_disk_read(&self) {
        self.disk_reads.fetch_add(1, Ordering::Relaxed);
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
