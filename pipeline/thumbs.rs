//! Small pictures of volumes: the middle slice of the first channel, windowed by its own values, as PNG.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;
use voxmill_stages::error::Error;
use voxmill_stages::stage::Input;
use voxmill_stages::volume::StoredVolume;

/// Longest edge of a picture in pixels.
const EDGE: usize = 96;
/// A page with more of them no browser likes to open.
pub const MOST: usize = 1000;
/// Shares of the values that become black and white.
const BLACK: f64 = 0.01;
const WHITE: f64 = 0.99;

/// A picture of each artifact, of the first [`MOST`], at its first row (a series of many repeats is one, or its repeats look alike); one that cannot be read
/// has none. Each is read past the shelves: memory does not grow with the archive.
/// - `memo`: a folder where pictures are kept by the key of their volume; it may be lost
pub fn of(memo: &Path, volumes: &[(usize, Input)]) -> BTreeMap<usize, Vec<u8>> {
    static N: AtomicU64 = AtomicU64::new(0);
    // What is not remembered is made again.
    let _ = std::fs::create_dir_all(memo);
    let picture = |(row, item): &(usize, Input)| {
        let path = memo.join(format!("{}.png", item.manifest.key.hex()));
        if let Ok(png) = std::fs::read(&path) {
            return Some((*row, png));
        }
        let png = middle(item).ok()?;
        let beside = path.with_extension(format!("{}-{}.new", std::process::id(), N.fetch_add(1, Ordering::Relaxed)));
        if std::fs::write(&beside, &png).and_then(|()| std::fs::rename(&beside, &path)).is_err() {
            let _ = std::fs::remove_file(&beside);
        }
        Some((*row, png))
    };
    let mut met = HashSet::new();
    let first: Vec<&(usize, Input)> = volumes.iter().filter(|(_, item)| met.insert(item.manifest.key)).take(MOST).collect();
    first.into_par_iter().filter_map(picture).collect()
}

fn middle(item: &Input) -> Result<Vec<u8>, Error> {
    let volume = StoredVolume::open(&item.dir, item.manifest.key)?;
    let size = volume.geometry.size;
    let region = Region { start: Zyx::new((size.z / 2) as i64, 0, 0), size: Zyx::new(1, size.y, size.x) };
    let slice = volume.first_channel(region, 0.0)?;
    let (grey, rows, columns) = grey(&slice, size.y, size.x);
    Ok(png(&grey, rows, columns))
}

/// Every k-th pixel between the black and the white value.
/// - `slice`: `[y, x]`
fn grey(slice: &[f32], rows: usize, columns: usize) -> (Vec<u8>, usize, usize) {
    let k = rows.max(columns).div_ceil(EDGE).max(1);
    let (out_rows, out_columns) = (rows.div_ceil(k), columns.div_ceil(k));
    let at = |y: usize, x: usize| slice.get(y * k * columns + x * k).copied().unwrap_or(0.0);
    let values: Vec<f32> = (0..out_rows).flat_map(|y| (0..out_columns).map(move |x| at(y, x))).collect();
    let mut sorted: Vec<f32> = values.iter().copied().filter(|v| v.is_finite()).collect();
    sorted.sort_by(f32::total_cmp);
    let share = |s: f64| sorted.get(((sorted.len().saturating_sub(1)) as f64 * s) as usize).copied().unwrap_or(0.0);
    let (low, high) = (share(BLACK), share(WHITE));
    let scale = if high > low { 255.0 / (high - low) } else { 0.0 };
    (values.iter().map(|v| ((v - low) * scale).clamp(0.0, 255.0) as u8).collect(), out_rows, out_columns)
}

/// An 8-bit grey PNG.
fn png(grey: &[u8], rows: usize, columns: usize) -> Vec<u8> {
    written(grey, rows, columns, 0, None)
}

/// A PNG whose pixels are indices into a palette of RGB colours.
pub fn png_indexed(pixels: &[u8], rows: usize, columns: usize, palette: &[[u8; 3]]) -> Vec<u8> {
    written(pixels, rows, columns, 3, Some(palette.as_flattened()))
}

/// W3C PNG, third edition: signature, IHDR, PLTE where there is a palette, IDAT, IEND.
fn written(pixels: &[u8], rows: usize, columns: usize, colour_type: u8, palette: Option<&[u8]>) -> Vec<u8> {
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8; 4], body: &[u8]| {
        out.extend((body.len() as u32).to_be_bytes());
        let mut crc = flate2::Crc::new();
        crc.update(kind);
        crc.update(body);
        out.extend(kind);
        out.extend(body);
        out.extend(crc.sum().to_be_bytes());
    };
    let size = [(columns as u32).to_be_bytes(), (rows as u32).to_be_bytes()].concat();
    chunk(b"IHDR", &[&size[..], &[8, colour_type, 0, 0, 0]].concat());
    if let Some(palette) = palette {
        chunk(b"PLTE", palette);
    }
    let mut z = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    for row in pixels.chunks(columns.max(1)) {
        // Each row begins with its filter: none.
        z.write_all(&[0]).and_then(|()| z.write_all(row)).expect("memory takes every byte");
    }
    chunk(b"IDAT", &z.finish().expect("memory takes every byte"));
    chunk(b"IEND", &[]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_slice_becomes_a_small_picture() {
        let slice: Vec<f32> = (0..512 * 300).map(|i| (i % 512) as f32).collect();
        let (grey, rows, columns) = grey(&slice, 300, 512);
        assert_eq!((rows, columns, grey.len()), (50, 86, 50 * 86));
        assert_eq!((grey[0], grey[85]), (0, 255));
    }

    #[test]
    fn a_picture_is_a_png() {
        let png = png(&[0, 255, 128, 7], 2, 2);
        assert_eq!(&png[..16], b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR");
        assert!(png.ends_with(b"\0\0\0\0IEND\xaeB`\x82"));
    }
}
