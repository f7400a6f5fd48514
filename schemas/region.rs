//! Boxes of voxels: intersection, chunk grids and overlapping tiles. Starts are signed, so that a patch may stick out of its volume.

use serde::{Deserialize, Serialize};

use crate::geometry::Zyx;

/// A box of voxels: `start` inclusive, `start + size` exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Region {
    pub start: Zyx<i64>,
    pub size: Zyx<usize>,
}

impl Region {
    /// The whole of an array.
    pub fn whole(size: Zyx<usize>) -> Self {
        Self { start: Zyx::splat(0), size }
    }

    pub fn end(&self) -> Zyx<i64> {
        self.start.zip(self.size).map(|(s, n)| s + n as i64)
    }

    pub fn is_empty(&self) -> bool {
        self.size.z == 0 || self.size.y == 0 || self.size.x == 0
    }

    /// The voxels in both; `None` when there is none.
    pub fn intersect(&self, other: &Region) -> Option<Region> {
        let start = self.start.zip(other.start).map(|(a, b)| a.max(b));
        let size = self.end().zip(other.end()).map(|(a, b)| a.min(b)).zip(start).map(|(e, s)| (e - s).max(0) as usize);
        let r = Region { start, size };
        (!r.is_empty()).then_some(r)
    }

    pub fn contains(&self, other: &Region) -> bool {
        self.intersect(other) == Some(*other)
    }

    /// The chunks of a grid of `chunk`-sized boxes (from index 0) that this region touches, axis z slowest.
    /// The region must lie at non-negative indices.
    pub fn chunks(&self, chunk: Zyx<usize>) -> impl Iterator<Item = Zyx<usize>> + use<> {
        let range = |s: i64, n: usize, c: usize| {
            let first = s.max(0) as usize / c;
            let last = if n == 0 { first } else { (s.max(0) as usize + n).div_ceil(c) };
            first..last
        };
        let (zs, ys, xs) = (
            range(self.start.z, self.size.z, chunk.z),
            range(self.start.y, self.size.y, chunk.y),
            range(self.start.x, self.size.x, chunk.x),
        );
        zs.flat_map(move |z| {
            let xs = xs.clone();
            ys.clone().flat_map(move |y| xs.clone().map(move |x| Zyx::new(z, y, x)))
        })
    }
}

/// Start positions of overlapping windows on one axis, as MONAI's `dense_patch_slices`: step = max(int(r·(1−o)), 1), the last window is
/// moved back to end with the image. `n >= roi` is required (pad first).
pub fn window_starts(n: usize, roi: usize, overlap: f64) -> Vec<usize> {
    assert!(roi >= 1 && n >= roi, "the caller pads the image to the window first");
    if n == roi {
        return vec![0];
    }
    let step = ((roi as f64 * (1.0 - overlap)) as usize).max(1);
    let mut starts = Vec::new();
    let mut s = 0;
    loop {
        if s + roi >= n {
            starts.push(n - roi);
            return starts;
        }
        starts.push(s);
        s += step;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_follow_monai() {
        assert_eq!(window_starts(100, 32, 0.25), [0, 24, 48, 68]);
        assert_eq!(window_starts(64, 32, 0.25), [0, 24, 32]);
        assert_eq!(window_starts(32, 32, 0.25), [0]);
    }

    #[test]
    fn region_touches_the_chunks_it_overlaps() {
        let r = Region { start: Zyx::new(3, 0, 4), size: Zyx::new(2, 4, 1) };
        let got: Vec<_> = r.chunks(Zyx::splat(4)).collect();
        assert_eq!(got, [Zyx::new(0, 0, 1), Zyx::new(1, 0, 1)]);
    }

    #[test]
    fn disjoint_regions_do_not_intersect() {
        let a = Region::whole(Zyx::splat(4));
        let b = Region { start: Zyx::splat(4), size: Zyx::splat(2) };
        assert_eq!(a.intersect(&b), None);
        assert!(a.contains(&Region { start: Zyx::splat(1), size: Zyx::splat(3) }));
    }
}
