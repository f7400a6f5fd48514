//! Stored pixels → voxel values in place: bits are cut and sign-extended, rescale is applied frame by frame (never the first one for all). What is not a
//! plain grey image is refused by name. One frame is decoded at a time on each thread; every size is checked before memory is taken.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::bytes::Source;
use super::codec::{self, CodecError, Fragment};
use super::contents::{self, FileRef};
use super::header::{self, Header};
use crate::error::Error;
use crate::volume::Voxels;

/// A file whose bytes are those that were indexed, ready to give frames.
struct Opened<'a> {
    name: &'a str,
    header: Header,
    source: Source,
    /// Encapsulated files: the fragments of each frame.
    fragments: Vec<Vec<Fragment>>,
}

/// Reads frames into one array `[z, y, x]`: int16 where every value is exactly that, float32 otherwise.
/// - `slices`: (file, frame) of each z
/// - `step`: told the bytes of every file read; an error of it stops the reading
pub fn decode(
    files: &[FileRef],
    slices: &[(usize, usize)],
    rows: usize,
    columns: usize,
    step: &(dyn Fn(u64) -> Result<(), Error> + Sync),
) -> Result<Voxels, Error> {
    let n = rows.checked_mul(columns).filter(|n| *n > 0 && n.checked_mul(slices.len().max(1) * 4).is_some());
    let (Some(n), Some(&(first, _))) = (n, slices.first()) else {
        let file = files.first().map_or("no file", |f| &f.name);
        return Err(fault(file, format!("{} frames of {rows}×{columns} pixels are no image", slices.len())));
    };
    let mut uses = vec![0; files.len()];
    slices.iter().for_each(|(file, _)| uses[*file] += 1);
    // A multi-frame file is opened once; files of one slice are opened, read and closed one by one.
    let shared: Vec<Option<Opened>> =
        files.iter().zip(&uses).map(|(f, uses)| if *uses > 1 { open(f, step).map(Some) } else { Ok(None) }).collect::<Result<_, _>>()?;
    if shared[first].is_none() {
        // What a file claims is held against what is in it before memory is taken by its word.
        open(&files[first], &|_| Ok(()))?;
    }
    let with_frame = |z: usize, use_it: &mut dyn FnMut(Stored, f64, f64) -> Result<(), Error>| -> Result<(), Error> {
        let (file, frame) = slices[z];
        let own;
        let opened = match &shared[file] {
            Some(opened) => opened,
            None => {
                own = open(&files[file], step)?;
                &own
            }
        };
        let (slope, intercept) = rescale(opened, frame)?;
        let stored = opened.frame(frame)?;
        if stored.len() != n {
            return Err(fault(opened.name, format!("a frame of {} pixels where {n} are expected", stored.len())));
        }
        use_it(stored, slope, intercept)
    };
    let mut exact = vec![0i16; n * slices.len()];
    let fits = AtomicBool::new(true);
    exact.par_chunks_mut(n).enumerate().try_for_each(|(z, out)| -> Result<(), Error> {
        if !fits.load(Ordering::Relaxed) {
            return Ok(());
        }
        with_frame(z, &mut |stored, slope, intercept| {
            if !fill_i16(&stored, slope, intercept, out) {
                fits.store(false, Ordering::Relaxed);
            }
            Ok(())
        })
    })?;
    if fits.into_inner() {
        return Ok(Voxels::I16(exact));
    }
    drop(exact);
    let mut real = vec![0f32; n * slices.len()];
    real.par_chunks_mut(n).enumerate().try_for_each(|(z, out)| {
        with_frame(z, &mut |stored, slope, intercept| {
            match &stored {
                Stored::Int(v) => v.iter().zip(&mut *out).for_each(|(v, o)| *o = (*v as f64 * slope + intercept) as f32),
                Stored::Real(v) => v.iter().zip(&mut *out).for_each(|(v, o)| *o = (v * slope + intercept) as f32),
            }
            Ok(())
        })
    })?;
    Ok(Voxels::F32(real))
}

