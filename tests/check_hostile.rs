//! The example `check` with servers that break their promise or the protocol, die, or say nothing:
//! it always ends soon, with the right verdict, or says why there is none.

#![cfg(unix)]

mod check_support;
mod copy_support;
mod program_support;
mod serve_support;

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use check_support::{Ended, check, json, start, text};
use copy_support::crowd::Crowd;
use copy_support::{Offer, Peer, Server};
use nbd_proto::wire::{ChunkType, CommandType, Cookie, Errno, Request, TransmissionFlags};
use rustix::process::Signal;
use serve_support::Serve;

const SIZE: usize = 1 << 20;

fn offer() -> Offer {
    Offer::new(SIZE).multi_conn()
}

/// A server that does something else with some requests.
fn crowd(special: impl Fn(usize, &mut Peer, &Request) -> bool + Send + Sync + 'static) -> Crowd {
    Crowd::new(|_| Some(offer()), vec![0; SIZE], special)
}

fn judge(server: &Crowd, options: &[&str]) -> Ended {
    check(
        [
            &[&server.uri(), "--seconds", "20", "--timeout", "2"],
            options,
        ]
        .concat(),
    )
}

// --- servers that break their promise ---

#[test]
fn a_connection_that_sees_nothing_of_the_others_is_found_out() {
    let server = crowd(|number, peer, request| {
        let is_it = number == 2 && request.kind == CommandType::READ;
        if is_it {
            let zeroes = vec![0; usize::try_from(request.length).unwrap()];
            peer.data_chunk(request, request.offset, true, &zeroes);
        }
        is_it
    });
    judge(&server, &[]).broken(&["visibility", "found zeroes", "flush"]);
}

#[test]
fn writes_that_are_dropped_are_found_out() {
    let count = AtomicU64::new(0);
    let server = crowd(move |_, peer, request| {
        let is_it =
            request.kind == CommandType::WRITE && count.fetch_add(1, Ordering::SeqCst) % 100 == 99;
        if is_it {
            peer.chunk(ChunkType::NONE, true, request.cookie, &[]);
        }
        is_it
    });
    judge(&server, &[]).broken(&["┌ write ="]);
}

#[test]
fn data_of_another_place_is_found_out() {
    let count = AtomicU64::new(0);
    let server = crowd(move |_, peer, request| {
        let is_it = request.kind == CommandType::READ
            && request.offset >= 512
            && count.fetch_add(1, Ordering::SeqCst) >= 200;
        if is_it {
            let before = Request::read(request.cookie, request.offset - 512, request.length);
            let data = peer.data(&before);
            peer.data_chunk(request, request.offset, true, &data);
        }
        is_it
    });
    judge(&server, &[]).broken(&[]);
}

#[test]
fn without_multi_conn_a_connection_that_forgets_its_own_writes_is_found_out() {
    let old: Mutex<Vec<u8>> = Mutex::new(Vec::new());
    let count = AtomicU64::new(0);
    let server = Crowd::new(
        |_| Some(Offer::new(SIZE)),
        vec![0; SIZE],
        move |_, peer, request| {
            let mut old = old.lock().unwrap();
            if request.kind == CommandType::FLUSH && count.fetch_add(1, Ordering::SeqCst) % 9 == 8 {
                // Back to what it was some time ago.
                let mut disk = peer.disk.lock().unwrap();
                if !old.is_empty() {
                    disk.copy_from_slice(&old);
                }
                *old = disk.clone();
            }
            false
        },
    );
    let ended = judge(&server, &[]);
    ended.broken(&["broken promise of single connection"]);
}

