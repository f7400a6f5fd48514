//! The verbs of Voxmill. RULE: a file is a stage, a folder is something stages stand on (`lib.rs`, `stage.rs`, `error.rs` apart).
//! A stage never imports another stage. A stage is added in one file plus two sorted lines here: `pub mod` and the registry.

pub mod dicom;
pub mod error;
#[cfg(feature = "model")]
pub mod model;
pub mod nifti;
pub mod ops;
pub mod sample;
pub mod stage;
pub mod store;
pub mod table;
pub mod volume;

use stage::StageDef;

/// Every stage we ship, sorted by name.
pub const STAGES: &[StageDef] = &[];
