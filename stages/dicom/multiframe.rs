//! Where the frames of objects lie that have many of them and no functional groups: RT Dose (PS3.3 C.8.8.3.2) and reconstructed nuclear medicine (C.8.4.15).
//! What cannot be told from a volume by its positions alone (projections, gated frames) is refused by name.

use dicom::dictionary_std::tags as t;
use voxmill_schemas::geometry::Lps;

use super::geometry::plane;
use super::header::FrameHeader;
use super::level::Level;

pub const RT_DOSE: &str = "1.2.840.10008.5.1.4.1.1.481.2";
pub const NUCLEAR_MEDICINE: &str = "1.2.840.10008.5.1.4.1.1.20";
pub const PARAMETRIC_MAP: &str = "1.2.840.10008.5.1.4.1.1.30";
/// Their frames get values of their own here.
pub const KINDS: [&str; 3] = [RT_DOSE, NUCLEAR_MEDICINE, PARAMETRIC_MAP];
/// Slices of a tomogram that need no vector to be believed.
const MOST_SLICES: usize = 2048;
/// Positions are written with so many digits.
const SAME_MM: f64 = 1e-3;

/// The frames of the object, `None` where it is of another kind.
/// - `base`: what all frames have in common
pub fn frames(top: &Level, sop_class: &str, base: &FrameHeader, n_frames: usize) -> Option<Result<Vec<FrameHeader>, String>> {
    match sop_class {
        RT_DOSE => Some(dose(top, base, n_frames)),
        NUCLEAR_MEDICINE => tomogram(top, base, n_frames),
        _ => None,
    }
}

/// Planes of a dose. GridFrameOffsetVector holds either distances from the first plane along the normal, beginning with 0, or the z of axial planes.
fn dose(top: &Level, base: &FrameHeader, n_frames: usize) -> Result<Vec<FrameHeader>, String> {
    if base.slope.is_none() {
        return Err("an RT dose without DoseGridScaling: its values mean nothing".into());
    }
    if n_frames == 1 {
        return Ok(vec![base.clone()]);
    }
    let offsets: Vec<f64> = top.floats(t::GRID_FRAME_OFFSET_VECTOR).collect();
    if offsets.len() != n_frames {
        return Err(format!("an RT dose of {n_frames} frames, and GridFrameOffsetVector has {} values", offsets.len()));
    }
    let (Some(position), Some(orientation)) = (base.position, base.orientation) else {
        return Err("an RT dose without ImagePositionPatient or ImageOrientationPatient".into());
    };
    let normal = plane(orientation)?.normal;
    let first = offsets[0];
    let is_axial = (normal.0[2].abs() - 1.0).abs() <= SAME_MM;
    let along = match first.abs() <= SAME_MM {
        true => normal,
        false if is_axial && (first - position[2]).abs() <= SAME_MM => Lps([0.0, 0.0, 1.0]),
        false => {
            let z = position[2];
            return Err(format!("GridFrameOffsetVector begins with {first}, which is neither 0 nor the z of axial planes (here {z})"));
        }
    };
    let at = |offset: &f64| FrameHeader { position: Some((Lps(position) + along.scale(offset - first)).0), ..base.clone() };
    Ok(offsets.iter().map(at).collect())
}

