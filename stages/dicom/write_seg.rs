//! Labels → DICOM Segmentation (PS3.3 A.51), BINARY or LABELMAP, on the original slices of the series they belong to. Planes without
//! labels are left out, each plane keeps the position of its own slice (tilted series as well), and nothing depends on a clock.

use dicom::core::value::PrimitiveValue;
use dicom::core::{Tag, VR};
use dicom::dictionary_std::{tags, uids};
use voxmill_schemas::geometry::Zyx;

use super::place::Slice;
use super::seg::Code;
use super::source::Series;
use super::tree::{self, Dataset};
use super::write::{self, Encoding, limited, put, put_code, put_decimals, put_empty, put_items};
use crate::error::Error;

/// One class as it is described in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentOut {
    /// Value in `labels`.
    pub id: u8,
    pub label: String,
    pub category: Code,
    pub kind: Code,
    /// How viewers show it, sRGB.
    pub rgb: [u8; 3],
}

/// What a segmentation is made of.
pub struct SegOut<'a> {
    pub series: &'a Series,
    /// The slice of each `z` of the labels, from [`super::place::on_grid`].
    pub slices: &'a [&'a Slice],
    pub size: Zyx<usize>,
    /// `[z, y, x]`
    pub labels: &'a [u8],
    pub segments: &'a [SegmentOut],
    pub is_labelmap: bool,
    pub is_manual: bool,
    pub algorithm_name: &'a str,
    pub series_description: &'a str,
    pub encoding: Encoding,
}

/// One frame: a segment (0: all of them) on a slice.
struct FrameOut {
    segment: u16,
    z: usize,
}

/// The bytes of a DICOM SEG file.
pub fn seg(o: &SegOut) -> Result<Vec<u8>, Error> {
    let source = &o.series.first;
    let n = o.size.y * o.size.x;
    assert!(o.labels.len() == o.size.count() && o.slices.len() == o.size.z, "labels and slices are of one size");
    let frames = frames(o);
    let pixels = pixels(o, &frames, n);
    let (sop, series) = (identity(o, b"instance"), identity(o, b"series"));

    let mut d = write::empty();
    patient_and_study(source, &mut d);
    let sop_class = if o.is_labelmap { uids::LABEL_MAP_SEGMENTATION_STORAGE } else { uids::SEGMENTATION_STORAGE };
    put(&mut d, tags::SOP_CLASS_UID, VR::UI, sop_class);
    put(&mut d, tags::SOP_INSTANCE_UID, VR::UI, sop);
    put(&mut d, tags::MODALITY, VR::CS, "SEG");
    put(&mut d, tags::SERIES_INSTANCE_UID, VR::UI, series);
    let number = tree::int(source, tags::SERIES_NUMBER).filter(|n| (0..1_000_000).contains(n)).unwrap_or(0) + 1000;
    put(&mut d, tags::SERIES_NUMBER, VR::IS, number.to_string());
    put(&mut d, tags::SERIES_DESCRIPTION, VR::LO, limited(o.series_description, 64));
    put(&mut d, tags::INSTANCE_NUMBER, VR::IS, "1");
    let (date, time) = when(source);
    put(&mut d, tags::CONTENT_DATE, VR::DA, date);
    put(&mut d, tags::CONTENT_TIME, VR::TM, time);
    put(&mut d, tags::CONTENT_LABEL, VR::CS, "SEGMENTATION");
    put(&mut d, tags::CONTENT_DESCRIPTION, VR::LO, limited(o.series_description, 64));
    put_empty(&mut d, tags::CONTENT_CREATOR_NAME, VR::PN);
    put(&mut d, tags::IMAGE_TYPE, VR::CS, PrimitiveValue::Strs(["DERIVED".to_string(), "PRIMARY".to_string()].into_iter().collect()));
    put(&mut d, tags::MANUFACTURER, VR::LO, "Voxmill");
    put(&mut d, tags::MANUFACTURER_MODEL_NAME, VR::LO, "voxmill");
    put(&mut d, tags::DEVICE_SERIAL_NUMBER, VR::LO, "1");
    put(&mut d, tags::SOFTWARE_VERSIONS, VR::LO, write::SOFTWARE);
    if source.get(tags::FRAME_OF_REFERENCE_UID).is_some() {
        write::copy(source, &mut d, &[tags::FRAME_OF_REFERENCE_UID], &[(tags::POSITION_REFERENCE_INDICATOR, VR::LO)]);
    }
    references(o, &mut d);
    image(o, &mut d, frames.len());
    put_items(&mut d, tags::SEGMENT_SEQUENCE, segments(o));
    dimensions(o, &mut d);
    put_items(&mut d, tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, vec![shared(o)]);
    put_items(&mut d, tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, per_frame(o, &frames));
    let vr = if o.encoding == Encoding::ImplicitLittle { VR::OW } else { VR::OB };
    put(&mut d, tags::PIXEL_DATA, vr, PrimitiveValue::from(pixels));
    write::file(d, o.encoding)
}

