//! Resampling of an image in which some values are no tissue (pixel padding): interpolation must not mix air-valued padding into tissue at its edge
//! (dcm2niix#262). As a plan it runs for any region, with the bits that the whole has there.

use voxmill_schemas::geometry::{Geometry, Zyx};
use voxmill_schemas::region::Region;

use super::plan::{Part, Plan};
use super::resample::{Interpolation, Outside};
use super::smooth::Blur;

/// Where the nearest voxel is padding the result is padding; elsewhere tissue alone is interpolated, its weights made to add up to 1.
#[derive(Clone, Debug)]
pub struct Padded {
    range: [f64; 2],
    blur: Option<Blur>,
    linear: Plan,
    nearest: Plan,
    /// Away from padding a cubic is a cubic.
    cubic: Option<Plan>,
}

impl Padded {
    /// - `how`: linear or cubic; `blur`: before an axis gets coarser
    /// - `range`: values from the first to the second are padding
    /// - `beyond`: what lies outside the input is padding too, else the edge goes on
    pub fn new(from: &Geometry, to: &Geometry, how: Interpolation, blur: Option<Blur>, range: [f64; 2], beyond: bool) -> Self {
        let plan = |how| Plan::new(from, to, how, Outside::Edge);
        let cubic = (how == Interpolation::Cubic).then(|| plan(how));
        let outside = if beyond { Outside::Value(range[0] as f32) } else { Outside::Edge };
        let nearest = Plan::new(from, to, Interpolation::Nearest, outside);
        Self { range, blur, linear: plan(Interpolation::Linear), nearest, cubic }
    }

    /// Whether a value is no tissue.
    pub fn is_padding([low, high]: [f64; 2], v: f32) -> bool {
        low <= v as f64 && v as f64 <= high
    }

    /// The voxels of the input that a region of the output reads.
    pub fn needs(&self, region: Region) -> Region {
        let read = self.interpolated(region);
        hull(self.blur.as_ref().filter(|_| !read.is_empty()).map_or(read, |b| b.needs(read)), self.nearest.needs(region))
    }

    fn interpolated(&self, region: Region) -> Region {
        let linear = self.linear.needs(region);
        self.cubic.as_ref().map_or(linear, |c| hull(linear, c.needs(region)))
    }

    /// Bytes between what is read and what is made of a region of one channel: tissue and its share, as they are, blurred, and on the new grid.
    pub fn between_bytes(&self, from: Region, region: Region) -> usize {
        let smooth = self.blur.as_ref().map_or(0, |_| self.interpolated(region).size.count());
        let cubic = self.cubic.as_ref().map_or(0, |c| 4 * region.size.count() + c.between_bytes(region));
        8 * (from.size.count() + smooth + region.size.count()) + cubic
    }

    /// A region of the output.
    ///
    /// - part: a box of one channel that covers `needs(region)`
    /// - out: `[z, y, x]` of `region`
    pub fn run(&self, part: Part<f32>, region: Region, out: &mut [f32]) {
        let is_padding = |v: f32| Self::is_padding(self.range, v);
        let tissue: Vec<f32> = part.voxels.iter().map(|v| if is_padding(*v) { 0.0 } else { *v }).collect();
        let share: Vec<f32> = part.voxels.iter().map(|v| !is_padding(*v) as u8 as f32).collect();
        let read = self.interpolated(region);
        let smooth = |x: Vec<f32>| -> (Vec<f32>, Region) {
            let Some(blur) = &self.blur else { return (x, part.region) };
            let mut smooth = vec![0.0; read.size.count()];
            blur.run(Part { voxels: &x, region: part.region }, read, &mut smooth);
            (smooth, read)
        };
        let on = |plan: &Plan, (x, of): &(Vec<f32>, Region)| -> Vec<f32> {
            let mut on = vec![0.0; region.size.count()];
            plan.run(Part { voxels: x, region: *of }, region, &[], &mut on);
            on
        };
        let (tissue, share) = (smooth(tissue), smooth(share));
        let (sum, share) = (on(&self.linear, &tissue), on(&self.linear, &share));
        let cubic = self.cubic.as_ref().map(|c| on(c, &tissue));
        self.nearest.run(part, region, &[], out);
        for (i, o) in out.iter_mut().enumerate() {
            if is_padding(*o) || share[i] <= 0.0 {
                continue;
            }
            *o = match &cubic {
                Some(cubic) if share[i] >= 1.0 - 1e-6 => cubic[i],
                _ => sum[i] / share[i],
            };
        }
    }
}

/// The smallest box around both; an empty one does not count.
fn hull(a: Region, b: Region) -> Region {
    if a.is_empty() || b.is_empty() {
        return if a.is_empty() { b } else { a };
    }
    let start = a.start.zip(b.start).map(|(a, b)| a.min(b));
    let size = a.end().zip(b.end()).map(|(a, b)| a.max(b)).zip(start).map(|(e, s)| (e - s) as usize);
    Region { start, size: Zyx::new(size.z, size.y, size.x) }
}
