//! Where label planes fall on an image: the grid of the image with the positions its slices really have, and nearest-neighbour lookup.
//! Pure: no file is opened here.

use std::collections::HashMap;

use voxmill_schemas::geometry::{Geometry, Lps, Zyx};

/// Cosine of the largest angle off that two planes still count as parallel.
const PARALLEL: f64 = 1e-3;

/// The orientation and place of one frame, PS3.3 C.7.6.2.1.1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plane {
    /// Centre of the first pixel.
    pub origin: Lps,
    /// Unit vector along a row: the way the column index grows.
    pub along_row: Lps,
    /// Unit vector along a column: the way the row index grows.
    pub along_column: Lps,
    /// Between rows (PixelSpacing, first value).
    pub row_spacing_mm: f64,
    /// Between columns (PixelSpacing, second value).
    pub column_spacing_mm: f64,
}

impl Plane {
    /// From ImagePositionPatient, ImageOrientationPatient and PixelSpacing; `None` when they do not span a plane.
    pub fn new(position: [f64; 3], orientation: [f64; 6], spacing: [f64; 2]) -> Option<Plane> {
        let [a, b, c, d, e, f] = orientation;
        let (row, column) = (Lps([a, b, c]), Lps([d, e, f]));
        let is_unit = |v: Lps| (v.norm() - 1.0).abs() < 0.01;
        let is_right = row.dot(column).abs() < 0.01 && spacing.iter().all(|s| s.is_finite() && *s > 0.0);
        (is_unit(row) && is_unit(column) && is_right).then(|| Plane {
            origin: Lps(position),
            along_row: row.scale(1.0 / row.norm()),
            along_column: column.scale(1.0 / column.norm()),
            row_spacing_mm: spacing[0],
            column_spacing_mm: spacing[1],
        })
    }

    pub fn normal(&self) -> Lps {
        self.along_row.cross(self.along_column)
    }

    /// Continuous (row, column) of a point projected on the plane. Pixel centres are at integers.
    pub fn pixel(&self, p: Lps) -> (f64, f64) {
        let v = p - self.origin;
        (v.dot(self.along_column) / self.row_spacing_mm, v.dot(self.along_row) / self.column_spacing_mm)
    }
}

/// One slice of an image series, as its header has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    pub sop_class: String,
    pub sop_instance: String,
    /// Number of the frame (from 1) in a multi-frame instance.
    pub frame: Option<u32>,
    pub plane: Plane,
    pub rows: usize,
    pub columns: usize,
    pub thickness_mm: Option<f64>,
}

/// The grid that labels are put on.
#[derive(Clone, Debug)]
pub struct Grid {
    pub geometry: Geometry,
    /// Unit normal of the slices, the way the slice index grows.
    pub normal: Lps,
    /// First voxel of each slice, where it really lies.
    pub origins: Vec<Lps>,
    /// Position of each slice along the normal, ascending.
    pub along_mm: Vec<f64>,
    /// SOP instance and frame number (1 for single frames) → slice index.
    pub slice_of: HashMap<(String, u32), usize>,
    pub thickness_mm: Option<f64>,
}

impl Grid {
    /// The slices of a regular grid.
    pub fn of(geometry: &Geometry) -> Grid {
        Grid::standing(geometry, &[])
    }

    /// The slices of a stack that is regular in its planes and, where `z_positions_mm` says so, not along z: mm from slice 0 along `axes_mm.z`, ascending.
    pub fn standing(geometry: &Geometry, z_positions_mm: &[f64]) -> Grid {
        let (y, x) = (geometry.axes_mm.y, geometry.axes_mm.x);
        let mut normal = x.cross(y);
        normal = normal.scale(1.0 / normal.norm());
        if normal.dot(geometry.axes_mm.z) < 0.0 {
            normal = normal.scale(-1.0);
        }
        let step_mm = geometry.axes_mm.z.norm();
        let place = |k: usize| z_positions_mm.get(k).map_or(k as f64, |mm| mm / step_mm);
        let origins: Vec<Lps> = (0..geometry.size.z).map(|k| geometry.to_lps(Zyx::new(place(k), 0.0, 0.0))).collect();
        let along_mm = origins.iter().map(|o| o.dot(normal)).collect();
        Grid { geometry: *geometry, normal, origins, along_mm, slice_of: HashMap::new(), thickness_mm: None }
    }