/// Sorted by segment, then by position. A segmentation without any voxel has one empty frame, because an image without frames cannot be written.
fn frames(o: &SegOut) -> Vec<FrameOut> {
    let n = o.size.y * o.size.x;
    // [z][id]
    let mut has = vec![[false; 256]; o.size.z];
    for (z, plane) in o.labels.chunks_exact(n.max(1)).enumerate() {
        plane.iter().for_each(|v| has[z][*v as usize] = true);
    }
    let mut out = Vec::new();
    if o.is_labelmap {
        let is_used = |z: &usize| o.segments.iter().any(|s| has[*z][s.id as usize]);
        out.extend((0..o.size.z).filter(is_used).map(|z| FrameOut { segment: 0, z }));
    } else {
        for (i, s) in o.segments.iter().enumerate() {
            out.extend((0..o.size.z).filter(|z| has[*z][s.id as usize]).map(|z| FrameOut { segment: i as u16 + 1, z }));
        }
    }
    if out.is_empty() {
        out.push(FrameOut { segment: u16::from(!o.is_labelmap), z: 0 });
    }
    out
}

fn pixels(o: &SegOut, frames: &[FrameOut], n: usize) -> Vec<u8> {
    let mut out = if o.is_labelmap { Vec::with_capacity(frames.len() * n + 1) } else { vec![0u8; (frames.len() * n).div_ceil(8)] };
    let mut number_of = [0u8; 256];
    for (i, s) in o.segments.iter().enumerate() {
        number_of[s.id as usize] = i as u8 + 1;
    }
    for (f, frame) in frames.iter().enumerate() {
        let plane = &o.labels[frame.z * n..(frame.z + 1) * n];
        if o.is_labelmap {
            out.extend(plane.iter().map(|v| number_of[*v as usize]));
        } else {
            let id = o.segments[frame.segment as usize - 1].id;
            for (i, _) in plane.iter().enumerate().filter(|(_, v)| **v == id) {
                let bit = f * n + i;
                out[bit / 8] |= 1 << (bit % 8);
            }
        }
    }
    if out.len() % 2 == 1 {
        out.push(0);
    }
    out
}

