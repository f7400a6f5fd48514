//! YAML text → a tree with places. The door for the YAML crate. Anchors, aliases and merge keys (`<<`) are resolved here; tags, several documents and keys
//! that are no text are refused.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde_saphyr::granit_parser::{self, ErrorKind, Event, Parser, ScalarStyle, ScanError, Span, Tag};

use super::Mistake;
use super::tree::{Data, Entry, Node, Place, Scalar, Source};

/// Values that a file may hold with everything it includes: aliases could make a small text very large.
const MAX_NODES: usize = 200_000;

/// Parses part of a source. `None`: nothing stands there, or a mistake of syntax was added.
pub fn parse(source: &Arc<Source>, range: Range<usize>, mistakes: &mut Vec<Mistake>) -> Option<Node> {
    let options = granit_parser::options! { emit_comments: false, flow_nesting_limit: 64, block_nesting_limit: 64 };
    let offset = range.start;
    let text = &source.text[range];
    let mut b = Builder {
        parser: Parser::new_from_str_with_options(text, options),
        source,
        text,
        offset,
        anchors: BTreeMap::new(),
        n_nodes: 0,
        mistakes,
    };
    match b.document() {
        Ok(node) => node,
        Err(mistake) => {
            b.mistakes.push(*mistake);
            None
        }
    }
}

struct Builder<'a, P> {
    parser: P,
    source: &'a Arc<Source>,
    text: &'a str,
    offset: usize,
    anchors: BTreeMap<usize, (Node, usize)>,
    n_nodes: usize,
    mistakes: &'a mut Vec<Mistake>,
}

type Step<T> = Result<T, Box<Mistake>>;

