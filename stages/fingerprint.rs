//! The fingerprint of a set, as nnU-Net v2 takes it: sizes and spacings of its cases, intensities over their foreground, what its classes look like.
//! One case is in memory at a time; of its intensities a bounded sample stays.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::{Kind, Port, Scope};
use voxmill_schemas::region::Region;
use voxmill_schemas::tables::{FingerprintCaseRow, FingerprintChannelRow, FingerprintClassRow, SplitRow};

use crate::error::{Error, chain};
use crate::ops::crop::bounding_box;
use crate::ops::intensity;
use crate::ops::morphology::{Neighbours, components};
use crate::stage::{Cx, Facts, Finding, Info, Input, Inputs, Progress, Quarantined, Stage};
use crate::table;
use crate::volume::Volume;

/// Measures a set: sizes and spacings in voxels and millimetres, intensities over the foreground in units of the image, volumes of its classes in millilitres.
/// `normalize` and `recommend` read it. Connect `split` so that only training cases are measured.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    /// Which voxels are foreground: `labels` (every class but background, as in nnU-Net), `nonzero` (values other than 0) or `all`. Padding never is.
    #[serde(default)]
    pub over: Over,
    /// Intensities kept for the percentiles, over all cases; every case gives the same number. Four bytes each a channel. Mean, deviation and range are exact.
    #[serde(default = "samples")]
    pub samples: u64,
    /// Count the connected pieces of each class, too.
    #[serde(default)]
    pub components: bool,
    /// The fold of the split whose training cases are measured, from 0.
    #[serde(default)]
    pub fold: u32,
}

/// Which voxels are foreground.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Over {
    /// Voxels of any class but background.
    #[default]
    Labels,
    /// Voxels that are not 0.
    Nonzero,
    /// Every voxel.
    All,
}

fn samples() -> u64 {
    10_000_000
}

impl Stage for Fingerprint {
    const INFO: Info = Info {
        name: "fingerprint",
        version: 1,
        scope: Scope::Set,
        ports: &[
            Port {
                name: "cases",
                kind: Kind::Volume,
                required: true,
                about: "what is measured: volumes before intensities and spacing change",
            },
            Port { name: "split", kind: Kind::Table, required: false, about: "only its training cases are measured" },
        ],
        gives: Kind::Model,
        summary: "measure a set: spacing, size, intensity over the foreground, volumes of its classes",
        example: "uses: fingerprint\nfrom: { cases: labelled, split: folds }\nwith: { over: labels }\n",
        absent_in_inference: None,
    };

    fn check(&self) -> Vec<Finding> {
        match self.samples {
            1_000..=1_000_000_000 => Vec::new(),
            n => vec![Finding::error("samples", format!("{n} samples"), "from 1000 to 1000000000")],
        }
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let cases = self.training(inputs)?;
        if inputs.maybe("split").is_none() {
            let text = "every case is measured, those that judge a model as well: connect the port `split` where `normalize` uses this for a training";
            (cx.progress)(Progress::Warn(text.into()));
        }
        let share = (self.samples as usize / cases.len()).max(1);
        let mut set = Set::default();
        let mut refused: Vec<(Quarantined, Error)> = Vec::new();
        for (done, input) in cases.iter().enumerate() {
            cx.check_cancelled()?;
            let case = input.manifest.case.as_ref().map(|c| c.0.clone()).unwrap_or_default();
            match Volume::read(&input.dir).and_then(|v| self.measure(&case, &v, share)) {
                Ok(measured) => set.take(measured),
                Err(e) if e.is_of_the_moment() => return Err(e),
                Err(e) => refused.push((Quarantined { what: case, why: chain(&e) }, e)),
            }
            cx.bytes(input.manifest.bytes);
            (cx.progress)(Progress::Steps { done: done as u64 + 1, of: cases.len() as u64 });
        }
        if set.cases.is_empty()
            && let Some((_, first)) = refused.pop()
        {
            return Err(first);
        }
        let channels = set.channels()?;
        table::write_rows(cx.draft, &set.cases)?;
        table::write_rows(cx.draft, &channels)?;
        table::write_rows(cx.draft, &set.classes())?;
        let by_channel = |f: fn(&FingerprintChannelRow) -> f64| channels.iter().map(|c| (&c.channel, f(c))).collect::<IndexMap<_, _>>();
        let mut facts = Facts::default()
            .with("cases", set.cases.len())
            .with("mean", by_channel(|c| c.mean))
            .with("std", by_channel(|c| c.std))
            .with("percentile_00_5", by_channel(|c| c.percentile_00_5))
            .with("percentile_99_5", by_channel(|c| c.percentile_99_5));
        facts.quarantined = refused.into_iter().map(|(q, _)| q).collect();
        Ok(facts)
    }

