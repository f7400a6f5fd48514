//! Which of the files that may label an image are drawn on it, by which rule, and what became of each of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::tables::{InstanceRow, SeriesRow};

use super::{Align, Canvas, Choose, Found, LABELS, Laying, Missing, Overlap, Target, Told, Wanted, nothing_laid};
use crate::dicom::place::{Grid, nearest_voxels};
use crate::dicom::{Fill, source};
use crate::error::{Error, chain};
use crate::volume::Volume;

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

/// What is asked of the labels of an image.
pub struct Asked<'a> {
    pub wanted: Wanted<'a>,
    /// Whether the classes were named; else they are all the labels there are.
    pub is_named: bool,
    pub source: Source,
    pub choose: Choose,
    pub missing: Missing,
    pub overlap: &'a Overlap,
    /// Share (0 to 1) from which on a voxel of a fractional SEG belongs to its segment.
    pub threshold: Option<f64>,
    pub fill: Fill,
    pub align: Align,
    /// An image without labels is no fault, and a file that cannot be drawn keeps no other from it.
    pub goes_on: bool,
}

/// An image and what may label it.
pub struct Given<'a> {
    /// Rows of the label files.
    pub series: &'a [SeriesRow],
    pub files: &'a [InstanceRow],
    /// Instances of the image, and of the other volumes of its series.
    pub mine: &'a [InstanceRow],
    pub others: Vec<InstanceRow>,
    pub volume: &'a Volume,
}

/// What was laid on the grid of an image.
pub struct Drawn {
    /// `[z, y, x]` of the image.
    pub labels: Vec<u8>,
    pub told: Told,
    pub kind: &'static str,
    pub n_files: usize,
    /// Why files that were to be drawn as well are not.
    pub bad: Vec<String>,
    /// Two classes → voxels that both claim.
    pub shared: BTreeMap<String, usize>,
}

/// What became of a label file on one image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileVerdict {
    /// As the index calls it; a series may hold several label files, each a volume.
    pub series: String,
    pub volume: i64,
    pub outcome: Outcome,
    /// Why it was refused; `None`: not because of anything in itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Another file has the same labels in a better form, or newer.
    Aside,
    Refused,
    Drawn,
}

/// Classes, and the files that they are taken from.
type Pass<'a> = (BTreeMap<String, u8>, Vec<&'a Found>);

/// Told of bytes read; an error stops the work.
pub type Step<'a> = &'a dyn Fn(u64) -> Result<(), Error>;

/// Finds the label files of an image and lays them on its grid. `None`: there are none, and that is no fault.
/// - `verdicts`: filled with one for each file that was looked at, whatever the end
pub fn draw(asked: &Asked, given: Given, step: Step, verdicts: &mut Vec<FileVerdict>) -> Result<Option<Drawn>, Error> {
    let key: HashMap<&str, (&str, i64)> = given.files.iter().map(|i| (i.file.as_str(), (i.series.as_str(), i.volume))).collect();
    let mut outcomes: BTreeMap<String, (Outcome, Option<String>)> = BTreeMap::new();
    let drawn = drawn(asked, given, step, &mut outcomes);
    let verdict = |(file, (outcome, why)): (String, (Outcome, Option<String>))| {
        let (series, volume) = *key.get(file.as_str())?;
        Some(FileVerdict { series: series.into(), volume, outcome, why })
    };
    verdicts.extend(outcomes.into_iter().filter_map(verdict));
    verdicts.sort_by(|a, b| (&a.series, a.volume).cmp(&(&b.series, b.volume)));
    drawn
}

