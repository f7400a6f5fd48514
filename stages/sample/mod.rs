//! From cases to batches: `plan` throws all dice (pure), `cut` reads a box and applies its augmentation, `batch` lays patches side by side,
//! `feed` does it on worker threads and hands batches out in plan order. Resume needs nothing but (epoch, step).

pub mod batch;
pub mod cut;
pub mod draw;
pub mod feed;
pub mod plan;

pub use batch::Batch;
pub use draw::Random;
pub use plan::{PatchAt, Plan};
