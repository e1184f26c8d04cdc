//! Meta contexts: what queries select, and what was selected (proto.md "Metadata querying").

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::{Question, ServerHandshake, message};
use crate::error::Refusal;
use crate::handshake::namespace::namespace;
use crate::session::{MetaContext, ReplyStyle};
use crate::wire::{MetaContextRequest, Name, OptionCode, OptionReply};

/// A meta context that an export has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Context {
    /// Its name: a namespace, a colon, and a leaf, such as `base:allocation`.
    pub name: Name,
    /// Whether its state needs more than 32 bits. Such a context is there for sessions with
    /// extended headers only, and is not told of in others.
    pub wide: bool,
}

impl Context {
    /// A context with at most 32 bits of state.
    #[must_use]
    pub const fn new(name: Name) -> Self {
        Self { name, wide: false }
    }

    /// Sets whether its state needs more than 32 bits.
    #[must_use]
    pub const fn with_wide(mut self, wide: bool) -> Self {
        self.wide = wide;
        self
    }
}

/// What the last `SET_META_CONTEXT` came to.
#[derive(Debug)]
pub(super) struct Selected {
    /// The contexts are for this export only, by the name that the client used.
    pub(super) export: Name,
    pub(super) contexts: Vec<MetaContext>,
}

/// The client wants to know the meta contexts of an export (`LIST_META_CONTEXT`), or to select
/// some of them (`SET_META_CONTEXT`).
///
/// Every query has a namespace; others were refused by the machine. Let go of unanswered, it is
/// refused with [`Refusal::UnknownExport`].
#[derive(Debug)]
#[must_use = "without an answer no context is selected"]
pub struct ContextsAsk<'s> {
    machine: &'s mut ServerHandshake,
    out: &'s mut Vec<u8>,
    option: OptionCode,
    request: MetaContextRequest,
}

impl<'s> ContextsAsk<'s> {
    pub(super) const fn new(
        machine: &'s mut ServerHandshake,
        out: &'s mut Vec<u8>,
        option: OptionCode,
        request: MetaContextRequest,
    ) -> Self {
        Self {
            machine,
            out,
            option,
            request,
        }
    }

    /// The export whose contexts are meant; the empty name is that of the default export.
    #[must_use]
    pub const fn export(&self) -> &Name {
        &self.request.export
    }

    /// How the client asks: [`LIST_META_CONTEXT`](OptionCode::LIST_META_CONTEXT) or
    /// [`SET_META_CONTEXT`](OptionCode::SET_META_CONTEXT).
    #[must_use]
    pub const fn option(&self) -> OptionCode {
        self.option
    }

    /// Whether contexts are to be selected; else they are only listed.
    #[must_use]
    pub fn selects(&self) -> bool {
        self.option == OptionCode::SET_META_CONTEXT
    }

    /// The queries, as the client sent them. None means all in a list, and none in a selection.
    #[must_use]
    pub fn queries(&self) -> &[Name] {
        &self.request.queries
    }

    /// The reply style that was negotiated so far.
    #[must_use]
    pub const fn reply_style(&self) -> ReplyStyle {
        self.machine.reply_style
    }

    /// Whether TLS runs; if not, the contexts of exports that require it need not be told of.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.machine.tls
    }

    /// Answers with those of the export's contexts, all of which are given, that the queries ask
    /// for.
    ///
    /// A query asks for the context that has its name. In a list, one that ends in a colon, such
    /// as `base:` or `qemu:`, asks for all whose names begin with it. Queries that ask for
    /// nothing, of unknown namespaces too, are ignored. For namespaces with a language of their
    /// own there is [`accept_exactly`](Self::accept_exactly).
    ///
    /// A context's id in the session is its place among those given here, from 0.
    pub fn accept<'c>(self, available: impl IntoIterator<Item = &'c Context>) {
        let queries = Queries::new(self.selects(), &self.request.queries);
        let asked: Vec<_> = numbered(available)
            .filter(|(_, context)| queries.ask_for(context.name.as_str()))
            .collect();
        self.answer(&asked);
    }

    /// Answers with exactly these contexts: the caller has read the [`queries`](Self::queries), and
    /// knows what they mean in its namespaces.
    ///
    /// What no query can mean is left out all the same: a context of a namespace that none is of; in
    /// a selection, one of `base:` that is not named, and any if there are no queries.
    ///
    /// A context's id in the session is its place among those given here, from 0.
    pub fn accept_exactly<'c>(self, contexts: impl IntoIterator<Item = &'c Context>) {
        let queries = Queries::new(self.selects(), &self.request.queries);
        let asked: Vec<_> = numbered(contexts)
            .filter(|(_, context)| queries.can_mean(context.name.as_str()))
            .collect();
        self.answer(&asked);
    }

    /// Leaves out what cannot be had in this session, what has no namespace, and what was named
    /// before.
    fn answer(self, asked: &[(u32, &Context)]) {
        let extended = self.machine.reply_style == ReplyStyle::Extended;
        let mut seen = BTreeSet::new();
        let contexts: Vec<MetaContext> = asked
            .iter()
            .filter(|(_, context)| extended || !context.wide)
            .filter(|(_, context)| namespace(context.name.as_str()).is_some())
            .filter(|(_, context)| seen.insert(context.name.as_str()))
            .map(|(id, context)| MetaContext {
                id: *id,
                name: context.name.clone(),
            })
            .collect();
        let most = usize::try_from(self.machine.config.limits.max_contexts()).unwrap_or(usize::MAX);
        if self.selects() && contexts.len() > most {
            return self.refuse(Refusal::TooBig);
        }
        for context in &contexts {
            // proto.md under `NBD_OPT_LIST_META_CONTEXT`: "The metadata context ID in these
            // replies is reserved and SHOULD be set to zero".
            let id = if self.selects() { context.id } else { 0 };
            let name = context.name.clone();
            OptionReply::MetaContext { id, name }.encode(self.option, self.out);
        }
        self.machine.acknowledge(self.option, self.out);
        if self.option == OptionCode::SET_META_CONTEXT {
            self.machine.selected = Some(Selected {
                export: self.request.export,
                contexts,
            });
        }
    }

    /// Does not tell, and selects nothing.
    pub fn refuse(self, why: Refusal) {
        let question = Question::Contexts {
            option: self.option,
            request: self.request,
        };
        self.machine
            .refuse(&question, why, &message(&why), self.out);
    }
}

