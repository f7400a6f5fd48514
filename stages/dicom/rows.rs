//! Headers → rows of the index: which files form which series and volume, under which name. The headers carry their own ids or pseudonyms already. Series
//! are made side by side, each with its headers in memory for as long as it takes.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;

use rayon::prelude::*;
use voxmill_schemas::tables::{InstanceRow, SeriesRow};

use super::catalog::{Catalog, Entry, Outcome};
use super::classes::{self, Class};
use super::group::{self, Group};
use super::header::Header;
use super::names::FileNames;
pub use super::names::Names;
use super::names::patient_of;
use super::order::{self, Slice};
use super::places;

/// The index, and the verdicts that only came out in making it.
#[derive(Debug, Default)]
pub struct Made {
    pub series: Vec<SeriesRow>,
    pub instances: Vec<InstanceRow>,
    /// File → what it is.
    pub indexed: Vec<(String, String)>,
    /// File → of which file it is a copy.
    pub copies: Vec<(String, String)>,
    /// File → why it cannot be used: cut off, or with which file it cannot stand together.
    pub conflicts: Vec<(String, String)>,
    /// Names of labels that held what tells who the patient is.
    pub hidden_labels: u64,
    /// Files that claim to be one image and do not even agree in where it stands.
    pub(super) unclear: BTreeSet<String>,
    /// (series, volume) of labels that name no series → the instances they name.
    pending: Vec<((String, i64), Vec<String>)>,
}

/// (study, series) UIDs: what makes a series. A series UID that two studies use is two series.
type SeriesKey = (String, String);

/// A file with its header.
pub(super) struct File<'a> {
    pub entry: &'a Entry,
    /// What messages and tables call it: its place in the archive, or pseudonyms of it.
    pub name: String,
    pub header: Box<Header>,
    /// blake3 of its bytes, where it was asked for.
    pub content: String,
    /// All files that claim to be this instance, cut off or of other contents, it among them: it only says where that instance would stand.
    pub disputed: Vec<String>,
}

/// Files that cannot be used: in what they are missing.
#[derive(Debug, Default)]
pub struct Lost {
    /// Where the file says its series: file → what is wrong with it.
    pub of_series: BTreeMap<SeriesKey, BTreeMap<String, String>>,
    /// Where it says none: by the folder of the archive that it stands in.
    pub of_folder: BTreeMap<String, Vec<String>>,
}

/// What the rows of a series are made with.
pub(super) struct Making<'a> {
    catalog: &'a Catalog,
    names: &'a Names,
    /// The archive's folder, absolute.
    root: PathBuf,
    /// Series UIDs that several studies use.
    shared: HashSet<&'a str>,
    lost: &'a Lost,
    /// Under pseudonyms: patient or study → marks of who the patient is, by all files.
    who: HashMap<String, HashSet<String>>,
}

