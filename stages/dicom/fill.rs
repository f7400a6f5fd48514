//! Contours → pixels of a slice. Pixel centres are at integers; a pixel belongs to an ROI when its centre lies inside an odd number of
//! contours, or on a contour ("points in space lying along the path are considered to be part of the ROI", PS3.3 C.8.8.6). Pure.

use std::collections::BTreeMap;

/// How nested contours of one ROI on one slice count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Fill {
    /// An inner contour cuts a hole (the practice of planning systems, and CLOSEDPLANAR_XOR).
    #[default]
    Xor,
    /// Contours add up (the letter of the standard for CLOSED_PLANAR).
    Union,
}

/// Distance in pixels up to which a pixel centre lies on a contour.
const ON_PATH: f64 = 1e-3;

/// From one (row, column) to the next.
type Edge = ((f64, f64), (f64, f64));

/// A closed polygon in continuous (row, column).
pub type Polygon = Vec<(f64, f64)>;

/// More contours on a slice are filled, but not compared with one another.
const MAX_COMPARED: usize = 256;

/// The pixels of `rows × columns` that polygons hold, row by row.
pub fn fill(polygons: &[Polygon], rows: usize, columns: usize, how: Fill) -> Vec<bool> {
    let mut held = paths(polygons, rows, columns);
    let counts = counts(polygons, rows, columns);
    held.iter_mut().zip(counts).for_each(|(h, n)| {
        *h |= match how {
            Fill::Xor => n % 2 == 1,
            Fill::Union => n > 0,
        }
    });
    held
}

/// How contours of one ROI on one slice lie to one another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nesting {
    /// One lies inside another.
    pub is_nested: bool,
    /// Two share pixels and neither lies inside the other, or they are the same.
    pub is_crossing: bool,
}

pub fn nesting(polygons: &[Polygon], rows: usize, columns: usize) -> Nesting {
    let mut out = Nesting::default();
    if polygons.len() < 2 {
        return out;
    }
    let on_path = paths(polygons, rows, columns);
    let is_shared = counts(polygons, rows, columns).iter().zip(&on_path).any(|(n, path)| *n > 1 && !path);
    if !is_shared || polygons.len() > MAX_COMPARED {
        return Nesting { is_nested: is_shared, ..out };
    }
    // Largest first, so that what holds a pixel last is the innermost; then a pair either shares all of the smaller one or crosses.
    let inside = |p: &Polygon| {
        let mut n = 0;
        interior(p, rows, columns, |row, from, to| n += (from..to).filter(|c| !on_path[row * columns + c]).count());
        n
    };
    let mut order: Vec<(usize, &Polygon)> = polygons.iter().map(|p| (inside(p), p)).collect();
    order.sort_by_key(|(n, _)| std::cmp::Reverse(*n));
    let mut innermost = vec![usize::MAX; rows * columns];
    for (i, (n, polygon)) in order.iter().enumerate() {
        let mut shared: BTreeMap<usize, usize> = BTreeMap::new();
        interior(polygon, rows, columns, |row, from, to| {
            for p in (row * columns + from..row * columns + to).filter(|p| !on_path[*p]) {
                if innermost[p] != usize::MAX {
                    *shared.entry(innermost[p]).or_default() += 1;
                }
                innermost[p] = i;
            }
        });
        for (around, together) in shared {
            let is_within = together == *n && order[around].1 != *polygon;
            out.is_nested |= is_within;
            out.is_crossing |= !is_within;
        }
    }
    out
}

/// How many polygons hold each pixel by the even-odd rule. Which pixels on the edge are counted does not matter: they are on the path.
fn counts(polygons: &[Polygon], rows: usize, columns: usize) -> Vec<i32> {
    // Differences along each row first: a polygon costs its rows, not its area.
    let width = columns + 1;
    let mut steps = vec![0i32; rows * width];
    for polygon in polygons {
        interior(polygon, rows, columns, |row, from, to| {
            steps[row * width + from] += 1;
            steps[row * width + to] -= 1;
        });
    }
    let mut out = Vec::with_capacity(rows * columns);
    for row in steps.chunks_exact(width) {
        let mut n = 0;
        out.extend(row[..columns].iter().map(|step| {
            n += step;
            n
        }));
    }
    out
}

