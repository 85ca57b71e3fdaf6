# SPDX-License-Identifier: MIT
"""store-format=dm: clean restarts, what is shown, names, sizes of a new store, growth."""

import os

from dm import BLOCK, Volume
from rig import check, check_equal, main, seeded

MIB = 1 << 20
SIZE = 4 * MIB
LONG_NAME = "größe-" + "n" * 247


def test_status(volume, server):
    store = server.ok("status")["store"]
    check_equal(store["kind"], "dm", "kind of store")
    check_equal(store["chunk_size_bytes"], BLOCK, "chunk size")
    check_equal(store["record_limit"], SIZE // BLOCK, "a new store has room for the volume")
    check_equal(store["records"], 0, "records")
    # The header, two areas of 256 for 1024 records and the end of the list, and so on.
    check_equal(os.path.getsize(volume.store), (1 + 1024 + 4 + 1) * BLOCK, "length of the store")


def test_restart(volume):
    """Stopped and started again with the snapshot, three times, then dropped."""
    server = volume.serve()
    test_status(volume, server)
    server.ok(f"take {LONG_NAME}")
    check_equal(volume.name_kept(), LONG_NAME + "\n", "the name beside the store")
    before = bytes(volume.after)
    for round_number in range(3):
        volume.write_until(server, 300, lambda: None)
        records = server.ok("status")["store"]["records"]
        check_equal(server.state(LONG_NAME)["saved_chunks"], records, "saved chunks")
        server.stop()
        volume.check_live()
        check_equal(volume.check_store("--clean")["records"], records, "records in the file")
        server = volume.serve()
        check_equal(server.ok("status")["store"]["records"], records, "records after the start")
        volume.check_snapshot(server, LONG_NAME, before)
    server.refused("take another", "EBUSY")
    server.refused(f"take {LONG_NAME}", "EEXIST")
    check_equal(volume.name_kept(), LONG_NAME + "\n", "a take that was refused")
    reader = server.connect(LONG_NAME)
    server.ok(f"drop {LONG_NAME}")
    check_equal(volume.name_kept(), None, "the name after the drop")
    reader.shutdown()
    server.wait_reclaimed()
    server.ok("take another")
    server.ok("drop another")
    server.stop()
    server = volume.serve()
    check_equal(volume.names(server), [], "after a drop and a restart")
    server.stop()


def test_names(volume):
    """The name is lost or spoiled: the snapshot is not."""
    server = volume.serve()
    server.ok("take named")
    image = bytes(volume.after)
    server.stop()
    for content in (None, b"", b"two words\n", b"a/b\n", b"\xff\n", b"n" * 300, b"one\ntwo\n"):
        if content is None:
            os.unlink(volume.store + ".name")
        else:
            volume.rig.file("store.name", content)
        server = volume.serve()
        volume.check_snapshot(server, "reopened", image)
        server.stop()
    volume.rig.file("store.name", b"by-hand")
    server = volume.serve()
    volume.check_snapshot(server, "by-hand", image)
    server.ok("drop by-hand")
    # A name without a snapshot means nothing.
    server.stop()
    volume.rig.file("store.name", b"old\n")
    server = volume.serve()
    check_equal(volume.names(server), [], "a name without a snapshot")
    server.ok("take new")
    check_equal(volume.name_kept(), "new\n", "the name of the next snapshot")
    # The store is removed: no snapshot.
    server.stop()
    os.unlink(volume.store)
    server = volume.serve()
    check_equal(volume.names(server), [], "a store that was removed")
    server.stop()


def test_sizes(volume):
    """Chunk sizes; an old store keeps its own."""
    for chunk_size, limit in ((512, 33 * 512), (65536, SIZE), (4096, 256 * 4096)):
        os.unlink(volume.store)
        server = volume.serve(f"chunk-size={chunk_size}", f"store-limit={limit}")
        store = server.ok("status")["store"]
        check_equal(store["limit_bytes"], limit, f"limit with chunks of {chunk_size}")
        server.ok("take sized")
        image = bytes(volume.after)
        server.connect().pwrite(b"s" * 10000, 5000)
        volume.after[5000:15000] = b"s" * 10000
        server.stop()
        server = volume.serve()
        check_equal(server.ok("status")["store"]["chunk_size_bytes"], chunk_size, "chunk size")
        volume.check_snapshot(server, "sized", image)
        server.stop()
        volume.check_store("--clean")


def test_grow(volume):
    server = volume.rig.serve(volume.path)
    server.refused("grow", "ENODEV")
    server.refused("grow more", "E2BIG")
    server.stop()
    os.unlink(volume.store)
    for parameters in ((), ("store-format=dm",)):
        server = volume.rig.serve(volume.path, f"store={volume.store}", f"store-limit={MIB}",
                                  *parameters)
        check_equal(server.ok("grow")["limit_bytes"], MIB, "nothing has grown")
        length = os.path.getsize(volume.store)
        os.truncate(volume.store, length + MIB)
        limit = server.ok("grow")["limit_bytes"]
        # Of a new MiB an area for each 256 chunks is no room for data.
        check(2 * MIB - 2 * BLOCK <= limit <= 2 * MIB, f"limit after growth: {limit}")
        check_equal(server.ok("status")["store"]["limit_bytes"], limit, "limit in status")
        os.truncate(volume.store, length)
        server.refused("grow", "ERANGE")
        server.stop()
        os.unlink(volume.store)


def main_test(rig):
    volume = Volume(rig, seeded(), SIZE)
    test_restart(volume)
    test_names(volume)
    test_sizes(volume)
    test_grow(volume)
    volume.check_live()
    return "three restarts, lost and spoiled names, chunk sizes of an old store, growth"


main(main_test)
