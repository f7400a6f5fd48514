//! Slices that were kept where they lie (`gaps: keep`), brought onto planes of even distance.

use voxmill_schemas::geometry::{Geometry, Zyx};

use super::{About, Labels, Volume, Voxels};
use crate::error::Error;
use crate::ops::resample::Interpolation;

/// Slices that were kept where they lie, on planes of even distance: the spacing asked for along z, or the median of theirs. Image values are mixed of
/// the two slices beside a plane, labels are those of the nearer one. Predictions go back to this grid: no file holds it.
/// - `step_mm`: from plane to plane; 0 for the median
/// - `check_size`: refuses a size with so many channels, before it is allocated
pub fn straightened(
    v: Volume,
    step_mm: f64,
    how: Interpolation,
    check_size: &dyn Fn(Zyx<usize>, usize) -> Result<(), Error>,
) -> Result<Volume, Error> {
    if v.about.is_regular() {
        return Ok(v);
    }
    let z = v.about.z_positions_mm.clone();
    let (size, own_mm) = (v.geometry.size, v.geometry.spacing_mm().z);
    let step_mm = if step_mm > 0.0 { step_mm } else { own_mm };
    let planes = (z[z.len() - 1] / step_mm + 1e-3).floor() as usize + 1;
    let new_size = Zyx { z: planes, ..size };
    check_size(new_size, v.channels.len())?;
    // Slice below each plane, and the share of the one above it.
    let between: Vec<(usize, f64)> = (0..planes)
        .map(|k| {
            let at = k as f64 * step_mm;
            let low = z.partition_point(|z| *z <= at).saturating_sub(1).min(z.len() - 2);
            (low, ((at - z[low]) / (z[low + 1] - z[low])).clamp(0.0, 1.0))
        })
        .collect();
    let plane = size.y * size.x;
    let is_nearest = how == Interpolation::Nearest;
    let padding = v.about.padding;
    let is_padding = |v: f32| padding.is_some_and(|[low, high]| low <= v as f64 && v as f64 <= high);
    let mut voxels = Vec::with_capacity(v.channels.len() * new_size.count());
    for channel in v.voxels.to_f32().chunks_exact(size.count()) {
        for (low, share) in &between {
            let (a, b) = (&channel[low * plane..][..plane], &channel[(low + 1) * plane..][..plane]);
            voxels.extend(a.iter().zip(b).map(|(a, b)| {
                let nearer = if *share > 0.5 { *b } else { *a };
                let apart = is_padding(*a) || is_padding(*b);
                if is_nearest || apart { nearer } else { (*a as f64 + (*b as f64 - *a as f64) * share) as f32 }
            }));
        }
    }
    let voxels = match &v.voxels {
        Voxels::U8(_) if is_nearest => Voxels::U8(integers(voxels, |v| v as u8)),
        Voxels::I16(_) if is_nearest => Voxels::I16(integers(voxels, |v| v as i16)),
        Voxels::U16(_) if is_nearest => Voxels::U16(integers(voxels, |v| v as u16)),
        _ => Voxels::F32(voxels),
    };
    let labels = v.labels.map(|l| {
        let slice = |(low, share): &(usize, f64)| low + (*share > 0.5) as usize;
        let voxels = between.iter().flat_map(|b| &l.voxels[slice(b) * plane..][..plane]).copied().collect();
        Labels { voxels, ..l }
    });
    let mut geometry = Geometry { size: new_size, ..v.geometry };
    geometry.axes_mm.z = geometry.axes_mm.z.scale(step_mm / own_mm);
    let about = About { z_positions_mm: Vec::new(), source: geometry, ..v.about };
    Ok(Volume { geometry, voxels, labels, about, channels: v.channels })
}
/// Integers that went through float32 unharmed: all of 16 bits do.
fn integers<T>(values: Vec<f32>, narrow: impl Fn(f32) -> T) -> Vec<T> {
    values.into_iter().map(narrow).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn slices_kept_where_they_lie_become_even_planes() {
        let geometry = Geometry::axis_aligned(Zyx::new(3, 4, 5), Zyx::new(2.0, 1.0, 1.0));
        let classes = [("Bone".to_string(), 1)].into_iter().collect();
        let labels = Some(Labels { classes, voxels: (0..60).map(|i| (i % 5 > 2) as u8).collect() });
        let voxels = Voxels::I16((0..60).map(|i| (i / 20) * 100).collect());
        let mut v = Volume { geometry, channels: vec!["CT".into()], voxels, labels, about: About::of(geometry) };
        v.about.z_positions_mm = vec![0.0, 2.0, 6.0];
        let v = straightened(v, 1.0, Interpolation::Linear, &|_, _| Ok(())).unwrap();
        assert_eq!((v.geometry.size, v.geometry.spacing_mm().z), (Zyx::new(7, 4, 5), 1.0));
        let x = v.voxels.to_f32();
        // 0, 100 and 200 at 0, 2 and 6 mm.
        assert_eq!((0..7).map(|k| x[k * 20]).collect::<Vec<_>>(), [0.0, 50.0, 100.0, 125.0, 150.0, 175.0, 200.0]);
        assert!(v.about.is_regular() && v.about.source == v.geometry && v.labels.unwrap().voxels.len() == 140);
    }
}
