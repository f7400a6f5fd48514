//! A resampling as a plan: made once from two grids, then run for any region of the output on whatever part of the input that region needs. A region has the
//! same bits as that region of the whole, whatever the parts, the slabs and the number of threads. Nothing here reads a file: `needs` says what to bring.

use rayon::prelude::*;
use voxmill_schemas::geometry::{Geometry, Zyx};
use voxmill_schemas::region::Region;

use super::intensity::Map;
use super::lanes::Lanes;
use super::matrix::Affine;
use super::orient::Turn;
use super::points;
use super::resample::{self, Interpolation, LabelInterpolation, Outside};
use super::separable::{self, Axes, Stored};
use super::spline;

/// Distance in voxels within which two grids count as one.
const SAME_GRID_VOXELS: f64 = 1e-3;

/// A box of one channel in memory.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a, T> {
    /// `[z, y, x]` of `region`
    pub voxels: &'a [T],
    /// Where the box lies in the array it was cut from.
    pub region: Region,
}

impl<'a, T> Part<'a, T> {
    /// All of a channel.
    pub fn whole(voxels: &'a [T], size: Zyx<usize>) -> Self {
        Self { voxels, region: Region::whole(size) }
    }

    /// Where a voxel of the array stands in the box.
    pub(super) fn at(&self, i: Zyx<usize>) -> usize {
        let p = i.zip(self.region.start).map(|(i, s)| (i as i64 - s) as usize);
        (p.z * self.region.size.y + p.y) * self.region.size.x + p.x
    }

    /// The row of voxels at `z` and `y`, and the x at which it starts.
    pub(super) fn row(&self, z: usize, y: usize) -> (&'a [T], usize) {
        let x = self.region.start.x as usize;
        (&self.voxels[self.at(Zyx::new(z, y, x))..][..self.region.size.x], x)
    }
}

/// A type of voxel that values are interpolated from.
pub trait Voxel: Copy + Default + Send + Sync + 'static {
    fn wide(self) -> f64;
}

macro_rules! voxels {
    ($($t:ty),*) => {$(
        impl Voxel for $t {
            #[inline(always)]
            fn wide(self) -> f64 {
                self as f64
            }
        }
    )*};
}
voxels!(u8, i16, u16, f32);

impl Voxel for half::f16 {
    #[inline(always)]
    fn wide(self) -> f64 {
        self.to_f64()
    }
}

/// How one grid gets its voxels from another.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Size of the input.
    pub from: Zyx<usize>,
    /// Size of the output.
    pub to: Zyx<usize>,
    turn: Turn,
    way: Way,
    outside: Outside,
}

/// All but `Same` read the turned input.
#[derive(Clone, Debug)]
enum Way {
    Same,
    Linear(Axes),
    Nearest(Axes),
    Cubic(Box<spline::Axes>),
    Points(Affine, Interpolation),
    Strongest(Affine),
}

impl Plan {
    /// For channels. Grids that agree within a thousandth of a voxel give the values untouched; neither may be degenerate.
    pub fn new(from: &Geometry, to: &Geometry, how: Interpolation, outside: Outside) -> Self {
        Self::with(from, to, outside, |map, from, to, by_axes| match (by_axes, how) {
            (true, Interpolation::Linear) => Way::Linear(Axes::linear(map, from, to, outside)),
            (true, Interpolation::Nearest) => Way::Nearest(Axes::nearest(map, from, to, outside)),
            (true, Interpolation::Cubic) => Way::Cubic(Box::new(spline::Axes::new(map, from, to, outside))),
            (false, how) => Way::Points(*map, how),
        })
    }

    /// For class ids.
    pub fn labels(from: &Geometry, to: &Geometry, how: LabelInterpolation, outside: Outside) -> Self {
        Self::with(from, to, outside, |map, from, to, by_axes| match (by_axes, how) {
            (true, LabelInterpolation::Nearest) => Way::Nearest(Axes::nearest(map, from, to, outside)),
            (false, LabelInterpolation::Nearest) => Way::Points(*map, Interpolation::Nearest),
            (_, LabelInterpolation::Linear) => Way::Strongest(*map),
        })
    }

