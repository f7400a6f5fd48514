//! Text in the character sets of a file (PS3.3 C.12.1.1.2, PS3.5 6.1): one set, or several between which escape sequences switch (ISO 2022). No byte is
//! lost: what fits no set is taken as UTF-8 where it is that, and else as Latin 1, so that two different ids stay different.

use dicom::encoding::text::{SpecificCharacterSet, TextCodec};

const ESCAPE: u8 = 0x1b;

/// - `codes`: the values of SpecificCharacterSet
pub fn decode(bytes: &[u8], codes: &[String]) -> String {
    let first = codes.first().map_or("", String::as_str);
    if bytes.is_ascii() && !bytes.contains(&ESCAPE) {
        return trimmed(&String::from_utf8_lossy(bytes));
    }
    if !bytes.contains(&ESCAPE) {
        // Without a switch all is in the first set; some writers name the one they mean only second.
        let first = if first.is_empty() || first.ends_with(" 6") { codes.get(1).map_or("", String::as_str) } else { first };
        return trimmed(&in_set(bytes, first));
    }
    let mut out = String::new();
    for (i, part) in bytes.split(|b| *b == ESCAPE).enumerate() {
        match set_of(part).filter(|_| i > 0) {
            _ if i == 0 => out.push_str(&in_set(part, first)),
            // Two bytes a character in seven bits: the codec wants to see the switch itself.
            Some((_, "ISO 2022 IR 87")) => out.push_str(&in_set(&[&[ESCAPE], part, b"\x1b(B"].concat(), "ISO 2022 IR 87")),
            Some((n, set)) => out.push_str(&in_set(&part[n..], set)),
            None => out.push_str(&in_set(part, first)),
        }
    }
    trimmed(&out)
}

/// The set that an escape sequence switches to, and its length (PS3.3 tables C.12-3 and C.12-4).
fn set_of(part: &[u8]) -> Option<(usize, &'static str)> {
    Some(match part {
        [b'$', b'B' | b'@', ..] | [b'$', b'(', b'D', ..] => (0, "ISO 2022 IR 87"),
        [b'$', b')', b'C', ..] => (3, "ISO 2022 IR 149"),
        [b'$', b')', b'A', ..] => (3, "ISO 2022 IR 58"),
        [b'(', b'B', ..] => (2, "ISO 2022 IR 6"),
        [b'(', b'J', ..] | [b')', b'I', ..] => (2, "ISO 2022 IR 13"),
        [b'-', set, ..] => {
            let set = match set {
                b'A' => "ISO 2022 IR 100",
                b'B' => "ISO 2022 IR 101",
                b'C' => "ISO 2022 IR 109",
                b'D' => "ISO 2022 IR 110",
                b'F' => "ISO 2022 IR 126",
                b'G' => "ISO 2022 IR 127",
                b'H' => "ISO 2022 IR 138",
                b'L' => "ISO 2022 IR 144",
                b'T' => "ISO 2022 IR 166",
                _ => return None,
            };
            (2, set)
        }
        _ => return None,
    })
}

fn in_set(bytes: &[u8], code: &str) -> String {
    let codec = Some(code).filter(|c| !c.is_empty()).and_then(SpecificCharacterSet::from_code);
    let decoded = codec.and_then(|c| c.decode(bytes).ok()).filter(|text| !text.contains('\u{fffd}'));
    decoded.unwrap_or_else(|| match std::str::from_utf8(bytes) {
        Ok(text) => text.to_string(),
        Err(_) => bytes.iter().map(|b| *b as char).collect(),
    })
}

fn trimmed(text: &str) -> String {
    text.trim_matches(|c: char| c == '\0' || c.is_whitespace()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_standards_examples_are_read() {
        // PS3.5 annexes H, I, J and PS3.3 C.12.1.1.2.
        let cases: [(&[&str], &[u8], &str); 9] = [
            (&["", "ISO 2022 IR 87"], b"=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", "=山田^太郎"),
            (&["ISO 2022 IR 13", "ISO 2022 IR 87"], b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
            (&["", "ISO 2022 IR 149"], b"=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7", "=洪^吉洞"),
            (&["", "ISO 2022 IR 58"], b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab", "Zhang^XiaoDong=张^小东"),
            (&["GB18030"], b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab", "Wang^XiaoDong=王^小东"),
            (&["ISO_IR 192"], "Wang=王^小東".as_bytes(), "Wang=王^小東"),
            (&["ISO_IR 100"], b"Buc^J\xe9r\xf4me ", "Buc^Jérôme"),
            (&["ISO 2022 IR 100", "ISO 2022 IR 144"], b"Dionysios=\x1b-L\xbb\xee\xda", "Dionysios=Люк"),
            (&["ISO_IR 126"], b"\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2", "Διονυσιος"),
        ];
        for (codes, bytes, text) in cases {
            assert_eq!(decode(bytes, &codes.iter().map(|c| c.to_string()).collect::<Vec<_>>()), text, "{codes:?}");
        }
    }

    #[test]
    fn ids_that_fit_no_set_stay_different() {
        let ids = [&b"M\xfcller"[..], b"M\xf6ller", "Müller".as_bytes(), b"\x1b%M\xfc"];
        let read: std::collections::BTreeSet<String> = ids.iter().map(|id| decode(id, &["unheard of".to_string()])).collect();
        assert_eq!(read.len(), 3, "{read:?}");
        assert_eq!(decode(b"id\0 ", &[]), "id");
    }
}
