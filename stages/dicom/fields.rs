//! Which tags a header is made of, and how: PS3.6 tags → [`Header`]. A new field of the header is asked for in `WANTED` and filled in here.

use std::sync::{Arc, LazyLock};

use dicom::core::Tag;
use dicom::dictionary_std::tags as t;

use super::bytes::Wrapping;
use super::header::{Common, Concatenation, FrameHeader, Header};
use super::identity::Identity;
use super::level::Level;
use super::mosaic::{self, BLOCKS, private};
use super::multiframe;
use super::scan::{self, Wanted};

/// Private elements that say what no standard one says in older files: group, creator, element in the creator's block.
const PRIVATE: &[(u16, &str, u8)] = &[
    (0x0019, "SIEMENS MR HEADER", 0x0a),
    (0x0019, "SIEMENS MR HEADER", 0x0c),
    (0x0029, "SIEMENS CSA HEADER", 0x10),
    (0x0043, "GEMS_PARM_01", 0x39),
    (0x2001, "Philips Imaging DD 001", 0x03),
];

/// Retired from the standard (2017), not from files.
const OTHER_PATIENT_IDS: Tag = Tag(0x0010, 0x1000);

#[rustfmt::skip]
pub(super) static WANTED: LazyLock<Wanted> = LazyLock::new(|| {
    let mut values = vec![
        t::ACQUISITION_DATE, t::FRAME_TIME, t::FRAME_TIME_VECTOR, t::FRAME_ACQUISITION_DATE_TIME, t::CONCATENATION_UID,
        t::IN_CONCATENATION_NUMBER, t::IN_CONCATENATION_TOTAL_NUMBER, t::CONCATENATION_FRAME_OFFSET_NUMBER, t::DIMENSION_INDEX_POINTER,
        t::SPECIFIC_CHARACTER_SET, t::IMAGE_TYPE, t::SOP_CLASS_UID, t::SOP_INSTANCE_UID, t::ACQUISITION_TIME, t::CONTENT_TIME,
        t::ACQUISITION_DATE_TIME, t::MODALITY, t::MANUFACTURER, t::SERIES_DESCRIPTION, t::REFERENCED_SOP_INSTANCE_UID, t::FRAME_TYPE,
        t::PATIENT_ID, t::BODY_PART_EXAMINED, t::SLICE_THICKNESS, t::SPACING_BETWEEN_SLICES, t::ECHO_TIME, t::ECHO_NUMBERS, t::TRIGGER_TIME, t::IMAGER_PIXEL_SPACING,
        t::EFFECTIVE_ECHO_TIME, t::DIFFUSION_B_VALUE, t::STUDY_INSTANCE_UID, t::SERIES_INSTANCE_UID, t::ACQUISITION_NUMBER,
        t::INSTANCE_NUMBER, t::IMAGE_POSITION_PATIENT, t::IMAGE_ORIENTATION_PATIENT, t::FRAME_OF_REFERENCE_UID,
        t::TEMPORAL_POSITION_IDENTIFIER, t::STACK_ID, t::IN_STACK_POSITION_NUMBER, t::TEMPORAL_POSITION_INDEX, t::DIMENSION_INDEX_VALUES,
        t::NOMINAL_CARDIAC_TRIGGER_DELAY_TIME, t::SAMPLES_PER_PIXEL, t::PHOTOMETRIC_INTERPRETATION, t::NUMBER_OF_FRAMES, t::ROWS,
        t::COLUMNS, t::PIXEL_SPACING, t::BITS_ALLOCATED, t::BITS_STORED, t::HIGH_BIT, t::PIXEL_REPRESENTATION, t::PIXEL_PADDING_VALUE,
        t::PIXEL_PADDING_RANGE_LIMIT, t::PLANAR_CONFIGURATION, t::DOSE_GRID_SCALING, t::DOSE_UNITS, t::GRID_FRAME_OFFSET_VECTOR, t::SLICE_VECTOR,
        t::REAL_WORLD_VALUE_SLOPE, t::REAL_WORLD_VALUE_INTERCEPT, t::CODE_VALUE,
        t::RESCALE_INTERCEPT, t::RESCALE_SLOPE, t::RESCALE_TYPE, t::UNITS, t::SEGMENT_LABEL, t::ROI_NAME, t::EXTENDED_OFFSET_TABLE,
        t::PATIENT_NAME, t::OTHER_PATIENT_NAMES, t::PATIENT_BIRTH_NAME, t::PATIENT_MOTHER_BIRTH_NAME, OTHER_PATIENT_IDS,
        t::ACCESSION_NUMBER, t::PATIENT_BIRTH_DATE, t::CODING_SCHEME_DESIGNATOR, t::CODE_MEANING,
    ];
    let sequences = vec![
        t::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, t::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, t::PIXEL_MEASURES_SEQUENCE,
        t::PLANE_POSITION_SEQUENCE, t::PLANE_ORIENTATION_SEQUENCE, t::PIXEL_VALUE_TRANSFORMATION_SEQUENCE, t::FRAME_CONTENT_SEQUENCE,
        t::MR_ECHO_SEQUENCE, t::MR_DIFFUSION_SEQUENCE, t::MR_IMAGE_FRAME_TYPE_SEQUENCE, t::CT_IMAGE_FRAME_TYPE_SEQUENCE,
        t::PET_FRAME_TYPE_SEQUENCE, t::CARDIAC_SYNCHRONIZATION_SEQUENCE, t::REFERENCED_SERIES_SEQUENCE, t::SEGMENT_SEQUENCE,
        t::STRUCTURE_SET_ROI_SEQUENCE, t::REFERENCED_FRAME_OF_REFERENCE_SEQUENCE, t::RT_REFERENCED_STUDY_SEQUENCE,
        t::RT_REFERENCED_SERIES_SEQUENCE, t::DERIVATION_IMAGE_SEQUENCE, t::SOURCE_IMAGE_SEQUENCE, t::MODALITY_LUT_SEQUENCE,
        t::DIMENSION_INDEX_SEQUENCE, t::DETECTOR_INFORMATION_SEQUENCE, t::REAL_WORLD_VALUE_MAPPING_SEQUENCE,
        t::MEASUREMENT_UNITS_CODE_SEQUENCE, t::OTHER_PATIENT_I_DS_SEQUENCE, t::SEGMENTED_PROPERTY_CATEGORY_CODE_SEQUENCE,
        t::SEGMENTED_PROPERTY_TYPE_CODE_SEQUENCE,
    ];
    for block in BLOCKS {
        for (group, _, element) in PRIVATE {
            values.extend([Tag(*group, block), Tag(*group, block << 8 | *element as u16)]);
        }
    }
    values.sort();
    values.dedup();
    Wanted::new(values, sequences)
});

