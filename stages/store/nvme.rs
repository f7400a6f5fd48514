//! The NVMe shelf: layers of arrays, one file each (`pack.rs`), on a fast disk near the program. Evictable, checksummed, shared by processes, there again
//! after a restart. Entries of earlier runs leave first, oldest first; those of this run stay, because an order of epochs makes every use equally far.

use std::collections::{HashSet, VecDeque};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::SystemTime;

use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;

use super::disk::list;
use super::ledger::Ledger;
use super::pack::{self, Grid, Take};
use crate::error::{Error, chain};

/// After so many failures the shelf is left alone.
const PATIENCE: u32 = 16;

pub(super) struct Nvme {
    dir: PathBuf,
    limit_bytes: u64,
    failures: AtomicU32,
    /// No entry as large as this found room.
    refused_bytes: AtomicU64,
    /// Found at opening, oldest first: who may leave. Held while the shelf changes.
    old: Mutex<VecDeque<PathBuf>>,
    /// Used by this process: they stay. Locked last, and never across a file operation.
    used: Mutex<HashSet<PathBuf>>,
    /// Entries that a thread of this process is making.
    making: Mutex<HashSet<[u8; 32]>>,
}

/// What stands on the shelf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shelved {
    pub entries: usize,
    pub bytes: u64,
    pub limit_bytes: u64,
    /// Dropped just now: their checksum was wrong.
    pub damaged: usize,
}

/// The right to make an entry, given back on drop.
pub(super) struct Making<'a> {
    shelf: &'a Nvme,
    id: [u8; 32],
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.shelf.making.lock().expect(HELD).remove(&self.id);
    }
}

const HELD: &str = "no thread panics while it holds the shelf";

