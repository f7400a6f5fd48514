//! An image that is written as it is made: a stage gives planes in order of z and never holds the whole of it.

use std::path::{Path, PathBuf};

use voxmill_schemas::geometry::{Geometry, Zyx};

use super::group::{IMAGE, write_head};
use super::layout::{Dtype, Layout};
use super::step::Outline;
use super::writer::ArrayWriter;
use super::{About, Volume, Voxels};
use crate::error::Error;
use crate::stage::Facts;

/// A volume without labels in the making. What is given up (dropped) leaves files in the draft that the next writer there replaces.
pub struct SlabWriter {
    draft: PathBuf,
    dtype: Dtype,
    n_voxels: usize,
    image: ArrayWriter,
}

/// Slices of one layer of bricks of a volume of `size`: slabs of so many are written without a copy.
pub fn slab_depth(size: Zyx<usize>) -> usize {
    Layout::new(Dtype::U8, None, size).brick.z
}

impl SlabWriter {
    /// - `draft`: the folder of the artifact; `size`: voxels along z, y, x; `is_time`: the channels are repeats
    pub fn create(draft: &Path, dtype: Dtype, n_channels: usize, size: Zyx<usize>, is_time: bool) -> Result<Self, Error> {
        let n_voxels = size.checked_count().and_then(|n| n.checked_mul(n_channels)).filter(|n| *n > 0);
        let Some(n_voxels) = n_voxels else {
            return Err(Error::Geometry { what: "volume".into(), why: format!("its {n_channels} channels of {size} hold no voxel") });
        };
        let layout = Layout { is_time, ..Layout::new(dtype, Some(n_channels), size) };
        Ok(Self { draft: draft.to_path_buf(), dtype, n_voxels, image: ArrayWriter::create(&draft.join(IMAGE), &layout)? })
    }

    /// The next planes of a channel, any number of them. Each channel goes in order of z; channels may take turns, each with a shard open.
    /// - `planes`: `[z, y, x]` as they lie in memory
    pub fn push(&mut self, channel: usize, planes: &[u8]) -> Result<(), Error> {
        self.image.push(channel, planes)
    }

    /// Writes what the volume says of itself, when all planes were given. Returns what [`Volume::facts`] would.
    pub fn finish(self, geometry: Geometry, channels: Vec<String>, about: About) -> Result<Facts, Error> {
        let volume = Volume { geometry, channels, voxels: Voxels::zeros(self.dtype, 0), labels: None, about };
        volume.check(self.n_voxels)?;
        self.image.finish()?;
        let outline = Outline::of(&volume);
        write_head(&self.draft, &outline, true)?;
        Ok(outline.facts(None))
    }
}
