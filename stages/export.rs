//! Volumes and labels → files for other programs: DICOM SEG and RTSTRUCT on the original slices, NIfTI, OME-Zarr.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use arrow::array::{Int64Array, StringArray};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use voxmill_schemas::artifact::{CaseId, Kind, Manifest, Port, Scope};
use voxmill_schemas::tables::{DecidedRow, InstanceRow, Row, SeriesRow};
use voxmill_schemas::zarr_attrs::About;

use crate::dicom::Holes;
use crate::error::Error;
use crate::labels::{Back, ClassCodes};
use crate::nifti::{self, Channels, Options};
use crate::stage::{Cx, Facts, Finding, Info, Inputs, Progress, Rows, Stage};
use crate::store::link;
use crate::table;
use crate::volume::{StoredVolume, Volume, Voxels, sidecar};

/// Writes images and labels as DICOM SEG, RTSTRUCT, NIfTI or OME-Zarr.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// `dicom-seg` and `rtstruct` (`CASE.dcm`, labels that go back to the study they were made from), `nifti` (`CASE.nii.gz`) or `ome-zarr` (`CASE.zarr`: image and labels).
    pub format: Format,
    /// NIfTI only: what of a volume is written. `both` writes the labels beside the image as `CASE_labels.nii.gz`.
    #[serde(default)]
    pub content: Content,
    /// NIfTI only: how hard gzip tries, from 1 (fast) to 9 (small); 0 writes `.nii`.
    #[serde(default = "compression")]
    #[schemars(range(max = 9))]
    pub compression: u8,
    /// Whether to write `CASE.json` (for OME-Zarr `CASE.zarr.json`) beside each file: patient, study, series and instances as the index calls them, the
    /// geometry as affines, units, padding, gaps, and all that was decided on the way.
    #[serde(default)]
    pub sidecar: bool,
    /// What files are called: after their case, or after patient, study and series in folders, as the index calls them.
    #[serde(default)]
    pub names: Naming,
    /// DICOM SEG only: one bit a segment, which every viewer reads, or one number a voxel (2024 and later).
    #[serde(default)]
    pub segmentation: Segmentation,
    /// RTSTRUCT only: a hole is a channel of the contour around it (`keyhole`, CLOSED_PLANAR), which planning systems of any age read alike, or a contour of its own (`xor`, CLOSEDPLANAR_XOR of 2024).
    #[serde(default)]
    pub holes: Holes,
    /// DICOM only: what the algorithm is called.
    #[serde(default = "algorithm_name")]
    pub algorithm_name: String,
    /// DICOM only: how the new series is described.
    #[serde(default = "series_description")]
    pub series_description: String,
    /// DICOM only: class → what it is, as codes. Default: the category anatomical structure, the type tissue.
    #[serde(default)]
    pub codes: BTreeMap<String, ClassCodes>,
}

fn compression() -> u8 {
    1
}

fn algorithm_name() -> String {
    "voxmill".into()
}

fn series_description() -> String {
    "Voxmill segmentation".into()
}

/// File formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    DicomSeg,
    Rtstruct,
    Nifti,
    OmeZarr,
}

/// What of a volume is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// The labels, or the image where there are none.
    #[default]
    Auto,
    Image,
    Labels,
    /// The image, and the labels beside it where there are some.
    Both,
}

/// What files are called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Naming {
    /// `CASE.nii.gz`
    #[default]
    Case,
    /// `PATIENT/STUDY/SERIES.nii.gz` or `SERIES.ome.zarr`; further volumes of a series are `SERIES-1`, `SERIES-2` …
    Series,
}

/// Kinds of DICOM SEG.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Segmentation {
    #[default]
    Binary,
    Labelmap,
}

impl Format {
    fn is_dicom(self) -> bool {
        matches!(self, Format::DicomSeg | Format::Rtstruct)
    }
}

/// Series → volume → rows of a table.
type ByVolume = HashMap<String, BTreeMap<i64, Vec<u32>>>;

