# SPDX-License-Identifier: MIT
"""merge: the volume is what the snapshot showed, wherever it was stopped on the way."""

import os
import resource
import signal
import subprocess

from rig import (Case, DEADLINE_S, INVALID, IO_ERROR, REFUSED, SANITIZED, TOOL, WRONG_CALL,
                 fcntl, fill_pipe, lock, main, second_opinion, seeded, wait_until)

CHUNK = 4096


def image_of(origin, store):
    """What the snapshot shows, worked out from the two files."""
    _, _, image = second_opinion(store)
    size = image.layout.chunk_size
    result = bytearray(origin)
    for chunk, location in image.records:
        data = store[location * size:(location + 1) * size]
        end = min((chunk + 1) * size, len(origin))
        result[chunk * size:end] = data[:end - chunk * size]
    return bytes(result)


class Merge(Case):
    def setUp(self):
        super().setUp()
        self.file("origin", b"origin!!" * (64 * CHUNK // 8) + b"the end")
        self.image("store.img", records=[{"origin": 3, "fill": 0x33}, {"origin": 64, "fill": 0x44},
                                         {"origin": 4, "fill": 0}, {"origin": 0, "fill": 0x55}])
        self.begin()

    def begin(self):
        self.wanted = image_of(self.read("origin"), self.read("store.img"))

    def merge(self, *options, **more):
        return self.tool("merge", "store.img", "--origin", "origin", *options, **more)

    def check_merged(self):
        self.assertEqual(self.read("origin"), self.wanted)
        name, _, _ = second_opinion(self.read("store.img"))
        self.assertEqual(name, "no-store")
        self.tool("check", "store.img", status=REFUSED, says="(no-store)")

    def check_on_the_way(self, before):
        """What is stopped has the image still, in the two files together. Returns how many
        records there are."""
        store = self.read("store.img")
        name, _, image = second_opinion(store)
        if name == "no-store":
            self.assertEqual(self.read("origin"), self.wanted)
            return 0
        self.assertIsNone(name)
        self.assertEqual(image.records, before[:len(image.records)])
        self.assertEqual(image_of(self.read("origin"), store), self.wanted)
        return len(image.records)

    def records(self):
        name, _, image = second_opinion(self.read("store.img"))
        return [] if name else list(image.records)

    def test_merge(self):
        self.assertEqual(self.merge(), "origin: got back 12.0 KiB (12295 bytes) from store.img, "
                                       "which holds no snapshot any more\n")
        self.check_merged()
        self.assertEqual(self.names(), ["origin", "store.img"])

    def test_json(self):
        document = self.json("merge", "store.img", "--origin", "origin")
        self.assertEqual((document["path"], document["origin"], document["dry_run"]),
                         ("store.img", "origin", False))
        self.assertEqual((document["merged_bytes"], document["record_count"]),
                         (3 * CHUNK + 7, 4))
        self.check_merged()

    def test_dry_run(self):
        before = self.read("store.img"), self.read("origin")
        os.chmod(self.path("origin"), 0o444)
        os.chmod(self.path("store.img"), 0o444)
        self.assertEqual(self.merge("-n"),
                         "origin: would get back 12.0 KiB (12295 bytes) from store.img\n")
        document = self.json("merge", "store.img", "--origin", "origin", "--dry-run")
        self.assertEqual((document["dry_run"], document["merged_bytes"]), (True, 0))
        self.assertEqual((self.read("store.img"), self.read("origin")), before)

    def test_without_records(self):
        os.unlink(self.path("store.img"))
        self.tool("create", "store.img", "--origin", "origin", "--size", "10%")
        self.begin()
        self.merge()
        self.check_merged()

    def test_created_anew(self):
        """The store can be used for another snapshot at once."""
        self.merge()
        self.tool("create", "store.img", "--origin", "origin")
        self.begin()
        self.assertEqual(self.json("check", "store.img")["record_count"], 0)
        self.merge()
        self.check_merged()

    def test_stale_tail(self):
        self.patch("store.img", CHUNK + 7 * 16, b"stale")
        self.merge()
        self.check_merged()

    def make_random(self, rng, most):
        chunk_size = rng.choice((512, 4096, 16384))
        size = rng.randrange(1, most * chunk_size)
        chunks = -(-size // chunk_size)
        self.file("origin", rng.randbytes(size))
        start = rng.randrange(chunks)
        numbers = set(rng.sample(range(chunks), rng.randrange(min(chunks, 50) + 1)))
        numbers.update(range(start, min(start + rng.randrange(100), chunks)))
        order = sorted(numbers)
        shape = rng.randrange(3)
        if shape == 0:
            rng.shuffle(order)
        elif shape == 1:
            order.reverse()
        self.image("store.img", chunk_size=chunk_size, records=[{"origin": n} for n in order])
        self.begin()

    def test_random(self):
        rng = seeded()
        for _ in range(8 if SANITIZED else 30):
            self.make_random(rng, 200)
            self.merge()
            self.check_merged()

    # ---- refused ----

    def refused(self, *call, **options):
        before = self.read("store.img"), self.read("origin")
        self.tool("merge", *call, **options)
        self.assertEqual((self.read("store.img"), self.read("origin")), before)

    def test_invalid(self):
        self.patch("store.img", 4, b"\0")
        self.refused("store.img", "--origin=origin", status=INVALID, says="marked invalid")

    def test_damaged(self):
        self.patch("store.img", CHUNK + 16, b"\3")
        self.refused("store.img", "--origin=origin", status=REFUSED, says="(duplicate-origin)")

    def test_too_short(self):
        os.truncate(self.path("origin"), 64 * CHUNK)
        self.refused("store.img", "--origin=origin", status=REFUSED, says="record 1 ")

    def test_missing(self):
        for call in (("none", "--origin=origin"), ("store.img", "--origin=none")):
            self.refused(*call, status=IO_ERROR, says="cowsnap: none: No such file")

    def test_same_file(self):
        self.refused("store.img", "--origin=store.img", status=WRONG_CALL,
                     says="cowsnap: store.img: it is the origin\n")

    def test_in_use(self):
        for name in ("store.img", "origin"):
            for kind in (fcntl.F_WRLCK, fcntl.F_RDLCK):
                with open(self.path(name), "r+b") as other:
                    lock(other, kind)
                    self.refused("store.img", "--origin=origin", status=IO_ERROR,
                                 says=f"cowsnap: {name}: it is in use by another process\n")

    def test_mounted(self):
        """A block device that is mounted is in use."""
        self.file("disk", b"")
        os.truncate(self.path("disk"), 1 << 20)
        self.image("disk-store.img", records=[{"origin": 1}])
        device = self.loop_device("disk")
        self.tool("merge", "disk-store.img", "--origin", device, "--dry-run")
        holder = os.open(device, os.O_RDONLY | os.O_EXCL)
        self.tool("merge", "disk-store.img", "--origin", device, status=IO_ERROR,
                  says=f"cowsnap: {device}: it is in use by another process\n")
        os.close(holder)
        self.tool("merge", "disk-store.img", "--origin", device)
        with open(device, "rb") as disk:
            self.assertNotEqual(disk.read(2 * CHUNK)[CHUNK:], b"\0" * CHUNK)

    def test_read_only(self):
        done = self.run_script(
            "mount --bind . . && mount -o remount,ro,bind . || exit 99; cd \"$PWD\"; "
            '"$0" merge store.img --origin origin; echo $?')
        self.assertIn("cowsnap: origin: cannot be opened for writing: Read-only", done.stderr)
        self.assertEqual(done.stdout, "3\n")

    # ---- stopped half-way ----

    def test_file_size_limit(self):
        """The last record goes to the front of the volume, the one before it beyond the limit."""
        self.merge(status=IO_ERROR, says="the merge has stopped; start it again: File too large",
                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (14336, 14336)))
        self.assertEqual(self.check_on_the_way([(3, 2), (64, 3), (4, 4), (0, 5)]), 3)
        self.merge()
        self.check_merged()

    def test_full_disk(self):
        os.unlink(self.path("origin"))
        self.file("origin", b"")
        os.truncate(self.path("origin"), 1 << 20)
        self.image("store.img", records=[{"origin": n, "fill": 1} for n in range(100)])
        os.mkdir(self.path("disk"))
        done = self.run_script(
            "mount -t tmpfs -o size=128k tmpfs disk || exit 99; truncate -s 1M disk/origin; "
            '"$0" merge store.img --origin disk/origin; echo $?; '
            "mount -o remount,size=2m disk || exit 99; "
            '"$0" merge store.img --origin disk/origin >/dev/null; echo $?; '
            "head -c 409600 disk/origin | tr -d '\\1' | wc -c")
        self.assertIn("the merge has stopped; start it again: No space left", done.stderr)
        self.assertEqual(done.stdout.split(), ["3", "0", "0"])

    def start_blocked(self):
        """A merge that has begun and waits for somebody to read how far it is."""
        reader, writer = fill_pipe()
        process = subprocess.Popen(
            [TOOL, "merge", "store.img", "--origin", "origin", "--progress"],
            cwd=self.directory, stdout=subprocess.PIPE, stderr=writer)
        os.close(writer)
        self.addCleanup(os.close, reader)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.kill)
        wait_until(lambda: self.locked("store.img"), "the store to be opened")
        return process, reader

    def locked(self, name):
        with open(self.path(name), "r+b") as file:
            try:
                lock(file, fcntl.F_WRLCK)
            except OSError:
                return True
        return False

    def test_signals(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process, reader = self.start_blocked()
            process.send_signal(number)
            text = b""
            while piece := os.read(reader, 65536):
                text += piece
            process.wait(DEADLINE_S)
            self.assertEqual(process.returncode, -number)
            self.assertIn(b"cowsnap: store.img: interrupted; start it again", text)
            self.check_on_the_way(self.records())
        self.merge()
        self.check_merged()

    def test_others_meanwhile(self):
        process, reader = self.start_blocked()
        wait_until(lambda: self.locked("origin"), "the volume to be held")
        for command in ("check", "merge"):
            self.tool(command, "store.img", "--origin=origin", status=IO_ERROR,
                      says="in use by another process")
        process.kill()
        process.wait(DEADLINE_S)
        self.merge()
        self.check_merged()

    def test_killed(self):
        """Killed as soon as it has done something, again and again."""
        count = 3000 if SANITIZED else 8000
        self.file("origin", b"now, what is lost" * (count * 512 // 16))
        order = list(range(count))
        seeded().shuffle(order)
        self.image("store.img", chunk_size=512, records=[{"origin": n} for n in order])
        self.begin()
        kills = 0
        while before := self.records():
            process = subprocess.Popen(
                [TOOL, "merge", "store.img", "--origin", "origin"], cwd=self.directory,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            wait_until(lambda: len(self.records()) < len(before) - kills % 7 * 10 or
                       process.poll() is not None, "something to be merged")
            process.kill()
            process.wait(DEADLINE_S)
            process.stderr.close()
            left = self.check_on_the_way(before)
            self.assertLess(left, len(before))
            kills += process.returncode == -signal.SIGKILL
            if kills > 12:
                break
        self.assertGreaterEqual(kills, 2)
        if self.records() or second_opinion(self.read("store.img"))[0] != "no-store":
            self.merge()
        self.check_merged()

    def test_progress(self):
        lines = self.run_tool("merge", "store.img", "--origin=origin",
                              "--progress").stderr.splitlines()
        self.assertRegex(lines[0], r"^merge:   0 %  0 bytes of .*/s  -:-- left$")
        self.assertRegex(lines[-1], r"^merge: 100 %  .*/s  0:00 left$")
        self.check_merged()


if __name__ == "__main__":
    main()
