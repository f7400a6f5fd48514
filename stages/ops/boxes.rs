//! Boxes copied from one array into another, voxels turned into float32 on the way: what a patch is made of. Compiled for each width of vectors; a value is
//! turned exactly, so every width gives the same bits.

use half::f16;
use half::slice::HalfFloatSliceExt;
use voxmill_schemas::geometry::Zyx;

use super::lanes::on_lanes;

/// Where a box lies in two arrays, counted in voxels. The first may lie in bricks side by side along x, each with bytes of its own after it: a row of the box is
/// written at once, whatever bricks it comes from.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub n: Zyx<usize>,
    /// Where it begins in the array that it comes from, and how many rows each plane has there.
    start: Zyx<usize>,
    from_y: usize,
    /// Voxels along x: of a brick (the last has what is left), of all.
    from_x: (usize, usize),
    /// Bytes from brick to brick.
    stride: usize,
    /// First voxel of the array that it goes to, and voxels from plane to plane and from row to row.
    to: (usize, usize, usize),
}

impl Span {
    /// A box of `n` voxels that begins at `start` of an array and at `at` of another.
    pub fn new(n: Zyx<usize>, start: Zyx<usize>, from: Zyx<usize>, at: Zyx<usize>, to: Zyx<usize>) -> Self {
        Self { n, start, from_y: from.y, from_x: (from.x, from.x), stride: 0, to: ((at.z * to.y + at.y) * to.x + at.x, to.y * to.x, to.x) }
    }

    /// The same out of bricks that are `x` voxels wide and begin `stride` bytes apart.
    pub fn in_bricks(self, x: usize, stride: usize) -> Self {
        Self { from_x: (x, self.from_x.1), stride, ..self }
    }
}

/// Copies a box of little-endian voxels into an array.
pub type Paste<T> = fn(&[u8], &mut [T], Span);

/// Voxels that are turned at once.
const GROUP: usize = 16;

/// Rows of a box, one after another. Functions, not closures: a closure that is not inlined is compiled for the plain processor.
/// - `V`: bytes of a voxel; `piece`: copies what of a row lies in one brick
#[inline(always)]
fn rows<const V: usize, T>(from: &[u8], to: &mut [T], s: Span, piece: impl Fn(&[[u8; V]], &mut [T]) + Copy) {
    let (width, total) = s.from_x;
    for z in 0..s.n.z {
        for y in 0..s.n.y {
            let t = s.to.0 + z * s.to.1 + y * s.to.2;
            let mut rest = &mut to[t..t + s.n.x];
            let (mut brick, mut x) = (s.start.x / width, s.start.x % width);
            while !rest.is_empty() {
                let wide = width.min(total - brick * width);
                let (now, after) = rest.split_at_mut(rest.len().min(wide - x));
                let f = brick * s.stride + (((s.start.z + z) * s.from_y + s.start.y + y) * wide + x) * V;
                piece(from[f..f + now.len() * V].as_chunks::<V>().0, now);
                (rest, brick, x) = (after, brick + 1, 0);
            }
        }
    }
}

/// One row, sixteen voxels at a time; the last sixteen end with the row, so that no rest is done one by one.
#[inline(always)]
fn turn<const V: usize>(from: &[[u8; V]], to: &mut [f32], one: impl Fn([u8; V]) -> f32 + Copy) {
    for (f, t) in from.as_chunks::<GROUP>().0.iter().zip(to.as_chunks_mut::<GROUP>().0) {
        group(f, t, one);
    }
    if from.len().is_multiple_of(GROUP) {
        return;
    }
    match (from.last_chunk::<GROUP>(), to.last_chunk_mut::<GROUP>()) {
        (Some(f), Some(t)) => group(f, t, one),
        _ => {
            for (f, t) in from.iter().zip(to) {
                *t = one(*f);
            }
        }
    }
}

#[inline(always)]
fn group<const V: usize>(from: &[[u8; V]; GROUP], to: &mut [f32; GROUP], one: impl Fn([u8; V]) -> f32) {
    for i in 0..GROUP {
        to[i] = one(from[i]);
    }
}

#[inline(always)]
fn of_u8([v]: [u8; 1]) -> f32 {
    v as f32
}

#[inline(always)]
fn of_i16(v: [u8; 2]) -> f32 {
    i16::from_le_bytes(v) as f32
}

#[inline(always)]
fn of_u16(v: [u8; 2]) -> f32 {
    u16::from_le_bytes(v) as f32
}

#[inline(always)]
fn piece_of_u8(from: &[[u8; 1]], to: &mut [f32]) {
    turn(from, to, of_u8);
}

#[inline(always)]
fn piece_of_i16(from: &[[u8; 2]], to: &mut [f32]) {
    turn(from, to, of_i16);
}

#[inline(always)]
fn piece_of_u16(from: &[[u8; 2]], to: &mut [f32]) {
    turn(from, to, of_u16);
}

on_lanes! {
    /// `uint8` → float32.
    pub fn u8_to_f32(from: &[u8], to: &mut [f32], s: Span) {
        rows(from, to, s, piece_of_u8);
    }
}
on_lanes! {
    /// `int16` → float32.
    pub fn i16_to_f32(from: &[u8], to: &mut [f32], s: Span) {
        rows(from, to, s, piece_of_i16);
    }
}
on_lanes! {
    /// `uint16` → float32.
    pub fn u16_to_f32(from: &[u8], to: &mut [f32], s: Span) {
        rows(from, to, s, piece_of_u16);
    }
}

