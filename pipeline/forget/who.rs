//! Who a patient is in a workspace: the words that name this patient and nobody else, from the tables of the index.

use std::collections::BTreeSet;
use std::path::PathBuf;

use voxmill_schemas::tables::{InstanceRow, SeriesRow};

/// The tables of one index.
pub struct Index {
    pub series: Vec<SeriesRow>,
    pub instances: Vec<InstanceRow>,
}

#[derive(Default)]
pub struct Who {
    /// The patient, its studies, series, instances, files and frames of reference.
    pub words: BTreeSet<String>,
    pub series: BTreeSet<String>,
    /// Its files as the index named them; containers hold others, too.
    pub files: BTreeSet<PathBuf>,
}

/// Words that another patient goes by as well name nobody: a folder of NIfTI files is the study of all in it, a tar the path of all its members.
pub fn who(patient: &str, indexes: &[Index]) -> Who {
    let mut who = Who { words: BTreeSet::from([patient.to_string()]), ..Who::default() };
    let mut of_others: BTreeSet<String> = BTreeSet::new();
    for r in indexes.iter().flat_map(|i| &i.series) {
        let is_own = r.patient == patient;
        if is_own {
            who.series.insert(r.series.clone());
        }
        let words = if is_own { &mut who.words } else { &mut of_others };
        words.extend([&r.series, &r.study].into_iter().chain(&r.frame_of_reference).cloned());
    }
    for r in indexes.iter().flat_map(|i| &i.instances) {
        let is_own = who.series.contains(&r.series);
        if is_own {
            who.files.insert(PathBuf::from(&r.path));
        }
        let words = if is_own { &mut who.words } else { &mut of_others };
        words.extend([&r.instance, &r.file, &r.path].into_iter().chain(&r.member).cloned());
    }
    who.words.retain(|w| w == patient || !of_others.contains(w));
    who
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_go_by_as_well_names_nobody() {
        let series = |patient: &str, series: &str, study: &str| SeriesRow {
            patient: patient.into(),
            series: series.into(),
            study: study.into(),
            frame_of_reference: Some("1.2.3".into()),
            ..SeriesRow::default()
        };
        let instance = |series: &str, path: &str, member: Option<&str>| InstanceRow {
            series: series.into(),
            instance: format!("i-{series}"),
            path: path.into(),
            file: format!("{path}!{}", member.unwrap_or_default()),
            member: member.map(str::to_string),
            ..InstanceRow::default()
        };
        let index = Index {
            series: vec![series("anna", "s1", "imagesTr"), series("otto", "s2", "imagesTr"), series("anna", "s3", "own")],
            instances: vec![
                instance("s1", "/a.tar", Some("1.dcm")),
                instance("s2", "/a.tar", Some("2.dcm")),
                instance("s3", "/b.dcm", None),
            ],
        };
        let found = who("anna", &[index]);
        let words: Vec<&str> = found.words.iter().map(String::as_str).collect();
        assert_eq!(words, ["/a.tar!1.dcm", "/b.dcm", "/b.dcm!", "1.dcm", "anna", "i-s1", "i-s3", "own", "s1", "s3"]);
        assert_eq!((found.series.len(), found.files.len()), (2, 2));
        assert!(who("nobody", &[]).series.is_empty());
    }
}
