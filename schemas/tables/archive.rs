//! What an archive holds and what became of it: series, instances, files, labels.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Field, Schema};
use serde::{Deserialize, Serialize};

use super::{Cell, Row, TableError, rows};

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
