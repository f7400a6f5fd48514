//! DICOM plane attributes → [`Geometry`] (PS3.3 C.7.6.2.1.1). The patient frame stays LPS as it is written: nothing is flipped here.

use voxmill_schemas::geometry::{Geometry, Lps, Zyx};

/// How far from unit length and right angles the written cosines may be: files round them to three or four digits.
const COSINE_TOLERANCE: f64 = 1e-3;

/// The directions of an image plane, unit length and at right angles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plane {
    /// Where the column index grows: array axis x.
    pub x: Lps,
    /// Where the row index grows: array axis y.
    pub y: Lps,
    /// `x × y`: slices are sorted along it.
    pub normal: Lps,
}

/// ImageOrientationPatient → directions. Rounding is repaired; more than that is refused, in words.
pub fn plane(orientation: [f64; 6]) -> Result<Plane, String> {
    let [a, b, c, d, e, f] = orientation;
    let (x, y) = (Lps([a, b, c]), Lps([d, e, f]));
    let off = [(x.norm() - 1.0).abs(), (y.norm() - 1.0).abs(), x.dot(y).abs()];
    // Written this way so that a value that is no number is refused as well.
    if !off.iter().all(|o| *o <= COSINE_TOLERANCE) {
        return Err(format!(
            "ImageOrientationPatient {orientation:?} are not two unit vectors at a right angle: lengths {:.4} and {:.4}, product {:.4}, where {COSINE_TOLERANCE} off is allowed",
            x.norm(),
            y.norm(),
            x.dot(y)
        ));
    }
    let x = x.scale(1.0 / x.norm());
    let y = y - x.scale(x.dot(y));
    let y = y.scale(1.0 / y.norm());
    Ok(Plane { x, y, normal: x.cross(y) })
}

/// A stack of equal planes. PixelSpacing is [between rows (y), between columns (x)] (PS3.3 10.7.1.3).
/// - `first`: ImagePositionPatient of slice 0; `step`: from one slice to the next, not perpendicular under gantry tilt
pub fn grid(size: Zyx<usize>, spacing_mm: [f64; 2], plane: &Plane, first: Lps, step: Lps) -> Geometry {
    Geometry { size, origin: first, axes_mm: Zyx::new(step, plane.y.scale(spacing_mm[0]), plane.x.scale(spacing_mm[1])) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rounded_cosines_are_repaired_and_wrong_ones_refused() {
        let p = plane([0.9998, 0.0175, 0.0, -0.0175, 0.9998, 0.0]).unwrap();
        assert!((p.x.norm() - 1.0).abs() < 1e-12 && p.x.dot(p.y).abs() < 1e-12);
        assert!(plane([1.0, 0.0, 0.0, 0.1, 1.0, 0.0]).is_err());
        assert!(plane([0.0; 6]).is_err());
        assert!(plane([f64::NAN, 0.0, 0.0, 0.0, 1.0, 0.0]).is_err());
    }

    #[test]
    fn pixel_spacing_is_rows_first() {
        let p = plane([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]).unwrap();
        let g = grid(Zyx::new(3, 4, 5), [2.0, 0.5], &p, Lps([1., 2., 3.]), Lps([0., 0., 4.]));
        assert_eq!(g.to_lps(Zyx::new(0., 1., 0.)), Lps([1., 4., 3.]));
        assert_eq!(g.to_lps(Zyx::new(0., 0., 1.)), Lps([1.5, 2., 3.]));
    }
}
