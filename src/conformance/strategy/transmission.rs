//! Strategies for the transmission phase.
