//! Judges predictions against truth, a row a case and class: Dice, HD95 in mm, normalised surface Dice, structures missed or invented. Both lie on one
//! grid or the case is refused; nothing is resampled behind the reader's back.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::{Kind, Port, Scope};
use voxmill_schemas::geometry::Geometry;
use voxmill_schemas::tables::{ScoreRow, SplitRow};

use crate::error::{Error, chain};
use crate::ops::metrics;
use crate::stage::{Cx, Facts, Finding, Info, Input, Inputs, Progress, Quarantined, Stage};
use crate::table;
use crate::volume::StoredVolume;

/// How predictions are judged.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Evaluate {
    /// Normalised surface Dice (NSD): how far two surfaces may lie apart and still agree, mm. 0 for a structure that only truth or only the prediction has.
    pub nsd_tolerance_mm: f64,
    /// A class of the truth whose voxels are not judged, whatever is predicted there: the one that the training ignored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore: Option<String>,
    /// HD95 of a structure that only truth or only the prediction has. There is no distance then: `none` leaves it out of the mean (and counts it
    /// under missed or spurious), `diagonal` punishes it with the diagonal of the image.
    pub penalty: Penalty,
    /// Which fold of the split names the parts, from 0.
    pub fold: u32,
}

impl Default for Evaluate {
    fn default() -> Self {
        Self { nsd_tolerance_mm: 2.0, ignore: None, penalty: Penalty::None, fold: 0 }
    }
}

/// What stands for a distance that does not exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Penalty {
    /// Nothing.
    #[default]
    None,
    /// The diagonal of the image, millimetres.
    Diagonal,
}

impl Stage for Evaluate {
    const INFO: Info = Info {
        name: "evaluate",
        version: 2,
        scope: Scope::Set,
        ports: &[
            Port { name: "truth", kind: Kind::Volume, required: true, about: "volumes with the labels of experts" },
            Port { name: "prediction", kind: Kind::Volume, required: true, about: "volumes with predicted labels on the same grids" },
            Port { name: "split", kind: Kind::Table, required: false, about: "parts to tell apart in the report" },
        ],
        gives: Kind::Table,
        summary: "judge predictions against truth: Dice, HD95 and NSD per case and class, missed and spurious structures",
        example: "uses: evaluate\nfrom: { truth: masks, prediction: seg, split: folds }\n",
        absent_in_inference: None,
    };

    fn check(&self) -> Vec<Finding> {
        if self.nsd_tolerance_mm >= 0.0 && self.nsd_tolerance_mm.is_finite() {
            return Vec::new();
        }
        let found = format!("a tolerance of {} mm", self.nsd_tolerance_mm);
        vec![Finding::error("nsd_tolerance_mm", found, "give 0 or more, such as 2")]
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let parts = match inputs.maybe("split") {
            Some(split) => parts(split, self.fold as i64)?,
            None => BTreeMap::new(),
        };
        let truths: BTreeMap<_, _> = inputs.all("truth").iter().map(|i| (&i.manifest.case, i)).collect();
        let pairs: Vec<(&Input, &Input)> =
            inputs.all("prediction").iter().filter_map(|p| Some((*truths.get(&p.manifest.case)?, p))).collect();
        if pairs.is_empty() {
            return Err(Error::Input {
                what: "evaluate".into(),
                found: format!(
                    "{} cases with truth and {} with a prediction, none with both",
                    truths.len(),
                    inputs.all("prediction").len()
                ),
                expected: "a case that has both".into(),
            });
        }
        let need = pairs.iter().map(|(t, _)| need_bytes(t)).max().unwrap_or(0).max(1);
        let side_by_side = (cx.memory_bytes / need).clamp(1, cx.jobs.max(1) as u64) as usize;
        let mut scores = Vec::new();
        let mut refused: Vec<(Quarantined, Error)> = Vec::new();
        for (at, some) in pairs.chunks(side_by_side).enumerate() {
            cx.check_cancelled()?;
            let judged: Vec<_> = some.par_iter().map(|(t, p)| self.judge(t, p, &parts)).collect();
            for ((truth, _), outcome) in some.iter().zip(judged) {
                cx.bytes(2 * voxels(truth));
                match outcome {
                    Ok(rows) => scores.extend(rows),
                    Err(e) if e.is_of_the_moment() => return Err(e),
                    Err(e) => refused.push((Quarantined { what: name(truth), why: chain(&e) }, e)),
                }
            }
            let done = ((at + 1) * side_by_side).min(pairs.len()) as u64;
            (cx.progress)(Progress::Steps { done, of: pairs.len() as u64 });
        }
        if scores.is_empty()
            && let Some((_, first)) = refused.pop()
        {
            return Err(first);
        }
        table::write_rows(cx.draft, &scores)?;
        let mut facts = facts(&scores);
        facts.quarantined = refused.into_iter().map(|(q, _)| q).collect();
        Ok(facts)
    }

