//! What de-identification promises: no trace of the patient, the same pixels, counts that add up, and a second run that has nothing to do.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::bench::{Bench, Ran};
use crate::convert::tar_of;

/// Stands in every id, name and path of the archive; as long as what it takes the place of.
const NAME: &str = "Mueller^Zebedee";
const DATE: &str = "19770615";

const PIPELINE: &str = "
name: clean
workspace: work
stages:
  series: { uses: index, with: { archive: archive, deidentify: basic, key_file: key } }
  image: { uses: assemble, from: series, with: { where: \"modality = 'MR'\" } }
  masks: { uses: annotate, from: { image: image, series: series }, with: { classes: { Anterior: 1, Posterior: 2 } } }
  clean: { uses: deidentify, from: series, with: { retain_dates: shift } }
";

fn files_under(root: &Path) -> Vec<PathBuf> {
    let (mut todo, mut out) = (vec![root.to_path_buf()], Vec::new());
    while let Some(p) = todo.pop() {
        if p.is_dir() {
            todo.extend(std::fs::read_dir(p).unwrap().map(|e| e.unwrap().path()));
        } else {
            out.push(p);
        }
    }
    out.sort();
    out
}

fn holds(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|w| w == what)
}

fn replaced(bytes: Vec<u8>, old: &[u8], new: &[u8]) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let mut out = bytes;
    for at in 0..out.len().saturating_sub(old.len()) {
        if out[at..].starts_with(old) {
            out[at..at + old.len()].copy_from_slice(new);
        }
    }
    out
}

/// One case of a patient called [`NAME`], in folders of that name, with a letter and a broken file beside it, and a key.
fn bench() -> Bench {
    let b = Bench::new(1);
    for file in files_under(&b.archive()) {
        let bytes = replaced(std::fs::read(&file).unwrap(), b"hippocampus_001", NAME.as_bytes());
        std::fs::write(&file, replaced(bytes, b"20180101", DATE.as_bytes())).unwrap();
    }
    let folder = b.archive().join(NAME);
    std::fs::rename(b.archive().join("hippocampus_001"), &folder).unwrap();
    std::fs::write(folder.join(format!("{NAME}.txt")), format!("dear {NAME}")).unwrap();
    let broken = std::fs::read(folder.join("SEG_binary.dcm")).unwrap()[..900].to_vec();
    std::fs::write(folder.join(format!("{NAME}.dcm")), broken).unwrap();
    std::fs::write(b.path("p.yaml"), PIPELINE).unwrap();
    b
}

fn deidentify(b: &Bench, more: &[&str]) -> Ran {
    b.voxmill(&[&["deidentify", "archive", "out", "--key-file", "key", "--json"], more].concat())
}

fn json(r: &Ran) -> Value {
    serde_json::from_str(&r.stdout).unwrap_or_else(|e| panic!("{e} in {}", r.stdout))
}

fn assert_no_trace(of: &str, bytes: &[u8]) {
    for secret in [NAME, "Zebedee", DATE] {
        assert!(!holds(bytes, secret.as_bytes()), "{secret} in {of}");
    }
}

fn pixels(root: &Path) -> BTreeMap<String, usize> {
    let mut out = BTreeMap::new();
    for file in &files_under(root) {
        let bytes = std::fs::read(file).unwrap();
        // The pixel element is the last one of these files; native, explicit VR.
        if let Some(at) = bytes.windows(6).rposition(|w| w == b"\xE0\x7F\x10\x00OW" || w == b"\xE0\x7F\x10\x00OB") {
            let length = u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap()) as usize;
            if let Some(value) = bytes.get(at + 12..at + 12 + length) {
                *out.entry(blake3::hash(value).to_hex().to_string()).or_default() += 1;
            }
        }
    }
    out
}

#[test]
fn no_trace_of_the_patient_is_left_and_the_pixels_are_the_same() {
    let b = bench();
    let ran = deidentify(&b, &["--new-key", "--retain-dates", "shift", "--burned-in", "flag"]).expect(3);
    assert_no_trace("the messages", format!("{}{}", ran.stdout, ran.stderr).as_bytes());
    let counts = json(&ran);
    let n = |what: &str| counts[what].as_u64().unwrap();
    assert_eq!(n("seen"), n("written") + n("unchanged") + n("skipped") + n("refused") + n("failed"), "{counts}");
    assert_eq!((n("failed"), n("skipped")), (1, 1), "{counts}");
    assert_eq!(n("seen") as usize, files_under(&b.archive()).len());
    let out = b.path("out");
    for file in files_under(&out) {
        assert_no_trace("a name", file.strip_prefix(&out).unwrap().to_string_lossy().as_bytes());
        assert_no_trace(&file.display().to_string(), &std::fs::read(&file).unwrap());
    }
    assert_eq!(pixels(&b.archive()), pixels(&out));

    // The same pseudonyms and bytes come out of a pipeline with that key.
    let ran = b.run(&[]);
    assert_no_trace("the log", format!("{}{}", ran.stdout, ran.stderr).as_bytes());
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    let work = b.path("work");
    for file in files_under(&work) {
        let name = file.strip_prefix(&work).unwrap().to_string_lossy().into_owned();
        assert_no_trace("a name", name.as_bytes());
        assert_no_trace(&name, &std::fs::read(&file).unwrap());
    }
    for sql in
        ["select * from series", "select * from files", "select * from instances", "select * from executions", "select * from quarantine"]
    {
        let answer = b.voxmill(&["query", "p.yaml", sql, "--format", "csv"]).expect(0);
        assert_no_trace(sql, answer.stdout.as_bytes());
    }
    let tree = |root: &Path| {
        let of = |f: &PathBuf| (f.strip_prefix(root).unwrap().to_path_buf(), std::fs::read(f).unwrap());
        files_under(root).iter().filter(|f| f.extension().is_some_and(|e| e == "dcm")).map(of).collect::<BTreeMap<_, _>>()
    };
    assert!(tree(&work.join("out/clean")) == tree(&out), "the stage and the command write other files");
}

