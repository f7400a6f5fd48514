//! The verbs of Voxmill. RULE: a file is a stage, a folder is something stages stand on (`lib.rs`, `stage.rs`, `error.rs` apart).
//! A stage never imports another stage. A stage is added in one file plus two sorted lines here: `pub mod` and the registry.

pub mod annotate;
pub mod assemble;
pub mod contrast;
pub mod crop_foreground;
pub mod deidentify;
pub mod dicom;
pub mod error;
pub mod evaluate;
pub mod export;
pub mod fingerprint;
#[cfg(feature = "model")]
pub mod fit;
#[cfg(feature = "model")]
pub mod import;
pub mod index;
#[cfg(feature = "model")]
pub mod infer;
pub mod labels;
#[cfg(feature = "model")]
pub mod model;
pub mod nifti;
pub mod normalize;
pub mod ops;
pub mod orient;
pub mod pad;
pub mod recommend;
pub mod resample;
pub mod sample;
pub mod scale;
pub mod smooth;
pub mod split;
pub mod stack;
pub mod stage;
pub mod store;
pub mod table;
#[cfg(feature = "model")]
pub mod train;
pub mod volume;
pub mod window;

use stage::StageDef;

/// Every stage we ship, sorted by name.
pub const STAGES: &[StageDef] = &[
    StageDef::of::<annotate::Annotate>(),
    StageDef::of::<assemble::Assemble>(),
    StageDef::of::<contrast::Contrast>(),
    StageDef::of::<crop_foreground::CropForeground>(),
    StageDef::of::<deidentify::Deidentify>(),
    StageDef::of::<evaluate::Evaluate>(),
    StageDef::of::<export::Export>(),
    StageDef::of::<fingerprint::Fingerprint>(),
    #[cfg(feature = "model")]
    StageDef::of::<import::Import>(),
    StageDef::of::<index::Index>(),
    #[cfg(feature = "model")]
    StageDef::of::<infer::Infer>(),
    StageDef::of::<normalize::Normalize>(),
    StageDef::of::<orient::Orient>(),
    StageDef::of::<pad::Pad>(),
    StageDef::of::<recommend::Recommend>(),
    StageDef::of::<resample::Resample>(),
    StageDef::of::<scale::Scale>(),
    StageDef::of::<smooth::Smooth>(),
    StageDef::of::<split::Split>(),
    StageDef::of::<stack::Stack>(),
    #[cfg(feature = "model")]
    StageDef::of::<train::Train>(),
    StageDef::of::<window::Window>(),
];
