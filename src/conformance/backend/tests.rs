//! Tests of the models, sentence by sentence of the contract.

use alloc::vec;
use alloc::vec::Vec;

use super::{Access, Breach, Failure, Handle, Kind, Model};

fn write(model: &mut Model, handle: Handle, block: u64, content: u64) {
    let access = Access::Write {
        blocks: block..block + 1,
        content,
        fua: false,
    };
    let call = model.begin(handle, access).unwrap();
    assert_eq!(model.finish(call), Some(vec![]));
}

fn write_fua(model: &mut Model, handle: Handle, block: u64, content: u64) {
    let access = Access::Write {
        blocks: block..block + 1,
        content,
        fua: true,
    };
    let call = model.begin(handle, access).unwrap();
    assert_eq!(model.finish(call), Some(vec![]));
}

fn read(model: &mut Model, handle: Handle, block: u64) -> u64 {
    let blocks = block..block + 1;
    let call = model.begin(handle, Access::Read { blocks }).unwrap();
    model.finish(call).unwrap()[0]
}

fn flush(model: &mut Model, handle: Handle) {
    let flushing = model.begin_flush(handle).unwrap();
    assert!(model.finish_flush(flushing));
}

const CACHING: [Kind; 4] = [
    Kind::per_connection(),
    Kind::per_connection().with_volatile_storage(true),
    Kind::per_connection().with_self_coherent(true),
    Kind::granular(2),
];

#[test]
fn a_flush_makes_permanent_what_had_completed_on_its_handle() {
    for kind in CACHING.into_iter().chain([Kind::shared()]) {
        let mut model = Model::new(kind, 4);
        let (a, b) = (model.open(), model.open());
        write(&mut model, a, 0, 1);
        assert_eq!(model.survivors(0), [0, 1], "{kind:?}");
        flush(&mut model, a);
        assert_eq!(model.survivors(0), [1], "{kind:?}");
        assert_eq!(read(&mut model, b, 0), 1);
    }
}

#[test]
fn a_flush_does_not_cover_another_handle_unless_the_cache_is_shared() {
    for kind in CACHING {
        let mut model = Model::new(kind, 4);
        let (a, b) = (model.open(), model.open());
        write(&mut model, a, 0, 1);
        flush(&mut model, b);
        assert_eq!(model.survivors(0), [0, 1], "{kind:?}");
        assert_eq!(read(&mut model, b, 0), 0, "{kind:?}");
    }
    let mut model = Model::new(Kind::shared(), 4);
    let (a, b) = (model.open(), model.open());
    write(&mut model, a, 0, 1);
    flush(&mut model, b);
    assert_eq!(model.survivors(0), [1]);
}

#[test]
fn what_completes_while_a_flush_runs_is_not_covered_by_it() {
    for kind in CACHING.into_iter().chain([Kind::shared()]) {
        let mut model = Model::new(kind, 4);
        let a = model.open();
        write(&mut model, a, 0, 1);
        let flushing = model.begin_flush(a).unwrap();
        write(&mut model, a, 0, 2);
        model.finish_flush(flushing);
        assert_eq!(model.survivors(0), [1, 2], "{kind:?}");
        assert_eq!(read(&mut model, a, 0), 2, "{kind:?}");
        flush(&mut model, a);
        assert_eq!(model.survivors(0), [2], "{kind:?}");
    }
}

#[test]
fn a_flush_drops_what_was_loaded_before_it() {
    for kind in CACHING {
        let mut model = Model::new(kind, 4);
        let (a, b) = (model.open(), model.open());
        read(&mut model, b, 0);
        write(&mut model, a, 0, 1);
        flush(&mut model, a);
        assert_eq!(read(&mut model, b, 0), 0, "{kind:?}");
        flush(&mut model, b);
        assert_eq!(read(&mut model, b, 0), 1, "{kind:?}");
    }
}

#[test]
fn what_was_written_back_early_is_not_written_once_more_by_the_flush_that_was_running() {
    for kind in CACHING {
        let mut model = Model::new(kind, 4);
        let (a, b) = (model.open(), model.open());
        write(&mut model, a, 0, 1);
        let flushing = model.begin_flush(a).unwrap();
        assert!(model.write_back(a, 0));
        assert!(!model.write_back(a, 0));
        write(&mut model, b, 0, 2);
        flush(&mut model, b);
        model.finish_flush(flushing);
        assert_eq!(model.visible(0), 2, "{kind:?}");
        assert_eq!(model.survivors(0), [2], "{kind:?}");
    }
}

#[test]
fn a_flush_covers_what_was_written_back_early_since_it_began() {
    for kind in CACHING {
        let mut model = Model::new(kind, 4);
        let a = model.open();
        write(&mut model, a, 0, 1);
        let flushing = model.begin_flush(a).unwrap();
        model.write_back(a, 0);
        model.finish_flush(flushing);
        assert_eq!(model.survivors(0), [1], "{kind:?}");
    }
}

