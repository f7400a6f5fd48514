//! The end of a conversion in counts that reconcile: for people on the terminal, for programs as one JSON object.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value, json};
use voxmill_schemas::tables::{ArchiveRow, FileRow};
use voxmill_stages::stage::{Input, Quarantined};

use super::verdicts::Verdicts;
use super::{FILES, Wanted, words};
use crate::cli::print;
use crate::progress::{Progressing, Style};
use crate::run::{NO_CASE, NOT_RUN, Summary};

/// Refusals shown on the terminal; the report has them all.
const SHOWN: usize = 12;
/// Files that cannot be read.
const FILES_SHOWN: usize = 10;

/// What became of an archive.
#[derive(Default)]
pub struct Told {
    pub rows: Vec<ArchiveRow>,
    /// Row → its volume.
    pub made: Vec<(usize, Input)>,
    /// Facts of the index.
    index: Map<String, Value>,
    pub report: Option<PathBuf>,
    /// The verdict on every file.
    pub file_table: Option<PathBuf>,
    /// Files that cannot be read, by what they go by.
    pub bad_files: Vec<FileRow>,
    /// Files of an earlier run that the archive (or `--where`) no longer gives.
    pub removed: usize,
    /// `--to dicom`: files that were left out, and why.
    left_out: Vec<Quarantined>,
    /// `--to dicom`: indexed DICOM files by what became of them.
    dicom: BTreeMap<String, u64>,
    /// Why nothing could be done at all.
    failed: Vec<String>,
    cancelled: bool,
    is_idle: bool,
}

/// seen = indexed + skipped + failed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Files {
    pub seen: u64,
    pub indexed: u64,
    pub skipped: u64,
    pub failed: u64,
    /// Skipped files by what they are.
    pub classes: BTreeMap<String, u64>,
}

/// all = converted + refused + left out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    pub all: usize,
    pub converted: usize,
    pub refused: usize,
    pub left_out: usize,
}

impl Told {
    pub fn of(summary: &Summary, index: Option<Map<String, Value>>, verdicts: Verdicts) -> Self {
        // What was not tried for the failure of another is told by that one.
        let failed =
            summary.nodes.iter().filter_map(|n| n.failed.as_ref()).filter(|why| !why.starts_with(NOT_RUN)).map(|why| words::of(why));
        let of_dicom = summary.nodes.iter().filter(|n| n.name == FILES).flat_map(|n| &n.items).find(|i| i.manifest.case.is_none());
        let dicom = of_dicom.and_then(|i| serde_json::from_value(i.manifest.facts.get("files")?.clone()).ok());
        Self {
            dicom: dicom.unwrap_or_default(),
            rows: verdicts.rows,
            made: verdicts.made,
            index: index.unwrap_or_default(),
            report: None,
            file_table: None,
            bad_files: Vec::new(),
            removed: 0,
            left_out: summary
                .nodes
                .iter()
                .filter(|n| n.name == FILES && n.items.iter().all(|i| i.manifest.case.is_none()))
                .flat_map(|n| n.quarantined.clone())
                .collect(),
            failed: failed.collect(),
            cancelled: summary.cancelled,
            is_idle: summary.is_idle(),
        }
    }

    pub fn files(&self) -> Files {
        let n = |name: &str| self.index.get(name).and_then(Value::as_u64).unwrap_or(0);
        let classes = self.index.get("skipped_classes").and_then(|v| serde_json::from_value(v.clone()).ok()).unwrap_or_default();
        Files { seen: n("seen"), indexed: n("indexed"), skipped: n("skipped"), failed: n("failed"), classes }
    }

    fn tally(&self, is: impl Fn(&ArchiveRow) -> bool) -> Tally {
        let mut t = Tally::default();
        for row in self.rows.iter().filter(|r| is(r)) {
            t.all += 1;
            *match row.verdict.as_str() {
                "converted" => &mut t.converted,
                "refused" => &mut t.refused,
                _ => &mut t.left_out,
            } += 1;
        }
        t
    }

    pub fn images(&self) -> Tally {
        self.tally(|r| r.kind == "image")
    }

    pub fn labels(&self) -> Tally {
        self.tally(|r| matches!(r.kind.as_str(), "seg" | "rtstruct"))
    }

    /// They are NIfTI already: none is converted.
    pub fn nifti(&self) -> Tally {
        self.tally(|r| r.kind == "nifti")
    }

