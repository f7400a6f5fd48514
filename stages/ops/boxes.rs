//! Boxes copied from one array into another, voxels turned into float32 on the way: what a patch is made of. Compiled for each width of vectors; a value is
//! turned exactly, so every width gives the same bits.

use voxmill_schemas::geometry::Zyx;

use super::lanes::on_lanes;

/// Where a box lies in two arrays, counted in voxels.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub n: Zyx<usize>,
    /// First voxel, and voxels from plane to plane and from row to row.
    pub from: (usize, usize, usize),
    pub to: (usize, usize, usize),
}

impl Span {
    /// A box of `n` voxels that begins at `start` of an array and at `at` of another.
    pub fn new(n: Zyx<usize>, start: Zyx<usize>, from: Zyx<usize>, at: Zyx<usize>, to: Zyx<usize>) -> Self {
        let place = |at: Zyx<usize>, size: Zyx<usize>| ((at.z * size.y + at.y) * size.x + at.x, size.y * size.x, size.x);
        Self { n, from: place(start, from), to: place(at, to) }
    }
}

/// Copies a box of little-endian voxels into an array.
pub type Paste<T> = fn(&[u8], &mut [T], Span);

/// Voxels that are turned at once.
const GROUP: usize = 16;

/// Rows of a box, one after another. Functions, not closures: a closure that is not inlined is compiled for the plain processor.
/// - `V`: bytes of a voxel; `one`: a voxel as float32
#[inline(always)]
fn rows<const V: usize>(from: &[u8], to: &mut [f32], s: Span, one: impl Fn([u8; V]) -> f32 + Copy) {
    let from = from.as_chunks::<V>().0;
    for z in 0..s.n.z {
        for y in 0..s.n.y {
            let (f, t) = (s.from.0 + z * s.from.1 + y * s.from.2, s.to.0 + z * s.to.1 + y * s.to.2);
            turn(&from[f..f + s.n.x], &mut to[t..t + s.n.x], one);
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

on_lanes! {
    /// `uint8` → float32.
    pub fn u8_to_f32(from: &[u8], to: &mut [f32], s: Span) {
        rows(from, to, s, of_u8);
    }
}
on_lanes! {
    /// `int16` → float32.
    pub fn i16_to_f32(from: &[u8], to: &mut [f32], s: Span) {
        rows(from, to, s, of_i16);
    }
}
on_lanes! {
    /// `uint16` → float32.
    pub fn u16_to_f32(from: &[u8], to: &mut [f32], s: Span) {
        rows(from, to, s, of_u16);
    }
}

/// Voxels as they are. `T` has as many bytes as a voxel.
pub fn as_is<T: bytemuck::Pod>(from: &[u8], to: &mut [T], s: Span) {
    let v = size_of::<T>();
    for z in 0..s.n.z {
        for y in 0..s.n.y {
            let (f, t) = ((s.from.0 + z * s.from.1 + y * s.from.2) * v, s.to.0 + z * s.to.1 + y * s.to.2);
            bytemuck::cast_slice_mut(&mut to[t..t + s.n.x]).copy_from_slice(&from[f..f + s.n.x * v]);
        }
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
}
