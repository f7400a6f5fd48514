//! The promise of augmentation: `cargo bench --bench augment` prints one JSON line a measure, each the best of several rounds in which a copy of the patch, one
//! thread and two take turns. A patch of 128³ is made from a box of 160³: turned, zoomed and bent in one interpolation, then a gamma curve. With VOXMILL_PYTHON
//! set, MONAI's Rand3DElastic (its affine in the same interpolation) and AdjustContrast are timed beside it where that Python has them.

use std::hint::black_box;
use std::process::Command;
use std::time::Instant;

use rayon::ThreadPoolBuilder;
use voxmill_schemas::geometry::Zyx;
use voxmill_stages::ops::augment::{Augment, Sample, Step, apply};
use voxmill_stages::ops::warp::Bend;

const ROUNDS: usize = 9;

fn line(metric: &str, ms: f64, against: &str, ratio: f64) {
    println!(r#"{{"bench":"augment","metric":"{metric}","value":{ms:.1},"unit":"ms","against":"{against}","ratio":{ratio:.2}}}"#);
}

fn ms(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64() * 1e3
}

fn main() {
    let (from, size) = (Zyx::splat(160), Zyx::splat(128));
    let sample = Sample { size: from, channels: 1, voxels: (0..from.count()).map(|i| (i % 997) as f32 / 997.0).collect(), labels: None };
    let (s, c) = 0.3f64.sin_cos();
    let to_input = Zyx::new(Zyx::new(1.1, 0.0, 0.0), Zyx::new(0.0, c, s), Zyx::new(0.0, -s, c));
    let affine = Step::Affine { to_input, size, bend: None };
    let bent = Step::Affine { to_input, size, bend: Some(Bend { sigma: 6.0, magnitude: 150.0, seed: 7 }) };
    let gamma = Step::Gamma { gamma: 1.3, invert: false, retain_stats: false };
    let pools = [1, 2].map(|n| ThreadPoolBuilder::new().num_threads(n).build().expect("a pool of threads"));
    let all = [
        ("affine", Augment(vec![affine])),
        ("affine and elastic", Augment(vec![bent.clone()])),
        ("affine, elastic and gamma", Augment(vec![bent, gamma])),
    ];
    let mut last = f64::INFINITY;
    for (name, steps) in &all {
        let (mut best, mut copy) = ([f64::INFINITY; 2], f64::INFINITY);
        for _ in 0..ROUNDS {
            for (best, pool) in best.iter_mut().zip(&pools) {
                let sample = sample.clone();
                *best = best.min(ms(|| drop(black_box(pool.install(|| apply(steps, sample))))));
            }
            let (patch, mut to) = (vec![1f32; size.count()], vec![0f32; size.count()]);
            copy = copy.min(ms(|| to.copy_from_slice(black_box(&patch))));
            black_box(&to);
        }
        line(&format!("{name} 128³: 2 threads"), best[1], "copying the patch, time", best[1] / copy);
        line(&format!("{name} 128³: 2 threads"), best[1], "1 thread, speed", best[0] / best[1]);
        last = best[1];
    }
    let Ok(python) = std::env::var("VOXMILL_PYTHON") else { return eprintln!("no peers: VOXMILL_PYTHON names no interpreter") };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/benches/peers.py");
    let done = Command::new(&python).arg(script).args(["160", "160", "160", "2", "monai_augment"]).output();
    let said = done.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    for peer in said.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok()) {
        match peer["ms"].as_f64() {
            Some(theirs) => line("affine, elastic and gamma 128³", last, "monai, speed", theirs / last),
            None => eprintln!("monai is not there: {}", peer["missing"]),
        }
    }
}
