//! What each command is told: its arguments, their help texts and the words for their choices.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::progress::Style;

/// A pipeline and what is set from outside.
#[derive(Args, Clone)]
pub struct FileArgs {
    /// The pipeline (YAML)
    pub file: PathBuf,
    /// Set a variable of the file (`NAME=value`) or any value in it (`NODE.key=value`); may be given many times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
}

/// How work is done.
#[derive(Args, Clone)]
pub struct WorkArgs {
    /// Cases in hand at the same time, and threads in all [default: the number of cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub jobs: Option<u32>,
    /// Memory to stay under, such as 8GiB, at least 256MiB [default: 75% of what is free]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Machine-readable progress on stderr, one JSON object a line
    #[arg(long, value_name = "FORMAT")]
    pub log: Option<LogFormat>,
    /// Tell the run as OpenLineage events: a file to add lines to, or `http://HOST[:PORT][/PATH]` to post to (key in OPENLINEAGE_API_KEY,
    /// namespace in OPENLINEAGE_NAMESPACE)
    #[arg(long, value_name = "FILE|URL")]
    pub openlineage: Option<String>,
    /// Show failures only
    #[arg(long, short)]
    pub quiet: bool,
}

impl WorkArgs {
    pub fn style(&self) -> Style {
        Style::choose(self.quiet, self.log.is_some())
    }
}

/// The word that was typed for a choice.
pub fn word(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |v| v.get_name().to_string())
}

/// What `voxmill convert` is told.
#[derive(Args, Clone)]
pub struct ConvertArgs {
    /// The folder with DICOM files, at any depth
    pub archive: PathBuf,
    /// The folder for what is made; a second run into it converts only what is new, and removes what it no longer makes (another --where)
    pub out: PathBuf,
    /// What to write
    #[arg(long, value_name = "FORMAT")]
    pub to: ConvertTo,
    /// Draw the DICOM SEG and RTSTRUCT of the archive on their images as well
    #[arg(long)]
    pub labels: bool,
    /// `basic`: patients, studies and series go by pseudonyms, free text stays behind; `none`: by their own ids
    #[arg(long, value_name = "PROFILE", default_value = "basic")]
    pub deidentify: ConvertNames,
    /// The environment variable that holds the secret key of the pseudonyms
    #[arg(long, value_name = "NAME", conflicts_with = "key_file")]
    pub key_env: Option<String>,
    /// The file that holds it, readable by you alone
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Make the key file first; it must not be there yet
    #[arg(long, requires = "key_file")]
    pub new_key: bool,
    /// Where to write which file of the archive each pseudonym stands for (TSV), to look after what was left out. It names patients: not in OUT
    #[arg(long, value_name = "FILE")]
    pub name_file: Option<PathBuf>,
    /// Only series that fit an SQL condition, such as "modality = 'CT'" (columns: voxmill query --help)
    #[arg(long = "where", value_name = "SQL")]
    pub condition: Option<String>,
    /// Missing slices and changing spacing
    #[arg(long, value_name = "POLICY", default_value = "refuse")]
    pub gaps: ConvertGaps,
    /// Colour images
    #[arg(long, value_name = "POLICY", default_value = "channels")]
    pub colour: ConvertColour,
    /// Volumes of one series at one place (time points, b-values)
    #[arg(long, value_name = "POLICY", default_value = "stack")]
    pub repeats: ConvertRepeats,
    /// Where two labels claim a voxel
    #[arg(long, value_name = "POLICY", default_value = "error", requires = "labels")]
    pub overlap: ConvertOverlap,
    /// Where what is needed for the next run is kept [default: OUT/.voxmill; it may be deleted]
    #[arg(long, value_name = "DIR")]
    pub workspace: Option<PathBuf>,
    /// Print the pipeline that this is, and stop
    #[arg(long)]
    pub show_yaml: bool,
    /// Print the counts as one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub work: WorkArgs,
}

#[derive(Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub file: FileArgs,
    /// Only these nodes and what they need [default: all]
    pub nodes: Vec<String>,
    #[command(flatten)]
    pub work: WorkArgs,
    /// Quarantine a bad case and go on (the default)
    #[arg(long, conflicts_with = "fail_fast")]
    pub keep_going: bool,
    /// Stop at the first bad case
    #[arg(long)]
    pub fail_fast: bool,
    /// Print the plan and stop
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub file: FileArgs,
    /// Only these nodes and what they need [default: all]
    pub nodes: Vec<String>,
    #[arg(long, default_value = "table")]
    pub format: PlanFormat,
}

#[derive(Args)]
pub struct GraphArgs {
    #[command(flatten)]
    pub file: FileArgs,
    #[arg(long, default_value = "mermaid")]
    pub format: GraphFormat,
}

#[derive(Args)]
pub struct InferArgs {
    #[command(flatten)]
    pub file: FileArgs,
    /// A folder with the DICOM study (or several)
    pub study: PathBuf,
    /// Where the predictions go
    pub out: PathBuf,
    /// The node that predicts, where the file has several
    #[arg(long)]
    pub node: Option<String>,
    #[command(flatten)]
    pub work: WorkArgs,
}

