//! Slices → one stack on a regular grid, or a refusal that names slices and millimetres. Sorted along the normal of the plane, never by number,
//! name or SliceLocation; the spacing comes from positions, never from SliceThickness. Gantry tilt is kept as shear.

use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::{Geometry, Lps, Zyx};

use super::geometry::{Plane, grid, plane};
use super::header::Header;

/// What places one frame.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slice {
    pub position: Option<[f64; 3]>,
    pub orientation: Option<[f64; 6]>,
    pub spacing_mm: Option<[f64; 2]>,
    pub thickness_mm: Option<f64>,
    /// SpacingBetweenSlices.
    pub between_mm: Option<f64>,
    pub rows: usize,
    pub columns: usize,
    pub instance_number: Option<i64>,
    /// From 1, for frames of a multi-frame file.
    pub frame_number: Option<usize>,
}

/// A stack in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Stack {
    /// Indices into the slices, along the normal.
    pub order: Vec<usize>,
    pub geometry: Geometry,
    /// What a reader should know and the geometry carries on with.
    pub notes: Vec<String>,
}

/// What becomes of gaps between slices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Gaps {
    /// The case is quarantined; slices and millimetres are named.
    #[default]
    Refuse,
    /// Slices stay where they are, each with its position.
    Keep,
    /// A regular grid: the median step where slices are missing, the smallest one where spacing varies; what no file holds is interpolated.
    Fill,
}

/// Two slices closer than this lie at one position.
pub const SAME_POSITION_MM: f64 = 1e-3;
/// Directions this close are one (tolerance on each cosine).
pub const SAME_DIRECTION: f64 = 1e-3;
/// A step counts as tilted beyond this angle off the normal.
const TILT_DEGREES: f64 = 0.5;

impl Slice {
    pub fn of(h: &Header, frame: usize) -> Slice {
        let Some(f) = h.frames.get(frame) else { return Slice::default() };
        Slice {
            position: f.position,
            orientation: f.orientation,
            spacing_mm: f.spacing_mm,
            thickness_mm: f.thickness_mm,
            between_mm: f.between_mm,
            rows: h.rows as usize,
            columns: h.columns as usize,
            instance_number: h.instance_number,
            frame_number: (h.n_frames > 1).then_some(frame + 1),
        }
    }

    /// `InstanceNumber 4` or `frame 4`.
    fn name(&self) -> String {
        match (self.frame_number, self.instance_number) {
            (Some(f), _) => format!("frame {f}"),
            (None, Some(n)) => format!("InstanceNumber {n}"),
            (None, None) => "a slice without number".into(),
        }
    }
}

/// Puts slices in order.
/// - `keeps_single`: one slice alone becomes a volume of depth one, its step taken from SliceThickness (or SpacingBetweenSlices, or 1 mm with a note)
pub fn stack(slices: &[Slice], keeps_single: bool) -> Result<Stack, String> {
    let first = slices.first().ok_or("no slices")?;
    let (spacing_mm, plane) = common_plane(slices)?;
    let positions: Vec<Lps> = slices.iter().map(|s| Lps(s.position.expect("checked with the plane"))).collect();
    let along: Vec<f64> = positions.iter().map(|p| p.dot(plane.normal)).collect();
    let mut order: Vec<usize> = (0..slices.len()).collect();
    order.sort_by(|a, b| along[*a].total_cmp(&along[*b]).then(slices[*a].instance_number.cmp(&slices[*b].instance_number)));
    let size = Zyx::new(slices.len(), first.rows, first.columns);
    let mut notes = Vec::new();
    let step = if slices.len() == 1 {
        single_step(first, &plane, keeps_single, &mut notes)?
    } else {
        regular_step(slices, &order, &positions, &along, spacing_mm)?
    };
    let geometry = grid(size, spacing_mm, &plane, positions[order[0]], step);
    if geometry.is_degenerate() {
        return Err(format!("the axes {:?} of the grid do not span space", geometry.axes_mm));
    }
    let tilt = geometry.tilt_degrees();
    if tilt > TILT_DEGREES {
        notes.push(format!("gantry tilt of {tilt:.2} degrees, kept as shear"));
    }
    Ok(Stack { order, geometry, notes })
}

