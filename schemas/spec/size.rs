//! Sizes in bytes as people write them.

pub const SIZE_HELP: &str = "write a number and a unit: 512 MiB, 20 GiB, 1 TB (KiB, MiB, GiB, TiB count in 1024, KB, MB, GB, TB in 1000)";

/// `20 GiB`, `20GiB`, `1.5 TB`, `4096` (bytes). `None` for anything else, for nothing and for more than an exbibyte.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let unit: f64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kib" => 1024.0,
        "mib" => 1024f64.powi(2),
        "gib" => 1024f64.powi(3),
        "tib" => 1024f64.powi(4),
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        _ => return None,
    };
    let bytes = number * unit;
    (bytes >= 1.0 && bytes <= 1024f64.powi(6)).then_some(bytes as u64)
}

/// Bytes for people: `512 B`, `1.50 KiB`, `20.0 GiB`: three digits, in units of 1024.
pub fn size_text(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut value, mut unit) = (bytes as f64, "B");
    for next in units {
        if value < 1000.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    let digits = match value {
        _ if unit == "B" => 0,
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_in_three_digits() {
        let told = [0, 999, 1000, 1536, 20 << 30, 999 << 20, 1023 << 20, u64::MAX].map(size_text);
        assert_eq!(told, ["0 B", "999 B", "0.98 KiB", "1.50 KiB", "20.0 GiB", "999 MiB", "1.00 GiB", "16.0 EiB"]);
    }

    #[test]
    fn sizes_with_and_without_units() {
        assert_eq!(parse_size("20 GiB"), Some(20 << 30));
        assert_eq!(parse_size("20GiB"), Some(20 << 30));
        assert_eq!(parse_size("1.5 MB"), Some(1_500_000));
        assert_eq!(parse_size("4096"), Some(4096));
        for wrong in ["", "GiB", "20 GiBs", "-1 GiB", "0", "1e3", "nan", "9999999 TiB", "1..2 MB"] {
            assert_eq!(parse_size(wrong), None, "{wrong}");
        }
    }
}
