//! The disk shelf: immutable artifacts under `artifacts/ab/KEY`, drafts of living processes under `drafts/`, one lock a key under `locks/`.
//! All locks are `flock`s: the kernel frees them when their process dies.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use voxmill_schemas::artifact::{Key, Manifest};

use super::draft::Draft;
use crate::error::{Error, chain};

/// Version of [`Manifest::layout`].
pub(super) const LAYOUT: u32 = 1;
pub const MANIFEST: &str = "artifact.json";
/// Manifests name every file of an artifact; none of ours comes near this.
const MANIFEST_LIMIT_BYTES: u64 = 256 << 20;

#[derive(Clone, Debug)]
pub struct Disk {
    pub root: PathBuf,
    /// Bytes that the files of all artifacts may take, hard links counted once.
    pub limit_bytes: Option<u64>,
}

/// Held while an artifact is made; released on drop, and by the kernel when the process dies.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: File,
}

impl Disk {
    pub(super) fn open(root: &Path, limit_bytes: Option<u64>) -> Result<Self, Error> {
        let disk = Self { root: root.to_path_buf(), limit_bytes };
        for dir in ["artifacts", "drafts", "locks"] {
            let dir = disk.root.join(dir);
            fs::create_dir_all(&dir).map_err(write_fault("make folder", &dir))?;
        }
        if let Err(e) = disk.sweep() {
            tracing::warn!(error = chain(&e), "drafts of dead processes are left where they are");
        }
        Ok(disk)
    }

    /// `artifacts/ab/KEY` of a key.
    pub fn dir(&self, key: &Key) -> PathBuf {
        let hex = key.hex();
        self.root.join("artifacts").join(&hex[..2]).join(hex)
    }

    /// `None` where the shelf has no such artifact. One that is half there (no manifest, files missing or of another length, a manifest that is not
    /// its own) is told to the log and counts as absent: making it again replaces it.
    pub fn manifest(&self, key: &Key) -> Result<Option<Manifest>, Error> {
        let dir = self.dir(key);
        let path = dir.join(MANIFEST);
        let text = match fs::metadata(&path).and_then(|m| if m.len() > MANIFEST_LIMIT_BYTES { Ok(Vec::new()) } else { fs::read(&path) }) {
            Ok(text) => text,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(Error::io("read", &path)(e)),
        };
        match check(&dir, key, &text) {
            Ok(manifest) => Ok(Some(manifest)),
            Err(what) => {
                tracing::warn!(error = %Error::Damaged { key: *key, what }, "it will be made again");
                Ok(None)
            }
        }
    }

    /// Waits until no other process or thread makes this artifact.
    pub fn lock(&self, key: &Key) -> Result<Lock, Error> {
        let path = self.root.join("locks").join(key.hex());
        loop {
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(Error::io("open lock", &path))?;
            wait(&file).map_err(Error::io("lock", &path))?;
            // Who held it before removed the file: the lock that counts is that of the file which stands there now.
            if is_still(&file, &path).map_err(Error::io("lock", &path))? {
                return Ok(Lock { path, _file: file });
            }
        }
    }

