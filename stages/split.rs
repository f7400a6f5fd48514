//! Deals cases into train, val and test, or k folds. A patient is never in two parts. Patients with the same set of labelled classes are dealt
//! together, so that a rare structure is not all on one side.
//!
//! Within such a stratum patients stand in the order of a hash of (seed, patient) and parts are stretches of that order: one more patient moves the
//! edges by one place at most, so the others keep their part but for the few that stand at an edge.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::{Kind, Manifest, Port, Scope};
use voxmill_schemas::tables::SplitRow;

use crate::error::Error;
use crate::stage::{Cx, Facts, Finding, Info, Inputs, Progress, Stage};
use crate::table;

/// Which cases train, which judge.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// What must not be torn apart: `patient` keeps all cases of a patient in one part.
    #[serde(default)]
    pub by: By,
    /// Share of the patients to train on, 0…1. May be left out beside `val`: what `val` and `test` leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train: Option<f64>,
    /// Share of the patients that choose the best model during training, 0…1. May be left out beside `train`: what `train` and `test` leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val: Option<f64>,
    /// Share of the patients that no training sees, 0…1.
    #[serde(default)]
    pub test: f64,
    /// Deal what `test` leaves into that many folds instead of `train` and `val`: in fold i the i-th stretch is `val`, the others are `train`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folds: Option<u32>,
    /// Deal patients with the same set of labelled classes among themselves, so that each part has its share of every class.
    #[serde(default = "yes")]
    pub stratify: bool,
}

fn yes() -> bool {
    true
}

/// What a part is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// All cases of a patient play the same part.
    #[default]
    Patient,
    /// Each case for itself: two scans of one patient may end on both sides, and scores will look better than they are.
    Case,
}

const SUM_TOLERANCE: f64 = 1e-6;

impl Split {
    /// Shares of train and val, one filled in from the other. `None`: they are not given.
    fn shares(&self) -> Option<(f64, f64)> {
        match (self.train, self.val) {
            (Some(t), Some(v)) => Some((t, v)),
            (Some(t), None) => Some((t, 1.0 - self.test - t)),
            (None, Some(v)) => Some((1.0 - self.test - v, v)),
            (None, None) => None,
        }
    }
}

impl Stage for Split {
    const INFO: Info = Info {
        name: "split",
        version: 1,
        scope: Scope::Set,
        ports: &[Port { name: "cases", kind: Kind::Volume, required: true, about: "the cases to deal" }],
        gives: Kind::Table,
        summary: "deal cases into train, val and test by patient, stratified by label content, or into k folds",
        example: "uses: split\nfrom: ready\nwith: { by: patient, train: 0.7, val: 0.2, test: 0.1 }\n",
        absent_in_inference: None,
    };
    const RANDOM: bool = true;

    fn check(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        for (field, share) in [("train", self.train), ("val", self.val), ("test", Some(self.test))] {
            if let Some(share) = share.filter(|s| !(0.0..=1.0).contains(s)) {
                found.push(Finding::error(field, format!("{share} is no share of the patients"), "give a number from 0 to 1: 0.8 is 80 %"));
            }
        }
        if self.by == By::Case {
            found.push(Finding::warning(
                "by",
                "scans of one patient can end in train and in val",
                "the model then knows the patients it is judged on and scores look better than they are; `by: patient` keeps them together",
            ));
        }
        match (self.folds, self.shares()) {
            (Some(_), Some(_)) => found.push(Finding::error(
                "folds",
                "folds decide what is train and what is val",
                "leave out `train` and `val`, or leave out `folds`",
            )),
            (Some(k), None) if !(2..=100).contains(&k) => {
                found.push(Finding::error("folds", format!("{k} folds"), "give a number from 2 to 100"));
            }
            (None, None) => {
                found.push(Finding::error("train", "neither shares nor folds are given", "give `train: 0.8, val: 0.2`, or `folds: 5`"))
            }
            (None, Some((train, val))) if found.iter().all(|f| f.is_warning) => {
                let sum = train + val + self.test;
                if (sum - 1.0).abs() > SUM_TOLERANCE || train < -SUM_TOLERANCE || val < -SUM_TOLERANCE {
                    let sum = self.train.unwrap_or(0.0) + self.val.unwrap_or(0.0) + self.test;
                    found.push(Finding::error("train", format!("the shares add up to {sum}"), "make train + val + test equal to 1"));
                } else if train < SUM_TOLERANCE {
                    found.push(Finding::error("train", "no patient is left to train on", "give `train` a share above 0"));
                }
            }
            _ => {}
        }
        found
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let mut groups: BTreeMap<String, Group> = BTreeMap::new();
        let mut unknown = 0;
        for input in inputs.all("cases") {
            let m = &input.manifest;
            let case = m.case.as_ref().map(|c| c.0.clone()).unwrap_or_default();
            let patient = m.facts.get("patient").and_then(|v| v.as_str()).unwrap_or_default().to_string();
            let name = match self.by {
                By::Patient if !patient.is_empty() => patient.clone(),
                By::Patient => {
                    unknown += 1;
                    format!("case {case}")
                }
                By::Case => case.clone(),
            };
            let group = groups.entry(name).or_default();
            if self.stratify {
                group.classes.extend(labelled(m));
            }
            group.cases.push((case, patient));
        }
        if unknown > 0 {
            (cx.progress)(Progress::Warn(format!("{unknown} cases name no patient: each is taken for a patient of its own")));
        }
        let rows = self.deal(&groups, cx.seed)?;
        table::write_rows(cx.draft, &rows)?;
        Ok(facts(&rows, self.folds))
    }
}

