//! Encapsulated pixel data (PS3.5 A.4): fragments → frames → samples. What the codestream says of its size is compared with the header before a decoder
//! may allocate by it. JPEG and JPEG 2000 decoders are those of dicom-rs. RLE and JPEG-LS are read here: a short segment must be an error,
//! not a panic, and the only other decoder of JPEG-LS is C++.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use dicom::encoding::adapters::{PixelDataObject, RawPixelData};
use dicom::encoding::transfer_syntax::TransferSyntaxIndex;
use dicom::transfer_syntax::TransferSyntaxRegistry;

use super::bytes::Source;
use super::header::Header;
use super::jpegls;

/// Why a frame gives no samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CodecError {
    Unsupported { syntax: String, help: String },
    Broken(String),
}

/// Samples of one frame as little endian bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Samples {
    pub bytes: Vec<u8>,
    pub bytes_per_sample: usize,
}

/// Place and length of a fragment in the file.
pub type Fragment = (u64, u32);

const JPEG_BASELINE: &str = "1.2.840.10008.1.2.4.50";
const JPEG2000: &str = "1.2.840.10008.1.2.4.91";
const CONVERT: &str = "convert the file first, for example with `gdcmconv --raw`";

/// The fragments of each frame.
/// - `start`: of the first item, the basic offset table
pub fn frames(source: &Source, start: u64, h: &Header) -> Result<Vec<Vec<Fragment>>, String> {
    let (table, fragments) = items(source, start)?;
    let n = h.n_frames as usize;
    if fragments.is_empty() {
        return Err("no fragments of pixel data".into());
    }
    if n == 1 {
        return Ok(vec![fragments]);
    }
    if fragments.len() == n {
        return Ok(fragments.into_iter().map(|f| vec![f]).collect());
    }
    // Offsets count from the first byte of the item tag of the first fragment.
    let base = fragments[0].0 - 8;
    let starts: Vec<usize> = if h.extended_offsets.len() == n || table.len() == n {
        let offsets = if h.extended_offsets.len() == n { &h.extended_offsets } else { &table };
        let at = |o: &u64| base.checked_add(*o).and_then(|o| fragments.binary_search_by_key(&o, |f| f.0 - 8).ok());
        offsets.iter().map(at).collect::<Option<_>>().ok_or("the offset table points between fragments")?
    } else {
        let mut found = Vec::new();
        for (i, (at, len)) in fragments.iter().enumerate() {
            let head = source.read_at(*at, 12.min(*len as usize)).map_err(|e| e.to_string())?;
            if is_start(&head) {
                found.push(i);
            }
        }
        found
    };
    if starts.len() != n || starts.first() != Some(&0) || starts.windows(2).any(|w| w[0] >= w[1]) {
        return Err(format!(
            "{} fragments for {n} frames, and neither an offset table nor the codestreams tell which belong together",
            fragments.len()
        ));
    }
    let ends = starts.iter().skip(1).copied().chain([fragments.len()]);
    Ok(starts.iter().zip(ends).map(|(a, b)| fragments[*a..b].to_vec()).collect())
}

/// The offset table and the place of every fragment.
fn items(source: &Source, start: u64) -> Result<(Vec<u64>, Vec<Fragment>), String> {
    let mut at = start;
    let mut table = Vec::new();
    let mut fragments = Vec::new();
    for i in 0.. {
        // A file that ends after its last fragment, without the delimiter, has lost nothing.
        if i > 1 && at == source.len() {
            break;
        }
        let head = source.read_at(at, 8).map_err(|_| format!("pixel data end inside the header of fragment {i}"))?;
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        match head[..4] {
            [0xfe, 0xff, 0x00, 0xe0] => {}
            [0xfe, 0xff, 0xdd, 0xe0] => break,
            _ => return Err(format!("fragment {i} does not begin with an item tag")),
        }
        let left = source.len() - (at + 8);
        if length as u64 > left {
            return Err(format!("pixel data end inside fragment {i}: found {left} of {length} bytes"));
        }
        if i == 0 {
            let bytes = source.read_at(at + 8, length as usize).map_err(|e| e.to_string())?;
            table = bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]) as u64).collect();
        } else {
            fragments.push((at + 8, length));
        }
        at += 8 + length as u64;
    }
    Ok((table, fragments))
}

