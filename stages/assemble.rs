//! `assemble`: the slices of one series → one volume on a regular grid, in the patient's millimetres. A series that lies on no regular grid is refused with
//! slices and millimetres, unless `gaps` says to keep its slices where they lie or to fill what is missing; nothing else is resampled or averaged here.

use std::collections::{BTreeMap, HashMap};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::{CaseId, Kind, Port, Scope};
use voxmill_schemas::geometry::{Geometry, Zyx};
use voxmill_schemas::tables::{InstanceRow, Row, SeriesRow};

use crate::dicom::bytes::DEFLATED;
use crate::dicom::header::Header;
use crate::dicom::order::{Gaps, How, count};
use crate::dicom::read::{self, Reading, Stacked};
use crate::dicom::suv::Suv;
use crate::error::{Error, chain};
use crate::stage::{Cx, Facts, Finding, Info, Inputs, Opened, Progress, Rows, Stage, Wiring};
use crate::table;
use crate::volume::{About, Dtype, Repeats, SlabWriter, Volume, Voxels, slab_depth};

/// One volume for each image series that `where` chooses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Assemble {
    /// An SQL condition on the table `series`: `modality = 'CT' and slice_spacing_mm < 2`. Without it every image series is a case.
    #[serde(rename = "where", default)]
    pub condition: Option<String>,
    /// What cases are called: after their series, or after their patient (with a suffix where a patient has several).
    #[serde(default)]
    pub case_name: CaseName,
    /// What becomes of a series with missing slices or changing spacing: `refuse`, `keep` (slices stay where they are, with a position each, which
    /// `resample` understands) or `fill` (a regular grid; what no file holds is interpolated along the stack and told).
    #[serde(default)]
    pub gaps: Gaps,
    /// What becomes of volumes of one series that lie on one another (time points, b-values): a case each, or one case whose first axis is time.
    #[serde(default)]
    pub repeats: RepeatsPolicy,
    /// What becomes of colour images: `refuse`, or `channels` R, G and B.
    #[serde(default)]
    pub colour: Colour,
    /// For PET: turn activity into standardised uptake values. Weight, dose, half life and times must stand in the files; decay is taken into account.
    #[serde(default)]
    pub suv: Option<Suv>,
    /// What becomes of images that do not say where they lie in the patient (projections, cine loops, screen shots): `refuse`, or `unknown` (ordered by
    /// InstanceNumber, place and direction made up and marked as unknown).
    #[serde(default)]
    pub geometry: GeometryPolicy,
    /// What becomes of a series of one slice: `keep` makes a volume of depth one whose step is SliceThickness.
    #[serde(default)]
    pub single_slice: SingleSlice,
}

/// What a case is named after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CaseName {
    /// The name of the series in the index.
    #[default]
    Series,
    /// The name of the patient in the index.
    Patient,
}

/// What becomes of volumes of one series at one place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RepeatsPolicy {
    /// A case each.
    #[default]
    Separate,
    /// One case: `[t, z, y, x]`, in the order of temporal position, time, number.
    Stack,
}

/// What becomes of colour images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Colour {
    /// The case is quarantined.
    #[default]
    Refuse,
    /// Three channels of uint8: R, G, B.
    Channels,
}

/// What becomes of images without a place in the patient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum GeometryPolicy {
    /// The case is quarantined.
    #[default]
    Refuse,
    /// A volume whose affine says nothing of the patient, and says so.
    Unknown,
}

/// What becomes of a series of one slice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SingleSlice {
    /// The case is quarantined.
    #[default]
    Refuse,
    /// A volume of depth one.
    Keep,
}

const PORT: &str = "series";

impl Stage for Assemble {
    const INFO: Info = Info {
        name: "assemble",
        version: 4,
        scope: Scope::Case,
        ports: &[Port { name: PORT, kind: Kind::Table, required: true, about: "the index of an archive" }],
        gives: Kind::Volume,
        summary: "stack the slices of each chosen series into a volume",
        example: "uses: assemble\nfrom: series\nwith: { where: \"modality = 'CT'\", case_name: series, gaps: refuse }",
        absent_in_inference: None,
    };

    /// Labels come with `annotate`.
    fn classes(&self, _: &Wiring) -> Option<Vec<String>> {
        Some(Vec::new())
    }

