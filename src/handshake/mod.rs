//! Option negotiation, both sides.
