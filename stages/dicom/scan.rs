//! DICOM bytes → the few elements that are asked for, without copying (PS3.5 section 7). Everything else is stepped over.
//! Made for hostile and broken files: no recursion that the file controls, no allocation by a length that the file states.
//! Byte order and VR encoding are taken from the first element, because the transfer syntax in the meta group is sometimes wrong.

use std::borrow::Cow;
use std::ops::Range;

use dicom::core::Tag;
use dicom::dictionary_std::tags;

/// An element that was asked for, or an item of a sequence that was. All of a data set stand in one list, in the order of the file: what a sequence or an
/// item holds follows it. Twelve bytes, so that a file made of nothing but empty items fills no memory.
#[derive(Clone, Copy, Debug)]
pub struct Element {
    /// [`ITEM`] for items.
    pub tag: Tag,
    /// Of the value's first byte; `NESTED` for a sequence or an item.
    start: u32,
    /// Bytes of the value; of a sequence or an item, the place in the list behind all that it holds.
    end: u32,
}

/// What stands in `start` where an element holds others.
const NESTED: u32 = u32::MAX;

impl Element {
    /// Where its value stands; `None` for a sequence or an item.
    pub fn value(&self) -> Option<Range<usize>> {
        (self.start != NESTED).then(|| self.start as usize..self.start as usize + self.end as usize)
    }

    /// The place in the list of the next element of the same level; `at` is its own.
    pub fn next(&self, at: usize) -> usize {
        if self.start == NESTED { self.end as usize } else { at + 1 }
    }

    /// Whether two sequences or items at the same place of two lists hold as many elements.
    pub fn is_as_full_as(&self, other: &Element) -> bool {
        self.end == other.end
    }
}

/// Where the pixels stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PixelElement {
    /// `7FE00010` stored values, `7FE00008` float, `7FE00009` double.
    pub tag: u32,
    /// Of the first byte of the value, from the start of the (unwrapped) file.
    pub offset: u64,
    /// `None`: encapsulated fragments follow.
    pub length: Option<u32>,
}

/// What stands in a file up to its pixel data.
#[derive(Debug)]
pub struct Scan<'a> {
    /// From the meta group; empty where there is none.
    pub transfer_syntax: &'a str,
    /// MediaStorageSOPClassUID of the meta group.
    pub media_class: &'a str,
    pub is_big_endian: bool,
    pub is_explicit: bool,
    pub elements: Vec<Element>,
    pub pixel: Option<PixelElement>,
}

/// Why a scan ended early.
#[derive(Debug)]
pub enum Fault {
    /// Nothing here looks like DICOM.
    NotDicom,
    /// The file goes on, the buffer does not: call again with more of it.
    NeedsMore,
    /// The file ends inside an element, or its structure is broken. What was read before that is kept.
    Broken { why: String, so_far: Vec<Element> },
}

/// Which elements are kept: values and sequences, on every level.
pub struct Wanted {
    values: Tags,
    sequences: Tags,
}

/// A set of tags.
struct Tags {
    /// [`key`]s, sorted.
    keys: Vec<u32>,
    /// A bit for each [`place`] of theirs: most elements of a file are not wanted, and known for it by one look.
    places: [u64; 64],
}

impl Wanted {
    pub fn new(values: Vec<Tag>, sequences: Vec<Tag>) -> Self {
        Self { values: Tags::of(values), sequences: Tags::of(sequences) }
    }
}

impl Tags {
    fn of(tags: Vec<Tag>) -> Tags {
        let mut places = [0; 64];
        tags.iter().for_each(|t| places[place(*t) / 64] |= 1 << (place(*t) % 64));
        let mut keys: Vec<u32> = tags.into_iter().map(key).collect();
        keys.sort_unstable();
        Tags { keys, places }
    }

    fn has(&self, tag: Tag) -> bool {
        self.may_have(tag) && self.keys.binary_search(&key(tag)).is_ok()
    }

    fn may_have(&self, tag: Tag) -> bool {
        self.places[place(tag) / 64] >> (place(tag) % 64) & 1 == 1
    }
}

/// Tags as numbers, in their order.
pub fn key(Tag(group, element): Tag) -> u32 {
    (group as u32) << 16 | element as u32
}

/// One of 4096.
fn place(Tag(group, element): Tag) -> usize {
    (element ^ group.wrapping_mul(0x9e5)) as usize & 0xfff
}

/// The last group of plain elements: pixels, what comes behind them, and delimiters are looked at one by one.
const LAST_PLAIN_GROUP: u16 = 0x7FDF;

