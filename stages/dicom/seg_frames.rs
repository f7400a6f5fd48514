//! The pixels of a segmentation, frame by frame: one bit stream over all frames (PS3.5 8.1.1), bytes or words, plain, RLE or deflated.

use std::io::Read;

use dicom::core::value::Value;
use dicom::dictionary_std::tags;

use super::tree::{self, Dataset};
use crate::error::Error;

const RLE: &str = "1.2.840.10008.1.2.5";
const DEFLATED_FRAMES: &str = "1.2.840.10008.1.2.8.1";

/// Pixel data that is already known to hold all its frames.
#[derive(Debug)]
pub struct Frames {
    file: String,
    bits: u16,
    /// Pixels of a frame.
    n: usize,
    data: Data,
}

#[derive(Debug)]
enum Data {
    /// All frames one after another, little endian.
    Plain(Vec<u8>),
    Rle(Vec<Vec<u8>>),
    Deflated(Vec<Vec<u8>>),
}

impl Frames {
    /// Takes the pixel data out of a dataset and checks it against the header, before anything is allocated by the header's word.
    pub fn take(mut d: Dataset, file: &str, syntax: &str, rows: usize, columns: usize, n_frames: usize) -> Result<Frames, Error> {
        let wrong = |why: String| Error::Dicom { file: file.to_string(), why };
        let bits = tree::int(&d, tags::BITS_ALLOCATED).unwrap_or(0);
        if !matches!(bits, 1 | 8 | 16) {
            return Err(wrong(format!("BitsAllocated is {bits}, expected 1, 8 or 16")));
        }
        if tree::int(&d, tags::SAMPLES_PER_PIXEL).unwrap_or(1) != 1 {
            return Err(wrong("it has several samples a pixel, expected one".into()));
        }
        let n = rows.checked_mul(columns).filter(|n| *n < 1 << 31).ok_or_else(|| wrong(format!("found {rows}×{columns} pixels")))?;
        let frames = Frames { file: file.to_string(), bits: bits as u16, n, data: Data::Plain(Vec::new()) };
        if n_frames == 0 {
            return Ok(frames);
        }
        let extended = d.get(tags::EXTENDED_OFFSET_TABLE).and_then(|e| e.value().to_bytes().ok()).map(|b| b.into_owned());
        let element = d.take(tags::PIXEL_DATA).ok_or_else(|| wrong("it has no pixel data".into()))?;
        let data = match element.into_value() {
            Value::Primitive(v) => {
                let bytes = v.to_bytes().into_owned();
                let wanted = (n as u128 * n_frames as u128 * bits as u128).div_ceil(8);
                if (bytes.len() as u128) < wanted {
                    return Err(wrong(format!(
                        "{n_frames} frames of {rows}×{columns} need {wanted} bytes of pixels, found {}",
                        bytes.len()
                    )));
                }
                Data::Plain(bytes)
            }
            Value::PixelSequence(p) => {
                let (offsets, fragments) = p.into_parts();
                let frames = group_fragments(&offsets, extended.as_deref(), &fragments, n_frames).map_err(wrong)?;
                match syntax {
                    RLE => Data::Rle(frames),
                    DEFLATED_FRAMES => Data::Deflated(frames),
                    other => {
                        let help = "RLE, deflated frames and uncompressed segmentations are read: decompress it first, with dcmdjpls, gdcmconv --raw or highdicom";
                        return Err(Error::UnsupportedSyntax { file: file.into(), syntax: other.into(), help: help.into() });
                    }
                }
            }
            Value::Sequence(_) => return Err(wrong("its pixel data is a sequence".into())),
        };
        Ok(Frames { data, ..frames })
    }

    /// The values of one frame, `[row, column]`; 0 or 1 for single bits.
    pub fn frame(&self, i: usize) -> Result<Vec<u16>, Error> {
        let n = self.n;
        let bytes_of_frame = (n * self.bits as usize).div_ceil(8);
        let short = |has: usize| Error::Dicom {
            file: self.file.clone(),
            why: format!("frame {} unpacks to {has} bytes, expected {bytes_of_frame}", i + 1),
        };
        let whole = |bytes: Vec<u8>| if bytes.len() < bytes_of_frame { Err(short(bytes.len())) } else { Ok(self.values(&bytes, 0)) };
        match &self.data {
            Data::Plain(bytes) if self.bits == 1 => Ok(self.values(bytes, i * n)),
            Data::Plain(bytes) => Ok(self.values(&bytes[i * bytes_of_frame..(i + 1) * bytes_of_frame], 0)),
            Data::Rle(frames) => whole(
                unpack_rle(&frames[i], if self.bits == 16 { 2 } else { 1 }, bytes_of_frame)
                    .map_err(|why| Error::Dicom { file: self.file.clone(), why: format!("frame {}: {why}", i + 1) })?,
            ),
            Data::Deflated(frames) => {
                let mut out = Vec::new();
                let inflated = flate2::read::DeflateDecoder::new(&frames[i][..]).take(bytes_of_frame as u64 + 1).read_to_end(&mut out);
                inflated.map_err(|e| Error::Dicom { file: self.file.clone(), why: format!("frame {} does not inflate ({e})", i + 1) })?;
                whole(out)
            }
        }
    }

