//! Volumes in memory and on a shelf. Arrays are C order, slowest axis first; channels and labels of a volume share one grid and one geometry.

/// The same expression for every type of voxel, whose result is of that type again.
macro_rules! same_type {
    ($voxels:expr, $x:ident => $made:expr) => {
        match $voxels {
            Voxels::U8($x) => Voxels::U8($made),
            Voxels::I16($x) => Voxels::I16($made),
            Voxels::U16($x) => Voxels::U16($made),
            Voxels::F16($x) => Voxels::F16($made),
            Voxels::F32($x) => Voxels::F32($made),
        }
    };
}

/// The same expression for every type of voxel, whatever its result.
macro_rules! any_type {
    ($voxels:expr, $x:ident => $made:expr) => {
        match $voxels {
            Voxels::U8($x) => $made,
            Voxels::I16($x) => $made,
            Voxels::U16($x) => $made,
            Voxels::F16($x) => $made,
            Voxels::F32($x) => $made,
        }
    };
}

mod array;
mod chain;
mod group;
mod layout;
mod lazy;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod lazy_tests;
mod mask;
mod memory;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod place_tests;
mod reading;
mod sidecar;
mod slabs;
mod step;
mod stored;
mod straight;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod writer;

use std::borrow::Cow;

use half::f16;
use half::slice::HalfFloatSliceExt;
use indexmap::IndexMap;
use rayon::prelude::*;
use serde_json::Value;
use voxmill_schemas::geometry::Geometry;
pub use voxmill_schemas::zarr_attrs::{About, Repeats};

pub use self::chain::{Chain, apply};
pub use self::layout::{Dtype, Precision};
pub use self::lazy::is_lazy;
pub use self::mask::mask;
pub use self::memory::{looked_bytes, streamed_bytes, whole_bytes};
pub use self::reading::Threads;
pub use self::sidecar::{Sidecar, VolumeOf, sidecar};
pub use self::slabs::{SlabWriter, slab_depth};
pub use self::step::{Filling, Outline, Step};
pub use self::stored::{Patch, StoredVolume};
pub use self::straight::straightened;
use crate::error::Error;
use crate::ops::padded::Padded;
use crate::stage::Facts;

/// Voxel values, C order.
#[derive(Clone, Debug, PartialEq)]
pub enum Voxels {
    U8(Vec<u8>),
    I16(Vec<i16>),
    U16(Vec<u16>),
    F16(Vec<f16>),
    F32(Vec<f32>),
}

/// An image with its labels, in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Volume {
    pub geometry: Geometry,
    /// One name a channel (`CT`, `T1`); its length is the size of the first axis. Empty where labels stand alone (a prediction).
    pub channels: Vec<String>,
    /// `[c, z, y, x]`
    pub voxels: Voxels,
    pub labels: Option<Labels>,
    pub about: About,
}

/// Class ids, 0 is background.
#[derive(Clone, Debug, PartialEq)]
pub struct Labels {
    /// Name → id, in the order of the YAML.
    pub classes: IndexMap<String, u8>,
    /// `[z, y, x]`
    pub voxels: Vec<u8>,
}

impl Voxels {
    pub fn len(&self) -> usize {
        match self {
            Voxels::U8(v) => v.len(),
            Voxels::I16(v) => v.len(),
            Voxels::U16(v) => v.len(),
            Voxels::F16(v) => v.len(),
            Voxels::F32(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `uint8`, `int16`, `uint16`, `float16`, `float32`.
    pub fn dtype(&self) -> &'static str {
        self.kind().name()
    }

    /// The values as float32; borrowed where they are.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        match self {
            Voxels::U8(v) => v.iter().map(|x| *x as f32).collect(),
            Voxels::I16(v) => v.iter().map(|x| *x as f32).collect(),
            Voxels::U16(v) => v.iter().map(|x| *x as f32).collect(),
            Voxels::F16(v) => {
                let mut out = vec![0.0; v.len()];
                out.par_chunks_mut(1 << 14).zip(v.par_chunks(1 << 14)).for_each(|(out, v)| v.convert_to_f32_slice(out));
                Cow::Owned(out)
            }
            Voxels::F32(v) => Cow::Borrowed(v),
        }
    }

