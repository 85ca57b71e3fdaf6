# SPDX-License-Identifier: MIT
"""store-format=dm: stores that must be refused, each with words, and none of them changed."""

import os
import struct

from dm import BLOCK, Volume
from rig import check, check_equal, main, seeded

SIZE = 64 * BLOCK
SLOT = struct.Struct("<QQ")


def make_store(volume):
    """A store with a snapshot and some records; returns its bytes."""
    server = volume.serve()
    server.ok("take one")
    image = bytes(volume.after)
    server.connect().pwrite(b"w" * 8 * BLOCK, 0)
    volume.after[:8 * BLOCK] = b"w" * 8 * BLOCK
    server.kill()
    check_equal(volume.check_store()["records"], 8, "records")
    return volume.rig.read("store"), image


def patched(data, offset, patch):
    return data[:offset] + patch + data[offset + len(patch):]


def test_damage(volume, good):
    """Each kind of damage is named as in docs/design/dm-format.md, with its values."""
    chunks = len(good) // BLOCK
    third = BLOCK + 3 * SLOT.size
    cases = (
        ("bad-magic: not a dm-snapshot store", b"junk" * BLOCK),
        ("the magic is 0x12345678", patched(good, 0, struct.pack("<I", 0x12345678))),
        ("bad-version: the version is 2", patched(good, 8, struct.pack("<I", 2))),
        ("chunk-size-zero", patched(good, 12, struct.pack("<I", 0))),
        ("chunk-size-not-power-of-two", patched(good, 12, struct.pack("<I", 7))),
        ("chunk-size-too-large", patched(good, 12, struct.pack("<I", 1 << 22))),
        ("device-too-short", good[:BLOCK]),
        ("record-beyond-device", good[:5 * BLOCK]),
        ("record-beyond-device: record 3", patched(good, third, SLOT.pack(63, chunks))),
        ("record-in-metadata: record 3", patched(good, third, SLOT.pack(63, 1))),
        ("record-in-header: record 3", patched(good, third, SLOT.pack(63, 0))),
        ("record-beyond-origin: record 3", patched(good, third, SLOT.pack(64, 50))),
        ("duplicate-origin: record 3", patched(good, third, good[BLOCK:BLOCK + 8])),
        ("duplicate-store: record 3", patched(good, third + 8, good[BLOCK + 8:BLOCK + 16])),
    )
    for wanted, data in cases:
        volume.rig.file("store", data)
        volume.refused(wanted)
        check(volume.rig.read("store") == data, f"{wanted}: a store that was refused has changed")
    volume.rig.file("store", good)


def test_mismatch(volume, good):
    """A good store, and something around it that does not fit."""
    rig = volume.rig
    before = rig.read("volume")
    volume.refused("8192", "chunk-size=8k")
    volume.refused("must be a power of two", "chunk-size=5000")
    volume.refused("must be from 512", "chunk-size=2G")
    # A transient store would write over it.
    rig.refused("store-format=dm opens it", f"file={volume.path}", f"store={volume.store}")
    rig.refused("store-format=dm opens it", f"file={volume.path}", f"store={volume.store}",
                "store-format=transient")
    # The volume has become shorter than what the store has records of.
    os.truncate(volume.path, 4 * BLOCK)
    volume.refused("record")
    rig.file("volume", before)
    # The store and the volume are one file.
    for same in (volume.path, rig.path("directory/../volume")):
        rig.refused("it is the volume itself", f"file={volume.path}", "store-format=dm",
                    f"store={same}")
    rig.refused("No such file", f"file={volume.path}", "store-format=dm",
                "store=" + rig.path("missing/store"))
    rig.refused("store-limit=100: must be at least a chunk", f"file={volume.path}",
                "store-format=dm", "store=" + rig.path("new"), "store-limit=100")
    rig.refused("must be a power of two", f"file={volume.path}", "store-format=dm",
                "store=" + rig.path("new"), "chunk-size=5000")
    check(rig.read("store") == good, "the store was changed")
    check(rig.read("volume") == before, "the volume was changed")


def test_readonly(volume, good):
    """A store that may not be written to. Root may all, unless that is taken from it."""
    prefix = ()
    if os.geteuid() == 0:
        prefix = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    os.chmod(volume.store, 0o400)
    volume.rig.refused("Permission denied", f"file={volume.path}", "store-format=dm",
                       f"store={volume.store}", prefix=prefix)
    os.chmod(volume.store, 0o600)
    check(volume.rig.read("store") == good, "the store was changed")


def test_in_use(volume, good, image):
    rig = volume.rig
    server = volume.serve()
    volume.check_snapshot(server, "one", image)
    volume.refused("another process")
    other = rig.file("other", b"o" * SIZE)
    rig.refused("another process", f"file={other}", "store-format=dm", f"store={volume.store}")
    volume.check_snapshot(server, "one", image)
    server.ok("drop one")
    volume.refused("another process")
    server.stop()
    server = volume.serve()
    server.stop()
    rig.file("store", good)


def test_small(volume):
    """Files that are no store and cannot become one, or can."""
    rig = volume.rig
    rig.file("store", bytes(BLOCK))
    volume.refused("less than header and area 0 need")
    rig.file("store", b"")
    volume.refused("not a file or block device")
    os.unlink(volume.store)
    os.mkfifo(volume.store)
    volume.refused("not a file or block device")
    os.unlink(volume.store)
    rig.file("store", bytes(20 * BLOCK))
    server = volume.serve()
    server.ok("take zeroes")
    server.stop()
    volume.check_store("--clean")
    os.unlink(volume.store)


def test_generation(volume):
    """The volume was served without its store: the snapshot is not believed."""
    rig = volume.rig
    keep = "generation-file=" + rig.path("generation")
    server = volume.serve(keep)
    server.ok("take one")
    image = bytes(volume.after)
    server.kill()
    check_equal(rig.read("generation"), b"1\n", "generation after the first start")
    for number in (2, 3):
        server = volume.serve(keep)
        volume.check_snapshot(server, "one", image)
        check_equal(rig.read("generation"), b"%d\n" % number, "generation")
        server.kill()
    # A crash between the store's and the own one.
    rig.file("generation", b"2\n")
    server = volume.serve(keep)
    volume.check_snapshot(server, "one", image)
    server.stop()
    check_equal(rig.read("generation"), b"3\n", "generation after one was behind")
    store = rig.read("store")
    rig.serve(volume.path, keep).stop()
    check_equal(rig.read("generation"), b"4\n", "generation after a start without the store")
    volume.refused("its generation is 3", keep)
    for wrong in (b"1\n", b"18446744073709551614\n"):
        rig.file("generation", wrong)
        volume.refused("its generation is 3", keep)
    os.unlink(rig.path("generation"))
    volume.refused("its generation is 3", keep)
    check(rig.read("store") == store, "the store was changed")
    server = volume.serve()
    server.ok("drop one")
    server.stop()


def main_test(rig):
    volume = Volume(rig, seeded(), SIZE)
    os.mkdir(rig.path("directory"))
    good, image = make_store(volume)
    test_damage(volume, good)
    test_mismatch(volume, good)
    test_readonly(volume, good)
    test_in_use(volume, good, image)
    test_small(volume)
    test_generation(volume)
    return "damage, what does not fit, a store in use or not to be written, a wrong generation"


main(main_test)
