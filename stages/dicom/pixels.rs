//! Files of a stack → one array. The type of a voxel is what the headers imply (uint8, int16, float32); where an int16 turns out too narrow it becomes uint16
//! where it is, and where neither holds the values files are read again into float32. Rescale is applied frame by frame, never the first one for all. Frames are
//! read straight into their place.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use voxmill_schemas::geometry::Zyx;

use super::colour::{self, Planes};
use super::contents::FileRef;
use super::frames::{self, Opened, fault};
use super::header::Header;
use super::suv::{self, Suv};
use super::values::{self, Map, Range};
use crate::error::Error;
use crate::volume::Voxels;

/// How pixels become voxels.
pub struct How<'a> {
    /// Colour images become channels R, G and B instead of an error.
    pub keeps_colour: bool,
    pub suv: Option<Suv>,
    /// The frames are of a volume that is a later one of several in time.
    pub is_repeat: bool,
    /// Told the bytes of every file read; an error of it stops the reading.
    pub step: &'a (dyn Fn(u64) -> Result<(), Error> + Sync),
}

/// Where grey slices go as they are decoded.
pub struct Sink<'a> {
    /// Slices of a slab; the last one may have fewer.
    pub depth: usize,
    /// Takes the index of a slab's first slice and its voxels `[z, y, x]`, in order of z, and may give back memory for another. One that begins at slice 0
    /// begins anew: what came before is void, since its type turned out too narrow.
    pub take: &'a mut dyn FnMut(usize, Voxels) -> Result<Option<Voxels>, Error>,
}

