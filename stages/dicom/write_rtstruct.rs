//! Labels → RT Structure Set (PS3.3 A.19) on the original slices of the series they belong to: contours through pixel centres ([`super::trace`]), which
//! read back to the same voxels. Nothing depends on a clock.

use dicom::core::VR;
use dicom::core::value::PrimitiveValue;
use dicom::dictionary_std::{tags, uids};
use rayon::prelude::*;
use voxmill_schemas::geometry::Zyx;

use super::fill::Polygon;
use super::place::Slice;
use super::seg::Code;
use super::source::Series;
use super::trace::{Holes, contours};
use super::tree::{self, Dataset};
use super::write::{self, Encoding, decimal, limited, put, put_code, put_empty, put_items};
use super::write_seg::{patient_and_study, when};
use crate::error::Error;

/// With an explicit VR, the length of decimal strings has 16 bits (PS3.5 7.1.2).
const MAX_EXPLICIT_BYTES: usize = 65_534;
/// The retired class that names a study here (PS3.3 C.8.8.5.2).
const DETACHED_STUDY: &str = "1.2.840.10008.3.1.2.3.1";

/// One class as it is described in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct RoiOut {
    /// Value in `labels`.
    pub id: u8,
    pub name: String,
    /// What it is, where the user said so.
    pub kind: Option<Code>,
    pub rgb: [u8; 3],
}

/// What a structure set is made of.
pub struct RtOut<'a> {
    pub series: &'a Series,
    /// The slice of each `z` of the labels, from [`super::place::on_grid`].
    pub slices: &'a [&'a Slice],
    pub size: Zyx<usize>,
    /// `[z, y, x]`
    pub labels: &'a [u8],
    pub rois: &'a [RoiOut],
    pub holes: Holes,
    pub algorithm_name: &'a str,
    pub series_description: &'a str,
}

/// The contours of one class on one slice.
struct Traced {
    roi: usize,
    z: usize,
    polygons: Vec<Polygon>,
}

/// The bytes of an RTSTRUCT file.
pub fn rtstruct(o: &RtOut) -> Result<Vec<u8>, Error> {
    assert!(o.labels.len() == o.size.count() && o.slices.len() == o.size.z, "labels and slices are of one size");
    let source = &o.series.first;
    let Some(frame_of_reference) = o.series.frame_of_reference.as_deref() else {
        let why = "the series has no frame of reference, and contours are points in one: export a DICOM SEG instead";
        return Err(Error::Labels { what: "labels".into(), why: why.into() });
    };
    let mut d = write::empty();
    patient_and_study(source, &mut d);
    put(&mut d, tags::SOP_CLASS_UID, VR::UI, uids::RT_STRUCTURE_SET_STORAGE);
    put(&mut d, tags::SOP_INSTANCE_UID, VR::UI, identity(o, b"instance"));
    put(&mut d, tags::MODALITY, VR::CS, "RTSTRUCT");
    put(&mut d, tags::SERIES_INSTANCE_UID, VR::UI, identity(o, b"series"));
    let number = tree::int(source, tags::SERIES_NUMBER).filter(|n| (0..1_000_000).contains(n)).unwrap_or(0) + 2000;
    put(&mut d, tags::SERIES_NUMBER, VR::IS, number.to_string());
    put(&mut d, tags::SERIES_DESCRIPTION, VR::LO, limited(o.series_description, 64));
    put_empty(&mut d, tags::OPERATORS_NAME, VR::PN);
    put(&mut d, tags::INSTANCE_NUMBER, VR::IS, "1");
    put(&mut d, tags::MANUFACTURER, VR::LO, "Voxmill");
    put(&mut d, tags::MANUFACTURER_MODEL_NAME, VR::LO, "voxmill");
    put(&mut d, tags::SOFTWARE_VERSIONS, VR::LO, write::SOFTWARE);
    let (date, time) = when(source);
    put(&mut d, tags::STRUCTURE_SET_LABEL, VR::SH, limited(o.series_description, 16));
    put(&mut d, tags::STRUCTURE_SET_DATE, VR::DA, date);
    put(&mut d, tags::STRUCTURE_SET_TIME, VR::TM, time);
    put(&mut d, tags::APPROVAL_STATUS, VR::CS, "UNAPPROVED");
    // The module Frame of Reference itself (PS3.3 C.7.4.1).
    put(&mut d, tags::FRAME_OF_REFERENCE_UID, VR::UI, frame_of_reference);
    write::copy(source, &mut d, &[], &[(tags::POSITION_REFERENCE_INDICATOR, VR::LO)]);
    put_items(&mut d, tags::REFERENCED_FRAME_OF_REFERENCE_SEQUENCE, vec![referenced(o, frame_of_reference)]);
    put_items(&mut d, tags::STRUCTURE_SET_ROI_SEQUENCE, o.rois.iter().enumerate().map(|(i, r)| roi(o, i, r, frame_of_reference)).collect());
    let (sequence, longest) = drawn(o);
    put_items(&mut d, tags::ROI_CONTOUR_SEQUENCE, sequence);
    put_items(&mut d, tags::RTROI_OBSERVATIONS_SEQUENCE, o.rois.iter().enumerate().map(|(i, r)| observation(i, r)).collect());
    write::file(d, if longest > MAX_EXPLICIT_BYTES { Encoding::ImplicitLittle } else { Encoding::ExplicitLittle })
}

