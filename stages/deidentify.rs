//! `deidentify`: the DICOM files of an index without what names a patient (PS3.15), in folders of pseudonyms, with a table of what was done to each.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use voxmill_schemas::artifact::{Kind, Port, Scope};
use voxmill_schemas::tables::{DeidentifiedRow, InstanceRow};

use crate::dicom::deid::archive;
use crate::dicom::deid::{BurnedIn, Dates, Private, Profile, Rules};
use crate::dicom::keys;
use crate::error::Error;
use crate::stage::{Cx, Facts, Finding, Info, Inputs, Quarantined, Stage};
use crate::table;

/// Writes DICOM by the Basic Application Confidentiality Profile of PS3.15 with the options that are switched on here. Pixels, transfer syntax and geometry
/// stay; private elements and what no dictionary knows go. Pseudonyms are those of the index.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Deidentify {
    /// Name of an environment variable that holds the secret key of pseudonyms, UIDs and days. Default: the key of the index.
    #[serde(default)]
    pub key_env: Option<String>,
    /// The same from a file that only you can read (mode 0600), instead of `key_env`.
    #[serde(default)]
    pub key_file: Option<String>,
    /// Keep UIDs as they are, instead of replacing them by keyed ones.
    #[serde(default)]
    pub retain_uids: bool,
    /// Dates and times of studies, series and images: `remove`, `shift` (dates move by a number of days that the key gives each patient, times and all that
    /// lies between stay, so decay and ages of follow-ups can be computed) or `full`. Dates of birth always go.
    #[serde(default)]
    pub retain_dates: Dates,
    /// Keep what names the scanner: serial number, station, device ids.
    #[serde(default)]
    pub retain_device: bool,
    /// Keep what names the hospital.
    #[serde(default)]
    pub retain_institution: bool,
    /// Keep sex, age (90 and above as 90), size, weight and the like; SUV needs the weight.
    #[serde(default)]
    pub retain_characteristics: bool,
    /// Patterns (`*` any text, `?` one character, capitals or not) of descriptions, names of ROIs and other free text that stay where the whole text fits;
    /// without any, all of them go.
    #[serde(default)]
    pub keep_descriptors: Vec<String>,
    /// Private elements that are known to be safe, such as `{ creator: "SIEMENS MR HEADER", element: "0019,xx0C" }`; all others go.
    #[serde(default)]
    pub private: Vec<Private>,
    /// Images whose pixels may carry a name (secondary captures, ultrasound, photographs, screens): `refuse` leaves them out, `flag` writes them and says so
    /// in the table, `keep` writes them like any other.
    #[serde(default)]
    pub burned_in: BurnedIn,
}

impl Stage for Deidentify {
    const INFO: Info = Info {
        name: "deidentify",
        version: 3,
        scope: Scope::Set,
        ports: &[Port { name: "series", kind: Kind::Table, required: true, about: "the index that knows the files" }],
        gives: Kind::Files,
        summary: "write the DICOM files of an index without what names a patient",
        example: "uses: deidentify\nfrom: series\nwith: { retain_dates: shift, retain_characteristics: true }\n",
        absent_in_inference: None,
    };

    fn check(&self) -> Vec<Finding> {
        self.profile().mistakes().into_iter().map(|(field, message, help)| Finding::error(&field, message, help)).collect()
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let series = inputs.one("series");
        let index = &series.manifest.recipe.config;
        let of_index = |key: &str| index.get(key).and_then(Value::as_str).map(str::to_string);
        let is_own = self.key_env.is_some() || self.key_file.is_some();
        let (env, file) = if is_own { (self.key_env.clone(), self.key_file.clone()) } else { (of_index("key_env"), of_index("key_file")) };
        let names = keys::names(env.as_deref(), file.as_deref())?;
        // Pseudonyms of the index with the same key are taken as they are, so that a file has one name in both tables; others (none, or of another key) are not.
        let is_hidden = !is_own && index.get("deidentify").and_then(Value::as_str) == Some("basic");
        let rows = series.rows.clone().unwrap_or_default();
        let instances = table::rows_of::<InstanceRow>(&rows)?;
        let items = archive::items(instances, |file| if is_hidden { file.to_string() } else { names.file(file) });
        let rules = Rules::new(self.profile(), names);
        let made = archive::run(&items, cx.draft, &rules, &|bytes| {
            cx.bytes(bytes);
            cx.check_cancelled()
        })?;
        table::write_rows(cx.draft, &made)?;
        Ok(facts(&made, is_own || env.is_some() || file.is_some()))
    }
}

impl Deidentify {
    fn profile(&self) -> Profile {
        Profile {
            retain_uids: self.retain_uids,
            retain_dates: self.retain_dates,
            retain_device: self.retain_device,
            retain_institution: self.retain_institution,
            retain_characteristics: self.retain_characteristics,
            keep_descriptors: self.keep_descriptors.clone(),
            private: self.private.clone(),
            burned_in: self.burned_in,
        }
    }
}

fn facts(rows: &[DeidentifiedRow], has_key: bool) -> Facts {
    let counts = archive::Counts::of(rows);
    let mut report = counts.report();
    if !has_key {
        report.push("pseudonyms are made without a secret: who knows an id can find its pseudonym (set key_env or key_file)".into());
    }
    let is_out = |r: &&DeidentifiedRow| matches!(r.verdict.as_str(), "refused" | "failed");
    let left_out = rows.iter().filter(is_out).map(|r| Quarantined { what: r.file.clone(), why: r.why.clone() });
    let files: BTreeMap<&str, u64> = counts.verdicts.iter().map(|(v, n)| (v.as_str(), *n)).collect();
    Facts { quarantined: left_out.collect(), ..Facts::default() }
        .with("seen", counts.seen)
        .with("files", files)
        .with("skipped_classes", &counts.skipped)
        .with("elements", &counts.elements)
        .with("risks", counts.risks)
        .with("may_show_face", counts.may_show_face)
        .with("report", report)
}
