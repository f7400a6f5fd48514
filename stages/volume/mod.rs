//! Volumes in memory and on a shelf. Arrays are C order, slowest axis first; channels and labels of a volume share one grid and one geometry.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Geometry;

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
