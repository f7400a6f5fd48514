//! Which boxes a training sees: pure functions of (seed, epoch, step) and of what is known of the cases. Nothing is read here, so all future epochs
//! can be told before the first one runs.

use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;

use super::draw::{Dice, Random};
use super::sampler::Rank;
use crate::ops::augment::{Augment, Step};
use crate::ops::warp::Bend;

/// One patch: the dice, already thrown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PatchAt {
    /// Index into the plan's cases.
    pub case: u32,
    /// What is read. It sticks out where the patch is larger than the volume, and is larger than the patch where a rotation needs a margin.
    pub region: Region,
    pub augment: Augment,
}

/// How patches are drawn.
///
/// **Cases**: one random order of all cases after the other, running on across epochs, so every case is seen equally often (±1) whatever the number
/// of steps. **Boxes**: of every run of samples, the share `foreground` (exactly, spread evenly) is centred on a voxel drawn uniformly from a class
/// drawn uniformly among those present (nnU-Net; MONAI's RandCropByPosNegLabel tosses a coin instead), moved back inside the volume; the others lie
/// anywhere with equal chance. Where the volume is smaller than the patch it stands in the middle, the odd voxel after it (MONAI SpatialPad).
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    pub seed: u64,
    pub patch: Zyx<usize>,
    /// Patches in a step.
    pub batch: usize,
    /// Steps in an epoch.
    pub steps: u64,
    /// Share of patches centred on foreground, 0 to 1.
    pub foreground: f64,
    pub augment: &'a [Random],
    pub cases: &'a [Case],
    /// Which patches of a step are this process's.
    pub rank: Rank,
}

/// What a plan needs to know of a case.
#[derive(Clone, Debug)]
pub struct Case {
    pub size: Zyx<usize>,
    pub spacing_mm: Zyx<f64>,
    pub foreground: Foreground,
}

/// Where the classes of a case lie, as runs along the flat array: exact and small even for large organs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Foreground {
    /// Classes that have voxels, by id.
    pub classes: Vec<ClassRuns>,
}

/// The voxels of one class in the order of the flat array.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassRuns {
    pub class: u8,
    pub voxels: u64,
    /// (flat index of the first voxel, voxels of the class before it)
    runs: Vec<(u64, u64)>,
}

impl Foreground {
    /// - labels: `[z, y, x]`, 0 is background
    pub fn of(labels: &[u8]) -> Self {
        let mut by_class: [Option<ClassRuns>; 256] = std::array::from_fn(|_| None);
        let mut i = 0;
        while i < labels.len() {
            let class = labels[i];
            let run = labels[i..].iter().take_while(|l| **l == class).count();
            if class != 0 {
                let c = by_class[class as usize].get_or_insert(ClassRuns { class, voxels: 0, runs: Vec::new() });
                c.runs.push((i as u64, c.voxels));
                c.voxels += run as u64;
            }
            i += run;
        }
        Self { classes: by_class.into_iter().flatten().collect() }
    }
}

impl ClassRuns {
    /// Flat index of the class's `k`-th voxel, `k < voxels`.
    pub fn voxel(&self, k: u64) -> u64 {
        let run = self.runs.partition_point(|(_, before)| *before <= k) - 1;
        self.runs[run].0 + (k - self.runs[run].1)
    }
}

