//! Brings the intensities of each volume to a common scale, channel by channel: by its own statistics, in which padding takes no part, or by those of a set.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::{Kind, Port, Scope};
use voxmill_schemas::tables::FingerprintChannelRow;

use crate::error::Error;
use crate::ops::intensity;
use crate::stage::{Cx, Extent, Facts, Finding, Info, Inputs, Progress, Stage, default_memory_bytes};
use crate::table;
use crate::volume::{Volume, Voxels};

/// Normalises each channel by its own statistics, or (`ct`) by those of the training cases. Pixel padding takes no part and becomes the lowest value.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Normalize {
    /// `zscore`: mean 0 and standard deviation 1 (MONAI `NormalizeIntensity`). `percentiles`: `lower` becomes 0 and `upper` 1, beyond them held there
    /// (MONAI `ScaleIntensityRangePercentiles`). `ct`: held within the 0.5th and 99.5th percentile of the foreground of a set, then less its mean, over its
    /// standard deviation (nnU-Net's scheme for HU); needs the port `fingerprint`.
    pub method: Method,
    /// Take statistics from voxels other than 0 and leave those at 0 as they are: for images whose background is exactly 0.
    #[serde(default)]
    pub nonzero: bool,
    /// For `percentiles`: the percentile that becomes 0.
    #[serde(default = "lower")]
    pub lower: f64,
    /// For `percentiles`: the percentile that becomes 1.
    #[serde(default = "upper")]
    pub upper: f64,
}

/// How a channel is normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Subtract the mean, divide by the standard deviation (÷ N).
    Zscore,
    /// Map two percentiles to 0 and 1, and clip.
    Percentiles,
    /// Clip to the percentiles of a set, subtract its mean, divide by its standard deviation.
    Ct,
}

fn lower() -> f64 {
    0.5
}

fn upper() -> f64 {
    99.5
}

impl Normalize {
    /// The volume and the names of channels in which nothing differs.
    /// - `of_set`: what a fingerprint says of each channel, for `ct`
    fn apply(&self, v: Volume, of_set: &[FingerprintChannelRow]) -> Result<(Volume, Vec<String>), Error> {
        let mut values = match v.voxels {
            Voxels::F32(x) => x,
            other => other.to_f32().into_owned(),
        };
        let mut flat = Vec::new();
        let padding = v.about.padding;
        let is_padding = |v: f32| padding.is_some_and(|[low, high]| (low..=high).contains(&(v as f64)));
        let skips = |v: f32| (self.nonzero && v == 0.0) || is_padding(v);
        for (name, values) in v.channels.iter().zip(values.chunks_exact_mut(v.geometry.size.count().max(1))) {
            if !values.iter().any(|v| v.is_finite()) {
                return Err(Error::Input { what: format!("channel {name}"), found: "no finite voxel".into(), expected: "an image".into() });
            }
            let padded: Vec<bool> = if padding.is_some() { values.iter().map(|v| is_padding(*v)).collect() } else { Vec::new() };
            let spread = match self.method {
                Method::Zscore => intensity::zscore(values, |_, v| !skips(v)).1,
                Method::Ct => {
                    let row = of_set.iter().find(|r| r.channel == *name).ok_or_else(|| unknown(name, of_set))?;
                    by_set(values, row, skips);
                    row.percentile_99_5 - row.percentile_00_5
                }
                Method::Percentiles => {
                    match intensity::percentiles(values.iter().copied().filter(|v| !skips(*v)), &[self.lower, self.upper]) {
                        // Everything is 0 and left as it is.
                        None => 0.0,
                        Some(ends) => {
                            let before = if self.nonzero { values.to_vec() } else { Vec::new() };
                            intensity::window(values, ends[0] as f32, ends[1] as f32, 0.0, 1.0, true);
                            values.iter_mut().zip(before).filter(|(_, b)| *b == 0.0).for_each(|(v, _)| *v = 0.0);
                            ends[1] - ends[0]
                        }
                    }
                }
            };
            // Padding is no tissue: it becomes the lowest value of what is, so that nothing stands out.
            let lowest = values.iter().zip(&padded).filter(|(v, p)| !**p && v.is_finite()).map(|(v, _)| *v).reduce(f32::min);
            values.iter_mut().zip(&padded).filter(|(_, p)| **p).for_each(|(v, _)| *v = lowest.unwrap_or(0.0));
            if spread == 0.0 {
                flat.push(name.clone());
            }
        }
        let mut about = v.about;
        about.unit = "normalised".into();
        about.padding = None;
        Ok((Volume { voxels: Voxels::F32(values), about, ..v }, flat))
    }
}

