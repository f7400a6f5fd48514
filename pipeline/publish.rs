//! What people look for in one place. A run gives each node a folder `out/NODE` with hard links to its files, tables and models; inference adds its files
//! to those that stand in `OUT/NODE`. What Voxmill did not put there stays.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use voxmill_schemas::artifact::{Key, Kind};
use voxmill_stages::error::Error;
use voxmill_stages::stage::Input;
use voxmill_stages::store::Store;

use crate::plan::PlanNode;

/// Stands in every folder that a run published, and lists the files that it put there.
pub const MARK: &str = ".voxmill";

/// Refuses a folder at `out/NODE` that is not ours to replace.
pub fn check(out: &Path, node: &PlanNode) -> Result<(), Error> {
    let place = out.join(&node.name);
    if node.def.info.gives == Kind::Volume || is_ours(&place) {
        return Ok(());
    }
    Err(Error::Input {
        what: place.display().to_string(),
        found: "files that no run has put there".into(),
        expected: format!("a folder that {} may replace (move it away, or give another `workspace:`)", node.name),
    })
}

/// Nothing, an empty folder, or one that a run published.
fn is_ours(place: &Path) -> bool {
    match std::fs::read_dir(place) {
        Ok(mut entries) => entries.next().is_none() || place.join(MARK).is_file(),
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    }
}

/// `out/NODE` anew: built beside and renamed, with what others have put there since. The lock keeps two processes from building at the same place.
pub fn whole(store: &Store, out: &Path, node: &PlanNode, items: &[Input]) -> Result<Option<PathBuf>, Error> {
    if node.def.info.gives == Kind::Volume {
        return Ok(None);
    }
    let beside_of = |what: &str| out.join(format!(".{}.{what}", node.name));
    let (place, beside, old) = (out.join(&node.name), beside_of("new"), beside_of("old"));
    let _lock = lock(store, &place)?;
    // A process that died between the two renames below.
    if !place.exists() && old.join(MARK).is_file() {
        std::fs::rename(&old, &place).map_err(Error::io("publish", &place))?;
    }
    check(out, node)?;
    remove(&beside)?;
    remove(&old)?;
    std::fs::create_dir_all(&beside).map_err(Error::io("make folder", &beside))?;
    let mut files: Vec<&str> = Vec::new();
    for item in items {
        for file in item.manifest.files.keys() {
            link(&item.dir.join(file), &beside.join(file))?;
            files.push(file);
        }
    }
    let listed: BTreeSet<String> =
        std::fs::read_to_string(place.join(MARK)).unwrap_or_default().lines().map(str::to_string).chain([MARK.to_string()]).collect();
    for file in files_under(&place)? {
        let name = file.to_string_lossy();
        if !listed.contains(name.as_ref()) && !beside.join(&file).exists() {
            link(&place.join(&file), &beside.join(&file))?;
        }
    }
    let mark = beside.join(MARK);
    std::fs::write(&mark, files.iter().map(|f| format!("{f}\n")).collect::<String>()).map_err(Error::io("write", &mark))?;
    if place.exists() {
        std::fs::rename(&place, &old).map_err(Error::io("replace", &place))?;
    }
    std::fs::rename(&beside, &place).map_err(Error::io("publish", &place))?;
    remove(&old)?;
    Ok(Some(place))
}

/// Every file that a run published below `out`, as the lists there say.
pub fn listed(out: &Path) -> Result<BTreeSet<PathBuf>, Error> {
    let mut found = BTreeSet::new();
    for file in files_under(out)?.into_iter().filter(|f| f.ends_with(MARK)) {
        let mark = out.join(file);
        let lines = std::fs::read_to_string(&mark).map_err(Error::io("read", &mark))?;
        found.extend(lines.lines().map(|line| mark.with_file_name(line)).chain([mark.clone()]).filter(|p| !p.ends_with(MARK)));
    }
    Ok(found)
}

/// Takes from the lists of what was published what is no longer there, and folders that are empty now.
pub fn unlist(out: &Path) -> Result<(), Error> {
    for file in files_under(out)?.into_iter().filter(|f| f.ends_with(MARK)) {
        let mark = out.join(file);
        let place = mark.parent().expect("a file stands in a folder");
        let listed = std::fs::read_to_string(&mark).map_err(Error::io("read", &mark))?;
        let there: String = listed.lines().filter(|f| place.join(f).is_file()).map(|f| format!("{f}\n")).collect();
        if there != listed {
            let beside = mark.with_extension("new");
            std::fs::write(&beside, there).and_then(|()| std::fs::rename(&beside, &mark)).map_err(Error::io("write", &mark))?;
        }
        remove_empty(place)?;
    }
    Ok(())
}