    /// A regular grid with the real positions and names of the slices it was assembled from.
    pub fn with_slices(geometry: &Geometry, slices: &[Slice]) -> Grid {
        Grid::of(geometry).named(slices)
    }

    /// The same with the real positions and names of the slices it was assembled from. Slices that are not on the grid are left out
    /// (another volume of the same series); where two claim one place the first wins.
    pub fn named(self, slices: &[Slice]) -> Grid {
        let regular = self;
        let mut grid = regular.clone();
        let mut taken = vec![false; regular.geometry.size.z];
        for (s, k) in slices.iter().filter_map(|s| Some((s, regular.slice_at(s)?))) {
            grid.slice_of.entry((s.sop_instance.clone(), s.frame.unwrap_or(1))).or_insert(k);
            if !taken[k] {
                taken[k] = true;
                grid.origins[k] = s.plane.origin;
                grid.thickness_mm = grid.thickness_mm.or(s.thickness_mm);
            }
        }
        let along: Vec<f64> = grid.origins.iter().map(|o| o.dot(grid.normal)).collect();
        if along.windows(2).all(|w| w[0] < w[1]) {
            grid.along_mm = along;
        } else {
            grid.origins = regular.origins;
        }
        grid
    }

    /// The slice index at which a slice of the series lies; `None` where it is not one of this grid (other size, orientation or place).
    fn slice_at(&self, s: &Slice) -> Option<usize> {
        let g = &self.geometry;
        if (s.rows, s.columns) != (g.size.y, g.size.x) || !self.is_parallel(&s.plane) {
            return None;
        }
        let (k, d) = self.nearest(s.plane.origin);
        let half_pixel = 0.5 * g.axes_mm.y.norm().min(g.axes_mm.x.norm());
        let aside = s.plane.origin - self.origins[k] - self.normal.scale(d);
        (d.abs() < 0.5 * self.gap_mm(k) && aside.norm() <= half_pixel).then_some(k)
    }

    /// Nearest slice of a point and the signed distance from it along the normal, mm.
    pub fn nearest(&self, p: Lps) -> (usize, f64) {
        let at = p.dot(self.normal);
        let next = self.along_mm.partition_point(|a| *a < at).min(self.along_mm.len() - 1);
        let best = if next > 0 && at - self.along_mm[next - 1] <= (self.along_mm[next] - at).abs() { next - 1 } else { next };
        (best, at - self.along_mm[best])
    }

    /// Distance to the nearer neighbour of a slice; of the only slice its thickness, or its pixel spacing.
    pub fn gap_mm(&self, k: usize) -> f64 {
        let below = (k > 0).then(|| self.along_mm[k] - self.along_mm[k - 1]);
        let above = (k + 1 < self.along_mm.len()).then(|| self.along_mm[k + 1] - self.along_mm[k]);
        match (below, above) {
            (Some(a), Some(b)) => a.min(b),
            (Some(a), None) | (None, Some(a)) => a,
            (None, None) => self.thickness_mm.unwrap_or(self.geometry.axes_mm.z.norm()),
        }
    }

    pub fn is_parallel(&self, plane: &Plane) -> bool {
        plane.along_row.dot(self.normal).abs() < PARALLEL && plane.along_column.dot(self.normal).abs() < PARALLEL
    }

    /// The plane of slice `k` itself: a label frame that names its source image and no position lies there.
    pub fn plane(&self, k: usize) -> Plane {
        let (y, x) = (self.geometry.axes_mm.y, self.geometry.axes_mm.x);
        Plane {
            origin: self.origins[k],
            along_row: x.scale(1.0 / x.norm()),
            along_column: y.scale(1.0 / y.norm()),
            row_spacing_mm: y.norm(),
            column_spacing_mm: x.norm(),
        }
    }

    /// How the pixels of slice `k` are found on a parallel plane of `rows × columns`.
    pub fn lookup(&self, k: usize, plane: &Plane) -> Lookup {
        let o = self.origins[k];
        let at = plane.pixel(o);
        let (down, right) = (plane.pixel(o + self.geometry.axes_mm.y), plane.pixel(o + self.geometry.axes_mm.x));
        Lookup { at, per_row: (down.0 - at.0, down.1 - at.1), per_column: (right.0 - at.0, right.1 - at.1) }
    }
}

