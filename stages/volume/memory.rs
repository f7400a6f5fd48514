//! What it takes in memory to make a volume: the one formula by which the engine admits cases side by side. Its terms follow `chain.rs`, `lazy.rs` and `writer.rs`.

use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;

use super::chain::Chain;
use super::layout::{Dtype, Layout};
use super::step::{Outline, Step};
use super::stored::StoredVolume;
use crate::error::Error;
use crate::stage::{Input, default_memory_bytes_of};

/// Stacks, handles, buffers of a few threads.
const SMALL_BYTES: u64 = 4 << 20;

/// Peak memory of a stage that streams: it writes a volume after some steps, slab by slab, whatever the chain it comes from.
/// - `steps`: of a volume of this outline; whether it has padding is not looked for: `true`
pub fn streamed_bytes(input: &Input, steps: impl FnOnce(&Outline) -> Result<Vec<Step>, Error>) -> u64 {
    let stored = StoredVolume::open(&input.dir, input.manifest.key);
    let bytes = stored.and_then(|v| v.streamed(steps(&v.outline())?));
    // What cannot be opened fails when the case runs.
    bytes.unwrap_or_else(|_| default_memory_bytes_of(input))
}

/// Peak memory of a stage that holds a volume whole and changes it to float32, with so many more copies in float32 beside the result.
pub fn whole_bytes(input: &Input, copies: u64) -> u64 {
    let Ok(v) = StoredVolume::open(&input.dir, input.manifest.key) else { return default_memory_bytes_of(input) };
    let (read, wide) = (v.read_bytes(), v.wide_bytes());
    let of = Outline { dtype: Dtype::F32, ..v.outline() };
    let turned = if v.outline().dtype == Dtype::F32 { read } else { read + wide };
    turned.max(wide + copies * wide).max(wide + written(&of)) + v.label_bytes() + SMALL_BYTES
}

/// What the voxels take as they are, and in float32 beside that where they are looked through so: a stage that looks before it streams.
/// - `copies`: in float32; the first is the voxels themselves where they are that
pub fn looked_bytes(input: &Input, copies: u64) -> u64 {
    let Ok(v) = StoredVolume::open(&input.dir, input.manifest.key) else { return default_memory_bytes_of(input) };
    let seen = if v.outline().dtype == Dtype::F32 { copies.saturating_sub(1) } else { copies };
    v.read_bytes() + seen * v.wide_bytes() + v.label_bytes() + SMALL_BYTES
}

impl StoredVolume {
    fn label_bytes(&self) -> u64 {
        if self.has_labels() { self.geometry.size.count() as u64 } else { 0 }
    }

    /// The voxels in float32.
    fn wide_bytes(&self) -> u64 {
        4 * (self.channels.len() * self.geometry.size.count()) as u64
    }

    /// The voxels in memory, and what it takes to make them where they are not stored.
    fn read_bytes(&self) -> u64 {
        let Some((array, chain)) = &self.image else { return 0 };
        let held = self.wide_bytes() / 4 * chain.after().dtype.bytes() as u64;
        held + if chain.steps.is_empty() { 0 } else { chain.streaming(&array.layout) }
    }

    fn streamed(&self, steps: Vec<Step>) -> Result<u64, Error> {
        let Some((array, chain)) = &self.image else { return Ok(SMALL_BYTES) };
        let (first, mut chain) = (chain.steps.len(), chain.clone());
        steps.into_iter().try_for_each(|s| chain.push(s))?;
        let after = chain.after();
        // Labels go first; those of the result stay.
        let labels = if self.has_labels() { after.geometry.size.count() as u64 } else { 0 };
        let before = if chain.leaves_labels(first) { 0 } else { self.label_bytes() };
        let voxels = if chain.steps.is_empty() { 0 } else { chain.streaming(&array.layout) + written(after) };
        Ok(labels + before.max(voxels) + SMALL_BYTES)
    }
}

/// Layers of bricks on their way to the disk: one a channel that is not full, and three that are compressed, wait and are written, by a third smaller.
fn written(of: &Outline) -> u64 {
    let layout = Layout::new(of.dtype, Some(of.channels.len()), of.geometry.size);
    let layer = (layout.brick.z.min(of.geometry.size.z) * of.geometry.size.y * of.geometry.size.x * of.dtype.bytes()) as u64;
    layer * (of.channels.len() as u64 + 2)
}

/// Bricks that a box overlaps, in all channels.
fn bricks_of(base: &Layout, read: Region) -> usize {
    let n = read.start.zip(read.end()).zip(base.brick).map(|((start, end), brick)| (end as usize).div_ceil(brick) - start as usize / brick);
    n.count() * base.n_channels()
}

/// The smallest box around both.
fn hull(a: Region, b: Region) -> Region {
    let start = a.start.zip(b.start).map(|(a, b)| a.min(b));
    let size = a.end().zip(b.end()).map(|(a, b)| a.max(b)).zip(start).map(|(e, s)| (e - s) as usize);
    Region { start, size }
}

