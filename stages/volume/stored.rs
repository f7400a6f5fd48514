//! A volume on a shelf: regions are read brick by brick through RAM, NVMe and disk, converted to float32 straight into the patch.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use voxmill_schemas::artifact::Key;
use voxmill_schemas::geometry::Geometry;
use voxmill_schemas::region::Region;

use super::array::{self, ArrayFile, Fault, OpenShards};
use super::chain::Chain;
use super::layout::Dtype;
use super::reading::{ArrayName, Reading, Threads};
use super::step::Outline;
use super::{About, Labels, Volume, Voxels, group, lazy};
use crate::error::Error;
use crate::ops::boxes::{self, Paste};
use crate::ops::lanes::Lanes;
use crate::store::{Array, Brick, Store};

/// A volume on a shelf: its metadata read, its voxels not.
pub struct StoredVolume {
    pub dir: PathBuf,
    pub key: Key,
    pub geometry: Geometry,
    pub channels: Vec<String>,
    /// Empty without labels.
    pub classes: IndexMap<String, u8>,
    pub about: About,
    /// The array that is stored, and the steps from there to this volume; absent where there are no channels.
    pub(super) image: Option<(ArrayFile, Chain)>,
    label_array: Option<ArrayFile>,
}

/// A box of a volume, float32.
#[derive(Clone, Debug, PartialEq)]
pub struct Patch {
    /// `[c, z, y, x]`
    pub voxels: Vec<f32>,
    /// `[z, y, x]`
    pub labels: Option<Vec<u8>>,
}

/// What a brick's number says on the shelves: which array of the artifact it belongs to.
pub(super) const IMAGE: u32 = 0;
const LABELS: u32 = 1;

impl StoredVolume {
    pub fn open(dir: &Path, key: Key) -> Result<Self, Error> {
        Self::open_as(dir, Some(key))
    }

    /// - `key`: `None` for a folder that is no artifact
    pub(super) fn open_as(dir: &Path, key: Option<Key>) -> Result<Self, Error> {
        let open = || -> Result<Self, Fault> {
            array::vouch(dir)?;
            let own = group::read_own(dir)?;
            Ok(Self {
                dir: dir.to_path_buf(),
                key: key.unwrap_or(Key([0; 32])),
                image: lazy::open(dir, &own)?,
                label_array: group::open_labels(dir, &own)?,
                geometry: own.grid,
                channels: own.channels,
                classes: own.classes.unwrap_or_default(),
                about: own.about,
            })
        };
        open().map_err(|f| f.of(dir, key))
    }

