//! Siemens CSA headers (private elements 0029,xx10 and 0029,xx20): named lists of texts, in the two layouts that nibabel documents. Hostile-safe: every
//! length is held against what is there, nothing is allocated by a number of the file, and a broken header gives what was read before the break.

/// More entries than any scanner writes.
const MAX_TAGS: u32 = 256;

/// The numbers of an entry; `None` where the header has no such entry or nothing but empty items in it.
pub fn numbers(csa: &[u8], name: &str) -> Option<Vec<f64>> {
    let (mut at, is_second) = if csa.starts_with(b"SV10") { (8, true) } else { (0, false) };
    let n_tags = u32_at(csa, at)?;
    if n_tags == 0 || n_tags > MAX_TAGS {
        return None;
    }
    at += 8;
    // The first layout counts the length of an item from the number of items of the first entry.
    let mut base = None;
    for _ in 0..n_tags {
        let head = csa.get(at..at + 84)?;
        let found = head[..64].split(|b| *b == 0).next().unwrap_or_default() == name.as_bytes();
        let n_items = u32_at(csa, at + 76)?;
        let base = *base.get_or_insert(n_items);
        at += 84;
        let mut values = Vec::new();
        for _ in 0..n_items {
            let length = if is_second { u32_at(csa, at + 4)? } else { u32_at(csa, at)?.checked_sub(base)? } as usize;
            at += 16;
            let text = csa.get(at..at.checked_add(length)?)?;
            at += length.next_multiple_of(4);
            if found {
                let text = String::from_utf8_lossy(text.split(|b| *b == 0).next().unwrap_or_default()).trim().to_string();
                values.extend(text.parse::<f64>().ok().filter(|v| v.is_finite()));
            }
        }
        if found {
            return Some(values).filter(|v| !v.is_empty());
        }
    }
    None
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().expect("four bytes")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub mod tests {
    use super::*;

    /// A header of the second layout, entries as (name, items).
    pub fn header(entries: &[(&str, &[&str])]) -> Vec<u8> {
        let mut out = b"SV10\x04\x03\x02\x01".to_vec();
        out.extend((entries.len() as u32).to_le_bytes());
        out.extend(77u32.to_le_bytes());
        for (name, items) in entries {
            let mut head = [0u8; 84];
            head[..name.len()].copy_from_slice(name.as_bytes());
            head[64..68].copy_from_slice(&(items.len() as u32).to_le_bytes());
            head[68..70].copy_from_slice(b"FD");
            head[76..80].copy_from_slice(&(items.len() as u32).to_le_bytes());
            out.extend(head);
            for item in *items {
                let length = item.len() as u32 + 1;
                [length, length, 77, length].iter().for_each(|v| out.extend(v.to_le_bytes()));
                out.extend(item.as_bytes());
                out.resize(out.len() + 1, 0);
                out.resize(out.len().next_multiple_of(4), 0);
            }
        }
        out
    }

    #[test]
    fn entries_are_found_by_name() {
        let csa = header(&[("EchoTime", &["30"]), ("SliceNormalVector", &[" 0.5", "-0.25 ", "1e-1"]), ("Empty", &[])]);
        assert_eq!(numbers(&csa, "SliceNormalVector").unwrap(), [0.5, -0.25, 0.1]);
        assert_eq!(numbers(&csa, "EchoTime").unwrap(), [30.0]);
        assert_eq!(numbers(&csa, "Empty"), None);
        assert_eq!(numbers(&csa, "Nothing"), None);
    }

    #[test]
    fn no_byte_of_a_broken_header_is_believed() {
        let csa = header(&[("A", &["1", "2"]), ("B", &["3"])]);
        for cut in 0..csa.len() {
            numbers(&csa[..cut], "B");
            for value in [0xff, 0x7f, 0] {
                let mut spoilt = csa.clone();
                spoilt[cut] = value;
                numbers(&spoilt, "B");
                numbers(&spoilt[4..], "B");
            }
        }
        numbers(&[0xff; 4096], "B");
    }
}
