//! Any bytes through de-identification, with the basic profile and with every option switched on; what comes out is read again.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use voxmill_fuzz::dicom::bytes::Source;
use voxmill_fuzz::dicom::deid::{BurnedIn, Dates, Private, Profile, Rules, file};
use voxmill_fuzz::dicom::header;
use voxmill_fuzz::dicom::names::Names;
use voxmill_fuzz::{mutated, within_promise};

fuzz_target!(|bytes: &[u8]| {
    let keeping = Profile {
        retain_uids: true,
        retain_dates: Dates::Shift,
        retain_device: true,
        retain_institution: true,
        retain_characteristics: true,
        keep_descriptors: vec!["*".into()],
        private: vec![Private { creator: "SIEMENS MR HEADER".into(), element: "0019,xx0C".into() }],
        burned_in: BurnedIn::Keep,
    };
    within_promise(bytes.len(), || {
        let Ok(source) = Source::of_bytes(bytes.to_vec()) else { return };
        let Ok(all) = source.read_at(0, source.len() as usize) else { return };
        for profile in [Profile::default(), keeping] {
            let rules = Rules::new(profile, Names::keyed(b"fuzz"));
            if let file::Outcome::Made(made) = file::make(&all, source.len(), &rules, &|at, n| source.read_at(at, n)) {
                let _ = header::of_source(&Source::of_raw([made.head, made.tail].concat()));
            }
        }
    });
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| { mutated(data, size, max_size, seed) });
