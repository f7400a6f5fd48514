//! Headers → rows of the index: which files form which series and volume, under which name. The headers carry their own ids or pseudonyms already.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use voxmill_schemas::tables::{InstanceRow, SeriesRow};

use super::catalog::{Entry, Outcome};
use super::classes::{self, Class};
use super::contents::FileRef;
use super::group::{self, Group};
use super::header::Header;
pub use super::names::Names;
use super::names::patient_of;
use super::order::{self, Slice};
use super::pixels::{self, How};

/// The index, and the verdicts that only came out in making it.
#[derive(Debug, Default)]
pub struct Made {
    pub series: Vec<SeriesRow>,
    pub instances: Vec<InstanceRow>,
    /// File → what it is.
    pub indexed: Vec<(String, String)>,
    /// File → of which file it is a copy.
    pub copies: Vec<(String, String)>,
    /// File → with which file it cannot stand together.
    pub conflicts: Vec<(String, String)>,
}

/// (study, series) UIDs: what makes a series. A series UID that two studies use is two series.
type SeriesKey = (String, String);

/// Makes the rows, sorted, the same for any order and naming of the files.
/// - `damaged`: series of which files could not be read
pub fn of(
    entries: Vec<Entry>,
    damaged: &BTreeMap<SeriesKey, BTreeSet<String>>,
    names: &Names,
    path_of: &dyn Fn(&Entry) -> PathBuf,
) -> Made {
    let mut made = Made::default();
    let mut damaged = damaged.clone();
    let mut by_series: BTreeMap<SeriesKey, Vec<Entry>> = BTreeMap::new();
    let mut niftis = Vec::new();
    for e in entries {
        match &e.outcome {
            Outcome::Dicom(h) => by_series.entry((h.study.clone(), h.series.clone())).or_default().push(e),
            _ => niftis.push(e),
        }
    }
    let mut studies: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (study, series) in by_series.keys() {
        studies.entry(series.clone()).or_default().insert(study.clone());
    }
    let name_of = |study: &str, series: &str| {
        let is_shared = studies.get(series).is_some_and(|s| s.len() > 1);
        if is_shared { names.of("series", &format!("{series}@{study}")) } else { series.to_string() }
    };
    for (key, entries) in &mut by_series {
        let kept = without_copies(std::mem::take(entries), &mut made);
        for (file, _) in &made.conflicts {
            // A conflict was just found in this series, or in one before it that has taken its own already.
            if kept.conflicting.contains(file) {
                damaged.entry(key.clone()).or_default().insert(file.clone());
            }
        }
        *entries = kept.entries;
    }
    let mut series_of_instance: BTreeMap<String, String> = BTreeMap::new();
    for ((study, series), entries) in &by_series {
        entries.iter().for_each(|e| drop(series_of_instance.insert(header(e).sop_instance.clone(), name_of(study, series))));
    }
    for ((study, series), entries) in &by_series {
        let base = |h: &Header| SeriesRow {
            series: name_of(study, series),
            study: study.clone(),
            patient: patient_of(h),
            modality: h.modality.clone(),
            sop_class: h.sop_class.clone(),
            description: Some(h.description.clone()).filter(|d| !d.is_empty()),
            body_part: Some(h.body_part.clone()).filter(|b| !b.is_empty()),
            manufacturer: Some(h.manufacturer.clone()).filter(|m| !m.is_empty()),
            frame_of_reference: Some(h.frame_of_reference.clone()).filter(|f| !f.is_empty()),
            ..SeriesRow::default()
        };
        let (images, labels): (Vec<&Entry>, Vec<&Entry>) = entries.iter().partition(|e| classes::of(header(e)) == Class::Image);
        let headers: Vec<Header> = images.iter().map(|e| header(e).clone()).collect();
        let broken = damaged.get(&(study.clone(), series.clone())).map(|files| {
            let first = files.first().map(String::as_str).unwrap_or_default();
            format!("{} of its files cannot be used (the first: {first})", files.len())
        });
        let groups = group::split(&headers);
        for (volume, g) in groups.iter().enumerate() {
            image_rows(&mut made, g, volume, &images, &headers, &broken, &base, path_of);
        }
        for (i, e) in labels.iter().enumerate() {
            let h = header(e);
            let mut references: Vec<String> = h.references.iter().map(|r| name_of(study, r)).collect();
            if references.is_empty() {
                references = h.referenced_instances.iter().filter_map(|i| series_of_instance.get(i).cloned()).collect();
                references.sort();
                references.dedup();
            }
            let volume = (groups.len() + i) as i64;
            made.series.push(SeriesRow {
                volume,
                kind: if classes::of(h) == Class::Seg { "seg" } else { "rtstruct" }.into(),
                n_instances: 1,
                n_frames: h.n_frames as i64,
                rows: (h.rows > 0).then_some(h.rows as i64),
                columns: (h.columns > 0).then_some(h.columns as i64),
                references,
                labels: h.labels.clone(),
                ..base(h)
            });
            made.instances.push(instance_row(e, h, volume, &name_of(study, series), Vec::new(), 0, path_of(e)));
        }
        made.indexed.extend(entries.iter().map(|e| (e.name.clone(), what_it_is(header(e), e))));
    }
    niftis.iter().for_each(|e| nifti_rows(&mut made, e, names, path_of(e)));
    made.series.sort_by(|a, b| (&a.series, a.volume).cmp(&(&b.series, b.volume)));
    made.instances
        .sort_by(|a, b| (&a.series, a.volume, a.instance_number, &a.instance).cmp(&(&b.series, b.volume, b.instance_number, &b.instance)));
    made
}

