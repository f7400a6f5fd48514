//! Encapsulated pixel data (PS3.5 A.4): which fragments make which frame. Tables are trusted where they point to fragments; otherwise the codestreams tell.

use super::bytes::Source;
use super::header::Header;

/// Place and length of a fragment in the file.
pub type Fragment = (u64, u32);

/// What a fragment of its own frame is remembered in, and what all may take beside twice their file: a file of empty items is no image.
const FRAGMENT_BYTES: u64 = 64;
const FREE_BYTES: u64 = 32 << 20;

/// The fragments of each frame.
/// - `start`: of the first item, the basic offset table
pub fn frames(source: &Source, start: u64, h: &Header) -> Result<Vec<Vec<Fragment>>, String> {
    let (table, fragments) = items(source, start)?;
    let n = h.n_frames as usize;
    if fragments.is_empty() {
        return Err("no fragments of pixel data".into());
    }
    let begins = |f: &Fragment| source.read_at(f.0, 12.min(f.1 as usize)).map(|head| is_start(&head)).map_err(|e| e.to_string());
    if n == 1 {
        let mut n_begun = 0;
        for f in &fragments {
            n_begun += begins(f)? as usize;
        }
        if n_begun > 1 {
            return Err(format!("the header says one frame, the fragments begin {n_begun} codestreams"));
        }
        return Ok(vec![fragments]);
    }
    if fragments.len() == n {
        return Ok(fragments.into_iter().map(|f| vec![f]).collect());
    }
    // Offsets count from the first byte of the item tag of the first fragment.
    let base = fragments[0].0 - 8;
    let told = |offsets: &[u64]| -> Option<Vec<usize>> {
        let at = |o: &u64| base.checked_add(*o).and_then(|o| fragments.binary_search_by_key(&o, |f| f.0 - 8).ok());
        let starts: Vec<usize> = offsets.iter().map(at).collect::<Option<_>>()?;
        (starts.len() == n && starts[0] == 0 && starts.is_sorted_by(|a, b| a < b)).then_some(starts)
    };
    let starts = match told(&h.extended_offsets).or_else(|| told(&table)) {
        Some(starts) => starts,
        None => {
            let mut found = Vec::new();
            for (i, f) in fragments.iter().enumerate() {
                if begins(f)? {
                    found.push(i);
                }
            }
            found
        }
    };
    if starts.len() != n || starts[0] != 0 {
        let (m, k) = (fragments.len(), starts.len());
        let why = "and neither an offset table nor the codestreams tell which belong together";
        return Err(format!("{m} fragments for {n} frames, {why} ({k} codestreams begin)"));
    }
    let ends = starts.iter().skip(1).copied().chain([fragments.len()]);
    Ok(starts.iter().zip(ends).map(|(a, b)| fragments[*a..b].to_vec()).collect())
}

/// The offset table and the place of every fragment.
fn items(source: &Source, start: u64) -> Result<(Vec<u64>, Vec<Fragment>), String> {
    let mut at = start;
    let mut table = Vec::new();
    let mut fragments = Vec::new();
    for i in 0.. {
        // A file that ends after its last fragment, without the delimiter (or with a few bytes of padding), has lost nothing.
        if i > 1 && source.len().saturating_sub(at) < 8 {
            break;
        }
        let head = source.read_at(at, 8).map_err(|_| format!("pixel data end inside the header of fragment {i}"))?;
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        match head[..4] {
            [0xfe, 0xff, 0x00, 0xe0] => {}
            [0xfe, 0xff, 0xdd, 0xe0] => break,
            // What follows the pixel data in the data set, where the delimiter was forgotten: data set trailing padding, signatures.
            [low, high, ..] if i > 1 && u16::from_le_bytes([low, high]) > 0x7fe0 && [low, high] != [0xfe, 0xff] => break,
            _ => return Err(format!("fragment {i} does not begin with an item tag")),
        }
        let left = source.len() - (at + 8);
        if length as u64 > left {
            return Err(format!("pixel data end inside fragment {i}: found {left} of {length} bytes"));
        }
        if i == 0 {
            let bytes = source.read_at(at + 8, length as usize).map_err(|e| e.to_string())?;
            table = bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]) as u64).collect();
        } else {
            fragments.push((at + 8, length));
            if fragments.len() as u64 * FRAGMENT_BYTES > 2 * source.len() + FREE_BYTES {
                return Err(format!("the first {} fragments of pixel data hold almost nothing", fragments.len()));
            }
        }
        at += 8 + length as u64;
    }
    Ok((table, fragments))
}

