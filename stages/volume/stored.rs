//! A volume on a shelf: regions are read brick by brick through RAM, NVMe and disk, converted to float32 straight into the patch.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use rayon::prelude::*;
use voxmill_schemas::artifact::Key;
use voxmill_schemas::geometry::{Geometry, Zyx};
use voxmill_schemas::region::Region;

use super::array::{ArrayFile, Fault, OpenShards};
use super::chain::Chain;
use super::layout::{Dtype, Layout};
use super::step::Outline;
use super::{About, Labels, Volume, Voxels, group, lazy};
use crate::error::Error;
use crate::store::{Brick, Store};

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
const IMAGE: u32 = 0;
const LABELS: u32 = 1;

impl StoredVolume {
    pub fn open(dir: &Path, key: Key) -> Result<Self, Error> {
        Self::open_as(dir, Some(key))
    }

    /// - `key`: `None` for a folder that is no artifact
    pub(super) fn open_as(dir: &Path, key: Option<Key>) -> Result<Self, Error> {
        let open = || -> Result<Self, Fault> {
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

    /// `uint8`, `int16`, `uint16`, `float32`; `uint8` without channels.
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
        let n = region.size.checked_count().and_then(|n| n.checked_mul(self.channels.len())).filter(|n| *n <= isize::MAX as usize / 4);
        let n = n.ok_or_else(|| Error::TooLarge {
            what: format!("a patch of {}", region.size),
            wanted_bytes: u64::MAX,
            limit_bytes: isize::MAX as u64,
        })?;
        let mut voxels = vec![0.0; n];
        let mut labels = self.has_labels().then(|| vec![0; region.size.count()]);
        self.read_into(region, outside, store, &mut voxels, labels.as_deref_mut())?;
        Ok(Patch { voxels, labels })
    }

    /// As [`StoredVolume::read`], into memory that is there: the batch of a training, used again each step.
    /// - `voxels`: `[c, z, y, x]` of the region; `labels`: `[z, y, x]`, all background where the volume has none
    pub fn read_into(
        &self,
        region: Region,
        outside: f32,
        store: &Store,
        voxels: &mut [f32],
        labels: Option<&mut [u8]>,
    ) -> Result<(), Error> {
        assert_eq!(voxels.len(), self.channels.len() * region.size.count(), "the caller gives room for the region");
        self.image_into(region, outside, Some(store), voxels)?;
        let Some(labels) = labels else { return Ok(()) };
        assert_eq!(labels.len(), region.size.count(), "the caller gives room for the region");
        let sticks_out = !Region::whole(self.geometry.size).contains(&region);
        if sticks_out || self.label_array.is_none() {
            labels.fill(0);
        }
        match &self.label_array {
            Some(array) => {
                let shards = array.shards();
                let fetch = |channel: usize, at: Zyx<usize>| self.through(Some(store), &shards, LABELS, channel, at);
                self.fill(array, region, &fetch, labels, |from, to| to.copy_from_slice(from))
            }
            None => Ok(()),
        }
    }

    /// The bricks that reading a region will ask the shelves for, with the bytes each takes in memory.
    pub fn bricks(&self, region: Region) -> Result<Vec<(Brick, u64)>, Error> {
        let mut out = Vec::new();
        let mut list = |array: &ArrayFile, number: u32, region: Region| -> Result<(), Fault> {
            let (layout, shards) = (&array.layout, array.shards());
            let Some(inside) = region.intersect(&Region::whole(layout.size)) else { return Ok(()) };
            let touched = Touched::new(layout, inside, layout.n_channels());
            for (channel, at) in (0..touched.len()).map(|i| touched.brick(i)) {
                if !shards.is_absent(channel, at)? {
                    out.push((self.brick_name(number, channel, at), layout.brick_bytes() as u64));
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

    fn brick_name(&self, array: u32, channel: usize, at: Zyx<usize>) -> Brick {
        Brick { artifact: self.key, array, index: [channel, at.z, at.y, at.x].map(|i| i as u32) }
    }

    /// The first channel alone: of a series with many time points no other brick is touched. Read once and past the shelves, which are for what is read
    /// again. `[z, y, x]` of the region
    pub fn first_channel(&self, region: Region, outside: f32) -> Result<Vec<f32>, Error> {
        let mut voxels = vec![0.0; region.size.count()];
        self.image_into(region, outside, None, &mut voxels)?;
        Ok(voxels)
    }

    /// - `voxels`: `[c, z, y, x]` of the region, of as many of the first channels as there is room for
    fn image_into(&self, region: Region, outside: f32, store: Option<&Store>, voxels: &mut [f32]) -> Result<(), Error> {
        if !Region::whole(self.geometry.size).contains(&region) {
            voxels.fill(outside);
        }
        if let Some((array, chain)) = &self.image {
            let shards = array.shards();
            let fetch = |channel: usize, at: Zyx<usize>| self.through(store, &shards, IMAGE, channel, at);
            if chain.steps.is_empty() {
                let convert: fn(&[u8], &mut [f32]) = match array.layout.dtype {
                    Dtype::U8 => |from, to| to.iter_mut().zip(from).for_each(|(t, f)| *t = *f as f32),
                    Dtype::I16 => {
                        |from, to| to.iter_mut().zip(from.as_chunks::<2>().0).for_each(|(t, f)| *t = i16::from_le_bytes(*f) as f32)
                    }
                    Dtype::U16 => {
                        |from, to| to.iter_mut().zip(from.as_chunks::<2>().0).for_each(|(t, f)| *t = u16::from_le_bytes(*f) as f32)
                    }
                    Dtype::F32 => |from, to| to.iter_mut().zip(from.as_chunks::<4>().0).for_each(|(t, f)| *t = f32::from_le_bytes(*f)),
                };
                self.fill(array, region, &fetch, voxels, convert)?;
            } else if let Some(inside) = region.intersect(&Region::whole(self.geometry.size)) {
                let made = chain.region(inside, &|r| self.base(array, r, &fetch))?;
                paste(&made.to_f32(), inside, voxels, region);
            }
        }
        Ok(())
    }

    /// The labels alone, whole: what a plan of patches needs to find foreground. `[z, y, x]`
    pub fn labels(&self) -> Result<Option<Vec<u8>>, Error> {
        let Some(array) = &self.label_array else { return Ok(None) };
        let mut labels = vec![0; array.layout.bytes()];
        array.read(&mut labels).map_err(|f| self.fault(f))?;
        Ok(Some(labels))
    }

    /// A brick, by way of the shelves where there are any; `None` for one of zeros.
    fn through(
        &self,
        store: Option<&Store>,
        shards: &OpenShards,
        number: u32,
        channel: usize,
        at: Zyx<usize>,
    ) -> Result<Option<Arc<Vec<u8>>>, Error> {
        if shards.is_absent(channel, at).map_err(|f| self.fault(f))? {
            return Ok(None);
        }
        let decode = || Ok(shards.brick(channel, at).map_err(|f| self.fault(f))?.expect("present in the index"));
        match store {
            Some(store) => store.brick(&self.brick_name(number, channel, at), decode).map(Some),
            None => decode().map(|bytes| Some(Arc::new(bytes))),
        }
    }

    /// A box of the array that is stored, as it is. It lies inside, and may be empty.
    pub(super) fn base(&self, array: &ArrayFile, region: Region, fetch: &Fetch) -> Result<Voxels, Error> {
        let mut voxels = Voxels::zeros(array.layout.dtype, array.layout.n_channels() * region.size.count());
        match &mut voxels {
            Voxels::U8(x) => self.fill(array, region, fetch, x, |from, to| to.copy_from_slice(from)),
            Voxels::I16(x) => self.fill(array, region, fetch, x, |from, to| bytemuck::cast_slice_mut(to).copy_from_slice(from)),
            Voxels::U16(x) => self.fill(array, region, fetch, x, |from, to| bytemuck::cast_slice_mut(to).copy_from_slice(from)),
            Voxels::F32(x) => self.fill(array, region, fetch, x, |from, to| bytemuck::cast_slice_mut(to).copy_from_slice(from)),
        }?;
        Ok(voxels)
    }

    /// - `out`: `[c, z, y, x]` of the region, of the first channels; left as it is outside the volume
    fn fill<T: Copy + Send + Default>(
        &self,
        array: &ArrayFile,
        region: Region,
        fetch: &Fetch,
        out: &mut [T],
        convert: fn(&[u8], &mut [T]),
    ) -> Result<(), Error> {
        let layout = &array.layout;
        let Some(inside) = region.intersect(&Region::whole(layout.size)) else { return Ok(()) };
        let touched = Touched::new(layout, inside, out.len() / region.size.count().max(1));
        let fetch = |i: usize| {
            let (channel, at) = touched.brick(i);
            fetch(channel, at)
        };
        let bricks = (0..touched.len()).into_par_iter().map(fetch).collect::<Result<Vec<_>, Error>>()?;
        let plane = region.size.y * region.size.x;
        out.par_chunks_mut(plane).enumerate().for_each(|(i, out)| {
            let (channel, z) = (i / region.size.z, region.start.z + (i % region.size.z) as i64);
            if inside.start.z <= z && z < inside.end().z {
                touched.paste_plane(layout, &bricks, channel, z as usize, region, inside, out, convert);
            }
        });
        Ok(())
    }
}

/// Gives a decoded brick, by channel and place; `None` for one of zeros.
pub(super) type Fetch<'a> = dyn Fn(usize, Zyx<usize>) -> Result<Option<Arc<Vec<u8>>>, Error> + Sync + 'a;

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

/// The bricks that a box overlaps: a box of the brick grid, for every channel.
struct Touched {
    first: Zyx<usize>,
    n: Zyx<usize>,
    n_channels: usize,
}

impl Touched {
    fn new(layout: &Layout, inside: Region, n_channels: usize) -> Self {
        let first = inside.start.zip(layout.brick).map(|(s, b)| s as usize / b);
        let end = inside.end().zip(layout.brick).map(|(e, b)| (e as usize).div_ceil(b));
        Self { first, n: end.zip(first).map(|(e, f)| e - f), n_channels }
    }

    fn len(&self) -> usize {
        self.n_channels * self.n.count()
    }

    fn brick(&self, i: usize) -> (usize, Zyx<usize>) {
        let local = Zyx::new(i / (self.n.y * self.n.x) % self.n.z, i / self.n.x % self.n.y, i % self.n.x);
        (i / self.n.count(), local.zip(self.first).map(|(l, f)| l + f))
    }

    /// Copies what the bricks hold of one plane.
    /// - `bricks`: in the order of [`Touched::brick`]
    /// - `z`: index in the volume; `out`: `[y, x]` of the region
    #[allow(clippy::too_many_arguments)]
    fn paste_plane<T: Copy + Default>(
        &self,
        layout: &Layout,
        bricks: &[Option<Arc<Vec<u8>>>],
        channel: usize,
        z: usize,
        region: Region,
        inside: Region,
        out: &mut [T],
        convert: fn(&[u8], &mut [T]),
    ) {
        let (brick, voxel) = (layout.brick, layout.dtype.bytes());
        let layer = z / brick.z - self.first.z;
        for i in 0..self.n.y * self.n.x {
            let i = (channel * self.n.z + layer) * self.n.y * self.n.x + i;
            let (_, at) = self.brick(i);
            let Some(part) = layout.region(at).intersect(&inside) else { continue };
            for y in part.start.y..part.end().y {
                let to = (y - region.start.y) as usize * region.size.x + (part.start.x - region.start.x) as usize;
                let to = &mut out[to..to + part.size.x];
                match &bricks[i] {
                    Some(bytes) => {
                        let row = (z % brick.z * brick.y + y as usize % brick.y) * brick.x + part.start.x as usize % brick.x;
                        convert(&bytes[row * voxel..(row + part.size.x) * voxel], to);
                    }
                    None => to.fill(T::default()),
                }
            }
        }
    }
}
