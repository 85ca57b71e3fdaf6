# SPDX-License-Identifier: MIT
"""What the tests of snapshots that do more than being read share: images that are known, written to
through an export and compared with one."""

import os
import subprocess
import sys
import threading

from rig import DEADLINE_S, check, check_equal

import nbd

CHUNK = 4096
REQUEST = 1 << 20
TOOL = os.environ.get("COWSNAP_TOOL", "")
EXAMPLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../examples")


def read_all(handle):
    size = handle.get_size()
    return b"".join(handle.pread(min(REQUEST, size - at), at) for at in range(0, size, REQUEST))


def check_image(handle, image, text):
    """An export shows this image; says which chunk does not."""
    check_equal(handle.get_size(), len(image), f"{text}: size")
    got = read_all(handle)
    for at in range(0, len(image), CHUNK):
        check(got[at:at + CHUNK] == image[at:at + CHUNK],
              f"{text}: chunk {at // CHUNK} is another")


def check_export(server, name, image):
    handle = server.connect(name)
    check_image(handle, image, f"export @{name}" if name else "the live volume")
    handle.shutdown()


def refused(call, *numbers):
    """It fails with one of these errors; without any, with whichever."""
    try:
        call()
    except nbd.Error as error:
        check(not numbers or error.errnum in numbers, f"error {error.errnum}: {error}")
        return
    check(False, "it was not refused")


class Writer:
    """Writes at random to an export, and to the image that it has to be then."""

    def __init__(self, random, handle, image):
        self.random = random
        self.handle = handle
        self.image = image
        self.chunks = set()  # that were written to

    def place(self):
        length = self.random.choice((512, CHUNK, 5 * CHUNK, self.random.randrange(1, 3 * CHUNK)))
        offset = self.random.randrange(len(self.image) - length)
        if self.random.randrange(2):
            offset -= offset % CHUNK
        self.chunks.update(range(offset // CHUNK, (offset + length - 1) // CHUNK + 1))
        return offset, length

    def write(self, count):
        for _ in range(count):
            offset, length = self.place()
            if self.random.randrange(8) == 0:
                self.handle.zero(length, offset)
                data = bytes(length)
            else:
                data = self.random.randbytes(length)
                self.handle.pwrite(data, offset)
            self.image[offset:offset + length] = data
        return self.chunks


def write_to(random, server, name, image, count):
    """Returns the chunks that were written to."""
    handle = server.connect(name)
    chunks = Writer(random, handle, image).write(count)
    handle.shutdown()
    return chunks


def in_threads(jobs):
    """Runs functions side by side; what one of them raised is raised."""
    raised = []

    def run(job):
        try:
            job()
        except BaseException as error:  # handed on below
            raised.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


def changes(server, *names):
    """All pages of the answer as one list of runs, and the chunks in them."""
    runs = []
    offset = 0
    names = list(names) + ["/now"] * (2 - len(names))
    while True:
        page = server.ok(f"changes {' '.join(names)} {offset}")
        check(len(page["changes"]) <= 1024, "an answer has a bound")
        for at, length in page["changes"]:
            check(length > 0 and at >= offset and at + length <= page["size"], f"{at}, {length}")
            if runs and runs[-1][0] + runs[-1][1] == at:
                runs[-1][1] += length
            else:
                check(not runs or at > sum(runs[-1]), "runs come in order")
                runs.append([at, length])
        check(page["complete"] == (page["next"] == page["size"]), f"{page['next']}")
        if page["complete"]:
            break
        check(page["next"] > offset, "each page gets on")
        offset = page["next"]
    chunks = {number for at, length in runs
              for number in range(at // CHUNK, (at + length - 1) // CHUNK + 1)}
    return runs, chunks


def tool(*arguments, status=0):
    """The tool cowsnap; what it printed."""
    done = subprocess.run([TOOL, *arguments], capture_output=True, text=True, timeout=DEADLINE_S,
                          check=False)
    check_equal(done.returncode, status, f"cowsnap {arguments}: {done.stderr}")
    return done.stdout if status == 0 else done.stderr


def copy_extents(uri, image, listed):
    """examples/copy_extents.py; how many bytes it copied."""
    done = subprocess.run(
        [sys.executable, "-B", os.path.join(EXAMPLES, "copy_extents.py"), uri, image],
        input=listed, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    check_equal(done.returncode, 0, f"copy_extents.py: {done.stderr}")
    return int(done.stdout)
