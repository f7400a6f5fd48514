//! What ran, in Parquet: `lineage/TABLE/RUN*.parquet` of the workspace (runs, executions, quarantine, artifacts, edges, checkpoints, traffic). A killed run
//! leaves what it had done up to the last second, in files that any Parquet reader opens.
//!
//! Rows gather in memory and go to parts, each written beside, synced and renamed. A part is named by the range it covers: `RUN-000003-000003` is the
//! fourth, `RUN-000000-000031` takes the place of 32 small ones (what a crash leaves of those is ignored and swept). So files stay few, and memory does
//! not grow with the archive. Processes that share a workspace write under different runs.

mod compact;
mod parts;
pub mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use voxmill_schemas::artifact::Manifest;
use voxmill_schemas::tables::{ArtifactRow, CheckpointRow, EdgeRow, ExecutionRow, QuarantineRow, Row, RunRow, TrafficRow};
use voxmill_stages::error::Error;
use voxmill_stages::store::Counts;
use voxmill_stages::table::{self, Beside, RecordBatch, Source};

use self::compact::Live;
pub use self::compact::compact;
use self::parts::Buffers;

/// A part is written when it is this long.
const ROWS_OF_A_PART: usize = 1024;
/// No row waits longer than this for the disk.
const WAIT: Duration = Duration::from_secs(1);
/// That many small parts are put together.
const MERGED: usize = 32;

/// The rows of one run. Workers push into it; dropping it writes what is left, [`Lineage::finish`] also says how the run ended.
pub struct Lineage {
    /// Names the run: its start in UTC and a few digits that tell processes apart.
    pub run: String,
    live: Option<(Arc<Shared>, JoinHandle<()>)>,
    /// Keeps others from putting the files of this run together with those of ended ones.
    lock: Option<Live>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// When the shelves were last looked at, milliseconds since 1970.
    sampled_ms: AtomicI64,
    /// Of networks for batches, since `traffic` was last told.
    waited_us: AtomicI64,
}

struct State {
    start: RunRow,
    folder: PathBuf,
    buffers: Buffers,
    counts: Counts,
    /// As `traffic` was last told.
    sampled: Counts,
    flushed: Instant,
    /// What the first model of the run was computed on.
    device: Option<String>,
    /// The first failure to write; told at the end.
    failed: Option<Error>,
    closing: bool,
}

impl Lineage {
    /// One that keeps nothing: for commands that only look.
    pub fn silent() -> Self {
        Self { run: String::new(), live: None, lock: None }
    }

