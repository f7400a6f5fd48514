//! What holds of every volume that is written: it reads back, in part and whole, through every shelf, and damage is told.

use std::path::Path;

use indexmap::IndexMap;
use proptest::prelude::*;
use voxmill_schemas::artifact::{ContentHash, Key, Kind, Recipe};
use voxmill_schemas::geometry::{Geometry, Lps, Zyx};
use voxmill_schemas::region::Region;

use super::{About, Labels, SlabWriter, StoredVolume, Volume, Voxels, slab_depth};
use crate::error::Error;
use crate::store::{Commit, Limits, Store};

fn geometry(size: Zyx<usize>) -> Geometry {
    Geometry {
        size,
        origin: Lps([-10.1, 20.0, 1.0 / 3.0]),
        axes_mm: Zyx::new(Lps([0.1, 0.2, 2.5]), Lps([0., -0.7, 0.]), Lps([0.7, 0., 0.])),
    }
}

/// Voxels that differ everywhere and hold zeros, noise and long runs; `kind` chooses the type.
pub(super) fn volume(size: Zyx<usize>, channels: usize, kind: u8, has_labels: bool) -> Volume {
    let n = size.count();
    let value = |i: usize| if (i / 37).is_multiple_of(5) { 0 } else { (i as u32).wrapping_mul(2_654_435_761) >> 20 };
    let all = 0..n * channels;
    let voxels = match kind {
        0 => Voxels::U8(all.map(|i| value(i) as u8).collect()),
        1 => Voxels::I16(all.map(|i| value(i) as i16 - 1024).collect()),
        2 => Voxels::U16(all.map(|i| value(i) as u16 * 9).collect()),
        _ => Voxels::F32(all.map(|i| value(i) as f32 / 7.0 - 3.0).collect()),
    };
    let labels = has_labels.then(|| Labels {
        classes: IndexMap::from([("Posterior".to_string(), 2), ("Anterior".to_string(), 1)]),
        voxels: (0..n).map(|i| if i > n / 2 { (i / 11 % 3) as u8 } else { 0 }).collect(),
    });
    let about = About {
        modality: "MR".into(),
        unit: "stored".into(),
        patient: "p1".into(),
        study: "s1".into(),
        series: "e1".into(),
        volume: 0,
        ..About::of(geometry(size))
    };
    Volume { geometry: geometry(size), channels: (0..channels).map(|c| format!("T{c}")).collect(), voxels, labels, about }
}

fn store(dir: &Path, ram_bytes: u64, nvme_bytes: Option<u64>) -> Store {
    let nvme = nvme_bytes.map(|n| (dir.join("nvme"), n));
    Store::open(&Limits { disk_dir: dir.join("store"), disk_bytes: None, nvme, ram_bytes }).unwrap()
}

fn written(v: &Volume) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    v.write(dir.path(), None).unwrap();
    dir
}

/// The region of a volume by the plainest means there is.
fn crop(v: &Volume, region: Region, outside: f32) -> (Vec<f32>, Vec<u8>) {
    let (all, size) = (v.voxels.to_f32(), v.geometry.size);
    let (mut image, mut labels) = (Vec::new(), Vec::new());
    for c in 0..v.channels.len() {
        for z in region.start.z..region.end().z {
            for y in region.start.y..region.end().y {
                for x in region.start.x..region.end().x {
                    let is_inside = [(z, size.z), (y, size.y), (x, size.x)].iter().all(|(i, n)| 0 <= *i && *i < *n as i64);
                    let i = ((z * size.y as i64 + y) * size.x as i64 + x) as usize;
                    image.push(if is_inside { all[c * size.count() + i] } else { outside });
                    if c == 0 {
                        labels.push(if is_inside { v.labels.as_ref().unwrap().voxels[i] } else { 0 });
                    }
                }
            }
        }
    }
    (image, labels)
}

#[test]
fn every_type_and_shape_reads_back() {
    for (i, (z, y, x)) in [(1, 1, 1), (5, 1, 47), (35, 51, 35), (48, 33, 80), (2, 130, 3)].into_iter().enumerate() {
        for kind in 0..4 {
            let v = volume(Zyx::new(z, y, x), 1 + i % 2, kind, kind % 2 == 0);
            let dir = written(&v);
            assert_eq!(Volume::read(dir.path()).unwrap(), v);
        }
    }
}

#[test]
fn float_bits_survive() {
    let mut v = volume(Zyx::new(1, 2, 3), 1, 3, false);
    let bits = [f32::NAN.to_bits() | 5, (-0.0f32).to_bits(), f32::INFINITY.to_bits(), 1, 0, f32::MIN.to_bits()];
    v.voxels = Voxels::F32(bits.map(f32::from_bits).to_vec());
    let Voxels::F32(back) = Volume::read(written(&v).path()).unwrap().voxels else { panic!("another type came back") };
    assert_eq!(back.iter().map(|f| f.to_bits()).collect::<Vec<_>>(), bits);
}

