//! The stream: elements in, elements out. What stays is copied as it lies there (byte order, VRs, defined and undefined lengths), what changes is written in
//! its place, pixel data is never touched. Nesting stands on the heap and ends at a limit.

use serde::{Deserialize, Serialize};

use super::bytes::{Bytes, Coding, Form, Head, IMPLICIT, ITEM, ITEM_END, SEQUENCE_END, Stop, UNDEFINED, name};
use super::policy::{self, Do, Otherwise, Place, Profile};
use super::values;
use crate::dicom::names::Names;

/// Real objects need eight levels of sequences; each counts twice here, with its item.
const MAX_LEVELS: usize = 128;
/// Texts longer than this are compared with nothing.
const MAX_ECHO_BYTES: usize = 1 << 16;

/// What was done, in elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    pub kept: u64,
    pub removed: u64,
    /// Of `removed`: private ones, and ones that no dictionary knows.
    pub private: u64,
    pub emptied: u64,
    /// Replaced by values that say nothing.
    pub replaced: u64,
    pub uids: u64,
    pub dates: u64,
    /// Replaced by pseudonyms.
    pub pseudonyms: u64,
    /// Would have stayed, and held a name or an id of the patient.
    pub echoes: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        let pairs = [
            (&mut self.kept, other.kept),
            (&mut self.removed, other.removed),
            (&mut self.private, other.private),
            (&mut self.emptied, other.emptied),
            (&mut self.replaced, other.replaced),
            (&mut self.uids, other.uids),
            (&mut self.dates, other.dates),
            (&mut self.pseudonyms, other.pseudonyms),
            (&mut self.echoes, other.echoes),
        ];
        pairs.into_iter().for_each(|(sum, n)| *sum += n);
    }
}

/// What one object is rewritten by.
pub struct Job<'a> {
    pub profile: &'a Profile,
    /// Parsed `profile.private`: creator, group, last byte of the element.
    pub private: &'a [(String, u16, u8)],
    pub names: &'a Names,
    /// Pseudonym of the patient.
    pub patient: &'a str,
    pub days: i64,
    pub asks: bool,
    /// Names and ids of the patient, lower case: no kept text may hold one.
    pub echoes: &'a [Vec<u8>],
    /// Elements of ours for the data set, sorted.
    pub inserts: &'a [Insert],
}

/// An element that is put in.
#[derive(Clone, Debug, PartialEq)]
pub struct Insert {
    pub tag: u32,
    pub vr: [u8; 2],
    pub value: Content,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    Bytes(Vec<u8>),
    Items(Vec<Vec<Insert>>),
}

/// The pixel element: its header is written already, its value is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pixel {
    pub value: usize,
    /// `None`: encapsulated.
    pub length: Option<u32>,
}

/// An open sequence or item.
struct Level {
    is_item: bool,
    /// Where it ends; `None`: at its delimiter.
    end: Option<usize>,
    coding: Coding,
    /// Where in `out` its length stands, to be set when it is known, and in which byte order.
    length_at: Option<(usize, bool)>,
    is_blank: bool,
    /// Private blocks of this item whose creator is listed: group, block, index into `Job::private`'s creators.
    creators: Vec<(u16, u8, String)>,
}

