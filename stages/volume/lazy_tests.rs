use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use half::f16;
use proptest::prelude::*;
use voxmill_schemas::artifact::Key;
use voxmill_schemas::geometry::{Geometry, Lps, Zyx};
use voxmill_schemas::region::Region;

use super::*;
use crate::ops::intensity::Map;
use crate::ops::orient::Turn;
use crate::ops::resample::{Interpolation, LabelInterpolation};
use crate::ops::respace::respaced;
use crate::ops::smooth::Edge;
use crate::stage::Cx;
use crate::store::{Limits, Store};

fn store(dir: &Path) -> Store {
    Store::open(&Limits { disk_dir: dir.join("store"), ram_bytes: 8 << 20, ..Limits::default() }).unwrap()
}

/// Two channels of noise, oblique where `turn` is not 0, with padding in a corner.
fn volume(size: Zyx<usize>, turn: f64, dtype: usize) -> Volume {
    let mut geometry = Geometry::axis_aligned(size, Zyx::new(2.5, 0.8, 0.7));
    let (s, c) = turn.sin_cos();
    geometry.axes_mm = geometry.axes_mm.map(|v| Lps([c * v.0[0] - s * v.0[1], s * v.0[0] + c * v.0[1], v.0[2]]));
    geometry.origin = Lps([12.0, -30.0, 7.0]);
    let noise = |i: u64| ((i.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407) >> 33) % 2001) as i16 - 1000;
    let n = 2 * size.count() as u64;
    let voxels = match dtype {
        0 => Voxels::I16((0..n).map(|i| if i % 7 == 0 { -3000 } else { noise(i) }).collect()),
        1 => Voxels::U8((0..n).map(|i| noise(i) as u8).collect()),
        2 => Voxels::F16((0..n).map(|i| f16::from_f32(noise(i) as f32 / 3.0)).collect()),
        _ => Voxels::F32((0..n).map(|i| noise(i) as f32 / 3.0).collect()),
    };
    let about = About { padding: (dtype == 0).then_some([-3000.0, -2000.0]), unit: "HU".into(), ..About::of(geometry) };
    let labels = Labels {
        classes: [("Bone".to_string(), 1), ("Fat".to_string(), 2)].into_iter().collect(),
        voxels: (0..size.count() as u64).map(|i| (noise(i).unsigned_abs() % 3) as u8).collect(),
    };
    Volume { geometry, channels: vec!["CT".into(), "PT".into()], voxels, labels: Some(labels), about }
}

/// What a random draw becomes on a volume of this outline.
fn step(kind: usize, o: &Outline, a: [f64; 3], flags: [bool; 3]) -> Step {
    let size = o.geometry.size;
    let how = [Interpolation::Linear, Interpolation::Nearest, Interpolation::Cubic][(a[0] * 2.999) as usize];
    match kind {
        0 => {
            let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
            Step::Turn(Turn { from: orders[(a[0] * 5.999) as usize], flip: flags })
        }
        1 | 2 => {
            let spacing = o.geometry.spacing_mm().zip(Zyx::from_array(a)).map(|(s, a)| s * (0.6 + 1.2 * a));
            let mut to = respaced(&o.geometry, spacing, false).unwrap();
            if kind == 2 {
                let (s, c) = (0.2 * a[1]).sin_cos();
                to.axes_mm = to.axes_mm.map(|v| Lps([c * v.0[0] - s * v.0[2], v.0[1], s * v.0[0] + c * v.0[2]]));
            }
            let labels = if flags[0] { LabelInterpolation::Nearest } else { LabelInterpolation::Linear };
            let sigma = if flags[1] && how != Interpolation::Nearest { Zyx::from_array(a) } else { Zyx::splat(0.0) };
            if flags[2] {
                to.origin = to.origin - to.axes_mm.x.scale(3.0 * a[2]);
            }
            let outside = flags[2].then_some(if flags[0] { -7.0 } else { 0.25 });
            let padding = o.about.padding.filter(|_| how != Interpolation::Nearest);
            Step::Resample { to, image: how, labels, sigma, padding, outside }
        }
        3 => {
            let window = Map::Window { low: -500.0, high: 700.0, to_low: 0.0, to_high: 1.0, clip: flags[0] };
            Step::Map { maps: vec![Map::Replace { from: [-3000.0, -2000.0], to: -500.0 }, window], unit: "normalised".into() }
        }
        4 => Step::Map { maps: vec![Map::Normalize { mean: 12.5, std: 33.0, nonzero: flags[0] }], unit: "normalised".into() },
        7 => Step::Half,
        5 => Step::Smooth { sigma: Zyx::from_array(a), edge: if flags[0] { Edge::Zero } else { Edge::Repeat }, padding: o.about.padding },
        _ => {
            let start = Zyx::from_array(a).zip(size).map(|(a, n)| ((a - 0.5) * n as f64) as i64);
            let extent = Zyx::from_array(a).zip(size).map(|(a, n)| 1 + ((1.3 - a) * n as f64) as usize);
            let fill = [Filling::Value(-7.0), Filling::Value(0.25), Filling::Edge, Filling::Reflect][(a[2] * 3.999) as usize];
            Step::Cut { region: Region { start, size: extent }, fill }
        }
    }
}

