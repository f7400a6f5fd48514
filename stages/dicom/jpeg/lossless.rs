//! Lossless JPEG (annex H): every sample is predicted by its neighbours, the difference is coded.

use super::bits::{Bits, Huffman};
use super::{Fault, Frame, Scan, Tables};

pub struct Samples {
    /// `[pixel, component]`
    samples: Vec<u16>,
    is_done: Vec<bool>,
}

impl Samples {
    pub fn new(frame: &Frame) -> Result<Samples, Fault> {
        if frame.components.iter().any(|c| (c.h, c.v) != (1, 1)) {
            return Err(Fault::Unsupported("lossless JPEG with components of different size".into()));
        }
        let n = frame.components.len();
        Ok(Samples { samples: vec![0; frame.rows * frame.columns * n], is_done: vec![false; n] })
    }

    /// Gives the bytes that the scan took.
    pub fn scan(&mut self, frame: &Frame, scan: &Scan, tables: &Tables, data: &[u8]) -> Result<usize, Fault> {
        if !(1..=7).contains(&scan.start) || scan.low >= frame.precision {
            return Err("a lossless JPEG scan with an unknown predictor".into());
        }
        let codes: Vec<(usize, &Huffman)> = (scan.parts.iter())
            .map(|(c, dc, _)| Some((*c, tables.dc[*dc].as_ref()?)))
            .collect::<Option<_>>()
            .ok_or("a JPEG scan without its Huffman table")?;
        let mut bits = Bits::new(data);
        let (n, columns) = (frame.components.len(), frame.columns);
        let stride = columns * n;
        let middle = 1u16 << (frame.precision - scan.low - 1);
        // The first row after a restart is predicted as the first of all (H.1.2.1).
        let mut is_first = true;
        let mut left = if scan.restart > 0 { scan.restart } else { usize::MAX };
        for y in 0..frame.rows {
            let (above, row) = self.samples[..(y + 1) * stride].split_at_mut(y * stride);
            let above = &above[y.saturating_sub(1) * stride..];
            let mut first_x = 0;
            for x in 0..columns {
                if left == 0 {
                    bits.restart()?;
                    left = scan.restart;
                    (is_first, first_x) = (true, x);
                }
                left -= 1;
                for (c, code) in &codes {
                    let at = x * n + c;
                    let predicted = if is_first {
                        if x == first_x { middle } else { row[at - n] }
                    } else if x == 0 {
                        above[at]
                    } else {
                        predict(scan.start, row[at - n], above[at], above[at - n])
                    };
                    let difference = match code.next(&mut bits)? {
                        16 => 32768,
                        size @ 0..16 => bits.signed(size as u32),
                        _ => return Err("a lossless JPEG difference of more than 16 bits".into()),
                    };
                    row[at] = predicted.wrapping_add(difference as u16);
                }
            }
            if bits.is_exhausted() {
                return Err(Fault::Broken(format!("the JPEG data end in row {} of {}", y + 1, frame.rows)));
            }
            is_first = false;
        }
        for (c, _) in &codes {
            self.is_done[*c] = true;
            if scan.low > 0 {
                self.samples.iter_mut().skip(*c).step_by(n).for_each(|v| *v <<= scan.low);
            }
        }
        Ok(bits.at)
    }

    pub fn samples(self) -> Result<Vec<u16>, Fault> {
        if self.is_done.iter().all(|d| *d) { Ok(self.samples) } else { Err("a component of the JPEG frame has no scan".into()) }
    }
}

/// Table H.1, modulo 2^16 but halves of signed differences.
fn predict(selection: usize, a: u16, b: u16, c: u16) -> u16 {
    let half = |v: i32| v >> 1;
    let (a, b, c) = (a as i32, b as i32, c as i32);
    (match selection {
        1 => a,
        2 => b,
        3 => c,
        4 => a + b - c,
        5 => a + half(b - c),
        6 => b + half(a - c),
        _ => half(a + b),
    }) as u16
}
