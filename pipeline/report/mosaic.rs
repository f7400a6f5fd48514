//! The picture of a case: its three planes through the labels (or the middle), in millimetres of equal size, with the contours of truth and prediction.
//! An indexed PNG: greys, and a colour for each side.

use std::path::Path;

use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;
use voxmill_stages::error::Error;
use voxmill_stages::stage::Input;
use voxmill_stages::store::Store;
use voxmill_stages::volume::StoredVolume;

use crate::thumbs::png_indexed;

/// Edge of the square that a plane is drawn in, pixels.
const EDGE: usize = 112;
/// Greys of the palette; after them stand the colours.
const GREYS: u8 = 240;
const TRUTH: u8 = 240;
const PREDICTION: u8 = 241;
const BOTH: u8 = 242;
/// RGB of the three; the page's legend has the same.
pub const COLOURS: [(&str, [u8; 3]); 3] = [("truth", [0x3d, 0xd6, 0x8c]), ("prediction", [0xff, 0x6b, 0x4a]), ("both", [0xff, 0xe0, 0x66])];
/// Counts of grey values of the planes, dark to bright: 32 steps between their low and their high end.
const STEPS: usize = 32;

/// A picture and what it was seen to hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    pub png: Vec<u8>,
    /// The values of the planes, 0.5 % at either end left out.
    pub low: f32,
    pub high: f32,
    /// Share of the pixels in each of the steps between them.
    pub histogram: Vec<f32>,
}

/// A picture before it is packed: three squares side by side, indices into [`palette`].
pub struct Drawn {
    /// `[edge, 3 · edge]`
    pub pixels: Vec<u8>,
    pub edge: usize,
    /// The voxel that the planes go through.
    pub at: Zyx<usize>,
    /// Of the volume, voxels.
    pub size: Zyx<usize>,
    /// The values that are black and white.
    pub window: (f32, f32),
    /// The values of the planes, 0.5 % at either end left out.
    span: (f32, f32),
    histogram: Vec<f32>,
}

/// A plane: rows and columns in voxels, their spacing in millimetres, values and the two label maps.
struct Plane {
    rows: usize,
    columns: usize,
    spacing_mm: (f64, f64),
    values: Vec<f32>,
    truth: Vec<u8>,
    prediction: Vec<u8>,
}

/// `None` where the volume cannot be read. `memo`: a folder where pictures are kept by the keys of what they show; it may be lost.
pub fn of(memo: &Path, store: &Store, image: &Input, prediction: Option<&Input>, window: Option<(f64, f64)>) -> Option<Picture> {
    let second = prediction.map(|p| p.manifest.key.hex()).unwrap_or_default();
    let seen = window.map(|(low, high)| format!("-{low}-{high}")).unwrap_or_default();
    let path = memo.join(format!("{}-{}{seen}", &image.manifest.key.hex()[..32], second.get(..32).unwrap_or("none")));
    if let Some(picture) = std::fs::read(&path).ok().and_then(|bytes| remembered(&bytes)) {
        return Some(picture);
    }
    let picture = packed(draw(store, image, prediction, Look { edge: EDGE, window, at: None }).ok()?);
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    // What is not remembered is made again.
    let _ = std::fs::create_dir_all(memo)
        .and_then(|()| std::fs::write(&beside, as_bytes(&picture)))
        .and_then(|()| std::fs::rename(&beside, &path));
    Some(picture)
}

/// Low, high, histogram, PNG.
fn as_bytes(p: &Picture) -> Vec<u8> {
    let floats = [p.low, p.high].into_iter().chain(p.histogram.iter().copied());
    floats.flat_map(f32::to_le_bytes).chain(p.png.iter().copied()).collect()
}

fn remembered(bytes: &[u8]) -> Option<Picture> {
    let (floats, png) = bytes.split_at_checked(4 * (2 + STEPS))?;
    let mut floats = floats.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
    let (low, high) = (floats.next()?, floats.next()?);
    png.starts_with(b"\x89PNG").then(|| Picture { png: png.to_vec(), low, high, histogram: floats.collect() })
}