/// Runs a step on the artifact in `from` and gives the folder of the result.
fn then(store: &Store, from: &Path, steps: Vec<Step>, lazy: bool, to: PathBuf) -> PathBuf {
    std::fs::create_dir_all(&to).unwrap();
    let cx = Cx {
        draft: &to,
        case: None,
        seed: 0,
        memo: &to,
        store,
        lazy,
        jobs: 2,
        memory_bytes: 1 << 30,
        cancel: &AtomicBool::new(false),
        progress: &|_| (),
    };
    let facts = StoredVolume::open(from, Key::of(b"base")).unwrap().then(steps, &cx).unwrap();
    let told = Volume::read(&to).unwrap().facts();
    assert_eq!(facts.facts, if lazy { told.with("lazy", true) } else { told }.facts);
    assert!(!lazy || is_lazy(&to));
    to
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_box_of_a_lazy_volume_has_the_bits_of_the_written_one(
        turn in prop_oneof![Just(0.0), Just(0.3)],
        dtype in 0usize..4,
        draws in proptest::collection::vec((0usize..8, prop::array::uniform3(0.0..1.0f64), any::<[bool; 3]>()), 1..5),
        boxes in proptest::collection::vec((prop::array::uniform3(-0.3..1.0f64), prop::array::uniform3(0.05..0.9f64)), 3),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let v = volume(Zyx::new(7, 10, 9), turn, dtype);
        let base = dir.path().join("base");
        std::fs::create_dir_all(&base).unwrap();
        v.write(&base, None).unwrap();
        let (mut full, mut lazy) = (base.clone(), base);
        for (i, (kind, a, flags)) in draws.into_iter().enumerate() {
            let outline = StoredVolume::open(&full, Key::of(b"x")).unwrap().outline();
            let steps = vec![step(kind, &outline, a, flags)];
            if outline.geometry.size.count() > 8_000 {
                break;
            }
            full = then(&store, &full, steps.clone(), false, dir.path().join(format!("full-{i}")));
            lazy = then(&store, &lazy, steps, true, dir.path().join(format!("lazy-{i}")));
        }
        let (written, made) = (Volume::read(&full).unwrap(), Volume::read(&lazy).unwrap());
        prop_assert_eq!(&written.geometry, &made.geometry);
        prop_assert_eq!(written.voxels.as_bytes(), made.voxels.as_bytes());
        prop_assert_eq!((&written.labels, &written.about), (&made.labels, &made.about));
        let open = |dir: &Path, name: &[u8]| StoredVolume::open(dir, Key::of(name)).unwrap();
        let (full, lazy) = (open(&full, b"full"), open(&lazy, b"lazy"));
        let size = Region::whole(written.geometry.size);
        for (start, extent) in boxes {
            let at = |k: [f64; 3]| Zyx::from_array(k).zip(size.size).map(|(k, n)| k * n as f64);
            let region = Region { start: at(start).map(|v| v as i64), size: at(extent).map(|v| 1 + v as usize) };
            let (a, b) = (full.read(region, -9.0, &store).unwrap(), lazy.read(region, -9.0, &store).unwrap());
            let bits = |p: &Patch| p.voxels.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&a), bits(&b));
            prop_assert_eq!(a.labels, b.labels);
        }
    }
}

