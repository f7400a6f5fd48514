//! What one file of an archive is: its beginning is read, a container is opened and each member looked at in the same way.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::allowance::{Allowance, header_limit, header_too_long};
use super::bytes::{Source, Wrapping, wrapping_of};
use super::catalog::{Brief, Entry, FILES_AT_ONCE, Outcome, Packed, SeriesList};
use super::classes::{self, Class};
use super::containers::{self, Closed, DEEPEST, Directory, INSIDE, Kind};
use super::header::{self, FIRST_BYTES, Header, NoHeader};
use super::names::Names;
use super::recent::{Recent, Scanned};
use super::scan::Scan;
use super::walk::{Seen, Stat};
use super::{directory, scan};
use crate::error::Error;

/// What a file turned out to be.
enum Looked {
    One(Outcome),
    /// Members with their places in the container and their lengths, and what is wrong with the container.
    Members(Vec<(String, u64, Outcome)>, Option<String>),
}

/// What looking at files needs.
pub(super) struct Look<'a> {
    pub root: &'a Path,
    pub names: &'a Names,
    pub series: &'a SeriesList,
    pub step: &'a (dyn Fn(u64) -> Result<(), Error> + Sync),
}

/// What a thread has at hand while it looks at one file after the other.
#[derive(Default)]
pub(super) struct Desk {
    path: PathBuf,
    /// The beginning of the file.
    buffer: Vec<u8>,
    recent: Vec<Recent>,
    /// How many files became `recent`.
    n_recent: usize,
    /// A header packed.
    packed: Vec<u8>,
    /// Bytes of the last header.
    header_bytes: usize,
}

/// Series that may take turns in a folder.
const MAX_RECENT: usize = 4;
/// Less is not read at once: it tells a container.
const LEAST_BYTES: usize = 2 << 10;
/// More neither.
const MOST_BYTES: usize = 256 << 10;

impl Desk {
    /// Bytes to begin with: as many as the file before had in its header, and a few for longer numbers.
    fn first_bytes(&self) -> usize {
        if self.header_bytes == 0 {
            return FIRST_BYTES;
        }
        (self.header_bytes + 256).next_multiple_of(1 << 9).clamp(LEAST_BYTES, MOST_BYTES)
    }

    /// The file that is like one before, as it is kept.
    fn like(&mut self, bytes: &[u8], s: &Scan, names: &Names) -> Option<Brief> {
        let at = self.recent.iter_mut().position(|r| r.take(bytes, s))?;
        Some(self.brief(at, names))
    }

    /// The same without a scan, where that is not needed to know.
    fn same(&mut self, names: &Names) -> Option<Brief> {
        let at = self.recent.iter_mut().position(|r| r.take_same(&self.buffer))?;
        Some(self.brief(at, names))
    }

    fn brief(&mut self, at: usize, names: &Names) -> Brief {
        let recent = &mut self.recent[at];
        names.hide_instance(&mut recent.header);
        self.packed.clear();
        recent.pattern.pack_into(&recent.header, &mut self.packed);
        Brief { series: recent.series, class: Class::Image, packed: Packed(self.packed.as_slice().into()) }
    }

    fn remember(&mut self, recent: Recent) {
        if self.recent.len() < MAX_RECENT {
            self.recent.push(recent);
        } else {
            self.recent[self.n_recent % MAX_RECENT] = recent;
        }
        self.n_recent += 1;
    }
}

/// What the elements of a file say.
enum Said {
    /// All that is kept of it, since it is like a file before.
    Brief(Brief),
    Header(Box<Header>, Scanned),
}

