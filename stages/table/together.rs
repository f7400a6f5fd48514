//! Volumes that go together: what they must share, and whether places of the one say anything of the other.

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::Manifest;
use voxmill_schemas::geometry::{Geometry, Zyx};
use voxmill_schemas::tables::{Row, SeriesRow};

use super as table;
use crate::error::Error;
use crate::stage::{Input, Inputs, Partners, Rows};
use crate::volume::{About, StoredVolume};

/// What volumes must share to go together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The study.
    #[default]
    Study,
    /// The patient.
    Patient,
    /// The case: one series.
    Case,
}

impl By {
    /// How the engine finds them.
    pub fn partners(self) -> Partners {
        match self {
            By::Study => Partners::Fact("study"),
            By::Patient => Partners::Fact("patient"),
            By::Case => Partners::Case,
        }
    }

    /// The rows of the series among which a case has its partners.
    pub fn series_of(self, table: &Rows, of: &Manifest) -> Result<Rows, Error> {
        let Some(batch) = table.0.get(SeriesRow::TABLE) else { return Ok(table.clone()) };
        let frames = table::prepared(table, Frames::of)?;
        let fact = |name: &str| of.facts.get(name).and_then(|v| v.as_str()).unwrap_or_default().to_string();
        let rows = match self {
            By::Patient => frames.by_patient.get(&fact("patient")),
            By::Study | By::Case => frames.by_study.get(&fact("study")),
        };
        let mine = table::taken(batch, rows.map_or(&[][..], Vec::as_slice));
        Ok(Rows([(SeriesRow::TABLE.to_string(), mine)].into()))
    }

    /// The one volume of a port that belongs to the case.
    pub fn only<'a>(self, port: &str, found: &'a [Input]) -> Result<&'a Input, Error> {
        let what = match self {
            By::Study => "study",
            By::Patient => "patient",
            By::Case => "case",
        };
        match found {
            [one] => Ok(one),
            _ => Err(Error::Input {
                what: format!("port {port}"),
                found: format!("{} volumes of this {what}", found.len()),
                expected: "exactly one: narrow it down with `where` in the `assemble` that it comes from".into(),
            }),
        }
    }
}

impl By {
    /// The volume at a port that goes with that of the case; `None` where the port is not connected. Refused where its places say nothing of those of the case.
    /// - `lead`: the port and the volume of the case
    /// - `any_frame`: whatever the frame of reference, which the index at the port `series` knows
    pub fn partner(self, port: &str, lead: (&str, &StoredVolume), inputs: &Inputs, any_frame: bool) -> Result<Option<StoredVolume>, Error> {
        if !inputs.0.contains_key(port) {
            return Ok(None);
        }
        let input = self.only(port, inputs.all(port))?;
        let (lead_port, v) = lead;
        let other = StoredVolume::open(&input.dir, input.manifest.key)?;
        other.outline().check_regular()?;
        if self == By::Case {
            return Ok(Some(other));
        }
        for (port, about) in [(lead_port, &v.about), (port, &other.about)] {
            if let Some(why) = &about.unknown_geometry {
                let found = format!("a volume of unknown place ({why})");
                return Err(Error::Input { what: format!("port {port}"), found, expected: "one whose files tell where it lies".into() });
            }
        }
        if !any_frame {
            let series: Vec<SeriesRow> = table::rows_of(&inputs.one("series").rows.clone().unwrap_or_default())?;
            check_frames(&series, (lead_port, &v.about), (port, &other.about))?;
        }
        check_meeting((lead_port, &v.geometry), (port, &other.geometry))?;
        Ok(Some(other))
    }
}

/// What the index knows of the frames of reference, by study and by patient.
struct Frames {
    by_study: HashMap<String, Vec<u32>>,
    by_patient: HashMap<String, Vec<u32>>,
}

impl Frames {
    fn of(table: &Rows) -> Result<Self, Error> {
        let mut out = Frames { by_study: HashMap::new(), by_patient: HashMap::new() };
        for (i, row) in table::rows_of::<SeriesRow>(table)?.into_iter().enumerate() {
            out.by_study.entry(row.study).or_default().push(i as u32);
            out.by_patient.entry(row.patient).or_default().push(i as u32);
        }
        Ok(out)
    }
}

/// Refuses two volumes whose files name different frames of reference, or of which only one names one (PS3.3 C.7.4.1: places of different frames say nothing
/// of one another). Where neither does (NIfTI) their places are all there is.
/// - each with the port where it comes in
pub fn check_frames(series: &[SeriesRow], (a, lead): (&str, &About), (b, other): (&str, &About)) -> Result<(), Error> {
    let frame = |v: &About| {
        let of_series = || series.iter().filter(|r| r.series == v.series);
        let row = of_series().find(|r| r.volume == v.volume).or(of_series().next());
        row.and_then(|r| r.frame_of_reference.clone()).filter(|f| !f.is_empty())
    };
    if lead.series == other.series || frame(lead) == frame(other) {
        return Ok(());
    }
    Err(Error::Geometry {
        what: format!("the volumes at ports {a} and {b}"),
        why: "they lie in different frames of reference, so their places say nothing of one another: register them first, and then say `any_frame: true`"
            .into(),
    })
}

/// Refuses two grids that share no place: each with the port where it comes in.
pub fn check_meeting((a, lead): (&str, &Geometry), (b, other): (&str, &Geometry)) -> Result<(), Error> {
    // Both ways: the corners of neither may lie in the other and they still meet, but not if all corners of one lie beyond one face of the other.
    if !misses(other, lead) && !misses(lead, other) {
        return Ok(());
    }
    let why = format!("it does not meet the volume at port {a} anywhere: they show other places");
    Err(Error::Geometry { what: format!("the volume at port {b}"), why })
}

/// Whether a grid lies wholly beyond one face of another.
fn misses(a: &Geometry, b: &Geometry) -> bool {
    let corners: Vec<[f64; 3]> = (0..8)
        .map(|k: usize| {
            let at = a.size.zip(Zyx::new(k >> 2 & 1, k >> 1 & 1, k & 1)).map(|(n, end)| end as f64 * n as f64 - 0.5);
            b.to_index(a.to_lps(at)).to_array()
        })
        .collect();
    let size = b.size.to_array();
    (0..3).any(|axis| corners.iter().all(|c| c[axis] < -0.5 + 1e-6) || corners.iter().all(|c| c[axis] > size[axis] as f64 - 0.5 - 1e-6))
}