fn header(e: &Entry) -> &Header {
    match &e.outcome {
        Outcome::Dicom(h) => h,
        _ => unreachable!("only DICOM files are put into series"),
    }
}

fn what_it_is(h: &Header, e: &Entry) -> String {
    let name = classes::name(&h.sop_class);
    let (Some(pixel), Some(frame)) = (h.pixel, h.frame_bytes()) else { return name };
    let there = if h.wrapping == Default::default() { e.seen.stat.bytes.saturating_sub(pixel.offset) } else { u64::MAX };
    match pixel.length {
        Some(length) if (length as u64) > there => format!("{name}, cut off: {there} of {length} bytes of pixels"),
        Some(length) if (length as u64) < frame => format!("{name}, too short: {length} of {frame} bytes of pixels"),
        _ => name,
    }
}

#[allow(clippy::too_many_arguments)]
fn image_rows(
    made: &mut Made,
    g: &Group,
    volume: usize,
    images: &[&Entry],
    headers: &[Header],
    broken: &Option<String>,
    base: &dyn Fn(&Header) -> SeriesRow,
    path_of: &dyn Fn(&Entry) -> PathBuf,
) {
    let first = &headers[g.members[0].file];
    let slices: Vec<Slice> = g.members.iter().map(|m| Slice::of(&headers[m.file], m.frame)).collect();
    let refused = broken.clone().or(g.refused.clone());
    let stack = match &refused {
        Some(why) => Err(why.clone()),
        None => order::stack(&slices, false),
    };
    let mut files: BTreeMap<usize, Vec<i64>> = BTreeMap::new();
    g.members.iter().for_each(|m| files.entry(m.file).or_default().push(m.frame as i64));
    let spacing = first.frames.get(g.members[0].frame).and_then(|f| f.spacing_mm);
    let row = SeriesRow {
        volume: volume as i64,
        kind: "image".into(),
        n_instances: files.len() as i64,
        n_frames: if g.refused.is_some() && g.members.len() == 1 { first.n_frames as i64 } else { g.members.len() as i64 },
        rows: Some(first.rows as i64),
        columns: Some(first.columns as i64),
        row_spacing_mm: spacing.map(|s| s[0]),
        column_spacing_mm: spacing.map(|s| s[1]),
        slice_spacing_mm: stack.as_ref().ok().map(|s| s.geometry.spacing_mm().z),
        irregular: stack.err(),
        refused,
        ..base(first)
    };
    for (f, frames) in files {
        let all = frames.len() == headers[f].frames.len();
        let first_frame = frames[0] as usize;
        let frames = if all { Vec::new() } else { frames };
        made.instances.push(instance_row(images[f], &headers[f], volume as i64, &row.series, frames, first_frame, path_of(images[f])));
    }
    made.series.push(row);
}