/// Rewrites the elements of a data set from `start` to its pixel data, or to its end.
pub fn data_set(b: Bytes, start: usize, coding: Coding, job: &Job, out: &mut Vec<u8>, tally: &mut Tally) -> Result<Option<Pixel>, Stop> {
    let mut inserts = job.inserts.iter().peekable();
    let root = Level { is_item: true, end: None, coding, length_at: None, is_blank: false, creators: Vec::new() };
    let mut open = vec![root];
    let mut at = start;
    loop {
        let depth = open.len();
        let level = open.last_mut().expect("the root is never closed");
        if depth > 1 && level.end.is_some_and(|e| at >= e) {
            close(&mut open, out);
            continue;
        }
        // A few bytes of padding at the end of a file are no element.
        if depth == 1 && b.len.saturating_sub(at as u64) < 8 {
            inserts.for_each(|i| put(out, coding, i));
            return Ok(None);
        }
        let coding = level.coding;
        let h = b.head(at, coding)?;
        match h.tag {
            ITEM_END | SEQUENCE_END => {
                at = h.value;
                // One that nothing waits for is left out.
                if depth > 1 && level.end.is_none() {
                    close(&mut open, out);
                }
                continue;
            }
            ITEM if !level.is_item => {
                let end = end_of(b, &h)?;
                at = h.value;
                let is_blank = level.is_blank;
                let length_at = begin(out, b, &h, coding)?;
                open.push(Level { is_item: true, end, coding, length_at, is_blank, creators: Vec::new() });
                if open.len() > MAX_LEVELS {
                    return Err(Stop::Broken(format!("its sequences are nested more than {} deep", MAX_LEVELS / 2)));
                }
                continue;
            }
            _ if !level.is_item => {
                return Err(Stop::Broken(format!("a sequence holds {} where an item should begin", name(h.tag))));
            }
            ITEM => return Err(Stop::Broken("an item stands outside of any sequence".into())),
            _ => {}
        }
        if depth == 1 {
            while let Some(i) = inserts.next_if(|i| i.tag <= h.tag) {
                put(out, coding, i);
            }
            if is_pixel(h.tag) {
                inserts.for_each(|i| put(out, coding, i));
                begin(out, b, &h, coding)?;
                return Ok(Some(Pixel { value: h.value, length: (h.length != UNDEFINED).then_some(h.length) }));
            }
            if job.inserts.iter().any(|i| i.tag == h.tag) {
                at = b.after(&h, coding)?;
                continue;
            }
        }
        if h.tag >> 16 & 1 == 1 && h.tag & 0xFFFF != 0 {
            private(b, &h, level, job, out, tally)?.then_some(()).map_or_else(
                || {
                    tally.removed += 1;
                    tally.private += 1;
                },
                |()| tally.kept += 1,
            );
            at = b.after(&h, coding)?;
            continue;
        }
        let known = policy::known_vr(h.tag);
        let is_opaque = h.length == UNDEFINED && matches!(&h.vr, b"OB" | b"OW");
        let is_sequence = &h.vr == b"SQ"
            || (h.length == UNDEFINED && !is_opaque)
            || (matches!(&h.vr, b"UN" | b"??") && h.form != Form::Short && known == Some(*b"SQ"));
        let vr = match &h.vr {
            _ if is_sequence => *b"SQ",
            b"??" | b"UN" => known.unwrap_or(*b"UN"),
            vr => *vr,
        };
        let place = Place { is_root: depth == 1, is_blank: level.is_blank, asks: job.asks };
        let decision = policy::decide(h.tag, &vr, known, place, job.profile);
        if matches!(decision, Do::Walk | Do::Blank) {
            let inner = if &h.vr == b"UN" { IMPLICIT } else { coding };
            let end = end_of(b, &h)?;
            let length_at = begin(out, b, &h, coding)?;
            open.push(Level { is_item: false, end, coding: inner, length_at, is_blank: decision == Do::Blank, creators: Vec::new() });
            tally.kept += 1;
            at = h.value;
            continue;
        }
        if h.length == UNDEFINED {
            let next = b.after(&h, coding)?;
            if is_opaque && decision == Do::Keep {
                out.extend_from_slice(b.get(h.at, next - h.at, || name(h.tag))?);
                tally.kept += 1;
            } else if decision == Do::Empty {
                header(out, b, &h, coding, 0)?;
                tally.emptied += 1;
            } else {
                tally.removed += 1;
            }
            at = next;
            continue;
        }
        plain(b, &h, &vr, decision, coding, job, out, tally)?;
        at = h.value + h.length as usize;
    }
}

pub fn is_pixel(tag: u32) -> bool {
    matches!(tag, 0x7FE0_0008..=0x7FE0_0010)
}

/// An element with a value of defined length.
#[allow(clippy::too_many_arguments)]
fn plain(
    b: Bytes,
    h: &Head,
    vr: &[u8; 2],
    decision: Do,
    coding: Coding,
    job: &Job,
    out: &mut Vec<u8>,
    tally: &mut Tally,
) -> Result<(), Stop> {
    let value = b.value(h)?;
    let mut write = |value: &[u8]| {
        let pad = if vr == b"UI" { 0 } else { b' ' };
        header(out, b, h, coding, (value.len() + value.len() % 2) as u32)?;
        out.extend_from_slice(value);
        if value.len() % 2 == 1 {
            out.push(pad);
        }
        Ok(())
    };
    let otherwise = |o: Otherwise| match o {
        Otherwise::Remove => Do::Remove,
        Otherwise::Empty => Do::Empty,
        Otherwise::Dummy => Do::Dummy,
    };
    let decision = match decision {
        Do::Move(o) => match values::moved(value, job.days) {
            Some(moved) => {
                tally.dates += 1;
                return write(&moved);
            }
            None => otherwise(o),
        },
        Do::KeepIfListed(o) => {
            let text = String::from_utf8_lossy(values::trimmed(value)).into_owned();
            let is_listed = job.profile.keep_descriptors.iter().any(|p| values::fits(p, &text));
            if is_listed { Do::Keep } else { otherwise(o) }
        }
        d => d,
    };
    match decision {
        Do::Remove | Do::Walk | Do::Blank | Do::Move(_) | Do::KeepIfListed(_) => tally.removed += 1,
        Do::Empty => {
            tally.emptied += 1;
            write(b"")?;
        }
        // What is empty says nothing already; a dummy would claim that something was there.
        Do::Dummy | Do::Uid | Do::Accession | Do::StudyId if values::trimmed(value).is_empty() => {
            tally.kept += 1;
            write(b"")?;
        }
        Do::Dummy => {
            tally.replaced += 1;
            write(values::dummy(vr))?;
        }
        Do::Uid => {
            tally.uids += 1;
            write(&values::uids(value, job.names))?;
        }
        Do::Patient => {
            tally.pseudonyms += 1;
            write(job.patient.as_bytes())?;
        }
        Do::Accession | Do::StudyId => {
            tally.pseudonyms += 1;
            let kind = if decision == Do::Accession { "accession" } else { "order" };
            write(short_pseudonym(job.names, kind, value).as_bytes())?;
        }
        Do::Age => {
            tally.kept += 1;
            write(&values::age(value))?;
        }
        Do::Keep if echoes(h.tag, vr, value, job.echoes) => {
            tally.echoes += 1;
            write(if values::is_text(vr) { values::dummy(vr) } else { b"" })?;
        }
        Do::Keep => {
            tally.kept += 1;
            out.extend_from_slice(b.get(h.at, h.value - h.at + h.length as usize, || name(h.tag))?);
        }
    }
    Ok(())
}

