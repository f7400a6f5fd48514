//! Adds labels to an image: from DICOM SEG, RTSTRUCT or NIfTI files of the archive, laid on the grid the image was assembled on.
//! Which file is taken, what could not be drawn and what overlapped is told; nothing is guessed.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use voxmill_schemas::artifact::{Kind, Manifest, Port, Scope};
use voxmill_schemas::tables::{InstanceRow, SeriesRow};

use crate::dicom::place::{Grid, is_reindexed, nearest_voxels};
use crate::dicom::{Fill, rtstruct, source};
use crate::error::Error;
use crate::labels::{Canvas, Found, Overlap, Target, filter, nifti_of, texts};
use crate::nifti::Image;
use crate::stage::{Cx, Facts, Finding, Info, Inputs, Progress, Rows, Stage};
use crate::table;
use crate::volume::{Labels, Volume};

/// Adds labels from DICOM SEG, RTSTRUCT or NIfTI to an image.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Annotate {
    /// Class name → id (1 to 255). A class is the segment or ROI of that name; upper and lower case count only where names differ in nothing else.
    pub classes: BTreeMap<String, u8>,
    /// Class name → other names (or codes, `SCT:71341001`) of segments and ROIs that belong to it as well.
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

/// Which of several files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Choose {
    /// Refuse the case and name the files.
    #[default]
    Error,
    /// The file with the latest content date and time.
    Newest,
    /// All of them together.
    Merge,
}

/// What a case without one of the classes is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// Refuse the case and list the names there are.
    #[default]
    Error,
    /// The class has no voxel in this case. A case without any of the classes is still refused.
    Background,
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

