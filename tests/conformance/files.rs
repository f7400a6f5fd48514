//! A verdict on every file: of a collection of oddities one by one, and of archives in containers.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use voxmill_schemas::tables::{FileRow, InstanceRow};
use voxmill_stages::table;

use crate::archive::{is_whole, root};
use crate::stages::{Bench, verdicts};

/// pydicom's test files: each has the verdict that stands in the table, which was held against pydicom's own reading.
#[test]
fn every_odd_file_has_its_verdict() {
    let folder = root().join("pydicom");
    // Verdicts on copies depend on what else is there: only the whole collection has these.
    if !is_whole() {
        return;
    }
    let (facts, rows) = Bench::over(&folder).index("none");
    let said: Vec<FileRow> = table::rows_of(&rows).unwrap();
    let n = |key: &str| facts.facts[key].as_u64().unwrap();
    assert_eq!(n("seen"), n("indexed") + n("skipped") + n("failed"));
    assert_eq!(n("seen") as usize, said.len());
    assert!(said.iter().all(|f| !f.why.is_empty()));
    let said: String = said.iter().map(|f| format!("{}\t{}\t{}\n", f.path, f.verdict, f.why)).collect();
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/pydicom.tsv");
    if std::env::var_os("VOXMILL_BLESS").is_some() {
        std::fs::write(&table, &said).unwrap();
    }
    let held = std::fs::read_to_string(&table).unwrap();
    for (held, said) in held.lines().zip(said.lines()) {
        assert_eq!(held, said, "VOXMILL_BLESS=1 writes the table anew");
    }
    assert_eq!(held.lines().count(), said.lines().count());
}

fn zip(members: &[(String, Vec<u8>)], method: zip::CompressionMethod) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in members {
        zip.start_file(name.as_str(), zip::write::SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn tar(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut h = tar::Header::new_gnu();
        h.set_size(bytes.len() as u64);
        tar.append_data(&mut h, name, &bytes[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

/// The same slices in a folder, in zips, tars and compressed ones: the same volumes, and each member counts as a file.
#[test]
fn a_series_in_a_container_is_the_series() {
    let b = Bench::new();
    let plain = b.volumes(&b.index("none").1);
    let members: Vec<(String, Vec<u8>)> =
        b.slices("hippocampus_001").iter().map(|p| (p.file_name().unwrap().to_string_lossy().into(), std::fs::read(p).unwrap())).collect();
    let gzip = |bytes: &[u8]| {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(bytes).unwrap();
        gz.finish().unwrap()
    };
    let containers: [(&str, Vec<u8>); 5] = [
        ("s.zip", zip(&members, zip::CompressionMethod::Stored)),
        ("s.zip", zip(&members, zip::CompressionMethod::Deflated)),
        ("s.tar", tar(&members)),
        ("s.tar.gz", gzip(&tar(&members))),
        ("s.tar", tar(&[("inner.zip".to_string(), zip(&members, zip::CompressionMethod::Deflated))])),
    ];
    let folder = b.archive().join("hippocampus_001/MR");
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::create_dir(&folder).unwrap();
    for (name, bytes) in containers {
        std::fs::write(folder.join(name), bytes).unwrap();
        let (facts, rows) = b.index("none");
        assert_eq!(facts.facts["seen"], verdicts(&rows).len());
        let instances: Vec<InstanceRow> = table::rows_of(&rows).unwrap();
        assert_eq!(instances.iter().filter(|i| i.member.is_some()).count(), members.len(), "{name}");
        assert_eq!(b.volumes(&rows), plain, "{name}");
        std::fs::remove_file(folder.join(name)).unwrap();
    }
}

#[test]
fn what_a_dicomdir_names_and_is_not_there_is_told() {
    let from = root().join("pydicom/dicomdirtests");
    if !from.is_dir() {
        return assert!(!is_whole(), "{} is missing", from.display());
    }
    let b = Bench::new();
    std::fs::copy(from.join("DICOMDIR"), b.archive().join("DICOMDIR")).unwrap();
    let (facts, rows) = b.index("none");
    let v: BTreeMap<_, _> = verdicts(&rows);
    let missing: Vec<_> = v.iter().filter(|(_, (_, why))| why == "named by DICOMDIR, not there").collect();
    assert_eq!(missing.len(), 31);
    assert!(missing.iter().all(|(_, (verdict, _))| verdict == "failed"));
    assert_eq!(v["DICOMDIR"], ("skipped".into(), "DICOMDIR of 31 files".into()));
    assert_eq!(facts.facts["seen"], v.len());
}
