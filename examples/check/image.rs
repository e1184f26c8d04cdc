//! Data that nobody modifies: whoever reads it, and whenever, finds the same.

use std::collections::HashMap;
use std::fmt;

use nbd_proto::conformance::{Content, Contents, Extent};

/// What the first reads have found.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    granule: u64,
    seen: HashMap<u64, Sight>,
}

/// What was found, by whom and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sight {
    pub(crate) content: Content,
    pub(crate) conn: u32,
    /// The number of the reply among all events.
    pub(crate) event: u64,
}

/// Two reads that do not agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) first: Sight,
    pub(crate) second: Sight,
}

impl Image {
    pub(crate) fn new(granule: u64) -> Self {
        Self {
            granule,
            seen: HashMap::new(),
        }
    }

    /// A read has found this.
    ///
    /// # Errors
    ///
    /// If another read has found something else.
    pub(crate) fn look(
        &mut self,
        conn: u32,
        event: u64,
        extent: Extent,
        contents: &Contents,
    ) -> Result<(), Difference> {
        for number in 0..extent.length / self.granule {
            let content = match contents {
                Contents::Same(content) => *content,
                Contents::Each(each) => {
                    let at = usize::try_from(number).ok().and_then(|at| each.get(at));
                    at.copied().unwrap_or(Content::MIXED)
                }
            };
            let offset = extent.offset + number * self.granule;
            let second = Sight {
                content,
                conn,
                event,
            };
            let first = *self.seen.entry(offset).or_insert(second);
            if first.content != content {
                return Err(Difference {
                    offset,
                    length: self.granule,
                    first,
                    second,
                });
            }
        }
        Ok(())
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            offset,
            length,
            first,
            second,
        } = self;
        write!(
            f,
            "two reads of data that nobody modifies do not agree\n\
             At offset {offset}, {length} bytes: connection {} has found {} (event {}), and \
             connection {} {} (event {}).",
            first.conn,
            Named(first.content),
            first.event,
            second.conn,
            Named(second.content),
            second.event,
        )
    }
}

struct Named(Content);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Content::ZEROES => f.write_str("zeroes"),
            Content(sum) => write!(f, "data with the checksum {sum:016x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTENT: Extent = Extent::new(1024, 1024);

    #[test]
    fn reads_that_agree_are_fine_and_the_first_one_decides() {
        let mut image = Image::new(512);
        let each = Contents::Each(vec![Content(1), Content(2)]);
        assert_eq!(image.look(0, 1, EXTENT, &each), Ok(()));
        assert_eq!(image.look(1, 2, EXTENT, &each), Ok(()));
        let second = Extent::new(1536, 512);
        let found = Contents::Same(Content(1));
        let difference = image.look(2, 9, second, &found).unwrap_err();
        assert_eq!(difference.offset, 1536);
        assert_eq!(
            (difference.first.content, difference.first.conn),
            (Content(2), 0)
        );
        assert_eq!(
            (difference.second.content, difference.second.event),
            (Content(1), 9)
        );
        assert!(difference.to_string().contains("connection 2"));
        // Somewhere else it is something else.
        assert_eq!(image.look(2, 9, Extent::new(0, 512), &found), Ok(()));
    }
}
