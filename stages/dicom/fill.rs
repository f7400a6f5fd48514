//! Contours → pixels of a slice. Pixel centres are at integers; a pixel belongs to an ROI when its centre lies inside an odd number of
//! contours, or on a contour ("points in space lying along the path are considered to be part of the ROI", PS3.3 C.8.8.6). Pure.

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

/// A closed polygon in continuous (row, column).
pub type Polygon = Vec<(f64, f64)>;

/// The pixels of `rows × columns` that polygons hold, row by row.
pub fn fill(polygons: &[Polygon], rows: usize, columns: usize, how: Fill) -> Vec<bool> {
    let mut inside = vec![false; rows * columns];
    let mut on_path = vec![false; rows * columns];
    for polygon in polygons {
        interior(polygon, rows, columns, |p| match how {
            Fill::Xor => inside[p] ^= true,
            Fill::Union => inside[p] = true,
        });
        path(polygon, rows, columns, |p| on_path[p] = true);
    }
    inside.iter().zip(on_path).map(|(a, b)| *a || b).collect()
}

/// Calls `hit` once for every pixel whose centre is inside by the even-odd rule. Which pixels on the edge are hit does not matter: they are on the path.
fn interior(polygon: &Polygon, rows: usize, columns: usize, mut hit: impl FnMut(usize)) {
    let mut crossings = Vec::new();
    let (low, high) = polygon.iter().fold((f64::MAX, f64::MIN), |(l, h), (r, _)| (l.min(*r), h.max(*r)));
    for row in clipped(low, high, rows) {
        let y = row as f64;
        crossings.clear();
        for (a, b) in edges(polygon) {
            // Half-open in y, so that a vertex counts once.
            if (a.0 <= y) != (b.0 <= y) {
                crossings.push(a.1 + (y - a.0) / (b.0 - a.0) * (b.1 - a.1));
            }
        }
        crossings.sort_by(f64::total_cmp);
        for pair in crossings.chunks_exact(2) {
            clipped(pair[0], pair[1], columns).for_each(|c| hit(row * columns + c));
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

fn edges(polygon: &Polygon) -> impl Iterator<Item = ((f64, f64), (f64, f64))> + '_ {
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
    fn what_sticks_out_is_clipped() {
        assert_eq!(draw(&[square(-1e12, 1e12)], Fill::Xor), ["#######"; 7]);
        assert_eq!(draw(&[square(-9.0, -3.0)], Fill::Xor), ["......."; 7]);
    }
}
