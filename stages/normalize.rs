//! Brings the intensities of each volume to a common scale, channel by channel: by its own statistics, in which padding takes no part, or by those of a set.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::{Kind, Port, Scope};
use voxmill_schemas::tables::FingerprintChannelRow;

use crate::error::Error;
use crate::ops::intensity::Map;
use crate::ops::normalize::{Among, Scale, normalize, not_zero};
use crate::stage::{Cx, Facts, Finding, Info, Inputs, Progress, Stage, Wiring};
use crate::table;
use crate::volume::{Outline, Precision, Step, StoredVolume, Volume, Voxels, apply, looked_bytes, mask, streamed_bytes, whole_bytes};

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
    /// For `zscore`: subtract this instead of the mean, in the volume's unit; one number, or a list of one a channel (MONAI `NormalizeIntensity`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subtrahend: Option<PerChannel>,
    /// For `zscore`: divide by this instead of the standard deviation; one number, or a list of one a channel. 0 divides by 1, as in MONAI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divisor: Option<PerChannel>,
    /// Statistics of each channel on its own; `false`: of all channels together (what MONAI does unless told).
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub channel_wise: bool,
    /// Take statistics from voxels of these classes alone and change every voxel by them (TorchIO `ZNormalization` with a mask). The classes are those of the
    /// labels at the port `mask`, else of the volume's own; an empty list is any class. May be left out where the port is connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<Vec<String>>,
    /// With a mask: what voxels outside it become afterwards, for example 0 (nnU-Net's `use_mask_for_norm`). Left out: they are changed like the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<f64>,
    /// Type that the values are stored as: `float32`, or `float16` in half the space, rounded to 11 bits (three digits); values beyond ±65504 are refused.
    #[serde(default, skip_serializing_if = "Precision::is_full")]
    pub dtype: Precision,
}

/// A number for every channel, or one each in their order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum PerChannel {
    /// For all.
    One(f64),
    /// One a channel.
    Each(Vec<f64>),
}

impl PerChannel {
    fn numbers(&self) -> &[f64] {
        match self {
            PerChannel::One(n) => std::slice::from_ref(n),
            PerChannel::Each(all) => all,
        }
    }

    /// That of a channel. As many as there are channels have been checked for.
    fn of(&self, channel: usize) -> f64 {
        match self {
            PerChannel::One(n) => *n,
            PerChannel::Each(all) => all[channel],
        }
    }
}

fn yes() -> bool {
    true
}

