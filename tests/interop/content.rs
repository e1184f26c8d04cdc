//! Random bytes that can be made again, and ways to compare what came back.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

/// SplitMix64: small, and the same everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

/// Writes a file of random bytes with a few long runs of zeroes, as disk images have.
pub(crate) fn random_file(path: &Path, size: u64, seed: u64) {
    const PIECE: usize = 1 << 16;
    let mut random = Random(seed);
    let mut file = BufWriter::new(File::create(path).unwrap());
    let mut left = size;
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let piece = if random.below(8) == 0 {
            vec![0; count]
        } else {
            random.bytes(count)
        };
        file.write_all(&piece).unwrap();
        left -= count as u64;
    }
    file.flush().unwrap();
}

pub(crate) fn sha256(path: &Path) -> [u8; 32] {
    let mut file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).unwrap();
        if count == 0 {
            return hash.finalize().into();
        }
        hash.update(&buffer[..count]);
    }
}

/// Two files hold the same bytes, and as many.
#[track_caller]
pub(crate) fn assert_same(a: &Path, b: &Path) {
    let size = |path: &Path| path.metadata().unwrap().len();
    assert_eq!(
        size(a),
        size(b),
        "sizes of {} and {}",
        a.display(),
        b.display()
    );
    assert!(
        sha256(a) == sha256(b),
        "{} and {} differ",
        a.display(),
        b.display()
    );
}
