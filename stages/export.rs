//! Labels → files for other programs: DICOM SEG on the original slices, NIfTI, OME-Zarr.

use std::collections::BTreeMap;

use arrow::array::{BooleanArray, Int64Array, StringArray};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use voxmill_schemas::artifact::{CaseId, Kind, Manifest, Port, Scope};
use voxmill_schemas::tables::InstanceRow;

use crate::dicom::seg::Code;
use crate::dicom::write::Encoding;
use crate::dicom::write_seg::{SegOut, SegmentOut};
use crate::dicom::{place, source, write_seg};
use crate::error::Error;
use crate::stage::{Cx, Facts, Finding, Info, Inputs, Rows, Stage};
use crate::volume::{Labels, Volume, Voxels};
use crate::{nifti, table};

/// Writes labels as DICOM SEG, NIfTI or OME-Zarr.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// `dicom-seg` (`CASE.dcm`, goes back to the study it was made from), `nifti` (`CASE.nii.gz`: the labels, or the image where there are none) or `ome-zarr` (`CASE.zarr`: image and labels).
    pub format: Format,
    /// DICOM SEG only: one bit a segment, which every viewer reads, or one number a voxel (2024 and later).
    #[serde(default)]
    pub segmentation: Segmentation,
    /// DICOM SEG only: what the algorithm is called.
    #[serde(default = "algorithm_name")]
    pub algorithm_name: String,
    /// DICOM SEG only: how the new series is described.
    #[serde(default = "series_description")]
    pub series_description: String,
    /// DICOM SEG only: class → what it is, as codes. Default: the category anatomical structure, the type tissue.
    #[serde(default)]
    pub codes: BTreeMap<String, ClassCodes>,
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
    Nifti,
    OmeZarr,
}

/// Kinds of DICOM SEG.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Segmentation {
    #[default]
    Binary,
    Labelmap,
}

/// What a class is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClassCodes {
    /// SegmentedPropertyCategory, such as anatomical structure (the default).
    #[serde(default = "anatomical_structure")]
    pub category: CodeSpec,
    /// SegmentedPropertyType, such as `{ value: "71341001", scheme: SCT, meaning: Femur }`.
    #[serde(rename = "type")]
    pub kind: CodeSpec,
}

/// A coded term (PS3.3 8): value, scheme and what it means in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CodeSpec {
    /// Code in the scheme, at most 16 characters.
    pub value: String,
    /// `SCT` for SNOMED CT, `DCM`, `FMA`, or `99…` for a private scheme.
    pub scheme: String,
    /// The term in words.
    pub meaning: String,
}

fn anatomical_structure() -> CodeSpec {
    CodeSpec { value: "91723000".into(), scheme: "SCT".into(), meaning: "Anatomical Structure".into() }
}

fn tissue() -> CodeSpec {
    CodeSpec { value: "85756007".into(), scheme: "SCT".into(), meaning: "Tissue".into() }
}

impl From<CodeSpec> for Code {
    fn from(c: CodeSpec) -> Code {
        Code { value: c.value, scheme: c.scheme, meaning: c.meaning }
    }
}

impl Stage for Export {
    const INFO: Info = Info {
        name: "export",
        version: 1,
        scope: Scope::Case,
        ports: &[
            Port { name: "prediction", kind: Kind::Volume, required: true, about: "volumes with labels" },
            Port { name: "series", kind: Kind::Table, required: true, about: "the index that knows the original files" },
        ],
        gives: Kind::Files,
        summary: "write labels as DICOM SEG, NIfTI or OME-Zarr",
        example: "uses: export\nfrom: { prediction: seg, series: series }\nwith: { format: dicom-seg }\n",
        absent_in_inference: None,
    };

