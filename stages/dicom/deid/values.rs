//! Values that say nothing, moved dates, new UIDs: plain functions on the bytes of a value (PS3.5 section 6.2).

use crate::dicom::names::Names;

/// UIDs of the standard itself: classes, syntaxes, well-known frames of reference. They name nobody.
pub const WELL_KNOWN: &str = "1.2.840.10008.";

/// A value of a VR that says nothing and is never empty.
pub fn dummy(vr: &[u8; 2]) -> &'static [u8] {
    match vr {
        b"DA" => b"19000101",
        b"TM" => b"000000",
        b"DT" => b"19000101000000",
        b"AS" => b"000Y",
        b"IS" | b"DS" => b"0",
        b"US" | b"SS" => &[0; 2],
        b"UL" | b"SL" | b"FL" | b"AT" | b"OF" | b"OL" => &[0; 4],
        b"FD" | b"UV" | b"SV" | b"OD" | b"OV" => &[0; 8],
        b"OB" | b"OW" | b"UN" => &[0; 2],
        b"UI" => b"2.25.0",
        b"UR" => b"urn:removed",
        _ => b"ANONYMIZED",
    }
}

/// Whether a VR holds text that people type.
pub fn is_text(vr: &[u8; 2]) -> bool {
    matches!(vr, b"AE" | b"LO" | b"LT" | b"PN" | b"SH" | b"ST" | b"UC" | b"UR" | b"UT")
}

/// A text without padding.
pub fn trimmed(value: &[u8]) -> &[u8] {
    let is_padding = |b: &u8| *b == 0 || b.is_ascii_whitespace();
    let start = value.iter().position(|b| !is_padding(b)).unwrap_or(value.len());
    let end = value.iter().rposition(|b| !is_padding(b)).map_or(start, |i| i + 1);
    &value[start..end]
}

/// Every UID of a value replaced, those of the standard apart.
pub fn uids(value: &[u8], names: &Names) -> Vec<u8> {
    let new = |part: &[u8]| match String::from_utf8_lossy(trimmed(part)) {
        uid if uid.is_empty() || uid.starts_with(WELL_KNOWN) => uid.into_owned(),
        uid => names.uid(&uid),
    };
    value.split(|b| *b == b'\\').map(new).collect::<Vec<_>>().join("\\").into_bytes()
}

/// Every date of a DA or DT value moved by whole days; the time of day, fractions and the offset from UTC stay. `None`: one of them is no full date.
pub fn moved(value: &[u8], days: i64) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(value.len());
    for (i, part) in value.split(|b| *b == b'\\').enumerate() {
        if i > 0 {
            out.push(b'\\');
        }
        let part = trimmed(part);
        if part.is_empty() {
            continue;
        }
        // `YYYY.MM.DD` is how ACR-NEMA wrote it.
        let dotted = part.len() == 10 && part[4] == b'.' && part[7] == b'.';
        let digits: Vec<u8> = if dotted { [&part[..4], &part[5..7], &part[8..]].concat() } else { part.to_vec() };
        let date = digits.get(..8).filter(|d| d.iter().all(u8::is_ascii_digit))?;
        let number = |b: &[u8]| b.iter().fold(0i64, |n, d| n * 10 + (d - b'0') as i64);
        let (y, m, d) = (number(&date[..4]), number(&date[4..6]), number(&date[6..]));
        if !(1..=12).contains(&m) || !(1..=31).contains(&d) {
            return None;
        }
        let (y, m, d) = civil(days_of(y, m, d) + days);
        if !(1..=9999).contains(&y) {
            return None;
        }
        out.extend(format!("{y:04}{m:02}{d:02}").bytes());
        out.extend(&digits[8..]);
    }
    Some(out)
}

