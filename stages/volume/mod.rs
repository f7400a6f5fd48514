//! Volumes in memory and on a shelf. Arrays are C order, slowest axis first; channels and labels of a volume share one grid and one geometry.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::Key;
use voxmill_schemas::geometry::Geometry;
use voxmill_schemas::region::Region;

use crate::error::Error;
use crate::stage::Facts;
use crate::store::Store;

/// Voxel values, C order.
#[derive(Clone, Debug, PartialEq)]
pub enum Voxels {
    U8(Vec<u8>),
    I16(Vec<i16>),
    U16(Vec<u16>),
    F32(Vec<f32>),
}

/// An image with its labels, in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Volume {
    pub geometry: Geometry,
    /// One name a channel (`CT`, `T1`); its length is the size of the first axis.
    pub channels: Vec<String>,
    /// `[c, z, y, x]`
    pub voxels: Voxels,
    pub labels: Option<Labels>,
    pub about: About,
}

/// Class ids, 0 is background.
#[derive(Clone, Debug, PartialEq)]
pub struct Labels {
    /// Name → id, in the order of the YAML.
    pub classes: IndexMap<String, u8>,
    /// `[z, y, x]`
    pub voxels: Vec<u8>,
}

/// What travels with a volume through every stage. Names no patient unless the pipeline says so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// DICOM modality: `CT`, `MR`.
    pub modality: String,
    /// What a voxel value means: `HU`, `stored`, `SUV`, `normalised`.
    pub unit: String,
    /// Pseudonym (or, if the index says `deidentify: none`, the id) of the patient.
    pub patient: String,
    /// Pseudonyms of study and series: they join to the index table.
    pub study: String,
    pub series: String,
    /// The grid on which the volume was assembled: predictions go back to it.
    pub source: Geometry,
}

impl Voxels {
    pub fn len(&self) -> usize {
        match self {
            Voxels::U8(v) => v.len(),
            Voxels::I16(v) => v.len(),
            Voxels::U16(v) => v.len(),
            Voxels::F32(v) => v.len(),
        }
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The values as float32; borrowed where they are.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        match self {
            Voxels::U8(v) => v.iter().map(|x| *x as f32).collect(),
            Voxels::I16(v) => v.iter().map(|x| *x as f32).collect(),
            Voxels::U16(v) => v.iter().map(|x| *x as f32).collect(),
            Voxels::F32(v) => Cow::Borrowed(v),
        }
    }
}

impl Volume {
    /// Reads an artifact whole, every chunk checked against its crc32c.
    pub fn read(_dir: &Path) -> Result<Volume, Error> {
        unimplemented!()
    }

    /// Writes an OME-Zarr 0.5 group into a draft. `unchanged`: the artifact whose image array (`[c, z, y, x]`) is the same; it is hard-linked, not written.
    pub fn write(&self, _draft: &Path, _unchanged: Option<&Path>) -> Result<(), Error> {
        unimplemented!()
    }

    /// What every stage that gives a volume tells: `size`, `spacing_mm`, `voxels`, `channels`, `dtype`, `modality`, `unit`, `patient`, `study`, `series` and, with
    /// labels, `classes` and `label_voxels` (class → count). `series` is what `rows_of` of annotate and export joins on.
    pub fn facts(&self) -> Facts {
        unimplemented!()
    }
}

/// A volume on a shelf: its metadata read, its voxels not.
pub struct StoredVolume {
    pub dir: PathBuf,
    pub key: Key,
    pub geometry: Geometry,
    pub channels: Vec<String>,
    /// Empty without labels.
    pub classes: IndexMap<String, u8>,
    pub about: About,
}

/// A box of a volume, float32.
#[derive(Clone, Debug, PartialEq)]
pub struct Patch {
    /// `[c, z, y, x]`
    pub voxels: Vec<f32>,
    /// `[z, y, x]`
    pub labels: Option<Vec<u8>>,
}

impl StoredVolume {
    pub fn open(_dir: &Path, _key: Key) -> Result<Self, Error> {
        unimplemented!()
    }

    /// The voxels of a region through the shelves. It may stick out of the volume: there stand `outside` and background.
    pub fn read(&self, _region: Region, _outside: f32, _store: &Store) -> Result<Patch, Error> {
        unimplemented!()
    }

    /// The labels alone, whole: what a plan of patches needs to find foreground. `[z, y, x]`
    pub fn labels(&self) -> Result<Option<Vec<u8>>, Error> {
        unimplemented!()
    }
}
