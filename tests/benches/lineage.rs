//! Questions to ten million rows of lineage, and what writing rows costs a run. One JSON line a figure: bench, metric, value, unit, against, ratio.
//! `cargo bench --bench lineage`; `VOXMILL_BENCH_DIR` chooses the disk (3 GB), `VOXMILL_BENCH_ROWS` another number of rows. Each question is asked by a
//! process of its own, as `voxmill query` does, over all files as a finished workspace has them: its time from start to answer, its peak memory. Ratios: to
//! the second and the GiB that are allowed.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use voxmill::lineage::{self, Lineage};
use voxmill_schemas::tables::{ArtifactRow, EdgeRow, ExecutionRow, Row, RunRow};
use voxmill_stages::store::Counts;
use voxmill_stages::table::{self, show};

const CASES: u64 = 1000;
const NODES: [&str; 10] = ["series", "image", "masks", "iso", "ready", "folds", "net", "seg", "score", "out"];
/// Of what a finished run leaves, half are executions, a quarter artifacts, a quarter edges.
const RUN_ROWS: u64 = 4 * 5 * CASES;

fn main() {
    if let [_, ask, workspace, sql] = &std::env::args().collect::<Vec<_>>()[..]
        && ask == "ask"
    {
        return answer(Path::new(workspace), sql);
    }
    let rows: u64 = std::env::var("VOXMILL_BENCH_ROWS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000_000);
    let dir = tempfile::tempdir_in(std::env::var("VOXMILL_BENCH_DIR").unwrap_or_else(|_| ".".into())).unwrap();
    let workspace = dir.path();
    append(&workspace.join("appends"));

    let n_runs = rows.div_ceil(RUN_ROWS);
    (0..n_runs).for_each(|run| write_run(workspace, run));
    let started = Instant::now();
    lineage::compact(&workspace.join("lineage")).unwrap();
    let took = started.elapsed().as_secs_f64();
    tell("files of all runs put together", took, "s", "once", 1.0);
    let bytes: u64 = ["runs", "executions", "artifacts", "edges"]
        .iter()
        .flat_map(|t| table::files(&workspace.join("lineage").join(t)).unwrap().into_values())
        .map(|f| f.metadata().unwrap().len())
        .sum();
    tell("size on disk", bytes as f64 / rows as f64, "bytes a row", "", 1.0);

    let (run, case) = (run_name(n_runs / 2), "case-00617");
    let key = key(n_runs / 2, 4, 617);
    let questions = [
        ("what all runs made, by node and status", "select node, status, count(*) as n, sum(took_ms) as ms from executions group by node, status order by 1, 2".to_string()),
        ("what failed in a run", format!("select node, \"case\", error from executions where run = '{run}' and status = 'quarantined' order by 1, 2")),
        ("everything of a run", format!("select * from executions where run = '{run}'")),
        ("the history of a case", format!("select run, node, status, took_ms from executions where \"case\" = '{case}' order by started_ms")),
        ("who made a key", format!("select run, node, \"case\" from executions where key = '{key}'")),
        ("what a key was made from", format!("select e.port, a.node, a.\"case\" from edges e join artifacts a on e.input = a.key where e.key = '{key}'")),
        ("cases of a patient", "select \"case\", node, key from artifacts where patient = 'pa-00042' order by made_ms desc limit 20".into()),
        ("the slowest of each node", "select node, max(took_ms) as worst, avg(took_ms) as mean from executions where status = 'made' group by node order by worst desc".into()),
        ("bytes by kind", "select kind, count(*) as n, sum(bytes) as bytes from artifacts group by kind order by 1".into()),
        ("runs and their failures", "select r.run, r.status, count(*) as n from runs r join executions e on r.run = e.run where e.status = 'quarantined' group by r.run, r.status order by n desc, r.run limit 10".into()),
    ];
    let (mut slowest, mut largest) = (0.0f64, 0.0f64);
    for (name, sql) in questions {
        let started = Instant::now();
        let out = Command::new(std::env::current_exe().unwrap()).args(["ask", workspace.to_str().unwrap(), &sql]).output().unwrap();
        let took = started.elapsed().as_secs_f64();
        assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
        let gib = String::from_utf8(out.stdout).unwrap().lines().last().unwrap().parse::<f64>().unwrap() / (1u64 << 20) as f64;
        tell(name, took, "s", "1 s", took);
        (slowest, largest) = (slowest.max(took), largest.max(gib));
    }
    tell("the slowest question", slowest, "s", "1 s", slowest);
    tell("the most memory of a question", largest, "GiB", "1 GiB", largest);
}

/// Prints the number of rows and this process's peak memory in KiB.
fn answer(workspace: &Path, sql: &str) {
    let batches = lineage::query(workspace, sql, |_| Ok(())).unwrap();
    println!("{}", show::cells(&batches, "").unwrap().len());
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    println!("{}", peak.trim().trim_end_matches(" kB"));
}

/// What a worker waits for its rows, against a run whose cases take 10 ms each.
fn append(workspace: &Path) {
    const N: i64 = 20_000;
    let lineage = Lineage::begin(workspace, RunRow { pipeline: "p".into(), purpose: "run".into(), ..RunRow::default() }).unwrap();
    let started = Instant::now();
    for i in 0..N {
        lineage.push(execution(0, 3, i as u64), Counts { ram_hits: i as u64, ..Counts::default() });
    }
    let pushed = started.elapsed().as_secs_f64();
    lineage.finish("done").unwrap();
    let us = started.elapsed().as_secs_f64() / N as f64 * 1e6;
    tell("a row, until it is handed over", pushed / N as f64 * 1e6, "us", "a case of 10 ms", pushed / N as f64 / 0.01);
    tell("a row, until it is on disk and the run is closed", us, "us", "a case of 10 ms", us / 1e4);
}

fn run_name(run: u64) -> String {
    format!("2020{:02}{:02}T{:02}{:02}00-{run:06x}", 1 + run / 720 % 6, 1 + run / 24 % 28, run % 24, run / 4032 % 60)
}

fn key(run: u64, node: u64, case: u64) -> String {
    blake3::hash(format!("{}/{node}/{case}", run / 8).as_bytes()).to_hex().to_string()
}

/// Every eighth run makes new artifacts, those between reuse them.
fn execution(run: u64, node: u64, case: u64) -> ExecutionRow {
    let status = if (run + 7 * case).is_multiple_of(997) {
        "quarantined"
    } else if run.is_multiple_of(8) {
        "made"
    } else {
        "reused"
    };
    let took_ms = (case * 7 + node * 31) as i64 % 900;
    ExecutionRow {
        run: run_name(run),
        node: NODES[node as usize].into(),
        stage: "resample".into(),
        version: 1,
        case: Some(format!("case-{case:05}")),
        key: key(run, node, case),
        content: key(run, node, case + 1_000_000),
        input_keys: vec![key(run, node.saturating_sub(1), case)],
        config_hash: key(run, node, 0),
        config: format!(r#"{{"interpolation":"linear","spacing_mm":{{"x":1.0,"y":1.0,"z":{}.0}}}}"#, 1 + run / 8 % 3),
        status: status.into(),
        why: (status == "made").then(|| "config.spacing_mm.z 1.0 → 2.0".into()),
        started_ms: (run * 3_600_000 + case * 10) as i64,
        ended_ms: (run * 3_600_000 + case * 10) as i64 + took_ms,
        took_ms,
        bytes: 1_000_000 + (case * 313 % 5000) as i64,
        ram_hits: (case % 17) as i64,
        nvme_hits: 0,
        disk_reads: (case % 3) as i64,
        facts: format!(
            r#"{{"channels":["MR"],"dtype":"float32","modality":"MR","patient":"pa-{:05}","size":{{"x":{},"y":51,"z":35}},"unit":"stored","voxels":{}}}"#,
            case / 2,
            30 + case % 20,
            53_550 + case * 1785
        ),
        error: (status == "quarantined").then(|| format!("case-{case:05}: 3 slices are missing between 12.5 and 20.0 mm")),
    }
}

/// What a finished run leaves: a file a table.
fn write_run(workspace: &Path, run: u64) {
    let name = run_name(run);
    let mut executions = Vec::new();
    let (mut artifacts, mut edges) = (Vec::new(), Vec::new());
    for node in 0..NODES.len() as u64 {
        for case in 0..CASES {
            let e = execution(run, node, case);
            // Half as many as executions: what the eighth run made would stand alone otherwise.
            if case.is_multiple_of(2) {
                artifacts.push(ArtifactRow {
                    run: name.clone(),
                    key: e.key.clone(),
                    content: e.content.clone(),
                    kind: if node == 0 { "table" } else { "volume" }.into(),
                    node: e.node.clone(),
                    stage: e.stage.clone(),
                    version: 1,
                    case: e.case.clone(),
                    patient: Some(format!("pa-{:05}", case / 2)),
                    study: Some(format!("st-{case:05}")),
                    series: Some(format!("se-{case:05}")),
                    modality: Some("MR".into()),
                    unit: Some("stored".into()),
                    n_channels: Some(1),
                    size_zyx: vec![35, 51, 30 + case as i64 % 20],
                    spacing_zyx_mm: vec![1.0; 3],
                    bytes: e.bytes,
                    n_files: 5,
                    made_ms: e.ended_ms,
                });
                edges.push(EdgeRow { run: name.clone(), key: e.key.clone(), port: "volume".into(), input: e.input_keys[0].clone() });
            }
            executions.push(e);
        }
    }
    put(workspace, &format!("{name}-000000-000020"), &executions);
    put(workspace, &format!("{name}-000000-000010"), &artifacts);
    put(workspace, &format!("{name}-000000-000010"), &edges);
    put(
        workspace,
        &name,
        &[RunRow { run: name.clone(), pipeline: "p".into(), purpose: "run".into(), status: "done".into(), ..RunRow::default() }],
    );
}

fn put<R: Row>(workspace: &Path, name: &str, rows: &[R]) {
    let folder = workspace.join("lineage").join(R::TABLE);
    std::fs::create_dir_all(&folder).unwrap();
    table::write_durably(&folder.join(format!("{name}.parquet")), &R::to_batch(rows)).unwrap();
}

fn tell(metric: &str, value: f64, unit: &str, against: &str, ratio: f64) {
    let round = |v: f64| (v * 1e4).round() / 1e4;
    let line = serde_json::json!({"bench": "lineage", "metric": metric, "value": round(value), "unit": unit, "against": against, "ratio": round(ratio)});
    println!("{line}");
}
