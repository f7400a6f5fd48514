//! What may leave the disk shelf and what may not. A process *holds* the artifacts it works with for as long as it lives, people *pin* artifacts, and
//! whoever cleans up names the rest that counts; all of these stay together with what they were made from. Verification stands here, too.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rayon::prelude::*;
use voxmill_schemas::artifact::{ContentHash, Key, Manifest};

use super::disk::{self, Disk, MANIFEST, list, uninterrupted, wait};
use super::draft;
use super::ledger::Ledger;
use crate::error::Error;

/// The keys that this process holds: a file of its own under `holds/`, locked while it lives.
#[derive(Debug, Default)]
pub(super) struct Holds(Mutex<Option<(File, HashSet<Key>)>>);

/// An artifact that a person wants to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    pub key: Key,
    /// What it was called when it was pinned.
    pub label: String,
}

/// What a sweep takes away, or would.
#[derive(Clone, Debug, Default)]
pub struct Swept {
    pub removed: Vec<Manifest>,
    /// Folders that were no whole artifact.
    pub broken: usize,
    /// Bytes that the shelf holds less.
    pub freed_bytes: u64,
    pub left_bytes: u64,
    /// Left because a running process works with them.
    pub held: usize,
    /// Left because they are younger than asked.
    pub young: usize,
}

impl Disk {
    /// Says that this process works with an artifact, made or about to be made: no sweep takes it until the process has ended. Costs a lock and a write of
    /// 32 bytes, once a key.
    pub(super) fn hold(&self, holds: &Holds, key: &Key) -> Result<(), Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut held = holds.0.lock().expect("no thread panics while it holds the list");
        if held.as_ref().is_some_and(|(_, keys)| keys.contains(key)) {
            return Ok(());
        }
        let gate = self.sweep_gate()?;
        uninterrupted(|| gate.lock_shared()).map_err(Error::io("lock", self.root.join("sweep.lock")))?;
        let (file, keys) = match &mut *held {
            Some(held) => held,
            None => {
                let folder = self.root.join("holds");
                let path = folder.join(format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
                fs::create_dir_all(&folder).map_err(Error::io("make folder", &folder))?;
                let file = OpenOptions::new().create(true).write(true).truncate(true).open(&path).map_err(Error::io("open", &path))?;
                wait(&file).map_err(Error::io("lock", &path))?;
                held.insert((file, HashSet::new()))
            }
        };
        file.write_all(&key.0).map_err(Error::io("write", self.root.join("holds")))?;
        keys.insert(*key);
        Ok(())
    }

    /// What living processes hold. Called behind the gate; the lists of dead ones go.
    fn held(&self) -> Result<BTreeSet<Key>, Error> {
        let mut out = BTreeSet::new();
        for path in list(&self.root.join("holds"))? {
            let Ok(file) = File::open(&path) else { continue };
            if file.try_lock().is_ok() {
                let _ = fs::remove_file(&path);
                continue;
            }
            let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
            out.extend(bytes.as_chunks::<32>().0.iter().map(|key| Key(*key)));
        }
        Ok(out)
    }

    /// Those of `keys` that living processes work with, this one apart from what it holds itself.
    pub fn in_use(&self, keys: &BTreeSet<Key>) -> Result<BTreeSet<Key>, Error> {
        let gate = self.sweep_gate()?;
        wait(&gate).map_err(Error::io("lock", self.root.join("sweep.lock")))?;
        Ok(self.held()?.intersection(keys).copied().collect())
    }

    /// Exclusive for sweeps, shared for holds: between the moment a sweep reads the lists and its last rename nobody starts to work with anything.
    fn sweep_gate(&self) -> Result<File, Error> {
        let path = self.root.join("sweep.lock");
        OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(Error::io("open lock", &path))
    }

    /// Keeps an artifact, and what it was made from, from every sweep.
    pub fn pin(&self, pin: &Pin) -> Result<(), Error> {
        let folder = self.root.join("pins");
        fs::create_dir_all(&folder).map_err(Error::io("make folder", &folder))?;
        let (path, beside) = (folder.join(pin.key.hex()), folder.join(format!(".{}", std::process::id())));
        fs::write(&beside, &pin.label).map_err(Error::io("write", &beside))?;
        fs::rename(&beside, &path).map_err(Error::io("write", &path))
    }

