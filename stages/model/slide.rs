//! Sliding-window inference, as MONAI's `sliding_window_inference`: a grid of overlapping windows, blended where they overlap. It goes through the image in
//! layers of windows: what is held is a layer of the image and the planes that windows still to come will change, however long the image is.

use std::collections::BTreeMap;

use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;

use super::Window;
use crate::error::Error;

/// Gives windows with their margin [n, channel, read_size] and n, takes logits [n, class, window]; an error (a cancelled run, say) ends the slide.
pub type Predict<'a> = dyn FnMut(Vec<f32>, usize) -> Result<Vec<f32>, Error> + 'a;

/// What is slid over.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    pub size: Zyx<usize>,
    pub channels: usize,
    pub classes: usize,
}

/// Looks at the whole image window by window and gives its logits, [class, z, y, x].
/// - image: [channel, z, y, x]; where it is smaller than the window it is padded with 0 on both sides, the larger half after
pub fn slide(
    image: &[f32],
    channels: usize,
    size: Zyx<usize>,
    classes: usize,
    window: &Window,
    predict: &mut Predict,
) -> Result<Vec<f32>, Error> {
    let voxels = size.checked_count().filter(|v| *v > 0 && v.checked_mul(channels) == Some(image.len()));
    let Some(voxels) = voxels else {
        return Err(Error::Model { why: format!("{} values for an image of {channels} channel(s) and {size} voxels", image.len()) });
    };
    let mut read = |region: Region| -> Result<Vec<f32>, Error> {
        let mut out = vec![0f32; channels * region.size.count()];
        for_shared_rows(region, size, |inside, outside, length| {
            for c in 0..channels {
                out[c * region.size.count() + inside..][..length].copy_from_slice(&image[c * voxels + outside..][..length]);
            }
        });
        Ok(out)
    };
    let mut out = vec![0f32; classes * voxels];
    let plane = size.y * size.x;
    let mut emit = |z: usize, planes: &[f32]| -> Result<(), Error> {
        let n = planes.len() / classes.max(1);
        for (class, planes) in planes.chunks_exact(n.max(1)).enumerate() {
            out[class * voxels + z * plane..][..n].copy_from_slice(planes);
        }
        Ok(())
    };
    slide_layers(Field { size, channels, classes }, window, &mut read, predict, &mut emit)?;
    Ok(out)
}

/// Takes planes of logits that are done.
type Emit<'a> = dyn FnMut(usize, &[f32]) -> Result<(), Error> + 'a;

/// As [`slide`], for an image that is read and logits that are taken away layer by layer.
/// - read: the voxels of a region, [channel, z, y, x], 0 where it sticks out of the image
/// - emit: the first plane and logits of planes that are done, [class, planes, y, x]; they come in order of z, each once
pub fn slide_layers(
    field: Field,
    window: &Window,
    read: &mut dyn FnMut(Region) -> Result<Vec<f32>, Error>,
    predict: &mut Predict,
    emit: &mut Emit,
) -> Result<(), Error> {
    if let Some(f) = window.findings().into_iter().next() {
        return Err(Error::Model { why: format!("{}: {}; {}", f.field, f.message, f.help) });
    }
    let Field { size, channels, classes } = field;
    let (roi, seen, margin) = (window.size, window.read_size(), window.margin);
    let padded = size.zip(roi).map(|(n, r)| n.max(r));
    let before = padded.zip(size).map(|(p, n)| (p - n) / 2);
    let weight = window.importance();
    let plane = size.y * size.x;
    // A plane at p (counted with the padding before it) has its sums in slot p mod the window: [slot, class, y, x], and their weights.
    let mut sums = vec![0f32; roi.z * classes * plane];
    let mut weights = vec![0f32; roi.z * plane];
    let mut layers: BTreeMap<usize, Vec<Zyx<usize>>> = BTreeMap::new();
    window.starts(size).into_iter().for_each(|s| layers.entry(s.z).or_default().push(s));
    let firsts: Vec<usize> = layers.keys().copied().collect();
    // The layer as it is read: padding and margin on all sides.
    let layer_size = Zyx::new(seen.z, padded.y + 2 * margin.y, padded.x + 2 * margin.x);
    for (i, (first, starts)) in layers.iter().enumerate() {
        let at = Zyx::new(*first, 0, 0).zip(before.zip(margin).map(|(b, m)| b + m)).map(|(s, b)| s as i64 - b as i64);
        let layer = read(Region { start: at, size: layer_size })?;
        for batch in starts.chunks(window.batch) {
            let mut patches = Vec::with_capacity(batch.len() * channels * seen.count());
            for start in batch {
                for c in 0..channels {
                    for z in 0..seen.z {
                        for y in start.y..start.y + seen.y {
                            let row = ((c * layer_size.z + z) * layer_size.y + y) * layer_size.x + start.x;
                            patches.extend_from_slice(&layer[row..row + seen.x]);
                        }
                    }
                }
            }
            let logits = predict(patches, batch.len())?;
            if logits.len() != batch.len() * classes * roi.count() {
                return Err(Error::Model { why: format!("{} logits for {} windows of {classes} classes", logits.len(), batch.len()) });
            }
            for (logits, start) in logits.chunks_exact(classes * roi.count()).zip(batch) {
                // Rows of one plane that window and image share; the plane itself is counted here.
                let first = Zyx { z: 0, ..start.zip(before).map(|(s, b)| s as i64 - b as i64) };
                let flat = Region { start: first, size: Zyx { z: 1, ..roi } };
                for z in 0..roi.z {
                    let slot = (start.z + z) % roi.z;
                    for_shared_rows(flat, Zyx { z: 1, ..size }, |inside, outside, length| {
                        let inside = z * roi.y * roi.x + inside;
                        let w = &weight[inside..][..length];
                        for (sum, w) in weights[slot * plane + outside..][..length].iter_mut().zip(w) {
                            *sum += w;
                        }
                        for c in 0..classes {
                            let from = &logits[c * roi.count() + inside..][..length];
                            let to = &mut sums[(slot * classes + c) * plane + outside..][..length];
                            for ((sum, v), w) in to.iter_mut().zip(from).zip(w) {
                                *sum += v * w;
                            }
                        }
                    });
                }
            }
        }
        // No window to come changes planes before the next layer.
        let end = firsts.get(i + 1).copied().unwrap_or(padded.z);
        let kept = (*first).max(before.z)..end.min(before.z + size.z);
        if !kept.is_empty() {
            let mut done = Vec::with_capacity(classes * kept.len() * plane);
            for c in 0..classes {
                for p in kept.clone() {
                    let slot = p % roi.z;
                    let sums = &sums[(slot * classes + c) * plane..][..plane];
                    done.extend(sums.iter().zip(&weights[slot * plane..][..plane]).map(|(sum, w)| sum / w));
                }
            }
            emit(kept.start - before.z, &done)?;
        }
        for p in *first..end {
            let slot = p % roi.z;
            sums[slot * classes * plane..][..classes * plane].fill(0.0);
            weights[slot * plane..][..plane].fill(0.0);
        }
    }
    Ok(())
}

