# SPDX-License-Identifier: MIT
"""What differs between snapshots: pages, map-only snapshots, downgrades, drops in between, the
tool, a dm store before and after a restart, and what is refused."""

import errno
import json

from images import CHUNK, changes, check_export, refused, tool, write_to
from rig import check, check_equal, main, seeded

MIB = 1 << 20
SIZE = 8 * MIB + 1000
BAD_LINES = (
    ("changes", "EINVAL"),
    ("changes  b", "E2BIG"),
    ("changes a b 0 0", "E2BIG"),
    ("changes missing", "ENOENT"),
    ("changes a missing", "ENOENT"),
    ("changes a b -1", "EDOM"),
    ("changes a b 1k", "EDOM"),
    ("changes a b 18446744073709551616", "ERANGE"),
    (f"changes a b {SIZE + 1}", "ERANGE"),
    ("changes a /yesterday", "EBADMSG"),
    ("changes /now a", "EBADMSG"),
    ("changes b a", "EINVAL"),
    ("changes a a", "EINVAL"),
    ("downgrade", "EINVAL"),
    ("downgrade missing", "ENOENT"),
    ("downgrade a b", "E2BIG"),
    ("take c map", "E2BIG"),
    ("take c map-only more", "E2BIG"),
)


def test_refused(server):
    for line, error in BAD_LINES:
        server.refused(line, error)


def check_changes(server, names, written, text, later=frozenset()):
    """Whole chunks, each that was written to, and no other, but perhaps of those written later."""
    runs, chunks = changes(server, *names)
    for at, length in runs:
        check(at % CHUNK == 0 and ((at + length) % CHUNK == 0 or at + length == SIZE),
              f"{text}: [{at}, {length}] is not of whole chunks")
    check(written <= chunks, f"{text}: changes {sorted(written - chunks)[:5]} are missing")
    check_equal(sorted(chunks - written - later)[:5], [], f"{text}: chunks that nobody wrote to")


def check_tool(server, a, b):
    runs, _ = changes(server, a, b)
    lines = tool("changes", server.control_socket, a, b).splitlines()
    check_equal(lines[0], "# offset length", "title")
    check_equal([[int(word) for word in line.split()] for line in lines[1:]], runs, "the tool")
    document = json.loads(tool("changes", "--json", server.control_socket, a, b))
    check_equal([[run["offset"], run["length"]] for run in document["changes"]], runs, "as JSON")
    check_equal(document["changed_bytes"], sum(length for _, length in runs), "changed_bytes")
    check_equal(document["size_bytes"], SIZE, "size_bytes")
    check("no snapshot has that name" in tool("changes", server.control_socket, "x", status=1),
          "a snapshot that is not there")
    check("no spaces" in tool("changes", server.control_socket, "a b", status=2), "two names")
    check("not older" in tool("changes", server.control_socket, b, a, status=1), "the wrong way")


def test_chain(rig, random):
    """Three snapshots, one map-only; one is downgraded, one dropped: the answers stay."""
    image = bytearray(random.randbytes(SIZE))
    server = rig.serve(rig.file("volume", image))
    server.ok("take a")
    at_a = bytes(image)
    check_changes(server, ["a"], set(), "nothing was written")
    first = write_to(random, server, None, image, 40)
    check("export" not in server.ok("take b map-only"), "a map-only snapshot is no export")
    check_equal(server.state("b")["state"], "map-only", "state of b")
    second = write_to(random, server, None, image, 40)
    server.ok("take c")
    at_c = bytes(image)
    third = write_to(random, server, None, image, 40)
    test_refused(server)
    check_tool(server, "a", "c")

    def check_all(text):
        check_changes(server, ["a", "c"], first | second, f"{text}: a to c")
        check_changes(server, ["a"], first | second | third, f"{text}: a to now")
        check_changes(server, ["c", "/now"], third, f"{text}: c to now")

    check_all("at first")
    # What b has no place for lies with a.
    check_changes(server, ["a", "b"], first, "a to b", second | third)
    check_changes(server, ["b", "c"], second, "b to c")
    check_export(server, "a", at_a)
    server.ok("downgrade a")
    server.ok("downgrade a")
    check_all("a is downgraded")
    server.ok("drop b")
    check_all("b is dropped")
    check_export(server, "c", at_c)
    server.ok("downgrade c")
    server.wait_reclaimed()
    check_all("nothing has data")
    third |= write_to(random, server, None, image, 40)
    check_equal(server.ok("status")["store"]["used_bytes"], 0, "no data is kept")
    check_all("writes after that")
    check_equal(rig.read("volume"), bytes(image), "the volume")
    server.stop()


