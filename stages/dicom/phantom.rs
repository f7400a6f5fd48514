//! A seeded CT archive to try things on: knees of bone, marrow, muscle, fat, skin and air with noise, femur and tibia labelled as DICOM SEG,
//! one folder a patient. Only additions, products and roots are used, so that equal arguments give equal bytes on any machine.

use std::path::{Path, PathBuf};

use dicom::core::VR;
use dicom::core::value::PrimitiveValue;
use dicom::dictionary_std::{tags, uids};
use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::zarr_attrs;

use super::knee::{Dice, FEMUR, Knee, TIBIA};
use super::place::{Plane, Slice};
use super::seg::Code;
use super::source::Series;
use super::tree::Dataset;
use super::write::{self, Encoding, put, put_decimals, put_empty};
use super::write_seg::{SegOut, SegmentOut, seg};
use crate::error::Error;

/// The edge of the field of view, mm.
const FIELD_MM: f64 = 160.0;
/// The part of the leg that is scanned by default, mm.
const LENGTH_MM: f64 = 144.0;

#[derive(Clone, Debug, PartialEq)]
pub struct Phantom {
    pub patients: u32,
    pub slices: u32,
    /// Rows and columns.
    pub size: u32,
    /// `None`: chosen so that the slices span the knee.
    pub slice_spacing_mm: Option<f64>,
    pub seed: u64,
}

/// Writes `OUT/knee-0001/CT/0001.dcm …` and `OUT/knee-0001/SEG.dcm` for each patient, one patient in memory at a time, beside `out` and
/// renamed at the end. `out` must not exist or be empty. `progress` is told the number of finished patients.
pub fn write(out: &Path, p: &Phantom, progress: &mut dyn FnMut(u32)) -> Result<(), Error> {
    if p.slice_spacing_mm.is_some_and(|s| !(s.is_finite() && s > 0.0)) || p.slices == 0 || p.size < 2 || p.size > u16::MAX as u32 {
        let expected = "at least one slice of 2 to 65,535 pixels, and a spacing above 0 mm".to_string();
        return Err(Error::Input { what: "phantom".into(), found: format!("{p:?}"), expected });
    }
    match std::fs::read_dir(out) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                let expected = "a folder that does not exist yet, or is empty".to_string();
                return Err(Error::Input { what: out.display().to_string(), found: "a folder with something in it".into(), expected });
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io("open folder", out)(e)),
    }
    let name = out.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let beside = out.with_file_name(format!(".{name}.part"));
    let _ = std::fs::remove_dir_all(&beside);
    let written = (0..p.patients).try_for_each(|i| {
        patient(&beside, p, i)?;
        progress(i + 1);
        Ok(())
    });
    let done = written.and_then(|()| {
        std::fs::create_dir_all(&beside).map_err(Error::io("make folder", &beside))?;
        let _ = std::fs::remove_dir(out);
        std::fs::rename(&beside, out).map_err(Error::io("rename to", out))
    });
    if done.is_err() {
        let _ = std::fs::remove_dir_all(&beside);
    }
    done
}