/// Makes the rows, sorted, the same for any order and naming of the files.
pub fn of(catalog: &Catalog, lost: &Lost, names: &Names) -> Made {
    let mut entries: Vec<Vec<&Entry>> = vec![Vec::new(); catalog.series.len()];
    let mut niftis = Vec::new();
    for e in &catalog.entries {
        match &e.outcome {
            Outcome::Dicom(b) => entries[b.series as usize].push(e),
            Outcome::Nifti => niftis.push(e),
            _ => {}
        }
    }
    let of_series = catalog.series.iter().zip(entries).filter(|(_, entries)| !entries.is_empty());
    let by_series: BTreeMap<(&str, &str), Vec<&Entry>> = of_series.map(|(s, entries)| ((&*s.study, &*s.series), entries)).collect();
    let mut studies: HashMap<&str, &str> = HashMap::new();
    let shared = by_series.keys().filter(|(study, series)| studies.insert(series, study).is_some()).map(|(_, series)| *series).collect();
    let root = std::path::absolute(&catalog.root).unwrap_or_else(|_| catalog.root.clone());
    let who = who(catalog, names);
    let m = Making { catalog, names, root, shared, lost, who };
    let of_series = |(series, entries): (&(&str, &str), &Vec<&Entry>)| {
        let mut part = m.series(*series, entries);
        // Here, side by side: what is left to sort of the whole is little.
        part.instances.sort_by(in_order);
        part.indexed.sort_by(|a, b| a.0.cmp(&b.0));
        part
    };
    let parts: Vec<Made> = by_series.par_iter().map(of_series).collect();
    let mut made = Made::default();
    made.instances.reserve(parts.iter().map(|p| p.instances.len()).sum());
    made.indexed.reserve(parts.iter().map(|p| p.indexed.len()).sum());
    for part in parts {
        made.series.extend(part.series);
        made.instances.extend(part.instances);
        made.indexed.extend(part.indexed);
        made.copies.extend(part.copies);
        made.conflicts.extend(part.conflicts);
        made.hidden_labels += part.hidden_labels;
        made.pending.extend(part.pending);
    }
    made.find_references();
    niftis.iter().for_each(|e| m.nifti(e, &mut made));
    made.series.par_sort_by(|a, b| (&a.series, a.volume).cmp(&(&b.series, b.volume)));
    made.instances.par_sort_by(in_order);
    made
}

/// What the files of a patient and of a study say of who that is; only names of labels are asked for it.
fn who(catalog: &Catalog, names: &Names) -> HashMap<String, HashSet<String>> {
    let is_label = |e: &&Entry| matches!(&e.outcome, Outcome::Dicom(b) if b.class != Class::Image);
    let mut who: HashMap<String, HashSet<String>> = HashMap::new();
    if matches!(names, Names::Own) {
        return who;
    }
    for h in catalog.entries.iter().filter(is_label).filter_map(|e| catalog.header(e)) {
        who.insert(h.study.clone(), HashSet::new());
        who.insert(patient_of(&h), HashSet::new());
    }
    if who.is_empty() {
        return who;
    }
    let told = |e: &Entry| catalog.header(e).map(|h| (patient_of(&h), h.study.clone(), h.marks.clone()));
    let told: HashSet<(String, String, String)> = catalog.entries.par_iter().filter_map(told).collect();
    for (patient, study, marks) in told {
        for of in [patient, study] {
            if let Some(all) = who.get_mut(&of) {
                all.extend(marks.split(' ').map(String::from));
            }
        }
    }
    who
}

fn in_order(a: &InstanceRow, b: &InstanceRow) -> Ordering {
    (&a.series, a.volume, a.instance_number, &a.instance).cmp(&(&b.series, b.volume, b.instance_number, &b.instance))
}

impl Made {
    /// Labels that name instances only refer to the series that these are in.
    fn find_references(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let wanted: HashSet<&String> = self.pending.iter().flat_map(|(_, instances)| instances).collect();
        let found: HashMap<&str, &str> =
            self.instances.iter().filter(|i| wanted.contains(&i.instance)).map(|i| (i.instance.as_str(), i.series.as_str())).collect();
        let mut rows: HashMap<(&str, i64), &mut Vec<String>> =
            self.series.iter_mut().map(|s| ((s.series.as_str(), s.volume), &mut s.references)).collect();
        for ((series, volume), instances) in &self.pending {
            let mut references: Vec<String> = instances.iter().filter_map(|i| found.get(i.as_str()).map(|s| s.to_string())).collect();
            references.sort();
            references.dedup();
            if let Some(row) = rows.get_mut(&(series.as_str(), *volume)) {
                **row = references;
            }
        }
    }
}

