//! Where voxels lie in the patient. Array order is [`Zyx`] (slowest axis first), patient space is [`Lps`]
//! (DICOM: x to the left, y to the back, z to the head, millimetres, PS3.3 C.7.6.2.1.1). The two never share a bare `[f64; 3]`.

use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::region::Region;

/// Three values, one for each array axis, slowest axis first. Written `{ z: …, y: …, x: … }`, or as one number that stands for all three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize)]
pub struct Zyx<T> {
    pub z: T,
    pub y: T,
    pub x: T,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Axes<T> {
    z: T,
    y: T,
    x: T,
}

/// By hand, because an untagged enum would only say that nothing matched.
impl<'de, T: Deserialize<'de> + Clone> Deserialize<'de> for Zyx<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Clone> Visitor<'de> for Either<T> {
            type Value = Zyx<T>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("{ z, y, x }, or one number for all three")
            }
            fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Zyx<T>, E> {
                T::deserialize(v.into_deserializer()).map(all)
            }
            fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<Zyx<T>, E> {
                T::deserialize(v.into_deserializer()).map(all)
            }
            fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Zyx<T>, E> {
                T::deserialize(v.into_deserializer()).map(all)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Zyx<T>, A::Error> {
                let Axes { z, y, x } = Axes::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Zyx { z, y, x })
            }
        }
        fn all<T: Clone>(v: T) -> Zyx<T> {
            Zyx { z: v.clone(), y: v.clone(), x: v }
        }
        d.deserialize_any(Either(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for Zyx<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Zyx_of_{}", T::schema_name()).into()
    }
    fn json_schema(g: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [T::json_schema(g), Axes::<T>::json_schema(g)] })
    }
}

impl<T> Zyx<T> {
    pub const fn new(z: T, y: T, x: T) -> Self {
        Self { z, y, x }
    }
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> Zyx<U> {
        Zyx { z: f(self.z), y: f(self.y), x: f(self.x) }
    }
    pub fn zip<U>(self, other: Zyx<U>) -> Zyx<(T, U)> {
        Zyx { z: (self.z, other.z), y: (self.y, other.y), x: (self.x, other.x) }
    }
    /// `[z, y, x]`.
    pub fn to_array(self) -> [T; 3] {
        [self.z, self.y, self.x]
    }
    pub fn from_array([z, y, x]: [T; 3]) -> Self {
        Self { z, y, x }
    }
}

impl<T: Copy> Zyx<T> {
    pub const fn splat(v: T) -> Self {
        Self { z: v, y: v, x: v }
    }
}

impl Zyx<usize> {
    /// Number of voxels; `None` when it does not fit a `usize`.
    pub fn checked_count(self) -> Option<usize> {
        self.z.checked_mul(self.y)?.checked_mul(self.x)
    }
    /// Number of voxels of a size that is already known to fit in memory.
    pub fn count(self) -> usize {
        self.z * self.y * self.x
    }
}

impl<T: fmt::Display> fmt::Display for Zyx<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}×{}×{}", self.z, self.y, self.x)
    }
}

/// A point or a vector in patient space, millimetres.
#[derive(Clone, Copy, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Lps(pub [f64; 3]);

impl Lps {
    #[inline]
    pub fn dot(self, o: Lps) -> f64 {
        self.0[0] * o.0[0] + self.0[1] * o.0[1] + self.0[2] * o.0[2]
    }
    pub fn cross(self, o: Lps) -> Lps {
        let ([a, b, c], [d, e, f]) = (self.0, o.0);
        Lps([b * f - c * e, c * d - a * f, a * e - b * d])
    }
    pub fn norm(self) -> f64 {
        self.dot(self).sqrt()
    }
    pub fn scale(self, k: f64) -> Lps {
        Lps(self.0.map(|v| v * k))
    }
}
impl std::ops::Add for Lps {
    type Output = Lps;
    fn add(self, o: Lps) -> Lps {
        Lps([self.0[0] + o.0[0], self.0[1] + o.0[1], self.0[2] + o.0[2]])
    }
}
impl std::ops::Sub for Lps {
    type Output = Lps;
    fn sub(self, o: Lps) -> Lps {
        self + o.scale(-1.0)
    }
}

