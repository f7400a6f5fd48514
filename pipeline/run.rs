//! Plan → artifacts. Nodes in order, the cases of a node side by side under a memory budget; reuse by key, early cut-off by content, quarantine,
//! cancel. What a node's work is stands in `jobs.rs`, what users see of it in `progress.rs`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use voxmill_schemas::artifact::{CaseId, Key, Manifest, Scope};
use voxmill_schemas::tables::{CheckpointRow, ExecutionRow, QuarantineRow};
use voxmill_stages::dicom::contents::Contents;
use voxmill_stages::error::{Error, chain};
use voxmill_stages::stage::{Cx, Facts, Input, Inputs, Progress, Quarantined};
use voxmill_stages::store::{Commit, Lock, Store};

use crate::heads::Heads;
use crate::jobs::{self, Job};
use crate::lineage::Lineage;
use crate::openlineage::Events;
use crate::plan::{Plan, PlanNode};
use crate::progress::{Bar, Progressing, without_name};
use crate::publish;

/// How a run goes about its work; nothing in here changes a byte of what is made.
#[derive(Clone, Debug)]
pub struct Options {
    pub jobs: usize,
    /// For the cases in hand; the RAM shelf has its own share.
    pub memory_bytes: u64,
    pub fail_fast: bool,
    /// Where `out/NODE` is published.
    pub out: PathBuf,
    /// A new study with a trained model: its files join what stands in `out`, and the archive's memo stays the archive's.
    pub infer: bool,
}

/// What a run stands on.
pub struct Bench<'a> {
    pub plan: &'a Plan,
    pub store: &'a Store,
    pub workspace: &'a Path,
    pub heads: &'a Heads,
    /// What is known of the bytes of the archive's files.
    pub contents: &'a Contents,
    pub lineage: &'a Lineage,
    pub events: &'a Events,
    pub ui: &'a Progressing,
    pub cancel: &'a AtomicBool,
}

/// Begins the reason of a node that was not even tried.
pub const NOT_RUN: &str = "not run: ";
/// Begins why a node gave nothing whose cases are all quarantined.
pub const NO_CASE: &str = "no case is left";

/// How a node ended.
#[derive(Clone, Debug, Default)]
pub struct NodeEnd {
    pub name: String,
    /// What the node gives to those below: one input without a case, or one a case, sorted.
    pub items: Vec<Input>,
    pub made: usize,
    pub reused: usize,
    pub left_out: usize,
    pub quarantined: Vec<Quarantined>,
    /// Why the node gives nothing.
    pub failed: Option<String>,
    /// That is for want of anything to work on: no DICOM in the archive, no series that `where` chooses.
    pub is_idle: bool,
    pub took_ms: u64,
    pub published: Option<PathBuf>,
}

/// How a run ended.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub nodes: Vec<NodeEnd>,
    pub cancelled: bool,
}

impl Summary {
    /// 0 all done, 1 failed, 2 nothing to work on, 3 done but something is quarantined, 130 stopped on request.
    pub fn exit_code(&self) -> u8 {
        if self.cancelled {
            130
        } else if self.nodes.iter().any(|n| n.failed.is_some()) {
            if self.is_idle() { 2 } else { 1 }
        } else if self.nodes.iter().any(|n| !n.quarantined.is_empty()) {
            3
        } else {
            0
        }
    }

    /// Whether nothing but work was missing.
    pub fn is_idle(&self) -> bool {
        !self.cancelled && self.nodes.iter().any(|n| n.is_idle) && self.nodes.iter().all(|n| n.failed.is_none() || n.is_idle)
    }
}

