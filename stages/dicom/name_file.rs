//! What the pseudonyms of files stand for, written only where somebody asks for it: a table for whoever may see the archive. It names patients, so nobody
//! else can read it and it lies in no folder that is handed on.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use voxmill_schemas::tables::{FileRow, InstanceRow};

use super::survey::Survey;
use crate::error::Error;

/// The first line, with the archive in it; a file that begins otherwise is none of ours, or that of another archive, and is not written over.
fn head(archive: &Path) -> String {
    let archive = std::path::absolute(archive).unwrap_or_else(|_| archive.to_path_buf());
    format!("pseudonym\tseries\tplace in {}\tverdict\treason", plain(&archive.to_string_lossy()))
}
/// More than a path may have.
const HEAD_BYTES: u64 = 1 << 14;

/// Refuses a place that lies in one of these folders, or where something else stands.
/// - `archive`: whose files are named
/// - `apart`: what each folder is called, and where it is
pub fn check(file: &Path, archive: &Path, apart: &[(&str, &Path)]) -> Result<(), Error> {
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
            let mut first = Vec::new();
            let read = std::fs::File::open(file).and_then(|f| f.take(HEAD_BYTES).read_to_end(&mut first));
            let first = String::from_utf8_lossy(first.split(|b| *b == b'\n').next().unwrap_or_default()).into_owned();
            if read.is_ok() && (meta.len() == 0 || first == head(archive)) {
                return Ok(());
            }
            match first.starts_with("pseudonym\tseries\tplace") {
                true => Err(wrong(
                    "the names of another archive, or of this one at another place".into(),
                    "a new file: give another name, or move this one away",
                )),
                false => Err(wrong("another file".into(), "no file, or one that this option has written")),
            }
        }
        Ok(_) => Err(wrong("something that is no file".into(), "no file, or one that this option has written")),
        Err(_) => Ok(()),
    }
}

/// One line a file: its pseudonym, the series that it is in (none for what was left out), its place in the archive, the verdict on it and why. Readable by its
/// owner alone.
/// - `survey`: with places
pub fn write(file: &Path, archive: &Path, survey: &Survey) -> Result<(), Error> {
    let series: HashMap<&str, &str> = survey.instances.iter().map(|i: &InstanceRow| (i.file.as_str(), i.series.as_str())).collect();
    let verdicts: HashMap<&str, &FileRow> = survey.files.iter().map(|f| (f.path.as_str(), f)).collect();
    let mut text = head(archive) + "\n";
    for (name, place) in &survey.places {
        let (verdict, why) = verdicts.get(name.as_str()).map_or(("", ""), |f| (&f.verdict, &f.why));
        let cells = [name.as_str(), series.get(name.as_str()).copied().unwrap_or_default(), place, verdict, why].map(plain);
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
        let (apart, archive) = ([("OUT", out.as_path())], Path::new("/archive"));
        let mut survey = Survey::default();
        survey.places.push(("ab.dcm".into(), "Doe\tJane/1.dcm".into()));
        survey.files.push(FileRow { path: "ab.dcm".into(), verdict: "failed".into(), why: "cut off".into() });
        for _ in 0..2 {
            check(&file, archive, &apart).unwrap();
            write(&file, archive, &survey).unwrap();
            let wanted = "pseudonym\tseries\tplace in /archive\tverdict\treason\nab.dcm\t\tDoe\\tJane/1.dcm\tfailed\tcut off\n";
            assert_eq!(std::fs::read_to_string(&file).unwrap(), wanted);
        }
        assert!(check(&file, Path::new("/other"), &apart).unwrap_err().to_string().contains("another archive"));
        #[cfg(unix)]
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions()) & 0o777, 0o600);
        std::fs::write(&file, "mine").unwrap();
        assert!(check(&file, archive, &apart).unwrap_err().to_string().contains("another file"));
        assert!(check(&out.join("deep/names.tsv"), archive, &apart).unwrap_err().to_string().contains("inside OUT"), "not there yet");
        assert!(check(&dir.path().join("none/names.tsv"), archive, &apart).is_err());
    }
}
