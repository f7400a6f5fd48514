//! What a JPEG 2000 codestream makes its decoder list before it has read a sample: precincts, code-blocks and packets of the largest tile (ISO 15444-1 annexes A and B).

/// What the decoder keeps for a code-block, for a precinct, and for a packet.
const BLOCK_BYTES: u64 = 512;
const PRECINCT_BYTES: u64 = 512;
const PACKET_BYTES: u64 = 2;
/// Lists may take so much, and so much for each byte of the codestream. A picture of 2,000 × 2,000 in blocks of 64 × 64 takes 1 MiB.
const FREE_BYTES: u64 = 3 << 20;
const RATIO: u64 = 64;

const SIZ: u8 = 0x51;
const COD: u8 = 0x52;
const COC: u8 = 0x53;
const SOT: u8 = 0x90;
const SOD: u8 = 0x93;

/// - `stream`: from its first marker
pub fn check(stream: &[u8]) -> Result<(), String> {
    let lists = list_bytes(stream).ok_or("the JPEG 2000 header is cut off")?;
    let given = FREE_BYTES.saturating_add(RATIO.saturating_mul(stream.len() as u64));
    if lists > given {
        let n = stream.len();
        return Err(format!(
            "{n} bytes of JPEG 2000 cannot hold the precincts, code-blocks and layers that they announce ({lists} bytes of lists)"
        ));
    }
    Ok(())
}

/// Coding style of a component, or of all.
struct Style<'a> {
    levels: u32,
    /// Base 2 logarithms of the size of code-blocks.
    block: [u32; 2],
    /// Of precincts, one byte a resolution, width in the low half; empty: the largest.
    precincts: &'a [u8],
}

