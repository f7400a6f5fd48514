//! A file's bytes, wherever they are: on disk, in memory, or inside a gzip or deflate wrapping that covers the whole file.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::scan;

/// What stood around the data set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wrapping {
    #[default]
    None,
    /// A `.gz` of one file.
    Gzip,
    /// Deflated Explicit VR Little Endian (PS3.5 A.5): all but the meta group.
    Deflate,
}

/// An opened file.
#[derive(Debug)]
pub enum Source {
    Disk { file: File, len: u64 },
    Memory { bytes: Vec<u8>, wrapping: Wrapping },
}

pub const DEFLATED: &str = "1.2.840.10008.1.2.1.99";
/// Files up to this size are read at once.
pub const WHOLE_BYTES: u64 = 32 << 20;
/// A compressed file may unfold to this many bytes, or to this many times its size where that is less of a surprise.
const MAX_UNFOLDED_BYTES: u64 = 2 << 30;
const MAX_UNFOLDED_RATIO: u64 = 250;

impl Source {
    pub fn open(path: &Path) -> Result<Source> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let source = Source::Disk { file, len };
        let start = source.read_at(0, 4096.min(len as usize))?;
        if is_wrapped(&start).is_some() {
            return Source::of_bytes(source.read_at(0, len as usize)?);
        }
        Ok(source)
    }

    /// A file already in memory, unwrapped where it is compressed.
    pub fn of_bytes(bytes: Vec<u8>) -> Result<Source> {
        let wrapping = is_wrapped(&bytes).unwrap_or_default();
        let bytes = match wrapping {
            Wrapping::None => bytes,
            Wrapping::Gzip => unfold(flate2::read::MultiGzDecoder::new(&bytes[..]), bytes.len(), Vec::new())?,
            Wrapping::Deflate => {
                let start = scan::meta(&bytes).map_or(0, |m| m.end);
                unfold(flate2::read::DeflateDecoder::new(&bytes[start..]), bytes.len(), bytes[..start].to_vec())?
            }
        };
        Ok(Source::Memory { bytes, wrapping })
    }

    pub fn len(&self) -> u64 {
        match self {
            Source::Disk { len, .. } => *len,
            Source::Memory { bytes, .. } => bytes.len() as u64,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn wrapping(&self) -> Wrapping {
        match self {
            Source::Disk { .. } => Wrapping::None,
            Source::Memory { wrapping, .. } => *wrapping,
        }
    }

    /// Exactly `n` bytes; checked against the length of the file before anything is allocated.
    pub fn read_at(&self, offset: u64, n: usize) -> Result<Vec<u8>> {
        let is_inside = offset.checked_add(n as u64).is_some_and(|end| end <= self.len());
        if !is_inside {
            return Err(Error::new(ErrorKind::UnexpectedEof, format!("{n} bytes at {offset} of a file of {}", self.len())));
        }
        match self {
            Source::Memory { bytes, .. } => Ok(bytes[offset as usize..offset as usize + n].to_vec()),
            Source::Disk { file, .. } => {
                let mut out = vec![0; n];
                read_exact_at(file, &mut out, offset)?;
                Ok(out)
            }
        }
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> Result<()> {
    let mut done = 0;
    while done < out.len() {
        match std::os::windows::fs::FileExt::seek_read(file, &mut out[done..], offset + done as u64)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            n => done += n,
        }
    }
    Ok(())
}

fn is_wrapped(start: &[u8]) -> Option<Wrapping> {
    if start.starts_with(&[0x1f, 0x8b, 8]) {
        return Some(Wrapping::Gzip);
    }
    scan::meta(start).filter(|m| m.transfer_syntax == DEFLATED).map(|_| Wrapping::Deflate)
}

fn unfold(reader: impl Read, folded: usize, mut out: Vec<u8>) -> Result<Vec<u8>> {
    let limit = (folded as u64).saturating_mul(MAX_UNFOLDED_RATIO).clamp(64 << 20, MAX_UNFOLDED_BYTES);
    reader.take(limit + 1).read_to_end(&mut out)?;
    if out.len() as u64 > limit {
        return Err(Error::new(ErrorKind::InvalidData, format!("{folded} compressed bytes unfold to more than {limit}")));
    }
    Ok(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_gzipped_file_is_read_as_what_is_in_it() {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&[7; 1000]).unwrap();
        let s = Source::of_bytes(gz.finish().unwrap()).unwrap();
        assert_eq!((s.len(), s.wrapping()), (1000, Wrapping::Gzip));
        assert!(s.read_at(990, 11).is_err());
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        let zeros = vec![0; 1 << 20];
        (0..80).for_each(|_| gz.write_all(&zeros).unwrap());
        assert!(Source::of_bytes(gz.finish().unwrap()).is_err());
    }
}
