//! What a DICOM file is, by its SOP class (PS3.4 B.5, PS3.6 annex A).

use serde::{Deserialize, Serialize};

use super::header::Header;

/// What the program does with a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Class {
    Image,
    Seg,
    Rtstruct,
    /// Not voxels and not labels (reports, plans, waveforms, …), by its name.
    Other(String),
}

/// UIDs below `1.2.840.10008.` and the names people use for them.
#[rustfmt::skip]
const NAMES: &[(&str, &str)] = &[
    ("1.3.10", "DICOMDIR"),
    ("5.1.4.1.1.1", "CR image"),
    ("5.1.4.1.1.1.1", "DX image"),
    ("5.1.4.1.1.1.1.1", "DX image for processing"),
    ("5.1.4.1.1.1.2", "mammography image"),
    ("5.1.4.1.1.1.2.1", "mammography image for processing"),
    ("5.1.4.1.1.2", "CT image"),
    ("5.1.4.1.1.2.1", "enhanced CT image"),
    ("5.1.4.1.1.2.2", "legacy converted enhanced CT image"),
    ("5.1.4.1.1.3.1", "ultrasound loop"),
    ("5.1.4.1.1.4", "MR image"),
    ("5.1.4.1.1.4.1", "enhanced MR image"),
    ("5.1.4.1.1.4.2", "MR spectroscopy"),
    ("5.1.4.1.1.4.4", "legacy converted enhanced MR image"),
    ("5.1.4.1.1.6.1", "ultrasound image"),
    ("5.1.4.1.1.7", "secondary capture"),
    ("5.1.4.1.1.7.1", "1 bit secondary capture"),
    ("5.1.4.1.1.7.2", "8 bit secondary capture"),
    ("5.1.4.1.1.7.3", "16 bit secondary capture"),
    ("5.1.4.1.1.7.4", "colour secondary capture"),
    ("5.1.4.1.1.9.1.1", "ECG waveform"),
    ("5.1.4.1.1.9.1.2", "ECG waveform"),
    ("5.1.4.1.1.11.1", "presentation state"),
    ("5.1.4.1.1.11.2", "colour presentation state"),
    ("5.1.4.1.1.12.1", "XA image"),
    ("5.1.4.1.1.12.1.1", "enhanced XA image"),
    ("5.1.4.1.1.12.2", "RF image"),
    ("5.1.4.1.1.20", "NM image"),
    ("5.1.4.1.1.30", "parametric map"),
    ("5.1.4.1.1.66", "raw data"),
    ("5.1.4.1.1.66.1", "spatial registration"),
    ("5.1.4.1.1.66.2", "spatial fiducials"),
    ("5.1.4.1.1.66.3", "deformable registration"),
    ("5.1.4.1.1.66.4", "segmentation"),
    ("5.1.4.1.1.66.5", "surface segmentation"),
    ("5.1.4.1.1.66.7", "label map segmentation"),
    ("5.1.4.1.1.67", "real world value mapping"),
    ("5.1.4.1.1.77.1.1", "endoscopy image"),
    ("5.1.4.1.1.77.1.1.1", "endoscopy video"),
    ("5.1.4.1.1.77.1.2", "microscopy image"),
    ("5.1.4.1.1.77.1.2.1", "microscopy video"),
    ("5.1.4.1.1.77.1.4", "photograph"),
    ("5.1.4.1.1.77.1.4.1", "video"),
    ("5.1.4.1.1.77.1.6", "whole slide image"),
    ("5.1.4.1.1.88.11", "basic SR"),
    ("5.1.4.1.1.88.22", "enhanced SR"),
    ("5.1.4.1.1.88.33", "comprehensive SR"),
    ("5.1.4.1.1.88.34", "comprehensive 3D SR"),
    ("5.1.4.1.1.88.59", "key object selection"),
    ("5.1.4.1.1.88.67", "radiation dose SR"),
    ("5.1.4.1.1.104.1", "PDF"),
    ("5.1.4.1.1.104.2", "CDA document"),
    ("5.1.4.1.1.104.3", "STL model"),
    ("5.1.4.1.1.128", "PET image"),
    ("5.1.4.1.1.130", "enhanced PET image"),
    ("5.1.4.1.1.128.1", "legacy converted enhanced PET image"),
    ("5.1.4.1.1.481.1", "RT image"),
    ("5.1.4.1.1.481.2", "RT dose"),
    ("5.1.4.1.1.481.3", "RT structure set"),
    ("5.1.4.1.1.481.4", "RT treatment record"),
    ("5.1.4.1.1.481.5", "RT plan"),
    ("5.1.4.1.1.481.8", "RT ion plan"),
];

/// The name of a SOP class; the UID where it is not one of the usual.
pub fn name(sop_class: &str) -> String {
    let short = sop_class.strip_prefix("1.2.840.10008.");
    let known = NAMES.iter().find(|(uid, _)| Some(*uid) == short).map(|(_, name)| name.to_string());
    known.unwrap_or_else(|| if sop_class.is_empty() { "no SOP class".into() } else { format!("SOP class {sop_class}") })
}

pub fn of(h: &Header) -> Class {
    const SEG: [&str; 2] = ["1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"];
    const NO_IMAGE: [&str; 7] = [
        "1.2.840.10008.5.1.4.1.1.66",       // Raw Data
        "1.2.840.10008.5.1.4.1.1.77.1.6",   // whole slide microscopy: tiles, not slices
        "1.2.840.10008.5.1.4.1.1.77.1.1.1", // videos
        "1.2.840.10008.5.1.4.1.1.77.1.2.1",
        "1.2.840.10008.5.1.4.1.1.77.1.4.1",
        "1.2.840.10008.1.3.10",         // DICOMDIR
        "1.2.840.10008.5.1.4.1.1.66.5", // Surface Segmentation
    ];
    if SEG.contains(&h.sop_class.as_str()) {
        return Class::Seg;
    }
    if h.sop_class == "1.2.840.10008.5.1.4.1.1.481.3" {
        return Class::Rtstruct;
    }
    let has_pixels = h.pixel.is_some() && h.rows > 0 && h.columns > 0;
    let name = name(&h.sop_class);
    match (has_pixels, NO_IMAGE.contains(&h.sop_class.as_str())) {
        (true, false) => Class::Image,
        (false, false) if ["image", "capture", "loop", "processing", "photograph"].iter().any(|e| name.ends_with(e)) => {
            Class::Other(format!("{name} without pixels"))
        }
        _ => Class::Other(name),
    }
}

/// Whether files of a skipped class, by its name, have pixels that are no slices.
pub fn has_other_pixels(class: &str) -> bool {
    ["whole slide image", "endoscopy video", "microscopy video", "video"].contains(&class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_have_names_people_know() {
        assert_eq!(name("1.2.840.10008.5.1.4.1.1.2"), "CT image");
        assert_eq!(name("1.2.840.10008.5.1.4.1.1.88.11"), "basic SR");
        assert_eq!(name("1.2.3"), "SOP class 1.2.3");
    }
}
