//! `voxmill report`: what a pipeline made, on one page that stands alone. Here its facts are gathered from heads, manifests, tables and lineage;
//! `page.rs` says them, `charts.rs` draws them, `mosaic.rs` makes the pictures of the cases.

pub mod charts;
pub mod mosaic;
pub mod page;
pub mod shown;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value;
use voxmill_schemas::artifact::{Key, Kind, Manifest, Scope};
use voxmill_schemas::tables::{ExecutionRow, HistoryRow, Row, RunRow, ScoreRow, SplitRow, StepRow};
use voxmill_stages::error::Error;
use voxmill_stages::stage::Input;
use voxmill_stages::table;

use crate::plan::Plan;
use crate::questions;
use crate::session::{Fault, Session};

/// Everything the page says.
pub struct Report {
    pub title: String,
    /// Name, value.
    pub about: Vec<(String, String)>,
    pub nodes: Vec<Node>,
    pub cases: Vec<Case>,
    /// Classes in the order of their ids.
    pub classes: Vec<String>,
    pub trainings: Vec<Training>,
    pub runs: Vec<RunRow>,
    /// The YAML as it stands now.
    pub text: String,
}

/// A node of the pipeline and how it fared in the newest run that reached it.
#[derive(Default)]
pub struct Node {
    pub name: String,
    pub stage: &'static str,
    pub gives: Option<Kind>,
    /// Indices of the nodes above.
    pub from: Vec<usize>,
    pub made: usize,
    pub reused: usize,
    pub quarantined: usize,
    pub failed: usize,
    /// From its first start to its last end.
    pub took_ms: i64,
    pub bytes: u64,
    pub ram_hits: i64,
    pub nvme_hits: i64,
    pub disk_reads: i64,
    /// How long a network waited for batches.
    pub waited_ms: i64,
}

/// A case: what is known of it and what became of it.
#[derive(Default)]
pub struct Case {
    pub name: String,
    pub patient: String,
    pub modality: String,
    pub part: String,
    /// z, y, x
    pub size: Vec<i64>,
    pub spacing_mm: Vec<f64>,
    /// Class → its score.
    pub scores: BTreeMap<String, ScoreRow>,
    /// Node and reason, where the case was left out.
    pub quarantined: Option<(String, String)>,
    pub picture: Option<mosaic::Picture>,
}

impl Case {
    /// Over the classes that have one.
    pub fn mean_dice(&self) -> Option<f64> {
        let all: Vec<f64> = self.scores.values().filter_map(|s| s.dice).collect();
        (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
    }
}

/// A node that trains.
pub struct Training {
    pub node: String,
    pub classes: Vec<String>,
    pub history: Vec<HistoryRow>,
    /// Empty where an older version trained.
    pub steps: Vec<StepRow>,
    pub facts: serde_json::Map<String, Value>,
}

/// Writes the page beside and renames it; gives its path.
pub fn write(plan: &Plan, file: &Path, output: Option<&Path>, pictures: bool) -> Result<PathBuf, Fault> {
    let page = page_of(plan, file, pictures)?;
    let to = output.map_or_else(|| plan.workspace.join("report.html"), Path::to_path_buf);
    let name = to.file_name().ok_or_else(|| Fault::Wrong(format!("{} is no file name", to.display())))?;
    let beside = to.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let written = File::create(&beside).and_then(|mut f| f.write_all(page.as_bytes()).and_then(|()| f.sync_all()));
    written.inspect_err(|_| drop(std::fs::remove_file(&beside))).map_err(Error::io("write", &beside))?;
    std::fs::rename(&beside, &to).map_err(Error::io("write", &to))?;
    Ok(to)
}

/// The page itself.
pub fn page_of(plan: &Plan, file: &Path, pictures: bool) -> Result<String, Fault> {
    let text = std::fs::read_to_string(file).map_err(Error::io("read", file))?;
    Ok(page::html(&gather(plan, text, pictures)?))
}

fn gather(plan: &Plan, text: String, pictures: bool) -> Result<Report, Fault> {
    let session = questions::opened(plan)?;
    let runs: Vec<RunRow> = questions::rows(&questions::asked(
        &session.workspace,
        &format!("select * from runs where pipeline = {} order by started_ms desc limit 50", questions::quoted(&plan.name)),
    )?)?;
    let newest = newest_executions(&session, plan)?;
    let items = newest_artifacts(&session, plan)?;
    let waited = waited(&session)?;
    let nodes = plan.nodes.iter().enumerate().map(|(i, n)| node(n, &newest, &items[i], &waited)).collect();
    let (mut scores, mut split, mut trainings, mut fold) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for (i, n) in plan.nodes.iter().enumerate().filter(|(_, n)| n.def.info.scope == Scope::Set) {
        for item in &items[i] {
            let tables = table::files(&item.dir)?;
            if tables.contains_key(ScoreRow::TABLE) {
                scores = table::rows_of::<ScoreRow>(&table::open(&item.dir)?)?;
            }
            if tables.contains_key(SplitRow::TABLE) {
                split = table::rows_of::<SplitRow>(&table::open(&item.dir)?)?;
            }
            if tables.contains_key(HistoryRow::TABLE) {
                let all = table::open(&item.dir)?;
                let history = table::rows_of::<HistoryRow>(&all)?;
                let steps = if tables.contains_key(StepRow::TABLE) { table::rows_of::<StepRow>(&all)? } else { Vec::new() };
                let facts = item.manifest.facts.clone();
                // The parts of the page are those of the training it shows.
                fold = item.manifest.recipe.config.get("fold").and_then(Value::as_i64).unwrap_or(0);
                let classes = facts.get("class_dice").and_then(Value::as_object).map(|m| m.keys().cloned().collect()).unwrap_or_default();
                trainings.push(Training { node: n.name.clone(), classes, history, steps, facts });
            }
        }
    }
    let mut cases = cases(plan, &items, &newest, &scores, &SplitRow::parts(&split, fold));
    if pictures {
        take_pictures(&session, plan, &items, &mut cases)?;
    }
    let classes = classes(&items);
    Ok(Report { title: plan.name.clone(), about: about(plan, &runs), nodes, cases, classes, trainings, runs, text })
}

fn about(plan: &Plan, runs: &[RunRow]) -> Vec<(String, String)> {
    let mut out = vec![("Voxmill".to_string(), env!("CARGO_PKG_VERSION").to_string()), ("seed".into(), plan.seed.to_string())];
    if let Some(last) = runs.iter().find(|r| r.purpose == "run") {
        out.push(("last run".into(), last.run.clone()));
        out.push(("ended".into(), last.status.clone()));
        if let Some(end) = last.ended_ms {
            out.push(("took".into(), page::duration(end - last.started_ms)));
        }
        out.push(("configuration".into(), last.config_hash.chars().take(8).collect()));
        let more = [("commit", last.commit.as_ref().map(|c| c.chars().take(8).collect())), ("CPU", last.cpu.clone())];
        out.extend(more.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?))));
    }
    out
}

