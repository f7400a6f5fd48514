//! A file of the NVMe shelf: one layer of an array, uncompressed, in small bricks each followed by its crc32c, so that a random box is a few direct reads of
//! little more than the box. Bricks stand in the order z, y, x: those of a row are one range. What the file is stands at its end.

use std::cell::RefCell;
use std::fs::File;
use std::io::{ErrorKind, Result, Write};
use std::os::unix::fs::FileExt;

use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;

const CRC_BYTES: usize = 4;
/// Id, size, brick, bytes of a voxel, crc32c of these, magic.
pub(super) const TRAILER_BYTES: usize = 32 + 3 * 4 + 3 * 4 + 4 + 4 + 4;
const MAGIC: [u8; 4] = *b"vxb2";
/// A row of bricks is read at once; no file may ask for more memory.
const ROW_LIMIT_BYTES: usize = 256 << 20;

/// How a layer lies in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Voxels of the layer.
    pub size: Zyx<usize>,
    /// Voxels of a brick; the last of an axis is what is left.
    pub brick: Zyx<usize>,
    /// Bytes of a voxel.
    pub voxel: usize,
}

impl Grid {
    /// The bricks that make reading boxes of the size of `patch` cheapest, by what a brick, a read and a byte cost (measured with a warm page cache).
    pub fn chosen(size: Zyx<usize>, voxel: usize, patch: Zyx<usize>) -> Self {
        const BYTE_NS: f64 = 0.1;
        const READ_NS: f64 = 600.0;
        const BRICK_NS: f64 = 40.0;
        const ROW_NS: f64 = 2.0;
        let patch = Zyx::new(patch.z, patch.y.min(size.y), patch.x.min(size.x)).map(|p| p.max(1));
        let cost = |brick: Zyx<usize>| {
            // Bricks of length b that a box of length p touches, on average over its places.
            let touched = |p: usize, b: usize, n: usize| if b >= n { 1.0 } else { (p as f64 - 1.0) / b as f64 + 1.0 };
            // Along z it goes on into the next layer.
            let n = Zyx::new(touched(patch.z, brick.z, usize::MAX), touched(patch.y, brick.y, size.y), touched(patch.x, brick.x, size.x));
            let (bricks, reads) = (n.z * n.y * n.x, n.z * n.y);
            let rows = (patch.z * patch.y) as f64 * n.x;
            bricks * ((brick.count() * voxel) as f64 * BYTE_NS + BRICK_NS) + reads * READ_NS + rows * ROW_NS
        };
        let lengths = [1, 2, 4, 8, 16, 32, 64, 128, 256];
        let mut best = (f64::INFINITY, size.map(|n| n.max(1)));
        for (z, y) in lengths.iter().flat_map(|z| lengths.iter().map(move |y| (*z, *y))) {
            for x in lengths.iter().filter(|x| **x >= 16) {
                let brick = Zyx::new(z, y, *x).zip(size).map(|(b, n)| b.min(n.max(1)));
                if cost(brick) < best.0 {
                    best = (cost(brick), brick);
                }
            }
        }
        Self { size, brick: best.1, voxel }
    }

    fn counts(&self) -> Zyx<usize> {
        self.size.zip(self.brick).map(|(n, b)| n.div_ceil(b))
    }

    /// Voxels of a brick.
    fn dims(&self, at: Zyx<usize>) -> Zyx<usize> {
        at.zip(self.brick).zip(self.size).map(|((i, b), n)| b.min(n - i * b))
    }

    /// Where a brick stands in the file, and its number.
    fn place(&self, at: Zyx<usize>) -> (usize, usize) {
        let (n, dims) = (self.counts(), self.dims(at));
        let number = (at.z * n.y + at.y) * n.x + at.x;
        let voxels =
            at.z * self.brick.z * self.size.y * self.size.x + dims.z * (at.y * self.brick.y * self.size.x + dims.y * at.x * self.brick.x);
        (voxels * self.voxel + number * CRC_BYTES, number)
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        (self.size.count() * self.voxel + self.counts().count() * CRC_BYTES + TRAILER_BYTES) as u64
    }

