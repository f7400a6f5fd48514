//! Every file of an archive, side by side: read once, written once, beside its place and renamed. What stands there already with the same bytes is left
//! alone, so a run that was stopped is simply run again. Files are not synced one by one: a crash of the machine may leave some short, and the next run
//! finds them different and writes them anew.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rayon::prelude::*;
use voxmill_schemas::tables::{DeidentifiedRow, InstanceRow};

use super::file::{self, Made, Outcome, Rules};
use crate::dicom::bytes::{DEFLATED, Source};
use crate::dicom::{places, scan};
use crate::error::Error;

/// Files up to this size are read at once; of larger ones the pixels pass through a small buffer.
const WHOLE_BYTES: u64 = 32 << 20;
/// What stands before the pixels may be this large.
const MAX_HEAD_BYTES: u64 = 512 << 20;
const PART_BYTES: u64 = 1 << 20;

/// A file to de-identify.
#[derive(Clone, Debug)]
pub struct Item {
    pub path: PathBuf,
    /// Its place inside `path`, where that is a container.
    pub member: Option<String>,
    /// What messages and tables call it: pseudonyms.
    pub name: String,
}

/// The DICOM files of an index. One whose frames make several volumes has several rows there; a NIfTI file is none of DICOM.
/// - `name`: what the file of a row is called
pub fn items(instances: Vec<InstanceRow>, name: impl Fn(&str) -> String) -> Vec<Item> {
    let mut seen = HashSet::new();
    let mut is_new = |i: &InstanceRow| !i.transfer_syntax.is_empty() && seen.insert((i.path.clone(), i.member.clone()));
    let item = |i: InstanceRow| Item { name: name(&i.file), path: i.path.into(), member: i.member };
    instances.into_iter().filter(|i| is_new(i)).map(item).collect()
}

/// De-identifies files into `out/PATIENT/STUDY/SERIES/INSTANCE.dcm`. One row a file, in the order of `items`, whatever the number of threads.
/// - `step`: told the bytes of each file; an error from it stops the work
pub fn run(
    items: &[Item],
    out: &Path,
    rules: &Rules,
    step: &(dyn Fn(u64) -> Result<(), Error> + Sync),
) -> Result<Vec<DeidentifiedRow>, Error> {
    let claimed = Mutex::new(HashMap::new());
    let ends: Vec<End> = items
        .par_iter()
        .enumerate()
        .map_init(Vec::new, |buffer, (i, item)| one(i, item, out, rules, step, &claimed, buffer))
        .collect::<Result<_, Error>>()?;
    let mut rows: Vec<DeidentifiedRow> = ends.iter().zip(items).map(|(end, item)| row(end, item)).collect();
    settle(&ends, items, out, rules, &mut rows)?;
    Ok(rows)
}

/// What was done, in numbers that add up: seen = written + unchanged + skipped + refused + failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    pub seen: u64,
    pub verdicts: BTreeMap<String, u64>,
    /// Skipped files by what they are.
    pub skipped: BTreeMap<String, u64>,
    /// Elements of all files by what became of them.
    pub elements: BTreeMap<&'static str, i64>,
    /// Written files whose pixels may show who the patient is.
    pub risks: u64,
    /// Written files of whose slices a face may be made.
    pub may_show_face: u64,
}

impl Counts {
    pub fn of(rows: &[DeidentifiedRow]) -> Self {
        let mut c = Self { seen: rows.len() as u64, ..Self::default() };
        c.verdicts = ["written", "unchanged", "skipped", "refused", "failed"].map(|v| (v.to_string(), 0)).into();
        for r in rows {
            *c.verdicts.entry(r.verdict.clone()).or_default() += 1;
            match r.verdict.as_str() {
                "skipped" => {
                    let what = if r.instance.is_empty() { r.why.as_str() } else { "copy" };
                    *c.skipped.entry(what.to_string()).or_default() += 1;
                }
                "written" | "unchanged" => {
                    c.risks += r.risk.is_some() as u64;
                    c.may_show_face += r.may_show_face as u64;
                    for (what, n) in [
                        ("kept", r.kept),
                        ("removed", r.removed),
                        ("private", r.private),
                        ("emptied", r.emptied),
                        ("replaced", r.replaced),
                        ("uids", r.uids),
                        ("dates", r.dates),
                        ("pseudonyms", r.pseudonyms),
                        ("echoes", r.echoes),
                    ] {
                        *c.elements.entry(what).or_default() += n;
                    }
                }
                _ => {}
            }
        }
        c
    }

