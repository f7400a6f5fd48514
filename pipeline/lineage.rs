//! What ran, in Parquet: `lineage/{runs,executions,quarantine}/RUN*.parquet` of the workspace. A killed run leaves what it had done up to the last
//! second, in files that any Parquet reader opens.
//!
//! Rows gather in memory and go to parts, each written beside, synced and renamed. A part is named by the range it covers: `RUN-000003-000003` is the
//! fourth, `RUN-000000-000031` takes the place of 32 small ones (what a crash leaves of those is ignored and swept). So files stay few, and memory does
//! not grow with the archive. Processes that share a workspace write under different runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use voxmill_schemas::tables::{ExecutionRow, QuarantineRow, Row, RunRow};
use voxmill_stages::error::Error;
use voxmill_stages::store::Counts;
use voxmill_stages::table;

/// A part is written when it is this long.
const ROWS_OF_A_PART: usize = 256;
/// No row waits longer than this for the disk.
const WAIT: Duration = Duration::from_secs(1);
/// That many small parts are put together.
const MERGED: usize = 32;

/// The rows of one run. Workers push into it; dropping it writes what is left, [`Lineage::finish`] also says how the run ended.
pub struct Lineage {
    /// Names the run: its start in UTC and a few digits that tell processes apart.
    pub run: String,
    live: Option<(Arc<Shared>, JoinHandle<()>)>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    start: RunRow,
    folder: PathBuf,
    executions: Buffer<ExecutionRow>,
    quarantine: Buffer<QuarantineRow>,
    counts: Counts,
    flushed: Instant,
    /// The first failure to write; told at the end.
    failed: Option<Error>,
    closing: bool,
}

struct Buffer<R> {
    folder: PathBuf,
    rows: Vec<R>,
    next_part: u32,
    /// Ranges of the small parts on disk.
    small: Vec<(u32, u32)>,
}

impl Lineage {
    /// One that keeps nothing: for commands that only look.
    pub fn silent() -> Self {
        Self { run: String::new(), live: None }
    }

