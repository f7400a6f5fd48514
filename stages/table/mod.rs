//! Rows ↔ Parquet, and SQL over tables. The door for `parquet`, `datafusion` and `tokio`: no async outside.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use voxmill_schemas::tables::Row;

use crate::error::Error;
use crate::stage::Rows;

/// Writes `DIR/STEM.parquet`: equal batches give equal bytes.
pub fn write(_dir: &Path, _stem: &str, _batch: &RecordBatch) -> Result<(), Error> {
    unimplemented!()
}

/// Writes rows under the name of their table.
pub fn write_rows<R: Row>(dir: &Path, rows: &[R]) -> Result<(), Error> {
    write(dir, R::TABLE, &R::to_batch(rows))
}

/// One Parquet file as one batch.
pub fn read(_path: &Path) -> Result<RecordBatch, Error> {
    unimplemented!()
}

/// Every `*.parquet` of a table artifact, by stem.
pub fn open(_dir: &Path) -> Result<Rows, Error> {
    unimplemented!()
}

/// The rows of `R`'s table among these.
pub fn rows_of<R: Row>(_rows: &Rows) -> Result<Vec<R>, Error> {
    unimplemented!()
}

/// What a SQL query may ask: batches in memory, or Parquet files that are read as far as the query needs.
pub enum Source {
    Rows(RecordBatch),
    Files(Vec<PathBuf>),
}

/// Runs one SELECT over named tables. DDL and DML are refused.
pub fn query(_tables: BTreeMap<String, Source>, _sql: &str) -> Result<Vec<RecordBatch>, Error> {
    unimplemented!()
}

/// The rows of `table` for which a SQL condition holds (`where:` of a stage), in their order.
pub fn select(_rows: &Rows, _table: &str, _condition: &str) -> Result<RecordBatch, Error> {
    unimplemented!()
}

/// Whether a condition could be run on this table at all: unknown columns and syntax are found before a run.
pub fn check_condition(_schema: &arrow::datatypes::Schema, _table: &str, _condition: &str) -> Result<(), Error> {
    unimplemented!()
}