#[test]
fn bytes_do_not_depend_on_threads() {
    let v = volume(Zyx::new(70, 90, 100), 2, 1, true);
    let bytes = |threads: usize| {
        let dir = tempfile::tempdir().unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| v.write(dir.path(), None)).unwrap();
        ["zarr.json", "0/zarr.json", "0/c.0.0.0.0", "0/c.1.0.0.0", "labels/labels/0/c.0.0.0"]
            .map(|f| std::fs::read(dir.path().join(f)).unwrap())
    };
    assert_eq!(bytes(1), bytes(5));
}

/// Files of an array by name, with the note of their hashes.
fn array_files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| (e.as_ref().unwrap().file_name().into_string().unwrap(), std::fs::read(e.unwrap().path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn slabs_of_any_thickness_give_the_same_bytes() {
    let v = volume(Zyx::new(75, 40, 50), 2, 1, false);
    let whole = written(&v);
    let plane = v.geometry.size.y * v.geometry.size.x * 2;
    for thickness in [1, 7, slab_depth(v.geometry.size), 40, 75] {
        let dir = tempfile::tempdir().unwrap();
        let mut w = SlabWriter::create(dir.path(), v.voxels.kind(), 2, v.geometry.size, false).unwrap();
        // Channels take turns.
        let (a, b) = v.voxels.as_bytes().split_at(75 * plane);
        for (a, b) in a.chunks(thickness * plane).zip(b.chunks(thickness * plane)) {
            w.push(0, a).unwrap();
            w.push(1, b).unwrap();
        }
        let facts = w.finish(v.geometry, v.channels.clone(), v.about.clone()).unwrap();
        assert_eq!(facts.facts, v.facts().facts);
        // Which of the shards was done first is all that may differ.
        let sorted = |files: Vec<(String, Vec<u8>)>| -> Vec<(String, Vec<u8>)> {
            let lines = |b: Vec<u8>| {
                let mut lines: Vec<String> = String::from_utf8(b).unwrap().lines().map(String::from).collect();
                lines.sort();
                lines.concat().into_bytes()
            };
            files.into_iter().map(|(name, b)| if name == ".hashed" { (name, lines(b)) } else { (name, b) }).collect()
        };
        assert_eq!(sorted(array_files(&dir.path().join("0"))), sorted(array_files(&whole.path().join("0"))));
        assert_eq!(Volume::read(dir.path()).unwrap(), v);
    }
}

#[test]
fn an_image_that_lacks_slices_is_refused_and_may_be_begun_anew() {
    let v = volume(Zyx::new(75, 20, 20), 1, 1, false);
    let dir = tempfile::tempdir().unwrap();
    let create = || SlabWriter::create(dir.path(), v.voxels.kind(), 1, v.geometry.size, false).unwrap();
    let mut short = create();
    short.push(0, &v.voxels.as_bytes()[..30 * 800]).unwrap();
    let why = short.finish(v.geometry, v.channels.clone(), v.about.clone()).unwrap_err().to_string();
    assert_eq!(why, "volume: channel 0 ends after 30 of 75 slices");
    let mut whole = create();
    whole.push(0, v.voxels.as_bytes()).unwrap();
    whole.finish(v.geometry, v.channels.clone(), v.about.clone()).unwrap();
    assert_eq!(Volume::read(dir.path()).unwrap(), v);
}

/// What is hashed while it is written must be what stands there.
#[test]
fn a_commit_knows_the_hashes_of_what_was_written() {
    let v = volume(Zyx::new(75, 40, 50), 2, 1, true);
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), 0, None);
    let draft = store.disk.draft().unwrap();
    v.write(&draft.path, None).unwrap();
    let commit = Commit {
        key: Key([7; 32]),
        kind: Kind::Volume,
        case: None,
        recipe: Recipe { stage: "t".into(), version: 1, config: serde_json::Value::Null, inputs: Default::default(), seed: 0 },
        input_keys: Default::default(),
        facts: Default::default(),
        content: None,
        inputs_dirs: &[],
    };
    let manifest = draft.commit(commit).unwrap();
    let at = store.disk.dir(&manifest.key);
    let names: Vec<&str> = manifest.files.keys().map(String::as_str).collect();
    assert_eq!(names.len(), 8, "{names:?}");
    for (name, hash) in &manifest.files {
        assert_eq!(*hash, ContentHash::of(&std::fs::read(at.join(name)).unwrap()), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_region_is_the_crop_of_the_whole(
        size in (1usize..90, 1usize..70, 1usize..80), kind in 0u8..4, channels in 1usize..3,
        start in (-40i64..100, -40i64..80, -40i64..90), wanted in (0usize..60, 1usize..60, 1usize..60),
        ram in prop::bool::ANY, nvme in prop::bool::ANY,
    ) {
        let v = volume(Zyx::new(size.0, size.1, size.2), channels, kind, true);
        let dir = written(&v);
        let store = store(dir.path(), if ram { 1 << 20 } else { 0 }, nvme.then_some(300_000));
        let stored = StoredVolume::open(dir.path(), Key([1; 32])).unwrap();
        let region = Region { start: Zyx::new(start.0, start.1, start.2), size: Zyx::new(wanted.0, wanted.1, wanted.2) };
        let expected = crop(&v, region, -7.5);
        // The second read comes from the shelves.
        for _ in 0..2 {
            let patch = stored.read(region, -7.5, &store).unwrap();
            prop_assert_eq!(&patch.voxels, &expected.0);
            prop_assert_eq!(patch.labels.as_ref().unwrap(), &expected.1);
        }
    }
}

#[test]
fn shelves_are_asked_in_their_order() {
    let v = volume(Zyx::new(40, 40, 40), 1, 1, false);
    let dir = written(&v);
    let stored = StoredVolume::open(dir.path(), Key([1; 32])).unwrap();
    let whole = Region::whole(v.geometry.size);
    let first = store(dir.path(), 1 << 20, Some(1 << 20));
    stored.read(whole, 0.0, &first).unwrap();
    stored.read(whole, 0.0, &first).unwrap();
    let c = first.counts();
    assert_eq!((c.ram_hits, c.nvme_hits, c.disk_reads), (1, 0, 1));
    // After a restart RAM is empty and the NVMe shelf is not.
    let again = store(dir.path(), 1 << 20, Some(1 << 20));
    stored.read(whole, 0.0, &again).unwrap();
    let c = again.counts();
    assert_eq!((c.ram_hits, c.nvme_hits, c.disk_reads), (0, 1, 0));
}

#[test]
fn a_broken_nvme_shelf_is_only_slower() {
    let v = volume(Zyx::new(40, 40, 40), 1, 1, false);
    let dir = written(&v);
    std::fs::write(dir.path().join("nvme"), "a file where the shelf should be").unwrap();
    let store = store(dir.path(), 0, Some(1 << 20));
    let stored = StoredVolume::open(dir.path(), Key([1; 32])).unwrap();
    let patch = stored.read(Region::whole(v.geometry.size), 0.0, &store).unwrap();
    assert_eq!(patch.voxels, *v.voxels.to_f32());
}

#[test]
fn any_damaged_byte_of_a_shard_is_told_with_the_name_of_the_artifact() {
    let v = volume(Zyx::new(20, 30, 40), 1, 1, true);
    let dir = written(&v);
    let key = Key([0xab; 32]);
    for file in ["0/c.0.0.0.0", "labels/labels/0/c.0.0.0"] {
        let path = dir.path().join(file);
        let good = std::fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(good.len() / 50 + 1).chain([good.len() - 1, good.len() - 6]) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(&path, bad).unwrap();
            let store = store(dir.path(), 0, None);
            let read = StoredVolume::open(dir.path(), key).and_then(|s| s.read(Region::whole(v.geometry.size), 0.0, &store));
            assert!(matches!(&read, Err(Error::Damaged { key: k, .. }) if *k == key), "{file} byte {at}: {read:?}");
            assert!(Volume::read(dir.path()).is_err());
        }
        for length in [0, 3, good.len() / 2, good.len() - 1] {
            std::fs::write(&path, &good[..length]).unwrap();
            assert!(Volume::read(dir.path()).is_err(), "{file} cut to {length}");
        }
        std::fs::write(&path, good).unwrap();
    }
    assert_eq!(Volume::read(dir.path()).unwrap(), v);
}

#[test]
fn sizes_that_a_file_claims_are_checked_before_memory_is_taken() {
    let v = volume(Zyx::new(20, 30, 40), 1, 1, false);
    for (from, to) in [("20", "2000000000"), ("20", "18446744073709551615"), ("20", "0"), ("30", "60000"), ("\"int16\"", "\"complex128\"")]
    {
        for file in ["0/zarr.json", "zarr.json"] {
            let dir = written(&v);
            let path = dir.path().join(file);
            let text = std::fs::read_to_string(&path).unwrap();
            if !text.contains(from) {
                continue;
            }
            std::fs::write(&path, text.replace(from, to)).unwrap();
            let read = Volume::read(dir.path());
            assert!(matches!(read, Err(Error::Zarr { .. })), "{file} {from} → {to}: {read:?}");
        }
    }
}

#[test]
fn an_unchanged_image_is_a_link_and_not_a_copy() {
    use std::os::unix::fs::MetadataExt;
    let plain = volume(Zyx::new(20, 30, 40), 1, 1, false);
    let upstream = written(&plain);
    let annotated = Volume { labels: volume(Zyx::new(20, 30, 40), 1, 1, true).labels, ..plain.clone() };
    let dir = tempfile::tempdir().unwrap();
    annotated.write(dir.path(), Some(upstream.path())).unwrap();
    assert_eq!(Volume::read(dir.path()).unwrap(), annotated);
    let inode = |d: &Path, f: &str| std::fs::metadata(d.join(f)).unwrap().ino();
    for f in ["0/zarr.json", "0/c.0.0.0.0"] {
        assert_eq!(inode(dir.path(), f), inode(upstream.path(), f));
    }
    // Another type cannot be the same array: it is written.
    let other = volume(Zyx::new(20, 30, 40), 1, 3, false);
    let dir = tempfile::tempdir().unwrap();
    other.write(dir.path(), Some(upstream.path())).unwrap();
    assert_eq!(Volume::read(dir.path()).unwrap(), other);
}

#[test]
fn labels_can_stand_alone() {
    let whole = volume(Zyx::new(20, 30, 40), 1, 1, true);
    let alone = Volume { channels: vec![], voxels: Voxels::U8(vec![]), ..whole.clone() };
    let dir = written(&alone);
    assert_eq!(Volume::read(dir.path()).unwrap(), alone);
    assert!(!dir.path().join("0").exists());
    // OME-Zarr: the group is no image, the labels in it are one, drawn on none that stands here.
    let attributes = |at: &str| -> serde_json::Value {
        serde_json::from_slice::<serde_json::Value>(&std::fs::read(dir.path().join(at)).unwrap()).unwrap()["attributes"].clone()
    };
    assert_eq!(attributes("zarr.json").get("ome"), None);
    assert_eq!(attributes("labels/zarr.json")["ome"]["labels"], serde_json::json!(["labels"]));
    let label = attributes("labels/labels/zarr.json");
    assert_eq!(label["ome"]["multiscales"][0]["datasets"][0]["path"], "0");
    assert_eq!(label["ome"]["image-label"].get("source"), None);
    let stored = StoredVolume::open(dir.path(), Key::of(b"alone")).unwrap();
    assert_eq!(stored.labels().unwrap(), whole.labels.map(|l| l.voxels));
    let nothing = Volume { labels: None, ..alone };
    assert!(nothing.write(dir.path(), None).unwrap_err().to_string().contains("neither channels nor labels"));
}

#[test]
fn a_volume_that_does_not_add_up_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut short = volume(Zyx::new(2, 3, 4), 1, 1, false);
    short.voxels = Voxels::I16(vec![0; 23]);
    let error = short.write(dir.path(), None).unwrap_err();
    assert_eq!(error.to_string(), "volume: 23 voxels do not fill 1 channels of 2×3×4");
    let mut flat = volume(Zyx::new(2, 3, 4), 1, 1, false);
    flat.geometry.axes_mm.z = Lps([0.0; 3]);
    assert!(flat.write(dir.path(), None).is_err());
}