/// `false`: a value is no int16.
fn fill_i16(stored: &Stored, slope: f64, intercept: f64, out: &mut [i16]) -> bool {
    let Stored::Int(values) = stored else { return false };
    let is_small_integer = |v: f64| v.fract() == 0.0 && v.abs() <= 65536.0;
    if !is_small_integer(slope) || !is_small_integer(intercept) {
        return false;
    }
    let (slope, intercept) = (slope as i64, intercept as i64);
    values.iter().zip(out).all(|(v, o)| {
        let Ok(v) = i16::try_from(*v as i64 * slope + intercept) else { return false };
        *o = v;
        true
    })
}

/// Stored values of a frame before rescale.
enum Stored {
    Int(Vec<i32>),
    Real(Vec<f64>),
}

impl Stored {
    fn len(&self) -> usize {
        match self {
            Stored::Int(v) => v.len(),
            Stored::Real(v) => v.len(),
        }
    }
}

fn fault(name: &str, why: impl Into<String>) -> Error {
    Error::Dicom { file: name.into(), why: why.into() }
}

/// Opens a file and holds it against the index: other bytes than those that were indexed are refused.
fn open<'a>(f: &'a FileRef, step: &(dyn Fn(u64) -> Result<(), Error> + Sync)) -> Result<Opened<'a>, Error> {
    let unread = |e: std::io::Error| fault(&f.name, format!("it cannot be read: {e}"));
    let source = contents::open(f)?;
    step(source.len())?;
    let header = header::of_source(&source).map_err(unread)?;
    let header = header.map_err(|_| fault(&f.name, "the header cannot be read any more: run again"))?;
    check(&f.name, &header, source.len())?;
    let pixel = header.pixel.expect("checked just above");
    let fragments = match pixel.length {
        Some(_) => Vec::new(),
        None => codec::frames(&source, pixel.offset, &header).map_err(|why| fault(&f.name, why))?,
    };
    Ok(Opened { name: &f.name, header, source, fragments })
}

/// Whether the pixels are of a kind that is read here and whether they are all there.
fn check(name: &str, h: &Header, file_len: u64) -> Result<(), Error> {
    let refuse = |why: String| Err(fault(name, why));
    let Some(pixel) = h.pixel else { return refuse("no pixel data".into()) };
    if h.samples != 1 || !matches!(h.photometric.as_str(), "MONOCHROME1" | "MONOCHROME2" | "") {
        return refuse(format!(
            "{} pixels of {} samples: colour images are not read yet, only MONOCHROME1 and MONOCHROME2",
            h.photometric, h.samples
        ));
    }
    if h.has_modality_lut {
        return refuse("a Modality LUT Sequence maps its values, which is not read yet".into());
    }
    let bits = match pixel.tag {
        0x7FE0_0008 => 32,
        0x7FE0_0009 => 64,
        _ => h.bits_allocated,
    };
    let is_known = if pixel.tag == 0x7FE0_0010 { matches!(bits, 8 | 16 | 32) } else { h.bits_allocated == bits };
    if !is_known {
        return refuse(format!("{} bits allocated a pixel are not read, only 8, 16 and 32", h.bits_allocated));
    }
    if h.bits_stored == 0 || h.bits_stored > bits || h.high_bit >= bits || h.high_bit + 1 < h.bits_stored {
        return refuse(format!("BitsStored {} up to HighBit {} do not fit {bits} bits allocated", h.bits_stored, h.high_bit));
    }
    let expected = h.frame_bytes().and_then(|b| b.checked_mul(h.n_frames as u64));
    let Some(expected) = expected else {
        return refuse(format!("{}×{} pixels, {} frames of {bits} bits are no image", h.rows, h.columns, h.n_frames));
    };
    if let Some(length) = pixel.length {
        let there = file_len.saturating_sub(pixel.offset).min(length as u64);
        if there < expected {
            let truncated = if (length as u64) > there { "the file is cut off" } else { "the element is too short" };
            return refuse(format!("pixel data are truncated ({truncated}): found {there} bytes, expected {expected}"));
        }
    }
    Ok(())
}

