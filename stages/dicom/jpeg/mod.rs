//! JPEG (ISO 10918-1) with Huffman codes: baseline, extended and progressive of 8 and 12 bits, and lossless of 2 to 16. No other Rust decoder reads lossy
//! JPEG of 12 bits. Samples of lossy frames are those of libjpeg's slow integer transform. The size is compared before anything is allocated.

mod bits;
mod dct;
mod idct;
mod lossless;

use self::bits::Huffman;

/// A decoded frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// `[pixel, component]`
    pub samples: Vec<u16>,
    pub precision: u32,
    /// Whether three components are Y, Cb, Cr or R, G, B; `None`: the codestream does not say.
    pub is_ybr: Option<bool>,
}

/// Why there is no picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    Unsupported(String),
    Broken(String),
}

/// The frame header (B.2.2).
#[derive(Clone, Debug, Default)]
struct Frame {
    /// Of the SOF marker: 0xC0 … 0xC3.
    kind: u8,
    precision: u32,
    rows: usize,
    columns: usize,
    components: Vec<Component>,
    /// Greatest sampling factors.
    h: usize,
    v: usize,
}

#[derive(Clone, Debug, Default)]
struct Component {
    id: u8,
    h: usize,
    v: usize,
    table: usize,
    /// Size in samples.
    rows: usize,
    columns: usize,
    /// Size in blocks, whole MCUs.
    block_rows: usize,
    block_columns: usize,
}

/// What a scan is about (B.2.3).
#[derive(Clone, Debug)]
struct Scan {
    /// Component, its DC and AC table.
    parts: Vec<(usize, usize, usize)>,
    /// Ss: first coefficient, or the predictor. Se: last coefficient.
    start: usize,
    end: usize,
    /// Ah and Al: bits that came before, bits that are left out.
    high: u32,
    low: u32,
    restart: usize,
}

/// Tables that markers define; they may be defined anew between scans.
struct Tables {
    quantisers: [[u16; 64]; 4],
    dc: [Option<Huffman>; 4],
    ac: [Option<Huffman>; 4],
}

/// Scans beyond these are an attack on time, not a picture: a progressive one of three components has some ten.
const MAX_SCANS: usize = 200;

impl From<&str> for Fault {
    fn from(why: &str) -> Fault {
        Fault::Broken(why.into())
    }
}

