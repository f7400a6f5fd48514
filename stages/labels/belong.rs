//! Which labels belong to which image: by the series they name, the slices they name, the names of files.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use arrow::array::{Array, RecordBatch, StringArray};
use serde_json::Value;
use voxmill_schemas::artifact::Manifest;
use voxmill_schemas::tables::{InstanceRow, Row, SeriesRow};

use super::Found;
use crate::dicom::place::{Grid, Slice};
use crate::dicom::source;
use crate::error::Error;
use crate::stage::Rows;
use crate::table;

/// The image that is to be labelled.
pub struct Target {
    /// SOP instance and frame number (1 for single frames) of its slices.
    slices: BTreeSet<(String, u32)>,
    /// Where repeats are stacked: instance → the frames of it (from 0; none: all) and the volume that each repeat takes.
    repeats: HashMap<String, Vec<(Vec<i64>, i64)>>,
    /// Instances of the other volumes of its series (echoes, phases).
    others: Vec<InstanceRow>,
    frame_of_reference: Option<String>,
}

impl Target {
    /// - `mine`: the instances of the image, of several volumes where repeats are stacked
    pub fn new(slices: &[Slice], mine: &[InstanceRow], others: Vec<InstanceRow>, frame_of_reference: Option<String>) -> Target {
        let mut repeats: HashMap<String, Vec<(Vec<i64>, i64)>> = HashMap::new();
        if mine.iter().any(|i| i.volume != mine[0].volume) {
            mine.iter().for_each(|i| repeats.entry(i.instance.clone()).or_default().push((i.frames.clone(), i.volume)));
        }
        Target { slices: names(slices), repeats, others, frame_of_reference }
    }

    /// Refuses labels that cannot be drawn on the image as they are.
    pub fn check(&self, found: &Found, grid: &Grid) -> Result<(), Error> {
        self.check_frame_of_reference(found)?;
        self.check_one_repeat(found, grid)
    }

    /// A label that was drawn on any repeat of a stack lies on the one grid of them all. One that was drawn at one place for several repeats, each for itself,
    /// is refused: laid over one another (or, as contours, cut out of one another) they would be none of them.
    fn check_one_repeat(&self, found: &Found, grid: &Grid) -> Result<(), Error> {
        if self.repeats.is_empty() {
            return Ok(());
        }
        // (label, slice) → the repeats that it was drawn on there.
        let mut seen: HashMap<(usize, usize), BTreeSet<i64>> = HashMap::new();
        for (label, images) in found.parts() {
            let mut places: BTreeMap<usize, BTreeSet<i64>> = BTreeMap::new();
            for image in images {
                if let (Some(k), Some(volume)) = (grid.slice_of.get(image), self.repeat_of(image)) {
                    places.entry(*k).or_default().insert(volume);
                }
            }
            for (k, volumes) in places {
                let before = seen.entry((label, k)).or_default();
                if let (false, Some(a), Some(b)) = (!before.is_disjoint(&volumes), before.first(), volumes.first()) {
                    let why = format!(
                        "it draws one label at one place for several of the repeats that are stacked (volumes {a} and {b} of the series): \
                         assemble them with repeats: separate"
                    );
                    return Err(Error::Labels { what: found.file().into(), why });
                }
                before.extend(volumes);
            }
        }
        Ok(())
    }

    fn repeat_of(&self, (instance, frame): &(String, u32)) -> Option<i64> {
        let has = |frames: &[i64]| frames.is_empty() || frames.contains(&(i64::from(*frame) - 1));
        self.repeats.get(instance)?.iter().find(|(frames, _)| has(frames)).map(|(_, volume)| *volume)
    }

    /// Labels that name slices of another volume of the series, and none of this one, belong to that one.
    pub fn has(&self, found: &Found) -> Result<bool, Error> {
        let images = found.images();
        if images.is_empty() || self.others.is_empty() || self.is_named(&images) {
            return Ok(true);
        }
        let others = names(&source::slices(&self.others)?);
        Ok(!images.iter().any(|i| others.contains(*i)))
    }