#[test]
fn a_lazy_volume_holds_no_voxels_and_outlives_its_base() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let base = dir.path().join("base");
    std::fs::create_dir_all(&base).unwrap();
    let v = volume(Zyx::new(40, 50, 60), 0.0, 3);
    v.write(&base, None).unwrap();
    let maps = vec![Map::Normalize { mean: 1.0, std: 2.0, nonzero: false }];
    let steps = vec![Step::Map { maps, unit: "normalised".into() }];
    let lazy = then(&store, &base, steps.clone(), true, dir.path().join("lazy"));
    assert!(!lazy.join("0").exists());
    let wanted = apply(v, steps).unwrap();
    std::fs::remove_dir_all(&base).unwrap();
    assert_eq!(Volume::read(&lazy).unwrap(), wanted);
}

#[test]
fn steps_that_do_not_lead_to_the_volume_are_damage() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let base = dir.path().join("base");
    std::fs::create_dir_all(&base).unwrap();
    volume(Zyx::new(4, 5, 6), 0.0, 0).write(&base, None).unwrap();
    let lazy = then(&store, &base, vec![Step::Turn(Turn { from: [1, 0, 2], flip: [true, false, false] })], true, dir.path().join("lazy"));
    let text = std::fs::read_to_string(lazy.join("lazy.json")).unwrap();
    for (was, is) in [("1,", "0,"), ("\"layout\": 1", "\"layout\": 9"), ("true", "maybe"), ("\"turn\"", "\"spin\"")] {
        std::fs::write(lazy.join("lazy.json"), text.replacen(was, is, 1)).unwrap();
        let e = StoredVolume::open(&lazy, Key::of(b"x")).map(|_| ()).unwrap_err().to_string();
        assert!(e.contains("lazy.json"), "{was} → {is}: {e}");
    }
}

#[test]
fn float16_is_exact_where_it_can_be_and_refuses_what_it_cannot_hold() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let base = dir.path().join("base");
    std::fs::create_dir_all(&base).unwrap();
    let mut v = volume(Zyx::new(5, 40, 70), 0.0, 3);
    let n = v.voxels.len();
    let values = |k: f32| Voxels::F32((0..n).map(|i| (i as f32 - 7000.0) * k).collect());
    v.voxels = values(1.0 / 3.0);
    v.write(&base, None).unwrap();
    let written = then(&store, &base, vec![Step::Half], false, dir.path().join("written"));
    let lazy = then(&store, &base, vec![Step::Half], true, dir.path().join("lazy"));
    let wanted: Vec<f32> = v.voxels.to_f32().iter().map(|v| f16::from_f32(*v).to_f32()).collect();
    for from in [&written, &lazy] {
        let read = Volume::read(from).unwrap();
        assert_eq!((read.voxels.dtype(), read.voxels.to_f32().into_owned()), ("float16", wanted.clone()));
        let stored = StoredVolume::open(from, Key::of(from.as_os_str().as_encoded_bytes())).unwrap();
        let patch = stored.read(Region::whole(v.geometry.size), 0.0, &store).unwrap();
        assert_eq!(patch.voxels, wanted, "as training reads it");
    }
    v.voxels = values(100.0);
    let e = apply(v, vec![Step::Half]).unwrap_err().to_string();
    assert!(e.contains("65504") && e.contains("HU"), "{e}");
}