/// Decodes a frame of that size.
pub fn decode(stream: &[u8], rows: usize, columns: usize, components: usize) -> Result<Picture, Fault> {
    let mut tables = Tables { quantisers: [[1; 64]; 4], dc: Default::default(), ac: Default::default() };
    let mut frame: Option<Frame> = None;
    let (mut dct, mut lossless) = (None, None);
    let (mut restart, mut n_scans, mut adobe, mut is_jfif) = (0, 0, None, false);
    let mut at = 2;
    // Anything between segments is stepped over, as others do.
    while let Some(found) = next_marker(stream, at) {
        at += found;
        let marker = stream[at + 1];
        if marker == 0xd9 {
            break;
        }
        if matches!(marker, 0x01 | 0xd8) {
            at += 2;
            continue;
        }
        let cut = "a JPEG marker segment is cut off";
        let head = stream.get(at + 2..at + 4).ok_or(cut)?;
        let length = u16::from_be_bytes([head[0], head[1]]) as usize;
        let body = stream.get(at + 4..(at + 2 + length).max(at + 4)).ok_or(cut)?;
        at += 2 + length.max(2);
        match marker {
            0xc0..=0xc3 => {
                if frame.is_some() {
                    return Err("a JPEG codestream with two frames".into());
                }
                let f = Frame::read(marker, body)?;
                if (f.rows, f.columns, f.components.len()) != (rows, columns, components) {
                    let found = format!("{}×{} pixels of {} components", f.rows, f.columns, f.components.len());
                    return Err(Fault::Broken(format!("a JPEG frame of {found} where {rows}×{columns} of {components} are expected")));
                }
                f.check_bits(stream.len())?;
                match marker {
                    0xc3 => lossless = Some(lossless::Samples::new(&f)?),
                    _ => dct = Some(dct::Coefficients::new(&f)),
                }
                frame = Some(f);
            }
            0xc4 => define_huffman(body, &mut tables)?,
            0xc5..=0xcf => {
                let what = if marker > 0xc8 { "arithmetic coding" } else { "a hierarchy of frames" };
                return Err(Fault::Unsupported(format!("JPEG with {what} (SOF{})", marker - 0xc0)));
            }
            0xdb => define_quantisers(body, &mut tables)?,
            0xdd => restart = body.get(..2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]) as usize),
            0xe0 if body.starts_with(b"JFIF") => is_jfif = true,
            0xee if body.starts_with(b"Adobe") => adobe = body.get(11).copied(),
            0xda => {
                n_scans += 1;
                let frame = frame.as_ref().filter(|_| n_scans <= MAX_SCANS).ok_or("a JPEG scan without a frame, or too many scans")?;
                let scan = Scan::read(body, frame, restart)?;
                let data = stream.get(at..).unwrap_or(&[]);
                at += match (&mut dct, &mut lossless) {
                    (Some(d), _) => d.scan(frame, &scan, &tables, data)?,
                    (_, Some(l)) => l.scan(frame, &scan, &tables, data)?,
                    _ => return Err("a JPEG scan without a frame".into()),
                };
            }
            _ => {}
        }
    }
    let frame = frame.filter(|_| n_scans > 0).ok_or("a JPEG codestream without a scan")?;
    let samples = match (dct, lossless) {
        (Some(d), _) => d.samples(&frame, &tables)?,
        (_, Some(l)) => l.samples()?,
        _ => return Err("a JPEG codestream without a frame".into()),
    };
    let ids: Vec<u8> = frame.components.iter().map(|c| c.id).collect();
    let is_ybr = match (adobe, &ids[..]) {
        (_, b"RGB" | b"rgb") => Some(false),
        (Some(transform), [_, _, _]) if frame.kind != 0xc3 => Some(transform == 1),
        (None, [_, _, _]) if is_jfif && frame.kind != 0xc3 => Some(true),
        _ => None,
    };
    Ok(Picture { samples, precision: frame.precision, is_ybr })
}

/// How far on the next marker of a segment stands.
fn next_marker(stream: &[u8], at: usize) -> Option<usize> {
    stream.get(at..)?.windows(2).position(|w| w[0] == 0xff && !matches!(w[1], 0 | 0xff | 0xd0..=0xd7))
}

impl Frame {
    fn read(kind: u8, b: &[u8]) -> Result<Frame, Fault> {
        let &[precision, r1, r0, c1, c0, n, ref parts @ ..] = b else { return Err("a JPEG frame header is cut off".into()) };
        let (rows, columns) = (u16::from_be_bytes([r1, r0]) as usize, u16::from_be_bytes([c1, c0]) as usize);
        let is_known = if kind == 0xc3 { (2..=16).contains(&precision) } else { matches!(precision, 8 | 12) };
        if !is_known {
            return Err(Fault::Unsupported(format!("JPEG (SOF{}) of {precision} bits", kind - 0xc0)));
        }
        if rows == 0 || columns == 0 || !(1..=4).contains(&n) || parts.len() < 3 * n as usize {
            return Err("a JPEG frame header that describes no picture".into());
        }
        let read = |p: &[u8]| Component {
            id: p[0],
            h: (p[1] >> 4) as usize,
            v: (p[1] & 15) as usize,
            table: p[2] as usize,
            ..Component::default()
        };
        let mut components: Vec<Component> = parts.chunks_exact(3).take(n as usize).map(read).collect();
        if components.iter().any(|c| !(1..=4).contains(&c.h) || !(1..=4).contains(&c.v) || c.table > 3) {
            return Err("a JPEG component with impossible sampling".into());
        }
        // A single component has no others to be sampled against (A.2.2).
        if let [only] = &mut components[..] {
            (only.h, only.v) = (1, 1);
        }
        let largest = |of: fn(&Component) -> usize| components.iter().map(of).max().unwrap_or(1);
        let (h, v) = (largest(|c| c.h), largest(|c| c.v));
        for c in &mut components {
            c.columns = (columns * c.h).div_ceil(h);
            c.rows = (rows * c.v).div_ceil(v);
            c.block_columns = columns.div_ceil(8 * h) * c.h;
            c.block_rows = rows.div_ceil(8 * v) * c.v;
        }
        Ok(Frame { kind, precision: precision as u32, rows, columns, components, h, v })
    }
}

