//! Predicts labels by sliding window and brings them back onto the grid on which the case was assembled. Logits are interpolated, then the largest wins.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::{Key, Kind, Manifest, Port, Scope};
use voxmill_schemas::geometry::Zyx;

use crate::error::Error;
use crate::fit::card::{Card, WEIGHTS};
use crate::fit::parts::{self, Part};
use crate::fit::predict::{self, Axis, Looks, Mean};
use crate::model::{self, Device, Predictor, Window};
use crate::ops::morphology::{self, Neighbours};
use crate::stage::{Cx, Facts, Finding, Info, Input, Inputs, Rows, Stage, Wiring};
use crate::volume::{Labels, StoredVolume, Volume, Voxels, check_regular};

/// Predicts every case with a trained model. The result has labels and no image, and lies on the grid on which the case was assembled: resampling,
/// cropping, padding and reorienting done before are undone.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Infer {
    /// The sliding window. Default: the size of the patches in training, overlap 0.25, gaussian blending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// Which cases: `all`, or those of one part of the split (port `split`).
    #[serde(default)]
    pub only: Only,
    /// The fold of the split that `only` means, from 0.
    #[serde(default)]
    pub fold: u32,
    /// Axes of the volume along which each window is looked at mirrored as well: with `[z, y, x]` eight times. For networks that were trained with flips.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirror: Vec<Axis>,
    /// What mirrored windows, and several models, are averaged by.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mean: Mean,
    /// What is tidied up in the labels, on the original grid.
    #[serde(default, skip_serializing_if = "is_default")]
    pub clean: Clean,
    /// `cpu`, `auto`, `cuda`, `cuda:1`, `wgpu`. On the same kind of CPU the same input gives the same bytes.
    #[serde(default = "cpu")]
    pub device: String,
}

/// What is done to predicted labels, in this order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Clean {
    /// Keep the largest connected piece of these classes and drop the others (nnU-Net, MONAI `KeepLargestConnectedComponent`). Not for structures that come
    /// in several pieces.
    pub largest: Classes,
    /// Give background that these classes enclose on all sides to the class (MONAI `FillHoles`); other classes inside stay.
    pub fill_holes: Classes,
    /// Whether pieces that share only an edge or a corner are one.
    pub neighbours: Near,
}

/// Some classes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Classes {
    #[default]
    None,
    /// `all`
    Word(All),
    Named(Vec<String>),
}

/// Every class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum All {
    All,
}

/// Which voxels are neighbours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Near {
    /// The 26 around a voxel.
    #[default]
    All,
    /// The 6 that share a face.
    Faces,
}

impl Classes {
    /// Their ids in order; an error where the model has no class of a name.
    fn ids(&self, of: &IndexMap<String, u8>) -> Result<Vec<u8>, Error> {
        let names: Vec<&String> = match self {
            Classes::None => Vec::new(),
            Classes::Word(All::All) => of.keys().collect(),
            Classes::Named(names) => names.iter().collect(),
        };
        let id = |name: &&String| {
            of.get(*name).copied().ok_or_else(|| Error::Input {
                what: "`clean`".into(),
                found: format!("class {name}"),
                expected: format!("classes of the model: {}", of.keys().cloned().collect::<Vec<_>>().join(", ")),
            })
        };
        names.iter().map(id).collect()
    }
}

impl Clean {
    fn apply(&self, labels: &mut [u8], size: Zyx<usize>, classes: &IndexMap<String, u8>) -> Result<(), Error> {
        let near = match self.neighbours {
            Near::All => Neighbours::All,
            Near::Faces => Neighbours::Faces,
        };
        for id in self.largest.ids(classes)? {
            morphology::keep_largest(labels, id, size, near);
        }
        for id in self.fill_holes.ids(classes)? {
            morphology::fill_holes(labels, id, size, near);
        }
        Ok(())
    }
}

/// A choice of cases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Only {
    #[default]
    All,
    Train,
    Val,
    Test,
}

