//! Stages that do nothing, with every shape of settings that the language knows. The language is held by these, so that its texts do not move whenever a
//! shipped stage gets another field.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::{Kind, Port, Scope};
use voxmill_stages::error::Error;
use voxmill_stages::stage::{Cx, Facts, Finding, Info, Inputs, Stage, StageDef};

pub const STAGES: &[StageDef] =
    &[StageDef::of::<Fit>(), StageDef::of::<Label>(), StageDef::of::<Look>(), StageDef::of::<Respace>(), StageDef::of::<Write>()];

const fn port(name: &'static str, kind: Kind, required: bool, about: &'static str) -> Port {
    Port { name, kind, required, about }
}

const fn info(name: &'static str, ports: &'static [Port], gives: Kind, summary: &'static str, example: &'static str) -> Info {
    Info { name, version: 1, scope: Scope::Case, ports, gives, summary, example, absent_in_inference: None }
}

/// A source.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Look {
    /// Folder to look at. Links are followed.
    archive: String,
    /// How names are treated
    #[serde(default)]
    deidentify: Deidentify,
}

/// What happens to names.
#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
enum Deidentify {
    /// They are replaced by pseudonyms
    #[default]
    Basic,
    /// They stay
    None,
}

impl Stage for Look {
    const INFO: Info = info("look", &[], Kind::Table, "list what an archive holds", "uses: look\nwith: { archive: data }");
    fn run(&self, _: &Inputs, _: &Cx) -> Result<Facts, Error> {
        Ok(Facts::default())
    }
}

/// Two ports.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// Class name → value in the label map
    classes: BTreeMap<String, u8>,
    /// SQL condition on the rows
    #[serde(default)]
    r#where: Option<String>,
}

impl Stage for Label {
    const INFO: Info = info(
        "label",
        &[
            port("series", Kind::Table, true, "the table that names the labels"),
            port("image", Kind::Volume, false, "where the labels go; without it an empty volume"),
        ],
        Kind::Volume,
        "add labels to a volume",
        "uses: label\nfrom: { image: ct, series: series }\nwith: { classes: { Femur: 1 } }",
    );
    fn run(&self, _: &Inputs, _: &Cx) -> Result<Facts, Error> {
        Ok(Facts::default())
    }
}

/// Shapes of values.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Respace {
    /// Millimetres between voxel centres, one number for all axes or one for each
    spacing_mm: Spacing,
    /// How voxels are mixed
    #[serde(default)]
    interpolation: Interpolation,
    /// Whether the edge is repeated
    #[serde(default)]
    repeat_edge: bool,
    /// Lowest and highest value
    #[serde(default)]
    range: Option<[f64; 2]>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Spacing {
    Same(f64),
    Each(Zyx),
}

/// A number for each axis.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Zyx {
    z: f64,
    y: f64,
    x: f64,
}

#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
enum Interpolation {
    #[default]
    Linear,
    Nearest,
}

impl Stage for Respace {
    const INFO: Info = info(
        "respace",
        &[port("cases", Kind::Volume, true, "what to resample")],
        Kind::Volume,
        "change the distance between voxels",
        "uses: respace\nfrom: ct\nwith: { spacing_mm: 1 }",
    );
    fn run(&self, _: &Inputs, _: &Cx) -> Result<Facts, Error> {
        Ok(Facts::default())
    }
    fn check(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        let all = match &self.spacing_mm {
            Spacing::Same(s) => vec![("spacing_mm", *s)],
            Spacing::Each(e) => vec![("spacing_mm.z", e.z), ("spacing_mm.y", e.y), ("spacing_mm.x", e.x)],
        };
        for (field, mm) in all {
            if mm <= 0.0 {
                out.push(Finding::error(field, format!("a spacing of {mm} mm cannot be"), "write millimetres, more than 0"));
            } else if mm > 20.0 {
                out.push(Finding::warning(field, format!("{mm} mm is coarser than any scanner"), "is this in millimetres?"));
            }
        }
        if let Some([low, high]) = self.range
            && low >= high
        {
            out.push(Finding::error("range", format!("the range {low} to {high} is empty"), "write the lower value first"));
        }
        out
    }
}

/// Choices between shapes.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fit {
    /// Patches in a step
    #[schemars(range(min = 1, max = 64))]
    batch: u32,
    /// The network
    network: Network,
    /// What is done to patches, in this order
    #[serde(default)]
    augment: Vec<Augment>,
    /// How the learning rate falls
    #[serde(default)]
    schedule: Schedule,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Network {
    /// A U-Net of MONAI's shape
    Dynunet(Dynunet),
    /// A line of convolutions
    Plain(Plain),
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Dynunet {
    /// Channels of each level
    filters: Vec<u32>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Plain {
    /// How many convolutions
    depth: u32,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Augment {
    /// Mirror
    Flip {
        /// Axes to mirror
        axes: Vec<Axis>,
        /// How often, 0 to 1
        probability: f64,
    },
    /// Add noise
    Noise {
        /// Standard deviation
        std: f64,
    },
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Axis {
    Z,
    Y,
    X,
}

#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Schedule {
    #[default]
    Constant,
    /// Down to nothing
    Poly {
        /// Exponent
        power: f64,
    },
}

impl Stage for Fit {
    const INFO: Info = info(
        "fit",
        &[port("cases", Kind::Volume, true, "volumes with labels"), port("split", Kind::Table, true, "which cases are for training")],
        Kind::Model,
        "train a network",
        "uses: fit\nfrom: { cases: iso, split: folds }\nwith: { batch: 2, network: { kind: plain, depth: 3 } }",
    );
    fn run(&self, _: &Inputs, _: &Cx) -> Result<Facts, Error> {
        Ok(Facts::default())
    }
}

/// No settings.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Write {}

impl Stage for Write {
    const INFO: Info = info(
        "write",
        &[port("cases", Kind::Volume, true, "what to write")],
        Kind::Files,
        "write files for other programs",
        "uses: write\nfrom: ct",
    );
    fn run(&self, _: &Inputs, _: &Cx) -> Result<Facts, Error> {
        Ok(Facts::default())
    }
}