/// What the files hold.
#[derive(Debug, PartialEq)]
pub struct Decoded {
    /// `[z, y, x]`; `[c, z, y, x]` where `is_colour`; empty where a [`Sink`] took them.
    pub voxels: Voxels,
    /// Three channels: R, G, B.
    pub is_colour: bool,
    /// Which values of `voxels` are no tissue.
    pub padding: Option<[f64; 2]>,
    /// What a value means, where that is another thing than the headers say.
    pub unit: Option<&'static str>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// Reads frames into one array.
/// - `headers`: one a file
/// - `slices`: (file, frame) of each z
pub fn decode(
    files: &[FileRef],
    headers: &[Header],
    slices: &[(usize, usize)],
    rows: usize,
    columns: usize,
    how: &How,
) -> Result<Decoded, Error> {
    decode_into(files, headers, slices, Zyx::new(slices.len(), rows, columns), how, None)
}

/// The same into `sink`, slab by slab, where the pictures are grey.
/// - `size`: slices, rows, columns
pub fn decode_into(
    files: &[FileRef],
    headers: &[Header],
    slices: &[(usize, usize)],
    size: Zyx<usize>,
    how: &How,
    sink: Option<&mut Sink>,
) -> Result<Decoded, Error> {
    let (rows, columns) = (size.y, size.x);
    let n = rows.checked_mul(columns).filter(|n| *n > 0 && n.checked_mul(slices.len().max(1) * 12).is_some());
    let (Some(n), Some(&(first, _))) = (n, slices.first()) else {
        let file = files.first().map_or("no file", |f| &f.name);
        return Err(fault(file, format!("{} frames of {rows}×{columns} pixels are no image", slices.len())));
    };
    let mut uses = vec![0; files.len()];
    slices.iter().for_each(|(file, _)| uses[*file] += 1);
    for (f, h) in files.iter().zip(headers) {
        if (h.rows as usize, h.columns as usize) != (rows, columns) {
            return Err(fault(&f.name, format!("{}×{} pixels where {rows}×{columns} are expected", h.rows, h.columns)));
        }
    }
    let is_colour = frames::is_colour(&headers[first]);
    if let Some((f, _)) = files.iter().zip(headers).find(|(_, h)| frames::is_colour(h) != is_colour) {
        return Err(fault(&f.name, "grey and colour images in one stack"));
    }
    if is_colour && !how.keeps_colour {
        let h = &headers[first];
        let why = format!("{} pixels of {} samples: `colour: channels` makes three channels of them", h.photometric, h.samples);
        return Err(fault(&files[first].name, why));
    }
    let factors = match how.suv {
        Some(Suv::BodyWeight) => Some(factors(files, headers, how.is_repeat)?),
        None => None,
    };
    let opens = |file: usize| {
        let needs_philips = file == first && headers[file].manufacturer.to_ascii_lowercase().contains("philips");
        frames::open(&files[file], &headers[file], needs_philips, how.step)
    };
    // A multi-frame file is opened once; files of one slice are opened, read and closed one by one.
    let shared: Vec<Option<Opened>> =
        (0..files.len()).map(|file| if uses[file] > 1 { opens(file).map(Some) } else { Ok(None) }).collect::<Result<_, _>>()?;
    // What a file claims is held against what is in it before memory is taken by its word.
    let mut notes = Vec::new();
    {
        let own;
        let opened = match &shared[first] {
            Some(opened) => opened,
            None => {
                let silent = |_| Ok(());
                own = frames::open(&files[first], &headers[first], true, &silent)?;
                &own
            }
        };
        if let Some([slope, intercept]) = opened.extras.philips_scale.filter(|s| *s != [1.0, 0.0]) {
            notes.push(format!("the private scale of Philips (2005,100E) {slope}, (2005,100D) {intercept} is not applied"));
        }
    }
    let stack = Stack { files, headers, slices, factors, shared, how, n, buffers: Mutex::new(Vec::new()) };
    let voxels = match sink {
        _ if is_colour => stack.colours()?,
        Some(sink) => {
            stack.greys(sink, &mut notes)?;
            Voxels::U8(Vec::new())
        }
        None => {
            let mut whole = None;
            let mut take = |_, voxels| {
                whole = Some(voxels);
                Ok(None)
            };
            stack.greys(&mut Sink { depth: slices.len(), take: &mut take }, &mut notes)?;
            whole.expect("there is a slice, so there is a slab")
        }
    };
    let padding = if is_colour { None } else { stack.padding(&mut notes)? };
    if headers.iter().any(|h| h.photometric == "MONOCHROME1") {
        notes.push("MONOCHROME1: values are as stored, low ones are bright".into());
    }
    Ok(Decoded { voxels, is_colour, padding, unit: how.suv.map(|_| "SUV"), notes })
}

/// What every slice needs to know.
struct Stack<'a> {
    files: &'a [FileRef],
    headers: &'a [Header],
    slices: &'a [(usize, usize)],
    /// SUV: what rescaled values of each file are multiplied with.
    factors: Option<Vec<f64>>,
    shared: Vec<Option<Opened<'a>>>,
    how: &'a How<'a>,
    n: usize,
    /// Frames that are not read straight into their place go through these, one a thread.
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl Stack<'_> {
    fn with_frame(&self, z: usize, use_it: impl FnOnce(&Opened, usize, Map) -> Result<(), Error>) -> Result<(), Error> {
        let (file, frame) = self.slices[z];
        let own;
        let opened = match &self.shared[file] {
            Some(opened) => opened,
            None => {
                own = frames::open(&self.files[file], &self.headers[file], false, self.how.step)?;
                &own
            }
        };
        use_it(opened, frame, self.map(opened, file, frame)?)
    }

    fn map(&self, opened: &Opened, file: usize, frame: usize) -> Result<Map, Error> {
        // A table wins over rescale (PS3.3 C.11.1).
        if let Some(lut) = &opened.extras.modality_lut {
            return Ok(Map::Table(lut.clone()));
        }
        let (slope, intercept) = self.rescale(file, frame)?;
        Ok(Map::Linear { slope, intercept })
    }

    fn rescale(&self, file: usize, frame: usize) -> Result<(f64, f64), Error> {
        let h = &self.headers[file];
        let f = h.frames.get(frame).or(h.frames.first());
        let slope = f.and_then(|f| f.slope).unwrap_or(1.0);
        if slope == 0.0 {
            return Err(fault(&self.files[file].name, format!("RescaleSlope of frame {} is 0", frame + 1)));
        }
        let factor = self.factors.as_ref().map_or(1.0, |f| f[file]);
        Ok((slope * factor, f.and_then(|f| f.intercept).unwrap_or(0.0) * factor))
    }

    fn buffered<T>(&self, use_it: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let mut buffer = self.buffers.lock().expect("nothing panics while it is held").pop().unwrap_or_default();
        let out = use_it(&mut buffer);
        self.buffers.lock().expect("nothing panics while it is held").push(buffer);
        out
    }

