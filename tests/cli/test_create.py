# SPDX-License-Identifier: MIT
"""create: what it makes, for the second implementation and for the tool itself; what it refuses."""

import json
import os
import resource
import struct

from rig import (Case, IO_ERROR, REFUSED, WRONG_CALL, dmstore, fcntl, lock, main,
                 second_opinion)

ORIGIN_BYTES = 1000 * 4096 + 17


class Create(Case):
    def setUp(self):
        super().setUp()
        self.file("origin", b"")
        os.truncate(self.path("origin"), ORIGIN_BYTES)

    def create(self, *options, **more):
        said = self.tool("create", "store.img", "--origin", "origin", "--json", *options, **more)
        if not more.get("status"):
            return json.loads(said)
        self.assertEqual(said, "")
        return None

    def check(self, size, chunk_size=4096):
        """A valid and empty store of this length, which takes no space that it does not need."""
        data = self.read("store.img")
        self.assertEqual(len(data), size)
        name, why, image = second_opinion(data, origin_size=ORIGIN_BYTES)
        self.assertIsNone(name, why)
        self.assertTrue(image.valid)
        self.assertEqual((image.records, image.stale_slots), ([], 0))
        self.assertEqual(image.layout.chunk_size, chunk_size)
        self.assertEqual(data.strip(b"\0")[:4], b"SnAp")
        return image

    def test_size(self):
        document = self.create("--size", "1M")
        image = self.check(1 << 20)
        self.assertEqual(document["verdict"], "good")
        self.assertEqual(document["record_limit"], image.layout.record_limit)
        self.assertEqual(document["origin"], "origin")
        status = os.stat(self.path("store.img"))
        self.assertEqual(status.st_mode & 0o7777, 0o600)
        self.assertLessEqual(status.st_blocks * 512, 64 << 10)

    def test_text(self):
        self.assertEqual(self.tool("create", "store.img", "--origin=origin", "--size=100K"),
                         "store.img: 100.0 KiB (102400 bytes), room for 23 records, "
                         "chunk size 4.0 KiB\n")

    def test_percent(self):
        for percent in (1, 7, 50, 100):
            self.create("--size", f"{percent}%")
            records = -(-1001 * percent // 100)
            self.check(dmstore.size_for(4096, records))
            self.assertGreaterEqual(self.json("info", "store.img")["record_limit"], records)
            os.unlink(self.path("store.img"))

    def test_records(self):
        for chunk_size, records in ((512, 1), (512, 31), (512, 32), (512, 33), (4096, 255),
                                    (4096, 256), (65536, 5)):
            document = self.create("--records", records, "--chunk-size", chunk_size)
            self.assertEqual(document["record_limit"], records)
            self.check(dmstore.size_for(chunk_size, records), chunk_size)
            os.unlink(self.path("store.img"))

    def test_generation(self):
        for generation in (1, 1 << 53, (1 << 64) - 1):
            self.create("--size", "64K", "--generation", generation)
            self.assertEqual(self.json("info", "store.img")["generation"], str(generation))
            self.assertIn(f"generation:     {generation}\n", self.tool("info", "store.img"))
            os.unlink(self.path("store.img"))

    def test_existing(self):
        self.file("store.img", b"\0" * 65536)
        self.create()
        self.check(65536)
        before = self.read("store.img")
        self.create(status=REFUSED, says="--overwrite")
        self.create("--generation", 3, status=REFUSED, says="--overwrite")
        self.assertEqual(self.read("store.img"), before)
        self.create("--overwrite", "--chunk-size", "8K", "--size", "64K")
        self.check(65536, 8192)

    def test_overwrite_records(self):
        self.image("store.img", records=[{"origin": n} for n in range(5)])
        self.create("--overwrite")
        self.check(os.path.getsize(self.path("store.img")))

    def test_something_else(self):
        self.file("store.img", b"somebody's file " * 4096)
        before = self.read("store.img")
        self.create(status=REFUSED, says="something else")
        self.assertEqual(self.read("store.img"), before)

    def test_existing_length(self):
        self.file("store.img", b"\0" * 65536)
        self.create("--size", "128K", status=WRONG_CALL,
                    says="it is there and has 65536 bytes, not 131072")
        self.assertEqual(self.read("store.img"), b"\0" * 65536)
        self.file("short.img", b"\0" * 8192)
        self.tool("create", "short.img", "--origin=origin", status=REFUSED,
                  says="cowsnap: short.img: ")

    def test_no_room(self):
        self.create(status=WRONG_CALL, says="a new one needs --size or --records")
        self.create("--size", "8K", status=WRONG_CALL, says="too few")
        self.create("--records", (1 << 62) // 512, status=WRONG_CALL,
                    says="no store can be that long")
        self.assertEqual(self.names(), ["origin"])

    def test_missing(self):
        self.tool("create", "store.img", "--origin=none", "--size=1M", status=IO_ERROR,
                  says="cowsnap: none: No such file or directory\n")
        self.tool("create", "none/store.img", "--origin=origin", "--size=1M", status=IO_ERROR,
                  says="cowsnap: none/store.img: cannot be made: No such file")
        self.tool("create", self.directory, "--origin=origin", status=IO_ERROR,
                  says="Is a directory")
        self.assertEqual(self.names(), ["origin"])

    def test_is_the_origin(self):
        os.link(self.path("origin"), self.path("other-name"))
        for name in ("origin", "other-name"):
            self.tool("create", name, "--origin=origin", "--overwrite", status=WRONG_CALL,
                      says=f"cowsnap: {name}: it is the origin\n")
        self.assertEqual(os.path.getsize(self.path("origin")), ORIGIN_BYTES)

    def test_in_use(self):
        self.create("--size", "64K")
        before = self.read("store.img")
        with open(self.path("store.img"), "r+b") as other:
            lock(other, fcntl.F_WRLCK)
            self.create("--overwrite", status=IO_ERROR, says="in use by another process")
        self.assertEqual(self.read("store.img"), before)

    def test_read_only(self):
        self.file("store.img", b"\0" * 65536)
        os.chmod(self.path("store.img"), 0o444)
        if os.geteuid() == 0:
            self.skipTest("root may write to everything")
        self.create(status=IO_ERROR, says="cannot be opened for writing")

    def test_file_size_limit(self):
        """The file may not become that long: it goes again."""
        self.create("--size", "1M", status=IO_ERROR, says="File too large",
                    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)))
        self.assertEqual(self.names(), ["origin"])

    def test_write_fails(self):
        """Area 0 cannot be written. A file that was there stays, and is no store."""
        self.file("store.img", b"\0" * 65536)
        self.create(status=IO_ERROR, says="no snapshot was made",
                    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)))
        self.assertEqual(second_opinion(self.read("store.img"))[0], "no-store")


