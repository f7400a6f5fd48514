//! The slices of a series are alike: where all that a header is made of has the same bytes as in a file before, only what changes from slice to slice is
//! read, and the rest is taken over.

use std::ops::Range;

use dicom::dictionary_std::tags as t;

use super::bytes::Wrapping;
use super::fields::{OF_SLICE, WANTED, is_of_mosaics, slice, slice_frame};
use super::header::Header;
use super::level::Level;
use super::multiframe;
use super::pattern::Pattern;
use super::scan::{self, Element, Scan};

/// A larger header is not held for the files that follow.
const MAX_BYTES: usize = 1 << 18;

/// What was scanned of a file.
pub(super) struct Scanned {
    pub elements: Vec<Element>,
    pub transfer_syntax: String,
    pub media_class: String,
    pub is_big_endian: bool,
    pub is_explicit: bool,
}

/// A file before, the header of an image of one frame that has no functional groups.
pub(super) struct Recent {
    /// Up to the value of its pixels.
    bytes: Vec<u8>,
    scanned: Scanned,
    /// Which of the elements may have another value.
    is_free: Vec<bool>,
    /// Where these values stand, and those that nothing is read of, in order.
    free: Vec<Range<usize>>,
    /// Those that a slice is read of.
    asked: Vec<Element>,
    pub header: Header,
    /// Where its series stands in the list, and the first header of that.
    pub series: u32,
    pub pattern: Pattern,
}

impl Scanned {
    pub fn of(s: Scan) -> Scanned {
        Scanned {
            transfer_syntax: s.transfer_syntax.to_string(),
            media_class: s.media_class.to_string(),
            is_big_endian: s.is_big_endian,
            is_explicit: s.is_explicit,
            elements: s.elements,
        }
    }
}

impl Recent {
    /// `None` where more of the header than a slice's own part may change from file to file.
    /// - `header`: as it is kept, under pseudonyms
    pub fn of(bytes: &[u8], scanned: Scanned, mut header: Header, series: u32, pattern: impl Fn() -> Pattern) -> Option<Recent> {
        let is_plain = header.frames.len() == 1
            && header.n_frame_groups == 0
            && header.mosaic.is_none()
            && !multiframe::KINDS.contains(&header.sop_class.as_str())
            && header.wrapping == Wrapping::None
            && header.labels.is_empty()
            && header.pixel.is_some();
        let groups = [t::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, t::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE];
        let end = header.pixel.map_or(0, |p| p.offset as usize);
        if !is_plain || end > MAX_BYTES || scanned.elements.iter().any(|e| groups.contains(&e.tag)) {
            return None;
        }
        let mut is_free = Vec::with_capacity(scanned.elements.len());
        let mut next = 0;
        for (at, e) in scanned.elements.iter().enumerate() {
            let is_top = at == next;
            if is_top {
                next = e.next(at);
            }
            is_free.push(is_top && e.value().is_some() && (OF_SLICE.binary_search(&e.tag).is_ok() || is_of_mosaics(e.tag)));
        }
        let bytes = bytes.get(..end)?.to_vec();
        let pattern = pattern();
        pattern.share(&mut header);
        let mut recent = Recent { bytes, scanned, is_free, free: Vec::new(), asked: Vec::new(), header, series, pattern };
        recent.find_free();
        Some(recent)
    }

    fn find_free(&mut self) {
        self.free = scan::unread(&self.bytes, &WANTED);
        self.free.extend(self.scanned.elements.iter().zip(&self.is_free).filter(|(_, is_free)| **is_free).filter_map(|(e, _)| e.value()));
        self.free.sort_unstable_by_key(|value| value.start);
        self.asked.clear();
        let mut at = 0;
        while let Some(e) = self.scanned.elements.get(at) {
            at = e.next(at);
            if e.value().is_some() && (OF_SLICE.binary_search(&e.tag).is_ok() || e.tag == t::DOSE_GRID_SCALING) {
                self.asked.push(*e);
            }
        }
    }

    /// Whether a file has the same bytes up to its pixels but for values that may change or are not read, which are as long as here: then all of its elements
    /// stand where they do here. As [`Recent::take`], without a scan. Whatever else a file could be is told by bytes that are the same too.
    pub fn take_same(&mut self, bytes: &[u8]) -> bool {
        let Some(bytes) = bytes.get(..self.bytes.len()).filter(|b| b.get(128..132) == Some(b"DICM")) else { return false };
        let mut at = 0;
        let is_same = self.free.iter().all(|value| {
            let before = at..value.start;
            at = value.end;
            bytes.get(before.clone()) == self.bytes.get(before)
        });
        if !is_same || bytes[at..] != self.bytes[at..] {
            return false;
        }
        let top = Level::new(bytes, &self.asked, self.scanned.is_big_endian);
        slice(&mut self.header, &top);
        slice_frame(&mut self.header.frames[0], &top);
        true
    }

