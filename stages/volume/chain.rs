//! Steps one after another: any box of the result from the box of the base that it needs, or the whole of it slab by slab. Between base and result a box is in
//! memory once a step that moves voxels; maps of intensity are done where the values are written anyway.

use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;

use super::step::{Outline, Ready, Step};
use super::{Volume, Voxels};
use crate::error::Error;
use crate::ops::crop::{self, Fill};

/// More steps than any pipeline has: a longer list is no work of ours.
const MAX_STEPS: usize = 256;
/// Bytes that a slab of the result should have.
const SLAB_BYTES: usize = 32 << 20;

/// Steps, ready to run on volumes of one outline.
#[derive(Clone, Debug)]
pub struct Chain {
    pub base: Outline,
    pub steps: Vec<Step>,
    pub(super) ready: Vec<Ready>,
}

/// A box of the base, `[c, z, y, x]`; it lies inside, and may be empty.
pub type BoxOfBase<'a> = dyn Fn(Region) -> Result<Voxels, Error> + 'a;

impl Chain {
    pub fn new(base: Outline, steps: Vec<Step>) -> Result<Self, Error> {
        let mut chain = Self { base, steps: Vec::new(), ready: Vec::new() };
        steps.into_iter().try_for_each(|s| chain.push(s))?;
        Ok(chain)
    }

    pub fn push(&mut self, step: Step) -> Result<(), Error> {
        if self.steps.len() == MAX_STEPS {
            return Err(Error::Geometry {
                what: "chain of steps".into(),
                why: format!("more than {MAX_STEPS} of them: keep a node between"),
            });
        }
        self.ready.push(step.ready(self.after().clone())?);
        self.steps.push(step);
        Ok(())
    }

    /// What comes out.
    pub fn after(&self) -> &Outline {
        self.ready.last().map_or(&self.base, |r| &r.after)
    }

    /// The box of the base that a box of the result is made from.
    pub fn needs(&self, region: Region) -> Region {
        self.ready.iter().rev().fold(region, |region, r| r.needs(region))
    }

    /// A box of the result, `[c, z, y, x]`, with the bits that the whole has there.
    /// - `region`: inside the result
    pub fn region(&self, region: Region, base: &BoxOfBase) -> Result<Voxels, Error> {
        let mut regions = vec![region];
        for ready in self.ready.iter().rev() {
            regions.push(ready.needs(regions[regions.len() - 1]));
        }
        regions.reverse();
        let mut voxels = base(regions[0])?;
        let mut i = 0;
        while i < self.ready.len() {
            let (mut then, mut end) = (Vec::new(), i + 1);
            while let Some(maps) = self.ready.get(end).filter(|_| self.ready[i].takes_maps()).and_then(Ready::maps) {
                then.extend_from_slice(maps);
                end += 1;
            }
            // Maps leave a box where it is.
            voxels = self.ready[i].run(voxels, regions[i], regions[end], &then)?;
            i = end;
        }
        Ok(voxels)
    }

    /// The result in slabs along z, in order: planes that start at the first number, `[c, z, y, x]`.
    pub fn slabs(&self, base: &BoxOfBase, mut take: impl FnMut(usize, Voxels) -> Result<(), Error>) -> Result<(), Error> {
        let size = self.after().geometry.size;
        let depth = self.slab_depth();
        for z in (0..size.z).step_by(depth) {
            let region = Region { start: Zyx::new(z as i64, 0, 0), size: Zyx { z: depth.min(size.z - z), ..size } };
            take(z, self.region(region, base)?)?;
        }
        Ok(())
    }

    /// Planes of a slab: few, so that little is in memory, and as many as it takes for the base not to be read again and again (steps that need all of it).
    pub fn slab_depth(&self) -> usize {
        let after = self.after();
        let size = after.geometry.size;
        let plane = (size.y * size.x * after.channels.len().max(1) * 4).max(1);
        let mut depth = (SLAB_BYTES / plane).clamp(1, 256).max(8).min(size.z);
        let read = |depth: usize| -> usize {
            let slab = |z: usize| Region { start: Zyx::new(z as i64, 0, 0), size: Zyx { z: depth.min(size.z - z), ..size } };
            (0..size.z).step_by(depth).map(|z| self.needs(slab(z)).size.count()).sum()
        };
        while depth < size.z && read(depth) > 2 * self.base.geometry.size.count() {
            depth = (2 * depth).min(size.z);
        }
        depth
    }

    /// Labels of the base, whole, carried through all steps. `[z, y, x]`
    pub fn labels(&self, labels: Vec<u8>, from: usize) -> Vec<u8> {
        self.ready[from..].iter().fold(labels, |labels, r| r.labels(labels))
    }

    /// Whether labels go through the steps from this one on untouched.
    pub fn leaves_labels(&self, from: usize) -> bool {
        self.ready[from..].iter().all(Ready::leaves_labels)
    }

    /// The chain on a volume in memory.
    pub fn apply(&self, v: Volume) -> Result<Volume, Error> {
        let size = v.geometry.size;
        let voxels = if self.steps.is_empty() {
            v.voxels
        } else {
            let held = &v.voxels;
            self.region(Region::whole(self.after().geometry.size), &|r| Ok(held.cut(size, r)))?
        };
        Ok(self.after().with(voxels, v.labels.map(|l| self.labels(l.voxels, 0))))
    }
}

impl Voxels {
    /// A box, `[c, z, y, x]`.
    /// - `size`: of each channel; `region`: inside it
    pub(super) fn cut(&self, size: Zyx<usize>, region: Region) -> Voxels {
        if region == Region::whole(size) {
            return self.clone();
        }
        same_type!(self, x => crop::cut(x, size, region, Fill::Edge))
    }
}

/// A volume after some steps, in memory.
pub fn apply(v: Volume, steps: Vec<Step>) -> Result<Volume, Error> {
    Chain::new(Outline::of(&v), steps)?.apply(v)
}