    /// Whether there was such a pin.
    pub fn unpin(&self, key: &Key) -> Result<bool, Error> {
        let path = self.root.join("pins").join(key.hex());
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::io("remove", &path)(e)),
        }
    }

    /// In the order of their keys.
    pub fn pins(&self) -> Result<Vec<Pin>, Error> {
        let named = |path: PathBuf| {
            let key = Key::from_hex(path.file_name()?.to_str()?)?;
            Some(Pin { key, label: fs::read_to_string(&path).unwrap_or_default() })
        };
        Ok(list(&self.root.join("pins"))?.into_iter().filter_map(named).collect())
    }

    /// Bytes of all artifacts, hard links counted once.
    pub fn used_bytes(&self) -> Result<u64, Error> {
        draft::count(self)
    }

    /// What is wrong with an artifact: every file is read and hashed. `None` where it is as it was written.
    pub fn verify(&self, manifest: &Manifest) -> Option<String> {
        let dir = self.dir(&manifest.key);
        let wrong = |(name, wanted): (&String, &ContentHash)| -> Option<String> {
            let mut hasher = blake3::Hasher::new();
            match File::open(dir.join(name)).and_then(|f| hasher.update_reader(f).map(|_| ())) {
                Err(e) => Some(format!("{name} cannot be read: {}", e.kind())),
                Ok(()) if hasher.finalize().as_bytes() != &wanted.0 => Some(format!("{name} holds other bytes than were written")),
                Ok(()) => None,
            }
        };
        manifest.files.par_iter().find_map_first(wrong)
    }

    /// Folders that are no whole artifact, with the reason.
    pub fn broken(&self) -> Result<BTreeMap<PathBuf, String>, Error> {
        let mut out = BTreeMap::new();
        for dir in self.artifact_dirs()? {
            let key = dir.file_name().and_then(|n| n.to_str()).and_then(Key::from_hex);
            let what = match key {
                None => Some("its name is no key".to_string()),
                Some(key) => match fs::read(dir.join(MANIFEST)) {
                    Err(e) => Some(format!("{MANIFEST} cannot be read: {}", e.kind())),
                    Ok(text) => disk::check(&dir, &key, &text).err(),
                },
            };
            out.extend(what.map(|what| (dir, what)));
        }
        Ok(out)
    }

    /// Takes these artifacts off the shelf whatever they are: what is damaged and made again, what must be forgotten. Gives the bytes that this freed.
    pub fn remove(&self, keys: &BTreeSet<Key>) -> Result<u64, Error> {
        let gate = self.sweep_gate()?;
        wait(&gate).map_err(Error::io("lock", self.root.join("sweep.lock")))?;
        let dirs: Vec<PathBuf> = keys.iter().map(|k| self.dir(k)).collect();
        let before = self.used_bytes()?;
        self.take_away(&dirs)?;
        Ok(before.saturating_sub(self.used_bytes()?))
    }

    /// Removes what neither `roots`, pins nor living processes need: an artifact is needed where one of these is made from it, over any number of steps.
    /// - `roots`: what the caller wants to keep (the newest of every node and case)
    /// - `older_than`: what was written later than that ago stays as well
    /// - `dry`: say what would go, and leave it
    pub fn sweep_artifacts(&self, roots: &BTreeSet<Key>, older_than: Duration, dry: bool) -> Result<Swept, Error> {
        let gate = self.sweep_gate()?;
        wait(&gate).map_err(Error::io("lock", self.root.join("sweep.lock")))?;
        let held = self.held()?;
        let manifests: BTreeMap<Key, Manifest> = self.manifests()?.into_iter().map(|m| (m.key, m)).collect();
        let pinned = self.pins()?.into_iter().map(|p| p.key);
        let wanted = with_all_behind(&manifests, roots.iter().copied().chain(pinned));
        let in_use = with_all_behind(&manifests, held.iter().copied());
        let mut swept = Swept::default();
        let (mut dirs, mut removed) = (Vec::new(), Vec::new());
        for m in manifests.into_values() {
            let dir = self.dir(&m.key);
            if wanted.contains(&m.key) {
                continue;
            } else if in_use.contains(&m.key) {
                swept.held += 1;
            } else if age(&dir).is_none_or(|age| age < older_than) {
                swept.young += 1;
            } else {
                dirs.push(dir);
                removed.push(m);
            }
        }
        // A key that is held may be just being replaced.
        let broken = self.broken()?.into_keys().filter(|d| !held.iter().any(|k| self.dir(k) == *d)).collect::<Vec<_>>();
        swept.broken = broken.len();
        dirs.extend(broken);
        let before = self.used_bytes()?;
        if dry {
            let staying = |dir: &PathBuf| !dirs.contains(dir);
            swept.left_bytes = draft::count_of(self.artifact_dirs()?.into_iter().filter(staying))?;
        } else {
            self.take_away(&dirs)?;
            swept.left_bytes = self.used_bytes()?;
        }
        swept.freed_bytes = before.saturating_sub(swept.left_bytes);
        swept.removed = removed;
        Ok(swept)
    }

    /// Out of sight by one rename each, then removed; the ledger is counted anew. What a crash leaves lies among the drafts and is swept there.
    fn take_away(&self, dirs: &[PathBuf]) -> Result<(), Error> {
        let path = self.root.join("usage");
        let ledger = Ledger::lock(&path)?;
        ledger.begin().map_err(Error::io("write", &path))?;
        let trash = self.draft()?;
        for (i, dir) in dirs.iter().enumerate() {
            match fs::rename(dir, trash.path.join(i.to_string())) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("remove", dir)(e)),
            }
        }
        drop(trash);
        ledger.settle(self.used_bytes()?).map_err(Error::io("write", &path))
    }
}

