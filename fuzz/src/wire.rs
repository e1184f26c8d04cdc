//! Every wire type, from raw bytes and back.

use std::fmt::{Debug, Display};

use nbd_proto::flush::{AfterFailure, Grouping, Mode, Overlap, ThreadModel, TrackDirty};
use nbd_proto::session::BlockSizes;
use nbd_proto::wire::{
    Chunk, ChunkType, ClientFlags, ClientOption, CommandType, DataHead, Errno, ErrorChunk,
    ExportNameReply, Extent, GreetingStyle, Hole, Info, InfoType, MAX_ERROR_MESSAGE, MAX_STRING,
    Name, NewstyleGreeting, OldstyleGreeting, OptionCode, OptionHeader, OptionReply,
    OptionReplyHeader, ReplyType, Request, SimpleReply, StatusChunk, StatusQuery,
};

use crate::choices::Choices;

/// The first byte chooses a type. What it makes of the others has to come out again.
pub fn wire(data: &[u8]) {
    let mut choices = Choices::new(data);
    match choices.byte() % 20 {
        0 => greetings(choices.rest()),
        1 => fixed(choices.rest(), |b| {
            Some(ClientFlags::from_bytes(b).to_bytes())
        }),
        2 => fixed(choices.rest(), |b| {
            Some(OptionHeader::from_bytes(b).ok()?.to_bytes())
        }),
        3 => fixed(choices.rest(), |b| {
            Some(OptionReplyHeader::from_bytes(b).ok()?.to_bytes())
        }),
        4 => export_name_reply(choices.rest()),
        5 => fixed(choices.rest(), |b| {
            Some(
                Request::from_compact(b)
                    .ok()?
                    .to_compact()
                    .expect("32 bits"),
            )
        }),
        6 => fixed(choices.rest(), |b| {
            let request = Request::from_extended(b).ok()?;
            let fits = u32::try_from(request.length).is_ok();
            assert_eq!(request.to_compact().is_ok(), fits);
            Some(request.to_extended())
        }),
        7 => fixed(choices.rest(), |b| {
            Some(SimpleReply::from_bytes(b).ok()?.to_bytes())
        }),
        8 => fixed(choices.rest(), |b| {
            Some(
                Chunk::from_structured(b)
                    .ok()?
                    .to_structured()
                    .expect("32 bits"),
            )
        }),
        9 => fixed(choices.rest(), |b| {
            let (chunk, offset) = Chunk::from_extended(b).ok()?;
            Some(chunk.to_extended(offset))
        }),
        10 => fixed(choices.rest(), |b| Some(DataHead::from_bytes(b).to_bytes())),
        11 => fixed(choices.rest(), |b| Some(Hole::from_bytes(b).to_bytes())),
        12 => status_chunk(choices.rest()),
        13 => {
            let kind = ChunkType(choices.u16());
            error_chunk(kind, choices.rest());
        }
        14 => status_query(choices.rest()),
        15 => {
            let code = OptionCode(choices.u32());
            client_option(code, choices.rest());
        }
        16 => {
            let reply = ReplyType(choices.u32());
            option_reply(reply, choices.rest());
        }
        17 => names(choices.rest()),
        18 => codes(choices),
        _ => block_sizes(choices),
    }
}

/// A header of fixed size: whatever is accepted encodes to the same bytes.
fn fixed<const N: usize>(bytes: &[u8], again: impl Fn(&[u8; N]) -> Option<[u8; N]>) {
    let Some(header) = bytes.first_chunk() else {
        return;
    };
    if let Some(encoded) = again(header) {
        assert_eq!(encoded, *header);
    }
}

fn greetings(bytes: &[u8]) {
    fixed(bytes, |b| {
        Some(NewstyleGreeting::from_bytes(b).ok()?.to_bytes())
    });
    let Some(start) = bytes.first_chunk() else {
        return;
    };
    let style = GreetingStyle::from_bytes(start).ok();
    if let Some(greeting) = bytes.first_chunk() {
        let is_newstyle = NewstyleGreeting::from_bytes(greeting).is_ok();
        assert_eq!(is_newstyle, style == Some(GreetingStyle::Newstyle));
    }
    if let Some(greeting) = bytes.first_chunk() {
        let oldstyle = OldstyleGreeting::from_bytes(greeting).ok();
        assert_eq!(oldstyle.is_some(), style == Some(GreetingStyle::Oldstyle));
        if let Some(oldstyle) = oldstyle {
            let encoded = oldstyle.to_bytes();
            // The reserved bytes are not kept.
            assert_eq!(encoded[..28], greeting[..28]);
            assert_eq!(OldstyleGreeting::from_bytes(&encoded), Ok(oldstyle));
        }
    }
}

