//! Tree → [`PipelineSpec`]: the head, and of each node `uses`, `from` and `with`.

use serde_json::Value;

use super::size::{SIZE_HELP, parse_size};
use super::tree::{Data, Entry, Node, Place, Placed};
use super::{CacheSpec, FromSpec, Mistake, NodeSpec, NvmeSpec, PipelineSpec, RamLimit, did_you_mean, nearest};

pub const TOP_KEYS: &[&str] = &["name", "seed", "workspace", "cache", "stages", "include"];
pub const NODE_KEYS: &[&str] = &["uses", "from", "with", "keep", "include"];

/// One entry of `from: { PORT: NODE }`; `{ PORT: [NODE, NODE] }` has two of the same port.
#[derive(Clone, Debug)]
pub struct ByPort {
    pub port: Placed<String>,
    pub node: Placed<String>,
}

/// `is_whole`: every include was found; where one was not, what is missing may stand there.
pub fn pipeline(root: &Node, is_whole: bool, mistakes: &mut Vec<Mistake>) -> Option<PipelineSpec> {
    let entries = mapping(root, &first_line(&root.place), "a pipeline", "it begins with `name:` and `stages:`", mistakes)?;
    unknown_keys(entries, TOP_KEYS, "of a pipeline", mistakes);
    let start = Place { end: root.place.start, ..root.place.clone() };
    let name = match root.get("name") {
        Some(e) => text(&e.value, &e.key_place, "the name of the pipeline", mistakes).filter(|n| good_name(n, "pipeline", mistakes)),
        None => {
            if is_whole {
                mistakes.push(Mistake::at(&start, "the pipeline has no name", "add a line such as: name: hippocampus"));
            }
            None
        }
    };
    let name = name.unwrap_or(Placed { value: "unnamed".into(), place: start.clone() });
    let seed = root.get("seed").and_then(|e| whole_number(e, "seed", mistakes)).unwrap_or(0);
    let workspace = root.get("workspace").and_then(|e| text(&e.value, &e.key_place, "the workspace", mistakes));
    let cache = root.get("cache").map(|e| cache(e, mistakes)).unwrap_or_default();
    let mut stages = Vec::new();
    match root.get("stages") {
        None if !is_whole => {}
        None => mistakes.push(Mistake::at(
            &start,
            "the pipeline has no stages",
            "add `stages:` with a node on each line: series: { uses: index, with: … }",
        )),
        Some(e) if e.value.is_null() || e.value.map().is_some_and(<[_]>::is_empty) => {
            mistakes.push(Mistake::at(&e.key_place, "no stage stands here", "add a node on each line: series: { uses: index, with: … }"));
        }
        Some(e) => {
            let help = "each node is a line of its own: series: { uses: index, with: … }";
            for e in mapping(&e.value, &e.key_place, "`stages`", help, mistakes).unwrap_or_default() {
                stages.push(node(e, mistakes));
            }
        }
    }
    let workspace = workspace.map_or_else(|| format!("work/{}", name.value), |w| w.value);
    Some(PipelineSpec { name, seed, workspace, cache, stages })
}

/// A node stands in the spec even when it is wrong: others may name it.
fn node(e: &Entry, mistakes: &mut Vec<Mistake>) -> NodeSpec {
    let name = Placed { value: e.key.clone(), place: e.key_place.clone() };
    good_name(&name, "node", mistakes);
    let help = "write uses: STAGE, and where it is needed from: NODE and with: { … }";
    let Some(entries) = mapping(&e.value, &e.key_place, &format!("node {}", e.key), help, mistakes) else {
        return NodeSpec { name, uses: None, from: FromSpec::Nothing, with: None, with_key: None, keep: None };
    };
    unknown_keys(entries, NODE_KEYS, "of a node", mistakes);
    let get = |key: &str| entries.iter().find(|e| e.key == key);
    let uses = match get("uses") {
        Some(u) => text(&u.value, &u.key_place, "the name of a stage", mistakes),
        None if entries.iter().any(|e| nearest(&e.key, NODE_KEYS.iter().copied()) == Some("uses")) => None,
        None => {
            let help = "add uses: STAGE; `voxmill stages` lists them";
            mistakes.push(Mistake::at(&e.key_place, format!("node {} does not say which stage it uses", e.key), help));
            None
        }
    };
    let from = get("from").map(|f| from(f, mistakes)).unwrap_or_default();
    let with = get("with").filter(|w| !w.value.is_null());
    let keep = get("keep").and_then(|k| yes_or_no(k, mistakes));
    NodeSpec { name, uses, from, with: with.map(|w| w.value.clone()), with_key: get("with").map(|w| w.key_place.clone()), keep }
}