impl Plan<'_> {
    /// The patches of one step that are this process's, in the order in which they stand in the batch.
    pub fn step(&self, epoch: u64, step: u64) -> Vec<PatchAt> {
        let mut order = Order::default();
        let part = self.rank.part(self.batch);
        (part.start as u64..part.end as u64)
            .map(|j| {
                let in_epoch = step * self.batch as u64 + j;
                let in_all = epoch * self.steps * self.batch as u64 + in_epoch;
                let case = order.case(self.seed, in_all, self.cases.len() as u64);
                self.patch(epoch, in_epoch, in_all, case)
            })
            .collect()
    }

    /// All steps of an epoch.
    pub fn epoch(&self, epoch: u64) -> Vec<Vec<PatchAt>> {
        (0..self.steps).map(|s| self.step(epoch, s)).collect()
    }

    fn patch(&self, epoch: u64, sample: u64, in_all: u64, index: u32) -> PatchAt {
        let case = &self.cases[index as usize];
        let mut dice = Dice::new(self.seed, epoch, sample, "box");
        let centre = if is_forced(in_all, self.foreground) { foreground_voxel(case, &mut dice) } else { None };
        let mut region = place(case.size, self.patch, centre, &mut dice);
        let drawn = self.augment.iter().enumerate().filter_map(|(i, a)| {
            let mut dice = Dice::new(self.seed, epoch, sample, &format!("augment {i}"));
            a.draw(&mut dice, self.patch, case.spacing_mm)
        });
        let (warps, mut steps): (Vec<Step>, Vec<Step>) = drawn.partition(|s| matches!(s, Step::Affine { .. }));
        if let Some(one) = fused(warps) {
            if let Step::Affine { to_input, bend, .. } = &one {
                region = grown(region, *to_input, bend.as_ref().map_or(0.0, Bend::reach));
            }
            steps.insert(0, one);
        }
        PatchAt { case: index, region, augment: Augment(steps) }
    }
}

/// Whether sample `n` of the whole training belongs to the share: of every first n samples, ⌊n · share⌋ do.
fn is_forced(n: u64, share: f64) -> bool {
    let until = |n: u64| (n as f64 * share + 1e-9).floor();
    until(n + 1) > until(n)
}

fn foreground_voxel(case: &Case, dice: &mut Dice) -> Option<Zyx<usize>> {
    let classes = &case.foreground.classes;
    let class = classes.get(dice.below(classes.len() as u64) as usize)?;
    let flat = class.voxel(dice.below(class.voxels)) as usize;
    let (y, x) = (case.size.y, case.size.x);
    Some(Zyx::new(flat / (y * x), flat / x % y, flat % x))
}

/// The box of a patch in a volume.
fn place(size: Zyx<usize>, patch: Zyx<usize>, centre: Option<Zyx<usize>>, dice: &mut Dice) -> Region {
    let at = |n: usize, r: usize, c: Option<usize>, dice: &mut Dice| -> i64 {
        // Drawn even where it is not used: the draws of one axis must not depend on the size of another.
        let free = dice.below((n.saturating_sub(r) + 1) as u64) as i64;
        match c {
            _ if n <= r => -(((r - n) / 2) as i64),
            Some(c) => (c as i64 - (r / 2) as i64).clamp(0, (n - r) as i64),
            None => free,
        }
    };
    let start = Zyx::new(
        at(size.z, patch.z, centre.map(|c| c.z), dice),
        at(size.y, patch.y, centre.map(|c| c.y), dice),
        at(size.x, patch.x, centre.map(|c| c.x), dice),
    );
    Region { start, size: patch }
}

/// What turns and what bends, in one: a turn has no bend, a bend no turn, and there is at most one of each.
fn fused(warps: Vec<Step>) -> Option<Step> {
    warps.into_iter().reduce(|a, b| match (a, b) {
        (Step::Affine { to_input, size, bend: None }, Step::Affine { bend: Some(bend), .. })
        | (Step::Affine { bend: Some(bend), .. }, Step::Affine { to_input, size, bend: None }) => {
            Step::Affine { to_input, size, bend: Some(bend) }
        }
        (a, _) => a,
    })
}

/// The box about the same centre that holds every point a warp reads, the bend aside that moves a point by more than `bend` voxels.
fn grown(region: Region, to_input: Zyx<Zyx<f64>>, bend: f64) -> Region {
    let half = region.size.map(|n| (n as f64 - 1.0) / 2.0);
    let far = half.map(|h| h + bend);
    let reach = to_input.map(|row| row.z.abs() * far.z + row.y.abs() * far.y + row.x.abs() * far.x);
    let margin = reach.zip(half).map(|(reach, half)| (reach - half - 1e-9).ceil().max(0.0) as usize);
    Region { start: region.start.zip(margin).map(|(s, m)| s - m as i64), size: region.size.zip(margin).map(|(n, m)| n + 2 * m) }
}

/// One random order of the cases after the other.
#[derive(Default)]
struct Order {
    round: u64,
    cases: Vec<u32>,
}

