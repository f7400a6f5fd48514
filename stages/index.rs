//! `index`: looks at every file of an archive and writes what is there as tables: series, instances, and a verdict on each file. Reads headers alone, in
//! folders and in containers. What makes a volume of slices is decided in `dicom::group`; `dicom::order` says here already what is irregular.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use voxmill_schemas::artifact::{Kind, Scope};
use voxmill_schemas::tables::{FileRow, InstanceRow, Row, SeriesRow};

use crate::dicom::names::Names;
use crate::dicom::survey::{self, Survey};
use crate::dicom::{keys, memory, name_file, walk};
use crate::error::Error;
use crate::labels::LabelIndex;
use crate::stage::{Cx, Facts, Finding, Info, Inputs, Quarantined, Rows, Stage};
use crate::table;

/// Which files are there, which series they form, and what of it cannot be used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// The folder with DICOM (and NIfTI) files, at any depth, or one file; a relative path starts where the program is started. Containers (`.zip`,
    /// `.tar`, `.tar.gz`, `.tar.zst`, one in another three deep) are looked into, and each of their members is a file of the archive; `.gz` and `.zst` of
    /// one file are read as that file.
    pub archive: String,
    /// `basic`: ids become pseudonyms, free text of the scanner is dropped, and files and folders of the archive (often named after patients, this
    /// `archive` too) go by pseudonyms: nothing that is written says where they stand. Names of segments and ROIs stay, unless they hold a name, an id, the
    /// accession number or the birthday of the patient as their own file has them (and are not the words of a public code): those become `label-` and 8
    /// digits. `none`: all stays as it is.
    #[serde(default)]
    pub deidentify: Deidentify,
    /// Name of an environment variable that holds the secret key of the pseudonyms. Without it they are the same for everyone, and who knows a
    /// patient's id can find its pseudonym.
    #[serde(default)]
    pub key_env: Option<String>,
    /// The same from a file that only you can read (mode 0600), instead of `key_env`.
    #[serde(default)]
    pub key_file: Option<String>,
    /// Where to write which file each pseudonym stands for (TSV: pseudonym, series, place), for the one who looks after what was left out. It names
    /// patients: it must lie outside of the workspace and the archive, and only its owner can read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_file: Option<String>,
}

/// What leaves the archive under its own name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Deidentify {
    /// UIDs, PatientID and descriptions as they stand in the files.
    None,
    /// Keyed pseudonyms, no descriptions.
    #[default]
    Basic,
}

impl Stage for Index {
    const INFO: Info = Info {
        name: "index",
        version: 8,
        scope: Scope::Set,
        ports: &[],
        gives: Kind::Table,
        summary: "find the series of a DICOM archive, with a verdict on every file",
        example: "uses: index\nwith: { archive: data/archive, deidentify: basic }",
        absent_in_inference: None,
    };

    fn check(&self) -> Vec<Finding> {
        let is_idle = self.name_file.is_some() && self.deidentify == Deidentify::None;
        let why = "files go by their own names with `deidentify: none`";
        is_idle.then(|| Finding::error("name_file", why, "`deidentify: basic`, or no name_file")).into_iter().collect()
    }

    fn recorded(&self) -> Value {
        let mut shown = Self { name_file: None, ..self.clone() };
        if self.deidentify == Deidentify::Basic {
            // Without its key there is no run, and nothing to tell two archives apart in.
            let place = self.names().map_or([0; 16], |n| n.place(&self.archive));
            shown.archive = format!("hidden:{:032x}", u128::from_be_bytes(place));
        }
        serde_json::to_value(shown).expect("plain data")
    }

