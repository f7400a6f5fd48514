//! Connected components of a mask, by runs of voxels and union-find.

use voxmill_schemas::geometry::Zyx;

/// Which voxels are neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbours {
    /// The 6 that share a face.
    Faces,
    /// All 26 (MONAI `connectivity=None`).
    All,
}

/// A stretch of mask voxels on one row.
struct Run {
    row: usize,
    first: usize,
    end: usize,
}

/// Components of the voxels that are not 0: number 1… in the order of their first voxel, 0 elsewhere; and the size of each in voxels.
///
/// - mask: `[z, y, x]`
pub fn components(mask: &[u8], size: Zyx<usize>, near: Neighbours) -> (Vec<u32>, Vec<usize>) {
    assert_eq!(mask.len(), size.count(), "a mask fills its grid");
    let mut labels = vec![0u32; mask.len()];
    if mask.is_empty() {
        return (labels, Vec::new());
    }
    let mut runs: Vec<Run> = Vec::new();
    // The first run of each row, and one more entry for the end.
    let mut starts = Vec::with_capacity(size.z * size.y + 1);
    for (row, line) in mask.chunks_exact(size.x).enumerate() {
        starts.push(runs.len());
        let mut x = 0;
        while let Some(first) = line[x..].iter().position(|v| *v != 0).map(|p| p + x) {
            let end = line[first..].iter().position(|v| *v == 0).map_or(size.x, |p| p + first);
            runs.push(Run { row, first, end });
            x = end;
        }
    }
    starts.push(runs.len());

    let mut parent: Vec<u32> = (0..runs.len() as u32).collect();
    // Rows before this one that touch it: (rows up, planes up).
    let touching: &[(i64, i64)] = match near {
        Neighbours::Faces => &[(0, -1), (-1, 0)],
        Neighbours::All => &[(0, -1), (-1, -1), (-1, 0), (-1, 1)],
    };
    let slack = (near == Neighbours::All) as usize;
    for row in 0..size.z * size.y {
        let (z, y) = ((row / size.y) as i64, (row % size.y) as i64);
        for (dz, dy) in touching {
            let (oz, oy) = (z + dz, y + dy);
            if oz < 0 || oy < 0 || oy >= size.y as i64 {
                continue;
            }
            let other = oz as usize * size.y + oy as usize;
            let (mut a, mut b) = (starts[row], starts[other]);
            while a < starts[row + 1] && b < starts[other + 1] {
                if runs[a].first < runs[b].end + slack && runs[b].first < runs[a].end + slack {
                    join(&mut parent, a as u32, b as u32);
                }
                if runs[a].end < runs[b].end { a += 1 } else { b += 1 }
            }
        }
    }
    let mut number = vec![0u32; runs.len()];
    let mut sizes = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        let root = root(&mut parent, i as u32) as usize;
        if number[root] == 0 {
            sizes.push(0);
            number[root] = sizes.len() as u32;
        }
        let n = number[root];
        sizes[n as usize - 1] += run.end - run.first;
        labels[run.row * size.x + run.first..run.row * size.x + run.end].fill(n);
    }
    (labels, sizes)
}

/// The largest component as a mask of 0 and 1; the first one on a tie. All 0 when the mask is empty.
pub fn largest_component(mask: &[u8], size: Zyx<usize>, near: Neighbours) -> Vec<u8> {
    let (labels, sizes) = components(mask, size, near);
    let Some(best) = (0..sizes.len()).reduce(|a, b| if sizes[b] > sizes[a] { b } else { a }) else { return vec![0; mask.len()] };
    labels.iter().map(|l| (*l == best as u32 + 1) as u8).collect()
}

/// Keeps the largest component of a class and makes the others background (MONAI `KeepLargestConnectedComponent`); the first one on a tie.
///
/// - labels: `[z, y, x]` class ids
pub fn keep_largest(labels: &mut [u8], class: u8, size: Zyx<usize>, near: Neighbours) {
    let mask: Vec<u8> = labels.iter().map(|l| (*l == class) as u8).collect();
    let kept = largest_component(&mask, size, near);
    labels.iter_mut().zip(&kept).filter(|(l, kept)| **l == class && **kept == 0).for_each(|(l, _)| *l = 0);
}

/// Gives background that a class encloses to that class: what no way over neighbours leads to from the border of the array without crossing the class
/// (MONAI `FillHoles`, which takes other classes inside as well; here they stay).
///
/// - labels: `[z, y, x]` class ids
pub fn fill_holes(labels: &mut [u8], class: u8, size: Zyx<usize>, near: Neighbours) {
    let rest: Vec<u8> = labels.iter().map(|l| (*l != class) as u8).collect();
    let (found, sizes) = components(&rest, size, near);
    let mut is_open = vec![false; sizes.len() + 1];
    is_open[0] = true;
    for (row, line) in found.chunks_exact(size.x.max(1)).enumerate() {
        let (z, y) = (row / size.y, row % size.y);
        if z == 0 || y == 0 || z + 1 == size.z || y + 1 == size.y {
            line.iter().for_each(|n| is_open[*n as usize] = true);
        } else {
            [line[0], line[line.len() - 1]].into_iter().for_each(|n| is_open[n as usize] = true);
        }
    }
    labels.iter_mut().zip(&found).filter(|(l, n)| **l == 0 && !is_open[**n as usize]).for_each(|(l, _)| *l = class);
}

