//! A file's bytes, wherever they are: on disk, in memory, inside a container, or in a gzip, zstd or deflate wrapping that covers the whole file.
//! All readers of an archive open through here, so that a member of a zip is as good as a file.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{containers, places, scan};

/// What stood around the data set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wrapping {
    #[default]
    None,
    /// A `.gz` of one file.
    Gzip,
    /// A `.zst` of one file.
    Zstd,
    /// Deflated Explicit VR Little Endian (PS3.5 A.5): all but the meta group.
    Deflate,
}

/// An opened file, or a range of one. Clones share what is open.
#[derive(Clone, Debug)]
pub struct Source {
    base: Base,
    start: u64,
    len: u64,
    wrapping: Wrapping,
}

#[derive(Clone, Debug)]
enum Base {
    Disk(Arc<File>),
    Memory(Arc<Vec<u8>>),
}

pub const DEFLATED: &str = "1.2.840.10008.1.2.1.99";
/// Files up to this size are read at once.
pub const WHOLE_BYTES: u64 = 32 << 20;
/// A compressed file may unfold to this many bytes, or to this many times its size where that is less of a surprise.
const MAX_UNFOLDED_BYTES: u64 = 2 << 30;
const MAX_UNFOLDED_RATIO: u64 = 250;

impl Source {
    /// A file of its own, unwrapped where it is compressed.
    pub fn open(path: &Path) -> Result<Source> {
        Source::open_at(path, None)
    }

    /// A file, or the member of a container ([`containers`] says how places are written), unwrapped where it is compressed.
    pub fn open_at(path: &Path, member: Option<&str>) -> Result<Source> {
        Source::raw_at(path, member)?.unwrapped()
    }

    /// The same as its bytes are in the folder or container: what a hash is taken of.
    pub fn raw_at(path: &Path, member: Option<&str>) -> Result<Source> {
        let path = places::path(path);
        match member {
            Some(member) => containers::open(&path, &places::member(member)),
            None => Source::of_file(File::open(path)?),
        }
    }

    /// What [`Source::open_at`] gives, and the blake3 hash (hex) of the bytes as they are in the folder or container. Small files are read once and
    /// kept; of large ones only the hash is taken in passing.
    pub fn open_hashed(path: &Path, member: Option<&str>) -> Result<(Source, String)> {
        let raw = Source::raw_at(path, member)?;
        let raw = if raw.len <= WHOLE_BYTES { raw.in_memory()? } else { raw };
        let hash = blake3::Hash::from_bytes(raw.hash()?).to_hex().to_string();
        Ok((raw.unwrapped()?, hash))
    }

    pub fn of_file(file: File) -> Result<Source> {
        let len = file.metadata()?.len();
        Ok(Source::of_open(file, len))
    }

    /// A file of known length.
    pub fn of_open(file: File, len: u64) -> Source {
        Source { base: Base::Disk(Arc::new(file)), start: 0, len, wrapping: Wrapping::None }
    }

    /// Bytes in memory, as they are.
    pub fn of_raw(bytes: Vec<u8>) -> Source {
        Source { start: 0, len: bytes.len() as u64, base: Base::Memory(Arc::new(bytes)), wrapping: Wrapping::None }
    }

    /// A file already in memory, unwrapped where it is compressed.
    pub fn of_bytes(bytes: Vec<u8>) -> Result<Source> {
        Source::of_raw(bytes).unwrapped()
    }

    /// A part of it; what lies beyond the end is cut.
    pub fn range(&self, start: u64, len: u64) -> Source {
        let from = start.min(self.len);
        Source { start: self.start + from, len: len.min(self.len - from), ..self.clone() }
    }

    /// Read whole where it is not in memory yet.
    fn in_memory(self) -> Result<Source> {
        match self.base {
            Base::Memory(_) => Ok(self),
            Base::Disk(_) => Ok(Source { wrapping: self.wrapping, ..Source::of_raw(self.read_at(0, self.len as usize)?) }),
        }
    }

    /// blake3 of all bytes.
    pub fn hash(&self) -> Result<[u8; 32]> {
        let mut hasher = blake3::Hasher::new();
        match &self.base {
            Base::Memory(bytes) => drop(hasher.update(&bytes[self.start as usize..(self.start + self.len) as usize])),
            Base::Disk(_) => drop(hasher.update_reader(self.reader())?),
        }
        Ok(*hasher.finalize().as_bytes())
    }