    /// Both label maps and the surfaces and squared distances of one class.
    fn memory_bytes(&self, inputs: &Inputs) -> u64 {
        inputs.all("truth").iter().map(need_bytes).max().unwrap_or(0).max(64 << 20)
    }
}

fn voxels(i: &Input) -> u64 {
    i.manifest.facts.get("voxels").and_then(|v| v.as_u64()).unwrap_or(0)
}

fn need_bytes(i: &Input) -> u64 {
    voxels(i).saturating_mul(14)
}

fn name(i: &Input) -> String {
    i.manifest.case.as_ref().map(|c| c.0.clone()).unwrap_or_default()
}

fn parts(split: &Input, fold: i64) -> Result<BTreeMap<String, String>, Error> {
    let rows: Vec<SplitRow> = match &split.rows {
        Some(rows) => table::rows_of(rows)?,
        None => table::rows_of(&table::open(&split.dir)?)?,
    };
    let parts = SplitRow::parts(&rows, fold);
    if parts.is_empty() {
        let last = rows.iter().map(|r| r.fold).max().unwrap_or(0);
        return Err(Error::Input { what: "fold of the split".into(), found: fold.to_string(), expected: format!("0 to {last}") });
    }
    Ok(parts)
}

impl Evaluate {
    fn judge(&self, truth: &Input, prediction: &Input, parts: &BTreeMap<String, String>) -> Result<Vec<ScoreRow>, Error> {
        let case = name(truth);
        let open = |i: &Input, port: &str| -> Result<(StoredVolume, Vec<u8>), Error> {
            let volume = StoredVolume::open(&i.dir, i.manifest.key)?;
            crate::volume::check_regular(&volume.geometry, &volume.about)?;
            let labels = volume.labels()?.ok_or_else(|| Error::Labels {
                what: format!("{port} of {case}"),
                why: "the volume has no labels: connect a node that adds them".into(),
            })?;
            Ok((volume, labels))
        };
        let (t, mut truth_labels) = open(truth, "truth")?;
        let (p, mut predicted) = open(prediction, "prediction")?;
        if !t.geometry.same_grid(&p.geometry, 0.01) {
            return Err(Error::Geometry {
                what: format!("truth and prediction of {case}"),
                why: format!(
                    "they lie on different grids, {} and {}: predictions come back on the grid the image was assembled on, so take truth from the \
                     node that adds the labels, before any stage that moves voxels",
                    grid(&t.geometry),
                    grid(&p.geometry)
                ),
            });
        }
        to_ids_of_truth(&mut predicted, &t.classes, &p.classes, &case)?;
        let ignored = self.ignore.as_ref().and_then(|name| t.classes.get(name)).copied();
        if let Some(ignored) = ignored {
            truth_labels.iter_mut().zip(&mut predicted).filter(|(t, _)| **t == ignored).for_each(|(t, p)| (*t, *p) = (0, 0));
        }
        let part = parts.get(&case).cloned();
        let diagonal_mm = diagonal_mm(&t.geometry);
        let voxel_ml = voxel_mm3(&t.geometry) / 1000.0;
        let rows = t.classes.iter().filter(|(_, id)| Some(**id) != ignored).map(|(class, id)| {
            let count = |labels: &[u8]| labels.iter().filter(|v| *v == id).count();
            let (n_truth, n_predicted) = (count(&truth_labels), count(&predicted));
            let (missed, spurious) = (n_truth > 0 && n_predicted == 0, n_truth == 0 && n_predicted > 0);
            let surfaces = metrics::surface_distances(&truth_labels, &predicted, *id, t.geometry.size, t.geometry.spacing_mm());
            let distance = match self.penalty {
                Penalty::Diagonal if missed || spurious => Some(diagonal_mm),
                _ => surfaces.hd95_mm(),
            };
            ScoreRow {
                case: case.clone(),
                part: part.clone(),
                class: class.clone(),
                dice: metrics::dice(&truth_labels, &predicted, *id),
                hd95_mm: distance,
                nsd: surfaces.nsd(self.nsd_tolerance_mm),
                missed,
                spurious,
                truth_ml: n_truth as f64 * voxel_ml,
                prediction_ml: n_predicted as f64 * voxel_ml,
            }
        });
        Ok(rows.collect())
    }
}