    /// Writes the row of the run with status `running`. `start`: everything but `run`, `started_ms`, `ended_ms` and `status`.
    pub fn begin(workspace: &Path, start: RunRow) -> Result<Self, Error> {
        let folder = workspace.join("lineage");
        for table in [RunRow::TABLE].iter().chain(&Buffers::TABLES) {
            let place = folder.join(table);
            std::fs::create_dir_all(&place).map_err(Error::io("make folder", &place))?;
            sorted_out(&place).1.iter().for_each(|part| drop(std::fs::remove_file(part)));
        }
        let run = compact::behind_all(&folder, unique_name());
        let lock = Live::begin(&folder, &run)?;
        let start = RunRow { run: run.clone(), started_ms: now_ms(), ended_ms: None, status: "running".into(), ..start };
        let place = Beside::new(&path_of_run(&folder, &run))?;
        let batch = RunRow::to_batch(std::slice::from_ref(&start));
        let state = State {
            buffers: Buffers::new(&folder),
            start,
            folder,
            counts: Counts::default(),
            sampled: Counts::default(),
            flushed: Instant::now(),
            device: None,
            failed: None,
            closing: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            sampled_ms: AtomicI64::new(now_ms()),
            waited_us: AtomicI64::new(0),
        });
        let theirs = shared.clone();
        let writer = std::thread::Builder::new()
            .name("lineage".into())
            .spawn(move || {
                // The work need not wait for the disk.
                let written = place.with_rows(&batch).and_then(|row| table::put_in_place(vec![row]));
                theirs.lock().note(written);
                write_in_time(&theirs);
            })
            .map_err(Error::io("start", "the lineage thread"))?;
        Ok(Self { run, live: Some((shared, writer)), lock: Some(lock) })
    }

    /// `counts`: hits of the shelves so far. The row gets those since the row before, so that they add up; cases side by side share them.
    pub fn push(&self, row: ExecutionRow, counts: Counts) {
        self.with(|s| {
            let was = std::mem::replace(&mut s.counts, counts);
            let [ram_hits, nvme_hits, disk_reads] = since(counts, was);
            s.buffers.executions.rows.push(ExecutionRow { ram_hits, nvme_hits, disk_reads, ..row });
        });
    }

    /// An artifact that was made just now.
    pub fn made(&self, node: &str, m: &Manifest) {
        let (row, edges) = told::artifact(&self.run, node, m, now_ms());
        let device = m.facts.get("device").and_then(|d| d.as_str());
        self.with(|s| {
            s.buffers.artifacts.rows.push(row);
            s.buffers.edges.rows.extend(edges);
            s.device = s.device.take().or(device.map(str::to_string));
        });
    }

    /// `row` without its run and its time.
    pub fn checkpoint(&self, row: CheckpointRow) {
        self.with(|s| s.buffers.checkpoints.rows.push(CheckpointRow { run: self.run.clone(), at_ms: now_ms(), ..row }));
    }

    /// Called often: notes where bricks came from, once a second and at the end of a node.
    /// - `counts`: hits of the shelves so far
    pub fn traffic(&self, node: &str, counts: Counts, is_end: bool) {
        let Some((shared, _)) = &self.live else { return };
        let (now, last) = (now_ms(), shared.sampled_ms.load(Ordering::Relaxed));
        let is_due = is_end || now - last >= WAIT.as_millis() as i64;
        if !is_due || shared.sampled_ms.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        // The rest of a millisecond is left for the next row.
        let waited_ms = shared.waited_us.load(Ordering::Relaxed) / 1000;
        shared.waited_us.fetch_sub(waited_ms * 1000, Ordering::Relaxed);
        self.with(|s| {
            let was = std::mem::replace(&mut s.sampled, counts);
            let [ram_hits, nvme_hits, disk_reads] = since(counts, was);
            if ram_hits + nvme_hits + disk_reads + waited_ms > 0 {
                let (run, node) = (self.run.clone(), node.to_string());
                s.buffers.traffic.rows.push(TrafficRow { run, node, at_ms: now, ram_hits, nvme_hits, disk_reads, waited_ms });
            }
        });
    }

    /// A network waited for a batch.
    pub fn waited(&self, time: Duration) {
        if let Some((shared, _)) = &self.live {
            shared.waited_us.fetch_add(time.as_micros() as i64, Ordering::Relaxed);
        }
    }

    pub fn quarantine(&self, row: QuarantineRow) {
        self.with(|s| s.buffers.quarantine.rows.push(row));
    }

    fn with(&self, put: impl FnOnce(&mut State)) {
        let Some((shared, _)) = &self.live else { return };
        let mut state = shared.lock();
        put(&mut state);
        let is_full = state.buffers.most() >= ROWS_OF_A_PART;
        // The first row after a pause goes to disk at once, the ones right behind it within `WAIT`.
        if is_full || state.flushed.elapsed() >= WAIT {
            state.flush();
        }
    }

    /// Writes what is left and how the run ended.
    pub fn finish(mut self, status: &str) -> Result<(), Error> {
        let Some(shared) = self.stop() else { return Ok(()) };
        let mut state = shared.lock();
        let ended = state.close(status);
        drop(self.lock.take());
        if let Err(e) = compact(&state.folder) {
            tracing::warn!("files of lineage are not put together: {}", voxmill_stages::error::chain(&e));
        }
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
        let waits = state.buffers.most() > 0;
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
        let parts = self.parts();
        let written = table::put_in_place(parts);
        self.flushed = Instant::now();
        self.note(written);
        self.merge(MERGED);
    }

    /// The rows that wait, not in their places yet. Those that cannot be written are given up, so that a full disk does not become full memory.
    fn parts(&mut self) -> Vec<Beside> {
        let run = &self.start.run;
        let parts: Vec<_> = self.buffers.all().into_iter().map(|b| b.part(run)).collect();
        let of_one = |part: Result<Option<Beside>, Error>| {
            part.unwrap_or_else(|e| {
                self.note(Err(e));
                None
            })
        };
        parts.into_iter().filter_map(of_one).collect()
    }

    /// What is left, and how the run ended: no run has ended before its rows are there.
    fn close(&mut self, status: &str) -> Result<(), Error> {
        let mut files = self.parts();
        let end = RunRow { ended_ms: Some(now_ms()), status: status.into(), device: self.device.take(), ..self.start.clone() };
        files.push(Beside::new(&path_of_run(&self.folder, &end.run))?.with_rows(&RunRow::to_batch(&[end]))?);
        table::put_in_place(files)?;
        self.merge(1);
        Ok(())
    }

    fn merge(&mut self, at_least: usize) {
        let run = &self.start.run;
        let merged: Vec<_> = self.buffers.all().into_iter().map(|b| b.merge(run, at_least)).collect();
        merged.into_iter().for_each(|m| self.note(m));
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

/// RAM, NVMe, disk.
fn since(now: Counts, then: Counts) -> [i64; 3] {
    let more = |now: u64, then: u64| now.saturating_sub(then) as i64;
    [more(now.ram_hits, then.ram_hits), more(now.nvme_hits, then.nvme_hits), more(now.disk_reads, then.disk_reads)]
}

fn path_of_run(folder: &Path, run: &str) -> PathBuf {
    folder.join(RunRow::TABLE).join(format!("{run}.parquet"))
}

/// The Parquet files of a lineage table, oldest run first; small parts that a merged one stands for are left out.
pub fn files(workspace: &Path, table: &str) -> Vec<PathBuf> {
    sorted_out(&workspace.join("lineage").join(table)).0
}

/// Every lineage table of a workspace, for SQL; those without a row as well.
pub fn sources(workspace: &Path) -> BTreeMap<String, Source> {
    fn source<R: Row>(workspace: &Path) -> (String, Source) {
        let files = files(workspace, R::TABLE);
        let source = if files.is_empty() { Source::Rows(R::to_batch(&[])) } else { Source::Table(files, R::schema()) };
        (R::TABLE.to_string(), source)
    }
    BTreeMap::from([
        source::<RunRow>(workspace),
        source::<ExecutionRow>(workspace),
        source::<QuarantineRow>(workspace),
        source::<ArtifactRow>(workspace),
        source::<EdgeRow>(workspace),
        source::<CheckpointRow>(workspace),
        source::<TrafficRow>(workspace),
    ])
}

/// Files that count, and those that a merged file stands for (a crash between merging and removing leaves them).
fn sorted_out(folder: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let found = table::files(folder).unwrap_or_default();
    let mut merged: BTreeMap<String, Vec<(u32, u32)>> = BTreeMap::new();
    for (run, first, last) in found.keys().filter_map(|s| range_of(s)).filter(|(_, first, last)| first < last) {
        merged.entry(run).or_default().push((first, last));
    }
    let spans: Vec<(&String, (String, String))> =
        found.keys().filter(|s| s.contains("..")).filter_map(|s| Some((s, compact::span_of(s)?))).collect();
    let stands_elsewhere = |stem: &String| {
        let in_parts = range_of(stem).is_some_and(|(run, first, last)| {
            merged.get(&run).is_some_and(|m| m.iter().any(|(f, l)| (*f, *l) != (first, last) && *f <= first && last <= *l))
        });
        in_parts
            || compact::span_of(stem)
                .is_some_and(|(first, last)| spans.iter().any(|(other, (f, l))| *other != stem && *f <= first && last <= *l))
    };
    let superfluous: BTreeSet<String> = found.keys().filter(|s| stands_elsewhere(s)).cloned().collect();
    let (left, counted): (Vec<_>, Vec<_>) = found.into_iter().partition(|(stem, _)| superfluous.contains(stem));
    let paths = |v: Vec<(String, PathBuf)>| v.into_iter().map(|(_, path)| path).collect();
    (paths(counted), paths(left))
}

/// Run, first and last part of a file of parts: `RUN-000000-000031`.
fn range_of(stem: &str) -> Option<(String, u32, u32)> {
    let (rest, last) = stem.rsplit_once('-')?;
    let (run, first) = rest.rsplit_once('-')?;
    (first.len() == 6 && last.len() == 6 && !stem.contains("..")).then_some(())?;
    Some((run.to_string(), first.parse().ok()?, last.parse().ok()?))
}

/// SQL over lineage, and over what `more` adds. A file that was put together with others since it was listed is looked for again.
pub fn query(
    workspace: &Path,
    sql: &str,
    more: impl Fn(&mut BTreeMap<String, Source>) -> Result<(), Error>,
) -> Result<Vec<RecordBatch>, Error> {
    let mut tries = 3;
    loop {
        let mut tables = sources(workspace);
        let of = |source: &Source| if let Source::Table(files, _) = source { files.clone() } else { Vec::new() };
        let files: Vec<PathBuf> = tables.values().flat_map(of).collect();
        more(&mut tables)?;
        match table::query(tables, sql) {
            Err(_) if tries > 0 && files.iter().any(|f| !f.exists()) => tries -= 1,
            answer => return answer,
        }
    }
}

pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}

/// `20260731T142501042-3fa2b1`: sorts by start, to the millisecond; process, nanosecond and count keep runs apart.
pub fn unique_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let salt = format!("{}/{}/{}", std::process::id(), now.as_nanos(), COUNT.fetch_add(1, Ordering::Relaxed));
    format!("{}{:03}-{}", utc(now.as_secs()), now.subsec_millis(), &blake3::hash(salt.as_bytes()).to_hex()[..6])
}

/// Seconds since 1970 as `YYYYMMDDThhmmss`.
fn utc(seconds: u64) -> String {
    let (year, month, day) = date(seconds / 86_400);
    let rest = seconds % 86_400;
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Milliseconds since 1970 as ISO 8601: `2026-07-31T14:25:01.042Z`.
pub fn iso(ms: i64) -> String {
    let ms = ms.max(0) as u64;
    let (year, month, day) = date(ms / 86_400_000);
    let rest = ms / 1000 % 86_400;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z", rest / 3600, rest / 60 % 60, rest % 60, ms % 1000)
}

/// Year, month, day of a day since 1970 (after Howard Hinnant).
fn date(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::parts::part_name;
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
