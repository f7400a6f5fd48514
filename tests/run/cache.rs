//! `voxmill cache`: what the shelves hold, what may go, and that nothing which counts ever does.

use serde_json::Value;

use crate::bench::Bench;

fn asked(b: &Bench, args: &[&str]) -> Value {
    let ran = b.voxmill(&[&["cache"], args, &["--json"]].concat());
    serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}\n{}\n{}", ran.stdout, ran.stderr))
}

#[test]
fn leavings_of_other_settings_go_and_the_newest_results_stay() {
    let b = Bench::new(2);
    b.run(&["ready"]).expect(0);
    let first = asked(&b, &["status", "p.yaml"]);
    assert_eq!(first["disk"]["removable"]["artifacts"], 0);
    b.run(&["--set", "iso.spacing_mm=2", "ready"]).expect(0);
    let both = asked(&b, &["status", "p.yaml"]);
    let n = both["disk"]["removable"]["artifacts"].as_u64().unwrap();
    assert!(n >= 4, "iso and ready of two cases: {both}");
    let dry = asked(&b, &["gc", "p.yaml", "--dry-run"]);
    assert_eq!((dry["removed"].as_u64(), asked(&b, &["status", "p.yaml"])), (Some(n), both));
    assert_eq!(asked(&b, &["gc", "p.yaml", "--older-than", "1d"])["young"], n);
    let gone = asked(&b, &["gc", "p.yaml"]);
    assert_eq!((gone["removed"].as_u64(), &gone["freed_bytes"]), (Some(n), &dry["freed_bytes"]));
    assert_eq!(b.run(&["--set", "iso.spacing_mm=2", "ready"]).expect(0).made(), 0);
    assert_eq!(b.run(&["ready"]).expect(0).made(), n);
}

#[test]
fn what_is_pinned_stays_with_what_it_was_made_from() {
    let b = Bench::new(1);
    b.run(&["ready"]).expect(0);
    b.voxmill(&["cache", "pin", "p.yaml", "ready"]).expect(0).says("pinned ready/");
    b.run(&["--set", "iso.spacing_mm=2", "ready"]).expect(0);
    assert_eq!(asked(&b, &["gc", "p.yaml"])["removed"], 0);
    b.voxmill(&["cache", "unpin", "p.yaml", "ready"]).expect(0);
    assert!(asked(&b, &["gc", "p.yaml"])["removed"].as_u64() >= Some(2));
    b.voxmill(&["cache", "unpin", "p.yaml", "ready"]).expect(2).says("not pinned");
    b.voxmill(&["cache", "pin", "p.yaml", "nothing"]).expect(2).says("ready");
}

#[test]
fn a_flipped_byte_is_found_and_made_again() {
    let b = Bench::new(1);
    b.run(&["ready"]).expect(0);
    let before = b.artifacts();
    b.voxmill(&["cache", "verify", "p.yaml"]).expect(0).says("as it was written");
    let victim = before.keys().find(|p| !p.ends_with(".json") && !p.ends_with(".parquet")).unwrap().clone();
    let path = b.path("work/store/artifacts").join(&victim);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    b.voxmill(&["cache", "verify", "p.yaml"]).expect(3).says("other bytes than were written");
    b.voxmill(&["cache", "verify", "p.yaml", "--repair"]).expect(3);
    b.voxmill(&["cache", "verify", "p.yaml"]).expect(0);
    assert!(b.run(&["ready"]).expect(0).made() >= 1);
    assert_eq!(b.artifacts(), before);
}

#[test]
fn an_exported_copy_is_the_artifact_and_no_link_to_it() {
    let b = Bench::new(1);
    b.run(&["ready"]).expect(0);
    let before = b.artifacts();
    let ran = b.voxmill(&["cache", "export", "p.yaml", "ready", "copies"]).expect(0);
    let folder = b.path(ran.stdout.trim());
    assert!(folder.starts_with(b.path("copies/ready")) && folder.join("zarr.json").is_file());
    std::fs::write(folder.join("zarr.json"), "{}").unwrap();
    assert_eq!(b.artifacts(), before);
    b.voxmill(&["cache", "export", "p.yaml", "ready", "copies"]).expect(2).says("there already");
    b.voxmill(&["cache", "status", "nothing.yaml"]).expect(2);
}
