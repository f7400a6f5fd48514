//! Adds labels to an image: from DICOM SEG, RTSTRUCT or NIfTI files of the archive, laid on the grid the image was assembled on.
//! Which file is taken, what could not be drawn and what overlapped is told; nothing is guessed.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use voxmill_schemas::artifact::{Kind, Manifest, Port, Scope};
use voxmill_schemas::tables::{ClassRow, InstanceRow, Row, SeriesRow};

use crate::dicom::Fill;
use crate::error::{Error, chain};
use crate::labels::{
    Align, AllNames, Asked, Choose, Classes, Drawn, FileVerdict, Given, LABELS, LabelIndex, Missing, Overlap, Source, Wanted, draw,
    numbered,
};
use crate::stage::{Cx, Facts, Finding, Info, Inputs, Progress, Quarantined, Rows, Stage, Wiring};
use crate::table;
use crate::volume::{About, Labels, Volume};

/// Adds labels from DICOM SEG, RTSTRUCT or NIfTI to an image.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Annotate {
    /// Class name → id (1 to 255). A class is the segment or ROI of that name; upper and lower case count only where names differ in nothing else.
    /// `all`: every segment and ROI under its own name, numbered by the sorted names of the whole archive; each is taken from the best kind of file that has it,
    /// files of one kind are merged, and NIfTI files, which name nothing, are not read.
    pub classes: Classes,
    /// Class name → other names or codes of segments and ROIs that belong to it as well. `SCT:71341001` is the code of a segment's type; `SCT:71341001+SCT:7771000`
    /// asks for all of several codes among its category, type, modifiers (such as a side) and region.
    #[serde(default)]
    pub aliases: BTreeMap<String, Vec<String>>,
    /// Which kind of file to take. `auto`: the first of binary SEG, labelmap SEG, fractional SEG, RTSTRUCT, NIfTI that has every class.
    #[serde(default)]
    pub source: Source,
    /// What to do when several files of the same kind label one image; where repeats are stacked, one for each of them are several, too.
    #[serde(default)]
    pub choose: Choose,
    /// What to do where two classes claim a voxel.
    #[serde(default)]
    pub overlap: Overlap,
    /// What to do when a case has some of the classes, but not all.
    #[serde(default)]
    pub missing: Missing,
    /// What to do when a case has no labels, or some that cannot be drawn.
    #[serde(default, skip_serializing_if = "Unlabelled::is_refuse")]
    pub unlabelled: Unlabelled,
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

/// What an image without labels is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unlabelled {
    /// Refuse the case.
    #[default]
    Refuse,
    /// The image goes on without labels; where labels are there and cannot be drawn, that is told and counted as quarantined. A label file that cannot be
    /// read, or lies in another frame of reference, does not keep the others from being drawn.
    Keep,
}

impl Unlabelled {
    fn is_refuse(&self) -> bool {
        *self == Unlabelled::Refuse
    }
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
        version: 3,
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

    fn classes(&self, _: &Wiring) -> Option<Vec<String>> {
        let named = self.classes.named();
        (!matches!(self.classes, Classes::Every(_))).then(|| named.keys().cloned().collect())
    }

