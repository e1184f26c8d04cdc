//! The option that is outstanding, and what is heard about it.

use alloc::vec::Vec;

use crate::error::Fatal;
use crate::handshake::namespace::namespace;
use crate::limits::Limits;
use crate::session::{BlockSizes, MetaContext};
use crate::wire::{
    ClientOption, Info, InfoType, Name, OptionCode, OptionReply, OptionReplyHeader, ReplyType,
    TransmissionFlags,
};

/// An option that was sent, and what was heard about it.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) option: OptionCode,
    /// The export, with `INFO`, `GO`, and the options about meta contexts.
    pub(super) name: Name,
    queries: Vec<Name>,
    replies: u32,
    bytes: u32,
    pub(super) export: Option<(u64, TransmissionFlags)>,
    pub(super) block_sizes: Option<BlockSizes>,
    canonical_name: Option<Name>,
    description: Option<Name>,
    pub(super) contexts: Vec<MetaContext>,
}

impl Sent {
    pub(super) fn new(option: &ClientOption) -> Self {
        let (name, queries) = match option {
            ClientOption::Info(request) | ClientOption::Go(request) => {
                (request.name.clone(), Vec::new())
            }
            ClientOption::ListMetaContext(request) | ClientOption::SetMetaContext(request) => {
                (request.export.clone(), request.queries.clone())
            }
            _ => (Name::EMPTY, Vec::new()),
        };
        Self {
            option: option.code(),
            name,
            queries,
            replies: 0,
            bytes: 0,
            export: None,
            block_sizes: None,
            canonical_name: None,
            description: None,
            contexts: Vec::new(),
        }
    }

    /// Judges a reply by its header.
    pub(super) fn on_header(
        &mut self,
        header: OptionReplyHeader,
        limits: &Limits,
    ) -> Result<(), Fatal> {
        let option = self.option;
        if header.option != option {
            return Err(Fatal::WrongOption {
                sent: option,
                answered: header.option,
            });
        }
        if !can_answer(option, header.reply) {
            return Err(Fatal::UnexpectedReply {
                option,
                reply: header.reply,
            });
        }
        let limit = limits.max_option_body();
        if header.length > limit {
            return Err(Fatal::ReplyTooLong {
                option,
                length: header.length,
                limit,
            });
        }
        let limit = limits.max_reply_bytes();
        self.bytes = self.bytes.saturating_add(header.length);
        if self.bytes > limit {
            return Err(Fatal::TooManyReplyBytes { option, limit });
        }
        let limit = limits.max_replies();
        if !is_final(header.reply) {
            if self.replies >= limit {
                return Err(Fatal::TooManyReplies { option, limit });
            }
            self.replies += 1;
        }
        Ok(())
    }

    /// Takes note of a reply that is not the last one.
    pub(super) fn learn(&mut self, reply: &OptionReply, limits: &Limits) -> Result<(), Fatal> {
        match reply {
            OptionReply::Info(info) => self.learn_info(info),
            OptionReply::MetaContext { id, name } => self.learn_context(*id, name, limits),
            _ => Ok(()),
        }
    }

    /// proto.md under `NBD_REP_INFO`: "A particular information type SHOULD only appear once". To
    /// be told the same twice does no harm; to be told two things leaves both in doubt.
    fn learn_info(&mut self, info: &Info) -> Result<(), Fatal> {
        match info {
            Info::Export { size, flags } => {
                once(&mut self.export, (*size, *flags), InfoType::EXPORT)
            }
            Info::BlockSize {
                minimum,
                preferred,
                max_payload,
            } => {
                let sizes = BlockSizes::new(*minimum, *preferred, *max_payload)
                    .map_err(Fatal::BlockSizes)?;
                once(&mut self.block_sizes, sizes, InfoType::BLOCK_SIZE)
            }
            Info::Name(name) => once(&mut self.canonical_name, name.clone(), InfoType::NAME),
            Info::Description(text) => {
                once(&mut self.description, text.clone(), InfoType::DESCRIPTION)
            }
            Info::Unknown { .. } => Ok(()),
        }
    }

    fn learn_context(&mut self, id: u32, name: &Name, limits: &Limits) -> Result<(), Fatal> {
        if !self.asked_for(name) {
            return Err(Fatal::UnaskedContext { name: name.clone() });
        }
        if self.option != OptionCode::SET_META_CONTEXT {
            return Ok(());
        }
        let limit = limits.max_contexts();
        if usize::try_from(limit).is_ok_and(|limit| self.contexts.len() >= limit) {
            return Err(Fatal::TooManyContexts { limit });
        }
        // proto.md under `NBD_OPT_SET_META_CONTEXT`: "each with a unique metadata context ID".
        let mut known = self.contexts.iter();
        if known.any(|it| it.id == id || it.name == *name) {
            let name = name.clone();
            return Err(Fatal::DuplicateContext { id, name });
        }
        let name = name.clone();
        self.contexts.push(MetaContext { id, name });
        Ok(())
    }

    /// Whether a query can have brought up a context of this name.
    ///
    /// What a query means, only its namespace knows, so that it need only be of the same; but the
    /// protocol itself defines `base:`, in which names are selected by their name.
    fn asked_for(&self, name: &Name) -> bool {
        let Some(space) = namespace(name.as_str()) else {
            return false;
        };
        let selects = self.option == OptionCode::SET_META_CONTEXT;
        if self.queries.is_empty() {
            return !selects;
        }
        if selects && space == "base" {
            return self.queries.contains(name);
        }
        let mut queries = self.queries.iter();
        queries.any(|query| namespace(query.as_str()) == Some(space))
    }
}

fn once<T: PartialEq>(known: &mut Option<T>, told: T, info: InfoType) -> Result<(), Fatal> {
    match known {
        Some(known) if *known != told => Err(Fatal::ContradictoryInfo { info }),
        _ => {
            *known = Some(told);
            Ok(())
        }
    }
}

/// Whether this reply can be an answer to this option.
const fn can_answer(option: OptionCode, reply: ReplyType) -> bool {
    is_final(reply)
        || matches!(
            (option, reply),
            (OptionCode::LIST, ReplyType::SERVER)
                | (OptionCode::INFO | OptionCode::GO, ReplyType::INFO)
                | (
                    OptionCode::LIST_META_CONTEXT | OptionCode::SET_META_CONTEXT,
                    ReplyType::META_CONTEXT
                )
        )
}

const fn is_final(reply: ReplyType) -> bool {
    reply.is_error() || matches!(reply, ReplyType::ACK)
}
