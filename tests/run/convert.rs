//! `voxmill convert`: an archive becomes files without a YAML file, the counts reconcile, and nothing is done twice.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::bench::{Bench, Ran};

fn convert(b: &Bench, args: &[&str]) -> Ran {
    b.voxmill(&[&["convert", "archive", "out", "--json", "--quiet"], args].concat())
}

fn json(r: &Ran) -> Value {
    serde_json::from_str(&r.stdout).unwrap_or_else(|e| panic!("{e} in {}{}", r.stdout, r.stderr))
}

/// Files under OUT without the workspace, by their relative path, with their hash.
fn files(b: &Bench) -> BTreeMap<String, String> {
    let root = b.path("out");
    let mut out = BTreeMap::new();
    let mut todo = vec![root.clone()];
    while let Some(p) = todo.pop() {
        if p.is_dir() {
            todo.extend(std::fs::read_dir(p).unwrap().map(|e| e.unwrap().path()).filter(|p| !p.ends_with(".voxmill")));
        } else {
            let name = p.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
            out.insert(name, blake3::hash(&std::fs::read(&p).unwrap()).to_hex().to_string());
        }
    }
    out
}

fn ending<'a>(all: &'a BTreeMap<String, String>, end: &str) -> Vec<&'a String> {
    all.keys().filter(|f| f.ends_with(end)).collect()
}

fn reconciles(told: &Value) {
    let n = |path: &str| told.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} in {told}"));
    assert_eq!(n("/files/seen"), n("/files/indexed") + n("/files/skipped") + n("/files/failed"), "{told}");
    for kind in ["images", "labels"] {
        let part = |what: &str| n(&format!("/{kind}/{what}"));
        assert_eq!(part("all"), part("converted") + part("refused") + part("left_out"), "{told}");
    }
}

#[test]
fn an_archive_becomes_nifti_with_labels_and_a_second_run_makes_nothing() {
    let b = Bench::new(2);
    let told = json(&convert(&b, &["--to", "nifti", "--labels"]).expect(0));
    reconciles(&told);
    assert_eq!((told["images"]["converted"].as_u64(), told["images"]["refused"].as_u64()), (Some(2), Some(0)), "{told}");
    let before = files(&b);
    assert_eq!((ending(&before, "_labels.nii.gz").len(), ending(&before, ".nii.gz").len()), (2, 4), "{before:?}");
    for name in ["report.html", "series.parquet", "files.parquet", "instances.parquet"] {
        assert!(before.contains_key(name), "{name}");
    }
    let sidecar = ending(&before, ".json")[0];
    let told: Value = serde_json::from_slice(&std::fs::read(b.path("out").join(sidecar)).unwrap()).unwrap();
    let classes: Vec<&String> = told["classes"].as_object().unwrap().keys().collect();
    assert_eq!(classes, ["Anterior", "Posterior"]);
    convert(&b, &["--to", "nifti", "--labels"]).expect(0);
    assert_eq!(before, files(&b));
    // One more case: what stood there stays as it is.
    b.add_case(2);
    convert(&b, &["--to", "nifti", "--labels"]).expect(0);
    let after = files(&b);
    assert_eq!(ending(&after, "_labels.nii.gz").len(), 3);
    assert!(ending(&before, ".nii.gz").iter().all(|f| after[*f] == before[*f]));
    // And one less: its files go, those of others stay.
    std::fs::write(b.path("out/mine.txt"), "mine").unwrap();
    let case = std::fs::read_dir(b.archive()).unwrap().map(|e| e.unwrap().path()).max().unwrap();
    std::fs::remove_dir_all(case).unwrap();
    let told = json(&convert(&b, &["--to", "nifti", "--labels"]).expect(0));
    assert_eq!(told["removed"], 3, "image, labels and sidecar: {told}");
    assert_eq!(ending(&files(&b), "_labels.nii.gz").len(), 2);
    assert!(b.path("out/mine.txt").is_file());
}

#[test]
fn every_format_stands_beside_the_others() {
    let b = Bench::new(1);
    for (to, end) in [("ome-zarr", ".ome.zarr/zarr.json"), ("nifti", ".nii.gz"), ("dicom", ".dcm")] {
        reconciles(&json(&convert(&b, &["--to", to]).expect(0)));
        assert!(!ending(&files(&b), end).is_empty(), "{to}");
    }
    assert!(!ending(&files(&b), ".ome.zarr/zarr.json").is_empty() && !ending(&files(&b), ".nii.gz").is_empty());
}

