use super::*;
use voxmill_schemas::tables::{InstanceRow, SeriesRow, SplitRow, digest};

fn series() -> Vec<SeriesRow> {
    let row = |series: &str, modality: &str, n: i64, labels: &[&str]| SeriesRow {
        series: series.into(),
        modality: modality.into(),
        n_instances: n,
        body_part: (n > 10).then(|| "KNEE".into()),
        labels: labels.iter().map(|l| l.to_string()).collect(),
        ..Default::default()
    };
    vec![row("c", "CT", 40, &[]), row("a", "MR", 7, &[]), row("b", "CT", 5, &[]), row("d", "SEG", 1, &["Femur", "Tibia"])]
}

fn rows() -> Rows {
    Rows([("series".to_string(), SeriesRow::to_batch(&series()))].into())
}

fn chosen(condition: &str) -> Vec<String> {
    let batch = select(&rows(), "series", condition).unwrap();
    SeriesRow::from_batch(&batch).unwrap().into_iter().map(|r| r.series).collect()
}

fn refusal(condition: &str) -> String {
    check_condition(&SeriesRow::schema(), "series", condition).unwrap_err().to_string()
}

#[test]
fn rows_survive_the_way_through_parquet() {
    let dir = tempfile::tempdir().unwrap();
    write_rows(dir.path(), &series()).unwrap();
    write_rows::<SplitRow>(dir.path(), &[]).unwrap();
    let back = open(dir.path()).unwrap();
    assert_eq!(rows_of::<SeriesRow>(&back).unwrap(), series());
    assert!(rows_of::<SplitRow>(&back).unwrap().is_empty());
    let missing = rows_of::<InstanceRow>(&back).unwrap_err().to_string();
    assert!(missing.contains("instances") && missing.contains("series, split"), "{missing}");
}

#[test]
fn volatile_columns_are_known_after_reading() {
    let dir = tempfile::tempdir().unwrap();
    let row = |path: &str| InstanceRow { path: path.into(), ..Default::default() };
    let read_back = |r: InstanceRow| {
        write_rows(dir.path(), &[r]).unwrap();
        read(&dir.path().join("instances.parquet")).unwrap()
    };
    assert_eq!(digest(&read_back(row("/a"))), digest(&read_back(row("/b"))));
    assert_eq!(digest(&read_back(row("/a"))), digest(&InstanceRow::to_batch(&[row("/c")])));
}

#[test]
fn equal_rows_give_equal_bytes() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let many: Vec<_> = series().into_iter().cycle().take(5000).collect();
    write_rows(a.path(), &many).unwrap();
    let whole = SeriesRow::to_batch(&[many.clone(), many.clone()].concat());
    write(b.path(), "series", &whole.slice(5000, 5000)).unwrap();
    let bytes = |d: &tempfile::TempDir| std::fs::read(d.path().join("series.parquet")).unwrap();
    assert_eq!(bytes(&a), bytes(&b));
}

#[test]
fn a_durable_file_is_whole_and_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    write_durably(&path, &SeriesRow::to_batch(&series())).unwrap();
    write_durably(&path, &SeriesRow::to_batch(&series()[..1])).unwrap();
    assert_eq!(read(&path).unwrap().num_rows(), 1);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// Every truncation and a flip of every byte: an error or rows, never a panic that gets out, never an endless allocation.
#[test]
fn files_go_in_place_together_and_one_that_is_dropped_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("in")).unwrap();
    let paths = ["a.parquet", "in/b.parquet", "c"].map(|name| dir.path().join(name));
    let rows = SeriesRow::to_batch(&series());
    let written = || {
        let [a, b, c] = paths.each_ref().map(|path| Beside::new(path).unwrap());
        vec![a.with_rows(&rows).unwrap(), b.with_rows(&rows).unwrap(), c.with_bytes(b"text").unwrap()]
    };
    drop(written());
    assert_eq!((std::fs::read_dir(dir.path()).unwrap().count(), std::fs::read_dir(dir.path().join("in")).unwrap().count()), (1, 0));
    put_in_place(written()).unwrap();
    assert!(paths[..2].iter().all(|path| read(path).unwrap() == rows));
    assert_eq!(std::fs::read(&paths[2]).unwrap(), b"text");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "nothing is left beside");
    assert!(Beside::new(&dir.path().join("nowhere/a")).is_err());
}