    /// The largest case, its float32 view, and the samples while they are sorted.
    fn memory_bytes(&self, inputs: &Inputs) -> u64 {
        let fact = |i: &Input| i.manifest.facts.get("voxels").and_then(|v| v.as_u64()).unwrap_or(0);
        let voxels = inputs.all("cases").iter().map(fact).max().unwrap_or(0);
        voxels.saturating_mul(12).saturating_add(self.samples.saturating_mul(8)).max(256 << 20)
    }
}

/// What one case gives.
struct Measured {
    case: FingerprintCaseRow,
    channels: Vec<(String, Channel)>,
    /// Name, id, voxels, volume, pieces.
    classes: Vec<(String, u8, u64, f64, Option<usize>)>,
}

/// A channel of one case over its foreground.
#[derive(Clone, Debug, Default)]
struct Channel {
    unit: String,
    voxels: usize,
    mean: f64,
    std: f64,
    range: Option<(f32, f32)>,
    /// In the order of the array.
    sample: Vec<f32>,
}

impl Fingerprint {
    /// The cases to measure.
    fn training<'a>(&self, inputs: &'a Inputs) -> Result<Vec<&'a Input>, Error> {
        let all = inputs.all("cases");
        let Some(split) = inputs.maybe("split") else {
            return if all.is_empty() { Err(nothing("no case".into())) } else { Ok(all.iter().collect()) };
        };
        let rows: Vec<SplitRow> = match &split.rows {
            Some(rows) => table::rows_of(rows)?,
            None => table::rows_of(&table::open(&split.dir)?)?,
        };
        let parts = SplitRow::parts(&rows, self.fold as i64);
        let trains = |i: &&Input| i.manifest.case.as_ref().and_then(|c| parts.get(&c.0)).is_some_and(|p| p == "train");
        let chosen: Vec<&Input> = all.iter().filter(trains).collect();
        if chosen.is_empty() {
            return Err(nothing(format!("none of {} cases in the part `train` of fold {}", all.len(), self.fold)));
        }
        Ok(chosen)
    }

    fn measure(&self, case: &str, v: &Volume, share: usize) -> Result<Measured, Error> {
        v.check_regular()?;
        let (size, spacing) = (v.geometry.size, v.geometry.spacing_mm());
        let n = size.count().max(1);
        let labels = v.labels.as_ref().map(|l| l.voxels.as_slice());
        if self.over == Over::Labels && labels.is_none() {
            return Err(Error::Labels {
                what: format!("case {case}"),
                why: "it has no labels to take the foreground from: connect a node that adds them, or take `over: nonzero`".into(),
            });
        }
        let values = v.voxels.to_f32();
        let is_padding = |x: f32| v.about.padding.is_some_and(|[low, high]| (low..=high).contains(&(x as f64)));
        let keep = |i: usize, x: f32| {
            !is_padding(x)
                && match self.over {
                    Over::Labels => labels.is_some_and(|l| l[i] != 0),
                    Over::Nonzero => x != 0.0,
                    Over::All => true,
                }
        };
        let of = |values: &[f32]| {
            let (mean, std, voxels) = intensity::mean_std(values, keep);
            let kept = || values.iter().enumerate().filter(|(i, x)| x.is_finite() && keep(*i, **x)).map(|(_, x)| *x);
            let range = kept().fold(None, |r: Option<(f32, f32)>, x| Some(r.map_or((x, x), |(a, b)| (a.min(x), b.max(x)))));
            Channel { unit: v.about.unit.clone(), voxels, mean, std, range, sample: sampled(kept(), voxels, share) }
        };
        let channels: Vec<(String, Channel)> = v.channels.iter().cloned().zip(values.chunks_exact(n).map(of)).collect();
        let crop = bounding_box(&values, size, |x| x != 0.0).unwrap_or(Region::whole(size)).size;
        let ml = spacing.z * spacing.y * spacing.x / 1000.0;
        let classes = v.labels.iter().flat_map(|l| {
            let mut counts = [0u64; 256];
            l.voxels.iter().for_each(|id| counts[*id as usize] += 1);
            l.classes.iter().map(move |(name, id)| {
                let pieces = self.components.then(|| {
                    let mask: Vec<u8> = l.voxels.iter().map(|v| (v == id) as u8).collect();
                    components(&mask, size, Neighbours::All).1.len()
                });
                (name.clone(), *id, counts[*id as usize], counts[*id as usize] as f64 * ml, pieces)
            })
        });
        let [size_z, size_y, size_x] = size.to_array().map(|n| n as i64);
        let [crop_z, crop_y, crop_x] = crop.to_array().map(|n| n as i64);
        let row = FingerprintCaseRow {
            case: case.into(),
            modality: v.about.modality.clone(),
            size_z,
            size_y,
            size_x,
            spacing_z_mm: spacing.z,
            spacing_y_mm: spacing.y,
            spacing_x_mm: spacing.x,
            crop_z,
            crop_y,
            crop_x,
            cropped_share: crop.count() as f64 / n as f64,
            foreground_voxels: channels.first().map_or(0, |(_, c)| c.voxels as i64),
        };
        Ok(Measured { case: row, channels, classes: classes.collect() })
    }
}