impl Look<'_> {
    /// Adds the file, or what is in it, to `out`.
    pub fn file(&self, mut seen: Seen, desk: &mut Desk, out: &mut Vec<Entry>) -> Result<(), Error> {
        desk.path.clear();
        desk.path.push(self.root);
        desk.path.push(&seen.file);
        let mut opened = None;
        if seen.stat == Stat::UNKNOWN {
            opened = (!is_nifti(&seen.file)).then(|| File::open(&desk.path));
            let meta = opened.as_ref().and_then(|f| f.as_ref().ok()).map_or_else(|| std::fs::metadata(&desk.path), File::metadata);
            match meta {
                Ok(m) => (seen.stat, seen.bytes) = (Stat::of(&m), m.len()),
                Err(e) => {
                    out.push(Entry { seen, outcome: Outcome::Unreadable(e.to_string()) });
                    return Ok(());
                }
            }
        }
        (self.step)(seen.stat.bytes)?;
        let looked = if seen.stat.bytes == 0 {
            Looked::One(empty())
        } else if is_nifti(&seen.file) {
            Looked::One(Outcome::Nifti)
        } else {
            match opened.unwrap_or_else(|| File::open(&desk.path)) {
                Ok(file) => {
                    let within = Allowance::of(seen.stat.bytes);
                    self.source(&Source::of_open(file, seen.stat.bytes), &seen.file, (0, &within), desk)?
                }
                Err(e) => Looked::One(Outcome::Unreadable(e.to_string())),
            }
        };
        match looked {
            Looked::One(outcome) => out.push(Entry { seen, outcome }),
            Looked::Members(members, fault) => {
                let stands_for_itself = match (fault, members.is_empty()) {
                    (Some(why), _) => Some(Outcome::Failed { why: format!("a container: {why}"), series: None }),
                    (None, true) => Some(skipped("empty container")),
                    (None, false) => None,
                };
                let own = stands_for_itself.map(|outcome| Entry { seen: seen.clone(), outcome });
                let of_member = |(member, bytes, outcome): (String, u64, Outcome)| {
                    let seen = Seen { member: Some(member.into_boxed_str()), bytes, ..seen.clone() };
                    Entry { seen, outcome }
                };
                out.extend(own.into_iter().chain(members.into_iter().map(of_member)));
            }
        }
        Ok(())
    }

    /// What a source of known length is. `within`: how many containers it is in, and what they may still unfold to.
    fn source(&self, source: &Source, name: &str, within: Within, desk: &mut Desk) -> Result<Looked, Error> {
        let unread = |e: std::io::Error| Looked::One(Outcome::Unreadable(e.to_string()));
        let first = desk.first_bytes();
        desk.buffer.resize((first as u64).min(source.len()) as usize, 0);
        if let Err(e) = source.read_into(0, &mut desk.buffer) {
            return Ok(unread(e));
        }
        if let Some(brief) = desk.same(self.names) {
            return Ok(Looked::One(Outcome::Dicom(brief)));
        }
        let mut buffer = std::mem::take(&mut desk.buffer);
        if let Some(outcome) = other_kind(&buffer) {
            return Ok(Looked::One(outcome));
        }
        let wrapping = wrapping_of(&buffer);
        let kind = match wrapping {
            Wrapping::Gzip | Wrapping::Zstd => containers::kind_inside(source, name),
            _ => containers::kind_of(&buffer, name),
        };
        if let Some(kind) = kind {
            return self.container(source.clone(), kind, within);
        }
        if wrapping == Wrapping::None {
            let said = header::of_scan(
                Some(source.len()),
                first,
                &mut buffer,
                |n, b| grow(source, n, b),
                |bytes, s| {
                    if let Some(brief) = desk.like(bytes, &s, self.names) {
                        return Ok(Said::Brief(brief));
                    }
                    let h = header::checked(bytes, &s, Wrapping::None)?;
                    desk.header_bytes = h.pixel.map_or(bytes.len(), |p| p.offset as usize);
                    Ok(Said::Header(Box::new(h), Scanned::of(s)))
                },
            );
            let outcome = match said {
                Ok(Ok(Said::Brief(brief))) => Outcome::Dicom(brief),
                Ok(Ok(Said::Header(h, _))) if h.sop_class == directory::SOP_CLASS => {
                    directory::read(source).map_or_else(broken, Outcome::Dicomdir)
                }
                Ok(Ok(Said::Header(h, scanned))) => self.header(*h, |h, brief| {
                    let pattern = || self.series.pattern(brief.series);
                    if let Some(recent) = Recent::of(&buffer, scanned, h, brief.series, pattern) {
                        desk.remember(recent);
                    }
                }),
                Ok(Err(none)) => self.no_header(none, name),
                Err(e) => Outcome::Unreadable(e.to_string()),
            };
            desk.buffer = buffer;
            return Ok(Looked::One(outcome));
        }
        let body = if wrapping == Wrapping::Deflate { scan::meta(&buffer).map_or(0, |m| m.end) } else { 0 };
        let meta = buffer[..body].to_vec();
        buffer.clear();
        let header = header::of_prefixes(None, wrapping, &mut buffer, |n, b| {
            b.clear();
            b.extend_from_slice(&meta);
            let limit = header_limit(source.len());
            // Where the stream is damaged, what came before counts as all there is.
            read_pieces(source.unfolding(wrapping, body)?.take((n.min(limit).saturating_sub(body)) as u64), b);
            if n > limit && b.len() == limit { Err(header_too_long(limit)) } else { Ok(()) }
        });
        Ok(match header {
            Ok(Ok(h)) if h.sop_class == directory::SOP_CLASS => Looked::One(directory::read(source).map_or_else(broken, Outcome::Dicomdir)),
            Ok(header) => Looked::One(self.outcome(header, name)),
            Err(e) => unread(e),
        })
    }

    fn container(&self, source: Source, kind: Kind, (depth, allowance): Within) -> Result<Looked, Error> {
        if depth == DEEPEST {
            let why = format!("containers nested more than {DEEPEST} deep: unpack it first");
            return Ok(Looked::One(Outcome::Failed { why, series: None }));
        }
        let nested_bytes = |d: &Directory| if depth == 0 { 0 } else { d.bytes() };
        let read = Directory::read(source, kind).and_then(|d| allowance.take(d.members.len() as u64, nested_bytes(&d)).map(|()| d));
        let directory = match read {
            Ok(directory) => directory,
            Err(e) => return Ok(Looked::Members(Vec::new(), Some(e.to_string()))),
        };
        let looked: Vec<Looked> = (0..directory.members.len())
            .into_par_iter()
            .with_max_len(FILES_AT_ONCE)
            .map_init(Desk::default, |desk, i| self.member(&directory, i, (depth + 1, allowance), desk))
            .collect::<Result<_, _>>()?;
        let mut members = Vec::with_capacity(looked.len());
        for (m, looked) in directory.members.iter().zip(looked) {
            match looked {
                Looked::One(outcome) => members.push((m.name.clone(), m.bytes, outcome)),
                Looked::Members(inner, fault) => {
                    let own = match (fault, inner.is_empty()) {
                        (Some(why), _) => Some(Outcome::Failed { why: format!("a container: {why}"), series: None }),
                        (None, true) => Some(skipped("empty container")),
                        (None, false) => None,
                    };
                    members.extend(own.map(|outcome| (m.name.clone(), m.bytes, outcome)));
                    members.extend(inner.into_iter().map(|(name, bytes, o)| (format!("{}{INSIDE}{name}", m.name), bytes, o)));
                }
            }
        }
        Ok(Looked::Members(members, directory.fault))
    }

    fn member(&self, directory: &Directory, i: usize, within: Within, desk: &mut Desk) -> Result<Looked, Error> {
        let m = &directory.members[i];
        let one = |outcome| Ok(Looked::One(outcome));
        (self.step)(0)?;
        match &m.place {
            Err(Closed::Skipped(why)) => return one(Outcome::Skipped { class: "member of a container".into(), why: why.clone() }),
            Err(Closed::Failed(why)) => return one(Outcome::Failed { why: why.clone(), series: None }),
            Ok(_) if m.bytes == 0 => return one(empty()),
            Ok(_) if is_nifti(&m.name) => return one(Outcome::Nifti),
            Ok(_) => {}
        }
        let broken = |e: std::io::Error| Ok(Looked::One(Outcome::Failed { why: e.to_string(), series: None }));
        if !directory.is_direct(m) {
            // The beginning tells most of what there is to know; what is more than a plain file is unfolded whole.
            let start = match directory.peek(m, FIRST_BYTES as u64) {
                Ok(start) => start,
                Err(e) => return broken(e),
            };
            let buffer = &mut desk.buffer;
            buffer.clear();
            if let Err(e) = grow(&start, FIRST_BYTES, buffer) {
                return broken(e);
            }
            if let Some(outcome) = other_kind(buffer) {
                return one(outcome);
            }
            if wrapping_of(buffer) == Wrapping::None && containers::kind_of(buffer, &m.name).is_none() {
                let header = header::of_prefixes(Some(m.bytes), Wrapping::None, buffer, |n, b| {
                    b.clear();
                    let limit = header_limit(m.packed_bytes());
                    within.1.take(0, n.min(limit) as u64)?;
                    grow(&directory.peek(m, n.min(limit) as u64)?, n.min(limit), b)?;
                    if n > limit && b.len() == limit { Err(header_too_long(limit)) } else { Ok(()) }
                });
                match header {
                    Ok(Ok(h)) if h.sop_class == directory::SOP_CLASS => {}
                    Ok(header) => return one(self.outcome(header, &m.name)),
                    Err(e) => return broken(e),
                }
            }
        }
        let unfolds = if directory.is_direct(m) { 0 } else { m.bytes };
        match within.1.take(0, unfolds).and_then(|()| directory.open(m)) {
            Ok(source) => self.source(&source, &m.name, within, desk),
            Err(e) => broken(e),
        }
    }

    fn outcome(&self, header: Result<Header, NoHeader>, name: &str) -> Outcome {
        match header {
            Ok(h) => self.header(h, |_, _| ()),
            Err(none) => self.no_header(none, name),
        }
    }

    /// `keep` is given the header of an image as it is kept.
    fn header(&self, mut h: Header, keep: impl FnOnce(Header, &Brief)) -> Outcome {
        match classes::of(&h) {
            Class::Other(class) => Outcome::Skipped { why: class.clone(), class },
            class => {
                self.names.hide(&mut h);
                let brief = self.series.brief(&h, class);
                if brief.class == Class::Image {
                    keep(h, &brief);
                }
                Outcome::Dicom(brief)
            }
        }
    }

    fn no_header(&self, none: NoHeader, name: &str) -> Outcome {
        match none {
            NoHeader::NotDicom if is_called_dicom(name) => broken("not DICOM, although its name says so".into()),
            NoHeader::NotDicom => skipped("not DICOM"),
            NoHeader::Empty => empty(),
            NoHeader::Broken { .. } => {
                let mut none = none;
                self.names.hide_broken(&mut none);
                let NoHeader::Broken { why, series } = none else { unreachable!("the other kinds are above") };
                Outcome::Failed { why, series }
            }
        }
    }
}

