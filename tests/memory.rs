//! The promise of memory, held by an allocator that counts: reading a file takes no more than four times its bytes and 64 MiB, be it hostile or a picture of
//! one value that packs without end. Only what is packed as real pictures are, and is larger than 64 KiB, may take more.

#[path = "fuzz/memory.rs"]
mod memory;

use std::path::Path;

use voxmill_stages::dicom::names::Names;
use voxmill_stages::dicom::order::{Gaps, How};
use voxmill_stages::dicom::read::{Reading, volume};
use voxmill_stages::dicom::{catalog, rows, walk};

const J2K: &str = "1.2.840.10008.1.2.4.90";
const JPEG_LS: &str = "1.2.840.10008.1.2.4.80";
const JPEG: &str = "1.2.840.10008.1.2.4.50";
const JPEG_LOSSLESS: &str = "1.2.840.10008.1.2.4.70";
const RLE: &str = "1.2.840.10008.1.2.5";

/// What a header says.
#[derive(Clone, Copy)]
struct Says {
    syntax: &'static str,
    side: u16,
    bits: u16,
    frames: usize,
}

fn element(out: &mut Vec<u8>, tag: [u16; 2], vr: &str, value: &[u8]) {
    let pad = if vr == "UI" { 0 } else { b' ' };
    let mut value = value.to_vec();
    if value.len() % 2 == 1 {
        value.push(pad);
    }
    tag.iter().for_each(|t| out.extend(t.to_le_bytes()));
    out.extend(vr.bytes());
    out.extend((value.len() as u16).to_le_bytes());
    out.extend(value);
}

/// A file with `frames` times the same codestream.
fn file(says: Says, codestream: &[u8]) -> Vec<u8> {
    let mut meta = Vec::new();
    let class: &[u8] = if says.frames > 1 { b"1.2.840.10008.5.1.4.1.1.7.3" } else { b"1.2.840.10008.5.1.4.1.1.2" };
    element(&mut meta, [2, 2], "UI", class);
    element(&mut meta, [2, 3], "UI", b"1.2.3.4");
    element(&mut meta, [2, 0x10], "UI", says.syntax.as_bytes());
    let mut out = vec![0; 128];
    out.extend(b"DICM");
    element(&mut out, [2, 0], "UL", &(meta.len() as u32).to_le_bytes());
    out.extend(meta);
    element(&mut out, [8, 0x16], "UI", class);
    element(&mut out, [8, 0x18], "UI", b"1.2.3.4");
    element(&mut out, [8, 0x60], "CS", b"CT");
    element(&mut out, [0x20, 0xd], "UI", b"1.2.3");
    element(&mut out, [0x20, 0xe], "UI", b"1.2.5");
    let word = |v: u16| v.to_le_bytes();
    element(&mut out, [0x28, 2], "US", &word(1));
    element(&mut out, [0x28, 4], "CS", b"MONOCHROME2");
    element(&mut out, [0x28, 8], "IS", says.frames.to_string().as_bytes());
    element(&mut out, [0x28, 0x10], "US", &word(says.side));
    element(&mut out, [0x28, 0x11], "US", &word(says.side));
    element(&mut out, [0x28, 0x100], "US", &word(says.bits));
    element(&mut out, [0x28, 0x101], "US", &word(says.bits));
    element(&mut out, [0x28, 0x102], "US", &word(says.bits - 1));
    element(&mut out, [0x28, 0x103], "US", &word(0));
    out.extend([0xe0, 0x7f, 0x10, 0, b'O', b'B', 0, 0, 0xff, 0xff, 0xff, 0xff]);
    let item = |out: &mut Vec<u8>, body: &[u8]| {
        out.extend([0xfe, 0xff, 0x00, 0xe0]);
        out.extend((body.len().next_multiple_of(2) as u32).to_le_bytes());
        out.extend(body);
        out.extend(&[0][..body.len() % 2]);
    };
    item(&mut out, &[]);
    (0..says.frames).for_each(|_| item(&mut out, codestream));
    out.extend([0xfe, 0xff, 0xdd, 0xe0, 0, 0, 0, 0]);
    out
}

/// Every coefficient is 0: one packet of one byte a resolution.
fn j2k(side: u32, bits: u8, block: u8) -> Vec<u8> {
    let mut s = vec![0xff, 0x4f, 0xff, 0x51, 0, 41, 0, 0];
    [side, side, 0, 0, side, side, 0, 0].iter().for_each(|v| s.extend(v.to_be_bytes()));
    s.extend([0, 1, bits - 1, 1, 1]);
    s.extend([0xff, 0x52, 0, 12, 0, 0, 0, 1, 0, 5, block, block, 0, 1]);
    s.extend([0xff, 0x5c, 0, 19, 0x40]);
    s.extend([(bits + 2) << 3; 16]);
    s.extend([0xff, 0x90, 0, 10, 0, 0, 0, 0, 0, 20, 0, 1, 0xff, 0x93]);
    s.extend([0; 6]);
    s.extend([0xff, 0xd9]);
    s
}

/// All runs go on to the end of their rows.
fn jpeg_ls(side: u16, bits: u8, n: usize) -> Vec<u8> {
    let [high, low] = side.to_be_bytes();
    let mut s = vec![0xff, 0xd8, 0xff, 0xf7, 0, 11, bits, high, low, high, low, 1, 1, 0x11, 0];
    s.extend([0xff, 0xda, 0, 8, 1, 1, 0, 0, 0, 0]);
    s.extend([0xff, 0x7f].repeat(n / 2));
    s.extend([0xff, 0xd9]);
    s
}

