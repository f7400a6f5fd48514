//! Every network against the program it comes from: outputs, heads, loss and gradients, from weights in that program's own file. `networks.py` makes the cases.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};
use voxmill_schemas::geometry::Zyx;
use voxmill_stages::model::weights::{self, Weights};
use voxmill_stages::model::{Device, Loss, Network, Optimiser, Predictor, Trainer};

use crate::read::{Tensor, tensors_in};

/// Relative to the largest value.
const TOLERANCE: f64 = 1e-4;

/// Rate of the one step that takes the gradient off the weights: so large that little is lost where a small one is taken off a weight near 1.
const RATE: f64 = 64.0;

/// The folder of cases: `VOXMILL_GOLDEN_NETWORKS` names another.
fn folder() -> PathBuf {
    let own = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/networks");
    std::env::var_os("VOXMILL_GOLDEN_NETWORKS").map_or_else(own, PathBuf::from)
}

struct Case {
    name: String,
    network: Network,
    channels: usize,
    classes: usize,
    weights: PathBuf,
    golden: BTreeMap<String, Tensor>,
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(folder().join("manifest.json")).expect("a manifest");
    let all: Value = serde_json::from_str(&text).expect("the manifest is JSON");
    let cases = all["cases"].as_array().expect("the manifest lists cases");
    assert!(!cases.is_empty());
    let case = |c: &Value| {
        let name = c["case"].as_str().expect("a case has a name").to_string();
        let count = |key: &str| c[key].as_u64().expect("a number") as usize;
        Case {
            network: serde_json::from_value(c["network"].clone()).unwrap_or_else(|e| panic!("{name}: {e}")),
            channels: count("channels"),
            classes: count("classes"),
            weights: folder().join(c["weights"].as_str().expect("a file")),
            golden: tensors_in(&folder().join(format!("{name}.safetensors"))),
            name,
        }
    };
    cases.iter().map(case).collect()
}

fn spatial(shape: &[usize]) -> Zyx<usize> {
    let [.., z, y, x] = *shape else { panic!("{shape:?} has no space") };
    Zyx::new(z, y, x)
}

/// Largest difference over the scale of the values; infinite for what is not a number.
fn off(a: &[f32], b: &[f64], scale: f64) -> f64 {
    assert_eq!(a.len(), b.len(), "as many values");
    a.iter().zip(b).map(|(a, b)| (*a as f64 - b).abs() / scale).fold(0.0, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) })
}

fn largest(v: &[f64]) -> f64 {
    v.iter().fold(f64::MIN_POSITIVE, |m, v| m.max(v.abs()))
}

fn assert_close(what: &str, a: &[f32], b: &[f64]) {
    let off = off(a, b, largest(b));
    println!("{what}: off by {off:.1e}");
    assert!(off < TOLERANCE, "{what}: off by {off:e}");
}

/// Nearest neighbour: [n, c, small] → [n, c, full].
fn copied_up(t: &Tensor, full: Zyx<usize>) -> Vec<f64> {
    let small = spatial(&t.shape);
    let at = |v: usize, full: usize, small: usize| v * small / full;
    let mut out = Vec::new();
    for map in t.values.chunks_exact(small.count()) {
        for v in 0..full.count() {
            let (z, y, x) = (v / full.x / full.y, v / full.x % full.y, v % full.x);
            out.push(map[(at(z, full.z, small.z) * small.y + at(y, full.y, small.y)) * small.x + at(x, full.x, small.x)]);
        }
    }
    out
}

/// A patch that has the labels of `t` [n, inner] in its middle and class 0 around them.
fn framed(t: &Tensor, size: Zyx<usize>) -> Vec<u8> {
    let inner = spatial(&t.shape);
    let first = size.zip(inner).map(|(n, i)| (n - i) / 2);
    let mut out = vec![0; t.shape[0] * size.count()];
    for (i, label) in t.values.iter().enumerate() {
        let (b, v) = (i / inner.count(), i % inner.count());
        let (z, y, x) = (v / inner.x / inner.y, v / inner.x % inner.y, v % inner.x);
        out[b * size.count() + ((first.z + z) * size.y + first.y + y) * size.x + first.x + x] = *label as u8;
    }
    out
}

