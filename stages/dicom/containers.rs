//! What stands inside `.zip`, `.tar`, `.tar.gz` and `.tar.zst`. A place in a container is its member's name; inside a container in a container the names
//! are joined by `!/`: `study.tar!/ct/1.dcm`. Names are looked up, never used as paths. Members that are stored as they are (all of a tar, the stored ones
//! of a zip) are read by ranges of the file; deflated ones are unfolded into memory; a container that is itself compressed is unfolded once, into memory
//! where it is small and else into a file without a name, and kept while it is in use.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use zip::unstable::read::ZipIterable;

use super::bytes::{self, Source, Wrapping};

/// Containers in containers are opened so deep; what is deeper gets a verdict.
pub const DEEPEST: usize = 3;
/// Between the name of a container and of what is in it.
pub const INSIDE: &str = "!/";
/// An unfolded container that is larger stands on disk.
const IN_MEMORY_BYTES: u64 = 64 << 20;
/// Larger unfolded containers are refused.
const MAX_CONTAINER_BYTES: u64 = 64 << 30;
const MAX_CONTAINER_RATIO: u64 = 250;
/// A local file header without its name and extra field (APPNOTE 4.3.7).
const ZIP_LOCAL_BYTES: u64 = 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Zip,
    Tar,
}

/// One member of a container, in the order of the container.
#[derive(Clone, Debug)]
pub struct Member {
    pub name: String,
    /// Unfolded, as the container states it.
    pub bytes: u64,
    pub place: std::result::Result<Place, Closed>,
}

/// Why a member cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Its bytes are lost on us.
    Failed(String),
    /// It adds nothing: a link, an older version of another member.
    Skipped(String),
}

/// Where a member's bytes stand in the container.
#[derive(Clone, Debug)]
pub struct Place {
    /// Of the local header (zip) or of the first byte (tar).
    start: u64,
    packed: u64,
    packing: Packing,
    crc: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    Tar,
    ZipStored,
    ZipDeflated,
    ZipZstd,
}

/// A container with what it says of its members.
#[derive(Debug)]
pub struct Directory {
    source: Source,
    pub members: Vec<Member>,
    /// Why the list ends before the container does.
    pub fault: Option<String>,
    by_name: HashMap<String, usize>,
}

impl Member {
    /// Of which it is unfolded.
    pub fn packed_bytes(&self) -> u64 {
        self.place.as_ref().map_or(0, |p| p.packed)
    }
}

/// What a file is a container of, by its first bytes (512 are enough) and, for what they leave open, its name.
pub fn kind_of(start: &[u8], name: &str) -> Option<Kind> {
    if start.get(128..132) == Some(b"DICM") {
        return None;
    }
    let lower = name.to_ascii_lowercase();
    if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
        // Documents, programs and arrays that happen to be zips are no archives of images.
        const OTHERS: [&str; 14] =
            [".docx", ".xlsx", ".pptx", ".odt", ".ods", ".odp", ".jar", ".war", ".apk", ".npz", ".whl", ".epub", ".mrb", ".kmz"];
        return (!OTHERS.iter().any(|o| lower.ends_with(o))).then_some(Kind::Zip);
    }
    let is_old_tar = lower.ends_with(".tar") && start.len() >= 512 && (is_tar_header(start) || start[..512].iter().all(|b| *b == 0));
    (start.get(257..262) == Some(b"ustar") || is_old_tar).then_some(Kind::Tar)
}

/// The checksum of a tar header: its bytes summed up, the checksum itself taken as spaces.
fn is_tar_header(block: &[u8]) -> bool {
    let sum: u32 = block[..512].iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { *b as u32 }).sum();
    let told = std::str::from_utf8(&block[148..156]).ok().map(|t| t.trim_matches([' ', '\0']));
    told.and_then(|t| u32::from_str_radix(t, 8).ok()) == Some(sum)
}

/// What a source is a container of, looked at through a gzip or zstd wrapping.
pub fn kind_inside(source: &Source, name: &str) -> Option<Kind> {
    let start = source.read_at(0, 512.min(source.len() as usize)).ok()?;
    match bytes::wrapping_of(&start) {
        wrapping @ (Wrapping::Gzip | Wrapping::Zstd) => {
            let mut inner = Vec::with_capacity(512);
            // What there is of a damaged stream decides.
            let _ = source.unfolding(wrapping, 0).ok()?.take(512).read_to_end(&mut inner);
            let lower = name.to_ascii_lowercase();
            let stem = [".gz", ".zst"].iter().find_map(|e| lower.strip_suffix(e)).map(str::to_string);
            let stem = stem.or_else(|| lower.strip_suffix(".tgz").map(|s| format!("{s}.tar"))).unwrap_or(lower);
            kind_of(&inner, &stem)
        }
        _ => kind_of(&start, name),
    }
}