/// Follows from what goes in: the source, the labels and how they are described.
fn identity(o: &SegOut, what: &[u8]) -> String {
    let text = |s: &str| s.as_bytes().to_vec();
    let mut parts: Vec<Vec<u8>> =
        vec![what.to_vec(), vec![o.is_labelmap as u8, o.is_manual as u8], text(o.algorithm_name), text(o.series_description)];
    parts.extend(o.slices.iter().map(|s| text(&format!("{} {:?}", s.sop_instance, s.frame))));
    parts.extend(o.segments.iter().map(|s| text(&format!("{s:?}"))));
    parts.push(o.size.to_array().iter().flat_map(|n| (*n as u64).to_le_bytes()).collect());
    parts.push(o.labels.to_vec());
    write::uid(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// The modules that a segmentation shares with the study it goes back to.
pub(super) fn patient_and_study(source: &Dataset, d: &mut Dataset) {
    use tags::*;
    let optional = [
        TYPE_OF_PATIENT_ID,
        ISSUER_OF_PATIENT_ID,
        OTHER_PATIENT_I_DS_SEQUENCE,
        PATIENT_COMMENTS,
        PATIENT_IDENTITY_REMOVED,
        DEIDENTIFICATION_METHOD,
        DEIDENTIFICATION_METHOD_CODE_SEQUENCE,
        STUDY_DESCRIPTION,
        PATIENT_AGE,
        PATIENT_SIZE,
        PATIENT_WEIGHT,
        CLINICAL_TRIAL_SPONSOR_NAME,
        CLINICAL_TRIAL_PROTOCOL_ID,
        CLINICAL_TRIAL_PROTOCOL_NAME,
        CLINICAL_TRIAL_SITE_ID,
        CLINICAL_TRIAL_SITE_NAME,
        CLINICAL_TRIAL_SUBJECT_ID,
        CLINICAL_TRIAL_SUBJECT_READING_ID,
    ];
    let required = [
        (PATIENT_NAME, VR::PN),
        (PATIENT_ID, VR::LO),
        (PATIENT_BIRTH_DATE, VR::DA),
        (PATIENT_SEX, VR::CS),
        (STUDY_INSTANCE_UID, VR::UI),
        (STUDY_DATE, VR::DA),
        (STUDY_TIME, VR::TM),
        (REFERRING_PHYSICIAN_NAME, VR::PN),
        (STUDY_ID, VR::SH),
        (ACCESSION_NUMBER, VR::SH),
    ];
    write::copy(source, d, &optional, &required);
}

/// Date and time of the source: a file that says when it was made would never be the same twice.
pub(super) fn when(source: &Dataset) -> (String, String) {
    let digits = |t: &str, n: usize| t.len() >= n && t.bytes().take(n).all(|b| b.is_ascii_digit());
    let first = |candidates: &[Tag], n: usize| candidates.iter().filter_map(|t| tree::text(source, *t)).find(|t| digits(t, n));
    let date = first(&[tags::CONTENT_DATE, tags::ACQUISITION_DATE, tags::SERIES_DATE, tags::STUDY_DATE], 8);
    let time = first(&[tags::CONTENT_TIME, tags::ACQUISITION_TIME, tags::SERIES_TIME, tags::STUDY_TIME], 6);
    (date.map_or("19000101".into(), |d| d[..8].to_string()), time.map_or("000000".into(), |t| t[..6].to_string()))
}

fn references(o: &SegOut, d: &mut Dataset) {
    let mut seen = std::collections::BTreeSet::new();
    let instances = o.slices.iter().filter(|s| seen.insert(s.sop_instance.as_str())).map(|s| {
        let mut item = write::empty();
        put(&mut item, tags::REFERENCED_SOP_CLASS_UID, VR::UI, s.sop_class.as_str());
        put(&mut item, tags::REFERENCED_SOP_INSTANCE_UID, VR::UI, s.sop_instance.as_str());
        item
    });
    let instances = instances.collect();
    let mut series = write::empty();
    put(&mut series, tags::SERIES_INSTANCE_UID, VR::UI, o.series.uid.as_str());
    put_items(&mut series, tags::REFERENCED_INSTANCE_SEQUENCE, instances);
    put_items(d, tags::REFERENCED_SERIES_SEQUENCE, vec![series]);
}

fn image(o: &SegOut, d: &mut Dataset, n_frames: usize) {
    let bits: u16 = if o.is_labelmap { 8 } else { 1 };
    put(d, tags::SAMPLES_PER_PIXEL, VR::US, 1u16);
    put(d, tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2");
    put(d, tags::NUMBER_OF_FRAMES, VR::IS, n_frames.to_string());
    put(d, tags::ROWS, VR::US, o.size.y as u16);
    put(d, tags::COLUMNS, VR::US, o.size.x as u16);
    put(d, tags::BITS_ALLOCATED, VR::US, bits);
    put(d, tags::BITS_STORED, VR::US, bits);
    put(d, tags::HIGH_BIT, VR::US, bits - 1);
    put(d, tags::PIXEL_REPRESENTATION, VR::US, 0u16);
    // Drawn on lossy images, a segmentation says so (PS3.3 C.8.20.2).
    if tree::text(&o.series.first, tags::LOSSY_IMAGE_COMPRESSION).as_deref() == Some("01") {
        let lossy = [tags::LOSSY_IMAGE_COMPRESSION, tags::LOSSY_IMAGE_COMPRESSION_RATIO, tags::LOSSY_IMAGE_COMPRESSION_METHOD];
        write::copy(&o.series.first, d, &lossy, &[]);
    } else {
        put(d, tags::LOSSY_IMAGE_COMPRESSION, VR::CS, "00");
    }
    put(d, tags::SEGMENTATION_TYPE, VR::CS, if o.is_labelmap { "LABELMAP" } else { "BINARY" });
    put(d, tags::SEGMENTS_OVERLAP, VR::CS, "NO");
    if o.is_labelmap {
        put(d, tags::PIXEL_PADDING_VALUE, VR::US, 0u16);
    } else {
        put(d, tags::PRESENTATION_LUT_SHAPE, VR::CS, "IDENTITY");
    }
}

fn segments(o: &SegOut) -> Vec<Dataset> {
    let one = |(i, s): (usize, &SegmentOut)| {
        let mut d = write::empty();
        put(&mut d, tags::SEGMENT_NUMBER, VR::US, i as u16 + 1);
        put(&mut d, tags::SEGMENT_LABEL, VR::LO, limited(&s.label, 64));
        if o.is_manual {
            put(&mut d, tags::SEGMENT_ALGORITHM_TYPE, VR::CS, "MANUAL");
        } else {
            put(&mut d, tags::SEGMENT_ALGORITHM_TYPE, VR::CS, "AUTOMATIC");
            put(&mut d, tags::SEGMENT_ALGORITHM_NAME, VR::LO, limited(o.algorithm_name, 64));
        }
        put_code(&mut d, tags::SEGMENTED_PROPERTY_CATEGORY_CODE_SEQUENCE, &s.category);
        put_code(&mut d, tags::SEGMENTED_PROPERTY_TYPE_CODE_SEQUENCE, &s.kind);
        put(&mut d, tags::RECOMMENDED_DISPLAY_CIE_LAB_VALUE, VR::US, PrimitiveValue::U16(write::cielab(s.rgb).into_iter().collect()));
        d
    };
    o.segments.iter().enumerate().map(one).collect()
}

fn dimensions(o: &SegOut, d: &mut Dataset) {
    let organisation = identity(o, b"dimensions");
    let index = |pointer: Tag, group: Tag, label: &str| {
        let mut item = write::empty();
        put(&mut item, tags::DIMENSION_ORGANIZATION_UID, VR::UI, organisation.as_str());
        put(&mut item, tags::DIMENSION_INDEX_POINTER, VR::AT, pointer);
        put(&mut item, tags::FUNCTIONAL_GROUP_POINTER, VR::AT, group);
        put(&mut item, tags::DIMENSION_DESCRIPTION_LABEL, VR::LO, label);
        item
    };
    let mut item = write::empty();
    put(&mut item, tags::DIMENSION_ORGANIZATION_UID, VR::UI, organisation.as_str());
    put_items(d, tags::DIMENSION_ORGANIZATION_SEQUENCE, vec![item]);
    let mut indices = Vec::new();
    if !o.is_labelmap {
        indices.push(index(tags::REFERENCED_SEGMENT_NUMBER, tags::SEGMENT_IDENTIFICATION_SEQUENCE, "Referenced Segment Number"));
    }
    indices.push(index(tags::IMAGE_POSITION_PATIENT, tags::PLANE_POSITION_SEQUENCE, "Image Position Patient"));
    put_items(d, tags::DIMENSION_INDEX_SEQUENCE, indices);
}

fn shared(o: &SegOut) -> Dataset {
    let plane = &o.slices[0].plane;
    let normal = plane.normal();
    let along: Vec<f64> = o.slices.iter().map(|s| s.plane.origin.dot(normal)).collect();
    let gaps: Vec<f64> = along.windows(2).map(|w| (w[1] - w[0]).abs()).collect();
    let mean = (!gaps.is_empty()).then(|| (along[along.len() - 1] - along[0]).abs() / gaps.len() as f64);
    let thickness = o.slices[0].thickness_mm.filter(|t| *t > 0.0).or(mean).unwrap_or(1.0);
    let mut measures = write::empty();
    put_decimals(&mut measures, tags::SLICE_THICKNESS, &[thickness]);
    put_decimals(&mut measures, tags::SPACING_BETWEEN_SLICES, &[mean.unwrap_or(thickness)]);
    put_decimals(&mut measures, tags::PIXEL_SPACING, &[plane.row_spacing_mm, plane.column_spacing_mm]);
    let mut orientation = write::empty();
    let cosines = [plane.along_row.0, plane.along_column.0].concat();
    put_decimals(&mut orientation, tags::IMAGE_ORIENTATION_PATIENT, &cosines);
    let mut d = write::empty();
    put_items(&mut d, tags::PIXEL_MEASURES_SEQUENCE, vec![measures]);
    put_items(&mut d, tags::PLANE_ORIENTATION_SEQUENCE, vec![orientation]);
    d
}

fn per_frame(o: &SegOut, frames: &[FrameOut]) -> Vec<Dataset> {
    let mut used: Vec<usize> = frames.iter().map(|f| f.z).collect();
    used.sort_unstable();
    used.dedup();
    let derivation = Code { value: "113076".into(), scheme: "DCM".into(), meaning: "Segmentation".into() };
    let purpose = Code { value: "121322".into(), scheme: "DCM".into(), meaning: "Source image for image processing operation".into() };
    let one = |f: &FrameOut| {
        let slice = o.slices[f.z];
        let mut source = write::empty();
        put(&mut source, tags::REFERENCED_SOP_CLASS_UID, VR::UI, slice.sop_class.as_str());
        put(&mut source, tags::REFERENCED_SOP_INSTANCE_UID, VR::UI, slice.sop_instance.as_str());
        if let Some(n) = slice.frame {
            put(&mut source, tags::REFERENCED_FRAME_NUMBER, VR::IS, n.to_string());
        }
        put(&mut source, tags::SPATIAL_LOCATIONS_PRESERVED, VR::CS, "YES");
        put_code(&mut source, tags::PURPOSE_OF_REFERENCE_CODE_SEQUENCE, &purpose);
        let mut derived = write::empty();
        put_items(&mut derived, tags::SOURCE_IMAGE_SEQUENCE, vec![source]);
        put_code(&mut derived, tags::DERIVATION_CODE_SEQUENCE, &derivation);
        let mut position = write::empty();
        put_decimals(&mut position, tags::IMAGE_POSITION_PATIENT, &slice.plane.origin.0);
        let mut content = write::empty();
        let place = used.partition_point(|z| *z < f.z) as u32 + 1;
        let index: Vec<u32> = if o.is_labelmap { vec![place] } else { vec![f.segment as u32, place] };
        put(&mut content, tags::DIMENSION_INDEX_VALUES, VR::UL, PrimitiveValue::U32(index.into()));
        let mut d = write::empty();
        put_items(&mut d, tags::DERIVATION_IMAGE_SEQUENCE, vec![derived]);
        put_items(&mut d, tags::FRAME_CONTENT_SEQUENCE, vec![content]);
        put_items(&mut d, tags::PLANE_POSITION_SEQUENCE, vec![position]);
        if !o.is_labelmap {
            let mut segment = write::empty();
            put(&mut segment, tags::REFERENCED_SEGMENT_NUMBER, VR::US, f.segment);
            put_items(&mut d, tags::SEGMENT_IDENTIFICATION_SEQUENCE, vec![segment]);
        }
        d
    };
    frames.iter().map(one).collect()
}
