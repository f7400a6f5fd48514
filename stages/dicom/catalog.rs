//! What every file of an archive is: headers, read in parallel and remembered between runs, so that an unchanged archive is not read again. Of a slice
//! eight kilobytes are read and two hundred bytes are kept; containers are opened and each member is a file of its own.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::classes::Class;
use super::header::Header;
use super::look::{Desk, Look};
use super::names::Names;
use super::pattern::Pattern;
use super::walk::{Found, Seen};
use super::{directory, memory};
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

/// (study, series) UIDs: what makes a series. A series UID that two studies use is two series. Its first header is the pattern of the others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SeriesKey {
    pub study: String,
    pub series: String,
    pub(super) pattern: Pattern,
}

impl Catalog {
    /// The header of an entry; `None` where it has none.
    pub fn header(&self, e: &Entry) -> Option<Header> {
        let Outcome::Dicom(b) = &e.outcome else { return None };
        self.series.get(b.series as usize)?.pattern.unpack(&b.packed.0).ok()
    }

    /// Where the file (or the container that it is in) stands.
    pub fn path(&self, e: &Entry) -> PathBuf {
        self.root.join(&e.seen.file)
    }
}

/// What is to be remembered of an archive for the next time.
pub struct News<'a> {
    memo: &'a Path,
    names: &'a Names,
    began_ns: i64,
}

/// Looks at every file, and remembers it: [`read`] and [`News::keep`].
pub fn read_all(
    found: Found,
    names: &Names,
    memo: Option<&Path>,
    step: &(dyn Fn(u64) -> Result<(), Error> + Sync),
) -> Result<Catalog, Error> {
    let (catalog, news) = read(found, names, memo, step)?;
    news.iter().for_each(|news| news.keep(&catalog));
    Ok(catalog)
}

