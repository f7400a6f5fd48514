//! A JSON Schema read as people read it: references followed, parts put together, types and descriptions in words.

use serde_json::{Map, Value};

use crate::choice;

/// References are followed this deep; ours have no circles.
const MAX_DEPTH: usize = 32;

/// The schema with `$ref` and `allOf` taken in: properties and required keys of all parts, its own words first.
pub fn merged(root: &Value, schema: &Value) -> Value {
    merged_to(root, schema, 0)
}

fn merged_to(root: &Value, schema: &Value, depth: usize) -> Value {
    let Some(own) = schema.as_object() else { return Value::Object(Map::new()) };
    if depth > MAX_DEPTH || (own.get("$ref").is_none() && own.get("allOf").is_none()) {
        return schema.clone();
    }
    let mut out = own.clone();
    let target = out.remove("$ref").and_then(|r| root.pointer(r.as_str()?.strip_prefix('#')?).cloned());
    let all = out.remove("allOf");
    let parts = target.into_iter().chain(all.as_ref().and_then(Value::as_array).cloned().unwrap_or_default());
    for part in parts {
        let Value::Object(part) = merged_to(root, &part, depth + 1) else { continue };
        for (key, value) in part {
            match (key.as_str(), out.get_mut(&key), value) {
                (_, None, value) => drop(out.insert(key, value)),
                ("properties", Some(Value::Object(mine)), Value::Object(more)) => {
                    for (k, v) in more {
                        mine.entry(k).or_insert(v);
                    }
                }
                ("required", Some(Value::Array(mine)), Value::Array(more)) => {
                    more.into_iter().for_each(|k| {
                        if !mine.contains(&k) {
                            mine.push(k)
                        }
                    });
                }
                _ => {}
            }
        }
    }
    Value::Object(out)
}

/// The types a merged schema allows; empty: any.
pub fn types(schema: &Value) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(t)) => vec![t],
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

pub fn is_type(schema: &Value, t: &str) -> bool {
    let all = types(schema);
    let is_bare = all.is_empty() && ["const", "enum", "oneOf", "anyOf"].iter().all(|k| schema.get(*k).is_none());
    all.contains(&t) || (is_bare && t != "null")
}

/// The first sentence of a schema's doc comment, on one line.
pub fn described(root: &Value, schema: &Value) -> Option<String> {
    let merged = merged(root, schema);
    let text = schema.get("description").or(merged.get("description"))?.as_str()?.split_whitespace().collect::<Vec<_>>().join(" ");
    let end = text.find(". ").unwrap_or(text.trim_end_matches('.').len());
    Some(text[..end].to_string())
}

/// `a number`, `a whole number`, …: the noun of a simple schema.
pub fn article(schema: &Value) -> &'static str {
    match types(schema).iter().find(|t| **t != "null") {
        Some(&"integer") => "a whole number",
        Some(&"number") => "a number",
        Some(&"string") => "a text",
        Some(&"boolean") => "true or false",
        Some(&"array") => "a list",
        Some(&"object") => "a mapping",
        _ => "a value",
    }
}

/// The first of a doc comment, as a help line for the key it describes.
pub fn explained(root: &Value, schema: &Value, name: &str) -> Option<String> {
    described(root, schema).map(|d| format!("{name}: {d}"))
}

/// What a schema wants, in words: `a list of whole numbers`, `a mapping with z, y, x`, `one of basic, none`.
pub fn expected(root: &Value, schema: &Value) -> String {
    let s = merged(root, schema);
    if let Some(words) = choice::words(&s) {
        let names: Vec<String> = words.iter().map(|w| w.as_str().map_or_else(|| w.to_string(), str::to_string)).collect();
        return if names.len() == 1 { names[0].clone() } else { format!("one of {}", names.join(", ")) };
    }
    if let Some(branches) = s.get("oneOf").or(s.get("anyOf")).and_then(Value::as_array) {
        return choice::expected_of_choice(root, &s, branches);
    }
    let nouns = types(&s);
    if nouns.contains(&"array") {
        let item = s.get("items").map(|i| plural(&expected(root, i)));
        let n = s.get("minItems").and_then(Value::as_u64).filter(|n| s.get("maxItems").and_then(Value::as_u64) == Some(*n));
        return match (n, item) {
            (Some(n), Some(item)) => format!("a list of {n} {item}"),
            (None, Some(item)) => format!("a list of {item}"),
            _ => "a list".into(),
        };
    }
    if nouns.contains(&"object") {
        let keys: Vec<&str> = s.get("properties").and_then(Value::as_object).into_iter().flatten().map(|(k, _)| k.as_str()).collect();
        return match (keys.len(), s.get("additionalProperties").filter(|a| a.is_object())) {
            (0, Some(value)) => format!("a mapping of names to {}", plural(&expected(root, value))),
            (0, None) => "a mapping".into(),
            (1..=6, _) => format!("a mapping with {}", keys.join(", ")),
            _ => format!("a mapping with {}, …", keys[..6].join(", ")),
        };
    }
    let bounds = match (s.get("minimum").and_then(Value::as_f64), s.get("maximum").and_then(Value::as_f64)) {
        (Some(a), Some(b)) => format!(" from {a} to {b}"),
        (Some(a), None) if a != 0.0 => format!(" from {a} up"),
        _ => String::new(),
    };
    format!("{}{bounds}", article(&s))
}

fn plural(noun: &str) -> String {
    match noun {
        "a number" => "numbers".into(),
        "a whole number" => "whole numbers".into(),
        "a text" => "texts".into(),
        "true or false" => "true or false".into(),
        "a value" => "values".into(),
        other => match other.strip_prefix("a ") {
            Some(rest) if rest.starts_with("whole number ") => rest.replacen("number", "numbers", 1),
            Some(rest) if rest.starts_with("mapping") => rest.replacen("mapping", "mappings", 1),
            Some(rest) if rest.starts_with("list") => rest.replacen("list", "lists", 1),
            _ => format!("values, each {other}"),
        },
    }
}