/// Whether bytes begin a JPEG, JPEG-LS or JPEG 2000 codestream.
fn is_start(b: &[u8]) -> bool {
    b.starts_with(&[0xff, 0xd8, 0xff]) || b.starts_with(&[0xff, 0x4f, 0xff, 0x51]) || b.starts_with(&[0, 0, 0, 12, b'j', b'P'])
}

/// Decodes one frame of one sample a pixel. `stream`: its fragments, joined.
pub fn decode(h: &Header, stream: &[u8]) -> Result<Samples, CodecError> {
    let n = h.rows as usize * h.columns as usize;
    let stored = h.bits_allocated as usize / 8;
    match h.transfer_syntax.as_str() {
        "1.2.840.10008.1.2.5" => {
            return Ok(Samples { bytes: rle(stream, n, stored).map_err(CodecError::Broken)?, bytes_per_sample: stored });
        }
        "1.2.840.10008.1.2.8.1" => {
            let mut bytes = Vec::new();
            let read = std::io::Read::read_to_end(
                &mut std::io::Read::take(flate2::read::DeflateDecoder::new(stream), (n * stored) as u64),
                &mut bytes,
            );
            read.map_err(|e| CodecError::Broken(format!("deflated frame: {e}")))?;
            return whole(bytes, n, stored);
        }
        "1.2.840.10008.1.2.1.98" => return whole(stream[..stream.len().min(n * stored)].to_vec(), n, stored),
        _ => {}
    }
    // The codestream says what it is more truly than the transfer syntax.
    if stream.starts_with(&[0xff, 0xd8]) { jpeg(h, stream) } else { jpeg2000(h, stream) }
}

fn whole(bytes: Vec<u8>, n: usize, bytes_per_sample: usize) -> Result<Samples, CodecError> {
    if bytes.len() != n * bytes_per_sample {
        return Err(CodecError::Broken(format!("a frame holds {} of {} bytes", bytes.len(), n * bytes_per_sample)));
    }
    Ok(Samples { bytes, bytes_per_sample })
}

/// RLE Lossless (PS3.5 annex G): one segment a byte plane, most significant first. Gives little endian samples.
fn rle(stream: &[u8], n: usize, bytes_per_sample: usize) -> Result<Vec<u8>, String> {
    let word = |i: usize| stream.get(4 * i..4 * i + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize);
    let count = word(0).ok_or("RLE header is cut off")?;
    if count != bytes_per_sample || stream.len() < 64 {
        return Err(format!("RLE frame has {count} segments, expected {bytes_per_sample}"));
    }
    // 128 bytes are the most that two can stand for.
    if n > stream.len().saturating_mul(64) {
        return Err(format!("{} RLE bytes cannot hold {n} pixels", stream.len()));
    }
    let mut out = vec![0u8; n * bytes_per_sample];
    for plane in 0..count {
        let start = word(plane + 1).unwrap_or(0);
        let end = if plane + 1 < count { word(plane + 2).unwrap_or(0) } else { stream.len() };
        let segment = stream.get(start..end).filter(|_| start >= 64).ok_or("RLE segment lies outside the frame")?;
        let mut put = 0;
        let mut at = 0;
        while put < n {
            let Some(&control) = segment.get(at) else { return Err(format!("RLE segment {plane} holds {put} of {n} pixels")) };
            at += 1;
            let run = match control {
                0..=127 => control as usize + 1,
                128 => continue,
                129..=255 => 257 - control as usize,
            };
            let is_literal = control < 128;
            let from =
                segment.get(at..at + if is_literal { run } else { 1 }).ok_or_else(|| format!("RLE segment {plane} ends inside a run"))?;
            at += from.len();
            for k in 0..run.min(n - put) {
                out[(put + k) * bytes_per_sample + (count - 1 - plane)] = if is_literal { from[k] } else { from[0] };
            }
            put += run;
        }
    }
    Ok(out)
}

/// What a codestream says of itself.
struct Stated {
    rows: u32,
    columns: u32,
    components: u32,
    precision: u32,
}

