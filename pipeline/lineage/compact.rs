//! Files of many ended runs become few, so that a workspace of thousands of runs is asked as quickly as one of ten. `FIRST..LAST.parquet` stands for every
//! file of the runs from FIRST to LAST; what a crash leaves of those is ignored and swept. A run holds a lock as long as it lives: neither it nor any run
//! that began after it, or within the last hour (clocks of machines differ), is touched.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use voxmill_schemas::tables::{ArtifactRow, CheckpointRow, EdgeRow, ExecutionRow, QuarantineRow, Row, RunRow, TrafficRow};
use voxmill_stages::error::Error;
use voxmill_stages::table;

use super::{range_of, sorted_out, utc};

/// A table with more files than this is compacted.
const FILES: usize = 48;
/// Fewer neighbours are left as they are: what was put together is not written again for each run.
const LEAST: usize = 16;
/// Files with more rows are left as they are.
const ROWS: u64 = 1 << 20;
const YOUNG: Duration = Duration::from_secs(3600);
const LIVE: &str = ".live";
/// Columns that are asked for one value.
const LOOKED_UP: [&str; 6] = ["run", "key", "input", "case", "patient", "series"];

/// Says that a run lives, until it is dropped.
pub struct Live {
    path: PathBuf,
    /// Held, never read.
    _lock: File,
}