impl Making<'_> {
    fn name_of(&self, study: &str, series: &str) -> String {
        if self.shared.contains(series) { self.names.of("series", &format!("{series}@{study}")) } else { series.to_string() }
    }

    pub(super) fn path_of(&self, e: &Entry) -> PathBuf {
        self.root.join(&e.seen.file)
    }

    fn series(&self, (study, series): (&str, &str), entries: &[&Entry]) -> Made {
        let mut made = Made::default();
        let mut names = FileNames::new(self.names);
        let mut files = Vec::with_capacity(entries.len());
        for entry in entries {
            let Some(header) = self.catalog.header(entry) else { continue };
            let name = names.of(&entry.seen.place());
            files.push(File { entry, name, header: Box::new(header), content: String::new(), disputed: Vec::new() });
        }
        let files = self.without_cut_off(files, &mut made);
        let files = self.without_copies(files, &mut made);
        // What a file without a header would have been is not known: it could be a part of any volume.
        let mut damaged = self.lost.of_series.get(&(study.to_string(), series.to_string())).cloned().unwrap_or_default();
        damaged.extend(std::mem::take(&mut made.unclear).into_iter().map(|file| (file, String::new())));
        damaged.extend(made.conflicts.iter().filter(|(file, _)| damaged.contains_key(file)).cloned().collect::<Vec<_>>());
        let base = |h: &Header| SeriesRow {
            series: self.name_of(study, series),
            study: study.to_string(),
            patient: patient_of(h),
            modality: h.modality.clone(),
            sop_class: h.sop_class.clone(),
            description: Some(h.description.clone()).filter(|d| !d.is_empty()),
            body_part: Some(h.body_part.clone()).filter(|b| !b.is_empty()),
            manufacturer: Some(h.manufacturer.clone()).filter(|m| !m.is_empty()),
            frame_of_reference: Some(h.frame_of_reference.clone()).filter(|f| !f.is_empty()),
            ..SeriesRow::default()
        };
        made.indexed.extend(files.iter().filter(|f| f.disputed.is_empty()).map(|f| (f.name.clone(), what_it_is(&f.header))));
        let mut labels = Vec::new();
        let (mut images, mut headers) = (Vec::new(), Vec::new());
        for f in files {
            if classes::of(&f.header) == Class::Image {
                images.push((f.entry, f.name, f.disputed));
                headers.push(*f.header);
            } else {
                labels.push(f);
            }
        }
        let groups = group::split(&headers);
        for (volume, g) in groups.iter().enumerate() {
            self.image_rows(&mut made, g, volume, &images, &headers, &damaged, &base);
        }
        for (i, mut f) in labels.into_iter().enumerate() {
            for of in [patient_of(&f.header), f.header.study.clone()] {
                if let Some(marks) = self.who.get(&of) {
                    self.names.hide_labels_by(&mut f.header, marks);
                }
            }
            let h = &f.header;
            made.hidden_labels += u64::from(h.hidden_labels);
            let volume = (groups.len() + i) as i64;
            let row = SeriesRow {
                volume,
                kind: if classes::of(h) == Class::Seg { "seg" } else { "rtstruct" }.into(),
                n_instances: 1,
                n_frames: h.n_frames as i64,
                rows: (h.rows > 0).then_some(h.rows as i64),
                columns: (h.columns > 0).then_some(h.columns as i64),
                references: h.references.iter().map(|r| self.name_of(study, r)).collect(),
                labels: h.labels.clone(),
                ..base(h)
            };
            if row.references.is_empty() && !h.referenced_instances.is_empty() {
                made.pending.push(((row.series.clone(), volume), h.referenced_instances.clone()));
            }
            let place = places::written(self.names, &self.root, &f.entry.seen);
            made.instances.push(instance_row(f.entry, place, &f.name, h, volume, &row.series, Vec::new(), 0));
            made.series.push(row);
        }
        made
    }

    #[allow(clippy::too_many_arguments)]
    fn image_rows(
        &self,
        made: &mut Made,
        g: &Group,
        volume: usize,
        images: &[(&Entry, String, Vec<String>)],
        headers: &[Header],
        damaged: &BTreeMap<String, String>,
        base: &dyn Fn(&Header) -> SeriesRow,
    ) {
        // A volume of which an instance is disputed has no true contents; the other volumes of the series have theirs.
        let mut damaged = damaged.clone();
        let disputed: HashSet<&String> = g.members.iter().flat_map(|m| &images[m.file].2).collect();
        damaged.extend(made.conflicts.iter().filter(|(file, _)| disputed.contains(file)).cloned());
        let told = |(first, why): (&String, &String)| format!("{} of its files cannot be used (the first, {first}: {why})", damaged.len());
        let broken = damaged.first_key_value().map(told);
        let members: Vec<_> = g.members.iter().filter(|m| images[m.file].2.is_empty()).copied().collect();
        if members.is_empty() {
            return;
        }
        let g = &Group { members, ..g.clone() };
        let first = &headers[g.members[0].file];
        let slices: Vec<Slice> = g.members.iter().map(|m| Slice::of(&headers[m.file], m.frame)).collect();
        let refused = broken.or(g.refused.clone());
        let stack = match &refused {
            Some(why) => Err(why.clone()),
            None if g.is_loop => Err(format!("{} ({})", order::told_loop(first.n_frames), order::LOOP_HELP)),
            None => order::stack(&slices, &order::How::default()),
        };
        let mut files: BTreeMap<usize, Vec<i64>> = BTreeMap::new();
        g.members.iter().for_each(|m| files.entry(m.file).or_default().push(m.frame as i64));
        let spacing = first.frames.get(g.members[0].frame).and_then(|f| f.spacing_mm);
        let row = SeriesRow {
            volume: volume as i64,
            kind: "image".into(),
            n_instances: files.len() as i64,
            n_frames: if g.is_loop || (g.refused.is_some() && g.members.len() == 1) {
                first.n_frames as i64
            } else {
                g.members.len() as i64
            },
            rows: Some(first.slice_size()[0] as i64),
            columns: Some(first.slice_size()[1] as i64),
            row_spacing_mm: spacing.map(|s| s[0]),
            column_spacing_mm: spacing.map(|s| s[1]),
            slice_spacing_mm: stack.as_ref().ok().map(|s| s.geometry.spacing_mm().z),
            repeat_of: Some(g.repeat_of as i64),
            repeat: Some(g.repeat as i64),
            time_s: g.time_s,
            echo_time_ms: g.echo_time_ms,
            b_value: g.b_value,
            lost_beside: stack
                .as_ref()
                .err()
                .filter(|_| refused.is_none())
                .and_then(|_| self.lost_beside(files.keys().map(|f| images[*f].0))),
            irregular: stack.err(),
            refused,
            ..base(first)
        };
        let places = places::all_written(self.names, &self.root, files.keys().map(|f| &images[*f].0.seen));
        made.instances.reserve(files.len());
        for ((f, frames), place) in files.into_iter().zip(places) {
            let all = frames.len() == headers[f].frames.len();
            let first_frame = frames[0] as usize;
            let frames = if all { Vec::new() } else { frames };
            let (entry, name, _) = &images[f];
            made.instances.push(instance_row(entry, place, name, &headers[f], volume as i64, &row.series, frames, first_frame));
        }
        made.series.push(row);
    }

    /// The files that could not be read and say no series, in the folders where these stand: one of them may be the slice that is missing.
    fn lost_beside<'e>(&self, entries: impl Iterator<Item = &'e Entry>) -> Option<String> {
        let folders: BTreeSet<String> = entries.map(|e| folder_of(&e.seen.place()).to_string()).collect();
        let lost: Vec<&String> = folders.iter().filter_map(|f| self.lost.of_folder.get(f)).flatten().collect();
        let first = lost.iter().min()?;
        Some(format!("beside its slices {} could not be read, the first: {first}", order::count(lost.len(), "file")))
    }

    /// A NIfTI file is a series of its own. Its name without ending stands for the patient: named like a PatientID, it meets the images of that patient under
    /// pseudonyms as well.
    fn nifti(&self, e: &Entry, made: &mut Made) {
        let (names, file) = (self.names, &*e.seen.place());
        let base = file.rsplit('/').next().unwrap_or(file);
        let ending = if base.to_ascii_lowercase().ends_with(".nii.gz") { 7 } else { 4 };
        let stem = &base[..base.len() - ending];
        let series = names.of("series", file);
        let name = names.file(file);
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
        let (path, member) = places::written(names, &self.root, &e.seen);
        made.instances.push(InstanceRow {
            instance: names.of("instance", file),
            series,
            path,
            member,
            file: name.clone(),
            size_bytes: e.seen.bytes as i64,
            n_frames: 1,
            ..InstanceRow::default()
        });
        made.indexed.push((name, "NIfTI".into()));
    }
}

