//! RT Structure Set (PS3.3 A.19): closed planar contours → voxels on the slices where they were really drawn. What is not drawn is counted.

use std::collections::BTreeMap;
use std::path::Path;

use dicom::dictionary_std::{tags, uids};
use voxmill_schemas::geometry::Lps;
use voxmill_schemas::tables::InstanceRow;

use super::fill::{Fill, Polygon, fill, nesting};
use super::place::Grid;
use super::view::{self, View};
use crate::error::Error;

/// Largest spread of a contour's points along the slice normal, mm.
const COPLANAR_MM: f64 = 0.1;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contour {
    pub points: Vec<Lps>,
    /// CLOSEDPLANAR_XOR: cuts out of what is around it, however others are filled.
    pub is_xor: bool,
    /// SOP instances (and frames) of the images it was drawn on, where the file says so.
    pub images: Vec<(String, u32)>,
}

/// A region of interest. `contours` are the closed ones; others are counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Roi {
    pub number: i64,
    pub name: String,
    pub frame_of_reference: Option<String>,
    pub contours: Vec<Contour>,
    /// ContourGeometricType → how many are not areas (`POINT`, `OPEN_PLANAR`) or not readable (`unreadable`).
    pub skipped: BTreeMap<String, usize>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct RtStruct {
    pub file: String,
    pub rois: Vec<Roi>,
    /// StructureSetDate and StructureSetTime.
    pub made: String,
}

/// What became of the contours of an ROI.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Drawn {
    pub contours: usize,
    /// Contour type or cause → how many were not drawn.
    pub skipped: BTreeMap<String, usize>,
    /// Drawn on the nearest slice although more than a tenth of the slice spacing away.
    pub between_slices: usize,
    /// Drawn on another slice than the image they name.
    pub wrong_references: usize,
    /// Slices on which a contour lies inside another one.
    pub nested_planes: usize,
    /// Slices on which contours overlap and neither lies inside the other.
    pub crossing_planes: usize,
}

/// `name`: what messages call the file.
pub fn read(path: &Path, name: &str) -> Result<RtStruct, Error> {
    of_data(view::open(path, name)?.data(), name)
}

/// A file of an index; refused when its bytes have changed since.
pub fn read_indexed(row: &InstanceRow) -> Result<RtStruct, Error> {
    of_data(view::open_row(row)?.data(), &row.file)
}

fn of_data(d: View, name: &str) -> Result<RtStruct, Error> {
    let file = name.to_string();
    if d.text(tags::SOP_CLASS_UID).as_deref() != Some(uids::RT_STRUCTURE_SET_STORAGE) {
        return Err(Error::Dicom { file, why: "it is no RT structure set".into() });
    }
    let mut rois: Vec<Roi> = d
        .items(tags::STRUCTURE_SET_ROI_SEQUENCE)
        .filter_map(|s| {
            let number = s.int(tags::ROI_NUMBER)?;
            let name = s.text(tags::ROI_NAME).unwrap_or_else(|| format!("ROI {number}"));
            Some(Roi { number, name, frame_of_reference: s.text(tags::REFERENCED_FRAME_OF_REFERENCE_UID), ..Roi::default() })
        })
        .collect();
    for drawn in d.items(tags::ROI_CONTOUR_SEQUENCE) {
        let Some(roi) = drawn.int(tags::REFERENCED_ROI_NUMBER).and_then(|n| rois.iter_mut().find(|r| r.number == n)) else {
            continue;
        };
        for c in drawn.items(tags::CONTOUR_SEQUENCE) {
            let kind = c.text(tags::CONTOUR_GEOMETRIC_TYPE).unwrap_or_else(|| "untyped".into());
            if !matches!(kind.as_str(), "CLOSED_PLANAR" | "CLOSEDPLANAR_XOR") {
                *roi.skipped.entry(kind).or_default() += 1;
                continue;
            }
            match contour(c, kind == "CLOSEDPLANAR_XOR") {
                Some(contour) => roi.contours.push(contour),
                None => *roi.skipped.entry("unreadable".into()).or_default() += 1,
            }
        }
    }
    let made = [tags::STRUCTURE_SET_DATE, tags::STRUCTURE_SET_TIME].map(|t| d.text(t).unwrap_or_default()).join(" ");
    Ok(RtStruct { file, rois, made })
}

/// `None` when the data are no triplets of finite numbers.
fn contour(c: View, is_xor: bool) -> Option<Contour> {
    let numbers = c.numbers(tags::CONTOUR_DATA)?;
    if numbers.is_empty() || numbers.len() % 3 != 0 || !numbers.iter().all(|v| v.is_finite() && v.abs() < 1e9) {
        return None;
    }
    let points = numbers.chunks_exact(3).map(|p| Lps([p[0], p[1], p[2]])).collect();
    let images = c.items(tags::CONTOUR_IMAGE_SEQUENCE).filter_map(|i| {
        let frame = i.int(tags::REFERENCED_FRAME_NUMBER).and_then(|n| u32::try_from(n).ok()).unwrap_or(1);
        Some((i.text(tags::REFERENCED_SOP_INSTANCE_UID)?, frame))
    });
    Some(Contour { points, is_xor, images: images.collect() })
}

