//! NIfTI-1 and NIfTI-2 (`.nii`, `.nii.gz`) ↔ voxels with a geometry. Own code: the header is 348 or 540 bytes of plain numbers.
//! Millimetres are turned from RAS+ (NIfTI) to LPS (DICOM) on the way in and back on the way out. Header/image pairs (`.hdr`, `.img`) are refused.

mod header;
mod read;
mod write;

pub use read::{Image, read, read_indexed};
pub use write::{Channels, Options, write};
