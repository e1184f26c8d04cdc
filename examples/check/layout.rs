//! Where in the export it is written: a few cells, spread over all of it.
//!
//! A cell is what one scene plays on. It is as large as what caches keep at once, 64 KiB, so that
//! neighbours in a page disturb each other, and scenes do not.

use nbd_proto::conformance::Extent;

use super::contents::SMALLEST;
use super::dice::Dice;

/// What disks have for a sector: servers that cache do it in no smaller units.
const USUAL_GRANULE: u64 = 512;
const PAGE: u64 = 4096;
pub(crate) const CELL: u64 = 64 << 10;

/// More would take long to be looked at again.
const MOST_CELLS: u64 = 16;

/// No request is for more, whatever the server allows.
const MOST_BYTES: u64 = 128 << 10;

/// Where the cells are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    granule: u64,
    cells: Vec<Extent>,
    most_bytes: u64,
}

impl Layout {
    /// For an export of `size` bytes, whose requests are multiples of `minimum` and carry at most
    /// `maximum`. `None` if there is no room for anything.
    pub(crate) fn new(size: u64, minimum: u64, maximum: u64) -> Option<Self> {
        let usual = if size < USUAL_GRANULE {
            SMALLEST
        } else {
            USUAL_GRANULE
        };
        let granule = usual.max(minimum);
        let usable = size - size % granule;
        if usable == 0 || maximum < granule {
            return None;
        }
        let quarter = (usable / 4).max(1);
        let length = (1 << quarter.ilog2()).clamp(PAGE, CELL).max(4 * granule);
        let length = length.min(usable);
        let places = usable / length;
        let count = places.min(MOST_CELLS);
        let cell = |number: u64| {
            // In the order of the export, the first at its beginning, the last at its end.
            let place = match count {
                1 => 0,
                _ => {
                    let place = u128::from(number) * u128::from(places - 1) / u128::from(count - 1);
                    u64::try_from(place).unwrap_or(0)
                }
            };
            let offset = place * length;
            let end = if number + 1 == count {
                usable
            } else {
                offset + length
            };
            Extent::new(offset, end - offset)
        };
        let most_bytes = maximum.min(MOST_BYTES);
        Some(Self {
            granule,
            cells: (0..count).map(cell).collect(),
            most_bytes: most_bytes - most_bytes % granule,
        })
    }

    pub(crate) const fn granule(&self) -> u64 {
        self.granule
    }

    pub(crate) fn cells(&self) -> &[Extent] {
        &self.cells
    }

    /// How many bytes of the export are written to.
    pub(crate) fn bytes(&self) -> u64 {
        self.cells.iter().map(|cell| cell.length).sum()
    }

    /// An extent as requests that the server takes.
    pub(crate) fn requests(&self, extent: Extent) -> impl Iterator<Item = Extent> + use<> {
        let (end, step) = (extent.offset + extent.length, self.most_bytes);
        let mut at = extent.offset;
        std::iter::from_fn(move || {
            let length = step.min(end - at);
            let next = Extent::new(at, length);
            at += length;
            (length > 0).then_some(next)
        })
    }

    /// A few granules of a cell: within a page, mostly, sometimes a whole page, or nearly all.
    pub(crate) fn spot(&self, cell: Extent, dice: &mut Dice) -> Extent {
        let granules = cell.length / self.granule;
        let page = (PAGE / self.granule).max(1);
        // The first page is a favourite, so that there is something to be in the way of.
        let pages = granules.div_ceil(page);
        let favourite = if dice.percent(50) { 2 } else { pages };
        let first = page * dice.below(pages.min(favourite));
        let here = page.min(granules - first);
        let (start, count) = match dice.below(10) {
            0 => (first, here),
            1 => (first, granules - first),
            2..=4 => {
                let start = dice.below(here);
                (first + start, 1 + dice.below(here - start))
            }
            _ => (first + dice.below(here), 1),
        };
        let count = count.min(self.most_bytes / self.granule);
        Extent::new(cell.offset + start * self.granule, count * self.granule)
    }

    /// Something else of the same cell, most likely of the same page.
    pub(crate) fn neighbour(&self, cell: Extent, of: Extent, dice: &mut Dice) -> Extent {
        let end = cell.offset + cell.length;
        let (before, after) = (of.offset.checked_sub(self.granule), of.offset + of.length);
        let before = before.filter(|&it| it >= cell.offset);
        let after = (after < end).then_some(after);
        let next = if dice.percent(50) {
            before.or(after)
        } else {
            after.or(before)
        };
        match next {
            Some(offset) if dice.percent(75) => Extent::new(offset, self.granule),
            _ => self.spot(cell, dice),
        }
    }

