//! What is answered to options, by the machine and by whoever was asked.

use alloc::vec::Vec;

use super::{Export, Question, ServerHandshake, State, TlsPolicy};
use crate::error::{Fatal, Refusal};
use crate::session::{BlockSizes, MetaContext, ReplyStyle, Session, consistent};
use crate::wire::{
    ExportNameReply, Info, InfoRequest, InfoType, Malformed, Name, OptionCode, OptionReply,
    ReplyType, TransmissionFlags,
};

/// What the machine answers by itself.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    /// To `ABORT`; the session is over.
    Farewell,
    Unsupported,
    Malformed(Malformed),
    /// Well-formed, but not now.
    Invalid(&'static str),
    /// To `STRUCTURED_REPLY`, where there is something better already.
    ExtendedHeadersInUse,
    Refused(Refusal),
}

/// What the last option, a successful `INFO`, was told.
#[derive(Debug)]
pub(super) struct Promise {
    request: InfoRequest,
    infos: Vec<Info>,
}

impl ServerHandshake {
    pub(super) fn answer(&mut self, option: OptionCode, answer: Answer, out: &mut Vec<u8>) {
        let (code, message) = match answer {
            Answer::Farewell => {
                // Without fixed newstyle there are no replies.
                if self.config.fixed_newstyle {
                    OptionReply::Ack.encode(option, out);
                }
                self.state = State::Aborted;
                return;
            }
            Answer::Unsupported => (ReplyType::ERR_UNSUP, Name::default()),
            Answer::Malformed(why) => (ReplyType::ERR_INVALID, message(&format_args!("it {why}"))),
            Answer::Invalid(why) => (ReplyType::ERR_INVALID, message(&why)),
            Answer::ExtendedHeadersInUse => (
                ReplyType::ERR_EXT_HEADER_REQD,
                message(&"extended headers are in use already"),
            ),
            Answer::Refused(why) => (why.reply_type(), message(&why)),
        };
        OptionReply::Error { code, message }.encode(option, out);
        self.state = State::Header;
    }

    /// Gives the default refusal to an ask that was let go of.
    pub(super) fn refuse_unanswered(&mut self, out: &mut Vec<u8>) {
        let State::Asked(question) = &self.state else {
            return;
        };
        let question = question.clone();
        let why = match question {
            _ if self.shutting_down => Refusal::ShuttingDown,
            Question::List => Refusal::Policy,
            Question::Export { .. } | Question::Contexts { .. } => Refusal::UnknownExport,
        };
        self.refuse(&question, why, &message(&why), out);
    }

    pub(super) fn refuse(
        &mut self,
        question: &Question,
        why: Refusal,
        message: &Name,
        out: &mut Vec<u8>,
    ) {
        let option = match question {
            Question::List => OptionCode::LIST,
            Question::Export { option, request } if *option == OptionCode::EXPORT_NAME => {
                return self.fail(Fatal::ExportRefused {
                    name: request.name.clone(),
                    why,
                });
            }
            Question::Export { option, .. } | Question::Contexts { option, .. } => *option,
        };
        let code = if self.permits(question, why) {
            if let Refusal::BlockSizesRequired(sizes) = why {
                // proto.md under `NBD_OPT_GO`: a server "SHOULD ensure it first sends an
                // NBD_INFO_BLOCK_SIZE".
                OptionReply::Info(block_size_info(sizes)).encode(option, out);
            }
            why.reply_type()
        } else {
            ReplyType::ERR_POLICY
        };
        self.promise = None;
        let message = message.clone();
        OptionReply::Error { code, message }.encode(option, out);
        self.state = State::Header;
    }

    /// Whether the protocol lets this question be refused like this.
    fn permits(&self, question: &Question, why: Refusal) -> bool {
        match (why, question) {
            // proto.md "SELECTIVETLS mode": "MUST NOT send NBD_REP_ERR_TLS_REQD in response to any
            // option other than NBD_OPT_INFO, NBD_OPT_GO and NBD_OPT_EXPORT_NAME", nor if TLS runs;
            // "NOTLS mode": to none.
            (Refusal::TlsRequired, Question::Export { .. }) => {
                self.config.tls != TlsPolicy::None && self.fixed && !self.tls
            }
            (Refusal::TlsRequired, _) => false,
            // Under `NBD_OPT_GO`: "The server MUST NOT send this error if size constraints were
            // requested".
            (Refusal::BlockSizesRequired(_), Question::Export { request, .. }) => {
                !request.asks(InfoType::BLOCK_SIZE)
            }
            (Refusal::BlockSizesRequired(_), _) => false,
            // Under `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`: not for what is
            // limited to the `base:` namespace, nor where extended headers are in use.
            (Refusal::ExtendedHeadersRequired, Question::Export { .. }) => {
                self.reply_style != ReplyStyle::Extended
            }
            (Refusal::ExtendedHeadersRequired, Question::Contexts { option, request }) => {
                let base = |query: &Name| query.as_str().starts_with("base:");
                let all = *option == OptionCode::LIST_META_CONTEXT && request.queries.is_empty();
                let others = all || !request.queries.iter().all(base);
                self.reply_style != ReplyStyle::Extended && others
            }
            (Refusal::ExtendedHeadersRequired, Question::List) => false,
            (
                Refusal::UnknownExport
                | Refusal::Policy
                | Refusal::ShuttingDown
                | Refusal::Platform
                | Refusal::TooBig,
                _,
            ) => true,
        }
    }

