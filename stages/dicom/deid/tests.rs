//! Facts about whole files: made here element by element, de-identified, and searched byte by byte.
#![allow(clippy::unwrap_used)]

use super::bytes::Coding;
use super::file::{self, Made, Outcome, Rules};
use super::policy::{self, BurnedIn, Dates, Private, Profile};
use super::rewrite::{Content, Insert, put};
use super::table;
use crate::dicom::names::Names;

const EXPLICIT: Coding = Coding { explicit: true, big: false };
const IMPLICIT: Coding = Coding { explicit: false, big: false };
const BIG: Coding = Coding { explicit: true, big: true };
/// What must be found nowhere afterwards: a text, a date, a UID, a number in bytes.
const SECRETS: [&[u8]; 4] = [b"Zebedee", b"19770615", b"1.2.999.77", b"Mueller"];

fn text(tag: u32, vr: &[u8; 2], value: &str) -> Insert {
    Insert { tag, vr: *vr, value: Content::Bytes(value.as_bytes().to_vec()) }
}

fn sequence(tag: u32, items: Vec<Vec<Insert>>) -> Insert {
    Insert { tag, vr: *b"SQ", value: Content::Items(items) }
}

/// Every attribute of the table with something to hide in it, and private and unknown ones beside them.
fn secrets() -> Vec<Insert> {
    let mut out: Vec<Insert> = table::LINES
        .iter()
        // Command and meta groups are no part of a data set, and sequences are made below.
        .filter(|(tag, _)| tag >> 16 > 4)
        .map(|(tag, _)| match &policy::known_vr(*tag).unwrap_or(*b"LO") {
            b"SQ" => sequence(*tag, vec![vec![text(0x0008_0104, b"LO", "Zebedee Mueller"), text(0x0040_A123, b"PN", "Mueller^Zebedee")]]),
            b"DA" => text(*tag, b"DA", "19770615"),
            b"DT" => text(*tag, b"DT", "19770615120000"),
            b"UI" => text(*tag, b"UI", "1.2.999.77"),
            b"TM" | b"CS" | b"AS" | b"IS" | b"DS" | b"US" | b"OB" | b"UN" | b"AE" | b"UR" | b"UT" | b"UC" => text(*tag, b"LO", "Zebedee"),
            vr => text(*tag, vr, "Mueller^Zebedee"),
        })
        .collect();
    out.extend([
        text(0x0009_0010, b"LO", "Zebedee's maker"),
        text(0x0009_1001, b"LO", "Mueller"),
        // Of an even group and in no dictionary; in the dictionary, a person, and not in the table.
        text(0x0008_7778, b"LO", "Mueller"),
        text(0x0014_2006, b"PN", "Mueller^Z"),
        text(0x6000_0022, b"LO", "Mueller"),
        text(0x6000_3000, b"OW", "Mueller"),
        text(0x5000_0022, b"LO", "Mueller"),
    ]);
    out.sort_by_key(|i| i.tag);
    out.dedup_by_key(|i| i.tag);
    out
}

/// A CT image with the secrets on its top level, in a sequence that stays, and in one in that.
fn image(coding: Coding, secrets: Vec<Insert>) -> Vec<u8> {
    let nested = sequence(0x0008_1140, vec![[secrets.clone(), vec![sequence(0x7FE0_0001, vec![])]].concat()]);
    let deeper = sequence(0x0018_9325, vec![[vec![nested.clone()], secrets.clone()].concat()]);
    let mut all = secrets;
    let ours = [
        text(0x0008_0016, b"UI", "1.2.840.10008.5.1.4.1.1.2"),
        text(0x0008_0018, b"UI", "1.2.999.77.1"),
        text(0x0008_0060, b"CS", "CT"),
        nested,
        text(0x0010_0010, b"PN", "Mueller^Zebedee=\u{30df}\u{30e5}\u{30fc}"),
        text(0x0010_0020, b"LO", "Zebedee-1"),
        deeper,
        text(0x0020_000D, b"UI", "1.2.999.77.2"),
        text(0x0020_000E, b"UI", "1.2.999.77.3"),
        text(0x0020_0032, b"DS", "1\\2\\3 "),
        // It stays by the table, and holds the name.
        text(0x0028_1055, b"LO", "window of Zebedee"),
        Insert { tag: 0x7FE0_0010, vr: *b"OB", value: Content::Bytes((0..64).collect()) },
        text(0x7FE1_1001, b"LO", "Mueller"),
    ];
    all.retain(|s| ours.iter().all(|o| o.tag != s.tag));
    all.extend(ours);
    all.sort_by_key(|i| i.tag);
    let mut out = Vec::new();
    all.iter().for_each(|i| put(&mut out, coding, i));
    out
}

fn rules(profile: Profile) -> Rules {
    Rules::new(profile, Names::keyed(b"a key"))
}

fn make(bytes: &[u8], rules: &Rules) -> Outcome {
    file::make(bytes, bytes.len() as u64, rules, &|_, _| Err(std::io::ErrorKind::UnexpectedEof.into()))
}

fn made(bytes: &[u8], rules: &Rules) -> Made {
    match make(bytes, rules) {
        Outcome::Made(made) => *made,
        other => panic!("{other:?}"),
    }
}

fn whole(bytes: &[u8], m: &Made) -> Vec<u8> {
    [&m.head, &bytes[m.pixels.start as usize..m.pixels.end as usize], &m.tail].concat()
}

fn holds(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|w| w == what)
}

