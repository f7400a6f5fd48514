//! What the containers in one file may unfold to. A zip can hold a container a thousand times in the place of one, and each of these another: every limit on
//! one member lets such a file through.

use std::io::{Error, ErrorKind, Result};
use std::sync::atomic::{AtomicU64, Ordering};

/// So much is unfolded for each byte of the file and besides, and so many members are looked at.
const RATIO: u64 = 64;
const BYTES: u64 = 1 << 30;
const MEMBERS: u64 = 1 << 16;
const MEMBER_BYTES: u64 = 32;
/// A header is unfolded as far as this and four times the bytes that it is packed in: no real one is packed so well that it is larger.
const HEADER_BYTES: u64 = 48 << 20;

/// What is left for the containers in one file.
#[derive(Debug)]
pub struct Allowance {
    members: AtomicU64,
    bytes: AtomicU64,
}

impl Allowance {
    /// - `bytes`: of the file
    pub fn of(bytes: u64) -> Allowance {
        Allowance {
            members: AtomicU64::new(MEMBERS + bytes / MEMBER_BYTES),
            bytes: AtomicU64::new(bytes.saturating_mul(RATIO).saturating_add(BYTES)),
        }
    }

    pub fn take(&self, members: u64, bytes: u64) -> Result<()> {
        let less = |left: &AtomicU64, n: u64| left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(n)).is_ok();
        if less(&self.members, members) && less(&self.bytes, bytes) {
            return Ok(());
        }
        let why = "the containers in this file unfold to far more than a file of its size holds: unpack it first";
        Err(Error::new(ErrorKind::InvalidData, why))
    }
}

/// How many bytes of a packed file or member are unfolded for its header at most.
pub fn header_limit(packed: u64) -> usize {
    packed.saturating_mul(4).saturating_add(HEADER_BYTES) as usize
}

pub fn header_too_long(limit: usize) -> Error {
    Error::new(ErrorKind::InvalidData, format!("its header unfolds to more than {limit} bytes"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_gone() {
        let a = Allowance::of(100);
        a.take(MEMBERS, BYTES).unwrap();
        a.take(3, 6400).unwrap();
        assert!(a.take(0, 1).is_err());
        assert!(a.take(1, 0).is_err());
        a.take(0, 0).unwrap();
    }
}
