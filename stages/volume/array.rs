//! One sharded Zarr v3 array on disk: bricks, compressed by blosc and each followed by its crc32c, one after another in a shard, then the shard's
//! index and its crc32c. Read here and written in `writer.rs` by that format directly, so that bricks go in parallel straight into place; the judges that
//! the files are right are zarrs and zarr-python. Bricks of zeros are left out, as Zarr's fill value has it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rayon::prelude::*;
use voxmill_schemas::artifact::{ContentHash, Manifest};
use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::zarr_attrs::ArrayMeta;
use zarrs::array::codec::{blosc_decompress_bytes, blosc_validate};

use super::layout::Layout;
use super::writer::ArrayWriter;
use crate::error::Error;
use crate::store::MANIFEST;

#[cfg(target_endian = "big")]
compile_error!("arrays are written as they lie in memory, little endian");

/// No `zarr.json` of ours comes near this.
const META_LIMIT_BYTES: u64 = 1 << 20;
/// Nor any manifest of a volume near this.
const MANIFEST_LIMIT_BYTES: u64 = 16 << 20;
/// Offset and length that stand in an index for a brick of zeros.
pub(super) const ABSENT: u64 = u64::MAX;

/// What can be wrong with an array's files.
#[derive(Debug)]
pub(super) enum Fault {
    Io(Error),
    /// What, for a sentence that starts with the name of the artifact.
    Damaged(String),
}

impl From<Error> for Fault {
    fn from(e: Error) -> Self {
        Fault::Io(e)
    }
}

/// Writes an array that is in memory.
/// - `voxels`: `[c, z, y, x]` as they lie in memory
pub(super) fn write(dir: &Path, layout: &Layout, voxels: &[u8]) -> Result<(), Error> {
    assert_eq!(voxels.len(), layout.bytes(), "the caller checked the length");
    let mut writer = ArrayWriter::create(dir, layout)?;
    let channels = voxels.chunks_exact(layout.size.count() * layout.dtype.bytes());
    channels.enumerate().try_for_each(|(c, planes)| writer.push(c, planes))?;
    writer.finish()
}

pub(super) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), Error> {
    let mut text = serde_json::to_vec_pretty(value).expect("metadata are plain data");
    text.push(b'\n');
    fs::write(path, text).map_err(Error::io("write", path))
}

/// An array on disk: metadata read, the index of each shard read when first needed. Holds no file open.
pub(super) struct ArrayFile {
    pub dir: PathBuf,
    /// Path inside the artifact, for errors.
    name: &'static str,
    pub layout: Layout,
    indices: Vec<OnceLock<Vec<(u64, u64)>>>,
}

/// Files of an array that one read has opened.
pub(super) struct OpenShards<'a> {
    pub array: &'a ArrayFile,
    files: Vec<OnceLock<File>>,
}

impl ArrayFile {
    /// - `root`: folder of the artifact; `name`: path of the array in it
    pub fn open(root: &Path, name: &'static str) -> Result<Self, Fault> {
        let dir = root.join(name);
        let meta: ArrayMeta = read_json(root, &format!("{name}/zarr.json"))?;
        let layout = Layout::from_meta(&meta).map_err(|why| Fault::Damaged(format!("array {name}: {why}")))?;
        // A shard has an index of 16 bytes a brick: an array that claims more bricks than its files can index is refused here.
        for shard in 0..layout.n_shards() {
            let path = dir.join(layout.file_name(shard));
            let found = fs::metadata(&path).map_err(Error::io("read", &path))?.len();
            if index_bytes(&layout).is_none_or(|n| n > found) {
                return Err(Fault::Damaged(format!("{name}/{} has {found} bytes, too few for its index", layout.file_name(shard))));
            }
        }
        let indices = (0..layout.n_shards()).map(|_| OnceLock::new()).collect();
        Ok(Self { dir, name, layout, indices })
    }