/// The slice of the series at each slice index of a grid, pixel for pixel; or what keeps the grid from being the one of the series.
/// - `made`: slices of the grid that no file holds; they are left out
pub fn on_grid<'a>(grid: &Grid, slices: &'a [Slice], made: &[usize]) -> Result<Vec<&'a Slice>, String> {
    let size = grid.geometry.size;
    let mut out: Vec<Option<&Slice>> = vec![None; size.z];
    for s in slices {
        if let Some(k) = grid.slice_at(s) {
            out[k].get_or_insert(s);
        }
    }
    let same_axes = |s: &&Slice| {
        let l = grid.lookup(0, &s.plane);
        (l.per_row.0 - 1.0).abs() < 1e-3 && (l.per_column.1 - 1.0).abs() < 1e-3 && l.per_row.1.abs() < 1e-3 && l.per_column.0.abs() < 1e-3
    };
    let found = out.iter().flatten().count();
    let is_wrong = |k: &usize| !made.contains(k) && out[*k].as_ref().is_none_or(|s| !same_axes(s));
    if let Some(k) = (0..size.z).find(is_wrong) {
        let at = grid.origins[k].0.map(|v| format!("{v:.2}")).join(", ");
        return Err(format!("slice {k} of {size} at ({at}) mm is no slice of the series ({found} of {} are)", size.z));
    }
    Ok((0..size.z).filter(|k| !made.contains(k)).filter_map(|k| out[k]).collect())
}

/// Affine from (y, x) of an image slice to continuous (row, column) of a label frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lookup {
    pub at: (f64, f64),
    pub per_row: (f64, f64),
    pub per_column: (f64, f64),
}

impl Lookup {
    /// The nearest pixel of a frame of `rows × columns`, `None` outside of it.
    pub fn nearest(&self, y: usize, x: usize, rows: usize, columns: usize) -> Option<usize> {
        let r = round(self.at.0 + y as f64 * self.per_row.0 + x as f64 * self.per_column.0)?;
        let c = round(self.at.1 + y as f64 * self.per_row.1 + x as f64 * self.per_column.1)?;
        (r < rows && c < columns).then_some(r * columns + c)
    }

    /// True when pixels map one to one (copied, flipped, transposed): every centre within 1/1000 pixel over `size_yx`.
    pub fn is_exact(&self, size_yx: (usize, usize)) -> bool {
        let (y, x) = (size_yx.0.max(1) as f64 - 1.0, size_yx.1.max(1) as f64 - 1.0);
        let whole = |v: f64| (v - v.round()).abs() < 1e-3;
        let unit = |a: f64, b: f64| ((a.abs() - 1.0).abs() < 0.1 && b.abs() < 0.1) || ((b.abs() - 1.0).abs() < 0.1 && a.abs() < 0.1);
        let corners = [(0.0, 0.0), (y, 0.0), (0.0, x), (y, x)];
        unit(self.per_row.0, self.per_row.1)
            && unit(self.per_column.0, self.per_column.1)
            && corners.iter().all(|(v, u)| {
                whole(self.at.0 + v * self.per_row.0 + u * self.per_column.0)
                    && whole(self.at.1 + v * self.per_row.1 + u * self.per_column.1)
            })
    }
}

/// Nearest non-negative index, halves up; `None` below 0 or when not finite.
fn round(v: f64) -> Option<usize> {
    let r = (v + 0.5).floor();
    (0.0..1e9).contains(&r).then_some(r as usize)
}

/// Whether the voxels of `to` are those of `from` reindexed (same spacing, axes permuted or flipped): every corner lands on a voxel
/// centre within 1/1000 voxel.
pub fn is_reindexed(from: &Geometry, to: &Geometry) -> bool {
    let last = to.size.map(|n| n.saturating_sub(1) as f64);
    let whole = |i: Zyx<f64>| i.to_array().iter().all(|v| (v - v.round()).abs() < 1e-3);
    let steps = [to.axes_mm.z, to.axes_mm.y, to.axes_mm.x].map(|a| from.to_index(from.origin + a));
    let unit = |i: &Zyx<f64>| i.to_array().iter().filter(|v| (v.abs() - 1.0).abs() < 0.1).count() == 1;
    steps.iter().all(unit)
        && (0..8).all(|corner| {
            let pick = |bit: usize, v: f64| if corner >> bit & 1 == 1 { v } else { 0.0 };
            whole(from.to_index(to.to_lps(Zyx::new(pick(0, last.z), pick(1, last.y), pick(2, last.x)))))
        })
}

