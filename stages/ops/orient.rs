//! Axis directions of a grid: which way an index grows in the patient (nibabel `io_orientation`), and turning arrays so that they grow another way
//! (MONAI `Orientation`, nibabel `as_reoriented`): flips first, then a permutation. No value is interpolated.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::{Geometry, Lps, Zyx};
use voxmill_schemas::region::Region;

use super::matrix;
use super::plan::Part;
use crate::error::Error;

/// Toward where the indices of the array axes x, y, z grow, in this order: NIfTI's `RAS` is right, front, head.
///
/// Letters are read as nibabel's `axcodes` of a file whose first index i is our x: an array turned to `RAS` and opened with nibabel says `('R','A','S')`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axcodes {
    /// For the array axes x, y, z: the axis of RAS space (0 right–left, 1 front–back, 2 head–feet) and whether the index grows toward R, A, S.
    pub axes: [(usize, bool); 3],
}

impl Axcodes {
    /// `None` unless the text is three letters, one of each of the pairs R L, A P, S I.
    pub fn parse(text: &str) -> Option<Self> {
        let letter = |c: char| match c {
            'R' => Some((0, true)),
            'L' => Some((0, false)),
            'A' => Some((1, true)),
            'P' => Some((1, false)),
            'S' => Some((2, true)),
            'I' => Some((2, false)),
            _ => None,
        };
        let axes: [(usize, bool); 3] = text.chars().map(letter).collect::<Option<Vec<_>>>()?.try_into().ok()?;
        (0..3).all(|a| axes.iter().any(|(axis, _)| *axis == a)).then_some(Self { axes })
    }

    /// The directions in which a grid's indices grow: each array axis, the strongest first, takes the closest patient axis that is still free.
    pub fn of(g: &Geometry) -> Result<Self, Error> {
        if g.is_degenerate() {
            return Err(Error::Geometry { what: "orientation".into(), why: format!("the axes {:?} do not span space", g.axes_mm) });
        }
        let a = g.affine_ras_xyz();
        let mut unit: [[f64; 3]; 3] = std::array::from_fn(|r| std::array::from_fn(|c| a[r][c]));
        for c in 0..3 {
            let norm = (0..3).map(|r| unit[r][c] * unit[r][c]).sum::<f64>().sqrt();
            (0..3).for_each(|r| unit[r][c] /= norm);
        }
        Ok(Self { axes: closest_axes(&matrix::polar_factor(&unit)) })
    }
}

impl std::fmt::Display for Axcodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let letters = [["L", "R"], ["P", "A"], ["I", "S"]];
        self.axes.iter().try_for_each(|(axis, positive)| f.write_str(letters[*axis][*positive as usize]))
    }
}

/// For each column of an orthonormal matrix the row it is closest to, and whether it points along it. Columns choose in the order of their largest entry.
fn closest_axes(r: &[[f64; 3]; 3]) -> [(usize, bool); 3] {
    let strength = |c: usize| (0..3).map(|row| r[row][c] * r[row][c]).fold(0.0, f64::max);
    let mut order = [0, 1, 2];
    order.sort_by(|a, b| strength(*b).total_cmp(&strength(*a)));
    let mut free = [true; 3];
    let mut out = [(0, true); 3];
    for c in order {
        let row = (0..3).filter(|row| free[*row]).fold(None, |best: Option<usize>, row| match best {
            Some(b) if r[b][c].abs() >= r[row][c].abs() => Some(b),
            _ => Some(row),
        });
        let row = row.expect("three columns take three rows");
        free[row] = false;
        out[c] = (row, r[row][c] >= 0.0);
    }
    out
}

/// How array axes are turned: output axis `a` is input axis `from[a]`, reversed where `flip[a]`. Axes count z = 0, y = 1, x = 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    pub from: [usize; 3],
    pub flip: [bool; 3],
}

impl Turn {
    pub const NONE: Turn = Turn { from: [0, 1, 2], flip: [false; 3] };

    /// The turn that makes a grid's indices grow toward `to`.
    pub fn toward(g: &Geometry, to: Axcodes) -> Result<Turn, Error> {
        Ok(Self::between(Axcodes::of(g)?.axes, to.axes))
    }

