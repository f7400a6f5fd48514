//! Overlap and surface distances between two label maps on one grid, with MONAI's definitions (`compute_dice`, `compute_hausdorff_distance`,
//! `compute_average_surface_distance`, `compute_surface_dice`) and our own rule for masks without a voxel: a number where one is meant, else `None`.

use voxmill_schemas::geometry::Zyx;

use super::distance;

/// 2·|A∩B| / (|A| + |B|) of one class. `None` when neither map has the class; 0 when only one has it, so a missed structure is punished.
/// Symmetric in `a` and `b`.
pub fn dice(a: &[u8], b: &[u8], class: u8) -> Option<f64> {
    assert_eq!(a.len(), b.len(), "two maps on one grid");
    let (mut both, mut sum) = (0u64, 0u64);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (*a == class, *b == class);
        both += (a & b) as u64;
        sum += a as u64 + b as u64;
    }
    (sum > 0).then(|| 2.0 * both as f64 / sum as f64)
}

/// Distances in mm from each surface voxel of one mask to the nearest surface voxel of the other, ascending.
///
/// A surface voxel has a neighbour (of six) outside its mask; beyond the edge of the array is outside. Distances run between voxel centres.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SurfaceDistances {
    pub a_to_b_mm: Vec<f64>,
    pub b_to_a_mm: Vec<f64>,
    /// Whether the class has a voxel in a, in b. Where one has none, both lists are empty.
    pub present: (bool, bool),
}

/// Surface distances of one class. Works on the box around both masks: costs about ten bytes a voxel of that box.
///
/// - a, b: `[z, y, x]` class ids
pub fn surface_distances(a: &[u8], b: &[u8], class: u8, size: Zyx<usize>, spacing_mm: Zyx<f64>) -> SurfaceDistances {
    assert!(a.len() == size.count() && b.len() == size.count(), "two maps on one grid");
    let (box_a, box_b) = (bounds(a, class, size), bounds(b, class, size));
    let present = (box_a.is_some(), box_b.is_some());
    let (Some(box_a), Some(box_b)) = (box_a, box_b) else {
        return SurfaceDistances { present, ..Default::default() };
    };
    let first = box_a.0.zip(box_b.0).map(|(p, q)| p.min(q));
    let end = box_a.1.zip(box_b.1).map(|(p, q)| p.max(q));
    let inner = end.zip(first).map(|(e, f)| e - f);
    let (surface_a, surface_b) = (surface(a, class, size, first, inner), surface(b, class, size, first, inner));
    let directed = |from: &[u8], to: &[u8]| {
        let d = distance::squared_mm2(to, inner, spacing_mm);
        let mut out: Vec<f64> = from.iter().zip(&d).filter(|(m, _)| **m != 0).map(|(_, d)| (*d as f64).sqrt()).collect();
        out.sort_unstable_by(f64::total_cmp);
        out
    };
    SurfaceDistances { a_to_b_mm: directed(&surface_a, &surface_b), b_to_a_mm: directed(&surface_b, &surface_a), present }
}

impl SurfaceDistances {
    fn both(&self) -> bool {
        self.present == (true, true)
    }

    /// Hausdorff distance: the largest of all distances, mm. `None` unless both masks have a voxel (MONAI: ∞ or NaN).
    pub fn hd_mm(&self) -> Option<f64> {
        self.percentile_mm(100.0)
    }

    /// The larger of the two directed 95th percentiles, mm; not the percentile of all distances. `None` unless both masks have a voxel.
    pub fn hd95_mm(&self) -> Option<f64> {
        self.percentile_mm(95.0)
    }

    /// The larger of the two directed percentiles, interpolated linearly between order statistics as numpy does.
    pub fn percentile_mm(&self, percent: f64) -> Option<f64> {
        self.both().then(|| sorted_percentile(&self.a_to_b_mm, percent).max(sorted_percentile(&self.b_to_a_mm, percent)))
    }

    /// Average symmetric surface distance, mm: the mean over the distances of both directions (not of the two means). `None` unless both masks have a voxel.
    pub fn assd_mm(&self) -> Option<f64> {
        let n = self.a_to_b_mm.len() + self.b_to_a_mm.len();
        self.both().then(|| (self.a_to_b_mm.iter().sum::<f64>() + self.b_to_a_mm.iter().sum::<f64>()) / n as f64)
    }

    /// Normalised surface Dice: the share of surface voxels no farther than `tolerance_mm` from the other surface. 0 when one mask has no voxel, `None`
    /// when both have none.
    pub fn nsd(&self, tolerance_mm: f64) -> Option<f64> {
        if !self.both() {
            return (self.present != (false, false)).then_some(0.0);
        }
        let within = |d: &[f64]| d.partition_point(|d| *d <= tolerance_mm);
        let n = self.a_to_b_mm.len() + self.b_to_a_mm.len();
        Some((within(&self.a_to_b_mm) + within(&self.b_to_a_mm)) as f64 / n as f64)
    }
}

/// [`SurfaceDistances::hd95_mm`] of one class.
pub fn hd95_mm(a: &[u8], b: &[u8], class: u8, size: Zyx<usize>, spacing_mm: Zyx<f64>) -> Option<f64> {
    surface_distances(a, b, class, size, spacing_mm).hd95_mm()
}

