//! One suite that every shelf passes: what is put comes back, nothing else does, the limit holds under many threads, damage is never served,
//! and durable shelves have it all again after a restart.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use voxmill_schemas::artifact::{ContentHash, Key, Kind, Recipe};
use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;

use super::disk::Disk;
use super::nvme::Nvme;
use super::pack::{Grid, TRAILER_BYTES};
use super::ram::Ram;
use super::{Brick, Commit};
use crate::error::Error;

/// A shelf, seen as a place for named bytes.
trait Shelf: Sync {
    fn put(&self, name: &Brick, bytes: &[u8]);
    fn get(&self, name: &Brick) -> Option<Vec<u8>>;
    /// As the shelf counts it.
    fn used_bytes(&self) -> u64;
}

/// How to make one in a folder, and what it can do.
struct Make<S> {
    open: fn(&Path, u64) -> S,
    /// Bytes an entry takes beside its own.
    overhead_bytes: u64,
    is_durable: bool,
}

impl Shelf for Ram {
    fn put(&self, name: &Brick, bytes: &[u8]) {
        self.get_or_load(name, || Ok(bytes.to_vec())).unwrap();
    }
    fn get(&self, name: &Brick) -> Option<Vec<u8>> {
        self.get_or_load(name, || Err(Error::Cancelled)).ok().map(|(b, _)| b.to_vec())
    }
    fn used_bytes(&self) -> u64 {
        Ram::used_bytes(self)
    }
}

/// A layer of one row, as long as the entries of these tests may be.
impl Shelf for Nvme {
    fn put(&self, name: &Brick, bytes: &[u8]) {
        let size = Zyx::new(1, 1, bytes.len());
        Nvme::put(self, &id(name), &Grid { size, brick: size, voxel: 1 }, bytes).unwrap();
    }
    fn get(&self, name: &Brick) -> Option<Vec<u8>> {
        let (size, mut found) = (self.grid(&id(name))?.size, Vec::new());
        Nvme::read(self, &id(name), size, 1, Region::whole(size), &mut |b| found.extend_from_slice(&b.bytes[..size.x]))
            .unwrap()
            .then_some(found)
    }
    fn used_bytes(&self) -> u64 {
        self.counted_bytes()
    }
}

/// The disk shelf holds artifacts: here one of a single file, read as readers of artifacts do, against its hash.
impl Shelf for Disk {
    fn put(&self, name: &Brick, bytes: &[u8]) {
        let draft = self.draft().unwrap();
        std::fs::write(draft.path.join("brick"), bytes).unwrap();
        match draft.commit(commit(Key(id(name)))) {
            Ok(_) | Err(Error::ShelfFull { .. }) => {}
            Err(e) => panic!("{e}"),
        }
    }
    fn get(&self, name: &Brick) -> Option<Vec<u8>> {
        let key = Key(id(name));
        let manifest = self.manifest(&key).unwrap()?;
        let bytes = std::fs::read(self.dir(&key).join("brick")).unwrap();
        (ContentHash::of(&bytes) == manifest.files["brick"]).then_some(bytes)
    }
    fn used_bytes(&self) -> u64 {
        files(&self.root.join("artifacts")).iter().map(|f| f.metadata().unwrap().len()).sum()
    }
}

pub(super) fn commit<'a>(key: Key) -> Commit<'a> {
    let recipe = Recipe { stage: "test".into(), version: 1, config: serde_json::Value::Null, inputs: BTreeMap::new(), seed: 0 };
    Commit {
        key,
        kind: Kind::Files,
        case: None,
        recipe,
        input_keys: BTreeMap::new(),
        facts: Default::default(),
        content: None,
        inputs_dirs: &[],
    }
}

pub(super) fn files(root: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => out.extend(files(&entry.path())),
            false => out.push(entry.path()),
        }
    }
    out
}

/// What a name is filed under.
fn id(name: &Brick) -> [u8; 32] {
    *blake3::hash(format!("{name:?}").as_bytes()).as_bytes()
}

fn brick(i: u32) -> Brick {
    Brick { artifact: Key([3; 32]), array: 1, index: [0, 1, 2, i] }
}

fn bytes(i: u32, n: usize) -> Vec<u8> {
    (0..n).map(|k| (k as u32).wrapping_mul(i * 2 + 1) as u8).collect()
}

fn conforms<S: Shelf>(make: &Make<S>) {
    what_is_put_comes_back(make);
    putting_twice_counts_once(make);
    limit_holds_under_many_threads(make);
    if make.is_durable {
        everything_is_there_after_a_restart(make);
        damage_is_never_served(make);
    }
}

