//! One function a command: load, open the workspace, do it, tell it. Each gives its exit code.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use voxmill_stages::dicom::phantom::{self, Phantom};
use voxmill_stages::error::{Error, chain};
use voxmill_stages::stage::{Input, StageDef};
use voxmill_stages::table::RecordBatch;

use crate::cli::{
    AnswerArgs, BundleArgs, CacheCommand, ConvertArgs, DeidentifyArgs, FeedArgs, FileArgs, ForgetArgs, GraphArgs, GraphFormat, InferArgs,
    PhantomArgs, PlanFormat, QueryArgs, ReplayArgs, ReportArgs, RunArgs, TraceArgs, TraceFormat, ViewArgs, WorkArgs, print,
};
use crate::openlineage::Events;
use crate::plan::Plan;
use crate::problem::Problem;
use crate::progress::{Progressing, Style};
use crate::run::{self, Bench, Options, Summary};
use crate::session::{Fault, Session, cores};
use crate::trace::{self, Web};
use crate::{
    cache as shelves, convert, deidentify, feed as feeding, forget, infer, language, problem, publish, query, replay, report as pages,
    serve, status, summary, view,
};

static CANCEL: AtomicBool = AtomicBool::new(false);

/// Ctrl-C asks the work in hand to stop at its next safe place; a second one ends the process (drafts are dropped at the next start).
fn listen_for_ctrl_c() {
    // A second call in one process keeps the first handler: that is as good.
    let _ = ctrlc::set_handler(|| {
        if CANCEL.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        tell("stopping", "stopping: what is in hand is dropped or finished; press again to stop at once");
    });
}

/// How this process speaks on stderr: chosen once, by the command line.
static VOICE: OnceLock<Style> = OnceLock::new();

pub fn speak_as(style: Style) {
    let _ = VOICE.set(style);
}

/// What is not part of the display of a run: a line of JSON for machines, text for people.
fn tell(event: &str, text: &str) {
    if VOICE.get() == Some(&Style::Json) {
        eprintln!("{}", serde_json::json!({ "event": event, "text": text.trim() }));
    } else {
        eprintln!("{}", text.trim_end());
    }
}

fn load(file: &FileArgs, defs: &'static [StageDef]) -> Result<Plan, u8> {
    crate::load(&file.file, &file.sets, defs).map_err(|problems| {
        tell("mistakes", &problem::render(&problems));
        2
    })
}

/// The same with what is doubtful in the file: for the commands that are about it, not for those that ask what was made.
fn load_and_warn(file: &FileArgs, defs: &'static [StageDef]) -> Result<Plan, u8> {
    let plan = load(file, defs)?;
    if !plan.warnings.is_empty() && VOICE.get() != Some(&Style::Quiet) {
        tell("warning", &problem::render(&plan.warnings));
    }
    Ok(plan)
}

/// Prints a fault with its cause and gives its exit code.
fn fault(e: &Fault) -> u8 {
    // Mistakes in the file were shown where they stand.
    if !matches!(e, Fault::Told(_)) {
        tell("error", &format!("error: {}", chain(e)));
    }
    e.exit_code()
}

/// The nodes asked for with all they need; every node when none is asked for.
fn wanted(plan: &Plan, nodes: &[String]) -> Result<BTreeSet<usize>, Fault> {
    if nodes.is_empty() {
        return Ok((0..plan.nodes.len()).collect());
    }
    let mut todo = Vec::new();
    for name in nodes {
        let at = plan.nodes.iter().position(|n| n.name == *name);
        todo.push(at.ok_or_else(|| Fault::NoSuchNode {
            name: name.clone(),
            nodes: plan.nodes.iter().map(|n| n.name.clone()).collect::<Vec<_>>().join(", "),
        })?);
    }
    let mut all = BTreeSet::new();
    while let Some(i) = todo.pop() {
        if all.insert(i) {
            todo.extend(plan.nodes[i].ups().map(|(_, up)| up));
        }
    }
    Ok(all)
}

fn with_threads(jobs: usize) {
    // The pool of rayon is one for the process: `--jobs` bounds every parallel loop, Burn's included.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(jobs).build_global();
}

