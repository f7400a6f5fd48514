//! Brings a network that was trained elsewhere in as a model: nnU-Net v2's checkpoints by their plans, MONAI's weights by the network's arguments.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use voxmill_schemas::artifact::{Kind, Scope};
use voxmill_schemas::geometry::Zyx;

use crate::error::Error;
use crate::fit::card::{Card, WEIGHTS};
use crate::fit::plans::{self, Planned};
use crate::model::{Device, Network, Predictor, weights};
use crate::stage::{Cx, Facts, Finding, Info, Inputs, Stage};

/// Plans larger than this are none.
const PLANS_BYTES: u64 = 64 << 20;

/// Takes over a trained network: a file of weights (`.pt`, `.pth`, safetensors) and what describes it. For nnU-Net v2 that is `plans` and `dataset`; for
/// others `network`, `channels`, `classes`, `patch` and `spacing_mm` of the training. Every parameter must fit; what does not is named, on both sides.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Import {
    /// The file of weights: MONAI's `state_dict`, nnU-Net's `checkpoint_final.pth`, safetensors. A relative path starts where the program is started.
    pub weights: String,
    /// nnU-Net's `plans.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plans: Option<String>,
    /// nnU-Net's `dataset.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
    /// The configuration of the plans.
    #[serde(default = "fullres")]
    pub configuration: String,
    /// Without plans: the architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Names of the channels that go in, in their order, as the volumes here have them. Default with plans: their `channel_names`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<String>>,
    /// Name → id of each class, from 1 without a gap. Default with plans: their `labels`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<BTreeMap<String, u8>>,
    /// Without plans: the size of the patches it was trained on, voxels; the window of `infer` where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch: Option<Zyx<usize>>,
    /// Without plans: the spacing it was trained at, millimetres.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spacing_mm: Option<Zyx<f64>>,
}

fn fullres() -> String {
    "3d_fullres".into()
}

impl Stage for Import {
    const INFO: Info = Info {
        name: "import",
        version: 1,
        scope: Scope::Set,
        ports: &[],
        gives: Kind::Model,
        summary: "bring in a network trained elsewhere (nnU-Net v2, MONAI)",
        example: "\
uses: import
with: { weights: fold_0/checkpoint_final.pth, plans: plans.json, dataset: dataset.json, configuration: 3d_fullres }
",
        absent_in_inference: None,
    };

    fn check(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        let mut want = |ok: bool, field: &str, message: &str, help: &str| {
            if !ok {
                out.push(Finding::error(field, message, help));
            }
        };
        if self.plans.is_some() || self.dataset.is_some() {
            want(self.plans.is_some(), "dataset", "a dataset without its plans", "give `plans` too: plans.json lies beside it");
            want(self.dataset.is_some(), "plans", "plans without their dataset", "give `dataset` too: dataset.json lies beside it");
            want(self.network.is_none(), "network", "the plans say which network it is", "remove it, or `plans` and `dataset`");
            want(self.patch.is_none(), "patch", "the plans say which patch it is", "remove it");
            want(self.spacing_mm.is_none(), "spacing_mm", "the plans say which spacing it is", "remove it");
        } else {
            let missing: Vec<&str> = [
                ("network", self.network.is_some()),
                ("channels", self.channels.is_some()),
                ("classes", self.classes.is_some()),
                ("patch", self.patch.is_some()),
                ("spacing_mm", self.spacing_mm.is_some()),
            ]
            .into_iter()
            .filter_map(|(name, is_there)| (!is_there).then_some(name))
            .collect();
            let message = format!("nothing says its {}", missing.join(", "));
            want(missing.is_empty(), "weights", &message, "give them, or nnU-Net's `plans` and `dataset`");
        }
        if let Some(classes) = &self.classes {
            let mut ids: Vec<u8> = classes.values().copied().collect();
            ids.sort_unstable();
            let runs = !ids.is_empty() && ids.iter().enumerate().all(|(i, id)| *id as usize == i + 1);
            want(runs, "classes", "the ids do not run from 1 without a gap", "number them 1, 2, 3, …: output 0 is the background");
        }
        want(self.channels.as_ref().is_none_or(|c| !c.is_empty()), "channels", "no channel", "name at least one");
        if let (Some(n), Some(patch), Some(classes)) = (&self.network, self.patch, &self.classes) {
            out.extend(n.findings(patch, classes.len() + 1));
        }
        out
    }

