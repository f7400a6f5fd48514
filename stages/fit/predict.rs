//! A whole volume through a network, window by window.

use voxmill_schemas::region::Region;

use crate::error::Error;
use crate::model::{Predictor, Window, slide};
use crate::sample::cut::OUTSIDE;
use crate::store::Store;
use crate::volume::{Patch, StoredVolume};

/// Logits of a volume on its own grid, `[class, z, y, x]`, and what was read for it. `go_on` is asked before every batch of windows.
pub fn volume(
    v: &StoredVolume,
    predictor: &Predictor,
    window: &Window,
    n_outputs: usize,
    store: &Store,
    go_on: &mut dyn FnMut() -> Result<(), Error>,
) -> Result<(Vec<f32>, Patch), Error> {
    let size = v.geometry.size;
    let patch = v.read(Region::whole(size), OUTSIDE, store)?;
    let logits = slide(&patch.voxels, v.channels.len(), size, n_outputs, window, &mut |images, n| {
        go_on()?;
        predictor.forward(images, n, window.size)
    })?;
    Ok((logits, patch))
}