impl Frame {
    /// Whether so many bytes can hold the frame at all: no code is shorter than a bit, and there is one a sample where it is lossless, one a block for its first
    /// coefficient, and one for the others where they do not come in scans of their own.
    fn check_bits(&self, n_bytes: usize) -> Result<(), Fault> {
        let blocks = |c: &Component| c.rows.div_ceil(8) * c.columns.div_ceil(8);
        let n_bits: usize = match self.kind {
            0xc3 => self.components.iter().map(|c| c.rows * c.columns).sum(),
            0xc2 => self.components.iter().map(blocks).sum(),
            _ => self.components.iter().map(|c| 2 * blocks(c)).sum(),
        };
        if n_bits > n_bytes.saturating_mul(8) {
            return Err(Fault::Broken(format!("{n_bytes} bytes of JPEG cannot hold {}×{} pixels", self.rows, self.columns)));
        }
        Ok(())
    }
}

impl Scan {
    fn read(b: &[u8], frame: &Frame, restart: usize) -> Result<Scan, Fault> {
        let cut = "a JPEG scan header is cut off";
        let n = *b.first().ok_or(cut)? as usize;
        let (parts, rest) = b.get(1..).and_then(|b| b.split_at_checked(2 * n)).ok_or(cut)?;
        let &[start, end, bits, ..] = rest else { return Err(cut.into()) };
        let part = |p: &[u8]| {
            let component = frame.components.iter().position(|c| c.id == p[0])?;
            Some((component, (p[1] >> 4) as usize, (p[1] & 15) as usize)).filter(|(_, dc, ac)| *dc < 4 && *ac < 4)
        };
        let parts: Vec<_> =
            parts.chunks_exact(2).map(part).collect::<Option<_>>().ok_or("a JPEG scan of a component or table that is not there")?;
        let is_twice = parts.iter().enumerate().any(|(i, p)| parts[..i].iter().any(|q| q.0 == p.0));
        if parts.is_empty() || is_twice {
            return Err("a JPEG scan that names no component, or one twice".into());
        }
        Ok(Scan { parts, start: start as usize, end: end as usize, high: (bits >> 4) as u32, low: (bits & 15) as u32, restart })
    }
}

fn define_huffman(mut b: &[u8], tables: &mut Tables) -> Result<(), Fault> {
    while let Some((&head, rest)) = b.split_first() {
        let cut = "a JPEG Huffman table is cut off";
        let (counts, rest) = rest.split_first_chunk::<16>().ok_or(cut)?;
        let n = counts.iter().map(|c| *c as usize).sum();
        let (values, rest) = rest.split_at_checked(n).ok_or(cut)?;
        let place = if head >> 4 == 0 { &mut tables.dc } else { &mut tables.ac };
        *place.get_mut(head as usize & 15).ok_or("a JPEG Huffman table beyond the fourth")? = Some(Huffman::new(counts, values)?);
        b = rest;
    }
    Ok(())
}

fn define_quantisers(mut b: &[u8], tables: &mut Tables) -> Result<(), Fault> {
    while let Some((&head, rest)) = b.split_first() {
        let cut = "a JPEG quantisation table is cut off";
        let width = if head >> 4 == 0 { 1 } else { 2 };
        let (values, rest) = rest.split_at_checked(64 * width).ok_or(cut)?;
        let table = tables.quantisers.get_mut(head as usize & 15).ok_or("a JPEG quantisation table beyond the fourth")?;
        for (k, v) in values.chunks_exact(width).enumerate() {
            table[ZIGZAG[k]] = if width == 1 { v[0] as u16 } else { u16::from_be_bytes([v[0], v[1]]) };
        }
        b = rest;
    }
    Ok(())
}

