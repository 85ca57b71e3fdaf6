#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A persistent store that goes from process to process, under load, and what is left of it when one
of them is killed.

Usage: test_handover_processes.py PEER
"""

import os
import signal
import subprocess
import sys
import tempfile
import unittest

PEER = ""
TIMEOUT_S = 120
BYTES = 1024 * 512
IMAGE = bytes((at // 512 * 7 + at % 251) & 255 for at in range(BYTES))


def row(folder, *peers):
    """Runs peers, (role, kill point or None) each, in a pipeline. Returns: their exit statuses, and
    what they said."""
    processes, source = [], subprocess.DEVNULL
    for role, point in peers:
        command = [PEER, role, os.path.join(folder, "origin"), os.path.join(folder, "store")]
        if point:
            command.append(point)
        process = subprocess.Popen(
            command, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if source is not subprocess.DEVNULL:
            source.close()
        source = process.stdout
        processes.append(process)
    source.close()
    said = []
    for process in processes:
        process.stdout = None
        said.append(process.communicate(timeout=TIMEOUT_S)[1])
    return [process.returncode for process in processes], "".join(said)


class Processes(unittest.TestCase):
    def setUp(self):
        # Nothing here is about power cuts: where it can be, flushes cost nothing.
        shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = tempfile.TemporaryDirectory(prefix="cowsnap-", dir=shm)
        self.addCleanup(self.folder.cleanup)

    def run_row(self, *peers):
        if peers[0][0] == "first":
            self.make_files()
        return row(self.folder.name, *peers)

    def make_files(self):
        with open(os.path.join(self.folder.name, "origin"), "wb") as origin:
            origin.write(IMAGE)
        with open(os.path.join(self.folder.name, "store"), "wb") as store:
            store.truncate(2 * BYTES)

    def test_many_owners(self):
        peers = [("first", None)] + [("next", None)] * 6 + [("last", None)]
        status, said = self.run_row(*peers)
        self.assertEqual(status, [0] * len(peers), said)
        self.assertEqual(said.count("taken over"), len(peers) - 1, said)

    def killed(self, peers, victim):
        """@victim is killed, the others live, and all that was saved is there."""
        with self.subTest(peers=peers):
            status, said = self.run_row(*peers)
            expected = [-signal.SIGKILL if i == victim else 0 for i in range(len(peers))]
            self.assertEqual(status, expected, said)
            return said

    def expect_whole(self):
        status, said = self.run_row(("last", None))
        self.assertEqual(status, [0], said)
        self.assertIn("opens the store", said)

    def test_the_last_owner_is_killed(self):
        for point in ("begun", "write:1", "half:1", "write:2", "half:2", "write:3", "half:3"):
            said = self.killed([("first", point), ("last", None)], 0)
            self.assertIn("opens the store", said)
            self.expect_whole()
        # It has said all that it had to say.
        said = self.killed([("first", "written"), ("next", None), ("last", None)], 0)
        self.assertEqual(said.count("taken over"), 2)
        self.expect_whole()

    def test_the_next_owner_is_killed(self):
        for point in ("read:1", "read:2", "read:3", "read:4", "read:5", "begun"):
            self.killed([("first", None), ("last", point)], 1)
            self.expect_whole()

    def test_one_in_between_is_killed(self):
        for point in ("read:3", "begun", "write:1", "half:2", "write:3", "written"):
            said = self.killed([("first", None), ("next", point), ("last", None)], 1)
            if point != "written":
                self.assertIn("last: no whole state", said)
            self.expect_whole()


if __name__ == "__main__":
    PEER = sys.argv.pop(1)
    unittest.main()
