//! JPEG-LS (ISO 14495-1, ITU-T T.87), lossless and near-lossless, of one component or of several (one scan each, by lines, by samples). Names follow the
//! standard's annex A.

/// Contexts by quantised gradients: 9³ halved by sign, and two for samples that end a run.
const N_CONTEXTS: usize = 365;
/// Order of the run length code, by run index (A.2.1).
const J: [u32; 32] = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Decodes to samples of 0 … 2^precision − 1, `[pixel, component]`. The size must be what the caller expects: it is compared before allocating.
pub fn decode(stream: &[u8], rows: usize, columns: usize, components: usize) -> Result<Vec<u16>, String> {
    // A run of a whole row takes a bit.
    if rows > stream.len().saturating_mul(8) {
        return Err(format!("{} bytes of JPEG-LS cannot hold {rows} rows", stream.len()));
    }
    let mut out = Vec::new();
    let mut at = 2;
    let mut n_done = 0;
    while n_done < components {
        let (p, start) = Parameters::read(stream, at, rows, columns, components)?;
        let mut decoder = Decoder::new(p, stream, start);
        decoder.run(rows, columns, components, n_done, &mut out)?;
        at = start + decoder.bits.at.saturating_sub(8);
        // The next marker: two bytes that entropy-coded data cannot hold.
        let rest = stream.get(at..).unwrap_or(&[]);
        at += rest.windows(2).position(|w| w[0] == 0xff && w[1] >= 0x80).unwrap_or(rest.len());
        n_done += p.n_components;
    }
    Ok(out)
}

#[derive(Clone, Copy, Debug)]
struct Parameters {
    max: i32,
    near: i32,
    t: [i32; 3],
    reset: i32,
    /// Components of the scan, and whether they are interleaved by samples, not by lines.
    n_components: usize,
    is_by_sample: bool,
}

impl Parameters {
    /// Reads the markers up to the scan; gives the place where its bits begin.
    fn read(s: &[u8], mut at: usize, rows: usize, columns: usize, wanted: usize) -> Result<(Parameters, usize), String> {
        // Later scans come without a frame header: the first one was compared.
        let mut frame = if at > 2 { start_of_frame(s) } else { None };
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
                    let n = *body.first().unwrap_or(&0) as usize;
                    let (Some(parts), Some(&[near, interleave, transform])) = (body.get(1..1 + 2 * n), body.get(1 + 2 * n..)) else {
                        return Err("a JPEG-LS scan header of another length than its components need".into());
                    };
                    let is_known =
                        matches!((n, interleave), (1, _) | (_, 1 | 2)) && parts.chunks_exact(2).all(|p| p[1] == 0) && transform == 0;
                    if (r, c, components as usize) != (rows, columns, wanted)
                        || !(2..=16).contains(&precision)
                        || !is_known
                        || ![1, wanted].contains(&n)
                    {
                        return Err(format!(
                            "JPEG-LS frame of {r}×{c} pixels, {components} components, {precision} bits where {rows}×{columns} of {wanted} are expected"
                        ));
                    }
                    let max = if preset[0] > 0 { preset[0] } else { (1 << precision) - 1 };
                    let p = Parameters {
                        n_components: n,
                        is_by_sample: interleave == 2 && n > 1,
                        ..Parameters::with_defaults(max, near as i32, preset)?
                    };
                    return Ok((p, at + 2 + length));
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
        Ok(Parameters {
            max,
            near,
            t: [t1, t2, t3],
            reset: if preset[4] > 0 { preset[4] } else { 64 },
            n_components: 1,
            is_by_sample: false,
        })
    }
}

