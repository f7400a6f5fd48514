//! Which cases train and which validate, opened and checked to fit together.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use voxmill_schemas::tables::SplitRow;

use crate::error::Error;
use crate::sample::cut::Source;
use crate::stage::{Input, Rows};
use crate::table;
use crate::volume::{StoredVolume, check_regular};

/// The part a case plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Train,
    Val,
    Test,
}

/// Case → part in `fold`, which the split must have.
pub fn of(split: &Rows, fold: u32) -> Result<BTreeMap<String, Part>, Error> {
    let rows: Vec<SplitRow> = table::rows_of(split)?;
    let parts = SplitRow::parts(&rows, fold as i64);
    if parts.is_empty() {
        let n_folds = rows.iter().map(|r| r.fold + 1).max().unwrap_or(0);
        let (found, expected) = (format!("fold {fold}"), format!("a fold of the split, which has {n_folds} (counted from 0)"));
        return Err(Error::Input { what: "`fold`".into(), found, expected });
    }
    let named = |(case, part): (String, String)| match part.as_str() {
        "train" => Ok((case, Part::Train)),
        "val" => Ok((case, Part::Val)),
        "test" => Ok((case, Part::Test)),
        _ => {
            let expected = "train, val or test".into();
            Err(Error::Input { what: format!("the part of case {case} in the split"), found: part, expected })
        }
    };
    parts.into_iter().map(named).collect()
}

/// The cases of a training.
pub struct Parts {
    pub train: Vec<Source>,
    pub val: Vec<Source>,
    pub channels: Vec<String>,
    /// Sorted by id, which run from 1 without a gap.
    pub classes: IndexMap<String, u8>,
    /// The id of voxels that count nowhere: the one after the classes.
    pub ignore: Option<u8>,
}

/// Opens the cases of both parts. All must have labels, the same channels and the same classes. `ignore` names the class that is none: voxels that nobody
/// has annotated.
pub fn open(cases: &[Input], split: &Rows, fold: u32, ignore: Option<&str>) -> Result<Parts, Error> {
    let roles = of(split, fold)?;
    let mut parts = Parts { train: Vec::new(), val: Vec::new(), channels: Vec::new(), classes: IndexMap::new(), ignore: None };
    for input in cases {
        let case = input.manifest.case.clone().expect("a volume belongs to a case");
        let part = roles.get(&case.0).copied().ok_or_else(|| Error::Input {
            what: format!("the part of case {case}"),
            found: "no row in the split".into(),
            expected: "a split made from the same cases".into(),
        })?;
        if part == Part::Test {
            continue;
        }
        let volume = StoredVolume::open(&input.dir, input.manifest.key)?;
        check_regular(&volume.geometry, &volume.about)?;
        if volume.classes.is_empty() {
            return Err(Error::Labels {
                what: case.0,
                why: "has no labels to learn from: put `annotate` above, or leave the case out with `where`".into(),
            });
        }
        let mut classes = volume.classes.clone();
        classes.sort_by(|_, a, _, b| a.cmp(b));
        if parts.channels.is_empty() {
            (parts.channels, parts.classes) = (volume.channels.clone(), classes);
        } else if volume.channels != parts.channels {
            let (found, expected) = (volume.channels.join(", "), format!("{} as in the other cases", parts.channels.join(", ")));
            return Err(Error::Input { what: format!("the channels of case {case}"), found, expected });
        } else if classes != parts.classes {
            let (found, expected) = (named(&classes), format!("{} as in the other cases", named(&parts.classes)));
            return Err(Error::Input { what: format!("the classes of case {case}"), found, expected });
        }
        let source = Source { case, volume };
        if part == Part::Train { parts.train.push(source) } else { parts.val.push(source) }
    }
    if parts.train.is_empty() {
        let found = format!("none of {} cases", cases.len());
        return Err(Error::Input { what: "cases to train on".into(), found, expected: "at least one whose part is train".into() });
    }
    if let Some(name) = ignore {
        parts.ignore = parts.classes.shift_remove(name);
        let (found, expected) = (named(&parts.classes), format!("a class {name}, which `ignore` names"));
        parts.ignore.ok_or(Error::Input { what: "the classes".into(), found, expected })?;
        if parts.classes.is_empty() || parts.ignore.is_some_and(|id| id as usize != parts.classes.len() + 1) {
            let found = format!("{name} = {} beside {}", parts.ignore.unwrap_or(0), named(&parts.classes));
            let expected = "the ignored class after all others: give it the highest id".into();
            return Err(Error::Input { what: "the classes".into(), found, expected });
        }
    }
    if parts.classes.values().enumerate().any(|(i, id)| *id as usize != i + 1) {
        let expected = "ids that run from 1 without a gap (an unused id would be an output that never learns)".into();
        return Err(Error::Input { what: "the classes".into(), found: named(&parts.classes), expected });
    }
    Ok(parts)
}

fn named(classes: &IndexMap<String, u8>) -> String {
    classes.iter().map(|(name, id)| format!("{name} = {id}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::tables::Row;

    use super::*;

    fn rows(list: &[(&str, i64, &str)]) -> Rows {
        let row = |(case, fold, part): &(&str, i64, &str)| SplitRow {
            case: (*case).into(),
            patient: (*case).into(),
            fold: *fold,
            part: (*part).into(),
        };
        let all: Vec<SplitRow> = list.iter().map(row).collect();
        Rows([(SplitRow::TABLE.to_string(), SplitRow::to_batch(&all))].into())
    }

    #[test]
    fn a_fold_gives_each_case_its_part() {
        let split = rows(&[("a", 0, "train"), ("b", 0, "val"), ("c", 0, "test"), ("a", 1, "val"), ("b", 1, "train"), ("c", 1, "test")]);
        let at = |fold| of(&split, fold).unwrap().into_values().collect::<Vec<_>>();
        assert_eq!(at(0), [Part::Train, Part::Val, Part::Test]);
        assert_eq!(at(1), [Part::Val, Part::Train, Part::Test]);
        let why = of(&split, 2).unwrap_err().to_string();
        assert!(why.contains("fold 2") && why.contains("has 2"), "{why}");
    }

    #[test]
    fn an_unknown_part_is_refused_by_name() {
        let e = of(&rows(&[("a", 0, "holdout")]), 0).unwrap_err().to_string();
        assert!(e.contains("holdout") && e.contains("case a"), "{e}");
    }
}
