//! Rows of the index → one volume in memory: headers again (they place the slices), then pixels, one slice at a time.

use rayon::prelude::*;
use voxmill_schemas::geometry::{Geometry, Zyx};
use voxmill_schemas::tables::InstanceRow;

use super::blend;
use super::contents::FileRef;
use super::header::{self, Header};
use super::order::{self, How, Slice, Stack, count};
use super::pixels::{self, Decoded, Sink};
use super::suv::Suv;
use crate::error::Error;
use crate::volume::{Repeats, Voxels, slab_depth};

/// A volume as the files tell it.
#[derive(Debug)]
pub struct Stacked {
    pub geometry: Geometry,
    /// `[z, y, x]`, with colours or `repeats` before it; without voxels where [`Slabs`] took them.
    pub pixels: Decoded,
    /// Frames or volumes that follow one another in time.
    pub repeats: Option<Repeats>,
    /// `gaps: keep`: where each slice stands, mm from the first along `axes_mm.z`; empty on a regular grid.
    pub z_positions_mm: Vec<f64>,
    /// `gaps: fill`: slices that no file holds.
    pub made_slices: Vec<usize>,
    /// Why the grid says nothing of the patient.
    pub unknown_geometry: Option<String>,
    /// One a file.
    pub headers: Vec<Header>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// How a volume is read.
pub struct Reading<'a> {
    pub how: How,
    pub limit_bytes: u64,
    /// Colour images become channels R, G and B instead of an error.
    pub keeps_colour: bool,
    pub suv: Option<Suv>,
    /// The volume is a later one of several in time.
    pub is_repeat: bool,
    /// Told the bytes of every file read; an error stops the reading.
    pub step: &'a (dyn Fn(u64) -> Result<(), Error> + Sync),
}

/// More frames than a loop can have.
const MAX_LOOP_FRAMES: u32 = 1 << 20;

/// Takes the size of the volume, the index of a slab's first slice and its voxels `[z, y, x]`, as [`Sink::take`] does.
pub type Slabs<'a> = &'a mut dyn FnMut(Zyx<usize>, usize, Voxels) -> Result<Option<Voxels>, Error>;

/// Reads the volume that these instances form.
pub fn volume(instances: &[InstanceRow], how: &Reading) -> Result<Stacked, Error> {
    volume_into(instances, how, None)
}

