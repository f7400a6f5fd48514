//! Every file below a folder, once. Links are followed, loops are not; what cannot be listed is told, not skipped in silence.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::containers::INSIDE;

/// A file that was seen: one of the folder, or the member of a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Relative to the archive, `/` between folders on every system.
    pub file: String,
    /// Its place inside `file`, where that is a container.
    pub member: Option<Box<str>>,
    pub stat: Stat,
    /// Its own length: of a member that of the member.
    pub bytes: u64,
}

impl Seen {
    /// The place relative to the archive, members as `FILE!/MEMBER`.
    pub fn place(&self) -> Cow<'_, str> {
        match &self.member {
            None => Cow::Borrowed(&self.file),
            Some(m) => Cow::Owned(format!("{}{INSIDE}{m}", self.file)),
        }
    }
}

/// What tells that a file is the one that was read before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Stat {
    pub bytes: u64,
    pub modified_ns: i64,
    pub changed_ns: i64,
    pub inode: u64,
}

/// All that stands below a folder (or the one file that `root` is), sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The folder that the names are relative to.
    pub root: PathBuf,
    pub files: Vec<Seen>,
    /// When the first of them was looked at, ns since 1970.
    pub began_ns: i64,
    /// Files and folders that could not be looked at, relative to the archive, with the reason.
    pub unreadable: Vec<(String, String)>,
}

/// ns since 1970.
pub fn now_ns() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64)
}

/// Whether there is no file below a folder that can be listed. Stops at the first one.
pub fn is_empty(root: &Path) -> bool {
    let mut todo = vec![root.to_path_buf()];
    let mut visited = BTreeSet::new();
    while let Some(folder) = todo.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { return false };
        if !visited.insert(std::fs::canonicalize(&folder).unwrap_or(folder)) {
            continue;
        }
        for entry in entries {
            match entry.and_then(|e| Ok((std::fs::metadata(e.path())?, e.path()))) {
                Ok((meta, path)) if meta.is_dir() => todo.push(path),
                // What cannot be looked at is told, by who walks.
                _ => return false,
            }
        }
    }
    true
}

pub fn walk(root: &Path) -> std::io::Result<Found> {
    below(root, true)
}

/// The same, and how plain files stand is not asked ([`Stat::UNKNOWN`]): whoever opens them all knows it sooner then.
pub fn names(root: &Path) -> std::io::Result<Found> {
    below(root, false)
}

fn below(root: &Path, asks: bool) -> std::io::Result<Found> {
    let mut found = Found { root: root.to_path_buf(), began_ns: now_ns(), ..Found::default() };
    let meta = std::fs::metadata(root)?;
    if meta.is_file() {
        let file = root.file_name().unwrap_or_default().to_string_lossy().into_owned();
        found.root = root.parent().map(Path::to_path_buf).unwrap_or_default();
        found.files.push(Seen { file, member: None, stat: Stat::of(&meta), bytes: meta.len() });
        return Ok(found);
    }
    std::fs::read_dir(root)?;
    let mut visited = BTreeSet::new();
    // Folders of one depth, each with its place.
    let mut todo = vec![(root.to_path_buf(), String::new())];
    while !todo.is_empty() {
        // The same folder by another way (a link upwards) was or will be seen.
        todo.retain(|(path, _)| visited.insert(std::fs::canonicalize(path).unwrap_or_else(|_| path.clone())));
        let listed: Vec<Listed> = todo.par_iter().map(|(path, place)| list(path, place, asks)).collect();
        todo.clear();
        for l in listed {
            todo.extend(l.folders);
            found.files.extend(l.files);
            found.unreadable.extend(l.unreadable);
        }
        todo.sort();
    }
    found.files.par_sort();
    found.unreadable.sort();
    Ok(found)
}

#[derive(Default)]
struct Listed {
    folders: Vec<(PathBuf, String)>,
    files: Vec<Seen>,
    unreadable: Vec<(String, String)>,
}

