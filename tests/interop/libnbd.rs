//! libnbd from Python: each command and flag, each refusal, and the session that goes on after it.

use crate::process::python;
use crate::server::{Serve, Server, Storage};

/// What every script starts with: `connect(simple)` and `refused(errno, call)`.
const PROLOGUE: &str = r#"
import errno, nbd, sys
uri = sys.argv[1]

def connect(simple=False):
    h = nbd.NBD()
    h.set_strict_mode(0)
    if simple:
        h.set_request_structured_replies(False)
    h.connect_uri(uri)
    assert h.get_structured_replies_negotiated() != simple
    return h

def refused(h, number, call):
    try:
        call()
    except nbd.Error as e:
        assert e.errnum == number, (errno.errorcode.get(e.errnum), e)
    else:
        raise AssertionError('not refused')
    # The session goes on, in step.
    assert len(h.pread(512, 1024)) == 512
"#;

fn script(server: &Server, body: &str) {
    python(&format!("{PROLOGUE}\n{body}"), &[&server.uri()]).ok();
}

over_every_storage! {
    data_is_read_as_it_was_written,
    fua_is_taken_on_every_modifying_command,
    reads_past_the_end_are_invalid,
    writes_past_the_end_have_no_space,
    unknown_commands_and_flags_are_invalid,
    many_requests_at_once_are_each_answered,
    zeroes_are_written_and_ranges_trimmed,
    a_flush_on_one_connection_covers_the_others,
}

fn data_is_read_as_it_was_written(storage: Storage) {
    let server = Serve::over(storage).start();
    script(
        &server,
        r"
import random
r = random.Random(1)
for simple in (False, True):
    h = connect(simple)
    for size in (1, 511, 512, 513, 4096, 65537, 1 << 20, 32 << 20):
        offset = r.randrange(h.get_size() - size + 1)
        data = r.randbytes(size)
        h.pwrite(data, offset)
        assert h.pread(size, offset) == data, size
    h.pwrite(b'last', h.get_size() - 4)
    assert h.pread(4, h.get_size() - 4) == b'last'
    h.flush()
    h.shutdown()
",
    );
}

fn fua_is_taken_on_every_modifying_command(storage: Storage) {
    let server = Serve::over(storage).start();
    script(
        &server,
        r"
h = connect()
assert h.can_fua()
h.pwrite(b'x' * 8192, 0, nbd.CMD_FLAG_FUA)
h.zero(4096, 0, nbd.CMD_FLAG_FUA)
h.zero(512, 4096, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)
assert h.pread(8192, 0) == bytes(4608) + b'x' * 3584
h.trim(4096, 8192, nbd.CMD_FLAG_FUA)
# proto.md: FUA is valid on all commands once it is offered.
h.pread(512, 0, nbd.CMD_FLAG_FUA)
h.flush(nbd.CMD_FLAG_FUA)
h.shutdown()
",
    );
    if let (Storage::File | Storage::Cached, false) = (storage, crate::settings::serve_is_nbdkit())
    {
        let image = std::fs::read(server.image()).unwrap();
        assert_eq!(&image[4608..8192], &[b'x'; 3584]);
    }
}

fn reads_past_the_end_are_invalid(storage: Storage) {
    let server = Serve::over(storage).start();
    script(
        &server,
        r"
for simple in (False, True):
    h = connect(simple)
    end = h.get_size()
    refused(h, errno.EINVAL, lambda: h.pread(1, end))
    refused(h, errno.EINVAL, lambda: h.pread(512, end - 511))
    refused(h, errno.EINVAL, lambda: h.pread(512, (1 << 63) - 512))
    refused(h, errno.EINVAL, lambda: h.trim(512, end))
    h.shutdown()
",
    );
}

fn writes_past_the_end_have_no_space(storage: Storage) {
    let server = Serve::over(storage).start();
    script(
        &server,
        r"
for simple in (False, True):
    h = connect(simple)
    end = h.get_size()
    h.pwrite(b'keep', end - 4)
    refused(h, errno.ENOSPC, lambda: h.pwrite(b'x', end))
    refused(h, errno.ENOSPC, lambda: h.pwrite(b'x' * 1024, end - 512))
    refused(h, errno.ENOSPC, lambda: h.pwrite(b'x' * (1 << 20), (1 << 63) - 512))
    refused(h, errno.ENOSPC, lambda: h.zero(512, end))
    assert h.pread(4, end - 4) == b'keep'
    h.shutdown()
",
    );
}

fn unknown_commands_and_flags_are_invalid(storage: Storage) {
    let server = Serve::over(storage).start();
    script(
        &server,
        r"
for simple in (False, True):
    h = connect(simple)
    refused(h, errno.EINVAL, lambda: h.pread(512, 0, 1 << 9))
    refused(h, errno.EINVAL, lambda: h.pwrite(b'x' * 512, 0, 1 << 9))
    refused(h, errno.EINVAL, lambda: h.flush(1 << 15))
    assert h.pread(512, 0) == bytes(512)
    h.shutdown()
",
    );
    // libnbd has no way to send a command that it does not know.
    let mut client = server.connect();
    let cookie = client.send(0x7777, 0, 0, 0);
    assert_eq!(client.wait(cookie), Err(crate::raw::EINVAL));
    client.read(0, 512).expect("the session goes on");
}

