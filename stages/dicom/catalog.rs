//! What every file of an archive is: headers, read in parallel and remembered between runs, so that an unchanged archive is not read again. Of a slice
//! eight kilobytes are read and two hundred bytes are kept; containers are opened and each member is a file of its own.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::bytes::{Source, Wrapping, wrapping_of};
use super::classes::{self, Class};
use super::containers::{self, Closed, DEEPEST, Directory, INSIDE, Kind};
use super::header::{self, FIRST_BYTES, Header, NoHeader};
use super::memory;
use super::names::Names;
use super::pack::{Template, pack, unpack};
use super::walk::{Found, Seen};
use super::{directory, scan};
use crate::error::Error;

/// An archive, looked at.
#[derive(Debug, Default)]
pub struct Catalog {
    pub root: PathBuf,
    /// Sorted by place. A container that could be read stands in here with its members, not itself.
    pub entries: Vec<Entry>,
    /// What [`Outcome::Dicom`] points to.
    pub series: Vec<SeriesKey>,
}

/// One file, looked at.
#[derive(Clone, Debug)]
pub struct Entry {
    pub seen: Seen,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// Voxels or labels.
    Dicom(Brief),
    /// By its name.
    Nifti,
    /// What it is, where that is nothing for us, and in words.
    Skipped { class: String, why: String },
    /// What is wrong, and the series (study, series UID) that is not whole without it, where that much could be read.
    Failed { why: String, series: Option<(String, String)> },
    /// It could not even be read: looked at again next time.
    Unreadable(String),
    /// The files that a DICOMDIR names, relative to its folder.
    Dicomdir(Vec<String>),
}

/// A header in few bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Brief {
    /// Index into [`Catalog::series`].
    pub series: u32,
    pub class: Class,
    pub(super) packed: Packed,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Packed(pub Box<[u8]>);

/// (study, series) UIDs: what makes a series. A series UID that two studies use is two series. Its first header is the template of the others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SeriesKey {
    pub study: String,
    pub series: String,
    pub(super) template: Template,
}

impl Catalog {
    /// The header of an entry; `None` where it has none.
    pub fn header(&self, e: &Entry) -> Option<Header> {
        let Outcome::Dicom(b) = &e.outcome else { return None };
        unpack(&b.packed.0, &self.series.get(b.series as usize)?.template).ok()
    }

    /// Where the file (or the container that it is in) stands.
    pub fn path(&self, e: &Entry) -> PathBuf {
        self.root.join(&e.seen.file)
    }
}

/// Looks at every file. `memo`: a folder for what may be lost. Ids are replaced by `names` before anything is kept; under another key the memory fits no
/// file, and all is read anew.
/// - `step`: told the bytes of every file that is opened; an error stops the work
pub fn read_all(found: Found, names: &Names, memo: &Path, step: &(dyn Fn(u64) -> Result<(), Error> + Sync)) -> Result<Catalog, Error> {
    let (mut remembered, known) = memory::recall(memo);
    let n_remembered = remembered.len();
    let series = SeriesList::new(known);
    let mut entries = Vec::with_capacity(found.files.len());
    let mut new = Vec::new();
    for seen in found.files {
        let known = remembered.remove(&names.place(&seen.file)).filter(|r| r.stat == seen.stat);
        match known.and_then(|r| r.open(names, &seen.file)) {
            Some(found) => entries.extend(found.into_iter().map(|f| {
                let seen = Seen { member: f.member, bytes: f.bytes, ..seen.clone() };
                Entry { seen, outcome: f.outcome }
            })),
            None => new.push(seen),
        }
    }
    let has_news = !new.is_empty() || !remembered.is_empty() || n_remembered == 0;
    drop(remembered);
    let look = Look { root: &found.root, names, series: &series, step };
    let read: Vec<Vec<Entry>> =
        new.into_par_iter().with_max_len(64).map_init(Vec::new, |buffer, seen| look.file(seen, buffer)).collect::<Result<_, _>>()?;
    entries.extend(read.into_iter().flatten());
    entries.par_sort_by(|a, b| a.seen.cmp(&b.seen));
    let catalog = Catalog { root: found.root, entries, series: series.into_inner() };
    if has_news && let Err(e) = memory::remember(memo, names, &catalog, found.began_ns) {
        // A memory that cannot be kept costs the next run time, nothing else.
        tracing::warn!(error = %e, "what was read of the archive is not remembered");
    }
    Ok(catalog)
}

