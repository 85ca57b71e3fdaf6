# SPDX-License-Identifier: MIT
"""The volume's file is made longer while clients and snapshots are there."""

import os

from images import changes, check_export, check_image, write_to
from rig import check, check_equal, main, seeded

MIB = 1 << 20
SIZE = MIB + 700


def grow(server, path, image, size):
    os.truncate(path, size)
    check_equal(server.ok("resize")["size_bytes"], size, "the answer")
    check_equal(server.ok("status")["size_bytes"], size, "status")
    image.extend(bytes(size - len(image)))


def test_resize(rig, random, *parameters):
    image = bytearray(random.randbytes(SIZE))
    path = rig.file("volume", image)
    server = rig.serve(path, *parameters)
    server.refused("resize 5", "E2BIG")
    check_equal(server.ok("resize")["size_bytes"], SIZE, "nothing has changed")
    server.ok("take small")
    small = bytes(image)
    old = server.connect()
    write_to(random, server, None, image, 20)
    grow(server, path, image, 2 * MIB + 100)
    check_equal(old.get_size(), SIZE, "a connection keeps its size")
    old.pwrite(b"o" * 512, SIZE - 512)
    image[SIZE - 512:SIZE] = b"o" * 512
    check_export(server, "small", small)
    write_to(random, server, None, image, 20)
    check_export(server, None, image)
    check_export(server, "small", small)
    old.shutdown()
    os.truncate(path, MIB)
    server.refused("resize", "ERANGE")
    os.truncate(path, len(image))
    return server, path, image, small


def test_more(rig, random):
    """A second snapshot has the new size; what differs goes to the end of the longer one."""
    server, path, image, small = test_resize(rig, random)
    image[:] = rig.read("volume")
    server.ok("take large")
    large = bytes(image)
    grow(server, path, image, 3 * MIB)
    write_to(random, server, None, image, 60)
    check_export(server, "small", small)
    check_export(server, "large", large)
    check_export(server, None, image)
    check_equal(server.ok("changes small large")["size"], len(large), "the longer one")
    check_equal(server.ok("changes small")["size"], len(image), "to now")
    restored = bytearray(small) + bytes(len(large) - len(small))
    for at, length in changes(server, "small", "large")[0]:
        restored[at:at + length] = large[at:at + length]
    check(restored == large, "the changes leave out what differs")
    for name in ("small", "large"):
        server.ok(f"drop {name}")
    server.wait_reclaimed()
    server.stop()


def test_dm(rig, random):
    parameters = ("store-format=dm", f"store={rig.path('store')}", "store-limit=4M")
    server, path, image, small = test_resize(rig, random, *parameters)
    server.stop()
    image[:] = rig.read("volume")
    server = rig.serve(path, *parameters)
    handle = server.connect("small")
    # The format does not know how long the volume was.
    check_equal(handle.get_size(), len(image), "size after a restart")
    check(handle.pread(SIZE, 0) == small, "the snapshot")
    handle.shutdown()
    handle = server.connect()
    check_image(handle, image, "the volume")
    handle.shutdown()
    server.stop()


def main_test(rig):
    random = seeded()
    test_more(rig, random)
    test_dm(rig, random)
    return "a volume that grew twice under two snapshots and a connection, and one with a dm store"


main(main_test)