    /// Whether one lies in a range, both ends included.
    pub fn has_value(&self, range: [f64; 2]) -> bool {
        self.to_f32().par_iter().any(|v| Padded::is_padding(range, *v))
    }

    /// The values as float32, where they are if they are that.
    pub(crate) fn into_f32(self) -> Vec<f32> {
        match self {
            Voxels::F32(v) => v,
            other => other.to_f32().into_owned(),
        }
    }

    pub fn kind(&self) -> Dtype {
        match self {
            Voxels::U8(_) => Dtype::U8,
            Voxels::I16(_) => Dtype::I16,
            Voxels::U16(_) => Dtype::U16,
            Voxels::F16(_) => Dtype::F16,
            Voxels::F32(_) => Dtype::F32,
        }
    }

    fn zeros(dtype: Dtype, n: usize) -> Self {
        match dtype {
            Dtype::U8 => Voxels::U8(vec![0; n]),
            Dtype::I16 => Voxels::I16(vec![0; n]),
            Dtype::U16 => Voxels::U16(vec![0; n]),
            Dtype::F16 => Voxels::F16(vec![f16::ZERO; n]),
            Dtype::F32 => Voxels::F32(vec![0.0; n]),
        }
    }

    /// The values as they lie in memory.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Voxels::U8(v) => v,
            Voxels::I16(v) => bytemuck::cast_slice(v),
            Voxels::U16(v) => bytemuck::cast_slice(v),
            Voxels::F16(v) => bytemuck::cast_slice(v),
            Voxels::F32(v) => bytemuck::cast_slice(v),
        }
    }

    fn as_bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Voxels::U8(v) => v,
            Voxels::I16(v) => bytemuck::cast_slice_mut(v),
            Voxels::U16(v) => bytemuck::cast_slice_mut(v),
            Voxels::F16(v) => bytemuck::cast_slice_mut(v),
            Voxels::F32(v) => bytemuck::cast_slice_mut(v),
        }
    }
}

impl Volume {
    /// Bytes of the voxels and labels in memory.
    pub fn bytes(&self) -> u64 {
        (self.voxels.as_bytes().len() + self.labels.as_ref().map_or(0, |l| l.voxels.len())) as u64
    }

    /// Refuses slices that stand at positions of their own (`gaps: keep`): what works on a regular grid would put them in wrong places.
    pub fn check_regular(&self) -> Result<(), Error> {
        check_regular(&self.geometry, &self.about)
    }

    /// [`Outline::facts`] of this volume.
    pub fn facts(&self) -> Facts {
        Outline::of(self).facts(self.labels.as_ref())
    }
}

/// [`Volume::check_regular`] of a volume that is not in memory.
pub fn check_regular(geometry: &Geometry, about: &About) -> Result<(), Error> {
    if about.is_regular() {
        return Ok(());
    }
    let gaps = || about.z_positions_mm.windows(2).map(|w| w[1] - w[0]);
    let (low, high) = (gaps().fold(f64::INFINITY, f64::min), gaps().fold(0.0, f64::max));
    Err(Error::Geometry {
        what: format!("{} slices kept where they lie, {low:.3} to {high:.3} mm apart", geometry.size.z),
        why: "this stage needs a regular grid: put `resample` before it, or take `gaps: fill` in `assemble`".into(),
    })
}

impl Labels {
    /// Class name → number of voxels, in the order of the classes.
    pub fn counts(&self) -> serde_json::Map<String, Value> {
        // Four tables: runs of one class would wait for their own last count.
        let mut n = [[0u64; 256]; 4];
        let (fours, rest) = self.voxels.as_chunks::<4>();
        fours.iter().for_each(|four| four.iter().zip(&mut n).for_each(|(v, n)| n[*v as usize] += 1));
        rest.iter().for_each(|v| n[0][*v as usize] += 1);
        let of = |id: u8| n.iter().map(|n| n[id as usize]).sum::<u64>();
        self.classes.iter().map(|(name, id)| (name.clone(), of(*id).into())).collect()
    }
}
