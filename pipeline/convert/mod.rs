//! `voxmill convert ARCHIVE OUT --to FORMAT`: a built-in pipeline run by the same engine. `wanted` is what was typed and the YAML it stands for, `verdicts`
//! what became of every series and label, `place` puts the files under OUT, `told` says it all at the end, in the `words` of the command.

pub mod place;
pub mod told;
mod verdicts;
mod wanted;
pub mod words;

use voxmill_schemas::tables::FileRow;
use voxmill_stages::table;

use crate::archive_page::{self, Page};
use crate::plan::Plan;
use crate::run::Summary;
use crate::session::{Fault, Session};
use crate::thumbs;

pub use told::Told;
pub use wanted::{FILE, Wanted, key, not_empty, secrets_apart};

/// Shown by `voxmill convert --help`.
pub const HELP: &str = "What is made:
  OUT/PATIENT/STUDY/SERIES.nii.gz          one volume; further volumes of a series
                                           are SERIES-1, SERIES-2 …
  OUT/PATIENT/STUDY/SERIES_labels.nii.gz   its labels (--labels)
  OUT/PATIENT/STUDY/SERIES.json            what was decided: geometry, units, gaps,
                                           padding, classes, the instances it holds
  OUT/PATIENT/STUDY/SERIES.ome.zarr        the same with --to ome-zarr, labels inside,
                                           beside it SERIES.ome.zarr.json
  OUT/PATIENT/STUDY/SERIES/INSTANCE.dcm    de-identified DICOM with --to dicom
  OUT/report.html                          one page: counts, series, refusals
  OUT/series.parquet, files.parquet, instances.parquet

Nothing is guessed: a series that lies on no regular grid is refused with slices
and millimetres, and the others go on (exit code 3). An archive without DICOM, and a
--where that no series fits, are said and change nothing (exit code 2). A second run
makes only what is new. `--show-yaml` prints the pipeline: save it, change it, run it.

Under `--deidentify basic` what is made, said and logged names nobody, files of the
archive included. `--name-file names.tsv` writes which file is which, and the verdict on
it, readable by you alone: look there for what was refused or failed.

Examples:
  voxmill convert /archive /voxels --to nifti
  voxmill convert /archive /voxels --to ome-zarr --labels --jobs 8
  voxmill convert /archive /voxels --to nifti --where \"modality = 'CT'\" --gaps fill
  voxmill convert /archive /voxels --to nifti --key-env ARCHIVE_KEY --json";

/// Nodes of the built-in pipeline.
pub(crate) const INDEX: &str = "series";
pub(crate) const IMAGES: &str = "image";
pub(crate) const LABELS: &str = "labelled";
pub(crate) const FILES: &str = "files";

/// What can be wrong with OUT, before any work.
pub fn check(wanted: &Wanted) -> Result<(), Fault> {
    place::check(&wanted.out, wanted.format(), &wanted.archive_id)?;
    place::probe(&wanted.out)
}

/// Puts what was made under OUT, with tables and the page.
/// - `is_cancelled`: asked while another process puts files there
pub fn finish(wanted: &Wanted, plan: &Plan, session: &Session, summary: &Summary, is_cancelled: &dyn Fn() -> bool) -> Result<Told, Fault> {
    let Some(index) = verdicts::of_index(summary) else { return Ok(Told::of(summary, None, verdicts::Verdicts::default())) };
    if summary.is_idle() {
        return Ok(Told::of(summary, Some(index.manifest.facts.clone()), verdicts::Verdicts::default()));
    }
    let tables = table::open(&index.dir)?;
    let mut files: Vec<FileRow> = table::rows_of(&tables)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let mut told = Told::of(summary, Some(index.manifest.facts.clone()), verdicts::of(plan, summary, &tables)?);
    told.bad_files = files.iter().filter(|f| f.verdict == "failed").cloned().collect();
    if summary.cancelled {
        return Ok(told);
    }
    let mut placing = place::Placing::open(&wanted.out, wanted.format(), &wanted.archive_id, is_cancelled)?;
    let made = summary.nodes.iter().find(|n| n.name == FILES).map_or(&[][..], |n| &n.items);
    let moved = placing.lay(made)?;
    for file in told.rows.iter_mut().flat_map(|r| &mut r.files) {
        if let Some(place) = moved.get(file) {
            file.clone_from(place);
        }
    }
    let thumbs = thumbs::of(&session.workspace.join("memo/thumbs"), &told.made);
    let nifti = told.nifti();
    let page = archive_page::html(&Page {
        title: "What became of the archive",
        about: &wanted.said(),
        files: told.files(),
        images: told.images(),
        labels: wanted.has_labels().then(|| told.labels()),
        nifti: (nifti.all > 0).then_some(nifti),
        rows: &told.rows,
        verdicts: &files,
        thumbs: &thumbs,
        is_hidden: wanted.is_hidden(),
    });
    placing.write(place::REPORT, page.as_bytes())?;
    let [series, file_names, instances] = place::TABLES;
    placing.table(series, &told.rows)?;
    placing.table(file_names, &files)?;
    placing.table(instances, &verdicts::instances(table::rows_of(&tables)?, wanted.is_hidden()))?;
    told.removed = placing.close(summary.nodes.iter().all(|n| n.failed.is_none()))?;
    told.report = Some(wanted.out.join(place::REPORT));
    told.file_table = Some(wanted.out.join(format!("{file_names}.parquet")));
    Ok(told)
}
