//! ONNX's own checker accepts what we write, and ONNX Runtime answers with it as we do. The interpreter is `VOXMILL_PYTHON` (default `python3`); where it or a
//! package is missing the test says so, and fails instead when `VOXMILL_REQUIRE_PYTHON=1`.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use voxmill_schemas::geometry::Zyx;
use voxmill_stages::model::onnx::{Graph, Precision, Ranges, Session};
use voxmill_stages::model::{Device, Loss, Network, Optimiser, Predictor, Trainer, weights};

const RUN: &str = r#"
import sys
import numpy as np, onnx, onnxruntime
model, image, out, n, channels, z, y, x = sys.argv[1:]
onnx.checker.check_model(model, full_check=True)
assert onnx.load(model).opset_import[0].version == 18
image = np.fromfile(image, np.float32).reshape(int(n), int(channels), int(z), int(y), int(x))
net = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
np.ascontiguousarray(net.run(None, {"image": image})[0]).tofile(out)
"#;

/// The interpreter; `None` where ONNX Runtime is not to be had and need not be.
fn python() -> Option<String> {
    let python = std::env::var("VOXMILL_PYTHON").unwrap_or_else(|_| "python3".into());
    let why = match Command::new(&python).args(["-c", "import numpy, onnx, onnxruntime"]).output() {
        Ok(o) if o.status.success() => return Some(python),
        Ok(o) => String::from_utf8_lossy(&o.stderr).lines().last().unwrap_or_default().to_string(),
        Err(e) => e.to_string(),
    };
    assert_ne!(std::env::var("VOXMILL_REQUIRE_PYTHON").as_deref(), Ok("1"), "{python}: {why}");
    eprintln!("skipped: {python} has no onnxruntime ({why})");
    None
}

fn networks() -> Vec<Value> {
    vec![
        json!({ "kind": "dynunet", "filters": [8, 12, 16], "kernel_size": [3, 3, 3], "strides": [1, 2, 2], "deep_supervision": 1 }),
        json!({ "kind": "dynunet", "filters": [4, 8, 8, 12], "kernel_size": [3, 3, 3, 3], "strides": [1, 2, 2, 2], "res_block": true, "norm": "instance" }),
        json!({ "kind": "dynunet", "filters": [4, 8, 8], "kernel_size": [[1, 3, 3], 3, 3], "strides": [1, [1, 2, 2], 2], "trans_bias": true }),
    ]
}

/// Values that lie apart by at most this share of the largest.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let most = b.iter().fold(0f32, |m, v| m.max(v.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, |m, d| if d.is_nan() { f32::INFINITY } else { m.max(d) }) / most
}

fn floats(path: &Path) -> Vec<f32> {
    std::fs::read(path).unwrap().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn onnx_runtime_answers_as_we_do() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (n, channels, classes, size, device) = (2, 2, 3, Zyx::new(8, 16, 24), Device::cpu());
    let image: Vec<f32> =
        (0..n * channels * size.count()).map(|i| ((i * 7919 % 2003) as f32 / 1001.0 - 1.0) * (1.0 + (i / 500 % 5) as f32)).collect();
    std::fs::write(dir.path().join("image"), image.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()).unwrap();
    for config in networks() {
        let network: Network = serde_json::from_value(config).unwrap();
        let file = dir.path().join("weights.safetensors");
        Trainer::new(&network, channels, classes, &Loss::default(), &Optimiser::default(), 5, &device)
            .unwrap()
            .predictor()
            .save(&file)
            .unwrap();
        let graph = || Graph::of(&network, weights::read(&file, 1 << 30).unwrap(), channels, classes).unwrap();
        let ours = Predictor::load(&network, channels, classes, &file, &device).unwrap().forward(image.clone(), n, size).unwrap();
        let mut ranges = Ranges::new();
        let plain = Session::new(graph(), Precision::Fp32, Ranges::new(), &device).unwrap();
        let same = plain.measure(image.clone(), n, size, &mut ranges).unwrap();
        assert!(apart(&same, &ours) < 1e-5, "node by node: {}", apart(&same, &ours));
        // float16 keeps 11 bits in every operation; of a byte in one place or the next, what comes after makes more.
        for (precision, from_ours, from_float) in
            [(Precision::Fp32, 1e-4, 1e-4), (Precision::Fp16, 1e-2, 2e-2), (Precision::Int8, 0.05, 0.25)]
        {
            let path = dir.path().join(format!("{}.onnx", precision.name()));
            std::fs::write(&path, graph().to_onnx(precision, &ranges, &[("voxmill", "{}".into())]).unwrap()).unwrap();
            let shape = [n, channels, size.z, size.y, size.x].map(|v| v.to_string());
            let (from, to) = (dir.path().join("image"), dir.path().join("out"));
            let done = Command::new(&python).arg("-c").arg(RUN).args([&path, &from, &to]).args(shape).output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            let theirs = floats(&to);
            let session = Session::new(graph(), precision, ranges.clone(), &device).unwrap();
            let told = session.forward(image.clone(), n, size).unwrap();
            println!("{}: {:e} from what we say of it, {:e} from float32", precision.name(), apart(&theirs, &told), apart(&theirs, &ours));
            assert!(apart(&theirs, &told) < from_ours && apart(&theirs, &ours) < from_float, "{}", precision.name());
        }
    }
}
