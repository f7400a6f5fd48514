//! The language as texts: the graph of a plan, the list of stages, the help of one, the table of the README. All of it comes from `Info` and the doc
//! comments of the stages. The schema for editors stands in `schema.rs`.

use serde_json::Value;
use voxmill_schemas::artifact::{Kind, Scope};
use voxmill_stages::stage::{Info, StageDef};

use crate::plan::Plan;
use crate::words::{article, described, expected, merged};

pub use crate::schema::pipeline_schema;

const WIDTH: usize = 100;

/// The language on half a page, for `voxmill check --help`.
pub const IN_SHORT: &str = "\
The language in short:
  name: knee_ct              names the pipeline
  seed: 7                    equal seeds give equal bytes (default 0)
  workspace: target/knee     everything it makes (default work/NAME)
  cache:                     budgets: a size, or for ram a share of --memory
    disk: { limit: 20 GiB }
    nvme: { dir: /fast/knee, limit: 4 GiB }
    ram: { limit: 25% }
  include: shared/base.yaml  in any mapping: takes over the keys of a file or of a list of files;
                             own keys win, mappings are merged
  stages:
    NODE:                    one use of a stage; the order is free
      uses: STAGE            `voxmill stages` lists them, `voxmill stages STAGE` explains one
      from: NODE             where the stage takes one thing, else from: { PORT: NODE, … }
      with: { key: value }   the stage's settings

