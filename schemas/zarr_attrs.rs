//! What stands in `zarr.json`: array metadata of Zarr v3 (sharded bricks), OME-Zarr 0.5 multiscales and image labels, and our own namespace
//! `voxmill`, which keeps what OME-Zarr cannot say yet (direction, shear, channels, classes, provenance). The recipe and the key stand in the
//! manifest, not here: they would give equal voxels different bytes.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::geometry::{Geometry, Lps, Zyx};

/// Version of the layout that `voxmill.layout` holds.
pub const LAYOUT: u32 = 1;

/// What travels with a volume through every stage. Names no patient unless the pipeline says so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// DICOM modality: `CT`, `MR`.
    pub modality: String,
    /// What a voxel value means: `HU`, `stored`, `SUV`, `normalised`.
    pub unit: String,
    /// Pseudonym (or, if the index says `deidentify: none`, the id) of the patient.
    pub patient: String,
    /// Pseudonyms of study and series: they join to the index table.
    pub study: String,
    pub series: String,
    /// Which volume of the series, from 0 (echoes, phases).
    #[serde(default)]
    pub volume: i64,
    /// The grid on which the volume was assembled: predictions go back to it.
    pub source: Geometry,
    /// Voxels from the first to the second value (in voxel units, both included) are no tissue: pixel padding (PS3.3 C.7.5.1.1.2). They stay in the array;
    /// statistics and interpolation leave them out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub padding: Option<[f64; 2]>,
    /// Slices that lie on no regular grid, kept as they are (`gaps: keep`): where each stands, mm from slice 0 along `axes_mm.z`, whose length is the median
    /// step. Empty: slice k stands at k times the step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub z_positions_mm: Vec<f64>,
    /// Slices (from 0) that no file holds: made by `gaps: fill` from their neighbours.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made_slices: Vec<usize>,
    /// The first axis of the array is time (or b-values), not sequences of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeats: Option<Repeats>,
    /// Why the affine says nothing of the patient (no ImagePositionPatient, a projection): spacing may be right, place and direction are made up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown_geometry: Option<String>,
}

/// Repeats of one place, in order, along the first array axis.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Repeats {
    /// Seconds since the first, one a repeat; empty where the files do not tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub times_s: Vec<f64>,
    /// b-values in s/mm², one a repeat; empty where the files do not tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub b_values: Vec<f64>,
    /// Numbers of the volumes in the index, one a repeat; empty where the repeats are frames of one volume (a cine loop).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<i64>,
}

impl About {
    /// Whether a volume of its series (by its number in the index) is in this one: it, or one of the repeats that are stacked.
    pub fn has_volume(&self, volume: i64) -> bool {
        let stacked = self.repeats.as_ref().map_or(&[][..], |r| &r.volumes);
        if stacked.is_empty() { volume == self.volume } else { stacked.contains(&volume) }
    }

    /// A volume on this grid of which nothing else is known.
    pub fn of(source: Geometry) -> About {
        let text = String::new;
        About {
            modality: text(),
            unit: text(),
            patient: text(),
            study: text(),
            series: text(),
            volume: 0,
            source,
            padding: None,
            z_positions_mm: Vec::new(),
            made_slices: Vec::new(),
            repeats: None,
            unknown_geometry: None,
        }
    }

    /// Whether slice k stands at k times the step: what every stage needs that works on the grid and not on slices.
    pub fn is_regular(&self) -> bool {
        self.z_positions_mm.is_empty()
    }
}

/// `zarr.json` of a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupMeta {
    pub zarr_format: u32,
    pub node_type: String,
    pub attributes: Attributes,
}

#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Attributes {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ome: Option<Ome>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voxmill: Option<Own>,
}