    fn check(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        for (class, codes) in &self.codes {
            for (part, code) in [("category", &codes.category), ("type", &codes.kind)] {
                let field = format!("codes.{class}.{part}");
                if code.value.is_empty() || code.value.len() > 16 || code.scheme.is_empty() || code.scheme.len() > 16 {
                    out.push(Finding::error(
                        &field,
                        "value and scheme have 1 to 16 characters",
                        "look the code up, such as SCT 71341001 Femur",
                    ));
                }
                if code.meaning.is_empty() || code.meaning.chars().count() > 64 {
                    out.push(Finding::error(&field, "meaning has 1 to 64 characters", "name the term in words"));
                }
            }
        }
        if self.format == Format::DicomSeg && self.algorithm_name.trim().is_empty() {
            out.push(Finding::error("algorithm_name", "it is empty", "a segmentation made by a program must name it"));
        }
        if self.format != Format::DicomSeg && (!self.codes.is_empty() || self.segmentation != Segmentation::default()) {
            out.push(Finding::warning(
                "format",
                "codes and segmentation concern DICOM SEG alone",
                "leave them out, or set format: dicom-seg",
            ));
        }
        out
    }

    /// The instances of the volume that the case was assembled from; a series may hold several (echoes, phases).
    fn rows_of(&self, _port: &str, table: &Rows, of: &Manifest) -> Result<Option<Rows>, Error> {
        let series = of.facts.get("series").and_then(Value::as_str).unwrap_or_default();
        let volume = of.facts.get("volume").and_then(Value::as_i64).unwrap_or(0);
        let mut rows = table.clone();
        rows.0.retain(|name, _| name == "instances");
        for batch in rows.0.values_mut() {
            let names = batch.column_by_name("series").and_then(|c| c.as_any().downcast_ref::<StringArray>());
            let volumes = batch.column_by_name("volume").and_then(|c| c.as_any().downcast_ref::<Int64Array>());
            let (Some(names), Some(volumes)) = (names, volumes) else { continue };
            let mine: BooleanArray = names.iter().zip(volumes).map(|(s, v)| Some(s == Some(series) && v == Some(volume))).collect();
            *batch = arrow::compute::filter_record_batch(batch, &mine).expect("one bool a row");
        }
        Ok(Some(rows))
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let input = inputs.one("prediction");
        let mut volume = Volume::read(&input.dir)?;
        cx.bytes(volume.voxels.len() as u64);
        let labels = volume.labels.take();
        let name = file_name(cx.case);
        let file = match self.format {
            Format::DicomSeg => {
                let Some(labels) = &labels else {
                    let why =
                        "the volume has none, and DICOM SEG holds nothing else: take the output of infer or annotate, or another format";
                    return Err(Error::Labels { what: "labels".into(), why: why.into() });
                };
                let rows = inputs.one("series").rows.clone().unwrap_or_default();
                let bytes = self.dicom_seg(&volume, labels, &table::rows_of(&rows)?)?;
                let file = format!("{name}.dcm");
                let path = cx.draft.join(&file);
                cx.bytes(bytes.len() as u64);
                std::fs::write(&path, bytes).map_err(Error::io("write", &path))?;
                file
            }
            Format::Nifti => {
                let file = format!("{name}.nii.gz");
                let path = cx.draft.join(&file);
                match &labels {
                    Some(labels) => nifti::write(&path, &volume.geometry, 1, &Voxels::U8(labels.voxels.clone()))?,
                    None => nifti::write(&path, &volume.geometry, volume.channels.len(), &volume.voxels)?,
                }
                file
            }
            Format::OmeZarr => {
                let file = format!("{name}.zarr");
                let dir = cx.draft.join(&file);
                std::fs::create_dir_all(&dir).map_err(Error::io("make folder", &dir))?;
                volume.labels = labels.clone();
                volume.write(&dir, Some(&input.dir))?;
                file
            }
        };
        let facts = Facts::default().with("file", file).with("series", &volume.about.series);
        Ok(match &labels {
            Some(labels) => facts.with("label_voxels", labels.counts()),
            None => facts,
        })
    }
}

