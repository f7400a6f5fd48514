//! The NVMe shelf: decoded bricks, one file each, on a fast disk near the program. Evictable, checksummed, shared by processes, there again after
//! a restart. Entries of earlier runs leave first, oldest first; those of this run stay, because an order of epochs makes every use equally far.

use std::collections::{HashSet, VecDeque};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use super::Brick;
use super::disk::list;
use super::ledger::Ledger;
use crate::error::{Error, chain};

/// What follows the brick's bytes in its file: the brick's id, the crc32c of bytes and id, a magic number.
const TRAILER_BYTES: usize = 32 + 4 + 4;
const MAGIC: [u8; 4] = *b"vxb1";
/// After so many failures the shelf is left alone.
const PATIENCE: u32 = 16;

pub(super) struct Nvme {
    dir: PathBuf,
    limit_bytes: u64,
    failures: AtomicU32,
    /// Found at opening, oldest first: who may leave. Held while the shelf changes.
    old: Mutex<VecDeque<PathBuf>>,
    /// Used by this process: they stay. Locked last, and never across a file operation.
    used: Mutex<HashSet<PathBuf>>,
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

const HELD: &str = "no thread panics while it holds the shelf";

impl Nvme {
    /// Counts what stands in `dir`, drops what is no whole entry, and evicts down to the limit.
    pub fn open(dir: &Path, limit_bytes: u64) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(Error::io("make folder", dir))?;
        let shelf =
            Self { dir: dir.to_path_buf(), limit_bytes, failures: AtomicU32::new(0), old: Mutex::default(), used: Mutex::default() };
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
                tracing::warn!(dir = %self.dir.display(), error = chain(e), "the NVMe shelf failed, the brick is read from the disk shelf")
            }
            _ => {}
        }
    }

    /// `None` when it is not there. A damaged entry is dropped and is not there either.
    pub fn get(&self, name: &Brick) -> Result<Option<Vec<u8>>, Error> {
        let id = name.id();
        let path = self.path(&id);
        let read = || -> std::io::Result<(Vec<u8>, File)> {
            let file = File::open(&path)?;
            // More than the whole shelf holds is none of ours.
            let mut bytes = vec![0; file.metadata()?.len().min(self.limit_bytes) as usize];
            file.read_exact_at(&mut bytes, 0)?;
            Ok((bytes, file))
        };
        let (mut bytes, file) = match read() {
            Ok(found) => found,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("read", &path)(e)),
        };
        let Some(length) = whole(&bytes, &id) else {
            tracing::warn!(entry = %path.display(), "a brick on the NVMe shelf is damaged and is read again from the disk shelf");
            self.drop_entry(&path)?;
            return Ok(None);
        };
        bytes.truncate(length);
        let is_first_use = self.used.lock().expect(HELD).insert(path);
        if is_first_use {
            // Age across restarts; a shelf that cannot keep it is none the worse.
            let _ = file.set_modified(SystemTime::now());
        }
        Ok(Some(bytes))
    }

    /// Takes a brick in where the limit allows it.
    pub fn put(&self, name: &Brick, bytes: &[u8]) -> Result<(), Error> {
        let id = name.id();
        let path = self.path(&id);
        let need = (bytes.len() + TRAILER_BYTES) as u64;
        if need > self.limit_bytes {
            return Ok(());
        }
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
                ledger.settle(used_bytes).map_err(Error::io("write", &usage))?;
                return Ok(());
            };
            let is_used = self.used.lock().expect(HELD).contains(&victim);
            if !is_used {
                used_bytes = used_bytes.saturating_sub(remove(&victim)?);
            }
        }
        self.write(&path, &id, bytes)?;
        self.used.lock().expect(HELD).insert(path);
        ledger.settle(used_bytes + need).map_err(Error::io("write", &usage))
    }

    /// Beside first, so that a reader sees a whole entry or none. Not synced: after a power cut the checksum tells.
    fn write(&self, path: &Path, id: &[u8; 32], bytes: &[u8]) -> Result<(), Error> {
        let folder = path.parent().expect("an entry stands in a folder of the shelf");
        let beside = self.dir.join("incoming");
        let crc = crc32c::crc32c_append(crc32c::crc32c(bytes), id);
        let mut trailer = [0; TRAILER_BYTES];
        trailer[..32].copy_from_slice(id);
        trailer[32..36].copy_from_slice(&crc.to_le_bytes());
        trailer[36..].copy_from_slice(&MAGIC);
        let written = File::create(&beside).and_then(|mut f| f.write_all(bytes).and_then(|()| f.write_all(&trailer)));
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

    /// Whether an entry's checksum is right and it stands under its own name. One that another process has dropped meanwhile is none to worry about.
    fn is_whole(&self, path: &Path) -> bool {
        let bytes = match fs::metadata(path).and_then(|m| if m.len() > self.limit_bytes { Ok(Vec::new()) } else { fs::read(path) }) {
            Ok(bytes) => bytes,
            Err(e) => return e.kind() == ErrorKind::NotFound,
        };
        let id = bytes.len().checked_sub(TRAILER_BYTES).and_then(|at| bytes[at..at + 32].try_into().ok());
        id.is_some_and(|id: [u8; 32]| whole(&bytes, &id).is_some() && self.path(&id) == *path)
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
        ledger.settle(0).map_err(Error::io("write", &usage))?;
        Ok(entries.len())
    }

    fn drop_entry(&self, path: &Path) -> Result<(), Error> {
        let _changing = self.old.lock().expect(HELD);
        let ledger = self.ledger()?;
        let used_bytes = self.used_bytes(&ledger)?;
        let settle = |bytes| ledger.settle(bytes).map_err(Error::io("write", self.dir.join("usage")));
        ledger.begin().map_err(Error::io("write", self.dir.join("usage")))?;
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

    #[cfg(test)]
    pub fn counted_bytes(&self) -> u64 {
        self.ledger().expect("a test's shelf works").used_bytes().expect("a test's ledger is whole")
    }
}

/// Length of the brick in a whole entry of that id.
fn whole(entry: &[u8], id: &[u8; 32]) -> Option<usize> {
    let length = entry.len().checked_sub(TRAILER_BYTES)?;
    let (crc, magic) = (&entry[length + 32..length + 36], &entry[length + 36..]);
    let is_whole = magic == MAGIC && entry[length..length + 32] == *id && crc32c::crc32c(&entry[..length + 32]).to_le_bytes() == crc;
    is_whole.then_some(length)
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

    use super::*;

    const ENTRY: u64 = 1000 + TRAILER_BYTES as u64;

    fn brick(i: u32) -> Brick {
        Brick { artifact: Key([5; 32]), array: 0, index: [0, 0, 0, i] }
    }

    fn put(shelf: &Nvme, i: u32) {
        shelf.put(&brick(i), &[i as u8; 1000]).unwrap();
    }

    fn held(shelf: &Nvme) -> Vec<u32> {
        (0..50).filter(|i| shelf.get(&brick(*i)).unwrap().is_some_and(|b| b == [*i as u8; 1000])).collect()
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
            let file = File::open(shelf.path(&brick(i).id())).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(100 + i as u64)).unwrap();
        }
        put(&shelf, 3);
        assert_eq!(held(&shelf), [0, 1, 2], "full of this run's own");
        let shelf = Nvme::open(dir.path(), 3 * ENTRY).unwrap();
        // Used now: it stays, although it is the oldest.
        shelf.get(&brick(0)).unwrap();
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
        std::fs::copy(shelf.path(&brick(0).id()), dir.path().join("aa-incoming")).unwrap();
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
        let path = shelf.path(&brick(0).id());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[500] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(shelf.get(&brick(0)).unwrap(), None);
        assert!(!path.exists());
        put(&shelf, 7);
        assert_eq!(held(&shelf), [1, 7]);
    }

    #[test]
    fn verifying_drops_what_is_damaged_and_counts_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Nvme::open(dir.path(), 9 * ENTRY).unwrap();
        (0..4).for_each(|i| put(&shelf, i));
        let path = shelf.path(&brick(2).id());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[10] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        std::fs::write(shelf.path(&brick(3).id()), "short").unwrap();
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
        std::fs::copy(shelf.path(&brick(0).id()), shelf.path(&brick(1).id())).unwrap();
        assert_eq!(shelf.get(&brick(1)).unwrap(), None);
    }
}
