# SPDX-License-Identifier: MIT
"""snapshots=release: trim on a snapshot's export gives up what was read. Also the command."""

import errno

from images import CHUNK, read_all, refused
from rig import check, check_equal, main, seeded, wait_until

MIB = 1 << 20
SIZE = 4 * MIB + 100
CHUNKS = SIZE // CHUNK + 1
BAD_LINES = (
    ("release", "EINVAL"),
    ("release one", "EINVAL"),
    ("release one 0", "EINVAL"),
    ("release one 0 0", "EINVAL"),
    ("release one 0 4096 1", "E2BIG"),
    ("release one  4096", "E2BIG"),
    ("release missing 0 4096", "ENOENT"),
    ("release one 0x0 4096", "EDOM"),
    ("release one 0 4K", "EDOM"),
    (f"release one 0 {SIZE + 1}", "ERANGE"),
    ("release one 18446744073709551615 4096", "ERANGE"),
    ("release one 99999999999999999999 1", "ERANGE"),
)


def used(server):
    return server.ok("status")["store"]["used_bytes"]


def copied(server):
    return server.ok("status")["stats"]["copied_chunks"]


def test_backup(server, before, random):
    """Read and trim, from front to back, while the volume is overwritten."""
    live = server.connect()
    server.ok("take one")
    for number in range(0, CHUNKS, 2):
        live.pwrite(b"w", number * CHUNK)
    check_equal(used(server), (CHUNKS + 1) // 2 * CHUNK, "used bytes after writes")
    reader = server.connect("one")
    check(reader.can_trim() and not reader.is_read_only(), "the export takes trims")
    check(not reader.can_flush(), "and nothing else")
    for write in (lambda: reader.pwrite(b"x" * CHUNK, 0), lambda: reader.zero(CHUNK, 0)):
        refused(write, errno.EPERM)
    piece = 64 * CHUNK
    for at in range(0, SIZE, piece):
        length = min(piece, SIZE - at)
        check(reader.pread(length, at) == before[at:at + length], f"the snapshot at {at}")
        reader.trim(length, at)
        refused(lambda at=at: reader.pread(1, at), errno.EIO)
        # What comes now copies nothing; what lies before the reader does.
        count = copied(server)
        live.pwrite(random.randbytes(length), at)
        check_equal(copied(server), count, f"copies behind the reader at {at}")
    check_equal(server.state("one")["released_chunks"], CHUNKS, "released chunks")
    wait_until(lambda: used(server) == 0, "the space to be given back")
    reader.shutdown()
    live.shutdown()
    server.ok("drop one")


def test_parts(server):
    """A chunk that is released in part is not; extents of what is released are no holes."""
    server.ok("take one")
    image = read_all(server.connect("one"))
    reader = server.connect("one")
    reader.trim(CHUNK + 100, CHUNK - 50)
    check_equal(server.state("one")["released_chunks"], 1, "one whole chunk in the range")
    check(reader.pread(CHUNK, 0) == image[:CHUNK], "the chunk before")
    check(reader.pread(CHUNK, 2 * CHUNK) == image[2 * CHUNK:3 * CHUNK], "the chunk behind")
    refused(lambda: reader.pread(1, CHUNK), errno.EIO)
    found = []

    def extent(_context, _offset, entries, _error):
        found.extend(entries[1::2])
        return 0

    reader.block_status(4 * CHUNK, 0, extent)
    check(found and not any(found), f"holes in {found}")
    server.refused("merge one", "ENODATA")
    for line, error in BAD_LINES:
        server.refused(line, error)
    answer = server.ok(f"release one {3 * CHUNK} {2 * CHUNK}")
    check_equal(answer["released_chunks"], 3, "released by the command")
    refused(lambda: reader.pread(1, 4 * CHUNK), errno.EIO)
    server.ok("drop one")
    reader.shutdown()


def test_siblings(server):
    """What one snapshot has released another one still has."""
    live = server.connect()
    server.ok("take one")
    server.ok("take two")
    image = read_all(server.connect("two"))
    server.connect("two").trim(SIZE, 0)
    live.pwrite(b"s" * MIB, 0)
    check(read_all(server.connect("one")) == image, "the older snapshot")
    server.ok("drop one")
    server.wait_reclaimed()
    server.ok("drop two")
    live.shutdown()


def test_readonly(rig):
    """Without the parameter there is no trim."""
    server = rig.serve(rig.file("readonly", b"r" * MIB))
    server.ok("take one")
    handle = server.connect("one")
    check(handle.is_read_only() and not handle.can_trim(), "a read-only export")
    server.ok("release one 0 4096")
    refused(lambda: handle.pread(1, 0), errno.EIO)
    server.stop()


def main_test(rig):
    random = seeded()
    before = random.randbytes(SIZE)
    server = rig.serve(rig.file("volume", before), "snapshots=release")
    check_equal(server.ok("status")["snapshot_exports"], "release", "status")
    test_backup(server, before, random)
    server.wait_reclaimed()
    test_parts(server)
    test_siblings(server)
    server.stop()
    test_readonly(rig)
    return f"a backup that releases {CHUNKS} chunks, parts of chunks, {len(BAD_LINES)} bad lines"


main(main_test)