/// For every voxel of `to`, the voxel of `from` nearest to its centre (`None` outside). C order.
pub fn nearest_voxels<'a>(from: &'a Geometry, to: &'a Geometry) -> impl Iterator<Item = Option<usize>> + 'a {
    let at = from.to_index(to.origin);
    let step = |a: Lps| {
        let i = from.to_index(from.origin + a);
        [i.z, i.y, i.x]
    };
    let (z, y, x) = (step(to.axes_mm.z), step(to.axes_mm.y), step(to.axes_mm.x));
    let at = [at.z, at.y, at.x];
    let size = from.size.to_array();
    (0..to.size.z).flat_map(move |k| {
        (0..to.size.y).flat_map(move |j| {
            (0..to.size.x).map(move |i| {
                let mut index = 0;
                for a in 0..3 {
                    // A hair below the half keeps exact flips and half-voxel shifts from depending on rounding noise.
                    let v = round(at[a] + k as f64 * z[a] + j as f64 * y[a] + i as f64 * x[a] - 1e-6)?;
                    if v >= size[a] {
                        return None;
                    }
                    index = index * size[a] + v;
                }
                Some(index)
            })
        })
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn grid() -> Geometry {
        Geometry::axis_aligned(Zyx::new(4, 5, 6), Zyx::new(3.0, 0.5, 0.75))
    }

    fn slice(z: f64, name: &str) -> Slice {
        let plane = Plane::new([0.0, 0.0, z], [1., 0., 0., 0., 1., 0.], [0.5, 0.75]).unwrap();
        Slice { sop_class: "c".into(), sop_instance: name.into(), frame: None, plane, rows: 5, columns: 6, thickness_mm: Some(3.0) }
    }

    #[test]
    fn real_positions_replace_those_of_the_regular_grid() {
        let slices = [slice(9.01, "d"), slice(0.0, "a"), slice(3.02, "b"), slice(5.99, "c"), slice(50.0, "far")];
        let g = Grid::with_slices(&grid(), &slices);
        assert_eq!(g.along_mm, [0.0, 3.02, 5.99, 9.01]);
        assert_eq!(g.slice_of[&("c".to_string(), 1)], 2);
        assert_eq!(g.slice_of.len(), 4);
        assert_eq!(g.nearest(Lps([0., 0., 4.6])), (2, 4.6 - 5.99));
        assert!((g.gap_mm(1) - 2.97).abs() < 1e-9);
    }

    #[test]
    fn rows_and_columns_take_their_own_spacing() {
        let g = Grid::of(&grid());
        let plane = Plane::new([0., 0., 0.], [1., 0., 0., 0., 1., 0.], [0.5, 0.75]).unwrap();
        let l = g.lookup(0, &plane);
        assert!(l.is_exact((5, 6)));
        assert_eq!(l.nearest(4, 5, 5, 6), Some(29));
        let swapped = Plane::new([0., 0., 0.], [1., 0., 0., 0., 1., 0.], [0.75, 0.5]).unwrap();
        assert!(!g.lookup(0, &swapped).is_exact((5, 6)));
    }

    #[test]
    fn a_flipped_frame_is_read_backwards() {
        let g = Grid::of(&grid());
        let plane = Plane::new([5.0 * 0.75, 0., 0.], [-1., 0., 0., 0., 1., 0.], [0.5, 0.75]).unwrap();
        let l = g.lookup(0, &plane);
        assert!(l.is_exact((5, 6)));
        assert_eq!(l.nearest(0, 0, 5, 6), Some(5));
        assert_eq!(l.nearest(1, 5, 5, 6), Some(6));
    }

    #[test]
    fn nearest_voxels_follow_flip_and_spacing() {
        let to = grid();
        let mut from = to;
        from.origin = to.to_lps(Zyx::new(3.0, 0.0, 0.0));
        from.axes_mm.z = to.axes_mm.z.scale(-1.0);
        assert!(is_reindexed(&from, &to));
        let map: Vec<_> = nearest_voxels(&from, &to).collect();
        assert_eq!((map[0], map[119]), (Some(90), Some(29)));
        let half = Geometry { axes_mm: to.axes_mm.map(|a| a.scale(2.0)), ..to };
        assert!(!is_reindexed(&half, &to));
        assert_eq!(nearest_voxels(&to, &half).filter(Option::is_some).count(), 2 * 3 * 3);
    }
}
