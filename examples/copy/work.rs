//! The offsets of the source, dealt out to the workers in sections.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use nbd_proto::multiplex::Pinning;

/// Sections are no larger than this at first, in bytes: enough to make few of them, and to leave
/// each worker some of the work to the end.
const LARGEST: u64 = 128 << 20;

/// Nor smaller, unless a worker's share is.
pub(crate) const SMALLEST: u64 = 4 << 20;

/// How many sections there are for each worker, if they are not too small then.
const PER_WORKER: u64 = 16;

/// A section that is nothing but a hole is followed by one of twice the size, up to this, so that
/// vast holes do not take vast numbers of questions. One that has data is followed by one of the
/// usual size. It is less than 4 GiB, which is more than a request can ask about.
const LARGEST_HOLE: u64 = 2 << 30;

/// What is still to be dealt out.
#[derive(Debug)]
pub(crate) struct Work {
    size: u64,
    section: u64,
    pinning: Option<Pinning>,
    left: Mutex<Left>,
}

#[derive(Debug)]
struct Left {
    /// Where the next section begins: of each worker, if each has ranges of its own, else of all.
    next: Vec<u64>,
    section: u64,
    /// What is known to be data though nobody has claimed it yet: the last that was told of it.
    data: Range<u64>,
}

impl Work {
    /// All of `size` bytes for so many workers, in multiples of `block` but for the end. With
    /// `pinning` a worker gets what is pinned to the connection of its number.
    pub(crate) fn new(size: u64, block: u64, workers: usize, pinning: Option<Pinning>) -> Self {
        let section = section(size, block, workers);
        let next = match pinning {
            Some(pinning) => (0..pinning.connections())
                .map(|number| u64::from(number).saturating_mul(pinning.granule()))
                .collect(),
            None => vec![0],
        };
        Self {
            size,
            section,
            pinning,
            left: Mutex::new(Left {
                next,
                section,
                data: 0..0,
            }),
        }
    }

    /// What is pinned to whom, if anything is.
    pub(crate) const fn pinning(&self) -> Option<Pinning> {
        self.pinning
    }

    /// The next section for a worker; none if there is nothing left for it.
    pub(crate) fn claim(&self, worker: usize) -> Option<Range<u64>> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let section = left.section;
        let Some(pinning) = self.pinning else {
            let next = left.next.first_mut()?;
            let start = *next;
            let end = start.saturating_add(section).min(self.size);
            *next = end;
            return (start < end).then_some(start..end);
        };
        let next = left.next.get_mut(worker)?;
        let start = *next;
        let end = start.saturating_add(pinning.granule()).min(self.size);
        let turn = pinning
            .granule()
            .saturating_mul(pinning.connections().into());
        *next = start.saturating_add(turn);
        (start < end).then_some(start..end)
    }

    /// Takes note of what is data beyond what was asked: a source that says so need not be asked
    /// again, which may take it long. Some have to look at all of the data to find its end.
    pub(crate) fn learn_data(&self, range: Range<u64>) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let known = &mut left.data;
        if range.start <= known.end && known.start <= range.end {
            *known = known.start.min(range.start)..known.end.max(range.end);
        } else if range.end > known.end {
            *known = range;
        }
    }

    /// Whether a section is known to be data.
    pub(crate) fn is_data(&self, section: &Range<u64>) -> bool {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.data.start <= section.start && section.end <= left.data.end
    }

    /// Takes note of whether a section was nothing but a hole.
    pub(crate) fn learn(&self, is_hole: bool) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.section = if is_hole {
            // Doubled, it is still a multiple of whatever it was a multiple of.
            let twice = left.section.saturating_mul(2);
            if twice <= LARGEST_HOLE {
                twice
            } else {
                left.section
            }
        } else {
            self.section
        };
    }
}

/// How large sections are: a multiple of `block`.
pub(crate) fn section(size: u64, block: u64, workers: usize) -> u64 {
    let section = match workers {
        0 | 1 => LARGEST,
        _ => (size / (PER_WORKER * workers as u64)).clamp(SMALLEST, LARGEST),
    };
    (section - section % block).max(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(work: &Work, workers: usize) -> Vec<(usize, Range<u64>)> {
        let mut sections = Vec::new();
        let mut busy: Vec<_> = (0..workers).collect();
        while !busy.is_empty() {
            busy.retain(|&worker| match work.claim(worker) {
                Some(section) => {
                    sections.push((worker, section));
                    true
                }
                None => false,
            });
        }
        sections.sort_by_key(|(_, section)| section.start);
        sections
    }

    fn check_whole(sections: &[(usize, Range<u64>)], size: u64) {
        let mut at = 0;
        for (_, section) in sections {
            assert_eq!(section.start, at, "a gap, or twice the same");
            assert!(section.end > at);
            at = section.end;
        }
        assert_eq!(at, size);
    }

    #[test]
    fn every_byte_is_dealt_out_once_however_many_workers_there_are() {
        for size in [0, 1, 4096, (100 << 20) + 77, 3 << 30] {
            for workers in [1, 2, 3, 8] {
                for block in [512, 256 << 10, 32 << 20] {
                    let work = Work::new(size, block, workers, None);
                    let sections = all(&work, workers);
                    check_whole(&sections, size);
                    assert!(sections.iter().all(|(_, it)| it.start % block == 0));
                }
            }
        }
    }

    #[test]
    fn what_is_pinned_is_dealt_out_to_whom_it_is_pinned() {
        for size in [1, 10 << 20, (64 << 20) + 5] {
            let pinning = Pinning::new(4 << 20, 3);
            let work = Work::new(size, 1 << 18, 3, Some(pinning));
            let sections = all(&work, 3);
            check_whole(&sections, size);
            for (worker, section) in sections {
                let last = section.end - 1;
                for offset in [section.start, last] {
                    assert_eq!(pinning.connection(offset) as usize, worker);
                }
            }
        }
    }

    #[test]
    fn only_what_was_told_to_be_data_is_known_to_be() {
        let work = Work::new(1000, 1, 1, None);
        assert!(!work.is_data(&(0..1)));
        work.learn_data(100..200);
        for (section, known) in [(100..200, true), (99..200, false), (100..201, false)] {
            assert_eq!(work.is_data(&section), known, "{section:?}");
        }
        // More of the same, told by others and in any order.
        work.learn_data(200..300);
        work.learn_data(50..120);
        assert!(work.is_data(&(50..300)));
        // Beyond a gap, of which nothing is known.
        work.learn_data(400..500);
        assert!(work.is_data(&(400..500)));
        assert!(!work.is_data(&(250..450)));
        assert!(!work.is_data(&(300..400)));
        work.learn_data(10..20);
        assert!(work.is_data(&(400..500)), "what comes later is of more use");
    }

    #[test]
    fn a_vast_hole_takes_few_sections_and_data_the_usual_ones() {
        let size = 1 << 50;
        let work = Work::new(size, 256 << 10, 4, None);
        let mut sections = Vec::new();
        while let Some(section) = work.claim(0) {
            assert!(section.end - section.start <= u64::from(u32::MAX - 65536));
            sections.push((0, section));
            work.learn(true);
        }
        check_whole(&sections, size);
        assert!(sections.len() < 600_000, "{}", sections.len());

        let work = Work::new(size, 256 << 10, 4, None);
        work.learn(true);
        work.learn(true);
        work.learn(false);
        let section = work.claim(0).unwrap();
        assert_eq!(section.end - section.start, LARGEST);
    }
}
