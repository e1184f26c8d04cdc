//! What the coordinator's connections take in memory, counted by the allocator.

use nbd_proto::flush::{Backend, Command, Config, Decision, FlushCoordinator, Mode};
use nbd_proto::wire::CommandType;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

type Coordinator = FlushCoordinator<u64, u64, u64>;

fn allocated() -> usize {
    dhat::HeapStats::get().curr_bytes
}

fn emulating() -> Config {
    Config::new().with_mode(Mode::Emulate)
}

fn connect(coordinator: &mut Coordinator, key: u64) -> nbd_proto::flush::Conn {
    let conn = coordinator.connect(key, &0);
    coordinator
        .opened(conn, Backend::new().with_flush(true))
        .unwrap();
    conn
}

fn write(coordinator: &mut Coordinator, conn: nbd_proto::flush::Conn, offset: u64) {
    let command = Command::new(CommandType::WRITE, offset, 512);
    let Decision::Execute { op, tag } = coordinator.command(conn, command, 0) else {
        panic!("nothing is in its way");
    };
    let Decision::Reply { result: Ok(()), .. } = coordinator.complete(op, tag, Ok(())) else {
        panic!("nothing is asked for but the write");
    };
}

/// One test, because the allocator counts for the whole process.
#[test]
fn connections_take_little_memory() {
    let _profiler = dhat::Profiler::builder().testing().build();
    for connections in [1_000, 10_000, 12_345, 50_000] {
        let before = allocated();
        let mut coordinator = Coordinator::new(emulating());
        for key in 0..connections {
            connect(&mut coordinator, key);
        }
        let each = (allocated() - before) as f64 / connections as f64;
        eprintln!("{connections} idle connections: {each:.1} bytes each");
        assert!(each <= 128.0, "{each} bytes for an idle connection");
    }
    let before = allocated();
    let config = emulating().with_max_ranges(1024);
    let mut coordinator = Coordinator::new(config);
    let conn = connect(&mut coordinator, 0);
    for at in 0..100_000 {
        write(&mut coordinator, conn, at * 4096);
    }
    let all = allocated() - before;
    eprintln!("100,000 scattered writes, at most 1024 ranges: {all} bytes");
    assert!(all <= 1024 * 100, "{all} bytes for one connection");
}
