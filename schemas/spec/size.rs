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

#[cfg(test)]
mod tests {
    use super::*;

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
