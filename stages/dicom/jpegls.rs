//! JPEG-LS (ISO 14495-1, ITU-T T.87), lossless and near-lossless, of one component: what grey DICOM images use. Names follow the standard's annex A.

/// Contexts by quantised gradients: 9³ halved by sign, and two for samples that end a run.
const N_CONTEXTS: usize = 365;
/// Order of the run length code, by run index (A.2.1).
const J: [u32; 32] = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Decodes one scan to samples of 0 … 2^precision − 1, row by row. The size must be what the caller expects: it is compared before allocating.
pub fn decode(stream: &[u8], rows: usize, columns: usize) -> Result<Vec<u16>, String> {
    let (p, start) = Parameters::read(stream, rows, columns)?;
    Decoder::new(p, stream, start).run(rows, columns)
}

#[derive(Clone, Copy, Debug)]
struct Parameters {
    max: i32,
    near: i32,
    t: [i32; 3],
    reset: i32,
}

impl Parameters {
    /// Reads the markers up to the scan; gives the place where its bits begin.
    fn read(s: &[u8], rows: usize, columns: usize) -> Result<(Parameters, usize), String> {
        let mut at = 2;
        let mut frame = None;
        let mut preset = [0i32; 5];
        loop {
            while s.get(at..at + 2) == Some(&[0xff, 0xff]) {
                at += 1;
            }
            let head = s.get(at..at + 4).filter(|b| b[0] == 0xff).ok_or("JPEG-LS markers are cut off")?;
            let length = u16::from_be_bytes([head[2], head[3]]) as usize;
            let body = s.get(at + 4..(at + 2 + length).max(at + 4)).ok_or("a JPEG-LS marker is cut off")?;
            let word = |i: usize| body.get(i..i + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]) as i32);
            match head[1] {
                0xf7 if body.len() >= 6 => frame = Some((body[0] as u32, word(1) as usize, word(3) as usize, body[5])),
                // Preset coding parameters; 0 stands for the default.
                0xf8 if body.first() == Some(&1) && body.len() >= 11 => preset = [word(1), word(3), word(5), word(7), word(9)],
                0xf8 => return Err("JPEG-LS mapping tables are not read".into()),
                0xdd if word(0) != 0 => return Err("JPEG-LS restart intervals are not read".into()),
                0xda => {
                    let (precision, r, c, components) = frame.ok_or("a JPEG-LS scan without a frame")?;
                    let [n, _, mapping, near, _, transform] = *body else { return Err("a JPEG-LS scan of several components".into()) };
                    if (r, c, components, n, mapping, transform) != (rows, columns, 1, 1, 0, 0) || !(2..=16).contains(&precision) {
                        return Err(format!(
                            "JPEG-LS frame of {r}×{c} pixels, {components} components, {precision} bits where {rows}×{columns} of 1 are expected"
                        ));
                    }
                    let max = if preset[0] > 0 { preset[0] } else { (1 << precision) - 1 };
                    return Ok((Parameters::with_defaults(max, near as i32, preset)?, at + 2 + length));
                }
                _ => {}
            }
            at += 2 + length.max(2);
        }
    }

    /// Default thresholds (C.2.4.1.1.1).
    fn with_defaults(max: i32, near: i32, preset: [i32; 5]) -> Result<Parameters, String> {
        if near > 255.min(max / 2) {
            return Err(format!("JPEG-LS error bound {near} for values up to {max}"));
        }
        let clamp = |v: i32, low: i32| if v > max || v < low { low } else { v };
        let [a, b, c] = if max >= 128 {
            let f = (max.min(4095) + 128) / 256;
            [f + 2 + 3 * near, f * 4 + 3 + 5 * near, f * 17 + 4 + 7 * near]
        } else {
            let f = 256 / (max + 1);
            [(3 / f + 3 * near).max(2), (7 / f + 5 * near).max(3), (21 / f + 7 * near).max(4)]
        };
        let t1 = if preset[1] > 0 { preset[1] } else { clamp(a, near + 1) };
        let t2 = if preset[2] > 0 { preset[2] } else { clamp(b, t1) };
        let t3 = if preset[3] > 0 { preset[3] } else { clamp(c, t2) };
        Ok(Parameters { max, near, t: [t1, t2, t3], reset: if preset[4] > 0 { preset[4] } else { 64 } })
    }
}