fn patient(root: &Path, p: &Phantom, index: u32) -> Result<(), Error> {
    let number = index + 1;
    let folder = root.join(format!("knee-{number:04}"));
    let ct = folder.join("CT");
    std::fs::create_dir_all(&ct).map_err(Error::io("make folder", &ct))?;
    let save = |path: PathBuf, bytes: Vec<u8>| std::fs::write(&path, bytes).map_err(Error::io("write", &path));
    let knee = Knee::draw(p.seed, index);
    let scan = Scan::of(p, &knee);
    let ids = Ids::of(p, index);
    let size = Zyx::new(p.slices as usize, p.size as usize, p.size as usize);
    let mut labels = Vec::with_capacity(size.count());
    let (mut slices, mut first) = (Vec::with_capacity(size.z), None);
    for z in 0..size.z {
        let mut noise = Dice::of(p.seed, index, z as u32 + 1);
        let mut stored = Vec::with_capacity(size.y * size.x * 2);
        for y in 0..size.y {
            for x in 0..size.x {
                let (hu, label) = knee.at(scan.point(z, y, x));
                let value = (hu + knee.noise_hu * noise.normal() + 1024.0 + 0.5).floor().clamp(0.0, 4095.0) as u16;
                stored.extend(value.to_le_bytes());
                labels.push(label);
            }
        }
        let d = slice(&scan, &ids, z, p.size as u16, stored);
        let plane = Plane::new(scan.position(z), [1., 0., 0., 0., 1., 0.], [scan.pixel_mm; 2]).expect("an axial plane");
        let sop_instance = ids.instance(z);
        let sop_class = uids::CT_IMAGE_STORAGE.to_string();
        slices.push(Slice { sop_class, sop_instance, frame: None, plane, rows: size.y, columns: size.x, thickness_mm: Some(scan.step_mm) });
        if first.is_none() {
            let mut header = d.clone();
            header.remove_element(tags::PIXEL_DATA);
            first = Some(header);
        }
        save(ct.join(format!("{:04}.dcm", z + 1)), write::file(d, Encoding::ExplicitLittle)?)?;
    }
    let series = Series { uid: ids.series.clone(), frame_of_reference: None, slices, first: first.expect("there is at least one slice") };
    let code = |value: &str, meaning: &str| Code { value: value.into(), scheme: "SCT".into(), meaning: meaning.into() };
    let segment = |id, label: &str, kind| SegmentOut {
        id,
        label: label.into(),
        category: code("91723000", "Anatomical Structure"),
        kind,
        rgb: zarr_attrs::color(id),
    };
    let segments = [segment(FEMUR, "Femur", code("71341001", "Femur")), segment(TIBIA, "Tibia", code("12611008", "Tibia"))];
    let out = SegOut {
        series: &series,
        slices: &series.slices.iter().collect::<Vec<_>>(),
        size,
        labels: &labels,
        segments: &segments,
        is_labelmap: false,
        is_manual: true,
        algorithm_name: "",
        series_description: "bones of the phantom",
        encoding: Encoding::ExplicitLittle,
    };
    save(folder.join("SEG.dcm"), seg(&out)?)
}

/// How the leg is scanned.
struct Scan {
    pixel_mm: f64,
    step_mm: f64,
    n_slices: usize,
}

impl Scan {
    fn of(p: &Phantom, knee: &Knee) -> Scan {
        let step_mm = p.slice_spacing_mm.unwrap_or((LENGTH_MM * knee.scale / p.slices as f64 * 100.0).round() / 100.0);
        Scan { pixel_mm: (FIELD_MM / p.size as f64 * 1000.0).round() / 1000.0, step_mm, n_slices: p.slices as usize }
    }
    /// Position of a slice in the patient; the joint lies at z = 0.
    fn position(&self, z: usize) -> [f64; 3] {
        let corner = -FIELD_MM / 2.0 + self.pixel_mm / 2.0;
        let bottom = -self.step_mm * (self.n_slices as f64 - 1.0) / 2.0;
        [corner, corner, ((bottom + z as f64 * self.step_mm) * 1000.0).round() / 1000.0]
    }
    fn point(&self, z: usize, y: usize, x: usize) -> [f64; 3] {
        let [x0, y0, z0] = self.position(z);
        [x0 + x as f64 * self.pixel_mm, y0 + y as f64 * self.pixel_mm, z0]
    }
}

struct Ids {
    number: u32,
    study: String,
    series: String,
    frame: String,
    seed: u64,
}

impl Ids {
    fn of(p: &Phantom, index: u32) -> Ids {
        let arguments = format!("{} {} {:?} {}", p.slices, p.size, p.slice_spacing_mm, p.seed);
        let id = |what: &str| write::uid(&[b"phantom", what.as_bytes(), arguments.as_bytes(), &index.to_le_bytes()]);
        Ids { number: index + 1, study: id("study"), series: id("series"), frame: id("frame"), seed: p.seed }
    }
    fn instance(&self, z: usize) -> String {
        write::uid(&[b"slice", self.series.as_bytes(), &z.to_le_bytes()])
    }
}

