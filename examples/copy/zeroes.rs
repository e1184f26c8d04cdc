//! Zeroes, which need not always be moved to arrive.

/// Whether there is nothing but zeroes: the first is one, and each is like the one before.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        [first, rest @ ..] => *first == 0 && rest == bytes.get(..rest.len()).unwrap_or(&[]),
    }
}

/// The parts of `bytes` that have to be written over zeroes, each with its place. Zeroes are left
/// out in whole granules.
pub(crate) fn data(bytes: &[u8], granule: usize) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = bytes.get(at..)?;
        let zeroes = span(rest, granule, is_zero);
        let data = span(rest.get(zeroes..)?, granule, |part| !is_zero(part));
        let start = at + zeroes;
        at = start + data;
        bytes
            .get(start..at)
            .filter(|part| !part.is_empty())
            .map(|part| (start, part))
    })
}

/// How many bytes at the beginning are in granules that are all `like` that.
fn span(bytes: &[u8], granule: usize, like: impl Fn(&[u8]) -> bool) -> usize {
    let parts = bytes.chunks(granule);
    parts.take_while(|part| like(part)).map(<[u8]>::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_that_is_not_zero_is_found_anywhere() {
        assert!(is_zero(&[]));
        for length in [1, 2, 3, 8, 100] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for at in 0..length {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{at} of {length}");
                bytes[at] = 0;
            }
        }
        assert!(!is_zero(&[7; 9]));
    }

    #[test]
    fn what_is_left_out_are_whole_granules_of_zeroes() {
        for (bytes, parts) in [
            (&[][..], &[][..]),
            (&[0; 11], &[]),
            (&[1; 11], &[(0, 11)]),
            (&[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], &[(4, 4)]),
            (&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], &[(0, 4), (8, 3)]),
            (&[0, 0, 0, 1, 1, 0, 0, 0, 0], &[(0, 8)]),
        ] {
            let found: Vec<_> = data(bytes, 4).map(|(at, part)| (at, part.len())).collect();
            assert_eq!(found, parts, "{bytes:?}");
        }
    }

    #[test]
    fn what_is_left_out_and_what_is_not_make_up_the_whole() {
        // Every pattern of ten bytes that are zero or not, in granules of every size.
        for pattern in 0_u32..1 << 10 {
            let bytes: Vec<_> = (0..10)
                .map(|bit| u8::from(pattern >> bit & 1 == 1))
                .collect();
            for granule in 1..=11 {
                let mut copy = vec![0; bytes.len()];
                for (at, part) in data(&bytes, granule) {
                    copy[at..at + part.len()].copy_from_slice(part);
                }
                assert_eq!(copy, bytes, "in granules of {granule}");
            }
        }
    }
}
