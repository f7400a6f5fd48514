//! Boxes of a stored array, put together in the reader's memory: from layers that a shelf holds, else brick by brick.

use std::sync::Arc;

use rayon::prelude::*;
use voxmill_schemas::artifact::Key;
use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;

use super::array::{Fault, OpenShards, paste_into_slab};
use super::layout::Layout;
use crate::error::Error;
use crate::ops::boxes::{Paste, Span};
use crate::store::{Array, BoxOfLayer, Brick, Bricks, Found, Layer, Store};

/// Gives a decoded brick, by channel and place; `None` for one of zeros.
pub(super) type Fetch<'a> = dyn Fn(usize, Zyx<usize>) -> Result<Option<Arc<Vec<u8>>>, Error> + Sync + 'a;

/// Which threads a read may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// This one: others read at the same time.
    This,
    All,
}

/// An array as one read sees it.
pub(super) struct Reading<'a> {
    pub shards: &'a OpenShards<'a>,
    pub name: ArrayName,
    /// `None`: past the shelves.
    pub store: Option<&'a Store>,
    /// Where bricks come from instead, without a store.
    pub fetch: Option<&'a Fetch<'a>>,
    pub threads: Threads,
    /// What to say of a fault.
    pub told: &'a (dyn Fn(Fault) -> Error + Sync),
}

/// What an array is called on the shelves.
#[derive(Clone, Copy)]
pub(super) struct ArrayName {
    pub artifact: Key,
    pub array: u32,
}

impl ArrayName {
    pub fn brick(self, channel: usize, at: Zyx<usize>) -> Brick {
        Brick { artifact: self.artifact, array: self.array, index: [channel, at.z, at.y, at.x].map(|i| i as u32) }
    }

    fn layer(self, channel: usize, z: usize) -> Layer {
        Layer { artifact: self.artifact, array: self.array, channel: channel as u32, z: z as u32 }
    }

    pub fn array(self, layout: &Layout) -> Array {
        let (channels, layers) = (layout.n_channels(), layout.grid().z);
        Array { artifact: self.artifact, array: self.array, channels, layers, bytes: layout.bytes() as u64 }
    }
}

/// The part of a box that lies in one layer of one channel.
struct Part<'a, T> {
    channel: usize,
    /// Layer of bricks.
    layer: usize,
    /// In the array; its planes are those of `out`.
    region: Region,
    /// `[z, y, x]`, the rows and columns of the whole box.
    out: &'a mut [T],
}