/// OME-Zarr 0.5, <https://ngff.openmicroscopy.org/0.5/>.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ome {
    pub version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiscales: Option<Vec<Multiscale>>,
    /// Names of the children of a `labels` group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    #[serde(default, rename = "image-label", skip_serializing_if = "Option::is_none")]
    pub image_label: Option<ImageLabel>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Multiscale {
    pub name: String,
    pub axes: Vec<Axis>,
    pub datasets: Vec<Dataset>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Axis {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dataset {
    pub path: String,
    #[serde(rename = "coordinateTransformations")]
    pub transformations: Vec<Transformation>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Transformation {
    Scale { scale: Vec<f64> },
    Translation { translation: Vec<f64> },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageLabel {
    pub colors: Vec<LabelColor>,
    pub properties: Vec<LabelProperty>,
    /// Absent where the labels stand alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<LabelSource>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelColor {
    #[serde(rename = "label-value")]
    pub value: u8,
    pub rgba: [u8; 4],
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelProperty {
    #[serde(rename = "label-value")]
    pub value: u8,
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelSource {
    pub image: String,
}

/// Our own namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Own {
    pub layout: u32,
    /// The full affine as we use it: origin and one step vector an axis, LPS millimetres.
    pub grid: Geometry,
    /// The same for others, row-major 4×4 from the index (x, y, z, 1), x the last array axis, to DICOM's LPS millimetres …
    pub affine_lps_xyz: [[f64; 4]; 4],
    /// … and to RAS millimetres, as nibabel has it.
    pub affine_ras_xyz: [[f64; 4]; 4],
    /// One name a channel, in the order of the first array axis.
    pub channels: Vec<String>,
    /// Class name → id in `labels/labels/0`; absent without labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<IndexMap<String, u8>>,
    pub about: About,
}

impl GroupMeta {
    /// Without `ome` a plain Zarr group, which no reader of OME-Zarr takes for an image.
    pub fn new(ome: Option<Ome>, voxmill: Option<Own>) -> Self {
        Self { zarr_format: 3, node_type: "group".into(), attributes: Attributes { ome, voxmill } }
    }
}

impl Ome {
    fn new() -> Self {
        Self { version: "0.5".into(), multiscales: None, labels: None, image_label: None }
    }

    /// An image whose only level is the array `0`: `[c, z, y, x]`, or `[t, z, y, x]` where its channels are repeats of one place.
    pub fn image(geometry: &Geometry, repeats: Option<&Repeats>) -> Self {
        let first = match repeats {
            None => (Axis { name: "c".into(), kind: "channel".into(), unit: None }, 1.0),
            Some(r) => {
                let step = even_step(&r.times_s);
                (Axis { name: "t".into(), kind: "time".into(), unit: step.map(|_| "second".into()) }, step.unwrap_or(1.0))
            }
        };
        Self { multiscales: Some(vec![multiscale("image", geometry, Some(first))]), ..Self::new() }
    }

    /// The group `labels` with its one child.
    pub fn labels_group() -> Self {
        Self { labels: Some(vec!["labels".into()]), ..Self::new() }
    }

    /// The label image whose only level is the array `0`, `[z, y, x]`. `has_image`: whether the group above holds the image they were drawn on.
    pub fn labels(geometry: &Geometry, classes: &IndexMap<String, u8>, has_image: bool) -> Self {
        let colors =
            classes.values().map(|id| (*id, color(*id))).map(|(value, [r, g, b])| LabelColor { value, rgba: [r, g, b, 255] }).collect();
        let properties = classes.iter().map(|(name, id)| LabelProperty { value: *id, name: name.clone() }).collect();
        let source = has_image.then(|| LabelSource { image: "../../".into() });
        Self {
            multiscales: Some(vec![multiscale("labels", geometry, None)]),
            image_label: Some(ImageLabel { colors, properties, source }),
            ..Self::new()
        }
    }
}

/// The colour of a class, sRGB: hues a golden angle apart, so that neighbouring ids never look alike.
pub fn color(id: u8) -> [u8; 3] {
    let hue = (id as u32 * 137) % 360;
    let (sector, part) = (hue / 60, (hue % 60 * 255 / 60) as u8);
    match sector {
        0 => [255, part, 0],
        1 => [255 - part, 255, 0],
        2 => [0, 255, part],
        3 => [0, 255 - part, 255],
        4 => [part, 0, 255],
        _ => [255, 0, 255 - part],
    }
}

/// Scale and translation are the axis-aligned best: spacing, and how far the first voxel lies along each axis' own direction. Two volumes
/// of equal orientation so keep their relative place in a viewer that knows no rotation.
fn multiscale(name: &str, g: &Geometry, first: Option<(Axis, f64)>) -> Multiscale {
    let space = |name: &str| Axis { name: name.into(), kind: "space".into(), unit: Some("millimeter".into()) };
    let mut axes = vec![space("z"), space("y"), space("x")];
    let mut scale = g.spacing_mm().to_array().to_vec();
    let along = |step: Lps| g.origin.dot(step.scale(1.0 / step.norm()));
    let mut translation = g.axes_mm.map(along).to_array().to_vec();
    if let Some((axis, step)) = first {
        axes.insert(0, axis);
        scale.insert(0, step);
        translation.insert(0, 0.0);
    }
    let transformations = vec![Transformation::Scale { scale }, Transformation::Translation { translation }];
    Multiscale { name: name.into(), axes, datasets: vec![Dataset { path: "0".into(), transformations }] }
}

/// The step of times that are evenly apart (within a hundredth), which is all that a scale can say.
fn even_step(times_s: &[f64]) -> Option<f64> {
    let n = times_s.len().checked_sub(1).filter(|n| *n > 0)?;
    let step = (times_s[n] - times_s[0]) / n as f64;
    let is_even = |(i, t): (usize, &f64)| (t - times_s[0] - i as f64 * step).abs() <= 0.01 * step;
    (step > 0.0 && times_s.iter().enumerate().all(is_even)).then_some(step)
}

impl Own {
    pub fn new(grid: Geometry, channels: Vec<String>, classes: Option<IndexMap<String, u8>>, about: About) -> Self {
        let ras = grid.affine_ras_xyz();
        // 0.0 - v, so that zero stays positive zero.
        let flip = |row: [f64; 4]| row.map(|v| 0.0 - v);
        let affine_lps_xyz = [flip(ras[0]), flip(ras[1]), ras[2], ras[3]];
        Self { layout: LAYOUT, affine_lps_xyz, affine_ras_xyz: ras, grid, channels, classes, about }
    }
}

/// `zarr.json` of an array, Zarr v3 core with the `sharding_indexed` codec: exactly what we write, and all that our own reader takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArrayMeta {
    pub zarr_format: u32,
    pub node_type: String,
    pub shape: Vec<u64>,
    pub data_type: String,
    pub chunk_grid: Named<ChunkShape>,
    pub chunk_key_encoding: Named<Separator>,
    pub fill_value: Value,
    pub codecs: Vec<Codec>,
    pub dimension_names: Vec<String>,
    pub attributes: serde_json::Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Named<C> {
    pub name: String,
    pub configuration: C,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChunkShape {
    pub chunk_shape: Vec<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Separator {
    pub separator: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", content = "configuration", rename_all = "snake_case")]
pub enum Codec {
    Bytes(Endian),
    ShardingIndexed(Sharding),
    Blosc(Blosc),
    Crc32c,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Endian {
    pub endian: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sharding {
    pub chunk_shape: Vec<u64>,
    pub codecs: Vec<Codec>,
    pub index_codecs: Vec<Codec>,
    pub index_location: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Blosc {
    pub cname: String,
    pub clevel: u8,
    pub shuffle: String,
    pub typesize: u32,
    pub blocksize: u32,
}

impl ArrayMeta {
    /// - `names`: one a dimension, `["c", "z", "y", "x"]` or without channels;
    /// - `shape`, `shard`, `brick`: lengths on these dimensions; a shard is a whole number of bricks on every one.
    pub fn sharded(names: &[&str], data_type: &str, shape: &[u64], shard: &[u64], brick: &[u64], blosc: Blosc) -> Self {
        let bytes = || Codec::Bytes(Endian { endian: "little".into() });
        let sharding = Sharding {
            chunk_shape: brick.to_vec(),
            codecs: vec![bytes(), Codec::Blosc(blosc), Codec::Crc32c],
            index_codecs: vec![bytes(), Codec::Crc32c],
            index_location: "end".into(),
        };
        Self {
            zarr_format: 3,
            node_type: "array".into(),
            shape: shape.to_vec(),
            data_type: data_type.into(),
            chunk_grid: Named { name: "regular".into(), configuration: ChunkShape { chunk_shape: shard.to_vec() } },
            chunk_key_encoding: Named { name: "default".into(), configuration: Separator { separator: ".".into() } },
            fill_value: if data_type.starts_with("float") { Value::from(0.0) } else { Value::from(0) },
            codecs: vec![Codec::ShardingIndexed(sharding)],
            dimension_names: names.iter().map(|n| n.to_string()).collect(),
            attributes: serde_json::Map::new(),
        }
    }

    /// The sharding codec, where the array has the codecs that [`ArrayMeta::sharded`] gives.
    pub fn sharding(&self) -> Option<&Sharding> {
        match self.codecs.as_slice() {
            [Codec::ShardingIndexed(s)]
                if s.index_location == "end"
                    && matches!(s.codecs.as_slice(), [Codec::Bytes(e), Codec::Blosc(_), Codec::Crc32c] if e.endian == "little")
                    && matches!(s.index_codecs.as_slice(), [Codec::Bytes(e), Codec::Crc32c] if e.endian == "little") =>
            {
                Some(s)
            }
            _ => None,
        }
    }
}

impl Sharding {
    /// How bricks are compressed.
    pub fn blosc(&self) -> Option<&Blosc> {
        self.codecs.iter().find_map(|c| if let Codec::Blosc(b) = c { Some(b) } else { None })
    }
}

/// The grid's size as dimensions of an array.
pub fn dimensions(size: Zyx<usize>) -> [u64; 3] {
    size.map(|n| n as u64).to_array()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn geometry() -> Geometry {
        Geometry {
            size: Zyx::new(3, 4, 5),
            origin: Lps([-10.1, 20.0, 1.0 / 3.0]),
            axes_mm: Zyx::new(Lps([0., 0., 2.5]), Lps([0., -0.7, 0.]), Lps([0.7, 0., 0.])),
        }
    }

    #[test]
    fn a_group_survives_its_json_to_the_last_bit() {
        let g = geometry();
        let about = About {
            modality: "CT".into(),
            unit: "HU".into(),
            patient: "p".into(),
            study: "s".into(),
            series: "e".into(),
            volume: 0,
            ..About::of(g)
        };
        let classes = IndexMap::from([("Posterior".to_string(), 2), ("Anterior".to_string(), 1)]);
        let meta = GroupMeta::new(Some(Ome::image(&g, None)), Some(Own::new(g, vec!["CT".into()], Some(classes), about)));
        let text = serde_json::to_string(&meta).unwrap();
        assert_eq!(serde_json::from_str::<GroupMeta>(&text).unwrap(), meta);
    }

    #[test]
    fn scale_is_spacing_and_translation_runs_along_the_axis() {
        let m = &Ome::image(&geometry(), None).multiscales.unwrap()[0];
        let json = serde_json::to_value(&m.datasets[0].transformations).unwrap();
        assert_eq!(json[0], serde_json::json!({"type": "scale", "scale": [1.0, 2.5, 0.7, 0.7]}));
        let t: Vec<f64> = serde_json::from_value(json[1]["translation"].clone()).unwrap();
        assert_eq!((t[0], t[2], t[3]), (0.0, -20.0, -10.1));
    }

    #[test]
    fn repeats_are_a_time_axis_with_their_step_where_it_is_even() {
        let first = |times_s: Vec<f64>| {
            let m = Ome::image(&geometry(), Some(&Repeats { times_s, ..Repeats::default() })).multiscales.unwrap().remove(0);
            let json = serde_json::to_value(&m.datasets[0].transformations).unwrap();
            (serde_json::to_value(&m.axes[0]).unwrap(), json[0]["scale"][0].as_f64().unwrap())
        };
        assert_eq!(first(vec![0.0, 2.0, 4.0]), (serde_json::json!({"name": "t", "type": "time", "unit": "second"}), 2.0));
        assert_eq!(first(vec![0.0, 2.0, 9.0]), (serde_json::json!({"name": "t", "type": "time"}), 1.0));
        assert_eq!(first(vec![]).1, 1.0);
    }

    #[test]
    fn both_affines_send_the_first_voxel_to_the_origin() {
        let about = About::of(geometry());
        let own = Own::new(geometry(), vec![], None, about);
        assert_eq!([0, 1, 2].map(|r| own.affine_lps_xyz[r][3]), geometry().origin.0);
        assert_eq!([0, 1, 2].map(|r| own.affine_ras_xyz[r][3]), [10.1, -20.0, 1.0 / 3.0]);
    }

    #[test]
    fn array_metadata_reads_back_and_other_codecs_are_told_apart() {
        let blosc = Blosc { cname: "lz4".into(), clevel: 5, shuffle: "shuffle".into(), typesize: 2, blocksize: 0 };
        let meta = ArrayMeta::sharded(&["z", "y", "x"], "int16", &[3, 4, 5], &[4, 4, 6], &[2, 4, 3], blosc);
        let text = serde_json::to_string(&meta).unwrap();
        let mut back: ArrayMeta = serde_json::from_str(&text).unwrap();
        assert_eq!(back, meta);
        assert_eq!(back.sharding().unwrap().chunk_shape, [2, 4, 3]);
        back.codecs = vec![Codec::Crc32c];
        assert!(back.sharding().is_none());
    }
}
