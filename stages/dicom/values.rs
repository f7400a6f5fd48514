//! Stored samples → voxel values: bits are cut out and sign-extended (PS3.5 8.1.1), then slope and intercept, or a table, are applied. Loops over whole
//! slices without a branch a pixel.

use super::lut::Lut;

/// The samples of one grey frame, as they stand in the file or as a codec gave them.
#[derive(Clone, Copy, Debug)]
pub struct Raw<'a> {
    pub bytes: &'a [u8],
    pub format: Format,
}

/// How a sample lies in its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Bytes a sample: 1, 2, 4 or 8.
    pub width: usize,
    pub is_big: bool,
    pub is_float: bool,
    /// Bits that hold the value, and how many lie below them.
    pub bits: u32,
    pub shift: u32,
    pub is_signed: bool,
}

/// From stored value to voxel value.
#[derive(Clone, Debug)]
pub enum Map {
    Linear { slope: f64, intercept: f64 },
    Table(std::sync::Arc<Lut>),
}

/// Least and greatest of exact integers.
pub type Range = (i64, i64);

impl Format {
    /// Two's complement of any width: flip the sign bit, take it off again. Higher bits may hold overlays.
    fn value(&self, word: u32) -> i64 {
        let mask = if self.bits >= 32 { u32::MAX } else { (1 << self.bits) - 1 };
        let sign = if self.is_signed { 1u32 << (self.bits.clamp(1, 32) - 1) } else { 0 };
        ((word >> self.shift & mask) ^ sign) as i64 - sign as i64
    }

    /// Calls `use_it` with every integer, in order.
    fn each_int(&self, bytes: &[u8], mut use_it: impl FnMut(i64)) {
        match self.width {
            1 => bytes.iter().for_each(|b| use_it(self.value(*b as u32))),
            2 if self.is_big => bytes.as_chunks().0.iter().for_each(|b| use_it(self.value(u16::from_be_bytes(*b) as u32))),
            2 => bytes.as_chunks().0.iter().for_each(|b| use_it(self.value(u16::from_le_bytes(*b) as u32))),
            _ if self.is_big => bytes.as_chunks().0.iter().for_each(|b| use_it(self.value(u32::from_be_bytes(*b)))),
            _ => bytes.as_chunks().0.iter().for_each(|b| use_it(self.value(u32::from_le_bytes(*b)))),
        }
    }

    /// The same for float32 and float64.
    fn each_float(&self, bytes: &[u8], mut use_it: impl FnMut(f64)) {
        match (self.width, self.is_big) {
            (4, true) => bytes.as_chunks().0.iter().for_each(|b| use_it(f32::from_be_bytes(*b) as f64)),
            (4, false) => bytes.as_chunks().0.iter().for_each(|b| use_it(f32::from_le_bytes(*b) as f64)),
            (_, true) => bytes.as_chunks().0.iter().for_each(|b| use_it(f64::from_be_bytes(*b))),
            (_, false) => bytes.as_chunks().0.iter().for_each(|b| use_it(f64::from_le_bytes(*b))),
        }
    }
}

/// Slope and intercept where both are integers that leave no doubt.
pub fn integers(slope: f64, intercept: f64) -> Option<(i64, i64)> {
    let is_small = |v: f64| v.fract() == 0.0 && v.abs() <= 65536.0;
    (is_small(slope) && is_small(intercept)).then_some((slope as i64, intercept as i64))
}

/// 16-bit samples that already lie in `words`, byte by byte as in the file, become voxel values modulo 2^16 in place. Gives their true range.
pub fn in_place(words: &mut [i16], f: &Format, slope: i64, intercept: i64) -> Range {
    let (left, right) = (16 - f.bits - f.shift, 16 - f.bits);
    let (s, i) = (slope as i16, intercept as i16);
    let is_big = f.is_big;
    let load = |w: i16| if is_big { i16::from_be(w) } else { i16::from_le(w) };
    let (mut low, mut high) = (i16::MAX, i16::MIN);
    // One loop for each sign, so that the compiler needs no choice inside it.
    if f.is_signed {
        for w in words {
            let v = (load(*w) << left) >> right;
            (low, high) = (low.min(v), high.max(v));
            *w = v.wrapping_mul(s).wrapping_add(i);
        }
        return scaled((low as i64, high as i64), slope, intercept);
    }
    for w in words {
        let v = ((load(*w) as u16) << left) >> right;
        // Order of unsigned numbers is that of signed ones with the top bit flipped.
        let ordered = (v ^ 0x8000) as i16;
        (low, high) = (low.min(ordered), high.max(ordered));
        *w = (v as i16).wrapping_mul(s).wrapping_add(i);
    }
    scaled((low as i64 + 0x8000, high as i64 + 0x8000), slope, intercept)
}

fn scaled((low, high): Range, slope: i64, intercept: i64) -> Range {
    let (a, b) = (low * slope + intercept, high * slope + intercept);
    (a.min(b), a.max(b))
}

/// Any integer samples → voxel values modulo 2^16, and their true range.
pub fn wrapped(raw: Raw, map: &Map, out: &mut [i16]) -> Range {
    let (mut low, mut high) = (i64::MAX, i64::MIN);
    let mut place = out.iter_mut();
    let mut put = |v: i64| {
        (low, high) = (low.min(v), high.max(v));
        if let Some(o) = place.next() {
            *o = v as i16;
        }
    };
    match map {
        Map::Table(lut) => raw.format.each_int(raw.bytes, |v| put(lut.at(v) as i64)),
        Map::Linear { slope, intercept } => {
            let (slope, intercept) = (*slope as i64, *intercept as i64);
            raw.format.each_int(raw.bytes, |v| put(v * slope + intercept));
        }
    }
    (low, high)
}