fn grid(g: &Geometry) -> String {
    let (n, s, o) = (g.size, g.spacing_mm(), g.origin.0);
    format!("{}×{}×{} voxels of {:.2}×{:.2}×{:.2} mm from ({:.1}, {:.1}, {:.1})", n.z, n.y, n.x, s.z, s.y, s.x, o[0], o[1], o[2])
}

fn voxel_mm3(g: &Geometry) -> f64 {
    g.axes_mm.z.dot(g.axes_mm.y.cross(g.axes_mm.x)).abs()
}

/// From the first voxel's centre to the last one's.
fn diagonal_mm(g: &Geometry) -> f64 {
    (g.to_lps(g.size.map(|n| n.saturating_sub(1) as f64)) - g.origin).norm()
}

/// Classes are the same by name; what the prediction calls by another number is renumbered, what truth does not know is background.
fn to_ids_of_truth(labels: &mut [u8], truth: &IndexMap<String, u8>, prediction: &IndexMap<String, u8>, case: &str) -> Result<(), Error> {
    let shared: Vec<(u8, u8)> = prediction.iter().filter_map(|(name, id)| Some((*id, *truth.get(name)?))).collect();
    if shared.is_empty() {
        let names = |c: &IndexMap<String, u8>| c.keys().cloned().collect::<Vec<_>>().join(", ");
        return Err(Error::Labels {
            what: format!("truth and prediction of {case}"),
            why: format!("they have no class in common: {} and {}", names(truth), names(prediction)),
        });
    }
    let mut to = [0u8; 256];
    shared.iter().for_each(|(from, id)| to[*from as usize] = *id);
    labels.iter_mut().for_each(|v| *v = to[*v as usize]);
    Ok(())
}

/// Means over cases of one part and class.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Mean {
    part: String,
    class: String,
    cases: usize,
    /// Over the cases where truth or prediction has the class.
    dice: Option<f64>,
    /// Over the cases where there is a distance.
    hd95_mm: Option<f64>,
    /// Over the cases where truth or prediction has the class.
    nsd: Option<f64>,
    missed: usize,
    spurious: usize,
}

const ALL: &str = "all";

/// For each part, each class and then all classes: there, the mean of each case over its classes comes first, then the mean over cases.
fn means(scores: &[ScoreRow]) -> Vec<Mean> {
    let mut parts: Vec<Option<&str>> = Vec::new();
    for part in [Some("train"), Some("val"), Some("test"), None] {
        if scores.iter().any(|s| s.part.as_deref() == part) {
            parts.push(part);
        }
    }
    let mut classes: Vec<&str> = Vec::new();
    scores.iter().for_each(|s| {
        if !classes.contains(&s.class.as_str()) {
            classes.push(&s.class)
        }
    });
    let mut out = Vec::new();
    for part in parts {
        let mine: Vec<&ScoreRow> = scores.iter().filter(|s| s.part.as_deref() == part).collect();
        for class in &classes {
            out.push(mean_of(part, class, mine.iter().filter(|s| s.class == *class).map(|s| vec![*s]).collect()));
        }
        if classes.len() > 1 {
            let mut by_case: BTreeMap<&str, Vec<&ScoreRow>> = BTreeMap::new();
            mine.iter().for_each(|s| by_case.entry(&s.case).or_default().push(s));
            out.push(mean_of(part, ALL, by_case.into_values().collect()));
        }
    }
    out
}

