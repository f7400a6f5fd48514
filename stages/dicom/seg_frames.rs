//! The pixels of a segmentation, frame by frame: one bit stream over all frames (PS3.5 8.1.1), bytes or words, plain or compressed.

use super::bytes::Source;
use super::codec::{self, CodecError, Fragment};
use super::header::Header;
use super::unfold;
use crate::error::Error;

const ENCAPSULATED_PLAIN: &str = "1.2.840.10008.1.2.1.98";
const RLE: &str = "1.2.840.10008.1.2.5";
const DEFLATED_FRAMES: &str = "1.2.840.10008.1.2.8.1";
/// For a frame that is packed closer than any real one; its values and the labels made of them come on top.
const FREE_BYTES: u64 = 48 << 20;

/// Pixel data that is already known to hold all its frames.
#[derive(Debug)]
pub struct Frames {
    file: String,
    source: Source,
    header: Header,
    /// Pixels of a frame.
    n: usize,
    /// Compressed files: the fragments of each frame.
    fragments: Vec<Vec<Fragment>>,
    /// Words of two bytes, the more significant first: 16-bit values, and whatever a big endian file calls OW (PS3.5 7.3).
    is_swapped: bool,
}

impl Frames {
    /// Checks the pixel data against the header, before anything is allocated by the header's word.
    pub fn open(source: Source, header: Header, file: &str) -> Result<Frames, Error> {
        let wrong = |why: String| Error::Dicom { file: file.to_string(), why };
        let bits = header.bits_allocated as u128;
        if !matches!(bits, 1 | 8 | 16) {
            return Err(wrong(format!("BitsAllocated is {bits}, expected 1, 8 or 16")));
        }
        if header.samples > 1 {
            return Err(wrong(format!("it has {} samples a pixel, expected one", header.samples)));
        }
        let (rows, columns, n_frames) = (header.rows as u128, header.columns as u128, header.n_frames as u128);
        let n =
            usize::try_from(rows * columns).ok().filter(|n| *n < 1 << 31).ok_or_else(|| wrong(format!("found {rows}×{columns} pixels")))?;
        let mut frames = Frames { file: file.to_string(), source, header, n, fragments: Vec::new(), is_swapped: false };
        let pixel = match frames.header.pixel {
            None if n_frames == 0 => return Ok(frames),
            None => return Err(wrong("it has no pixel data".into())),
            Some(pixel) => pixel,
        };
        if frames.header.is_big_endian && pixel.offset >= 8 {
            let vr = frames.source.read_at(pixel.offset - 8, 2).map_err(|e| wrong(e.to_string()))?;
            frames.is_swapped = bits == 16 || vr == b"OW";
        }
        match pixel.length {
            Some(length) => {
                let wanted = (rows * columns * n_frames * bits).div_ceil(8);
                let there = (length as u64).min(frames.source.len().saturating_sub(pixel.offset));
                if (there as u128) < wanted {
                    return Err(wrong(format!("{n_frames} frames of {rows}×{columns} need {wanted} bytes of pixels, found {there}")));
                }
            }
            None => frames.fragments = codec::frames(&frames.source, pixel.offset, &frames.header).map_err(wrong)?,
        }
        Ok(frames)
    }

