//! Under which names things leave the archive: their own, or keyed pseudonyms. A header is hidden as soon as it is read, so that nothing behind it (rows,
//! messages, what is remembered) has an identity to lose.

use std::collections::HashSet;

use super::fields;
use super::header::{Header, NoHeader};
use super::identity;

/// How ids leave the archive.
pub enum Names {
    /// As they are.
    Own,
    /// blake3 with this key, 16 hex digits: equal ids give equal pseudonyms over archives and runs.
    Keyed(Box<[u8; 32]>),
}

/// What the name of a label begins with that was replaced.
pub const HIDDEN_LABEL: &str = "label-";

/// Endings that say what a file is; any other may be a part of a name.
const ENDINGS: [&str; 13] =
    [".nii.gz", ".nii", ".dcm.gz", ".dcm", ".dicom", ".ima", ".tar.gz", ".tar", ".tgz", ".zip", ".gz", ".txt", ".json"];

impl Names {
    pub fn keyed(secret: &[u8]) -> Self {
        Names::Keyed(Box::new(blake3::derive_key("voxmill 2025 pseudonyms of patients, studies, series and instances", secret)))
    }

    /// - `kind`: patient, study, series, instance, frame, file: one id of two kinds gets two pseudonyms
    pub fn of(&self, kind: &str, id: &str) -> String {
        match self {
            Names::Own => id.to_string(),
            Names::Keyed(key) => {
                let mut out = String::with_capacity(19);
                out.push_str(&kind[..2]);
                out.push('-');
                hex(&of_kind(key, kind, id)[..8], &mut out);
                out
            }
        }
    }

    /// The UID that takes the place of another (PS3.5 B.2: `2.25.` and a 128-bit number), the same wherever and as whatever the other stands.
    pub fn uid(&self, uid: &str) -> String {
        let Names::Keyed(key) = self else { return uid.to_string() };
        let mut h = blake3::Hasher::new_keyed(key);
        h.update(b"uid").update(&[0]).update(uid.as_bytes());
        let bytes: [u8; 16] = h.finalize().as_bytes()[..16].try_into().expect("a hash has 32 bytes");
        // Version 8 (made by the application) and variant 1 of RFC 9562.
        let n = u128::from_be_bytes(bytes) & !(0xf << 76) & !(0b11 << 62) | 0x8 << 76 | 0b10 << 62;
        format!("2.25.{n}")
    }

    /// By how many days the dates of a patient are moved: 1 to 3,650 into the past, 0 with [`Names::Own`].
    pub fn days_of(&self, patient: &str) -> i64 {
        let Names::Keyed(key) = self else { return 0 };
        let mut h = blake3::Hasher::new_keyed(key);
        h.update(b"days").update(&[0]).update(patient.as_bytes());
        let drawn = u64::from_le_bytes(h.finalize().as_bytes()[..8].try_into().expect("a hash has 32 bytes"));
        -1 - (drawn % 3650) as i64
    }

    /// What a place in the archive is remembered by: under another key by something else.
    pub fn place(&self, file: &str) -> [u8; 16] {
        let hash = match self {
            Names::Own => blake3::hash(file.as_bytes()),
            Names::Keyed(key) => blake3::keyed_hash(key, file.as_bytes()),
        };
        hash.as_bytes()[..16].try_into().expect("a hash has 32 bytes")
    }

    /// Hides bytes from whoever lacks the key or does not know of the place, and, done again, shows them. Nothing is done with [`Names::Own`].
    /// - `which`: tells what is hidden at one place at different times apart
    pub fn seal(&self, place: &str, which: &str, bytes: &mut [u8]) {
        let Names::Keyed(key) = self else { return };
        let mut h = blake3::Hasher::new_keyed(key);
        h.update(b"seal").update(&[0]).update(place.as_bytes()).update(&[0]).update(which.as_bytes());
        let mut stream = vec![0; bytes.len()];
        h.finalize_xof().fill(&mut stream);
        bytes.iter_mut().zip(stream).for_each(|(b, s)| *b ^= s);
    }

    /// What a segment or ROI is called whose name tells who the patient is: `label-` and 8 hex digits, the same for the same name.
    fn label(&self, label: &str) -> String {
        format!("{HIDDEN_LABEL}{}", &self.of("label", label)[3..11])
    }

    /// Free text is not kept under a pseudonym.
    pub fn text(&self, text: &str) -> Option<String> {
        (matches!(self, Names::Own) && !text.is_empty()).then(|| text.to_string())
    }

    /// What a file of the archive is called: folders are often named after patients, so each part of the way gets a pseudonym (12 hex digits). Equal
    /// folders stay equal, the usual endings stay.
    pub fn file(&self, file: &str) -> String {
        FileNames::new(self).of(file)
    }