    fn trailer(&self, id: &[u8; 32]) -> [u8; TRAILER_BYTES] {
        let mut out = [0; TRAILER_BYTES];
        out[..32].copy_from_slice(id);
        let numbers = self.size.to_array().into_iter().chain(self.brick.to_array()).chain([self.voxel]);
        for (n, to) in numbers.zip(out[32..60].chunks_exact_mut(4)) {
            to.copy_from_slice(&(n as u32).to_le_bytes());
        }
        let crc = crc32c::crc32c(&out[..60]);
        out[60..64].copy_from_slice(&crc.to_le_bytes());
        out[64..].copy_from_slice(&MAGIC);
        out
    }

    /// `None`: no whole trailer of this version, or one that does not fit a file of that length.
    fn of_trailer(t: &[u8; TRAILER_BYTES], file_bytes: u64) -> Option<([u8; 32], Self)> {
        if t[64..] != MAGIC || crc32c::crc32c(&t[..60]).to_le_bytes() != t[60..64] {
            return None;
        }
        let n: Vec<usize> = t[32..60].chunks_exact(4).map(|n| u32::from_le_bytes(n.try_into().expect("four bytes")) as usize).collect();
        let grid = Self { size: Zyx::new(n[0], n[1], n[2]), brick: Zyx::new(n[3], n[4], n[5]), voxel: n[6] };
        let is_sound = n.iter().all(|n| *n > 0)
            && grid.size.checked_count().and_then(|n| n.checked_mul(grid.voxel)).is_some_and(|n| n as u64 <= file_bytes)
            && grid.file_bytes() == file_bytes
            && grid.brick.zip(grid.size).map(|(b, n)| b <= n).to_array() == [true; 3]
            && grid.row_bytes() <= ROW_LIMIT_BYTES;
        is_sound.then(|| (t[..32].try_into().expect("32 bytes"), grid))
    }

    /// Bytes that a row of bricks takes at most.
    fn row_bytes(&self) -> usize {
        self.brick.z * self.brick.y * self.size.x * self.voxel + self.counts().x * CRC_BYTES
    }
}

/// What a brick's checksum starts from: a brick of another file or another place never passes for this one.
fn seed(id: &[u8; 32], number: usize) -> u32 {
    crc32c::crc32c(id) ^ number as u32
}

/// Writes a layer.
/// - `layer`: `[z, y, x]` as it lies in memory
pub(super) fn write(file: &mut File, id: &[u8; 32], grid: &Grid, layer: &[u8]) -> Result<()> {
    let (n, size) = (grid.counts(), grid.size);
    let mut row = Vec::with_capacity(grid.row_bytes());
    for (z, y) in (0..n.z).flat_map(|z| (0..n.y).map(move |y| (z, y))) {
        row.clear();
        for x in 0..n.x {
            let at = Zyx::new(z, y, x);
            let (dims, (_, number)) = (grid.dims(at), grid.place(at));
            let first = row.len();
            for (dz, dy) in (0..dims.z).flat_map(|z| (0..dims.y).map(move |y| (z, y))) {
                let voxel = ((z * grid.brick.z + dz) * size.y + y * grid.brick.y + dy) * size.x + x * grid.brick.x;
                row.extend_from_slice(&layer[voxel * grid.voxel..(voxel + dims.x) * grid.voxel]);
            }
            let crc = crc32c::crc32c_append(seed(id, number), &row[first..]);
            row.extend_from_slice(&crc.to_le_bytes());
        }
        file.write_all(&row)?;
    }
    file.write_all(&grid.trailer(id))
}