impl Reading<'_> {
    /// - `out`: `[c, z, y, x]` of the region, of the first channels; left as it is outside the volume
    pub fn fill<T: Copy + Send + Default>(&self, region: Region, out: &mut [T], paste: Paste<T>) -> Result<(), Error> {
        let layout = &self.shards.array.layout;
        let Some(inside) = region.intersect(&Region::whole(layout.size)) else { return Ok(()) };
        let fill = |part: Part<T>| self.part(part, region, paste);
        let parts = parts(layout, region, inside, out);
        match self.threads {
            Threads::This => parts.into_iter().try_for_each(fill),
            Threads::All => parts.into_par_iter().try_for_each(fill),
        }
    }

    fn part<T: Copy + Send + Default>(&self, p: Part<T>, region: Region, paste: Paste<T>) -> Result<(), Error> {
        let layout = &self.shards.array.layout;
        let first = Zyx::new(p.layer * layout.brick.z, 0, 0);
        let size = Zyx { z: layout.brick.z.min(layout.size.z - first.z), ..layout.size };
        let wanted = Region { start: p.region.start.zip(first).map(|(s, f)| s - f as i64), size: p.region.size };
        let mut canvas = Canvas {
            region: wanted,
            out: p.out,
            at: p.region.start.zip(region.start).map(|(a, b)| (a - b) as usize),
            size: region.size,
            paste,
        };
        if let Some(store) = self.store {
            let b = self.box_of(p.channel, p.layer, size, wanted);
            match store.layer(&b, &|| self.layer(p.channel, p.layer), &mut |bricks| canvas.put(bricks))? {
                Found::Given => return Ok(()),
                Found::Zeros => {
                    canvas.clear(wanted);
                    return Ok(());
                }
                Found::No => {}
            }
        }
        let bricks = touched(layout, wanted).map(|(y, x)| Zyx::new(p.layer, y, x));
        let fetch = |at: Zyx<usize>| self.brick(p.channel, at);
        let mut put = |at: Zyx<usize>, brick: Option<Arc<Vec<u8>>>| {
            let whole = layout.region(at);
            let begin = whole.start.zip(first).map(|(s, f)| s as usize - f);
            match brick {
                Some(bytes) => canvas.put_padded(&bytes, begin, whole.size, layout.brick),
                None => canvas.clear(Region { start: begin.map(|b| b as i64), size: whole.size }),
            }
        };
        match self.threads {
            Threads::This => bricks.into_iter().try_for_each(|at| fetch(at).map(|brick| put(at, brick))),
            Threads::All => {
                let all: Vec<_> = bricks.collect();
                let fetched = all.par_iter().map(|at| fetch(*at)).collect::<Result<Vec<_>, Error>>()?;
                all.into_iter().zip(fetched).for_each(|(at, brick)| put(at, brick));
                Ok(())
            }
        }
    }

    fn box_of(&self, channel: usize, layer: usize, size: Zyx<usize>, region: Region) -> BoxOfLayer {
        let layout = &self.shards.array.layout;
        let bricks = touched(layout, region).count() as u64;
        BoxOfLayer { layer: self.name.layer(channel, layer), size, voxel: layout.dtype.bytes(), region, bricks }
    }

    /// A layer from the disk shelf, on this thread; `None` where all of it is zero.
    fn layer(&self, channel: usize, z: usize) -> Result<Option<Vec<u8>>, Error> {
        self.shards.layer(channel, z).map_err(self.told)
    }

    /// A brick by way of the shelves; `None` for one of zeros.
    fn brick(&self, channel: usize, at: Zyx<usize>) -> Result<Option<Arc<Vec<u8>>>, Error> {
        if let Some(fetch) = self.fetch {
            return fetch(channel, at);
        }
        if self.shards.is_absent(channel, at).map_err(self.told)? {
            return Ok(None);
        }
        let decode = || Ok(self.shards.brick(channel, at).map_err(self.told)?.expect("present in the index"));
        let Some(store) = self.store else { return decode().map(|bytes| Some(Arc::new(bytes))) };
        if !store.keeps_bricks() {
            store.count_disk_read();
            return decode().map(|bytes| Some(Arc::new(bytes)));
        }
        let load = || match self.packed(store, channel, at)? {
            Some(bytes) => Ok(bytes),
            None => {
                store.count_disk_read();
                decode()
            }
        };
        store.brick(&self.name.brick(channel, at), load).map(Some)
    }

    /// A brick from the NVMe shelf, padded as on the disk shelf.
    fn packed(&self, store: &Store, channel: usize, at: Zyx<usize>) -> Result<Option<Vec<u8>>, Error> {
        if !store.has_nvme() {
            return Ok(None);
        }
        let layout = &self.shards.array.layout;
        let whole = layout.region(at);
        let first = at.z * layout.brick.z;
        let region = Region { start: Zyx { z: 0, ..whole.start }, size: whole.size };
        let size = Zyx { z: layout.brick.z.min(layout.size.z - first), ..layout.size };
        let mut bytes = vec![0; layout.brick_bytes()];
        let voxel = layout.dtype.bytes();
        let (start, end) = (region.start.map(|v| v as usize), region.end().map(|v| v as usize));
        let mut take = |found: Bricks| {
            found.pieces(voxel, |at, piece| {
                let (x, x_end) = (at.x.max(start.x), (at.x + piece.len() / voxel).min(end.x));
                if (start.z..end.z).contains(&at.z) && (start.y..end.y).contains(&at.y) && x < x_end {
                    let to = (((at.z - start.z) * layout.brick.y + at.y - start.y) * layout.brick.x + x - start.x) * voxel;
                    let piece = &piece[(x - at.x) * voxel..(x_end - at.x) * voxel];
                    bytes[to..to + piece.len()].copy_from_slice(piece);
                }
            });
        };
        let b = BoxOfLayer { bricks: 1, ..self.box_of(channel, at.z, size, region) };
        let found = store.packed(&b, &|| self.layer(channel, at.z), &mut take)?;
        Ok((found == Found::Given).then_some(bytes))
    }
}

/// The bricks of a layer that a box of it overlaps, by place along y and x.
fn touched(layout: &Layout, region: Region) -> impl Iterator<Item = (usize, usize)> + use<> {
    let range = |start: i64, n: usize, brick: usize| start as usize / brick..(start as usize + n).div_ceil(brick);
    let (y, x) = (range(region.start.y, region.size.y, layout.brick.y), range(region.start.x, region.size.x, layout.brick.x));
    y.flat_map(move |y| x.clone().map(move |x| (y, x)))
}

