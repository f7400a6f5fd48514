//! What stands in OUT after a conversion that was killed, stopped, raced, or had no room; and what is said where there is nothing to do.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::bench::{Bench, Ran};

const FORMATS: [&str; 3] = ["nifti", "ome-zarr", "dicom"];

/// Files under OUT by place, with their hashes; without the workspace.
fn files(out: &Path) -> BTreeMap<String, String> {
    let (mut all, mut todo) = (BTreeMap::new(), vec![out.to_path_buf()]);
    while let Some(p) = todo.pop() {
        if p.is_dir() {
            todo.extend(std::fs::read_dir(p).unwrap().map(|e| e.unwrap().path()).filter(|p| !p.ends_with(".voxmill")));
        } else {
            let place = p.strip_prefix(out).unwrap().to_string_lossy().into_owned();
            all.insert(place, blake3::hash(&std::fs::read(&p).unwrap()).to_hex().to_string());
        }
    }
    all
}

fn convert(b: &Bench, out: &str, to: &str) -> Ran {
    b.voxmill(&["convert", "archive", out, "--to", to])
}

/// Every file of a stopped conversion is a whole one: what a calm run writes to its place.
fn assert_whole(some: &BTreeMap<String, String>, all: &BTreeMap<String, String>, when: &str) {
    for (place, hash) in some.iter().filter(|(place, _)| place.contains('/')) {
        assert!(!place.starts_with(".converted"), "{when}: {place} is left");
        assert_eq!(all.get(place), Some(hash), "{when}: {place}");
    }
}

#[test]
fn killed_and_run_again_it_ends_as_a_calm_run() {
    let b = Bench::new(3);
    for to in FORMATS {
        let started = Instant::now();
        convert(&b, &format!("calm-{to}"), to).expect(0);
        let (whole, calm) = (started.elapsed(), files(&b.path(&format!("calm-{to}"))));
        for k in 0..4u32 {
            let out = format!("{to}-{k}");
            let mut child = b.command(&["convert", "archive", &out, "--to", to, "--quiet"]).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(whole.mul_f64((k as f64 + 0.61) / 4.3));
            child.kill().unwrap();
            child.wait().unwrap();
            convert(&b, &out, to).expect(0);
            assert_eq!(files(&b.path(&out)), calm, "{to} killed after {k}/4");
        }
    }
}

#[test]
fn ctrl_c_leaves_whole_files_and_the_next_run_goes_on() {
    let b = Bench::new(4);
    convert(&b, "calm", "nifti").expect(0);
    let calm = files(&b.path("calm"));
    let mut child =
        b.command(&["convert", "archive", "out", "--to", "nifti"]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !b.path("out/.voxmill/lineage").exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let status = child.wait().unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut text).unwrap();
    // On a fast machine it may have been done before it heard.
    assert!(matches!(status.code(), Some(130 | 0)), "{status}: {text}");
    assert!(status.code() == Some(0) || text.contains("goes on where this one stopped"), "{text}");
    assert_whole(&files(&b.path("out")), &calm, "stopped");
    convert(&b, "out", "nifti").expect(0);
    assert_eq!(files(&b.path("out")), calm);
}

#[test]
fn two_at_once_into_one_out_end_as_one() {
    let b = Bench::new(3);
    convert(&b, "calm", "ome-zarr").expect(0);
    let spawn = || b.command(&["convert", "archive", "out", "--to", "ome-zarr", "-q"]).stderr(Stdio::piped()).spawn().unwrap();
    let both = [spawn(), spawn()].map(|c| c.wait_with_output().unwrap());
    for o in both {
        assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
    }
    assert_eq!(files(&b.path("out")), files(&b.path("calm")));
    // The command deidentify, two at once as well.
    b.voxmill(&["deidentify", "archive", "one"]).expect(0);
    let spawn = || b.command(&["deidentify", "archive", "two", "-q"]).stderr(Stdio::piped()).spawn().unwrap();
    for o in [spawn(), spawn()].map(|c| c.wait_with_output().unwrap()) {
        assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
    }
    assert_eq!(files(&b.path("two")), files(&b.path("one")));
}

/// A small disk for OUT; where that is not allowed (no root) the test says so and ends.
#[test]
fn without_room_in_out_nothing_is_there_by_halves_and_the_cause_is_said_once() {
    let b = Bench::new(3);
    std::fs::create_dir(b.path("small")).unwrap();
    let mount = |options: &str| Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(b.path("small")).output();
    let unmount = || Command::new("umount").arg("-l").arg(b.path("small")).status().unwrap();
    for to in FORMATS {
        convert(&b, &format!("calm-{to}"), to).expect(0);
        let calm = files(&b.path(&format!("calm-{to}")));
        for (kib, workspace) in [(128, "aside"), (448, "small/out/.voxmill")] {
            let Ok(mounted) = mount(&format!("size={kib}k")) else { return eprintln!("skipped: no mount here") };
            if !mounted.status.success() {
                return eprintln!("skipped: {}", String::from_utf8_lossy(&mounted.stderr));
            }
            let command = ["convert", "archive", "small/out", "--to", to, "--workspace", workspace];
            let full = b.voxmill(&command);
            let there = files(&b.path("small/out"));
            Command::new("mount").args(["-o", "remount,size=64m"]).arg(b.path("small")).status().unwrap();
            let again = b.voxmill(&command);
            let after = files(&b.path("small/out"));
            unmount();
            let full = full.expect(1);
            full.says("no space left");
            assert!(!full.stderr.contains("refused "), "a full disk is no fault of a series: {}", full.stderr);
            assert_whole(&there, &calm, &format!("{to}, {kib} KiB"));
            again.expect(0);
            assert_eq!(after, calm, "{to}, {kib} KiB");
        }
    }
    assert!(mount("size=1m,ro").unwrap().status.success());
    let read_only = b.voxmill(&["convert", "archive", "small/out", "--to", "nifti", "--workspace", "fresh"]);
    unmount();
    read_only.expect(2).says("cannot write into OUT");
    assert!(!b.path("fresh").exists(), "told before the work");
}

