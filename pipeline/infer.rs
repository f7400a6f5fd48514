//! `voxmill infer FILE STUDY OUT`: the part of a pipeline that leads from a source to the node that predicts and on to its exports, applied to a new
//! study. The model is the one that the last run of the file made; stages that only add labels step aside.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use voxmill_schemas::artifact::{Kind, Recipe};
use voxmill_stages::stage::Input;

use crate::jobs::KEEP;
use crate::plan::{Plan, PlanNode};
use crate::session::{Fault, Session};

fn predicts(n: &PlanNode) -> bool {
    let needs_model = |name: &str| n.def.info.ports.iter().any(|p| p.name == name && p.kind == Kind::Model && p.required);
    n.def.info.gives == Kind::Volume && n.from.keys().any(|p| needs_model(p))
}

/// The names of the nodes that inference needs: above the predicting node without what only labels need, the node, and the exports below it.
pub fn part_of(plan: &Plan, chosen: Option<&str>) -> Result<BTreeSet<String>, Fault> {
    let all: Vec<usize> = (0..plan.nodes.len()).filter(|i| predicts(&plan.nodes[*i])).collect();
    let names = || all.iter().map(|i| plan.nodes[*i].name.clone()).collect::<Vec<_>>().join(", ");
    let node = match chosen {
        Some(name) => {
            *all.iter().find(|i| plan.nodes[**i].name == name).ok_or_else(|| Fault::NoSuchNode { name: name.into(), nodes: names() })?
        }
        None => match all[..] {
            [one] => one,
            [] => return Err(Fault::NoPrediction),
            _ => return Err(Fault::ManyPredictions { nodes: names() }),
        },
    };
    let mut part = BTreeSet::new();
    let mut todo = vec![node];
    while let Some(i) = todo.pop() {
        let n = &plan.nodes[i];
        if !part.insert(i) || n.def.info.gives == Kind::Model {
            continue;
        }
        for (port, up) in n.ups() {
            let passes = match n.def.info.absent_in_inference {
                Some(kept) => port == kept,
                None => n.def.info.ports.iter().any(|p| p.name == port && (p.required || p.kind != Kind::Table)),
            };
            if passes {
                todo.push(up);
            }
        }
    }
    // Exports: nodes that give files and whose every input is in the part.
    for (i, n) in plan.nodes.iter().enumerate() {
        if n.def.info.gives == Kind::Files && n.ups().all(|(_, up)| part.contains(&up)) {
            part.insert(i);
        }
    }
    Ok(part.into_iter().map(|i| plan.nodes[i].name.clone()).collect())
}

/// Refuses an OUT in what is read or around it: what is written would be read the next time.
/// - `what`: how the command line calls the first
pub fn apart(what: &str, study: &Path, out: &Path) -> Result<(), Fault> {
    let (inner, outer) = (real(study), real(out));
    if inner.starts_with(&outer) || outer.starts_with(&inner) {
        return Err(Fault::Wrong(format!(
            "OUT {} and {what} {} lie in one another: give an OUT that lies elsewhere",
            out.display(),
            study.display()
        )));
    }
    Ok(())
}

/// Whether a file that may not be there yet lies in a folder.
pub fn is_within(file: &Path, folder: &Path) -> bool {
    real(file).starts_with(real(folder))
}

/// The path without links and dots, as far as it exists.
fn real(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let known = path.ancestors().find_map(|a| Some((a, a.canonicalize().ok()?)));
    known.map_or(path.clone(), |(a, real)| real.join(path.strip_prefix(a).unwrap_or(Path::new(""))))
}

/// What is set from outside for the study: every source of the part looks there.
pub fn sets(plan: &Plan, part: &BTreeSet<String>, study: &Path, given: &[String]) -> Vec<String> {
    let sources = plan.nodes.iter().filter(|n| n.def.info.ports.is_empty() && part.contains(&n.name));
    let study = serde_json::to_string(&study.to_string_lossy()).expect("a text is plain data");
    given.iter().cloned().chain(sources.map(|n| format!("{}.archive={study}", n.name))).collect()
}