    pub fn shards(&self) -> OpenShards<'_> {
        OpenShards { array: self, files: (0..self.layout.n_shards()).map(|_| OnceLock::new()).collect() }
    }

    /// The whole array into `out`, bricks in parallel, every one checked.
    /// - `out`: `[c, z, y, x]`, zeros, as long as the layout says
    pub fn read(&self, out: &mut [u8]) -> Result<(), Fault> {
        let (layout, grid) = (&self.layout, self.layout.grid());
        let plane_bytes = layout.size.y * layout.size.x * layout.dtype.bytes();
        let shards = self.shards();
        let slabs: Vec<_> = out
            .chunks_mut(layout.size.z * plane_bytes)
            .enumerate()
            .flat_map(|(c, channel)| channel.chunks_mut(layout.brick.z * plane_bytes).enumerate().map(move |(z, slab)| (c, z, slab)))
            .collect();
        slabs.into_par_iter().try_for_each(|(c, z, slab)| {
            for (y, x) in (0..grid.y).flat_map(|y| (0..grid.x).map(move |x| (y, x))) {
                let at = Zyx::new(z, y, x);
                if let Some(raw) = shards.brick(c, at)? {
                    paste_into_slab(layout, at, &raw, slab);
                }
            }
            Ok(())
        })
    }
}

/// - `slab`: the planes of the array that the brick's layer covers
pub(super) fn paste_into_slab(layout: &Layout, at: Zyx<usize>, raw: &[u8], slab: &mut [u8]) {
    let (region, voxel, size, brick) = (layout.region(at), layout.dtype.bytes(), layout.size, layout.brick);
    let (y0, x0, length) = (region.start.y as usize, region.start.x as usize, region.size.x * voxel);
    for z in 0..region.size.z {
        for y in 0..region.size.y {
            let (from, to) = ((z * brick.y + y) * brick.x * voxel, ((z * size.y + y0 + y) * size.x + x0) * voxel);
            slab[to..to + length].copy_from_slice(&raw[from..from + length]);
        }
    }
}

impl OpenShards<'_> {
    /// A decoded brick `[z, y, x]` of the layout's brick size; `None` for one of zeros.
    pub fn brick(&self, channel: usize, at: Zyx<usize>) -> Result<Option<Vec<u8>>, Fault> {
        let layout = &self.array.layout;
        let (shard, place) = layout.place(channel, at);
        let (offset, length) = self.index(shard)?[place];
        if (offset, length) == (ABSENT, ABSENT) {
            return Ok(None);
        }
        let mut bytes = vec![0; length as usize];
        let path = || self.array.dir.join(layout.file_name(shard));
        self.file(shard)?.read_exact_at(&mut bytes, offset).map_err(|e| Error::io("read", path())(e))?;
        let damaged = |why: &str| Fault::Damaged(format!("brick {at} of {}/{}: {why}", self.array.name, layout.file_name(shard)));
        let (frame, crc) = bytes.split_at(bytes.len() - 4);
        if crc32c::crc32c(frame).to_le_bytes() != crc {
            return Err(damaged("its bytes do not match their crc32c"));
        }
        if blosc_validate(frame) != Some(layout.brick_bytes()) {
            return Err(damaged("its blosc frame is not that of a brick"));
        }
        blosc_decompress_bytes(frame, layout.brick_bytes(), 1).map(Some).map_err(|e| damaged(&e.to_string()))
    }

    /// True for a brick of zeros, which no shelf needs to hold.
    pub fn is_absent(&self, channel: usize, at: Zyx<usize>) -> Result<bool, Fault> {
        let (shard, place) = self.array.layout.place(channel, at);
        Ok(self.index(shard)?[place] == (ABSENT, ABSENT))
    }

    fn file(&self, shard: usize) -> Result<&File, Fault> {
        if let Some(file) = self.files[shard].get() {
            return Ok(file);
        }
        let path = self.array.dir.join(self.array.layout.file_name(shard));
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        Ok(self.files[shard].get_or_init(|| file))
    }

    /// Offset and length of every brick of a shard, each inside the file.
    fn index(&self, shard: usize) -> Result<&[(u64, u64)], Fault> {
        if let Some(index) = self.array.indices[shard].get() {
            return Ok(index);
        }
        let layout = &self.array.layout;
        let file = self.file(shard)?;
        let io = |e| Error::io("read", self.array.dir.join(layout.file_name(shard)))(e);
        let damaged = |why: String| Fault::Damaged(format!("{}/{}: {why}", self.array.name, layout.file_name(shard)));
        let file_bytes = file.metadata().map_err(io)?.len();
        let bricks_bytes = index_bytes(layout).and_then(|n| file_bytes.checked_sub(n)).ok_or_else(|| damaged("it is too short".into()))?;
        let mut text = vec![0; (file_bytes - bricks_bytes) as usize];
        file.read_exact_at(&mut text, bricks_bytes).map_err(io)?;
        let (entries, crc) = text.split_at(text.len() - 4);
        if crc32c::crc32c(entries).to_le_bytes() != crc {
            return Err(damaged("its index does not match its crc32c".into()));
        }
        let number = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("eight bytes"));
        let index: Vec<_> = entries.chunks_exact(16).map(|e| (number(&e[..8]), number(&e[8..]))).collect();
        let is_inside = |(offset, length): &(u64, u64)| {
            let end = offset.checked_add(*length);
            (*offset, *length) == (ABSENT, ABSENT) || (*length > 4 && end.is_some_and(|end| end <= bricks_bytes))
        };
        if let Some(i) = index.iter().position(|e| !is_inside(e)) {
            return Err(damaged(format!("its index puts brick {i} outside the file")));
        }
        Ok(self.array.indices[shard].get_or_init(|| index))
    }
}