pub fn run(a: &RunArgs, defs: &'static [StageDef]) -> u8 {
    let plan = match load_and_warn(&a.file, defs) {
        Ok(plan) => plan,
        Err(code) => return code,
    };
    let nodes = match wanted(&plan, &a.nodes) {
        Ok(nodes) => nodes,
        Err(e) => return fault(&e),
    };
    if a.dry_run {
        return plan_nodes(&plan, &nodes, PlanFormat::Table);
    }
    match execute(&plan, &a.file, &a.work, a.fail_fast, &nodes, BTreeMap::new(), Purpose::Run).and_then(|ended| tell_end(ended, &a.file)) {
        Ok(code) => code,
        Err(e) => fault(&e),
    }
}

pub fn convert(a: &ConvertArgs, defs: &'static [StageDef]) -> u8 {
    // Nobody wrote the YAML that they are in.
    let mistakes = |problems: Vec<Problem>| {
        let problems: Vec<Problem> = problems.into_iter().map(convert::words::problem).collect();
        tell("mistakes", &problem::render(&problems));
        Fault::Told(2)
    };
    let made = (|| {
        let wanted = convert::Wanted::of(a)?;
        let text = wanted.yaml();
        if a.show_yaml {
            // What is shown must run.
            crate::load_text(Path::new(convert::FILE), text.clone(), defs).map_err(mistakes)?;
            print(&text);
            return Ok(0);
        }
        // Not what is written: that does not say where a hidden archive is, and another process may write its own.
        let plan = crate::load_text(&wanted.workspace.join(convert::FILE), text, defs).map_err(mistakes)?;
        convert::check(&wanted)?;
        let file = FileArgs { file: wanted.write()?, sets: Vec::new() };
        let nodes = (0..plan.nodes.len()).collect();
        let ended = execute(&plan, &file, &a.work, false, &nodes, BTreeMap::new(), Purpose::Convert)?;
        let told = convert::finish(&wanted, &plan, &ended.session, &ended.summary, &|| CANCEL.load(Ordering::Relaxed))?;
        ended.ui.summary(&ended.summary, ended.code);
        told.tell(&wanted, &ended.ui, ended.code);
        let (is_idle, code, recorded) = (ended.summary.is_idle(), ended.code, ended.recorded);
        drop(ended.session);
        if is_idle {
            wanted.clean_up();
        }
        recorded?;
        Ok(code)
    })();
    made.unwrap_or_else(|e| fault(&e))
}

/// What nodes are run for.
#[derive(PartialEq)]
enum Purpose {
    Run,
    /// Nothing is said of failures: that is done at the end.
    Convert,
    /// Files are published here, not in `WORKSPACE/out`.
    Infer(PathBuf),
}

/// How the work of a command ended.
struct Ended {
    summary: Summary,
    code: u8,
    session: Session,
    ui: Progressing,
    /// Whether lineage could be written to its end.
    recorded: Result<(), Error>,
}

fn tell_end(ended: Ended, file: &FileArgs) -> Result<u8, Fault> {
    summary::tell(&ended.ui, &ended.summary, &file.file, ended.code);
    ended.recorded?;
    Ok(ended.code)
}

