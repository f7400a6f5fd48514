//! Voxels with a geometry → `.nii` or `.nii.gz` (NIfTI-1, little endian). Equal input gives equal bytes on any number of threads: the gzip header holds
//! no clock and no name, and the blocks that are compressed side by side are of one size.

use std::borrow::Cow;
use std::io::{BufWriter, Write};
use std::path::Path;

use flate2::{Compress, Compression, Crc, FlushCompress, Status};
use rayon::prelude::*;
use voxmill_schemas::geometry::{Geometry, Lps};

use crate::error::Error;
use crate::volume::Voxels;

/// What the channels of a volume are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Channels {
    /// One value a voxel, or values of any meaning: the 4th axis.
    #[default]
    Any,
    /// Time points, the step in seconds (0: not known): the 4th axis.
    Time { step_s: f64 },
    /// Red, green and blue of 8 bits: one RGB24 voxel.
    Colour,
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    pub channels: Channels,
    /// gzip's level, 1 (fast) to 9 (small); 0: not compressed.
    pub level: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options { channels: Channels::Any, level: 1 }
    }
}

/// Bytes of a block that is compressed on its own.
const BLOCK: usize = 1 << 20;

/// Writes `[c, z, y, x]`. Millimetres, aligned to the scanner: sform code 1, and qform code 1 where the axes are perpendicular (a tilted grid has no quaternion).
/// Holds a few blocks beside the voxels.
pub fn write(path: &Path, geometry: &Geometry, channels: usize, voxels: &Voxels, options: &Options) -> Result<(), Error> {
    // NIfTI has no float16.
    let wide = if let Voxels::F16(_) = voxels { Some(Voxels::F32(voxels.to_f32().into_owned())) } else { None };
    let voxels = wide.as_ref().unwrap_or(voxels);
    let name = || path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let wrong = |why: String| Error::Nifti { file: name(), why };
    let s = geometry.size;
    let too_long = |n: usize| i16::try_from(n).map_err(|_| wrong(format!("an axis of {n} does not fit NIfTI-1 (32,767)")));
    if voxels.len() != s.count() * channels {
        return Err(wrong(format!("{} values for {channels} × {s} voxels", voxels.len())));
    }
    let is_colour = options.channels == Channels::Colour;
    if is_colour && !(channels == 3 && matches!(voxels, Voxels::U8(_))) {
        return Err(wrong(format!("{channels} channels of {}, colour has 3 of uint8", voxels.dtype())));
    }
    let dims = [too_long(s.x)?, too_long(s.y)?, too_long(s.z)?, too_long(if is_colour { 1 } else { channels })?];
    let header = header(geometry, dims, voxels, options.channels);
    let body = voxels.as_bytes();
    let total = header.len() + body.len();
    let part = |at: usize| -> Cow<[u8]> {
        let end = (at + BLOCK).min(total);
        let from = at.max(header.len()) - header.len();
        let of_body = || {
            if is_colour { Cow::Owned(interleaved(body, from, end - header.len())) } else { Cow::Borrowed(&body[from..end - header.len()]) }
        };
        if at >= header.len() { of_body() } else { Cow::Owned([&header[at..], &of_body()].concat()) }
    };
    let file = std::fs::File::create(path).map_err(Error::io("create", path))?;
    let mut out = BufWriter::with_capacity(1 << 16, file);
    let starts: Vec<usize> = (0..total).step_by(BLOCK).collect();
    let mut all = || -> std::io::Result<()> {
        if options.level == 0 {
            starts.iter().try_for_each(|at| out.write_all(&part(*at)))?;
        } else {
            gzip(&mut out, &starts, total, options.level, &part)?;
        }
        out.flush()
    };
    all().map_err(Error::io("write", path))
}

/// One gzip member (RFC 1952) of deflate blocks made side by side; each ends on a byte, so that they can be joined.
fn gzip<'a>(
    out: &mut impl Write,
    starts: &[usize],
    total: usize,
    level: u32,
    part: &(dyn Fn(usize) -> Cow<'a, [u8]> + Sync),
) -> std::io::Result<()> {
    // Magic, deflate, no flags, time 0, no extra flags, unknown system.
    out.write_all(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255])?;
    let mut crc = Crc::new();
    for some in starts.chunks(4 * rayon::current_num_threads()) {
        let packed: Vec<(Crc, Vec<u8>)> = some
            .par_iter()
            .map(|at| {
                let bytes = part(*at);
                let mut crc = Crc::new();
                crc.update(&bytes);
                (crc, deflated(&bytes, level, at + BLOCK >= total))
            })
            .collect();
        for (of_block, bytes) in packed {
            crc.combine(&of_block);
            out.write_all(&bytes)?;
        }
    }
    out.write_all(&crc.sum().to_le_bytes())?;
    out.write_all(&(total as u32).to_le_bytes())
}

