//! Every file below a folder, once. Links are followed, loops are not; what cannot be listed is told, not skipped in silence.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A file that was seen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Relative to the archive, `/` between folders on every system.
    pub file: String,
    pub path: PathBuf,
    /// Its place inside `path`, where that is a container.
    pub member: Option<String>,
    pub stat: Stat,
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
    pub files: Vec<Seen>,
    /// Files and folders that could not be looked at, relative to the archive, with the reason.
    pub unreadable: Vec<(String, String)>,
}

pub fn walk(root: &Path) -> std::io::Result<Found> {
    let mut found = Found::default();
    let mut visited = BTreeSet::new();
    let meta = std::fs::metadata(root)?;
    if meta.is_file() {
        let file = root.file_name().unwrap_or_default().to_string_lossy().into_owned();
        found.files.push(Seen { file, path: root.to_path_buf(), member: None, stat: Stat::of(&meta) });
        return Ok(found);
    }
    std::fs::read_dir(root)?;
    let mut todo = vec![root.to_path_buf()];
    while let Some(folder) = todo.pop() {
        let relative = |p: &Path| {
            let r = p.strip_prefix(root).unwrap_or(p);
            r.components().map(|c| c.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
        };
        // The same folder by another way (a link upwards) was or will be seen.
        let real = std::fs::canonicalize(&folder).unwrap_or_else(|_| folder.clone());
        if !visited.insert(real) {
            continue;
        }
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) => {
                found.unreadable.push((relative(&folder), format!("the folder cannot be listed: {e}")));
                continue;
            }
        };
        for entry in entries {
            let path = match entry {
                Ok(e) => e.path(),
                Err(e) => {
                    found.unreadable.push((relative(&folder), format!("the folder cannot be listed: {e}")));
                    continue;
                }
            };
            match std::fs::metadata(&path) {
                Ok(m) if m.is_dir() => todo.push(path),
                Ok(m) if m.is_file() => found.files.push(Seen { file: relative(&path), stat: Stat::of(&m), path, member: None }),
                Ok(_) => found.unreadable.push((relative(&path), "neither a file nor a folder".into())),
                Err(e) if std::fs::symlink_metadata(&path).is_ok_and(|m| m.is_symlink()) => {
                    found.unreadable.push((relative(&path), format!("the link leads nowhere: {e}")));
                }
                Err(e) => found.unreadable.push((relative(&path), format!("the file cannot be looked at: {e}"))),
            }
        }
    }
    found.files.sort();
    found.unreadable.sort();
    Ok(found)
}

impl Stat {
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
    }
}