impl Directory {
    /// Lists a container; one that is compressed as a whole is unfolded first.
    pub fn read(source: Source, kind: Kind) -> Result<Directory> {
        let wrapping = source.outer_wrapping()?;
        let source = match wrapping {
            Wrapping::Gzip | Wrapping::Zstd => unfold(source.unfolding(wrapping, 0)?, source.len())?,
            _ => source,
        };
        let (mut members, fault) = match kind {
            Kind::Zip => zip_members(&source)?,
            Kind::Tar => tar_members(&source),
        };
        // Of members of one name the last one counts, as for who unpacks.
        let mut by_name: HashMap<String, usize> = HashMap::with_capacity(members.len());
        for i in 0..members.len() {
            if let Some(older) = by_name.insert(members[i].name.clone(), i) {
                members[older].place = Err(Closed::Skipped("replaced by a later member of the same name".into()));
            }
        }
        Ok(Directory { source, members, fault, by_name })
    }

    /// Its own length, unfolded.
    pub fn bytes(&self) -> u64 {
        self.source.len()
    }

    /// The bytes of a member, as they were put in.
    pub fn open(&self, m: &Member) -> Result<Source> {
        let place =
            m.place.as_ref().map_err(|(Closed::Failed(why) | Closed::Skipped(why))| Error::new(ErrorKind::InvalidData, why.clone()))?;
        let packed = self.packed(place)?;
        if matches!(place.packing, Packing::Tar | Packing::ZipStored) {
            return Ok(packed);
        }
        let source = unfold(unpacking(&packed, place.packing)?.take(m.bytes.saturating_add(1)), place.packed)?;
        let mut crc = flate2::Crc::new();
        let mut chunk = vec![0; 1 << 16];
        let mut reader = source.reader();
        loop {
            let n = reader.read(&mut chunk)?;
            if n == 0 {
                break;
            }
            crc.update(&chunk[..n]);
        }
        if source.len() != m.bytes || crc.sum() != place.crc {
            return Err(Error::new(ErrorKind::InvalidData, "what it unfolds to is not what was packed (length or checksum differ)"));
        }
        Ok(source)
    }

    /// The first `n` bytes of a member (fewer where it ends before), or a source to read any of them from where that costs nothing.
    pub fn peek(&self, m: &Member, n: u64) -> Result<Source> {
        match &m.place {
            Ok(place) if matches!(place.packing, Packing::ZipDeflated | Packing::ZipZstd) => {
                let packed = self.packed(place)?;
                let mut start = Vec::new();
                unpacking(&packed, place.packing)?.take(n).read_to_end(&mut start)?;
                Ok(Source::of_raw(start))
            }
            _ => self.open(m),
        }
    }

    /// Whether [`Directory::peek`] gives the whole member at no cost.
    pub fn is_direct(&self, m: &Member) -> bool {
        m.place.as_ref().is_ok_and(|p| matches!(p.packing, Packing::Tar | Packing::ZipStored))
    }

    fn packed(&self, place: &Place) -> Result<Source> {
        let start = match place.packing {
            Packing::Tar => place.start,
            _ => {
                let mut local = [0; ZIP_LOCAL_BYTES as usize];
                self.source.read_into(place.start, &mut local)?;
                if !local.starts_with(b"PK\x03\x04") {
                    return Err(Error::new(ErrorKind::InvalidData, "no member begins where the zip's directory says"));
                }
                let u16_at = |i: usize| u16::from_le_bytes([local[i], local[i + 1]]) as u64;
                place.start + ZIP_LOCAL_BYTES + u16_at(26) + u16_at(28)
            }
        };
        if start.checked_add(place.packed).is_none_or(|end| end > self.source.len()) {
            return Err(Error::new(ErrorKind::UnexpectedEof, "the container ends inside it"));
        }
        Ok(self.source.range(start, place.packed))
    }
}

fn unpacking(packed: &Source, packing: Packing) -> Result<Box<dyn Read + '_>> {
    let reader = std::io::BufReader::with_capacity((packed.len() as usize).clamp(512, 1 << 16), packed.reader());
    Ok(match packing {
        Packing::Tar | Packing::ZipStored => Box::new(reader),
        Packing::ZipDeflated => Box::new(flate2::bufread::DeflateDecoder::new(reader)),
        Packing::ZipZstd => Box::new(zstd::stream::read::Decoder::with_buffer(reader)?),
    })
}

