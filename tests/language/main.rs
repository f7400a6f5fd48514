//! What a user reads about each kind of mistake in a pipeline, held by snapshots. A case is a file: `cases/NAME.yaml` with its snapshot
//! `snapshots/NAME.snap`. Lines `# --set KEY=VALUE` at its top are given as on the command line. `nodes/NAME.yaml` are uses of the stages we ship: what ports and
//! settings of a node say to one another.
#![allow(clippy::unwrap_used)]

mod mangled;
mod outside;
mod right;
mod stages;

use std::path::{Path, PathBuf};

use stages::STAGES;
use voxmill_stages::stage::StageDef;

/// Loads a file of a folder with what its head says. Paths in the text shown are relative to the folder.
fn told(folder: &Path, name: &str, stages: &'static [StageDef]) -> String {
    let file = folder.join(name);
    let text = std::fs::read_to_string(&file).unwrap();
    let heads = |what: &str| -> Vec<String> { text.lines().filter_map(|l| l.strip_prefix(what)).map(str::to_string).collect() };
    let sets = heads("# --set ");
    let told = match voxmill::load(&file, &sets, stages) {
        Ok(plan) if plan.warnings.is_empty() => "no mistakes".into(),
        Ok(plan) => voxmill::problem::render_as(&plan.warnings, false),
        Err(problems) => voxmill::problem::render_as(&problems, false),
    };
    told.replace(&format!("{}/", folder.display()), "")
}

#[test]
fn every_mistake_is_told_with_its_place() {
    held("cases", "", STAGES, 40);
}

#[test]
fn what_ports_and_settings_say_to_one_another_is_told_before_a_run() {
    held("nodes", "node_", voxmill_stages::STAGES, 10);
}

/// - `at_least`: files there are, so that a wrong folder cannot pass
fn held(folder: &str, prefix: &str, stages: &'static [StageDef], at_least: usize) {
    // Relative to the package, where cargo runs tests: no path of a machine gets into a snapshot.
    let folder = PathBuf::from("tests/language").join(folder);
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.ends_with(".yaml"))
        .collect();
    names.sort();
    assert!(names.len() > at_least);
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/language/snapshots"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let mut wrong = Vec::new();
    settings.bind(|| {
        for name in &names {
            let told = told(&folder, name, stages);
            let stem = format!("{prefix}{}", name.trim_end_matches(".yaml"));
            let caught = std::panic::catch_unwind(|| insta::assert_snapshot!(stem.as_str(), told));
            wrong.extend(caught.is_err().then_some(stem));
        }
    });
    assert!(wrong.is_empty(), "{wrong:?}");
}
