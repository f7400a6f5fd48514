//! The hash of the bytes of files: what makes the key of a case. It is taken when a case is opened, not when the archive is indexed, and remembered with the
//! file's size and times, so that what has not changed is not read for it again. The memory may be lost at any time.

use rayon::prelude::*;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use voxmill_schemas::tables::{InstanceRow, Row};

use super::bytes::Source;
use super::places;
use super::walk::{Stat, now_ns};
use crate::error::Error;
use crate::stage::Rows;

/// File → how it stood there, and the blake3 hash of its bytes then.
type Known = HashMap<[u8; 32], (Stat, [u8; 32])>;

/// What is known of the bytes of files.
#[derive(Debug)]
pub struct Contents {
    memory: PathBuf,
    known: Mutex<Known>,
    has_news: AtomicBool,
}

/// The name goes up with the layout.
const MEMORY: &str = "contents-1";
/// Hash of the place, bytes, times and inode, hash of the bytes.
const RECORD_BYTES: usize = 32 + 4 * 8 + 32;
/// A file touched this shortly before it was read may change again without a new time stamp.
const TOO_FRESH_NS: i64 = 100_000_000;

impl Contents {
    /// - `memo`: a folder for what may be lost; it need not be there yet
    pub fn open(memo: &Path) -> Self {
        let memory = memo.join(MEMORY);
        let known = std::fs::read(&memory).map(|b| b.as_chunks::<RECORD_BYTES>().0.iter().map(parse).collect()).unwrap_or_default();
        Self { memory, known: Mutex::new(known), has_news: AtomicBool::new(false) }
    }

    /// Fills the column `content` of the rows of the table `instances` that lack it, and `seen` with how the files stood there. Returns the number of bytes read.
    /// A file that cannot be read fails nobody here: its `content` says so, and the verdict belongs to the stage that opens it.
    /// - `step`: told the bytes of every file before it is read; an error stops the work
    pub fn fill(&self, rows: &mut Rows, step: &(dyn Fn(u64) -> Result<(), Error> + Sync)) -> Result<u64, Error> {
        let Some(batch) = rows.0.get_mut(InstanceRow::TABLE) else { return Ok(0) };
        let Ok(mut instances) = InstanceRow::from_batch(batch) else { return Ok(0) };
        if instances.iter().all(|i| !i.content.is_empty()) {
            return Ok(0);
        }
        let read = AtomicU64::new(0);
        instances.par_iter_mut().filter(|i| i.content.is_empty()).try_for_each(|i| {
            let unread = |e: std::io::Error| format!("unreadable {:?}", e.kind());
            // Taken before its bytes: what changes while they are read is not remembered.
            let began_ns = now_ns();
            let stat = match std::fs::metadata(places::path(Path::new(&i.path))) {
                Ok(meta) => Stat::of(&meta),
                Err(e) => {
                    i.content = unread(e);
                    return Ok(());
                }
            };
            let place = place(i);
            let known = self.known.lock().expect("nothing panics in here").get(&place).copied();
            let content = match known.filter(|(then, _)| *then == stat) {
                Some((_, content)) => content,
                None => {
                    step(stat.bytes)?;
                    read.fetch_add(stat.bytes, Ordering::Relaxed);
                    let content = match hash(i) {
                        Ok(content) => content,
                        Err(e) => {
                            i.content = unread(e);
                            return Ok(());
                        }
                    };
                    if stat.modified_ns.max(stat.changed_ns) <= began_ns - TOO_FRESH_NS {
                        self.known.lock().expect("nothing panics in here").insert(place, (stat, content));
                        self.has_news.store(true, Ordering::Relaxed);
                    }
                    content
                }
            };
            i.content = blake3::Hash::from_bytes(content).to_hex().to_string();
            i.seen = stat.to_string();
            Ok(())
        })?;
        *batch = InstanceRow::to_batch(&instances);
        Ok(read.into_inner())
    }

