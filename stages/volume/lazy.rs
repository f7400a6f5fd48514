//! A volume that is not written out: an artifact whose `lazy.json` lists steps and whose `base/0` is the array they start from, hard links into the artifact
//! that holds it. So a lazy volume stands on its own: nothing that happens to the base's folder reaches it, and its content hash covers base and steps.
//! Labels are small and stand there whole.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::{Geometry, Zyx};
use voxmill_schemas::zarr_attrs::Own;

use super::array::{self, ArrayFile, Fault};
use super::chain::Chain;
use super::group::{self, IMAGE};
use super::layout::Layout;
use super::reading::{Reading, Threads};
use super::step::{Outline, Step};
use super::stored::{self, StoredVolume};
use super::writer::ArrayWriter;
use super::{Labels, Voxels};
use crate::error::Error;
use crate::stage::{Cx, Facts};

/// Path of the steps in an artifact.
const STEPS: &str = "lazy.json";
/// Path of the array that they start from.
const BASE: &str = "base/0";
/// Version of [`Lazy`].
const LAYOUT: u32 = 1;

/// `lazy.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lazy {
    layout: u32,
    /// The grid of the base.
    grid: Geometry,
    steps: Vec<Step>,
}

/// Whether the voxels of an artifact are made when they are asked for.
pub fn is_lazy(dir: &Path) -> bool {
    dir.join(STEPS).is_file()
}

/// The array that is stored and the steps from there to the volume; none where it is the volume itself. `None` without channels.
pub(super) fn open(dir: &Path, own: &Own) -> Result<Option<(ArrayFile, Chain)>, Fault> {
    if own.channels.is_empty() {
        return Ok(None);
    }
    let (name, lazy) = match is_lazy(dir) {
        true => (BASE, array::read_json(dir, STEPS)?),
        false => (IMAGE, Lazy { layout: LAYOUT, grid: own.grid, steps: Vec::new() }),
    };
    if lazy.layout != LAYOUT || lazy.grid.is_degenerate() {
        return Err(Fault::Damaged(format!("{STEPS} has layout {} or axes that do not span space", lazy.layout)));
    }
    let array = ArrayFile::open(dir, name)?;
    let (l, size) = (&array.layout, lazy.grid.size);
    if l.size != size || l.channels != Some(own.channels.len()) {
        let found = format!("array {name} has {:?} channels of {}", l.channels, l.size);
        return Err(Fault::Damaged(format!("{found}, its metadata say {} of {size}", own.channels.len())));
    }
    let base = Outline {
        geometry: lazy.grid,
        channels: own.channels.clone(),
        classes: own.classes.clone(),
        dtype: l.dtype,
        about: own.about.clone(),
    };
    let chain = Chain::new(base, lazy.steps).map_err(|e| Fault::Damaged(format!("{STEPS}: {e}")))?;
    if chain.after().geometry != own.grid {
        return Err(Fault::Damaged(format!("{STEPS} leads to another grid than zarr.json has")));
    }
    Ok(Some((array, chain)))
}

impl StoredVolume {
    /// This volume after some more steps, as the artifact in `cx.draft`: as a list of steps where the engine wants it lazy, else voxels, made slab by slab.
    /// What the steps leave as it is shares its files with this volume.
    pub fn then(&self, steps: Vec<Step>, cx: &Cx) -> Result<Facts, Error> {
        let Some((array, chain)) = &self.image else {
            let what = format!("volume {}", self.about.series);
            return Err(Error::Input { what, found: "labels without an image".into(), expected: "an image".into() });
        };
        let (first, mut chain) = (chain.steps.len(), chain.clone());
        let is_same = steps.is_empty();
        steps.into_iter().try_for_each(|s| chain.push(s))?;
        let after = chain.after().clone();
        if !cx.lazy {
            cx.check_size(after.geometry.size, after.channels.len())?;
        }
        let labels = self.labels()?.map(|own| chain.labels(own, first));
        cx.check_cancelled()?;
        // A lazy volume that nothing is done to stays one only where that is wanted; a stored one is always shared.
        let writes_steps = cx.lazy && !chain.steps.is_empty();
        group::write_head(cx.draft, &after, !writes_steps)?;
        if let Some(labels) = &labels {
            let unchanged = chain.leaves_labels(first).then_some(self.dir.as_path());
            group::write_labels(cx.draft, &after, labels, unchanged, !writes_steps)?;
        }
        if writes_steps {
            let lazy = Lazy { layout: LAYOUT, grid: chain.base.geometry, steps: chain.steps.clone() };
            array::write_json(&cx.draft.join(STEPS), &lazy)?;
            group::share(&array.dir, &cx.draft.join(BASE))?;
        } else if is_same && first == 0 {
            group::share(&array.dir, &cx.draft.join(IMAGE))?;
        } else {
            let layout = Layout {
                is_time: after.about.repeats.is_some(),
                ..Layout::new(after.dtype, Some(after.channels.len()), after.geometry.size)
            };
            let mut image = ArrayWriter::create(&cx.draft.join(IMAGE), &layout)?;
            self.each_slab(array, &chain, |_, channel, slab| {
                cx.check_cancelled()?;
                image.push(channel, slab)
            })?;
            image.finish()?;
        }
        let labels = labels.zip(after.classes.clone()).map(|(voxels, classes)| Labels { classes, voxels });
        let facts = after.facts(labels.as_ref());
        Ok(if writes_steps { facts.with("lazy", true) } else { facts })
    }