/// nnU-Net's `CTNormalization`, in float32.
fn by_set(values: &mut [f32], row: &FingerprintChannelRow, skips: impl Fn(f32) -> bool) {
    let (low, high) = (row.percentile_00_5 as f32, row.percentile_99_5 as f32);
    let (mean, std) = (row.mean as f32, row.std.max(1e-8) as f32);
    values.iter_mut().filter(|v| !skips(**v)).for_each(|v| *v = (v.clamp(low, high.max(low)) - mean) / std);
}

fn unknown(channel: &str, of_set: &[FingerprintChannelRow]) -> Error {
    let expected = of_set.iter().map(|r| r.channel.as_str()).collect::<Vec<_>>().join(", ");
    let expected = if of_set.is_empty() {
        "a node `fingerprint` at the port of that name".into()
    } else {
        format!("{expected}, as in the fingerprint")
    };
    Error::Input { what: "`method: ct`".into(), found: format!("channel {channel}, of which no statistics are known"), expected }
}

impl Stage for Normalize {
    const INFO: Info = Info {
        name: "normalize",
        version: 1,
        scope: Scope::Case,
        ports: &[
            Port { name: "volume", kind: Kind::Volume, required: true, about: "what is normalised; labels pass through" },
            Port {
                name: "fingerprint",
                kind: Kind::Model,
                required: false,
                about: "for `method: ct`: the statistics of the training cases",
            },
        ],
        gives: Kind::Volume,
        summary: "bring the intensities of each volume to a common scale by its own statistics or those of the training cases",
        example: "uses: normalize\nfrom: iso\nwith: { method: zscore }\n",
        absent_in_inference: None,
    };

    fn check(&self) -> Vec<Finding> {
        let is_percent = |p: f64| (0.0..=100.0).contains(&p);
        if is_percent(self.lower) && is_percent(self.upper) && self.lower < self.upper {
            return Vec::new();
        }
        vec![Finding::error("lower", format!("percentiles {} to {}", self.lower, self.upper), "0 ≤ lower < upper ≤ 100")]
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let input = inputs.one("volume");
        let v = Volume::read(&input.dir)?;
        cx.bytes(input.manifest.bytes);
        cx.check_cancelled()?;
        let of_set = match inputs.maybe("fingerprint") {
            Some(f) if self.method == Method::Ct => table::rows_of(&table::open(&f.dir)?)?,
            _ => Vec::new(),
        };
        let (v, flat) = self.apply(v, &of_set)?;
        if !flat.is_empty() {
            (cx.progress)(Progress::Warn(format!("every voxel of channel {} has one value", flat.join(", "))));
        }
        v.write_sharing(cx.draft, None, Some(&input.dir))?;
        Ok(v.facts())
    }