/// Runs nodes with display and lineage.
fn execute(
    plan: &Plan,
    file: &FileArgs,
    work: &WorkArgs,
    fail_fast: bool,
    nodes: &BTreeSet<usize>,
    given: BTreeMap<usize, Vec<Input>>,
    purpose: Purpose,
) -> Result<Ended, Fault> {
    let jobs = work.jobs.map_or_else(cores, |j| j as usize);
    with_threads(jobs);
    listen_for_ctrl_c();
    let session = Session::open(plan, work.memory.as_deref())?;
    let is_told_later = purpose == Purpose::Convert;
    let out = if let Purpose::Infer(out) = purpose { Some(out) } else { None };
    if out.is_none() {
        // Before hours of work, not after them.
        nodes.iter().try_for_each(|i| publish::check(&session.workspace.join("out"), &plan.nodes[*i]))?;
    }
    let purpose = if out.is_some() { "infer" } else { "run" };
    let lineage = session.begin(plan, file, jobs, purpose)?;
    let events = match work.openlineage.as_deref().map(|to| Events::begin(to, plan, &lineage.run)).transpose() {
        Ok(events) => events.unwrap_or_else(Events::silent),
        Err(e) => {
            lineage.finish("failed")?;
            return Err(e);
        }
    };
    let names = nodes.iter().map(|i| plan.nodes[*i].name.as_str());
    let mut ui = Progressing::new(work.style(), names);
    ui.is_told_later = is_told_later;
    let heads = session.heads(plan, out.is_some());
    let (infer, out) = (out.is_some(), out.unwrap_or_else(|| session.workspace.join("out")));
    let options = Options { jobs, memory_bytes: session.work_bytes, fail_fast, out, infer };
    let contents = session.contents();
    let bench = Bench {
        plan,
        store: &session.store,
        workspace: &session.workspace,
        heads: &heads,
        contents: &contents,
        lineage: &lineage,
        events: &events,
        ui: &ui,
        cancel: &CANCEL,
    };
    let ended = run::run(&bench, &options, nodes, given);
    let summary = ended
        .unwrap_or_else(|e| Summary { nodes: vec![run::NodeEnd { failed: Some(chain(&e)), ..Default::default() }], ..Default::default() });
    let code = summary.exit_code();
    if let Some(lost) = events.finish(code) {
        tell("warning", &format!("warning: {lost}"));
    }
    let recorded = lineage.finish(match code {
        0 => "done",
        3 => "quarantined",
        130 => "cancelled",
        _ => "failed",
    });
    Ok(Ended { summary, code, session, ui, recorded })
}

pub fn plan(file: &FileArgs, nodes: &[String], format: PlanFormat, defs: &'static [StageDef]) -> u8 {
    let plan = match load_and_warn(file, defs) {
        Ok(plan) => plan,
        Err(code) => return code,
    };
    match wanted(&plan, nodes) {
        Ok(nodes) => plan_nodes(&plan, &nodes, format),
        Err(e) => fault(&e),
    }
}

fn plan_nodes(plan: &Plan, nodes: &BTreeSet<usize>, format: PlanFormat) -> u8 {
    let made = (|| {
        let session = Session::open(plan, None)?;
        let lineage = crate::lineage::Lineage::silent();
        let heads = session.heads(plan, false);
        let ui = Progressing::new(Style::Quiet, std::iter::empty());
        let bench = Bench {
            plan,
            store: &session.store,
            workspace: &session.workspace,
            heads: &heads,
            contents: &session.contents(),
            lineage: &lineage,
            events: &Events::silent(),
            ui: &ui,
            cancel: &CANCEL,
        };
        let options =
            Options { jobs: cores(), memory_bytes: session.work_bytes, fail_fast: false, out: session.workspace.join("out"), infer: false };
        Ok::<_, Fault>(status::of(&bench, &options, nodes)?)
    })();
    match made {
        Ok(nodes) if format == PlanFormat::Json => {
            print(&serde_json::to_string_pretty(&nodes).expect("plain data"));
            0
        }
        Ok(nodes) => {
            print(&status::table(&nodes));
            0
        }
        Err(e) => fault(&e),
    }
}

pub fn check(file: &FileArgs, defs: &'static [StageDef]) -> u8 {
    match load_and_warn(file, defs) {
        Ok(plan) => {
            print(&format!("{}: {} stages, no mistakes", file.file.display(), plan.nodes.len()));
            0
        }
        Err(code) => code,
    }
}

pub fn graph(a: &GraphArgs, defs: &'static [StageDef]) -> u8 {
    match load(&a.file, defs) {
        Ok(plan) => {
            print(&match a.format {
                GraphFormat::Mermaid => language::graph_mermaid(&plan),
                GraphFormat::Dot => language::graph_dot(&plan),
            });
            0
        }
        Err(code) => code,
    }
}

