//! Datasets as trees: the header of a series, of which patient, study and more are copied into what is written. Values are read by tag: absent, empty and
//! wrong ones are `None`, never a guess. Files of labels are read as [`super::view`].

use dicom::core::dictionary::{DataDictionary, DataDictionaryEntry, VirtualVr};
use dicom::core::header::Header as _;
use dicom::core::{Tag, VR};
use dicom::dictionary_std::StandardDataDictionary;
use dicom::object::InMemDicomObject;
use dicom::transfer_syntax::entries::{EXPLICIT_VR_BIG_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN};
use voxmill_schemas::tables::InstanceRow;

use super::bytes::Source;
use super::contents::{self, FileRef};
use super::header::Header;
use super::{scan, view};
use crate::error::{Error, chain};

pub type Dataset = InMemDicomObject;

/// Deeper nesting is refused: the parser would recurse as deep as the file wants. Real objects need eight levels.
const MAX_DEPTH: usize = 64;

/// A file of an index, up to its pixels.
pub fn open_row(row: &InstanceRow) -> Result<Dataset, Error> {
    of_source(&contents::open(&FileRef::of(row))?, &row.file)
}

fn of_source(source: &Source, name: &str) -> Result<Dataset, Error> {
    let (header, bytes) = view::up_to_pixels(source, name)?;
    parse(&bytes, &header).map_err(|why| Error::Dicom { file: name.to_string(), why })
}

/// - `bytes`: a file up to the value of its pixel data
fn parse(bytes: &[u8], h: &Header) -> Result<Dataset, String> {
    let start = scan::meta(bytes).ok_or("it is not DICOM")?.end;
    let is_explicit = bytes.get(start + 4..start + 6).is_some_and(|vr| vr.iter().all(u8::is_ascii_uppercase));
    // The header of the pixel element goes, too.
    let end = match h.pixel {
        Some(_) => bytes.len() - if is_explicit { 12 } else { 8 },
        None => bytes.len(),
    };
    let body = bytes.get(start..end).ok_or("its data set is empty")?;
    let syntax = match (h.is_big_endian, is_explicit) {
        (true, _) => EXPLICIT_VR_BIG_ENDIAN.erased(),
        (false, true) => EXPLICIT_VR_LITTLE_ENDIAN.erased(),
        (false, false) => IMPLICIT_VR_LITTLE_ENDIAN.erased(),
    };
    check(body, is_explicit, h.is_big_endian)?;
    let mut data = Dataset::read_dataset_with_ts(body, &syntax).map_err(|e| format!("it cannot be read as DICOM ({})", chain(&e)))?;
    if is_explicit {
        name_unknown(&mut data, 0);
    }
    Ok(data)
}

/// Elements that a writer called UN, although the standard knows them: their value is in implicit VR little endian (PS3.5 6.2.2). Writers do so with what is
/// too long for an explicit VR, and with what was new to them. A value that is not what its tag says stays unknown.
fn name_unknown(d: &mut Dataset, level: usize) {
    if level > MAX_DEPTH {
        return;
    }
    let is_known = |tag: Tag| StandardDataDictionary.by_tag(tag).is_some_and(|e| e.vr() != VirtualVr::Exact(VR::UN));
    let unknown: Vec<Tag> =
        d.iter().filter(|e| e.vr() == VR::UN && e.value().items().is_none() && is_known(e.tag())).map(|e| e.tag()).collect();
    for tag in unknown {
        let Some(bytes) = d.get(tag).and_then(|e| e.value().to_bytes().ok()).map(|b| b.into_owned()) else { continue };
        let header = [tag.0.to_le_bytes(), tag.1.to_le_bytes()].concat();
        let element = [header, (bytes.len() as u32).to_le_bytes().to_vec(), bytes].concat();
        if check(&element, false, false).is_err() {
            continue;
        }
        let named = Dataset::read_dataset_with_ts(&element[..], &IMPLICIT_VR_LITTLE_ENDIAN.erased());
        if let Some(e) = named.ok().and_then(|n| n.get(tag).cloned()) {
            d.put(e);
        }
    }
    let sequences: Vec<Tag> = d.iter().filter(|e| e.value().items().is_some()).map(|e| e.tag()).collect();
    for tag in sequences {
        d.update_value(tag, |value| value.items_mut().into_iter().flatten().for_each(|item| name_unknown(item, level + 1)));
    }
}