/// Deepest nesting of sequences that are asked for; the data model needs four.
const MAX_DEPTH: usize = 8;
const UNDEFINED: u32 = u32::MAX;
pub const ITEM: Tag = Tag(0xFFFE, 0xE000);
const ITEM_END: Tag = Tag(0xFFFE, 0xE00D);
const SEQUENCE_END: Tag = Tag(0xFFFE, 0xE0DD);

/// More elements than this, and more than a sixteenth of the bytes they stand in, are kept of no file.
const MAX_ELEMENTS: usize = 1 << 20;

/// The meta group of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta<'a> {
    pub transfer_syntax: &'a str,
    pub sop_class: &'a str,
    /// Where the data set begins.
    pub end: usize,
    /// The bytes end before the group does.
    is_cut: bool,
}

/// Reads the meta group, if there is one. `None`: not DICOM as far as the first bytes tell.
pub fn meta(bytes: &[u8]) -> Option<Meta<'_>> {
    let start = match bytes {
        b if b.len() >= 132 && &b[128..132] == b"DICM" => 132,
        b if b.len() >= 4 && &b[..4] == b"DICM" => 4,
        _ => 0,
    };
    if !looks_like_elements(bytes.get(start..)?) {
        // A preamble with the magic in place but nothing behind it is a broken DICOM file, not another format.
        return (start == 132).then_some(Meta { end: start, ..Meta::default() });
    }
    let mut c = Cursor { bytes, pos: start, file_len: bytes.len() as u64, is_big: false, skipped: None };
    let mut found = Meta::default();
    while bytes.get(c.pos..c.pos + 2) == Some(&[2, 0]) {
        let Ok(h) = c.header(true) else { break };
        let Some(value) = bytes.get(c.pos..c.pos.saturating_add(h.length as usize)) else {
            found.is_cut = true;
            break;
        };
        match h.tag {
            tags::TRANSFER_SYNTAX_UID => found.transfer_syntax = uid(value),
            tags::MEDIA_STORAGE_SOP_CLASS_UID => found.sop_class = uid(value),
            _ => {}
        }
        c.pos += value.len();
    }
    Some(Meta { end: c.pos, ..found })
}

/// Whether bytes could be the start of a data set or of a meta group: a group that a file can begin with, and a length that is not absurd.
fn looks_like_elements(b: &[u8]) -> bool {
    if b.len() < 8 {
        return false;
    }
    let little = matches!((b[0], b[1]), (2 | 4 | 8, 0));
    let big = matches!((b[0], b[1]), (0, 2 | 4 | 8));
    let explicit = b[4].is_ascii_uppercase() && b[5].is_ascii_uppercase();
    let length = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
    (little && (explicit || length < 1 << 16)) || (big && explicit)
}

/// Reads up to the pixel data. `bytes` is a prefix (or all) of a file of `file_len` bytes.
pub fn scan<'a>(bytes: &'a [u8], file_len: u64, wanted: &Wanted) -> Result<Scan<'a>, Fault> {
    let Some(Meta { transfer_syntax, sop_class: media_class, end: start, is_cut }) = meta(bytes) else { return Err(Fault::NotDicom) };
    if is_cut && (bytes.len() as u64) < file_len {
        return Err(Fault::NeedsMore);
    }
    let Some(first) = bytes.get(start..start + 8) else {
        let why = "the file ends before its data set begins".to_string();
        return Err(if (bytes.len() as u64) < file_len { Fault::NeedsMore } else { Fault::Broken { why, so_far: Vec::new() } });
    };
    let is_big_endian = first[0] == 0 && first[1] != 0;
    let is_explicit = first[4].is_ascii_uppercase() && first[5].is_ascii_uppercase();
    let mut c = Cursor { bytes, pos: start, file_len, is_big: is_big_endian, skipped: None };
    let mut elements = Vec::with_capacity(64);
    let mut pixel = None;
    match c.level(None, is_explicit, 0, wanted, &mut elements, &mut pixel) {
        Ok(()) => Ok(Scan { transfer_syntax, media_class, is_big_endian, is_explicit, elements, pixel }),
        Err(Stop::NeedsMore) => Err(Fault::NeedsMore),
        Err(Stop::Broken(why)) => Err(Fault::Broken { why, so_far: elements }),
    }
}