fn nothing(found: String) -> Error {
    Error::Input { what: "fingerprint".into(), found, expected: "at least one case to measure".into() }
}

/// `wanted` of `n` values: one from each of `wanted` stretches of equal length, at a place that depends on nothing but these numbers. Where there are fewer values
/// than wanted each is taken equally often (±1), so that every case counts the same.
fn sampled(values: impl Iterator<Item = f32>, n: usize, wanted: usize) -> Vec<f32> {
    if n == 0 {
        return Vec::new();
    }
    let edge = |j: usize| (j as u128 * n as u128 / wanted as u128) as usize;
    let rank = |j: usize| {
        let (low, end) = (edge(j), edge(j + 1));
        if end > low + 1 { low + (mixed(j as u64) % (end - low) as u64) as usize } else { low }
    };
    let (mut out, mut j) = (Vec::with_capacity(wanted), 0);
    let mut next = rank(0);
    for (i, v) in values.enumerate() {
        while j < wanted && next == i {
            out.push(v);
            j += 1;
            next = rank(j);
        }
    }
    out
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
fn mixed(x: u64) -> u64 {
    let mut z = x.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Voxels, millilitres and pieces of a class in a case.
type ClassOfCase = (u64, f64, Option<usize>);

/// What was measured so far.
#[derive(Default)]
struct Set {
    cases: Vec<FingerprintCaseRow>,
    /// Name → one entry a case with foreground.
    channels: IndexMap<String, Vec<Channel>>,
    /// Id and name → voxels, volume and pieces of the cases that have it.
    classes: BTreeMap<(u8, String), Vec<ClassOfCase>>,
}

impl Set {
    fn take(&mut self, m: Measured) {
        self.cases.push(m.case);
        for (name, channel) in m.channels {
            let of = self.channels.entry(name).or_default();
            if channel.voxels > 0 {
                of.push(channel);
            }
        }
        for (name, id, voxels, ml, pieces) in m.classes {
            let of = self.classes.entry((id, name)).or_default();
            if voxels > 0 {
                of.push((voxels, ml, pieces));
            }
        }
    }

    fn channels(&mut self) -> Result<Vec<FingerprintChannelRow>, Error> {
        let mut out = Vec::new();
        for (name, cases) in &mut self.channels {
            let n = cases.len() as f64;
            let sample = cases.iter_mut().flat_map(|c| std::mem::take(&mut c.sample));
            let Some(p) = intensity::percentiles(sample, &[0.5, 50.0, 99.5]) else {
                return Err(Error::Input {
                    what: format!("foreground of channel {name}"),
                    found: format!("no voxel in {} cases", self.cases.len()),
                    expected: "a case with foreground (`over: nonzero` or `over: all` need no labels)".into(),
                });
            };
            let mean = cases.iter().map(|c| c.mean).sum::<f64>() / n;
            // The variance within cases and that between them.
            let variance = cases.iter().map(|c| c.std * c.std + (c.mean - mean) * (c.mean - mean)).sum::<f64>() / n;
            let ranges = || cases.iter().filter_map(|c| c.range);
            out.push(FingerprintChannelRow {
                channel: name.clone(),
                unit: cases.first().map(|c| c.unit.clone()).unwrap_or_default(),
                cases: cases.len() as i64,
                voxels: cases.iter().map(|c| c.voxels as i64).sum(),
                mean,
                std: variance.sqrt(),
                median: p[1],
                percentile_00_5: p[0],
                percentile_99_5: p[2],
                min: ranges().map(|r| r.0).fold(f32::INFINITY, f32::min) as f64,
                max: ranges().map(|r| r.1).fold(f32::NEG_INFINITY, f32::max) as f64,
            });
        }
        Ok(out)
    }

    fn classes(&self) -> Vec<FingerprintClassRow> {
        let row = |((id, name), cases): (&(u8, String), &Vec<ClassOfCase>)| {
            let mut ml: Vec<f64> = cases.iter().map(|c| c.1).collect();
            ml.sort_by(f64::total_cmp);
            let n = ml.len();
            let middle = if n == 0 { 0.0 } else { (ml[(n - 1) / 2] + ml[n / 2]) / 2.0 };
            let pieces: Option<usize> = cases.iter().map(|c| c.2).sum();
            FingerprintClassRow {
                class: name.clone(),
                id: *id as i64,
                cases: n as i64,
                voxels: cases.iter().map(|c| c.0 as i64).sum(),
                mean_ml: ml.iter().sum::<f64>() / n.max(1) as f64,
                median_ml: middle,
                min_ml: ml.first().copied().unwrap_or(0.0),
                max_ml: ml.last().copied().unwrap_or(0.0),
                mean_components: pieces.filter(|_| n > 0).map(|p| p as f64 / n as f64),
            }
        };
        self.classes.iter().map(row).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::geometry::{Geometry, Zyx};

    use super::*;
    use crate::volume::{About, Labels, Voxels};

    fn volume(values: Vec<f32>, labels: Vec<u8>) -> Volume {
        let geometry = Geometry::axis_aligned(Zyx::new(1, 1, values.len()), Zyx::new(2.0, 1.0, 0.5));
        let classes = [("a".to_string(), 1), ("b".to_string(), 2)].into_iter().collect();
        let about = About { modality: "CT".into(), unit: "HU".into(), ..About::of(geometry) };
        Volume {
            geometry,
            channels: vec!["CT".into()],
            voxels: Voxels::F32(values),
            labels: Some(Labels { classes, voxels: labels }),
            about,
        }
    }

    fn set(stage: serde_json::Value, volumes: &[Volume], share: usize) -> Set {
        let stage: Fingerprint = serde_json::from_value(stage).unwrap();
        let mut set = Set::default();
        volumes.iter().enumerate().for_each(|(i, v)| set.take(stage.measure(&format!("c{i}"), v, share).unwrap()));
        set
    }

    #[test]
    fn cases_count_the_same_however_large_their_foreground() {
        let small = volume(vec![0., 10., 9.], vec![0, 1, 0]);
        let large = volume(vec![0., 2., 2., 6., 6., 9., 0.], vec![0, 1, 1, 1, 2, 0, 0]);
        let mut s = set(serde_json::json!({}), &[small, large], 1000);
        let c = &s.channels().unwrap()[0];
        // numpy: over 10 ten times and 2, 2, 6, 6 with the same weight together.
        assert_eq!((c.mean, c.voxels, c.cases), (7.0, 5, 2));
        assert!((c.std - 11f64.sqrt()).abs() < 1e-12, "{}", c.std);
        assert_eq!((c.percentile_00_5, c.median, c.percentile_99_5, c.min, c.max), (2.0, 8.0, 10.0, 2.0, 10.0));
        assert_eq!((s.cases[1].crop_x, s.cases[1].foreground_voxels, s.cases[0].spacing_z_mm), (5, 4, 2.0));
    }

    #[test]
    fn classes_are_counted_in_millilitres_and_pieces() {
        let one = volume(vec![1.; 6], vec![1, 0, 1, 1, 0, 2]);
        let two = volume(vec![1.; 6], vec![1, 0, 0, 0, 0, 0]);
        let rows = set(serde_json::json!({ "components": true }), &[one, two], 10).classes();
        assert_eq!((rows[0].cases, rows[0].voxels, rows[0].mean_components), (2, 4, Some(1.5)));
        assert!((rows[0].median_ml - 0.002).abs() < 1e-15 && (rows[0].max_ml - 0.003).abs() < 1e-15);
        assert_eq!((rows[1].cases, rows[1].class.as_str(), rows[1].mean_components), (1, "b", Some(1.0)));
    }

    #[test]
    fn a_sample_stands_for_the_whole() {
        let n = 1_000_003;
        let s = sampled((0..n).map(|v| v as f32), n, 10_000);
        assert_eq!(s.len(), 10_000);
        let p = intensity::percentiles(s.iter().copied(), &[0.5, 50.0, 99.5]).unwrap();
        for (p, q) in p.iter().zip([0.005, 0.5, 0.995]) {
            assert!((p - q * n as f64).abs() < 250.0, "{p}");
        }
        assert_eq!(sampled([1.0, 2.0].into_iter(), 2, 5), [1.0, 1.0, 1.0, 2.0, 2.0]);
        assert_eq!(sampled([1.0, 2.0].into_iter(), 2, 2), [1.0, 2.0]);
    }

    #[test]
    fn foreground_without_labels_is_refused_or_taken_from_values() {
        let mut v = volume(vec![0., 4., 4.], vec![0; 3]);
        assert!(set(serde_json::json!({}), std::slice::from_ref(&v), 9).channels().unwrap_err().to_string().contains("over: nonzero"));
        v.about.padding = Some([0.0, 0.0]);
        let c = set(serde_json::json!({ "over": "all" }), std::slice::from_ref(&v), 9).channels().unwrap();
        assert_eq!((c[0].mean, c[0].voxels), (4.0, 2));
        v.labels = None;
        let stage: Fingerprint = serde_json::from_value(serde_json::json!({})).unwrap();
        assert!(stage.measure("c", &v, 9).is_err());
    }
}