fn mean_of(part: Option<&str>, class: &str, cases: Vec<Vec<&ScoreRow>>) -> Mean {
    let mean = |values: Vec<f64>| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
    let over = |value: fn(&ScoreRow) -> Option<f64>| {
        mean(cases.iter().filter_map(|rows| mean(rows.iter().filter_map(|r| value(r)).collect())).collect())
    };
    Mean {
        part: part.unwrap_or("-").into(),
        class: class.into(),
        cases: cases.len(),
        dice: over(|r| r.dice),
        hd95_mm: over(|r| r.hd95_mm),
        nsd: over(|r| r.nsd),
        missed: cases.iter().flatten().filter(|r| r.missed).count(),
        spurious: cases.iter().flatten().filter(|r| r.spurious).count(),
    }
}

fn facts(scores: &[ScoreRow]) -> Facts {
    let means = means(scores);
    let overall: BTreeMap<&str, f64> = {
        let whole = |m: &&Mean| m.class == ALL || means.iter().all(|o| o.class == means[0].class);
        means.iter().filter(whole).filter_map(|m| Some((m.part.as_str(), m.dice?))).collect()
    };
    let cases: std::collections::BTreeSet<&str> = scores.iter().map(|s| s.case.as_str()).collect();
    Facts::default().with("cases", cases.len()).with("mean_dice", overall).with("means", &means).with("report", report(&means))
}

