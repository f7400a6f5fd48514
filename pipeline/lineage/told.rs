//! What lineage tells of an artifact, from its manifest, and of the machine that a run was on.

use serde_json::Value;
use voxmill_schemas::artifact::{Key, Manifest};
use voxmill_schemas::tables::{ArtifactRow, EdgeRow};

pub fn artifact(run: &str, node: &str, m: &Manifest, made_ms: i64) -> (ArtifactRow, Vec<EdgeRow>) {
    let text = |name: &str| m.facts.get(name).and_then(Value::as_str).filter(|t| !t.is_empty()).map(str::to_string);
    let axes = |name: &str| -> Vec<f64> {
        let of = |v: &Value| ["z", "y", "x"].iter().filter_map(|a| v.get(a)?.as_f64()).collect();
        m.facts.get(name).map(of).unwrap_or_default()
    };
    let row = ArtifactRow {
        run: run.into(),
        key: m.key.hex(),
        content: m.content.hex(),
        kind: m.kind.to_string(),
        node: node.into(),
        stage: m.recipe.stage.clone(),
        version: m.recipe.version as i64,
        case: m.case.as_ref().map(|c| c.0.clone()),
        patient: text("patient"),
        study: text("study"),
        series: text("series"),
        modality: text("modality"),
        unit: text("unit"),
        n_channels: m.facts.get("channels").and_then(Value::as_array).map(|c| c.len() as i64),
        size_zyx: axes("size").into_iter().map(|v| v as i64).collect(),
        spacing_zyx_mm: axes("spacing_mm"),
        bytes: m.bytes as i64,
        n_files: m.files.len() as i64,
        made_ms,
    };
    let edge = |port: &String, input: &Key| EdgeRow { run: run.into(), key: m.key.hex(), port: port.clone(), input: input.hex() };
    let edges = m.input_keys.iter().flat_map(|(port, keys)| keys.iter().map(|k| edge(port, k)).collect::<Vec<_>>());
    (row, edges.collect())
}

/// Features that this program was built with.
pub fn features() -> String {
    let all = [("model", cfg!(feature = "model")), ("wgpu", cfg!(feature = "wgpu")), ("cuda", cfg!(feature = "cuda"))];
    all.into_iter().filter(|(_, is_on)| *is_on).map(|(name, _)| name).collect::<Vec<_>>().join(", ")
}

/// Model of the CPU, and the widest instructions that matter to the last bits of a network's sums. `None` where the kernel does not tell.
pub fn cpu() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let field = |name: &str| text.lines().find(|l| l.starts_with(name)).and_then(|l| l.split_once(':')).map(|(_, v)| v.trim().to_string());
    let flags = field("flags").unwrap_or_default();
    let widest = [("avx512f", "AVX-512"), ("avx2", "AVX2")].iter().find(|(flag, _)| flags.split(' ').any(|f| f == *flag));
    let name = field("model name").unwrap_or_else(|| std::env::consts::ARCH.into());
    Some(widest.map_or(name.clone(), |(_, said)| format!("{name}, {said}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_those_of_this_build() {
        assert_eq!(features().contains("model"), cfg!(feature = "model"));
        assert_eq!(features().contains("cuda"), cfg!(feature = "cuda"));
    }
}
