//! PS3.15 table E.1-1 as we hold it, against the one of `dicom-anonymizer` (edition 2026c). The interpreter is `VOXMILL_PYTHON` (default `python3`); where
//! it lacks that package the test says so.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::process::Command;

use voxmill_stages::dicom::deid::table::LINES;

const SCRIPT: &str = "
from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as d
names = {'D': 'D_TAGS', 'Z': 'Z_TAGS', 'X': 'X_TAGS', 'U': 'U_TAGS', 'Z/D': 'Z_D_TAGS', 'X/Z': 'X_Z_TAGS', 'X/D': 'X_D_TAGS', 'X/Z/D': 'X_Z_D_TAGS', 'X/Z/U*': 'X_Z_U_STAR_TAGS'}
for action, name in names.items():
    for tag in getattr(d, name):
        if len(tag) == 2:
            print('%04X%04X' % tag, action)
        else:
            print('pattern', action)
";

#[test]
fn the_table_is_the_one_of_the_standard() {
    let python = std::env::var("VOXMILL_PYTHON").unwrap_or_else(|_| "python3".into());
    let told = match Command::new(&python).args(["-c", SCRIPT]).output() {
        Ok(o) if o.status.success() => String::from_utf8(o.stdout).unwrap(),
        _ => return eprintln!("skipped: {python} has no dicom-anonymizer 2.1"),
    };
    let told: Vec<(String, String)> =
        told.lines().map(|l| l.split_once(' ').unwrap()).map(|(tag, action)| (tag.into(), action.into())).collect();
    assert_eq!(told.iter().filter(|(tag, _)| tag == "pattern").count(), 3, "curves, overlay data and overlay comments");
    let theirs: BTreeMap<String, String> = told.into_iter().filter(|(tag, _)| tag != "pattern").collect();
    let ours: BTreeMap<String, String> =
        LINES.iter().map(|(tag, line)| (format!("{tag:08X}"), line.split(' ').next().unwrap().to_string())).collect();
    assert_eq!(ours.len(), 652);
    assert_eq!(ours, theirs);
}