Set from outside:
  \"${NAME:-default}\"        a variable, from --set NAME=value or the environment; it becomes a
                             number where one is wanted; $${ writes a plain ${
  --set NODE.key.sub=value   overrides a value under a node's `with`; the value is YAML
  --set seed=9               overrides a value of the head, as does cache.ram.limit=1GiB

Editors complete and check with `voxmill schema > pipeline.schema.json` and this first line:
  # yaml-language-server: $schema=pipeline.schema.json";

/// A flow chart for Markdown: the form of a node says what it gives (cylinder: table, box: volume, hexagon: model, flag: files).
pub fn graph_mermaid(plan: &Plan) -> String {
    let mut out = String::from("flowchart LR\n");
    for n in &plan.nodes {
        let text = format!("\"<b>{}</b><br/>{}\"", n.name, n.def.info.name);
        let shape = match n.def.info.gives {
            Kind::Table => format!("[({text})]"),
            Kind::Volume => format!("[{text}]"),
            Kind::Model => format!("{{{{{text}}}}}"),
            Kind::Files => format!(">{text}]"),
        };
        out.push_str(&format!("  {}{shape}\n", mermaid_id(&n.name)));
    }
    for n in &plan.nodes {
        for (port, up) in n.ups() {
            let label = edge(&n.def.info, port);
            out.push_str(&format!("  {} -->|{label}| {}\n", mermaid_id(&plan.nodes[up].name), mermaid_id(&n.name)));
        }
    }
    out
}

/// Mermaid reads some words (`end`, `graph`) as its own.
fn mermaid_id(name: &str) -> String {
    format!("n_{}", name.replace('-', "_h_"))
}

/// The same for Graphviz.
pub fn graph_dot(plan: &Plan) -> String {
    let mut out = String::from(
        "digraph pipeline {\n  rankdir=LR;\n  node [fontname=\"sans-serif\"];\n  edge [fontname=\"sans-serif\", fontsize=10];\n",
    );
    for n in &plan.nodes {
        let shape = match n.def.info.gives {
            Kind::Table => "cylinder",
            Kind::Volume => "box",
            Kind::Model => "hexagon",
            Kind::Files => "note",
        };
        out.push_str(&format!("  \"{}\" [shape={shape}, label=\"{}\\n{}\"];\n", n.name, n.name, n.def.info.name));
    }
    for n in &plan.nodes {
        for (port, up) in n.ups() {
            out.push_str(&format!("  \"{}\" -> \"{}\" [label=\"{}\"];\n", plan.nodes[up].name, n.name, edge(&n.def.info, port)));
        }
    }
    out.push_str("}\n");
    out
}

/// What an edge carries; the port's name where the stage has several.
fn edge(info: &Info, port: &str) -> String {
    let kind = info.ports.iter().find(|p| p.name == port).map_or(info.gives, |p| p.kind);
    if info.ports.len() > 1 { format!("{port}: {kind}") } else { kind.to_string() }
}

/// Every stage: what it does, and below that what it takes and gives.
pub fn stages_list(defs: &[StageDef]) -> String {
    let width = defs.iter().map(|d| d.info.name.len()).max().unwrap_or(0);
    let indent = " ".repeat(width + 2);
    let mut out = String::new();
    for d in defs {
        out.push_str(&wrapped(d.info.summary, &format!("{:width$}  ", d.info.name), &indent));
        let takes = takes(&d.info);
        let arrow = if takes.is_empty() { "→" } else { " →" };
        out.push_str(&format!("{indent}{takes}{arrow} {}\n", d.info.gives));
    }
    out.push_str("\nvoxmill stages NAME explains one.\n");
    out
}

/// Kinds of the required ports, then the optional ones in brackets; a source takes nothing.
fn takes(info: &Info) -> String {
    let one = |p: &voxmill_schemas::artifact::Port| if p.required { p.kind.to_string() } else { format!("[{}]", p.kind) };
    info.ports.iter().map(one).collect::<Vec<_>>().join(" + ")
}

/// The table of the README, between its head and its last row.
pub fn readme_table(defs: &[StageDef]) -> String {
    let mut out = String::from("| Stage | Takes | Gives | What it does |\n|---|---|---|---|\n");
    for d in defs {
        let takes =
            d.info.ports.iter().map(|p| if p.required { format!("{} ({})", p.name, p.kind) } else { format!("[{}] ({})", p.name, p.kind) });
        let takes = takes.collect::<Vec<_>>().join(", ");
        let takes = if takes.is_empty() { "—".into() } else { takes };
        out.push_str(&format!("| `{}` | {takes} | {} | {} |\n", d.info.name, d.info.gives, d.info.summary.replace('|', "\\|")));
    }
    out
}

/// The help of one stage: what it does, its ports, its fields with their doc comments, an example.
pub fn stage_help(d: &StageDef) -> String {
    let info = &d.info;
    let mut out = wrapped(info.summary, &format!("{}: ", info.name), "  ");
    let scope = match (info.ports.is_empty(), info.scope) {
        (true, _) => "once; it looks at the world outside every time",
        (_, Scope::Case) => "for each case",
        (_, Scope::Set) => "once, over all cases",
    };
    out.push_str(&format!("\nRuns   {scope}\n"));
    let width = info.ports.iter().map(|p| p.name.len()).max().unwrap_or(0);
    for (i, p) in info.ports.iter().enumerate() {
        let optional = if p.required { "" } else { " (optional)" };
        let head = if i == 0 { "Takes" } else { "" };
        let head = format!("{head:5}  {:width$}  {:6}  ", p.name, p.kind.to_string());
        let indent = " ".repeat(head.len());
        out.push_str(&wrapped(&format!("{}{optional}", p.about), &head, &indent));
    }
    out.push_str(&format!("Gives  {}\n", info.gives));
    let schema = serde_json::to_value((d.schema)()).expect("a schema is plain data");
    out.push_str("\nWith\n");
    let before = out.len();
    fields(&schema, &schema, 1, &mut out);
    if out.len() == before {
        out.push_str("  nothing: this stage has no settings\n");
    }
    out.push_str("\nExample\n  node:\n");
    info.example.trim_matches('\n').lines().for_each(|l| out.push_str(&format!("    {l}\n")));
    out
}

/// The fields of an object schema, required ones first, and below each what its shape holds.
fn fields(root: &Value, schema: &Value, depth: usize, out: &mut String) {
    let schema = merged(root, schema);
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    let required: Vec<&str> = schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let (first, rest): (Vec<_>, Vec<_>) = properties.iter().partition(|(name, _)| required.contains(&name.as_str()));
    for (name, sub) in first.into_iter().chain(rest) {
        let whole = merged(root, sub);
        if whole.get("const").is_some() {
            continue;
        }
        let note = match sub.get("default").or(whole.get("default")) {
            _ if required.contains(&name.as_str()) => " (required)".to_string(),
            Some(Value::Null) | None => String::new(),
            // What its fields are when nothing is written stands beside them.
            Some(Value::Object(_)) if inner_object(root, &whole).is_some() => String::new(),
            Some(Value::Array(a)) if a.is_empty() => " [default: none]".into(),
            Some(v) => format!(" [default: {}]", flow(v)),
        };
        field(root, name, sub, &note, depth, out);
    }
}

fn field(root: &Value, name: &str, sub: &Value, note: &str, depth: usize, out: &mut String) {
    let pad = "  ".repeat(depth);
    let whole = merged(root, sub);
    let deep = depth < 4;
    let shapes = if deep { variants(root, &whole) } else { Vec::new() };
    let inner = if deep { inner_object(root, &whole) } else { None };
    let kind = match (&shapes[..], &inner) {
        ([], Some(_)) => article(&whole).to_string(),
        ([_, ..], _) => choice_head(root, &whole),
        _ => expected(root, sub),
    };
    let colon = if shapes.is_empty() { "" } else { ":" };
    out.push_str(&wrapped(&format!("{kind}{note}{colon}"), &format!("{pad}{name}  "), &format!("{pad}    ")));
    if let Some(text) = full_description(root, sub) {
        out.push_str(&wrapped(&text, &format!("{pad}    "), &format!("{pad}    ")));
    }
    for (variant, about, shape) in shapes {
        let about = about.map(|a| format!(": {a}")).unwrap_or_default();
        out.push_str(&wrapped(&about, &format!("{pad}  · {variant}"), &format!("{pad}      ")));
        if let Some(shape) = shape {
            fields(root, &shape, depth + 2, out);
        }
    }
    if let Some(inner) = inner {
        fields(root, &inner, depth + 1, out);
    }
}

/// How a choice between shapes is written, in a few words.
fn choice_head(root: &Value, whole: &Value) -> String {
    let list = whole.get("items").is_some();
    let target = whole.get("items").map_or_else(|| whole.clone(), |i| merged(root, i));
    let tags = target.get("oneOf").or(target.get("anyOf")).and_then(Value::as_array).cloned().unwrap_or_default();
    let tag = tags.iter().find_map(|b| {
        let b = merged(root, b);
        let properties = b.get("properties")?.as_object()?.clone();
        properties.iter().find(|(_, p)| merged(root, p).get("const").is_some()).map(|(k, _)| k.clone())
    });
    match (list, tag) {
        (true, Some(tag)) => format!("a list; `{tag}` says what an item is"),
        (true, None) => "a list of".into(),
        (false, Some(tag)) => format!("a mapping; `{tag}` says which"),
        (false, None) => "one of".into(),
    }
}

/// Variants of an enum with shapes: name, what it is, the shape of its fields. Empty for everything else.
fn variants(root: &Value, whole: &Value) -> Vec<(String, Option<String>, Option<Value>)> {
    let target = whole.get("items").map_or_else(|| whole.clone(), |i| merged(root, i));
    let Some(branches) = target.get("oneOf").or(target.get("anyOf")).and_then(Value::as_array) else { return Vec::new() };
    let branches: Vec<Value> = branches.iter().map(|b| merged(root, b)).filter(|b| b.get("type") != Some(&"null".into())).collect();
    if let [one] = &branches[..]
        && tag_of(root, one).is_none()
    {
        // Option<T>
        return variants(root, one);
    }
    let mut out = Vec::new();
    for b in &branches {
        let about = b.get("description").and_then(Value::as_str).map(|t| t.split_whitespace().collect::<Vec<_>>().join(" "));
        if let Some(word) = b.get("const").and_then(Value::as_str) {
            out.push((word.to_string(), about, None));
        } else if let Some(words) = b.get("enum").and_then(Value::as_array) {
            out.extend(words.iter().filter_map(Value::as_str).map(|w| (w.to_string(), None, None)));
        } else if let Some(properties) = b.get("properties").and_then(Value::as_object) {
            match (tag_of(root, b), properties.iter().next()) {
                (Some(tag), _) => out.push((tag, about, Some(b.clone()))),
                (None, Some((name, shape))) if properties.len() == 1 => {
                    let about = about.or_else(|| described(root, shape));
                    out.push((name.clone(), about, Some(merged(root, shape))));
                }
                _ => return Vec::new(),
            }
        } else {
            return Vec::new();
        }
    }
    // Bare words with nothing to say of them stand in the line of the field.
    if out.iter().all(|(_, about, shape)| about.is_none() && shape.is_none()) { Vec::new() } else { out }
}

/// The fixed word that a branch of a tagged choice begins with.
fn tag_of(root: &Value, branch: &Value) -> Option<String> {
    branch.get("properties")?.as_object()?.values().find_map(|p| Some(merged(root, p).get("const")?.as_str()?.to_string()))
}

/// The object that a field holds, or that its list or map holds.
fn inner_object(root: &Value, whole: &Value) -> Option<Value> {
    let mut at = whole.clone();
    for _ in 0..4 {
        if at
            .get("properties")
            .is_some_and(|p| p.as_object().is_some_and(|p| p.len() > 3 || p.values().any(|v| described(root, v).is_some())))
        {
            return Some(at);
        }
        let branches = at.get("anyOf").and_then(Value::as_array).cloned().unwrap_or_default();
        let only: Vec<_> = branches.iter().filter(|b| b.get("type") != Some(&"null".into())).collect();
        let next = match (&only[..], at.get("items"), at.get("additionalProperties").filter(|a| a.is_object())) {
            ([one], ..) => (*one).clone(),
            (_, Some(items), _) => items.clone(),
            (_, _, Some(values)) => values.clone(),
            _ => return None,
        };
        at = merged(root, &next);
    }
    None
}

fn full_description(root: &Value, sub: &Value) -> Option<String> {
    let whole = merged(root, sub);
    let text = sub.get("description").or(whole.get("description"))?.as_str()?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// A value in YAML's flow style.
fn flow(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        Value::Array(a) => format!("[{}]", a.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Object(o) if o.is_empty() => "{}".into(),
        Value::Object(o) => format!("{{ {} }}", o.iter().map(|(k, v)| format!("{k}: {}", flow(v))).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

/// Words broken into lines of at most [`WIDTH`] characters.
fn wrapped(text: &str, head: &str, indent: &str) -> String {
    let mut out = String::new();
    let mut line = head.to_string();
    let mut is_empty = true;
    for word in text.split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            out.push_str(line.trim_end());
            out.push('\n');
            line = indent.to_string();
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    out.push_str(line.trim_end());
    out.push('\n');
    out
}
