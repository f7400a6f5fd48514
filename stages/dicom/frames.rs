//! The pixel data of one file, frame by frame: checked against the header before memory is taken by its word, read from its place or decoded.

use std::sync::Mutex;

use super::bytes::Source;
use super::codec::{self, CodecError, Fragment, Samples};
use super::contents::{self, FileRef};
use super::extras::{self, Extras};
use super::header::Header;
use super::unfold;
use super::values::{Format, Raw};
use crate::error::Error;

/// A file whose bytes are those that were indexed, ready to give frames.
#[derive(Debug)]
pub struct Opened<'a> {
    pub name: &'a str,
    pub header: &'a Header,
    pub extras: Extras,
    source: Source,
    /// Encapsulated files: the fragments of each frame.
    fragments: Vec<Vec<Fragment>>,
    /// Bytes that a frame may take which is packed closer than any real one; such frames are decoded one at a time.
    allowance: Mutex<u64>,
}

const FLOAT: u32 = 0x7FE0_0008;
const DOUBLE: u32 = 0x7FE0_0009;

pub fn fault(name: &str, why: impl Into<String>) -> Error {
    Error::Dicom { file: name.into(), why: why.into() }
}

/// Whether the photometric interpretation is one of colours.
pub fn is_colour(h: &Header) -> bool {
    h.samples != 1 || !matches!(h.photometric.as_str(), "MONOCHROME1" | "MONOCHROME2" | "")
}

/// Bytes of a frame as stored uncompressed; `None` when that number does not exist. YBR_FULL_422 keeps two samples a pixel (PS3.3 C.7.6.3.1.2).
pub fn frame_bits(h: &Header) -> Option<u64> {
    let samples = if is_halved(h) { 2 } else { h.samples as u64 };
    let n = (h.rows as u64).checked_mul(h.columns as u64)?.checked_mul(samples)?;
    n.checked_mul(h.bits_allocated as u64).filter(|bits| *bits > 0)
}

pub fn is_halved(h: &Header) -> bool {
    h.samples == 3 && matches!(h.photometric.as_str(), "YBR_FULL_422" | "YBR_PARTIAL_422") && h.pixel.is_some_and(|p| p.length.is_some())
}

/// Opens a file and holds it against the index: other bytes than those that were indexed are refused.
/// - `wants_extras`: whether tags beyond the header are needed whatever the header says
pub fn open<'a>(
    f: &'a FileRef,
    header: &'a Header,
    wants_extras: bool,
    step: &(dyn Fn(u64) -> Result<(), Error> + Sync),
) -> Result<Opened<'a>, Error> {
    let source = contents::open(f)?;
    step(source.len())?;
    check(&f.name, header, source.len())?;
    let pixel = header.pixel.expect("checked just above");
    let (mut fragments, mut allowance) = (Vec::new(), 0);
    if pixel.length.is_none() {
        fragments = codec::frames(&source, pixel.offset, header).map_err(|why| fault(&f.name, why))?;
        let packed = fragments.iter().flatten().map(|(_, length)| *length as u64).sum();
        allowance = unfold::allowance(header, packed).map_err(|why| fault(&f.name, why))?;
    }
    let needs_extras = wants_extras || header.has_modality_lut || header.photometric == "PALETTE COLOR";
    let extras = match needs_extras {
        true => extras::read(&source, header).map_err(|why| fault(&f.name, why))?,
        false => Extras::default(),
    };
    Ok(Opened { name: &f.name, header, extras, source, fragments, allowance: Mutex::new(allowance) })
}

/// Whether the pixels are of a kind that is read here and whether they are all there.
pub fn check(name: &str, h: &Header, file_len: u64) -> Result<(), Error> {
    let refuse = |why: String| Err(fault(name, why));
    let Some(pixel) = h.pixel else { return refuse("no pixel data".into()) };
    let bits = match pixel.tag {
        FLOAT => 32,
        DOUBLE => 64,
        _ => h.bits_allocated,
    };
    let is_known = match pixel.tag {
        FLOAT | DOUBLE => h.bits_allocated == bits && pixel.length.is_some() && !is_colour(h),
        _ => matches!(bits, 8 | 16 | 32) || (bits == 1 && !is_colour(h)),
    };
    if !is_known {
        return refuse(format!("{} bits allocated a pixel are not read, only 1, 8, 16 and 32", h.bits_allocated));
    }
    if is_colour(h) && !matches!((h.samples, h.photometric.as_str()), (3, _) | (1, "PALETTE COLOR")) {
        return refuse(format!("{} pixels of {} samples are not read", h.photometric, h.samples));
    }
    let is_float = matches!(pixel.tag, FLOAT | DOUBLE);
    if !is_float && (h.bits_stored == 0 || h.bits_stored > bits || h.high_bit >= bits || h.high_bit + 1 < h.bits_stored) {
        return refuse(format!("BitsStored {} up to HighBit {} do not fit {bits} bits allocated", h.bits_stored, h.high_bit));
    }
    if pixel_bytes(h).is_none() {
        return refuse(format!("{}×{} pixels, {} frames of {bits} bits are no image", h.rows, h.columns, h.n_frames));
    }
    lack(h, file_len).map_or(Ok(()), refuse)
}

