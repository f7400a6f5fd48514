//! The losses of one head and their gradient on the CPU: two passes over the logits and no copies of them, where the same formulas in tensor
//! operations keep a dozen. Sums run over fixed pieces in float64, so that no bit depends on the number of threads.

use std::sync::Arc;

use rayon::prelude::*;
use voxmill_schemas::geometry::Zyx;

use crate::model::loss::{FocalForm, Loss, Reduction, Whole};
use crate::model::overlap::{OfClass, Overlap, overlap};
use crate::model::target::{RimMaps, Rims};

/// What the logits of one head are measured with.
#[derive(Clone, Debug)]
pub struct HeadLoss {
    pub loss: Loss,
    /// Weight of the head.
    pub weight: f64,
    /// What means are taken over.
    pub whole: Arc<Whole>,
    pub n: usize,
    pub classes: usize,
    /// Positions of the head's grid.
    pub positions: usize,
    /// Voxels that one position stands for.
    pub box_voxels: usize,
    /// [n, class, position]; 0 in every class where a voxel is ignored.
    pub one_hot: Arc<Vec<f32>>,
    /// The share of a position that is not ignored, [n, position]; all 1 where there is none.
    pub valid: Option<Arc<Vec<f32>>>,
    /// [n, class that counts, position]; for the boundary loss only.
    pub signed: Option<Arc<Vec<f32>>>,
    /// For the Hausdorff loss only: what it needs at full resolution, and the voxels along each axis that a position stands for.
    pub rims: Option<(Arc<Rims>, Zyx<usize>)>,
}

/// Positions that one task goes through.
const PIECE: usize = 4096;

/// Sums over a piece or a sample: what Dice needs of each class, and the other losses themselves.
#[derive(Clone, Default)]
struct Sums {
    overlap: Vec<OfClass>,
    focal: f64,
    cross_entropy: f64,
    boundary: f64,
}

impl Sums {
    fn new(classes: usize) -> Self {
        Sums { overlap: vec![[0.0; 4]; classes], ..Sums::default() }
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

/// Numbers of the second pass that are the same for all positions of a group, the weights of head and losses worked in.
struct Slopes {
    /// [`Overlap::slopes`]
    overlap: Vec<[f32; 3]>,
    focal: f32,
    entropy: f32,
    boundary: f32,
    hausdorff: f32,
}

/// What classes count, looked up once.
struct Counts {
    /// In the focal loss: voxels of the class and of the others.
    focal: Vec<[f32; 2]>,
    /// In the cross-entropy.
    entropy: Vec<f32>,
}

impl HeadLoss {
    /// The weighted loss of `logits` [n, class, position] and its gradient of the same shape.
    pub fn value_and_gradient(&self, logits: &[f32]) -> (f32, Vec<f32>) {
        let l = &self.loss;
        let sample = self.classes * self.positions;
        let counts = Counts {
            focal: (0..self.classes).map(|c| l.focal_factors(c, self.classes).map(|f| f as f32)).collect(),
            entropy: (0..self.classes).map(|c| l.class_weight(c) as f32).collect(),
        };
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
                all(&Pieces::of(gradient, self.positions).each(|first, rows| self.measure(b, first, logits, &counts, rows)))
            })
            .collect();
        let whole = all(&of_samples);
        let groups = if l.batch { std::slice::from_ref(&whole) } else { &of_samples };
        let overlaps: Vec<Overlap> = groups.iter().map(|s| overlap(l, &s.overlap, self.box_voxels)).collect();
        let share = 1.0 / self.of_sum(self.groups());
        // The softmax stands where the gradient will.
        let first = l.first_class();
        let p = |b: usize, class: usize| &gradient[(b * self.classes + first + class) * self.positions..][..self.positions];
        let rims = self.rims.is_some().then(|| self.hausdorff_maps(p));
        let hausdorff = rims.as_ref().map_or(0.0, |maps| self.hausdorff_sum(maps, p));

        let (of_voxels, of_rims) = (self.elements(false), self.elements(l.batch));
        let entropy_divisor = if l.cross_entropy > 0.0 { self.entropy_divisor() } else { 1.0 };
        let mut value = overlaps.iter().map(|o| o.value * share).sum::<f64>();
        value += l.focal * whole.focal / of_voxels + l.boundary * whole.boundary / of_rims + l.hausdorff * hausdorff / of_rims;
        value += l.cross_entropy * whole.cross_entropy / entropy_divisor;
        let of_head = |v: f64| (v * self.weight) as f32;
        for (b, (logits, gradient)) in logits.chunks_exact(sample).zip(gradient.chunks_exact_mut(sample)).enumerate() {
            let of_group = &overlaps[if l.batch { 0 } else { b }];
            let slopes = Slopes {
                overlap: of_group.slopes.iter().map(|s| s.map(|s| of_head(s * share))).collect(),
                focal: of_head(l.focal / of_voxels),
                entropy: of_head(l.cross_entropy / entropy_divisor),
                boundary: of_head(l.boundary / of_rims),
                hausdorff: of_head(l.hausdorff / of_rims),
            };
            let at = (b, &counts, &slopes, rims.as_ref());
            Pieces::of(gradient, self.positions).each(|first, rows| self.derive(at, first, logits, rows));
        }
        ((value * self.weight) as f32, gradient)
    }

