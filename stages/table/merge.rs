//! Many files of one table become one: what a lineage of thousands of runs needs to stay quick to ask.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, new_null_array};
use arrow::datatypes::{Field, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::schema::types::ColumnPath;
use voxmill_schemas::tables::Row;

use super::{ROWS_OF_A_BATCH, check_claims, guarded, properties, table_error, zstd};
use crate::error::Error;

/// Share of lookups that open a row group for nothing.
const FALSE_SHARE: f64 = 0.01;

/// Rows of a Parquet file, by its footer.
pub fn n_rows(path: &Path) -> Result<u64, Error> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    guarded(path, || {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| table_error("read", path, e))?;
        check_claims(path, builder.metadata())?;
        Ok(u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0))
    })
}

/// Writes the rows of all files, in their order, into one: beside, synced and renamed. They stream: memory holds a row group.
/// A column that an older version did not write is null.
/// - `looked_up`: columns that get a Bloom filter, so that one value is found without reading the others
pub fn merge<R: Row>(files: &[PathBuf], to: &Path, looked_up: &[&str]) -> Result<(), Error> {
    let schema = R::schema();
    let mut name = to.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.new", std::process::id()));
    let beside = to.with_file_name(name);
    let written = (|| {
        let file = File::create(&beside).map_err(Error::io("write", &beside))?;
        let mut properties = properties(zstd()).into_builder();
        for column in looked_up.iter().filter(|c| schema.column_with_name(c).is_some()) {
            let path = ColumnPath::from(column.to_string());
            properties = properties.set_column_bloom_filter_enabled(path.clone(), true).set_column_bloom_filter_fpp(path, FALSE_SHARE);
        }
        let wrong = |e| table_error("write", to, e);
        let mut writer = ArrowWriter::try_new(BufWriter::new(file), schema.clone(), Some(properties.build())).map_err(wrong)?;
        for path in files {
            append(path, &schema, &mut |batch| writer.write(&batch).map_err(wrong))?;
        }
        let file = writer.into_inner().map_err(wrong)?.into_inner().map_err(|e| Error::io("write", to)(e.into_error()))?;
        file.sync_all().map_err(Error::io("write", to))?;
        std::fs::rename(&beside, to).map_err(Error::io("write", to))?;
        to.parent().map_or(Ok(()), |dir| File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io("write", to)))
    })();
    written.inspect_err(|_| drop(std::fs::remove_file(&beside)))
}

fn append(path: &Path, schema: &SchemaRef, put: &mut dyn FnMut(RecordBatch) -> Result<(), Error>) -> Result<(), Error> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    guarded(path, || {
        let wrong = |e| table_error("read", path, e);
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(wrong)?;
        check_claims(path, builder.metadata())?;
        for batch in builder.with_batch_size(ROWS_OF_A_BATCH).build().map_err(wrong)? {
            let batch = batch.map_err(|e| table_error("read", path, e))?;
            // Others name the items of a list otherwise.
            let column = |f: &Arc<Field>| match batch.column_by_name(f.name()) {
                Some(c) if c.data_type() != f.data_type() => arrow::compute::cast(c, f.data_type()),
                Some(c) => Ok(c.clone()),
                None => Ok(new_null_array(f.data_type(), batch.num_rows())),
            };
            let columns = schema.fields().iter().map(column).collect::<Result<Vec<ArrayRef>, _>>();
            let columns = columns.map_err(|e| table_error("understand", path, e))?;
            put(RecordBatch::try_new(schema.clone(), columns).map_err(|e| table_error("understand", path, e))?)?;
        }
        Ok(())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::tables::{ExecutionRow, RunRow};

    use super::*;
    use crate::table::{read, write_durably};

    #[test]
    fn rows_of_many_files_are_one_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let row = |i: i64| ExecutionRow { run: format!("run-{}", i / 10), key: format!("{i:064}"), took_ms: i, ..ExecutionRow::default() };
        let files: Vec<PathBuf> = (0..3)
            .map(|f| {
                let path = dir.path().join(format!("{f}.parquet"));
                let rows: Vec<ExecutionRow> = (f * 100..f * 100 + 100).map(row).collect();
                write_durably(&path, &ExecutionRow::to_batch(&rows)).unwrap();
                path
            })
            .collect();
        let to = dir.path().join("all.parquet");
        merge::<ExecutionRow>(&files, &to, &["key", "none"]).unwrap();
        let rows = ExecutionRow::from_batch(&read(&to).unwrap()).unwrap();
        assert_eq!(rows, (0..300).map(row).collect::<Vec<_>>());
        assert_eq!((n_rows(&to).unwrap(), n_rows(&files[0]).unwrap()), (300, 100));
        std::fs::write(&files[1], "no parquet").unwrap();
        assert!(merge::<ExecutionRow>(&files, &to, &[]).is_err());
        assert_eq!(read(&to).unwrap().num_rows(), 300, "what was there stays");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4);
    }

    #[test]
    fn what_an_older_version_did_not_write_is_null() {
        let dir = tempfile::tempdir().unwrap();
        let old = dir.path().join("old.parquet");
        let whole = RunRow::to_batch(&[RunRow { run: "a".into(), ..RunRow::default() }]);
        let n = whole.schema().index_of("commit").unwrap();
        write_durably(&old, &whole.project(&(0..n).collect::<Vec<_>>()).unwrap()).unwrap();
        let to = dir.path().join("all.parquet");
        merge::<RunRow>(std::slice::from_ref(&old), &to, &[]).unwrap();
        let rows = RunRow::from_batch(&read(&to).unwrap()).unwrap();
        assert_eq!((rows[0].run.as_str(), rows[0].commit.as_deref()), ("a", None));
    }
}
