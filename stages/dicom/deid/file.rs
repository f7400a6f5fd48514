//! One file in, one file out, or the reason why not: meta group, data set, pixels, and what stands behind them. Pixels are not copied here: the caller
//! puts them between `head` and `tail` as they lie in the source.

use std::ops::Range;

use super::bytes::{Bytes, Coding, ITEM, SEQUENCE_END, Stop, UNDEFINED, coding_at};
use super::look::{self, Look};
use super::policy::{self, BurnedIn, Dates, Profile};
use super::rewrite::{self, Content, Insert, Job, Tally};
use crate::dicom::bytes::DEFLATED;
use crate::dicom::names::Names;
use crate::dicom::{classes, scan, write};

/// Behind the pixels stand signatures and private groups; more of them is not read.
const MAX_TAIL_BYTES: u64 = 64 << 20;
const EXPLICIT_LITTLE: &str = "1.2.840.10008.1.2.1";
const IMPLICIT_LITTLE: &str = "1.2.840.10008.1.2";
const EXPLICIT_BIG: &str = "1.2.840.10008.1.2.2";

/// What files are de-identified by: the same for a whole archive.
pub struct Rules {
    pub profile: Profile,
    pub names: Names,
    private: Vec<(String, u16, u8)>,
}

impl Rules {
    pub fn new(profile: Profile, names: Names) -> Self {
        let private = profile.private.iter().filter_map(|p| p.place().map(|(g, e)| (p.creator.trim().to_string(), g, e))).collect();
        Self { profile, names, private }
    }
}

/// A file without its pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct Made {
    /// Pseudonyms.
    pub patient: String,
    pub study: String,
    pub series: String,
    pub instance: String,
    /// What it is: `CT image`.
    pub class: String,
    /// All up to the value of the pixel element.
    pub head: Vec<u8>,
    /// Where the pixels stand in the source, from the start of the (unwrapped) file.
    pub pixels: Range<u64>,
    pub tail: Vec<u8>,
    /// What stands between is deflated as one stream, the first `meta` bytes of `head` apart.
    pub deflate_from: Option<usize>,
    pub tally: Tally,
    pub risk: Option<String>,
    pub may_show_face: bool,
}

/// What becomes of a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Made(Box<Made>),
    /// Nothing that is written out: by what it is.
    Skipped(String),
    /// Its pixels may show who the patient is.
    Refused(String),
    Failed(String),
    /// `bytes` ends before the pixels begin.
    NeedsMore,
}

/// - `bytes`: a file from its start on, at least up to its pixel data
/// - `read_at`: more of it, for what stands behind; exactly `n` bytes that are there
pub fn make(bytes: &[u8], len: u64, rules: &Rules, read_at: &dyn Fn(u64, usize) -> std::io::Result<Vec<u8>>) -> Outcome {
    let Some(meta) = scan::meta(bytes) else { return Outcome::Skipped("not DICOM".into()) };
    let b = Bytes { data: bytes, len };
    let Some(coding) = coding_at(bytes, meta.end) else {
        return if (bytes.len() as u64) < len {
            Outcome::NeedsMore
        } else {
            Outcome::Failed("the file ends before its data set begins".into())
        };
    };
    let made = object(b, &meta, coding, rules, read_at);
    match made {
        Ok(outcome) => outcome,
        Err(Stop::NeedsMore) => Outcome::NeedsMore,
        Err(Stop::Broken(why)) => Outcome::Failed(why),
    }
}