    /// Refuses labels of another frame of reference, unless they name slices of the image: then their numbers mean what those of the image mean.
    fn check_frame_of_reference(&self, found: &Found) -> Result<(), Error> {
        let frames = found.frames_of_reference();
        let Some(mine) = self.frame_of_reference.as_deref() else { return Ok(()) };
        if frames.is_empty() || frames.contains(mine) || self.is_named(&found.images()) {
            return Ok(());
        }
        let why = "it lies in another frame of reference than the image and names none of its slices: register it first".to_string();
        Err(Error::Labels { what: found.file().into(), why })
    }

    fn is_named(&self, images: &BTreeSet<&(String, u32)>) -> bool {
        images.iter().any(|i| self.slices.contains(*i))
    }
}

fn names(slices: &[Slice]) -> BTreeSet<(String, u32)> {
    slices.iter().map(|s| (s.sop_instance.clone(), s.frame.unwrap_or(1))).collect()
}

/// An index, turned around: which rows a series has, which label files name it, which NIfTI files could be meant for it. Made once for all cases.
pub struct LabelIndex {
    /// Series → rows of the table series and of the table instances.
    series_rows: HashMap<String, Vec<u32>>,
    instance_rows: HashMap<String, Vec<u32>>,
    /// Image series → series of the labels that name it, or name none of the archive and share its frame of reference.
    naming: HashMap<String, Vec<String>>,
    /// Patient, file or folder, without ending → series of NIfTI files that carry no reference.
    nifti_called: HashMap<String, Vec<String>>,
    /// Image series → NIfTI files in or above its folder, where no other image series lies.
    nifti_beside: HashMap<String, Vec<String>>,
}

impl LabelIndex {
    /// - `table`: with `series` and `instances`
    pub fn of(table: &Rows) -> Result<LabelIndex, Error> {
        let all: Vec<SeriesRow> = table::rows_of(table)?;
        let no_instances = InstanceRow::to_batch(&[]);
        let instances = table.0.get(InstanceRow::TABLE).unwrap_or(&no_instances);
        let mut out = LabelIndex {
            series_rows: rows_by(all.iter().map(|r| r.series.as_str())),
            instance_rows: rows_by(texts(instances, "series")),
            naming: HashMap::new(),
            nifti_called: HashMap::new(),
            nifti_beside: HashMap::new(),
        };
        let mut images: BTreeSet<&str> = BTreeSet::new();
        let mut in_frame: HashMap<&str, BTreeSet<&str>> = HashMap::new();
        for row in all.iter().filter(|r| r.kind == "image") {
            images.insert(&row.series);
            if let Some(frame) = &row.frame_of_reference {
                in_frame.entry(frame).or_default().insert(&row.series);
            }
        }
        for row in all.iter().filter(|r| r.kind != "image") {
            let named: Vec<&str> = row.references.iter().map(String::as_str).collect();
            // What it names is not here (a converted or renamed series, a wrong reference): its frame of reference says where it lies.
            let is_lost = named.iter().all(|series| !images.contains(series));
            let near = row.frame_of_reference.as_deref().filter(|_| is_lost).and_then(|f| in_frame.get(f));
            for image in named.into_iter().chain(near.into_iter().flatten().copied()) {
                out.naming.entry(image.to_string()).or_default().push(row.series.clone());
            }
        }
        let niftis: Vec<&SeriesRow> = all.iter().filter(|r| r.kind == "nifti" && r.references.is_empty()).collect();
        if !niftis.is_empty() {
            out.with_niftis(&all, &niftis, instances);
        }
        Ok(out)
    }

