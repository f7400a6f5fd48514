//! How full a shelf is, for all processes that share it: a small file behind a `flock`. Whoever dies between a change and its entry leaves the
//! file marked as open, and the next one counts anew.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::disk::wait;
use crate::error::Error;

/// The locked file. Bytes 0–7: bytes in use, little endian; byte 8: 1 = settled, anything else = count anew.
pub(super) struct Ledger {
    file: File,
}

impl Ledger {
    /// Waits until no other process or thread holds the ledger; freed on drop.
    pub fn lock(path: &Path) -> Result<Self, Error> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(Error::io("open ledger", path))?;
        wait(&file).map_err(Error::io("lock", path))?;
        Ok(Self { file })
    }

    /// `None` where the last change was not settled.
    pub fn used_bytes(&self) -> Option<u64> {
        let mut entry = [0; 9];
        self.file.read_exact_at(&mut entry, 0).ok()?;
        let (used, state) = entry.split_at(8);
        (state == [1]).then(|| u64::from_le_bytes(used.try_into().expect("eight bytes")))
    }

    /// Marks the ledger before a change that its next entry settles.
    pub fn begin(&self) -> std::io::Result<()> {
        self.file.write_all_at(&[0], 8)
    }

    pub fn settle(&self, used_bytes: u64) -> std::io::Result<()> {
        self.file.write_all_at(&used_bytes.to_le_bytes(), 0)?;
        self.file.write_all_at(&[1], 8)
    }
}