    pub(super) fn accept(
        &mut self,
        option: OptionCode,
        request: InfoRequest,
        export: &Export,
        out: &mut Vec<u8>,
    ) {
        if let Some(why) = self.unacceptable(&request, export) {
            let question = Question::Export { option, request };
            return self.refuse(&question, why, &message(&why), out);
        }
        let contexts = self.contexts_of(&request.name);
        let mut flags = consistent(
            export.flags | TransmissionFlags::HAS_FLAGS,
            self.reply_style,
        );
        if contexts.is_empty() {
            // proto.md "Transmission flags": "SHOULD NOT advertise this bit in response to
            // NBD_OPT_GO if the client does not negotiate metacontexts".
            flags.remove(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
        }
        if option == OptionCode::EXPORT_NAME {
            let size = export.size;
            ExportNameReply { size, flags }.encode(self.no_zeroes, out);
            return self.enter_transmission(request.name, export, flags, contexts);
        }
        let infos = infos(&request, export, flags);
        if self.breaks_promise(option, &request, &infos) {
            let question = Question::Export { option, request };
            let text = Name::lossy(b"the export has changed since it was asked about");
            return self.refuse(&question, Refusal::Policy, &text, out);
        }
        for info in &infos {
            OptionReply::Info(info.clone()).encode(option, out);
        }
        self.acknowledge(option, out);
        if option == OptionCode::GO {
            self.enter_transmission(request.name, export, flags, contexts);
        } else {
            self.promise = Some(Promise { request, infos });
        }
    }

    /// Why an export cannot be had like this, though it was accepted.
    fn unacceptable(&self, request: &InfoRequest, export: &Export) -> Option<Refusal> {
        if export.tls_required && !self.tls {
            return Some(Refusal::TlsRequired);
        }
        // INFO is refused, too: what it was told, an equal GO would have to be told again.
        let odd = export.block_sizes != BlockSizes::DEFAULT;
        let required = self.config.block_sizes_required && odd;
        (required && !request.asks(InfoType::BLOCK_SIZE))
            .then_some(Refusal::BlockSizesRequired(export.block_sizes))
    }

    /// The contexts that were selected for this export.
    ///
    /// proto.md under `NBD_OPT_SET_META_CONTEXT`: there is no block status unless "the final time
    /// it was sent, it referred to the same export name that was ultimately selected".
    fn contexts_of(&self, export: &Name) -> Vec<MetaContext> {
        match &self.selected {
            Some(selected) if selected.export == *export => selected.contexts.clone(),
            _ => Vec::new(),
        }
    }

    /// Whether a `GO` would be told something else than the equal `INFO` just before it.
    ///
    /// proto.md under `NBD_OPT_GO`: "the server MUST reply with the same set of information". To
    /// repeat what is not true any more would be worse than to refuse; the client can ask again.
    fn breaks_promise(&self, option: OptionCode, request: &InfoRequest, infos: &[Info]) -> bool {
        option == OptionCode::GO
            && self
                .promise
                .as_ref()
                .is_some_and(|promise| promise.request == *request && promise.infos != infos)
    }

    pub(super) fn acknowledge(&mut self, option: OptionCode, out: &mut Vec<u8>) {
        OptionReply::Ack.encode(option, out);
        self.state = State::Header;
    }

    fn enter_transmission(
        &mut self,
        name: Name,
        export: &Export,
        flags: TransmissionFlags,
        contexts: Vec<MetaContext>,
    ) {
        let session = Session::new(name, export.size, flags)
            .with_reply_style(self.reply_style)
            .with_block_sizes(export.block_sizes)
            .with_contexts(contexts)
            .with_tls(self.tls);
        self.state = State::Done(session);
    }
}

/// What is told about an export: size and flags always, the rest if asked for; size constraints
/// also if they are not the default ones (proto.md "Size constraints").
fn infos(request: &InfoRequest, export: &Export, flags: TransmissionFlags) -> Vec<Info> {
    let mut infos = Vec::with_capacity(4);
    infos.push(Info::Export {
        size: export.size,
        flags,
    });
    if request.asks(InfoType::NAME) {
        infos.push(Info::Name(export.name.clone()));
    }
    if request.asks(InfoType::DESCRIPTION) && export.description != Name::EMPTY {
        infos.push(Info::Description(export.description.clone()));
    }
    if request.asks(InfoType::BLOCK_SIZE) || export.block_sizes != BlockSizes::DEFAULT {
        infos.push(block_size_info(export.block_sizes));
    }
    infos
}

const fn block_size_info(sizes: BlockSizes) -> Info {
    Info::BlockSize {
        minimum: sizes.minimum(),
        preferred: sizes.preferred(),
        max_payload: sizes.max_payload(),
    }
}

/// The text of an error reply.
pub(super) fn message(text: &dyn core::fmt::Display) -> Name {
    Name::lossy(alloc::format!("{text}").as_bytes())
}
