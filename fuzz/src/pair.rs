//! Our client against our server, in memory.

mod client;
mod server;

use arbitrary::{Arbitrary, Unstructured};
use nbd_proto::handshake::{
    ClientConfig, Context, Export, NegotiateError, Negotiator, Progress, ServerConfig,
    ServerHandshake, Step, TlsPolicy, TlsWanted, Wanted,
};
use nbd_proto::session::{BlockSizes, ReplyStyle, Session};
use nbd_proto::wire::{Name, ReplyType, TransmissionFlags};

use client::{Ask, Client};
use server::{How, Server};

/// Operations after these are not looked at.
const MOST_OPERATIONS: usize = 200;

/// Whatever both sides accept, both agree on; what is read is what was written.
pub fn pair(data: &[u8]) {
    let mut choices = Unstructured::new(data);
    let Ok(setup) = Setup::arbitrary(&mut choices) else {
        return;
    };
    let Some(session) = setup.negotiate() else {
        return;
    };
    let mut pair = Pair::new(&session);
    for _ in 0..MOST_OPERATIONS {
        let Ok(operation) = Operation::arbitrary(&mut choices) else {
            break;
        };
        pair.take(operation);
        if choices.is_empty() {
            break;
        }
    }
    pair.finish();
}

/// What the two sides want of each other.
#[derive(Debug, Arbitrary)]
struct Setup {
    structured_wanted: bool,
    structured_offered: bool,
    no_zeroes_used: bool,
    no_zeroes_offered: bool,
    known_export: bool,
    flags: u16,
    /// The size in blocks of 512 bytes.
    blocks: u8,
    minimum_512: bool,
    /// Extended headers: wanted with 1, offered with 2.
    extended: u8,
    /// How many there are, with 3; TLS is wanted with 4, required by either with 8 and 16.
    contexts: u8,
}

impl Setup {
    /// Runs both handshakes. `None` if there is no session, on which both agree, too.
    fn negotiate(&self) -> Option<Session> {
        let minimum = if self.minimum_512 { 512 } else { 1 };
        let sizes = BlockSizes::new(minimum, 512, 4096).expect("legal");
        let name = Name::new("disk").expect("a name");
        let mut flags = TransmissionFlags::from_bits_retain(self.flags);
        if self.flags >> 13 != 0 {
            // Read-only exports are dull.
            flags.remove(TransmissionFlags::READ_ONLY);
        }
        let size = 512 * u64::from(self.blocks);
        let export = Export::new(name.clone(), size, flags).with_block_sizes(sizes);

        let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
        let contexts = self.contexts();
        let queries = contexts
            .iter()
            .map(|it| it.name.clone())
            .chain([name.clone()]);
        let queries: Vec<Name> = queries.filter(|it| it.as_str().contains(':')).collect();
        let (wanted_tls, policy) = self.tls();
        let config = ServerConfig::new()
            .with_tls(policy)
            .with_meta_contexts(true)
            .with_extended_headers(self.extended & 2 != 0)
            .with_structured_replies(self.structured_offered)
            .with_no_zeroes(self.no_zeroes_offered);
        let mut server = ServerHandshake::new(config, &mut to_client);
        let wanted = Wanted::new(name)
            .with_tls(wanted_tls)
            .with_contexts(queries)
            .with_extended_headers(self.extended & 1 != 0)
            .with_structured_replies(self.structured_wanted);
        let config = ClientConfig::new().with_no_zeroes(self.no_zeroes_used);
        let mut client = Negotiator::new(wanted, config);
        for _ in 0..20 {
            let received = std::mem::take(&mut to_client);
            let mut input = received.as_slice();
            match client.advance(&mut input, &mut to_server) {
                Ok(Progress::NeedInput) => assert!(input.is_empty()),
                Ok(Progress::StartTls(leave)) => {
                    assert!(input.is_empty() && to_server.is_empty());
                    client.tls_started(leave);
                    let progress = client.advance(&mut input, &mut to_server);
                    assert_eq!(progress, Ok(Progress::NeedInput));
                }
                Ok(Progress::Done(negotiated)) => {
                    let mut nothing = &[][..];
                    let Ok(Step::Done(session)) = server.step(&mut nothing, &mut to_client) else {
                        panic!("only the client thinks that they are done");
                    };
                    assert!(to_server.is_empty() && input.is_empty());
                    assert_eq!(negotiated.session, session);
                    assert_eq!(session.size(), size);
                    self.check(&session, contexts.len());
                    return Some(session);
                }
                Err(NegotiateError::Refused(refused)) => {
                    match refused.code {
                        ReplyType::ERR_UNKNOWN => assert!(!self.known_export, "{refused}"),
                        ReplyType::ERR_UNSUP => assert_eq!(wanted_tls, TlsWanted::Required),
                        _ => assert_eq!(
                            (refused.code, policy),
                            (ReplyType::ERR_TLS_REQD, TlsPolicy::Forced)
                        ),
                    }
                    let mut farewell = to_server.as_slice();
                    let end = server.step(&mut farewell, &mut to_client);
                    assert!(matches!(end, Ok(Step::Aborted)));
                    return None;
                }
                other => panic!("{other:?}"),
            }
            let received = std::mem::take(&mut to_server);
            let mut input = received.as_slice();
            loop {
                match server.step(&mut input, &mut to_client) {
                    Ok(Step::Export(ask)) if self.known_export => ask.accept(&export),
                    Ok(Step::Export(ask)) => drop(ask),
                    Ok(Step::Contexts(ask)) if self.known_export => ask.accept(&contexts),
                    Ok(Step::Contexts(ask)) => drop(ask),
                    Ok(Step::StartTls(leave)) => {
                        server.tls_started(leave);
                        break;
                    }
                    Ok(Step::NeedInput | Step::Done(_)) => break,
                    other => panic!("{other:?}"),
                }
            }
            assert!(input.is_empty());
        }
        panic!("they do not come to an end");
    }

