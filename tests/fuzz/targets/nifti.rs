//! Any bytes as a NIfTI file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use voxmill_fuzz::{file, nifti, within_promise};

fuzz_target!(|bytes: &[u8]| {
    within_promise(bytes.len(), || {
        let _ = nifti::read(&file("x.nii", bytes));
    });
});