fn export_name_reply(bytes: &[u8]) {
    let Some(start) = bytes.first_chunk() else {
        return;
    };
    let reply = ExportNameReply::from_bytes(start);
    for (no_zeroes, zeroes) in [(true, 0), (false, ExportNameReply::ZEROES)] {
        let mut out = vec![0xa5];
        reply.encode(no_zeroes, &mut out);
        assert_eq!(out[1..11], *start);
        assert_eq!(out[11..], vec![0; zeroes]);
    }
}

fn status_chunk(payload: &[u8]) {
    let mut out = vec![0xa5];
    if let Ok(status) = StatusChunk::parse(payload) {
        check_extents(&status);
        StatusChunk::encode(status.context(), status.extents(), &mut out).expect("as it came");
        assert_eq!(out[1..], *payload);
    }
    out.truncate(1);
    if let Ok(status) = StatusChunk::parse_extended(payload) {
        check_extents(&status);
        StatusChunk::encode_extended(status.context(), status.extents(), &mut out)
            .expect("as it came");
        assert_eq!(out[1..], *payload);
        let wide = |n: u64| u32::try_from(n).is_err();
        let any_wide = status.extents().any(|it| wide(it.length) || wide(it.flags));
        let before = out.clone();
        let narrow = StatusChunk::encode(status.context(), status.extents(), &mut out);
        assert_eq!(narrow.is_err(), any_wide);
        if any_wide {
            assert_eq!(out, before, "nothing is appended");
        }
    }
}

fn check_extents(status: &StatusChunk<'_>) {
    let extents: Vec<Extent> = status.extents().collect();
    assert_eq!(extents.len(), status.extents().len());
    assert!(!extents.is_empty());
    assert!(extents.iter().all(|extent| extent.length > 0));
}

fn error_chunk(kind: ChunkType, payload: &[u8]) {
    let Ok(error) = ErrorChunk::parse(kind, payload) else {
        return;
    };
    assert_ne!(error.error, Errno(0));
    assert_eq!(error.offset.is_some(), kind == ChunkType::ERROR_OFFSET);
    // A byte that is replaced becomes three.
    assert!(error.text().len() <= 3 * MAX_ERROR_MESSAGE);
    let mut out = Vec::new();
    error.encode(&mut out);
    assert_eq!(u32::try_from(out.len()), Ok(error.wire_len()));
    let again = ErrorChunk::parse(kind, &out).expect("what was encoded");
    if error.message.len() <= MAX_ERROR_MESSAGE {
        assert_eq!(again, error);
        assert!(payload.starts_with(&out));
    } else {
        assert!(error.message.starts_with(again.message));
        assert!(again.message.len() <= MAX_ERROR_MESSAGE);
        assert!(again.message.len() >= MAX_ERROR_MESSAGE - 3);
        assert_eq!((again.error, again.offset), (error.error, error.offset));
    }
}

fn status_query(payload: &[u8]) {
    let parsed = StatusQuery::parse(payload);
    assert_eq!(
        parsed.is_ok(),
        payload.len() >= 8 && payload.len().is_multiple_of(4),
        "8 + n * 4"
    );
    if let Ok(query) = parsed {
        let ids: Vec<u32> = query.ids().collect();
        let mut out = Vec::new();
        StatusQuery::encode(query.effect_length(), &ids, &mut out);
        assert_eq!(out, payload);
        let count = u32::try_from(ids.len()).expect("fewer than bytes");
        assert_eq!(StatusQuery::len_for(count), payload.len() as u64);
    }
}

fn client_option(code: OptionCode, body: &[u8]) {
    let option = match ClientOption::parse(code, body) {
        Ok(option) => option,
        Err(why) => return shown(&why),
    };
    assert_eq!(option.code(), code);
    let mut out = Vec::new();
    option.encode(&mut out);
    let header: &[u8; OptionHeader::LEN] = out.first_chunk().expect("a header");
    let header = OptionHeader::from_bytes(header).expect("our magic number");
    let encoded = &out[OptionHeader::LEN..];
    assert_eq!(header.option, code);
    assert_eq!(header.length as usize, encoded.len());
    // The data of an abort is dropped.
    let expected = if code == OptionCode::ABORT { b"" } else { body };
    assert_eq!(encoded, expected);
    assert_eq!(ClientOption::parse(code, encoded), Ok(option));
}