#[test]
fn a_held_read_leaves_in_the_cache_what_it_has_fetched_before_a_flush() {
    let held = |kind: Kind| {
        let mut model = Model::new(kind, 4);
        let (a, b) = (model.open(), model.open());
        let call = model.begin(a, Access::Read { blocks: 0..1 }).unwrap();
        assert!(model.fetch(call, 0));
        assert!(!model.fetch(call, 9));
        write(&mut model, b, 0, 1);
        flush(&mut model, b);
        flush(&mut model, a);
        let found = model.finish(call).unwrap();
        (found, read(&mut model, a, 0))
    };
    assert_eq!(held(Kind::per_connection()), (vec![0], 0));
    let coherent = Kind::per_connection().with_self_coherent(true);
    assert_eq!(held(coherent), (vec![1], 1));
}

#[test]
fn a_handle_reads_what_was_written_through_it_though_it_had_to_make_room() {
    for kind in CACHING {
        let mut model = Model::new(kind, 4);
        let a = model.open();
        let held = model.begin(a, Access::Read { blocks: 0..1 }).unwrap();
        model.fetch(held, 0);
        write(&mut model, a, 0, 1);
        assert!(model.evict(a, 0));
        assert_eq!(model.cached(a, 0), None);
        assert_eq!(model.finish(held), Some(vec![1]), "{kind:?}");
        assert_eq!(read(&mut model, a, 0), 1);
    }
}

#[test]
fn a_write_may_take_effect_before_its_end_but_once() {
    let mut model = Model::new(Kind::per_connection(), 4);
    let (a, b) = (model.open(), model.open());
    let access = Access::Write {
        blocks: 0..2,
        content: 1,
        fua: false,
    };
    let call = model.begin(a, access).unwrap();
    assert_eq!(model.survivors(1), [0, 1]);
    assert!(model.apply(call, 0));
    assert!(!model.apply(call, 0));
    assert!(!model.apply(call, 2));
    flush(&mut model, a);
    write(&mut model, b, 0, 2);
    flush(&mut model, b);
    model.finish(call);
    assert_eq!(model.cached(a, 0), None);
    assert_eq!(model.cached(a, 1), Some((1, true)));
    assert_eq!(model.survivors(0), [2]);
}

#[test]
fn a_command_that_fails_has_the_effect_that_it_had_before() {
    let mut model = Model::new(Kind::per_connection(), 4);
    let a = model.open();
    let access = Access::Write {
        blocks: 0..2,
        content: 1,
        fua: false,
    };
    let call = model.begin(a, access).unwrap();
    model.apply(call, 1);
    assert!(model.fail(call));
    assert!(!model.fail(call));
    assert_eq!((read(&mut model, a, 0), read(&mut model, a, 1)), (0, 1));
}

#[test]
fn a_cache_of_granules_reverts_its_neighbours_blocks() {
    let mut model = Model::new(Kind::granular(2), 4);
    let (a, b) = (model.open(), model.open());
    write(&mut model, a, 0, 1);
    write(&mut model, b, 1, 2);
    flush(&mut model, b);
    assert_eq!((model.visible(0), model.visible(1)), (0, 2));
    flush(&mut model, a);
    assert_eq!((model.visible(0), model.visible(1)), (1, 0));
}

#[test]
fn a_granule_that_is_written_to_during_a_flush_keeps_nothing_from_before_it() {
    let mut model = Model::new(Kind::granular(2), 4);
    let (a, b) = (model.open(), model.open());
    // Loaded before the flush, and merged with a write after its begin.
    read(&mut model, a, 1);
    write(&mut model, b, 1, 5);
    flush(&mut model, b);
    let flushing = model.begin_flush(a).unwrap();
    write(&mut model, a, 0, 1);
    model.finish_flush(flushing);
    assert_eq!(read(&mut model, a, 1), 5);
    // Written before the flush: by it, and not once more with the rest of the granule.
    write(&mut model, a, 3, 6);
    let flushing = model.begin_flush(a).unwrap();
    write(&mut model, a, 2, 7);
    model.finish_flush(flushing);
    flush(&mut model, b);
    write(&mut model, b, 3, 8);
    flush(&mut model, b);
    flush(&mut model, a);
    assert_eq!(model.visible(3), 8);
}

#[test]
fn a_failed_flush_does_to_the_data_what_the_kind_says() {
    let fail = |failure: Failure, kind: Kind| {
        let mut model = Model::new(kind.with_failure(failure), 4);
        let a = model.open();
        write(&mut model, a, 0, 1);
        let flushing = model.begin_flush(a).unwrap();
        assert!(model.fail_flush(flushing));
        let before = read(&mut model, a, 0);
        flush(&mut model, a);
        (before, model.survivors(0))
    };
    for kind in CACHING.into_iter().chain([Kind::shared()]) {
        assert_eq!(fail(Failure::Keeps, kind), (1, vec![1]), "{kind:?}");
        assert_eq!(fail(Failure::Drops, kind), (0, vec![0]), "{kind:?}");
        assert_eq!(fail(Failure::Forgets, kind), (1, vec![0]), "{kind:?}");
    }
}