/// Of each node the rows of the newest run that reached it.
fn newest_executions(session: &Session, plan: &Plan) -> Result<BTreeMap<String, Vec<ExecutionRow>>, Fault> {
    let own = questions::runs_where(session, |r| r.pipeline == plan.name && r.purpose == "run")?;
    // Names of runs sort by their beginnings.
    let sql = format!("select node, max(run) from executions where {own} group by node");
    let cells = table::show::cells(&questions::asked(&session.workspace, &sql)?, "")?;
    let newest = |row: &Vec<String>| format!("(node = {} and run = {})", questions::quoted(&row[0]), questions::quoted(&row[1]));
    let newest: Vec<String> = cells.iter().map(newest).collect();
    let mut out: BTreeMap<String, Vec<ExecutionRow>> = BTreeMap::new();
    if newest.is_empty() {
        return Ok(out);
    }
    let sql = format!("select * from executions where {}", newest.join(" or "));
    for row in questions::rows::<ExecutionRow>(&questions::asked(&session.workspace, &sql)?)? {
        out.entry(row.node.clone()).or_default().push(row);
    }
    Ok(out)
}

/// The newest artifacts of every node, sorted by case. One that was taken off the shelf since is missing.
fn newest_artifacts(session: &Session, plan: &Plan) -> Result<Vec<Vec<Input>>, Error> {
    let heads = session.heads(plan, false);
    let of_node = |name: &str| -> Result<Vec<Input>, Error> {
        let keys: Vec<Key> = heads.read(name).into_values().collect();
        let found = keys.par_iter().map(|key| {
            session.store.hold(key)?;
            let manifest = session.store.disk.manifest(key)?;
            Ok(manifest.map(|m| Input { dir: session.store.disk.dir(key), manifest: m.into(), rows: None }))
        });
        Ok(found.collect::<Result<Vec<_>, Error>>()?.into_iter().flatten().collect())
    };
    plan.nodes.iter().map(|n| of_node(&n.name)).collect()
}

/// Node and run → milliseconds.
fn waited(session: &Session) -> Result<BTreeMap<(String, String), i64>, Fault> {
    let sql = "select node, run, cast(sum(waited_ms) as bigint) from traffic group by node, run having sum(waited_ms) > 0";
    let cells = table::show::cells(&questions::asked(&session.workspace, sql)?, "")?;
    Ok(cells.into_iter().filter_map(|row| Some(((row[0].clone(), row[1].clone()), row[2].parse().ok()?))).collect())
}

