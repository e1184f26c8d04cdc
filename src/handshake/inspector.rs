//! What a server has to offer, for tools that show it.

mod report;

pub use report::{ExportInfo, ExportReport, Inspect, Listed, Report};

use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;

use super::client::{ClientConfig, ClientHandshake, ClientStep, Ready};
use super::negotiator::NegotiateError;
use super::opening::{Opening, TlsWanted};
use super::tls::TlsStart;
use crate::error::{Fatal, Refused};
use crate::session::ReplyStyle;
use crate::wire::{
    InfoRequest, InfoType, MetaContextRequest, Name, OptionCode, OptionReply, ReplyType,
};

/// Where an [`Inspector`] is.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub enum InspectProgress {
    /// All input was taken. Send the output, then come back with more input.
    NeedInput,
    /// The server agreed to start TLS: do so, then give the leave back to
    /// [`Inspector::tls_started`]. Only if [`Inspect::with_tls`] says so.
    StartTls(TlsStart),
    /// All was asked: send the output, which ends the session, then close the connection.
    Done(Report),
}

/// Asks a server what it has, and enters transmission with none of it.
///
/// Driven like a [`Negotiator`](super::Negotiator). Each export costs one option, or two with its
/// meta contexts, and some servers hang up after some number of them (nbdkit after 32): where the
/// connection ends too early, [`report`](Self::report) has what was learned so far. So it has when
/// there is more to be kept, besides the list, than
/// [`Limits::max_reply_bytes`](crate::limits::Limits::max_reply_bytes) allows.
///
/// An oldstyle server is looked at if [`ClientConfig::with_oldstyle`] says so, and TLS is not
/// required.
///
/// ```
/// use nbd_proto::handshake::{
///     ClientConfig, Inspect, InspectProgress, Inspector, ServerConfig, ServerHandshake, Step,
/// };
/// use nbd_proto::wire::Name;
///
/// let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
/// let mut server = ServerHandshake::new(ServerConfig::new(), &mut to_client);
/// let mut client = Inspector::new(Inspect::new().with_list(true), ClientConfig::new());
/// let report = loop {
///     let received = std::mem::take(&mut to_client);
///     match client.advance(&mut received.as_slice(), &mut to_server)? {
///         InspectProgress::Done(report) => break report,
///         _ => {}
///     }
///     let received = std::mem::take(&mut to_server);
///     let mut input = received.as_slice();
///     while let Step::List(ask) = server.step(&mut input, &mut to_client)? {
///         ask.accept([(&Name::new("disk")?, &Name::EMPTY)]);
///     }
/// };
/// assert_eq!(report.list.unwrap()?[0].name.as_str(), "disk");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Inspector {
    handshake: ClientHandshake,
    inspect: Inspect,
    opening: Opening,
    next: Next,
    queue: VecDeque<Name>,
    /// The export that was asked about last.
    current: Name,
    report: Report,
    /// What was heard since the last final reply.
    listed: Vec<Listed>,
    info: ExportInfo,
    contexts: Vec<Name>,
    /// How much of the limit on what is kept has gone into the report, besides the list.
    kept: u64,
    limit: u32,
    over: Option<Result<(), NegotiateError>>,
}

#[derive(Clone, Copy, Debug)]
enum Next {
    List,
    Export,
    /// The contexts of the export that was asked about last.
    Contexts,
}

impl Next {
    /// Sends the next question, or the farewell if there is none; says whether there was one.
    fn ask(
        &mut self,
        ready: Ready<'_>,
        inspect: &Inspect,
        queue: &mut VecDeque<Name>,
        current: &mut Name,
    ) -> bool {
        loop {
            match *self {
                Self::List => {
                    *self = Self::Export;
                    if inspect.list || inspect.every_export {
                        ready.list();
                        return true;
                    }
                }
                Self::Export => {
                    let Some(name) = queue.pop_front() else {
                        ready.abort();
                        return false;
                    };
                    current.clone_from(&name);
                    *self = Self::Contexts;
                    let request = InfoRequest::new(name)
                        .with(InfoType::NAME)
                        .with(InfoType::DESCRIPTION)
                        .with(InfoType::BLOCK_SIZE);
                    ready.info(request);
                    return true;
                }
                Self::Contexts => {
                    *self = Self::Export;
                    if inspect.contexts && ready.reply_style() != ReplyStyle::Simple {
                        ready.list_contexts(MetaContextRequest {
                            export: current.clone(),
                            queries: Vec::new(),
                        });
                        return true;
                    }
                }
            }
        }
    }
}

