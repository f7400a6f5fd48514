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

/// Begins the first line of a list: the archive, by a hash of its place.
const ARCHIVE: &str = "# archive ";

/// Puts files under OUT.
pub struct Placing {
    out: PathBuf,
    list: PathBuf,
    archive: String,
    before: BTreeSet<String>,
    now: BTreeSet<String>,
}

/// Refuses an OUT that holds what was made of another archive: it would be taken away as gone.
pub fn check(out: &Path, format: &str, archive: &str) -> Result<(), Fault> {
    let placing = Placing::open(out, format, archive);
    let text = std::fs::read_to_string(&placing.list).unwrap_or_default();
    match text.lines().next().and_then(|l| l.strip_prefix(ARCHIVE)) {
        Some(other) if other != placing.archive => Err(Fault::Wrong(format!(
            "{} holds what was converted from another archive: give another OUT (if the archive has only moved, delete {} first)",
            out.display(),
            placing.list.display()
        ))),
        _ => Ok(()),
    }
}

impl Placing {
    /// - `format`: each has a list of its own, so that two can stand in one OUT
    pub fn open(out: &Path, format: &str, archive: &str) -> Self {
        let list = out.join(format!(".converted-{format}"));
        let before = std::fs::read_to_string(&list).unwrap_or_default().lines().filter(|l| !l.starts_with('#')).map(String::from).collect();
        let archive = blake3::hash(archive.as_bytes()).to_hex()[..16].to_string();
        Self { out: out.to_path_buf(), list, archive, before, now: BTreeSet::new() }
    }

    /// The files of these artifacts; what each is called under OUT.
    pub fn lay(&mut self, items: &[Input]) -> Result<BTreeMap<String, String>, Fault> {
        std::fs::create_dir_all(&self.out).map_err(Error::io("make folder", &self.out))?;
        let names: Vec<(usize, &str)> =
            items.iter().enumerate().flat_map(|(i, item)| item.manifest.files.keys().map(move |f| (i, f.as_str()))).collect();
        let places = apart(&names);
        // Written before the first file: whoever dies on the way leaves nothing that the next run takes for foreign.
        let coming: BTreeSet<String> = places.iter().cloned().collect();
        let is_free = |place: &&String| !self.out.join(place).exists();
        let ours: BTreeSet<String> = coming.iter().filter(is_free).chain(&self.before).cloned().collect();
        self.remember(&ours)?;
        let mut moved = BTreeMap::new();
        for ((i, file), place) in names.iter().zip(places) {
            let (from, to) = (items[*i].dir.join(file), self.out.join(&place));
            if !is_same_file(&from, &to) {
                if !ours.contains(&place) {
                    return Err(Fault::Stage(Error::Input {
                        what: to.display().to_string(),
                        found: "a file that no conversion has put there".into(),
                        expected: "nothing (move it away, or give another OUT)".into(),
                    }));
                }
                link(&from, &to)?;
            }
            moved.insert(file.to_string(), place.clone());
            self.now.insert(place);
        }
        // A Zarr is named by its folder.
        for item in items {
            let named = item.manifest.facts.get("files").and_then(|v| v.as_array()).into_iter().flatten().filter_map(|f| f.as_str());
            for folder in named {
                let mut inside = item.manifest.files.keys().filter(|f| f.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')));
                if let Some(place) = inside.next().and_then(|f| moved.get(f)) {
                    let depth = folder.split('/').count();
                    moved.insert(folder.into(), place.split('/').take(depth).collect::<Vec<_>>().join("/"));
                }
            }
        }
        Ok(moved)
    }

    fn remember(&self, files: &BTreeSet<String>) -> Result<(), Fault> {
        let lines = files.iter().map(|f| format!("{f}\n")).collect::<String>();
        let name = self.list.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.write(&name, format!("{ARCHIVE}{}\n{lines}", self.archive).as_bytes())
    }

    /// Written beside and renamed.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Fault> {
        let (to, beside) = (self.out.join(name), self.out.join(format!(".{}.new", name.trim_start_matches('.'))));
        std::fs::write(&beside, bytes).and_then(|()| std::fs::rename(&beside, &to)).map_err(Error::io("write", &to))?;
        Ok(())
    }

    pub fn table<R: Row>(&self, name: &str, rows: &[R]) -> Result<(), Fault> {
        Ok(table::write_durably(&self.out.join(format!("{name}.parquet")), &R::to_batch(rows))?)
    }

    /// Takes away what is no longer made, and writes the list.
    /// Gives the number of files that went.
    /// - `is_whole`: nothing was left undone; otherwise everything stays
    pub fn close(self, is_whole: bool) -> Result<usize, Fault> {
        if !is_whole {
            self.remember(&self.now.union(&self.before).cloned().collect())?;
            return Ok(0);
        }
        let mut removed = 0;
        for gone in self.before.difference(&self.now) {
            let path = self.out.join(gone);
            removed += path.exists() as usize;
            remove(&path)?;
            // Folders that are empty now; one with something in it stays.
            for folder in path.ancestors().skip(1).take_while(|f| *f != self.out) {
                if std::fs::remove_dir(folder).is_err() {
                    break;
                }
            }
        }
        self.remember(&self.now)?;
        Ok(removed)
    }
}

