//! The promises of preprocessing: `cargo bench --bench preprocess` prints one JSON line a measure, each the best of several rounds in which a copy of the same
//! bytes, one thread and two take turns. The case is a CT of 300×512×512 int16 voxels of 1.25×0.7×0.7 mm to 1 mm, windowed to 0…1; `--small` takes an eighth.
//! With VOXMILL_PYTHON set, MONAI, SimpleITK, torch and nnU-Net's cubic are timed beside it where that Python has them.

use std::hint::black_box;
use std::process::Command;
use std::time::Instant;

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use voxmill_schemas::geometry::{Geometry, Lps, Zyx};
use voxmill_schemas::region::Region;
use voxmill_stages::ops::intensity::Map;
use voxmill_stages::ops::plan::{Part, Plan};
use voxmill_stages::ops::resample::{Interpolation, Outside};
use voxmill_stages::ops::respace::respaced;
use voxmill_stages::ops::separable::Stored;

const ROUNDS: usize = 9;
const WINDOW: [Map; 1] = [Map::Window { low: -1000.0, high: 1000.0, to_low: 0.0, to_high: 1.0, clip: true }];

fn ms(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64() * 1e3
}

fn pool(threads: usize) -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool of threads")
}

/// Largest resident memory since the last call, bytes; 0 where the system does not tell.
fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).and_then(|l| l.trim().trim_end_matches(" kB").parse::<usize>().ok());
    // 5 starts the count anew (proc(5)).
    std::fs::write("/proc/self/clear_refs", "5").ok();
    kib.unwrap_or(0) * 1024
}

/// Times a plan into fresh memory, as a pipeline has it, beside the copy of input and output bytes into fresh memory.
fn measure<U: Stored>(path: &str, plan: &Plan, ct: &[i16], pools: &[ThreadPool; 2], rounds: usize) -> f64 {
    let bytes = size_of_val(ct) + size_of::<U>() * plan.to.count();
    let run = |pool: &ThreadPool| {
        let mut out = vec![U::default(); plan.to.count()];
        let took = ms(|| pool.install(|| plan.run(Part::whole(ct, plan.from), Region::whole(plan.to), &WINDOW, &mut out)));
        black_box(&out);
        took
    };
    peak_bytes();
    run(&pools[1]);
    let peak = peak_bytes();
    let (mut best, mut copy) = ([f64::INFINITY; 2], f64::INFINITY);
    for _ in 0..rounds {
        for (best, pool) in best.iter_mut().zip(pools) {
            *best = best.min(run(pool));
        }
        let from = vec![1u8; bytes];
        let mut to = vec![0u8; bytes];
        let took = ms(|| {
            pools[1].install(|| to.par_chunks_mut(1 << 22).zip(from.par_chunks(1 << 22)).for_each(|(to, from)| to.copy_from_slice(from)))
        });
        black_box(&to);
        copy = copy.min(took);
    }
    let dtype = if size_of::<U>() == 2 { "float16" } else { "float32" };
    let name = format!("{path} int16 to {dtype}");
    line(&name, best[1], "ms", "copying input and output on the same threads, time", best[1] / copy);
    line(&format!("{name}: 2 threads"), best[1], "ms", "1 thread, speed", best[0] / best[1]);
    line(&format!("{name}: peak memory"), peak as f64 / 1e6, "MB", "input and output", peak as f64 / bytes as f64);
    best[1]
}

fn line(metric: &str, value: f64, unit: &str, against: &str, ratio: f64) {
    println!(r#"{{"bench":"preprocess","metric":"{metric}","value":{value:.1},"unit":"{unit}","against":"{against}","ratio":{ratio:.2}}}"#);
}

fn main() {
    let small = std::env::args().any(|a| a == "--small");
    let size = if small { Zyx::new(150, 256, 256) } else { Zyx::new(300, 512, 512) };
    let from = Geometry::axis_aligned(size, Zyx::new(1.25, 0.7, 0.7));
    // A cheap texture in HU.
    let ct: Vec<i16> = (0..size.count()).map(|i| ((i.wrapping_mul(2_654_435_761) >> 12) % 2000) as i16 - 1000).collect();
    let to = respaced(&from, Zyx::splat(1.0), false).expect("a grid");
    let mut askew = to;
    askew.axes_mm.z = Lps([0.0, 0.2, 1.0]);
    // Patient axes the other way round: the copy that turns is part of the measure.
    let turned = Geometry { origin: to.to_lps(to.size.map(|n| n as f64 - 1.0)), axes_mm: to.axes_mm.map(|a| a.scale(-1.0)), ..to };

    let pools = [pool(1), pool(2)];
    let plan = |to: &Geometry, how| Plan::new(&from, to, how, Outside::Edge);
    let linear = measure::<f32>("linear", &plan(&to, Interpolation::Linear), &ct, &pools, ROUNDS);
    measure::<half::f16>("linear", &plan(&to, Interpolation::Linear), &ct, &pools, ROUNDS);
    measure::<f32>("turned", &plan(&turned, Interpolation::Linear), &ct, &pools, ROUNDS);
    let oblique = measure::<f32>("oblique", &plan(&askew, Interpolation::Linear), &ct, &pools, ROUNDS / 2);
    let cubic = measure::<f32>("cubic", &plan(&to, Interpolation::Cubic), &ct, &pools, ROUNDS / 2);

    let Ok(python) = std::env::var("VOXMILL_PYTHON") else { return eprintln!("no peers: VOXMILL_PYTHON names no interpreter") };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/benches/peers.py");
    let done = Command::new(&python)
        .arg(script)
        .args(size.to_array().map(|n| n.to_string()))
        .args(["2", "simpleitk", "torch", "monai", "nnunet"])
        .output();
    let said = done.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    for peer in said.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok()) {
        let name = peer["peer"].as_str().unwrap_or("a peer");
        let own = [("linear", linear), ("oblique", oblique), ("cubic", cubic)].into_iter().find(|(path, _)| peer["path"] == *path);
        match (own, peer["ms"].as_f64()) {
            (Some((path, ms)), Some(theirs)) => line(&format!("{path} int16 to float32"), ms, "ms", &format!("{name}, speed"), theirs / ms),
            _ => eprintln!("{name} is not there: {}", peer["missing"]),
        }
    }
}