/// Elements of the data set that change from slice to slice of a series, sorted. What they say is read by [`slice`] and [`slice_frame`] alone.
#[rustfmt::skip]
pub(super) const OF_SLICE: [Tag; 14] = [
    t::SOP_INSTANCE_UID, t::ACQUISITION_DATE, t::ACQUISITION_DATE_TIME, t::ACQUISITION_TIME, t::CONTENT_TIME, t::ECHO_TIME, t::ECHO_NUMBERS, t::TRIGGER_TIME,
    t::ACQUISITION_NUMBER, t::INSTANCE_NUMBER, t::IMAGE_POSITION_PATIENT, t::TEMPORAL_POSITION_IDENTIFIER, t::RESCALE_INTERCEPT, t::RESCALE_SLOPE,
];

/// Private elements that only mosaics are asked for ([`mosaic::cut`]).
pub(super) fn is_of_mosaics(Tag(group, element): Tag) -> bool {
    BLOCKS.contains(&(element >> 8)) && matches!((group, element & 0xff), (0x0019, 0x0a) | (0x0029, 0x10))
}

pub(super) fn slice(h: &mut Header, top: &Level) {
    h.sop_instance = top.text(t::SOP_INSTANCE_UID);
    let (tag, name) = UIDS[0];
    let is_odd = is_odd_uid(top.bytes(tag));
    if is_odd != h.odd_uids.first().is_some_and(|first| first == name) {
        if is_odd { h.odd_uids.insert(0, name.into()) } else { drop(h.odd_uids.remove(0)) }
    }
    h.instance_number = top.int(t::INSTANCE_NUMBER);
    h.acquisition_number = top.int(t::ACQUISITION_NUMBER);
    h.temporal_position = top.int(t::TEMPORAL_POSITION_IDENTIFIER);
    h.acquisition_time_s = top.time_s(t::ACQUISITION_DATE_TIME).or_else(|| {
        // With its day where the file has it: a scan may go on after midnight.
        let day_s = top.time_s(t::ACQUISITION_DATE).unwrap_or(0.0);
        top.time_s(t::ACQUISITION_TIME).map(|s| day_s + s)
    });
    h.content_time_s = top.time_s(t::CONTENT_TIME);
}