fn numbered<'c>(
    contexts: impl IntoIterator<Item = &'c Context>,
) -> impl Iterator<Item = (u32, &'c Context)> {
    (0..).zip(contexts)
}

/// Queries, sorted by what they can ask for.
struct Queries<'q> {
    selects: bool,
    all: bool,
    spaces: BTreeSet<&'q str>,
    exact: BTreeSet<&'q str>,
    prefixes: Vec<&'q str>,
}

impl<'q> Queries<'q> {
    fn new(selects: bool, queries: &'q [Name]) -> Self {
        let (wild, exact): (Vec<&str>, Vec<&str>) = queries
            .iter()
            .map(Name::as_str)
            .partition(|query| query.ends_with(':'));
        let texts = queries.iter().map(Name::as_str);
        Self {
            selects,
            spaces: texts.filter_map(namespace).collect(),
            // proto.md: "If zero queries are sent, then the server MUST return all the metadata
            // contexts", but "MUST select no metadata contexts".
            all: !selects && queries.is_empty(),
            exact: exact.into_iter().collect(),
            // "the empty leaf-name makes sense as a wildcard for a client query during
            // NBD_OPT_LIST_META_CONTEXT, but SHOULD NOT select any contexts".
            prefixes: if selects { Vec::new() } else { wild },
        }
    }

    fn ask_for(&self, name: &str) -> bool {
        self.all
            || self.exact.contains(name)
            || self.prefixes.iter().any(|prefix| name.starts_with(prefix))
    }

    /// Whether there can be a language of queries in which one asks for this name: the one of its
    /// namespace, which for `base:` is the protocol's own.
    fn can_mean(&self, name: &str) -> bool {
        match namespace(name) {
            _ if self.all => true,
            Some("base") if self.selects => self.exact.contains(name),
            Some(space) => self.spaces.contains(space),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked<'a>(selects: bool, queries: &[&str], names: &[&'a str]) -> Vec<&'a str> {
        let queries: Vec<Name> = queries.iter().map(|it| Name::new(*it).unwrap()).collect();
        let queries = Queries::new(selects, &queries);
        let mut names = names.to_vec();
        names.retain(|it| queries.ask_for(it));
        names
    }

    #[test]
    fn queries_ask_for_a_context_by_name_and_lists_by_namespace_too() {
        let all = ["base:allocation", "qemu:dirty-bitmap:a", "qemu:depth"];
        assert_eq!(asked(false, &[], &all), all);
        assert_eq!(asked(true, &[], &all), [""; 0]);
        assert_eq!(asked(false, &["qemu:"], &all), all[1..]);
        assert_eq!(asked(true, &["qemu:", "base:"], &all), [""; 0]);
        assert_eq!(asked(false, &["qemu:dirty-bitmap:"], &all), all[1..2]);
        assert_eq!(asked(true, &["qemu:depth", "x:y"], &all), all[2..]);
        assert_eq!(asked(false, &["base", "base:alloc"], &all), [""; 0]);
        // A context that has the form of a wildcard cannot be selected by it.
        assert_eq!(asked(true, &["x:"], &["x:"]), [""; 0]);
    }
}
