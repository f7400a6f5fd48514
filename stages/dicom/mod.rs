//! DICOM, as real archives hold it. The only folder that knows the dicom-* crates; it never heard of Zarr. Images are read in the order
//! scan → header → group → order → pixels: bytes, plain data, volumes, one grid, voxels. A pixel goes frames → codec → values or colour.

mod allowance;
mod blend;
pub mod bytes;
pub mod catalog;
mod charset;
pub mod classes;
pub mod codec;
mod colour;
pub mod containers;
pub mod contents;
mod csa;
pub mod deid;
mod directory;
mod extras;
mod fields;
mod fill;
mod fragments;
mod frames;
mod gaps;
pub mod geometry;
pub mod group;
pub mod header;
pub mod identity;
mod jpeg;
mod jpeg2000;
mod jpeg2000_size;
pub mod jpegls;
pub mod keys;
mod knee;
pub mod level;
mod look;
mod lut;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod made;
pub mod memory;
pub mod mosaic;
mod multiframe;
pub mod name_file;
pub mod names;
pub mod order;
pub mod pack;
pub mod pattern;
pub mod phantom;
pub mod pixels;
pub mod place;
pub mod places;
pub mod read;
mod recent;
mod repeats;
mod rle;
pub mod rows;
pub mod rtstruct;
pub mod scan;
pub mod seg;
mod seg_frames;
mod seg_lay;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod series;
pub mod source;
pub mod survey;
pub mod suv;
pub mod trace;
mod tree;
mod twins;
mod unfold;
mod values;
mod view;
pub mod walk;
pub mod write;
pub mod write_rtstruct;
pub mod write_seg;

pub use fill::Fill;
pub use trace::Holes;
