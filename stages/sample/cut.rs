//! One patch from a shelf: read the box, apply what was drawn. Beyond the volume stand 0 and background, as in sliding-window inference.

use std::panic::{AssertUnwindSafe, catch_unwind};

use voxmill_schemas::artifact::CaseId;
use voxmill_schemas::geometry::Zyx;

use super::batch::{Batch, Pool};
use super::plan::PatchAt;
use crate::error::Error;
use crate::ops::augment::{Sample, apply};
use crate::store::Store;
use crate::volume::{StoredVolume, Threads};

/// What stands beyond the border of a volume.
pub const OUTSIDE: f32 = 0.0;

/// A case to cut from.
pub struct Source {
    pub case: CaseId,
    pub volume: StoredVolume,
}

/// Reads and augments one patch.
pub fn cut(source: &Source, at: &PatchAt, store: &Store) -> Result<Sample, Error> {
    let p = source.volume.read_by(Threads::This, at.region, OUTSIDE, store)?;
    let s = Sample { size: at.region.size, channels: source.volume.channels.len(), voxels: p.voxels, labels: p.labels };
    Ok(apply(&at.augment, s))
}

/// The batch of one step, in buffers of the pool. A patch that nothing is done to is read straight into its place. An error, or a panic, tells which case it
/// was. Done on this thread: the batches of other steps are made beside it.
pub fn batch(sources: &[Source], patches: &[PatchAt], size: Zyx<usize>, store: &Store, pool: &Pool) -> Result<Batch, Error> {
    let channels = patches.first().map_or(0, |at| sources[at.case as usize].volume.channels.len());
    let mut batch = pool.take(patches.len(), channels, size);
    for (i, at) in patches.iter().enumerate() {
        let source = &sources[at.case as usize];
        let had_labels = batch.is_labelled;
        batch.is_labelled |= source.volume.has_labels();
        let (image, labels) = batch.place(i);
        caught(|| put(source, at, store, image, labels, had_labels)).map_err(|e| match e {
            Error::Cancelled => e,
            e => Error::Patch { case: source.case.0.clone(), source: Box::new(e) },
        })?;
        batch.cases.push(at.case);
    }
    Ok(batch)
}

/// - `image`: `[c, z, y, x]`; `labels`: `[z, y, x]`, all background unless `had_labels`
fn put(source: &Source, at: &PatchAt, store: &Store, image: &mut [f32], labels: &mut [u8], had_labels: bool) -> Result<(), Error> {
    let has_labels = source.volume.has_labels();
    if had_labels && !has_labels {
        labels.fill(0);
    }
    if at.augment.0.is_empty() {
        return source.volume.read_into(at.region, OUTSIDE, store, Threads::This, image, has_labels.then_some(labels));
    }
    let sample = cut(source, at, store)?;
    image.copy_from_slice(&sample.voxels);
    if let Some(l) = sample.labels {
        labels.copy_from_slice(&l);
    }
    Ok(())
}

/// A panic as an error.
pub(super) fn caught<T>(f: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(Error::Panicked { stage: "sample", text: text.to_string() })
    })
}
