//! Patches side by side in contiguous buffers, as the network takes them.

use voxmill_schemas::geometry::Zyx;

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

impl Batch {
    /// Room for patches of one size and number of channels.
    pub fn zeros(n: usize, channels: usize, size: Zyx<usize>) -> Self {
        let voxels = n * size.count();
        Self { images: vec![0.0; voxels * channels], labels: vec![0; voxels], n, size, cases: Vec::with_capacity(n) }
    }

    /// Where patch `i` stands: `[c, z, y, x]` and `[z, y, x]`.
    pub fn place(&mut self, i: usize) -> (&mut [f32], &mut [u8]) {
        let (image, labels) = (self.images.len() / self.n, self.labels.len() / self.n);
        (&mut self.images[i * image..][..image], &mut self.labels[i * labels..][..labels])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_stand_in_their_order() {
        let size = Zyx::new(1, 1, 2);
        let mut b = Batch::zeros(2, 2, size);
        for (i, v) in [(0, 1.0), (1, 5.0)] {
            let (image, labels) = b.place(i);
            image.fill(v);
            labels[1] = 2 * i as u8;
        }
        assert_eq!(b.images, [1., 1., 1., 1., 5., 5., 5., 5.]);
        assert_eq!(b.labels, [0, 0, 0, 2]);
        assert_eq!(bytes(2, 2, size), 2 * 2 * 9);
    }
}