pub fn infer(a: &InferArgs, defs: &'static [StageDef]) -> u8 {
    let made = (|| {
        if !a.study.is_dir() {
            return Err(Fault::NoFolder { path: a.study.clone() });
        }
        infer::apart("STUDY", &a.study, &a.out)?;
        let whole = load(&a.file, defs).map_err(Fault::Told)?;
        let part = infer::part_of(&whole, a.node.as_deref())?;
        let sets = infer::sets(&whole, &part, &a.study, &a.file.sets);
        let file = FileArgs { sets, ..a.file.clone() };
        let plan = infer::cut(load(&file, defs).map_err(Fault::Told)?, &part)?;
        let given = {
            let session = Session::open(&plan, a.work.memory.as_deref())?;
            let given = infer::trained(&session, &plan)?;
            infer::check_training(&session, &whole, &part)?;
            given
        };
        let nodes = (0..plan.nodes.len()).collect();
        execute(&plan, &file, &a.work, false, &nodes, given, Purpose::Infer(a.out.clone())).and_then(|ended| tell_end(ended, &file))
    })();
    made.unwrap_or_else(|e| fault(&e))
}

pub fn stages(name: Option<&str>, markdown: bool, defs: &'static [StageDef]) -> u8 {
    let Some(name) = name else {
        print(&if markdown { language::readme_table(defs) } else { language::stages_list(defs) });
        return 0;
    };
    match defs.iter().find(|d| d.info.name == name) {
        Some(d) => {
            print(&language::stage_help(d));
            0
        }
        None => {
            let help = voxmill_schemas::spec::did_you_mean(name, "stages", defs.iter().map(|d| d.info.name));
            fault(&Fault::Wrong(format!("there is no stage {name}: {help}")))
        }
    }
}

pub fn schema(defs: &'static [StageDef]) -> u8 {
    print(&serde_json::to_string_pretty(&language::pipeline_schema(defs)).expect("plain data"));
    0
}

pub fn query(a: &QueryArgs, defs: &'static [StageDef]) -> u8 {
    let asked = load(&a.file, defs).map_err(Fault::Told).and_then(|plan| query::ask(&plan, a));
    asked.map_or_else(|e| fault(&e), |()| 0)
}

/// A question whose answer is rows.
pub fn asked(
    file: &FileArgs,
    how: &AnswerArgs,
    defs: &'static [StageDef],
    question: impl FnOnce(&Plan) -> Result<Vec<RecordBatch>, Fault>,
) -> u8 {
    let told = query::check(how).and_then(|_| load(file, defs).map_err(Fault::Told)).and_then(|plan| query::give(&question(&plan)?, how));
    told.map_or_else(|e| fault(&e), |()| 0)
}

pub fn report(a: &ReportArgs, defs: &'static [StageDef]) -> u8 {
    let written =
        load(&a.file, defs).map_err(Fault::Told).and_then(|plan| pages::write(&plan, &a.file.file, a.output.as_deref(), !a.no_pictures));
    match written {
        Ok(path) => {
            print(&path.display().to_string());
            0
        }
        Err(e) => fault(&e),
    }
}

pub fn serve(a: &FileArgs, defs: &'static [StageDef]) -> u8 {
    let done = load(a, defs).map_err(Fault::Told).and_then(|plan| serve::main(&plan, &a.file));
    done.map_or_else(|e| fault(&e), |()| 0)
}

pub fn view(a: &ViewArgs, defs: &'static [StageDef]) -> u8 {
    let done = trace::only(
        a.file.as_deref(),
        |file| {
            let file = FileArgs { file: file.into(), sets: a.sets.clone() };
            // One file that is asked for shows its mistakes; of those that merely lie here, only the good ones count.
            if a.file.is_some() { load(&file, defs).ok() } else { crate::load(&file.file, &[], defs).ok() }
        },
        |a, b| a.workspace == b.workspace,
    )
    .and_then(|plan| view::main(&plan, a));
    done.map_or_else(|e| fault(&e), |()| 0)
}

pub fn replay(a: &ReplayArgs, defs: &'static [StageDef]) -> u8 {
    let done = load(&a.file, defs).map_err(Fault::Told).and_then(|plan| replay::main(&plan, a));
    done.map_or_else(|e| fault(&e), |()| 0)
}