#[allow(clippy::too_many_arguments)]
fn instance_row(e: &Entry, h: &Header, volume: i64, series: &str, frames: Vec<i64>, first: usize, path: PathBuf) -> InstanceRow {
    let frame = h.frames.get(first);
    InstanceRow {
        series: series.to_string(),
        volume,
        instance: h.sop_instance.clone(),
        path: path.to_string_lossy().into_owned(),
        member: e.seen.member.clone(),
        file: e.name.clone(),
        content: e.content.clone(),
        seen: String::new(),
        size_bytes: e.seen.stat.bytes as i64,
        transfer_syntax: h.transfer_syntax.clone(),
        instance_number: h.instance_number,
        n_frames: h.n_frames as i64,
        frames,
        position_mm: frame.and_then(|f| f.position).map(Vec::from).unwrap_or_default(),
        orientation: frame.and_then(|f| f.orientation).map(Vec::from).unwrap_or_default(),
    }
}

/// A NIfTI file is a series of its own. Its name without ending stands for the patient: named like a PatientID, it meets the images of that patient under
/// pseudonyms as well.
fn nifti_rows(made: &mut Made, e: &Entry, names: &Names, path: PathBuf) {
    let file = &e.seen.file;
    let base = file.rsplit('/').next().unwrap_or(file);
    let lower = base.to_ascii_lowercase();
    let stem = &base[..base.len() - if lower.ends_with(".nii.gz") { 7 } else { 4 }];
    let series = names.of("series", file);
    made.series.push(SeriesRow {
        series: series.clone(),
        study: names.of("study", file.rsplit_once('/').map_or("", |(folder, _)| folder)),
        patient: names.of("patient", stem),
        kind: "nifti".into(),
        modality: "NIFTI".into(),
        description: names.text(stem),
        n_instances: 1,
        n_frames: 1,
        ..SeriesRow::default()
    });
    made.instances.push(InstanceRow {
        instance: names.of("instance", file),
        series,
        path: path.to_string_lossy().into_owned(),
        member: e.seen.member.clone(),
        file: e.name.clone(),
        content: e.content.clone(),
        size_bytes: e.seen.stat.bytes as i64,
        n_frames: 1,
        ..InstanceRow::default()
    });
    made.indexed.push((e.name.clone(), "NIfTI".into()));
}

/// Two files of one instance are compared voxel by voxel up to this size.
const MAX_COMPARED_VOXELS: u64 = 512 << 20;

struct Kept {
    entries: Vec<Entry>,
    conflicting: BTreeSet<String>,
}

