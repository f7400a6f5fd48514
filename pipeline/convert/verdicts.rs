//! What became of every series, label and file of an archive that was converted.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use voxmill_schemas::artifact::Manifest;
use voxmill_schemas::tables::{ArchiveRow, DeidentifiedRow, InstanceRow, SeriesRow};
use voxmill_stages::error::Error;
use voxmill_stages::stage::{Input, Rows};
use voxmill_stages::table;

use super::{FILES, IMAGES, INDEX, LABELS};
use crate::plan::Plan;
use crate::run::{NodeEnd, Summary};

/// The rows of the report, and the volumes that pictures are taken of.
#[derive(Default)]
pub struct Verdicts {
    pub rows: Vec<ArchiveRow>,
    /// Row → its volume.
    pub made: Vec<(usize, Input)>,
}

/// - `tables`: of the index
pub fn of(plan: &Plan, summary: &Summary, tables: &Rows) -> Result<Verdicts, Error> {
    let node = |name: &str| summary.nodes.iter().find(|n| n.name == name);
    let mut series: Vec<SeriesRow> = table::rows_of(tables)?;
    // Images, their labels, and what was never meant to be converted; in each kind the order of the index.
    series.sort_by_key(|s| ["image", "seg", "rtstruct"].iter().position(|kind| *kind == s.kind).unwrap_or(3));
    let Some(images) = node(IMAGES) else {
        let rows = series.iter().map(row_of).collect();
        return dicom(rows, node(FILES)).map(|rows| Verdicts { rows, made: Vec::new() });
    };
    let cases = cases(plan, tables)?;
    let mut out = Verdicts::default();
    for s in &series {
        let mut row = row_of(s);
        let case = cases.get(&(s.series.clone(), s.volume));
        match (s.kind.as_str(), case) {
            ("image", Some(case)) => {
                let last = [FILES, LABELS, IMAGES].into_iter().filter_map(node).find_map(|n| volume_of(n, case).or(files_of(n, case)));
                let refused = [IMAGES, LABELS, FILES].into_iter().filter_map(node).find_map(|n| refusal(n, case));
                if let Some(volume) = [LABELS, IMAGES].into_iter().filter_map(node).find_map(|n| volume_of(n, case)) {
                    describe(&mut row, &volume.manifest);
                    out.made.push((out.rows.len(), volume.clone()));
                }
                let files = node(FILES).and_then(|n| files_of(n, case));
                match (files, refused, last) {
                    (Some(files), _, _) => {
                        row.verdict = "converted".into();
                        row.files = texts(&files.manifest, "files");
                    }
                    (None, why, _) => {
                        row.verdict = "refused".into();
                        let stopped = || images.failed.clone().unwrap_or_else(|| "the run stopped before it".into());
                        row.why = Some(why.unwrap_or_else(stopped));
                    }
                }
            }
            ("image", None) => {
                row.verdict = "left out".into();
                row.why = Some("--where does not choose it".into());
            }
            _ => {
                row.verdict = "left out".into();
                let is_nifti = row.kind == "nifti";
                row.why = Some(if is_nifti { "a NIfTI file: it is one already" } else { "labels are drawn with --labels" }.into());
            }
        }
        out.rows.push(row);
    }
    if let Some(labels) = node(LABELS) {
        labelled(&mut out, labels, &series);
    }
    Ok(out)
}

/// (series, volume) → the case that it is part of.
fn cases(plan: &Plan, tables: &Rows) -> Result<BTreeMap<(String, i64), String>, Error> {
    let Some(node) = plan.nodes.iter().find(|n| n.name == IMAGES) else { return Ok(BTreeMap::new()) };
    let port = node.def.info.ports[0].name.to_string();
    let mut out = BTreeMap::new();
    // No series chosen is an error of the stage; it was told when the node failed.
    for opened in node.stage.cases(&[(port.clone(), tables.clone())].into()).unwrap_or_default() {
        for s in opened.rows.get(&port).map(table::rows_of::<SeriesRow>).transpose()?.unwrap_or_default() {
            out.insert((s.series, s.volume), opened.case.0.clone());
        }
    }
    Ok(out)
}

fn item<'a>(n: &'a NodeEnd, case: &str) -> Option<&'a Input> {
    n.items.iter().find(|i| i.manifest.case.as_ref().is_some_and(|c| c.0 == case))
}

fn volume_of<'a>(n: &'a NodeEnd, case: &str) -> Option<&'a Input> {
    item(n, case).filter(|i| i.manifest.facts.contains_key("spacing_mm"))
}

fn files_of<'a>(n: &'a NodeEnd, case: &str) -> Option<&'a Input> {
    item(n, case).filter(|i| i.manifest.facts.contains_key("files"))
}

fn refusal(n: &NodeEnd, case: &str) -> Option<String> {
    n.quarantined.iter().find(|q| q.what == case).map(|q| q.why.clone())
}

fn texts(m: &Manifest, fact: &str) -> Vec<String> {
    let list = m.facts.get(fact).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|v| v.as_str().map(String::from)).collect()
}

