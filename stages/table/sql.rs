//! SQL over tables: whole SELECTs for `voxmill query`, conditions for `where:`. Read only: what would change or reach outside is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::{DFSchema, DataFusionError, SchemaError};
use datafusion::datasource::MemTable;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::{ColumnarValue, Expr, Volatility, create_udf};
use datafusion::physical_plan::PhysicalExpr;
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};

use crate::error::Error;
use crate::stage::Rows;

/// Sorts and joins beyond this go to temporary files.
const MEMORY_BYTES: usize = 1 << 30;

/// The first words of what is refused.
const CHANGES: [&str; 10] = ["INSERT", "UPDATE", "DELETE", "MERGE", "TRUNCATE", "CREATE", "ALTER", "DROP", "COPY", "SET"];

/// What `show tables` asks here: the tables themselves, not the views that describe them.
const TABLES: &str = "select table_name from information_schema.tables where table_schema = 'public' order by table_name";

/// What a SQL query may ask: batches in memory, or Parquet files that are read as far as the query needs.
pub enum Source {
    Rows(RecordBatch),
    /// At least one; columns that some lack are null there.
    Files(Vec<PathBuf>),
    /// At least one, of a table whose columns are known: what an older version did not write is null.
    Table(Vec<PathBuf>, SchemaRef),
    /// A SELECT over the others, under a name.
    View(String),
}

/// Runs one SELECT over named tables. DDL, DML, COPY and settings are refused. At least one batch, so that the columns of an empty
/// answer are known; without ORDER BY, rows come in the order of the tables.
pub fn query(tables: BTreeMap<String, Source>, sql: &str) -> Result<Vec<RecordBatch>, Error> {
    let names: Vec<String> = tables.keys().cloned().collect();
    let refused = |e: DataFusionError| Error::Query { why: why(&e, &names) };
    // Before the planner looks at it: `insert into runs values (1)` would be told to give eleven columns.
    let word = sql.trim_start().split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default().to_ascii_uppercase();
    if CHANGES.contains(&word.as_str()) {
        return Err(Error::Query { why: format!("only SELECT is allowed, not {word}") });
    }
    let is_list = sql
        .trim_end_matches(|c: char| c == ';' || c.is_whitespace())
        .split_whitespace()
        .map(str::to_ascii_lowercase)
        .eq(["show", "tables"]);
    let sql = if is_list { TABLES } else { sql };
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(Error::io("start", "the query runtime"))?;
    runtime.block_on(async {
        let cx = context().map_err(refused)?;
        // Views stand on what is there before them.
        let (views, others): (Vec<_>, Vec<_>) = tables.into_iter().partition(|(_, source)| matches!(source, Source::View(_)));
        for (name, source) in others.into_iter().chain(views) {
            match source {
                Source::Rows(batch) => {
                    let table = MemTable::try_new(batch.schema(), vec![vec![batch]]).map_err(refused)?;
                    cx.register_table(&name, Arc::new(table)).map_err(refused)?;
                }
                Source::Files(paths) => {
                    let schemas: Vec<Schema> =
                        paths.iter().map(|p| Ok(super::read_schema(p)?.as_ref().clone())).collect::<Result<_, Error>>()?;
                    let schema = Schema::try_merge(schemas).map_err(|e| refused(e.into()))?;
                    register(&cx, &name, &paths, &schema).await.map_err(refused)?;
                }
                Source::Table(paths, schema) => {
                    let fields = schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true));
                    register(&cx, &name, &paths, &Schema::new(fields.collect::<Vec<_>>())).await.map_err(refused)?;
                }
                // A view over a table of an older version may not hold: it disturbs only who asks for it.
                Source::View(_) if !is_list && !sql.to_ascii_lowercase().contains(&name) => {}
                Source::View(select) => {
                    let frame = cx.sql(&select).await.map_err(refused)?;
                    cx.register_table(&name, frame.into_view()).map_err(refused)?;
                }
            }
        }
        let read_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        let frame = cx.sql_with_options(sql, read_only).await.map_err(refused)?;
        let schema = Arc::new(frame.schema().as_arrow().clone());
        let mut batches = frame.collect().await.map_err(refused)?;
        batches.retain(|b| b.num_rows() > 0);
        if batches.is_empty() {
            batches.push(RecordBatch::new_empty(schema));
        }
        Ok(batches)
    })
}

/// Files as a table of a schema.
async fn register(cx: &SessionContext, name: &str, paths: &[PathBuf], schema: &Schema) -> Result<(), DataFusionError> {
    let urls = paths.iter().map(|p| file_url(p)).collect::<Result<Vec<_>, _>>().map_err(|e| DataFusionError::External(Box::new(e)))?;
    let frame = cx.read_parquet(urls, ParquetReadOptions::default().schema(schema)).await?;
    cx.register_table(name, frame.into_view()).map(|_| ())
}

/// The rows of `table` for which a SQL condition holds (`where:` of a stage), in their order. Null counts as no.
pub fn select(rows: &Rows, table: &str, condition: &str) -> Result<RecordBatch, Error> {
    let batch = super::named(rows, table)?;
    let (cx, test) = condition_on(batch.schema_ref(), table, condition)?;
    let failed = |e: DataFusionError| Error::Query { why: format!("condition `{condition}`: {}", why(&e, &[])) };
    let held = test.evaluate(batch).and_then(|v| v.into_array(batch.num_rows())).map_err(failed)?;
    drop(cx);
    let mask = match held.data_type() {
        DataType::Boolean => held.as_boolean().clone(),
        // The type of a bare `null`.
        _ => BooleanArray::from(vec![false; batch.num_rows()]),
    };
    arrow::compute::filter_record_batch(batch, &mask).map_err(|e| failed(e.into()))
}

