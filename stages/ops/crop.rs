//! Boxes: find the one around what matters, cut it out, pad around it. A box may stick out of the array; the geometry of the result is [`Geometry::crop`] of it.
//!
//! [`Geometry::crop`]: voxmill_schemas::geometry::Geometry::crop

use rayon::prelude::*;
use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;

use super::plan::Part;

/// The smallest box around all voxels that `keep` accepts in any channel; `None` when it accepts none (MONAI `generate_spatial_bounding_box`).
///
/// - values: `[c, z, y, x]`
pub fn bounding_box<T: Copy + Sync>(values: &[T], size: Zyx<usize>, keep: impl Fn(T) -> bool + Sync) -> Option<Region> {
    if values.is_empty() {
        return None;
    }
    // Each row of the array: (z, y, first x, end of x).
    let rows = values.par_chunks(size.x).enumerate().filter_map(|(i, row)| {
        let first = row.iter().position(|v| keep(*v))?;
        let end = row.iter().rposition(|v| keep(*v))? + 1;
        let (z, y) = (i / size.y % size.z, i % size.y);
        Some((Zyx::new(z, y, first), Zyx::new(z + 1, y + 1, end)))
    });
    let (first, end) = rows.reduce_with(|a, b| (a.0.zip(b.0).map(|(p, q)| p.min(q)), a.1.zip(b.1).map(|(p, q)| p.max(q))))?;
    Some(Region { start: first.map(|v| v as i64), size: end.zip(first).map(|(e, f)| e - f) })
}

/// A box with `margin` voxels more on either side; it may stick out.
pub fn grow(region: Region, margin: Zyx<usize>) -> Region {
    Region { start: region.start.zip(margin).map(|(s, m)| s - m as i64), size: region.size.zip(margin).map(|(n, m)| n + 2 * m) }
}

/// The box of `target` voxels about the middle: a centre crop where the array is larger, even padding where it is smaller (MONAI `ResizeWithPadOrCrop`). On an
/// axis where `target` is 0 all stays.
pub fn centered(size: Zyx<usize>, target: Zyx<usize>) -> Region {
    let axis = |(n, r): (usize, usize)| match (n, r) {
        (n, 0) => (0, n),
        (n, r) if n >= r => ((n / 2).saturating_sub(r / 2) as i64, r),
        (n, r) => (-(((r - n) / 2) as i64), r),
    };
    let both = size.zip(target).map(axis);
    Region { start: both.map(|b| b.0), size: both.map(|b| b.1) }
}

/// What fills a box where it sticks out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill<T> {
    Value(T),
    /// The closest voxel of the edge.
    Edge,
    /// Mirrored at the outermost voxels, which are not repeated (numpy `reflect`).
    Reflect,
}

/// The voxels of a box, in every channel.
///
/// - values: `[c, z, y, x]` of `size`; the result is `[c, z, y, x]` of `region.size`
pub fn cut<T: Copy + Default + Send + Sync>(values: &[T], size: Zyx<usize>, region: Region, fill: Fill<T>) -> Vec<T> {
    let (from, to) = (size.count().max(1), region.size.count());
    let mut out = vec![T::default(); values.len() / from * to];
    for (values, out) in values.chunks_exact(from).zip(out.chunks_exact_mut(to.max(1))) {
        cut_part(Part::whole(values, size), size, region, fill, out);
    }
    out
}

/// The voxels of an array of `size` that a box of it is made from: a box inside it, which may be empty.
pub fn needs<T: Copy>(size: Zyx<usize>, region: Region, fill: Fill<T>) -> Region {
    let axis = |start: i64, n: usize, size: usize| -> Option<(i64, usize)> {
        let read = (0..n as i64).filter_map(|i| source(start + i, size, fill));
        let (low, high) = read.fold((usize::MAX, 0), |(low, high), i| (low.min(i), high.max(i)));
        (low <= high).then(|| (low as i64, high - low + 1))
    };
    let z = axis(region.start.z, region.size.z, size.z);
    let y = axis(region.start.y, region.size.y, size.y);
    let x = axis(region.start.x, region.size.x, size.x);
    match (z, y, x) {
        (Some(z), Some(y), Some(x)) => Region { start: Zyx::new(z.0, y.0, x.0), size: Zyx::new(z.1, y.1, x.1) },
        _ => Region { start: Zyx::splat(0), size: Zyx::splat(0) },
    }
}