    /// Where files stand is not in the key: what is in them is.
    fn recorded(&self) -> Value {
        let name = |path: &str| Path::new(path).file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned());
        let shown = Self {
            weights: name(&self.weights),
            plans: self.plans.as_deref().map(name),
            dataset: self.dataset.as_deref().map(name),
            ..self.clone()
        };
        serde_json::to_value(shown).expect("plain data")
    }

    fn run(&self, _inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let planned = self.planned()?;
        let file = Path::new(&self.weights);
        let card = &planned.card;
        let (channels, outputs) = (card.channels.len(), card.n_outputs());
        let turned = cx.draft.join(WEIGHTS);
        let predictor = if planned.axes == [0, 1, 2] {
            Predictor::load(&card.network, channels, outputs, file, &Device::cpu())?
        } else {
            // Names that stand for the same values are counted each.
            let limit_bytes = std::fs::metadata(file).map_err(Error::io("read", file))?.len().saturating_mul(8);
            weights::write(&turned, &weights::turned(weights::read(file, limit_bytes)?, planned.axes))?;
            Predictor::load(&card.network, channels, outputs, &turned, &Device::cpu())?
        };
        predictor.save(&turned)?;
        card.write(cx.draft)?;
        let cost = card.network.cost(channels, outputs, card.patch);
        Ok(Facts::default()
            .with("parameters", predictor.n_parameters())
            .with("classes", &card.classes)
            .with("channels", &card.channels)
            .with("patch", card.patch)
            .with("spacing_mm", card.spacing_mm)
            .with("normalisation", &planned.normalisation)
            .with("report", cost.map(|c| vec![c.line()])))
    }
}

impl Import {
    fn planned(&self) -> Result<Planned, Error> {
        let mut planned = match (&self.plans, &self.dataset) {
            (Some(p), Some(d)) => plans::read(&json(p)?, &json(d)?, &self.configuration)?,
            _ => {
                let all = (self.network.clone(), self.channels.clone(), self.classes.clone(), self.patch, self.spacing_mm);
                let (Some(network), Some(channels), Some(classes), Some(patch), Some(spacing_mm)) = all else {
                    let (found, expected) = ("too little to know the network".into(), "what `check` asks for".into());
                    return Err(Error::Input { what: "the network to import".into(), found, expected });
                };
                let card = Card::new(network, channels, classes.into_iter().collect(), patch, spacing_mm);
                Planned { card, axes: [0, 1, 2], normalisation: Vec::new() }
            }
        };
        let card = &mut planned.card;
        if let Some(names) = &self.channels {
            if names.len() != card.channels.len() {
                let (found, expected) = (names.len().to_string(), format!("{}, as the network has", card.channels.len()));
                return Err(Error::Input { what: "the number of `channels`".into(), found, expected });
            }
            card.channels = names.clone();
        }
        if let Some(classes) = &self.classes {
            if classes.len() != card.classes.len() {
                let (found, expected) = (classes.len().to_string(), format!("{}, as the network has", card.classes.len()));
                return Err(Error::Input { what: "the number of `classes`".into(), found, expected });
            }
            card.classes = classes.iter().map(|(name, id)| (name.clone(), *id)).collect();
        }
        card.classes.sort_by(|_, a, _, b| a.cmp(b));
        Ok(planned)
    }
}

