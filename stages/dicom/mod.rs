//! DICOM, as real archives hold it. The only folder that knows the dicom-* crates; it never heard of Zarr.

mod fill;
pub mod phantom;
pub mod place;
pub mod rtstruct;
pub mod seg;
mod seg_frames;
pub mod source;
mod tree;
pub mod write;
pub mod write_seg;

pub use fill::Fill;