impl Nvme {
    /// Counts what stands in `dir`, drops what is no whole entry, and evicts down to the limit.
    pub fn open(dir: &Path, limit_bytes: u64) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(Error::io("make folder", dir))?;
        let shelf = Self {
            dir: dir.to_path_buf(),
            limit_bytes,
            failures: AtomicU32::new(0),
            refused_bytes: AtomicU64::new(u64::MAX),
            old: Mutex::default(),
            used: Mutex::default(),
            making: Mutex::default(),
        };
        let ledger = shelf.ledger()?;
        ledger.begin().map_err(Error::io("write", shelf.dir.join("usage")))?;
        let mut entries = shelf.entries()?;
        entries.sort();
        let mut used_bytes = entries.iter().map(|(_, _, bytes)| bytes).sum::<u64>();
        let mut old: VecDeque<_> = entries.into_iter().map(|(_, path, bytes)| (path, bytes)).collect();
        while used_bytes > limit_bytes
            && let Some((path, bytes)) = old.pop_front()
        {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            used_bytes -= bytes;
        }
        *shelf.old.lock().expect(HELD) = old.into_iter().map(|(path, _)| path).collect();
        ledger.settle(used_bytes).map_err(Error::io("write", shelf.dir.join("usage")))?;
        Ok(shelf)
    }

    pub fn works(&self) -> bool {
        self.failures.load(Ordering::Relaxed) < PATIENCE
    }

    /// Tells the log of a failure; after the last one that is borne, that the shelf is no longer used.
    pub fn failed(&self, e: &Error) {
        match self.failures.fetch_add(1, Ordering::Relaxed) + 1 {
            PATIENCE => {
                tracing::warn!(dir = %self.dir.display(), error = chain(e), "the NVMe shelf fails again and again and is no longer used")
            }
            1 => {
                tracing::warn!(dir = %self.dir.display(), error = chain(e), "the NVMe shelf failed, the layer is read from the disk shelf")
            }
            _ => {}
        }
    }

    /// Gives the bricks of a box of a layer, as [`pack::read`] does. `false` when the entry is not there; a damaged one is dropped and is not there either,
    /// though some of its bricks, whole ones, may have been given.
    /// - `size`, `voxel`: voxels of the layer, bytes of each
    pub fn read(&self, id: &[u8; 32], size: Zyx<usize>, voxel: usize, region: Region, take: &mut Take) -> Result<bool, Error> {
        let path = self.path(id);
        let mut read = || -> std::io::Result<Option<File>> {
            let file = File::open(&path)?;
            let is_whole = match pack::open(&file)? {
                Some((found, grid)) if found == *id && (grid.size, grid.voxel) == (size, voxel) => {
                    pack::read(&file, id, &grid, region, take)?
                }
                _ => false,
            };
            Ok(is_whole.then_some(file))
        };
        let file = match read() {
            Ok(Some(file)) => file,
            Ok(None) => {
                tracing::warn!(entry = %path.display(), "a layer on the NVMe shelf is damaged and is read again from the disk shelf");
                self.drop_entry(&path)?;
                return Ok(false);
            }
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(Error::io("read", &path)(e)),
        };
        let mut used = self.used.lock().expect(HELD);
        if !used.contains(&path) {
            used.insert(path);
            drop(used);
            // Age across restarts; a shelf that cannot keep it is none the worse.
            let _ = file.set_modified(SystemTime::now());
        }
        Ok(true)
    }

    /// Whether a layer is worth decoding whole: there seems to be room for it, and no other thread is at it.
    pub fn make(&self, id: &[u8; 32], grid: &Grid) -> Option<Making<'_>> {
        let need = grid.file_bytes();
        let has_room = need <= self.limit_bytes && need < self.refused_bytes.load(Ordering::Relaxed);
        (has_room && self.making.lock().expect(HELD).insert(*id)).then(|| Making { shelf: self, id: *id })
    }

    /// Takes a layer in where the limit allows it.
    pub fn put(&self, id: &[u8; 32], grid: &Grid, layer: &[u8]) -> Result<(), Error> {
        let (path, need) = (self.path(id), grid.file_bytes());
        let usage = self.dir.join("usage");
        let mut old = self.old.lock().expect(HELD);
        let ledger = self.ledger()?;
        if path.exists() {
            return Ok(());
        }
        let mut used_bytes = self.used_bytes(&ledger)?;
        ledger.begin().map_err(Error::io("write", &usage))?;
        while used_bytes + need > self.limit_bytes {
            let Some(victim) = old.pop_front() else {
                self.refused_bytes.fetch_min(need, Ordering::Relaxed);
                ledger.settle(used_bytes).map_err(Error::io("write", &usage))?;
                return Ok(());
            };
            let is_used = self.used.lock().expect(HELD).contains(&victim);
            if !is_used {
                used_bytes = used_bytes.saturating_sub(remove(&victim)?);
            }
        }
        self.write(&path, id, grid, layer)?;
        self.used.lock().expect(HELD).insert(path);
        ledger.settle(used_bytes + need).map_err(Error::io("write", &usage))
    }

    /// Beside first, so that a reader sees a whole entry or none. Not synced: after a power cut the checksums tell.
    fn write(&self, path: &Path, id: &[u8; 32], grid: &Grid, layer: &[u8]) -> Result<(), Error> {
        let folder = path.parent().expect("an entry stands in a folder of the shelf");
        let beside = self.dir.join("incoming");
        let written = File::create(&beside).and_then(|mut f| pack::write(&mut f, id, grid, layer));
        written.inspect_err(|_| drop(fs::remove_file(&beside))).map_err(Error::io("write", &beside))?;
        let placed = fs::rename(&beside, path).or_else(|e| match e.kind() {
            ErrorKind::NotFound => fs::create_dir_all(folder).and_then(|()| fs::rename(&beside, path)),
            _ => Err(e),
        });
        placed.map_err(Error::io("write", path))
    }

    /// Counts the entries; with `verify` each is read, and a damaged one is dropped.
    pub fn inventory(&self, verify: bool) -> Result<Shelved, Error> {
        let entries = {
            let _ledger = self.ledger()?;
            self.entries()?
        };
        let mut out = Shelved { limit_bytes: self.limit_bytes, ..Shelved::default() };
        for (_, path, bytes) in entries {
            if verify && !self.is_whole(&path) {
                self.drop_entry(&path)?;
                out.damaged += 1;
                continue;
            }
            out.entries += 1;
            out.bytes += bytes;
        }
        Ok(out)
    }

    /// Whether all checksums of an entry are right and it stands under its own name. One that another process has dropped meanwhile is none to worry about.
    fn is_whole(&self, path: &Path) -> bool {
        let look = || -> std::io::Result<bool> {
            let file = File::open(path)?;
            let Some((id, grid)) = pack::open(&file)? else { return Ok(false) };
            Ok(self.path(&id) == *path && pack::read(&file, &id, &grid, Region::whole(grid.size), &mut |_| ())?)
        };
        look().unwrap_or_else(|e| e.kind() == ErrorKind::NotFound)
    }

    /// Takes every entry off the shelf and says how many there were.
    pub fn clear(&self) -> Result<usize, Error> {
        let mut old = self.old.lock().expect(HELD);
        let ledger = self.ledger()?;
        let usage = self.dir.join("usage");
        ledger.begin().map_err(Error::io("write", &usage))?;
        let entries = self.entries()?;
        for (_, path, _) in &entries {
            remove(path)?;
        }
        old.clear();
        self.refused_bytes.store(u64::MAX, Ordering::Relaxed);
        ledger.settle(0).map_err(Error::io("write", &usage))?;
        Ok(entries.len())
    }

    fn drop_entry(&self, path: &Path) -> Result<(), Error> {
        let _changing = self.old.lock().expect(HELD);
        let ledger = self.ledger()?;
        let used_bytes = self.used_bytes(&ledger)?;
        let settle = |bytes| ledger.settle(bytes).map_err(Error::io("write", self.dir.join("usage")));
        ledger.begin().map_err(Error::io("write", self.dir.join("usage")))?;
        self.refused_bytes.store(u64::MAX, Ordering::Relaxed);
        settle(used_bytes.saturating_sub(remove(path)?))
    }

    fn ledger(&self) -> Result<Ledger, Error> {
        Ledger::lock(&self.dir.join("usage"))
    }

    fn used_bytes(&self, ledger: &Ledger) -> Result<u64, Error> {
        match ledger.used_bytes() {
            Some(used) => Ok(used),
            None => Ok(self.entries()?.iter().map(|(_, _, bytes)| bytes).sum()),
        }
    }

    /// Age, path and length of every entry. Called with the ledger locked: what a dead process left half written goes.
    fn entries(&self) -> Result<Vec<(SystemTime, PathBuf, u64)>, Error> {
        let _ = fs::remove_file(self.dir.join("incoming"));
        let mut entries = Vec::new();
        for folder in list(&self.dir)?.into_iter().filter(|f| f.file_name().is_some_and(|n| n.len() == 2)) {
            for path in list(&folder)? {
                let Ok(m) = fs::metadata(&path) else { continue };
                if m.is_file() {
                    entries.push((m.modified().unwrap_or(SystemTime::UNIX_EPOCH), path, m.len()));
                }
            }
        }
        Ok(entries)
    }

    fn path(&self, id: &[u8; 32]) -> PathBuf {
        let hex = blake3::Hash::from_bytes(*id).to_hex();
        self.dir.join(&hex[..2]).join(&hex[2..34])
    }

    /// How an entry is laid out; `None` for what is not there or no whole entry.
    #[cfg(test)]
    pub fn grid(&self, id: &[u8; 32]) -> Option<Grid> {
        let file = File::open(self.path(id)).ok()?;
        pack::open(&file).expect("a test's shelf works").map(|(_, grid)| grid)
    }

    #[cfg(test)]
    pub fn counted_bytes(&self) -> u64 {
        self.ledger().expect("a test's shelf works").used_bytes().expect("a test's ledger is whole")
    }
}