    /// Writes the row of the run with status `running`. `start`: everything but `run`, `started_ms`, `ended_ms` and `status`.
    pub fn begin(workspace: &Path, start: RunRow) -> Result<Self, Error> {
        let folder = workspace.join("lineage");
        for table in [RunRow::TABLE, ExecutionRow::TABLE, QuarantineRow::TABLE] {
            let place = folder.join(table);
            std::fs::create_dir_all(&place).map_err(Error::io("make folder", &place))?;
            sorted_out(&place).1.iter().for_each(|part| drop(std::fs::remove_file(part)));
        }
        let run = unique_name();
        let start = RunRow { run: run.clone(), started_ms: now_ms(), ended_ms: None, status: "running".into(), ..start };
        write_run(&folder, &start)?;
        let state = State {
            executions: Buffer::new(&folder),
            quarantine: Buffer::new(&folder),
            start,
            folder,
            counts: Counts::default(),
            flushed: Instant::now(),
            failed: None,
            closing: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let theirs = shared.clone();
        let writer = std::thread::Builder::new()
            .name("lineage".into())
            .spawn(move || write_in_time(&theirs))
            .map_err(Error::io("start", "the lineage thread"))?;
        Ok(Self { run, live: Some((shared, writer)) })
    }

    /// `counts`: hits of the shelves so far. The row gets those since the row before, so that they add up; cases side by side share them.
    pub fn push(&self, row: ExecutionRow, counts: Counts) {
        self.with(|s| {
            let since = |now: u64, then: u64| now.saturating_sub(then) as i64;
            let was = std::mem::replace(&mut s.counts, counts);
            s.executions.rows.push(ExecutionRow {
                ram_hits: since(counts.ram_hits, was.ram_hits),
                nvme_hits: since(counts.nvme_hits, was.nvme_hits),
                disk_reads: since(counts.disk_reads, was.disk_reads),
                ..row
            });
        });
    }

    pub fn quarantine(&self, row: QuarantineRow) {
        self.with(|s| s.quarantine.rows.push(row));
    }

    fn with(&self, put: impl FnOnce(&mut State)) {
        let Some((shared, _)) = &self.live else { return };
        let mut state = shared.lock();
        put(&mut state);
        let is_full = state.executions.rows.len() >= ROWS_OF_A_PART || state.quarantine.rows.len() >= ROWS_OF_A_PART;
        // The first row after a pause goes to disk at once, the ones right behind it within `WAIT`.
        if is_full || state.flushed.elapsed() >= WAIT {
            state.flush();
        }
    }

    /// Writes what is left and how the run ended.
    pub fn finish(mut self, status: &str) -> Result<(), Error> {
        let Some(shared) = self.stop() else { return Ok(()) };
        let mut state = shared.lock();
        state.flush();
        state.merge(1);
        let end = RunRow { ended_ms: Some(now_ms()), status: status.into(), ..state.start.clone() };
        let ended = write_run(&state.folder, &end);
        state.failed.take().map_or(ended, Err)
    }

    fn stop(&mut self) -> Option<Arc<Shared>> {
        let (shared, writer) = self.live.take()?;
        shared.lock().closing = true;
        shared.changed.notify_all();
        // The thread holds the lock only in `flush`, which does not panic.
        let _ = writer.join();
        Some(shared)
    }
}

impl Drop for Lineage {
    fn drop(&mut self) {
        if let Some(shared) = self.stop() {
            shared.lock().flush();
        }
    }
}

impl Shared {
    /// Rows are pushed whole, so what a panicking thread leaves is still good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write_in_time(shared: &Shared) {
    let mut state = shared.lock();
    while !state.closing {
        let waits = !(state.executions.rows.is_empty() && state.quarantine.rows.is_empty());
        let left = WAIT.saturating_sub(state.flushed.elapsed());
        if waits && left.is_zero() {
            state.flush();
            continue;
        }
        state = shared.changed.wait_timeout(state, if waits { left } else { WAIT }).unwrap_or_else(PoisonError::into_inner).0;
    }
}

impl State {
    fn flush(&mut self) {
        let written = self.executions.flush(&self.start.run);
        self.note(written);
        let written = self.quarantine.flush(&self.start.run);
        self.flushed = Instant::now();
        self.note(written);
        self.merge(MERGED);
    }

    fn merge(&mut self, at_least: usize) {
        let merged = self.executions.merge(&self.start.run, at_least);
        self.note(merged);
        let merged = self.quarantine.merge(&self.start.run, at_least);
        self.note(merged);
    }

    fn note(&mut self, done: Result<(), Error>) {
        if let Err(e) = done {
            if self.failed.is_none() {
                tracing::warn!("lineage is not written: {}", voxmill_stages::error::chain(&e));
            }
            self.failed.get_or_insert(e);
        }
    }
}

impl<R: Row + Clone> Buffer<R> {
    fn new(folder: &Path) -> Self {
        Self { folder: folder.join(R::TABLE), rows: Vec::new(), next_part: 0, small: Vec::new() }
    }

    /// Rows that cannot be written are given up, so that a full disk does not become full memory.
    fn flush(&mut self, run: &str) -> Result<(), Error> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.rows);
        let range = (self.next_part, self.next_part);
        table::write_durably(&self.folder.join(part_name(run, range)), &R::to_batch(&rows))?;
        self.next_part += 1;
        self.small.push(range);
        Ok(())
    }

    /// Puts the small parts together where there are `at_least` that many (and more than one).
    fn merge(&mut self, run: &str, at_least: usize) -> Result<(), Error> {
        if self.small.len() < at_least.max(2) {
            return Ok(());
        }
        let parts = std::mem::take(&mut self.small);
        let path = |range: &(u32, u32)| self.folder.join(part_name(run, *range));
        let mut rows = Vec::new();
        for range in &parts {
            let from = path(range);
            let batch = table::read(&from)?;
            rows.extend(R::from_batch(&batch).map_err(|e| Error::Table { doing: "understand", path: from, source: Box::new(e) })?);
        }
        let whole = (parts[0].0, parts[parts.len() - 1].1);
        table::write_durably(&path(&whole), &R::to_batch(&rows))?;
        parts.iter().for_each(|range| drop(std::fs::remove_file(path(range))));
        Ok(())
    }
}

