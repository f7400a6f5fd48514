//! Agreement with MONAI and PyTorch. Reads the folder `VOXMILL_GOLDEN` (default: this one): `manifest.json` and one safetensors file a case.
//! Every case of the manifest is either compared or named in `NOT_YET` with the reason; a case nobody knows fails the test.

mod geometry;
mod model;
mod networks;
mod read;

/// Cases that are not compared, by the start of their names, each with its reason.
const NOT_YET: &[(&str, &str)] = &[];

/// A test compares the cases that it asks for: `cases("PREFIX")` or `tensors("NAME")` in the sources of the two modules.
fn asked_for() -> Vec<&'static str> {
    let sources = [include_str!("geometry.rs"), include_str!("model.rs")];
    let calls =
        sources.iter().flat_map(|s| ["cases(\"", "cases_if_any(\"", "tensors(\""].map(|call| s.split(call).skip(1)).into_iter().flatten());
    calls.filter_map(|rest| rest.split('"').next()).filter(|prefix| !prefix.is_empty()).collect()
}

#[test]
fn every_case_is_compared_or_named() {
    let asked = asked_for();
    let unknown: Vec<String> = read::cases("")
        .iter()
        // Networks and their weights are known by what they are, whatever they are called.
        .filter(|c| !c["network"].is_string() && c["kind"] != "state_dict")
        .filter_map(|c| c["case"].as_str().map(str::to_string))
        .filter(|name| !asked.iter().any(|p| name.starts_with(p)) && !NOT_YET.iter().any(|(p, _)| name.starts_with(p)))
        .collect();
    assert!(unknown.is_empty(), "neither compared nor in NOT_YET: {unknown:?}");
}
