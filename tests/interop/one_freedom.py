# An nbdkit plugin with one write-back cache per connection over a file, which takes no other freedom
# of a backend than the one it is told to: so that of all schedules which a coordinator can get
# wrong, those of one kind bite.
#
# What was written is always kept back until its connection is flushed: that is what tracking is about.
# With freedom=
#   none    that is all: a connection reads the newest of what it has written and what the file has;
#           a write-out leaves alone what the file has newer; what is closed is written out;
#   clean   whole pages that were read are kept, too, until the connection is flushed: rounds;
#   order   connections are written out as they come, old over new: order;
#   close   what a connection has not flushed is dropped when it is closed: leaving.
#
# Parameters: image=PATH, freedom=..., and read=MS, write=MS, flush=MS to hold commands back.

import os
import threading
import time

import nbdkit

API_VERSION = 2
SECTOR = 512
PAGE = 4096

image = None
freedom = "none"
held = {"read": 0.0, "write": 0.0, "flush": 0.0}
lock = threading.Lock()
# How new each sector of the file is.
newest = {}
clock = 0


def config(key, value):
    global image, freedom
    if key == "image":
        image = os.open(value, os.O_RDWR)
    elif key == "freedom":
        if value not in ("none", "clean", "order", "close"):
            raise ValueError(value)
        freedom = value
    else:
        held[key] = float(value) / 1000


def thread_model():
    return nbdkit.THREAD_MODEL_PARALLEL


class Cache:
    def __init__(self):
        # By sector: when it was written, and what.
        self.dirty = {}
        self.clean = {}


def open(readonly):
    return Cache()


def close(cache):
    if freedom != "close":
        with lock:
            write_out(cache)


def get_size(cache):
    return os.fstat(image).st_size


def block_size(cache):
    return (SECTOR, PAGE, 0xFFFFFFFF)


def can_multi_conn(cache):
    return False


def sectors(offset, length):
    return range(offset // SECTOR, (offset + length) // SECTOR)


def pages(offset, length):
    return range(offset // PAGE, (offset + length + PAGE - 1) // PAGE)


def load(page):
    return os.pread(image, PAGE, page * PAGE)


def pread(cache, buf, offset, flags):
    # What is not kept is fetched before the delay, and kept after it.
    fetched = {}
    if freedom == "clean":
        with lock:
            for page in pages(offset, len(buf)):
                fetched[page] = cache.clean.get(page) or load(page)
    time.sleep(held["read"])
    with lock:
        if freedom == "clean":
            for page, data in fetched.items():
                data = cache.clean.setdefault(page, data)
                begin = max(offset, page * PAGE)
                end = min(offset + len(buf), page * PAGE + len(data))
                buf[begin - offset : end - offset] = data[begin - page * PAGE : end - page * PAGE]
        else:
            buf[:] = os.pread(image, len(buf), offset)
        for sector in sectors(offset, len(buf)):
            when, data = cache.dirty.get(sector, (0, None))
            if when > 0 and (freedom == "order" or when > newest.get(sector, 0)):
                at = sector * SECTOR - offset
                buf[at : at + SECTOR] = data


def pwrite(cache, buf, offset, flags):
    global clock
    time.sleep(held["write"])
    with lock:
        clock += 1
        for at, sector in enumerate(sectors(offset, len(buf))):
            cache.dirty[sector] = (clock, bytes(buf[at * SECTOR : (at + 1) * SECTOR]))


def write_out(cache):
    for sector, (when, data) in cache.dirty.items():
        if freedom == "order" or when > newest.get(sector, 0):
            os.pwrite(image, data, sector * SECTOR)
            newest[sector] = when
    cache.dirty.clear()
    cache.clean.clear()


def flush(cache, flags):
    with lock:
        write_out(cache)
    time.sleep(held["flush"])


def trim(cache, count, offset, flags):
    pwrite(cache, bytearray(count), offset, flags)