    fn greys(&self, sink: &mut Sink, notes: &mut Vec<String>) -> Result<(), Error> {
        let mut is_real = false;
        let mut is_byte = true;
        for (file, frame) in self.slices {
            let h = &self.headers[*file];
            let rescale = self.rescale(*file, *frame)?;
            let is_float = h.pixel.is_some_and(|p| p.tag != 0x7FE0_0010);
            is_real |= is_float || (!h.has_modality_lut && values::integers(rescale.0, rescale.1).is_none());
            is_byte &= h.bits_allocated <= 8 && !h.is_signed && !h.has_modality_lut && rescale == (1.0, 0.0);
        }
        match (is_real, is_byte) {
            (true, _) => self.reals(sink, notes),
            (false, true) => self.bytes(sink),
            (false, false) => self.integers(sink, notes),
        }
    }

    /// First slice and number of slices of every slab.
    fn slabs(&self, sink: &Sink) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (n, depth) = (self.slices.len(), sink.depth.max(1));
        (0..n).step_by(depth).map(move |z| (z, depth.min(n - z)))
    }

    fn bytes(&self, sink: &mut Sink) -> Result<(), Error> {
        let mut spare = None;
        for (first, n) in self.slabs(sink) {
            let mut out = if let Some(Voxels::U8(spare)) = spare { spare } else { Vec::new() };
            out.resize(n * self.n, 0u8);
            out.par_chunks_mut(self.n).enumerate().try_for_each(|(z, out)| {
                self.with_frame(first + z, |opened, frame, _| {
                    if opened.read_bytes(frame, out)? {
                        return Ok(());
                    }
                    self.buffered(|buffer| {
                        let raw = opened.grey(frame, buffer)?;
                        if raw.format.width != 1 {
                            let why = format!("frame {}: a codestream of {} bits where 8 are allocated", frame + 1, raw.format.bits);
                            return Err(fault(opened.name, why));
                        }
                        values::bytes_of(raw, out);
                        Ok(())
                    })
                })
            })?;
            spare = (sink.take)(first, Voxels::U8(out))?;
        }
        Ok(())
    }

    /// int16 where every value is one, else uint16, else float32. Slabs go out as int16 until one does not fit; only where that happens are files read twice.
    fn integers(&self, sink: &mut Sink, notes: &mut Vec<String>) -> Result<(), Error> {
        let mut ranges: Vec<Range> = vec![(0, 0); self.slices.len()];
        let is_short = |r: &Range| r.0 >= i16::MIN as i64 && r.1 <= i16::MAX as i64;
        let (mut words, mut fits) = (Vec::new(), true);
        for (first, n) in self.slabs(sink) {
            words.resize(n * self.n, 0i16);
            self.words(first, &mut words, &mut ranges[first..first + n])?;
            fits &= ranges[first..first + n].iter().all(is_short);
            if fits {
                let spare = (sink.take)(first, Voxels::I16(std::mem::take(&mut words)))?;
                words = if let Some(Voxels::I16(spare)) = spare { spare } else { Vec::new() };
            }
        }
        if fits {
            return Ok(());
        }
        let (low, high) = ranges.iter().fold((i64::MAX, i64::MIN), |(l, h), r| (l.min(r.0), h.max(r.1)));
        let is_unsigned = low >= 0 && high <= u16::MAX as i64;
        if !is_unsigned {
            drop(words);
            return self.reals(sink, notes);
        }
        let is_one_slab = sink.depth >= self.slices.len();
        for (first, n) in self.slabs(sink) {
            if !is_one_slab {
                words.resize(n * self.n, 0);
                self.words(first, &mut words, &mut vec![(0, 0); n])?;
            }
            let spare = (sink.take)(first, Voxels::U16(bytemuck::cast_vec(std::mem::take(&mut words))))?;
            words = if let Some(Voxels::U16(spare)) = spare { bytemuck::cast_vec(spare) } else { Vec::new() };
        }
        Ok(())
    }

    /// Values modulo 2^16 of the slices from `first`, and their true ranges.
    fn words(&self, first: usize, words: &mut [i16], ranges: &mut [Range]) -> Result<(), Error> {
        words.par_chunks_mut(self.n).zip(ranges).enumerate().try_for_each(|(z, (out, range))| {
            self.with_frame(first + z, |opened, frame, map| {
                if let Map::Linear { slope, intercept } = map
                    && opened.read_words(frame, out)?
                {
                    let (slope, intercept) = (slope as i64, intercept as i64);
                    *range = values::in_place(out, &opened.native_format(), slope, intercept);
                    return Ok(());
                }
                self.buffered(|buffer| {
                    *range = values::wrapped(opened.grey(frame, buffer)?, &map, out);
                    Ok(())
                })
            })
        })
    }

    fn reals(&self, sink: &mut Sink, notes: &mut Vec<String>) -> Result<(), Error> {
        let is_exact = AtomicBool::new(true);
        let mut spare = None;
        for (first, n) in self.slabs(sink) {
            let mut out = if let Some(Voxels::F32(spare)) = spare { spare } else { Vec::new() };
            out.resize(n * self.n, 0f32);
            out.par_chunks_mut(self.n).enumerate().try_for_each(|(z, out)| {
                self.with_frame(first + z, |opened, frame, map| {
                    self.buffered(|buffer| {
                        if !values::real(opened.grey(frame, buffer)?, &map, out) {
                            is_exact.store(false, Ordering::Relaxed);
                        }
                        Ok(())
                    })
                })
            })?;
            spare = (sink.take)(first, Voxels::F32(out))?;
        }
        if !is_exact.into_inner() {
            notes.push("values are rounded to float32, which cannot hold all of them exactly".into());
        }
        Ok(())
    }

    /// `[c, z, y, x]`
    fn colours(&self) -> Result<Voxels, Error> {
        // The first slice says which type all have.
        let mut kind = None;
        self.with_frame(0, |opened, frame, _| colour::planes(opened, frame).map(|p| kind = Some(p)))?;
        Ok(match kind.expect("a frame was decoded") {
            Planes::U8(_) => Voxels::U8(self.planes(|p| if let Planes::U8(p) = p { Some(p) } else { None })?),
            Planes::U16(_) => Voxels::U16(self.planes(|p| if let Planes::U16(p) = p { Some(p) } else { None })?),
            Planes::F32(_) => Voxels::F32(self.planes(|p| if let Planes::F32(p) = p { Some(p) } else { None })?),
        })
    }

    fn planes<T: Copy + Default + Send + Sync>(&self, take: impl Fn(Planes) -> Option<Vec<T>> + Sync) -> Result<Vec<T>, Error> {
        let mut out = vec![T::default(); 3 * self.n * self.slices.len()];
        let (red, rest) = out.split_at_mut(self.n * self.slices.len());
        let (green, blue) = rest.split_at_mut(self.n * self.slices.len());
        let places = red.par_chunks_mut(self.n).zip(green.par_chunks_mut(self.n)).zip(blue.par_chunks_mut(self.n));
        places.enumerate().try_for_each(|(z, ((red, green), blue))| {
            self.with_frame(z, |opened, frame, _| {
                let planes = take(colour::planes(opened, frame)?)
                    .ok_or_else(|| fault(opened.name, "its samples are of another size than those of the first slice"))?;
                for (channel, out) in planes.chunks_exact(self.n).zip([red, green, blue]) {
                    out.copy_from_slice(channel);
                }
                Ok(())
            })
        })?;
        Ok(out)
    }

    /// The padding range in voxel units, where all slices agree on it.
    fn padding(&self, notes: &mut Vec<String>) -> Result<Option<[f64; 2]>, Error> {
        let mut found: Vec<[f64; 2]> = Vec::new();
        for (file, frame) in self.slices {
            let h = &self.headers[*file];
            let Some(value) = h.padding else { continue };
            let stored = [value, h.padding_limit.unwrap_or(value)];
            let ends = if h.has_modality_lut {
                let own;
                let opened = match &self.shared[*file] {
                    Some(opened) => opened,
                    None => {
                        own = frames::open(&self.files[*file], h, true, &|_| Ok(()))?;
                        &own
                    }
                };
                stored.map(|v| opened.extras.modality_lut.as_ref().map_or(v as f64, |lut| lut.at(v) as f64))
            } else {
                let (slope, intercept) = self.rescale(*file, *frame)?;
                // As voxels hold it: float32 where it is no integer.
                stored.map(|v| v as f64 * slope + intercept).map(|v| if v.fract() == 0.0 { v } else { v as f32 as f64 })
            };
            let range = [ends[0].min(ends[1]), ends[0].max(ends[1])];
            if !found.contains(&range) {
                found.push(range);
            }
            if found.len() > 1 {
                notes.push("the padding value means another voxel value in each slice: which voxels are padding is not recorded".into());
                return Ok(None);
            }
        }
        Ok(found.pop())
    }
}

