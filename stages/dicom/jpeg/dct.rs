//! Lossy JPEG: scans, sequential (annex F) and progressive (annex G), fill the coefficients of all blocks; then blocks become samples and components of
//! fewer samples are brought to the size of the frame as libjpeg does.

use super::bits::{Bits, Huffman};
use super::{Component, Fault, Frame, Scan, Tables, ZIGZAG, idct};

/// Coefficients of a component: `[block row, block column, place]`.
pub struct Coefficients {
    components: Vec<Vec<[i16; 64]>>,
    is_seen: Vec<bool>,
}

/// What runs through a scan.
struct State<'a> {
    bits: Bits<'a>,
    /// Last DC value of each component.
    last: [i32; 4],
    /// Blocks that are still without coefficients (G.1.2.2).
    end_of_band: u32,
}

impl Coefficients {
    pub fn new(frame: &Frame) -> Coefficients {
        let components: Vec<_> = frame.components.iter().map(|c| vec![[0; 64]; c.block_rows * c.block_columns]).collect();
        Coefficients { is_seen: vec![false; components.len()], components }
    }

    /// Gives the bytes that the scan took.
    pub fn scan(&mut self, frame: &Frame, scan: &Scan, tables: &Tables, data: &[u8]) -> Result<usize, Fault> {
        let is_progressive = frame.kind == 0xc2;
        let (start, end) = if is_progressive { (scan.start, scan.end) } else { (0, 63) };
        let is_sound = start <= end && end < 64 && (!is_progressive || (start == 0) == (end == 0)) && scan.low < 14;
        if !is_sound || (start > 0 && scan.parts.len() > 1) {
            return Err("a JPEG scan of impossible coefficients".into());
        }
        let mut state = State { bits: Bits::new(data), last: [0; 4], end_of_band: 0 };
        let mut codes = Vec::new();
        for (c, dc, ac) in &scan.parts {
            let needs_dc = start == 0 && scan.high == 0;
            let (dc, ac) = (tables.dc[*dc].as_ref(), tables.ac[*ac].as_ref());
            if (needs_dc && dc.is_none()) || (end > 0 && ac.is_none()) {
                return Err("a JPEG scan without its Huffman table".into());
            }
            codes.push((*c, dc, ac));
            self.is_seen[*c] |= start == 0;
        }
        // Of one component alone only the blocks that hold samples are coded (A.2.2).
        let alone = if let [(c, ..)] = codes[..] { Some(&frame.components[c]) } else { None };
        let (units_down, units_across) = match alone {
            Some(c) => (c.rows.div_ceil(8), c.columns.div_ceil(8)),
            None => (frame.rows.div_ceil(8 * frame.v), frame.columns.div_ceil(8 * frame.h)),
        };
        let mut left = if scan.restart > 0 { scan.restart } else { usize::MAX };
        for unit_y in 0..units_down {
            for unit_x in 0..units_across {
                if left == 0 {
                    state.bits.restart()?;
                    (state.last, state.end_of_band, left) = ([0; 4], 0, scan.restart);
                }
                left -= 1;
                for (c, dc, ac) in &codes {
                    let component = &frame.components[*c];
                    let (h, v) = if alone.is_some() { (1, 1) } else { (component.h, component.v) };
                    for (y, x) in (0..v).flat_map(|y| (0..h).map(move |x| (unit_y * v + y, unit_x * h + x))) {
                        let block = &mut self.components[*c][y * component.block_columns + x];
                        match is_progressive {
                            false => state.sequential(block, *c, *dc, *ac)?,
                            true if start == 0 => state.progressive_dc(block, *c, *dc, scan)?,
                            true if scan.high == 0 => state.progressive_ac(block, *ac, scan)?,
                            true => state.refine_ac(block, *ac, scan)?,
                        }
                    }
                }
            }
            if state.bits.is_exhausted() {
                return Err(Fault::Broken(format!("the JPEG data end in row {} of {} of blocks", unit_y + 1, units_down)));
            }
        }
        Ok(state.bits.at)
    }