/// Bytes that are values already.
pub fn bytes_of(raw: Raw, out: &mut [u8]) {
    let f = raw.format;
    let mask = (((1u32 << f.bits) - 1) & 0xff) as u8;
    raw.bytes.iter().zip(out).for_each(|(b, o)| *o = (*b >> f.shift) & mask);
}

/// Any samples → float32. Gives whether every value is exactly what the file holds (asked where no scaling rounds anyway).
pub fn real(raw: Raw, map: &Map, out: &mut [f32]) -> bool {
    let f = raw.format;
    // The usual case, without the general one's shifts.
    if let (Map::Linear { slope, intercept }, false, 2, false, 16) = (map, f.is_float, f.width, f.is_big, f.bits) {
        let words = raw.bytes.as_chunks::<2>().0.iter().zip(out);
        let value = |v: f64| (v * slope + intercept) as f32;
        if f.is_signed {
            words.for_each(|(b, o)| *o = value(i16::from_le_bytes(*b) as f64));
        } else {
            words.for_each(|(b, o)| *o = value(u16::from_le_bytes(*b) as f64));
        }
        return true;
    }
    let mut place = out.iter_mut();
    let mut put = |v: f32| {
        if let Some(o) = place.next() {
            *o = v;
        }
    };
    match map {
        Map::Table(lut) => f.each_int(raw.bytes, |v| put(lut.at(v) as f32)),
        Map::Linear { slope, intercept } => {
            let (slope, intercept) = (*slope, *intercept);
            let is_whole = integers(slope, intercept).is_some();
            let mut lost = false;
            let mut scale = |v: f64| {
                let v = v * slope + intercept;
                lost |= v as f32 as f64 != v && !v.is_nan();
                put(v as f32);
            };
            if f.is_float {
                f.each_float(raw.bytes, scale)
            } else {
                f.each_int(raw.bytes, |v| scale(v as f64))
            }
            return !(lost && is_whole);
        }
    }
    true
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn format(width: usize, bits: u32, is_signed: bool) -> Format {
        Format { width, is_big: false, is_float: false, bits, shift: 0, is_signed }
    }

    /// Both ways must agree wherever both can go.
    fn ints(f: Format, bytes: &[u8]) -> Vec<i64> {
        let mut slow = Vec::new();
        f.each_int(bytes, |v| slow.push(v));
        if f.width == 2 {
            let mut words: Vec<i16> = bytes.as_chunks().0.iter().map(|b| i16::from_ne_bytes(*b)).collect();
            let range = in_place(&mut words, &f, 1, 0);
            assert_eq!(words, slow.iter().map(|v| *v as i16).collect::<Vec<_>>());
            assert_eq!(range, (*slow.iter().min().unwrap(), *slow.iter().max().unwrap()));
        }
        slow
    }

    #[test]
    fn bits_above_the_high_bit_are_cut_and_the_sign_extended() {
        // 0xF800: an overlay above, −2048 below.
        assert_eq!(ints(format(2, 12, true), &[0x00, 0xf8, 0xff, 0x07]), [-2048, 2047]);
        assert_eq!(ints(format(2, 12, false), &[0xff, 0xff, 0x00, 0x00]), [4095, 0]);
        assert_eq!(ints(Format { is_big: true, ..format(2, 16, true) }, &[0xff, 0xfe, 0x00, 0x01]), [-2, 1]);
        assert_eq!(ints(format(1, 8, true), &[0x80, 0x7f]), [-128, 127]);
        assert_eq!(ints(format(4, 32, true), &[0xff; 8]), [-1, -1]);
        assert_eq!(ints(format(4, 32, false), &[0xff; 4]), [u32::MAX as i64]);
        assert_eq!(ints(Format { shift: 4, ..format(2, 12, false) }, &[0xf0, 0xff, 0x1f, 0x00]), [4095, 1]);
        assert_eq!(ints(Format { shift: 4, ..format(2, 12, true) }, &[0xf0, 0xff, 0x1f, 0x00]), [-1, 1]);
    }

    #[test]
    fn the_range_of_values_beyond_sixteen_bits_is_known() {
        // Unsigned 16-bit with intercept −1024: −1024 … 64511.
        let mut words = [0u16, 1024, 65535].map(|v| v as i16);
        let range = in_place(&mut words, &format(2, 16, false), 1, -1024);
        assert_eq!(range, (-1024, 64511));
    }

    #[test]
    fn a_negative_slope_turns_the_range_around() {
        let mut words = [0i16, 100];
        assert_eq!(in_place(&mut words, &format(2, 16, true), -2, 5), (-195, 5));
        assert_eq!(words, [5, -195]);
    }

    #[test]
    fn what_float32_cannot_hold_is_told() {
        let map = Map::Linear { slope: 1.0, intercept: 0.0 };
        let mut out = [0f32; 1];
        let f = format(4, 32, false);
        assert!(real(Raw { bytes: &16_777_216u32.to_le_bytes(), format: f }, &map, &mut out));
        assert!(!real(Raw { bytes: &16_777_217u32.to_le_bytes(), format: f }, &map, &mut out));
        let double = Format { width: 8, is_float: true, bits: 64, ..f };
        assert!(!real(Raw { bytes: &0.1f64.to_le_bytes(), format: double }, &map, &mut out));
        assert!(real(Raw { bytes: &0.5f64.to_le_bytes(), format: double }, &map, &mut out));
        assert!(real(Raw { bytes: &[3, 0, 0, 0], format: f }, &Map::Linear { slope: 0.1, intercept: 0.0 }, &mut out), "scaling rounds");
    }
}
