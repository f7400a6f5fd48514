//! DICOM, as real archives hold it. The only folder that knows the dicom-* crates; it never heard of Zarr. Images are read in the order
//! scan → header → group → order → pixels: bytes, plain data, volumes, one grid, voxels. A pixel goes frames → codec → values or colour.

pub mod bytes;
pub mod catalog;
pub mod classes;
pub mod codec;
mod colour;
pub mod containers;
pub mod contents;
mod extras;
mod fields;
mod fill;
mod fragments;
mod frames;
pub mod geometry;
pub mod group;
pub mod header;
mod jpeg2000;
pub mod jpegls;
mod knee;
pub mod level;
mod lut;
pub mod names;
pub mod order;
pub mod pack;
pub mod phantom;
pub mod pixels;
pub mod place;
pub mod read;
mod rle;
pub mod rows;
pub mod rtstruct;
pub mod scan;
pub mod seg;
mod seg_frames;
mod seg_lay;
pub mod source;
pub mod suv;
pub mod trace;
mod tree;
mod values;
pub mod walk;
pub mod write;
pub mod write_rtstruct;
pub mod write_seg;

pub use fill::Fill;
pub use trace::Holes;
