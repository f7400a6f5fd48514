//! Arrays that the RAM shelf holds whole: where the budget covers all that a training reads, there is nothing to give up and nothing to choose, and a patch is
//! cut from long rows. A layer is decoded when it is first asked for; its bytes are set aside beforehand.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, RwLock};

use voxmill_schemas::artifact::Key;

use super::{Array, Layer};
use crate::error::Error;

const HELD: &str = "no thread panics while it holds the arrays";

/// A layer: not asked for yet, all zeros, or its voxels.
type Slot = Mutex<Option<Option<Arc<Vec<u8>>>>>;

/// By artifact and array.
type Arrays = HashMap<(Key, u32), Rows>;

#[derive(Default)]
pub(super) struct Residents(RwLock<Option<Arc<Arrays>>>);

/// The layers of an array, channel by channel.
struct Rows {
    layers: usize,
    slots: Vec<Slot>,
}

/// What a layer that is held whole says.
pub(super) enum Held {
    /// It is not held: read it brick by brick.
    No,
    /// Its voxels, `None` where all are zero; whether they were there before.
    Yes(Option<Arc<Vec<u8>>>, bool),
}

impl Residents {
    /// Sets places aside; `false` where others hold theirs.
    pub fn hold(&self, arrays: &[Array]) -> bool {
        let mut held = self.0.write().expect(HELD);
        if held.is_some() {
            return false;
        }
        let rows = |a: &Array| Rows { layers: a.layers, slots: (0..a.channels * a.layers).map(|_| Slot::default()).collect() };
        *held = Some(Arc::new(arrays.iter().map(|a| ((a.artifact, a.array), rows(a))).collect()));
        true
    }

    pub fn release(&self) {
        *self.0.write().expect(HELD) = None;
    }

    /// One thread decodes, the others that want the layer wait for it: `load` must not wait for other threads.
    pub fn get(&self, name: &Layer, load: impl FnOnce() -> Result<Option<Vec<u8>>, Error>) -> Result<Held, Error> {
        let Some(held) = self.0.read().expect(HELD).clone() else { return Ok(Held::No) };
        let slot = held.get(&(name.artifact, name.array)).and_then(|r| r.slots.get(name.channel as usize * r.layers + name.z as usize));
        let Some(slot) = slot else { return Ok(Held::No) };
        // A thread that panicked while it decoded left the slot as it was.
        let mut slot = slot.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(layer) = &*slot {
            return Ok(Held::Yes(layer.clone(), true));
        }
        let layer = load()?.map(Arc::new);
        *slot = Some(layer.clone());
        Ok(Held::Yes(layer, false))
    }
}
