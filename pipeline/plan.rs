//! PipelineSpec + stages → Plan, or all mistakes with their places: stages exist, `with` fits them, ports are connected with the right kind, and no
//! node waits for itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use voxmill_schemas::artifact::{Kind, Port, Scope};
use voxmill_schemas::spec::{CacheSpec, Data, FromSpec, Mistake, Node, NodeSpec, PipelineSpec, Place, Placed, did_you_mean, first_line};
use voxmill_stages::stage::{AnyStage, Finding, StageDef, Wire, Wiring};

use crate::conform;
use crate::problem::Problem;

/// A pipeline that can run.
pub struct Plan {
    pub name: String,
    pub seed: u64,
    pub workspace: PathBuf,
    pub cache: CacheSpec,
    /// Every node after those it takes from; otherwise in the order of the file.
    pub nodes: Vec<PlanNode>,
    pub warnings: Vec<Problem>,
    /// Variables of the file that the environment gave a value.
    pub variables: BTreeMap<String, String>,
}

/// A use of a stage, ready to run.
pub struct PlanNode {
    pub name: String,
    pub def: &'static StageDef,
    pub stage: Box<dyn AnyStage>,
    /// Port → indices of the nodes that feed it, in the order of the file.
    pub from: BTreeMap<String, Vec<usize>>,
    /// Its volumes stay steps over what is stored: voxels are made where they are asked for.
    pub lazy: bool,
}

impl PlanNode {
    /// Each port with each node that feeds it.
    pub fn ups(&self) -> impl Iterator<Item = (&String, usize)> {
        self.from.iter().flat_map(|(port, ups)| ups.iter().map(move |up| (port, *up)))
    }
}

/// What is known of a node while the plan is made.
struct Draft<'a> {
    spec: &'a NodeSpec,
    def: Option<&'static StageDef>,
    stage: Option<Box<dyn AnyStage>>,
    /// Port, index of the node, place of the node's name.
    from: Vec<(&'static str, usize, Place)>,
}

/// The plan, or nothing where the spec holds a mistake. Mistakes and warnings are added to `problems`.
pub fn make(spec: &PipelineSpec, defs: &'static [StageDef], problems: &mut Vec<Problem>) -> Option<Plan> {
    let before = problems.iter().filter(|p| !p.is_warning).count();
    let mut mistakes = Vec::new();
    let mut drafts: Vec<Draft> = spec.stages.iter().map(|n| draft(n, defs, &mut mistakes, problems)).collect();
    let mut is_connected = Vec::new();
    for i in 0..drafts.len() {
        let before = mistakes.len();
        let from = connect(i, &drafts, &mut mistakes);
        is_connected.push(mistakes.len() == before);
        drafts[i].from = from;
    }
    let order = order(&drafts, &mut mistakes);
    check_nodes(&drafts, &order, &is_connected, problems);
    let lazy: Vec<bool> = (0..drafts.len()).map(|i| is_lazy(i, &drafts, &mut mistakes)).collect();
    problems.extend(mistakes.into_iter().map(Problem::from));
    if problems.iter().filter(|p| !p.is_warning).count() > before {
        return None;
    }
    let new_index: BTreeMap<usize, usize> = order.iter().enumerate().map(|(new, old)| (*old, new)).collect();
    let mut nodes = BTreeMap::new();
    for (i, d) in drafts.into_iter().enumerate() {
        let (Some(def), Some(stage)) = (d.def, d.stage) else { return None };
        let mut from: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        d.from.iter().for_each(|(port, up, _)| from.entry(port.to_string()).or_default().push(new_index[up]));
        nodes.insert(new_index[&i], PlanNode { name: d.spec.name.value.clone(), def, stage, from, lazy: lazy[i] });
    }
    Some(Plan {
        name: spec.name.value.clone(),
        seed: spec.seed,
        workspace: PathBuf::from(&spec.workspace),
        cache: spec.cache.clone(),
        nodes: nodes.into_values().collect(),
        variables: BTreeMap::new(),
        warnings: Vec::new(),
    })
}