/// Bytes of a shard's index with its checksum.
fn index_bytes(layout: &Layout) -> Option<u64> {
    let g = layout.grid();
    let n = layout.bricks_deep.checked_mul(g.y)?.checked_mul(g.x)?;
    (n as u64).checked_mul(16)?.checked_add(4)
}

/// A `zarr.json` of the artifact in `root`, bounded.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(root: &Path, name: &str) -> Result<T, Fault> {
    let path = root.join(name);
    let found = fs::metadata(&path).map_err(Error::io("read", &path))?.len();
    let text = if found <= META_LIMIT_BYTES { fs::read(&path).map_err(Error::io("read", &path))? } else { Vec::new() };
    serde_json::from_slice(&text).map_err(|e| Fault::Damaged(format!("{name} of {found} bytes: {e}")))
}

/// Whether what is said about the voxels of an artifact is what was committed: bricks and indices have checksums, texts have none of their own. A folder without
/// a manifest is a draft or a copy, and vouches for itself.
pub(super) fn vouch(root: &Path) -> Result<(), Fault> {
    let path = root.join(MANIFEST);
    let Ok(found) = fs::metadata(&path) else { return Ok(()) };
    if found.len() > MANIFEST_LIMIT_BYTES {
        return Err(Fault::Damaged(format!("{MANIFEST} has {} bytes, more than that of a volume", found.len())));
    }
    let manifest = fs::read(&path).map_err(Error::io("read", &path))?;
    let manifest: Manifest = serde_json::from_slice(&manifest).map_err(|e| Fault::Damaged(format!("{MANIFEST}: {e}")))?;
    for (name, wanted) in manifest.files.iter().filter(|(name, _)| name.ends_with(".json")) {
        let path = root.join(name);
        let found = fs::metadata(&path).map_err(Error::io("read", &path))?.len();
        let text = if found <= META_LIMIT_BYTES { fs::read(&path).map_err(Error::io("read", &path))? } else { Vec::new() };
        if ContentHash::of(&text) != *wanted {
            return Err(Fault::Damaged(format!("{name} of {found} bytes has other bytes than were written")));
        }
    }
    Ok(())
}
