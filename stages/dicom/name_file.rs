//! What the pseudonyms of files stand for, written only where somebody asks for it: a table for whoever may see the archive. It names patients, so nobody
//! else can read it and it lies in no folder that is handed on.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use voxmill_schemas::tables::InstanceRow;

use super::survey::Survey;
use crate::error::Error;

/// The first line; a file that begins otherwise is none of ours and is not written over.
const HEAD: &str = "pseudonym\tseries\tplace\n";

/// Refuses a place that lies in one of these folders, or where something else stands.
/// - `apart`: what each folder is called, and where it is
pub fn check(file: &Path, apart: &[(&str, &Path)]) -> Result<(), Error> {
    let wrong = |found: String, expected: &str| Error::Input {
        what: format!("name file {}", file.display()),
        found,
        expected: expected.to_string(),
    };
    let real = |p: &Path| {
        let absolute = std::path::absolute(p).unwrap_or_else(|_| p.to_path_buf());
        // What is not there yet lies where its nearest folder lies.
        let there = absolute.ancestors().find_map(|a| Some((a.to_path_buf(), std::fs::canonicalize(a).ok()?)));
        there.map_or(absolute.clone(), |(a, real)| real.join(absolute.strip_prefix(&a).unwrap_or(Path::new(""))))
    };
    let place = real(file);
    if let Some((name, _)) = apart.iter().find(|(_, folder)| place.starts_with(real(folder))) {
        return Err(wrong(format!("a place inside {name}"), "one outside: it says where the patients' files are"));
    }
    if place.parent().is_some_and(|folder| !folder.is_dir()) {
        return Err(wrong("no such folder".into(), "a folder that is there"));
    }
    match std::fs::symlink_metadata(file) {
        Ok(meta) if meta.is_file() => {
            let mut head = String::new();
            let read = std::fs::File::open(file).and_then(|f| f.take(HEAD.len() as u64).read_to_string(&mut head));
            if read.is_err() || (head != HEAD && meta.len() > 0) {
                return Err(wrong("another file".into(), "no file, or one that this option has written"));
            }
            Ok(())
        }
        Ok(_) => Err(wrong("something that is no file".into(), "no file, or one that this option has written")),
        Err(_) => Ok(()),
    }
}

/// One line a file: its pseudonym, the series that it is in (none for what was left out), its place in the archive. Readable by its owner alone.
/// - `survey`: with places
pub fn write(file: &Path, survey: &Survey) -> Result<(), Error> {
    let series: HashMap<&str, &str> = survey.instances.iter().map(|i: &InstanceRow| (i.file.as_str(), i.series.as_str())).collect();
    let mut text = HEAD.to_string();
    for (name, place) in &survey.places {
        let cells = [name.as_str(), series.get(name.as_str()).copied().unwrap_or_default(), place].map(plain);
        text.push_str(&format!("{}\n", cells.join("\t")));
    }
    let beside = PathBuf::from(format!("{}.{}.new", file.display(), std::process::id()));
    let mut how = std::fs::OpenOptions::new();
    how.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut how, 0o600);
    let written = how.open(&beside).and_then(|mut f| {
        f.write_all(text.as_bytes())?;
        f.sync_all()?;
        std::fs::rename(&beside, file)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written.map_err(Error::io("write", file))
}

/// A cell of a TSV: what would end it is escaped.
fn plain(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_its_owner_reads_it_and_nothing_else_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let (file, out) = (dir.path().join("names.tsv"), dir.path().join("out"));
        let apart = [("OUT", out.as_path())];
        let mut survey = Survey::default();
        survey.places.push(("ab.dcm".into(), "Doe\tJane/1.dcm".into()));
        for _ in 0..2 {
            check(&file, &apart).unwrap();
            write(&file, &survey).unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("{HEAD}ab.dcm\t\tDoe\\tJane/1.dcm\n"));
        }
        #[cfg(unix)]
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions()) & 0o777, 0o600);
        std::fs::write(&file, "mine").unwrap();
        assert!(check(&file, &apart).unwrap_err().to_string().contains("another file"));
        assert!(check(&out.join("deep/names.tsv"), &apart).unwrap_err().to_string().contains("inside OUT"), "not there yet");
        assert!(check(&dir.path().join("none/names.tsv"), &apart).is_err());
    }
}
