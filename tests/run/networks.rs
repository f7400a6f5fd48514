//! Every network trains, is saved and predicts; weights from nnU-Net become a model that predicts.

use std::path::Path;

use serde_json::json;

use crate::bench::{Bench, PIPELINE};

/// The small pipeline up to its split, with other nodes behind it.
fn pipeline(nodes: &str) -> String {
    let end = PIPELINE.find("  net:\n").unwrap();
    format!("{}{nodes}", &PIPELINE[..end])
}

#[test]
fn every_network_trains_and_predicts() {
    let networks = [
        ("seg", "z: 8, y: 16, x: 16", "{ kind: segresnet, init_filters: 4, num_groups: 2, blocks_down: [1, 1], blocks_up: [1] }"),
        ("flat", "z: 3, y: 16, x: 16", "{ kind: slices, slices: 3, filters: [4, 4, 8], kernel_size: [3, 3, 3], strides: [1, 2, 2] }"),
        ("time", "z: 8, y: 16, x: 16", "{ kind: spacetime, filters: [4, 4, 8], kernel_size: [3, 3, 3], strides: [1, 2, [1, 2, 2]] }"),
        (
            "own",
            "z: 8, y: 16, x: 16",
            "{ kind: nnunet, features_per_stage: [4, 8], kernel_sizes: [3, 3], strides: [1, 2], n_conv_per_stage: [1, 1], n_conv_per_stage_decoder: [1] }",
        ),
        (
            "gated",
            "z: 8, y: 16, x: 16",
            "{ kind: dynunet, filters: [4, 4, 8], kernel_size: [3, 3, 3], strides: [1, 2, 2], squeeze_excitation: { reduction: 2 } }",
        ),
    ];
    let node = |(name, patch, network): &(&str, &str, &str)| {
        format!(
            "  {name}:
    uses: train
    from: {{ cases: ready, split: folds }}
    with: {{ patch: {{ {patch} }}, batch: 2, epochs: 1, steps_per_epoch: 2, network: {network}, optimiser: {{ lr: 0.001 }} }}
  {name}_out: {{ uses: infer, from: {{ cases: ready, model: {name} }} }}
"
        )
    };
    let b = Bench::new(3);
    std::fs::write(b.path("p.yaml"), pipeline(&networks.iter().map(node).collect::<String>())).unwrap();
    let counts = b.run(&[]).expect(0).counts();
    for (name, ..) in networks {
        assert_eq!((counts[name].0, counts[&format!("{name}_out")].0), (1, 3), "{name}");
    }
}

#[test]
fn a_checkpoint_of_nnunet_predicts() {
    let b = Bench::new(2);
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/networks/nnunet_flat.pth");
    std::fs::copy(checkpoint, b.path("checkpoint_final.pth")).unwrap();
    let arguments = json!({
        "n_stages": 3, "features_per_stage": [4, 6, 8], "conv_op": "torch.nn.modules.conv.Conv2d", "kernel_sizes": [[3, 3], [3, 3], [3, 3]],
        "strides": [[1, 1], [2, 2], [2, 1]], "n_conv_per_stage": [1, 2, 1], "n_conv_per_stage_decoder": [1, 1], "conv_bias": true,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
    });
    let class = "dynamic_network_architectures.architectures.unet.PlainConvUNet";
    let plans = json!({
        "transpose_forward": [0, 1, 2],
        "configurations": { "2d": {
            "patch_size": [16, 16], "spacing": [1.5, 1.5], "normalization_schemes": ["ZScoreNormalization"],
            "architecture": { "network_class_name": class, "arch_kwargs": arguments },
        } },
    });
    let dataset = json!({ "channel_names": { "0": "MR" }, "labels": { "background": 0, "Anterior": 1, "Posterior": 2 } });
    std::fs::write(b.path("plans.json"), plans.to_string()).unwrap();
    std::fs::write(b.path("dataset.json"), dataset.to_string()).unwrap();
    let nodes =
        "  net: { uses: import, with: { weights: checkpoint_final.pth, plans: plans.json, dataset: dataset.json, configuration: 2d } }
  out: { uses: infer, from: { cases: ready, model: net } }
";
    std::fs::write(b.path("p.yaml"), pipeline(nodes)).unwrap();
    let counts = b.run(&[]).expect(0).counts();
    assert_eq!((counts["net"].0, counts["out"].0), (1, 2));
    assert_eq!(b.run(&[]).expect(0).made(), 0);
    let wrong = pipeline(nodes).replace("configuration: 2d", "configuration: 3d_fullres");
    std::fs::write(b.path("p.yaml"), wrong).unwrap();
    b.run(&[]).says("plans.json has no configuration 3d_fullres, it has 2d");
}