#[test]
fn nothing_to_do_is_one_sentence_and_leaves_nothing() {
    let b = Bench::new(1);
    std::fs::create_dir_all(b.path("empty/inside")).unwrap();
    std::fs::create_dir_all(b.path("letters")).unwrap();
    std::fs::write(b.path("letters/a.txt"), "dear").unwrap();
    let all = [&["convert", "--to", "nifti"][..], &["convert", "--to", "dicom"], &["deidentify"]];
    for (archive, says) in [("empty", "there is no file"), ("letters", "1 not DICOM")] {
        for command in all {
            let ran = b.voxmill(&[command, &[archive, "none"]].concat()).expect(2);
            ran.says(says);
            let lines: Vec<&str> = ran.stderr.lines().filter(|l| !l.trim_start().starts_with("series ")).collect();
            assert!(matches!(lines[..], [one] if one.starts_with("error: nothing to ")), "{}", ran.stderr);
            assert!(ran.stdout.is_empty() && !b.path("none").exists(), "{command:?} {archive}");
        }
    }
    let where_none = ["convert", "archive", "none", "--to", "nifti", "--where", "modality = 'PT'"];
    let ran = b.voxmill(&where_none).expect(2);
    ran.says("none of the 1 image volumes of the archive (1 MR").says("modality = 'PT'");
    assert_eq!(ran.stderr.lines().filter(|l| l.contains("error")).count(), 1, "{}", ran.stderr);
    assert!(files(&b.path("none")).is_empty());
    // What an earlier conversion made stays as it is.
    convert(&b, "out", "nifti").expect(0);
    let before = files(&b.path("out"));
    b.voxmill(&["convert", "archive", "out", "--to", "nifti", "--where", "modality = 'PT'"]).expect(2);
    assert_eq!(files(&b.path("out")), before);
    b.voxmill(&["convert", "archive", "typo", "--to", "nifti", "--where", "modalty = 'PT'"]).expect(2);
    assert!(!b.path("typo").exists());
}

#[test]
fn a_name_file_says_which_file_was_left_out_and_lies_outside() {
    let b = Bench::new(2);
    let case = b.archive().join("hippocampus_001");
    std::fs::write(case.join("cut.dcm"), "no DICOM").unwrap();
    b.voxmill(&["convert", "archive", "out", "--to", "nifti"]).expect(3).says("--name-file");
    for inside in ["out/names.tsv", "out/.voxmill/names.tsv", "archive/names.tsv"] {
        b.voxmill(&["convert", "archive", "out", "--to", "nifti", "--name-file", inside]).expect(2).says("give a place outside");
    }
    b.voxmill(&["convert", "archive", "out", "--to", "nifti", "--deidentify", "none", "--name-file", "n.tsv"]).expect(2);
    for command in [&["convert", "--to", "nifti"][..], &["convert", "--to", "dicom"], &["deidentify"]] {
        let _ = std::fs::remove_file(b.path("names.tsv"));
        let (out, json) = (format!("out-{}", command.len() + command.last().unwrap().len()), "--json");
        let ran = b.voxmill(&[command, &["archive", &out, json, "--name-file", "names.tsv"]].concat()).expect(3);
        let table = std::fs::read_to_string(b.path("names.tsv")).unwrap();
        let rows: Vec<Vec<&str>> = table.lines().skip(1).map(|l| l.split('\t').collect()).collect();
        let left_out = rows.iter().find(|r| r[2] == "hippocampus_001/cut.dcm").unwrap();
        assert!(left_out[1].is_empty() && !left_out[0].contains("hippocampus"), "{left_out:?}");
        assert!(matches!(left_out[3], "skipped" | "failed") && !left_out[4].is_empty(), "{left_out:?}");
        assert!(rows.iter().any(|r| r[2] == "hippocampus_004/SEG_binary.dcm" && r[1].starts_with("se-")), "{table}");
        assert!(command[0] == "convert" || ran.stdout.contains(left_out[0]), "{}", ran.stdout);
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(b.path("names.tsv")).unwrap().permissions()) & 0o777, 0o600);
    }
    // The same in a pipeline, and it makes nothing new.
    let told = "series.deidentify=basic";
    b.run(&["series", "--set", told]).expect(3);
    let ran = b.run(&["series", "--set", told, "--set", "series.name_file=p.tsv"]).expect(3);
    assert_eq!(ran.made(), 0, "{}", ran.stderr);
    assert!(std::fs::read_to_string(b.path("p.tsv")).unwrap().contains("hippocampus_001/cut.dcm"));
    b.run(&["series", "--set", told, "--set", "series.name_file=work/p.tsv"]).expect(1).says("inside the workspace");
    b.run(&["series", "--set", "series.name_file=archive/p.tsv", "--set", told]).expect(1);
    b.run(&["series", "--set", "series.name_file=p.tsv", "--set", "series.deidentify=none"]).expect(2);
}