/// Runs the nodes in `wanted` (indices into the plan, already closed over what they need). `given` are nodes whose result is known beforehand.
pub fn run(b: &Bench, o: &Options, wanted: &BTreeSet<usize>, given: BTreeMap<usize, Vec<Input>>) -> Result<Summary, Error> {
    let mut summary = Summary::default();
    let mut ends: BTreeMap<usize, NodeEnd> =
        given.into_iter().map(|(i, items)| (i, NodeEnd { name: b.plan.nodes[i].name.clone(), items, ..NodeEnd::default() })).collect();
    for item in ends.values().flat_map(|e| &e.items) {
        b.store.hold(&item.manifest.key)?;
    }
    let mut stop: Option<String> = None;
    for &i in wanted {
        if ends.contains_key(&i) {
            continue;
        }
        let node = &b.plan.nodes[i];
        let started = Instant::now();
        let from: BTreeSet<usize> = node.ups().map(|(_, up)| up).collect();
        let from: Vec<&str> = from.into_iter().map(|up| b.plan.nodes[up].name.as_str()).collect();
        b.events.node_begins(&node.name, &from);
        let broken = node.ups().find_map(|(_, up)| ends.get(&up).filter(|e| e.failed.is_some()));
        let mut end = if let Some(why) = &stop {
            NodeEnd { failed: Some(why.clone()), ..NodeEnd::default() }
        } else if let Some(up) = broken {
            NodeEnd { failed: Some(format!("{NOT_RUN}{} gave nothing", up.name)), is_idle: up.is_idle, ..NodeEnd::default() }
        } else {
            match whole(node, || run_node(b, o, node, &ends)) {
                Ok(end) => end,
                Err(e) => {
                    if e.stops_the_run() {
                        stop = Some(format!("{NOT_RUN}the run stopped at {}", node.name));
                    }
                    summary.cancelled |= matches!(e, Error::Cancelled);
                    NodeEnd { failed: Some(chain(&e)), is_idle: matches!(e, Error::Nothing { .. }), ..NodeEnd::default() }
                }
            }
        };
        end.name = node.name.clone();
        end.took_ms = started.elapsed().as_millis() as u64;
        b.events.node_ended(&end, &from, summary.cancelled);
        if end.failed.is_some() && !summary.cancelled {
            b.ui.node_failed(&end);
        }
        if o.fail_fast && stop.is_none() && (end.failed.is_some() || !end.quarantined.is_empty()) {
            stop = Some(format!("{NOT_RUN}--fail-fast, and {} had a failure", node.name));
        }
        ends.insert(i, end);
    }
    summary.nodes = wanted.iter().filter_map(|i| ends.remove(i)).collect();
    Ok(summary)
}

