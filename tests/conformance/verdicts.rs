//! What each real series must become: volumes that another reader sees in the same way, or a refusal with the right reason.

use std::collections::BTreeMap;
use std::path::Path;

use voxmill_stages::dicom::order::{Gaps, How};
use voxmill_stages::nifti;
use voxmill_stages::ops::resample::{Interpolation, Outside, resample_to};
use voxmill_stages::volume::Voxels;

use crate::archive::{is_whole, open, root};
use crate::compare::{affine_off, same};

enum Expected {
    /// That many volumes, equal to the channels of `FOLDER_ground_truth.nii.gz` and of its reoriented twin.
    Truth(usize),
    /// That many volumes; nobody else's reading is at hand.
    Volumes(usize),
    /// One volume of colours, equal to those of the truth and of its reoriented twin, which have transparency as well.
    Colours,
    /// No volume, and each reason holds this text.
    Refused(&'static str),
}
use Expected::{Colours, Refused, Truth, Volumes};

/// Ground truth written by dicom2nifti.
const DICOM2NIFTI: &[(&str, Expected)] = &[
    ("anatomical/001", Truth(1)),
    ("anatomical/001_implicit", Truth(1)),
    ("failing/gantrytilting/001", Volumes(1)),
    ("failing/notavolume/001", Volumes(4)),
    ("failing/slicecount/001", Truth(1)),
    ("failing/sliceincrement/001", Refused("5.000 mm apart, but 10.000 mm between slices 3 and 4")),
    ("failing/sliceincrement/002", Refused("missing at")),
    ("failing/sliceorientation/001", Volumes(2)),
    ("ge/anatomical/001", Truth(1)),
    ("ge/anatomical/001_implicit", Truth(1)),
    ("ge/anatomical/001_single_slice", Truth(1)),
    ("ge/dti/001", Truth(2)),
    ("ge/dti/001_implicit", Truth(2)),
    ("ge/dti/002", Truth(4)),
    ("ge/fmri/001", Truth(2)),
    ("ge/fmri/001_implicit", Truth(2)),
    ("generic/anatomical/001", Truth(1)),
    ("generic/anatomical/001_implicit", Truth(1)),
    ("generic/anatomical/002_non_isotropic", Truth(1)),
    ("generic/compressed/001", Truth(1)),
    ("generic/compressed_j2k/001", Truth(1)),
    ("generic/compressed_jpeg/001", Truth(1)),
    ("generic/compressed_jpegls/001", Truth(1)),
    ("generic/compressed_rle/001", Truth(1)),
    ("generic/rgb/001", Colours),
    ("hitachi/anatomical/001", Truth(1)),
    ("hitachi/anatomical/001_implicit", Truth(1)),
    ("hyperfine/anatomical/001", Truth(1)),
    ("philips/fmri/001", Truth(4)),
    ("philips/fmri/001_implicit", Truth(4)),
    ("philips_enhanced/anatomical/001", Truth(1)),
    ("siemens/anatomical/001", Truth(1)),
    ("siemens/anatomical/001_implicit", Truth(1)),
    ("siemens_multiframe/anatomical/001", Truth(1)),
];

fn judge(folder: &Path, expected: &Expected) -> Result<String, String> {
    let archive = open(folder);
    let images = archive.images();
    let volumes: Vec<_> = images.iter().map(|s| archive.volume(s)).collect();
    let reasons: Vec<&String> = volumes.iter().filter_map(|v| v.as_ref().err()).collect();
    match expected {
        Refused(why) => match reasons.iter().find(|r| !r.contains(why)) {
            _ if reasons.is_empty() || reasons.len() < volumes.len() => {
                Err(format!("{} volumes, should be refused", volumes.len() - reasons.len()))
            }
            Some(other) => Err(format!("refused for another reason: {other}")),
            None => Ok(format!("refused: {}", reasons[0])),
        },
        Truth(n) | Volumes(n) if volumes.len() != *n || !reasons.is_empty() => {
            Err(format!("{} volumes where {n} are expected; {reasons:?}", volumes.len()))
        }
        Colours => match &volumes[..] {
            [Ok(v)] => {
                let n = v.geometry.size.count();
                let Voxels::U8(all) = &v.pixels.voxels else { return Err("no uint8".into()) };
                for ending in ["_ground_truth.nii.gz", "_ground_truth_reoriented.nii.gz"] {
                    let name = format!("{}{ending}", folder.file_name().unwrap().to_string_lossy());
                    let truth = nifti::read(&folder.with_file_name(&name)).map_err(|e| e.to_string())?;
                    for channel in 0..3 {
                        let one = Voxels::U8(all[channel * n..][..n].to_vec());
                        same(&v.geometry, &one, &truth, channel, 2e-3, 0.0).map_err(|e| format!("{name}, colour {channel}: {e}"))?;
                    }
                }
                Ok("3 colours equal".into())
            }
            other => Err(format!("{} volumes; {reasons:?}", other.len())),
        },
        Volumes(n) => {
            let notes: Vec<&String> = volumes.iter().flatten().flat_map(|v| &v.notes).collect();
            Ok(format!("{n} volumes {notes:?}"))
        }
        Truth(n) => {
            for ending in ["_ground_truth.nii.gz", "_ground_truth_reoriented.nii.gz"] {
                let name = format!("{}{ending}", folder.file_name().unwrap().to_string_lossy());
                let truth = nifti::read(&folder.with_file_name(&name)).map_err(|e| e.to_string())?;
                // The volumes as one file of four dimensions, in the order of their repeats.
                let joined = archive.joined()?;
                let channels = joined.pixels.voxels.len() / joined.geometry.size.count();
                if channels != *n || channels != truth.channels {
                    return Err(format!("{channels} repeats of one place, {} in {name}", truth.channels));
                }
                let values = joined.pixels.voxels.to_f32();
                for channel in 0..channels {
                    let off = affine_off(&joined.geometry, &truth.geometry);
                    if off > 1e-4 {
                        return Err(format!("{name}: the affine is {off} mm off"));
                    }
                    let one = Voxels::F32(values[channel * joined.geometry.size.count()..][..joined.geometry.size.count()].to_vec());
                    same(&joined.geometry, &one, &truth, channel, 2e-3, 0.0).map_err(|e| format!("{name}, repeat {channel}: {e}"))?;
                }
                for (channel, v) in volumes.iter().flatten().enumerate() {
                    same(&v.geometry, &v.pixels.voxels, &truth, channel, 2e-3, 0.0)
                        .map_err(|e| format!("{name}, volume {channel}: {e}"))?;
                }
            }
            let sizes: Vec<String> = volumes.iter().flatten().map(|v| v.geometry.size.to_string()).collect();
            Ok(format!("{n} equal: {}", sizes[0]))
        }
    }
}

#[test]
fn dicom2nifti_series_get_their_verdict() {
    let root = root().join("dicom2nifti");
    let mut held = 0;
    let mut wrong = Vec::new();
    for (name, expected) in DICOM2NIFTI {
        let folder = root.join(name);
        if !folder.is_dir() {
            continue;
        }
        match judge(&folder, expected) {
            Ok(said) => {
                held += 1;
                println!("{name:40} {said}");
            }
            Err(why) => {
                println!("{name:40} WRONG {why}");
                wrong.push((name, why));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(held, if is_whole() { DICOM2NIFTI.len() } else { 6 });
}

/// A tilted CT with a slice missing, which dicom2nifti put on a straight grid: filled, kept and resampled, it has the same values there.
#[test]
fn a_filled_gap_has_the_values_of_the_ground_truth() {
    let folder = root().join("dicom2nifti/failing/sliceincrement/002");
    if !folder.is_dir() {
        return assert!(!is_whole(), "{} is missing", folder.display());
    }
    let archive = open(&folder);
    let v = archive.read_with(archive.images()[0], How { gaps: Gaps::Fill, ..How::default() }).unwrap();
    assert_eq!((v.geometry.size.z, &v.made_slices[..]), (5, &[3][..]));
    let values = v.pixels.voxels.to_f32();
    for name in ["002_ground_truth.nii.gz", "002_ground_truth_reoriented.nii.gz"] {
        let truth = nifti::read(&folder.with_file_name(name)).unwrap();
        let on_truth = |how| resample_to(&values, &v.geometry, &truth.geometry, how, Outside::Value(f32::NAN));
        let (linear, nearest) = (on_truth(Interpolation::Linear), on_truth(Interpolation::Nearest));
        let mut held = 0;
        for ((truth, linear), nearest) in truth.voxels.to_f32().iter().zip(&linear).zip(&nearest) {
            // The truth has 0 where it has no slice on both sides; its integers are rounded, and so are those of the slice that was made. On its last plane,
            // a hair beyond ours, it has the slice itself.
            if *truth != 0.0 {
                assert!((truth - linear).abs() <= 1.0 || truth == nearest, "{name}: {truth}, ours {linear} or {nearest}");
                held += 1;
            }
        }
        assert!(held > 1_000_000, "{name}: {held}");
    }
}

/// One slice in every transfer syntax: the same voxels, or the syntax by its name.
#[test]
fn every_transfer_syntax_gives_the_same_voxels_or_is_named() {
    let folder = root().join("ts-ct");
    if !folder.is_dir() {
        return assert!(!is_whole(), "{} is missing", folder.display());
    }
    let mut verdicts: BTreeMap<String, String> = BTreeMap::new();
    let mut reference: Option<Voxels> = None;
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "dcm")).collect();
    files.sort();
    for f in files {
        let name = f.file_name().unwrap().to_string_lossy().replace("CTImage.dcm_", "").replace(".dcm", "");
        let archive = open(&f);
        let images = archive.images();
        let said = match images.first().map(|s| archive.volume(s)) {
            None => "not indexed".to_string(),
            Some(Err(why)) => why,
            Some(Ok(v)) => {
                let reference = reference.get_or_insert_with(|| v.pixels.voxels.clone());
                let (a, b) = (reference.to_f32(), v.pixels.voxels.to_f32());
                let worst = a.iter().zip(b.iter()).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                if worst == 0.0 { "equal".into() } else { format!("within {worst}") }
            }
        };
        println!("{name:70} {said}");
        verdicts.insert(name, said);
    }
    let equal = verdicts.values().filter(|v| *v == "equal").count();
    let named = verdicts.values().filter(|v| v.contains("is not decoded by this build")).count();
    let lossy = verdicts.values().filter(|v| v.starts_with("within")).count();
    assert_eq!((equal, named, lossy), (10, 0, 6), "{verdicts:#?}");
}

/// The MR series of the hippocampus set and the NIfTI files they were made from.
#[test]
fn hippocampus_series_are_their_nifti_twins() {
    let twins = root().join("hippocampus_nifti/images");
    let dicom =
        if is_whole() { root().join("hippocampus") } else { Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/hippocampus") };
    let mut twins: Vec<_> = std::fs::read_dir(&twins).unwrap().map(|e| e.unwrap().path()).collect();
    twins.sort();
    for twin in &twins {
        let name = twin.file_name().unwrap().to_string_lossy().replace(".nii.gz", "");
        let archive = open(&dicom.join(&name).join("MR"));
        let images = archive.images();
        assert_eq!(images.len(), 1, "{name}");
        let v = archive.volume(images[0]).unwrap();
        // Those with a rescale slope were rounded to stored values: half a step off at most.
        let slope = v.headers.iter().flat_map(|h| &h.frames).filter_map(|f| f.slope).fold(0.0, f64::max);
        let rounded = if slope == 1.0 { 0.0 } else { 0.5 * slope as f32 };
        let twin = nifti::read(twin).unwrap();
        same(&v.geometry, &v.pixels.voxels, &twin, 0, 1e-3, rounded).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    assert_eq!(twins.len(), if is_whole() { 200 } else { 2 });
}

/// One CT as classic files and as a legacy converted enhanced file: the same volume.
#[test]
fn classic_and_enhanced_twins_are_one_volume() {
    let mut held = 0;
    for name in ["23x38x3", "24x38x3"] {
        let folder = root().join("dcmqi/segmentations").join(name);
        // The small collection of the repository holds both forms of one of them.
        if !folder.join("image").is_dir() || !folder.join("multiframe").is_dir() {
            continue;
        }
        let read = |part: &str| {
            let archive = open(&folder.join(part));
            let images = archive.images();
            assert_eq!(images.len(), 1, "{name}/{part}");
            archive.volume(images[0]).unwrap()
        };
        let (classic, enhanced) = (read("image"), read("multiframe"));
        assert!(classic.geometry.same_grid(&enhanced.geometry, 1e-6), "{:?}\n{:?}", classic.geometry, enhanced.geometry);
        assert_eq!(classic.pixels.voxels, enhanced.pixels.voxels, "{name}");
        held += 1;
    }
    assert_eq!(held, if is_whole() { 2 } else { 1 });
}

/// Enhanced MR: a magnitude and a field map in one file, and a time series of several files.
#[test]
fn enhanced_files_fall_into_their_volumes() {
    let folder = root().join("dcm_qa_enh/In");
    if !folder.is_dir() {
        return assert!(!is_whole(), "{} is missing", folder.display());
    }
    for (name, n_volumes, n_slices) in [("Philips", 2, 32), ("Siemens/XA10", 4, 6)] {
        let archive = open(&folder.join(name));
        let sizes: Vec<_> = archive.images().iter().map(|s| archive.volume(s).map(|v| v.geometry.size.z)).collect();
        assert_eq!(sizes, vec![Ok(n_slices); n_volumes], "{name}");
    }
}

/// No file of this collection of oddities stops the reading, and what can be read is.
#[test]
fn odd_files_get_a_verdict_and_never_a_panic() {
    let folder = root().join("pydicom");
    if !folder.is_dir() {
        return assert!(!is_whole(), "{} is missing", folder.display());
    }
    let archive = open(&folder);
    let mut read = 0;
    for s in archive.images() {
        let file = archive.made.instances.iter().find(|i| (&i.series, i.volume) == (&s.series, s.volume)).map(|i| i.file.clone());
        match archive.volume(s) {
            Ok(v) => {
                read += 1;
                println!("{:60} {} {}", file.unwrap_or_default(), v.geometry.size, s.n_instances);
            }
            Err(why) => println!("{:60} {why}", file.unwrap_or_default()),
        }
    }
    println!("{read} volumes");
    assert!(read >= if is_whole() { 24 } else { 1 }, "{read} volumes");
}
