//! Elements as they lie in a file (PS3.5 section 7): one header at a time, by position. No recursion, no allocation by a length that a file states.

pub const UNDEFINED: u32 = u32::MAX;
pub const ITEM: u32 = 0xFFFE_E000;
pub const ITEM_END: u32 = 0xFFFE_E00D;
pub const SEQUENCE_END: u32 = 0xFFFE_E0DD;

/// Part of a file, from its start on.
#[derive(Clone, Copy)]
pub struct Bytes<'a> {
    pub data: &'a [u8],
    /// Of the whole file.
    pub len: u64,
}

/// Why reading ends early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The file goes on, the buffer does not.
    NeedsMore,
    Broken(String),
}

/// How elements are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coding {
    pub explicit: bool,
    pub big: bool,
}

/// Inside an element of VR UN stands implicit VR little endian (PS3.5 6.2.2).
pub const IMPLICIT: Coding = Coding { explicit: false, big: false };

/// Header of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub tag: u32,
    /// `??` where the header has none.
    pub vr: [u8; 2],
    pub form: Form,
    /// Where the header begins, and the value.
    pub at: usize,
    pub value: usize,
    pub length: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Tag, length of 32 bits.
    Implicit,
    /// Tag, VR, length of 16 bits.
    Short,
    /// Tag, VR, two bytes, length of 32 bits.
    Long,
}

pub fn name(tag: u32) -> String {
    format!("({:04X},{:04X})", tag >> 16, tag & 0xFFFF)
}

impl<'a> Bytes<'a> {
    /// Bytes `at..at + n`.
    pub fn get(&self, at: usize, n: usize, of: impl Fn() -> String) -> Result<&'a [u8], Stop> {
        let end = at.checked_add(n).filter(|e| *e as u64 <= self.len);
        let Some(end) = end else {
            let left = self.len.saturating_sub(at as u64);
            return Err(Stop::Broken(format!("the file ends inside {}: {left} of {n} bytes are there", of())));
        };
        self.data.get(at..end).ok_or(Stop::NeedsMore)
    }

    pub fn head(&self, at: usize, coding: Coding) -> Result<Head, Stop> {
        let b = self.get(at, 8, || "an element header".into())?;
        let u16_of = |b: &[u8]| if coding.big { u16::from_be_bytes([b[0], b[1]]) } else { u16::from_le_bytes([b[0], b[1]]) };
        let u32_of = |b: &[u8]| {
            let b = [b[0], b[1], b[2], b[3]];
            if coding.big { u32::from_be_bytes(b) } else { u32::from_le_bytes(b) }
        };
        let tag = (u16_of(b) as u32) << 16 | u16_of(&b[2..]) as u32;
        let implicit = Head { tag, vr: *b"??", form: Form::Implicit, at, value: at + 8, length: u32_of(&b[4..]) };
        if !coding.explicit || tag >> 16 == 0xFFFE {
            return Ok(implicit);
        }
        let vr = [b[4], b[5]];
        match &vr {
            b"OB" | b"OD" | b"OF" | b"OL" | b"OV" | b"OW" | b"SQ" | b"SV" | b"UC" | b"UN" | b"UR" | b"UT" | b"UV" => {
                let length = u32_of(self.get(at + 8, 4, || format!("element {}", name(tag)))?);
                Ok(Head { vr, form: Form::Long, value: at + 12, length, ..implicit })
            }
            [a, b2] if a.is_ascii_uppercase() && b2.is_ascii_uppercase() => {
                Ok(Head { vr, form: Form::Short, length: u16_of(&b[6..]) as u32, ..implicit })
            }
            // Some writers put implicit elements into an explicit data set; others a VR that does not exist.
            _ if implicit.length != UNDEFINED && implicit.value as u64 + implicit.length as u64 <= self.len => Ok(implicit),
            _ => Ok(Head { vr: *b"UN", form: Form::Short, length: u16_of(&b[6..]) as u32, ..implicit }),
        }
    }

    /// The value of an element of defined length.
    pub fn value(&self, h: &Head) -> Result<&'a [u8], Stop> {
        self.get(h.value, h.length as usize, || format!("element {}", name(h.tag)))
    }

    /// Where the next element begins: values and sequences of undefined length are stepped over with all that is nested in them. The nesting stands on
    /// the heap: a hundred thousand levels are a slow file, not a stack overflow.
    pub fn after(&self, h: &Head, coding: Coding) -> Result<usize, Stop> {
        if h.length != UNDEFINED {
            self.value(h)?;
            return Ok(h.value + h.length as usize);
        }
        let inner = |h: &Head, c: Coding| if &h.vr == b"UN" { IMPLICIT } else { c };
        let mut open = vec![inner(h, coding)];
        let mut at = h.value;
        while let Some(&coding) = open.last() {
            let h = self.head(at, coding)?;
            at = h.value;
            match h.tag {
                ITEM_END | SEQUENCE_END => drop(open.pop()),
                _ if h.length == UNDEFINED => open.push(inner(&h, coding)),
                _ => {
                    self.value(&h)?;
                    at += h.length as usize;
                }
            }
        }
        Ok(at)
    }
}

/// The byte order and the VRs of a data set are those of its first element: what the meta group says is sometimes wrong.
pub fn coding_at(data: &[u8], start: usize) -> Option<Coding> {
    let b = data.get(start..start + 8)?;
    Some(Coding { explicit: b[4].is_ascii_uppercase() && b[5].is_ascii_uppercase(), big: b[0] == 0 && b[1] != 0 })
}
