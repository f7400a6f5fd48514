//! The JSON Schema of the YAML language, for editors: completion and help for `uses`, `from` and `with` of every stage. Looser than `plan` where a schema
//! cannot know better: any value may be a `${VARIABLE}`.

use serde_json::{Map, Value, json};
use voxmill_schemas::spec::SIZE_HELP;
use voxmill_stages::stage::StageDef;

pub fn pipeline_schema(defs: &[StageDef]) -> Value {
    let mut definitions = Map::new();
    definitions.insert(
        "variable".into(),
        json!({ "description": "A variable: ${NAME} or ${NAME:-default}", "type": "string", "pattern": "\\$\\{" }),
    );
    definitions.insert(
        "include".into(),
        json!({
            "description": "Files whose keys are taken over here, relative to this file; keys beside it win",
            "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }]
        }),
    );
    definitions.insert("size".into(), json!({ "description": SIZE_HELP, "type": ["string", "integer"] }));
    let rules: Vec<Value> = defs.iter().map(|d| stage_rule(d, &mut definitions)).collect();
    definitions.insert("node".into(), node(defs, rules));
    voxmill_schemas::artifact::canonical(json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Voxmill pipeline",
        "description": "From a DICOM archive to a trained, evaluated and exported segmentation model",
        "type": "object",
        "properties": {
            "name": { "description": "Letters, digits, _ and -", "type": "string" },
            "seed": or_variable(json!({ "description": "Equal seeds give equal bytes. Default 0", "type": "integer", "minimum": 0 })),
            "workspace": { "description": "Everything the pipeline makes lies here, relative to the current folder. Default work/NAME", "type": "string" },
            "cache": cache(),
            "stages": {
                "description": "Nodes by name, each one use of a stage; the order is free",
                "type": "object",
                "propertyNames": { "pattern": "^[A-Za-z0-9_][A-Za-z0-9_-]{0,63}$" },
                "properties": { "include": reference("include") },
                "additionalProperties": reference("node")
            },
            "include": reference("include")
        },
        "anyOf": [{ "required": ["name", "stages"] }, { "required": ["include"] }],
        "additionalProperties": false,
        "$defs": definitions
    }))
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/$defs/{name}") })
}

fn cache() -> Value {
    let limit = |about: &str| json!({ "description": about, "$ref": "#/$defs/size" });
    json!({
        "description": "Budgets of the three shelves",
        "type": "object",
        "properties": {
            "disk": {
                "description": "Durable artifacts",
                "type": "object",
                "properties": { "limit": limit("Bytes they may take, such as 20 GiB. Default: no limit") },
                "required": ["limit"],
                "additionalProperties": false
            },
            "nvme": {
                "description": "Bricks of volumes on a fast local disk, laid out for random patches; evictable",
                "type": "object",
                "properties": { "dir": { "description": "Folder on the fast disk", "type": "string" }, "limit": limit("Such as 2 GiB") },
                "required": ["dir", "limit"],
                "additionalProperties": false
            },
            "ram": {
                "description": "Decoded bricks in memory",
                "type": "object",
                "properties": { "limit": limit("A size, or a share of what --memory allows such as 25%") },
                "required": ["limit"],
                "additionalProperties": false
            }
        },
        "additionalProperties": false
    })
}

fn node(defs: &[StageDef], rules: Vec<Value>) -> Value {
    let stages: Vec<Value> = defs.iter().map(|d| json!({ "const": d.info.name, "description": d.info.summary })).collect();
    json!({
        "type": "object",
        "properties": {
            "uses": { "description": "The stage", "type": "string", "anyOf": stages },
            "from": {
                "description": "The node this one takes from, or a node for each port",
                "anyOf": [{ "type": "string" }, { "type": "object", "additionalProperties": { "type": "string" } }]
            },
            "with": { "description": "The stage's settings", "type": "object" },
            "keep": or_variable(json!({
                "description": "Write the voxels of a volume (true), or leave them to whoever asks for them (false). Default: written, but for a step between two volumes of a chain",
                "type": "boolean"
            })),
            "include": reference("include")
        },
        "anyOf": [{ "required": ["uses"] }, { "required": ["include"] }],
        "additionalProperties": false,
        "allOf": rules
    })
}