fn from(e: &Entry, mistakes: &mut Vec<Mistake>) -> FromSpec {
    match &e.value.data {
        Data::Map(entries) => {
            let mut ports = Vec::new();
            for p in entries {
                let port = Placed { value: p.key.clone(), place: p.key_place.clone() };
                let nodes = match &p.value.data {
                    Data::List(items) if !items.is_empty() => items.iter().collect(),
                    _ => vec![&p.value],
                };
                for node in nodes {
                    let node = text(node, &p.key_place, "the name of a node", mistakes);
                    ports.extend(node.map(|node| ByPort { port: port.clone(), node }));
                }
            }
            FromSpec::Ports(e.key_place.clone(), ports)
        }
        Data::Scalar(s) if !s.text.is_empty() => {
            text(&e.value, &e.key_place, "the name of a node", mistakes).map_or(FromSpec::Wrong, FromSpec::One)
        }
        _ => {
            let place = if e.value.is_null() { &e.key_place } else { &e.value.place };
            let message = format!("`from` takes the name of a node, or a node for each port, not {}", e.value.what());
            mistakes.push(Mistake::at(&first_line(place), message, "write from: NODE, or from: { PORT: NODE, PORT: NODE }"));
            FromSpec::Wrong
        }
    }
}

fn cache(e: &Entry, mistakes: &mut Vec<Mistake>) -> CacheSpec {
    let mut out = CacheSpec::default();
    let help = "write cache: { disk: { limit: 20 GiB }, nvme: { dir: FOLDER, limit: 2 GiB }, ram: { limit: 25% } }";
    if e.value.is_null() {
        return out;
    }
    let Some(shelves) = mapping(&e.value, &e.key_place, "`cache`", help, mistakes) else { return out };
    unknown_keys(shelves, &["disk", "nvme", "ram"], "of `cache`", mistakes);
    for shelf in shelves {
        let keys: &[&str] = if shelf.key == "nvme" { &["dir", "limit"] } else { &["limit"] };
        if !["disk", "nvme", "ram"].contains(&shelf.key.as_str()) {
            continue;
        }
        let what = format!("`{}`", shelf.key);
        let Some(entries) = mapping(&shelf.value, &shelf.key_place, &what, help, mistakes) else { continue };
        unknown_keys(entries, keys, &format!("of {what}"), mistakes);
        let mut limit = shelf.value.get("limit");
        if limit.is_none() {
            mistakes.push(Mistake::at(&shelf.key_place, format!("{what} has no limit"), "add limit: 20 GiB"));
        }
        match shelf.key.as_str() {
            "ram" => out.ram_limit = limit.take().and_then(|l| ram_limit(l, mistakes)).unwrap_or_default(),
            "disk" => out.disk_limit_bytes = limit.take().and_then(|l| size(l, mistakes)),
            _ => {
                let limit_bytes = limit.take().and_then(|l| size(l, mistakes));
                let dir = match shelf.value.get("dir") {
                    Some(d) => text(&d.value, &d.key_place, "a folder", mistakes),
                    None => {
                        mistakes.push(Mistake::at(&shelf.key_place, "`nvme` has no folder", "add dir: a folder on the fast disk"));
                        None
                    }
                };
                out.nvme = dir.zip(limit_bytes).map(|(dir, limit_bytes)| NvmeSpec { dir: dir.value, limit_bytes });
            }
        }
    }
    out
}

fn size(e: &Entry, mistakes: &mut Vec<Mistake>) -> Option<u64> {
    let bytes = if let Data::Scalar(s) = &e.value.data { parse_size(&s.text) } else { None };
    if bytes.is_none() {
        mistakes.push(Mistake::at(value_or_key(e), format!("{} is no size", quoted(&e.value)), SIZE_HELP));
    }
    bytes
}

fn ram_limit(e: &Entry, mistakes: &mut Vec<Mistake>) -> Option<RamLimit> {
    if let Data::Scalar(s) = &e.value.data
        && let Some(percent) = s.text.trim().strip_suffix('%')
    {
        let percent = percent.trim().parse::<f64>().ok().filter(|p| (0.0..=90.0).contains(p));
        if percent.is_none() {
            mistakes.push(Mistake::at(
                value_or_key(e),
                format!("{} is no share of memory", quoted(&e.value)),
                "write a share of what --memory allows, 0% to 90%, or a size",
            ));
        }
        return percent.map(RamLimit::Percent);
    }
    size(e, mistakes).map(RamLimit::Bytes)
}