/// What all slices must share, or which of them do not.
fn common_plane(slices: &[Slice]) -> Result<([f64; 2], Plane), String> {
    let lacking = |what: &str, has: &dyn Fn(&Slice) -> bool| -> Result<(), String> {
        let without: Vec<&Slice> = slices.iter().filter(|s| !has(s)).collect();
        match without.first() {
            None => Ok(()),
            Some(s) => Err(format!(
                "{} of {} slices have no {what} (the first: {}): where they lie in the patient is not known",
                without.len(),
                slices.len(),
                s.name()
            )),
        }
    };
    lacking("ImagePositionPatient", &|s| s.position.is_some())?;
    lacking("ImageOrientationPatient", &|s| s.orientation.is_some())?;
    lacking("PixelSpacing", &|s| s.spacing_mm.is_some_and(|[a, b]| a > 0.0 && b > 0.0))?;
    let first = &slices[0];
    let orientation = first.orientation.expect("checked above");
    let spacing = first.spacing_mm.expect("checked above");
    for s in slices {
        let far = s.orientation.expect("checked above").iter().zip(&orientation).any(|(a, b)| (a - b).abs() > SAME_DIRECTION);
        if far {
            return Err(format!("{} and {} lie in planes of different orientation", first.name(), s.name()));
        }
        if (s.rows, s.columns) != (first.rows, first.columns) {
            return Err(format!("{} has {}×{} pixels, {} has {}×{}", first.name(), first.rows, first.columns, s.name(), s.rows, s.columns));
        }
        if !same_spacing(s.spacing_mm.expect("checked above"), spacing) {
            return Err(format!(
                "{} has pixels of {:?} mm, {} of {:?} mm",
                first.name(),
                spacing,
                s.name(),
                s.spacing_mm.unwrap_or_default()
            ));
        }
    }
    Ok((spacing, plane(orientation)?))
}

/// Pixel spacings that are one but for the way they were written.
pub fn same_spacing(a: [f64; 2], b: [f64; 2]) -> bool {
    a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-4 * a.abs().max(b.abs()))
}

fn single_step(slice: &Slice, plane: &Plane, keeps_single: bool, notes: &mut Vec<String>) -> Result<Lps, String> {
    if !keeps_single {
        return Err("one slice alone has no spacing between slices (`single_slice: keep` takes its thickness)".into());
    }
    let known = [("SliceThickness", slice.thickness_mm), ("SpacingBetweenSlices", slice.between_mm)];
    let (name, depth) = known.into_iter().find_map(|(n, v)| Some((n, v.filter(|v| *v > 0.0)?))).unwrap_or(("nothing", 1.0));
    notes.push(match name {
        "nothing" => "one slice: the file does not say how deep it is, 1 mm stands in".into(),
        _ => format!("one slice: its depth of {depth} mm is {name}"),
    });
    Ok(plane.normal.scale(depth))
}

/// The step from slice to slice, when there is one: max |d − median| ≤ max(0.01 median, 0.01 mm).
fn regular_step(slices: &[Slice], order: &[usize], positions: &[Lps], along: &[f64], spacing_mm: [f64; 2]) -> Result<Lps, String> {
    let at = |i: usize| along[order[i]];
    let name = |i: usize| slices[order[i]].name();
    let n = order.len();
    let gaps: Vec<f64> = (1..n).map(|i| at(i) - at(i - 1)).collect();
    let repeated: Vec<usize> = (0..gaps.len()).filter(|i| gaps[*i] <= SAME_POSITION_MM).collect();
    if let Some(&i) = repeated.first() {
        return Err(format!(
            "{} of {n} slices repeat a position and nothing tells the repeats apart: {} and {} both lie at {:.3} mm along the normal",
            repeated.len(),
            name(i),
            name(i + 1),
            at(i)
        ));
    }
    let mut sorted = gaps.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[(sorted.len() - 1) / 2];
    let tolerance = (0.01 * median).max(0.01);
    let odd: Vec<usize> = (0..gaps.len()).filter(|i| (gaps[*i] - median).abs() > tolerance).collect();
    if !odd.is_empty() {
        let told: Vec<String> = odd.iter().take(4).map(|&i| told_gap(i, gaps[i], median, at(i), &name(i), &name(i + 1))).collect();
        let more = if odd.len() > 4 { format!("; and {} more", odd.len() - 4) } else { String::new() };
        return Err(format!("{n} slices lie on no regular grid: {median:.3} mm apart, but {}{more}", told.join("; ")));
    }
    let (first, last) = (positions[order[0]], positions[order[n - 1]]);
    let step = (last - first).scale(1.0 / (n - 1) as f64);
    // Steps that are each regular may still bend: every slice has to lie where the grid will say it lies.
    let allowed = (0.05 * median).max(0.1 * spacing_mm[0].min(spacing_mm[1]));
    for (i, slice) in order.iter().enumerate() {
        let off = (positions[*slice] - (first + step.scale(i as f64))).norm();
        if off > allowed {
            return Err(format!(
                "slices lie on no straight line: slice {} of {n} ({}) is {off:.3} mm off the line from the first to the last, where {allowed:.3} mm are allowed",
                i + 1,
                name(i)
            ));
        }
    }
    Ok(step)
}

