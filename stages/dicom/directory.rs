//! DICOMDIR (PS3.3 annex F, PS3.10 8.6): which files a medium says it holds. Only their names are taken; what a file is, the file says itself.

use std::sync::LazyLock;

use dicom::dictionary_std::tags as t;

use super::bytes::Source;
use super::level::Level;
use super::scan::{self, Fault, Wanted};

/// Media Storage Directory Storage.
pub const SOP_CLASS: &str = "1.2.840.10008.1.3.10";
/// A larger directory is refused.
const MAX_BYTES: u64 = 256 << 20;

static WANTED: LazyLock<Wanted> = LazyLock::new(|| Wanted::new(vec![t::REFERENCED_FILE_ID], vec![t::DIRECTORY_RECORD_SEQUENCE]));

/// The files that a directory names, relative to its folder, `/` between folders; sorted, each once.
pub fn read(source: &Source) -> Result<Vec<String>, String> {
    if source.len() > MAX_BYTES {
        return Err(format!("a DICOMDIR of {} bytes, more than {MAX_BYTES}", source.len()));
    }
    let bytes = source.read_at(0, source.len() as usize).map_err(|e| format!("the DICOMDIR cannot be read: {e}"))?;
    // Of one that is cut off, what it says before that.
    let elements = match scan::scan(&bytes, source.len(), &WANTED) {
        Ok(s) => s.elements,
        Err(Fault::Broken { so_far, .. }) => so_far,
        Err(_) => return Err("a DICOMDIR that is no DICOM file".into()),
    };
    let records = Level::new(&bytes, &elements, false).items(t::DIRECTORY_RECORD_SEQUENCE);
    let mut files: Vec<String> = records.map(|r| r.texts(t::REFERENCED_FILE_ID).join("/")).filter(|f| !f.is_empty()).collect();
    files.sort();
    files.dedup();
    Ok(files)
}

/// What two spellings of one file have in common: media are often copied in other case, or with the version that ISO 9660 appends.
pub fn spelling(file: &str) -> String {
    let upper = file.to_ascii_uppercase().replace('\\', "/");
    upper.strip_suffix(";1").unwrap_or(&upper).trim_end_matches('.').to_string()
}
