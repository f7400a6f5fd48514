//! `voxmill query`: SQL over what ran (lineage) and over the tables of the newest artifacts (index, split, scores, history).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use voxmill_schemas::tables::{HistoryRow, Row, ScoreRow, StepRow, ValidationRow};
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
              started_ms, ended_ms, status, commit, features, cpu, device, yaml,
              variables
              status: done, quarantined, failed, cancelled;
              running where no end was written
  executions  run, node, stage, version, case, key, content, input_keys,
              config_hash, config, status, why, started_ms, ended_ms, took_ms,
              bytes, ram_hits, nvme_hits, disk_reads, facts, error
              status: made, reused, quarantined, failed, cancelled
  quarantine  run, node, what, why
  artifacts   run, key, content, kind, node, stage, version, case, patient, study,
              series, modality, unit, n_channels, size_zyx, spacing_zyx_mm, bytes,
              n_files, made_ms (one row where it was made)
  edges       run, key, port, input (input went into key)
  checkpoints run, node, model, epoch, step, best_epoch, best_dice, at_ms
  traffic     run, node, at_ms, ram_hits, nvme_hits, disk_reads, waited_ms
              (each second)
Views of these:
  cases       case, patient, study, series, modality, node, key, unit, n_channels,
              size_zyx, spacing_zyx_mm, bytes, run, made_ms (newest of each node)
  predictions case, patient, series, node, key, content, model, trained_by, run,
              made_ms

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
  steps       epoch, step, lr, loss (every batch of a training)
  patches     epoch, step, slot, case, start_z, start_y, start_x, size_z, size_y,
              size_x, augment (every patch of every batch)
  validation  epoch, case, class, dice
  scores      case, part, class, dice, hd95_mm, nsd, missed, spurious, truth_ml,
              prediction_ml
  metrics     node, level, epoch, step, case, class, name, value (a view of steps,
              history, validation and scores; level: step, epoch or case)
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
    let heads = session.heads(plan, false);
    let answer = lineage::query(&session.workspace, &a.sql, |tables| add_tables(tables, &session.store.disk, &heads, &nodes))?;
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

/// Views of lineage, and the tables of the newest artifacts.
fn add_tables(out: &mut BTreeMap<String, Source>, disk: &Disk, heads: &Heads, nodes: &[&str]) -> Result<(), Error> {
    out.insert("cases".into(), Source::View(CASES.into()));
    out.insert("predictions".into(), Source::View(PREDICTIONS.into()));
    // Table → node → files.
    let mut made: BTreeMap<String, BTreeMap<&str, Vec<PathBuf>>> = BTreeMap::new();
    let mut metrics = Vec::new();
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
            let name = if is_alone { stem.clone() } else { format!("{node}_{stem}") };
            metrics.extend(metrics_of(&stem, node, &name));
            out.insert(name, Source::Files(files));
        }
    }
    if !metrics.is_empty() {
        out.entry("metrics".into()).or_insert(Source::View(metrics.join(" union all ")));
    }
    Ok(())
}

/// Of every node that gives volumes the newest one of each case.
const CASES: &str = "select a.\"case\", a.patient, a.study, a.series, a.modality, a.node, a.key, a.unit, a.n_channels, a.size_zyx, a.spacing_zyx_mm, a.bytes, \
    a.run, a.made_ms from (select node, \"case\", max(made_ms) as made_ms from artifacts where kind = 'volume' and \"case\" is not null group by node, \"case\") n \
    join artifacts a on a.node = n.node and a.\"case\" = n.\"case\" and a.made_ms = n.made_ms where a.kind = 'volume'";

/// Labels that a model drew, with the model.
const PREDICTIONS: &str = "select a.\"case\", a.patient, a.series, a.node, a.key, a.content, m.key as model, m.node as trained_by, a.run, a.made_ms from artifacts a \
    join edges e on a.key = e.key and a.run = e.run join (select distinct key, node from artifacts where kind = 'model') m on e.input = m.key \
    where a.kind = 'volume' and a.n_channels = 0";

/// SELECTs that bring a table of measurements into one form: node, level, epoch, step, case, class, name, value.
/// - `name`: of the table in SQL
fn metrics_of(stem: &str, node: &str, name: &str) -> Vec<String> {
    let select = |level: &str, [epoch, step, case, class]: [&str; 4], metric: &str, value: &str| {
        format!(
            "select '{node}' as node, '{level}' as level, cast({epoch} as bigint) as epoch, cast({step} as bigint) as step, \
             cast({case} as varchar) as \"case\", cast({class} as varchar) as class, '{metric}' as name, {value} as value from \"{name}\" \
             where {value} is not null"
        )
    };
    let of_epoch = |metric: &str, value: &str| select("epoch", ["epoch", "step", "null", "null"], metric, value);
    match stem {
        StepRow::TABLE => ["loss", "lr"].map(|m| select("step", ["epoch", "step", "null", "null"], m, m)).into(),
        HistoryRow::TABLE => vec![of_epoch("loss", "loss"), of_epoch("dice", "val_dice")],
        ValidationRow::TABLE => vec![select("case", ["epoch", "null", "\"case\"", "class"], "dice", "dice")],
        ScoreRow::TABLE => ["dice", "hd95_mm", "nsd"].map(|m| select("case", ["null", "null", "\"case\"", "class"], m, m)).into(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use voxmill_schemas::tables::{
        ArtifactRow, CheckpointRow, EdgeRow, ExecutionRow, FileRow, InstanceRow, PatchRow, QuarantineRow, RunRow, SeriesRow, SplitRow,
        TrafficRow,
    };

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
            columns::<ArtifactRow>(),
            columns::<EdgeRow>(),
            columns::<CheckpointRow>(),
            columns::<TrafficRow>(),
            columns::<PatchRow>(),
            columns::<StepRow>(),
            columns::<ValidationRow>(),
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