    pub fn tell(&self, wanted: &Wanted, ui: &Progressing, code: u8) {
        if wanted.is_json() {
            return print(&serde_json::to_string_pretty(&self.json(wanted, code)).expect("plain data"));
        }
        if self.cancelled {
            return eprintln!("\nstopped. Nothing half-made is left; the same command goes on where this one stopped.");
        }
        let how = if self.is_idle { "nothing to convert: " } else { "" };
        let refused: Vec<&ArchiveRow> = self.rows.iter().filter(|r| r.verdict == "refused").collect();
        // Why each was refused is told below.
        let is_told = |why: &&String| why.starts_with(NO_CASE) && !refused.is_empty();
        self.failed.iter().filter(|why| !is_told(why)).for_each(|why| eprintln!("error: {how}{why}"));
        if self.is_idle {
            return;
        }
        if self.failed.iter().any(|why| is_told(&why)) {
            eprintln!("error: nothing was converted: each image is refused, for the reason below");
        }
        self.tell_bad_files();
        if !refused.is_empty() {
            eprintln!();
        }
        // Volumes of one series that fail for one reason are one line.
        let lines: Vec<&[&ArchiveRow]> = refused.chunk_by(|a, b| a.series == b.series && a.why == b.why).collect();
        for same in lines.iter().take(SHOWN) {
            let r = same[0];
            let volume = match same.len() {
                1 if r.volume > 0 => format!(" volume {}", r.volume),
                1 => String::new(),
                n => format!(" ({n} volumes)"),
            };
            eprintln!("refused {}{volume}: {}", r.series, r.why.as_deref().unwrap_or_default());
        }
        if lines.len() > SHOWN {
            eprintln!("and {} more: see the report", lines.len() - SHOWN);
        }
        for q in self.left_out.iter().take(SHOWN) {
            eprintln!("left out {}: {}", q.what, q.why);
        }
        if self.left_out.len() > SHOWN {
            eprintln!("and {} more files: --json lists all", self.left_out.len() - SHOWN);
        }
        let is_any_out = !lines.is_empty() || !self.left_out.is_empty() || self.files().failed > 0;
        if is_any_out && wanted.is_hidden() && !wanted.has_name_file() {
            eprintln!("files and series go by pseudonyms: --name-file FILE writes which files these are, for you alone");
        }
        if wanted.is_hidden() && !wanted.has_key() {
            eprintln!("warning: pseudonyms are made without a secret: who knows an id can find its pseudonym (--key-file FILE --new-key)");
        }
        if ui.style == Style::Quiet || self.index.is_empty() {
            return;
        }
        let f = self.files();
        let classes = f.classes.iter().map(|(what, n)| format!("{n} {what}")).collect::<Vec<_>>().join(", ");
        let classes = if classes.is_empty() { classes } else { format!(" ({classes})") };
        print("");
        print(&format!("files   {} seen = {} indexed + {} skipped{classes} + {} failed", f.seen, f.indexed, f.skipped, f.failed));
        let sum = |t: Tally| {
            let left_out = if t.left_out > 0 { format!(" + {} left out", t.left_out) } else { String::new() };
            format!("{} = {} converted + {} refused{left_out}", t.all, t.converted, t.refused)
        };
        if !self.dicom.is_empty() {
            let parts: Vec<String> = self.dicom.iter().filter(|(_, n)| **n > 0).rev().map(|(what, n)| format!("{n} {what}")).collect();
            print(&format!("dicom   {} = {}", self.dicom.values().sum::<u64>(), parts.join(" + ")));
        }
        print(&format!("images  {}", sum(self.images())));
        let (labels, nifti) = (self.labels(), self.nifti());
        if wanted.has_labels() {
            print(&format!("labels  {}", sum(labels)));
        } else if labels.left_out > 0 && self.dicom.is_empty() {
            print(&format!("labels  {} left out: --labels draws them on their images", labels.left_out));
        }
        if nifti.all > 0 {
            print(&format!("nifti   {} left out: they are NIfTI already, and lie where they lay", nifti.all));
        }
        let noted = self.rows.iter().filter(|r| r.verdict == "converted" && !r.notes.is_empty()).count();
        if noted > 0 {
            print(&format!("notes   {noted} of what was converted: see the report and the sidecars"));
        }
        if self.removed > 0 {
            print(&format!("removed {} files of an earlier run that are no longer made", self.removed));
        }
        if let Some(report) = &self.report {
            print(&format!("report  {}", report.display()));
        }
    }

    /// Each failed file by name, also where nothing else is said; a name may hold what a terminal obeys.
    fn tell_bad_files(&self) {
        if self.bad_files.is_empty() {
            return;
        }
        eprintln!();
        self.bad_files.iter().take(FILES_SHOWN).for_each(|f| eprintln!("failed {}: {}", f.path.replace(char::is_control, "?"), f.why));
        if let (more @ 1.., Some(table)) = (self.bad_files.len().saturating_sub(FILES_SHOWN), &self.file_table) {
            eprintln!("and {more} more files that failed: --json lists them, and {} has the verdict on every file", table.display());
        }
    }

    fn json(&self, wanted: &Wanted, code: u8) -> Value {
        let f = self.files();
        let tally = |t: Tally| json!({ "all": t.all, "converted": t.converted, "refused": t.refused, "left_out": t.left_out });
        let refused: Vec<Value> = self
            .rows
            .iter()
            .filter(|r| r.verdict == "refused")
            .map(
                |r| json!({ "patient": r.patient, "study": r.study, "series": r.series, "volume": r.volume, "kind": r.kind, "why": r.why }),
            )
            .collect();
        json!({
            "voxmill": env!("CARGO_PKG_VERSION"),
            "exit_code": code,
            "format": wanted.format(),
            "out": wanted.out,
            "report": self.report,
            "files": { "seen": f.seen, "indexed": f.indexed, "skipped": f.skipped, "failed": f.failed, "skipped_classes": f.classes },
            "written": self.rows.iter().flat_map(|r| &r.files).collect::<std::collections::BTreeSet<_>>().len(),
            "dicom": self.dicom,
            "images": tally(self.images()),
            "labels": tally(self.labels()),
            "nifti": tally(self.nifti()),
            "refused": refused,
            "failed": self.bad_files.iter().map(|f| json!({ "file": f.path, "why": f.why })).collect::<Vec<_>>(),
            "left_out": self.left_out,
            "removed": self.removed,
            "keyed": wanted.has_key(),
            "errors": self.failed,
            "cancelled": self.cancelled,
        })
    }
}
