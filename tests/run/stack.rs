//! Volumes of one examination find one another by study, whatever their cases are called, and lie on the grid of the first.

use serde_json::Value;

use crate::bench::Bench;

const STACK: &str = r#"
name: small
seed: 3
workspace: work
stages:
  series: { uses: index, with: { archive: archive, deidentify: basic } }
  image: { uses: assemble, from: series, with: { where: "modality = 'MR'", case_name: patient } }
  native: { uses: assemble, from: series, with: { where: "modality = 'MR'" } }
  masks: { uses: annotate, from: { image: image, series: series }, with: { classes: { Anterior: 1, Posterior: 2 } } }
  iso: { uses: resample, from: masks, with: { spacing_mm: 1.25 } }
  joined: { uses: stack, from: { first: iso, second: native, series: series }, with: { channels: [iso, native] } }
"#;

fn manifests(b: &Bench, stage: &str) -> Vec<Value> {
    let files = b.artifacts().into_keys().filter(|f| f.ends_with("artifact.json"));
    let read = |f: String| serde_json::from_slice(&std::fs::read(b.path("work/store/artifacts").join(f)).unwrap()).unwrap();
    let mut all: Vec<Value> = files.map(read).filter(|m: &Value| m["recipe"]["stage"] == stage).collect();
    all.sort_by_key(|m| m["case"].as_str().map(String::from));
    all
}

#[test]
fn volumes_of_one_study_are_stacked_on_the_grid_of_the_first() {
    let b = Bench::new(2);
    std::fs::write(b.path("p.yaml"), STACK).unwrap();
    b.run(&[]).expect(0);
    let (first, joined) = (manifests(&b, "resample"), manifests(&b, "stack"));
    assert_eq!((first.len(), joined.len()), (2, 2));
    for (first, joined) in first.iter().zip(&joined) {
        assert_eq!(joined["case"], first["case"]);
        assert_eq!(joined["facts"]["channels"], serde_json::json!(["iso", "native"]));
        for fact in ["size", "spacing_mm", "label_voxels", "series", "study"] {
            assert_eq!(joined["facts"][fact], first["facts"][fact], "{fact}");
        }
    }
    assert_eq!(b.run(&[]).expect(0).made(), 0);
}