    fn with(from: &Geometry, to: &Geometry, outside: Outside, way: impl FnOnce(&Affine, Zyx<usize>, Zyx<usize>, bool) -> Way) -> Self {
        if from.same_grid(to, SAME_GRID_VOXELS) {
            return Self { from: from.size, to: to.size, turn: Turn::NONE, way: Way::Same, outside };
        }
        // A grid that lies along other axes is turned first: then nearly every pair of grids can go axis by axis.
        let turn = Turn::along(from, to);
        let turned = turn.geometry(from);
        let map = resample::index_map(&turned, to);
        let by_axes = resample::right_angled(&map, to.size) && !matches!(outside, Outside::Fade | Outside::Reflect);
        Self { from: from.size, to: to.size, turn, way: way(&map, turned.size, to.size, by_axes), outside }
    }

    /// For points anywhere: output index (x, y, z) reads `map`·(x, y, z, 1) of an array of `from` voxels.
    pub fn of_map(map: &Affine, from: Zyx<usize>, to: Zyx<usize>, how: Interpolation, outside: Outside) -> Self {
        Self { from, to, turn: Turn::NONE, way: Way::Points(*map, how), outside }
    }

    /// Whether the output is the input.
    pub fn is_identity(&self) -> bool {
        matches!(self.way, Way::Same)
    }

    /// The voxels of the input that a region of the output reads: a box inside the input, which may be empty.
    ///
    /// `region` lies inside the output.
    pub fn needs(&self, region: Region) -> Region {
        self.turn.region_before(self.needs_turned(region), self.from)
    }

    /// Bytes that a region takes besides what is read and what is made: coefficients of a cubic.
    pub fn between_bytes(&self, region: Region) -> usize {
        let turned = if self.turn == Turn::NONE { 0 } else { 4 * self.needs_turned(region).size.count() };
        match &self.way {
            Way::Cubic(axes) => turned + axes.between_bytes(region),
            Way::Points(_, Interpolation::Cubic) => 4 * self.from.count() + spline::coefficients_bytes(self.from),
            _ => 0,
        }
    }

    fn needs_turned(&self, region: Region) -> Region {
        assert!(region.is_empty() || Region::whole(self.to).contains(&region), "a region of the output");
        let turned = self.turn.size(self.from);
        let nothing = Region { start: Zyx::splat(0), size: Zyx::splat(0) };
        if region.is_empty() {
            return nothing;
        }
        match &self.way {
            Way::Same => region,
            Way::Linear(axes) | Way::Nearest(axes) => axes.needs(region).unwrap_or(nothing),
            Way::Cubic(axes) => axes.needs(region).unwrap_or(nothing),
            // The filter of a cubic runs along whole axes.
            Way::Points(_, Interpolation::Cubic) => Region::whole(turned),
            Way::Points(map, _) | Way::Strongest(map) => points::needs(map, region, turned, self.outside).unwrap_or(nothing),
        }
    }

    /// A region of the output.
    ///
    /// - part: a box of the input that covers `needs(region)`
    /// - maps: applied to every value in float32, in their order
    /// - out: `[z, y, x]` of `region`
    pub fn run<T: Voxel, U: Stored>(&self, part: Part<T>, region: Region, maps: &[Map], out: &mut [U]) {
        self.run_on(Lanes::here(), part, region, maps, out);
    }