fn is_yes(v: &bool) -> bool {
    *v
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
    /// Both constants, the same for every channel, on a volume without padding: each value by itself, whatever the others are.
    fn steps(&self, of: &Outline) -> Option<Vec<Step>> {
        let (Some(PerChannel::One(mean)), Some(PerChannel::One(std))) = (&self.subtrahend, &self.divisor) else { return None };
        if of.about.padding.is_some() || self.outside.is_some() {
            return None;
        }
        let map = Map::Normalize { mean: *mean as f32, std: not_zero(*std), nonzero: self.nonzero };
        Some([Step::Map { maps: vec![map], unit: "normalised".into() }].into_iter().chain(self.dtype.step()).collect())
    }

    /// Refuses a list of constants that does not go with the channels.
    fn check_channels(&self, channels: &[String]) -> Result<(), Error> {
        for (what, given) in [("subtrahend", &self.subtrahend), ("divisor", &self.divisor)] {
            if let Some(PerChannel::Each(all)) = given
                && (all.len() != channels.len() || !self.channel_wise)
            {
                let expected = format!("one a channel ({}) and `channel_wise`, or one number", channels.join(", "));
                return Err(Error::Input { what: format!("`{what}`"), found: format!("a list of {}", all.len()), expected });
            }
        }
        Ok(())
    }

    /// Labels that are asked for and never there.
    fn check_classes(&self, node: &Wiring) -> Vec<Finding> {
        let (port, wire) = match node.ports.get("mask") {
            Some(wire) => ("mask", wire),
            None if self.within.is_some() => ("volume", node.ports.get("volume").expect("it is required")),
            None => return Vec::new(),
        };
        let Some(classes) = &wire.classes else { return Vec::new() };
        if classes.is_empty() {
            let message = format!("{} gives volumes without labels, and a mask is asked for", wire.node);
            let help = "put `annotate` before it, or connect volumes with labels at the port `mask`";
            return vec![if port == "mask" { Finding::at_port("mask", message, help) } else { Finding::error("within", message, help) }];
        }
        let unknown = self.within.iter().flatten().enumerate().filter(|(_, name)| !classes.contains(name));
        unknown
            .map(|(i, name)| {
                let message = format!("the labels of {} have no class {name}", wire.node);
                Finding::error(&format!("within.{i}"), message, format!("one of {}", classes.join(", ")))
            })
            .collect()
    }

    /// The volume and the names of channels in which nothing differs.
    /// - `of_set`: what a fingerprint says of each channel, for `ct`
    /// - `mask`: `[z, y, x]`, where statistics are taken
    fn apply(&self, v: Volume, of_set: &[FingerprintChannelRow], mask: Option<&[bool]>) -> Result<(Volume, Vec<String>), Error> {
        self.check_channels(&v.channels)?;
        let mut values = v.voxels.into_f32();
        let mut flat = Vec::new();
        let among = Among { nonzero: self.nonzero, padding: v.about.padding, mask, outside: self.outside.map(|v| v as f32) };
        let n = v.geometry.size.count().max(1);
        let (names, block) = if self.channel_wise { (v.channels.clone(), n) } else { (vec![v.channels.join(", ")], values.len().max(1)) };
        for (c, (name, values)) in names.iter().zip(values.chunks_exact_mut(block)).enumerate() {
            match normalize(values, self.scale(c, name, of_set)?, among) {
                None => {
                    return Err(Error::Input {
                        what: format!("channel {name}"),
                        found: "no finite voxel".into(),
                        expected: "an image".into(),
                    });
                }
                Some(0.0) => flat.push(name.clone()),
                Some(_) => {}
            }
        }
        let mut about = v.about;
        about.unit = "normalised".into();
        about.padding = None;
        Ok((Volume { voxels: Voxels::F32(values), about, ..v }, flat))
    }

    fn scale(&self, channel: usize, name: &str, of_set: &[FingerprintChannelRow]) -> Result<Scale, Error> {
        Ok(match self.method {
            Method::Zscore => {
                let of = |given: &Option<PerChannel>| given.as_ref().map(|g| g.of(channel));
                Scale::Zscore { subtrahend: of(&self.subtrahend), divisor: of(&self.divisor) }
            }
            Method::Percentiles => Scale::Percentiles { lower: self.lower, upper: self.upper },
            Method::Ct => {
                let row = of_set.iter().find(|r| r.channel == name).ok_or_else(|| unknown(name, of_set))?;
                Scale::Set { low: row.percentile_00_5, high: row.percentile_99_5, mean: row.mean, std: row.std }
            }
        })
    }
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
            Port { name: "mask", kind: Kind::Volume, required: false, about: "labels on the same grid: statistics are taken inside them" },
        ],
        gives: Kind::Volume,
        summary: "bring the intensities of each volume to a common scale by its own statistics or those of the training cases",
        example: "uses: normalize\nfrom: iso\nwith: { method: zscore }\n",
        absent_in_inference: None,
    };

    fn check(&self) -> Vec<Finding> {
        let mut out: Vec<Finding> = Finding::of_percentiles(self.lower, self.upper).into_iter().collect();
        for (field, given) in [("subtrahend", &self.subtrahend), ("divisor", &self.divisor)] {
            let Some(given) = given else { continue };
            if self.method != Method::Zscore {
                out.push(Finding::error(field, "a constant has no effect with this method", "`method: zscore`, or leave it out"));
            }
            if given.numbers().is_empty() || !given.numbers().iter().all(|n| n.is_finite()) {
                out.push(Finding::error(field, "no number", "a finite number, or a list of one a channel"));
            }
            if matches!(given, PerChannel::Each(_)) && !self.channel_wise {
                out.push(Finding::error(field, "a list needs channels of their own", "one number, or `channel_wise: true`"));
            }
        }
        if self.method == Method::Ct && (!self.channel_wise || self.within.is_some()) {
            let field = if self.channel_wise { "within" } else { "channel_wise" };
            out.push(Finding::error(field, "`ct` takes the statistics of a set, channel by channel", "leave it out, or another method"));
        }
        if self.outside.is_some_and(|v| !v.is_finite()) {
            out.push(Finding::error("outside", "the value is no number", "a finite number"));
        }
        out
    }

    fn check_node(&self, node: &Wiring) -> Vec<Finding> {
        let mut out = Vec::new();
        let has_mask = node.has("mask") || self.within.is_some();
        if self.method == Method::Ct {
            if !node.has("fingerprint") {
                let help = "connect a node that uses `fingerprint`: from: { volume: …, fingerprint: NODE }";
                out.push(Finding::error("method", "`ct` takes the statistics of a set of cases, and none comes in", help));
            }
        } else if node.has("fingerprint") {
            let help = "take `fingerprint` out of `from`, or write `method: ct`";
            out.push(Finding::at_port("fingerprint", "the fingerprint does nothing here: the method looks at each volume alone", help));
        }
        if self.method != Method::Percentiles {
            out.extend(node.idle(&["lower", "upper"], "with this method", "leave it out, or write `method: percentiles`"));
        }
        if !has_mask {
            let help = "leave it out, or say which voxels are inside: `within: [CLASS]`, or labels at the port `mask`";
            out.extend(node.idle(&["outside"], "without a mask", help));
        }
        let looks = match self.method {
            Method::Zscore => self.subtrahend.is_none() || self.divisor.is_none(),
            Method::Percentiles => true,
            Method::Ct => false,
        };
        if has_mask && !looks && self.outside.is_none() {
            let (message, help) =
                ("the mask does nothing here: the numbers are given", "leave it out, or say what lies outside: `outside: 0`");
            let is_ct = self.method == Method::Ct;
            match (&self.within, node.has("mask")) {
                (_, true) => out.push(Finding::at_port("mask", message, help)),
                // `check` has told of `within` beside `ct`.
                (Some(_), false) if !is_ct => out.push(Finding::error("within", message, help)),
                _ => {}
            }
        }
        if let Some((a, b)) = node.strangers("volume", "mask") {
            let message = format!("only cases that are in both {} and {} are normalised", a.node, b.node);
            out.push(Finding { is_warning: true, ..Finding::at_port("mask", message, "take labels of the same cases") });
        }
        out.extend(self.check_classes(node));
        out
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let input = inputs.one("volume");
        let stored = StoredVolume::open(&input.dir, input.manifest.key)?;
        cx.bytes(input.manifest.bytes);
        if let Some(steps) = self.steps(&stored.outline()).filter(|_| inputs.maybe("mask").is_none()) {
            return stored.then(steps, cx);
        }
        let v = stored.whole()?;
        let at_port = inputs.maybe("mask").map(|m| Volume::read(&m.dir)).transpose()?;
        let mask = match (&at_port, &self.within) {
            (None, None) => None,
            (at_port, within) => Some(mask(at_port.as_ref(), &v, within.as_deref().unwrap_or(&[]))?),
        };
        drop(at_port);
        cx.check_cancelled()?;
        let of_set = match inputs.maybe("fingerprint") {
            Some(f) if self.method == Method::Ct => table::rows_of(&table::open(&f.dir)?)?,
            _ => Vec::new(),
        };
        let (v, flat) = self.apply(v, &of_set, mask.as_deref())?;
        if !flat.is_empty() {
            (cx.progress)(Progress::Warn(format!("every voxel of channel {} has one value", flat.join(", "))));
        }
        let v = apply(v, self.dtype.step().into_iter().collect())?;
        v.write_sharing(cx.draft, None, Some(&input.dir))?;
        Ok(v.facts())
    }

    /// Constants look at no voxel.
    fn is_step(&self) -> bool {
        let is_one = |c: &Option<PerChannel>| matches!(c, Some(PerChannel::One(_)));
        is_one(&self.subtrahend) && is_one(&self.divisor) && self.within.is_none() && self.outside.is_none()
    }

    /// By constants it streams; else the volume in float32 and for percentiles a copy to order, and the mask with the labels it comes from.
    fn memory_bytes(&self, inputs: &Inputs) -> u64 {
        let volume = inputs.one("volume");
        if self.is_step() && inputs.maybe("mask").is_none() {
            return streamed_bytes(volume, |of| Ok(self.steps(of).unwrap_or_default()));
        }
        let mask = inputs.maybe("mask").map_or(0, |m| looked_bytes(m, 0));
        whole_bytes(volume, if self.method == Method::Percentiles { 1 } else { 0 }) + mask
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::geometry::{Geometry, Zyx};

    use super::*;
    use crate::volume::{About, Labels};

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
        let geometry = Geometry::axis_aligned(Zyx::new(1, 1, 5), Zyx::splat(1.0));
        let about = About::of(geometry);
        let v = Volume { geometry, channels: vec!["T1".into(), "T2".into()], voxels: Voxels::F32(values), labels: None, about };
        let stage: Normalize = serde_json::from_value(with).unwrap();
        stage.apply(v, &of_set(), None).map(|(v, flat)| (v.voxels.to_f32().into_owned(), flat))
    }

    #[test]
    fn channels_are_normalised_on_their_own() {
        let (v, flat) = normalized(serde_json::json!({ "method": "zscore" }), vec![1., 1., 3., 3., 2., 7., 7., 7., 7., 7.]).unwrap();
        assert!((v[..5].iter().sum::<f32>()).abs() < 1e-6 && (v[..5].iter().map(|v| v * v).sum::<f32>() / 5.0 - 1.0).abs() < 1e-6);
        assert_eq!(v[5..], [0.0; 5]);
        assert_eq!(flat, ["T2"]);
    }

    #[test]
    fn a_fingerprint_says_the_numbers_of_each_channel() {
        let image = vec![-1000., 50., 75., 3000., -100., 0., 0., 0., 0., 0.];
        let (v, flat) = normalized(serde_json::json!({ "method": "ct" }), image).unwrap();
        assert_eq!((&v[..5], v[9], flat.len()), (&[-6., 0., 1., 10., -6.][..], 0.0, 0));
        assert!(unknown("T1", &[]).to_string().contains("a node `fingerprint`"));
    }

    fn labelled(values: Vec<f32>, labels: Vec<u8>) -> Volume {
        let geometry = Geometry::axis_aligned(Zyx::new(1, 1, labels.len()), Zyx::splat(1.0));
        let classes = [("Brain".to_string(), 1), ("Skull".to_string(), 2)].into_iter().collect();
        let channels = (0..values.len() / labels.len()).map(|c| format!("T{c}")).collect();
        let labels = Some(Labels { classes, voxels: labels });
        Volume { geometry, channels, voxels: Voxels::F32(values), labels, about: About::of(geometry) }
    }

    fn stage(with: serde_json::Value) -> Normalize {
        serde_json::from_value(with).unwrap()
    }

    #[test]
    fn constants_stand_in_for_statistics_and_alone_make_a_step() {
        // MONAI: NormalizeIntensity(subtrahend=2, divisor=4); divisor=0 divides by 1; without a divisor by the population deviation.
        let on = |with, values: &[f32]| stage(with).apply(labelled(values.to_vec(), vec![0; 4]), &[], None).unwrap().0.voxels.into_f32();
        let x = [0.0, 2.0, 4.0, 10.0];
        let both = serde_json::json!({ "method": "zscore", "subtrahend": 2, "divisor": 4 });
        assert_eq!(on(both.clone(), &x), [-0.5, 0.0, 0.5, 2.0]);
        assert_eq!(on(serde_json::json!({ "method": "zscore", "subtrahend": 2, "divisor": 0 }), &x), [-2.0, 0.0, 2.0, 8.0]);
        let mean: f64 = x.iter().map(|v| *v as f64).sum::<f64>() / 4.0;
        let var = x.iter().map(|v| (*v as f64 - mean).powi(2)).sum::<f64>() / 4.0;
        let got = on(serde_json::json!({ "method": "zscore", "subtrahend": 1 }), &x);
        assert!(got.iter().zip(x).all(|(a, v)| (*a as f64 - (v as f64 - 1.0) / var.sqrt()).abs() < 1e-6), "{got:?}");
        let two = labelled([x, x].concat(), vec![0; 4]);
        let lists = serde_json::json!({ "method": "zscore", "subtrahend": [0, 2], "divisor": [2, 4] });
        let got = stage(lists.clone()).apply(two.clone(), &[], None).unwrap().0.voxels.into_f32();
        assert_eq!(got, [0.0, 1.0, 2.0, 5.0, -0.5, 0.0, 0.5, 2.0]);
        assert!(stage(lists).apply(labelled(x.to_vec(), vec![0; 4]), &[], None).unwrap_err().to_string().contains("a list of 2"));
        for nonzero in [false, true] {
            let mut with = both.clone();
            with["nonzero"] = nonzero.into();
            let s = stage(with);
            let steps = s.steps(&Outline::of(&two)).unwrap();
            assert!(s.is_step());
            assert_eq!(apply(two.clone(), steps).unwrap().voxels, s.apply(two.clone(), &[], None).unwrap().0.voxels);
        }
        assert!(!stage(serde_json::json!({ "method": "zscore", "subtrahend": 2 })).is_step());
        assert_eq!(stage(serde_json::json!({ "method": "percentiles", "subtrahend": 2 })).check().len(), 1);
        assert_eq!(stage(serde_json::json!({ "method": "zscore", "divisor": [1], "channel_wise": false })).check().len(), 1);
    }

    #[test]
    fn channels_share_their_statistics_where_asked() {
        let v = labelled(vec![0.0, 2.0, 4.0, 6.0], vec![0, 0]);
        let s = stage(serde_json::json!({ "method": "zscore", "channel_wise": false }));
        let got = s.apply(v, &[], None).unwrap().0.voxels.into_f32();
        assert!(got.iter().zip([-3.0, -1.0, 1.0, 3.0]).all(|(a, b)| (a - b / 5f32.sqrt()).abs() < 1e-6), "{got:?}");
    }

    #[test]
    fn statistics_inside_a_mask_change_every_voxel() {
        let v = labelled(vec![10.0, 1.0, 3.0, 50.0, 1.0, 3.0, 9.0, 9.0], vec![0, 1, 1, 2]);
        let brain = stage(serde_json::json!({ "method": "zscore", "within": ["Brain"] }));
        let mask = mask(None, &v, &["Brain".into()]).unwrap();
        let got = brain.apply(v.clone(), &[], Some(&mask)).unwrap().0.voxels.into_f32();
        assert_eq!(got[..4], [8.0, -1.0, 1.0, 48.0]);
        let blank = stage(serde_json::json!({ "method": "zscore", "within": ["Brain"], "outside": 0 }));
        assert_eq!(blank.apply(v.clone(), &[], Some(&mask)).unwrap().0.voxels.into_f32()[..4], [0.0, -1.0, 1.0, 0.0]);
    }

    #[test]
    fn an_image_of_nothing_finite_is_refused() {
        assert!(
            normalized(serde_json::json!({ "method": "zscore" }), vec![f32::NAN; 10]).unwrap_err().to_string().contains("no finite voxel")
        );
    }
}