/// Removes an entry and says how many bytes that freed; none when another process was faster.
fn remove(path: &Path) -> Result<u64, Error> {
    let bytes = match fs::metadata(path) {
        Ok(m) => m.len(),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(Error::io("look at", path)(e)),
    };
    fs::remove_file(path).map_err(Error::io("remove", path))?;
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::artifact::Key;

    use super::super::Layer;
    use super::*;

    const GRID: Grid = Grid { size: Zyx::new(1, 10, 100), brick: Zyx::new(1, 4, 32), voxel: 1 };
    const ENTRY: u64 = 1000 + 12 * 4 + pack::TRAILER_BYTES as u64;

    fn layer(i: u32) -> [u8; 32] {
        Layer { artifact: Key([5; 32]), array: 0, channel: 0, z: i }.id()
    }

    fn put(shelf: &Nvme, i: u32) {
        shelf.put(&layer(i), &GRID, &[i as u8; 1000]).unwrap();
    }

    /// The whole layer; `None` where it is not there.
    fn get(shelf: &Nvme, i: u32) -> Option<Vec<u8>> {
        let mut seen = Vec::new();
        let whole = Region::whole(GRID.size);
        shelf.read(&layer(i), GRID.size, 1, whole, &mut |b| b.pieces(1, |_, bytes| seen.extend_from_slice(bytes))).unwrap().then_some(seen)
    }

    fn held(shelf: &Nvme) -> Vec<u32> {
        (0..50).filter(|i| get(shelf, *i).is_some_and(|b| b == [*i as u8; 1000])).collect()
    }

    fn bytes_in(dir: &Path) -> u64 {
        let folders = list(dir).unwrap().into_iter().filter(|p| p.is_dir());
        folders.flat_map(|f| list(&f).unwrap()).map(|f| f.metadata().unwrap().len()).sum()
    }

    #[test]
    fn entries_of_earlier_runs_leave_oldest_first_and_those_of_this_run_stay() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Nvme::open(dir.path(), 3 * ENTRY).unwrap();
        for i in 0..3 {
            put(&shelf, i);
            let file = File::open(shelf.path(&layer(i))).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(100 + i as u64)).unwrap();
        }
        put(&shelf, 3);
        assert_eq!(held(&shelf), [0, 1, 2], "full of this run's own");
        let shelf = Nvme::open(dir.path(), 3 * ENTRY).unwrap();
        // Used now: it stays, although it is the oldest.
        get(&shelf, 0).unwrap();
        put(&shelf, 3);
        assert_eq!(held(&shelf), [0, 2, 3]);
    }

    #[test]
    fn processes_that_share_a_shelf_hold_one_limit() {
        let dir = tempfile::tempdir().unwrap();
        let limit = 10 * ENTRY + 7;
        let (a, b) = (Nvme::open(dir.path(), limit).unwrap(), Nvme::open(dir.path(), limit).unwrap());
        std::thread::scope(|s| {
            for (shelf, first) in [(&a, 0), (&b, 5), (&a, 20), (&b, 25)] {
                s.spawn(move || {
                    for i in first..first + 20 {
                        put(shelf, i);
                        assert!(bytes_in(&shelf.dir) <= limit);
                    }
                });
            }
        });
        assert_eq!(bytes_in(dir.path()), 10 * ENTRY);
        assert_eq!(held(&a), held(&b));
        assert_eq!(a.counted_bytes(), 10 * ENTRY);
    }

    #[test]
    fn a_smaller_limit_evicts_at_opening() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Nvme::open(dir.path(), 10 * ENTRY).unwrap();
        (0..10).for_each(|i| put(&shelf, i));
        let shelf = Nvme::open(dir.path(), 4 * ENTRY).unwrap();
        assert_eq!((held(&shelf).len(), bytes_in(dir.path())), (4, 4 * ENTRY));
    }

    #[test]
    fn a_crash_between_file_and_ledger_is_counted_anew() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Nvme::open(dir.path(), 4 * ENTRY).unwrap();
        (0..2).for_each(|i| put(&shelf, i));
        // As a killed process leaves it: the ledger open, an entry not yet counted, another half written.
        shelf.ledger().unwrap().begin().unwrap();
        std::fs::copy(shelf.path(&layer(0)), dir.path().join("aa-incoming")).unwrap();
        std::fs::create_dir_all(dir.path().join("aa")).unwrap();
        std::fs::rename(dir.path().join("aa-incoming"), dir.path().join("aa").join("b".repeat(32))).unwrap();
        std::fs::write(dir.path().join("incoming"), "half").unwrap();
        (2..5).for_each(|i| put(&shelf, i));
        assert_eq!((bytes_in(dir.path()), shelf.counted_bytes()), (4 * ENTRY, 4 * ENTRY));
        assert!(!dir.path().join("incoming").exists());
    }

    #[test]
    fn a_damaged_entry_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Nvme::open(dir.path(), 2 * ENTRY).unwrap();
        (0..2).for_each(|i| put(&shelf, i));
        let path = shelf.path(&layer(0));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[500] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(get(&shelf, 0), None);
        assert!(!path.exists());
        put(&shelf, 7);
        assert_eq!(held(&shelf), [1, 7]);
    }

    #[test]
    fn verifying_drops_what_is_damaged_and_counts_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Nvme::open(dir.path(), 9 * ENTRY).unwrap();
        (0..4).for_each(|i| put(&shelf, i));
        let path = shelf.path(&layer(2));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[10] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        std::fs::write(shelf.path(&layer(3)), "short").unwrap();
        assert_eq!(shelf.inventory(false).unwrap().entries, 4);
        let seen = shelf.inventory(true).unwrap();
        assert_eq!((seen.entries, seen.bytes, seen.damaged), (2, 2 * ENTRY, 2));
        assert_eq!(held(&shelf), [0, 1]);
    }

    #[test]
    fn an_entry_under_another_name_is_not_served() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Nvme::open(dir.path(), 4 * ENTRY).unwrap();
        (0..2).for_each(|i| put(&shelf, i));
        std::fs::copy(shelf.path(&layer(0)), shelf.path(&layer(1))).unwrap();
        assert_eq!(get(&shelf, 1), None);
    }
}