impl Stage for Export {
    const INFO: Info = Info {
        name: "export",
        version: 3,
        scope: Scope::Case,
        ports: &[
            Port { name: "prediction", kind: Kind::Volume, required: true, about: "volumes, with labels or without" },
            Port { name: "series", kind: Kind::Table, required: true, about: "the index that knows the original files" },
        ],
        gives: Kind::Files,
        summary: "write images and labels as DICOM SEG, RTSTRUCT, NIfTI or OME-Zarr",
        example: "uses: export\nfrom: { prediction: seg, series: series }\nwith: { format: dicom-seg }\n",
        absent_in_inference: None,
    };

    fn check(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        for (class, codes) in &self.codes {
            for (part, code) in [("category", &codes.category), ("type", &codes.kind)] {
                if let Some((message, help)) = code.fault() {
                    out.push(Finding::error(&format!("codes.{class}.{part}"), message, help));
                }
            }
        }
        if self.format.is_dicom() && self.algorithm_name.trim().is_empty() {
            out.push(Finding::error("algorithm_name", "it is empty", "labels made by a program must name it"));
        }
        let mut idle = |is_set: bool, field: &str, of: &str| {
            if is_set {
                out.push(Finding::warning(field, format!("it concerns {of} alone"), "leave it out, or choose that format"));
            }
        };
        idle(!self.format.is_dicom() && !self.codes.is_empty(), "codes", "DICOM");
        idle(self.format != Format::DicomSeg && self.segmentation != Segmentation::default(), "segmentation", "DICOM SEG");
        idle(self.format != Format::Rtstruct && self.holes != Holes::default(), "holes", "RTSTRUCT");
        idle(self.format != Format::Nifti && self.content != Content::default(), "content", "NIfTI");
        out
    }

