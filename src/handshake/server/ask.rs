//! What a client wants and the machine cannot decide.

use alloc::vec::Vec;

use super::{ContextsAsk, Export, Question, ServerHandshake, message};
use crate::error::Refusal;
use crate::session::ReplyStyle;
use crate::wire::{InfoRequest, InfoType, Name, OptionCode, OptionReply};

/// Any ask, for code that answers all in one place.
#[derive(Debug)]
#[must_use]
#[non_exhaustive]
pub enum Ask<'s> {
    /// The client wants the list of exports.
    List(ListAsk<'s>),
    /// The client wants to know about an export, or to use it.
    Export(ExportAsk<'s>),
    /// The client wants to know the meta contexts of an export, or to select some.
    Contexts(ContextsAsk<'s>),
}

/// The client wants the list of exports (`LIST`).
///
/// Let go of unanswered, it is refused with [`Refusal::Policy`].
#[derive(Debug)]
#[must_use = "without an answer the list is refused"]
pub struct ListAsk<'s> {
    machine: &'s mut ServerHandshake,
    out: &'s mut Vec<u8>,
}

impl<'s> ListAsk<'s> {
    pub(super) const fn new(machine: &'s mut ServerHandshake, out: &'s mut Vec<u8>) -> Self {
        Self { machine, out }
    }

    /// Whether TLS runs; if not, exports that require it can be left out.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.machine.tls
    }

    /// Lists these exports, each a name and a description; an empty description is none.
    pub fn accept<'a>(self, exports: impl IntoIterator<Item = (&'a Name, &'a Name)>) {
        for (name, description) in exports {
            let entry = OptionReply::Server {
                name: name.clone(),
                description: description.clone(),
            };
            entry.encode(OptionCode::LIST, self.out);
        }
        self.machine.acknowledge(OptionCode::LIST, self.out);
    }

    /// Does not tell.
    pub fn refuse(self, why: Refusal) {
        self.machine
            .refuse(&Question::List, why, &message(&why), self.out);
    }
}

/// The client wants to know about an export (`INFO`), or to use it (`GO`, `EXPORT_NAME`).
///
/// Let go of unanswered, it is refused with [`Refusal::UnknownExport`].
#[derive(Debug)]
#[must_use = "without an answer the export is refused"]
pub struct ExportAsk<'s> {
    machine: &'s mut ServerHandshake,
    out: &'s mut Vec<u8>,
    option: OptionCode,
    request: InfoRequest,
}

impl<'s> ExportAsk<'s> {
    pub(super) const fn new(
        machine: &'s mut ServerHandshake,
        out: &'s mut Vec<u8>,
        option: OptionCode,
        request: InfoRequest,
    ) -> Self {
        Self {
            machine,
            out,
            option,
            request,
        }
    }

    /// The export that is meant; the empty name is that of the default export.
    #[must_use]
    pub const fn name(&self) -> &Name {
        &self.request.name
    }

    /// How the client asks: [`INFO`](OptionCode::INFO), [`GO`](OptionCode::GO) or
    /// [`EXPORT_NAME`](OptionCode::EXPORT_NAME).
    #[must_use]
    pub const fn option(&self) -> OptionCode {
        self.option
    }

    /// Whether transmission begins once the export is accepted: it is not just for information.
    #[must_use]
    pub fn enters_transmission(&self) -> bool {
        self.option != OptionCode::INFO
    }

    /// Whether the client asks for this piece of information.
    ///
    /// One that uses the export and asks for [`BLOCK_SIZE`](InfoType::BLOCK_SIZE) promises to
    /// keep to the size constraints (proto.md "Size constraints"). With others they have to be
    /// enforced, or [`Refusal::BlockSizesRequired`] be given.
    #[must_use]
    pub fn asked(&self, info: InfoType) -> bool {
        self.request.asks(info)
    }

    /// The reply style that was negotiated so far.
    #[must_use]
    pub const fn reply_style(&self) -> ReplyStyle {
        self.machine.reply_style
    }

    /// Whether TLS runs.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.machine.tls
    }

    /// Tells about the export, and if so asked enters transmission with it.
    ///
    /// An export that [requires TLS](Export::with_tls_required) is refused where there is none, and
    /// one whose block sizes the client has to know
    /// ([`ServerConfig::with_block_sizes_required`](super::ServerConfig::with_block_sizes_required))
    /// if it did not ask for them.
    ///
    /// What is told after an `INFO` to an equal `GO` must be the same. If `export` has changed in
    /// between, the `GO` is refused with [`Refusal::Policy`], and the client may ask again: the
    /// export is only in use once [`Step::Done`](super::Step::Done) was reached.
    pub fn accept(self, export: &Export) {
        self.machine
            .accept(self.option, self.request, export, self.out);
    }

    /// Refuses the export.
    ///
    /// An `EXPORT_NAME` has no error reply: the next step fails with
    /// [`Fatal::ExportRefused`](crate::error::Fatal::ExportRefused).
    pub fn refuse(self, why: Refusal) {
        self.refuse_with(why, &message(&why));
    }

    /// As [`refuse`](Self::refuse), with words of your own for the people at the other end.
    pub fn refuse_with(self, why: Refusal, message: &Name) {
        let question = Question::Export {
            option: self.option,
            request: self.request,
        };
        self.machine.refuse(&question, why, message, self.out);
    }
}
