# SPDX-License-Identifier: MIT
"""repair: wipes a stale tail and nothing else."""

import json
import os
import resource
import struct

from rig import (Case, INVALID, IO_ERROR, REFUSED, SANITIZED, fcntl, lock, main, second_opinion,
                 seeded)


class Repair(Case):
    def stale(self, **spec):
        spec.setdefault("records", [{"origin": 1}, {"origin": 9}, None, {"origin": 2}, None,
                                    {"origin": 1 << 40}])
        self.image("store.img", **spec)
        return self.read("store.img")

    def test_wipe(self):
        before = self.stale()
        document = self.json("repair", "store.img")
        self.assertEqual(document["dry_run"], False)
        self.assertEqual(document["wiped_bytes"], document["stale_bytes"])
        after = self.read("store.img")
        name, why, image = second_opinion(after)
        self.assertIsNone(name, why)
        self.assertEqual((len(image.records), image.stale_slots), (2, 0))
        # Behind the terminator, and nothing else.
        self.assertEqual(after, before[:4096 + 32] + b"\0" * (4096 - 32) + before[8192:])
        self.assertEqual(self.tool("repair", "store.img"),
                         "store.img: good, nothing to repair\n")
        self.assertEqual(self.read("store.img"), after)
        self.assertEqual(self.json("repair", "store.img")["wiped_bytes"], 0)

    def test_text(self):
        self.stale()
        said = self.json("check", "store.img")
        what = "%d bytes at byte %d, left by a crash behind the last record\n" % (
            said["stale_bytes"], said["stale_offset"])
        self.assertEqual(self.tool("repair", "store.img", "-n"), "store.img: would wipe " + what)
        self.assertEqual(self.tool("repair", "store.img"), "store.img: wiped " + what)

    def test_dry_run(self):
        before = self.stale()
        os.chmod(self.path("store.img"), 0o444)
        document = self.json("repair", "store.img", "--dry-run")
        self.assertEqual((document["dry_run"], document["wiped_bytes"]), (True, 0))
        self.assertGreater(document["stale_bytes"], 0)
        self.assertEqual(self.read("store.img"), before)

    def test_large_area(self):
        """A tail of more than one piece, up to the end of the area."""
        chunk_size = 1 << 20
        self.image("store.img", chunk_size=chunk_size, records=[{"origin": 1}])
        self.patch("store.img", chunk_size + 32, b"\xff" * (chunk_size - 32))
        self.json("repair", "store.img")
        _, _, image = second_opinion(self.read("store.img"))
        self.assertEqual((len(image.records), image.stale_slots), (1, 0))

    def test_random(self):
        rng = seeded()
        for _ in range(10 if SANITIZED else 50):
            good = rng.randrange(70)
            records = [{"origin": n} for n in range(good)] + [None]
            left = 31 - good % 32
            records += [{"origin": 1000 + n} if rng.randrange(2) else None
                        for n in range(rng.randrange(left + 1))]
            before = self.stale(chunk_size=512, records=records)
            _, _, old = second_opinion(before)
            self.tool("repair", "store.img")
            _, _, image = second_opinion(self.read("store.img"))
            self.assertEqual(image.records, old.records)
            self.assertEqual(image.stale_slots, 0)

    # ---- refused ----

    def test_damaged(self):
        for at, slot, name in ((16, (1, 3), "duplicate-origin"), (16, (7, 1 << 50),
                                                                  "record-beyond-device"),
                               (0, (5, 0), "record-in-header")):
            self.stale()
            self.patch("store.img", 4096 + at, struct.pack("<QQ", *slot))
            before = self.read("store.img")
            for more in ((), ("--dry-run",)):
                self.assertEqual(self.tool("repair", "store.img", *more, status=REFUSED,
                                           says=f"({name})\n"), "")
            self.assertEqual(self.read("store.img"), before)

    def test_no_store(self):
        self.file("zeroes", b"\0" * 65536)
        self.tool("repair", "zeroes", status=REFUSED, says="(no-store)")
        self.file("empty", b"")
        self.tool("repair", "empty", status=REFUSED, says="(device-too-short)")
        self.tool("repair", "none", status=IO_ERROR, says="cowsnap: none: No such file")
        self.tool("repair", ".", status=IO_ERROR, says="cowsnap: .: Is a directory")

    def test_invalid(self):
        self.stale()
        self.patch("store.img", 4, b"\0")
        before = self.read("store.img")
        self.tool("repair", "store.img", status=INVALID, says="marked invalid")
        self.assertEqual(self.read("store.img"), before)

    def test_in_use(self):
        before = self.stale()
        with open(self.path("store.img"), "r+b") as other:
            lock(other, fcntl.F_WRLCK)
            for more in ((), ("--dry-run",)):
                self.tool("repair", "store.img", *more, status=IO_ERROR,
                          says="cowsnap: store.img: it is in use by another process\n")
            # Somebody who only looks keeps us from writing, not from looking.
            lock(other, fcntl.F_RDLCK)
            self.tool("repair", "store.img", status=IO_ERROR, says="in use by another process")
            self.tool("repair", "store.img", "--dry-run")
        self.assertEqual(self.read("store.img"), before)

    def test_write_fails(self):
        before = self.stale()
        self.tool("repair", "store.img", status=IO_ERROR,
                  says="cowsnap: store.img: cannot be written: File too large\n",
                  preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)))
        self.assertEqual(self.read("store.img"), before)

    def test_read_only(self):
        self.stale()
        done = self.run_script(
            "mount --bind . . && mount -o remount,ro,bind . || exit 99; cd \"$PWD\"; "
            '"$0" check store.img --json; "$0" repair store.img; echo $?; '
            '"$0" repair store.img --dry-run >/dev/null; echo $?; '
            '"$0" create store.img --origin origin --overwrite; echo $?')
        self.assertIn("cowsnap: store.img: cannot be opened for writing: Read-only file system",
                      done.stderr)
        document, end = json.JSONDecoder().raw_decode(done.stdout)
        self.assertEqual(document["verdict"], "good")
        self.assertEqual(done.stdout[end:].split(), ["3", "0", "3"])


if __name__ == "__main__":
    main()
