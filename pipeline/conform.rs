//! A node's `with` against the JSON Schema of its stage: every mistake at its place, and the value as the schema wants it (`"${N:-32}"` becomes a number
//! where a number is wanted). What a schema can say of a choice between shapes stands in `choice.rs`.

use serde_json::{Map, Value};
use voxmill_schemas::artifact::Port;
use voxmill_schemas::spec::{Data, Entry, Mistake, Node, Place, Scalar, did_you_mean, first_line, nearest, structured};
use voxmill_stages::stage::Info;

use crate::choice;
use crate::words::{article, described, expected, explained, is_type, merged, types};

/// The value of `with` for `stage::parse`, or mistakes. `anchor` is underlined for what is not there.
pub fn with(schema: &Value, info: &Info, with: Option<&Node>, anchor: &Place, mistakes: &mut Vec<Mistake>) -> Value {
    let stage = info.name;
    let mut walk = Walk { root: schema, ports: info.ports, mistakes: Vec::new() };
    let empty = Node { data: Data::Map(Vec::new()), place: anchor.clone() };
    let spot = Spot { key: anchor.clone(), name: stage.to_string(), owner: stage.to_string() };
    let node = with.unwrap_or(&empty);
    let value = match &node.data {
        Data::Map(_) => walk.value(schema, node, &spot),
        _ => {
            walk.wrong(
                &node.place,
                format!("`with` takes keys and values, not {}", node.what()),
                format!("`voxmill stages {stage}` lists the keys"),
            );
            Value::Null
        }
    };
    mistakes.append(&mut walk.mistakes);
    value
}

pub struct Walk<'a> {
    /// The schema that holds `$defs`.
    pub root: &'a Value,
    /// The ports of the stage, which some write under `with`.
    pub ports: &'a [Port],
    pub mistakes: Vec<Mistake>,
}

/// Where in `with` we are.
#[derive(Clone)]
pub struct Spot {
    /// The key whose value is looked at: underlined when there is nothing better.
    pub key: Place,
    /// Its name as messages say it.
    pub name: String,
    /// The stage or key above.
    pub owner: String,
}