    /// The instances of the volume that the case was assembled from; a series may hold several (echoes, phases). A sidecar tells of the whole series, and of
    /// what was decided on the way, which is not in the bytes of the volume; other files than DICOM name no instance.
    fn rows_of(&self, _port: &str, table: &Rows, of: &Manifest) -> Result<Option<Rows>, Error> {
        let series = of.facts.get("series").and_then(Value::as_str).unwrap_or_default();
        let volume = of.facts.get("volume").and_then(Value::as_i64).unwrap_or(0);
        let mut out = BTreeMap::new();
        for name in [SeriesRow::TABLE, InstanceRow::TABLE] {
            let is_wanted = self.sidecar || (self.format.is_dicom() && name == InstanceRow::TABLE);
            let Some(batch) = table.0.get(name).filter(|_| is_wanted) else { continue };
            let alone = Rows(BTreeMap::from([(name.to_string(), batch.clone())]));
            let by_volume = table::prepared(&alone, |_| Ok(by_volume(batch)))?;
            let of_series = by_volume.get(series);
            let mine: Vec<u32> = match of_series {
                None => Vec::new(),
                Some(all) if self.sidecar => all.values().flatten().copied().collect(),
                Some(all) => all.get(&volume).cloned().unwrap_or_default(),
            };
            out.insert(name.to_string(), table::taken(batch, &mine));
        }
        if self.sidecar {
            let decided = DecidedRow { facts: Value::Object(of.facts.clone()).to_string() };
            out.insert(DecidedRow::TABLE.to_string(), DecidedRow::to_batch(&[decided]));
        }
        Ok(Some(Rows(out)))
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let input = inputs.one("prediction");
        let stored = StoredVolume::open(&input.dir, input.manifest.key)?;
        let name = match self.names {
            Naming::Case => file_name(cx.case.map_or("case", |c: &CaseId| &c.0)),
            Naming::Series => way(&stored.about),
        };
        let beside = |ending: &str| cx.draft.join(format!("{name}{ending}"));
        if let Some(folder) = beside("").parent() {
            std::fs::create_dir_all(folder).map_err(Error::io("make folder", folder))?;
        }
        let index = inputs.one("series").rows.clone().unwrap_or_default();
        let mut files = Vec::new();
        match self.format {
            Format::DicomSeg | Format::Rtstruct => {
                let mut volume = Volume::read(&input.dir)?;
                let Some(labels) = volume.labels.take() else { return Err(no_labels("DICOM SEG and RTSTRUCT hold nothing else")) };
                let mut rows: Vec<InstanceRow> = table::rows_of(&index)?;
                rows.retain(|i| i.volume == volume.about.volume);
                let (bytes, warning) = self.back().file(&volume, labels, &rows)?;
                warning.into_iter().for_each(|text| (cx.progress)(Progress::Warn(text)));
                std::fs::write(beside(".dcm"), bytes).map_err(Error::io("write", beside(".dcm")))?;
                files.push(format!("{name}.dcm"));
            }
            Format::Nifti => files = self.nifti(&input.dir, &name, cx)?,
            Format::OmeZarr => {
                // The artifact is one already: nothing is read, nothing is written.
                let ending = if self.names == Naming::Series { ".ome.zarr" } else { ".zarr" };
                let dir = beside(ending);
                for file in input.manifest.files.keys() {
                    let to = dir.join(file);
                    let folder = to.parent().expect("a file stands in a folder");
                    std::fs::create_dir_all(folder).map_err(Error::io("make folder", folder))?;
                    link(&input.dir.join(file), &to)?;
                }
                files.push(format!("{name}{ending}"));
            }
        }
        files.iter().filter_map(|f| std::fs::metadata(cx.draft.join(f)).ok()).filter(|m| m.is_file()).for_each(|m| cx.bytes(m.len()));
        if self.sidecar {
            // A volume may be written as NIfTI and as OME-Zarr into one folder.
            let path = if self.format == Format::OmeZarr { cx.draft.join(format!("{}.json", files[0])) } else { beside(".json") };
            let decided = decided(&index)?;
            let case = cx.case.map(|c| c.0.as_str());
            let told = sidecar(&stored, case, &files, &decided, &table::rows_of(&index)?, &table::rows_of(&index)?);
            let text = serde_json::to_vec_pretty(&told).expect("plain data");
            std::fs::write(&path, text).map_err(Error::io("write", &path))?;
        }
        let facts = Facts::default().with("file", &files[0]).with("files", &files).with("series", &stored.about.series);
        Ok(match input.manifest.facts.get("label_voxels") {
            Some(counts) => facts.with("label_voxels", counts),
            None => facts,
        })
    }
}

impl Export {
    /// Writes image, labels or both; the names of what was written, relative to the draft.
    fn nifti(&self, dir: &Path, name: &str, cx: &Cx) -> Result<Vec<String>, Error> {
        let volume = Volume::read(dir)?;
        cx.bytes(volume.bytes());
        if !volume.about.is_regular() {
            let why =
                "its slices stand at uneven distances (`gaps: keep`), and NIfTI knows one step: take `gaps: fill`, or `resample` before it";
            return Err(Error::Geometry { what: "volume".into(), why: why.into() });
        }
        let labels = volume.labels.as_ref().filter(|_| self.content != Content::Image);
        let has_image = !volume.channels.is_empty();
        let with_image = has_image && self.content != Content::Labels && (self.content != Content::Auto || labels.is_none());
        let ending = if self.compression == 0 { ".nii" } else { ".nii.gz" };
        let level = u32::from(self.compression.min(9));
        let mut files = Vec::new();
        let mut put = |name: String, channels: usize, voxels: &Voxels, kind: Channels| -> Result<(), Error> {
            nifti::write(&cx.draft.join(&name), &volume.geometry, channels, voxels, &Options { channels: kind, level })?;
            files.push(name);
            Ok(())
        };
        if with_image {
            put(format!("{name}{ending}"), volume.channels.len(), &volume.voxels, channels_of(&volume))?;
        }
        if let Some(labels) = labels {
            let name = if with_image { format!("{name}_labels{ending}") } else { format!("{name}{ending}") };
            put(name, 1, &Voxels::U8(labels.voxels.clone()), Channels::Any)?;
        }
        match files.is_empty() {
            true if self.content == Content::Labels => Err(no_labels("content: labels asks for them")),
            true => Err(Error::Labels { what: "image".into(), why: "the volume holds labels alone: take content: labels".into() }),
            false => Ok(files),
        }
    }

