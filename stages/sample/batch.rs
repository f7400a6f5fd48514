//! Patches side by side in contiguous buffers, as the network takes them.

use voxmill_schemas::geometry::Zyx;

use crate::ops::augment::Sample;

/// One step's input.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// `[n, c, z, y, x]`
    pub images: Vec<f32>,
    /// `[n, z, y, x]`
    pub labels: Vec<u8>,
    pub n: usize,
    pub size: Zyx<usize>,
    /// Index of the case of each patch.
    pub cases: Vec<u32>,
}

/// Memory of one batch in bytes.
pub fn bytes(n: usize, channels: usize, size: Zyx<usize>) -> u64 {
    n as u64 * size.count() as u64 * (4 * channels as u64 + 1)
}

/// Puts patches of one size and number of channels side by side. A patch without labels counts as background.
pub fn collate(patches: Vec<(u32, Sample)>, channels: usize, size: Zyx<usize>) -> Batch {
    let n = patches.len();
    let mut batch = Batch {
        images: Vec::with_capacity(n * channels * size.count()),
        labels: Vec::with_capacity(n * size.count()),
        n,
        size,
        cases: Vec::with_capacity(n),
    };
    for (case, p) in patches {
        debug_assert_eq!((p.size, p.channels), (size, channels));
        batch.images.extend_from_slice(&p.voxels);
        match p.labels {
            Some(labels) => batch.labels.extend_from_slice(&labels),
            None => batch.labels.resize(batch.labels.len() + size.count(), 0),
        }
        batch.cases.push(case);
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_stand_in_their_order() {
        let size = Zyx::new(1, 1, 2);
        let sample = |v: f32, l| Sample { size, channels: 2, voxels: vec![v; 4], labels: l };
        let b = collate(vec![(3, sample(1.0, Some(vec![0, 2]))), (1, sample(5.0, None))], 2, size);
        assert_eq!(b.images, [1., 1., 1., 1., 5., 5., 5., 5.]);
        assert_eq!(b.labels, [0, 2, 0, 0]);
        assert_eq!((b.n, b.cases), (2, vec![3, 1]));
        assert_eq!(bytes(2, 2, size), 2 * 2 * 9);
    }
}