/// A pseudonym that fits the 16 characters of VR SH.
fn short_pseudonym(names: &Names, kind: &str, value: &[u8]) -> String {
    let id = String::from_utf8_lossy(values::trimmed(value)).into_owned();
    let long = names.of(kind, &id);
    long.chars().take(16).collect()
}

/// Whether a value that would stay holds a name or an id of the patient. Of a code that should be one of the standard's it is a whole word: the codes that
/// say how pixels are read are none of anybody's.
fn echoes(tag: u32, vr: &[u8; 2], value: &[u8], echoes: &[Vec<u8>]) -> bool {
    if vr == b"CS" {
        let says_how = tag >> 16 == 0x0028 || tag == 0x0008_0060;
        let word = |w: &[u8]| echoes.iter().any(|e| e.eq_ignore_ascii_case(w));
        return !says_how
            && !echoes.is_empty()
            && value
                .split(|b| *b == b'\\')
                .any(|part| word(values::trimmed(part)) || part.split(|b| !b.is_ascii_alphanumeric()).any(word));
    }
    let may_hold = values::is_text(vr) || matches!(vr, b"UN" | b"OB");
    if echoes.is_empty() || !may_hold || value.len() > MAX_ECHO_BYTES {
        return false;
    }
    let lower = value.to_ascii_lowercase();
    echoes.iter().any(|e| lower.len() >= e.len() && lower.windows(e.len()).any(|w| w == &e[..]))
}

/// Writes a private element where it is listed. Its creator goes with it.
fn private(b: Bytes, h: &Head, level: &mut Level, job: &Job, out: &mut Vec<u8>, tally: &mut Tally) -> Result<bool, Stop> {
    let (group, element) = ((h.tag >> 16) as u16, h.tag as u16);
    if job.private.is_empty() || h.length == UNDEFINED || &h.vr == b"SQ" || level.is_blank {
        return Ok(false);
    }
    let value = b.value(h)?;
    let raw = b.get(h.at, h.value - h.at + h.length as usize, || name(h.tag))?;
    if (0x10..=0xFF).contains(&element) {
        let creator = String::from_utf8_lossy(values::trimmed(value)).into_owned();
        let is_listed = job.private.iter().any(|(c, g, _)| *g == group && *c == creator);
        if is_listed {
            level.creators.push((group, element as u8, creator));
            out.extend_from_slice(raw);
        }
        return Ok(is_listed);
    }
    let block = (element >> 8) as u8;
    let Some((.., creator)) = level.creators.iter().find(|(g, b, _)| *g == group && *b == block) else { return Ok(false) };
    let is_listed = job.private.iter().any(|(c, g, low)| *g == group && *low == element as u8 && c == creator);
    // What begins like an item is a sequence that does not say so.
    let is_hidden = value.starts_with(&[0xFE, 0xFF, 0x00, 0xE0]);
    if !is_listed || is_hidden {
        return Ok(false);
    }
    if echoes(h.tag, b"UN", value, job.echoes) {
        tally.echoes += 1;
        return Ok(false);
    }
    if &h.vr == b"UI" && !job.profile.retain_uids {
        let new = values::uids(value, job.names);
        header(out, b, h, level.coding, (new.len() + new.len() % 2) as u32)?;
        out.extend_from_slice(&new);
        out.extend(std::iter::repeat_n(0, new.len() % 2));
    } else {
        out.extend_from_slice(raw);
    }
    Ok(true)
}