    fn back(&self) -> Back<'_> {
        Back {
            is_seg: self.format == Format::DicomSeg,
            is_labelmap: self.segmentation == Segmentation::Labelmap,
            holes: self.holes,
            algorithm_name: &self.algorithm_name,
            series_description: &self.series_description,
            codes: &self.codes,
        }
    }
}

/// The facts of the volume as they stand in the rows, which are in the key.
fn decided(rows: &Rows) -> Result<Map<String, Value>, Error> {
    let rows: Vec<DecidedRow> = table::rows_of(rows)?;
    Ok(rows.first().and_then(|r| serde_json::from_str(&r.facts).ok()).unwrap_or_default())
}

fn by_volume(instances: &arrow::array::RecordBatch) -> ByVolume {
    let names = instances.column_by_name("series").and_then(|c| c.as_any().downcast_ref::<StringArray>());
    let volumes = instances.column_by_name("volume").and_then(|c| c.as_any().downcast_ref::<Int64Array>());
    let mut out = ByVolume::new();
    if let (Some(names), Some(volumes)) = (names, volumes) {
        for (row, (name, volume)) in names.iter().zip(volumes).enumerate() {
            out.entry(name.unwrap_or_default().to_string()).or_default().entry(volume.unwrap_or(0)).or_default().push(row as u32);
        }
    }
    out
}

fn no_labels(why: &str) -> Error {
    let why = format!("the volume has none, and {why}: take the output of infer or annotate, or another format");
    Error::Labels { what: "labels".into(), why }
}

/// What the channels of a volume are to NIfTI: time points, the colours of `assemble`, or anything.
fn channels_of(volume: &Volume) -> Channels {
    if let Some(repeats) = &volume.about.repeats {
        let times = &repeats.times_s;
        let step_s = match (times.first(), times.last()) {
            (Some(a), Some(b)) if times.len() > 1 => (b - a) / (times.len() - 1) as f64,
            _ => 0.0,
        };
        return Channels::Time { step_s };
    }
    let is_colour = volume.channels.iter().map(String::as_str).eq(["R", "G", "B"]) && matches!(volume.voxels, Voxels::U8(_));
    if is_colour { Channels::Colour } else { Channels::Any }
}

/// `PATIENT/STUDY/SERIES`, and the number of the volume where it is not the first of its series.
fn way(about: &About) -> String {
    let last = if about.volume == 0 { about.series.clone() } else { format!("{}-{}", about.series, about.volume) };
    [&about.patient, &about.study, &last].map(|part| file_name(part)).join("/")
}

