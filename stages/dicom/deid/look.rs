//! A first pass over the top level of an object: what decides its fate and its names, before anything is written.

use super::bytes::{Bytes, Coding, Stop};
use super::rewrite::is_pixel;
use super::values::trimmed;

/// What the top level says. Texts are trimmed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Look {
    pub sop_class: String,
    pub sop_instance: String,
    pub study: String,
    pub series: String,
    pub patient: String,
    pub modality: String,
    pub image_type: String,
    pub conversion_type: String,
    pub body_part: String,
    pub burned_in: String,
    pub visual_features: String,
    pub samples: Option<u16>,
    /// An overlay without data of its own: its bits stand among those of the pixels.
    pub has_hidden_overlay: bool,
    pub has_pixels: bool,
    /// Names and ids of the patient, as bytes: parts of PatientName, PatientID, AccessionNumber, OtherPatientIDs.
    pub identity: Vec<Vec<u8>>,
}

/// A part of a name that is shorter is found in words that mean something else.
const SHORTEST_ECHO: usize = 4;

pub fn look(b: Bytes, start: usize, coding: Coding) -> Result<Look, Stop> {
    let mut l = Look::default();
    let mut at = start;
    let (mut overlays, mut overlay_data) = (0u32, 0u32);
    while b.len.saturating_sub(at as u64) >= 8 {
        let h = b.head(at, coding)?;
        if is_pixel(h.tag) {
            l.has_pixels = true;
            break;
        }
        let text = || b.value(&h).map(|v| String::from_utf8_lossy(trimmed(v)).into_owned());
        match h.tag {
            0x0008_0008 => l.image_type = text()?,
            0x0008_0016 => l.sop_class = text()?,
            0x0008_0018 => l.sop_instance = text()?,
            0x0008_0050 | 0x0010_0020 | 0x0010_1000 | 0x0010_1001 | 0x0010_0010 => {
                let value = b.value(&h)?;
                if h.tag == 0x0010_0020 {
                    l.patient = text()?;
                }
                let is_name = h.tag == 0x0010_0010 || h.tag == 0x0010_1001;
                let parts = value.split(|c| *c == b'\\' || (is_name && matches!(c, b'^' | b'=' | b' ')));
                l.identity.extend(parts.map(trimmed).filter(|p| p.len() >= SHORTEST_ECHO).map(<[u8]>::to_ascii_lowercase));
            }
            0x0008_0060 => l.modality = text()?,
            0x0008_0064 => l.conversion_type = text()?,
            0x0018_0015 => l.body_part = text()?,
            0x0020_000D => l.study = text()?,
            0x0020_000E => l.series = text()?,
            0x0028_0002 => {
                let v = b.value(&h)?;
                l.samples =
                    v.get(..2).map(|v| if coding.big { u16::from_be_bytes([v[0], v[1]]) } else { u16::from_le_bytes([v[0], v[1]]) });
            }
            0x0028_0301 => l.burned_in = text()?,
            0x0028_0302 => l.visual_features = text()?,
            tag if tag >> 16 & 0xFF01 == 0x6000 => {
                let bit = 1 << (tag >> 17 & 0x1F);
                overlays |= bit;
                overlay_data |= if tag & 0xFFFF == 0x3000 { bit } else { 0 };
            }
            _ => {}
        }
        at = b.after(&h, coding)?;
    }
    l.has_hidden_overlay = overlays & !overlay_data != 0;
    l.identity.sort();
    l.identity.dedup();
    Ok(l)
}

impl Look {
    /// Segmentations and structure sets are labels; what else has no pixels (reports, plans, documents, waveforms) is left out.
    pub fn is_wanted(&self) -> bool {
        const LABELS: [&str; 3] = ["66.4", "66.7", "481.3"];
        // Raw data is a format of its maker, and nothing says what is in it.
        const NEVER: [&str; 1] = ["66"];
        let short = self.sop_class.strip_prefix("1.2.840.10008.5.1.4.1.1.").unwrap_or_default();
        (self.has_pixels || LABELS.contains(&short)) && !NEVER.contains(&short)
    }

    /// Why the pixels may show who the patient is, if they may.
    pub fn risk(&self) -> Option<String> {
        let short = self.sop_class.strip_prefix("1.2.840.10008.5.1.4.1.1.").unwrap_or_default();
        let class = match short {
            s if s == "7" || s.starts_with("7.") => Some("a secondary capture"),
            "3" | "3.1" | "6" | "6.1" | "6.2" => Some("ultrasound"),
            s if s.starts_with("77.1.") && s != "77.1.6" => Some("a photograph or video"),
            _ if matches!(self.modality.as_str(), "XC" | "ES" | "GM" | "US" | "SC" | "OT" | "DOC") => Some("a picture of its modality"),
            _ => None,
        };
        let screens = ["SCREEN", "CAPTURE", "DOSE_INFO", "DOSE INFO", "PROTOCOL", "REPORT", "SUMMARY"];
        let upper = self.image_type.to_ascii_uppercase();
        let is_plain = matches!(self.modality.as_str(), "CT" | "MR" | "PT" | "CR" | "DX" | "MG" | "NM");
        let absent = |what: &str| format!("{what} that does not say whether a name is burned in (BurnedInAnnotation)");
        match () {
            _ if self.burned_in == "YES" => Some("it says that annotation is burned in".into()),
            _ if self.has_hidden_overlay => Some("an overlay stands in unused bits of the pixels".into()),
            _ if self.burned_in == "NO" => None,
            _ if !self.has_pixels => None,
            _ if class.is_some() => class.map(absent),
            _ if !self.conversion_type.is_empty() => Some(absent("an image converted from something else")),
            _ if screens.iter().any(|s| upper.contains(s)) => Some(absent("a captured screen")),
            _ if is_plain && self.samples == Some(3) => Some(absent("a colour picture of a scanner that takes none")),
            _ => None,
        }
    }

    /// Whether a face may be made of the slices (PS3.15 E.3.2): noted, nothing is done about it.
    pub fn may_show_face(&self) -> bool {
        let part = self.body_part.to_ascii_uppercase();
        let is_head = ["HEAD", "BRAIN", "FACE", "SKULL", "NECK", "ORBIT", "SINUS", "WHOLEBODY"].iter().any(|p| part.contains(p));
        self.visual_features == "YES" || (self.visual_features != "NO" && self.has_pixels && is_head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(class: &str, f: impl Fn(&mut Look)) -> Option<String> {
        let mut l = Look { sop_class: format!("1.2.840.10008.5.1.4.1.1.{class}"), has_pixels: true, ..Look::default() };
        f(&mut l);
        l.risk()
    }

    #[test]
    fn pictures_of_screens_and_people_are_a_risk_and_slices_are_not() {
        assert_eq!(image("2", |_| ()), None);
        assert_eq!(image("4", |l| l.image_type = "DERIVED\\PRIMARY\\MPR".into()), None);
        assert!(image("7", |_| ()).is_some() && image("6.1", |_| ()).is_some() && image("77.1.4", |_| ()).is_some());
        assert_eq!(image("7", |l| l.burned_in = "NO".into()), None);
        assert!(image("2", |l| l.burned_in = "YES".into()).is_some());
        assert!(image("2", |l| l.image_type = "DERIVED\\SECONDARY\\SCREEN SAVE".into()).is_some());
        assert!(image("2", |l| (l.modality, l.samples) = ("CT".into(), Some(3))).is_some());
        assert!(image("2", |l| (l.burned_in, l.has_hidden_overlay) = ("NO".into(), true)).is_some());
    }
}
