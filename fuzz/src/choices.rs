//! Bytes as choices, and as input that comes in pieces.

use std::fmt::Debug;

/// Takes choices from the front of an input; after its end, every choice is the first.
#[derive(Clone, Debug)]
pub struct Choices<'a> {
    rest: &'a [u8],
}

impl<'a> Choices<'a> {
    pub const fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.rest.split_first() else {
            return 0;
        };
        self.rest = rest;
        byte
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    pub fn u32(&mut self) -> u32 {
        u32::from(self.u16()) << 16 | u32::from(self.u16())
    }

    /// A number below `count`, which is at most 256.
    pub fn below(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count.max(1)
    }

    pub fn flag(&mut self) -> bool {
        self.byte() & 1 != 0
    }

    pub fn of<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Lengths of pieces in which an input comes, over and over: four of them.
    pub fn cuts(&mut self) -> [usize; 4] {
        [(); 4].map(|()| usize::from(self.byte()) + 1)
    }

    pub const fn rest(self) -> &'a [u8] {
        self.rest
    }
}

/// How an input comes.
#[derive(Clone, Copy, Debug)]
pub enum Feed {
    Whole,
    ByteByByte,
    /// In pieces of these lengths, over and over.
    Cut([usize; 4]),
    /// As many bytes at a time as the machine says that it wants.
    Wanted,
}

impl Feed {
    /// The next piece of `input`, for a machine that wants `wants` bytes, as the `turn`th. Empty
    /// only if the input is, or the machine wants nothing.
    pub fn next<'b>(self, input: &mut &'b [u8], wants: usize, turn: usize) -> &'b [u8] {
        let len = match self {
            Self::Whole => input.len(),
            Self::ByteByByte => 1,
            Self::Cut(lengths) => lengths[turn % lengths.len()],
            Self::Wanted => wants,
        };
        let (piece, rest) = input.split_at(len.min(input.len()));
        *input = rest;
        piece
    }
}

/// Runs a machine with all feeds, which have to come to the same, and returns what that is.
pub fn same_for_all_feeds<R: PartialEq + Debug>(
    cuts: [usize; 4],
    mut run: impl FnMut(Feed) -> R,
) -> R {
    let whole = run(Feed::Whole);
    for feed in [Feed::ByteByByte, Feed::Cut(cuts), Feed::Wanted] {
        assert_eq!(run(feed), whole, "{feed:?}");
    }
    whole
}
