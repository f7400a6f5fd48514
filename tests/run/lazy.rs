//! Chains of cheap stages are one step from what is stored: what lies between is not written, and nothing else changes.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::bench::Bench;

const CHAIN: &str = r#"
name: small
seed: 3
workspace: work
stages:
  series: { uses: index, with: { archive: archive, deidentify: none } }
  image: { uses: assemble, from: series, with: { where: "modality = 'MR'", case_name: patient } }
  masks: { uses: annotate, from: { image: image, series: series }, with: { classes: { Anterior: 1, Posterior: 2 } } }
  turned: { uses: orient, from: masks, with: { to: LPI } }
  iso: { uses: resample, from: turned, with: { spacing_mm: 1.25 } }
  win: { uses: window, from: iso, with: { low: 0, high: 300 } }
  box: { uses: crop_foreground, from: win, with: { above: 0.3 } }
  padded: { uses: pad, from: box, with: { size: { z: 40, y: 40, x: 40 }, value: 0 } }
"#;

fn bench(text: &str) -> Bench {
    let b = Bench::new(2);
    std::fs::write(b.path("p.yaml"), text).unwrap();
    b
}

/// Stage → manifests of its artifacts.
fn manifests(b: &Bench) -> BTreeMap<String, Vec<Value>> {
    let mut out: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for file in b.artifacts().keys().filter(|f| f.ends_with("artifact.json")) {
        let m: Value = serde_json::from_slice(&std::fs::read(b.path("work/store/artifacts").join(file)).unwrap()).unwrap();
        out.entry(m["recipe"]["stage"].as_str().unwrap().into()).or_default().push(m);
    }
    out.values_mut().for_each(|all| all.sort_by_key(|m| m["case"].as_str().map(String::from)));
    out
}

fn contents(all: &[Value]) -> Vec<&str> {
    all.iter().map(|m| m["content"].as_str().unwrap()).collect()
}

#[test]
fn what_lies_between_is_not_written_and_the_end_has_the_same_bytes() {
    let (lazy, full) = (bench(CHAIN), bench(&CHAIN.replace(", from:", ", keep: true, from:")));
    lazy.run(&[]).expect(0);
    full.run(&[]).expect(0);
    let (lazily, fully) = (manifests(&lazy), manifests(&full));
    for stage in ["orient", "resample", "window", "crop_foreground"] {
        for (a, b) in lazily[stage].iter().zip(&fully[stage]) {
            assert!(a["files"].get("lazy.json").is_some() && a["files"].get("0/zarr.json").is_none(), "{stage}");
            assert!(b["files"].get("lazy.json").is_none(), "{stage}");
            assert_eq!(a["facts"]["label_voxels"], b["facts"]["label_voxels"], "{stage}");
        }
    }
    assert_eq!(contents(&lazily["pad"]), contents(&fully["pad"]));
    let again = lazy.run(&[]).expect(0);
    assert_eq!(again.made(), 0, "{:?}", again.counts());
    lazy.voxmill(&["plan", "p.yaml"]).expect(0).says("2 reused, lazy");
}

#[test]
fn keeping_a_node_remakes_nothing_below_the_next_written_one() {
    let b = bench(&format!("{CHAIN}  folds: {{ uses: split, from: padded, with: {{ by: patient, train: 0.5, val: 0.5 }} }}\n"));
    b.run(&[]).expect(0);
    let text = std::fs::read_to_string(b.path("p.yaml")).unwrap();
    std::fs::write(b.path("p.yaml"), text.replace("uses: resample,", "uses: resample, keep: true,")).unwrap();
    let c = b.run(&[]).expect(0).counts();
    assert_eq!((c["turned"], c["iso"], c["folds"]), ((0, 2, 0), (2, 0, 0), (0, 1, 0)));
}

#[test]
fn damage_below_a_lazy_volume_is_made_good() {
    let b = bench(CHAIN);
    b.run(&[]).expect(0);
    let before = b.artifacts();
    for array in ["/0/c.0.0.0.0", "/base/0/c.0.0.0.0"] {
        let (file, _) = before.iter().find(|(f, _)| f.ends_with(array) && f.contains("base") == array.contains("base")).unwrap();
        let path = b.path("work/store/artifacts").join(file);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"").unwrap();
    }
    b.run(&[]).expect(0);
    assert_eq!(before, b.artifacts());
}

#[test]
fn keep_false_where_all_voxels_must_be_seen_is_refused() {
    let b = bench(&CHAIN.replace(", value: 0 }", " }").replace("uses: pad,", "uses: pad, keep: false,"));
    b.run(&[]).expect(2).says("cannot stay unwritten");
}

#[test]
fn a_training_on_voxels_that_are_not_written_ends_with_the_same_weights() {
    let net = r#"
  folds: { uses: split, from: padded, with: { by: patient, train: 0.6, val: 0.4 } }
  net:
    uses: train
    from: { cases: padded, split: folds }
    with:
      patch: { z: 16, y: 16, x: 16 }
      batch: 2
      epochs: 2
      augment:
        - affine: { rotation_degrees: { z: 15, y: 15, x: 15 }, scale: 0.1, probability: 0.5 }
        - elastic: { sigma_low: 3, sigma_high: 5, magnitude_low: 20, magnitude_high: 50, probability: 0.5 }
      network: { kind: dynunet, filters: [4, 8, 16], kernel_size: [3, 3, 3], strides: [1, 2, 2], deep_supervision: 1 }
      loss: { dice: 0.7, focal: 0.3, gamma: 2 }
      optimiser: { lr: 0.002, weight_decay: 0.00001 }
      validation: { every_epochs: 1 }
"#;
    let trained = |keep: &str| {
        let b =
            bench(&format!("{}{net}", CHAIN.trim_end().replace("padded: { uses: pad,", &format!("padded: {{ uses: pad, keep: {keep},"))));
        b.add_case(2);
        b.run(&[]).expect(0);
        let all = manifests(&b);
        assert_eq!(all["pad"].iter().all(|m| m["files"].get("lazy.json").is_some()), keep == "false");
        all["train"][0]["files"].clone()
    };
    let (lazily, fully) = (trained("false"), trained("true"));
    assert_eq!((&lazily["weights.safetensors"], &lazily["history.parquet"]), (&fully["weights.safetensors"], &fully["history.parquet"]));
}
