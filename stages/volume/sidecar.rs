//! What stands beside a written volume as JSON: which series it is, its geometry, and all that was decided on the way. Names are those of the index,
//! pseudonyms unless it was told otherwise.

use serde::Serialize;
use serde_json::{Map, Value};
use voxmill_schemas::geometry::Geometry;
use voxmill_schemas::tables::{InstanceRow, SeriesRow};
use voxmill_schemas::zarr_attrs::About;

use super::StoredVolume;

/// The keys of the file.
#[derive(Serialize)]
pub struct Sidecar<'a> {
    pub software: &'static str,
    pub software_version: &'static str,
    /// What this stands beside.
    pub files: Vec<&'a str>,
    pub case: Option<&'a str>,
    pub patient: &'a str,
    pub study: &'a str,
    pub series: &'a str,
    pub modality: &'a str,
    /// Voxels along z, y, x.
    pub size_zyx: [usize; 3],
    pub spacing_zyx_mm: [f64; 3],
    /// Row-major, from (x, y, z, 1) indices to DICOM's patient millimetres (left, posterior, superior).
    pub affine_lps_xyz: [[f64; 4]; 4],
    /// The same to NIfTI's (right, anterior, superior).
    pub affine_ras_xyz: [[f64; 4]; 4],
    pub tilt_degrees: f64,
    pub dtype: &'static str,
    /// What a voxel value means: `HU`, `stored`, `rescaled`, `SUV`.
    pub unit: &'a str,
    pub channels: &'a [String],
    /// Class name → value in the labels.
    pub classes: Value,
    /// Values from the first to the second are no tissue (pixel padding).
    pub padding: Option<[f64; 2]>,
    /// Slices (from 0) that no file holds: interpolated by `gaps: fill`.
    pub made_slices: &'a [usize],
    /// Where each slice stands, mm from the first, where they are unevenly spaced (`gaps: keep`).
    pub z_positions_mm: &'a [f64],
    /// Why the affine says nothing of the patient.
    pub unknown_geometry: Option<&'a str>,
    /// Which of the volumes of its series these are, and what tells them apart.
    pub volumes: Vec<VolumeOf>,
    /// Volumes of the series in all; 0 where the index was not asked.
    pub volumes_in_series: usize,
    /// Seconds, as BIDS has it.
    #[serde(rename = "EchoTime", skip_serializing_if = "Option::is_none")]
    pub echo_time_s: Option<f64>,
    #[serde(rename = "Manufacturer", skip_serializing_if = "Option::is_none")]
    pub manufacturer: Option<String>,
    #[serde(rename = "SeriesDescription", skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(rename = "BodyPartExamined", skip_serializing_if = "Option::is_none")]
    pub body_part: Option<String>,
    /// SOP instances it was made from, in the order of the index.
    pub instances: Vec<String>,
    /// What a reader should know.
    pub notes: Vec<Value>,
    /// What travels with the volume through every stage, `source` (the grid it was assembled on) among it.
    pub about: &'a About,
    /// All that the stages found worth telling.
    pub decided: &'a Map<String, Value>,
}

/// One volume of a series.
#[derive(Serialize)]
pub struct VolumeOf {
    pub volume: i64,
    pub n_instances: i64,
    pub n_frames: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub echo_time_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub b_value: Option<f64>,
}

/// - `files`: names relative to the folder of the sidecar
/// - `series`, `instances`: rows of the index of this series; none where the index was not asked
/// - `decided`: facts of the volume
pub fn sidecar<'a>(
    stored: &'a StoredVolume,
    case: Option<&'a str>,
    files: &'a [String],
    decided: &'a Map<String, Value>,
    series: &[SeriesRow],
    instances: &[InstanceRow],
) -> Sidecar<'a> {
    let (about, g) = (&stored.about, &stored.geometry);
    let own: Vec<&SeriesRow> = series.iter().filter(|s| s.kind == "image" && s.series == about.series).collect();
    let mine = || own.iter().copied().filter(|s| about.has_volume(s.volume));
    let one = |of: &dyn Fn(&SeriesRow) -> Option<String>| mine().next().and_then(of);
    let list = |fact: &str| decided.get(fact).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut echoes: Vec<f64> = mine().filter_map(|s| s.echo_time_ms).collect();
    echoes.dedup();
    Sidecar {
        software: "voxmill",
        software_version: env!("CARGO_PKG_VERSION"),
        files: files.iter().map(|f| f.rsplit('/').next().unwrap_or(f)).collect(),
        case,
        patient: &about.patient,
        study: &about.study,
        series: &about.series,
        modality: &about.modality,
        size_zyx: g.size.to_array(),
        spacing_zyx_mm: g.spacing_mm().to_array(),
        affine_lps_xyz: affine_lps_xyz(g),
        affine_ras_xyz: g.affine_ras_xyz(),
        tilt_degrees: g.tilt_degrees(),
        dtype: stored.dtype(),
        unit: &about.unit,
        channels: &stored.channels,
        classes: serde_json::to_value(&stored.classes).expect("plain data"),
        padding: about.padding,
        made_slices: &about.made_slices,
        z_positions_mm: &about.z_positions_mm,
        unknown_geometry: about.unknown_geometry.as_deref(),
        volumes: mine().map(volume_of).collect(),
        volumes_in_series: own.len(),
        echo_time_s: if let [one] = echoes[..] { Some(one / 1000.0) } else { None },
        manufacturer: one(&|s| s.manufacturer.clone()),
        description: one(&|s| s.description.clone()),
        body_part: one(&|s| s.body_part.clone()),
        instances: instances
            .iter()
            .filter(|i| i.series == about.series && about.has_volume(i.volume))
            .map(|i| i.instance.clone())
            .collect(),
        notes: [list("notes"), list("warnings")].concat(),
        about,
        decided,
    }
}

fn volume_of(s: &SeriesRow) -> VolumeOf {
    VolumeOf {
        volume: s.volume,
        n_instances: s.n_instances,
        n_frames: s.n_frames,
        time_s: s.time_s,
        echo_time_ms: s.echo_time_ms,
        b_value: s.b_value,
    }
}

fn affine_lps_xyz(g: &Geometry) -> [[f64; 4]; 4] {
    let [x, y, z, w] = g.affine_ras_xyz();
    // Adding 0 makes a negative zero a plain one.
    [x.map(|v| -v + 0.0), y.map(|v| -v + 0.0), z, w]
}

#[cfg(test)]
mod tests {
    use voxmill_schemas::geometry::Zyx;

    use super::*;

    #[test]
    fn the_two_affines_differ_in_the_sign_of_two_rows() {
        let g = Geometry::axis_aligned(Zyx::splat(2), Zyx::new(3.0, 2.0, 1.0));
        assert_eq!(affine_lps_xyz(&g), [[1., 0., 0., 0.], [0., 2., 0., 0.], [0., 0., 3., 0.], [0., 0., 0., 1.]]);
        assert_eq!(g.affine_ras_xyz()[1][1], -2.0);
    }
}