    /// Writes what was learnt, beside and then in place. A memory that cannot be kept costs the next run time, nothing else.
    pub fn keep(&self) {
        if !self.has_news.swap(false, Ordering::Relaxed) {
            return;
        }
        let mut records: Vec<_> = self.known.lock().expect("nothing panics in here").iter().map(|(p, (s, c))| (*p, *s, *c)).collect();
        records.sort_unstable();
        let bytes: Vec<u8> = records.iter().flat_map(|(p, s, c)| record(p, s, c)).collect();
        if let Err(e) = self.write(&bytes) {
            tracing::warn!(error = %e, "the hashes of the archive's files are not remembered");
        }
    }

    fn write(&self, bytes: &[u8]) -> std::io::Result<()> {
        static N: AtomicU64 = AtomicU64::new(0);
        let beside = self.memory.with_extension(format!("{}-{}.new", std::process::id(), N.fetch_add(1, Ordering::Relaxed)));
        if let Some(folder) = self.memory.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let written = std::fs::write(&beside, bytes).and_then(|()| std::fs::rename(&beside, &self.memory));
        if written.is_err() {
            let _ = std::fs::remove_file(&beside);
        }
        written
    }
}

/// A file of a stack, as the index knows it.
#[derive(Clone, Debug)]
pub struct FileRef {
    pub path: PathBuf,
    /// Its place inside `path`, where that is a container.
    pub member: Option<String>,
    /// Relative to the archive: how errors name it.
    pub name: String,
    /// blake3 of its bytes, hex; empty while an index is made, where whatever stands there is taken.
    pub content: String,
    /// How the file stood there when it was hashed.
    pub seen: String,
}

impl FileRef {
    pub fn of(row: &InstanceRow) -> FileRef {
        let (path, member) = (PathBuf::from(&row.path), row.member.clone());
        FileRef { path, member, name: row.file.clone(), content: row.content.clone(), seen: row.seen.clone() }
    }
}

/// Opens a file of an index. Other bytes than those whose hash the row holds are refused: what is made of them would be kept under the hash of the old ones.
/// A file that stands there as it did when it was hashed is not hashed again.
pub fn open(f: &FileRef) -> Result<Source, Error> {
    let wrong = |why: String| Error::Dicom { file: f.name.clone(), why };
    // By the name that the index gave it, and by the kind of the error alone: the place may name the patient.
    let unread = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => wrong("the file is gone since it was indexed: run again".into()),
        kind => wrong(format!("it cannot be read: {kind}")),
    };
    let stat = Stat::of(&std::fs::metadata(places::path(&f.path)).map_err(unread)?);
    if f.content.is_empty() || (!f.seen.is_empty() && stat.to_string() == f.seen) {
        return Source::open_at(&f.path, f.member.as_deref()).map_err(unread);
    }
    let (source, content) = Source::open_hashed(&f.path, f.member.as_deref()).map_err(unread)?;
    if content != f.content {
        return Err(wrong("the file has changed since it was indexed: run again".into()));
    }
    Ok(source)
}

