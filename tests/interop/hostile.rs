//! Servers that lie: a small one of our own, whose replies a test makes up.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;

use crate::process::SOON;
use crate::raw::Stream;

/// A request as it came in.
pub(crate) struct Asked {
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) structured: bool,
}

/// What to send for a request, and whether to hang up then.
pub(crate) enum Said {
    GoOn(Vec<u8>),
    HangUp(Vec<u8>),
}

type Lie = dyn Fn(&Asked) -> Said + Send + Sync;

/// How the server behaves, apart from its replies in transmission.
#[derive(Clone)]
pub(crate) struct Manners {
    pub(crate) size: u64,
    pub(crate) structured: bool,
    /// Sent in place of everything, before hanging up.
    pub(crate) greeting: Option<Vec<u8>>,
    /// Sent in place of the replies to INFO and GO.
    pub(crate) info: Option<Vec<u8>>,
}

impl Manners {
    pub(crate) fn of_size(size: u64) -> Self {
        Self {
            size,
            structured: true,
            greeting: None,
            info: None,
        }
    }
}

/// The content that an honest server has at an offset.
pub(crate) fn honest_data(offset: u64, length: u64) -> Vec<u8> {
    (offset..offset + length)
        .map(|at| (at / 512 + at % 251 + 1).to_le_bytes()[0])
        .collect()
}

/// Listens on a port of its own for as long as the test runs, and serves every connection.
pub(crate) fn serve(
    manners: Manners,
    lie: impl Fn(&Asked) -> Said + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let lie: Arc<Lie> = Arc::new(lie);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            stream.set_read_timeout(Some(SOON)).unwrap();
            stream.set_write_timeout(Some(SOON)).unwrap();
            let (manners, lie) = (manners.clone(), Arc::clone(&lie));
            // The client may hang up whenever it sees through us.
            thread::spawn(move || drop(session(Stream::Tcp(stream), &manners, &*lie)));
        }
    });
    address
}

fn session(mut stream: Stream, manners: &Manners, lie: &Lie) -> io::Result<()> {
    if let Some(greeting) = &manners.greeting {
        stream.write_all(greeting)?;
        stream.end_of_input();
        stream.read_until_hang_up();
        return Ok(());
    }
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    let _client_flags: [u8; 4] = stream.array()?;
    match negotiate(&mut stream, manners)? {
        Some(structured) => transmit(&mut stream, structured, lie),
        None => Ok(()),
    }
}

fn option_reply(option: u32, kind: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap();
    let magic = 0x3_e889_0455_65a9_u64;
    [
        &magic.to_be_bytes()[..],
        &option.to_be_bytes(),
        &kind.to_be_bytes(),
        &length.to_be_bytes(),
        body,
    ]
    .concat()
}

/// HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM and SEND_WRITE_ZEROES.
const FLAGS: u16 = 0b110_1101;

/// Ends with the reply style, or with nothing if the client left.
fn negotiate(stream: &mut Stream, manners: &Manners) -> io::Result<Option<bool>> {
    const UNSUP: u32 = 1 | 1 << 31;
    let mut structured = false;
    loop {
        let head: [u8; 16] = stream.array()?;
        let option = u32::from_be_bytes(head[8..12].try_into().unwrap());
        let length = u32::from_be_bytes(head[12..].try_into().unwrap());
        let mut body = vec![0; length as usize];
        io::Read::read_exact(stream, &mut body)?;
        let size_and_flags = [&manners.size.to_be_bytes()[..], &FLAGS.to_be_bytes()].concat();
        match option {
            1 => {
                stream.write_all(&size_and_flags)?;
                return Ok(Some(structured));
            }
            2 => {
                stream.write_all(&option_reply(2, 1, &[]))?;
                return Ok(None);
            }
            6 | 7 => {
                if let Some(info) = &manners.info {
                    stream.write_all(info)?;
                } else {
                    let info = [&[0, 0], &size_and_flags[..]].concat();
                    stream.write_all(&option_reply(option, 3, &info))?;
                    stream.write_all(&option_reply(option, 1, &[]))?;
                }
                if option == 7 {
                    return Ok(Some(structured));
                }
            }
            8 if manners.structured => {
                structured = true;
                stream.write_all(&option_reply(8, 1, &[]))?;
            }
            other => stream.write_all(&option_reply(other, UNSUP, &[]))?,
        }
    }
}

fn transmit(stream: &mut Stream, structured: bool, lie: &Lie) -> io::Result<()> {
    loop {
        let head: [u8; 28] = stream.array()?;
        let asked = Asked {
            kind: u16::from_be_bytes(head[6..8].try_into().unwrap()),
            cookie: u64::from_be_bytes(head[8..16].try_into().unwrap()),
            offset: u64::from_be_bytes(head[16..24].try_into().unwrap()),
            length: u32::from_be_bytes(head[24..].try_into().unwrap()),
            structured,
        };
        if asked.kind == crate::raw::WRITE {
            let mut payload = vec![0; asked.length as usize];
            io::Read::read_exact(stream, &mut payload)?;
        }
        if asked.kind == crate::raw::DISC {
            return Ok(());
        }
        match lie(&asked) {
            Said::GoOn(bytes) => stream.write_all(&bytes)?,
            Said::HangUp(bytes) => return stream.write_all(&bytes),
        }
    }
}

pub(crate) const DONE: u16 = 1;
pub(crate) const NONE: u16 = 0;
pub(crate) const DATA: u16 = 1;
pub(crate) const HOLE: u16 = 2;
pub(crate) const ERROR: u16 = 0x8001;
pub(crate) const ERROR_OFFSET: u16 = 0x8002;

/// One chunk of a structured reply.
pub(crate) fn chunk(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    [
        &[0x66, 0x8e, 0x33, 0xef][..],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &length.to_be_bytes(),
        payload,
    ]
    .concat()
}

pub(crate) fn simple(error: u32, cookie: u64, data: &[u8]) -> Vec<u8> {
    [
        &[0x67, 0x44, 0x66, 0x98][..],
        &error.to_be_bytes(),
        &cookie.to_be_bytes(),
        data,
    ]
    .concat()
}

impl Asked {
    pub(crate) fn data(&self) -> Vec<u8> {
        honest_data(self.offset, u64::from(self.length))
    }

    /// A data chunk for a part of what was asked.
    pub(crate) fn part(&self, flags: u16, offset: u64, data: &[u8]) -> Vec<u8> {
        chunk(
            flags,
            DATA,
            self.cookie,
            &[&offset.to_be_bytes(), data].concat(),
        )
    }

    pub(crate) fn honest(&self) -> Vec<u8> {
        match (self.kind, self.structured) {
            (crate::raw::READ, true) => self.part(DONE, self.offset, &self.data()),
            (crate::raw::READ, false) => simple(0, self.cookie, &self.data()),
            _ => simple(0, self.cookie, &[]),
        }
    }
}
