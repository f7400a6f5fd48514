//! Predicts labels by sliding window and brings them back onto the grid on which the case was assembled. Logits are interpolated, then the largest wins.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::{Key, Kind, Manifest, Port, Scope};

use crate::error::Error;
use crate::fit::card::{Card, WEIGHTS};
use crate::fit::parts::{self, Part};
use crate::fit::predict;
use crate::model::{self, Device, Predictor, Window};
use crate::ops::regrid;
use crate::stage::{Cx, Facts, Finding, Info, Input, Inputs, Rows, Stage};
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
    /// `cpu`, `auto`, `cuda`, `cuda:1`, `wgpu`. On the same kind of CPU the same input gives the same bytes.
    #[serde(default = "cpu")]
    pub device: String,
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

fn cpu() -> String {
    "cpu".into()
}

impl Stage for Infer {
    const INFO: Info = Info {
        name: "infer",
        version: 2,
        scope: Scope::Case,
        ports: &[
            Port { name: "cases", kind: Kind::Volume, required: true, about: "volumes preprocessed as in training" },
            Port { name: "model", kind: Kind::Model, required: true, about: "what `train` gives" },
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
        let voxels = facts.get("voxels").and_then(|v| v.as_u64()).unwrap_or(0);
        let channels = facts.get("channels").and_then(|v| Some(v.as_array()?.len())).unwrap_or(1) as u64;
        let Ok(card) = Card::read(&inputs.one("model").dir) else { return crate::stage::default_memory_bytes(inputs) };
        let window = self.window_for(&card);
        // One pass keeps about a quarter of what a training step does.
        let pass = card.network.step_bytes(channels as usize, card.n_outputs(), window.batch, window.size) / 4;
        pass + voxels * 4 * (channels + 2 * card.n_outputs() as u64 + 1)
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let (input, model) = (inputs.one("cases"), inputs.one("model"));
        let loaded = load(model, &self.device)?;
        let v = StoredVolume::open(&input.dir, input.manifest.key)?;
        check_regular(&v.geometry, &v.about)?;
        let card = &loaded.card;
        if v.channels != card.channels {
            let (found, expected) = (v.channels.join(", "), format!("{} as in training", card.channels.join(", ")));
            return Err(Error::Input { what: "the channels of the case".into(), found, expected });
        }
        let window = self.window_for(card);
        let (logits, patch) = predict::volume(&v, &loaded.predictor, &window, card.n_outputs(), cx.store, &mut || cx.check_cancelled())?;
        cx.bytes(patch.voxels.len() as u64 * 4);
        let voxels = regrid::labels_on(&logits, card.n_outputs(), &v.geometry, &v.about.source);
        drop(logits);
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
        self.window.clone().unwrap_or(Window { batch: 2, ..Window::of(card.patch) })
    }
}

struct Loaded {
    card: Card,
    predictor: Predictor,
}

/// A model in memory: the last one used on each device stays, since the cases of a node all use the same.
fn load(model: &Input, device: &str) -> Result<Arc<Loaded>, Error> {
    static LAST: Mutex<BTreeMap<String, (Key, Arc<Loaded>)>> = Mutex::new(BTreeMap::new());
    let key = model.manifest.key;
    let mut last = LAST.lock().unwrap_or_else(|broken| broken.into_inner());
    if let Some((k, loaded)) = last.get(device)
        && *k == key
    {
        return Ok(loaded.clone());
    }
    let opened: Device = model::device(device)?;
    let card = Card::read(&model.dir)?;
    let predictor = Predictor::load(&card.network, card.channels.len(), card.n_outputs(), &model.dir.join(WEIGHTS), &opened)?;
    let loaded = Arc::new(Loaded { card, predictor });
    last.insert(device.into(), (key, loaded.clone()));
    Ok(loaded)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use indexmap::IndexMap;
    use voxmill_schemas::geometry::Zyx;

    use super::*;
    use crate::fit::trial::{self, Trial};
    use crate::model::{Loss, Network, Optimiser, Trainer};

    static CALM: AtomicBool = AtomicBool::new(false);

    fn model(t: &Trial, channels: &[&str]) -> Input {
        let network: Network = serde_json::from_value(serde_json::json!({
            "kind": "dynunet", "filters": [2, 4, 4], "kernel_size": [3, 3, 3], "strides": [1, 2, 2]
        }))
        .unwrap();
        let dir = t.folder(&format!("model {}", channels.len()));
        let optimiser = Optimiser::default();
        let net = Trainer::new(&network, channels.len(), 3, &Loss::default(), &optimiser, 1, &Device::cpu()).unwrap();
        net.predictor().save(&dir.join(WEIGHTS)).unwrap();
        let classes = IndexMap::from([("Ball".to_string(), 1), ("Box".to_string(), 2)]);
        let names = channels.iter().map(|c| c.to_string()).collect();
        Card::new(network, names, classes, Zyx::splat(16), Zyx::splat(1.0)).write(&dir).unwrap();
        Input { manifest: trial::manifest(&format!("model {}", channels.len()), None, Kind::Model), dir, rows: None }
    }

    fn infer(only: Only) -> Infer {
        Infer { window: None, only, fold: 0, device: "cpu".into() }
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
