//! Adds labels to an image: from DICOM SEG, RTSTRUCT or NIfTI files of the archive, laid on the grid the image was assembled on.
//! Which file is taken, what could not be drawn and what overlapped is told; nothing is guessed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use arrow::array::{Array, BooleanArray, RecordBatch, StringArray};
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use voxmill_schemas::artifact::{Kind, Manifest, Port, Scope};
use voxmill_schemas::tables::{InstanceRow, SeriesRow};

use crate::dicom::place::{Grid, is_reindexed, nearest_voxels};
use crate::dicom::{Fill, rtstruct, seg, source};
use crate::error::Error;
use crate::stage::{Cx, Facts, Finding, Info, Inputs, Progress, Rows, Stage};
use crate::volume::{Labels, Volume};
use crate::{nifti, table};

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

/// Which class a voxel with two claims gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Overlap {
    /// Refuse the case and say where.
    #[default]
    Error,
    /// The class with the lower id.
    First,
    /// The class with the higher id.
    Last,
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

/// A file that may label the case.
enum Found {
    Seg(Box<seg::Seg>),
    RtStruct(rtstruct::RtStruct),
    Nifti { file: String, path: PathBuf },
}

impl Found {
    fn file(&self) -> &str {
        match self {
            Found::Seg(s) => &s.file,
            Found::RtStruct(r) => &r.file,
            Found::Nifti { file, .. } => file,
        }
    }
    /// The lower, the better.
    fn rank(&self) -> u8 {
        match self {
            Found::Seg(s) => match s.kind {
                seg::Kind::Binary => 0,
                seg::Kind::Labelmap { .. } => 1,
                seg::Kind::Fractional { .. } => 2,
            },
            Found::RtStruct(_) => 3,
            Found::Nifti { .. } => 4,
        }
    }
    fn kind(&self) -> &'static str {
        ["binary SEG", "labelmap SEG", "fractional SEG", "RTSTRUCT", "NIfTI"][self.rank() as usize]
    }
    fn made(&self) -> &str {
        match self {
            Found::Seg(s) => &s.made,
            Found::RtStruct(r) => &r.made,
            Found::Nifti { .. } => "",
        }
    }
    /// Name and, where it has one, code of every label.
    fn labels(&self) -> Vec<(String, Option<String>)> {
        match self {
            Found::Seg(s) => {
                let code = |x: &seg::Segment| x.kind.as_ref().map(|c| format!("{}:{}", c.scheme, c.value));
                s.segments.iter().map(|x| (x.label.clone(), code(x))).collect()
            }
            Found::RtStruct(r) => r.rois.iter().map(|x| (x.name.clone(), None)).collect(),
            Found::Nifti { .. } => Vec::new(),
        }
    }
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
        let what = cx.case.map_or("image".to_string(), |c| c.0.clone());
        let series: Vec<SeriesRow> = table::rows_of(&rows)?;
        let instances: Vec<InstanceRow> = table::rows_of(&rows)?;
        let found = self.find(&series, &instances, &what, cx)?;
        let chosen = self.choose(&found, &what)?;

        let mut volume = Volume::read(&image.dir)?;
        cx.bytes((volume.voxels.len() * 2) as u64);
        let series_name = volume.about.series.clone();
        let mine: Vec<InstanceRow> = instances.into_iter().filter(|i| i.series == series_name).collect();
        let grid = Grid::with_slices(&volume.about.source, &source::slices(&mine)?);
        cx.check_cancelled()?;

        let mut canvas = Canvas { labels: vec![0; grid.geometry.size.count()], overlap: self.overlap, clashes: BTreeMap::new() };
        let is_missing = |class: &&String| chosen.iter().all(|f| self.matches(f, class).is_empty());
        let mut told = Told { missing: self.classes.keys().filter(is_missing).cloned().collect(), ..Told::default() };
        for file in &chosen {
            self.lay(file, &grid, &mut canvas, &mut told)?;
            cx.check_cancelled()?;
        }
        canvas.judge(&self.classes, &what)?;
        let mut labels = canvas.labels;
        if !volume.geometry.same_grid(&grid.geometry, 1e-3) {
            labels = nearest_voxels(&grid.geometry, &volume.geometry).map(|v| v.map_or(0, |v| labels[v])).collect();
            told.is_resampled = true;
        }
        volume.labels = Some(Labels { classes: self.by_id(), voxels: labels });
        volume.write(cx.draft, Some(&image.dir))?;
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

    /// Opens every label file of the wanted kind.
    fn find(&self, series: &[SeriesRow], instances: &[InstanceRow], what: &str, cx: &Cx) -> Result<Vec<Found>, Error> {
        let mut found = Vec::new();
        for row in series {
            let is_wanted = match self.source {
                Source::Auto => matches!(row.kind.as_str(), "seg" | "rtstruct" | "nifti"),
                Source::Seg => row.kind == "seg",
                Source::Rtstruct => row.kind == "rtstruct",
                Source::Nifti => row.kind == "nifti",
            };
            for i in instances.iter().filter(|i| is_wanted && i.series == row.series && i.volume == row.volume) {
                cx.check_cancelled()?;
                let path = Path::new(&i.path);
                cx.bytes(i.size_bytes.max(0) as u64);
                found.push(match row.kind.as_str() {
                    "seg" => Found::Seg(Box::new(seg::read(path, &i.file)?)),
                    "rtstruct" => Found::RtStruct(rtstruct::read(path, &i.file)?),
                    _ => {
                        Found::Nifti { file: path.file_name().unwrap_or_default().to_string_lossy().into_owned(), path: path.to_path_buf() }
                    }
                });
            }
        }
        if found.is_empty() {
            let kind = match self.source {
                Source::Auto => "SEG, RTSTRUCT or NIfTI",
                Source::Seg => "SEG",
                Source::Rtstruct => "RTSTRUCT",
                Source::Nifti => "NIfTI",
            };
            return Err(Error::Labels { what: what.into(), why: format!("no {kind} in the archive refers to this image series") });
        }
        found.sort_by(|a, b| (a.rank(), a.file()).cmp(&(b.rank(), b.file())));
        Ok(found)
    }

    /// The files to draw: the best kind that has every class, or else the best that has any.
    fn choose<'a>(&self, found: &'a [Found], what: &str) -> Result<Vec<&'a Found>, Error> {
        let refuse = |why: String| Err(Error::Labels { what: what.into(), why });
        let classes_of =
            |f: &Found| -> BTreeSet<&str> { self.classes.keys().map(String::as_str).filter(|c| !self.matches(f, c).is_empty()).collect() };
        let usable: Vec<(&Found, BTreeSet<&str>)> = found.iter().map(|f| (f, classes_of(f))).filter(|(_, c)| !c.is_empty()).collect();
        let names =
            || found.iter().flat_map(Found::labels).map(|l| l.0).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ");
        let wanted = || self.classes.keys().cloned().collect::<Vec<_>>().join(", ");
        let best = |rank: u8| usable.iter().filter(move |(f, _)| f.rank() == rank).collect::<Vec<_>>();
        let ranks: BTreeSet<u8> = usable.iter().map(|(f, _)| f.rank()).collect();
        let Some(first) = ranks.first() else {
            return refuse(format!("no label is called {}: there are {}", wanted(), names()));
        };
        let has_all = |rank: &&u8| best(**rank).iter().flat_map(|(_, c)| c).collect::<BTreeSet<_>>().len() == self.classes.len();
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
        if matches!(file, Found::Nifti { .. }) {
            return vec![0];
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
            Found::Nifti { file, path } => self.lay_nifti(file, path, grid, canvas, told)?,
        }
        Ok(())
    }

    fn lay_nifti(&self, file: &str, path: &Path, grid: &Grid, canvas: &mut Canvas, told: &mut Told) -> Result<(), Error> {
        let wrong = |why: String| Err(Error::Nifti { file: file.into(), why });
        let image = nifti::read(path)?;
        if image.channels != 1 {
            return wrong(format!("it holds {} volumes, expected one with a value for each class", image.channels));
        }
        let values = image.voxels.to_f32();
        if let Some(v) = values.iter().find(|v| v.fract() != 0.0 || !v.is_finite() || **v < 0.0) {
            return wrong(format!("found the value {v}, expected whole numbers from 0 as labels have them"));
        }
        let class_of: BTreeMap<u32, u8> =
            self.classes.iter().map(|(n, id)| (self.nifti.values.get(n).copied().unwrap_or(*id) as u32, *id)).collect();
        let mut put = |from: usize, voxel: usize| {
            if let Some(id) = class_of.get(&(values[from] as u32)) {
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

/// The labels in hand, `[z, y, x]`.
struct Canvas {
    labels: Vec<u8>,
    overlap: Overlap,
    /// Pair of ids (lower first) → voxels that both claim.
    clashes: BTreeMap<(u8, u8), usize>,
}

impl Canvas {
    fn put(&mut self, id: u8, voxel: usize) {
        let was = self.labels[voxel];
        if was != 0 && was != id {
            *self.clashes.entry((was.min(id), was.max(id))).or_default() += 1;
        }
        self.labels[voxel] = match self.overlap {
            _ if was == 0 => id,
            Overlap::Error | Overlap::First => was.min(id),
            Overlap::Last => was.max(id),
        };
    }

    fn judge(&self, classes: &BTreeMap<String, u8>, what: &str) -> Result<(), Error> {
        let name = |id: u8| classes.iter().find(|(_, i)| **i == id).map_or("?", |(n, _)| n.as_str());
        match (self.overlap, self.clashes.iter().next()) {
            (Overlap::Error, Some(((a, b), n))) => {
                let why =
                    format!("{} and {} share {n} voxels: set overlap to first or last to say which one gets them", name(*a), name(*b));
                Err(Error::Labels { what: what.into(), why })
            }
            _ => Ok(()),
        }
    }
}

fn fact(m: &Manifest, name: &str) -> String {
    m.facts.get(name).and_then(Value::as_str).unwrap_or_default().to_string()
}

fn texts<'a>(batch: &'a RecordBatch, column: &str) -> Box<dyn Iterator<Item = &'a str> + 'a> {
    match batch.column_by_name(column).and_then(|c| c.as_any().downcast_ref::<StringArray>()) {
        Some(c) => Box::new((0..c.len()).map(move |i| c.value(i))),
        None => Box::new(std::iter::repeat_n("", batch.num_rows())),
    }
}

fn filter(batch: &RecordBatch, keep: &[bool]) -> RecordBatch {
    arrow::compute::filter_record_batch(batch, &BooleanArray::from(keep.to_vec())).expect("one bool a row")
}

/// NIfTI files carry no reference. One belongs to a series when it, or a folder above it, is called like the case, patient or series; or
/// when it stands in or above the folder of the series and no other image series lies there.
fn nifti_of(all: &[SeriesRow], instances: &RecordBatch, of: &Manifest, image: &str) -> Vec<String> {
    let names: Vec<String> = [of.case.as_ref().map(|c| c.0.clone()), Some(fact(of, "patient")), Some(image.to_string())]
        .into_iter()
        .flatten()
        .filter(|n| !n.is_empty())
        .collect();
    let mut files: BTreeMap<&str, &Path> = BTreeMap::new();
    let mut folders: Vec<(&str, &Path)> = Vec::new();
    for (series, file) in texts(instances, "series").zip(texts(instances, "file")) {
        files.entry(series).or_insert(Path::new(file));
        if let Some(folder) = Path::new(file).parent() {
            folders.push((series, folder));
        }
    }
    folders.dedup();
    let is_image = |s: &str| all.iter().any(|r| r.series == s && r.kind == "image");
    let belongs = |row: &SeriesRow| {
        let Some(path) = files.get(row.series.as_str()) else { return false };
        // The index gives a NIfTI file the patient of its name, so that names meet under pseudonyms as well.
        if names.contains(&row.patient) {
            return true;
        }
        let stem = |p: &std::ffi::OsStr| {
            let name = p.to_string_lossy().into_owned();
            name.trim_end_matches(".gz").trim_end_matches(".nii").to_string()
        };
        if path.iter().any(|part| names.contains(&stem(part))) {
            return true;
        }
        let Some(folder) = path.parent() else { return false };
        let below: BTreeSet<&str> = folders.iter().filter(|(s, f)| f.starts_with(folder) && is_image(s)).map(|(s, _)| *s).collect();
        below.len() == 1 && below.contains(image)
    };
    all.iter().filter(|r| r.kind == "nifti" && r.references.is_empty() && belongs(r)).map(|r| r.series.clone()).collect()
}
