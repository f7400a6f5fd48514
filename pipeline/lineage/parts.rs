//! Rows of one table on their way to disk: they gather in memory and go to parts, small parts are put together.

use std::path::{Path, PathBuf};

use voxmill_schemas::tables::{ArtifactRow, CheckpointRow, EdgeRow, ExecutionRow, QuarantineRow, Row, TrafficRow};
use voxmill_stages::error::Error;
use voxmill_stages::table::{self, Beside};

pub struct Buffer<R> {
    folder: PathBuf,
    pub rows: Vec<R>,
    next_part: u32,
    /// Ranges of the small parts on disk.
    small: Vec<(u32, u32)>,
}

/// What is done to the tables of a run whatever their rows are.
pub trait Parts {
    fn n_rows(&self) -> usize;
    /// The rows that wait, as a file that is not in its place yet.
    fn part(&mut self, run: &str) -> Result<Option<Beside>, Error>;
    /// Puts the small parts together where there are `at_least` that many (and more than one).
    fn merge(&mut self, run: &str, at_least: usize) -> Result<(), Error>;
}

impl<R: Row> Buffer<R> {
    fn new(lineage: &Path) -> Self {
        Self { folder: lineage.join(R::TABLE), rows: Vec::new(), next_part: 0, small: Vec::new() }
    }
}

impl<R: Row> Parts for Buffer<R> {
    fn n_rows(&self) -> usize {
        self.rows.len()
    }

    fn part(&mut self, run: &str) -> Result<Option<Beside>, Error> {
        if self.rows.is_empty() {
            return Ok(None);
        }
        let rows = std::mem::take(&mut self.rows);
        let range = (self.next_part, self.next_part);
        let part = Beside::new(&self.folder.join(part_name(run, range)))?.with_rows(&R::to_batch(&rows))?;
        self.next_part += 1;
        self.small.push(range);
        Ok(Some(part))
    }

    fn merge(&mut self, run: &str, at_least: usize) -> Result<(), Error> {
        if self.small.len() < at_least.max(2) {
            return Ok(());
        }
        let path = |range: &(u32, u32)| self.folder.join(part_name(run, *range));
        // One that could not be put in its place is not there.
        let parts: Vec<_> = std::mem::take(&mut self.small).into_iter().filter(|range| path(range).is_file()).collect();
        if parts.len() < 2 {
            self.small = parts;
            return Ok(());
        }
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

/// The tables of a run but for `runs`, whose one row is rewritten at its end.
pub struct Buffers {
    pub executions: Buffer<ExecutionRow>,
    pub quarantine: Buffer<QuarantineRow>,
    pub artifacts: Buffer<ArtifactRow>,
    pub edges: Buffer<EdgeRow>,
    pub checkpoints: Buffer<CheckpointRow>,
    pub traffic: Buffer<TrafficRow>,
}

impl Buffers {
    pub const TABLES: [&str; 6] =
        [ExecutionRow::TABLE, QuarantineRow::TABLE, ArtifactRow::TABLE, EdgeRow::TABLE, CheckpointRow::TABLE, TrafficRow::TABLE];

    pub fn new(lineage: &Path) -> Self {
        Self {
            executions: Buffer::new(lineage),
            quarantine: Buffer::new(lineage),
            artifacts: Buffer::new(lineage),
            edges: Buffer::new(lineage),
            checkpoints: Buffer::new(lineage),
            traffic: Buffer::new(lineage),
        }
    }

    pub fn all(&mut self) -> [&mut dyn Parts; 6] {
        [&mut self.executions, &mut self.quarantine, &mut self.artifacts, &mut self.edges, &mut self.checkpoints, &mut self.traffic]
    }

    /// Rows of the fullest.
    pub fn most(&mut self) -> usize {
        self.all().iter().map(|b| b.n_rows()).max().unwrap_or(0)
    }
}

pub fn part_name(run: &str, (first, last): (u32, u32)) -> String {
    format!("{run}-{first:06}-{last:06}.parquet")
}