pub fn feed(a: &FeedArgs, defs: &'static [StageDef]) -> u8 {
    let jobs = a.jobs.map_or_else(cores, |j| j as usize);
    with_threads(jobs);
    listen_for_ctrl_c();
    match load(&a.file, defs).map_err(Fault::Told).and_then(|plan| feeding::main(&plan, a, jobs, &CANCEL)) {
        Ok(()) => 0,
        Err(Fault::Stage(Error::Cancelled)) => 130,
        Err(e) => fault(&e),
    }
}

#[cfg(feature = "model")]
pub fn bundle(a: &BundleArgs, defs: &'static [StageDef]) -> u8 {
    listen_for_ctrl_c();
    match load(&a.file, defs).map_err(Fault::Told).and_then(|plan| crate::bundle::main(&plan, a, &CANCEL)) {
        Ok(()) => 0,
        Err(Fault::Stage(Error::Cancelled)) => {
            tell("cancelled", "stopped. Nothing half-made is left.");
            130
        }
        Err(e) => fault(&e),
    }
}

pub fn forget(a: &ForgetArgs, defs: &'static [StageDef]) -> u8 {
    let done = load(&a.file, defs).map_err(Fault::Told).and_then(|plan| forget::main(&plan, a));
    done.unwrap_or_else(|e| fault(&e))
}

pub fn cache(command: &CacheCommand, defs: &'static [StageDef]) -> u8 {
    let done = load(command.file(), defs).map_err(Fault::Told).and_then(|plan| shelves::main(&plan, command));
    done.unwrap_or_else(|e| fault(&e))
}

pub fn deidentify(a: &DeidentifyArgs) -> u8 {
    with_threads(a.jobs.map_or_else(cores, |j| j as usize));
    listen_for_ctrl_c();
    match deidentify::archive(a, &CANCEL) {
        Ok(code) => code,
        Err(Fault::Stage(Error::Cancelled)) => {
            tell("cancelled", "stopped. Nothing half-made is left; the same command goes on where this one stopped.");
            130
        }
        Err(e) => fault(&e),
    }
}

pub fn trace(a: &TraceArgs, defs: &'static [StageDef]) -> u8 {
    let made = (|| {
        let workspace_of = |file: &Path| {
            // One file that is asked for shows its mistakes; of those that merely lie here, only the good ones count.
            if a.file.is_some() {
                load(&FileArgs { file: file.into(), sets: Vec::new() }, defs).ok()
            } else {
                crate::load(file, &[], defs).ok()
            }
            .map(|plan| plan.workspace)
        };
        let web = Web::open(&trace::workspace(a.file.as_deref(), a.workspace.as_deref(), workspace_of)?)?;
        let traces: Vec<_> = web.find(&a.what)?.into_iter().map(|key| web.trace(key)).collect();
        print(&match a.format {
            TraceFormat::Tree => trace::show::tree(&traces),
            TraceFormat::Mermaid => trace::show::mermaid(&traces),
        });
        Ok(())
    })();
    made.map_or_else(|e| fault(&e), |()| 0)
}

pub fn phantom(a: &PhantomArgs) -> u8 {
    let wanted = Phantom { patients: a.patients, slices: a.slices, size: a.size, slice_spacing_mm: a.slice_spacing_mm, seed: a.seed };
    let is_terminal = std::io::stderr().is_terminal();
    let mut progress = |done: u32| {
        if is_terminal {
            eprint!("\r{done} of {} patients", a.patients);
        }
    };
    let made = phantom::write(&a.out, &wanted, &mut progress);
    if is_terminal {
        eprint!("\r\x1b[K");
    }
    match made {
        Ok(()) => {
            let (n, size, slices) = (a.patients, a.size, a.slices);
            print(&format!(
                "{}: {n} patients, each a CT of {slices} slices of {size}×{size} and a DICOM SEG with Femur and Tibia",
                a.out.display()
            ));
            0
        }
        Err(e) => {
            let is_wrong_command = matches!(e, Error::Input { .. });
            eprintln!("error: {}", chain(&e));
            if is_wrong_command { 2 } else { 1 }
        }
    }
}