    fn contexts(&self) -> Vec<Context> {
        let name = |id| Name::new(format!("x:{id}")).expect("a name");
        let contexts = 0..u32::from(self.contexts % 4);
        contexts.map(|id| Context::new(name(id))).collect()
    }

    fn tls(&self) -> (TlsWanted, TlsPolicy) {
        let wanted = match (self.contexts & 4 != 0, self.contexts & 8 != 0) {
            (false, _) => TlsWanted::No,
            (true, false) => TlsWanted::Preferred,
            (true, true) => TlsWanted::Required,
        };
        let policy = match (self.contexts & 16 != 0, self.contexts & 32 != 0) {
            (false, _) => TlsPolicy::None,
            (true, false) => TlsPolicy::Selective,
            (true, true) => TlsPolicy::Forced,
        };
        (wanted, policy)
    }

    /// They have the best of what both have.
    fn check(&self, session: &Session, contexts: usize) {
        let style = if self.extended & 3 == 3 {
            ReplyStyle::Extended
        } else if self.structured_wanted && self.structured_offered {
            ReplyStyle::Structured
        } else {
            ReplyStyle::Simple
        };
        assert_eq!(session.reply_style(), style);
        let selected = if style == ReplyStyle::Simple {
            0
        } else {
            contexts
        };
        assert_eq!(session.contexts().len(), selected);
        let (wanted, policy) = self.tls();
        let tls = wanted != TlsWanted::No && policy != TlsPolicy::None;
        assert_eq!(session.is_tls(), tls);
    }
}

#[derive(Debug, Arbitrary)]
enum Operation {
    Ask(Ask),
    /// So many bytes arrive at the server.
    ToServer(u16),
    /// So many bytes arrive at the client.
    ToClient(u16),
    Answer {
        which: u8,
        how: How,
    },
}

struct Pair {
    client: Client,
    server: Server,
    /// Bytes on their way.
    to_server: Vec<u8>,
    to_client: Vec<u8>,
}

impl Pair {
    fn new(session: &Session) -> Self {
        Self {
            client: Client::new(session),
            server: Server::new(session),
            to_server: Vec::new(),
            to_client: Vec::new(),
        }
    }

    fn take(&mut self, operation: Operation) {
        match operation {
            Operation::Ask(ask) => self.client.ask(&ask, &mut self.to_server),
            Operation::ToServer(count) => self.arrive_at_server(count.into()),
            Operation::ToClient(count) => self.arrive_at_client(count.into()),
            Operation::Answer { which, how } => {
                let answered = self.server.answer(which.into(), &how, &mut self.to_client);
                if let Some((cookie, result)) = answered {
                    self.client.will_be_told(cookie, result);
                }
            }
        }
    }

    fn arrive_at_server(&mut self, count: usize) {
        let count = count.min(self.to_server.len());
        let arrived: Vec<u8> = self.to_server.drain(..count).collect();
        self.server.receive(&arrived);
    }

    fn arrive_at_client(&mut self, count: usize) {
        let count = count.min(self.to_client.len());
        let arrived: Vec<u8> = self.to_client.drain(..count).collect();
        self.client.receive(&arrived);
    }

    /// Everything arrives, everything is answered, and both part in peace.
    fn finish(mut self) {
        self.client.disconnect(&mut self.to_server);
        self.arrive_at_server(usize::MAX);
        self.server.check_end();
        while self.server.owes() {
            self.take(Operation::Answer {
                which: 0,
                how: How::Plain,
            });
        }
        self.arrive_at_client(usize::MAX);
        self.client.check_end();
        assert_eq!(self.client.model(), self.server.store());
    }
}
