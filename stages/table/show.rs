//! Rows as text: an aligned table for people, CSV (RFC 4180) and JSON for programs.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use crate::error::Error;

/// A cell of an aligned table is cut here, but for those of the last column, which push nothing aside.
const WIDEST: usize = 200;
/// The rule under the name of a column is no longer than this.
const LONGEST_RULE: usize = 100;

/// Every cell as text, row by row; null as `null`.
pub fn cells(batches: &[RecordBatch], null: &'static str) -> Result<Vec<Vec<String>>, Error> {
    let options = FormatOptions::new().with_null(null);
    let mut out = Vec::new();
    for batch in batches {
        let columns = batch.columns().iter().map(|c| ArrayFormatter::try_new(c, &options)).collect::<Result<Vec<_>, _>>();
        let columns = columns.map_err(|e| Error::Query { why: e.to_string() })?;
        for row in 0..batch.num_rows() {
            let cell = |c: &ArrayFormatter| c.value(row).try_to_string().map_err(|e| Error::Query { why: e.to_string() });
            out.push(columns.iter().map(cell).collect::<Result<Vec<_>, _>>()?);
        }
    }
    Ok(out)
}

fn header(batches: &[RecordBatch]) -> Vec<String> {
    batches.first().map(|b| b.schema().fields().iter().map(|f| f.name().clone()).collect()).unwrap_or_default()
}

fn is_number(t: &DataType) -> bool {
    t.is_numeric()
}

/// Columns under each other, numbers to the right. Very long texts are cut with `…`, and the last line says so.
pub fn as_table(batches: &[RecordBatch]) -> Result<String, Error> {
    let mut is_cut = false;
    let mut rows = vec![header(batches)];
    for row in cells(batches, "")? {
        let last = row.len().saturating_sub(1);
        let mut shown = Vec::with_capacity(row.len());
        for (i, text) in row.into_iter().enumerate() {
            let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            if i != last && line.chars().count() > WIDEST {
                line = line.chars().take(WIDEST - 1).chain(['…']).collect();
                is_cut = true;
            }
            shown.push(line);
        }
        rows.push(shown);
    }
    let numeric: Vec<bool> =
        batches.first().map(|b| b.schema().fields().iter().map(|f| is_number(f.data_type())).collect()).unwrap_or_default();
    let widths: Vec<usize> = (0..numeric.len()).map(|c| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for (i, row) in rows.iter().enumerate() {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .zip(&numeric)
            .map(|((cell, width), right)| if *right { format!("{cell:>width$}") } else { format!("{cell:width$}") })
            .collect();
        out.push_str(line.join("  ").trim_end());
        out.push('\n');
        if i == 0 {
            out.push_str(
                &widths
                    .iter()
                    .enumerate()
                    .map(|(c, w)| "─".repeat(if c + 1 == widths.len() { (*w).min(LONGEST_RULE) } else { *w }))
                    .collect::<Vec<_>>()
                    .join("  "),
            );
            out.push('\n');
        }
    }
    let n = rows.len() - 1;
    let note = if is_cut { "; texts that end in … are cut: --format csv shows all of them" } else { "" };
    out.push_str(&format!("({n} row{}{note})\n", if n == 1 { "" } else { "s" }));
    Ok(out)
}

/// Header and rows; null is an empty field.
pub fn as_csv(batches: &[RecordBatch]) -> Result<String, Error> {
    let quoted = |text: &String| {
        if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.clone() }
    };
    let line = |row: &Vec<String>| row.iter().map(quoted).collect::<Vec<_>>().join(",") + "\n";
    let mut out = line(&header(batches));
    cells(batches, "")?.iter().for_each(|row| out.push_str(&line(row)));
    Ok(out)
}

/// One array of objects, a row a line, keys in the order of the columns.
pub fn as_json(batches: &[RecordBatch]) -> Result<String, Error> {
    let names = header(batches);
    let mut lines = Vec::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            let pairs = names
                .iter()
                .zip(batch.columns())
                .map(|(name, column)| Ok(format!("{}: {}", serde_json::Value::from(name.as_str()), json(column.as_ref(), row)?)));
            lines.push(format!("{{{}}}", pairs.collect::<Result<Vec<_>, Error>>()?.join(", ")));
        }
    }
    Ok(if lines.is_empty() { "[]\n".into() } else { format!("[\n{}\n]\n", lines.join(",\n")) })
}

fn json(column: &dyn Array, row: usize) -> Result<serde_json::Value, Error> {
    use serde_json::Value;
    if column.is_null(row) {
        return Ok(Value::Null);
    }
    Ok(match column.data_type() {
        DataType::Boolean => column.as_boolean().value(row).into(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row).into(),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row).into(),
        DataType::List(_) => {
            let list = column.as_list::<i32>().value(row);
            Value::Array((0..list.len()).map(|i| json(list.as_ref(), i)).collect::<Result<_, _>>()?)
        }
        t => {
            let options = FormatOptions::new();
            let cell = ArrayFormatter::try_new(column, &options).and_then(|f| f.value(row).try_to_string());
            let text = cell.map_err(|e| Error::Query { why: e.to_string() })?;
            match (is_number(t), text.parse::<serde_json::Number>()) {
                (true, Ok(n)) => Value::Number(n),
                _ => text.into(),
            }
        }
    })
}

/// The bytes of one Parquet file.
pub fn as_parquet(batches: &[RecordBatch]) -> Result<Vec<u8>, Error> {
    let failed = |e: arrow::error::ArrowError| Error::Query { why: e.to_string() };
    let schema = batches.first().map(|b| b.schema()).unwrap_or_else(|| std::sync::Arc::new(arrow::datatypes::Schema::empty()));
    let whole = arrow::compute::concat_batches(&schema, batches).map_err(failed)?;
    super::to_bytes(std::path::Path::new("the answer"), &whole)
}
