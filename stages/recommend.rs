//! Recommends how to preprocess and train, from a fingerprint and a memory, by the rules of nnU-Net v2 (`ops/topology.rs`): a table, and YAML to include.

use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::{Kind, Port, Scope};
use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::tables::{FingerprintCaseRow, FingerprintChannelRow, FingerprintClassRow, RecommendRow};

use crate::error::Error;
use crate::ops::topology::{self, Planned, Wanted, percentile};
use crate::stage::{Cx, Facts, Finding, Info, Inputs, Stage};
use crate::table;

/// Recommends target spacing, patch, batch, depth and kernels as nnU-Net v2 plans its `3d_fullres`. Beside the table lie `resample.yaml`, `normalize.yaml` and
/// `train.yaml`: each is taken over by `with: { include: FILE }` of a node, where keys of its own win.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recommend {
    /// Memory of the device that trains, GB. nnU-Net's own plans are for 8.
    #[serde(default = "memory_gb")]
    pub memory_gb: f64,
    /// Spacing in millimetres to plan for in place of the recommended one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spacing_mm: Option<Zyx<f64>>,
}

fn memory_gb() -> f64 {
    8.0
}

impl Stage for Recommend {
    const INFO: Info = Info {
        name: "recommend",
        version: 1,
        scope: Scope::Set,
        ports: &[Port { name: "fingerprint", kind: Kind::Model, required: true, about: "what `fingerprint` measured" }],
        gives: Kind::Table,
        summary: "recommend spacing, patch, batch and network depth for a memory, as nnU-Net plans them",
        example: "uses: recommend\nfrom: { fingerprint: measured }\nwith: { memory_gb: 8 }\n",
        absent_in_inference: None,
    };

    fn check(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        if !(0.5..=1024.0).contains(&self.memory_gb) {
            out.push(Finding::error("memory_gb", format!("{} GB", self.memory_gb), "from 0.5 to 1024: the unit is GB"));
        }
        if self.spacing_mm.is_some_and(|s| !s.to_array().iter().all(|s| (0.001..=1000.0).contains(s))) {
            out.push(Finding::error("spacing_mm", "a spacing out of range", "millimetres from 0.001 to 1000"));
        }
        out
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let rows = table::open(&inputs.one("fingerprint").dir)?;
        let cases: Vec<FingerprintCaseRow> = table::rows_of(&rows)?;
        let channels: Vec<FingerprintChannelRow> = table::rows_of(&rows)?;
        let classes: Vec<FingerprintClassRow> = table::rows_of(&rows)?;
        let row = self.recommend(&cases, &channels, classes.len() + 1)?;
        let file = |name: &str, text: String| {
            let path = cx.draft.join(name);
            std::fs::write(&path, text).map_err(Error::io("write", &path))
        };
        table::write_rows(cx.draft, std::slice::from_ref(&row))?;
        let head = format!("# For {} cases and {} GB.\n", cases.len(), self.memory_gb);
        file("resample.yaml", format!("{head}{}", resample_yaml(&row)))?;
        file("normalize.yaml", format!("{head}{}", normalize_yaml(&row)))?;
        file("train.yaml", format!("{head}{}", train_yaml(&row)))?;
        Ok(Facts::default()
            .with("spacing_mm", &row.spacing_mm)
            .with("patch", &row.patch)
            .with("batch", row.batch)
            .with("filters", &row.filters))
    }
}

impl Recommend {
    fn recommend(&self, cases: &[FingerprintCaseRow], channels: &[FingerprintChannelRow], classes: usize) -> Result<RecommendRow, Error> {
        let spacings: Vec<Zyx<f64>> = cases.iter().map(|c| Zyx::new(c.spacing_z_mm, c.spacing_y_mm, c.spacing_x_mm)).collect();
        let sizes: Vec<Zyx<f64>> = cases.iter().map(|c| Zyx::new(c.crop_z, c.crop_y, c.crop_x).map(|n| n as f64)).collect();
        if cases.is_empty() {
            return Err(Error::Input { what: "fingerprint".into(), found: "no case".into(), expected: "at least one".into() });
        }
        let spacing_mm = self.spacing_mm.unwrap_or_else(|| topology::target_spacing(&spacings, &sizes));
        let there: Vec<[f64; 3]> = spacings
            .iter()
            .zip(&sizes)
            .map(|(s, n)| s.zip(spacing_mm).zip(*n).map(|((old, new), n)| (old / new * n).round_ties_even()).to_array())
            .collect();
        let median_size = Zyx::from_array([0, 1, 2].map(|a| percentile(&there.iter().map(|n| n[a]).collect::<Vec<_>>(), 50.0)));
        let Planned { topology: t, features, batch, feature_values } =
            topology::plan(&Wanted { spacing_mm, median_size, classes, cases: cases.len(), memory_gb: self.memory_gb });
        let is_ct = !channels.is_empty() && cases.iter().all(|c| c.modality == "CT");
        let whole = |v: &[Zyx<usize>]| v.iter().flat_map(|z| z.to_array()).map(|n| n as i64).collect::<Vec<_>>();
        Ok(RecommendRow {
            spacing_mm: spacing_mm.to_array().to_vec(),
            median_size: median_size.to_array().to_vec(),
            patch: whole(&[t.patch]),
            batch: batch as i64,
            pooled: t.divisor().to_array().iter().map(|d| d.ilog2() as i64).collect(),
            filters: features.iter().map(|f| *f as i64).collect(),
            strides: whole(&t.strides),
            kernel_size: whole(&t.kernels),
            normalize: if is_ct {
                "ct"
            } else if percentile(&shares(cases), 50.0) < 0.75 {
                "zscore, nonzero"
            } else {
                "zscore"
            }
            .into(),
            feature_values,
            memory_gb: self.memory_gb,
        })
    }
}

