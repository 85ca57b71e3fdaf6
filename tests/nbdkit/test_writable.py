# SPDX-License-Identifier: MIT
"""snapshots=writable: what is written to a snapshot is seen there and nowhere else."""

import errno
import os

from images import (CHUNK, Writer, check_export, check_image, in_threads, read_all, refused,
                    write_to)
from rig import check, check_equal, main, seeded

import nbd

MIB = 1 << 20
SIZE = 4 * MIB + 500
os.environ["PATH"] += ":/usr/sbin:/sbin"


def test_apart(rig, random):
    """Three snapshots and the volume, each with a writer of its own at the same time."""
    image = bytearray(random.randbytes(SIZE))
    server = rig.serve(rig.file("volume", image), "snapshots=writable")
    check_equal(server.ok("status")["snapshot_exports"], "writable", "status")
    images = {None: image}
    for name in ("a", "b", "c"):
        write_to(random, server, None, image, 30)
        server.ok(f"take {name}")
        images[name] = bytearray(image)
    handle = server.connect("a")
    check(not handle.is_read_only() and handle.can_flush() and handle.can_zero() and
          handle.can_trim() and handle.can_fua(), "what a writable export offers")
    for _ in range(2):
        in_threads([lambda name=name: write_to(type(random)(random.randrange(1 << 30)), server,
                                               name, images[name], 150) for name in images])
        for name, wanted in images.items():
            check_export(server, name, wanted)
    check(server.state("a")["written_chunks"] > 0, "written chunks in the list")
    handle.pwrite(b"f" * 512, 0, nbd.CMD_FLAG_FUA)
    handle.flush()
    handle.trim(2 * CHUNK, CHUNK)
    images["a"][:512] = b"f" * 512
    images["a"][CHUNK:3 * CHUNK] = bytes(2 * CHUNK)
    check_image(handle, images["a"], "after a trim")
    server.ok("drop b")
    for name in (None, "a", "c"):
        check_export(server, name, images[name])
    handle.shutdown()
    server.ok("drop a")
    server.ok("drop c")
    server.wait_reclaimed()
    server.stop()


def test_full(rig):
    """A snapshot's write finds no space: it fails, and the snapshot is as it was."""
    server = rig.serve(rig.file("full", b"v" * MIB), "snapshots=writable", "store-limit=64k")
    server.ok("take one")
    handle = server.connect("one")
    handle.pwrite(b"w" * 65536, 0)
    refused(lambda: handle.pwrite(b"x" * CHUNK, 65536), errno.ENOSPC)
    state = server.state("one")
    check_equal((state["state"], state["overflowed"]), ("active", True), "the snapshot")
    check(read_all(handle) == b"w" * 65536 + b"v" * (MIB - 65536), "its content")
    handle.pwrite(b"y" * 65536, 0)
    check_equal(handle.pread(512, 0), b"y" * 512, "what has space is written again")
    server.stop()


def test_file_system(rig):
    """A file is written into the snapshot of a file system; neither knows of the other's."""
    os.mkdir(rig.path("tree"))
    rig.file("tree/old", b"old" * 100000)
    rig.file("new", b"new" * 100000)
    with open(rig.path("fs"), "wb") as file:
        file.truncate(16 * MIB)
    rig.run("mke2fs", "-q", "-t", "ext4", "-F", "-d", rig.path("tree"), rig.path("fs"))
    server = rig.serve(rig.path("fs"), "snapshots=writable")
    server.ok("take one")
    rig.run("nbdcopy", server.uri("one"), rig.path("copy"))
    before = rig.read("copy")
    rig.run("debugfs", "-w", "-R", f"write {rig.path('new')} new", rig.path("copy"))
    after = rig.read("copy")
    handle = server.connect("one")
    for at in range(0, len(before), CHUNK):
        if after[at:at + CHUNK] != before[at:at + CHUNK]:
            handle.pwrite(after[at:at + CHUNK], at)
    handle.flush()
    handle.shutdown()
    rig.run("nbdcopy", server.uri("one"), rig.path("exported"))
    rig.run("nbdcopy", server.uri(), rig.path("live"))
    check(rig.read("live") == before, "the live file system")
    for image in ("exported", "live"):
        rig.run("e2fsck", "-fn", rig.path(image))
    rig.run("debugfs", "-R", f"dump new {rig.path('dumped')}", rig.path("exported"))
    check(rig.read("dumped") == b"new" * 100000, "the new file")
    server.stop()


def test_dm(rig, random):
    """The one snapshot of a dm store: what was written to it is there after a restart."""
    image = bytearray(random.randbytes(MIB))
    volume = rig.file("dm", image)
    parameters = ("store-format=dm", f"store={rig.path('store')}", "snapshots=writable")
    server = rig.serve(volume, *parameters)
    server.ok("take one")
    snapshot = bytearray(image)
    for kill in (True, False):
        handle = server.connect("one")
        Writer(random, handle, snapshot).write(60)
        write_to(random, server, None, image, 60)
        handle.flush()
        check_image(handle, snapshot, "the snapshot")
        if kill:
            server.kill()
        else:
            handle.shutdown()
            server.stop()
        rig.check_store(rig.path("store"), MIB)
        server = rig.serve(volume, *parameters)
        check_export(server, "one", snapshot)
        check_export(server, None, image)
    server.stop()


def main_test(rig):
    random = seeded()
    test_apart(rig, random)
    test_full(rig)
    test_file_system(rig)
    test_dm(rig, random)
    return "three written snapshots and the volume side by side, a full store, ext4, a dm store"


main(main_test)