    /// The values of one frame, `[row, column]`; 0 or 1 for single bits.
    pub fn frame(&self, i: usize) -> Result<Vec<u16>, Error> {
        let (h, n) = (&self.header, self.n);
        let bits = h.bits_allocated as usize;
        let read = |at: u64, n: usize| self.source.read_at(at, n).map_err(|e| self.broken(i, e.to_string()));
        let Some(fragments) = self.fragments.get(i) else {
            let start = h.pixel.map_or(0, |p| p.offset);
            // The bits of a frame may begin and end inside a byte.
            let (first, last) = (i * n * bits / 8, ((i + 1) * n * bits).div_ceil(8));
            let bytes = if self.is_swapped {
                // Whole words, turned around; the last of an odd number of bytes has its word in the padding.
                let (from, to) = (first / 2 * 2, last.div_ceil(2) * 2);
                let words = read(start + from as u64, to - from)?;
                words.chunks_exact(2).flat_map(|w| [w[1], w[0]]).skip(first - from).take(last - first).collect()
            } else {
                read(start + first as u64, last - first)?
            };
            return Ok(values(&bytes, bits, if bits == 1 { i * n % 8 } else { 0 }, n));
        };
        let packed: u64 = fragments.iter().map(|(_, length)| *length as u64).sum();
        let is_likely = |h: &Header| unfold::is_likely(packed, unfold::frame_bytes(h));
        let decode = |h: &Header, stream: &[u8]| match is_likely(h) {
            true => codec::decode(h, stream),
            false => codec::decode_within(h, stream, FREE_BYTES),
        };
        let mut stream = Vec::new();
        for (at, length) in fragments {
            stream.extend(read(*at, *length as usize)?);
        }
        let is_packed = bits == 1 && [RLE, DEFLATED_FRAMES, ENCAPSULATED_PLAIN].contains(&h.transfer_syntax.as_str());
        let decoded = if is_packed {
            // Eight pixels a byte, each frame on its own.
            let mut bytes = h.clone();
            (bytes.rows, bytes.columns, bytes.bits_allocated) = (1, n.div_ceil(8) as u32, 8);
            decode(&bytes, &stream).map(|s| values(&s.bytes, 1, 0, n))
        } else {
            let mut whole = h.clone();
            whole.bits_allocated = h.bits_allocated.max(8);
            decode(&whole, &stream).map(|s| values(&s.bytes, 8 * s.bytes_per_sample, 0, n))
        };
        decoded.map_err(|e| match e {
            CodecError::Unsupported { syntax, help } => Error::UnsupportedSyntax { file: self.file.clone(), syntax, help },
            CodecError::Broken(why) => self.broken(i, why),
        })
    }

    fn broken(&self, i: usize, why: String) -> Error {
        Error::Dicom { file: self.file.clone(), why: format!("frame {}: {why}", i + 1) }
    }
}