    /// Input and float32 output, a copy for percentiles, and a quarter more for chunks on their way to the disk.
    fn memory_bytes(&self, inputs: &Inputs) -> u64 {
        let copies = if self.method == Method::Percentiles { 9 } else { 5 };
        Extent::of(inputs, "volume").map_or_else(|| default_memory_bytes(inputs), |e| e.bytes + e.label_bytes + copies * e.voxels)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::geometry::{Geometry, Zyx};

    use super::*;
    use crate::volume::About;

    fn of_set() -> Vec<FingerprintChannelRow> {
        let row = |channel: &str, mean, std| FingerprintChannelRow {
            channel: channel.into(),
            mean,
            std,
            percentile_00_5: -100.0,
            percentile_99_5: 300.0,
            ..Default::default()
        };
        vec![row("T2", 0.0, 0.0), row("T1", 50.0, 25.0)]
    }

    fn normalized(with: serde_json::Value, values: Vec<f32>) -> Result<(Vec<f32>, Vec<String>), Error> {
        padded(with, values, None)
    }

    fn padded(with: serde_json::Value, values: Vec<f32>, padding: Option<[f64; 2]>) -> Result<(Vec<f32>, Vec<String>), Error> {
        let geometry = Geometry::axis_aligned(Zyx::new(1, 1, 5), Zyx::splat(1.0));
        let text = || "x".to_string();
        let about = About {
            modality: "MR".into(),
            unit: "stored".into(),
            patient: text(),
            study: text(),
            series: text(),
            volume: 0,
            padding,
            ..About::of(geometry)
        };
        let v = Volume { geometry, channels: vec!["T1".into(), "T2".into()], voxels: Voxels::F32(values), labels: None, about };
        let stage: Normalize = serde_json::from_value(with).unwrap();
        stage.apply(v, &of_set()).map(|(v, flat)| (v.voxels.to_f32().into_owned(), flat))
    }

    #[test]
    fn channels_are_normalised_on_their_own() {
        let (v, flat) = normalized(serde_json::json!({ "method": "zscore" }), vec![1., 1., 3., 3., 2., 7., 7., 7., 7., 7.]).unwrap();
        assert!((v[..5].iter().sum::<f32>()).abs() < 1e-6 && (v[..5].iter().map(|v| v * v).sum::<f32>() / 5.0 - 1.0).abs() < 1e-6);
        assert_eq!(v[5..], [0.0; 5]);
        assert_eq!(flat, ["T2"]);
    }

    #[test]
    fn background_at_zero_is_left_alone() {
        let image = vec![0., 0., 2., 4., 6., 0., 0., 0., 0., 0.];
        let (v, _) =
            normalized(serde_json::json!({ "method": "percentiles", "lower": 0, "upper": 100, "nonzero": true }), image.clone()).unwrap();
        assert_eq!(v, [0., 0., 0., 0.5, 1., 0., 0., 0., 0., 0.]);
        let (v, _) = normalized(serde_json::json!({ "method": "zscore", "nonzero": true }), image).unwrap();
        assert_eq!((v[0], v[3]), (0.0, 0.0));
        assert!(v[2] < 0.0 && v[4] > 0.0);
    }

    #[test]
    fn padding_takes_no_part() {
        let image = vec![-2000., 1., 2., 3., -2000., 0., 1., 2., 3., 4.];
        let zscore = serde_json::json!({ "method": "zscore" });
        let (v, _) = padded(zscore, image.clone(), Some([-2000., -2000.])).unwrap();
        assert_eq!((v[0], v[4], v[2]), (v[1], v[1], 0.0), "{v:?}");
        let percent = serde_json::json!({ "method": "percentiles", "lower": 0, "upper": 100 });
        let (v, _) = padded(percent, image, Some([-2000., -1000.])).unwrap();
        assert_eq!(v[..5], [0., 0., 0.5, 1., 0.]);
    }

    #[test]
    fn a_fingerprint_clips_and_scales_every_case_alike() {
        let image = vec![-1000., 50., 75., 3000., -100., 0., 0., 0., 0., 0.];
        let (v, flat) = normalized(serde_json::json!({ "method": "ct" }), image.clone()).unwrap();
        assert_eq!((&v[..5], flat.len()), (&[-6., 0., 1., 10., -6.][..], 0));
        assert_eq!(v[9], 0.0, "no deviation divides by 1e-8, not by 0");
        let (v, _) = padded(serde_json::json!({ "method": "ct" }), image, Some([3000., 3000.])).unwrap();
        assert_eq!(v[..5], [-6., 0., 1., -6., -6.], "padding is no bone");
        assert!(unknown("T1", &[]).to_string().contains("a node `fingerprint`"));
    }

    #[test]
    fn an_image_of_nothing_finite_is_refused() {
        assert!(
            normalized(serde_json::json!({ "method": "zscore" }), vec![f32::NAN; 10]).unwrap_err().to_string().contains("no finite voxel")
        );
    }
}