impl Live {
    pub fn begin(lineage: &Path, run: &str) -> Result<Self, Error> {
        let folder = lineage.join(LIVE);
        std::fs::create_dir_all(&folder).map_err(Error::io("make folder", &folder))?;
        let path = folder.join(run);
        let lock = File::create(&path).map_err(Error::io("write", &path))?;
        lock.try_lock().map_err(|e| match e {
            TryLockError::Error(e) => Error::io("lock", &path)(e),
            TryLockError::WouldBlock => Error::io("lock", &path)(std::io::ErrorKind::WouldBlock.into()),
        })?;
        Ok(Self { path, _lock: lock })
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The name of a new run, behind every run that was put together: one that a clock set back has named among those would be taken for one of them.
pub fn behind_all(lineage: &Path, name: String) -> String {
    let stems = TABLES.iter().flat_map(|(table, _)| table::files(&lineage.join(table)).unwrap_or_default().into_keys());
    let last = stems.filter(|s| s.contains("..")).filter_map(|s| Some(span_of(&s)?.1)).max();
    match last {
        Some(last) if name <= last => format!("{last}x{}", name.rsplit('-').next().unwrap_or_default()),
        _ => name,
    }
}

type Merge = fn(&[PathBuf], &Path, &[&str]) -> Result<(), Error>;

const TABLES: [(&str, Merge); 7] = [
    (RunRow::TABLE, table::merge::<RunRow>),
    (ExecutionRow::TABLE, table::merge::<ExecutionRow>),
    (QuarantineRow::TABLE, table::merge::<QuarantineRow>),
    (ArtifactRow::TABLE, table::merge::<ArtifactRow>),
    (EdgeRow::TABLE, table::merge::<EdgeRow>),
    (CheckpointRow::TABLE, table::merge::<CheckpointRow>),
    (TrafficRow::TABLE, table::merge::<TrafficRow>),
];

/// Puts files of ended runs together where a table has many. One process at a time: another one leaves it to the first.
pub fn compact(lineage: &Path) -> Result<(), Error> {
    compact_older(lineage, SystemTime::now().checked_sub(YOUNG).unwrap_or(UNIX_EPOCH))
}

fn compact_older(lineage: &Path, than: SystemTime) -> Result<(), Error> {
    let is_full = |(name, _): &&(&str, Merge)| sorted_out(&lineage.join(name)).0.len() > FILES;
    if !TABLES.iter().any(|t| is_full(&t)) {
        return Ok(());
    }
    let folder = lineage.join(LIVE);
    std::fs::create_dir_all(&folder).map_err(Error::io("make folder", &folder))?;
    let path = folder.join(".compacting");
    let lock = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io("write", &path))?;
    if lock.try_lock().is_err() {
        return Ok(());
    }
    let young = utc(than.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
    let before = oldest_alive(&folder)?.map_or(young.clone(), |run| run.min(young));
    // One that cannot be read keeps none of the others from it.
    let done: Vec<_> = TABLES.iter().filter(is_full).map(|(name, merge)| compact_table(&lineage.join(name), &before, *merge)).collect();
    done.into_iter().collect()
}

/// Neighbours in the order of runs, as many as fit into a file.
fn compact_table(folder: &Path, before: &str, merge: Merge) -> Result<(), Error> {
    let mut group: Vec<PathBuf> = Vec::new();
    let mut n_rows = 0;
    let put = |group: &mut Vec<PathBuf>| -> Result<(), Error> {
        let files = std::mem::take(group);
        let (Some(first), Some(last)) = (files.first().and_then(|f| span_of(stem(f))), files.last().and_then(|f| span_of(stem(f)))) else {
            return Ok(());
        };
        if files.len() < LEAST {
            return Ok(());
        }
        let to = folder.join(format!("{}..{}.parquet", first.0, last.1));
        merge(&files, &to, &LOOKED_UP)?;
        files.iter().filter(|f| **f != to).for_each(|f| drop(std::fs::remove_file(f)));
        Ok(())
    };
    for file in sorted_out(folder).0 {
        let rows = table::n_rows(&file)?;
        let is_old = span_of(stem(&file)).is_some_and(|(_, last)| last.as_str() < before);
        if !is_old || n_rows + rows > ROWS {
            put(&mut group)?;
            n_rows = 0;
        }
        if is_old && rows <= ROWS {
            group.push(file);
            n_rows += rows;
        }
    }
    put(&mut group)
}

fn stem(path: &Path) -> &str {
    path.file_stem().and_then(|s| s.to_str()).unwrap_or_default()
}

/// First and last run that a file holds: `A..B`, `A` or `A-000000-000031`. `None`: no file of ours.
pub fn span_of(stem: &str) -> Option<(String, String)> {
    if let Some((first, last)) = stem.split_once("..") {
        return (first <= last).then(|| (first.into(), last.into()));
    }
    let run = range_of(stem).map_or_else(|| stem.to_string(), |(run, ..)| run);
    Some((run.clone(), run))
}

/// The first run that a process still writes; names of dead ones are swept.
fn oldest_alive(folder: &Path) -> Result<Option<String>, Error> {
    let mut oldest: Option<String> = None;
    for entry in std::fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        let Some(run) = path.file_name().and_then(|n| n.to_str()).filter(|n| !n.starts_with('.')).map(str::to_string) else { continue };
        let is_dead = File::open(&path).is_ok_and(|f| f.try_lock().is_ok());
        if is_dead {
            let _ = std::fs::remove_file(&path);
        } else if oldest.as_ref().is_none_or(|o| run < *o) {
            oldest = Some(run);
        }
    }
    Ok(oldest)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn write(lineage: &Path, name: &str, runs: &[&str]) {
        let rows: Vec<RunRow> = runs.iter().map(|run| RunRow { run: run.to_string(), ..RunRow::default() }).collect();
        let folder = lineage.join(RunRow::TABLE);
        std::fs::create_dir_all(&folder).unwrap();
        table::write_durably(&folder.join(format!("{name}.parquet")), &RunRow::to_batch(&rows)).unwrap();
    }

    fn runs(lineage: &Path) -> (usize, Vec<String>) {
        let files = sorted_out(&lineage.join(RunRow::TABLE)).0;
        let rows = files.iter().flat_map(|f| RunRow::from_batch(&table::read(f).unwrap()).unwrap());
        (files.len(), rows.map(|r| r.run).collect())
    }

    #[test]
    fn old_runs_become_few_files_and_no_row_is_lost_or_doubled() {
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..60).map(|i| format!("20260101T0000{i:02}-abcdef")).collect();
        names.iter().for_each(|n| write(dir.path(), n, &[n]));
        compact_older(dir.path(), UNIX_EPOCH).unwrap();
        assert_eq!(runs(dir.path()), (60, names.clone()), "young ones stay");
        // The fifty-first is at work: it and what began after it stay.
        let live = Live::begin(dir.path(), &names[50]).unwrap();
        std::fs::write(dir.path().join(LIVE).join("19990101T000000-dead00"), "").unwrap();
        compact_older(dir.path(), SystemTime::now()).unwrap();
        assert_eq!(runs(dir.path()), (11, names.clone()));
        drop(live);
        assert_eq!(std::fs::read_dir(dir.path().join(LIVE)).unwrap().count(), 1, "the lock of compaction");
        // A clock that was set back names no run among those that were put together.
        assert_eq!(behind_all(dir.path(), "20250101T000000000-123456".into()), format!("{}x123456", names[49]));
        assert_eq!(behind_all(dir.path(), "20270101T000000000-123456".into()), "20270101T000000000-123456");
        // A crash after the new file was written left an old one.
        write(dir.path(), &names[3], &[&names[3]]);
        assert_eq!(runs(dir.path()), (11, names.clone()));
        // More runs join what was put together before.
        let more: Vec<String> = (0..60).map(|i| format!("20260202T0000{i:02}-abcdef")).collect();
        more.iter().for_each(|n| write(dir.path(), n, &[n]));
        compact_older(dir.path(), SystemTime::now()).unwrap();
        assert_eq!(runs(dir.path()), (1, [names, more].concat()));
    }

    #[test]
    fn a_file_tells_which_runs_it_holds() {
        let span = |s: &str| span_of(s).map(|(a, b)| format!("{a} {b}"));
        assert_eq!(span("20260101T000000-abcdef").as_deref(), Some("20260101T000000-abcdef 20260101T000000-abcdef"));
        assert_eq!(span("20260101T000000-abcdef-000000-000031").as_deref(), Some("20260101T000000-abcdef 20260101T000000-abcdef"));
        assert_eq!(span("a..b").as_deref(), Some("a b"));
        assert_eq!(span("b..a"), None);
    }
}
