//! Adds labels to an image: from DICOM SEG, RTSTRUCT or NIfTI files of the archive, laid on the grid the image was assembled on.
//! Which file is taken, what could not be drawn and what overlapped is told; nothing is guessed.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use voxmill_schemas::artifact::{Kind, Manifest, Port, Scope};
use voxmill_schemas::tables::{InstanceRow, SeriesRow};

use crate::dicom::place::{Grid, nearest_voxels};
use crate::dicom::{Fill, source};
use crate::error::Error;
use crate::labels::{Align, Canvas, Choose, Found, LABELS, LabelIndex, Laying, Missing, Overlap, Target, Told, Wanted, nothing_laid};
use crate::stage::{Cx, Facts, Finding, Info, Inputs, Progress, Rows, Stage};
use crate::table;
use crate::volume::{Labels, Volume};

/// Adds labels from DICOM SEG, RTSTRUCT or NIfTI to an image.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Annotate {
    /// Class name → id (1 to 255). A class is the segment or ROI of that name; upper and lower case count only where names differ in nothing else.
    pub classes: BTreeMap<String, u8>,
    /// Class name → other names or codes of segments and ROIs that belong to it as well. `SCT:71341001` is the code of a segment's type; `SCT:71341001+SCT:7771000`
    /// asks for all of several codes among its category, type, modifiers (such as a side) and region.
    #[serde(default)]
    pub aliases: BTreeMap<String, Vec<String>>,
    /// Which kind of file to take. `auto`: the first of binary SEG, labelmap SEG, fractional SEG, RTSTRUCT, NIfTI that has every class.
    #[serde(default)]
    pub source: Source,
    /// What to do when several files of the same kind label one image.
    #[serde(default)]
    pub choose: Choose,
    /// What to do where two classes claim a voxel.
    #[serde(default)]
    pub overlap: Overlap,
    /// What to do when a case has some of the classes, but not all.
    #[serde(default)]
    pub missing: Missing,
    /// Value (0 to 1) from which on a voxel of a fractional SEG belongs to its segment. Without it, fractional SEG is refused.
    #[serde(default)]
    pub fractional_threshold: Option<f64>,
    /// Whether an RTSTRUCT contour inside another one cuts a hole (`xor`) or not (`union`).
    #[serde(default)]
    pub rtstruct_fill: Fill,
    /// How NIfTI labels are read.
    #[serde(default)]
    pub nifti: NiftiLabels,
}

/// Kinds of files that hold labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    #[default]
    Auto,
    Seg,
    Rtstruct,
    Nifti,
}

/// NIfTI labels carry numbers, not names, and lie where their header says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NiftiLabels {
    /// Class name → value in the file. Default: the class's id.
    #[serde(default)]
    pub values: BTreeMap<String, u8>,
    /// How labels find their place: by the affine in millimetres, or by index where the file has the size of the image and no trustworthy affine.
    #[serde(default)]
    pub align: Align,
}

impl Stage for Annotate {
    const INFO: Info = Info {
        name: "annotate",
        version: 1,
        scope: Scope::Case,
        ports: &[
            Port { name: "image", kind: Kind::Volume, required: true, about: "the images to label" },
            Port { name: "series", kind: Kind::Table, required: true, about: "the index that knows the label files" },
        ],
        gives: Kind::Volume,
        summary: "add labels from DICOM SEG, RTSTRUCT or NIfTI to an image",
        example: "uses: annotate\nfrom: { image: image, series: series }\nwith: { classes: { Femur: 1, Tibia: 2 }, overlap: first }\n",
        absent_in_inference: Some("image"),
    };

