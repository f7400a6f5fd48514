//! Tables as plain rows with their Arrow schemas. A column marked [`VOLATILE`] says where or when, not what: it is left out of content hashes.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Float64Array, Int64Array, ListArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use serde::{Deserialize, Serialize};

use crate::artifact::ContentHash;

/// Field metadata key of a column that says where or when, not what.
pub const VOLATILE: &str = "voxmill.volatile";

/// A table that is not what it should be.
#[derive(Debug, thiserror::Error)]
#[error("column {column}: found {found}, expected {expected}")]
pub struct TableError {
    pub column: &'static str,
    pub found: String,
    pub expected: String,
}

/// A struct that is a row. Made by the `rows!` macro.
pub trait Row: Sized {
    /// File stem of the table and its name in SQL.
    const TABLE: &'static str;
    fn schema() -> Arc<Schema>;
    fn to_batch(rows: &[Self]) -> RecordBatch;
    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>, TableError>;
}

/// A type that fits a cell.
trait Cell: Sized {
    fn data_type() -> DataType;
    const NULLABLE: bool;
    fn array<'a>(cells: impl Iterator<Item = &'a Self>) -> ArrayRef
    where
        Self: 'a;
    /// `None`: the array is of another type, or a null stands where none may.
    fn at(array: &dyn Array, row: usize) -> Option<Self>;
}

macro_rules! plain_cell {
    ($t:ty, $array:ty, $data:expr, $read:expr) => {
        impl Cell for $t {
            fn data_type() -> DataType {
                $data
            }
            const NULLABLE: bool = false;
            fn array<'a>(cells: impl Iterator<Item = &'a Self>) -> ArrayRef {
                Arc::new(<$array>::from_iter(cells.map(|c| Some(c.clone()))))
            }
            fn at(array: &dyn Array, row: usize) -> Option<Self> {
                let array = array.as_any().downcast_ref::<$array>()?;
                if array.is_null(row) { None } else { Some($read(array.value(row))) }
            }
        }
        impl Cell for Option<$t> {
            fn data_type() -> DataType {
                $data
            }
            const NULLABLE: bool = true;
            fn array<'a>(cells: impl Iterator<Item = &'a Self>) -> ArrayRef {
                Arc::new(<$array>::from_iter(cells.cloned()))
            }
            fn at(array: &dyn Array, row: usize) -> Option<Self> {
                let array = array.as_any().downcast_ref::<$array>()?;
                Some(if array.is_null(row) { None } else { Some($read(array.value(row))) })
            }
        }
    };
}
plain_cell!(String, StringArray, DataType::Utf8, String::from);
plain_cell!(i64, Int64Array, DataType::Int64, i64::from);
plain_cell!(f64, Float64Array, DataType::Float64, f64::from);
plain_cell!(bool, BooleanArray, DataType::Boolean, bool::from);

macro_rules! list_cell {
    ($t:ty, $builder:ty) => {
        impl Cell for Vec<$t> {
            fn data_type() -> DataType {
                DataType::List(Arc::new(Field::new("item", <$t as Cell>::data_type(), true)))
            }
            const NULLABLE: bool = false;
            fn array<'a>(cells: impl Iterator<Item = &'a Self>) -> ArrayRef {
                let mut b = arrow::array::ListBuilder::new(<$builder>::new());
                for cell in cells {
                    cell.iter().for_each(|v| b.values().append_value(v.clone()));
                    b.append(true);
                }
                Arc::new(b.finish())
            }
            fn at(array: &dyn Array, row: usize) -> Option<Self> {
                let array = array.as_any().downcast_ref::<ListArray>()?;
                let inner = if array.is_null(row) { return None } else { array.value(row) };
                (0..inner.len()).map(|i| <$t as Cell>::at(&*inner, i)).collect()
            }
        }
    };
}
list_cell!(f64, arrow::array::Float64Builder);
list_cell!(i64, arrow::array::Int64Builder);
list_cell!(String, arrow::array::StringBuilder);

