//! A map as one line of characters.

use super::extents::Extent;

const FULL: u8 = 1;
const EMPTY: u8 = 2;

/// Cells of equal size, each with what lies in it.
#[derive(Debug)]
pub(crate) struct Picture {
    size: u64,
    cells: Vec<u8>,
}

impl Picture {
    /// An export of `size` bytes, at most `width` characters wide.
    pub(crate) fn new(size: u64, width: usize) -> Self {
        let count = usize::try_from(size).map_or(width, |size| size.min(width));
        Self {
            size,
            cells: vec![0; count],
        }
    }

    /// How many bytes a character stands for, rounded up.
    pub(crate) const fn cell_size(&self) -> u64 {
        match self.cells.len() as u64 {
            0 => 0,
            count => self.size.div_ceil(count),
        }
    }

    /// Draws an extent. Takes time only for the cells that it lies in.
    pub(crate) fn draw(&mut self, extent: Extent, full: bool) {
        let Some(last) = extent.length.checked_sub(1) else {
            return;
        };
        let last = extent.offset.saturating_add(last);
        let (first, last) = (self.cell_of(extent.offset), self.cell_of(last));
        if let Some(cells) = self.cells.get_mut(first..=last) {
            for cell in cells {
                *cell |= if full { FULL } else { EMPTY };
            }
        }
    }

    /// The cell in which a byte lies.
    fn cell_of(&self, offset: u64) -> usize {
        let count = self.cells.len() as u128;
        let cell = (u128::from(offset) * count)
            .checked_div(self.size.into())
            .unwrap_or(0);
        usize::try_from(cell.min(count.saturating_sub(1))).unwrap_or(usize::MAX)
    }
}

impl std::fmt::Display for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use std::fmt::Write;

        self.cells.iter().try_for_each(|cell| {
            f.write_char(match *cell {
                FULL => '#',
                EMPTY => '.',
                0 => ' ',
                _ => '+',
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(size: u64, width: usize, parts: &[(u64, bool)]) -> String {
        let mut picture = Picture::new(size, width);
        let mut offset = 0;
        for &(length, full) in parts {
            let flags = 0;
            picture.draw(
                Extent {
                    offset,
                    length,
                    flags,
                },
                full,
            );
            offset += length;
        }
        picture.to_string()
    }

    #[test]
    fn each_cell_shows_all_that_lies_in_it() {
        assert_eq!(draw(8, 4, &[(4, true), (4, false)]), "##..");
        assert_eq!(draw(8, 4, &[(3, true), (5, false)]), "#+..");
        assert_eq!(draw(8, 4, &[(1, true), (6, false), (1, true)]), "+..+");
        assert_eq!(draw(8, 1, &[(7, true), (1, false)]), "+");
        assert_eq!(draw(3, 80, &[(1, true), (2, false)]), "#..");
        assert_eq!(draw(0, 80, &[]), "");
        assert_eq!(draw(8, 4, &[(4, true)]), "##  ");
    }

    #[test]
    fn the_largest_export_there_can_be_is_drawn() {
        let half = 1 << 63;
        assert_eq!(draw(u64::MAX, 2, &[(half, true), (half - 1, false)]), "#.");
        assert_eq!(Picture::new(u64::MAX, 4).cell_size(), 1 << 62);
    }

    #[test]
    fn cells_agree_with_a_byte_by_byte_drawing() {
        for size in 1..40_u64 {
            for width in 1..45 {
                let mut picture = Picture::new(size, width);
                let cells = picture.cells.len() as u64;
                let mut expected = vec![0; picture.cells.len()];
                for offset in 0..size {
                    let full = offset % 3 == 0;
                    let length = 1;
                    let flags = 0;
                    picture.draw(
                        Extent {
                            offset,
                            length,
                            flags,
                        },
                        full,
                    );
                    let cell = usize::try_from(offset * cells / size).unwrap();
                    expected[cell] |= if full { FULL } else { EMPTY };
                }
                assert_eq!(picture.cells, expected, "{size} in {width}");
                assert!(!picture.cells.contains(&0), "{size} in {width}");
            }
        }
    }
}
