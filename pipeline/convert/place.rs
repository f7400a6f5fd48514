//! Files of the store → OUT, as hard links where the disk allows. A list remembers what was put there, so that what an archive no longer gives is taken away
//! again and what others have put there stays. One process at a time puts files into OUT; each is written beside, synced and renamed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use voxmill_schemas::tables::Row;
use voxmill_stages::error::Error;
use voxmill_stages::stage::Input;
use voxmill_stages::table;

use crate::publish::remove;
use crate::session::Fault;

/// Begins the first line of a list: the archive, by a hash of its place.
const ARCHIVE: &str = "# archive ";
/// Begins the name of every list.
const LIST: &str = ".converted-";
/// Held by whoever puts files into OUT.
pub const LOCK: &str = ".converted.lock";
/// Files on their way; what a dead process left in it goes.
const COMING: &str = ".converted.new";
/// What every conversion writes beside its files.
pub const TABLES: [&str; 3] = ["series", "files", "instances"];
pub const REPORT: &str = "report.html";

/// Puts files under OUT.
pub struct Placing {
    out: PathBuf,
    list: PathBuf,
    archive: String,
    before: BTreeSet<String>,
    now: BTreeSet<String>,
    /// Freed on drop, and by the kernel when the process dies.
    _lock: File,
}

/// Refuses an OUT that holds what was made of another archive (it would be taken away as gone) or what others have put where we write.
/// - `archive`: what the archive goes by
pub fn check(out: &Path, format: &str, archive: &str) -> Result<(), Fault> {
    if out.exists() && !out.is_dir() {
        return Err(Fault::Wrong(format!("OUT {} is a file: give a folder", out.display())));
    }
    let list = out.join(format!("{LIST}{format}"));
    let text = std::fs::read_to_string(&list).unwrap_or_default();
    if text.lines().next().and_then(|l| l.strip_prefix(ARCHIVE)).is_some_and(|other| other != archive) {
        return Err(Fault::Wrong(format!(
            "{} holds what was converted from another archive or with another key or --deidentify, and that would be taken away: give another OUT, or \
             the key of before (if the archive has only moved, delete {} first)",
            out.display(),
            list.display()
        )));
    }
    let is_ours = std::fs::read_dir(out).is_ok_and(|all| all.flatten().any(|e| e.file_name().to_string_lossy().starts_with(LIST)));
    let ours = TABLES.iter().map(|t| format!("{t}.parquet")).chain([REPORT.to_string()]);
    match ours.filter(|_| !is_ours).find(|name| std::fs::symlink_metadata(out.join(name)).is_ok()) {
        Some(name) => Err(Fault::Wrong(format!(
            "{} holds a {name} that no conversion has put there, and one is to be written: move it away, or give another OUT",
            out.display()
        ))),
        None => Ok(()),
    }
}

/// Tells before the work that nothing could be put into OUT after it.
pub fn probe(out: &Path) -> Result<(), Fault> {
    let file = out.join(format!(".probe.{}", std::process::id()));
    let written = std::fs::create_dir_all(out).and_then(|()| std::fs::write(&file, "")).and_then(|()| std::fs::remove_file(&file));
    written.map_err(|e| Fault::Wrong(format!("cannot write into OUT {}: give a folder that can be written to: {e}", out.display())))
}

/// A file that stopped on its way goes with the one who put it there.
impl Drop for Placing {
    fn drop(&mut self) {
        let _ = remove(&self.out.join(COMING));
    }
}

impl Placing {
    /// Waits until no other process puts files into OUT, and looks again at what stands there.
    /// - `format`: each has a list of its own, so that two can stand in one OUT
    /// - `is_cancelled`: asked while it waits
    pub fn open(out: &Path, format: &str, archive: &str, is_cancelled: &dyn Fn() -> bool) -> Result<Self, Fault> {
        std::fs::create_dir_all(out).map_err(Error::io("make folder", out))?;
        let lock = lock(&out.join(LOCK), is_cancelled)?;
        check(out, format, archive)?;
        let list = out.join(format!("{LIST}{format}"));
        let before = std::fs::read_to_string(&list).unwrap_or_default().lines().filter(|l| !l.starts_with('#')).map(String::from).collect();
        remove(&out.join(COMING))?;
        Ok(Self { out: out.to_path_buf(), list, archive: archive.to_string(), before, now: BTreeSet::new(), _lock: lock })
    }

    /// A place beside, on the same disk; nobody else's while the lock is held.
    fn beside(&self) -> Result<PathBuf, Error> {
        let folder = self.out.join(COMING);
        std::fs::create_dir_all(&folder).map_err(Error::io("make folder", &folder))?;
        Ok(folder.join("file"))
    }

