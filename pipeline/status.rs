//! `voxmill plan`: what a run would do, without doing it. Sources are looked at; below a thing that will be made nothing can be known but that
//! it depends on it (equal bytes will stop the rebuild there).

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use voxmill_stages::error::{Error, chain};
use voxmill_stages::stage::Input;

use crate::jobs;
use crate::progress::{Progressing, Style};
use crate::run::{self, Bench, Options};

/// What a run would do with a node and case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It stands in the store.
    Reused,
    /// Never made here.
    Make,
    /// Made before, by another recipe.
    Stale,
    /// Something above it will be made: made again unless that gives the same bytes as before.
    Depends,
    /// It cannot be said: the node above fails.
    Unknown,
}

#[derive(Clone, Debug, Serialize)]
pub struct CaseStatus {
    pub case: Option<String>,
    pub status: Status,
    pub why: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct NodeStatus {
    pub node: String,
    pub stage: String,
    /// Its voxels are not written: they are made where they are asked for.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub lazy: bool,
    pub cases: Vec<CaseStatus>,
}

/// The status of the wanted nodes.
pub fn of(b: &Bench, o: &Options, wanted: &BTreeSet<usize>) -> Result<Vec<NodeStatus>, Error> {
    let mut known: BTreeMap<usize, Vec<Input>> = BTreeMap::new();
    let mut unsettled: BTreeMap<usize, BTreeSet<Option<String>>> = BTreeMap::new();
    let mut drafts = Vec::new();
    let mut out = Vec::new();
    let silent = Progressing::new(Style::Quiet, std::iter::empty());
    for &i in wanted {
        let node = &b.plan.nodes[i];
        let before = b.heads.read(&node.name);
        let mut cases = Vec::new();
        if node.def.info.ports.is_empty() {
            let bar = silent.node(&node.name, node.def.info.scope, 1);
            match run::look(b, o, node, &bar) {
                Ok((draft, facts, recipe)) => {
                    let key = recipe.key();
                    match run::reusable(b.store, &key)? {
                        Some(m) => {
                            cases.push(CaseStatus { case: None, status: Status::Reused, why: String::new(), key: Some(key.hex()) });
                            known.insert(i, vec![Input { dir: b.store.disk.dir(&key), manifest: m.into(), rows: None }]);
                        }
                        None => {
                            let why = jobs::why_recipe(b.store, &recipe, before.get(""));
                            let status = if before.is_empty() { Status::Make } else { Status::Stale };
                            cases.push(CaseStatus { case: None, status, why, key: Some(key.hex()) });
                            let manifest = run::preview(node, recipe, &facts);
                            known.insert(i, vec![Input { dir: draft.path.clone(), manifest: manifest.into(), rows: None }]);
                        }
                    }
                    drafts.push(draft);
                }
                Err(e) => cases.push(CaseStatus { case: None, status: Status::Unknown, why: chain(&e), key: None }),
            }
        } else {
            let waits: BTreeSet<Option<String>> = node.ups().filter_map(|(_, up)| unsettled.get(&up)).flatten().cloned().collect();
            let blocked = node.ups().any(|(_, up)| !known.contains_key(&up));
            let whole_set_waits = node.def.info.scope == voxmill_schemas::artifact::Scope::Set || waits.contains(&None);
            for case in waits.iter().filter(|_| !whole_set_waits) {
                cases.push(CaseStatus {
                    case: case.clone(),
                    status: Status::Depends,
                    why: "what it is made from will be made".into(),
                    key: None,
                });
            }
            if blocked || (whole_set_waits && !waits.is_empty()) {
                let status = if blocked { Status::Unknown } else { Status::Depends };
                cases.push(CaseStatus { case: None, status, why: "what it is made from will be made".into(), key: None });
                unsettled.entry(i).or_default().insert(None);
                known.insert(i, Vec::new());
            } else {
                let mut items = Vec::new();
                let work = jobs::of(node, b.plan.seed, |up| known.get(&up).map_or(&[][..], Vec::as_slice))?;
                for job in work.jobs {
                    let case = job.case.as_ref().map(|c| c.0.clone());
                    let job = match jobs::settle(node, &job, b.contents, &|_| Ok(())) {
                        Ok(job) => job,
                        Err(e) => {
                            unsettled.entry(i).or_default().insert(case.clone());
                            cases.push(CaseStatus { case, status: Status::Unknown, why: chain(&e), key: None });
                            continue;
                        }
                    };
                    let key = job.recipe.key();
                    let (status, why) = match run::reusable(b.store, &key)? {
                        Some(m) => {
                            items.push(Input { dir: b.store.disk.dir(&key), manifest: m.into(), rows: None });
                            (Status::Reused, String::new())
                        }
                        None => {
                            unsettled.entry(i).or_default().insert(case.clone());
                            let was = before.contains_key(case.as_deref().unwrap_or(""));
                            (if was { Status::Stale } else { Status::Make }, jobs::why(b.store, &job, &before))
                        }
                    };
                    cases.push(CaseStatus { case, status, why, key: Some(key.hex()) });
                }
                if let Some(waiting) = waits.iter().next().map(|_| waits.clone()) {
                    unsettled.entry(i).or_default().extend(waiting);
                }
                known.insert(i, items);
            }
        }
        cases.sort_by(|a, b| a.case.cmp(&b.case));
        out.push(NodeStatus { node: node.name.clone(), stage: node.def.info.name.into(), lazy: node.lazy, cases });
    }
    b.contents.keep();
    drop(drafts);
    Ok(out)
}

/// The table of `voxmill plan`: a line a node, and under it the reasons, each with how many cases share it.
pub fn table(nodes: &[NodeStatus]) -> String {
    let width = nodes.iter().map(|n| n.node.len()).max().unwrap_or(0);
    let stage_width = nodes.iter().map(|n| n.stage.len()).max().unwrap_or(0);
    let mut out = String::new();
    for n in nodes {
        let count = |s: Status| n.cases.iter().filter(|c| c.status == s).count();
        let words = [
            (Status::Reused, "reused"),
            (Status::Make, "to make"),
            (Status::Stale, "stale"),
            (Status::Depends, "depends on what is made above"),
            (Status::Unknown, "unknown"),
        ];
        let counts: Vec<_> = words.iter().filter(|(s, _)| count(*s) > 0).map(|(s, w)| format!("{} {w}", count(*s))).collect();
        let lazy = if n.lazy { ", lazy" } else { "" };
        out.push_str(&format!("{:width$}  {:stage_width$}  {}{lazy}\n", n.node, n.stage, counts.join(", ")));
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for c in n.cases.iter().filter(|c| !c.why.is_empty() && c.status != Status::Depends) {
            *reasons.entry(&c.why).or_default() += 1;
        }
        for (why, k) in reasons.iter().take(6) {
            let times = if *k > 1 { format!(" ({k} cases)") } else { String::new() };
            out.push_str(&format!("{:width$}    because {why}{times}\n", ""));
        }
        if reasons.len() > 6 {
            out.push_str(&format!("{:width$}    and {} more reasons (--format json lists all)\n", "", reasons.len() - 6));
        }
    }
    out
}
