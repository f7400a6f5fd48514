//! Tags that only some pixels ask for (tables, palettes, what SUV needs): read when a file is opened for its pixels, not when an archive is indexed.

use std::sync::{Arc, LazyLock};

use dicom::core::Tag;
use dicom::dictionary_std::tags as t;

use super::bytes::Source;
use super::header::Header;
use super::level::Level;
use super::lut::Lut;
use super::scan::{self, Wanted};
use super::suv::Tracer;

/// What the tags say.
#[derive(Debug, Default)]
pub struct Extras {
    pub modality_lut: Option<Arc<Lut>>,
    /// Red, green, blue.
    pub palette: Option<[Lut; 3]>,
    pub tracer: Tracer,
    /// Philips' own slope and intercept (2005,100E) and (2005,100D), of the first frame that has them.
    pub philips_scale: Option<[f64; 2]>,
}

const PHILIPS_SLOPE: Tag = Tag(0x2005, 0x100E);
const PHILIPS_INTERCEPT: Tag = Tag(0x2005, 0x100D);
const PHILIPS_FRAME: Tag = Tag(0x2005, 0x140F);
const PHILIPS_SUV: Tag = Tag(0x7053, 0x1000);
const PHILIPS_ACTIVITY: Tag = Tag(0x7053, 0x1009);
const GE_CREATOR: Tag = Tag(0x0009, 0x0010);
const GE_SCAN: Tag = Tag(0x0009, 0x100D);

/// Descriptor, data, segmented data.
const PALETTES: [(&str, [Tag; 3]); 3] = [
    ("red palette", [Tag(0x0028, 0x1101), Tag(0x0028, 0x1201), Tag(0x0028, 0x1221)]),
    ("green palette", [Tag(0x0028, 0x1102), Tag(0x0028, 0x1202), Tag(0x0028, 0x1222)]),
    ("blue palette", [Tag(0x0028, 0x1103), Tag(0x0028, 0x1203), Tag(0x0028, 0x1223)]),
];

#[rustfmt::skip]
static WANTED: LazyLock<Wanted> = LazyLock::new(|| {
    let mut values = vec![
        t::LUT_DESCRIPTOR, t::LUT_DATA, t::UNITS, t::SUV_TYPE, t::CORRECTED_IMAGE, t::DECAY_CORRECTION, t::PATIENT_WEIGHT, t::SERIES_DATE, t::SERIES_TIME,
        t::ACQUISITION_DATE, t::ACQUISITION_TIME, t::ACQUISITION_DATE_TIME, t::RADIONUCLIDE_TOTAL_DOSE, t::RADIONUCLIDE_HALF_LIFE,
        t::RADIOPHARMACEUTICAL_START_TIME, t::RADIOPHARMACEUTICAL_START_DATE_TIME, PHILIPS_SLOPE, PHILIPS_INTERCEPT, PHILIPS_SUV, PHILIPS_ACTIVITY,
        t::FRAME_REFERENCE_TIME, t::ACTUAL_FRAME_DURATION, GE_CREATOR, GE_SCAN,
    ];
    values.extend(PALETTES.iter().flat_map(|(_, tags)| *tags));
    let sequences = vec![
        t::MODALITY_LUT_SEQUENCE, t::RADIOPHARMACEUTICAL_INFORMATION_SEQUENCE, t::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, PHILIPS_FRAME,
    ];
    Wanted::new(values, sequences)
});

