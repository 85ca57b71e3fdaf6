# SPDX-License-Identifier: MIT
"""export: the image byte for byte, its holes, and that half of one is never left."""

import errno
import json
import os
import pty
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


class Export(Case):
    def setUp(self):
        super().setUp()
        self.file("origin", b"origin!!" * (64 * CHUNK // 8) + b"the end")
        self.image("store.img", records=[{"origin": 3, "fill": 0x33}, {"origin": 64, "fill": 0x44},
                                         {"origin": 4, "fill": 0}, {"origin": 0, "fill": 0x55}])

    def export(self, *options, image="image", **more):
        return self.tool("export", "store.img", "--origin", "origin", image, *options, **more)

    def check(self, name="image"):
        self.assertEqual(self.read(name), image_of(self.read("origin"), self.read("store.img")))

    def test_image(self):
        before = self.read("store.img"), self.read("origin")
        text = self.export()
        self.check()
        self.assertTrue(text.startswith("image: 256.0 KiB (262151 bytes)"), text)
        self.assertEqual(self.names(), ["image", "origin", "store.img"])
        self.assertEqual((self.read("store.img"), self.read("origin")), before)

    def test_json(self):
        document = json.loads(self.export("--json"))
        self.assertEqual(document["size_bytes"], 64 * CHUNK + 7)
        self.assertEqual(document["saved_bytes"], 3 * CHUNK + 7)
        self.assertEqual(document["written_bytes"], 63 * CHUNK + 7)
        self.assertEqual((document["path"], document["origin"], document["image"]),
                         ("store.img", "origin", "image"))

    def test_after_create(self):
        os.unlink(self.path("store.img"))
        self.tool("create", "store.img", "--origin", "origin", "--size", "10%")
        self.export()
        self.assertEqual(self.read("image"), self.read("origin"))

    def test_random(self):
        rng = seeded()
        for _ in range(10 if SANITIZED else 40):
            chunk_size = rng.choice((512, 4096, 65536))
            size = rng.randrange(1, 40 * 65536)
            chunks = -(-size // chunk_size)
            with open(self.path("origin"), "wb") as file:
                file.truncate(size)
                for _ in range(rng.randrange(8)):
                    file.seek(rng.randrange(size))
                    file.write(rng.randbytes(min(rng.randrange(1, 200000), size - file.tell())))
            # Neighbours too, so that there are runs.
            start = rng.randrange(chunks)
            numbers = set(rng.sample(range(chunks), rng.randrange(min(chunks, 50) + 1)))
            numbers.update(range(start, min(start + rng.randrange(40), chunks)))
            order = sorted(numbers)
            if rng.randrange(2):
                rng.shuffle(order)
            self.image("store.img", chunk_size=chunk_size, records=[
                {"origin": n} if rng.randrange(4) else {"origin": n, "fill": rng.randrange(2)}
                for n in order])
            self.export("--force")
            self.check()

    def test_holes(self):
        """A hole of the origin stays one, zeroes become one, data behind a hole is found."""
        size = 1 << 36
        os.unlink(self.path("origin"))
        with open(self.path("origin"), "wb") as file:
            file.truncate(size)
            file.seek(1 << 35)
            file.write(b"x" * 8192 + b"\0" * (1 << 20))
        self.image("store.img", records=[{"origin": 7, "fill": 1}, {"origin": 1 << 22, "fill": 0},
                                         {"origin": (1 << 24) - 1, "fill": 2}])
        document = json.loads(self.export("--json"))
        self.assertEqual(document["written_bytes"], 4 * CHUNK)
        status = os.stat(self.path("image"))
        self.assertEqual(status.st_size, size)
        self.assertLessEqual(status.st_blocks * 512, 1 << 20)
        with open(self.path("image"), "rb") as file:
            for offset, data in ((7 * CHUNK, b"\1"), (1 << 34, b"\0"), (1 << 35, b"x"),
                                 ((1 << 35) + 8192, b"\0"), (size - CHUNK, b"\2"), (0, b"\0")):
                file.seek(offset)
                self.assertEqual(file.read(CHUNK), data * CHUNK, hex(offset))

    def test_mode(self):
        os.chmod(self.path("origin"), 0o640)
        self.export(preexec_fn=lambda: os.umask(0o077))
        self.assertEqual(os.stat(self.path("image")).st_mode & 0o7777, 0o600)
        os.chmod(self.path("origin"), 0o444)
        os.chmod(self.path("store.img"), 0o444)
        self.export(image="second", preexec_fn=lambda: os.umask(0o022))
        self.assertEqual(os.stat(self.path("second")).st_mode & 0o7777, 0o444)
        self.check("second")

    # ---- refused ----

    def test_existing(self):
        self.file("image", b"mine")
        self.export(status=IO_ERROR, says="cowsnap: image: it exists; --force replaces it\n")
        self.assertEqual(self.read("image"), b"mine")
        self.export("--force")
        self.check()
        self.export(image=self.directory, status=IO_ERROR, says="it exists")
        self.export("--force", image=self.directory, status=IO_ERROR, says="not a regular file")
        os.symlink("nowhere", self.path("link"))
        self.export("--force", image="link", status=IO_ERROR, says="not a regular file")

    def test_same_file(self):
        before = self.read("store.img"), self.read("origin")
        os.link(self.path("origin"), self.path("hard"))
        os.symlink("store.img", self.path("soft"))
        for image, what in (("origin", "origin"), ("hard", "origin"), ("store.img", "store"),
                            ("soft", "store")):
            self.export("--force", image=image, status=WRONG_CALL,
                        says=f"cowsnap: {image}: it is the {what}\n")
        self.tool("export", "store.img", "--origin=store.img", "image", status=WRONG_CALL,
                  says="cowsnap: store.img: it is the origin\n")
        self.assertEqual((self.read("store.img"), self.read("origin")), before)

    def test_origin_too_short(self):
        os.truncate(self.path("origin"), 64 * CHUNK)
        self.export(status=REFUSED, says="record 1 ")
        self.assertEqual(self.names(), ["origin", "store.img"])

    def test_invalid(self):
        self.patch("store.img", 4, b"\0")
        self.export(status=INVALID, says="marked invalid")
        self.assertEqual(self.names(), ["origin", "store.img"])

    def test_missing(self):
        self.tool("export", "none", "--origin=origin", "image", status=IO_ERROR,
                  says="cowsnap: none: No such file")
        self.tool("export", "store.img", "--origin=none", "image", status=IO_ERROR,
                  says="cowsnap: none: No such file")
        self.export(image="none/image", status=IO_ERROR,
                    says="cowsnap: none/image: cannot be made: No such file")

    def test_in_use(self):
        with open(self.path("store.img"), "r+b") as other:
            lock(other, fcntl.F_WRLCK)
            self.export(status=IO_ERROR, says="store.img: it is in use by another process")
            lock(other, fcntl.F_RDLCK)
            self.export()
        self.check()

    # ---- failures half-way ----

    def test_file_size_limit(self):
        self.export(status=IO_ERROR, says="cowsnap: image: cannot be made that long: File too",
                    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)))
        self.assertEqual(self.names(), ["origin", "store.img"])

    def test_full_disk(self):
        os.mkdir(self.path("disk"))
        done = self.run_script(
            "mount -t tmpfs -o size=128k tmpfs disk || exit 99; "
            '"$0" export store.img --origin origin disk/image; echo $?; ls -A disk')
        self.assertIn("cowsnap: disk/image: cannot be written: No space left", done.stderr)
        self.assertEqual(done.stdout, "3\n")

    def test_read_only_disk(self):
        done = self.run_script(
            "mount --bind . . && mount -o remount,ro,bind . && cd . || exit 99; cd \"$PWD\"; "
            '"$0" export store.img --origin origin image; echo $?; '
            '"$0" export store.img --origin origin /dev/shm/cowsnap-test-$$ --json; echo $?; '
            "rm -f /dev/shm/cowsnap-test-$$")
        self.assertIn("cowsnap: image: cannot be made: Read-only file system", done.stderr)
        self.assertEqual((done.stdout[0], done.stdout[-2]), ("3", "0"), done.stdout)

    def start_blocked(self):
        """An export that has begun and waits for somebody to read how far it is."""
        reader, writer = fill_pipe()
        process = subprocess.Popen(
            [TOOL, "export", "store.img", "--origin", "origin", "image", "--progress"],
            cwd=self.directory, stdout=subprocess.PIPE, stderr=writer)
        os.close(writer)
        self.addCleanup(os.close, reader)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.kill)
        wait_until(lambda: len(self.names()) > 2, "the image to be begun")
        return process, reader

    def drain(self, process, reader):
        text = b""
        while piece := os.read(reader, 65536):
            text += piece
        process.wait(DEADLINE_S)
        return text.lstrip(b".").decode()

    def test_signals(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process, reader = self.start_blocked()
            self.assertNotIn("image", self.names(), "half an image has its name")
            process.send_signal(number)
            said = self.drain(process, reader)
            self.assertEqual(process.returncode, -number)
            self.assertIn("cowsnap: image: interrupted", said)
            self.assertEqual(self.names(), ["origin", "store.img"])

    def test_others_meanwhile(self):
        """While it copies, others may look at the store, but not change it."""
        self.patch("store.img", 4096 + 7 * 16, b"stale")
        process, reader = self.start_blocked()
        self.tool("check", "store.img")
        self.tool("repair", "store.img", status=IO_ERROR, says="in use by another process")
        self.tool("create", "store.img", "--origin=origin", "--overwrite", status=IO_ERROR,
                  says="in use by another process")
        # One that comes first.
        self.file("image", b"mine")
        said = self.drain(process, reader)
        self.assertEqual(process.returncode, IO_ERROR)
        self.assertIn("cowsnap: image: cannot be given its name: " + os.strerror(errno.EEXIST),
                      said)
        self.assertEqual(self.read("image"), b"mine")
        self.assertEqual(self.names(), ["image", "origin", "store.img"])

    def test_origin_becomes_shorter(self):
        process, reader = self.start_blocked()
        os.truncate(self.path("origin"), 10 * CHUNK)
        said = self.drain(process, reader)
        self.assertEqual(process.returncode, IO_ERROR)
        self.assertIn("cowsnap: origin: the file has become shorter\n", said)
        self.assertEqual(self.names(), ["origin", "store.img"])

    # ---- progress ----

    def test_progress(self):
        self.assertEqual(self.run_tool("export", "store.img", "--origin=origin", "image").stderr,
                         "")
        lines = self.run_tool("export", "store.img", "--origin=origin", "image", "--force",
                              "--progress").stderr.splitlines()
        self.assertRegex(lines[0], r"^export:   0 %  0 bytes of 256\.0 KiB  .*/s  -:-- left$")
        self.assertRegex(lines[-1],
                         r"^export: 100 %  256\.0 KiB of 256\.0 KiB  .*/s  0:00 left$")

    def on_terminal(self, *options):
        """What a terminal gets on standard error."""
        leader, terminal = pty.openpty()
        self.addCleanup(os.close, leader)
        done = self.run_tool("export", "store.img", "--origin=origin", "image", "--force",
                             *options, stderr=terminal)
        os.close(terminal)
        self.assertEqual(done.returncode, 0)
        text = b""
        try:
            while piece := os.read(leader, 65536):
                text += piece
        except OSError:
            pass
        return text.decode()

    def test_terminal(self):
        text = self.on_terminal()
        self.assertRegex(text, r"\rexport: \[#{40}\] 100 %  256\.0 KiB of 256\.0 KiB  ")
        self.assertTrue(text.endswith("\n"))
        self.assertEqual(self.on_terminal("--no-progress"), "")
        self.check()


if __name__ == "__main__":
    main()
