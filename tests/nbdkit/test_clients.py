# SPDX-License-Identifier: MIT
"""The plug-in with the clients that people use: nbdinfo, nbdcopy, qemu-img, fio."""

import json

from rig import check, check_equal, main, seeded

MIB = 1 << 20
SIZE = 32 * MIB


def make_volume(rig, random):
    """4 MiB of data, 4 MiB of hole, and so on."""
    with open(rig.path("volume"), "wb") as file:
        file.truncate(SIZE)
        for offset in range(0, SIZE, 8 * MIB):
            file.seek(offset)
            file.write(random.randbytes(4 * MIB))
    return rig.path("volume")


def zero_extents(rig, uri):
    """The ranges that nbdinfo calls zero, neighbours joined."""
    joined = []
    for extent in json.loads(rig.run("nbdinfo", "--json", "--map", uri)):
        begin, end = extent["offset"], extent["offset"] + extent["length"]
        if extent["type"] & 2 == 0:
            continue
        if joined and joined[-1][1] == begin:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return joined


def test_info(rig, server):
    for snapshot in (None, "one"):
        info = json.loads(rig.run("nbdinfo", "--json", server.uri(snapshot)))["exports"][0]
        check_equal(info["export-size"], SIZE, "size")
        check_equal(info["is_read_only"], snapshot is not None, "read-only")
        check_equal(info["can_multi_conn"], True, "several connections")
        check_equal(info["can_fua"], snapshot is None, "FUA")
    listed = json.loads(rig.run("nbdinfo", "--json", "--list", server.uri()))
    check_equal([export["export-name"] for export in listed["exports"]], ["", "@one"], "exports")
    failed = rig.start("nbdinfo", server.uri("missing"))
    output = failed.communicate()[0].decode()
    check(failed.returncode != 0, "an unknown export can be opened")
    check('no export "@missing"' in server.log(), "the log names the unknown export: " + output)


def test_map(rig, server):
    holes = [(at + 4 * MIB, at + 8 * MIB) for at in range(0, SIZE, 8 * MIB)]
    check_equal(zero_extents(rig, server.uri()), holes, "map of the live volume")
    check_equal(zero_extents(rig, server.uri("one")), holes, "map of the snapshot")
    live = server.connect()
    live.pwrite(b"x" * MIB, 4 * MIB)
    live.trim(MIB, 0)
    live.shutdown()
    # What was written is data now; what was trimmed was data at the take.
    check_equal(zero_extents(rig, server.uri("one"))[1:], holes[1:], "map after writes")
    check(all(begin >= 4 * MIB for begin, _ in zero_extents(rig, server.uri("one"))),
          "a trimmed range is called zero in the snapshot")


def main_test(rig):
    volume = make_volume(rig, seeded())
    before = rig.read("volume")
    rig.file("before", before)
    server = rig.serve(volume)
    server.ok("take one")
    test_info(rig, server)
    test_map(rig, server)

    rig.run("nbdcopy", server.uri("one"), rig.path("backup"))
    check(rig.read("backup") == before, "nbdcopy: the backup is not the volume at the take")
    compared = rig.run("qemu-img", "compare", "-f", "raw", "-F", "raw", rig.path("before"),
                       server.uri("one"))
    check("Images are identical" in compared, compared)

    rig.finish(rig.fio(server, "--rw=randwrite", "--iodepth=16", f"--size={SIZE}",
                       "--verify=crc32c", "--do_verify=1", "--verify_fatal=1"))
    rig.run("nbdcopy", server.uri("one"), rig.path("backup"))
    check(rig.read("backup") == before, "after fio: the backup is not the volume at the take")
    check(rig.read("volume")[:SIZE] != before, "fio did not write")

    rig.run("nbdcopy", rig.path("before"), server.uri())
    check(rig.read("volume") == before, "nbdcopy to the live volume")
    rig.run("qemu-img", "compare", "-f", "raw", "-F", "raw", server.uri(), server.uri("one"))
    server.ok("drop one")
    server.wait_reclaimed()
    server.stop()
    return "nbdinfo, its map, nbdcopy both ways, qemu-img compare, fio with verify"


main(main_test)