/// The cases that stay together.
#[derive(Clone, Debug, Default)]
struct Group {
    /// Case and patient.
    cases: Vec<(String, String)>,
    /// Classes with at least one voxel in any of them.
    classes: BTreeSet<String>,
}

fn labelled(m: &Manifest) -> Vec<String> {
    let counts = m.facts.get("label_voxels").and_then(|v| v.as_object());
    counts.into_iter().flatten().filter(|(_, n)| n.as_u64().is_some_and(|n| n > 0)).map(|(class, _)| class.clone()).collect()
}

impl Split {
    fn deal(&self, groups: &BTreeMap<String, Group>, seed: u64) -> Result<Vec<SplitRow>, Error> {
        let n = groups.len();
        // Stretches in the order in which they are dealt. The last takes what rounding leaves.
        let stretches: Vec<(String, f64)> = match self.folds {
            Some(k) => {
                let each = (1.0 - self.test) / k as f64;
                std::iter::once(("test".into(), self.test)).chain((0..k).map(|i| (format!("fold {i}"), each))).collect()
            }
            None => {
                let (train, val) = self.shares().expect("check refuses a split without shares and folds");
                vec![("test".into(), self.test), ("val".into(), val), ("train".into(), train)]
            }
        };
        let wanted: Vec<(String, f64)> = stretches.into_iter().filter(|(_, share)| *share > SUM_TOLERANCE).collect();
        if n < wanted.len() {
            let parts = wanted.iter().map(|(p, _)| p.as_str()).collect::<Vec<_>>().join(", ");
            let unit = if self.by == By::Patient { "patients" } else { "cases" };
            return Err(Error::Input {
                what: "split".into(),
                found: format!("{n} {unit}"),
                expected: format!("at least {}, one for each of {parts}", wanted.len()),
            });
        }
        let mut strata: BTreeMap<Vec<String>, Vec<(blake3::Hash, &String)>> = BTreeMap::new();
        for (name, group) in groups {
            let key = blake3::hash(format!("{seed}/{name}").as_bytes());
            strata.entry(group.classes.iter().cloned().collect()).or_default().push((key, name));
        }
        strata.values_mut().for_each(|s| s.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes())));
        let sizes: Vec<usize> = strata.values().map(Vec::len).collect();
        let quotas = quotas(&sizes, &wanted.iter().map(|(_, share)| *share).collect::<Vec<_>>());
        let mut rows = Vec::new();
        for (stratum, quota) in strata.values().zip(&quotas) {
            let mut order = stratum.iter();
            for ((part, _), k) in wanted.iter().zip(quota) {
                for (_, name) in order.by_ref().take(*k) {
                    rows.extend(groups[*name].cases.iter().flat_map(|(case, patient)| self.rows_of_case(case, patient, part)));
                }
            }
        }
        rows.sort_by(|a, b| (a.fold, &a.case).cmp(&(b.fold, &b.case)));
        Ok(rows)
    }

    fn rows_of_case(&self, case: &str, patient: &str, part: &str) -> Vec<SplitRow> {
        let row = |fold: i64, part: &str| SplitRow { case: case.into(), patient: patient.into(), fold, part: part.into() };
        match self.folds {
            None => vec![row(0, part)],
            Some(k) => {
                let part_in = |i: i64| {
                    if part == "test" {
                        "test"
                    } else if part == format!("fold {i}") {
                        "val"
                    } else {
                        "train"
                    }
                };
                (0..k as i64).map(|i| row(i, part_in(i))).collect()
            }
        }
    }
}

