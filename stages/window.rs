//! Maps a range of intensities, the window, to another range: Hounsfield units to 0…1.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::{Kind, Port, Scope};

use crate::error::Error;
use crate::ops::intensity::Map;
use crate::stage::{Cx, Facts, Finding, Info, Inputs, Stage};
use crate::volume::{Outline, Precision, Step, StoredVolume, streamed_bytes};

/// Maps the intensities from `low` to `high` to those from `to_low` to `to_high` (MONAI `ScaleIntensityRange`).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Intensity that becomes `to_low`, in the volume's unit (HU for CT). Goes with `high`; not beside `preset`.
    #[serde(default)]
    pub low: Option<f64>,
    /// Intensity that becomes `to_high`.
    #[serde(default)]
    pub high: Option<f64>,
    /// A window of the clinic instead of `low` and `high`. Only for volumes in HU.
    #[serde(default)]
    pub preset: Option<Preset>,
    /// What `low` becomes.
    #[serde(default)]
    pub to_low: f64,
    /// What `high` becomes.
    #[serde(default = "one")]
    pub to_high: f64,
    /// Hold intensities outside the window at its ends.
    #[serde(default = "yes")]
    pub clip: bool,
    /// Type that the values are stored as: `float32`, or `float16` in half the space, rounded to 11 bits (three digits); values beyond ±65504 are refused.
    #[serde(default, skip_serializing_if = "Precision::is_full")]
    pub dtype: Precision,
}

fn one() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

/// Windows that radiologists set, in HU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// −500…1300 (width 1800, level 400)
    Bone,
    /// −1350…150 (width 1500, level −600)
    Lung,
    /// −160…240 (width 400, level 40)
    SoftTissue,
    /// −125…225 (width 350, level 50)
    Mediastinum,
    /// −45…105 (width 150, level 30)
    Liver,
    /// 0…80 (width 80, level 40)
    Brain,
}

impl Preset {
    fn range_hu(self) -> (f64, f64) {
        let (width, level) = match self {
            Preset::Bone => (1800.0, 400.0),
            Preset::Lung => (1500.0, -600.0),
            Preset::SoftTissue => (400.0, 40.0),
            Preset::Mediastinum => (350.0, 50.0),
            Preset::Liver => (150.0, 30.0),
            Preset::Brain => (80.0, 40.0),
        };
        (level - width / 2.0, level + width / 2.0)
    }
}

impl Window {
    fn range(&self) -> Option<(f64, f64)> {
        match (self.preset, self.low, self.high) {
            (Some(p), None, None) => Some(p.range_hu()),
            (None, Some(low), Some(high)) => Some((low, high)),
            _ => None,
        }
    }

    fn steps(&self, of: &Outline) -> Result<Vec<Step>, Error> {
        let (low, high) = self.range().ok_or_else(|| Error::Input {
            what: "window".into(),
            found: format!("preset {:?}, low {:?}, high {:?}", self.preset, self.low, self.high),
            expected: "low and high, or a preset".into(),
        })?;
        if let Some(preset) = self.preset.filter(|_| of.about.unit != "HU") {
            return Err(Error::Input {
                what: format!("window preset {preset:?}"),
                found: format!("intensities in `{}`", of.about.unit),
                expected: "HU: give low and high instead".into(),
            });
        }
        let window =
            Map::Window { low: low as f32, high: high as f32, to_low: self.to_low as f32, to_high: self.to_high as f32, clip: self.clip };
        // Padding is no tissue: it goes to the low end, whatever its value.
        let hidden = of.about.padding.map(|from| Map::Replace { from, to: low as f32 });
        let map = Step::Map { maps: hidden.into_iter().chain([window]).collect(), unit: "normalised".into() };
        Ok([map].into_iter().chain(self.dtype.step()).collect())
    }
}

impl Stage for Window {
    const INFO: Info = Info {
        name: "window",
        version: 1,
        scope: Scope::Case,
        ports: &[Port { name: "volume", kind: Kind::Volume, required: true, about: "what is windowed; labels pass through" }],
        gives: Kind::Volume,
        summary: "map a window of intensities to a range, 0 to 1 unless told otherwise",
        example: "uses: window\nfrom: iso\nwith: { low: -1000, high: 1000, to_low: 0, to_high: 1, clip: true }\n",
        absent_in_inference: None,
    };