fn is_default<T: Default + PartialEq>(v: &T) -> bool {
    *v == T::default()
}

fn cpu() -> String {
    "cpu".into()
}

impl Stage for Infer {
    const INFO: Info = Info {
        name: "infer",
        version: 3,
        scope: Scope::Case,
        ports: &[
            Port { name: "cases", kind: Kind::Volume, required: true, about: "volumes preprocessed as in training" },
            Port { name: "model", kind: Kind::Model, required: true, about: "what `train` gives; a list is an ensemble" },
            Port { name: "split", kind: Kind::Table, required: false, about: "which case plays which part, for `only`" },
        ],
        gives: Kind::Volume,
        summary: "predict labels by sliding window, on the original grid of each case",
        example: "\
uses: infer
from: { cases: ready, model: net }
with: { window: { size: { z: 32, y: 48, x: 32 }, overlap: 0.25, blend: gaussian } }
",
        absent_in_inference: None,
    };

    /// Those of its model.
    fn classes(&self, _: &Wiring) -> Option<Vec<String>> {
        None
    }

    fn check(&self) -> Vec<Finding> {
        self.window.as_ref().map(|w| w.findings()).unwrap_or_default()
    }

    /// A prediction does not depend on the part its case plays: no row of the split enters its key.
    fn rows_of(&self, _port: &str, table: &Rows, of: &Manifest) -> Result<Option<Rows>, Error> {
        let wanted = match self.only {
            Only::All => return Ok(Some(Rows::default())),
            Only::Train => Part::Train,
            Only::Val => Part::Val,
            Only::Test => Part::Test,
        };
        let case = of.case.as_ref().map_or("", |c| &c.0);
        let part = parts::of(table, self.fold)?.get(case).copied();
        Ok((part == Some(wanted)).then(Rows::default))
    }

    fn memory_bytes(&self, inputs: &Inputs) -> u64 {
        let facts = &inputs.one("cases").manifest.facts;
        let size = facts.get("size").and_then(|s| serde_json::from_value(s.clone()).ok()).unwrap_or(Zyx::splat(0));
        let channels = facts.get("channels").and_then(|v| Some(v.as_array()?.len())).unwrap_or(1);
        let Ok(card) = Card::read(&inputs.one("model").dir) else { return crate::stage::default_memory_bytes(inputs) };
        let window = self.window_for(&card);
        let window = Window { margin: card.network.margin(), ..window };
        let cost = card.network.cost(channels, card.n_outputs(), window.read_size());
        let pass = cost.map_or(0, |c| c.forward_bytes.saturating_mul(window.batch as u64));
        // The labels, and while they are cleaned a mask and the component of each voxel; grids that are turned against each other hold more logits.
        pass + window.bytes(size, channels, card.n_outputs()) + 12 * size.checked_count().unwrap_or(0) as u64
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let input = inputs.one("cases");
        let models = inputs.all("model").iter().map(|m| load(m, &self.device)).collect::<Result<Vec<_>, _>>()?;
        let v = StoredVolume::open(&input.dir, input.manifest.key)?;
        check_regular(&v.geometry, &v.about)?;
        let card = &models.first().expect("the plan refuses a node whose required port is not connected").card;
        for other in models.iter().map(|m| &m.card) {
            agree(card, other)?;
        }
        if v.channels != card.channels {
            let (found, expected) = (v.channels.join(", "), format!("{} as in training", card.channels.join(", ")));
            return Err(Error::Input { what: "the channels of the case".into(), found, expected });
        }
        let window = self.window_for(card);
        let axis = |a| self.mirror.contains(&a);
        let looks = Looks {
            predictors: models.iter().map(|m| &m.predictor).collect(),
            mirror: Zyx::new(axis(Axis::Z), axis(Axis::Y), axis(Axis::X)),
            mean: self.mean,
        };
        let source = v.about.source;
        let mut voxels = predict::labels(&v, &looks, &window, card.n_outputs(), &source, cx.store, &mut || cx.check_cancelled())?;
        cx.bytes((v.geometry.size.count() * v.channels.len()) as u64 * 4);
        self.clean.apply(&mut voxels, source.size, &card.classes)?;
        cx.check_cancelled()?;
        let predicted = Volume {
            geometry: v.about.source,
            channels: Vec::new(),
            voxels: Voxels::U8(Vec::new()),
            labels: Some(Labels { classes: card.classes.clone(), voxels }),
            about: v.about,
        };
        predicted.write(cx.draft, None)?;
        Ok(predicted.facts())
    }
}