/// How many of each stratum go to each part: parts keep their share over all (each at least one), strata as well as whole numbers allow.
/// [stratum][part]
fn quotas(sizes: &[usize], shares: &[f64]) -> Vec<Vec<usize>> {
    let n: usize = sizes.iter().sum();
    let mut totals = largest_remainders(n, shares);
    while let Some(empty) = totals.iter().position(|t| *t == 0) {
        let richest = (0..totals.len()).max_by_key(|i| (totals[*i], *i)).expect("there are parts");
        totals[richest] -= 1;
        totals[empty] += 1;
    }
    let mut left: Vec<usize> = sizes.to_vec();
    let mut out = vec![vec![0; shares.len()]; sizes.len()];
    for (part, total) in totals.iter().enumerate() {
        // The strata share this part by what they still have.
        let still: usize = left.iter().sum();
        let weights: Vec<f64> = left.iter().map(|l| *l as f64 / still.max(1) as f64).collect();
        for (stratum, k) in largest_remainders(*total, &weights).into_iter().enumerate() {
            out[stratum][part] = k;
            left[stratum] -= k;
        }
    }
    out
}

/// `n` in whole parts by share, the sum kept: the largest remainders get what rounding down leaves, the first of equals first. A part never gets more
/// than its share rounded up.
fn largest_remainders(n: usize, shares: &[f64]) -> Vec<usize> {
    let exact: Vec<f64> = shares.iter().map(|s| s * n as f64).collect();
    // 0.2 · 15 is a little less than 3: shares are meant as written.
    let mut out: Vec<usize> = exact.iter().map(|e| (e + 1e-9).floor() as usize).collect();
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by(|a, b| (exact[*b] - out[*b] as f64).total_cmp(&(exact[*a] - out[*a] as f64)).then(a.cmp(b)));
    let missing = n.saturating_sub(out.iter().sum());
    order.iter().take(missing).for_each(|i| out[*i] += 1);
    out
}