pub fn read(source: &Source, h: &Header) -> Result<Extras, String> {
    let end = h.pixel.map_or(source.len(), |p| p.offset.min(source.len()));
    let bytes = source.read_at(0, end as usize).map_err(|e| e.to_string())?;
    let scanned = scan::scan(&bytes, source.len(), &WANTED).map_err(|_| "its header cannot be read any more: run again".to_string())?;
    let top = Level::new(&bytes, &scanned.elements, scanned.is_big_endian);
    let table = |l: &Level, what: &str, descriptor, data, segmented: &[u8]| {
        let lut = Lut::read(l.bytes(descriptor), l.bytes(data), segmented, h.is_signed, scanned.is_big_endian);
        lut.map_err(|why| format!("{what}: {why}"))
    };
    let modality_lut = match top.items(t::MODALITY_LUT_SEQUENCE).next() {
        Some(item) => Some(Arc::new(table(&item, "Modality LUT", t::LUT_DESCRIPTOR, t::LUT_DATA, &[])?)),
        None => None,
    };
    let palette = match h.photometric == "PALETTE COLOR" {
        true => {
            let [red, green, blue] =
                PALETTES.map(|(what, [descriptor, data, segmented])| table(&top, what, descriptor, data, top.bytes(segmented)));
            Some([red?, green?, blue?])
        }
        false => None,
    };
    Ok(Extras { modality_lut, palette, tracer: tracer(&top), philips_scale: philips_scale(&top) })
}

fn philips_scale(top: &Level) -> Option<[f64; 2]> {
    let of = |l: &Level| Some([fl(l, PHILIPS_SLOPE)?, fl(l, PHILIPS_INTERCEPT).unwrap_or(0.0)]);
    let frame = top.items(t::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE).next();
    of(top).or_else(|| frame.and_then(|f| f.items(PHILIPS_FRAME).next()).and_then(|p| of(&p)))
}

/// A float32 (VR FL).
fn fl(l: &Level, tag: Tag) -> Option<f64> {
    let b: [u8; 4] = l.bytes(tag).get(..4)?.try_into().ok()?;
    Some(if l.is_big { f32::from_be_bytes(b) } else { f32::from_le_bytes(b) } as f64).filter(|v| v.is_finite())
}

fn tracer(top: &Level) -> Tracer {
    let drug = top.items(t::RADIOPHARMACEUTICAL_INFORMATION_SEQUENCE).next();
    let of_drug = |tag| drug.and_then(|d| d.float(tag));
    let float = |tag| top.float(tag);
    let day = |tag| super::suv::days_of(&top.text(tag));
    let time = |tag| top.time_s(tag);
    let moment = |text: String| super::suv::moment_of(&text);
    let at = |date, time_of_day| Some(day(date)? * 86400.0 + time(time_of_day)?);
    Tracer {
        units: top.text(t::UNITS),
        suv_type: top.text(t::SUV_TYPE),
        corrected: top.texts(t::CORRECTED_IMAGE),
        decay: top.text(t::DECAY_CORRECTION),
        weight_kg: float(t::PATIENT_WEIGHT),
        dose_bq: of_drug(t::RADIONUCLIDE_TOTAL_DOSE),
        half_life_s: of_drug(t::RADIONUCLIDE_HALF_LIFE),
        injected_s: drug.and_then(|d| moment(d.text(t::RADIOPHARMACEUTICAL_START_DATE_TIME))),
        injected_time_s: drug.and_then(|d| d.time_s(t::RADIOPHARMACEUTICAL_START_TIME)),
        series_s: at(t::SERIES_DATE, t::SERIES_TIME),
        acquired_s: at(t::ACQUISITION_DATE, t::ACQUISITION_TIME).or_else(|| moment(top.text(t::ACQUISITION_DATE_TIME))),
        frame_reference_s: float(t::FRAME_REFERENCE_TIME).map(|ms| ms / 1e3),
        frame_duration_s: float(t::ACTUAL_FRAME_DURATION).map(|ms| ms / 1e3),
        ge_scan_s: Some(top.text(GE_SCAN)).filter(|_| top.text(GE_CREATOR) == "GEMS_PETD_01").and_then(moment),
        philips_suv: float(PHILIPS_SUV).filter(|v| *v > 0.0),
        philips_activity: float(PHILIPS_ACTIVITY).filter(|v| *v > 0.0),
    }
}
