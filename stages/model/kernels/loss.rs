//! The losses of one head and their gradient on the CPU: two passes over the logits and no copies of them, where the same formulas in tensor
//! operations keep a dozen. Sums run over fixed pieces in float64, so that no bit depends on the number of threads.

use std::sync::Arc;

use rayon::prelude::*;

use crate::model::loss::{FocalForm, Loss};
use crate::model::overlap::{Overlap, overlap};

/// What the logits of one head are measured with.
#[derive(Clone, Debug)]
pub struct HeadLoss {
    pub loss: Loss,
    /// Weight of the head.
    pub weight: f64,
    pub n: usize,
    pub classes: usize,
    /// Positions of the head's grid.
    pub positions: usize,
    /// Voxels that one position stands for.
    pub box_voxels: usize,
    /// [n, class, position]
    pub one_hot: Arc<Vec<f32>>,
    /// [n, class − 1, position]; for the boundary loss only.
    pub distance: Option<Arc<Vec<f32>>>,
}

/// Positions that one task goes through.
const PIECE: usize = 4096;

/// Sums over a piece or a sample: what Dice needs of each class, and the other losses themselves.
#[derive(Clone, Default)]
struct Sums {
    /// For each class Σpg, Σp and Σg.
    overlap: Vec<[f64; 3]>,
    focal: f64,
    cross_entropy: f64,
    boundary: f64,
}

impl Sums {
    fn new(classes: usize) -> Self {
        Sums { overlap: vec![[0.0; 3]; classes], ..Sums::default() }
    }

    fn add(&mut self, other: &Sums) {
        for (a, b) in self.overlap.as_flattened_mut().iter_mut().zip(other.overlap.as_flattened()) {
            *a += b;
        }
        self.focal += other.focal;
        self.cross_entropy += other.cross_entropy;
        self.boundary += other.boundary;
    }
}

impl HeadLoss {
    /// The weighted loss of `logits` [n, class, position] and its gradient of the same shape.
    pub fn value_and_gradient(&self, logits: &[f32]) -> (f32, Vec<f32>) {
        let sample = self.classes * self.positions;
        let mut gradient = vec![0f32; logits.len()];
        let all = |parts: &[Sums]| {
            parts.iter().fold(Sums::new(self.classes), |mut all, part| {
                all.add(part);
                all
            })
        };
        let of_samples: Vec<Sums> = logits
            .chunks_exact(sample)
            .zip(gradient.chunks_exact_mut(sample))
            .enumerate()
            .map(|(b, (logits, gradient))| {
                all(&Pieces::of(gradient, self.positions).each(|first, rows| self.measure(b, first, logits, rows)))
            })
            .collect();
        let whole = all(&of_samples);
        let groups = if self.loss.batch { std::slice::from_ref(&whole) } else { &of_samples };
        let overlaps: Vec<Overlap> = groups.iter().map(|s| overlap(&self.loss, &s.overlap, self.first(), self.box_voxels)).collect();
        let entropy_weight = self.entropy_weight();
        let share = 1.0 / groups.len() as f64;
        let value = overlaps.iter().map(|o| o.value * share).sum::<f64>() + self.value(&whole);
        for (b, (logits, gradient)) in logits.chunks_exact(sample).zip(gradient.chunks_exact_mut(sample)).enumerate() {
            let of_group = &overlaps[if self.loss.batch { 0 } else { b }];
            let slopes: Vec<[f32; 2]> = of_group.slopes.iter().map(|s| s.map(|s| (s * share * self.weight) as f32)).collect();
            Pieces::of(gradient, self.positions).each(|first, rows| self.derive(b, first, logits, &slopes, entropy_weight, rows));
        }
        ((value * self.weight) as f32, gradient)
    }

    /// Σg of every class that counts, for each group of voxels (the others are 0): [Σpg, Σp, Σg].
    pub fn truth_sums(&self) -> Vec<Vec<[f64; 3]>> {
        let of_sample = |b: usize| -> Vec<[f64; 3]> {
            let class = |c: usize| &self.one_hot[(b * self.classes + c) * self.positions..][..self.positions];
            (self.first()..self.classes).map(|c| [0.0, 0.0, class(c).iter().map(|v| f64::from(*v)).sum()]).collect()
        };
        let samples: Vec<_> = (0..self.n).map(of_sample).collect();
        if !self.loss.batch {
            return samples;
        }
        let sum = |c: usize| samples.iter().map(|s| s[c][2]).sum::<f64>();
        vec![(0..self.classes - self.first()).map(|c| [0.0, 0.0, sum(c)]).collect()]
    }

    /// What a voxel of a class counts in the cross-entropy.
    fn class_weight(&self, class: usize) -> f32 {
        self.loss.class_weights.as_ref().map_or(1.0, |w| w.get(class).copied().unwrap_or(1.0) as f32)
    }