/// The pixels whose centres lie on a contour.
fn paths(polygons: &[Polygon], rows: usize, columns: usize) -> Vec<bool> {
    let mut out = vec![false; rows * columns];
    polygons.iter().for_each(|polygon| path(polygon, rows, columns, |p| out[p] = true));
    out
}

/// Calls `hit(row, from, to)` for the runs of columns `from..to` whose centres are inside by the even-odd rule.
fn interior(polygon: &Polygon, rows: usize, columns: usize, mut hit: impl FnMut(usize, usize, usize)) {
    let mut crossings = Vec::new();
    let (low, high) = polygon.iter().fold((f64::MAX, f64::MIN), |(l, h), (r, _)| (l.min(*r), h.max(*r)));
    let span = clipped(low, high, rows);
    // Rows → edges that may cross them, so that a long contour is not walked along for every row.
    let mut starts: Vec<Vec<Edge>> = vec![Vec::new(); span.len()];
    for (a, b) in edges(polygon) {
        let of_edge = clipped(a.0.min(b.0), a.0.max(b.0), rows);
        if !of_edge.is_empty() && a.0 != b.0 {
            starts[of_edge.start - span.start].push((a, b));
        }
    }
    let mut open: Vec<((f64, f64), (f64, f64))> = Vec::new();
    for row in span.clone() {
        let y = row as f64;
        open.append(&mut starts[row - span.start]);
        open.retain(|(a, b)| a.0.max(b.0) >= y);
        crossings.clear();
        // Half-open in y, so that a vertex counts once.
        crossings.extend(open.iter().filter(|(a, b)| (a.0 <= y) != (b.0 <= y)).map(|(a, b)| a.1 + (y - a.0) / (b.0 - a.0) * (b.1 - a.1)));
        crossings.sort_by(f64::total_cmp);
        for pair in crossings.chunks_exact(2) {
            let run = clipped(pair[0], pair[1], columns);
            if !run.is_empty() {
                hit(row, run.start, run.end);
            }
        }
    }
}

/// Calls `hit` for every pixel whose centre lies on the closed path, and for the pixels nearest to the vertices of what is no polygon (one or two points).
fn path(polygon: &Polygon, rows: usize, columns: usize, mut hit: impl FnMut(usize)) {
    if polygon.len() < 3 {
        for (r, c) in polygon {
            let (r, c) = ((r + 0.5).floor(), (c + 0.5).floor());
            if r >= 0.0 && c >= 0.0 && (r as usize) < rows && (c as usize) < columns {
                hit(r as usize * columns + c as usize);
            }
        }
    }
    for (a, b) in edges(polygon) {
        let (dr, dc) = (b.0 - a.0, b.1 - a.1);
        let length = dr.hypot(dc);
        let mut near = |r: f64, c: f64| {
            if r < 0.0 || c < 0.0 || r >= rows as f64 || c >= columns as f64 {
                return;
            }
            let along = if length > 0.0 { (((r - a.0) * dr + (c - a.1) * dc) / (length * length)).clamp(0.0, 1.0) } else { 0.0 };
            if (r - a.0 - along * dr).hypot(c - a.1 - along * dc) < ON_PATH {
                hit(r as usize * columns + c as usize);
            }
        };
        // One candidate for each integer on the longer axis.
        if dr.abs() >= dc.abs() {
            for row in clipped(a.0.min(b.0) - ON_PATH, a.0.max(b.0) + ON_PATH, rows) {
                let t = if dr == 0.0 { 0.0 } else { (row as f64 - a.0) / dr };
                near(row as f64, (a.1 + t * dc).round());
            }
        } else {
            for column in clipped(a.1.min(b.1) - ON_PATH, a.1.max(b.1) + ON_PATH, columns) {
                let t = (column as f64 - a.1) / dc;
                near((a.0 + t * dr).round(), column as f64);
            }
        }
    }
}