/// Where values stand that nothing is read of: with others as long in their place a file is scanned to the same elements. Not all of them, and in order.
/// - `bytes`: up to the value of the pixel data
pub fn unread(bytes: &[u8], wanted: &Wanted) -> Vec<Range<usize>> {
    let start = meta(bytes).map_or(0, |m| m.end);
    let Some(first) = bytes.get(start..start + 8) else { return Vec::new() };
    let (is_big, is_explicit) = (first[0] == 0 && first[1] != 0, first[4].is_ascii_uppercase() && first[5].is_ascii_uppercase());
    let mut c = Cursor { bytes, pos: start, file_len: u64::MAX, is_big, skipped: Some(instance_of_meta(bytes).into_iter().collect()) };
    let _ = c.level(None, is_explicit, 0, wanted, &mut Vec::new(), &mut None);
    c.skipped.unwrap_or_default()
}

/// The value of MediaStorageSOPInstanceUID.
fn instance_of_meta(bytes: &[u8]) -> Option<Range<usize>> {
    let mut c = Cursor { bytes, pos: 132, file_len: u64::MAX, is_big: false, skipped: None };
    while bytes.get(c.pos..c.pos + 2) == Some(&[2, 0]) {
        let h = c.header(true).ok()?;
        let value = c.pos..c.pos.checked_add(h.length as usize).filter(|end| *end <= bytes.len())?;
        if h.tag == tags::MEDIA_STORAGE_SOP_INSTANCE_UID {
            return Some(value);
        }
        c.pos = value.end;
    }
    None
}

/// A text value without padding (space, NUL).
pub fn text(value: &[u8]) -> Cow<'_, str> {
    match String::from_utf8_lossy(value) {
        Cow::Borrowed(text) => Cow::Borrowed(trimmed(text)),
        Cow::Owned(text) => Cow::Owned(trimmed(&text).to_string()),
    }
}

/// A UID without padding; empty where it is not even text.
fn uid(value: &[u8]) -> &str {
    trimmed(std::str::from_utf8(value).unwrap_or_default())
}

pub fn trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| c == '\0' || c.is_whitespace())
}

/// VRs with a length of two bytes (PS3.5 7.1.2).
#[rustfmt::skip]
fn is_short(vr: &[u8; 2]) -> bool {
    matches!(
        vr,
        b"AE" | b"AS" | b"AT" | b"CS" | b"DA" | b"DS" | b"DT" | b"FD" | b"FL" | b"IS" | b"LO" | b"LT" | b"PN" | b"SH" | b"SL" | b"SS" | b"ST" | b"TM"
            | b"UI" | b"UL" | b"US"
    )
}

struct ElementHeader {
    tag: Tag,
    vr: [u8; 2],
    length: u32,
}

enum Stop {
    NeedsMore,
    Broken(String),
}

struct Cursor<'a> {
    bytes: &'a [u8],
    pos: usize,
    file_len: u64,
    is_big: bool,
    /// Where the values of plain elements stand that were stepped over, if that is asked for.
    skipped: Option<Vec<Range<usize>>>,
}