/// Whether bytes begin a JPEG, JPEG-LS or JPEG 2000 codestream.
fn is_start(b: &[u8]) -> bool {
    b.starts_with(&[0xff, 0xd8, 0xff]) || b.starts_with(&[0xff, 0x4f, 0xff, 0x51]) || b.starts_with(&[0, 0, 0, 12, b'j', b'P'])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use dicom::core::VR;
    use dicom::core::value::PrimitiveValue;
    use dicom::dictionary_std::tags as t;

    use super::super::header::Common;
    use super::super::write::{put, put_decimals};
    use super::super::{made, multiframe};
    use super::*;

    #[test]
    fn fragments_are_joined_by_their_codestreams_without_a_table() {
        let mut bytes = Vec::new();
        let mut put = |body: &[u8]| {
            bytes.extend([0xfe, 0xff, 0x00, 0xe0]);
            bytes.extend((body.len() as u32).to_le_bytes());
            bytes.extend(body);
        };
        put(&[]);
        for body in [&[0xff, 0xd8, 0xff, 0xe0][..], &[1, 2], &[0xff, 0xd8, 0xff, 0xe0]] {
            put(body);
        }
        let source = Source::of_raw(bytes);
        let h = |n_frames| Header::from(Common { n_frames, ..Common::default() });
        let got = frames(&source, 0, &h(2)).unwrap();
        assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
        assert!(frames(&source, 0, &h(1)).unwrap_err().contains("begin 2 codestreams"));
        let extended = Header { extended_offsets: vec![0, 22], ..h(2) };
        assert_eq!(frames(&source, 0, &extended).unwrap().iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
        let wrong = Header { extended_offsets: vec![0, 21], ..h(2) };
        assert_eq!(frames(&source, 0, &wrong).unwrap().len(), 2, "a table that points nowhere does not count");
        assert!(frames(&source, 0, &h(4)).unwrap_err().contains("(2 codestreams begin)"));
    }

    #[test]
    fn a_million_empty_fragments_are_no_image() {
        let items = |n: usize| Source::of_raw([0xfe, 0xff, 0x00, 0xe0, 0, 0, 0, 0].repeat(n));
        let h = |n_frames| Header::from(Common { n_frames, ..Common::default() });
        assert_eq!(frames(&items(1001), 0, &h(1000)).unwrap().len(), 1000);
        assert!(frames(&items(1 << 20), 0, &h(1 << 20)).unwrap_err().contains("almost nothing"));
    }

    /// Three planes of 2×3 pixels with values 0, 1, 2 …, each in `parts` fragments.
    fn volume(transfer_syntax: &str, parts: usize, offsets: bool, pack: impl Fn(&[u8]) -> Vec<u8>) -> Result<Vec<f32>, String> {
        let mut d = made::object(multiframe::RT_DOSE, "RTDOSE", [2, 3], 3);
        made::text(&mut d, &[(t::DOSE_GRID_SCALING, VR::DS, "0.5")]);
        put_decimals(&mut d, t::IMAGE_POSITION_PATIENT, &[0.0, 0.0, 0.0]);
        put_decimals(&mut d, t::IMAGE_ORIENTATION_PATIENT, &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
        put_decimals(&mut d, t::PIXEL_SPACING, &[1.0, 1.0]);
        put_decimals(&mut d, t::GRID_FRAME_OFFSET_VECTOR, &[0.0, 1.0, 2.0]);
        let frame = |k: u16| {
            let mut bytes = pack(&(0..6u16).flat_map(|v| (k * 6 + v).to_le_bytes()).collect::<Vec<u8>>());
            bytes.resize(bytes.len().next_multiple_of(2 * parts), 0);
            bytes.chunks(bytes.len() / parts).map(<[u8]>::to_vec).collect::<Vec<_>>()
        };
        let frames = [0, 1, 2].map(frame);
        if offsets {
            let ends =
                frames.iter().scan(0u64, |at, f| Some(std::mem::replace(at, *at + f.iter().map(|p| p.len() as u64 + 8).sum::<u64>())));
            put(&mut d, t::EXTENDED_OFFSET_TABLE, VR::OV, PrimitiveValue::from(ends.flat_map(u64::to_le_bytes).collect::<Vec<u8>>()));
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.dcm"), made::encapsulated(d, transfer_syntax, &frames)).unwrap();
        let mut volumes = made::volumes_in(dir.path(), Default::default());
        assert_eq!(volumes.len(), 1);
        volumes.remove(0).map(|v| v.pixels.voxels.to_f32().to_vec())
    }

    #[test]
    fn frames_in_one_fragment_or_in_several_are_the_frames() {
        let wanted: Vec<f32> = (0..18).map(|v| v as f32 / 2.0).collect();
        let plain = |bytes: &[u8]| bytes.to_vec();
        let deflated = |bytes: &[u8]| {
            let mut out = Vec::new();
            std::io::Read::read_to_end(&mut flate2::read::DeflateEncoder::new(bytes, flate2::Compression::default()), &mut out).unwrap();
            out
        };
        for parts in [1, 2, 3] {
            assert_eq!(
                volume("1.2.840.10008.1.2.8.1", parts, true, deflated).as_ref(),
                Ok(&wanted),
                "deflated image frames, {parts} fragments a frame"
            );
            assert_eq!(
                volume("1.2.840.10008.1.2.1.98", parts, true, plain).as_ref(),
                Ok(&wanted),
                "encapsulated, {parts} fragments a frame"
            );
        }
        assert_eq!(volume("1.2.840.10008.1.2.8.1", 1, false, deflated).as_ref(), Ok(&wanted));
        let why = volume("1.2.840.10008.1.2.8.1", 2, false, deflated).unwrap_err();
        assert!(why.contains("6 fragments for 3 frames"), "{why}");
    }
}