/// A name where it is a harmless file name; else with what is not replaced and a hash that keeps two apart.
fn file_name(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && name.len() <= 128 && name.chars().all(is_plain) && !name.starts_with('.') {
        return name.into();
    }
    let safe: String = name.chars().take(64).map(|c| if is_plain(c) { c } else { '_' }).collect();
    format!("{}-{}", safe.trim_start_matches('.'), &blake3::hash(name.as_bytes()).to_hex()[..8])
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use voxmill_schemas::geometry::{Geometry, Zyx};

    use super::*;

    fn stage(with: Value) -> Export {
        serde_json::from_value(with).expect("a config")
    }

    #[test]
    fn file_names_stay_inside_their_folder_and_apart() {
        assert_eq!(file_name("hippocampus_001"), "hippocampus_001");
        for hostile in ["../../etc/passwd", "a/b", "..", "", "a\\b", "name\0"] {
            let name = file_name(hostile);
            assert!(!name.contains(['/', '\\', '\0']) && !name.starts_with('.') && name.len() > 8, "{name}");
        }
        assert_ne!(file_name("a/b"), file_name("a b"));
        let grid = Geometry::axis_aligned(Zyx::splat(1), Zyx::splat(1.0));
        let about = About { patient: "../p".into(), study: "s".into(), series: "e".into(), volume: 2, ..About::of(grid) };
        assert_eq!(way(&about).split('/').collect::<Vec<_>>()[1..], ["s", "e-2"]);
    }

    #[test]
    fn codes_that_do_not_fit_and_keys_of_other_formats_are_found() {
        let fields = |with| Stage::check(&stage(with)).iter().map(|f| f.field.clone()).collect::<Vec<_>>();
        assert!(fields(json!({ "format": "dicom-seg" })).is_empty());
        let codes = json!({ "Femur": { "type": { "value": "1", "scheme": "SCT", "meaning": "" } } });
        assert_eq!(fields(json!({ "format": "rtstruct", "codes": codes, "algorithm_name": " " })), ["codes.Femur.type", "algorithm_name"]);
        assert_eq!(fields(json!({ "format": "nifti", "segmentation": "labelmap", "holes": "xor" })), ["segmentation", "holes"]);
    }

    #[test]
    fn an_export_refers_to_the_instances_of_its_own_volume() {
        use voxmill_schemas::artifact::{ContentHash, Key, Recipe};

        let row = |series: &str, volume, instance: &str| InstanceRow {
            series: series.into(),
            volume,
            instance: instance.into(),
            ..InstanceRow::default()
        };
        let index = Rows(BTreeMap::from([(
            InstanceRow::TABLE.to_string(),
            InstanceRow::to_batch(&[row("s", 0, "a"), row("s", 1, "b"), row("t", 1, "c")]),
        )]));
        let of = |facts: Value| Manifest {
            key: Key::of(b""),
            content: ContentHash::of(b""),
            kind: Kind::Volume,
            case: None,
            recipe: Recipe { stage: "infer".into(), version: 1, config: Value::Null, inputs: BTreeMap::new(), seed: 0 },
            input_keys: BTreeMap::new(),
            facts: facts.as_object().cloned().unwrap_or_default(),
            files: BTreeMap::new(),
            bytes: 0,
            layout: 1,
        };
        let instances = |format: &str, facts| {
            let rows = stage(json!({ "format": format })).rows_of("series", &index, &of(facts)).expect("rows").expect("some");
            if rows.0.is_empty() {
                return Vec::new();
            }
            table::rows_of::<InstanceRow>(&rows).expect("instances").into_iter().map(|i| i.instance).collect::<Vec<_>>()
        };
        assert_eq!(instances("dicom-seg", json!({ "series": "s", "volume": 1 })), ["b"]);
        assert_eq!(instances("rtstruct", json!({ "series": "s" })), ["a"]);
        assert!(instances("nifti", json!({ "series": "s" })).is_empty(), "NIfTI names no instance");
        let with_sidecar = stage(json!({ "format": "nifti", "sidecar": true }));
        let rows = with_sidecar.rows_of("series", &index, &of(json!({ "series": "s" }))).expect("rows").expect("some");
        assert_eq!(table::rows_of::<InstanceRow>(&rows).expect("instances").len(), 2, "a sidecar tells of the whole series");
        let content = |stage: &Export, facts: Value| stage.rows_of("series", &index, &of(facts)).expect("rows").expect("some").content();
        let drawn = |why: &str| json!({ "series": "s", "labels_why": why });
        assert_ne!(content(&with_sidecar, drawn("a")), content(&with_sidecar, drawn("b")), "what a sidecar prints is in its key");
        let alone = stage(json!({ "format": "nifti" }));
        assert_eq!(content(&alone, drawn("a")), content(&alone, drawn("b")), "a file alone prints none of it");
    }
}