fn jpeg(h: &Header, stream: &[u8]) -> Result<Samples, CodecError> {
    let (marker, stated) = start_of_frame(stream).ok_or_else(|| CodecError::Broken("JPEG codestream without a frame header".into()))?;
    let unsupported = |syntax: &str| Err(CodecError::Unsupported { syntax: syntax.into(), help: CONVERT.into() });
    match (marker, stated.precision) {
        (0xf7, _) => {
            compare(h, &stated).map_err(CodecError::Broken)?;
            let values = jpegls::decode(stream, h.rows as usize, h.columns as usize).map_err(CodecError::Broken)?;
            return Ok(Samples { bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(), bytes_per_sample: 2 });
        }
        (0xc0..=0xc2, 8) | (0xc3, 2..=16) => {}
        (0xc0..=0xc2, p) => {
            return unsupported(&format!("lossy JPEG of {p} bits (process {})", if marker == 0xc2 { "10 and 12" } else { "2 and 4" }));
        }
        _ => return unsupported(&format!("JPEG of the kind SOF{}", marker - 0xc0)),
    }
    through_registry(h, stream, &stated, JPEG_BASELINE)
}

/// The first SOF marker of a JPEG or JPEG-LS codestream.
fn start_of_frame(s: &[u8]) -> Option<(u8, Stated)> {
    let mut at = 2;
    loop {
        while *s.get(at)? == 0xff && *s.get(at + 1)? == 0xff {
            at += 1;
        }
        if *s.get(at)? != 0xff {
            return None;
        }
        let marker = *s.get(at + 1)?;
        let length = u16::from_be_bytes([*s.get(at + 2)?, *s.get(at + 3)?]) as usize;
        if matches!(marker, 0xc0..=0xcf | 0xf7) && !matches!(marker, 0xc4 | 0xc8 | 0xcc) {
            let b = s.get(at + 4..at + 10)?;
            let (rows, columns) = (u16::from_be_bytes([b[1], b[2]]) as u32, u16::from_be_bytes([b[3], b[4]]) as u32);
            return Some((marker, Stated { rows, columns, components: b[5] as u32, precision: b[0] as u32 }));
        }
        at += 2 + length;
    }
}

fn jpeg2000(h: &Header, stream: &[u8]) -> Result<Samples, CodecError> {
    let is_known = TransferSyntaxRegistry.get(&h.transfer_syntax).is_some_and(|t| t.pixel_data_reader().is_some());
    let Some(at) = stream.windows(4).take(4096).position(|w| w == [0xff, 0x4f, 0xff, 0x51]) else {
        if is_known {
            return Err(CodecError::Broken("no codestream of a known kind".into()));
        }
        let syntax = TransferSyntaxRegistry.get(&h.transfer_syntax).map_or(h.transfer_syntax.clone(), |t| t.name().to_string());
        return Err(CodecError::Unsupported { syntax, help: CONVERT.into() });
    };
    let b = &stream[at..];
    let word = |i: usize| b.get(i..i + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
    let stated = (|| {
        let (x, y, x0, y0) = (word(8)?, word(12)?, word(16)?, word(20)?);
        let components = u16::from_be_bytes([*b.get(40)?, *b.get(41)?]) as u32;
        let precision = (*b.get(42)? & 0x7f) as u32 + 1;
        Some(Stated { rows: y.checked_sub(y0)?, columns: x.checked_sub(x0)?, components, precision })
    })();
    let stated = stated.ok_or_else(|| CodecError::Broken("JPEG 2000 codestream without image size".into()))?;
    if stated.precision > 16 {
        return Err(CodecError::Unsupported { syntax: format!("JPEG 2000 of {} bits", stated.precision), help: CONVERT.into() });
    }
    through_registry(h, stream, &stated, JPEG2000)
}

/// Whether a codestream holds what the header says, before anything is allocated for it.
fn compare(h: &Header, stated: &Stated) -> Result<(), String> {
    let is_same = (stated.rows, stated.columns, stated.components) == (h.rows, h.columns, 1);
    let Stated { rows, columns, components, .. } = stated;
    let told = || {
        format!("the codestream holds {rows}×{columns} pixels of {components} components, the header says {}×{} of 1", h.rows, h.columns)
    };
    if is_same { Ok(()) } else { Err(told()) }
}

fn through_registry(h: &Header, stream: &[u8], stated: &Stated, syntax: &str) -> Result<Samples, CodecError> {
    let broken = CodecError::Broken;
    compare(h, stated).map_err(broken)?;
    let bytes_per_sample = if stated.precision <= 8 { 1 } else { 2 };
    let frame = OneFrame { stream, rows: h.rows as u16, columns: h.columns as u16, bits: bytes_per_sample as u16 * 8, syntax };
    let known = TransferSyntaxRegistry.get(syntax);
    let reader = known.and_then(|t| t.pixel_data_reader());
    let Some(reader) = reader else {
        return Err(CodecError::Unsupported { syntax: known.map_or(syntax, |t| t.name()).into(), help: CONVERT.into() });
    };
    let mut bytes = Vec::new();
    // Decoders for hostile input may panic; that is one bad file, not a dead program.
    let decoded = catch_unwind(AssertUnwindSafe(|| reader.decode_frame(&frame, 0, &mut bytes)));
    match decoded {
        Ok(Ok(())) => whole(bytes, h.rows as usize * h.columns as usize, bytes_per_sample),
        Ok(Err(e)) => Err(broken(crate::error::chain(&e))),
        Err(_) => Err(broken("the decoder gave up on this codestream".into())),
    }
}

/// One frame in the shape that dicom-rs decoders ask for.
struct OneFrame<'a> {
    stream: &'a [u8],
    rows: u16,
    columns: u16,
    bits: u16,
    syntax: &'a str,
}