    fn check(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        if self.classes.is_empty() {
            out.push(Finding::error("classes", "no class is named", "give at least one, such as { Femur: 1 }"));
        }
        let mut by_id: BTreeMap<u8, &str> = BTreeMap::new();
        for (name, id) in &self.classes {
            if *id == 0 {
                out.push(Finding::error(&format!("classes.{name}"), "id 0 is background", "number the classes from 1"));
            }
            if let Some(other) = by_id.insert(*id, name) {
                let help = format!("to join both, write {other}: {id} and aliases: {{ {other}: [{name}] }}");
                out.push(Finding::error(&format!("classes.{name}"), format!("{other} has id {id} as well"), help));
            }
        }
        for (field, names) in [("aliases", self.aliases.keys().collect::<Vec<_>>()), ("nifti.values", self.nifti.values.keys().collect())] {
            for name in names.into_iter().filter(|n| !self.classes.contains_key(*n)) {
                out.push(Finding::error(&format!("{field}.{name}"), format!("{name} is no class"), "use a name that stands under classes"));
            }
        }
        let mut by_value: BTreeMap<u8, &str> = BTreeMap::new();
        for (name, value) in self.classes.iter().map(|(name, id)| (name, self.nifti.values.get(name).copied().unwrap_or(*id))) {
            let field = format!("nifti.values.{name}");
            if value == 0 && self.nifti.values.contains_key(name) {
                out.push(Finding::error(&field, "value 0 is background", "give the value that the class has in the files"));
            } else if let Some(other) = by_value.insert(value, name)
                && !self.nifti.values.is_empty()
            {
                let help = "give each class a value of its own; a class without one has its id as value";
                out.push(Finding::error(&field, format!("{other} has the value {value} as well"), help));
            }
        }
        if let Overlap::Priority(names) = &self.overlap {
            let count = |class: &String| names.iter().filter(|n| *n == class).count();
            for (class, n) in self.classes.keys().map(|c| (c, count(c))).filter(|(_, n)| *n != 1) {
                out.push(Finding::error(
                    "overlap.priority",
                    format!("{class} stands {n} times in the list"),
                    "name every class once, the first wins",
                ));
            }
            for name in names.iter().filter(|n| !self.classes.contains_key(*n)) {
                out.push(Finding::error("overlap.priority", format!("{name} is no class"), "use names that stand under classes"));
            }
        }
        if self.fractional_threshold.is_some_and(|t| !(t > 0.0 && t <= 1.0)) {
            out.push(Finding::error("fractional_threshold", "a share lies above 0 and up to 1", "0.5 is the usual choice"));
        }
        out
    }

    /// The label files that refer to the image's series, and the instances of the image itself (their positions).
    fn rows_of(&self, _port: &str, table: &Rows, of: &Manifest) -> Result<Option<Rows>, Error> {
        if !["series", "instances"].iter().all(|name| table.0.contains_key(*name)) {
            return Ok(Some(table.clone()));
        }
        let index = table::prepared(table, LabelIndex::of)?;
        let image = of.facts.get("series").and_then(Value::as_str).unwrap_or_default();
        Ok(Some(index.rows_of(table, of, image)))
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let (image, index) = (inputs.one("image"), inputs.one("series"));
        let rows = index.rows.clone().unwrap_or_default();
        let series: Vec<SeriesRow> = table::rows_of(&rows)?;
        let mut volume = Volume::read(&image.dir)?;
        cx.bytes((volume.voxels.len() * 2) as u64);
        let all: Vec<InstanceRow> = table::rows_of(&rows)?;
        let (own, files): (Vec<InstanceRow>, Vec<InstanceRow>) = all.into_iter().partition(|i| i.series == volume.about.series);
        let (mine, others): (Vec<InstanceRow>, Vec<InstanceRow>) = own.into_iter().partition(|i| i.volume == volume.about.volume);
        let source = source::open(&mine)?;
        let about = &volume.about;
        let grid = Grid::standing(&about.source, &about.z_positions_mm).named(&source.slices);
        let target = Target::new(&source.slices, others, source.frame_of_reference.clone());
        let (found, by_frame) = self.find(&series, &files, &target, &volume.about.series, cx)?;
        let wanted = self.wanted();
        let chosen = wanted.choose(&found, self.choose, self.missing)?;
        cx.check_cancelled()?;

        let mut canvas = Canvas::new(grid.geometry.size.count(), &self.overlap, &self.classes);
        let mut told = Told { missing: wanted.missing(&chosen), ..Told::default() };
        let laying = Laying { wanted, threshold: self.fractional_threshold, fill: self.rtstruct_fill, align: self.nifti.align };
        for file in &chosen {
            if by_frame.contains(file.file()) {
                let text = "names no series of the archive and was taken because it lies in the frame of reference of this one";
                told.warnings.push(format!("{} {text}", file.file()));
            }
            target.check_frame_of_reference(file)?;
            laying.lay(file, &grid, &mut canvas, &mut told)?;
            cx.check_cancelled()?;
        }
        canvas.judge(&self.classes)?;
        if canvas.is_empty() {
            return Err(nothing_laid(&chosen, &told));
        }
        let shared = canvas.shared(&self.classes);
        let mut labels = canvas.labels;
        if !volume.geometry.same_grid(&grid.geometry, 1e-3) {
            labels = nearest_voxels(&grid.geometry, &volume.geometry).map(|v| v.map_or(0, |v| labels[v])).collect();
            told.is_resampled = true;
        }
        volume.labels = Some(Labels { classes: self.by_id(), voxels: labels });
        volume.write(cx.draft, Some(&image.dir))?;
        let what = cx.case.map_or("image", |c| c.0.as_str());
        for warning in &told.warnings {
            (cx.progress)(Progress::Warn(format!("{what}: {warning}")));
        }
        let mut facts = volume.facts().with("label_source", chosen[0].kind()).with("label_files", chosen.len());
        if told.is_resampled {
            facts = facts.with("labels_resampled", true);
        }
        if !shared.is_empty() {
            facts = facts.with("voxels_shared", &shared);
        }
        if told.nested_planes > 0 {
            facts = facts.with("nested_planes", told.nested_planes);
        }
        if !told.skipped.is_empty() {
            facts = facts.with("contours_skipped", &told.skipped);
        }
        if !told.missing.is_empty() {
            facts = facts.with("classes_missing", &told.missing);
        }
        if !told.warnings.is_empty() {
            facts = facts.with("warnings", &told.warnings);
        }
        Ok(facts)
    }
}

