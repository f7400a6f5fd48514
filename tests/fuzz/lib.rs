//! What the fuzz targets share: the sources under test as they stand in `stages/`, an allocator that holds them to their promise of memory,
//! and a file for the bytes in hand, since what an archive holds is read from files.

#[path = "../../stages/dicom/mod.rs"]
pub mod dicom;
#[path = "../../stages/error.rs"]
pub mod error;
#[path = "../../stages/nifti/mod.rs"]
pub mod nifti;
#[path = "../../stages/ops/mod.rs"]
pub mod ops;
#[path = "../../stages/sample/mod.rs"]
pub mod sample;
#[path = "../../stages/stage.rs"]
pub mod stage;
#[path = "../../stages/store/mod.rs"]
pub mod store;
#[path = "../../stages/volume/mod.rs"]
pub mod volume;

mod memory;
mod mutate;

use std::path::PathBuf;
use std::sync::OnceLock;

use voxmill_schemas::tables::InstanceRow;

use dicom::catalog::{self, Catalog};
use dicom::names::Names;
use dicom::{rows, walk};

pub use memory::within_promise;
pub use mutate::mutated;

/// A folder in memory for this process alone.
fn folder() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let shared = PathBuf::from("/dev/shm");
        let base = if shared.is_dir() { shared } else { std::env::temp_dir() };
        let folder = base.join(format!("voxmill-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for one file can be made");
        folder
    })
}

/// Puts the bytes into a file of this name; there is one such file at a time.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    std::fs::write(&path, bytes).expect("there is room for one small file");
    path
}

/// What `index` sees where this file is an archive, ids under pseudonyms or as they are.
pub fn indexed(name: &str, bytes: &[u8], names: &Names) -> (Catalog, Vec<InstanceRow>) {
    let path = file(name, bytes);
    let found = walk::walk(&path).expect("the file was just written");
    // No memory between runs.
    let catalog = catalog::read_all(found, names, None, &|_| Ok(())).expect("nothing cancels it");
    let made = rows::of(&catalog, &Default::default(), names);
    (catalog, made.instances)
}