/// A box of an array, cut where its layers and channels meet.
/// - `out`: `[c, z, y, x]` of `region`; `inside`: the part of it in the array
fn parts<'a, T>(layout: &Layout, region: Region, inside: Region, out: &'a mut [T]) -> Vec<Part<'a, T>> {
    let plane = region.size.y * region.size.x;
    let layers = inside.start.z as usize / layout.brick.z..(inside.end().z as usize).div_ceil(layout.brick.z);
    let mut parts = Vec::with_capacity(layers.len() * layout.n_channels());
    for (channel, planes) in out.chunks_exact_mut(plane * region.size.z).enumerate() {
        let mut planes = &mut planes[(inside.start.z - region.start.z) as usize * plane..];
        for layer in layers.clone() {
            let begin = inside.start.z.max((layer * layout.brick.z) as i64);
            let end = inside.end().z.min(((layer + 1) * layout.brick.z) as i64);
            let (mine, after) = planes.split_at_mut((end - begin) as usize * plane);
            planes = after;
            let region = Region { start: Zyx { z: begin, ..inside.start }, size: Zyx { z: (end - begin) as usize, ..inside.size } };
            parts.push(Part { channel, layer, region, out: mine });
        }
    }
    parts
}

/// Where the box of a layer comes together.
struct Canvas<'a, T> {
    /// Of the layer.
    region: Region,
    /// `[z, y, x]`: the planes of `region`, rows and columns of a larger box.
    out: &'a mut [T],
    /// Where `region` begins in the larger box; its planes begin with `out`.
    at: Zyx<usize>,
    /// Of the larger box.
    size: Zyx<usize>,
    paste: Paste<T>,
}

impl<T: Copy + Default> Canvas<'_, T> {
    /// Where a part of the region lies in `out`.
    fn place(&self, part: Region) -> Zyx<usize> {
        let to = part.start.zip(self.region.start).map(|(a, b)| (a - b) as usize);
        Zyx::new(to.z, to.y + self.at.y, to.x + self.at.x)
    }

    fn put(&mut self, bricks: Bricks) {
        let found = Region { start: bricks.begin.map(|b| b as i64), size: bricks.n };
        let Some(part) = found.intersect(&self.region) else { return };
        let start = part.start.zip(found.start).map(|(a, b)| (a - b) as usize);
        let span = Span::new(part.size, start, bricks.n, self.place(part), self.size);
        (self.paste)(bricks.bytes, self.out, span.in_bricks(bricks.width, bricks.stride));
    }

    /// - `bytes`: an array of `pitch` voxels whose first `n` stand at `begin` of the layer
    fn put_padded(&mut self, bytes: &[u8], begin: Zyx<usize>, n: Zyx<usize>, pitch: Zyx<usize>) {
        let found = Region { start: begin.map(|b| b as i64), size: n };
        let Some(part) = found.intersect(&self.region) else { return };
        let start = part.start.zip(found.start).map(|(a, b)| (a - b) as usize);
        let span = Span::new(part.size, start, pitch, self.place(part), self.size);
        (self.paste)(bytes, self.out, span);
    }

    fn clear(&mut self, what: Region) {
        let Some(part) = what.intersect(&self.region) else { return };
        let at = self.place(part);
        for (z, y) in (0..part.size.z).flat_map(|z| (0..part.size.y).map(move |y| (z, y))) {
            let to = ((at.z + z) * self.size.y + at.y + y) * self.size.x + at.x;
            self.out[to..to + part.size.x].fill(T::default());
        }
    }
}

impl OpenShards<'_> {
    /// A layer of bricks of a channel, `[z, y, x]`; `None` where all of it is zero.
    fn layer(&self, channel: usize, z: usize) -> Result<Option<Vec<u8>>, Fault> {
        let layout = &self.array.layout;
        let (grid, planes) = (layout.grid(), layout.brick.z.min(layout.size.z - z * layout.brick.z));
        let mut out: Option<Vec<u8>> = None;
        for (y, x) in (0..grid.y).flat_map(|y| (0..grid.x).map(move |x| (y, x))) {
            let at = Zyx::new(z, y, x);
            if let Some(raw) = self.brick(channel, at)? {
                let out = out.get_or_insert_with(|| vec![0; planes * layout.size.y * layout.size.x * layout.dtype.bytes()]);
                paste_into_slab(layout, at, &raw, out);
            }
        }
        Ok(out)
    }
}
