//! The header: numbers at fixed offsets, in either byte order, checked before anything is allocated.

use voxmill_schemas::geometry::{Geometry, Zyx};

/// Element types by their code in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
    /// Red, green and blue of 8 bits.
    Rgb24,
    /// The same and transparency.
    Rgba32,
}

impl Dtype {
    pub fn of_code(code: i16) -> Result<Self, String> {
        Ok(match code {
            2 => Self::U8,
            256 => Self::I8,
            512 => Self::U16,
            4 => Self::I16,
            768 => Self::U32,
            8 => Self::I32,
            1280 => Self::U64,
            1024 => Self::I64,
            16 => Self::F32,
            64 => Self::F64,
            128 => Self::Rgb24,
            2304 => Self::Rgba32,
            other => {
                let name = match other {
                    0 => "unknown",
                    1 => "1-bit",
                    32 | 1792 | 2048 => "complex",
                    1536 => "128-bit float",
                    _ => "undefined",
                };
                return Err(format!(
                    "its data type is {name} (code {other}): integers of 8 to 64 bits, floats of 32 and 64 bits and colours of 8 bits are read"
                ));
            }
        })
    }

    pub fn is_colour(self) -> bool {
        matches!(self, Self::Rgb24 | Self::Rgba32)
    }

    pub fn size_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::Rgb24 => 3,
            Self::U32 | Self::I32 | Self::F32 | Self::Rgba32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }
}

/// What of the header is needed to use the voxels.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    pub size: Zyx<usize>,
    /// Product of the 4th and later axes.
    pub channels: usize,
    pub dtype: Dtype,
    pub is_big_endian: bool,
    /// Byte at which the voxels start.
    pub data_at: usize,
    /// `value = slope · stored + intercept`; `None` where the header says there is no scaling.
    pub scaling: Option<(f64, f64)>,
    pub geometry: Geometry,
    /// False where neither sform nor qform is set: the geometry is then spacing alone, at the origin, and says nothing of the patient.
    pub is_placed: bool,
}

/// Bytes that hold any header.
pub const MAX_HEADER: usize = 540;

/// Reads numbers at offsets in the byte order of the file.
struct Fields<'a> {
    bytes: &'a [u8],
    big: bool,
}

impl Fields<'_> {
    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut b: [u8; N] = self.bytes[at..at + N].try_into().expect("the header was checked to be long enough");
        if self.big {
            b.reverse();
        }
        b
    }
    fn i16(&self, at: usize) -> i16 {
        i16::from_le_bytes(self.get(at))
    }
    fn i32(&self, at: usize) -> i32 {
        i32::from_le_bytes(self.get(at))
    }
    fn i64(&self, at: usize) -> i64 {
        i64::from_le_bytes(self.get(at))
    }
    fn f32(&self, at: usize) -> f64 {
        f32::from_le_bytes(self.get(at)) as f64
    }
    fn f64(&self, at: usize) -> f64 {
        f64::from_le_bytes(self.get(at))
    }
}

