//! JPEG 2000 and HTJ2K (ISO 15444-1 and -15): what a codestream announces is checked, then dicom-rs's decoder reads it.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use dicom::encoding::adapters::{PixelDataObject, RawPixelData};
use dicom::encoding::transfer_syntax::TransferSyntaxIndex;
use dicom::transfer_syntax::TransferSyntaxRegistry;

use super::codec::{CONVERT, CodecError, Colours, Samples, Stated, compare};
use super::header::Header;
use super::jpeg2000_size;

const JPEG2000: &str = "1.2.840.10008.1.2.4.91";
const PART_2_LOSSLESS: &str = "1.2.840.10008.1.2.4.92";
const PART_2: &str = "1.2.840.10008.1.2.4.93";

/// What the decoder holds for each sample: the picture in 32 bits, the result in 16 and a byte of flags; with two tiles the larger one besides.
pub const BYTES_A_SAMPLE: u64 = 10;

/// A syntax that nothing here decodes, by its name.
pub fn unsupported(transfer_syntax: &str) -> CodecError {
    let name = TransferSyntaxRegistry.get(transfer_syntax).map_or(transfer_syntax.to_string(), |t| t.name().to_string());
    CodecError::Unsupported { syntax: name, help: CONVERT.into() }
}

pub fn decode(h: &Header, stream: &[u8]) -> Result<Samples, CodecError> {
    if matches!(h.transfer_syntax.as_str(), PART_2 | PART_2_LOSSLESS) {
        return Err(unsupported(&h.transfer_syntax));
    }
    let is_known = TransferSyntaxRegistry.get(&h.transfer_syntax).is_some_and(|t| t.pixel_data_reader().is_some());
    let Some(at) = stream.windows(4).take(4096).position(|w| w == [0xff, 0x4f, 0xff, 0x51]) else {
        if is_known {
            return Err(CodecError::Broken("no codestream of a known kind".into()));
        }
        return Err(unsupported(&h.transfer_syntax));
    };
    let b = &stream[at..];
    let word = |i: usize| b.get(i..i + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
    let stated = (|| {
        let (x, y, x0, y0) = (word(8)?, word(12)?, word(16)?, word(20)?);
        if x < x0 || y < y0 {
            return None;
        }
        let components = u16::from_be_bytes([*b.get(40)?, *b.get(41)?]) as u32;
        let precision = (*b.get(42)? & 0x7f) as u32 + 1;
        let tiles = (x - x0).div_ceil(word(24)?.max(1)) as u64 * (y - y0).div_ceil(word(28)?.max(1)) as u64;
        let is_plain = b.get(42..42 + 3 * components as usize)?.chunks(3).all(|c| c[0] == b[42] && c[1..] == [1, 1]);
        Some((tiles, is_plain, Stated { rows: y.checked_sub(y0)?, columns: x.checked_sub(x0)?, components, precision }))
    })();
    let (n_tiles, is_plain, stated) = stated.ok_or_else(|| CodecError::Broken("JPEG 2000 codestream without image size".into()))?;
    if stated.precision > 16 {
        return Err(CodecError::Unsupported { syntax: format!("JPEG 2000 of {} bits", stated.precision), help: CONVERT.into() });
    }
    if !is_plain {
        let syntax = "JPEG 2000 whose components differ in size or precision".to_string();
        return Err(CodecError::Unsupported { syntax, help: CONVERT.into() });
    }
    // The decoder keeps kilobytes for each tile that the codestream announces; one that is there takes at least 14 bytes.
    if n_tiles > stream.len() as u64 / 14 + 1 {
        return Err(CodecError::Broken(format!("{} bytes of JPEG 2000 cannot hold {n_tiles} tiles", stream.len())));
    }
    compare(h, &stated)?;
    jpeg2000_size::check(b).map_err(CodecError::Broken)?;
    let samples = through_registry(h, stream, &stated)?;
    // The decoder has undone the colour transform of the codestream (PS3.5 8.2.4).
    let is_transformed = matches!(h.photometric.as_str(), "YBR_RCT" | "YBR_ICT");
    Ok(Samples { colours: is_transformed.then_some(Colours::Rgb), ..samples })
}

fn through_registry(h: &Header, stream: &[u8], stated: &Stated) -> Result<Samples, CodecError> {
    let (broken, syntax) = (CodecError::Broken, JPEG2000);
    let bytes_per_sample = if stated.precision <= 8 { 1 } else { 2 };
    let frame = OneFrame {
        stream,
        rows: h.rows as u16,
        columns: h.columns as u16,
        bits: bytes_per_sample as u16 * 8,
        samples: h.samples.max(1) as u16,
        syntax,
    };
    let known = TransferSyntaxRegistry.get(syntax);
    let reader = known.and_then(|t| t.pixel_data_reader());
    let Some(reader) = reader else {
        return Err(CodecError::Unsupported { syntax: known.map_or(syntax, |t| t.name()).into(), help: CONVERT.into() });
    };
    let mut bytes = Vec::new();
    let n_bytes = h.rows as usize * h.columns as usize * h.samples.max(1) as usize * bytes_per_sample;
    // Decoders for hostile input may panic; that is one bad file, not a dead program.
    let decoded = catch_unwind(AssertUnwindSafe(|| reader.decode_frame(&frame, 0, &mut bytes)));
    match decoded {
        Ok(Ok(())) if bytes.len() == n_bytes => {
            Ok(Samples { bits: stated.precision, shift: 0, ..Samples::as_stored(bytes, bytes_per_sample, h) })
        }
        Ok(Ok(())) => Err(broken(format!("a frame holds {} of {n_bytes} bytes", bytes.len()))),
        Ok(Err(e)) => Err(broken(crate::error::chain(&e))),
        Err(_) => Err(broken("the decoder gave up on this codestream".into())),
    }
}

/// One frame in the shape that dicom-rs decoders ask for.
struct OneFrame<'a> {
    stream: &'a [u8],
    rows: u16,
    columns: u16,
    samples: u16,
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
        Some(self.samples)
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