impl<'a> Style<'a> {
    fn read(b: &'a [u8], has_precincts: bool) -> Option<Style<'a>> {
        let levels = *b.first()? as u32;
        let log2 = |i: usize| Some((*b.get(i)? & 15) as u32 + 2);
        Some(Style { levels: levels.min(32), block: [log2(1)?, log2(2)?], precincts: if has_precincts { b.get(5..)? } else { &[] } })
    }

    /// Precincts and code-blocks of a tile of one component, and the most precincts of a resolution.
    fn counts(&self, tile: [u64; 2]) -> [u64; 3] {
        let (mut precincts, mut blocks, mut most) = (0u64, 0u64, 0u64);
        for r in 0..=self.levels {
            let p = self.precincts.get(r as usize).map_or([15, 15], |b| [(b & 15) as u32, (b >> 4) as u32]);
            // A tile may begin anywhere: one more than fit into its length.
            let n_of = |axis: usize, log2: u32, below: u32| (tile[axis] >> below.min(63) >> log2) + 2;
            let n = n_of(0, p[0], self.levels - r).saturating_mul(n_of(1, p[1], self.levels - r));
            // Above the lowest resolution there are three bands of half its size, and precincts are halved with them.
            let (bands, half) = if r == 0 { (1, 0) } else { (3, 1) };
            let side = |axis: usize| n_of(axis, self.block[axis].min(p[axis].saturating_sub(half)), self.levels - r + half);
            blocks = blocks.saturating_add(side(0).saturating_mul(side(1)).saturating_mul(bands));
            precincts = precincts.saturating_add(n.saturating_mul(bands));
            most = most.max(n);
        }
        [precincts, blocks, most.saturating_mul(self.levels as u64 + 1)]
    }
}

/// Every style that stands anywhere is taken for that of all components of the largest tile.
fn list_bytes(s: &[u8]) -> Option<u64> {
    let long = |at: usize| s.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as u64);
    let short = |at: usize| s.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]) as usize);
    let mut tile = [0u64; 2];
    let (mut components, mut layers, mut most, mut tile_end) = (1u64, 1u64, 0u64, None);
    let mut at = 2;
    // Markers without a length stand only where data follow, or at the end.
    while let Some([0xff, marker]) = s.get(at..at + 2) {
        if *marker == SOD {
            let Some(end) = tile_end.filter(|end| *end > at) else { break };
            at = end;
            continue;
        }
        let Some(length) = short(at + 2).filter(|n| *n >= 2) else { break };
        let Some(body) = s.get(at + 4..at + 2 + length) else { break };
        let style = match *marker {
            SIZ => {
                tile = [long(at + 6)?.min(long(at + 22)?), long(at + 10)?.min(long(at + 26)?)];
                components = short(at + 38)? as u64;
                None
            }
            SOT => {
                tile_end = long(at + 6).map(|n| at.saturating_add(n as usize)).filter(|end| *end > at);
                None
            }
            COD => {
                layers = layers.max(short(at + 6)? as u64);
                body.get(5..).and_then(|b| Style::read(b, body[0] & 1 == 1))
            }
            COC => {
                let skipped = if components < 257 { 1 } else { 2 };
                body.get(skipped + 1..).and_then(|b| Style::read(b, body[skipped] & 1 == 1))
            }
            _ => None,
        };
        if let Some(style) = style {
            let [precincts, blocks, steps] = style.counts(tile);
            let lists = [(precincts, PRECINCT_BYTES), (blocks, BLOCK_BYTES), (steps.saturating_mul(layers), PACKET_BYTES)];
            let bytes = lists.iter().map(|(n, bytes)| n.saturating_mul(*bytes)).fold(0, u64::saturating_add);
            most = most.max(bytes.saturating_mul(components));
        }
        at += 2 + length;
    }
    Some(most)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Header of a picture of `side` × `side` in one tile.
    fn header(side: u32, layers: u16, block: u8, precinct: Option<u8>) -> Vec<u8> {
        let mut s = vec![0xff, 0x4f, 0xff, SIZ, 0, 41, 0, 0];
        for v in [side, side, 0, 0, side, side, 0, 0] {
            s.extend(v.to_be_bytes());
        }
        s.extend([0, 1, 15, 1, 1]);
        let n = if precinct.is_some() { 12 + 6 } else { 12 };
        s.extend([0xff, COD, 0, n, precinct.is_some() as u8, 0]);
        s.extend(layers.to_be_bytes());
        s.extend([0, 5, block, block, 0, 1]);
        s.extend(precinct.into_iter().flat_map(|p| [p; 6]));
        s
    }

    #[test]
    fn lists_are_as_long_as_the_codestream_may_make_them() {
        assert_eq!(check(&header(4096, 1, 4, None)), Ok(()));
        assert_eq!(check(&header(512, 50, 4, Some(0x88))), Ok(()));
        for (side, layers, block, precinct) in [(2048, 1, 0, None), (512, 1, 4, Some(0)), (2048, 60000, 4, Some(0x55))] {
            let why = check(&header(side, layers, block, precinct)).unwrap_err();
            assert!(why.contains("code-blocks"), "{why}");
        }
        let mut long = header(2048, 1, 0, None);
        long.resize(4 << 20, 0);
        assert_eq!(check(&long), Ok(()), "so many bytes may have so many blocks");
    }

    #[test]
    fn styles_of_components_and_of_tiles_count() {
        let sound = header(2048, 1, 4, None);
        let small_blocks = [0xff, COC, 0, 9, 0, 0, 5, 0, 0, 0, 1];
        assert!(check(&[&sound[..], &small_blocks].concat()).is_err());
        // In the header of the second part of a tile.
        let part = |body: &[u8]| {
            let n = (12 + body.len() + 2) as u32;
            [&[0xff, SOT, 0, 10, 0, 0][..], &n.to_be_bytes(), &[0, 2], body, &[0xff, SOD]].concat()
        };
        assert_eq!(check(&[&sound[..], &part(&[]), &part(&[])].concat()), Ok(()));
        assert!(check(&[&sound[..], &part(&[]), &part(&small_blocks)].concat()).is_err());
        assert!((0..sound.len()).all(|n| check(&sound[..n]).is_ok() || n < 60));
    }
}
