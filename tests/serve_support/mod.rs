//! What the tests of the example `serve` need: the program itself, and a client that sends and
//! takes exactly what it is told to.

#![allow(dead_code, reason = "each test program uses its part")]

mod negotiated;

pub(crate) use negotiated::Negotiated;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, ChildStdout, ExitStatus};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nbd_proto::handshake::{ClientConfig, Wanted};
use nbd_proto::io::client_handshake;
use nbd_proto::wire::{Cookie, Errno, Name, Request};
use rustix::process::{Pid, Signal, kill_process};

pub(crate) use crate::program_support::WATCHDOG;
use crate::program_support::{Watchdog, command, limited};

/// A server on a port of its own, running under a watchdog.
pub(crate) struct Serve {
    child: Child,
    pub(crate) address: SocketAddr,
    stdout: BufReader<ChildStdout>,
    stderr: ChildStderr,
    watchdog: Watchdog,
}

/// How a server ended, and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Serve {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::limited("true", arguments)
    }

    /// What it says when it refuses to start.
    pub(crate) fn start_refused(arguments: &[&str]) -> String {
        let child = command("serve", with_port(arguments)).spawn().unwrap();
        let watchdog = Watchdog::of(&child);
        let output = child.wait_with_output().unwrap();
        watchdog.call_off();
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Starts it with limits that the shell sets.
    pub(crate) fn limited(limits: &str, arguments: &[&str]) -> Self {
        let mut child = limited(limits, "serve", with_port(arguments))
            .spawn()
            .unwrap();
        let watchdog = Watchdog::of(&child);
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let stderr = child.stderr.take().unwrap();
        let listening = line_with(&mut stdout, "listening on ");
        let address = listening.trim().rsplit(' ').next().unwrap();
        Self {
            address: address.parse().unwrap(),
            child,
            stdout,
            stderr,
            watchdog,
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Asks it to end, and waits until it says that it has heard.
    pub(crate) fn begin_to_stop(&mut self) {
        self.signal(Signal::TERM);
        line_with(&mut self.stdout, "stopping");
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn stop(self) -> Ended {
        self.signal(Signal::TERM);
        self.end()
    }

    /// Asks it to end again and again, until it does not wait for anything any more.
    pub(crate) fn insist(mut self, signal: Signal) -> Ended {
        while self.child.try_wait().unwrap().is_none() {
            self.signal(signal);
            thread::sleep(Duration::from_millis(20));
        }
        self.end()
    }

    /// Waits until it has ended.
    pub(crate) fn end(mut self) -> Ended {
        let stderr = read_all(self.stderr);
        let stdout = read_all(self.stdout);
        let status = self.child.wait().unwrap();
        self.watchdog.call_off();
        Ended {
            status,
            stdout: stdout.join().unwrap(),
            stderr: stderr.join().unwrap(),
        }
    }

    /// How many files and sockets it has open.
    pub(crate) fn open_files(&self) -> usize {
        let files = fs::read_dir(format!("/proc/{}/fd", self.child.id()));
        files.unwrap().count()
    }

    pub(crate) fn connect(&self) -> Client {
        Client::try_connect(self.address).unwrap()
    }

    /// A client that has what it wants, if the server has it.
    pub(crate) fn negotiate(&self, wanted: Wanted) -> Negotiated<TcpStream> {
        let mut stream = connect(self.address).unwrap();
        let negotiated = client_handshake(&mut stream, wanted, ClientConfig::new()).unwrap();
        Negotiated::new(stream, negotiated.session)
    }

    /// Connects, but says nothing.
    pub(crate) fn connect_silently(&self) -> TcpStream {
        connect(self.address).unwrap()
    }
}

impl Ended {
    /// Success, and nothing to complain about.
    #[track_caller]
    pub(crate) fn well(self) {
        assert_eq!(self.status.code(), Some(0), "{self:?}");
        assert_eq!(self.stderr, "");
    }

    pub(crate) fn signal(&self) -> Option<i32> {
        self.status.signal()
    }
}

/// With a port that nobody else has.
fn with_port<'a>(arguments: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    ["--port", "0"].into_iter().chain(arguments.iter().copied())
}

fn line_with(from: &mut impl BufRead, words: &str) -> String {
    loop {
        let mut line = String::new();
        assert_ne!(from.read_line(&mut line).unwrap(), 0, "no {words:?} came");
        if line.contains(words) {
            return line;
        }
    }
}

fn read_all(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut text = String::new();
        from.read_to_string(&mut text).unwrap();
        text
    })
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, WATCHDOG)?;
    stream.set_read_timeout(Some(WATCHDOG))?;
    stream.set_write_timeout(Some(WATCHDOG))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A client with simple replies.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    next_cookie: u64,
}

impl Client {
    pub(crate) fn try_connect(address: SocketAddr) -> io::Result<Self> {
        let mut stream = connect(address)?;
        let wanted = Wanted::new(Name::default())
            .with_extended_headers(false)
            .with_structured_replies(false);
        client_handshake(&mut stream, wanted, ClientConfig::new())
            .map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self {
            stream,
            next_cookie: 1,
        })
    }

    /// Sends a request and its payload; the reply will have this cookie.
    pub(crate) fn send(&mut self, request: fn(Cookie) -> Request, payload: &[u8]) -> Cookie {
        let cookie = Cookie(self.next_cookie);
        self.next_cookie += 1;
        self.send_bytes(&request(cookie).to_compact().unwrap());
        self.send_bytes(payload);
        cookie
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Takes the next reply, and as much data.
    pub(crate) fn take(&mut self, length: usize) -> (Cookie, Result<Vec<u8>, Errno>) {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head).unwrap();
        assert_eq!(head[..4], [0x67, 0x44, 0x66, 0x98]);
        let cookie = Cookie(u64::from_be_bytes(head[8..].try_into().unwrap()));
        match u32::from_be_bytes(head[4..8].try_into().unwrap()) {
            0 => {
                let mut data = vec![0; length];
                self.stream.read_exact(&mut data).unwrap();
                (cookie, Ok(data))
            }
            error => (cookie, Err(Errno(error))),
        }
    }

    /// Sends one request and takes its reply, the only one that is due.
    #[track_caller]
    pub(crate) fn ask(
        &mut self,
        request: fn(Cookie) -> Request,
        payload: &[u8],
        length: usize,
    ) -> Result<Vec<u8>, Errno> {
        let asked = self.send(request, payload);
        let (cookie, answer) = self.take(length);
        assert_eq!(cookie, asked);
        answer
    }

    /// Leaves as the protocol wants it.
    pub(crate) fn disconnect(mut self) {
        self.send(|_| Request::disconnect(), &[]);
    }
}