    /// Σg of every class that counts, for each group of voxels; the other sums are 0.
    pub fn truth_sums(&self) -> Vec<Vec<OfClass>> {
        let first = self.loss.first_class();
        let of_sample = |b: usize| -> Vec<OfClass> {
            let class = |c: usize| &self.one_hot[(b * self.classes + c) * self.positions..][..self.positions];
            (first..self.classes).map(|c| [0.0, 0.0, class(c).iter().map(|v| f64::from(*v)).sum(), 0.0]).collect()
        };
        let samples: Vec<_> = (0..self.n).map(of_sample).collect();
        if !self.loss.batch {
            return samples;
        }
        let sum = |c: usize| samples.iter().map(|s| s[c][2]).sum::<f64>();
        vec![(0..self.classes - first).map(|c| [0.0, 0.0, sum(c), 0.0]).collect()]
    }

    /// How many groups of voxels have overlaps of their own, over the whole step.
    pub fn groups(&self) -> f64 {
        (if self.loss.batch { self.whole.parts } else { self.whole.n }) as f64
    }

    /// What a sum over `count` losses is divided by.
    pub fn of_sum(&self, count: f64) -> f64 {
        if self.loss.reduction == Reduction::Mean { count } else { 1.0 }
    }

    /// What the cross-entropy divides by: the weights of all voxels, or nothing.
    pub fn entropy_divisor(&self) -> f64 {
        let share = self.box_voxels as f64;
        if self.loss.reduction == Reduction::Sum {
            return 1.0 / share;
        }
        let sum: f64 = self.whole.class_voxels.iter().enumerate().map(|(c, n)| self.loss.class_weight(c) * n).sum();
        // A batch of voxels that all count nothing.
        if sum > 0.0 { sum / share } else { 1.0 }
    }

    /// What a sum over samples, classes that count and positions is divided by; `batch`: the sum over samples is a mean in any case.
    pub fn elements(&self, batch: bool) -> f64 {
        let kept = self.classes - self.loss.first_class();
        let sums = if batch { kept } else { self.whole.n * kept };
        let valid = self.whole.class_voxels.iter().sum::<f64>().max(1.0) / self.box_voxels as f64;
        valid * kept as f64 / if self.loss.reduction == Reduction::Mean { 1.0 } else { sums as f64 }
    }