    /// NIfTI files carry no reference. One belongs to a series when it, or a folder above it, is called like the case, patient or series; or
    /// when it stands in or above the folder of the series and no other image series lies there.
    fn with_niftis(&mut self, all: &[SeriesRow], niftis: &[&SeriesRow], instances: &RecordBatch) {
        let mut files: HashMap<&str, &Path> = HashMap::new();
        // Folder → the image series below it; `None`: several.
        let mut below: HashMap<&Path, Option<&str>> = HashMap::new();
        let images: BTreeSet<&str> = all.iter().filter(|r| r.kind == "image").map(|r| r.series.as_str()).collect();
        let mut before = ("", Path::new(""));
        for (series, file) in texts(instances, "series").zip(texts(instances, "file")) {
            files.entry(series).or_insert(Path::new(file));
            let folder = Path::new(file).parent().unwrap_or(Path::new(""));
            if (series, folder) == before || !images.contains(series) {
                continue;
            }
            before = (series, folder);
            for above in folder.ancestors() {
                below.entry(above).and_modify(|one| *one = one.filter(|s| *s == series)).or_insert(Some(series));
            }
        }
        for row in niftis {
            let Some(path) = files.get(row.series.as_str()) else { continue };
            // The index gives a NIfTI file the patient of its name, so that names meet under pseudonyms as well.
            let parts = path.iter().map(|part| {
                let name = part.to_string_lossy().into_owned();
                name.trim_end_matches(".gz").trim_end_matches(".nii").to_string()
            });
            for name in parts.chain([row.patient.clone()]).collect::<BTreeSet<_>>() {
                self.nifti_called.entry(name).or_default().push(row.series.clone());
            }
            if let Some(Some(image)) = path.parent().and_then(|folder| below.get(folder)) {
                self.nifti_beside.entry(image.to_string()).or_default().push(row.series.clone());
            }
        }
    }

    /// NIfTI files that are called like no image of the archive and lie beside none: labels whose image is missing, or images of their own.
    pub fn nifti_of_no_image(&self, all: &[SeriesRow]) -> Vec<String> {
        let images = all.iter().filter(|r| r.kind == "image");
        let found = images.flat_map(|r| {
            let called = [&r.series, &r.patient].into_iter().filter_map(|name| self.nifti_called.get(name));
            called.chain(self.nifti_beside.get(&r.series)).flatten()
        });
        let found: BTreeSet<&String> = found.collect();
        let all: BTreeSet<&String> = self.nifti_called.values().flatten().collect();
        all.difference(&found).map(|s| s.to_string()).collect()
    }

    /// The rows of the label files that may label the image and the instances of the image itself.
    pub fn rows_of(&self, table: &Rows, of: &Manifest, image: &str) -> Rows {
        let patient = of.facts.get("patient").and_then(Value::as_str).unwrap_or_default();
        let case = of.case.as_ref().map_or("", |c| c.0.as_str());
        let called = [case, patient, image].into_iter().filter(|n| !n.is_empty()).filter_map(|n| self.nifti_called.get(n));
        let found = [self.naming.get(image), self.nifti_beside.get(image)].into_iter().flatten().chain(called);
        let mine: BTreeSet<&str> = found.flatten().map(String::as_str).collect();
        let rows = |of: &HashMap<String, Vec<u32>>, series: &mut dyn Iterator<Item = &str>| {
            let mut rows: Vec<u32> = series.filter_map(|s| of.get(s)).flatten().copied().collect();
            rows.sort_unstable();
            rows.dedup();
            rows
        };
        let mut out = BTreeMap::new();
        if let Some(batch) = table.0.get(SeriesRow::TABLE) {
            out.insert(SeriesRow::TABLE.to_string(), table::taken(batch, &rows(&self.series_rows, &mut mine.iter().copied())));
        }
        if let Some(batch) = table.0.get(InstanceRow::TABLE) {
            let mut all = mine.iter().copied().chain([image]);
            out.insert(InstanceRow::TABLE.to_string(), table::taken(batch, &rows(&self.instance_rows, &mut all)));
        }
        Rows(out)
    }
}

fn rows_by<'a>(names: impl Iterator<Item = &'a str>) -> HashMap<String, Vec<u32>> {
    let mut out: HashMap<String, Vec<u32>> = HashMap::new();
    for (row, name) in names.enumerate() {
        match out.get_mut(name) {
            Some(rows) => rows.push(row as u32),
            None => _ = out.insert(name.to_string(), vec![row as u32]),
        }
    }
    out
}