def test_exports(rig):
    """A snapshot without data is not among the exports, and a connection to it gets errors."""
    server = rig.serve(rig.file("exports", b"e" * MIB))
    server.ok("take full")
    server.ok("take map map-only")
    old = server.connect("full")
    listed = rig.run("nbdinfo", "--list", "--json", f"nbd+unix:///?socket={server.nbd_socket}")
    names = [export["export-name"] for export in json.loads(listed)["exports"]]
    check_equal(sorted(names), ["", "@full"], "exports")
    server.ok("downgrade full")
    refused(lambda: old.pread(512, 0), errno.EIO)
    refused(lambda: server.connect("full"))
    refused(lambda: server.connect("map"))
    old.shutdown()
    server.stop()


def test_pages(rig):
    """Every other chunk: more runs than an answer holds."""
    chunks = 6000
    server = rig.serve(rig.file("pages", b"p" * (chunks * CHUNK)))
    server.ok("take a")
    live = server.connect()
    for number in range(0, chunks, 2):
        live.pwrite(b"q", number * CHUNK)
    runs, _ = changes(server, "a")
    check_equal(runs, [[n * CHUNK, CHUNK] for n in range(0, chunks, 2)], "runs of all pages")
    page = server.ok("changes a")
    check(not page["complete"] and len(page["changes"]) == 1024, "the first page")
    page = server.ok(f"changes a /now {chunks * CHUNK}")
    check_equal((page["changes"], page["complete"]), ([], True), "at the end")
    page = server.ok(f"changes a /now {(chunks - 3) * CHUNK}")
    check_equal(page["changes"], [[(chunks - 2) * CHUNK, CHUNK]], "from an offset on")
    server.stop()


def test_invalid(rig):
    """A snapshot that has lost data does not know all that has changed."""
    server = rig.serve(rig.file("small", b"s" * MIB), "store-limit=64k")
    server.ok("take a")
    server.connect().pwrite(b"t" * MIB, 0)
    check_equal(server.state("a")["state"], "invalid", "state")
    server.refused("changes a", "ESTALE")
    server.refused("downgrade a", "ESTALE")
    check("not complete" in tool("changes", server.control_socket, "a", status=1), "the tool")
    server.stop()


def test_dm(rig, random):
    image = bytearray(random.randbytes(SIZE))
    volume = rig.file("dm", image)
    parameters = ("store-format=dm", f"store={rig.path('store')}")
    server = rig.serve(volume, *parameters)
    server.refused("take a map-only", "EOPNOTSUPP")
    check_equal(server.ok("list")["snapshots"], [], "nothing was taken")
    server.ok("take a")
    server.refused("downgrade a", "EOPNOTSUPP")
    server.refused("release a 0 4096", "EOPNOTSUPP")
    before = bytes(image)
    written = write_to(random, server, None, image, 40)
    check_changes(server, ["a"], written, "dm")
    server.stop()
    server = rig.serve(volume, *parameters)
    check_changes(server, ["a"], written, "dm after a restart")
    written |= write_to(random, server, None, image, 40)
    check_changes(server, ["a"], written, "dm and writes after a restart")
    check_export(server, "a", before)
    server.stop()


def main_test(rig):
    random = seeded()
    test_chain(rig, random)
    test_exports(rig)
    test_pages(rig)
    test_invalid(rig)
    test_dm(rig, random)
    return f"{len(BAD_LINES)} bad lines, a chain with map-only snapshots, pages, a dm store"


main(main_test)