    /// What the cross-entropy divides by: the weights of all voxels.
    pub fn entropy_weight(&self) -> f64 {
        if self.loss.class_weights.is_none() {
            return (self.n * self.positions) as f64;
        }
        let of_class =
            |(i, row): (usize, &[f32])| f64::from(self.class_weight(i % self.classes)) * row.iter().map(|v| f64::from(*v)).sum::<f64>();
        let sum: f64 = self.one_hot.chunks_exact(self.positions).enumerate().map(of_class).sum();
        // A batch of voxels that all count nothing.
        if sum > 0.0 { sum } else { 1.0 }
    }

    fn first(&self) -> usize {
        if self.loss.include_background { 0 } else { 1 }
    }

    /// What a mean over samples, kept classes and positions divides by.
    fn elements(&self) -> f64 {
        (self.n * (self.classes - self.first()) * self.positions) as f64
    }

    /// The losses that are means over voxels.
    fn value(&self, sums: &Sums) -> f64 {
        let l = &self.loss;
        let foreground = (self.n * (self.classes - 1) * self.positions) as f64;
        let mut value = 0.0;
        for (weight, sum, divisor) in [(l.focal, sums.focal, self.elements()), (l.boundary, sums.boundary, foreground)] {
            value += weight * sum / divisor;
        }
        if l.cross_entropy > 0.0 { value + l.cross_entropy * sums.cross_entropy / self.entropy_weight() } else { value }
    }

    /// First pass over the positions from `first` on: leaves the softmax in `rows` and gives the sums.
    fn measure(&self, b: usize, first: usize, logits: &[f32], rows: &mut [&mut [f32]]) -> Sums {
        let mut sums = Sums::new(self.classes);
        let l = &self.loss;
        let truth = &self.one_hot[b * self.classes * self.positions..][..self.classes * self.positions];
        let (mut x, mut g) = (vec![0f32; self.classes], vec![0f32; self.classes]);
        let weights: Vec<f32> = (0..self.classes).map(|c| self.class_weight(c)).collect();
        for i in 0..rows[0].len() {
            for c in 0..self.classes {
                (x[c], g[c]) = (logits[c * self.positions + first + i], truth[c * self.positions + first + i]);
            }
            let log_sum = log_sum_exp(&x);
            for c in 0..self.classes {
                let p = (x[c] - log_sum).exp();
                rows[c][i] = p;
                for (sum, v) in sums.overlap[c].iter_mut().zip([p * g[c], p, g[c]]) {
                    *sum += f64::from(v);
                }
                if l.cross_entropy > 0.0 {
                    sums.cross_entropy -= f64::from(weights[c] * g[c] * (x[c] - log_sum));
                }
                if l.boundary > 0.0 && c > 0 {
                    sums.boundary += f64::from(p * self.distance_at(b, c, first + i));
                }
            }
            if l.focal > 0.0 {
                let first = self.first();
                sums.focal += match l.focal_form {
                    FocalForm::Sigmoid => (first..self.classes).map(|c| f64::from(self.focal_sigmoid(x[c], g[c]).0)).sum::<f64>(),
                    FocalForm::Softmax => f64::from(self.focal_softmax(&x[first..], &g[first..], &mut |_, _| ())),
                };
            }
        }
        sums
    }

    /// Second pass: turns the softmax in `rows` into the gradient.
    fn derive(&self, b: usize, first: usize, logits: &[f32], slopes: &[[f32; 2]], entropy_weight: f64, rows: &mut [&mut [f32]]) {
        let l = &self.loss;
        let is_weighted = l.class_weights.is_some();
        let truth = &self.one_hot[b * self.classes * self.positions..][..self.classes * self.positions];
        let focal = (self.weight * l.focal / self.elements()) as f32;
        let entropy = if l.cross_entropy > 0.0 { (self.weight * l.cross_entropy / entropy_weight) as f32 } else { 0.0 };
        let weights: Vec<f32> = (0..self.classes).map(|c| self.class_weight(c)).collect();
        let boundary = (self.weight * l.boundary / (self.n * (self.classes - 1) * self.positions) as f64) as f32;
        let (mut x, mut g, mut p, mut slope) =
            (vec![0f32; self.classes], vec![0f32; self.classes], vec![0f32; self.classes], vec![0f32; self.classes]);
        for i in 0..rows[0].len() {
            // Losses of the probabilities go back through the softmax together: p · (d − Σ d·p).
            let mut mean = 0.0;
            for c in 0..self.classes {
                (x[c], g[c]) = (logits[c * self.positions + first + i], truth[c * self.positions + first + i]);
                p[c] = rows[c][i];
                slope[c] = slopes[c][0] + slopes[c][1] * g[c];
                if boundary > 0.0 && c > 0 {
                    slope[c] += boundary * self.distance_at(b, c, first + i);
                }
                mean += slope[c] * p[c];
            }
            // Σ w·g: 1 where every class counts the same.
            let drawn: f32 = if is_weighted { g.iter().zip(&weights).map(|(g, w)| g * w).sum() } else { 1.0 };
            for c in 0..self.classes {
                rows[c][i] = p[c] * (slope[c] - mean) + entropy * (p[c] * drawn - weights[c] * g[c]);
            }
            if focal > 0.0 {
                let kept = self.first();
                match l.focal_form {
                    FocalForm::Sigmoid => {
                        for c in kept..self.classes {
                            rows[c][i] += focal * self.focal_sigmoid(x[c], g[c]).1;
                        }
                    }
                    FocalForm::Softmax => {
                        self.focal_softmax(&x[kept..], &g[kept..], &mut |c, d| rows[kept + c][i] += focal * d);
                    }
                }
            }
        }
    }