    /// Replaces ids by pseudonyms and drops free text; with [`Names::Own`] nothing changes. Where PatientID is empty the study stands in for the patient.
    pub fn hide(&self, h: &mut Header) {
        let (identity, coded) = (std::mem::take(&mut h.identity), std::mem::take(&mut h.coded_labels));
        if matches!(self, Names::Own) {
            return;
        }
        h.is_settled = h.labels.iter().map(|l| coded.iter().any(|meaning| meaning.trim().eq_ignore_ascii_case(l.trim()))).collect();
        self.hide_labels(h, |label| identity.is_in(label));
        // Codes of the standard, where nobody has typed them.
        if fields::is_typed(h) {
            let common = &mut **h;
            for text in [&mut common.body_part, &mut common.unit] {
                if identity.is_in(text) {
                    text.clear();
                }
            }
        }
        h.marks = Vec::from_iter(identity.marks(&|text| self.mark(text))).join(" ");
        h.patient = self.of("patient", &patient_of(h));
        h.study = self.of("study", &h.study);
        h.series = self.of("series", &h.series);
        self.hide_instance(h);
        if !h.frame_of_reference.is_empty() {
            h.frame_of_reference = self.of("frame", &h.frame_of_reference);
        }
        h.references.iter_mut().for_each(|r| *r = self.of("series", r));
        h.referenced_instances.iter_mut().for_each(|i| *i = self.of("instance", i));
        h.description.clear();
        h.manufacturer.clear();
    }

    /// Hides the labels that repeat who the patient is by other files of the archive: their marks.
    pub fn hide_labels_by(&self, h: &mut Header, marks: &HashSet<String>) {
        self.hide_labels(h, |label| identity::is_marked(label, marks, &|text| self.mark(text)));
    }

    fn hide_labels(&self, h: &mut Header, is_told: impl Fn(&str) -> bool) {
        let h = &mut **h;
        for (label, is_settled) in h.labels.iter_mut().zip(&mut h.is_settled) {
            if !*is_settled && is_told(label) {
                *label = self.label(label);
                *is_settled = true;
                h.hidden_labels += 1;
            }
        }
    }

    fn mark(&self, text: &str) -> String {
        self.of("who", text)[3..].to_string()
    }

    /// The part of it that is another in every file.
    pub fn hide_instance(&self, h: &mut Header) {
        if matches!(self, Names::Keyed(_)) && !h.sop_instance.is_empty() {
            h.sop_instance = self.of("instance", &h.sop_instance);
        }
    }

    /// The same for what is known of a broken file.
    pub fn hide_broken(&self, none: &mut NoHeader) {
        if let NoHeader::Broken { series: Some((study, series)), .. } = none {
            (*study, *series) = (self.of("study", study), self.of("series", series));
        }
    }
}

/// [`Names::file`] for one file after the other: most stand where the last one stood.
pub struct FileNames<'a> {
    names: &'a Names,
    folder: String,
    /// What comes before the name of a file in it.
    hidden_folder: String,
}

impl<'a> FileNames<'a> {
    pub fn new(names: &'a Names) -> Self {
        Self { names, folder: String::new(), hidden_folder: String::new() }
    }

    pub fn of(&mut self, file: &str) -> String {
        let Names::Keyed(key) = self.names else { return file.to_string() };
        let short = |part: &str, out: &mut String| hex(&of_kind(key, "file", part)[..6], out);
        let at = file.rfind('/').map_or(0, |at| at + 1);
        let (folder, base) = file.split_at(at);
        if folder != self.folder {
            self.hidden_folder.clear();
            for part in folder.split_terminator('/') {
                short(part, &mut self.hidden_folder);
                self.hidden_folder.push('/');
            }
            self.folder = folder.to_string();
        }
        let ends = |e: &&&str| base.len() >= e.len() && base.as_bytes()[base.len() - e.len()..].eq_ignore_ascii_case(e.as_bytes());
        let ending = ENDINGS.iter().find(ends).map_or("", |e| *e);
        let mut out = String::with_capacity(self.hidden_folder.len() + 12 + ending.len());
        out.push_str(&self.hidden_folder);
        short(&base[..base.len() - ending.len()], &mut out);
        out.push_str(ending);
        out
    }
}

fn of_kind(key: &[u8; 32], kind: &str, id: &str) -> [u8; 32] {
    let (n, mut short) = (kind.len() + 1 + id.len(), [0; 128]);
    if let Some(text) = short.get_mut(..n) {
        // Taken at once a short text is hashed in half the time.
        text[..kind.len()].copy_from_slice(kind.as_bytes());
        text[kind.len() + 1..].copy_from_slice(id.as_bytes());
        return *blake3::keyed_hash(key, text).as_bytes();
    }
    let mut h = blake3::Hasher::new_keyed(key);
    h.update(kind.as_bytes()).update(&[0]).update(id.as_bytes());
    *h.finalize().as_bytes()
}