/// Walks through a data set as the parser will, which allocates what an element claims and recurses as deep as items are nested: refuses what is larger
/// than the file or deeper than [`MAX_DEPTH`], and what the parser would not understand.
fn check(b: &[u8], is_explicit: bool, is_big: bool) -> Result<(), String> {
    let short = |b: &[u8]| if is_big { u16::from_be_bytes([b[0], b[1]]) } else { u16::from_le_bytes([b[0], b[1]]) };
    let word = |b: &[u8]| {
        let b = [b[0], b[1], b[2], b[3]];
        if is_big { u32::from_be_bytes(b) } else { u32::from_le_bytes(b) }
    };
    // Open sequences (true) and items: where they end, `None` at a delimiter.
    let mut open: Vec<(bool, Option<usize>)> = Vec::new();
    let mut at = 0usize;
    loop {
        while open.last().is_some_and(|(_, end)| end.is_some_and(|e| at >= e)) {
            open.pop();
        }
        let Some(head) = b.get(at..at + 8) else { return Ok(()) };
        let tag = Tag(short(&head[..2]), short(&head[2..4]));
        let wrong = |what: &str| Err(format!("its data set is broken at byte {at} ({what})"));
        let mut length = word(&head[4..8]);
        let mut value = at + 8;
        let end = |value: usize, length: u32| (length != u32::MAX).then(|| value.saturating_add(length as usize));
        if open.last().is_some_and(|(is_sequence, _)| *is_sequence) {
            match tag {
                Tag(0xFFFE, 0xE000) => open.push((false, end(value, length))),
                Tag(0xFFFE, 0xE0DD) => _ = open.pop(),
                _ => return wrong("something else than an item in a sequence"),
            }
        } else if tag == Tag(0xFFFE, 0xE00D) {
            open.pop();
        } else {
            let vr = match is_explicit {
                _ if tag.0 == 0xFFFE => VR::UN,
                true => VR::from_binary([head[4], head[5]]).unwrap_or(VR::UN),
                false => StandardDataDictionary.by_tag(tag).map_or(VR::UN, |e| e.vr().relaxed()),
            };
            if is_explicit && tag.0 != 0xFFFE {
                match vr {
                    VR::AE | VR::AS | VR::AT | VR::CS | VR::DA | VR::DS | VR::DT | VR::FL | VR::FD | VR::IS | VR::LO => {
                        length = short(&head[6..8]) as u32
                    }
                    VR::LT | VR::PN | VR::SH | VR::SL | VR::SS | VR::ST | VR::TM | VR::UI | VR::UL | VR::US => {
                        length = short(&head[6..8]) as u32
                    }
                    _ => {
                        let Some(long) = b.get(value..value + 4) else { return wrong("the file ends inside an element") };
                        length = word(long);
                        value += 4;
                    }
                }
            }
            let is_sequence = vr == VR::SQ;
            // The parser takes whole numbers and goes on after the last of them, in the middle of the value.
            let size = match vr {
                VR::SS | VR::US | VR::OW => 2,
                VR::AT | VR::FL | VR::SL | VR::UL | VR::OF | VR::OL => 4,
                VR::FD | VR::OD | VR::OV | VR::SV | VR::UV => 8,
                _ => 1,
            };
            if length != u32::MAX && length % size != 0 {
                return wrong("a number is cut off");
            }
            if tag == Tag(0x7FE0, 0x0010) && length == u32::MAX {
                // Fragments (of an icon): items of bytes up to a delimiter.
                loop {
                    let Some(item) = b.get(value..value + 8) else { return wrong("the file ends inside pixels") };
                    let is_fragment = Tag(short(&item[..2]), short(&item[2..4])) == Tag(0xFFFE, 0xE000);
                    value = value.saturating_add(8 + if is_fragment { word(&item[4..]) as usize } else { 0 });
                    if value > b.len() {
                        return wrong("an element is longer than the file");
                    }
                    if !is_fragment {
                        break;
                    }
                }
            } else if is_sequence || length == u32::MAX {
                open.push((true, end(value, length)));
            } else {
                value = value.saturating_add(length as usize);
                if value > b.len() {
                    return wrong("an element is longer than the file");
                }
            }
        }
        // A sequence and its item are one level.
        if open.len().div_ceil(2) > MAX_DEPTH {
            return Err(format!("its sequences are nested more than {MAX_DEPTH} deep"));
        }
        at = value;
    }
}