impl Inspector {
    /// Begins; the server speaks first.
    #[must_use]
    pub fn new(inspect: Inspect, config: ClientConfig) -> Self {
        // An oldstyle server cannot be talked to over TLS.
        let plain = inspect.basics.tls != TlsWanted::Required;
        let config = config.with_oldstyle(config.oldstyle() && plain);
        Self {
            handshake: ClientHandshake::new(config),
            opening: Opening::new(inspect.basics),
            next: Next::List,
            queue: inspect.exports.iter().cloned().collect(),
            current: Name::EMPTY,
            inspect,
            report: Report::default(),
            listed: Vec::new(),
            info: ExportInfo::default(),
            contexts: Vec::new(),
            kept: 0,
            limit: config.limits().max_reply_bytes(),
            over: None,
        }
    }

    /// The most bytes that can be taken now without any of them belonging to TLS; 0 while that is
    /// to be started, and at the end.
    #[must_use]
    pub fn wants(&self) -> usize {
        if self.over.is_some() {
            return 0;
        }
        self.handshake.wants()
    }

    /// TLS runs: what is given to [`advance`](Self::advance) from now on was decrypted, and what
    /// it writes will be encrypted.
    pub fn tls_started(&mut self, leave: TlsStart) {
        self.handshake.tls_started(leave);
    }

    /// The server closed the connection.
    ///
    /// # Errors
    ///
    /// Always, unless the end was reached before.
    pub fn on_eof(&self) -> Result<(), NegotiateError> {
        match &self.over {
            Some(Ok(())) => Ok(()),
            Some(Err(why)) => Err(why.clone()),
            None => Ok(self.handshake.on_eof()?),
        }
    }

    /// What is known so far; all, once [`InspectProgress::Done`] was reached.
    #[must_use]
    pub const fn report(&self) -> &Report {
        &self.report
    }

    /// Takes from `input`, which is advanced, and appends to `out`.
    ///
    /// # Errors
    ///
    /// If the server breaks the protocol or tells more than is to be kept, wants TLS where none is
    /// wanted, refuses TLS where it is required, or is shutting down. Every later call fails in the
    /// same way. That an export or a list is refused is no error, but part of the report.
    pub fn advance(
        &mut self,
        input: &mut &[u8],
        out: &mut Vec<u8>,
    ) -> Result<InspectProgress, NegotiateError> {
        loop {
            if let Some(over) = &self.over {
                over.clone()?;
                return Ok(InspectProgress::Done(self.report.clone()));
            }
            match self.handshake.step(input, out)? {
                ClientStep::NeedInput => return Ok(InspectProgress::NeedInput),
                ClientStep::StartTls(leave) => return Ok(InspectProgress::StartTls(leave)),
                ClientStep::Ready(ready) => {
                    self.report.tls = ready.is_tls();
                    self.report.reply_style = ready.reply_style();
                    if let Some(ready) = self.opening.send(ready) {
                        let current = &mut self.current;
                        if !self
                            .next
                            .ask(ready, &self.inspect, &mut self.queue, current)
                        {
                            self.over = Some(Ok(()));
                        }
                    }
                    self.report.greeting = self.handshake.greeting();
                }
                ClientStep::Reply { option, reply } => self.on_reply(option, reply, out),
                ClientStep::Done(session) => {
                    // An oldstyle server has told all that it will ever tell.
                    self.report.greeting = self.handshake.greeting();
                    let info = ExportInfo {
                        size: session.size(),
                        flags: self.handshake.announced_flags(),
                        ..ExportInfo::default()
                    };
                    self.report.exports.push(ExportReport {
                        name: session.export().clone(),
                        info: Ok(info),
                        contexts: None,
                    });
                    self.over = Some(Ok(()));
                }
                // We only abort at the end, after which no step is taken.
                ClientStep::Aborted => return Err(Fatal::Closed.into()),
            }
        }
    }