class FullDisk(Case):
    def test_full(self):
        """A new file of zeroes takes no space, but its first area does."""
        self.file("origin", b"\1" * 65536)
        os.mkdir(self.path("disk"))
        script = ("mount -t tmpfs -o size=64k tmpfs disk || exit 99; "
                  '"$0" create disk/store.img --origin origin --size 64M --chunk-size 1M; '
                  "echo $?; ls -A disk")
        done = self.run_script(script)
        self.assertIn("No space left on device", done.stderr)
        self.assertEqual(done.stdout, "3\n")


class BlockDevice(Case):
    """All commands, where store and origin are block devices."""

    def test_all(self):
        self.file("origin-file", b"\1" * (1 << 20))
        self.file("store-file", b"\0" * (1 << 20))
        origin, store = self.loop_device("origin-file"), self.loop_device("store-file")
        self.tool("create", store, "--origin", origin, "--size=2M", status=WRONG_CALL,
                  says="it is there and has 1048576 bytes")
        self.tool("create", origin, "--origin", origin, "--overwrite", status=WRONG_CALL,
                  says="it is the origin")
        document = json.loads(self.tool("create", store, "--origin", origin, "--json"))
        self.assertEqual(document["device_bytes"], 1 << 20)
        with open(store, "r+b") as device:
            device.seek(4096)
            device.write(struct.pack("<QQQQQQ", 3, 9, 0, 0, 7, 7))
        self.assertGreater(self.json("check", store, "--origin", origin)["stale_bytes"], 0)
        self.tool("repair", store)
        self.assertEqual(self.json("check", store)["stale_bytes"], 0)
        self.assertEqual(self.json("extents", store)["extents"],
                         [{"offset": 3 * 4096, "length": 4096}])
        self.tool("export", store, "--origin", origin, "image")
        self.assertEqual(self.read("image"), b"\1" * 12288 + b"\0" * 4096
                         + b"\1" * ((1 << 20) - 16384))
        self.assertEqual(os.stat(self.path("image")).st_mode & 0o7777, 0o600)
        held = os.open(store, os.O_RDONLY | os.O_EXCL)
        for call in (("check", store), ("repair", store), ("dump", store),
                     ("export", store, "--origin", origin, "image", "--force"),
                     ("create", store, "--origin", origin, "--overwrite")):
            self.tool(*call, status=IO_ERROR, says=f"cowsnap: {store}: it is in use by another")
        os.close(held)


if __name__ == "__main__":
    main()