/// A piece of a deflate stream (RFC 1951); the last one ends it.
fn deflated(bytes: &[u8], level: u32, is_last: bool) -> Vec<u8> {
    let mut z = Compress::new(Compression::new(level), false);
    let flush = if is_last { FlushCompress::Finish } else { FlushCompress::Sync };
    // What does not shrink grows by five bytes in every 16 KiB at most.
    let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 1024 + 256);
    loop {
        let at = z.total_in() as usize;
        let status = z.compress_vec(&bytes[at..], &mut out, flush).expect("deflate takes any bytes");
        let is_done = z.total_in() as usize == bytes.len() && (status == Status::StreamEnd || (!is_last && out.len() < out.capacity()));
        if is_done {
            return out;
        }
        out.reserve(bytes.len() / 8 + 256);
    }
}

/// Bytes `from..to` of RGB triplets, out of three planes.
fn interleaved(planes: &[u8], from: usize, to: usize) -> Vec<u8> {
    let n = planes.len() / 3;
    (from..to).map(|i| planes[i % 3 * n + i / 3]).collect()
}

fn header(g: &Geometry, dims: [i16; 4], voxels: &Voxels, channels: Channels) -> [u8; 352] {
    let (code, bits): (i16, i16) = match voxels {
        _ if channels == Channels::Colour => (128, 24),
        Voxels::U8(_) => (2, 8),
        Voxels::I16(_) => (4, 16),
        Voxels::U16(_) => (512, 16),
        Voxels::F16(_) | Voxels::F32(_) => (16, 32),
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
    let (spacing, rotation) = (g.spacing_mm(), quaternion(g));
    let step = if let Channels::Time { step_s } = channels { step_s } else { 1.0 };
    let qfac = rotation.map_or(1.0, |(_, qfac)| qfac);
    for (i, s) in [qfac, spacing.x, spacing.y, spacing.z, step].into_iter().enumerate() {
        put(76 + 4 * i, &(s as f32).to_le_bytes());
    }
    put(108, &352f32.to_le_bytes());
    put(112, &1f32.to_le_bytes());
    // Millimetres; seconds only where there is time.
    put(123, &[if matches!(channels, Channels::Time { .. }) { 2 | 8 } else { 2 }]);
    let affine = g.affine_ras_xyz();
    if let Some((bcd, _)) = rotation {
        put(252, &1i16.to_le_bytes());
        bcd.into_iter().enumerate().for_each(|(i, v)| put(256 + 4 * i, &(v as f32).to_le_bytes()));
        (0..3).for_each(|i| put(268 + 4 * i, &(affine[i][3] as f32).to_le_bytes()));
    }
    put(254, &1i16.to_le_bytes());
    for (r, row) in affine.into_iter().take(3).enumerate() {
        for (c, v) in row.into_iter().enumerate() {
            put(280 + 16 * r + 4 * c, &(v as f32).to_le_bytes());
        }
    }
    put(344, b"n+1\0");
    h
}

/// The direction of the axes as `b, c, d` of a unit quaternion, and −1 where they are left-handed (nifti1.h, method 2); `None` where they are not perpendicular.
fn quaternion(g: &Geometry) -> Option<([f64; 3], f64)> {
    // Right-anterior-superior unit vectors.
    let unit = |v: Lps| {
        let [x, y, z] = v.scale(1.0 / v.norm()).0;
        Lps([-x, -y, z])
    };
    let (x, y, z) = (unit(g.axes_mm.x), unit(g.axes_mm.y), unit(g.axes_mm.z));
    if [x.dot(y), x.dot(z), y.dot(z)].iter().any(|d| d.abs() > 1e-5) {
        return None;
    }
    let qfac = if x.cross(y).dot(z) < 0.0 { -1.0 } else { 1.0 };
    let [x, y, z] = [x, y, z.scale(qfac)].map(|v| v.0);
    // r[row][column], columns are the axes.
    let r = [0, 1, 2].map(|i| [x[i], y[i], z[i]]);
    let trace = r[0][0] + r[1][1] + r[2][2];
    let (a, b, c, d);
    if trace > 0.0 {
        a = (1.0 + trace).sqrt() / 2.0;
        (b, c, d) = ((r[2][1] - r[1][2]) / (4.0 * a), (r[0][2] - r[2][0]) / (4.0 * a), (r[1][0] - r[0][1]) / (4.0 * a));
    } else {
        // The largest of the others, so that nothing small is divided by.
        let (xx, yy, zz) = (r[0][0], r[1][1], r[2][2]);
        if xx >= yy && xx >= zz {
            b = (1.0 + xx - yy - zz).sqrt() / 2.0;
            (a, c, d) = ((r[2][1] - r[1][2]) / (4.0 * b), (r[0][1] + r[1][0]) / (4.0 * b), (r[0][2] + r[2][0]) / (4.0 * b));
        } else if yy >= zz {
            c = (1.0 + yy - xx - zz).sqrt() / 2.0;
            (a, b, d) = ((r[0][2] - r[2][0]) / (4.0 * c), (r[0][1] + r[1][0]) / (4.0 * c), (r[1][2] + r[2][1]) / (4.0 * c));
        } else {
            d = (1.0 + zz - xx - yy).sqrt() / 2.0;
            (a, b, c) = ((r[1][0] - r[0][1]) / (4.0 * d), (r[0][2] + r[2][0]) / (4.0 * d), (r[1][2] + r[2][1]) / (4.0 * d));
        }
    }
    // Readers take the part that is not stored as positive.
    let sign = if a < 0.0 { -1.0 } else { 1.0 };
    Some(([b, c, d].map(|v| v * sign + 0.0), qfac))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::geometry::Zyx;

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
            for level in [0, 1, 9] {
                write(&path, &tilted(), 1, &voxels, &Options { level, ..Options::default() }).unwrap();
                let back = read(&path).unwrap();
                assert_eq!(back.voxels, voxels);
                assert_eq!(back.geometry, tilted());
                assert!(back.is_placed);
            }
        }
        let two = Voxels::U8((0..48).collect());
        write(&path, &tilted(), 2, &two, &Options::default()).unwrap();
        assert_eq!(read(&path).unwrap().channels, 2);
    }

    #[test]
    fn equal_input_gives_equal_bytes_on_any_number_of_threads() {
        let dir = tempfile::tempdir().unwrap();
        // Three blocks, the second of noise.
        let g = Geometry { size: Zyx::new(3, 1024, 1024), ..tilted() };
        let noise = |i: u32| (i.wrapping_mul(2654435761) >> 24) as u8;
        let voxels = Voxels::U8((0..3u32 << 20).map(|i| if i >> 20 == 1 { noise(i ^ i >> 7) } else { (i >> 12) as u8 }).collect());
        let bytes = |threads: usize| {
            let path = dir.path().join("a.nii.gz");
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| write(&path, &g, 1, &voxels, &Options::default())).unwrap();
            assert_eq!(read(&path).unwrap().voxels, voxels);
            std::fs::read(path).unwrap()
        };
        let (a, b) = (bytes(1), bytes(3));
        assert!(a == b);
        // RFC 1952: no flags, modification time 0.
        assert_eq!(a[3..8], [0; 5]);
    }

    #[test]
    fn a_quaternion_says_what_the_affine_says_and_a_tilted_grid_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.nii");
        let flat = Options { level: 0, ..Options::default() };
        // Every way to lay array axes on patient axes, then some turned ones.
        let axes = [Lps([1., 0., 0.]), Lps([0., 1., 0.]), Lps([0., 0., 1.])];
        let (c, s) = (0.8, 0.6);
        let mut frames =
            vec![[Lps([c, s, 0.]), Lps([-s, c, 0.]), Lps([0., 0., 1.])], [Lps([c, 0., s]), Lps([0., -1., 0.]), Lps([s, 0., -c])]];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            frames.extend((0..8).map(|signs| [0, 1, 2].map(|i| axes[order[i]].scale(if signs >> i & 1 == 1 { -1.0 } else { 1.0 }))));
        }
        for [z, y, x] in frames {
            let g = Geometry { axes_mm: Zyx::new(z.scale(3.0), y.scale(0.5), x.scale(0.75)), ..tilted() };
            write(&path, &g, 1, &Voxels::U8(vec![1; 24]), &flat).unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            // Without the sform the qform is read.
            bytes[254] = 0;
            std::fs::write(&path, bytes).unwrap();
            let back = read(&path).unwrap();
            assert!(back.is_placed && back.geometry.same_grid(&g, 1e-5), "{g:?}\n{:?}", back.geometry);
        }
        write(&path, &tilted(), 1, &Voxels::U8(vec![1; 24]), &flat).unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[252..254], [0, 0]);
    }

    #[test]
    fn colours_are_triplets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.nii");
        let options = Options { level: 0, channels: Channels::Colour };
        write(&path, &tilted(), 3, &Voxels::U8((0..72).collect()), &options).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!((&bytes[40..50], bytes[70], bytes[72]), (&[3, 0, 4, 0, 3, 0, 2, 0, 1, 0][..], 128, 24));
        let back = read(&path).unwrap();
        assert_eq!((back.channels, back.is_colour, back.voxels), (3, true, Voxels::U8((0..72).collect())));
        assert_eq!((bytes.len(), &bytes[352..358]), (352 + 72, &[0, 24, 48, 1, 25, 49][..]));
        assert!(write(&path, &tilted(), 1, &Voxels::U8(vec![0; 24]), &options).is_err());
    }
}