fn json(path: &str) -> Result<Value, Error> {
    let path = Path::new(path);
    let wanted_bytes = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    if wanted_bytes > PLANS_BYTES {
        return Err(Error::TooLarge { what: path.display().to_string(), wanted_bytes, limit_bytes: PLANS_BYTES });
    }
    let text = std::fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&text).map_err(|e| Error::Model { why: format!("{}: {e}", path.display()) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use serde_json::json;

    use super::*;
    use crate::fit::trial::Trial;
    use crate::model::weights::Weights;

    static CALM: AtomicBool = AtomicBool::new(false);

    fn write(t: &Trial, name: &str, v: &Value) -> String {
        let path = t.dir.path().join(name);
        std::fs::write(&path, serde_json::to_vec(v).unwrap()).unwrap();
        path.display().to_string()
    }

    fn import(t: &Trial, import: &Import, draft: &str) -> Result<(Card, Weights), Error> {
        let draft = t.folder(draft);
        import.run(&Inputs::default(), &t.cx(&draft, &draft, 1, &CALM, &|_| ()))?;
        Ok((Card::read(&draft)?, weights::read(&draft.join(WEIGHTS), 1 << 20)?))
    }

    /// A network of one answer: where nnU-Net's axes are turned, ours must look along the same axes of the image.
    #[test]
    fn turned_axes_give_turned_kernels() {
        let t = Trial::new(1);
        let stages = |v: [usize; 3]| json!([v, v]);
        let arguments = json!({
            "features_per_stage": [2, 2], "kernel_sizes": stages([1, 3, 3]), "strides": [[1, 1, 1], [1, 2, 2]], "n_conv_per_stage": [1, 1],
            "n_conv_per_stage_decoder": [1], "conv_bias": true
        });
        let architecture = json!({ "network_class_name": "PlainConvUNet", "arch_kwargs": arguments });
        let configuration = json!({ "patch_size": [4, 8, 16], "spacing": [3, 1, 1], "architecture": architecture });
        let plans = |axes: [usize; 3]| json!({ "transpose_forward": axes, "configurations": { "3d_fullres": configuration } });
        let dataset = write(&t, "dataset.json", &json!({ "channel_names": { "0": "CT" }, "labels": { "background": 0, "Liver": 1 } }));
        let straight = plans([0, 1, 2]);
        let planned = plans::read(&straight, &serde_json::from_slice(&std::fs::read(&dataset).unwrap()).unwrap(), "3d_fullres").unwrap();
        let shapes = planned.card.network.graph(1, 2).params;
        let values = |n: usize| (0..n).map(|i| i as f32).collect::<Vec<_>>();
        let made: Weights =
            shapes.into_iter().map(|p| (p.name, weights::Weight { values: values(p.shape.iter().product()), shape: p.shape })).collect();
        let file = t.dir.path().join("w.safetensors");
        weights::write(&file, &made).unwrap();
        let with = |p: &str| Import {
            weights: file.display().to_string(),
            plans: Some(p.into()),
            dataset: Some(dataset.clone()),
            configuration: fullres(),
            network: None,
            channels: None,
            classes: None,
            patch: None,
            spacing_mm: None,
        };
        let (_, same) = import(&t, &with(&write(&t, "plans.json", &straight)), "straight").unwrap();
        assert_eq!(same, made);
        let (card, turned) = import(&t, &with(&write(&t, "turned.json", &plans([1, 0, 2]))), "turned").unwrap();
        assert_eq!(card.patch, Zyx::new(8, 4, 16));
        let name = "encoder.stages.0.0.convs.0.conv.weight";
        assert_eq!((&turned[name].shape[..], &made[name].shape[..]), (&[2, 1, 3, 1, 3][..], &[2, 1, 1, 3, 3][..]));
        // Two axes change places; the one of length 1 moves no value.
        assert_eq!(turned[name].values, made[name].values);
        let up = "decoder.transpconvs.0.weight";
        assert_eq!(turned[up].shape, [2, 2, 2, 1, 2]);
        let (card, turned) = import(&t, &with(&write(&t, "around.json", &plans([2, 1, 0]))), "around").unwrap();
        assert_eq!(card.patch, Zyx::new(16, 8, 4));
        assert_eq!(turned[name].values[..9], [0., 3., 6., 1., 4., 7., 2., 5., 8.]);
    }

    #[test]
    fn a_network_is_described_in_one_way() {
        let check = |v: Value| serde_json::from_value::<Import>(v).unwrap().check().into_iter().map(|f| f.field).collect::<Vec<_>>();
        assert_eq!(check(json!({ "weights": "w.pt" })), ["weights"]);
        assert_eq!(check(json!({ "weights": "w.pt", "plans": "plans.json" })), ["plans"]);
        let network = json!({ "kind": "segresnet", "blocks_down": [1, 1], "blocks_up": [1] });
        let whole = json!({
            "weights": "w.pt", "network": network, "channels": ["CT"], "classes": { "Liver": 1 }, "patch": { "z": 16, "y": 16, "x": 16 },
            "spacing_mm": { "z": 1, "y": 1, "x": 1 },
        });
        assert_eq!(check(whole.clone()), Vec::<String>::new());
        let mut gap = whole.clone();
        gap["classes"] = json!({ "Liver": 2 });
        assert_eq!(check(gap), ["classes"]);
        let mut odd = whole;
        odd["patch"] = json!({ "z": 15, "y": 16, "x": 16 });
        assert_eq!(check(odd), ["patch"]);
    }
}
