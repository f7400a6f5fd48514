//! The report: one page, nothing fetched, every case on it, and nothing of a patient that the tables do not say.

use crate::bench::Bench;

#[test]
fn a_report_shows_every_case_and_fetches_nothing() {
    let b = Bench::new(4);
    b.voxmill(&["report", "p.yaml"]).expect(2).says("nothing was run");
    b.run(&[]).expect(0);
    let said = b.voxmill(&["report", "p.yaml"]).expect(0);
    let page = std::fs::read_to_string(b.path(said.stdout.trim())).unwrap();
    for case in crate::bench::example_cases().iter().take(4) {
        assert!(page.contains(case.file_name().unwrap().to_str().unwrap()), "{case:?}");
    }
    assert!(page.matches("class=\"mosaic\"").count() >= 4, "a picture of each case");
    for said in ["Anterior", "Validation Dice", "<svg class=\"graph\"", "resample", "Runs"] {
        assert!(page.contains(said), "{said}");
    }
    for foreign in ["http://", "https://", "src=\"/", "@import", "url("] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    assert!(!page.contains("NaN"), "numbers that are none");
    // The same again, and without pictures.
    let again = b.voxmill(&["report", "p.yaml", "--output", "again.html"]).expect(0);
    assert_eq!(std::fs::read_to_string(b.path(again.stdout.trim())).unwrap(), page);
    b.voxmill(&["report", "p.yaml", "--no-pictures", "-o", "plain.html"]).expect(0);
    assert!(!std::fs::read_to_string(b.path("plain.html")).unwrap().contains("image/png"));
}

#[test]
fn a_case_that_was_left_out_says_where_and_why() {
    let b = Bench::new(2);
    let folder = b.archive().join("hippocampus_004/MR");
    let file = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 500]).unwrap();
    b.run(&["ready"]).expect(3);
    b.voxmill(&["report", "p.yaml", "-o", "r.html"]).expect(0);
    let page = std::fs::read_to_string(b.path("r.html")).unwrap();
    assert!(page.contains("left out at image"), "the reason stands in the row");
}
