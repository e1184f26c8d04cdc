//! Headers against copying their bytes, and payload streams.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nbd_proto::limits::Limits;
use nbd_proto::session::{MetaContext, ReplyStyle, Session};
use nbd_proto::transmission::{
    ReplyDecoder, ReplyEncoder, ReplyEvent, RequestDecoder, RequestEncoder, RequestEvent,
    StatusReply,
};
use nbd_proto::wire::{Cookie, Extent, Name, Request, TransmissionFlags};

const COUNT: usize = 1024;

fn session(style: ReplyStyle) -> Session {
    let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH;
    Session::new(Name::default(), 1 << 30, flags).with_reply_style(style)
}

fn requests() -> Vec<Request> {
    (0..COUNT as u64)
        .map(|at| Request::read(Cookie(at), at * 4096, 4096))
        .collect()
}

fn headers(c: &mut Criterion) {
    let session = session(ReplyStyle::Simple);
    let requests = requests();
    let mut wire = Vec::new();
    for request in &requests {
        wire.extend(request.to_compact().expect("a short request"));
    }
    let mut group = c.benchmark_group("header");
    group.throughput(Throughput::Elements(COUNT as u64));
    group.bench_function("copy 28 bytes", |b| {
        b.iter(|| {
            for header in wire.chunks_exact(28) {
                let header: [u8; 28] = header.try_into().expect("28 bytes");
                black_box(header);
            }
        });
    });
    group.bench_function("decode, array", |b| {
        b.iter(|| {
            for header in wire.chunks_exact(28) {
                let header = header.try_into().expect("28 bytes");
                let _ = black_box(Request::from_compact(header));
            }
        });
    });
    group.bench_function("decode, RequestDecoder", |b| {
        b.iter(|| {
            let mut decoder = RequestDecoder::new(&session, &Limits::new());
            let mut input = &wire[..];
            while let Ok(Some(event)) = decoder.next(&mut input) {
                black_box(event);
            }
        });
    });
    group.bench_function("decode and check", |b| {
        b.iter(|| {
            let mut decoder = RequestDecoder::new(&session, &Limits::new());
            let mut input = &wire[..];
            while let Ok(Some(RequestEvent::Request(request))) = decoder.next(&mut input) {
                let _ = black_box(session.check(&request));
            }
        });
    });
    group.bench_function("encode, array", |b| {
        b.iter(|| {
            for request in &requests {
                let _ = black_box(request.to_compact());
            }
        });
    });
    group.bench_function("check and encode, RequestEncoder", |b| {
        let encoder = RequestEncoder::new(&session);
        b.iter(|| {
            for request in &requests {
                let _ = black_box(encoder.encode(request));
            }
        });
    });
    group.finish();
}

fn reply_heads(c: &mut Criterion) {
    let requests = requests();
    let mut group = c.benchmark_group("reply head");
    group.throughput(Throughput::Elements(COUNT as u64));
    for style in [
        ReplyStyle::Simple,
        ReplyStyle::Structured,
        ReplyStyle::Extended,
    ] {
        let encoder = ReplyEncoder::new(&session(style));
        group.bench_function(format!("{style:?}"), |b| {
            b.iter(|| {
                for request in &requests {
                    let _ = black_box(encoder.read(request));
                }
            });
        });
    }
    group.finish();
}

/// Writes of 64 KiB, cut into pieces as a socket would.
fn write_stream(c: &mut Criterion) {
    const SIZE: usize = 1 << 16;
    let session = session(ReplyStyle::Simple);
    let mut wire = Vec::new();
    for at in 0..16 {
        let request = Request::write(Cookie(at), at << 16, SIZE as u64);
        wire.extend(request.to_compact().expect("a short request"));
        wire.resize(wire.len() + SIZE, 0x55);
    }
    let mut group = c.benchmark_group("write stream");
    group.throughput(Throughput::Bytes(wire.len() as u64));
    for piece in [1, 1500, 1 << 16] {
        group.bench_function(format!("pieces of {piece}"), |b| {
            b.iter(|| {
                let mut decoder = RequestDecoder::new(&session, &Limits::new());
                for mut input in wire.chunks(piece) {
                    while let Ok(Some(event)) = decoder.next(&mut input) {
                        black_box(event);
                    }
                }
            });
        });
    }
    group.finish();
}

/// Replies to reads of 4 KiB, all in flight at once.
fn read_stream(c: &mut Criterion) {
    let requests = &requests()[..64];
    let mut group = c.benchmark_group("read stream, 64 replies of 4 KiB");
    group.throughput(Throughput::Elements(64));
    for style in [
        ReplyStyle::Simple,
        ReplyStyle::Structured,
        ReplyStyle::Extended,
    ] {
        let session = session(style);
        let encoder = ReplyEncoder::new(&session);
        let mut wire = Vec::new();
        for request in requests {
            wire.extend_from_slice(&encoder.read(request).expect("a read"));
            wire.resize(wire.len() + 4096, 0x55);
        }
        group.bench_function(format!("{style:?}"), |b| {
            let mut decoder = ReplyDecoder::new(&session, &Limits::new(), 64);
            b.iter(|| {
                for request in requests {
                    decoder.expect(request).expect("room in flight");
                }
                let mut input = &wire[..];
                let mut finished = 0;
                while let Ok(Some(event)) = decoder.next(&mut input) {
                    finished += usize::from(matches!(event, ReplyEvent::Finished { .. }));
                }
                assert_eq!(finished, 64);
            });
        });
    }
    group.finish();
}

/// Block status of as many extents as requests elsewhere, against copying the descriptors.
fn block_status(c: &mut Criterion) {
    let request = Request::block_status(Cookie(1), 0, COUNT as u64 * 4096);
    let extents = (0..COUNT as u64).map(|at| Extent {
        length: 4096,
        flags: at % 2,
    });
    let mut group = c.benchmark_group("block status");
    group.throughput(Throughput::Elements(COUNT as u64));
    for style in [ReplyStyle::Structured, ReplyStyle::Extended] {
        let name = Name::new("base:allocation").expect("a name");
        let session = session(style).with_contexts(vec![MetaContext { id: 1, name }]);
        let encode = |out: &mut Vec<u8>| {
            let mut reply = StatusReply::new(&session, &request).expect("legal");
            reply.context(1, extents.clone(), out).expect("legal");
        };
        let mut wire = Vec::new();
        encode(&mut wire);
        let mut out = Vec::with_capacity(wire.len());
        group.bench_function(format!("copy, {style:?}"), |b| {
            b.iter(|| {
                out.clear();
                let width = wire.len() / COUNT;
                for descriptor in black_box(&wire).chunks_exact(width) {
                    out.extend_from_slice(descriptor);
                }
                black_box(&out);
            });
        });
        group.bench_function(format!("encode, {style:?}"), |b| {
            b.iter(|| {
                out.clear();
                encode(&mut out);
                black_box(&out);
            });
        });
        group.bench_function(format!("decode, {style:?}"), |b| {
            let mut decoder = ReplyDecoder::new(&session, &Limits::new(), 1);
            b.iter(|| {
                decoder.expect(&request).expect("room in flight");
                let (mut input, mut sum) = (black_box(&wire[..]), 0);
                while let Ok(Some(event)) = decoder.next(&mut input) {
                    if let ReplyEvent::Status { extents, .. } = event {
                        sum += extents.map(|extent| extent.length).sum::<u64>();
                    }
                }
                assert_eq!(sum, request.length);
            });
        });
    }
    group.finish();
}

criterion_group!(
    benches,
    headers,
    reply_heads,
    write_stream,
    read_stream,
    block_status
);
criterion_main!(benches);
