//! The rules by which nnU-Net v2 plans a training from a few numbers of the set (`ExperimentPlanner`, `get_pool_and_conv_props`): target spacing, patch, pooling,
//! kernels, batch. Axes are z, y, x; spacings are in millimetres.

use voxmill_schemas::geometry::Zyx;

/// An axis is pooled while it has twice this many voxels.
const LEAST_EDGE: usize = 4;
/// Axes are pooled, and convolved with 3 voxels, while their spacing is below this many times the finest.
const NEAR: f64 = 2.0;
/// Patches start from a cube of this edge, stretched by the spacing.
const START_EDGE: f64 = 256.0;
/// Values in the feature maps of one patch that fit 8 GB at a batch of [`REFERENCE_BATCH`] (3-D).
const REFERENCE: f64 = 560e6;
const REFERENCE_GB: f64 = 8.0;
const REFERENCE_BATCH: f64 = 2.0;
const MOST_FEATURES: usize = 320;
const CONVOLUTIONS_A_STAGE: f64 = 2.0;
/// One batch covers at most this share of the voxels of the set.
const MOST_OF_SET: f64 = 0.05;

/// Strides and kernels from full resolution to the bottleneck, and the patch that fits them.
#[derive(Clone, Debug, PartialEq)]
pub struct Topology {
    pub patch: Zyx<usize>,
    /// The first is 1.
    pub strides: Vec<Zyx<usize>>,
    pub kernels: Vec<Zyx<usize>>,
}

/// What is planned for one spacing.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub topology: Topology,
    pub features: Vec<usize>,
    pub batch: usize,
    /// Values in all feature maps of one patch.
    pub feature_values: f64,
}

/// What a plan is made for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub spacing_mm: Zyx<f64>,
    /// Median size of the cases at this spacing, voxels.
    pub median_size: Zyx<f64>,
    /// Background included.
    pub classes: usize,
    pub cases: usize,
    pub memory_gb: f64,
}

/// Percentile as numpy has it, 0 to 100.
pub fn percentile(values: &[f64], q: f64) -> f64 {
    let mut v = values.to_vec();
    v.sort_by(f64::total_cmp);
    let Some(last) = v.len().checked_sub(1) else { return f64::NAN };
    let at = q / 100.0 * last as f64;
    let low = at.floor() as usize;
    v[low] + (v[(low + 1).min(last)] - v[low]) * at.fract()
}

/// The median spacing; where one axis is more than three times as coarse as the others and has less than a third of their voxels, the 10th percentile on that
/// axis, but not finer than the others.
pub fn target_spacing(spacings_mm: &[Zyx<f64>], sizes: &[Zyx<f64>]) -> Zyx<f64> {
    let along = |of: &[Zyx<f64>], axis: usize, q: f64| percentile(&of.iter().map(|v| v.to_array()[axis]).collect::<Vec<_>>(), q);
    let mut target = [0, 1, 2].map(|a| along(spacings_mm, a, 50.0));
    let size = [0, 1, 2].map(|a| along(sizes, a, 50.0));
    let worst = coarsest(target);
    let others = [0, 1, 2].into_iter().filter(|a| *a != worst);
    let coarsest_other = others.clone().map(|a| target[a]).fold(0.0, f64::max);
    let fewest_other = others.map(|a| size[a]).fold(f64::INFINITY, f64::min);
    if target[worst] > 3.0 * coarsest_other && size[worst] * 3.0 < fewest_other {
        let finer = along(spacings_mm, worst, 10.0);
        target[worst] = if finer < coarsest_other { coarsest_other + 1e-5 } else { finer };
    }
    Zyx::from_array(target)
}

/// The first axis of the largest value.
fn coarsest(v: [f64; 3]) -> usize {
    (0..3).rev().max_by(|a, b| v[*a].total_cmp(&v[*b])).expect("three axes")
}