    /// `uint8`, `int16`, `uint16`, `float16`, `float32`; `uint8` without channels.
    pub fn dtype(&self) -> &'static str {
        self.kind().name()
    }

    fn kind(&self) -> Dtype {
        self.image.as_ref().map_or(Dtype::U8, |(_, chain)| chain.after().dtype)
    }

    /// All but the voxels.
    pub fn outline(&self) -> Outline {
        Outline {
            geometry: self.geometry,
            channels: self.channels.clone(),
            classes: self.has_labels().then(|| self.classes.clone()),
            dtype: self.kind(),
            about: self.about.clone(),
        }
    }

    /// The volume in memory: read, or made slab by slab where only the steps to it are stored.
    pub fn whole(&self) -> Result<Volume, Error> {
        let voxels = match &self.image {
            None => Voxels::zeros(Dtype::U8, 0),
            Some((array, chain)) if chain.steps.is_empty() => {
                let mut voxels = Voxels::zeros(array.layout.dtype, array.layout.n_channels() * array.layout.size.count());
                array.read(voxels.as_bytes_mut()).map_err(|f| self.fault(f))?;
                voxels
            }
            Some((array, chain)) => self.made(array, chain)?,
        };
        let labels = self.labels()?.map(|voxels| Labels { classes: self.classes.clone(), voxels });
        Ok(Volume { geometry: self.geometry, channels: self.channels.clone(), voxels, labels, about: self.about.clone() })
    }

    pub(super) fn fault(&self, f: Fault) -> Error {
        f.of(&self.dir, Some(self.key).filter(|k| *k != Key([0; 32])))
    }

    pub fn has_labels(&self) -> bool {
        self.label_array.is_some()
    }

    /// The voxels of a region through the shelves. It may stick out of the volume: there stand `outside` and background.
    /// Touches only the bricks that the region overlaps, in parallel; each is checked against its crc32c when it comes from the disk shelf.
    pub fn read(&self, region: Region, outside: f32, store: &Store) -> Result<Patch, Error> {
        self.read_by(Threads::All, region, outside, store)
    }

    /// The same on the threads that are named.
    pub fn read_by(&self, threads: Threads, region: Region, outside: f32, store: &Store) -> Result<Patch, Error> {
        let n = region.size.checked_count().and_then(|n| n.checked_mul(self.channels.len())).filter(|n| *n <= isize::MAX as usize / 4);
        let n = n.ok_or_else(|| Error::TooLarge {
            what: format!("a patch of {}", region.size),
            wanted_bytes: u64::MAX,
            limit_bytes: isize::MAX as u64,
        })?;
        let mut voxels = vec![0.0; n];
        let mut labels = self.has_labels().then(|| vec![0; region.size.count()]);
        self.read_into(region, outside, store, threads, &mut voxels, labels.as_deref_mut())?;
        Ok(Patch { voxels, labels })
    }

    /// As [`StoredVolume::read`], into memory that is there: the batch of a training, used again each step.
    /// - `voxels`: `[c, z, y, x]` of the region; `labels`: `[z, y, x]`, all background where the volume has none
    pub fn read_into(
        &self,
        region: Region,
        outside: f32,
        store: &Store,
        threads: Threads,
        voxels: &mut [f32],
        labels: Option<&mut [u8]>,
    ) -> Result<(), Error> {
        assert_eq!(voxels.len(), self.channels.len() * region.size.count(), "the caller gives room for the region");
        self.image_into(region, outside, Some(store), threads, voxels)?;
        let Some(labels) = labels else { return Ok(()) };
        assert_eq!(labels.len(), region.size.count(), "the caller gives room for the region");
        let sticks_out = !Region::whole(self.geometry.size).contains(&region);
        if sticks_out || self.label_array.is_none() {
            labels.fill(0);
        }
        match &self.label_array {
            Some(array) => {
                let shards = array.shards();
                self.reading(&shards, LABELS, Some(store), threads, |reading| reading.fill(region, labels, boxes::as_is))
            }
            None => Ok(()),
        }
    }

    /// The bricks that reading a region will ask the shelves for, with the bytes each takes in memory.
    pub fn bricks(&self, region: Region) -> Result<Vec<(Brick, u64)>, Error> {
        let mut out = Vec::new();
        let mut list = |array: &ArrayFile, number: u32, region: Region| -> Result<(), Fault> {
            let (layout, shards, name) = (&array.layout, array.shards(), self.array_name(number));
            let Some(inside) = region.intersect(&Region::whole(layout.size)) else { return Ok(()) };
            for (channel, at) in (0..layout.n_channels()).flat_map(|c| inside.chunks(layout.brick).map(move |at| (c, at))) {
                if !shards.is_absent(channel, at)? {
                    out.push((name.brick(channel, at), layout.brick_bytes() as u64));
                }
            }
            Ok(())
        };
        if let Some((array, chain)) = &self.image
            && let Some(inside) = region.intersect(&Region::whole(self.geometry.size))
        {
            list(array, IMAGE, if chain.steps.is_empty() { inside } else { chain.needs(inside) }).map_err(|f| self.fault(f))?;
        }
        if let Some(array) = &self.label_array {
            list(array, LABELS, region).map_err(|f| self.fault(f))?;
        }
        Ok(out)
    }

    /// The arrays that reading comes from.
    pub fn arrays(&self) -> Vec<Array> {
        let image = self.image.as_ref().map(|(array, _)| self.array_name(IMAGE).array(&array.layout));
        let labels = self.label_array.as_ref().map(|array| self.array_name(LABELS).array(&array.layout));
        image.into_iter().chain(labels).collect()
    }

    fn array_name(&self, array: u32) -> ArrayName {
        ArrayName { artifact: self.key, array }
    }

    /// Reads an array by way of the shelves, where there are any.
    pub(super) fn reading<R>(
        &self,
        shards: &OpenShards,
        number: u32,
        store: Option<&Store>,
        threads: Threads,
        read: impl FnOnce(&Reading) -> R,
    ) -> R {
        let told = |f: Fault| self.fault(f);
        read(&Reading { shards, name: self.array_name(number), store, fetch: None, threads, told: &told })
    }

    /// The first channel alone: of a series with many time points no other brick is touched. Read once and past the shelves, which are for what is read
    /// again. `[z, y, x]` of the region
    pub fn first_channel(&self, region: Region, outside: f32) -> Result<Vec<f32>, Error> {
        let mut voxels = vec![0.0; region.size.count()];
        self.image_into(region, outside, None, Threads::All, &mut voxels)?;
        Ok(voxels)
    }

    /// - `voxels`: `[c, z, y, x]` of the region, of as many of the first channels as there is room for
    fn image_into(&self, region: Region, outside: f32, store: Option<&Store>, threads: Threads, voxels: &mut [f32]) -> Result<(), Error> {
        if !Region::whole(self.geometry.size).contains(&region) {
            voxels.fill(outside);
        }
        let Some((array, chain)) = &self.image else { return Ok(()) };
        let shards = array.shards();
        self.reading(&shards, IMAGE, store, threads, |reading| {
            if chain.steps.is_empty() {
                let paste: Paste<f32> = match array.layout.dtype {
                    Dtype::U8 => |from, to, s| boxes::u8_to_f32(Lanes::here(), from, to, s),
                    Dtype::I16 => |from, to, s| boxes::i16_to_f32(Lanes::here(), from, to, s),
                    Dtype::U16 => |from, to, s| boxes::u16_to_f32(Lanes::here(), from, to, s),
                    Dtype::F16 => boxes::f16_to_f32,
                    Dtype::F32 => boxes::as_is,
                };
                return reading.fill(region, voxels, paste);
            }
            let Some(inside) = region.intersect(&Region::whole(self.geometry.size)) else { return Ok(()) };
            let made = chain.region(inside, &|r| base(array, r, reading))?;
            paste(&made.to_f32(), inside, voxels, region);
            Ok(())
        })
    }

    /// The labels alone, whole: what a plan of patches needs to find foreground. `[z, y, x]`
    pub fn labels(&self) -> Result<Option<Vec<u8>>, Error> {
        let Some(array) = &self.label_array else { return Ok(None) };
        let mut labels = vec![0; array.layout.bytes()];
        array.read(&mut labels).map_err(|f| self.fault(f))?;
        Ok(Some(labels))
    }
}

