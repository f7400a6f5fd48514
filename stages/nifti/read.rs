//! A NIfTI file, whole, into memory. What is read is bounded by what the header promises and by what the file can hold.

use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use voxmill_schemas::geometry::Geometry;
use voxmill_schemas::tables::InstanceRow;

use super::header::{Dtype, Header, MAX_HEADER};
use crate::dicom::bytes::{Reader, Source};
use crate::error::Error;
use crate::volume::Voxels;

/// A gzip stream does not grow by more than this when unpacked (deflate's limit).
const MAX_GZIP_RATIO: u64 = 1032;
/// More voxel bytes than this are refused.
const MAX_BYTES: u64 = 16 << 30;

/// The content of a NIfTI file.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    pub geometry: Geometry,
    /// Product of the 4th and later axes: time points, or one-hot classes. Colours are three each.
    pub channels: usize,
    /// `[c, z, y, x]`, scaled. Integers that fit stay 8- or 16-bit integers; scaled values, wider integers and floats become float32.
    pub voxels: Voxels,
    /// False where the file has neither sform nor qform, so that `geometry` says nothing of the patient.
    pub is_placed: bool,
    /// Channels are red, green and blue.
    pub is_colour: bool,
}

/// Reads `.nii` and `.nii.gz` (told apart by their first bytes, not by their name).
pub fn read(path: &Path) -> Result<Image, Error> {
    read_hashed(path, None, &path.file_name().unwrap_or_default().to_string_lossy())?.0
}

/// A file of an index; refused when its bytes have changed since.
pub fn read_indexed(row: &InstanceRow) -> Result<Image, Error> {
    let (image, hash) = read_hashed(Path::new(&row.path), row.member.as_deref(), &row.file)?;
    if hash != row.content {
        return Err(Error::Nifti { file: row.file.clone(), why: "the file has changed since it was indexed: run again".into() });
    }
    image
}

/// What a file holds and the blake3 hash of all its bytes, which are read once.
fn read_hashed(path: &Path, member: Option<&str>, name: &str) -> Result<(Result<Image, Error>, String), Error> {
    // By the name that the index gives it: its path may name a patient.
    let unread = |e: std::io::Error| Error::Nifti { file: name.into(), why: format!("it cannot be read: {e}") };
    let source = Source::raw_at(path, member).map_err(unread)?;
    let file_bytes = source.len();
    let mut file = std::io::BufReader::with_capacity(1 << 16, Hashing { file: source.reader(), hasher: blake3::Hasher::new() });
    let is_gzip = std::io::BufRead::fill_buf(&mut file).map_err(unread)?.starts_with(&[0x1f, 0x8b]);
    let (image, mut file) = if is_gzip {
        let limit = file_bytes.saturating_mul(MAX_GZIP_RATIO);
        let mut unpacked = MultiGzDecoder::new(file);
        (parse(&mut unpacked, limit, name), unpacked.into_inner())
    } else {
        (parse(&mut file, file_bytes, name), file)
    };
    std::io::copy(&mut file, &mut std::io::sink()).map_err(unread)?;
    Ok((image, file.into_inner().hasher.finalize().to_hex().to_string()))
}

/// Hashes what is read through it.
struct Hashing {
    file: Reader,
    hasher: blake3::Hasher,
}

impl Read for Hashing {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(to)?;
        self.hasher.update(&to[..n]);
        Ok(n)
    }
}

fn parse(mut from: impl Read, can_hold: u64, name: &str) -> Result<Image, Error> {
    let name = || name.to_string();
    let wrong = |why: String| Error::Nifti { file: name(), why };
    let mut head = Vec::with_capacity(MAX_HEADER);
    from.by_ref().take(MAX_HEADER as u64).read_to_end(&mut head).map_err(|e| wrong(format!("it cannot be unpacked ({e})")))?;
    let header = Header::parse(&head).map_err(wrong)?;
    let wanted = header.data_bytes().ok_or_else(|| wrong(format!("its size {} overflows", header.size)))?;
    if wanted as u64 > MAX_BYTES {
        return Err(Error::TooLarge { what: name(), wanted_bytes: wanted as u64, limit_bytes: MAX_BYTES });
    }
    let end = header.data_at.saturating_add(wanted);
    let short = |has: u64| wrong(format!("its header promises {wanted} bytes of voxels, the file holds at most {has}: it is truncated"));
    if end as u64 > can_hold {
        return Err(short(can_hold.saturating_sub(header.data_at as u64)));
    }
    // The vector grows with what is really there, not with what is promised.
    from.take((end - head.len().min(end)) as u64).read_to_end(&mut head).map_err(|e| wrong(format!("it cannot be unpacked ({e})")))?;
    if head.len() < end {
        return Err(short(head.len().saturating_sub(header.data_at) as u64));
    }
    let voxels = voxels(&head[header.data_at..end], &header);
    let is_colour = header.dtype.is_colour();
    let channels = if is_colour { 3 * header.channels } else { header.channels };
    Ok(Image { geometry: header.geometry, channels, voxels, is_placed: header.is_placed, is_colour })
}