impl Walk<'_> {
    pub fn wrong(&mut self, place: &Place, message: String, help: impl Into<String>) {
        self.mistakes.push(Mistake::at(&first_line(place), message, help));
    }

    /// A walk whose mistakes stay apart, to try a shape.
    pub fn attempt(&self, schema: &Value, node: &Node, spot: &Spot) -> (Value, Vec<Mistake>) {
        let mut walk = Walk { root: self.root, ports: self.ports, mistakes: Vec::new() };
        let value = walk.value(schema, node, spot);
        (value, walk.mistakes)
    }

    pub fn value(&mut self, schema: &Value, node: &Node, spot: &Spot) -> Value {
        let schema = merged(self.root, schema);
        let wants_structure =
            is_type(&schema, "array") || is_type(&schema, "object") || schema.get("oneOf").or(schema.get("anyOf")).is_some();
        if wants_structure && let Some(parsed) = structured(node) {
            return self.value(&schema, &parsed, spot);
        }
        if let Some(branches) = schema.get("oneOf").or(schema.get("anyOf")).and_then(Value::as_array) {
            return choice::choose(self, &schema, branches, node, spot);
        }
        match &node.data {
            Data::Scalar(s) => self.scalar(&schema, s, node, spot),
            Data::List(items) => self.list(&schema, items, node, spot),
            Data::Map(entries) => self.map(&schema, entries, node, spot),
        }
    }

    /// Notes that something of another type stands here.
    pub fn mismatch(&mut self, schema: &Value, node: &Node, spot: &Spot) -> Value {
        let place = if node.is_null() { &spot.key } else { &node.place };
        let help = help_for_type(self.root, schema, node, &spot.name);
        self.wrong(place, format!("`{}` takes {}, not {}", spot.name, expected(self.root, schema), node.what()), help);
        Value::Null
    }

    fn scalar(&mut self, schema: &Value, s: &Scalar, node: &Node, spot: &Spot) -> Value {
        if let Some(words) = choice::words(schema) {
            return self.word(&words, s, node, spot);
        }
        let Some(value) = fitted(schema, s) else { return self.mismatch(schema, node, spot) };
        self.bounds(schema, &value, node, spot);
        value
    }

    /// One of a few fixed words.
    pub fn word(&mut self, words: &[Value], s: &Scalar, node: &Node, spot: &Spot) -> Value {
        if let Some(found) = words.iter().find(|w| w.as_str() == Some(s.text.as_str()) || **w == s.resolve()) {
            return found.clone();
        }
        let names: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
        let place = if node.is_null() { &spot.key } else { &node.place };
        let help = did_you_mean(&s.text, "choices", names.iter().copied());
        let help = if help.starts_with("did") && names.len() > 1 { format!("{help} Choices: {}", names.join(", ")) } else { help };
        let found = if node.is_null() { "nothing".into() } else { format!("`{}`", s.text) };
        self.wrong(place, format!("`{}` cannot be {found}", spot.name), help);
        Value::Null
    }

    fn list(&mut self, schema: &Value, items: &[Node], node: &Node, spot: &Spot) -> Value {
        if !is_type(schema, "array") {
            return self.mismatch(schema, node, spot);
        }
        let count = |key: &str| schema.get(key).and_then(Value::as_u64);
        let n = items.len() as u64;
        if count("minItems").is_some_and(|m| n < m) || count("maxItems").is_some_and(|m| n > m) {
            let wanted = match (count("minItems"), count("maxItems")) {
                (Some(a), Some(b)) if a == b => format!("{a}"),
                (Some(a), Some(b)) => format!("{a} to {b}"),
                (Some(a), None) => format!("at least {a}"),
                (_, b) => format!("at most {}", b.unwrap_or_default()),
            };
            let message = format!("`{}` has {n} value{}, wanted {wanted}", spot.name, if n == 1 { "" } else { "s" });
            self.wrong(&node.place, message, format!("write {wanted} between the brackets"));
        }
        let any = Value::Bool(true);
        let prefix = schema.get("prefixItems").and_then(Value::as_array);
        let values = items.iter().enumerate().map(|(i, item)| {
            let schema = prefix.and_then(|p| p.get(i)).or(schema.get("items")).unwrap_or(&any);
            let below = Spot { key: item.place.clone(), name: format!("{}[{i}]", spot.name), owner: spot.name.clone() };
            self.value(schema, item, &below)
        });
        Value::Array(values.collect())
    }

    fn map(&mut self, schema: &Value, entries: &[Entry], node: &Node, spot: &Spot) -> Value {
        if !is_type(schema, "object") {
            return self.mismatch(schema, node, spot);
        }
        let none = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
        let rest = schema.get("additionalProperties").or(schema.get("unevaluatedProperties"));
        let any = Value::Bool(true);
        let mut out = Map::new();
        // Keys that were meant: they are not told as missing once more, and no key is suggested that stands there already.
        let mut meant: Vec<&str> = Vec::new();
        for e in entries {
            let below = Spot { key: e.key_place.clone(), name: e.key.clone(), owner: spot.name.clone() };
            let sub = match (properties.get(&e.key), rest) {
                (Some(sub), _) => sub,
                (None, Some(Value::Bool(false))) => {
                    let free = properties.keys().map(String::as_str).filter(|k| !entries.iter().any(|e| e.key == *k));
                    let near = nearest(&e.key, free.clone());
                    meant.extend(near);
                    let is_top = spot.name == spot.owner;
                    let help = if is_top && self.ports.iter().any(|p| p.name == e.key) {
                        format!("`{0}` is a port: write it under `from`, as from: {{ …, {0}: NODE }}", e.key)
                    } else if properties.is_empty() {
                        format!("{} takes no keys", spot.name)
                    } else if near.is_some() {
                        did_you_mean(&e.key, "keys", free)
                    } else {
                        did_you_mean(&e.key, "keys", properties.keys().map(String::as_str))
                    };
                    self.wrong(&e.key_place, format!("`{}` is no key of {}", e.key, spot.name), help);
                    continue;
                }
                (None, Some(sub)) => sub,
                (None, None) => &any,
            };
            out.insert(e.key.clone(), self.value(sub, &e.value, &below));
        }
        for name in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            if !entries.iter().any(|e| e.key == name) && !meant.contains(&name) {
                let sub = properties.get(name).unwrap_or(&any);
                let about = described(self.root, sub).map(|d| format!(": {d}")).unwrap_or_default();
                let help = format!("add `{name}`, {}{about}", expected(self.root, sub));
                self.wrong(&spot.key, format!("{} needs `{name}`", spot.name), help);
            }
        }
        Value::Object(out)
    }

    fn bounds(&mut self, schema: &Value, value: &Value, node: &Node, spot: &Spot) {
        if let (Some(text), Some(min)) = (value.as_str(), schema.get("minLength").and_then(Value::as_u64))
            && (text.chars().count() as u64) < min
        {
            self.wrong(&node.place, format!("`{}` is too short", spot.name), format!("write at least {min} characters"));
        }
        let Some(x) = value.as_f64() else { return };
        let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
        // Schemas give bounds to small unsigned types only; beyond 2^53 no configuration has business.
        let type_max = match schema.get("format").and_then(Value::as_str) {
            Some("uint32") => Some(u32::MAX as f64),
            Some("int32") => Some(i32::MAX as f64),
            _ => None,
        };
        let limits = [
            (bound("minimum"), x < bound("minimum").unwrap_or(x), "at least"),
            (bound("maximum").or(type_max), x > bound("maximum").or(type_max).unwrap_or(x), "at most"),
            (bound("exclusiveMinimum"), bound("exclusiveMinimum").is_some_and(|m| x <= m), "more than"),
            (bound("exclusiveMaximum"), bound("exclusiveMaximum").is_some_and(|m| x >= m), "less than"),
        ];
        for (limit, _, words) in limits.iter().filter(|(_, is_broken, _)| *is_broken) {
            let limit = limit.unwrap_or_default();
            self.wrong(
                &node.place,
                format!("`{}` is {value}, it must be {words} {limit}", spot.name),
                format!("write {} of {words} {limit}", article(schema)),
            );
        }
    }
}