#[test]
fn reads_of_a_read_only_export_that_do_not_agree_are_found_out() {
    let flags = TransmissionFlags::READ_ONLY | TransmissionFlags::CAN_MULTI_CONN;
    let data: Vec<u8> = (0..SIZE)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect();
    let server = Crowd::new(
        move |_| Some(Offer::new(SIZE).flags(flags)),
        data,
        |number, peer, request| {
            let is_it = number % 2 == 1
                && request.kind == CommandType::READ
                && (request.offset..request.offset + request.length).contains(&70_000);
            if is_it {
                let mut data = peer.data(request);
                data[usize::try_from(70_000 - request.offset).unwrap()] ^= 1;
                peer.data_chunk(request, request.offset, true, &data);
            }
            is_it
        },
    );
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("report");
    let ended = judge(&server, &["--json", &text(&report)]);
    ended.broken(&[
        "nobody modifies",
        "At offset 69632, 512 bytes",
        "connection ",
    ]);
    let report = json(&report);
    assert_eq!(report["violation"]["kind"], "image");
    assert_eq!(report["violation"]["offset"], 69_632);
}

#[cfg(target_os = "linux")]
#[test]
fn what_was_found_out_counts_also_if_it_cannot_be_written_down() {
    let server = crowd(|number, peer, request| {
        let is_it = number == 2 && request.kind == CommandType::READ;
        if is_it {
            let zeroes = vec![0; usize::try_from(request.length).unwrap()];
            peer.data_chunk(request, request.offset, true, &zeroes);
        }
        is_it
    });
    let ended = judge(&server, &["--json", "/dev/full"]);
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.stdout.contains("BROKEN: "), "{ended:?}");
    assert!(ended.stderr.contains("cannot write /dev/full"), "{ended:?}");

    let good = crowd(|_, _, _| false);
    let ended = judge(&good, &["--operations", "500", "--json", "/dev/full"]);
    assert_eq!(ended.status, Some(2), "{ended:?}");
    let good = crowd(|_, _, _| false);
    let ended = judge(&good, &["--json", "/nonexistent/report"]);
    ended.no_verdict(&["cannot write /nonexistent/report"]);
    assert_eq!(good.asked(CommandType::WRITE), []);
}

// --- servers that break the protocol ---

/// A server that treats one write in the middle of the run in its own way.
fn bad_reply(treat: impl Fn(&mut Peer, &Request) + Send + Sync + 'static) -> Ended {
    let count = AtomicU64::new(0);
    let server = crowd(move |_, peer, request| {
        let is_it =
            request.kind == CommandType::WRITE && count.fetch_add(1, Ordering::SeqCst) == 100;
        if is_it {
            treat(peer, request);
        }
        is_it
    });
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("report");
    let ended = judge(&server, &["--json", &text(&report)]);
    assert_eq!(json(&report)["violation"]["kind"], "protocol");
    ended
}

#[test]
fn bad_replies_are_broken_rules() {
    bad_reply(|peer, request| {
        let cookie = Cookie(request.cookie.0 + 1_000_000);
        peer.chunk(ChunkType::NONE, true, cookie, &[]);
    })
    .broken(&["a rule of the protocol", "reply to no request"]);
    bad_reply(|peer, request| {
        peer.chunk(ChunkType(77), true, request.cookie, b"?");
    })
    .broken(&["a rule of the protocol"]);
    bad_reply(|peer, _| peer.send(&[0xff; 64])).broken(&["something else than a reply"]);
}