    /// Whether a file is like it: then `header` is that of the file, but for the pseudonym of its instance, which is not made yet.
    pub fn take(&mut self, bytes: &[u8], s: &Scan) -> bool {
        let mine = &self.scanned;
        let is_alike = s.pixel.is_some()
            && s.elements.len() == mine.elements.len()
            && (s.is_big_endian, s.is_explicit) == (mine.is_big_endian, mine.is_explicit)
            && (s.transfer_syntax, s.media_class) == (mine.transfer_syntax.as_str(), mine.media_class.as_str());
        let same = |((a, b), is_free): ((&Element, &Element), &bool)| {
            a.tag == b.tag
                && match (a.value(), b.value()) {
                    (Some(a), Some(b)) => *is_free || (a.len() == b.len() && bytes.get(a) == self.bytes.get(b)),
                    (None, None) => a.is_as_full_as(b),
                    _ => false,
                }
        };
        let end = s.pixel.map_or(0, |p| p.offset as usize);
        let Some(start) = bytes.get(..end).filter(|_| end <= MAX_BYTES) else { return false };
        if !is_alike || !s.elements.iter().zip(&mine.elements).zip(&self.is_free).all(same) {
            return false;
        }
        let top = Level::new(bytes, &s.elements, s.is_big_endian);
        slice(&mut self.header, &top);
        slice_frame(&mut self.header.frames[0], &top);
        self.header.pixel = s.pixel;
        // The next file is more like this one than like the one before.
        self.bytes.clear();
        self.bytes.extend_from_slice(start);
        self.scanned.elements.clone_from(&s.elements);
        self.find_free();
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use dicom::core::Tag;
    use proptest::prelude::*;

    use super::super::header::checked;
    use super::super::names::Names;
    use super::*;

    /// Elements of an image, in order, with values that some take; those that vary from slice to slice are among them.
    #[allow(clippy::type_complexity)]
    const VALUES: [(Tag, &[u8; 2], [&[u8]; 3]); 21] = [
        (t::IMAGE_TYPE, b"CS", [b"ORIGINAL\\PRIMARY", b"DERIVED\\MOSAIC", b""]),
        (t::SOP_CLASS_UID, b"UI", [b"1.2.840.10008.5.1.4.1.1.2\0", b"1.2.840.10008.5.1.4.1.1.4\0", b"1.2.840.10008.5.1.4.1.1.7\0"]),
        (t::SOP_INSTANCE_UID, b"UI", [b"1.2.3\0", b"1.02.34\0", b""]),
        (t::ACQUISITION_DATE, b"DA", [b"20200101", b"20200102", b""]),
        (t::ACQUISITION_TIME, b"TM", [b"101112.5", b"1011", b""]),
        (t::MODALITY, b"CS", [b"CT", b"MR", b"PT"]),
        (t::PATIENT_ID, b"LO", [b"P1", b"P2", b""]),
        (t::ECHO_TIME, b"DS", [b"30", b"3e1\\4", b"x "]),
        (Tag(0x0019, 0x0010), b"LO", [b"SIEMENS MR HEADER ", b"OTHER ", b""]),
        (Tag(0x0019, 0x100c), b"IS", [b"1000", b"50", b""]),
        (t::STUDY_INSTANCE_UID, b"UI", [b"1.5\0", b"1.6\0", b""]),
        (t::SERIES_INSTANCE_UID, b"UI", [b"1.7\0", b"1.8\0", b""]),
        (t::INSTANCE_NUMBER, b"IS", [b"7 ", b"10", b"no"]),
        (t::IMAGE_POSITION_PATIENT, b"DS", [b"0\\0\\-1.5", b"0\\0", b"1\\2\\3e2 "]),
        (t::SLICE_LOCATION, b"DS", [b"-1.5", b"-2.5", b"7 "]),
        (t::IMAGE_COMMENTS, b"LT", [b"none", b"some", b"\x10\0\x10\0AS"]),
        (t::NUMBER_OF_FRAMES, b"IS", [b"1 ", b"2 ", b""]),
        (t::ROWS, b"US", [&[4, 0], &[5, 0], b""]),
        (t::COLUMNS, b"US", [&[4, 0], &[0, 0], b""]),
        (t::RESCALE_INTERCEPT, b"DS", [b"-1024 ", b"0 ", b""]),
        (t::RESCALE_SLOPE, b"DS", [b"1 ", b"0.5 ", b""]),
    ];

    fn element(tag: Tag, vr: &[u8; 2], value: &[u8]) -> Vec<u8> {
        [&tag.0.to_le_bytes()[..], &tag.1.to_le_bytes(), vr, &(value.len() as u16).to_le_bytes(), value].concat()
    }

    /// - `choice`: which value of each; beyond them the element is absent
    fn file(choice: &[usize]) -> Vec<u8> {
        let elements = VALUES.iter().zip(choice).filter_map(|((tag, vr, values), n)| Some(element(*tag, vr, values.get(*n)?)));
        let pixels = [&t::PIXEL_DATA.0.to_le_bytes()[..], &t::PIXEL_DATA.1.to_le_bytes(), b"OW\0\0", &[2, 0, 0, 0, 9, 9]].concat();
        let uid: &[u8] = if choice[2] == 0 { b"1.2.3\0" } else { b"1.2.4\0" };
        let meta = [element(Tag(2, 3), b"UI", uid), element(Tag(2, 0x10), b"UI", b"1.2.840.10008.1.2.1\0")].concat();
        let magic = [&[0; 128][..], b"DICM", &meta].concat();
        [magic].into_iter().chain(elements).chain([pixels]).flatten().collect()
    }

    fn scanned(bytes: &[u8]) -> Option<Scan<'_>> {
        scan::scan(bytes, bytes.len() as u64, &WANTED).ok()
    }