/// Appends two digits a byte.
pub fn hex(bytes: &[u8], out: &mut String) {
    let digit = |n: u8| b"0123456789abcdef"[n as usize];
    for some in bytes.chunks(16) {
        let mut text = [0; 32];
        some.iter().zip(text.as_chunks_mut::<2>().0).for_each(|(b, two)| *two = [digit(b >> 4), digit(b & 15)]);
        out.push_str(std::str::from_utf8(&text[..2 * some.len()]).expect("digits are text"));
    }
}

/// Where PatientID is empty the study stands in for the patient: nothing says that two studies without it are of one person.
pub fn patient_of(h: &Header) -> String {
    if h.patient.is_empty() { format!("study {}", h.study) } else { h.patient.clone() }
}

#[cfg(test)]
mod tests {
    use super::super::header::Common;
    use super::*;

    #[test]
    fn an_id_has_one_pseudonym_however_long_it_is() {
        for n in [0, 60, 118, 119, 120, 5000] {
            let id = "7".repeat(n);
            let mut h = blake3::Hasher::new_keyed(&[5; 32]);
            h.update(b"instance\0").update(id.as_bytes());
            assert_eq!(of_kind(&[5; 32], "instance", &id), *h.finalize().as_bytes());
        }
    }

    #[test]
    fn every_byte_has_two_digits() {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut text = String::new();
        hex(&bytes, &mut text);
        assert_eq!(text, bytes.iter().map(|b| format!("{b:02x}")).collect::<String>());
    }

    #[test]
    fn files_keep_their_folders_apart_and_their_endings() {
        let names = Names::keyed(b"");
        let [a, b, c] = ["Doe^Jane/CT/1.DCM", "Doe^Jane/CT/1.2.840.113", "Doe^Jane/notes.smith"].map(|f| names.file(f));
        assert!(a.ends_with(".dcm") && a.split('/').count() == 3, "{a}");
        assert_eq!(a.split('/').take(2).collect::<Vec<_>>(), b.split('/').take(2).collect::<Vec<_>>());
        assert!(!b.contains('.') && !c.contains('.'), "{b} {c}");
        assert_eq!(Names::Own.file("Doe^Jane/CT/1.DCM"), "Doe^Jane/CT/1.DCM");
    }

    #[test]
    fn labels_that_name_the_patient_go_and_the_others_stay() {
        let labels = ["Femur", "Doe GTV", "Small intestine", "Doe GTV"].map(String::from).into();
        let mut h = Header::from(Common { labels, ..Common::default() });
        h.identity.add_name("Doe^Small");
        h.coded_labels = vec!["small intestine".into()];
        Names::keyed(b"k").hide(&mut h);
        assert_eq!((h.labels[0].as_str(), h.labels[2].as_str(), h.hidden_labels), ("Femur", "Small intestine", 2));
        assert!(h.labels[1].starts_with(HIDDEN_LABEL) && h.labels[1].len() == 14 && h.labels[1] == h.labels[3], "{:?}", h.labels);
        assert!(h.identity.is_empty() && h.coded_labels.is_empty(), "nothing behind has an identity to lose");
    }

    #[test]
    fn what_should_be_a_code_and_holds_a_name_goes() {
        let mut h = Header::from(Common { body_part: "KNEE DOE".into(), unit: "HU".into(), ..Common::default() });
        h.identity.add_name("Doe^Jane");
        Names::keyed(b"k").hide(&mut h);
        assert_eq!((h.body_part.as_str(), h.unit.as_str()), ("", "HU"));
    }

    #[test]
    fn a_hidden_header_names_nobody_and_hides_only_once_what_is_equal() {
        let common = Common {
            patient: "Doe".into(),
            study: "1.2".into(),
            series: "1.3".into(),
            frame_of_reference: "1.5".into(),
            description: "Knee of Jane".into(),
            references: vec!["1.3".into()],
            ..Common::default()
        };
        let h = Header { sop_instance: "1.4".into(), ..common.into() };
        let (mut hidden, mut own) = (h.clone(), h.clone());
        Names::keyed(b"k").hide(&mut hidden);
        Names::Own.hide(&mut own);
        assert_eq!(own, h);
        assert_eq!(hidden.references[0], hidden.series);
        let text = format!("{hidden:?}");
        assert!(["Doe", "Jane", "\"1.2\"", "\"1.3\"", "\"1.4\"", "\"1.5\""].iter().all(|id| !text.contains(id)), "{text}");
    }
}