fn quoted(node: &Node) -> String {
    match &node.data {
        Data::Scalar(s) if !s.text.is_empty() => format!("`{}`", s.text),
        _ => node.what(),
    }
}

fn whole_number(e: &Entry, what: &str, mistakes: &mut Vec<Mistake>) -> Option<u64> {
    let found =
        if let Data::Scalar(s) = &e.value.data { if s.has_variable { s.resolve_plain() } else { s.resolve() } } else { Value::Null };
    let number = found.as_u64();
    if number.is_none() {
        let message = format!("`{what}` is a whole number from 0 up, not {}", e.value.what());
        mistakes.push(Mistake::at(value_or_key(e), message, format!("write {what}: 7")));
    }
    number
}

fn yes_or_no(e: &Entry, mistakes: &mut Vec<Mistake>) -> Option<Placed<bool>> {
    let found =
        if let Data::Scalar(s) = &e.value.data { if s.has_variable { s.resolve_plain() } else { s.resolve() } } else { Value::Null };
    let value = found.as_bool();
    if value.is_none() {
        let message = format!("`{}` is true or false, not {}", e.key, e.value.what());
        mistakes.push(Mistake::at(&first_line(value_or_key(e)), message, format!("write {}: true", e.key)));
    }
    value.map(|value| Placed { value, place: e.value.place.clone() })
}

fn text(node: &Node, key: &Place, what: &str, mistakes: &mut Vec<Mistake>) -> Option<Placed<String>> {
    match &node.data {
        Data::Scalar(s) if s.is_quoted || s.has_variable || s.resolve().is_string() => {
            if s.text.trim().is_empty() {
                mistakes.push(Mistake::at(key, format!("{what} is empty"), "give it a value"));
                return None;
            }
            Some(Placed { value: s.text.clone(), place: node.place.clone() })
        }
        Data::Scalar(s) if !s.resolve().is_null() => {
            let message = format!("expected {what}, found {}", node.what());
            mistakes.push(Mistake::at(&node.place, message, format!("put it in quotes if it is meant as text: \"{}\"", s.text)));
            None
        }
        _ => {
            let place = if node.is_null() { key.clone() } else { first_line(&node.place) };
            mistakes.push(Mistake::at(&place, format!("expected {what}, found {}", node.what()), "write one word or text here"));
            None
        }
    }
}

/// Names become names of folders and files, and the first part of a `--set`.
fn good_name(name: &Placed<String>, what: &str, mistakes: &mut Vec<Mistake>) -> bool {
    let n = &name.value;
    let good = n.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && n.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        && n.len() <= 64;
    if !good {
        let help = "use letters, digits, _ and -, at most 64, beginning with a letter or digit: the name becomes the name of a folder";
        mistakes.push(Mistake::at(&name.place, format!("`{n}` cannot name a {what}"), help));
    }
    good
}

fn mapping<'a>(node: &'a Node, place: &Place, what: &str, help: &str, mistakes: &mut Vec<Mistake>) -> Option<&'a [Entry]> {
    let map = node.map();
    if map.is_none() {
        let place = if matches!(node.data, Data::Scalar(_)) && !node.is_null() { &node.place } else { place };
        mistakes.push(Mistake::at(&first_line(place), format!("{what} is a mapping of keys and values, not {}", node.what()), help));
    }
    map
}

fn unknown_keys(entries: &[Entry], right: &[&str], of: &str, mistakes: &mut Vec<Mistake>) {
    for e in entries.iter().filter(|e| !right.contains(&e.key.as_str())) {
        let help = did_you_mean(&e.key, "keys", right.iter().copied());
        mistakes.push(Mistake::at(&e.key_place, format!("`{}` is no key {of}", e.key), help));
    }
}

fn value_or_key(e: &Entry) -> &Place {
    if e.value.is_null() { &e.key_place } else { &e.value.place }
}

/// A place cut to its first line: underlining whole blocks helps nobody.
pub fn first_line(place: &Place) -> Place {
    let n = place.text().find('\n').unwrap_or(place.end - place.start);
    Place { end: place.start + n, ..place.clone() }
}