/// A text without the padding of DICOM (spaces and NUL at either end); `None` when nothing is left.
pub fn text(d: &Dataset, tag: Tag) -> Option<String> {
    let raw = d.get(tag)?.value().to_str().ok()?;
    let clean = raw.trim_matches([' ', '\0']).to_string();
    (!clean.is_empty()).then_some(clean)
}

pub fn int(d: &Dataset, tag: Tag) -> Option<i64> {
    d.get(tag)?.value().to_int::<i64>().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(levels: usize, is_explicit: bool) -> Vec<u8> {
        let mut out = Vec::new();
        for _ in 0..levels {
            // (0008,1140) ReferencedImageSequence of undefined length, and its item.
            out.extend([0x08, 0x00, 0x40, 0x11]);
            out.extend(if is_explicit { &b"SQ\0\0\xff\xff\xff\xff"[..] } else { &b"\xff\xff\xff\xff"[..] });
            out.extend(b"\xfe\xff\x00\xe0\xff\xff\xff\xff");
        }
        out
    }

    #[test]
    fn nesting_is_measured_without_recursion() {
        for is_explicit in [false, true] {
            assert_eq!(check(&nested(MAX_DEPTH, is_explicit), is_explicit, false), Ok(()));
            assert!(check(&nested(1_000_000, is_explicit), is_explicit, false).is_err_and(|e| e.contains("nested")));
        }
        let big = b"\x00\x08\x11\x40SQ\0\0\xff\xff\xff\xff\xff\xfe\xe0\x00\xff\xff\xff\xff";
        assert_eq!(check(&big.repeat(MAX_DEPTH), true, true), Ok(()));
        assert!(check(&big.repeat(MAX_DEPTH + 1), true, true).is_err());
    }

    #[test]
    fn an_element_that_claims_more_than_the_file_holds_is_refused_before_anything_is_allocated() {
        let claims = [
            &b"\x08\x00\x60\x00CS\xff\xffSEG"[..],
            b"\x06\x30\x50\x00OB\0\0\xf0\xff\xff\xff1234",
            // A VR that is none has a length of 32 bits to the parser.
            b"\x06\x30\x50\x00\xc3S\0\0\xf0\xff\xff\xff1234",
        ];
        for bytes in claims {
            assert!(check(bytes, true, false).is_err_and(|e| e.contains("longer than the file")));
        }
        assert!(check(b"\x06\x30\x50\x00\xf0\xff\xff\xff1234", false, false).is_err());
        // (3006,0000) is a group length, a number of four bytes.
        assert!(check(b"\x06\x30\x00\x00\x02\x00\x00\x0012", false, false).is_err_and(|e| e.contains("cut off")));
    }

    #[test]
    fn what_a_writer_called_unknown_is_read_by_its_tag() {
        // ROIContourSequence, its item, ContourSequence as UN, in it implicit VR: an item with ContourData.
        let data = [&b"\x06\x30\x50\x00\x06\x00\x00\x001\\2\\3 "[..]].concat();
        let item = [b"\xfe\xff\x00\xe0", &(data.len() as u32).to_le_bytes()[..], &data].concat();
        let contours = [b"\x06\x30\x40\x00UN\0\0", &(item.len() as u32).to_le_bytes()[..], &item].concat();
        let body = [b"\x06\x30\x39\x00SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff", &contours[..]].concat();
        let end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0";
        let modality = &b"\x08\x00\x60\x00CS\x08\x00RTSTRUCT"[..];
        let d = parse(&[modality, &body, end].concat(), &Header::default()).expect("it is read");
        let contour = item_of(item_of(&d, Tag(0x3006, 0x0039)), Tag(0x3006, 0x0040));
        assert_eq!(text(contour, Tag(0x3006, 0x0050)).as_deref(), Some("1\\2\\3"));
    }

    fn item_of(d: &Dataset, tag: Tag) -> &Dataset {
        d.get(tag).and_then(|e| e.value().items()).and_then(|items| items.first()).expect("an item")
    }

    #[test]
    fn a_deeply_nested_file_is_refused() {
        let modality = *b"\x08\x00\x60\x00CS\x04\x00SEG ";
        assert!(of_source(&Source::of_raw([&modality[..], &nested(100_000, true)].concat()), "deep").is_err());
    }
}
