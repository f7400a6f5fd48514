//! zarr-python 3 opens what we write and sees the same voxels, labels and attributes. The interpreter is `VOXMILL_PYTHON` (default `python3`); where
//! it or a package is missing the test says so, and fails instead when `VOXMILL_REQUIRE_PYTHON=1`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use indexmap::IndexMap;
use serde_json::{Value, json};
use voxmill_schemas::artifact::{Key, Kind, Recipe};
use voxmill_schemas::geometry::{Geometry, Lps, Zyx};
use voxmill_stages::store::{Commit, Limits, Store};
use voxmill_stages::volume::{About, Labels, StoredVolume, Volume, Voxels};

const SEE: &str = r#"
import json, sys
import numpy as np, zarr
root = zarr.open_group(sys.argv[1], mode="r")
out = sys.argv[2]
told = {"zarr": zarr.__version__, "root": dict(root.attrs), "groups": sorted(root.group_keys()), "arrays": sorted(root.array_keys())}
if "ome" in root.attrs:
    image = root[root.attrs["ome"]["multiscales"][0]["datasets"][0]["path"]]
    np.ascontiguousarray(image[:]).tofile(out + "/image")
    told |= {
        "dtype": str(image.dtype), "shape": image.shape, "chunks": image.chunks, "shards": image.shards,
        "names": image.metadata.dimension_names, "corner": np.asarray(image[-1, -1, -1, -1]).item(),
    }
if "labels" in root:
    name, = root["labels"].attrs["ome"]["labels"]
    group = root["labels"][name]
    labels = group[group.attrs["ome"]["multiscales"][0]["datasets"][0]["path"]]
    np.ascontiguousarray(labels[:]).tofile(out + "/labels")
    told |= {"label": dict(group.attrs), "label_shape": labels.shape, "label_dtype": str(labels.dtype), "label_names": labels.metadata.dimension_names}
print(json.dumps(told))
"#;

/// `None` where zarr-python is not to be had and need not be.
fn python(script: &str, args: &[&Path]) -> Option<std::process::Output> {
    let python = std::env::var("VOXMILL_PYTHON").unwrap_or_else(|_| "python3".into());
    let asked = Command::new(&python)
        .args(["-c", "import numpy, zarr; assert int(zarr.__version__.split('.')[0]) >= 3, zarr.__version__"])
        .output();
    let why = match asked {
        Ok(o) if o.status.success() => return Some(Command::new(&python).arg("-c").arg(script).args(args).output().unwrap()),
        Ok(o) => String::from_utf8_lossy(&o.stderr).lines().last().unwrap_or_default().to_string(),
        Err(e) => e.to_string(),
    };
    assert_ne!(std::env::var("VOXMILL_REQUIRE_PYTHON").as_deref(), Ok("1"), "{python}: {why}");
    eprintln!("skipped: {python} has no zarr 3 ({why})");
    None
}

fn volume(size: Zyx<usize>, channels: &[&str], voxels: Voxels, has_labels: bool) -> Volume {
    let geometry = Geometry {
        size,
        origin: Lps([-12.5, 7.25, 100.1]),
        axes_mm: Zyx::new(Lps([0.0, 0.5, 2.5]), Lps([0.0, 0.75, 0.0]), Lps([-0.6, 0.0, 0.0])),
    };
    let labels = has_labels.then(|| Labels {
        classes: IndexMap::from([("Posterior".to_string(), 2), ("Anterior".to_string(), 1)]),
        voxels: (0..size.count()).map(|i| if i % 1000 > 700 { (i / 11 % 3) as u8 } else { 0 }).collect(),
    });
    let about = About {
        modality: "CT".into(),
        unit: "HU".into(),
        patient: "patient".into(),
        study: "study".into(),
        series: "series".into(),
        volume: 0,
        ..About::of(geometry)
    };
    Volume { geometry, channels: channels.iter().map(|c| c.to_string()).collect(), voxels, labels, about }
}

fn noise(i: usize) -> u32 {
    if (i / 50).is_multiple_of(4) { 0 } else { (i as u32).wrapping_mul(2_654_435_761) >> 17 }
}

#[test]
fn zarr_python_sees_the_same_voxels_labels_and_attributes() {
    let size = Zyx::new(70, 50, 90);
    let n = size.count();
    let volumes = [
        volume(size, &["CT"], Voxels::I16((0..n).map(|i| noise(i) as i16 - 1024).collect()), true),
        volume(size, &["T1", "T2"], Voxels::F32((0..2 * n).map(|i| noise(i) as f32 / 7.0).collect()), false),
        volume(size, &["A"], Voxels::U16((0..n).map(|i| noise(i) as u16).collect()), true),
        volume(Zyx::new(1, 3, 5), &["B"], Voxels::U8((0..15).collect()), true),
    ];
    for v in &volumes {
        let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        v.write(dir.path(), None).unwrap();
        let Some(saw) = python(SEE, &[dir.path(), out.path()]) else { return };
        assert!(saw.status.success(), "{}", String::from_utf8_lossy(&saw.stderr));
        let told: Value = serde_json::from_slice(&saw.stdout).unwrap();
        same(v, &told, out.path());
    }
}