/// Slices of a reconstructed tomogram: the first lies where the detector's item says, the others SpacingBetweenSlices apart along the normal, against it where
/// that is negative. SliceVector says which slice a frame is.
fn tomogram(top: &Level, base: &FrameHeader, n_frames: usize) -> Option<Result<Vec<FrameHeader>, String>> {
    let kind = top.texts(t::IMAGE_TYPE).into_iter().nth(2).unwrap_or_default();
    if kind.contains("GATED") {
        let why = format!(
            "gated nuclear medicine (ImageType {kind}): its frames repeat each place over the cycle of the heart, which is not read"
        );
        return Some(Err(why));
    }
    match kind.as_str() {
        "TOMO" => {
            let why = "projections of a tomogram that is not reconstructed (ImageType TOMO): they lie around the patient, not over depth";
            return Some(Err(why.into()));
        }
        "RECON TOMO" => {}
        _ => return None,
    }
    let detector = top.items(t::DETECTOR_INFORMATION_SEQUENCE).next();
    let places = || detector.iter().chain([top]);
    let position: Option<[f64; 3]> = places().find_map(|l| l.vector(t::IMAGE_POSITION_PATIENT));
    let orientation: Option<[f64; 6]> = places().find_map(|l| l.vector(t::IMAGE_ORIENTATION_PATIENT));
    let (Some(position), Some(orientation)) = (position, orientation) else {
        return Some(Err("a tomogram of nuclear medicine without ImagePositionPatient and ImageOrientationPatient of its detector".into()));
    };
    let step = match base.between_mm {
        Some(mm) if mm != 0.0 => mm,
        _ if n_frames == 1 => 0.0,
        _ => return Some(Err("a tomogram of nuclear medicine without SpacingBetweenSlices".into())),
    };
    let numbers: Vec<i64> = top.uss(t::SLICE_VECTOR);
    // A number of frames is four letters of a header: what it may cost is held by what a scanner makes.
    if numbers.is_empty() && n_frames > MOST_SLICES {
        return Some(Err(format!("a tomogram of {n_frames} frames without SliceVector: more than {MOST_SLICES} are not read")));
    }
    if !numbers.is_empty() && numbers.len() != n_frames {
        return Some(Err(format!("{n_frames} frames, and SliceVector has {} values", numbers.len())));
    }
    let normal = match plane(orientation) {
        Ok(plane) => plane.normal,
        Err(why) => return Some(Err(why)),
    };
    let slice = |k: usize| {
        let number = numbers.get(k).map_or(k as f64, |n| (n - 1) as f64);
        let position = Lps(position) + normal.scale(step * number);
        FrameHeader { position: Some(position.0), orientation: Some(orientation), between_mm: Some(step.abs()), ..base.clone() }
    };
    Some(Ok((0..n_frames).map(slice).collect()))
}