fn part_name(run: &str, (first, last): (u32, u32)) -> String {
    format!("{run}-{first:06}-{last:06}.parquet")
}

fn write_run(folder: &Path, row: &RunRow) -> Result<(), Error> {
    let path = folder.join(RunRow::TABLE).join(format!("{}.parquet", row.run));
    table::write_durably(&path, &RunRow::to_batch(std::slice::from_ref(row)))
}

/// The Parquet files of a lineage table, oldest run first; small parts that a merged one stands for are left out.
pub fn files(workspace: &Path, table: &str) -> Vec<PathBuf> {
    sorted_out(&workspace.join("lineage").join(table)).0
}

/// Files that count, and parts that a merged file stands for (a crash between merging and removing leaves them).
fn sorted_out(folder: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let found = table::files(folder).unwrap_or_default();
    let range_of = |stem: &str| -> Option<(String, u32, u32)> {
        let (rest, last) = stem.rsplit_once('-')?;
        let (run, first) = rest.rsplit_once('-')?;
        (first.len() == 6 && last.len() == 6).then_some(())?;
        Some((run.to_string(), first.parse().ok()?, last.parse().ok()?))
    };
    let mut merged: BTreeMap<String, Vec<(u32, u32)>> = BTreeMap::new();
    for (run, first, last) in found.keys().filter_map(|s| range_of(s)).filter(|(_, first, last)| first < last) {
        merged.entry(run).or_default().push((first, last));
    }
    let stands_elsewhere = |stem: &str| {
        range_of(stem).is_some_and(|(run, first, last)| {
            merged.get(&run).is_some_and(|m| m.iter().any(|(f, l)| (*f, *l) != (first, last) && *f <= first && last <= *l))
        })
    };
    let (superfluous, counted): (Vec<_>, Vec<_>) = found.into_iter().partition(|(stem, _)| stands_elsewhere(stem));
    let paths = |v: Vec<(String, PathBuf)>| v.into_iter().map(|(_, path)| path).collect();
    (paths(counted), paths(superfluous))
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}

/// `20260731T142501-3fa2b1`: sorts by start; process, nanosecond and count keep runs apart.
pub fn unique_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let salt = format!("{}/{}/{}", std::process::id(), now.as_nanos(), COUNT.fetch_add(1, Ordering::Relaxed));
    format!("{}-{}", utc(now.as_secs()), &blake3::hash(salt.as_bytes()).to_hex()[..6])
}

