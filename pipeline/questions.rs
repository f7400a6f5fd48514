//! What people ask of lineage without writing SQL: what differs between two runs, which patients a model saw (`why.rs`: why an artifact was made).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use voxmill_schemas::artifact::{Key, Kind, Manifest};
use voxmill_schemas::tables::{DifferenceRow, ExecutionRow, HistoryRow, PatchRow, Row, RunRow, SawRow, SplitRow};
use voxmill_stages::error::Error;
use voxmill_stages::store::Disk;
use voxmill_stages::table::{self, RecordBatch, Source};

use crate::heads::Heads;
use crate::lineage;
use crate::plan::Plan;
use crate::session::{Fault, Session};

pub fn opened(plan: &Plan) -> Result<Session, Fault> {
    if !plan.workspace.join("lineage").is_dir() {
        return Err(Fault::Wrong(format!("nothing was run in {} yet", plan.workspace.display())));
    }
    Session::open(plan, None)
}

pub fn asked(workspace: &Path, sql: &str) -> Result<Vec<RecordBatch>, Fault> {
    Ok(lineage::query(workspace, sql, |_| Ok(()))?)
}

pub fn rows<R: Row>(batches: &[RecordBatch]) -> Result<Vec<R>, Fault> {
    let mut out = Vec::new();
    for batch in batches {
        out.extend(R::from_batch(batch).map_err(|e| Error::Query { why: e.to_string() })?);
    }
    Ok(out)
}

/// A text as SQL writes it.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A condition on the column `run`: that it is one of these runs.
pub fn runs_where(s: &Session, is_meant: impl Fn(&RunRow) -> bool) -> Result<String, Fault> {
    let all: Vec<RunRow> = rows(&asked(&s.workspace, "select * from runs")?)?;
    let meant: Vec<String> = all.iter().filter(|r| is_meant(r)).map(|r| quoted(&r.run)).collect();
    // All of them is said without their names.
    Ok(match meant.len() {
        0 => "false".into(),
        n if n == all.len() => "true".into(),
        _ => format!("run in ({})", meant.join(", ")),
    })
}

/// What differs between two runs. Runs go by the first characters of their names, by `last`, or by `last~2` for the second before it.
pub fn diff(plan: &Plan, old: &str, new: &str) -> Result<Vec<RecordBatch>, Fault> {
    let session = opened(plan)?;
    let runs: Vec<RunRow> = rows(&asked(&session.workspace, "select * from runs order by started_ms, run")?)?;
    let (old, new) = (run_called(&runs, &plan.name, old)?, run_called(&runs, &plan.name, new)?);
    let executions = |run: &RunRow| -> Result<Vec<ExecutionRow>, Fault> {
        rows(&asked(&session.workspace, &format!("select * from executions where run = {}", quoted(&run.run)))?)
    };
    let found = differences(old, &executions(old)?, new, &executions(new)?);
    Ok(vec![DifferenceRow::to_batch(&found)])
}

fn run_called<'a>(runs: &'a [RunRow], pipeline: &str, name: &str) -> Result<&'a RunRow, Fault> {
    if let Some(rest) = name.strip_prefix("last") {
        let back = if rest.is_empty() { Some(0) } else { rest.strip_prefix('~').and_then(|n| n.parse::<usize>().ok()) };
        let own: Vec<&RunRow> = runs.iter().filter(|r| r.pipeline == pipeline && r.purpose == "run").collect();
        let found = back.and_then(|b| own.len().checked_sub(b + 1)).map(|i| own[i]);
        return found.ok_or_else(|| Fault::Wrong(format!("there is no run {name}: {pipeline} has {} runs", own.len())));
    }
    let found: Vec<&RunRow> = runs.iter().filter(|r| r.run.starts_with(name)).collect();
    match found[..] {
        [run] => Ok(run),
        [] => {
            let some = runs.iter().rev().take(5).map(|r| r.run.as_str()).collect::<Vec<_>>().join(", ");
            Err(Fault::Wrong(format!("there is no run {name}: the last are {some}; `last` and `last~1` work, too")))
        }
        _ => Err(Fault::Wrong(format!("{name} means {} runs: give more of the name", found.len()))),
    }
}