/// Calls `put(voxel)` (C order index) for every voxel of the grid in the ROI.
pub fn draw(roi: &Roi, grid: &Grid, how: Fill, put: &mut dyn FnMut(usize)) -> Drawn {
    let mut drawn = Drawn { skipped: roi.skipped.clone(), ..Drawn::default() };
    let mut by_slice: BTreeMap<usize, [Vec<Polygon>; 2]> = BTreeMap::new();
    let (rows, columns) = (grid.geometry.size.y, grid.geometry.size.x);
    for c in &roi.contours {
        let mut skip = |why: &str| *drawn.skipped.entry(why.into()).or_default() += 1;
        let along: Vec<f64> = c.points.iter().map(|p| p.dot(grid.normal)).collect();
        let (low, high) = along.iter().fold((f64::MAX, f64::MIN), |(l, h), a| (l.min(*a), h.max(*a)));
        if high - low > COPLANAR_MM {
            skip("not in the plane of the slices");
            continue;
        }
        let (k, _) = grid.nearest(c.points[0]);
        let d = (low + high) / 2.0 - grid.along_mm[k];
        let gap = grid.gap_mm(k);
        // Half a gap, and no more than the slice is thick where slices are thinner than their distance.
        let reach = (0.5 * gap).min(grid.thickness_mm.filter(|t| *t > 0.0).unwrap_or(f64::MAX)) + 1e-3;
        if d.abs() > reach {
            skip(if k == 0 || k + 1 == grid.along_mm.len() { "beyond the first or last slice" } else { "between slices" });
            continue;
        }
        let plane = grid.plane(k);
        let polygon: Polygon = c.points.iter().map(|p| plane.pixel(*p)).collect();
        let bounds = |pick: fn(&(f64, f64)) -> f64| polygon.iter().map(pick).fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        let ((top, bottom), (left, right)) = (bounds(|p| p.0), bounds(|p| p.1));
        // A spacing near nothing puts points anywhere, even at no number.
        let is_far = polygon.iter().any(|p| !(p.0.abs() < 1e9 && p.1.abs() < 1e9));
        if is_far || bottom < -0.5 || right < -0.5 || top > rows as f64 - 0.5 || left > columns as f64 - 0.5 {
            skip("outside the image");
            continue;
        }
        drawn.contours += 1;
        drawn.between_slices += usize::from(d.abs() > 0.1 * gap);
        let named = c.images.iter().find_map(|i| grid.slice_of.get(i));
        drawn.wrong_references += usize::from(named.is_some_and(|n| *n != k));
        by_slice.entry(k).or_default()[usize::from(c.is_xor || how == Fill::Xor)].push(polygon);
    }
    for (k, [united, cutting]) in by_slice {
        let mut mask = vec![false; rows * columns];
        for (polygons, how) in [(&united, Fill::Union), (&cutting, Fill::Xor)].into_iter().filter(|(p, _)| !p.is_empty()) {
            mask.iter_mut().zip(fill(polygons, rows, columns, how)).for_each(|(m, v)| *m |= v);
        }
        mask.into_iter().enumerate().filter(|(_, v)| *v).for_each(|(i, _)| put(k * rows * columns + i));
        let nesting = nesting(&[united, cutting].concat(), rows, columns);
        drawn.nested_planes += usize::from(nesting.is_nested);
        drawn.crossing_planes += usize::from(nesting.is_crossing);
    }
    drawn
}

#[cfg(test)]
mod tests {
    use voxmill_schemas::geometry::{Geometry, Zyx};

    use super::*;

    fn square(z: f64, low: f64, high: f64) -> Contour {
        let p = |x: f64, y: f64| Lps([x, y, z]);
        Contour { points: vec![p(low, low), p(high, low), p(high, high), p(low, high)], ..Contour::default() }
    }

    fn drawn(contours: Vec<Contour>) -> (Vec<usize>, Drawn) {
        // Slices at 0, 3 and 6 mm, pixels of 1 mm.
        let grid = Grid::of(&Geometry::axis_aligned(Zyx::new(3, 8, 8), Zyx::new(3.0, 1.0, 1.0)));
        let mut slices = vec![0; 3];
        let d = draw(&Roi { contours, ..Roi::default() }, &grid, Fill::Xor, &mut |v| slices[v / 64] += 1);
        (slices, d)
    }

    #[test]
    fn contours_go_to_the_slice_they_lie_on() {
        let (slices, d) = drawn(vec![square(0.0, 1.0, 3.0), square(6.2, 2.0, 3.0)]);
        assert_eq!(slices, [9, 0, 4]);
        assert_eq!((d.contours, d.between_slices), (2, 0));
    }

    #[test]
    fn what_is_not_drawn_is_counted_by_cause() {
        let mut tilted = square(3.0, 1.0, 3.0);
        tilted.points[0].0[2] += 0.5;
        let (slices, d) = drawn(vec![tilted, square(3.9, 1.0, 2.0), square(9.0, 1.0, 2.0), square(0.0, 20.0, 30.0)]);
        assert_eq!(slices, [0, 4, 0]);
        assert_eq!((d.contours, d.between_slices), (1, 1));
        assert_eq!(d.skipped.len(), 3);
    }

    #[test]
    fn a_contour_inside_another_cuts_a_hole() {
        let (slices, d) = drawn(vec![square(3.0, 0.0, 6.0), square(3.0, 2.0, 4.0)]);
        assert_eq!((d.nested_planes, d.crossing_planes), (1, 0));
        // Pixels on a contour belong to it, so that of three by three only the middle is cut.
        assert_eq!(slices[1], 49 - 1);
    }
}