    fn check(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        if let Some(condition) = &self.condition
            && let Err(e) = table::check_condition(&SeriesRow::schema(), SeriesRow::TABLE, condition)
        {
            let columns = SeriesRow::schema().fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>().join(", ");
            found.push(Finding::error("where", chain(&e), format!("columns of the table series: {columns}")));
        }
        found
    }

    fn cases(&self, tables: &BTreeMap<String, Rows>) -> Result<Vec<Opened>, Error> {
        let index = tables.get(PORT).expect("the plan connects every required port");
        let all: Vec<SeriesRow> = table::rows_of(index)?;
        let chosen: Vec<SeriesRow> = match &self.condition {
            None => all.clone(),
            Some(c) => table::rows_of(&Rows([(SeriesRow::TABLE.to_string(), table::select(index, SeriesRow::TABLE, c)?)].into()))?,
        };
        let chosen: Vec<SeriesRow> = chosen.into_iter().filter(|s| s.kind == "image").collect();
        if chosen.is_empty() {
            return Err(nothing_chosen(self.condition.as_deref(), &all));
        }
        let mut instances: BTreeMap<(String, i64), Vec<InstanceRow>> = BTreeMap::new();
        for i in table::rows_of::<InstanceRow>(index)? {
            instances.entry((i.series.clone(), i.volume)).or_default().push(i);
        }
        let chosen = self.joined(chosen);
        let first: Vec<SeriesRow> = chosen.iter().map(|rows| rows[0].clone()).collect();
        let names = case_names(&first, &all, self.case_name);
        let open = |(volumes, case): (Vec<SeriesRow>, String)| {
            let mine: Vec<InstanceRow> =
                volumes.iter().flat_map(|v| instances.remove(&(v.series.clone(), v.volume)).unwrap_or_default()).collect();
            let rows = Rows(
                [(SeriesRow::TABLE, SeriesRow::to_batch(&volumes)), (InstanceRow::TABLE, InstanceRow::to_batch(&mine))]
                    .map(|(name, batch)| (name.to_string(), batch))
                    .into(),
            );
            Opened { case: CaseId(case), rows: [(PORT.to_string(), rows)].into() }
        };
        Ok(chosen.into_iter().zip(names).map(open).collect())
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let rows = inputs.one(PORT).rows.as_ref().expect("a table comes with the rows of its case");
        let volumes = table::rows_of::<SeriesRow>(rows)?;
        let series = volumes.first().expect("a case is opened by at least one volume").clone();
        let instances: Vec<InstanceRow> = table::rows_of(rows)?;
        let case = cx.case.map(|c| c.0.clone()).unwrap_or_default();
        if let Some((v, why)) = volumes.iter().find_map(|v| Some((v, v.refused.as_ref()?))) {
            let n = usize::try_from(v.n_frames).unwrap_or(0);
            return Err(Error::Geometry { what: format!("volume of {}", count(n, "slice")), why: why.clone() });
        }
        let reading = Reading {
            how: How {
                keeps_single: self.single_slice == SingleSlice::Keep,
                gaps: self.gaps,
                takes_unplaced: self.geometry == GeometryPolicy::Unknown,
            },
            // A large case runs alone; only what no machine is meant for is refused (as `Cx::check_size` does).
            limit_bytes: cx.memory_bytes.max(4 << 30),
            keeps_colour: self.colour == Colour::Channels,
            suv: self.suv,
            is_repeat: series.repeat.is_some_and(|n| n > 0),
            step: &|bytes| {
                cx.bytes(bytes);
                cx.check_cancelled()
            },
        };
        let mut written: Option<SlabWriter> = None;
        let mut slabs = |size, first, slab: Voxels| {
            if first == 0 {
                // One that was begun with a narrower type has no file that this one does not replace.
                drop(written.take());
                written = Some(SlabWriter::create(cx.draft, slab.kind(), 1, size, false)?);
            }
            written.as_mut().expect("slabs begin at slice 0").push(0, slab.as_bytes())?;
            Ok(Some(slab))
        };
        let read = match &volumes[..] {
            [_] => read::volume_into(&instances, &reading, Some(&mut slabs)).map_err(|e| with_lost(e, &series))?,
            many => {
                let of = |v: &SeriesRow| instances.iter().filter(|i| (&i.series, i.volume) == (&v.series, v.volume)).cloned().collect();
                read::repeated(&many.iter().map(of).collect::<Vec<Vec<InstanceRow>>>(), &reading)?
            }
        };
        let Stacked { geometry, pixels, repeats, z_positions_mm, made_slices, unknown_geometry, headers, notes } = read;
        let modality = if series.modality.is_empty() { "image".to_string() } else { series.modality.clone() };
        let repeats = if volumes.len() > 1 { Some(repeats_of(&volumes)) } else { repeats };
        let channels = match (&repeats, pixels.is_colour) {
            (_, true) => ["R", "G", "B"].map(String::from).into(),
            (Some(_), _) => (0..pixels.voxels.len() / geometry.size.count().max(1)).map(|t| format!("{modality} {t}")).collect(),
            (None, _) => vec![modality],
        };
        let about = About {
            modality: series.modality.clone(),
            unit: pixels.unit.map_or_else(|| unit(&headers), String::from),
            padding: pixels.padding,
            patient: series.patient.clone(),
            study: series.study.clone(),
            series: series.series.clone(),
            volume: series.volume,
            z_positions_mm,
            made_slices,
            repeats,
            unknown_geometry,
            ..About::of(geometry)
        };
        let facts = match written {
            Some(image) => image.finish(geometry, channels, about.clone())?,
            None => {
                let volume = Volume { geometry, channels, voxels: pixels.voxels, labels: None, about: about.clone() };
                volume.write(cx.draft, None)?;
                volume.facts()
            }
        };
        notes.iter().for_each(|n| (cx.progress)(Progress::Warn(format!("{case}: {n}"))));
        Ok(self.facts(facts, &geometry, &about, &series, &headers, notes))
    }