impl Header {
    /// `bytes`: the first bytes of the (unpacked) file, [`MAX_HEADER`] of them where it has so many.
    pub fn parse(bytes: &[u8]) -> Result<Header, String> {
        let first: [u8; 4] = bytes.get(..4).and_then(|b| b.try_into().ok()).ok_or("it is shorter than a NIfTI header")?;
        let (version, big) = match (i32::from_le_bytes(first), i32::from_be_bytes(first)) {
            (348, _) => (1, false),
            (_, 348) => (1, true),
            (540, _) => (2, false),
            (_, 540) => (2, true),
            _ => return Err("it does not start with a NIfTI header (sizeof_hdr is neither 348 nor 540)".into()),
        };
        let length = if version == 1 { 348 } else { 540 };
        if bytes.len() < length {
            return Err(format!("it ends after {} bytes, inside its header of {length}", bytes.len()));
        }
        let f = Fields { bytes, big };
        let magic = if version == 1 { &bytes[344..347] } else { &bytes[4..7] };
        match (version, magic) {
            (1, b"n+1") | (2, b"n+2") => {}
            (_, b"ni1" | b"ni2") => return Err("it is the header of a .hdr/.img pair: convert it to one .nii.gz file".into()),
            _ => return Err("its magic number is not that of NIfTI (Analyze 7.5 has no orientation and is not read)".into()),
        }
        // Field offsets of the two versions.
        let v1 = version == 1;
        let dim = |i: usize| if v1 { f.i16(40 + 2 * i) as i64 } else { f.i64(16 + 8 * i) };
        let pixdim = |i: usize| if v1 { f.f32(76 + 4 * i) } else { f.f64(104 + 8 * i) };
        let real = |at1: usize, at2: usize| if v1 { f.f32(at1) } else { f.f64(at2) };
        let code = |at1: usize, at2: usize| if v1 { f.i16(at1) as i32 } else { f.i32(at2) };

        let n_axes = dim(0);
        if !(1..=7).contains(&n_axes) {
            return Err(format!("it claims {n_axes} axes, expected 1 to 7"));
        }
        let axis = |i: usize| -> Result<usize, String> {
            let n = if i as i64 <= n_axes { dim(i) } else { 1 };
            usize::try_from(n).ok().filter(|n| *n >= 1).ok_or_else(|| format!("axis {i} has size {n}"))
        };
        let size = Zyx::new(axis(3)?, axis(2)?, axis(1)?);
        let mut channels = 1usize;
        for i in 4..=7 {
            channels = channels.checked_mul(axis(i)?).ok_or("its size overflows")?;
        }
        let dtype = Dtype::of_code(if v1 { f.i16(70) } else { f.i16(12) })?;
        let data_at = if v1 { f.f32(108) } else { f.i64(168) as f64 };
        if !(data_at >= length as f64 && data_at <= 1e9) {
            return Err(format!("its voxels start at byte {data_at}, expected {length} or later"));
        }
        let (slope, intercept) = (real(112, 176), real(116, 184));
        if !slope.is_finite() || !intercept.is_finite() {
            // nibabel writes NaN for "no scaling".
            if !(slope.is_nan() || intercept.is_nan()) {
                return Err(format!("its scaling is {slope} · value + {intercept}"));
            }
        }
        let is_scaled =
            dtype != Dtype::Rgb24 && slope.is_finite() && intercept.is_finite() && slope != 0.0 && (slope, intercept) != (1.0, 0.0);
        let (qform, sform) = (code(252, 344), code(254, 348));
        let spacing = |i: usize| Some(pixdim(i).abs()).filter(|s| s.is_finite() && *s > 0.0).unwrap_or(1.0);
        let affine = if sform > 0 {
            [0usize, 1, 2].map(|r| [0usize, 1, 2, 3].map(|c| real(280 + 16 * r + 4 * c, 400 + 32 * r + 8 * c)))
        } else if qform > 0 {
            let q = [0usize, 1, 2].map(|i| real(256 + 4 * i, 352 + 8 * i));
            let o = [0usize, 1, 2].map(|i| real(268 + 4 * i, 376 + 8 * i));
            from_quaternion(q, o, [spacing(1), spacing(2), spacing(3)], if pixdim(0) < 0.0 { -1.0 } else { 1.0 })?
        } else {
            [[spacing(1), 0., 0., 0.], [0., spacing(2), 0., 0.], [0., 0., spacing(3), 0.]]
        };
        let geometry = Geometry::from_affine_ras_xyz(size, [affine[0], affine[1], affine[2], [0., 0., 0., 1.]]);
        if geometry.is_degenerate() {
            return Err("its affine does not span space: fix the sform or qform of the file".into());
        }
        Ok(Header {
            size,
            channels,
            dtype,
            is_big_endian: big,
            data_at: data_at as usize,
            scaling: is_scaled.then_some((slope, intercept)),
            geometry,
            is_placed: sform > 0 || qform > 0,
        })
    }

    /// Bytes of all voxels, `None` on overflow.
    pub fn data_bytes(&self) -> Option<usize> {
        self.size.checked_count()?.checked_mul(self.channels)?.checked_mul(self.dtype.size_bytes())
    }
}