    fn values(&self, bytes: &[u8], first_bit: usize) -> Vec<u16> {
        match self.bits {
            // Least significant bit first; frames follow each other without padding.
            1 => (first_bit..first_bit + self.n).map(|b| (bytes[b / 8] >> (b % 8) & 1) as u16).collect(),
            8 => bytes[..self.n].iter().map(|b| *b as u16).collect(),
            _ => bytes[..2 * self.n].chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect(),
        }
    }
}

/// Fragments → frames: one each, or by the basic or extended offset table (PS3.5 A.4).
fn group_fragments(offsets: &[u32], extended: Option<&[u8]>, fragments: &[Vec<u8>], n_frames: usize) -> Result<Vec<Vec<u8>>, String> {
    if fragments.len() == n_frames {
        return Ok(fragments.to_vec());
    }
    if n_frames == 1 {
        return Ok(vec![fragments.concat()]);
    }
    let starts: Vec<u64> = match extended {
        Some(bytes) => bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("chunks of 8"))).collect(),
        None => offsets.iter().map(|o| *o as u64).collect(),
    };
    if starts.len() != n_frames {
        return Err(format!("found {} fragments and {} offsets for {n_frames} frames", fragments.len(), starts.len()));
    }
    let mut frames: Vec<Vec<u8>> = vec![Vec::new(); n_frames];
    let (mut at, mut frame) = (0u64, 0);
    for fragment in fragments {
        while frame + 1 < n_frames && starts[frame + 1] <= at {
            frame += 1;
        }
        frames[frame].extend_from_slice(fragment);
        at += 8 + fragment.len() as u64;
    }
    if frames.iter().any(Vec::is_empty) { Err("its offset table leaves frames without data".into()) } else { Ok(frames) }
}

/// PS3.5 annex G: a header of 16 words, then PackBits segments, the most significant byte plane first. Gives little-endian values.
fn unpack_rle(bytes: &[u8], planes: usize, wanted: usize) -> Result<Vec<u8>, String> {
    let word = |i: usize| bytes.get(4 * i..4 * i + 4).map(|b| u32::from_le_bytes(b.try_into().expect("4 bytes")) as usize);
    let n = word(0).ok_or("it is shorter than an RLE header")?;
    if n != planes {
        return Err(format!("found {n} RLE segments, expected {planes}"));
    }
    let per_plane = wanted / planes;
    let mut out = vec![0u8; wanted];
    for p in 0..planes {
        let start = word(1 + p).ok_or("it is shorter than an RLE header")?;
        let mut from = bytes.get(start..).ok_or("an RLE segment starts behind the end")?.iter();
        let mut at = 0;
        while at < per_plane {
            let mut put = |v: u8| {
                if at < per_plane {
                    // Plane 0 holds the high bytes.
                    out[at * planes + (planes - 1 - p)] = v;
                    at += 1;
                }
            };
            match *from.next().ok_or("an RLE segment ends too early")? as i8 {
                n @ 0.. => {
                    for _ in 0..=n {
                        put(*from.next().ok_or("an RLE segment ends too early")?);
                    }
                }
                -128 => {}
                n => {
                    let v = *from.next().ok_or("an RLE segment ends too early")?;
                    (0..=-(n as i32)).for_each(|_| put(v));
                }
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_one_stream_over_all_frames() {
        // 3 frames of 3 pixels: 101 | 011 | 110, least significant bit first.
        let frames = Frames { file: "f".into(), bits: 1, n: 3, data: Data::Plain(vec![0b11110101, 0b0]) };
        assert_eq!(frames.frame(0).unwrap(), [1, 0, 1]);
        assert_eq!(frames.frame(1).unwrap(), [0, 1, 1]);
        assert_eq!(frames.frame(2).unwrap(), [1, 1, 0]);
    }

    #[test]
    fn rle_unpacks_runs_and_literals() {
        let mut f = vec![0u8; 64];
        f[0] = 1;
        f[4] = 64;
        f.extend([2, 7, 8, 9, (-3i8) as u8, 5]);
        assert_eq!(unpack_rle(&f, 1, 7).unwrap(), [7, 8, 9, 5, 5, 5, 5]);
        assert!(unpack_rle(&f, 1, 8).unwrap_err().contains("too early"));
        assert!(unpack_rle(&f[..20], 1, 8).is_err());
        f[0] = 2;
        f[8] = 64;
        assert_eq!(unpack_rle(&f, 2, 4).unwrap(), [7, 7, 8, 8]);
    }

    #[test]
    fn fragments_are_grouped_by_the_offset_table() {
        let parts = vec![vec![1; 10], vec![2; 4], vec![3; 6]];
        let frames = group_fragments(&[0, 30], None, &parts, 2).unwrap();
        assert_eq!(frames, [[vec![1; 10], vec![2; 4]].concat(), vec![3; 6]]);
        assert!(group_fragments(&[], None, &parts, 2).is_err());
        assert_eq!(group_fragments(&[], None, &parts, 3).unwrap().len(), 3);
    }
}