/// Whether a condition could be run on this table at all: unknown columns and syntax are found before a run.
pub fn check_condition(schema: &Schema, table: &str, condition: &str) -> Result<(), Error> {
    condition_on(schema, table, condition).map(|_| ())
}

fn condition_on(schema: &Schema, table: &str, condition: &str) -> Result<(SessionContext, Arc<dyn PhysicalExpr>), Error> {
    let wrong = |why: String| Error::Query { why: format!("condition `{condition}`: {why}") };
    let failed = |e: DataFusionError| wrong(why(&e, &[]));
    let columns = DFSchema::try_from_qualified_schema(table, schema).map_err(failed)?;
    let cx = context().map_err(failed)?;
    let expr = cx.parse_sql_expr(condition, &columns).map_err(failed)?;
    if let Some(name) = unstable_function(&expr) {
        return Err(wrong(format!("{name}() gives another value at another time, so the cases would not be the same twice")));
    }
    let test = cx.create_physical_expr(expr, &columns).map_err(failed)?;
    match test.data_type(schema).map_err(failed)? {
        DataType::Boolean | DataType::Null => Ok((cx, test)),
        other => Err(wrong(format!("gives {other}, expected true or false"))),
    }
}

fn unstable_function(expr: &Expr) -> Option<String> {
    use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
    let mut found = None;
    let walked = expr.apply(|e| {
        if let Expr::ScalarFunction(f) = e
            && f.func.signature().volatility != Volatility::Immutable
        {
            found = Some(f.func.name().to_string());
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    walked.ok().and(found)
}

fn context() -> Result<SessionContext, DataFusionError> {
    let config = SessionConfig::new()
        .with_information_schema(true)
        // One partition: rows keep their order.
        .with_target_partitions(1)
        // Text stays `Utf8`, the type our rows are read back from.
        .set_bool("datafusion.execution.parquet.schema_force_view_types", false)
        .set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false);
    let runtime = RuntimeEnvBuilder::new().with_memory_limit(MEMORY_BYTES, 1.0).build_arc()?;
    let cx = SessionContext::new_with_config_rt(config, runtime);
    let list = DataType::List(Arc::new(Field::new("item", DataType::Utf8, true)));
    cx.register_udf(create_udf("array_has", vec![list, DataType::Utf8], DataType::Boolean, Volatility::Immutable, Arc::new(array_has)));
    Ok(cx)
}

/// `array_has(labels, 'Femur')`: whether a list of texts holds a text.
fn array_has(args: &[ColumnarValue]) -> Result<ColumnarValue, DataFusionError> {
    let arrays = ColumnarValue::values_to_arrays(args)?;
    let (Some(lists), Some(wanted)) = (arrays[0].as_list_opt::<i32>(), arrays[1].as_string_opt::<i32>()) else {
        return Err(DataFusionError::Execution("array_has takes a list of texts and a text".into()));
    };
    let has = |row: usize| {
        let list = lists.value(row);
        list.as_string_opt::<i32>().is_some_and(|l| l.iter().flatten().any(|t| t == wanted.value(row)))
    };
    let held: BooleanArray =
        (0..lists.len()).map(|row| if lists.is_null(row) || wanted.is_null(row) { None } else { Some(has(row)) }).collect();
    Ok(ColumnarValue::Array(Arc::new(held)))
}

/// A path as a URL, so that no character of it (`*`, `[`) is taken for a pattern.
fn file_url(path: &Path) -> Result<String, Error> {
    let path = std::path::absolute(path).map_err(Error::io("find", path))?;
    let mut url = String::from("file://");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'-' | b'_' | b'.' | b'~' => url.push(*byte as char),
            b if b.is_ascii_alphanumeric() => url.push(*b as char),
            b => url.push_str(&format!("%{b:02X}")),
        }
    }
    Ok(url)
}

/// What is wrong with a query, in a line: the column or table that is not there with those that are.
fn why(e: &DataFusionError, tables: &[String]) -> String {
    let root = e.find_root();
    if let DataFusionError::SchemaError(schema, _) = root
        && let SchemaError::FieldNotFound { field, valid_fields } = schema.as_ref()
    {
        let mut there: Vec<&str> = valid_fields.iter().map(|f| f.name()).collect();
        there.dedup();
        let there = if there.is_empty() { "none here".into() } else { there.join(", ") };
        return format!("there is no column {}; there are {there}", field.name());
    }
    let text = match root {
        DataFusionError::SQL(parser, _) => parser.to_string(),
        _ => root.strip_backtrace(),
    };
    let missing = text.split_once("table 'datafusion.public.").and_then(|(_, rest)| rest.split_once("' not found"));
    if let Some((name, _)) = missing {
        return format!("there is no table {name}; there are {}", tables.join(", "));
    }
    let refused = ["DDL not supported", "DML not supported", "Statement not supported"];
    if let Some(what) = refused.iter().find_map(|r| text.split_once(r)) {
        return format!("only SELECT is allowed{}", what.1.trim_end_matches('.'));
    }
    let text = text.strip_prefix("Error during planning: ").unwrap_or(&text);
    text.lines().collect::<Vec<_>>().join(" ").trim_end_matches('.').to_string()
}
