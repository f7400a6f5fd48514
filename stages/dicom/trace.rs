//! Labels → contours: the borders of a mask, walked along the cracks between pixels and drawn through the centres of the pixels inside. Read back by
//! `fill` (inside by the even-odd rule, or on the path) they give exactly the mask they were made of. Pure.

use super::fill::Polygon;

/// How a hole of a region is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Holes {
    /// One contour a region: a channel without width leads to each hole and back (CLOSED_PLANAR). Means the same to readers that add contours up and to
    /// those that cut the inner out of the outer.
    #[default]
    Keyhole,
    /// A contour of its own, which cuts out (CLOSEDPLANAR_XOR, DICOM 2024c).
    Xor,
}

/// Steps east, south, west, north as (row, column). Walking one way, the pixels of the mask are on the right hand.
const WAYS: [(isize, isize); 4] = [(0, 1), (1, 0), (0, -1), (-1, 0)];

/// A pixel as (row, column).
type Pixel = (usize, usize);

/// The contours of a mask `[row, column]`; regions hang together over corners as well as over edges. Closed, without the first point once more, at
/// least three points each, in an order that follows from the mask alone.
pub fn contours(mask: &[bool], rows: usize, columns: usize, holes: Holes) -> Vec<Polygon> {
    let (outer, mut inner) = borders(mask, rows, columns);
    let loops = match holes {
        Holes::Xor => outer.into_iter().chain(inner).collect(),
        Holes::Keyhole if inner.is_empty() => outer,
        Holes::Keyhole => {
            // From top to bottom: the way up from a hole ends at the outside of its region or at a hole that begins higher.
            inner.sort_by_key(|l| top(l));
            joined(outer, inner, columns, rows * columns)
        }
    };
    loops.into_iter().map(|l| polygon(&straightened(&l))).collect()
}

/// The border of every region and of every hole, in the order in which rows meet them.
fn borders(mask: &[bool], rows: usize, columns: usize) -> (Vec<Vec<Pixel>>, Vec<Vec<Pixel>>) {
    let is_in = |r: usize, c: usize| r < rows && c < columns && mask[r * columns + c];
    // Pixels whose upper edge has been walked along. Every border has one.
    let mut walked = vec![false; mask.len()];
    let (mut outer, mut inner) = (Vec::new(), Vec::new());
    for r in 0..rows {
        for c in 0..columns {
            if !is_in(r, c) || (r > 0 && is_in(r - 1, c)) || walked[r * columns + c] {
                continue;
            }
            let mut path = vec![(r, c)];
            let (mut at, mut way, mut turns) = ((r, c), 0usize, 0i32);
            loop {
                if way == 0 {
                    walked[at.0 * columns + at.1] = true;
                }
                let (ahead, left) = (WAYS[way], WAYS[(way + 3) % 4]);
                // Past the edge of the image the index wraps to one that no pixel has.
                let to = |dr: isize, dc: isize| (at.0.wrapping_add_signed(dr), at.1.wrapping_add_signed(dc));
                let (straight, corner) = (to(ahead.0, ahead.1), to(ahead.0 + left.0, ahead.1 + left.1));
                if is_in(corner.0, corner.1) {
                    (at, way, turns) = (corner, (way + 3) % 4, turns - 1);
                    path.push(at);
                } else if is_in(straight.0, straight.1) {
                    at = straight;
                    path.push(at);
                } else {
                    (way, turns) = ((way + 1) % 4, turns + 1);
                }
                if (at, way) == ((r, c), 0) {
                    break;
                }
            }
            if path.len() > 1 && path.last() == path.first() {
                path.pop();
            }
            if turns > 0 { outer.push(path) } else { inner.push(path) }
        }
    }
    (outer, inner)
}

fn top(border: &[Pixel]) -> usize {
    border.iter().map(|p| p.0).min().unwrap_or(0)
}

/// Every hole spliced into the border of its region by a channel straight up. All pixels that the channel passes are of the region.
fn joined(outer: Vec<Vec<Pixel>>, inner: Vec<Vec<Pixel>>, columns: usize, n: usize) -> Vec<Vec<Pixel>> {
    // Closed chains: pixel and next node; and for each pixel one of its nodes.
    let mut nodes: Vec<(Pixel, usize)> = Vec::new();
    let mut node_of: Vec<usize> = vec![usize::MAX; n];
    let mut starts = Vec::with_capacity(outer.len());
    for border in outer {
        starts.push(nodes.len());
        chain(&border, nodes.len(), &mut nodes, &mut node_of, columns);
    }
    for border in inner {
        let highest = top(&border);
        let first = border.iter().position(|p| p.0 == highest).expect("a border has a highest pixel");
        let (_, column) = border[first];
        let row = (0..=highest).rev().find(|r| node_of[r * columns + column] != usize::MAX);
        let gate = node_of[row.expect("going up from a hole one meets a border of its region") * columns + column];
        let (pixel, after) = nodes[gate];
        // gate → hole, once around → back to the gate → what came after it.
        let around: Vec<Pixel> = border[first..].iter().chain(&border[..=first]).copied().chain([pixel]).collect();
        nodes[gate].1 = nodes.len();
        chain(&around, after, &mut nodes, &mut node_of, columns);
    }
    let walk = |start: usize| {
        let mut path = vec![nodes[start].0];
        let mut at = nodes[start].1;
        while at != start {
            path.push(nodes[at].0);
            at = nodes[at].1;
        }
        path
    };
    starts.into_iter().map(walk).collect()
}