/// The table that closes a run.
fn report(means: &[Mean]) -> Vec<String> {
    let number = |v: Option<f64>, digits: usize| v.map_or("-".into(), |v| format!("{v:.digits$}"));
    let mut rows = vec![["part", "class", "cases", "Dice", "HD95 mm", "NSD", "missed", "spurious"].map(str::to_string)];
    rows.extend(means.iter().map(|m| {
        [
            m.part.clone(),
            m.class.clone(),
            m.cases.to_string(),
            number(m.dice, 3),
            number(m.hd95_mm, 2),
            number(m.nsd, 3),
            m.missed.to_string(),
            m.spurious.to_string(),
        ]
    }));
    let widths: Vec<usize> = (0..8).map(|c| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0)).collect();
    let line = |r: &[String; 8]| {
        let cells =
            r.iter().zip(&widths).enumerate().map(|(c, (cell, w))| if c < 2 { format!("{cell:w$}") } else { format!("{cell:>w$}") });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::path::Path;

    use voxmill_schemas::artifact::{CaseId, ContentHash, Key, Manifest, Recipe};
    use voxmill_schemas::geometry::Zyx;

    use crate::store::{Limits, Store};
    use crate::volume::{About, Labels, Volume, Voxels};

    fn row(case: &str, part: &str, class: &str, dice: Option<f64>, hd95_mm: Option<f64>) -> ScoreRow {
        let missed = dice == Some(0.0);
        ScoreRow { case: case.into(), part: Some(part.into()), class: class.into(), dice, hd95_mm, nsd: dice, missed, ..Default::default() }
    }

    #[test]
    fn the_report_has_a_line_a_part_and_class() {
        let scores = vec![
            row("a", "train", "Femur", Some(0.9), Some(1.0)),
            row("a", "train", "Tibia", Some(0.8), Some(2.0)),
            row("b", "val", "Femur", Some(0.5), Some(4.0)),
            row("b", "val", "Tibia", Some(0.0), None),
            row("c", "val", "Femur", Some(0.7), Some(6.0)),
            row("c", "val", "Tibia", None, None),
        ];
        insta::assert_snapshot!(report(&means(&scores)).join("\n"), @r"
        part   class  cases   Dice  HD95 mm    NSD  missed  spurious
        train  Femur      1  0.900     1.00  0.900       0         0
        train  Tibia      1  0.800     2.00  0.800       0         0
        train  all        1  0.850     1.50  0.850       0         0
        val    Femur      2  0.600     5.00  0.600       0         0
        val    Tibia      2  0.000        -  0.000       1         0
        val    all        2  0.475     5.00  0.475       1         0
        ");
        let f = facts(&scores);
        assert_eq!(f.facts["cases"], 3);
        // b: (0.5 + 0) / 2, c: 0.7 alone.
        assert!((f.facts["mean_dice"]["val"].as_f64().unwrap() - 0.475).abs() < 1e-12);
    }

    #[test]
    fn one_class_needs_no_line_for_all() {
        let scores = vec![row("a", "val", "Femur", Some(0.9), Some(1.0))];
        assert_eq!(report(&means(&scores)).len(), 2);
        assert_eq!(facts(&scores).facts["mean_dice"]["val"], 0.9);
    }

    /// A volume of 1×4×6 voxels of 2×1×1 mm at `x0`, labelled row by row.
    fn input(dir: &Path, case: &str, x0: f64, classes: &[(&str, u8)], labels: [&str; 4]) -> Input {
        let mut geometry = Geometry::axis_aligned(Zyx::new(1, 4, 6), Zyx::new(2.0, 1.0, 1.0));
        geometry.origin.0[0] = x0;
        let about = About {
            modality: "CT".into(),
            unit: "HU".into(),
            patient: case.into(),
            study: String::new(),
            series: case.into(),
            volume: 0,
            ..About::of(geometry)
        };
        let labels = Labels {
            classes: classes.iter().map(|(n, i)| (n.to_string(), *i)).collect(),
            voxels: labels.iter().flat_map(|r| r.bytes().map(|b| b - b'0')).collect(),
        };
        let volume = Volume { geometry, channels: vec!["CT".into()], voxels: Voxels::U8(vec![0; 24]), labels: Some(labels), about };
        std::fs::create_dir_all(dir).unwrap();
        volume.write(dir, None).unwrap();
        let manifest = Manifest {
            key: Key::of(dir.to_string_lossy().as_bytes()),
            content: ContentHash::of(b""),
            kind: Kind::Volume,
            case: Some(CaseId(case.into())),
            recipe: Recipe { stage: "x".into(), version: 1, config: serde_json::json!({}), inputs: BTreeMap::new(), seed: 0 },
            input_keys: BTreeMap::new(),
            facts: volume.facts().facts,
            files: BTreeMap::new(),
            bytes: 0,
            layout: 1,
        };
        Input { dir: dir.into(), manifest: manifest.into(), rows: None }
    }

    fn evaluate(dir: &Path, e: &Evaluate, inputs: &Inputs) -> Result<(Facts, Vec<ScoreRow>), Error> {
        let draft = dir.join("draft");
        std::fs::create_dir_all(&draft).unwrap();
        let store = Store::open(&Limits { disk_dir: dir.join("store"), ..Limits::default() }).unwrap();
        let cancel = std::sync::atomic::AtomicBool::new(false);
        let cx = Cx {
            draft: &draft,
            case: None,
            seed: 0,
            memo: dir,
            store: &store,
            jobs: 2,
            lazy: false,
            memory_bytes: 1 << 30,
            cancel: &cancel,
            progress: &|_| {},
        };
        let facts = e.run(inputs, &cx)?;
        Ok((facts, table::rows_of(&table::open(&draft)?)?))
    }

    #[test]
    fn cases_are_judged_and_one_on_another_grid_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let at = |name: &str| tmp.path().join(name);
        let classes = [("Femur", 1), ("Tibia", 2)];
        let whole = ["110000", "110000", "000022", "000000"];
        let truth = vec![
            input(&at("t-a"), "a", 0.0, &classes, whole),
            input(&at("t-b"), "b", 0.0, &classes, whole),
            input(&at("t-c"), "c", 0.0, &classes, whole),
        ];
        let prediction = vec![
            // Shifted by one voxel; the Tibia is missed.
            input(&at("p-a"), "a", 0.0, &classes, ["011000", "011000", "000000", "000000"]),
            // Other numbers, the same names.
            input(&at("p-b"), "b", 0.0, &[("Tibia", 1), ("Femur", 2)], ["220000", "220000", "000011", "000000"]),
            input(&at("p-c"), "c", 0.5, &classes, whole),
        ];
        let inputs = Inputs([("truth".to_string(), truth), ("prediction".to_string(), prediction)].into());
        let (facts, rows) = evaluate(tmp.path(), &Evaluate::default(), &inputs).unwrap();
        let said: Vec<_> = rows.iter().map(|r| (r.case.as_str(), r.class.as_str(), r.dice, r.hd95_mm, r.missed, r.truth_ml)).collect();
        let expected = [
            ("a", "Femur", Some(0.5), Some(1.0), false, 0.008),
            ("a", "Tibia", Some(0.0), None, true, 0.004),
            ("b", "Femur", Some(1.0), Some(0.0), false, 0.008),
            ("b", "Tibia", Some(1.0), Some(0.0), false, 0.004),
        ];
        assert_eq!(said, expected);
        assert_eq!(facts.quarantined.len(), 1);
        assert!(facts.quarantined[0].what == "c" && facts.quarantined[0].why.contains("different grids"), "{:?}", facts.quarantined);

        let (_, rows) = evaluate(tmp.path(), &Evaluate { penalty: Penalty::Diagonal, ..Evaluate::default() }, &inputs).unwrap();
        assert_eq!(rows[1].hd95_mm, Some((3f64.powi(2) + 5f64.powi(2)).sqrt()));
        // Truth voxels of Femur: 4, each on the surface, 2 of them one voxel off; the prediction likewise.
        let (_, rows) = evaluate(tmp.path(), &Evaluate { nsd_tolerance_mm: 0.5, ..Evaluate::default() }, &inputs).unwrap();
        let nsd: Vec<_> = rows.iter().map(|r| r.nsd).collect();
        assert_eq!(nsd, [Some(0.5), Some(0.0), Some(1.0), Some(1.0)]);
        let (_, rows) = evaluate(tmp.path(), &Evaluate { ignore: Some("Tibia".into()), ..Evaluate::default() }, &inputs).unwrap();
        assert_eq!(rows.iter().map(|r| (r.class.as_str(), r.dice)).collect::<Vec<_>>(), [("Femur", Some(0.5)), ("Femur", Some(1.0))]);
        assert!(Evaluate { nsd_tolerance_mm: f64::NAN, ..Evaluate::default() }.check().len() == 1);
        let only_c = Inputs(inputs.0.into_iter().map(|(port, items)| (port, items[2..].to_vec())).collect());
        assert!(matches!(evaluate(tmp.path(), &Evaluate::default(), &only_c), Err(Error::Geometry { .. })));
        assert!(matches!(evaluate(tmp.path(), &Evaluate::default(), &Inputs::default()), Err(Error::Input { .. })));
    }

    #[test]
    fn classes_meet_by_name() {
        let truth: IndexMap<String, u8> = [("Femur".to_string(), 1), ("Tibia".to_string(), 2)].into();
        let prediction: IndexMap<String, u8> = [("Tibia".to_string(), 1), ("Femur".to_string(), 5), ("Skin".to_string(), 7)].into();
        let mut labels = [0, 1, 5, 7, 2];
        to_ids_of_truth(&mut labels, &truth, &prediction, "x").unwrap();
        assert_eq!(labels, [0, 2, 1, 0, 0]);
        let other = [("Skin".to_string(), 1)].into();
        let refusal = to_ids_of_truth(&mut labels, &truth, &other, "x").unwrap_err().to_string();
        assert!(refusal.contains("Femur, Tibia and Skin"), "{refusal}");
    }

    #[test]
    fn volumes_and_diagonals_are_metric() {
        let g = Geometry::axis_aligned(Zyx::new(4, 5, 6), Zyx::new(2.0, 1.0, 0.5));
        assert_eq!(voxel_mm3(&g), 1.0);
        assert_eq!(diagonal_mm(&g), (6f64.powi(2) + 4f64.powi(2) + 2.5f64.powi(2)).sqrt());
    }
}
