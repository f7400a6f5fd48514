//! What a node has to do: which cases, from which inputs, by which recipe; and why a recipe is new.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use voxmill_schemas::artifact::{CaseId, ContentHash, Key, Kind, Recipe, RecipeInput, Scope};
use voxmill_schemas::tables::{InstanceRow, Row};
use voxmill_stages::dicom::contents::Contents;
use voxmill_stages::error::Error;
use voxmill_stages::stage::{Input, Inputs, Partners, Rows};
use voxmill_stages::store::Store;
use voxmill_stages::table;

use crate::plan::PlanNode;

/// What a recipe's config says beside the stage's own fields where voxels are not written.
pub const KEEP: &str = "keep";

/// One artifact to reuse or make.
#[derive(Clone, Debug)]
pub struct Job {
    pub case: Option<CaseId>,
    pub inputs: Inputs,
    pub recipe: Recipe,
}

/// The jobs of a node, sorted by case.
#[derive(Debug, Default)]
pub struct Work {
    pub jobs: Vec<Job>,
    /// Cases that the stage has nothing to do for.
    pub left_out: usize,
}

/// The work of a node with ports. `upstream` gives the results of a node by its index in the plan.
pub fn of<'a>(node: &PlanNode, seed: u64, upstream: impl Fn(usize) -> &'a [Input]) -> Result<Work, Error> {
    match node.def.info.scope {
        Scope::Set => {
            let mut ports = BTreeMap::new();
            for (port, ups) in &node.from {
                let mut items: Vec<Input> = ups.iter().flat_map(|up| upstream(*up)).cloned().collect();
                if ups.len() > 1 {
                    items.sort_by(|a, b| a.manifest.case.cmp(&b.manifest.case));
                    refuse_twins(node, port, &items)?;
                }
                for item in items.iter_mut().filter(|i| i.manifest.kind == Kind::Table) {
                    item.rows = Some(table::open(&item.dir)?);
                }
                ports.insert(port.clone(), items);
            }
            Ok(Work { jobs: vec![job(node, seed, None, Inputs(ports))], left_out: 0 })
        }
        Scope::Case => case_jobs(node, seed, upstream),
    }
}

/// Nodes that feed one port give different cases. Models have no case.
fn refuse_twins(node: &PlanNode, port: &str, items: &[Input]) -> Result<(), Error> {
    let twin = items.windows(2).find(|w| w[0].manifest.case.is_some() && w[0].manifest.case == w[1].manifest.case);
    match twin.and_then(|w| w[0].manifest.case.as_ref()) {
        None => Ok(()),
        Some(case) => Err(Error::Input {
            what: format!("port `{port}` of {}", node.name),
            found: format!("case {case} from two nodes"),
            expected: "each case from one of them, as with `only: val` and another fold in each".into(),
        }),
    }
}

fn case_jobs<'a>(node: &PlanNode, seed: u64, upstream: impl Fn(usize) -> &'a [Input]) -> Result<Work, Error> {
    let kind_of = |port: &str| node.def.info.ports.iter().find(|p| p.name == port).map(|p| p.kind);
    // In the order of the stage, not of the names: the first volume leads.
    let connected = || {
        node.def.info.ports.iter().filter_map(|p| {
            let (port, ups) = node.from.get_key_value(p.name)?;
            // Only models come from several nodes here.
            Some((p.kind, (port, ups.first()?)))
        })
    };
    let of_kind = |want: Kind| connected().filter(move |(kind, _)| *kind == want).map(|(_, from)| from);
    let mut tables: BTreeMap<&str, (&Input, Rows)> = BTreeMap::new();
    for (port, up) in of_kind(Kind::Table) {
        if let Some(input) = upstream(*up).first() {
            tables.insert(port, (input, table::open(&input.dir)?));
        }
    }
    let with_rows = |input: &Input, rows: Rows| Input { rows: Some(rows), ..input.clone() };
    let mut work = Work::default();
    let Some((leading, first_up)) = of_kind(Kind::Volume).next() else {
        let all = tables.iter().map(|(port, (_, rows))| (port.to_string(), rows.clone())).collect();
        for opened in node.stage.cases(&all)? {
            let ports = opened.rows.into_iter().map(|(port, rows)| {
                let input = with_rows(tables[port.as_str()].0, rows);
                (port, vec![input])
            });
            work.jobs.push(job(node, seed, Some(opened.case), Inputs(ports.collect())));
        }
        work.jobs.sort_by(|a, b| a.case.cmp(&b.case));
        return Ok(work);
    };
    let partners = node.stage.partners();
    let called = |i: &'a Input| match partners {
        Partners::Case => i.manifest.case.as_ref().map(|c| c.0.as_str()),
        Partners::Fact(name) => i.manifest.facts.get(name).and_then(|v| v.as_str()).filter(|v| !v.is_empty()),
    };
    // Port → name → what it gives: a look for each case through all of them would be quadratic.
    let mut twins: BTreeMap<&str, HashMap<Option<&str>, Vec<&Input>>> = BTreeMap::new();
    for (port, up) in of_kind(Kind::Volume).skip(1) {
        let by_name = twins.entry(port).or_default();
        upstream(*up).iter().for_each(|i| by_name.entry(called(i)).or_default().push(i));
    }
    'cases: for lead in upstream(*first_up) {
        let mut ports = BTreeMap::from([(leading.clone(), vec![lead.clone()])]);
        for (port, by_case) in &twins {
            let found = match by_case.get(&called(lead)) {
                Some(found) if partners == Partners::Case => &found[..1],
                // What says no study is of none.
                Some(found) if called(lead).is_some() => found,
                // A case that failed upstream is counted there.
                _ if partners == Partners::Case => continue 'cases,
                _ => &[],
            };
            ports.insert(port.to_string(), found.iter().map(|i| (*i).clone()).collect());
        }
        for (port, (input, rows)) in &tables {
            match node.stage.rows_of(port, rows, &lead.manifest)? {
                Some(mine) => ports.insert(port.to_string(), vec![with_rows(input, mine)]),
                None => {
                    work.left_out += 1;
                    continue 'cases;
                }
            };
        }
        for (port, ups) in node.from.iter().filter(|(p, _)| !matches!(kind_of(p), Some(Kind::Volume | Kind::Table))) {
            ports.insert(port.clone(), ups.iter().flat_map(|up| upstream(*up)).cloned().collect());
        }
        work.jobs.push(job(node, seed, lead.manifest.case.clone(), Inputs(ports)));
    }
    work.jobs.sort_by(|a, b| a.case.cmp(&b.case));
    Ok(work)
}