/// The same, and `slabs` takes a volume whose slices can be given as they are decoded; any other one stands whole in the result.
pub fn volume_into(instances: &[InstanceRow], how: &Reading, slabs: Option<Slabs>) -> Result<Stacked, Error> {
    let files: Vec<FileRef> = instances.iter().map(FileRef::of).collect();
    let headers: Vec<Header> = files.par_iter().map(read_header).collect::<Result<_, _>>()?;
    (how.step)(0)?;
    if let [h] = &headers[..]
        && !h.has_frame_headers()
        && h.frames.len() == 1
    {
        return of_loop(&files, headers, how);
    }
    let frames = frames_of(instances, &headers);
    let slices: Vec<Slice> = frames.iter().map(|(file, frame)| Slice::of(&headers[*file], *frame)).collect();
    let refuse = |why: String| Error::Geometry { what: format!("volume of {}", count(slices.len(), "slice")), why };
    let Stack { order, duplicates, geometry, z_positions_mm, blends, unknown_geometry, mut notes } =
        order::stack(&slices, &how.how).map_err(refuse)?;
    let samples = headers.iter().map(|h| h.samples.max(1) as usize).max().unwrap_or(1);
    check_size(geometry.size, samples, how)?;
    let decode = |of: &mut dyn Iterator<Item = usize>, sink: Option<&mut Sink>| {
        let sorted: Vec<(usize, usize)> = of.map(|i| frames[i]).collect();
        pictures(&files, &headers, &sorted, geometry.size, how, sink)
    };
    let mut pixels = match slabs.filter(|_| blends.is_empty()) {
        Some(slabs) => {
            let mut take = |first: usize, voxels: Voxels| slabs(geometry.size, first, voxels);
            let mut sink = Sink { depth: slab_depth(geometry.size), take: &mut take };
            decode(&mut order.iter().copied(), Some(&mut sink))?
        }
        None => decode(&mut order.iter().copied(), None)?,
    };
    if !duplicates.is_empty() {
        let (kept, other) = (decode(&mut duplicates.iter().map(|d| d.0), None)?, decode(&mut duplicates.iter().map(|d| d.1), None)?);
        let plane = geometry.size.y * geometry.size.x;
        // All colours of a picture.
        let n_planes = kept.voxels.len().checked_div(plane).unwrap_or(0);
        if let Some(i) = (0..n_planes).find(|i| !blend::same_plane(&kept.voxels, &other.voxels, plane, *i)).map(|i| i % duplicates.len()) {
            let (a, b) = (&slices[duplicates[i].0], &slices[duplicates[i].1]);
            let at = a.position.unwrap_or_default();
            let why = format!(
                "{} and {} both lie at [{:.3}, {:.3}, {:.3}] mm, their pixels differ, and nothing says that they are of two volumes",
                a.name(),
                b.name(),
                at[0],
                at[1],
                at[2]
            );
            return Err(refuse(why));
        }
        let (a, b) = (&slices[duplicates[0].0], &slices[duplicates[0].1]);
        notes.push(format!(
            "{} left out, the same picture at the same position: {} and {}, …",
            count(duplicates.len(), "duplicate slice"),
            a.name(),
            b.name()
        ));
    }
    let made_slices = (0..blends.len()).filter(|k| blends[*k].high_weight > 0.0).collect();
    if !blends.is_empty() {
        let channels = if pixels.is_colour { 3 } else { 1 };
        pixels.voxels = blend::planes(&pixels.voxels, channels, geometry.size, &blends, pixels.padding);
    }
    notes.append(&mut pixels.notes);
    Ok(Stacked { geometry, pixels, repeats: None, z_positions_mm, made_slices, unknown_geometry, headers, notes })
}

/// The pixels of slices; slices of a mosaic are cut out of its picture, which is decoded once.
fn pictures(
    files: &[FileRef],
    headers: &[Header],
    slices: &[(usize, usize)],
    size: Zyx<usize>,
    how: &Reading,
    sink: Option<&mut Sink>,
) -> Result<Decoded, Error> {
    let px = pixels::How { keeps_colour: how.keeps_colour, suv: how.suv, is_repeat: how.is_repeat, step: how.step };
    let mosaic = |file: usize| headers[file].mosaic.as_ref().and_then(|m| m.as_ref().ok());
    if !slices.iter().any(|(file, _)| mosaic(*file).is_some()) {
        return pixels::decode_into(files, headers, slices, Zyx { z: slices.len(), ..size }, &px, sink);
    }
    let mut wanted: Vec<usize> = slices.iter().map(|(file, _)| *file).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let of = |why: String| Error::Geometry { what: "volume of mosaics".into(), why };
    if wanted.iter().any(|file| mosaic(*file).is_none()) {
        return Err(of("mosaics and single slices in one volume".into()));
    }
    let first = &headers[wanted[0]];
    let (rows, columns) = (first.rows as usize, first.columns as usize);
    check_size(Zyx::new(wanted.len(), rows, columns), 1, how)?;
    let whole: Vec<(usize, usize)> = wanted.iter().map(|file| (*file, 0)).collect();
    let decoded = pixels::decode(files, headers, &whole, rows, columns, &px)?;
    if decoded.is_colour {
        return Err(of("a mosaic in colour".into()));
    }
    macro_rules! tiles {
        ($kind:ident, $pictures:expr) => {
            Voxels::$kind(
                slices
                    .iter()
                    .flat_map(|(file, tile)| {
                        let at = wanted.binary_search(file).expect("made of these slices") * rows * columns;
                        mosaic(*file).expect("checked above").tile(&$pictures[at..at + rows * columns], *tile)
                    })
                    .collect(),
            )
        };
    }
    let voxels = match &decoded.voxels {
        Voxels::U8(v) => tiles!(U8, v),
        Voxels::I16(v) => tiles!(I16, v),
        Voxels::U16(v) => tiles!(U16, v),
        Voxels::F16(v) => tiles!(F16, v),
        Voxels::F32(v) => tiles!(F32, v),
    };
    Ok(Decoded { voxels, ..decoded })
}

