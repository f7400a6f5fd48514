//! What a file says of who the patient is, and whether a free text repeats any of it. Held while a header is read and no longer: what is kept are keyed marks,
//! by which whoever has the key tells whether a text of another file repeats it.

use std::collections::{BTreeSet, HashSet};

/// A shorter part of a name, or id, is found in words that mean something else.
const SHORTEST: usize = 3;
/// From this length on a part of a name is looked for inside words as well.
const LONG: usize = 6;
/// From this length on an id is.
const LONG_ID: usize = 4;
/// More of a text is not held against marks, longer words and ids are none, and more of an element is not read: files are hostile, and names have 64 characters.
const MAX_TEXT_CHARS: usize = 256;
const MAX_WORD_CHARS: usize = 64;
const MAX_ELEMENT_CHARS: usize = 4096;

/// Values of identity elements, in small letters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Identity {
    names: Vec<String>,
    ids: Vec<String>,
    /// Days of birth, digits alone, in the orders in which people write them.
    dates: Vec<String>,
}

impl Identity {
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.ids.is_empty() && self.dates.is_empty()
    }

    /// PN: components, alphabetic, ideographic and phonetic, one or several.
    pub fn add_name(&mut self, name: &str) {
        self.names.extend(words(&start(name)).into_iter().filter(|w| w.chars().count() >= SHORTEST || !w.is_ascii()));
    }

    /// LO, SH: one or several.
    pub fn add_id(&mut self, id: &str) {
        let id = start(id);
        let ids = id.split('\\').map(|id| id.trim_matches([' ', '\0']).to_lowercase());
        self.ids.extend(ids.filter(|id| id.chars().count() >= SHORTEST));
    }

    /// DA.
    pub fn add_date(&mut self, date: &str) {
        let digits: String = date.chars().filter(char::is_ascii_digit).collect();
        if let ([y, md], 8) = ([&digits.get(..4), &digits.get(4..)], digits.len()) {
            let (Some(y), Some(md)) = (y, md) else { return };
            let (m, d) = md.split_at(2);
            self.dates.extend([format!("{y}{m}{d}"), format!("{d}{m}{y}"), format!("{m}{d}{y}")]);
        }
    }

    /// Marks of all of it, sorted: how it counts in a text (`w`: as a word, `s`: anywhere, `d`: among the digits), its length, and its hash.
    pub fn marks(&self, hash: &dyn Fn(&str) -> String) -> BTreeSet<String> {
        let counts = |w: &str, n: usize| if w.chars().count() >= n || !w.is_ascii() { 's' } else { 'w' };
        let is_word = |w: &&String| w.chars().count() <= MAX_WORD_CHARS;
        let names = self.names.iter().filter(is_word).map(|n| mark(counts(n, LONG), n, hash));
        let ids = self.ids.iter().filter(is_word).map(|id| mark(counts(id, LONG_ID), id, hash));
        names.chain(ids).chain(self.dates.iter().map(|d| mark('d', d, hash))).collect()
    }

    /// Whether a text repeats any of it. Short parts of names count as whole words only (`Hip` is in `hippocampus`), long ones wherever they stand.
    pub fn is_in(&self, text: &str) -> bool {
        let lower = text.to_lowercase();
        let words = words(text);
        let has_word = |w: &String| words.contains(w);
        let is_long = |w: &String, n: usize| w.chars().count() >= n || !w.is_ascii();
        let digits: String = text.chars().filter(char::is_ascii_digit).collect();
        self.names.iter().any(|n| has_word(n) || (is_long(n, LONG) && lower.contains(n.as_str())))
            || self.ids.iter().any(|id| has_word(id) || (is_long(id, LONG_ID) && lower.contains(id.as_str())))
            || self.dates.iter().any(|d| digits.contains(d.as_str()))
    }
}

fn start(text: &str) -> String {
    text.chars().take(MAX_ELEMENT_CHARS).collect()
}

fn mark(counts: char, text: &str, hash: &dyn Fn(&str) -> String) -> String {
    format!("{counts}{}-{}", text.chars().count(), hash(text))
}

/// What [`Identity::is_in`] says, of identities of which only their marks are left.
pub fn is_marked(text: &str, marks: &HashSet<String>, hash: &dyn Fn(&str) -> String) -> bool {
    let text: String = text.chars().take(MAX_TEXT_CHARS).collect();
    let lower: Vec<char> = text.to_lowercase().chars().collect();
    let digits: Vec<char> = text.chars().filter(char::is_ascii_digit).collect();
    let lengths = |counts: char| -> BTreeSet<usize> {
        let of = |m: &String| m.strip_prefix(counts)?.split('-').next()?.parse().ok();
        marks.iter().filter_map(of).filter(|n| *n > 0).collect()
    };
    let stands_in = |counts: char, all: &[char]| {
        let is_marked = |part: &[char]| marks.contains(&mark(counts, &part.iter().collect::<String>(), hash));
        lengths(counts).into_iter().any(|n| all.windows(n).any(is_marked))
    };
    words(&text).iter().any(|w| marks.contains(&mark('w', w, hash))) || stands_in('s', &lower) || stands_in('d', &digits)
}

/// Runs of letters and runs of digits in small letters; a capital after a small letter begins a new one (`DoeTumor`), and the run as a whole counts as well.
fn words(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    for run in text.split(|c: char| !c.is_alphanumeric()).filter(|r| !r.is_empty()) {
        out.push(run.to_lowercase());
        let mut word = String::new();
        let mut last = ' ';
        for c in run.chars() {
            let is_new = (c.is_uppercase() && last.is_lowercase()) || c.is_numeric() != last.is_numeric();
            if is_new && !word.is_empty() {
                out.push(std::mem::take(&mut word));
            }
            word.extend(c.to_lowercase());
            last = c;
        }
        out.push(word);
    }
    out.sort();
    out.dedup();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_repeats_a_name_an_id_or_a_birthday_is_found_and_anatomy_is_not() {
        let mut who = Identity::default();
        who.add_name("Hip^Jane Wu=山田");
        who.add_name("Lindemann^");
        who.add_id("PAT-0042\\7");
        who.add_date("19601231");
        let hash = |text: &str| blake3::hash(text.as_bytes()).to_hex()[..16].to_string();
        let marks: HashSet<String> = who.marks(&hash).into_iter().collect();
        for text in [
            "tumor of JANE",
            "jane_gtv",
            "JaneGTV",
            "GTVlindemann2",
            "pat-0042 lesion",
            "born 31.12.1960",
            "GTV 12/31/1960",
            "山田さん",
            "Hip",
        ] {
            assert!(who.is_in(text) && is_marked(text, &marks, &hash), "{text}");
        }
        for text in ["Hippocampus", "GTV 7", "Wu", "janet", "Tumor 1960", "lesion 0043", ""] {
            assert!(!who.is_in(text) && !is_marked(text, &marks, &hash), "{text}");
        }
        assert!(!Identity::default().is_in("anything"));
    }
}