/// One folder. `place`: relative to the archive; `asks`: how plain files stand.
fn list(folder: &Path, place: &str, asks: bool) -> Listed {
    let mut out = Listed::default();
    let unlisted = |e: std::io::Error| (place.to_string(), format!("the folder cannot be listed: {}", e.kind()));
    let mut entries = Vec::new();
    match std::fs::read_dir(folder) {
        Ok(found) => found.for_each(|e| match e {
            Ok(e) => entries.push(e),
            Err(e) => out.unreadable.push(unlisted(e)),
        }),
        Err(e) => out.unreadable.push(unlisted(e)),
    }
    enum Is {
        Folder(PathBuf, String),
        File(Seen),
        Unreadable(String, String),
    }
    let look = |e: &std::fs::DirEntry| {
        let name = e.file_name();
        let at = |name: &str| if place.is_empty() { name.to_string() } else { format!("{place}/{name}") };
        let Some(name) = name.to_str() else {
            // Its place could not be written down so that it is found again.
            return Is::Unreadable(at(&name.to_string_lossy()), "its name is not UTF-8: rename it".into());
        };
        let kind = e.file_type();
        if !asks && kind.as_ref().is_ok_and(|t| t.is_file()) {
            return Is::File(Seen { file: at(name), member: None, stat: Stat::UNKNOWN, bytes: 0 });
        }
        let is_link = kind.is_ok_and(|t| t.is_symlink());
        // Along the open folder where there is no link to follow: the way there is not walked again.
        let meta = if is_link { std::fs::metadata(e.path()) } else { e.metadata() };
        match meta {
            Ok(m) if m.is_dir() => Is::Folder(e.path(), at(name)),
            Ok(m) if m.is_file() => Is::File(Seen { file: at(name), member: None, stat: Stat::of(&m), bytes: m.len() }),
            Ok(_) => Is::Unreadable(at(name), "neither a file nor a folder".into()),
            Err(e) if is_link => Is::Unreadable(at(name), format!("the link leads nowhere: {}", e.kind())),
            Err(e) => Is::Unreadable(at(name), format!("the file cannot be looked at: {}", e.kind())),
        }
    };
    let looked: Vec<Is> = entries.par_iter().with_min_len(64).map(look).collect();
    for is in looked {
        match is {
            Is::Folder(path, place) => out.folders.push((path, place)),
            Is::File(seen) => out.files.push(seen),
            Is::Unreadable(place, why) => out.unreadable.push((place, why)),
        }
    }
    // Folder by folder, side by side: what is left to sort of the whole is little.
    out.files.sort_unstable();
    out
}

impl Stat {
    /// Of a file that nobody has looked at yet.
    pub const UNKNOWN: Stat = Stat { bytes: 0, modified_ns: i64::MIN, changed_ns: i64::MIN, inode: 0 };

    #[cfg(unix)]
    pub fn of(m: &std::fs::Metadata) -> Stat {
        use std::os::unix::fs::MetadataExt;
        let ns = |s: i64, n: i64| s.saturating_mul(1_000_000_000).saturating_add(n);
        Stat { bytes: m.len(), modified_ns: ns(m.mtime(), m.mtime_nsec()), changed_ns: ns(m.ctime(), m.ctime_nsec()), inode: m.ino() }
    }

    #[cfg(not(unix))]
    pub fn of(m: &std::fs::Metadata) -> Stat {
        let ns = m.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos() as i64);
        Stat { bytes: m.len(), modified_ns: ns, changed_ns: 0, inode: 0 }
    }
}

impl std::fmt::Display for Stat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {} {}", self.bytes, self.modified_ns, self.changed_ns, self.inode)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_seen_once_in_order() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("b/c")).unwrap();
        for f in ["z", "b/y", "b/c/x"] {
            std::fs::write(dir.path().join(f), f).unwrap();
        }
        let found = walk(dir.path()).unwrap();
        assert_eq!(found.files.iter().map(|f| f.file.as_str()).collect::<Vec<_>>(), ["b/c/x", "b/y", "z"]);
        assert!(!is_empty(dir.path()));
        ["z", "b/y", "b/c/x"].iter().for_each(|f| std::fs::remove_file(dir.path().join(f)).unwrap());
        assert!(is_empty(dir.path()), "folders alone");
    }

    #[cfg(unix)]
    #[test]
    fn a_loop_of_links_ends_and_a_dead_link_is_told() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/f"), "x").unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("a/up")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("dead")).unwrap();
        let found = walk(dir.path()).unwrap();
        assert_eq!(found.files.len(), 1);
        assert_eq!(found.unreadable.len(), 1);
        assert_eq!(found.unreadable[0].0, "dead");
        let one = walk(&dir.path().join("a/f")).unwrap();
        assert_eq!((one.files[0].file.as_str(), one.root), ("f", dir.path().join("a")));
    }
}
