//! Rows of the index → one volume in memory: headers again (they place the slices), then pixels, one slice at a time.

use rayon::prelude::*;
use voxmill_schemas::geometry::Geometry;
use voxmill_schemas::tables::InstanceRow;

use super::contents::FileRef;
use super::header::{self, Header};
use super::order::{self, Slice, Stack};
use super::pixels::{self, Decoded, How};
use super::suv::Suv;
use crate::error::Error;

/// A volume as the files tell it.
#[derive(Debug)]
pub struct Stacked {
    pub geometry: Geometry,
    pub pixels: Decoded,
    /// One a file.
    pub headers: Vec<Header>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// How a volume is read.
pub struct Reading<'a> {
    /// One slice alone becomes a volume of depth one.
    pub keeps_single: bool,
    pub limit_bytes: u64,
    /// Colour images become channels R, G and B instead of an error.
    pub keeps_colour: bool,
    pub suv: Option<Suv>,
    /// Told the bytes of every file read; an error stops the reading.
    pub step: &'a (dyn Fn(u64) -> Result<(), Error> + Sync),
}

/// Reads the volume that these instances form.
pub fn volume(instances: &[InstanceRow], how: &Reading) -> Result<Stacked, Error> {
    let files: Vec<FileRef> = instances.iter().map(FileRef::of).collect();
    let headers: Vec<Header> = files.par_iter().map(read_header).collect::<Result<_, _>>()?;
    (how.step)(0)?;
    let frames = frames_of(instances, &headers);
    let slices: Vec<Slice> = frames.iter().map(|(file, frame)| Slice::of(&headers[*file], *frame)).collect();
    let what = || format!("series of {} slices", slices.len());
    let Stack { order, geometry, mut notes } =
        order::stack(&slices, how.keeps_single).map_err(|why| Error::Geometry { what: what(), why })?;
    // float32 at worst: refused before it is allocated.
    let samples = headers.iter().map(|h| h.samples.max(1) as u64).max().unwrap_or(1);
    let wanted_bytes = geometry.size.checked_count().map_or(u64::MAX, |n| (n as u64).saturating_mul(4 * samples));
    if wanted_bytes > how.limit_bytes {
        let what = format!("a volume of {} voxels (a larger `--memory` allows more)", geometry.size);
        return Err(Error::TooLarge { what, wanted_bytes, limit_bytes: how.limit_bytes });
    }
    let sorted: Vec<(usize, usize)> = order.iter().map(|i| frames[*i]).collect();
    let pixels = How { keeps_colour: how.keeps_colour, suv: how.suv, step: how.step };
    let mut pixels = pixels::decode(&files, &headers, &sorted, geometry.size.y, geometry.size.x, &pixels)?;
    notes.append(&mut pixels.notes);
    Ok(Stacked { geometry, pixels, headers, notes })
}

fn read_header(f: &FileRef) -> Result<Header, Error> {
    let again = |why: &str| Error::Dicom { file: f.name.clone(), why: format!("{why} since it was indexed: run again") };
    match header::read(&f.path, f.member.as_deref()) {
        Ok(Ok(h)) => Ok(h),
        Ok(Err(_)) => Err(again("its header has changed")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(again("the file is gone")),
        // By the name that the index gave it: the place may name the patient.
        Err(e) => Err(Error::Dicom { file: f.name.clone(), why: format!("it cannot be read: {e}") }),
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