    fn check(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        let classes = self.classes.named();
        if matches!(self.classes, Classes::Every(_)) {
            let used = [
                ("aliases", !self.aliases.is_empty()),
                ("nifti.values", !self.nifti.values.is_empty()),
                ("overlap.priority", matches!(self.overlap, Overlap::Priority(_))),
                ("source", self.source == Source::Nifti),
            ];
            for (field, _) in used.into_iter().filter(|(_, is_used)| *is_used) {
                out.push(Finding::error(field, "it needs classes that are named", "name the classes instead of `all`, or leave it out"));
            }
            return out;
        }
        if classes.is_empty() {
            out.push(Finding::error("classes", "no class is named", "give at least one, such as { Femur: 1 }"));
        }
        let mut by_id: BTreeMap<u8, &str> = BTreeMap::new();
        for (name, id) in classes {
            if *id == 0 {
                out.push(Finding::error(&format!("classes.{name}"), "id 0 is background", "number the classes from 1"));
            }
            if let Some(other) = by_id.insert(*id, name) {
                let help = format!("to join both, write {other}: {id} and aliases: {{ {other}: [{name}] }}");
                out.push(Finding::error(&format!("classes.{name}"), format!("{other} has id {id} as well"), help));
            }
        }
        for (field, names) in [("aliases", self.aliases.keys().collect::<Vec<_>>()), ("nifti.values", self.nifti.values.keys().collect())] {
            for name in names.into_iter().filter(|n| !classes.contains_key(*n)) {
                out.push(Finding::error(&format!("{field}.{name}"), format!("{name} is no class"), "use a name that stands under classes"));
            }
        }
        let mut by_value: BTreeMap<u8, &str> = BTreeMap::new();
        for (name, value) in classes.iter().map(|(name, id)| (name, self.nifti.values.get(name).copied().unwrap_or(*id))) {
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
            for (class, n) in classes.keys().map(|c| (c, count(c))).filter(|(_, n)| *n != 1) {
                out.push(Finding::error(
                    "overlap.priority",
                    format!("{class} stands {n} times in the list"),
                    "name every class once, the first wins",
                ));
            }
            for name in names.iter().filter(|n| !classes.contains_key(*n)) {
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
        let mut rows = index.rows_of(table, of, image);
        if matches!(self.classes, Classes::Every(_)) {
            let all = table::prepared(table, |rows| Ok(AllNames::of(&table::rows_of(rows)?)))?;
            let mine: Vec<SeriesRow> = table::rows_of(&rows)?;
            rows.0.insert(ClassRow::TABLE.into(), ClassRow::to_batch(&numbered(&all, mine.iter())));
        }
        Ok(Some(rows))
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let (image, index) = (inputs.one("image"), inputs.one("series"));
        let rows = index.rows.clone().unwrap_or_default();
        let series: Vec<SeriesRow> = table::rows_of(&rows)?;
        let mut volume = Volume::read(&image.dir)?;
        cx.bytes((volume.voxels.len() * 2) as u64);
        let all: Vec<InstanceRow> = table::rows_of(&rows)?;
        let (own, files): (Vec<InstanceRow>, Vec<InstanceRow>) = all.into_iter().partition(|i| i.series == volume.about.series);
        let (mine, others) = parted(own, &volume.about);
        let classes = self.classes_of(&rows)?;
        let mut verdicts: Vec<FileVerdict> = Vec::new();
        let given = Given { series: &series, files: &files, mine: &mine, others, volume: &volume };
        let step = |bytes| {
            cx.bytes(bytes);
            cx.check_cancelled()
        };
        let drawn = match draw(&self.asked(&classes), given, &step, &mut verdicts) {
            Err(e @ Error::Cancelled) => return Err(e),
            Err(e) if self.unlabelled == Unlabelled::Refuse || e.stops_the_run() => return Err(e),
            drawn => drawn,
        };
        // What was found out about the image is still true of it, and was told already.
        let mut facts = Facts { facts: image.manifest.facts.clone(), ..Facts::default() };
        ["quarantined", "report"].iter().for_each(|told| drop(facts.facts.remove(*told)));
        if !verdicts.is_empty() {
            facts = facts.with("label_verdicts", &verdicts);
        }
        let what = cx.case.map_or_else(|| "labels".into(), |c| format!("labels of {c}"));
        let Drawn { labels, told, kind, n_files, bad, shared } = match drawn {
            Ok(Some(drawn)) => drawn,
            Ok(None) => {
                volume.write(cx.draft, Some(&image.dir))?;
                return Ok(facts);
            }
            Err(e) => {
                volume.write(cx.draft, Some(&image.dir))?;
                let why = chain(&e);
                return Ok(Facts { quarantined: vec![Quarantined { what, why: why.clone() }], ..facts.with("labels_why", why) });
            }
        };
        volume.labels = Some(Labels { classes: by_id(&classes), voxels: labels });
        volume.write(cx.draft, Some(&image.dir))?;
        let case = cx.case.map_or("image", |c| c.0.as_str());
        for warning in &told.warnings {
            (cx.progress)(Progress::Warn(format!("{case}: {warning}")));
        }
        facts.facts.extend(volume.facts().facts);
        facts = facts.with("label_source", kind).with("label_files", n_files);
        if !bad.is_empty() {
            facts = facts.with("labels_why", bad.join("; "));
            facts.quarantined = bad.into_iter().map(|why| Quarantined { what: what.clone(), why }).collect();
        }
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

/// The instances of the image, in the order of its repeats, and those of the other volumes of its series. A label that was drawn on any repeat of a stack
/// lies on the one grid of them all.
fn parted(own: Vec<InstanceRow>, about: &About) -> (Vec<InstanceRow>, Vec<InstanceRow>) {
    let (mut mine, others): (Vec<_>, Vec<_>) = own.into_iter().partition(|i| about.has_volume(i.volume));
    if let Some(repeats) = &about.repeats {
        mine.sort_by_key(|i| repeats.volumes.iter().position(|v| *v == i.volume));
    }
    (mine, others)
}

fn by_id(classes: &BTreeMap<String, u8>) -> IndexMap<String, u8> {
    let mut classes: Vec<_> = classes.iter().map(|(n, id)| (n.clone(), *id)).collect();
    classes.sort_by_key(|(_, id)| *id);
    classes.into_iter().collect()
}

impl Annotate {
    /// The classes of a case: those of the file, or those that `rows_of` has numbered.
    fn classes_of(&self, rows: &Rows) -> Result<BTreeMap<String, u8>, Error> {
        let Classes::Every(_) = self.classes else { return Ok(self.classes.named().clone()) };
        let rows: Vec<ClassRow> = table::rows_of(rows)?;
        let id = |r: &ClassRow| {
            u8::try_from(r.id).map_err(|_| Error::Labels {
                what: LABELS.into(),
                why: format!("one image has {} labels, more than the 255 that fit: name the classes that matter", rows.len()),
            })
        };
        rows.iter().map(|r| Ok((r.name.clone(), id(r)?))).collect()
    }

    fn asked<'a>(&'a self, classes: &'a BTreeMap<String, u8>) -> Asked<'a> {
        Asked {
            wanted: Wanted { classes, aliases: &self.aliases, values: &self.nifti.values },
            is_named: matches!(self.classes, Classes::Named(_)),
            source: self.source,
            choose: self.choose,
            missing: self.missing,
            overlap: &self.overlap,
            threshold: self.fractional_threshold,
            fill: self.rtstruct_fill,
            align: self.nifti.align,
            goes_on: self.unlabelled == Unlabelled::Keep,
        }
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
    fn a_stack_of_repeats_has_the_instances_of_all_its_volumes() {
        use voxmill_schemas::geometry::{Geometry, Zyx};

        let row = |volume, instance: &str| InstanceRow { volume, instance: instance.into(), ..InstanceRow::default() };
        let own = || vec![row(0, "a"), row(1, "b"), row(2, "c"), row(3, "d")];
        let names = |(mine, others): (Vec<InstanceRow>, Vec<InstanceRow>)| {
            [mine, others].map(|rows| rows.into_iter().map(|i| i.instance).collect::<Vec<_>>().join(" "))
        };
        let one = About { volume: 2, ..About::of(Geometry::axis_aligned(Zyx::splat(1), Zyx::splat(1.0))) };
        assert_eq!(names(parted(own(), &one)), ["c", "a b d"]);
        let volumes = vec![2, 0, 3];
        let stack = About { repeats: Some(crate::volume::Repeats { volumes, ..Default::default() }), ..one };
        assert_eq!(names(parted(own(), &stack)), ["c a d", "b"]);
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
    fn all_classes_leave_no_room_for_names() {
        let fields = |with| Stage::check(&stage(with)).into_iter().map(|f| f.field).collect::<Vec<_>>();
        assert!(fields(serde_json::json!({ "classes": "all", "overlap": "first" })).is_empty());
        let with = serde_json::json!({ "classes": "all", "aliases": { "A": ["a"] }, "source": "nifti" });
        assert_eq!(fields(with), ["aliases", "source"]);
        assert!(serde_json::from_value::<Annotate>(serde_json::json!({ "classes": "every" })).is_err());
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
