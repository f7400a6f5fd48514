//! RLE Lossless (PS3.5 annex G): one segment a byte plane, most significant first, sample by sample.

/// Decodes one frame to little endian samples, plane by plane: `[sample, pixel]`.
/// - `n`: pixels of the frame
/// - `width`: bytes a sample
pub fn decode(stream: &[u8], n: usize, samples: usize, width: usize) -> Result<Vec<u8>, String> {
    let word = |i: usize| stream.get(4 * i..4 * i + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize);
    let count = word(0).ok_or("RLE header is cut off")?;
    if count != samples * width || count > 15 || stream.len() < 64 {
        return Err(format!("RLE frame has {count} segments, expected {}", samples * width));
    }
    // 128 bytes are the most that two can stand for.
    if n.saturating_mul(count) > stream.len().saturating_mul(64) {
        return Err(format!("{} RLE bytes cannot hold {n} pixels of {count} bytes", stream.len()));
    }
    let segment = |i: usize| {
        let start = word(i + 1).unwrap_or(0);
        let end = if i + 1 < count { word(i + 2).unwrap_or(0) } else { stream.len() };
        stream.get(start..end).filter(|_| start >= 64).ok_or("RLE segment lies outside the frame")
    };
    let short = |i: usize, k: usize| format!("RLE segment {i} holds {k} of {n} pixels");
    // What is packed as only runs are is counted before memory is taken for it.
    if n.saturating_mul(count) / 8 > stream.len() {
        for i in 0..count {
            let k = unpacked(segment(i)?);
            if k < n {
                return Err(short(i, k));
            }
        }
    }
    let mut out = vec![0u8; n * count];
    let mut plane = vec![0u8; if width == 1 { 0 } else { n }];
    for i in 0..count {
        let segment = segment(i)?;
        let (sample, byte) = (i / width, width - 1 - i % width);
        let place = &mut out[sample * n * width..(sample + 1) * n * width];
        if width == 1 {
            unpack(segment, place).map_err(|k| short(i, k))?;
        } else {
            unpack(segment, &mut plane).map_err(|k| short(i, k))?;
            match width {
                2 => place.as_chunks_mut::<2>().0.iter_mut().zip(&plane).for_each(|(o, b)| o[byte] = *b),
                _ => place.chunks_exact_mut(width).zip(&plane).for_each(|(o, b)| o[byte] = *b),
            }
        }
    }
    Ok(out)
}

/// How many bytes a segment unpacks to.
fn unpacked(segment: &[u8]) -> usize {
    let (mut at, mut n) = (0, 0);
    while let Some(&control) = segment.get(at) {
        let (taken, given) = match control {
            0..128 => (control as usize + 1, control as usize + 1),
            128 => (0, 0),
            _ => (1, 257 - control as usize),
        };
        at += 1 + taken;
        if at > segment.len() {
            break;
        }
        n += given;
    }
    n
}

/// Whole runs at a time. `Err`: how many bytes there were.
fn unpack(segment: &[u8], out: &mut [u8]) -> Result<(), usize> {
    let (mut at, mut put) = (0, 0);
    while put < out.len() {
        let control = *segment.get(at).ok_or(put)?;
        at += 1;
        if control < 128 {
            let n = control as usize + 1;
            let literal = segment.get(at..at + n).ok_or(put)?;
            let n_put = n.min(out.len() - put);
            out[put..put + n_put].copy_from_slice(&literal[..n_put]);
            at += n;
            put += n_put;
        } else if control > 128 {
            let value = *segment.get(at).ok_or(put)?;
            let n_put = (257 - control as usize).min(out.len() - put);
            out[put..put + n_put].fill(value);
            at += 1;
            put += n_put;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn frame(segments: &[&[u8]]) -> Vec<u8> {
        let mut head = vec![0u8; 64];
        head[..4].copy_from_slice(&(segments.len() as u32).to_le_bytes());
        let mut body = Vec::new();
        for (i, s) in segments.iter().enumerate() {
            head[4 + 4 * i..8 + 4 * i].copy_from_slice(&(64 + body.len() as u32).to_le_bytes());
            body.extend(*s);
        }
        [head, body].concat()
    }

    #[test]
    fn planes_become_little_endian_samples() {
        // High bytes 1, 1, 1; low bytes 5, 6, 7.
        let grey = frame(&[&[254, 1], &[2, 5, 6, 7]]);
        assert_eq!(decode(&grey, 3, 1, 2).unwrap(), [5, 1, 6, 1, 7, 1]);
        let colour = frame(&[&[255, 1], &[128, 1, 5, 6], &[255, 9]]);
        assert_eq!(decode(&colour, 2, 3, 1).unwrap(), [1, 1, 5, 6, 9, 9]);
    }

    #[test]
    fn short_frames_are_an_error() {
        let short = frame(&[&[254, 1], &[1, 5, 6]]);
        assert!(decode(&short, 3, 1, 2).unwrap_err().contains("2 of 3"));
        assert!(decode(&short[..40], 3, 1, 2).is_err());
        assert!(decode(&short, 3, 3, 1).is_err());
        assert!(decode(&short, 1 << 40, 1, 2).is_err(), "before anything is allocated");
        // 63 runs of 128 and a literal that is cut off, and the same with another run.
        let runs = |n: usize| frame(&[&[129, 7].repeat(n)]);
        assert!(decode(&runs(500), 128 * 500 + 1, 1, 1).unwrap_err().contains("holds 64000 of 64001"));
        assert_eq!(decode(&runs(500), 128 * 500, 1, 1).unwrap(), vec![7; 64000]);
    }
}