/// The frame of a file without functional groups.
pub(super) fn slice_frame(f: &mut FrameHeader, top: &Level) {
    f.position = top.vector(t::IMAGE_POSITION_PATIENT);
    f.echo_time_ms = top.float(t::ECHO_TIME);
    f.echo_number = top.int(t::ECHO_NUMBERS);
    f.trigger_ms = top.float(t::TRIGGER_TIME);
    // RT Dose: stored values times this are the dose (PS3.3 C.8.8.3).
    f.slope = top.float(t::DOSE_GRID_SCALING).or_else(|| top.float(t::RESCALE_SLOPE));
    f.intercept = top.float(t::RESCALE_INTERCEPT);
}

pub(super) fn header_of(bytes: &[u8], s: &scan::Scan) -> Header {
    let top = Level::new(bytes, &s.elements, s.is_big_endian);
    let charset = top.texts(t::SPECIFIC_CHARACTER_SET);
    let shown = match (s.is_big_endian, s.is_explicit) {
        (true, _) => "1.2.840.10008.1.2.2",
        (false, true) => "1.2.840.10008.1.2.1",
        (false, false) => "1.2.840.10008.1.2",
    };
    let bits_allocated = top.us(t::BITS_ALLOCATED).unwrap_or(0);
    let bits_stored = top.us(t::BITS_STORED).filter(|b| *b > 0).unwrap_or(bits_allocated);
    let is_signed = top.us(t::PIXEL_REPRESENTATION) == Some(1);
    let mut references: Vec<String> = Vec::new();
    for series in top.items(t::REFERENCED_SERIES_SEQUENCE) {
        references.push(series.text(t::SERIES_INSTANCE_UID));
    }
    for frame in top.items(t::REFERENCED_FRAME_OF_REFERENCE_SEQUENCE) {
        for study in frame.items(t::RT_REFERENCED_STUDY_SEQUENCE) {
            references.extend(study.items(t::RT_REFERENCED_SERIES_SEQUENCE).map(|s| s.text(t::SERIES_INSTANCE_UID)));
        }
    }
    references.retain(|r| !r.is_empty());
    references.sort();
    references.dedup();
    let n_frames = top.int(t::NUMBER_OF_FRAMES).and_then(|n| u32::try_from(n).ok()).unwrap_or(1).max(1);
    let n_frame_groups = top.items(t::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE).count();
    // Frames are made only where the file has bytes for them: the number alone says nothing.
    let mut frames = if n_frame_groups == n_frames as usize && n_frame_groups <= FEW_FRAMES + bytes.len() / FRAME_BYTES {
        frames_of(&top)
    } else {
        vec![base_frame(&top)]
    };
    // US or SS by PixelRepresentation, whatever VR the file wrote.
    let padding = |tag| top.us(tag).map(|v| if is_signed { v as u16 as i16 as i64 } else { v as i64 });
    let image_type = top.texts(t::IMAGE_TYPE);
    let size = [top.us(t::ROWS).unwrap_or(0), top.us(t::COLUMNS).unwrap_or(0)];
    let is_mosaic = n_frames == 1 && frames.len() == 1 && image_type.iter().any(|t| t == "MOSAIC");
    let mosaic = is_mosaic.then(|| mosaic::cut(&top, &frames[0], size)).map(|cut| {
        cut.map(|(mosaic, tiles)| {
            frames = tiles;
            mosaic
        })
    });
    let sop_class = top.text(t::SOP_CLASS_UID);
    let mut refused = None;
    if n_frame_groups == 0 && n_frames as usize <= FEW_FRAMES {
        match multiframe::frames(&top, &sop_class, &frames[0], n_frames as usize) {
            Some(Ok(placed)) => frames = placed,
            Some(Err(why)) => refused = Some(why),
            None => {}
        }
    }
    let mut mapped_unit = String::new();
    if sop_class == multiframe::PARAMETRIC_MAP {
        match map_values(&top, &mut frames) {
            Ok(unit) => mapped_unit = unit,
            Err(why) => refused = Some(why),
        }
    }
    let mut referenced_instances: Vec<String> = [t::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, t::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE]
        .into_iter()
        .flat_map(|g| top.items(g).collect::<Vec<_>>())
        .flat_map(|f| {
            f.items(t::DERIVATION_IMAGE_SEQUENCE).flat_map(|d| d.items(t::SOURCE_IMAGE_SEQUENCE).collect::<Vec<_>>()).collect::<Vec<_>>()
        })
        .map(|i| i.text(t::REFERENCED_SOP_INSTANCE_UID))
        .filter(|u| !u.is_empty())
        .collect();
    referenced_instances.sort();
    referenced_instances.dedup();
    let segments = top.items(t::SEGMENT_SEQUENCE).map(|i| i.free_text(t::SEGMENT_LABEL, &charset));
    let rois = top.items(t::STRUCTURE_SET_ROI_SEQUENCE).map(|i| i.free_text(t::ROI_NAME, &charset));
    let labels: Vec<String> = segments.chain(rois).filter(|l| !l.is_empty()).collect();
    let body_part = top.text(t::BODY_PART_EXAMINED);
    let unit = [mapped_unit, top.text(t::RESCALE_TYPE), top.text(t::UNITS), top.text(t::DOSE_UNITS).replace("GY", "Gy")]
        .into_iter()
        .find(|u| !u.is_empty())
        .unwrap_or_default();
    let identity = identity(&top, &charset);
    let coded_labels = if labels.is_empty() { Vec::new() } else { coded_labels(&top, &charset) };
    let common = Common {
        transfer_syntax: if s.transfer_syntax.is_empty() { shown } else { s.transfer_syntax }.into(),
        is_big_endian: s.is_big_endian,
        wrapping: Wrapping::None,
        // DICOMDIR says what it is in the meta group only.
        sop_class: Some(top.text(t::SOP_CLASS_UID)).filter(|c| !c.is_empty()).unwrap_or_else(|| s.media_class.into()),
        odd_uids: UIDS[1..].iter().filter(|(tag, _)| is_odd_uid(top.bytes(*tag))).map(|(_, name)| name.to_string()).collect(),
        study: top.text(t::STUDY_INSTANCE_UID),
        series: top.text(t::SERIES_INSTANCE_UID),
        patient: top.free_text(t::PATIENT_ID, &charset),
        modality: top.text(t::MODALITY),
        description: top.free_text(t::SERIES_DESCRIPTION, &charset),
        body_part,
        manufacturer: top.free_text(t::MANUFACTURER, &charset),
        // A structure set says it further down (PS3.3 C.8.8.5).
        frame_of_reference: std::iter::once(top)
            .chain(top.items(t::REFERENCED_FRAME_OF_REFERENCE_SEQUENCE))
            .map(|l| l.text(t::FRAME_OF_REFERENCE_UID))
            .find(|f| !f.is_empty())
            .unwrap_or_default(),
        image_type,
        rows: size[0],
        columns: size[1],
        n_frames,
        n_frame_groups: n_frame_groups as u32,
        samples: top.us(t::SAMPLES_PER_PIXEL).unwrap_or(1),
        photometric: top.text(t::PHOTOMETRIC_INTERPRETATION),
        planar: top.us(t::PLANAR_CONFIGURATION).unwrap_or(0),
        bits_allocated,
        bits_stored,
        high_bit: top.us(t::HIGH_BIT).unwrap_or(bits_stored.saturating_sub(1)),
        is_signed,
        padding: padding(t::PIXEL_PADDING_VALUE),
        padding_limit: padding(t::PIXEL_PADDING_RANGE_LIMIT),
        unit,
        has_modality_lut: top.items(t::MODALITY_LUT_SEQUENCE).next().is_some(),
        imager_spacing_mm: top.vector(t::IMAGER_PIXEL_SPACING),
        frame_times_ms: [t::FRAME_TIME_VECTOR, t::FRAME_TIME]
            .map(|tag| top.floats(tag).collect::<Vec<_>>())
            .into_iter()
            .find(|v| !v.is_empty())
            .unwrap_or_default(),
        concatenation: concatenation(&top),
        dimension_pointers: top.items(t::DIMENSION_INDEX_SEQUENCE).map(|i| i.tag(t::DIMENSION_INDEX_POINTER).unwrap_or(0)).collect(),
        mosaic,
        refused,
        references,
        referenced_instances,
        labels,
        hidden_labels: 0,
        identity,
        coded_labels,
        ..Common::default()
    };
    let extended_offsets = top.bytes(t::EXTENDED_OFFSET_TABLE).chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().expect("8 bytes")));
    let mut h =
        Header { common: Arc::new(common), frames, pixel: s.pixel, extended_offsets: extended_offsets.collect(), ..Header::default() };
    slice(&mut h, &top);
    h
}