fn shares(cases: &[FingerprintCaseRow]) -> Vec<f64> {
    cases.iter().map(|c| c.cropped_share).collect()
}

fn resample_yaml(r: &RecommendRow) -> String {
    let s = &r.spacing_mm;
    format!("spacing_mm: {{ z: {}, y: {}, x: {} }}\ninterpolation: cubic\nlabels: linear\n", s[0], s[1], s[2])
}

fn normalize_yaml(r: &RecommendRow) -> String {
    match r.normalize.as_str() {
        "ct" => "# Connect the port `fingerprint`.\nmethod: ct\n".into(),
        "zscore" => "method: zscore\n".into(),
        _ => "# Most of the images is 0.\nmethod: zscore\nnonzero: true\n".into(),
    }
}

fn train_yaml(r: &RecommendRow) -> String {
    let triples = |v: &[i64]| v.chunks_exact(3).map(|t| format!("[{}, {}, {}]", t[0], t[1], t[2])).collect::<Vec<_>>().join(", ");
    let p = &r.patch;
    let mut out = format!("patch: {{ z: {}, y: {}, x: {} }}\nbatch: {}\n", p[0], p[1], p[2], r.batch);
    let filters = r.filters.iter().map(|f| f.to_string()).collect::<Vec<_>>().join(", ");
    let _ = write!(
        out,
        "network:\n  kind: dynunet\n  filters: [{filters}]\n  kernel_size: [{}]\n  strides: [{}]\n  deep_supervision: {}\n",
        triples(&r.kernel_size),
        triples(&r.strides),
        r.filters.len().saturating_sub(3).min(3),
    );
    if r.filters.len() < 3 {
        out.push_str("# Too small for a DynUNet, which wants three levels: plan for a finer spacing.\n");
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn case(size: [i64; 3], spacing: f64, modality: &str) -> FingerprintCaseRow {
        FingerprintCaseRow {
            modality: modality.into(),
            crop_z: size[0],
            crop_y: size[1],
            crop_x: size[2],
            spacing_z_mm: spacing,
            spacing_y_mm: spacing,
            spacing_x_mm: spacing,
            cropped_share: 1.0,
            ..Default::default()
        }
    }

    #[test]
    fn hippocampus_is_planned_as_nnunet_does() {
        let r: Recommend = serde_json::from_value(serde_json::json!({})).unwrap();
        let cases = vec![case([36, 50, 35], 1.0, "MR"); 260];
        let row = r.recommend(&cases, &[], 3).unwrap();
        assert_eq!((row.patch.as_slice(), row.batch, row.pooled.as_slice()), (&[40, 56, 40][..], 9, &[3, 3, 3][..]));
        assert_eq!(row.normalize, "zscore");
        let yaml = train_yaml(&row);
        assert!(
            yaml.starts_with("patch: { z: 40, y: 56, x: 40 }\nbatch: 9\nnetwork:\n  kind: dynunet\n  filters: [32, 64, 128, 256]\n"),
            "{yaml}"
        );
        assert!(yaml.contains("strides: [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]"));
    }

    #[test]
    fn sizes_are_taken_at_the_target_spacing() {
        let r: Recommend = serde_json::from_value(serde_json::json!({ "spacing_mm": { "z": 2, "y": 1, "x": 1 } })).unwrap();
        let channel = FingerprintChannelRow::default();
        let row = r.recommend(&[case([100, 100, 100], 1.0, "CT"), case([99, 80, 100], 1.0, "CT")], &[channel], 2).unwrap();
        assert_eq!((row.median_size, row.normalize.as_str()), (vec![50.0, 90.0, 100.0], "ct"));
        assert!(resample_yaml(&RecommendRow { spacing_mm: vec![2.0, 1.0, 1.0], ..Default::default() }).contains("z: 2, y: 1"));
    }
}