/// The index sees headers alone; what is made of the files must not be kept when their pixels change.
#[test]
fn a_changed_pixel_is_seen_in_every_format() {
    let b = Bench::new(1);
    for to in ["dicom", "nifti"] {
        convert(&b, &["--to", to]).expect(0);
        let before = files(&b);
        let case = std::fs::read_dir(b.archive()).unwrap().next().unwrap().unwrap().path();
        let slice = &slices(&case.join("MR"))[7];
        let mut bytes = std::fs::read(slice).unwrap();
        let middle = bytes.len() - 1000;
        bytes[middle] ^= 1;
        std::fs::write(slice, bytes).unwrap();
        convert(&b, &["--to", to]).expect(0);
        let end = if to == "dicom" { ".dcm" } else { ".nii.gz" };
        let changed = ending(&before, end).iter().filter(|f| files(&b)[f.as_str()] != before[f.as_str()]).count();
        assert_eq!(changed, 1, "{to}");
    }
}

#[test]
fn bad_files_are_counted_and_stop_nobody() {
    let b = Bench::new(2);
    let slices = slices(&b.archive().join(b.archive().read_dir().unwrap().next().unwrap().unwrap().file_name()).join("MR"));
    let bytes = std::fs::read(&slices[3]).unwrap();
    std::fs::write(&slices[3], &bytes[..bytes.len() / 2]).unwrap();
    std::fs::write(b.archive().join("empty.dcm"), "").unwrap();
    std::fs::write(b.archive().join("letter.txt"), "Dear colleague").unwrap();
    let told = json(&convert(&b, &["--to", "nifti"]).expect(3));
    reconciles(&told);
    assert_eq!((told["images"]["converted"].as_u64(), told["images"]["refused"].as_u64()), (Some(1), Some(1)), "{told}");
    assert_eq!(told["refused"].as_array().unwrap().len(), 1);
    // Each by the name that the tables know it by, on the terminal too, however quiet.
    let failed = told["failed"].as_array().unwrap();
    assert_eq!(failed.len() as u64, told["files"]["failed"].as_u64().unwrap(), "{told}");
    let said = b.voxmill(&["convert", "archive", "out", "--to", "nifti", "--quiet"]).expect(3).stderr;
    for f in failed {
        let line = format!("failed {}: {}", f["file"].as_str().unwrap(), f["why"].as_str().unwrap());
        assert!(said.contains(&line), "{line} in {said}");
    }
    for i in 0..20 {
        std::fs::write(b.archive().join(format!("{i}.dcm")), "").unwrap();
    }
    let said = b.voxmill(&["convert", "archive", "out", "--to", "nifti", "--quiet"]).expect(3).stderr;
    let n_more = json(&convert(&b, &["--to", "nifti"]).expect(3))["failed"].as_array().unwrap().len() - 10;
    assert!(said.contains(&format!("and {n_more} more files that failed")) && said.contains("files.parquet"), "{said}");
}

#[test]
fn where_every_image_is_refused_each_reason_is_said_once() {
    let b = Bench::new(1);
    let slices = slices(&b.archive().join("hippocampus_001/MR"));
    let bytes = std::fs::read(&slices[3]).unwrap();
    std::fs::write(&slices[3], &bytes[..bytes.len() / 2]).unwrap();
    let said = b.voxmill(&["convert", "archive", "out", "--to", "nifti", "--quiet"]).expect(1).stderr;
    assert!(said.contains("nothing was converted") && !said.contains("no case is left"), "{said}");
    let begin = |what: &str| said.lines().filter(|l| l.starts_with(what)).count();
    assert_eq!((begin("error: "), begin("failed "), begin("refused ")), (1, 1, 1), "{said}");
}

#[test]
fn mistakes_are_told_by_their_option_and_not_by_a_line_of_yaml() {
    let b = Bench::new(1);
    for (option, value) in [("--where", "modalty = 'CT'"), ("--where", "modality ="), ("--key-env", "VOXMILL_NO_SUCH_KEY")] {
        let said = b.voxmill(&["convert", "archive", "out", "--to", "nifti", option, value]).expect(2).stderr;
        assert!(said.contains(option) && !said.contains("convert.yaml"), "{said}");
    }
}

#[test]
fn nifti_files_are_counted_and_left_where_they_are() {
    let b = Bench::new(1);
    std::fs::write(b.archive().join("mask.nii"), voxmill_nifti()).unwrap();
    let told = json(&convert(&b, &["--to", "nifti"]).expect(0));
    assert_eq!((told["nifti"]["all"].as_u64(), told["nifti"]["left_out"].as_u64()), (Some(1), Some(1)), "{told}");
    b.voxmill(&["convert", "archive", "out", "--to", "nifti"]).expect(0).says("nifti   1 left out");
}