#[test]
fn what_is_no_nbd_server_gets_no_verdict() {
    let server = Server::raw(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    check([&server.uri()]).no_verdict(&["negotiation failed"]);
}

#[test]
fn connections_that_get_something_else_are_not_compared() {
    let other = |number| Some(Offer::new(SIZE + 4096 * number).multi_conn());
    let server = Crowd::new(other, vec![0; 2 * SIZE], |_, _, _| false);
    judge(&server, &[]).no_verdict(&["have to get the same", "has 1052672 bytes"]);
}

#[test]
fn a_connection_that_comes_back_and_gets_something_else_is_told_at_once() {
    let other = |number| Some(Offer::new(SIZE + 4096 * usize::from(number >= 4)).multi_conn());
    let server = Crowd::new(other, vec![0; 2 * SIZE], |_, _, _| false);
    judge(&server, &[]).no_verdict(&["have to get the same", "has 1052672 bytes"]);
    assert_eq!(server.clients(), 5, "it was tried again");
}

// --- servers that fail ---

#[test]
fn where_every_write_fails_nothing_has_held() {
    let server = crowd(|_, peer, request| {
        let is_it = request.kind == CommandType::WRITE || request.kind == CommandType::WRITE_ZEROES;
        if is_it {
            peer.fail(request, Errno::ENOSPC, "full");
        }
        is_it
    });
    let ended = judge(&server, &["--operations", "500"]);
    ended.no_verdict(&["no write succeeded", "ENOSPC", "\"full\""]);
}

#[test]
fn where_every_flush_fails_nothing_has_held() {
    let server = crowd(|_, peer, request| {
        let is_it = request.kind == CommandType::FLUSH;
        if is_it {
            peer.fail(request, Errno::EIO, "");
        }
        is_it
    });
    let ended = judge(&server, &["--operations", "500"]);
    ended.no_verdict(&["no flush succeeded", "EIO"]);
}

#[test]
fn commands_that_fail_now_and_then_are_told() {
    let count = AtomicU64::new(0);
    let server = crowd(move |_, peer, request| {
        let is_it = count.fetch_add(1, Ordering::SeqCst) % 50 == 49;
        if is_it {
            peer.fail(request, Errno::EIO, "");
        }
        is_it
    });
    let ended = judge(&server, &["--operations", "2000"]).held();
    assert!(
        ended.stdout.contains("commands failed, the first: "),
        "{ended:?}"
    );
}

#[test]
fn connections_that_are_lost_now_and_then_are_opened_again() {
    let count = AtomicU64::new(0);
    let server = crowd(move |_, peer, _| {
        let is_it = count.fetch_add(1, Ordering::SeqCst) % 300 == 299;
        if is_it {
            peer.close();
        }
        is_it
    });
    let ended = judge(&server, &["--operations", "2000"]).held();
    assert!(
        ended.stdout.contains("connections lost, the first: "),
        "{ended:?}"
    );
}

#[test]
fn a_server_that_loses_them_all_the_time_is_given_up() {
    let server = crowd(|_, peer, request| {
        let is_it = request.kind == CommandType::FLUSH;
        if is_it {
            peer.close();
        }
        is_it
    });
    // One after the other, or all at once.
    judge(&server, &[]).no_verdict(&["connection", " unanswered"]);
}

#[test]
fn a_server_that_dies_is_gone() {
    static ALIVE: AtomicBool = AtomicBool::new(true);
    let count = AtomicUsize::new(0);
    let server = Crowd::new(
        |_| ALIVE.load(Ordering::SeqCst).then(offer),
        vec![0; SIZE],
        move |_, peer, _| {
            let dies = count.fetch_add(1, Ordering::SeqCst) >= 300;
            if dies {
                ALIVE.store(false, Ordering::SeqCst);
                peer.close();
            }
            dies
        },
    );
    let ended = judge(&server, &[]);
    assert!(
        ended.stdout.contains("nothing wrong was seen in"),
        "{ended:?}"
    );
    // One that was lost, or one that was closed and is wanted again.
    ended.no_verdict(&["connection", "the server is gone"]);
}

#[test]
fn a_server_for_one_client_is_checked_with_one() {
    let one = |number| (number == 0).then(offer);
    let server = Crowd::new(one, vec![0; SIZE], |_, _, _| false);
    let ended = judge(&server, &["--operations", "1000"]);
    assert_eq!(ended.status, Some(2), "{ended:?}");
    assert!(!ended.stdout.contains("HELD"), "{ended:?}");
    assert!(
        ended
            .stderr
            .contains("nothing between connections was checked"),
        "{ended:?}"
    );
    assert!(
        ended.stderr.contains("going on with 1 connection: "),
        "{ended:?}"
    );
    assert!(ended.stdout.contains("on 1 connection, "), "{ended:?}");
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
}

#[test]
fn a_server_that_dies_with_all_connections_is_not_waited_for() {
    let serve = Serve::start(&["--size", "16M"]);
    let uri = format!("nbd://{}", serve.address);
    let mut running = start([&uri, "--seconds", "30"]);
    running.wait_for("overwriting");
    serve.signal(Signal::KILL);
    let killed = Instant::now();
    let ended = running.finish();
    let took = killed.elapsed();
    serve.end();
    ended.no_verdict(&["all connections were lost at once", "the server is gone"]);
    // It would have been waited for 10 s.
    assert!(took < Duration::from_secs(8), "{took:?}");
}

/// How many operations there were, and how many a second, as it is said.
fn operations(ended: &Ended) -> (u128, u128) {
    let (before, after) = ended.stdout.split_once(" operations (").unwrap();
    let (rate, _) = after.split_once("/s)").unwrap();
    let all = before.rsplit(' ').next().unwrap();
    (all.parse().unwrap(), rate.parse().unwrap())
}

#[test]
fn the_rate_is_that_of_the_time_in_which_it_worked() {
    let count = AtomicU64::new(0);
    let server = crowd(move |_, peer, _| {
        let is_it = count.fetch_add(1, Ordering::SeqCst) >= 300;
        if is_it {
            peer.be_deaf();
        }
        is_it
    });
    let begun = Instant::now();
    let ended = check([&server.uri(), "--seconds", "20", "--timeout", "8"]);
    let took = begun.elapsed();
    let (all, rate) = operations(&ended);
    ended.no_verdict(&["was not answered for"]);
    // The server was silent for 8 s, which is longer than it took to do all that.
    assert!(took > Duration::from_secs(8), "{took:?}");
    assert!(rate > 2 * all * 1000 / took.as_millis(), "{all}, {rate}/s");
}

// --- servers that say nothing ---

#[test]
fn it_is_said_that_the_server_takes_no_connection_again() {
    let count = AtomicU64::new(0);
    let server = Crowd::new(
        |number| (number < 4).then(offer),
        vec![0; SIZE],
        move |number, peer, _| {
            // The others stay, so that it may be the server that was.
            let is_it = number == 3 && count.fetch_add(1, Ordering::SeqCst) >= 30;
            if is_it {
                peer.close();
            }
            is_it
        },
    );
    let ended = check([&server.uri(), "--seconds", "20", "--timeout", "5"]);
    assert_eq!(ended.status, Some(2), "{ended:?}");
    let words = "waiting up to 5 s for the server to take connection ";
    assert_eq!(ended.stderr.matches(words).count(), 1, "{ended:?}");
    assert!(ended.stderr.contains("the server is gone"), "{ended:?}");
}

/// A server for one client, which keeps the next ones waiting until the sender is dropped.
fn one_at_a_time() -> (Crowd, mpsc::Sender<()>) {
    let (sender, over) = mpsc::channel::<()>();
    let over = Mutex::new(over);
    let only_one = move |number| {
        if number > 0 {
            let _ = over.lock().unwrap().recv_timeout(Duration::from_secs(60));
        }
        (number == 0).then(offer)
    };
    let server = Crowd::new(only_one, vec![0; SIZE], |_, _, _| false);
    (server, sender)
}

#[test]
fn it_is_said_that_the_server_takes_no_other_connection() {
    let [loud, quiet] = [&[][..], &["--quiet"]].map(|options| {
        let (server, sender) = one_at_a_time();
        let arguments = [&server.uri(), "--timeout", "5", "--operations", "100"];
        let running = start([&arguments[..], options].concat());
        (running, server, sender)
    });
    let words = "with 1 connection so far, waiting up to 5 s for the server to take another";
    let ended = loud.0.finish();
    assert_eq!(ended.stderr.matches(words).count(), 1, "{ended:?}");
    let ended = quiet.0.finish();
    assert!(!ended.stderr.contains("waiting"), "{ended:?}");
}

#[test]
fn a_flush_that_hangs_is_named() {
    let count = AtomicU64::new(0);
    let server = crowd(move |number, _, request| {
        number % 2 == 1
            && request.kind == CommandType::FLUSH
            && count.fetch_add(1, Ordering::SeqCst) >= 3
    });
    let ended = judge(&server, &[]);
    ended.no_verdict(&["a flush on connection ", " was not answered for "]);
}

#[test]
fn a_connection_that_falls_silent_is_named() {
    let count = AtomicU64::new(0);
    let server = crowd(move |number, peer, _| {
        if number >= 3 && count.fetch_add(1, Ordering::SeqCst) >= 30 {
            peer.be_silent();
        }
        false
    });
    judge(&server, &[]).no_verdict(&[" was not answered for "]);
}

#[test]
fn a_server_that_takes_and_says_nothing_can_be_left() {
    // Within the look at what is there, and in the middle of the run.
    for (after, words) in [
        (0, "before anything was checked"),
        (300, "stopped by a signal\n"),
    ] {
        let (deaf, is_deaf) = mpsc::channel();
        let (deaf, count) = (Mutex::new(deaf), AtomicU64::new(0));
        let server = crowd(move |_, peer, _| {
            let is_it = count.fetch_add(1, Ordering::SeqCst) >= after;
            if is_it {
                let _ = deaf.lock().unwrap().send(());
                peer.be_deaf();
            }
            is_it
        });
        let running = start([&server.uri(), "--seconds", "3600"]);
        is_deaf.recv_timeout(Duration::from_secs(30)).unwrap();
        running.signal(Signal::INT);
        let ended = running.finish();
        assert_eq!(ended.status, Some(130), "{ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
        assert!(ended.stderr.contains(words), "{ended:?}");
    }
}

#[test]
fn a_server_that_does_not_shake_hands_does_not_keep_us() {
    let (sender, over) = mpsc::channel::<()>();
    let server = Server::raw(move |_stream| {
        let _ = over.recv_timeout(Duration::from_secs(60));
    });
    let ended = check([&server.uri(), "--timeout", "1"]);
    ended.no_verdict(&["did not finish the negotiation within 1 s"]);
    drop(sender);
}

// --- restarts ---

#[test]
fn a_restart_that_a_connection_on_its_way_back_hides_leaves_no_verdict() {
    let durable = Arc::new(Mutex::new(vec![0; SIZE]));
    let (old, clients) = (Arc::clone(&durable), Mutex::new(Vec::new()));
    let disk: Arc<OnceLock<Arc<Mutex<Vec<u8>>>>> = Arc::default();
    let lost = Arc::clone(&disk);
    let server = Crowd::meeting(
        move |number, stream| {
            let mut clients = clients.lock().unwrap();
            // The first that comes again finds another process, and all others have lost theirs.
            if number == 4 {
                for client in clients.drain(..) {
                    let _ = TcpStream::shutdown(&client, Shutdown::Both);
                }
                let mut disk = lost.get().unwrap().lock().unwrap();
                disk.copy_from_slice(&old.lock().unwrap());
            }
            clients.push(stream.try_clone().unwrap());
            Some(offer())
        },
        vec![0; SIZE],
        move |_, peer, request| {
            if request.kind == CommandType::FLUSH {
                let now = peer.disk.lock().unwrap().clone();
                *durable.lock().unwrap() = now;
            }
            false
        },
    );
    disk.set(Arc::clone(&server.disk)).unwrap();
    judge(&server, &[]).no_verdict(&["all connections were lost at once", "--restart-command"]);
}

#[test]
fn a_server_that_was_never_killed_has_not_outlived_it() {
    let server = crowd(|_, _, _| false);
    let options = ["--restart-command", "exit 1", "--operations", "100"];
    judge(&server, &options).no_verdict(&["the server was never killed"]);
}

#[test]
fn a_restart_command_that_does_nothing_is_found_out() {
    let server = crowd(|_, _, _| false);
    for (command, why) in [
        ("true", "connections to the old server are alive"),
        ("exit 7", "the restart command has failed"),
        ("sleep 60", "did not return within 2 s"),
    ] {
        let options = ["--restart-command", command, "--restarts", "40", "--yes"];
        judge(&server, &options).no_verdict(&[why]);
    }
}

// --- histories ---

#[test]
fn what_is_wrong_with_a_history_is_said_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("history");
    for (bytes, why) in [
        (&b"\xff\xfe\0"[..], "it is not UTF-8"),
        (b"hello\n", "no known form of a history"),
        (b"granule 512\nc0 done #1\n", "this cannot have happened"),
        (b"", "there is no line in it"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let ended = check(["--import", &text(&path)]);
        assert_eq!(ended.stderr.matches(why).count(), 1, "{ended:?}");
        ended.no_verdict(&[]);
    }
}