fn many_requests_at_once_are_each_answered(storage: Storage) {
    let server = Serve::over(storage).start();
    script(
        &server,
        r"
for simple in (False, True):
    h = connect(simple)
    done = []
    def ended(what):
        def callback(error):
            done.append((what, error.value))
            return 1
        return callback
    # 64 in flight, of different sizes, so that replies may overtake each other.
    size = lambda i: 512 << (i % 9)
    for i in range(64):
        h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i + 1]) * size(i)), i << 18, ended(i))
    while h.aio_in_flight():
        h.poll(20000)
    assert sorted(done) == [(i, 0) for i in range(64)], done
    done.clear()
    buffers = [nbd.Buffer(size(i)) for i in range(64)]
    for i in range(64):
        h.aio_pread(buffers[i], i << 18, ended(i))
    while h.aio_in_flight():
        h.poll(20000)
    assert sorted(done) == [(i, 0) for i in range(64)], done
    for i in range(64):
        assert buffers[i].to_bytearray() == bytearray([i + 1]) * size(i), i
    h.shutdown()
",
    );
}

fn zeroes_are_written_and_ranges_trimmed(storage: Storage) {
    let server = Serve::over(storage).start();
    script(
        &server,
        r"
h = connect()
h.pwrite(b'x' * (1 << 20), 0)
h.zero(100000, 1000)
assert h.pread(1000, 0) == b'x' * 1000
assert h.pread(100000, 1000) == bytes(100000)
assert h.pread(1000, 101000) == b'x' * 1000
h.zero(4096, 524288, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(4096, 524288) == bytes(4096)
h.trim(65536, 262144)
# What was trimmed may read as anything, its neighbours may not.
assert h.pread(4096, 262144 - 4096) == b'x' * 4096
assert h.pread(4096, 262144 + 65536) == b'x' * 4096
if h.can_cache():
    h.cache(65536, 0)
# Larger than any payload may be: there is none.
h.zero(h.get_size(), 0)
assert h.pread(1 << 20, 0) == bytes(1 << 20)
h.shutdown()
",
    );
}

fn a_flush_on_one_connection_covers_the_others(storage: Storage) {
    let server = Serve::over(storage).start();
    script(
        &server,
        r"
a, b, c = connect(), connect(True), connect()
if not a.can_multi_conn():
    sys.exit(0)
for h in (a, b, c):
    assert h.pread(4096, 0) == bytes(4096)
for i in range(50):
    writer, flusher, reader = (a, b, c) if i % 2 else (c, a, b)
    writer.pwrite(bytes([i + 1]) * 4096, 0)
    flusher.flush()
    for h in (a, b, c):
        assert h.pread(4096, 0) == bytes([i + 1]) * 4096, i
for h in (a, b, c):
    h.shutdown()
",
    );
}

#[test]
fn a_read_only_export_permits_no_change() {
    let server = Serve::over(Storage::Memory).read_only().start();
    script(
        &server,
        r"
for simple in (False, True):
    h = connect(simple)
    assert h.is_read_only()
    refused(h, errno.EPERM, lambda: h.pwrite(b'x' * 512, 0))
    refused(h, errno.EPERM, lambda: h.pwrite(b'x' * (1 << 20), 0))
    refused(h, errno.EPERM, lambda: h.zero(512, 0))
    refused(h, errno.EPERM, lambda: h.trim(512, 0))
    assert h.pread(512, 0) == bytes(512)
    h.shutdown()
",
    );
}

#[test]
fn a_client_that_knows_no_go_is_served_by_export_name() {
    let server = Serve::over(Storage::Memory).start();
    // Without the flag for fixed newstyle a client may send nothing but EXPORT_NAME.
    script(
        &server,
        r"
for flags in (0, nbd.HANDSHAKE_FLAG_NO_ZEROES):
    h = nbd.NBD()
    h.set_handshake_flags(flags)
    h.connect_uri(uri)
    assert h.get_protocol() == 'newstyle', h.get_protocol()
    assert h.get_size() == 64 << 20
    h.pwrite(b'abc', 5)
    assert h.pread(3, 5) == b'abc'
    h.shutdown()
",
    );
}

#[test]
fn options_may_be_asked_one_by_one() {
    let server = Serve::over(Storage::Memory)
        .export("one")
        .export("two")
        .start();
    script(
        &server,
        r"
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(uri)
names = []
h.opt_list(lambda name, description: names.append(name))
assert names == ['one', 'two'], names
h.set_export_name('absent')
try:
    h.opt_info()
except nbd.Error as e:
    assert e.errnum == errno.ENOENT, e
else:
    raise AssertionError('absent is there')
h.set_export_name('two')
h.opt_info()
assert h.get_size() == 64 << 20
h.opt_go()
h.pwrite(b'two', 0)
assert h.pread(3, 0) == b'two'
h.shutdown()

h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(uri)
h.opt_abort()
",
    );
}
