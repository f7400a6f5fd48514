//! Slices → one stack on a regular grid, or a refusal that names slices and millimetres. Sorted along the normal of the plane, never by number,
//! name or SliceLocation; the spacing comes from positions, never from SliceThickness. Gantry tilt is kept as shear.

use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::{Geometry, Lps, Zyx};

use super::gaps::{self, Line, Run};
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
    /// InStackPositionNumber.
    pub in_stack: Option<i64>,
    /// ImagerPixelSpacing.
    pub imager_spacing_mm: Option<[f64; 2]>,
    /// From 1, for frames of a multi-frame file.
    pub frame_number: Option<usize>,
}

/// A stack in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Stack {
    /// Indices into the slices, along the normal; of slices at one position the one with the lowest number.
    pub order: Vec<usize>,
    /// Slices at one position: the one in `order` and the other, which has to be the same picture.
    pub duplicates: Vec<(usize, usize)>,
    pub geometry: Geometry,
    /// `gaps: keep`: where each slice stands, mm from the first along `axes_mm.z`. Empty on a regular grid.
    pub z_positions_mm: Vec<f64>,
    /// `gaps: fill`: of what each plane of the grid is made. Empty where it is its slice.
    pub blends: Vec<Blend>,
    /// Why the place in the patient is not known and made up.
    pub unknown_geometry: Option<String>,
    /// What a reader should know and the geometry carries on with.
    pub notes: Vec<String>,
}

/// A plane of a grid from the slices in order: `low`, mixed with the one after it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Blend {
    pub low: usize,
    /// Share of slice `low + 1`; 0: the plane is slice `low`.
    pub high_weight: f64,
}

/// What is done with slices that are not one regular grid.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct How {
    /// One slice alone becomes a volume of depth one, its step taken from SliceThickness (or SpacingBetweenSlices, or 1 mm with a note).
    pub keeps_single: bool,
    pub gaps: Gaps,
    /// Slices without a place become a volume in the order of their numbers, on a grid that says nothing of the patient.
    pub takes_unplaced: bool,
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
/// What to do about slices that do not say where they lie.
const UNKNOWN_HELP: &str = "`geometry: unknown` takes slices by their numbers, on a grid that says nothing of the patient";

impl Slice {
    pub fn of(h: &Header, frame: usize) -> Slice {
        let Some(f) = h.frames.get(frame) else { return Slice::default() };
        let [rows, columns] = h.slice_size();
        Slice {
            position: f.position,
            orientation: f.orientation,
            spacing_mm: f.spacing_mm,
            thickness_mm: f.thickness_mm,
            between_mm: f.between_mm,
            rows: rows as usize,
            columns: columns as usize,
            instance_number: h.instance_number,
            in_stack: f.in_stack,
            imager_spacing_mm: h.imager_spacing_mm,
            frame_number: (h.n_frames > 1 || h.frames.len() > 1).then_some(frame + 1),
        }
    }

    /// `InstanceNumber 4` or `frame 4`.
    pub fn name(&self) -> String {
        match (self.frame_number, self.instance_number) {
            (Some(f), _) => format!("frame {f}"),
            (None, Some(n)) => format!("InstanceNumber {n}"),
            (None, None) => "a slice without number".into(),
        }
    }
}

/// `1 slice`, `2 slices`.
pub fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// What to do about a loop.
pub const LOOP_HELP: &str = "`geometry: unknown` makes a time axis of them";

/// What a loop is.
pub fn told_loop(n_frames: u32) -> String {
    format!("{} without a position each: a loop or projections run over time, not over depth", count(n_frames as usize, "frame"))
}

/// Puts slices in order.
pub fn stack(slices: &[Slice], how: &How) -> Result<Stack, String> {
    match common_plane(slices) {
        Ok((spacing_mm, plane)) => placed(slices, spacing_mm, &plane, how),
        Err(NoPlane::Unplaced(why)) if how.takes_unplaced => unplaced(slices, why),
        Err(NoPlane::Unplaced(why)) => Err(format!("{why} ({UNKNOWN_HELP})")),
        Err(NoPlane::Mixed(why)) => Err(why),
    }
}

