//! Dropout whose dice are ours: a mask is a function of (seed, step, place in the network), so equal seeds give equal bytes and a
//! resumed training goes on with the masks it would have had.

use burn::tensor::{Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Element-wise dropout after a convolution, train mode only.
pub struct Dropout {
    /// Probability and dice; `None` passes everything through.
    dice: Option<(f32, ChaCha8Rng)>,
}

impl Dropout {
    pub fn off() -> Self {
        Self { dice: None }
    }

    /// Masks of training step `step`, drawn in the order in which the network asks for them.
    pub fn new(p: f64, seed: u64, step: u64) -> Self {
        let mut h = blake3::Hasher::new();
        h.update(b"dropout");
        h.update(&seed.to_le_bytes());
        h.update(&step.to_le_bytes());
        Self { dice: (p > 0.0).then(|| (p as f32, ChaCha8Rng::from_seed(*h.finalize().as_bytes()))) }
    }

    /// Zeroes each element with probability p and divides the others by 1 − p.
    pub fn apply(&mut self, x: Tensor<5>) -> Tensor<5> {
        let Some((p, rng)) = &mut self.dice else { return x };
        let shape = x.dims();
        let keep = 1.0 / (1.0 - *p);
        let limit = (*p as f64 * 4294967296.0) as u64;
        let mask: Vec<f32> = (0..shape.iter().product()).map(|_| if u64::from(rng.next_u32()) < limit { 0.0 } else { keep }).collect();
        let mask = Tensor::<5>::from_data(TensorData::new(mask, shape), &x.device());
        x * mask
    }
}
