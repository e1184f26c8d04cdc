//! Servers that are reached through sockets, with threads of their own.

use std::collections::BTreeMap;
use std::io::{Read, Result as IoResult, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nbd_proto::conformance::property::{
    Counterexample, Options, Schedule, Server, Step, StreamServer, find_violation, play,
    prop_flush_consistent,
};
use nbd_proto::handshake::{Ask, Export, ServerConfig};
use nbd_proto::io::server_handshake;
use nbd_proto::limits::Limits;
use nbd_proto::transmission::{ReplyEncoder, RequestDecoder, RequestEvent};
use nbd_proto::wire::{CommandFlags, CommandType, Name, Request, TransmissionFlags as Flags};

const SIZE: usize = 8192;

/// What is wrong with the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Each connection has a cache of its own, which its own flushes write out.
    OwnCaches,
    /// A write longer than a sector is written only in part.
    Tears,
    /// Flushes are not answered.
    Hangs,
    /// Replies have the cookie of another command.
    WrongCookie,
    /// Multi-conn is not advertised.
    OneConnection,
    /// It can be read only.
    ReadOnly,
    /// It hangs up on the first write.
    HangsUp,
}

struct Disk {
    fault: Fault,
    bytes: Mutex<Vec<u8>>,
}

fn serve(mut socket: UnixStream, disk: &Disk) -> Result<(), Box<dyn std::error::Error>> {
    let mut flags = Flags::HAS_FLAGS | Flags::SEND_FLUSH | Flags::SEND_FUA | Flags::CAN_MULTI_CONN;
    flags.set(Flags::CAN_MULTI_CONN, disk.fault != Fault::OneConnection);
    flags.set(Flags::READ_ONLY, disk.fault == Fault::ReadOnly);
    let export = Export::new(Name::default(), SIZE as u64, flags);
    let session = server_handshake(&mut socket, ServerConfig::new(), |ask| {
        if let Ask::Export(ask) = ask {
            ask.accept(&export);
        }
    })?;
    let session = session.ok_or("the client has left")?;
    let mut requests = RequestDecoder::new(&session, &Limits::new());
    let replies = ReplyEncoder::new(&session);
    let mut cache: BTreeMap<usize, u8> = BTreeMap::new();
    loop {
        let mut header = vec![0; requests.wants()];
        socket.read_exact(&mut header)?;
        let Some(RequestEvent::Request(mut request)) = requests.next(&mut &header[..])? else {
            return Ok(());
        };
        session.check(&request)?;
        let mut payload = vec![0; requests.payload_left() as usize];
        socket.read_exact(&mut payload)?;
        requests.payload_read(payload.len() as u64);
        let data = execute(disk, &mut cache, &request, &payload);
        match disk.fault {
            Fault::Hangs if request.kind == CommandType::FLUSH => continue,
            Fault::HangsUp if request.kind == CommandType::WRITE => return Ok(()),
            Fault::WrongCookie => request.cookie.0 += 1000,
            _ => {}
        }
        let head = match request.kind {
            CommandType::READ => replies.read(&request)?,
            _ => replies.ok(&request),
        };
        socket.write_all(&[&head[..], &data].concat())?;
    }
}

fn execute(
    disk: &Disk,
    cache: &mut BTreeMap<usize, u8>,
    request: &Request,
    payload: &[u8],
) -> Vec<u8> {
    let start = request.offset as usize;
    let mut bytes = disk.bytes.lock().unwrap();
    match request.kind {
        CommandType::READ => {
            let range = start..start + request.length as usize;
            let byte = |at: usize| cache.get(&at).copied().unwrap_or(bytes[at]);
            return range.map(byte).collect();
        }
        CommandType::WRITE if disk.fault == Fault::OwnCaches => {
            cache.extend((start..).zip(payload.iter().copied()));
        }
        CommandType::WRITE if disk.fault == Fault::Tears => {
            let kept = payload.len().min(768);
            bytes[start..start + kept].copy_from_slice(&payload[..kept]);
        }
        CommandType::WRITE => bytes[start..start + payload.len()].copy_from_slice(payload),
        _ => {}
    }
    if request.kind == CommandType::FLUSH || request.flags.contains(CommandFlags::FUA) {
        for (at, byte) in std::mem::take(cache) {
            bytes[at] = byte;
        }
    }
    Vec::new()
}

/// Opens connections to a server with this fault.
fn server(fault: Fault) -> impl Fn() -> IoResult<UnixStream> {
    let bytes = Mutex::new(vec![0; SIZE]);
    let disk = Arc::new(Disk { fault, bytes });
    move || {
        let (ours, theirs) = UnixStream::pair()?;
        // Long enough for any machine, and for no test that waits for what never comes.
        ours.set_read_timeout(Some(match fault {
            Fault::Hangs => Duration::from_millis(50),
            _ => Duration::from_secs(30),
        }))?;
        let disk = Arc::clone(&disk);
        thread::spawn(move || drop(serve(theirs, &disk)));
        Ok(ours)
    }
}

fn options() -> Options {
    Options::new().with_cases(24).with_steps(60)
}

fn accused(fault: Fault) -> Counterexample {
    let open = server(fault);
    let found = find_violation(&options(), || StreamServer::new(&open));
    found.expect_err("something is wrong")
}

#[test]
fn a_server_whose_connections_share_everything_holds() {
    let open = server(Fault::None);
    prop_flush_consistent(&options(), || StreamServer::new(&open));
}

#[test]
fn a_cache_of_each_connection_is_accused_through_sockets() {
    let found = accused(Fault::OwnCaches);
    assert!(
        found.explanation.contains("broken promise of multi-conn"),
        "{found}"
    );
    assert!(found.schedule.steps.len() <= 6, "{found}");
}

#[test]
fn a_write_of_which_a_part_is_missing_is_accused() {
    let found = accused(Fault::Tears);
    assert!(found.explanation.contains("broken promise"), "{found}");
}

#[test]
fn what_is_no_matter_of_flushes_is_told_as_well() {
    for (fault, what) in [
        (Fault::Hangs, "no answer came"),
        (Fault::WrongCookie, "the server breaks a rule"),
        (Fault::OneConnection, "multi-conn is not advertised"),
        (Fault::ReadOnly, "read-only"),
        (Fault::HangsUp, "the server went away"),
    ] {
        let found = accused(fault);
        assert!(found.explanation.contains(what), "{fault:?}: {found}");
    }
    let refused = || -> IoResult<UnixStream> { Err(std::io::ErrorKind::ConnectionRefused.into()) };
    let found = find_violation(&options(), || StreamServer::new(refused));
    let found = found.expect_err("there is no server");
    assert!(found.explanation.contains("cannot connect"), "{found}");
}

#[test]
fn what_was_there_before_belongs_to_nobody() {
    let open = server(Fault::None);
    let schedule = Schedule::new(
        2,
        vec![
            Step::Read {
                conn: 0,
                block: 0,
                count: 8,
            },
            Step::Write {
                conn: 1,
                block: 2,
                count: 3,
                fua: true,
            },
            Step::Zero {
                conn: 0,
                block: 5,
                count: 1,
                fua: false,
            },
            Step::Load {
                conn: 0,
                block: 0,
                count: 8,
            },
        ],
    );
    // What the first leaves is foreign to the second, though it has the same identities.
    for _ in 0..2 {
        let mut server = StreamServer::new(&open);
        assert_eq!(server.blocks(), 8);
        let played = play(&mut server, &schedule).expect("it answers");
        assert_eq!(played.judge(), Ok(()));
    }
}