/// Parts of the body that files name most (PS3.16 CID 4030, 4031), and units of values (PS3.3 C.8.9.1, C.11.1).
#[rustfmt::skip]
const BODY_PARTS: &[&str] = &[
    "", "ABDOMEN", "ANKLE", "ARM", "BODY", "BRAIN", "BREAST", "CHEST", "CSPINE", "ELBOW", "EXTREMITY", "FOOT", "HAND", "HEAD", "HEADNECK", "HEART",
    "HIP", "KNEE", "LEG", "LIVER", "LSPINE", "LUNG", "NECK", "PELVIS", "PROSTATE", "SHOULDER", "SKULL", "SPINE", "TSPINE", "WHOLEBODY", "WRIST",
];
#[rustfmt::skip]
const UNITS: &[&str] = &[
    "", "HU", "US", "OD", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT", "BQML", "CNTS", "NONE", "GML", "CM2ML", "PROPCNTS", "Gy", "RELATIVE", "normalized",
];

/// Whether a person could have typed a name into what the header keeps; most files say nothing of the kind.
pub(super) fn is_typed(h: &Header) -> bool {
    !h.labels.is_empty() || !BODY_PARTS.contains(&h.body_part.as_str()) || !UNITS.contains(&h.unit.as_str())
}

/// What the file says of who the patient is.
fn identity(top: &Level, charset: &[String]) -> Identity {
    let mut out = Identity::default();
    for tag in [t::PATIENT_NAME, t::OTHER_PATIENT_NAMES, t::PATIENT_BIRTH_NAME, t::PATIENT_MOTHER_BIRTH_NAME] {
        out.add_name(&top.free_text(tag, charset));
    }
    for tag in [t::PATIENT_ID, OTHER_PATIENT_IDS, t::ACCESSION_NUMBER] {
        out.add_id(&top.free_text(tag, charset));
    }
    for other in top.items(t::OTHER_PATIENT_I_DS_SEQUENCE) {
        out.add_id(&other.free_text(t::PATIENT_ID, charset));
    }
    out.add_date(&top.text(t::PATIENT_BIRTH_DATE));
    out
}