fn object(
    b: Bytes,
    meta: &scan::Meta,
    coding: Coding,
    rules: &Rules,
    read_at: &dyn Fn(u64, usize) -> std::io::Result<Vec<u8>>,
) -> Result<Outcome, Stop> {
    let mut l = look::look(b, meta.end, coding)?;
    if l.sop_class.is_empty() {
        l.sop_class = meta.sop_class.to_string();
    }
    let class = classes::name(&l.sop_class);
    if !l.is_wanted() {
        return Ok(Outcome::Skipped(if class.ends_with("image") { format!("{class} without pixels") } else { class }));
    }
    if l.study.is_empty() || l.series.is_empty() || l.sop_instance.is_empty() {
        return Ok(Outcome::Failed("it does not say of which study, series and instance it is".into()));
    }
    let risk = l.risk();
    if let (Some(why), BurnedIn::Refuse) = (&risk, rules.profile.burned_in) {
        return Ok(Outcome::Refused(why.clone()));
    }
    // The same person as in the tables of an index: where PatientID is empty the study stands in for the patient.
    let id = if l.patient.is_empty() { format!("study {}", l.study) } else { l.patient.clone() };
    let patient = rules.names.of("patient", &id);
    let inserts = inserts(rules, &patient);
    let job = Job {
        profile: &rules.profile,
        private: &rules.private,
        names: &rules.names,
        patient: &patient,
        days: rules.names.days_of(&id),
        asks: policy::asks_for_values(&l.sop_class),
        echoes: &l.identity,
        inserts: &inserts,
    };
    let syntax = syntax(meta.transfer_syntax, coding);
    let mut head = meta_group(&l, &syntax, rules);
    let start = head.len();
    let mut tally = Tally::default();
    let pixel = rewrite::data_set(b, meta.end, coding, &job, &mut head, &mut tally)?;
    let (mut pixels, mut tail) = (b.len..b.len, Vec::new());
    if let Some(p) = pixel {
        let (end, is_open) = pixel_end(b, p, coding, read_at)?;
        pixels = p.value as u64..end;
        if is_open {
            let (item, big) = (SEQUENCE_END, coding.big);
            let [g, e] = [(item >> 16) as u16, item as u16].map(|n| if big { n.to_be_bytes() } else { n.to_le_bytes() });
            tail.extend([g[0], g[1], e[0], e[1], 0, 0, 0, 0]);
        }
        behind(b, end, coding, &job, read_at, &mut tail, &mut tally);
    }
    Ok(Outcome::Made(Box::new(Made {
        patient,
        study: rules.names.of("study", &l.study),
        series: rules.names.of("series", &l.series),
        instance: rules.names.of("instance", &l.sop_instance),
        class,
        head,
        pixels,
        tail,
        deflate_from: (syntax == DEFLATED).then_some(start),
        tally,
        may_show_face: l.may_show_face(),
        risk: risk.filter(|_| rules.profile.burned_in != BurnedIn::Keep),
    })))
}

/// Where the pixels end, and whether the delimiter of their fragments is missing.
fn pixel_end(
    b: Bytes,
    p: rewrite::Pixel,
    coding: Coding,
    read_at: &dyn Fn(u64, usize) -> std::io::Result<Vec<u8>>,
) -> Result<(u64, bool), Stop> {
    let mut at = p.value as u64;
    if let Some(length) = p.length {
        let end = at + length as u64;
        if end > b.len {
            return Err(Stop::Broken(format!("its pixels are cut off: {} of {length} bytes are there", b.len - at)));
        }
        return Ok((end, false));
    }
    loop {
        // Some writers forget the delimiter, and whatever is shorter than a header is padding.
        if b.len - at < 8 {
            return Ok((at, true));
        }
        let head = match b.data.get(at as usize..at as usize + 8) {
            Some(head) => head.to_vec(),
            None => read_at(at, 8).map_err(|e| Stop::Broken(format!("its pixels cannot be read: {e}")))?,
        };
        let h = Bytes { data: &head, len: 8 }.head(0, Coding { explicit: false, ..coding })?;
        at += 8;
        match h.tag {
            ITEM if h.length != UNDEFINED && at + h.length as u64 <= b.len => at += h.length as u64,
            ITEM => {
                return Err(Stop::Broken(format!("a fragment of its pixels is cut off: {} of {} bytes are there", b.len - at, h.length)));
            }
            SEQUENCE_END => return Ok((at, false)),
            _ => return Err(Stop::Broken("its pixel fragments are broken".into())),
        }
    }
}

/// What stands behind the pixels. Nothing an image needs is there: what cannot be read is left out.
fn behind(
    b: Bytes,
    end: u64,
    coding: Coding,
    job: &Job,
    read_at: &dyn Fn(u64, usize) -> std::io::Result<Vec<u8>>,
    out: &mut Vec<u8>,
    tally: &mut Tally,
) {
    let left = b.len - end;
    if left < 8 {
        return;
    }
    let rest = match b.data.get(end as usize..b.len as usize) {
        Some(rest) => Some(std::borrow::Cow::Borrowed(rest)),
        None if left <= MAX_TAIL_BYTES => read_at(end, left as usize).ok().map(std::borrow::Cow::Owned),
        None => None,
    };
    let mut tail = Vec::new();
    let mut counted = *tally;
    let read = rest.map(|rest| {
        let job = Job { inserts: &[], ..*job };
        rewrite::data_set(Bytes { data: &rest, len: rest.len() as u64 }, 0, coding, &job, &mut tail, &mut counted)
    });
    match read {
        Some(Ok(None)) => {
            out.extend(tail);
            *tally = counted;
        }
        _ => tally.removed += 1,
    }
}