/// One voxel of bytes.
fn voxmill_nifti() -> Vec<u8> {
    let mut bytes = vec![0u8; 353];
    bytes[..4].copy_from_slice(&348i32.to_le_bytes());
    for (i, n) in [1i16, 1, 1, 1].into_iter().enumerate() {
        bytes[40 + 2 * i..42 + 2 * i].copy_from_slice(&(if i == 0 { 3 } else { n }).to_le_bytes());
    }
    bytes[70..72].copy_from_slice(&2i16.to_le_bytes());
    bytes[72..74].copy_from_slice(&8i16.to_le_bytes());
    for i in 0..4 {
        bytes[76 + 4 * i..80 + 4 * i].copy_from_slice(&1f32.to_le_bytes());
    }
    bytes[108..112].copy_from_slice(&352f32.to_le_bytes());
    bytes[344..348].copy_from_slice(b"n+1\0");
    bytes
}

#[test]
fn the_pipeline_that_is_shown_can_be_run() {
    let b = Bench::new(1);
    for more in
        [&["--to", "nifti", "--labels", "--gaps", "fill"][..], &["--to", "ome-zarr", "--where", "modality = 'MR'"], &["--to", "dicom"]]
    {
        let shown = convert(&b, &[more, &["--show-yaml"]].concat()).expect(0).stdout;
        std::fs::write(b.path("own.yaml"), shown).unwrap();
        b.voxmill(&["check", "own.yaml"]).expect(0);
    }
    assert!(!b.path("out").exists(), "showing makes nothing");
}

#[test]
fn names_of_patients_stay_behind_and_places_are_checked() {
    let b = Bench::new(1);
    convert(&b, &["--to", "nifti"]).expect(0);
    let folder = b.archive().read_dir().unwrap().next().unwrap().unwrap().file_name().to_string_lossy().into_owned();
    for name in files(&b).keys() {
        assert!(!name.contains(&folder), "{name}");
        let bytes = std::fs::read(b.path("out").join(name)).unwrap();
        assert!(!bytes.windows(folder.len()).any(|w| w == folder.as_bytes()), "{folder} in {name}");
    }
    b.voxmill(&["convert", "archive", "archive/out", "--to", "nifti"]).expect(2).says("lie in one another");
    b.voxmill(&["convert", "nowhere", "out", "--to", "nifti"]).expect(2).says("there is no archive nowhere");
}

/// The same with the engine's own counts on stderr.
fn logged(b: &Bench, args: &[&str]) -> Ran {
    b.voxmill(&[&["convert", "archive", "out", "--log", "json"], args].concat())
}

#[test]
fn sidecars_say_what_was_decided() {
    let b = Bench::new(2);
    convert(&b, &["--to", "nifti", "--labels"]).expect(0);
    let all = files(&b);
    for file in ending(&all, ".json").iter().map(|f| b.path("out").join(f)) {
        let told: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(told["instances"].as_array().unwrap().len() as u64, told["size_zyx"][0].as_u64().unwrap(), "a slice an instance");
        assert_eq!((&told["modality"], &told["software"], &told["volumes_in_series"]), (&"MR".into(), &"voxmill".into(), &1.into()));
        assert_eq!((&told["decided"]["label_source"], told["decided"].get("rescales").is_some()), (&"binary SEG".into(), true), "{told}");
        for (row, sign) in [(0, -1.0), (1, -1.0), (2, 1.0)] {
            let at = |affine: &str, i: usize| told[affine][row][i].as_f64().unwrap();
            (0..4).for_each(|i| assert_eq!(at("affine_lps_xyz", i), sign * at("affine_ras_xyz", i), "{told}"));
        }
        for image in told["files"].as_array().unwrap() {
            let path = file.with_file_name(image.as_str().unwrap());
            let mut bytes = Vec::new();
            flate2::read::MultiGzDecoder::new(std::fs::File::open(&path).unwrap()).read_to_end(&mut bytes).unwrap();
            let size = |axis: usize| i16::from_le_bytes([bytes[40 + 2 * axis], bytes[41 + 2 * axis]]) as u64;
            assert_eq!([3, 2, 1].map(|axis| Value::from(size(axis))).to_vec(), *told["size_zyx"].as_array().unwrap(), "{}", path.display());
        }
    }
    let report = std::fs::read_to_string(b.path("out/report.html")).unwrap();
    assert!(report.contains("data:image/png;base64,") && !report.contains("http"), "pictures, and no network");
}

