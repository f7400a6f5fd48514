//! nnU-Net v2's `plans.json` and `dataset.json` → the card of a model: its network, classes, channels, patch and spacing. Pure: takes JSON, gives values.
//! Source: nnunetv2 2.6 (experiment_planning, utilities/plans_handling, utilities/label_handling); plans of 2.0 to 2.1 have no `architecture` and are read too.

use std::collections::BTreeSet;

use indexmap::IndexMap;
use serde_json::{Map, Value, json};
use voxmill_schemas::geometry::Zyx;

use super::card::Card;
use crate::error::Error;
use crate::model::{Network, Nnunet};

/// What nnU-Net says of a trained network.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub card: Card,
    /// Axis of the image, z y x, that each axis of nnU-Net's arrays is (its `transpose_forward`).
    pub axes: [usize; 3],
    /// How each channel was normalised, in nnU-Net's words.
    pub normalisation: Vec<String>,
}

fn refuse(why: impl Into<String>) -> Error {
    Error::Model { why: why.into() }
}

/// The model of `configuration`.
pub fn read(plans: &Value, dataset: &Value, configuration: &str) -> Result<Planned, Error> {
    let all = plans["configurations"].as_object().ok_or_else(|| refuse("plans.json has no `configurations`"))?;
    let c = configuration_of(all, configuration)?;
    let axes: Vec<usize> = match plans.get("transpose_forward") {
        None => vec![0, 1, 2],
        Some(t) => serde_json::from_value(t.clone()).unwrap_or_default(),
    };
    let axes: [usize; 3] = axes.try_into().map_err(|_| refuse("plans.json: `transpose_forward` is no list of three axes"))?;
    if (0..3).any(|a| !axes.contains(&a)) {
        return Err(refuse(format!("plans.json: `transpose_forward` is {axes:?}, not an order of three axes")));
    }
    let numbers = |key: &str| -> Result<Vec<f64>, Error> {
        serde_json::from_value(c[key].clone()).map_err(|_| refuse(format!("plans.json: `{key}` of {configuration} is no list of numbers")))
    };
    let patch = three(&numbers("patch_size")?, 1.0, axes)?.map(|n| n as usize);
    // A 2-D plan leaves the slices as they are.
    let spacing_mm = three(&numbers("spacing")?, 1.0, axes)?;
    let network = Network::Nnunet(network(&c, axes)?);
    let (channels, classes) = (channels(dataset)?, classes(dataset)?);
    let normalisation = c["normalization_schemes"].as_array().into_iter().flatten().filter_map(|v| v.as_str().map(String::from)).collect();
    Ok(Planned { card: Card::new(network, channels, classes, patch, spacing_mm), axes, normalisation })
}

/// A configuration with what it inherits.
fn configuration_of(all: &Map<String, Value>, name: &str) -> Result<Value, Error> {
    let mut merged = Map::new();
    let mut next = Some(name.to_string());
    // Each step takes another of them, so it ends.
    for _ in 0..=all.len() {
        let Some(name) = next else { break };
        let known = || all.keys().map(String::as_str).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ");
        let c = all
            .get(&name)
            .and_then(Value::as_object)
            .ok_or_else(|| refuse(format!("plans.json has no configuration {name}, it has {}", known())))?;
        next = c.get("inherits_from").and_then(Value::as_str).map(String::from);
        for (k, v) in c {
            merged.entry(k.clone()).or_insert_with(|| v.clone());
        }
    }
    if merged.get("previous_stage").is_some_and(|p| !p.is_null()) {
        return Err(refuse(format!(
            "{name} is the second stage of a cascade, which takes the first one's labels as channels: import 3d_fullres or 3d_lowres"
        )));
    }
    Ok(Value::Object(merged))
}

/// A size along nnU-Net's axes on the axes z, y, x; the missing slice axis of a 2-D plan is `flat`.
fn three<T: Copy>(v: &[T], flat: T, axes: [usize; 3]) -> Result<Zyx<T>, Error> {
    let v = match v {
        [y, x] => [flat, *y, *x],
        [z, y, x] => [*z, *y, *x],
        _ => return Err(refuse(format!("plans.json: {} numbers where there are two or three axes", v.len()))),
    };
    let mut out = v;
    (0..3).for_each(|i| out[axes[i]] = v[i]);
    Ok(Zyx::from_array(out))
}