fn row_of(s: &SeriesRow) -> ArchiveRow {
    ArchiveRow {
        patient: s.patient.clone(),
        study: s.study.clone(),
        series: s.series.clone(),
        volume: s.volume,
        kind: s.kind.clone(),
        modality: s.modality.clone(),
        description: s.description.clone(),
        body_part: s.body_part.clone(),
        n_instances: s.n_instances,
        n_frames: s.n_frames,
        labels: s.labels.clone(),
        ..ArchiveRow::default()
    }
}

fn describe(row: &mut ArchiveRow, m: &Manifest) {
    let axes = |fact: &str| -> Vec<f64> {
        let v = m.facts.get(fact);
        ["z", "y", "x"].iter().filter_map(|a| v?.get(a)?.as_f64()).collect()
    };
    let text = |fact: &str| m.facts.get(fact).and_then(Value::as_str).map(String::from);
    row.size_zyx = axes("size").into_iter().map(|n| n as i64).collect();
    row.spacing_zyx_mm = axes("spacing_mm");
    row.tilt_degrees = m.facts.get("tilt_degrees").and_then(Value::as_f64);
    row.dtype = text("dtype");
    row.unit = text("unit");
    row.channels = texts(m, "channels");
    row.notes = texts(m, "notes").into_iter().chain(texts(m, "warnings")).collect();
    row.labels_why = text("labels_why");
    row.labels = m.facts.get("classes").and_then(Value::as_object).map(|c| c.keys().cloned().collect()).unwrap_or_default();
}

/// Labels are converted with the images they were drawn on.
fn labelled(out: &mut Verdicts, node: &NodeEnd, series: &[SeriesRow]) {
    let of = |fact: &str| node.items.iter().flat_map(|i| texts(&i.manifest, fact)).collect::<BTreeSet<String>>();
    let (drawn, aside) = (of("label_series"), of("label_series_aside"));
    let fact = |i: &Input, name: &str| i.manifest.facts.get(name).and_then(Value::as_str).unwrap_or_default().to_string();
    let failed: BTreeMap<String, String> =
        node.items.iter().map(|i| (fact(i, "series"), fact(i, "labels_why"))).filter(|(_, why)| !why.is_empty()).collect();
    let images: BTreeSet<&str> = series.iter().filter(|s| s.kind == "image").map(|s| s.series.as_str()).collect();
    for (row, s) in out.rows.iter_mut().zip(series).filter(|(r, _)| matches!(r.kind.as_str(), "seg" | "rtstruct")) {
        let refused = || s.references.iter().find_map(|r| failed.get(r)).cloned();
        (row.verdict, row.why) = if drawn.contains(&s.series) {
            ("converted".into(), None)
        } else if aside.contains(&s.series) {
            ("left out".into(), Some("another file of this image has the same labels in a better form".into()))
        } else if let Some(why) = refused() {
            ("refused".into(), Some(why))
        } else if s.references.iter().any(|r| images.contains(r.as_str())) {
            ("refused".into(), Some("the image that it was drawn on was not converted".into()))
        } else {
            ("refused".into(), Some("the image that it was drawn on is not in this archive".into()))
        };
    }
}

/// De-identified DICOM: what became of the files of each series.
fn dicom(mut rows: Vec<ArchiveRow>, files: Option<&NodeEnd>) -> Result<Vec<ArchiveRow>, Error> {
    let told: Vec<DeidentifiedRow> = match files.and_then(|n| n.items.first()) {
        Some(item) => table::rows_of(&table::open(&item.dir)?)?,
        None => Vec::new(),
    };
    let mut by_series: BTreeMap<&str, Vec<&DeidentifiedRow>> = BTreeMap::new();
    told.iter().for_each(|t| by_series.entry(&t.series).or_default().push(t));
    for row in &mut rows {
        let mine = by_series.get(row.series.as_str()).map_or(&[][..], Vec::as_slice);
        let is_written = |t: &&&DeidentifiedRow| matches!(t.verdict.as_str(), "written" | "unchanged");
        let bad = mine.iter().find(|t| matches!(t.verdict.as_str(), "refused" | "failed"));
        row.verdict = if mine.iter().any(|t| is_written(&t)) {
            "converted"
        } else if bad.is_some() {
            "refused"
        } else {
            "left out"
        }
        .into();
        row.why = bad.map(|t| t.why.clone());
        row.files = if row.verdict == "converted" { vec![format!("{}/{}/{}", row.patient, row.study, row.series)] } else { Vec::new() };
    }
    Ok(rows)
}

/// The instances as they may leave the workspace: without the real places of files where names are hidden.
pub fn instances(mut rows: Vec<InstanceRow>, is_hidden: bool) -> Vec<InstanceRow> {
    for row in rows.iter_mut().filter(|_| is_hidden) {
        row.path.clear();
        row.seen.clear();
        row.member = None;
    }
    rows
}

/// Facts of the index.
pub fn of_index(summary: &Summary) -> Option<&Input> {
    summary.nodes.iter().find(|n| n.name == INDEX).and_then(|n| n.items.first())
}
