//! Writes one array as it is made: planes come in order of z, whole layers of bricks are compressed on all threads, and a thread of the array's own appends
//! them to the shards, hashes what it appends and has it synced, so that nothing is read again. The bytes depend on the voxels alone, not on threads or slabs.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rayon::prelude::*;
use voxmill_schemas::artifact::ContentHash;
use voxmill_schemas::geometry::Zyx;
use zarrs::array::codec::{BloscCompressionLevel, BloscCompressor, blosc_compress_bytes};

use super::array::{ABSENT, write_json};
use super::layout::{LEVEL, Layout};
use crate::error::Error;
use crate::store::{Hashed, note_hashes};

/// Layers that are compressed and not yet written, besides the one that is being written.
const WAITING_LAYERS: usize = 1;
/// Bricks that a thread compresses one after another into one piece of memory.
const RUN_BRICKS: usize = 8;

/// An array in the making.
pub(super) struct ArrayWriter {
    layout: Layout,
    channels: Vec<Channel>,
    dir: PathBuf,
    pieces: Option<SyncSender<Piece>>,
    appending: Option<JoinHandle<Result<Vec<Hashed>, Error>>>,
    spare: Arc<Spare>,
}

/// Memory that was written out and can be filled again.
type Spare = Mutex<Vec<Vec<u8>>>;

#[derive(Default)]
struct Channel {
    /// Layers of bricks that are compressed.
    n_layers: usize,
    /// Planes that do not make a layer yet.
    pending: Vec<u8>,
    /// Of the shard in hand, and its bytes so far.
    index: Vec<u8>,
    end: u64,
}

/// What comes next in a shard.
struct Piece {
    shard: usize,
    parts: Vec<Vec<u8>>,
    is_last: bool,
}

impl ArrayWriter {
    pub fn create(dir: &Path, layout: &Layout) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(Error::io("make folder", dir))?;
        write_json(&dir.join("zarr.json"), &layout.meta())?;
        let (pieces, received) = sync_channel(WAITING_LAYERS);
        let spare = Arc::new(Spare::default());
        let (at, place) = (spare.clone(), (dir.to_path_buf(), layout.clone()));
        let appending = std::thread::Builder::new()
            .name("shards".into())
            .spawn(move || append(&place.0, &place.1, received, &at))
            .map_err(Error::io("start a thread for", dir))?;
        let channels = (0..layout.n_channels()).map(|_| Channel::default()).collect();
        Ok(Self { layout: layout.clone(), channels, dir: dir.to_path_buf(), pieces: Some(pieces), appending: Some(appending), spare })
    }

    /// The next planes of a channel, any number of them; whole layers ([`Layout::brick`]`.z` planes) are taken without a copy.
    /// - `planes`: `[z, y, x]` as they lie in memory
    pub fn push(&mut self, channel: usize, mut planes: &[u8]) -> Result<(), Error> {
        let plane = self.layout.size.y * self.layout.size.x * self.layout.dtype.bytes();
        assert!(planes.len().is_multiple_of(plane), "the caller gives whole planes");
        while !planes.is_empty() {
            let c = &mut self.channels[channel];
            let left = self.layout.size.z - (c.n_layers * self.layout.brick.z).min(self.layout.size.z);
            let wanted = self.layout.brick.z.min(left) * plane;
            assert!(wanted > 0, "the caller gives no more planes than the array has");
            if c.pending.is_empty() && planes.len() >= wanted {
                let (layer, rest) = planes.split_at(wanted);
                self.layer(channel, layer)?;
                planes = rest;
                continue;
            }
            let (some, rest) = planes.split_at(planes.len().min(wanted - c.pending.len()));
            c.pending.extend_from_slice(some);
            planes = rest;
            if c.pending.len() == wanted {
                let mut layer = std::mem::take(&mut c.pending);
                self.layer(channel, &layer)?;
                layer.clear();
                self.channels[channel].pending = layer;
            }
        }
        Ok(())
    }

    /// Waits until all stands in its files. An array that lacks planes is refused.
    pub fn finish(mut self) -> Result<(), Error> {
        let deep = self.layout.grid().z;
        if let Some(c) = self.channels.iter().position(|c| c.n_layers < deep) {
            let plane = self.layout.size.y * self.layout.size.x * self.layout.dtype.bytes();
            let found = self.channels[c].n_layers * self.layout.brick.z + self.channels[c].pending.len() / plane;
            let why = format!("channel {c} ends after {found} of {} slices", self.layout.size.z);
            return Err(Error::Geometry { what: "volume".into(), why });
        }
        let files = self.join()?;
        note_hashes(&self.dir, &files)
    }

    /// - `layer`: the planes that one layer of bricks covers
    fn layer(&mut self, channel: usize, layer: &[u8]) -> Result<(), Error> {
        let (layout, c) = (&self.layout, &mut self.channels[channel]);
        let (grid, z) = (layout.grid(), c.n_layers);
        let n = grid.y * grid.x;
        let run = n.div_ceil(4 * rayon::current_num_threads()).min(RUN_BRICKS);
        let runs = (0..n).step_by(run).collect::<Vec<_>>();
        let compressed: Vec<(Vec<u8>, Vec<Option<u64>>)> = runs
            .par_iter()
            .map(|first| {
                let mut bytes = self.spare.lock().expect("nothing panics while it is held").pop().unwrap_or_default();
                let bricks = (*first..n.min(first + run)).map(|i| Zyx::new(z, i / grid.x, i % grid.x));
                let lengths = bricks.map(|at| encode(layout, at, layer, &mut bytes)).collect();
                (bytes, lengths)
            })
            .collect();
        let mut parts = Vec::with_capacity(compressed.len() + 1);
        for (bytes, lengths) in compressed {
            for length in lengths {
                let entry = length.map_or([ABSENT, ABSENT], |length| [c.end, length]);
                entry.iter().for_each(|v| c.index.extend_from_slice(&v.to_le_bytes()));
                c.end += length.unwrap_or(0);
            }
            parts.push(bytes);
        }
        c.n_layers += 1;
        let is_last = c.n_layers == grid.z || c.n_layers.is_multiple_of(layout.bricks_deep);
        if is_last {
            // The last shard may be thinner than its index.
            c.index.resize(layout.bricks_per_shard() * 16, 0xff);
            let crc = crc32c::crc32c(&c.index);
            c.index.extend_from_slice(&crc.to_le_bytes());
            parts.push(std::mem::take(&mut c.index));
            c.end = 0;
        }
        let shard = channel * layout.shards_deep() + z / layout.bricks_deep;
        let pieces = self.pieces.as_ref().expect("an array takes planes until it is finished");
        // The other end is gone only where it failed.
        pieces.send(Piece { shard, parts, is_last }).or_else(|_| self.join().map(|_| ()))
    }

    fn join(&mut self) -> Result<Vec<Hashed>, Error> {
        self.pieces = None;
        self.appending.take().map_or(Ok(Vec::new()), |a| a.join().expect("appending does not panic"))
    }
}

