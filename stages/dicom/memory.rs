//! What was learnt of an archive, kept between runs: one small record a file, told apart by its place and how it stood there. Headers in it carry pseudonyms
//! where those were asked for, and no place stands in it; members of containers and what a DICOMDIR names are sealed by the place of their file. It may be
//! lost or torn at any time: then files are read.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::catalog::{Catalog, Entry, FILES_AT_ONCE, Outcome, Packed, SeriesKey};
use super::names::Names;
use super::pack::{Template, pack, pack_into, unpack};
use super::walk::Stat;

/// The name goes up when what is read from a file changes, so that older memories are read again.
pub const FILE: &str = "files-11";
/// A file touched this shortly before it was read may change again without a new time stamp.
const TOO_FRESH_NS: i64 = 100_000_000;
const HASH_BYTES: usize = 32;

/// Where a file stands, without saying it.
pub type Place = [u8; 16];

/// As it is read back; [`packed`] writes it.
#[derive(Deserialize)]
struct Memory {
    series: Vec<SeriesKey>,
    files: Vec<(Place, Remembered)>,
}

/// A file as it stood, and what was found in it: itself, or the members of a container.
#[derive(Debug, Serialize, Deserialize)]
pub struct Remembered {
    pub stat: Stat,
    found: Kept,
}

#[derive(Debug, Serialize, Deserialize)]
enum Kept {
    Open(Vec<FoundIn>),
    /// It names files: only who walks the archive gets at it.
    Sealed(Packed),
}

impl Remembered {
    fn of(stat: Stat, found: Vec<FoundIn>, names: &Names, file: &str) -> Self {
        let names_files = |f: &FoundIn| f.member.is_some() || matches!(f.outcome, Outcome::Dicomdir(_));
        if matches!(names, Names::Own) || !found.iter().any(names_files) {
            return Self { stat, found: Kept::Open(found) };
        }
        let mut sealed = pack(&found, &Template::default()).into_boxed_slice();
        names.seal(file, &stat.to_string(), &mut sealed);
        Self { stat, found: Kept::Sealed(Packed(sealed)) }
    }