/// Parts of a place that are named after something of the archive: patient, study, series.
const NAMED: usize = 3;

/// A name as it is spelled, and for a series the artifact it is in.
type Who<'a> = (&'a str, Option<usize>);
/// A place, upper and lower case alike, and who goes there.
type Spot<'a> = (String, Who<'a>);

/// Where each file goes. Names that differ in upper and lower case alone would be one on many disks: each gets a hash of what it is called.
/// - `files`: number of the artifact, place in it
fn apart(files: &[(usize, &str)]) -> Vec<String> {
    let stem = |part: &str| {
        let endings = ["_labels.nii.gz", "_labels.nii", ".nii.gz", ".nii", ".ome.zarr.json", ".ome.zarr", ".json", ".dcm"];
        let cut = endings.iter().find_map(|e| part.strip_suffix(e)).unwrap_or(part);
        cut.len()
    };
    // Place, upper and lower case alike → who goes there: as it is spelled, and for a series the artifact it is in.
    let mut wanted: BTreeMap<String, BTreeSet<Who>> = BTreeMap::new();
    let mut spots: Vec<Vec<Spot>> = Vec::new();
    for (artifact, file) in files {
        let mut at = String::new();
        let mut mine = Vec::new();
        for (depth, part) in file.split('/').take(NAMED).enumerate() {
            let is_last = depth + 1 == NAMED;
            let name = if is_last { &part[..stem(part)] } else { part };
            at = format!("{at}/{}", name.to_ascii_lowercase());
            let who = (name, is_last.then_some(*artifact));
            wanted.entry(at.clone()).or_default().insert(who);
            mine.push((at.clone(), who));
        }
        spots.push(mine);
    }
    let place = |((_, file), spots): (&(usize, &str), &Vec<Spot>)| {
        let parts = file.split('/').enumerate().map(|(depth, part)| match spots.get(depth) {
            Some((at, (name, artifact))) if wanted[at].len() > 1 => {
                let is_twin = wanted[at].iter().filter(|(n, _)| n == name).count() > 1;
                let said = if is_twin { format!("{name} {artifact:?}") } else { name.to_string() };
                format!("{name}-{}{}", &blake3::hash(said.as_bytes()).to_hex()[..8], &part[name.len()..])
            }
            _ => part.to_string(),
        });
        parts.collect::<Vec<_>>().join("/")
    };
    files.iter().zip(&spots).map(place).collect()
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
    fn names_that_differ_in_case_alone_get_apart() {
        let plain =
            [(0, "p/s/1.2.nii.gz"), (0, "p/s/1.2.json"), (1, "p/s/1.3.ome.zarr/0/zarr.json"), (1, "p/s/1.3.ome.zarr/labels/zarr.json")];
        assert_eq!(apart(&plain), plain.map(|(_, f)| f));
        let places =
            apart(&[(0, "Doe/s/1.nii.gz"), (1, "doe/s/2.nii.gz"), (2, "x/s/1-1.nii.gz"), (3, "x/s/1-1.nii.gz"), (3, "x/s/1-1.json")]);
        let folded: BTreeSet<String> = places.iter().map(|p| p.to_ascii_lowercase()).collect();
        assert_eq!(folded.len(), 5, "{places:?}");
        assert!(places[0].starts_with("Doe-") && places[0].ends_with("/s/1.nii.gz"), "{places:?}");
        assert_eq!(places[3].strip_suffix(".nii.gz"), places[4].strip_suffix(".json"), "a sidecar stays beside its file");
    }

    #[test]
    fn what_is_no_longer_made_goes_and_what_is_not_ours_stays() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path();
        std::fs::create_dir_all(out.join("p/s")).unwrap();
        for f in ["p/s/old.nii.gz", "p/theirs.txt"] {
            std::fs::write(out.join(f), f).unwrap();
        }
        let first = Placing::open(out, "nifti", "/a");
        first.remember(&BTreeSet::from(["p/s/old.nii.gz".to_string()])).unwrap();
        assert!(check(out, "nifti", "/a").is_ok() && check(out, "ome-zarr", "/b").is_ok());
        assert!(check(out, "nifti", "/b").is_err(), "another archive");
        Placing::open(out, "nifti", "/a").close(false).unwrap();
        assert!(out.join("p/s/old.nii.gz").exists(), "a run that failed takes nothing away");
        Placing::open(out, "nifti", "/a").close(true).unwrap();
        assert!(!out.join("p/s").exists() && out.join("p/theirs.txt").exists());
    }
}