type Place = (String, Option<String>);

#[allow(clippy::too_many_arguments)]
fn instance_row(
    e: &Entry,
    (path, member): Place,
    name: &str,
    h: &Header,
    volume: i64,
    series: &str,
    frames: Vec<i64>,
    first: usize,
) -> InstanceRow {
    let frame = h.frames.get(first);
    InstanceRow {
        series: series.to_string(),
        volume,
        instance: h.sop_instance.clone(),
        path,
        member,
        file: name.to_string(),
        content: String::new(),
        seen: String::new(),
        size_bytes: e.seen.bytes as i64,
        transfer_syntax: h.transfer_syntax.clone(),
        instance_number: h.instance_number,
        n_frames: h.n_frames as i64,
        frames,
        position_mm: frame.and_then(|f| f.position).map(Vec::from).unwrap_or_default(),
        orientation: frame.and_then(|f| f.orientation).map(Vec::from).unwrap_or_default(),
    }
}

/// The folder of a place in the archive; of a member of a container that inside it.
pub fn folder_of(place: &str) -> &str {
    place.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn what_it_is(h: &Header) -> String {
    let mut what = classes::name(&h.sop_class);
    if !h.odd_uids.is_empty() {
        what = format!("{what}; {} kept as found, although no UID (PS3.5 section 9.1)", h.odd_uids.join(", "));
    }
    what
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::dicom::catalog::SeriesKey;
    use crate::dicom::catalog::{Brief, Packed};
    use crate::dicom::header::Common;
    use crate::dicom::pattern::Pattern;
    use crate::dicom::scan::PixelElement;
    use crate::dicom::walk::Seen;

    fn catalog(headers: &[(&str, &Header)]) -> Catalog {
        let pattern = Pattern::default();
        let entry = |(file, h): &(&str, &Header)| {
            let seen = Seen { file: file.to_string(), member: None, stat: Default::default(), bytes: 0 };
            let packed = Packed(pattern.pack(h).into());
            Entry { seen, outcome: Outcome::Dicom(Brief { series: 0, class: classes::of(h), packed }) }
        };
        let (study, series) = (headers[0].1.study.clone(), headers[0].1.series.clone());
        Catalog {
            root: PathBuf::from("nowhere"),
            entries: headers.iter().map(entry).collect(),
            series: vec![SeriesKey { study, series, pattern: pattern.clone() }],
        }
    }

    fn conflicts(h: &Header) -> usize {
        let made = of(&catalog(&[("a", h), ("b", h)]), &Lost::default(), &Names::Own);
        assert!(made.conflicts.iter().all(|(_, why)| why.contains("say that they are one instance, and their contents differ")));
        assert!(made.copies.is_empty());
        made.conflicts.len()
    }

    /// Slices of two echoes, 4 mm apart.
    fn slice(echo: i64, k: i64) -> Header {
        let frame = super::super::header::FrameHeader {
            position: Some([0.0, 0.0, 4.0 * k as f64]),
            orientation: Some([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
            spacing_mm: Some([1.0, 1.0]),
            echo_time_ms: Some(10.0 * echo as f64),
            echo_number: Some(echo),
            ..Default::default()
        };
        let sop_class = "1.2.840.10008.5.1.4.1.1.4".into();
        Header {
            sop_instance: format!("1.{echo}.{k}"),
            instance_number: Some(10 * echo + k),
            frames: vec![frame],
            pixel: Some(PixelElement { tag: 0x7FE0_0010, offset: 0, length: None }),
            ..Common { sop_class, rows: 4, columns: 4, n_frames: 1, samples: 1, ..Common::default() }.into()
        }
    }

    #[test]
    fn a_disputed_instance_refuses_its_volume_and_no_other_of_the_series() {
        let slices: Vec<Header> = (1..=2).flat_map(|echo| (0..4).map(move |k| slice(echo, k))).collect();
        let names: Vec<String> = (0..slices.len()).map(|i| format!("f{i}")).collect();
        let mut files: Vec<(&str, &Header)> = names.iter().map(String::as_str).zip(&slices).collect();
        files.push(("twin", &slices[6]));
        let made = of(&catalog(&files), &Lost::default(), &Names::Own);
        let told = |made: &Made| made.series.iter().map(|s| (s.n_instances, s.refused.clone().unwrap_or_default())).collect::<Vec<_>>();
        assert_eq!(
            told(&made),
            [
                (4, String::new()),
                (
                    3,
                    "2 of its files cannot be used (the first, f6: it and twin say that they are one instance, and their contents differ)"
                        .to_string()
                )
            ]
        );
        assert!(made.instances.iter().all(|i| i.file != "f6" && i.file != "twin"), "neither is chosen");
        assert_eq!((made.conflicts.len(), made.indexed.len(), made.instances.len()), (2, 7, 7));

        // They do not even agree in where they stand: either could be a part of any volume.
        let moved = Header { sop_instance: slices[6].sop_instance.clone(), ..slice(1, 9) };
        *files.last_mut().unwrap() = ("twin", &moved);
        let made = of(&catalog(&files), &Lost::default(), &Names::Own);
        assert!(told(&made).iter().all(|(_, why)| why.starts_with("2 of its files cannot be used")), "{:?}", told(&made));
    }

    /// Not a promise of a time: what was quadratic took minutes here.
    #[test]
    fn labels_of_many_series_find_their_images_one_by_one() {
        let n = 10_000;
        let row = |i: usize| SeriesRow { series: format!("s{i}"), ..SeriesRow::default() };
        let mut made = Made {
            series: (0..2 * n).map(row).collect(),
            instances: (0..n)
                .map(|i| InstanceRow { series: format!("s{i}"), instance: format!("i{i}"), ..InstanceRow::default() })
                .collect(),
            pending: (0..n).map(|i| ((format!("s{}", n + i), 0), vec![format!("i{i}")])).collect(),
            ..Made::default()
        };
        made.find_references();
        assert!(made.series[n..].iter().enumerate().all(|(i, s)| s.references == [format!("s{i}")]));
    }

    #[test]
    fn two_structure_sets_of_one_instance_stand_against_each_other() {
        let sop_class = "1.2.840.10008.5.1.4.1.1.481.3".to_string();
        let common = Common { sop_class, n_frames: 1, ..Common::default() };
        assert_eq!(conflicts(&Header { sop_instance: "1.2".into(), ..common.into() }), 2);
    }

    #[test]
    fn twins_that_claim_to_be_huge_are_not_compared_by_their_pixels() {
        let sop_class = "1.2.840.10008.5.1.4.1.1.4.1".into();
        let h = Header {
            sop_instance: "1.2".into(),
            frames: vec![Default::default(); 40],
            pixel: Some(PixelElement { tag: 0x7FE0_0010, offset: 0, length: None }),
            ..Common { sop_class, rows: 65535, columns: 65535, n_frames: 40, ..Common::default() }.into()
        };
        assert_eq!(conflicts(&h), 2);
    }
}
