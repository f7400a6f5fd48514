//! The bytes that every stage without a model writes, held by their hashes. They may only move together with the stage's `version` (the snapshot
//! then moves in both columns) and a line under "Output changed" in CHANGELOG.md.

use std::collections::BTreeSet;

use crate::bench::Bench;

#[test]
fn bytes_move_only_with_the_version_of_their_stage() {
    let b = Bench::new(2);
    std::fs::write(b.path("p.yaml"), include_str!("bytes.yaml")).unwrap();
    b.run(&[]).expect(0);
    let mut lines = BTreeSet::new();
    for file in b.artifacts().keys().filter(|f| f.ends_with("artifact.json")) {
        let text = std::fs::read(b.path("work/store/artifacts").join(file)).unwrap();
        let m: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let (stage, version) = (m["recipe"]["stage"].as_str().unwrap(), &m["recipe"]["version"]);
        let config = if stage == "index" { "{}".into() } else { m["recipe"]["config"].to_string() };
        let content = m["content"].as_str().unwrap();
        lines.insert(format!("{stage} {version} {} {} {}", m["case"].as_str().unwrap_or("-"), &content[..16], hash8(&config)));
    }
    insta::assert_snapshot!(lines.into_iter().collect::<Vec<_>>().join("\n"));
}

fn hash8(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex()[..8].to_string()
}
