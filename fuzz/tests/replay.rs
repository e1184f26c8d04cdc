//! Every body on every file of the corpus, on mutations of them, and on pseudo-random bytes: what
//! can be had of the fuzz targets on stable Rust, in a bounded time, the same in every run.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use nbd_proto_fuzz::{Body, TARGETS};

/// Mutations of files of the corpus, for each target.
const MUTATIONS: u64 = 3000;

/// Inputs of nothing but pseudo-random bytes, for each target.
const RANDOM: u64 = 1000;

const LONGEST: u64 = 512;

/// Numbers that look random (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `count`; 0 if that is 0.
    fn below(&mut self, count: usize) -> usize {
        let count = count.max(1) as u64;
        usize::try_from(self.next() % count).expect("below a usize")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }
}

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    let mut files: Vec<PathBuf> = fs::read_dir(&directory)
        .unwrap_or_else(|why| panic!("{}: {why}", directory.display()))
        .map(|entry| entry.expect("a file").path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{target} has no corpus");
    let read = |path: PathBuf| {
        let bytes = fs::read(&path).expect("a readable file");
        (path, bytes)
    };
    files.into_iter().map(read).collect()
}

/// Changes some bytes, drops some, doubles some, or adds some of another file.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], numbers: &mut Numbers) {
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(bytes.len() + 1).min(bytes.len());
        let end = (at + numbers.below(32)).min(bytes.len());
        match numbers.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let doubled = bytes[at..end].to_vec();
                bytes.splice(at..at, doubled);
            }
            3 => {
                let from = numbers.below(other.len() + 1).min(other.len());
                let until = (from + numbers.below(64)).min(other.len());
                bytes.splice(at..at, other[from..until].iter().copied());
            }
            4 => bytes.insert(at, numbers.byte()),
            5 => {
                let interesting = [0, 1, 0x7f, 0x80, 0xff];
                let byte = interesting[numbers.below(interesting.len())];
                bytes[at..end].iter_mut().take(8).for_each(|it| *it = byte);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << numbers.below(8);
                }
            }
        }
    }
}

/// Runs the body, and says what it ran on if that panics.
fn run(target: &str, body: Body, what: &str, input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(input))) {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        eprintln!("{target} fails on {what}: {hex}");
        resume_unwind(panic);
    }
}

fn replay(target: &str) {
    let (_, body) = TARGETS
        .into_iter()
        .find(|(name, _)| *name == target)
        .expect("a target");
    let corpus = corpus(target);
    for (path, bytes) in &corpus {
        run(target, body, &path.display().to_string(), bytes);
    }
    for seed in 0..MUTATIONS {
        let mut numbers = Numbers(seed);
        let mut bytes = corpus[numbers.below(corpus.len())].1.clone();
        let other = &corpus[numbers.below(corpus.len())].1;
        mutate(&mut bytes, other, &mut numbers);
        run(target, body, &format!("mutation {seed}"), &bytes);
    }
    for seed in 0..RANDOM {
        let mut numbers = Numbers(seed);
        let len = numbers.next() % LONGEST;
        let bytes: Vec<u8> = (0..len).map(|_| numbers.byte()).collect();
        run(target, body, &format!("random input {seed}"), &bytes);
    }
}

macro_rules! replays {
    ($($target:ident)*) => {
        $(
            #[test]
            fn $target() {
                replay(stringify!($target));
            }
        )*

        #[test]
        fn every_target_is_replayed() {
            let replayed = [$(stringify!($target)),*];
            assert!(TARGETS.iter().map(|(name, _)| *name).eq(replayed));
        }
    };
}

replays! {
    request_decoder reply_decoder server_handshake client_handshake wire pair flush
}
