//! How an array lies in its files: bricks, shards, names, and what its `zarr.json` says. Sizes that come from a file are bounded here.

use half::f16;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::region::Region;
use voxmill_schemas::zarr_attrs::{ArrayMeta, Blosc};
use zarrs::array::codec::BloscShuffleMode;

use super::step::Step;

/// Length that a brick's edges come near to.
const BRICK_EDGE: usize = 32;
/// Shards are cut along z to stay below this before compression.
const SHARD_BYTES: usize = 512 << 20;
/// Blosc's "as small as it gets without trying harder": lz4 does not change much above.
pub(super) const LEVEL: u8 = 5;
/// Bounds on what a file may claim.
const BRICK_LIMIT_BYTES: usize = 64 << 20;
const ARRAY_LIMIT_BYTES: usize = 1 << 40;
/// Type of a voxel on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    U8,
    I16,
    U16,
    F16,
    F32,
}

/// Type that interpolated or scaled values are stored as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 24 bits of precision.
    #[default]
    Float32,
    /// Half the space: 11 bits of precision (three digits), values to ±65504.
    Float16,
}

impl Precision {
    pub fn is_full(&self) -> bool {
        *self == Precision::Float32
    }

    /// What is done to a volume of float32 to store it so.
    pub fn step(self) -> Option<Step> {
        (self == Precision::Float16).then_some(Step::Half)
    }
}

impl Dtype {
    pub fn name(self) -> &'static str {
        match self {
            Dtype::U8 => "uint8",
            Dtype::I16 => "int16",
            Dtype::U16 => "uint16",
            Dtype::F16 => "float16",
            Dtype::F32 => "float32",
        }
    }
    pub fn from_name(name: &str) -> Option<Self> {
        [Dtype::U8, Dtype::I16, Dtype::U16, Dtype::F16, Dtype::F32].into_iter().find(|d| d.name() == name)
    }
    /// Whether a value is one of this type's, to the bit.
    pub fn holds(self, value: f32) -> bool {
        let fits = |low: f32, high: f32| value.fract() == 0.0 && (low..=high).contains(&value);
        match self {
            Dtype::U8 => fits(0.0, 255.0),
            Dtype::I16 => fits(-32768.0, 32767.0),
            Dtype::U16 => fits(0.0, 65535.0),
            Dtype::F16 => f16::from_f32(value).to_f32() == value,
            Dtype::F32 => true,
        }
    }
    pub fn bytes(self) -> usize {
        match self {
            Dtype::U8 => 1,
            Dtype::I16 | Dtype::U16 | Dtype::F16 => 2,
            Dtype::F32 => 4,
        }
    }
}

/// How an array lies in its files.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Layout {
    pub dtype: Dtype,
    /// Channels; `None` for an array without that axis.
    pub channels: Option<usize>,
    /// The channels are repeats: the axis is called `t`.
    pub is_time: bool,
    pub size: Zyx<usize>,
    pub brick: Zyx<usize>,
    /// Bricks a shard holds along z; it holds all along y and x, and one channel.
    pub bricks_deep: usize,
    pub shuffle: Shuffle,
}

/// How bytes are put in order before they are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shuffle {
    None,
    Bytes,
    Bits,
}

impl Layout {
    /// Bricks near 32³, evened out so that the last one on an axis is not mostly padding (35 voxels are one brick of 35, 48 two of 24).
    pub fn new(dtype: Dtype, channels: Option<usize>, size: Zyx<usize>) -> Self {
        let brick = size.map(|n| n.div_ceil(((n + BRICK_EDGE / 2) / BRICK_EDGE).max(1)).max(1));
        let mut layout = Self { dtype, channels, is_time: false, size, brick, bricks_deep: 1, shuffle: Shuffle::of(dtype) };
        let grid = layout.grid();
        let layer_bytes = grid.y * grid.x * layout.brick_bytes();
        layout.bricks_deep = (SHARD_BYTES / layer_bytes.max(1)).clamp(1, grid.z.max(1));
        layout
    }

    /// Bricks along each axis.
    pub fn grid(&self) -> Zyx<usize> {
        self.size.zip(self.brick).map(|(n, b)| n.div_ceil(b))
    }
    pub fn brick_bytes(&self) -> usize {
        self.brick.count() * self.dtype.bytes()
    }
    pub fn n_channels(&self) -> usize {
        self.channels.unwrap_or(1)
    }
    pub fn bytes(&self) -> usize {
        self.n_channels() * self.size.count() * self.dtype.bytes()
    }
    pub fn shards_deep(&self) -> usize {
        self.grid().z.div_ceil(self.bricks_deep)
    }
    pub fn n_shards(&self) -> usize {
        self.n_channels() * self.shards_deep()
    }
    pub fn bricks_per_shard(&self) -> usize {
        let g = self.grid();
        self.bricks_deep * g.y * g.x
    }

    /// Where a brick stands: shard, and place in the shard's index.
    pub fn place(&self, channel: usize, at: Zyx<usize>) -> (usize, usize) {
        let g = self.grid();
        let shard = channel * self.shards_deep() + at.z / self.bricks_deep;
        (shard, (at.z % self.bricks_deep * g.y + at.y) * g.x + at.x)
    }