fn rescale(o: &Opened, frame: usize) -> Result<(f64, f64), Error> {
    let f = o.header.frames.get(frame).or(o.header.frames.first());
    let slope = f.and_then(|f| f.slope).unwrap_or(1.0);
    if slope == 0.0 {
        return Err(fault(o.name, format!("RescaleSlope of frame {} is 0", frame + 1)));
    }
    Ok((slope, f.and_then(|f| f.intercept).unwrap_or(0.0)))
}

impl Opened<'_> {
    fn frame(&self, frame: usize) -> Result<Stored, Error> {
        let h = &self.header;
        let pixel = h.pixel.expect("checked when the file was opened");
        let io = |e: std::io::Error| fault(self.name, format!("pixel data of frame {}: {e}", frame + 1));
        if pixel.length.is_some() {
            let bytes = h.frame_bytes().expect("checked when the file was opened");
            let raw = self.source.read_at(pixel.offset + bytes * frame as u64, bytes as usize).map_err(io)?;
            return Ok(samples(h, &raw, bytes as usize / (h.rows as usize * h.columns as usize), h.is_big_endian, pixel.tag));
        }
        let fragments = self.fragments.get(frame).ok_or_else(|| fault(self.name, format!("frame {} has no fragments", frame + 1)))?;
        let mut stream = Vec::new();
        for (offset, length) in fragments {
            stream.extend(self.source.read_at(*offset, *length as usize).map_err(io)?);
        }
        let decoded = codec::decode(h, &stream).map_err(|e| match e {
            CodecError::Unsupported { syntax, help } => Error::UnsupportedSyntax { file: self.name.into(), syntax, help },
            CodecError::Broken(why) => fault(self.name, format!("frame {}: {why}", frame + 1)),
        })?;
        Ok(samples(h, &decoded.bytes, decoded.bytes_per_sample, false, pixel.tag))
    }
}