fn weights_of(t: &Trainer) -> Weights {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("w.safetensors");
    t.predictor().save(&file).expect("saved");
    weights::read(&file, 1 << 30).expect("read back")
}

#[test]
fn outputs_and_gradients_are_those_of_the_original() {
    let device = Device::cpu();
    for Case { name, network, channels, classes, weights, golden } in cases() {
        let (n, size) = (golden["in"].shape[0], spatial(&golden["in"].shape));
        let image = golden["in"].f32();
        let predictor = Predictor::load(&network, channels, classes, &weights, &device).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_close(&format!("{name} out"), &predictor.forward(image.clone(), n, size).expect("forward"), &golden["out"].values);

        let loss: Loss = serde_json::from_value(json!({ "cross_entropy": 1 })).expect("a loss");
        let descent = json!({ "kind": "sgd", "lr": RATE, "momentum": 0, "nesterov": false, "weight_decay": 0 });
        let rule: Optimiser = serde_json::from_value(descent).expect("descent");
        let mut trainer = Trainer::new(&network, channels, classes, &loss, &rule, 0, &device).expect("a trainer");
        trainer.start_from(&weights).expect("the weights fit");
        for (i, head) in trainer.heads(image.clone(), n, size).expect("heads").iter().enumerate() {
            let maps = n * classes;
            let full = head.len() / maps;
            let first = spatial(&golden["out"].shape);
            assert_eq!(full, first.count());
            assert_close(&format!("{name} head {i}"), head, &copied_up(&golden[&format!("head.{i}")], first));
        }
        if network.shrinks() {
            // Labels lie on the grid of the patch, so training is refused (`train`); what is left to compare is done.
            continue;
        }
        let before = weights_of(&trainer);
        let value = trainer.step(image, &framed(&golden["target"], size), n, size, RATE).expect("a step");
        assert_close(&format!("{name} loss"), &[value], &golden["loss"].values);
        let after = weights_of(&trainer);
        let gradients: BTreeMap<&str, &Tensor> = golden.iter().filter_map(|(n, t)| Some((n.strip_prefix("grad.")?, t))).collect();
        let overall = gradients.values().fold(0f64, |m, t| m.max(largest(&t.values)));
        let mut worst = 0f64;
        for (param, w) in &before {
            let got: Vec<f32> = w.values.iter().zip(&after[param].values).map(|(b, a)| (b - a) / RATE as f32).collect();
            match gradients.get(param.as_str()) {
                None => assert!(got.iter().all(|g| *g == 0.0), "{name}: {param} has no gradient in the original"),
                Some(t) => {
                    // What is a hundred times smaller than the largest gradient is compared with that.
                    let off = off(&got, &t.values, largest(&t.values).max(overall * 1e-2));
                    assert!(off < TOLERANCE, "{name}: gradient of {param} off by {off:e}");
                    worst = worst.max(off);
                }
            }
        }
        assert_eq!(gradients.keys().filter(|k| !before.contains_key(**k)).count(), 0, "{name}: gradients of foreign parameters");
        println!("{name} gradients: off by {worst:.1e}");
    }
}

#[test]
fn weights_of_another_network_are_refused_with_both_sides() {
    let all = cases();
    let case = |start: &str| all.iter().find(|c| c.name.starts_with(start)).expect("a case");
    let (seg, unet) = (case("segresnet_"), case("dynunet_"));
    let e = Predictor::load(&seg.network, seg.channels, seg.classes, &unet.weights, &Device::cpu()).err().expect("refused").to_string();
    assert!(e.contains("convInit.conv.weight") && e.contains("bottleneck.conv1.conv.weight"), "{e}");
}