fn end_of(b: Bytes, h: &Head) -> Result<Option<usize>, Stop> {
    if h.length == UNDEFINED {
        return Ok(None);
    }
    let end = h.value as u64 + h.length as u64;
    if end > b.len {
        let left = b.len.saturating_sub(h.value as u64);
        return Err(Stop::Broken(format!("the file ends inside {}: {left} of {} bytes are there", name(h.tag), h.length)));
    }
    Ok(Some(end as usize))
}

/// Copies the header of a sequence or item; where its length is defined, says where it stands.
fn begin(out: &mut Vec<u8>, b: Bytes, h: &Head, coding: Coding) -> Result<Option<(usize, bool)>, Stop> {
    out.extend_from_slice(b.get(h.at, h.value - h.at, || name(h.tag))?);
    let is_long = h.form != Form::Short;
    Ok((h.length != UNDEFINED && is_long).then(|| (out.len() - 4, coding.big)))
}

/// Ends the innermost sequence or item: sets its length, or writes its delimiter.
fn close(open: &mut Vec<Level>, out: &mut Vec<u8>) {
    let level = open.pop().expect("a level is open");
    match level.length_at {
        Some((at, big)) => {
            let length = (out.len() - at - 4) as u32;
            out[at..at + 4].copy_from_slice(&if big { length.to_be_bytes() } else { length.to_le_bytes() });
        }
        None => {
            let tag = if level.is_item { ITEM_END } else { SEQUENCE_END };
            let big = level.coding.big;
            out.extend(tag_bytes(tag, big));
            out.extend([0; 4]);
        }
    }
}

fn tag_bytes(tag: u32, big: bool) -> [u8; 4] {
    let (g, e) = ((tag >> 16) as u16, tag as u16);
    let [a, b] = if big { [g.to_be_bytes(), e.to_be_bytes()] } else { [g.to_le_bytes(), e.to_le_bytes()] };
    [a[0], a[1], b[0], b[1]]
}

/// The header of an element again, with another length.
fn header(out: &mut Vec<u8>, b: Bytes, h: &Head, coding: Coding, length: u32) -> Result<(), Stop> {
    let raw = b.get(h.at, h.value - h.at, || name(h.tag))?;
    let of = |n: u32| if coding.big { n.to_be_bytes() } else { n.to_le_bytes() };
    match h.form {
        Form::Implicit => {
            out.extend_from_slice(&raw[..4]);
            out.extend(of(length));
        }
        Form::Short => {
            let length = length as u16;
            out.extend_from_slice(&raw[..6]);
            out.extend(if coding.big { length.to_be_bytes() } else { length.to_le_bytes() });
        }
        Form::Long => {
            out.extend_from_slice(&raw[..8]);
            out.extend(of(length));
        }
    }
    Ok(())
}

/// Writes an element of ours.
pub fn put(out: &mut Vec<u8>, coding: Coding, i: &Insert) {
    let of = |n: u32| if coding.big { n.to_be_bytes() } else { n.to_le_bytes() };
    out.extend(tag_bytes(i.tag, coding.big));
    let is_long = i.vr[0] == b'O' || matches!(&i.vr, b"SQ" | b"UC" | b"UN" | b"UR" | b"UT");
    if coding.explicit {
        out.extend(i.vr);
    }
    match &i.value {
        Content::Bytes(value) => {
            let padded = (value.len() + value.len() % 2) as u32;
            if coding.explicit && !is_long {
                let length = padded as u16;
                out.extend(if coding.big { length.to_be_bytes() } else { length.to_le_bytes() });
            } else {
                out.extend(if coding.explicit { &[0u8; 2][..] } else { &[] });
                out.extend(of(padded));
            }
            out.extend_from_slice(value);
            let pad = if matches!(&i.vr, b"UI" | b"OB") { 0 } else { b' ' };
            out.extend(std::iter::repeat_n(pad, value.len() % 2));
        }
        Content::Items(items) => {
            out.extend(if coding.explicit { &[0u8; 2][..] } else { &[] });
            let at = out.len();
            out.extend([0; 4]);
            for item in items {
                out.extend(tag_bytes(ITEM, coding.big));
                let item_at = out.len();
                out.extend([0; 4]);
                item.iter().for_each(|i| put(out, coding, i));
                let length = (out.len() - item_at - 4) as u32;
                out[item_at..item_at + 4].copy_from_slice(&of(length));
            }
            let length = (out.len() - at - 4) as u32;
            out[at..at + 4].copy_from_slice(&of(length));
        }
    }
}