    /// What was found in `file`; `None` where the memory is torn.
    pub fn open(self, names: &Names, file: &str) -> Option<Vec<FoundIn>> {
        match self.found {
            Kept::Open(found) => Some(found),
            Kept::Sealed(Packed(mut bytes)) => {
                names.seal(file, &self.stat.to_string(), &mut bytes);
                unpack(&bytes, &Template::default()).ok()
            }
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub struct FoundIn {
    pub member: Option<Box<str>>,
    pub bytes: u64,
    pub outcome: Outcome,
}

/// Whether anything may be remembered in a folder.
pub fn is_there(memo: &Path) -> bool {
    memo.join(FILE).is_file()
}

pub fn recall(memo: &Path) -> (HashMap<Place, Remembered>, Vec<SeriesKey>) {
    let bytes = std::fs::read(memo.join(FILE)).unwrap_or_default();
    let Some((hash, packed)) = bytes.split_at_checked(HASH_BYTES) else { return Default::default() };
    if blake3::hash(packed).as_bytes() != hash {
        return Default::default();
    }
    match unpack::<Memory>(packed, &Template::default()) {
        Ok(m) => (m.files.into_iter().collect(), m.series),
        Err(_) => Default::default(),
    }
}

/// - `began_ns`: before the first of the files was looked at
///
/// Written beside under a name of its own (two processes may look at one archive), then put in place.
pub fn remember(memo: &Path, names: &Names, catalog: &Catalog, began_ns: i64) -> std::io::Result<()> {
    static N: AtomicU64 = AtomicU64::new(0);
    let packed = packed(names, catalog, began_ns);
    let beside = memo.join(format!("{FILE}.{}-{}.new", std::process::id(), N.fetch_add(1, Ordering::Relaxed)));
    let written = write(&beside, &packed).and_then(|()| std::fs::rename(&beside, memo.join(FILE)));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written
}

fn write(path: &Path, packed: &[u8]) -> std::io::Result<()> {
    let mut how = std::fs::OpenOptions::new();
    how.write(true).create(true).truncate(true);
    // Headers are nobody else's business, whatever the names in them.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut how, 0o600);
    let mut file = how.open(path)?;
    file.write_all(blake3::hash(packed).as_bytes())?;
    file.write_all(packed)
}

/// A [`Memory`], packed. Its files are packed side by side: without a template, what is packed does not depend on what comes before.
fn packed(names: &Names, catalog: &Catalog, began_ns: i64) -> Vec<u8> {
    let of_files: Vec<&[Entry]> = catalog.entries.chunk_by(|a, b| a.seen.file == b.seen.file).filter(|f| is_kept(f, began_ns)).collect();
    // Series that no file is of any more are forgotten.
    let mut number: Vec<Option<u32>> = vec![None; catalog.series.len()];
    let mut series = Vec::new();
    for e in of_files.iter().copied().flatten() {
        if let Outcome::Dicom(b) = &e.outcome {
            number[b.series as usize].get_or_insert_with(|| {
                series.push(&catalog.series[b.series as usize]);
                series.len() as u32 - 1
            });
        }
    }
    let found_in = |e: &Entry| {
        let mut outcome = e.outcome.clone();
        if let Outcome::Dicom(b) = &mut outcome {
            b.series = number[b.series as usize].expect("the series of every file has got its number above");
        }
        FoundIn { member: e.seen.member.clone(), bytes: e.seen.bytes, outcome }
    };
    let record = |of_file: &&[Entry]| {
        let seen = &of_file[0].seen;
        let found = of_file.iter().map(found_in).collect();
        (names.place(&seen.file), Remembered::of(seen.stat, found, names, &seen.file))
    };
    let some = |files: &[&[Entry]]| {
        let mut out = Vec::with_capacity(files.len() * 512);
        files.iter().for_each(|f| pack_into(&record(f), &Template::default(), &mut out));
        out
    };
    let parts: Vec<Vec<u8>> = of_files.par_chunks(FILES_AT_ONCE).map(some).collect();
    let mut out = pack(&(series, Length(of_files.len())), &Template::default());
    out.reserve(parts.iter().map(Vec::len).sum());
    parts.iter().for_each(|p| out.extend_from_slice(p));
    out
}

/// Whether a file will be known by how it stands now.
fn is_kept(of_file: &[Entry], began_ns: i64) -> bool {
    let stat = &of_file[0].seen.stat;
    let is_fresh = stat.modified_ns.max(stat.changed_ns) > began_ns - TOO_FRESH_NS;
    !is_fresh && !of_file.iter().any(|e| matches!(e.outcome, Outcome::Unreadable(_)))
}

/// The number of parts that follow, as a sequence has it before them.
struct Length(usize);

impl Serialize for Length {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(self.0 as u64)
    }
}

impl Serialize for Packed {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Packed {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Packed;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: de::Error>(self, b: &[u8]) -> Result<Packed, E> {
                Ok(Packed(b.into()))
            }
        }
        d.deserialize_bytes(Bytes)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::super::catalog::read_all;
    use super::super::walk::walk;
    use super::*;

    #[test]
    fn names_in_containers_are_remembered_and_not_written_down() {
        let (root, memo) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut zip = zip::ZipWriter::new(std::fs::File::create(root.path().join("Doe.zip")).unwrap());
        zip.start_file("Doe^Jane/letter.txt", zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(b"hello").unwrap();
        zip.finish().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(150));
        let look = |key: &[u8]| {
            let n = AtomicU64::new(0);
            let step = |bytes: u64| {
                n.fetch_add((bytes > 0) as u64, Ordering::Relaxed);
                Ok(())
            };
            let c = read_all(walk(root.path()).unwrap(), &Names::keyed(key), Some(memo.path()), &step).unwrap();
            (n.into_inner(), c.entries.iter().map(|e| e.seen.place().into_owned()).collect::<Vec<_>>())
        };
        let all = vec!["Doe.zip!/Doe^Jane/letter.txt".to_string()];
        assert_eq!(look(b"k"), (1, all.clone()));
        let bytes = std::fs::read(memo.path().join(FILE)).unwrap();
        assert!(!bytes.windows(3).any(|w| w == b"Doe") && !bytes.windows(6).any(|w| w == b"letter"));
        assert_eq!(look(b"k"), (0, all.clone()));
        assert_eq!(look(b"other"), (1, all), "under another key it is read again");
    }
}
