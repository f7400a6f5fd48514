//! `oneOf` and `anyOf` of a JSON Schema: which of the shapes is meant, so that a mistake inside it is told as one of that shape. Knows the forms that
//! serde gives an enum: words, `{ variant: … }`, `{ kind: variant, … }` and bare shapes.

use serde_json::Value;
use voxmill_schemas::spec::{Data, Entry, Node, did_you_mean};

use crate::conform::{Spot, Walk, fitted};
use crate::words::{expected, is_type, merged, types};

/// The fixed words (or numbers) of a schema that allows nothing else.
pub fn words(schema: &Value) -> Option<Vec<Value>> {
    match (schema.get("const"), schema.get("enum").and_then(Value::as_array)) {
        (Some(c), _) => Some(vec![c.clone()]),
        (None, Some(all)) => Some(all.clone()),
        (None, None) => None,
    }
}

pub fn choose(walk: &mut Walk, schema: &Value, branches: &[Value], node: &Node, spot: &Spot) -> Value {
    let mut flat = Vec::new();
    flatten(walk.root, schema, branches, &mut flat);
    if node.is_null() && flat.iter().any(|b| is_type(b, "null")) {
        return Value::Null;
    }
    flat.retain(|b| types(b) != ["null"]);
    if let [one] = &flat[..] {
        return walk.value(one, node, spot);
    }
    match &node.data {
        Data::Scalar(_) => scalar(walk, schema, &flat, node, spot),
        Data::List(_) => {
            flat.retain(|b| is_type(b, "array"));
            best(walk, schema, &flat, node, spot)
        }
        Data::Map(entries) => {
            flat.retain(|b| is_type(b, "object"));
            map(walk, schema, &flat, entries, node, spot)
        }
    }
}

/// Choices of choices as one list, each with what stands beside the choice (`properties` of a struct that flattens an enum).
fn flatten(root: &Value, schema: &Value, branches: &[Value], out: &mut Vec<Value>) {
    let mut base = schema.clone();
    if let Some(o) = base.as_object_mut() {
        for key in ["oneOf", "anyOf", "description", "default", "title", "$defs"] {
            o.remove(key);
        }
    }
    for b in branches {
        let mut b = merged(root, b);
        if base.as_object().is_some_and(|o| !o.is_empty()) {
            b = merged(root, &serde_json::json!({ "allOf": [b, base] }));
        }
        match b.get("oneOf").or(b.get("anyOf")).and_then(Value::as_array).cloned() {
            Some(inner) => flatten(root, &b, &inner, out),
            None => out.push(b),
        }
    }
}

fn scalar(walk: &mut Walk, schema: &Value, branches: &[Value], node: &Node, spot: &Spot) -> Value {
    let Data::Scalar(s) = &node.data else { return Value::Null };
    let all_words: Vec<Value> = branches.iter().filter_map(words).flatten().collect();
    if let Some(word) = all_words.iter().find(|w| w.as_str() == Some(s.text.as_str())) {
        return word.clone();
    }
    let free: Vec<Value> =
        branches.iter().filter(|b| words(b).is_none() && !is_type(b, "object") && !is_type(b, "array")).cloned().collect();
    if free.iter().any(|b| fitted(b, s).is_some()) {
        return best(walk, schema, &free.into_iter().filter(|b| fitted(b, s).is_some()).collect::<Vec<_>>(), node, spot);
    }
    let variants: Vec<&str> = branches.iter().filter_map(variant_name).collect();
    if variants.contains(&s.text.as_str()) {
        walk.wrong(&node.place, format!("`{}` needs values of its own", s.text), format!("write {}: {{ {}: {{ … }} }}", spot.name, s.text));
        return Value::Null;
    }
    let names: Vec<&str> = all_words.iter().filter_map(Value::as_str).chain(variants).collect();
    if names.is_empty() || node.is_null() || !free.is_empty() {
        return walk.mismatch(schema, node, spot);
    }
    walk.word(&names.iter().map(|n| Value::from(*n)).collect::<Vec<_>>(), s, node, spot)
}

/// Names of the variants of a choice that have values of their own: `{ NAME: { … } }`.
pub fn variants(root: &Value, schema: &Value) -> Vec<String> {
    let branches = schema.get("oneOf").or(schema.get("anyOf")).and_then(Value::as_array);
    branches.into_iter().flatten().filter_map(|b| variant_name(&merged(root, b)).map(str::to_string)).collect()
}

/// The name of an externally tagged variant: an object with a single key, which is required.
fn variant_name(branch: &Value) -> Option<&str> {
    let properties = branch.get("properties")?.as_object()?;
    let required = branch.get("required")?.as_array()?;
    match (properties.keys().next(), required.first().and_then(Value::as_str)) {
        (Some(p), Some(r)) if properties.len() == 1 && required.len() == 1 && p == r => Some(p),
        _ => None,
    }
}

