//! Strategies for the handshake phase.