impl<'a, P: Iterator<Item = Result<(Event<'a>, Span), ScanError>>> Builder<'a, P> {
    fn document(&mut self) -> Step<Option<Node>> {
        let mut root = None;
        loop {
            match self.next()? {
                None | Some((Event::StreamEnd, _)) => return Ok(root),
                Some((Event::DocumentStart(..), span)) if root.is_some() => {
                    let place = self.place(span);
                    let help = "a pipeline is one document: remove the line `---`, or keep each pipeline in its own file";
                    return Err(Box::new(Mistake::at(&place, "a second document begins here", help)));
                }
                Some((Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd, _)) => {}
                Some((event, span)) => root = Some(self.node(event, span)?),
            }
        }
    }

    fn next(&mut self) -> Step<Option<(Event<'a>, Span)>> {
        loop {
            match self.parser.next() {
                None => return Ok(None),
                Some(Ok((Event::Anchor(..) | Event::Comment(..), _))) => {}
                Some(Ok(found)) => return Ok(Some(found)),
                Some(Err(e)) => return Err(Box::new(self.syntax(&e))),
            }
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span) -> Step<Node> {
        let before = self.n_nodes;
        self.count(1, span)?;
        let place = self.place(span);
        let (mut node, anchor) = match event {
            Event::Alias(id) => {
                let (node, size) = self.anchors.get(&id).cloned().ok_or_else(|| {
                    Box::new(Mistake::at(
                        &place,
                        "this alias stands inside what it names",
                        "move the anchor `&` to a value that ends before it",
                    ))
                })?;
                self.count(size, span)?;
                (node, 0)
            }
            Event::Scalar(text, style, anchor, tag) => {
                let is_text = self.tag(tag.as_deref(), span);
                let is_quoted = style != ScalarStyle::Plain || is_text;
                (Node { data: Data::Scalar(Scalar { text: text.into_owned(), is_quoted, has_variable: false }), place }, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.tag(tag.as_deref(), span);
                let mut items = Vec::new();
                let end = loop {
                    match self.expect()? {
                        (Event::SequenceEnd, end) => break end,
                        (event, span) => items.push(self.node(event, span)?),
                    }
                };
                (Node { data: Data::List(items), place: self.between(&place, end) }, anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.tag(tag.as_deref(), span);
                let mut entries = Vec::new();
                let end = loop {
                    match self.expect()? {
                        (Event::MappingEnd, end) => break end,
                        (event, span) => self.entry(event, span, &mut entries)?,
                    }
                };
                (Node { data: Data::Map(self.merged(entries)), place: self.between(&place, end) }, anchor)
            }
            _ => (Node { data: Data::Scalar(Scalar::default()), place }, 0),
        };
        if node.place.end < node.place.start {
            node.place.end = node.place.start;
        }
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), self.n_nodes - before));
        }
        Ok(node)
    }

    fn entry(&mut self, event: Event<'a>, span: Span, entries: &mut Vec<Entry>) -> Step<()> {
        let key = self.node(event, span)?;
        let (event, span) = self.expect()?;
        let value = self.node(event, span)?;
        let Data::Scalar(text) = &key.data else {
            let help = "a key is one word; a value in braces or brackets that begins a line needs quotes around it";
            self.mistakes.push(Mistake::at(&key.place, format!("a key cannot be {}", key.what()), help));
            return Ok(());
        };
        if let Some(first) = entries.iter().find(|e| e.key == text.text && e.key != "<<") {
            let twice = Mistake::at(&key.place, format!("`{}` is given twice", text.text), "keep one of them");
            self.mistakes.push(twice.label("again here").and(&first.key_place, "first here"));
            return Ok(());
        }
        entries.push(Entry { key: text.text.clone(), key_place: key.place, value });
        Ok(())
    }

    /// Resolves `<<: *anchor` (one mapping or a list of them): own keys win, then the earlier mapping.
    fn merged(&mut self, entries: Vec<Entry>) -> Vec<Entry> {
        let (merges, mut own): (Vec<_>, Vec<_>) = entries.into_iter().partition(|e| e.key == "<<");
        for merge in merges {
            let parts = match merge.value.data {
                Data::List(parts) => parts,
                _ => vec![merge.value],
            };
            for part in parts {
                let Data::Map(more) = part.data else {
                    self.mistakes.push(Mistake::at(
                        &merge.key_place,
                        "`<<` takes a mapping",
                        "write <<: *ANCHOR where &ANCHOR marks a mapping",
                    ));
                    continue;
                };
                for e in more {
                    if !own.iter().any(|o| o.key == e.key) {
                        own.push(e);
                    }
                }
            }
        }
        own
    }

    fn expect(&mut self) -> Step<(Event<'a>, Span)> {
        let end = Place { source: self.source.clone(), start: self.offset + self.text.len(), end: self.offset + self.text.len() };
        self.next()?.ok_or_else(|| Box::new(Mistake::at(&end, "the text ends too early", "close every bracket, brace and quote")))
    }

    fn count(&mut self, n: usize, span: Span) -> Step<()> {
        self.n_nodes += n;
        if self.n_nodes <= MAX_NODES {
            return Ok(());
        }
        let place = self.place(span);
        Err(Box::new(Mistake::at(
            &place,
            format!("the file holds more than {MAX_NODES} values"),
            "use fewer aliases: a pipeline is a short text",
        )))
    }

    /// Whether the tag makes a text of the scalar; other tags are refused.
    fn tag(&mut self, tag: Option<&Tag>, span: Span) -> bool {
        let Some(tag) = tag else { return false };
        if tag.core_suffix() == Some("str") {
            return true;
        }
        let place = self.place(span);
        self.mistakes.push(Mistake::at(
            &place,
            format!("the tag {} means nothing here", tag.original()),
            "remove it: values are told apart without tags",
        ));
        false
    }

    fn byte(&self, m: granit_parser::Marker) -> usize {
        let at = m.byte_offset().unwrap_or_else(|| self.text.char_indices().nth(m.index()).map_or(self.text.len(), |(i, _)| i));
        self.offset + at.min(self.text.len())
    }

    fn place(&self, span: Span) -> Place {
        Place { source: self.source.clone(), start: self.byte(span.start), end: self.byte(span.end) }
    }

    /// From a start to an end, without the white space and comments that a block ends with.
    fn between(&self, start: &Place, end: Span) -> Place {
        let end = self.byte(end.end).max(start.end);
        let mut text = &self.source.text[start.start..end];
        loop {
            text = text.trim_end();
            let line = text.rfind('\n').map_or(0, |i| i + 1);
            if line == 0 || !text[line..].trim_start().starts_with('#') {
                break;
            }
            text = &text[..line];
        }
        Place { end: start.start + text.len(), ..start.clone() }
    }

    fn syntax(&self, e: &ScanError) -> Mistake {
        let at = self.byte(*e.marker());
        let rest = &self.source.text[at..];
        // The character, or the end of the line before where the parser stopped at nothing.
        let width = rest.chars().next().filter(|c| !c.is_whitespace()).map_or(0, char::len_utf8);
        let start = if width == 0 { self.source.text[..at].trim_end().len() } else { at };
        let place = Place { source: self.source.clone(), start, end: start + width };
        if self.source.text[..at].ends_with('$') && rest.starts_with('{') {
            let end = rest.find(['}', '\n']).map_or(at + 1, |i| at + i + 1);
            let place = Place { source: self.source.clone(), start: at - 1, end };
            let help = format!("write \"{}\"", place.text().trim());
            return Mistake::at(&place, "inside { } and [ ] a variable needs quotes around it", help);
        }
        let help = match e.kind() {
            ErrorKind::TabNotAllowed | ErrorKind::TabInBlockIndentation | ErrorKind::TabInIndentation | ErrorKind::TabInPlainScalar => {
                "indent with spaces, not with tabs"
            }
            ErrorKind::UnclosedQuotedScalar | ErrorKind::InvalidQuotedScalarIndent => "close the quote",
            ErrorKind::UnexpectedEofFlowMapping
            | ErrorKind::UnexpectedEofFlowSequence
            | ErrorKind::UnclosedFlowCollection { .. }
            | ErrorKind::ExpectedFlowMappingSeparator
            | ErrorKind::ExpectedFlowSequenceSeparator
            | ErrorKind::MisplacedFlowCollectionEnd
            | ErrorKind::MismatchedFlowCollectionEnd { .. } => "look for a missing comma, bracket or brace",
            ErrorKind::MappingValueNotAllowed | ErrorKind::InvalidColonPlacement => "a value that holds `: ` needs quotes around it",
            ErrorKind::UnknownAnchor => "mark a value above with &NAME before *NAME repeats it",
            ErrorKind::UnexpectedCharacter { .. } => "a value that begins with @, `, % or a control character needs quotes around it",
            _ => "look at the indentation of this line and the one above: keys of one mapping begin in one column",
        };
        // The parser's words where they say enough, ours where they speak of flow, blocks and tokens.
        let what = match e.kind() {
            ErrorKind::ExpectedFlowMappingSeparator => "expected `,` or `}` here".into(),
            ErrorKind::ExpectedFlowSequenceSeparator => "expected `,` or `]` here".into(),
            ErrorKind::ExpectedBlockMappingKey => "expected a key here".into(),
            ErrorKind::ExpectedBlockSequenceEntry => "expected an item with `- ` here".into(),
            ErrorKind::UnknownAnchor => "no value above is marked with this name".into(),
            ErrorKind::MappingValueNotAllowed => "a `: ` cannot stand here".into(),
            ErrorKind::TabNotAllowed | ErrorKind::TabInBlockIndentation | ErrorKind::TabInIndentation => {
                "a tab stands in the indentation".into()
            }
            _ => e.info(),
        };
        Mistake::at(&place, format!("this is not YAML: {what}"), help)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tree(text: &str) -> (Option<Node>, Vec<Mistake>) {
        let source = Arc::new(Source { name: "t".into(), text: text.into() });
        let mut mistakes = Vec::new();
        let node = parse(&source, 0..text.len(), &mut mistakes);
        (node, mistakes)
    }

    #[test]
    fn places_are_exact() {
        let text = "ä: 1\nlist: [a, \"b c\"]\nblock:\n  x: 1\n  y: 2 # two\n\n# the end\n";
        let (node, mistakes) = tree(text);
        assert!(mistakes.is_empty(), "{mistakes:?}");
        let node = node.unwrap();
        assert_eq!(node.get("list").unwrap().value.place.text(), "[a, \"b c\"]");
        assert_eq!(node.get("ä").unwrap().key_place.text(), "ä");
        let block = node.get("block").unwrap();
        assert_eq!(block.value.place.text().trim_end(), "x: 1\n  y: 2 # two");
        assert_eq!(block.value.get("y").unwrap().value.place.line_column(), (5, 6));
        assert_eq!(block.key_place.line_column(), (3, 1));
    }

    #[test]
    fn anchors_and_merges_are_resolved() {
        let (node, mistakes) = tree("a: &x { p: 1, q: 2 }\nb: { <<: *x, q: 3 }\nc: *x\n");
        assert!(mistakes.is_empty(), "{mistakes:?}");
        let node = node.unwrap();
        let b = &node.get("b").unwrap().value;
        assert_eq!(b.get("p").unwrap().value.place.text(), "1");
        assert_eq!(b.get("q").unwrap().value.place.text(), "3");
        assert_eq!(node.get("c").unwrap().value.map().unwrap().len(), 2);
    }

    #[test]
    fn a_bomb_of_aliases_is_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..12 {
            let alias = format!("*a{}", i - 1);
            text += &format!("a{i}: &a{i} [{}]\n", vec![alias; 10].join(", "));
        }
        let (_, mistakes) = tree(&text);
        assert!(mistakes[0].message.contains("more than"), "{mistakes:?}");
    }

    #[test]
    fn nothing_panics_on_broken_text() {
        for text in [
            "",
            "a: [",
            "a: {b",
            "\"",
            "a: 'x",
            "\t- a",
            "? [a]: b",
            "a: *b",
            "a: &a [*a]",
            "--- a\n--- b",
            "a: b: c",
            "%YAML 3.0\n---\na",
            "!!x a",
            "- - - -",
        ] {
            let (node, mistakes) = tree(text);
            assert!(node.is_some() || !mistakes.is_empty() || text.is_empty(), "{text}");
            mistakes.iter().for_each(|m| assert!(!m.help.is_empty()));
        }
    }
}
