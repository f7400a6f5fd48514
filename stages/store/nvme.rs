//! The NVMe shelf: decoded bricks, one file each, on a fast disk near the program. Evictable, checksummed, shared by processes, there again after
//! a restart. Entries of earlier runs leave first, oldest first; those of this run stay, because an order of epochs makes every use equally far.

use std::collections::{HashSet, VecDeque};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
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
    state: Mutex<State>,
}

/// What this process knows of the shelf; the ledger knows how full it is.
#[derive(Default)]
struct State {
    /// Found at opening, oldest first: who may leave.
    old: VecDeque<PathBuf>,
    /// Of these, the ones used by this process: they stay.
    used: HashSet<PathBuf>,
}

const HELD: &str = "no thread panics while it holds the shelf";

impl Nvme {
    /// Counts what stands in `dir`, drops what is no whole entry, and evicts down to the limit.
    pub fn open(dir: &Path, limit_bytes: u64) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(Error::io("make folder", dir))?;
        let shelf = Self { dir: dir.to_path_buf(), limit_bytes, failures: AtomicU32::new(0), state: Mutex::default() };
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
        shelf.state.lock().expect(HELD).old = old.into_iter().map(|(path, _)| path).collect();
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
            let mut file = File::open(&path)?;
            let mut bytes = Vec::with_capacity(file.metadata()?.len() as usize);
            file.read_to_end(&mut bytes)?;
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
        let is_first_use = self.state.lock().expect(HELD).used.insert(path);
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
        let mut state = self.state.lock().expect(HELD);
        let ledger = self.ledger()?;
        if path.exists() {
            return Ok(());
        }
        let mut used_bytes = self.used_bytes(&ledger)?;
        ledger.begin().map_err(Error::io("write", &usage))?;
        while used_bytes + need > self.limit_bytes {
            let Some(victim) = state.old.pop_front() else {
                ledger.settle(used_bytes).map_err(Error::io("write", &usage))?;
                return Ok(());
            };
            if !state.used.contains(&victim) {
                used_bytes -= remove(&victim)?;
            }
        }
        self.write(&path, &id, bytes)?;
        state.used.insert(path);
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

    fn drop_entry(&self, path: &Path) -> Result<(), Error> {
        let _state = self.state.lock().expect(HELD);
        let ledger = self.ledger()?;
        let used_bytes = self.used_bytes(&ledger)?;
        let settle = |bytes| ledger.settle(bytes).map_err(Error::io("write", self.dir.join("usage")));
        ledger.begin().map_err(Error::io("write", self.dir.join("usage")))?;
        settle(used_bytes - remove(path)?)
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
        self.ledger().unwrap().used_bytes().unwrap()
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
