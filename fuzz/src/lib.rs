//! The bodies of the fuzz targets.
//!
//! Each is a plain function of bytes that panics when the library breaks a promise, so that it
//! can be run by a fuzzer, by the replay test, and by hand:
//!
//! ```text
//! cargo +nightly fuzz run wire                       # from the root of the repository
//! cargo run --manifest-path fuzz/Cargo.toml --bin wire -- FILE...
//! cargo test --manifest-path fuzz/Cargo.toml
//! ```

mod choices;
mod client_handshake;
mod flush;
mod pair;
mod reply;
mod request;
mod server_handshake;
mod wire;

pub use client_handshake::client_handshake;
pub use flush::flush;
pub use pair::pair;
pub use reply::reply_decoder;
pub use request::request_decoder;
pub use server_handshake::server_handshake;
pub use wire::wire;

#[cfg(fuzzing)]
#[doc(hidden)]
pub use libfuzzer_sys;

/// The body of a target.
pub type Body = fn(&[u8]);

/// Every target: its name, which is also that of its directory in the corpus, and its body.
pub const TARGETS: [(&str, Body); 7] = [
    ("request_decoder", request_decoder),
    ("reply_decoder", reply_decoder),
    ("server_handshake", server_handshake),
    ("client_handshake", client_handshake),
    ("wire", wire),
    ("pair", pair),
    ("flush", flush),
];

/// Makes a program of a body: a fuzzer where the build is for fuzzing, else one that runs the
/// body on the files that it is given.
#[macro_export]
macro_rules! target {
    ($body:ident) => {
        #[cfg(fuzzing)]
        $crate::libfuzzer_sys::fuzz_target!(|data: &[u8]| $crate::$body(data));

        #[cfg(not(fuzzing))]
        fn main() -> std::io::Result<()> {
            for file in std::env::args_os().skip(1) {
                eprintln!("{}", file.display());
                $crate::$body(&std::fs::read(file)?);
            }
            Ok(())
        }
    };
}
