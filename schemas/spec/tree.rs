//! A tree in which every key and value knows its place in its source. How it comes from text stands in `yaml.rs`.

use std::sync::Arc;

use serde_json::Value;

/// A text that mistakes point into: a file, or an option of the command line.
#[derive(Debug)]
pub struct Source {
    pub name: String,
    pub text: String,
}

/// A stretch of a source, in bytes.
#[derive(Clone)]
pub struct Place {
    pub source: Arc<Source>,
    pub start: usize,
    pub end: usize,
}

impl Place {
    pub fn text(&self) -> &str {
        self.source.text.get(self.start..self.end).unwrap_or_default()
    }
    /// Line and column, both from 1, the column in characters.
    pub fn line_column(&self) -> (usize, usize) {
        let before = &self.source.text[..self.start.min(self.source.text.len())];
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (line, column) = self.line_column();
        write!(f, "{}:{line}:{column} {:?}", self.source.name, self.text())
    }
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct Placed<T> {
    pub value: T,
    pub place: Place,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub data: Data,
    pub place: Place,
}

#[derive(Clone, Debug)]
pub enum Data {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub key: String,
    pub key_place: Place,
    pub value: Node,
}

/// A text of which only the reader knows whether it is meant as a number.
#[derive(Clone, Debug, Default)]
pub struct Scalar {
    pub text: String,
    pub is_quoted: bool,
    /// A `${VARIABLE}` stood in it: the quotes around it do not make it a text.
    pub has_variable: bool,
}

impl Scalar {
    /// The value by YAML's core schema: null, true and false, numbers, else text. A quoted one is a text.
    pub fn resolve(&self) -> Value {
        if self.is_quoted { Value::String(self.text.clone()) } else { plain(&self.text) }
    }
    /// The same without regard to quotes.
    pub fn resolve_plain(&self) -> Value {
        plain(&self.text)
    }
}

impl Node {
    pub fn map(&self) -> Option<&[Entry]> {
        if let Data::Map(entries) = &self.data { Some(entries) } else { None }
    }
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.map()?.iter().find(|e| e.key == key)
    }
    pub fn is_null(&self) -> bool {
        matches!(&self.data, Data::Scalar(s) if s.resolve().is_null())
    }
    /// What stands here, in words: `the number 3`, `a list`.
    pub fn what(&self) -> String {
        match &self.data {
            Data::List(_) => "a list".into(),
            Data::Map(_) => "a mapping".into(),
            Data::Scalar(s) => match s.resolve() {
                Value::Null => "nothing".into(),
                Value::Bool(b) => b.to_string(),
                Value::Number(n) => format!("the number {n}"),
                Value::String(t) if t.chars().count() > 40 => "a text".into(),
                other => format!("the text {other}"),
            },
        }
    }
}

/// YAML 1.2 core schema, section 10.3.2. `1e999` and `.nan` stay text: no JSON number says them.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let radix = |prefix: &str, radix: u32| text.strip_prefix(prefix).and_then(|d| u64::from_str_radix(d, radix).ok());
    if let Some(n) = radix("0x", 16).or(radix("0o", 8)) {
        return n.into();
    }
    let is_number = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.contains(|c: char| c.is_ascii_digit())
        && unsigned.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-'));
    if is_number {
        let digits = text.strip_prefix('+').unwrap_or(text);
        if let Ok(n) = digits.parse::<u64>() {
            return n.into();
        }
        if let Ok(n) = digits.parse::<i64>() {
            return n.into();
        }
        if let Some(n) = digits.parse::<f64>().ok().and_then(serde_json::Number::from_f64) {
            return Value::Number(n);
        }
    }
    Value::String(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_follow_the_core_schema() {
        for (text, want) in [
            ("1", serde_json::json!(1)),
            ("-3", serde_json::json!(-3)),
            ("1e-4", serde_json::json!(1e-4)),
            (".5", serde_json::json!(0.5)),
            ("0x10", serde_json::json!(16)),
            ("yes", serde_json::json!("yes")),
            ("~", serde_json::json!(null)),
            ("1.2.3", serde_json::json!("1.2.3")),
            ("2024-01-01", serde_json::json!("2024-01-01")),
            ("e5", serde_json::json!("e5")),
            ("-", serde_json::json!("-")),
            ("True", serde_json::json!(true)),
        ] {
            assert_eq!(plain(text), want, "{text}");
        }
    }
}
