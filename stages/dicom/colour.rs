//! Frames of colours → planes of red, green and blue (PS3.3 C.7.6.3.1.2): interleaved or planar, YBR in its kinds, palettes.

use super::codec::{Colours, Samples};
use super::frames::{self, Opened};
use super::lut::Lut;

/// A frame, `[channel, y, x]` with red first.
#[derive(Clone, Debug, PartialEq)]
pub enum Planes {
    U8(Vec<u8>),
    U16(Vec<u16>),
    /// 32-bit samples, exact up to 2^24.
    F32(Vec<f32>),
}

/// Decodes a frame of a file whose header says that it is one of colours.
pub fn planes(opened: &Opened, frame: usize) -> Result<Planes, crate::error::Error> {
    let samples = opened.samples(frame)?;
    let wrong = |why: String| frames::fault(opened.name, format!("frame {}: {why}", frame + 1));
    let n = opened.header.rows as usize * opened.header.columns as usize;
    match &opened.extras.palette {
        Some(palette) => looked_up(&samples, palette, n, opened.header.is_signed).map_err(wrong),
        None => separate(&samples, &opened.header.photometric, n, frames::is_halved(opened.header)).map_err(wrong),
    }
}

/// - `is_halved`: one Cb and one Cr for two pixels, as native YBR_FULL_422 stores them
fn separate(s: &Samples, photometric: &str, n: usize, is_halved: bool) -> Result<Planes, String> {
    let width = s.bytes_per_sample;
    let wanted = n * width * if is_halved { 2 } else { 3 };
    if s.bytes.len() != wanted {
        return Err(format!("{} bytes of samples, expected {wanted}", s.bytes.len()));
    }
    // The codestream knows better than the header what its colours are.
    let is_ybr = match (s.colours, photometric) {
        (Some(colours), _) => colours == Colours::Ybr,
        (None, "RGB" | "YBR_RCT" | "YBR_ICT") => false,
        (None, "YBR_FULL" | "YBR_FULL_422" | "YBR_PARTIAL_422") => true,
        (None, other) => return Err(format!("{other} pixels are not read")),
    };
    if is_ybr && width != 1 {
        return Err(format!("{photometric} of {} bits a sample is not read, only of 8", 8 * width));
    }
    let place = |pixel: usize, sample: usize| match (s.is_planar, is_halved) {
        (_, true) if sample == 0 => pixel / 2 * 4 + pixel % 2,
        (_, true) => pixel / 2 * 4 + 1 + sample,
        (true, _) => sample * n + pixel,
        _ => pixel * 3 + sample,
    };
    if is_halved && n % 2 == 1 {
        return Err(format!("{photometric} of an odd number of pixels"));
    }
    match width {
        1 => {
            let mut out = vec![0u8; 3 * n];
            match (s.is_planar, is_halved) {
                (true, false) => out.copy_from_slice(&s.bytes),
                (false, false) => {
                    let (r, gb) = out.split_at_mut(n);
                    let (g, b) = gb.split_at_mut(n);
                    let pixels = s.bytes.as_chunks::<3>().0;
                    pixels.iter().zip(r).zip(g).zip(b).for_each(|(((p, r), g), b)| (*r, *g, *b) = (p[0], p[1], p[2]));
                }
                _ => (0..3).for_each(|c| (0..n).for_each(|i| out[c * n + i] = s.bytes[place(i, c)])),
            }
            if is_ybr {
                to_rgb(&mut out, n, photometric.contains("PARTIAL"));
            }
            Ok(Planes::U8(out))
        }
        2 => {
            let word = |at: usize| u16::from_le_bytes([s.bytes[2 * at], s.bytes[2 * at + 1]]) >> s.shift;
            Ok(Planes::U16((0..3).flat_map(|c| (0..n).map(move |i| (c, i))).map(|(c, i)| word(place(i, c))).collect()))
        }
        _ => {
            let word = |at: usize| u32::from_le_bytes(s.bytes[4 * at..4 * at + 4].try_into().expect("four bytes"));
            Ok(Planes::F32((0..3).flat_map(|c| (0..n).map(move |i| (c, i))).map(|(c, i)| word(place(i, c)) as f32).collect()))
        }
    }
}

/// Y, Cb, Cr → R, G, B in place, rounded to the nearest.
fn to_rgb(planes: &mut [u8], n: usize, is_partial: bool) {
    let (y, rest) = planes.split_at_mut(n);
    let (cb, cr) = rest.split_at_mut(n);
    // Partial range: Y of 16 … 235, Cb and Cr of 16 … 240.
    let (scale_y, scale_c, black) = if is_partial { (255.0 / 219.0, 255.0 / 224.0, 16.0) } else { (1.0, 1.0, 0.0) };
    for ((y, cb), cr) in y.iter_mut().zip(cb).zip(cr) {
        let luma = (*y as f32 - black) * scale_y;
        let (b, r) = ((*cb as f32 - 128.0) * scale_c, (*cr as f32 - 128.0) * scale_c);
        let byte = |v: f32| (v + 0.5).floor().clamp(0.0, 255.0) as u8;
        (*y, *cb, *cr) =
            (byte(luma + 1.402 * r), byte(luma - 0.114 * 1.772 / 0.587 * b - 0.299 * 1.402 / 0.587 * r), byte(luma + 1.772 * b));
    }
}

