//! Files that stand whole or not at all: written beside, synced, renamed. For what must outlive a crash without a draft around it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use parquet::basic::Compression;

use super::{FEW_ROWS, packed, zstd};
use crate::error::Error;

/// A file that was written beside its place. Dropped, it goes.
pub struct Beside {
    file: File,
    at: PathBuf,
    path: PathBuf,
    is_in_place: bool,
}

impl Beside {
    /// An empty one: whether there can be a file is known from here on.
    pub fn new(path: &Path) -> Result<Beside, Error> {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.new", std::process::id()));
        let at = path.with_file_name(name);
        let file = File::create(&at).map_err(Error::io("write", path))?;
        Ok(Beside { file, at, path: path.to_path_buf(), is_in_place: false })
    }

    pub fn with_bytes(mut self, bytes: &[u8]) -> Result<Beside, Error> {
        self.file.write_all(bytes).map_err(Error::io("write", &self.path))?;
        Ok(self)
    }

    pub fn with_rows(self, batch: &RecordBatch) -> Result<Beside, Error> {
        // A compressor for each column takes longer to make than a few rows to write.
        let compression = if batch.num_rows() < FEW_ROWS { Compression::UNCOMPRESSED } else { zstd() };
        let bytes = packed(&self.path, batch, compression)?;
        self.with_bytes(&bytes)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.is_in_place {
            let _ = std::fs::remove_file(&self.at);
        }
    }
}

/// Puts files in their places, in this order: none is there after a crash where one before it is not.
pub fn put_in_place(mut files: Vec<Beside>) -> Result<(), Error> {
    sync(&files.iter().map(|b| (&b.file, b.path.as_path())).collect::<Vec<_>>())?;
    for b in &mut files {
        std::fs::rename(&b.at, &b.path).map_err(Error::io("write", &b.path))?;
        b.is_in_place = true;
    }
    // The folder of a bare name is the one we are in.
    let here = |dir| if dir == Path::new("") { Path::new(".") } else { dir };
    let folders: BTreeSet<&Path> = files.iter().filter_map(|b| b.path.parent()).map(here).collect();
    let opened = folders.into_iter().map(|dir| Ok((File::open(dir).map_err(Error::io("sync", dir))?, dir)));
    let opened = opened.collect::<Result<Vec<_>, Error>>()?;
    sync(&opened.iter().map(|(dir, path)| (dir, *path)).collect::<Vec<_>>())
}

/// All at once: a journal makes one entry of syncs that come together, and one for each that comes alone.
fn sync(files: &[(&File, &Path)]) -> Result<(), Error> {
    let one = |(file, path): &(&File, &Path)| file.sync_all().map_err(Error::io("write", *path));
    let Some((first, others)) = files.split_first() else { return Ok(()) };
    std::thread::scope(|scope| {
        let spawned: Vec<_> = others.iter().map(|other| scope.spawn(move || one(other))).collect();
        let here = one(first);
        spawned.into_iter().fold(here, |all, one| all.and(one.join().expect("syncing does not panic")))
    })
}