#[test]
fn a_grown_archive_makes_only_what_is_new() {
    let b = Bench::new(2);
    logged(&b, &["--to", "nifti", "--labels"]).expect(0);
    assert_eq!(logged(&b, &["--to", "nifti", "--labels"]).expect(0).made(), 0);
    b.add_case(2);
    let grown = logged(&b, &["--to", "nifti", "--labels"]).expect(0).counts();
    assert_eq!((grown["image"], grown["labelled"], grown["files"]), ((1, 2, 0), (1, 2, 0), (1, 2, 0)));
}

#[test]
fn one_out_takes_two_formats_and_voxels_stand_on_the_disk_once() {
    let b = Bench::new(2);
    logged(&b, &["--to", "nifti", "--labels"]).expect(0);
    let both = logged(&b, &["--to", "ome-zarr", "--labels"]).expect(0).counts();
    assert_eq!((both["image"], both["labelled"]), ((0, 2, 0), (0, 2, 0)), "assembled once for both");
    let all = files(&b);
    assert_eq!((ending(&all, ".nii.gz").len(), ending(&all, ".ome.zarr.json").len()), (4, 2), "{all:?}");
    let inside: Vec<&String> = all.keys().filter(|f| f.contains(".ome.zarr/")).collect();
    assert!(inside.len() >= 8, "{inside:?}");
    assert!(inside.iter().all(|f| std::fs::metadata(b.path("out").join(f)).unwrap().nlink() > 1), "links into the store");
    // OUT outlives its workspace.
    std::fs::remove_dir_all(b.path("out/.voxmill")).unwrap();
    logged(&b, &["--to", "nifti", "--labels"]).expect(0);
    assert_eq!(ending(&files(&b), ".nii.gz").len(), 4);
}

#[test]
fn a_gap_is_told_in_millimetres_and_filled_when_asked() {
    let b = Bench::new(1);
    let all = slices(&std::fs::read_dir(b.archive()).unwrap().next().unwrap().unwrap().path().join("MR"));
    // The first or the last slice leaves no gap.
    let told = all.iter().find_map(|slice| {
        let bytes = std::fs::read(slice).unwrap();
        std::fs::remove_file(slice).unwrap();
        let told = json(&convert(&b, &["--to", "nifti"]));
        let is_gap = told["images"]["refused"] == 1;
        if !is_gap {
            std::fs::write(slice, bytes).unwrap();
        }
        is_gap.then_some(told)
    });
    let told = told.expect("a slice that leaves a gap");
    reconciles(&told);
    assert!(told["refused"][0]["why"].as_str().unwrap().contains(" mm"), "{told}");
    assert!(std::fs::read_to_string(b.path("out/report.html")).unwrap().contains("Refused, and why"));
    let filled = json(&convert(&b, &["--to", "nifti", "--gaps", "fill"]).expect(0));
    assert_eq!(filled["images"]["converted"], 1, "{filled}");
    let sidecar = b.path("out").join(ending(&files(&b), ".json")[0]);
    let sidecar: Value = serde_json::from_slice(&std::fs::read(sidecar).unwrap()).unwrap();
    assert_eq!(sidecar["made_slices"].as_array().unwrap().len(), 1, "{sidecar}");
}

/// Every file of the archive with these bytes replaced.
fn replace(folder: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len(), "lengths stand in the files");
    for e in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
        if e.is_dir() {
            replace(&e, from, to);
            continue;
        }
        let mut bytes = std::fs::read(&e).unwrap();
        let hits: Vec<usize> = bytes.windows(from.len()).enumerate().filter(|(_, w)| *w == from.as_bytes()).map(|(i, _)| i).collect();
        hits.into_iter().for_each(|i| bytes[i..i + to.len()].copy_from_slice(to.as_bytes()));
        std::fs::write(&e, bytes).unwrap();
    }
}

#[test]
fn a_series_that_dicom_is_refused_for_says_why() {
    let b = Bench::new(2);
    let case = b.archive().join("hippocampus_001");
    assert!(case.is_dir(), "the example has it");
    replace(&case, "5.1.4.1.1.4\0", "5.1.4.1.1.7\0");
    let told = json(&convert(&b, &["--to", "dicom"]).expect(3));
    let refused = told["refused"].as_array().unwrap();
    assert!(refused.iter().any(|r| r["why"].as_str().unwrap().contains("secondary capture")), "{told}");
}

