//! `index` and `assemble` as stages, on copies of real series that are then spoilt in the ways archives are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use voxmill_schemas::artifact::{ContentHash, Key, Kind, Manifest, Recipe};
use voxmill_schemas::tables::{FileRow, InstanceRow, SeriesRow};
use voxmill_stages::assemble::Assemble;
use voxmill_stages::dicom::contents::Contents;
use voxmill_stages::error::{Error, chain};
use voxmill_stages::index::Index;
use voxmill_stages::stage::{Cx, Facts, Input, Inputs, Opened, Progress, Rows, Stage};
use voxmill_stages::store::{Limits, Store};
use voxmill_stages::table;
use voxmill_stages::volume::Volume;

pub struct Bench {
    dir: tempfile::TempDir,
    archive: PathBuf,
    store: Store,
    runs: AtomicU64,
    /// Bytes that the last stage said it read.
    read: AtomicU64,
}

impl Bench {
    /// An archive with the MR series and labels of two real cases.
    pub fn new() -> Self {
        let bench = Self::over(Path::new(""));
        for case in ["hippocampus_001", "hippocampus_004"] {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/hippocampus").join(case);
            copy_tree(&from, &bench.archive().join(case));
        }
        bench
    }

    /// An archive that stands elsewhere; of no name, an empty one.
    pub fn over(archive: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&Limits { disk_dir: dir.path().join("store"), ..Limits::default() }).unwrap();
        let archive = if archive.as_os_str().is_empty() { dir.path().join("archive") } else { archive.to_path_buf() };
        Self { dir, archive, store, runs: AtomicU64::new(0), read: AtomicU64::new(0) }
    }

    pub fn archive(&self) -> PathBuf {
        self.archive.clone()
    }

    pub fn slices(&self, case: &str) -> Vec<PathBuf> {
        let mut files: Vec<_> = std::fs::read_dir(self.archive().join(case).join("MR")).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        files
    }

    fn run(&self, stage: &impl Stage, inputs: &Inputs) -> Result<(Facts, PathBuf), Error> {
        let draft = self.dir.path().join(format!("draft-{}", self.runs.fetch_add(1, Ordering::Relaxed)));
        let memo = self.dir.path().join("memo");
        std::fs::create_dir_all(&draft).unwrap();
        std::fs::create_dir_all(&memo).unwrap();
        self.read.store(0, Ordering::Relaxed);
        let cx = Cx {
            draft: &draft,
            case: None,
            seed: 0,
            memo: &memo,
            store: &self.store,
            jobs: 2,
            lazy: false,
            memory_bytes: 1 << 30,
            cancel: &AtomicBool::new(false),
            progress: &|p| {
                if let Progress::Bytes(n) = p {
                    self.read.fetch_add(n, Ordering::Relaxed);
                }
            },
        };
        Ok((stage.run(inputs, &cx)?, draft))
    }

    pub fn index(&self, deidentify: &str) -> (Facts, Rows) {
        let with = serde_json::json!({ "archive": self.archive(), "deidentify": deidentify });
        let (facts, draft) = self.run(&serde_json::from_value::<Index>(with).unwrap(), &Inputs::default()).unwrap();
        (facts, table::open(&draft).unwrap())
    }

    fn assemble(&self, opened: &Opened) -> Result<Volume, String> {
        let recipe = Recipe { stage: "index".into(), version: 1, config: Default::default(), inputs: BTreeMap::new(), seed: 0 };
        let manifest = Manifest {
            key: Key::of(b""),
            content: ContentHash::of(b""),
            kind: Kind::Table,
            case: None,
            recipe,
            input_keys: BTreeMap::new(),
            facts: Default::default(),
            files: BTreeMap::new(),
            bytes: 0,
            layout: 1,
        };
        let input = Input { dir: self.dir.path().into(), manifest: Arc::new(manifest), rows: Some(opened.rows["series"].clone()) };
        let stage: Assemble = serde_json::from_value(serde_json::json!({})).unwrap();
        let (_, draft) = self.run(&stage, &Inputs([("series".to_string(), vec![input])].into())).map_err(|e| chain(&e))?;
        Ok(Volume::read(&draft).unwrap())
    }

    /// The cases by name, each with its volume or why there is none.
    pub fn volumes(&self, rows: &Rows) -> BTreeMap<String, Result<Volume, String>> {
        let stage: Assemble = serde_json::from_value(serde_json::json!({ "where": "modality = 'MR'", "case_name": "patient" })).unwrap();
        let opened = stage.cases(&[("series".to_string(), rows.clone())].into()).unwrap();
        opened.iter().map(|o| (o.case.0.clone(), self.assemble(o))).collect()
    }
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for e in std::fs::read_dir(from).unwrap() {
        let e = e.unwrap();
        let target = to.join(e.file_name());
        if e.path().is_dir() {
            copy_tree(&e.path(), &target);
        } else {
            std::fs::copy(e.path(), target).unwrap();
        }
    }
}

