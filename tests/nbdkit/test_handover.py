# SPDX-License-Identifier: MIT
"""A dm store goes from one running server to the next, several times, with its snapshot; what is
refused; a state that is not used, is old, or is damaged."""

import os

from dm import Volume
from images import check_export, refused
from rig import check, check_equal, main, seeded

MIB = 1 << 20
SIZE = 2 * MIB


def test_refused(rig, volume, server):
    for line, error in (("handover", "EINVAL"), ("handover a b", "E2BIG"),
                        ("handover state", "EBADMSG"), ("handover /a\0b", "EBADMSG"),
                        (f"handover {rig.path('missing/state')}", "ENOENT"),
                        (f"handover {volume.path}", "EEXIST")):
        server.refused(line, error)
    server.connect()
    server.refused(f"handover {rig.path('state')}", "EISCONN")
    server.disconnect()
    check(not os.path.exists(rig.path("state")), "nothing was written")


def test_turns(rig, volume):
    """Three times, with writes between."""
    server = volume.serve(f"generation-file={rig.path('generation')}")
    server.refused(f"handover {rig.path('state')}", "ENODATA")
    server.ok("take kept")
    image = bytes(volume.after)
    for number in range(3):
        volume.write_until(server, 200, lambda: None)
        server.disconnect()
        if number == 0:
            test_refused(rig, volume, server)
        old = server
        records = old.ok("status")["store"]["records"]
        old.ok(f"handover {rig.path('state')}")
        refused(old.connect)
        old.refused("take more", "ESHUTDOWN")
        old.ok("status")
        server = volume.serve(f"generation-file={rig.path('generation')}",
                              f"handover-file={rig.path('state')}")
        check_equal(server.ok("status")["store"]["records"], records, "records")
        check(not os.path.exists(rig.path("state")), "the state was used up")
        volume.check_snapshot(server, "kept", image)
        old.stop()
        volume.check_store("--clean")
        volume.check_snapshot(server, "kept", image)
    volume.check_live()
    volume.write_until(server, 50, server.kill)
    return image


def test_states(rig, volume, image):
    """Without its state the store is opened as always; with an old or a bad one it is not wrong."""
    server = volume.serve()
    volume.settle()
    server.ok(f"handover {rig.path('old')}")
    server.stop()
    server = volume.serve()
    volume.check_snapshot(server, "kept", image)
    volume.write_until(server, 50, lambda: None)
    server.stop()
    server = volume.serve(f"handover-file={rig.path('old')}")
    volume.check_snapshot(server, "kept", image)
    server.disconnect()
    server.ok(f"handover {rig.path('bad')}")
    server.stop()
    state = bytearray(rig.read("bad"))
    state[len(state) // 2] ^= 0x40
    rig.file("bad", state)
    volume.refused("handover-file", f"handover-file={rig.path('bad')}", run=())
    volume.refused("No such file", f"handover-file={rig.path('missing')}", run=())
    server = volume.serve()
    volume.check_snapshot(server, "kept", image)
    check_export(server, None, volume.after)
    server.ok("drop kept")
    server.stop()


def main_test(rig):
    volume = Volume(rig, seeded(), SIZE)
    image = test_turns(rig, volume)
    test_states(rig, volume, image)
    server = rig.serve(volume.path)
    server.ok("take one")
    server.refused(f"handover {rig.path('state')}", "EOPNOTSUPP")
    server.stop()
    return "three handovers under writes, an old state and a damaged one"


main(main_test)
