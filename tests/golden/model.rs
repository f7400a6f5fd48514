//! Networks, losses, schedule, squeeze-and-excitation and sliding windows against MONAI. Golden arrays are [batch, channel, i, j, k]; their
//! i, j, k are our z, y, x. Everything a case is made with comes from its manifest entry.

use std::path::PathBuf;

use serde_json::{Value, json};
use voxmill_schemas::geometry::Zyx;
use voxmill_stages::model::loss::{self, FocalAlpha, Labels};
use voxmill_stages::model::{Device, Form, Loss, Network, Optimiser, Predictor, Schedule, Trainer, Window, slide, squeeze_excitation};

use crate::read::{Tensor, cases, folder, tensors};

/// Relative to the largest value.
const TOLERANCE: f64 = 1e-4;

/// Largest difference, relative to the largest value; infinite for what is not a number.
fn off(a: &[f32], b: &Tensor) -> f64 {
    assert_eq!(a.len(), b.values.len(), "as many values");
    let scale = b.values.iter().fold(0f64, |m, v| m.max(v.abs())).max(f64::MIN_POSITIVE);
    a.iter().zip(&b.values).map(|(a, b)| (*a as f64 - b).abs() / scale).fold(0.0, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) })
}

fn assert_close(what: &str, a: &[f32], b: &Tensor) {
    let off = off(a, b);
    println!("{what}: off by {off:.1e}");
    assert!(off < TOLERANCE, "{what}: off by {off:e}");
}

fn spatial(shape: &[usize]) -> Zyx<usize> {
    let [.., z, y, x] = *shape else { panic!("{shape:?} has no space") };
    Zyx::new(z, y, x)
}

fn name(case: &Value) -> &str {
    case["case"].as_str().expect("a case has a name")
}

fn file(name: &str) -> PathBuf {
    folder().join(format!("{name}.safetensors"))
}

fn labels(t: &Tensor) -> Vec<u8> {
    t.values.iter().map(|v| *v as u8).collect()
}

fn number(case: &Value, key: &str, default: f64) -> f64 {
    case.get(key).map_or(default, |v| v.as_f64().unwrap_or_else(|| panic!("{key} of {} is no number", name(case))))
}

/// The word after `key` in a text such as `AdamW lr 1e-3 wd 1e-2`.
fn after(text: &str, key: &str) -> f64 {
    let mut words = text.split_whitespace().skip_while(|w| *w != key);
    words.nth(1).and_then(|w| w.parse().ok()).unwrap_or_else(|| panic!("no number after {key} in {text:?}"))
}

/// A group norm's groups; 0 for an instance norm, with whether that scales and shifts.
fn norm(case: &Value) -> (u64, bool) {
    let (kind, arguments) = match &case["norm"] {
        Value::String(s) => (s.as_str(), &Value::Null),
        Value::Array(a) => (a[0].as_str().expect("a norm has a name"), &a[1]),
        Value::Null => ("group", &Value::Null),
        other => panic!("norm {other} of {}", name(case)),
    };
    match kind.to_ascii_lowercase().as_str() {
        "instance" => (0, arguments["affine"] == true),
        "group" => (arguments["num_groups"].as_u64().unwrap_or(8), true),
        other => panic!("norm {other} of {}", name(case)),
    }
}

fn segresnet(case: &Value) -> Network {
    let mut config = json!({ "kind": "segresnet" });
    for key in ["init_filters", "blocks_down", "blocks_up", "upsample_mode", "use_conv_final"] {
        if let Some(v) = case.get(key).filter(|v| !v.is_null()) {
            config[key] = v.clone();
        }
    }
    match norm(case) {
        (0, affine) => config["norm"] = json!(if affine { "instance_affine" } else { "instance" }),
        (groups, _) => config["num_groups"] = json!(groups),
    }
    serde_json::from_value(config).expect("the manifest describes a network")
}