fn edges(polygon: &Polygon) -> impl Iterator<Item = Edge> + '_ {
    (0..polygon.len()).map(|i| (polygon[i], polygon[(i + 1) % polygon.len()]))
}

/// The integers of `[low, high]` that are indices of an axis of `n`.
fn clipped(low: f64, high: f64, n: usize) -> std::ops::Range<usize> {
    let first = low.max(0.0).ceil();
    let last = high.min(n as f64 - 1.0).floor();
    if first > last { 0..0 } else { first as usize..last as usize + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(polygons: &[Polygon], how: Fill) -> Vec<String> {
        let (rows, columns) = (7, 7);
        let mask = fill(polygons, rows, columns, how);
        (0..rows).map(|r| (0..columns).map(|c| if mask[r * columns + c] { '#' } else { '.' }).collect()).collect()
    }

    fn square(low: f64, high: f64) -> Polygon {
        vec![(low, low), (low, high), (high, high), (high, low)]
    }

    #[test]
    fn the_path_belongs_to_the_roi() {
        assert_eq!(draw(&[square(1.0, 3.0)], Fill::Xor), [".......", ".###...", ".###...", ".###...", ".......", ".......", "......."]);
        assert_eq!(draw(&[square(1.01, 2.99)], Fill::Xor), [".......", ".......", "..#....", ".......", ".......", ".......", "......."]);
    }

    #[test]
    fn an_inner_contour_is_a_hole_and_its_own_path_is_not() {
        let rings = [square(0.0, 6.0), square(2.0, 4.0)];
        assert_eq!(draw(&rings, Fill::Xor), ["#######", "#######", "#######", "###.###", "#######", "#######", "#######"]);
        assert_eq!(draw(&rings, Fill::Union)[3], "#######");
        let reversed = [square(0.0, 6.0), square(2.0, 4.0).into_iter().rev().collect()];
        assert_eq!(draw(&reversed, Fill::Xor), draw(&rings, Fill::Xor));
    }

    #[test]
    fn a_keyhole_keeps_its_channel() {
        // Outer square, down a channel at column 3, round the hole, back up the same way.
        let keyhole =
            vec![(0., 3.), (0., 6.), (6., 6.), (6., 0.), (0., 0.), (0., 3.), (2., 3.), (2., 2.), (4., 2.), (4., 4.), (2., 4.), (2., 3.)];
        assert_eq!(draw(&[keyhole], Fill::Xor), ["#######", "#######", "#######", "###.###", "#######", "#######", "#######"]);
    }

    #[test]
    fn one_and_two_points_are_drawn() {
        assert_eq!(draw(&[vec![(2.2, 3.4)]], Fill::Xor)[2], "...#...");
        assert_eq!(draw(&[vec![(1.0, 1.0), (1.0, 4.0)]], Fill::Xor)[1], ".####..");
    }

    #[test]
    fn contours_inside_one_another_and_across_are_told_apart() {
        let of = |polygons: &[Polygon]| {
            let n = nesting(polygons, 9, 9);
            (n.is_nested, n.is_crossing)
        };
        assert_eq!(of(&[square(0.0, 8.0), square(2.0, 6.0)]), (true, false));
        assert_eq!(of(&[square(3.0, 5.0), square(0.0, 8.0), square(2.0, 6.0)]), (true, false));
        assert_eq!(of(&[square(0.0, 5.0), square(2.0, 8.0)]), (false, true));
        assert_eq!(of(&[square(1.0, 5.0), square(1.0, 5.0)]), (false, true));
        assert_eq!(of(&[square(0.0, 3.0), square(4.0, 8.0)]), (false, false));
    }

    #[test]
    fn what_sticks_out_is_clipped() {
        assert_eq!(draw(&[square(-1e12, 1e12)], Fill::Xor), ["#######"; 7]);
        assert_eq!(draw(&[square(-9.0, -3.0)], Fill::Xor), ["......."; 7]);
    }
}
