//! Slices along a line → the step between them, or what becomes of gaps and changing spacing. The spacing comes from positions, never from SliceThickness.

use voxmill_schemas::geometry::Lps;

use super::order::{Blend, Gaps, Slice};

/// Slices of one plane, one a position, in order.
pub struct Line<'a> {
    pub slices: &'a [Slice],
    /// Indices into `slices`, along the normal.
    pub order: &'a [usize],
    /// Of each slice.
    pub positions: &'a [Lps],
    /// Millimetres along the normal, in order.
    pub at: &'a [f64],
    pub spacing_mm: [f64; 2],
}

/// A regular row of planes, and what stands on them.
pub struct Run {
    /// From plane to plane.
    pub step: Lps,
    pub n_planes: usize,
    /// `gaps: keep`: mm of each slice from the first along `step`.
    pub z_positions_mm: Vec<f64>,
    /// `gaps: fill`: of what each plane is made.
    pub blends: Vec<Blend>,
}

impl Run {
    /// Planes that are the slices.
    pub fn of(step: Lps, n_planes: usize) -> Run {
        Run { step, n_planes, z_positions_mm: Vec::new(), blends: Vec::new() }
    }
}

/// More planes than a stack can have: slices that are a hair apart would ask for them.
const MAX_PLANES: f64 = 65_536.0;
const HELP: &str = "`gaps: fill` interpolates what is missing, `gaps: keep` leaves the slices where they lie for `resample`";

/// The planes that two slices or more lie on.
pub fn run(line: &Line, policy: Gaps, notes: &mut Vec<String>) -> Result<Run, String> {
    let n = line.order.len();
    let (first, last) = (line.positions[line.order[0]], line.positions[line.order[n - 1]]);
    let gaps: Vec<f64> = line.at.windows(2).map(|w| w[1] - w[0]).collect();
    let mut sorted = gaps.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[(sorted.len() - 1) / 2];
    // Regular: max |d − median| ≤ max(0.01 median, 0.01 mm).
    let tolerance = (0.01 * median).max(0.01);
    let odd: Vec<usize> = (0..gaps.len()).filter(|i| (gaps[*i] - median).abs() > tolerance).collect();
    if odd.is_empty() {
        straight(line, median, &|i| i as f64 / (n - 1) as f64)?;
        return Ok(Run::of((last - first).scale(1.0 / (n - 1) as f64), n));
    }
    let told = told(line, &gaps, &odd, median);
    if policy == Gaps::Refuse {
        return Err(format!("{told} ({HELP})"));
    }
    let z: Vec<f64> = line.at.iter().map(|a| a - line.at[0]).collect();
    let whole = z[n - 1];
    straight(line, median, &|i| z[i] / whole)?;
    // One millimetre along the normal, on the line that the slices lie on.
    let along = (last - first).scale(1.0 / whole);
    if policy == Gaps::Keep {
        notes.push(format!("{told}; kept where they lie"));
        let z_positions_mm = z.iter().map(|z| z * along.norm()).collect();
        return Ok(Run { step: along.scale(median), n_planes: n, z_positions_mm, blends: Vec::new() });
    }
    let (step_mm, blends) = fill(&z, median)?;
    let made: Vec<String> = blends.iter().enumerate().filter(|(_, b)| b.high_weight > 0.0).map(|(i, _)| (i + 1).to_string()).collect();
    let shown = made[..made.len().min(12)].join(", ");
    let more = if made.len() > 12 { ", …" } else { "" };
    notes.push(format!(
        "{told}; filled: {} of {} slices, {step_mm:.3} mm apart, are interpolated (number {shown}{more})",
        made.len(),
        blends.len()
    ));
    let beyond = whole - step_mm * (blends.len() - 1) as f64;
    if beyond > tolerance {
        notes.push(format!("the last slice lies {beyond:.3} mm beyond the last plane of the grid"));
    }
    Ok(Run { step: along.scale(step_mm), n_planes: blends.len(), z_positions_mm: Vec::new(), blends })
}

/// Every slice has to lie where the line from the first to the last says it lies.
/// - `share`: of the way, 0 for the first and 1 for the last slice
fn straight(line: &Line, median: f64, share: &dyn Fn(usize) -> f64) -> Result<(), String> {
    let n = line.order.len();
    let (first, last) = (line.positions[line.order[0]], line.positions[line.order[n - 1]]);
    let allowed = (0.05 * median).max(0.1 * line.spacing_mm[0].min(line.spacing_mm[1]));
    for (i, slice) in line.order.iter().enumerate() {
        let off = (line.positions[*slice] - (first + (last - first).scale(share(i)))).norm();
        if off > allowed {
            return Err(format!(
                "slices lie on no straight line: slice {} of {n} ({}) is {off:.3} mm off the line from the first to the last, where {allowed:.3} mm are allowed",
                i + 1,
                line.slices[*slice].name()
            ));
        }
    }
    Ok(())
}

