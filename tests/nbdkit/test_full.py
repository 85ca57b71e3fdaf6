# SPDX-License-Identifier: MIT
"""A store that is full: the snapshot loses, the write loses, or the write waits."""

import errno
import threading

from rig import check, check_equal, main, wait_until

import nbd

CHUNK = 4096
SIZE = 64 * CHUNK
LIMIT = 16 * CHUNK


def write_all(handle, byte):
    """Overwrites every chunk; returns the error numbers."""
    errors = []
    for offset in range(0, SIZE, CHUNK):
        try:
            handle.pwrite(byte * CHUNK, offset)
        except nbd.Error as error:
            errors.append(error.errnum)
    return errors


def read_error(handle):
    try:
        handle.pread(CHUNK, 0)
    except nbd.Error as error:
        return error.errnum
    return 0


def test_invalidate(rig, server):
    server.ok("take one")
    snapshot = server.connect("one")
    check_equal(write_all(server.connect(), b"b"), [], "writes go on")
    state = server.state("one")
    check_equal(state["state"], "invalid", "state")
    check_equal(state["reason"], "ENOSPC", "reason")
    check_equal(read_error(snapshot), errno.EIO, "a read of an invalid snapshot")
    check_equal(rig.read("volume"), b"b" * SIZE, "the volume")
    check("snapshot one is invalid now" in server.log(), "the log tells of it")
    server.ok("take two")
    server.ok("drop one")
    check_equal(read_error(server.connect("two")), 0, "another snapshot is not harmed")
    server.ok("drop two")
    server.wait_reclaimed()


def test_fail(rig, server):
    before = rig.read("volume")
    server.ok("take one")
    errors = write_all(server.connect(), b"c")
    check_equal(errors, [errno.ENOSPC] * ((SIZE - LIMIT) // CHUNK), "writes beyond the limit")
    check_equal(server.state("one")["state"], "active", "state")
    check(server.connect("one").pread(SIZE, 0) == before, "the snapshot is whole")
    check_equal(server.ok("status")["stats"]["failed_writes"], len(errors), "failed_writes")
    check_equal(server.ok("status")["store"]["used_bytes"], LIMIT, "used")
    server.ok("drop one")
    check_equal(write_all(server.connect(), b"d"), [], "writes after the drop")
    check_equal(rig.read("volume"), b"d" * SIZE, "the volume")
    server.wait_reclaimed()


def test_wait_and_space(rig, server):
    """The write that waits goes on when a drop makes space, and nobody loses."""
    server.ok("take old")
    live = server.connect()
    live.pwrite(b"e" * LIMIT, 0)
    server.ok("take new")
    done = []
    writer = threading.Thread(target=lambda: done.append(live.pwrite(b"f" * CHUNK, 0)))
    writer.start()
    wait_until(lambda: server.ok("status")["stats"]["space_waits"] > 0, "the write to wait")
    check_equal(done, [], "the write waits")
    server.ok("drop old")
    writer.join()
    check_equal(len(done), 1, "the write went on")
    check_equal(server.state("new")["state"], "active", "state of the other snapshot")
    check(server.connect("new").pread(CHUNK, 0) == b"e" * CHUNK, "its content")
    server.ok("drop new")
    server.wait_reclaimed()


def test_wait_in_vain(rig, server):
    server.ok("take one")
    check_equal(write_all(server.connect(), b"g"), [], "writes after the wait")
    check_equal(server.state("one")["state"], "invalid", "state after the wait")
    check_equal(rig.read("volume"), b"g" * SIZE, "the volume")
    server.ok("drop one")
    server.wait_reclaimed()


def main_test(rig):
    runs = (
        (test_invalidate, ("on-full=invalidate",)),
        (test_fail, ("on-full=fail",)),
        (test_wait_and_space, ("on-full=wait", "on-full-wait=600")),
        (test_wait_in_vain, ("on-full=wait", "on-full-wait=1")),
    )
    for test, parameters in runs:
        volume = rig.file("volume", b"a" * SIZE)
        server = rig.serve(volume, f"chunk-size={CHUNK}", f"store-limit={LIMIT}", *parameters)
        test(rig, server)
        server.stop()
    return "a full store under invalidate, fail, wait with space in time, wait in vain"


main(main_test)
