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