    /// What the general way makes of it.
    fn header(bytes: &[u8], names: &Names) -> Option<Header> {
        let mut h = checked(bytes, &scanned(bytes)?, Wrapping::None).ok()?;
        names.hide(&mut h);
        Some(h)
    }

    /// What a file before makes of it, where it is alike.
    fn alike(before: &[u8], bytes: &[u8], names: &Names) -> Option<Header> {
        let mut recent = Recent::of(before, Scanned::of(scanned(before)?), header(before, names)?, 0, Pattern::default)?;
        let before = recent.header.clone();
        let same = recent.take_same(bytes).then(|| recent.header.clone());
        recent.header = before;
        recent.take(bytes, &scanned(bytes)?).then(|| {
            assert!(same.is_none_or(|h| h == recent.header), "without a scan it is read as with one");
            // It has taken the place of the one before.
            assert_eq!(recent.take_same(bytes), bytes.get(128..132) == Some(b"DICM"));
            names.hide_instance(&mut recent.header);
            recent.header
        })
    }

    fn choices() -> impl Strategy<Value = (Vec<usize>, Vec<usize>)> {
        let first = prop::collection::vec(prop_oneof![6 => Just(0usize), 1 => 1usize..4], VALUES.len());
        (first, prop::collection::vec(prop_oneof![8 => Just(None), 1 => (0usize..4).prop_map(Some)], VALUES.len()))
            .prop_map(|(a, changes)| (a.clone(), a.iter().zip(changes).map(|(a, b)| b.unwrap_or(*a)).collect()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn what_is_taken_over_is_what_the_general_way_reads((a, b) in choices(), keyed in any::<bool>()) {
            let names = if keyed { Names::keyed(b"k") } else { Names::Own };
            let (before, bytes) = (file(&a), file(&b));
            if let Some(h) = alike(&before, &bytes, &names) {
                prop_assert_eq!(Some(h), header(&bytes, &names));
            }
        }
    }

    #[test]
    fn the_next_slice_is_alike_and_the_first_of_another_series_is_not() {
        let names = Names::keyed(b"k");
        let at = |tag: Tag| VALUES.iter().position(|(t, ..)| *t == tag).unwrap();
        let with = |tag: Tag| {
            let mut choice = vec![0; VALUES.len()];
            choice[at(tag)] = 1;
            file(&choice)
        };
        let first = file(&[0; VALUES.len()]);
        for tag in OF_SLICE.into_iter().filter(|tag| VALUES.iter().any(|(t, ..)| t == tag)) {
            let bytes = with(tag);
            assert_eq!(alike(&first, &bytes, &names), header(&bytes, &names), "{tag}");
        }
        let mut recent =
            Recent::of(&first, Scanned::of(scanned(&first).unwrap()), header(&first, &names).unwrap(), 0, Pattern::default).unwrap();
        assert!(recent.take_same(&with(t::SLICE_LOCATION)) && recent.take_same(&with(t::IMAGE_COMMENTS)));
        for tag in [t::SERIES_INSTANCE_UID, t::PATIENT_ID, t::ROWS, t::IMAGE_TYPE, Tag(0x0019, 0x100c)] {
            assert_eq!(alike(&first, &with(tag), &names), None, "{tag}");
        }
        assert!(OF_SLICE.is_sorted());
    }

    #[test]
    fn real_files_say_one_after_the_other_what_each_says_alone() {
        let mut folders = vec![std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/data")];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() { folders.push(path) } else { files.push(std::fs::read(path).unwrap()) }
            }
        }
        let n_alike = files.windows(2).filter(|f| {
            let taken = alike(&f[0], &f[1], &Names::Own);
            taken.is_some_and(|h| {
                assert_eq!(Some(h), header(&f[1], &Names::Own));
                true
            })
        });
        assert!(n_alike.count() * 2 > files.len(), "of {}", files.len());
    }
}