    /// All pages that an extent touches, as far as they belong to the cell.
    pub(crate) fn surroundings(&self, cell: Extent, of: Extent) -> Extent {
        let unit = PAGE.max(self.granule);
        let start = (of.offset - of.offset % unit).max(cell.offset);
        let end = (of.offset + of.length).div_ceil(unit).checked_mul(unit);
        let last = cell.offset + cell.length;
        let end = end.map_or(last, |end| end.min(last));
        let length = (end - start).min(self.most_bytes);
        if start + length < of.offset + of.length {
            return of;
        }
        Extent::new(start, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAXIMUM: u64 = 32 << 20;

    fn end(extent: &Extent) -> u64 {
        extent.offset + extent.length
    }

    /// All kinds of exports.
    fn layouts() -> impl Iterator<Item = (u64, Layout)> {
        let sizes = [
            32,
            100,
            511,
            512,
            1000,
            4096,
            5000,
            65_536,
            65_537,
            1 << 20,
            16 << 20,
            (1 << 40) + 513,
            u64::MAX - 511,
            u64::MAX,
        ];
        let minima = [1, 512, 4096, 65_536];
        let cases = sizes.into_iter().flat_map(move |size| {
            let maxima = [512, 4096, 65_536, MAXIMUM];
            minima.into_iter().flat_map(move |minimum| {
                let fits = maxima.into_iter().filter(move |&it| it >= minimum);
                fits.map(move |maximum| (size, minimum, maximum))
            })
        });
        cases.filter_map(|(size, minimum, maximum)| {
            Some((size, Layout::new(size, minimum, maximum)?))
        })
    }

    #[test]
    fn cells_are_within_the_export_in_order_and_do_not_overlap() {
        for (size, layout) in layouts() {
            let cells = layout.cells();
            assert!(!cells.is_empty());
            assert!(cells.windows(2).all(|two| end(&two[0]) <= two[1].offset));
            assert_eq!(cells[0].offset, 0);
            let last = end(&cells[cells.len() - 1]);
            assert!(last <= size && size - last < layout.granule(), "{layout:?}");
            for cell in cells {
                assert_eq!(cell.offset % layout.granule(), 0);
                assert_eq!(cell.length % layout.granule(), 0);
                assert!(cell.length > 0);
            }
        }
    }

    #[test]
    fn what_is_chosen_from_a_cell_is_within_it_and_fits_a_request() {
        let mut dice = Dice::new(1);
        for (_, layout) in layouts() {
            for _ in 0..200 {
                let index = dice.index(layout.cells().len());
                let cell = layout.cells()[index];
                let spot = layout.spot(cell, &mut dice);
                let other = layout.neighbour(cell, spot, &mut dice);
                let around = layout.surroundings(cell, spot);
                assert!(around.offset <= spot.offset && end(&around) >= end(&spot));
                for extent in [spot, other, around] {
                    assert!(extent.offset >= cell.offset && end(&extent) <= end(&cell));
                    assert!(extent.length > 0 && extent.length % layout.granule() == 0);
                    assert_eq!(extent.offset % layout.granule(), 0);
                    assert_eq!(layout.requests(extent).count(), 1, "{layout:?} {extent:?}");
                }
            }
        }
    }

    #[test]
    fn requests_are_all_of_an_extent() {
        for (_, layout) in layouts() {
            for &cell in layout.cells() {
                let mut at = cell.offset;
                for request in layout.requests(cell) {
                    assert_eq!(request.offset, at);
                    assert!(request.length <= layout.most_bytes);
                    at = end(&request);
                }
                assert_eq!(at, end(&cell));
            }
        }
    }

    #[test]
    fn a_large_export_has_cells_of_64_kib_and_a_small_one_has_pages() {
        let length = |size| Layout::new(size, 1, MAXIMUM).unwrap().cells()[0].length;
        assert_eq!(length(16 << 20), 64 << 10);
        assert_eq!(length(16 << 10), 4096);
        assert_eq!(length(4096), 4096);
        let layout = Layout::new(4096, 1, MAXIMUM).unwrap();
        assert_eq!((layout.granule(), layout.cells().len()), (512, 1));
    }

    #[test]
    fn there_is_nothing_to_do_where_nothing_fits() {
        assert_eq!(Layout::new(0, 1, MAXIMUM), None);
        assert_eq!(Layout::new(31, 1, MAXIMUM), None);
        assert_eq!(Layout::new(4095, 4096, MAXIMUM), None);
    }
}