/// Files that a DICOMDIR names and that are not there, relative to the archive, each once. They count as seen: somebody has seen them.
pub fn missing(catalog: &Catalog) -> Vec<String> {
    let named = |e: &Entry| if let Outcome::Dicomdir(files) = &e.outcome { Some(files.clone()) } else { None };
    let directories: Vec<(String, Vec<String>)> =
        catalog.entries.iter().filter_map(|e| Some((e.seen.place().into_owned(), named(e)?))).collect();
    if directories.is_empty() {
        return Vec::new();
    }
    let there: HashSet<String> = catalog.entries.iter().map(|e| directory::spelling(&e.seen.place())).collect();
    let beside = |place: &str, file: String| place.rsplit_once('/').map_or(file.clone(), |(folder, _)| format!("{folder}/{file}"));
    let all = directories.into_iter().flat_map(|(place, files)| files.into_iter().map(move |f| beside(&place, f)));
    let mut missing: Vec<String> = all.filter(|f| !there.contains(&directory::spelling(f))).collect();
    missing.sort();
    missing.dedup();
    missing
}

/// Whether a name says NIfTI.
pub fn is_nifti(file: &str) -> bool {
    ends_with_any(file, &[".nii", ".nii.gz"])
}

fn is_called_dicom(file: &str) -> bool {
    ends_with_any(file, &[".dcm", ".dicom", ".ima"])
}

fn ends_with_any(file: &str, endings: &[&str]) -> bool {
    let ends = |e: &&str| file.len() >= e.len() && file.as_bytes()[file.len() - e.len()..].eq_ignore_ascii_case(e.as_bytes());
    endings.iter().any(ends)
}

/// The series met so far.
struct SeriesList(Mutex<ByKey>);

/// (study, series) → place in the list.
type ByKey = (HashMap<(String, String), u32>, Vec<SeriesKey>);

impl SeriesList {
    fn new(known: Vec<SeriesKey>) -> Self {
        let by_key = known.iter().enumerate().map(|(i, s)| ((s.study.clone(), s.series.clone()), i as u32)).collect();
        Self(Mutex::new((by_key, known)))
    }

    fn lock(&self) -> MutexGuard<'_, ByKey> {
        self.0.lock().expect("nothing panics while it is held")
    }

    fn brief(&self, h: &Header, class: Class) -> Brief {
        let key = (h.study.clone(), h.series.clone());
        let mut list = self.lock();
        let (by_key, all) = &mut *list;
        let series = *by_key.entry(key).or_insert_with(|| {
            all.push(SeriesKey { study: h.study.clone(), series: h.series.clone(), template: Template::of(h) });
            all.len() as u32 - 1
        });
        // A microsecond under the lock; a copy of the template would take longer.
        let packed = Packed(pack(h, &all[series as usize].template).into_boxed_slice());
        Brief { series, class, packed }
    }

    fn into_inner(self) -> Vec<SeriesKey> {
        self.0.into_inner().expect("nothing panics while it is held").1
    }
}

/// What a file turned out to be.
enum Looked {
    One(Outcome),
    /// Members with their places in the container and their lengths, and what is wrong with the container.
    Members(Vec<(String, u64, Outcome)>, Option<String>),
}

/// What looking at files needs.
struct Look<'a> {
    root: &'a Path,
    names: &'a Names,
    series: &'a SeriesList,
    step: &'a (dyn Fn(u64) -> Result<(), Error> + Sync),
}