impl Chain {
    /// The largest slab in the making, and the bricks of the base that this slab and the one before it hold.
    fn streaming(&self, base: &Layout) -> u64 {
        let (size, depth) = (self.after().geometry.size, self.slab_depth());
        let slab = |z: usize| Region { start: Zyx::new(z as i64, 0, 0), size: Zyx { z: depth.min(size.z - z), ..size } };
        let (mut before, mut most): (Option<Region>, u64) = (None, 0);
        for z in (0..size.z).step_by(depth) {
            let read = Some(self.needs(slab(z))).filter(|r| !r.is_empty());
            // Neighbouring slabs share bricks.
            let both = before.into_iter().chain(read).reduce(hull);
            let bricks = both.map_or(0, |both| bricks_of(base, both) * base.brick_bytes());
            most = most.max(self.slab_bytes(slab(z)) + bricks as u64);
            before = read;
        }
        most
    }

    /// What is in memory at once while a box is made: what one step reads, what it makes, and what it needs between.
    fn slab_bytes(&self, region: Region) -> u64 {
        let (mut to, mut most) = (region, 0);
        for ready in self.ready.iter().rev() {
            let from = ready.needs(to);
            let n = ready.before.channels.len();
            let bytes = |r: Region, of: &Outline| r.size.count() * n * of.dtype.bytes();
            let read = if ready.is_in_place() { 0 } else { bytes(from, &ready.before) };
            most = most.max(read + bytes(to, &ready.after) + ready.between_bytes(from, to));
            to = from;
        }
        most as u64
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use voxmill_schemas::artifact::{ContentHash, Key, Kind, Manifest, Recipe};
    use voxmill_schemas::geometry::Geometry;

    use super::*;
    use crate::ops::intensity::Map;
    use crate::ops::resample::{Interpolation, LabelInterpolation};
    use crate::volume::{About, Volume, Voxels};

    fn input(dir: &std::path::Path, size: Zyx<usize>) -> Input {
        let geometry = Geometry::axis_aligned(size, Zyx::splat(1.0));
        let voxels = Voxels::I16(vec![0; size.count()]);
        let v = Volume { geometry, channels: vec!["CT".into()], voxels, labels: None, about: About::of(geometry) };
        v.write(dir, None).unwrap();
        let (key, content, facts) = (Key::of(b"x"), ContentHash::of(b""), v.facts().facts);
        let recipe = Recipe { stage: "assemble".into(), version: 1, config: serde_json::Value::Null, inputs: Default::default(), seed: 0 };
        let (input_keys, files) = (Default::default(), Default::default());
        let manifest = Manifest { key, content, kind: Kind::Volume, case: None, recipe, input_keys, facts, files, bytes: 0, layout: 1 };
        Input { dir: dir.to_path_buf(), manifest: Arc::new(manifest), rows: None }
    }

    fn map(_: &Outline) -> Result<Vec<Step>, Error> {
        Ok(vec![Step::Map { maps: vec![Map::Clip { low: 0.0, high: 1.0 }], unit: "normalised".into() }])
    }

    #[test]
    fn a_longer_volume_takes_no_more_where_it_streams() {
        let (short, long) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (short, long) = (input(short.path(), Zyx::new(600, 128, 128)), input(long.path(), Zyx::new(1800, 128, 128)));
        let (a, b) = (streamed_bytes(&short, map), streamed_bytes(&long, map));
        assert!(b < a + a / 10, "{a} {b}");
        assert!(whole_bytes(&long, 0) > 2 * whole_bytes(&short, 0) && whole_bytes(&long, 0) > 1800 * 128 * 128 * 6);
    }

    #[test]
    fn what_reads_all_of_the_base_or_filters_it_takes_more() {
        let dir = tempfile::tempdir().unwrap();
        let v = input(dir.path(), Zyx::new(200, 100, 100));
        let on = |image, angle: f64| {
            streamed_bytes(&v, |of| {
                let mut to = of.geometry;
                let (s, c) = angle.sin_cos();
                to.axes_mm.y.0 = [-s, c, 0.0];
                to.axes_mm.x.0 = [1.1 * c, 1.1 * s, 0.0];
                let labels = LabelInterpolation::Nearest;
                Ok(vec![Step::Resample { to, image, labels, sigma: Zyx::splat(0.0), padding: None, outside: None }])
            })
        };
        let (linear, cubic) = (on(Interpolation::Linear, 0.0), on(Interpolation::Cubic, 0.0));
        assert!(cubic > linear, "{linear} {cubic}");
        // Coefficients of the whole in float64.
        assert!(on(Interpolation::Cubic, 0.2) > 200 * 100 * 100 * (2 + 4 + 8));
    }
}
