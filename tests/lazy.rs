//! Chains of shipped stages on random volumes: left unwritten, any box of the result has the bits that it has where every stage wrote its voxels.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};
use voxmill_schemas::artifact::{ContentHash, Key, Kind, Manifest, Recipe};
use voxmill_schemas::geometry::{Geometry, Lps, Zyx};
use voxmill_schemas::region::Region;
use voxmill_stages::STAGES;
use voxmill_stages::error::Error;
use voxmill_stages::stage::{AnyStage, Cx, Input, Inputs};
use voxmill_stages::store::{Limits, Store};
use voxmill_stages::volume::{About, Labels, StoredVolume, Volume, Voxels};

/// Numbers that look random and are the same on every machine (splitmix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let a = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let b = (a ^ (a >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        b ^ (b >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    /// 0 to 1.
    fn share(&mut self) -> f64 {
        self.next() as f64 / u64::MAX as f64
    }
    fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }
    fn axes(&mut self, low: f64, high: f64) -> Value {
        let mut axis = || low + (high - low) * self.share();
        json!({ "z": axis(), "y": axis(), "x": axis() })
    }
}

/// Every stage whose volumes can stay steps, with its settings drawn.
fn stage(dice: &mut Dice) -> (&'static str, Value) {
    let is = |dice: &mut Dice| dice.below(2) == 0;
    match dice.below(9) {
        0 => ("orient", json!({ "to": dice.one_of(&["RAS", "LPS", "SAR", "PIL", "AIL", "ILP"]) })),
        1 | 2 => {
            let (interpolation, labels) = (dice.one_of(&["linear", "nearest", "cubic"]), dice.one_of(&["nearest", "linear"]));
            let anti_alias = interpolation != "nearest" && is(dice);
            let (keep_extent, separate_z) = (is(dice), interpolation != "nearest" && is(dice));
            let with = json!({
                "spacing_mm": dice.axes(0.7, 3.0), "interpolation": interpolation, "labels": labels, "anti_alias": anti_alias,
                "keep_extent": keep_extent, "separate_z": separate_z, "dtype": dice.one_of(&["float32", "float16"]),
            });
            ("resample", with)
        }
        3 => ("window", json!({ "low": -500, "high": 700, "clip": is(dice), "dtype": dice.one_of(&["float32", "float16"]) })),
        4 => ("normalize", json!({ "method": "zscore", "subtrahend": 12.5, "divisor": 33, "nonzero": is(dice) })),
        5 => ("scale", json!({ "lower": 5, "upper": 95, "channel_wise": is(dice), "dtype": dice.one_of(&["float32", "float16"]) })),
        6 => ("smooth", json!({ "sigma_voxels": dice.axes(0.0, 1.2), "edge": dice.one_of(&["repeat", "zero"]) })),
        7 => {
            let modes =
                [json!({ "mode": "edge" }), json!({ "mode": "reflect" }), json!({ "value": -7 }), json!({ "value": 0.25 }), json!({})];
            let mut with = dice.one_of(&modes);
            with["divisible_by"] = dice.one_of(&[4, 5, 7]).into();
            with["size"] = dice.one_of(&[0, 6, 11]).into();
            with["crop"] = (with["size"] != 0 && is(dice)).into();
            ("pad", with)
        }
        _ => ("crop_foreground", json!({ "above": 0.1, "margin_voxels": dice.below(3), "divisible_by": dice.one_of(&[1, 3]) })),
    }
}

/// Noise with labels; oblique, padded, of several channels and of every type now and then.
fn volume(dice: &mut Dice) -> Volume {
    let size = Zyx::new(3 + dice.below(7), 4 + dice.below(9), 4 + dice.below(9));
    let mut geometry = Geometry::axis_aligned(size, Zyx::new(2.5, 0.8, 0.7));
    let (sin, cos) = dice.one_of(&[0.0, 0.0, 0.3f64]).sin_cos();
    geometry.axes_mm = geometry.axes_mm.map(|v| Lps([cos * v.0[0] - sin * v.0[1], sin * v.0[0] + cos * v.0[1], v.0[2]]));
    let channels = dice.one_of(&[vec!["CT".to_string()], vec!["T1".into(), "T2".into()]]);
    let n = channels.len() * size.count();
    let mut noise = || dice.below(2001) as i16 - 1000;
    let values: Vec<i16> = (0..n).map(|_| noise()).collect();
    let voxels = match noise() % 4 {
        0 => Voxels::U8(values.iter().map(|v| *v as u8).collect()),
        1 | -1 => Voxels::U16(values.iter().map(|v| v.unsigned_abs()).collect()),
        2 | -2 => Voxels::F32(values.iter().map(|v| *v as f32 / 3.0).collect()),
        _ => Voxels::I16(values.iter().map(|v| if v % 7 == 0 { -3000 } else { *v }).collect()),
    };
    let padding = matches!(voxels, Voxels::I16(_)).then_some([-3000.0, -2000.0]);
    let classes = [("Bone".to_string(), 1), ("Fat".to_string(), 2)].into_iter().collect();
    let labels = Labels { classes, voxels: values[..size.count()].iter().map(|v| (v.unsigned_abs() % 3) as u8).collect() };
    Volume { geometry, channels, voxels, labels: Some(labels), about: About { padding, unit: "stored".into(), ..About::of(geometry) } }
}