impl Look<'_> {
    fn file(&self, seen: Seen, buffer: &mut Vec<u8>) -> Result<Vec<Entry>, Error> {
        (self.step)(seen.stat.bytes)?;
        let looked = if seen.stat.bytes == 0 {
            Looked::One(empty())
        } else if is_nifti(&seen.file) {
            Looked::One(Outcome::Nifti)
        } else {
            match std::fs::File::open(self.root.join(&seen.file)) {
                Ok(file) => self.source(&Source::of_open(file, seen.stat.bytes), &seen.file, 0, buffer)?,
                Err(e) => Looked::One(Outcome::Unreadable(e.to_string())),
            }
        };
        Ok(match looked {
            Looked::One(outcome) => vec![Entry { seen, outcome }],
            Looked::Members(members, fault) => {
                let stands_for_itself = match (fault, members.is_empty()) {
                    (Some(why), _) => Some(Outcome::Failed { why: format!("a container: {why}"), series: None }),
                    (None, true) => Some(skipped("empty container")),
                    (None, false) => None,
                };
                let own = stands_for_itself.map(|outcome| Entry { seen: seen.clone(), outcome });
                let of_member = |(member, bytes, outcome): (String, u64, Outcome)| {
                    let seen = Seen { member: Some(member.into_boxed_str()), bytes, ..seen.clone() };
                    Entry { seen, outcome }
                };
                own.into_iter().chain(members.into_iter().map(of_member)).collect()
            }
        })
    }

    /// What a source of known length is. `depth`: how many containers it is in.
    fn source(&self, source: &Source, name: &str, depth: usize, buffer: &mut Vec<u8>) -> Result<Looked, Error> {
        let unread = |e: std::io::Error| Looked::One(Outcome::Unreadable(e.to_string()));
        buffer.clear();
        buffer.resize(FIRST_BYTES.min(source.len() as usize), 0);
        if let Err(e) = source.read_into(0, buffer) {
            return Ok(unread(e));
        }
        if let Some(outcome) = other_container(buffer) {
            return Ok(Looked::One(outcome));
        }
        let wrapping = wrapping_of(buffer);
        let kind = match wrapping {
            Wrapping::Gzip | Wrapping::Zstd => containers::kind_inside(source, name),
            _ => containers::kind_of(buffer, name),
        };
        if let Some(kind) = kind {
            return self.container(source.clone(), kind, depth);
        }
        let header = match wrapping {
            Wrapping::None => header::of_prefixes(Some(source.len()), wrapping, buffer, |n, b| grow(source, n, b)),
            _ => {
                let body = if wrapping == Wrapping::Deflate { scan::meta(buffer).map_or(0, |m| m.end) } else { 0 };
                let meta = buffer[..body].to_vec();
                buffer.clear();
                header::of_prefixes(None, wrapping, buffer, |n, b| {
                    b.clear();
                    b.extend_from_slice(&meta);
                    // Where the stream is damaged, what came before counts as all there is.
                    let _ = std::io::Read::read_to_end(&mut std::io::Read::take(source.unfolding(wrapping, body)?, (n - body) as u64), b);
                    Ok(())
                })
            }
        };
        Ok(match header {
            Ok(Ok(h)) if h.sop_class == directory::SOP_CLASS => Looked::One(directory::read(source).map_or_else(broken, Outcome::Dicomdir)),
            Ok(header) => Looked::One(self.outcome(header, name)),
            Err(e) => unread(e),
        })
    }

    fn container(&self, source: Source, kind: Kind, depth: usize) -> Result<Looked, Error> {
        if depth == DEEPEST {
            let why = format!("containers nested more than {DEEPEST} deep: unpack it first");
            return Ok(Looked::One(Outcome::Failed { why, series: None }));
        }
        let directory = match Directory::read(source, kind) {
            Ok(directory) => directory,
            Err(e) => return Ok(Looked::Members(Vec::new(), Some(e.to_string()))),
        };
        let looked: Vec<Looked> = (0..directory.members.len())
            .into_par_iter()
            .map_init(Vec::new, |buffer, i| self.member(&directory, i, depth + 1, buffer))
            .collect::<Result<_, _>>()?;
        let mut members = Vec::with_capacity(looked.len());
        for (m, looked) in directory.members.iter().zip(looked) {
            match looked {
                Looked::One(outcome) => members.push((m.name.clone(), m.bytes, outcome)),
                Looked::Members(inner, fault) => {
                    let own = match (fault, inner.is_empty()) {
                        (Some(why), _) => Some(Outcome::Failed { why: format!("a container: {why}"), series: None }),
                        (None, true) => Some(skipped("empty container")),
                        (None, false) => None,
                    };
                    members.extend(own.map(|outcome| (m.name.clone(), m.bytes, outcome)));
                    members.extend(inner.into_iter().map(|(name, bytes, o)| (format!("{}{INSIDE}{name}", m.name), bytes, o)));
                }
            }
        }
        Ok(Looked::Members(members, directory.fault))
    }

    fn member(&self, directory: &Directory, i: usize, depth: usize, buffer: &mut Vec<u8>) -> Result<Looked, Error> {
        let m = &directory.members[i];
        let one = |outcome| Ok(Looked::One(outcome));
        (self.step)(0)?;
        match &m.place {
            Err(Closed::Skipped(why)) => return one(Outcome::Skipped { class: "member of a container".into(), why: why.clone() }),
            Err(Closed::Failed(why)) => return one(Outcome::Failed { why: why.clone(), series: None }),
            Ok(_) if m.bytes == 0 => return one(empty()),
            Ok(_) if is_nifti(&m.name) => return one(Outcome::Nifti),
            Ok(_) => {}
        }
        let broken = |e: std::io::Error| Ok(Looked::One(Outcome::Failed { why: e.to_string(), series: None }));
        if !directory.is_direct(m) {
            // The beginning tells most of what there is to know; what is more than a plain file is unfolded whole.
            let start = match directory.peek(m, FIRST_BYTES as u64) {
                Ok(start) => start,
                Err(e) => return broken(e),
            };
            buffer.clear();
            if let Err(e) = grow(&start, FIRST_BYTES, buffer) {
                return broken(e);
            }
            if let Some(outcome) = other_container(buffer) {
                return one(outcome);
            }
            if wrapping_of(buffer) == Wrapping::None && containers::kind_of(buffer, &m.name).is_none() {
                let header = header::of_prefixes(Some(m.bytes), Wrapping::None, buffer, |n, b| {
                    b.clear();
                    grow(&directory.peek(m, n as u64)?, n, b)
                });
                match header {
                    Ok(Ok(h)) if h.sop_class == directory::SOP_CLASS => {}
                    Ok(header) => return one(self.outcome(header, &m.name)),
                    Err(e) => return broken(e),
                }
            }
        }
        match directory.open(m) {
            Ok(source) => self.source(&source, &m.name, depth, buffer),
            Err(e) => broken(e),
        }
    }

    fn outcome(&self, header: Result<Header, NoHeader>, name: &str) -> Outcome {
        match header {
            Ok(mut h) => match classes::of(&h) {
                Class::Other(class) => Outcome::Skipped { why: class.clone(), class },
                class => {
                    self.names.hide(&mut h);
                    Outcome::Dicom(self.series.brief(&h, class))
                }
            },
            Err(NoHeader::NotDicom) if is_called_dicom(name) => broken("not DICOM, although its name says so".into()),
            Err(NoHeader::NotDicom) => skipped("not DICOM"),
            Err(NoHeader::Empty) => empty(),
            Err(mut none) => {
                self.names.hide_broken(&mut none);
                let NoHeader::Broken { why, series } = none else { unreachable!("the other kinds are above") };
                Outcome::Failed { why, series }
            }
        }
    }
}