fn what_is_put_comes_back<S: Shelf>(make: &Make<S>) {
    let dir = tempfile::tempdir().unwrap();
    let shelf = (make.open)(dir.path(), 1 << 20);
    assert_eq!(shelf.get(&brick(1)), None);
    for i in 0..20 {
        shelf.put(&brick(i), &bytes(i, 1000 + i as usize));
    }
    for i in 0..20 {
        assert_eq!(shelf.get(&brick(i)), Some(bytes(i, 1000 + i as usize)));
    }
    let neighbours = [
        Brick { artifact: Key([4; 32]), ..brick(1) },
        Brick { array: 0, ..brick(1) },
        Brick { index: [1, 1, 2, 1], ..brick(1) },
        Brick { index: [0, 1, 1, 2], ..brick(1) },
    ];
    assert!(neighbours.iter().all(|n| shelf.get(n).is_none()));
}

fn putting_twice_counts_once<S: Shelf>(make: &Make<S>) {
    let dir = tempfile::tempdir().unwrap();
    let shelf = (make.open)(dir.path(), 1 << 20);
    shelf.put(&brick(1), &bytes(1, 500));
    let once = shelf.used_bytes();
    assert_eq!(once, 500 + make.overhead_bytes);
    shelf.put(&brick(1), &bytes(1, 500));
    assert_eq!(shelf.used_bytes(), once);
}

fn limit_holds_under_many_threads<S: Shelf>(make: &Make<S>) {
    let dir = tempfile::tempdir().unwrap();
    let size = 1000 + make.overhead_bytes;
    // Room for seven and a bit.
    let limit = 7 * size + size / 2;
    let shelf = (make.open)(dir.path(), limit);
    let shelf = &shelf;
    std::thread::scope(|s| {
        for t in 0..8 {
            s.spawn(move || {
                for i in 0..12 {
                    let name = (t * 5 + i * 7) % 40;
                    shelf.put(&brick(name), &bytes(name, 1000));
                    assert!(shelf.used_bytes() <= limit);
                    if let Some(found) = shelf.get(&brick(name)) {
                        assert_eq!(found, bytes(name, 1000));
                    }
                }
            });
        }
    });
    assert_eq!(shelf.used_bytes(), 7 * size, "full to the last that fits");
    shelf.put(&brick(99), &bytes(99, limit as usize + 1));
    assert_eq!(shelf.get(&brick(99)), None, "larger than the shelf");
    assert!(shelf.used_bytes() <= limit);
}

fn everything_is_there_after_a_restart<S: Shelf>(make: &Make<S>) {
    let dir = tempfile::tempdir().unwrap();
    let shelf = (make.open)(dir.path(), 1 << 20);
    for i in 0..5 {
        shelf.put(&brick(i), &bytes(i, 700));
    }
    let used = shelf.used_bytes();
    drop(shelf);
    let shelf = (make.open)(dir.path(), 1 << 20);
    assert_eq!(shelf.used_bytes(), used);
    assert!((0..5).all(|i| shelf.get(&brick(i)) == Some(bytes(i, 700))));
}

fn damage_is_never_served<S: Shelf>(make: &Make<S>) {
    for damage in
        [|b: &mut Vec<u8>| b[3] ^= 1, |b: &mut Vec<u8>| b.truncate(b.len() / 2), |b: &mut Vec<u8>| b.clear(), |b: &mut Vec<u8>| b.push(0)]
    {
        let dir = tempfile::tempdir().unwrap();
        let shelf = (make.open)(dir.path(), 1 << 20);
        shelf.put(&brick(1), &bytes(1, 700));
        for file in files(dir.path()).into_iter().filter(|f| f.metadata().unwrap().len() >= 700) {
            let mut content = std::fs::read(&file).unwrap();
            damage(&mut content);
            let _ = std::fs::remove_file(&file);
            std::fs::write(&file, content).unwrap();
        }
        let found = shelf.get(&brick(1));
        assert!(found.is_none() || found == Some(bytes(1, 700)));
    }
}

#[test]
fn ram_conforms() {
    conforms(&Make { open: |_, limit| Ram::new(limit), overhead_bytes: 0, is_durable: false });
}

#[test]
fn nvme_conforms() {
    conforms(&Make { open: |dir, limit| Nvme::open(dir, limit).unwrap(), overhead_bytes: 4 + TRAILER_BYTES as u64, is_durable: true });
}

#[test]
fn disk_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::open(dir.path(), None).unwrap();
    disk.put(&brick(0), &bytes(0, 1000));
    let manifest = disk.dir(&Key(id(&brick(0)))).join("artifact.json");
    // The manifest's length moves with nothing but the number of digits of `bytes`.
    let overhead_bytes = manifest.metadata().unwrap().len();
    let open = |dir: &Path, limit: u64| Disk::open(dir, Some(limit)).unwrap();
    what_is_put_comes_back(&Make { open, overhead_bytes, is_durable: true });
    putting_twice_counts_once(&Make { open, overhead_bytes: overhead_bytes - 1, is_durable: true });
    limit_holds_under_many_threads(&Make { open, overhead_bytes, is_durable: true });
    everything_is_there_after_a_restart(&Make { open, overhead_bytes, is_durable: true });
    damage_is_never_served(&Make { open, overhead_bytes, is_durable: true });
}