fn looked_up(s: &Samples, palette: &[Lut; 3], n: usize, is_signed: bool) -> Result<Planes, String> {
    let width = s.bytes_per_sample;
    if s.bytes.len() != n * width || !matches!(width, 1 | 2) {
        return Err(format!("{} bytes of palette indices, expected {n} of 8 or 16 bits", s.bytes.len()));
    }
    let mask = ((1u32 << s.bits.min(16)) - 1) as u16;
    let sign = if is_signed { 1i64 << (s.bits.min(16) - 1) } else { 0 };
    let index = |i: usize| {
        let word = if width == 1 { s.bytes[i] as u16 } else { u16::from_le_bytes([s.bytes[2 * i], s.bytes[2 * i + 1]]) };
        ((word >> s.shift & mask) as i64 ^ sign) - sign
    };
    let mut out = Vec::with_capacity(3 * n);
    for lut in palette {
        // Entries of 16 bits are scaled to eight; some files keep eight bits in words.
        let is_wide = lut.bits > 8 && lut.entries.iter().any(|e| *e > 255);
        let shift = if is_wide { lut.bits - 8 } else { 0 };
        out.extend((0..n).map(|i| (lut.at(index(i)) >> shift).min(255) as u8));
    }
    Ok(Planes::U8(out))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::dicom::header::Common;

    fn samples(bytes: &[u8], width: usize, is_planar: bool) -> Samples {
        let h = Common { bits_stored: 8 * width as u32, high_bit: 8 * width as u32 - 1, ..Common::default() }.into();
        Samples { is_planar, ..Samples::as_stored(bytes.to_vec(), width, &h) }
    }

    #[test]
    fn samples_of_a_pixel_come_apart() {
        let planes = Planes::U8(vec![1, 4, 2, 5, 3, 6]);
        assert_eq!(separate(&samples(&[1, 2, 3, 4, 5, 6], 1, false), "RGB", 2, false).unwrap(), planes);
        assert_eq!(separate(&samples(&[1, 4, 2, 5, 3, 6], 1, true), "RGB", 2, false).unwrap(), planes);
        let wide = separate(&samples(&[1, 0, 2, 0, 3, 1], 2, false), "RGB", 1, false).unwrap();
        assert_eq!(wide, Planes::U16(vec![1, 2, 259]));
        assert!(separate(&samples(&[1, 2, 3], 1, false), "RGB", 2, false).is_err());
        assert!(separate(&samples(&[1, 2, 3], 1, false), "CMYK", 1, false).unwrap_err().contains("CMYK"));
    }

    #[test]
    fn ybr_becomes_rgb() {
        let grey = separate(&samples(&[77, 128, 128], 1, false), "YBR_FULL", 1, false).unwrap();
        assert_eq!(grey, Planes::U8(vec![77, 77, 77]));
        // Pure red.
        assert_eq!(separate(&samples(&[76, 85, 255], 1, false), "YBR_FULL", 1, false).unwrap(), Planes::U8(vec![254, 0, 0]));
        // Two pixels of one hue: Y Y Cb Cr.
        let two = separate(&samples(&[10, 20, 128, 128], 1, false), "YBR_FULL_422", 2, true).unwrap();
        assert_eq!(two, Planes::U8(vec![10, 20, 10, 20, 10, 20]));
        let partial = separate(&samples(&[16, 235, 128, 128], 1, false), "YBR_PARTIAL_422", 2, true).unwrap();
        assert_eq!(partial, Planes::U8(vec![0, 255, 0, 255, 0, 255]));
    }

    #[test]
    fn the_codestream_says_what_its_colours_are() {
        let s = Samples { colours: Some(Colours::Rgb), ..samples(&[1, 2, 3], 1, false) };
        assert_eq!(separate(&s, "YBR_FULL", 1, false).unwrap(), Planes::U8(vec![1, 2, 3]));
    }

    #[test]
    fn palettes_are_brought_to_eight_bits() {
        let lut = |entries: &[u16]| Lut { first: 1, bits: 16, entries: entries.to_vec() };
        let palette = [lut(&[0, 0xff00]), lut(&[0x8000, 0]), lut(&[7, 9])];
        let out = looked_up(&samples(&[0, 1, 2, 200], 1, false), &palette, 4, false).unwrap();
        assert_eq!(out, Planes::U8(vec![0, 0, 255, 255, 128, 128, 0, 0, 7, 7, 9, 9]));
    }
}
