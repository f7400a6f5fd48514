//! Files of the store → OUT, as hard links where the disk allows. A list remembers what was put there, so that what an archive no longer gives is taken away
//! again and what others have put there stays.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use voxmill_schemas::tables::Row;
use voxmill_stages::error::Error;
use voxmill_stages::stage::Input;
use voxmill_stages::table;

use crate::publish::{link, remove};
use crate::session::Fault;

/// Puts files under OUT.
pub struct Placing {
    out: PathBuf,
    list: PathBuf,
    before: BTreeSet<String>,
    now: BTreeSet<String>,
}

impl Placing {
    /// - `format`: each has a list of its own, so that two can stand in one OUT
    pub fn open(out: &Path, format: &str) -> Result<Self, Fault> {
        std::fs::create_dir_all(out).map_err(Error::io("make folder", out))?;
        let list = out.join(format!(".converted-{format}"));
        let before = std::fs::read_to_string(&list).unwrap_or_default().lines().map(String::from).collect();
        Ok(Self { out: out.to_path_buf(), list, before, now: BTreeSet::new() })
    }

    /// The files of these artifacts; what each is called under OUT.
    pub fn lay(&mut self, items: &[Input]) -> Result<BTreeMap<String, String>, Fault> {
        let mut moved = BTreeMap::new();
        for item in items {
            for file in item.manifest.files.keys() {
                let place = place_of(file);
                let (from, to) = (item.dir.join(file), self.out.join(&place));
                if !is_same_file(&from, &to) {
                    self.is_ours(&place)?;
                    link(&from, &to)?;
                }
                self.now.insert(place);
            }
            let named = item.manifest.facts.get("files").and_then(|v| v.as_array()).into_iter().flatten();
            named.filter_map(|f| f.as_str()).for_each(|f| drop(moved.insert(f.to_string(), place_of(f))));
        }
        Ok(moved)
    }

    fn is_ours(&self, place: &str) -> Result<(), Fault> {
        let to = self.out.join(place);
        if self.before.contains(place) || !to.exists() {
            return Ok(());
        }
        Err(Fault::Stage(Error::Input {
            what: to.display().to_string(),
            found: "a file that no conversion has put there".into(),
            expected: "nothing (move it away, or give another OUT)".into(),
        }))
    }

    /// Written beside and renamed.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), Fault> {
        let (to, beside) = (self.out.join(name), self.out.join(format!(".{name}.new")));
        std::fs::write(&beside, bytes).and_then(|()| std::fs::rename(&beside, &to)).map_err(Error::io("write", &to))?;
        Ok(())
    }

    pub fn table<R: Row>(&mut self, name: &str, rows: &[R]) -> Result<(), Fault> {
        Ok(table::write_durably(&self.out.join(format!("{name}.parquet")), &R::to_batch(rows))?)
    }

    /// Takes away what is no longer made, and writes the list.
    pub fn close(mut self) -> Result<(), Fault> {
        for gone in self.before.difference(&self.now) {
            let path = self.out.join(gone);
            remove(&path)?;
            // Folders that are empty now; one with something in it stays.
            for folder in path.ancestors().skip(1).take_while(|f| *f != self.out) {
                if std::fs::remove_dir(folder).is_err() {
                    break;
                }
            }
        }
        let text: String = self.now.iter().map(|f| format!("{f}\n")).collect();
        let name = self.list.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.write(&name, text.as_bytes())
    }
}

/// `X.zarr/…` is `X.ome.zarr/…`: the name by which viewers know it.
fn place_of(file: &str) -> String {
    let parts = file.split('/').map(|part| match part.strip_suffix(".zarr") {
        Some(stem) if !stem.ends_with(".ome") => format!("{stem}.ome.zarr"),
        _ => part.to_string(),
    });
    parts.collect::<Vec<_>>().join("/")
}

/// Two names of one file.
fn is_same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    let id = |p: &Path| std::fs::symlink_metadata(p).ok().map(|m| (m.dev(), m.ino()));
    id(a).is_some() && id(a) == id(b)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_zarr_is_called_as_viewers_know_it() {
        assert_eq!(place_of("p/s/1.2.zarr/0/zarr.json"), "p/s/1.2.ome.zarr/0/zarr.json");
        assert_eq!(place_of("p/s/1.2.nii.gz"), "p/s/1.2.nii.gz");
    }

    #[test]
    fn what_is_no_longer_made_goes_and_what_is_not_ours_stays() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path();
        std::fs::create_dir_all(out.join("p/s")).unwrap();
        for f in ["p/s/old.nii.gz", "p/theirs.txt"] {
            std::fs::write(out.join(f), f).unwrap();
        }
        std::fs::write(out.join(".converted-nifti"), "p/s/old.nii.gz\n").unwrap();
        let placing = Placing::open(out, "nifti").unwrap();
        assert!(placing.is_ours("p/theirs.txt").is_err() && placing.is_ours("p/s/old.nii.gz").is_ok());
        placing.close().unwrap();
        assert!(!out.join("p/s").exists() && out.join("p/theirs.txt").exists());
    }
}