    /// [`Plan::run`] with instructions of choice: the bits are the same.
    pub fn run_on<T: Voxel, U: Stored>(&self, lanes: Lanes, part: Part<T>, region: Region, maps: &[Map], out: &mut [U]) {
        let (size, outside) = (self.turn.size(self.from), self.outside);
        match &self.way {
            Way::Linear(axes) => {
                self.tiles(part, region, out, |part, tile, slab, out| separable::linear(part, axes, tile, slab, maps, lanes, out))
            }
            Way::Nearest(axes) => {
                self.tiles(part, region, out, |part, tile, slab, out| separable::nearest_values(part, axes, tile, slab, maps, lanes, out))
            }
            Way::Points(map, Interpolation::Cubic) => {
                let whole = self.turn.cut(part, self.from, Region::whole(size));
                let c = spline::Coefficients::of(&whole, size);
                slabs(region, out, |slab, out| points::sample(map, slab, slab, maps, lanes, out, |p| c.at(p, outside)));
            }
            Way::Points(map, Interpolation::Nearest) => self.tiles(part, region, out, |part, tile, slab, out| {
                points::sample(map, tile, slab, maps, lanes, out, |p| {
                    points::nearest_at(size, p, outside).map_or(outside.value(), |i| part.voxels[part.at(i)].wide() as f32)
                })
            }),
            Way::Points(map, Interpolation::Linear) => self
                .tiles(part, region, out, |part, tile, slab, out| points::linear(part, map, size, outside, tile, slab, maps, lanes, out)),
            Way::Cubic(axes) if self.turn == Turn::NONE => spline::separable(part, axes, region, maps, lanes, out),
            Way::Cubic(axes) => {
                let needs = self.needs_turned(region);
                let turned = self.turn.cut(part, self.from, needs);
                spline::separable(Part { voxels: &turned, region: needs }, axes, region, maps, lanes, out);
            }
            Way::Same | Way::Strongest(_) => {
                self.tiles(part, region, out, |part, tile, slab, out| separable::copy_values(part, tile, slab, maps, lanes, out))
            }
        }
    }

    /// A region of the output of a nearest plan, voxel by voxel as they are: class ids, or integers that stay what they are. `beyond` stands where the input
    /// grid has no voxels.
    ///
    /// - part: a box of the input that covers `needs(region)`
    /// - out: `[z, y, x]` of `region`
    pub fn pick<T: Copy + Default + Send + Sync>(&self, part: Part<T>, region: Region, beyond: T, out: &mut [T]) {
        self.tiles(part, region, out, |part, tile, slab, out| match &self.way {
            Way::Nearest(axes) => separable::nearest(part, axes, tile, slab, beyond, out),
            Way::Points(map, Interpolation::Nearest) => {
                points::pick(part, map, self.turn.size(self.from), self.outside, tile, slab, beyond, out)
            }
            Way::Same => separable::copy(part, tile, slab, out),
            _ => panic!("voxels are picked by a nearest plan alone"),
        });
    }

    /// A region of the output for class ids. [`Outside::Value`] gives that class, rounded; [`Outside::Fade`] is background.
    ///
    /// - part: a box of the input that covers `needs(region)`
    /// - out: `[z, y, x]` of `region`
    pub fn run_labels(&self, part: Part<u8>, region: Region, out: &mut [u8]) {
        let beyond = self.outside.value().clamp(0.0, 255.0) as u8;
        match &self.way {
            Way::Strongest(map) => self.tiles(part, region, out, |part, tile, slab, out| {
                points::strongest(part, map, self.turn.size(self.from), self.outside, tile, slab, beyond, out)
            }),
            _ => self.pick(part, region, beyond, out),
        }
    }

    /// Slabs of output planes side by side. Where the input has to be turned, each slab is worked on in blocks of rows, on a turned copy of what a block
    /// needs: the copy stays in the cache.
    fn tiles<T: Copy + Default + Send + Sync, U: Send>(
        &self,
        part: Part<T>,
        region: Region,
        out: &mut [U],
        fill: impl Fn(Part<T>, Region, Region, &mut [U]) + Sync,
    ) {
        assert_eq!(out.len(), region.size.count(), "one place a voxel of the region");
        if out.is_empty() {
            return;
        }
        let needs = self.needs(region);
        assert!(needs.is_empty() || part.region.contains(&needs), "the part {:?} does not hold {needs:?}", part.region);
        slabs(region, out, |slab, out| {
            if self.turn == Turn::NONE {
                return fill(part, slab, slab, out);
            }
            for first in (0..slab.size.y).step_by(TURNED_ROWS) {
                let rows = TURNED_ROWS.min(slab.size.y - first);
                let tile = Region { start: Zyx { y: slab.start.y + first as i64, ..slab.start }, size: Zyx { y: rows, ..slab.size } };
                let needs = self.needs_turned(tile);
                let turned = self.turn.cut(part, self.from, needs);
                fill(Part { voxels: &turned, region: needs }, tile, slab, out);
            }
        });
    }
}