/// A regular grid of voxel centres: the full affine from array index to patient millimetres, with spacing, direction and shear.
///
/// `to_lps(i) = origin + i.z * axes_mm.z + i.y * axes_mm.y + i.x * axes_mm.x`. Gantry tilt is shear: `axes_mm.z` need not be
/// perpendicular to the slice plane.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Geometry {
    pub size: Zyx<usize>,
    /// Centre of voxel (0, 0, 0).
    pub origin: Lps,
    /// The step in millimetres when the index on that axis grows by one.
    pub axes_mm: Zyx<Lps>,
}

impl Geometry {
    /// An axis-aligned grid at the patient origin.
    pub fn axis_aligned(size: Zyx<usize>, spacing_mm: Zyx<f64>) -> Self {
        Self {
            size,
            origin: Lps::default(),
            axes_mm: Zyx::new(Lps([0., 0., spacing_mm.z]), Lps([0., spacing_mm.y, 0.]), Lps([spacing_mm.x, 0., 0.])),
        }
    }

    pub fn to_lps(&self, i: Zyx<f64>) -> Lps {
        self.origin + self.axes_mm.z.scale(i.z) + self.axes_mm.y.scale(i.y) + self.axes_mm.x.scale(i.x)
    }

    /// The continuous index of a point (Cramer's rule). Not finite when the axes are degenerate: see [`Geometry::is_degenerate`].
    pub fn to_index(&self, p: Lps) -> Zyx<f64> {
        let (a, b, c, d) = (self.axes_mm.z, self.axes_mm.y, self.axes_mm.x, p - self.origin);
        let det = a.dot(b.cross(c));
        Zyx::new(d.dot(b.cross(c)) / det, a.dot(d.cross(c)) / det, a.dot(b.cross(d)) / det)
    }

    pub fn spacing_mm(&self) -> Zyx<f64> {
        self.axes_mm.map(Lps::norm)
    }

    /// True when the axes do not span space (or are not finite), so that no index belongs to a point.
    pub fn is_degenerate(&self) -> bool {
        let (a, b, c) = (self.axes_mm.z, self.axes_mm.y, self.axes_mm.x);
        let det = a.dot(b.cross(c));
        let spans_space = det.abs() > 1e-9 * a.norm() * b.norm() * c.norm();
        !spans_space || !self.origin.norm().is_finite()
    }

    /// Angle between the slice step and the slice normal, degrees; 0 without gantry tilt.
    pub fn tilt_degrees(&self) -> f64 {
        let n = self.axes_mm.x.cross(self.axes_mm.y);
        let z = self.axes_mm.z;
        (n.dot(z).abs() / (n.norm() * z.norm())).clamp(-1.0, 1.0).acos().to_degrees()
    }

    /// The same patient points on the part of the grid that `region` covers (it may stick out: padding).
    pub fn crop(&self, region: Region) -> Geometry {
        Geometry { size: region.size, origin: self.to_lps(region.start.map(|v| v as f64)), axes_mm: self.axes_mm }
    }

    /// Equal size and every voxel centre within `tolerance_voxels` (of the smallest spacing) of its twin.
    pub fn same_grid(&self, other: &Geometry, tolerance_voxels: f64) -> bool {
        if self.size != other.size {
            return false;
        }
        let s = self.spacing_mm();
        let limit_mm = tolerance_voxels * s.z.min(s.y).min(s.x);
        let last = self.size.map(|n| n.saturating_sub(1) as f64);
        (0..8).all(|corner| {
            let pick = |bit: usize, v: f64| if corner >> bit & 1 == 1 { v } else { 0.0 };
            let i = Zyx::new(pick(0, last.z), pick(1, last.y), pick(2, last.x));
            (self.to_lps(i) - other.to_lps(i)).norm() <= limit_mm
        })
    }