fn input(dir: &Path) -> Input {
    let facts = Volume::read(dir).unwrap().facts().facts;
    let (key, content) = (Key::of(dir.as_os_str().as_encoded_bytes()), ContentHash::of(b""));
    let recipe = Recipe { stage: "assemble".into(), version: 1, config: Value::Null, inputs: Default::default(), seed: 0 };
    let manifest = Manifest {
        key,
        content,
        kind: Kind::Volume,
        case: None,
        recipe,
        input_keys: Default::default(),
        facts,
        files: Default::default(),
        bytes: 0,
        layout: 1,
    };
    Input { dir: dir.to_path_buf(), manifest: Arc::new(manifest), rows: None }
}

fn run(stage: &dyn AnyStage, store: &Store, from: &Path, to: &Path, lazy: bool) -> Result<(), Error> {
    std::fs::create_dir_all(to).unwrap();
    let inputs = Inputs([("volume".to_string(), vec![input(from)])].into());
    assert!(stage.memory_bytes(&inputs) > 0);
    let cx = Cx {
        draft: to,
        case: None,
        seed: 0,
        memo: to,
        store,
        lazy,
        jobs: 2,
        memory_bytes: 1 << 30,
        cancel: &AtomicBool::new(false),
        progress: &|_| (),
    };
    stage.run(&inputs, &cx).map(|_| ())
}

/// Runs one chain both ways and compares; gives the names of the stages that ran.
fn compared(seed: u64) -> Vec<&'static str> {
    let mut dice = Dice(seed);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&Limits { disk_dir: dir.path().join("store"), ram_bytes: 8 << 20, ..Limits::default() }).unwrap();
    let base = dir.path().join("base");
    std::fs::create_dir_all(&base).unwrap();
    volume(&mut dice).write(&base, None).unwrap();
    let (mut written, mut lazy): (PathBuf, PathBuf) = (base.clone(), base);
    let mut ran = Vec::new();
    for i in 0..1 + dice.below(4) {
        let (name, with) = stage(&mut dice);
        let def = STAGES.iter().find(|d| d.info.name == name).unwrap();
        let stage = (def.parse)(with.clone()).unwrap();
        let (a, b) = (dir.path().join(format!("written-{i}")), dir.path().join(format!("lazy-{i}")));
        let (done, left) = (run(&*stage, &store, &written, &a, false), run(&*stage, &store, &lazy, &b, stage.is_step()));
        match (done, left) {
            (Ok(()), Ok(())) => (written, lazy) = (a, b),
            (Err(a), Err(b)) => {
                assert_eq!(a.to_string(), b.to_string(), "seed {seed}: {name} {with}");
                break;
            }
            (a, b) => panic!("seed {seed}: {name} {with} gave {a:?} written and {b:?} unwritten"),
        }
        ran.push(name);
        if Volume::read(&written).unwrap().geometry.size.count() > 20_000 {
            break;
        }
    }
    let (a, b) = (Volume::read(&written).unwrap(), Volume::read(&lazy).unwrap());
    assert_eq!(
        (&a.geometry, &a.labels, &a.about, a.voxels.dtype()),
        (&b.geometry, &b.labels, &b.about, b.voxels.dtype()),
        "seed {seed}: {ran:?}"
    );
    assert!(a.voxels.as_bytes() == b.voxels.as_bytes(), "seed {seed}: the voxels of {ran:?} differ");
    let (a, b) = (input(&written), input(&lazy));
    let (a, b) = (StoredVolume::open(&a.dir, a.manifest.key).unwrap(), StoredVolume::open(&b.dir, b.manifest.key).unwrap());
    for _ in 0..4 {
        let mut axis = |n: usize| (dice.below(n + 2) as i64 - 1, 1 + dice.below(n));
        let size = a.geometry.size;
        let (z, y, x) = (axis(size.z), axis(size.y), axis(size.x));
        let region = Region { start: Zyx::new(z.0, y.0, x.0), size: Zyx::new(z.1, y.1, x.1) };
        let (a, b) = (a.read(region, -9.0, &store).unwrap(), b.read(region, -9.0, &store).unwrap());
        let is_same = a.voxels.iter().zip(&b.voxels).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(is_same && a.labels == b.labels, "seed {seed}: {region:?} of {ran:?} differs");
    }
    ran
}

#[test]
fn a_box_of_any_chain_of_stages_has_the_bits_of_the_written_volume() {
    let mut ran: Vec<&str> = (0..150).flat_map(compared).collect();
    ran.sort();
    ran.dedup();
    assert_eq!(
        ran,
        ["crop_foreground", "normalize", "orient", "pad", "resample", "scale", "smooth", "window"],
        "every one of them had its turn"
    );
}