/// Reads on until there are `n` bytes, or all.
fn grow(source: &Source, n: usize, buffer: &mut Vec<u8>) -> std::io::Result<()> {
    let have = buffer.len();
    buffer.resize((n as u64).min(source.len()) as usize, 0);
    source.read_into(have as u64, &mut buffer[have..])
}

fn skipped(what: &str) -> Outcome {
    Outcome::Skipped { class: what.into(), why: what.into() }
}

fn broken(why: String) -> Outcome {
    Outcome::Failed { why, series: None }
}

fn empty() -> Outcome {
    broken("an empty file (0 bytes)".into())
}

/// Containers that are not looked into, by their first bytes.
fn other_container(start: &[u8]) -> Option<Outcome> {
    let magics: [&[u8]; 4] = [b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"\xfd7zXZ\0", b"BZh9"];
    let why = "an archive file of a kind that is not looked into: unpack it first".to_string();
    magics.iter().any(|m| start.starts_with(m)).then(|| Outcome::Skipped { class: "archive file".into(), why })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::dicom::phantom;
    use crate::dicom::walk::walk;

    fn count_reads(root: &Path, memo: &Path) -> (u64, Catalog) {
        let n = AtomicU64::new(0);
        let step = |bytes: u64| {
            n.fetch_add((bytes > 0) as u64, Ordering::Relaxed);
            Ok(())
        };
        let catalog = read_all(walk(root).unwrap(), &Names::Own, memo, &step).unwrap();
        (n.into_inner(), catalog)
    }

    fn places(c: &Catalog) -> Vec<(String, &'static str)> {
        let what = |o: &Outcome| match o {
            Outcome::Dicom(_) => "dicom",
            Outcome::Nifti => "nifti",
            Outcome::Skipped { .. } => "skipped",
            Outcome::Failed { .. } => "failed",
            Outcome::Unreadable(_) => "unreadable",
            Outcome::Dicomdir(_) => "dicomdir",
        };
        c.entries.iter().map(|e| (e.seen.place().into_owned(), what(&e.outcome))).collect()
    }

    #[test]
    fn an_unchanged_archive_is_not_read_again() {
        let (root, memo) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(root.path().join("a.txt"), "no DICOM, but something").unwrap();
        std::fs::write(root.path().join("b.nii"), "by name").unwrap();
        std::fs::write(root.path().join("c.zip"), zip_of(&[("x.dcm", b"none"), ("y", b"")])).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(150));
        let (first, catalog) = count_reads(root.path(), memo.path());
        assert_eq!(first, 3);
        let all = [("a.txt", "skipped"), ("b.nii", "nifti"), ("c.zip!/x.dcm", "failed"), ("c.zip!/y", "failed")];
        assert_eq!(places(&catalog), all.map(|(p, w)| (p.to_string(), w)));
        let (again, same) = count_reads(root.path(), memo.path());
        assert_eq!(again, 0);
        assert_eq!(places(&same), places(&catalog));
        std::fs::write(root.path().join("a.txt"), "changed").unwrap();
        assert_eq!(count_reads(root.path(), memo.path()).0, 1);
        std::fs::write(memo.path().join(memory::FILE), "{torn").unwrap();
        assert!(count_reads(root.path(), memo.path()).0 >= 3);
    }

    fn zip_of(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (i, (name, bytes)) in members.iter().enumerate() {
            let method = if i % 2 == 0 { zip::CompressionMethod::Deflated } else { zip::CompressionMethod::Stored };
            zip.start_file(*name, zip::write::SimpleFileOptions::default().compression_method(method)).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    #[test]
    fn containers_are_opened_three_deep_and_each_member_has_a_verdict() {
        let (root, memo) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let slice = phantom_slice();
        let (mut nested, mut name) =
            (zip_of(&[("s1", &slice), ("s2", &slice), ("../../s3.dcm", &slice), ("notes", b"hello")]), "0.zip".to_string());
        for depth in 1..3 {
            nested = zip_of(&[(&name, &nested)]);
            name = format!("{depth}.zip");
        }
        std::fs::write(root.path().join("deep.zip"), &nested).unwrap();
        std::fs::write(root.path().join("deeper.zip"), zip_of(&[("deep.zip", &nested)])).unwrap();
        std::fs::write(root.path().join("cut.zip"), &nested[..nested.len() / 2]).unwrap();
        let (_, c) = count_reads(root.path(), memo.path());
        let deep = |m: &str| (format!("deep.zip!/1.zip!/0.zip!/{m}"), "dicom");
        let mut all = vec![
            ("cut.zip".into(), "failed"),
            deep("../../s3.dcm"),
            ("deep.zip!/1.zip!/0.zip!/notes".into(), "skipped"),
            deep("s1"),
            deep("s2"),
            ("deeper.zip!/deep.zip!/1.zip!/0.zip".into(), "failed"),
        ];
        all.sort();
        assert_eq!(places(&c), all);
        let s2 = c.entries.iter().find(|e| e.seen.place().ends_with("s2")).unwrap();
        assert_eq!(s2.seen.bytes, slice.len() as u64);
        let opened = Source::open_at(&c.path(s2), s2.seen.member.as_deref()).unwrap();
        assert_eq!(header::of_source(&opened).unwrap().unwrap(), c.header(s2).unwrap());
    }

    fn phantom_slice() -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let p = phantom::Phantom { patients: 1, slices: 2, size: 16, slice_spacing_mm: None, seed: 1 };
        phantom::write(&dir.path().join("a"), &p, &mut |_| ()).unwrap();
        let found = walk(dir.path()).unwrap();
        std::fs::read(found.root.join(&found.files[0].file)).unwrap()
    }
}