/// Place in the block of each coefficient, in the order of the codestream (figure A.6).
#[rustfmt::skip]
const ZIGZAG: [usize; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A frame of 8×8 pixels whose only coefficient is the first: code 0 stands for a difference of `size` bits, code 0 of the other table for the end.
    fn flat(kind: u8, precision: u8, size: u8, bits: &[u8]) -> Vec<u8> {
        let mut s = vec![0xff, 0xd8, 0xff, 0xdb, 0, 67, 0];
        s.extend([8u8; 64]);
        s.extend([0xff, kind, 0, 11, precision, 0, 8, 0, 8, 1, 1, 0x11, 0]);
        for (class, value) in [(0x00, size), (0x10, 0)] {
            s.extend([0xff, 0xc4, 0, 20, class, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, value]);
        }
        s.extend([0xff, 0xda, 0, 8, 1, 1, 0, 0, 63, 0]);
        s.extend(bits);
        s.extend([0xff, 0xd9]);
        s
    }

    #[test]
    fn a_flat_block_has_one_value() {
        // Difference 3 (code 0, bits 11), end of block (code 0): 3 × 8 ÷ 8 above the middle.
        let picture = decode(&flat(0xc0, 8, 2, &[0b0110_1111]), 8, 8, 1).unwrap();
        assert_eq!(picture, Picture { samples: vec![131; 64], precision: 8, is_ybr: None });
        let deep = decode(&flat(0xc1, 12, 2, &[0b0110_1111]), 8, 8, 1).unwrap();
        assert_eq!(deep.samples, [2051; 64]);
    }

    #[test]
    fn lossless_samples_are_predicted_from_their_neighbours() {
        let mut s = vec![0xff, 0xd8, 0xff, 0xc3, 0, 11, 8, 0, 2, 0, 2, 1, 1, 0x11, 0];
        // Codes 0 and 10: differences of no and of one bit.
        s.extend([0xff, 0xc4, 0, 21, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        s.extend([0xff, 0xda, 0, 8, 1, 1, 0, 1, 0, 0]);
        // 128 + 0, + 1, above + 0, left − 1.
        s.extend([0b0101_0100, 0xff, 0xd9]);
        assert_eq!(decode(&s, 2, 2, 1).unwrap().samples, [128, 129, 128, 127]);
        assert!(matches!(decode(&s, 2, 3, 1), Err(Fault::Broken(why)) if why.contains("2×2 pixels")));
    }

    #[test]
    fn what_is_cut_off_or_unknown_is_said() {
        let whole = flat(0xc0, 8, 2, &[0b0110_1111]);
        assert!((2..whole.len() - 3).all(|n| decode(&whole[..n], 8, 8, 1).is_err()));
        assert!(matches!(decode(&flat(0xc9, 8, 2, &[0]), 8, 8, 1), Err(Fault::Unsupported(s)) if s.contains("arithmetic")));
        assert!(matches!(decode(&flat(0xc0, 9, 2, &[0]), 8, 8, 1), Err(Fault::Unsupported(s)) if s.contains("9 bits")));
    }

    #[test]
    fn noise_is_an_error_or_a_picture_but_never_a_panic() {
        let mut state = 12345u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u8
        };
        for kind in [0xc0, 0xc1, 0xc2, 0xc3] {
            for _ in 0..300 {
                let noise: Vec<u8> = (0..200).map(|_| next()).collect();
                let mut s = flat(kind, if kind == 0xc1 { 12 } else { 8 }, 5, &noise);
                let _ = decode(&s, 8, 8, 1);
                let at = next() as usize % s.len();
                s[at] = next();
                let _ = decode(&s, 8, 8, 1);
            }
        }
    }
}
