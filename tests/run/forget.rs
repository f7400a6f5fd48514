//! `voxmill forget`: a patient leaves the workspace, everybody else stays, and nothing is made again that did not change.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::bench::{Bench, example_cases};

fn files(folder: &Path) -> Vec<PathBuf> {
    let (mut todo, mut out) = (vec![folder.to_path_buf()], Vec::new());
    while let Some(dir) = todo.pop() {
        for e in std::fs::read_dir(dir).unwrap() {
            let path = e.unwrap().path();
            if path.is_dir() { todo.push(path) } else { out.push(path) }
        }
    }
    out
}

fn json(ran: &crate::bench::Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}\n{}\n{}", ran.stdout, ran.stderr))
}

/// Rows of a table of the workspace.
fn rows(b: &Bench, sql: &str) -> Vec<Value> {
    let ran = b.voxmill(&["query", "p.yaml", sql, "--format", "json"]).expect(0);
    serde_json::from_str(&ran.stdout).unwrap()
}

/// Every word that names the patient, as the index tells it, read without the code of `forget`.
fn identifiers(b: &Bench, patient: &str) -> BTreeSet<String> {
    let sql = format!(
        "select s.patient, s.study, s.series, s.frame_of_reference, i.instance, i.path, i.file from series s join instances i on i.series = s.series \
         where s.patient = '{patient}'"
    );
    let found = rows(b, &sql);
    assert!(!found.is_empty());
    found.iter().flat_map(|r| r.as_object().unwrap().values()).filter_map(|v| v.as_str()).map(str::to_string).collect()
}

/// Text of every cell of a Parquet file, and the bytes of any other.
fn contents(path: &Path) -> Vec<u8> {
    if path.extension().is_some_and(|e| e == "parquet") {
        let batch = voxmill_stages::table::read(path).unwrap();
        voxmill_stages::table::show::cells(&[batch], "").unwrap().concat().join("\n").into_bytes()
    } else {
        std::fs::read(path).unwrap()
    }
}

fn holds(bytes: &[u8], word: &str) -> bool {
    bytes.windows(word.len()).any(|w| w == word.as_bytes())
}

