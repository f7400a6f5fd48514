//! Rows ↔ Parquet, and SQL over tables. The door for `parquet`, `datafusion` and `tokio`: no async outside. `sql.rs` asks, `show.rs` prints,
//! this file reads and writes. Parquet files are taken for hostile: a damaged one is an error, never a panic.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

pub use arrow::array::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::properties::WriterProperties;
use voxmill_schemas::tables::Row;

use crate::error::Error;
use crate::stage::Rows;

mod durable;
mod merge;
mod prepared;
pub mod show;
mod sql;
mod text;
pub mod together;

pub use durable::{Beside, put_in_place};
pub use merge::{merge, n_rows};
pub use prepared::{prepared, taken};
pub use sql::{Source, check_condition, query, select};
pub use text::{any_text, changed_text};

/// A table that claims more than this once unpacked is not read into memory.
const LIMIT_BYTES: u64 = 8 << 30;
const ROWS_OF_A_GROUP: usize = 1 << 17;
const ROWS_OF_A_BATCH: usize = 1 << 13;
const FEW_ROWS: usize = 64;

/// Writes `DIR/STEM.parquet`: equal batches give equal bytes (no clock, no version of a library in them).
pub fn write(dir: &Path, stem: &str, batch: &RecordBatch) -> Result<(), Error> {
    let path = dir.join(format!("{stem}.parquet"));
    let bytes = to_bytes(&path, batch)?;
    std::fs::write(&path, bytes).map_err(Error::io("write", &path))
}

/// Writes rows under the name of their table.
pub fn write_rows<R: Row>(dir: &Path, rows: &[R]) -> Result<(), Error> {
    write(dir, R::TABLE, &R::to_batch(rows))
}

/// Writes rows that come in portions, each a row group of the file: for tables that are not held in memory.
pub fn write_portions<R: Row>(dir: &Path, portions: impl Iterator<Item = Result<Vec<R>, Error>>) -> Result<(), Error> {
    let path = dir.join(format!("{}.parquet", R::TABLE));
    let file = std::io::BufWriter::new(std::fs::File::create(&path).map_err(Error::io("write", &path))?);
    let wrong = |e| table_error("write", &path, e);
    let mut writer = ArrowWriter::try_new(file, R::schema(), Some(properties(zstd()))).map_err(wrong)?;
    for rows in portions {
        writer.write(&R::to_batch(&rows?)).and_then(|()| writer.flush()).map_err(wrong)?;
    }
    writer.close().map(|_| ()).map_err(wrong)
}

/// Writes one file whole or not at all: beside, synced, renamed. For what must outlive a crash without a draft around it.
pub fn write_durably(path: &Path, batch: &RecordBatch) -> Result<(), Error> {
    put_in_place(vec![Beside::new(path)?.with_rows(batch)?])
}

/// The same for bytes that are there already.
pub fn write_bytes_durably(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    put_in_place(vec![Beside::new(path)?.with_bytes(bytes)?])
}

fn zstd() -> Compression {
    Compression::ZSTD(ZstdLevel::default())
}

fn to_bytes(path: &Path, batch: &RecordBatch) -> Result<Vec<u8>, Error> {
    packed(path, batch, zstd())
}

fn packed(path: &Path, batch: &RecordBatch, compression: Compression) -> Result<Vec<u8>, Error> {
    let made = (|| {
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties(compression)))?;
        writer.write(batch)?;
        writer.into_inner()
    })();
    made.map_err(|e| table_error("write", path, e))
}

fn properties(compression: Compression) -> WriterProperties {
    WriterProperties::builder()
        .set_created_by("voxmill".into())
        .set_compression(compression)
        .set_max_row_group_row_count(Some(ROWS_OF_A_GROUP))
        .build()
}