fn placed(slices: &[Slice], spacing_mm: [f64; 2], plane: &Plane, how: &How) -> Result<Stack, String> {
    let positions: Vec<Lps> = slices.iter().map(|s| Lps(s.position.expect("checked with the plane"))).collect();
    let (order, duplicates) = along(slices, &positions, plane);
    let at: Vec<f64> = order.iter().map(|i| positions[*i].dot(plane.normal)).collect();
    let mut notes = in_stack_note(slices, &order);
    let run = match order.len() {
        1 => Run::of(single_step(&slices[order[0]], plane, how.keeps_single, &mut notes)?, 1),
        _ => gaps::run(&Line { slices, order: &order, positions: &positions, at: &at, spacing_mm }, how.gaps, &mut notes)?,
    };
    let size = Zyx::new(run.n_planes, slices[0].rows, slices[0].columns);
    let geometry = grid(size, spacing_mm, plane, positions[order[0]], run.step);
    if geometry.is_degenerate() {
        return Err(format!("the axes {:?} of the grid do not span space", geometry.axes_mm));
    }
    let tilt = geometry.tilt_degrees();
    if tilt > TILT_DEGREES {
        notes.push(format!("gantry tilt of {tilt:.2} degrees, kept as shear (`resample` straightens it)"));
    }
    Ok(Stack { order, duplicates, geometry, z_positions_mm: run.z_positions_mm, blends: run.blends, unknown_geometry: None, notes })
}

/// Slices along the normal, one a position, and those that are there again.
fn along(slices: &[Slice], positions: &[Lps], plane: &Plane) -> (Vec<usize>, Vec<(usize, usize)>) {
    let along: Vec<f64> = positions.iter().map(|p| p.dot(plane.normal)).collect();
    let at = |i: usize| along[i];
    let mut sorted: Vec<usize> = (0..slices.len()).collect();
    sorted.sort_by(|a, b| at(*a).total_cmp(&at(*b)).then(a.cmp(b)));
    let (mut order, mut duplicates) = (Vec::with_capacity(sorted.len()), Vec::new());
    for here in sorted.chunk_by(|a, b| at(*b) - at(*a) <= SAME_POSITION_MM) {
        let first = *here.iter().min_by_key(|i| (slices[**i].instance_number.unwrap_or(i64::MAX), **i)).expect("a chunk holds a slice");
        order.push(first);
        duplicates.extend(here.iter().filter(|i| **i != first).map(|i| (first, *i)));
    }
    (order, duplicates)
}

/// First and last position along the normal; `None` where a slice has no place.
pub fn ends(slices: &[Slice]) -> Option<[[f64; 3]; 2]> {
    let normal = plane(slices.first()?.orientation?).ok()?.normal;
    let positions: Vec<[f64; 3]> = slices.iter().map(|s| s.position).collect::<Option<_>>()?;
    let by = |a: &&[f64; 3], b: &&[f64; 3]| Lps(**a).dot(normal).total_cmp(&Lps(**b).dot(normal));
    Some([*positions.iter().min_by(by)?, *positions.iter().max_by(by)?])
}

/// A multi-frame file may number its places in another order than they lie in.
fn in_stack_note(slices: &[Slice], order: &[usize]) -> Vec<String> {
    let numbers: Option<Vec<i64>> = order.iter().map(|i| slices[*i].in_stack).collect();
    let Some(numbers) = numbers else { return Vec::new() };
    if numbers.windows(2).all(|w| w[0] < w[1]) || numbers.windows(2).all(|w| w[0] > w[1]) {
        return Vec::new();
    }
    vec!["InStackPositionNumber runs in another order than the positions, which are followed".into()]
}

/// Why slices have no plane in common.
enum NoPlane {
    /// They do not say where they lie.
    Unplaced(String),
    /// They lie in different ones.
    Mixed(String),
}

/// What all slices must share, or which of them do not.
fn common_plane(slices: &[Slice]) -> Result<([f64; 2], Plane), NoPlane> {
    let first = slices.first().ok_or(NoPlane::Mixed("no slices".into()))?;
    same_size(slices).map_err(NoPlane::Mixed)?;
    let lacking = |what: &str, has: &dyn Fn(&Slice) -> bool| -> Result<(), NoPlane> {
        let without: Vec<&Slice> = slices.iter().filter(|s| !has(s)).collect();
        match without.iter().min_by_key(|s| (s.frame_number, s.instance_number)) {
            None => Ok(()),
            Some(_) if slices.len() == 1 => Err(NoPlane::Unplaced(format!("no {what}: where it lies in the patient is not known"))),
            Some(s) => Err(NoPlane::Unplaced(format!(
                "{} of {} slices without {what} (the first: {}): where they lie in the patient is not known",
                without.len(),
                slices.len(),
                s.name()
            ))),
        }
    };
    lacking("ImagePositionPatient", &|s| s.position.is_some_and(|p| p.iter().all(|v| v.is_finite())))?;
    lacking("ImageOrientationPatient", &|s| s.orientation.is_some())?;
    lacking("PixelSpacing", &|s| s.spacing_mm.is_some_and(|[a, b]| a > 0.0 && b > 0.0))?;
    let orientation = first.orientation.expect("checked above");
    let spacing = first.spacing_mm.expect("checked above");
    for s in slices {
        let far = s.orientation.expect("checked above").iter().zip(&orientation).any(|(a, b)| (a - b).abs() > SAME_DIRECTION);
        if far {
            return Err(NoPlane::Mixed(format!("{} and {} lie in planes of different orientation", first.name(), s.name())));
        }
        if !same_spacing(s.spacing_mm.expect("checked above"), spacing) {
            return Err(NoPlane::Mixed(format!(
                "{} has pixels of {:?} mm, {} of {:?} mm",
                first.name(),
                spacing,
                s.name(),
                s.spacing_mm.unwrap_or_default()
            )));
        }
    }
    Ok((spacing, plane(orientation).map_err(NoPlane::Unplaced)?))
}