    /// A volume that goes out slab by slab takes its slabs and what is in the threads' hands, any other one six bytes a voxel (the array, and the same again
    /// while it is written in pieces); repeats are joined from their parts.
    fn memory_bytes(&self, inputs: &Inputs) -> u64 {
        let rows = inputs.maybe(PORT).and_then(|i| i.rows.as_ref());
        let volumes = rows.and_then(|r| table::rows_of::<SeriesRow>(r).ok()).unwrap_or_default();
        let instances = rows.and_then(|r| table::rows_of::<InstanceRow>(r).ok()).unwrap_or_default();
        if let [volume] = &volumes[..]
            && let Some(bytes) = self.bytes_of_slabs(volume, &instances, rayon::current_num_threads())
        {
            return bytes;
        }
        let voxels = volumes.iter().fold(0u64, |sum, s| {
            let n = |v: i64| u64::try_from(v).unwrap_or(0);
            sum.saturating_add(n(s.n_frames).saturating_mul(n(s.rows.unwrap_or(0))).saturating_mul(n(s.columns.unwrap_or(0))))
        });
        voxels.saturating_mul(if volumes.len() > 1 { 10 } else { 6 }).saturating_add(64 << 20)
    }
}

/// While a slab is decoded (float32 at worst), three that are compressed wait, go to disk and are made. With slices of 512², 256² and 1024² a process took
/// 30, 14 and 106 MiB more than to index them (peak of resident memory, noisy CT of 300, 800 and 100 slices); this bound says 126, 48 and 453.
const SLAB_BYTES_A_VOXEL: u64 = 12;
/// The frame as it is packed, unpacked and rescaled.
const FRAME_BYTES_A_PIXEL: u64 = 12;
/// A header with its row.
const BYTES_A_FILE: u64 = 8 << 10;
/// Files up to this size may be held whole.
const WHOLE_FILE_BYTES: u64 = 32 << 20;

