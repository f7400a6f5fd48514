//! The labels in hand: one class a voxel, and who claimed a voxel twice.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Which class a voxel with two claims gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Overlap {
    /// Refuse the case and say where.
    #[default]
    Error,
    /// The class with the lower id.
    First,
    /// The class with the higher id.
    Last,
}

/// The labels in hand.
pub struct Canvas {
    /// `[z, y, x]`
    pub labels: Vec<u8>,
    overlap: Overlap,
    /// Pair of ids (lower first) → voxels that both claim.
    clashes: BTreeMap<(u8, u8), usize>,
}

impl Canvas {
    /// `n`: voxels.
    pub fn new(n: usize, overlap: Overlap) -> Canvas {
        Canvas { labels: vec![0; n], overlap, clashes: BTreeMap::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.labels.iter().all(|v| *v == 0)
    }

    pub fn put(&mut self, id: u8, voxel: usize) {
        let was = self.labels[voxel];
        if was != 0 && was != id {
            *self.clashes.entry((was.min(id), was.max(id))).or_default() += 1;
        }
        self.labels[voxel] = match self.overlap {
            _ if was == 0 => id,
            Overlap::Error | Overlap::First => was.min(id),
            Overlap::Last => was.max(id),
        };
    }

    /// Refuses shared voxels where the overlap says so.
    pub fn judge(&self, classes: &BTreeMap<String, u8>) -> Result<(), Error> {
        let name = |id: u8| classes.iter().find(|(_, i)| **i == id).map_or("?", |(n, _)| n.as_str());
        match (self.overlap, self.clashes.iter().next()) {
            (Overlap::Error, Some(((a, b), n))) => {
                let why =
                    format!("{} and {} share {n} voxels: set overlap to first or last to say which one gets them", name(*a), name(*b));
                Err(Error::Labels { what: "labels".into(), why })
            }
            _ => Ok(()),
        }
    }
}