    fn on_reply(&mut self, option: OptionCode, reply: OptionReply, out: &mut Vec<u8>) {
        match reply {
            OptionReply::Server { name, description } => {
                self.listed.push(Listed { name, description });
            }
            OptionReply::Info(info) => self.info.learn(info),
            OptionReply::MetaContext { name, .. } => self.contexts.push(name),
            OptionReply::Ack => self.on_final(option, Ok(()), out),
            OptionReply::Error { code, message } => {
                let refused = Refused {
                    option,
                    code,
                    message,
                };
                self.on_final(option, Err(refused), out);
            }
            OptionReply::Unknown { .. } => {}
        }
    }

    fn on_final(&mut self, option: OptionCode, end: Result<(), Refused>, out: &mut Vec<u8>) {
        let listed = core::mem::take(&mut self.listed);
        let info = core::mem::take(&mut self.info);
        let contexts = core::mem::take(&mut self.contexts);
        if let Err(refused) = &end
            && refused.code == ReplyType::ERR_SHUTDOWN
        {
            self.over = Some(Err(refused.clone().into()));
        }
        if option != OptionCode::LIST && !self.keeps(&end, &info, &contexts) {
            let limit = self.limit;
            self.over = Some(Err(Fatal::TooManyReplyBytes { option, limit }.into()));
            return self.leave(out);
        }
        match option {
            OptionCode::LIST => {
                if end.is_ok() && self.inspect.every_export {
                    self.queue(&listed);
                }
                self.report.list = Some(end.map(|()| listed));
            }
            OptionCode::INFO => {
                if end.is_err() {
                    // Its contexts would be refused, too.
                    self.next = Next::Export;
                }
                self.report.exports.push(ExportReport {
                    name: self.current.clone(),
                    info: end.map(|()| info),
                    contexts: None,
                });
            }
            OptionCode::LIST_META_CONTEXT => {
                if let Some(last) = self.report.exports.last_mut() {
                    last.contexts = Some(end.map(|()| contexts));
                }
            }
            _ => {
                let Err(refused) = end else { return };
                if !self.opening.survives(&refused) {
                    self.over = Some(Err(refused.clone().into()));
                    self.leave(out);
                }
                self.report.refused.push(refused);
            }
        }
    }

    /// Says goodbye, unless the machine has done so by itself, as after `ERR_SHUTDOWN`.
    fn leave(&mut self, out: &mut Vec<u8>) {
        if let Ok(ClientStep::Ready(ready)) = self.handshake.step(&mut &[][..], out) {
            ready.abort();
        }
    }

    /// Counts what goes into the report; whether that is not too much. The limit on the replies to
    /// one option does not bound those to one for each of many exports.
    fn keeps(&mut self, end: &Result<(), Refused>, info: &ExportInfo, names: &[Name]) -> bool {
        let texts = [&info.name, &info.description].into_iter().flatten();
        let message = end.as_ref().err().map(|refused| &refused.message);
        let texts = texts.chain(message).chain(names);
        // Also a name of one byte takes memory.
        let size = |name: &Name| u64::from(name.wire_len()) + size_of::<Name>() as u64;
        self.kept = self.kept.saturating_add(texts.map(size).sum());
        self.kept <= self.limit.into()
    }

    fn queue(&mut self, listed: &[Listed]) {
        let mut known: BTreeSet<Name> = self.queue.iter().cloned().collect();
        let room = self.inspect.max_exports.saturating_sub(known.len());
        let names = listed.iter().map(|entry| &entry.name);
        let new = names.filter(|name| known.insert((*name).clone()));
        self.queue.extend(new.take(room).cloned());
    }
}