/// Linear interpolation at `percent`/100·(n − 1) of an ascending list that holds at least one value.
fn sorted_percentile(sorted: &[f64], percent: f64) -> f64 {
    let at = percent / 100.0 * (sorted.len() - 1) as f64;
    let (low, t) = (at.floor() as usize, at.fract());
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] + (sorted[high] - sorted[low]) * t
}

/// First voxel and end (exclusive) of the box around a class.
fn bounds(labels: &[u8], class: u8, size: Zyx<usize>) -> Option<(Zyx<usize>, Zyx<usize>)> {
    let mut found: Option<(Zyx<usize>, Zyx<usize>)> = None;
    for (row, line) in labels.chunks_exact(size.x.max(1)).enumerate() {
        let Some(x0) = line.iter().position(|v| *v == class) else { continue };
        let x1 = line.iter().rposition(|v| *v == class).expect("the row has the class") + 1;
        let (z, y) = (row / size.y, row % size.y);
        let (first, end) = found.get_or_insert((Zyx::new(z, y, x0), Zyx::splat(0)));
        *first = Zyx::new(first.z.min(z), first.y.min(y), first.x.min(x0));
        *end = Zyx::new(end.z.max(z + 1), end.y.max(y + 1), end.x.max(x1));
    }
    found
}

/// 1 where a voxel of the class has a neighbour of six outside it. Only the box at `first` is looked at; the class lies inside it.
fn surface(labels: &[u8], class: u8, size: Zyx<usize>, first: Zyx<usize>, inner: Zyx<usize>) -> Vec<u8> {
    // A margin of one voxel of background makes the edge of the array outside without a test for each neighbour.
    let wide = inner.map(|n| n + 2);
    let (row, plane) = (wide.x, wide.y * wide.x);
    let mut mask = vec![0u8; wide.count()];
    for z in 0..inner.z {
        for y in 0..inner.y {
            let from = ((first.z + z) * size.y + first.y + y) * size.x + first.x;
            let to = (z + 1) * plane + (y + 1) * row + 1;
            mask[to..to + inner.x].iter_mut().zip(&labels[from..from + inner.x]).for_each(|(m, l)| *m = (*l == class) as u8);
        }
    }
    let mut out = Vec::with_capacity(inner.count());
    for z in 1..=inner.z {
        for y in 1..=inner.y {
            let at = z * plane + y * row;
            out.extend(
                (at + 1..at + 1 + inner.x).map(|i| {
                    mask[i] & (1 - (mask[i - 1] & mask[i + 1] & mask[i - row] & mask[i + row] & mask[i - plane] & mask[i + plane]))
                }),
            );
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SIZE: Zyx<usize> = Zyx::new(1, 3, 8);

    fn map(rows: [&str; 3]) -> Vec<u8> {
        rows.iter().flat_map(|r| r.bytes().map(|b| b - b'0')).collect()
    }

    #[test]
    fn dice_counts_a_missed_structure_and_leaves_out_one_that_is_nowhere() {
        assert_eq!(dice(&[1, 1, 0, 2], &[1, 0, 0, 2], 1), Some(2.0 / 3.0));
        assert_eq!(dice(&[1, 1], &[0, 0], 1), Some(0.0));
        assert_eq!(dice(&[0, 0], &[1, 0], 1), Some(0.0));
        assert_eq!(dice(&[0, 0], &[0, 0], 1), None);
    }

    #[test]
    fn distances_carry_the_spacing_and_their_direction() {
        let a = map(["10000000", "00000000", "00000000"]);
        let b = map(["00100000", "00000000", "00000001"]);
        let d = surface_distances(&a, &b, 1, SIZE, Zyx::new(5.0, 3.0, 0.5));
        assert_eq!(d.a_to_b_mm, [1.0]);
        assert_eq!(d.b_to_a_mm, [1.0, (3.5f64 * 3.5 + 36.0).sqrt()]);
        assert_eq!(d.hd_mm(), Some(d.b_to_a_mm[1]));
        let expected = 1.0 + 0.95 * (d.b_to_a_mm[1] - 1.0);
        assert!((d.hd95_mm().unwrap() - expected).abs() < 1e-12, "the larger directed percentile, not the pooled one");
        assert_eq!(d.nsd(1.0), Some(2.0 / 3.0));
        assert!((d.assd_mm().unwrap() - (2.0 + d.b_to_a_mm[1]) / 3.0).abs() < 1e-12);
    }

    #[test]
    fn voxels_inside_are_no_surface_and_the_edge_of_the_array_is() {
        let full = [1u8; 27];
        let d = surface_distances(&full, &full, 1, Zyx::splat(3), Zyx::splat(1.0));
        assert_eq!(d.a_to_b_mm, [0.0; 26]);
    }

    #[test]
    fn empty_masks_have_no_distance() {
        let (none, one) = (map(["00000000"; 3]), map(["10000000"; 3]));
        let d = surface_distances(&none, &one, 1, SIZE, Zyx::splat(1.0));
        assert_eq!((d.hd_mm(), d.hd95_mm(), d.assd_mm(), d.nsd(1.0)), (None, None, None, Some(0.0)));
        let d = surface_distances(&none, &none, 1, SIZE, Zyx::splat(1.0));
        assert_eq!((d.hd_mm(), d.hd95_mm(), d.assd_mm(), d.nsd(1.0)), (None, None, None, None));
    }
}