fn same(v: &Volume, told: &Value, out: &Path) {
    let size = v.geometry.size;
    let bytes = |v: &Voxels| -> Vec<u8> {
        match v {
            Voxels::U8(v) => v.clone(),
            Voxels::I16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Voxels::U16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Voxels::F16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Voxels::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    };
    assert!(std::fs::read(out.join("image")).unwrap() == bytes(&v.voxels), "the voxels differ");
    assert_eq!(told["dtype"], v.voxels.dtype());
    assert_eq!(told["shape"], json!([v.channels.len(), size.z, size.y, size.x]));
    assert_eq!(told["names"], json!(["c", "z", "y", "x"]));
    assert_eq!(told["corner"].as_f64().unwrap() as f32, *v.voxels.to_f32().last().unwrap());
    let (own, ome) = (&told["root"]["voxmill"], &told["root"]["ome"]);
    assert_eq!(ome["version"], "0.5");
    let level = &ome["multiscales"][0];
    assert_eq!(level["axes"][0], json!({"name": "c", "type": "channel"}));
    assert_eq!(level["axes"][3], json!({"name": "x", "type": "space", "unit": "millimeter"}));
    let spacing = v.geometry.spacing_mm();
    assert_eq!(level["datasets"][0]["coordinateTransformations"][0]["scale"], json!([1.0, spacing.z, spacing.y, spacing.x]));
    assert_eq!(own["affine_ras_xyz"], json!(v.geometry.affine_ras_xyz()));
    assert_eq!(own["affine_lps_xyz"][0][3], v.geometry.origin.0[0]);
    assert_eq!(own["channels"], json!(v.channels));
    assert_eq!(own["about"]["unit"], "HU");
    let Some(labels) = &v.labels else {
        assert_eq!(told["groups"], json!([]));
        return;
    };
    assert!(std::fs::read(out.join("labels")).unwrap() == labels.voxels, "the labels differ");
    assert_eq!(told["label_shape"], json!([size.z, size.y, size.x]));
    assert_eq!((&told["label_dtype"], &told["label_names"]), (&json!("uint8"), &json!(["z", "y", "x"])));
    assert_eq!(own["classes"], json!({"Posterior": 2, "Anterior": 1}));
    let properties = &told["label"]["ome"]["image-label"]["properties"];
    assert_eq!(*properties, json!([{"label-value": 2, "name": "Posterior"}, {"label-value": 1, "name": "Anterior"}]));
}

/// What infer writes: the label image is an OME-Zarr image by itself, the group above it claims to be none.
#[test]
fn labels_without_an_image_are_an_image_by_themselves() {
    let size = Zyx::new(20, 30, 40);
    let v = volume(size, &[], Voxels::U8(Vec::new()), true);
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    v.write(dir.path(), None).unwrap();
    assert_eq!(Volume::read(dir.path()).unwrap(), v);
    let Some(saw) = python(SEE, &[dir.path(), out.path()]) else { return };
    assert!(saw.status.success(), "{}", String::from_utf8_lossy(&saw.stderr));
    let told: Value = serde_json::from_slice(&saw.stdout).unwrap();
    assert_eq!((&told["root"]["ome"], &told["arrays"], &told["groups"]), (&Value::Null, &json!([]), &json!(["labels"])));
    assert!(std::fs::read(out.path().join("labels")).unwrap() == v.labels.unwrap().voxels, "the labels differ");
    let ome = &told["label"]["ome"];
    assert_eq!(ome["version"], "0.5");
    let spacing = v.geometry.spacing_mm();
    let level = &ome["multiscales"][0];
    assert_eq!(level["axes"].as_array().unwrap().len(), 3);
    assert_eq!(level["datasets"][0]["coordinateTransformations"][0]["scale"], json!([spacing.z, spacing.y, spacing.x]));
    assert_eq!(ome["image-label"].get("source"), None);
    assert_eq!(ome["image-label"]["colors"].as_array().unwrap().len(), 2);
}

/// A committed artifact with a damaged byte is refused by us by name, and by zarr-python as well.
#[test]
fn a_damaged_artifact_is_refused_by_both() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&Limits { disk_dir: dir.path().to_path_buf(), ..Limits::default() }).unwrap();
    let size = Zyx::new(40, 40, 40);
    let v = volume(size, &["CT"], Voxels::I16((0..size.count()).map(|i| noise(i) as i16).collect()), true);
    let draft = store.disk.draft().unwrap();
    v.write(&draft.path, None).unwrap();
    let recipe = Recipe { stage: "test".into(), version: 1, config: Value::Null, inputs: BTreeMap::new(), seed: 0 };
    let commit = Commit {
        key: recipe.key(),
        kind: Kind::Volume,
        case: None,
        recipe,
        input_keys: BTreeMap::new(),
        facts: v.facts().facts,
        content: None,
        inputs_dirs: &[],
    };
    let key: Key = draft.commit(commit).unwrap().key;
    let at = store.disk.dir(&key);
    assert_eq!(Volume::read(&at).unwrap(), v);
    let shard = at.join("0/c.0.0.0.0");
    let mut bytes = std::fs::read(&shard).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(&shard).unwrap();
    std::fs::write(&shard, bytes).unwrap();
    let error = StoredVolume::open(&at, key).and_then(|s| s.read(voxmill_schemas::region::Region::whole(size), 0.0, &store)).unwrap_err();
    assert!(error.to_string().starts_with(&format!("artifact {key} is damaged: brick 0×0×0 of 0/c.0.0.0.0")), "{error}");
    let out = tempfile::tempdir().unwrap();
    let Some(saw) = python(SEE, &[&at, out.path()]) else { return };
    assert!(!saw.status.success());
    assert!(String::from_utf8_lossy(&saw.stderr).to_lowercase().contains("checksum"), "{}", String::from_utf8_lossy(&saw.stderr));
}