impl Assemble {
    /// What a volume takes that is written while it is decoded; `None` where it has to stand whole.
    fn bytes_of_slabs(&self, volume: &SeriesRow, instances: &[InstanceRow], n_threads: usize) -> Option<u64> {
        let size = |n: Option<i64>| n.and_then(|n| usize::try_from(n).ok());
        let size = Zyx::new(size(Some(volume.n_frames))?, size(volume.rows)?, size(volume.columns)?);
        let plane = (size.y as u64).checked_mul(size.x as u64).filter(|n| *n <= 1 << 32)?;
        let frames_of = |i: &InstanceRow| if i.frames.is_empty() { i.n_frames } else { i.frames.len() as i64 };
        // Slices that are tiles of a mosaic are more than the frames of their files; frames without a place each are a loop; compressed streams unfold whole.
        let is_mosaic = instances.iter().map(frames_of).fold(0i64, i64::saturating_add) < volume.n_frames;
        let is_loop = instances.iter().any(|i| i.n_frames > 1 && i.position_mm.is_empty());
        let is_filled = self.gaps == Gaps::Fill && volume.irregular.is_some();
        let is_wrapped = |i: &InstanceRow| {
            let name = i.file.to_ascii_lowercase();
            i.transfer_syntax == DEFLATED || [".gz", ".zst"].iter().any(|e| name.ends_with(e))
        };
        if self.colour == Colour::Channels || is_mosaic || is_loop || is_filled || instances.iter().any(is_wrapped) {
            return None;
        }
        let held = |i: &InstanceRow| u64::try_from(i.size_bytes).unwrap_or(0).min(WHOLE_FILE_BYTES);
        let (shared, single): (Vec<_>, Vec<_>) = instances.iter().partition(|i| i.n_frames > 1);
        let shared = shared.into_iter().map(held).fold(0, u64::saturating_add);
        let a_thread = plane.checked_mul(FRAME_BYTES_A_PIXEL)?.checked_add(single.into_iter().map(held).max().unwrap_or(0))?;
        let slab = plane.checked_mul(slab_depth(size) as u64)?.checked_mul(SLAB_BYTES_A_VOXEL)?;
        let files = (instances.len() as u64).saturating_mul(BYTES_A_FILE);
        Some(
            a_thread
                .checked_mul(n_threads as u64)?
                .checked_add(slab)?
                .saturating_add(shared)
                .saturating_add(files)
                .saturating_add(16 << 20),
        )
    }
}

/// Where slices are missing, the files beside them that could not be read.
fn with_lost(e: Error, series: &SeriesRow) -> Error {
    match (e, &series.lost_beside) {
        (Error::Geometry { what, why }, Some(lost)) => Error::Geometry { what, why: format!("{why}; {lost}") },
        (e, _) => e,
    }
}

impl Assemble {
    /// The volumes of each case: one, or with `repeats: stack` all that lie on one another, in their order.
    fn joined(&self, chosen: Vec<SeriesRow>) -> Vec<Vec<SeriesRow>> {
        if self.repeats == RepeatsPolicy::Separate {
            return chosen.into_iter().map(|row| vec![row]).collect();
        }
        let mut cases: BTreeMap<(String, i64), Vec<SeriesRow>> = BTreeMap::new();
        for row in chosen {
            cases.entry((row.series.clone(), row.repeat_of.unwrap_or(row.volume))).or_default().push(row);
        }
        let mut out = Vec::new();
        for mut rows in cases.into_values() {
            rows.sort_by_key(|r| (r.repeat, r.volume));
            // One that is no volume under any setting is a case of its own: it must not take the others with it.
            let (refused, whole): (Vec<_>, Vec<_>) = rows.into_iter().partition(|r| r.refused.is_some());
            out.extend(refused.into_iter().map(|row| vec![row]));
            if !whole.is_empty() {
                out.push(whole);
            }
        }
        out.sort_by(|a, b| (&a[0].series, a[0].volume).cmp(&(&b[0].series, b[0].volume)));
        out
    }

    /// - `of_volume`: [`Volume::facts`]
    fn facts(
        &self,
        of_volume: Facts,
        geometry: &Geometry,
        about: &About,
        series: &SeriesRow,
        headers: &[Header],
        notes: Vec<String>,
    ) -> Facts {
        let first = &headers[0];
        let rescales: std::collections::BTreeSet<_> = headers
            .iter()
            .flat_map(|h| &h.frames)
            .map(|f| (f.slope.unwrap_or(1.0).to_bits(), f.intercept.unwrap_or(0.0).to_bits()))
            .collect();
        let is_float = of_volume.facts.get("dtype").is_some_and(|t| t == Dtype::F32.name());
        let mut facts = of_volume
            .with("volume", series.volume)
            .with("tilt_degrees", (geometry.tilt_degrees() * 100.0).round() / 100.0)
            .with("photometric", &first.photometric)
            .with("rescales", rescales.len())
            .with("is_float", is_float)
            .with("notes", notes);
        if let Some(why) = &about.unknown_geometry {
            facts = facts.with("unknown_geometry", why);
        }
        if !about.made_slices.is_empty() {
            facts = facts.with("made_slices", &about.made_slices);
        }
        if let Some(repeats) = &about.repeats {
            facts = facts.with("repeats", repeats);
        }
        if let Some(padding) = first.padding {
            facts = facts.with("padding_stored", padding);
        }
        facts
    }
}