/// One Parquet file as one batch.
pub fn read(path: &Path) -> Result<RecordBatch, Error> {
    let file = std::fs::File::open(path).map_err(Error::io("read", path))?;
    guarded(path, || {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| table_error("read", path, e))?;
        check_claims(path, builder.metadata())?;
        let schema = builder.schema().clone();
        let reader = builder.with_batch_size(ROWS_OF_A_BATCH).build().map_err(|e| table_error("read", path, e))?;
        let batches = reader.collect::<Result<Vec<_>, _>>().map_err(|e| table_error("read", path, e))?;
        arrow::compute::concat_batches(&schema, &batches).map_err(|e| table_error("read", path, e))
    })
}

/// Columns of a Parquet file; its rows are not read.
pub fn read_schema(path: &Path) -> Result<arrow::datatypes::SchemaRef, Error> {
    let file = std::fs::File::open(path).map_err(Error::io("read", path))?;
    guarded(path, || {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| table_error("read", path, e))?;
        check_claims(path, builder.metadata())?;
        Ok(builder.schema().clone())
    })
}

/// Every `*.parquet` of a table artifact, by stem.
pub fn open(dir: &Path) -> Result<Rows, Error> {
    let mut rows = Rows::default();
    for (stem, path) in files(dir)? {
        rows.0.insert(stem, read(&path)?);
    }
    if rows.0.is_empty() {
        return Err(Error::Input {
            what: dir.display().to_string(),
            found: "no *.parquet".into(),
            expected: "the tables of an artifact".into(),
        });
    }
    Ok(rows)
}

/// Stem → path of the `*.parquet` in a folder, hidden ones left out.
pub fn files(dir: &Path) -> Result<BTreeMap<String, PathBuf>, Error> {
    let entries = std::fs::read_dir(dir).map_err(Error::io("list", dir))?;
    let mut out = BTreeMap::new();
    for entry in entries {
        let path = entry.map_err(Error::io("list", dir))?.path();
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_string();
        if path.extension().is_some_and(|e| e == "parquet") && !stem.is_empty() && !stem.starts_with('.') {
            out.insert(stem, path);
        }
    }
    Ok(out)
}

/// The rows of `R`'s table among these.
pub fn rows_of<R: Row>(rows: &Rows) -> Result<Vec<R>, Error> {
    let batch = named(rows, R::TABLE)?;
    R::from_batch(batch).map_err(|e| Error::Table { doing: "understand", path: R::TABLE.into(), source: Box::new(e) })
}

fn named<'a>(rows: &'a Rows, table: &str) -> Result<&'a RecordBatch, Error> {
    rows.0.get(table).ok_or_else(|| Error::Input {
        what: format!("table {table}"),
        found: rows.0.keys().cloned().collect::<Vec<_>>().join(", "),
        expected: "a table of that name".into(),
    })
}

fn table_error(doing: &'static str, path: &Path, e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Table { doing, path: path.to_path_buf(), source: e.into() }
}

/// Sizes in the footer, before anything is allocated by them.
fn check_claims(path: &Path, m: &ParquetMetaData) -> Result<(), Error> {
    let claimed = |n: i64| u64::try_from(n).unwrap_or(u64::MAX);
    let columns = m.row_groups().iter().flat_map(|g| g.columns());
    let bytes = columns.map(|c| claimed(c.uncompressed_size())).fold(0u64, u64::saturating_add);
    let rows = m.row_groups().iter().map(|g| claimed(g.num_rows())).fold(0u64, u64::saturating_add);
    let wanted_bytes = bytes.max(rows.saturating_mul(8 * m.file_metadata().schema_descr().num_columns() as u64));
    if wanted_bytes > LIMIT_BYTES {
        return Err(Error::TooLarge { what: format!("table {}", path.display()), wanted_bytes, limit_bytes: LIMIT_BYTES });
    }
    Ok(())
}

/// The Parquet reader checks most of what it reads, but not all.
fn guarded<T>(path: &Path, f: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| Err(table_error("read", path, "the file is damaged")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
