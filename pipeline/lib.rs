//! The engine, in the order of its story: load and plan, run, leave lineage, answer questions.

pub mod cli;
pub mod commands;
pub mod deidentify;

// A file becomes a plan.
pub mod choice;
pub mod conform;
pub mod language;
pub mod plan;
pub mod problem;
pub mod schema;
pub mod words;

// A plan becomes artifacts.
pub mod heads;
pub mod infer;
pub mod jobs;
pub mod progress;
pub mod publish;
pub mod run;
pub mod session;
pub mod status;
pub mod summary;

// An archive becomes files without a file of ours.
pub mod archive_page;
pub mod convert;
pub mod thumbs;

// Artifacts answer questions.
#[cfg(feature = "model")]
pub mod bundle;
pub mod cache;
pub mod feed;
pub mod forget;
pub mod lineage;
pub mod openlineage;
pub mod query;
pub mod questions;
pub mod replay;
pub mod report;
pub mod serve;
pub mod trace;
pub mod view;
pub mod why;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use voxmill_schemas::spec::{self, World};
use voxmill_stages::stage::StageDef;

use plan::Plan;
use problem::Problem;

/// A pipeline is a text that people write: more is a mistake.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Reads a pipeline with what is set from outside (`KEY=VALUE` each), or says everything that is wrong with it. Warnings come with either.
pub fn load(file: &Path, sets: &[String], defs: &'static [StageDef]) -> Result<Plan, Vec<Problem>> {
    load_from(file, sets, defs, &text_of)
}

/// The same of a text that stands in no file. `name`: how messages call it.
pub fn load_text(name: &Path, text: String, defs: &'static [StageDef]) -> Result<Plan, Vec<Problem>> {
    load_from(name, &[], defs, &|path| if path == name { Ok(text.clone()) } else { text_of(path) })
}

/// A text, or why there is none (message, help).
type Text = Result<String, (String, String)>;

fn load_from(file: &Path, sets: &[String], defs: &'static [StageDef], text_of: &dyn Fn(&Path) -> Text) -> Result<Plan, Vec<Problem>> {
    let given = RefCell::new(BTreeMap::new());
    let variable = |name: &str| {
        let value = std::env::var(name).ok();
        given.borrow_mut().extend(value.iter().map(|v| (name.to_string(), v.clone())));
        value
    };
    let (spec, mistakes) = spec::read(file, &World { text_of, variable: &variable, sets });
    let mut problems: Vec<Problem> = mistakes.into_iter().map(Problem::from).collect();
    let has_mistakes = !problems.is_empty();
    let plan = spec.and_then(|spec| plan::make(&spec, defs, &mut problems));
    problem::sort(&mut problems);
    match plan {
        Some(plan) if !has_mistakes => Ok(Plan { warnings: problems, variables: given.into_inner(), ..plan }),
        _ => Err(problems),
    }
}

/// The text of a file.
fn text_of(path: &Path) -> Text {
    let name = path.display();
    let wrong = |message: String, help: &str| Err((message, help.to_string()));
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return wrong(format!("there is no file {name}"), "look at the path, relative to the current folder");
        }
        Err(e) => return wrong(format!("cannot read {name}: {e}"), "look at the path and its permissions"),
    };
    if meta.is_dir() {
        return wrong(format!("{name} is a folder, not a pipeline"), "give the YAML file itself");
    }
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|f| f.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    if let Err(e) = read {
        return wrong(format!("cannot read {name}: {e}"), "look at its permissions");
    }
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return wrong(format!("{name} is larger than 1 MiB"), "a pipeline is a short text: is this the right file?");
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(e) => {
            let at = e.utf8_error().valid_up_to();
            let line = e.as_bytes()[..at].iter().filter(|b| **b == b'\n').count() + 1;
            wrong(
                format!("{name} is not UTF-8: the first byte that is none stands in line {line}"),
                "save it as UTF-8; a pipeline is a text file",
            )
        }
    }
}