/// SUV factors, one a file.
fn factors(files: &[FileRef], headers: &[Header], is_repeat: bool) -> Result<Vec<f64>, Error> {
    let tracers: Vec<_> = files
        .par_iter()
        .zip(headers)
        .map(|(f, h)| frames::open(f, h, true, &|_| Ok(())).map(|opened| opened.extras.tracer))
        .collect::<Result<_, _>>()?;
    let began = suv::Began::of(&tracers, is_repeat);
    let factor = |(f, t): (&FileRef, &suv::Tracer)| suv::factor(t, &began).map_err(|why| fault(&f.name, why));
    files.iter().zip(&tracers).map(factor).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::dicom::header::{Common, FrameHeader};
    use crate::dicom::scan::PixelElement;

    #[test]
    fn slabs_hold_what_the_whole_would_whatever_type_it_turns_out_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let file = FileRef { path: path.clone(), member: None, name: "f".into(), content: String::new(), seen: String::new() };
        let cases = [
            (8, [1, 200], 0.0, 1.0, "uint8"),
            (16, [700, 3000], -1000.0, 1.0, "int16"),
            (16, [700, 65535], 0.0, 1.0, "uint16"),
            (16, [0, 65535], -70000.0, 1.0, "float32"),
            (16, [0, 65535], 0.0, 2.0, "float32"),
            (16, [0, 65535], 0.0, 0.5, "float32"),
        ];
        for (bits, [low, high], intercept, slope, dtype) in cases {
            // Five frames of 2×3; only the fourth has the high value.
            let words = (0..30u32).map(|i| if i == 20 { high } else { low + i });
            let bytes: Vec<u8> = match bits {
                8 => words.map(|w| w as u8).collect(),
                _ => words.flat_map(|w| (w as u16).to_le_bytes()).collect(),
            };
            std::fs::write(&path, &bytes).unwrap();
            let common = Common {
                rows: 2,
                columns: 3,
                n_frames: 5,
                samples: 1,
                photometric: "MONOCHROME2".into(),
                bits_allocated: bits,
                bits_stored: bits,
                high_bit: bits - 1,
                ..Common::default()
            };
            let header = Header {
                frames: vec![FrameHeader { slope: Some(slope), intercept: Some(intercept), ..FrameHeader::default() }],
                pixel: Some(PixelElement { tag: 0x7FE0_0010, offset: 0, length: Some(bytes.len() as u32) }),
                ..common.into()
            };
            let (files, headers) = ([file.clone()], [header]);
            let slices: Vec<_> = (0..5).map(|frame| (0, frame)).collect();
            let how = How { keeps_colour: false, suv: None, is_repeat: false, step: &|_| Ok(()) };
            let whole = decode(&files, &headers, &slices, 2, 3, &how).unwrap();
            assert_eq!(whole.voxels.dtype(), dtype);
            for depth in [1, 2, 5] {
                let (mut taken, mut kind) = (Vec::new(), "");
                let mut take = |first: usize, slab: Voxels| {
                    if first == 0 {
                        taken.clear();
                        kind = slab.dtype();
                    }
                    assert_eq!((taken.len(), slab.dtype()), (first * 6 * slab.as_bytes().len() / slab.len(), kind));
                    taken.extend_from_slice(slab.as_bytes());
                    Ok(Some(slab))
                };
                let mut sink = Sink { depth, take: &mut take };
                let told = decode_into(&files, &headers, &slices, Zyx::new(5, 2, 3), &how, Some(&mut sink)).unwrap();
                assert_eq!((kind, &taken[..]), (dtype, whole.voxels.as_bytes()), "depth {depth}");
                assert_eq!((told.padding, told.notes, told.voxels.len()), (whole.padding, whole.notes.clone(), 0));
            }
        }
    }
}
