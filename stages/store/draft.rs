//! From draft to artifact: files are hashed, made read-only and synced, the manifest is written last, the folder is renamed into place.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use voxmill_schemas::artifact::{CaseId, ContentHash, Key, Kind, Manifest, Recipe};

use super::disk::{Disk, LAYOUT, MANIFEST, list};
use super::ledger::Ledger;
use crate::error::Error;

/// An artifact in the making: a folder that a dead process cannot keep (its lock is gone) and that is dropped unless committed.
#[derive(Debug)]
pub struct Draft {
    pub path: PathBuf,
    disk: Disk,
    /// The locked folder itself.
    _lock: File,
}

/// What makes a draft an artifact.
#[derive(Clone, Debug)]
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

/// Threads that only wait for the disk.
const SYNCS_AT_ONCE: usize = 16;

/// A file of a draft, hashed and read-only.
struct Sealed {
    name: String,
    hash: ContentHash,
    bytes: u64,
    /// Hard link into an artifact that came in.
    is_shared: bool,
}

/// A file whose bytes were hashed while they were written.
#[derive(Debug)]
pub struct Hashed {
    /// In its folder.
    pub name: String,
    pub bytes: u64,
    pub hash: ContentHash,
}

/// Stands in a folder of a draft until it is committed: the hashes of files beside it, which are not read again for them.
const HASHED: &str = ".hashed";

/// Leaves the hashes of files in their folder, for the commit.
pub fn note_hashes(folder: &Path, files: &[Hashed]) -> Result<(), Error> {
    let path = folder.join(HASHED);
    let lines: String = files.iter().map(|f| format!("{} {} {}\n", f.hash.hex(), f.bytes, f.name)).collect();
    fs::write(&path, lines).map_err(Error::io("write", &path))
}

/// Takes them out again: path → bytes and hash.
fn noted_hashes(path: &Path) -> Result<HashMap<PathBuf, (u64, ContentHash)>, Error> {
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    fs::remove_file(path).map_err(Error::io("remove", path))?;
    let parse = |line: &str| {
        let mut parts = line.splitn(3, ' ');
        let (hash, bytes) = (ContentHash::from_hex(parts.next()?)?, parts.next()?.parse().ok()?);
        Some((path.with_file_name(parts.next()?), (bytes, hash)))
    };
    Ok(text.lines().filter_map(parse).collect())
}

impl Draft {
    pub(super) fn new(path: PathBuf, disk: Disk, lock: File) -> Self {
        Self { path, disk, _lock: lock }
    }

    /// Hashes and syncs the files, writes the manifest last, renames the folder into place. Where the key already stands there, that artifact wins.
    pub fn commit(self, c: Commit) -> Result<Manifest, Error> {
        let (files, folders) = walk(&self.path)?;
        let mut noted = HashMap::new();
        let (notes, files): (Vec<_>, Vec<_>) = files.into_iter().partition(|f| Path::new(f).file_name() == Some(HASHED.as_ref()));
        for note in notes {
            noted.extend(noted_hashes(&self.path.join(note))?);
        }
        let known = hashes_by_inode(c.inputs_dirs);
        let sealed = files.par_iter().map(|f| seal(&self.path, f, &known, &noted)).collect::<Result<Vec<_>, _>>()?;
        let manifest = Manifest {
            key: c.key,
            content: c.content.unwrap_or_else(|| content(&sealed)),
            kind: c.kind,
            case: c.case,
            recipe: c.recipe,
            input_keys: c.input_keys,
            facts: c.facts,
            files: sealed.iter().map(|f| (f.name.clone(), f.hash)).collect(),
            bytes: sealed.iter().map(|f| f.bytes).sum(),
            layout: LAYOUT,
        };
        let mut text = serde_json::to_vec_pretty(&manifest).expect("a manifest is plain data");
        text.push(b'\n');
        let path = self.path.join(MANIFEST);
        fs::write(&path, &text).map_err(Error::io("write", &path))?;
        make_read_only(&path)?;
        let own_files = sealed.iter().filter(|f| !f.is_shared).map(|f| self.path.join(&f.name));
        sync_all(&own_files.chain([path]).chain(folders).collect::<Vec<_>>())?;
        let own = sealed.iter().filter(|f| !f.is_shared).map(|f| f.bytes).sum::<u64>() + text.len() as u64;
        self.publish(manifest, own)
    }