/// Bytes of all frames as stored uncompressed.
fn pixel_bytes(h: &Header) -> Option<u64> {
    frame_bits(h).and_then(|b| b.checked_mul(h.n_frames as u64)).map(|b| b.div_ceil(8))
}

/// What is missing of uncompressed pixels, as far as the header and the length of the file tell.
pub fn lack(h: &Header, file_len: u64) -> Option<String> {
    let (pixel, expected) = (h.pixel?, pixel_bytes(h)?);
    let length = pixel.length? as u64;
    let there = file_len.saturating_sub(pixel.offset).min(length);
    let truncated = if length > there { "the file is cut off" } else { "the element is too short" };
    (there < expected).then(|| format!("pixel data are truncated ({truncated}): found {there} bytes, expected {expected}"))
}

impl Opened<'_> {
    /// Reads a native grey frame of 16-bit words straight into its place, byte by byte as in the file. `false`: this frame is of another kind.
    pub fn read_words(&self, frame: usize, out: &mut [i16]) -> Result<bool, Error> {
        let h = self.header;
        let Some(offset) = self.native_offset(frame).filter(|_| h.bits_allocated == 16 && h.samples == 1) else { return Ok(false) };
        self.source.read_into(offset, bytemuck::cast_slice_mut(out)).map_err(|e| self.unread(frame, e))?;
        Ok(true)
    }

    /// The same for bytes that are values already, and for single bits.
    pub fn read_bytes(&self, frame: usize, out: &mut [u8]) -> Result<bool, Error> {
        let h = self.header;
        if h.bits_allocated == 1 && h.pixel.is_some_and(|p| p.length.is_some()) {
            return self.native_bits(frame, out).map(|()| true);
        }
        let is_plain = h.bits_allocated == 8 && h.bits_stored == 8 && h.samples == 1 && !self.is_swapped();
        let Some(offset) = self.native_offset(frame).filter(|_| is_plain) else { return Ok(false) };
        self.source.read_into(offset, out).map_err(|e| self.unread(frame, e))?;
        Ok(true)
    }

    /// Where a native frame begins; `None` for compressed ones and for single bits.
    fn native_offset(&self, frame: usize) -> Option<u64> {
        let pixel = self.header.pixel.filter(|p| p.length.is_some() && self.header.bits_allocated >= 8)?;
        Some(pixel.offset + frame_bits(self.header)? / 8 * frame as u64)
    }

    /// How samples lie in a native frame.
    pub fn native_format(&self) -> Format {
        let h = self.header;
        let is_float = h.pixel.is_some_and(|p| matches!(p.tag, FLOAT | DOUBLE));
        let width = h.bits_allocated.div_ceil(8) as usize;
        let (bits, shift) = if is_float { (h.bits_allocated, 0) } else { (h.bits_stored, h.high_bit + 1 - h.bits_stored) };
        Format { width, is_big: h.is_big_endian, is_float, bits, shift, is_signed: h.is_signed }
    }

    /// A grey frame: its bytes stand in `buffer`, or where a codec put them.
    pub fn grey<'b>(&self, frame: usize, buffer: &'b mut Vec<u8>) -> Result<Raw<'b>, Error> {
        let h = self.header;
        let n = h.rows as usize * h.columns as usize;
        if h.bits_allocated == 1 {
            *buffer = self.single_bits(frame, n)?;
            let format = Format { width: 1, is_big: false, is_float: false, bits: 1, shift: 0, is_signed: false };
            return Ok(Raw { bytes: buffer, format });
        }
        let format = if self.native_bytes(frame, buffer)? {
            self.native_format()
        } else {
            let s = self.decoded(frame, h)?;
            *buffer = s.bytes;
            Format { width: s.bytes_per_sample, is_big: false, is_float: false, bits: s.bits, shift: s.shift, is_signed: h.is_signed }
        };
        if buffer.len() != n * format.width {
            return Err(fault(
                self.name,
                format!("frame {} holds {} bytes where {} are expected", frame + 1, buffer.len(), n * format.width),
            ));
        }
        Ok(Raw { bytes: buffer, format })
    }

    /// A frame of several samples (or of palette indices) as it stands in the file or as its codec gives it, in little endian.
    pub fn samples(&self, frame: usize) -> Result<Samples, Error> {
        let h = self.header;
        let mut bytes = Vec::new();
        if !self.native_bytes(frame, &mut bytes)? {
            return self.decoded(frame, h);
        }
        let width = h.bits_allocated as usize / 8;
        if h.is_big_endian && width > 1 {
            bytes.chunks_exact_mut(width).for_each(<[u8]>::reverse);
        }
        Ok(Samples { is_planar: h.planar == 1 && !is_halved(h), ..Samples::as_stored(bytes, width, h) })
    }

    /// Reads a native frame of whole bytes; `false` where it is none.
    fn native_bytes(&self, frame: usize, out: &mut Vec<u8>) -> Result<bool, Error> {
        let Some(offset) = self.native_offset(frame) else { return Ok(false) };
        let n = (frame_bits(self.header).expect("checked when the file was opened") / 8) as usize;
        let pixel = self.header.pixel.expect("checked when the file was opened");
        let unread = |e| self.unread(frame, e);
        if !self.is_swapped() {
            out.resize(n, 0);
            self.source.read_into(offset, out).map_err(unread)?;
            return Ok(true);
        }
        // Whole words, of which a frame may begin and end inside.
        let lead = ((offset - pixel.offset) % 2) as usize;
        let wanted = ((lead + n).next_multiple_of(2) as u64).min(self.source.len() - (offset - lead as u64));
        *out = self.source.read_at(offset - lead as u64, wanted as usize).map_err(unread)?;
        out.as_chunks_mut::<2>().0.iter_mut().for_each(|pair| pair.reverse());
        out.drain(..lead);
        out.truncate(n);
        Ok(true)
    }

    /// Single bits are one stream over all frames, least significant first (PS3.5 8.1.1). They are read a piece at a time: beside the pixels next to nothing is held.
    fn native_bits(&self, frame: usize, out: &mut [u8]) -> Result<(), Error> {
        /// A multiple of eight.
        const PIECE_PIXELS: usize = 1 << 18;
        let pixel = self.header.pixel.expect("checked when the file was opened");
        let mut at = out.len() as u64 * frame as u64;
        for piece in out.chunks_mut(PIECE_PIXELS) {
            let (from, to) = (at / 8, (at + piece.len() as u64).div_ceil(8));
            let bytes = self.source.read_at(pixel.offset + from, (to - from) as usize).map_err(|e| self.unread(frame, e))?;
            let first = (at % 8) as usize;
            (first..).zip(piece.iter_mut()).for_each(|(b, out)| *out = bytes[b / 8] >> (b % 8) & 1);
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Compressed single bits are packed frame by frame.
    fn single_bits(&self, frame: usize, n: usize) -> Result<Vec<u8>, Error> {
        let h = self.header;
        let pixel = h.pixel.expect("checked when the file was opened");
        if pixel.length.is_some() {
            let mut out = vec![0; n];
            return self.native_bits(frame, &mut out).map(|()| out);
        }
        let is_packed = codec::packs_bits(&h.transfer_syntax);
        let mut bytes = h.clone();
        (bytes.bits_allocated, bytes.bits_stored, bytes.high_bit) = (8, 8, 7);
        if is_packed {
            (bytes.rows, bytes.columns) = (1, n.div_ceil(8) as u32);
        }
        let samples = self.decoded(frame, &bytes)?;
        if !is_packed {
            return Ok(samples.bytes.iter().map(|b| *b & 1).collect());
        }
        Ok((0..n).map(|b| samples.bytes[b / 8] >> (b % 8) & 1).collect())
    }

    /// - `h`: how the frame's bytes are described to the codec
    fn decoded(&self, frame: usize, h: &Header) -> Result<Samples, Error> {
        let fragments = self.fragments.get(frame).ok_or_else(|| fault(self.name, format!("frame {} has no fragments", frame + 1)))?;
        let total = fragments.iter().map(|(_, length)| *length as usize).sum();
        let mut stream = vec![0; total];
        let mut rest = &mut stream[..];
        for (offset, length) in fragments {
            let (part, after) = rest.split_at_mut(*length as usize);
            self.source.read_into(*offset, part).map_err(|e| self.unread(frame, e))?;
            rest = after;
        }
        let decoded = if unfold::is_likely(stream.len() as u64, unfold::frame_bytes(h)) {
            codec::decode(h, &stream)
        } else {
            let allowance = self.allowance.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            codec::decode_within(h, &stream, *allowance)
        };
        decoded.map_err(|e| match e {
            CodecError::Unsupported { syntax, help } => Error::UnsupportedSyntax { file: self.name.into(), syntax, help },
            CodecError::Broken(why) => fault(self.name, format!("frame {}: {why}", frame + 1)),
        })
    }

    /// Bytes in words of a big endian file stand pairwise swapped (PS3.5 8.1.1, VR OW).
    fn is_swapped(&self) -> bool {
        let h = self.header;
        let vr = h
            .pixel
            .filter(|_| h.is_big_endian && h.bits_allocated == 8)
            .and_then(|p| self.source.read_at(p.offset.checked_sub(8)?, 2).ok());
        vr.is_some_and(|vr| vr == *b"OW")
    }

    fn unread(&self, frame: usize, e: std::io::Error) -> Error {
        fault(self.name, format!("pixel data of frame {}: {e}", frame + 1))
    }
}
