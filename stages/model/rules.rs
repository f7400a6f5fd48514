//! What `check` says about a network and its patch before anything is trained: what cannot work, and the rules of practice that are hinted at.

use voxmill_schemas::geometry::Zyx;

use super::Network;
use crate::stage::Finding;

/// More downsamplings than this are doubted.
const DOWNSAMPLINGS: usize = 4;
/// Voxels that the coarsest level should have along an axis that was made coarser.
const BOTTLENECK: usize = 4;

/// Everything wrong or doubtful about `network` for patches of `patch` voxels and `classes` classes, background included.
pub fn findings(network: &Network, patch: Zyx<usize>, classes: usize) -> Vec<Finding> {
    let mut out = network.structure_findings(classes);
    if classes < 2 {
        let message = format!("{classes} class(es) with the background");
        out.push(Finding::error("network", message, "name at least one class in the labels"));
    }
    if !out.is_empty() {
        return out;
    }
    out.extend(patch_error(network, patch));
    if !out.is_empty() {
        return out;
    }
    let (divisor, margin) = (network.divisor(), network.margin());
    let bottom = patch.zip(margin).map(|(n, m)| n - 2 * m).zip(divisor).map(|(n, d)| n / d);
    let short = bottom.zip(divisor).map(|(n, d)| d > 1 && n < BOTTLENECK);
    if bottom == Zyx::splat(1) && divisor != Zyx::splat(1) {
        out.push(Finding::error(
            "patch",
            format!("a patch of {patch} voxels is a single voxel at the bottleneck, where a norm has nothing to average"),
            "take a larger patch or fewer levels",
        ));
        return out;
    }
    if short.z || short.y || short.x {
        out.push(Finding::warning(
            "patch",
            format!("the bottleneck sees only {bottom} voxels"),
            "take a larger patch, or stride 1 on the short axis at one level",
        ));
    }
    let downsamplings = network.downsamplings();
    if downsamplings > DOWNSAMPLINGS {
        out.push(Finding::warning(
            "network",
            format!("{downsamplings} downsamplings: small structures leave no trace at the coarsest levels"),
            format!("{DOWNSAMPLINGS} are enough unless the patch is very large"),
        ));
    }
    out.extend(network.doubts());
    out
}

/// A patch that the strides do not divide, or that is all margin.
fn patch_error(network: &Network, patch: Zyx<usize>) -> Option<Finding> {
    let (divisor, margin) = (network.divisor(), network.margin());
    let fits = |n: usize, m: usize, d: usize| n > 2 * m && (n - 2 * m).is_multiple_of(d);
    let at = |a: usize| (patch.to_array()[a], margin.to_array()[a], divisor.to_array()[a]);
    if (0..3).all(|a| fits(at(a).0, at(a).1, at(a).2)) {
        return None;
    }
    let fitted = [0, 1, 2].map(at).map(|(n, m, d)| n.saturating_sub(2 * m).div_ceil(d).max(1) * d + 2 * m);
    let context = if margin == Zyx::splat(0) { String::new() } else { format!(", beside {} slices that are only context", 2 * margin.z) };
    Some(Finding::error(
        "patch",
        format!("a patch of {patch} voxels is no multiple of the product of the strides, {divisor}{context}"),
        format!("use z: {}, y: {}, x: {}", fitted[0], fitted[1], fitted[2]),
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The reference recipe.
    fn recipe() -> Value {
        json!({ "kind": "dynunet", "filters": [32, 64, 128, 256], "kernel_size": [3, 3, 3, 3], "strides": [1, 2, 2, 2], "deep_supervision": true,
                "norm": "instance" })
    }

    fn with(key: &str, value: Value) -> Network {
        let mut v = recipe();
        v[key] = value;
        serde_json::from_value(v).unwrap()
    }

    fn errors(n: &Network, patch: Zyx<usize>) -> Vec<String> {
        n.findings(patch, 3).into_iter().filter(|f| !f.is_warning).map(|f| f.field).collect()
    }

    #[test]
    fn traps_are_found_before_training() {
        let clinic = Zyx::new(32, 256, 256);
        let recipe = with("res_block", json!(false));
        let found = recipe.findings(clinic, 3);
        assert!(found.iter().all(|f| f.is_warning) && found[0].field == "network.norm");
        assert_eq!(errors(&recipe, Zyx::new(32, 250, 256)), ["patch"]);
        assert!(recipe.findings(Zyx::new(32, 250, 256), 3)[0].help.contains("z: 32, y: 256, x: 256"));
        assert!(recipe.findings(Zyx::new(16, 256, 256), 3).iter().any(|f| f.is_warning && f.message.contains("2×32×32")));
        assert_eq!(errors(&recipe, Zyx::splat(8)), ["patch"]);
        assert_eq!(errors(&with("deep_supervision", json!(3)), clinic), ["network.deep_supervision"]);
        assert_eq!(errors(&with("filters", json!([8, 16])), clinic), ["network.filters"]);
        assert_eq!(errors(&with("kernel_size", json!([3, 3, 3, 2])), clinic), ["network.kernel_size"]);
        assert_eq!(errors(&with("upsample_kernel_size", json!([2, 2, 1])), clinic), ["network.upsample_kernel_size"]);
        assert_eq!(errors(&with("dropout", json!(1.0)), clinic), ["network.dropout"]);
        assert_eq!(errors(&with("squeeze_excitation", json!({ "reduction": 64 })), clinic), ["network.squeeze_excitation.reduction"]);
        assert!(recipe.findings(clinic, 1).iter().any(|f| !f.is_warning));
    }

    #[test]
    fn five_downsamplings_are_doubted() {
        let deep = |levels: usize| {
            let mut strides = vec![json!(2); levels];
            strides[0] = json!(1);
            json!({ "kind": "dynunet", "kernel_size": vec![3; levels], "strides": strides })
        };
        let found = |levels| serde_json::from_value::<Network>(deep(levels)).unwrap().findings(Zyx::splat(128), 2);
        assert!(found(5).is_empty());
        assert!(found(6).iter().any(|f| f.is_warning && f.message.starts_with("5 downsamplings")));
    }
}
