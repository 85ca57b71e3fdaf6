# SPDX-License-Identifier: MIT
"""store=FILE: preimages go there, and only there."""

import os

from rig import check, check_equal, main, seeded

MIB = 1 << 20
SIZE = 8 * MIB


def use(rig, server, before):
    server.ok("take one")
    server.connect().pwrite(b"n" * SIZE, 0)
    check(server.connect("one").pread(SIZE, 0) == before, "the snapshot")
    status = server.ok("status")
    check_equal(status["store"]["kind"], "file", "kind of store")
    check_equal(status["store"]["used_bytes"], SIZE, "used")
    server.ok("drop one")
    server.wait_reclaimed()
    server.connect().pwrite(before, 0)


def main_test(rig):
    before = seeded().randbytes(SIZE)
    volume = rig.file("volume", before)

    server = rig.serve(volume, "store=" + rig.path("made"))
    check_equal(os.path.getsize(rig.path("made")), SIZE, "a new store has the volume's size")
    use(rig, server, before)
    server.stop()

    server = rig.serve(volume, "store=" + rig.path("larger"), f"store-limit={2 * SIZE}")
    check_equal(os.path.getsize(rig.path("larger")), 2 * SIZE, "a new store has the limit's size")
    check_equal(server.ok("status")["store"]["limit_bytes"], 2 * SIZE, "limit")
    use(rig, server, before)
    server.stop()

    # A file that exists is used as it is, whatever it holds, up to the limit.
    server = rig.serve(volume, "store=" + rig.path("larger"), f"store-limit={SIZE}",
                       "chunk-size=64k")
    check_equal(os.path.getsize(rig.path("larger")), 2 * SIZE, "an old store keeps its size")
    check_equal(server.ok("status")["store"]["limit_bytes"], SIZE, "limit")
    use(rig, server, before)
    server.stop()
    check(rig.read("volume") == before, "the volume at the end")
    return "a store in a new file, in a new file with a limit, in a file that exists"


main(main_test)