pub fn verdicts(rows: &Rows) -> BTreeMap<String, (String, String)> {
    table::rows_of::<FileRow>(rows).unwrap().into_iter().map(|f| (f.path, (f.verdict, f.why))).collect()
}

#[test]
fn an_archive_becomes_tables_and_volumes() {
    let b = Bench::new();
    let (facts, rows) = b.index("none");
    let series: Vec<SeriesRow> = table::rows_of(&rows).unwrap();
    let kinds = |kind: &str| series.iter().filter(|s| s.kind == kind).collect::<Vec<_>>();
    assert_eq!((kinds("image").len(), kinds("rtstruct").len()), (2, 1));
    for label in kinds("seg").into_iter().chain(kinds("rtstruct")) {
        // A label map describes its background too.
        let drawn: Vec<_> = label.labels.iter().filter(|l| *l != "Background").collect();
        assert_eq!(drawn, ["Anterior", "Posterior"], "{label:?}");
        assert!(kinds("image").iter().any(|i| label.references == [i.series.clone()] && i.patient == label.patient), "{label:?}");
    }
    assert_eq!(facts.facts["seen"], facts.facts["indexed"]);
    let volumes = b.volumes(&rows);
    assert_eq!(volumes.keys().collect::<Vec<_>>(), ["hippocampus_001", "hippocampus_004"]);
    for v in volumes.values() {
        let v = v.as_ref().unwrap();
        assert_eq!(v.geometry, v.about.source);
        assert_eq!(v.channels, ["MR"]);
    }
}

#[test]
fn pseudonyms_keep_labels_and_images_together_and_tell_nothing() {
    let b = Bench::new();
    let (_, rows) = b.index("basic");
    let (own, basic): (Vec<SeriesRow>, Vec<SeriesRow>) = (table::rows_of(&b.index("none").1).unwrap(), table::rows_of(&rows).unwrap());
    let instances: Vec<InstanceRow> = table::rows_of(&rows).unwrap();
    let text = format!("{basic:?} {:?}", instances.iter().map(|i| (&i.series, &i.instance)).collect::<Vec<_>>());
    for s in &own {
        assert!(!text.contains(&s.patient) && !text.contains(&s.study) && !text.contains(&s.series));
    }
    let images: Vec<&String> = basic.iter().filter(|s| s.kind == "image").map(|s| &s.series).collect();
    assert!(basic.iter().filter(|s| s.kind != "image").all(|s| images.contains(&&s.references[0])));
}

#[test]
fn under_pseudonyms_not_even_the_path_of_an_instance_names_a_patient() {
    // Patients, and the folders of the archive, are called hippocampus_001 and _004.
    let b = Bench::new();
    std::fs::write(b.archive().join("hippocampus_001/letter.dcm"), "Dear colleague,").unwrap();
    std::fs::write(b.archive().join("hippocampus_001/empty"), "").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(150));
    let own: Vec<SeriesRow> = table::rows_of(&b.index("none").1).unwrap();
    let (facts, rows) = b.index("basic");
    let memo: Vec<PathBuf> = std::fs::read_dir(b.dir.path().join("memo")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(memo.len(), 1, "{memo:?}");
    let instances: Vec<InstanceRow> = table::rows_of(&rows).unwrap();
    // A token that only the process which walked the archive can resolve.
    assert!(instances.iter().all(|i| !i.path.is_empty() && !i.path.contains("hippocampus")));
    let (series, files): (Vec<SeriesRow>, Vec<FileRow>) = (table::rows_of(&rows).unwrap(), table::rows_of(&rows).unwrap());
    let told = format!("{series:?} {instances:?} {files:?} {:?} {:?}", facts.facts, facts.quarantined);
    for text in [told, String::from_utf8_lossy(&std::fs::read(&memo[0]).unwrap()).into_owned()] {
        assert!(!text.contains("hippocampus"));
        for s in &own {
            assert!(!text.contains(&s.study) && !text.contains(&s.series));
            assert!(s.description.as_ref().is_none_or(|d| !text.contains(d)));
        }
    }
    #[cfg(unix)]
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&memo[0]).unwrap().permissions()) & 0o777, 0o600);
}