/// The mapping of a parametric map: slope, intercept and the unit (UCUM), from the functional group of a frame or of all.
pub fn mapping(group: &Level) -> Option<Result<(f64, f64, String), String>> {
    let item = group.items(t::REAL_WORLD_VALUE_MAPPING_SEQUENCE).next()?;
    let unit = item.items(t::MEASUREMENT_UNITS_CODE_SEQUENCE).next().map(|code| code.text(t::CODE_VALUE)).unwrap_or_default();
    let slope = item.fd(t::REAL_WORLD_VALUE_SLOPE);
    let told = slope.map(|slope| (slope, item.fd(t::REAL_WORLD_VALUE_INTERCEPT).unwrap_or(0.0), unit));
    Some(told.ok_or_else(|| "a parametric map whose values stand in a table (RealWorldValueLUTData): it is not read".to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use dicom::core::VR;
    use dicom::core::value::PrimitiveValue;

    use super::super::made::{self, ints, object, text};
    use super::super::read::Stacked;
    use super::super::tree::Dataset;
    use super::super::write::{put, put_decimals, put_items};
    use super::*;

    const SAGITTAL: [f64; 6] = [0.0, 1.0, 0.0, 0.0, 0.0, -1.0];

    fn the_one(d: Dataset) -> Result<Stacked, String> {
        let mut volumes = made::volumes(vec![d]);
        assert_eq!(volumes.len(), 1);
        volumes.remove(0)
    }

    /// Three planes of 2×3 pixels with values 0, 1, 2 …
    fn dose(offsets: &[f64], orientation: [f64; 6]) -> Dataset {
        let mut d = object(RT_DOSE, "RTDOSE", [2, 3], 3);
        text(&mut d, &[(t::DOSE_UNITS, VR::CS, "GY"), (t::DOSE_GRID_SCALING, VR::DS, "0.25")]);
        put_decimals(&mut d, t::IMAGE_POSITION_PATIENT, &[-10.0, 20.0, 30.0]);
        put_decimals(&mut d, t::IMAGE_ORIENTATION_PATIENT, &orientation);
        put_decimals(&mut d, t::PIXEL_SPACING, &[2.0, 1.0]);
        put_decimals(&mut d, t::GRID_FRAME_OFFSET_VECTOR, offsets);
        ints(&mut d, &[(t::BITS_ALLOCATED, 32), (t::BITS_STORED, 32), (t::HIGH_BIT, 31)]);
        put(&mut d, t::PIXEL_DATA, VR::OW, PrimitiveValue::from((0u32..18).flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()));
        d
    }

    #[test]
    fn a_dose_lies_where_its_offsets_say_and_is_scaled() {
        let axial = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0];
        for (offsets, orientation, last) in [
            (&[0.0, 5.0, 10.0], axial, [-10.0, 20.0, 40.0]),
            (&[30.0, 35.0, 40.0], axial, [-10.0, 20.0, 40.0]),
            // Along the normal, whatever that is: rows to the back, columns to the feet.
            (&[0.0, 5.0, 10.0], SAGITTAL, [-20.0, 20.0, 30.0]),
            // Downwards: the last frame is the first slice.
            (&[0.0, -5.0, -10.0], axial, [-10.0, 20.0, 20.0]),
        ] {
            let v = the_one(dose(offsets, orientation)).unwrap();
            let values = v.pixels.voxels.to_f32();
            let slice = |z: usize| values[z * 6..(z + 1) * 6].to_vec();
            let is_down = offsets[2] < 0.0;
            assert_eq!(slice(if is_down { 0 } else { 2 }), (12..18).map(|v| v as f32 * 0.25).collect::<Vec<_>>());
            let at = v.geometry.to_lps(voxmill_schemas::geometry::Zyx::new(if is_down { 0.0 } else { 2.0 }, 0.0, 0.0));
            assert!((at - Lps(last)).norm() < 1e-6, "{at:?} {last:?}");
            assert_eq!(v.headers[0].unit, "Gy");
        }
        let why = |offsets: &[f64]| the_one(dose(offsets, SAGITTAL)).unwrap_err();
        assert!(why(&[0.0, 5.0]).contains("3 frames, and GridFrameOffsetVector has 2 values"));
        assert!(why(&[30.0, 35.0, 40.0]).contains("neither 0 nor the z of axial planes"));
    }

    fn nuclear(kind: &str, between: f64) -> Dataset {
        let mut d = object(NUCLEAR_MEDICINE, "NM", [2, 3], 3);
        put(&mut d, t::IMAGE_TYPE, VR::CS, PrimitiveValue::Strs(["ORIGINAL", "PRIMARY", kind].map(String::from).into_iter().collect()));
        put_decimals(&mut d, t::PIXEL_SPACING, &[2.0, 1.0]);
        put_decimals(&mut d, t::SPACING_BETWEEN_SLICES, &[between]);
        let mut detector = super::super::write::empty();
        put_decimals(&mut detector, t::IMAGE_POSITION_PATIENT, &[-10.0, 20.0, 30.0]);
        put_decimals(&mut detector, t::IMAGE_ORIENTATION_PATIENT, &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
        put_items(&mut d, t::DETECTOR_INFORMATION_SEQUENCE, vec![detector]);
        put(&mut d, t::PIXEL_DATA, VR::OW, PrimitiveValue::from((0u16..18).flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()));
        d
    }

    #[test]
    fn a_reconstructed_tomogram_is_a_volume_and_projections_and_gates_are_none() {
        let up = the_one(nuclear("RECON TOMO", 4.0)).unwrap();
        assert_eq!((up.geometry.origin, up.geometry.axes_mm.z), (Lps([-10.0, 20.0, 30.0]), Lps([0.0, 0.0, 4.0])));
        assert_eq!(up.pixels.voxels.to_f32()[12], 12.0);
        let down = the_one(nuclear("RECON TOMO", -4.0)).unwrap();
        assert_eq!((down.geometry.origin, down.geometry.axes_mm.z), (Lps([-10.0, 20.0, 22.0]), Lps([0.0, 0.0, 4.0])));
        assert_eq!(down.pixels.voxels.to_f32()[0], 12.0);
        assert!(the_one(nuclear("TOMO", 4.0)).unwrap_err().contains("projections of a tomogram that is not reconstructed"));
        for gated in ["GATED TOMO", "RECON GATED TOMO", "GATED"] {
            assert!(the_one(nuclear(gated, 4.0)).unwrap_err().contains("gated nuclear medicine"));
        }
        let mut sorted = nuclear("RECON TOMO", 4.0);
        put(&mut sorted, t::SLICE_VECTOR, VR::US, PrimitiveValue::U16([3, 2, 1].into_iter().collect()));
        assert_eq!(the_one(sorted).unwrap().pixels.voxels.to_f32()[0], 12.0);
    }

    #[test]
    fn a_parametric_map_has_real_values_in_their_unit() {
        let mut d = object(PARAMETRIC_MAP, "MR", [2, 3], 2);
        let mut units = super::super::write::empty();
        text(&mut units, &[(t::CODE_VALUE, VR::SH, "um2/s"), (t::CODING_SCHEME_DESIGNATOR, VR::SH, "UCUM")]);
        let frame = |z: f64, slope: f64| {
            let of = |fill: &dyn Fn(&mut Dataset)| {
                let mut item = super::super::write::empty();
                fill(&mut item);
                item
            };
            of(&|g| {
                put_items(g, t::PLANE_POSITION_SEQUENCE, vec![of(&|i| put_decimals(i, t::IMAGE_POSITION_PATIENT, &[0.0, 0.0, z]))]);
                let mapping = of(&|i| {
                    put(i, t::REAL_WORLD_VALUE_SLOPE, VR::FD, PrimitiveValue::F64([slope].into_iter().collect()));
                    put(i, t::REAL_WORLD_VALUE_INTERCEPT, VR::FD, PrimitiveValue::F64([0.5].into_iter().collect()));
                    put_items(i, t::MEASUREMENT_UNITS_CODE_SEQUENCE, vec![units.clone()]);
                });
                put_items(g, t::REAL_WORLD_VALUE_MAPPING_SEQUENCE, vec![mapping]);
                let plane = of(&|i| put_decimals(i, t::IMAGE_ORIENTATION_PATIENT, &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]));
                put_items(g, t::PLANE_ORIENTATION_SEQUENCE, vec![plane]);
                put_items(g, t::PIXEL_MEASURES_SEQUENCE, vec![of(&|i| put_decimals(i, t::PIXEL_SPACING, &[1.0, 1.0]))]);
            })
        };
        put_items(&mut d, t::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, vec![frame(3.0, 2.0), frame(6.0, 4.0)]);
        let values: Vec<f32> = (0..12).map(|v| v as f32 / 8.0).collect();
        let stored = |d: &Dataset, tag, vr, value: PrimitiveValue, bits: u16| {
            let mut d = d.clone();
            ints(&mut d, &[(t::BITS_ALLOCATED, bits)]);
            put(&mut d, tag, vr, value);
            d
        };
        let double = PrimitiveValue::F64(values.iter().map(|v| *v as f64).collect());
        let float = stored(&d, t::FLOAT_PIXEL_DATA, VR::OF, PrimitiveValue::F32(values.iter().copied().collect()), 32);
        for d in [float, stored(&d, t::DOUBLE_FLOAT_PIXEL_DATA, VR::OD, double, 64)] {
            let v = the_one(d).unwrap();
            let wanted: Vec<f32> = values.iter().enumerate().map(|(i, v)| v * if i < 6 { 2.0 } else { 4.0 } + 0.5).collect();
            assert_eq!(v.pixels.voxels.to_f32().to_vec(), wanted);
            assert_eq!((v.headers[0].unit.as_str(), v.geometry.axes_mm.z), ("um2/s", Lps([0.0, 0.0, 3.0])));
        }
    }
}