/// Seconds since 1970 as `YYYYMMDDThhmmss` (days → civil date after Howard Hinnant).
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn begin(dir: &Path) -> Lineage {
        Lineage::begin(dir, RunRow { pipeline: "p".into(), purpose: "run".into(), ..Default::default() }).unwrap()
    }

    fn row(l: &Lineage, n: i64) -> ExecutionRow {
        ExecutionRow { run: l.run.clone(), node: "iso".into(), took_ms: n, status: "made".into(), ..Default::default() }
    }

    fn read<R: Row>(dir: &Path) -> Vec<R> {
        files(dir, R::TABLE).iter().flat_map(|f| R::from_batch(&table::read(f).unwrap()).unwrap()).collect()
    }

    #[test]
    fn rows_of_many_threads_are_all_there_in_few_files() {
        let dir = tempfile::tempdir().unwrap();
        let lineage = begin(dir.path());
        std::thread::scope(|s| {
            for t in 0..4 {
                let lineage = &lineage;
                s.spawn(move || (0..3000).for_each(|n| lineage.push(row(lineage, t * 3000 + n), Counts::default())));
            }
        });
        lineage.quarantine(QuarantineRow { run: lineage.run.clone(), node: "iso".into(), what: "c".into(), why: "no".into() });
        lineage.finish("done").unwrap();
        let mut rows: Vec<i64> = read::<ExecutionRow>(dir.path()).into_iter().map(|r| r.took_ms).collect();
        rows.sort();
        assert_eq!(rows, (0..12_000).collect::<Vec<_>>());
        assert_eq!(read::<QuarantineRow>(dir.path()).len(), 1);
        let runs = read::<RunRow>(dir.path());
        assert_eq!((runs.len(), runs[0].status.as_str()), (1, "done"));
        assert!(runs[0].ended_ms.unwrap() >= runs[0].started_ms);
        let n = std::fs::read_dir(dir.path().join("lineage/executions")).unwrap().count();
        assert!(n <= 3, "{n} files");
    }

    #[test]
    fn a_run_that_never_ends_leaves_its_rows() {
        let dir = tempfile::tempdir().unwrap();
        let lineage = begin(dir.path());
        lineage.push(row(&lineage, 1), Counts { ram_hits: 5, ..Counts::default() });
        std::thread::sleep(WAIT * 2);
        let written = read::<ExecutionRow>(dir.path());
        assert_eq!((written.len(), written[0].ram_hits), (1, 5), "written while the run goes on");
        lineage.push(row(&lineage, 2), Counts { ram_hits: 7, ..Counts::default() });
        std::thread::sleep(WAIT * 2);
        let hits: Vec<i64> = read::<ExecutionRow>(dir.path()).iter().map(|r| r.ram_hits).collect();
        assert_eq!(hits, [5, 2], "hits are counted once");
        std::mem::forget(lineage);
        assert_eq!(read::<RunRow>(dir.path())[0].status, "running");
    }

    #[test]
    fn parts_left_by_a_crash_in_a_merge_count_once() {
        let dir = tempfile::tempdir().unwrap();
        let lineage = begin(dir.path());
        let run = lineage.run.clone();
        let folder = dir.path().join("lineage/executions");
        let part = |range, n: &[i64]| {
            let rows: Vec<_> = n.iter().map(|n| row(&lineage, *n)).collect();
            table::write_durably(&folder.join(part_name(&run, range)), &ExecutionRow::to_batch(&rows)).unwrap();
        };
        part((0, 0), &[1]);
        part((1, 1), &[2]);
        part((0, 1), &[1, 2]);
        part((2, 2), &[3]);
        std::fs::write(folder.join(format!("{run}-000003-000003.parquet.99.new")), "half a file").unwrap();
        let rows: Vec<i64> = read::<ExecutionRow>(dir.path()).into_iter().map(|r| r.took_ms).collect();
        assert_eq!(rows, [1, 2, 3]);
    }

    #[test]
    fn runs_of_one_second_do_not_collide() {
        let dir = tempfile::tempdir().unwrap();
        let names: std::collections::BTreeSet<String> = (0..40).map(|_| begin(dir.path()).run.clone()).collect();
        assert_eq!(names.len(), 40);
        assert_eq!(read::<RunRow>(dir.path()).len(), 40);
    }

    #[test]
    fn a_silent_one_keeps_nothing() {
        let lineage = Lineage::silent();
        lineage.push(ExecutionRow::default(), Counts::default());
        lineage.finish("done").unwrap();
    }

    #[test]
    fn a_workspace_that_cannot_be_written_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("lineage"), "a file").unwrap();
        assert!(Lineage::begin(dir.path(), RunRow::default()).is_err());
    }

    #[test]
    fn dates_are_civil() {
        assert_eq!(utc(0), "19700101T000000");
        assert_eq!(utc(951_782_400), "20000229T000000");
        assert_eq!(utc(1_785_507_901), "20260731T142501");
    }
}
