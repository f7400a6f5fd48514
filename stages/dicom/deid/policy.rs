//! What becomes of an element: table E.1-1 with the options that are switched on. Pure: tag, VR and place in, a decision out.

use dicom::core::dictionary::{DataDictionary, DataDictionaryEntry, VirtualVr};
use dicom::core::{Tag, VR};
use dicom::dictionary_std::StandardDataDictionary;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::table::{self, Action};

/// The options of PS3.15 E.3 that are switched on; none of them is the Basic Application Confidentiality Profile.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    pub retain_uids: bool,
    pub retain_dates: Dates,
    pub retain_device: bool,
    pub retain_institution: bool,
    pub retain_characteristics: bool,
    /// Patterns of descriptions that stay (`values::fits`).
    pub keep_descriptors: Vec<String>,
    pub private: Vec<Private>,
    pub burned_in: BurnedIn,
}

/// Dates and times of day of studies, series and images. Dates of birth always go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dates {
    /// They go.
    #[default]
    Remove,
    /// Dates move by a number of days (1 to 3,650 into the past) that the key gives each patient; times of day and all that lies between two dates stay.
    Shift,
    /// They stay.
    Full,
}

/// Images that may carry a name in their pixels: secondary captures, ultrasound, photographs, screens, whatever says so itself, and overlays hidden in
/// unused bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BurnedIn {
    /// They are left out, and counted.
    #[default]
    Refuse,
    /// They are written like any other.
    Keep,
    /// They are written, and the table says that they are a risk.
    Flag,
}

/// A private element that is known to be safe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Private {
    /// Private creator, as it stands in the files: `SIEMENS MR HEADER`.
    pub creator: String,
    /// Element as the standard writes it, the block left open: `0019,xx0C`.
    pub element: String,
}

impl Private {
    /// Group and the last byte of the element; `None` where it is not written like `0019,xx0C`, or not private.
    pub fn place(&self) -> Option<(u16, u8)> {
        let (group, element) = self.element.trim_matches(['(', ')']).split_once(',')?;
        let low = element.strip_prefix("xx").or_else(|| element.strip_prefix("XX"))?;
        let (group, low) = (u16::from_str_radix(group, 16).ok()?, u8::from_str_radix(low, 16).ok()?);
        (group % 2 == 1 && self.element.len() >= 9).then_some((group, low))
    }
}

impl Profile {
    /// What of it cannot be meant: field, message, help.
    pub fn mistakes(&self) -> Vec<(String, String, String)> {
        let mut out = Vec::new();
        for (i, p) in self.private.iter().enumerate() {
            if p.place().is_none() {
                let message = format!("{:?} names no private element", p.element);
                out.push((format!("private.{i}.element"), message, "an odd group and the block left open, such as 0019,xx0C".into()));
            }
            if p.creator.trim().is_empty() {
                let help = "the private creator as it stands in the files, such as SIEMENS MR HEADER";
                out.push((format!("private.{i}.creator"), "it is empty".into(), help.into()));
            }
        }
        out
    }
}

/// A decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Do {
    Keep,
    /// A description: it stays where a pattern allows it, else the second decision holds.
    KeepIfListed(Otherwise),
    Remove,
    Empty,
    Dummy,
    Uid,
    /// A date that moves; one that cannot is treated by the second decision.
    Move(Otherwise),
    /// Pseudonyms of ids.
    Patient,
    Accession,
    StudyId,
    Age,
    /// A sequence that stays, its items by the same rules.
    Walk,
    /// A sequence that stays as a form: every text, date and code in it says nothing.
    Blank,
}

/// What holds where the first decision cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Otherwise {
    Remove,
    Empty,
    Dummy,
}

/// What the dictionary says of an even tag: its VR, `None` where it does not know it.
pub fn known_vr(tag: u32) -> Option<[u8; 2]> {
    let vr = match StandardDataDictionary.by_tag(Tag((tag >> 16) as u16, tag as u16))?.vr() {
        VirtualVr::Exact(vr) => vr,
        VirtualVr::Xs => VR::US,
        _ => VR::OW,
    };
    vr.to_string().as_bytes().try_into().ok()
}

/// Where an element stands.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub is_root: bool,
    /// Inside a sequence of which only the form stays.
    pub is_blank: bool,
    /// The object's modules may ask for a value where a classic image does not: see [`asks_for_values`].
    pub asks: bool,
}