fn network(c: &Value, axes: [usize; 3]) -> Result<Nnunet, Error> {
    let (class, args) = match c.get("architecture") {
        Some(a) => (a["network_class_name"].as_str().unwrap_or("").rsplit('.').next().unwrap_or("").to_string(), a["arch_kwargs"].clone()),
        None => ("PlainConvUNet".to_string(), old_arguments(c)),
    };
    if let Some(norm) = args["norm_op"].as_str()
        && !norm.contains("InstanceNorm")
    {
        return Err(refuse(format!("plans.json: a network normalised by {norm}; instance norm is read")));
    }
    let sizes = |key: &str| -> Result<Vec<Value>, Error> {
        let lists: Vec<Vec<usize>> =
            serde_json::from_value(args[key].clone()).map_err(|_| refuse(format!("plans.json: `{key}` is no list of sizes")))?;
        lists.iter().map(|l| Ok(json!(three(l, 1, axes)?.to_array()))).collect()
    };
    let mut config = json!({
        "features_per_stage": args["features_per_stage"],
        "kernel_sizes": sizes("kernel_sizes")?,
        "strides": sizes("strides")?,
        "n_conv_per_stage_decoder": args["n_conv_per_stage_decoder"],
        "conv_bias": args["conv_bias"].as_bool().unwrap_or(false),
    });
    let per_stage = match class.as_str() {
        "PlainConvUNet" => "n_conv_per_stage",
        "ResidualEncoderUNet" => "n_blocks_per_stage",
        other => return Err(refuse(format!("plans.json: a network {other}; PlainConvUNet and ResidualEncoderUNet are read"))),
    };
    config[per_stage] = args[per_stage].clone();
    let net: Nnunet = serde_json::from_value(config).map_err(|e| refuse(format!("plans.json: `arch_kwargs`: {e}")))?;
    match net.structure_findings().into_iter().next() {
        Some(f) => Err(refuse(format!("plans.json: {}: {}; {}", f.field, f.message, f.help))),
        None => Ok(net),
    }
}

/// `arch_kwargs` of a plan that was written before they were.
fn old_arguments(c: &Value) -> Value {
    let stages = c["conv_kernel_sizes"].as_array().map_or(0, Vec::len);
    let base = c["UNet_base_num_features"].as_u64().unwrap_or(32);
    let most = c["unet_max_num_features"].as_u64().unwrap_or(320);
    json!({
        "features_per_stage": (0..stages).map(|i| most.min(base.saturating_mul(1 << i.min(20)))).collect::<Vec<_>>(),
        "kernel_sizes": c["conv_kernel_sizes"],
        "strides": c["pool_op_kernel_sizes"],
        "n_conv_per_stage": c["n_conv_per_stage_encoder"],
        "n_conv_per_stage_decoder": c["n_conv_per_stage_decoder"],
        "conv_bias": true,
    })
}

fn channels(dataset: &Value) -> Result<Vec<String>, Error> {
    let names = dataset.get("channel_names").or(dataset.get("modality")).and_then(Value::as_object);
    let names = names.ok_or_else(|| refuse("dataset.json has no `channel_names`"))?;
    let named = |i: usize| names.get(&i.to_string()).and_then(Value::as_str).map(String::from);
    let channels: Vec<String> = (0..names.len()).map_while(named).collect();
    if channels.len() == names.len() && !channels.is_empty() {
        Ok(channels)
    } else {
        Err(refuse("dataset.json: `channel_names` does not count from \"0\""))
    }
}

