//! What every file of an archive is: hash and header, read in parallel and remembered between runs, so that an unchanged archive is not read again.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::bytes::Source;
use super::header::{self, Header, NoHeader};
use super::names::Names;
use super::scan;
use super::walk::{Seen, Stat};
use crate::error::Error;

/// One file, looked at.
#[derive(Clone, Debug)]
pub struct Entry {
    pub seen: Seen,
    /// What messages and tables call the file: its place in the archive, or pseudonyms of it.
    pub name: String,
    /// blake3 of the bytes, hex; empty for what is neither DICOM nor NIfTI.
    pub content: String,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    Dicom(Box<Header>),
    /// By its name.
    Nifti,
    None(NoHeader),
    /// zip, tar: not looked into.
    Container,
    Unreadable(String),
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    file: String,
    stat: Stat,
    content: String,
    outcome: Outcome,
}

/// The name goes up when what is read from a file changes, so that older memories are read again.
const MEMORY: &str = "files-2.jsonl";
/// A file touched this shortly before it was read may change again without a new time stamp.
const TOO_FRESH_NS: i64 = 100_000_000;

/// Looks at every file. `memo`: a folder for what may be lost. Ids are replaced by `names` before anything is remembered; under another key the memory
/// fits no file, and is read anew.
pub fn read_all(
    files: Vec<Seen>,
    names: &Names,
    memo: &Path,
    step: &(dyn Fn(u64) -> Result<(), Error> + Sync),
) -> Result<Vec<Entry>, Error> {
    let remembered = recall(&memo.join(MEMORY));
    let entries: Vec<(Entry, bool)> = files
        .into_par_iter()
        .map(|seen| match remembered.get(&names.of("file", &seen.file)).filter(|r| r.stat == seen.stat) {
            Some(r) => {
                let name = names.file(&seen.file);
                Ok((Entry { name, content: r.content.clone(), outcome: r.outcome.clone(), seen }, false))
            }
            None => {
                step(seen.stat.bytes)?;
                Ok((look(seen, names), true))
            }
        })
        .collect::<Result<_, Error>>()?;
    if entries.iter().any(|(_, is_new)| *is_new) || entries.len() != remembered.len() {
        // A memory that cannot be kept costs the next run time, nothing else.
        if let Err(e) = remember(memo, names, &entries) {
            tracing::warn!(error = %e, "what was read of the archive is not remembered");
        }
    }
    Ok(entries.into_iter().map(|(e, _)| e).collect())
}

/// Whether a name says NIfTI.
pub fn is_nifti(file: &str) -> bool {
    let lower = file.to_ascii_lowercase();
    lower.ends_with(".nii") || lower.ends_with(".nii.gz")
}

fn look(seen: Seen, names: &Names) -> Entry {
    let name = names.file(&seen.file);
    let lower = seen.file.to_ascii_lowercase();
    if [".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".7z", ".rar"].iter().any(|e| lower.ends_with(e)) {
        return Entry { seen, name, content: String::new(), outcome: Outcome::Container };
    }
    let (content, mut outcome) = match look_inside(&seen) {
        Ok(found) => found,
        Err(e) => (String::new(), Outcome::Unreadable(e.to_string())),
    };
    match &mut outcome {
        Outcome::Dicom(h) => names.hide(h),
        Outcome::None(none) => names.hide_broken(none),
        _ => {}
    }
    Entry { seen, name, content, outcome }
}

