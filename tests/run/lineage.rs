//! What a run leaves in lineage, whatever ends it, and what can be asked of it.

use std::time::{Duration, Instant};

use crate::bench::Bench;

fn ask(b: &Bench, sql: &str) -> Vec<String> {
    let answer = b.voxmill(&["query", "p.yaml", sql, "--format", "csv"]).expect(0);
    answer.stdout.lines().skip(1).map(str::to_string).collect()
}

#[test]
fn a_killed_run_leaves_what_it_did() {
    let b = Bench::new(4);
    let mut child = b.command(&["run", "p.yaml", "--quiet"]).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !b.path("work/heads/small/iso.json").exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    // Longer than rows wait for the disk.
    std::thread::sleep(Duration::from_millis(1300));
    child.kill().unwrap();
    child.wait().unwrap();
    let made: u64 = ask(&b, "select count(*) from executions where node in ('series', 'image', 'masks', 'iso') and status = 'made'")[0]
        .parse()
        .unwrap();
    assert_eq!(made, 1 + 3 * 4);
    let status = ask(&b, "select status from runs");
    assert!(status == ["running"] || status == ["done"], "{status:?}");
    b.run(&["iso"]).expect(0);
    assert_eq!(ask(&b, "select count(*) from executions where node = 'iso' and status = 'reused'"), ["4"]);
}

#[test]
fn questions_before_the_first_run_and_wrong_ones_are_named() {
    let b = Bench::new(1);
    b.voxmill(&["query", "p.yaml", "select 1"]).expect(2).says("nothing was run");
    b.voxmill(&["trace", "abcd", "--file", "p.yaml"]).expect(2).says("no store");
    b.run(&["image"]).expect(0);
    b.voxmill(&["query", "p.yaml", "select * from scores"]).expect(2).says("series");
    b.voxmill(&["query", "p.yaml", "select * from runs", "--format", "parquet"]).expect(2).says("--output");
    b.voxmill(&["query", "p.yaml", "select * from runs", "--format", "parquet", "--output", "r.parquet"]).expect(0);
    assert_eq!(&std::fs::read(b.path("r.parquet")).unwrap()[..4], b"PAR1");
    b.voxmill(&["query", "p.yaml", "select node, took_ms from executions", "--format", "json"]).expect(0).says("\"node\": \"image\"");
}

#[test]
fn a_case_an_instance_and_a_key_can_be_traced() {
    let b = Bench::new(2);
    b.run(&["ready"]).expect(0);
    let trace = |what: &str| b.voxmill(&["trace", what, "--workspace", "work"]);
    let by_case = trace("hippocampus_001").expect(0);
    by_case.says("image: assemble hippocampus_001").says("ready: normalize hippocampus_001").says("instances of series");
    assert!(!by_case.stdout.contains("hippocampus_004"), "{}", by_case.stdout);
    let file = std::fs::read_dir(b.archive().join("hippocampus_001/MR")).unwrap().next().unwrap().unwrap().path();
    let by_file = trace(file.to_str().unwrap()).expect(0);
    assert_eq!(by_file.stdout, by_case.stdout);
    let key = ask(&b, "select key from executions where node = 'image' order by \"case\" limit 1");
    // In the folder of the only pipeline nothing more need be said.
    assert_eq!(b.voxmill(&["trace", &key[0][..12]]).expect(0).stdout, by_case.stdout);
    b.voxmill(&["trace", "hippocampus_001", "--format", "mermaid"]).expect(0).says("flowchart").says("-->");
    trace("hippocampus_00").expect(2).says("hippocampus_001, hippocampus_004");
    b.voxmill(&["trace", "x", "--workspace", "archive"]).expect(2).says("archive");
}