/// NIfTI stores x fastest, then y, z, t: our C order `[c, z, y, x]` as it stands.
fn voxels(bytes: &[u8], h: &Header) -> Voxels {
    macro_rules! decode {
        ($t:ty) => {{
            const N: usize = size_of::<$t>();
            bytes.chunks_exact(N).map(|b| {
                let b: [u8; N] = b.try_into().expect("chunks of this size");
                if h.is_big_endian { <$t>::from_be_bytes(b) } else { <$t>::from_le_bytes(b) }
            })
        }};
    }
    macro_rules! scaled {
        ($t:ty) => {
            match h.scaling {
                Some((slope, intercept)) => Voxels::F32(decode!($t).map(|v| (v as f64 * slope + intercept) as f32).collect()),
                None => Voxels::F32(decode!($t).map(|v| v as f32).collect()),
            }
        };
    }
    // Wide integers that hold narrow values (labels as int32, CT as int32) stay integers.
    macro_rules! narrowed {
        ($t:ty) => {
            if h.scaling.is_some() {
                scaled!($t)
            } else if decode!($t).all(|v| i16::try_from(v).is_ok()) {
                Voxels::I16(decode!($t).map(|v| v as i16).collect())
            } else if decode!($t).all(|v| u16::try_from(v).is_ok()) {
                Voxels::U16(decode!($t).map(|v| v as u16).collect())
            } else {
                scaled!($t)
            }
        };
    }
    match (h.dtype, h.scaling) {
        (Dtype::U8, None) => Voxels::U8(bytes.to_vec()),
        (Dtype::I16, None) => Voxels::I16(decode!(i16).collect()),
        (Dtype::U16, None) => Voxels::U16(decode!(u16).collect()),
        (Dtype::I8, None) => Voxels::I16(decode!(i8).map(i16::from).collect()),
        (Dtype::U8, Some(_)) => scaled!(u8),
        (Dtype::I8, Some(_)) => scaled!(i8),
        (Dtype::I16, Some(_)) => scaled!(i16),
        (Dtype::U16, Some(_)) => scaled!(u16),
        (Dtype::U32, _) => narrowed!(u32),
        (Dtype::I32, _) => narrowed!(i32),
        (Dtype::U64, _) => narrowed!(u64),
        (Dtype::I64, _) => narrowed!(i64),
        (Dtype::F32, _) => scaled!(f32),
        (Dtype::F64, _) => scaled!(f64),
        // Pixels → planes, volume by volume; transparency is left out.
        (Dtype::Rgb24 | Dtype::Rgba32, _) => {
            let step = h.dtype.size_bytes();
            let volumes = bytes.chunks_exact(step * h.size.count());
            Voxels::U8(volumes.flat_map(|v| (0..3).flat_map(move |c| v.iter().skip(c).step_by(step).copied())).collect())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::geometry::Zyx;

    use super::super::header::tests::nifti1;
    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let f = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(f.path(), bytes).unwrap();
        f
    }

    #[test]
    fn values_of_every_type_and_byte_order_arrive() {
        for big in [false, true] {
            let bytes = |dtype: i16, one: &dyn Fn(i64) -> Vec<u8>| {
                let mut b = nifti1(dtype, big, |_| {});
                for i in 0..24 {
                    let mut v = one(i);
                    if big {
                        v.reverse();
                    }
                    b.extend(v);
                }
                read(file(&b).path()).unwrap()
            };
            let ramp: Vec<f32> = (0..24).map(|v| v as f32).collect();
            let of = [
                bytes(2, &|v| vec![v as u8]),
                bytes(256, &|v| vec![v as u8]),
                bytes(4, &|v| (v as i16).to_le_bytes().into()),
                bytes(512, &|v| (v as u16).to_le_bytes().into()),
                bytes(8, &|v| (v as i32).to_le_bytes().into()),
                bytes(768, &|v| (v as u32).to_le_bytes().into()),
                bytes(1024, &|v| v.to_le_bytes().into()),
                bytes(1280, &|v| (v as u64).to_le_bytes().into()),
                bytes(16, &|v| (v as f32).to_le_bytes().into()),
                bytes(64, &|v| (v as f64).to_le_bytes().into()),
            ];
            for image in of {
                assert_eq!(image.voxels.to_f32(), ramp);
                assert_eq!(image.geometry.size, Zyx::new(2, 3, 4));
            }
        }
    }

    #[test]
    fn scaling_is_applied() {
        let mut b = nifti1(4, false, |set| {
            set(112, 0.5f32.to_le_bytes().into());
            set(116, (-3f32).to_le_bytes().into());
        });
        (0..24i16).for_each(|v| b.extend(v.to_le_bytes()));
        let Voxels::F32(v) = read(file(&b).path()).unwrap().voxels else { panic!("scaled values are floats") };
        assert_eq!((v[0], v[1], v[23]), (-3.0, -2.5, 8.5));
    }

    #[test]
    fn wide_integers_widen_only_as_needed() {
        let of = |first: i32| {
            let mut b = nifti1(8, false, |_| {});
            b.extend(first.to_le_bytes());
            (1..24i32).for_each(|v| b.extend(v.to_le_bytes()));
            read(file(&b).path()).unwrap().voxels
        };
        assert!(matches!(of(-1), Voxels::I16(_)));
        assert!(matches!(of(40_000), Voxels::U16(_)));
        assert!(matches!(of(70_000), Voxels::F32(_)));
    }

    #[test]
    fn a_promise_larger_than_the_file_is_refused_before_reading() {
        let mut b = nifti1(64, false, |set| {
            for i in 0..3 {
                set(42 + 2 * i, 1200i16.to_le_bytes().into());
            }
        });
        b.extend([0; 100]);
        let e = read(file(&b).path()).unwrap_err().to_string();
        assert!(e.contains("truncated"), "{e}");
        let mut packed = Vec::new();
        std::io::copy(&mut flate2::read::GzEncoder::new(&b[..], flate2::Compression::fast()), &mut packed).unwrap();
        let e = read(file(&packed).path()).unwrap_err().to_string();
        assert!(e.contains("truncated"), "{e}");
        let huge = nifti1(64, false, |set| {
            for i in 0..4 {
                set(42 + 2 * i, i16::MAX.to_le_bytes().into());
            }
            set(40, 4i16.to_le_bytes().into());
        });
        assert!(read(file(&huge).path()).is_err());
    }
}