fn remove_empty(folder: &Path) -> Result<bool, Error> {
    let mut is_empty = true;
    for entry in std::fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        is_empty &= path.is_dir() && remove_empty(&path)?;
    }
    if is_empty {
        std::fs::remove_dir(folder).map_err(Error::io("remove", folder))?;
    }
    Ok(is_empty)
}

/// The files of a node that gives files, each renamed to its place in `out/NODE`: predictions of other studies stay beside them.
pub fn beside_others(store: &Store, out: &Path, node: &PlanNode, items: &[Input]) -> Result<Option<PathBuf>, Error> {
    if node.def.info.gives != Kind::Files {
        return Ok(None);
    }
    let place = out.join(&node.name);
    let _lock = lock(store, &place)?;
    std::fs::create_dir_all(&place).map_err(Error::io("make folder", &place))?;
    for item in items {
        for (top, files) in things(item.manifest.files.keys().map(String::as_str)) {
            let to = place.join(top);
            let last = top.rsplit('/').next().unwrap_or(top);
            let beside = to.with_file_name(format!(".{last}.new"));
            remove(&beside)?;
            for file in files {
                link(&item.dir.join(file), &beside.join(file.strip_prefix(top).unwrap_or_default().trim_start_matches('/')))?;
            }
            if to.is_dir() {
                if !to.join("zarr.json").is_file() {
                    return Err(Error::Input {
                        what: to.display().to_string(),
                        found: "a folder that is no prediction".into(),
                        expected: "nothing, or an older prediction to replace (move it away, or give another OUT)".into(),
                    });
                }
                remove(&to)?;
            }
            std::fs::rename(&beside, &to).map_err(Error::io("publish", &to))?;
            // Both names of one inode (the same prediction again): rename(2) then does nothing and leaves both.
            remove(&beside)?;
        }
    }
    Ok(Some(place))
}

/// What is replaced as a whole, with its files: a file, or a folder that is one thing (OME-Zarr: chunks of an older prediction must not shine through). Folders
/// that only put things in order (`names: series`: PATIENT/STUDY) belong to many cases.
fn things<'a>(files: impl Iterator<Item = &'a str> + Clone) -> BTreeMap<&'a str, Vec<&'a str>> {
    let roots: BTreeSet<&str> = files.clone().filter_map(|f| f.strip_suffix("/zarr.json")).collect();
    let mut out: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for file in files {
        let folders = file.match_indices('/').map(|(at, _)| &file[..at]);
        let top = folders.into_iter().find(|folder| roots.contains(folder)).unwrap_or(file);
        out.entry(top).or_default().push(file);
    }
    out
}

fn lock(store: &Store, place: &Path) -> Result<voxmill_stages::store::Lock, Error> {
    let place = std::path::absolute(place).unwrap_or_else(|_| place.to_path_buf());
    store.disk.lock(&Key::of(place.as_os_str().as_encoded_bytes()))
}

/// A hard link, or a copy where the place is on another disk. `to` may name a file (with an empty last part: `beside/` is `beside`).
pub(crate) fn link(from: &Path, to: &Path) -> Result<(), Error> {
    let to: PathBuf = to.components().collect();
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io("make folder", parent))?;
    }
    // Never through a link: a copy onto it would write into the artifact it belongs to.
    remove(&to)?;
    if std::fs::hard_link(from, &to).is_err() {
        std::fs::copy(from, &to).map_err(Error::io("copy to", &to))?;
    }
    Ok(())
}

/// Removes a file or folder of ours; nothing there is as good.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Every file in a folder, by its path relative to it; links count as files. None where there is no folder.
fn files_under(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut todo = vec![root.to_path_buf()];
    let mut found = Vec::new();
    while let Some(folder) = todo.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.map_err(Error::io("list", &folder))?,
        };
        for entry in entries {
            let entry = entry.map_err(Error::io("list", &folder))?;
            if entry.file_type().map_err(Error::io("look at", entry.path()))?.is_dir() {
                todo.push(entry.path());
            } else {
                found.extend(entry.path().strip_prefix(root).map(Path::to_path_buf));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_a_thing_and_so_is_the_outermost_folder_that_is_a_zarr_group() {
        let files = ["p/s/a.nii.gz", "p/s/b.ome.zarr/labels/zarr.json", "p/s/b.ome.zarr/0/c/0", "p/s/b.ome.zarr/zarr.json", "c.dcm"];
        let things = things(files.into_iter());
        let told: Vec<(&str, usize)> = things.iter().map(|(top, files)| (*top, files.len())).collect();
        assert_eq!(told, [("c.dcm", 1), ("p/s/a.nii.gz", 1), ("p/s/b.ome.zarr", 3)]);
    }
}
