//! Whole series as they stand in archives, made of small files: what they become, and why some become nothing.

use dicom::core::VR;
use dicom::core::value::PrimitiveValue;
use dicom::dictionary_std::tags as t;
use voxmill_schemas::geometry::{Lps, Zyx};

use super::made::{self, ints, object, text, volumes, volumes_with};
use super::order::{Gaps, How};
use super::read::Stacked;
use super::suv::Suv;
use super::tree::Dataset;
use super::write::{empty, put, put_decimals, put_items};

const CT: &str = "1.2.840.10008.5.1.4.1.1.2";
const ENHANCED_CT: &str = "1.2.840.10008.5.1.4.1.1.2.1";
const MR: &str = "1.2.840.10008.5.1.4.1.1.4";
const PET: &str = "1.2.840.10008.5.1.4.1.1.128";
const AXIAL: [f64; 6] = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0];

/// Six pixels of a picture that no other seed gives.
fn picture(seed: u16) -> Vec<u8> {
    (0..6).flat_map(|v| (seed * 10 + v).to_le_bytes()).collect()
}

/// Slice `n` of a series: 2×3 pixels of the picture `n`, 0.7 mm from row to row and 0.5 from column to column.
fn slice(sop_class: &str, n: u16, position: [f64; 3], orientation: [f64; 6]) -> Dataset {
    let mut d = object(sop_class, "CT", [2, 3], 1);
    put(&mut d, t::SOP_INSTANCE_UID, VR::UI, format!("1.2.3.9.{n}"));
    put(&mut d, t::INSTANCE_NUMBER, VR::IS, n.to_string());
    put_decimals(&mut d, t::IMAGE_POSITION_PATIENT, &position);
    put_decimals(&mut d, t::IMAGE_ORIENTATION_PATIENT, &orientation);
    put_decimals(&mut d, t::PIXEL_SPACING, &[0.7, 0.5]);
    put_decimals(&mut d, t::SLICE_THICKNESS, &[9.0]);
    put(&mut d, t::PIXEL_DATA, VR::OW, PrimitiveValue::from(picture(n)));
    d
}

fn axial(zs: &[f64]) -> Vec<Dataset> {
    zs.iter().zip(1..).map(|(z, n)| slice(CT, n, [0.0, 0.0, *z], AXIAL)).collect()
}

/// The seeds of the pictures, slice by slice.
fn seeds(v: &Stacked) -> Vec<f32> {
    v.pixels.voxels.to_f32().chunks(6).map(|s| s[0] / 10.0).collect()
}