    /// The turn that makes the axes of one grid run as closely as they can along those of another.
    pub fn along(from: &Geometry, to: &Geometry) -> Turn {
        let x = matrix::solve(&to.affine_ras_xyz(), &from.affine_ras_xyz());
        let mut unit: [[f64; 3]; 3] = std::array::from_fn(|r| std::array::from_fn(|c| x[r][c]));
        // Index steps are compared in millimetres, or an axis with thick slices would always seem the shortest.
        let spacing = to.spacing_mm();
        for (row, s) in [spacing.x, spacing.y, spacing.z].into_iter().enumerate() {
            unit[row].iter_mut().for_each(|v| *v *= s);
        }
        for c in 0..3 {
            let norm = (0..3).map(|r| unit[r][c] * unit[r][c]).sum::<f64>().sqrt();
            (0..3).for_each(|r| unit[r][c] /= norm);
        }
        Self::between(closest_axes(&matrix::polar_factor(&unit)), [(0, true), (1, true), (2, true)])
    }

    fn between(have: [(usize, bool); 3], want: [(usize, bool); 3]) -> Turn {
        let mut turn = Turn::NONE;
        for (axis, (wanted, positive)) in want.into_iter().enumerate() {
            let source = have.iter().position(|(a, _)| *a == wanted).expect("each patient axis is taken once");
            // Axcodes count x, y, z; arrays z, y, x.
            turn.from[2 - axis] = 2 - source;
            turn.flip[2 - axis] = have[source].1 != positive;
        }
        turn
    }

    pub fn size(&self, size: Zyx<usize>) -> Zyx<usize> {
        let n = size.to_array();
        Zyx::from_array(self.from.map(|a| n[a]))
    }

    /// The same patient points under the turned indices.
    pub fn geometry(&self, g: &Geometry) -> Geometry {
        let (n, axes) = (g.size.to_array(), g.axes_mm.to_array());
        let mut origin = g.origin;
        let turned: [Lps; 3] = std::array::from_fn(|a| {
            let (axis, last) = (axes[self.from[a]], n[self.from[a]].saturating_sub(1) as f64);
            if self.flip[a] {
                origin = origin + axis.scale(last);
                // 0 − v, not −1·v: no negative zeros in what is written down.
                Lps::default() - axis
            } else {
                axis
            }
        });
        Geometry { size: self.size(g.size), origin, axes_mm: Zyx::from_array(turned) }
    }

    /// Where a box of the turned array lies in the array of `size` that is turned.
    pub fn region_before(&self, turned: Region, size: Zyx<usize>) -> Region {
        let (n, start, extent) = (size.to_array(), turned.start.to_array(), turned.size.to_array());
        let (mut before, mut sizes) = ([0i64; 3], [0usize; 3]);
        for a in 0..3 {
            let source = self.from[a];
            before[source] = if self.flip[a] { n[source] as i64 - start[a] - extent[a] as i64 } else { start[a] };
            sizes[source] = extent[a];
        }
        Region { start: Zyx::from_array(before), size: Zyx::from_array(sizes) }
    }

    /// A box of the turned array: `[z', y', x']` of `turned`.
    ///
    /// - part: a box of the array of `size` that covers [`Turn::region_before`] of `turned`
    pub fn cut<T: Copy + Default>(&self, part: Part<T>, size: Zyx<usize>, turned: Region) -> Vec<T> {
        let mut out = vec![T::default(); turned.size.count()];
        if out.is_empty() {
            return out;
        }
        let n = part.region.size.to_array();
        let strides = [(n[1] * n[2]) as isize, n[2] as isize, 1];
        let before = self.region_before(turned, size);
        let step: [isize; 3] = std::array::from_fn(|a| if self.flip[a] { -strides[self.from[a]] } else { strides[self.from[a]] });
        // The voxel that becomes the first one: the last along axes that are reversed.
        let mut first = before.start.to_array();
        (0..3).filter(|a| self.flip[*a]).for_each(|a| first[self.from[a]] += turned.size.to_array()[a] as i64 - 1);
        let start = part.at(Zyx::from_array(first).map(|v| v as usize)) as isize;
        for (i, row) in out.chunks_exact_mut(turned.size.x).enumerate() {
            let at = start + step[0] * (i / turned.size.y) as isize + step[1] * (i % turned.size.y) as isize;
            match step[2] {
                1 => row.copy_from_slice(&part.voxels[at as usize..][..turned.size.x]),
                step_x => row.iter_mut().enumerate().for_each(|(x, v)| *v = part.voxels[(at + step_x * x as isize) as usize]),
            }
        }
        out
    }