fn run_node(b: &Bench, o: &Options, node: &PlanNode, ends: &BTreeMap<usize, NodeEnd>) -> Result<NodeEnd, Error> {
    let upstream = |i: usize| ends.get(&i).map_or(&[][..], |e| &e.items);
    if node.def.info.ports.is_empty() {
        return run_source(b, o, node);
    }
    let work = jobs::of(node, b.plan.seed, upstream)?;
    let bar = b.ui.node(&node.name, node.def.info.scope, work.jobs.len());
    let before = b.heads.read(&node.name);
    let gate = Gate::new(o.memory_bytes);
    // What is still to do, and what another process has in hand: that comes last, when it may be done.
    let queue = Mutex::new((work.jobs.iter(), VecDeque::new()));
    let done = Mutex::new((NodeEnd { left_out: work.left_out, ..NodeEnd::default() }, None::<Error>));
    let halted = AtomicBool::new(false);
    // A set stage may use every thread itself; cases share them.
    let workers = if node.def.info.scope == Scope::Set { 1 } else { o.jobs.max(1) };
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    if halted.load(Ordering::Relaxed) || done.lock().expect("no worker panics while it holds the results").1.is_some() {
                        return;
                    }
                    let (job, waits) = {
                        let mut queue = queue.lock().expect("a queue does not panic");
                        match queue.0.next() {
                            Some(job) => (job, false),
                            None => match queue.1.pop_front() {
                                Some(job) => (job, true),
                                None => return,
                            },
                        }
                    };
                    let Some(outcome) = run_job(b, o, node, job, waits, &before, &gate, &bar).transpose() else {
                        queue.lock().expect("a queue does not panic").1.push_back(job);
                        continue;
                    };
                    let mut held = done.lock().expect("no worker panics while it holds the results");
                    let (end, stop) = &mut *held;
                    match outcome {
                        Ok((manifest, was_made)) => {
                            bar.case_done();
                            *(if was_made { &mut end.made } else { &mut end.reused }) += 1;
                            end.items.push(Input { dir: b.store.disk.dir(&manifest.key), manifest, rows: None });
                        }
                        Err(e) if e.stops_the_run() || job.case.is_none() => drop(stop.get_or_insert(e)),
                        Err(e) => {
                            let what = job.case.as_ref().map(|c| c.0.clone()).unwrap_or_default();
                            let why = chain(&e);
                            let why = without_name(&what, &why).to_string();
                            bar.case_done();
                            bar.warn(&format!("{what} is quarantined: {why}"));
                            end.quarantined.push(Quarantined { what, why });
                            halted.fetch_or(o.fail_fast, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    b.contents.keep();
    b.lineage.traffic(&node.name, b.store.counts(), true);
    let (mut end, stop) = done.into_inner().expect("the workers are gone");
    match &stop {
        Some(e) => bar.stopped(&end, matches!(e, Error::Cancelled)),
        None => bar.finish(&end),
    }
    end.items.sort_by(|a, b| a.manifest.case.cmp(&b.manifest.case));
    end.quarantined.sort_by(|a, b| a.what.cmp(&b.what));
    if let Some(e) = stop {
        return Err(e);
    }
    for item in &end.items {
        end.quarantined.extend(left_out_inside(b, node, &item.manifest));
    }
    if halted.load(Ordering::Relaxed) {
        let first = end.quarantined.first().map(|q| format!(": {}: {}", q.what, q.why)).unwrap_or_default();
        end.failed = Some(format!("stopped at the first failure (--fail-fast){first}"));
        // Cases that were not reached keep what they had, and what is published stays whole.
        b.heads.add(&node.name, &end.items)?;
        return Ok(end);
    }
    if end.items.is_empty() && end.left_out == 0 {
        let first = end.quarantined.first().map(|q| format!("; the first, {}: {}", q.what, q.why)).unwrap_or_default();
        end.failed = Some(match work.jobs.len() {
            0 => "there is no case to work on".into(),
            n => format!("{NO_CASE}: {} of {n} quarantined{first}", end.quarantined.len()),
        });
    }
    b.heads.write(&node.name, &end.items)?;
    end.published = published(b, o, node, &end.items)?;
    Ok(end)
}

/// What stands under a key, if a run may take it. What lost a patient to `voxmill forget` is no longer what its recipe says: where the patient is back, it is made
/// again.
pub fn reusable(store: &Store, key: &Key) -> Result<Option<Manifest>, Error> {
    Ok(store.disk.manifest(key)?.filter(|m| !m.facts.contains_key(crate::forget::MARK)))
}

/// One artifact: reuse it or make it. The lock keeps two processes from making the same thing twice; `None`: another has it in hand, and this job does
/// not wait.
#[allow(clippy::too_many_arguments)]
fn run_job(
    b: &Bench,
    o: &Options,
    node: &PlanNode,
    job: &Job,
    waits: bool,
    before: &BTreeMap<String, Key>,
    gate: &Gate,
    bar: &Bar,
) -> Result<Option<(Arc<Manifest>, bool)>, Error> {
    let mut row = new_row(b, node, job.case.as_ref());
    row.config_hash = voxmill_schemas::artifact::ContentHash::of(job.recipe.config.to_string().as_bytes()).hex();
    row.config = job.recipe.config.to_string();
    row.input_keys = job.inputs.0.values().flatten().map(|i| i.manifest.key.hex()).collect();
    let heard = |_| if b.cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) };
    let settled = jobs::settle(node, job, b.contents, &heard);
    let made = settled.and_then(|job| {
        let key = job.recipe.key();
        row.key = key.hex();
        b.store.hold(&key)?;
        if b.cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        if let Some(m) = reusable(b.store, &key)? {
            return Ok(Some((Arc::new(m), false)));
        }
        let Some(_lock) = lock(b, &key, waits)? else { return Ok(None) };
        if let Some(m) = reusable(b.store, &key)? {
            return Ok(Some((Arc::new(m), false)));
        }
        if b.store.disk.manifest(&key)?.is_some() {
            b.store.disk.remove(&BTreeSet::from([key]))?;
        }
        let _admitted = gate.admit(node.stage.memory_bytes(&job.inputs), b.cancel)?;
        row.why = Some(jobs::why(b.store, &job, before));
        let draft = b.store.disk.draft()?;
        let memo = b.workspace.join("memo").join(key.hex());
        let facts = call_stage(b, o, node, job.case.as_ref(), &job.inputs, &draft.path, &memo, bar)?;
        let manifest = draft.commit(Commit {
            key,
            kind: node.def.info.gives,
            case: job.case.clone(),
            recipe: job.recipe.clone(),
            input_keys: job.inputs.0.iter().map(|(p, i)| (p.clone(), i.iter().map(|i| i.manifest.key).collect())).collect(),
            facts: with_quarantine(&facts),
            content: facts.content,
            inputs_dirs: &job.inputs.0.values().flatten().map(|i| (i.dir.clone(), i.manifest.clone())).collect::<Vec<_>>(),
        })?;
        let _ = std::fs::remove_dir_all(&memo);
        b.lineage.made(&node.name, &manifest);
        Ok(Some((Arc::new(manifest), true)))
    });
    let Some(made) = made.transpose() else { return Ok(None) };
    finish_row(b, row, &made);
    made.map(Some)
}

/// The lock of an artifact. A long wait for another process still hears Ctrl-C.
fn lock(b: &Bench, key: &Key, waits: bool) -> Result<Option<Lock>, Error> {
    loop {
        let lock = b.store.disk.try_lock(key)?;
        if lock.is_some() || !waits {
            return Ok(lock);
        }
        if b.cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A source always looks. Its artifact is keyed by what it found, so the same finding is the same artifact.
fn run_source(b: &Bench, o: &Options, node: &PlanNode) -> Result<NodeEnd, Error> {
    let bar = b.ui.node(&node.name, Scope::Set, 1);
    let mut row = new_row(b, node, None);
    let made = (|| {
        let (draft, facts, recipe) = look(b, o, node, &bar)?;
        let key = recipe.key();
        row.key = key.hex();
        row.config = recipe.config.to_string();
        row.config_hash = voxmill_schemas::artifact::ContentHash::of(recipe.config.to_string().as_bytes()).hex();
        b.store.hold(&key)?;
        let _lock = b.store.disk.lock(&key)?;
        if let Some(m) = b.store.disk.manifest(&key)? {
            return Ok((Arc::new(m), false));
        }
        let before = b.heads.read(&node.name);
        row.why = Some(jobs::why_recipe(b.store, &recipe, before.get("")));
        let manifest = draft.commit(Commit {
            key,
            kind: node.def.info.gives,
            case: None,
            recipe,
            input_keys: BTreeMap::new(),
            facts: with_quarantine(&facts),
            content: facts.content,
            inputs_dirs: &[],
        })?;
        b.lineage.made(&node.name, &manifest);
        Ok((Arc::new(manifest), true))
    })();
    finish_row(b, row, &made);
    if let Err(e) = &made {
        bar.stopped(&NodeEnd::default(), matches!(e, Error::Cancelled));
    }
    let (manifest, was_made) = made?;
    let mut end = NodeEnd { made: was_made as usize, reused: !was_made as usize, ..NodeEnd::default() };
    end.quarantined = left_out_inside(b, node, &manifest);
    end.items.push(Input { dir: b.store.disk.dir(&manifest.key), manifest, rows: None });
    bar.case_done();
    bar.finish(&end);
    b.heads.write(&node.name, &end.items)?;
    end.published = published(b, o, node, &end.items)?;
    Ok(end)
}

/// Runs a source into a draft and says which recipe that makes.
pub fn look(
    b: &Bench,
    o: &Options,
    node: &PlanNode,
    bar: &Bar,
) -> Result<(voxmill_stages::store::Draft, Facts, voxmill_schemas::artifact::Recipe), Error> {
    let draft = b.store.disk.draft()?;
    let memo = if o.infer {
        // A study has a memo of its own: what is known of the archive's files must not be forgotten for it.
        format!("infer-{}-{}", node.name, voxmill_schemas::artifact::ContentHash::of(node.stage.config().to_string().as_bytes()))
    } else {
        format!("source-{}", node.name)
    };
    let memo = b.workspace.join("memo").join(memo);
    let facts = call_stage(b, o, node, None, &Inputs::default(), &draft.path, &memo, bar)?;
    let recipe = jobs::source_recipe(node, b.plan.seed, &draft.path)?;
    Ok((draft, facts, recipe))
}

/// The manifest that a source's draft would get, for planning below it.
pub fn preview(node: &PlanNode, recipe: voxmill_schemas::artifact::Recipe, facts: &Facts) -> Manifest {
    Manifest {
        key: recipe.key(),
        content: facts.content.unwrap_or(recipe.inputs["found"][0].content),
        kind: node.def.info.gives,
        case: None,
        recipe,
        input_keys: BTreeMap::new(),
        facts: with_quarantine(facts),
        files: BTreeMap::new(),
        bytes: 0,
        layout: 0,
    }
}

#[allow(clippy::too_many_arguments)]
fn call_stage(
    b: &Bench,
    o: &Options,
    node: &PlanNode,
    case: Option<&CaseId>,
    inputs: &Inputs,
    draft: &Path,
    memo: &Path,
    bar: &Bar,
) -> Result<Facts, Error> {
    std::fs::create_dir_all(memo).map_err(Error::io("make folder", memo))?;
    let progress = |p: Progress| {
        if let Progress::Waited(time) = &p {
            b.lineage.waited(*time);
        }
        b.lineage.traffic(&node.name, b.store.counts(), false);
        if let Progress::Saved { epoch, step, best_epoch, best_dice } = &p {
            // The memo of a training is named by the key that it works for.
            let model = memo.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let (node, epoch, step) = (node.name.clone(), *epoch as i64, *step as i64);
            let (best_epoch, best_dice) = (*best_epoch, *best_dice);
            b.lineage.checkpoint(CheckpointRow { node, model, epoch, step, best_epoch, best_dice, ..CheckpointRow::default() });
        }
        bar.news(p);
    };
    let cx = Cx {
        draft,
        case,
        seed: b.plan.seed,
        memo,
        store: b.store,
        lazy: node.lazy,
        jobs: o.jobs,
        memory_bytes: o.memory_bytes,
        cancel: b.cancel,
        progress: &progress,
    };
    whole(node, || node.stage.run(inputs, &cx))
}

/// A panic in a stage is that stage's failure, not the end of the run.
fn whole<T>(node: &PlanNode, f: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(Error::Panicked { stage: node.def.info.name, text: text.to_string() })
    })
}

fn with_quarantine(f: &Facts) -> serde_json::Map<String, serde_json::Value> {
    let mut facts = f.facts.clone();
    if !f.quarantined.is_empty() {
        facts.insert("quarantined".into(), serde_json::to_value(&f.quarantined).expect("plain data"));
    }
    facts
}

/// Members of its input that an artifact was made without, reused or not: each run tells them again.
fn left_out_inside(b: &Bench, node: &PlanNode, m: &Manifest) -> Vec<Quarantined> {
    let found: Vec<Quarantined> = m.facts.get("quarantined").and_then(|v| serde_json::from_value(v.clone()).ok()).unwrap_or_default();
    for q in &found {
        b.lineage.quarantine(QuarantineRow {
            run: b.lineage.run.clone(),
            node: node.name.clone(),
            what: q.what.clone(),
            why: q.why.clone(),
        });
    }
    found
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}

fn new_row(b: &Bench, node: &PlanNode, case: Option<&CaseId>) -> ExecutionRow {
    ExecutionRow {
        run: b.lineage.run.clone(),
        node: node.name.clone(),
        stage: node.def.info.name.into(),
        version: node.def.info.version as i64,
        case: case.map(|c| c.0.clone()),
        started_ms: now_ms(),
        ..ExecutionRow::default()
    }
}

fn finish_row(b: &Bench, mut row: ExecutionRow, outcome: &Result<(Arc<Manifest>, bool), Error>) {
    row.ended_ms = now_ms();
    row.took_ms = row.ended_ms - row.started_ms;
    match outcome {
        Ok((m, made)) => {
            row.status = if *made { "made" } else { "reused" }.into();
            row.content = m.content.hex();
            row.bytes = m.bytes as i64;
            row.facts = serde_json::Value::Object(m.facts.clone()).to_string();
            row.input_keys = m.input_keys.values().flatten().map(Key::hex).collect();
        }
        Err(e) => {
            let status = match (e, &row.case) {
                (Error::Cancelled, _) => "cancelled",
                (_, Some(_)) => "quarantined",
                (_, None) => "failed",
            };
            row.status = status.into();
            row.error = Some(chain(e));
            if let (Some(case), "quarantined") = (&row.case, status) {
                b.lineage.quarantine(QuarantineRow { run: row.run.clone(), node: row.node.clone(), what: case.clone(), why: chain(e) });
            }
        }
    }
    b.lineage.push(row, b.store.counts());
}

fn published(b: &Bench, o: &Options, node: &PlanNode, items: &[Input]) -> Result<Option<PathBuf>, Error> {
    if o.infer { publish::beside_others(b.store, &o.out, node, items) } else { publish::whole(b.store, &o.out, node, items) }
}

/// Admits cases while their needs stay under the budget; one that needs more than all of it runs alone.
struct Gate {
    budget: u64,
    state: Mutex<(u64, usize)>,
    changed: Condvar,
}

struct Admitted<'a>(&'a Gate, u64);

impl Gate {
    fn new(budget: u64) -> Self {
        Self { budget, state: Mutex::new((0, 0)), changed: Condvar::new() }
    }

    fn admit(&self, need: u64, cancel: &AtomicBool) -> Result<Admitted<'_>, Error> {
        let mut held = self.state.lock().expect("no holder panics");
        while held.1 > 0 && held.0.saturating_add(need) > self.budget {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            held = self.changed.wait_timeout(held, Duration::from_millis(200)).expect("no holder panics").0;
        }
        held.0 = held.0.saturating_add(need);
        held.1 += 1;
        Ok(Admitted(self, need))
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        let mut held = self.0.state.lock().expect("no holder panics");
        held.0 = held.0.saturating_sub(self.1);
        held.1 -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_admitted_while_they_fit() {
        let gate = Gate::new(100);
        let cancel = AtomicBool::new(false);
        let a = gate.admit(60, &cancel).unwrap();
        let b = gate.admit(40, &cancel).unwrap();
        cancel.store(true, Ordering::Relaxed);
        assert!(matches!(gate.admit(1, &cancel), Err(Error::Cancelled)), "a third one waits");
        drop((a, b));
        assert!(gate.admit(500, &cancel).is_ok(), "one that never fits runs alone");
    }
}