/// Volumes that lie on one another, joined along a first axis of time: all of one grid.
/// - `volumes`: instances of each, in order
pub fn repeated(volumes: &[Vec<InstanceRow>], how: &Reading) -> Result<Stacked, Error> {
    let of = |why: String| Error::Geometry { what: format!("{} of one place", count(volumes.len(), "volume")), why };
    let mut parts = Vec::with_capacity(volumes.len());
    for (t, instances) in volumes.iter().enumerate() {
        let part = volume(instances, &Reading { is_repeat: how.is_repeat || t > 0, ..*how })?;
        let first = parts.first().unwrap_or(&part);
        check_size(part.geometry.size, volumes.len(), how)?;
        if part.pixels.is_colour || part.repeats.is_some() {
            return Err(of("colours and loops have a first axis of their own: take `repeats: separate`".into()));
        }
        // Positions are written with so many digits, and repeats with a hair between them are repeats.
        let is_near = |(a, b): (&f64, &f64)| (a - b).abs() <= 0.02;
        let same_slices = part.z_positions_mm.iter().zip(&first.z_positions_mm).all(is_near);
        if !part.geometry.same_grid(&first.geometry, 0.05) || part.z_positions_mm.len() != first.z_positions_mm.len() || !same_slices {
            return Err(of(format!("repeat {} lies on another grid than the first: take `repeats: separate`", t + 1)));
        }
        if part.made_slices != first.made_slices {
            let why = format!(
                "repeat {} lacks other slices than the first, and one list of made slices is kept: take `repeats: separate`",
                t + 1
            );
            return Err(of(why));
        }
        parts.push(part);
    }
    let join = |parts: &[Stacked]| -> Voxels {
        macro_rules! all {
            ($kind:ident) => {
                parts.iter().map(|p| if let Voxels::$kind(v) = &p.pixels.voxels { Some(&v[..]) } else { None }).collect::<Option<Vec<_>>>()
            };
        }
        if let Some(v) = all!(I16) {
            Voxels::I16(v.concat())
        } else if let Some(v) = all!(U8) {
            Voxels::U8(v.concat())
        } else if let Some(v) = all!(U16) {
            Voxels::U16(v.concat())
        } else {
            // Repeats of several types: what holds them all.
            Voxels::F32(parts.iter().flat_map(|p| p.pixels.voxels.to_f32().into_owned()).collect())
        }
    };
    let voxels = join(&parts);
    let mut notes: Vec<String> = Vec::new();
    let mut headers = Vec::new();
    let mut all = parts.into_iter();
    let mut first = all.next().ok_or_else(|| of("no volume".into()))?;
    let same_padding = first.pixels.padding;
    let mut keeps_padding = true;
    notes.append(&mut first.notes);
    for part in all {
        keeps_padding &= part.pixels.padding == same_padding;
        headers.extend(part.headers);
        part.notes.into_iter().for_each(|n| {
            if !notes.contains(&n) {
                notes.push(n)
            }
        });
    }
    first.headers.extend(headers);
    let padding = same_padding.filter(|_| keeps_padding);
    Ok(Stacked { pixels: Decoded { voxels, padding, ..first.pixels }, repeats: Some(Repeats::default()), notes, ..first })
}