impl Order {
    fn case(&mut self, seed: u64, in_all: u64, n: u64) -> u32 {
        let round = in_all / n;
        if self.cases.is_empty() || round != self.round {
            let mut dice = Dice::new(seed, round, 0, "order");
            self.round = round;
            self.cases = (0..n as u32).collect();
            // Fisher and Yates.
            (1..n as usize).rev().for_each(|i| self.cases.swap(i, dice.below(i as u64 + 1) as usize));
        }
        self.cases[(in_all % n) as usize]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ops::augment::Axis;

    fn case(size: Zyx<usize>, at: &[(usize, u8)]) -> Case {
        let mut labels = vec![0u8; size.count()];
        at.iter().for_each(|(i, class)| labels[*i] = *class);
        Case { size, spacing_mm: Zyx::splat(1.0), foreground: Foreground::of(&labels) }
    }

    fn plan<'a>(cases: &'a [Case], augment: &'a [Random]) -> Plan<'a> {
        Plan { seed: 7, patch: Zyx::splat(8), batch: 3, steps: 5, foreground: 0.5, augment, cases, rank: Rank::ALONE }
    }

    #[test]
    fn runs_give_every_voxel_of_a_class_once() {
        let labels = [0, 1, 1, 0, 2, 1, 2, 2, 0, 1];
        let f = Foreground::of(&labels);
        for class in &f.classes {
            let all: Vec<u64> = (0..class.voxels).map(|k| class.voxel(k)).collect();
            let expected: Vec<u64> = (0..10).filter(|i| labels[*i as usize] == class.class).collect();
            assert_eq!(all, expected);
        }
        assert_eq!(f.classes.len(), 2);
    }

    #[test]
    fn every_case_is_seen_equally_often() {
        let cases: Vec<Case> = (0..7).map(|_| case(Zyx::splat(10), &[])).collect();
        let mut seen = [0; 7];
        for epoch in 0..7 {
            plan(&cases, &[]).epoch(epoch).iter().flatten().for_each(|p| seen[p.case as usize] += 1);
            let (least, most) = (seen.iter().min().unwrap(), seen.iter().max().unwrap());
            assert!(most - least <= 1, "{seen:?} after epoch {epoch}");
        }
        assert_eq!(seen, [15; 7], "7 epochs of 15 samples over 7 cases");
    }

    #[test]
    fn the_share_of_foreground_is_exact_and_spread() {
        for share in [0.0, 0.25, 1.0 / 3.0, 0.5, 1.0] {
            let forced: Vec<bool> = (0..1200).map(|n| is_forced(n, share)).collect();
            assert_eq!(forced.iter().filter(|f| **f).count(), (1200.0 * share + 1e-6) as usize, "{share}");
            assert!(forced.chunks(12).all(|c| (c.iter().filter(|f| **f).count() as f64 - 12.0 * share).abs() <= 1.0));
        }
    }

    #[test]
    fn forced_patches_hold_a_voxel_of_each_class_in_turn() {
        // Class 1 in one corner, class 2 in the other: with a share of 1 every patch holds one of them, and both get their turn.
        let size = Zyx::splat(40);
        let cases = [case(size, &[(0, 1), (size.count() - 1, 2)])];
        let p = Plan { foreground: 1.0, ..plan(&cases, &[]) };
        let boxes: Vec<Region> = (0..20).flat_map(|e| p.epoch(e)).flatten().map(|p| p.region).collect();
        let holds = |r: &Region, v: i64| r.contains(&Region { start: Zyx::splat(v), size: Zyx::splat(1) });
        let first = boxes.iter().filter(|r| holds(r, 0)).count();
        let last = boxes.iter().filter(|r| holds(r, 39)).count();
        assert_eq!(first + last, boxes.len());
        assert!(first > boxes.len() / 3 && last > boxes.len() / 3, "{first} and {last}");
    }

    #[test]
    fn a_volume_smaller_than_the_patch_stands_in_its_middle() {
        let cases = [case(Zyx::new(5, 8, 20), &[(3, 1)])];
        for p in plan(&cases, &[]).epoch(0).iter().flatten() {
            assert_eq!((p.region.start.z, p.region.start.y, p.region.size), (-1, 0, Zyx::splat(8)));
            assert!((0..=12).contains(&p.region.start.x));
        }
    }

    #[test]
    fn a_rotation_reads_a_larger_box_about_the_same_centre() {
        let cases = [case(Zyx::splat(40), &[])];
        let turn = [Random::Affine { rotation_degrees: Zyx::new(45.0, 0.0, 0.0), scale: 0.0, shear: 0.0, probability: 1.0 }];
        let (plain, turned) = (plan(&cases, &[]).epoch(0), plan(&cases, &turn).epoch(0));
        for (a, b) in plain.iter().flatten().zip(turned.iter().flatten()) {
            assert_eq!(a.region.start.z, b.region.start.z, "a turn about z needs no more slices");
            assert!(b.region.contains(&a.region));
            assert_eq!(a.region.start.y * 2 + a.region.size.y as i64, b.region.start.y * 2 + b.region.size.y as i64);
            let Step::Affine { to_input, size, .. } = &b.augment.0[0] else { panic!("affine comes first") };
            assert_eq!(*size, Zyx::splat(8));
            let det = to_input.y.y * to_input.x.x - to_input.y.x * to_input.x.y;
            assert!((det - 1.0).abs() < 1e-12, "a rotation keeps areas");
        }
    }

    #[test]
    fn a_turn_and_a_bend_share_one_interpolation() {
        let cases = [case(Zyx::splat(40), &[])];
        let turn = Random::Affine { rotation_degrees: Zyx::splat(20.0), scale: 0.1, shear: 0.1, probability: 1.0 };
        let (sigma_low, sigma_high, magnitude_low, magnitude_high) = (3.0, 4.0, 20.0, 40.0);
        let bend = Random::Elastic { sigma_low, sigma_high, magnitude_low, magnitude_high, probability: 1.0 };
        let (alone, first, last) = ([turn.clone()], [bend.clone(), turn.clone()], [turn, bend]);
        for p in plan(&cases, &first).epoch(0).iter().chain(&plan(&cases, &last).epoch(0)).flatten() {
            let [Step::Affine { to_input, bend: Some(bend), .. }] = &p.augment.0[..] else { panic!("{:?}", p.augment) };
            assert!((3.0..=4.0).contains(&bend.sigma) && to_input.z.y != 0.0);
        }
        for (a, b) in plan(&cases, &alone).epoch(0).iter().flatten().zip(plan(&cases, &last).epoch(0).iter().flatten()) {
            assert!(b.region.contains(&a.region) && b.region != a.region, "a bend reads further");
            let (Step::Affine { to_input: x, .. }, Step::Affine { to_input: y, .. }) = (&a.augment.0[0], &b.augment.0[0]) else { panic!() };
            assert_eq!(x, y);
        }
    }

    #[test]
    fn one_entry_more_moves_no_other_draw() {
        let cases = [case(Zyx::splat(20), &[(17, 1)])];
        let flip = Random::Flip { axes: vec![Axis::Z, Axis::Y], probability: 0.5 };
        let noise = Random::Noise { std: 0.1, probability: 0.5 };
        let (one, two) = ([flip.clone()], [flip, noise]);
        let flips = |p: &PatchAt| p.augment.0.iter().filter(|s| matches!(s, Step::Flip { .. })).cloned().collect::<Vec<_>>();
        for (a, b) in plan(&cases, &one).epoch(3).iter().flatten().zip(plan(&cases, &two).epoch(3).iter().flatten()) {
            assert_eq!((a.region, flips(a)), (b.region, flips(b)));
        }
    }

    proptest! {
        #[test]
        fn boxes_stay_inside_where_they_can(z in 1usize..40, y in 1usize..40, x in 1usize..40, seed: u64, share in 0.0..1.0f64, class in 0u8..3) {
            let size = Zyx::new(z, y, x);
            let cases = [case(size, &[(size.count() / 2, class)]), case(size, &[])];
            let p = Plan { seed, foreground: share, ..plan(&cases, &[]) };
            for at in p.epoch(seed % 5).iter().flatten() {
                for ((n, r), (s, e)) in size.zip(p.patch).to_array().into_iter().zip(at.region.start.zip(at.region.end()).to_array()) {
                    if n >= r {
                        prop_assert!(s >= 0 && e <= n as i64);
                    } else {
                        prop_assert!(s <= 0 && e >= n as i64);
                    }
                }
            }
            prop_assert_eq!(p.step(1, 2), p.epoch(1)[2].clone());
        }
    }
}