fn drawn(
    asked: &Asked,
    given: Given,
    step: Step,
    outcomes: &mut BTreeMap<String, (Outcome, Option<String>)>,
) -> Result<Option<Drawn>, Error> {
    let Given { series, files, mine, others, volume } = given;
    if asked.goes_on && !series.iter().any(|s| s.kind != "image" && (asked.is_named || s.kind != "nifti")) {
        return Ok(None);
    }
    let source = source::open(mine)?;
    let about = &volume.about;
    let grid = Grid::standing(&about.source, &about.z_positions_mm).named(&source.slices);
    let target = Target::new(&source.slices, mine, others, source.frame_of_reference.clone());
    let looking = Looking { asked, series, files, target: &target, grid: &grid, image: &about.series, step };
    let Looked { found, by_frame, of_others, mut bad } = looking.find()?;
    outcomes.extend(found.iter().map(|f| (f.file().to_string(), (Outcome::Refused, None))));
    outcomes.extend(bad.iter().map(|(file, e)| (file.clone(), (Outcome::Refused, Some(chain(e))))));
    if found.is_empty() {
        return match bad.is_empty() {
            false => Err(bad.remove(0).1),
            true if asked.goes_on => Ok(None),
            true => Err(asked.nothing_found(of_others)),
        };
    }
    let classes = asked.wanted.classes;
    let passes = if asked.is_named {
        vec![(classes.clone(), asked.wanted.choose(&found, asked.choose, asked.missing)?)]
    } else {
        asked.of_every(&found)?
    };
    step(0)?;
    let chosen: Vec<&Found> = passes.iter().flat_map(|(_, files)| files.iter().copied()).collect();
    let mut canvas = Canvas::new(grid.geometry.size.count(), asked.overlap, classes);
    let mut told = Told { missing: asked.wanted.missing(&chosen), ..Told::default() };
    for (classes, files) in &passes {
        let laying =
            Laying { wanted: Wanted { classes, ..asked.wanted }, threshold: asked.threshold, fill: asked.fill, align: asked.align };
        for file in files {
            if by_frame.contains(file.file()) {
                let text = "names no series of the archive and was taken because it lies in the frame of reference of this one";
                told.warnings.push(format!("{} {text}", file.file()));
            }
            let laid = target.check(file, &grid).and_then(|()| laying.lay(file, &grid, &mut canvas, &mut told));
            if let Err(e) = laid {
                outcomes.insert(file.file().to_string(), (Outcome::Refused, Some(chain(&e))));
                return Err(e);
            }
            step(0)?;
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
    let from: BTreeSet<&str> = chosen.iter().map(|f| f.file()).collect();
    for f in &found {
        let outcome = if from.contains(f.file()) { Outcome::Drawn } else { Outcome::Aside };
        outcomes.insert(f.file().to_string(), (outcome, None));
    }
    let bad = bad.iter().map(|(_, e)| chain(e)).collect();
    Ok(Some(Drawn { labels, told, kind: chosen[0].kind(), n_files: from.len(), bad, shared }))
}

impl Asked<'_> {
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
    fn of_every<'a>(&self, found: &'a [Found]) -> Result<Vec<Pass<'a>>, Error> {
        let choose = if self.choose == Choose::Newest { Choose::Newest } else { Choose::Merge };
        let mut left = self.wanted.classes.clone();
        let mut passes = Vec::new();
        while !left.is_empty() {
            let wanted = Wanted { classes: &left, ..self.wanted };
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
}

struct Looking<'a> {
    asked: &'a Asked<'a>,
    series: &'a [SeriesRow],
    files: &'a [InstanceRow],
    target: &'a Target,
    grid: &'a Grid,
    /// The series of the image.
    image: &'a str,
    step: Step<'a>,
}

#[derive(Default)]
struct Looked {
    found: Vec<Found>,
    /// Files that do not name the image, but lie in its frame of reference; they stand back where others name it.
    by_frame: BTreeSet<String>,
    /// Files that label another volume of the series.
    of_others: usize,
    /// Files that cannot be drawn, where the others go on.
    bad: Vec<(String, Error)>,
}

impl Looking<'_> {
    /// Opens every label file of the wanted kind. NIfTI files are opened only where the others lack a class: an archive may hold images as NIfTI.
    fn find(&self) -> Result<Looked, Error> {
        let asked = self.asked;
        let mut out = Looked::default();
        let kinds: &[&str] = match asked.source {
            Source::Auto => &["seg", "rtstruct", "nifti"],
            Source::Seg => &["seg"],
            Source::Rtstruct => &["rtstruct"],
            Source::Nifti => &["nifti"],
        };
        let rows: HashMap<(&str, i64), &SeriesRow> = self.series.iter().map(|r| ((r.series.as_str(), r.volume), r)).collect();
        for kind in kinds {
            let has_all = |rank| asked.wanted.has_all(out.found.iter().filter(|f| f.rank() == rank));
            if *kind == "nifti" && (!asked.is_named || (0..=3).any(has_all)) {
                break;
            }
            let row_of = |i: &InstanceRow| rows.get(&(i.series.as_str(), i.volume)).filter(|r| r.kind == *kind).copied();
            for (i, row) in self.files.iter().filter_map(|i| Some((i, row_of(i)?))) {
                (self.step)(i.size_bytes.max(0) as u64)?;
                match self.read(kind, i, row) {
                    Ok(Some(file)) => {
                        if *kind != "nifti" && !row.references.iter().any(|r| r == self.image) {
                            out.by_frame.insert(i.file.clone());
                        }
                        out.found.push(file);
                    }
                    Ok(None) => out.of_others += 1,
                    Err(e) if !asked.goes_on || matches!(e, Error::Cancelled) || e.stops_the_run() => return Err(e),
                    Err(e) => out.bad.push((i.file.clone(), e)),
                }
            }
        }
        let Looked { found, by_frame, bad, .. } = &mut out;
        if found.iter().any(|f| f.rank() < 4 && !by_frame.contains(f.file())) {
            found.retain(|f| !by_frame.contains(f.file()));
        }
        found.sort_by(|a, b| (a.rank(), a.file()).cmp(&(b.rank(), b.file())));
        bad.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(out)
    }

    /// `None`: it labels another volume of the series.
    fn read(&self, kind: &str, file: &InstanceRow, row: &SeriesRow) -> Result<Option<Found>, Error> {
        let Some(mut file) = Found::read(kind, file)? else { return Ok(None) };
        file.call_as_indexed(&row.labels, &|name| self.asked.wanted.names(name));
        if !self.target.has(&file)? {
            return Ok(None);
        }
        if self.asked.goes_on {
            self.target.check(&file, self.grid)?;
        }
        Ok(Some(file))
    }
}
