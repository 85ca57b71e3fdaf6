# SPDX-License-Identifier: MIT
"""The core of examples/incremental.sh: a full backup, then only what has changed, three times, with
map-only snapshots, while the volume is written to. What is restored is the snapshot, byte for
byte."""

import threading

from images import Writer, check_export, copy_extents, tool
from rig import check, check_equal, main, seeded

MIB = 1 << 20
SIZE = 16 * MIB + 12345
ROUNDS = 3


def one_round(rig, server, number):
    """From the snapshot before to the next one. Returns the bytes copied."""
    before, name = f"s{number}", f"s{number + 1}"
    server.ok(f"take {name}")
    listed = tool("changes", server.control_socket, before, name)
    copied = copy_extents(server.uri(name), rig.path("backup"), listed)
    rig.run("nbdcopy", server.uri(name), rig.path("whole"))
    check(rig.read("backup") == rig.read("whole"), f"the backup is not {name}")
    server.ok(f"downgrade {name}")
    server.ok(f"drop {before}")
    return copied


def main_test(rig):
    random = seeded()
    image = bytearray(random.randbytes(SIZE))
    server = rig.serve(rig.file("volume", image))
    server.ok("take s0")
    rig.run("nbdcopy", server.uri("s0"), rig.path("backup"))
    check(rig.read("backup") == bytes(image), "the full backup")
    server.ok("downgrade s0")
    copied = 0
    handle = server.connect()
    load = Writer(random, handle, image)
    for number in range(ROUNDS):
        load.write(40)
        writer = threading.Thread(target=load.write, args=(100,))
        writer.start()
        copied += one_round(rig, server, number)
        writer.join()
    handle.shutdown()
    check(0 < copied < ROUNDS * SIZE // 2, f"{copied} bytes copied")
    server.wait_reclaimed()
    check_equal(server.state(f"s{ROUNDS}")["state"], "map-only", "the last snapshot")
    check_export(server, None, image)
    server.stop()
    return f"{ROUNDS} increments, {copied} bytes copied instead of {ROUNDS * SIZE}"


main(main_test)