/// Whether the voxels of a node are left to whoever asks for them: where `keep: false` says so, or where they would be written only to be read once, by
/// the next stage of a chain.
fn is_lazy(i: usize, drafts: &[Draft], mistakes: &mut Vec<Mistake>) -> bool {
    let (Some(stage), Some(def)) = (&drafts[i].stage, drafts[i].def) else { return false };
    let can = stage.is_step();
    match &drafts[i].spec.keep {
        Some(keep) if !keep.value && !can => {
            let message = format!("what {} makes here cannot stay unwritten", def.info.name);
            let help = "remove `keep`: steps such as orient, resample and window can, what sees all voxels first cannot";
            mistakes.push(Mistake::at(&keep.place, message, help));
            false
        }
        Some(keep) => !keep.value,
        None => {
            let mut takers = drafts.iter().flat_map(|d| d.from.iter().filter(|(_, up, _)| *up == i).map(move |(port, ..)| (d, *port)));
            let (Some((taker, port)), None) = (takers.next(), takers.next()) else { return false };
            // A model reads windows that overlap: what it predicts on is written.
            let next = |d: &StageDef| {
                let first = d.info.ports.iter().find(|p| p.kind == Kind::Volume);
                let alone = d.info.ports.iter().all(|p| p.kind != Kind::Model);
                d.info.scope == Scope::Case && d.info.gives == Kind::Volume && alone && first.is_some_and(|p| p.name == port)
            };
            can && taker.def.is_some_and(next)
        }
    }
}

fn draft<'a>(spec: &'a NodeSpec, defs: &'static [StageDef], mistakes: &mut Vec<Mistake>, problems: &mut Vec<Problem>) -> Draft<'a> {
    let mut draft = Draft { spec, def: None, stage: None, from: Vec::new() };
    let Some(uses) = &spec.uses else { return draft };
    draft.def = defs.iter().find(|d| d.info.name == uses.value);
    let Some(def) = draft.def else {
        let help = did_you_mean(&uses.value, "stages", defs.iter().map(|d| d.info.name));
        mistakes.push(Mistake::at(&uses.place, format!("there is no stage {}", uses.value), help));
        return draft;
    };
    let schema = serde_json::to_value((def.schema)()).expect("a schema is plain data");
    let anchor = spec.with_key.as_ref().unwrap_or(&uses.place);
    let before = mistakes.len();
    let value = conform::with(&schema, &def.info, spec.with.as_ref(), anchor, mistakes);
    if mistakes.len() > before {
        return draft;
    }
    match (def.parse)(value) {
        Ok(stage) => {
            problems.extend(stage.check().into_iter().map(|f| found(spec, anchor, f)));
            draft.stage = Some(stage);
        }
        Err(e) => {
            let help = format!("see `voxmill stages {}`", def.info.name);
            mistakes.push(Mistake::at(anchor, format!("stage {} cannot take this: {e}", def.info.name), help));
        }
    }
    draft
}

/// What a stage says of its node, with the place in the file.
/// - `anchor`: underlined for what is not there
fn found(spec: &NodeSpec, anchor: &Place, f: Finding) -> Problem {
    let place = match (f.port, &spec.from) {
        (Some(_), FromSpec::One(node)) => Some(node.place.clone()),
        (Some(port), FromSpec::Ports(_, entries)) => entries.iter().find(|e| e.port.value == port).map(|e| e.port.place.clone()),
        _ => spec.with.as_ref().and_then(|w| place_of(w, &f.field)),
    };
    let places = vec![(place.unwrap_or_else(|| anchor.clone()), String::new())];
    Problem { message: f.message, help: f.help, places, is_warning: f.is_warning }
}

/// What stages say of their nodes as these are connected. A node with a mistake in its `from` is not asked: what is missing there was told.
fn check_nodes(drafts: &[Draft], order: &[usize], is_connected: &[bool], problems: &mut Vec<Problem>) {
    let mut wires: Vec<Wire> = vec![Wire::default(); drafts.len()];
    for &i in order {
        let Draft { spec, def, stage, from } = &drafts[i];
        let (Some(def), Some(stage), Some(uses)) = (def, stage, &spec.uses) else { continue };
        let ports: BTreeMap<_, _> = from.iter().map(|(port, up, _)| (*port, wires[*up].clone())).collect();
        let lead = def.info.ports.iter().filter(|p| p.kind == Kind::Volume).find_map(|p| ports.get(p.name));
        let opened_by = match (def.info.scope, lead) {
            (Scope::Set, _) => None,
            (Scope::Case, Some(lead)) => lead.opened_by.clone(),
            (Scope::Case, None) => Some(spec.name.value.clone()),
        };
        let entries = spec.with.as_ref().and_then(Node::map).unwrap_or(&[]);
        let asks = |n: &Node| !n.is_null() && !matches!(&n.data, Data::Scalar(s) if s.resolve() == serde_json::Value::Bool(false));
        let wiring = Wiring { ports, written: entries.iter().filter(|e| asks(&e.value)).map(|e| e.key.clone()).collect() };
        wires[i] = Wire { node: spec.name.value.clone(), classes: stage.classes(&wiring), opened_by };
        if is_connected[i] {
            let anchor = spec.with_key.as_ref().unwrap_or(&uses.place);
            problems.extend(stage.check_node(&wiring).into_iter().map(|f| found(spec, anchor, f)));
        }
    }
}

