//! Where the files of an index with pseudonyms stand. Archives name folders and files after patients, so tables and memories hold tokens (keyed hashes) in
//! place of paths. What a token means is known in the memory of the process that has walked the archive and nowhere else: an index always looks, so every
//! process that reads files has walked before.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, PoisonError, RwLock};

use super::names::Names;
use super::walk::Seen;

/// Begins a token; what an archive calls so is no token, since nothing is known by it.
const MARK: &str = "hidden:";

static KNOWN: LazyLock<RwLock<Known>> = LazyLock::new(Default::default);

#[derive(Default)]
struct Known {
    folders: HashMap<PathBuf, u32>,
    by_number: Vec<PathBuf>,
    /// Token → folder, and the name in it.
    files: HashMap<u128, (u32, Box<str>)>,
    /// Token → place in a container.
    members: HashMap<u128, Box<str>>,
}

/// What stands in tables for the place of a file: path and member as they are, or tokens of them that [`path`] and [`member`] take back.
/// - `root`: the archive's folder, absolute
pub fn written(names: &Names, root: &Path, seen: &Seen) -> (String, Option<String>) {
    let path = root.join(&seen.file);
    if matches!(names, Names::Own) {
        return (path.to_string_lossy().into_owned(), seen.member.as_deref().map(String::from));
    }
    let token = |text: &str| u128::from_be_bytes(names.place(&format!("{}\0{text}", root.to_string_lossy())));
    let (of_file, of_member) = (token(&seen.file), seen.member.as_deref().map(|m| (token(&format!("{}\0{m}", seen.file)), m)));
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    let known = &mut *known;
    if let (Some(folder), Some(name)) = (path.parent(), path.file_name()) {
        let number = known.folders.get(folder).copied().unwrap_or_else(|| {
            known.by_number.push(folder.to_path_buf());
            let number = known.by_number.len() as u32 - 1;
            known.folders.insert(folder.to_path_buf(), number);
            number
        });
        known.files.entry(of_file).or_insert_with(|| (number, name.to_string_lossy().into()));
    }
    if let Some((token, member)) = of_member {
        known.members.entry(token).or_insert_with(|| member.into());
    }
    (text(of_file), of_member.map(|(token, _)| text(token)))
}

/// The path that a token stands for; any other path is itself.
pub fn path(written: &Path) -> Cow<'_, Path> {
    let found = written.to_str().and_then(token_of).and_then(|token| {
        let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
        let (folder, name) = known.files.get(&token)?;
        Some(known.by_number[*folder as usize].join(&**name))
    });
    found.map_or(Cow::Borrowed(written), Cow::Owned)
}

/// The same for the place in a container.
pub fn member(written: &str) -> Cow<'_, str> {
    let found = token_of(written).and_then(|token| {
        let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
        known.members.get(&token).map(|m| m.to_string())
    });
    found.map_or(Cow::Borrowed(written), Cow::Owned)
}

fn text(token: u128) -> String {
    format!("{MARK}{token:032x}")
}

fn token_of(text: &str) -> Option<u128> {
    u128::from_str_radix(text.strip_prefix(MARK)?, 16).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_nothing_and_leads_back() {
        let seen = Seen { file: "Doe^Jane/a.zip".into(), member: Some("Doe/1.dcm".into()), stat: Default::default(), bytes: 0 };
        let root = Path::new("/archive/of/places");
        let (file, inside) = written(&Names::keyed(b"k"), root, &seen);
        let inside = inside.unwrap();
        assert!(!file.contains("Doe") && !inside.contains("Doe"), "{file} {inside}");
        assert_eq!((&*path(Path::new(&file)), &*member(&inside)), (&*root.join("Doe^Jane/a.zip"), "Doe/1.dcm"));
        let (own, own_inside) = written(&Names::Own, root, &seen);
        assert_eq!((own.as_str(), own_inside.as_deref()), ("/archive/of/places/Doe^Jane/a.zip", Some("Doe/1.dcm")));
        assert_eq!(path(Path::new(&own)), Path::new(&own));
        let unknown = text(1);
        assert_eq!(path(Path::new(&unknown)), Path::new(&unknown), "an index of another process");
    }
}
