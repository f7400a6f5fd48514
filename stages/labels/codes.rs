//! What a class is, in the terms of a terminology, as a configuration says it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dicom::seg::Code;

/// What a class is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClassCodes {
    /// SegmentedPropertyCategory, such as anatomical structure (the default).
    #[serde(default = "anatomical_structure")]
    pub category: CodeSpec,
    /// SegmentedPropertyType, such as `{ value: "71341001", scheme: SCT, meaning: Femur }`.
    #[serde(rename = "type")]
    pub kind: CodeSpec,
}

/// A coded term (PS3.3 8): value, scheme and what it means in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CodeSpec {
    /// Code in the scheme, at most 16 characters.
    pub value: String,
    /// `SCT` for SNOMED CT, `DCM`, `FMA`, or `99…` for a private scheme.
    pub scheme: String,
    /// The term in words.
    pub meaning: String,
}

impl Default for ClassCodes {
    fn default() -> Self {
        let tissue = CodeSpec { value: "85756007".into(), scheme: "SCT".into(), meaning: "Tissue".into() };
        ClassCodes { category: anatomical_structure(), kind: tissue }
    }
}

fn anatomical_structure() -> CodeSpec {
    CodeSpec { value: "91723000".into(), scheme: "SCT".into(), meaning: "Anatomical Structure".into() }
}

impl From<CodeSpec> for Code {
    fn from(c: CodeSpec) -> Code {
        Code { value: c.value, scheme: c.scheme, meaning: c.meaning }
    }
}

impl CodeSpec {
    /// What keeps it from standing in a file: the message and what to do.
    pub fn fault(&self) -> Option<(&'static str, &'static str)> {
        if self.value.is_empty() || self.value.len() > 16 || self.scheme.is_empty() || self.scheme.len() > 16 {
            return Some(("value and scheme have 1 to 16 characters", "look the code up, such as SCT 71341001 Femur"));
        }
        if self.meaning.is_empty() || self.meaning.chars().count() > 64 {
            return Some(("meaning has 1 to 64 characters", "name the term in words"));
        }
        None
    }
}