/// What tells the repeats of a place apart.
fn repeats_of(volumes: &[SeriesRow]) -> Repeats {
    let all = |of: &dyn Fn(&SeriesRow) -> Option<f64>| volumes.iter().map(of).collect::<Option<Vec<f64>>>().unwrap_or_default();
    Repeats { times_s: all(&|v| v.time_s), b_values: all(&|v| v.b_value), volumes: volumes.iter().map(|v| v.volume).collect() }
}

/// What a voxel value means. RescaleType and, for PET, Units say so; CT without them is in HU (PS3.3 C.8.2.1). Who the patient is is no unit.
fn unit(headers: &[Header]) -> String {
    let first = &headers[0];
    let is_rescaled =
        headers.iter().flat_map(|h| &h.frames).any(|f| f.slope.is_some_and(|s| s != 1.0) || f.intercept.is_some_and(|i| i != 0.0));
    let said = if first.identity.is_in(&first.unit) { "" } else { first.unit.as_str() };
    match (said, first.modality.as_str()) {
        ("" | "US", "CT") => "HU".into(),
        ("" | "US", _) if is_rescaled => "rescaled".into(),
        ("" | "US", _) => "stored".into(),
        (unit, _) => unit.to_string(),
    }
}

fn nothing_chosen(condition: Option<&str>, all: &[SeriesRow]) -> Error {
    let (mut images, mut others): (BTreeMap<&str, usize>, BTreeMap<&str, usize>) = Default::default();
    for s in all {
        let (of_kind, what) = if s.kind == "image" { (&mut images, &s.modality) } else { (&mut others, &s.kind) };
        *of_kind.entry(what).or_default() += 1;
    }
    let list = |n: &BTreeMap<&str, usize>| n.iter().map(|(what, n)| format!("{n} {what}")).collect::<Vec<_>>().join(", ");
    let beside = if others.is_empty() { String::new() } else { format!(", beside {}", list(&others)) };
    let n: usize = images.values().sum();
    match condition.filter(|_| n > 0) {
        Some(condition) => Error::Nothing {
            what: format!("where: {condition}"),
            found: format!("none of the {n} image volumes of the archive ({}{beside})", list(&images)),
            expected: "a condition that at least one of them fits".into(),
        },
        None => Error::Nothing { what: "the archive".into(), found: format!("no image series{beside}"), expected: "at least one".into() },
    }
}

/// One name a case, fit for a file name, none twice. Where a patient has several series each gets a suffix made from the series, so that a name does not
/// depend on the order of series.
fn case_names(chosen: &[SeriesRow], all: &[SeriesRow], by: CaseName) -> Vec<String> {
    let mut volumes: HashMap<&str, usize> = HashMap::new();
    all.iter().filter(|o| o.kind == "image").for_each(|o| *volumes.entry(&o.series).or_default() += 1);
    let plain: Vec<String> = chosen
        .iter()
        .map(|s| match by {
            CaseName::Series if volumes.get(s.series.as_str()).is_some_and(|n| *n > 1) => file_name(&format!("{}.{}", s.series, s.volume)),
            CaseName::Series => file_name(&s.series),
            CaseName::Patient => file_name(&s.patient),
        })
        .collect();
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    plain.iter().for_each(|n| *count.entry(n).or_default() += 1);
    let name = |(n, s): (&String, &SeriesRow)| {
        if count[n.as_str()] == 1 {
            return n.clone();
        }
        let suffix = blake3::hash(format!("{} {}", s.series, s.volume).as_bytes()).to_hex();
        format!("{n}-{}", &suffix[..8])
    };
    plain.iter().zip(chosen).map(name).collect()
}