    /// File of a shard: the default chunk key with `.`, which needs no folders.
    pub fn file_name(&self, shard: usize) -> String {
        let (c, z) = (shard / self.shards_deep(), shard % self.shards_deep());
        match self.channels {
            Some(_) => format!("c.{c}.{z}.0.0"),
            None => format!("c.{z}.0.0"),
        }
    }

    /// The part of the array that a brick covers.
    pub fn region(&self, at: Zyx<usize>) -> Region {
        let whole = Region::whole(self.size);
        Region { start: at.zip(self.brick).map(|(i, b)| (i * b) as i64), size: self.brick }
            .intersect(&whole)
            .expect("bricks of the grid overlap the array")
    }

    fn blosc(&self) -> Blosc {
        Blosc { cname: "lz4".into(), clevel: LEVEL, shuffle: self.shuffle.name().into(), typesize: self.dtype.bytes() as u32, blocksize: 0 }
    }

    pub fn meta(&self) -> ArrayMeta {
        let g = self.grid();
        let shard = Zyx::new(self.bricks_deep * self.brick.z, g.y * self.brick.y, g.x * self.brick.x);
        let dims =
            |channel: Option<usize>, s: Zyx<usize>| -> Vec<u64> { channel.into_iter().chain(s.to_array()).map(|n| n as u64).collect() };
        let one = self.channels.map(|_| 1);
        let names: &[&str] = match (self.channels, self.is_time) {
            (None, _) => &["z", "y", "x"],
            (_, false) => &["c", "z", "y", "x"],
            (_, true) => &["t", "z", "y", "x"],
        };
        ArrayMeta::sharded(
            names,
            self.dtype.name(),
            &dims(self.channels, self.size),
            &dims(one, shard),
            &dims(one, self.brick),
            self.blosc(),
        )
    }

    /// The layout that metadata describe, or why it is none of ours. Bounds every size before anything is allocated by it.
    pub fn from_meta(m: &ArrayMeta) -> Result<Self, String> {
        let dtype = Dtype::from_name(&m.data_type).ok_or_else(|| format!("data type {} is not read", m.data_type))?;
        let sharding = m.sharding().ok_or("its codecs are not those of this program")?;
        let split = |what: &str, dims: &[u64]| -> Result<(Option<usize>, Zyx<usize>), String> {
            let dims: Vec<usize> = dims.iter().map(|n| usize::try_from(*n).map_err(|_| format!("{what} {n}"))).collect::<Result<_, _>>()?;
            match *dims.as_slice() {
                [z, y, x] => Ok((None, Zyx::new(z, y, x))),
                [c, z, y, x] => Ok((Some(c), Zyx::new(z, y, x))),
                _ => Err(format!("{what} has {} dimensions", dims.len())),
            }
        };
        let (channels, size) = split("shape", &m.shape)?;
        let (shard_channels, shard) = split("shard", &m.chunk_grid.configuration.chunk_shape)?;
        let (brick_channels, brick) = split("brick", &sharding.chunk_shape)?;
        let one = channels.map(|_| 1);
        let fits = |n: Zyx<usize>, c: usize, limit: usize| {
            n.checked_count().and_then(|n| n.checked_mul(c)?.checked_mul(dtype.bytes())).is_some_and(|n| 0 < n && n <= limit)
        };
        if !fits(size, channels.unwrap_or(1), ARRAY_LIMIT_BYTES) || !fits(brick, 1, BRICK_LIMIT_BYTES) || !fits(shard, 1, usize::MAX) {
            return Err(format!("shape {size} in shards of {shard} and bricks of {brick} is out of bounds"));
        }
        let bricks_deep = shard.z / brick.z;
        let is_time = channels.is_some() && m.dimension_names.first().is_some_and(|n| n == "t");
        let shuffle = Shuffle::of_meta(m).unwrap_or(Shuffle::of(dtype));
        let layout = Self { dtype, channels, is_time, size, brick, bricks_deep, shuffle };
        if shard_channels != one || brick_channels != one || bricks_deep == 0 || layout.meta() != *m {
            return Err("its shards are not laid out by this program".into());
        }
        Ok(layout)
    }
}

impl Shuffle {
    /// Integers and float16 by bits: CT with 10 HU of noise packs 2.3 : 1 instead of 1.9 : 1 and is written as fast; a read of the disk shelf costs half as much again.
    pub fn of(dtype: Dtype) -> Self {
        match dtype {
            Dtype::U8 => Shuffle::None,
            Dtype::I16 | Dtype::U16 | Dtype::F16 => Shuffle::Bits,
            Dtype::F32 => Shuffle::Bytes,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Shuffle::None => "noshuffle",
            Shuffle::Bytes => "shuffle",
            Shuffle::Bits => "bitshuffle",
        }
    }

    pub fn mode(self) -> BloscShuffleMode {
        match self {
            Shuffle::None => BloscShuffleMode::NoShuffle,
            Shuffle::Bytes => BloscShuffleMode::Shuffle,
            Shuffle::Bits => BloscShuffleMode::BitShuffle,
        }
    }

    /// What metadata say; arrays of an earlier version are shuffled otherwise.
    fn of_meta(m: &ArrayMeta) -> Option<Self> {
        let name = &m.sharding()?.blosc()?.shuffle;
        [Shuffle::None, Shuffle::Bytes, Shuffle::Bits].into_iter().find(|s| s.name() == name)
    }
}
