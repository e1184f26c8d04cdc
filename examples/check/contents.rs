//! What is written, so that a read can tell who wrote it.
//!
//! Each granule is filled with words that follow from the content's identity, its offset and a key
//! of this run: what an earlier run left, or what belongs somewhere else, is no content of ours.

use nbd_proto::conformance::{Content, Contents};

use super::dice::mix;

/// The least that has room for an identity and for proof that it is one.
pub(crate) const SMALLEST: u64 = 32;

const WORD: usize = 8;

/// How contents look in one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern {
    key: u64,
    granule: usize,
}

impl Pattern {
    /// Granules have at least [`SMALLEST`] bytes, and are a power of two.
    pub(crate) fn new(key: u64, granule: u64) -> Self {
        Self {
            key,
            granule: usize::try_from(granule).unwrap_or(usize::MAX),
        }
    }

    /// Fills whole granules, of which the first is at `offset`.
    pub(crate) fn fill(&self, content: Content, offset: u64, bytes: &mut [u8]) {
        for (granule, at) in bytes.chunks_mut(self.granule).zip(self.offsets(offset)) {
            let words = self.words(content, at);
            for (word, value) in granule.chunks_mut(WORD).zip(words) {
                word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
            }
        }
    }

    /// Whose contents whole granules have.
    pub(crate) fn identify(&self, offset: u64, bytes: &[u8]) -> Contents {
        let granules = bytes.chunks(self.granule).zip(self.offsets(offset));
        summarize(granules.map(|(granule, at)| self.identify_one(at, granule)))
    }

    fn identify_one(&self, offset: u64, granule: &[u8]) -> Content {
        if is_zero(granule) {
            return Content::ZEROES;
        }
        let Some(first) = granule.first_chunk::<WORD>() else {
            return Content::MIXED;
        };
        let content = Content(u64::from_le_bytes(*first) ^ self.mask(offset));
        if content == Content::ZEROES || content == Content::MIXED {
            return Content::MIXED;
        }
        let mut words = granule.chunks(WORD).zip(self.words(content, offset));
        let is_it = words.all(|(word, value)| word == &value.to_le_bytes()[..word.len()]);
        if is_it { content } else { Content::MIXED }
    }

    fn offsets(&self, offset: u64) -> impl Iterator<Item = u64> + use<> {
        let step = self.granule as u64;
        (0..).map(move |number: u64| offset.wrapping_add(number.wrapping_mul(step)))
    }

    const fn mask(&self, offset: u64) -> u64 {
        mix(self.key ^ mix(offset))
    }

    fn words(&self, content: Content, offset: u64) -> impl Iterator<Item = u64> + use<> {
        let mask = self.mask(offset);
        let rest = mix(mask ^ mix(content.0));
        let first = content.0 ^ mask;
        std::iter::once(first).chain((1..).map(move |number: u64| mix(rest ^ number)))
    }
}

/// Whose contents granules have that nobody of us wrote: the same if they are the same.
pub(crate) fn fingerprint(granule: u64, bytes: &[u8]) -> Contents {
    let granule = usize::try_from(granule).unwrap_or(usize::MAX);
    summarize(bytes.chunks(granule).map(|bytes| {
        if is_zero(bytes) {
            return Content::ZEROES;
        }
        let sum = bytes.chunks(WORD).fold(1, |sum: u64, chunk| {
            let mut word = [0; WORD];
            word[..chunk.len()].copy_from_slice(chunk);
            mix(sum.rotate_left(9) ^ u64::from_le_bytes(word))
        });
        Content(sum.clamp(1, u64::MAX - 1))
    }))
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

fn summarize(each: impl Iterator<Item = Content>) -> Contents {
    let each: Vec<_> = each.collect();
    match each.first() {
        Some(&first) if each.iter().all(|&it| it == first) => Contents::Same(first),
        _ => Contents::Each(each),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRANULE: usize = 512;

    fn filled(pattern: Pattern, content: u64, offset: u64, granules: usize) -> Vec<u8> {
        let mut bytes = vec![0; granules * GRANULE];
        pattern.fill(Content(content), offset, &mut bytes);
        bytes
    }

    #[test]
    fn what_was_written_is_known_again() {
        let pattern = Pattern::new(99, 512);
        for content in [1, 2, 77_777, u64::MAX - 1] {
            let bytes = filled(pattern, content, 8192, 3);
            assert_eq!(
                pattern.identify(8192, &bytes),
                Contents::Same(Content(content))
            );
        }
    }

    #[test]
    fn granules_are_told_apart_one_by_one() {
        let pattern = Pattern::new(99, 512);
        let mut bytes = filled(pattern, 5, 0, 4);
        bytes[GRANULE..2 * GRANULE].copy_from_slice(&filled(pattern, 6, 512, 1));
        bytes[2 * GRANULE..3 * GRANULE].fill(0);
        // One bit of the last one.
        bytes[4 * GRANULE - 1] ^= 1;
        let each = [5, 6, 0, u64::MAX].map(Content);
        assert_eq!(pattern.identify(0, &bytes), Contents::Each(each.to_vec()));
    }

    #[test]
    fn contents_elsewhere_or_of_another_run_are_not_ours() {
        let pattern = Pattern::new(99, 512);
        let bytes = filled(pattern, 5, 512, 1);
        let mixed = Contents::Same(Content::MIXED);
        assert_eq!(pattern.identify(1024, &bytes), mixed);
        assert_eq!(Pattern::new(98, 512).identify(512, &bytes), mixed);
    }

    #[test]
    fn half_of_one_write_and_half_of_another_is_a_mixture() {
        let pattern = Pattern::new(1, 512);
        let (mut one, other) = (filled(pattern, 5, 0, 1), filled(pattern, 6, 0, 1));
        one[256..].copy_from_slice(&other[256..]);
        assert_eq!(pattern.identify(0, &one), Contents::Same(Content::MIXED));
        one[256..].fill(0);
        assert_eq!(pattern.identify(0, &one), Contents::Same(Content::MIXED));
    }

    #[test]
    fn unknown_contents_are_the_same_only_where_they_are() {
        let mut bytes = vec![7; 3 * GRANULE];
        bytes[GRANULE + 3] = 8;
        let Contents::Each(each) = fingerprint(512, &bytes) else {
            panic!("they differ");
        };
        assert_eq!(each[0], each[2]);
        assert_ne!(each[0], each[1]);
        assert_eq!(fingerprint(512, &[0; 512]), Contents::Same(Content::ZEROES));
    }
}