    fn distance_at(&self, b: usize, class: usize, position: usize) -> f32 {
        let distance = self.distance.as_ref().expect("made where the boundary loss has a weight");
        distance[(b * (self.classes - 1) + class - 1) * self.positions + position]
    }

    /// (1 − q)^γ · e and its derivative, e the binary cross-entropy with logits and q = exp(−e); `g` between 0 and 1 mixes both sides.
    fn focal_sigmoid(&self, x: f32, g: f32) -> (f32, f32) {
        let gamma = self.loss.gamma as f32;
        // ln σ(x), ln σ(−x) and σ(x) from one exponential of a negative number.
        let small = (-x.abs()).exp();
        let log = small.ln_1p();
        let (yes, no) = if x > 0.0 { (-log, -x - log) } else { (x - log, -log) };
        let sigmoid = if x > 0.0 { 1.0 / (1.0 + small) } else { small / (1.0 + small) };
        let rest = if x > 0.0 { small / (1.0 + small) } else { 1.0 / (1.0 + small) };
        let power = |base: f32, log: f32| if gamma == 2.0 { base * base } else { (gamma * log).exp() };
        let (of_truth, of_rest) = (power(rest, no), power(sigmoid, yes));
        let value = -(g * of_truth * yes + (1.0 - g) * of_rest * no);
        let slope = -(g * of_truth * (rest - gamma * sigmoid * yes) + (1.0 - g) * of_rest * (gamma * rest * no - sigmoid));
        (value, slope)
    }

    /// Σ −(1 − p)^γ · ln p · g over the classes given; calls `slope(class, derivative)` for each.
    fn focal_softmax(&self, x: &[f32], g: &[f32], slope: &mut dyn FnMut(usize, f32)) -> f32 {
        let gamma = self.loss.gamma as f32;
        let log_sum = log_sum_exp(x);
        // Value and derivative in ln p.
        let term = |c: usize| {
            let log_p = x[c] - log_sum;
            let p = log_p.exp();
            let miss = (1.0 - p).max(0.0);
            let (power, below) = if gamma == 0.0 { (1.0, 0.0) } else { (miss.powf(gamma), gamma * miss.powf(gamma - 1.0)) };
            let below = if below.is_finite() { below } else { 0.0 };
            (-power * log_p * g[c], -g[c] * (power - below * p * log_p), p)
        };
        let (value, total) = (0..x.len()).map(term).fold((0.0, 0.0), |(v, t), (value, d, _)| (v + value, t + d));
        for c in 0..x.len() {
            let (_, d, p) = term(c);
            slope(c, d - p * total);
        }
        value
    }
}

/// ln Σ exp, without overflow.
fn log_sum_exp(x: &[f32]) -> f32 {
    let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    top + x.iter().map(|v| (v - top).exp()).sum::<f32>().ln()
}

/// The rows of a sample [class, position], cut into pieces of positions that tasks may write.
struct Pieces<'a>(Vec<(usize, Vec<&'a mut [f32]>)>);

impl<'a> Pieces<'a> {
    fn of(sample: &'a mut [f32], positions: usize) -> Self {
        let mut pieces: Vec<(usize, Vec<&mut [f32]>)> = (0..positions).step_by(PIECE).map(|first| (first, Vec::new())).collect();
        for row in sample.chunks_exact_mut(positions) {
            for (piece, part) in pieces.iter_mut().zip(row.chunks_mut(PIECE)) {
                piece.1.push(part);
            }
        }
        Pieces(pieces)
    }

    /// Calls `f(first position, rows)` for each piece; results come in the order of the pieces.
    fn each<T: Send>(self, f: impl Fn(usize, &mut [&mut [f32]]) -> T + Sync) -> Vec<T> {
        self.0.into_par_iter().map(|(first, mut rows)| f(first, &mut rows)).collect()
    }
}
