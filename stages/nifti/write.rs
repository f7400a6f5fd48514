//! Voxels with a geometry → `.nii.gz` (NIfTI-1, little endian, sform). Equal input gives equal bytes: the gzip header holds no clock and no name.

use std::io::{BufWriter, Write};
use std::path::Path;

use flate2::{Compression, GzBuilder};
use voxmill_schemas::geometry::Geometry;

use crate::error::Error;
use crate::volume::Voxels;

/// Writes `[c, z, y, x]` (`c` becomes the 4th NIfTI axis where there are several channels). Millimetres, aligned to the scanner (sform code 1);
/// the quaternion is left out, because a tilted grid has none.
pub fn write(path: &Path, geometry: &Geometry, channels: usize, voxels: &Voxels) -> Result<(), Error> {
    let name = || path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let s = geometry.size;
    let too_long = |n: usize| {
        i16::try_from(n).map_err(|_| Error::Nifti { file: name(), why: format!("an axis of {n} does not fit NIfTI-1 (32,767)") })
    };
    let dims = [too_long(s.x)?, too_long(s.y)?, too_long(s.z)?, too_long(channels)?];
    if voxels.len() != s.count() * channels {
        return Err(Error::Nifti { file: name(), why: format!("{} values for {channels} × {s} voxels", voxels.len()) });
    }
    let file = std::fs::File::create(path).map_err(Error::io("create", path))?;
    let mut out = GzBuilder::new().operating_system(255).write(BufWriter::new(file), Compression::new(6));
    let mut all = || -> std::io::Result<()> {
        out.write_all(&header(geometry, dims, voxels))?;
        data(&mut out, voxels)?;
        out.try_finish()?;
        out.get_mut().flush()
    };
    all().map_err(Error::io("write", path))
}

fn data(out: &mut impl Write, voxels: &Voxels) -> std::io::Result<()> {
    const STEP: usize = 1 << 16;
    macro_rules! put {
        ($v:expr) => {
            for part in $v.chunks(STEP) {
                out.write_all(&part.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
            }
        };
    }
    match voxels {
        Voxels::U8(v) => out.write_all(v)?,
        Voxels::I16(v) => put!(v),
        Voxels::U16(v) => put!(v),
        Voxels::F32(v) => put!(v),
    }
    Ok(())
}

fn header(g: &Geometry, dims: [i16; 4], voxels: &Voxels) -> [u8; 352] {
    let (code, bits): (i16, i16) = match voxels {
        Voxels::U8(_) => (2, 8),
        Voxels::I16(_) => (4, 16),
        Voxels::U16(_) => (512, 16),
        Voxels::F32(_) => (16, 32),
    };
    let mut h = [0u8; 352];
    let mut put = |at: usize, v: &[u8]| h[at..at + v.len()].copy_from_slice(v);
    put(0, &348i32.to_le_bytes());
    let n_axes = if dims[3] > 1 { 4i16 } else { 3 };
    for (i, n) in [n_axes, dims[0], dims[1], dims[2], dims[3], 1, 1, 1].into_iter().enumerate() {
        put(40 + 2 * i, &n.to_le_bytes());
    }
    put(70, &code.to_le_bytes());
    put(72, &bits.to_le_bytes());
    let spacing = g.spacing_mm();
    for (i, s) in [1.0, spacing.x, spacing.y, spacing.z, 1.0].into_iter().enumerate() {
        put(76 + 4 * i, &(s as f32).to_le_bytes());
    }
    put(108, &352f32.to_le_bytes());
    put(112, &1f32.to_le_bytes());
    // Millimetres; seconds only where there is a 4th axis.
    put(123, &[if n_axes == 4 { 2 | 8 } else { 2 }]);
    put(254, &1i16.to_le_bytes());
    for (r, row) in g.affine_ras_xyz().into_iter().take(3).enumerate() {
        for (c, v) in row.into_iter().enumerate() {
            put(280 + 16 * r + 4 * c, &(v as f32).to_le_bytes());
        }
    }
    put(344, b"n+1\0");
    h
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::geometry::{Lps, Zyx};

    use super::super::read;
    use super::*;

    fn tilted() -> Geometry {
        Geometry {
            size: Zyx::new(2, 3, 4),
            origin: Lps([10., -20., 30.]),
            axes_mm: Zyx::new(Lps([0.25, 0.75, 2.5]), Lps([0., 0.5, 0.125]), Lps([-0.5, 0.0625, 0.])),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.nii.gz");
        let kinds = [
            Voxels::U8((0..24).collect()),
            Voxels::I16((-12..12).collect()),
            Voxels::U16((65_000..65_024).collect()),
            Voxels::F32((0..24).map(|v| v as f32 / 7.0).collect()),
        ];
        for voxels in kinds {
            write(&path, &tilted(), 1, &voxels).unwrap();
            let back = read(&path).unwrap();
            assert_eq!(back.voxels, voxels);
            assert_eq!(back.geometry, tilted());
            assert!(back.is_placed);
        }
        let two = Voxels::U8((0..48).collect());
        write(&path, &tilted(), 2, &two).unwrap();
        assert_eq!(read(&path).unwrap().channels, 2);
    }

    #[test]
    fn equal_input_gives_equal_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = |name: &str| {
            let path = dir.path().join(name);
            write(&path, &tilted(), 1, &Voxels::U8(vec![3; 24])).unwrap();
            std::fs::read(path).unwrap()
        };
        let (a, b) = (bytes("a.nii.gz"), bytes("b.nii.gz"));
        assert_eq!(a, b);
        // RFC 1952: no flags, modification time 0.
        assert_eq!(a[3..8], [0; 5]);
    }
}
