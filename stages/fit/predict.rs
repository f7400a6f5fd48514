//! A whole volume through one network or several, window by window, and its labels on any grid. Memory: a layer of windows, the planes of logits that the
//! grid still needs, and the labels.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::{Geometry, Zyx};
use voxmill_schemas::region::Region;

use crate::error::Error;
use crate::model::{Field, Predictor, Window, slide_layers};
use crate::ops::regrid::Stitch;
use crate::sample::cut::OUTSIDE;
use crate::store::Store;
use crate::volume::StoredVolume;

/// An axis that windows are mirrored along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    Z,
    Y,
    X,
}

/// What is averaged where a window is looked at several times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mean {
    /// The softmax of each look.
    #[default]
    Probabilities,
    /// The logits, as nnU-Net v2 does.
    Logits,
}

/// Networks that look at the same windows, each at all mirror images along `mirror`.
pub struct Looks<'a> {
    pub predictors: Vec<&'a Predictor>,
    pub mirror: Zyx<bool>,
    pub mean: Mean,
}

impl<'a> Looks<'a> {
    /// One network, once.
    pub fn one(predictor: &'a Predictor) -> Self {
        Self { predictors: vec![predictor], mirror: Zyx::splat(false), mean: Mean::Probabilities }
    }

    /// How often a window is looked at.
    pub fn count(&self) -> usize {
        self.predictors.len() << self.mirror.to_array().iter().filter(|m| **m).count()
    }

    /// [n, channel, read] → [n, class, size]: logits of one look, the mean of several.
    fn at(&self, patches: Vec<f32>, n: usize, classes: usize, read: Zyx<usize>, size: Zyx<usize>) -> Result<Vec<f32>, Error> {
        if self.count() == 1 {
            return self.predictors[0].forward(patches, n, read);
        }
        let mut sum = vec![0f32; n * classes * size.count()];
        let share = 1.0 / self.count() as f32;
        for predictor in &self.predictors {
            for flips in mirrors(self.mirror) {
                let mut seen = patches.clone();
                mirrored(&mut seen, read, flips);
                let mut logits = predictor.forward(seen, n, read)?;
                mirrored(&mut logits, size, flips);
                if self.mean == Mean::Probabilities {
                    softmax(&mut logits, classes, size.count());
                }
                sum.iter_mut().zip(&logits).for_each(|(sum, v)| *sum += share * v);
            }
        }
        Ok(sum)
    }
}

/// Every choice of axes among those that may be mirrored, none first.
fn mirrors(may: Zyx<bool>) -> impl Iterator<Item = Zyx<bool>> {
    (0..8usize)
        .map(|bits| Zyx::new(bits & 4 > 0, bits & 2 > 0, bits & 1 > 0))
        .filter(move |f| f.zip(may).map(|(f, may)| may || !f).to_array().iter().all(|ok| *ok))
}

/// Mirrors maps [.., z, y, x] in place along some axes.
fn mirrored(maps: &mut [f32], size: Zyx<usize>, flips: Zyx<bool>) {
    let plane = size.y * size.x;
    for map in maps.chunks_exact_mut(size.count()) {
        if flips.z {
            for z in 0..size.z / 2 {
                let (a, b) = map.split_at_mut((size.z - 1 - z) * plane);
                a[z * plane..][..plane].swap_with_slice(&mut b[..plane]);
            }
        }
        if flips.y {
            for plane in map.chunks_exact_mut(plane) {
                for y in 0..size.y / 2 {
                    let (a, b) = plane.split_at_mut((size.y - 1 - y) * size.x);
                    a[y * size.x..][..size.x].swap_with_slice(&mut b[..size.x]);
                }
            }
        }
        if flips.x {
            map.chunks_exact_mut(size.x).for_each(<[f32]>::reverse);
        }
    }
}

/// Logits [n, class, voxel] → probabilities, in place.
fn softmax(logits: &mut [f32], classes: usize, voxels: usize) {
    for sample in logits.chunks_exact_mut(classes * voxels) {
        for i in 0..voxels {
            let at = |c: usize| c * voxels + i;
            let top = (0..classes).map(|c| sample[at(c)]).fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for c in 0..classes {
                sample[at(c)] = (sample[at(c)] - top).exp();
                sum += sample[at(c)];
            }
            (0..classes).for_each(|c| sample[at(c)] /= sum);
        }
    }
}

/// Class ids of a volume on the grid `to`, `[z, y, x]`: logits (or their mean) are interpolated, then the largest wins. `go_on` is asked before every batch
/// of windows.
///
/// Windows whose channels each hold one value throughout, such as air that was clipped, are looked at once: equal windows have equal answers.
pub fn labels(
    v: &StoredVolume,
    looks: &Looks,
    window: &Window,
    n_outputs: usize,
    to: &Geometry,
    store: &Store,
    go_on: &mut dyn FnMut() -> Result<(), Error>,
) -> Result<Vec<u8>, Error> {
    let window = &Window { margin: looks.predictors[0].margin(), ..window.clone() };
    let field = Field { size: v.geometry.size, channels: v.channels.len(), classes: n_outputs };
    let mut stitch = Stitch::new(n_outputs, &v.geometry, to);
    let mut read = |region: Region| -> Result<Vec<f32>, Error> { Ok(v.read(region, OUTSIDE, store)?.voxels) };
    let mut flat = Flat::default();
    let mut predict = |patches: Vec<f32>, n: usize| -> Result<Vec<f32>, Error> {
        go_on()?;
        flat.around(patches, n, field, |patches, n| looks.at(patches, n, n_outputs, window.read_size(), window.size))
    };
    slide_layers(field, window, &mut read, &mut predict, &mut |_, planes| {
        stitch.push(planes);
        Ok(())
    })?;
    Ok(stitch.finish())
}