impl Export {
    fn dicom_seg(&self, volume: &Volume, labels: &Labels, instances: &[InstanceRow]) -> Result<Vec<u8>, Error> {
        let elsewhere = |why: String| Error::Geometry { what: "labels".into(), why };
        if !volume.geometry.same_grid(&volume.about.source, 1e-3) {
            let (found, wanted) = (volume.geometry.size, volume.about.source.size);
            let why = format!(
                "they lie on a grid of {found}, not on the {wanted} of the original slices: export the output of infer, or of annotate before resampling"
            );
            return Err(elsewhere(why));
        }
        if instances.is_empty() {
            return Err(elsewhere("the index has no instance of its series: export with the index that the case came from".into()));
        }
        let series = source::open(instances)?;
        let slices = place::on_grid(&volume.geometry, &series.slices).map_err(elsewhere)?;
        let segment = |(name, id): (&String, &u8)| {
            let codes = self.codes.get(name).cloned().unwrap_or(ClassCodes { category: anatomical_structure(), kind: tissue() });
            SegmentOut { id: *id, label: name.clone(), category: codes.category.into(), kind: codes.kind.into() }
        };
        let segments: Vec<SegmentOut> = labels.classes.iter().map(segment).collect();
        write_seg::seg(&SegOut {
            series: &series,
            slices: &slices,
            size: volume.geometry.size,
            labels: &labels.voxels,
            segments: &segments,
            is_labelmap: self.segmentation == Segmentation::Labelmap,
            is_manual: false,
            algorithm_name: &self.algorithm_name,
            series_description: &self.series_description,
            encoding: Encoding::ExplicitLittle,
        })
    }
}

/// The case's name where it is a harmless file name; else with what is not replaced and a hash that keeps two cases apart.
fn file_name(case: Option<&CaseId>) -> String {
    let name = case.map_or("case", |c| &c.0);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && name.len() <= 128 && name.chars().all(is_plain) && !name.starts_with('.') {
        return name.into();
    }
    let safe: String = name.chars().take(64).map(|c| if is_plain(c) { c } else { '_' }).collect();
    format!("{}-{}", safe.trim_start_matches('.'), &blake3::hash(name.as_bytes()).to_hex()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_stay_inside_their_folder_and_apart() {
        let of = |name: &str| file_name(Some(&CaseId(name.into())));
        assert_eq!(of("hippocampus_001"), "hippocampus_001");
        for hostile in ["../../etc/passwd", "a/b", "..", "", "a\\b", "name\0"] {
            let name = of(hostile);
            assert!(!name.contains(['/', '\\', '\0']) && !name.starts_with('.') && name.len() > 8, "{name}");
        }
        assert_ne!(of("a/b"), of("a b"));
    }

    #[test]
    fn codes_that_do_not_fit_are_found() {
        let mut e = Export {
            format: Format::DicomSeg,
            segmentation: Segmentation::Binary,
            algorithm_name: algorithm_name(),
            series_description: series_description(),
            codes: BTreeMap::new(),
        };
        assert!(Stage::check(&e).is_empty());
        e.codes
            .insert("Femur".into(), ClassCodes { category: anatomical_structure(), kind: CodeSpec { meaning: String::new(), ..tissue() } });
        e.algorithm_name.clear();
        assert_eq!(Stage::check(&e).iter().map(|f| f.field.as_str()).collect::<Vec<_>>(), ["codes.Femur.type", "algorithm_name"]);
    }

    #[test]
    fn an_export_refers_to_the_instances_of_its_own_volume() {
        use voxmill_schemas::artifact::{ContentHash, Key, Recipe};
        use voxmill_schemas::tables::Row;

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
        let stage: Export = serde_json::from_value(serde_json::json!({ "format": "dicom-seg" })).expect("a config");
        let instances = |facts| {
            let rows = stage.rows_of("series", &index, &of(facts)).expect("rows").expect("some");
            table::rows_of::<InstanceRow>(&rows).expect("instances").into_iter().map(|i| i.instance).collect::<Vec<_>>()
        };
        assert_eq!(instances(serde_json::json!({ "series": "s", "volume": 1 })), ["b"]);
        assert_eq!(instances(serde_json::json!({ "series": "s" })), ["a"]);
    }
}