#[test]
fn facts_count_the_voxels_of_each_class() {
    let f = volume(Zyx::new(2, 3, 4), 2, 1, true).facts().facts;
    assert_eq!(f["voxels"], 48);
    assert_eq!(f["size"], serde_json::json!({"z": 2, "y": 3, "x": 4}));
    assert_eq!(f["dtype"], "int16");
    assert_eq!(f["classes"].as_object().unwrap().keys().collect::<Vec<_>>(), ["Posterior", "Anterior"]);
    assert!(f["label_voxels"]["Anterior"].as_u64().unwrap() > 0);
}

/// Another implementation of the format opens what we write.
#[test]
fn zarrs_sees_the_same_voxels() {
    use zarrs::array::Array;
    let v = volume(Zyx::new(50, 40, 70), 2, 1, true);
    let dir = written(&v);
    let store = std::sync::Arc::new(zarrs::filesystem::FilesystemStore::new(dir.path()).unwrap());
    let array = Array::open(store.clone(), "/0").unwrap();
    let whole: Vec<i16> = array.retrieve_array_subset(&array.subset_all()).unwrap();
    assert_eq!(Voxels::I16(whole), v.voxels);
    let array = Array::open(store, "/labels/labels/0").unwrap();
    let whole: Vec<u8> = array.retrieve_array_subset(&array.subset_all()).unwrap();
    assert_eq!(whole, v.labels.unwrap().voxels);
}