#[test]
fn nothing_of_any_attribute_of_the_table_is_left_on_any_level() {
    for coding in [EXPLICIT, IMPLICIT, BIG] {
        let bytes = image(coding, secrets());
        assert!(SECRETS.iter().all(|s| holds(&bytes, s)));
        let m = made(&bytes, &rules(Profile::default()));
        let out = whole(&bytes, &m);
        for secret in SECRETS {
            assert!(!holds(&out, secret), "{} in {coding:?}", String::from_utf8_lossy(secret));
        }
        assert!(holds(&out, b"1\\2\\3 ") && m.tally.echoes > 0 && m.tally.private > 3, "{:?}", m.tally);
        assert_eq!(bytes[m.pixels.start as usize..m.pixels.end as usize], (0..64).collect::<Vec<u8>>());
        // What was made is made of the same elements when it is read again.
        let again = made(&out, &rules(Profile { retain_uids: true, ..Profile::default() }));
        assert_eq!(again.tally.removed, 0, "{:?}", again.tally);
    }
}

/// Scanners let people type body parts; a code that merely begins like a name is a code.
#[test]
fn a_code_that_is_a_name_goes_and_the_codes_that_pixels_need_stay() {
    let secrets =
        vec![text(0x0018_0015, b"CS", "KNEE_MUELLER"), text(0x0018_0020, b"CS", "SE\\ZEBEDEES"), text(0x0028_0004, b"CS", "MUELLER ")];
    let m = made(&image(EXPLICIT, secrets), &rules(Profile::default()));
    assert!(!holds(&m.head, b"KNEE") && holds(&m.head, b"SE\\ZEBEDEES") && holds(&m.head, b"MUELLER "));
}

#[test]
fn a_sequence_of_type_2_stays_empty_whatever_its_length_says() {
    let mut bytes = image(EXPLICIT, vec![]);
    let pixels = bytes.windows(4).position(|w| w == b"\xE0\x7F\x10\x00").unwrap();
    // (0040,0555) AcquisitionContextSequence of undefined length with an item.
    let context = b"\x40\x00\x55\x05SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0";
    bytes.splice(pixels..pixels, context.iter().copied());
    let out = whole(&bytes, &made(&bytes, &rules(Profile::default())));
    assert!(holds(&out, b"\x40\x00\x55\x05SQ\0\0\0\0\0\0\xE0\x7F"));
}

#[test]
fn dates_move_together_and_the_weight_stays_where_that_is_asked_for() {
    let bytes = image(
        EXPLICIT,
        vec![
            text(0x0008_0020, b"DA", "20240301"),
            text(0x0008_002A, b"DT", "20240302101112.5"),
            text(0x0010_0030, b"DA", "19500101"),
            text(0x0010_1030, b"DS", "71.5"),
        ],
    );
    let rules = rules(Profile { retain_dates: Dates::Shift, retain_characteristics: true, ..Profile::default() });
    let out = whole(&bytes, &made(&bytes, &rules));
    let days = rules.names.days_of("Zebedee-1");
    let moved = |d: &[u8]| super::values::moved(d, days).unwrap();
    assert!(days < 0 && holds(&out, &moved(b"20240301")) && holds(&out, &moved(b"20240302101112.5")) && holds(&out, b"71.5"));
    assert!(!holds(&out, b"20240301") && !holds(&out, b"19500101"));
    assert!(holds(&out, b"MODIFIED") && holds(&out, b"113107") && holds(&out, b"113108"));
}

#[test]
fn only_listed_private_elements_and_descriptions_stay() {
    let secrets = vec![
        text(0x0008_103E, b"LO", "T1 axial"),
        text(0x0019_0010, b"LO", "MAKER"),
        text(0x0019_100C, b"IS", "98765"),
        text(0x0019_100D, b"LO", "Mueller"),
    ];
    let bytes = image(EXPLICIT, secrets);
    let of = |p: Profile| whole(&bytes, &made(&bytes, &rules(p)));
    assert!(!holds(&of(Profile::default()), b"T1 axial") && !holds(&of(Profile::default()), b"MAKER"));
    let private = |creator: &str| vec![Private { creator: creator.into(), element: "0019,xx0C".into() }];
    let out = of(Profile { private: private("MAKER"), keep_descriptors: vec!["t1*".into()], ..Profile::default() });
    assert!(holds(&out, b"T1 axial") && holds(&out, b"MAKER") && holds(&out, b"98765") && !holds(&out, b"Mueller"));
    assert!(!holds(&of(Profile { private: private("ANOTHER"), ..Profile::default() }), b"98765"));
}

#[test]
fn a_file_that_ends_early_or_is_mangled_is_refused_and_never_a_panic() {
    let rules = rules(Profile { burned_in: BurnedIn::Keep, ..Profile::default() });
    for coding in [EXPLICIT, IMPLICIT, BIG] {
        let bytes =
            image(coding, vec![text(0x0008_0050, b"SH", "Zebedee"), sequence(0x0040_0275, vec![vec![text(0x0040_0007, b"LO", "x")]])]);
        for n in 0..bytes.len() - 80 {
            assert!(!matches!(make(&bytes[..n], &rules), Outcome::Made(m) if m.pixels.end - m.pixels.start == 64));
        }
        let mut drawn = 1u64;
        for _ in 0..20_000 {
            let mut hurt = bytes.clone();
            for _ in 0..3 {
                drawn = drawn.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let at = (drawn >> 33) as usize % hurt.len();
                hurt[at] = (drawn >> 20) as u8;
            }
            make(&hurt, &rules);
        }
    }
}

#[test]
fn deep_nesting_costs_no_stack_and_ends_in_a_verdict() {
    let mut bytes = Vec::new();
    put(&mut bytes, EXPLICIT, &text(0x0008_0016, b"UI", "1.2.840.10008.5.1.4.1.1.2"));
    for _ in 0..200_000 {
        bytes.extend(b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff");
    }
    assert!(matches!(make(&bytes, &rules(Profile::default())), Outcome::Failed(_)));
}