#[test]
fn what_one_handle_gives_up_is_not_what_another_has_written_over_it() {
    let kind = Kind::dropping().with_volatile_storage(true);
    let mut model = Model::new(kind, 4);
    let (a, b) = (model.open(), model.open());
    write(&mut model, a, 0, 1);
    model.evict(a, 0);
    write(&mut model, b, 0, 2);
    model.evict(b, 0);
    let flushing = model.begin_flush(a).unwrap();
    model.fail_flush(flushing);
    assert_eq!(model.visible(0), 2);
    flush(&mut model, b);
    assert_eq!(model.survivors(0), [2]);
}

#[test]
fn a_command_with_fua_is_permanent_when_it_ends() {
    for kind in CACHING
        .into_iter()
        .chain([Kind::shared(), Kind::without_cache()])
    {
        let mut model = Model::new(kind.with_fua(true), 4);
        let a = model.open();
        write_fua(&mut model, a, 0, 1);
        assert_eq!(model.survivors(0), [1], "{kind:?}");
        let mut model = Model::new(kind.with_fua(true).with_breach(Breach::NotPermanent), 4);
        let a = model.open();
        write_fua(&mut model, a, 0, 1);
        assert_eq!(model.survivors(0), [0, 1], "{kind:?}");
    }
}

#[test]
fn each_breach_breaks_its_sentence() {
    let run = |breach: Breach| {
        let mut model = Model::new(Kind::per_connection().with_breach(breach), 4);
        let (a, b) = (model.open(), model.open());
        read(&mut model, b, 0);
        write(&mut model, a, 0, 1);
        flush(&mut model, a);
        flush(&mut model, b);
        let fresh = read(&mut model, b, 0) == 1;
        let permanent = model.survivors(0) == [1];
        write(&mut model, b, 0, 2);
        flush(&mut model, b);
        flush(&mut model, a);
        let once = model.visible(0) == 2;
        (permanent, fresh, once)
    };
    assert_eq!(run(Breach::None), (true, true, true));
    assert_eq!(run(Breach::FlushDoesNothing), (false, false, false));
    assert_eq!(run(Breach::NotPermanent), (false, true, true));
    assert_eq!(run(Breach::KeepsOld), (true, false, true));
    assert!(!run(Breach::WritesAgain).2);
}

#[test]
fn a_crash_leaves_for_each_block_what_is_chosen_of_what_can_have_reached_storage() {
    let mut model = Model::new(Kind::per_connection(), 3);
    let (a, b) = (model.open(), model.open());
    write(&mut model, a, 0, 1);
    flush(&mut model, a);
    write(&mut model, a, 0, 2);
    let flushing = model.begin_flush(a);
    write(&mut model, a, 0, 3);
    write(&mut model, b, 0, 4);
    let access = Access::Write {
        blocks: 0..1,
        content: 5,
        fua: false,
    };
    let call = model.begin(b, access);
    assert_eq!(model.survivors(0), [1, 3, 4, 2, 5]);
    let mut before: Vec<Vec<u64>> = vec![];
    let image = model.clone().crash(|_, survivors| {
        before.push(survivors.to_vec());
        1
    });
    assert_eq!(before, [vec![1, 3, 4, 2, 5], vec![0], vec![0]]);
    assert_eq!(image, [3, 0, 0]);
    assert_eq!(model.crash(|_, _| usize::MAX), [5, 0, 0]);
    assert_eq!(model.survivors(0), [5]);
    assert!(!model.finish_flush(flushing.unwrap()));
    assert_eq!(model.finish(call.unwrap()), None);
    assert_eq!(model.begin(a, Access::Read { blocks: 0..1 }), None);
    let c = model.open();
    assert_eq!(read(&mut model, c, 0), 5);
}

#[test]
fn closing_drops_what_was_not_written_out() {
    let mut model = Model::new(Kind::per_connection(), 2);
    let a = model.open();
    write(&mut model, a, 0, 1);
    assert!(model.close(a));
    assert!(!model.close(a));
    assert_eq!(model.survivors(0), [0]);
    assert_eq!(model.begin_flush(a), None);
}

#[test]
fn opening_loads_everything_where_that_is_the_kind() {
    let kind = Kind::per_connection().with_loads_on_open(true);
    let mut model = Model::new(kind, 2);
    let a = model.open();
    assert_eq!(model.cached(a, 1), Some((0, false)));
    let mut model = Model::new(Kind::shared().with_loads_on_open(true), 2);
    let a = model.open();
    assert_eq!(model.cached(a, 1), None);
}