/// `float16` → float32.
pub fn f16_to_f32(from: &[u8], to: &mut [f32], s: Span) {
    rows(from, to, s, piece_of_f16);
}

fn piece_of_f16(from: &[[u8; 2]], to: &mut [f32]) {
    let mut some = [f16::ZERO; 64];
    for (from, to) in from.chunks(some.len()).zip(to.chunks_mut(some.len())) {
        some.iter_mut().zip(from).for_each(|(s, f)| *s = f16::from_le_bytes(*f));
        some[..to.len()].convert_to_f32_slice(to);
    }
}

/// Voxels as they are. `T` has as many bytes as a voxel.
pub fn as_is<T: bytemuck::Pod>(from: &[u8], to: &mut [T], s: Span) {
    match size_of::<T>() {
        1 => rows(from, bytemuck::cast_slice_mut(to), s, same::<1>),
        2 => rows(from, bytemuck::cast_slice_mut(to), s, same::<2>),
        4 => rows(from, bytemuck::cast_slice_mut(to), s, same::<4>),
        n => unreachable!("no voxel has {n} bytes"),
    }
}

/// A call to copy a short piece costs more than the piece: those go in blocks, the last of which ends with the piece.
#[inline(always)]
fn same<const V: usize>(from: &[[u8; V]], to: &mut [[u8; V]]) {
    const BLOCK: usize = 64;
    let (from, to) = (from.as_flattened(), to.as_flattened_mut());
    match (from.last_chunk::<BLOCK>(), from.len() < 8 * BLOCK) {
        (Some(last), true) => {
            for (f, t) in from.as_chunks::<BLOCK>().0.iter().zip(to.as_chunks_mut::<BLOCK>().0) {
                *t = *f;
            }
            if let Some(t) = to.last_chunk_mut::<BLOCK>() {
                *t = *last;
            }
        }
        _ => to.copy_from_slice(from),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ops::lanes::Lanes;

    #[test]
    fn every_width_turns_every_value_of_rows_of_any_length() {
        let from: Vec<u8> = (0..1u32 << 17).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for x in [1, 7, 15, 16, 17, 33, 100] {
            let (size, room) = (Zyx::new(5, 9, x + 3), Zyx::new(4, 6, x + 1));
            let s = Span::new(Zyx::new(3, 4, x), Zyx::new(1, 2, 3), size, Zyx::new(1, 2, 1), room);
            for lanes in Lanes::all() {
                let (mut i, mut u, mut b) = (vec![-0.5; room.count()], vec![-0.5; room.count()], vec![-0.5; room.count()]);
                i16_to_f32(lanes, &from[..size.count() * 2], &mut i, s);
                u16_to_f32(lanes, &from[..size.count() * 2], &mut u, s);
                u8_to_f32(lanes, &from[..size.count()], &mut b, s);
                let mut raw = vec![7u16; room.count()];
                as_is(&from[..size.count() * 2], &mut raw, s);
                for at in 0..room.count() {
                    let (z, y, k) = (at / (room.y * room.x), at / room.x % room.y, at % room.x);
                    if z == 0 || y < 2 || k == 0 {
                        assert_eq!((i[at], u[at], b[at], raw[at]), (-0.5, -0.5, -0.5, 7));
                        continue;
                    }
                    let f = (z * size.y + y) * size.x + k + 2;
                    let word = u16::from_le_bytes([from[2 * f], from[2 * f + 1]]);
                    assert_eq!((i[at], u[at], b[at], raw[at]), (word as i16 as f32, word as f32, from[f] as f32, word), "{x} {at}");
                }
            }
        }
    }

    #[test]
    fn a_box_out_of_bricks_is_that_out_of_the_array() {
        let (size, width) = (Zyx::new(3, 4, 50), 16);
        let array: Vec<u16> = (0..size.count() as u16).map(|i| i.wrapping_mul(977)).collect();
        // Bricks side by side, each with six bytes after it.
        let mut bricks = Vec::new();
        for x in (0..size.x).step_by(width) {
            for row in 0..size.z * size.y {
                let row = &array[row * size.x + x..][..width.min(size.x - x)];
                bricks.extend(row.iter().flat_map(|v| v.to_le_bytes()));
            }
            bricks.extend([0xff; 6]);
        }
        let stride = size.z * size.y * width * 2 + 6;
        for (start, n) in [(0, 50), (5, 40), (16, 16), (33, 17), (49, 1)] {
            let s = Span::new(Zyx::new(2, 2, n), Zyx::new(1, 2, start), size, Zyx::splat(0), Zyx::new(2, 2, n));
            let (mut plain, mut out) = (vec![0u16; 4 * n], vec![0u16; 4 * n]);
            as_is(bytemuck::cast_slice(&array), &mut plain, s);
            as_is(&bricks, &mut out, s.in_bricks(width, stride));
            assert_eq!(plain, out, "{n} from {start}");
            assert_eq!(plain[0], array[(size.y + 2) * size.x + start]);
            for lanes in Lanes::all() {
                let mut turned = vec![0.0; 4 * n];
                u16_to_f32(lanes, &bricks, &mut turned, s.in_bricks(width, stride));
                assert!(turned.iter().zip(&plain).all(|(t, p)| *t == *p as f32));
            }
        }
    }
}