#[test]
fn hostile_ids_stay_inside_out_and_apart() {
    let b = Bench::new(3);
    let hostile = ["../../../outerr", "Con<b>|\"*?:ABCD", "con<b>|\"*?:abcd"];
    for (case, id) in ["hippocampus_001", "hippocampus_004", "hippocampus_006"].iter().zip(hostile) {
        let folder = b.archive().join(case);
        assert!(folder.is_dir(), "the example has {case}");
        replace(&folder, case, id);
    }
    let told = json(&convert(&b, &["--to", "nifti", "--deidentify", "none"]).expect(0));
    assert_eq!(told["images"]["converted"], 3, "{told}");
    let out: BTreeSet<String> = files(&b).into_keys().filter(|f| f.contains('/')).collect();
    let folders: BTreeSet<String> = out.iter().map(|f| f.split('/').next().unwrap().to_ascii_lowercase()).collect();
    assert_eq!(folders.len(), 3, "{out:?}");
    assert!(
        out.iter().all(
            |f| f.bytes().all(|b| b.is_ascii_alphanumeric() || b"./-_".contains(&b)) && !f.split('/').any(|part| part.starts_with('.'))
        ),
        "{out:?}"
    );
    let report = std::fs::read_to_string(b.path("out/report.html")).unwrap();
    assert!(!report.contains("Con<b>"), "escaped");
    assert!(!b.dir.path().parent().unwrap().join("outerr").exists());
}

#[test]
fn wrong_commands_say_what_to_do() {
    let b = Bench::new(1);
    b.voxmill(&["convert", "archive", "out"]).expect(2).says("--to");
    b.voxmill(&["convert", "archive", "out", "--to", "nifti", "--where", "modalty = 'MR'"]).expect(2).says("modalty");
    b.voxmill(&["convert", "archive", "out", "--to", "nifti", "--key-env", "VOXMILL_NO_SUCH_KEY"]).expect(2).says("VOXMILL_NO_SUCH_KEY");
    b.voxmill(&["convert", "archive", "out", "--to", "dicom", "--labels"]).expect(2).says("--labels");
    std::fs::create_dir_all(b.path("empty")).unwrap();
    b.voxmill(&["convert", "empty", "none", "--to", "nifti"]).expect(2).says("there is no file");
    convert(&b, &["--to", "nifti"]).expect(0);
    let before = files(&b);
    std::fs::rename(b.archive(), b.path("other")).unwrap();
    b.voxmill(&["convert", "other", "out", "--to", "nifti"]).expect(2).says("another archive");
    assert_eq!(files(&b), before, "nothing is taken away");
}

/// A tar with one member.
pub fn tar_of(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{:011o}", bytes.len()).as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[148..156].copy_from_slice(b"        ");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|b| *b as u32).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    [&header[..], bytes, &vec![0; bytes.len().next_multiple_of(512) - bytes.len() + 1024]].concat()
}

/// A DICOMDIR that names one file.
fn dicomdir_of(file: &str) -> Vec<u8> {
    let element = |tag: [u8; 4], vr: &[u8; 2], value: &[u8]| {
        let value = [value, &b" "[..value.len() % 2]].concat();
        [&tag[..], vr, &(value.len() as u16).to_le_bytes(), &value].concat()
    };
    let record = element([4, 0, 0, 0x15], b"CS", file.as_bytes());
    let item = [&[0xfe, 0xff, 0, 0xe0][..], &(record.len() as u32).to_le_bytes(), &record].concat();
    let records = [&[4, 0, 0x20, 0x12][..], b"SQ\0\0", &(item.len() as u32).to_le_bytes(), &item].concat();
    let meta =
        [element([2, 0, 2, 0], b"UI", b"1.2.840.10008.1.3.10\0"), element([2, 0, 0x10, 0], b"UI", b"1.2.840.10008.1.2.1\0")].concat();
    [&[0; 128][..], b"DICM", &meta, &records].concat()
}

