# An nbdkit plugin with one volatile cache for all connections over a file: flush on any of them
# writes it out, so multi-conn is promised. With deaf=1 a flush does nothing, and says that it
# succeeded: as long as the server lives nobody sees a difference.
#
# Parameters: image=PATH, deaf=0|1, write=MS to hold writes back.

import os
import threading
import time

import nbdkit

API_VERSION = 2
PAGE = 4096

image = None
deaf = False
held = 0.0
lock = threading.Lock()
pages = {}


def config(key, value):
    global image, deaf, held
    if key == "image":
        image = os.open(value, os.O_RDWR)
    elif key == "deaf":
        deaf = value != "0"
    elif key == "write":
        held = float(value) / 1000
    else:
        raise ValueError(key)


def thread_model():
    return nbdkit.THREAD_MODEL_PARALLEL


def open(readonly):
    return None


def get_size(_):
    return os.fstat(image).st_size


def can_multi_conn(_):
    return True


def pieces(offset, length):
    end = offset + length
    while offset < end:
        number, start = divmod(offset, PAGE)
        count = min(PAGE - start, end - offset)
        yield number, start, count
        offset += count


def load(number):
    return bytearray(os.pread(image, PAGE, number * PAGE).ljust(PAGE, b"\0"))


def pread(_, buf, offset, flags):
    at = 0
    with lock:
        for number, start, count in pieces(offset, len(buf)):
            page = pages.get(number) or load(number)
            buf[at : at + count] = page[start : start + count]
            at += count


def pwrite(_, buf, offset, flags):
    time.sleep(held)
    at = 0
    with lock:
        for number, start, count in pieces(offset, len(buf)):
            page = pages.get(number) or load(number)
            page[start : start + count] = buf[at : at + count]
            pages[number] = page
            at += count


def flush(_, flags):
    if deaf:
        return
    with lock:
        for number, page in pages.items():
            rest = os.fstat(image).st_size - number * PAGE
            os.pwrite(image, page[:rest], number * PAGE)
        pages.clear()


def trim(_, count, offset, flags):
    pwrite(None, bytearray(count), offset, flags)
