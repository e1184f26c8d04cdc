//! Meta contexts: namespaces, and what queries mean.

use nbd_proto::error::Fatal;
use nbd_proto::handshake::{Ask, ClientConfig, Context, ServerConfig};
use nbd_proto::session::Session;
use nbd_proto::wire::{
    ClientOption, Extent, Info, Name, OptionCode, OptionReply, ReplyType, StatusChunk,
    TransmissionFlags,
};

use crate::client;
use crate::handshake_support::{
    Event, Run, client_bytes, disk, error_of, fixed, name, queries, replies, request, run_client,
    run_server_with, server_bytes,
};
use crate::samples::CONTEXT;

/// The name of a row, and what server and client do.
pub(crate) type Rule = (&'static str, fn() -> bool, fn() -> bool);

pub(crate) const SECTION: &str = "Meta contexts";

pub(crate) const ALL: &[Rule] = &[
    (
        "`base:allocation`",
        || server_has("base:allocation"),
        || client_has("base:allocation"),
    ),
    (
        "`nbd-server:` anything",
        || server_has("nbd-server:leaf"),
        || client_has("nbd-server:leaf"),
    ),
    (
        "`qemu:` anything",
        || server_has("qemu:dirty-bitmap:one"),
        || client_has("qemu:dirty-bitmap:one"),
    ),
    (
        "`x-*:` anything",
        || server_has("x-local:20160310-20161214"),
        || client_has("x-local:20160310-20161214"),
    ),
    (
        "a namespace alone lists all that is in it, and selects nothing",
        || listed(&["base:"]) == ["base:allocation"] && selected(&["base:"]).is_empty(),
        || !refuses(LIST, &["base:"], ALLOCATION) && refuses(SET, &["base:"], ALLOCATION),
    ),
    (
        "no query lists all contexts, and selects nothing",
        || listed(&[]) == [ALLOCATION, "x-a:b"] && selected(&[]).is_empty(),
        || !refuses(LIST, &[], ALLOCATION) && refuses(SET, &[], ALLOCATION),
    ),
    (
        "a query for what is not there is ignored",
        || selected(&["base:new", "y:z", ALLOCATION]) == [ALLOCATION],
        || client_selects(&["base:new", "y:z", ALLOCATION], &[ALLOCATION]),
    ),
    (
        "what has no namespace is refused",
        || error_to(&["allocation"]) == Some(ReplyType::ERR_INVALID),
        || refuses(LIST, &[], "allocation"),
    ),
    (
        "a selection replaces the one before, even if it fails",
        server_forgets,
        client_forgets,
    ),
    (
        "a selection is for the export that it names",
        || server_session("other").contexts().is_empty(),
        || client_session("other", "disk").contexts().is_empty(),
    ),
    (
        "a status of more than 32 bits needs extended headers",
        || wide(false).is_empty() && wide(true) == ["x-wide:c"],
        client_reads_wide,
    ),
];

const ALLOCATION: &str = "base:allocation";
const LIST: OptionCode = OptionCode::LIST_META_CONTEXT;
const SET: OptionCode = OptionCode::SET_META_CONTEXT;

// --- the server ---

/// A run with these options, of a server whose exports have these contexts.
fn serve(has: &[&str], wide: bool, options: &[ClientOption]) -> Run {
    let has: Vec<Context> = has
        .iter()
        .map(|it| Context::new(name(it)).with_wide(wide))
        .collect();
    let config = ServerConfig::new().with_meta_contexts(true);
    let bytes = client_bytes(fixed(), options);
    run_server_with(config, &bytes, &[], |ask| match ask {
        Ask::Contexts(ask) if ask.export().as_str() == "gone" => drop(ask),
        Ask::Contexts(ask) => ask.accept(&has),
        Ask::Export(ask) => ask.accept(&disk()),
        _ => panic!("nobody asks for a list"),
    })
}

/// The contexts in the answers of a server.
fn told(run: &Run) -> Vec<String> {
    let (replies, _) = replies(&run.output);
    let names = replies.into_iter().filter_map(|(_, reply)| match reply {
        OptionReply::MetaContext { name, .. } => Some(name.as_str().to_owned()),
        _ => None,
    });
    names.collect()
}

fn listed(asked: &[&str]) -> Vec<String> {
    let list = ClientOption::ListMetaContext(queries("disk", asked));
    let options = [ClientOption::StructuredReply, list];
    told(&serve(&[ALLOCATION, "x-a:b"], false, &options))
}

fn selected(asked: &[&str]) -> Vec<String> {
    told(&serve(&[ALLOCATION, "x-a:b"], false, &selection(asked)))
}

fn selection(asked: &[&str]) -> [ClientOption; 2] {
    let set = ClientOption::SetMetaContext(queries("disk", asked));
    [ClientOption::StructuredReply, set]
}

fn error_to(asked: &[&str]) -> Option<ReplyType> {
    let run = serve(&[ALLOCATION], false, &selection(asked));
    let (replies, _) = replies(&run.output);
    replies.last().and_then(|(_, reply)| error_of(reply))
}

fn session_of(run: &Run) -> Session {
    match run.events.last() {
        Some(Event::Done(session)) => session.clone(),
        other => panic!("{other:?}"),
    }
}

fn names(session: &Session) -> Vec<&str> {
    let contexts = session.contexts().iter();
    contexts.map(|it| it.name.as_str()).collect()
}

/// A context can be listed, and selected for a session.
fn server_has(context: &str) -> bool {
    let [structured, set] = selection(&[context]);
    let list = ClientOption::ListMetaContext(queries("disk", &[context]));
    let go = ClientOption::Go(request("disk", &[]));
    let run = serve(&[context], false, &[structured, list, set, go]);
    told(&run) == [context, context] && names(&session_of(&run)) == [context]
}

/// The session with an export, after a selection for the export "disk".
fn server_session(export: &str) -> Session {
    let [structured, set] = selection(&[ALLOCATION]);
    let go = ClientOption::Go(request(export, &[]));
    session_of(&serve(&[ALLOCATION], false, &[structured, set, go]))
}

fn server_forgets() -> bool {
    let [structured, set] = selection(&[ALLOCATION]);
    let fails = ClientOption::SetMetaContext(queries("gone", &[ALLOCATION]));
    let go = ClientOption::Go(request("disk", &[]));
    let run = serve(&[ALLOCATION], false, &[structured, set, fails, go]);
    server_session("disk").contexts().len() == 1 && session_of(&run).contexts().is_empty()
}

fn wide(extended: bool) -> Vec<String> {
    let [structured, set] = selection(&["x-wide:c"]);
    let headers = if extended {
        ClientOption::ExtendedHeaders
    } else {
        structured
    };
    told(&serve(&["x-wide:c"], true, &[headers, set]))
}

// --- the client ---

/// What comes of an answer with these contexts to these queries.
fn ask(option: OptionCode, asked: &[&str], answered: &[&str]) -> Run {
    let queries = queries("disk", asked);
    let question = match option {
        LIST => ClientOption::ListMetaContext(queries),
        _ => ClientOption::SetMetaContext(queries),
    };
    let granted = (OptionCode::STRUCTURED_REPLY, OptionReply::Ack);
    let contexts = (0..).zip(answered).map(|(id, it)| {
        let name = name(it);
        (option, OptionReply::MetaContext { id, name })
    });
    let end = (option, OptionReply::Ack);
    let replies: Vec<_> = [granted].into_iter().chain(contexts).chain([end]).collect();
    let options = [ClientOption::StructuredReply, question];
    run_client(
        ClientConfig::new(),
        &options,
        &server_bytes(3, &replies),
        &[],
    )
}

/// The client hangs up on a server that answers with this context.
fn refuses(option: OptionCode, asked: &[&str], answered: &str) -> bool {
    let run = ask(option, asked, &[answered]);
    run.end
        == Err(Fatal::UnaskedContext {
            name: name(answered),
        })
}

/// A selection can be answered with some of what was asked for.
fn client_selects(asked: &[&str], answered: &[&str]) -> bool {
    let run = ask(SET, asked, answered);
    run.end.is_ok() && run.events.contains(&Event::Reply(SET, OptionReply::Ack))
}

fn client_has(context: &str) -> bool {
    let namespace = &context[..=context.find(':').unwrap()];
    let run = ask(LIST, &[namespace], &[context]);
    run.events.last() == Some(&Event::Reply(LIST, OptionReply::Ack))
        && names(&client_go(context, "disk", "disk", &[])) == [context]
}

/// The session with one export, after a selection for another, and then some more replies to
/// another selection.
fn client_go(context: &str, export: &str, of: &str, again: &[OptionReply]) -> Session {
    let set = ClientOption::SetMetaContext(queries(of, &[context]));
    let mut options = vec![ClientOption::StructuredReply, set.clone()];
    let (id, name) = (1, name(context));
    let mut replies = vec![
        (OptionCode::STRUCTURED_REPLY, OptionReply::Ack),
        (SET, OptionReply::MetaContext { id, name }),
        (SET, OptionReply::Ack),
    ];
    for reply in again {
        options.push(set.clone());
        replies.push((SET, reply.clone()));
    }
    options.push(ClientOption::Go(request(export, &[])));
    let flags = TransmissionFlags::HAS_FLAGS;
    let size = Info::Export { size: 4096, flags };
    replies.push((OptionCode::GO, OptionReply::Info(size)));
    replies.push((OptionCode::GO, OptionReply::Ack));
    session_of(&run_client(
        ClientConfig::new(),
        &options,
        &server_bytes(3, &replies),
        &[],
    ))
}

fn client_session(export: &str, of: &str) -> Session {
    client_go(ALLOCATION, export, of, &[])
}

fn client_forgets() -> bool {
    let code = ReplyType::ERR_UNKNOWN;
    let message = Name::EMPTY;
    let again = [OptionReply::Error { code, message }];
    let session = client_go(ALLOCATION, "disk", "disk", &again);
    client_session("disk", "disk").contexts().len() == 1 && session.contexts().is_empty()
}

/// All 64 bits reach the client by extended headers; without them there is no place for them.
fn client_reads_wide() -> bool {
    let extent = Extent {
        length: 4096,
        flags: u64::MAX,
    };
    let mut wide = Vec::new();
    let narrow = StatusChunk::encode(CONTEXT, [extent], &mut Vec::new());
    StatusChunk::encode_extended(CONTEXT, [extent], &mut wide).unwrap();
    narrow.is_err() && client::learns_wide_state(extent, &wide)
}
