//! Planes of a grid made of slices: as they are, or mixed of the two beside them.

use half::f16;
use rayon::prelude::*;
use voxmill_schemas::geometry::Zyx;

use super::order::Blend;
use crate::volume::Voxels;

/// The planes of a grid of `size`, in each of `channels`.
/// - `slices`: `[channel, slice, y, x]`; the result is `[channel, z, y, x]`
/// - `padding`: values that are no tissue and mix with none; nearer padding stays padding
///
/// Integers stay integers: what is mixed is rounded, half to even.
pub fn planes(slices: &Voxels, channels: usize, size: Zyx<usize>, blends: &[Blend], padding: Option<[f64; 2]>) -> Voxels {
    match slices {
        Voxels::U8(v) => Voxels::U8(mixed(v, channels, size, blends, padding, |v| v as f64, |v| v.round_ties_even() as u8)),
        Voxels::I16(v) => Voxels::I16(mixed(v, channels, size, blends, padding, |v| v as f64, |v| v.round_ties_even() as i16)),
        Voxels::U16(v) => Voxels::U16(mixed(v, channels, size, blends, padding, |v| v as f64, |v| v.round_ties_even() as u16)),
        Voxels::F16(v) => Voxels::F16(mixed(v, channels, size, blends, padding, f16::to_f64, f16::from_f64)),
        Voxels::F32(v) => Voxels::F32(mixed(v, channels, size, blends, padding, |v| v as f64, |v| v as f32)),
    }
}

fn mixed<T: Copy + Default + Send + Sync>(
    slices: &[T],
    channels: usize,
    size: Zyx<usize>,
    blends: &[Blend],
    padding: Option<[f64; 2]>,
    wide: impl Fn(T) -> f64 + Sync,
    narrow: impl Fn(f64) -> T + Sync,
) -> Vec<T> {
    let plane = size.y * size.x;
    let is_padding = |v: f64| padding.is_some_and(|[low, high]| low <= v && v <= high);
    let n_slices = slices.len() / (plane * channels).max(1);
    let mut out = vec![T::default(); size.count() * channels];
    out.par_chunks_mut(plane.max(1)).enumerate().for_each(|(i, out)| {
        let (b, slices) = (&blends[i % blends.len()], &slices[i / blends.len() * n_slices * plane..]);
        let low = &slices[b.low * plane..][..plane];
        if b.high_weight == 0.0 {
            return out.copy_from_slice(low);
        }
        let high = &slices[(b.low + 1) * plane..][..plane];
        for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
            let (a, b, w) = (wide(*low), wide(*high), b.high_weight);
            *out = match (is_padding(a), is_padding(b)) {
                (false, false) => narrow(a + (b - a) * w),
                (true, true) => *low,
                _ if w > 0.5 => *high,
                _ => *low,
            };
        }
    });
    out
}

/// Whether plane `i` of two arrays `[slice, y, x]` holds the same values.
pub fn same_plane(a: &Voxels, b: &Voxels, plane: usize, i: usize) -> bool {
    let part = i * plane..(i + 1) * plane;
    match (a, b) {
        (Voxels::U8(a), Voxels::U8(b)) => a[part.clone()] == b[part],
        (Voxels::I16(a), Voxels::I16(b)) => a[part.clone()] == b[part],
        (Voxels::U16(a), Voxels::U16(b)) => a[part.clone()] == b[part],
        _ => a.to_f32()[part.clone()] == b.to_f32()[part],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_are_mixed_by_their_distance_and_padding_is_not() {
        let slices = Voxels::I16(vec![0, 10, -2000, -2000, 100, 20, 50, -2000]);
        let at = |low, high_weight| Blend { low, high_weight };
        let blends = [at(0, 0.0), at(0, 0.25), at(0, 0.75), at(1, 0.0)];
        let got = planes(&slices, 1, Zyx::new(4, 1, 4), &blends, Some([-2000.0, -2000.0]));
        let wanted = [[0, 10, -2000, -2000], [25, 12, -2000, -2000], [75, 18, 50, -2000], [100, 20, 50, -2000]];
        assert_eq!(got, Voxels::I16(wanted.concat()));
        // Channels stand one after another.
        let colours = Voxels::U8(vec![0, 100, 50, 150]);
        let got = planes(&colours, 2, Zyx::new(3, 1, 1), &[at(0, 0.0), at(0, 0.5), at(1, 0.0)], None);
        assert_eq!(got, Voxels::U8(vec![0, 50, 100, 50, 100, 150]));
    }
}
