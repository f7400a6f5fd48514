//! `${NAME}` and `${NAME:-default}` in values, from `--set NAME=value` or the environment. `$${` writes a plain `${`.

use std::collections::BTreeSet;

use super::tree::{Data, Node, Place};
use super::{Mistake, nearest};

/// Replaces the variables in every value below `node` and notes their names.
pub fn substitute(node: &mut Node, lookup: &dyn Fn(&str) -> Option<String>, names: &mut BTreeSet<String>, mistakes: &mut Vec<Mistake>) {
    match &mut node.data {
        Data::List(items) => items.iter_mut().for_each(|n| substitute(n, lookup, names, mistakes)),
        Data::Map(entries) => entries.iter_mut().for_each(|e| {
            if e.key.contains("${") {
                let help = "variables stand in values: write the key out, or set the value under it from outside";
                mistakes.push(Mistake::at(&e.key_place, format!("the key {} holds a variable", e.key), help));
            }
            substitute(&mut e.value, lookup, names, mistakes)
        }),
        Data::Scalar(scalar) if scalar.text.contains("${") => {
            let (text, has_variable) = replaced(&scalar.text, &node.place, lookup, names, mistakes);
            scalar.text = text;
            scalar.has_variable |= has_variable;
        }
        Data::Scalar(_) => {}
    }
}

fn replaced(
    text: &str,
    place: &Place,
    lookup: &dyn Fn(&str) -> Option<String>,
    names: &mut BTreeSet<String>,
    mistakes: &mut Vec<Mistake>,
) -> (String, bool) {
    let mut out = String::new();
    let mut rest = text;
    let mut has_variable = false;
    // Where in the source to look for the next variable: the text may hold one twice.
    let mut seen = 0;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            out.push_str(&rest[..at - 1]);
            out.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let tail = &rest[at..];
        let Some(close) = tail.find('}') else {
            let help = "close it: ${NAME} or ${NAME:-default}; $${ writes a plain ${";
            mistakes.push(Mistake::at(&within(place, tail, &mut seen), "this variable is not closed with }", help));
            return (out, true);
        };
        let whole = &tail[..close + 1];
        let here = within(place, whole, &mut seen);
        let inner = &tail[2..close];
        let (name, default) = inner.split_once(":-").map_or((inner, None), |(n, d)| (n, Some(d)));
        rest = &tail[close + 1..];
        if !is_name(name) {
            let help = "a variable is letters, digits and _: ${NAME}, or ${NAME:-default} with what stands there when it is not set";
            mistakes.push(Mistake::at(&here, format!("`{name}` is no name of a variable"), help));
            continue;
        }
        has_variable = true;
        names.insert(name.to_string());
        // As in a shell, `:-` also steps in for an empty variable.
        match (lookup(name), default) {
            (Some(value), None) => out.push_str(&value),
            (Some(value), Some(_)) if !value.is_empty() => out.push_str(&value),
            (_, Some(default)) => out.push_str(default),
            (None, None) => {
                let help = format!("set it: --set {name}=…, or {name}=… in the environment, or give a default: ${{{name}:-…}}");
                mistakes.push(Mistake::at(&here, format!("the variable {name} is not set"), help));
            }
        }
    }
    out.push_str(rest);
    (out, has_variable)
}

/// The place of `part` inside a scalar's text as it was typed; the whole scalar where quoting hides it.
fn within(place: &Place, part: &str, seen: &mut usize) -> Place {
    match place.text().get(*seen..).and_then(|t| t.find(part)) {
        Some(at) => {
            let start = place.start + *seen + at;
            *seen += at + part.len();
            Place { start, end: start + part.len(), ..place.clone() }
        }
        None => place.clone(),
    }
}

pub fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The help for a variable that the file does not have.
pub fn suggestion(name: &str, names: &BTreeSet<String>) -> String {
    match nearest(name, names.iter().map(String::as_str)) {
        Some(near) => format!("did you mean {near}?"),
        None if names.is_empty() => "this file has no variables; set a value in it with NODE.key=value".into(),
        None => format!(
            "variables of this file: {}; a value in it is set with NODE.key=value",
            names.iter().cloned().collect::<Vec<_>>().join(", ")
        ),
    }
}
