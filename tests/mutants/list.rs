//! What a mutant is.

/// One change of the source. The text to find is code, and occurs exactly once.
pub(crate) struct Edit {
    pub(crate) file: &'static str,
    pub(crate) find: &'static str,
    pub(crate) replace: &'static str,
}

/// A coordinator with one rule removed.
pub(crate) struct Mutant {
    /// What it does wrong.
    pub(crate) name: &'static str,
    pub(crate) edits: &'static [Edit],
    /// The tests of the rule: each of them has to fail.
    pub(crate) caught_by: &'static [&'static str],
}