fn told_gap(i: usize, gap: f64, median: f64, at: f64, from: &str, to: &str) -> String {
    let times = (gap / median).round();
    let between = format!("{gap:.3} mm between slices {} and {} ({from} at {at:.3} mm and {to} at {:.3} mm)", i + 1, i + 2, at + gap);
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
    use super::*;

    fn slices(zs: &[f64]) -> Vec<Slice> {
        let one = |(i, z): (usize, &f64)| Slice {
            position: Some([0.0, 0.0, *z]),
            orientation: Some([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
            spacing_mm: Some([0.5, 0.5]),
            thickness_mm: Some(3.0),
            between_mm: None,
            rows: 4,
            columns: 4,
            instance_number: Some(i as i64 + 1),
            frame_number: None,
        };
        zs.iter().enumerate().map(one).collect()
    }

    #[test]
    fn slices_are_sorted_along_the_normal() {
        let s = stack(&slices(&[4.0, 0.0, 2.0]), false).unwrap();
        assert_eq!(s.order, [1, 2, 0]);
        assert_eq!(s.geometry.spacing_mm(), Zyx::new(2.0, 0.5, 0.5));
        assert_eq!(s.geometry.origin, Lps([0.0; 3]));
    }

    #[test]
    fn a_gap_is_refused_with_slices_and_millimetres() {
        let why = stack(&slices(&[0.0, 2.0, 4.0, 8.0, 10.0]), false).unwrap_err();
        assert_eq!(
            why,
            "5 slices lie on no regular grid: 2.000 mm apart, but 4.000 mm between slices 3 and 4 \
             (InstanceNumber 3 at 4.000 mm and InstanceNumber 4 at 8.000 mm): 1 missing at 6.000 mm"
        );
    }

    #[test]
    fn variable_spacing_is_refused_and_rounding_is_not() {
        assert!(stack(&slices(&[0.0, 1.08, 8.08, 9.16]), false).unwrap_err().contains("7.000 mm"));
        assert!(stack(&slices(&[0.0, 1.251, 2.499, 3.75, 5.0]), false).is_ok());
    }

    #[test]
    fn a_repeated_position_is_refused() {
        assert!(stack(&slices(&[0.0, 2.0, 2.0, 4.0]), false).unwrap_err().contains("InstanceNumber 2 and InstanceNumber 3"));
    }

    #[test]
    fn tilt_is_kept_as_shear() {
        let mut s = slices(&[0.0, 2.0, 4.0]);
        for (i, slice) in s.iter_mut().enumerate() {
            slice.position = Some([0.0, i as f64 * 2.0 * 14f64.to_radians().tan(), i as f64 * 2.0]);
        }
        let got = stack(&s, false).unwrap();
        assert!((got.geometry.tilt_degrees() - 14.0).abs() < 1e-9);
        assert_eq!(got.notes, ["gantry tilt of 14.00 degrees, kept as shear"]);
    }

    #[test]
    fn a_bent_stack_is_refused() {
        let mut s = slices(&[0.0, 2.0, 4.0, 6.0]);
        s[2].position = Some([0.0, 3.0, 4.0]);
        assert!(stack(&s, false).unwrap_err().contains("3.000 mm off the line"));
    }

    #[test]
    fn one_slice_needs_to_be_asked_for() {
        assert!(stack(&slices(&[5.0]), false).is_err());
        assert_eq!(stack(&slices(&[5.0]), true).unwrap().geometry.spacing_mm().z, 3.0);
    }

    #[test]
    fn missing_geometry_is_told_and_not_invented() {
        let mut s = slices(&[0.0, 2.0]);
        s[1].position = None;
        assert!(stack(&s, false).unwrap_err().starts_with("1 of 2 slices have no ImagePositionPatient (the first: InstanceNumber 2)"));
    }
}