fn zip_members(source: &Source) -> Result<(Vec<Member>, Option<String>)> {
    let broken = |e: zip::result::ZipError| Error::new(ErrorKind::InvalidData, e.to_string());
    let reader = std::io::BufReader::new(source.reader());
    let mut zip = ZipIterable::try_new(reader, Default::default()).map_err(broken)?;
    let mut members = Vec::new();
    for entry in zip.files().map_err(broken)? {
        let e = match entry {
            Ok(e) => e,
            Err(e) => {
                let fault = format!("its directory is broken after {} members: {e}", members.len());
                return Ok((members, Some(fault)));
            }
        };
        if e.is_dir() {
            continue;
        }
        let name = e.name().map_or_else(|_| text_of(e.name_raw()), |n| n.into_owned());
        let packing = match e.compression() {
            zip::CompressionMethod::Stored => Ok(Packing::ZipStored),
            zip::CompressionMethod::Deflated => Ok(Packing::ZipDeflated),
            zip::CompressionMethod::ZSTD => Ok(Packing::ZipZstd),
            other => Err(Closed::Failed(format!("packed by a method that is not read ({other}): unpack the zip first"))),
        };
        let packing = if e.encrypted() {
            Err(Closed::Failed("encrypted: unpack the zip first".into()))
        } else if e.is_symlink() {
            Err(Closed::Skipped("a link inside a container".into()))
        } else {
            packing
        };
        let place = packing.map(|packing| Place { start: e.header_start(), packed: e.compressed_size(), packing, crc: e.crc32() });
        members.push(Member { name, bytes: e.size(), place });
    }
    Ok((members, None))
}

fn tar_members(source: &Source) -> (Vec<Member>, Option<String>) {
    let mut members = Vec::new();
    // The text of the error carries the member's name, which may be a patient's.
    let broken = |n: usize, e: Error| Some(format!("it is broken after {n} members ({})", e.kind()));
    let mut tar = tar::Archive::new(source.reader());
    let entries = match tar.entries_with_seek() {
        Ok(entries) => entries,
        Err(e) => return (members, broken(0, e)),
    };
    for entry in entries {
        let e = match entry {
            Ok(e) => e,
            Err(e) => {
                let fault = broken(members.len(), e);
                return (members, fault);
            }
        };
        let kind = e.header().entry_type();
        if kind.is_dir() || kind.is_pax_global_extensions() {
            continue;
        }
        let (start, bytes) = (e.raw_file_position(), e.size());
        let place = match kind {
            _ if kind.is_symlink() || kind.is_hard_link() => Err(Closed::Skipped("a link inside a container".into())),
            _ if kind.is_gnu_sparse() => Err(Closed::Failed("a sparse member of a tar: unpack it first".into())),
            _ if !(kind.is_file() || kind.is_contiguous()) => Err(Closed::Skipped("a member of a tar that is no file".into())),
            _ if start.checked_add(bytes).is_none_or(|end| end > source.len()) => {
                Err(Closed::Failed("the container ends inside it".into()))
            }
            _ => Ok(Place { start, packed: bytes, packing: Packing::Tar, crc: 0 }),
        };
        members.push(Member { name: text_of(&e.path_bytes()), bytes, place });
    }
    (members, None)
}

/// A name; bytes that are no UTF-8 are taken as Latin 1, so that different names stay different.
fn text_of(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| bytes.iter().map(|b| *b as char).collect(), str::to_string)
}

/// Unfolds into memory, or, where it gets large, into a file that has lost its name already.
fn unfold(mut reader: impl Read, folded: u64) -> Result<Source> {
    let limit = folded.saturating_mul(MAX_CONTAINER_RATIO).clamp(IN_MEMORY_BYTES, MAX_CONTAINER_BYTES);
    let mut start = Vec::new();
    reader.by_ref().take(IN_MEMORY_BYTES + 1).read_to_end(&mut start)?;
    if start.len() as u64 <= IN_MEMORY_BYTES {
        return Ok(Source::of_raw(start));
    }
    let mut file = nameless_file()?;
    file.write_all(&start)?;
    drop(start);
    let copied = IN_MEMORY_BYTES + 1 + std::io::copy(&mut reader.take(limit), &mut file)?;
    if copied > limit {
        return Err(Error::new(ErrorKind::InvalidData, format!("{folded} compressed bytes unfold to more than {limit}")));
    }
    file.seek(SeekFrom::Start(0))?;
    Source::of_file(file)
}