/// Every code is a bit of 0: a difference of nothing, the end of a block.
fn jpeg(kind: u8, side: u16, n: usize) -> Vec<u8> {
    let [high, low] = side.to_be_bytes();
    let mut s = vec![0xff, 0xd8, 0xff, kind, 0, 11, 8, high, low, high, low, 1, 1, 0x11, 0];
    for class in [0x00, 0x10] {
        s.extend([0xff, 0xc4, 0, 20, class, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    s.extend([0xff, 0xda, 0, 8, 1, 1, 0, if kind == 0xc3 { 1 } else { 0 }, if kind == 0xc3 { 0 } else { 63 }, 0]);
    s.extend(vec![0; n]);
    s.extend([0xff, 0xd9]);
    s
}

/// Runs of 128.
fn rle(n_pixels: usize) -> Vec<u8> {
    let mut s = vec![0; 64];
    (s[0], s[4]) = (1, 64);
    s.extend([129, 7].repeat(n_pixels.div_ceil(128)));
    s
}

/// Reads it as `assemble` does, held whole.
fn read(folder: &Path, bytes: &[u8]) -> Result<usize, String> {
    let path = folder.join("x.dcm");
    std::fs::write(&path, bytes).map_err(|e| e.to_string())?;
    let mut told = Err("no image".to_string());
    memory::within_promise(bytes.len(), || {
        let found = walk::walk(&path).expect("the file was just written");
        let catalog = catalog::read_all(found, &Names::Own, None, &|_| Ok(())).expect("nothing cancels it");
        let instances = rows::of(&catalog, &Default::default(), &Names::Own).instances;
        let how = How { keeps_single: true, gaps: Gaps::Keep, takes_unplaced: true };
        let reading = Reading { how, limit_bytes: 64 << 30, keeps_colour: true, suv: None, is_repeat: false, step: &|_| Ok(()) };
        if !instances.is_empty() {
            told = volume(&instances, &reading).map(|v| v.pixels.voxels.len()).map_err(|e| e.to_string());
        }
    });
    told
}

#[test]
fn no_file_takes_more_memory_than_is_promised_and_pictures_of_one_value_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let one = |syntax, side, bits| Says { syntax, side, bits, frames: 1 };
    let sound = [
        ("J2K of 2048²", one(J2K, 2048, 16), j2k(2048, 16, 4)),
        ("J2K of 2048² bytes", one(J2K, 2048, 8), j2k(2048, 8, 4)),
        ("30 frames of J2K", Says { frames: 30, ..one(J2K, 512, 16) }, j2k(512, 16, 4)),
        ("JPEG-LS of 2048²", one(JPEG_LS, 2048, 16), jpeg_ls(2048, 16, 4096)),
        ("JPEG of 2048²", one(JPEG, 2048, 8), jpeg(0xc0, 2048, 2048 * 2048 / 64 / 4 + 1)),
        ("lossless JPEG of 1024²", one(JPEG_LOSSLESS, 1024, 8), jpeg(0xc3, 1024, 1024 * 1024 / 8 + 1)),
        ("RLE of 4096²", one(RLE, 4096, 8), rle(4096 * 4096)),
    ];
    for (what, says, codestream) in sound {
        let n = says.side as usize * says.side as usize * says.frames;
        assert_eq!(read(folder.path(), &file(says, &codestream)), Ok(n), "{what}");
    }
    let hostile = [
        ("J2K of 60,000²", one(J2K, 60_000, 16), j2k(60_000, 16, 4), "closer than"),
        ("J2K of another size than its header says", one(J2K, 2048, 16), j2k(60_000, 16, 4), "the header says 2048"),
        ("J2K of blocks of 4 × 4", one(J2K, 2048, 16), j2k(2048, 16, 0), "code-blocks"),
        ("300 frames of J2K", Says { frames: 300, ..one(J2K, 512, 16) }, j2k(512, 16, 4), "300 frames"),
        ("JPEG-LS of 65,535²", one(JPEG_LS, 65_535, 16), jpeg_ls(65_535, 16, 60_000), "closer than"),
        ("JPEG-LS of 60 bytes", one(JPEG_LS, 2048, 16), jpeg_ls(2048, 16, 20), "cannot hold 2048 rows"),
        ("JPEG of 60,000²", one(JPEG, 60_000, 8), jpeg(0xc0, 60_000, 60_000), "closer than"),
        ("JPEG of too few bits", one(JPEG, 2048, 8), jpeg(0xc0, 2048, 10_000), "cannot hold 2048×2048"),
        ("lossless JPEG of too few bits", one(JPEG_LOSSLESS, 2000, 8), jpeg(0xc3, 2000, 62_600), "cannot hold 2000×2000"),
        ("RLE of 60,000²", one(RLE, 60_000, 8), rle(4096), "closer than"),
        ("RLE of too few runs", one(RLE, 2048, 8), rle(2048 * 2047), "of 4194304 pixels"),
    ];
    for (what, says, codestream, wanted) in hostile {
        let why = read(folder.path(), &file(says, &codestream)).expect_err(what);
        assert!(why.contains(wanted), "{what}: {why}");
    }
}