/// Rows of the affine from the quaternion `b, c, d` (nifti1.h, method 2).
fn from_quaternion([b, c, d]: [f64; 3], o: [f64; 3], s: [f64; 3], qfac: f64) -> Result<[[f64; 4]; 3], String> {
    let rest = 1.0 - (b * b + c * c + d * d);
    // Float32 rounding may leave the sum a little over 1: then it is a half turn.
    if !(rest > -1e-5) {
        return Err(format!("its qform quaternion ({b}, {c}, {d}) is longer than 1"));
    }
    let (a, b, c, d) = if rest < 1e-7 {
        let n = (b * b + c * c + d * d).sqrt();
        (0.0, b / n, c / n, d / n)
    } else {
        (rest.sqrt(), b, c, d)
    };
    let r = [
        [a * a + b * b - c * c - d * d, 2. * (b * c - a * d), 2. * (b * d + a * c)],
        [2. * (b * c + a * d), a * a + c * c - b * b - d * d, 2. * (c * d - a * b)],
        [2. * (b * d - a * c), 2. * (c * d + a * b), a * a + d * d - b * b - c * c],
    ];
    Ok([0, 1, 2].map(|i| [r[i][0] * s[0], r[i][1] * s[1], r[i][2] * s[2] * qfac, o[i]]))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub mod tests {
    use super::*;

    /// A NIfTI-1 header of a `[z 2, y 3, x 4]` image; `put` changes it.
    pub fn nifti1(dtype: i16, big: bool, put: impl Fn(&mut dyn FnMut(usize, Vec<u8>))) -> Vec<u8> {
        let mut h = vec![0u8; 352];
        let mut set = |at: usize, mut v: Vec<u8>| {
            if big {
                v.reverse();
            }
            h[at..at + v.len()].copy_from_slice(&v);
        };
        set(0, 348i32.to_le_bytes().into());
        for (i, n) in [3i16, 4, 3, 2, 1, 1, 1, 1].into_iter().enumerate() {
            set(40 + 2 * i, n.to_le_bytes().into());
        }
        set(70, dtype.to_le_bytes().into());
        for (i, s) in [1f32, 0.5, 0.75, 2.0].into_iter().enumerate() {
            set(76 + 4 * i, s.to_le_bytes().into());
        }
        set(108, 352f32.to_le_bytes().into());
        put(&mut set);
        h[344..348].copy_from_slice(b"n+1\0");
        h
    }

    #[test]
    fn both_byte_orders_say_the_same() {
        let of = |big| {
            let h = Header::parse(&nifti1(4, big, |set| set(254, 1i16.to_le_bytes().into()))).unwrap_err();
            assert!(h.contains("affine"), "{h}");
            Header::parse(&nifti1(4, big, |set| set(112, 2f32.to_le_bytes().into()))).unwrap()
        };
        let (little, big) = (of(false), of(true));
        assert_eq!(little, Header { is_big_endian: false, ..big });
        assert_eq!(little.size, Zyx::new(2, 3, 4));
        assert_eq!(little.geometry.spacing_mm(), Zyx::new(2.0, 0.75, 0.5));
        assert_eq!(little.scaling, Some((2.0, 0.0)));
        assert!(!little.is_placed);
    }

    #[test]
    fn sform_wins_over_qform() {
        let h = nifti1(2, false, |set| {
            set(252, 1i16.to_le_bytes().into());
            set(254, 2i16.to_le_bytes().into());
            for (i, v) in [3f32, 0., 0., 10., 0., 3., 0., 20., 0., 0., 3., 30.].into_iter().enumerate() {
                set(280 + 4 * i, v.to_le_bytes().into());
            }
        });
        let g = Header::parse(&h).unwrap().geometry;
        assert_eq!(g.spacing_mm(), Zyx::splat(3.0));
        assert_eq!(g.origin.0, [-10.0, -20.0, 30.0]);
    }

    #[test]
    fn qform_turns_and_flips() {
        // A half turn about z and qfac −1: x and y are negated, z points down.
        let h = nifti1(2, false, |set| {
            set(252, 1i16.to_le_bytes().into());
            set(76, (-1f32).to_le_bytes().into());
            set(264, 1f32.to_le_bytes().into());
            set(268, 5f32.to_le_bytes().into());
        });
        let a = Header::parse(&h).unwrap().geometry.affine_ras_xyz();
        assert_eq!(a, [[-0.5, 0., 0., 5.], [0., -0.75, 0., 0.], [0., 0., -2., 0.], [0., 0., 0., 1.]].map(|r: [f64; 4]| r.map(|v| v + 0.0)));
    }

    #[test]
    fn hostile_headers_are_refused() {
        let refused = |h: Vec<u8>, what: &str| {
            let e = Header::parse(&h).unwrap_err();
            assert!(e.contains(what), "{e}");
        };
        refused(vec![1, 2], "shorter");
        refused(vec![0; 400], "sizeof_hdr");
        refused(nifti1(2, false, |_| {})[..200].to_vec(), "inside its header");
        refused(nifti1(2, false, |set| set(40, 9i16.to_le_bytes().into())), "9 axes");
        refused(nifti1(2, false, |set| set(42, (-4i16).to_le_bytes().into())), "axis 1 has size -4");
        refused(nifti1(32, false, |_| {}), "complex");
        refused(nifti1(2, false, |set| set(108, 12f32.to_le_bytes().into())), "start at byte 12");
        refused(nifti1(2, false, |set| set(108, f32::NAN.to_le_bytes().into())), "start at byte");
        let mut pair = nifti1(2, false, |_| {});
        pair[344..348].copy_from_slice(b"ni1\0");
        refused(pair, ".hdr/.img");
    }
}
