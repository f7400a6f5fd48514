//! The words that name a patient in a workspace (its name there, cases, studies, series, instances, files), found in texts and taken out of them.
//! A word counts where it stands alone: `12-3` and `12.dcm` hold the word `12-3` and `12`, `112` holds neither. Words of less than five letters count
//! only where they are the whole text, or every number would name somebody.

use std::collections::BTreeSet;

use aho_corasick::AhoCorasick;
use serde_json::Value;

const SHORTEST_INSIDE: usize = 5;

pub struct Words {
    /// Sorted; a word's place here is in the name that stands for it.
    all: Vec<String>,
    inside: Vec<usize>,
    finder: AhoCorasick,
    /// What the stand-ins begin with.
    receipt: String,
}

impl Words {
    pub fn new(words: BTreeSet<String>, receipt: &str) -> Self {
        let all: Vec<String> = words.into_iter().filter(|w| !w.is_empty()).collect();
        let inside: Vec<usize> = (0..all.len()).filter(|i| all[*i].len() >= SHORTEST_INSIDE).collect();
        let finder = AhoCorasick::new(inside.iter().map(|i| &all[*i])).expect("as many words as an archive has files fit");
        Self { all, inside, finder, receipt: receipt.into() }
    }

    /// Whether some are so short that they are found only where they stand by themselves.
    pub fn has_short(&self) -> bool {
        self.inside.len() < self.all.len()
    }

    pub fn longest(&self) -> usize {
        self.all.iter().map(String::len).max().unwrap_or(0)
    }

    fn stand_in(&self, word: usize) -> String {
        format!("{}{}-{word}", super::STAND_IN, self.receipt)
    }

    /// Where words stand: start, end, which; those that overlap as well.
    fn places<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = (usize, usize, usize)> + 'a {
        let found = self.finder.find_overlapping_iter(text).map(|m| (m.start(), m.end(), self.inside[m.pattern().as_usize()]));
        found.filter(|(start, end, word)| stands_alone(text, *start, *end, &self.all[*word]))
    }

    pub fn in_bytes(&self, bytes: &[u8]) -> bool {
        self.places(bytes).next().is_some()
    }

    /// A text of its own: a cell of a table, a string of JSON. Cells that are JSON are looked through as JSON.
    pub fn in_text(&self, text: &str) -> bool {
        match json(text) {
            Some(value) => self.in_json(&value),
            None => self.whole(text).is_some() || self.in_bytes(text.as_bytes()),
        }
    }

    pub fn in_json(&self, value: &Value) -> bool {
        match value {
            Value::String(s) => self.in_text(s),
            Value::Array(a) => a.iter().any(|v| self.in_json(v)),
            Value::Object(o) => o.iter().any(|(k, v)| self.in_text(k) || self.in_json(v)),
            _ => false,
        }
    }

    fn whole(&self, text: &str) -> Option<usize> {
        self.all.binary_search_by(|w| w.as_str().cmp(text)).ok()
    }

    /// The text with stand-ins in the place of words; `None` where it holds none.
    pub fn out_of_text(&self, text: &str) -> Option<String> {
        if let Some(value) = json(text) {
            return self.out_of_json(&value).map(|v| v.to_string());
        }
        if let Some(word) = self.whole(text) {
            return Some(self.stand_in(word));
        }
        let mut places: Vec<_> = self.places(text.as_bytes()).collect();
        places.sort_by_key(|(start, end, _)| (*start, std::cmp::Reverse(*end)));
        let (mut out, mut at) = (String::new(), 0);
        for (start, end, word) in places {
            if start >= at {
                out.push_str(&text[at..start]);
                out.push_str(&self.stand_in(word));
                at = end;
            }
        }
        (at > 0).then(|| out + &text[at..])
    }

    pub fn out_of_json(&self, value: &Value) -> Option<Value> {
        if !self.in_json(value) {
            return None;
        }
        let of = |v: &Value| self.out_of_json(v).unwrap_or_else(|| v.clone());
        Some(match value {
            Value::String(s) => Value::String(self.out_of_text(s).unwrap_or_else(|| s.clone())),
            Value::Array(a) => Value::Array(a.iter().map(of).collect()),
            // Keys are words of the program or of the YAML.
            Value::Object(o) => Value::Object(o.iter().map(|(k, v)| (k.clone(), of(v))).collect()),
            other => other.clone(),
        })
    }
}

fn json(text: &str) -> Option<Value> {
    if !text.starts_with(['{', '[']) {
        return None;
    }
    serde_json::from_str(text).ok()
}

fn stands_alone(text: &[u8], start: usize, end: usize, word: &str) -> bool {
    let goes_on = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let (before, after) = (start.checked_sub(1).map(|i| text[i]), text.get(end).copied());
    if before.is_some_and(goes_on) || after.is_some_and(goes_on) {
        return false;
    }
    // A UID that goes on is another one.
    let is_uid = word.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let digit = |i: Option<usize>| i.and_then(|i| text.get(i)).is_some_and(u8::is_ascii_digit);
    let longer = (after == Some(b'.') && digit(Some(end + 1))) || (before == Some(b'.') && digit(start.checked_sub(2)));
    !(is_uid && longer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(of: &[&str]) -> Words {
        Words::new(of.iter().map(|s| s.to_string()).collect(), "r")
    }

    #[test]
    fn a_word_counts_where_it_stands_alone() {
        let w = words(&["brain_004", "1.2.3456", "007"]);
        assert!(w.in_text("out/brain_004.dcm") && w.in_text("brain_004-2") && !w.in_text("brain_0041") && !w.in_text("a_brain_004"));
        assert!(w.in_text("series 1.2.3456, slice 3") && w.in_text("1.2.3456.") && !w.in_text("1.2.3456.7") && !w.in_text("9.1.2.3456"));
        assert!(w.in_text("007") && !w.in_text("1 007 2"), "short words are the whole text or nothing");
        assert!(w.in_bytes(b"\x10\x001.2.3456\x00") && !w.in_bytes(b"007"));
    }

    #[test]
    fn words_go_and_numbers_stay() {
        let w = words(&["12345", "12345-1"]);
        let facts = r#"{"case":"12345-1","voxels":12345,"who":["12345",{"12345":1}],"why":"12345 is cut off"}"#;
        assert_eq!(
            w.out_of_text(facts).as_deref(),
            Some(r#"{"case":"forgotten-r-1","voxels":12345,"who":["forgotten-r-0",{"12345":1}],"why":"forgotten-r-0 is cut off"}"#)
        );
        assert_eq!(w.out_of_text("a/12345-1/12345/x").as_deref(), Some("a/forgotten-r-1/forgotten-r-0/x"));
        assert_eq!(w.out_of_text("nobody"), None);
    }

    #[test]
    fn no_words_are_nowhere() {
        assert!(!words(&[]).in_text("anything") && words(&[""]).out_of_text("").is_none());
    }
}
