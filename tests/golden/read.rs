//! Opens the golden folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A tensor of a golden file; floats of any width are widened to f64.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
}

impl Tensor {
    pub fn f32(&self) -> Vec<f32> {
        self.values.iter().map(|v| *v as f32).collect()
    }
}

/// Cases that are too large for the repository: compared where `VOXMILL_GOLDEN` names a folder that has them.
const OUTSIDE: &[&str] = &["dynunet_seed", "dynunet_seed_weights", "spacing_4"];

/// Whether a case stands in another folder than the one in use; only the default folder may lack any, and only those of [`OUTSIDE`].
pub fn is_outside(case: &str) -> bool {
    std::env::var_os("VOXMILL_GOLDEN").is_none() && OUTSIDE.contains(&case)
}

pub fn folder() -> PathBuf {
    std::env::var_os("VOXMILL_GOLDEN").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden"), PathBuf::from)
}

/// The entries of `manifest.json` whose `case` starts with `prefix`, without those [`is_outside`]; at least one, so that a wrong folder cannot pass.
pub fn cases(prefix: &str) -> Vec<serde_json::Value> {
    let cases = cases_if_any(prefix);
    assert!(!cases.is_empty(), "no golden case starts with {prefix} in {}", folder().display());
    cases
}

/// The same of cases that not every folder has (`odd_shapes.py` makes them).
pub fn cases_if_any(prefix: &str) -> Vec<serde_json::Value> {
    let path = folder().join("manifest.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let all: serde_json::Value = serde_json::from_str(&text).expect("the manifest is JSON");
    let cases = all["cases"].as_array().expect("the manifest lists cases").iter();
    cases.filter(|c| c["case"].as_str().is_some_and(|n| n.starts_with(prefix) && !is_outside(n))).cloned().collect()
}

/// All tensors of `NAME.safetensors`.
pub fn tensors(name: &str) -> BTreeMap<String, Tensor> {
    tensors_in(&folder().join(format!("{name}.safetensors")))
}

/// All tensors of a safetensors file.
pub fn tensors_in(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a golden file is safetensors");
    file.iter()
        .map(|(name, view)| {
            use safetensors::Dtype::*;
            let d = view.data();
            let values = match view.dtype() {
                F32 => d.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes")) as f64).collect(),
                F64 => d.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("8 bytes"))).collect(),
                I64 => d.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("8 bytes")) as f64).collect(),
                I32 => d.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().expect("4 bytes")) as f64).collect(),
                U8 | BOOL => d.iter().map(|b| *b as f64).collect(),
                other => panic!("{}: {name} has dtype {other:?}", path.display()),
            };
            (name.to_string(), Tensor { shape: view.shape().to_vec(), values })
        })
        .collect()
}

/// Largest |a − b| / max(1, |b|).
pub fn worst(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "same number of values");
    a.iter().zip(b).map(|(a, b)| (*a as f64 - b).abs() / b.abs().max(1.0)).fold(0.0, |m, d| if d.is_nan() { f64::NAN } else { d.max(m) })
}
