//! Tables as plain rows with their Arrow schemas. A column marked [`VOLATILE`] says where or when, not what: it is left out of content hashes.

use std::fmt::Write;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Float64Array, Int64Array, ListArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};

use crate::artifact::ContentHash;

mod archive;
mod runs;
mod sets;

pub use archive::*;
pub use runs::*;
pub use sets::*;

/// Field metadata key of a column that says where or when, not what.
pub const VOLATILE: &str = "voxmill.volatile";

/// A table that is not what it should be.
#[derive(Debug, thiserror::Error)]
#[error("column {column}: found {found}, expected {expected}")]
pub struct TableError {
    pub column: &'static str,
    pub found: String,
    pub expected: String,
}

/// A struct that is a row. Made by the `rows!` macro.
pub trait Row: Sized {
    /// File stem of the table and its name in SQL.
    const TABLE: &'static str;
    fn schema() -> Arc<Schema>;
    fn to_batch(rows: &[Self]) -> RecordBatch;
    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>, TableError>;
}

/// A type that fits a cell.
trait Cell: Sized {
    fn data_type() -> DataType;
    const NULLABLE: bool;
    fn array<'a>(cells: impl Iterator<Item = &'a Self>) -> ArrayRef
    where
        Self: 'a;
    /// `None`: the array is of another type, or a null stands where none may.
    fn at(array: &dyn Array, row: usize) -> Option<Self>;
}

macro_rules! plain_cell {
    ($t:ty, $array:ty, $data:expr, $read:expr, $lend:expr) => {
        impl Cell for $t {
            fn data_type() -> DataType {
                $data
            }
            const NULLABLE: bool = false;
            fn array<'a>(cells: impl Iterator<Item = &'a Self>) -> ArrayRef {
                Arc::new(<$array>::from_iter(cells.map(|c| Some($lend(c)))))
            }
            fn at(array: &dyn Array, row: usize) -> Option<Self> {
                let array = array.as_any().downcast_ref::<$array>()?;
                if array.is_null(row) { None } else { Some($read(array.value(row))) }
            }
        }
        impl Cell for Option<$t> {
            fn data_type() -> DataType {
                $data
            }
            const NULLABLE: bool = true;
            fn array<'a>(cells: impl Iterator<Item = &'a Self>) -> ArrayRef {
                Arc::new(<$array>::from_iter(cells.map(|c| c.as_ref().map($lend))))
            }
            fn at(array: &dyn Array, row: usize) -> Option<Self> {
                let array = array.as_any().downcast_ref::<$array>()?;
                Some(if array.is_null(row) { None } else { Some($read(array.value(row))) })
            }
        }
    };
}
plain_cell!(String, StringArray, DataType::Utf8, String::from, String::as_str);
plain_cell!(i64, Int64Array, DataType::Int64, i64::from, i64::clone);
plain_cell!(f64, Float64Array, DataType::Float64, f64::from, f64::clone);
plain_cell!(bool, BooleanArray, DataType::Boolean, bool::from, bool::clone);

macro_rules! list_cell {
    ($t:ty, $builder:ty) => {
        impl Cell for Vec<$t> {
            fn data_type() -> DataType {
                DataType::List(Arc::new(Field::new("item", <$t as Cell>::data_type(), true)))
            }
            const NULLABLE: bool = false;
            fn array<'a>(cells: impl Iterator<Item = &'a Self>) -> ArrayRef {
                let mut b = arrow::array::ListBuilder::new(<$builder>::new());
                for cell in cells {
                    cell.iter().for_each(|v| b.values().append_value(v.clone()));
                    b.append(true);
                }
                Arc::new(b.finish())
            }
            fn at(array: &dyn Array, row: usize) -> Option<Self> {
                let array = array.as_any().downcast_ref::<ListArray>()?;
                let inner = if array.is_null(row) { return None } else { array.value(row) };
                (0..inner.len()).map(|i| <$t as Cell>::at(&*inner, i)).collect()
            }
        }
    };
}
list_cell!(f64, arrow::array::Float64Builder);
list_cell!(i64, arrow::array::Int64Builder);
list_cell!(String, arrow::array::StringBuilder);

