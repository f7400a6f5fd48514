//! Real series against independent readings of them. The folder is `VOXMILL_DATA`, by default the few small series in `tests/data`; what of the
//! expectations is not in the folder is left out, and the number of those that were held is asserted.
#![allow(clippy::unwrap_used)]

mod archive;
mod compare;
mod files;
mod htj2k;
mod pixels;
mod stages;
mod verdicts;