/// One CT image, PS3.3 A.3.
fn slice(scan: &Scan, ids: &Ids, z: usize, n: u16, stored: Vec<u8>) -> Dataset {
    let mut d = write::empty();
    let original = ["ORIGINAL".to_string(), "PRIMARY".to_string(), "AXIAL".to_string()];
    put(&mut d, tags::IMAGE_TYPE, VR::CS, PrimitiveValue::Strs(original.into_iter().collect()));
    put(&mut d, tags::SOP_CLASS_UID, VR::UI, uids::CT_IMAGE_STORAGE);
    put(&mut d, tags::SOP_INSTANCE_UID, VR::UI, ids.instance(z));
    for (tag, vr, value) in [
        (tags::STUDY_DATE, VR::DA, "20200101"),
        (tags::STUDY_TIME, VR::TM, "120000"),
        (tags::MODALITY, VR::CS, "CT"),
        (tags::MANUFACTURER, VR::LO, "Voxmill"),
        (tags::MANUFACTURER_MODEL_NAME, VR::LO, "phantom"),
        (tags::STUDY_DESCRIPTION, VR::LO, "knee phantom"),
        (tags::SERIES_DESCRIPTION, VR::LO, "CT knee"),
        (tags::BODY_PART_EXAMINED, VR::CS, "KNEE"),
        (tags::PATIENT_POSITION, VR::CS, "HFS"),
        (tags::KVP, VR::DS, "120"),
        (tags::STUDY_ID, VR::SH, "1"),
        (tags::SERIES_NUMBER, VR::IS, "1"),
        (tags::LATERALITY, VR::CS, if ids.number.is_multiple_of(2) { "L" } else { "R" }),
        (tags::RESCALE_INTERCEPT, VR::DS, "-1024"),
        (tags::RESCALE_SLOPE, VR::DS, "1"),
        (tags::RESCALE_TYPE, VR::LO, "HU"),
        (tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2"),
    ] {
        put(&mut d, tag, vr, value);
    }
    for (tag, vr) in [
        (tags::ACCESSION_NUMBER, VR::SH),
        (tags::REFERRING_PHYSICIAN_NAME, VR::PN),
        (tags::PATIENT_BIRTH_DATE, VR::DA),
        (tags::PATIENT_SEX, VR::CS),
        (tags::ACQUISITION_NUMBER, VR::IS),
        (tags::POSITION_REFERENCE_INDICATOR, VR::LO),
    ] {
        put_empty(&mut d, tag, vr);
    }
    put(&mut d, tags::PATIENT_NAME, VR::PN, format!("Phantom^Knee {}", ids.number));
    put(&mut d, tags::PATIENT_ID, VR::LO, format!("PHANTOM-{}-{:04}", ids.seed, ids.number));
    put(&mut d, tags::STUDY_INSTANCE_UID, VR::UI, ids.study.as_str());
    put(&mut d, tags::SERIES_INSTANCE_UID, VR::UI, ids.series.as_str());
    put(&mut d, tags::FRAME_OF_REFERENCE_UID, VR::UI, ids.frame.as_str());
    put(&mut d, tags::INSTANCE_NUMBER, VR::IS, (z + 1).to_string());
    put_decimals(&mut d, tags::IMAGE_POSITION_PATIENT, &scan.position(z));
    put_decimals(&mut d, tags::IMAGE_ORIENTATION_PATIENT, &[1., 0., 0., 0., 1., 0.]);
    put_decimals(&mut d, tags::PIXEL_SPACING, &[scan.pixel_mm, scan.pixel_mm]);
    put_decimals(&mut d, tags::SLICE_THICKNESS, &[scan.step_mm]);
    for (tag, value) in [
        (tags::SAMPLES_PER_PIXEL, 1),
        (tags::ROWS, n),
        (tags::COLUMNS, n),
        (tags::BITS_ALLOCATED, 16),
        (tags::BITS_STORED, 12),
        (tags::HIGH_BIT, 11),
        (tags::PIXEL_REPRESENTATION, 0),
    ] {
        put(&mut d, tag, VR::US, value);
    }
    put(&mut d, tags::PIXEL_DATA, VR::OW, PrimitiveValue::from(stored));
    d
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::place::Grid;
    use super::super::{seg, source};
    use super::*;
    use voxmill_schemas::geometry::{Geometry, Lps};
    use voxmill_schemas::tables::InstanceRow;

    fn small(seed: u64) -> Phantom {
        Phantom { patients: 2, slices: 12, size: 32, slice_spacing_mm: None, seed }
    }

    fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let (mut todo, mut out) = (vec![root.to_path_buf()], BTreeMap::new());
        while let Some(p) = todo.pop() {
            if p.is_dir() {
                todo.extend(std::fs::read_dir(p).unwrap().map(|e| e.unwrap().path()));
            } else {
                out.insert(p.strip_prefix(root).unwrap().to_path_buf(), std::fs::read(&p).unwrap());
            }
        }
        out
    }

    #[test]
    fn equal_arguments_give_equal_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, seed| {
            write(&dir.path().join(name), &small(seed), &mut |_| {}).unwrap();
            files(&dir.path().join(name))
        };
        let (a, b, c) = (make("a", 7), make("b", 7), make("c", 8));
        assert_eq!(a, b);
        assert_eq!(a.len(), 2 * 13);
        assert!(a.values().zip(c.values()).all(|(a, c)| a != c));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "nothing is left beside");
    }

    #[test]
    fn a_folder_with_something_in_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("mine.txt"), "keep").unwrap();
        assert!(matches!(write(dir.path(), &small(1), &mut |_| {}), Err(Error::Input { .. })));
        assert_eq!(std::fs::read(dir.path().join("mine.txt")).unwrap(), b"keep");
    }

    #[test]
    fn femur_and_tibia_lie_above_and_below_the_joint() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let mut told = Vec::new();
        write(&out, &Phantom { patients: 3, slices: 24, size: 48, ..small(7) }, &mut |n| told.push(n)).unwrap();
        assert_eq!(told, [1, 2, 3]);
        for patient in 1..=3 {
            let folder = out.join(format!("knee-{patient:04}"));
            let mut paths: Vec<_> = std::fs::read_dir(folder.join("CT")).unwrap().map(|e| e.unwrap().path()).collect();
            paths.sort();
            let content = |p: &PathBuf| blake3::hash(&std::fs::read(p).unwrap()).to_hex().to_string();
            let row = |p: &PathBuf| InstanceRow { path: p.to_string_lossy().into_owned(), content: content(p), ..InstanceRow::default() };
            let series = source::open(&paths.iter().map(row).collect::<Vec<_>>()).unwrap();
            let (first, second) = (series.slices[0].plane, series.slices[1].plane);
            let geometry = Geometry {
                size: Zyx::new(24, 48, 48),
                origin: first.origin,
                axes_mm: Zyx::new(
                    second.origin - first.origin,
                    Lps([0., first.row_spacing_mm, 0.]),
                    Lps([first.column_spacing_mm, 0., 0.]),
                ),
            };
            let seg = seg::read(&folder.join("SEG.dcm"), "SEG.dcm").unwrap();
            assert_eq!(seg.segments.iter().map(|s| s.label.as_str()).collect::<Vec<_>>(), ["Femur", "Tibia"]);
            let grid = Grid::with_slices(&geometry, &series.slices);
            let (mut count, mut height) = ([0usize; 3], [0f64; 3]);
            let placed = seg.lay(&grid, &BTreeMap::from([(1, 1), (2, 2)]), None, &mut |id, v| {
                count[id as usize] += 1;
                height[id as usize] += geometry.to_lps(Zyx::new((v / 48 / 48) as f64, 0., 0.)).0[2];
            });
            let placed = placed.unwrap();
            assert!(placed.is_exact && placed.wrong_references == 0 && placed.frames_outside == 0);
            assert!(count[1] > 500 && count[2] > 500, "{count:?}");
            assert!(height[1] / count[1] as f64 > 10.0 && height[2] / (count[2] as f64) < -10.0);
        }
    }
}