/// DuckDB reads lineage and index as they lie on disk.
#[test]
fn duckdb_reads_lineage_and_index() {
    let must = std::env::var_os("VOXMILL_REQUIRE_PYTHON").is_some_and(|v| v == "1");
    let has_duckdb =
        |p: &std::ffi::OsString| std::process::Command::new(p).args(["-c", "import duckdb"]).output().is_ok_and(|o| o.status.success());
    let Some(python) = std::env::var_os("VOXMILL_PYTHON").filter(has_duckdb) else {
        assert!(!must, "VOXMILL_PYTHON names no interpreter that imports duckdb");
        return eprintln!("skipped: VOXMILL_PYTHON names no interpreter that imports duckdb");
    };
    let b = Bench::new(2);
    b.run(&["image"]).expect(0);
    let script = "import duckdb\n\
                  q = lambda sql: print(duckdb.sql(sql).fetchall())\n\
                  q(\"select status from 'work/lineage/runs/*.parquet'\")\n\
                  q(\"select node, status, count(*) from 'work/lineage/executions/*.parquet' group by all order by node\")\n\
                  q(\"select modality, count(*) from 'work/out/series/series.parquet' where kind = 'image' group by all\")";
    let out = std::process::Command::new(python).args(["-c", script]).current_dir(b.dir.path()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(text, "[('done',)]\n[('image', 'made', 2), ('series', 'made', 1)]\n[('MR', 2)]\n");
}

#[test]
fn why_a_node_was_made_and_what_differs_between_runs_can_be_asked() {
    let b = Bench::new(2);
    b.voxmill(&["why", "p.yaml", "iso"]).expect(2).says("nothing was run");
    b.run(&["ready"]).expect(0);
    let why = |node: &str| b.voxmill(&["why", "p.yaml", node, "--format", "csv"]).expect(0).stdout;
    assert_eq!(why("iso").matches(",made,").count(), 2, "{}", why("iso"));
    b.run(&["ready"]).expect(0);
    assert!(why("iso").contains(",reused,") && why("iso").contains("nothing that it is made from has changed"), "{}", why("iso"));
    b.run(&["--set", "iso.spacing_mm=2", "ready"]).expect(0);
    assert!(why("iso").contains("config.spacing_mm"), "{}", why("iso"));
    assert_eq!(b.voxmill(&["why", "p.yaml", "iso", "hippocampus_001", "--format", "csv"]).expect(0).stdout.lines().count(), 2);
    b.voxmill(&["why", "p.yaml", "ios"]).expect(2).says("iso");
    b.voxmill(&["why", "p.yaml", "net"]).expect(2).says("never reached");

    let diff = b.voxmill(&["diff", "p.yaml", "--format", "csv"]).expect(0).stdout;
    assert!(diff.lines().any(|l| l.starts_with("config,iso,spacing_mm") && l.ends_with(",1.5,2.0")), "{diff}");
    assert_eq!(diff.matches("case,iso,").count(), 2, "{diff}");
    let same = b.voxmill(&["diff", "p.yaml", "last~2", "last~1", "--format", "csv"]).expect(0).stdout;
    assert_eq!(same.lines().count(), 1, "{same}");
    b.voxmill(&["diff", "p.yaml", "last~7"]).expect(2).says("3 runs");
}

#[test]
fn a_model_tells_whom_it_saw_and_a_patient_who_saw_them() {
    let b = Bench::new(4);
    b.run(&["net"]).expect(0);
    let split = ask(&b, "select part, patient, \"case\" from split order by part, patient, \"case\"");
    let saw = b.voxmill(&["saw", "p.yaml", "net", "--format", "csv"]).expect(0).stdout;
    let seen: Vec<String> = saw
        .lines()
        .skip(1)
        .map(|l| {
            let cells: Vec<&str> = l.split(',').collect();
            format!("{},{},{}", cells[4], cells[2], cells[3])
        })
        .collect();
    assert_eq!(seen, split);
    // Patches: those of the training's own table.
    let counted: i64 = saw.lines().skip(1).map(|l| l.rsplit(',').next().unwrap().parse::<i64>().unwrap()).sum();
    assert_eq!(ask(&b, "select count(*) from patches"), [counted.to_string()]);
    let patient = split[0].split(',').nth(1).unwrap();
    let by_patient = b.voxmill(&["saw", "p.yaml", "--patient", patient, "--format", "csv"]).expect(0).stdout;
    assert_eq!(by_patient.lines().count(), 2);
    b.voxmill(&["saw", "p.yaml", "--patient", "nobody"]).expect(2).says("nobody");
    b.voxmill(&["saw", "p.yaml", "iso"]).expect(2).says("no model").says("there is net (");
}

/// What the tables say, counted another way: from the manifests on the shelf.
#[test]
fn artifacts_edges_steps_and_predictions_are_rows() {
    let b = Bench::new(4);
    b.run(&["--set", "net.epochs=3"]).expect(0);
    let manifests: Vec<serde_json::Value> = b
        .artifacts()
        .keys()
        .filter(|f| f.ends_with("artifact.json"))
        .map(|f| serde_json::from_slice(&std::fs::read(b.path("work/store/artifacts").join(f)).unwrap()).unwrap())
        .collect();
    let mut keys: Vec<&str> = manifests.iter().map(|m| m["key"].as_str().unwrap()).collect();
    keys.sort();
    assert_eq!(ask(&b, "select key from artifacts order by key"), keys);
    let n_edges: usize =
        manifests.iter().flat_map(|m| m["input_keys"].as_object().unwrap().values()).map(|v| v.as_array().unwrap().len()).sum();
    assert_eq!(ask(&b, "select count(*) from edges"), [n_edges.to_string()]);
    assert_eq!(ask(&b, "select count(*) from edges e left join artifacts a on e.input = a.key where a.key is null"), ["0"]);

    assert_eq!(ask(&b, "select count(*), count(distinct \"case\") from cases where node = 'iso'"), ["4,4"]);
    let spacing = ask(&b, "select distinct spacing_zyx_mm from cases where node = 'iso'");
    assert!(spacing.len() == 1 && spacing[0].contains("1.5"), "{spacing:?}");
    let predicted = ask(&b, "select \"case\", trained_by from predictions order by 1");
    assert_eq!(predicted.len(), 4);
    assert!(predicted.iter().all(|r| r.ends_with(",net")), "{predicted:?}");

    // An epoch's loss is the mean of its steps', its Dice the mean of the classes' means over the cases.
    let number = |sql: &str| ask(&b, sql)[0].parse::<f64>().unwrap();
    let epochs = number("select avg(loss) from steps where epoch = 2");
    assert!((epochs - number("select loss from history where epoch = 2")).abs() < 1e-12);
    let dice = number("select avg(d) from (select class, avg(dice) as d from validation where epoch = 3 group by class)");
    assert!((dice - number("select val_dice from history where epoch = 3")).abs() < 1e-12);
    assert_eq!(
        ask(&b, "select level, name, count(*) from metrics where node = 'net' and level = 'epoch' and name = 'loss' group by 1, 2"),
        ["epoch,loss,3"]
    );
    assert!(number("select count(*) from metrics where node = 'score' and level = 'case' and name = 'dice'") >= 4.0);
    // Bricks are counted the same in both tables.
    let bricks = "sum(ram_hits), sum(nvme_hits), sum(disk_reads)";
    assert_eq!(ask(&b, &format!("select {bricks} from traffic")), ask(&b, &format!("select {bricks} from executions")));
}

#[test]
fn a_run_keeps_what_it_was_run_with() {
    let b = Bench::new(1);
    let yaml = std::fs::read_to_string(b.path("p.yaml")).unwrap().replace("spacing_mm: 1.5", "spacing_mm: \"${MM:-1.5}\"");
    std::fs::write(b.path("p.yaml"), &yaml).unwrap();
    let ran = b.command(&["run", "p.yaml", "image", "--quiet", "--set", "net.epochs=3"]).env("MM", "2").output().unwrap();
    assert!(ran.status.success());
    let kept: serde_json::Value =
        serde_json::from_str(&b.voxmill(&["query", "p.yaml", "select * from runs", "--format", "json"]).expect(0).stdout).unwrap();
    let run = &kept[0];
    assert_eq!(run["yaml"], yaml.as_str());
    let variables: serde_json::Value = serde_json::from_str(run["variables"].as_str().unwrap()).unwrap();
    assert_eq!((&variables["MM"], &variables["net.epochs"]), (&"2".into(), &"3".into()));
    assert!(run["features"].as_str().unwrap().contains("model") && run["cpu"].is_string(), "{run}");
}