/// No path stands in the memory: it may name a patient. Of an index with pseudonyms it is a hash of tokens, which only who has the key can make.
fn place(i: &InstanceRow) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(i.path.as_bytes());
    if let Some(member) = &i.member {
        hasher.update(&[0]).update(member.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

fn hash(i: &InstanceRow) -> std::io::Result<[u8; 32]> {
    Source::raw_at(Path::new(&i.path), i.member.as_deref())?.hash()
}

fn record(place: &[u8; 32], s: &Stat, content: &[u8; 32]) -> [u8; RECORD_BYTES] {
    let mut out = [0; RECORD_BYTES];
    out[..32].copy_from_slice(place);
    let words = [s.bytes, s.modified_ns as u64, s.changed_ns as u64, s.inode];
    words.iter().enumerate().for_each(|(k, w)| out[32 + 8 * k..40 + 8 * k].copy_from_slice(&w.to_le_bytes()));
    out[64..].copy_from_slice(content);
    out
}

fn parse(b: &[u8; RECORD_BYTES]) -> ([u8; 32], (Stat, [u8; 32])) {
    let word = |k: usize| u64::from_le_bytes(b[32 + 8 * k..40 + 8 * k].try_into().expect("eight bytes"));
    let stat = Stat { bytes: word(0), modified_ns: word(1) as i64, changed_ns: word(2) as i64, inode: word(3) };
    (b[..32].try_into().expect("32 bytes"), (stat, b[64..].try_into().expect("32 bytes")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rows(path: &Path) -> Rows {
        let row = InstanceRow { path: path.to_string_lossy().into_owned(), file: "a".into(), ..InstanceRow::default() };
        Rows([(InstanceRow::TABLE.to_string(), InstanceRow::to_batch(&[row]))].into())
    }

    fn filled(c: &Contents, path: &Path) -> (InstanceRow, u64) {
        let mut rows = rows(path);
        let read = c.fill(&mut rows, &|_| Ok(())).unwrap();
        (InstanceRow::from_batch(&rows.0[InstanceRow::TABLE]).unwrap().remove(0), read)
    }

    #[test]
    fn bytes_are_hashed_once_and_remembered_until_they_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "first").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(150));
        let c = Contents::open(dir.path());
        let (row, read) = filled(&c, &path);
        assert_eq!((row.content.as_str(), read), (blake3::hash(b"first").to_hex().as_str(), 5));
        c.keep();
        let again = Contents::open(dir.path());
        assert_eq!(filled(&again, &path), (row.clone(), 0));
        assert_eq!(open(&FileRef::of(&row)).unwrap().len(), 5);
        std::fs::write(&path, "other").unwrap();
        assert_eq!(filled(&again, &path).0.content, blake3::hash(b"other").to_hex().as_str());
        assert_eq!(open(&FileRef::of(&row)).unwrap_err().to_string(), "a: the file has changed since it was indexed: run again");
    }

    #[cfg(unix)]
    #[test]
    fn a_change_with_its_time_put_back_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "first").unwrap();
        let then = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(150));
        let c = Contents::open(dir.path());
        let (row, _) = filled(&c, &path);
        std::fs::write(&path, "other").unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(then).unwrap();
        assert_ne!(filled(&c, &path).0.content, row.content);
        assert!(open(&FileRef::of(&row)).is_err());
    }

    #[test]
    fn a_file_that_cannot_be_read_fails_who_opens_it_and_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let c = Contents::open(dir.path());
        let (row, read) = filled(&c, Path::new("/no/such/patient"));
        assert_eq!((row.content.as_str(), row.seen.as_str(), read), ("unreadable NotFound", "", 0));
        assert_eq!(open(&FileRef::of(&row)).unwrap_err().to_string(), "a: the file is gone since it was indexed: run again");
        // Nothing of it is remembered, and what is there later has other bytes than the key says.
        let path = dir.path().join("f.zip");
        std::fs::write(&path, "no zip").unwrap();
        let member = InstanceRow { path: path.to_string_lossy().into_owned(), member: Some("m".into()), ..row.clone() };
        let mut rows =
            Rows([(InstanceRow::TABLE.to_string(), InstanceRow::to_batch(&[InstanceRow { content: String::new(), ..member }]))].into());
        c.fill(&mut rows, &|_| Ok(())).unwrap();
        let broken = InstanceRow::from_batch(&rows.0[InstanceRow::TABLE]).unwrap().remove(0);
        assert_eq!(broken.content, "unreadable InvalidData");
        c.keep();
        assert!(!dir.path().join(MEMORY).exists());
        let back = InstanceRow { path: path.to_string_lossy().into_owned(), ..row };
        assert_eq!(open(&FileRef::of(&back)).unwrap_err().to_string(), "a: the file has changed since it was indexed: run again");
    }
}
