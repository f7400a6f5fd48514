//! What became of every series, label and file of an archive that was converted.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde::Deserialize;
use serde_json::Value;
use voxmill_schemas::artifact::Manifest;
use voxmill_schemas::tables::{ArchiveRow, DeidentifiedRow, InstanceRow, SeriesRow};
use voxmill_stages::error::Error;
use voxmill_stages::labels::{FileVerdict, Outcome};
use voxmill_stages::stage::{Input, Rows};
use voxmill_stages::table;

use super::{FILES, IMAGES, INDEX, LABELS, words};
use crate::plan::Plan;
use crate::run::{NodeEnd, Summary};

/// The rows of the report, and the volumes that pictures are taken of.
#[derive(Default)]
pub struct Verdicts {
    pub rows: Vec<ArchiveRow>,
    /// Row → its volume, of the first repeat.
    pub made: Vec<(usize, Input)>,
}

/// - `tables`: of the index
pub fn of(plan: &Plan, summary: &Summary, tables: &Rows) -> Result<Verdicts, Error> {
    let node = |name: &str| summary.nodes.iter().find(|n| n.name == name);
    let mut series: Vec<SeriesRow> = table::rows_of(tables)?;
    // Images, their labels, and what was never meant to be converted; in each kind the order of the index.
    series.sort_by_key(|s| ["image", "seg", "rtstruct"].iter().position(|kind| *kind == s.kind).unwrap_or(3));
    if node(IMAGES).is_none() {
        let rows = series.iter().map(row_of).collect();
        return dicom(rows, node(FILES), tables).map(|rows| Verdicts { rows, made: Vec::new() });
    }
    let cases = cases(plan, tables)?;
    let by_case = |name: &str| node(name).map(ByCase::of);
    let [of_images, of_labels, of_files] = [IMAGES, LABELS, FILES].map(by_case);
    let mut out = Verdicts::default();
    for s in &series {
        let mut row = row_of(s);
        let case = cases.get(&(s.series.clone(), s.volume));
        match (s.kind.as_str(), case) {
            ("image", Some(case)) => {
                let refused = [&of_images, &of_labels, &of_files].into_iter().flatten().find_map(|n| n.refused.get(case.as_str()).copied());
                let volume = [&of_labels, &of_images].into_iter().flatten().find_map(|n| n.having(case, "spacing_mm"));
                if let Some(volume) = volume {
                    describe(&mut row, &volume.manifest);
                    // One picture of a series that was taken many times.
                    if s.repeat.unwrap_or(0) == 0 {
                        out.made.push((out.rows.len(), volume.clone()));
                    }
                }
                match of_files.as_ref().and_then(|n| n.having(case, "files")) {
                    Some(files) => {
                        row.verdict = "converted".into();
                        row.files = texts(&files.manifest, "files");
                    }
                    None => {
                        // A full disk is no fault of a series.
                        row.verdict = if refused.is_some() { "refused" } else { "left out" }.into();
                        row.why = Some(words::of(refused.unwrap_or("the run stopped before it")));
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

/// What a node gave, and refused, by case: a look for each series through all of them would be quadratic.
struct ByCase<'a> {
    items: HashMap<&'a str, &'a Input>,
    refused: HashMap<&'a str, &'a str>,
}

impl<'a> ByCase<'a> {
    fn of(n: &'a NodeEnd) -> Self {
        let case = |i: &'a Input| Some((i.manifest.case.as_ref()?.0.as_str(), i));
        // Of several reasons the first.
        let refused = n.quarantined.iter().rev().map(|q| (q.what.as_str(), q.why.as_str())).collect();
        Self { items: n.items.iter().filter_map(case).collect(), refused }
    }

    fn having(&self, case: &str, fact: &str) -> Option<&'a Input> {
        self.items.get(case).copied().filter(|i| i.manifest.facts.contains_key(fact))
    }
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
    row.notes = texts(m, "notes").iter().chain(&texts(m, "warnings")).map(|note| words::of(note)).collect();
    row.labels_why = text("labels_why").map(|why| words::of(&why));
    row.labels = m.facts.get("classes").and_then(Value::as_object).map(|c| c.keys().cloned().collect()).unwrap_or_default();
}

/// Labels are converted with the images they were drawn on. Each file has the verdict of its own; one that labels several images the best of them.
fn labelled(out: &mut Verdicts, node: &NodeEnd, series: &[SeriesRow]) {
    let told = told(&node.items);
    let images: HashSet<&str> = series.iter().filter(|s| s.kind == "image").map(|s| s.series.as_str()).collect();
    for (row, s) in out.rows.iter_mut().zip(series).filter(|(r, _)| matches!(r.kind.as_str(), "seg" | "rtstruct")) {
        let (verdict, why) = match told.get(&(s.series.clone(), s.volume)) {
            Some((Outcome::Drawn, _)) => ("converted", None),
            Some((Outcome::Aside, _)) => ("left out", Some("another file of this image has the same labels in a better form")),
            Some((Outcome::Refused, why)) => ("refused", Some(why.as_str())),
            None if s.references.iter().any(|r| images.contains(r.as_str())) => {
                ("refused", Some("the image that it was drawn on was not converted"))
            }
            None => ("refused", Some("the image that it was drawn on is not in this archive")),
        };
        (row.verdict, row.why) = (verdict.into(), why.map(words::of));
    }
}

/// (series, volume) of each label file → what became of it, and why. A reason of its own goes before one that its image has.
fn told(items: &[Input]) -> HashMap<(String, i64), (Outcome, String)> {
    let mut out: HashMap<(String, i64), (Outcome, bool, String)> = HashMap::new();
    for facts in items.iter().map(|i| &i.manifest.facts) {
        let verdicts = facts.get("label_verdicts").and_then(|v| Vec::<FileVerdict>::deserialize(v).ok()).unwrap_or_default();
        let of_image = facts.get("labels_why").and_then(Value::as_str).unwrap_or_default();
        for v in verdicts {
            let is_own = v.why.is_some();
            let why = v.why.unwrap_or_else(|| format!("the labels of its image are drawn together or not at all: {of_image}"));
            let new = (v.outcome, is_own, why);
            match out.entry((v.series, v.volume)) {
                Entry::Occupied(mut best) if (new.0, new.1) > (best.get().0, best.get().1) => _ = best.insert(new),
                Entry::Occupied(_) => {}
                Entry::Vacant(first) => _ = first.insert(new),
            }
        }
    }
    out.into_iter().map(|(file, (outcome, _, why))| (file, (outcome, why))).collect()
}

/// De-identified DICOM: what became of the files of each series. A file has one name in both tables; of files that were left out nothing else is known, and two
/// studies may share the UID of a series.
/// - `tables`: of the index
fn dicom(mut rows: Vec<ArchiveRow>, files: Option<&NodeEnd>, tables: &Rows) -> Result<Vec<ArchiveRow>, Error> {
    let told: Vec<DeidentifiedRow> = match files.and_then(|n| n.items.first()) {
        Some(item) => table::rows_of(&table::open(&item.dir)?)?,
        None => Vec::new(),
    };
    let by_file: HashMap<&str, &DeidentifiedRow> = told.iter().map(|t| (t.file.as_str(), t)).collect();
    let instances: Vec<InstanceRow> = table::rows_of(tables)?;
    let mut by_volume: HashMap<(&str, i64), Vec<&DeidentifiedRow>> = HashMap::new();
    for i in &instances {
        by_volume.entry((&i.series, i.volume)).or_default().extend(by_file.get(i.file.as_str()));
    }
    for row in &mut rows {
        let mine = by_volume.get(&(row.series.as_str(), row.volume)).map_or(&[][..], Vec::as_slice);
        let is_written = |t: &&DeidentifiedRow| matches!(t.verdict.as_str(), "written" | "unchanged");
        let bad = mine.iter().find(|t| matches!(t.verdict.as_str(), "refused" | "failed"));
        let folders: BTreeSet<String> =
            mine.iter().copied().filter(is_written).map(|t| format!("{}/{}/{}", t.patient, t.study, t.series)).collect();
        let verdict = if !folders.is_empty() {
            "converted"
        } else if bad.is_some() {
            "refused"
        } else {
            "left out"
        };
        row.verdict = verdict.into();
        row.why = bad.map(|t| t.why.clone());
        row.files = folders.into_iter().collect();
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;
    use voxmill_schemas::artifact::{ContentHash, Key, Kind, Recipe};

    use super::*;

    fn labelled_image(facts: Value) -> Input {
        let manifest = Manifest {
            key: Key::of(b""),
            content: ContentHash::of(b""),
            kind: Kind::Volume,
            case: None,
            recipe: Recipe { stage: "annotate".into(), version: 1, config: Value::Null, inputs: BTreeMap::new(), seed: 0 },
            input_keys: BTreeMap::new(),
            facts: facts.as_object().cloned().unwrap_or_default(),
            files: BTreeMap::new(),
            bytes: 0,
            layout: 1,
        };
        Input { dir: Default::default(), manifest: Arc::new(manifest), rows: None }
    }

    #[test]
    fn a_bad_label_file_does_not_speak_for_the_others_of_its_series() {
        let file =
            |volume: i64, outcome: &str, why: Option<&str>| json!({ "series": "s", "volume": volume, "outcome": outcome, "why": why });
        let told = told(&[
            labelled_image(json!({ "label_verdicts": [file(1, "drawn", None), file(2, "refused", Some("torn")), file(3, "aside", None)] })),
            labelled_image(json!({ "labels_why": "two draw it", "label_verdicts": [file(1, "refused", None), file(4, "refused", None)] })),
        ]);
        let of = |volume: i64| told.get(&("s".to_string(), volume)).map(|(outcome, why)| (*outcome, why.as_str()));
        assert_eq!(of(1).map(|v| v.0), Some(Outcome::Drawn), "on one of two images");
        assert_eq!(of(2), Some((Outcome::Refused, "torn")));
        assert_eq!(of(3).map(|v| v.0), Some(Outcome::Aside));
        assert!(of(4).is_some_and(|v| v.0 == Outcome::Refused && v.1.ends_with("two draw it")), "{told:?}");
        assert_eq!(of(5), None);
    }
}