fn packed(d: Drawn) -> Picture {
    let png = png_indexed(&d.pixels, d.edge, d.pixels.len() / d.edge, &palette());
    Picture { png, low: d.span.0, high: d.span.1, histogram: d.histogram }
}

/// How a picture is drawn.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    /// Of the square that a plane is drawn in, pixels.
    pub edge: usize,
    /// The values that are black and white; without, those of the planes less 0.5 % at either end.
    pub window: Option<(f64, f64)>,
    /// The voxel that the planes go through; without, the middle of the labels. Beyond the volume is its last one.
    pub at: Option<Zyx<usize>>,
}

/// Where image and prediction are one artifact, its labels are the prediction. A prediction on another grid is left out.
pub fn draw(store: &Store, image: &Input, prediction: Option<&Input>, look: Look) -> Result<Drawn, Error> {
    let volume = StoredVolume::open(&image.dir, image.manifest.key)?;
    let size = volume.geometry.size;
    let is_prediction = prediction.is_some_and(|p| p.manifest.key == image.manifest.key);
    let truth = if is_prediction { None } else { volume.labels()? };
    let predicted = match prediction {
        Some(p) => {
            let v = StoredVolume::open(&p.dir, p.manifest.key)?;
            if v.geometry.same_grid(&volume.geometry, 1e-3) { v.labels()? } else { None }
        }
        None => None,
    };
    let at = match look.at {
        Some(at) => at.zip(size).map(|(at, n)| at.min(n.saturating_sub(1))),
        None => middle_of(size, truth.as_deref().or(predicted.as_deref())),
    };
    let planes = planes(&volume, store, at, truth.as_deref(), predicted.as_deref())?;
    Ok(Drawn { at, size, ..drawn(&planes, look.edge, look.window) })
}

/// The slice of each axis with most labelled voxels; the middle where nothing is labelled.
fn middle_of(size: Zyx<usize>, labels: Option<&[u8]>) -> Zyx<usize> {
    let middle = size.map(|n| n / 2);
    let Some(labels) = labels else { return middle };
    let (mut z, mut y, mut x) = (vec![0u32; size.z], vec![0u32; size.y], vec![0u32; size.x]);
    for (i, _) in labels.iter().enumerate().filter(|(_, l)| **l > 0) {
        z[i / (size.y * size.x)] += 1;
        y[i / size.x % size.y] += 1;
        x[i % size.x] += 1;
    }
    let most = |counts: &[u32], middle: usize| {
        let best = counts.iter().copied().max().unwrap_or(0);
        // Of several that have as many the one nearest to the middle.
        (0..counts.len()).filter(|i| counts[*i] == best && best > 0).min_by_key(|i| i.abs_diff(middle)).unwrap_or(middle)
    };
    Zyx::new(most(&z, middle.z), most(&y, middle.y), most(&x, middle.x))
}

/// Volumes in memory, such as the patch of a batch.
/// - `voxels`: `[z, y, x]`
/// - `labels`: the same, or empty
pub fn draw_voxels(size: Zyx<usize>, spacing_mm: Zyx<f64>, voxels: &[f32], labels: &[u8], edge: usize) -> Drawn {
    let at = middle_of(size, Some(labels).filter(|l| !l.is_empty()));
    let plane = |c: Cut| Plane { values: cut(voxels, size, c), truth: cut(labels, size, c), prediction: Vec::new(), ..c.plane() };
    Drawn { at, size, ..drawn(&cuts(at, size, spacing_mm).map(plane), edge, None) }
}

/// A plane through a volume: the box that it is, and how it is drawn.
#[derive(Clone, Copy)]
struct Cut {
    start: Zyx<usize>,
    shape: Zyx<usize>,
    rows: usize,
    columns: usize,
    spacing_mm: (f64, f64),
}

impl Cut {
    fn plane(self) -> Plane {
        let Cut { rows, columns, spacing_mm, .. } = self;
        Plane { rows, columns, spacing_mm, values: Vec::new(), truth: Vec::new(), prediction: Vec::new() }
    }
}