/// A file for us alone that is gone when it is closed.
#[cfg(unix)]
fn nameless_file() -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    use std::sync::atomic::{AtomicU64, Ordering};
    static N: AtomicU64 = AtomicU64::new(0);
    let name = format!("voxmill-{}-{}.unfolded", std::process::id(), N.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    let file = std::fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(not(unix))]
fn nameless_file() -> Result<File> {
    Err(Error::new(ErrorKind::Unsupported, format!("it unfolds to more than {IN_MEMORY_BYTES} bytes: unpack it first")))
}

/// Opens the member of a container: the raw bytes that were put in.
pub fn open(path: &Path, member: &str) -> Result<Source> {
    let mut inside = String::new();
    let mut directory = kept(path, &inside, || Source::raw_at(path, None))?;
    let mut rest = member;
    for _ in 0..DEEPEST {
        if let Some(i) = directory.by_name.get(rest) {
            return directory.open(&directory.members[*i]);
        }
        let places = rest.match_indices(INSIDE).map(|(at, _)| at);
        let Some((at, i)) = places.filter_map(|at| Some((at, *directory.by_name.get(&rest[..at])?))).next() else { break };
        inside = format!("{inside}{}{INSIDE}", &rest[..at]);
        rest = &rest[at + INSIDE.len()..];
        let outer = directory.clone();
        directory = kept(path, &inside, || outer.open(&outer.members[i]))?;
    }
    Err(Error::new(ErrorKind::NotFound, "no such member in the container"))
}

/// A container on disk, and which of those nested in it.
#[derive(Clone, PartialEq, Eq)]
struct Place0 {
    path: PathBuf,
    inside: String,
    stat: super::walk::Stat,
}

type Slot = Arc<OnceLock<std::result::Result<Arc<Directory>, (ErrorKind, String)>>>;

/// The directories of the containers in use, the last used last: 300 slices of one zip read its directory once.
static KEPT: Mutex<Vec<(Place0, Slot)>> = Mutex::new(Vec::new());

/// Every thread may be in a container of its own, and in those that it is nested in, with another one to come.
fn n_kept() -> usize {
    (2 * DEEPEST * rayon::current_num_threads()).max(8)
}

/// A container that could not be read is looked at anew by the next who asks.
fn forget(slot: &Slot) {
    KEPT.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).retain(|(_, s)| !Arc::ptr_eq(s, slot));
}