/// Follows from what goes in: the source, the labels and how they are described.
fn identity(o: &RtOut, what: &[u8]) -> String {
    let mut parts: Vec<Vec<u8>> = vec![b"rtstruct".to_vec(), what.to_vec(), vec![o.holes as u8]];
    parts.extend([o.algorithm_name, o.series_description].map(|t| t.as_bytes().to_vec()));
    parts.extend(o.slices.iter().map(|s| format!("{} {:?}", s.sop_instance, s.frame).into_bytes()));
    parts.extend(o.rois.iter().map(|r| format!("{r:?}").into_bytes()));
    parts.push(o.size.to_array().iter().flat_map(|n| (*n as u64).to_le_bytes()).collect());
    parts.push(o.labels.to_vec());
    write::uid(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

fn image(slice: &Slice) -> Dataset {
    let mut item = write::empty();
    put(&mut item, tags::REFERENCED_SOP_CLASS_UID, VR::UI, slice.sop_class.as_str());
    put(&mut item, tags::REFERENCED_SOP_INSTANCE_UID, VR::UI, slice.sop_instance.as_str());
    if let Some(n) = slice.frame {
        put(&mut item, tags::REFERENCED_FRAME_NUMBER, VR::IS, n.to_string());
    }
    item
}

/// Frame of reference → study → series → images.
fn referenced(o: &RtOut, frame_of_reference: &str) -> Dataset {
    let mut series = write::empty();
    put(&mut series, tags::SERIES_INSTANCE_UID, VR::UI, o.series.uid.as_str());
    put_items(&mut series, tags::CONTOUR_IMAGE_SEQUENCE, o.slices.iter().map(|s| image(s)).collect());
    let mut study = write::empty();
    put(&mut study, tags::REFERENCED_SOP_CLASS_UID, VR::UI, DETACHED_STUDY);
    let uid = tree::text(&o.series.first, tags::STUDY_INSTANCE_UID).unwrap_or_default();
    put(&mut study, tags::REFERENCED_SOP_INSTANCE_UID, VR::UI, uid);
    put_items(&mut study, tags::RT_REFERENCED_SERIES_SEQUENCE, vec![series]);
    let mut d = write::empty();
    put(&mut d, tags::FRAME_OF_REFERENCE_UID, VR::UI, frame_of_reference);
    put_items(&mut d, tags::RT_REFERENCED_STUDY_SEQUENCE, vec![study]);
    d
}

fn roi(o: &RtOut, i: usize, r: &RoiOut, frame_of_reference: &str) -> Dataset {
    let mut d = write::empty();
    put(&mut d, tags::ROI_NUMBER, VR::IS, (i + 1).to_string());
    put(&mut d, tags::REFERENCED_FRAME_OF_REFERENCE_UID, VR::UI, frame_of_reference);
    put(&mut d, tags::ROI_NAME, VR::LO, limited(&r.name, 64));
    put(&mut d, tags::ROI_GENERATION_ALGORITHM, VR::CS, "AUTOMATIC");
    put(&mut d, tags::ROI_GENERATION_DESCRIPTION, VR::LO, limited(o.algorithm_name, 64));
    d
}

fn observation(i: usize, r: &RoiOut) -> Dataset {
    let mut d = write::empty();
    put(&mut d, tags::OBSERVATION_NUMBER, VR::IS, (i + 1).to_string());
    put(&mut d, tags::REFERENCED_ROI_NUMBER, VR::IS, (i + 1).to_string());
    if let Some(code) = &r.kind {
        put_code(&mut d, tags::RTROI_IDENTIFICATION_CODE_SEQUENCE, code);
    }
    put_empty(&mut d, tags::RTROI_INTERPRETED_TYPE, VR::CS);
    put_empty(&mut d, tags::ROI_INTERPRETER, VR::PN);
    d
}

/// The items of ROIContourSequence and the bytes of the longest ContourData. An ROI without a voxel has no contours, which is legal.
fn drawn(o: &RtOut) -> (Vec<Dataset>, usize) {
    let n = o.size.y * o.size.x;
    let of_slice = |z: usize| -> Vec<Traced> {
        let plane = &o.labels[z * n..(z + 1) * n];
        let mut has = [false; 256];
        plane.iter().for_each(|v| has[*v as usize] = true);
        let rois = o.rois.iter().enumerate().filter(|(_, r)| has[r.id as usize]);
        rois.map(|(roi, r)| {
            let mask: Vec<bool> = plane.iter().map(|v| *v == r.id).collect();
            Traced { roi, z, polygons: contours(&mask, o.size.y, o.size.x, o.holes) }
        })
        .collect()
    };
    let traced: Vec<Vec<Traced>> = (0..o.size.z).into_par_iter().map(of_slice).collect();
    let mut of_roi: Vec<Vec<Dataset>> = o.rois.iter().map(|_| Vec::new()).collect();
    let mut longest = 0;
    for t in traced.iter().flatten() {
        for p in &t.polygons {
            let (item, bytes) = contour(o, t.z, p, of_roi[t.roi].len() + 1);
            longest = longest.max(bytes);
            of_roi[t.roi].push(item);
        }
    }
    let item = |(i, contours): (usize, Vec<Dataset>)| {
        let mut d = write::empty();
        let rgb = o.rois[i].rgb.iter().map(u8::to_string).collect();
        put(&mut d, tags::ROI_DISPLAY_COLOR, VR::IS, PrimitiveValue::Strs(rgb));
        put(&mut d, tags::REFERENCED_ROI_NUMBER, VR::IS, (i + 1).to_string());
        if !contours.is_empty() {
            put_items(&mut d, tags::CONTOUR_SEQUENCE, contours);
        }
        d
    };
    (of_roi.into_iter().enumerate().map(item).collect(), longest)
}

/// A contour in the patient's millimetres, on the slice where it really lies.
fn contour(o: &RtOut, z: usize, polygon: &Polygon, number: usize) -> (Dataset, usize) {
    let plane = &o.slices[z].plane;
    let (down, right) = (plane.along_column.scale(plane.row_spacing_mm), plane.along_row.scale(plane.column_spacing_mm));
    let points = polygon.iter().flat_map(|(r, c)| (plane.origin + down.scale(*r) + right.scale(*c)).0);
    let data = points.map(decimal).collect::<Vec<_>>().join("\\");
    let bytes = data.len();
    let mut d = write::empty();
    put_items(&mut d, tags::CONTOUR_IMAGE_SEQUENCE, vec![image(o.slices[z])]);
    put(&mut d, tags::CONTOUR_GEOMETRIC_TYPE, VR::CS, if o.holes == Holes::Xor { "CLOSEDPLANAR_XOR" } else { "CLOSED_PLANAR" });
    put(&mut d, tags::NUMBER_OF_CONTOUR_POINTS, VR::IS, polygon.len().to_string());
    put(&mut d, tags::CONTOUR_NUMBER, VR::IS, number.to_string());
    put(&mut d, tags::CONTOUR_DATA, VR::DS, data);
    (d, bytes)
}
