//! How fast patches reach the one who trains, from each shelf: the RAM shelf against a bare copy of the same boxes out of float32 arrays in memory, the NVMe
//! shelf against that copy out of a memory map of the arrays in the page cache, the disk shelf against decoding the bricks that are touched. And how often the
//! RAM shelf has what is asked for. One JSON line a figure: bench, metric, value, unit, against, ratio. `cargo bench --bench feed`. Four volumes of 375×358×358
//! int16, batch 2, two workers, buffers used again on both sides; rates count the float32 that is delivered.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use memmap2::Mmap;
use voxmill_schemas::artifact::{CaseId, Key, Kind, Recipe};
use voxmill_schemas::geometry::{Geometry, Zyx};
use voxmill_stages::error::Error;
use voxmill_stages::sample::cut::{self, Source};
use voxmill_stages::sample::feed::{Pace, feed};
use voxmill_stages::sample::foresight::{self, Foresight};
use voxmill_stages::sample::plan::{Case, Foreground, Plan};
use voxmill_stages::sample::{Batch, Pool, Rank};
use voxmill_stages::store::{Commit, Limits, Store, simulate};
use voxmill_stages::volume::{About, StoredVolume, Volume, Voxels};

const SIZE: Zyx<usize> = Zyx::new(375, 358, 358);
const VOLUMES: u8 = 4;
const BATCH: usize = 2;
const STEPS: u64 = 40;
static CALM: AtomicBool = AtomicBool::new(false);

fn main() {
    rayon::ThreadPoolBuilder::new().num_threads(2).build_global().unwrap();
    let dir = tempfile::tempdir_in(std::env::var("VOXMILL_BENCH_DIR").unwrap_or_else(|_| ".".into())).unwrap();
    let open = |name: &str, ram_bytes: u64, nvme_bytes: Option<u64>| {
        let nvme = nvme_bytes.map(|n| (dir.path().join(name), n));
        Store::open(&Limits { disk_dir: dir.path().join("store"), disk_bytes: None, nvme, ram_bytes }).unwrap()
    };
    let disk = open("", 0, None);
    let sources: Vec<Source> = (0..VOLUMES).map(|i| commit(&disk, &ct_like(i), i)).collect();
    let case = Case { size: SIZE, spacing_mm: Zyx::splat(1.0), foreground: Foreground::default() };
    let cases: Vec<Case> = sources.iter().map(|_| case.clone()).collect();

    // What both cores decode a second: whole volumes, nothing thrown away.
    let mut decoded = 0.0;
    let started = Instant::now();
    for s in &sources {
        decoded += black_box(s.volume.whole().unwrap()).voxels.len() as f64 * 2.0;
    }
    let decode_s = started.elapsed().as_secs_f64() / decoded;
    let floats: Vec<Vec<f32>> = sources.iter().map(|s| s.volume.whole().unwrap().voxels.to_f32().into_owned()).collect();
    let maps: Vec<Mmap> = floats.iter().map(|floats| mapped(dir.path(), floats)).collect();

    for (shape, patch) in [("32x256x256", Zyx::new(32, 256, 256)), ("128^3", Zyx::splat(128))] {
        let plan = Plan { seed: 7, patch, batch: BATCH, steps: STEPS, foreground: 0.0, augment: &[], cases: &cases, rank: Rank::ALONE };
        let mb = (STEPS as usize * BATCH * patch.count() * 4) as f64 / 1e6;
        let floats: Vec<&[f32]> = floats.iter().map(Vec::as_slice).collect();
        let maps: Vec<&[f32]> = maps.iter().map(|m| bytemuck::cast_slice(m)).collect();
        let bare = mb / timed(&|n, pool| Ok(bare_copy(&floats, &plan, n, pool)));
        tell(&format!("{shape}, bare copy"), bare, "MB/s", "bare copy", 1.0);
        let map = mb / timed(&|n, pool| Ok(bare_copy(&maps, &plan, n, pool)));
        tell(&format!("{shape}, copy from a memory map"), map, "MB/s", "bare copy", map / bare);
        let touched = foresight::trace(&plan, &sources, 0..STEPS, u64::MAX).unwrap();
        let touched_bytes: u64 = touched.uses.iter().map(|(_, i)| touched.bricks[*i as usize].1).sum();
        let bound = mb / (touched_bytes as f64 * decode_s);
        for (shelf, ram, nvme, against, bar) in [
            ("ram", 4 << 30, None, "bare copy", bare),
            ("nvme", 0, Some(4 << 30), "copy from a memory map", map),
            ("disk", 0, None, "decoding what is touched", bound),
        ] {
            let store = open(&format!("nvme-{shape}"), ram, nvme);
            // Tells the shelves what comes.
            let _foresight = Foresight::new(&plan, &sources, &store, STEPS);
            // The first round fills the shelf.
            let rate = mb / timed(&|n, pool| cut::batch(&sources, &plan.step(0, n), patch, &store, pool));
            tell(&format!("{shape}, {shelf} shelf"), rate, "MB/s", against, rate / bar);
        }
    }

    // Boxes of a quarter of a volume's length: what is asked for differs from epoch to epoch.
    let plan =
        Plan { seed: 7, patch: Zyx::splat(96), batch: BATCH, steps: 16, foreground: 0.0, augment: &[], cases: &cases, rank: Rank::ALONE };
    let trace = foresight::trace(&plan, &sources, 0..16 * 64, u64::MAX).unwrap();
    for percent in [25, 50] {
        let requests = (16 * BATCH) as u32;
        let r = simulate(&trace, trace.bytes() * percent / 100, 32 * requests, 8 * requests);
        tell(&format!("hits at {percent} % of the set"), r.ours, "share", "optimum", r.ours / r.optimum);
        tell(&format!("hits at {percent} % of the set, least recently used"), r.lru, "share", "optimum", r.lru / r.optimum);
    }
}