/// Pooling and kernels for a patch of about `start` voxels; the patch grows to a multiple of what is pooled.
pub fn topology(spacing_mm: Zyx<f64>, start: Zyx<usize>) -> Topology {
    let (mut spacing, mut size) = (spacing_mm.to_array(), start.to_array());
    let (mut kernel, mut pooled) = ([1usize; 3], [0u32; 3]);
    let (mut strides, mut kernels) = (vec![Zyx::splat(1)], Vec::new());
    loop {
        let large = (0..3).filter(|a| size[*a] >= 2 * LEAST_EDGE);
        let finest = large.clone().map(|a| spacing[a]).fold(f64::INFINITY, f64::min);
        let axes: Vec<usize> = large.filter(|a| spacing[*a] / finest < NEAR).collect();
        match axes[..] {
            [] => break,
            [one] if size[one] < 3 * LEAST_EDGE => break,
            _ => {}
        }
        let finest = spacing.iter().copied().fold(f64::INFINITY, f64::min);
        (0..3).filter(|a| spacing[*a] / finest < NEAR).for_each(|a| kernel[a] = 3);
        let mut stride = [1; 3];
        for a in axes {
            stride[a] = 2;
            pooled[a] += 1;
            spacing[a] *= 2.0;
            size[a] = size[a].div_ceil(2);
        }
        strides.push(Zyx::from_array(stride));
        kernels.push(Zyx::from_array(kernel));
    }
    kernels.push(Zyx::splat(3));
    let divisor = Zyx::from_array(pooled.map(|p| 1usize << p));
    Topology { patch: start.zip(divisor).map(|(n, d): (usize, usize)| n.div_ceil(d) * d), strides, kernels }
}

impl Topology {
    pub fn divisor(&self) -> Zyx<usize> {
        self.strides.iter().fold(Zyx::splat(1), |d, s| d.zip(*s).map(|(d, s)| d * s))
    }

    /// Channels of each stage.
    pub fn features(&self) -> Vec<usize> {
        (0..self.strides.len()).map(|i| MOST_FEATURES.min(32usize << i.min(10))).collect()
    }

    /// Values in the outputs of all convolutions of a plain U-Net on one patch (`compute_conv_feature_map_size`, without deep supervision).
    pub fn feature_values(&self, classes: usize) -> f64 {
        let features = self.features();
        let mut size = self.patch;
        let voxels: Vec<f64> = self
            .strides
            .iter()
            .map(|s| {
                size = size.zip(*s).map(|(n, s)| n / s);
                size.to_array().iter().map(|n| *n as f64).product()
            })
            .collect();
        let encoder: f64 = voxels.iter().zip(&features).map(|(v, f)| CONVOLUTIONS_A_STAGE * *f as f64 * v).sum();
        let skips = voxels.len() - 1;
        // The convolutions and the transposed one.
        let decoder: f64 = voxels[..skips].iter().zip(&features).map(|(v, f)| (CONVOLUTIONS_A_STAGE + 1.0) * *f as f64 * v).sum();
        let head = if skips > 0 { classes as f64 * voxels[0] } else { 0.0 };
        encoder + decoder + head
    }
}