    fn check(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        match self.range() {
            None => out.push(Finding::error("", "the window is not given", "either `low` and `high`, or `preset` alone")),
            Some((low, high)) if !(low < high) => {
                out.push(Finding::error("high", format!("the window runs from {low} to {high}"), "`high` lies above `low`"));
            }
            Some(_) => {}
        }
        if self.to_low == self.to_high {
            out.push(Finding::error("to_high", "every intensity would become the same", "`to_high` other than `to_low`"));
        }
        out
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let input = inputs.one("volume");
        let v = StoredVolume::open(&input.dir, input.manifest.key)?;
        cx.bytes(input.manifest.bytes);
        v.then(self.steps(&v.outline())?, cx)
    }

    fn is_step(&self) -> bool {
        true
    }

    fn window(&self) -> Option<[(f64, f64); 2]> {
        self.range().map(|from| [from, (self.to_low.min(self.to_high), self.to_low.max(self.to_high))])
    }

    fn memory_bytes(&self, inputs: &Inputs) -> u64 {
        streamed_bytes(inputs.one("volume"), |of| self.steps(of))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::geometry::{Geometry, Zyx};

    use super::*;
    use crate::volume::{About, Volume, Voxels, apply};

    fn stage(with: serde_json::Value) -> Window {
        serde_json::from_value(with).unwrap()
    }

    fn windowed(s: &Window, v: Volume) -> Result<Volume, Error> {
        let steps = s.steps(&Outline::of(&v))?;
        apply(v, steps)
    }

    fn volume(unit: &str) -> Volume {
        let geometry = Geometry::axis_aligned(Zyx::new(1, 1, 4), Zyx::splat(1.0));
        let text = || "x".to_string();
        let about = About {
            modality: "CT".into(),
            unit: unit.into(),
            patient: text(),
            study: text(),
            series: text(),
            volume: 0,
            ..About::of(geometry)
        };
        Volume { geometry, channels: vec!["CT".into()], voxels: Voxels::I16(vec![-2000, -1000, 500, 1000]), labels: None, about }
    }

    #[test]
    fn hounsfield_units_become_zero_to_one() {
        let v = windowed(&stage(serde_json::json!({ "low": -1000, "high": 1000 })), volume("HU")).unwrap();
        assert_eq!(v.voxels, Voxels::F32(vec![0.0, 0.0, 0.75, 1.0]));
        assert_eq!(v.about.unit, "normalised");
        let brain = stage(serde_json::json!({ "preset": "brain", "to_low": 1, "to_high": -1 }));
        assert_eq!(Stage::window(&brain), Some([(0.0, 80.0), (-1.0, 1.0)]));
    }

    #[test]
    fn padding_goes_to_the_low_end_whatever_its_value() {
        let mut v = volume("HU");
        v.about.padding = Some([1000.0, 1000.0]);
        let v = windowed(&stage(serde_json::json!({ "low": -1000, "high": 1000 })), v).unwrap();
        assert_eq!((v.voxels, v.about.padding), (Voxels::F32(vec![0.0, 0.0, 0.75, 0.0]), None));
    }

    #[test]
    fn a_preset_is_refused_on_what_is_not_hu() {
        let bone = stage(serde_json::json!({ "preset": "bone" }));
        assert_eq!(windowed(&bone, volume("HU")).unwrap().voxels.to_f32()[3], (1000.0 + 500.0) / 1800.0);
        assert!(windowed(&bone, volume("stored")).unwrap_err().to_string().contains("stored"));
    }

    #[test]
    fn a_window_without_or_with_wrong_ends_is_named() {
        let findings = |v| stage(v).check().len();
        assert_eq!(findings(serde_json::json!({})), 1);
        assert_eq!(findings(serde_json::json!({ "low": 1 })), 1);
        assert_eq!(findings(serde_json::json!({ "low": 1, "high": 0 })), 1);
        assert_eq!(findings(serde_json::json!({ "preset": "lung", "low": 0, "high": 1 })), 1);
        assert_eq!(findings(serde_json::json!({ "low": 0, "high": 1, "to_high": 0 })), 1);
        assert_eq!(findings(serde_json::json!({ "low": 0, "high": 1 })), 0);
    }
}