    /// Files that were not even tried: skipped by what they are, and those that are broken.
    pub fn untried(&mut self, classes: &BTreeMap<String, u64>, failed: u64) {
        for (class, n) in classes.iter().filter(|(_, n)| **n > 0) {
            *self.skipped.entry(class.clone()).or_default() += n;
        }
        let skipped: u64 = classes.values().sum();
        *self.verdicts.entry("skipped".into()).or_default() += skipped;
        *self.verdicts.entry("failed".into()).or_default() += failed;
        self.seen += skipped + failed;
    }

    pub fn verdict(&self, verdict: &str) -> u64 {
        self.verdicts.get(verdict).copied().unwrap_or(0)
    }

    /// The same in sentences.
    pub fn report(&self) -> Vec<String> {
        let n = |verdict: &str| self.verdict(verdict);
        let mut out = vec![format!(
            "{} files: {} written, {} unchanged, {} skipped, {} refused, {} failed",
            self.seen,
            n("written"),
            n("unchanged"),
            n("skipped"),
            n("refused"),
            n("failed")
        )];
        if !self.skipped.is_empty() {
            let list: Vec<_> = self.skipped.iter().map(|(what, n)| format!("{n} {what}")).collect();
            out.push(format!("skipped: {}", list.join(", ")));
        }
        let e = |what: &str| self.elements.get(what).copied().unwrap_or(0);
        out.push(format!(
            "elements: {} kept, {} removed ({} private or unknown), {} emptied, {} replaced, {} UIDs, {} dates moved, {} pseudonyms",
            e("kept"),
            e("removed"),
            e("private"),
            e("emptied"),
            e("replaced"),
            e("uids"),
            e("dates"),
            e("pseudonyms")
        ));
        if e("echoes") > 0 {
            out.push(format!("{} elements that would have stayed held a name or id of their patient, and do not any more", e("echoes")));
        }
        if n("refused") > 0 {
            out.push(format!(
                "{} images are left out because their pixels may show who the patient is: look at them, then burned_in: keep or flag",
                n("refused")
            ));
        }
        if self.risks > 0 {
            out.push(format!("{} written images may show who the patient is in their pixels", self.risks));
        }
        if self.may_show_face > 0 {
            out.push(format!("of {} written images a face may be made: nothing is done about that", self.may_show_face));
        }
        out
    }
}

/// How it ended for one file.
struct End {
    verdict: &'static str,
    why: String,
    made: Option<Made>,
    /// Another file has the same place: which of them it is comes out at the end.
    is_late: bool,
}

impl End {
    fn none(verdict: &'static str, why: impl Into<String>) -> Self {
        Self { verdict, why: why.into(), made: None, is_late: false }
    }
}

/// The bytes of a file, as much as is in memory.
struct Input<'a> {
    bytes: &'a [u8],
    len: u64,
    more: Option<&'a Source>,
}

fn one(
    index: usize,
    item: &Item,
    out: &Path,
    rules: &Rules,
    step: &(dyn Fn(u64) -> Result<(), Error> + Sync),
    claimed: &Mutex<HashMap<PathBuf, usize>>,
    buffer: &mut Vec<u8>,
) -> Result<End, Error> {
    let unread = |e: std::io::Error| Ok(End::none("failed", format!("cannot be read: {e}")));
    let source = match open(item, buffer) {
        Ok(source) => source,
        Err(e) => return unread(e),
    };
    let len = source.as_ref().map_or(buffer.len() as u64, Source::len);
    step(len)?;
    if len == 0 {
        return Ok(End::none("failed", "an empty file (0 bytes)"));
    }
    let Some(source) = source else {
        let input = Input { bytes: buffer, len, more: None };
        return Ok(
            make(index, input, out, rules, claimed)?.unwrap_or_else(|| End::none("failed", "the file ends before its data set begins"))
        );
    };
    let mut wanted = len.min(1 << 20);
    loop {
        let start = match source.read_at(0, wanted as usize) {
            Ok(start) => start,
            Err(e) => return unread(e),
        };
        let input = Input { bytes: &start, len, more: Some(&source) };
        if let Some(end) = make(index, input, out, rules, claimed)? {
            return Ok(end);
        }
        if wanted == len.min(MAX_HEAD_BYTES) {
            return Ok(End::none("failed", format!("its header is larger than {} MiB", MAX_HEAD_BYTES >> 20)));
        }
        wanted = (wanted * 4).min(len).min(MAX_HEAD_BYTES);
    }
}