/// Every way an archive hides its files: the command sees what `convert --to dicom` sees, and writes the same.
#[test]
fn containers_are_looked_into_and_the_counts_are_those_of_convert() {
    let b = Bench::new(2);
    let case = b.archive().join("hippocampus_001");
    let slices: Vec<PathBuf> = files_under(&case.join("MR"));
    let read = |n: usize| std::fs::read(&slices[n]).unwrap();
    std::fs::write(case.join("one.tar"), tar_of("inside/one", &read(0))).unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gz, &tar_of("packed", &read(1))).unwrap();
    std::fs::write(case.join("two.tar.gz"), gz.finish().unwrap()).unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gz, &read(2)).unwrap();
    std::fs::write(case.join("three.dcm.gz"), gz.finish().unwrap()).unwrap();
    (0..3).for_each(|n| std::fs::remove_file(&slices[n]).unwrap());
    std::fs::write(case.join("copy"), read(4)).unwrap();
    std::fs::write(case.join("cut.dcm"), &read(5)[..700]).unwrap();
    let report = String::from_utf8_lossy(&read(6)).into_owned();
    assert!(report.contains("1.2.840.10008.5.1.4.1.1.4\0"));
    let report = replaced(read(6), b"1.2.840.10008.5.1.4.1.1.4\0", b"1.2.840.10008.5.1.4.1.1.66");
    std::fs::write(case.join("raw"), report).unwrap();
    std::fs::write(case.join("letter.txt"), "dear").unwrap();
    let command = deidentify(&b, &["--new-key", "--retain-dates", "shift", "--retain-characteristics"]).expect(3);
    let command = json(&command);
    let convert =
        b.voxmill(&["convert", "archive", "converted", "--to", "dicom", "--workspace", "work", "--key-file", "key", "--json"]).expect(3);
    let convert: Value = serde_json::from_str(&convert.stdout).unwrap();
    for what in ["seen", "skipped", "skipped_classes", "failed"] {
        assert_eq!(command[what], convert["files"][what], "{what}: {command} {convert}");
    }
    assert_eq!((&command["written"], &command["refused"]), (&convert["dicom"]["written"], &convert["dicom"]["refused"]), "{convert}");
    let n = |what: &str| command[what].as_u64().unwrap();
    assert_eq!(n("seen"), n("written") + n("skipped") + n("refused") + n("failed"), "{command}");
    assert_eq!(command["skipped_classes"], serde_json::json!({ "copy": 1, "not DICOM": 1, "raw data": 1 }));
    assert_eq!(pixels(&b.path("out")), pixels(&b.path("converted")));
    let names = |out: &str| -> Vec<PathBuf> {
        let all = files_under(&b.path(out));
        let is_written = |f: &&PathBuf| f.extension().is_some_and(|e| e == "dcm");
        all.iter().filter(is_written).map(|f| f.strip_prefix(b.path(out)).unwrap().to_path_buf()).collect()
    };
    assert_eq!(names("out"), names("converted"));
}

#[test]
fn a_second_run_writes_only_what_is_new() {
    let b = Bench::new(1);
    let first = json(&deidentify(&b, &["--new-key"]).expect(0));
    let second = json(&deidentify(&b, &[]).expect(0));
    assert_eq!((second["written"].as_u64(), &second["unchanged"]), (Some(0), &first["written"]));
    b.add_case(1);
    let third = json(&deidentify(&b, &[]).expect(0));
    assert_eq!(third["unchanged"], first["written"]);
    assert!(third["written"].as_u64().unwrap() > 0);
}

#[test]
fn what_would_go_wrong_is_refused_before_anything_is_written() {
    let b = Bench::new(1);
    b.voxmill(&["deidentify", "archive", "archive/out"]).expect(2).says("lie in one another");
    b.voxmill(&["deidentify", "nowhere", "out"]).expect(2);
    deidentify(&b, &["--private", "MAKER:0018,xx01"]).expect(2).says("0019,xx0C");
    deidentify(&b, &[]).expect(2).says("key");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(b.path("key"), "secret").unwrap();
        std::fs::set_permissions(b.path("key"), std::fs::Permissions::from_mode(0o644)).unwrap();
        deidentify(&b, &[]).expect(2).says("0600");
    }
    assert!(!b.path("out").exists());
}