impl Annotate {
    fn by_id(&self) -> IndexMap<String, u8> {
        let mut classes: Vec<_> = self.classes.iter().map(|(n, id)| (n.clone(), *id)).collect();
        classes.sort_by_key(|(_, id)| *id);
        classes.into_iter().collect()
    }

    /// Opens every label file of the wanted kind. NIfTI files are opened only where the others lack a class: an archive may hold images as NIfTI.
    /// Those that do not name the image, but lie in its frame of reference, are told apart; they stand back where others name it.
    fn find(
        &self,
        series: &[SeriesRow],
        instances: &[InstanceRow],
        target: &Target,
        image: &str,
        cx: &Cx,
    ) -> Result<(Vec<Found>, BTreeSet<String>), Error> {
        let mut found: Vec<Found> = Vec::new();
        let mut by_frame: BTreeSet<String> = BTreeSet::new();
        let mut of_others = 0;
        let kinds: &[&str] = match self.source {
            Source::Auto => &["seg", "rtstruct", "nifti"],
            Source::Seg => &["seg"],
            Source::Rtstruct => &["rtstruct"],
            Source::Nifti => &["nifti"],
        };
        for kind in kinds {
            if *kind == "nifti" && (0..=3).any(|rank| self.wanted().has_all(found.iter().filter(|f| f.rank() == rank))) {
                break;
            }
            let row_of = |i: &InstanceRow| series.iter().find(|r| r.kind == *kind && r.series == i.series && r.volume == i.volume);
            for (i, row) in instances.iter().filter_map(|i| Some((i, row_of(i)?))) {
                cx.check_cancelled()?;
                cx.bytes(i.size_bytes.max(0) as u64);
                let Some(file) = Found::read(kind, i)? else { continue };
                if target.has(&file)? {
                    if *kind != "nifti" && !row.references.iter().any(|r| r == image) {
                        by_frame.insert(i.file.clone());
                    }
                    found.push(file);
                } else {
                    of_others += 1;
                }
            }
        }
        if found.iter().any(|f| f.rank() < 4 && !by_frame.contains(f.file())) {
            found.retain(|f| !by_frame.contains(f.file()));
        }
        if found.is_empty() {
            let kind = match self.source {
                Source::Auto => "SEG, RTSTRUCT or NIfTI",
                Source::Seg => "SEG",
                Source::Rtstruct => "RTSTRUCT",
                Source::Nifti => "NIfTI",
            };
            let why = match of_others {
                0 => format!("no {kind} in the archive refers to this image series"),
                n => format!("no {kind} names slices of this volume of the series; {n} name those of its other volumes"),
            };
            return Err(Error::Labels { what: LABELS.into(), why });
        }
        found.sort_by(|a, b| (a.rank(), a.file()).cmp(&(b.rank(), b.file())));
        Ok((found, by_frame))
    }

    fn wanted(&self) -> Wanted<'_> {
        Wanted { classes: &self.classes, aliases: &self.aliases, values: &self.nifti.values }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn stage(with: serde_json::Value) -> Annotate {
        serde_json::from_value(with).unwrap()
    }

    #[test]
    fn two_classes_of_one_value_are_found() {
        let fields = |with| Stage::check(&stage(with)).into_iter().map(|f| f.field).collect::<Vec<_>>();
        let classes = serde_json::json!({ "A": 1, "B": 2 });
        assert!(fields(serde_json::json!({ "classes": classes, "nifti": { "values": { "A": 2, "B": 1 } } })).is_empty());
        assert_eq!(fields(serde_json::json!({ "classes": classes, "nifti": { "values": { "A": 2 } } })), ["nifti.values.B"]);
        assert_eq!(fields(serde_json::json!({ "classes": classes, "nifti": { "values": { "A": 0 } } })), ["nifti.values.A"]);
    }

    #[test]
    fn a_priority_names_every_class_once() {
        let found = |priority: serde_json::Value| {
            let with = serde_json::json!({ "classes": { "A": 1, "B": 2 }, "overlap": { "priority": priority } });
            Stage::check(&stage(with)).into_iter().map(|f| f.message).collect::<Vec<_>>()
        };
        assert!(found(serde_json::json!(["B", "A"])).is_empty());
        assert_eq!(found(serde_json::json!(["B"])), ["A stands 0 times in the list"]);
        assert_eq!(found(serde_json::json!(["B", "A", "B", "C"])), ["B stands 2 times in the list", "C is no class"]);
    }
}