/// How a NIfTI label lies on an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Align {
    /// By the affine: reindexed where the axes are flipped or permuted, nearest voxel otherwise.
    #[default]
    Affine,
    /// Voxel for voxel.
    Index,
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
        if self.fractional_threshold.is_some_and(|t| !(t > 0.0 && t <= 1.0)) {
            out.push(Finding::error("fractional_threshold", "a share lies above 0 and up to 1", "0.5 is the usual choice"));
        }
        out
    }

    /// The label files that refer to the image's series, and the instances of the image itself (their positions).
    fn rows_of(&self, _port: &str, table: &Rows, of: &Manifest) -> Result<Option<Rows>, Error> {
        let image = fact(of, "series");
        let mut rows = table.clone();
        rows.0.retain(|name, _| matches!(name.as_str(), "series" | "instances"));
        let (Some(series), Some(instances)) = (rows.0.get("series").cloned(), rows.0.get("instances").cloned()) else {
            return Ok(Some(rows));
        };
        let all: Vec<SeriesRow> = table::rows_of(&Rows(BTreeMap::from([("series".into(), series.clone())])))?;
        let nifti = || nifti_of(&all, &instances, of, &image);
        let mut mine: BTreeSet<String> =
            all.iter().filter(|r| r.kind != "image" && r.references.contains(&image)).map(|r| r.series.clone()).collect();
        if all.iter().any(|r| r.kind == "nifti" && r.references.is_empty()) {
            mine.extend(nifti());
        }
        let series = filter(&series, &all.iter().map(|r| mine.contains(&r.series)).collect::<Vec<_>>());
        let instances = filter(&instances, &texts(&instances, "series").map(|s| s == image || mine.contains(s)).collect::<Vec<_>>());
        rows.0.extend([("series".to_string(), series), ("instances".to_string(), instances)]);
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
        let source = source::open(&mine)?;
        let grid = Grid::with_slices(&volume.about.source, &source.slices);
        let target = Target::new(&source.slices, others, source.frame_of_reference.clone());
        let found = self.find(&series, &files, &target, cx)?;
        let chosen = self.choose(&found)?;
        cx.check_cancelled()?;

        let mut canvas = Canvas::new(grid.geometry.size.count(), self.overlap);
        let is_missing = |class: &&String| chosen.iter().all(|f| self.matches(f, class).is_empty());
        let mut told = Told { missing: self.classes.keys().filter(is_missing).cloned().collect(), ..Told::default() };
        for file in &chosen {
            target.check_frame_of_reference(file)?;
            self.lay(file, &grid, &mut canvas, &mut told)?;
            cx.check_cancelled()?;
        }
        canvas.judge(&self.classes)?;
        if canvas.is_empty() {
            return Err(nothing_laid(&chosen, &told));
        }
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

/// What a case's labels were like.
#[derive(Default)]
struct Told {
    warnings: Vec<String>,
    /// Cause → contours that were not drawn.
    skipped: BTreeMap<String, usize>,
    missing: Vec<String>,
    is_resampled: bool,
}

impl Annotate {
    fn by_id(&self) -> IndexMap<String, u8> {
        let mut classes: Vec<_> = self.classes.iter().map(|(n, id)| (n.clone(), *id)).collect();
        classes.sort_by_key(|(_, id)| *id);
        classes.into_iter().collect()
    }

    /// Opens every label file of the wanted kind. NIfTI files are opened only where the others lack a class: an archive may hold images as NIfTI.
    fn find(&self, series: &[SeriesRow], instances: &[InstanceRow], target: &Target, cx: &Cx) -> Result<Vec<Found>, Error> {
        let mut found: Vec<Found> = Vec::new();
        let mut of_others = 0;
        let kinds: &[&str] = match self.source {
            Source::Auto => &["seg", "rtstruct", "nifti"],
            Source::Seg => &["seg"],
            Source::Rtstruct => &["rtstruct"],
            Source::Nifti => &["nifti"],
        };
        for kind in kinds {
            if *kind == "nifti" && (0..=3).any(|rank| self.has_all(found.iter().filter(|f| f.rank() == rank))) {
                break;
            }
            let is_file = |i: &&InstanceRow| series.iter().any(|r| r.kind == *kind && r.series == i.series && r.volume == i.volume);
            for i in instances.iter().filter(is_file) {
                cx.check_cancelled()?;
                cx.bytes(i.size_bytes.max(0) as u64);
                let Some(file) = Found::read(kind, i)? else { continue };
                if target.has(&file)? {
                    found.push(file);
                } else {
                    of_others += 1;
                }
            }
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
        Ok(found)
    }

    /// Whether these files together have every class.
    fn has_all<'a>(&self, files: impl Iterator<Item = &'a Found>) -> bool {
        let files: Vec<&Found> = files.collect();
        self.classes.keys().all(|class| files.iter().any(|f| !self.matches(f, class).is_empty()))
    }

    /// The files to draw: the best kind that has every class, or else the best that has any.
    fn choose<'a>(&self, found: &'a [Found]) -> Result<Vec<&'a Found>, Error> {
        let refuse = |why: String| Err(Error::Labels { what: LABELS.into(), why });
        let classes_of =
            |f: &Found| -> BTreeSet<&str> { self.classes.keys().map(String::as_str).filter(|c| !self.matches(f, c).is_empty()).collect() };
        let usable: Vec<(&Found, BTreeSet<&str>)> = found.iter().map(|f| (f, classes_of(f))).filter(|(_, c)| !c.is_empty()).collect();
        let names =
            || found.iter().flat_map(Found::labels).map(|l| l.0).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ");
        let wanted = || self.classes.keys().cloned().collect::<Vec<_>>().join(", ");
        let best = |rank: u8| usable.iter().filter(move |(f, _)| f.rank() == rank).collect::<Vec<_>>();
        let ranks: BTreeSet<u8> = usable.iter().map(|(f, _)| f.rank()).collect();
        let Some(first) = ranks.first() else {
            if names().is_empty() {
                let files = found.iter().map(Found::file).collect::<Vec<_>>().join(", ");
                return refuse(format!("no label is called {}: there is none in {files}", wanted()));
            }
            return refuse(format!("no label is called {}: there are {}", wanted(), names()));
        };
        let has_all = |rank: &&u8| self.has_all(best(**rank).into_iter().map(|(f, _)| *f));
        let mut group = best(*ranks.iter().find(has_all).unwrap_or(first));
        if group.len() > 1 {
            match self.choose {
                Choose::Merge => {}
                Choose::Newest => {
                    let newest = group.iter().map(|(f, _)| f.made()).max().unwrap_or("").to_string();
                    group.retain(|(f, _)| f.made() == newest);
                }
                Choose::Error => {}
            }
        }
        if group.len() > 1 && self.choose != Choose::Merge {
            let files = group.iter().map(|(f, _)| f.file()).collect::<Vec<_>>().join(", ");
            let kind = group[0].0.kind();
            return refuse(format!(
                "{} {kind} files label this image ({files}): set choose to newest or merge, or source to another kind",
                group.len()
            ));
        }
        let have: BTreeSet<&str> = group.iter().flat_map(|(_, c)| c.iter().copied()).collect();
        let lacking: Vec<&str> = self.classes.keys().map(String::as_str).filter(|c| !have.contains(c)).collect();
        if !lacking.is_empty() && self.missing == Missing::Error {
            let why = format!(
                "no label is called {}: there are {} (set missing: background if a case may lack a class)",
                lacking.join(", "),
                names()
            );
            return refuse(why);
        }
        Ok(group.into_iter().map(|(f, _)| *f).collect())
    }

    /// Indices of the labels of a file that belong to a class: exact names and codes, else names that differ in case or outer spaces only.
    fn matches(&self, file: &Found, class: &str) -> Vec<usize> {
        if let Found::Nifti { values, .. } = file {
            let value = self.classes.get(class).map(|id| self.nifti.values.get(class).copied().unwrap_or(*id));
            return value.filter(|v| values.contains(&u32::from(*v))).map(|_| 0).into_iter().collect();
        }
        let labels = file.labels();
        let mut out = BTreeSet::new();
        for name in std::iter::once(class).chain(self.aliases.get(class).into_iter().flatten().map(String::as_str)) {
            let pick = |is: &dyn Fn(&str) -> bool| -> Vec<usize> { (0..labels.len()).filter(|i| is(&labels[*i].0)).collect() };
            let mut hits = pick(&|l| l == name);
            if hits.is_empty() {
                hits = (0..labels.len()).filter(|i| labels[*i].1.as_deref() == Some(name)).collect();
            }
            if hits.is_empty() {
                hits = pick(&|l| l.trim().to_lowercase() == name.trim().to_lowercase());
            }
            out.extend(hits);
        }
        out.into_iter().collect()
    }

    fn lay(&self, file: &Found, grid: &Grid, canvas: &mut Canvas, told: &mut Told) -> Result<(), Error> {
        let of_class = || self.classes.iter().map(|(name, id)| (name, *id, self.matches(file, name)));
        match file {
            Found::Seg(s) => {
                let class_of: BTreeMap<u16, u8> = of_class()
                    .flat_map(|(_, id, hits)| hits.into_iter().map(move |i| (i, id)))
                    .map(|(i, id)| (s.segments[i].number, id))
                    .collect();
                let placed = s.lay(grid, &class_of, self.fractional_threshold, &mut |id, voxel| canvas.put(id, voxel))?;
                told.is_resampled |= !placed.is_exact;
                let mut warn = |n: usize, text: &str| (n > 0).then(|| told.warnings.push(format!("{n} frames of {} {text}", s.file)));
                warn(placed.frames_outside, "lie beside the image and were left out");
                warn(placed.frames_clipped, "stick out of the image");
                warn(placed.wrong_references, "name a source image on another slice than the one they lie on");
                if !placed.is_exact {
                    told.warnings.push(format!("{} lies on a grid of its own and was resampled to the nearest voxel", s.file));
                }
            }
            Found::RtStruct(r) => {
                for (name, id, hits) in of_class() {
                    for i in hits {
                        let drawn = rtstruct::draw(&r.rois[i], grid, self.rtstruct_fill, &mut |voxel| canvas.put(id, voxel));
                        let mut warn = |n: usize, text: &str| (n > 0).then(|| told.warnings.push(format!("{name}: {n} {text}")));
                        warn(drawn.skipped.values().sum(), "contours were not drawn");
                        warn(drawn.between_slices, "contours lie between slices and were drawn on the nearest");
                        warn(drawn.wrong_references, "contours name an image on another slice than the one they lie on");
                        for (why, n) in drawn.skipped {
                            *told.skipped.entry(why).or_default() += n;
                        }
                    }
                }
            }
            Found::Nifti { file, image, voxels, .. } => self.lay_nifti(file, image, voxels, grid, canvas, told)?,
        }
        Ok(())
    }

    fn lay_nifti(&self, file: &str, image: &Image, values: &[u32], grid: &Grid, canvas: &mut Canvas, told: &mut Told) -> Result<(), Error> {
        let wrong = |why: String| Err(Error::Nifti { file: file.into(), why });
        let class_of: BTreeMap<u32, u8> =
            self.classes.iter().map(|(n, id)| (self.nifti.values.get(n).copied().unwrap_or(*id) as u32, *id)).collect();
        let mut put = |from: usize, voxel: usize| {
            if let Some(id) = class_of.get(&values[from]) {
                canvas.put(*id, voxel);
            }
        };
        match self.nifti.align {
            Align::Index if image.geometry.size != grid.geometry.size => {
                return wrong(format!(
                    "found {} voxels, expected {} as the image: align them by affine",
                    image.geometry.size, grid.geometry.size
                ));
            }
            Align::Index => (0..values.len()).for_each(|v| put(v, v)),
            Align::Affine => {
                if !image.is_placed {
                    return wrong("it has neither sform nor qform: set nifti.align to index if its voxels are those of the image".into());
                }
                if !is_reindexed(&image.geometry, &grid.geometry) {
                    told.is_resampled = true;
                    told.warnings.push(format!("{file} lies on a grid of its own and was resampled to the nearest voxel"));
                }
                nearest_voxels(&image.geometry, &grid.geometry).enumerate().filter_map(|(v, f)| Some((f?, v))).for_each(|(f, v)| put(f, v));
            }
        }
        Ok(())
    }
}