/// Days since 1970-01-01 of the Gregorian calendar.
fn days_of(y: i64, m: i64, d: i64) -> i64 {
    let y = if m <= 2 { y - 1 } else { y };
    let era = y.div_euclid(400);
    let year_of_era = y.rem_euclid(400);
    let day_of_year = (153 * ((m + 9) % 12) + 2) / 5 + d - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let mp = (5 * day_of_year + 2) / 153;
    let m = if mp < 10 { mp + 3 } else { mp - 9 };
    (year_of_era + era * 400 + i64::from(m <= 2), m, day_of_year - (153 * mp + 2) / 5 + 1)
}

/// PatientAge with everyone of 90 and older in one group: alone, such an age can name a person.
pub fn age(value: &[u8]) -> Vec<u8> {
    let text = trimmed(value);
    let years = text.strip_suffix(b"Y").and_then(|n| std::str::from_utf8(n).ok()).and_then(|n| n.parse::<u32>().ok());
    if years.is_some_and(|y| y > 89) { b"090Y".to_vec() } else { text.to_vec() }
}

/// Whether a whole text fits a pattern, capitals or not: `*` stands for any text, `?` for one character.
pub fn fits(pattern: &str, text: &str) -> bool {
    let lower = |s: &str| s.to_lowercase().chars().collect::<Vec<_>>();
    let (p, t) = (lower(pattern), lower(text));
    let (mut i, mut j, mut star) = (0, 0, None);
    while j < t.len() {
        if i < p.len() && p[i] == '*' {
            star = Some((i, j));
            i += 1;
        } else if i < p.len() && (p[i] == '?' || p[i] == t[j]) {
            (i, j) = (i + 1, j + 1);
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            (i, j) = (at + 1, from + 1);
        } else {
            return false;
        }
    }
    p[i..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_move_over_months_years_and_leap_days() {
        let of = |v: &str, days| moved(v.as_bytes(), days).map(|b| String::from_utf8_lossy(&b).into_owned());
        assert_eq!(of("20240301", -1).as_deref(), Some("20240229"));
        assert_eq!(of("20230301 ", -1).as_deref(), Some("20230228"));
        assert_eq!(of("19000101", -1).as_deref(), Some("18991231"));
        assert_eq!(of("20231231235959.25+0100", 1).as_deref(), Some("20240101235959.25+0100"));
        assert_eq!(of("2024.03.01\\20240302", -1).as_deref(), Some("20240229\\20240301"));
        assert_eq!(of("", 5).as_deref(), Some(""));
        for wrong in ["2024", "202403", "20241301", "00010101", "yesterday", "20240100"] {
            assert_eq!(of(wrong, -3650), None, "{wrong}");
        }
        for day in (-800_000..60_000).step_by(37) {
            let (y, m, d) = civil(day);
            assert_eq!(days_of(y, m, d), day);
        }
    }

    #[test]
    fn well_known_uids_stay_and_others_follow_the_key() {
        let names = Names::keyed(b"k");
        let new = |v: &[u8]| String::from_utf8_lossy(&uids(v, &names)).into_owned();
        assert_eq!(new(b"1.2.840.10008.1.2\0"), "1.2.840.10008.1.2");
        assert_eq!(new(b"1.2.3\0"), new(b"1.2.3"));
        assert_ne!(new(b"1.2.3"), String::from_utf8_lossy(&uids(b"1.2.3", &Names::keyed(b"l"))));
        let two = new(b"1.2.3\\1.2.4");
        assert_eq!(two, format!("{}\\{}", new(b"1.2.3"), new(b"1.2.4")));
        assert!(two.split('\\').all(|u| u.starts_with("2.25.") && u.len() <= 64));
    }

    #[test]
    fn patterns_and_ages() {
        assert!(fits("t1*", "T1 axial") && fits("*", "") && fits("a?c", "abc") && fits("*fat*sat*", "PD FatSat"));
        assert!(!fits("t1", "T1 axial") && !fits("a?c", "ac") && !fits("", "x"));
        assert_eq!((age(b"093Y"), age(b"089Y"), age(b"011M")), (b"090Y".to_vec(), b"089Y".to_vec(), b"011M".to_vec()));
    }
}