macro_rules! rows {
    ($(#[$meta:meta])* $name:ident = $table:literal { $($(#[$field_meta:meta])* $($volatile:literal)? $field:ident : $t:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        pub struct $name { $($(#[$field_meta])* pub $field: $t,)* }

        impl Row for $name {
            const TABLE: &'static str = $table;
            fn schema() -> Arc<Schema> {
                Arc::new(Schema::new(vec![$({
                    let field = Field::new(stringify!($field), <$t as Cell>::data_type(), <$t as Cell>::NULLABLE);
                    $(let field = field.with_metadata([($volatile.to_string(), "1".to_string())].into());)?
                    field
                },)*]))
            }
            fn to_batch(rows: &[Self]) -> RecordBatch {
                let columns: Vec<ArrayRef> = vec![$(<$t as Cell>::array(rows.iter().map(|r| &r.$field)),)*];
                RecordBatch::try_new(Self::schema(), columns).expect("the columns are built from the schema's own types")
            }
            fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>, TableError> {
                $(let $field = batch.column_by_name(stringify!($field)).ok_or(TableError {
                    column: stringify!($field), found: "no such column".into(), expected: format!("{:?}", <$t as Cell>::data_type()),
                })?;)*
                (0..batch.num_rows()).map(|i| Ok(Self { $($field: <$t as Cell>::at($field, i).ok_or_else(|| TableError {
                    column: stringify!($field), found: format!("{:?} in row {i}", $field.data_type()), expected: format!("{:?}", <$t as Cell>::data_type()),
                })?,)* })).collect()
            }
        }
    };
}

rows! {
    /// One series, or one volume of a series that holds several (localizer planes, echoes, phases): what `where:` asks and what a case is made of.
    SeriesRow = "series" {
        /// Pseudonym (or, with `deidentify: none`, the UID) of the series.
        series: String,
        /// Number of the volume inside its series, from 0.
        volume: i64,
        study: String,
        patient: String,
        /// `image`, `seg`, `rtstruct` or `nifti`.
        kind: String,
        modality: String,
        sop_class: String,
        /// Free text of the scanner: empty unless `deidentify: none`.
        description: Option<String>,
        body_part: Option<String>,
        manufacturer: Option<String>,
        frame_of_reference: Option<String>,
        n_instances: i64,
        n_frames: i64,
        rows: Option<i64>,
        columns: Option<i64>,
        row_spacing_mm: Option<f64>,
        column_spacing_mm: Option<f64>,
        /// Between slices, from their positions; empty where they lie on no regular grid.
        slice_spacing_mm: Option<f64>,
        /// Volumes of one series with one number lie on one another: time points, b-values, echoes of one place.
        repeat_of: Option<i64>,
        /// The place of the volume among these, from 0.
        repeat: Option<i64>,
        /// Seconds since the first of them, where the files tell.
        time_s: Option<f64>,
        echo_time_ms: Option<f64>,
        /// s/mm²
        b_value: Option<f64>,
        /// What keeps the series from being one regular grid, in words.
        irregular: Option<String>,
        /// Files in its folders that could not be read, where it is irregular: one of them may be a slice that is missing.
        "voxmill.volatile" lost_beside: Option<String>,
        /// Why it is no volume under any setting of `assemble`: incomplete, cine, a file of it is damaged.
        refused: Option<String>,
        /// Labels only: the series (same naming as `series`) they were drawn on.
        references: Vec<String>,
        /// Labels only: names of the segments or ROIs.
        labels: Vec<String>,
    }
}

rows! {
    /// One file that belongs to a series.
    InstanceRow = "instances" {
        series: String,
        volume: i64,
        /// Pseudonym (or, with `deidentify: none`, the UID) of the SOP instance.
        instance: String,
        /// Absolute path of the file.
        "voxmill.volatile" path: String,
        /// Its place inside that file, where it is a zip or tar: members of containers in containers as `a.tar!/b`.
        "voxmill.volatile" member: Option<String>,
        /// The same relative to the archive: how messages name it.
        "voxmill.volatile" file: String,
        /// blake3 of the bytes of the file. Empty in the index, which does not read that far: filled in when a case is opened.
        content: String,
        /// Size, times and inode of the file when its bytes were hashed; empty in the index.
        "voxmill.volatile" seen: String,
        size_bytes: i64,
        transfer_syntax: String,
        instance_number: Option<i64>,
        n_frames: i64,
        /// Which frames of the file (from 0) belong to this volume; empty: all.
        frames: Vec<i64>,
        /// ImagePositionPatient of the first of them, empty where there is none.
        position_mm: Vec<f64>,
        /// ImageOrientationPatient, empty where there is none.
        orientation: Vec<f64>,
    }
}

rows! {
    /// The verdict on one file: every file that was seen has one.
    FileRow = "files" {
        /// Relative to the archive.
        "voxmill.volatile" path: String,
        /// `indexed`, `skipped` or `failed`.
        verdict: String,
        /// What it is (`MR image`, `SR`, `not DICOM`) or why it failed.
        why: String,
    }
}

rows! {
    /// What de-identification did with one file: every file that was seen has a row.
    DeidentifiedRow = "deidentified" {
        /// Relative to the archive, as pseudonyms.
        "voxmill.volatile" file: String,
        /// `written`, `unchanged` (the same bytes stood there already), `skipped` (nothing to write out, or a copy), `refused` (its pixels may show who
        /// the patient is) or `failed`.
        verdict: String,
        /// What it is (`CT image`), or why it was left out.
        why: String,
        /// Pseudonyms, and with `.dcm` the place of the new file: patient / study / series / instance. Empty where none was made.
        patient: String,
        study: String,
        series: String,
        instance: String,
        /// Why its pixels may show who the patient is, if they may.
        risk: Option<String>,
        /// Whether a face may be made of its slices.
        may_show_face: bool,
        /// Elements that stayed, and went.
        kept: i64,
        removed: i64,
        /// Of those that went: private, or in no dictionary.
        private: i64,
        emptied: i64,
        /// Replaced by values that say nothing.
        replaced: i64,
        uids: i64,
        /// Moved dates.
        dates: i64,
        /// Ids replaced by pseudonyms.
        pseudonyms: i64,
        /// Would have stayed, and held a name or id of the patient.
        echoes: i64,
    }
}

rows! {
    /// What became of one image or label file of an archive: the table `series.parquet` that `voxmill convert` writes.
    ArchiveRow = "archive" {
        patient: String,
        study: String,
        series: String,
        volume: i64,
        /// `image`, `seg`, `rtstruct` or `nifti`.
        kind: String,
        modality: String,
        /// Free text of the scanner: empty unless `deidentify: none`.
        description: Option<String>,
        body_part: Option<String>,
        n_instances: i64,
        n_frames: i64,
        /// Voxels along z, y, x; empty where there is no volume.
        size_zyx: Vec<i64>,
        spacing_zyx_mm: Vec<f64>,
        tilt_degrees: Option<f64>,
        dtype: Option<String>,
        /// What a voxel value means: `HU`, `stored`, `SUV`.
        unit: Option<String>,
        channels: Vec<String>,
        /// `converted`, `refused` or `left out`.
        verdict: String,
        /// Why it was refused or left out.
        why: Option<String>,
        /// What was decided on the way and a reader should know.
        notes: Vec<String>,
        /// What was made of it, relative to the folder of the table.
        files: Vec<String>,
        /// Images: the classes drawn on it. Labels: the names of segments or ROIs.
        labels: Vec<String>,
        /// Why its labels could not be drawn.
        labels_why: Option<String>,
    }
}

rows! {
    /// A label that is a class of an image, where no class was named (`classes: all`).
    ClassRow = "classes" {
        name: String,
        /// 1 to 255.
        id: i64,
        /// Whether the number is the same in every image of the archive.
        is_of_archive: bool,
    }
}

rows! {
    /// What was found out about a volume on its way, as the stages told it: what stands beside an exported file belongs to what it is made from.
    DecidedRow = "decided" {
        /// A JSON object.
        facts: String,
    }
}

rows! {
    /// The part a case plays in a fold. Without k folds a case has one row, of fold 0; with k folds it has one row a fold, and is `val` in exactly one
    /// of them (or `test` in all). [`SplitRow::parts`] reads it.
    SplitRow = "split" {
        case: String,
        patient: String,
        /// From 0.
        fold: i64,
        /// `train`, `val` or `test`.
        part: String,
    }
}

impl SplitRow {
    /// Case → `train`, `val` or `test` in one fold. Empty where there is no such fold.
    pub fn parts(rows: &[SplitRow], fold: i64) -> BTreeMap<String, String> {
        rows.iter().filter(|r| r.fold == fold).map(|r| (r.case.clone(), r.part.clone())).collect()
    }
}

rows! {
    /// A case and class, judged. Null distances: one of the two masks is empty.
    ScoreRow = "scores" {
        case: String,
        part: Option<String>,
        class: String,
        dice: Option<f64>,
        hd95_mm: Option<f64>,
        /// Truth has voxels, the prediction none.
        missed: bool,
        /// The prediction has voxels, truth none.
        spurious: bool,
        truth_ml: f64,
        prediction_ml: f64,
    }
}

rows! {
    /// A case as the fingerprint of a set saw it.
    FingerprintCaseRow = "fingerprint_cases" {
        case: String,
        modality: String,
        size_z: i64,
        size_y: i64,
        size_x: i64,
        spacing_z_mm: f64,
        spacing_y_mm: f64,
        spacing_x_mm: f64,
        /// Size of the box around all voxels that are not 0 in some channel; the whole size where all are 0.
        crop_z: i64,
        crop_y: i64,
        crop_x: i64,
        /// Voxels of that box by all voxels.
        cropped_share: f64,
        /// Voxels whose intensities were taken.
        foreground_voxels: i64,
    }
}

rows! {
    /// Intensities of a channel over the foreground of a set. Every case counts the same, however large its foreground (nnU-Net).
    FingerprintChannelRow = "fingerprint_channels" {
        channel: String,
        unit: String,
        /// Cases with foreground.
        cases: i64,
        /// Their foreground voxels.
        voxels: i64,
        mean: f64,
        /// Population standard deviation (÷ N).
        std: f64,
        median: f64,
        percentile_00_5: f64,
        percentile_99_5: f64,
        min: f64,
        max: f64,
    }
}

rows! {
    /// A class over a set. Volumes over the cases that have it.
    FingerprintClassRow = "fingerprint_classes" {
        class: String,
        id: i64,
        /// Cases with at least one voxel of it.
        cases: i64,
        voxels: i64,
        mean_ml: f64,
        median_ml: f64,
        min_ml: f64,
        max_ml: f64,
        /// Mean number of connected pieces (26 neighbours) a case; null where they were not counted.
        mean_components: Option<f64>,
    }
}

rows! {
    /// What a training is recommended to look like, from a fingerprint and a memory. Lists run from full resolution to the bottleneck; axes are z, y, x.
    RecommendRow = "recommend" {
        spacing_mm: Vec<f64>,
        /// Median size of the cases at this spacing, voxels.
        median_size: Vec<f64>,
        patch: Vec<i64>,
        batch: i64,
        /// How often each axis is halved.
        pooled: Vec<i64>,
        filters: Vec<i64>,
        /// Three numbers a level.
        strides: Vec<i64>,
        /// Three numbers a level.
        kernel_size: Vec<i64>,
        /// `ct` or `zscore`.
        normalize: String,
        /// Values in all feature maps of one patch.
        feature_values: f64,
        memory_gb: f64,
    }
}

rows! {
    /// One epoch of a training.
    HistoryRow = "history" {
        /// From 1.
        epoch: i64,
        /// Steps since the beginning.
        step: i64,
        /// Learning rate of the epoch's last step.
        lr: f64,
        /// Mean over the epoch's steps.
        loss: f64,
        /// Mean over the classes; empty where the epoch was not validated.
        val_dice: Option<f64>,
        /// One a class, in the order of the ids: the mean over the validation cases, NaN for a class that none of them has.
        class_dice: Vec<f64>,
    }
}

rows! {
    /// One command that ran.
    RunRow = "runs" {
        run: String,
        pipeline: String,
        /// Path of the YAML as it was given.
        file: String,
        /// Hash of the YAML with variables filled in.
        config_hash: String,
        purpose: String,
        seed: i64,
        jobs: i64,
        voxmill: String,
        started_ms: i64,
        ended_ms: Option<i64>,
        /// `done`, `quarantined`, `failed` or `cancelled`; `running` where no end was written (in hand, or killed).
        status: String,
    }
}

rows! {
    /// One artifact that a run made, reused or failed to make.
    ExecutionRow = "executions" {
        run: String,
        node: String,
        stage: String,
        version: i64,
        case: Option<String>,
        key: String,
        content: String,
        input_keys: Vec<String>,
        config_hash: String,
        config: String,
        /// `made`, `reused`, `quarantined`, `failed` or `cancelled`.
        status: String,
        /// Which part of the key was new, for what was made.
        why: Option<String>,
        started_ms: i64,
        ended_ms: i64,
        took_ms: i64,
        bytes: i64,
        /// Bricks from each shelf since the row before.
        ram_hits: i64,
        nvme_hits: i64,
        disk_reads: i64,
        facts: String,
        error: Option<String>,
    }
}

rows! {
    /// Something that had to be left out, and why.
    QuarantineRow = "quarantine" {
        run: String,
        node: String,
        what: String,
        why: String,
    }
}

rows! {
    /// A case that a model saw: answer of `voxmill saw`.
    SawRow = "saw" {
        /// Key of the model.
        model: String,
        /// The node that has it as its newest artifact; empty for an older one.
        node: Option<String>,
        patient: String,
        case: String,
        /// `train`: weights were fitted to it. `val`: it chose among them. `test`: it was dealt in and not looked at.
        part: String,
        series: String,
        /// Key of the volume as the training read it.
        volume: String,
    }
}

rows! {
    /// Something that differs between two runs: answer of `voxmill diff`.
    DifferenceRow = "differences" {
        /// `program`, `pipeline`, `node`, `config`, `code`, `case` or `result`.
        what: String,
        node: Option<String>,
        name: String,
        old: Option<String>,
        new: Option<String>,
    }
}

/// Hash of what the rows of a batch say, in their order, without volatile columns: names, types and cells, each with its length.
pub fn digest(batch: &RecordBatch) -> ContentHash {
    let mut h = blake3::Hasher::new();
    let mut put = |bytes: &[u8]| {
        h.update(&(bytes.len() as u64).to_le_bytes());
        h.update(bytes);
    };
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if field.metadata().contains_key(VOLATILE) {
            continue;
        }
        put(field.name().as_bytes());
        put(field.data_type().to_string().as_bytes());
        let cells =
            arrow::util::display::ArrayFormatter::try_new(column, &arrow::util::display::FormatOptions::new().with_null("\u{0}null"));
        let cells = cells.expect("our column types can all be shown");
        (0..batch.num_rows()).for_each(|row| put(cells.value(row).to_string().as_bytes()));
    }
    ContentHash(*h.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_the_way_through_arrow() {
        let rows = vec![
            InstanceRow { series: "s".into(), position_mm: vec![1.0, 2.5, -3.0], instance_number: Some(4), ..Default::default() },
            InstanceRow { series: "t".into(), path: "/a".into(), ..Default::default() },
        ];
        assert_eq!(InstanceRow::from_batch(&InstanceRow::to_batch(&rows)).expect("own batch"), rows);
        assert!(SplitRow::from_batch(&InstanceRow::to_batch(&rows)).is_err());
    }

    #[test]
    fn digest_sees_contents_but_not_places() {
        let row = |path: &str, content: &str| InstanceRow { path: path.into(), content: content.into(), ..Default::default() };
        let of = |r: InstanceRow| digest(&InstanceRow::to_batch(&[r]));
        assert_eq!(of(row("/a", "x")), of(row("/b", "x")));
        assert_ne!(of(row("/a", "x")), of(row("/a", "y")));
    }
}
