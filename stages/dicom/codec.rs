//! Compressed frames → samples. What a codestream says of its size is compared with the header before a decoder may allocate by it, and it says what it is
//! more truly than the transfer syntax. RLE, JPEG and JPEG-LS are read here: the only other decoder of JPEG-LS is C++, none reads lossy JPEG of 12 bits, and
//! broken input must be an error, not a panic. JPEG 2000 is that of dicom-rs.

pub use super::fragments::{Fragment, frames};
use super::header::Header;
use super::{jpeg, jpeg2000, jpegls, rle, unfold};

/// Why a frame gives no samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CodecError {
    Unsupported { syntax: String, help: String },
    Broken(String),
}

/// Samples of one frame as little endian bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Samples {
    /// `[pixel, sample]`, or `[sample, pixel]` where planar.
    pub bytes: Vec<u8>,
    pub bytes_per_sample: usize,
    pub is_planar: bool,
    /// Bits that hold a value, and how many lie below them.
    pub bits: u32,
    pub shift: u32,
    /// What the codestream says its colours are; `None`: what the header says.
    pub colours: Option<Colours>,
}

/// What three samples mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colours {
    Rgb,
    /// Y, Cb, Cr of ITU-R BT.601, full range.
    Ybr,
}

impl Samples {
    /// Samples that lie in their words as the header says.
    pub fn as_stored(bytes: Vec<u8>, bytes_per_sample: usize, h: &Header) -> Samples {
        let shift = (h.high_bit + 1).saturating_sub(h.bits_stored);
        Samples { bytes, bytes_per_sample, is_planar: false, bits: h.bits_stored, shift, colours: None }
    }
}

const ENCAPSULATED_PLAIN: &str = "1.2.840.10008.1.2.1.98";
const RLE: &str = "1.2.840.10008.1.2.5";
const DEFLATED_FRAMES: &str = "1.2.840.10008.1.2.8.1";
pub(super) const CONVERT: &str = "convert the file first, for example with `gdcmconv --raw`";

/// Whether single bits are packed eight in a byte by this syntax.
pub fn packs_bits(transfer_syntax: &str) -> bool {
    [RLE, DEFLATED_FRAMES, ENCAPSULATED_PLAIN].contains(&transfer_syntax)
}

/// Decodes one frame where that takes no more than so many bytes.
pub fn decode_within(h: &Header, stream: &[u8], allowance: u64) -> Result<Samples, CodecError> {
    let wanted = work_bytes(h, stream);
    if wanted > allowance {
        let (rows, columns, why) = (h.rows, h.columns, unfold::closer(wanted));
        return Err(CodecError::Broken(format!("{} compressed bytes cannot hold {rows}×{columns} pixels: {why}", stream.len())));
    }
    decode(h, stream)
}

/// The most that a decoder holds at a time beside the codestream, its result included.
fn work_bytes(h: &Header, stream: &[u8]) -> u64 {
    let width = h.bits_allocated as u64 / 8;
    let a_sample = match h.transfer_syntax.as_str() {
        RLE => width + 1,
        DEFLATED_FRAMES => 2 * width,
        ENCAPSULATED_PLAIN => width,
        // Coefficients, a plane, the result; two bytes each, and whole blocks.
        _ if stream.starts_with(&[0xff, 0xd8]) => 8,
        _ => jpeg2000::BYTES_A_SAMPLE,
    };
    unfold::samples(h).saturating_mul(a_sample)
}