    fn run(&self, _inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let names = self.names()?;
        let root = Path::new(&self.archive);
        // What is remembered is told by how files stand; where nothing is, all are opened.
        let found = if memory::is_there(cx.memo) { walk::walk(root) } else { walk::names(root) };
        let found =
            found.map_err(|e| Error::Input { what: self.place(), found: no_folder(&e), expected: "a folder with DICOM files".into() })?;
        let name_file = self.name_file.as_ref().map(Path::new);
        if let Some(file) = name_file {
            // Its memory stands in WORKSPACE/memo/NODE.
            let workspace = cx.memo.ancestors().nth(2).unwrap_or(cx.memo);
            name_file::check(file, root, &[("the archive", root), ("the workspace", workspace)])?;
        }
        let made = survey::of(found, &names, Some(cx.memo), name_file.is_some(), &|bytes| {
            cx.bytes(bytes);
            cx.check_cancelled()
        })?;
        if let Some(file) = name_file {
            name_file::write(file, root, &made)?;
        }
        if made.series.is_empty() {
            let (what, found, expected) = (self.place(), made.nothing_usable(), survey::WANTED.into());
            return Err(Error::Nothing { what, found, expected });
        }
        let other_rows = || (SeriesRow::to_batch(&made.series), FileRow::to_batch(&made.files));
        let (instances, (series, files)) = rayon::join(|| InstanceRow::to_batch(&made.instances), other_rows);
        let tables =
            Rows([(SeriesRow::TABLE, series), (InstanceRow::TABLE, instances)].map(|(name, batch)| (name.to_string(), batch)).into());
        let write_two = || tables.0.par_iter().try_for_each(|(name, batch)| table::write(cx.draft, name, batch));
        let write_all = || rayon::join(write_two, || table::write(cx.draft, FileRow::TABLE, &files));
        // The rows go while the tables are written: there are many.
        let rows = &tables;
        let tell = move || self.facts(&made, rows);
        let (content, ((two, files), facts)) = rayon::join(|| tables.content(), || rayon::join(write_all, tell));
        two.and(files)?;
        Ok(Facts { content: Some(content), ..facts })
    }
}

impl Index {
    /// An error is kept in lineage: a place that is there is not named in it under pseudonyms.
    fn place(&self) -> String {
        let is_hidden = self.deidentify == Deidentify::Basic && Path::new(&self.archive).exists();
        if is_hidden { "the archive".into() } else { format!("archive {}", self.archive) }
    }

    fn names(&self) -> Result<Names, Error> {
        if self.deidentify == Deidentify::None {
            return Ok(Names::Own);
        }
        keys::names(self.key_env.as_deref(), self.key_file.as_deref())
    }

    fn facts(&self, made: &Survey, tables: &Rows) -> Facts {
        let (series, instances, hidden_labels) = (&made.series, &made.instances, made.hidden_labels);
        let out = |(what, why): &(String, String)| Quarantined { what: what.clone(), why: why.clone() };
        let mut quarantined: Vec<Quarantined> = made.failed.iter().map(out).collect();
        for file in labels_of_no_image(series, instances) {
            quarantined.push(Quarantined { what: file, why: "labels of a series that is not in this archive".into() });
        }
        let count = |of: &dyn Fn(&SeriesRow) -> &str| {
            let mut n: BTreeMap<String, u64> = BTreeMap::new();
            series.iter().for_each(|s| *n.entry(of(s).to_string()).or_default() += 1);
            n
        };
        let [indexed, skipped, failed] = ["indexed", "skipped", "failed"].map(|verdict| made.n_of(verdict));
        let n_seen = made.files.len();
        let images: BTreeMap<String, u64> = series.iter().filter(|s| s.kind == "image").fold(BTreeMap::new(), |mut n, s| {
            *n.entry(s.modality.clone()).or_default() += 1;
            n
        });
        let irregular = series.iter().filter(|s| s.kind == "image" && s.irregular.is_some()).count();
        let list = |n: &BTreeMap<String, u64>| n.iter().map(|(what, n)| format!("{n} {what}")).collect::<Vec<_>>().join(", ");
        let mut report = vec![format!("{n_seen} files: {indexed} indexed, {skipped} skipped, {failed} failed")];
        if !made.classes.is_empty() {
            report.push(format!("skipped: {}", list(&made.classes)));
        }
        report.push(format!("series: {}", list(&count(&|s| &s.kind))));
        if irregular > 0 {
            report.push(format!("{irregular} image series lie on no regular grid: see the column irregular of the table series"));
        }
        if hidden_labels > 0 {
            report.push(format!("{hidden_labels} names of labels told who the patient is and are `label-…` now"));
        }
        if self.deidentify == Deidentify::Basic && !quarantined.is_empty() {
            report.push("files are named by pseudonyms: `name_file: PATH` writes which files they are".into());
        }
        if self.deidentify == Deidentify::Basic && self.key_env.is_none() && self.key_file.is_none() {
            report.push("pseudonyms are made without a secret: who knows an id can find its pseudonym (set key_env or key_file)".into());
        }
        // An archive without any image is one of labels, and nothing is missing from it.
        let is_asked = !images.is_empty() && series.iter().any(|s| s.kind == "nifti");
        let labels = is_asked.then(|| LabelIndex::of(tables)).and_then(Result::ok);
        let alone = labels.map_or_else(Vec::new, |l| l.nifti_of_no_image(series));
        if !alone.is_empty() {
            report.push(format!("{} NIfTI files are called like no image and lie beside none", alone.len()));
        }
        Facts { quarantined, ..Facts::default() }
            .with("seen", n_seen)
            .with("indexed", indexed)
            .with("skipped", skipped)
            .with("failed", failed)
            .with("skipped_classes", &made.classes)
            .with("kinds", count(&|s| &s.kind))
            .with("images", images)
            .with("irregular", irregular)
            .with("nifti_of_no_image", alone)
            .with("hidden_labels", hidden_labels)
            .with("report", report)
    }
}

