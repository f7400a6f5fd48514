//! Every stage that is shipped: its example parses, its texts are there, and README and JSON Schema are fresh.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use voxmill_stages::STAGES;

#[test]
fn stages_are_sorted_and_documented() {
    let names: Vec<_> = STAGES.iter().map(|d| d.info.name).collect();
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(names, sorted);
    for d in STAGES {
        assert!(!d.info.summary.is_empty() && !d.info.summary.ends_with('.'), "{}: a summary is one line without a full stop", d.info.name);
        let schema = serde_json::to_value((d.schema)()).unwrap();
        for (field, s) in schema["properties"].as_object().into_iter().flatten() {
            assert!(s["description"].is_string() || s["$ref"].is_string(), "{}.{field} has no doc comment", d.info.name);
        }
    }
}

/// The example of a stage, put into a pipeline with stand-ins for what it takes, has no mistake.
#[test]
fn the_example_of_every_stage_is_right() {
    for d in STAGES {
        let indented: String = d.info.example.lines().map(|l| format!("    {l}\n")).collect();
        assert!(indented.trim_start().starts_with(&format!("uses: {}", d.info.name)), "{}:\n{indented}", d.info.name);
        let text = format!("name: example\nstages:\n  node:\n{indented}");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.yaml");
        std::fs::write(&file, text).unwrap();
        let problems = match voxmill::load(&file, &[], STAGES) {
            Ok(_) => continue,
            Err(problems) => problems,
        };
        // The nodes that the example takes from are not in the file: only that may be wrong.
        let wrong: Vec<_> = problems.iter().filter(|p| !p.is_warning && !p.message.contains("no node")).collect();
        assert!(wrong.is_empty(), "{}: {wrong:#?}", d.info.name);
    }
}

#[test]
fn the_readme_lists_the_stages_of_the_code() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let table = voxmill::language::readme_table(STAGES);
    assert!(readme.contains(table.trim()), "README.md is stale: put in what `voxmill stages --markdown` prints\n{table}");
}

#[test]
fn the_committed_schema_is_the_one_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/json/pipeline.schema.json");
    let committed: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(
        committed == voxmill::language::pipeline_schema(STAGES),
        "schemas/json/pipeline.schema.json is stale: voxmill schema > schemas/json/pipeline.schema.json"
    );
}
