//! Adds labels to an image: from DICOM SEG, RTSTRUCT or NIfTI files of the archive, laid on the grid the image was assembled on.
//! Which file is taken, what could not be drawn and what overlapped is told; nothing is guessed.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use voxmill_schemas::artifact::{Kind, Manifest, Port, Scope};
use voxmill_schemas::tables::{ClassRow, InstanceRow, Row, SeriesRow};

use crate::dicom::place::{Grid, nearest_voxels};
use crate::dicom::{Fill, source};
use crate::error::{Error, chain};
use crate::labels::{
    Align, Canvas, Choose, Classes, Found, LABELS, LabelIndex, Laying, Missing, Overlap, Target, Told, Wanted, nothing_laid, numbered,
};
use crate::stage::{Cx, Facts, Finding, Info, Inputs, Progress, Quarantined, Rows, Stage};
use crate::table;
use crate::volume::{Labels, Volume};

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
    /// What to do when several files of the same kind label one image.
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

/// What an image without labels is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unlabelled {
    /// Refuse the case.
    #[default]
    Refuse,
    /// The image goes on without labels; where labels are there and cannot be drawn, that is told and counted as quarantined.
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
        version: 2,
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
            let all = table::prepared(table, table::rows_of::<SeriesRow>)?;
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
        let (mine, others): (Vec<InstanceRow>, Vec<InstanceRow>) = own.into_iter().partition(|i| i.volume == volume.about.volume);
        let classes = self.classes_of(&rows)?;
        let drawn = match self.draw(&classes, &series, &files, &mine, others, &volume, cx) {
            Err(e @ Error::Cancelled) => return Err(e),
            Err(e) if self.unlabelled == Unlabelled::Refuse || e.stops_the_run() => return Err(e),
            drawn => drawn,
        };
        // What was found out about the image is still true of it, and was told already.
        let mut facts = Facts { facts: image.manifest.facts.clone(), ..Facts::default() };
        ["quarantined", "report"].iter().for_each(|told| drop(facts.facts.remove(*told)));
        let Drawn { labels, told, kind, from, aside, shared } = match drawn {
            Ok(Some(drawn)) => drawn,
            Ok(None) => {
                volume.write(cx.draft, Some(&image.dir))?;
                return Ok(facts);
            }
            Err(e) => {
                volume.write(cx.draft, Some(&image.dir))?;
                let why = chain(&e);
                let what = cx.case.map_or_else(|| "labels".into(), |c| format!("labels of {c}"));
                return Ok(Facts { quarantined: vec![Quarantined { what, why: why.clone() }], ..facts.with("labels_why", why) });
            }
        };
        volume.labels = Some(Labels { classes: by_id(&classes), voxels: labels });
        volume.write(cx.draft, Some(&image.dir))?;
        let what = cx.case.map_or("image", |c| c.0.as_str());
        for warning in &told.warnings {
            (cx.progress)(Progress::Warn(format!("{what}: {warning}")));
        }
        facts.facts.extend(volume.facts().facts);
        facts = facts.with("label_source", kind).with("label_files", from.len()).with("label_series", series_of(&from, &files));
        if !aside.is_empty() {
            facts = facts.with("label_series_aside", series_of(&aside, &files));
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

/// Classes, and the files that they are taken from.
type Pass<'a> = (BTreeMap<String, u8>, Vec<&'a Found>);

/// What was laid on the grid of an image.
struct Drawn {
    /// `[z, y, x]` of the image.
    labels: Vec<u8>,
    told: Told,
    kind: &'static str,
    /// The files that it was drawn from, and those that a better kind of file made needless.
    from: BTreeSet<String>,
    aside: BTreeSet<String>,
    shared: BTreeMap<String, usize>,
}