/// Calls `f(offset in the region, offset in the image, length)` for every row that a region and an image of `size` share.
fn for_shared_rows(region: Region, size: Zyx<usize>, mut f: impl FnMut(usize, usize, usize)) {
    // Along one axis: first shared voxel in the region, in the image, and how many there are.
    let share = |start: i64, length: usize, n: usize| {
        let (first, end) = (start.max(0), (start + length as i64).min(n as i64));
        ((first - start) as usize, first as usize, (end - first).max(0) as usize)
    };
    let (wz, iz, nz) = share(region.start.z, region.size.z, size.z);
    let (wy, iy, ny) = share(region.start.y, region.size.y, size.y);
    let (wx, ix, nx) = share(region.start.x, region.size.x, size.x);
    if nx == 0 {
        return;
    }
    for z in 0..nz {
        for y in 0..ny {
            let inside = ((wz + z) * region.size.y + wy + y) * region.size.x + wx;
            f(inside, ((iz + z) * size.y + iy + y) * size.x + ix, nx);
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
    fn planes_come_once_and_in_order_and_no_more_than_a_layer_is_read() {
        for (z, overlap) in [(40, 0.25), (17, 0.5), (8, 0.25), (5, 0.0), (23, 0.9)] {
            let size = Zyx::new(z, 9, 6);
            let w = Window { overlap, margin: Zyx::new(1, 0, 2), ..window(Zyx::new(8, 4, 8)) };
            let image: Vec<f32> = (0..size.count()).map(|v| (v % 53) as f32 + 1.0).collect();
            let mut read = |r: Region| -> Result<Vec<f32>, Error> {
                assert!(r.size.z <= 10, "a layer");
                let mut out = vec![0f32; r.size.count()];
                for_shared_rows(r, size, |inside, outside, n| out[inside..][..n].copy_from_slice(&image[outside..][..n]));
                Ok(out)
            };
            // The middle of what is read.
            let mut predict = |x: Vec<f32>, n: usize| {
                let per = x.len() / n;
                let row = |p: &[f32], z: usize, y: usize| p[((z + 1) * 4 + y) * 12 + 2..][..8].to_vec();
                Ok(x.chunks_exact(per)
                    .flat_map(|p| (0..8).flat_map(|z| (0..4).flat_map(move |y| row(p, z, y))).collect::<Vec<_>>())
                    .collect())
            };
            let mut out = Vec::new();
            let mut emit = |first: usize, planes: &[f32]| -> Result<(), Error> {
                assert_eq!(first * 54, out.len());
                out.extend_from_slice(planes);
                Ok(())
            };
            slide_layers(Field { size, channels: 1, classes: 1 }, &w, &mut read, &mut predict, &mut emit).unwrap();
            assert_eq!(out.len(), image.len());
            assert!(out.iter().zip(&image).all(|(a, b)| (a - b).abs() <= 1e-4 * b), "{z} {overlap}");
        }
    }

    #[test]
    fn nonsense_is_refused_before_the_first_window() {
        let bad = Window { overlap: 1.0, ..window(Zyx::splat(4)) };
        assert!(slide(&[0.0; 64], 1, Zyx::splat(4), 1, &bad, &mut |w, _| Ok(w)).is_err());
        assert!(slide(&[0.0; 63], 1, Zyx::splat(4), 1, &window(Zyx::splat(4)), &mut |w, _| Ok(w)).is_err());
    }
}