/// The plan reduced to the part, with absent stages bypassed and optional ports to the rest dropped.
pub fn cut(plan: Plan, part: &BTreeSet<String>) -> Result<Plan, Fault> {
    let is_absent = |n: &PlanNode| n.def.info.absent_in_inference.is_some();
    let through: Vec<usize> = (0..plan.nodes.len())
        .map(|mut i| {
            while let Some(port) = plan.nodes[i].def.info.absent_in_inference {
                i = plan.nodes[i].from[port][0];
            }
            i
        })
        .collect();
    let keep: Vec<usize> = (0..plan.nodes.len()).filter(|i| part.contains(&plan.nodes[*i].name) && !is_absent(&plan.nodes[*i])).collect();
    let new_index: BTreeMap<usize, usize> = keep.iter().enumerate().map(|(new, old)| (*old, new)).collect();
    let Plan { nodes, .. } = plan;
    let mut nodes: Vec<Option<PlanNode>> = nodes.into_iter().map(Some).collect();
    let kept = keep
        .iter()
        .map(|i| {
            let mut n = nodes[*i].take().expect("each node is kept once");
            let is_model = n.def.info.gives == Kind::Model;
            for ups in n.from.values_mut() {
                ups.retain(|up| new_index.contains_key(&through[*up]) && !is_model);
                ups.iter_mut().for_each(|up| *up = new_index[&through[*up]]);
            }
            n.from.retain(|_, ups| !ups.is_empty());
            n
        })
        .collect();
    Ok(Plan { nodes: kept, ..plan })
}

/// Refuses a model that was not made as the file now says: another spacing or window on the way to it would give masks that look right and are not.
/// Followed from each model of the part through the manifests of what it was made from; sources (the study is another archive) and the device are
/// left out, and what is gone from the store cannot be compared.
pub fn check_training(session: &Session, whole: &Plan, part: &BTreeSet<String>) -> Result<(), Fault> {
    let heads = session.heads(whole, false);
    let is_model = |n: &PlanNode| n.def.info.gives == Kind::Model && part.contains(&n.name);
    let models = whole.nodes.iter().enumerate().filter(|(_, n)| is_model(n));
    let mut todo: Vec<_> = models.filter_map(|(i, n)| Some((i, *heads.read(&n.name).get("")?))).collect();
    let mut seen = BTreeSet::new();
    while let Some((i, key)) = todo.pop() {
        let node = &whole.nodes[i];
        if node.def.info.ports.is_empty() || !seen.insert(i) {
            continue;
        }
        let Some(made) = session.store.disk.manifest(&key)? else { continue };
        let without_device = |recipe: &Recipe| {
            let mut recipe = recipe.clone();
            // Voxels are the same, written or not.
            if let Some(config) = recipe.config.as_object_mut() {
                config.retain(|key, _| key != "device" && key != KEEP);
            }
            recipe
        };
        let now =
            Recipe { stage: node.def.info.name.into(), version: node.def.info.version, config: node.stage.config(), ..made.recipe.clone() };
        let differences = without_device(&now).differences(&without_device(&made.recipe));
        if !differences.is_empty() {
            return Err(Fault::OtherTraining { node: node.name.clone(), what: differences.join("; ") });
        }
        for (port, ups) in &node.from {
            let keys = made.input_keys.get(port).map_or(&[][..], Vec::as_slice);
            match ups[..] {
                // All cases of a port are made by one recipe but for what goes in.
                [up] => todo.extend(keys.first().map(|k| (up, *k))),
                // Models stand in the order of the file; cases of several nodes cannot be told apart here.
                _ if keys.len() == ups.len() => todo.extend(ups.iter().copied().zip(keys.iter().copied())),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The models that the last run of this file made.
pub fn trained(session: &Session, plan: &Plan) -> Result<BTreeMap<usize, Vec<Input>>, Fault> {
    let heads = session.heads(plan, false);
    let mut given = BTreeMap::new();
    for (i, n) in plan.nodes.iter().enumerate().filter(|(_, n)| n.def.info.gives == Kind::Model) {
        let key = heads.read(&n.name).get("").copied().ok_or_else(|| Fault::NotTrained { node: n.name.clone() })?;
        let manifest = session.store.disk.manifest(&key)?.ok_or_else(|| Fault::NotTrained { node: n.name.clone() })?;
        if manifest.facts.contains_key(crate::forget::MARK) {
            tracing::warn!("the model of {} was trained on a patient that was forgotten since: train it again where that matters", n.name);
        }
        given.insert(i, vec![Input { dir: session.store.disk.dir(&key), manifest: manifest.into(), rows: None }]);
    }
    Ok(given)
}