#[derive(Args)]
pub struct DeidentifyArgs {
    /// A folder with DICOM files, at any depth
    pub archive: PathBuf,
    /// Where the new files go: OUT/PATIENT/STUDY/SERIES/INSTANCE.dcm under pseudonyms
    pub out: PathBuf,
    /// An environment variable with the secret key of pseudonyms, UIDs and days
    #[arg(long, value_name = "NAME", conflicts_with = "key_file")]
    pub key_env: Option<String>,
    /// A file with the secret key (mode 0600)
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Make the key file first; it must not be there yet
    #[arg(long, requires = "key_file")]
    pub new_key: bool,
    /// Where to write which file of the archive each pseudonym stands for (TSV), to look after what was left out. It names patients: not in OUT
    #[arg(long, value_name = "FILE")]
    pub name_file: Option<PathBuf>,
    /// Keep UIDs as they are [default: replaced by keyed ones]
    #[arg(long)]
    pub retain_uids: bool,
    /// Move dates by a number of days the key gives each patient, or keep them [default: they go]
    #[arg(long, value_name = "HOW")]
    pub retain_dates: Option<DatesKept>,
    /// Keep what names the scanner
    #[arg(long)]
    pub retain_device: bool,
    /// Keep what names the hospital
    #[arg(long)]
    pub retain_institution: bool,
    /// Keep sex, age, size, weight (SUV needs the weight)
    #[arg(long)]
    pub retain_characteristics: bool,
    /// Keep descriptions and names of ROIs that fit a pattern (`*`, `?`); may be given many times [default: all go]
    #[arg(long, value_name = "PATTERN")]
    pub clean_descriptors: Vec<String>,
    /// Keep a private element that is safe, such as "SIEMENS MR HEADER:0019,xx0C"; may be given many times [default: all go]
    #[arg(long, value_name = "CREATOR:ELEMENT")]
    pub private: Vec<String>,
    /// What to do with images whose pixels may show a name
    #[arg(long, value_name = "HOW", default_value = "refuse")]
    pub burned_in: BurnedInArg,
    /// Say what was done as JSON
    #[arg(long)]
    pub json: bool,
    /// Show failures only
    #[arg(long, short)]
    pub quiet: bool,
    /// Files in hand at the same time [default: the number of cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub jobs: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum DatesKept {
    Shift,
    Full,
}
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum BurnedInArg {
    /// Leave them out
    Refuse,
    /// Write them, and say so
    Flag,
    /// Write them like any other
    Keep,
}

#[derive(Args)]
#[command(after_long_help = crate::query::HELP)]
pub struct QueryArgs {
    #[command(flatten)]
    pub file: FileArgs,
    /// A SELECT
    pub sql: String,
    #[command(flatten)]
    pub answer: AnswerArgs,
}

/// How rows are shown.
#[derive(Args, Clone)]
pub struct AnswerArgs {
    /// [default: by the ending of --output (.csv, .json, .parquet), else table]
    #[arg(long)]
    pub format: Option<RowFormat>,
    /// Write here instead of stdout (required for parquet)
    #[arg(long, short)]
    pub output: Option<PathBuf>,
}

#[derive(Args)]
pub struct ReportArgs {
    #[command(flatten)]
    pub file: FileArgs,
    /// The page [default: report.html in the workspace]
    #[arg(long, short)]
    pub output: Option<PathBuf>,
    /// Leave out the pictures of the cases: a page that shows no patient's image
    #[arg(long)]
    pub no_pictures: bool,
}

#[derive(Args)]
pub struct WhyArgs {
    #[command(flatten)]
    pub file: FileArgs,
    pub node: String,
    /// Only this case [default: all]
    pub case: Option<String>,
    #[command(flatten)]
    pub answer: AnswerArgs,
}

#[derive(Args)]
pub struct DiffArgs {
    #[command(flatten)]
    pub file: FileArgs,
    /// The older run: the start of its name, `last`, or `last~1` for the one before
    #[arg(default_value = "last~1")]
    pub old: String,
    /// The newer run
    #[arg(default_value = "last")]
    pub new: String,
    #[command(flatten)]
    pub answer: AnswerArgs,
}

#[derive(Args)]
pub struct SawArgs {
    #[command(flatten)]
    pub file: FileArgs,
    /// The node that trains it, or the first digits of its key [default: every model in the workspace]
    pub model: Option<String>,
    /// Only rows of this patient: which models saw them
    #[arg(long, value_name = "PATIENT")]
    pub patient: Option<String>,
    #[command(flatten)]
    pub answer: AnswerArgs,
}

