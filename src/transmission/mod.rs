//! Commands and replies, both sides.