/// The answer to the last window that held one value a channel.
#[derive(Default)]
struct Flat {
    /// Bits of the values, and the answer.
    last: Option<(Vec<u32>, Vec<f32>)>,
}

impl Flat {
    /// `look` at the windows that are not such a window again.
    fn around(
        &mut self,
        patches: Vec<f32>,
        n: usize,
        field: Field,
        look: impl Fn(Vec<f32>, usize) -> Result<Vec<f32>, Error>,
    ) -> Result<Vec<f32>, Error> {
        let per = patches.len() / n.max(1);
        let values: Vec<Option<Vec<u32>>> = patches.chunks_exact(per.max(1)).map(|p| one_value_a_channel(p, field.channels)).collect();
        if values.iter().all(Option::is_none) {
            return look(patches, n);
        }
        let mut out = Vec::new();
        for (patch, values) in patches.chunks_exact(per).zip(values) {
            let known = self.last.as_ref().filter(|(key, _)| values.as_ref() == Some(key));
            let answer = match known {
                Some((_, answer)) => answer.clone(),
                None => look(patch.to_vec(), 1)?,
            };
            out.extend_from_slice(&answer);
            if let Some(values) = values {
                self.last = Some((values, answer));
            }
        }
        Ok(out)
    }
}

fn one_value_a_channel(patch: &[f32], channels: usize) -> Option<Vec<u32>> {
    let of_channel = |c: &[f32]| {
        let first = c[0].to_bits();
        c.iter().all(|v| v.to_bits() == first).then_some(first)
    };
    patch.chunks_exact((patch.len() / channels.max(1)).max(1)).map(of_channel).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn mirroring_twice_changes_nothing_and_every_choice_of_axes_is_made() {
        let size = Zyx::new(2, 3, 4);
        let maps: Vec<f32> = (0..48).map(|v| v as f32).collect();
        for flips in mirrors(Zyx::splat(true)) {
            let mut m = maps.clone();
            mirrored(&mut m, size, flips);
            let at = |z: usize, y: usize, x: usize| {
                let (z, y, x) = (if flips.z { 1 - z } else { z }, if flips.y { 2 - y } else { y }, if flips.x { 3 - x } else { x });
                (24 + (z * 3 + y) * 4 + x) as f32
            };
            assert_eq!(m[24 + 5 * 4 + 1], at(1, 2, 1));
            mirrored(&mut m, size, flips);
            assert_eq!(m, maps);
        }
        assert_eq!(mirrors(Zyx::splat(true)).count(), 8);
        let some: Vec<_> = mirrors(Zyx::new(true, false, true)).collect();
        assert_eq!((some.len(), some[0]), (4, Zyx::splat(false)));
        assert!(some.iter().all(|f| !f.y));
    }

    #[test]
    fn probabilities_add_up_to_one() {
        let mut v = vec![1.0, 1000.0, 2.0, 1000.0, 3.0, 1000.0];
        softmax(&mut v, 3, 2);
        assert!((v[0] + v[2] + v[4] - 1.0).abs() < 1e-6 && (v[4] / v[2] - 1f32.exp()).abs() < 1e-5);
        assert_eq!(v[1], 1.0 / 3.0);
    }

    #[test]
    fn flat_windows_are_looked_at_once() {
        let looked = Cell::new(0);
        let mut flat = Flat::default();
        let field = Field { size: Zyx::splat(2), channels: 2, classes: 1 };
        let mut ask = |patches: Vec<f32>| {
            let n = patches.len() / 4;
            flat.around(patches, n, field, |p, n| {
                looked.set(looked.get() + n);
                Ok(p.chunks_exact(4).flat_map(|p| [p[0] + p[2], p[1] + p[3]]).collect())
            })
            .unwrap()
        };
        assert_eq!(ask(vec![1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 2.0, 2.0, 1.0, 2.0, 2.0, 2.0]), [3.0, 3.0, 3.0, 3.0, 3.0, 4.0]);
        assert_eq!(looked.get(), 2);
        assert_eq!(ask(vec![1.0, 1.0, 2.0, 2.0, 0.0, 0.0, 2.0, 2.0]), [3.0, 3.0, 2.0, 2.0]);
        assert_eq!(looked.get(), 3);
        // −0 and 0 are two values: a network may tell them apart.
        ask(vec![-0.0, -0.0, 2.0, 2.0]);
        assert_eq!(looked.get(), 4);
    }
}