/// Bits of a scan; after a byte 0xFF the next one holds seven (A.1).
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The next bits at the top.
    held: u64,
    n: u32,
    after_ff: bool,
    /// Zeros made up beyond the end.
    beyond: u32,
}

impl Bits<'_> {
    fn fill(&mut self) {
        while self.n <= 48 {
            let is_marker = self.after_ff && self.bytes.get(self.at).is_some_and(|b| *b >= 0x80);
            let Some(&b) = self.bytes.get(self.at).filter(|_| !is_marker) else {
                self.n += 8;
                self.beyond += 8;
                continue;
            };
            let width = if self.after_ff { 7 } else { 8 };
            self.held |= (b as u64) << (64 - width - self.n);
            self.n += width;
            self.after_ff = b == 0xff;
            self.at += 1;
        }
    }

    fn take(&mut self, n: u32) -> u32 {
        if n == 0 {
            return 0;
        }
        if self.n < n {
            self.fill();
        }
        let v = (self.held >> (64 - n)) as u32;
        self.held <<= n;
        self.n -= n;
        v
    }

    /// Zeros before the next one, which is taken as well; at most `limit` + 1.
    fn zeros(&mut self, limit: u32) -> u32 {
        let mut zeros = 0;
        loop {
            if self.n < 32 {
                self.fill();
            }
            let run = self.held.leading_zeros().min(self.n);
            if run < self.n {
                self.held <<= run;
                self.held <<= 1;
                self.n -= run + 1;
                return zeros + run;
            }
            zeros += run;
            self.held = 0;
            self.n = 0;
            if zeros > limit {
                return zeros;
            }
        }
    }

    /// Whether bits were used that the scan does not have.
    fn is_exhausted(&self) -> bool {
        self.beyond > self.n
    }
}

struct Decoder<'a> {
    p: Parameters,
    bits: Bits<'a>,
    range: i32,
    qbpp: u32,
    limit: u32,
    a: Vec<i32>,
    b: Vec<i32>,
    c: Vec<i32>,
    n: Vec<i32>,
    /// Of the two run contexts: how many errors were negative.
    nn: [i32; 2],
    run_index: usize,
}

impl<'a> Decoder<'a> {
    fn new(p: Parameters, stream: &'a [u8], start: usize) -> Self {
        let range = (p.max + 2 * p.near) / (2 * p.near + 1) + 1;
        let log2_ceil = |v: i32| 32 - (v as u32 - 1).leading_zeros();
        let bpp = log2_ceil(p.max + 1).max(2);
        let bits = Bits { bytes: stream.get(start..).unwrap_or(&[]), at: 0, held: 0, n: 0, after_ff: false, beyond: 0 };
        let n = N_CONTEXTS + 2;
        Decoder {
            bits,
            range,
            qbpp: log2_ceil(range),
            limit: 2 * (bpp + bpp.max(8)),
            a: vec![((range + 32) / 64).max(2); n],
            b: vec![0; n],
            c: vec![0; n],
            n: vec![1; n],
            nn: [0; 2],
            run_index: 0,
            p,
        }
    }

