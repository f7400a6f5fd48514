//! The labels in hand: one class a voxel, and who claimed a voxel twice.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Which class a voxel with two claims gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Overlap {
    /// Refuse the case and say where.
    #[default]
    Error,
    /// The class with the lower id.
    First,
    /// The class with the higher id.
    Last,
    /// The class that stands first in this list of all classes: `{ priority: [Tumour, Liver] }`.
    Priority(Vec<String>),
}

/// The labels in hand.
pub struct Canvas {
    /// `[z, y, x]`
    pub labels: Vec<u8>,
    /// Id → its rank where two claim a voxel; the lower one wins.
    rank: [u8; 256],
    is_strict: bool,
    /// Pair of ids (lower first) → voxels that both claim.
    clashes: BTreeMap<(u8, u8), usize>,
}

impl Canvas {
    /// `n`: voxels.
    pub fn new(n: usize, overlap: &Overlap, classes: &BTreeMap<String, u8>) -> Canvas {
        let mut rank = std::array::from_fn(|id| id as u8);
        match overlap {
            Overlap::Error | Overlap::First => {}
            Overlap::Last => rank.reverse(),
            Overlap::Priority(names) => {
                for (place, id) in names.iter().enumerate().filter_map(|(i, name)| Some((i, classes.get(name)?))) {
                    rank[*id as usize] = place.min(255) as u8;
                }
            }
        }
        Canvas { labels: vec![0; n], rank, is_strict: *overlap == Overlap::Error, clashes: BTreeMap::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.labels.iter().all(|v| *v == 0)
    }

    pub fn put(&mut self, id: u8, voxel: usize) {
        let was = self.labels[voxel];
        if was == 0 || was == id {
            self.labels[voxel] = id;
            return;
        }
        *self.clashes.entry((was.min(id), was.max(id))).or_default() += 1;
        if self.rank[id as usize] < self.rank[was as usize] {
            self.labels[voxel] = id;
        }
    }

    /// Refuses shared voxels where the overlap says so.
    pub fn judge(&self, classes: &BTreeMap<String, u8>) -> Result<(), Error> {
        match self.clashes.iter().next() {
            Some(((a, b), n)) if self.is_strict => {
                let (a, b) = (name(*a, classes), name(*b, classes));
                let why = format!("{a} and {b} share {n} voxels: `overlap: first`, `overlap: last` or a priority says which one gets them");
                Err(Error::Labels { what: "labels".into(), why })
            }
            _ => Ok(()),
        }
    }

    /// Voxels that two classes claim, by `A and B`.
    pub fn shared(&self, classes: &BTreeMap<String, u8>) -> BTreeMap<String, usize> {
        self.clashes.iter().map(|((a, b), n)| (format!("{} and {}", name(*a, classes), name(*b, classes)), *n)).collect()
    }
}

fn name(id: u8, classes: &BTreeMap<String, u8>) -> &str {
    classes.iter().find(|(_, i)| **i == id).map_or("?", |(n, _)| n.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_voxel_with_two_claims_goes_where_the_overlap_says() {
        let classes = BTreeMap::from([("A".to_string(), 1), ("B".to_string(), 2), ("C".to_string(), 3)]);
        let drawn = |overlap: Overlap| {
            let mut c = Canvas::new(3, &overlap, &classes);
            [(1, 0), (2, 0), (3, 0), (3, 1), (2, 1), (1, 2), (1, 2)].into_iter().for_each(|(id, voxel)| c.put(id, voxel));
            let told = c.judge(&classes).map_err(|e| e.to_string());
            assert_eq!(c.shared(&classes).values().sum::<usize>(), 3);
            (c.labels, told)
        };
        assert_eq!(drawn(Overlap::First).0, [1, 2, 1]);
        assert_eq!(drawn(Overlap::Last), (vec![3, 3, 1], Ok(())));
        assert_eq!(drawn(Overlap::Priority(vec!["B".into(), "C".into(), "A".into()])).0, [2, 2, 1]);
        assert!(drawn(Overlap::Error).1.is_err_and(|e| e.starts_with("labels: A and B share 1 voxels: `overlap: first`")));
    }
}
