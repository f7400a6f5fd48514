//! One patch from a shelf: read the box, apply what was drawn. Beyond the volume stand 0 and background, as in sliding-window inference.

use std::panic::{AssertUnwindSafe, catch_unwind};

use voxmill_schemas::artifact::CaseId;
use voxmill_schemas::geometry::Zyx;

use super::batch::{Batch, collate};
use super::plan::PatchAt;
use crate::error::Error;
use crate::ops::augment::{Sample, apply};
use crate::store::Store;
use crate::volume::StoredVolume;

/// What stands beyond the border of a volume.
pub const OUTSIDE: f32 = 0.0;

/// A case to cut from.
pub struct Source {
    pub case: CaseId,
    pub volume: StoredVolume,
}

/// Reads and augments one patch.
pub fn cut(source: &Source, at: &PatchAt, store: &Store) -> Result<Sample, Error> {
    let p = source.volume.read(at.region, OUTSIDE, store)?;
    let s = Sample { size: at.region.size, channels: source.volume.channels.len(), voxels: p.voxels, labels: p.labels };
    Ok(apply(&at.augment, s))
}

/// The batch of one step. An error, or a panic, tells which case it was.
pub fn batch(sources: &[Source], patches: &[PatchAt], size: Zyx<usize>, store: &Store) -> Result<Batch, Error> {
    let mut done = Vec::with_capacity(patches.len());
    for at in patches {
        let source = &sources[at.case as usize];
        let sample = caught(|| cut(source, at, store)).map_err(|e| match e {
            Error::Cancelled => e,
            e => Error::Patch { case: source.case.0.clone(), source: Box::new(e) },
        })?;
        done.push((at.case, sample));
    }
    let channels = done.first().map_or(0, |(_, s)| s.channels);
    Ok(collate(done, channels, size))
}

/// A panic as an error.
pub(super) fn caught<T>(f: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(Error::Panicked { stage: "sample", text: text.to_string() })
    })
}
