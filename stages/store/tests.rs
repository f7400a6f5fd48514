//! Promises of the disk shelf: commits are whole or absent, the dead leave nothing, the living keep theirs, one maker a key.

use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use voxmill_schemas::artifact::{ContentHash, Key, Manifest};

use super::conformance::{commit, files};
use super::{Disk, Draft, Limits, Store, link};
use crate::error::Error;

fn open(dir: &Path) -> Disk {
    Disk::open(dir, None).unwrap()
}

fn key(i: u8) -> Key {
    Key([i; 32])
}

fn drafted(disk: &Disk, files: &[(&str, &[u8])]) -> Draft {
    let draft = disk.draft().unwrap();
    for (name, bytes) in files {
        let path = draft.path.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    draft
}

/// Runs one test of this binary in a process of its own, in which `VOXMILL_TEST_STORE` names the folder of the store.
fn spawn(test: &str, dir: &Path) -> Child {
    let mut c = Command::new(std::env::current_exe().unwrap());
    let test = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    c.args(["--exact", &test, "--nocapture", "--test-threads=1"]).env("VOXMILL_TEST_STORE", dir).stdout(Stdio::piped());
    c.spawn().unwrap()
}

/// `None` in the parent, where the test has nothing to do by itself.
fn child_dir() -> Option<PathBuf> {
    std::env::var_os("VOXMILL_TEST_STORE").map(PathBuf::from)
}

fn wait_for_line(child: &mut Child, word: &str) -> String {
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    lines.map(Result::unwrap).find_map(|l| Some(l[l.rfind(word)?..].to_string())).unwrap()
}

#[test]
fn a_commit_is_read_only_named_and_whole() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    let draft = drafted(&disk, &[("b/c", b"two"), ("a", b"one")]);
    let at = draft.path.clone();
    let made = draft.commit(commit(key(1))).unwrap();
    assert!(!at.exists());
    assert_eq!(made.files.keys().collect::<Vec<_>>(), ["a", "b/c"]);
    assert_eq!(made.files["a"], ContentHash::of(b"one"));
    assert_eq!(made.bytes, 6);
    let back = disk.manifest(&key(1)).unwrap().unwrap();
    assert_eq!((back.content, back.files, back.bytes), (made.content, made.files, made.bytes));
    for f in files(&disk.dir(&key(1))) {
        assert_eq!(f.metadata().unwrap().permissions().mode() & 0o222, 0, "{}", f.display());
    }
    assert_eq!(disk.manifests().unwrap().len(), 1);
}

#[test]
fn content_speaks_of_names_and_bytes_alone() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    let content = |i: u8, files: &[(&str, &[u8])]| drafted(&disk, files).commit(commit(key(i))).unwrap().content;
    let first = content(1, &[("a", b"1"), ("b", b"2")]);
    assert_eq!(content(2, &[("b", b"2"), ("a", b"1")]), first);
    assert_ne!(content(3, &[("a", b"2"), ("b", b"1")]), first);
    assert_ne!(content(4, &[("a", b"1"), ("c", b"2")]), first);
    let given = ContentHash::of(b"rows");
    let draft = drafted(&disk, &[("a", b"1")]);
    assert_eq!(draft.commit(super::Commit { content: Some(given), ..commit(key(5)) }).unwrap().content, given);
}

#[test]
fn a_dropped_draft_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    let draft = drafted(&disk, &[("a/b/c", b"x")]);
    assert_eq!(files(&dir.path().join("drafts")).len(), 1);
    drop(draft);
    assert_eq!(std::fs::read_dir(dir.path().join("drafts")).unwrap().count(), 0);
}

#[test]
fn the_artifact_that_stands_there_wins() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    let (slow, fast) = (drafted(&disk, &[("a", b"slow")]), drafted(&disk, &[("a", b"fast")]));
    let first = fast.commit(commit(key(1))).unwrap();
    let second = slow.commit(commit(key(1))).unwrap();
    assert_eq!(second.content, first.content);
    assert_eq!(std::fs::read(disk.dir(&key(1)).join("a")).unwrap(), b"fast");
    assert_eq!(std::fs::read_dir(dir.path().join("drafts")).unwrap().count(), 0);
}