#[test]
fn under_pseudonyms_nothing_that_is_written_or_said_names_the_patient() {
    const NAME: &str = "Mueller_Zebedee";
    let b = Bench::new(1);
    replace(&b.archive(), "hippocampus_001", NAME);
    let folder = b.archive().join(NAME);
    std::fs::rename(b.archive().join("hippocampus_001"), &folder).unwrap();
    let slice = std::fs::read(&slices(&folder.join("MR"))[0]).unwrap();
    std::fs::write(folder.join(format!("{NAME}.tar")), tar_of(&format!("{NAME}/{NAME}.dcm"), &slice)).unwrap();
    std::fs::write(folder.join("DICOMDIR"), dicomdir_of("ZEBEDEE/MUELLER")).unwrap();
    std::fs::write(folder.join(format!("{NAME}.dcm")), format!("dear {NAME}")).unwrap();
    let named = b.path(&format!("{NAME}_all"));
    std::fs::rename(b.archive(), &named).unwrap();
    let archive = named.to_str().unwrap();
    let traces: Vec<Vec<u8>> = ["Zebedee", "ZEBEDEE", "zebedee", "Mueller", "MUELLER", "mueller"]
        .iter()
        .flat_map(|n| [n.as_bytes().to_vec(), n.encode_utf16().flat_map(u16::to_le_bytes).collect()])
        .collect();
    let untraced = |what: &str, bytes: &[u8]| {
        for t in &traces {
            assert!(!bytes.windows(t.len()).any(|w| w == t), "{} in {what}", String::from_utf8_lossy(t));
        }
    };
    let all = [&["--to", "nifti", "--labels"][..], &["--to", "ome-zarr", "--labels"], &["--to", "dicom"]];
    for more in all.iter().chain(&all) {
        let ran = b.voxmill(&[&["convert", archive, "out"], *more].concat()).expect(3);
        untraced("what was said", format!("{}{}", ran.stdout, ran.stderr).as_bytes());
        assert!(ran.stdout.contains(" = 1 converted") || more[1] == "dicom", "{}", ran.stdout);
    }
    let mut todo = vec![b.path("out")];
    while let Some(p) = todo.pop() {
        untraced("a name", p.strip_prefix(b.path("out")).unwrap().as_os_str().as_encoded_bytes());
        if p.is_dir() {
            todo.extend(std::fs::read_dir(p).unwrap().map(|e| e.unwrap().path()));
        } else if p.to_string_lossy().ends_with(".nii.gz") {
            let mut bytes = Vec::new();
            flate2::read::MultiGzDecoder::new(std::fs::File::open(&p).unwrap()).read_to_end(&mut bytes).unwrap();
            untraced(&p.display().to_string(), &bytes);
        } else {
            untraced(&p.display().to_string(), &std::fs::read(&p).unwrap());
        }
    }
    for table in ["series", "files", "instances", "executions", "quarantine", "runs"] {
        let rows = b.voxmill(&["query", "out/.voxmill/convert.yaml", &format!("select * from {table}"), "--format", "csv"]).expect(0);
        untraced(table, rows.stdout.as_bytes());
    }
    // Nothing is read again, and nothing is made again.
    let again = b.voxmill(&["convert", archive, "out", "--to", "nifti", "--labels", "--log", "json"]).expect(3);
    assert_eq!(again.made(), 0, "{}", again.stderr);
    // Another key gives other names: those of before are not taken away for them.
    b.voxmill(&["convert", archive, "out", "--to", "nifti", "--key-file", "new.key", "--new-key"]).expect(2).says("another key");
}

#[test]
fn options_that_would_do_nothing_weak_keys_and_foreign_files_are_refused() {
    let b = Bench::new(1);
    convert(&b, &["--to", "dicom", "--gaps", "fill"]).expect(2).says("--gaps");
    convert(&b, &["--to", "dicom", "--repeats", "separate"]).expect(2).says("--repeats");
    convert(&b, &["--to", "nifti", "--key-file", "none.key"]).expect(2).says("none.key");
    std::fs::write(b.path("weak.key"), "secret").unwrap();
    std::fs::set_permissions(b.path("weak.key"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    convert(&b, &["--to", "nifti", "--key-file", "weak.key"]).expect(2).says("--new-key");
    assert!(!b.path("out").exists());
    std::fs::create_dir(b.path("out")).unwrap();
    std::fs::write(b.path("out/report.html"), "mine").unwrap();
    convert(&b, &["--to", "nifti"]).expect(2).says("report.html");
    std::fs::remove_file(b.path("out/report.html")).unwrap();
    let told = json(&convert(&b, &["--to", "nifti", "--key-file", "new.key", "--new-key"]).expect(0));
    assert_eq!(told["keyed"], true, "{told}");
    convert(&b, &["--to", "nifti", "--key-file", "new.key", "--new-key"]).expect(2).says("there already");
    convert(&b, &["--to", "nifti", "--key-file", "new.key"]).expect(0);
}

fn slices(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}