/// The files of segmentations and structure sets that were drawn on series that are not there, while no image series of their study or frame of
/// reference could be meant. An archive without any image is one of labels, and nothing is missing from it.
fn labels_of_no_image(series: &[SeriesRow], instances: &[InstanceRow]) -> Vec<String> {
    let of_images =
        |of: fn(&SeriesRow) -> Option<&str>| -> HashSet<&str> { series.iter().filter(|s| s.kind == "image").filter_map(of).collect() };
    let (images, studies) = (of_images(|s| Some(&s.series)), of_images(|s| Some(&s.study)));
    let frames = of_images(|s| s.frame_of_reference.as_deref());
    let is_meant = |label: &SeriesRow| {
        let same_frame = label.frame_of_reference.as_deref().is_some_and(|f| frames.contains(f));
        same_frame || studies.contains(label.study.as_str()) || label.references.iter().any(|r| images.contains(r.as_str()))
    };
    let is_lost = |s: &&SeriesRow| matches!(s.kind.as_str(), "seg" | "rtstruct") && !is_meant(s);
    let lost: BTreeSet<(&str, i64)> =
        series.iter().filter(|_| !images.is_empty()).filter(is_lost).map(|s| (s.series.as_str(), s.volume)).collect();
    instances.iter().filter(|i| lost.contains(&(i.series.as_str(), i.volume))).map(|i| i.file.clone()).collect()
}

fn no_folder(e: &std::io::Error) -> String {
    match e.kind() {
        std::io::ErrorKind::NotFound => "no such folder".into(),
        _ => format!("a folder that cannot be read ({e})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_need_an_image_that_could_be_meant() {
        let row = |kind: &str, series: &str, study: &str, references: &[&str]| SeriesRow {
            kind: kind.into(),
            series: series.into(),
            study: study.into(),
            references: references.iter().map(|r| r.to_string()).collect(),
            ..SeriesRow::default()
        };
        let file = |series: &str| InstanceRow { series: series.into(), file: format!("{series}.dcm"), ..InstanceRow::default() };
        let labels =
            [row("seg", "of the image", "other", &["i"]), row("seg", "of the study", "s", &["gone"]), row("seg", "lost", "t", &["gone"])];
        let files = ["of the image", "of the study", "lost"].map(file);
        assert!(labels_of_no_image(&labels, &files).is_empty(), "an archive of labels");
        let with_image = [vec![row("image", "i", "s", &[])], labels.to_vec()].concat();
        assert_eq!(labels_of_no_image(&with_image, &files), ["lost.dcm"]);
    }
}