/// The scalar as a value of one of the schema's types.
pub fn fitted(schema: &Value, s: &Scalar) -> Option<Value> {
    let types = types(schema);
    let text = Value::String(s.text.clone());
    if types.is_empty() {
        return Some(if s.has_variable { s.resolve_plain() } else { s.resolve() });
    }
    let fits = |v: &Value| match v {
        Value::Null => types.contains(&"null"),
        Value::Bool(_) => types.contains(&"boolean"),
        Value::String(_) => types.contains(&"string"),
        Value::Number(n) => types.contains(&"number") || (types.contains(&"integer") && n.as_f64().is_some_and(|x| x.fract() == 0.0)),
        _ => false,
    };
    let found = if s.has_variable { s.resolve_plain() } else { s.resolve() };
    // A variable's value in a place for text is text, whatever it looks like.
    let value = if s.has_variable && (types == ["string"] || !fits(&found)) { text } else { found };
    fits(&value).then(|| whole(schema, value))
}

/// `2.0` where a whole number is wanted.
fn whole(schema: &Value, value: Value) -> Value {
    let wants_integer = is_type(schema, "integer") && !is_type(schema, "number");
    match value.as_f64() {
        Some(x) if wants_integer && value.is_f64() && x.abs() < 9e15 => Value::from(x as i64),
        _ => value,
    }
}

/// The keys of a mapping that the schema wants, where they are few: those of a struct, or of the only shape of a choice that has any.
fn keys_of(root: &Value, schema: &Value) -> Option<Vec<String>> {
    fn shapes(root: &Value, schema: &Value, out: &mut Vec<Vec<String>>) {
        let schema = merged(root, schema);
        match schema.get("anyOf").or(schema.get("oneOf")).and_then(Value::as_array) {
            Some(branches) => branches.iter().for_each(|b| shapes(root, b, out)),
            None => out.extend(schema.get("properties").and_then(Value::as_object).map(|p| p.keys().cloned().collect())),
        }
    }
    let mut all = Vec::new();
    shapes(root, schema, &mut all);
    all.pop().filter(|keys| all.is_empty() && (1..=6).contains(&keys.len()))
}

fn help_for_type(root: &Value, schema: &Value, node: &Node, name: &str) -> String {
    let number = is_type(schema, "number") || is_type(schema, "integer");
    if let Data::Scalar(s) = &node.data {
        let unquoted = s.resolve_plain();
        if number && s.is_quoted && unquoted.is_number() {
            return format!("remove the quotes: {}", s.text);
        }
        if is_type(schema, "boolean") && ["yes", "no", "on", "off", "y", "n"].contains(&s.text.to_lowercase().as_str()) {
            return "write true or false".into();
        }
        if is_type(schema, "string") && !node.is_null() {
            return format!("put it in quotes: \"{}\"", s.text);
        }
        if is_type(schema, "array") && !node.is_null() {
            let items = schema.get("items").map(|i| merged(root, i)).unwrap_or_default();
            return match choice::variants(root, &items).contains(&s.text) {
                true => format!("write {name}: [{{ {}: {{ … }} }}]", s.text),
                false => format!("put it in brackets: [{}]", s.text),
            };
        }
    }
    if let Some(keys) = keys_of(root, schema) {
        let filled: Option<Vec<String>> = match &node.data {
            // One for each key, in the order of the schema.
            Data::List(items) if items.len() == keys.len() => {
                let text = |n: &Node| if let Data::Scalar(s) = &n.data { Some(s.text.clone()) } else { None };
                keys.iter().zip(items).map(|(key, item)| Some(format!("{key}: {}", text(item)?))).collect()
            }
            _ => None,
        };
        let written = filled.unwrap_or_else(|| keys.iter().map(|key| format!("{key}: …")).collect());
        return format!("write {name}: {{ {} }}", written.join(", "));
    }
    explained(root, schema, name).unwrap_or_else(|| format!("write {}", expected(root, schema)))
}