    fn run(mut self, rows: usize, columns: usize) -> Result<Vec<u16>, String> {
        let mut out = vec![0u16; rows * columns];
        // Two lines with a sample before the first and one after the last.
        let mut above = vec![0i32; columns + 2];
        let mut line = vec![0i32; columns + 2];
        for row in 0..rows {
            above[columns + 1] = above[columns];
            line[0] = above[1];
            self.line(&above, &mut line, columns)?;
            if self.bits.is_exhausted() {
                return Err(format!("the JPEG-LS scan ends in row {} of {rows}", row + 1));
            }
            out[row * columns..(row + 1) * columns].iter_mut().zip(&line[1..]).for_each(|(o, v)| *o = *v as u16);
            std::mem::swap(&mut above, &mut line);
        }
        Ok(out)
    }

    fn line(&mut self, above: &[i32], line: &mut [i32], columns: usize) -> Result<(), String> {
        let mut x = 1;
        while x <= columns {
            let (ra, rb, rc, rd) = (line[x - 1], above[x], above[x - 1], above[x + 1]);
            let q = 81 * self.quantise(rd - rb) + 9 * self.quantise(rb - rc) + self.quantise(rc - ra);
            if q != 0 {
                line[x] = self.regular(q, ra, rb, rc);
                x += 1;
                continue;
            }
            // Run mode (A.7).
            loop {
                let is_whole = self.bits.take(1) == 1;
                let order = J[self.run_index];
                let length = if is_whole { 1usize << order } else { self.bits.take(order) as usize };
                let left = columns + 1 - x;
                if !is_whole && length >= left {
                    return Err("a JPEG-LS run leaves its row".into());
                }
                let n = length.min(left);
                line[x..x + n].fill(ra);
                x += n;
                if !is_whole {
                    line[x] = self.run_end(ra, above[x]);
                    self.run_index = self.run_index.saturating_sub(1);
                    x += 1;
                    break;
                }
                if n == length {
                    self.run_index = (self.run_index + 1).min(31);
                }
                if x > columns {
                    break;
                }
            }
        }
        Ok(())
    }

    fn quantise(&self, d: i32) -> i32 {
        let [t1, t2, t3] = self.p.t;
        let size = match d.abs() {
            v if v <= self.p.near => 0,
            v if v < t1 => 1,
            v if v < t2 => 2,
            v if v < t3 => 3,
            _ => 4,
        };
        size * d.signum()
    }

    fn regular(&mut self, q: i32, ra: i32, rb: i32, rc: i32) -> i32 {
        let sign = q.signum();
        let q = q.unsigned_abs() as usize;
        let predicted = if rc >= ra.max(rb) {
            ra.min(rb)
        } else if rc <= ra.min(rb) {
            ra.max(rb)
        } else {
            ra + rb - rc
        };
        let predicted = (predicted + sign * self.c[q]).clamp(0, self.p.max);
        let k = golomb(self.n[q], self.a[q]);
        let mapped = self.value(k, self.limit);
        let mut error = if mapped & 1 == 0 { mapped >> 1 } else { -((mapped + 1) >> 1) };
        if self.p.near == 0 && k == 0 && 2 * self.b[q] <= -self.n[q] {
            error = -(error + 1);
        }
        self.update(q, error);
        self.restore(predicted, sign * error)
    }

    /// A.6.1 and A.6.2.
    fn update(&mut self, q: usize, error: i32) {
        let (a, b, c, n) = (&mut self.a[q], &mut self.b[q], &mut self.c[q], &mut self.n[q]);
        *a += error.abs();
        *b += error * (2 * self.p.near + 1);
        if *n == self.p.reset {
            *a >>= 1;
            *b = if *b >= 0 { *b >> 1 } else { -((1 - *b) >> 1) };
            *n >>= 1;
        }
        *n += 1;
        if *b <= -*n {
            *b = (*b + *n).max(1 - *n);
            *c = (*c - 1).max(-128);
        } else if *b > 0 {
            *b = (*b - *n).min(0);
            *c = (*c + 1).min(127);
        }
    }

