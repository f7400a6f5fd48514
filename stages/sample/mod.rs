//! From cases to batches: `plan` throws all dice (pure), `cut` reads a box and applies its augmentation, `batch` lays patches side by side,
//! `feed` does it on worker threads and hands batches out in plan order, `foresight` tells the shelves what comes. Resume needs nothing but (epoch, step).

pub mod batch;
pub mod cut;
pub mod draw;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod faults;
pub mod feed;
pub mod foresight;
pub mod plan;
pub mod sampler;

pub use batch::{Batch, Pool};
pub use draw::Random;
pub use plan::{PatchAt, Plan};
pub use sampler::{Rank, Sampler};
