//! Words in Parquet files: whether they stand in a table, and the table without them. Only text is looked at; numbers name nobody.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, GenericListArray, ListArray, RecordBatch, StringArray};
use arrow::datatypes::DataType;

use super::{read, to_bytes};
use crate::error::Error;

/// Whether `holds` is true of any text of a Parquet file, alone or in a list.
pub fn any_text(path: &Path, holds: &dyn Fn(&str) -> bool) -> Result<bool, Error> {
    let batch = read(path)?;
    Ok(batch.columns().iter().any(|c| texts(c).is_some_and(|t| t.iter().flatten().any(holds))))
}

/// The bytes of the file with every text replaced where `change` (of the column's name and the text) gives another, and how many were; `None` where none was.
pub fn changed_text(path: &Path, change: &dyn Fn(&str, &str) -> Option<String>) -> Result<Option<(Vec<u8>, usize)>, Error> {
    let batch = read(path)?;
    let mut n = 0;
    let mut put = |name: &str, texts: &StringArray| -> StringArray {
        let new = |t: &str| change(name, t).inspect(|_| n += 1).unwrap_or_else(|| t.to_string());
        let mut new = new;
        texts.iter().map(|t| t.map(&mut new)).collect()
    };
    let schema = batch.schema();
    let columns = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| match texts(column) {
            None => column.clone(),
            Some(old) => {
                let new: ArrayRef = Arc::new(put(field.name(), &old));
                match column.as_any().downcast_ref::<ListArray>() {
                    None => new,
                    Some(list) => {
                        let DataType::List(field) = list.data_type() else { return column.clone() };
                        Arc::new(GenericListArray::new(field.clone(), list.offsets().clone(), new, list.nulls().cloned()))
                    }
                }
            }
        })
        .collect();
    if n == 0 {
        return Ok(None);
    }
    let batch = RecordBatch::try_new(batch.schema(), columns).expect("texts took the place of texts");
    Ok(Some((to_bytes(path, &batch)?, n)))
}

/// The texts of a column of texts or of lists of them.
fn texts(column: &ArrayRef) -> Option<StringArray> {
    let list = column.as_any().downcast_ref::<ListArray>().map(ListArray::values);
    list.unwrap_or(column).as_any().downcast_ref::<StringArray>().cloned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::tables::{Row, SeriesRow};

    use super::*;
    use crate::table;

    #[test]
    fn words_go_from_cells_and_from_lists_and_all_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("series.parquet");
        let row = |patient: &str, label: &str| SeriesRow {
            patient: patient.into(),
            labels: vec!["Femur".into(), label.into()],
            rows: Some(5),
            ..SeriesRow::default()
        };
        table::write_rows(dir.path(), &[row("anna", "anna's"), row("otto", "Tibia")]).unwrap();
        assert!(any_text(&path, &|t| t.contains("anna")).unwrap());
        let without = |_: &str, t: &str| t.contains("anna").then(|| t.replace("anna", "x"));
        let (bytes, n) = changed_text(&path, &without).unwrap().unwrap();
        assert_eq!(n, 2);
        std::fs::write(&path, bytes).unwrap();
        let rows = SeriesRow::from_batch(&read(&path).unwrap()).unwrap();
        assert_eq!(rows, [row("x", "x's"), row("otto", "Tibia")]);
        assert!(!any_text(&path, &|t| t.contains("anna")).unwrap() && changed_text(&path, &without).unwrap().is_none());
    }
}