/// The meanings of the public codes of segments (category, type). A private scheme (PS3.3 8.2: `99…`) may call anything anyhow.
fn coded_labels(top: &Level, charset: &[String]) -> Vec<String> {
    let codes = top.items(t::SEGMENT_SEQUENCE).flat_map(|segment| {
        let of = |tag| segment.items(tag).collect::<Vec<_>>();
        [of(t::SEGMENTED_PROPERTY_CATEGORY_CODE_SEQUENCE), of(t::SEGMENTED_PROPERTY_TYPE_CODE_SEQUENCE)].concat()
    });
    let is_public = |code: &Level| !matches!(code.text(t::CODING_SCHEME_DESIGNATOR).as_bytes(), [] | [b'9', b'9', ..]);
    codes.filter(is_public).map(|code| code.free_text(t::CODE_MEANING, charset)).collect()
}

/// Names of the UIDs that are none.
const UIDS: [(Tag, &str); 4] = [
    (t::SOP_INSTANCE_UID, "SOPInstanceUID"),
    (t::STUDY_INSTANCE_UID, "StudyInstanceUID"),
    (t::SERIES_INSTANCE_UID, "SeriesInstanceUID"),
    (t::FRAME_OF_REFERENCE_UID, "FrameOfReferenceUID"),
];