    /// All voxels of a chain over this volume's array. `[c, z, y, x]`
    pub(super) fn made(&self, array: &ArrayFile, chain: &Chain) -> Result<Voxels, Error> {
        let after = chain.after();
        let size = after.geometry.size;
        let mut out = Voxels::zeros(after.dtype, after.channels.len() * size.count());
        let plane = size.y * size.x * after.dtype.bytes();
        self.each_slab(array, chain, |z, channel, slab| {
            out.as_bytes_mut()[(channel * size.z + z) * plane..][..slab.len()].copy_from_slice(slab);
            Ok(())
        })?;
        Ok(out)
    }

    /// The voxels, slab by slab in order of z, `[c, z, y, x]`: what looks at all of them needs none for long.
    pub fn each(&self, mut look: impl FnMut(&Voxels)) -> Result<(), Error> {
        let Some((array, chain)) = &self.image else { return Ok(()) };
        self.slabs(array, chain, |_, slab| {
            look(slab);
            Ok(())
        })
    }

    /// Whether a voxel has one of these values.
    pub fn has_value(&self, range: [f64; 2]) -> Result<bool, Error> {
        let mut found = false;
        self.each(|slab| found |= slab.has_value(range))?;
        Ok(found)
    }

    /// The voxels of a chain over this volume's array, slab by slab in order of z: first plane, channel, planes `[z, y, x]`.
    fn each_slab(
        &self,
        array: &ArrayFile,
        chain: &Chain,
        mut take: impl FnMut(usize, usize, &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.slabs(array, chain, |z, slab| {
            let bytes = slab.as_bytes();
            let n = (bytes.len() / chain.after().channels.len().max(1)).max(1);
            bytes.chunks_exact(n).enumerate().try_for_each(|(channel, slab)| take(z, channel, slab))
        })
    }

    /// The same, all channels of a slab together.
    fn slabs(&self, array: &ArrayFile, chain: &Chain, mut take: impl FnMut(usize, &Voxels) -> Result<(), Error>) -> Result<(), Error> {
        let recent = Recent::default();
        let shards = array.shards();
        let fetch = |channel: usize, at: Zyx<usize>| {
            recent.brick((channel, at), || shards.brick(channel, at).map_err(|f| f.of(&self.dir, Some(self.key))))
        };
        self.reading(&shards, stored::IMAGE, None, Threads::All, |plain| {
            let reading = Reading { fetch: Some(&fetch), ..*plain };
            chain.slabs(&|r| stored::base(array, r, &reading), |z, slab| {
                take(z, &slab)?;
                recent.next_slab();
                Ok(())
            })
        })
    }
}

/// Channel and place → the bytes of a brick.
type Bricks = HashMap<(usize, Zyx<usize>), Arc<Vec<u8>>>;

/// Bricks of this slab and of the one before: neighbouring slabs share them, and each is decoded once.
#[derive(Default)]
struct Recent {
    generations: Mutex<[Bricks; 2]>,
}

impl Recent {
    fn brick(
        &self,
        name: (usize, Zyx<usize>),
        decode: impl FnOnce() -> Result<Option<Vec<u8>>, Error>,
    ) -> Result<Option<Arc<Vec<u8>>>, Error> {
        {
            let mut held = self.generations.lock().expect("nothing panics while it is held");
            let [now, before] = &mut *held;
            if let Some(brick) = before.remove(&name) {
                now.insert(name, brick);
            }
            if let Some(brick) = now.get(&name) {
                return Ok(Some(brick.clone()));
            }
        }
        let Some(brick) = decode()?.map(Arc::new) else { return Ok(None) };
        self.generations.lock().expect("nothing panics while it is held")[0].insert(name, brick.clone());
        Ok(Some(brick))
    }

    fn next_slab(&self) {
        let [now, before] = &mut *self.generations.lock().expect("nothing panics while it is held");
        *before = std::mem::take(now);
    }
}