/// Across z, y and x.
fn cuts(at: Zyx<usize>, size: Zyx<usize>, mm: Zyx<f64>) -> [Cut; 3] {
    let cut = |start, shape, rows, columns, spacing_mm| Cut { start, shape, rows, columns, spacing_mm };
    [
        cut(Zyx::new(at.z, 0, 0), Zyx::new(1, size.y, size.x), size.y, size.x, (mm.y, mm.x)),
        cut(Zyx::new(0, at.y, 0), Zyx::new(size.z, 1, size.x), size.z, size.x, (mm.z, mm.x)),
        cut(Zyx::new(0, 0, at.x), Zyx::new(size.z, size.y, 1), size.z, size.y, (mm.z, mm.y)),
    ]
}

/// The voxels of a cut, row by row; none of an empty volume.
fn cut<T: Copy>(all: &[T], size: Zyx<usize>, c: Cut) -> Vec<T> {
    if all.is_empty() {
        return Vec::new();
    }
    let mut out = Vec::with_capacity(c.rows * c.columns);
    for z in c.start.z..c.start.z + c.shape.z {
        for y in c.start.y..c.start.y + c.shape.y {
            let row = (z * size.y + y) * size.x + c.start.x;
            out.extend_from_slice(&all[row..row + c.shape.x]);
        }
    }
    out
}

fn planes(
    volume: &StoredVolume,
    store: &Store,
    at: Zyx<usize>,
    truth: Option<&[u8]>,
    predicted: Option<&[u8]>,
) -> Result<Vec<Plane>, Error> {
    let (size, mm) = (volume.geometry.size, volume.geometry.spacing_mm());
    let plane = |c: Cut| -> Result<Plane, Error> {
        let region = Region { start: c.start.map(|v| v as i64), size: c.shape };
        let mut values = if volume.channels.is_empty() { Vec::new() } else { volume.read(region, 0.0, store)?.voxels };
        values.truncate(c.rows * c.columns);
        let of = |labels: Option<&[u8]>| cut(labels.unwrap_or_default(), size, c);
        Ok(Plane { values, truth: of(truth), prediction: of(predicted), ..c.plane() })
    };
    cuts(at, size, mm).into_iter().map(plane).collect()
}

/// The planes side by side, each in a square. Rows of the second and third run from the feet up: their first row is drawn last.
fn drawn(planes: &[Plane], edge: usize, window: Option<(f64, f64)>) -> Drawn {
    let mut sorted: Vec<f32> = planes.iter().flat_map(|p| &p.values).copied().filter(|v| v.is_finite()).collect();
    sorted.sort_by(f32::total_cmp);
    let share = |s: f64| sorted.get((sorted.len().saturating_sub(1) as f64 * s) as usize).copied().unwrap_or(0.0);
    let span = (share(0.005), share(0.995));
    let (black, white) = window.map_or(span, |(low, high)| (low as f32, high as f32));
    let scale = |v: f32, (low, high): (f32, f32), n: f32| if high > low { ((v - low) / (high - low) * n).clamp(0.0, n) } else { 0.0 };
    let mut histogram = vec![0.0f32; STEPS];
    sorted.iter().for_each(|v| histogram[(scale(*v, span, STEPS as f32) as usize).min(STEPS - 1)] += 1.0 / sorted.len() as f32);
    let width = edge * planes.len();
    let mut pixels = vec![0u8; width * edge];
    for (k, p) in planes.iter().enumerate() {
        let (height_mm, width_mm) = (p.rows as f64 * p.spacing_mm.0, p.columns as f64 * p.spacing_mm.1);
        // Millimetres a pixel, so that the longer side fills the square.
        let mm = (height_mm.max(width_mm) / (edge - 2) as f64).max(1e-9);
        let (rows, columns) = (((height_mm / mm) as usize).clamp(1, edge), ((width_mm / mm) as usize).clamp(1, edge));
        let (top, left) = ((edge - rows) / 2, (edge - columns) / 2);
        let source = |r: usize, c: usize| {
            let r = if k == 0 { r } else { rows - 1 - r };
            (r * p.rows / rows).min(p.rows - 1) * p.columns + (c * p.columns / columns).min(p.columns - 1)
        };
        // Between voxels the greys are interpolated; labels are not.
        let value = |r: usize, c: usize| -> f32 {
            let r = if k == 0 { r } else { rows - 1 - r };
            let place = |i: usize, n: usize, of: usize| ((i as f64 + 0.5) * of as f64 / n as f64 - 0.5).clamp(0.0, (of - 1) as f64);
            let (y, x) = (place(r, rows, p.rows), place(c, columns, p.columns));
            let of_row = |y: usize| {
                let at = |x: usize| p.values.get(y * p.columns + x.min(p.columns - 1)).copied().unwrap_or(black);
                at(x as usize) + (at(x as usize + 1) - at(x as usize)) * x.fract() as f32
            };
            let (above, below) = (of_row(y as usize), of_row((y as usize + 1).min(p.rows - 1)));
            above + (below - above) * y.fract() as f32
        };
        let is_edge = |labels: &[u8], r: usize, c: usize| {
            let Some(own) = labels.get(source(r, c)).filter(|l| **l > 0) else { return false };
            let other = |r: Option<usize>, c: Option<usize>| match (r.filter(|r| *r < rows), c.filter(|c| *c < columns)) {
                (Some(r), Some(c)) => labels[source(r, c)] != *own,
                _ => true,
            };
            other(r.checked_sub(1), Some(c))
                || other(Some(r + 1), Some(c))
                || other(Some(r), c.checked_sub(1))
                || other(Some(r), Some(c + 1))
        };
        for r in 0..rows {
            for c in 0..columns {
                let colour = match (is_edge(&p.truth, r, c), is_edge(&p.prediction, r, c)) {
                    (true, true) => BOTH,
                    (true, false) => TRUTH,
                    (false, true) => PREDICTION,
                    (false, false) => scale(value(r, c), (black, white), (GREYS - 1) as f32) as u8,
                };
                pixels[(top + r) * width + k * edge + left + c] = colour;
            }
        }
    }
    Drawn { pixels, edge, at: Zyx::splat(0), size: Zyx::splat(0), window: (black, white), span, histogram }
}