/// Pure: rows in, rows out, sorted by what a reader wants to know first.
fn differences(old: &RunRow, old_rows: &[ExecutionRow], new: &RunRow, new_rows: &[ExecutionRow]) -> Vec<DifferenceRow> {
    let mut out = Vec::new();
    let mut put = |what: &str, node: Option<&str>, name: &str, old: Option<String>, new: Option<String>| {
        if old != new {
            out.push(DifferenceRow { what: what.into(), node: node.map(str::to_string), name: name.into(), old, new });
        }
    };
    put("program", None, "voxmill", Some(old.voxmill.clone()), Some(new.voxmill.clone()));
    put("pipeline", None, "name", Some(old.pipeline.clone()), Some(new.pipeline.clone()));
    put("pipeline", None, "seed", Some(old.seed.to_string()), Some(new.seed.to_string()));
    put("pipeline", None, "status", Some(old.status.clone()), Some(new.status.clone()));
    let by_node = |rows: &[ExecutionRow]| -> BTreeMap<String, BTreeMap<String, ExecutionRow>> {
        let mut out: BTreeMap<String, BTreeMap<String, ExecutionRow>> = BTreeMap::new();
        for r in rows {
            out.entry(r.node.clone()).or_default().insert(r.case.clone().unwrap_or_default(), r.clone());
        }
        out
    };
    let (old_nodes, new_nodes) = (by_node(old_rows), by_node(new_rows));
    let names: BTreeSet<&String> = old_nodes.keys().chain(new_nodes.keys()).collect();
    for node in names {
        let (a, b) = (old_nodes.get(node), new_nodes.get(node));
        let (Some(a), Some(b)) = (a, b) else {
            let stage = |side: Option<&BTreeMap<String, ExecutionRow>>| side.and_then(|s| s.values().next()).map(|r| r.stage.clone());
            put("node", Some(node), "stage", stage(a), stage(b));
            continue;
        };
        let (Some(first_a), Some(first_b)) = (a.values().next(), b.values().next()) else { continue };
        put("node", Some(node), "stage", Some(first_a.stage.clone()), Some(first_b.stage.clone()));
        put("code", Some(node), "version", Some(first_a.version.to_string()), Some(first_b.version.to_string()));
        for (name, x, y) in leaves_that_differ(&first_a.config, &first_b.config) {
            put("config", Some(node), &name, x, y);
        }
        let cases: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for case in cases {
            let said = |side: &BTreeMap<String, ExecutionRow>| {
                side.get(case).map(|r| match r.status.as_str() {
                    "made" | "reused" => r.content[..r.content.len().min(8)].to_string(),
                    other => format!("{other}: {}", r.error.as_deref().unwrap_or_default()),
                })
            };
            if case.is_empty() {
                // The artifact of a set: its numbers say more than its hash.
                let (x, y) = (&a[case], &b[case]);
                for (name, x, y) in leaves_that_differ(&x.facts, &y.facts).into_iter().filter(|(name, ..)| name != "report") {
                    put("result", Some(node), &name, x, y);
                }
                if x_failed(x) || x_failed(y) {
                    put("case", Some(node), "", said(a), said(b));
                }
            } else {
                put("case", Some(node), case, said(a), said(b));
            }
        }
    }
    let order = ["program", "pipeline", "code", "node", "config", "case", "result"];
    out.sort_by_key(|r| order.iter().position(|o| *o == r.what));
    out
}

fn x_failed(r: &ExecutionRow) -> bool {
    !matches!(r.status.as_str(), "made" | "reused")
}

/// Dotted names of the values that two JSON texts do not share.
fn leaves_that_differ(old: &str, new: &str) -> Vec<(String, Option<String>, Option<String>)> {
    fn leaves(path: String, v: &Value, out: &mut BTreeMap<String, String>) {
        match v {
            Value::Object(m) if !m.is_empty() => {
                m.iter().for_each(|(k, v)| leaves(if path.is_empty() { k.clone() } else { format!("{path}.{k}") }, v, out));
            }
            Value::String(s) => drop(out.insert(path, s.clone())),
            Value::Null => {}
            other => drop(out.insert(path, other.to_string())),
        }
    }
    let side = |text: &str| {
        let mut out = BTreeMap::new();
        leaves(String::new(), &serde_json::from_str(text).unwrap_or(Value::Null), &mut out);
        out
    };
    let (a, b) = (side(old), side(new));
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    names.into_iter().map(|n| (n.clone(), a.get(n).cloned(), b.get(n).cloned())).filter(|(_, x, y)| x != y).collect()
}