/// A box of the array that is stored, as it is. It lies inside, and may be empty.
pub(super) fn base(array: &ArrayFile, region: Region, reading: &Reading) -> Result<Voxels, Error> {
    let mut voxels = Voxels::zeros(array.layout.dtype, array.layout.n_channels() * region.size.count());
    match &mut voxels {
        Voxels::U8(x) => reading.fill(region, x, boxes::as_is),
        Voxels::I16(x) => reading.fill(region, x, boxes::as_is),
        Voxels::U16(x) => reading.fill(region, x, boxes::as_is),
        Voxels::F16(x) => reading.fill(region, x, boxes::as_is),
        Voxels::F32(x) => reading.fill(region, x, boxes::as_is),
    }?;
    Ok(voxels)
}

/// Copies a box into a larger one that holds it.
/// - `voxels`: `[c, z, y, x]` of `inside`; `out`: the same of `region`, of as many of the first channels as there is room for
fn paste(voxels: &[f32], inside: Region, out: &mut [f32], region: Region) {
    let n_channels = out.len() / region.size.count().max(1);
    let voxels = &voxels[..n_channels * inside.size.count()];
    let offset = inside.start.zip(region.start).map(|(a, b)| (a - b) as usize);
    for (i, row) in voxels.chunks_exact(inside.size.x.max(1)).enumerate() {
        let (c, z, y) = (i / (inside.size.z * inside.size.y), i / inside.size.y % inside.size.z, i % inside.size.y);
        let at = ((c * region.size.z + z + offset.z) * region.size.y + y + offset.y) * region.size.x + offset.x;
        out[at..at + row.len()].copy_from_slice(row);
    }
}
