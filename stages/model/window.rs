//! Sliding-window inference, as MONAI's `sliding_window_inference`: a grid of overlapping windows, blended where they overlap.
//! Memory: the image, one weighted sum a class and one weight map; never all windows at once.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::window_starts;

use crate::error::Error;
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

fn eighth() -> f64 {
    0.125
}

impl Window {
    /// Windows of `size` with MONAI's defaults, blended by a Gaussian, one at a time.
    pub fn of(size: Zyx<usize>) -> Self {
        Self { size, overlap: quarter(), blend: Blend::Gaussian, batch: one(), sigma_scale: eighth() }
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

    /// Bytes that `slide` holds beside the image: sums, weights and a batch of windows.
    pub fn bytes(&self, size: Zyx<usize>, channels: usize, classes: usize) -> u64 {
        let voxels = |s: Zyx<usize>| s.to_array().iter().fold(1u64, |a, n| a.saturating_mul(*n as u64));
        let padded = voxels(size.zip(self.size).map(|(n, roi)| n.max(roi)));
        let sums = padded.saturating_mul(classes as u64 + 1);
        let windows = voxels(self.size).saturating_mul((self.batch.max(1) * (channels + classes) + 1) as u64);
        sums.saturating_add(windows).saturating_mul(4)
    }
}

/// Looks at the whole image window by window and gives its logits, [class, z, y, x].
/// - image: [channel, z, y, x]; where it is smaller than the window it is padded with 0 on both sides, the larger half after
/// - predict: windows [n, channel, window] and n → logits [n, class, window]; an error (a cancelled run, say) ends the slide
pub fn slide(
    image: &[f32],
    channels: usize,
    size: Zyx<usize>,
    classes: usize,
    window: &Window,
    predict: &mut dyn FnMut(Vec<f32>, usize) -> Result<Vec<f32>, Error>,
) -> Result<Vec<f32>, Error> {
    if let Some(f) = window.findings().into_iter().next() {
        return Err(Error::Model { why: format!("{}: {}; {}", f.field, f.message, f.help) });
    }
    let voxels = size.checked_count().filter(|v| *v > 0 && v.checked_mul(channels) == Some(image.len()));
    let Some(voxels) = voxels else {
        return Err(Error::Model { why: format!("{} values for an image of {channels} channel(s) and {size} voxels", image.len()) });
    };
    let roi = window.size;
    let padded = size.zip(roi).map(|(n, r)| n.max(r));
    let before = padded.zip(size).map(|(p, n)| (p - n) / 2);
    let weight = window.importance();
    // Sums lie on the image's own grid: what falls on padding is never kept.
    let mut sums = vec![0f32; classes * voxels];
    let mut weights = vec![0f32; voxels];
    for batch in window.starts(size).chunks(window.batch) {
        let mut patches = vec![0f32; batch.len() * channels * roi.count()];
        for (patch, start) in patches.chunks_exact_mut(channels * roi.count()).zip(batch) {
            for_rows(size, before, *start, roi, |inside, outside, length| {
                for c in 0..channels {
                    let from = &image[c * voxels + outside..][..length];
                    patch[c * roi.count() + inside..][..length].copy_from_slice(from);
                }
            });
        }
        let logits = predict(patches, batch.len())?;
        if logits.len() != batch.len() * classes * roi.count() {
            return Err(Error::Model { why: format!("{} logits for {} windows of {classes} classes", logits.len(), batch.len()) });
        }
        for (logits, start) in logits.chunks_exact(classes * roi.count()).zip(batch) {
            for_rows(size, before, *start, roi, |inside, outside, length| {
                let w = &weight[inside..][..length];
                for (sum, w) in weights[outside..][..length].iter_mut().zip(w) {
                    *sum += w;
                }
                for c in 0..classes {
                    let from = &logits[c * roi.count() + inside..][..length];
                    for ((sum, v), w) in sums[c * voxels + outside..][..length].iter_mut().zip(from).zip(w) {
                        *sum += v * w;
                    }
                }
            });
        }
    }
    for class in sums.chunks_exact_mut(voxels) {
        for (sum, w) in class.iter_mut().zip(&weights) {
            *sum /= w;
        }
    }
    Ok(sums)
}

/// Calls `f(offset in the window, offset in the image, length)` for every row that window and image share.
fn for_rows(size: Zyx<usize>, before: Zyx<usize>, start: Zyx<usize>, roi: Zyx<usize>, mut f: impl FnMut(usize, usize, usize)) {
    // Along one axis: first shared voxel in the window, in the image, and how many there are.
    let share = |n: usize, before: usize, start: usize, roi: usize| {
        let first = before.max(start);
        let end = (before + n).min(start + roi);
        (first - start, first - before, end.saturating_sub(first))
    };
    let (wz, iz, nz) = share(size.z, before.z, start.z, roi.z);
    let (wy, iy, ny) = share(size.y, before.y, start.y, roi.y);
    let (wx, ix, nx) = share(size.x, before.x, start.x, roi.x);
    for z in 0..nz {
        for y in 0..ny {
            f(((wz + z) * roi.y + wy + y) * roi.x + wx, ((iz + z) * size.y + iy + y) * size.x + ix, nx);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn window(size: Zyx<usize>) -> Window {
        Window { batch: 3, ..Window::of(size) }
    }

    #[test]
    fn a_predictor_that_copies_gives_the_image_back() {
        let size = Zyx::new(7, 20, 33);
        let image: Vec<f32> = (0..size.count()).map(|v| (v % 101) as f32).collect();
        let out = slide(&image, 1, size, 1, &window(Zyx::new(8, 8, 16)), &mut |w, _| Ok(w)).unwrap();
        assert_eq!(out.len(), image.len());
        assert!(out.iter().zip(&image).all(|(a, b)| (a - b).abs() <= 1e-4 * b.abs().max(1.0)));
    }

    #[test]
    fn batches_do_not_change_the_result() {
        let size = Zyx::new(9, 9, 9);
        let image: Vec<f32> = (0..size.count()).map(|v| (v * v % 13) as f32).collect();
        let run = |batch| {
            let w = Window { batch, ..window(Zyx::splat(4)) };
            slide(&image, 1, size, 2, &w, &mut |x, n| {
                let per = x.len() / n;
                Ok(x.chunks_exact(per)
                    .flat_map(|p| p.iter().map(|v| v * 2.0).chain(p.iter().map(|v| v + 1.0)).collect::<Vec<_>>())
                    .collect())
            })
            .unwrap()
        };
        assert_eq!(run(1), run(7));
    }

    #[test]
    fn nonsense_is_refused_before_the_first_window() {
        let bad = Window { overlap: 1.0, ..window(Zyx::splat(4)) };
        assert!(slide(&[0.0; 64], 1, Zyx::splat(4), 1, &bad, &mut |w, _| Ok(w)).is_err());
        assert!(slide(&[0.0; 63], 1, Zyx::splat(4), 1, &window(Zyx::splat(4)), &mut |w, _| Ok(w)).is_err());
    }
}