fn same_size(slices: &[Slice]) -> Result<(), String> {
    let first = &slices[0];
    match slices.iter().find(|s| (s.rows, s.columns) != (first.rows, first.columns)) {
        None => Ok(()),
        Some(s) => Err(format!("{} has {}×{} pixels, {} has {}×{}", first.name(), first.rows, first.columns, s.name(), s.rows, s.columns)),
    }
}

/// Pixel spacings that are one but for the way they were written.
pub fn same_spacing(a: [f64; 2], b: [f64; 2]) -> bool {
    a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-4 * a.abs().max(b.abs()))
}

/// Slices in the order of their numbers, at the origin, along the axes: nothing of the patient, and it says so.
fn unplaced(slices: &[Slice], why: String) -> Result<Stack, String> {
    let first = &slices[0];
    let positive = |v: &[f64; 2]| v.iter().all(|s| *s > 0.0);
    let (spacing, from) = match (first.spacing_mm.filter(positive), first.imager_spacing_mm.filter(positive)) {
        (Some(s), _) => (s, "pixels as large as PixelSpacing says"),
        (None, Some(s)) => (s, "pixels as large as at the detector (ImagerPixelSpacing), not in the patient"),
        (None, None) => ([1.0; 2], "pixels of 1 mm, since nothing says how large they are"),
    };
    let depth = [first.between_mm, first.thickness_mm].into_iter().flatten().find(|v| *v > 0.0).unwrap_or(1.0);
    let mut order: Vec<usize> = (0..slices.len()).collect();
    order.sort_by_key(|i| (slices[*i].instance_number.unwrap_or(i64::MAX), *i));
    let size = Zyx::new(slices.len(), first.rows, first.columns);
    let geometry = Geometry::axis_aligned(size, Zyx::new(depth, spacing[0], spacing[1]));
    let told = format!("{why}; {from}");
    let notes = vec![format!("unknown geometry: {told}")];
    Ok(Stack {
        order,
        duplicates: Vec::new(),
        geometry,
        z_positions_mm: Vec::new(),
        blends: Vec::new(),
        unknown_geometry: Some(told),
        notes,
    })
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
            rows: 4,
            columns: 4,
            instance_number: Some(i as i64 + 1),
            ..Slice::default()
        };
        zs.iter().enumerate().map(one).collect()
    }

    #[test]
    fn slices_are_sorted_along_the_normal() {
        let s = stack(&slices(&[4.0, 0.0, 2.0]), &How::default()).unwrap();
        assert_eq!(s.order, [1, 2, 0]);
        assert_eq!(s.geometry.spacing_mm(), Zyx::new(2.0, 0.5, 0.5));
        assert_eq!(s.geometry.origin, Lps([0.0; 3]));
    }

    #[test]
    fn a_gap_is_refused_with_slices_and_millimetres() {
        let why = stack(&slices(&[0.0, 2.0, 4.0, 8.0, 10.0]), &How::default()).unwrap_err();
        assert_eq!(
            why,
            "5 slices lie on no regular grid: 2.000 mm apart, but 4.000 mm between slices 3 and 4 \
             (InstanceNumber 3 at 4.000 mm and InstanceNumber 4 at 8.000 mm): 1 missing at 6.000 mm \
             (`gaps: fill` interpolates what is missing, `gaps: keep` leaves the slices where they lie for `resample`)"
        );
    }

    #[test]
    fn variable_spacing_is_refused_and_rounding_is_not() {
        assert!(stack(&slices(&[0.0, 1.08, 8.08, 9.16]), &How::default()).unwrap_err().contains("7.000 mm"));
        assert!(stack(&slices(&[0.0, 1.251, 2.499, 3.75, 5.0]), &How::default()).is_ok());
    }

    #[test]
    fn of_slices_at_one_position_the_lowest_number_stays() {
        let mut s = slices(&[0.0, 2.0, 2.0, 4.0]);
        s[1].instance_number = Some(9);
        let got = stack(&s, &How::default()).unwrap();
        assert_eq!((got.order, got.duplicates), (vec![0, 2, 3], vec![(2, 1)]));
    }

    #[test]
    fn the_first_two_positions_may_be_one_under_tilt() {
        let mut s = slices(&[0.0, 0.0, 2.0, 4.0]);
        s.iter_mut().for_each(|s| s.position = s.position.map(|[x, _, z]| [x, 0.25 * z, z]));
        let got = stack(&s, &How::default()).unwrap();
        assert!((got.geometry.tilt_degrees() - 0.25f64.atan().to_degrees()).abs() < 1e-9);
    }

    #[test]
    fn negated_cosines_and_decubitus_keep_their_place() {
        let mut s = slices(&[0.0, -2.0, -4.0]);
        s.iter_mut().for_each(|s| s.orientation = Some([1.0, 0.0, 0.0, 0.0, -1.0, 0.0]));
        let g = stack(&s, &How::default()).unwrap().geometry;
        assert_eq!((g.origin, g.axes_mm.y, g.axes_mm.z), (Lps([0.0; 3]), Lps([0.0, -0.5, 0.0]), Lps([0.0, 0.0, -2.0])));
        s.iter_mut().for_each(|s| s.orientation = Some([0.0, -1.0, 0.0, 1.0, 0.0, 0.0]));
        let g = stack(&s, &How::default()).unwrap().geometry;
        assert_eq!((g.origin, g.axes_mm.x, g.axes_mm.z), (Lps([0.0, 0.0, -4.0]), Lps([0.0, -0.5, 0.0]), Lps([0.0, 0.0, 2.0])));
    }

    #[test]
    fn contradicting_numbers_of_places_are_told_and_not_followed() {
        let mut s = slices(&[0.0, 2.0, 4.0]);
        s.iter_mut().zip([3, 2, 1]).for_each(|(s, n)| s.in_stack = Some(n));
        assert!(stack(&s, &How::default()).unwrap().notes.is_empty());
        s.iter_mut().zip([1, 3, 2]).for_each(|(s, n)| s.in_stack = Some(n));
        let got = stack(&s, &How::default()).unwrap();
        assert_eq!(got.order, [0, 1, 2]);
        assert!(got.notes[0].starts_with("InStackPositionNumber"));
    }

    #[test]
    fn tilt_is_kept_as_shear() {
        let mut s = slices(&[0.0, 2.0, 4.0]);
        for (i, slice) in s.iter_mut().enumerate() {
            slice.position = Some([0.0, i as f64 * 2.0 * 14f64.to_radians().tan(), i as f64 * 2.0]);
        }
        let got = stack(&s, &How::default()).unwrap();
        assert!((got.geometry.tilt_degrees() - 14.0).abs() < 1e-9);
        assert_eq!(got.notes, ["gantry tilt of 14.00 degrees, kept as shear (`resample` straightens it)"]);
    }

    #[test]
    fn a_bent_stack_is_refused() {
        let mut s = slices(&[0.0, 2.0, 4.0, 6.0]);
        s[2].position = Some([0.0, 3.0, 4.0]);
        assert!(stack(&s, &How::default()).unwrap_err().contains("3.000 mm off the line"));
    }

    #[test]
    fn one_slice_needs_to_be_asked_for() {
        assert!(stack(&slices(&[5.0]), &How::default()).is_err());
        assert_eq!(stack(&slices(&[5.0]), &How { keeps_single: true, ..How::default() }).unwrap().geometry.spacing_mm().z, 3.0);
    }

    #[test]
    fn missing_geometry_is_told_and_not_invented() {
        let mut s = slices(&[0.0, 2.0]);
        s[1].position = None;
        let why = stack(&s, &How::default()).unwrap_err();
        assert!(
            why.starts_with("1 of 2 slices without ImagePositionPatient (the first: InstanceNumber 2)")
                && why.contains("geometry: unknown")
        );
        let how = How { takes_unplaced: true, ..How::default() };
        s.iter_mut().for_each(|s| s.position = None);
        s.swap(0, 1);
        let got = stack(&s, &how).unwrap();
        assert_eq!(got.order, [1, 0]);
        assert_eq!(got.geometry, Geometry::axis_aligned(Zyx::new(2, 4, 4), Zyx::new(3.0, 0.5, 0.5)));
        assert!(got.unknown_geometry.unwrap().contains("not known; pixels as large as PixelSpacing says"));
        s.iter_mut().for_each(|s| (s.spacing_mm, s.imager_spacing_mm) = (None, Some([0.14, 0.2])));
        let got = stack(&s, &how).unwrap();
        assert_eq!(got.geometry.spacing_mm().x, 0.2);
        assert!(got.unknown_geometry.unwrap().contains("at the detector"));
    }
}
