//! Whether anything of a patient stands in a folder: words in names and contents of files, files of the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use voxmill_schemas::artifact::ContentHash;
use voxmill_stages::error::Error;
use voxmill_stages::table;

use super::words::Words;

const BLOCK_BYTES: usize = 4 << 20;

/// Every file below a folder, sorted; a folder that is not there has none.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let (mut todo, mut out) = (vec![folder.to_path_buf()], Vec::new());
    while let Some(dir) = todo.pop() {
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(Error::io("list", &dir)(e)),
        };
        for entry in entries {
            let path = entry.map_err(Error::io("list", &dir))?.path();
            let kind = std::fs::symlink_metadata(&path).map_err(Error::io("look at", &path))?;
            if kind.is_dir() {
                todo.push(path);
            } else if kind.is_file() {
                out.push(path);
            }
        }
    }
    out.sort();
    Ok(out)
}

/// Device and inode: the same for hard links.
pub fn inode(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Whether a file's contents hold a word. Tables and JSON are read as what they are, all else byte by byte.
pub fn holds(path: &Path, words: &Words) -> Result<bool, Error> {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    match ending {
        "parquet" => {
            if let Ok(found) = table::any_text(path, &|t| words.in_text(t)) {
                return Ok(found);
            }
        }
        "json" => {
            let text = std::fs::read(path).map_err(Error::io("read", path))?;
            if let Ok(value) = serde_json::from_slice(&text) {
                return Ok(words.in_json(&value));
            }
        }
        _ => {}
    }
    let mut file = std::fs::File::open(path).map_err(Error::io("read", path))?;
    let overlap = words.longest() + 3;
    let (mut block, mut kept) = (vec![0u8; BLOCK_BYTES + overlap], 0);
    loop {
        let n = file.read(&mut block[kept..]).map_err(Error::io("read", path))?;
        if words.in_bytes(&block[..kept + n]) {
            return Ok(true);
        }
        if n == 0 {
            return Ok(false);
        }
        let end = kept + n;
        let keep = overlap.min(end);
        block.copy_within(end - keep..end, 0);
        kept = keep;
    }
}

/// Files below a folder whose name or contents hold a word, or which have the bytes of one of `gone`.
pub fn left(folder: &Path, words: &Words, gone: &BTreeSet<ContentHash>) -> Result<BTreeMap<PathBuf, &'static str>, Error> {
    let found = files(folder)?.into_par_iter().map(|path| -> Result<Option<(PathBuf, &'static str)>, Error> {
        let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
        let what = if words.in_text(&name) {
            "its name"
        } else if holds(&path, words)? {
            "its contents"
        } else if has_bytes_of(&path, gone)? {
            "the same voxels"
        } else {
            return Ok(None);
        };
        Ok(Some((path, what)))
    });
    Ok(found.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

fn has_bytes_of(path: &Path, gone: &BTreeSet<ContentHash>) -> Result<bool, Error> {
    if gone.is_empty() {
        return Ok(false);
    }
    let mut hasher = blake3::Hasher::new();
    let file = std::fs::File::open(path).map_err(Error::io("read", path))?;
    hasher.update_reader(file).map_err(Error::io("read", path))?;
    Ok(gone.contains(&ContentHash(*hasher.finalize().as_bytes())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_word_across_two_blocks_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let words = Words::new(BTreeSet::from(["somebody".to_string()]), "r");
        for at in [0, BLOCK_BYTES - 4, BLOCK_BYTES + 11 - 4, 2 * BLOCK_BYTES + 5] {
            let path = dir.path().join("x.bin");
            let mut bytes = vec![b' '; 3 * BLOCK_BYTES];
            assert!(std::fs::write(&path, &bytes).is_ok() && !holds(&path, &words).unwrap());
            bytes[at..at + 8].copy_from_slice(b"somebody");
            std::fs::write(&path, &bytes).unwrap();
            assert!(holds(&path, &words).unwrap(), "at {at}");
        }
        let gone = BTreeSet::from([ContentHash::of(b"voxels")]);
        std::fs::write(dir.path().join("y"), "voxels").unwrap();
        std::fs::create_dir(dir.path().join("somebody")).unwrap();
        std::fs::write(dir.path().join("somebody/z"), "").unwrap();
        let left = left(dir.path(), &words, &gone).unwrap();
        assert_eq!(left.values().copied().collect::<Vec<_>>(), ["its name", "its contents", "the same voxels"]);
    }
}