/// A file of usual size is read whole into the buffer (`None`); everything else is opened: members of containers, what is compressed, what is large.
fn open(item: &Item, buffer: &mut Vec<u8>) -> std::io::Result<Option<Source>> {
    if item.member.is_none() {
        let mut file = File::open(places::path(&item.path))?;
        let len = file.metadata()?.len();
        if len <= WHOLE_BYTES {
            buffer.resize(len as usize, 0);
            file.read_exact(buffer)?;
            if !is_wrapped(buffer) {
                return Ok(None);
            }
        }
    }
    Source::open_at(&item.path, item.member.as_deref()).map(Some)
}

fn is_wrapped(bytes: &[u8]) -> bool {
    let is_packed = bytes.starts_with(&[0x1f, 0x8b, 8]) || bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    is_packed || scan::meta(bytes).is_some_and(|m| m.transfer_syntax == DEFLATED)
}

/// `None`: the pixels begin behind the bytes that are there.
fn make(index: usize, input: Input, out: &Path, rules: &Rules, claimed: &Mutex<HashMap<PathBuf, usize>>) -> Result<Option<End>, Error> {
    let made = match file::make(input.bytes, input.len, rules, &|at, n| read_at(&input, at, n)) {
        Outcome::Made(made) => *made,
        Outcome::Skipped(why) => return Ok(Some(End::none("skipped", why))),
        Outcome::Refused(why) => return Ok(Some(End::none("refused", why))),
        Outcome::Failed(why) => return Ok(Some(End::none("failed", why))),
        Outcome::NeedsMore => return Ok(None),
    };
    let target = place(out, &made);
    let is_first = *claimed.lock().expect("no thread panics while it claims").entry(target.clone()).or_insert(index) == index;
    let why = made.class.clone();
    if !is_first {
        return Ok(Some(End { verdict: "skipped", why, made: Some(made), is_late: true }));
    }
    let verdict = if is_there(&target, &made, &input).unwrap_or(false) {
        "unchanged"
    } else {
        match write(&target, &made, &input) {
            Ok(()) => "written",
            Err(Fault::Read(e)) => return Ok(Some(End::none("failed", format!("cannot be read: {e}")))),
            Err(Fault::Write(e)) => return Err(e),
        }
    };
    Ok(Some(End { verdict, why, made: Some(Made { head: Vec::new(), tail: Vec::new(), ..made }), is_late: false }))
}

fn place(out: &Path, made: &Made) -> PathBuf {
    out.join(&made.patient).join(&made.study).join(&made.series).join(format!("{}.dcm", made.instance))
}

fn read_at(input: &Input, at: u64, n: usize) -> std::io::Result<Vec<u8>> {
    match input.more {
        Some(source) => source.read_at(at, n),
        None => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

enum Fault {
    Read(std::io::Error),
    Write(Error),
}

/// Gives the new file piece by piece.
fn pieces(made: &Made, input: &Input, give: &mut dyn FnMut(&[u8]) -> Result<(), Fault>) -> Result<(), Fault> {
    let pixels = made.pixels.start as usize..made.pixels.end as usize;
    if let Some(from) = made.deflate_from {
        // What was deflated has been unfolded into memory; it is read again only where it is large.
        let all;
        let pixels = match (input.bytes.get(pixels.clone()), input.more) {
            (Some(pixels), _) => pixels,
            (None, Some(source)) => {
                all = source.read_at(made.pixels.start, pixels.len()).map_err(Fault::Read)?;
                &all
            }
            (None, None) => return Err(Fault::Read(std::io::ErrorKind::UnexpectedEof.into())),
        };
        let mut deflated = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        [&made.head[from..], pixels, &made.tail].iter().try_for_each(|part| deflated.write_all(part)).map_err(Fault::Read)?;
        let mut deflated = deflated.finish().map_err(Fault::Read)?;
        deflated.extend(std::iter::repeat_n(0, deflated.len() % 2));
        give(&made.head[..from])?;
        return give(&deflated);
    }
    give(&made.head)?;
    match (input.bytes.get(pixels.clone()), input.more) {
        (Some(pixels), _) => give(pixels)?,
        (None, Some(source)) => {
            let (mut at, end) = (made.pixels.start, made.pixels.end);
            while at < end {
                let n = (end - at).min(PART_BYTES);
                give(&source.read_at(at, n as usize).map_err(Fault::Read)?)?;
                at += n;
            }
        }
        (None, None) => return Err(Fault::Read(std::io::ErrorKind::UnexpectedEof.into())),
    }
    give(&made.tail)
}

/// Whether the new file stands in its place already.
fn is_there(target: &Path, made: &Made, input: &Input) -> std::io::Result<bool> {
    let Ok(file) = File::open(target) else { return Ok(false) };
    let expected = (made.head.len() + made.tail.len()) as u64 + made.pixels.end - made.pixels.start;
    if made.deflate_from.is_none() && file.metadata()?.len() != expected {
        return Ok(false);
    }
    let mut file = std::io::BufReader::with_capacity(1 << 16, file);
    let mut there = Vec::new();
    let mut same = true;
    let compared = pieces(made, input, &mut |piece| {
        there.resize(piece.len(), 0);
        same = same && file.read_exact(&mut there).is_ok() && there == piece;
        if same { Ok(()) } else { Err(Fault::Read(std::io::ErrorKind::InvalidData.into())) }
    });
    Ok(compared.is_ok() && same && file.read(&mut [0]).is_ok_and(|n| n == 0))
}

fn write(target: &Path, made: &Made, input: &Input) -> Result<(), Fault> {
    let beside = target.with_extension("part");
    let failed = |e: std::io::Error| Fault::Write(Error::io("write", &beside)(e));
    let mut file = match File::create(&beside) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let folder = target.parent().expect("a place has folders");
            std::fs::create_dir_all(folder).map_err(|e| Fault::Write(Error::io("make folder", folder)(e)))?;
            File::create(&beside).map_err(failed)?
        }
        other => other.map_err(failed)?,
    };
    let written = pieces(made, input, &mut |piece| file.write_all(piece).map_err(failed))
        .and_then(|()| std::fs::rename(&beside, target).map_err(|e| Fault::Write(Error::io("write", target)(e))));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written
}

