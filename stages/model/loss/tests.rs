//! Kernel against tensor operations, coarse heads against their copies, findings. Values of MONAI stand in tests/golden as well.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use serde_json::json;
use voxmill_schemas::geometry::Zyx;

use super::*;
use crate::model::device::Device;
use crate::model::target::Distances;

#[test]
fn kernel_and_tensor_operations_agree() {
    let (n, classes, full) = (2, 3, Zyx::new(4, 6, 8));
    let labels: Vec<u8> = (0..n * full.count()).map(|v| (v * 7 % 11 % 3) as u8).collect();
    let batch = Labels { labels: &labels, n, classes, size: full, ignore: None };
    let d = Device::cpu().training();
    for config in [
        json!({ "dice": 0.7, "focal": 0.3 }),
        json!({ "focal": 1, "gamma": 1.5, "include_background": true }),
        json!({ "focal": 1, "focal_form": "softmax" }),
        json!({ "focal": 1, "focal_form": "softmax", "gamma": 0.5, "include_background": true }),
        json!({ "dice": 1, "cross_entropy": 1, "include_background": true }),
        json!({ "dice": 0.5, "boundary": 0.2 }),
        json!({ "dice": 1, "jaccard": true, "batch": true }),
        json!({ "generalised_dice": 0.6, "tversky": 0.4, "alpha": 0.3, "beta": 0.7 }),
        json!({ "generalised_dice": 1, "batch": true, "include_background": true }),
        json!({ "tversky": 1, "alpha": 1, "beta": 0, "batch": true }),
        json!({ "cross_entropy": 1, "class_weights": [0.2, 1, 3] }),
        json!({ "dice": 1, "squared": true, "class_weights": [0.2, 1, 3], "smooth_above": 0.1, "ignore": true }),
        json!({ "dice": 1, "squared": true, "jaccard": true, "batch": true, "reduction": "sum" }),
        json!({ "cross_entropy": 1, "label_smoothing": 0.2, "class_weights": [0.2, 1, 3], "ignore": true }),
        json!({ "cross_entropy": 0.01, "tversky": 1, "reduction": "sum", "ignore": true }),
        json!({ "focal": 1, "focal_alpha": 0.25, "class_weights": [0.2, 1, 3], "ignore": true }),
        json!({ "focal": 1, "focal_alpha": [0.2, 1, 3], "reduction": "sum" }),
        json!({ "focal": 1, "focal_alpha": 0.3, "focal_form": "softmax", "include_background": true, "ignore": true }),
        json!({ "boundary": 1, "include_background": true, "ignore": true }),
        json!({ "hausdorff": 1, "dice": 0.1 }),
        json!({ "hausdorff": 1, "hausdorff_power": 1.5, "include_background": true, "reduction": "sum", "ignore": true }),
        json!({ "generalised_dice": 1, "generalised_weights": "simple", "ignore": true }),
        json!({ "generalised_dice": 1, "generalised_weights": "uniform", "reduction": "sum" }),
    ] {
        let mut config = config;
        let ignore = config.as_object_mut().unwrap().remove("ignore").map(|_| 2);
        let labels: Vec<u8> = labels.iter().enumerate().map(|(v, l)| if ignore.is_some() && v % 4 == 3 { 2 } else { *l }).collect();
        let batch = Labels { labels: &labels, ignore, ..batch };
        let loss: Loss = serde_json::from_value(config.clone()).unwrap();
        let distances = Distances::of(&loss, &batch);
        for factor in [1, 2] {
            let shape = [n, classes, 4 / factor, 6 / factor, 8 / factor];
            let logits: Vec<f32> = (0..shape.iter().product()).map(|v: usize| (v * 37 % 101) as f32 / 12.0 - 4.0).collect();
            let head = loss.head((&batch, &Arc::new(Whole::of(&batch, 1))), shape, 0.4, &distances);
            let leaf = Tensor::<5>::from_data(TensorData::new(logits.clone(), shape), &d).require_grad();
            let value = loss.composed(leaf.clone(), &head);
            let want = crate::model::weights::values(leaf.grad(&value.backward()).unwrap()).unwrap();
            let (got, gradient) = head.value_and_gradient(&logits);
            let value = value.into_scalar::<f32>();
            assert!((got - value).abs() < 1e-5 * value.abs().max(0.1), "{config} {factor}: {got} instead of {value}");
            let top = want.iter().fold(0f32, |m, v| m.max(v.abs()));
            for (a, b) in gradient.iter().zip(&want) {
                assert!((a - b).abs() < 2e-5 * top, "{config} {factor}: gradient {a} instead of {b}");
            }
        }
    }
}