/// Where a field stands in the file: the deepest part of its dotted path that is written there.
fn place_of(with: &Node, field: &str) -> Option<Place> {
    let mut at = with;
    let mut place = None;
    for part in field.split(['.', '[']).map(|p| p.trim_end_matches(']')).filter(|p| !p.is_empty()) {
        at = match &at.data {
            Data::Map(_) => {
                let Some(e) = at.get(part) else { break };
                place = Some(if matches!(e.value.data, Data::Scalar(_)) && !e.value.is_null() {
                    e.value.place.clone()
                } else {
                    e.key_place.clone()
                });
                &e.value
            }
            Data::List(items) => {
                let Some(item) = part.parse::<usize>().ok().and_then(|i| items.get(i)) else { break };
                place = Some(first_line(&item.place));
                item
            }
            Data::Scalar(_) => break,
        };
    }
    place
}

/// Resolves what a node takes: ports of its stage, nodes of the file, kinds that fit.
fn connect(i: usize, drafts: &[Draft], mistakes: &mut Vec<Mistake>) -> Vec<(&'static str, usize, Place)> {
    let Draft { spec, def, .. } = &drafts[i];
    let ports: &[Port] = def.map_or(&[], |d| d.info.ports);
    let stage = spec.uses.as_ref().map_or("", |u| u.value.as_str());
    let mut taken: Vec<(Option<&Port>, &Placed<String>)> = Vec::new();
    match &spec.from {
        FromSpec::Nothing | FromSpec::Wrong => {}
        FromSpec::One(node) => match main_port(ports) {
            _ if def.is_none() => taken.push((None, node)),
            Some(port) => taken.push((Some(port), node)),
            None if ports.is_empty() => {
                mistakes.push(Mistake::at(
                    &node.place,
                    format!("{stage} takes nothing from other nodes"),
                    "remove `from`: this stage is a source",
                ));
            }
            None => {
                let help = format!(
                    "write from: {{ {} }}",
                    ports.iter().filter(|p| p.required).map(|p| format!("{}: …", p.name)).collect::<Vec<_>>().join(", ")
                );
                mistakes.push(Mistake::at(&node.place, format!("{stage} takes several nodes: say which port this one is for"), help));
                taken.push((None, node));
            }
        },
        FromSpec::Ports(_, entries) => {
            for e in entries {
                let port = ports.iter().find(|p| p.name == e.port.value);
                if port.is_none() && def.is_some() {
                    let is_setting = |d: &StageDef| (d.schema)().pointer(&format!("/properties/{}", e.port.value)).is_some();
                    let help = match ports {
                        [] => "remove `from`: this stage is a source".to_string(),
                        _ if def.is_some_and(is_setting) => format!("`{}` is a setting: write it under `with`", e.port.value),
                        _ => did_you_mean(&e.port.value, "ports", ports.iter().map(|p| p.name)),
                    };
                    mistakes.push(Mistake::at(&e.port.place, format!("{stage} has no port `{}`", e.port.value), help));
                }
                taken.push((port, &e.node));
            }
        }
    }
    let mut out = Vec::new();
    for (port, node) in &taken {
        let Some(up) = drafts.iter().position(|d| d.spec.name.value == node.value) else {
            let help =
                did_you_mean(&node.value, "nodes", drafts.iter().map(|d| d.spec.name.value.as_str()).filter(|n| *n != spec.name.value));
            mistakes.push(Mistake::at(&node.place, format!("the file has no node {}", node.value), help));
            continue;
        };
        let Some(port) = port else { continue };
        if let Some(gives) = drafts[up].def.map(|d| d.info.gives)
            && gives != port.kind
        {
            let fitting =
                drafts.iter().filter(|d| d.def.is_some_and(|d| d.info.gives == port.kind) && d.spec.name.value != spec.name.value);
            let names: Vec<_> = fitting.map(|d| d.spec.name.value.as_str()).collect();
            let help = if names.is_empty() {
                format!("no node of this file gives {}", a(port.kind))
            } else {
                format!("nodes that give {}: {}", a(port.kind), names.join(", "))
            };
            let message = format!("port `{}` of {stage} takes {}, but {} gives {}", port.name, a(port.kind), node.value, a(gives));
            mistakes.push(Mistake::at(&node.place, message, help));
        }
        if out.iter().any(|(name, from, _): &(&str, usize, Place)| *name == port.name && *from == up) {
            mistakes.push(Mistake::at(&node.place, format!("{} feeds port `{}` twice", node.value, port.name), "name it once"));
        } else if out.iter().any(|(name, ..)| *name == port.name) && !takes_several(port, def.as_ref().map(|d| d.info.scope)) {
            let message = format!("port `{}` of {stage} takes one node", port.name);
            let help = "name one; several nodes may feed a port for models, and ports for volumes of stages that see all cases at once";
            mistakes.push(Mistake::at(&node.place, message, help));
        }
        out.push((port.name, up, node.place.clone()));
    }
    missing_ports(spec, ports, &taken, mistakes);
    out
}

