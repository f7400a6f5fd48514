//! What pictures show: which image stands behind which labels, and by which window it becomes grey. The report and `voxmill view` ask here.

use serde_json::Value;
use voxmill_schemas::artifact::{Kind, Manifest};

use crate::plan::Plan;

/// Nodes of the plan whose volumes are shown together, case by case.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The image with the true labels on it.
    pub image: usize,
    /// Nodes whose labels are judged on it; several give different cases.
    pub predictions: Vec<usize>,
}

/// The volume that predictions are judged against, else the last one with an image; predictions from what is judged.
/// - `has_image`: whether the volumes of a node, which gives some, have channels
pub fn pair(plan: &Plan, has_image: impl Fn(usize) -> bool) -> Option<Pair> {
    let judged = plan.nodes.iter().find_map(|n| Some((*n.from.get("truth")?.first()?, n.from.get("prediction")?)));
    let has_image = |i: &usize| plan.nodes[*i].def.info.gives == Kind::Volume && has_image(*i);
    let image = judged.as_ref().map(|(truth, _)| *truth).filter(has_image).or_else(|| (0..plan.nodes.len()).rev().find(has_image))?;
    Some(Pair { image, predictions: judged.map(|(_, p)| p.clone()).unwrap_or_default() })
}

pub fn is_image(m: &Manifest) -> bool {
    m.facts.get("channels").and_then(Value::as_array).is_some_and(|c| !c.is_empty())
}

pub fn unit(m: &Manifest) -> &str {
    m.facts.get("unit").and_then(Value::as_str).unwrap_or_default()
}

/// Unit of volumes that were brought to a scale of their own: not one scale, so no window of another node holds for them.
const OWN_SCALE: &str = "normalised";

/// The window that the pipeline itself looks through at values in a unit: of the first node that windows such values, or of the node that made them.
/// `None`: the picture's own values tell.
/// - `node`: the one whose volumes are shown
/// - `unit_of`: unit of the volumes of a node
pub fn window(plan: &Plan, node: Option<usize>, unit: &str, unit_of: impl Fn(usize) -> Option<String>) -> Option<(f64, f64)> {
    if let Some([_, to]) = node.and_then(|i| plan.nodes[i].stage.window()) {
        return Some(to);
    }
    if unit.is_empty() || unit == OWN_SCALE {
        return None;
    }
    plan.nodes.iter().find_map(|n| {
        let [from, _] = n.stage.window()?;
        n.ups().any(|(_, up)| unit_of(up).as_deref() == Some(unit)).then_some(from)
    })
}
