//! `--set KEY=VALUE`: a variable (`EPOCHS=3`), a value of the head (`seed=3`, `cache.ram.limit=1GiB`) or any value under a node's `with`
//! (`net.network.filters=[8,16]`; a number picks from a list: `net.augment.0.noise.std=0.1`). Values are YAML.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::tree::{Data, Entry, Node, Place, Scalar, Source};
use super::{Mistake, did_you_mean, option_source, variables, yaml};

/// Keys of the head that need no dot.
const HEAD: &[&str] = &["name", "seed", "workspace"];

#[derive(Debug)]
pub struct Set {
    pub key: String,
    source: Arc<Source>,
}

impl Set {
    pub fn value(&self) -> &str {
        &self.source.text[self.key.len() + 1..]
    }
    fn is_variable(&self) -> bool {
        !self.key.contains('.') && !HEAD.contains(&self.key.as_str())
    }
    fn place(&self, start: usize, end: usize) -> Place {
        Place { source: self.source.clone(), start, end }
    }
}

pub fn parse(sets: &[String], mistakes: &mut Vec<Mistake>) -> Vec<Set> {
    let mut out = Vec::new();
    for text in sets {
        let source = option_source("--set", text);
        match text.split_once('=') {
            Some((key, _)) if !key.is_empty() => out.push(Set { key: key.into(), source }),
            _ => {
                let place = Place { source, start: 0, end: text.len() };
                mistakes.push(Mistake::at(
                    &place,
                    "--set takes KEY=VALUE",
                    "write --set NAME=value for a variable, --set NODE.key=value for a value under a node's `with`",
                ));
            }
        }
    }
    out
}

pub fn refuse_unknown_variables(sets: &[Set], names: &BTreeSet<String>, mistakes: &mut Vec<Mistake>) {
    for set in sets.iter().filter(|s| s.is_variable() && !names.contains(&s.key)) {
        let place = set.place(0, set.key.len());
        mistakes.push(Mistake::at(&place, format!("the file has no variable {}", set.key), variables::suggestion(&set.key, names)));
    }
}

/// Puts the values of the `--set`s that are no variables into the tree.
pub fn apply(sets: &[Set], root: &mut Node, names: &BTreeSet<String>, mistakes: &mut Vec<Mistake>) {
    // A file may call a variable `seed`: then that is what is meant.
    for set in sets.iter().filter(|s| !s.is_variable() && !names.contains(&s.key)) {
        if let Err(mistake) = put(set, root, mistakes) {
            mistakes.push(*mistake);
        }
    }
}

fn put(set: &Set, root: &mut Node, mistakes: &mut Vec<Mistake>) -> Result<(), Box<Mistake>> {
    let parts: Vec<&str> = set.key.split('.').collect();
    let before = mistakes.len();
    let start = set.key.len() + 1;
    let value = yaml::parse(&set.source, start..set.source.text.len(), mistakes);
    if mistakes.len() > before {
        let last = mistakes.last_mut().expect("one was added");
        last.help = "the value of --set is YAML: put quotes around a text with special characters".into();
        return Ok(());
    }
    let value = value.unwrap_or(Node { data: Data::Scalar(Scalar::default()), place: set.place(start, start) });
    let is_node = root.get("stages").is_some_and(|s| s.value.get(parts[0]).is_some());
    let path: Vec<&str> = if parts.len() == 1 || (parts[0] == "cache" && !is_node) {
        parts
    } else if is_node {
        ["stages", parts[0], "with"].into_iter().chain(parts[1..].iter().copied()).collect()
    } else {
        let nodes: Vec<&str> = root.get("stages").and_then(|s| s.value.map()).into_iter().flatten().map(|e| e.key.as_str()).collect();
        let help = did_you_mean(parts[0], "nodes", nodes.iter().copied().chain(["cache"]));
        return Err(Box::new(Mistake::at(&set.place(0, parts[0].len()), format!("the file has no node {}", parts[0]), help)));
    };
    let mut at = root;
    for (i, key) in path.iter().enumerate() {
        if key.is_empty() {
            return Err(Box::new(Mistake::at(&set.place(0, set.key.len()), "this key has an empty part", "write NODE.key.key=value")));
        }
        // The part in the key as it was typed; `stages` and `with` are not typed.
        let typed = path.len() - i;
        let key_place = part_place(set, typed);
        if at.is_null() {
            at.data = Data::Map(Vec::new());
        }
        let what = at.what();
        at = match &mut at.data {
            Data::Map(entries) => {
                let found = entries.iter().position(|e| e.key == *key);
                let index = found.unwrap_or_else(|| {
                    let empty = Node { data: Data::Map(Vec::new()), place: key_place.clone() };
                    entries.push(Entry { key: key.to_string(), key_place: key_place.clone(), value: empty });
                    entries.len() - 1
                });
                &mut entries[index].value
            }
            Data::List(items) => {
                let n = items.len();
                let item = key.parse::<usize>().ok().filter(|k| *k < n);
                let help = format!("the list has {n} items, counted from 0; set it whole with [a, b]");
                let item = item.ok_or_else(|| Box::new(Mistake::at(&key_place, format!("there is no item {key} in this list"), help)))?;
                &mut items[item]
            }
            Data::Scalar(_) => {
                let help = "set the whole value instead, such as { key: value }";
                return Err(Box::new(Mistake::at(&key_place, format!("nothing can stand below {what}"), help)));
            }
        };
    }
    *at = value;
    Ok(())
}

/// The place of the part that has `from_end` parts from itself to the end, or of the first.
fn part_place(set: &Set, from_end: usize) -> Place {
    let parts: Vec<&str> = set.key.split('.').collect();
    let index = parts.len().saturating_sub(from_end);
    let start: usize = parts[..index].iter().map(|p| p.len() + 1).sum();
    set.place(start, start + parts[index].len())
}