/// The artifacts and everything they were made from.
fn with_all_behind(manifests: &BTreeMap<Key, Manifest>, of: impl Iterator<Item = Key>) -> BTreeSet<Key> {
    let mut todo: Vec<Key> = of.collect();
    let mut out = BTreeSet::new();
    while let Some(key) = todo.pop() {
        if out.insert(key) {
            todo.extend(manifests.get(&key).into_iter().flat_map(|m| m.input_keys.values().flatten()));
        }
    }
    out
}

/// How long ago it was written; `None` where the clock was set back since.
fn age(dir: &std::path::Path) -> Option<Duration> {
    let written = fs::metadata(dir.join(MANIFEST)).and_then(|m| m.modified()).ok()?;
    SystemTime::now().duration_since(written).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::artifact::{Kind, Recipe};

    use super::*;
    use crate::store::{Commit, Limits, Store};

    fn store(dir: &std::path::Path) -> Store {
        Store::open(&Limits { disk_dir: dir.into(), ..Limits::default() }).unwrap()
    }

    /// An artifact of 1,000 bytes made from others.
    fn make(store: &Store, name: &str, from: &[Key]) -> Key {
        let recipe = Recipe { stage: name.into(), version: 1, config: serde_json::Value::Null, inputs: BTreeMap::new(), seed: 0 };
        let draft = store.disk.draft().unwrap();
        fs::write(draft.path.join("data"), name.repeat(1000 / name.len())).unwrap();
        let key = recipe.key();
        let input_keys = BTreeMap::from([("in".to_string(), from.to_vec())]);
        let commit =
            Commit { key, kind: Kind::Files, case: None, recipe, input_keys, facts: Default::default(), content: None, inputs_dirs: &[] };
        draft.commit(commit).unwrap();
        key
    }

    fn sweep(store: &Store, roots: &[Key]) -> Swept {
        store.disk.sweep_artifacts(&roots.iter().copied().collect(), Duration::ZERO, false).unwrap()
    }

    fn is_there(store: &Store, key: &Key) -> bool {
        store.disk.manifest(key).unwrap().is_some()
    }

    #[test]
    fn a_sweep_leaves_roots_pins_and_what_they_were_made_from() {
        let dir = tempfile::tempdir().unwrap();
        let s = store(dir.path());
        let first = make(&s, "a", &[]);
        let second = make(&s, "b", &[first]);
        let old = make(&s, "c", &[first]);
        let (pinned_base, lone) = (make(&s, "d", &[]), make(&s, "e", &[]));
        let pinned = make(&s, "f", &[pinned_base]);
        s.disk.pin(&Pin { key: pinned, label: "the good one".into() }).unwrap();
        let before = s.disk.used_bytes().unwrap();
        let dry = s.disk.sweep_artifacts(&BTreeSet::from([second]), Duration::ZERO, true).unwrap();
        assert_eq!((dry.removed.len(), s.disk.used_bytes().unwrap()), (2, before));
        let swept = sweep(&s, &[second]);
        assert_eq!((swept.freed_bytes, swept.left_bytes), (dry.freed_bytes, dry.left_bytes));
        assert_eq!(swept.freed_bytes + swept.left_bytes, before);
        assert!([first, second, pinned, pinned_base].iter().all(|k| is_there(&s, k)));
        assert!([old, lone].iter().all(|k| !is_there(&s, k)));
        assert_eq!(s.disk.pins().unwrap(), [Pin { key: pinned, label: "the good one".into() }]);
        assert!(s.disk.unpin(&pinned).unwrap() && !s.disk.unpin(&pinned).unwrap());
        assert_eq!(sweep(&s, &[second]).removed.len(), 2);
    }

    #[test]
    fn what_a_living_process_works_with_stays_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let (mine, theirs) = (store(dir.path()), store(dir.path()));
        let base = make(&mine, "a", &[]);
        let used = make(&mine, "b", &[base]);
        theirs.hold(&used).unwrap();
        assert_eq!(sweep(&mine, &[]).held, 2);
        // Held before it is made: there is no moment in which a sweep could take it.
        let coming = Recipe { stage: "z".into(), version: 1, config: serde_json::Value::Null, inputs: BTreeMap::new(), seed: 0 }.key();
        theirs.hold(&coming).unwrap();
        assert_eq!(make(&theirs, "z", &[]), coming);
        assert_eq!((sweep(&mine, &[]).held, is_there(&mine, &coming)), (3, true));
        drop(theirs);
        assert_eq!((sweep(&mine, &[]).removed.len(), mine.disk.used_bytes().unwrap()), (3, 0));
    }

    #[test]
    fn what_is_young_stays_and_what_is_broken_goes() {
        let dir = tempfile::tempdir().unwrap();
        let s = store(dir.path());
        let (young, broken) = (make(&s, "a", &[]), make(&s, "b", &[]));
        fs::remove_file(s.disk.dir(&broken).join("data")).unwrap();
        let swept = s.disk.sweep_artifacts(&BTreeSet::new(), Duration::from_secs(3600), false).unwrap();
        assert_eq!((swept.young, swept.broken, is_there(&s, &young)), (1, 1, true));
        assert!(!s.disk.dir(&broken).exists());
    }

    #[test]
    fn a_changed_byte_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let s = store(dir.path());
        let key = make(&s, "a", &[]);
        let manifest = s.disk.manifest(&key).unwrap().unwrap();
        assert_eq!(s.disk.verify(&manifest), None);
        let path = s.disk.dir(&key).join("data");
        let mut bytes = fs::read(&path).unwrap();
        bytes[500] ^= 1;
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        assert!(s.disk.verify(&manifest).unwrap().contains("data"));
        assert!(s.disk.broken().unwrap().is_empty(), "its length is right");
        assert!(s.disk.remove(&BTreeSet::from([key])).unwrap() > 1000);
    }

    #[test]
    fn a_limit_counts_what_a_sweep_has_freed() {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { disk_dir: dir.path().into(), disk_bytes: Some(6_000), ..Limits::default() };
        let s = Store::open(&limits).unwrap();
        for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            make(&s, name, &[]);
            sweep(&s, &[]);
        }
        assert_eq!(s.disk.used_bytes().unwrap(), 0);
    }
}