/// Seconds that all steps take with two workers: the median of five rounds after one that warms up.
fn timed(make: &(impl Fn(u64, &Pool) -> Result<Batch, Error> + Sync)) -> f64 {
    let pool = Pool::default();
    let round = || {
        let started = Instant::now();
        feed(
            0..STEPS,
            Pace { workers: 2, ahead: 4 },
            &CALM,
            |n| make(n, &pool),
            |f| {
                while let Some(batch) = f.next() {
                    pool.give(black_box(batch.unwrap()));
                }
            },
        );
        started.elapsed().as_secs_f64()
    };
    round();
    let mut rounds: Vec<f64> = (0..5).map(|_| round()).collect();
    rounds.sort_by(f64::total_cmp);
    rounds[2]
}

fn bare_copy(floats: &[&[f32]], plan: &Plan, n: u64, pool: &Pool) -> Batch {
    let (patch, mut batch) = (plan.patch, pool.take(BATCH, 1, plan.patch));
    for (i, at) in plan.step(0, n).iter().enumerate() {
        let (image, _) = batch.place(i);
        let start = at.region.start.map(|v| v as usize);
        for (row, to) in image.chunks_exact_mut(patch.x).enumerate() {
            let (z, y) = (start.z + row / patch.y, start.y + row % patch.y);
            to.copy_from_slice(&floats[at.case as usize][(z * SIZE.y + y) * SIZE.x + start.x..][..patch.x]);
        }
    }
    batch
}

/// The array in a file, mapped into memory.
fn mapped(dir: &Path, floats: &[f32]) -> Mmap {
    let mut file = tempfile::tempfile_in(dir).unwrap();
    file.write_all(bytemuck::cast_slice(floats)).unwrap();
    // SAFETY: the file has no name and no other holder, so nobody changes it while it is mapped.
    unsafe { Mmap::map(&file) }.unwrap()
}

fn tell(metric: &str, value: f64, unit: &str, against: &str, ratio: f64) {
    let round = |v: f64| (v * 1e4).round() / 1e4;
    let line = serde_json::json!({"bench": "feed", "metric": metric, "value": round(value), "unit": unit, "against": against, "ratio": round(ratio)});
    println!("{line}");
}

fn commit(store: &Store, v: &Volume, i: u8) -> Source {
    let recipe = Recipe { stage: "bench".into(), version: 1, config: i.into(), inputs: BTreeMap::new(), seed: 0 };
    let key: Key = recipe.key();
    let draft = store.disk.draft().unwrap();
    v.write(&draft.path, None).unwrap();
    let facts = v.facts().facts;
    let c = Commit { key, kind: Kind::Volume, case: None, recipe, input_keys: BTreeMap::new(), facts, content: None, inputs_dirs: &[] };
    draft.commit(c).unwrap();
    let at: &Path = &store.disk.dir(&key);
    let volume = StoredVolume::open(at, key).unwrap();
    Source { case: CaseId(format!("case-{i}")), volume }
}

/// A body in air with noise of some HU, as thin slices have it.
fn ct_like(i: u8) -> Volume {
    let mut seed = 3 + i as u64;
    let mut voxels = Vec::with_capacity(SIZE.count());
    for _ in 0..SIZE.z {
        for y in 0..SIZE.y {
            for x in 0..SIZE.x {
                let far = (y as f64 / SIZE.y as f64 - 0.5).hypot(x as f64 / SIZE.x as f64 - 0.5);
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let noise = ((seed >> 40) % 41) as i16 - 20;
                voxels.push(if far < 0.4 { 40 } else { -1000 } + noise);
            }
        }
    }
    let geometry = Geometry::axis_aligned(SIZE, Zyx::splat(1.0));
    let about = About {
        modality: "CT".into(),
        unit: "HU".into(),
        patient: "p".into(),
        study: "s".into(),
        series: "e".into(),
        ..About::of(geometry)
    };
    Volume { geometry, channels: vec!["CT".into()], voxels: Voxels::I16(voxels), labels: None, about }
}
