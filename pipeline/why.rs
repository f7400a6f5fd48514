//! `voxmill why`: what became of a node, case by case, the last time that it was reached, and which run made what it has. In steps that each read little: a
//! lineage of ten million rows is answered without a join or a sort over it.

use std::collections::{BTreeMap, BTreeSet};

use voxmill_schemas::tables::{ExecutionRow, Row, WhyRow};
use voxmill_stages::table::{RecordBatch, show};

use crate::plan::Plan;
use crate::questions::{asked, opened, quoted, rows, runs_where};
use crate::session::{Fault, Session};

/// Made (and which part of its key was new), reused, or why not.
pub fn why(plan: &Plan, node: &str, case: Option<&str>) -> Result<Vec<RecordBatch>, Fault> {
    if !plan.nodes.iter().any(|n| n.name == node) {
        let nodes = plan.nodes.iter().map(|n| n.name.clone()).collect::<Vec<_>>().join(", ");
        return Err(Fault::NoSuchNode { name: node.into(), nodes });
    }
    let session = opened(plan)?;
    let own = runs_where(&session, |r| r.pipeline == plan.name)?;
    let of_case = case.map(|c| format!(" and \"case\" = {}", quoted(c))).unwrap_or_default();
    let of_node = format!("node = {}{of_case} and {own}", quoted(node));
    // Names of runs sort by their beginnings.
    let sql = format!("select coalesce(\"case\", ''), max(run) from executions where {of_node} group by 1");
    let last: BTreeMap<String, String> = cells(&session, &sql)?.into_iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    if last.is_empty() {
        let what = case.map_or(node.to_string(), |c| format!("{node} of {c}"));
        return Err(Fault::Wrong(format!("{what} was never reached by a run: voxmill plan says what a run would do")));
    }
    let mut found = BTreeMap::new();
    for run in last.values().collect::<BTreeSet<_>>() {
        for e in executions(&session, &of_node, run)? {
            let case = e.case.clone().unwrap_or_default();
            if last.get(&case) == Some(run) {
                found.insert(case, e);
            }
        }
    }
    let made = made(&session, &of_node, &found)?;
    let answer: Vec<WhyRow> = found.iter().map(|(case, e)| row(e, made.get(case))).collect();
    Ok(vec![WhyRow::to_batch(&answer)])
}

fn cells(s: &Session, sql: &str) -> Result<Vec<Vec<String>>, Fault> {
    Ok(show::cells(&asked(&s.workspace, sql)?, "")?)
}

fn executions(s: &Session, of_node: &str, run: &str) -> Result<Vec<ExecutionRow>, Fault> {
    rows(&asked(&s.workspace, &format!("select * from executions where run = {} and {of_node}", quoted(run)))?)
}

/// Runs that are looked through whole; what none of them made is looked for by its key.
const RUNS: usize = 3;
/// Keys of one query.
const KEYS: usize = 500;

/// Case → the last time that what it has was made: most often in one of the newest runs that made anything.
fn made(s: &Session, of_node: &str, found: &BTreeMap<String, ExecutionRow>) -> Result<BTreeMap<String, ExecutionRow>, Fault> {
    let is_there = |e: &ExecutionRow| matches!(e.status.as_str(), "made" | "reused");
    let mut left: BTreeMap<&str, &str> =
        found.iter().filter(|(_, e)| is_there(e)).map(|(case, e)| (case.as_str(), e.key.as_str())).collect();
    let mut out: BTreeMap<String, ExecutionRow> = BTreeMap::new();
    let mut take = |rows: Vec<ExecutionRow>, left: &mut BTreeMap<&str, &str>| {
        for e in rows.into_iter().filter(|e| e.status == "made") {
            let case = e.case.clone().unwrap_or_default();
            let is_newer = out.get(&case).is_none_or(|o| o.run < e.run);
            if is_newer && found.get(&case).is_some_and(|f| f.key == e.key) {
                left.remove(case.as_str());
                out.insert(case, e);
            }
        }
    };
    let sql = format!("select distinct run from executions where status = 'made' and {of_node} order by 1 desc limit {RUNS}");
    for run in cells(s, &sql)?.into_iter().filter_map(|mut row| row.pop()) {
        if left.is_empty() {
            break;
        }
        take(executions(s, of_node, &run)?, &mut left);
    }
    let keys: Vec<String> = left.values().map(|key| quoted(key)).collect::<BTreeSet<_>>().into_iter().collect();
    for keys in keys.chunks(KEYS) {
        let sql = format!("select * from executions where status = 'made' and {of_node} and key in ({})", keys.join(", "));
        take(rows(&asked(&s.workspace, &sql)?)?, &mut left);
    }
    Ok(out)
}

fn row(e: &ExecutionRow, made: Option<&ExecutionRow>) -> WhyRow {
    let why = match (&e.error, e.status.as_str()) {
        (Some(error), _) => error.clone(),
        (None, "reused") => {
            let why = made.and_then(|m| m.why.as_deref()).unwrap_or("not told");
            format!("nothing that it is made from has changed; made because: {why}")
        }
        (None, _) => e.why.clone().unwrap_or_default(),
    };
    WhyRow {
        case: e.case.clone(),
        status: e.status.clone(),
        why,
        took_ms: e.took_ms,
        key: e.key.chars().take(8).collect(),
        run: e.run.clone(),
        made_in: made.map(|m| m.run.clone()),
    }
}