/// A UID is up to 64 characters: numbers without leading zeros between dots. Nothing at all is none that is odd.
fn is_odd_uid(value: &[u8]) -> bool {
    let value = value.trim_ascii_end();
    let uid = value.strip_suffix(b"\0").unwrap_or(value);
    let is_number = |n: &[u8]| n.iter().all(u8::is_ascii_digit) && (n == b"0" || n.first().is_some_and(|d| *d != b'0'));
    !uid.is_empty() && (uid.len() > 64 || !uid.split(|b| *b == b'.').all(is_number))
}

/// So many frames are taken from any file, more only where each has so many bytes of header.
const FEW_FRAMES: usize = 50_000;
const FRAME_BYTES: usize = 256;
/// StackID has 16 characters at most, FrameType a handful of words of 16; no object has a tenth of these dimensions.
const MAX_TEXT_BYTES: usize = 256;
const MAX_DIMENSIONS: usize = 256;

fn concatenation(top: &Level) -> Option<Concatenation> {
    let uid = top.text(t::CONCATENATION_UID);
    let number = top.us(t::IN_CONCATENATION_NUMBER)? as i64;
    let total = top.us(t::IN_CONCATENATION_TOTAL_NUMBER).map(i64::from);
    let offset = top.ul(t::CONCATENATION_FRAME_OFFSET_NUMBER).first().copied();
    (!uid.is_empty()).then_some(Concatenation { uid, number, total, offset })
}

/// The b-value where no standard element has it: Siemens writes a text, GE a list whose first value may carry an offset, Philips a float32.
fn private_b_value(top: &Level) -> Option<f64> {
    let text = |bytes: &[u8]| scan::text(bytes).split('\\').next().and_then(|s| s.trim().parse::<f64>().ok());
    let siemens = || text(private(top, 0x0019, "SIEMENS MR HEADER", 0x0c));
    let ge = || text(private(top, 0x0043, "GEMS_PARM_01", 0x39)).map(|b| b % 100_000.0);
    let philips = || {
        let b: [u8; 4] = private(top, 0x2001, "Philips Imaging DD 001", 0x03).try_into().ok()?;
        Some(if top.is_big { f32::from_be_bytes(b) } else { f32::from_le_bytes(b) } as f64)
    };
    siemens().or_else(ge).or_else(philips).filter(|b| b.is_finite() && *b >= 0.0)
}

/// The frames as the functional groups tell them: per frame over shared over the top level.
fn frames_of(top: &Level) -> Vec<FrameHeader> {
    let base = base_frame(top);
    let per_frame = top.items(t::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE).map(|item| {
        let mut f = base.clone();
        fill_groups(&mut f, &item);
        f
    });
    per_frame.collect()
}

