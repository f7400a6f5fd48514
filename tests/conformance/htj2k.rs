//! High-Throughput JPEG 2000 (ISO 15444-15): codestreams of OpenJPH give the pixels that they were made of.

use std::path::Path;

use voxmill_stages::volume::Voxels;

use crate::pixels::read;

/// Row and column of each pixel of 40 × 48.
fn places() -> impl Iterator<Item = (usize, usize)> {
    (0..40).flat_map(|y| (0..48).map(move |x| (y, x)))
}

fn voxels(name: &str) -> Voxels {
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/htj2k").join(name)).unwrap_or_else(|why| panic!("{name}: {why}"))
}

#[test]
fn lossless_frames_and_colours_are_what_was_packed() {
    let frames = (0..3).flat_map(|k| places().map(move |(y, x)| (x * 60 + y * 40 + k * 500 + x * y % 7) as i16));
    assert_eq!(voxels("lossless.dcm"), Voxels::I16(frames.collect()));
    let channels = [|_: usize, x: usize| x * 5 % 256, |y, _| y * 6 % 256, |y, x| (x + y) * 2 % 256];
    assert_eq!(voxels("colour.dcm"), Voxels::U8(channels.iter().flat_map(|c| places().map(move |(y, x)| c(y, x) as u8)).collect()));
}

#[test]
fn resolutions_in_parts_of_tiles_are_what_was_packed() {
    let signed = places().map(|(y, x)| ((x * 61 + y * 97) % 4096) as i16 - 2048);
    assert_eq!(voxels("rpcl.dcm"), Voxels::I16(signed.collect()));
}

#[test]
fn lossy_frames_are_near_what_was_packed() {
    let Voxels::I16(got) = voxels("lossy.dcm") else { panic!("integers of 13 bits") };
    let far = places().zip(&got).map(|((y, x), v)| ((x * 60 + y * 40 + x * y % 7) as i16 - v).abs()).max();
    // OpenJPH itself comes back as near as that.
    assert!(far <= Some(FAR), "{far:?}");
}

const FAR: i16 = 6;