#[test]
fn overlaps_and_weights_are_those_of_monai_and_torch() {
    let (n, classes, size) = (2, 3, Zyx::new(2, 3, 4));
    let logits: Vec<f32> = (0..144).map(|i: usize| (i * 7919 % 1009) as f32 / 250.0 - 2.0).collect();
    let labels: Vec<u8> = (0..48).map(|i: usize| if i < 24 { i * 31 % 7 % 3 } else { i * 17 % 5 % 2 } as u8).collect();
    // MONAI 1.6.1 and torch 2.15 in float64: the loss and its gradient at logits 0, 5, 30, 71, 100 and 143.
    let all: [(serde_json::Value, f32, [f32; 6]); 9] = [
        (json!({ "generalised_dice": 1 }), 0.8066537, [-0.0001056, 0.0001689, -0.0053041, 0.0000269, -0.0065943, 0.0000500]),
        (
            json!({ "generalised_dice": 1, "include_background": true }),
            0.742323,
            [-0.0004083, 0.0001316, -0.0044898, 0.0001041, -0.0050441, 0.0001413],
        ),
        (
            json!({ "generalised_dice": 1, "batch": true }),
            0.8736165,
            [-0.0001599, -0.0000689, -0.0023141, 0.0002230, -0.0022178, 0.0002230],
        ),
        (
            json!({ "tversky": 1, "alpha": 0.3, "beta": 0.7 }),
            0.8364886,
            [-0.0000731, 0.0002184, -0.0056622, 0.0000263, -0.0046650, -0.0001326],
        ),
        (
            json!({ "tversky": 1, "alpha": 0.3, "beta": 0.7, "batch": true, "include_background": true }),
            0.7108336,
            [-0.0005399, 0.0001943, -0.0031958, 0.0001197, -0.0039792, 0.0001197],
        ),
        (json!({ "dice": 1, "batch": true }), 0.822728, [-0.0001044, 0.0001444, -0.0045147, -0.0000649, -0.0052094, -0.0000649]),
        (
            json!({ "dice": 1, "batch": true, "include_background": true }),
            0.70271,
            [-0.0005251, 0.0002636, -0.0030414, 0.0000729, -0.0040360, 0.0000729],
        ),
        (json!({ "dice": 1, "jaccard": true }), 0.9067533, [-0.0000634, 0.0000958, -0.0030970, 0.0000234, -0.0032504, -0.0001723]),
        (
            json!({ "cross_entropy": 1, "class_weights": [0.2, 1, 3] }),
            1.9924658,
            [-0.0049884, 0.0010996, -0.0213256, 0.0003015, -0.0061464, 0.0003015],
        ),
    ];
    for (config, value, gradient) in all {
        let loss: Loss = serde_json::from_value(config.clone()).unwrap();
        let batch = Labels { labels: &labels, n, classes, size, ignore: None };
        let (got, slopes) = value_and_gradient(&loss, &logits, &batch, &Device::cpu()).unwrap();
        assert!((got - value).abs() < 2e-6, "{config}: {got} instead of {value}");
        for (at, want) in [0, 5, 30, 71, 100, 143].into_iter().zip(gradient) {
            assert!((slopes[at] - want).abs() < 1e-6, "{config}: {} instead of {want} at {at}", slopes[at]);
        }
    }
}

#[test]
fn a_coarse_head_costs_what_its_copy_at_full_size_costs() {
    let (full, shape) = (Zyx::splat(4), [1, 2, 2, 2, 2]);
    let labels: Vec<u8> = (0..64).map(|v| (v % 5 == 0) as u8).collect();
    let batch = Labels { labels: &labels, n: 1, classes: 2, size: full, ignore: None };
    let loss: Loss = serde_json::from_value(
        json!({ "dice": 0.5, "focal": 1, "cross_entropy": 0.3, "generalised_dice": 0.4, "tversky": 1, "alpha": 0.2, "squared": true,
                "boundary": 0.3, "hausdorff": 0.2, "label_smoothing": 0.1, "focal_alpha": 0.4 }),
    )
    .unwrap();
    let distances = Distances::of(&loss, &batch);
    let coarse: Vec<f32> = (0..16).map(|v| v as f32 / 4.0 - 2.0).collect();
    let copied: Vec<f32> = (0..128).map(|v| coarse[v / 64 * 8 + v / 32 % 2 * 4 + v / 8 % 2 * 2 + v / 2 % 2]).collect();
    let whole = Arc::new(Whole::of(&batch, 1));
    let (a, _) = loss.head((&batch, &whole), shape, 1.0, &distances).value_and_gradient(&coarse);
    let (b, _) = loss.head((&batch, &whole), [1, 2, 4, 4, 4], 1.0, &distances).value_and_gradient(&copied);
    assert!((a - b).abs() < 3e-6, "{a} instead of {b}");
}

