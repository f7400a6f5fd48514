//! Building DICOM datasets and files. Equal content gives equal bytes: UIDs are hashes, and no clock is read.

use dicom::core::header::HasLength;
use dicom::core::value::{DataSetSequence, PrimitiveValue};
use dicom::core::{DataElement, Length, Tag, VR};
use dicom::dictionary_std::{tags, uids};
use dicom::object::{FileMetaTableBuilder, InMemDicomObject};

use super::seg::Code;
use super::tree::Dataset;
use crate::error::{Error, chain};

/// What implementation wrote a file, PS3.7 D.3.3.2.
pub const IMPLEMENTATION: &str = "2.25.228914361907713850472161936412034587921";
pub const IMPLEMENTATION_NAME: &str = "VOXMILL";
/// SoftwareVersions of what is written: goes up with the version of the stage `export`, which is in the key of every file. The program's own version is not.
pub const SOFTWARE: &str = "3";

/// A UID (PS3.5 B.2: `2.25.` and a 128-bit number) that equal parts always give and other parts do not.
pub fn uid(parts: &[&[u8]]) -> String {
    let mut h = blake3::Hasher::new();
    for part in parts {
        h.update(&(part.len() as u64).to_le_bytes());
        h.update(part);
    }
    let bytes: [u8; 16] = h.finalize().as_bytes()[..16].try_into().expect("a hash has 32 bytes");
    // Version 8 (made by the application) and variant 1 of RFC 9562.
    let n = u128::from_be_bytes(bytes) & !(0xf << 76) & !(0b11 << 62) | 0x8 << 76 | 0b10 << 62;
    format!("2.25.{n}")
}

pub fn put(d: &mut Dataset, tag: Tag, vr: VR, value: impl Into<PrimitiveValue>) {
    d.put(DataElement::new(tag, vr, value.into()));
}

/// An element of a type that may be empty.
pub fn put_empty(d: &mut Dataset, tag: Tag, vr: VR) {
    d.put(DataElement::new(tag, vr, PrimitiveValue::Empty));
}

/// Decimal strings, each at most 16 characters (PS3.5 6.2).
pub fn put_decimals(d: &mut Dataset, tag: Tag, values: &[f64]) {
    put(d, tag, VR::DS, PrimitiveValue::Strs(values.iter().map(|v| decimal(*v)).collect()));
}

pub fn put_items(d: &mut Dataset, tag: Tag, items: Vec<Dataset>) {
    d.put(DataElement::new(tag, VR::SQ, DataSetSequence::new(items, Length::UNDEFINED)));
}

pub fn put_code(d: &mut Dataset, tag: Tag, code: &Code) {
    let mut item = Dataset::new_empty();
    put(&mut item, tags::CODE_VALUE, VR::SH, code.value.as_str());
    put(&mut item, tags::CODING_SCHEME_DESIGNATOR, VR::SH, code.scheme.as_str());
    put(&mut item, tags::CODE_MEANING, VR::LO, code.meaning.as_str());
    put_items(d, tag, vec![item]);
}

/// Takes over elements as they are; the ones that must be there (type 2) empty where the source has none.
pub fn copy(from: &Dataset, to: &mut Dataset, optional: &[Tag], required: &[(Tag, VR)]) {
    for tag in optional.iter().chain(required.iter().map(|(t, _)| t)) {
        if let Some(e) = from.get(*tag) {
            to.put(e.clone());
        }
    }
    for (tag, vr) in required {
        if to.get(*tag).is_none_or(|e| e.is_empty()) {
            put_empty(to, *tag, *vr);
        }
    }
}

/// The shortest decimal that reads back as `v`, or as many digits as fit 16 characters.
pub fn decimal(v: f64) -> String {
    // No negative zero.
    let v = v + 0.0;
    let shortest = format!("{v}");
    if shortest.len() <= 16 {
        return shortest;
    }
    let plain = (0..15).rev().map(|digits| format!("{v:.digits$}")).find(|t| t.len() <= 16);
    let science = (0..15).rev().map(|digits| format!("{v:.digits$e}")).find(|t| t.len() <= 16);
    match (plain, science) {
        (Some(p), _) if v.abs() >= 1e-4 => p,
        (p, s) => s.or(p).expect("one digit and an exponent fit 16 characters"),
    }
}