fn option_reply(kind: ReplyType, body: &[u8]) {
    let reply = match OptionReply::parse(kind, body) {
        Ok(reply) => reply,
        Err(why) => return shown(&why),
    };
    assert_eq!(reply.reply_type(), kind);
    assert_eq!(reply.is_final(), kind == ReplyType::ACK || kind.is_error());
    let mut out = Vec::new();
    reply.encode(OptionCode::GO, &mut out);
    let header: &[u8; OptionReplyHeader::LEN] = out.first_chunk().expect("a header");
    let header = OptionReplyHeader::from_bytes(header).expect("our magic number");
    let encoded = &out[OptionReplyHeader::LEN..];
    assert_eq!((header.option, header.reply), (OptionCode::GO, kind));
    assert_eq!(header.length as usize, encoded.len());
    assert_eq!(OptionReply::parse(kind, encoded), Ok(reply.clone()));
    // Text for people is mended where it is no string; everything else comes out as it came.
    let text = match &reply {
        OptionReply::Error { .. } => Some(body),
        OptionReply::Server { name, .. } => body.get(4 + name.as_bytes().len()..),
        OptionReply::Info(Info::Description(_)) => body.get(2..),
        _ => None,
    };
    if text.is_none_or(is_string) {
        assert_eq!(encoded, body);
    }
}

fn is_string(bytes: &[u8]) -> bool {
    bytes.len() <= MAX_STRING && !bytes.contains(&0) && std::str::from_utf8(bytes).is_ok()
}

fn names(bytes: &[u8]) {
    let lossy = Name::lossy(bytes);
    assert!(is_string(lossy.as_bytes()));
    assert_eq!(Name::new(lossy.as_str()), Ok(lossy.clone()));
    if is_string(bytes) {
        assert_eq!(lossy.as_bytes(), bytes);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let name = text.parse::<Name>();
        assert_eq!(name.is_ok(), is_string(bytes));
        words::<Mode>(text);
        words::<TrackDirty>(text);
        words::<Grouping>(text);
        words::<AfterFailure>(text);
        words::<Overlap>(text);
        words::<ThreadModel>(text);
    }
}

/// What is understood prints as something that means the same.
fn words<T>(text: &str)
where
    T: std::str::FromStr + Display + PartialEq + Debug,
    T::Err: Display + Debug,
{
    match text.parse::<T>() {
        Ok(value) => {
            let printed = value.to_string().parse::<T>().expect("our own word");
            assert_eq!(printed, value);
        }
        Err(why) => shown(&why),
    }
}

fn codes(mut choices: Choices<'_>) {
    let (wide, narrow) = (choices.u32(), choices.u16());
    code(OptionCode(wide), OptionCode(wide).name());
    code(ReplyType(wide), ReplyType(wide).name());
    code(Errno(wide), Errno(wide).name());
    code(CommandType(narrow), CommandType(narrow).name());
    code(InfoType(narrow), InfoType(narrow).name());
    code(ChunkType(narrow), ChunkType(narrow).name());
    assert!(Errno(wide).or_einval().name().is_some());
    shown(&Errno(wide).describe());
}

fn code<T: Display + Debug>(code: T, name: Option<&str>) {
    match name {
        Some(name) => assert_eq!(code.to_string(), name),
        None => assert!(code.to_string().starts_with("0x")),
    }
    shown(&code);
}

fn block_sizes(mut choices: Choices<'_>) {
    let (minimum, preferred, max_payload) = (choices.u32(), choices.u32(), choices.u32());
    match BlockSizes::new(minimum, preferred, max_payload) {
        Ok(sizes) => {
            assert!(minimum.is_power_of_two() && minimum <= 65536);
            assert!(preferred.is_power_of_two() && preferred >= minimum.max(512));
            assert!(max_payload >= preferred);
            let got = (sizes.minimum(), sizes.preferred(), sizes.max_payload());
            assert_eq!(got, (minimum, preferred, max_payload));
        }
        Err(why) => shown(&why),
    }
}

/// Says something, in both ways.
fn shown<T: Display + Debug>(value: &T) {
    assert!(!value.to_string().is_empty());
    assert!(!format!("{value:?}").is_empty());
}