/// Letters, digits, `.`, `_` and `-` stay; a name that lost something gets a hash, so that two of them stay two. Tags are hostile: no path comes through.
fn file_name(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let clean: String = text.chars().take(80).map(|c| if is_plain(c) { c } else { '_' }).collect();
    let clean = clean.trim_start_matches(['.', '-']).to_string();
    if clean == text && !clean.is_empty() {
        clean
    } else {
        format!("{clean}-{}", &blake3::hash(text.as_bytes()).to_hex()[..8]).trim_start_matches('-').to_string()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn row(series: &str, volume: i64, patient: &str) -> SeriesRow {
        SeriesRow { series: series.into(), volume, patient: patient.into(), kind: "image".into(), ..SeriesRow::default() }
    }

    #[test]
    fn no_two_cases_have_one_name() {
        let rows = [row("1.2", 0, "A"), row("1.2", 1, "A"), row("1.3", 0, "B"), row("1.4", 0, "../etc"), row("1.5", 0, "..\\etc")];
        for by in [CaseName::Series, CaseName::Patient] {
            let names = case_names(&rows, &rows, by);
            let distinct: std::collections::BTreeSet<_> = names.iter().collect();
            assert_eq!(distinct.len(), 5, "{names:?}");
            assert!(names.iter().all(|n| !n.contains('/') && !n.starts_with('.') && !n.is_empty()), "{names:?}");
        }
        assert_eq!(case_names(&rows, &rows, CaseName::Series)[..3], ["1.2.0", "1.2.1", "1.3"]);
        assert_eq!(case_names(&rows, &rows, CaseName::Patient)[2], "B");
    }

    #[test]
    fn a_volume_that_goes_out_slab_by_slab_takes_no_more_for_more_slices() {
        let of = |n: i64| SeriesRow { n_frames: n, rows: Some(512), columns: Some(512), ..row("1.2", 0, "A") };
        let file =
            InstanceRow { n_frames: 1, position_mm: vec![0.0; 3], size_bytes: 600_000, file: "1.dcm".into(), ..InstanceRow::default() };
        let stage = |with| serde_json::from_value::<Assemble>(with).unwrap();
        let bytes = |s: &Assemble, n: usize, i: &InstanceRow| s.bytes_of_slabs(&of(n as i64), &vec![i.clone(); n], 2);
        let plain = stage(serde_json::json!({}));
        let (few, many) = (bytes(&plain, 320, &file).unwrap(), bytes(&plain, 1280, &file).unwrap());
        assert!(few < 150 << 20 && many < few + (16 << 20), "{few} {many}");
        assert_eq!(bytes(&stage(serde_json::json!({ "colour": "channels" })), 300, &file), None);
        assert_eq!(bytes(&plain, 300, &InstanceRow { transfer_syntax: DEFLATED.into(), ..file.clone() }), None);
        assert_eq!(plain.bytes_of_slabs(&of(40), std::slice::from_ref(&file), 2), None, "a mosaic");
        let huge = SeriesRow { rows: Some(i64::MAX), columns: Some(i64::MAX), ..of(1) };
        assert_eq!(plain.bytes_of_slabs(&huge, &[file], 2), None);
    }

    #[test]
    fn repeats_of_one_place_are_one_case_when_asked_for() {
        let of = |volume: i64, repeat_of: i64, repeat: i64| SeriesRow {
            repeat_of: Some(repeat_of),
            repeat: Some(repeat),
            refused: (volume == 3).then(|| "incomplete".to_string()),
            ..row("1.2", volume, "A")
        };
        let rows = vec![of(0, 0, 1), of(1, 1, 0), of(2, 0, 0), of(3, 0, 2)];
        let volumes = |repeats: &str| {
            let stage: Assemble = serde_json::from_value(serde_json::json!({ "repeats": repeats })).unwrap();
            let of_case = |c: Vec<SeriesRow>| c.iter().map(|r| r.volume).collect::<Vec<_>>();
            stage.joined(rows.clone()).into_iter().map(of_case).collect::<Vec<_>>()
        };
        assert_eq!(volumes("separate"), [[0], [1], [2], [3]]);
        assert_eq!(volumes("stack"), [vec![1], vec![2, 0], vec![3]]);
    }

    #[test]
    fn nothing_chosen_lists_what_is_there() {
        let e = nothing_chosen(Some("modality = 'PT'"), &[SeriesRow { modality: "CT".into(), ..row("1", 0, "A") }]);
        assert_eq!(
            e.to_string(),
            "where: modality = 'PT': found none of the 1 image volumes of the archive (1 CT), expected a condition that at least one of them fits"
        );
    }
}
