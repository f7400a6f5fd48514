//! Which labels of which files become which class: by name, by code, by value.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Found;
use crate::error::Error;

/// Which of several files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Choose {
    /// Refuse the case and name the files.
    #[default]
    Error,
    /// The file with the latest content date and time.
    Newest,
    /// All of them together.
    Merge,
}

/// What a case without one of the classes is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// Refuse the case and list the names there are.
    #[default]
    Error,
    /// The class has no voxel in this case. A case without any of the classes is still refused.
    Background,
}

/// The classes, and what labels may be called to belong to them.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Class → id.
    pub classes: &'a BTreeMap<String, u8>,
    /// Class → other names and codes.
    pub aliases: &'a BTreeMap<String, Vec<String>>,
    /// Class → value in NIfTI files; the id where none is given.
    pub values: &'a BTreeMap<String, u8>,
}

/// What errors of the labels of a case begin with; the case itself is named by whoever tells them.
pub const LABELS: &str = "labels";

impl Wanted<'_> {
    /// The value that a class has in NIfTI files.
    pub fn value(&self, class: &str) -> Option<u32> {
        self.classes.get(class).map(|id| u32::from(self.values.get(class).copied().unwrap_or(*id)))
    }

    /// Whether a class or an alias is called so, capitals and outer spaces apart.
    pub fn names(&self, name: &str) -> bool {
        let plain = |n: &str| n.trim().to_lowercase();
        self.classes.keys().chain(self.aliases.values().flatten()).any(|n| plain(n) == plain(name))
    }

    /// Indices of the labels of a file that belong to a class: exact names, else codes, else names that differ in case or outer spaces only.
    /// A code is that of the segment's type (`SCT:71341001`); several joined by `+` must all be among its category, type, modifiers (such as a side) and region.
    pub fn matches(&self, file: &Found, class: &str) -> Vec<usize> {
        if let Found::Nifti { values, .. } = file {
            return self.value(class).filter(|v| values.contains(v)).map(|_| 0).into_iter().collect();
        }
        let labels = file.labels();
        let pick = |is: &dyn Fn(usize) -> bool| -> Vec<usize> { (0..labels.len()).filter(|i| is(*i)).collect() };
        let mut out = BTreeSet::new();
        for name in std::iter::once(class).chain(self.aliases.get(class).into_iter().flatten().map(String::as_str)) {
            let mut hits = pick(&|i| labels[i].name == name);
            if hits.is_empty() {
                hits = pick(&|i| labels[i].code.as_deref() == Some(name));
            }
            if hits.is_empty() && name.contains('+') {
                hits = pick(&|i| name.split('+').all(|part| labels[i].codes.contains(part.trim())));
            }
            if hits.is_empty() {
                hits = pick(&|i| labels[i].name.trim().to_lowercase() == name.trim().to_lowercase());
            }
            out.extend(hits);
        }
        out.into_iter().collect()
    }

    /// Whether these files together have every class.
    pub fn has_all<'a>(&self, files: impl Iterator<Item = &'a Found>) -> bool {
        let files: Vec<&Found> = files.collect();
        self.classes.keys().all(|class| files.iter().any(|f| !self.matches(f, class).is_empty()))
    }

    /// Classes that none of these files has.
    pub fn missing(&self, files: &[&Found]) -> Vec<String> {
        self.classes.keys().filter(|class| files.iter().all(|f| self.matches(f, class).is_empty())).cloned().collect()
    }

    /// The files to draw: the best kind that has every class, or else the best that has any.
    pub fn choose<'a>(&self, found: &'a [Found], choose: Choose, missing: Missing) -> Result<Vec<&'a Found>, Error> {
        let refuse = |why: String| Err(Error::Labels { what: LABELS.into(), why });
        let has_any = |f: &&Found| self.classes.keys().any(|c| !self.matches(f, c).is_empty());
        let usable: Vec<&Found> = found.iter().filter(has_any).collect();
        let names =
            || found.iter().flat_map(Found::labels).map(|l| l.name).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ");
        let wanted = || self.classes.keys().cloned().collect::<Vec<_>>().join(", ");
        let best = |rank: u8| usable.iter().copied().filter(|f| f.rank() == rank).collect::<Vec<_>>();
        let ranks: BTreeSet<u8> = usable.iter().map(|f| f.rank()).collect();
        let Some(first) = ranks.first() else {
            if names().is_empty() {
                let files = found.iter().map(Found::file).collect::<Vec<_>>().join(", ");
                return refuse(format!("no label is called {}: there is none in {files}", wanted()));
            }
            return refuse(format!("no label is called {}: there are {}", wanted(), names()));
        };
        let mut group = best(*ranks.iter().find(|rank| self.has_all(best(**rank).into_iter())).unwrap_or(first));
        if group.len() > 1 && choose == Choose::Newest {
            let newest = group.iter().map(|f| f.made()).max().unwrap_or("").to_string();
            group.retain(|f| f.made() == newest);
        }
        if group.len() > 1 && choose != Choose::Merge {
            let files = group.iter().map(|f| f.file()).collect::<Vec<_>>().join(", ");
            let kind = group[0].kind();
            return refuse(format!(
                "{} {kind} files label this image ({files}): set choose to newest or merge, or source to another kind",
                group.len()
            ));
        }
        let lacking = self.missing(&group);
        if !lacking.is_empty() && missing == Missing::Error {
            let why = format!(
                "no label is called {}: there are {} (set missing: background if a case may lack a class)",
                lacking.join(", "),
                names()
            );
            return refuse(why);
        }
        Ok(group)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::nifti::Image;

    #[test]
    fn a_nifti_without_a_value_lacks_its_class() {
        use voxmill_schemas::geometry::{Geometry, Zyx};

        let classes = BTreeMap::from([("A".to_string(), 1), ("B".to_string(), 2)]);
        let values = BTreeMap::from([("B".to_string(), 7)]);
        let wanted = Wanted { classes: &classes, aliases: &BTreeMap::new(), values: &values };
        let geometry = Geometry::axis_aligned(Zyx::splat(1), Zyx::splat(1.0));
        let image = Image { geometry, channels: 1, voxels: crate::volume::Voxels::U8(vec![7]), is_placed: true, is_colour: false };
        let found = Found::Nifti { file: "f".into(), image: Box::new(image), layers: vec![vec![7]], values: BTreeSet::from([7]) };
        assert_eq!((wanted.matches(&found, "A"), wanted.matches(&found, "B")), (vec![], vec![0]));
        let e = wanted.choose(&[found], Choose::Error, Missing::Error).err().unwrap().to_string();
        assert!(e.starts_with("labels: no label is called A: there are value 7"), "{e}");
    }
}
