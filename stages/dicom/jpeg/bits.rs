//! Entropy-coded bits (F.2.2): stuffed zeros are taken out, a marker ends them; Huffman codes.

use super::Fault;

/// Bits of one scan.
pub struct Bits<'a> {
    bytes: &'a [u8],
    pub at: usize,
    /// The next bits at the top.
    held: u64,
    n: u32,
    /// Zeros made up beyond the end.
    beyond: u32,
}

impl<'a> Bits<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Bits { bytes, at: 0, held: 0, n: 0, beyond: 0 }
    }

    fn fill(&mut self) {
        while self.n <= 48 {
            let byte = match (self.bytes.get(self.at), self.bytes.get(self.at + 1)) {
                (Some(0xff), Some(0)) => {
                    self.at += 2;
                    0xff
                }
                // A marker, or the end.
                (Some(0xff), _) | (None, _) => {
                    self.beyond += 8;
                    0
                }
                (Some(byte), _) => {
                    self.at += 1;
                    *byte
                }
            };
            self.held |= (byte as u64) << (56 - self.n);
            self.n += 8;
        }
    }

    /// The next `n` ≤ 16 bits, not taken yet.
    fn peek(&mut self, n: u32) -> u32 {
        if self.n < n {
            self.fill();
        }
        (self.held >> 32) as u32 >> (32 - n).min(31) >> (n == 0) as u32
    }

    fn drop(&mut self, n: u32) {
        self.held <<= n;
        self.n -= n;
    }

    pub fn take(&mut self, n: u32) -> u32 {
        if n == 0 {
            return 0;
        }
        let v = self.peek(n);
        self.drop(n);
        v
    }

    /// A signed value of `n` ≤ 16 bits (F.2.2.1, EXTEND).
    pub fn signed(&mut self, n: u32) -> i32 {
        let v = self.take(n) as i32;
        if n > 0 && v < 1 << (n - 1) { v - (1 << n) + 1 } else { v }
    }

    /// Whether bits were used that the scan does not have.
    pub fn is_exhausted(&self) -> bool {
        self.beyond > self.n
    }

    /// Steps over a restart marker; what is left of the bits before it is padding.
    pub fn restart(&mut self) -> Result<(), Fault> {
        if self.is_exhausted() {
            return Err("a JPEG interval is cut off".into());
        }
        // Bytes that were taken in advance are before the marker, since filling stops there.
        (self.held, self.n, self.beyond) = (0, 0, 0);
        let found = self.bytes[self.at.min(self.bytes.len())..].windows(2).position(|w| w[0] == 0xff && w[1] != 0 && w[1] != 0xff);
        let at = self.at + found.ok_or("a JPEG restart marker is missing")?;
        if !matches!(self.bytes[at + 1], 0xd0..=0xd7) {
            return Err("a JPEG restart marker is missing".into());
        }
        self.at = at + 2;
        Ok(())
    }
}

/// A table of codes: the short ones by looking up, the others by their length (annex C).
pub struct Huffman {
    /// Of the next nine bits: value, length (0: a longer code).
    quick: Vec<(u8, u8)>,
    values: Vec<u8>,
    /// By length: one more than the greatest code, aligned to 16 bits; place of the first value less its code.
    ends: [u32; 17],
    offsets: [i32; 17],
}

const QUICK: u32 = 9;

impl Huffman {
    pub fn new(counts: &[u8; 16], values: &[u8]) -> Result<Huffman, Fault> {
        let mut table = Huffman { quick: vec![(0, 0); 1 << QUICK], values: values.to_vec(), ends: [0; 17], offsets: [0; 17] };
        let (mut code, mut k) = (0u32, 0usize);
        for length in 1..=16u32 {
            table.offsets[length as usize] = k as i32 - code as i32;
            for _ in 0..counts[length as usize - 1] {
                if code >= 1 << length {
                    return Err("a JPEG Huffman table with more codes than there are".into());
                }
                if length <= QUICK {
                    let first = (code << (QUICK - length)) as usize;
                    table.quick[first..first + (1 << (QUICK - length))].fill((values[k], length as u8));
                }
                code += 1;
                k += 1;
            }
            table.ends[length as usize] = code << (16 - length);
            code <<= 1;
        }
        Ok(table)
    }

    pub fn next(&self, bits: &mut Bits) -> Result<u8, Fault> {
        let code = bits.peek(16);
        let (value, length) = self.quick[(code >> (16 - QUICK)) as usize];
        if length > 0 {
            bits.drop(length as u32);
            return Ok(value);
        }
        for length in QUICK + 1..=16 {
            if code < self.ends[length as usize] {
                let place = (code >> (16 - length)) as i32 + self.offsets[length as usize];
                bits.drop(length);
                return self.values.get(place as usize).copied().ok_or("a JPEG code that stands for nothing".into());
            }
        }
        Err("a JPEG code that stands for nothing".into())
    }
}