    /// Turns every channel.
    ///
    /// - values: `[c, z, y, x]` of `size`; the result is `[c, z', y', x']` of [`Turn::size`]
    pub fn apply<T: Copy + Default + Send + Sync>(&self, values: &[T], size: Zyx<usize>) -> Vec<T> {
        if *self == Turn::NONE || values.is_empty() {
            return values.to_vec();
        }
        let n = size.to_array();
        let strides = [(n[1] * n[2]) as isize, n[2] as isize, 1];
        let to = self.size(size);
        // Where output (0, 0, 0) lies in the input, and the step in the input for each output axis.
        let start: isize = (0..3).filter(|a| self.flip[*a]).map(|a| strides[self.from[a]] * (n[self.from[a]] as isize - 1)).sum();
        let step: [isize; 3] = std::array::from_fn(|a| if self.flip[a] { -strides[self.from[a]] } else { strides[self.from[a]] });
        let (voxels, plane) = (size.count(), to.y * to.x);
        let mut out = vec![T::default(); values.len()];
        out.par_chunks_mut(plane).enumerate().for_each(|(i, out)| {
            let channel = &values[i / to.z * voxels..][..voxels];
            let base = start + step[0] * (i % to.z) as isize;
            for (y, row) in out.chunks_exact_mut(to.x).enumerate() {
                let at = base + step[1] * y as isize;
                match step[2] {
                    1 => row.copy_from_slice(&channel[at as usize..][..to.x]),
                    step_x => row.iter_mut().enumerate().for_each(|(x, v)| *v = channel[(at + step_x * x as isize) as usize]),
                }
            }
        });
        out
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 48 right-angled directions, a little tilted.
    fn grid(axes: [usize; 3], flips: [bool; 3], tilt: f64) -> Geometry {
        let mut g = Geometry::axis_aligned(Zyx::new(3, 4, 5), Zyx::new(2.5, 0.8, 0.7));
        let spacing = [2.5, 0.8, 0.7];
        let (sin, cos) = tilt.sin_cos();
        let columns: [Lps; 3] = std::array::from_fn(|a| {
            let mut v = [0.0; 3];
            v[axes[a]] = if flips[a] { -spacing[a] } else { spacing[a] };
            Lps([cos * v[0] - sin * v[1], sin * v[0] + cos * v[1], v[2]])
        });
        g.axes_mm = Zyx::from_array(columns);
        g.origin = Lps([5., -7., 11.]);
        g
    }

    fn any_grid() -> impl Strategy<Value = Geometry> {
        let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        (0usize..6, any::<[bool; 3]>(), -0.4..0.4).prop_map(move |(o, f, t)| grid(orders[o], f, t))
    }

    fn any_codes() -> impl Strategy<Value = Axcodes> {
        any_grid().prop_map(|g| Axcodes::of(&g).unwrap())
    }

    proptest! {
        #[test]
        fn a_turned_grid_has_the_wanted_codes_and_the_same_points(g in any_grid(), to in any_codes()) {
            let turn = Turn::toward(&g, to).unwrap();
            let turned = turn.geometry(&g);
            prop_assert_eq!(Axcodes::of(&turned).unwrap(), to);
            // Give every voxel its place as its value: the values must follow the geometry.
            let places: Vec<[i64; 3]> = (0..60usize)
                .map(|i| g.to_lps(Zyx::new((i / 20) as f64, (i / 5 % 4) as f64, (i % 5) as f64)).0.map(|v| (v * 1e6).round() as i64))
                .collect();
            for (i, place) in turn.apply(&places, g.size).iter().enumerate() {
                let n = turned.size;
                let at = turned.to_lps(Zyx::new((i / (n.y * n.x)) as f64, (i / n.x % n.y) as f64, (i % n.x) as f64)).0.map(|v| (v * 1e6).round() as i64);
                prop_assert!((0..3).all(|k| (at[k] - place[k]).abs() <= 1));
            }
        }

        #[test]
        fn there_and_back_is_the_identity(g in any_grid(), to in any_codes()) {
            let turn = Turn::toward(&g, to).unwrap();
            let values: Vec<u16> = (0..120).collect();
            let turned = turn.geometry(&g);
            let back = Turn::toward(&turned, Axcodes::of(&g).unwrap()).unwrap();
            prop_assert_eq!(back.apply(&turn.apply(&values, g.size), turned.size), values);
            prop_assert!(back.geometry(&turned).same_grid(&g, 1e-9));
            prop_assert_eq!(back, Turn::along(&turned, &g));
        }
    }

    #[test]
    fn codes_name_the_directions_of_x_y_and_z() {
        let g = Geometry::axis_aligned(Zyx::splat(2), Zyx::splat(1.0));
        assert_eq!(Axcodes::of(&g).unwrap().to_string(), "LPS");
        assert_eq!(Axcodes::parse("SAR").unwrap().to_string(), "SAR");
        assert!(["RAR", "RA", "RASS", "ras", "XYZ"].iter().all(|t| Axcodes::parse(t).is_none()));
    }
}