/// - `vr`: of the element, or of the dictionary where the element does not tell
/// - `known`: what the dictionary says
pub fn decide(tag: u32, vr: &[u8; 2], known: Option<[u8; 2]>, place: Place, p: &Profile) -> Do {
    let is_sequence = vr == b"SQ";
    let group = tag >> 16;
    // Private groups, group lengths, command and meta groups, directories, padding; overlays and curves; what this program writes itself.
    let is_graphic = group & 0xFF01 == 0x5000 || group & 0xFF01 == 0x6000;
    let is_ours = matches!(tag, 0x0012_0062 | 0x0012_0063 | 0x0012_0064 | 0x0028_0303);
    if group & 1 == 1 || tag & 0xFFFF == 0 || group <= 4 || tag == 0xFFFC_FFFC || is_graphic || is_ours {
        return Do::Remove;
    }
    match tag {
        0x0010_0010 | 0x0010_0020 => return Do::Patient,
        0x0008_0050 => return Do::Accession,
        0x0020_0010 => return Do::StudyId,
        // The class of an object is no secret, and no object is read without it.
        0x0008_0016 | 0x0008_1150 => return Do::Keep,
        _ => {}
    }
    // A sequence in the clothes of something else would not be looked into.
    if known == Some(*b"SQ") && !is_sequence {
        return Do::Remove;
    }
    let line = table::line(tag);
    let either = |a: &[u8; 2]| vr == a || known.as_ref() == Some(a);
    let is_date = either(b"DA") || either(b"DT");
    let is_time = is_date || either(b"TM");
    let Some(line) = line else {
        // No table knows it, so nothing says that it is safe.
        if known.is_none() {
            return Do::Remove;
        }
        return match () {
            _ if is_sequence && place.is_blank => Do::Blank,
            _ if is_sequence => Do::Walk,
            // Names of coding schemes and of the makers of files, not of things of a patient.
            _ if matches!(tag, 0x0008_010C | 0x0008_010D | 0x0008_0117 | 0x0008_0118 | 0x0008_9123) => Do::Keep,
            _ if either(b"UI") && p.retain_uids => Do::Keep,
            _ if either(b"UI") => Do::Uid,
            _ if either(b"PN") => Do::Empty,
            _ if is_time => dates(p, is_date, Otherwise::Empty),
            _ if place.is_blank && super::values::is_text(vr) => Do::Dummy,
            _ => Do::Keep,
        };
    };
    let basic = basic(line.action, tag, is_sequence, either(b"UI"), is_time, place);
    let kept = if is_sequence { Do::Walk } else { Do::Keep };
    let otherwise = match basic {
        Do::Empty => Otherwise::Empty,
        Do::Dummy => Otherwise::Dummy,
        _ => Otherwise::Remove,
    };
    if place.is_blank && !is_sequence {
        return if basic == Do::Uid && p.retain_uids { Do::Keep } else { basic };
    }
    match () {
        _ if line.has('u') && p.retain_uids => kept,
        _ if line.has('d') && p.retain_dates != Dates::Remove && (is_time || tag == 0x0008_0201) => dates(p, is_date, otherwise),
        _ if line.has('v') && p.retain_device => kept,
        _ if line.has('i') && p.retain_institution => kept,
        _ if tag == 0x0010_1010 && p.retain_characteristics => Do::Age,
        _ if line.has('p') && p.retain_characteristics => kept,
        _ if ['t', 'P', 'V'].iter().any(|o| line.has(*o)) && !is_sequence && !p.keep_descriptors.is_empty() => Do::KeepIfListed(otherwise),
        _ => basic,
    }
}

fn dates(p: &Profile, is_date: bool, otherwise: Otherwise) -> Do {
    match (p.retain_dates, otherwise) {
        (Dates::Shift, _) if is_date => Do::Move(otherwise),
        (Dates::Shift | Dates::Full, _) => Do::Keep,
        (Dates::Remove, Otherwise::Remove) => Do::Remove,
        (Dates::Remove, Otherwise::Empty) => Do::Empty,
        (Dates::Remove, Otherwise::Dummy) => Do::Dummy,
    }
}

/// The basic profile. Which of `Z/D`, `X/Z`, `X/D`, `X/Z/D` holds is a matter of the object's class.
fn basic(action: Action, tag: u32, is_sequence: bool, is_uid: bool, is_time: bool, place: Place) -> Do {
    let value = |if_not: Do| match (place.asks, is_sequence) {
        (_, true) => Do::Remove,
        (true, false) => Do::Dummy,
        (false, false) => if_not,
    };
    match action {
        Action::X => Do::Remove,
        Action::Z => Do::Empty,
        Action::D if is_sequence => Do::Blank,
        Action::D | Action::U if is_uid => Do::Uid,
        Action::U if is_sequence => Do::Walk,
        Action::D | Action::U => Do::Dummy,
        // Contrast agent and creator are of type 2, a date of type 1 in newer objects.
        Action::ZD if is_time => value(Do::Empty),
        Action::ZD => Do::Empty,
        // AcquisitionContextSequence is of type 2, ReferencedStudySequence of type 3.
        Action::XZ if is_sequence && tag != 0x0040_0555 => Do::Remove,
        Action::XZ => Do::Empty,
        // InstanceCreationDate and Time are of type 3 everywhere.
        Action::XD | Action::XZD if tag == 0x0008_0012 || tag == 0x0008_0013 => Do::Remove,
        Action::XD => value(Do::Remove),
        Action::XZD => value(if is_time { Do::Remove } else { Do::Empty }),
        Action::XZU => Do::Walk,
    }
}