/// How many containers a source is in, and what those in one file may still unfold to.
type Within<'a> = (usize, &'a Allowance);

/// Whether a name says NIfTI. What macOS keeps of a file beside it bears its name behind `._`.
fn is_nifti(file: &str) -> bool {
    let base = file.rsplit(['/', '\\']).next().unwrap_or(file);
    ends_with_any(base, &[".nii", ".nii.gz"]) && !base.starts_with("._")
}

fn is_called_dicom(file: &str) -> bool {
    ends_with_any(file, &[".dcm", ".dicom", ".ima"])
}

fn ends_with_any(file: &str, endings: &[&str]) -> bool {
    let ends = |e: &&str| file.len() >= e.len() && file.as_bytes()[file.len() - e.len()..].eq_ignore_ascii_case(e.as_bytes());
    endings.iter().any(ends)
}

/// Appends what there is of a stream that may be damaged. Where it breaks a decoder drops the whole of what it was asked for: pieces of one size give the same
/// beginning whatever the memory at hand.
fn read_pieces(mut stream: impl Read, out: &mut Vec<u8>) {
    loop {
        let at = out.len();
        out.resize(at + PIECE_BYTES, 0);
        let n = stream.read(&mut out[at..]).unwrap_or(0);
        out.truncate(at + n);
        if n == 0 {
            return;
        }
    }
}