/// Patch, network and batch for a memory.
pub fn plan(w: &Wanted) -> Planned {
    let inverse = w.spacing_mm.map(|s| 1.0 / s);
    let edge = (START_EDGE.powi(3) / (inverse.z * inverse.y * inverse.x)).cbrt();
    let start = inverse.zip(w.median_size).map(|(i, m): (f64, f64)| ((i * edge).round_ties_even().min(m) as usize).max(1));
    let mut t = topology(w.spacing_mm, start);
    let mut values = t.feature_values(w.classes);
    let reference = REFERENCE * w.memory_gb / REFERENCE_GB;
    // nnU-Net puts the coarsest axis first: of equal ratios it takes the last axis in that order.
    let worst = coarsest(w.spacing_mm.to_array());
    let order: Vec<usize> = std::iter::once(worst).chain((0..3).filter(|a| *a != worst)).collect();
    // Each round takes voxels away; the bound keeps odd spacings from going in circles.
    for _ in 0..10_000 {
        if values / REFERENCE_BATCH * 2.0 <= reference {
            break;
        }
        let (patch, median) = (t.patch.to_array(), w.median_size.to_array());
        let ratio = |a: usize| patch[a] as f64 / median[a].max(1.0);
        let axis = order.iter().copied().max_by(|a, b| ratio(*a).total_cmp(&ratio(*b))).expect("three axes");
        let smaller = |by: usize| {
            let mut p = patch;
            p[axis] = p[axis].saturating_sub(by).max(1);
            Zyx::from_array(p)
        };
        // What is taken off is a multiple for the smaller patch.
        let step = topology(w.spacing_mm, smaller(t.divisor().to_array()[axis])).divisor().to_array()[axis];
        let next = topology(w.spacing_mm, smaller(step));
        if next.patch == t.patch {
            break;
        }
        t = next;
        values = t.feature_values(w.classes);
    }
    let patch_voxels: f64 = t.patch.to_array().iter().map(|n| *n as f64).product();
    let of_set = w.median_size.z * w.median_size.y * w.median_size.x * w.cases as f64 * MOST_OF_SET / patch_voxels;
    let batch = (reference / values * REFERENCE_BATCH).round_ties_even().min(of_set.round_ties_even()).max(REFERENCE_BATCH) as usize;
    Planned { features: t.features(), topology: t, batch, feature_values: values }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn planned(spacing: [f64; 3], median: [f64; 3], classes: usize, cases: usize) -> Planned {
        plan(&Wanted { spacing_mm: Zyx::from_array(spacing), median_size: Zyx::from_array(median), classes, cases, memory_gb: 8.0 })
    }

    #[test]
    fn hippocampus_and_large_cubes_get_the_plans_that_nnunet_published() {
        // Medical Segmentation Decathlon, task 4: patch 40×56×40, batch 9, three poolings.
        let p = planned([1.0; 3], [36.0, 50.0, 35.0], 3, 260);
        assert_eq!((p.topology.patch, p.batch), (Zyx::new(40, 56, 40), 9));
        assert_eq!(p.topology.strides, [Zyx::splat(1), Zyx::splat(2), Zyx::splat(2), Zyx::splat(2)]);
        assert_eq!((p.features, p.topology.kernels), (vec![32, 64, 128, 256], vec![Zyx::splat(3); 4]));
        // Task 3, liver: patch 128³, batch 2, five poolings.
        let p = planned([1.0, 0.7676, 0.7676], [482.0, 512.0, 512.0], 3, 131);
        assert_eq!((p.topology.patch, p.batch, p.features), (Zyx::splat(128), 2, vec![32, 64, 128, 256, 320, 320]));
    }

    #[test]
    fn coarse_slices_are_pooled_and_convolved_late() {
        // Task 7, pancreas: 2.5 mm slices, patch 40×224×224.
        let p = planned([2.5, 0.8, 0.8], [96.0, 512.0, 512.0], 3, 281);
        assert_eq!((p.topology.patch, p.batch), (Zyx::new(40, 224, 224), 2));
        assert_eq!(p.topology.strides[1..3], [Zyx::new(1, 2, 2), Zyx::splat(2)]);
        assert_eq!(p.topology.kernels[..2], [Zyx::new(1, 3, 3), Zyx::splat(3)]);
        let divisor = p.topology.divisor();
        assert!(p.topology.patch.zip(divisor).map(|(n, d)| n % d == 0 && n / d >= 4).to_array().iter().all(|ok| *ok));
    }

    #[test]
    fn a_coarse_axis_takes_its_finer_cases_but_not_finer_than_the_others() {
        let spacings: Vec<Zyx<f64>> = (0..11).map(|i| Zyx::new(3.0 + 0.2 * i as f64, 0.7, 0.7)).collect();
        let flat = vec![Zyx::new(20.0, 320.0, 320.0); 11];
        assert!((target_spacing(&spacings, &flat).z - 3.2).abs() < 1e-12, "10th percentile");
        let tall = vec![Zyx::new(200.0, 320.0, 320.0); 11];
        assert!((target_spacing(&spacings, &tall).z - 4.0).abs() < 1e-12, "many slices: the median");
        let mixed: Vec<Zyx<f64>> = (0..11).map(|i| Zyx::new(if i < 3 { 0.5 } else { 5.0 }, 0.7, 0.7)).collect();
        assert!((target_spacing(&mixed, &flat).z - 0.70001).abs() < 1e-12);
    }

    #[test]
    fn more_memory_buys_larger_patches() {
        let at =
            |memory_gb| plan(&Wanted { spacing_mm: Zyx::splat(1.0), median_size: Zyx::splat(300.0), classes: 2, cases: 50, memory_gb });
        let [small, middle, large] = [2.0, 8.0, 40.0].map(|gb| at(gb).topology.patch.count());
        assert!(small < middle && middle < large, "{small} {middle} {large}");
        assert_eq!(at(1e-6).batch, 2, "too little memory ends at the smallest patch, not in a loop");
    }
}
