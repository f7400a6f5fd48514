//! What is made of a table once and asked for by one case after the other, so that a case costs its own rows and not the table.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arrow::array::{Array, RecordBatch, UInt32Array};

use crate::error::Error;
use crate::stage::Rows;

/// As many tables are remembered; a run walks through its nodes one by one.
const KEPT: usize = 8;

struct Kept {
    /// The columns it was made of. As long as a weak reference stands, no other column has their address.
    of: Vec<Weak<dyn Array>>,
    made: Arc<dyn Any + Send + Sync>,
}

static MEMORY: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

/// The `T` that `make` makes of these rows, made once as long as they are in memory.
pub fn prepared<T: Send + Sync + 'static>(rows: &Rows, make: impl FnOnce(&Rows) -> Result<T, Error>) -> Result<Arc<T>, Error> {
    let columns = || rows.0.values().flat_map(RecordBatch::columns);
    let is_same = |k: &Kept| {
        k.of.len() == columns().count() && k.of.iter().zip(columns()).all(|(a, b)| std::ptr::addr_eq(a.as_ptr(), Arc::as_ptr(b)))
    };
    let memory = || MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
    let found = memory().iter().filter(|k| is_same(k)).find_map(|k| Arc::clone(&k.made).downcast::<T>().ok());
    if let Some(made) = found {
        return Ok(made);
    }
    let made = Arc::new(make(rows)?);
    let mut memory = memory();
    memory.retain(|k| k.of.iter().all(|c| c.strong_count() > 0));
    if memory.len() >= KEPT {
        memory.remove(0);
    }
    memory.push(Kept { of: columns().map(Arc::downgrade).collect(), made: made.clone() });
    Ok(made)
}

/// These rows of a batch, in this order.
pub fn taken(batch: &RecordBatch, rows: &[u32]) -> RecordBatch {
    arrow::compute::take_record_batch(batch, &UInt32Array::from(rows.to_vec())).expect("rows of this batch")
}

#[cfg(test)]
mod tests {
    use voxmill_schemas::tables::{Row, SplitRow};

    use super::*;

    #[test]
    fn a_table_is_prepared_once_and_another_one_anew() {
        let rows = |case: &str| {
            let row = SplitRow { case: case.into(), fold: 0, part: "train".into(), ..SplitRow::default() };
            Rows([(SplitRow::TABLE.to_string(), SplitRow::to_batch(&[row]))].into())
        };
        let (a, b) = (rows("a"), rows("b"));
        let made = std::cell::Cell::new(0);
        let ask = |r: &Rows| {
            prepared(r, |r| {
                made.set(made.get() + 1);
                Ok(SplitRow::from_batch(&r.0[SplitRow::TABLE]).expect("own rows")[0].case.clone())
            })
            .expect("made")
        };
        assert_eq!([ask(&a), ask(&b), ask(&a.clone())].map(|s| s.to_string()), ["a", "b", "a"]);
        assert_eq!(made.get(), 2);
        drop(a);
        assert_eq!(ask(&rows("c")).as_str(), "c");
        let two = taken(&b.0[SplitRow::TABLE], &[0, 0]);
        assert_eq!(two.num_rows(), 2);
    }
}