const PIECE_BYTES: usize = 1 << 10;

/// Reads on until there are `n` bytes, or all.
fn grow(source: &Source, n: usize, buffer: &mut Vec<u8>) -> std::io::Result<()> {
    let have = buffer.len();
    buffer.resize((n as u64).min(source.len()) as usize, 0);
    source.read_into(have as u64, &mut buffer[have..])
}

fn skipped(what: &str) -> Outcome {
    Outcome::Skipped { class: what.into(), why: what.into() }
}

fn broken(why: String) -> Outcome {
    Outcome::Failed { why, series: None }
}

fn empty() -> Outcome {
    broken("an empty file (0 bytes)".into())
}

/// What is known by its first bytes and not looked into: containers of other kinds, and what macOS keeps beside files under their names.
fn other_kind(start: &[u8]) -> Option<Outcome> {
    const CONTAINERS: [&[u8]; 3] = [b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"\xfd7zXZ\0"];
    let is_bzip2 = start.starts_with(b"BZh") && start.get(4..10) == Some(b"1AY&SY");
    if is_bzip2 || CONTAINERS.iter().any(|m| start.starts_with(m)) {
        let why = "an archive file of a kind that is not looked into: unpack it first".to_string();
        return Some(Outcome::Skipped { class: "archive file".into(), why });
    }
    start.starts_with(b"\0\x05\x16\x07\0\x02").then(|| skipped("macOS file attributes"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_beginning_of_a_damaged_stream_does_not_depend_on_the_memory_at_hand() {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        let text: Vec<u8> = (0..40_000u32).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 20).to_le_bytes()).collect();
        gz.write_all(&text).unwrap();
        let mut packed = gz.finish().unwrap();
        packed[20_000..20_400].fill(0xff);
        let source = Source::of_raw(packed);
        let read = |mut out: Vec<u8>| {
            read_pieces(source.unfolding(Wrapping::Gzip, 0).unwrap(), &mut out);
            out
        };
        let fresh = read(Vec::new());
        assert!(source.unfolding(Wrapping::Gzip, 0).unwrap().read_to_end(&mut Vec::new()).is_err());
        assert_eq!(fresh[..1000], text[..1000]);
        assert!([4 << 10, 1 << 20].iter().all(|n| read(Vec::with_capacity(*n)) == fresh));
    }
}
