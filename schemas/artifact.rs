//! What flows between stages and how it is named: kinds, ports, keys. A key is the blake3 hash of how a thing is made; a content hash is
//! the hash of what it is. Recipes hold content hashes of their inputs, so equal bytes upstream stop a rebuild (early cut-off).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Names an artifact by how it is made. `Display` shows 8 hex digits, [`Key::hex`] all 64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; 32]);

/// Hash of what an artifact holds (never of where or when).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub [u8; 32]);

macro_rules! hash_type {
    ($t:ident) => {
        impl $t {
            pub fn of(bytes: &[u8]) -> Self {
                Self(*blake3::hash(bytes).as_bytes())
            }
            pub fn hex(&self) -> String {
                blake3::Hash::from_bytes(self.0).to_hex().to_string()
            }
            pub fn from_hex(text: &str) -> Option<Self> {
                blake3::Hash::from_hex(text).ok().map(|h| Self(*h.as_bytes()))
            }
        }
        impl std::fmt::Display for $t {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.hex()[..8])
            }
        }
        impl std::fmt::Debug for $t {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({self})", stringify!($t))
            }
        }
        impl Serialize for $t {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.hex())
            }
        }
        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                Self::from_hex(&text).ok_or_else(|| serde::de::Error::custom("expected 64 hex digits"))
            }
        }
    };
}
hash_type!(Key);
hash_type!(ContentHash);

/// One subject of per-case work, in practice one image series. Names no patient unless the pipeline asks for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CaseId(pub String);

impl std::fmt::Display for CaseId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a port carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Rows: a folder of `*.parquet`.
    Table,
    /// Channels `[c, z, y, x]` on one grid, labels `[z, y, x]` optional: an OME-Zarr group.
    Volume,
    /// What was learnt from training cases (weights and all that is needed to use them, a fingerprint): inference takes it from the last run.
    Model,
    /// Files for people and other programs (DICOM SEG, NIfTI): published under `out/NODE` of the workspace.
    Files,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Table => "table",
            Kind::Volume => "volume",
            Kind::Model => "model",
            Kind::Files => "files",
        })
    }
}

/// How often a stage runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Once for each case.
    Case,
    /// Once, over all cases.
    Set,
}

/// An input of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Port {
    pub name: &'static str,
    pub kind: Kind,
    pub required: bool,
    /// One line for `voxmill stages NAME`.
    pub about: &'static str,
}

/// How an artifact is made: what its key is the hash of. Names of nodes, paths, thread counts and the order of YAML keys are not in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    pub stage: String,
    pub version: u32,
    /// The stage's configuration with defaults filled in, as canonical JSON (object keys sorted).
    pub config: serde_json::Value,
    /// Port → content hashes of what comes in, sorted by case for ports that carry a set.
    pub inputs: BTreeMap<String, Vec<RecipeInput>>,
    pub seed: u64,
}

/// One input of a recipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipeInput {
    /// The case it belongs to, where the port carries a set of cases (a stage over a set names its results by case).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub case: Option<CaseId>,
    pub content: ContentHash,
}

impl Recipe {
    /// `serde_json` sorts object keys (no `preserve_order`), floats print as their shortest round trip: equal recipes give equal bytes.
    pub fn key(&self) -> Key {
        let text = serde_json::to_vec(&canonical(serde_json::to_value(self).expect("a recipe is plain data")));
        Key::of(&text.expect("a value is plain data"))
    }

