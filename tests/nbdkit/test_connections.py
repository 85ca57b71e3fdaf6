# SPDX-License-Identifier: MIT
"""Many connections, a drop under a reader, clients that die."""

import errno
import os
import threading

from rig import check, check_equal, main, seeded, wait_until

import nbd

MIB = 1 << 20
SIZE = 16 * MIB


def test_many(server, before):
    """48 connections to the snapshot and 16 to the live volume, all open at once."""
    readers = [server.connect("one") for _ in range(48)]
    writers = [server.connect() for _ in range(16)]
    errors = []

    def use(number, handle, write):
        try:
            for n in range(20):
                offset = (number * 7919 + n * 104729) % (SIZE - 8192)
                if write:
                    handle.pwrite(bytes([number]) * 5000, offset)
                elif handle.pread(8192, offset) != before[offset:offset + 8192]:
                    errors.append(f"connection {number}: wrong data at {offset}")
        except nbd.Error as error:
            errors.append(f"connection {number}: {error}")

    threads = [threading.Thread(target=use, args=(n, h, n >= 48))
               for n, h in enumerate(readers + writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_equal(errors, [], "connections")
    for handle in readers + writers:
        handle.shutdown()


def read_until_error(handle):
    """Returns the error number of the first read that fails."""
    while True:
        try:
            handle.pread(65536, 0)
        except nbd.Error as error:
            return error.errnum


def test_drop_under_reader(server):
    server.ok("take two")
    handle = server.connect("two")
    found = []
    reader = threading.Thread(target=lambda: found.append(read_until_error(handle)))
    reads = server.ok("status")["stats"]["snapshot_reads"]
    reader.start()
    wait_until(lambda: server.ok("status")["stats"]["snapshot_reads"] > reads + 10, "reads")
    server.ok("drop two")
    reader.join()
    check_equal(found, [errno.EIO], "a read after the drop")
    server.ok("take two")
    check_equal(read_until_error(handle), errno.EIO, "the old connection does not see a new two")
    check_equal(len(server.connect("two").pread(512, 0)), 512, "a new connection reads the new two")
    server.ok("drop two")
    handle.shutdown()


def test_killed_client(rig, server, before):
    server.ok("take one")
    reader = rig.start("nbdcopy", "--connections=4", server.uri("one"), rig.path("backup"))
    reads = server.ok("status")["stats"]["snapshot_reads"]
    wait_until(lambda: reader.poll() is not None or
               server.ok("status")["stats"]["snapshot_reads"] > reads, "nbdcopy to read")
    reader.kill()
    reader.wait()
    writer = rig.fio(server, "--rw=randwrite", "--iodepth=32", f"--size={SIZE}", "--time_based",
                     "--runtime=600")
    writes = server.ok("status")["stats"]["writes"]
    wait_until(lambda: server.ok("status")["stats"]["writes"] > writes + 100, "fio to write")
    writer.kill()
    writer.wait()
    check(server.alive(), "the server died with its client")
    check(server.connect("one").pread(MIB, 0) == before[:MIB], "the snapshot is whole")
    # No bracket was left open: a take needs all of them to have ended.
    server.ok("take two")
    server.ok("drop one")
    server.ok("drop two")
    server.wait_reclaimed()
    server.stop()


def niceness(server):
    """Of all threads of the server, as a set."""
    found = set()
    for thread in os.listdir(f"/proc/{server.process.pid}/task"):
        with open(f"/proc/{server.process.pid}/task/{thread}/stat", encoding="ascii") as stat:
            found.add(int(stat.read().rpartition(") ")[2].split()[16]))
    return found


def test_step_back(rig, before, nice, *parameters):
    """A thread that reads a snapshot steps back, one that serves the volume does not."""
    server = rig.serve(rig.file("volume", before), *parameters)
    usual = niceness(server)
    server.ok("take one")
    live = server.connect()
    live.pwrite(b"x" * 512, 0)
    live.pread(512, 0)
    check_equal(niceness(server), usual, "niceness after requests to the volume")
    reader = server.connect("one")
    check_equal(reader.pread(512, 0), before[:512], "the snapshot")
    wanted = usual | {min(max(usual) + nice, 19)}
    check_equal(niceness(server), wanted, "niceness after a read of the snapshot")
    live.shutdown()
    reader.shutdown()
    server.ok("drop one")
    server.stop()


def main_test(rig):
    before = seeded().randbytes(SIZE)
    server = rig.serve(rig.file("volume", before))
    server.ok("take one")
    test_many(server, before)
    test_drop_under_reader(server)
    server.ok("drop one")
    server.wait_reclaimed()
    server.stop()
    test_step_back(rig, before, 10)
    test_step_back(rig, before, 19, "snapshot-nice=19")
    # Debian 12's nbdkit 1.32.5 aborts, with any plug-in, when a client dies whose requests are
    # in the hands of several threads. With one thread for each connection it does not.
    server = rig.serve(rig.file("volume", before), threads=1)
    test_killed_client(rig, server, before)
    return "64 connections at once, a drop under a reader, a reader and a writer killed"


main(main_test)