/// `n` values of 1, 8 or 16 bits; single bits are counted from the least significant of each byte.
fn values(bytes: &[u8], bits: usize, first_bit: usize, n: usize) -> Vec<u16> {
    match bits {
        1 => (first_bit..first_bit + n).map(|b| (bytes[b / 8] >> (b % 8) & 1) as u16).collect(),
        8 => bytes[..n].iter().map(|b| *b as u16).collect(),
        _ => bytes[..2 * n].chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::header::Common;
    use super::super::scan::PixelElement;
    use super::*;

    fn frames(syntax: &str, bits_allocated: u32, n_frames: u32, columns: u32, bytes: Vec<u8>, is_native: bool) -> Result<Frames, Error> {
        let pixel = Some(PixelElement { tag: 0x7fe0_0010, offset: 0, length: is_native.then_some(bytes.len() as u32) });
        let transfer_syntax = syntax.into();
        let common = Common { transfer_syntax, rows: 1, columns, n_frames, samples: 1, bits_allocated, ..Common::default() };
        let header = Header { pixel, ..common.into() };
        Frames::open(Source::of_bytes(bytes).unwrap(), header, "f")
    }

    /// Items of an encapsulated pixel data element, PS3.5 A.4.
    fn encapsulated(fragments: &[Vec<u8>]) -> Vec<u8> {
        let item = |tag: u8, b: &[u8]| [&[0xfe, 0xff, tag, 0xe0], &(b.len() as u32).to_le_bytes()[..], b].concat();
        let mut out = item(0x00, &[]);
        fragments.iter().for_each(|f| out.extend(item(0x00, f)));
        out.extend(item(0xdd, &[]));
        out
    }

    #[test]
    fn a_few_bytes_are_no_frame_of_a_gigabyte() {
        let rle = |columns| frames(RLE, 8, 1, columns, encapsulated(&[vec![0; 64]]), false).unwrap().frame(0).unwrap_err().to_string();
        assert!(rle(1 << 30).contains("64 compressed bytes cannot hold 1×1073741824 pixels"));
        assert!(rle(16).contains("RLE"), "the codec is asked");
    }

    #[test]
    fn bits_are_one_stream_over_all_frames() {
        // 3 frames of 3 pixels: 101 | 011 | 110, least significant bit first.
        let f = frames("", 1, 3, 3, vec![0b11110101, 0b0], true).unwrap();
        assert_eq!([f.frame(0).unwrap(), f.frame(1).unwrap(), f.frame(2).unwrap()], [[1, 0, 1], [0, 1, 1], [1, 1, 0]]);
    }

    #[test]
    fn words_of_a_big_endian_file_are_turned_around() {
        // Explicit VR: tag, VR, two reserved bytes, length, value.
        let read = |bits_allocated: u32, vr: &[u8], columns: u32, value: &[u8]| {
            let bytes = [&b"\x7f\xe0\x00\x10"[..], vr, &[0; 6], value].concat();
            let pixel = Some(PixelElement { tag: 0x7fe0_0010, offset: 12, length: Some(value.len() as u32) });
            let common = Common { is_big_endian: true, rows: 1, columns, n_frames: 2, samples: 1, bits_allocated, ..Common::default() };
            let header = Header { pixel, ..common.into() };
            let f = Frames::open(Source::of_bytes(bytes).unwrap(), header, "f").unwrap();
            [f.frame(0).unwrap(), f.frame(1).unwrap()]
        };
        assert_eq!(read(16, b"OW", 1, &[1, 2, 3, 4]), [[0x102], [0x304]]);
        assert_eq!(read(8, b"OB", 1, &[1, 2]), [[1], [2]]);
        assert_eq!(read(8, b"OW", 3, &[2, 1, 4, 3, 6, 5]), [[1, 2, 3], [4, 5, 6]]);
        assert_eq!(read(1, b"OW", 3, &[0, 0b101110]), [[0, 1, 1], [1, 0, 1]]);
    }

    #[test]
    fn a_promise_larger_than_the_file_is_refused() {
        assert!(frames("", 16, u32::MAX, u32::MAX / 4, vec![0; 8], true).is_err());
        assert!(frames("", 1, 100, 100, vec![0; 8], true).unwrap_err().to_string().contains("1250 bytes"));
        assert!(frames("", 32, 1, 2, vec![0; 8], true).is_err());
    }

    #[test]
    fn compressed_frames_are_unpacked() {
        let rle = |packed: &[u8]| {
            let mut f = vec![0u8; 64];
            (f[0], f[4]) = (1, 64);
            f.extend(packed);
            f
        };
        let f = frames(RLE, 8, 2, 5, encapsulated(&[rle(&[1, 7, 8, 254, 9]), rle(&[252, 3])]), false).unwrap();
        assert_eq!([f.frame(0).unwrap(), f.frame(1).unwrap()], [[7, 8, 9, 9, 9], [3, 3, 3, 3, 3]]);
        // One bit a pixel, packed frame by frame.
        let f = frames(RLE, 1, 2, 10, encapsulated(&[rle(&[1, 0b101, 0b10]), rle(&[255, 0xff])]), false).unwrap();
        assert_eq!([f.frame(0).unwrap(), f.frame(1).unwrap()], [[1, 0, 1, 0, 0, 0, 0, 0, 0, 1], [1; 10]]);
        let mut deflated = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::DeflateEncoder::new(&[1u8, 2, 3, 4][..], flate2::Compression::fast()), &mut deflated)
            .unwrap();
        let f = frames(DEFLATED_FRAMES, 8, 1, 4, encapsulated(&[deflated]), false).unwrap();
        assert_eq!(f.frame(0).unwrap(), [1, 2, 3, 4]);
        let f = frames("1.2.840.10008.1.2.4.100", 8, 1, 4, encapsulated(&[vec![0, 0, 1, 0xb3]]), false).unwrap();
        assert!(matches!(f.frame(0), Err(Error::UnsupportedSyntax { syntax, .. }) if syntax.contains("MPEG2")));
    }
}