/// The regular planes for slices at `z` (mm from the first, rising): steps of the median where slices are missing, of the smallest gap where spacing varies.
fn fill(z: &[f64], median: f64) -> Result<(f64, Vec<Blend>), String> {
    let last = z[z.len() - 1];
    let times: Vec<f64> = z.iter().map(|z| (z / median).round()).collect();
    let median_step = last / times[times.len() - 1].max(1.0);
    let is_missing = times.windows(2).all(|w| w[0] < w[1])
        && z.iter().zip(&times).all(|(z, k)| (z - k * median_step).abs() <= (0.02 * median).max(0.01));
    let smallest = || z.windows(2).map(|w| w[1] - w[0]).fold(f64::INFINITY, f64::min);
    let step = if is_missing { median_step } else { smallest() };
    let planes = (last / step + 0.01).floor() + 1.0;
    if !(planes <= MAX_PLANES) {
        return Err(format!(
            "slices {step:.4} mm apart over {last:.1} mm would fill {planes} planes, more than {MAX_PLANES}: `gaps: keep` leaves them where they lie"
        ));
    }
    let mut low = 0;
    let blend = |k: usize| {
        let at = k as f64 * step;
        while low + 2 < z.len() && z[low + 1] <= at {
            low += 1;
        }
        let near = (0.02 * step).max(1e-6);
        let weight = ((at - z[low]) / (z[low + 1] - z[low])).clamp(0.0, 1.0);
        if (at - z[low]).abs() <= near {
            Blend { low, high_weight: 0.0 }
        } else if (at - z[low + 1]).abs() <= near {
            Blend { low: low + 1, high_weight: 0.0 }
        } else {
            Blend { low, high_weight: weight }
        }
    };
    Ok((step, (0..planes as usize).map(blend).collect()))
}

fn told(line: &Line, gaps: &[f64], odd: &[usize], median: f64) -> String {
    let told: Vec<String> = odd.iter().take(4).map(|&i| told_gap(line, i, gaps[i], median)).collect();
    let more = if odd.len() > 4 { format!("; and {} more", odd.len() - 4) } else { String::new() };
    format!("{} slices lie on no regular grid: {median:.3} mm apart, but {}{more}", line.order.len(), told.join("; "))
}

fn told_gap(line: &Line, i: usize, gap: f64, median: f64) -> String {
    let name = |i: usize| line.slices[line.order[i]].name();
    let (at, times) = (line.at[i], (gap / median).round());
    let between =
        format!("{gap:.3} mm between slices {} and {} ({} at {at:.3} mm and {} at {:.3} mm)", i + 1, i + 2, name(i), name(i + 1), at + gap);
    if times >= 2.0 && (gap - times * median).abs() <= 0.1 * median {
        let missing: Vec<String> = (1..(times as usize).min(6)).map(|k| format!("{:.3}", at + k as f64 * median)).collect();
        let more = if times > 6.0 { ", …" } else { "" };
        return format!("{between}: {} missing at {}{more} mm", times as usize - 1, missing.join(", "));
    }
    between
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::order::{How, stack};
    use super::*;

    fn slices(zs: &[f64]) -> Vec<Slice> {
        let one = |(i, z): (usize, &f64)| Slice {
            position: Some([0.0, 0.5 * z, *z]),
            orientation: Some([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
            spacing_mm: Some([0.5, 0.5]),
            rows: 4,
            columns: 4,
            instance_number: Some(i as i64 + 1),
            ..Slice::default()
        };
        zs.iter().enumerate().map(one).collect()
    }

    fn with(gaps: Gaps) -> How {
        How { gaps, ..How::default() }
    }

    #[test]
    fn missing_slices_are_made_between_their_neighbours() {
        let got = stack(&slices(&[0.0, 2.0, 8.0, 10.0]), &with(Gaps::Fill)).unwrap();
        assert_eq!(got.geometry.size.z, 6);
        let share = |b: &Blend| b.low as f64 + b.high_weight;
        assert_eq!(got.blends.iter().map(share).map(|s| (s * 6.0).round()).collect::<Vec<_>>(), [0.0, 6.0, 8.0, 10.0, 12.0, 18.0]);
        assert!(got.notes[0].contains("2 of 6 slices, 2.000 mm apart, are interpolated (number 3, 4)"), "{:?}", got.notes);
        // The shear of the line stays.
        assert!((got.geometry.axes_mm.z - Lps([0.0, 1.0, 2.0])).norm() < 1e-12);
    }

    #[test]
    fn variable_spacing_is_filled_in_its_smallest_step() {
        let got = stack(&slices(&[0.0, 1.0, 2.0, 5.5, 9.0]), &with(Gaps::Fill)).unwrap();
        assert_eq!((got.geometry.size.z, got.geometry.axes_mm.z.0[2]), (10, 1.0));
        assert_eq!(got.blends[4], Blend { low: 2, high_weight: 2.0 / 3.5 });
        assert_eq!(got.blends[9], Blend { low: 4, high_weight: 0.0 });
    }

    #[test]
    fn kept_slices_have_positions_along_the_step() {
        let got = stack(&slices(&[0.0, 1.0, 8.0, 9.0]), &with(Gaps::Keep)).unwrap();
        let k = 1.25f64.sqrt();
        assert!(got.z_positions_mm.iter().zip([0.0, k, 8.0 * k, 9.0 * k]).all(|(a, b)| (a - b).abs() < 1e-9));
        assert_eq!(got.geometry.size.z, 4);
        assert!((got.geometry.axes_mm.z.norm() - k).abs() < 1e-9);
    }

    #[test]
    fn a_hair_between_two_slices_asks_for_no_million_planes() {
        let why = stack(&slices(&[0.0, 0.002, 500.0, 777.7]), &with(Gaps::Fill)).unwrap_err();
        assert!(why.contains("more than 65536"), "{why}");
    }
}
