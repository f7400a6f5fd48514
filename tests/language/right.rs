//! What a right file means: variables, includes, `--set`, numbers in quotes, the order of nodes, graphs and help.

use std::path::Path;

use serde_json::{Value, json};
use voxmill::plan::Plan;

use crate::stages::STAGES;

fn load(text: &str, sets: &[&str]) -> Plan {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("p.yaml"), text).unwrap();
    load_file(&dir.path().join("p.yaml"), sets)
}

fn load_file(file: &Path, sets: &[&str]) -> Plan {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    match voxmill::load(file, &sets, STAGES) {
        Ok(plan) => plan,
        Err(problems) => panic!("{}", voxmill::problem::render_as(&problems, false)),
    }
}

fn config(plan: &Plan, node: &str) -> Value {
    plan.nodes.iter().find(|n| n.name == node).unwrap().stage.config()
}

const SMALL: &str = "
name: small
stages:
  model: { uses: fit, from: { cases: iso, split: series }, with: { batch: \"${BATCH:-2}\", network: { kind: dynunet, filters: ${FILTERS:-8} } } }
  iso: { uses: respace, from: bones, with: { spacing_mm: { z: 2, y: 1, x: 1 } } }
  bones: { uses: label, from: series, with: { classes: { Femur: 1 } } }
  series: { uses: look, with: { archive: \"${ARCHIVE:-data/${SITE}}\" } }
";

fn small() -> String {
    SMALL.replace("${FILTERS:-8}", "\"${FILTERS:-[8, 16]}\"").replace("data/${SITE}", "data")
}

#[test]
fn nodes_come_after_what_they_take_from() {
    let plan = load(&small(), &[]);
    let names: Vec<&str> = plan.nodes.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(names, ["series", "bones", "iso", "model"]);
    assert_eq!(plan.nodes[3].from["cases"], [2]);
    assert_eq!(plan.nodes[3].from["split"], [0]);
    assert_eq!((plan.seed, plan.workspace.to_str().unwrap()), (0, "work/small"));
}

/// The shipped example with a second network, and `from` written otherwise.
fn with_second(from: &str, to: &str) -> Result<Plan, String> {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/hippocampus.yaml");
    let text = std::fs::read_to_string(example).unwrap();
    assert!(text.contains(from), "{from}");
    let second = "  second:
    uses: train
    from: { cases: ready, split: folds }
    with:
      patch: { z: 32, y: 48, x: 32 }
      batch: 2
      epochs: 1
      network: { kind: dynunet, filters: [4, 8, 8], kernel_size: [3, 3, 3], strides: [1, 2, 2] }
      optimiser: { lr: 0.001 }
  seg2: { uses: infer, from: { cases: ready, model: second }, with: { only: train } }
";
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.yaml");
    std::fs::write(&file, text.replace(from, to) + second).unwrap();
    voxmill::load(&file, &[], voxmill_stages::STAGES).map_err(|p| voxmill::problem::render_as(&p, false))
}

#[test]
fn models_and_the_cases_of_a_set_come_from_several_nodes_and_a_case_from_one() {
    let plan = with_second("model: net }", "model: [second, net] }").unwrap();
    let fed = |node: &str, port: &str| -> Vec<&str> {
        let ups = &plan.nodes.iter().find(|n| n.name == node).unwrap().from[port];
        ups.iter().map(|i| plan.nodes[*i].name.as_str()).collect()
    };
    assert_eq!((fed("seg", "model"), fed("seg", "cases")), (vec!["second", "net"], vec!["ready"]));
    assert!(with_second("prediction: seg, split", "prediction: [seg, seg2], split").is_ok());
    let why = with_second("{ cases: ready, model: net }", "{ cases: [ready, iso], model: net }").err().unwrap();
    assert!(why.contains("port `cases` of infer takes one node"), "{why}");
    let why = with_second("model: net }", "model: [net, net] }").err().unwrap();
    assert!(why.contains("net feeds port `model` twice"), "{why}");
    let why = with_second("model: net }", "model: [net, iso] }").err().unwrap();
    assert!(why.contains("iso gives a volume"), "{why}");
}

#[test]
fn variables_become_what_the_schema_wants() {
    let plan = load(&small(), &[]);
    assert_eq!(config(&plan, "model")["batch"], json!(2));
    assert_eq!(config(&plan, "model")["network"]["filters"], json!([8, 16]));
    assert_eq!(config(&plan, "series")["archive"], json!("data"));
    let plan = load(&small(), &["BATCH=4", "FILTERS=[4]", "ARCHIVE=2024"]);
    assert_eq!(config(&plan, "model")["batch"], json!(4));
    assert_eq!(config(&plan, "model")["network"]["filters"], json!([4]));
    assert_eq!(config(&plan, "series")["archive"], json!("2024"), "a variable where a text is wanted is a text");
}

#[test]
fn set_reaches_any_value() {
    let sets = [
        "iso.spacing_mm.z=3",
        "model.augment=[{ noise: { std: 0.1 } }]",
        "model.augment.0.noise.std=0.2",
        "seed=9",
        "cache.ram.limit=1 GiB",
    ];
    let plan = load(&small(), &sets);
    assert_eq!(config(&plan, "iso")["spacing_mm"], json!({ "z": 3.0, "y": 1.0, "x": 1.0 }));
    assert_eq!(config(&plan, "model")["augment"], json!([{ "noise": { "std": 0.2 } }]));
    assert_eq!(plan.seed, 9);
    assert_eq!(plan.cache.ram_limit, voxmill_schemas::spec::RamLimit::Bytes(1 << 30));
}

#[test]
fn included_blocks_are_merged_and_own_keys_win() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(
        "p.yaml",
        "include: shared/base.yaml\nname: mine\nstages:\n  iso: { with: { spacing_mm: 2 } }\n  out: { uses: write, from: iso }\n",
    );
    write(
        "shared/base.yaml",
        "name: base\nseed: 5\nstages: { include: source.yaml, iso: { uses: respace, from: bones, with: { include: iso.yaml, spacing_mm: 1 } } }\n",
    );
    write(
        "shared/source.yaml",
        "series: { uses: look, with: { archive: a } }\nbones: { uses: label, from: series, with: { classes: { Femur: 1 } } }\n",
    );
    write("shared/iso.yaml", "interpolation: nearest\nspacing_mm: 9\n");
    let plan = load_file(&dir.path().join("p.yaml"), &[]);
    assert_eq!((plan.name.as_str(), plan.seed), ("mine", 5));
    assert_eq!(config(&plan, "iso")["spacing_mm"], json!(2.0));
    assert_eq!(config(&plan, "iso")["interpolation"], json!("nearest"));
    assert_eq!(plan.nodes.len(), 4);
}

#[test]
fn anchors_and_merge_keys_are_understood() {
    let text = "
name: anchors
stages:
  series: { uses: look, with: { archive: a } }
  bones: { uses: label, from: series, with: { classes: &c { Femur: 1 } } }
  more: { uses: label, from: { series: series, image: bones }, with: { classes: { <<: *c, Tibia: 2 } } }
";
    assert_eq!(config(&load(text, &[]), "more")["classes"], json!({ "Femur": 1, "Tibia": 2 }));
}

#[test]
fn a_graph_shows_what_flows() {
    let plan = load(&small(), &[]);
    insta::assert_snapshot!("graph_mermaid", voxmill::language::graph_mermaid(&plan));
    insta::assert_snapshot!("graph_dot", voxmill::language::graph_dot(&plan));
}

#[test]
fn stages_are_listed_and_explained() {
    insta::assert_snapshot!("stages", voxmill::language::stages_list(STAGES));
    let help: Vec<String> = STAGES.iter().map(voxmill::language::stage_help).collect();
    insta::assert_snapshot!("stages_help", help.join("\n————\n"));
    insta::assert_snapshot!("readme_table", voxmill::language::readme_table(STAGES));
}

/// The schema has what editors complete from; every reference in it leads somewhere.
#[test]
fn the_schema_for_editors_is_whole() {
    let schema = voxmill::language::pipeline_schema(STAGES);
    assert_eq!(schema["$defs"]["look.with"]["properties"]["archive"]["type"], "string");
    let mut todo = vec![&schema];
    let mut n = 0;
    while let Some(v) = todo.pop() {
        match v {
            Value::Object(o) => {
                if let Some(r) = o.get("$ref").and_then(Value::as_str) {
                    assert!(schema.pointer(&r[1..]).is_some(), "{r}");
                    n += 1;
                }
                todo.extend(o.values());
            }
            Value::Array(a) => todo.extend(a),
            _ => {}
        }
    }
    assert!(n > 10);
}
