//! How far compressed pixels may unfold. A picture of one value packs without end, and a header of a few bytes may lie: what reading takes is weighed before it
//! is taken. What is packed no closer than any real picture is read whatever its size; beyond that a file gets [`FREE_BYTES`], one frame at a time, so that 64 KiB of
//! anything stay within 64 MiB.

use super::header::Header;
use super::order::count;

/// Voxels and decoder together, for a file that is packed closer than [`RATIO`].
pub const FREE_BYTES: u64 = 60 << 20;
/// Real pictures are packed no closer than this, lossy ones included. 64 KiB of them make 16 MiB of voxels at most, float32 from bytes.
pub const RATIO: u64 = 64;
const LIKELY_VOXEL_BYTES: u64 = 16 << 20;

pub fn is_likely(packed: u64, unfolded: u64) -> bool {
    unfolded <= packed.saturating_mul(RATIO)
}

/// Bytes of a frame as a codec gives it; single bits come as bytes.
pub fn frame_bytes(h: &Header) -> u64 {
    samples(h).saturating_mul(h.bits_allocated.div_ceil(8).max(1) as u64)
}

pub fn samples(h: &Header) -> u64 {
    (h.rows as u64).saturating_mul(h.columns as u64).saturating_mul(h.samples.max(1) as u64)
}

/// What decoding one frame of a file may take, where the frame is packed closer than [`RATIO`].
/// - `packed`: bytes of all fragments
pub fn allowance(h: &Header, packed: u64) -> Result<u64, String> {
    let n = h.n_frames as u64;
    if is_likely(packed, frame_bytes(h).saturating_mul(n)) {
        return Ok(FREE_BYTES - LIKELY_VOXEL_BYTES);
    }
    // Grey voxels are float32 at worst, bytes where they stay as they are; colours are as wide as their samples.
    let is_scaled = h.frames.iter().any(|f| f.slope.is_some_and(|s| s != 1.0) || f.intercept.is_some_and(|i| i != 0.0));
    let is_as_stored = h.samples > 1 || !(h.is_signed || h.has_modality_lut || is_scaled);
    let voxel_bytes = if h.bits_allocated <= 8 && is_as_stored { 1 } else { 4 };
    let channels = if h.photometric == "PALETTE COLOR" { 3 } else { 1 };
    let voxels = samples(h).saturating_mul(voxel_bytes * channels).saturating_mul(n);
    FREE_BYTES.checked_sub(voxels).ok_or_else(|| {
        let size = format!("{} of {}×{} pixels", count(h.n_frames as usize, "frame"), h.rows, h.columns);
        format!("{packed} bytes of compressed pixels cannot hold {size}: {}", closer(voxels))
    })
}

/// - `wanted`: bytes that it would take
pub fn closer(wanted: u64) -> String {
    format!(
        "packed closer than {RATIO} to 1, and {} MiB to unfold; `gdcmconv --raw` unpacks the file if it is sound",
        wanted.div_ceil(1 << 20)
    )
}
