//! The one exception to artifacts that never change: what must be forgotten leaves the tables and the manifest of an artifact that stays (a trained
//! model). Its key and its content hash remain what they were, so nothing that was made from it is made again.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use voxmill_schemas::artifact::{ContentHash, Manifest};

use super::disk::{Disk, MANIFEST};
use super::draft::make_read_only;
use crate::error::Error;

impl Disk {
    /// Manifests that can be read, of artifacts whole or not, in the order of their keys: a rewriting that was killed in its middle left one that
    /// [`Disk::manifests`] does not count.
    pub fn readable_manifests(&self) -> Result<Vec<Manifest>, Error> {
        let read = |dir: &Path| -> Option<Manifest> { serde_json::from_slice(&fs::read(dir.join(MANIFEST)).ok()?).ok() };
        let mut found: Vec<Manifest> =
            self.artifact_dirs()?.iter().filter_map(|dir| read(dir).filter(|m| self.dir(&m.key) == *dir)).collect();
        found.sort_by_key(|m| m.key);
        Ok(found)
    }

    /// Puts other files and another manifest in the place of an artifact's own. `manifest.bytes` and the hashes of the files are set here.
    /// - `files`: name and bytes of those that change
    pub fn rewrite(&self, mut manifest: Manifest, files: &[(String, Vec<u8>)]) -> Result<(), Error> {
        let dir = self.dir(&manifest.key);
        for (name, bytes) in files {
            replace(&dir.join(name), bytes)?;
            manifest.files.insert(name.clone(), ContentHash::of(bytes));
        }
        manifest.bytes = 0;
        for name in manifest.files.keys() {
            let path = dir.join(name);
            manifest.bytes += fs::metadata(&path).map_err(Error::io("look at", &path))?.len();
        }
        let mut text = serde_json::to_vec_pretty(&manifest).expect("a manifest is plain data");
        text.push(b'\n');
        replace(&dir.join(MANIFEST), &text)
    }
}

/// Beside, synced, read-only, renamed.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}.new", std::process::id()));
    let written = File::create(&beside).and_then(|mut f| f.write_all(bytes).and_then(|()| f.sync_all()));
    written.map_err(Error::io("write", &beside))?;
    make_read_only(&beside)?;
    fs::rename(&beside, path).map_err(Error::io("write", path))
}
