//! What a user reads about each kind of mistake in a pipeline, held by snapshots. A case is a file: `cases/NAME.yaml` with its snapshot
//! `snapshots/NAME.snap`. Lines `# --set KEY=VALUE` at its top are given as on the command line.
#![allow(clippy::unwrap_used)]

mod mangled;
mod outside;
mod right;
mod stages;

use std::path::{Path, PathBuf};

use stages::STAGES;

/// Relative to the package, where cargo runs tests: no path of a machine gets into a snapshot.
fn cases() -> PathBuf {
    PathBuf::from("tests/language/cases")
}

/// Loads a file of `cases/` with what its head says. Paths in the text shown are relative to the folder.
fn told(name: &str) -> String {
    let file = cases().join(name);
    let text = std::fs::read_to_string(&file).unwrap();
    let heads = |what: &str| -> Vec<String> { text.lines().filter_map(|l| l.strip_prefix(what)).map(str::to_string).collect() };
    let sets = heads("# --set ");
    let told = match voxmill::load(&file, &sets, STAGES) {
        Ok(plan) if plan.warnings.is_empty() => "no mistakes".into(),
        Ok(plan) => voxmill::problem::render_as(&plan.warnings, false),
        Err(problems) => voxmill::problem::render_as(&problems, false),
    };
    told.replace(&format!("{}/", cases().display()), "")
}

#[test]
fn every_mistake_is_told_with_its_place() {
    let mut names: Vec<String> = std::fs::read_dir(cases())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.ends_with(".yaml"))
        .collect();
    names.sort();
    assert!(names.len() > 40);
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/language/snapshots"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let mut wrong = Vec::new();
    settings.bind(|| {
        for name in &names {
            let told = told(name);
            let stem = name.trim_end_matches(".yaml");
            let caught = std::panic::catch_unwind(|| insta::assert_snapshot!(stem, told));
            wrong.extend(caught.is_err().then_some(stem));
        }
    });
    assert!(wrong.is_empty(), "{wrong:?}");
}