/// What `voxmill view` is told.
#[derive(Args)]
pub struct ViewArgs {
    /// NODE, NODE/CASE, a case, or the first digits of a key
    pub what: String,
    /// The pipeline that made it [default: the only one in this folder]
    #[arg(long, short, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Set a variable of the file, as for `run`
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "file")]
    pub sets: Vec<String>,
    /// The PNG to write
    #[arg(long, short, value_name = "PNG")]
    pub output: Option<PathBuf>,
    /// Edge of each plane, pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 320, value_parser = clap::value_parser!(u16).range(32..=2048))]
    pub size: u16,
    /// Values that are black and white [default: the pipeline's own window, else those of the planes less 0.5 % at either end]
    #[arg(long, value_name = "LOW,HIGH", allow_hyphen_values = true)]
    pub window: Option<String>,
    /// How the terminal takes pictures [default: by what it says of itself; none with --output]
    #[arg(long, value_name = "PROTOCOL")]
    pub inline: Option<Inline>,
}

/// Protocols by which terminals show pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Inline {
    Kitty,
    Iterm,
    Sixel,
}

/// What `voxmill replay` is told.
#[derive(Args)]
pub struct ReplayArgs {
    #[command(flatten)]
    pub file: FileArgs,
    /// The node that trains, or the first digits of a model's key
    pub model: String,
    /// The step, from 1 over all epochs (column `step` of the table `patches`)
    pub step: u64,
    #[arg(long, default_value = "nifti")]
    pub format: ReplayFormat,
    /// The folder for what is made [default: replayed/NODE-KEY]
    #[arg(long, short)]
    pub output: Option<PathBuf>,
}

/// What `voxmill bundle` is told.
#[derive(Args)]
pub struct BundleArgs {
    #[command(flatten)]
    pub file: FileArgs,
    /// The node that trains, or the first digits of a model's key
    pub model: String,
    /// The folder to make
    pub out: PathBuf,
    /// Numbers that the network works with; what goes in and comes out is float32 in each
    #[arg(long, default_value = "fp32", value_parser = ["fp32", "fp16", "int8"])]
    pub precision: String,
}

/// What `voxmill forget` is told.
#[derive(Args)]
pub struct ForgetArgs {
    #[command(flatten)]
    pub file: FileArgs,
    /// The patient, by its name in the workspace
    #[arg(long, value_name = "P")]
    pub patient: String,
    /// Do it; without, only the plan is shown
    #[arg(long)]
    pub yes: bool,
    /// Print it as one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct TraceArgs {
    /// The first digits of an artifact's key, a case, or the path of a published file
    pub what: String,
    /// The pipeline whose workspace is searched
    #[arg(long, short, value_name = "FILE", conflicts_with = "workspace")]
    pub file: Option<PathBuf>,
    /// The workspace itself [default: of the only pipeline in this folder]
    #[arg(long, short)]
    pub workspace: Option<PathBuf>,
    #[arg(long, default_value = "tree")]
    pub format: TraceFormat,
}

#[derive(Args)]
pub struct PhantomArgs {
    /// A folder that does not exist yet, or is empty
    pub out: PathBuf,
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub patients: u32,
    /// Slices of each scan
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(8..=2_000))]
    pub slices: u32,
    /// Rows and columns of each slice
    #[arg(long, default_value_t = 96, value_parser = clap::value_parser!(u32).range(16..=1_024))]
    pub size: u32,
    /// Spacing of the slices, millimetres [default: chosen so that the knee fits]
    #[arg(long)]
    pub slice_spacing_mm: Option<f64>,
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum ConvertTo {
    /// PATIENT/STUDY/SERIES.nii.gz
    Nifti,
    /// PATIENT/STUDY/SERIES.ome.zarr: sharded, compressed, checksummed
    OmeZarr,
    /// PATIENT/STUDY/SERIES/INSTANCE.dcm: the DICOM files without the patient (dates shifted, sex, age and weight kept; `voxmill deidentify` has the choice)
    Dicom,
}
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum ConvertNames {
    Basic,
    None,
}
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum ConvertGaps {
    /// Leave the series out and say where
    Refuse,
    /// Slices stay where they are (OME-Zarr; NIfTI cannot say so)
    Keep,
    /// A regular grid; what no file holds is interpolated along the stack and named
    Fill,
}
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum ConvertColour {
    /// Leave the series out
    Refuse,
    /// Red, green and blue
    Channels,
}
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum ConvertRepeats {
    /// A file each
    Separate,
    /// One file with a fourth axis
    Stack,
}
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum ConvertOverlap {
    /// Leave the labels of that image out, and say so
    Error,
    /// The first name by the alphabet gets the voxel
    First,
    /// The last one does
    Last,
}
#[derive(Clone, Copy, ValueEnum)]
pub enum LogFormat {
    Json,
}
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum PlanFormat {
    Table,
    Json,
}
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum GraphFormat {
    Mermaid,
    Dot,
}
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum RowFormat {
    Table,
    Csv,
    Json,
    Parquet,
}
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum ReplayFormat {
    Nifti,
    Png,
}
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum TraceFormat {
    Tree,
    Mermaid,
}