/// The series of these files, as the index calls them.
fn series_of<'a>(files: &BTreeSet<String>, rows: &'a [InstanceRow]) -> BTreeSet<&'a str> {
    rows.iter().filter(|i| files.contains(&i.file)).map(|i| i.series.as_str()).collect()
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

    /// Finds the label files of an image and lays them on its grid. `None`: there are none, and that is no fault (`unlabelled: keep`).
    #[allow(clippy::too_many_arguments)]
    fn draw(
        &self,
        classes: &BTreeMap<String, u8>,
        series: &[SeriesRow],
        files: &[InstanceRow],
        mine: &[InstanceRow],
        others: Vec<InstanceRow>,
        volume: &Volume,
        cx: &Cx,
    ) -> Result<Option<Drawn>, Error> {
        let is_named = matches!(self.classes, Classes::Named(_));
        let is_kept = self.unlabelled == Unlabelled::Keep;
        if is_kept && !series.iter().any(|s| s.kind != "image" && (is_named || s.kind != "nifti")) {
            return Ok(None);
        }
        let source = source::open(mine)?;
        let about = &volume.about;
        let grid = Grid::standing(&about.source, &about.z_positions_mm).named(&source.slices);
        let target = Target::new(&source.slices, others, source.frame_of_reference.clone());
        let wanted = Wanted { classes, aliases: &self.aliases, values: &self.nifti.values };
        let (found, by_frame, of_others) = self.find(series, files, &target, &about.series, &wanted, cx)?;
        if found.is_empty() {
            return if is_kept { Ok(None) } else { Err(self.nothing_found(of_others)) };
        }
        let passes = if is_named {
            vec![(classes.clone(), wanted.choose(&found, self.choose, self.missing)?)]
        } else {
            self.of_every(classes, &found)?
        };
        cx.check_cancelled()?;
        let chosen: Vec<&Found> = passes.iter().flat_map(|(_, files)| files.iter().copied()).collect();
        let mut canvas = Canvas::new(grid.geometry.size.count(), &self.overlap, classes);
        let mut told = Told { missing: wanted.missing(&chosen), ..Told::default() };
        for (classes, files) in &passes {
            let wanted = Wanted { classes, ..wanted };
            let laying = Laying { wanted, threshold: self.fractional_threshold, fill: self.rtstruct_fill, align: self.nifti.align };
            for file in files {
                if by_frame.contains(file.file()) {
                    let text = "names no series of the archive and was taken because it lies in the frame of reference of this one";
                    told.warnings.push(format!("{} {text}", file.file()));
                }
                target.check_frame_of_reference(file)?;
                laying.lay(file, &grid, &mut canvas, &mut told)?;
                cx.check_cancelled()?;
            }
        }
        canvas.judge(classes)?;
        if canvas.is_empty() {
            return Err(nothing_laid(&chosen, &told));
        }
        let shared = canvas.shared(classes);
        let mut labels = canvas.labels;
        if !volume.geometry.same_grid(&grid.geometry, 1e-3) {
            labels = nearest_voxels(&grid.geometry, &volume.geometry).map(|v| v.map_or(0, |v| labels[v])).collect();
            told.is_resampled = true;
        }
        let from: BTreeSet<String> = chosen.iter().map(|f| f.file().to_string()).collect();
        let aside = found.iter().map(|f| f.file().to_string()).filter(|f| !from.contains(f)).collect();
        Ok(Some(Drawn { labels, told, kind: chosen[0].kind(), from, aside, shared }))
    }

    /// Refuses two files of one kind that draw one label, unless `choose` says what to do with them: they may be two opinions.
    fn check_one_each(&self, wanted: &Wanted, files: &[&Found]) -> Result<(), Error> {
        if self.choose != Choose::Error {
            return Ok(());
        }
        for class in wanted.classes.keys() {
            let having: Vec<&str> = files.iter().filter(|f| !wanted.matches(f, class).is_empty()).map(|f| f.file()).collect();
            if having.len() > 1 {
                let (n, kind, files) = (having.len(), files[0].kind(), having.join(", "));
                let why = format!("{n} {kind} files draw {class} on this image ({files}): set choose to newest or merge");
                return Err(Error::Labels { what: LABELS.into(), why });
            }
        }
        Ok(())
    }

    /// Each label from the best kind of file that has it: the files that have most kinds first, then what they lack from the next.
    fn of_every<'a>(&self, classes: &BTreeMap<String, u8>, found: &'a [Found]) -> Result<Vec<Pass<'a>>, Error> {
        let choose = if self.choose == Choose::Newest { Choose::Newest } else { Choose::Merge };
        let mut left = classes.clone();
        let mut passes = Vec::new();
        while !left.is_empty() {
            let wanted = Wanted { classes: &left, aliases: &self.aliases, values: &self.nifti.values };
            let files = match wanted.choose(found, choose, Missing::Background) {
                Ok(files) => files,
                Err(e) if passes.is_empty() => return Err(e),
                // What no file has under its name is told as missing.
                Err(_) => break,
            };
            self.check_one_each(&wanted, &files)?;
            let missing = wanted.missing(&files);
            let (later, now): (BTreeMap<_, _>, BTreeMap<_, _>) = left.into_iter().partition(|(name, _)| missing.contains(name));
            left = later;
            passes.push((now, files));
        }
        if passes.is_empty() {
            let files = found.iter().map(Found::file).collect::<Vec<_>>().join(", ");
            return Err(Error::Labels { what: LABELS.into(), why: format!("there is no label with a name in {files}") });
        }
        Ok(passes)
    }

    fn nothing_found(&self, of_others: usize) -> Error {
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
        Error::Labels { what: LABELS.into(), why }
    }

    /// Opens every label file of the wanted kind. NIfTI files are opened only where the others lack a class: an archive may hold images as NIfTI.
    /// Those that do not name the image, but lie in its frame of reference, are told apart; they stand back where others name it.
    fn find(
        &self,
        series: &[SeriesRow],
        instances: &[InstanceRow],
        target: &Target,
        image: &str,
        wanted: &Wanted,
        cx: &Cx,
    ) -> Result<(Vec<Found>, BTreeSet<String>, usize), Error> {
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
            let is_named = matches!(self.classes, Classes::Named(_));
            if *kind == "nifti" && (!is_named || (0..=3).any(|rank| wanted.has_all(found.iter().filter(|f| f.rank() == rank)))) {
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
        found.sort_by(|a, b| (a.rank(), a.file()).cmp(&(b.rank(), b.file())));
        Ok((found, by_frame, of_others))
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
