//! `model.json`: all that is needed to use `weights.safetensors`, without the pipeline that made it.

use std::path::Path;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Zyx;

use crate::error::Error;
use crate::model::Network;

/// The file's name inside a model artifact.
pub const CARD: &str = "model.json";
pub const WEIGHTS: &str = "weights.safetensors";
/// Goes up when an older program could not read the card.
const FORMAT: u32 = 1;

/// What a trained network takes and gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Card {
    pub format: u32,
    pub network: Network,
    /// Names of the channels that go in, in their order.
    pub channels: Vec<String>,
    /// Name → id. Output channel `id` of the network is that class, output 0 is background.
    pub classes: IndexMap<String, u8>,
    /// Size of the patches it was trained on, voxels.
    pub patch: Zyx<usize>,
    /// Spacing of the first training case, mm: what a voxel meant in training.
    pub spacing_mm: Zyx<f64>,
}

impl Card {
    pub fn new(network: Network, channels: Vec<String>, classes: IndexMap<String, u8>, patch: Zyx<usize>, spacing_mm: Zyx<f64>) -> Self {
        Self { format: FORMAT, network, channels, classes, patch, spacing_mm }
    }

    /// Output channels of the network, background included.
    pub fn n_outputs(&self) -> usize {
        self.classes.len() + 1
    }

    /// Voxels that a patch has answers for: the window to use where none is asked for.
    pub fn window(&self) -> Zyx<usize> {
        self.patch.zip(self.network.margin()).map(|(n, m)| n.saturating_sub(2 * m).max(1))
    }

    pub fn write(&self, dir: &Path) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(self).expect("a card is plain data");
        let path = dir.join(CARD);
        std::fs::write(&path, text).map_err(Error::io("write", &path))
    }

    pub fn read(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(CARD);
        let text = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let card: Card =
            serde_json::from_slice(&text).map_err(|e| Error::Model { why: format!("{CARD} is not a card this version reads: {e}") })?;
        if card.format != FORMAT {
            return Err(Error::Model { why: format!("{CARD} has format {}, this version reads {FORMAT}", card.format) });
        }
        Ok(card)
    }
}