    /// The lock of an artifact, or `None` while another process or thread holds it.
    pub fn try_lock(&self, key: &Key) -> Result<Option<Lock>, Error> {
        let path = self.root.join("locks").join(key.hex());
        loop {
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(Error::io("open lock", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(fs::TryLockError::WouldBlock) => return Ok(None),
                Err(fs::TryLockError::Error(e)) => return Err(Error::io("lock", &path)(e)),
            }
            // Who held it before removed the file: the lock that counts is that of the file which stands there now.
            if is_still(&file, &path).map_err(Error::io("lock", &path))? {
                return Ok(Some(Lock { path, _file: file }));
            }
        }
    }

    /// A new empty folder of this process.
    pub fn draft(&self) -> Result<Draft, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let gate = self.drafts_gate()?;
        uninterrupted(|| gate.lock_shared()).map_err(Error::io("lock", self.root.join("drafts.lock")))?;
        loop {
            let path = self.root.join("drafts").join(format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
            match fs::create_dir(&path) {
                Ok(()) => {}
                // Left by a dead process that had this one's number.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(write_fault("make folder", &path)(e)),
            }
            let lock = File::open(&path).map_err(Error::io("open", &path))?;
            wait(&lock).map_err(Error::io("lock", &path))?;
            return Ok(Draft::new(path, self.clone(), lock));
        }
    }

    /// All manifests on the shelf, in the order of their keys.
    pub fn manifests(&self) -> Result<Vec<Manifest>, Error> {
        let mut found = BTreeMap::new();
        for dir in self.artifact_dirs()? {
            let key = dir.file_name().and_then(|n| n.to_str()).and_then(Key::from_hex);
            if let Some(key) = key
                && let Some(manifest) = self.manifest(&key)?
            {
                found.insert(key, manifest);
            }
        }
        Ok(found.into_values().collect())
    }

    pub(super) fn artifact_dirs(&self) -> Result<Vec<PathBuf>, Error> {
        let mut dirs = Vec::new();
        for shelf in list(&self.root.join("artifacts"))? {
            dirs.extend(list(&shelf)?);
        }
        Ok(dirs)
    }

    /// Removes drafts that no process holds.
    fn sweep(&self) -> Result<(), Error> {
        let drafts = self.root.join("drafts");
        if list(&drafts)?.is_empty() {
            return Ok(());
        }
        // While this is held, no draft stands between its creation and its lock.
        let gate = self.drafts_gate()?;
        wait(&gate).map_err(Error::io("lock", &drafts))?;
        for path in list(&drafts)? {
            let Ok(dir) = File::open(&path) else { continue };
            if dir.try_lock().is_ok() {
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                match removed {
                    Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io("remove", &path)(e)),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn drafts_gate(&self) -> Result<File, Error> {
        let path = self.root.join("drafts.lock");
        OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(write_fault("open lock", &path))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while held: whoever waits for it sees that the file is gone and opens a new one.
        let _ = fs::remove_file(&self.path);
    }
}

/// The manifest of a folder, or what is wrong with it.
pub(super) fn check(dir: &Path, key: &Key, text: &[u8]) -> Result<Manifest, String> {
    let manifest: Manifest = serde_json::from_slice(text).map_err(|e| format!("{MANIFEST} cannot be read: {e}"))?;
    if manifest.key != *key {
        return Err(format!("{MANIFEST} is that of {}", manifest.key));
    }
    if manifest.layout != LAYOUT {
        return Err(format!("{MANIFEST} has layout {}, this program has {LAYOUT}", manifest.layout));
    }
    let mut bytes = 0;
    for file in manifest.files.keys() {
        match fs::metadata(dir.join(file)) {
            Ok(m) if m.is_file() => bytes += m.len(),
            _ => return Err(format!("{file} is missing")),
        }
    }
    if bytes != manifest.bytes {
        return Err(format!("its files hold {bytes} bytes, expected {}", manifest.bytes));
    }
    Ok(manifest)
}

/// A place of the workspace that this user may not write to: a fault of the set-up, not of the case in hand.
fn write_fault(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    move |source| match source.kind() {
        ErrorKind::PermissionDenied => Error::NotWritable { doing, path: path.to_path_buf(), source },
        _ => Error::io(doing, path)(source),
    }
}

/// Waits for the exclusive lock.
pub(super) fn wait(file: &File) -> std::io::Result<()> {
    uninterrupted(|| file.lock())
}

/// A signal does not end a wait.
pub(super) fn uninterrupted(wait: impl Fn() -> std::io::Result<()>) -> std::io::Result<()> {
    loop {
        match wait() {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            other => return other,
        }
    }
}

fn is_still(file: &File, path: &Path) -> std::io::Result<bool> {
    let mine = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (mine.dev(), mine.ino())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Entries of a folder, sorted; a folder that is gone has none.
pub(super) fn list(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("list", dir)(e)),
    };
    let mut paths = entries.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>().map_err(Error::io("list", dir))?;
    paths.sort();
    Ok(paths)
}