fn missing_ports(spec: &NodeSpec, ports: &[Port], taken: &[(Option<&Port>, &Placed<String>)], mistakes: &mut Vec<Mistake>) {
    let Some(uses) = &spec.uses else { return };
    // A node without a port, or with a wrong one, was told: more would be noise.
    if taken.iter().any(|(port, _)| port.is_none()) {
        return;
    }
    let missing: Vec<_> = ports.iter().filter(|p| p.required && !taken.iter().any(|(t, _)| t.is_some_and(|t| t.name == p.name))).collect();
    let place = match &spec.from {
        FromSpec::Wrong => return,
        FromSpec::Ports(place, _) => place,
        FromSpec::One(node) => &node.place,
        FromSpec::Nothing => &uses.place,
    };
    if missing.is_empty() {
        return;
    }
    let names: Vec<_> = missing.iter().map(|p| format!("`{}`", p.name)).collect();
    let (noun, verb) = if missing.len() == 1 { ("port", "is") } else { ("ports", "are") };
    let message = format!("{noun} {} of {} {verb} not connected", names.join(" and "), uses.value);
    let abouts = missing.iter().map(|p| format!("{}: {}", p.name, p.about)).collect::<Vec<_>>().join("; ");
    let help = match (&spec.from, ports) {
        (FromSpec::Nothing, [only]) => format!("add from: NODE, {}", only.about),
        (FromSpec::Nothing, _) => {
            format!("add from: {{ {} }} ({abouts})", missing.iter().map(|p| format!("{}: NODE", p.name)).collect::<Vec<_>>().join(", "))
        }
        _ => format!("add it to `from` ({abouts})"),
    };
    mistakes.push(Mistake::at(place, message, help));
}

/// Models of an ensemble, and the cases of several nodes (predictions of k folds) for a stage that sees all cases at once.
fn takes_several(port: &Port, scope: Option<Scope>) -> bool {
    port.kind == Kind::Model || (port.kind == Kind::Volume && scope == Some(Scope::Set))
}

/// The port that `from: NODE` means: the only one, or the only one that is required.
fn main_port(ports: &[Port]) -> Option<&Port> {
    match ports {
        [one] => Some(one),
        _ => {
            let mut required = ports.iter().filter(|p| p.required);
            required.next().filter(|_| required.next().is_none())
        }
    }
}

fn a(kind: Kind) -> String {
    match kind {
        Kind::Files => "files".into(),
        other => format!("a {other}"),
    }
}

/// Nodes after what they take from, otherwise in the order of the file. What is left waits in a circle: each circle is one mistake.
fn order(drafts: &[Draft], mistakes: &mut Vec<Mistake>) -> Vec<usize> {
    let mut done = Vec::new();
    let mut placed = BTreeSet::new();
    while let Some(i) = (0..drafts.len()).find(|i| !placed.contains(i) && drafts[*i].from.iter().all(|(_, up, _)| placed.contains(up))) {
        placed.insert(i);
        done.push(i);
    }
    let mut told = BTreeSet::new();
    for start in (0..drafts.len()).filter(|i| !placed.contains(i)) {
        // Walk upstream along waiting nodes until one comes again: from there on it is a circle.
        let mut path = vec![start];
        let circle = loop {
            let last = path[path.len() - 1];
            let Some((_, up, _)) = drafts[last].from.iter().find(|(_, up, _)| !placed.contains(up)) else { break None };
            if let Some(at) = path.iter().position(|p| p == up) {
                break Some(path.split_off(at));
            }
            path.push(*up);
        };
        let Some(circle) = circle.filter(|c| c.iter().all(|i| told.insert(*i))) else { continue };
        // Told in the direction in which things flow, beginning with the node that stands first in the file.
        let first = (0..circle.len()).min_by_key(|k| circle[*k]).unwrap_or(0);
        let names: Vec<&str> = (0..=circle.len())
            .map(|k| drafts[circle[(first + circle.len() - k % circle.len()) % circle.len()]].spec.name.value.as_str())
            .collect();
        let mut mistake = Mistake::nowhere(
            format!("these nodes wait for each other: {}", names.join(" → ")),
            "take one of these inputs from a node outside the circle",
        );
        let mut members = circle.clone();
        members.sort();
        for i in members {
            for (_, up, place) in drafts[i].from.iter().filter(|(_, up, _)| circle.contains(up)) {
                let label = format!("{} takes from {}", drafts[i].spec.name.value, drafts[*up].spec.name.value);
                mistake.places.push((place.clone(), label));
            }
        }
        mistakes.push(mistake);
    }
    done
}