/// A file whose frames have no place each: they follow one another in time, whatever their number.
fn of_loop(files: &[FileRef], headers: Vec<Header>, how: &Reading) -> Result<Stacked, Error> {
    let h = &headers[0];
    let slice = Slice::of(h, 0);
    let told = order::told_loop(h.n_frames);
    let refuse = |why: String| Error::Geometry { what: format!("a file of {}", count(h.n_frames as usize, "frame")), why };
    if !how.how.takes_unplaced {
        return Err(refuse(format!("{told} ({})", order::LOOP_HELP)));
    }
    if h.n_frames > MAX_LOOP_FRAMES {
        return Err(refuse(format!("more than {MAX_LOOP_FRAMES} frames")));
    }
    // One frame may well say where it lies; what it says of the others is not known.
    let slice = Slice { position: None, frame_number: None, ..slice };
    let Stack { geometry, unknown_geometry, mut notes, .. } =
        order::stack(&[slice], &How { keeps_single: true, ..how.how }).map_err(refuse)?;
    check_size(geometry.size, h.n_frames as usize, how)?;
    let sorted: Vec<(usize, usize)> = (0..h.n_frames as usize).map(|frame| (0, frame)).collect();
    let mut pixels = pictures(files, &headers, &sorted, geometry.size, how, None)?;
    if pixels.is_colour {
        return Err(refuse("a loop in colour has two axes before its picture (time and colour), and a volume has one".into()));
    }
    notes.append(&mut pixels.notes);
    notes.push(told.clone());
    let unknown_geometry = unknown_geometry.map(|why| format!("{told}; {why}"));
    let repeats = Some(Repeats { times_s: loop_times_s(h), ..Repeats::default() });
    Ok(Stacked { geometry, pixels, repeats, z_positions_mm: Vec::new(), made_slices: Vec::new(), unknown_geometry, headers, notes })
}

/// Seconds of each frame since the first, empty where the file does not say.
fn loop_times_s(h: &Header) -> Vec<f64> {
    let n = h.n_frames as usize;
    let seconds = |ms: f64| (ms * 1e3).round() / 1e6;
    match &h.frame_times_ms[..] {
        [step] if *step > 0.0 => (0..n).map(|i| seconds(i as f64 * step)).collect(),
        // FrameTimeVector: the first value belongs to the first frame and is 0 (PS3.3 C.7.6.5.1.2).
        steps if steps.len() == n => {
            let mut at = 0.0;
            let sum = |(i, step): (usize, &f64)| {
                at += if i == 0 { 0.0 } else { *step };
                seconds(at)
            };
            steps.iter().enumerate().map(sum).collect()
        }
        _ => Vec::new(),
    }
}

/// float32 at worst: refused before it is allocated.
fn check_size(size: Zyx<usize>, channels: usize, how: &Reading) -> Result<(), Error> {
    let wanted_bytes = size.checked_count().and_then(|n| n.checked_mul(channels)).map_or(u64::MAX, |n| (n as u64).saturating_mul(4));
    if wanted_bytes <= how.limit_bytes {
        return Ok(());
    }
    let what = format!("a volume of {size} voxels (a larger `--memory` allows more)");
    Err(Error::TooLarge { what, wanted_bytes, limit_bytes: how.limit_bytes })
}

fn read_header(f: &FileRef) -> Result<Header, Error> {
    let again = |why: &str| Error::Dicom { file: f.name.clone(), why: format!("{why} since it was indexed: run again") };
    match header::read(&f.path, f.member.as_deref()) {
        Ok(Ok(h)) => Ok(h),
        Ok(Err(_)) => Err(again("its header has changed")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(again("the file is gone")),
        // By the name that the index gave it: the place may name the patient.
        Err(e) => Err(Error::Dicom { file: f.name.clone(), why: format!("it cannot be read: {}", e.kind()) }),
    }
}

/// (file, frame) of every slice of the volume.
fn frames_of(instances: &[InstanceRow], headers: &[Header]) -> Vec<(usize, usize)> {
    let mut out = Vec::new();
    for (file, (i, h)) in instances.iter().zip(headers).enumerate() {
        if i.frames.is_empty() {
            out.extend((0..h.frames.len()).map(|frame| (file, frame)));
        } else {
            out.extend(i.frames.iter().map(|frame| (file, *frame as usize)));
        }
    }
    out
}