fn network(case: &Value) -> Network {
    match case["network"].as_str() {
        Some("SegResNet") => return segresnet(case),
        Some("DynUNet") => {}
        other => panic!("{}: a network that nobody compares: {other:?}", name(case)),
    }
    let (groups, affine) = norm(case);
    assert_eq!(groups, 0, "{}: a DynUNet with group norm", name(case));
    let heads = if case["deep_supervision"] == true { case["deep_supr_num"].clone() } else { json!(0) };
    let config = json!({
        "kind": "dynunet",
        "filters": case["filters"],
        "strides": case["strides"],
        "kernel_size": case["kernel_size"],
        "upsample_kernel_size": case["upsample_kernel_size"],
        "norm": if affine { "instance_affine" } else { "instance" },
        "res_block": case["res_block"],
        "trans_bias": case["trans_bias"],
        "deep_supervision": heads,
    });
    serde_json::from_value(config).expect("the manifest describes a network")
}

/// The recipe's loss, with the case's own numbers where it gives some.
fn seed_loss(case: &Value) -> Loss {
    let config = json!({
        "dice": number(case, "lambda_dice", 0.7),
        "focal": number(case, "lambda_focal", 0.3),
        "gamma": number(case, "gamma", 2.0),
        "include_background": case.get("include_background").and_then(Value::as_bool).unwrap_or(false),
        "head_weights": case.get("head_weights").filter(|w| w.is_array()),
    });
    serde_json::from_value(config).expect("the manifest describes a loss")
}

#[test]
fn networks_agree_with_monai() {
    let device = Device::cpu();
    for case in cases("").iter().filter(|c| c["network"].is_string()) {
        let name = name(case);
        let golden = tensors(name);
        let network = network(case);
        let count = |key: &str| case[key].as_u64().expect("a number of channels") as usize;
        let (channels, classes) = (count("in_channels"), count("out_channels"));
        let (n, size) = (golden["in"].shape[0], spatial(&golden["in"].shape));
        let weights = file(&format!("{name}_weights"));
        let predictor = Predictor::load(&network, channels, classes, &weights, &device).expect("MONAI's weights fit");
        let image = golden["in"].f32();
        assert_close(&format!("{name} eval"), &predictor.forward(image.clone(), n, size).expect("forward"), &golden["eval_out"]);

        let optimiser = case["optimiser"].as_str().expect("an optimiser");
        let lr = after(optimiser, "lr");
        let rule: Optimiser = serde_json::from_value(json!({ "lr": lr, "weight_decay": after(optimiser, "wd") })).expect("AdamW");
        let mut trainer = Trainer::new(&network, channels, classes, &seed_loss(case), &rule, 0, &device).expect("a trainer");
        trainer.start_from(&weights).expect("MONAI's weights fit");
        // MONAI stacks heads on axis 1: [B, head, class, i, j, k]; ours come one after another.
        let heads = trainer.heads(image.clone(), n, size).expect("heads");
        let per = classes * size.count();
        let stacked: Vec<f32> =
            (0..n).flat_map(|b| heads.iter().flat_map(move |h| h[b * per..][..per].to_vec()).collect::<Vec<_>>()).collect();
        assert_close(&format!("{name} heads"), &stacked, &golden["train_out"]);

        let value = trainer.step(image.clone(), &labels(&golden["target"]), n, size, lr).expect("a step");
        assert_close(&format!("{name} loss"), &[value], &golden["loss"]);
        let after = trainer.predictor().forward(image, n, size).expect("forward");
        assert_close(&format!("{name} after one step"), &after, &golden["eval_out_after_one_adamw_step"]);
    }
}

#[test]
fn pytorch_files_hold_the_same_weights() {
    for case in cases("").iter().filter(|c| c["network"].is_string()) {
        let pt = folder().join(format!("{}.pt", name(case)));
        if !pt.exists() {
            println!("{}: no .pt file here, nothing to compare", name(case));
            continue;
        }
        let read = |path| voxmill_stages::model::weights::read(path, 1 << 30).expect("weights");
        assert_eq!(read(&pt), read(&file(&format!("{}_weights", name(case)))));
    }
}

