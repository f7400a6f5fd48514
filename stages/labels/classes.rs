//! Which labels of an archive become classes, and which number each one gets.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::tables::{ClassRow, SeriesRow};

/// Classes by name, or every label there is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Classes {
    /// Class name → id (1 to 255).
    Named(BTreeMap<String, u8>),
    Every(Every),
}

/// No name is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Every {
    /// Every segment and ROI of the archive, under its own name.
    All,
}

impl Classes {
    /// The named classes; none where every label is meant.
    pub fn named(&self) -> &BTreeMap<String, u8> {
        static NONE: BTreeMap<String, u8> = BTreeMap::new();
        match self {
            Classes::Named(classes) => classes,
            Classes::Every(_) => &NONE,
        }
    }
}

/// An id is a byte, and 0 is background.
const MOST: usize = 255;

/// The label names of a whole archive, sorted. Made once for all its images ([`crate::table::prepared`]).
pub struct AllNames(Option<BTreeMap<String, i64>>);

impl AllNames {
    /// - `all`: every series of the index
    pub fn of(all: &[SeriesRow]) -> AllNames {
        let whole: BTreeSet<&str> = all.iter().flat_map(names).collect();
        AllNames((whole.len() <= MOST).then(|| whole.into_iter().map(String::from).zip(1..).collect()))
    }
}

/// The classes of one image: its own label names, numbered by their place among the sorted names of the whole archive, so that a name has one id in all
/// images. Where the archive has more names than there are ids, the image's own names are numbered alone; even those may be too many.
/// - `mine`: the series that label the image
pub fn numbered<'a>(all: &AllNames, mine: impl Iterator<Item = &'a SeriesRow>) -> Vec<ClassRow> {
    let own: BTreeSet<&str> = mine.flat_map(names).collect();
    let row = |name: &str, id, is_of_archive| ClassRow { name: name.to_string(), id, is_of_archive };
    match &all.0 {
        Some(ids) => own.iter().filter_map(|name| Some(row(name, *ids.get(*name)?, true))).collect(),
        None => own.iter().zip(1..).map(|(name, id)| row(name, id, false)).collect(),
    }
}

/// Names of the segments or ROIs of a series without outer spaces; one without a name is no class.
fn names(row: &SeriesRow) -> impl Iterator<Item = &str> {
    let is_drawn = matches!(row.kind.as_str(), "seg" | "rtstruct");
    // A label map describes what is no structure as a segment, too.
    row.labels.iter().map(|l| l.trim()).filter(move |l| is_drawn && !l.is_empty() && !l.eq_ignore_ascii_case("background"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seg(labels: &[&str]) -> SeriesRow {
        SeriesRow { kind: "seg".into(), labels: labels.iter().map(|l| l.to_string()).collect(), ..SeriesRow::default() }
    }

    #[test]
    fn a_name_has_one_id_in_the_whole_archive() {
        let all = [
            seg(&["Tibia", "Femur ", "Background"]),
            seg(&["Patella"]),
            SeriesRow { labels: vec!["Aorta".into()], ..SeriesRow::default() },
        ];
        let ids = |i: usize| {
            let rows = numbered(&AllNames::of(&all), [&all[i]].into_iter());
            rows.into_iter().map(|r| (r.name, r.id)).collect::<Vec<_>>()
        };
        assert_eq!(ids(0), [("Femur".to_string(), 1), ("Tibia".to_string(), 3)]);
        assert_eq!(ids(1), [("Patella".to_string(), 2)]);
    }

    #[test]
    fn an_archive_of_more_names_than_ids_numbers_each_image_alone() {
        let many: Vec<String> = (0..300).map(|i| format!("roi {i:03}")).collect();
        let all = [seg(&many.iter().map(String::as_str).collect::<Vec<_>>()), seg(&["b", "a"])];
        let rows = numbered(&AllNames::of(&all), [&all[1]].into_iter());
        assert_eq!(rows.iter().map(|r| (r.name.as_str(), r.id, r.is_of_archive)).collect::<Vec<_>>(), [("a", 1, false), ("b", 2, false)]);
        assert_eq!(numbered(&AllNames::of(&all), [&all[0]].into_iter()).last().map(|r| r.id), Some(300));
    }
}