impl Infer {
    fn window_for(&self, card: &Card) -> Window {
        self.window.clone().unwrap_or(Window { batch: 2, ..Window::of(card.window()) })
    }
}

/// Models of an ensemble take and give the same, and see the same margin.
fn agree(first: &Card, other: &Card) -> Result<(), Error> {
    let differ = |what: &str, found: String, expected: String| {
        Err(Error::Input { what: format!("{what} of a model of the ensemble"), found, expected: format!("{expected} as in the first") })
    };
    let named = |c: &Card| c.classes.iter().map(|(name, id)| format!("{name} = {id}")).collect::<Vec<_>>().join(", ");
    if other.channels != first.channels {
        return differ("the channels", other.channels.join(", "), first.channels.join(", "));
    }
    if named(other) != named(first) {
        return differ("the classes", named(other), named(first));
    }
    if other.network.margin() != first.network.margin() {
        return differ("the margin", other.network.margin().to_string(), first.network.margin().to_string());
    }
    Ok(())
}

struct Loaded {
    card: Card,
    predictor: Predictor,
}

/// Models that stay in memory: the cases of a node all use the same, and an ensemble has few.
const IN_MEMORY: usize = 10;

/// A model in memory; those last used on each device stay.
fn load(model: &Input, device: &str) -> Result<Arc<Loaded>, Error> {
    type Kept = VecDeque<(Key, Arc<Loaded>)>;
    static LAST: Mutex<BTreeMap<String, Kept>> = Mutex::new(BTreeMap::new());
    let key = model.manifest.key;
    let mut last = LAST.lock().unwrap_or_else(|broken| broken.into_inner());
    let kept = last.entry(device.into()).or_default();
    if let Some((_, loaded)) = kept.iter().find(|(k, _)| *k == key) {
        return Ok(loaded.clone());
    }
    let opened: Device = model::device(device)?;
    let card = Card::read(&model.dir)?;
    let predictor = Predictor::load(&card.network, card.channels.len(), card.n_outputs(), &model.dir.join(WEIGHTS), &opened)?;
    let loaded = Arc::new(Loaded { card, predictor });
    if kept.len() == IN_MEMORY {
        kept.pop_front();
    }
    kept.push_back((key, loaded.clone()));
    Ok(loaded)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::fit::trial::{self, Trial};
    use crate::model::{Loss, Network, Optimiser, Trainer};

    static CALM: AtomicBool = AtomicBool::new(false);

    fn model(t: &Trial, channels: &[&str]) -> Input {
        seeded(t, channels, 1)
    }

    fn seeded(t: &Trial, channels: &[&str], seed: u64) -> Input {
        let network: Network = serde_json::from_value(serde_json::json!({
            "kind": "dynunet", "filters": [2, 4, 4], "kernel_size": [3, 3, 3], "strides": [1, 2, 2]
        }))
        .unwrap();
        let dir = t.folder(&format!("model {} {seed}", channels.len()));
        let optimiser = Optimiser::default();
        let net = Trainer::new(&network, channels.len(), 3, &Loss::default(), &optimiser, seed, &Device::cpu()).unwrap();
        net.predictor().save(&dir.join(WEIGHTS)).unwrap();
        let classes = IndexMap::from([("Ball".to_string(), 1), ("Box".to_string(), 2)]);
        let names = channels.iter().map(|c| c.to_string()).collect();
        Card::new(network, names, classes, Zyx::splat(16), Zyx::splat(1.0)).write(&dir).unwrap();
        Input { manifest: trial::manifest(&format!("model {} {seed}", channels.len()), None, Kind::Model), dir, rows: None }
    }

    fn infer(only: Only) -> Infer {
        Infer { only, ..serde_json::from_value(serde_json::json!({})).unwrap() }
    }

    #[test]
    fn a_prediction_lies_on_the_grid_of_its_source() {
        let t = Trial::new(1);
        let (draft, memo) = (t.folder("draft"), t.folder("memo"));
        let mut inputs = t.inputs();
        inputs.0.insert("model".into(), vec![model(&t, &["MR"])]);
        let facts = infer(Only::All).run(&inputs, &t.cx(&draft, &memo, 1, &CALM, &|_| ())).unwrap().facts;
        let v = Volume::read(&draft).unwrap();
        let given = trial::volume(0);
        assert_eq!(v.geometry, given.about.source);
        assert_eq!((v.channels.len(), &v.about), (0, &given.about));
        assert_eq!(facts["series"], "s0");
        let labels = v.labels.unwrap();
        assert_eq!(labels.classes, given.labels.unwrap().classes);
        // The case is a crop that begins at slice 2: nothing was predicted before it.
        assert!(labels.voxels[..2 * 400].iter().all(|l| *l == 0));
        assert!(labels.voxels[2 * 400..].iter().any(|l| *l != 0), "an untrained network says something");
    }

    #[test]
    fn mirrors_and_models_are_averaged() {
        let t = Trial::new(1);
        let models = [seeded(&t, &["MR"], 1), seeded(&t, &["MR"], 2)];
        let runs = std::cell::Cell::new(0);
        let labels = |i: &Infer, models: &[Input]| {
            runs.set(runs.get() + 1);
            let (draft, memo) = (t.folder(&format!("draft {}", runs.get())), t.folder("memo"));
            let mut inputs = t.inputs();
            inputs.0.insert("model".into(), models.to_vec());
            i.run(&inputs, &t.cx(&draft, &memo, 1, &CALM, &|_| ())).unwrap();
            Volume::read(&draft).unwrap().labels.unwrap().voxels
        };
        let alone = infer(Only::All);
        let mirrored = Infer { mirror: vec![Axis::X, Axis::Z], mean: Mean::Logits, ..alone.clone() };
        let (one, two) = (labels(&alone, &models[..1]), labels(&alone, &models[1..]));
        let both = labels(&alone, &models);
        assert!(both != one && both != two && labels(&mirrored, &models[..1]) != one);
        // Twice the same network says what it says once.
        let twice = labels(&alone, &[models[0].clone(), models[0].clone()]);
        let moved = twice.iter().zip(&one).filter(|(a, b)| a != b).count();
        assert!(moved * 200 < one.len(), "{moved} voxels moved: only blends of probabilities differ from those of logits");

        // By hand: the mean of the softmax over the networks and the mirrors of a volume that is one window.
        let v = trial::volume(0);
        let size = Zyx::new(20, 20, 20);
        let window: Window = serde_json::from_value(serde_json::json!({ "size": size })).unwrap();
        let by_hand = {
            let nets: Vec<_> = models.iter().map(|m| load(m, "cpu").unwrap()).collect();
            let Voxels::F32(image) = &v.voxels else { panic!("float32") };
            let n = v.geometry.size;
            let mut padded = vec![0f32; size.count()];
            let before = size.zip(n).map(|(p, n)| (p - n) / 2);
            let at = |z: usize, y: usize, x: usize| ((z + before.z) * size.y + y + before.y) * size.x + x + before.x;
            for (i, value) in image.iter().enumerate() {
                padded[at(i / (n.y * n.x), i / n.x % n.y, i % n.x)] = *value;
            }
            let flipped = |v: &[f32]| v.chunks(size.x).flat_map(|r| r.iter().rev().copied().collect::<Vec<_>>()).collect::<Vec<f32>>();
            let mut sum = vec![0f32; 3 * size.count()];
            for net in &nets {
                for turn in [false, true] {
                    let seen = if turn { flipped(&padded) } else { padded.clone() };
                    let mut out = net.predictor.forward(seen, 1, size).unwrap();
                    if turn {
                        out = flipped(&out);
                    }
                    for i in 0..size.count() {
                        let e: Vec<f32> = (0..3).map(|c| out[c * size.count() + i].exp()).collect();
                        (0..3).for_each(|c| sum[c * size.count() + i] += e[c] / e.iter().sum::<f32>());
                    }
                }
            }
            let best =
                |i: usize| (0..3).fold(0, |best, c| if sum[c * size.count() + i] > sum[best * size.count() + i] { c } else { best }) as u8;
            (0..image.len()).map(|i| best(at(i / (n.y * n.x), i / n.x % n.y, i % n.x))).collect::<Vec<_>>()
        };
        let config = Infer { mirror: vec![Axis::X], window: Some(window), ..alone };
        let got = labels(&config, &models);
        // The case is a crop of its source grid that begins at (2, 1, 0).
        let (n, source) = (v.geometry.size, v.about.source.size);
        let inside = |i: usize| got[((i / (n.y * n.x) + 2) * source.y + i / n.x % n.y + 1) * source.x + i % n.x];
        let off = (0..by_hand.len()).filter(|i| inside(*i) != by_hand[*i]).count();
        assert!(off * 1000 <= by_hand.len(), "{off} of {} voxels differ", by_hand.len());
    }

    #[test]
    fn labels_are_cleaned_by_class() {
        let classes = IndexMap::from([("Ball".to_string(), 1), ("Box".to_string(), 2)]);
        let clean: Clean = serde_json::from_value(serde_json::json!({ "largest": ["Ball"], "fill_holes": "all" })).unwrap();
        let mut labels = vec![1, 1, 1, 0, 2, 1, 0, 1, 0, 0, 1, 1, 1, 0, 2];
        clean.apply(&mut labels, Zyx::new(1, 3, 5), &classes).unwrap();
        // A slice of one voxel's height has no inside; the classes keep their pieces.
        assert_eq!(labels, [1, 1, 1, 0, 2, 1, 0, 1, 0, 0, 1, 1, 1, 0, 2]);
        let clean: Clean = serde_json::from_value(serde_json::json!({ "largest": "all", "neighbours": "faces" })).unwrap();
        clean.apply(&mut labels, Zyx::new(1, 3, 5), &classes).unwrap();
        assert_eq!(labels, [1, 1, 1, 0, 2, 1, 0, 1, 0, 0, 1, 1, 1, 0, 0]);
        let wrong: Clean = serde_json::from_value(serde_json::json!({ "largest": ["Cube"] })).unwrap();
        assert!(wrong.apply(&mut labels, Zyx::new(1, 3, 5), &classes).unwrap_err().to_string().contains("Cube"));
    }

    #[test]
    fn other_channels_than_in_training_are_refused() {
        let t = Trial::new(1);
        let (draft, memo) = (t.folder("draft"), t.folder("memo"));
        let mut inputs = t.inputs();
        inputs.0.insert("model".into(), vec![model(&t, &["MR", "PET"])]);
        let why = infer(Only::All).run(&inputs, &t.cx(&draft, &memo, 1, &CALM, &|_| ())).unwrap_err().to_string();
        assert!(why.contains("found MR, expected MR, PET as in training"), "{why}");
    }

    #[test]
    fn only_the_asked_part_is_predicted_and_no_row_enters_the_key() {
        let t = Trial::new(3);
        let chosen = |only| t.cases.iter().filter(|c| infer(only).rows_of("split", &t.split, &c.manifest).unwrap().is_some()).count();
        assert_eq!((chosen(Only::All), chosen(Only::Train), chosen(Only::Val), chosen(Only::Test)), (3, 2, 1, 0));
        let rows = infer(Only::Val).rows_of("split", &t.split, &t.cases[2].manifest).unwrap().unwrap();
        assert!(rows.0.is_empty());
    }
}