/// The cases that a model saw, or (with `patient`) the models that saw a patient: of every model on the shelf, the newest or not.
/// - `model`: a node, or the first digits of a key; `None`: all
pub fn saw(plan: &Plan, model: Option<&str>, patient: Option<&str>) -> Result<Vec<RecordBatch>, Fault> {
    let session = opened(plan)?;
    let disk = &session.store.disk;
    // What is only measured of a set (a fingerprint) is a model as well, and nothing was fitted to anybody.
    let is_trained = |m: &Manifest| m.kind == Kind::Model && m.files.contains_key(&format!("{}.parquet", HistoryRow::TABLE));
    let models: Vec<Manifest> = disk.manifests()?.into_iter().filter(is_trained).collect();
    let nodes = nodes_of(&session, &models)?;
    let chosen: Vec<&Manifest> = match model {
        None => models.iter().collect(),
        Some(what) if plan.nodes.iter().any(|n| n.name == what) => {
            let keys: BTreeSet<Key> = session.heads(plan, false).read(what).into_values().collect();
            models.iter().filter(|m| keys.contains(&m.key)).collect()
        }
        Some(what) => models.iter().filter(|m| what.len() >= 4 && m.key.hex().starts_with(&what.to_ascii_lowercase())).collect(),
    };
    if chosen.is_empty() {
        let known = known(&models, &nodes);
        return Err(Fault::Wrong(format!(
            "no model is called {}: give the node that trains it, or digits of its key; {known}",
            model.unwrap_or("so")
        )));
    }
    let mut out = Vec::new();
    for m in chosen {
        let of_patient = |r: &SawRow| patient.is_none_or(|p| r.patient == p);
        out.extend(seen_by(disk, m, nodes.get(&m.key))?.into_iter().filter(of_patient));
    }
    if let Some(patient) = patient.filter(|_| out.is_empty()) {
        return Err(Fault::Wrong(format!("no model here saw a patient {patient} (patients go by the names that the index gives them)")));
    }
    Ok(vec![SawRow::to_batch(&out)])
}

/// The node that made each of these artifacts: by the newest heads, else by the last run that made it.
pub fn nodes_of(session: &Session, artifacts: &[Manifest]) -> Result<BTreeMap<Key, String>, Fault> {
    let list = artifacts.iter().map(|m| quoted(&m.key.hex())).collect::<Vec<_>>().join(", ");
    let newest = Heads::all(&session.workspace);
    let mut by_hex = BTreeMap::new();
    if !list.is_empty() {
        let sql = format!("select key, node from executions where key in ({list}) order by started_ms");
        let cells = table::show::cells(&asked(&session.workspace, &sql)?, "")?;
        by_hex.extend(cells.into_iter().map(|row| (row[0].clone(), row[1].clone())));
    }
    let name = |m: &Manifest| Some((m.key, newest.get(&m.key).cloned().or_else(|| by_hex.get(&m.key.hex()).cloned())?));
    Ok(artifacts.iter().filter_map(name).collect())
}

/// What there is instead of the model that was asked for: `net (1a2b3c4d)`, by their nodes.
pub fn known(models: &[Manifest], nodes: &BTreeMap<Key, String>) -> String {
    let mut named: Vec<String> =
        models.iter().map(|m| nodes.get(&m.key).map_or_else(|| m.key.to_string(), |node| format!("{node} ({})", m.key))).collect();
    named.sort();
    if named.is_empty() { "no model was trained in this workspace yet".into() } else { format!("there is {}", named.join(", ")) }
}

/// What stands in the manifests and in the split that went in, so it is what the training read, whatever was run since.
fn seen_by(disk: &Disk, model: &Manifest, node: Option<&String>) -> Result<Vec<SawRow>, Error> {
    let keys = |port: &str| model.input_keys.get(port).into_iter().flatten();
    let fold = model.recipe.config.get("fold").and_then(Value::as_i64).unwrap_or(0);
    let mut parts = BTreeMap::new();
    for key in keys("split") {
        if disk.manifest(key)?.is_none() {
            continue;
        }
        let split: Vec<SplitRow> = table::rows_of(&table::open(&disk.dir(key))?)?;
        parts.extend(SplitRow::parts(&split, fold));
    }
    let n_patches = patches_of(disk, model)?;
    let is_marked = model.facts.contains_key(crate::forget::MARK);
    let mut out = Vec::new();
    for key in keys("cases") {
        let Some(m) = disk.manifest(key)? else {
            // Taken off the shelf since: the model still says that it was there.
            out.push(SawRow {
                model: model.key.hex(),
                node: node.cloned(),
                volume: key.hex(),
                part: if is_marked { "forgotten" } else { "unknown" }.into(),
                ..SawRow::default()
            });
            continue;
        };
        let fact = |name: &str| m.facts.get(name).and_then(Value::as_str).unwrap_or_default().to_string();
        let case = m.case.as_ref().map(|c| c.0.clone()).unwrap_or_default();
        out.push(SawRow {
            model: model.key.hex(),
            node: node.cloned(),
            patient: fact("patient"),
            part: parts.get(&case).cloned().unwrap_or_else(|| if is_marked { "forgotten" } else { "not used" }.into()),
            patches: n_patches.as_ref().map(|n| n.get(&case).copied().unwrap_or(0)),
            case,
            series: fact("series"),
            volume: key.hex(),
        });
    }
    out.sort_by(|a, b| (&a.part, &a.patient, &a.case).cmp(&(&b.part, &b.patient, &b.case)));
    Ok(out)
}