#[test]
fn a_patient_leaves_and_the_others_stay() {
    let b = Bench::new(4);
    b.run(&[]).expect(0);
    b.voxmill(&["report", "p.yaml"]).expect(0);
    let case = example_cases()[1].clone();
    let who = case.file_name().unwrap().to_str().unwrap().to_string();
    let words = identifiers(&b, &who);
    assert!(words.contains(&who) && words.len() > 30, "{words:?}");
    let model = rows(&b, "select key from executions where node = 'net'")[0]["key"].as_str().unwrap().to_string();
    let saw = |b: &Bench| -> Vec<(String, String)> {
        let ran = b.voxmill(&["saw", "p.yaml", &model[..8], "--format", "json"]).expect(0);
        let rows: Vec<Value> = serde_json::from_str(&ran.stdout).unwrap();
        let text = |r: &Value, name: &str| r[name].as_str().unwrap().to_string();
        rows.iter().map(|r| (text(r, "patient"), text(r, "part"))).collect()
    };
    let seen = saw(&b);
    assert_eq!(seen.len(), 4);
    let before = b.artifacts();
    // Voxels: chunks of the patient's artifacts that no other artifact has.
    let manifest = |key: &str| b.path("work/store/artifacts").join(&key[..2]).join(key).join("artifact.json");
    let mut chunks: BTreeMap<String, BTreeSet<bool>> = BTreeMap::new();
    for path in before.keys().filter(|p| p.ends_with("artifact.json")) {
        let m: Value = serde_json::from_slice(&std::fs::read(b.path("work/store/artifacts").join(path)).unwrap()).unwrap();
        for (name, hash) in m["files"].as_object().unwrap().iter().filter(|(name, _)| !name.ends_with(".json")) {
            assert!(!name.is_empty());
            chunks.entry(hash.as_str().unwrap().into()).or_default().insert(m["case"] == who.as_str());
        }
    }
    let pixels: BTreeSet<String> = chunks.into_iter().filter(|(_, of)| *of == BTreeSet::from([true])).map(|(hash, _)| hash).collect();
    assert!(pixels.len() >= 6, "image, labels, both resampled, normalised or predicted, exported: {}", pixels.len());

    // A plan first: nothing happens.
    let planned = json(&b.voxmill(&["forget", "p.yaml", "--patient", &who, "--json"]).expect(0));
    assert_eq!((planned["done"].as_bool(), b.artifacts() == before), (Some(false), true));
    assert!(planned["plan"]["files_in_archive"].as_u64().unwrap() > 30);
    b.voxmill(&["forget", "p.yaml", "--patient", "nobody-here"]).expect(2).says("no patient nobody-here");

    let done = json(&b.voxmill(&["forget", "p.yaml", "--patient", &who, "--yes", "--json"]).expect(0));
    assert_eq!((done["done"].as_bool(), done["left"].as_array().map(Vec::len)), (Some(true), Some(0)), "{done}");
    assert_eq!(done["plan"]["models_marked"][0]["key"], model.as_str());

    // Nothing of the patient is left in workspace or NVMe shelf.
    for path in files(&b.path("work")).into_iter().chain(files(&b.path("nvme"))) {
        let (name, bytes) = (path.to_string_lossy().into_owned(), contents(&path));
        for word in &words {
            assert!(!name.contains(word.as_str()) && !holds(&bytes, word), "{word} in {name}");
        }
        assert!(!pixels.contains(&blake3::hash(&std::fs::read(&path).unwrap()).to_hex().to_string()), "voxels in {name}");
    }
    assert!(files(&b.path("nvme")).iter().all(|f| f.ends_with("usage")));

    // Everybody else's artifacts are the same files as before, and the model's weights, too.
    let after = b.artifacts();
    let sets = ["index", "evaluate"];
    for (path, hash) in &before {
        let key = path.split('/').nth(1).unwrap();
        let Ok(text) = std::fs::read(manifest(key)) else { continue };
        let m: Value = serde_json::from_slice(&text).unwrap();
        assert!(m["case"] != who.as_str() && !sets.contains(&m["recipe"]["stage"].as_str().unwrap()));
        let is_rewritten = match m["recipe"]["stage"].as_str().unwrap() {
            "train" => ["artifact.json", "patches.parquet", "validation.parquet"].iter().any(|f| path.ends_with(f)),
            "split" => true,
            _ => false,
        };
        if !is_rewritten {
            assert_eq!(after.get(path), Some(hash), "{path}");
        }
    }
    let marked: Value = serde_json::from_slice(&std::fs::read(manifest(&model)).unwrap()).unwrap();
    assert_eq!(marked["facts"]["forgotten"][0], done["receipt"]);
    // Of the others it is still known which part they played.
    let mut others: Vec<_> = seen.iter().filter(|(patient, _)| *patient != who).cloned().collect();
    others.push((String::new(), "forgotten".into()));
    others.sort_by_key(|(patient, part)| (part.clone(), patient.clone()));
    assert_eq!(saw(&b), others);
    b.voxmill(&["cache", "verify", "p.yaml"]).expect(0).says("as it was written");
    let lost = rows(&b, "select step from patches where \"case\" like 'forgotten-%' order by step");
    assert_eq!(lost.is_empty(), !seen.contains(&(who.clone(), "train".into())));
    if let Some(step) = lost.first().map(|r| r["step"].to_string()) {
        b.voxmill(&["replay", "p.yaml", &model[..8], &step]).expect(2).says("was forgotten");
        assert!(!b.path("replayed").exists(), "half a batch is none");
    }
    let links = std::fs::metadata(b.path("work/out/net/weights.safetensors")).unwrap().nlink();
    assert!(links >= 2, "the model is still published");

    // The receipt is closed by its own hash.
    let path = b.path("work/forgotten").join(format!("{}.json", done["receipt"].as_str().unwrap()));
    let mut receipt: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let sealed = receipt.as_object_mut().unwrap().remove("blake3").unwrap();
    assert_eq!(sealed, blake3::hash(receipt.to_string().as_bytes()).to_hex().as_str());

    // Without the patient's files the next run makes the sets and what hangs on the model; the other cases' volumes are there.
    std::fs::remove_dir_all(b.archive().join(&who)).unwrap();
    let counts = b.run(&[]).expect(0).counts();
    for node in ["image", "masks", "iso", "ready"] {
        assert_eq!((counts[node].0, counts[node].1), (0, 3), "{node}: {counts:?}");
    }
    assert_eq!((counts["series"].0, counts["folds"].0, counts["net"].0), (1, 1, 1), "{counts:?}");
    b.voxmill(&["forget", "p.yaml", "--patient", &who, "--yes"]).expect(2).says("no patient");

    // The patient is back: split and model, which lost its names, are made again and say so.
    b.add_case(1);
    let counts = b.run(&[]).expect(0).counts();
    assert_eq!((counts["folds"].0, counts["net"].0, counts["ready"].0), (1, 1, 1), "{counts:?}");
    assert_eq!(saw(&b), seen);
}
