//! Flush consistency across connections.