#[test]
fn a_shared_file_is_linked_and_not_hashed_again() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    let mut up = drafted(&disk, &[("0/c", b"voxels")]).commit(commit(key(1))).unwrap();
    let up_dir = disk.dir(&key(1));
    // A hash that the bytes do not have shows that nobody looked at them.
    let told = ContentHash::of(b"as the manifest says");
    up.files.insert("0/c".into(), told);
    let draft = drafted(&disk, &[("labels", b"new")]);
    std::fs::create_dir(draft.path.join("0")).unwrap();
    link(&up_dir.join("0/c"), &draft.path.join("0/c")).unwrap();
    let inputs = [(up_dir.clone(), Arc::new(up))];
    let made = draft.commit(super::Commit { inputs_dirs: &inputs, ..commit(key(2)) }).unwrap();
    assert_eq!(made.files["0/c"], told);
    let inode = |p: PathBuf| p.metadata().unwrap().ino();
    assert_eq!(inode(up_dir.join("0/c")), inode(disk.dir(&key(2)).join("0/c")));
}

#[test]
fn shared_bytes_count_once_against_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let big = vec![7; 100_000];
    let disk = Disk::open(dir.path(), Some(110_000)).unwrap();
    let up = drafted(&disk, &[("big", &big)]).commit(commit(key(1))).unwrap();
    let inputs = [(disk.dir(&key(1)), Arc::new(up))];
    let draft = drafted(&disk, &[("small", b"x")]);
    link(&inputs[0].0.join("big"), &draft.path.join("big")).unwrap();
    draft.commit(super::Commit { inputs_dirs: &inputs, ..commit(key(2)) }).unwrap();
    let refused = drafted(&disk, &[("big", &big)]).commit(commit(key(3)));
    assert!(matches!(refused, Err(Error::ShelfFull { shelf: "disk", limit_bytes: 110_000, .. })), "{refused:?}");
    // Room made by hand is found.
    std::fs::remove_dir_all(disk.dir(&key(1))).unwrap();
    std::fs::remove_dir_all(disk.dir(&key(2))).unwrap();
    drafted(&disk, &[("big", &big)]).commit(commit(key(3))).unwrap();
}

#[test]
fn the_limit_is_exact_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    drafted(&disk, &[("a", &[1; 500])]).commit(commit(key(1))).unwrap();
    let size: u64 = files(&disk.dir(&key(1))).iter().map(|f| f.metadata().unwrap().len()).sum();
    for (limit, fits) in [(2 * size, true), (2 * size - 1, false)] {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path(), Some(limit)).unwrap();
        drafted(&disk, &[("a", &[1; 500])]).commit(commit(key(1))).unwrap();
        assert_eq!(drafted(&disk, &[("a", &[1; 500])]).commit(commit(key(2))).is_ok(), fits);
    }
}

#[test]
fn a_damaged_artifact_is_absent_and_made_again() {
    let damages: [fn(&Path); 5] = [
        |d| std::fs::remove_file(d.join("artifact.json")).unwrap(),
        |d| rewrite(&d.join("artifact.json"), |b| b.truncate(b.len() / 2)),
        |d| rewrite(&d.join("artifact.json"), |b| *b = String::from_utf8_lossy(b).replace("0101", "0202").into_bytes()),
        |d| std::fs::remove_file(d.join("a")).unwrap(),
        |d| rewrite(&d.join("a"), |b| b.truncate(1)),
    ];
    for (i, damage) in damages.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let disk = open(dir.path());
        drafted(&disk, &[("a", b"one")]).commit(commit(key(1))).unwrap();
        damage(&disk.dir(&key(1)));
        assert!(disk.manifest(&key(1)).unwrap().is_none(), "damage {i}");
        assert!(disk.manifests().unwrap().is_empty());
        drafted(&disk, &[("a", b"one")]).commit(commit(key(1))).unwrap();
        assert!(disk.manifest(&key(1)).unwrap().is_some());
        assert_eq!(std::fs::read_dir(dir.path().join("drafts")).unwrap().count(), 0);
    }
}

fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn links_out_of_a_draft_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let draft = drafted(&open(dir.path()), &[]);
    std::os::unix::fs::symlink("/etc/hostname", draft.path.join("a")).unwrap();
    assert!(draft.commit(commit(key(1))).is_err());
}

#[test]
fn child_holds_a_draft() {
    let Some(dir) = child_dir() else { return };
    let disk = open(&dir);
    let _lock = disk.lock(&key(9)).unwrap();
    let draft = drafted(&disk, &[("half", b"written")]);
    println!("draft {}", draft.path.display());
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn drafts_of_the_dead_are_swept_and_those_of_the_living_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = spawn("child_holds_a_draft", dir.path());
    let theirs = PathBuf::from(wait_for_line(&mut child, "draft ").strip_prefix("draft ").unwrap());
    let mine = drafted(&open(dir.path()), &[("a", b"x")]);
    // Opened again, by this process and while the other lives: nobody loses a draft.
    let disk = open(dir.path());
    assert!(theirs.join("half").exists() && mine.path.join("a").exists());
    child.kill().unwrap();
    child.wait().unwrap();
    // The lock of the dead is free.
    drop(disk.lock(&key(9)).unwrap());
    open(dir.path());
    assert!(!theirs.exists() && mine.path.join("a").exists());
    drop(mine);
    assert_eq!(files(dir.path()).len(), 1, "only the gate of the drafts is left: {:?}", files(dir.path()));
}

