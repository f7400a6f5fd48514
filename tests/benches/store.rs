//! How fast volumes are written and read, against memcpy in the same run. One JSON line a figure: bench, metric, value, unit, against, ratio.
//! `cargo bench --bench store`. Rates count the voxels' own bytes (int16); patches count the float32 that is delivered.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use voxmill_schemas::artifact::{Key, Kind, Recipe};
use voxmill_schemas::geometry::{Geometry, Zyx};
use voxmill_schemas::region::Region;
use voxmill_stages::store::{Commit, Limits, Store};
use voxmill_stages::volume::{About, Labels, StoredVolume, Volume, Voxels};

fn main() {
    let dir = tempfile::tempdir_in(std::env::var("VOXMILL_BENCH_DIR").unwrap_or_else(|_| ".".into())).unwrap();
    let limits = |name: &str, ram_bytes: u64, nvme_bytes: Option<u64>| Limits {
        disk_dir: dir.path().join("store"),
        disk_bytes: None,
        nvme: nvme_bytes.map(|n| (dir.path().join(name), n)),
        ram_bytes,
    };
    let store = Store::open(&limits("", 0, None)).unwrap();
    let ct = ct_like(Zyx::new(300, 512, 512));
    let bytes = ct.voxels.len() as f64 * 2.0;
    let memcpy = memcpy_mb_s(&ct);
    tell("memcpy", memcpy, "MB/s", "memcpy", 1.0);
    let rate = |metric: &str, mb_s: f64| tell(metric, mb_s, "MB/s", "memcpy", mb_s / memcpy);

    let mut made = None;
    let took = best_of(3, || made = Some(commit(&store, &ct, made.is_none() as u8)));
    rate("write and commit, 300x512x512 int16", bytes / 1e6 / took);
    let (key, at, on_disk) = made.unwrap();
    tell("size on disk", bytes / on_disk as f64, "times smaller", "raw int16", bytes / on_disk as f64);
    let took = best_of(5, || drop(black_box(Volume::read(&at).unwrap())));
    rate("full read, page cache warm", bytes / 1e6 / took);

    for (shape, size) in [("32x256x256", Zyx::new(32, 256, 256)), ("128^3", Zyx::splat(128))] {
        for (shelf, ram, nvme) in [("disk", 0, None), ("nvme", 0, Some(4 << 30)), ("ram", 2 << 30, None)] {
            let store = Store::open(&limits(&format!("nvme-{shape}"), ram, nvme)).unwrap();
            let volume = StoredVolume::open(&at, key).unwrap();
            if shelf != "disk" {
                volume.read(Region::whole(volume.geometry.size), 0.0, &store).unwrap();
            }
            let (mut seed, n) = (7u64, 40);
            let started = Instant::now();
            for _ in 0..n {
                let room = volume.geometry.size.zip(size).map(|(n, p)| n - p + 1);
                let start = room.map(|r| (draw(&mut seed) % r as u64) as i64);
                black_box(volume.read(Region { start, size }, 0.0, &store).unwrap());
            }
            let took = started.elapsed().as_secs_f64();
            rate(&format!("random {shape} patches as float32 with labels, {shelf}"), (n * size.count() * 4) as f64 / 1e6 / took);
        }
    }

    let small = ct_like(Zyx::new(35, 51, 35));
    let mut i = 100;
    let took = best_of(20, || {
        i += 1;
        commit(&store, &small, i);
    });
    tell("write and commit, 35x51x35", took * 1e3, "ms", "one fsync", took / fsync_s(dir.path()));
}

fn tell(metric: &str, value: f64, unit: &str, against: &str, ratio: f64) {
    let round = |v: f64| (v * 1e4).round() / 1e4;
    println!(
        "{}",
        serde_json::json!({"bench": "store", "metric": metric, "value": round(value), "unit": unit, "against": against, "ratio": round(ratio)})
    );
}

fn best_of(n: usize, mut f: impl FnMut()) -> f64 {
    let once = |f: &mut dyn FnMut()| {
        let started = Instant::now();
        f();
        started.elapsed()
    };
    (0..n).map(|_| once(&mut f)).min().unwrap_or(Duration::MAX).as_secs_f64()
}

fn memcpy_mb_s(v: &Volume) -> f64 {
    let Voxels::I16(from) = &v.voxels else { unreachable!("made as int16") };
    let mut to = vec![1i16; from.len()];
    let took = best_of(5, || {
        to.copy_from_slice(black_box(from));
        black_box(&to);
    });
    from.len() as f64 * 2.0 / 1e6 / took
}

fn fsync_s(dir: &std::path::Path) -> f64 {
    let mut i = 0;
    best_of(10, || {
        i += 1;
        let file = std::fs::File::create(dir.join(format!("fsync-{i}"))).unwrap();
        std::io::Write::write_all(&mut &file, &[1; 60_000]).unwrap();
        file.sync_all().unwrap();
    })
}

fn commit(store: &Store, v: &Volume, i: u8) -> (Key, std::path::PathBuf, u64) {
    let recipe = Recipe { stage: "bench".into(), version: 1, config: i.into(), inputs: BTreeMap::new(), seed: 0 };
    let key = recipe.key();
    // Each measurement writes anew.
    let _ = std::fs::remove_dir_all(store.disk.dir(&key));
    let draft = store.disk.draft().unwrap();
    v.write(&draft.path, None).unwrap();
    let c = Commit {
        key,
        kind: Kind::Volume,
        case: None,
        recipe,
        input_keys: BTreeMap::new(),
        facts: v.facts().facts,
        content: None,
        inputs_dirs: &[],
    };
    let bytes = draft.commit(c).unwrap().bytes;
    (key, store.disk.dir(&key), bytes)
}

/// SplitMix64.
fn draw(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A body of soft tissue with a bone in air; noise of 10 HU, as thin slices have it.
fn ct_like(size: Zyx<usize>) -> Volume {
    let mut seed = 3;
    let mut voxels = Vec::with_capacity(size.count());
    let mut labels = Vec::with_capacity(size.count());
    for z in 0..size.z {
        for y in 0..size.y {
            for x in 0..size.x {
                let off = |i: usize, n: usize| i as f64 / n as f64 - 0.5;
                let (b, bone) = (off(y, size.y).hypot(off(x, size.x)), off(y, size.y).hypot(off(x, size.x) - 0.1 * off(z, size.z)));
                let hu = if bone < 0.08 {
                    700.0
                } else if b < 0.4 {
                    40.0
                } else {
                    -1000.0
                };
                let noise = (0..4).map(|_| (draw(&mut seed) >> 11) as f64 / (1u64 << 53) as f64 - 0.5).sum::<f64>() * 17.3;
                voxels.push((hu + noise).round().max(-1024.0) as i16);
                labels.push((bone < 0.08) as u8);
            }
        }
    }
    let geometry = Geometry::axis_aligned(size, Zyx::new(1.0, 0.7, 0.7));
    let about = About {
        modality: "CT".into(),
        unit: "HU".into(),
        patient: "p".into(),
        study: "s".into(),
        series: "e".into(),
        volume: 0,
        ..About::of(geometry)
    };
    let labels = Some(Labels { classes: IndexMap::from([("Bone".to_string(), 1)]), voxels: labels });
    Volume { geometry, channels: vec!["CT".into()], voxels: Voxels::I16(voxels), labels, about }
}
