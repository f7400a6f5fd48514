//! Any bytes as a container (zip, tar, gzip, zstd): its members, each looked at and read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use voxmill_fuzz::dicom::bytes::Source;
use voxmill_fuzz::dicom::names::Names;
use voxmill_fuzz::{indexed, within_promise};

fuzz_target!(|bytes: &[u8]| {
    within_promise(bytes.len(), || {
        let (catalog, _) = indexed("x", bytes, &Names::Own);
        for entry in &catalog.entries {
            if let Ok(source) = Source::raw_at(&catalog.path(entry), entry.seen.member.as_deref()) {
                let _ = source.hash();
            }
        }
    });
});
