//! `voxmill query`: SQL over what ran (lineage) and over the tables of the newest artifacts (index, split, scores, history).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use voxmill_schemas::tables::{ExecutionRow, QuarantineRow, Row, RunRow};
use voxmill_stages::error::Error;
use voxmill_stages::store::Disk;
use voxmill_stages::table::{self, RecordBatch, Source, show};

use crate::cli::{AnswerArgs, QueryArgs, RowFormat, print};
use crate::heads::Heads;
use crate::lineage;
use crate::plan::Plan;
use crate::session::{Fault, Session};

/// Shown by `voxmill query --help`.
pub const HELP: &str = r#"Tables of what ran (all runs in the workspace):
  runs        run, pipeline, file, config_hash, purpose, seed, jobs, voxmill,
              started_ms, ended_ms, status
              status: done, quarantined, failed, cancelled;
              running where no end was written
  executions  run, node, stage, version, case, key, content, input_keys,
              config_hash, config, status, why, started_ms, ended_ms, took_ms,
              bytes, ram_hits, nvme_hits, disk_reads, facts, error
              status: made, reused, quarantined, failed, cancelled
  quarantine  run, node, what, why

Tables of the newest artifacts of this pipeline (where its nodes make them):
  series      series, volume, study, patient, kind, modality, sop_class,
              description, body_part, manufacturer, frame_of_reference,
              n_instances, n_frames, rows, columns, row_spacing_mm,
              column_spacing_mm, slice_spacing_mm, repeat_of, repeat, time_s,
              echo_time_ms, b_value, irregular, lost_beside, refused,
              references, labels
  instances   series, volume, instance, path, member, file, content, seen,
              size_bytes, transfer_syntax, instance_number, n_frames, frames,
              position_mm, orientation
  files       path, verdict, why
  split       case, patient, fold, part
  history     epoch, step, lr, loss, val_dice, class_dice
  patches     epoch, step, slot, case, start_z, start_y, start_x, size_z, size_y,
              size_x, augment (every patch that a training saw)
  scores      case, part, class, dice, hd95_mm, missed, spurious, truth_ml,
              prediction_ml
A table that several nodes make is called NODE_TABLE. `show tables` lists them,
`describe scores` the columns of one. array_has(labels, 'Femur') asks a list.

Examples:
  voxmill query FILE "select node, status, count(*) as n, sum(took_ms) as ms
    from executions group by node, status order by node, status"
  voxmill query FILE "select what, why from quarantine"
  voxmill query FILE "select part, class, avg(dice) as dice, count(*) as n
    from scores group by part, class order by part, class"
  voxmill query FILE "select modality, count(*) as n, sum(n_instances) as files
    from series group by modality order by modality" --format csv
  voxmill query FILE "select * from executions" --output executions.parquet"#;

/// Runs a query and prints or writes its answer.
pub fn ask(plan: &Plan, a: &QueryArgs) -> Result<(), Fault> {
    check(&a.answer)?;
    if !plan.workspace.join("lineage").is_dir() {
        return Err(Fault::Wrong(format!("nothing was run in {} yet: voxmill run {}", plan.workspace.display(), a.file.file.display())));
    }
    let session = Session::open(plan, None)?;
    let nodes: Vec<&str> = plan.nodes.iter().map(|n| n.name.as_str()).collect();
    let tables = tables(&session.store.disk, &session.workspace, &session.heads(plan, false), &nodes)?;
    let answer = table::query(tables, &a.sql)?;
    give(&answer, &a.answer)
}

/// Whether an answer can be given like that, before it is worked out.
pub fn check(how: &AnswerArgs) -> Result<RowFormat, Fault> {
    let format = how.format.unwrap_or_else(|| by_ending(how.output.as_deref()));
    if format == RowFormat::Parquet && how.output.is_none() {
        return Err(Fault::Wrong("parquet is no text: say where to write it with --output FILE".into()));
    }
    Ok(format)
}