/// The voxels of a box of an array of `size`, one channel.
///
/// - part: a box of the array that covers [`needs`] of `region`
/// - out: `[z, y, x]` of `region`
pub fn cut_part<T: Copy + Send + Sync>(part: Part<T>, size: Zyx<usize>, region: Region, fill: Fill<T>, out: &mut [T]) {
    let to = region.size;
    if let Fill::Value(blank) = fill {
        out.fill(blank);
    }
    if part.region.is_empty() {
        return;
    }
    let xs: Vec<Option<usize>> = (0..to.x).map(|x| source(region.start.x + x as i64, size.x, fill)).collect();
    // Where x runs through the array without a fold it is copied whole.
    let inside_first = (-region.start.x).clamp(0, to.x as i64) as usize;
    let inside_end = ((size.x as i64 - region.start.x).max(0) as usize).min(to.x);
    out.par_chunks_mut((to.y * to.x).max(1)).enumerate().for_each(|(z, out)| {
        let Some(z) = source(region.start.z + z as i64, size.z, fill) else { return };
        for (y, row) in out.chunks_exact_mut(to.x.max(1)).enumerate() {
            let Some(y) = source(region.start.y + y as i64, size.y, fill) else { continue };
            let (line, start) = part.row(z, y);
            if inside_first < inside_end {
                let from = (region.start.x + inside_first as i64) as usize - start;
                row[inside_first..inside_end].copy_from_slice(&line[from..][..inside_end - inside_first]);
            }
            for x in (0..inside_first.min(to.x)).chain(inside_end..to.x) {
                if let Some(from) = xs[x] {
                    row[x] = line[from - start];
                }
            }
        }
    });
}

fn source<T>(i: i64, n: usize, fill: Fill<T>) -> Option<usize> {
    let last = n as i64 - 1;
    match fill {
        _ if (0..=last).contains(&i) => Some(i as usize),
        Fill::Value(_) => None,
        Fill::Edge => Some(i.clamp(0, last) as usize),
        Fill::Reflect if last == 0 => Some(0),
        Fill::Reflect => {
            let k = i.rem_euclid(2 * last);
            Some(if k > last { 2 * last - k } else { k } as usize)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn centre_crop_and_padding_are_those_of_monai() {
        let axis = |n, r| {
            let c = centered(Zyx::splat(n), Zyx::splat(r));
            (c.start.x, c.size.x)
        };
        assert_eq!([axis(5, 2), axis(5, 5), axis(5, 8), axis(4, 7), axis(6, 0)], [(1, 2), (0, 5), (-1, 8), (-1, 7), (0, 6)]);
    }

    #[test]
    fn the_box_holds_every_channel() {
        let size = Zyx::new(3, 4, 5);
        let mut v = vec![0.0f32; 2 * size.count()];
        v[20 + 5 + 2] = 1.0;
        v[60 + 40 + 15] = 1.0;
        let found = bounding_box(&v, size, |v| v > 0.5).unwrap();
        assert_eq!(found, Region { start: Zyx::new(1, 1, 0), size: Zyx::new(2, 3, 3) });
        assert_eq!(bounding_box(&v, size, |v| v > 2.0), None);
        assert_eq!(grow(found, Zyx::new(1, 0, 2)), Region { start: Zyx::new(0, 1, -2), size: Zyx::new(4, 3, 7) });
    }

    #[test]
    fn fills_repeat_mirror_or_stand_alone() {
        let row = |fill| cut(&[1, 2, 3], Zyx::new(1, 1, 3), Region { start: Zyx::new(0, 0, -3), size: Zyx::new(1, 1, 9) }, fill);
        assert_eq!(row(Fill::Value(9)), [9, 9, 9, 1, 2, 3, 9, 9, 9]);
        assert_eq!(row(Fill::Edge), [1, 1, 1, 1, 2, 3, 3, 3, 3]);
        assert_eq!(row(Fill::Reflect), [2, 3, 2, 1, 2, 3, 2, 1, 2]);
    }

    proptest! {
        #[test]
        fn a_box_and_its_inverse_give_the_middle_back(n in 1usize..8, a in -4i64..4, m in 1usize..9) {
            let size = Zyx::splat(n);
            let values: Vec<u16> = (1..=2 * size.count() as u16).collect();
            let region = Region { start: Zyx::splat(a), size: Zyx::splat(m) };
            let out = cut(&values, size, region, Fill::Value(0));
            let back = cut(&out, region.size, Region { start: Zyx::splat(-a), size }, Fill::Value(0));
            for (i, v) in back.iter().enumerate() {
                let at = [i / (n * n) % n, i / n % n, i % n].map(|k| k as i64);
                let inside = at.iter().all(|k| *k >= a && *k < a + m as i64);
                prop_assert_eq!(*v, if inside { values[i] } else { 0 });
            }
        }
    }
}
