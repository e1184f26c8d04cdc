//! Numbers of things, in words.

use std::fmt::Display;

/// So many of something.
pub(crate) fn count<N: Display + PartialEq + From<u8>>(number: N, what: &str) -> String {
    let ending = if number == N::from(1) {
        ""
    } else if what.ends_with("sh") {
        "es"
    } else {
        "s"
    };
    format!("{number} {what}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_not_several() {
        assert_eq!(count(0_u64, "crash"), "0 crashes");
        assert_eq!(count(1_usize, "flush"), "1 flush");
        assert_eq!(count(1_u32, "request"), "1 request");
        assert_eq!(count(21_u64, "request"), "21 requests");
    }
}