fn root(parent: &mut [u32], mut i: u32) -> u32 {
    while parent[i as usize] != i {
        parent[i as usize] = parent[parent[i as usize] as usize];
        i = parent[i as usize];
    }
    i
}

/// The smaller root wins, so a component is named after its first run.
fn join(parent: &mut [u32], a: u32, b: u32) {
    let (a, b) = (root(parent, a), root(parent, b));
    parent[a.max(b) as usize] = a.min(b);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Flood fill, the slow way.
    fn flooded(mask: &[u8], size: Zyx<usize>, near: Neighbours) -> Vec<u32> {
        let mut out = vec![0; mask.len()];
        let mut n = 0;
        for seed in 0..mask.len() {
            if mask[seed] == 0 || out[seed] != 0 {
                continue;
            }
            n += 1;
            let mut todo = vec![seed];
            while let Some(i) = todo.pop() {
                if mask[i] == 0 || out[i] != 0 {
                    continue;
                }
                out[i] = n;
                let at = [i / (size.y * size.x), i / size.x % size.y, i % size.x].map(|v| v as i64);
                for k in 0..27i64 {
                    let d = [k / 9 - 1, k / 3 % 3 - 1, k % 3 - 1];
                    if near == Neighbours::Faces && d.iter().map(|v| v.abs()).sum::<i64>() != 1 {
                        continue;
                    }
                    let p = [at[0] + d[0], at[1] + d[1], at[2] + d[2]];
                    if p.iter().zip(size.to_array()).all(|(p, n)| (0..n as i64).contains(p)) {
                        todo.push((p[0] as usize * size.y + p[1] as usize) * size.x + p[2] as usize);
                    }
                }
            }
        }
        out
    }

    proptest! {
        #[test]
        fn components_are_those_of_a_flood_fill(bits in proptest::collection::vec(0u8..3, 4 * 5 * 6), all in any::<bool>()) {
            let size = Zyx::new(4, 5, 6);
            let mask: Vec<u8> = bits.iter().map(|b| (*b == 0) as u8).collect();
            let near = if all { Neighbours::All } else { Neighbours::Faces };
            let (labels, sizes) = components(&mask, size, near);
            prop_assert_eq!(&labels, &flooded(&mask, size, near));
            for (k, n) in sizes.iter().enumerate() {
                prop_assert_eq!(labels.iter().filter(|l| **l == k as u32 + 1).count(), *n);
            }
        }
    }

    #[test]
    fn other_classes_and_open_bays_stay_where_a_class_is_cleaned() {
        // Class 1: a ring with a hole and class 2 in it, a bay that is open by a corner, and a speck. Slices of other voxels lie above and below.
        let size = Zyx::new(3, 5, 9);
        let ring = "111110000 101210000 111111110 000010010 001010101".replace(' ', "");
        let mut labels: Vec<u8> = [&"1".repeat(45), &ring, &"1".repeat(45)].iter().flat_map(|s| s.bytes().map(|b| b - b'0')).collect();
        labels[45 + 4 * 9 + 2] = 1;
        let middle = |l: &[u8]| l[45..90].iter().map(|v| v.to_string()).collect::<String>();
        let mut filled = labels.clone();
        fill_holes(&mut filled, 1, size, Neighbours::All);
        assert_eq!(middle(&filled)[9..14], *"11121", "the hole is filled and class 2 stays");
        assert_eq!(middle(&filled)[27..36], *"000010010", "what reaches the border is no hole");
        let flat = Zyx::new(1, 5, 9);
        let mut alone: Vec<u8> = ring.bytes().map(|b| b - b'0').collect();
        keep_largest(&mut alone, 1, flat, Neighbours::Faces);
        assert_eq!(middle(&[vec![0; 45], alone.clone()].concat())[36..45], *"000010000", "specks go");
        assert_eq!(alone[9 + 3], 2, "another class is nobody's speck");
    }

    #[test]
    fn the_largest_component_is_kept() {
        assert_eq!(largest_component(&[1, 0, 1, 1, 0, 1], Zyx::new(1, 1, 6), Neighbours::Faces), [0, 0, 1, 1, 0, 0]);
        assert_eq!(largest_component(&[0; 6], Zyx::new(1, 1, 6), Neighbours::All), [0; 6]);
    }
}
