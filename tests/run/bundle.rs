//! `voxmill bundle`: a folder that answers as the pipeline does, and says what a lower precision costs.

use std::process::Command;

use serde_json::Value;
use voxmill_schemas::artifact::Key;
use voxmill_schemas::region::Region;
use voxmill_stages::fit::bundle::Bundle;
use voxmill_stages::model::{Device, Predictor, slide};
use voxmill_stages::nifti;
use voxmill_stages::ops::regrid;
use voxmill_stages::store::{Limits, Store};
use voxmill_stages::volume::{StoredVolume, Volume};

use crate::bench::Bench;

fn bundle(b: &Bench, out: &str) -> Bundle {
    serde_json::from_slice(&std::fs::read(b.path(out).join("bundle.json")).unwrap()).unwrap()
}

#[test]
fn a_bundle_says_what_was_done_before_it_and_what_its_precision_costs() {
    let b = Bench::new(3);
    b.voxmill(&["bundle", "p.yaml", "net", "early"]).expect(2).says("nothing was run");
    b.run(&[]).expect(0);
    b.voxmill(&["bundle", "p.yaml", "seg", "wrong"]).expect(2).says("no model");
    let told = b.voxmill(&["bundle", "p.yaml", "net", "small", "--precision", "int8"]).expect(0);
    assert!(told.says("mean Dice over the validation cases").says("Anterior").stdout.ends_with("small\n"), "{}", told.stdout);
    b.voxmill(&["bundle", "p.yaml", "net", "small"]).expect(2).says("is there already");
    let of_int8 = bundle(&b, "small");
    let stages: Vec<&str> = of_int8.preprocessing.as_array().unwrap().iter().map(|s| s["uses"].as_str().unwrap()).collect();
    assert_eq!((stages.first(), stages.last()), (Some(&"assemble"), Some(&"normalize")), "{stages:?}");
    let validated: Vec<Value> = serde_json::from_str(
        &b.voxmill(&["query", "p.yaml", "select \"case\" from split where part = 'val'", "--format", "json"]).expect(0).stdout,
    )
    .unwrap();
    assert!(of_int8.measured.len() == 2 && of_int8.measured.iter().all(|m| m.cases <= 1));
    // A bundle leaves the house: nothing in it says whom it was measured on.
    let case = validated[0]["case"].as_str().unwrap();
    for file in ["bundle.json", "model.onnx"] {
        let bytes = std::fs::read(b.path("small").join(file)).unwrap();
        assert!(!bytes.windows(case.len()).any(|w| w == case.as_bytes()), "{file} names {case}");
    }
    assert!(of_int8.measured.iter().all(|m| m.agreement.is_none_or(|d| d > 0.5)), "{:?}", of_int8.measured);
    b.voxmill(&["bundle", "p.yaml", "net", "full"]).expect(0);
    assert!(bundle(&b, "full").measured.is_empty());
    let bytes = |out: &str| std::fs::metadata(b.path(out).join("model.onnx")).unwrap().len();
    assert!(bytes("small") < bytes("full"), "{} and {}", bytes("small"), bytes("full"));
    let left: Vec<_> =
        std::fs::read_dir(b.dir.path()).unwrap().map(|e| e.unwrap().file_name()).filter(|n| n.to_string_lossy().starts_with('.')).collect();
    assert!(left.is_empty(), "{left:?}");

    let python = std::env::var("VOXMILL_PYTHON").unwrap_or_else(|_| "python3".into());
    let has = Command::new(&python).args(["-c", "import nibabel, numpy, onnxruntime"]).output();
    if !has.is_ok_and(|o| o.status.success()) {
        assert_ne!(std::env::var("VOXMILL_REQUIRE_PYTHON").as_deref(), Ok("1"), "{python} has no nibabel and onnxruntime");
        return eprintln!("the script was not run: {python} has no nibabel and onnxruntime");
    }
    b.voxmill(&["cache", "export", "p.yaml", &format!("ready/{case}"), "copies"]).expect(0);
    let at = b.path("copies/ready").join(case);
    let v = Volume::read(&at).unwrap();
    nifti::write(&b.path("ready.nii.gz"), &v.geometry, v.channels.len(), &v.voxels, &nifti::Options::default()).unwrap();
    let done =
        Command::new(&python).arg(b.path("full/predict.py")).args([b.path("ready.nii.gz"), b.path("labels.nii.gz")]).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let theirs = nifti::read(&b.path("labels.nii.gz")).unwrap();
    // The same windows through our own network.
    let (told, device) = (bundle(&b, "full"), Device::cpu());
    let weights = std::fs::read_dir(b.path("work/store/artifacts"))
        .unwrap()
        .flat_map(|d| walk(&d.unwrap().path()))
        .find(|p| p.ends_with("weights.safetensors"));
    let card = &told.card;
    let net = Predictor::load(&card.network, card.channels.len(), card.n_outputs(), &weights.unwrap(), &device).unwrap();
    let store = Store::open(&Limits { disk_dir: b.path("own"), ram_bytes: 1 << 24, ..Limits::default() }).unwrap();
    let image = StoredVolume::open(&at, Key([0; 32])).unwrap().read(Region::whole(v.geometry.size), 0.0, &store).unwrap().voxels;
    let logits = slide(&image, 1, v.geometry.size, 3, &told.window, &mut |x, n| net.forward(x, n, told.window.size)).unwrap();
    let ours = regrid::argmax(&logits, 3);
    let same = ours.iter().zip(theirs.voxels.to_f32().iter()).filter(|(a, b)| f32::from(**a) == **b).count();
    assert!(theirs.geometry.size == v.geometry.size && same as f64 >= 0.9999 * ours.len() as f64, "{same} of {}", ours.len());
}

fn walk(at: &std::path::Path) -> Vec<std::path::PathBuf> {
    if !at.is_dir() {
        return vec![at.into()];
    }
    std::fs::read_dir(at).unwrap().flat_map(|e| walk(&e.unwrap().path())).collect()
}