/// Parametric maps: stored values become real ones frame by frame; the unit of them.
fn map_values(top: &Level, frames: &mut [FrameHeader]) -> Result<String, String> {
    let shared = top.items(t::SHARED_FUNCTIONAL_GROUPS_SEQUENCE).find_map(|g| multiframe::mapping(&g)).transpose()?;
    let mut unit = shared.as_ref().map(|m| m.2.clone()).unwrap_or_default();
    let mut own = top.items(t::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE);
    for f in frames {
        let mapping = own.next().and_then(|g| multiframe::mapping(&g)).transpose()?.or_else(|| shared.clone());
        let Some((slope, intercept, of_frame)) = mapping else { continue };
        (f.slope, f.intercept) = (Some(slope), Some(intercept));
        if unit.is_empty() {
            unit = of_frame;
        }
    }
    Ok(unit)
}

/// What all frames have in common.
fn base_frame(top: &Level) -> FrameHeader {
    let mut base = FrameHeader::default();
    fill(&mut base, top);
    slice_frame(&mut base, top);
    base.b_value = top.fd(t::DIFFUSION_B_VALUE).or_else(|| private_b_value(top));
    for shared in top.items(t::SHARED_FUNCTIONAL_GROUPS_SEQUENCE) {
        fill_groups(&mut base, &shared);
    }
    base
}

fn fill_groups(f: &mut FrameHeader, group: &Level) {
    let sequences = [
        t::PIXEL_MEASURES_SEQUENCE,
        t::PLANE_POSITION_SEQUENCE,
        t::PLANE_ORIENTATION_SEQUENCE,
        t::PIXEL_VALUE_TRANSFORMATION_SEQUENCE,
        t::FRAME_CONTENT_SEQUENCE,
        t::MR_ECHO_SEQUENCE,
        t::MR_DIFFUSION_SEQUENCE,
        t::MR_IMAGE_FRAME_TYPE_SEQUENCE,
        t::CT_IMAGE_FRAME_TYPE_SEQUENCE,
        t::PET_FRAME_TYPE_SEQUENCE,
        t::CARDIAC_SYNCHRONIZATION_SEQUENCE,
    ];
    for s in sequences {
        for item in group.items(s) {
            fill(f, &item);
        }
    }
}

/// Takes over what stands on this level; the tags of the groups do not overlap.
fn fill(f: &mut FrameHeader, l: &Level) {
    fn set<T>(place: &mut Option<T>, v: Option<T>) {
        if v.is_some() {
            *place = v;
        }
    }
    set(&mut f.position, l.vector(t::IMAGE_POSITION_PATIENT));
    set(&mut f.orientation, l.vector(t::IMAGE_ORIENTATION_PATIENT));
    set(&mut f.spacing_mm, l.vector(t::PIXEL_SPACING));
    set(&mut f.thickness_mm, l.float(t::SLICE_THICKNESS));
    set(&mut f.between_mm, l.float(t::SPACING_BETWEEN_SLICES));
    set(&mut f.slope, l.float(t::RESCALE_SLOPE));
    set(&mut f.intercept, l.float(t::RESCALE_INTERCEPT));
    // Frames that share a group take these over one and all: what is longer than it can be would be held as many times.
    set(&mut f.stack, Some(l.text(t::STACK_ID)).filter(|s| !s.is_empty() && s.len() <= MAX_TEXT_BYTES));
    set(&mut f.in_stack, l.ul(t::IN_STACK_POSITION_NUMBER).first().copied());
    set(&mut f.temporal_index, l.ul(t::TEMPORAL_POSITION_INDEX).first().copied());
    set(&mut f.echo_time_ms, l.fd(t::EFFECTIVE_ECHO_TIME));
    set(&mut f.b_value, l.fd(t::DIFFUSION_B_VALUE));
    set(&mut f.acquired_s, l.time_s(t::FRAME_ACQUISITION_DATE_TIME));
    set(&mut f.trigger_ms, l.fd(t::NOMINAL_CARDIAC_TRIGGER_DELAY_TIME));
    let (frame_type, dimensions) = (l.texts(t::FRAME_TYPE), l.ul(t::DIMENSION_INDEX_VALUES));
    if !frame_type.is_empty() && l.bytes(t::FRAME_TYPE).len() <= MAX_TEXT_BYTES {
        f.frame_type = frame_type;
    }
    if !dimensions.is_empty() && dimensions.len() <= MAX_DIMENSIONS {
        f.dimensions = dimensions;
    }
}
