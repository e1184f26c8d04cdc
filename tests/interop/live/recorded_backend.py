# An nbdkit plugin that is the backend of tests/data/nbdkit-observed.json: a write-back cache of the
# whole image per connection (or one for all), filled when it is first used, over one file per
# export. It says what nbdkit asks of it, and holds calls for as long as it is told.
#
# Parameters:
#
#   store=DIR       image-NAME there is the permanent storage of the export NAME
#   shared=1        all exports are names of image-
#   multi_conn=1    all connections to an image share one cache
#   strict_fua=1    a command with FUA makes only its own range permanent
#   serialize=1     one connection at a time
#   log=FILE        a line for each call, when it begins: `flush 2` is one on the second connection
#   gates=DIR       calls wait while there is a file DIR/GATE or, for the second connection only,
#                   DIR/GATE.2. The gates are pread, pwrite and flush, before the call does anything;
#                   loaded, between filling the cache and doing it; flushed, after it; and close.
#                   While DIR/fail exists, no flush can write to the second half of the image: what
#                   it had to write is dropped, as by Linux after a failed fsync
#   on_open=1       the cache is filled when the connection opens
#   on_close=1      a cache of one connection is written out when that closes

import errno
import os
import threading
import time

import nbdkit

API_VERSION = 2

parameters = {}
lock = threading.Lock()
opened = 0
log_file = None
images = {}


def config(key, value):
    global log_file
    parameters[key] = value
    if key == "log":
        log_file = os.open(value, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def is_set(key):
    return parameters.get(key) == "1"


def thread_model():
    if is_set("serialize"):
        return nbdkit.THREAD_MODEL_SERIALIZE_CONNECTIONS
    return nbdkit.THREAD_MODEL_PARALLEL


class Cache:
    def __init__(self):
        self.image = None
        self.written = []


class Image:
    def __init__(self, name):
        path = os.path.join(parameters["store"], "image-" + name)
        self.file = os.open(path, os.O_RDWR)
        self.size = os.fstat(self.file).st_size
        self.shared = Cache()

    def load(self):
        return bytearray(os.pread(self.file, self.size, 0))


class Connection:
    def __init__(self, number, image):
        self.number = number
        self.image = image
        self.cache = image.shared if is_set("multi_conn") else Cache()

    # What is to be kept, if nothing is cached; the lock is not held meanwhile.
    def load(self):
        if self.cache.image is not None:
            return None
        loaded = self.image.load()
        begin("loaded", self)
        return loaded

    # The cache's image. The lock has to be held.
    def kept(self, loaded):
        if self.cache.image is None:
            self.cache.image = loaded or self.image.load()
        return self.cache.image

    def is_bad(self, offset):
        gates = parameters.get("gates")
        return gates and offset >= self.image.size // 2 and os.path.exists(gates + "/fail")

    def write_out(self):
        written, self.cache.written = self.cache.written, []
        self.cache.image = None
        for offset, data in written:
            if self.is_bad(offset):
                nbdkit.set_error(errno.EIO)
                raise OSError(errno.EIO, "the storage cannot write there")
            os.pwrite(self.image.file, data, offset)

    def modify(self, data, offset, flags):
        fua = bool(flags & nbdkit.FLAG_FUA)
        if fua:
            say("fua", self)
        loaded = self.load()
        with lock:
            self.kept(loaded)[offset : offset + len(data)] = data
            self.cache.written.append((offset, data))
            if fua and is_set("strict_fua"):
                os.pwrite(self.image.file, data, offset)
            elif fua:
                self.write_out()


def say(what, connection):
    if log_file is not None:
        os.write(log_file, b"%s %d\n" % (what.encode(), connection.number))


def begin(what, connection):
    say(what, connection)
    gates = parameters.get("gates")
    if gates:
        both = [f"{gates}/{what}", f"{gates}/{what}.{connection.number}"]
        while any(os.path.exists(gate) for gate in both):
            time.sleep(0.001)


def open(readonly):
    global opened
    name = "" if is_set("shared") else nbdkit.export_name()
    with lock:
        opened += 1
        if name not in images:
            images[name] = Image(name)
        connection = Connection(opened, images[name])
    if is_set("on_open"):
        cache(connection, connection.image.size, 0, 0)
    return connection


def close(connection):
    begin("close", connection)
    if is_set("on_close"):
        with lock:
            connection.write_out()


def get_size(connection):
    return connection.image.size


def can_multi_conn(connection):
    return is_set("multi_conn")


def can_fua(connection):
    return nbdkit.FUA_NATIVE


def can_cache(connection):
    return nbdkit.CACHE_NATIVE


def pread(connection, buf, offset, flags):
    begin("pread", connection)
    loaded = connection.load()
    with lock:
        buf[:] = connection.kept(loaded)[offset : offset + len(buf)]


def cache(connection, count, offset, flags):
    loaded = connection.load()
    with lock:
        connection.kept(loaded)


def pwrite(connection, buf, offset, flags):
    begin("pwrite", connection)
    connection.modify(bytes(buf), offset, flags)


def zero(connection, count, offset, flags):
    connection.modify(bytes(count), offset, flags)


def flush(connection, flags):
    begin("flush", connection)
    with lock:
        connection.write_out()
    begin("flushed", connection)