impl Drop for ArrayWriter {
    /// Nobody writes into a draft that is given up.
    fn drop(&mut self) {
        let _ = self.join();
    }
}

/// Appends what comes to the shards until nothing more does.
fn append(dir: &Path, layout: &Layout, pieces: Receiver<Piece>, spare: &Spare) -> Result<Vec<Hashed>, Error> {
    let (mut open, mut written) = (BTreeMap::new(), Vec::new());
    for Piece { shard, parts, is_last } in pieces {
        let path = dir.join(layout.file_name(shard));
        let io = |e| Error::io("write", &path)(e);
        let mut file = match open.remove(&shard) {
            Some(file) => file,
            None => Appended::create(&path).map_err(io)?,
        };
        for mut bytes in parts {
            file.write_all(&bytes).map_err(io)?;
            bytes.clear();
            spare.lock().expect("nothing panics while it is held").push(bytes);
        }
        if is_last {
            let (bytes, hash) = file.finish().map_err(io)?;
            written.push(Hashed { name: layout.file_name(shard), bytes, hash });
        } else {
            open.insert(shard, file);
        }
    }
    Ok(written)
}

/// A file that is hashed as it grows, and whose bytes go to the disk while more are made: the sync that makes an artifact durable then finds little left to do.
struct Appended {
    file: File,
    hasher: blake3::Hasher,
    bytes: u64,
    /// Written since the last sync began.
    pending_bytes: usize,
    /// At most one sync is under way.
    under_way: Option<JoinHandle<std::io::Result<()>>>,
}

/// As much as a disk takes in a few milliseconds.
const SYNC_BYTES: usize = 8 << 20;

impl Appended {
    fn create(path: &Path) -> std::io::Result<Self> {
        let file = File::create(path)?;
        Ok(Self { file, hasher: blake3::Hasher::new(), bytes: 0, pending_bytes: 0, under_way: None })
    }

    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.pending_bytes += bytes.len();
        if self.pending_bytes >= SYNC_BYTES && self.under_way.as_ref().is_none_or(|s| s.is_finished()) {
            self.wait()?;
            let file = self.file.try_clone()?;
            self.pending_bytes = 0;
            self.under_way = Some(std::thread::Builder::new().spawn(move || file.sync_data())?);
        }
        Ok(())
    }

    /// The kernel tells a failed write to one caller only: it must not get lost here.
    fn wait(&mut self) -> std::io::Result<()> {
        self.under_way.take().map_or(Ok(()), |s| s.join().expect("a sync does not panic"))
    }

    fn finish(mut self) -> std::io::Result<(u64, ContentHash)> {
        self.wait()?;
        Ok((self.bytes, ContentHash(*self.hasher.finalize().as_bytes())))
    }
}

thread_local! {
    /// A brick before it is compressed.
    static RAW: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Appends a brick as it stands in the shard to `out` and gives its length; `None` when it is all zeros.
/// - `layer`: the planes that the brick's layer covers
fn encode(layout: &Layout, at: Zyx<usize>, layer: &[u8], out: &mut Vec<u8>) -> Option<u64> {
    let (region, voxel, size, brick) = (layout.region(at), layout.dtype.bytes(), layout.size, layout.brick);
    let (y0, x0) = (region.start.y as usize, region.start.x as usize);
    let is_zero = |bytes: &[u8]| bytes.iter().fold(0, |a, b| a | b) == 0;
    let row = |z: usize, y: usize| &layer[((z * size.y + y0 + y) * size.x + x0) * voxel..][..region.size.x * voxel];
    let rows = || (0..region.size.z).flat_map(|z| (0..region.size.y).map(move |y| (z, y)));
    if rows().all(|(z, y)| is_zero(row(z, y))) {
        return None;
    }
    RAW.with_borrow_mut(|raw| {
        raw.resize(layout.brick_bytes(), 0);
        if region.size != brick {
            raw.fill(0);
        }
        for (z, y) in rows() {
            let to = (z * brick.y + y) * brick.x * voxel;
            raw[to..to + region.size.x * voxel].copy_from_slice(row(z, y));
        }
        let level = BloscCompressionLevel::try_from(LEVEL).expect("levels go to 9");
        let bytes = blosc_compress_bytes(raw, level, layout.shuffle.mode(), voxel, BloscCompressor::LZ4, 0, 1)
            .expect("blosc stores what it cannot compress, and the buffer has its overhead");
        out.extend_from_slice(&bytes);
        out.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        Some(bytes.len() as u64 + 4)
    })
}
