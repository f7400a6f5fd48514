//! What is published, and what stays because Voxmill did not put it there.

use crate::bench::{Bench, copy_tree, example_cases};

#[test]
fn two_studies_inferred_into_one_folder_are_both_there() {
    let b = Bench::new(4);
    b.run(&[]).expect(0);
    for (i, study) in [(4, "one"), (5, "two")] {
        copy_tree(&example_cases()[i].join("MR"), &b.path(study));
    }
    std::fs::create_dir_all(b.path("predicted/out")).unwrap();
    std::fs::create_dir_all(b.path("predicted/series")).unwrap();
    std::fs::write(b.path("predicted/out/notes.txt"), "mine").unwrap();
    std::fs::write(b.path("predicted/series/mine.txt"), "mine").unwrap();
    for study in ["one", "two", "one"] {
        let ran = b.voxmill(&["infer", "p.yaml", study, "predicted"]).expect(0);
        assert!(!ran.stdout.contains("epoch"), "the report of the training is no news of an inference:\n{}", ran.stdout);
    }
    let names = |p: &str| {
        let mut names: Vec<_> = std::fs::read_dir(b.path(p)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let out = names("predicted/out");
    assert_eq!(out.iter().filter(|n| n.ends_with(".dcm")).count(), 2, "{out:?}");
    assert_eq!(out.len(), 3, "{out:?}");
    assert_eq!(names("predicted/series"), ["mine.txt"]);
    assert_eq!(names("predicted"), ["out", "series"], "tables and models of the study are not published");
    // PATIENT/STUDY/SERIES: the folder of a patient takes what comes later.
    for _ in 0..2 {
        b.voxmill(&["infer", "p.yaml", "one", "by-series", "--set", "out.names=series"]).expect(0);
    }
    assert_eq!(names("by-series/out").len(), 1);
}

#[test]
fn an_out_in_the_study_or_around_it_is_refused() {
    let b = Bench::new(1);
    copy_tree(&example_cases()[5].join("MR"), &b.path("deep/study"));
    let before = std::fs::read_dir(b.path("deep/study")).unwrap().count();
    for out in ["deep/study", "deep/study/new", "deep", ".", "deep/../deep/study"] {
        b.voxmill(&["infer", "p.yaml", "deep/study", out]).expect(2).says("STUDY");
    }
    assert_eq!(std::fs::read_dir(b.path("deep/study")).unwrap().count(), before);
}

#[test]
fn a_foreign_folder_in_the_place_of_a_node_is_refused() {
    let b = Bench::new(1);
    std::fs::create_dir_all(b.path("home/out/series")).unwrap();
    std::fs::write(b.path("home/out/series/thesis.txt"), "years of work").unwrap();
    b.run(&["series", "--set", "workspace=home"]).expect(1).says("home/out/series");
    assert_eq!(std::fs::read_to_string(b.path("home/out/series/thesis.txt")).unwrap(), "years of work");
}

#[test]
fn a_file_put_beside_published_ones_survives_the_next_run() {
    let b = Bench::new(1);
    b.run(&["series"]).expect(0);
    std::fs::create_dir_all(b.path("work/out/series/mine")).unwrap();
    std::fs::write(b.path("work/out/series/mine/notes.txt"), "mine").unwrap();
    b.add_case(1);
    for _ in 0..2 {
        b.run(&["series"]).expect(0);
        assert_eq!(std::fs::read_to_string(b.path("work/out/series/mine/notes.txt")).unwrap(), "mine");
    }
    assert!(b.path("work/out/series/series.parquet").is_file());
}

#[test]
fn fail_fast_tells_what_failed() {
    let b = Bench::new(3);
    let folder = b.archive().join("hippocampus_004/MR");
    let file = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 500]).unwrap();
    let ran = b.run(&["image", "--fail-fast"]).expect(1);
    assert!(ran.counts().values().any(|c| c.2 == 1), "{:?}", ran.counts());
    ran.says("--fail-fast").says("hippocampus_004");
}