/// If `uses` is this stage, then `from` has its ports and `with` its fields.
fn stage_rule(d: &StageDef, definitions: &mut Map<String, Value>) -> Value {
    let stage = d.info.name;
    let mut with = serde_json::to_value((d.schema)()).expect("a schema is plain data");
    if let Some(Value::Object(inner)) = with.as_object_mut().and_then(|w| w.remove("$defs")) {
        for (name, mut schema) in inner {
            for_editors(&mut schema, stage);
            definitions.insert(format!("{stage}.{name}"), schema);
        }
    }
    for_editors(&mut with, stage);
    let mut needs_with = false;
    if let Some(o) = with.as_object_mut() {
        o.remove("$schema");
        o.remove("title");
        if let Some(required) = o.remove("required") {
            needs_with = true;
            o.insert("anyOf".into(), json!([{ "required": required }, { "required": ["include"] }]));
        }
        let properties = o.entry("properties").or_insert_with(|| json!({}));
        properties.as_object_mut().expect("`properties` is an object").insert("include".into(), reference("include"));
    }
    definitions.insert(format!("{stage}.with"), with);

    let ports: Map<String, Value> = d
        .info
        .ports
        .iter()
        .map(|p| (p.name.to_string(), json!({ "description": format!("{} ({})", p.about, p.kind), "type": "string" })))
        .collect();
    let required: Vec<&str> = d.info.ports.iter().filter(|p| p.required).map(|p| p.name).collect();
    let by_port = json!({ "type": "object", "properties": ports, "required": required, "additionalProperties": false });
    let from = match (d.info.ports, required.len()) {
        ([], _) => Value::Bool(false),
        ([_], _) | (_, 1) => json!({ "anyOf": [{ "type": "string" }, by_port] }),
        _ => by_port,
    };
    let mut needed: Vec<&str> = Vec::new();
    needed.extend((!required.is_empty()).then_some("from"));
    needed.extend(needs_with.then_some("with"));
    json!({
        "if": { "properties": { "uses": { "const": stage } }, "required": ["uses"] },
        "then": {
            "properties": { "from": from, "with": reference(&format!("{stage}.with")) },
            "anyOf": [{ "required": needed }, { "required": ["include"] }]
        }
    })
}

/// Renames references to the stage's own definitions, lets variables stand for values, and makes every choice an `anyOf` (a `${VARIABLE}` fits several).
fn for_editors(schema: &mut Value, stage: &str) {
    match schema {
        Value::Array(all) => all.iter_mut().for_each(|v| for_editors(v, stage)),
        Value::Object(o) => {
            if let Some(choices) = o.remove("oneOf") {
                o.insert("anyOf".into(), choices);
            }
            if let Some(Value::String(r)) = o.get_mut("$ref") {
                *r = r.replacen("#/$defs/", &format!("#/$defs/{stage}."), 1);
            }
            for (key, value) in o.iter_mut() {
                match (key.as_str(), value) {
                    // Names of fields, not keywords.
                    ("properties" | "patternProperties" | "$defs", Value::Object(named)) => {
                        named.values_mut().for_each(|v| for_editors(v, stage))
                    }
                    ("items" | "prefixItems" | "anyOf" | "allOf" | "additionalProperties", value) => for_editors(value, stage),
                    _ => {}
                }
            }
            let is_value = o.get("type").is_some_and(|t| {
                let all: Vec<&Value> = t.as_array().map_or_else(|| vec![t], |a| a.iter().collect());
                all.iter().any(|t| ["integer", "number", "boolean", "array"].contains(&t.as_str().unwrap_or_default()))
            });
            if is_value || o.contains_key("enum") {
                *schema = or_variable(schema.take());
            }
        }
        _ => {}
    }
}

/// The schema, or a variable; description and default stay outside, where editors look for them.
fn or_variable(mut schema: Value) -> Value {
    let mut out = Map::new();
    if let Some(o) = schema.as_object_mut() {
        for key in ["description", "default"] {
            if let Some(v) = o.remove(key) {
                out.insert(key.into(), v);
            }
        }
    }
    out.insert("anyOf".into(), json!([schema, reference("variable")]));
    Value::Object(out)
}
