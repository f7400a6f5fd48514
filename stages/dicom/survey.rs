//! An archive, looked through: its series and instances, and a verdict on every file of it, members of containers among them. Seen = indexed + skipped +
//! failed, for whoever makes something of the archive.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use voxmill_schemas::tables::{FileRow, InstanceRow, SeriesRow};

use super::catalog::{self, Catalog, Outcome};
use super::names::Names;
use super::rows::{self, Lost};
use super::walk::Found;
use super::{classes, places};
use crate::error::Error;

/// What an archive is to hold, at least.
pub const WANTED: &str = "at least one DICOM image, DICOM SEG, RTSTRUCT or NIfTI file";

/// What an archive holds.
#[derive(Debug, Default)]
pub struct Survey {
    pub series: Vec<SeriesRow>,
    pub instances: Vec<InstanceRow>,
    /// One row a file.
    pub files: Vec<FileRow>,
    /// Files that cannot be used, and why: unreadable ones first.
    pub failed: Vec<(String, String)>,
    /// Skipped files by what they are.
    pub classes: BTreeMap<String, u64>,
    /// Names of labels that told who the patient is.
    pub hidden_labels: u64,
    /// Skipped files with pixels that are no slices (whole slides, videos).
    pub others: Vec<Other>,
    /// What each file goes by, and its place in the archive; only where that was asked for.
    pub places: Vec<(String, String)>,
    lost: Lost,
}

/// A DICOM file with pixels that nothing is read of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// What messages and tables call it.
    pub file: String,
    pub class: String,
    pub path: PathBuf,
    pub member: Option<String>,
}

/// - `memo`: a folder for what may be lost
/// - `has_places`: whether it is kept where the files are
/// - `step`: told the bytes of every file that is opened; an error stops the work
pub fn of(
    mut found: Found,
    names: &Names,
    memo: Option<&Path>,
    has_places: bool,
    step: &(dyn Fn(u64) -> Result<(), Error> + Sync),
) -> Result<Survey, Error> {
    let unreadable = std::mem::take(&mut found.unreadable);
    let (catalog, news) = catalog::read(found, names, memo, step)?;
    let missing = catalog::missing(&catalog);
    let n_seen = catalog.entries.len() + unreadable.len() + missing.len();
    let mut out = Survey::default();
    if has_places {
        let found = catalog.entries.iter().map(|e| e.seen.place()).chain(unreadable.iter().map(|(file, _)| file.into()));
        out.places = found.chain(missing.iter().map(|file| file.into())).map(|place| (names.file(&place), place.into_owned())).collect();
        out.places.sort_by(|a, b| a.1.cmp(&b.1));
    }
    unreadable.into_iter().for_each(|(file, why)| out.lost(&file, names.file(&file), why));
    missing.iter().for_each(|file| out.lost(file, names.file(file), "named by DICOMDIR, not there".into()));
    out.verdicts(&catalog, names);
    let keep = || news.iter().for_each(|news| news.keep(&catalog));
    let (made, ()) = rayon::join(|| rows::of(&catalog, &out.lost, names), keep);
    out.files.reserve(n_seen);
    made.indexed.into_iter().for_each(|(path, why)| out.files.push(FileRow { path, verdict: "indexed".into(), why }));
    made.copies.into_iter().for_each(|(file, why)| out.skip(file, why, "copy"));
    made.conflicts.into_iter().for_each(|(file, why)| out.fail(file, why));
    (out.series, out.instances, out.hidden_labels) = (made.series, made.instances, made.hidden_labels);
    rayon::join(|| out.files.par_sort_by(|a, b| a.path.cmp(&b.path)), || drop(catalog));
    debug_assert_eq!(n_seen, out.files.len());
    Ok(out)
}

impl Survey {
    pub fn n_of(&self, verdict: &str) -> usize {
        self.files.iter().filter(|f| f.verdict == verdict).count()
    }

    /// What there is instead of anything usable.
    pub fn nothing_usable(&self) -> String {
        if self.files.is_empty() {
            return "no file at all".into();
        }
        let mut parts: Vec<String> = self.classes.iter().map(|(class, n)| format!("{n} {class}")).collect();
        if !self.failed.is_empty() {
            parts.push(format!("{} broken", self.failed.len()));
        }
        let first = self.failed.first().map(|(file, why)| format!("; the first broken one, {file}: {why}")).unwrap_or_default();
        format!("only {}{first}", parts.join(", "))
    }

    fn skip(&mut self, path: String, why: String, class: &str) {
        *self.classes.entry(class.into()).or_default() += 1;
        self.files.push(FileRow { path, verdict: "skipped".into(), why });
    }

    fn fail(&mut self, path: String, why: String) {
        self.failed.push((path.clone(), why.clone()));
        self.files.push(FileRow { path, verdict: "failed".into(), why });
    }

    /// A file that does not say its series.
    fn lost(&mut self, place: &str, path: String, why: String) {
        self.lost.of_folder.entry(rows::folder_of(place).to_string()).or_default().push(path.clone());
        self.fail(path, why);
    }

    /// The verdicts on what has no place in the index; those on the rest come out when the rows are made.
    fn verdicts(&mut self, catalog: &Catalog, names: &Names) {
        let root = std::path::absolute(&catalog.root).unwrap_or_else(|_| catalog.root.clone());
        for e in &catalog.entries {
            let name = || names.file(&e.seen.place());
            match &e.outcome {
                Outcome::Nifti | Outcome::Dicom(_) => {}
                Outcome::Skipped { class, why } => {
                    if classes::has_other_pixels(class) {
                        let (path, member) = places::written(names, &root, &e.seen);
                        self.others.push(Other { file: name(), class: class.clone(), path: path.into(), member });
                    }
                    self.skip(name(), why.clone(), class);
                }
                Outcome::Dicomdir(files) => self.skip(name(), format!("DICOMDIR of {} files", files.len()), "DICOMDIR"),
                Outcome::Failed { why, series: Some(series) } => {
                    self.lost.of_series.entry(series.clone()).or_default().insert(name(), why.clone());
                    self.fail(name(), why.clone());
                }
                Outcome::Failed { why, series: None } => self.lost(&e.seen.place(), name(), why.clone()),
                Outcome::Unreadable(why) => self.lost(&e.seen.place(), name(), format!("cannot be read: {why}")),
            }
        }
    }
}
