//! How a convolution's arrays lie in memory while it is computed.
//!
//! The padded input is taken apart by stride: voxels with the same remainder on every axis form one `phase`, and all phases lie on the same
//! grid. There, output position p and kernel tap t always meet at p + offset(t) in phase(t).

use rayon::prelude::*;

use super::lanes::MAX_TILE;

/// A convolution: zero padding on both ends of every axis, no dilation, one group. Arrays of three run z, y, x.
#[derive(Clone, Debug)]
pub struct ConvShape {
    pub n: usize,
    pub from: usize,
    pub to: usize,
    /// Voxels of the input.
    pub size: [usize; 3],
    pub kernel: [usize; 3],
    pub stride: [usize; 3],
    pub padding: [usize; 3],
}

/// One kernel position: where it reads.
#[derive(Clone, Copy)]
pub struct Tap {
    pub phase: usize,
    pub offset: usize,
}

impl ConvShape {
    /// Voxels of the output.
    pub fn out(&self) -> [usize; 3] {
        std::array::from_fn(|a| (self.size[a] + 2 * self.padding[a] - self.kernel[a]) / self.stride[a] + 1)
    }

    /// Positions of one phase.
    pub fn grid(&self) -> [usize; 3] {
        std::array::from_fn(|a| (self.size[a] + 2 * self.padding[a]).div_ceil(self.stride[a]))
    }

    pub fn n_phases(&self) -> usize {
        volume(self.stride)
    }

    /// Kernel positions, x fastest.
    pub fn taps(&self) -> Vec<Tap> {
        let ([kz, ky, kx], [sz, sy, sx], [_, gy, gx]) = (self.kernel, self.stride, self.grid());
        let mut taps = Vec::with_capacity(kz * ky * kx);
        for z in 0..kz {
            for y in 0..ky {
                for x in 0..kx {
                    let phase = (z % sz * sy + y % sy) * sx + x % sx;
                    taps.push(Tap { phase, offset: (z / sz * gy + y / sy) * gx + x / sx });
                }
            }
        }
        taps
    }

    /// The grid positions up to the last one that is an output voxel.
    pub fn span(&self) -> usize {
        let ([_, gy, gx], [oz, oy, ox]) = (self.grid(), self.out());
        ((oz - 1) * gy + oy - 1) * gx + ox
    }
}

pub fn volume(size: [usize; 3]) -> usize {
    size.iter().product()
}

/// Rows of zero-ended lines in one buffer.
pub struct Lines {
    data: Vec<f32>,
    /// Zeros before the first value of each row.
    lead: usize,
    /// From one row to the next.
    pub pitch: usize,
}

impl Lines {
    /// Zeros. Every row can be read from `lead` values before its first to a tile past its last.
    pub fn new(rows: usize, length: usize, lead: usize) -> Self {
        let lead = lead.next_multiple_of(16);
        let pitch = (lead + length + MAX_TILE).next_multiple_of(16);
        Self { data: vec![0.0; rows * pitch], lead, pitch }
    }

    /// Where row 0 begins, as a pointer that may go wherever the buffer is: `lead` values back, and on to the end of the last row.
    pub fn start(&self) -> *const f32 {
        self.data.as_ptr().wrapping_add(self.lead)
    }

    /// From the first value of a row on.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.pitch + self.lead..]
    }

    /// Lays one sample's input out by phase: rows [channel, phase].
    pub fn fill_phases(&mut self, x: &[f32], s: &ConvShape) {
        let ([_, gy, gx], [sz, sy, sx]) = (s.grid(), s.stride);
        let (lead, voxels) = (self.lead, volume(s.size));
        self.data.par_chunks_mut(self.pitch * s.n_phases()).zip(x.par_chunks_exact(voxels)).for_each(|(rows, x)| {
            let pitch = rows.len() / s.n_phases();
            for (zy, row) in x.chunks_exact(s.size[2]).enumerate() {
                let (z, y) = (zy / s.size[1] + s.padding[0], zy % s.size[1] + s.padding[1]);
                let phase = (z % sz * sy + y % sy) * sx;
                let at = lead + (z / sz * gy + y / sy) * gx;
                if sx == 1 {
                    rows[phase * pitch + at + s.padding[2]..][..row.len()].copy_from_slice(row);
                } else {
                    for (x, v) in row.iter().enumerate() {
                        let x = x + s.padding[2];
                        rows[(phase + x % sx) * pitch + at + x / sx] = *v;
                    }
                }
            }
        });
    }

    /// Lays one sample's output (or its gradient) out on the grid: a row for each channel.
    pub fn fill_outputs(&mut self, y: &[f32], s: &ConvShape) {
        let ([_, gy, gx], [oz, oy, ox]) = (s.grid(), s.out());
        let lead = self.lead;
        self.data.par_chunks_mut(self.pitch).zip(y.par_chunks_exact(oz * oy * ox)).for_each(|(row, y)| {
            for (zy, from) in y.chunks_exact(ox).enumerate() {
                row[lead + (zy / oy * gy + zy % oy) * gx..][..ox].copy_from_slice(from);
            }
        });
    }
}
