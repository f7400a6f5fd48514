//! Any bytes as a file of an archive, up to its voxels: with the policies that refuse and with those that take all they can.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use voxmill_fuzz::dicom::names::Names;
use voxmill_fuzz::dicom::order::{Gaps, How};
use voxmill_fuzz::dicom::read::{Reading, volume_into};
use voxmill_fuzz::dicom::suv::Suv;
use voxmill_fuzz::{indexed, mutated, within_promise};
use voxmill_schemas::tables::InstanceRow;

fuzz_target!(|bytes: &[u8]| {
    within_promise(bytes.len(), || {
        let (_, instances) = indexed("x.dcm", bytes, &Names::Own);
        let mut volumes: BTreeMap<(String, i64), Vec<InstanceRow>> = BTreeMap::new();
        for row in instances {
            volumes.entry((row.series.clone(), row.volume)).or_default().push(row);
        }
        let (gaps, suv) = match bytes.len() % 4 {
            0 => (Gaps::Refuse, None),
            1 => (Gaps::Keep, None),
            2 => (Gaps::Fill, None),
            _ => (Gaps::Keep, Some(Suv::BodyWeight)),
        };
        let takes_all = gaps != Gaps::Refuse;
        let reading = Reading {
            how: How { keeps_single: true, gaps, takes_unplaced: takes_all },
            limit_bytes: 4 << 30,
            keeps_colour: takes_all,
            suv,
            is_repeat: bytes.len() % 8 > 3,
            step: &|_| Ok(()),
        };
        for rows in volumes.values() {
            // As `assemble` does: slab by slab where slices can be given as they are decoded.
            let _ = volume_into(rows, &reading, Some(&mut |_, _, slab| Ok(Some(slab))));
        }
    });
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| { mutated(data, size, max_size, seed) });
