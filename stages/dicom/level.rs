//! The values of one data set or item, asked by tag: the types that PS3.6 gives to the tags we read, whatever VR the file wrote.

use std::borrow::Cow;

use dicom::core::Tag;

use super::charset;
use super::scan::{self, Element};

/// The elements of one data set or item, asked by tag.
#[derive(Clone, Copy)]
pub struct Level<'a> {
    bytes: &'a [u8],
    elements: &'a [Element],
    /// Which of the elements are its own, or stand in its sequences.
    own: (usize, usize),
    /// Each tag is greater than the one before, and none holds others.
    is_sorted: bool,
    pub is_big: bool,
}

impl<'a> Level<'a> {
    /// A data set. `bytes`: what was scanned.
    pub fn new(bytes: &'a [u8], elements: &'a [Element], is_big: bool) -> Self {
        let is_sorted = elements.windows(2).all(|e| e[0].tag < e[1].tag) && elements.iter().all(|e| e.value().is_some());
        Self { bytes, elements, own: (0, elements.len()), is_sorted, is_big }
    }

    fn find(&self, tag: Tag) -> Option<usize> {
        if self.is_sorted {
            return self.elements.binary_search_by_key(&scan::key(tag), |e| scan::key(e.tag)).ok();
        }
        let mut at = self.own.0;
        while at < self.own.1 {
            let e = &self.elements[at];
            if e.tag == tag {
                return Some(at);
            }
            at = e.next(at);
        }
        None
    }

    pub fn bytes(&self, tag: Tag) -> &'a [u8] {
        let value = self.find(tag).and_then(|at| self.elements[at].value());
        value.and_then(|v| self.bytes.get(v)).unwrap_or(&[])
    }

    pub fn items(&self, tag: Tag) -> impl Iterator<Item = Level<'a>> + use<'a> {
        let level = *self;
        let sequence = self.find(tag).filter(|at| self.elements[*at].value().is_none());
        let (mut at, end) = sequence.map_or((0, 0), |at| (at + 1, self.elements[at].next(at)));
        std::iter::from_fn(move || {
            let item = level.elements.get(at).filter(|_| at < end)?;
            let own = (at + 1, item.next(at));
            at = own.1;
            Some(Level { own, ..level })
        })
    }

    /// A value of the default repertoire: UID, CS, IS.
    pub fn text(&self, tag: Tag) -> String {
        self.as_text(tag).into_owned()
    }

    pub fn as_text(&self, tag: Tag) -> Cow<'a, str> {
        scan::text(self.bytes(tag))
    }

    pub fn texts(&self, tag: Tag) -> Vec<String> {
        let text = self.as_text(tag);
        if text.is_empty() { Vec::new() } else { text.split('\\').map(|s| s.trim().to_string()).collect() }
    }

    /// A value in the character sets of the file.
    pub fn free_text(&self, tag: Tag, charset: &[String]) -> String {
        charset::decode(self.bytes(tag), charset)
    }

    /// DS values; values that are no numbers are left out, so a broken triple has another length and counts as absent.
    pub fn floats(&self, tag: Tag) -> impl Iterator<Item = f64> + use<'a> {
        let values = self.bytes(tag).split(|b| *b == b'\\').filter_map(|v| std::str::from_utf8(v).ok());
        values.filter_map(|v| scan::trimmed(v).parse().ok()).filter(|v: &f64| v.is_finite())
    }

    /// The first of them.
    pub fn float(&self, tag: Tag) -> Option<f64> {
        self.floats(tag).next()
    }

    /// All of them, where there are so many.
    pub fn vector<const N: usize>(&self, tag: Tag) -> Option<[f64; N]> {
        let mut values = self.floats(tag);
        let mut out = [0.0; N];
        for v in &mut out {
            *v = values.next()?;
        }
        values.next().is_none().then_some(out)
    }

    pub fn int(&self, tag: Tag) -> Option<i64> {
        let all = self.as_text(tag);
        let text = all.split('\\').next()?.trim();
        text.parse().ok().or_else(|| text.parse::<f64>().ok().map(|v| v as i64))
    }

    pub fn us(&self, tag: Tag) -> Option<u32> {
        let b: [u8; 2] = self.bytes(tag).get(..2)?.try_into().ok()?;
        Some(if self.is_big { u16::from_be_bytes(b) } else { u16::from_le_bytes(b) } as u32)
    }

    /// All values of VR US.
    pub fn uss(&self, tag: Tag) -> Vec<i64> {
        let one = |b: &[u8; 2]| if self.is_big { u16::from_be_bytes(*b) } else { u16::from_le_bytes(*b) };
        self.bytes(tag).as_chunks::<2>().0.iter().map(|b| one(b) as i64).collect()
    }

    /// An attribute tag (VR AT), group above element.
    pub fn tag(&self, tag: Tag) -> Option<u32> {
        let b: [u8; 4] = self.bytes(tag).get(..4)?.try_into().ok()?;
        let half = |b: [u8; 2]| if self.is_big { u16::from_be_bytes(b) } else { u16::from_le_bytes(b) } as u32;
        Some(half([b[0], b[1]]) << 16 | half([b[2], b[3]]))
    }

    pub fn ul(&self, tag: Tag) -> Vec<i64> {
        let one = |b: &[u8]| {
            let b = [b[0], b[1], b[2], b[3]];
            if self.is_big { u32::from_be_bytes(b) } else { u32::from_le_bytes(b) }
        };
        self.bytes(tag).chunks_exact(4).map(|b| one(b) as i64).collect()
    }

    pub fn fd(&self, tag: Tag) -> Option<f64> {
        let b: [u8; 8] = self.bytes(tag).get(..8)?.try_into().ok()?;
        Some(if self.is_big { f64::from_be_bytes(b) } else { f64::from_le_bytes(b) }).filter(|v| v.is_finite())
    }

    /// TM `HHMMSS.F` or DT `YYYYMMDDHHMMSS.F` as seconds (of the day, or of a made-up calendar that keeps order).
    pub fn time_s(&self, tag: Tag) -> Option<f64> {
        let text = self.as_text(tag);
        let text = if text.contains(':') { Cow::Owned(text.replace(':', "")) } else { text };
        let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
        let digits = whole.get(..whole.find(|c: char| !c.is_ascii_digit()).unwrap_or(whole.len()))?;
        let (days, clock) = if digits.len() > 6 { digits.split_at_checked(8)? } else { ("0", digits) };
        let part = |at: usize| clock.get(at..at + 2).and_then(|s| s.parse::<f64>().ok()).unwrap_or(0.0);
        let fraction = fraction.get(..fraction.len().min(6))?;
        let mut decimal = *b"0.000000";
        decimal[2..2 + fraction.len()].copy_from_slice(fraction.as_bytes());
        let fraction: f64 = std::str::from_utf8(&decimal[..2 + fraction.len()]).ok().and_then(|d| d.parse().ok()).unwrap_or(0.0);
        (!digits.is_empty()).then(|| days.parse::<f64>().unwrap_or(0.0) * 86400.0 + part(0) * 3600.0 + part(2) * 60.0 + part(4) + fraction)
    }
}
