//! Patches side by side in contiguous buffers, as the network takes them, and buffers that are used again.

use std::sync::Mutex;

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
    /// Whether labels were ever written: where they were not, all are background.
    pub(super) is_labelled: bool,
}

/// Batches that were given back: a feed in its stride takes its buffers from here and allocates none.
#[derive(Default)]
pub struct Pool(Mutex<Vec<Batch>>);

impl Pool {
    /// A batch with room for patches of one size and number of channels; what stands in it is to be written over.
    pub fn take(&self, n: usize, channels: usize, size: Zyx<usize>) -> Batch {
        let fits = |b: &Batch| (b.n, b.size, b.images.len()) == (n, size, n * channels * size.count());
        let given = self.0.lock().expect("no holder panics").pop().filter(fits);
        match given {
            Some(mut batch) => {
                batch.cases.clear();
                batch
            }
            None => Batch::zeros(n, channels, size),
        }
    }

    pub fn give(&self, batch: Batch) {
        self.0.lock().expect("no holder panics").push(batch);
    }
}

/// Memory of one batch in bytes.
pub fn bytes(n: usize, channels: usize, size: Zyx<usize>) -> u64 {
    n as u64 * size.count() as u64 * (4 * channels as u64 + 1)
}

impl Batch {
    /// Room for patches of one size and number of channels.
    pub fn zeros(n: usize, channels: usize, size: Zyx<usize>) -> Self {
        let voxels = n * size.count();
        let (images, labels, cases) = (vec![0.0; voxels * channels], vec![0; voxels], Vec::with_capacity(n));
        Self { images, labels, n, size, cases, is_labelled: false }
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
