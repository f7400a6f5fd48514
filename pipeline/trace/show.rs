//! A [`Trace`] as a tree for a terminal and as a Mermaid graph.

use std::collections::{BTreeMap, BTreeSet};

use crate::trace::{Trace, Tree};

pub fn tree(traces: &[Trace]) -> String {
    let mut out = String::new();
    for (i, t) in traces.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        out.push_str(&t.start.title);
        out.push('\n');
        for (word, branches) in [("made from", &t.made_from), ("went into", &t.went_into)] {
            out.push_str(word);
            out.push_str(if branches.is_empty() { " nothing\n" } else { "\n" });
            lines(branches, "", &mut out);
        }
    }
    out
}

fn lines(branches: &[Tree], indent: &str, out: &mut String) {
    for (i, b) in branches.iter().enumerate() {
        let is_last = i + 1 == branches.len();
        let above = if b.seen { "  (see above)" } else { "" };
        out.push_str(&format!("{indent}{} {}{above}\n", if is_last { "└─" } else { "├─" }, b.title));
        lines(&b.next, &format!("{indent}{}", if is_last { "   " } else { "│  " }), out);
    }
}

pub fn mermaid(traces: &[Trace]) -> String {
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut edges: BTreeSet<(String, String)> = BTreeSet::new();
    for t in traces {
        names.insert(t.start.id.clone(), t.start.title.clone());
        walk(&t.start.id, &t.made_from, false, &mut names, &mut edges);
        walk(&t.start.id, &t.went_into, true, &mut names, &mut edges);
    }
    let mut out = String::from("flowchart LR\n");
    for (id, title) in &names {
        out.push_str(&format!("  {}[\"{}\"]\n", safe(id), title.replace('"', "#quot;")));
    }
    for (from, to) in &edges {
        out.push_str(&format!("  {} --> {}\n", safe(from), safe(to)));
    }
    out
}

fn walk(at: &str, branches: &[Tree], forward: bool, names: &mut BTreeMap<String, String>, edges: &mut BTreeSet<(String, String)>) {
    for b in branches {
        // The name of a port belongs to an edge; what stands at its end is the same thing everywhere.
        let title = b.title.split_once(" ← ").map_or(b.title.as_str(), |(_, t)| t);
        names.entry(b.id.clone()).or_insert_with(|| title.to_string());
        edges.insert(if forward { (at.into(), b.id.clone()) } else { (b.id.clone(), at.into()) });
        walk(&b.id, &b.next, forward, names, edges);
    }
}

fn safe(id: &str) -> String {
    format!("a{}", id.replace(|c: char| !c.is_ascii_alphanumeric(), "_"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn branch(id: &str, title: &str, next: Vec<Tree>) -> Tree {
        Tree { id: id.into(), title: title.into(), seen: false, next }
    }

    fn example() -> Trace {
        let source = branch("s", "table ← series: index  aaaa", vec![branch("s-1", "MR image: 38 instances of series 1.2", vec![])]);
        let again = Tree { seen: true, ..branch("s", "series ← series: index  aaaa", vec![]) };
        let image = branch("i", "image ← image: assemble x  bbbb", vec![source]);
        Trace {
            start: branch("m", "masks: annotate x  cccc", vec![]),
            made_from: vec![image, again],
            went_into: vec![branch("t", "net: train  dddd", vec![branch("t-o", "infer of 3 other cases", vec![])])],
        }
    }

    #[test]
    fn a_tree_leads_back_and_forward() {
        insta::assert_snapshot!(tree(&[example()]), @r"
        masks: annotate x  cccc
        made from
        ├─ image ← image: assemble x  bbbb
        │  └─ table ← series: index  aaaa
        │     └─ MR image: 38 instances of series 1.2
        └─ series ← series: index  aaaa  (see above)
        went into
        └─ net: train  dddd
           └─ infer of 3 other cases
        ");
    }

    #[test]
    fn a_graph_draws_each_thing_once() {
        insta::assert_snapshot!(mermaid(&[example()]), @r#"
        flowchart LR
          ai["image: assemble x  bbbb"]
          am["masks: annotate x  cccc"]
          as["series: index  aaaa"]
          as_1["MR image: 38 instances of series 1.2"]
          at["net: train  dddd"]
          at_o["infer of 3 other cases"]
          ai --> am
          am --> at
          as --> ai
          as --> am
          as_1 --> as
          at --> at_o
        "#);
    }
}