/// What the first frame header says: precision, rows, columns, components.
fn start_of_frame(s: &[u8]) -> Option<(u32, usize, usize, u8)> {
    let at = s.windows(2).position(|w| w == [0xff, 0xf7])?;
    let b = s.get(at + 4..at + 10)?;
    Some((b[0] as u32, u16::from_be_bytes([b[1], b[2]]) as usize, u16::from_be_bytes([b[3], b[4]]) as usize, b[5]))
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

/// What was learnt of one context (A.2.1): sum of sizes of errors, bias, correction, count. Together, since they are always used together.
#[derive(Clone, Copy)]
struct Context {
    a: i32,
    b: i32,
    c: i32,
    n: i32,
}

/// Gradients of at least this size are looked at one by one.
const EDGE: i32 = 512;

struct Decoder<'a> {
    p: Parameters,
    bits: Bits<'a>,
    range: i32,
    qbpp: u32,
    limit: u32,
    contexts: Vec<Context>,
    /// Regions of gradients below `EDGE` in size (A.3.3).
    regions: Vec<i8>,
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
        let first = Context { a: ((range + 32) / 64).max(2), b: 0, c: 0, n: 1 };
        Decoder {
            contexts: vec![first; N_CONTEXTS + 2],
            regions: (-EDGE..EDGE).map(|d| region(&p, d) as i8).collect(),
            bits,
            range,
            qbpp: log2_ceil(range),
            limit: 2 * (bpp + bpp.max(8)),
            nn: [0; 2],
            run_index: 0,
            p,
        }
    }

    /// - `first`: the component of the scan, or the first of them
    /// - `out`: `[pixel, component]` of all `n` components
    fn run(&mut self, rows: usize, columns: usize, n: usize, first: usize, out: &mut Vec<u16>) -> Result<(), String> {
        let k = self.p.n_components;
        // Two lines a component, with a sample before the first and one after the last.
        let mut above = vec![vec![0i32; columns + 2]; k];
        let mut line = above.clone();
        let mut run_index = vec![0; k];
        for row in 0..rows {
            for c in 0..k {
                above[c][columns + 1] = above[c][columns];
                line[c][0] = above[c][1];
            }
            if self.p.is_by_sample {
                self.samples(&above, &mut line, columns)?;
            } else {
                for c in 0..k {
                    self.run_index = run_index[c];
                    self.line(&above[c], &mut line[c], columns)?;
                    run_index[c] = self.run_index;
                }
            }
            if self.bits.is_exhausted() {
                return Err(format!("the JPEG-LS scan ends in row {} of {rows}", row + 1));
            }
            // Memory is taken as the codestream bears it out.
            let (end, all) = ((row + 1) * columns * n, rows * columns * n);
            if out.len() < end {
                let len = end.max(2 * out.len()).max(1 << 16).min(all);
                out.reserve_exact(len - out.len());
                out.resize(len, 0);
            }
            for (c, line) in line.iter().enumerate() {
                let place = out[row * columns * n..(row + 1) * columns * n].iter_mut().skip(first + c).step_by(n);
                place.zip(&line[1..]).for_each(|(o, v)| *o = *v as u16);
            }
            std::mem::swap(&mut above, &mut line);
        }
        Ok(())
    }

    /// A line of pixels whose samples follow one another (C.2.3): a run is one of all components.
    fn samples(&mut self, above: &[Vec<i32>], line: &mut [Vec<i32>], columns: usize) -> Result<(), String> {
        let mut x = 1;
        while x <= columns {
            let contexts: Vec<i32> = above.iter().zip(&*line).map(|(up, line)| self.context(up, line, x)).collect();
            if contexts.iter().any(|q| *q != 0) {
                for (c, q) in contexts.into_iter().enumerate() {
                    line[c][x] = self.regular(q, line[c][x - 1], above[c][x], above[c][x - 1]);
                }
                x += 1;
                continue;
            }
            let (n, is_broken) = self.run_length(columns + 1 - x)?;
            for line in line.iter_mut() {
                let ra = line[x - 1];
                line[x..x + n].fill(ra);
            }
            x += n;
            if is_broken {
                for (c, line) in line.iter_mut().enumerate() {
                    line[x] = self.run_end_of(false, line[x - 1], above[c][x]);
                }
                self.run_index = self.run_index.saturating_sub(1);
                x += 1;
            }
        }
        Ok(())
    }

    fn context(&self, above: &[i32], line: &[i32], x: usize) -> i32 {
        let (ra, rb, rc, rd) = (line[x - 1], above[x], above[x - 1], above[x + 1]);
        81 * self.quantise(rd - rb) + 9 * self.quantise(rb - rc) + self.quantise(rc - ra)
    }

    /// Samples of a run (A.7.1), and whether it ended before the line did.
    fn run_length(&mut self, left: usize) -> Result<(usize, bool), String> {
        let mut n = 0;
        loop {
            let order = J[self.run_index];
            if self.bits.take(1) == 0 {
                n += self.bits.take(order) as usize;
                return if n < left { Ok((n, true)) } else { Err("a JPEG-LS run leaves its row".into()) };
            }
            let length = 1usize << order;
            if n + length <= left {
                self.run_index = (self.run_index + 1).min(31);
            }
            n = (n + length).min(left);
            if n == left {
                return Ok((n, false));
            }
        }
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
            let (n, is_broken) = self.run_length(columns + 1 - x)?;
            line[x..x + n].fill(ra);
            x += n;
            if is_broken {
                line[x] = self.run_end_of((ra - above[x]).abs() <= self.p.near, ra, above[x]);
                self.run_index = self.run_index.saturating_sub(1);
                x += 1;
            }
        }
        Ok(())
    }

    fn quantise(&self, d: i32) -> i32 {
        match self.regions.get((d.wrapping_add(EDGE)) as usize) {
            Some(region) => *region as i32,
            None => region(&self.p, d),
        }
    }

    fn regular(&mut self, q: i32, ra: i32, rb: i32, rc: i32) -> i32 {
        let sign = if q < 0 { -1 } else { 1 };
        let q = q.unsigned_abs() as usize;
        // The median of the three (A.4.1).
        let (low, high) = (ra.min(rb), ra.max(rb));
        let predicted = low.max(high.min(ra + rb - rc));
        let context = self.contexts[q];
        let predicted = (predicted + sign * context.c).clamp(0, self.p.max);
        let k = golomb(context.n, context.a);
        let mapped = self.value(k, self.limit);
        let mut error = (mapped >> 1) ^ -(mapped & 1);
        if self.p.near == 0 && k == 0 && 2 * context.b <= -context.n {
            error = -(error + 1);
        }
        self.contexts[q] = context.learnt(error, &self.p);
        self.restore(predicted, sign * error)
    }

    /// The sample that ends a run (A.7.2). `is_like`: Ra and Rb are alike.
    fn run_end_of(&mut self, is_like: bool, ra: i32, rb: i32) -> i32 {
        let kind = is_like as usize;
        let q = N_CONTEXTS + kind;
        let context = self.contexts[q];
        let k = golomb(context.n, context.a.saturating_add(if kind == 1 { context.n >> 1 } else { 0 }));
        let mapped = self.value(k, self.limit - J[self.run_index] - 1);
        let shifted = mapped + kind as i32;
        let odd = shifted & 1;
        let size = (shifted + odd) >> 1;
        let is_negative = (k != 0 || 2 * self.nn[kind] >= context.n) == (odd == 1);
        let error = if is_negative { -size } else { size };
        if error < 0 {
            self.nn[kind] += 1;
        }
        let context = &mut self.contexts[q];
        context.a = context.a.saturating_add((mapped + 1 - kind as i32) >> 1);
        if context.n == self.p.reset {
            context.a >>= 1;
            context.n >>= 1;
            self.nn[kind] >>= 1;
        }
        context.n += 1;
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

/// The region of a gradient (A.3.3).
fn region(p: &Parameters, d: i32) -> i32 {
    let [t1, t2, t3] = p.t;
    let size = match d.abs() {
        v if v <= p.near => 0,
        v if v < t1 => 1,
        v if v < t2 => 2,
        v if v < t3 => 3,
        _ => 4,
    };
    size * d.signum()
}

impl Context {
    /// A.6.1 and A.6.2.
    fn learnt(self, error: i32, p: &Parameters) -> Context {
        let Context { mut a, mut b, mut c, mut n } = self;
        // A hostile RESET would let it grow beyond bounds.
        a = a.saturating_add(error.abs());
        b += error * (2 * p.near + 1);
        if n == p.reset {
            a >>= 1;
            b = if b >= 0 { b >> 1 } else { -((1 - b) >> 1) };
            n >>= 1;
        }
        n += 1;
        if b <= -n {
            b = (b + n).max(1 - n);
            c = (c - 1).max(-128);
        } else if b > 0 {
            b = (b - n).min(0);
            c = (c + 1).min(127);
        }
        Context { a, b, c, n }
    }
}

/// The least k ≤ 16 with n·2^k ≥ a.
fn golomb(n: i32, a: i32) -> u32 {
    // By the places of the highest bits it is that many, or one more.
    let k = n.leading_zeros().saturating_sub(a.max(1).leading_zeros());
    (k + (((n as i64) << k) < a as i64) as u32).min(16)
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
        assert_eq!(decode(&stream, 4, 4, 1).unwrap(), expected);
        assert!(decode(&stream, 4, 5, 1).is_err());
        assert!(decode(&stream[..30], 4, 4, 1).unwrap_err().contains("ends in row"));
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
            let _ = decode(&stream, 16, 16, 1);
        }
    }
}