#[test]
fn damaged_parquet_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    write_rows(dir.path(), &series()).unwrap();
    let path = dir.path().join("series.parquet");
    let good = std::fs::read(&path).unwrap();
    for n in (0..good.len()).step_by(7) {
        std::fs::write(&path, &good[..n]).unwrap();
        assert!(read(&path).is_err(), "cut at {n}");
    }
    for n in 0..good.len() {
        let mut bad = good.clone();
        bad[n] ^= 0xff;
        std::fs::write(&path, &bad).unwrap();
        let _ = read(&path);
        let _ = read_schema(&path);
    }
    std::fs::write(&path, "no parquet at all").unwrap();
    let said = crate::error::chain(&read(&path).unwrap_err());
    assert!(said.contains("series.parquet"), "{said}");
}

#[test]
fn conditions_choose_rows_in_their_order() {
    assert_eq!(chosen("modality = 'CT'"), ["c", "b"]);
    assert_eq!(chosen("series.modality in ('MR', 'CT') and n_instances > 6"), ["c", "a"]);
    assert_eq!(chosen("body_part = 'KNEE'"), ["c"], "null is no");
    assert_eq!(chosen("body_part is null"), ["a", "b", "d"]);
    assert_eq!(chosen("series like 'd%' or lower(modality) = 'mr'"), ["a", "d"]);
    assert_eq!(chosen("array_has(labels, 'Femur')"), ["d"]);
    assert_eq!(chosen("true"), ["c", "a", "b", "d"]);
    assert!(chosen("null").is_empty());
    assert!(chosen("false").is_empty());
}

#[test]
fn wrong_conditions_are_named_before_a_run() {
    let said = refusal("modalty = 'CT'");
    assert!(said.contains("no column modalty") && said.contains("modality"), "{said}");
    assert!(refusal("n_instances + 1").contains("expected true or false"));
    assert!(refusal("modality = ").contains("modality = "));
    assert!(refusal("modality = 'CT'; drop table series").contains("condition"));
    assert!(refusal("random() < 0.5").contains("random()"));
    assert!(refusal("now() is null").contains("now()"));
    assert!(refusal("nosuch(modality)").contains("nosuch"));
    assert!(refusal("").contains("condition"));
    refusal("exists (select 1 from series)");
    check_condition(&SeriesRow::schema(), "series", "slice_spacing_mm between 0.5 and 3 and not (kind = 'seg')").unwrap();
    let none = select(&rows(), "seres", "true").unwrap_err().to_string();
    assert!(none.contains("seres"), "{none}");
}

fn sources(dir: &Path) -> BTreeMap<String, Source> {
    let part = dir.join("we[ird] *name?.parquet");
    write_durably(&part, &SeriesRow::to_batch(&series()[..1])).unwrap();
    let rest = dir.join("z.parquet");
    write_durably(&rest, &SeriesRow::to_batch(&series()[1..])).unwrap();
    let split = SplitRow { case: "x".into(), part: "val".into(), ..Default::default() };
    BTreeMap::from([
        ("series".to_string(), Source::Files(vec![part, rest])),
        ("split".to_string(), Source::Rows(SplitRow::to_batch(&[split]))),
    ])
}

#[test]
fn queries_read_files_and_rows() {
    let dir = tempfile::tempdir().unwrap();
    let ask = |sql: &str| show::as_csv(&query(sources(dir.path()), sql).unwrap()).unwrap();
    assert_eq!(ask("select series, n_instances from series"), "series,n_instances\nc,40\na,7\nb,5\nd,1\n");
    assert_eq!(ask("select modality, count(*) as n from series group by modality order by n desc, 1"), "modality,n\nCT,2\nMR,1\nSEG,1\n");
    assert_eq!(ask("select part, count(*) n from split, series group by part"), "part,n\nval,4\n");
    assert_eq!(ask("select series from series where n_instances > 1000"), "series\n");
    assert_eq!(ask("show tables"), "table_name\nseries\nsplit\n");
    assert_eq!(ask(" SHOW  Tables ; "), "table_name\nseries\nsplit\n");
    let back = query(sources(dir.path()), "select * from series").unwrap();
    let back: Vec<_> = back.iter().flat_map(|b| SeriesRow::from_batch(b).unwrap()).collect();
    assert_eq!(back, series());
}