fn node(
    n: &crate::plan::PlanNode,
    newest: &BTreeMap<String, Vec<ExecutionRow>>,
    items: &[Input],
    waited: &BTreeMap<(String, String), i64>,
) -> Node {
    let rows = newest.get(&n.name).map_or(&[][..], Vec::as_slice);
    let count = |status: &str| rows.iter().filter(|r| r.status == status).count();
    let took = rows.iter().map(|r| r.ended_ms).max().unwrap_or(0) - rows.iter().map(|r| r.started_ms).min().unwrap_or(0);
    Node {
        name: n.name.clone(),
        stage: n.def.info.name,
        gives: Some(n.def.info.gives),
        from: n.ups().map(|(_, up)| up).collect::<BTreeSet<_>>().into_iter().collect(),
        made: count("made"),
        reused: count("reused"),
        quarantined: count("quarantined"),
        failed: count("failed"),
        took_ms: took,
        bytes: items.iter().map(|i| i.manifest.bytes).sum(),
        ram_hits: rows.iter().map(|r| r.ram_hits).sum(),
        nvme_hits: rows.iter().map(|r| r.nvme_hits).sum(),
        disk_reads: rows.iter().map(|r| r.disk_reads).sum(),
        waited_ms: rows.first().and_then(|r| waited.get(&(n.name.clone(), r.run.clone()))).copied().unwrap_or(0),
    }
}

fn classes(items: &[Vec<Input>]) -> Vec<String> {
    let mut ids: BTreeMap<u64, String> = BTreeMap::new();
    for item in items.iter().flatten() {
        let map = item.manifest.facts.get("classes").and_then(Value::as_object);
        ids.extend(map.into_iter().flatten().filter_map(|(name, id)| Some((id.as_u64()?, name.clone()))));
    }
    ids.into_values().collect()
}

fn cases(
    plan: &Plan,
    items: &[Vec<Input>],
    newest: &BTreeMap<String, Vec<ExecutionRow>>,
    scores: &[ScoreRow],
    parts: &BTreeMap<String, String>,
) -> Vec<Case> {
    let mut out: BTreeMap<String, Case> = BTreeMap::new();
    for (i, _) in plan.nodes.iter().enumerate().filter(|(_, n)| n.def.info.scope == Scope::Case && n.def.info.gives == Kind::Volume) {
        for m in items[i].iter().map(|item| &item.manifest) {
            let Some(name) = m.case.as_ref().map(|c| c.0.clone()) else { continue };
            let case = out.entry(name.clone()).or_insert_with(|| Case { name, ..Case::default() });
            // The first volume of a case is that of the archive: later ones are made for training.
            if case.size.is_empty() {
                describe(case, m);
            }
        }
    }
    for rows in newest.values() {
        for row in rows.iter().filter(|r| r.status == "quarantined") {
            let Some(name) = row.case.clone() else { continue };
            let case = out.entry(name.clone()).or_insert_with(|| Case { name, ..Case::default() });
            case.quarantined = Some((row.node.clone(), row.error.clone().unwrap_or_default()));
        }
    }
    for s in scores {
        if let Some(case) = out.get_mut(&s.case) {
            case.scores.insert(s.class.clone(), s.clone());
        }
    }
    for (name, part) in parts {
        if let Some(case) = out.get_mut(name) {
            case.part = part.clone();
        }
    }
    out.into_values().collect()
}

fn describe(case: &mut Case, m: &Manifest) {
    let text = |name: &str| m.facts.get(name).and_then(Value::as_str).unwrap_or_default().to_string();
    let axes = |name: &str| -> Vec<f64> {
        let Some(v) = m.facts.get(name) else { return Vec::new() };
        ["z", "y", "x"].iter().filter_map(|a| v.get(a)?.as_f64()).collect()
    };
    case.patient = text("patient");
    case.modality = text("modality");
    case.size = axes("size").iter().map(|v| *v as i64).collect();
    case.spacing_mm = axes("spacing_mm");
}

fn take_pictures(session: &Session, plan: &Plan, items: &[Vec<Input>], cases: &mut [Case]) -> Result<(), Error> {
    let by_case = |of: &[usize]| -> BTreeMap<String, &Input> {
        of.iter().flat_map(|i| &items[*i]).filter_map(|item| Some((item.manifest.case.as_ref()?.0.clone(), item))).collect()
    };
    let Some(pair) = shown::pair(plan, |i| items[i].iter().any(|item| shown::is_image(&item.manifest))) else { return Ok(()) };
    let (images, predictions) = (by_case(&[pair.image]), by_case(&pair.predictions));
    let unit_of = |i: usize| Some(shown::unit(&items[i].first()?.manifest).to_string());
    let memo = session.workspace.join("memo").join("mosaics-2");
    cases.par_iter_mut().for_each(|case| {
        if let Some(item) = images.get(&case.name) {
            let window = shown::window(plan, Some(pair.image), shown::unit(&item.manifest), unit_of);
            case.picture = mosaic::of(&memo, &session.store, item, predictions.get(&case.name).copied(), window);
        }
    });
    Ok(())
}