macro_rules! rows {
    ($(#[$meta:meta])* $name:ident = $table:literal { $($(#[$field_meta:meta])* $($volatile:literal)? $field:ident : $t:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        pub struct $name { $($(#[$field_meta])* pub $field: $t,)* }

        impl Row for $name {
            const TABLE: &'static str = $table;
            fn schema() -> Arc<Schema> {
                Arc::new(Schema::new(vec![$({
                    let field = Field::new(stringify!($field), <$t as Cell>::data_type(), <$t as Cell>::NULLABLE);
                    $(let field = field.with_metadata([($volatile.to_string(), "1".to_string())].into());)?
                    field
                },)*]))
            }
            fn to_batch(rows: &[Self]) -> RecordBatch {
                let columns: Vec<ArrayRef> = vec![$(<$t as Cell>::array(rows.iter().map(|r| &r.$field)),)*];
                RecordBatch::try_new(Self::schema(), columns).expect("the columns are built from the schema's own types")
            }
            fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>, TableError> {
                $(let $field = batch.column_by_name(stringify!($field)).ok_or(TableError {
                    column: stringify!($field), found: "no such column".into(), expected: format!("{:?}", <$t as Cell>::data_type()),
                })?;)*
                (0..batch.num_rows()).map(|i| Ok(Self { $($field: <$t as Cell>::at($field, i).ok_or_else(|| TableError {
                    column: stringify!($field), found: format!("{:?} in row {i}", $field.data_type()), expected: format!("{:?}", <$t as Cell>::data_type()),
                })?,)* })).collect()
            }
        }
    };
}
use rows;

/// Hash of what the rows of a batch say, in their order, without volatile columns: names, types and cells, each with its length.
pub fn digest(batch: &RecordBatch) -> ContentHash {
    let mut h = blake3::Hasher::new();
    // Many short cells are hashed quickest together.
    let mut gathered = Vec::with_capacity(2 * GATHERED_BYTES);
    let mut put = |bytes: &[u8]| {
        gathered.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        gathered.extend_from_slice(bytes);
        if gathered.len() >= GATHERED_BYTES {
            h.update(&gathered);
            gathered.clear();
        }
    };
    let mut cell = String::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if field.metadata().contains_key(VOLATILE) {
            continue;
        }
        put(field.name().as_bytes());
        put(field.data_type().to_string().as_bytes());
        if let Some(texts) = column.as_any().downcast_ref::<StringArray>() {
            texts.iter().for_each(|text| put(text.unwrap_or(NULL).as_bytes()));
            continue;
        }
        let cells = arrow::util::display::ArrayFormatter::try_new(column, &arrow::util::display::FormatOptions::new().with_null(NULL));
        let cells = cells.expect("our column types can all be shown");
        for row in 0..batch.num_rows() {
            cell.clear();
            write!(cell, "{}", cells.value(row)).expect("a text takes whatever is written");
            put(cell.as_bytes());
        }
    }
    h.update(&gathered);
    ContentHash(*h.finalize().as_bytes())
}

const GATHERED_BYTES: usize = 1 << 16;
/// A cell without a value.
const NULL: &str = "\0null";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_the_way_through_arrow() {
        let rows = vec![
            InstanceRow { series: "s".into(), position_mm: vec![1.0, 2.5, -3.0], instance_number: Some(4), ..Default::default() },
            InstanceRow { series: "t".into(), path: "/a".into(), ..Default::default() },
        ];
        assert_eq!(InstanceRow::from_batch(&InstanceRow::to_batch(&rows)).expect("own batch"), rows);
        assert!(SplitRow::from_batch(&InstanceRow::to_batch(&rows)).is_err());
    }

    #[test]
    fn digest_sees_contents_but_not_places() {
        let row = |path: &str, content: &str| InstanceRow { path: path.into(), content: content.into(), ..Default::default() };
        let of = |r: InstanceRow| digest(&InstanceRow::to_batch(&[r]));
        assert_eq!(of(row("/a", "x")), of(row("/b", "x")));
        assert_ne!(of(row("/a", "x")), of(row("/a", "y")));
    }
}
