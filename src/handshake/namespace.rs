//! The names of meta contexts (proto.md "Metadata querying").

/// The namespace of a context or query: what stands before the first colon.
///
/// "The name MUST consist of a namespace, followed by a colon, followed by a leaf-name. The
/// namespace must consist entirely of printable non-whitespace UTF-8 characters other than colons,
/// and be non-empty."
pub(super) fn namespace(name: &str) -> Option<&str> {
    let (namespace, _) = name.split_once(':')?;
    let printable = |it: char| !it.is_whitespace() && !it.is_control();
    (!namespace.is_empty() && namespace.chars().all(printable)).then_some(namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_printable_and_not_empty() {
        for (name, expected) in [
            ("base:", "base"),
            ("x-é:leaf", "x-é"),
            ("a:b:c", "a"),
            ("x: leaf", "x"),
        ] {
            assert_eq!(namespace(name), Some(expected));
        }
        for bad in ["", "base", ":", ":leaf", "a b:c", "a\u{7f}:b", "\u{a0}:b"] {
            assert_eq!(namespace(bad), None, "{bad:?}");
        }
    }
}
