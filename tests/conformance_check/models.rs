//! The model backends that others test with: what they keep of the contract, and what schedules
//! over them show.

use nbd_proto::conformance::Promise;
use nbd_proto::conformance::backend::{Access, Failure, Handle, Kind, Model};
use nbd_proto::conformance::property::{
    Act, Broken, Coordinated, Coordinator, ModelServer, Schedule, Step, Task, Trouble, play,
};
use nbd_proto::flush::{Advertised, Backend, Command, Config, Mode};
use nbd_proto::wire::{CommandType, Errno};

fn write(model: &mut Model, handle: Handle, block: u64, content: u64) {
    let access = Access::Write {
        blocks: block..block + 1,
        content,
        fua: false,
    };
    let call = model.begin(handle, access).unwrap();
    model.finish(call).unwrap();
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

#[test]
fn a_flush_drops_what_was_loaded_before_it() {
    let mut model = Model::new(Kind::per_connection(), 2);
    let (a, b) = (model.open(), model.open());
    read(&mut model, b, 0);
    write(&mut model, a, 0, 1);
    flush(&mut model, a);
    assert_eq!(read(&mut model, b, 0), 0);
    flush(&mut model, b);
    assert_eq!(read(&mut model, b, 0), 1);
}

#[test]
fn a_flush_does_not_cover_what_completes_while_it_runs() {
    for kind in [Kind::per_connection(), Kind::shared()] {
        let mut model = Model::new(kind, 2);
        let a = model.open();
        write(&mut model, a, 0, 1);
        let flushing = model.begin_flush(a).unwrap();
        write(&mut model, a, 0, 2);
        model.finish_flush(flushing);
        assert_eq!(model.survivors(0), [1, 2], "{kind:?}");
        assert_eq!(read(&mut model, a, 0), 2, "{kind:?}");
    }
}

#[test]
fn what_was_written_back_is_not_written_once_more() {
    let mut model = Model::new(Kind::per_connection(), 2);
    let (a, b) = (model.open(), model.open());
    write(&mut model, a, 0, 1);
    let flushing = model.begin_flush(a).unwrap();
    model.write_back(a, 0);
    write(&mut model, b, 0, 2);
    flush(&mut model, b);
    model.finish_flush(flushing);
    assert_eq!(model.survivors(0), [2]);
}

#[test]
fn whatever_is_dirty_may_survive_a_crash() {
    let mut model = Model::new(Kind::per_connection(), 2);
    let (a, b) = (model.open(), model.open());
    write(&mut model, a, 0, 1);
    write(&mut model, b, 0, 2);
    let access = Access::Write {
        blocks: 0..2,
        content: 3,
        fua: false,
    };
    let held = model.begin(b, access);
    assert!(held.is_some());
    assert_eq!(model.survivors(0), [0, 1, 2, 3]);
    assert_eq!(model.crash(|_, survivors| survivors.len() - 1), [3, 3]);
}

#[test]
fn volatile_storage_keeps_what_its_own_handle_has_flushed() {
    let kind = Kind::per_connection().with_volatile_storage(true);
    let mut model = Model::new(kind, 2);
    let (a, b) = (model.open(), model.open());
    write(&mut model, a, 0, 1);
    model.evict(a, 0);
    flush(&mut model, b);
    assert_eq!((model.visible(0), model.survivors(0)), (1, vec![0, 1]));
    flush(&mut model, a);
    assert_eq!(model.survivors(0), [1]);
}

#[test]
fn a_failed_flush_of_the_dropping_kind_drops() {
    let kind = Kind::dropping();
    assert_eq!(kind.failure(), Failure::Drops);
    let mut model = Model::new(kind, 2);
    let a = model.open();
    write(&mut model, a, 0, 1);
    let flushing = model.begin_flush(a).unwrap();
    model.fail_flush(flushing);
    flush(&mut model, a);
    assert_eq!((model.survivors(0), read(&mut model, a, 0)), (vec![0], 0));
}

const fn write_step(fua: bool) -> Step {
    Step::Write {
        conn: 0,
        block: 0,
        count: 1,
        fua,
    }
}

const FINISH: Step = Step::Act(Act::Finish(0));

fn judge(mode: Mode, kind: Kind, steps: &[Step]) -> Result<(), Broken> {
    let coordinator = Coordinated::new(Config::new().with_mode(mode));
    let mut server = ModelServer::new(coordinator, kind, 2);
    play(&mut server, &Schedule::new(2, steps.to_vec()))?.judge()
}

#[test]
fn a_crash_right_after_a_flush_shows_what_it_did_not_cover() {
    let steps = [
        write_step(false),
        FINISH,
        Step::Flush { conn: 1 },
        Step::Settle,
    ];
    let kind = Kind::per_connection();
    assert_eq!(judge(Mode::Auto, kind, &steps), Ok(()));
    let why = judge(Mode::Unsafe, kind, &steps).unwrap_err();
    assert!(matches!(why, Broken::Durability(..)), "{why}");
}

#[test]
fn a_crash_right_after_a_command_with_fua_shows_that_it_was_lost() {
    use nbd_proto::conformance::backend::Breach;

    let steps = [write_step(true), FINISH, Step::Settle];
    let kind = Kind::shared().with_fua(true);
    assert_eq!(judge(Mode::Auto, kind, &steps), Ok(()));
    let lying = kind.with_breach(Breach::NotPermanent);
    let why = judge(Mode::Auto, lying, &steps).unwrap_err();
    assert!(matches!(why, Broken::Durability(_, 2)), "{why}");
}

/// Answers each command so many times.
struct Answers(usize);

impl Coordinator for Answers {
    fn opened(&mut self, _: usize, _: Backend) -> Result<Advertised, Trouble> {
        Ok(Advertised {
            multi_conn: true,
            flush: true,
            fua: false,
        })
    }

    fn command(&mut self, _: usize, tag: u64, command: Command) -> Option<Task> {
        if command.kind == CommandType::FLUSH {
            return self.executed(tag, Ok(()));
        }
        Some(Task::Execute {
            tag,
            fua: false,
            acknowledged: self.0 > 1,
        })
    }

    fn executed(&mut self, tag: u64, result: Result<(), Errno>) -> Option<Task> {
        (self.0 > 0).then_some(Task::Reply { tag, result })
    }

    fn flushed(&mut self, _: u64, _: Result<(), Errno>) {}

    fn disconnect(&mut self, _: usize) {}

    fn poll(&mut self) -> Option<Task> {
        None
    }
}

#[test]
fn each_command_is_answered_once() {
    let trouble = |times| {
        let mut server = ModelServer::new(Answers(times), Kind::without_cache(), 2);
        let schedule = Schedule::new(1, vec![write_step(false), FINISH]);
        play(&mut server, &schedule)
            .err()
            .map(|why| why.to_string())
    };
    assert_eq!(trouble(1), None);
    assert!(trouble(0).unwrap().contains("was never answered"));
    assert!(trouble(2).unwrap().contains("is answered twice"));
}

#[test]
fn a_server_is_held_to_what_it_has_advertised() {
    let promise = |mode| {
        let coordinator = Coordinated::new(Config::new().with_mode(mode));
        let mut server = ModelServer::new(coordinator, Kind::without_cache(), 2);
        let played = play(&mut server, &Schedule::new(3, Vec::new())).unwrap();
        (played.promise, played.multi_conn)
    };
    assert_eq!(promise(Mode::Auto), (Promise::MULTI_CONN, true));
    assert_eq!(promise(Mode::Disable), (Promise::SINGLE_CONNECTION, false));
}