/// Looks at every file. `memo`: a folder for what may be lost, if it is to be kept. Ids are replaced by `names` before anything is kept; under another key
/// the memory fits no file, and all is read anew.
/// - `step`: told the bytes of every file that is opened; an error stops the work
pub fn read<'a>(
    found: Found,
    names: &'a Names,
    memo: Option<&'a Path>,
    step: &(dyn Fn(u64) -> Result<(), Error> + Sync),
) -> Result<(Catalog, Option<News<'a>>), Error> {
    let (mut remembered, known) = memo.map(memory::recall).unwrap_or_default();
    let n_remembered = remembered.len();
    let series = SeriesList::new(known);
    let mut entries = Vec::with_capacity(found.files.len());
    // An archive that is looked at for the first time is all new.
    let (mut new, maybe_known) = if n_remembered == 0 { (found.files, Vec::new()) } else { (Vec::new(), found.files) };
    for seen in maybe_known {
        // A file that nobody has looked at is like none.
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
    // What a thread learnt of a series serves whoever looks at the next files.
    let desks = Mutex::new(Vec::new());
    let desks = || desks.lock().expect("nothing panics while it is held");
    let begin = || (desks().pop().unwrap_or_default(), Vec::with_capacity(FILES_AT_ONCE));
    let of_some = new.into_par_iter().with_max_len(FILES_AT_ONCE).try_fold(begin, |(mut desk, mut out): (Desk, _), seen| {
        look.file(seen, &mut desk, &mut out)?;
        Ok((desk, out))
    });
    let end = |(desk, out)| {
        desks().push(desk);
        out
    };
    let read: Vec<Vec<Entry>> = of_some.map(|read| read.map(end)).collect::<Result<_, Error>>()?;
    entries.reserve(read.iter().map(Vec::len).sum());
    read.into_iter().for_each(|mut some| entries.append(&mut some));
    entries.par_sort_by(|a, b| a.seen.cmp(&b.seen));
    let news = memo.filter(|_| has_news).map(|memo| News { memo, names, began_ns: found.began_ns });
    Ok((Catalog { root: found.root, entries, series: series.into_inner() }, news))
}

impl News<'_> {
    pub fn keep(&self, catalog: &Catalog) {
        if let Err(e) = memory::remember(self.memo, self.names, catalog, self.began_ns) {
            // A memory that cannot be kept costs the next run time, nothing else.
            tracing::warn!(error = %e, "what was read of the archive is not remembered");
        }
    }
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

/// The series met so far.
pub(super) struct SeriesList(Mutex<ByKey>);

/// What one thread looks at before it takes others: each begins with a slice that nothing is known of.
pub(super) const FILES_AT_ONCE: usize = 64;

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

    pub fn brief(&self, h: &Header, class: Class) -> Brief {
        let key = (h.study.clone(), h.series.clone());
        let mut list = self.lock();
        let (by_key, all) = &mut *list;
        let series = *by_key.entry(key).or_insert_with(|| {
            all.push(SeriesKey { study: h.study.clone(), series: h.series.clone(), pattern: Pattern::of(h) });
            all.len() as u32 - 1
        });
        // A microsecond under the lock; a copy of the pattern would take longer.
        let packed = Packed(all[series as usize].pattern.pack(h).into_boxed_slice());
        Brief { series, class, packed }
    }

    /// The first header of a series, to pack others by without asking again.
    pub fn pattern(&self, series: u32) -> Pattern {
        self.lock().1[series as usize].pattern.clone()
    }

    fn into_inner(self) -> Vec<SeriesKey> {
        self.0.into_inner().expect("nothing panics while it is held").1
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::dicom::bytes::Source;
    use crate::dicom::header;
    use crate::dicom::phantom;
    use crate::dicom::walk::{self, Stat, walk};

    fn count_reads(root: &Path, memo: &Path) -> (u64, Catalog) {
        let n = AtomicU64::new(0);
        let step = |bytes: u64| {
            n.fetch_add((bytes > 0) as u64, Ordering::Relaxed);
            Ok(())
        };
        let catalog = read_all(walk(root).unwrap(), &Names::Own, Some(memo), &step).unwrap();
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
    fn how_a_file_stands_is_known_when_it_was_opened() {
        let root = tempfile::tempdir().unwrap();
        let slice = phantom_slice();
        let files: [(&str, &[u8]); 6] = [
            ("a.txt", b"none"),
            ("empty", b""),
            ("b.nii", b"by name"),
            ("c.nii", b""),
            ("s.dcm", &slice),
            ("z.zip", &zip_of(&[("s", &slice)])),
        ];
        files.iter().for_each(|(name, bytes)| std::fs::write(root.path().join(name), bytes).unwrap());
        let read = |found: Found| {
            let c = read_all(found, &Names::Own, None, &|_| Ok(())).unwrap();
            c.entries.into_iter().map(|e| (e.seen, e.outcome)).collect::<Vec<_>>()
        };
        let found = walk::names(root.path()).unwrap();
        assert!(found.files.iter().all(|f| f.stat == Stat::UNKNOWN));
        let by_name = read(found);
        assert_eq!(by_name, read(walk(root.path()).unwrap()));
        assert_eq!(by_name.len(), 6);
        let found = walk::names(root.path()).unwrap();
        std::fs::remove_file(root.path().join("s.dcm")).unwrap();
        assert!(read(found).iter().any(|(seen, o)| seen.file == "s.dcm" && matches!(o, Outcome::Unreadable(_))));
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
        let mut told = header::of_source(&opened).unwrap().unwrap();
        Names::Own.hide(&mut told);
        assert_eq!(told, c.header(s2).unwrap());
    }

    #[test]
    fn containers_that_unfold_to_far_more_than_their_file_fail() {
        let (root, memo) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let names: Vec<String> = (0..60_000).map(|i| i.to_string()).collect();
        let many = zip_of(&names.iter().map(|n| (n.as_str(), &b""[..])).collect::<Vec<_>>());
        std::fs::write(root.path().join("one.zip"), zip_of(&[("a.zip", &many)])).unwrap();
        let failed = |c: &Catalog| {
            let why = |e: &Entry| match &e.outcome {
                Outcome::Failed { why, .. } if why.starts_with("a container") => Some(why.clone()),
                _ => None,
            };
            c.entries.iter().filter_map(why).collect::<Vec<_>>()
        };
        assert!(failed(&count_reads(root.path(), memo.path()).1).is_empty());
        let small = zip_of(&[("a.zip", &many), ("stored", b""), ("b.zip", &many)]);
        assert!(small.len() < 1 << 20, "{}", small.len());
        std::fs::write(root.path().join("one.zip"), small).unwrap();
        let why = failed(&count_reads(root.path(), memo.path()).1);
        assert!(matches!(&why[..], [one] if one.contains("unfold to far more than a file of its size holds")), "{why:?}");
    }

    fn phantom_slice() -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let p = phantom::Phantom { patients: 1, slices: 2, size: 16, slice_spacing_mm: None, seed: 1 };
        phantom::write(&dir.path().join("a"), &p, &mut |_| ()).unwrap();
        let found = walk(dir.path()).unwrap();
        std::fs::read(found.root.join(&found.files[0].file)).unwrap()
    }
}