    /// The sample that ends a run (A.7.2).
    fn run_end(&mut self, ra: i32, rb: i32) -> i32 {
        let kind = ((ra - rb).abs() <= self.p.near) as usize;
        let q = N_CONTEXTS + kind;
        let k = golomb(self.n[q], self.a[q] + if kind == 1 { self.n[q] >> 1 } else { 0 });
        let mapped = self.value(k, self.limit - J[self.run_index] - 1);
        let shifted = mapped + kind as i32;
        let odd = shifted & 1;
        let size = (shifted + odd) >> 1;
        let is_negative = (k != 0 || 2 * self.nn[kind] >= self.n[q]) == (odd == 1);
        let error = if is_negative { -size } else { size };
        if error < 0 {
            self.nn[kind] += 1;
        }
        self.a[q] += (mapped + 1 - kind as i32) >> 1;
        if self.n[q] == self.p.reset {
            self.a[q] >>= 1;
            self.n[q] >>= 1;
            self.nn[kind] >>= 1;
        }
        self.n[q] += 1;
        if kind == 1 { self.restore(ra, error) } else { self.restore(rb, if rb < ra { -error } else { error }) }
    }

    /// A limited-length Golomb code (A.5.3).
    fn value(&mut self, k: u32, limit: u32) -> i32 {
        let escape = limit - self.qbpp - 1;
        let zeros = self.bits.zeros(escape);
        if zeros >= escape {
            return self.bits.take(self.qbpp) as i32 + 1;
        }
        ((zeros << k) | self.bits.take(k)) as i32
    }

    fn restore(&self, predicted: i32, error: i32) -> i32 {
        let step = 2 * self.p.near + 1;
        let v = predicted.wrapping_add(error.wrapping_mul(step));
        let v = if v < -self.p.near {
            v.wrapping_add(self.range * step)
        } else if v > self.p.max + self.p.near {
            v.wrapping_sub(self.range * step)
        } else {
            v
        };
        v.clamp(0, self.p.max)
    }
}

/// The least k with n·2^k ≥ a. Bounded, because hostile bits may drive `a` anywhere.
fn golomb(n: i32, a: i32) -> u32 {
    (0..16).find(|k| (n as i64) << k >= a as i64).unwrap_or(16)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The example of the standard's annex H.3: 4×4 samples of 8 bits.
    #[test]
    fn the_example_of_the_standard_is_decoded() {
        let stream = [
            0xff, 0xd8, 0xff, 0xf7, 0x00, 0x0b, 0x08, 0x00, 0x04, 0x00, 0x04, 0x01, 0x01, 0x11, 0x00, 0xff, 0xda, 0x00, 0x08, 0x01, 0x01,
            0x00, 0x00, 0x00, 0x00, 0xc0, 0x00, 0x00, 0x6c, 0x80, 0x20, 0x8e, 0x01, 0xc0, 0x00, 0x00, 0x57, 0x40, 0x00, 0x00, 0x6e, 0xe6,
            0x00, 0x00, 0x01, 0xbc, 0x18, 0x00, 0x00, 0x05, 0xd8, 0x00, 0x00, 0x91, 0x60, 0xff, 0xd9,
        ];
        let expected = [0, 0, 90, 74, 68, 50, 43, 205, 64, 145, 145, 145, 100, 145, 145, 145];
        assert_eq!(decode(&stream, 4, 4).unwrap(), expected);
        assert!(decode(&stream, 4, 5).is_err());
        assert!(decode(&stream[..30], 4, 4).unwrap_err().contains("ends in row"));
    }

    #[test]
    fn noise_is_an_error_or_a_picture_but_never_a_panic() {
        let head = [0xff, 0xd8, 0xff, 0xf7, 0, 11, 16, 0, 16, 0, 16, 1, 1, 0x11, 0, 0xff, 0xda, 0, 8, 1, 1, 0, 3, 0, 0];
        let mut state = 12345u64;
        for _ in 0..200 {
            let mut stream = head.to_vec();
            for _ in 0..600 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                stream.push((state >> 33) as u8);
            }
            let _ = decode(&stream, 16, 16);
        }
    }
}
