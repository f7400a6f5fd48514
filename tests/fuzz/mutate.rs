//! Mutations that know what a DICOM file is made of: an element gets another value, another length, a twin or an end, lengths around it follow, and the
//! pixels of a compressed file stay in their fragments. Half of all mutations are still libFuzzer's own, which know nothing.

use libfuzzer_sys::fuzzer_mutate;

/// An element of the top level: where it begins, and where its value begins and ends.
#[derive(Clone, Copy)]
struct Element {
    start: usize,
    value: usize,
    end: usize,
    group: u16,
    vr: [u8; 2],
    /// Bytes of the length field; it ends where the value begins.
    length_bytes: usize,
    is_undefined: bool,
}

const SYNTAXES: [&str; 22] = [
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.98",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.8.1",
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.53",
    "1.2.840.10008.1.2.4.55",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.92",
    "1.2.840.10008.1.2.4.93",
    "1.2.840.10008.1.2.4.201",
    "1.2.840.10008.1.2.4.202",
    "1.2.840.10008.1.2.4.203",
];
const TEXTS: [&str; 24] = [
    "0",
    "1",
    "2",
    "-1",
    "65535",
    "65536",
    "2147483647",
    "-2147483648",
    "4294967295",
    "1e308",
    "-1e308",
    "1e-308",
    "nan",
    "inf",
    "0\\0\\0",
    "1\\0\\0\\0\\1\\0",
    "0\\0\\0\\0\\0\\0",
    "1e9\\1e9\\-1e9",
    "MONOCHROME1",
    "RGB",
    "YBR_FULL_422",
    "PALETTE COLOR",
    "LABELMAP",
    "FRACTIONAL",
];
const WORDS: [u16; 12] = [0, 1, 2, 3, 7, 8, 12, 16, 32, 64, 0x7fff, 0xffff];

/// Small, and the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % n.max(1)
    }
}

/// A mutator of libFuzzer: changes the first `size` bytes of `data` in place, gives how many there are then.
pub fn mutated(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut dice = Dice(seed as u64);
    dice.below(1);
    let elements = elements(&data[..size]);
    if elements.is_empty() || dice.below(2) == 0 {
        return fuzzer_mutate(data, size, max_size);
    }
    let e = elements[dice.below(elements.len())];
    let value = &mut data[e.value..e.end];
    let new: Vec<u8> = match dice.below(8) {
        // In its place, by libFuzzer: what it is long stays.
        0 | 1 if !value.is_empty() => {
            let n = value.len();
            fuzzer_mutate(value, n, n);
            return size;
        }
        2 if e.group == 2 => SYNTAXES[dice.below(SYNTAXES.len())].bytes().collect(),
        2 | 3 if matches!(&e.vr, b"US" | b"SS" | b"OW" | b"AT") => WORDS[dice.below(WORDS.len())].to_le_bytes().to_vec(),
        2 | 3 => TEXTS[dice.below(TEXTS.len())].bytes().collect(),
        4 => value[..dice.below(value.len() + 1)].to_vec(),
        5 => value.repeat(1 + dice.below(3)),
        // Gone, or there twice.
        6 => return spliced(data, size, max_size, e.start..e.end, &[]),
        _ => {
            let twin = data[e.start..e.end].to_vec();
            let at = elements[dice.below(elements.len())].start;
            return spliced(data, size, max_size, at..at, &twin);
        }
    };
    if e.is_undefined {
        return spliced(data, size, max_size, e.value..e.end, &new);
    }
    let mut new = new;
    if new.len() % 2 == 1 {
        new.push(b' ');
    }
    let length = e.value - e.length_bytes;
    if e.length_bytes == 2 {
        data[length..e.value].copy_from_slice(&(new.len() as u16).to_le_bytes());
    } else {
        data[length..e.value].copy_from_slice(&(new.len() as u32).to_le_bytes());
    }
    spliced(data, size, max_size, e.value..e.end, &new)
}

/// Puts `new` in the place of `old`; nothing is changed where that is too long.
fn spliced(data: &mut [u8], size: usize, max_size: usize, old: std::ops::Range<usize>, new: &[u8]) -> usize {
    let after = size - old.len() + new.len();
    if after > max_size.min(data.len()) {
        return size;
    }
    data.copy_within(old.end..size, old.start + new.len());
    data[old.start..old.start + new.len()].copy_from_slice(new);
    after
}

/// The elements of the meta group and of the top level, little endian; those of encapsulated pixels are their fragments.
fn elements(b: &[u8]) -> Vec<Element> {
    let mut out = Vec::new();
    let mut at = if b.get(128..132) == Some(b"DICM") { 132 } else { 0 };
    while let Some(e) = element(b, at) {
        at = e.end;
        if e.group == 0x7fe0 && e.is_undefined {
            fragments(b, e.value, &mut out);
            break;
        }
        out.push(e);
    }
    out
}

fn fragments(b: &[u8], mut at: usize, out: &mut Vec<Element>) {
    while let Some(e) = element(b, at).filter(|e| e.group == 0xfffe && !e.is_undefined) {
        out.push(e);
        at = e.end;
    }
}

fn element(b: &[u8], start: usize) -> Option<Element> {
    let head = b.get(start..start + 8)?;
    let group = u16::from_le_bytes([head[0], head[1]]);
    let vr = [head[4], head[5]];
    let is_explicit = group != 0xfffe && vr.iter().all(u8::is_ascii_uppercase);
    let is_long = matches!(&vr, b"OB" | b"OD" | b"OF" | b"OL" | b"OV" | b"OW" | b"SQ" | b"SV" | b"UC" | b"UN" | b"UR" | b"UT" | b"UV");
    let (value, length_bytes) = match (is_explicit, is_long) {
        (true, true) => (start + 12, 4),
        (true, false) => (start + 8, 2),
        (false, _) => (start + 8, 4),
    };
    let length = b.get(value - length_bytes..value)?.iter().rev().fold(0usize, |n, b| n << 8 | *b as usize);
    let is_undefined = length_bytes == 4 && length == u32::MAX as usize;
    // A sequence without a length ends at the first delimiter, pixels at the last: as far as a look for them finds it.
    let is_delimiter = |w: &[u8]| w == [0xfe, 0xff, 0xdd, 0xe0, 0, 0, 0, 0];
    let found = match (is_undefined, group) {
        (false, _) => None,
        (true, 0x7fe0) => b[value..].windows(8).rposition(is_delimiter),
        (true, _) => b[value..].windows(8).position(is_delimiter),
    };
    let end = match is_undefined {
        true => found.map_or(b.len(), |i| value + i + 8),
        false => value + length,
    };
    (end <= b.len()).then_some(Element { start, value, end, group, vr, length_bytes, is_undefined })
}