    /// Row-major 4×4 matrix from homogeneous (x, y, z, 1) index, x fastest axis first as NIfTI and nibabel have it, to RAS millimetres.
    pub fn affine_ras_xyz(&self) -> [[f64; 4]; 4] {
        let (x, y, z, o) = (self.axes_mm.x.0, self.axes_mm.y.0, self.axes_mm.z.0, self.origin.0);
        let row = |r: usize, sign: f64| [sign * x[r], sign * y[r], sign * z[r], sign * o[r]];
        [row(0, -1.0), row(1, -1.0), row(2, 1.0), [0., 0., 0., 1.]]
    }

    /// The inverse of [`Geometry::affine_ras_xyz`].
    pub fn from_affine_ras_xyz(size: Zyx<usize>, a: [[f64; 4]; 4]) -> Geometry {
        let column = |c: usize| Lps([-a[0][c], -a[1][c], a[2][c]]);
        Geometry { size, origin: column(3), axes_mm: Zyx::new(column(2), column(1), column(0)) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sheared() -> Geometry {
        Geometry {
            size: Zyx::new(7, 9, 11),
            origin: Lps([10., -20., 30.]),
            axes_mm: Zyx::new(Lps([0.3, 0.8, 2.4]), Lps([0., 0.7, 0.1]), Lps([-0.6, 0.05, 0.])),
        }
    }

    #[test]
    fn one_number_stands_for_three_axes() {
        let read = |text: &str| serde_json::from_str::<Zyx<usize>>(text).map_err(|e| e.to_string());
        assert_eq!(read("16"), Ok(Zyx::splat(16)));
        assert_eq!(read("{ \"z\": 1, \"y\": 2, \"x\": 3 }"), Ok(Zyx::new(1, 2, 3)));
        assert_eq!(serde_json::from_str::<Zyx<f64>>("2").ok(), Some(Zyx::splat(2.0)));
        for wrong in ["1.5", "-1", "[1, 2, 3]", "\"16\"", "{ \"z\": 1 }", "{ \"z\": 1, \"y\": 2, \"x\": 3, \"t\": 4 }"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn to_index_undoes_to_lps(z in -50.0..50.0, y in -50.0..50.0, x in -50.0..50.0) {
            let g = sheared();
            let back = g.to_index(g.to_lps(Zyx::new(z, y, x)));
            prop_assert!((back.z - z).abs() < 1e-9 && (back.y - y).abs() < 1e-9 && (back.x - x).abs() < 1e-9);
        }

        #[test]
        fn crop_of_crop_is_crop_of_sum(a in 0i64..4, b in 0i64..4) {
            let g = sheared();
            let size = Zyx::splat(2);
            let once = g.crop(Region { start: Zyx::splat(a + b), size });
            let twice = g.crop(Region { start: Zyx::splat(a), size: Zyx::splat(5) }).crop(Region { start: Zyx::splat(b), size });
            prop_assert!(once.same_grid(&twice, 1e-9));
        }
    }

    #[test]
    fn ras_affine_round_trips() {
        let g = sheared();
        assert_eq!(Geometry::from_affine_ras_xyz(g.size, g.affine_ras_xyz()), g);
    }

    #[test]
    fn tilt_is_the_angle_off_the_normal() {
        let mut g = Geometry::axis_aligned(Zyx::splat(4), Zyx::splat(1.0));
        assert!(g.tilt_degrees() < 1e-6);
        g.axes_mm.z = Lps([0., 14f64.to_radians().tan(), 1.]);
        assert!((g.tilt_degrees() - 14.0).abs() < 1e-9);
        assert!(!g.is_degenerate());
        g.axes_mm.z = g.axes_mm.x;
        assert!(g.is_degenerate());
    }
}
