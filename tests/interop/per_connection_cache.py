# An nbdkit plugin with one write-back cache per connection over a file: what `serve --cache file`
# is, without a coordinator. Under nbdkit's multi-conn filter it shows which schedules of
# flush_hazards.rs bite, so that a pass of ours means something.
#
# Parameters: image=PATH, and read=MS, write=MS, flush=MS to hold commands back.

import os
import threading
import time

import nbdkit

API_VERSION = 2
PAGE = 4096

image = None
held = {"read": 0.0, "write": 0.0, "flush": 0.0}


def config(key, value):
    global image
    if key == "image":
        image = os.open(value, os.O_RDWR)
    else:
        held[key] = int(value) / 1000


def thread_model():
    return nbdkit.THREAD_MODEL_PARALLEL


class Cache:
    def __init__(self):
        self.pages = {}
        self.dirty = set()
        self.lock = threading.Lock()

    def load(self, number):
        return bytearray(os.pread(image, PAGE, number * PAGE).ljust(PAGE, b"\0"))


def open(readonly):
    return Cache()


def get_size(cache):
    return os.fstat(image).st_size


def can_multi_conn(cache):
    return False


def pieces(offset, length):
    end = offset + length
    while offset < end:
        number, start = divmod(offset, PAGE)
        count = min(PAGE - start, end - offset)
        yield number, start, count
        offset += count


def pread(cache, buf, offset, flags):
    # What is not cached is fetched before the delay and kept after it.
    numbers = [number for number, _, _ in pieces(offset, len(buf))]
    fetched = {number: cache.load(number) for number in numbers if number not in cache.pages}
    time.sleep(held["read"])
    at = 0
    with cache.lock:
        for number, start, count in pieces(offset, len(buf)):
            page = cache.pages.setdefault(number, fetched.get(number) or cache.load(number))
            buf[at : at + count] = page[start : start + count]
            at += count


def pwrite(cache, buf, offset, flags):
    numbers = [number for number, _, _ in pieces(offset, len(buf))]
    fetched = {number: cache.load(number) for number in numbers if number not in cache.pages}
    time.sleep(held["write"])
    at = 0
    with cache.lock:
        for number, start, count in pieces(offset, len(buf)):
            page = cache.pages.setdefault(number, fetched.get(number) or cache.load(number))
            page[start : start + count] = buf[at : at + count]
            cache.dirty.add(number)
            at += count


def flush(cache, flags):
    with cache.lock:
        for number in sorted(cache.dirty):
            rest = get_size(cache) - number * PAGE
            os.pwrite(image, cache.pages[number][:rest], number * PAGE)
        cache.dirty.clear()
        cache.pages.clear()
    time.sleep(held["flush"])


def trim(cache, count, offset, flags):
    pwrite(cache, bytearray(count), offset, flags)