/// RGB of the pixels of a [`Drawn`].
pub fn palette() -> Vec<[u8; 3]> {
    let greys = (0..GREYS).map(|g| [(g as u32 * 255 / (GREYS as u32 - 1)) as u8; 3]);
    greys.chain(COLOURS.map(|(_, rgb)| rgb)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_planes_go_through_the_labels() {
        let size = Zyx::new(4, 5, 6);
        let mut labels = vec![0u8; size.count()];
        for x in 1..4 {
            labels[(3 * 5 + 1) * 6 + x] = 2;
        }
        assert_eq!(middle_of(size, Some(&labels)), Zyx::new(3, 1, 3));
        assert_eq!(middle_of(size, Some(&[0; 120])), Zyx::new(2, 2, 3));
        assert_eq!(middle_of(size, None), Zyx::new(2, 2, 3));
    }

    #[test]
    fn contours_have_their_colours_and_a_picture_is_remembered_whole() {
        let n = 40;
        let square = |low: usize, high: usize| -> Vec<u8> {
            (0..n * n).map(|i| ((low..high).contains(&(i / n)) && (low..high).contains(&(i % n))) as u8).collect()
        };
        let plane = || Plane {
            rows: n,
            columns: n,
            spacing_mm: (1.0, 1.0),
            values: (0..n * n).map(|i| (i % n) as f32).collect(),
            truth: square(10, 20),
            prediction: square(25, 35),
        };
        let p = packed(drawn(&[plane()], EDGE, None));
        assert!((p.histogram.iter().sum::<f32>() - 1.0).abs() < 1e-3);
        assert_eq!(remembered(&as_bytes(&p)), Some(p.clone()));
        assert_eq!(remembered(&p.png), None);
        assert!(p.png.len() < 6000, "{} bytes", p.png.len());
        let seen = drawn(&[plane()], 60, Some((0.0, 10.0)));
        assert_eq!((seen.pixels.len(), seen.window), (60 * 60, (0.0, 10.0)));
        assert_eq!(seen.pixels[31 * 60 + 50], GREYS - 1, "what lies beyond the window is white");
    }
}
