//! Every file of an archive, side by side: read once, written once, beside its place and renamed. What stands there already with the same bytes is left
//! alone, so a run that was stopped is simply run again. Files are not synced one by one: a crash of the machine may leave some short, and the next run
//! finds them different and writes them anew.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rayon::prelude::*;
use voxmill_schemas::tables::DeidentifiedRow;

use super::file::{self, Made, Outcome, Rules};
use crate::dicom::bytes::{DEFLATED, Source};
use crate::dicom::scan;
use crate::error::Error;

/// Files up to this size are read at once; of larger ones the pixels pass through a small buffer.
const WHOLE_BYTES: u64 = 32 << 20;
/// What stands before the pixels may be this large.
const MAX_HEAD_BYTES: u64 = 512 << 20;

/// A file to de-identify.
#[derive(Clone, Debug)]
pub struct Item {
    pub path: PathBuf,
    /// What messages and tables call it: pseudonyms.
    pub name: String,
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
    file: Option<&'a File>,
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
    let file = match File::open(&item.path) {
        Ok(file) => file,
        Err(e) => return unread(e),
    };
    let len = match file.metadata() {
        Ok(meta) => meta.len(),
        Err(e) => return unread(e),
    };
    step(len)?;
    if len == 0 {
        return Ok(End::none("failed", "an empty file (0 bytes)"));
    }
    let mut wanted = if len <= WHOLE_BYTES { len } else { 1 << 20 };
    let unfolded;
    loop {
        if let Err(e) = read_start(&file, wanted, buffer) {
            return unread(e);
        }
        let mut input = Input { bytes: buffer, len, file: Some(&file) };
        if is_wrapped(buffer) {
            unfolded = match Source::open(&item.path) {
                Ok(Source::Memory { bytes, .. }) => bytes,
                Ok(Source::Disk { .. }) => return Ok(End::none("failed", "the file has changed while it was read")),
                Err(e) => return unread(e),
            };
            input = Input { bytes: &unfolded, len: unfolded.len() as u64, file: None };
            return make(index, input, out, rules, claimed);
        }
        if (buffer.len() as u64) < len.min(MAX_HEAD_BYTES) {
            let end = make(index, input, out, rules, claimed)?;
            if end.verdict != "more" {
                return Ok(end);
            }
            wanted = (wanted * 4).min(len).min(MAX_HEAD_BYTES);
            continue;
        }
        return match make(index, input, out, rules, claimed)? {
            end if end.verdict == "more" => Ok(End::none("failed", "its header is larger than 512 MiB")),
            end => Ok(end),
        };
    }
}

fn read_start(mut file: &File, n: u64, buffer: &mut Vec<u8>) -> std::io::Result<()> {
    use std::io::{Seek, SeekFrom};
    let have = buffer.len() as u64;
    // A buffer of the file before, or the start of this one that was too short: both are read anew.
    if have != n {
        buffer.resize(n as usize, 0);
    }
    file.seek(SeekFrom::Start(0))?;
    file.read_exact(buffer)
}

fn is_wrapped(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b, 8]) || scan::meta(bytes).is_some_and(|m| m.transfer_syntax == DEFLATED)
}

fn make(index: usize, input: Input, out: &Path, rules: &Rules, claimed: &Mutex<HashMap<PathBuf, usize>>) -> Result<End, Error> {
    let made = match file::make(input.bytes, input.len, rules, &|at, n| read_at(&input, at, n)) {
        Outcome::Made(made) => *made,
        Outcome::Skipped(why) => return Ok(End::none("skipped", why)),
        Outcome::Refused(why) => return Ok(End::none("refused", why)),
        Outcome::Failed(why) => return Ok(End::none("failed", why)),
        Outcome::NeedsMore => return Ok(End::none("more", "")),
    };
    let target = place(out, &made);
    let is_first = *claimed.lock().expect("no thread panics while it claims").entry(target.clone()).or_insert(index) == index;
    let why = made.class.clone();
    if !is_first {
        return Ok(End { verdict: "skipped", why, made: Some(made), is_late: true });
    }
    let verdict = if is_there(&target, &made, &input).unwrap_or(false) {
        "unchanged"
    } else {
        match write(&target, &made, &input) {
            Ok(()) => "written",
            Err(Fault::Read(e)) => return Ok(End::none("failed", format!("cannot be read: {e}"))),
            Err(Fault::Write(e)) => return Err(e),
        }
    };
    Ok(End { verdict, why, made: Some(Made { head: Vec::new(), tail: Vec::new(), ..made }), is_late: false })
}

fn place(out: &Path, made: &Made) -> PathBuf {
    out.join(&made.patient).join(&made.study).join(&made.series).join(format!("{}.dcm", made.instance))
}

fn read_at(input: &Input, at: u64, n: usize) -> std::io::Result<Vec<u8>> {
    use std::io::{Error, ErrorKind, Seek, SeekFrom};
    let is_inside = at.checked_add(n as u64).is_some_and(|end| end <= input.len);
    let Some(mut file) = input.file.filter(|_| is_inside) else { return Err(Error::from(ErrorKind::UnexpectedEof)) };
    let mut out = vec![0; n];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut out)?;
    Ok(out)
}

enum Fault {
    Read(std::io::Error),
    Write(Error),
}

/// Gives the new file piece by piece.
fn pieces(made: &Made, input: &Input, give: &mut dyn FnMut(&[u8]) -> Result<(), Fault>) -> Result<(), Fault> {
    use std::io::{Seek, SeekFrom};
    if let Some(from) = made.deflate_from {
        let body = [&made.head[from..], &input.bytes[made.pixels.start as usize..made.pixels.end as usize], &made.tail].concat();
        let mut deflated = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        deflated.write_all(&body).map_err(Fault::Read)?;
        let mut deflated = deflated.finish().map_err(Fault::Read)?;
        deflated.extend(std::iter::repeat_n(0, deflated.len() % 2));
        give(&made.head[..from])?;
        return give(&deflated);
    }
    give(&made.head)?;
    match (input.bytes.get(made.pixels.start as usize..made.pixels.end as usize), input.file) {
        (Some(pixels), _) => give(pixels)?,
        (None, Some(mut file)) => {
            file.seek(SeekFrom::Start(made.pixels.start)).map_err(Fault::Read)?;
            let (mut left, mut part) = (made.pixels.end - made.pixels.start, vec![0; 1 << 20]);
            while left > 0 {
                let n = left.min(part.len() as u64) as usize;
                file.read_exact(&mut part[..n]).map_err(Fault::Read)?;
                give(&part[..n])?;
                left -= n as u64;
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
    let late: std::collections::HashSet<PathBuf> =
        ends.iter().filter(|e| e.is_late).filter_map(|e| Some(place(out, e.made.as_ref()?))).collect();
    for (i, end) in ends.iter().enumerate() {
        if let Some(at) = end.made.as_ref().map(|m| place(out, m)).filter(|at| late.contains(at)) {
            by_place.entry(at).or_default().push(i);
        }
    }
    for (target, mut all) in by_place {
        let mut same = true;
        for i in all.iter().filter(|i| ends[**i].is_late) {
            let source = Source::open(&items[*i].path).and_then(|s| s.read_at(0, s.len() as usize));
            let is_same = source.is_ok_and(|bytes| {
                let input = Input { len: bytes.len() as u64, bytes: &bytes, file: None };
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