/// Parts of a region along z, side by side. Each is given its place in `out`, `[z, y, x]` of `region`.
pub(super) fn slabs<U: Send>(region: Region, out: &mut [U], fill: impl Fn(Region, &mut [U]) + Sync) {
    let depth = slab_depth(region.size.z);
    out.par_chunks_mut((depth * region.size.y * region.size.x).max(1)).enumerate().for_each(|(k, out)| {
        let first = k * depth;
        let planes = depth.min(region.size.z - first);
        fill(Region { start: Zyx { z: region.start.z + first as i64, ..region.start }, size: Zyx { z: planes, ..region.size } }, out)
    });
}

/// Rows of the output that one turned copy serves.
const TURNED_ROWS: usize = 32;

/// Planes of a slab: many, as each slab blends its first plane anew, and few enough for every thread to have some.
fn slab_depth(planes: usize) -> usize {
    planes.div_ceil(4 * rayon::current_num_threads()).max(8)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use half::f16;
    use proptest::prelude::*;
    use voxmill_schemas::geometry::Lps;

    use super::*;
    use crate::ops::smooth::{Blur, Edge};

    const SIZE: Zyx<usize> = Zyx::new(21, 19, 33);

    fn noise(n: usize) -> Vec<i16> {
        (0..n as u64)
            .map(|i| ((i.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407) >> 33) % 4001) as i16 - 1000)
            .collect()
    }

    /// A box of the array, as a reader would bring it.
    fn brought<T: Copy>(values: &[T], size: Zyx<usize>, r: Region) -> Vec<T> {
        let part = Part::whole(values, size);
        let s = r.start.map(|s| s as usize);
        (0..r.size.z * r.size.y)
            .flat_map(|i| values[part.at(Zyx::new(s.z + i / r.size.y, s.y + i % r.size.y, s.x))..][..r.size.x].to_vec())
            .collect()
    }

    fn region_of(size: Zyx<usize>, at: [f64; 6]) -> Region {
        let axis = |n: usize, a: f64, b: f64| {
            let start = (a * n as f64) as usize;
            (start as i64, 1 + (b * (n - start - 1) as f64) as usize)
        };
        let (z, y, x) = (axis(size.z, at[0], at[1]), axis(size.y, at[2], at[3]), axis(size.x, at[4], at[5]));
        Region { start: Zyx::new(z.0, y.0, x.0), size: Zyx::new(z.1, y.1, x.1) }
    }

    /// Grids along the axes of the input, along others, and askew.
    fn grids() -> impl Strategy<Value = (Geometry, Geometry)> {
        let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        (
            0usize..6,
            any::<[bool; 3]>(),
            prop_oneof![2 => Just(0.0), 1 => -0.3..0.3],
            [0.4..2.5, 0.4..2.5, 0.4..2.5f64],
            [-3.0..6.0, -3.0..6.0, -3.0..6.0f64],
        )
            .prop_map(move |(order, flips, tilt, spacing, shift)| {
                let from = Geometry::axis_aligned(SIZE, Zyx::new(1.5, 0.8, 0.7));
                let (sin, cos) = f64::sin_cos(tilt);
                let columns: [Lps; 3] = std::array::from_fn(|a| {
                    let mut v = [0.0; 3];
                    v[orders[order][a]] = if flips[a] { -spacing[a] } else { spacing[a] };
                    Lps([cos * v[0] - sin * v[1], sin * v[0] + cos * v[1], v[2]])
                });
                // Near the corner from which its axes lead into the input.
                let last = from.to_lps(SIZE.map(|n| n as f64 - 1.0)).0;
                let mut origin = shift;
                (0..3).filter(|a| flips[*a]).for_each(|a| origin[orders[order][a]] = last[orders[order][a]] - shift[orders[order][a]]);
                (from, Geometry { size: Zyx::new(14, 17, 40), origin: Lps(origin), axes_mm: Zyx::from_array(columns) })
            })
    }

    proptest! {
        #[test]
        fn a_region_is_that_region_of_the_whole_to_the_bit(
            (from, to) in grids(),
            how in prop_oneof![Just(Interpolation::Linear), Just(Interpolation::Nearest), Just(Interpolation::Cubic)],
            outside in prop_oneof![Just(Outside::Edge), Just(Outside::Value(-1024.0)), Just(Outside::Fade), Just(Outside::Reflect)],
            at in any::<[u8; 6]>(),
        ) {
            let values = noise(SIZE.count());
            let maps = [Map::Window { low: -1000.0, high: 1000.0, to_low: 0.0, to_high: 1.0, clip: true }];
            let plan = Plan::new(&from, &to, how, outside);
            let mut whole = vec![0.0f32; to.size.count()];
            plan.run(Part::whole(&values, SIZE), Region::whole(to.size), &maps, &mut whole);
            let region = region_of(to.size, at.map(|v| v as f64 / 256.0));
            let needs = plan.needs(region);
            let mut part = vec![0.0f32; region.size.count()];
            plan.run(Part { voxels: &brought(&values, SIZE, needs), region: needs }, region, &maps, &mut part);
            prop_assert_eq!(part, brought(&whole, to.size, region));
        }

        #[test]
        fn every_width_and_any_number_of_threads_give_the_same_bytes(
            (from, to) in grids(),
            how in prop_oneof![Just(Interpolation::Linear), Just(Interpolation::Nearest), Just(Interpolation::Cubic)],
            outside in prop_oneof![Just(Outside::Edge), Just(Outside::Value(-1024.0)), Just(Outside::Fade)],
        ) {
            let values = noise(SIZE.count());
            let maps = [Map::Normalize { mean: 40.0, std: 300.0, nonzero: false }, Map::Clip { low: -2.0, high: 2.0 }];
            let plan = Plan::new(&from, &to, how, outside);
            let run = |lanes, threads| {
                let mut out = vec![f16::ZERO; to.size.count()];
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| plan.run_on(lanes, Part::whole(&values, SIZE), Region::whole(to.size), &maps, &mut out));
                out
            };
            let first = run(Lanes::here(), 1);
            for lanes in Lanes::all() {
                prop_assert_eq!(&run(lanes, 3), &first, "{:?}", lanes);
            }
            let mut single = vec![0.0f32; to.size.count()];
            plan.run(Part::whole(&values, SIZE), Region::whole(to.size), &maps, &mut single);
            prop_assert!(single.iter().zip(&first).all(|(a, b)| f16::from_f32(*a) == *b));
        }

        #[test]
        fn a_region_of_labels_is_that_region_of_the_whole(
            (from, to) in grids(),
            linear in any::<bool>(),
            outside in prop_oneof![Just(Outside::Edge), Just(Outside::Value(3.0)), Just(Outside::Fade), Just(Outside::Reflect)],
            at in any::<[u8; 6]>(),
        ) {
            let labels: Vec<u8> = noise(SIZE.count()).into_iter().map(|v| (v & 3) as u8).collect();
            let how = if linear { LabelInterpolation::Linear } else { LabelInterpolation::Nearest };
            let plan = Plan::labels(&from, &to, how, outside);
            let mut whole = vec![0u8; to.size.count()];
            plan.run_labels(Part::whole(&labels, SIZE), Region::whole(to.size), &mut whole);
            let region = region_of(to.size, at.map(|v| v as f64 / 256.0));
            let needs = plan.needs(region);
            let mut part = vec![0u8; region.size.count()];
            plan.run_labels(Part { voxels: &brought(&labels, SIZE, needs), region: needs }, region, &mut part);
            prop_assert_eq!(part, brought(&whole, to.size, region));
        }

        #[test]
        fn a_region_of_a_blur_is_that_region_of_the_whole(sigma in [0.0..2.0, 0.0..2.0, 0.0..2.0f64], zero in any::<bool>(), at in any::<[u8; 6]>()) {
            let values = noise(SIZE.count());
            let blur = Blur::new(SIZE, Zyx::from_array(sigma), if zero { Edge::Zero } else { Edge::Repeat });
            let mut whole = vec![0.0f32; SIZE.count()];
            blur.run(Part::whole(&values, SIZE), Region::whole(SIZE), &mut whole);
            let region = region_of(SIZE, at.map(|v| v as f64 / 256.0));
            let needs = blur.needs(region);
            let mut part = vec![0.0f32; region.size.count()];
            blur.run(Part { voxels: &brought(&values, SIZE, needs), region: needs }, region, &mut part);
            prop_assert_eq!(part, brought(&whole, SIZE, region));
        }
    }
}