/// The key by whose fixed value all branches differ (`kind`).
fn tag(root: &Value, branches: &[Value]) -> Option<String> {
    let first = branches.first()?.get("properties")?.as_object()?;
    let is_tag = |key: &&String| {
        branches
            .iter()
            .all(|b| b.get("properties").and_then(|p| p.get(key.as_str())).is_some_and(|p| merged(root, p).get("const").is_some()))
    };
    first.keys().find(is_tag).cloned()
}

fn map(walk: &mut Walk, schema: &Value, branches: &[Value], entries: &[Entry], node: &Node, spot: &Spot) -> Value {
    if branches.len() < 2 {
        return best(walk, schema, branches, node, spot);
    }
    if let Some(tag) = tag(walk.root, branches) {
        let root = walk.root;
        let name_of = |b: &Value| merged(root, &b["properties"][&tag]).get("const").and_then(Value::as_str).map(str::to_string);
        let names: Vec<String> = branches.iter().filter_map(name_of).collect();
        let Some(given) = entries.iter().find(|e| e.key == tag) else {
            walk.wrong(&spot.key, format!("{} needs `{tag}`", spot.name), format!("add `{tag}`: one of {}", names.join(", ")));
            return Value::Null;
        };
        let text = if let Data::Scalar(s) = &given.value.data { s.text.as_str() } else { "" };
        return match branches.iter().find(|b| name_of(b).as_deref() == Some(text)) {
            Some(branch) => walk.value(branch, node, &Spot { name: spot.name.clone(), ..spot.clone() }),
            None => {
                let place = if given.value.is_null() { &given.key_place } else { &given.value.place };
                let help = did_you_mean(text, "choices", names.iter().map(String::as_str));
                walk.wrong(place, format!("`{tag}` of {} cannot be `{text}`", spot.name), help);
                Value::Null
            }
        };
    }
    let variants: Vec<&str> = branches.iter().filter_map(variant_name).collect();
    if variants.len() == branches.len() {
        return match entries {
            [e] => match branches.iter().find(|b| variant_name(b) == Some(&e.key)) {
                Some(branch) => walk.value(branch, node, spot),
                None => {
                    let help = did_you_mean(&e.key, "choices", variants.iter().copied());
                    walk.wrong(&e.key_place, format!("`{}` cannot be `{}`", spot.name, e.key), help);
                    Value::Null
                }
            },
            [] => walk.mismatch(schema, node, spot),
            [_, second, ..] => {
                let message = format!("`{}` takes one of {}, not several at once", spot.name, variants.join(", "));
                walk.wrong(&second.key_place, message, "keep one of them, or make a list item of each");
                Value::Null
            }
        };
    }
    best(walk, schema, branches, node, spot)
}

/// The branch with the fewest mistakes; its mistakes are told.
fn best(walk: &mut Walk, schema: &Value, branches: &[Value], node: &Node, spot: &Spot) -> Value {
    let tried = branches.iter().map(|b| walk.attempt(b, node, spot)).min_by_key(|(_, mistakes)| mistakes.len());
    match tried {
        Some((value, mut mistakes)) => {
            walk.mistakes.append(&mut mistakes);
            value
        }
        None => walk.mismatch(schema, node, spot),
    }
}

/// What a choice allows, in words: for messages and help.
pub fn expected_of_choice(root: &Value, schema: &Value, branches: &[Value]) -> String {
    let mut flat = Vec::new();
    flatten(root, schema, branches, &mut flat);
    let mut parts: Vec<String> = Vec::new();
    let names: Vec<String> = flat
        .iter()
        .flat_map(|b| words(b).unwrap_or_default())
        .filter_map(|w| w.as_str().map(str::to_string))
        .chain(flat.iter().filter_map(variant_name).map(|v| format!("{v}: …")))
        .collect();
    match &names[..] {
        [] => {}
        [one] => parts.push(one.clone()),
        many => parts.push(format!("one of {}", many.join(", "))),
    }
    if let Some(tag) = tag(root, &flat).filter(|_| flat.len() > 1) {
        let kinds = flat.iter().filter_map(|b| merged(root, &b["properties"][&tag]).get("const")?.as_str().map(str::to_string));
        return format!("a mapping with {tag}: {}", kinds.collect::<Vec<_>>().join(" or "));
    }
    for b in flat.iter().filter(|b| words(b).is_none() && variant_name(b).is_none() && types(b) != ["null"]) {
        let text = expected(root, b);
        if !parts.contains(&text) {
            parts.push(text);
        }
    }
    parts.join(", or ")
}