/// Makes what is missing of a few artifacts, as the engine does, and says how many it made.
fn make_missing(disk: &Disk) -> u64 {
    let mut made = 0;
    for i in 0..20 {
        let key = key(i);
        if disk.manifest(&key).unwrap().is_some() {
            continue;
        }
        let _lock = disk.lock(&key).unwrap();
        if disk.manifest(&key).unwrap().is_some() {
            continue;
        }
        let draft = drafted(disk, &[("a", &[i; 1000])]);
        std::thread::sleep(Duration::from_millis(2));
        draft.commit(commit(key)).unwrap();
        made += 1;
    }
    made
}

#[test]
fn child_makes_what_is_missing() {
    let Some(dir) = child_dir() else { return };
    println!("made {}", make_missing(&open(&dir)));
}

#[test]
fn processes_and_threads_make_each_artifact_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut children = [(); 2].map(|()| spawn("child_makes_what_is_missing", dir.path()));
    let made = AtomicU64::new(0);
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| made.fetch_add(make_missing(&open(dir.path())), Ordering::Relaxed));
        }
    });
    for child in &mut children {
        let line = wait_for_line(child, "made ");
        made.fetch_add(line.strip_prefix("made ").unwrap().trim().parse().unwrap(), Ordering::Relaxed);
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(made.into_inner(), 20);
    assert_eq!(open(dir.path()).manifests().unwrap().len(), 20);
    assert_eq!(std::fs::read_dir(dir.path().join("locks")).unwrap().count(), 0, "locks leave no files");
}

#[test]
fn manifests_come_in_the_order_of_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    for i in [7, 200, 3, 100] {
        drafted(&disk, &[("a", &[i])]).commit(commit(key(i))).unwrap();
    }
    std::fs::create_dir_all(dir.path().join("artifacts/ab/not an artifact")).unwrap();
    let keys: Vec<_> = disk.manifests().unwrap().into_iter().map(|m: Manifest| m.key.0[0]).collect();
    assert_eq!(keys, [3, 7, 100, 200]);
}

/// A small file system of its own; where that is not allowed (no root) the test says so and ends.
struct Mounted(PathBuf);

impl Mounted {
    fn new(dir: &Path, options: &str) -> Option<Self> {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir).output();
        match mounted {
            Ok(o) if o.status.success() => Some(Self(dir.to_path_buf())),
            _ => {
                eprintln!("skipped: no mount here");
                None
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().unwrap();
    }
}

#[test]
fn a_full_disk_has_its_own_name() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_mounted) = Mounted::new(dir.path(), "size=64k") else { return };
    let disk = open(dir.path());
    // Room for the file and none for its manifest.
    let draft = disk.draft().unwrap();
    let mut n = 60_000;
    while std::fs::write(draft.path.join("a"), vec![1; n]).is_err() {
        n -= 4096;
    }
    std::fs::write(draft.path.join("b"), vec![1; 4096]).ok();
    std::fs::write(draft.path.join("c"), vec![1; 4096]).ok();
    let refused = draft.commit(commit(key(1)));
    assert!(matches!(refused, Err(Error::DiskFull { .. })), "{refused:?}");
    assert!(refused.unwrap_err().stops_the_run());
    assert!(disk.manifest(&key(1)).unwrap().is_none());
}

#[test]
fn a_read_only_disk_stops_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_mounted) = Mounted::new(dir.path(), "size=64k,ro") else { return };
    let limits = Limits { disk_dir: dir.path().to_path_buf(), ..Limits::default() };
    let error = Store::open(&limits).err().unwrap();
    assert!(matches!(&error, Error::Io { source, .. } if source.kind() == ErrorKind::ReadOnlyFilesystem), "{error:?}");
    assert!(error.stops_the_run());
}

/// `/sys` takes no folders, not even from root.
#[test]
fn a_workspace_of_someone_else_stops_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(dir.path());
    std::fs::remove_dir(dir.path().join("drafts")).unwrap();
    std::os::unix::fs::symlink("/sys", dir.path().join("drafts")).unwrap();
    let error = disk.draft().unwrap_err();
    assert!(matches!(&error, Error::NotWritable { .. }), "{error:?}");
    assert!(error.stops_the_run());
}