    /// `[pixel, component]`
    pub fn samples(self, frame: &Frame, tables: &Tables) -> Result<Vec<u16>, Fault> {
        if !self.is_seen.iter().all(|s| *s) {
            return Err("a component of the JPEG frame has no scan".into());
        }
        let n = frame.components.len();
        let mut out = vec![0u16; frame.rows * frame.columns * n];
        for (k, (c, blocks)) in frame.components.iter().zip(self.components).enumerate() {
            if !frame.h.is_multiple_of(c.h) || !frame.v.is_multiple_of(c.v) {
                return Err(Fault::Unsupported("JPEG with uneven sampling of components".into()));
            }
            let plane = plane(c, &blocks, &tables.quantisers[c.table], frame.precision);
            drop(blocks);
            let full = match (frame.h / c.h, frame.v / c.v) {
                (1, 1) => plane,
                (2, 1) if c.columns > 2 => plane.widened(),
                (2, 2) if c.columns > 2 => plane.doubled(),
                (h, v) => plane.repeated(h, v),
            };
            for (line, place) in full.values.chunks_exact(full.columns).zip(out.chunks_exact_mut(frame.columns * n)) {
                place.iter_mut().skip(k).step_by(n).zip(line).for_each(|(o, v)| *o = *v);
            }
        }
        Ok(out)
    }
}

impl State<'_> {
    fn difference(&mut self, c: usize, code: Option<&Huffman>) -> Result<i32, Fault> {
        let size = code.ok_or("a JPEG scan without its Huffman table")?.next(&mut self.bits)?;
        if size > 16 {
            return Err("a JPEG difference of more than 16 bits".into());
        }
        self.last[c] = self.last[c].wrapping_add(self.bits.signed(size as u32));
        Ok(self.last[c])
    }

    fn sequential(&mut self, block: &mut [i16; 64], c: usize, dc: Option<&Huffman>, ac: Option<&Huffman>) -> Result<(), Fault> {
        block[0] = self.difference(c, dc)? as i16;
        let ac = ac.ok_or("a JPEG scan without its Huffman table")?;
        let mut k = 1;
        while k < 64 {
            let symbol = ac.next(&mut self.bits)?;
            let (run, size) = ((symbol >> 4) as usize, (symbol & 15) as u32);
            if size == 0 {
                if run < 15 {
                    break;
                }
                k += 16;
                continue;
            }
            k += run;
            *block.get_mut(*ZIGZAG.get(k).ok_or(LEAVES)?).ok_or(LEAVES)? = self.bits.signed(size) as i16;
            k += 1;
        }
        Ok(())
    }

    fn progressive_dc(&mut self, block: &mut [i16; 64], c: usize, dc: Option<&Huffman>, scan: &Scan) -> Result<(), Fault> {
        if scan.high == 0 {
            block[0] = (self.difference(c, dc)? << scan.low) as i16;
        } else if self.bits.take(1) == 1 {
            block[0] |= 1 << scan.low;
        }
        Ok(())
    }

    fn progressive_ac(&mut self, block: &mut [i16; 64], ac: Option<&Huffman>, scan: &Scan) -> Result<(), Fault> {
        if self.end_of_band > 0 {
            self.end_of_band -= 1;
            return Ok(());
        }
        let ac = ac.ok_or("a JPEG scan without its Huffman table")?;
        let mut k = scan.start;
        while k <= scan.end {
            let symbol = ac.next(&mut self.bits)?;
            let (run, size) = ((symbol >> 4) as usize, (symbol & 15) as u32);
            if size == 0 {
                if run < 15 {
                    self.end_of_band = (1 << run) - 1 + self.bits.take(run as u32);
                    break;
                }
                k += 16;
                continue;
            }
            k += run;
            if k > scan.end {
                return Err(LEAVES.into());
            }
            block[ZIGZAG[k]] = (self.bits.signed(size) << scan.low) as i16;
            k += 1;
        }
        Ok(())
    }

    /// One more bit of coefficients that are not zero, and new ones of size one (G.1.2.3).
    fn refine_ac(&mut self, block: &mut [i16; 64], ac: Option<&Huffman>, scan: &Scan) -> Result<(), Fault> {
        let ac = ac.ok_or("a JPEG scan without its Huffman table")?;
        let bit = 1i16 << scan.low;
        let mut k = scan.start;
        if self.end_of_band == 0 {
            while k <= scan.end {
                let symbol = ac.next(&mut self.bits)?;
                let (mut run, size) = ((symbol >> 4) as usize, symbol & 15);
                let mut new = 0;
                if size > 0 {
                    new = if self.bits.take(1) == 1 { bit } else { -bit };
                } else if run < 15 {
                    self.end_of_band = (1 << run) + self.bits.take(run as u32);
                    break;
                }
                // Zeros are counted, others refined in passing.
                while k <= scan.end {
                    let place = &mut block[ZIGZAG[k]];
                    if *place != 0 {
                        self.refine(place, bit);
                    } else if run == 0 {
                        *place = new;
                        k += 1;
                        break;
                    } else {
                        run -= 1;
                    }
                    k += 1;
                }
            }
        }
        if self.end_of_band > 0 {
            for k in k..=scan.end {
                let place = &mut block[ZIGZAG[k]];
                if *place != 0 {
                    self.refine(place, bit);
                }
            }
            self.end_of_band -= 1;
        }
        Ok(())
    }

    fn refine(&mut self, place: &mut i16, bit: i16) {
        if self.bits.take(1) == 1 && *place & bit == 0 {
            *place = place.wrapping_add(if *place > 0 { bit } else { -bit });
        }
    }
}

