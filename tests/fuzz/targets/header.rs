//! Any bytes as a file of an archive: what kind of file, the header, the rows of the index, with ids as they are and under pseudonyms.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use voxmill_fuzz::dicom::names::Names;
use voxmill_fuzz::{indexed, mutated, within_promise};

fuzz_target!(|bytes: &[u8]| {
    within_promise(bytes.len(), || {
        indexed("x.dcm", bytes, &Names::Own);
        indexed("x.dcm", bytes, &Names::keyed(b"fuzz"));
    });
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| { mutated(data, size, max_size, seed) });