fn job(node: &PlanNode, seed: u64, case: Option<CaseId>, inputs: Inputs) -> Job {
    let mut recipe = recipe(node, seed);
    recipe.inputs = recipe_inputs(node, case.as_ref(), &inputs);
    Job { case, inputs, recipe }
}

fn recipe_inputs(node: &PlanNode, case: Option<&CaseId>, inputs: &Inputs) -> BTreeMap<String, Vec<RecipeInput>> {
    let content = |i: &Input| match (&i.rows, node.def.info.scope) {
        (Some(rows), Scope::Case) => rows.content(),
        // What reads files of the archive is keyed by their bytes, which the index does not know.
        (Some(rows), Scope::Set) if rows.0.contains_key(InstanceRow::TABLE) => rows.content(),
        _ => i.manifest.content,
    };
    let of_port = |items: &Vec<Input>| -> Vec<RecipeInput> {
        let case_of = |i: &Input| if node.def.info.scope == Scope::Set { i.manifest.case.clone() } else { None };
        items.iter().map(|i| RecipeInput { case: case_of(i), content: content(i) }).collect()
    };
    let mut out: BTreeMap<_, _> = inputs.0.iter().map(|(port, items)| (port.clone(), of_port(items))).collect();
    // A case stage that reads its own name (file names, case columns) must not share an artifact with another case of equal bytes.
    if let Some(case) = case {
        out.insert("case".into(), vec![RecipeInput { case: Some(case.clone()), content: ContentHash::of(case.0.as_bytes()) }]);
    }
    out
}

/// The job with the bytes of its files in its key: an index reads headers alone, and what stands behind them is hashed when a case is opened.
/// - `step`: told the bytes of every file that has to be read for it
pub fn settle(node: &PlanNode, job: &Job, contents: &Contents, step: &(dyn Fn(u64) -> Result<(), Error> + Sync)) -> Result<Job, Error> {
    let mut job = job.clone();
    let rows = job.inputs.0.values_mut().flatten().filter_map(|i| i.rows.as_mut());
    rows.map(|r| contents.fill(r, step)).collect::<Result<Vec<_>, _>>()?;
    job.recipe.inputs = recipe_inputs(node, job.case.as_ref(), &job.inputs);
    Ok(job)
}

fn recipe(node: &PlanNode, seed: u64) -> Recipe {
    let mut config = node.stage.config();
    if let Some(config) = config.as_object_mut().filter(|_| node.lazy) {
        // Steps and voxels are two artifacts. No field of a stage has this name.
        config.insert(KEEP.into(), false.into());
    }
    Recipe {
        stage: node.def.info.name.into(),
        version: node.def.info.version,
        config,
        inputs: BTreeMap::new(),
        // A seed that a stage does not draw from must not make its artifacts stale.
        seed: if node.stage.is_random() { seed } else { 0 },
    }
}

/// The recipe of a source: what its draft holds takes the place of inputs.
pub fn source_recipe(node: &PlanNode, seed: u64, draft: &Path) -> Result<Recipe, Error> {
    let mut names: Vec<_> = std::fs::read_dir(draft)
        .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>())
        .map_err(Error::io("list", draft))?;
    names.sort();
    let mut found = blake3::Hasher::new();
    for path in names {
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        found.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        found.update(blake3::hash(&bytes).as_bytes());
    }
    let mut recipe = recipe(node, seed);
    recipe.inputs.insert("found".into(), vec![RecipeInput { case: None, content: ContentHash(*found.finalize().as_bytes()) }]);
    Ok(recipe)
}

/// Which part of the key changed since the node last gave this case, in words.
pub fn why(store: &Store, job: &Job, before: &BTreeMap<String, Key>) -> String {
    let name = job.case.as_ref().map_or("", |c| &c.0);
    why_recipe(store, &job.recipe, before.get(name))
}

/// The same for a recipe and the key that stood there before.
pub fn why_recipe(store: &Store, recipe: &Recipe, before: Option<&Key>) -> String {
    let Some(key) = before else { return "never made here".into() };
    if *key == recipe.key() {
        return "its artifact is gone from the store".into();
    }
    match store.disk.manifest(key) {
        Ok(Some(old)) => {
            let parts = recipe.differences(&old.recipe);
            let more = parts.len().saturating_sub(4);
            let shown = parts.into_iter().take(4).collect::<Vec<_>>().join("; ");
            if more > 0 { format!("{shown}; and {more} more") } else { shown }
        }
        _ => "what stood there before is gone from the store".into(),
    }
}