/// Whether an object's modules may ask for a value (type 1) where classic images do with an empty or no one: all classes but the classic ones.
pub fn asks_for_values(sop_class: &str) -> bool {
    const CLASSIC: [&str; 22] = [
        "1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "1.3.1", "2", "3", "3.1", "4", "6", "6.1", "7", "12.1", "12.2", "20", "481.1", "481.2",
        "481.3", "481.5", "481.8",
    ];
    let short = sop_class.strip_prefix("1.2.840.10008.5.1.4.1.1.");
    !short.is_some_and(|s| CLASSIC.contains(&s))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Place = Place { is_root: true, is_blank: false, asks: false };

    fn of(tag: u32, p: &Profile) -> Do {
        let known = known_vr(tag);
        decide(tag, &known.unwrap_or(*b"UN"), known, ROOT, p)
    }

    #[test]
    fn the_basic_profile_keeps_geometry_and_nothing_of_a_person() {
        let p = Profile::default();
        for tag in [0x0020_0032, 0x0020_0037, 0x0028_0030, 0x0018_0050, 0x0028_1053, 0x0008_0060, 0x0020_0013, 0x0008_0016] {
            assert_eq!(of(tag, &p), Do::Keep, "{tag:08X}");
        }
        for (tag, wanted) in [
            (0x0010_0010, Do::Patient),
            (0x0010_0030, Do::Empty),
            (0x0008_0050, Do::Accession),
            (0x0008_0020, Do::Empty),
            (0x0008_103E, Do::Remove),
            (0x0020_000D, Do::Uid),
            (0x0008_1140, Do::Walk),
            (0x0040_0275, Do::Remove),
            (0x6000_3000, Do::Remove),
            (0x0009_0010, Do::Remove),
            // Of an even group, and in no dictionary.
            (0x0008_7777, Do::Remove),
            // Not in the table: a person, a reference, a sequence.
            (0x0014_2006, Do::Empty),
            (0x0020_9312, Do::Uid),
            (0x0018_9325, Do::Walk),
        ] {
            assert_eq!(of(tag, &p), wanted, "{tag:08X}");
        }
    }

    #[test]
    fn options_keep_what_they_name() {
        let p = Profile {
            retain_dates: Dates::Shift,
            retain_device: true,
            retain_characteristics: true,
            keep_descriptors: vec!["*".into()],
            ..Profile::default()
        };
        assert_eq!(of(0x0008_0020, &p), Do::Move(Otherwise::Empty));
        assert_eq!(of(0x0008_0030, &p), Do::Keep);
        assert_eq!(of(0x0010_0030, &p), Do::Empty, "a birth date is none of a study");
        assert_eq!(of(0x0018_1000, &p), Do::Keep);
        assert_eq!((of(0x0010_1030, &p), of(0x0010_1010, &p)), (Do::Keep, Do::Age));
        assert_eq!(of(0x0008_103E, &p), Do::KeepIfListed(Otherwise::Remove));
        let p = Profile { retain_uids: true, retain_dates: Dates::Full, retain_institution: true, ..Profile::default() };
        assert_eq!((of(0x0020_000D, &p), of(0x0008_0020, &p), of(0x0008_0080, &p)), (Do::Keep, Do::Keep, Do::Keep));
    }

    #[test]
    fn newer_objects_get_values_where_classic_ones_get_none() {
        let enhanced = Place { asks: asks_for_values("1.2.840.10008.5.1.4.1.1.2.1"), ..ROOT };
        let p = Profile::default();
        let both = |tag| (of(tag, &p), decide(tag, &known_vr(tag).unwrap_or(*b"UN"), known_vr(tag), enhanced, &p));
        assert!(!asks_for_values("1.2.840.10008.5.1.4.1.1.2"));
        assert_eq!(both(0x0008_0023), (Do::Empty, Do::Dummy));
        assert_eq!(both(0x0018_1000), (Do::Empty, Do::Dummy));
        assert_eq!(both(0x0008_0021), (Do::Remove, Do::Dummy));
        assert_eq!(both(0x0008_1072), (Do::Remove, Do::Remove));
    }

    #[test]
    fn private_elements_are_named_as_the_standard_does() {
        let of = |e: &str| Private { creator: "C".into(), element: e.into() }.place();
        assert_eq!(of("0019,xx0C"), Some((0x19, 0x0c)));
        assert_eq!(of("(0019,xx0C)"), Some((0x19, 0x0c)));
        assert_eq!((of("0018,xx0C"), of("0019,100C"), of("19,0C")), (None, None, None));
    }
}
