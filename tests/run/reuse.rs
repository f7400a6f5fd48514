//! What runs again, and what does not.

use crate::bench::Bench;

#[test]
fn a_second_run_makes_nothing() {
    let b = Bench::new(3);
    b.run(&["ready"]).expect(0);
    let before = b.artifacts();
    let again = b.run(&["ready"]).expect(0);
    assert_eq!(again.made(), 0, "{:?}", again.counts());
    assert_eq!(before, b.artifacts());
    let plan = b.voxmill(&["plan", "p.yaml", "ready"]).expect(0);
    plan.says("3 reused");
    assert!(!plan.stdout.contains("because"), "{}", plan.stdout);
}

#[test]
fn a_changed_setting_remakes_only_what_depends_on_it() {
    let b = Bench::new(2);
    b.run(&["ready"]).expect(0);
    let plan = b.voxmill(&["plan", "p.yaml", "ready", "--set", "iso.spacing_mm=2"]).expect(0);
    plan.says("config.spacing_mm.x 1.5 → 2");
    let c = b.run(&["ready", "--set", "iso.spacing_mm=2"]).expect(0).counts();
    assert_eq!((c["series"], c["image"], c["masks"]), ((0, 1, 0), (0, 2, 0), (0, 2, 0)));
    assert_eq!((c["iso"], c["ready"]), ((2, 0, 0), (2, 0, 0)));
}

#[test]
fn one_more_case_makes_only_that_case() {
    let b = Bench::new(3);
    b.run(&["folds"]).expect(0);
    b.add_case(3);
    let c = b.run(&["folds"]).expect(0).counts();
    for node in ["image", "masks", "iso", "ready"] {
        assert_eq!(c[node], (1, 3, 0), "{node}");
    }
    assert_eq!(c["folds"], (1, 0, 0));
}

#[test]
fn a_moved_archive_changes_nothing_below_the_index() {
    let b = Bench::new(2);
    b.run(&["ready"]).expect(0);
    std::fs::rename(b.archive(), b.path("elsewhere")).unwrap();
    let c = b.run(&["ready", "--set", "series.archive=elsewhere"]).expect(0).counts();
    for node in ["image", "masks", "iso", "ready"] {
        assert_eq!(c[node], (0, 2, 0), "{node}");
    }
}

#[test]
fn a_copied_archive_changes_nothing_below_the_index() {
    let b = Bench::new(2);
    b.run(&["ready"]).expect(0);
    crate::bench::copy_tree(&b.archive(), &b.path("copy"));
    let c = b.run(&["ready", "--set", "series.archive=copy"]).expect(0).counts();
    for node in ["image", "masks", "iso", "ready"] {
        assert_eq!(c[node], (0, 2, 0), "{node}");
    }
}

/// The header, the size and the time of the file stay as they were; only pixels change.
#[test]
fn a_changed_pixel_remakes_its_case_alone() {
    let b = Bench::new(2);
    b.run(&["ready"]).expect(0);
    let case = std::fs::read_dir(b.archive()).unwrap().map(|e| e.unwrap().path()).min().unwrap();
    let file = largest_slice(&case);
    let modified = std::fs::metadata(&file).unwrap().modified().unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() - 1000;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    std::fs::File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
    let plan = b.voxmill(&["plan", "p.yaml", "ready"]).expect(0);
    plan.says("1 reused, 1 stale");
    let c = b.run(&["ready"]).expect(0).counts();
    assert_eq!((c["image"], c["ready"]), ((1, 1, 0), (1, 1, 0)));
}

/// A slice of the image: its folder holds more files than that of the labels.
fn largest_slice(case: &std::path::Path) -> std::path::PathBuf {
    let mut folders: std::collections::BTreeMap<std::path::PathBuf, Vec<std::path::PathBuf>> = Default::default();
    let mut todo = vec![case.to_path_buf()];
    while let Some(p) = todo.pop() {
        for e in std::fs::read_dir(&p).unwrap().map(|e| e.unwrap().path()) {
            if e.is_dir() { todo.push(e) } else { folders.entry(p.clone()).or_default().push(e) }
        }
    }
    let files = folders.into_values().max_by_key(Vec::len).unwrap();
    files.into_iter().min_by_key(|f| std::fs::metadata(f).unwrap().len()).unwrap()
}

#[test]
fn comments_and_order_of_the_file_change_nothing() {
    let b = Bench::new(2);
    b.run(&["ready"]).expect(0);
    let text = std::fs::read_to_string(b.path("p.yaml")).unwrap();
    let text = text.replace("    from: iso\n    with: { method: zscore }", "    with: { method: zscore } # the usual\n    from: iso");
    std::fs::write(b.path("p.yaml"), text).unwrap();
    assert_eq!(b.run(&["ready"]).expect(0).made(), 0);
}

#[test]
fn the_seed_concerns_only_what_draws_from_it() {
    let b = Bench::new(3);
    b.run(&["folds"]).expect(0);
    let c = b.run(&["folds", "--set", "seed=99"]).expect(0).counts();
    assert_eq!(c["ready"], (0, 3, 0));
    assert_eq!(c["folds"], (1, 0, 0));
}

/// One archive in one place: its paths are in the index, and the index's key in the manifests below it.
#[test]
fn the_same_bytes_for_any_number_of_jobs() {
    let b = Bench::new(4);
    b.run(&["--jobs", "1"]).expect(0);
    let one = b.artifacts();
    for folder in ["work", "nvme"] {
        std::fs::remove_dir_all(b.path(folder)).unwrap();
    }
    b.run(&["--jobs", "2"]).expect(0);
    assert_eq!(one, b.artifacts());
}