    /// A hard link to `from`, or a synced copy where that is on another disk, put in place whole. A file that stands there is replaced, never written into.
    fn put(&self, from: &Path, to: &Path) -> Result<(), Error> {
        let beside = self.beside()?;
        remove(&beside)?;
        if std::fs::hard_link(from, &beside).is_err() {
            std::fs::copy(from, &beside).and_then(|_| File::open(&beside)?.sync_all()).map_err(Error::io("copy to", to))?;
        }
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent).map_err(Error::io("make folder", parent))?;
        }
        if to.is_dir() {
            remove(to)?;
        }
        std::fs::rename(&beside, to).map_err(Error::io("write", to))?;
        // Two names of one file: then the rename has done nothing.
        remove(&beside)
    }

    /// All files of a folder, which appears when it is whole and takes the place of the old one.
    /// - `folder`: below OUT
    /// - `files`: where they are, and their places below OUT
    fn put_folder(&self, folder: &str, files: &[(PathBuf, &String)]) -> Result<(), Error> {
        let (coming, going) = (self.out.join(COMING).join("folder"), self.out.join(COMING).join("old"));
        let to = self.out.join(folder);
        [&coming, &going].into_iter().try_for_each(|f| remove(f))?;
        for (from, place) in files {
            let at = coming.join(place.strip_prefix(folder).unwrap_or(place).trim_start_matches('/'));
            let parent = at.parent().expect("a file stands in the folder");
            std::fs::create_dir_all(parent).map_err(Error::io("make folder", parent))?;
            if std::fs::hard_link(from, &at).is_err() {
                std::fs::copy(from, &at).and_then(|_| File::open(&at)?.sync_all()).map_err(Error::io("copy to", self.out.join(place)))?;
            }
        }
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent).map_err(Error::io("make folder", parent))?;
        }
        if std::fs::symlink_metadata(&to).is_ok() {
            std::fs::rename(&to, &going).map_err(Error::io("write", &to))?;
        }
        std::fs::rename(&coming, &to).map_err(Error::io("write", &to))?;
        remove(&going)
    }

    /// Whether a folder holds files that no conversion has put there.
    fn has_foreign(&self, folder: &str) -> bool {
        let mut todo = vec![folder.to_string()];
        while let Some(inside) = todo.pop() {
            for e in std::fs::read_dir(self.out.join(&inside)).into_iter().flatten().flatten() {
                let place = format!("{inside}/{}", e.file_name().to_string_lossy());
                if e.file_type().is_ok_and(|t| t.is_dir()) {
                    todo.push(place);
                } else if !self.before.contains(&place) {
                    return true;
                }
            }
        }
        false
    }

    /// The files of these artifacts; what each is called under OUT.
    pub fn lay(&mut self, items: &[Input]) -> Result<BTreeMap<String, String>, Fault> {
        let names: Vec<(usize, &str)> =
            items.iter().enumerate().flat_map(|(i, item)| item.manifest.files.keys().map(move |f| (i, f.as_str()))).collect();
        let places = apart(&names);
        // Written before the first file: whoever dies on the way leaves nothing that the next run takes for foreign.
        let coming: BTreeSet<String> = places.iter().cloned().collect();
        let is_free = |place: &&String| !self.out.join(place).exists();
        let ours: BTreeSet<String> = coming.iter().filter(is_free).chain(&self.before).cloned().collect();
        self.remember(&ours)?;
        let mut moved = BTreeMap::new();
        let coming: Vec<(PathBuf, &String)> =
            names.iter().zip(&places).map(|((i, file), place)| (items[*i].dir.join(file), place)).collect();
        // The files of a Zarr are one thing: a part of it reads as a volume of zeros.
        for one in coming.chunk_by(|a, b| zarr_of(a.1).is_some() && zarr_of(a.1) == zarr_of(b.1)) {
            let is_new = |(from, place): &&(PathBuf, &String)| !is_same_file(from, &self.out.join(place));
            let new: Vec<_> = one.iter().filter(is_new).collect();
            if let Some((_, foreign)) = new.iter().find(|(_, place)| !ours.contains(*place)) {
                return Err(Fault::Stage(Error::Input {
                    what: self.out.join(foreign).display().to_string(),
                    found: "a file that no conversion has put there".into(),
                    expected: "nothing (move it away, or give another OUT)".into(),
                }));
            }
            match zarr_of(one[0].1) {
                // What others have put into it stays where it is.
                Some(zarr) if !new.is_empty() && !self.has_foreign(zarr) => self.put_folder(zarr, one)?,
                _ => new.iter().try_for_each(|(from, place)| self.put(from, &self.out.join(place)))?,
            }
        }
        for ((_, file), place) in names.iter().zip(&places) {
            moved.insert(file.to_string(), place.clone());
            self.now.insert(place.clone());
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

    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Fault> {
        let (to, beside) = (self.out.join(name), self.beside()?);
        let written = File::create(&beside).and_then(|mut f| {
            f.write_all(bytes)?;
            f.sync_all()
        });
        written.and_then(|()| std::fs::rename(&beside, &to)).map_err(Error::io("write", &to))?;
        Ok(())
    }

    pub fn table<R: Row>(&self, name: &str, rows: &[R]) -> Result<(), Fault> {
        let (to, beside) = (self.out.join(format!("{name}.parquet")), self.beside()?);
        table::write_durably(&beside, &R::to_batch(rows))?;
        std::fs::rename(&beside, &to).map_err(Error::io("write", &to))?;
        Ok(())
    }

    /// Takes away what is no longer made, and writes the list.
    /// Gives the number of files that went.
    /// - `is_whole`: nothing was left undone; otherwise everything stays
    pub fn close(self, is_whole: bool) -> Result<usize, Fault> {
        if !is_whole {
            self.remember(&self.now.union(&self.before).cloned().collect())?;
            remove(&self.out.join(COMING))?;
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
        remove(&self.out.join(COMING))?;
        // What was renamed is to stand there after a crash as well.
        File::open(&self.out).and_then(|f| f.sync_all()).map_err(Error::io("write", &self.out))?;
        Ok(removed)
    }
}

/// A short wait: files are linked, not made, while it is held.
pub fn lock(path: &Path, is_cancelled: &dyn Fn() -> bool) -> Result<File, Error> {
    let file = File::options().write(true).create(true).truncate(false).open(path).map_err(Error::io("open lock", path))?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::Error(e)) => return Err(Error::io("lock", path)(e)),
            Err(std::fs::TryLockError::WouldBlock) if is_cancelled() => return Err(Error::Cancelled),
            Err(std::fs::TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
        }
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

/// The Zarr that a file is in, by its place below OUT.
fn zarr_of(place: &str) -> Option<&str> {
    place.find(".ome.zarr/").map(|at| &place[..at + ".ome.zarr".len()])
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
        let open = |archive: &str| Placing::open(out, "nifti", archive, &|| true);
        open("a").unwrap().remember(&BTreeSet::from(["p/s/old.nii.gz".to_string()])).unwrap();
        assert!(check(out, "nifti", "a").is_ok() && check(out, "ome-zarr", "b").is_ok());
        assert!(check(out, "nifti", "b").is_err() && open("b").is_err(), "another archive");
        open("a").unwrap().close(false).unwrap();
        assert!(out.join("p/s/old.nii.gz").exists(), "a run that failed takes nothing away");
        open("a").unwrap().close(true).unwrap();
        assert!(!out.join("p/s").exists() && out.join("p/theirs.txt").exists() && !out.join(COMING).exists());
    }

    #[test]
    fn one_process_at_a_time_puts_files_into_out_and_none_over_a_foreign_report() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path();
        std::fs::write(out.join(REPORT), "mine").unwrap();
        let e = check(out, "nifti", "a").unwrap_err().to_string();
        assert!(e.contains("report.html") && e.contains("move it away"), "{e}");
        std::fs::remove_file(out.join(REPORT)).unwrap();
        let first = Placing::open(out, "nifti", "a", &|| true).unwrap();
        let second = Placing::open(out, "ome-zarr", "a", &|| true);
        assert!(matches!(second, Err(Fault::Stage(Error::Cancelled))), "the other one has it");
        first.write(REPORT, b"ours").unwrap();
        first.close(true).unwrap();
        Placing::open(out, "ome-zarr", "a", &|| true).unwrap().write(REPORT, b"ours again").unwrap();
        assert_eq!(std::fs::read(out.join(REPORT)).unwrap(), b"ours again");
    }

    #[test]
    fn a_file_is_replaced_whole_and_what_it_was_linked_to_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (out, a, b) = (dir.path().join("out"), dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, "a").unwrap();
        std::fs::write(&b, "b").unwrap();
        let placing = Placing::open(&out, "nifti", "a", &|| true).unwrap();
        let to = out.join("p/s/x.nii.gz");
        for from in [&a, &a, &b] {
            placing.put(from, &to).unwrap();
            assert!(is_same_file(from, &to));
        }
        assert_eq!((std::fs::read(&a).unwrap(), std::fs::read(&to).unwrap()), (b"a".to_vec(), b"b".to_vec()));
        placing.close(true).unwrap();
    }
}
