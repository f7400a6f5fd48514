//! The losses of one head and their gradient on the CPU: two passes over the logits and no copies of them, where the same formulas in tensor
//! operations keep a dozen. Sums run over fixed pieces in float64, so that no bit depends on the number of threads.

use std::sync::Arc;

use rayon::prelude::*;

use crate::model::loss::{FocalForm, Loss};

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
        let mut value = 0.0;
        for (b, (logits, gradient)) in logits.chunks_exact(sample).zip(gradient.chunks_exact_mut(sample)).enumerate() {
            let pieces = Pieces::of(gradient, self.positions);
            let parts: Vec<Sums> = pieces.each(|first, rows| self.measure(b, first, logits, rows));
            let sums = parts.iter().fold(Sums::new(self.classes), |mut all, part| {
                all.add(part);
                all
            });
            value += self.value(&sums);
            let slopes = self.dice_slopes(&sums);
            Pieces::of(gradient, self.positions).each(|first, rows| self.derive(b, first, logits, &slopes, rows));
        }
        ((value * self.weight) as f32, gradient)
    }

    fn first(&self) -> usize {
        if self.loss.include_background { 0 } else { 1 }
    }

    /// What a mean over samples, kept classes and positions divides by.
    fn elements(&self) -> f64 {
        (self.n * (self.classes - self.first()) * self.positions) as f64
    }

    /// The share of one sample in the loss.
    fn value(&self, sums: &Sums) -> f64 {
        let l = &self.loss;
        let smooth = l.smooth / self.box_voxels as f64;
        let kept = &sums.overlap[self.first()..];
        let dice = kept.iter().map(|[both, p, g]| 1.0 - (2.0 * both + smooth) / (p + g + smooth)).sum::<f64>();
        let foreground = (self.n * (self.classes - 1) * self.positions) as f64;
        l.dice * dice / (self.n * kept.len()) as f64
            + l.focal * sums.focal / self.elements()
            + l.cross_entropy * sums.cross_entropy / (self.n * self.positions) as f64
            + l.boundary * sums.boundary / foreground
    }

    /// d Dice / d p = slope[0] + slope[1] · g for each class of a sample, the head's weight in it.
    fn dice_slopes(&self, sums: &Sums) -> Vec<[f32; 2]> {
        let smooth = self.loss.smooth / self.box_voxels as f64;
        let share = self.weight * self.loss.dice / (self.n * (self.classes - self.first())) as f64;
        let slope = |(c, [both, p, g]): (usize, &[f64; 3])| {
            if c < self.first() {
                return [0.0; 2];
            }
            let whole = p + g + smooth;
            [(share * (2.0 * both + smooth) / (whole * whole)) as f32, (-2.0 * share / whole) as f32]
        };
        sums.overlap.iter().enumerate().map(slope).collect()
    }

    /// First pass over the positions from `first` on: leaves the softmax in `rows` and gives the sums.
    fn measure(&self, b: usize, first: usize, logits: &[f32], rows: &mut [&mut [f32]]) -> Sums {
        let mut sums = Sums::new(self.classes);
        let l = &self.loss;
        let truth = &self.one_hot[b * self.classes * self.positions..][..self.classes * self.positions];
        let (mut x, mut g) = (vec![0f32; self.classes], vec![0f32; self.classes]);
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
                    sums.cross_entropy -= f64::from(g[c] * (x[c] - log_sum));
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
    fn derive(&self, b: usize, first: usize, logits: &[f32], slopes: &[[f32; 2]], rows: &mut [&mut [f32]]) {
        let l = &self.loss;
        let truth = &self.one_hot[b * self.classes * self.positions..][..self.classes * self.positions];
        let focal = (self.weight * l.focal / self.elements()) as f32;
        let entropy = (self.weight * l.cross_entropy / (self.n * self.positions) as f64) as f32;
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
            for c in 0..self.classes {
                rows[c][i] = p[c] * (slope[c] - mean) + entropy * (p[c] - g[c]);
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
