//! Sizes as people write them.

/// Parses a number of bytes: `4096`, or with a binary suffix `64K`, `1M`, `10G`, `2T`, `1P`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..].to_ascii_lowercase()[..] {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        "p" | "pib" => 50,
        other => return Err(format!("unknown unit {other:?}, use K, M, G, T or P")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("{digits:?} is not a whole number of bytes"))?;
    number
        .checked_mul(1 << shift)
        .filter(|&size| i64::try_from(size).is_ok())
        .ok_or_else(|| "too large, the most is 8191P".to_owned())
}

/// Writes a number of bytes as people like to read it.
pub(crate) fn display_size(bytes: u64) -> String {
    for (shift, unit) in [
        (50, "PiB"),
        (40, "TiB"),
        (30, "GiB"),
        (20, "MiB"),
        (10, "KiB"),
    ] {
        if bytes >= 1 << shift && bytes.trailing_zeros() >= shift {
            return format!("{} {unit}", bytes >> shift);
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed_with_binary_suffixes() {
        for (text, size) in [
            ("0", 0),
            ("4096", 4096),
            ("64k", 65536),
            ("1G", 1 << 30),
            ("1GiB", 1 << 30),
            ("8191P", 8191 << 50),
        ] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "1X", "8192P", "99999999999999999999"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_displayed_exactly() {
        assert_eq!(display_size(1 << 30), "1 GiB");
        assert_eq!(display_size(1536 << 20), "1536 MiB");
        assert_eq!(display_size(1000), "1000 bytes");
        assert_eq!(display_size(0), "0 bytes");
    }
}