/// Case → how many patches of it a model saw. `None` where it keeps no table of them.
fn patches_of(disk: &Disk, model: &Manifest) -> Result<Option<BTreeMap<String, i64>>, Error> {
    let name = format!("{}.parquet", PatchRow::TABLE);
    if !model.files.contains_key(&name) {
        return Ok(None);
    }
    let files = BTreeMap::from([(PatchRow::TABLE.to_string(), Source::Files(vec![disk.dir(&model.key).join(name)]))]);
    let cells = table::show::cells(&table::query(files, "select \"case\", count(*) from patches group by \"case\"")?, "")?;
    Ok(Some(cells.into_iter().filter_map(|row| Some((row[0].clone(), row[1].parse().ok()?))).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn execution(node: &str, case: Option<&str>, config: &str, content: &str, facts: &str) -> ExecutionRow {
        ExecutionRow {
            node: node.into(),
            stage: "resample".into(),
            version: 1,
            case: case.map(str::to_string),
            config: config.into(),
            content: content.into(),
            facts: facts.into(),
            status: "made".into(),
            ..ExecutionRow::default()
        }
    }

    #[test]
    fn a_difference_names_config_case_and_result() {
        let run = |name: &str| RunRow { run: name.into(), voxmill: "1".into(), seed: 3, ..RunRow::default() };
        let old = [
            execution("iso", Some("a"), r#"{"spacing_mm":{"z":1.0}}"#, "00", "{}"),
            execution("iso", Some("b"), r#"{"spacing_mm":{"z":1.0}}"#, "11", "{}"),
            execution("net", None, "{}", "22", r#"{"best_dice":0.8,"report":["x"]}"#),
        ];
        let new = [
            execution("iso", Some("a"), r#"{"spacing_mm":{"z":2.0}}"#, "33", "{}"),
            execution("net", None, "{}", "44", r#"{"best_dice":0.9,"report":["y"]}"#),
            execution("out", None, "{}", "55", "{}"),
        ];
        let found = differences(&run("x"), &old, &run("y"), &new);
        let told: Vec<String> = found
            .iter()
            .map(|r| {
                let side = |s: &Option<String>| s.clone().unwrap_or_else(|| "-".into());
                format!("{} {} {} {} {}", r.what, side(&r.node), r.name, side(&r.old), side(&r.new))
            })
            .collect();
        assert_eq!(
            told,
            [
                "node out stage - resample",
                "config iso spacing_mm.z 1.0 2.0",
                "case iso a 00 33",
                "case iso b 11 -",
                "result net best_dice 0.8 0.9"
            ]
        );
        assert!(differences(&run("x"), &old, &run("y"), &old).is_empty());
    }

    #[test]
    fn runs_go_by_the_start_of_their_name_or_their_place() {
        let run =
            |name: &str, purpose: &str| RunRow { run: name.into(), pipeline: "p".into(), purpose: purpose.into(), ..RunRow::default() };
        let runs = [run("20260101-a", "run"), run("20260102-b", "run"), run("20260103-c", "infer")];
        let called = |name: &str| run_called(&runs, "p", name).map(|r| r.run.clone()).unwrap_or_else(|e| e.to_string());
        assert_eq!([called("last"), called("last~1"), called("20260103")], ["20260102-b", "20260101-a", "20260103-c"]);
        assert!(called("last~2").contains("2 runs") && called("2026").contains("3 runs") && called("x").contains("20260103-c"));
    }
}