fn look_inside(seen: &Seen) -> std::io::Result<(String, Outcome)> {
    if seen.stat.bytes == 0 {
        return Ok((String::new(), Outcome::None(NoHeader::Empty)));
    }
    if is_nifti(&seen.file) {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(std::fs::File::open(&seen.path)?)?;
        return Ok((hasher.finalize().to_hex().to_string(), Outcome::Nifti));
    }
    // A look at the first bytes spares reading what is no DICOM to its end.
    let raw = Source::raw_at(&seen.path, None)?;
    let start = raw.read_at(0, 4096.min(raw.len() as usize))?;
    let is_gzip = start.starts_with(&[0x1f, 0x8b]);
    let mut unfolded = Vec::new();
    if is_gzip {
        // What follows the first bytes is cut off here, which the reader tells as an error after giving what it has.
        let _ = std::io::Read::read_to_end(&mut std::io::Read::take(flate2::read::GzDecoder::new(&start[..]), 512), &mut unfolded);
    }
    if scan::meta(if is_gzip { &unfolded } else { &start }).is_none() {
        return Ok((String::new(), Outcome::None(NoHeader::NotDicom)));
    }
    let (source, content) = Source::open_hashed(&seen.path, None)?;
    let outcome = match header::of_source(&source)? {
        Ok(h) => Outcome::Dicom(Box::new(h)),
        Err(none) => Outcome::None(none),
    };
    Ok((content, outcome))
}

fn recall(path: &Path) -> HashMap<String, Remembered> {
    let Ok(file) = std::fs::File::open(path) else { return HashMap::new() };
    let lines: Vec<String> = std::io::BufReader::new(file).lines().map_while(Result::ok).collect();
    // A line that cannot be read (a torn write, an older layout) is a file to read again.
    lines.par_iter().filter_map(|l| serde_json::from_str::<Remembered>(l).ok()).map(|r| (r.file.clone(), r)).collect()
}

/// Written beside under a name of its own (two processes may look at one archive), then put in place.
fn remember(memo: &Path, names: &Names, entries: &[(Entry, bool)]) -> std::io::Result<()> {
    static N: AtomicU64 = AtomicU64::new(0);
    let beside = memo.join(format!("{MEMORY}.{}-{}.new", std::process::id(), N.fetch_add(1, Ordering::Relaxed)));
    let written = write_memory(&beside, names, entries).and_then(|()| std::fs::rename(&beside, memo.join(MEMORY)));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written
}

fn write_memory(path: &Path, names: &Names, entries: &[(Entry, bool)]) -> std::io::Result<()> {
    let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
    let mut how = std::fs::OpenOptions::new();
    how.write(true).create(true).truncate(true);
    // Headers are nobody else's business, whatever the names in them.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut how, 0o600);
    let mut out = std::io::BufWriter::new(how.open(path)?);
    for (e, _) in entries {
        let is_fresh = e.seen.stat.modified_ns.max(e.seen.stat.changed_ns) > now_ns - TOO_FRESH_NS;
        if is_fresh || matches!(e.outcome, Outcome::Unreadable(_)) {
            continue;
        }
        let file = names.of("file", &e.seen.file);
        let line = Remembered { file, stat: e.seen.stat, content: e.content.clone(), outcome: e.outcome.clone() };
        serde_json::to_writer(&mut out, &line)?;
        out.write_all(b"\n")?;
    }
    out.into_inner().map_err(|e| e.into_error())?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::dicom::walk::walk;

    fn count_reads(root: &Path, memo: &Path) -> (u64, Vec<Entry>) {
        let n = AtomicU64::new(0);
        let step = |_: u64| {
            n.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        let entries = read_all(walk(root).unwrap().files, &Names::Own, memo, &step).unwrap();
        (n.into_inner(), entries)
    }

    #[test]
    fn an_unchanged_archive_is_not_read_again() {
        let (root, memo) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(root.path().join("a.txt"), "no DICOM, but something").unwrap();
        std::fs::write(root.path().join("b.nii"), "by name").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(150));
        let (first, entries) = count_reads(root.path(), memo.path());
        assert_eq!(first, 2);
        assert_eq!(entries[0].outcome, Outcome::None(NoHeader::NotDicom));
        assert_eq!(entries[1].outcome, Outcome::Nifti);
        assert_eq!(count_reads(root.path(), memo.path()).0, 0);
        std::fs::write(root.path().join("a.txt"), "changed").unwrap();
        assert_eq!(count_reads(root.path(), memo.path()).0, 1);
        std::fs::write(memo.path().join(MEMORY), "{torn").unwrap();
        assert!(count_reads(root.path(), memo.path()).0 >= 1);
    }
}
