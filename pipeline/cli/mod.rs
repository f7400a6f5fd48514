//! What was typed → what is done. This folder alone knows clap. Results go to stdout, progress and problems to stderr.
//! Exit codes: 0 all done, 1 failed, 2 the file or the command is wrong or finds nothing to work on, 3 done but something is quarantined, 130 stopped on request.

use std::io::{IsTerminal, Write};

use clap::{CommandFactory, Parser, Subcommand};
use voxmill_stages::stage::StageDef;

use crate::progress::Style;
use crate::{commands, questions, why};

mod args;
mod shelves;
pub use args::*;
pub use shelves::*;

const AFTER: &str = "Exit codes: 0 all done · 1 failed · 2 the file or the command is wrong, or there is nothing to work on · 3 done, but something is quarantined · 130 stopped on request";

/// DICOM archive → voxels → trained, evaluated, exported segmentation model, from one YAML file.
#[derive(Parser)]
#[command(name = "voxmill", version, after_help = AFTER, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Turn a DICOM archive into NIfTI, OME-Zarr or de-identified DICOM, with a report; needs no YAML
    #[command(after_long_help = crate::convert::HELP)]
    Convert(ConvertArgs),
    /// Make what the file describes; reuse what is already made
    Run(RunArgs),
    /// Say what a run would make, reuse or remake, and why
    Plan(PlanArgs),
    /// Look for mistakes in a file; make nothing
    #[command(after_long_help = crate::language::IN_SHORT)]
    Check(FileArgs),
    /// Draw the stages of a file and what flows between them
    Graph(GraphArgs),
    /// Apply the trained pipeline to a new DICOM study
    Infer(InferArgs),
    /// Write a trained model for other programs: ONNX in fp32, fp16 or int8, a card and a script
    #[cfg(feature = "model")]
    #[command(after_long_help = crate::bundle::HELP)]
    Bundle(BundleArgs),
    /// Write the DICOM files of an archive without what names a patient
    #[command(after_long_help = crate::deidentify::HELP)]
    Deidentify(DeidentifyArgs),
    /// Ask the index and the lineage with SQL
    Query(QueryArgs),
    /// Where an artifact comes from and what was made of it
    Trace(TraceArgs),
    /// Why a node's artifacts were made, reused or not made
    Why(WhyArgs),
    /// What differs between two runs: program, configuration, cases, results
    Diff(DiffArgs),
    /// Which patients and cases a model was trained on, or which models saw a patient
    Saw(SawArgs),
    /// Show volumes with their labels: three planes each, as PNG or in the terminal
    #[command(after_long_help = crate::view::HELP)]
    View(ViewArgs),
    /// Make the batch of a training step again, as NIfTI or PNG
    #[command(after_long_help = crate::replay::HELP)]
    Replay(ReplayArgs),
    /// Make the batches of a training without the training, and time them
    #[command(after_long_help = crate::feed::HELP)]
    Feed(FeedArgs),
    /// Take a patient out of the workspace: a plan first, then the deed, a search and a receipt
    #[command(after_long_help = crate::forget::HELP)]
    Forget(ForgetArgs),
    /// What the shelves hold, whether it is whole, and room on them
    #[command(after_help = crate::cache::HELP)]
    Cache {
        #[command(subcommand)]
        command: CacheCommand,
    },
    /// Write what was made on one page: stages, cases with pictures, training, scores, provenance
    Report(ReportArgs),
    /// Show the report in a browser while a run goes on, and scroll through volumes (this machine only)
    #[command(after_long_help = crate::serve::HELP)]
    Serve(FileArgs),
    /// List the stages, or explain one
    Stages {
        /// A stage's name
        name: Option<String>,
        /// Print the table for the README instead
        #[arg(long, hide = true)]
        markdown: bool,
    },
    /// Print the JSON Schema of the YAML language, for editors
    Schema,
    /// Make a seeded DICOM CT archive with labels, to try things on
    Phantom(PhantomArgs),
    /// Print completions for a shell
    Completions { shell: clap_complete::Shell },
}

/// Runs the program and gives its exit code.
pub fn main(defs: &'static [StageDef]) -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { 2 } else { 0 };
        }
    };
    let style = match &cli.command {
        Command::Convert(a) => a.work.style(),
        Command::Run(a) => a.work.style(),
        Command::Infer(a) => a.work.style(),
        _ => Style::Lines,
    };
    commands::speak_as(style);
    let filter = std::env::var("VOXMILL_LOG").ok().and_then(|l| l.parse().ok()).unwrap_or(tracing::Level::WARN);
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_max_level(filter)
        .without_time()
        .with_target(false);
    if style == Style::Json {
        log.json().init()
    } else {
        log.init()
    }
    match cli.command {
        Command::Convert(a) => commands::convert(&a, defs),
        Command::Run(a) => commands::run(&a, defs),
        Command::Plan(a) => commands::plan(&a.file, &a.nodes, a.format, defs),
        Command::Check(a) => commands::check(&a, defs),
        Command::Graph(a) => commands::graph(&a, defs),
        Command::Infer(a) => commands::infer(&a, defs),
        #[cfg(feature = "model")]
        Command::Bundle(a) => commands::bundle(&a, defs),
        Command::Deidentify(a) => commands::deidentify(&a),
        Command::Query(a) => commands::query(&a, defs),
        Command::Trace(a) => commands::trace(&a, defs),
        Command::Why(a) => commands::asked(&a.file, &a.answer, defs, |plan| why::why(plan, &a.node, a.case.as_deref())),
        Command::Diff(a) => commands::asked(&a.file, &a.answer, defs, |plan| questions::diff(plan, &a.old, &a.new)),
        Command::Saw(a) => commands::asked(&a.file, &a.answer, defs, |plan| questions::saw(plan, a.model.as_deref(), a.patient.as_deref())),
        Command::View(a) => commands::view(&a, defs),
        Command::Replay(a) => commands::replay(&a, defs),
        Command::Feed(a) => commands::feed(&a, defs),
        Command::Forget(a) => commands::forget(&a, defs),
        Command::Report(a) => commands::report(&a, defs),
        Command::Serve(a) => commands::serve(&a, defs),
        Command::Cache { command } => commands::cache(&command, defs),
        Command::Stages { name, markdown } => commands::stages(name.as_deref(), markdown, defs),
        Command::Schema => commands::schema(defs),
        Command::Phantom(a) => commands::phantom(&a),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "voxmill", &mut std::io::stdout());
            0
        }
    }
}

/// Prints a result; a closed pipe (`| head`) is no error. What else keeps it from being written ends the process with 1: a result that is not there
/// must not look like one.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let end: &[u8] = if text.ends_with('\n') { b"" } else { b"\n" };
    let written = out.write_all(text.as_bytes()).and_then(|()| out.write_all(end)).and_then(|()| out.flush());
    if let Err(e) = written
        && e.kind() != std::io::ErrorKind::BrokenPipe
    {
        eprintln!("error: cannot write to stdout: {e}");
        std::process::exit(1);
    }
}
