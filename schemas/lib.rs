//! The words of Voxmill: everything that is written down or read back. No file, no thread, no clock in here.

pub mod artifact;
pub mod geometry;
pub mod region;
pub mod spec;
pub mod tables;
pub mod zarr_attrs;