fn kept(path: &Path, inside: &str, source: impl FnOnce() -> Result<Source>) -> Result<Arc<Directory>> {
    let stat = super::walk::Stat::of(&std::fs::metadata(path)?);
    let place = Place0 { path: path.to_path_buf(), inside: inside.to_string(), stat };
    let slot: Slot = {
        let mut kept = KEPT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let slot = match kept.iter().position(|(p, _)| *p == place) {
            Some(i) => kept.remove(i).1,
            None => Slot::default(),
        };
        let too_many = (kept.len() + 1).saturating_sub(n_kept());
        kept.drain(..too_many);
        kept.push((place, slot.clone()));
        slot
    };
    let read = || {
        let source = source()?;
        let kind = kind_inside(&source, inside.strip_suffix(INSIDE).unwrap_or(&path.to_string_lossy()));
        Directory::read(source, kind.ok_or_else(|| Error::new(ErrorKind::InvalidData, "it is no container any more"))?).map(Arc::new)
    };
    slot.get_or_init(|| read().map_err(|e| (e.kind(), e.to_string()))).clone().map_err(|(kind, why)| {
        forget(&slot);
        Error::new(kind, why)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A zip of members, each stored or deflated.
    pub fn zip_of(members: &[(&str, &[u8], bool)]) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (name, bytes, deflated) in members {
            let method = if *deflated { zip::CompressionMethod::Deflated } else { zip::CompressionMethod::Stored };
            zip.start_file(*name, zip::write::SimpleFileOptions::default().compression_method(method)).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    pub fn tar_of(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in members {
            let mut h = tar::Header::new_gnu();
            h.set_size(bytes.len() as u64);
            tar.append_data(&mut h, name, *bytes).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(bytes).unwrap();
        gz.finish().unwrap()
    }

    fn read(path: &Path, member: &str) -> Vec<u8> {
        let s = Source::raw_at(path, Some(member)).unwrap();
        s.read_at(0, s.len() as usize).unwrap()
    }

    #[test]
    fn members_of_all_containers_are_what_was_put_in() {
        let dir = tempfile::tempdir().unwrap();
        let long = "d/".repeat(80) + "x";
        let inner = zip_of(&[("deep", b"bottom", true)]);
        let tar = tar_of(&[("a/b", b"tar"), (&long, b"far"), ("in.zip", &inner)]);
        let zip = zip_of(&[("stored", b"as it is", false), ("deflated", &[7; 5000], true), ("t.tgz", &gz(&tar), true)]);
        for (name, bytes) in
            [("c.zip", zip.clone()), ("c.tar", tar.clone()), ("c.tar.gz", gz(&tar)), ("c.tar.zst", zstd::encode_all(&tar[..], 1).unwrap())]
        {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        for name in ["c.tar", "c.tar.gz", "c.tar.zst"] {
            assert_eq!(read(&dir.path().join(name), "a/b"), b"tar");
            assert_eq!(read(&dir.path().join(name), &long), b"far");
            assert_eq!(read(&dir.path().join(name), "in.zip!/deep"), b"bottom");
        }
        let c = dir.path().join("c.zip");
        assert_eq!(read(&c, "stored"), b"as it is");
        assert_eq!(read(&c, "deflated"), [7; 5000]);
        assert_eq!(read(&c, "t.tgz!/a/b"), b"tar");
        assert_eq!(read(&c, "t.tgz!/in.zip!/deep"), b"bottom");
        assert_eq!(Source::raw_at(&c, Some("../none")).unwrap_err().kind(), ErrorKind::NotFound);
        // A container that changes is read anew.
        std::fs::write(&c, zip_of(&[("stored", b"anew", true)])).unwrap();
        assert_eq!(read(&c, "stored"), b"anew");
    }

    #[test]
    fn of_members_of_one_name_the_last_counts() {
        let tar = tar_of(&[("a", b"old"), ("a", b"new")]);
        let d = Directory::read(Source::of_raw(tar), Kind::Tar).unwrap();
        assert!(matches!(d.members[0].place, Err(Closed::Skipped(_))));
        assert_eq!(d.open(&d.members[1]).unwrap().read_at(0, 3).unwrap(), b"new");
    }

    #[test]
    fn a_cut_off_or_damaged_container_says_so() {
        let tar = tar_of(&[("a", &[1; 600]), ("b", &[2; 600])]);
        let d = Directory::read(Source::of_raw(tar[..2100].to_vec()), Kind::Tar).unwrap();
        assert!(d.members[0].place.is_ok());
        assert!(d.fault.is_some() || d.members[1].place.is_err());
        let mut zip = zip_of(&[("a", &[3; 600], true)]);
        assert!(Directory::read(Source::of_raw(zip[..zip.len() / 2].to_vec()), Kind::Zip).is_err());
        zip[33] ^= 0x55;
        let d = Directory::read(Source::of_raw(zip), Kind::Zip).unwrap();
        assert!(d.open(&d.members[0]).is_err());
    }

    #[test]
    fn a_broken_tar_names_no_member() {
        let mut tar = tar_of(&[("fine", &[1; 600]), ("JANE^DOE", &[2; 600])]);
        // The size of the second member is no number.
        tar[512 + 1024 + 124..512 + 1024 + 136].copy_from_slice(b"JANE^DOE^^^^");
        let d = Directory::read(Source::of_raw(tar), Kind::Tar).unwrap();
        let fault = d.fault.unwrap();
        assert!(fault.starts_with("it is broken after 1 members"), "{fault}");
        assert!(!fault.contains("JANE"), "{fault}");
    }

    #[test]
    fn as_many_containers_are_kept_as_the_threads_use_and_none_that_failed() {
        let dir = tempfile::tempdir().unwrap();
        let threads = rayon::ThreadPoolBuilder::new().num_threads(16).build().unwrap();
        threads.install(|| {
            let paths: Vec<_> = (0..16).map(|i| dir.path().join(format!("{i}.zip"))).collect();
            paths.iter().for_each(|p| std::fs::write(p, zip_of(&[("a", b"a", false)])).unwrap());
            let directory = |p: &Path| kept(p, "", || Source::raw_at(p, None)).unwrap();
            let first: Vec<_> = paths.iter().map(|p| directory(p)).collect();
            assert!(paths.iter().zip(&first).all(|(p, d)| Arc::ptr_eq(&directory(p), d)));
            let fails = |why: &str| kept(&dir.path().join("0.zip"), "x!/", || Err(Error::other(why.to_string()))).unwrap_err().to_string();
            assert_eq!((fails("once"), fails("twice")), ("once".into(), "twice".into()));
        });
    }

    #[test]
    fn a_bomb_is_refused_before_it_unfolds() {
        let zeros = vec![0; 80 << 20];
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gz.write_all(&zeros).unwrap();
        let bomb = gz.finish().unwrap();
        assert!(Directory::read(Source::of_raw(bomb), Kind::Tar).is_err());
    }
}
