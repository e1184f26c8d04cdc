//! Which connection a range belongs to.

use nbd_proto::multiplex::{Caution, Intent, Part, Pinning, Routing, Use, plan};
use nbd_proto::session::{BlockSizes, Session};
use nbd_proto::wire::{Name, TransmissionFlags as Flags};
use proptest::prelude::*;

/// The granule of an insisted plan over two connections.
fn granule(size: u64, preferred: u32, wish: Option<u64>) -> Option<u64> {
    let flags = Flags::HAS_FLAGS | Flags::SEND_FLUSH;
    let sizes = BlockSizes::new(512, preferred, 1 << 25).unwrap();
    let session = Session::new(Name::default(), size, flags).with_block_sizes(sizes);
    let mut intent = Intent::new(Use::Copy, 2).with_caution(Caution::Insist);
    if let Some(wish) = wish {
        intent = intent.with_granule(wish);
    }
    let mut plan = plan(&session, intent);
    while plan.to_open() > 0 {
        plan.admit(&session).unwrap();
    }
    match plan.routing() {
        Routing::Pinned(pinning) => Some(pinning.granule()),
        Routing::Single | Routing::Any => None,
    }
}

#[test]
fn the_granule_is_never_below_the_preferred_block_size() {
    assert_eq!(granule(1 << 30, 4096, Some(1)), Some(4096));
    assert_eq!(granule(1 << 30, 1 << 22, None), Some(1 << 22));
    assert_eq!(granule(1 << 30, 1 << 22, Some(1 << 21)), Some(1 << 22));
    // So large that there is one only.
    assert_eq!(granule(1 << 20, 1 << 20, None), None);
}

#[test]
fn the_granule_leaves_something_for_each_connection() {
    assert_eq!(granule(1 << 30, 4096, None), Some(1 << 20));
    assert_eq!(granule(1 << 20, 4096, None), Some(1 << 19));
    assert_eq!(granule((1 << 20) - 1, 4096, None), Some(1 << 18));
    assert_eq!(granule(5000, 4096, None), Some(4096));
}

#[test]
fn a_wish_is_rounded_up_to_a_power_of_two() {
    assert_eq!(granule(1 << 30, 4096, Some(100_000)), Some(1 << 17));
    assert_eq!(Pinning::new(0, 0), Pinning::new(1, 1));
    assert_eq!(Pinning::new(u64::MAX, 2).granule(), 1 << 63);
}

#[test]
fn with_one_connection_nothing_is_split() {
    let whole = Part {
        connection: 0,
        offset: 5,
        length: 1 << 40,
    };
    assert_eq!(
        Pinning::new(4096, 1).parts(5, 1 << 40).collect::<Vec<_>>(),
        [whole]
    );
}

#[test]
fn a_range_that_reaches_beyond_the_end_of_numbers_ends_there() {
    let parts: Vec<_> = Pinning::new(1 << 20, 3)
        .parts(u64::MAX - 5, u64::MAX)
        .collect();
    assert_eq!(parts.iter().map(|it| it.length).sum::<u64>(), 5);
    let empty = Pinning::new(1 << 20, 3).parts(u64::MAX, 1).count();
    assert_eq!(empty, 0);
    assert_eq!(Pinning::new(1 << 20, 3).parts(4096, 0).count(), 0);
}

proptest! {
    #[test]
    fn parts_are_the_range_in_order_and_each_byte_is_where_it_is_pinned(
        granule in 0..20_u32,
        connections in 1..9_u32,
        offset in 0..1_u64 << 22,
        granules in 0..40_u64,
        more in any::<u64>(),
    ) {
        let pinning = Pinning::new(1 << granule, connections);
        let length = (granules << granule) + (more & ((1 << granule) - 1));
        let mut next = offset;
        for part in pinning.parts(offset, length) {
            prop_assert_eq!(part.offset, next);
            prop_assert!(part.length > 0 && part.connection < connections);
            // The first and the last byte, and so all: a part has no granule's end within.
            prop_assert_eq!(pinning.connection(part.offset), part.connection);
            prop_assert_eq!(pinning.connection(part.offset + part.length - 1), part.connection);
            if connections > 1 {
                let last = part.offset + part.length - 1;
                prop_assert_eq!(part.offset >> granule, last >> granule);
            }
            next += part.length;
        }
        prop_assert_eq!(next, offset + length);
    }

    #[test]
    fn what_is_aligned_to_blocks_remains_so(
        blocks in (0..5000_u64, 1..5000_u64),
        connections in 1..9_u32,
    ) {
        let pinning = Pinning::new(1 << 16, connections);
        for part in pinning.parts(blocks.0 * 4096, blocks.1 * 4096) {
            prop_assert_eq!((part.offset % 4096, part.length % 4096), (0, 0));
        }
    }
}