#[test]
fn losses_agree_with_monai() {
    for case in cases("loss_") {
        let golden = tensors(name(&case));
        let text = case["loss"].as_str().expect("a loss");
        let kind = text.split([' ', ',']).next().expect("a word");
        let lambda = |key: &str| number(&case, key, 1.0);
        let weights = match kind {
            "Dice" => json!({ "dice": 1 }),
            "Focal(softmax)" => json!({ "focal": 1, "focal_form": "softmax" }),
            "Focal(sigmoid" | "Focal(sigmoid)" => json!({ "focal": 1 }),
            "DiceFocal" => json!({ "dice": lambda("lambda_dice"), "focal": lambda("lambda_focal") }),
            "DiceCE" => json!({ "dice": lambda("lambda_dice"), "cross_entropy": lambda("lambda_ce") }),
            "Boundary" => json!({ "boundary": 1 }),
            "HausdorffDT" | "Hausdorff" => json!({ "hausdorff": 1 }),
            "GeneralizedDice" | "GeneralizedDiceLoss" => json!({ "generalised_dice": 1 }),
            "Tversky" => json!({ "tversky": 1 }),
            "CrossEntropy" => json!({ "cross_entropy": 1 }),
            _ => panic!("{}: a loss that nobody compares: {text}", name(&case)),
        };
        let shape = &golden["logits"].shape;
        let classes = shape[1];
        let flag = |key: &str| case.get(key).and_then(Value::as_bool).unwrap_or(false);
        let mut loss: Loss = serde_json::from_value(weights).expect("a loss");
        loss.include_background = flag("include_background");
        // MONAI's lists leave out the background where it does not count.
        let list = |key: &str| -> Option<Vec<f64>> {
            let list: Vec<f64> = case.get(key)?.as_array()?.iter().filter_map(Value::as_f64).collect();
            Some(if list.len() + 1 == classes { [1.0].into_iter().chain(list).collect() } else { list })
        };
        loss.gamma = number(&case, "gamma", 2.0);
        loss.smooth = number(&case, "smooth_dr", number(&case, "smooth", 1e-5));
        loss.smooth_above = Some(number(&case, "smooth_nr", number(&case, "smooth", 1e-5)));
        match kind {
            "Tversky" => (loss.alpha, loss.beta) = (number(&case, "alpha", 0.5), number(&case, "beta", 0.5)),
            _ if kind.starts_with("Hausdorff") => loss.hausdorff_power = number(&case, "alpha", 2.0),
            _ => loss.focal_alpha = list("alpha").map(FocalAlpha::Each).or(case.get("alpha").and_then(Value::as_f64).map(FocalAlpha::Same)),
        }
        (loss.jaccard, loss.batch, loss.squared) = (flag("jaccard"), flag("batch"), flag("squared_pred"));
        loss.label_smoothing = number(&case, "label_smoothing", 0.0);
        loss.class_weights = list("weight");
        if let Some(v) = case.get("w_type") {
            loss.generalised_weights = serde_json::from_value(v.clone()).expect("square, simple or uniform");
        }
        if let Some(v) = case.get("reduction") {
            loss.reduction = serde_json::from_value(v.clone()).expect("mean or sum");
        }
        let ignored = case.get("ignore_index").and_then(Value::as_i64);
        let target: Vec<u8> = golden["target"].values.iter().map(|v| if ignored == Some(*v as i64) { 255 } else { *v as u8 }).collect();
        let batch = Labels { labels: &target, n: shape[0], classes, size: spatial(shape), ignore: ignored.map(|_| 255) };
        let (value, gradient) = loss::value_and_gradient(&loss, &golden["logits"].f32(), &batch, &Device::cpu()).expect("a loss");
        assert_close(name(&case), &[value], &golden["loss"]);
        assert_close(&format!("{} gradient", name(&case)), &gradient, &golden["grad"]);
    }
}

#[test]
fn schedule_agrees_with_pytorch() {
    for case in cases("schedule_") {
        let given = |keys: &[(&str, &str)]| -> Value {
            let found = keys.iter().filter_map(|(theirs, ours)| Some((ours.to_string(), case.get(theirs)?.clone())));
            Value::Object(found.collect())
        };
        let config = match name(&case) {
            n if n.contains("poly") => json!({ "poly": given(&[("power", "power")]) }),
            n if n.contains("one_cycle") || n.contains("onecycle") => json!({ "one_cycle": given(&[
                ("pct_start", "pct_start"), ("anneal_strategy", "anneal"), ("div_factor", "div_factor"),
                ("final_div_factor", "final_div_factor"), ("three_phase", "three_phase"),
            ]) }),
            n if n.contains("cosine_warm_restarts") => {
                json!({ "cosine_warm_restarts": given(&[("T_0", "t0"), ("T_mult", "t_mult"), ("eta_min", "min_lr")]) })
            }
            n if n.contains("cosine") => json!({ "cosine": given(&[("eta_min", "min_lr")]) }),
            n => panic!("{n} is a schedule that nobody compares"),
        };
        let schedule: Schedule = serde_json::from_value(config).expect("a schedule");
        let tensors = tensors(name(&case));
        let golden = tensors.get("lr_per_epoch").or(tensors.get("lr_per_step")).expect("rates");
        let lr = number(&case, "max_lr", number(&case, "lr", 0.0));
        let total = number(&case, "total_steps", number(&case, "total_iters", number(&case, "T_max", golden.values.len() as f64)));
        let got: Vec<f32> = (0..golden.values.len()).map(|e| schedule.lr(lr, e as f64, 1.0, total) as f32).collect();
        assert_close(name(&case), &got, golden);
    }
}