    fn unwrapped(self) -> Result<Source> {
        let start = self.read_at(0, 4096.min(self.len as usize))?;
        let wrapping = wrapping_of(&start);
        if wrapping == Wrapping::None {
            return Ok(self);
        }
        let body = match wrapping {
            Wrapping::Deflate => scan::meta(&start).map_or(0, |m| m.end),
            _ => 0,
        };
        let mut out = start[..body].to_vec();
        unfold(self.unfolding(wrapping, body)?, self.len, &mut out)?;
        Ok(Source { wrapping, ..Source::of_raw(out) })
    }

    /// Whatever wraps the whole of it, as far as the first bytes tell.
    pub fn outer_wrapping(&self) -> Result<Wrapping> {
        Ok(wrapping_of(&self.read_at(0, 4096.min(self.len as usize))?))
    }

    /// Reads what stands inside a wrapping, without bound: for those who take only so much of it. `body`: where the deflated part begins.
    pub fn unfolding(&self, wrapping: Wrapping, body: usize) -> Result<Box<dyn Read + '_>> {
        let packed = std::io::BufReader::with_capacity(1 << 16, self.range(body as u64, u64::MAX).reader());
        Ok(match wrapping {
            Wrapping::None => Box::new(packed),
            Wrapping::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
            Wrapping::Deflate => Box::new(flate2::bufread::DeflateDecoder::new(packed)),
            Wrapping::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(packed)?),
        })
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn wrapping(&self) -> Wrapping {
        self.wrapping
    }

    /// Exactly `n` bytes; checked against the length of the file before anything is allocated.
    pub fn read_at(&self, offset: u64, n: usize) -> Result<Vec<u8>> {
        self.check(offset, n)?;
        if let Base::Memory(bytes) = &self.base {
            let at = (self.start + offset) as usize;
            return Ok(bytes[at..at + n].to_vec());
        }
        let mut out = vec![0; n];
        self.read_into(offset, &mut out)?;
        Ok(out)
    }

    /// Fills `out` from `offset` on.
    pub fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.check(offset, out.len())?;
        match &self.base {
            Base::Memory(bytes) => {
                let at = (self.start + offset) as usize;
                out.copy_from_slice(&bytes[at..at + out.len()]);
                Ok(())
            }
            Base::Disk(file) => read_exact_at(file, out, self.start + offset),
        }
    }

    fn check(&self, offset: u64, n: usize) -> Result<()> {
        if offset.checked_add(n as u64).is_some_and(|end| end <= self.len) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::UnexpectedEof, format!("{n} bytes at {offset} of a file of {}", self.len)))
    }

    /// From its first byte on, as a stream.
    pub fn reader(&self) -> Reader {
        Reader { source: self.clone(), at: 0 }
    }
}

/// A source as a stream.
#[derive(Clone, Debug)]
pub struct Reader {
    source: Source,
    at: u64,
}

impl Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let n = (out.len() as u64).min(self.source.len.saturating_sub(self.at)) as usize;
        self.source.read_into(self.at.min(self.source.len), &mut out[..n])?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.source.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "a place before the first byte"))?;
        Ok(self.at)
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

/// What wraps a whole file, by its first bytes.
pub fn wrapping_of(start: &[u8]) -> Wrapping {
    match start {
        [0x1f, 0x8b, 8, ..] => Wrapping::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Wrapping::Zstd,
        _ if scan::meta(start).is_some_and(|m| m.transfer_syntax == DEFLATED) => Wrapping::Deflate,
        _ => Wrapping::None,
    }
}

/// What `folded` bytes may unfold to.
fn unfolded_limit(folded: u64) -> u64 {
    folded.saturating_mul(MAX_UNFOLDED_RATIO).clamp(64 << 20, MAX_UNFOLDED_BYTES)
}

pub(super) fn unfold(reader: impl Read, folded: u64, out: &mut Vec<u8>) -> Result<()> {
    let limit = unfolded_limit(folded);
    reader.take(limit + 1).read_to_end(out)?;
    if out.len() as u64 > limit {
        return Err(Error::new(ErrorKind::InvalidData, format!("{folded} compressed bytes unfold to more than {limit}")));
    }
    Ok(())
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