/// The transfer syntax that the body is really written in.
fn syntax(stated: &str, coding: Coding) -> String {
    let real = match (coding.explicit, coding.big) {
        (true, true) => EXPLICIT_BIG,
        (true, false) => EXPLICIT_LITTLE,
        (false, _) => IMPLICIT_LITTLE,
    };
    let is_native = [EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE, ""].contains(&stated);
    if is_native { real.into() } else { stated.into() }
}

/// Preamble and meta group (PS3.10 7.1): zeros, what reading needs, and who wrote it.
fn meta_group(l: &Look, syntax: &str, rules: &Rules) -> Vec<u8> {
    let coding = Coding { explicit: true, big: false };
    let instance = if rules.profile.retain_uids { l.sop_instance.clone() } else { rules.names.uid(&l.sop_instance) };
    let text = |tag, vr: &[u8; 2], value: &str| Insert { tag, vr: *vr, value: Content::Bytes(value.as_bytes().to_vec()) };
    let mut group = Vec::with_capacity(256);
    for i in [
        Insert { tag: 0x0002_0001, vr: *b"OB", value: Content::Bytes(vec![0, 1]) },
        text(0x0002_0002, b"UI", &l.sop_class),
        text(0x0002_0003, b"UI", &instance),
        text(0x0002_0010, b"UI", syntax),
        text(0x0002_0012, b"UI", write::IMPLEMENTATION),
        text(0x0002_0013, b"SH", write::IMPLEMENTATION_NAME),
    ] {
        rewrite::put(&mut group, coding, &i);
    }
    let mut out = vec![0; 128];
    out.reserve(8192);
    out.extend(b"DICM");
    let length = Insert { tag: 0x0002_0000, vr: *b"UL", value: Content::Bytes((group.len() as u32).to_le_bytes().to_vec()) };
    rewrite::put(&mut out, coding, &length);
    out.extend(group);
    out
}

/// What PS3.15 E.1.1 asks to be written, and the patient where the source names none.
fn inserts(rules: &Rules, patient: &str) -> Vec<Insert> {
    let p = &rules.profile;
    let text = |tag, vr: &[u8; 2], value: &str| Insert { tag, vr: *vr, value: Content::Bytes(value.as_bytes().to_vec()) };
    let methods = [
        (true, "113100", "Basic Application Confidentiality Profile"),
        (!p.keep_descriptors.is_empty(), "113105", "Clean Descriptors Option"),
        (p.retain_dates == Dates::Full, "113106", "Retain Longitudinal Temporal Information Full Dates Option"),
        (p.retain_dates == Dates::Shift, "113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
        (p.retain_characteristics, "113108", "Retain Patient Characteristics Option"),
        (p.retain_device, "113109", "Retain Device Identity Option"),
        (p.retain_uids, "113110", "Retain UIDs Option"),
        (!p.private.is_empty(), "113111", "Retain Safe Private Option"),
        (p.retain_institution, "113112", "Retain Institution Identity Option"),
    ];
    let code = |(_, value, meaning): (bool, &str, &str)| {
        vec![text(0x0008_0100, b"SH", value), text(0x0008_0102, b"SH", "DCM"), text(0x0008_0104, b"LO", meaning)]
    };
    let modified = match p.retain_dates {
        Dates::Remove => "REMOVED",
        Dates::Shift => "MODIFIED",
        Dates::Full => "UNMODIFIED",
    };
    vec![
        text(0x0010_0010, b"PN", patient),
        text(0x0010_0020, b"LO", patient),
        text(0x0012_0062, b"CS", "YES"),
        text(0x0012_0063, b"LO", "Voxmill: DICOM PS3.15 2026c table E.1-1"),
        Insert { tag: 0x0012_0064, vr: *b"SQ", value: Content::Items(methods.into_iter().filter(|m| m.0).map(code).collect()) },
        text(0x0028_0303, b"CS", modified),
    ]
}