    /// Which parts differ, in words, for `plan` and `why`: `config.spacing_mm.z 1 → 2`, `input cases: case-12 changed`.
    pub fn differences(&self, older: &Recipe) -> Vec<String> {
        let mut out = Vec::new();
        if self.stage != older.stage {
            out.push(format!("stage {} → {}", older.stage, self.stage));
        }
        if self.version != older.version {
            out.push(format!("version of {} {} → {}", self.stage, older.version, self.version));
        }
        if self.seed != older.seed {
            out.push(format!("seed {} → {}", older.seed, self.seed));
        }
        value_differences("config", &older.config, &self.config, &mut out);
        let ports: std::collections::BTreeSet<_> = self.inputs.keys().chain(older.inputs.keys()).collect();
        for port in ports {
            let side = |r: &Recipe| -> BTreeMap<String, ContentHash> {
                r.inputs
                    .get(port)
                    .into_iter()
                    .flatten()
                    .map(|i| (i.case.as_ref().map(|c| c.0.clone()).unwrap_or_default(), i.content))
                    .collect()
            };
            let (old, new) = (side(older), side(self));
            let name = |case: &str| if case.is_empty() { format!("input {port}") } else { format!("input {port} of {case}") };
            for (case, hash) in &new {
                match old.get(case) {
                    None => out.push(format!("{} added", name(case))),
                    Some(was) if was != hash => out.push(format!("{} changed", name(case))),
                    Some(_) => {}
                }
            }
            out.extend(old.keys().filter(|c| !new.contains_key(*c)).map(|c| format!("{} removed", name(c))));
        }
        out
    }
}

/// The same value with every object's keys sorted, whatever map type the JSON crate was built with.
pub fn canonical(v: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match v {
        Value::Object(m) => {
            let sorted: BTreeMap<String, Value> = m.into_iter().map(|(k, v)| (k, canonical(v))).collect();
            Value::Object(sorted.into_iter().collect())
        }
        Value::Array(a) => Value::Array(a.into_iter().map(canonical).collect()),
        other => other,
    }
}

fn value_differences(path: &str, old: &serde_json::Value, new: &serde_json::Value, out: &mut Vec<String>) {
    use serde_json::Value::Object;
    match (old, new) {
        (a, b) if a == b => {}
        (Object(a), Object(b)) => {
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            let null = serde_json::Value::Null;
            for k in keys {
                value_differences(&format!("{path}.{k}"), a.get(k).unwrap_or(&null), b.get(k).unwrap_or(&null), out);
            }
        }
        (a, b) => out.push(format!("{path} {a} → {b}")),
    }
}

/// What stands beside an artifact's files as `artifact.json`; written last, so a folder without it is not an artifact.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    pub key: Key,
    pub content: ContentHash,
    pub kind: Kind,
    pub case: Option<CaseId>,
    pub recipe: Recipe,
    /// Keys of the artifacts that went in, for walking lineage: port → keys.
    pub input_keys: BTreeMap<String, Vec<Key>>,
    /// What the stage found worth telling: sizes, counts, spacings, warnings.
    pub facts: serde_json::Map<String, serde_json::Value>,
    /// Relative path → blake3 of every file but this one.
    pub files: BTreeMap<String, ContentHash>,
    pub bytes: u64,
    /// Version of this layout.
    pub layout: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(config: serde_json::Value) -> Recipe {
        Recipe { stage: "resample".into(), version: 1, config, inputs: BTreeMap::new(), seed: 7 }
    }

    #[test]
    fn key_ignores_the_order_of_config_keys() {
        let a = recipe(serde_json::json!({"a": 1, "b": {"c": 2.5, "d": null}}));
        let b = recipe(serde_json::json!({"b": {"d": null, "c": 2.5}, "a": 1}));
        assert_eq!(a.key(), b.key());
        assert_ne!(a.key(), recipe(serde_json::json!({"a": 2, "b": {"c": 2.5, "d": null}})).key());
    }

    #[test]
    fn differences_name_the_part_that_changed() {
        let mut new = recipe(serde_json::json!({"spacing_mm": {"z": 2.0}}));
        let mut old = recipe(serde_json::json!({"spacing_mm": {"z": 1.0}}));
        let input = |case: &str, b: &[u8]| RecipeInput { case: Some(CaseId(case.into())), content: ContentHash::of(b) };
        old.inputs.insert("cases".into(), vec![input("a", b"1"), input("b", b"1")]);
        new.inputs.insert("cases".into(), vec![input("a", b"2"), input("c", b"1")]);
        assert_eq!(
            new.differences(&old),
            ["config.spacing_mm.z 1.0 → 2.0", "input cases of a changed", "input cases of c added", "input cases of b removed"]
        );
    }
}
