//! The windows of sliding-window inference: where they lie, and what their voxels weigh where they overlap.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::window_starts;

use crate::stage::Finding;

/// How a large image is looked at piece by piece.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Voxels of one window; usually the patch of the training.
    pub size: Zyx<usize>,
    /// Share of a window that the next one covers again, 0 or more and less than 1.
    #[serde(default = "quarter")]
    pub overlap: f64,
    /// How windows are weighted where they overlap.
    #[serde(default)]
    pub blend: Blend,
    /// Windows looked at together.
    #[serde(default = "one")]
    pub batch: usize,
    /// σ of the Gaussian as a share of the window (MONAI's `sigma_scale`).
    #[serde(default = "eighth")]
    pub sigma_scale: f64,
    /// Voxels around a window that the network reads beside it ([`Network::margin`](super::Network::margin)); beyond the image they are 0.
    #[serde(skip, default = "none")]
    pub margin: Zyx<usize>,
}

/// Weight of a window's voxels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Blend {
    /// A Gaussian around the window's centre, nowhere below 0.001.
    #[default]
    Gaussian,
    /// All the same.
    Constant,
}

fn quarter() -> f64 {
    0.25
}

fn one() -> usize {
    1
}

fn none() -> Zyx<usize> {
    Zyx::splat(0)
}

fn eighth() -> f64 {
    0.125
}

impl Window {
    /// Windows of `size` with MONAI's defaults, blended by a Gaussian, one at a time.
    pub fn of(size: Zyx<usize>) -> Self {
        Self { size, overlap: quarter(), blend: Blend::Gaussian, batch: one(), sigma_scale: eighth(), margin: none() }
    }

    /// Voxels that the network reads for one window.
    pub fn read_size(&self) -> Zyx<usize> {
        self.size.zip(self.margin).map(|(n, m)| n.saturating_add(m.saturating_mul(2)))
    }

    /// Values that make no window.
    pub fn findings(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        if self.size.to_array().contains(&0) || self.size.checked_count().is_none() {
            out.push(Finding::error("window.size", format!("a window of {} voxels", self.size), "give at least 1 voxel an axis"));
        }
        if !(0.0..1.0).contains(&self.overlap) {
            out.push(Finding::error("window.overlap", format!("overlap is {}", self.overlap), "give 0 or more and less than 1"));
        }
        if self.batch == 0 {
            out.push(Finding::error("window.batch", "no window at a time", "give at least 1"));
        }
        if !(self.sigma_scale > 0.0 && self.sigma_scale.is_finite()) {
            out.push(Finding::error("window.sigma_scale", format!("it is {}", self.sigma_scale), "give a number above 0, usually 0.125"));
        }
        out
    }

    /// Where windows start in an image of `size`, z slowest. An axis shorter than the window counts as padded to it.
    pub fn starts(&self, size: Zyx<usize>) -> Vec<Zyx<usize>> {
        let [zs, ys, xs] = size.zip(self.size).map(|(n, roi)| window_starts(n.max(roi), roi, self.overlap)).to_array();
        let mut out = Vec::with_capacity(zs.len() * ys.len() * xs.len());
        for z in &zs {
            for y in &ys {
                out.extend(xs.iter().map(|x| Zyx::new(*z, *y, *x)));
            }
        }
        out
    }

    /// The weight of each voxel of a window, [z, y, x].
    pub fn importance(&self) -> Vec<f32> {
        if self.blend == Blend::Constant {
            return vec![1.0; self.size.count()];
        }
        let axis = |n: usize| -> Vec<f32> {
            let sigma = self.sigma_scale as f32 * n as f32;
            (0..n)
                .map(|i| {
                    let x = i as f32 - (n as f32 - 1.0) / 2.0;
                    (x * x / (-2.0 * sigma * sigma)).exp()
                })
                .collect()
        };
        let [wz, wy, wx] = self.size.map(axis).to_array();
        let mut out = Vec::with_capacity(self.size.count());
        for z in &wz {
            for y in &wy {
                out.extend(wx.iter().map(|x| z * y * x));
            }
        }
        // MONAI: no voxel weighs less than the smallest one or 0.001, whichever is more.
        let floor = out.iter().copied().fold(f32::INFINITY, f32::min).max(1e-3);
        out.iter_mut().for_each(|w| *w = w.max(floor));
        out
    }

    /// Bytes that `slide_layers` holds: a layer of the image, sums, weights and a batch of windows.
    pub fn bytes(&self, size: Zyx<usize>, channels: usize, classes: usize) -> u64 {
        let voxels = |s: Zyx<usize>| s.to_array().iter().fold(1u64, |a, n| a.saturating_mul(*n as u64));
        let padded = size.zip(self.size).map(|(n, roi)| n.max(roi));
        let layer = |z: usize| voxels(Zyx { z, ..padded });
        let held = layer(self.size.z)
            .saturating_mul(2 * classes as u64 + 1)
            .saturating_add(layer(self.read_size().z).saturating_mul(channels as u64));
        let windows = voxels(self.read_size()).saturating_mul((self.batch.max(1) * (channels + classes) + 1) as u64);
        held.saturating_add(windows).saturating_mul(4)
    }
}
