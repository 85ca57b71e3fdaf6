# SPDX-License-Identifier: MIT
"""store-format=dm: a store that is full, and what of that is still so after a restart."""

import errno
import os
import threading

from dm import BLOCK, Volume
from rig import check, check_equal, main, seeded, wait_until

import nbd

BLOCKS = 64
SIZE = BLOCKS * BLOCK
LIMIT = 16 * BLOCK
INVALID = 4  # exit status of the independent reader


def write_all(volume, server, byte):
    """Overwrites every block; returns the error numbers."""
    handle = server.connect()
    errors = []
    for offset in range(0, SIZE, BLOCK):
        try:
            handle.pwrite(byte * BLOCK, offset)
            volume.after[offset:offset + BLOCK] = byte * BLOCK
        except nbd.Error as error:
            errors.append(error.errnum)
    handle.shutdown()
    return errors


def check_invalid(server, name, reason):
    state = server.state(name)
    check_equal(state["state"], "invalid", f"state of {name}")
    check_equal(state["reason"], reason, f"reason of {name}")
    try:
        server.connect(name).pread(BLOCK, 0)
        check(False, "an invalid snapshot was read")
    except nbd.Error as error:
        check_equal(error.errnum, errno.EIO, "a read of an invalid snapshot")


def test_invalid(volume, end):
    """The snapshot becomes invalid and stays so, however often the server ends, until the drop."""
    server = volume.serve(f"store-limit={LIMIT}", "on-full=invalidate")
    server.ok("take one")
    check_equal(write_all(volume, server, b"b"), [], "writes go on")
    check_invalid(server, "one", "ENOSPC")
    for _ in range(2):
        end(server)
        volume.check_live()
        volume.check_store(status=INVALID)
        server = volume.serve()
        check_equal(volume.names(server), ["one"], "an invalid snapshot keeps its name")
        check_invalid(server, "one", "EUCLEAN")
        check_equal(write_all(volume, server, b"c"), [], "writes with an invalid snapshot")
    server.refused("take two", "EBUSY")
    server.ok("drop one")
    server.ok("take two")
    image = bytes(volume.after)
    server.connect().pwrite(b"d" * LIMIT, 0)
    volume.after[:LIMIT] = b"d" * LIMIT
    check_equal(server.ok("status")["store"]["records"], LIMIT // BLOCK, "records, all anew")
    end(server)
    volume.check_store()
    server = volume.serve()
    volume.check_snapshot(server, "two", image)
    server.ok("drop two")
    server.stop()


def test_fail(volume):
    """The write loses: the snapshot is whole, also after a kill, and growth lets writes go on."""
    server = volume.serve("on-full=fail")
    server.ok("take one")
    image = bytes(volume.after)
    full = [errno.ENOSPC] * ((SIZE - LIMIT) // BLOCK)
    check_equal(write_all(volume, server, b"e"), full, "writes beyond the limit")
    store = server.ok("status")["store"]
    check_equal(store["records"], store["record_limit"], "records of a full store")
    server.kill()
    volume.check_store()
    server = volume.serve("on-full=fail")
    volume.check_snapshot(server, "one", image)
    check_equal(write_all(volume, server, b"f"), full, "writes after the restart")
    os.truncate(volume.store, 2 * os.path.getsize(volume.store) + SIZE)
    server.ok("grow")
    check_equal(write_all(volume, server, b"g"), [], "writes after growth")
    check_equal(server.ok("status")["store"]["records"], BLOCKS, "records of all blocks")
    volume.check_snapshot(server, "one", image)
    server.kill()
    volume.check_live()
    check_equal(volume.check_store()["records"], BLOCKS, "records in the file")
    server = volume.serve("on-full=fail")
    volume.check_snapshot(server, "one", image)
    server.ok("drop one")
    server.stop()


def test_wait(volume):
    """A write that waits for space gets it from growth."""
    os.unlink(volume.store)
    server = volume.serve(f"store-limit={LIMIT}", "on-full=wait", "on-full-wait=600")
    server.ok("take one")
    image = bytes(volume.after)
    errors = []
    writer = threading.Thread(target=lambda: errors.extend(write_all(volume, server, b"h")))
    writer.start()
    wait_until(lambda: server.ok("status")["stats"]["space_waits"] > 0, "a write to wait")
    os.truncate(volume.store, 2 * SIZE)
    server.ok("grow")
    writer.join()
    check_equal(errors, [], "the writes went on")
    volume.check_snapshot(server, "one", image)
    server.stop()
    volume.check_live()
    volume.check_store("--clean")


def main_test(rig):
    volume = Volume(rig, seeded(), SIZE)
    test_invalid(volume, lambda server: server.stop())
    test_invalid(volume, lambda server: server.kill())
    test_fail(volume)
    test_wait(volume)
    return ("invalid for want of space, after stops and kills too, a drop, a take; a write that "
            "loses, growth, a write that waits for it")


main(main_test)
