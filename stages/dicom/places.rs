//! Where the files of an index with pseudonyms stand. Archives name folders and files after patients, so tables and memories hold tokens (keyed hashes) in
//! place of paths. What a token means is known in the memory of the process that has walked the archive and nowhere else: an index always looks, so every
//! process that reads files has walked before.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, PoisonError, RwLock};

use super::names::{Names, hex};
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

/// What stands in tables for the place of a file: as [`all_written`].
pub fn written(names: &Names, root: &Path, seen: &Seen) -> (String, Option<String>) {
    all_written(names, root, std::iter::once(seen)).remove(0)
}

/// What stands in tables for the places of files: path and member as they are, or tokens of them that [`path`] and [`member`] take back.
/// - `root`: the archive's folder, absolute
pub fn all_written<'s>(names: &Names, root: &Path, files: impl Iterator<Item = &'s Seen>) -> Vec<(String, Option<String>)> {
    if matches!(names, Names::Own) {
        return files
            .map(|seen| (root.join(&seen.file).to_string_lossy().into_owned(), seen.member.as_deref().map(String::from)))
            .collect();
    }
    let start = format!("{}\0", root.to_string_lossy());
    let mut text = start.clone();
    let mut token = |parts: [&str; 3]| {
        text.truncate(start.len());
        parts.iter().for_each(|p| text.push_str(p));
        u128::from_be_bytes(names.place(&text))
    };
    let tokens = files.map(|seen| {
        let of_member = seen.member.as_deref().map(|m| (token([&seen.file, "\0", m]), m));
        (seen, token([&seen.file, "", ""]), of_member)
    });
    let tokens: Vec<_> = tokens.collect();
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    let known = &mut *known;
    let mut last = None;
    for (seen, of_file, of_member) in &tokens {
        let (folder, name) = seen.file.rsplit_once('/').unwrap_or(("", &seen.file));
        let number = match last {
            Some((at, number)) if at == folder => number,
            _ => known.number_of(root.join(folder)),
        };
        last = Some((folder, number));
        known.files.entry(*of_file).or_insert_with(|| (number, name.into()));
        if let Some((token, member)) = of_member {
            known.members.entry(*token).or_insert_with(|| (*member).into());
        }
    }
    tokens.iter().map(|(_, of_file, of_member)| (text_of(*of_file), of_member.map(|(token, _)| text_of(token)))).collect()
}

impl Known {
    fn number_of(&mut self, folder: PathBuf) -> u32 {
        *self.folders.entry(folder).or_insert_with_key(|folder| {
            self.by_number.push(folder.clone());
            self.by_number.len() as u32 - 1
        })
    }
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

fn text_of(token: u128) -> String {
    let mut out = String::with_capacity(MARK.len() + 32);
    out.push_str(MARK);
    hex(&token.to_be_bytes(), &mut out);
    out
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
        let unknown = text_of(1);
        assert_eq!(path(Path::new(&unknown)), Path::new(&unknown), "an index of another process");
    }
}
