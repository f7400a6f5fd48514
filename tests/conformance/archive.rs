//! A folder, indexed and read as `index` and `assemble` do it.

use std::path::{Path, PathBuf};

use voxmill_schemas::tables::{InstanceRow, SeriesRow};
use voxmill_stages::dicom::catalog;
use voxmill_stages::dicom::order::How;
use voxmill_stages::dicom::read::{self, Reading, Stacked};
use voxmill_stages::dicom::rows::{self, Made, Names};
use voxmill_stages::dicom::walk;

pub fn root() -> PathBuf {
    std::env::var_os("VOXMILL_DATA").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data"), PathBuf::from)
}

/// Whether the folder is the whole collection and not the small one of the repository.
pub fn is_whole() -> bool {
    std::env::var_os("VOXMILL_DATA").is_some()
}

pub struct Archive {
    pub made: Made,
}

pub fn open(folder: &Path) -> Archive {
    let memo = tempfile::tempdir().unwrap();
    let catalog = catalog::read_all(walk::walk(folder).unwrap(), &Names::Own, Some(memo.path()), &|_| Ok(())).unwrap();
    Archive { made: rows::of(&catalog, &Default::default(), &Names::Own) }
}

impl Archive {
    pub fn images(&self) -> Vec<&SeriesRow> {
        self.made.series.iter().filter(|s| s.kind == "image").collect()
    }

    /// The volume of a row, or why there is none.
    pub fn volume(&self, s: &SeriesRow) -> Result<Stacked, String> {
        self.read_with(s, How { keeps_single: true, ..How::default() })
    }

    pub fn read_with(&self, s: &SeriesRow, how: How) -> Result<Stacked, String> {
        if let Some(why) = &s.refused {
            return Err(why.clone());
        }
        read::volume(&self.instances(s), &reading(how)).map_err(|e| voxmill_stages::error::chain(&e))
    }

    /// All volumes, which lie on one another, as one.
    pub fn joined(&self) -> Result<Stacked, String> {
        let mut rows = self.images();
        rows.sort_by_key(|s| (s.repeat_of, s.repeat));
        if rows.iter().any(|s| s.repeat_of != rows[0].repeat_of) {
            return Err("volumes of several places".into());
        }
        let volumes: Vec<Vec<InstanceRow>> = rows.iter().map(|s| self.instances(s)).collect();
        let reading = reading(How { keeps_single: true, ..How::default() });
        let read = if volumes.len() == 1 { read::volume(&volumes[0], &reading) } else { read::repeated(&volumes, &reading) };
        read.map_err(|e| voxmill_stages::error::chain(&e))
    }

    fn instances(&self, s: &SeriesRow) -> Vec<InstanceRow> {
        self.made.instances.iter().filter(|i| (&i.series, i.volume) == (&s.series, s.volume)).cloned().collect()
    }
}

fn reading(how: How) -> Reading<'static> {
    Reading { how, limit_bytes: 4 << 30, keeps_colour: true, suv: None, is_repeat: false, step: &|_| Ok(()) }
}