#[test]
fn a_second_look_reads_nothing_and_a_new_name_changes_nothing() {
    let b = Bench::new();
    // Files touched just now are not trusted to stay as they are.
    std::thread::sleep(std::time::Duration::from_millis(150));
    let (first, _) = b.index("none");
    assert!(b.read.load(Ordering::Relaxed) > 100_000);
    let (second, _) = b.index("none");
    assert_eq!(b.read.load(Ordering::Relaxed), 0);
    assert_eq!(first.content, second.content);
    let file = &b.slices("hippocampus_001")[3];
    std::fs::rename(file, file.with_file_name("zzz")).unwrap();
    assert_eq!(b.index("none").0.content, first.content);
}

#[test]
fn every_file_has_a_verdict_and_the_counts_reconcile() {
    let b = Bench::new();
    let slices = b.slices("hippocampus_001");
    std::fs::write(b.archive().join("letter.dcm"), "Dear colleague,").unwrap();
    std::fs::write(b.archive().join("notes.txt"), "nothing").unwrap();
    std::fs::write(b.archive().join("empty"), "").unwrap();
    std::fs::write(b.archive().join("old.zip"), "PK").unwrap();
    std::fs::copy(&slices[0], b.archive().join("copy")).unwrap();
    let (facts, rows) = b.index("none");
    let v = verdicts(&rows);
    let n = |verdict: &str| v.values().filter(|(x, _)| x == verdict).count();
    assert_eq!((n("failed"), n("skipped")), (2, 3));
    assert_eq!(facts.facts["seen"], v.len());
    assert_eq!(v["letter.dcm"].1, "not DICOM, although its name says so");
    assert_eq!(v["empty"].1, "an empty file (0 bytes)");
    let twins = [&v["copy"], v.iter().find(|(p, _)| slices[0].ends_with(p)).unwrap().1];
    assert!(twins.iter().any(|t| t.0 == "indexed") && twins.iter().any(|t| t.1.starts_with("the same bytes as")), "{twins:?}");
    assert_eq!(facts.quarantined.len(), 2);
    assert!(b.volumes(&rows).values().all(Result::is_ok));
}

/// One more file of the archive, and the verdicts.
fn with_file(b: &Bench, name: &str, bytes: &[u8]) -> BTreeMap<String, (String, String)> {
    std::fs::write(b.archive().join(name), bytes).unwrap();
    verdicts(&b.index("none").1)
}

#[test]
fn of_a_cut_off_file_and_a_whole_one_of_one_instance_the_whole_one_is_taken() {
    let b = Bench::new();
    let before = b.volumes(&b.index("none").1);
    let slice = std::fs::read(&b.slices("hippocampus_001")[5]).unwrap();
    // By name the cut one comes first, then last.
    for name in ["0", "zz"] {
        let v = with_file(&b, name, &slice[..slice.len() - 100]);
        let (verdict, why) = &v[name];
        assert_eq!(verdict, "failed");
        assert!(why.contains("the file is cut off") && why.ends_with("holds the same instance whole"), "{why}");
    }
    let after = b.volumes(&b.index("none").1);
    assert_eq!(after["hippocampus_001"].as_ref().unwrap().voxels, before["hippocampus_001"].as_ref().unwrap().voxels);
    // Alone it costs the series.
    drop_one(&b.slices("hippocampus_001")[5]);
    let why = b.volumes(&b.index("none").1).remove("hippocampus_001").unwrap().unwrap_err();
    assert!(why.contains("the file is cut off"), "{why}");
}

#[test]
fn a_gap_is_told_with_the_files_beside_it_that_could_not_be_read() {
    let b = Bench::new();
    let slices = b.slices("hippocampus_001");
    drop_inner(&slices);
    let refusal = |b: &Bench| b.volumes(&b.index("none").1).remove("hippocampus_001").unwrap().unwrap_err();
    assert!(!refusal(&b).contains("could not be read"));
    std::fs::write(b.archive().join("elsewhere.dcm"), "").unwrap();
    assert!(!refusal(&b).contains("could not be read"));
    std::fs::write(slices[0].with_file_name("torn.dcm"), "").unwrap();
    let why = refusal(&b);
    assert!(
        why.contains("missing at") && why.contains("beside its slices 1 file could not be read, the first: hippocampus_001/MR/torn.dcm"),
        "{why}"
    );
}