impl<'a> Cursor<'a> {
    /// The next `n` bytes, or why there are none.
    fn take(&mut self, n: usize, of: Option<Tag>) -> Result<&'a [u8], Stop> {
        let end = self.pos.checked_add(n).filter(|e| *e as u64 <= self.file_len);
        let Some(end) = end else {
            let left = self.file_len.saturating_sub(self.pos as u64);
            let what = of.map_or("an element header".to_string(), |t| format!("element {t}"));
            return Err(Stop::Broken(format!("the file ends inside {what}: {left} of {n} bytes are there")));
        };
        let got = self.bytes.get(self.pos..end).ok_or(Stop::NeedsMore)?;
        self.pos = end;
        Ok(got)
    }

    fn u16(&self, b: &[u8]) -> u16 {
        let b = [b[0], b[1]];
        if self.is_big { u16::from_be_bytes(b) } else { u16::from_le_bytes(b) }
    }

    fn u32(&self, b: &[u8]) -> u32 {
        let b = [b[0], b[1], b[2], b[3]];
        if self.is_big { u32::from_be_bytes(b) } else { u32::from_le_bytes(b) }
    }

    fn header(&mut self, explicit: bool) -> Result<ElementHeader, Stop> {
        let b = self.take(8, None)?;
        let tag = Tag(self.u16(&b[..2]), self.u16(&b[2..4]));
        let implicit = ElementHeader { tag, vr: *b"??", length: self.u32(&b[4..8]) };
        if tag.0 == 0xFFFE || !explicit {
            return Ok(implicit);
        }
        let vr = [b[4], b[5]];
        let short = self.u16(&b[6..8]) as u32;
        match &vr {
            b"OB" | b"OD" | b"OF" | b"OL" | b"OV" | b"OW" | b"SQ" | b"SV" | b"UC" | b"UN" | b"UR" | b"UT" | b"UV" => {
                let l = self.take(4, Some(tag))?;
                Ok(ElementHeader { tag, vr, length: self.u32(l) })
            }
            [a, b] if a.is_ascii_uppercase() && b.is_ascii_uppercase() => Ok(ElementHeader { tag, vr, length: short }),
            // Some writers put implicit elements into an explicit data set; others a VR that does not exist.
            _ if implicit.length != UNDEFINED && self.pos as u64 + implicit.length as u64 <= self.file_len => Ok(implicit),
            _ => Ok(ElementHeader { tag, vr: *b"UN", length: short }),
        }
    }

    /// The elements of a data set or an item. `end`: where a defined length ends.
    fn level(
        &mut self,
        end: Option<usize>,
        explicit: bool,
        depth: usize,
        wanted: &Wanted,
        out: &mut Vec<Element>,
        pixel: &mut Option<PixelElement>,
    ) -> Result<(), Stop> {
        loop {
            if explicit && !self.is_big {
                self.plain(end.unwrap_or(usize::MAX), wanted, out)?;
            }
            if end.is_some_and(|e| self.pos >= e) {
                return Ok(());
            }
            // A few bytes of padding at the end of a file are no element.
            if depth == 0 && self.file_len - (self.pos as u64).min(self.file_len) < 8 {
                return Ok(());
            }
            let h = self.header(explicit)?;
            let is_pixel = matches!(h.tag, tags::PIXEL_DATA | tags::FLOAT_PIXEL_DATA | tags::DOUBLE_FLOAT_PIXEL_DATA);
            if h.tag == ITEM_END || h.tag == SEQUENCE_END {
                if depth > 0 && end.is_none() {
                    return Ok(());
                }
            } else if depth == 0 && is_pixel {
                *pixel =
                    Some(PixelElement { tag: key(h.tag), offset: self.pos as u64, length: (h.length != UNDEFINED).then_some(h.length) });
                return Ok(());
            } else if depth < MAX_DEPTH && wanted.sequences.has(h.tag) {
                // Inside UN stands implicit VR little endian (PS3.5 6.2.2).
                let at = self.keep(Element { tag: h.tag, start: NESTED, end: 0 }, out)?;
                let read = self.items(h.length, explicit && &h.vr != b"UN", depth + 1, wanted, h.tag, out);
                out[at].end = out.len() as u32;
                read?;
            } else if h.length == UNDEFINED {
                self.skip_undefined(explicit && &h.vr != b"UN")?;
            } else {
                let start = self.pos as u32;
                self.take(h.length as usize, Some(h.tag))?;
                if wanted.values.has(h.tag) {
                    self.keep(Element { tag: h.tag, start, end: h.length }, out)?;
                }
            }
        }
    }

    /// Takes elements of short explicit VRs that lie in the buffer as a whole; whatever is anything else is left to [`Cursor::level`].
    fn plain(&mut self, end: usize, wanted: &Wanted, out: &mut Vec<Element>) -> Result<(), Stop> {
        let end = end.min(self.bytes.len());
        while self.pos < end
            && let Some([g, h, e, f, a, b, l, m]) = self.bytes.get(self.pos..).and_then(|b| b.first_chunk())
        {
            let tag = Tag(u16::from_le_bytes([*g, *h]), u16::from_le_bytes([*e, *f]));
            let (start, length) = (self.pos + 8, u16::from_le_bytes([*l, *m]));
            let next = start + length as usize;
            if tag.0 > LAST_PLAIN_GROUP || !is_short(&[*a, *b]) || next > self.bytes.len() || wanted.sequences.may_have(tag) {
                break;
            }
            self.pos = next;
            if wanted.values.has(tag) {
                self.keep(Element { tag, start: start as u32, end: length as u32 }, out)?;
            } else if let Some(skipped) = &mut self.skipped {
                skipped.push(start..next);
            }
        }
        Ok(())
    }

    fn keep(&self, e: Element, out: &mut Vec<Element>) -> Result<usize, Stop> {
        if out.len() > MAX_ELEMENTS && out.len() > self.pos / 16 {
            return Err(Stop::Broken(format!("{} elements within {} bytes", out.len(), self.pos)));
        }
        out.push(e);
        Ok(out.len() - 1)
    }

    fn items(&mut self, length: u32, explicit: bool, depth: usize, wanted: &Wanted, tag: Tag, out: &mut Vec<Element>) -> Result<(), Stop> {
        let end = self.end_of(length, tag)?;
        while end.is_none_or(|e| self.pos < e) {
            let h = self.header(explicit)?;
            match h.tag {
                ITEM => {
                    let item_end = self.end_of(h.length, tag)?;
                    let at = self.keep(Element { tag: ITEM, start: NESTED, end: 0 }, out)?;
                    let read = self.level(item_end, explicit, depth, wanted, out, &mut None);
                    out[at].end = out.len() as u32;
                    read?;
                }
                SEQUENCE_END => break,
                other => return Err(Stop::Broken(format!("sequence {tag} holds {other} where an item should begin"))),
            }
        }
        Ok(())
    }

    fn end_of(&self, length: u32, tag: Tag) -> Result<Option<usize>, Stop> {
        if length == UNDEFINED {
            return Ok(None);
        }
        let end = self.pos as u64 + length as u64;
        if end > self.file_len {
            let left = self.file_len - self.pos as u64;
            return Err(Stop::Broken(format!("the file ends inside sequence {tag}: {left} of {length} bytes are there")));
        }
        Ok(Some(end as usize))
    }

    /// Steps over a sequence (or encapsulated icon) of undefined length with whatever is nested in it. The nesting stands on the heap: 100,000 levels
    /// are a slow file, not a stack overflow.
    fn skip_undefined(&mut self, explicit: bool) -> Result<(), Stop> {
        let mut open = vec![explicit];
        while let Some(&explicit) = open.last() {
            let h = self.header(explicit)?;
            match h.tag {
                ITEM if h.length == UNDEFINED => open.push(explicit),
                ITEM_END | SEQUENCE_END => drop(open.pop()),
                _ if h.length == UNDEFINED => open.push(explicit && &h.vr != b"UN"),
                _ => drop(self.take(h.length as usize, Some(h.tag))?),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted::new(vec![tags::ROWS, tags::MODALITY], vec![tags::PIXEL_MEASURES_SEQUENCE])
    }

    fn explicit(tag: Tag, vr: &[u8; 2], value: &[u8]) -> Vec<u8> {
        let mut b = [tag.0.to_le_bytes(), tag.1.to_le_bytes()].concat();
        b.extend(vr);
        b.extend((value.len() as u16).to_le_bytes());
        b.extend(value);
        b
    }

    #[test]
    fn a_file_without_preamble_or_meta_is_read() {
        let bytes = [explicit(tags::MODALITY, b"CS", b"CT"), explicit(tags::ROWS, b"US", &[7, 0])].concat();
        let s = scan(&bytes, bytes.len() as u64, &wanted()).unwrap();
        assert!(s.is_explicit && !s.is_big_endian);
        assert_eq!(s.elements.len(), 2);
    }

    #[test]
    fn deep_nesting_costs_no_stack() {
        let mut bytes = explicit(tags::MODALITY, b"CS", b"CT");
        for _ in 0..100_000 {
            bytes.extend([0x40, 0x00, 0x75, 0x02, b'S', b'Q', 0, 0, 0xff, 0xff, 0xff, 0xff]);
            bytes.extend([0xfe, 0xff, 0x00, 0xe0, 0xff, 0xff, 0xff, 0xff]);
        }
        assert!(matches!(scan(&bytes, bytes.len() as u64, &wanted()), Err(Fault::Broken { .. })));
    }

    #[test]
    fn a_prefix_asks_for_more_and_a_truncated_file_does_not() {
        let bytes = [explicit(tags::MODALITY, b"CS", b"CT"), explicit(tags::PATIENT_NAME, b"PN", &[b'x'; 40])].concat();
        assert!(matches!(scan(&bytes[..20], bytes.len() as u64, &wanted()), Err(Fault::NeedsMore)));
        let Err(Fault::Broken { so_far, .. }) = scan(&bytes[..20], 20, &wanted()) else { panic!("it is cut off") };
        assert_eq!(so_far.len(), 1);
    }

    #[test]
    fn text_is_not_dicom() {
        let letter = b"Dear colleague, thank you for sending this patient.".repeat(10);
        assert!(matches!(scan(&letter, letter.len() as u64, &wanted()), Err(Fault::NotDicom)));
        assert!(matches!(scan(b"", 0, &wanted()), Err(Fault::NotDicom)));
    }
}
