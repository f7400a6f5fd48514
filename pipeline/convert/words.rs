//! What stages say in the words of a pipeline, in those of the command: who converts has typed options and written no YAML.

use voxmill_schemas::spec::Place;

use crate::problem::Problem;

/// A setting of the built-in pipeline, and what the command line calls it.
const OPTIONS: [(&str, &str); 9] = [
    ("archive", "ARCHIVE"),
    ("colour", "--colour"),
    ("gaps", "--gaps"),
    ("key_env", "--key-env"),
    ("key_file", "--key-file"),
    ("name_file", "--name-file"),
    ("overlap", "--overlap"),
    ("repeats", "--repeats"),
    ("where", "--where"),
];

/// `key: value` in backticks, with the option that says the same; other settings stand in the pipeline alone.
pub fn of(text: &str) -> String {
    let parts: Vec<&str> = text.split('`').collect();
    if parts.len().is_multiple_of(2) {
        return text.to_string();
    }
    let mut out = String::new();
    for (i, part) in parts.iter().enumerate() {
        let setting = part.split_once(": ").filter(|(key, value)| i % 2 == 1 && is_word(key) && !value.is_empty());
        match setting.map(|(key, value)| (option(key), key, value)) {
            Some((Some(option), _, value)) => out.push_str(&format!("{option} {value}")),
            Some((None, key, value)) => out.push_str(&format!("`{key}: {value}` in the YAML of --show-yaml")),
            None if i % 2 == 1 => out.push_str(&format!("`{part}`")),
            None => out.push_str(part),
        }
    }
    out
}

/// A mistake by the option that it is in, not by its line in a YAML that nobody wrote.
pub fn problem(p: Problem) -> Problem {
    let named = p.places.first().and_then(|(place, _)| option(key(place)?));
    let message = of(&p.message);
    let message = named.map_or(message.clone(), |option| format!("{option}: {message}"));
    Problem { message, help: of(&p.help), places: Vec::new(), ..p }
}

fn option(key: &str) -> Option<&'static str> {
    OPTIONS.iter().find(|(setting, _)| *setting == key).map(|(_, option)| *option)
}

fn is_word(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

/// The key of the line that a place begins in.
fn key(place: &Place) -> Option<&str> {
    let before = place.source.text.get(..place.start)?;
    let line = &place.source.text[before.rfind('\n').map_or(0, |at| at + 1)..];
    line.split(':').next().map(str::trim)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use voxmill_schemas::spec::Source;

    use super::*;

    #[test]
    fn settings_become_options_where_there_is_one() {
        let gaps = "`gaps: fill` interpolates what is missing, `gaps: keep` leaves the slices where they lie for `resample`";
        assert_eq!(of(gaps), "--gaps fill interpolates what is missing, --gaps keep leaves the slices where they lie for `resample`");
        assert_eq!(of("take `suv: body_weight`"), "take `suv: body_weight` in the YAML of --show-yaml");
        for plain in ["an odd ` in a text", "condition `modality = 'CT: x'` fits none", "12:30", ""] {
            assert_eq!(of(plain), plain);
        }
    }

    #[test]
    fn a_mistake_is_one_of_its_option() {
        let text = "stages:\n  image:\n    with:\n      where: \"modalty\"\n".to_string();
        let start = text.find("\"mod").unwrap_or_default();
        let place = Place { source: Arc::new(Source { name: "convert.yaml".into(), text }), start, end: start + 3 };
        let told =
            problem(Problem { message: "no column".into(), help: "h".into(), places: vec![(place, String::new())], is_warning: false });
        assert_eq!((told.message.as_str(), told.places.len()), ("--where: no column", 0));
    }
}