/// Files with one place: copies of one instance, or a conflict, in which case none of them is kept, because nothing says which is true.
fn settle(ends: &[End], items: &[Item], out: &Path, rules: &Rules, rows: &mut [DeidentifiedRow]) -> Result<(), Error> {
    let mut by_place: BTreeMap<PathBuf, Vec<usize>> = BTreeMap::new();
    let late: HashSet<PathBuf> = ends.iter().filter(|e| e.is_late).filter_map(|e| Some(place(out, e.made.as_ref()?))).collect();
    for (i, end) in ends.iter().enumerate() {
        if let Some(at) = end.made.as_ref().map(|m| place(out, m)).filter(|at| late.contains(at)) {
            by_place.entry(at).or_default().push(i);
        }
    }
    for (target, mut all) in by_place {
        let mut same = true;
        for i in all.iter().filter(|i| ends[**i].is_late) {
            let item = &items[*i];
            let source = Source::open_at(&item.path, item.member.as_deref()).and_then(|s| s.read_at(0, s.len() as usize));
            let is_same = source.is_ok_and(|bytes| {
                let input = Input { len: bytes.len() as u64, bytes: &bytes, more: None };
                let made = file::make(&bytes, input.len, rules, &|at, n| read_at(&input, at, n));
                matches!(made, Outcome::Made(m) if is_there(&target, &m, &input).unwrap_or(false))
            });
            same = same && is_same;
        }
        // Which of them came first was a matter of threads; by name it is not.
        all.sort_by(|a, b| items[*a].name.cmp(&items[*b].name));
        let first = all[0];
        let verdict = all.iter().find(|i| !ends[**i].is_late).map_or("written", |i| ends[*i].verdict);
        for i in &all {
            let other = &items[if *i == first { all[1] } else { first }].name;
            (rows[*i].verdict, rows[*i].why) = match (same, *i == first) {
                (true, true) => (verdict.into(), ends[*i].why.clone()),
                (true, false) => ("skipped".into(), format!("a copy of {other}")),
                (false, _) => ("failed".into(), format!("it and {other} say that they are one instance, and their contents differ")),
            };
        }
        if !same {
            std::fs::remove_file(&target).map_err(Error::io("remove", &target))?;
        }
    }
    Ok(())
}

fn row(end: &End, item: &Item) -> DeidentifiedRow {
    let row = DeidentifiedRow { file: item.name.clone(), verdict: end.verdict.into(), why: end.why.clone(), ..DeidentifiedRow::default() };
    let Some(m) = &end.made else { return row };
    let t = &m.tally;
    DeidentifiedRow {
        patient: m.patient.clone(),
        study: m.study.clone(),
        series: m.series.clone(),
        instance: m.instance.clone(),
        risk: m.risk.clone(),
        may_show_face: m.may_show_face,
        kept: t.kept as i64,
        removed: t.removed as i64,
        private: t.private as i64,
        emptied: t.emptied as i64,
        replaced: t.replaced as i64,
        uids: t.uids as i64,
        dates: t.dates as i64,
        pseudonyms: t.pseudonyms as i64,
        echoes: t.echoes as i64,
        ..row
    }
}