impl PixelDataObject for OneFrame<'_> {
    fn transfer_syntax_uid(&self) -> &str {
        self.syntax
    }
    fn rows(&self) -> Option<u16> {
        Some(self.rows)
    }
    fn cols(&self) -> Option<u16> {
        Some(self.columns)
    }
    fn samples_per_pixel(&self) -> Option<u16> {
        Some(1)
    }
    fn bits_allocated(&self) -> Option<u16> {
        Some(self.bits)
    }
    fn bits_stored(&self) -> Option<u16> {
        Some(self.bits)
    }
    fn photometric_interpretation(&self) -> Option<&str> {
        Some("MONOCHROME2")
    }
    fn number_of_frames(&self) -> Option<u32> {
        Some(1)
    }
    fn number_of_fragments(&self) -> Option<u32> {
        Some(1)
    }
    fn fragment(&self, fragment: usize) -> Option<Cow<'_, [u8]>> {
        (fragment == 0).then_some(Cow::Borrowed(self.stream))
    }
    fn offset_table(&self) -> Option<Cow<'_, [u32]>> {
        Some(Cow::Borrowed(&[]))
    }
    fn raw_pixel_data(&self) -> Option<RawPixelData> {
        Some(RawPixelData { fragments: std::iter::once(self.stream.to_vec()).collect(), offset_table: std::iter::empty().collect() })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rle_frame(segments: &[&[u8]]) -> Vec<u8> {
        let mut head = vec![0u8; 64];
        head[..4].copy_from_slice(&(segments.len() as u32).to_le_bytes());
        let mut body = Vec::new();
        for (i, s) in segments.iter().enumerate() {
            head[4 + 4 * i..8 + 4 * i].copy_from_slice(&(64 + body.len() as u32).to_le_bytes());
            body.extend(*s);
        }
        [head, body].concat()
    }

    #[test]
    fn rle_planes_become_little_endian_samples() {
        // High bytes 1, 1, 1; low bytes 5, 6, 7.
        let frame = rle_frame(&[&[254, 1], &[2, 5, 6, 7]]);
        assert_eq!(rle(&frame, 3, 2).unwrap(), [5, 1, 6, 1, 7, 1]);
    }

    #[test]
    fn short_rle_is_an_error() {
        let frame = rle_frame(&[&[254, 1], &[1, 5, 6]]);
        assert!(rle(&frame, 3, 2).unwrap_err().contains("2 of 3"));
        assert!(rle(&frame[..40], 3, 2).is_err());
        assert!(rle(&frame, 1 << 40, 2).is_err(), "before anything is allocated");
    }

    #[test]
    fn fragments_are_joined_by_their_codestreams_without_a_table() {
        let mut bytes = Vec::new();
        let mut put = |body: &[u8]| {
            bytes.extend([0xfe, 0xff, 0x00, 0xe0]);
            bytes.extend((body.len() as u32).to_le_bytes());
            bytes.extend(body);
        };
        put(&[]);
        for body in [&[0xff, 0xd8, 0xff, 0xe0][..], &[1, 2], &[0xff, 0xd8, 0xff, 0xe0]] {
            put(body);
        }
        let source = Source::of_raw(bytes);
        let h = |n_frames| Header { n_frames, ..Header::default() };
        let got = frames(&source, 0, &h(2)).unwrap();
        assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(frames(&source, 0, &h(1)).unwrap()[0].len(), 3);
        assert!(frames(&source, 0, &h(4)).is_err());
    }
}