/// The grid of a file and the id it was written under; `None` for what is no whole file of ours.
pub(super) fn open(file: &File) -> Result<Option<([u8; 32], Grid)>> {
    let bytes = file.metadata()?.len();
    let Some(at) = bytes.checked_sub(TRAILER_BYTES as u64) else { return Ok(None) };
    let mut trailer = [0; TRAILER_BYTES];
    match file.read_exact_at(&mut trailer, at) {
        Ok(()) => Ok(Grid::of_trailer(&trailer, bytes)),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}

thread_local! {
    /// Where rows of bricks are read into, again and again.
    static ROW: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Bricks side by side along x: a box of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Bricks<'a> {
    /// Each `[z, y, x]`, one after another.
    pub bytes: &'a [u8],
    /// Where they begin in the layer.
    pub begin: Zyx<usize>,
    /// Voxels of all.
    pub n: Zyx<usize>,
    /// Voxels of each along x, the last has what is left; bytes from one to the next.
    pub width: usize,
    pub stride: usize,
}

impl<'a> Bricks<'a> {
    /// A box in one piece.
    pub fn one(bytes: &'a [u8], begin: Zyx<usize>, n: Zyx<usize>) -> Self {
        Self { bytes, begin, n, width: n.x.max(1), stride: bytes.len() }
    }

    /// Every piece of a row that lies in one brick: where it begins in the layer, its bytes.
    /// - `voxel`: bytes of one
    pub fn pieces(&self, voxel: usize, mut piece: impl FnMut(Zyx<usize>, &'a [u8])) {
        for first in (0..self.n.x).step_by(self.width) {
            let (wide, brick) = (self.width.min(self.n.x - first), &self.bytes[first / self.width * self.stride..]);
            for row in 0..self.n.z * self.n.y {
                let at = self.begin.zip(Zyx::new(row / self.n.y, row % self.n.y, first)).map(|(a, b)| a + b);
                piece(at, &brick[row * wide * voxel..(row + 1) * wide * voxel]);
            }
        }
    }
}

/// Takes voxels of a layer.
pub type Take<'a> = dyn FnMut(Bricks) + 'a;

/// Gives the bricks that a box of the layer touches, row by row, each checked against its checksum. `false` where one is damaged; the rows before it were given.
pub(super) fn read(file: &File, id: &[u8; 32], grid: &Grid, region: Region, take: &mut Take) -> Result<bool> {
    let first = region.start.zip(grid.brick).map(|(s, b)| s as usize / b);
    let end = region.end().zip(grid.brick).map(|(e, b)| (e as usize).div_ceil(b));
    ROW.with_borrow_mut(|row| {
        for (z, y) in (first.z..end.z).flat_map(|z| (first.y..end.y).map(move |y| (z, y))) {
            let last = Zyx::new(z, y, end.x - 1);
            let ((begin, _), (last_begin, _)) = (grid.place(Zyx::new(z, y, first.x)), grid.place(last));
            let bytes = last_begin + grid.dims(last).count() * grid.voxel + CRC_BYTES - begin;
            if row.len() < bytes {
                row.resize(bytes, 0);
            }
            match file.read_exact_at(&mut row[..bytes], begin as u64) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(false),
                Err(e) => return Err(e),
            }
            let row = &row[..bytes];
            let mut rest = row;
            for x in first.x..end.x {
                let at = Zyx::new(z, y, x);
                let (dims, (_, number)) = (grid.dims(at), grid.place(at));
                let (brick, after) = rest.split_at(dims.count() * grid.voxel);
                let (crc, after) = after.split_at(CRC_BYTES);
                rest = after;
                if crc32c::crc32c_append(seed(id, number), brick).to_le_bytes() != crc {
                    return Ok(false);
                }
            }
            let begin = Zyx::new(z, y, first.x).zip(grid.brick).map(|(i, b)| i * b);
            let dims = grid.dims(last);
            let n = Zyx { x: last.x * grid.brick.x + dims.x - begin.x, ..dims };
            let stride = dims.z * dims.y * grid.brick.x * grid.voxel + CRC_BYTES;
            take(Bricks { bytes: row, begin, n, width: grid.brick.x, stride });
        }
        Ok(true)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(grid: &Grid, layer: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        write(&mut file, &[9; 32], grid, layer).unwrap();
        file
    }

    proptest! {
        #[test]
        fn every_box_comes_back_and_the_file_is_as_long_as_said(
            size in (1usize..20, 1usize..30, 1usize..40), brick in (1usize..9, 1usize..17, 1usize..17), voxel in 1usize..5,
            start in (0usize..20, 0usize..30, 0usize..40), n in (1usize..20, 1usize..30, 1usize..40),
        ) {
            let size = Zyx::new(size.0, size.1, size.2);
            let grid = Grid { size, brick: Zyx::new(brick.0, brick.1, brick.2).zip(size).map(|(b, n)| b.min(n)), voxel };
            let layer: Vec<u8> = (0..(grid.size.count() * grid.voxel)).map(|i| (i as u32).wrapping_mul(2_654_435_761) as u8).collect();
            let file = written(&grid, &layer);
            prop_assert_eq!(file.metadata().unwrap().len(), grid.file_bytes());
            prop_assert_eq!(open(&file).unwrap(), Some(([9; 32], grid)));
            let start = Zyx::new(start.0, start.1, start.2).zip(size).map(|(s, n)| s.min(n - 1));
            let n = Zyx::new(n.0, n.1, n.2).zip(size.zip(start)).map(|(n, (size, s))| n.min(size - s));
            let mut seen = vec![None; grid.size.count() * grid.voxel];
            let region = Region { start: start.map(|s| s as i64), size: n };
            let is_whole = read(&file, &[9; 32], &grid, region, &mut |b| b.pieces(voxel, |at, bytes| {
                let to = ((at.z * size.y + at.y) * size.x + at.x) * voxel;
                bytes.iter().enumerate().for_each(|(k, v)| seen[to + k] = Some(*v));
            }));
            prop_assert!(is_whole.unwrap());
            for i in 0..size.count() {
                let at = Zyx::new(i / (size.y * size.x), i / size.x % size.y, i % size.x);
                let is_inside = at.zip(start.zip(n)).map(|(i, (s, n))| s <= i && i < s + n).to_array() == [true; 3];
                for b in i * voxel..(i + 1) * voxel {
                    prop_assert!(seen[b] == Some(layer[b]) || (!is_inside && seen[b].is_none()));
                }
            }
        }
    }

    #[test]
    fn bricks_of_another_file_and_bytes_that_were_changed_are_not_taken() {
        let grid = Grid { size: Zyx::new(4, 20, 20), brick: Zyx::new(2, 8, 16), voxel: 2 };
        let layer: Vec<u8> = (0..(grid.size.count() * grid.voxel)).map(|i| i as u8).collect();
        let whole = Region::whole(grid.size);
        let file = written(&grid, &layer);
        assert!(!read(&file, &[8; 32], &grid, whole, &mut |_| ()).unwrap());
        for at in (0..grid.file_bytes()).step_by(7) {
            let file = written(&grid, &layer);
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 4], at).unwrap();
            let is_taken = open(&file).unwrap() == Some(([9; 32], grid)) && read(&file, &[9; 32], &grid, whole, &mut |_| ()).unwrap();
            assert!(!is_taken, "byte {at}");
            file.set_len(at).unwrap();
            assert_eq!(open(&file).unwrap(), None);
            let is_cut = at < grid.file_bytes() - TRAILER_BYTES as u64;
            assert!(!is_cut || !read(&file, &[9; 32], &grid, whole, &mut |_| ()).unwrap());
        }
    }

    #[test]
    fn the_grid_follows_the_patch() {
        let layer = Zyx::new(32, 358, 358);
        // Bytes read for each that is wanted, on average over all places, those across layers too.
        let read = |patch: Zyx<usize>| {
            let n = patch.zip(Grid::chosen(layer, 2, patch).brick).map(|(p, b)| ((p as f64 - 1.0) / b as f64 + 1.0) * b as f64 / p as f64);
            n.z * n.y * n.x
        };
        assert!(read(Zyx::new(32, 256, 256)) < 1.6 && read(Zyx::splat(128)) < 1.6);
        let thin = Grid::chosen(layer, 2, Zyx::new(1, 358, 358));
        assert_eq!(thin.brick.z, 1);
        assert_eq!(Grid::chosen(Zyx::new(2, 3, 5), 4, Zyx::splat(128)).brick, Zyx::new(2, 3, 5));
    }
}
