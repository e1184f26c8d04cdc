//! What a worker does next: pieces of the sections that it claimed, told apart by what is known
//! of them.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::endpoint::{Done, Known, Source};
use super::shared::connection::{Error, Extent};
use super::work::Work;

/// A hole amid data that is shorter than this is read with it, in bytes: moving so little takes
/// less than asking twice.
const SHORT_HOLE: u64 = 16 << 10;

/// What most storage allocates at least, in bytes.
const PAGE: u64 = 4096;

/// One request's worth of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// Whether it is known to be zeroes.
    pub(crate) zero: bool,
}

/// How pieces are cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    /// The most data in a piece, in bytes. No piece of data crosses a multiple of it.
    pub(crate) block: u64,
    /// What offsets and lengths are multiples of, but for the end.
    pub(crate) unit: u64,
    /// How large the source is.
    pub(crate) size: u64,
}

/// Claims sections, asks for their status ahead of time, and cuts them.
#[derive(Debug)]
pub(crate) struct Feeder<'a> {
    work: &'a Work,
    worker: usize,
    cut: Cut,
    /// So many bytes are to be known ahead.
    ahead: u64,
    /// Set once the source has refused to say what is zero.
    no_status: &'a AtomicBool,
    extents: VecDeque<Extent>,
    known: u64,
    /// What the source is being asked about.
    asked: Option<Range<u64>>,
    is_exhausted: bool,
    /// Whether a question was answered, or needed not be asked.
    has_learned: bool,
}

impl<'a> Feeder<'a> {
    pub(crate) const fn new(
        work: &'a Work,
        worker: usize,
        cut: Cut,
        ahead: u64,
        no_status: &'a AtomicBool,
    ) -> Self {
        Self {
            work,
            worker,
            cut,
            ahead,
            no_status,
            extents: VecDeque::new(),
            known: 0,
            asked: None,
            is_exhausted: false,
            has_learned: false,
        }
    }

    /// Whether nothing will come any more.
    pub(crate) fn is_over(&self) -> bool {
        self.is_exhausted && self.extents.is_empty() && self.asked.is_none()
    }

    /// Whether anything is known yet, or ever will be.
    pub(crate) const fn has_learned(&self) -> bool {
        self.has_learned || self.is_exhausted
    }

    /// Sees to it that enough is known.
    pub(crate) fn look_ahead(&mut self, source: &mut Source) -> Result<(), Error> {
        while !self.is_exhausted && self.asked.is_none() && self.known <= self.ahead {
            match self.work.claim(self.worker) {
                Some(section) if self.work.is_data(&section) => {
                    self.work.learn(false);
                    self.push(section, false);
                }
                Some(section) => self.ask(source, section)?,
                None => self.is_exhausted = true,
            }
        }
        Ok(())
    }

    fn ask(&mut self, source: &mut Source, range: Range<u64>) -> Result<(), Error> {
        if self.no_status.load(Ordering::Relaxed) {
            self.push(range, false);
            return Ok(());
        }
        match source.status(range.clone())? {
            Known::Now(extents) => {
                self.learn(&range, &extents);
                self.take(range, extents);
            }
            Known::Later => self.asked = Some(range),
        }
        Ok(())
    }

    /// Takes the answer to what was asked.
    pub(crate) fn take_status(&mut self, source: &mut Source, done: Done) -> Result<(), Error> {
        let Some(range) = self.asked.take() else {
            return Ok(());
        };
        if done.result.is_err() {
            // It is no reason to fail: reading tells the same, only later.
            self.no_status.store(true, Ordering::Relaxed);
            self.push(range, false);
            return Ok(());
        }
        let told = done.extents.last().map_or(0, |last| last.range.end);
        self.learn(&range, &done.extents);
        // Whoever tells less than a block at a time has it read instead: that ends.
        let least = (range.start / self.cut.block + 1).saturating_mul(self.cut.block);
        let told = if told >= range.end {
            range.end
        } else {
            (told - told % self.unit()).max(least).min(range.end)
        };
        self.take(range.start..told, done.extents);
        if told < range.end {
            self.ask(source, told..range.end)?;
        }
        Ok(())
    }

    /// Has all workers know what was told of a range.
    fn learn(&self, range: &Range<u64>, extents: &[Extent]) {
        let Some(last) = extents.last() else {
            return;
        };
        let is_whole = last.range.end >= range.end;
        self.work
            .learn(is_whole && extents.iter().all(|extent| extent.zero));
        // A hole may be told of too far as well, but data that is missing is worse than data that
        // is read in vain.
        if !last.zero && last.range.end > range.end {
            self.work.learn_data(range.end..last.range.end);
        }
    }

    /// What holes are rounded to.
    const fn unit(&self) -> u64 {
        if self.cut.block.is_multiple_of(PAGE) && PAGE.is_multiple_of(self.cut.unit) {
            PAGE
        } else {
            self.cut.unit
        }
    }

    /// Takes what is known of a range. What is not known to be zero is data, and so is what is
    /// left of a hole besides whole units.
    fn take(&mut self, range: Range<u64>, extents: Vec<Extent>) {
        let mut at = range.start;
        for hole in extents.iter().filter(|extent| extent.zero) {
            let hole = self.round(&hole.range, &range);
            let at_an_edge = hole.start <= range.start || hole.end >= range.end;
            if hole.is_empty() || hole.start < at {
                continue;
            }
            if hole.end - hole.start < SHORT_HOLE && !at_an_edge {
                continue;
            }
            self.push(at..hole.start, false);
            at = hole.end;
            self.push(hole, true);
        }
        self.push(at..range.end, false);
    }

