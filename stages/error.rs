//! What can go wrong in a stage. A variant is a cause the reader can act on and says what, where, found and wanted; lower case, no full stop.
//! Sources are chained, not pasted. No text holds a patient's name: files are named by their path relative to the archive.

use std::path::{Path, PathBuf};

use voxmill_schemas::artifact::Key;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("stopped on request")]
    Cancelled,

    #[error("cannot {doing} {}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },

    /// The disk, a quota or the shelf's own limit.
    #[error("no space left while writing {}: free some space there, or give another place (`workspace`, OUT), then run the same command again", path.display())]
    DiskFull { path: PathBuf, source: std::io::Error },

    #[error(
        "the {shelf} shelf holds {used_bytes} of {limit_bytes} bytes and {wanted_bytes} more do not fit: raise `cache.{shelf}.limit`, or make room with `voxmill cache gc`"
    )]
    ShelfFull { shelf: &'static str, used_bytes: u64, limit_bytes: u64, wanted_bytes: u64 },

    #[error("cannot {doing} {}: the workspace must be writable for this user", path.display())]
    NotWritable { doing: &'static str, path: PathBuf, source: std::io::Error },

    /// An artifact or chunk whose bytes are not those that were written.
    #[error("artifact {key} is damaged: {what}")]
    Damaged { key: Key, what: String },

    #[error("{file}: {why}")]
    Dicom { file: String, why: String },

    #[error("{file}: {syntax} is not decoded by this build ({help})")]
    UnsupportedSyntax { file: String, syntax: String, help: String },

    /// A series that lies on no regular grid, a label that lies elsewhere.
    #[error("{what}: {why}")]
    Geometry { what: String, why: String },

    #[error("{what}: {why}")]
    Labels { what: String, why: String },

    #[error("{file}: {why}")]
    Nifti { file: String, why: String },

    /// Something in the input makes the stage meaningless (no series chosen, a class that no case has).
    #[error("{what}: found {found}, expected {expected}")]
    Input { what: String, found: String, expected: String },

    /// The input is what was meant, and there is nothing in it to work on.
    #[error("{what}: found {found}, expected {expected}")]
    Nothing { what: String, found: String, expected: String },

    #[error("{what} needs {wanted_bytes} bytes, more than the limit of {limit_bytes}")]
    TooLarge { what: String, wanted_bytes: u64, limit_bytes: u64 },

    #[error("{doing} table {}", path.display())]
    Table { doing: &'static str, path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },

    #[error("the query failed: {why}")]
    Query { why: String },

    #[error("{doing} zarr {}", path.display())]
    Zarr { doing: &'static str, path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },

    #[error("device {wanted}: {why}")]
    Device { wanted: String, why: String },

    #[error("model: {why}")]
    Model { why: String },

    /// A bug of ours, kept from taking the other cases with it.
    #[error("stage {stage} broke on this input (a bug worth reporting): {text}")]
    Panicked { stage: &'static str, text: String },

    /// A worker of the feed could not make a patch.
    #[error("cannot cut a patch of case {case}")]
    Patch { case: String, source: Box<Error> },

    #[error("the loss became {value} at step {step}; patches of {cases}")]
    NotFinite { value: f32, step: u64, cases: String },
}

impl Error {
    /// Wraps an I/O error; a full disk gets its own variant.
    pub fn io(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Error::DiskFull { path, source },
            _ => Error::Io { doing, path, source },
        }
    }

    /// True for faults of the machine or the workspace: the run stops; false for faults of one case, which is quarantined.
    pub fn stops_the_run(&self) -> bool {
        matches!(
            self,
            Error::Cancelled | Error::DiskFull { .. } | Error::ShelfFull { .. } | Error::NotWritable { .. } | Error::Device { .. }
        ) || matches!(self, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem)
            || matches!(self, Error::Patch { source, .. } if source.stops_the_run())
    }

    /// True for what says nothing of a case: the disk or a shelf failed, and the next run may not meet it. A stage keeps no such error in what it makes, or it
    /// would be told for ever.
    pub fn is_of_the_moment(&self) -> bool {
        self.stops_the_run()
            || matches!(self, Error::Io { .. } | Error::Damaged { .. })
            || matches!(self, Error::Patch { source, .. } if source.is_of_the_moment())
    }
}

/// The whole chain of causes on one line, outermost first.
pub fn chain(e: &dyn std::error::Error) -> String {
    let mut out = e.to_string();
    let mut next = e.source();
    while let Some(s) = next {
        out.push_str(": ");
        out.push_str(&s.to_string());
        next = s.source();
    }
    out
}