/// What errors of the labels of a case begin with; the case itself is named by whoever tells them.
const LABELS: &str = "labels";

/// A case whose labels all lie elsewhere would train as one without any.
fn nothing_laid(chosen: &[&Found], told: &Told) -> Error {
    let files = chosen.iter().map(|f| f.file()).collect::<Vec<_>>().join(", ");
    let skipped = told.skipped.iter().map(|(why, n)| format!("{n} contours: {why}"));
    let mut why: Vec<String> = told.warnings.iter().cloned().chain(skipped).collect();
    if why.is_empty() {
        why.push("they are empty or lie beside the image".into());
    }
    Error::Labels { what: files, why: format!("none of its labels gives a voxel of the image a class ({})", why.join("; ")) }
}

fn fact(m: &Manifest, name: &str) -> String {
    m.facts.get(name).and_then(Value::as_str).unwrap_or_default().to_string()
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
    fn a_nifti_without_a_value_lacks_its_class() {
        let stage = stage(serde_json::json!({ "classes": { "A": 1, "B": 2 }, "nifti": { "values": { "B": 7 } } }));
        let geometry = voxmill_schemas::geometry::Geometry::axis_aligned(
            voxmill_schemas::geometry::Zyx::splat(1),
            voxmill_schemas::geometry::Zyx::splat(1.0),
        );
        let image = Image { geometry, channels: 1, voxels: crate::volume::Voxels::U8(vec![7]), is_placed: true };
        let found = Found::Nifti { file: "f".into(), image: Box::new(image), voxels: vec![7], values: BTreeSet::from([7]) };
        assert_eq!((stage.matches(&found, "A"), stage.matches(&found, "B")), (vec![], vec![0]));
        let e = stage.choose(&[found]).err().unwrap().to_string();
        assert!(e.starts_with("labels: no label is called A: there are value 7"), "{e}");
    }

    #[test]
    fn a_case_without_a_labelled_voxel_is_refused_with_the_reason() {
        let found = Found::RtStruct(rtstruct::RtStruct { file: "plan.dcm".into(), rois: Vec::new(), made: String::new() });
        let told = Told { skipped: BTreeMap::from([("outside the image".into(), 3)]), ..Told::default() };
        let e = nothing_laid(&[&found], &told).to_string();
        assert_eq!(e, "plan.dcm: none of its labels gives a voxel of the image a class (3 contours: outside the image)");
    }
}