    /// - `own_bytes`: what the artifact adds to the shelf
    fn publish(mut self, manifest: Manifest, own_bytes: u64) -> Result<Manifest, Error> {
        let disk = self.disk.clone();
        let target = disk.dir(&manifest.key);
        let shelf = target.parent().expect("an artifact stands in a folder of its shelf");
        let is_new_shelf = !shelf.exists();
        fs::create_dir_all(shelf).map_err(Error::io("make folder", shelf))?;
        let room = disk.limit_bytes.map(|limit| Room::reserve(&disk, limit, own_bytes)).transpose()?;
        let mut replaced = false;
        while let Err(e) = fs::rename(&self.path, &target) {
            if !matches!(e.kind(), ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty) {
                return Err(Error::io("publish", &target)(e));
            }
            if let Some(theirs) = disk.manifest(&manifest.key)? {
                if let Some(room) = room {
                    room.give_back();
                }
                return Ok(theirs);
            }
            // What stands there is damaged: out of the way first, so that it never mixes with the new files.
            let aside = self.path.with_extension("damaged");
            fs::rename(&target, &aside).map_err(Error::io("move aside", &target))?;
            let _ = fs::remove_dir_all(&aside);
            replaced = true;
        }
        // The folder has moved: nothing to drop.
        self.path = PathBuf::new();
        if let Some(room) = room {
            room.take(replaced);
        }
        let parents = [shelf.to_path_buf(), disk.root.join("artifacts")];
        sync_all(&parents[..if is_new_shelf { 2 } else { 1 }])?;
        Ok(manifest)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Room on a limited shelf, held while a folder moves in. An early drop leaves the ledger open, so that the next commit counts anew.
struct Room {
    ledger: Ledger,
    before_bytes: u64,
    own_bytes: u64,
}

impl Room {
    fn reserve(disk: &Disk, limit_bytes: u64, own_bytes: u64) -> Result<Self, Error> {
        let path = disk.root.join("usage");
        let ledger = Ledger::lock(&path)?;
        let fits = |used: u64| used.checked_add(own_bytes).is_some_and(|sum| sum <= limit_bytes);
        let mut used_bytes = ledger.used_bytes().filter(|used| fits(*used));
        if used_bytes.is_none() {
            // Not settled, or full: someone may have removed artifacts by hand.
            used_bytes = Some(count(disk)?);
        }
        let before_bytes = used_bytes.expect("counted above");
        if !fits(before_bytes) {
            ledger.settle(before_bytes).map_err(Error::io("write", &path))?;
            return Err(Error::ShelfFull { shelf: "disk", used_bytes: before_bytes, limit_bytes, wanted_bytes: own_bytes });
        }
        ledger.begin().map_err(Error::io("write", &path))?;
        Ok(Self { ledger, before_bytes, own_bytes })
    }

    /// The folder has moved in; `replaced`: over another whose size nobody knows. A ledger that cannot be written stays open.
    fn take(self, replaced: bool) {
        if !replaced {
            let _ = self.ledger.settle(self.before_bytes + self.own_bytes);
        }
    }

    fn give_back(self) {
        let _ = self.ledger.settle(self.before_bytes);
    }
}

/// Bytes of all files under `artifacts/`, hard links counted once.
pub(super) fn count(disk: &Disk) -> Result<u64, Error> {
    count_of(disk.artifact_dirs()?.into_iter())
}

/// The same of these folders.
pub(super) fn count_of(dirs: impl Iterator<Item = PathBuf>) -> Result<u64, Error> {
    let mut seen = HashSet::new();
    let mut bytes = 0;
    for dir in dirs {
        for file in walk(&dir)?.0 {
            let Ok(m) = fs::metadata(dir.join(&file)) else { continue };
            if seen.insert((m.dev(), m.ino())) {
                bytes += m.len();
            }
        }
    }
    Ok(bytes)
}

/// Files by relative path with `/`, sorted, and all folders with `root` last.
fn walk(root: &Path) -> Result<(Vec<String>, Vec<PathBuf>), Error> {
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for path in list(&dir)? {
            let kind = fs::symlink_metadata(&path).map_err(Error::io("look at", &path))?.file_type();
            let name = path.strip_prefix(root).expect("listed below root").to_str();
            match name {
                _ if kind.is_dir() => todo.push(path),
                Some(name) if kind.is_file() => files.push(name.to_string()),
                _ => {
                    return Err(Error::io("take", &path)(std::io::Error::new(
                        ErrorKind::InvalidInput,
                        "not a plain file with a UTF-8 name",
                    )));
                }
            }
        }
        folders.push(dir);
    }
    files.sort();
    folders.reverse();
    Ok((files, folders))
}

/// (device, inode) → hash of every file that came in.
fn hashes_by_inode(inputs: &[(PathBuf, Arc<Manifest>)]) -> HashMap<(u64, u64), ContentHash> {
    let mut known = HashMap::new();
    for (dir, manifest) in inputs {
        for (file, hash) in &manifest.files {
            if let Ok(m) = fs::metadata(dir.join(file)) {
                known.insert((m.dev(), m.ino()), *hash);
            }
        }
    }
    known
}

fn seal(
    root: &Path,
    name: &str,
    known: &HashMap<(u64, u64), ContentHash>,
    noted: &HashMap<PathBuf, (u64, ContentHash)>,
) -> Result<Sealed, Error> {
    let path = root.join(name);
    let found = fs::metadata(&path).map_err(Error::io("look at", &path))?;
    let (name, bytes) = (name.to_string(), found.len());
    if found.nlink() > 1
        && let Some(hash) = known.get(&(found.dev(), found.ino()))
    {
        return Ok(Sealed { name, hash: *hash, bytes, is_shared: true });
    }
    let hash = match noted.get(&path) {
        Some((length, hash)) if *length == bytes => *hash,
        _ => {
            let file = File::open(&path).map_err(Error::io("open", &path))?;
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(&file).map_err(Error::io("read", &path))?;
            ContentHash(*hasher.finalize().as_bytes())
        }
    };
    // A file with more names may belong to someone else.
    if found.nlink() == 1 {
        make_read_only(&path)?;
    }
    Ok(Sealed { name, hash, bytes, is_shared: false })
}

pub(super) fn make_read_only(path: &Path) -> Result<(), Error> {
    fs::set_permissions(path, Permissions::from_mode(0o444)).map_err(Error::io("make read-only", path))
}

/// Syncs files and folders all at once: a journal makes one entry of syncs that come together, and one for each that comes alone.
fn sync_all(paths: &[PathBuf]) -> Result<(), Error> {
    let sync = |path: &PathBuf| File::open(path).and_then(|f| f.sync_all()).map_err(Error::io("sync", path));
    let workers = paths.len().min(SYNCS_AT_ONCE);
    std::thread::scope(|scope| {
        let mine = |worker: usize| paths.iter().skip(worker).step_by(workers);
        let spawned: Vec<_> = (1..workers).map(|worker| scope.spawn(move || mine(worker).try_for_each(sync))).collect();
        let here = mine(0).try_for_each(sync);
        spawned.into_iter().fold(here, |all, one| all.and(one.join().expect("syncing does not panic")))
    })
}

/// Hash over relative paths and the hashes of their files.
fn content(files: &[Sealed]) -> ContentHash {
    let mut h = blake3::Hasher::new();
    for f in files {
        h.update(&(f.name.len() as u64).to_le_bytes());
        h.update(f.name.as_bytes());
        h.update(&f.hash.0);
    }
    ContentHash(*h.finalize().as_bytes())
}

/// Gives `to` the bytes of `from` without copying where the file system allows.
pub fn link(from: &Path, to: &Path) -> Result<(), Error> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        // Another file system, one without links, or too many of them.
        Err(e)
            if matches!(
                e.kind(),
                ErrorKind::CrossesDevices | ErrorKind::PermissionDenied | ErrorKind::Unsupported | ErrorKind::TooManyLinks
            ) =>
        {
            fs::copy(from, to).map(|_| ()).map_err(Error::io("copy to", to))
        }
        Err(e) => Err(Error::io("link to", to)(e)),
    }
}
