//! The NBD (Network Block Device) protocol, and flush consistency across connections.

#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

extern crate alloc;
#[cfg(any(feature = "std", test))]
extern crate std;

pub mod conformance;
pub mod error;
pub mod flush;
pub mod handshake;
#[cfg(feature = "std")]
#[cfg_attr(docsrs, doc(cfg(feature = "std")))]
pub mod io;
pub mod limits;
pub mod session;
pub mod transmission;
pub mod wire;