#[test]
fn traps_are_findings() {
    let loss = |v| serde_json::from_value::<Loss>(v).unwrap();
    assert!(loss(json!({ "dice": 0.7, "focal": 0.3 })).findings(Some(3), 2).is_empty());
    assert_eq!(loss(json!({})).findings(Some(3), 1)[0].field, "loss");
    assert_eq!(loss(json!({ "focal": 1, "focal_form": "softmax" })).findings(Some(2), 1)[0].field, "loss.focal_form");
    assert_eq!(loss(json!({ "dice": 1, "head_weights": [1, 0.5] })).findings(Some(3), 1)[0].field, "loss.head_weights");
    assert!(loss(json!({ "boundary": 1 })).findings(Some(3), 1)[0].is_warning);
}

#[test]
fn heads_weigh_what_their_convention_says() {
    let weights = |v| serde_json::from_value::<Loss>(json!({ "dice": 1, "head_weights": v })).unwrap().head_weights(4);
    let sum = 1.0 + 0.5 + 0.25 + 0.125;
    assert_eq!(weights(json!(null)), [1.0 / sum, 0.5 / sum, 0.25 / sum, 0.125 / sum]);
    assert_eq!(weights(json!("halves")), weights(json!(null)));
    assert_eq!(weights(json!("nnunet")), [1.0 / 1.75, 0.5 / 1.75, 0.25 / 1.75, 0.0]);
    assert_eq!(weights(json!("monai")), [1.0, 0.5, 0.25, 0.125]);
    assert_eq!(weights(json!("monai_two")), [1.0, 0.5, 0.5, 0.5]);
    assert_eq!(weights(json!("monai_same")), [1.0; 4]);
    assert_eq!(weights(json!([4, 2, 1, 1])), [0.5, 0.25, 0.125, 0.125]);
    let one = |v| serde_json::from_value::<Loss>(json!({ "dice": 1, "head_weights": v })).unwrap().head_weights(1);
    assert_eq!((one(json!("nnunet")), one(json!("monai"))), (vec![1.0], vec![1.0]));
}

#[test]
fn ramps_move_weights_over_whole_epochs() {
    let loss: Loss = serde_json::from_value(json!({
        "dice": 2, "boundary": 1,
        "ramps": { "dice": { "from": 1, "to": 0.5, "epochs": 4 }, "boundary": { "from": 0, "to": 1, "epochs": 2, "after": 1 } }
    }))
    .unwrap();
    assert!(loss.findings(Some(3), 1).is_empty());
    let at: Vec<_> = (0..6).map(|e| (loss.at(e).dice, loss.at(e).boundary)).collect();
    assert_eq!(at, [(2.0, 0.0), (1.75, 0.0), (1.5, 0.5), (1.25, 1.0), (1.0, 1.0), (1.0, 1.0)]);
    let idle: Loss = serde_json::from_value(json!({ "dice": 1, "ramps": { "dice": { "from": 1, "to": 0, "epochs": 4 } } })).unwrap();
    assert!(idle.findings(Some(3), 1)[0].message.contains("in epoch 5"));
    let idle: Loss = serde_json::from_value(json!({ "dice": 1, "ramps": { "focal": { "from": 1, "to": 0, "epochs": 4 } } })).unwrap();
    assert!(idle.findings(Some(3), 1)[0].is_warning);
}

#[test]
fn what_is_always_zero_is_found() {
    let found = |v, classes| serde_json::from_value::<Loss>(v).unwrap().findings(classes, 1);
    let softmax = json!({ "focal": 1, "focal_form": "softmax" });
    assert!(found(softmax.clone(), None)[0].is_warning && found(softmax, Some(3)).is_empty());
    let only_background = found(json!({ "dice": 1, "class_weights": [1, 0, 0] }), Some(3));
    assert!(only_background[0].message.contains("always 0"), "{}", only_background[0].message);
    assert_eq!(found(json!({ "dice": 1, "class_weights": [1, 2] }), Some(3))[0].field, "loss.class_weights");
    assert_eq!(found(json!({ "focal": 1, "focal_alpha": 2 }), None)[0].field, "loss.focal_alpha");
}
