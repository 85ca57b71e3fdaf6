# SPDX-License-Identifier: MIT
"""What the tests of store-format=dm share: a volume with a persistent store beside it, and a writer
whose every write is known."""

import os
import threading

from rig import check, check_equal

import nbd

BLOCK = 4096


class Volume:
    """A volume with its store. after holds what it must contain: what was written and answered."""

    def __init__(self, rig, random, size):
        self.rig = rig
        self.random = random
        self.size = size
        self.after = bytearray(random.randbytes(size))
        self.unanswered = {}  # block -> what it holds now if not what it held before
        self.path = rig.file("volume", self.after)
        self.store = rig.path("store")

    def serve(self, *parameters, **options):
        return self.rig.serve(self.path, "store-format=dm", f"store={self.store}", *parameters,
                              **options)

    def refused(self, wanted, *parameters, **options):
        self.rig.refused(wanted, f"file={self.path}", "store-format=dm", f"store={self.store}",
                         *parameters, **options)

    def check_store(self, *options, status=0):
        return self.rig.check_store(self.store, self.size, *options, status=status)

    def names(self, server):
        return [snapshot["name"] for snapshot in server.ok("list")["snapshots"]]

    def write_until(self, server, enough, then, writers=4):
        """Blocks at random, from several connections, each in a part of its own. When enough of
        them were answered, then() is called while the writers go on, and they end with their
        connections or, if those live, at once."""
        answered = threading.Semaphore(0)
        ended = threading.Event()
        part = self.size // BLOCK // writers
        seeds = [self.random.randrange(1 << 32) for _ in range(writers)]
        self.settle()

        def write(number):
            random = type(self.random)(seeds[number])
            handle = server.connect()
            while not ended.is_set():
                block = number * part + random.randrange(part)
                data = random.randbytes(16) * (BLOCK // 16)
                try:
                    handle.pwrite(data, block * BLOCK)
                except nbd.Error:
                    self.unanswered[block] = data
                    break
                self.after[block * BLOCK:(block + 1) * BLOCK] = data
                answered.release()

        threads = [threading.Thread(target=write, args=(n,)) for n in range(writers)]
        for thread in threads:
            thread.start()
        for _ in range(enough):
            check(answered.acquire(timeout=60), "the writers do not get on")
        then()
        ended.set()
        for thread in threads:
            thread.join()

    def settle(self):
        """What a write without an answer has done is known now."""
        data = self.rig.read("volume")
        for block in self.unanswered:
            self.after[block * BLOCK:(block + 1) * BLOCK] = data[block * BLOCK:(block + 1) * BLOCK]
        self.unanswered.clear()

    def check_live(self):
        """Every write that was answered is there, and nothing else."""
        data = self.rig.read("volume")
        check_equal(len(data), self.size, "size of the volume")
        for block in range(self.size // BLOCK):
            place = slice(block * BLOCK, (block + 1) * BLOCK)
            check(data[place] in (self.after[place], self.unanswered.get(block)),
                  f"the live volume: block {block} is not what was written")

    def check_snapshot(self, server, name, image):
        check_equal(self.names(server), [name], "snapshots")
        check_equal(server.state(name)["state"], "active", f"state of {name}")
        handle = server.connect(name)
        check_equal(handle.get_size(), self.size, f"size of {name}")
        piece = min(self.size, 1 << 20)
        got = b"".join(handle.pread(piece, at) for at in range(0, self.size, piece))
        handle.shutdown()
        for block in range(self.size // BLOCK):
            place = slice(block * BLOCK, (block + 1) * BLOCK)
            check(got[place] == image[place], f"snapshot {name}: block {block} is another")

    def name_kept(self):
        """What the file beside the store says; None if there is none."""
        if not os.path.exists(self.store + ".name"):
            return None
        return self.rig.read("store.name").decode()
