//! Look-up tables: Modality LUT (PS3.3 C.11.1) and palettes, plain (C.7.6.3.1.5) and segmented (C.7.9.2).

/// A table from stored value to output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lut {
    /// Stored value of the first entry; below it the first entry holds, above the last one the last.
    pub first: i64,
    /// Bits of an entry: 8 or 16 (some files say 10 or 12).
    pub bits: u32,
    pub entries: Vec<u16>,
}

/// 0 in a descriptor stands for it.
const MOST_ENTRIES: usize = 65536;

impl Lut {
    pub fn at(&self, stored: i64) -> u16 {
        let last = self.entries.len() as i64 - 1;
        self.entries[(stored - self.first).clamp(0, last) as usize]
    }

    /// Reads descriptor (number of entries, first stored value, bits) and data: the values of three elements, of which the last may be empty.
    /// - `is_signed`: PixelRepresentation, which says how the second number is read
    pub fn read(descriptor: &[u8], plain: &[u8], segmented: &[u8], is_signed: bool, is_big: bool) -> Result<Lut, String> {
        let words = words(descriptor, is_big);
        let [n, first, bits] = words[..] else { return Err(format!("the LUT descriptor holds {} numbers, expected 3", words.len())) };
        let n = if n == 0 { MOST_ENTRIES } else { n as usize };
        let first = if is_signed { first as i16 as i64 } else { first as i64 };
        if !(8..=16).contains(&bits) {
            return Err(format!("LUT entries of {bits} bits, expected 8 to 16"));
        }
        let entries = if !plain.is_empty() {
            entries(plain, n, is_big)
        } else {
            // Segments of 8-bit tables are bytes, of 16-bit tables words.
            let codes: Vec<u16> = if bits <= 8 { segmented.iter().map(|b| *b as u16).collect() } else { self::words(segmented, is_big) };
            expand(&codes, n)?
        };
        if entries.len() < n {
            return Err(format!("the LUT holds {} of {n} entries", entries.len()));
        }
        Ok(Lut { first, bits: bits as u32, entries })
    }
}

fn words(bytes: &[u8], is_big: bool) -> Vec<u16> {
    let one = |b: &[u8; 2]| if is_big { u16::from_be_bytes(*b) } else { u16::from_le_bytes(*b) };
    bytes.as_chunks::<2>().0.iter().map(one).collect()
}

/// Entries of 8 bits stand in words or, packed, two in one.
fn entries(data: &[u8], n: usize, is_big: bool) -> Vec<u16> {
    let mut out = words(data, is_big);
    if out.len() < n && data.len() >= n {
        // Two in a word, the first in its low half: byte by byte in little endian.
        out = if is_big { out.iter().flat_map(|w| [*w & 0xff, *w >> 8]).collect() } else { data.iter().map(|b| *b as u16).collect() };
    }
    out.truncate(n);
    out
}

/// Segments → entries, at most `n` of them. An indirect segment repeats others, but no indirect ones.
fn expand(codes: &[u16], n: usize) -> Result<Vec<u16>, String> {
    let mut out: Vec<u16> = Vec::new();
    let mut at = 0;
    while at < codes.len() && out.len() < n {
        if codes[at] == 2 {
            let short = "an indirect segment of the palette is cut off";
            let &[count, low, high] = codes.get(at + 1..at + 4).ok_or(short)? else { return Err(short.into()) };
            let is_wide = n > 256 || codes.iter().any(|c| *c > 255);
            // The offset counts bytes.
            let offset = if is_wide { ((high as usize) << 16 | low as usize) / 2 } else { (high as usize) << 16 | low as usize };
            let mut place = offset;
            for _ in 0..count {
                if out.len() >= n {
                    break;
                }
                if codes.get(place) == Some(&2) {
                    return Err("an indirect segment of the palette points to another one".into());
                }
                place = segment(codes, place, n, &mut out)?;
            }
            at += 4;
        } else {
            at = segment(codes, at, n, &mut out)?;
        }
    }
    out.truncate(n);
    Ok(out)
}

/// One discrete or linear segment; gives the place after it.
fn segment(codes: &[u16], at: usize, n: usize, out: &mut Vec<u16>) -> Result<usize, String> {
    let (Some(kind), Some(length)) = (codes.get(at), codes.get(at + 1)) else { return Err("a palette segment is cut off".into()) };
    let length = *length as usize;
    match kind {
        0 => {
            let values = codes.get(at + 2..at + 2 + length).ok_or("a discrete palette segment is cut off")?;
            out.extend(values.iter().take(n - n.min(out.len())));
            Ok(at + 2 + length)
        }
        1 => {
            let to = *codes.get(at + 2).ok_or("a linear palette segment is cut off")? as f64;
            let from = *out.last().ok_or("the palette begins with a linear segment")? as f64;
            let step = |k: usize| (from + (to - from) * (k + 1) as f64 / length as f64).round_ties_even() as u16;
            out.extend((0..length.min(n - n.min(out.len()))).map(step));
            Ok(at + 3)
        }
        other => Err(format!("palette segment of kind {other}, expected 0, 1 or 2")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(descriptor: &[u8], data: &[u8], is_signed: bool) -> Result<Lut, String> {
        Lut::read(descriptor, data, &[], is_signed, false)
    }

    #[test]
    fn values_outside_the_table_take_its_ends() {
        // 3 entries from −1 on, 16 bits.
        let lut = read(&[3, 0, 0xff, 0xff, 16, 0], &[10, 0, 20, 0, 0, 0xff], true).unwrap();
        assert_eq!([-5, -1, 0, 1, 9].map(|v| lut.at(v)), [10, 10, 20, 0xff00, 0xff00]);
        assert_eq!(read(&[3, 0, 0xff, 0xff, 16, 0], &[10, 0, 20, 0, 0, 1], false).unwrap().first, 65535);
        assert!(read(&[3, 0, 0, 0, 16, 0], &[1, 0], false).unwrap_err().contains("1 of 3"));
        assert!(read(&[0, 0, 0, 0, 16, 0], &[1, 0], false).unwrap_err().contains("of 65536"));
    }

    #[test]
    fn bytes_of_eight_bit_tables_may_be_packed() {
        assert_eq!(read(&[4, 0, 0, 0, 8, 0], &[1, 2, 3, 4], false).unwrap().entries, [1, 2, 3, 4]);
        assert_eq!(read(&[2, 0, 0, 0, 8, 0], &[1, 0, 3, 0], false).unwrap().entries, [1, 3]);
    }

    #[test]
    fn segments_unfold() {
        // Discrete 2 values, linear 4 up to 40, then both again.
        assert_eq!(expand(&[0, 2, 0, 0, 1, 4, 40], 6).unwrap(), [0, 0, 10, 20, 30, 40]);
        assert_eq!(expand(&[0, 1, 7, 1, 2, 9, 2, 2, 0, 0], 6).unwrap(), [7, 8, 9, 7, 8, 9]);
        assert!(expand(&[2, 1, 0, 0], 6).is_err(), "it points to itself");
        assert!(expand(&[1, 4, 40], 6).is_err());
        assert_eq!(expand(&[0, 1, 5, 1, 65535, 9], 4).unwrap().len(), 4);
    }
}