/// Bytes → stored values: BitsStored bits below HighBit, sign-extended (PS3.5 8.1.1); higher bits may hold overlays.
fn samples(h: &Header, raw: &[u8], bytes_per_sample: usize, is_big: bool, tag: u32) -> Stored {
    let shift = h.high_bit + 1 - h.bits_stored;
    let mask = if h.bits_stored >= 32 { u32::MAX } else { (1 << h.bits_stored) - 1 };
    let sign = if h.is_signed { 1u32 << (h.bits_stored - 1) } else { 0 };
    // Two's complement of any width: flip the sign bit, take it off again.
    let value = |v: u32| (((v >> shift & mask) ^ sign) as i64 - sign as i64) as i32;
    let word = |b: &[u8]| {
        let b = [b[0], b[1], b[2], b[3]];
        if is_big { u32::from_be_bytes(b) } else { u32::from_le_bytes(b) }
    };
    match (tag, bytes_per_sample) {
        // The usual case, without the general one's shifts.
        (0x7FE0_0010, 2) if h.bits_stored == 16 && !is_big => {
            let values = raw.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
            Stored::Int(if h.is_signed { values.map(|v| v as i16 as i32).collect() } else { values.map(i32::from).collect() })
        }
        (0x7FE0_0008, _) => Stored::Real(raw.chunks_exact(4).map(|b| f32::from_bits(word(b)) as f64).collect()),
        (0x7FE0_0009, _) => {
            let long = |b: &[u8]| {
                let b: [u8; 8] = b.try_into().expect("chunks of eight");
                if is_big { f64::from_be_bytes(b) } else { f64::from_le_bytes(b) }
            };
            Stored::Real(raw.chunks_exact(8).map(long).collect())
        }
        (_, 1) => Stored::Int(raw.iter().map(|b| value(*b as u32)).collect()),
        (_, 2) if is_big => Stored::Int(raw.chunks_exact(2).map(|b| value(u16::from_be_bytes([b[0], b[1]]) as u32)).collect()),
        (_, 2) => Stored::Int(raw.chunks_exact(2).map(|b| value(u16::from_le_bytes([b[0], b[1]]) as u32)).collect()),
        _ if h.is_signed => Stored::Int(raw.chunks_exact(4).map(|b| value(word(b))).collect()),
        _ => Stored::Real(raw.chunks_exact(4).map(|b| (word(b) >> shift & mask) as f64).collect()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::dicom::scan::PixelElement;

    fn header(bits_allocated: u32, bits_stored: u32, is_signed: bool) -> Header {
        let pixel = Some(PixelElement { tag: 0x7FE0_0010, offset: 0, length: Some(1 << 30) });
        Header {
            rows: 1,
            columns: 2,
            n_frames: 1,
            samples: 1,
            bits_allocated,
            bits_stored,
            high_bit: bits_stored - 1,
            is_signed,
            pixel,
            ..Header::default()
        }
    }

    fn ints(h: &Header, raw: &[u8], is_big: bool) -> Vec<i32> {
        match samples(h, raw, h.bits_allocated as usize / 8, is_big, 0x7FE0_0010) {
            Stored::Int(v) => v,
            Stored::Real(v) => v.into_iter().map(|v| v as i32).collect(),
        }
    }

    #[test]
    fn bits_above_the_high_bit_are_cut_and_the_sign_extended() {
        let twelve = header(16, 12, true);
        // 0xF800: an overlay above, −2048 below.
        assert_eq!(ints(&twelve, &[0x00, 0xf8, 0xff, 0x07], false), [-2048, 2047]);
        assert_eq!(ints(&header(16, 12, false), &[0xff, 0xff, 0x00, 0x00], false), [4095, 0]);
        assert_eq!(ints(&header(16, 16, true), &[0xff, 0xfe, 0x00, 0x01], true), [-2, 1]);
        assert_eq!(ints(&header(8, 8, true), &[0x80, 0x7f], false), [-128, 127]);
        assert_eq!(ints(&header(32, 32, true), &[0xff; 8], false), [-1, -1]);
        let high = Header { high_bit: 15, ..header(16, 12, false) };
        assert_eq!(ints(&high, &[0xf0, 0xff, 0x1f, 0x00], false), [4095, 1]);
    }

    #[test]
    fn exact_integers_stay_int16_and_others_do_not() {
        let mut out = [0; 2];
        assert!(fill_i16(&Stored::Int(vec![0, 2048]), 1.0, -1024.0, &mut out));
        assert_eq!(out, [-1024, 1024]);
        assert!(!fill_i16(&Stored::Int(vec![0, 40000]), 1.0, 0.0, &mut out));
        assert!(!fill_i16(&Stored::Int(vec![0, 1]), 0.5, 0.0, &mut out));
    }

    #[test]
    fn no_pixels_are_an_error() {
        let file = FileRef { path: "nowhere".into(), member: None, name: "a".into(), content: String::new(), seen: String::new() };
        for (rows, columns) in [(0, 0), (0, 4), (usize::MAX, 2)] {
            let why = decode(std::slice::from_ref(&file), &[(0, 0)], rows, columns, &|_| Ok(())).unwrap_err().to_string();
            assert!(why.starts_with("a: 1 frames of"), "{why}");
        }
        assert!(decode(&[], &[], 4, 4, &|_| Ok(())).is_err());
    }

    #[test]
    fn sizes_are_checked_before_anything_is_read() {
        let big = Header { rows: 65535, columns: 65535, n_frames: 1000, ..header(16, 16, false) };
        let why = check("a/b", &big, 1000).unwrap_err().to_string();
        assert!(why.starts_with("a/b: pixel data are truncated") && why.contains("found 1000 bytes"), "{why}");
        let endless = Header { n_frames: u32::MAX, ..big };
        assert!(check("f", &endless, 1000).unwrap_err().to_string().contains("are no image"));
        let colour = Header { samples: 3, photometric: "RGB".into(), ..header(8, 8, false) };
        assert!(check("f", &colour, 1 << 40).unwrap_err().to_string().contains("RGB"));
        assert!(check("f", &header(12, 12, false), 1 << 40).unwrap_err().to_string().contains("12 bits allocated"));
        let odd = Header { high_bit: 3, ..header(16, 12, false) };
        assert!(check("f", &odd, 1 << 40).is_err());
    }
}