/// How a dataset is encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    #[default]
    ExplicitLittle,
    ImplicitLittle,
}

/// A whole DICOM file (PS3.10) of a dataset that holds SOPClassUID and SOPInstanceUID.
pub fn file(mut d: Dataset, encoding: Encoding) -> Result<Vec<u8>, Error> {
    let syntax = match encoding {
        Encoding::ExplicitLittle => uids::EXPLICIT_VR_LITTLE_ENDIAN,
        Encoding::ImplicitLittle => uids::IMPLICIT_VR_LITTLE_ENDIAN,
    };
    // Whatever the source was encoded in, the texts are here as Unicode.
    put(&mut d, tags::SPECIFIC_CHARACTER_SET, VR::CS, "ISO_IR 192");
    let wrong =
        |e: &dyn std::error::Error| Error::Dicom { file: "the file in hand".into(), why: format!("it cannot be encoded ({})", chain(e)) };
    let meta = FileMetaTableBuilder::new()
        .transfer_syntax(syntax)
        .implementation_class_uid(IMPLEMENTATION)
        .implementation_version_name(IMPLEMENTATION_NAME);
    let object = d.with_meta(meta).map_err(|e| wrong(&e))?;
    let mut out = Vec::new();
    object.write_all(&mut out).map_err(|e| wrong(&e))?;
    Ok(out)
}

/// At most `n` characters, without the backslash that would separate values.
pub fn limited(text: &str, n: usize) -> String {
    text.replace('\\', "/").chars().filter(|c| !c.is_control()).take(n).collect()
}

/// sRGB → CIELab as DICOM scales it (PS3.3 C.10.7.1.1): L from 0 to 100, a and b from -128 to 127, each over the whole of 16 bits. D50, by the sRGB profile.
pub fn cielab(rgb: [u8; 3]) -> [u16; 3] {
    let [r, g, b] = rgb.map(|v| {
        let v = v as f64 / 255.0;
        if v <= 0.04045 { v / 12.92 } else { ((v + 0.055) / 1.055).powf(2.4) }
    });
    let xyz = [
        (0.4360747 * r + 0.3850649 * g + 0.1430804 * b) / 0.9642,
        0.2225045 * r + 0.7168786 * g + 0.0606169 * b,
        (0.0139322 * r + 0.0971045 * g + 0.7141733 * b) / 0.8249,
    ];
    let [x, y, z] = xyz.map(|t| if t > 216.0 / 24389.0 { t.cbrt() } else { (24389.0 / 27.0 * t + 16.0) / 116.0 });
    let [l, a, b] = [(116.0 * y - 16.0) / 100.0, (500.0 * (x - y) + 128.0) / 255.0, (200.0 * (y - z) + 128.0) / 255.0];
    [l, a, b].map(|v| (v * 65535.0).round().clamp(0.0, 65535.0) as u16)
}

pub fn empty() -> Dataset {
    InMemDicomObject::new_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_fit_their_16_characters() {
        assert_eq!(decimal(-0.0), "0");
        assert_eq!(decimal(12.5), "12.5");
        assert_eq!(decimal(-123.45678901234567), "-123.45678901235");
        for v in [1.0 / 3.0, -1.0 / 3.0e7, 1e300, -6.02214076e-23, 123456789012345680.0, -0.000123456789012345] {
            let text = decimal(v);
            assert!(text.len() <= 16, "{text}");
            let back: f64 = text.parse().expect("a number");
            assert!((back - v).abs() <= 1e-8 * v.abs(), "{text} for {v}");
        }
    }

    #[test]
    fn colours_are_those_of_lab() {
        assert_eq!((cielab([0, 0, 0]), cielab([255, 255, 255])[0]), ([0, 32896, 32896], 65535));
        // L 54.29, a 80.80, b 69.89 for red under D50.
        assert!(cielab([255, 0, 0]).iter().zip([35579, 53662, 50858]).all(|(a, b)| a.abs_diff(b) < 16), "{:?}", cielab([255, 0, 0]));
    }

    #[test]
    fn a_uid_follows_from_its_parts() {
        let u = uid(&[b"ab", b"c"]);
        assert!(u.len() <= 64 && u.starts_with("2.25."));
        assert_eq!(u, uid(&[b"ab", b"c"]));
        assert_ne!(u, uid(&[b"a", b"bc"]));
    }
}