#[test]
fn what_changes_or_reaches_outside_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refusal = |sql: &str| query(sources(dir.path()), sql).unwrap_err().to_string();
    let out = dir.path().join("out.parquet");
    for sql in [
        "drop table series",
        "create table t as select 1",
        "insert into split select * from split",
        "delete from split",
        "update split set part = 'x'",
        "create external table e stored as parquet location '/tmp/e.parquet'",
        &format!("copy series to '{}'", out.display()),
        &format!("explain analyze copy series to '{}'", out.display()),
        "set datafusion.execution.batch_size = 1",
        "select 1; select 2",
        "select * from '/etc/passwd'",
        "",
    ] {
        let said = refusal(sql);
        assert!(said.starts_with("the query failed: "), "{sql}: {said}");
    }
    assert!(!out.exists());
    assert!(refusal("drop table series").contains("only SELECT"));
    assert!(refusal("insert into split values (1)").contains("only SELECT is allowed, not INSERT"));
    let said = refusal("select nonsense from series");
    assert!(said.contains("no column nonsense") && said.contains("n_instances"), "{said}");
    let said = refusal("select * from serie");
    assert!(said.contains("no table serie") && said.contains("series, split"), "{said}");
    let said = refusal("selekt 1");
    assert!(said.contains("selekt"), "{said}");
}

#[test]
fn answers_are_shown_as_table_csv_and_json() {
    let dir = tempfile::tempdir().unwrap();
    let sql = "select series as s, n_instances as n, body_part as b, labels as l, n_instances / 2.0 as h, 'x\"y,\n' as t from series \
               where n_instances in (40, 1)";
    let answer = query(sources(dir.path()), sql).unwrap();
    let lines = [
        "s   n  b     l                  h  t",
        "─  ──  ────  ──────────────  ────  ─────",
        "c  40  KNEE  []              20.0  x\"y,",
        "d   1        [Femur, Tibia]   0.5  x\"y,",
        "(2 rows)\n",
    ];
    assert_eq!(show::as_table(&answer).unwrap(), lines.join("\n"));
    let csv = "s,n,b,l,h,t\nc,40,KNEE,[],20.0,\"x\"\"y,\n\"\nd,1,,\"[Femur, Tibia]\",0.5,\"x\"\"y,\n\"\n";
    assert_eq!(show::as_csv(&answer).unwrap(), csv);
    let lines = [
        "[",
        r#"{"s": "c", "n": 40, "b": "KNEE", "l": [], "h": 20.0, "t": "x\"y,\n"},"#,
        r#"{"s": "d", "n": 1, "b": null, "l": ["Femur","Tibia"], "h": 0.5, "t": "x\"y,\n"}"#,
        "]\n",
    ];
    assert_eq!(show::as_json(&answer).unwrap(), lines.join("\n"));
    let json: serde_json::Value = serde_json::from_str(&show::as_json(&answer).unwrap()).unwrap();
    assert_eq!(json[1]["l"][1], "Tibia");
}

#[test]
fn the_last_column_of_a_table_is_whole_and_a_cut_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let table = |sql: &str| show::as_table(&query(sources(dir.path()), sql).unwrap()).unwrap();
    let long = "x".repeat(300);
    let last = table(&format!("select part, '{long}' as why from split"));
    assert!(last.contains(&long) && last.ends_with("(1 row)\n"), "{last}");
    let middle = table(&format!("select '{long}' as why, part from split"));
    assert!(!middle.contains(&long) && middle.contains("…  val") && middle.ends_with("--format csv shows all of them)\n"), "{middle}");
}

/// DuckDB, another implementation of Parquet, sees the same rows.
#[test]
fn duckdb_reads_what_we_write() {
    let must = std::env::var_os("VOXMILL_REQUIRE_PYTHON").is_some_and(|v| v == "1");
    let has_duckdb =
        |p: &std::ffi::OsString| std::process::Command::new(p).args(["-c", "import duckdb"]).output().is_ok_and(|o| o.status.success());
    let Some(python) = std::env::var_os("VOXMILL_PYTHON").filter(has_duckdb) else {
        assert!(!must, "VOXMILL_PYTHON names no interpreter that imports duckdb");
        return eprintln!("skipped: VOXMILL_PYTHON names no interpreter that imports duckdb");
    };
    let dir = tempfile::tempdir().unwrap();
    write_rows(dir.path(), &series()).unwrap();
    let script = "import duckdb, sys\n\
                  q = duckdb.sql(f\"select series, n_instances, body_part, labels from '{sys.argv[1]}'\")\n\
                  print(q.types[1], *q.fetchall(), sep='\\n')";
    let out = std::process::Command::new(python).args(["-c", script]).arg(dir.path().join("series.parquet")).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let expected = "BIGINT\n('c', 40, 'KNEE', [])\n('a', 7, None, [])\n('b', 5, None, [])\n('d', 1, None, ['Femur', 'Tibia'])\n";
    assert_eq!(text, expected);
}
