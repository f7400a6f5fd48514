//! The whole way: DICOM in, DICOM SEG out, asked and traced.

use crate::bench::Bench;

#[test]
fn an_archive_becomes_predictions_that_can_be_traced() {
    let b = Bench::new(4);
    let first = b.run(&[]).expect(0);
    let counts = first.counts();
    assert_eq!(counts["image"], (4, 0, 0));
    assert_eq!(counts["out"], (4, 0, 0));
    let seg = b.path("work/out/out/hippocampus_001.dcm");
    assert_eq!(&std::fs::read(&seg).unwrap()[128..132], b"DICM");

    let rows = b.voxmill(&["query", "p.yaml", "select count(*) as n from executions where status = 'made'", "--format", "csv"]).expect(0);
    let made: u64 = rows.stdout.lines().nth(1).unwrap().parse().unwrap();
    assert_eq!(made, first.made());
    b.voxmill(&["query", "p.yaml", "select modality, count(*) from series group by modality"]).expect(0).says("MR");
    b.voxmill(&["query", "p.yaml", "select dice from scores"]).expect(0);
    b.voxmill(&["query", "p.yaml", "drop table runs"]).expect(2);
    b.voxmill(&["query", "p.yaml", "select nonsense from runs"]).expect(2).says("nonsense");

    let key = b.voxmill(&["query", "p.yaml", "select key from executions where node = 'ready' limit 1", "--format", "csv"]);
    let key = key.stdout.lines().nth(1).unwrap().to_string();
    let trace = b.voxmill(&["trace", &key[..10], "--file", "p.yaml"]).expect(0);
    trace.says("index").says("assemble").says("train").says("export");
    b.voxmill(&["trace", "ffffffffffff", "--file", "p.yaml"]).expect(2);

    // A new study, without labels.
    let study = b.path("study");
    crate::bench::copy_tree(&crate::bench::example_cases()[5].join("MR"), &study);
    b.voxmill(&["infer", "p.yaml", "study", "predicted", "--quiet"]).expect(0);
    let out: Vec<_> = std::fs::read_dir(b.path("predicted/out")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(out.len(), 1, "{out:?}");
    // A model is not paired with another preprocessing than the one it was trained on, nor with another description of itself.
    b.voxmill(&["infer", "p.yaml", "study", "other", "--set", "iso.spacing_mm=2"]).expect(1).says("iso").says("spacing_mm");
    b.voxmill(&["infer", "p.yaml", "study", "other", "--set", "net.epochs=9"]).expect(1).says("net").says("epochs");
    // The archive's own heads are untouched: the next run still makes nothing.
    assert_eq!(b.run(&[]).expect(0).made(), 0);
}

#[test]
fn infer_before_training_says_so() {
    let b = Bench::new(1);
    b.voxmill(&["infer", "p.yaml", "archive", "predicted"]).expect(1).says("no trained model");
    b.voxmill(&["infer", "p.yaml", "nowhere", "predicted"]).expect(2).says("not a folder");
}

#[test]
fn only_the_asked_nodes_run() {
    let b = Bench::new(2);
    let ran = b.run(&["iso"]).expect(0);
    assert_eq!(ran.counts().keys().map(String::as_str).collect::<Vec<_>>(), ["image", "iso", "masks", "series"]);
    b.run(&["isoo"]).expect(2).says("isoo");
}