    /// Weights of the squared error, given the probabilities of a sample and a class, counted from the first that counts.
    pub fn hausdorff_maps<'a>(&self, p: impl Fn(usize, usize) -> &'a [f32]) -> RimMaps {
        let (rims, factor) = self.rims.as_ref().expect("made where the Hausdorff loss has a weight");
        rims.maps(self.n, self.classes - self.loss.first_class(), *factor, p)
    }

    /// Σ (p − g)²·D.
    fn hausdorff_sum<'a>(&self, maps: &RimMaps, p: impl Fn(usize, usize) -> &'a [f32] + Sync) -> f64 {
        let kept = self.classes - self.loss.first_class();
        let of_map = |m: usize| -> f64 {
            let at = m * self.positions..(m + 1) * self.positions;
            let (all, on_truth) = (&maps.all[at.clone()], &maps.on_truth[at]);
            let of =
                |((p, d), t): ((&f32, &f32), &f32)| f64::from(*p) * (f64::from(*p) * f64::from(*d) - 2.0 * f64::from(*t)) + f64::from(*t);
            p(m / kept, m % kept).iter().zip(all).zip(on_truth).map(of).sum()
        };
        (0..self.n * kept).into_par_iter().map(of_map).collect::<Vec<_>>().into_iter().sum()
    }

    /// First pass over the positions from `first` on: leaves the softmax in `rows` and gives the sums.
    fn measure(&self, b: usize, first: usize, logits: &[f32], counts: &Counts, rows: &mut [&mut [f32]]) -> Sums {
        let mut sums = Sums::new(self.classes);
        let l = &self.loss;
        let kept = l.first_class();
        let truth = &self.one_hot[b * self.classes * self.positions..][..self.classes * self.positions];
        let (mut x, mut g) = (vec![0f32; self.classes], vec![0f32; self.classes]);
        for i in 0..rows[0].len() {
            for c in 0..self.classes {
                (x[c], g[c]) = (logits[c * self.positions + first + i], truth[c * self.positions + first + i]);
            }
            let valid = self.valid_at(b, first + i);
            let log_sum = log_sum_exp(&x);
            for c in 0..self.classes {
                let p = (x[c] - log_sum).exp();
                rows[c][i] = p;
                for (sum, v) in sums.overlap[c].iter_mut().zip([p * g[c], p * valid, g[c], p * p * valid]) {
                    *sum += f64::from(v);
                }
                if l.cross_entropy > 0.0 {
                    sums.cross_entropy -= f64::from(counts.entropy[c] * self.smoothed(g[c], valid) * (x[c] - log_sum));
                }
                if l.boundary > 0.0 && c >= kept {
                    sums.boundary += f64::from(p * self.signed_at(b, c - kept, first + i));
                }
            }
            if l.focal > 0.0 {
                sums.focal += match l.focal_form {
                    FocalForm::Sigmoid => {
                        (kept..self.classes).map(|c| f64::from(self.focal_sigmoid(x[c], g[c], valid, counts.focal[c]).0)).sum::<f64>()
                    }
                    FocalForm::Softmax => f64::from(self.focal_softmax(&x[kept..], &g[kept..], &counts.focal[kept..], &mut |_, _| ())),
                };
            }
        }
        sums
    }

    /// Second pass: turns the softmax in `rows` into the gradient.
    fn derive(
        &self,
        (b, counts, slopes, rims): (usize, &Counts, &Slopes, Option<&RimMaps>),
        first: usize,
        logits: &[f32],
        rows: &mut [&mut [f32]],
    ) {
        let l = &self.loss;
        let kept = l.first_class();
        let truth = &self.one_hot[b * self.classes * self.positions..][..self.classes * self.positions];
        let mut buffers = vec![0f32; 5 * self.classes];
        let (x, rest) = buffers.split_at_mut(self.classes);
        let (g, rest) = rest.split_at_mut(self.classes);
        let (p, rest) = rest.split_at_mut(self.classes);
        let (slope, drawn) = rest.split_at_mut(self.classes);
        for i in 0..rows[0].len() {
            let valid = self.valid_at(b, first + i);
            // Losses of the probabilities go back through the softmax together: p · (d − Σ d·p).
            let (mut mean, mut all_drawn) = (0.0, 0.0);
            for c in 0..self.classes {
                (x[c], g[c]) = (logits[c * self.positions + first + i], truth[c * self.positions + first + i]);
                p[c] = rows[c][i];
                let of = slopes.overlap[c];
                slope[c] = valid * (of[0] + of[2] * p[c]) + of[1] * g[c];
                if c >= kept {
                    if l.boundary > 0.0 {
                        slope[c] += slopes.boundary * self.signed_at(b, c - kept, first + i);
                    }
                    if let Some(maps) = rims {
                        let at = (b * (self.classes - kept) + c - kept) * self.positions + first + i;
                        slope[c] += slopes.hausdorff * 2.0 * (p[c] * maps.all[at] - maps.on_truth[at]);
                    }
                }
                mean += slope[c] * p[c];
                drawn[c] = counts.entropy[c] * self.smoothed(g[c], valid);
                all_drawn += drawn[c];
            }
            for c in 0..self.classes {
                rows[c][i] = p[c] * (slope[c] - mean) + slopes.entropy * (p[c] * all_drawn - drawn[c]);
            }
            if l.focal > 0.0 {
                match l.focal_form {
                    FocalForm::Sigmoid => {
                        for c in kept..self.classes {
                            rows[c][i] += slopes.focal * self.focal_sigmoid(x[c], g[c], valid, counts.focal[c]).1;
                        }
                    }
                    FocalForm::Softmax => {
                        self.focal_softmax(&x[kept..], &g[kept..], &counts.focal[kept..], &mut |c, d| {
                            rows[kept + c][i] += slopes.focal * d
                        });
                    }
                }
            }
        }
    }

    fn valid_at(&self, b: usize, position: usize) -> f32 {
        self.valid.as_ref().map_or(1.0, |v| v[b * self.positions + position])
    }

    /// The truth of the cross-entropy.
    fn smoothed(&self, g: f32, valid: f32) -> f32 {
        let smoothing = self.loss.label_smoothing as f32;
        if smoothing == 0.0 { g } else { g * (1.0 - smoothing) + valid * smoothing / self.classes as f32 }
    }

    fn signed_at(&self, b: usize, class: usize, position: usize) -> f32 {
        let signed = self.signed.as_ref().expect("made where the boundary loss has a weight");
        signed[(b * (self.classes - self.loss.first_class()) + class) * self.positions + position]
    }

    /// (1 − q)^γ · e and its derivative, e the binary cross-entropy with logits and q = exp(−e); `g` between 0 and `valid` mixes both sides, `counts` says
    /// what they count.
    fn focal_sigmoid(&self, x: f32, g: f32, valid: f32, counts: [f32; 2]) -> (f32, f32) {
        let gamma = self.loss.gamma as f32;
        // ln σ(x), ln σ(−x) and σ(x) from one exponential of a negative number.
        let small = (-x.abs()).exp();
        let log = small.ln_1p();
        let (yes, no) = if x > 0.0 { (-log, -x - log) } else { (x - log, -log) };
        let sigmoid = if x > 0.0 { 1.0 / (1.0 + small) } else { small / (1.0 + small) };
        let rest = if x > 0.0 { small / (1.0 + small) } else { 1.0 / (1.0 + small) };
        let power = |base: f32, log: f32| if gamma == 2.0 { base * base } else { (gamma * log).exp() };
        let of_truth = counts[0] * g * power(rest, no);
        let of_rest = counts[1] * (valid - g) * power(sigmoid, yes);
        let value = -(of_truth * yes + of_rest * no);
        let slope = -(of_truth * (rest - gamma * sigmoid * yes) + of_rest * (gamma * rest * no - sigmoid));
        (value, slope)
    }

    /// Σ −(1 − p)^γ · ln p · g over the classes given, weighted by `counts`; calls `slope(class, derivative)` for each.
    fn focal_softmax(&self, x: &[f32], g: &[f32], counts: &[[f32; 2]], slope: &mut dyn FnMut(usize, f32)) -> f32 {
        let gamma = self.loss.gamma as f32;
        let log_sum = log_sum_exp(x);
        // Value and derivative in ln p.
        let term = |c: usize| {
            let log_p = x[c] - log_sum;
            let p = log_p.exp();
            let miss = (1.0 - p).max(0.0);
            let (power, below) = if gamma == 0.0 { (1.0, 0.0) } else { (miss.powf(gamma), gamma * miss.powf(gamma - 1.0)) };
            let below = if below.is_finite() { below } else { 0.0 };
            let g = counts[c][0] * g[c];
            (-power * log_p * g, -g * (power - below * p * log_p), p)
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
