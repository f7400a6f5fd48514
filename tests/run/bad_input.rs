//! Wrong input: a clear message and the right exit code, and the good cases go on.

use crate::bench::Bench;

#[test]
fn an_empty_archive_is_named() {
    let b = Bench::new(0);
    b.run(&["image"]).expect(2).says("archive");
}

#[test]
fn an_archive_without_dicom_is_named() {
    let b = Bench::new(0);
    std::fs::write(b.archive().join("notes.txt"), "nothing to see").unwrap();
    b.run(&["image"]).expect(2).says("archive");
}

#[test]
fn a_missing_archive_is_named() {
    let b = Bench::new(0);
    b.run(&["--set", "series.archive=nowhere", "image"]).expect(1).says("nowhere");
}

#[test]
fn a_text_file_among_dicom_is_counted_and_the_rest_goes_on() {
    let b = Bench::new(2);
    std::fs::write(b.archive().join("hippocampus_001/MR/letter.dcm"), "Dear colleague,\n").unwrap();
    let ran = b.run(&["image"]);
    assert_eq!(ran.counts()["image"].0, 2, "{}", ran.stderr);
    ran.says("letter.dcm");
}

#[test]
fn a_truncated_slice_takes_only_its_case() {
    let b = Bench::new(3);
    let folder = b.archive().join("hippocampus_004/MR");
    let file = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 500]).unwrap();
    let ran = b.run(&["ready"]).expect(3);
    assert_eq!(ran.counts()["image"], (2, 0, 1));
    assert_eq!(ran.counts()["ready"], (2, 0, 0));
    ran.says(file.file_name().unwrap().to_str().unwrap());
    let rows = b.voxmill(&["query", "p.yaml", "select what, why from quarantine", "--format", "csv"]).expect(0);
    rows.says("hippocampus_004");
}

#[test]
fn a_missing_slice_is_refused_in_millimetres() {
    let b = Bench::new(2);
    let folder = b.archive().join("hippocampus_004/MR");
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    // One of the inner slices: with 38 of them a run of the first few holds one.
    let mut refused = false;
    for f in files.iter().take(3) {
        let bytes = std::fs::read(f).unwrap();
        std::fs::remove_file(f).unwrap();
        let ran = b.run(&["image"]);
        refused |= ran.code == 3 && ran.stderr.contains("mm");
        std::fs::write(f, bytes).unwrap();
    }
    assert!(refused);
}

#[test]
fn labels_for_no_image_fail_by_name() {
    let b = Bench::new(2);
    for f in ["SEG_binary.dcm", "SEG_labelmap.dcm", "RTSTRUCT.dcm"] {
        let _ = std::fs::remove_file(b.archive().join("hippocampus_001").join(f));
    }
    let ran = b.run(&["masks"]).expect(3);
    assert_eq!(ran.counts()["masks"], (1, 0, 1));
    ran.says("hippocampus_001");
}

#[test]
fn labels_for_no_image() {
    let b = Bench::new(2);
    std::fs::remove_dir_all(b.archive().join("hippocampus_001/MR")).unwrap();
    let ran = b.run(&["masks"]).expect(3);
    assert_eq!((ran.counts()["image"], ran.counts()["masks"]), ((1, 0, 0), (1, 0, 0)));
    for file in ["SEG_binary.dcm", "SEG_labelmap.dcm", "RTSTRUCT.dcm"] {
        ran.says(&format!("hippocampus_001/{file}"));
    }
    ran.says("labels of a series that is not in this archive");
}

#[test]
fn a_class_that_no_label_has_lists_the_ones_there_are() {
    let b = Bench::new(1);
    b.run(&["masks", "--set", "masks.classes={ Anterio: 1, Posterior: 2 }"]).expect(1).says("Anterior");
}

#[test]
fn a_file_that_is_a_folder_or_missing_is_a_wrong_command() {
    let b = Bench::new(0);
    b.voxmill(&["run", "archive"]).expect(2).says("archive");
    b.voxmill(&["run", "nothing.yaml"]).expect(2).says("nothing.yaml");
    std::fs::write(b.path("empty.yaml"), "").unwrap();
    b.voxmill(&["check", "empty.yaml"]).expect(2);
    std::fs::write(b.path("binary.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    b.voxmill(&["check", "binary.yaml"]).expect(2);
}

#[test]
fn a_workspace_that_cannot_be_written_is_named() {
    let b = Bench::new(1);
    std::fs::write(b.path("work"), "a file where a folder should be").unwrap();
    b.run(&["image"]).expect(1).says("work");
}

/// Mounts a small tmpfs; where that is not allowed (no root) the test says so and ends.
#[test]
fn a_full_disk_stops_the_run_with_a_clear_message() {
    let b = Bench::new(2);
    std::fs::create_dir(b.path("work")).unwrap();
    let mount =
        |options: &str| std::process::Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(b.path("work")).output();
    let Ok(mounted) = mount("size=256k") else { return eprintln!("skipped: no mount here") };
    if !mounted.status.success() {
        return eprintln!("skipped: {}", String::from_utf8_lossy(&mounted.stderr));
    }
    let full = b.run(&[]);
    std::process::Command::new("umount").arg("-l").arg(b.path("work")).status().unwrap();
    full.expect(1).says("no space left");

    let mounted = mount("size=8m,ro").unwrap();
    assert!(mounted.status.success());
    let read_only = b.run(&["image"]);
    std::process::Command::new("umount").arg("-l").arg(b.path("work")).status().unwrap();
    read_only.expect(1).says("work");
}

/// Machines read stderr line by line: a mistake in the file, a warning of practice and a failed case are JSON as well.
#[test]
fn every_line_of_a_json_log_is_json() {
    let b = Bench::new(2);
    let file = std::fs::read_dir(b.archive().join("hippocampus_004/MR")).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&file, "no slice").unwrap();
    let ran = [
        b.run(&["ready", "--set", "net.network.norm=instance"]),
        b.run(&["--set", "iso.spacing_mm=-1"]),
        b.run(&["nowhere"]),
        b.run(&["--set", "workspace=archive/hippocampus_001/SEG_binary.dcm"]),
    ];
    assert_eq!(ran.iter().map(|r| r.code).collect::<Vec<_>>(), [3, 2, 2, 1]);
    for r in &ran {
        assert!(!r.stderr.is_empty());
        for line in r.stderr.lines() {
            assert!(
                serde_json::from_str::<serde_json::Value>(line).is_ok_and(|v| v["event"].is_string() || v["level"].is_string()),
                "{line}"
            );
        }
    }
}
