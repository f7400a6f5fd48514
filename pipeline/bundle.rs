//! `voxmill bundle`: a trained model as a folder for other programs, with what was done to its cases before it and what a lower precision costs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use voxmill_schemas::artifact::{CaseId, Key, Kind, Manifest};
use voxmill_stages::error::Error;
use voxmill_stages::fit::bundle::{self, Bundle, Order};
use voxmill_stages::fit::parts::{self, Part};
use voxmill_stages::model::onnx::Precision;
use voxmill_stages::sample::cut::Source;
use voxmill_stages::table;
use voxmill_stages::volume::StoredVolume;

use crate::cli::{BundleArgs, print};
use crate::plan::{Plan, PlanNode};
use crate::questions::opened;
use crate::replay::model_called;
use crate::session::{Fault, Session};

/// Shown by `voxmill bundle --help`.
pub const HELP: &str = r#"OUT becomes a folder with
  model.onnx    the network (opset 18); batch and sizes are open, input `image` [n, channel, z, y, x], output `logits`
  bundle.json   channels, classes, window, spacing, the steps before the network, what was measured
  predict.py    labels of a preprocessed image with onnxruntime: python OUT/predict.py IMAGE.nii.gz LABELS.nii.gz

fp16 and int8 are compared with float32 on the cases that the training validated with; int8 takes its ranges from the first eight of them.

Exit codes: 0 done, 1 the model's cases are no longer on the shelf, 2 no such model, or OUT is there already."#;

pub fn main(plan: &Plan, a: &BundleArgs, cancel: &AtomicBool) -> Result<(), Fault> {
    if a.out.exists() {
        return Err(Fault::Wrong(format!("{} is there already: give the name of a folder that is not", a.out.display())));
    }
    let session = opened(plan)?;
    let model = model_called(&session, plan, &a.model)?;
    session.store.hold(&model.key)?;
    let cases = validation(&session, &model)?;
    let node = prediction(plan, &a.model);
    let order = Order {
        model: &session.store.disk.dir(&model.key),
        precision: serde_json::from_value(json!(a.precision)).expect("clap lets these three through"),
        window: node.and_then(|n| serde_json::from_value(n.stage.config().get("window")?.clone()).ok()),
        preprocessing: preprocessing(&session, &model)?,
        cases: &cases,
    };
    let beside = a.out.with_file_name(format!(".{}.partial", a.out.file_name().unwrap_or_default().display()));
    if beside.exists() {
        std::fs::remove_dir_all(&beside).map_err(Error::io("remove what an earlier try left in", &beside))?;
    }
    std::fs::create_dir_all(&beside).map_err(Error::io("make folder", &beside))?;
    let made =
        bundle::write(&order, &session.store, &beside, &mut || if cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) })
            .and_then(|made| {
                std::fs::rename(&beside, &a.out).map_err(Error::io("name", &a.out))?;
                Ok(made)
            });
    if made.is_err() {
        std::fs::remove_dir_all(&beside).ok();
    }
    print(&told(&made?, &a.out));
    if let Some(node) = node
        && let left = left_out(node)
        && !left.is_empty()
    {
        eprintln!("warning: node {} also uses {}: the bundle answers without", node.name, left.join(" and "));
    }
    Ok(())
}

/// The cases of the training that validated it, as it read them.
fn validation(s: &Session, model: &Manifest) -> Result<Vec<Source>, Fault> {
    let fold = model.recipe.config.get("fold").and_then(Value::as_u64).unwrap_or(0) as u32;
    let mut roles = BTreeMap::new();
    for key in model.input_keys.get("split").into_iter().flatten() {
        roles.extend(parts::of(&table::open(&s.store.disk.dir(key))?, fold)?);
    }
    let mut out = Vec::new();
    for key in model.input_keys.get("cases").into_iter().flatten() {
        let Some(m) = s.store.disk.manifest(key)? else { continue };
        let Some(CaseId(case)) = m.case else { continue };
        if roles.get(&case) == Some(&Part::Val) {
            s.store.hold(key)?;
            out.push(Source { case: CaseId(case), volume: StoredVolume::open(&s.store.disk.dir(key), *key)? });
        }
    }
    Ok(out)
}

/// The first node of the file that predicts with this model.
fn prediction<'a>(plan: &'a Plan, model: &str) -> Option<&'a PlanNode> {
    let reads = |n: &PlanNode| n.ups().any(|(port, up)| port == "model" && plan.nodes[up].name == model);
    plan.nodes.iter().find(|n| n.def.info.name == "infer" && reads(n))
}

/// What a node that predicts does beyond one model and its windows, which a bundle does not.
fn left_out(node: &PlanNode) -> Vec<&'static str> {
    let config = node.stage.config();
    let is_set = |key: &str| config.get(key).is_some_and(|v| !(v.is_null() || *v == json!([]) || *v == json!({}) || *v == json!(false)));
    let models = node.ups().filter(|(port, _)| *port == "model").count();
    ["mirror", "clean"].into_iter().filter(|key| is_set(key)).chain((models > 1).then_some("the other models")).collect()
}

/// What was done to a case of the training, first step first: from lineage, not from the file, which may have changed since.
fn preprocessing(s: &Session, model: &Manifest) -> Result<Value, Fault> {
    let (mut steps, mut seen) = (Vec::new(), BTreeSet::new());
    let first = model.input_keys.get("cases").and_then(|keys| keys.first());
    // A key a second time: what went into it has been told by then.
    let mut todo: Vec<(Key, bool)> = first.map(|key| (*key, false)).into_iter().collect();
    while let Some((key, is_next)) = todo.pop() {
        let Some(m) = s.store.disk.manifest(&key)?.filter(|m| m.kind == Kind::Volume) else { continue };
        if is_next {
            steps.push(json!({ "uses": m.recipe.stage, "version": m.recipe.version, "with": m.recipe.config }));
        } else if seen.insert(key) {
            todo.push((key, true));
            todo.extend(m.input_keys.values().flatten().map(|key| (*key, false)));
        }
    }
    Ok(Value::Array(steps))
}

fn told(b: &Bundle, out: &Path) -> String {
    let mut lines = Vec::new();
    if b.precision != Precision::Fp32 && b.measured.is_empty() {
        lines.push("no validation case: what the precision costs was not measured".to_string());
    } else if !b.measured.is_empty() {
        let width = b.measured.iter().map(|m| m.class.chars().count()).max().unwrap_or(0).max(5);
        lines.push("mean Dice over the validation cases that have the class".to_string());
        lines.push(format!("{:width$}  {:>5}  {:>7}  {:>7}  {:>10}", "class", "cases", "fp32", b.precision.name(), "difference"));
        lines.extend(b.measured.iter().map(|m| match (m.dice_fp32, m.dice) {
            (Some(full), Some(less)) => format!("{:width$}  {:5}  {full:7.4}  {less:7.4}  {:+10.4}", m.class, m.cases, less - full),
            _ => format!("{:width$}  in none of these cases", m.class),
        }));
    }
    lines.push(out.display().to_string());
    lines.join("\n")
}