#[test]
fn squeeze_excitation_agrees_with_monai() {
    for case in cases("squeeze_excitation") {
        let g = tensors(name(&case));
        let block = case["block"].as_str().expect("a block");
        let form = if block.starts_with("Residual") { Form::Residual } else { Form::Channel };
        let (w1, b1, w2, b2) = (g["w.fc.0.weight"].f32(), g["w.fc.0.bias"].f32(), g["w.fc.2.weight"].f32(), g["w.fc.2.bias"].f32());
        let (n, size) = (g["in"].shape[0], spatial(&g["in"].shape));
        let got = squeeze_excitation(g["in"].f32(), n, size, (&w1, &b1), (&w2, &b2), form, &Device::cpu()).expect("an answer");
        assert_close(name(&case), &got, &g["out"]);
    }
}

/// Zero-padded convolution with odd kernels: the network of the sliding-window cases. patches [n, c, size], kernel [o, c, kz, ky, kx].
fn convolve(patches: &[f32], n: usize, size: Zyx<usize>, kernel: &Tensor) -> Vec<f32> {
    let [o, c, kz, ky, kx] = kernel.shape[..] else { panic!("a kernel has five axes") };
    let at = |b: usize, c_in: usize, z: i64, y: i64, x: i64| -> f64 {
        let inside = |v: i64, n: usize| v >= 0 && v < n as i64;
        if !(inside(z, size.z) && inside(y, size.y) && inside(x, size.x)) {
            return 0.0;
        }
        patches[(((b * c + c_in) * size.z + z as usize) * size.y + y as usize) * size.x + x as usize] as f64
    };
    let mut out = Vec::with_capacity(n * o * size.count());
    for b in 0..n {
        for to in 0..o {
            for v in 0..size.count() {
                let (z, y, x) = ((v / size.x / size.y) as i64, (v / size.x % size.y) as i64, (v % size.x) as i64);
                let mut sum = 0.0;
                for k in 0..c * kz * ky * kx {
                    let (dx, dy, dz, from) = (k % kx, k / kx % ky, k / kx / ky % kz, k / kx / ky / kz);
                    let shift = |v: i64, d: usize, n: usize| v + d as i64 - (n / 2) as i64;
                    sum += kernel.values[to * c * kz * ky * kx + k] * at(b, from, shift(z, dz, kz), shift(y, dy, ky), shift(x, dx, kx));
                }
                out.push(sum as f32);
            }
        }
    }
    out
}

#[test]
fn sliding_windows_agree_with_monai() {
    for case in cases("sliding_window_") {
        let golden = tensors(name(&case));
        let roi: Vec<usize> = serde_json::from_value(case["roi"].clone()).expect("a window");
        let window: Window = serde_json::from_value(json!({
            "size": { "z": roi[0], "y": roi[1], "x": roi[2] },
            "overlap": case["overlap"],
            "blend": case["mode"],
            "sigma_scale": number(&case, "sigma_scale", 0.125),
            "batch": 3,
        }))
        .expect("a window");
        let kernel = &golden["kernel"];
        let [n, channels, ..] = golden["in"].shape[..] else { panic!("an image has five axes") };
        let size = spatial(&golden["in"].shape);
        let image = golden["in"].f32();
        let got: Vec<f32> = image
            .chunks_exact(channels * size.count())
            .take(n)
            .flat_map(|image| {
                let mut look = |patches: Vec<f32>, n: usize| Ok(convolve(&patches, n, window.size, kernel));
                slide(image, channels, size, kernel.shape[0], &window, &mut look).expect("an answer")
            })
            .collect();
        assert_close(name(&case), &got, &golden["out"]);
    }
}
