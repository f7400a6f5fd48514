//! DICOM, as real archives hold it. The only folder that knows the dicom-* crates; it never heard of Zarr. Images are read in the order
//! scan → header → group → order → pixels: bytes, plain data, volumes, one grid, voxels.

pub mod bytes;
pub mod catalog;
pub mod classes;
pub mod codec;
pub mod containers;
pub mod contents;
mod fields;
mod fill;
pub mod geometry;
pub mod group;
pub mod header;
pub mod jpegls;
mod knee;
pub mod level;
pub mod names;
pub mod order;
pub mod pack;
pub mod phantom;
pub mod pixels;
pub mod place;
pub mod read;
pub mod rows;
pub mod rtstruct;
pub mod scan;
pub mod seg;
mod seg_frames;
pub mod source;
pub mod trace;
mod tree;
pub mod walk;
pub mod write;
pub mod write_rtstruct;
pub mod write_seg;

pub use fill::Fill;
pub use trace::Holes;
