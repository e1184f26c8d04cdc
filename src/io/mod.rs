//! Thin drivers over sockets.
