//! Gaussian blur, axis by axis, with the integrated (`erf`) kernel of MONAI's `GaussianSmooth`.

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;

use super::plan::{Part, Voxel};

/// What the kernel meets beyond the edge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Edge {
    /// Zeros, and a kernel as it is cut: borders darken (MONAI `GaussianSmooth`).
    Zero,
    /// The edge repeated, and a kernel that sums to 1: a constant stays that constant.
    #[default]
    Repeat,
}

/// Blurs every channel with a standard deviation of `sigma` voxels an axis; 0 leaves that axis alone. The kernel ends at 4 standard deviations.
///
/// - values: `[c, z, y, x]`
pub fn gaussian(values: &[f32], size: Zyx<usize>, sigma: Zyx<f64>, edge: Edge) -> Vec<f32> {
    let (blur, voxels) = (Blur::new(size, sigma, edge), size.count().max(1));
    let mut out = vec![0.0f32; values.len()];
    for (values, out) in values.chunks_exact(voxels).zip(out.chunks_exact_mut(voxels)) {
        blur.run(Part::whole(values, size), Region::whole(size), out);
    }
    out
}

/// A blur as a plan: run for any region, with the bits that the whole has there.
#[derive(Clone, Debug)]
pub struct Blur {
    size: Zyx<usize>,
    kernels: Zyx<Vec<f64>>,
    edge: Edge,
}

impl Blur {
    /// Of an array of `size`, `sigma` voxels an axis.
    pub fn new(size: Zyx<usize>, sigma: Zyx<f64>, edge: Edge) -> Self {
        Self { size, kernels: sigma.map(|s| kernel(s, edge)), edge }
    }

    /// The voxels that a region reads: those within the reach of the kernel.
    pub fn needs(&self, region: Region) -> Region {
        let axis = |start: i64, n: usize, all: usize, kernel: &[f64]| {
            let tail = (kernel.len() / 2) as i64;
            let (low, high) = ((start - tail).max(0), (start + n as i64 + tail).min(all as i64));
            (low, (high - low).max(0) as usize)
        };
        let z = axis(region.start.z, region.size.z, self.size.z, &self.kernels.z);
        let y = axis(region.start.y, region.size.y, self.size.y, &self.kernels.y);
        let x = axis(region.start.x, region.size.x, self.size.x, &self.kernels.x);
        Region { start: Zyx::new(z.0, y.0, x.0), size: Zyx::new(z.1, y.1, x.1) }
    }

    /// A region of the blurred array.
    ///
    /// - part: a box of the array that covers `needs(region)`
    /// - out: `[z, y, x]` of `region`
    pub fn run<T: Voxel>(&self, part: Part<T>, region: Region, out: &mut [f32]) {
        let needs = self.needs(region);
        assert!(region.is_empty() || part.region.contains(&needs), "the part {:?} does not hold {needs:?}", part.region);
        let (size, edge, plane) = (self.size, self.edge, region.size.y * region.size.x);
        let (first, low) = (region.start.map(|s| s as usize), needs.start.map(|s| s as usize));
        // Rows of one plane blurred along z, then along y: all that is needed of it.
        let n = needs.size;
        out.par_chunks_mut(plane.max(1)).enumerate().for_each_init(
            || (vec![0.0f64; n.y * n.x], vec![0.0f64; n.x]),
            |(sheet, line), (z, out)| {
                sheet.fill(0.0);
                for (w, z) in reach(&self.kernels.z, first.z + z, size.z, edge) {
                    for (y, row) in sheet.chunks_exact_mut(n.x).enumerate() {
                        let voxels = &part.voxels[part.at(Zyx::new(z, low.y + y, low.x))..][..n.x];
                        row.iter_mut().zip(voxels).for_each(|(a, v)| *a += w * v.wide());
                    }
                }
                for (y, row) in out.chunks_exact_mut(region.size.x).enumerate() {
                    line.fill(0.0);
                    for (w, y) in reach(&self.kernels.y, first.y + y, size.y, edge) {
                        line.iter_mut().zip(&sheet[(y - low.y) * n.x..]).for_each(|(b, a)| *b += w * a);
                    }
                    for (x, o) in row.iter_mut().enumerate() {
                        *o = reach(&self.kernels.x, first.x + x, size.x, edge).map(|(w, x)| w * line[x - low.x]).sum::<f64>() as f32;
                    }
                }
            },
        );
    }
}

/// The kernel's weights at an index, with the index each falls on.
fn reach(kernel: &[f64], at: usize, n: usize, edge: Edge) -> impl Iterator<Item = (f64, usize)> {
    let tail = (kernel.len() / 2) as i64;
    kernel.iter().enumerate().filter_map(move |(k, w)| {
        let i = at as i64 + k as i64 - tail;
        match edge {
            Edge::Zero => (0..n as i64).contains(&i).then_some((*w, i as usize)),
            Edge::Repeat => Some((*w, i.clamp(0, n as i64 - 1) as usize)),
        }
    })
}

/// Half the difference of erf at the borders of each voxel, to int(max(4σ, ½) + ½) voxels on either side.
fn kernel(sigma: f64, edge: Edge) -> Vec<f64> {
    if !(sigma > 0.0) {
        return vec![1.0];
    }
    let tail = ((4.0 * sigma).max(0.5) + 0.5).floor() as i64;
    let t = std::f64::consts::FRAC_1_SQRT_2 / sigma;
    let mut k: Vec<f64> = (-tail..=tail).map(|i| (0.5 * (erf(t * (i as f64 + 0.5)) - erf(t * (i as f64 - 0.5)))).max(0.0)).collect();
    if edge == Edge::Repeat {
        let sum: f64 = k.iter().sum();
        k.iter_mut().for_each(|w| *w /= sum);
    }
    k
}

/// Error function by the series 2/√π·exp(−x²)·Σ 2ⁿx²ⁿ⁺¹/(2n + 1)!!, whose terms are all of one sign (Abramowitz and Stegun 7.1.6). Good to 1e-15.
pub fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..300 {
        term *= 2.0 * x * x / (2 * n + 1) as f64;
        sum += term;
        if term.abs() < 1e-17 * sum.abs() {
            break;
        }
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_that_of_the_tables() {
        for (x, y) in
            [(0.0, 0.0), (0.5, 0.5204998778130465), (1.0, 0.8427007929497149), (2.5, 0.999593047982555), (-4.0, -0.9999999845827421)]
        {
            assert!((erf(x) - y).abs() < 1e-14, "erf({x}) = {}", erf(x));
        }
    }

    #[test]
    fn a_constant_stays_constant_when_the_edge_repeats_and_darkens_when_not() {
        let size = Zyx::new(4, 5, 6);
        let flat = vec![7.0f32; 2 * size.count()];
        assert!(gaussian(&flat, size, Zyx::new(1.0, 0.5, 2.0), Edge::Repeat).iter().all(|v| (v - 7.0).abs() < 1e-5));
        assert!(gaussian(&flat, size, Zyx::splat(1.0), Edge::Zero)[0] < 3.0);
        assert_eq!(gaussian(&flat, size, Zyx::splat(0.0), Edge::Zero), flat);
    }
}
