//! A run as OpenLineage events: whole, by the published schema, and without a case or patient in them.

use std::path::Path;

use serde_json::Value;

use crate::bench::Bench;

fn events(b: &Bench, name: &str) -> Vec<Value> {
    std::fs::read_to_string(b.path(name)).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn every_run_and_node_begins_and_ends() {
    let b = Bench::new(2);
    b.run(&["ready", "--openlineage", "events.ndjson"]).expect(0);
    let told = events(&b, "events.ndjson");
    let said: Vec<String> =
        told.iter().map(|e| format!("{} {}", e["eventType"].as_str().unwrap(), e["job"]["name"].as_str().unwrap())).collect();
    let nodes = ["series", "image", "masks", "iso", "ready"];
    let mut wanted = vec!["START small".to_string()];
    wanted.extend(nodes.iter().flat_map(|n| [format!("START small.{n}"), format!("COMPLETE small.{n}")]));
    wanted.push("COMPLETE small".into());
    assert_eq!(said, wanted);
    // The second end of a node has what it took and gave; its ids are those of its beginning.
    let (start, end) = (&told[5], &told[6]);
    assert_eq!((&start["run"]["runId"], &end["run"]["facets"]["parent"]["run"]["runId"]), (&end["run"]["runId"], &told[0]["run"]["runId"]));
    assert_eq!(end["inputs"].as_array().unwrap().len(), 2);
    assert_eq!(end["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"], 2);
    let text = std::fs::read_to_string(b.path("events.ndjson")).unwrap();
    assert!(!text.contains("hippocampus") && !text.contains(b.dir.path().to_str().unwrap()), "no case and no place");
    // A second run adds its own, and says the same version of the same voxels.
    b.run(&["ready", "--openlineage", "events.ndjson"]).expect(0);
    let again = events(&b, "events.ndjson");
    assert_eq!(again.len(), 2 * told.len());
    let version = |e: &Value| e["outputs"][0]["facets"]["version"]["datasetVersion"].clone();
    assert_eq!(version(&again[told.len() + 6]), version(end));
    assert_ne!(again[told.len()]["run"]["runId"], told[0]["run"]["runId"]);
}

#[test]
fn a_place_that_takes_no_events_is_named_before_any_work() {
    let b = Bench::new(1);
    b.run(&["image", "--openlineage", "no/folder/events"]).expect(2).says("cannot be written");
    b.run(&["image", "--openlineage", "https://example.org"]).expect(2).says("https is not spoken here");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    b.run(&["image", "--openlineage", &format!("http://127.0.0.1:{port}")]).expect(2).says("does not answer");
    assert!(!b.path("work/heads/small/image.json").exists(), "nothing was made");
}

/// A broken run: what failed says why.
#[test]
fn events_are_valid_by_the_published_schema() {
    let must = std::env::var_os("VOXMILL_REQUIRE_PYTHON").is_some_and(|v| v == "1");
    let has = |p: &std::ffi::OsString| {
        std::process::Command::new(p).args(["-c", "import jsonschema, referencing"]).output().is_ok_and(|o| o.status.success())
    };
    let Some(python) = std::env::var_os("VOXMILL_PYTHON").filter(has) else {
        assert!(!must, "VOXMILL_PYTHON names no interpreter that imports jsonschema");
        return eprintln!("skipped: VOXMILL_PYTHON names no interpreter that imports jsonschema");
    };
    let b = Bench::new(2);
    b.run(&["--openlineage", "events.ndjson"]).expect(0);
    let yaml = std::fs::read_to_string(b.path("p.yaml")).unwrap().replace("modality = 'MR'", "modality = 'CT'");
    std::fs::write(b.path("p.yaml"), yaml).unwrap();
    b.run(&["--openlineage", "events.ndjson"]).expect(2);
    assert!(
        events(&b, "events.ndjson").iter().any(|e| e["eventType"] == "FAIL" && e["run"]["facets"]["errorMessage"]["message"].is_string())
    );
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/run/openlineage.py");
    let schemas = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/openlineage");
    let out = std::process::Command::new(python).arg(script).arg(schemas).arg(b.path("events.ndjson")).output().unwrap();
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
}