fn facts(rows: &[SplitRow], folds: Option<u32>) -> Facts {
    let mut cases: BTreeMap<&str, usize> = BTreeMap::new();
    let mut patients: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for r in rows.iter().filter(|r| r.fold == 0) {
        *cases.entry(&r.part).or_default() += 1;
        patients.entry(&r.part).or_default().insert(if r.patient.is_empty() { &r.case } else { &r.patient });
    }
    let patients: BTreeMap<&str, usize> = patients.into_iter().map(|(part, p)| (part, p.len())).collect();
    let out = Facts::default().with("cases", &cases).with("patients", &patients);
    match folds {
        Some(k) => out.with("folds", k),
        None => out,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(yaml_like: serde_json::Value) -> Split {
        serde_json::from_value(yaml_like).unwrap()
    }

    /// `n` patients with one or two cases each; every fifth has a rare class.
    fn groups(n: usize) -> BTreeMap<String, Group> {
        let group = |i: usize| {
            let cases = (0..1 + i % 2).map(|c| (format!("c{i}-{c}"), format!("p{i}"))).collect();
            let classes = ["bone"].iter().chain(if i.is_multiple_of(5) { &["tumour"][..] } else { &[] }).map(|c| c.to_string()).collect();
            (format!("p{i}"), Group { cases, classes })
        };
        (0..n).map(group).collect()
    }

    fn count(rows: &[SplitRow], part: &str) -> usize {
        rows.iter().filter(|r| r.part == part).map(|r| &r.patient).collect::<BTreeSet<_>>().len()
    }

    #[test]
    fn parts_keep_their_shares_and_strata() {
        let s = split(serde_json::json!({ "train": 0.6, "val": 0.2, "test": 0.2 }));
        let rows = s.deal(&groups(50), 7).unwrap();
        assert_eq!((count(&rows, "train"), count(&rows, "val"), count(&rows, "test")), (30, 10, 10));
        let rare = |part: &str| {
            let of = |r: &&SplitRow| r.part == part && r.patient[1..].parse::<usize>().unwrap() % 5 == 0;
            rows.iter().filter(of).map(|r| &r.patient).collect::<BTreeSet<_>>().len()
        };
        assert_eq!((rare("train"), rare("val"), rare("test")), (6, 2, 2));
    }

    #[test]
    fn one_seed_one_split() {
        let s = split(serde_json::json!({ "val": 0.3 }));
        assert_eq!(s.deal(&groups(20), 7).unwrap(), s.deal(&groups(20), 7).unwrap());
        assert_ne!(s.deal(&groups(20), 7).unwrap(), s.deal(&groups(20), 8).unwrap());
    }

    #[test]
    fn small_sets_give_every_part_a_patient() {
        let s = split(serde_json::json!({ "train": 0.9, "val": 0.05, "test": 0.05 }));
        let rows = s.deal(&groups(3), 7).unwrap();
        assert_eq!((count(&rows, "train"), count(&rows, "val"), count(&rows, "test")), (1, 1, 1));
        let refusal = s.deal(&groups(2), 7).unwrap_err().to_string();
        assert!(refusal.contains("2 patients") && refusal.contains("test, val, train"), "{refusal}");
    }

    #[test]
    fn in_k_folds_every_patient_is_val_once_and_test_never_trains() {
        let s = split(serde_json::json!({ "folds": 4, "test": 0.2 }));
        let rows = s.deal(&groups(30), 7).unwrap();
        let mut val_of: BTreeMap<&str, usize> = BTreeMap::new();
        for fold in 0..4 {
            let parts = SplitRow::parts(&rows, fold);
            assert_eq!(parts.len(), groups(30).values().map(|g| g.cases.len()).sum::<usize>());
            assert!(parts.values().any(|p| p == "train"));
        }
        rows.iter().filter(|r| r.part == "val").for_each(|r| *val_of.entry(&r.case).or_default() += 1);
        assert!(val_of.values().all(|n| *n == 1));
        for r in rows.iter().filter(|r| r.part == "test") {
            assert!(!val_of.contains_key(r.case.as_str()) && rows.iter().filter(|o| o.case == r.case).all(|o| o.part == "test"));
        }
        assert_eq!(count(&rows, "test"), 6);
    }

    #[test]
    fn one_more_patient_moves_few_others() {
        let s = split(serde_json::json!({ "train": 0.7, "val": 0.2, "test": 0.1 }));
        for n in 10..60 {
            let before = SplitRow::parts(&s.deal(&groups(n), 7).unwrap(), 0);
            let after = SplitRow::parts(&s.deal(&groups(n + 1), 7).unwrap(), 0);
            let moved: BTreeSet<_> =
                before.iter().filter(|(case, part)| after[*case] != **part).map(|(c, _)| c[1..].split('-').next()).collect();
            assert!(moved.len() <= 4, "{n}: {moved:?}");
        }
    }

    #[test]
    fn nonsense_is_found_before_a_run() {
        let fields = |v: serde_json::Value| split(v).check().into_iter().map(|f| (f.field, f.is_warning)).collect::<Vec<_>>();
        assert_eq!(fields(serde_json::json!({ "train": 0.8, "val": 0.2 })), []);
        assert_eq!(fields(serde_json::json!({ "train": 0.75, "val": 0.25 })), []);
        assert_eq!(fields(serde_json::json!({ "val": 0.2, "test": 0.1 })), []);
        assert_eq!(fields(serde_json::json!({ "folds": 5 })), []);
        let error = |f: &str| vec![(f.to_string(), false)];
        assert_eq!(fields(serde_json::json!({ "train": 0.8, "val": 0.3 })), error("train"));
        assert_eq!(fields(serde_json::json!({ "val": 1.0 })), error("train"));
        assert_eq!(fields(serde_json::json!({ "train": 80, "val": 0.2 })), error("train"));
        assert_eq!(fields(serde_json::json!({})), error("train"));
        assert_eq!(fields(serde_json::json!({ "folds": 5, "train": 0.8 })), error("folds"));
        assert_eq!(fields(serde_json::json!({ "folds": 1 })), error("folds"));
        assert_eq!(fields(serde_json::json!({ "by": "case", "val": 0.2 })), [("by".to_string(), true)]);
    }

    proptest! {
        #[test]
        fn a_patient_plays_one_part(n in 3usize..80, seed: u64, val in 0.05f64..0.5, test in 0.0f64..0.4) {
            let s = split(serde_json::json!({ "val": val, "test": test }));
            let groups = groups(n);
            let rows = s.deal(&groups, seed).unwrap();
            let cases: BTreeSet<_> = rows.iter().map(|r| &r.case).collect();
            prop_assert_eq!(cases.len(), rows.len());
            prop_assert_eq!(rows.len(), groups.values().map(|g| g.cases.len()).sum::<usize>());
            let mut parts: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
            for r in &rows {
                parts.entry(&r.patient).or_default().insert(&r.part);
            }
            prop_assert!(parts.values().all(|p| p.len() == 1));
            let off = (count(&rows, "val") as f64 - val * n as f64).abs();
            prop_assert!(off <= 2.0, "{}", off);
        }
    }
}