const LEAVES: &str = "a JPEG run of zeros leaves its block";

/// Samples of one component.
struct Plane {
    /// `[row, column]`
    values: Vec<u16>,
    columns: usize,
}

fn plane(c: &Component, blocks: &[[i16; 64]], quantiser: &[u16; 64], precision: u32) -> Plane {
    let mut values = vec![0u16; c.rows * c.columns];
    let mut samples = [0u16; 64];
    for (i, block) in blocks.iter().enumerate() {
        let (y0, x0) = (i / c.block_columns * 8, i % c.block_columns * 8);
        if y0 >= c.rows || x0 >= c.columns {
            continue;
        }
        idct::samples(&std::array::from_fn(|k| block[k] as i64 * quantiser[k] as i64), precision, &mut samples);
        let width = (c.columns - x0).min(8);
        for (y, line) in samples.chunks_exact(8).enumerate().take(c.rows - y0) {
            values[(y0 + y) * c.columns + x0..][..width].copy_from_slice(&line[..width]);
        }
    }
    Plane { values, columns: c.columns }
}

impl Plane {
    /// Twice as many columns: three parts of the nearer sample, one of the other (h2v1_fancy_upsample).
    fn widened(self) -> Plane {
        let n = self.columns;
        let mut values = Vec::with_capacity(2 * self.values.len());
        for line in self.values.chunks_exact(n) {
            for (x, v) in line.iter().enumerate() {
                let (v, before, after) = (*v as u32, line[x.saturating_sub(1)] as u32, line[(x + 1).min(n - 1)] as u32);
                let is_edge = [x == 0, x == n - 1];
                values.push(if is_edge[0] { v } else { (3 * v + before + 1) >> 2 } as u16);
                values.push(if is_edge[1] { v } else { (3 * v + after + 2) >> 2 } as u16);
            }
        }
        Plane { values, columns: 2 * n }
    }

    /// Twice as many both ways (h2v2_fancy_upsample).
    fn doubled(self) -> Plane {
        let n = self.columns;
        let rows = self.values.len() / n;
        let row = |y: usize| &self.values[y * n..(y + 1) * n];
        let mut values = Vec::with_capacity(4 * self.values.len());
        for y in 0..2 * rows {
            let near = row(y / 2);
            let far = if y % 2 == 0 { row((y / 2).saturating_sub(1)) } else { row((y / 2 + 1).min(rows - 1)) };
            let sum = |x: usize| 3 * near[x] as u32 + far[x] as u32;
            for x in 0..n {
                let (v, before, after) = (sum(x), sum(x.saturating_sub(1)), sum((x + 1).min(n - 1)));
                values.push(if x == 0 { (4 * v + 8) >> 4 } else { (3 * v + before + 8) >> 4 } as u16);
                values.push(if x == n - 1 { (4 * v + 7) >> 4 } else { (3 * v + after + 7) >> 4 } as u16);
            }
        }
        Plane { values, columns: 2 * n }
    }

    fn repeated(self, h: usize, v: usize) -> Plane {
        let rows = self.values.chunks_exact(self.columns).flat_map(|line| std::iter::repeat_n(line, v));
        let values = rows.flat_map(|line| line.iter().flat_map(|value| std::iter::repeat_n(*value, h))).collect();
        Plane { values, columns: self.columns * h }
    }
}
