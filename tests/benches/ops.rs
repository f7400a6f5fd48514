//! How fast preprocessing runs: `cargo bench --bench ops` prints one JSON line a measure, the best of several runs beside a copy of the result in the same run.
//! The case is a CT of 300×512×512 voxels of 1.25×0.7×0.7 mm; `--small` takes an eighth of it.

use std::hint::black_box;
use std::time::Instant;

use voxmill_schemas::geometry::{Geometry, Lps, Zyx};
use voxmill_stages::ops::resample::{Interpolation, LabelInterpolation, Outside, resample_labels, resample_to};
use voxmill_stages::ops::respace::respaced;
use voxmill_stages::ops::{distance, intensity, metrics, smooth};

const RUNS: usize = 5;

/// Best wall time of [`RUNS`] runs, milliseconds, and the last result.
fn best<T>(mut f: impl FnMut() -> T) -> (f64, T) {
    let mut result = None;
    let ms = (0..RUNS)
        .map(|_| {
            // The last result is freed outside the measure, as a pipeline frees it.
            drop(result.take());
            let start = Instant::now();
            result = Some(black_box(f()));
            start.elapsed().as_secs_f64() * 1e3
        })
        .fold(f64::INFINITY, f64::min);
    (ms, result.expect("at least one run"))
}

fn say(what: &str, ms: f64, bytes: usize) {
    let memory: Vec<u8> = vec![1; bytes];
    let (copy_ms, _) = best(|| memory.clone());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!(
        r#"{{"bench":"{what}","ms":{ms:.1},"result_bytes":{bytes},"memcpy_ms":{copy_ms:.1},"times_memcpy":{:.2},"threads":{threads}}}"#,
        ms / copy_ms
    );
}

fn main() {
    let small = std::env::args().any(|a| a == "--small");
    let size = if small { Zyx::new(150, 256, 256) } else { Zyx::new(300, 512, 512) };
    let from = Geometry::axis_aligned(size, Zyx::new(1.25, 0.7, 0.7));
    // A cheap texture in HU and blocks of labels.
    let ct: Vec<i16> = (0..size.count()).map(|i| ((i.wrapping_mul(2_654_435_761) >> 12) % 2000) as i16 - 1000).collect();
    let labels: Vec<u8> = (0..size.count()).map(|i| (i % size.x / 64 % 3) as u8).collect();
    let to = respaced(&from, Zyx::splat(1.0), false).expect("a grid");

    let resample = |from: &Geometry, to: &Geometry, how| resample_to(&ct, from, to, how, Outside::Edge);
    let (ms, out) = best(|| {
        let mut out = resample(&from, &to, Interpolation::Linear);
        intensity::window(&mut out, -1000.0, 1000.0, 0.0, 1.0, true);
        out
    });
    say("resample_linear_window", ms, 4 * out.len());
    let (ms, out) = best(|| resample_labels(&labels, &from, &to, LabelInterpolation::Nearest, Outside::Edge));
    say("resample_labels_nearest", ms, out.len());
    let (ms, out) = best(|| resample_labels(&labels, &from, &to, LabelInterpolation::Linear, Outside::Edge));
    say("resample_labels_linear", ms, out.len());
    let (ms, out) = best(|| resample(&from, &to, Interpolation::Cubic));
    say("resample_cubic", ms, 4 * out.len());

    let mut tilted = to;
    tilted.axes_mm.z = Lps([0.0, 0.2, 1.0]);
    let (ms, mut out) = best(|| resample(&from, &tilted, Interpolation::Linear));
    say("resample_linear_oblique", ms, 4 * out.len());
    let (ms, _) = best(|| intensity::zscore(&mut out, |_, _| true));
    say("zscore", ms, 4 * out.len());
    let (ms, smoothed) = best(|| smooth::gaussian(&out, to.size, Zyx::splat(1.0), smooth::Edge::Repeat));
    say("gaussian_sigma_1", ms, 4 * smoothed.len());

    let ball = |centre: f64| -> Vec<u8> {
        let n = to.size;
        let r2 = (n.x as f64 / 4.0).powi(2);
        (0..n.count())
            .map(|i| {
                let d = Zyx::new(i / (n.y * n.x), i / n.x % n.y, i % n.x).zip(n).map(|(i, n)| i as f64 - n as f64 * centre);
                (d.z * d.z + d.y * d.y + d.x * d.x < r2) as u8
            })
            .collect()
    };
    let (a, b) = (ball(0.5), ball(0.52));
    let (ms, d) = best(|| distance::squared_mm2(&a, to.size, Zyx::splat(1.0)));
    say("distance_transform", ms, 4 * d.len());
    let (ms, _) = best(|| metrics::hd95_mm(&a, &b, 1, to.size, Zyx::splat(1.0)));
    say("hd95", ms, a.len());
}