/// One file an instance. Copies are left out; two different files that claim to be one instance are both left out, because nothing says which is true.
fn without_copies(mut entries: Vec<Entry>, made: &mut Made) -> Kept {
    entries.sort_by(|a, b| (&header(a).sop_instance, &a.content, &a.name).cmp(&(&header(b).sop_instance, &b.content, &b.name)));
    let mut kept: Vec<Entry> = Vec::new();
    let mut conflicting = BTreeSet::new();
    for e in entries {
        let twin = kept.last().filter(|k| !header(k).sop_instance.is_empty() && header(k).sop_instance == header(&e).sop_instance);
        let Some(twin) = twin else {
            kept.push(e);
            continue;
        };
        if twin.content == e.content {
            made.copies.push((e.name.clone(), format!("the same bytes as {}", twin.name)));
        } else if is_same_image(twin, &e) {
            made.copies.push((e.name.clone(), format!("the same instance and pixels as {}", twin.name)));
        } else {
            let why = |other: &Entry| format!("it and {} say that they are one instance, and their contents differ", other.name);
            if conflicting.insert(twin.name.clone()) {
                made.conflicts.push((twin.name.clone(), why(&e)));
            }
            conflicting.insert(e.name.clone());
            made.conflicts.push((e.name.clone(), why(twin)));
        }
    }
    kept.retain(|e| !conflicting.contains(&e.name));
    Kept { entries: kept, conflicting }
}

/// Equal voxels in equal places: the headers differ in what does not matter here (a corrected name, another lossless transfer syntax). Only images of a
/// size that is soon compared are looked at; whatever else has other bytes is another thing.
fn is_same_image(a: &Entry, b: &Entry) -> bool {
    let (x, y) = (header(a), header(b));
    let fits = |h: &Header| {
        let voxels = (h.rows as u64).checked_mul(h.columns as u64).and_then(|n| n.checked_mul(h.n_frames as u64));
        h.frames.len() == h.n_frames as usize && voxels.is_some_and(|n| n > 0 && n <= MAX_COMPARED_VOXELS)
    };
    if ![x, y].iter().all(|h| classes::of(h) == Class::Image && fits(h)) {
        return false;
    }
    let geometry = |h: &Header| (h.rows, h.columns, h.n_frames, h.frames.clone());
    let voxels = |e: &Entry| {
        let (path, member) = (e.seen.path.clone(), e.seen.member.clone());
        let file = FileRef { path, member, name: e.name.clone(), content: e.content.clone(), seen: String::new() };
        let frames: Vec<_> = (0..header(e).frames.len()).map(|f| (0, f)).collect();
        let how = How { keeps_colour: true, suv: None, step: &|_| Ok(()) };
        pixels::decode(&[file], std::slice::from_ref(header(e)), &frames, x.rows as usize, x.columns as usize, &how)
    };
    geometry(x) == geometry(y) && matches!((voxels(a), voxels(b)), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::dicom::scan::PixelElement;
    use crate::dicom::walk::Seen;

    fn entry(file: &str, content: &str, h: &Header) -> Entry {
        let seen = Seen { file: file.into(), path: file.into(), member: None, stat: Default::default() };
        Entry { seen, name: file.into(), content: content.into(), outcome: Outcome::Dicom(Box::new(h.clone())) }
    }

    fn conflicts(h: &Header) -> usize {
        let made = of(vec![entry("a", "1", h), entry("b", "2", h)], &BTreeMap::new(), &Names::Own, &|e| e.seen.path.clone());
        assert!(made.conflicts.iter().all(|(_, why)| why.contains("say that they are one instance, and their contents differ")));
        assert!(made.copies.is_empty());
        made.conflicts.len()
    }

    #[test]
    fn two_structure_sets_of_one_instance_stand_against_each_other() {
        let sop_class = "1.2.840.10008.5.1.4.1.1.481.3".to_string();
        assert_eq!(conflicts(&Header { sop_class, sop_instance: "1.2".into(), n_frames: 1, ..Header::default() }), 2);
    }

    #[test]
    fn twins_that_claim_to_be_huge_are_not_compared_by_their_pixels() {
        let h = Header {
            sop_class: "1.2.840.10008.5.1.4.1.1.4.1".into(),
            sop_instance: "1.2".into(),
            rows: 65535,
            columns: 65535,
            n_frames: 40,
            frames: vec![Default::default(); 40],
            pixel: Some(PixelElement { tag: 0x7FE0_0010, offset: 0, length: None }),
            ..Header::default()
        };
        assert_eq!(conflicts(&h), 2);
    }
}