    fn round(&self, hole: &Range<u64>, range: &Range<u64>) -> Range<u64> {
        let unit = self.unit();
        let start = hole.start.max(range.start);
        let end = hole.end.min(range.end);
        let start = start.div_ceil(unit).saturating_mul(unit);
        let end = if end == self.cut.size || end == range.end {
            end
        } else {
            end - end % unit
        };
        start..end
    }

    fn push(&mut self, range: Range<u64>, zero: bool) {
        if range.is_empty() {
            return;
        }
        self.has_learned = true;
        self.known += range.end - range.start;
        match self.extents.back_mut() {
            Some(last) if last.zero == zero && last.range.end == range.start => {
                last.range.end = range.end;
            }
            _ => self.extents.push_back(Extent { range, zero }),
        }
    }

    /// The next piece, if one is known; of zeroes at most `most_zeroes` bytes.
    pub(crate) fn next(&mut self, most_zeroes: u64) -> Option<Piece> {
        let extent = self.extents.front_mut()?;
        let offset = extent.range.start;
        let block = self.cut.block;
        let most = if extent.zero {
            offset.saturating_add(most_zeroes.max(self.cut.unit))
        } else {
            (offset / block + 1).saturating_mul(block)
        };
        let end = extent.range.end.min(most);
        let piece = Piece {
            offset,
            length: end - offset,
            zero: extent.zero,
        };
        extent.range.start = end;
        if extent.range.is_empty() {
            self.extents.pop_front();
        }
        self.known -= piece.length;
        Some(piece)
    }

    /// Takes a piece back that has to be cut in another way.
    pub(crate) fn give_back(&mut self, piece: &Piece) {
        self.known += piece.length;
        self.extents.push_front(Extent {
            range: piece.offset..piece.offset + piece.length,
            zero: piece.zero,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUT: Cut = Cut {
        block: 64 << 10,
        unit: 512,
        size: (1 << 20) + 700,
    };

    fn pieces(range: Range<u64>, holes: &[Range<u64>]) -> Vec<Piece> {
        let work = Work::new(CUT.size, CUT.block, 1, None);
        let no_status = AtomicBool::new(false);
        let mut feeder = Feeder::new(&work, 0, CUT, 0, &no_status);
        let holes = holes.iter().map(|hole| Extent {
            range: hole.clone(),
            zero: true,
        });
        feeder.take(range.clone(), holes.collect());
        let pieces: Vec<_> = std::iter::from_fn(|| feeder.next(256 << 10)).collect();
        let mut at = range.start;
        for piece in &pieces {
            assert_eq!(piece.offset, at);
            assert!(piece.length > 0);
            at += piece.length;
        }
        assert_eq!(at, range.end);
        assert_eq!(feeder.known, 0);
        pieces
    }

    #[test]
    fn data_is_cut_at_multiples_of_a_block() {
        for start in [0, 512, 64 << 10, 100_352] {
            for piece in pieces(start..CUT.size, &[]) {
                assert!(!piece.zero);
                let last = piece.offset + piece.length - 1;
                assert_eq!(piece.offset / CUT.block, last / CUT.block);
            }
        }
    }

    #[test]
    fn holes_shrink_to_whole_pages_and_short_ones_are_read() {
        let zeroes = |range: Range<u64>, hole: Range<u64>| {
            let found = pieces(range, &[hole]);
            let zeroes = found.iter().filter(|piece| piece.zero);
            zeroes
                .map(|piece| (piece.offset, piece.length))
                .collect::<Vec<_>>()
        };
        let all = 0..CUT.size;
        assert_eq!(zeroes(all.clone(), 100..50_000), [(4096, 45056)]);
        assert_eq!(zeroes(all.clone(), 4096..16384), []);
        assert_eq!(zeroes(all.clone(), 5000..6000), []);
        // The end of all need not be a multiple of anything.
        assert_eq!(
            zeroes(all.clone(), 1_000_000..CUT.size),
            [(1_003_520, 45756)]
        );
        // Reaching beyond what was asked.
        assert_eq!(zeroes(0..65536, 8192..u64::MAX), [(8192, 57344)]);
        // As large as one request may zero.
        assert_eq!(
            zeroes(all, 0..600 << 10),
            [
                (0, 256 << 10),
                (256 << 10, 256 << 10),
                (512 << 10, 88 << 10)
            ]
        );
    }

    #[test]
    fn data_that_goes_on_beyond_what_was_asked_is_learned_and_a_hole_that_does_is_not() {
        let work = Work::new(CUT.size, CUT.block, 2, None);
        let no_status = AtomicBool::new(false);
        let feeder = Feeder::new(&work, 0, CUT, 0, &no_status);
        let extent = |range, zero| Extent { range, zero };
        feeder.learn(&(0..1000), &[extent(0..10, true), extent(10..5000, false)]);
        assert!(work.is_data(&(1000..5000)));
        assert!(!work.is_data(&(4000..5001)));
        feeder.learn(&(6000..7000), &[extent(6000..9000, true)]);
        assert!(!work.is_data(&(7000..8000)));
        assert!(work.is_data(&(1000..5000)), "nothing else was told of that");
    }

    #[test]
    fn what_is_taken_back_comes_next() {
        let work = Work::new(CUT.size, CUT.block, 1, None);
        let no_status = AtomicBool::new(false);
        let mut feeder = Feeder::new(&work, 0, CUT, 0, &no_status);
        feeder.push(0..CUT.size, true);
        let piece = feeder.next(256 << 10).unwrap();
        feeder.give_back(&piece);
        let smaller = feeder.next(4096).unwrap();
        assert_eq!((smaller.offset, smaller.length), (0, 4096));
    }
}
