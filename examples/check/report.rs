//! What is said before the run, and what programs are told after it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nbd_proto::conformance::{Action, Content, Role, Step, Violation};
use nbd_proto::session::ReplyStyle;
use nbd_proto::wire::TransmissionFlags;
use serde_json::{Value, json};

use super::layout::Layout;
use super::observer::Broken;
use super::shared::count::count;
use super::size::display_size;
use super::target::Target;
use super::verdict::Verdict;

/// A file for programs.
#[derive(Debug)]
pub(crate) struct Report {
    path: PathBuf,
    file: File,
}

impl Report {
    /// Before there is anything to be written: it is better to know early if that will not do.
    ///
    /// # Errors
    ///
    /// If the file cannot be created.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path);
        Ok(Self {
            file: file.with_context(|| format!("cannot write {}", path.display()))?,
            path: path.to_owned(),
        })
    }

    /// # Errors
    ///
    /// If the file cannot be written.
    pub(crate) fn write(mut self, report: &Value) -> Result<()> {
        let written = self.file.write_all(format!("{report:#}\n").as_bytes());
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// What was negotiated, and what is to be done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup<'a> {
    pub(crate) target: &'a Target<'a>,
    pub(crate) layout: &'a Layout,
    pub(crate) connections: usize,
    pub(crate) seed: u64,
}

const FLAGS: [(TransmissionFlags, &str); 10] = [
    (TransmissionFlags::READ_ONLY, "read-only"),
    (TransmissionFlags::SEND_FLUSH, "flush"),
    (TransmissionFlags::SEND_FUA, "FUA"),
    (TransmissionFlags::SEND_TRIM, "trim"),
    (TransmissionFlags::SEND_WRITE_ZEROES, "write zeroes"),
    (TransmissionFlags::SEND_FAST_ZERO, "fast zero"),
    (TransmissionFlags::SEND_DF, "unfragmented reads"),
    (TransmissionFlags::SEND_CACHE, "cache"),
    (TransmissionFlags::ROTATIONAL, "rotational"),
    (TransmissionFlags::CAN_MULTI_CONN, "multi-conn"),
];

impl Setup<'_> {
    fn flags(&self) -> Vec<&'static str> {
        let flags = self.target.session().flags();
        let set = FLAGS.iter().filter(|(flag, _)| flags.contains(*flag));
        set.map(|(_, word)| *word).collect()
    }

    const fn style(&self) -> &'static str {
        match self.target.session().reply_style() {
            ReplyStyle::Simple => "simple",
            ReplyStyle::Structured => "structured",
            ReplyStyle::Extended => "extended",
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let session = self.target.session();
        let sizes = session.block_sizes();
        let mut text = String::new();
        let size = display_size(session.size());
        let _ = writeln!(
            text,
            "{}: {size}, {} replies",
            self.target.uri(),
            self.style()
        );
        let _ = writeln!(
            text,
            "block sizes: {} at least, {} preferred, payload of {} at most",
            sizes.minimum(),
            sizes.preferred(),
            sizes.max_payload()
        );
        let _ = writeln!(text, "flags: {}", self.flags().join(", "));
        for lint in self.target.lints() {
            let _ = writeln!(text, "odd: {lint} (proto.md \"{}\")", lint.section());
        }
        for words in self.target.words() {
            let _ = writeln!(text, "promise: {words}");
        }
        let verb = if self.target.is_read_only() {
            "reading"
        } else {
            "overwriting"
        };
        let _ = writeln!(
            text,
            "{verb} {} in {} by blocks of {}, on {}, with --seed {}",
            display_size(self.layout.bytes()),
            count(self.layout.cells().len(), "place"),
            self.layout.granule(),
            count(self.connections, "connection"),
            self.seed
        );
        text
    }

    /// For programs; see [the program's page](super).
    pub(crate) fn to_json(self, verdict: &Verdict) -> Value {
        let session = self.target.session();
        let sizes = session.block_sizes();
        let lint = |it: &nbd_proto::session::Lint| json!({ "text": it.to_string(), "section": it.section(), "advice": it.is_advice() });
        let summary = verdict.summary;
        let counters = verdict.counters;
        let played = verdict.played.iter();
        let played = played.map(|(name, count)| ((*name).to_owned(), json!(count)));
        json!({
            "uri": self.target.uri().to_string(),
            "export": session.export().as_str(),
            "size": session.size(),
            "flags": self.flags(),
            "reply-style": self.style(),
            "block-sizes": [sizes.minimum(), sizes.preferred(), sizes.max_payload()],
            "lints": self.target.lints().iter().map(lint).collect::<Vec<_>>(),
            "promise": verdict.promise.to_string(),
            "read-only": self.target.is_read_only(),
            "connections": self.connections,
            "granule": self.layout.granule(),
            "seed": self.seed,
            "kills": verdict.kills.map(|(done, wanted)| json!([done, wanted])),
            "verdict": verdict.word(),
            "error": verdict.error,
            "signal": verdict.signal,
            "seconds": verdict.took.as_secs_f64(),
            "counters": {
                "events": summary.events,
                "operations": summary.commands,
                "failed": summary.failed,
                "flushes": summary.flushes,
                "crashes": summary.crashes,
                "blocks-compared": summary.blocks_read,
                "reads": counters.reads,
                "writes": counters.writes,
                "zeroes": counters.zeroes,
                "trims": counters.trims,
                "fua": counters.fua,
                "bytes-read": counters.bytes_read,
                "bytes-written": counters.bytes_written,
                "connections-opened": verdict.opened,
                "connections-lost": verdict.lost,
            },
            "played": played.collect::<serde_json::Map<_, _>>(),
            "violation": verdict.broken.as_ref().map(broken_to_json),
        })
    }
}

fn broken_to_json(broken: &Broken) -> Value {
    let text = broken.to_string();
    match broken {
        Broken::Promise(violation) => violation_to_json(violation, &text),
        Broken::Image(difference) => json!({
            "kind": "image",
            "offset": difference.offset,
            "text": text,
        }),
        Broken::Protocol(_) => json!({ "kind": "protocol", "text": text }),
    }
}

fn violation_to_json(violation: &Violation, text: &str) -> Value {
    json!({
        "kind": "promise",
        "clause": violation.clause().to_string(),
        "offset": violation.offset(),
        "found": content(violation.found()),
        "events": violation.events(),
        "steps": violation.steps().iter().map(step).collect::<Vec<_>>(),
        "text": text,
    })
}

fn content(content: Content) -> Value {
    match content {
        Content::MIXED => json!("mixed"),
        Content(number) => json!(number),
    }
}

fn step(step: &Step) -> Value {
    let role = match step.role {
        Role::Wrong => "wrong",
        Role::Old => "old",
        Role::New => "new",
        Role::Cover => "cover",
        Role::Proof => "proof",
        Role::Other => "other",
        Role::Crash => "crash",
        _ => "unknown",
    };
    let (action, found) = match step.action {
        Action::Write(it) => ("write", Some(it)),
        Action::Zero => ("zero", None),
        Action::Trim => ("trim", None),
        Action::Read(it) => ("read", Some(it)),
        Action::Flush => ("flush", None),
        Action::Disconnect => ("disconnect", None),
        Action::Crash => ("crash", None),
        _ => ("unknown", None),
    };
    json!({
        "role": role,
        "connection": step.conn,
        "action": action,
        "content": found.map(content),
        "begun": step.invoked,
        "ended": step.replied,
        "failed": step.failed,
        "fua": step.fua,
    })
}
