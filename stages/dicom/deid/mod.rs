//! De-identification of DICOM files (PS3.15 annex E): bytes in, bytes out, in one pass over the elements and without touching a pixel.
//! table (what the standard says) → policy (what that means here) → rewrite (elements) → file → archive (all files of a folder).

pub mod archive;
mod bytes;
pub mod file;
mod look;
pub mod policy;
mod rewrite;
pub mod table;
#[cfg(test)]
mod tests;
mod values;

pub use file::Rules;
pub use policy::{BurnedIn, Dates, Private, Profile};
pub use rewrite::Tally;