#[test]
fn what_macos_keeps_beside_files_is_neither_dicom_nor_nifti() {
    let b = Bench::new();
    let double = [&b"\0\x05\x16\x07\0\x02\0\0Mac OS X        "[..], &[0; 4048]].concat();
    for name in ["._scan.nii.gz", "._0001.dcm", "._"] {
        let v = with_file(&b, name, &double);
        assert_eq!(v[name], ("skipped".to_string(), "macOS file attributes".to_string()), "{name}");
    }
    // A file that only has such a name is what it holds.
    let slice = std::fs::read(&b.slices("hippocampus_001")[5]).unwrap();
    drop_one(&b.slices("hippocampus_001")[5]);
    assert_eq!(with_file(&b, "._slice.dcm", &slice)["._slice.dcm"].0, "indexed");
}

#[test]
fn spoilt_series_are_refused_with_the_reason_and_the_others_stay() {
    // What is done, to the slices of a series in the order of their names, and what must be said of it.
    type Spoil<'a> = (&'a str, &'a dyn Fn(&[PathBuf]), &'a str);
    let spoil: [Spoil; 5] = [
        ("a truncated slice", &|s| std::fs::write(&s[5], &std::fs::read(&s[5]).unwrap()[..1200]).unwrap(), "cut off"),
        ("a truncated header", &|s| std::fs::write(&s[5], &std::fs::read(&s[5]).unwrap()[..900]).unwrap(), "cannot be used"),
        (
            "one instance with two contents",
            &|s| {
                let mut bytes = std::fs::read(&s[5]).unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                std::fs::write(s[5].with_file_name("other"), bytes).unwrap();
            },
            "2 of its files cannot be used",
        ),
        ("a missing slice", &|s| drop_inner(s), "missing at"),
        ("two missing slices", &|s| s[10..12].iter().for_each(|f| drop_one(f)), "mm"),
    ];
    for (what, how, reason) in spoil {
        let b = Bench::new();
        how(&b.slices("hippocampus_001"));
        let volumes = b.volumes(&b.index("none").1);
        let why = volumes["hippocampus_001"].as_ref().expect_err(what);
        assert!(why.contains(reason), "{what}: {why}");
        assert!(volumes["hippocampus_004"].is_ok(), "{what}");
    }
}

fn drop_one(file: &Path) {
    std::fs::remove_file(file).unwrap();
}

/// Removes a slice that is neither the first nor the last along the normal: file names are shuffled, positions are not in them.
fn drop_inner(slices: &[PathBuf]) {
    let z = |f: &PathBuf| voxmill_stages::dicom::header::read(f, None).unwrap().unwrap().frames[0].position.unwrap()[2];
    let mut sorted = slices.to_vec();
    sorted.sort_by(|a, b| z(a).total_cmp(&z(b)));
    drop_one(&sorted[sorted.len() / 2]);
}

#[test]
fn a_file_that_changed_since_the_index_asks_for_another_run() {
    let b = Bench::new();
    let (_, mut rows) = b.index("none");
    // As the engine does when it opens a case.
    Contents::open(&b.dir.path().join("contents")).fill(&mut rows, &|_| Ok(())).unwrap();
    let file = &b.slices("hippocampus_001")[5];
    let mut bytes = std::fs::read(file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(file, bytes).unwrap();
    std::fs::remove_file(&b.slices("hippocampus_004")[0]).unwrap();
    let volumes = b.volumes(&rows);
    assert!(volumes["hippocampus_001"].as_ref().unwrap_err().contains("the file has changed since it was indexed: run again"));
    assert!(volumes["hippocampus_004"].as_ref().unwrap_err().contains("the file is gone since it was indexed: run again"));
}

#[test]
fn nothing_to_find_is_told_with_the_name_of_the_archive() {
    let b = Bench::new();
    let look = |archive: &Path| {
        let stage: Index = serde_json::from_value(serde_json::json!({ "archive": archive })).unwrap();
        b.run(&stage, &Inputs::default()).map(|_| ()).unwrap_err().to_string()
    };
    let empty = b.dir.path().join("nothing");
    assert!(look(&empty).contains("nothing: found no such folder"));
    std::fs::create_dir(&empty).unwrap();
    assert!(look(&empty).contains("found no file at all"));
    std::fs::write(empty.join("notes.txt"), "x").unwrap();
    assert!(look(&empty).contains("found only 1 not DICOM"));
}