/// Prints or writes rows.
pub fn give(answer: &[RecordBatch], how: &AnswerArgs) -> Result<(), Fault> {
    let bytes = match check(how)? {
        RowFormat::Table => show::as_table(answer)?.into_bytes(),
        RowFormat::Csv => show::as_csv(answer)?.into_bytes(),
        RowFormat::Json => show::as_json(answer)?.into_bytes(),
        RowFormat::Parquet => show::as_parquet(answer)?,
    };
    match &how.output {
        Some(path) => std::fs::write(path, bytes).map_err(|e| Error::io("write", path)(e).into()),
        None => {
            print(&String::from_utf8_lossy(&bytes));
            Ok(())
        }
    }
}

/// The format that a file's name asks for.
fn by_ending(output: Option<&Path>) -> RowFormat {
    match output.and_then(|o| o.extension()?.to_str()).map(str::to_ascii_lowercase).as_deref() {
        Some("csv") => RowFormat::Csv,
        Some("json") => RowFormat::Json,
        Some("parquet") => RowFormat::Parquet,
        _ => RowFormat::Table,
    }
}

/// Everything that can be asked.
fn tables(disk: &Disk, workspace: &Path, heads: &Heads, nodes: &[&str]) -> Result<BTreeMap<String, Source>, Error> {
    let mut out = BTreeMap::from([
        (RunRow::TABLE.to_string(), Source::Rows(RunRow::to_batch(&[]))),
        (ExecutionRow::TABLE.to_string(), Source::Rows(ExecutionRow::to_batch(&[]))),
        (QuarantineRow::TABLE.to_string(), Source::Rows(QuarantineRow::to_batch(&[]))),
    ]);
    for (name, source) in out.iter_mut() {
        let files = lineage::files(workspace, name);
        if !files.is_empty() {
            *source = Source::Files(files);
        }
    }
    // Table → node → files.
    let mut made: BTreeMap<String, BTreeMap<&str, Vec<PathBuf>>> = BTreeMap::new();
    for node in nodes {
        for key in heads.read(node).values() {
            // An artifact that was taken off the shelf since has no tables.
            for (stem, path) in table::files(&disk.dir(key)).unwrap_or_default() {
                made.entry(stem).or_default().entry(node).or_default().push(path);
            }
        }
    }
    for (stem, by_node) in made {
        let is_alone = by_node.len() == 1 && !out.contains_key(&stem);
        for (node, files) in by_node {
            out.insert(if is_alone { stem.clone() } else { format!("{node}_{stem}") }, Source::Files(files));
        }
    }
    Ok(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use voxmill_schemas::tables::{FileRow, HistoryRow, InstanceRow, ScoreRow, SeriesRow, SplitRow};

    #[test]
    fn the_ending_of_the_output_chooses_the_format() {
        let endings = ["a.csv", "a.JSON", "a.b.parquet", "a.txt", "parquet"].map(|f| by_ending(Some(Path::new(f))));
        assert!(endings == [RowFormat::Csv, RowFormat::Json, RowFormat::Parquet, RowFormat::Table, RowFormat::Table]);
        assert!(by_ending(None) == RowFormat::Table);
    }

    #[test]
    fn the_help_names_every_column() {
        fn columns<R: Row>() -> String {
            let names: Vec<String> = R::schema().fields().iter().map(|f| f.name().clone()).collect();
            format!("  {:11} {}", R::TABLE, names.join(", "))
        }
        let help: String = HELP.split_whitespace().collect::<Vec<_>>().join(" ");
        for wanted in [
            columns::<RunRow>(),
            columns::<ExecutionRow>(),
            columns::<QuarantineRow>(),
            columns::<SeriesRow>(),
            columns::<InstanceRow>(),
            columns::<FileRow>(),
            columns::<SplitRow>(),
            columns::<ScoreRow>(),
            columns::<HistoryRow>(),
        ] {
            let wanted: String = wanted.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(help.contains(&wanted), "query::HELP is stale: {wanted}");
        }
    }
}
