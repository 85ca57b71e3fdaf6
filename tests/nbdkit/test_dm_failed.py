# SPDX-License-Identifier: MIT
"""store-format=dm: the store's disk fails. What cannot be recorded is not done, and is said."""

import errno
import os

from dm import BLOCK, Volume
from rig import check, check_equal, main, seeded

import nbd

SIZE = 64 * BLOCK


def write_error(handle, offset):
    try:
        handle.pwrite(b"x" * BLOCK, offset)
    except nbd.Error as error:
        return error.errnum
    return 0


def test_fail(volume, failing):
    """A preimage cannot be recorded: the write loses. After a restart all is well."""
    server = volume.serve("on-full=fail", fail=failing)
    server.ok("take one")
    image = bytes(volume.after)
    live = server.connect()
    check_equal(write_error(live, 0), 0, "a write on a good disk")
    volume.after[:BLOCK] = b"x" * BLOCK
    volume.rig.file("failing", b"")
    check_equal(write_error(live, BLOCK), errno.EIO, "a write that needs a copy")
    check_equal(write_error(live, 0), 0, "a write that needs none")
    volume.check_snapshot(server, "one", image)
    os.unlink(failing)
    check_equal(write_error(live, BLOCK), errno.EIO, "a write after a flush has failed once")
    volume.check_snapshot(server, "one", image)
    server.kill()
    volume.check_live()
    volume.check_store()
    server = volume.serve()
    volume.check_snapshot(server, "one", image)
    volume.write_until(server, 20, lambda: None)
    volume.check_snapshot(server, "one", image)
    server.ok("drop one")
    server.stop()


def test_invalidate(volume, failing):
    """The snapshot would lose, but that cannot be recorded: so the write fails until it can."""
    server = volume.serve("on-full=invalidate", fail=failing)
    server.ok("take one")
    image = bytes(volume.after)
    live = server.connect()
    volume.rig.file("failing", b"")
    check_equal(write_error(live, BLOCK), errno.EIO, "a write that needs a copy")
    volume.check_live()
    volume.check_snapshot(server, "one", image)
    os.unlink(failing)
    check_equal(write_error(live, BLOCK), 0, "a write, now that the loss can be recorded")
    volume.after[BLOCK:2 * BLOCK] = b"x" * BLOCK
    check_equal(server.state("one")["state"], "invalid", "the snapshot has lost")
    server.kill()
    volume.check_live()
    server = volume.serve()
    check_equal(server.state("one")["state"], "invalid", "state after the restart")
    server.ok("drop one")
    server.stop()


def test_drop(volume, failing):
    """A drop that cannot be recorded is none: the snapshot is as before, after a kill too."""
    server = volume.serve(fail=failing)
    server.ok("take one")
    image = bytes(volume.after)
    volume.write_until(server, 20, lambda: None)
    volume.rig.file("failing", b"")
    server.refused("drop one", "EIO")
    os.unlink(failing)
    volume.check_snapshot(server, "one", image)
    check_equal(volume.name_kept(), "one\n", "the name is kept with its snapshot")
    server.kill()
    volume.check_store()
    server = volume.serve()
    volume.check_snapshot(server, "one", image)
    volume.write_until(server, 50, lambda: None)
    volume.check_snapshot(server, "one", image)
    server.ok("drop one")
    server.stop()


def test_take(volume, failing):
    """A take that cannot be recorded is none."""
    server = volume.serve(fail=failing)
    # It answers: so it has opened the store, which a disk that fails would have kept it from.
    check_equal(volume.names(server), [], "snapshots at the start")
    volume.rig.file("failing", b"")
    server.refused("take two", "EIO")
    check_equal(volume.names(server), [], "snapshots after a take that failed")
    check_equal(write_error(server.connect(), 0), 0, "a write without a snapshot")
    volume.after[:BLOCK] = b"x" * BLOCK
    os.unlink(failing)
    check_equal(volume.name_kept(), None, "name after a take that failed")
    server.stop()
    server = volume.serve()
    check_equal(volume.names(server), [], "snapshots after the restart")
    server.ok("take two")
    image = bytes(volume.after)
    volume.write_until(server, 20, lambda: None)
    server.stop()
    volume.check_store("--clean")
    server = volume.serve()
    volume.check_snapshot(server, "two", image)
    server.stop()


def main_test(rig):
    volume = Volume(rig, seeded(), SIZE)
    failing = rig.path("failing")
    test_take(volume, failing)
    os.unlink(volume.store)
    test_fail(volume, failing)
    test_invalidate(volume, failing)
    test_drop(volume, failing)
    return "a disk that does not flush: writes, drop and take fail, what was answered is kept"


main(main_test)