fn classes(dataset: &Value) -> Result<IndexMap<String, u8>, Error> {
    let labels = dataset["labels"].as_object().ok_or_else(|| refuse("dataset.json has no `labels`"))?;
    let mut out = IndexMap::new();
    for (name, id) in labels.iter().filter(|(name, _)| *name != "background" && *name != "ignore") {
        // Some datasets write ids as text.
        let number = id.as_u64().or(id.as_str().and_then(|s| s.parse().ok()));
        match number {
            Some(id @ 1..=255) => {
                out.insert(name.clone(), id as u8);
            }
            _ if id.is_array() => {
                return Err(refuse(format!(
                    "dataset.json: {name} is a region of several labels; networks trained on regions answer by sigmoid and are not read"
                )));
            }
            _ => return Err(refuse(format!("dataset.json: {name} has the label {id}, not a number from 1 to 255"))),
        }
    }
    out.sort_by(|_, a, _, b| a.cmp(b));
    if out.is_empty() || out.values().enumerate().any(|(i, id)| *id as usize != i + 1) {
        return Err(refuse("dataset.json: `labels` do not run from 1 without a gap"));
    }
    Ok(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn plans() -> Value {
        json!({
            "transpose_forward": [0, 1, 2],
            "configurations": {
                "3d_fullres": {
                    "patch_size": [40, 56, 48], "spacing": [2.0, 1.0, 0.5], "normalization_schemes": ["ZScoreNormalization"],
                    "architecture": {
                        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                        "arch_kwargs": {
                            "n_stages": 3, "features_per_stage": [32, 64, 128], "conv_op": "torch.nn.modules.conv.Conv3d",
                            "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]], "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
                            "n_conv_per_stage": [2, 2, 2], "n_conv_per_stage_decoder": [2, 2], "conv_bias": true,
                            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": { "eps": 1e-5, "affine": true },
                        }
                    }
                },
                "3d_half": { "inherits_from": "3d_fullres", "patch_size": [20, 28, 24] },
                "3d_cascade_fullres": { "inherits_from": "3d_fullres", "previous_stage": "3d_lowres" },
                "2d": {
                    "patch_size": [56, 48], "spacing": [1.0, 0.5], "conv_kernel_sizes": [[3, 3], [3, 3], [3, 3]],
                    "pool_op_kernel_sizes": [[1, 1], [2, 2], [2, 2]], "n_conv_per_stage_encoder": [2, 2, 2], "n_conv_per_stage_decoder": [2, 2],
                    "UNet_base_num_features": 32, "unet_max_num_features": 64,
                },
            }
        })
    }

    fn dataset() -> Value {
        json!({ "channel_names": { "0": "MRI" }, "labels": { "background": 0, "Posterior": 2, "Anterior": 1, "ignore": 3 } })
    }

    #[test]
    fn a_plan_becomes_a_card() {
        let p = read(&plans(), &dataset(), "3d_fullres").unwrap();
        assert_eq!((p.card.patch, p.card.spacing_mm), (Zyx::new(40, 56, 48), Zyx::new(2.0, 1.0, 0.5)));
        assert_eq!(p.card.classes.iter().map(|(n, i)| (n.as_str(), *i)).collect::<Vec<_>>(), [("Anterior", 1), ("Posterior", 2)]);
        let Network::Nnunet(n) = &p.card.network else { panic!("nnU-Net's own") };
        assert_eq!((n.kernel_sizes[0].0, n.divisor()), (Zyx::new(1, 3, 3), Zyx::new(2, 4, 4)));
        assert_eq!(read(&plans(), &dataset(), "3d_half").unwrap().card.patch, Zyx::new(20, 28, 24));
    }

    #[test]
    fn axes_that_nnunet_turned_are_turned_back() {
        let mut turned = plans();
        turned["transpose_forward"] = json!([2, 0, 1]);
        let p = read(&turned, &dataset(), "3d_fullres").unwrap();
        // nnU-Net's first axis is our x.
        assert_eq!((p.card.patch, p.card.spacing_mm), (Zyx::new(56, 48, 40), Zyx::new(1.0, 0.5, 2.0)));
        let Network::Nnunet(n) = &p.card.network else { panic!("nnU-Net's own") };
        assert_eq!(n.kernel_sizes[0].0, Zyx::new(3, 3, 1));
    }

    #[test]
    fn old_plans_and_two_axes_are_read() {
        let p = read(&plans(), &dataset(), "2d").unwrap();
        assert_eq!(p.card.patch, Zyx::new(1, 56, 48));
        let Network::Nnunet(n) = &p.card.network else { panic!("nnU-Net's own") };
        assert_eq!((n.features_per_stage.as_slice(), n.kernel_sizes[1].0), (&[32, 64, 64][..], Zyx::new(1, 3, 3)));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let why = |c: &str, d: Value| read(&plans(), &d, c).unwrap_err().to_string();
        assert!(why("3d_lowres", dataset()).contains("it has 2d, 3d_cascade_fullres, 3d_fullres, 3d_half"));
        assert!(why("3d_cascade_fullres", dataset()).contains("cascade"));
        let regions = json!({ "channel_names": { "0": "T1" }, "labels": { "background": 0, "whole": [1, 2], "core": 2 } });
        assert!(why("3d_fullres", regions).contains("whole is a region"));
        let mut other = plans();
        other["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = json!("a.b.Primus");
        assert!(read(&other, &dataset(), "3d_fullres").unwrap_err().to_string().contains("Primus"));
    }
}