/// Decodes one frame. `stream`: its fragments, joined.
pub fn decode(h: &Header, stream: &[u8]) -> Result<Samples, CodecError> {
    let broken = CodecError::Broken;
    let (n, samples) = (h.rows as usize * h.columns as usize, h.samples.max(1) as usize);
    let width = h.bits_allocated as usize / 8;
    let n_bytes = n * samples * width;
    let stored = |bytes: Vec<u8>| Samples { is_planar: h.planar == 1, ..Samples::as_stored(bytes, width, h) };
    match h.transfer_syntax.as_str() {
        RLE => {
            let bytes = rle::decode(stream, n, samples, width).map_err(broken)?;
            return Ok(Samples { is_planar: true, ..stored(bytes) });
        }
        DEFLATED_FRAMES => {
            let mut bytes = Vec::new();
            let mut limited = std::io::Read::take(flate2::read::DeflateDecoder::new(stream), n_bytes as u64);
            std::io::Read::read_to_end(&mut limited, &mut bytes).map_err(|e| broken(format!("deflated frame: {e}")))?;
            return whole(bytes, n_bytes).map(stored);
        }
        ENCAPSULATED_PLAIN => return whole(stream[..stream.len().min(n_bytes)].to_vec(), n_bytes).map(stored),
        _ => {}
    }
    if stream.starts_with(&[0xff, 0xd8]) { jpeg(h, stream) } else { jpeg2000::decode(h, stream) }
}

fn whole(bytes: Vec<u8>, expected: usize) -> Result<Vec<u8>, CodecError> {
    if bytes.len() != expected {
        return Err(CodecError::Broken(format!("a frame holds {} of {expected} bytes", bytes.len())));
    }
    Ok(bytes)
}

/// What a codestream says of itself.
pub(super) struct Stated {
    pub rows: u32,
    pub columns: u32,
    pub components: u32,
    pub precision: u32,
}

fn jpeg(h: &Header, stream: &[u8]) -> Result<Samples, CodecError> {
    let (marker, stated) = start_of_frame(stream).ok_or_else(|| CodecError::Broken("JPEG codestream without a frame header".into()))?;
    compare(h, &stated)?;
    let (rows, columns, n) = (h.rows as usize, h.columns as usize, h.samples.max(1) as usize);
    if marker == 0xf7 {
        let values = jpegls::decode(stream, rows, columns, n).map_err(CodecError::Broken)?;
        return Ok(Samples { bits: stated.precision, shift: 0, ..of_words(values, stated.precision, h) });
    }
    let picture = jpeg::decode(stream, rows, columns, n).map_err(|fault| match fault {
        jpeg::Fault::Broken(why) => CodecError::Broken(why),
        jpeg::Fault::Unsupported(syntax) => CodecError::Unsupported { syntax, help: CONVERT.into() },
    })?;
    // Signed values fill the bits that the header tells, whatever the codestream's precision.
    let bits = if h.is_signed { h.bits_stored.min(picture.precision) } else { picture.precision };
    let colours = picture.is_ybr.map(|is_ybr| if is_ybr { Colours::Ybr } else { Colours::Rgb });
    Ok(Samples { bits, shift: 0, colours, ..of_words(picture.samples, picture.precision, h) })
}

/// One byte a sample, where that is enough.
fn of_words(values: Vec<u16>, precision: u32, h: &Header) -> Samples {
    if precision <= 8 {
        return Samples::as_stored(values.iter().map(|v| *v as u8).collect(), 1, h);
    }
    let mut bytes = vec![0; 2 * values.len()];
    bytes.as_chunks_mut::<2>().0.iter_mut().zip(values).for_each(|(o, v)| *o = v.to_le_bytes());
    Samples::as_stored(bytes, 2, h)
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

/// Whether a codestream holds what the header says, before anything is allocated for it.
pub(super) fn compare(h: &Header, stated: &Stated) -> Result<(), CodecError> {
    let Stated { rows, columns, components, .. } = stated;
    let samples = h.samples.max(1);
    if (*rows, *columns, *components) == (h.rows, h.columns, samples) {
        return Ok(());
    }
    let told = format!(
        "the codestream holds {rows}×{columns} pixels of {components} components, the header says {}×{} of {samples}",
        h.rows, h.columns
    );
    Err(CodecError::Broken(told))
}
