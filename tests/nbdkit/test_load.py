# SPDX-License-Identifier: MIT
"""Snapshots under load: each is what the volume was, or at least always the same."""

from rig import check, check_equal, main, seeded, wait_until

MIB = 1 << 20
SIZE = 32 * MIB


def backup(rig, server, name, to):
    rig.run("nbdcopy", server.uri(name), rig.path(to))
    return rig.read(to)


def main_test(rig):
    random = seeded()
    before = random.randbytes(SIZE)
    server = rig.serve(rig.file("volume", before), "chunk-size=16k", f"store-limit={8 * SIZE}")
    server.ok("take idle")
    load = rig.fio(server, "--rw=randwrite", "--iodepth=8", f"--size={SIZE}", "--bsrange=512-64k",
                   "--blockalign=512", "--numjobs=3", "--time_based", "--runtime=600")
    wait_until(lambda: server.ok("status")["stats"]["writes"] > 500, "fio to write")
    for round_number in range(4):
        check(backup(rig, server, "idle", "backup") == before, "snapshot idle has changed")
        server.ok(f"take s{round_number}")
    images = [backup(rig, server, f"s{n}", "backup") for n in range(4)]
    check(len(set(images)) == 4, "the load did not write between the takes")
    # Drop the newest, the oldest but one and one in the middle; the others stay as they are.
    for name in ("s3", "s0", "s1"):
        server.ok(f"drop {name}")
        check(backup(rig, server, "s2", "backup") == images[2], f"s2 changed by drop {name}")
        check(backup(rig, server, "idle", "backup") == before, f"idle changed by drop {name}")
    check(load.poll() is None, "fio ended early: " + str(load.poll()))
    check_equal(server.state("s2")["state"], "active", "s2")
    load.terminate()
    load.wait()
    server.ok("drop idle")
    server.ok("drop s2")
    server.wait_reclaimed()
    stats = server.ok("status")["stats"]
    check(stats["copied_chunks"] > 0 and stats["failed_writes"] == 0, f"counters: {stats}")
    server.stop()
    return (f"5 snapshots under {stats['writes']} writes, {stats['copied_chunks']} chunks copied, "
            f"{stats['snapshot_reads']} snapshot reads")


main(main_test)