fn the_one(objects: Vec<Dataset>, how: How) -> Result<Stacked, String> {
    let mut all = volumes_with(objects, how);
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn item(fill: impl FnOnce(&mut Dataset)) -> Dataset {
    let mut d = empty();
    fill(&mut d);
    d
}

/// A multi-frame file of the pictures `frames`, each with its position.
fn enhanced(uid: &str, frames: &[(u16, [f64; 3])]) -> Dataset {
    let mut d = object(ENHANCED_CT, "CT", [2, 3], frames.len() as u32);
    put(&mut d, t::SOP_INSTANCE_UID, VR::UI, uid);
    let shared = item(|g| {
        put_items(g, t::PIXEL_MEASURES_SEQUENCE, vec![item(|i| put_decimals(i, t::PIXEL_SPACING, &[0.7, 0.5]))]);
        put_items(g, t::PLANE_ORIENTATION_SEQUENCE, vec![item(|i| put_decimals(i, t::IMAGE_ORIENTATION_PATIENT, &AXIAL))]);
    });
    put_items(&mut d, t::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, vec![shared]);
    let place = |(_, at): &(u16, [f64; 3])| {
        item(|g| put_items(g, t::PLANE_POSITION_SEQUENCE, vec![item(|i| put_decimals(i, t::IMAGE_POSITION_PATIENT, at))]))
    };
    put_items(&mut d, t::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, frames.iter().map(place).collect());
    put(&mut d, t::PIXEL_DATA, VR::OW, PrimitiveValue::from(frames.iter().flat_map(|(n, _)| picture(*n)).collect::<Vec<u8>>()));
    d
}

#[test]
fn a_tilted_gantry_is_kept_as_shear() {
    let shift = 18.5f64.to_radians().tan();
    let tilted = |zs: &[f64]| zs.iter().zip(1..).map(|(z, n)| slice(CT, n, [0.0, z * shift, *z], AXIAL)).collect::<Vec<_>>();
    let v = the_one(tilted(&[0.0, 2.5, 5.0, 7.5]), How::default()).unwrap();
    assert!((v.geometry.axes_mm.z - Lps([0.0, 2.5 * shift, 2.5])).norm() < 1e-4, "{:?}", v.geometry);
    assert_eq!(seeds(&v), [1.0, 2.0, 3.0, 4.0]);
    // Tilted and of changing spacing: refused by its millimetres, or kept where each slice lies along the tilted line.
    let zs = [0.0, 1.08, 2.16, 9.16, 16.16];
    let why = the_one(tilted(&zs), How::default()).unwrap_err();
    assert!(why.contains("7.000 mm between slices 3 and 4"), "{why}");
    let v = the_one(tilted(&zs), How { gaps: Gaps::Keep, ..How::default() }).unwrap();
    let along = (1.0 + shift * shift).sqrt();
    assert!(v.z_positions_mm.iter().zip(zs).all(|(a, z)| (a - z * along).abs() < 1e-3), "{:?}", v.z_positions_mm);
    assert_eq!(seeds(&v), [1.0, 2.0, 3.0, 4.0, 5.0]);
}

#[test]
fn a_missing_slice_is_named_or_made_of_its_neighbours() {
    let zs = [0.0, 2.0, 4.0, 8.0, 10.0];
    let why = the_one(axial(&zs), How::default()).unwrap_err();
    assert!(why.contains("1 missing at 6.000 mm"), "{why}");
    let v = the_one(axial(&zs), How { gaps: Gaps::Fill, ..How::default() }).unwrap();
    assert_eq!((seeds(&v), v.made_slices), (vec![1.0, 2.0, 3.0, 3.5, 4.0, 5.0], vec![3]));
}

#[test]
fn slices_lie_where_they_say_however_the_patient_lies() {
    // Feet first and numbered downwards; on the side; left-handed rows and columns.
    for orientation in [AXIAL, [-1.0, 0.0, 0.0, 0.0, -1.0, 0.0], [0.0, -1.0, 0.0, 1.0, 0.0, 0.0], [0.0, -1.0, 0.0, -1.0, 0.0, 0.0]] {
        let at = |n: u16| [5.0, 3.0, -2.0 * n as f64];
        let v = the_one((1..6).map(|n| slice(CT, n, at(n), orientation)).collect(), How::default()).unwrap();
        let voxels = v.pixels.voxels.to_f32();
        for (z, seed) in seeds(&v).into_iter().enumerate() {
            let first = Lps(at(seed as u16));
            // The last voxel of the slice: one row and two columns on.
            let [row, column] = [&orientation[..3], &orientation[3..]].map(|v| Lps([v[0], v[1], v[2]]));
            let last = first + row.scale(2.0 * 0.5) + column.scale(0.7);
            assert!((v.geometry.to_lps(Zyx::new(z as f64, 1.0, 2.0)) - last).norm() < 1e-6);
            assert_eq!(voxels[z * 6 + 5], seed * 10.0 + 5.0);
        }
    }
}

#[test]
fn numbers_against_positions_change_nothing() {
    let up = the_one(axial(&[0.0, 2.0, 4.0, 6.0]), How::default()).unwrap();
    let mut down = axial(&[0.0, 2.0, 4.0, 6.0]);
    for (d, n) in down.iter_mut().zip([4, 1, 3, 2]) {
        put(d, t::INSTANCE_NUMBER, VR::IS, n.to_string());
    }
    down.reverse();
    let down = the_one(down, How::default()).unwrap();
    assert_eq!((&up.geometry, &up.pixels.voxels), (&down.geometry, &down.pixels.voxels));
}

#[test]
fn one_picture_twice_is_left_out_once_and_two_pictures_at_one_place_are_no_volume() {
    let mut twice = axial(&[0.0, 2.0, 4.0, 6.0]);
    let copy = |n: u16, seed: u16| {
        let mut d = slice(CT, n, [0.0, 0.0, 4.0], AXIAL);
        put(&mut d, t::PIXEL_DATA, VR::OW, PrimitiveValue::from(picture(seed)));
        d
    };
    let mut other = twice.clone();
    twice.push(copy(9, 3));
    let v = the_one(twice, How::default()).unwrap();
    assert_eq!(seeds(&v), [1.0, 2.0, 3.0, 4.0]);
    assert!(v.notes.iter().any(|n| n.contains("1 duplicate slice left out")), "{:?}", v.notes);
    other.push(copy(9, 7));
    let told: Vec<String> = volumes(other).into_iter().filter_map(Result::err).collect();
    assert!(told.iter().any(|why| why.contains("both lie at [0.000, 0.000, 4.000] mm, their pixels differ")), "{told:?}");
}

#[test]
fn classic_and_enhanced_exports_are_one_volume() {
    let at = |n: u16| [1.5, 2.25, 3.0 + 2.5 * n as f64];
    let classic = the_one((1..7).map(|n| slice(CT, n, at(n), AXIAL)).collect(), How::default()).unwrap();
    let frames: Vec<(u16, [f64; 3])> = [4, 2, 6, 1, 3, 5].map(|n| (n, at(n))).into();
    let whole = the_one(vec![enhanced("1.2.3.8", &frames)], How::default()).unwrap();
    assert_eq!((&classic.geometry, &classic.pixels.voxels), (&whole.geometry, &whole.pixels.voxels));
}

#[test]
fn parts_of_a_concatenation_are_joined_and_a_part_that_lacks_is_named() {
    let part = |k: u16| {
        let frames: Vec<(u16, [f64; 3])> = (1..3).map(|i| (2 * k + i, [0.0, 0.0, 2.0 * (2 * k + i) as f64])).collect();
        let mut d = enhanced(&format!("1.2.3.8.{k}"), &frames);
        text(&mut d, &[(t::CONCATENATION_UID, VR::UI, "7.7")]);
        ints(&mut d, &[(t::IN_CONCATENATION_NUMBER, k + 1), (t::IN_CONCATENATION_TOTAL_NUMBER, 3)]);
        put(&mut d, t::CONCATENATION_FRAME_OFFSET_NUMBER, VR::UL, PrimitiveValue::from(2 * k as u32));
        d
    };
    let v = the_one([2, 0, 1].map(part).into(), How::default()).unwrap();
    assert_eq!(seeds(&v), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let why = the_one([0, 2].map(part).into(), How::default()).unwrap_err();
    assert!(why.contains("part 2 of 3 of a concatenation of files is not in the archive"), "{why}");
}

#[test]
fn one_series_uid_in_two_studies_is_two_series() {
    let mut all = axial(&[0.0, 2.0, 4.0]);
    for (z, n) in [0.0, 2.0, 4.0].into_iter().zip(11..) {
        let mut d = slice(CT, n, [0.0, 0.0, z], AXIAL);
        text(&mut d, &[(t::STUDY_INSTANCE_UID, VR::UI, "1.2.99"), (t::PATIENT_ID, VR::LO, "Q")]);
        all.push(d);
    }
    let dir = made::archive(all);
    let made = made::index(dir.path(), &super::names::Names::Own);
    assert_eq!(made.series.len(), 2);
    assert_ne!(made.series[0].series, made.series[1].series);
    let mut whose: Vec<_> = made.series.iter().map(|s| (s.patient.as_str(), s.study.as_str(), s.n_instances)).collect();
    whose.sort();
    assert_eq!(whose, [("P", "1.2.3", 3), ("Q", "1.2.99", 3)]);
    let mut found: Vec<Vec<f32>> = made::volumes_in(dir.path(), How::default()).into_iter().map(|v| seeds(&v.unwrap())).collect();
    found.sort_by(|a, b| a[0].total_cmp(&b[0]));
    assert_eq!(found, [[1.0, 2.0, 3.0], [11.0, 12.0, 13.0]]);
}

#[test]
fn a_mosaic_that_does_not_say_its_tiles_is_refused_by_name() {
    let mut d = slice(MR, 1, [0.0; 3], AXIAL);
    put(
        &mut d,
        t::IMAGE_TYPE,
        VR::CS,
        PrimitiveValue::Strs(["ORIGINAL", "PRIMARY", "M", "MOSAIC"].map(String::from).into_iter().collect()),
    );
    let why = the_one(vec![d], How { keeps_single: true, ..How::default() }).unwrap_err();
    assert!(why.contains("a Siemens mosaic") && why.contains("NumberOfImagesInMosaic"), "{why}");
}

#[test]
fn every_frame_of_a_dynamic_pet_is_brought_to_the_time_of_the_series() {
    // Injected at 9:00, series at 10:00, the second frame ten minutes on; half-life an hour.
    let frame = |time: u16, z: u16| {
        let n = time * 3 + z + 1;
        let mut d = slice(PET, n, [0.0, 0.0, z as f64], AXIAL);
        put(&mut d, t::CORRECTED_IMAGE, VR::CS, PrimitiveValue::Strs(["DECY", "ATTN"].map(String::from).into_iter().collect()));
        text(
            &mut d,
            &[
                (t::MODALITY, VR::CS, "PT"),
                (t::UNITS, VR::CS, "BQML"),
                (t::DECAY_CORRECTION, VR::CS, "START"),
                (t::PATIENT_WEIGHT, VR::DS, "70"),
                (t::SERIES_DATE, VR::DA, "20200101"),
                (t::SERIES_TIME, VR::TM, "100000"),
                (t::ACQUISITION_DATE, VR::DA, "20200101"),
                (t::ACQUISITION_TIME, VR::TM, if time == 0 { "100000" } else { "101000" }),
                (t::RESCALE_SLOPE, VR::DS, "2"),
                (t::RESCALE_INTERCEPT, VR::DS, "0"),
            ],
        );
        let tracer = item(|i| {
            text(
                i,
                &[
                    (t::RADIONUCLIDE_TOTAL_DOSE, VR::DS, "1000000"),
                    (t::RADIONUCLIDE_HALF_LIFE, VR::DS, "3600"),
                    (t::RADIOPHARMACEUTICAL_START_TIME, VR::TM, "090000"),
                ],
            )
        });
        put_items(&mut d, t::RADIOPHARMACEUTICAL_INFORMATION_SEQUENCE, vec![tracer]);
        d
    };
    let all: Vec<Dataset> = [0, 1].into_iter().flat_map(|time| [0, 1, 2].map(|z| frame(time, z))).collect();
    let dir = made::archive(all);
    let found = made::volumes_by(dir.path(), How::default(), Some(Suv::BodyWeight));
    assert_eq!(found.len(), 2);
    // Half of the dose is left after an hour.
    let factor = 70_000.0 / 500_000.0;
    for (time, v) in found.into_iter().enumerate() {
        let v = v.unwrap();
        let stored = |i: usize| ((time * 3 + i / 6 + 1) * 10 + i % 6) as f64;
        for (i, got) in v.pixels.voxels.to_f32().iter().enumerate() {
            let wanted = stored(i) * 2.0 * factor;
            assert!((*got as f64 - wanted).abs() <= 1e-6 * wanted, "{got} {wanted}");
        }
    }
}

#[test]
fn codestreams_that_contradict_their_header_are_named() {
    // SOF3 of another size, of three components.
    let jpeg = |rows: u8, columns: u8, components: u8| {
        let mut s = vec![0xff, 0xd8, 0xff, 0xc3, 0, 8 + 3 * components, 16, 0, rows, 0, columns, components];
        (0..components).for_each(|c| s.extend([c + 1, 0x11, 0]));
        s.extend([0xff, 0xd9]);
        s
    };
    for (stream, told) in [
        (jpeg(4, 3, 1), "the codestream holds 4×3 pixels of 1 components, the header says 2×3 of 1"),
        (jpeg(2, 3, 3), "the codestream holds 2×3 pixels of 3 components, the header says 2×3 of 1"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut d = slice(CT, 1, [0.0; 3], AXIAL);
        d.remove_element(t::PIXEL_DATA);
        std::fs::write(dir.path().join("a"), made::encapsulated(d, "1.2.840.10008.1.2.4.70", &[vec![stream]])).unwrap();
        let mut found = made::volumes_in(dir.path(), How { keeps_single: true, ..How::default() });
        let why = found.remove(0).unwrap_err();
        assert!(why.contains(told), "{why}");
    }
}

#[test]
fn single_bits_are_one_stream_over_all_frames() {
    // Three frames of 6 bits, of which the second begins inside the first byte.
    let bits = [1, 0, 0, 1, 1, 1, 0, 1, 0, 0, 1, 1, 1, 1, 0, 0, 1, 0];
    let mut d = enhanced("1.2.3.8", &[1, 2, 3].map(|n| (n, [0.0, 0.0, n as f64])));
    ints(&mut d, &[(t::BITS_ALLOCATED, 1), (t::BITS_STORED, 1), (t::HIGH_BIT, 0)]);
    let packed: Vec<u8> = bits.chunks(8).map(|b| b.iter().rev().fold(0, |byte, bit| byte << 1 | bit)).collect();
    put(&mut d, t::PIXEL_DATA, VR::OB, PrimitiveValue::from([packed, vec![0]].concat()));
    let v = the_one(vec![d.clone()], How::default()).unwrap();
    assert_eq!(v.pixels.voxels, crate::volume::Voxels::U8(bits.to_vec()));
    put(&mut d, t::RESCALE_SLOPE, VR::DS, "2");
    put(&mut d, t::RESCALE_INTERCEPT, VR::DS, "0");
    let v = the_one(vec![d], How::default()).unwrap();
    assert_eq!(v.pixels.voxels.to_f32().to_vec(), bits.map(|b| 2.0 * b as f32));
}

#[test]
fn five_thousand_slices_are_one_volume() {
    let n = 5000;
    let dir = tempfile::tempdir().unwrap();
    let file = |k: u32| {
        let mut d = slice(CT, 1, [0.0, 0.0, 0.5 * k as f64], AXIAL);
        put(&mut d, t::SOP_INSTANCE_UID, VR::UI, format!("1.2.3.9.{k}"));
        put(&mut d, t::PIXEL_DATA, VR::OW, PrimitiveValue::from(picture((k % 5000) as u16)));
        // In no order of names.
        let path = dir.path().join(format!("{:04}", k * 7919 % n));
        std::fs::write(path, super::write::file(d, super::write::Encoding::ExplicitLittle).unwrap()).unwrap();
    };
    (0..n).for_each(file);
    let v = made::volumes_in(dir.path(), How::default()).remove(0).unwrap();
    assert_eq!(v.geometry.size, Zyx::new(5000, 2, 3));
    assert!((v.geometry.axes_mm.z - Lps([0.0, 0.0, 0.5])).norm() < 1e-9);
    assert!(seeds(&v).iter().enumerate().all(|(k, seed)| *seed == k as f32));
}

#[test]
fn a_name_that_only_images_tell_is_found_in_the_names_of_labels() {
    let names = super::names::Names::keyed(b"k");
    let image = |n: u16, patient: &str, study: &str| {
        let mut d = slice(CT, n, [0.0, 0.0, 2.0 * n as f64], AXIAL);
        put(&mut d, t::SERIES_INSTANCE_UID, VR::UI, format!("{study}.4"));
        text(
            &mut d,
            &[(t::PATIENT_NAME, VR::PN, patient), (t::PATIENT_BIRTH_DATE, VR::DA, "19601231"), (t::STUDY_INSTANCE_UID, VR::UI, study)],
        );
        d
    };
    let labels = ["Femur", "GTV Lindemann", "roi of jane", "label-12345678", "born 31.12.1960", "Brown"];
    // A structure set of a planning system that knows the patient by number alone.
    let rois = |labels: &[&str]| {
        let mut d = empty();
        text(
            &mut d,
            &[
                (t::SOP_CLASS_UID, VR::UI, "1.2.840.10008.5.1.4.1.1.481.3"),
                (t::SOP_INSTANCE_UID, VR::UI, "1.2.3.77"),
                (t::STUDY_INSTANCE_UID, VR::UI, "1.2.3"),
                (t::SERIES_INSTANCE_UID, VR::UI, "1.2.3.78"),
                (t::MODALITY, VR::CS, "RTSTRUCT"),
                (t::PATIENT_ID, VR::LO, "12345678"),
            ],
        );
        let roi = |label: &&str| item(|i| text(i, &[(t::ROI_NAME, VR::LO, *label)]));
        put_items(&mut d, t::STRUCTURE_SET_ROI_SEQUENCE, labels.iter().map(roi).collect());
        d
    };
    let all =
        vec![image(1, "Lindemann^Jane", "1.2.3"), image(2, "Lindemann^Jane", "1.2.3"), image(3, "Brown^Joe", "1.2.99"), rois(&labels)];
    let dir = made::archive(all);
    let made = made::index(dir.path(), &names);
    let row = made.series.iter().find(|s| s.kind == "rtstruct").unwrap();
    let is_hidden: Vec<bool> = row.labels.iter().zip(labels).map(|(got, own)| got != own && got.starts_with("label-")).collect();
    // Brown is the patient of another study, of another PatientID.
    assert_eq!((is_hidden, made.hidden_labels), (vec![false, true, true, true, true, false], 4), "{:?}", row.labels);
    let own = made::index(dir.path(), &super::names::Names::Own);
    assert_eq!(own.series.iter().find(|s| s.kind == "rtstruct").unwrap().labels, labels);
}