/// Appends a path whose last node leads to `end`.
fn chain(path: &[Pixel], end: usize, nodes: &mut Vec<(Pixel, usize)>, node_of: &mut [usize], columns: usize) {
    for (i, p) in path.iter().enumerate() {
        node_of[p.0 * columns + p.1] = nodes.len();
        nodes.push((*p, if i + 1 == path.len() { end } else { nodes.len() + 1 }));
    }
}

/// Without points that stand twice in a row and without those in the middle of a straight line.
fn straightened(path: &[Pixel]) -> Vec<Pixel> {
    let mut path = path.to_vec();
    path.dedup();
    if path.len() > 1 && path.first() == path.last() {
        path.pop();
    }
    let n = path.len();
    if n < 3 {
        return path;
    }
    // Steps run along rows, columns or diagonals: their signs are their direction.
    let step = |a: Pixel, b: Pixel| (b.0.cmp(&a.0), b.1.cmp(&a.1));
    (0..n).filter(|i| step(path[(i + n - 1) % n], path[*i]) != step(path[*i], path[(i + 1) % n])).map(|i| path[i]).collect()
}

/// Two points get a third between them; a single pixel becomes a small diamond around its centre, because a contour of one point draws nothing elsewhere.
fn polygon(path: &[Pixel]) -> Polygon {
    let real = |p: &Pixel| (p.0 as f64, p.1 as f64);
    match path {
        [a] => {
            let (r, c) = real(a);
            vec![(r - 0.25, c), (r, c + 0.25), (r + 0.25, c), (r, c - 0.25)]
        }
        [a, b] => {
            let (a, b) = (real(a), real(b));
            vec![a, ((a.0 + b.0) / 2.0, (a.1 + b.1) / 2.0), b]
        }
        path => path.iter().map(real).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fill::{Fill, fill};
    use super::*;

    fn mask(rows: &[&str]) -> (Vec<bool>, usize, usize) {
        (rows.iter().flat_map(|r| r.chars().map(|c| c == '#')).collect(), rows.len(), rows[0].len())
    }

    /// The rule in its plainest form, pixel by pixel: no code shared with `fill`.
    fn plainly(polygons: &[Polygon], rows: usize, columns: usize) -> Vec<bool> {
        let is_in = |r: f64, c: f64| {
            let (mut inside, mut on_path) = (false, false);
            for p in polygons {
                for (i, a) in p.iter().enumerate() {
                    let b = p[(i + 1) % p.len()];
                    let (dr, dc, er, ec) = (b.0 - a.0, b.1 - a.1, r - a.0, c - a.1);
                    let t = ((er * dr + ec * dc) / (dr * dr + dc * dc)).clamp(0.0, 1.0);
                    on_path |= (er - t * dr).hypot(ec - t * dc) < 1e-3;
                    if (a.0 > r) != (b.0 > r) && c < a.1 + (r - a.0) / dr * dc {
                        inside = !inside;
                    }
                }
            }
            inside || on_path
        };
        (0..rows * columns).map(|i| is_in((i / columns) as f64, (i % columns) as f64)).collect()
    }

    fn comes_back(mask: &[bool], rows: usize, columns: usize) {
        for holes in [Holes::Keyhole, Holes::Xor] {
            let traced = contours(mask, rows, columns, holes);
            let told = || {
                let lines: Vec<String> = mask.chunks(columns).map(|r| r.iter().map(|v| if *v { '#' } else { '.' }).collect()).collect();
                format!("{holes:?}\n{}\n{traced:?}", lines.join("\n"))
            };
            assert!(plainly(&traced, rows, columns) == mask, "plainly {}", told());
            assert!(fill(&traced, rows, columns, Fill::Xor) == mask, "xor {}", told());
            if holes == Holes::Keyhole {
                assert!(fill(&traced, rows, columns, Fill::Union) == mask, "union {}", told());
            }
            assert!(traced.iter().all(|p| p.len() >= 3), "{}", told());
        }
    }

    #[test]
    fn every_mask_of_four_by_four_pixels_comes_back() {
        for bits in 0..1u32 << 16 {
            let mask: Vec<bool> = (0..16).map(|i| bits >> i & 1 == 1).collect();
            comes_back(&mask, 4, 4);
        }
    }

    #[test]
    fn noise_rings_and_islands_come_back() {
        let mut state = 7u64;
        let mut dice = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 40
        };
        for round in 0..300 {
            let (rows, columns, share) = (3 + dice() as usize % 14, 3 + dice() as usize % 17, 1 + round % 10);
            let mask: Vec<bool> = (0..rows * columns).map(|_| dice() % 11 < share).collect();
            comes_back(&mask, rows, columns);
        }
        let rings: Vec<bool> = (0..21 * 21).map(|i: usize| (i / 21).abs_diff(10).max((i % 21).abs_diff(10)) % 3 != 1).collect();
        comes_back(&rings, 21, 21);
        comes_back(&[true; 30], 5, 6);
        comes_back(&[true], 1, 1);
    }

    #[test]
    fn a_region_is_one_contour_and_straight_lines_have_two_ends() {
        let (m, rows, columns) = mask(&["#####.", "#...#.", "#.#.#.", "#...#.", "#####."]);
        assert_eq!(contours(&m, rows, columns, Holes::Xor).iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 8]);
        assert_eq!(contours(&m, rows, columns, Holes::Keyhole).len(), 2, "the ring and the island in it");
        let (m, rows, columns) = mask(&["......", ".####.", "......"]);
        assert_eq!(contours(&m, rows, columns, Holes::Keyhole), [vec![(1.0, 1.0), (1.0, 2.5), (1.0, 4.0)]]);
        assert!(contours(&[false; 4], 2, 2, Holes::Keyhole).is_empty());
    }
}