/// Values of a text column; empty texts where there is none.
fn texts<'a>(batch: &'a RecordBatch, column: &str) -> Box<dyn Iterator<Item = &'a str> + 'a> {
    match batch.column_by_name(column).and_then(|c| c.as_any().downcast_ref::<StringArray>()) {
        Some(c) => Box::new((0..c.len()).map(move |i| c.value(i))),
        None => Box::new(std::iter::repeat_n("", batch.num_rows())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::geometry::Lps;

    use super::*;
    use crate::dicom::place::Plane;
    use crate::dicom::rtstruct::{Contour, Roi, RtStruct};

    fn drawn_on(sop: &str, frame_of_reference: &str) -> Found {
        let contours = vec![Contour { images: vec![(sop.to_string(), 1)], ..Contour::default() }];
        let roi = Roi { contours, frame_of_reference: Some(frame_of_reference.into()), ..Roi::default() };
        Found::RtStruct(RtStruct { file: "plan.dcm".into(), rois: vec![roi], made: String::new() })
    }

    fn target() -> Target {
        let plane = Plane::new([0.0; 3], [1.0, 0.0, 0.0, 0.0, 1.0, 0.0], [1.0, 1.0]).unwrap();
        assert_eq!(plane.origin, Lps([0.0; 3]));
        let slice =
            Slice { sop_class: String::new(), sop_instance: "1.1".into(), frame: None, plane, rows: 4, columns: 4, thickness_mm: None };
        Target::new(&[slice], &[], Vec::new(), Some("9".into()))
    }

    #[test]
    fn a_label_of_one_repeat_lies_on_the_stack_and_one_of_several_is_refused() {
        let row = |instance: &str, volume| InstanceRow { instance: instance.into(), volume, ..InstanceRow::default() };
        let rows = [row("1.1", 0), row("1.2", 0), row("2.1", 4), row("2.2", 4)];
        let target = Target::new(&[], &rows, Vec::new(), None);
        let mut grid = Grid::of(&voxmill_schemas::geometry::Geometry::axis_aligned(
            voxmill_schemas::geometry::Zyx::new(2, 4, 4),
            voxmill_schemas::geometry::Zyx::splat(1.0),
        ));
        for (instance, k) in [("1.1", 0), ("1.2", 1), ("2.1", 0), ("2.2", 1)] {
            grid.slice_of.insert((instance.to_string(), 1), k);
        }
        let on = |contours: &[&[&str]]| {
            let contour = |images: &&[&str]| Contour { images: images.iter().map(|i| (i.to_string(), 1)).collect(), ..Contour::default() };
            let roi = Roi { contours: contours.iter().map(contour).collect(), ..Roi::default() };
            Found::RtStruct(RtStruct { file: "plan.dcm".into(), rois: vec![roi], made: String::new() })
        };
        assert!(target.check(&on(&[&["2.1"], &["2.2"]]), &grid).is_ok(), "the second repeat alone");
        assert!(target.check(&on(&[&["2.1"], &["2.1"]]), &grid).is_ok(), "two contours of one slice");
        assert!(target.check(&on(&[&["1.1", "2.1"], &["1.1", "2.1"]]), &grid).is_ok(), "drawn on both at once");
        assert!(target.check(&on(&[&["1.1"], &["2.2"]]), &grid).is_ok(), "at another place");
        let e = target.check(&on(&[&["1.1"], &["2.1"]]), &grid).unwrap_err().to_string();
        assert!(e.starts_with("plan.dcm: it draws one label at one place for several") && e.contains("volumes 0 and 4"), "{e}");
    }

    #[test]
    fn another_frame_of_reference_needs_a_named_slice() {
        assert!(target().check_frame_of_reference(&drawn_on("2.2", "9")).is_ok());
        assert!(target().check_frame_of_reference(&drawn_on("1.1", "8")).is_ok());
        let e = target().check_frame_of_reference(&drawn_on("2.2", "8")).unwrap_err().to_string();
        assert!(e.starts_with("plan.dcm: it lies in another frame of reference"), "{e}");
    }

    #[test]
    fn labels_that_name_another_volume_of_the_series_are_not_for_this_one() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let small = crate::dicom::phantom::Phantom { patients: 1, slices: 4, size: 16, slice_spacing_mm: None, seed: 1 };
        crate::dicom::phantom::write(&out, &small, &mut |_| {}).unwrap();
        let patient = std::fs::read_dir(&out).unwrap().next().unwrap().unwrap().path();
        let row = |path: std::path::PathBuf| InstanceRow {
            content: blake3::hash(&std::fs::read(&path).unwrap()).to_hex().to_string(),
            path: path.to_string_lossy().into_owned(),
            ..InstanceRow::default()
        };
        let rows: Vec<InstanceRow> = std::fs::read_dir(patient.join("CT")).unwrap().map(|e| row(e.unwrap().path())).collect();
        let other = source::slices(&rows).unwrap()[0].sop_instance.clone();
        let image = Target { others: rows, ..target() };
        assert!(image.has(&drawn_on("1.1", "9")).unwrap(), "it names a slice of this volume");
        assert!(image.has(&drawn_on("7.7", "9")).unwrap(), "it names nothing of the series");
        assert!(!image.has(&drawn_on(&other, "9")).unwrap(), "it names a slice of the other volume");
    }

    #[test]
    fn a_case_is_given_the_labels_that_name_it_and_the_nifti_files_that_are_called_or_lie_so() {
        use voxmill_schemas::artifact::{CaseId, ContentHash, Key, Kind, Recipe};

        let series = |name: &str, kind: &str, patient: &str, references: &[&str]| SeriesRow {
            series: name.into(),
            kind: kind.into(),
            patient: patient.into(),
            references: references.iter().map(|s| s.to_string()).collect(),
            ..SeriesRow::default()
        };
        let instance = |series: &str, file: &str| InstanceRow { series: series.into(), file: file.into(), ..InstanceRow::default() };
        let all = [
            series("a", "image", "pa", &[]),
            series("b", "image", "pb", &[]),
            series("seg", "seg", "pa", &["a", "b"]),
            series("called", "nifti", "pb", &[]),
            series("beside", "nifti", "x", &[]),
            series("above", "nifti", "y", &[]),
            SeriesRow { frame_of_reference: Some("f".into()), ..series("c", "image", "pc", &[]) },
            SeriesRow { frame_of_reference: Some("f".into()), ..series("lost", "seg", "pc", &["gone"]) },
            SeriesRow { frame_of_reference: Some("f".into()), ..series("of a", "rtstruct", "pa", &["a"]) },
        ];
        let files = [
            instance("a", "A/MR/1"),
            instance("b", "B/MR/1"),
            instance("seg", "seg"),
            instance("a", "A/MR/2"),
            instance("called", "labels/pb.nii.gz"),
            instance("beside", "A/truth.nii"),
            instance("above", "truth.nii"),
        ];
        let table = Rows(BTreeMap::from([
            (SeriesRow::TABLE.to_string(), SeriesRow::to_batch(&all)),
            (InstanceRow::TABLE.to_string(), InstanceRow::to_batch(&files)),
        ]));
        let index = LabelIndex::of(&table).unwrap();
        assert_eq!(index.nifti_of_no_image(&all), ["above"]);
        let given = |image: &str, patient: &str| {
            let of = Manifest {
                key: Key::of(b""),
                content: ContentHash::of(b""),
                kind: Kind::Volume,
                case: Some(CaseId(image.into())),
                recipe: Recipe { stage: "assemble".into(), version: 1, config: Value::Null, inputs: BTreeMap::new(), seed: 0 },
                input_keys: BTreeMap::new(),
                facts: serde_json::json!({ "patient": patient }).as_object().cloned().unwrap(),
                files: BTreeMap::new(),
                bytes: 0,
                layout: 1,
            };
            let rows = index.rows_of(&table, &of, image);
            let series: Vec<String> = table::rows_of::<SeriesRow>(&rows).unwrap().into_iter().map(|r| r.series).collect();
            let files: Vec<String> = table::rows_of::<InstanceRow>(&rows).unwrap().into_iter().map(|r| r.file).collect();
            (series.join(" "), files.join(" "))
        };
        assert_eq!(given("a", "pa"), ("seg beside of a".to_string(), "A/MR/1 seg A/MR/2 A/truth.nii".to_string()));
        assert_eq!(
            given("c", "pc"),
            ("lost".to_string(), String::new()),
            "it names nothing of the archive and shares the frame of reference"
        );
        assert_eq!(given("b", "pb"), ("seg called".to_string(), "B/MR/1 seg labels/pb.nii.gz".to_string()));
    }
}
