# SPDX-License-Identifier: MIT
"""info, check, dump and extents, against the second implementation on the same images."""

import json
import os
import resource
import struct

from rig import (Case, GOOD, INVALID, IO_ERROR, REFUSED, SANITIZED, dmstore, main,
                 second_opinion, seeded)

RECORDS = [{"origin": 5, "fill": 0x11}, {"origin": 700, "fill": 0x22}, {"origin": 6, "store": 9},
           {"origin": 7}, {"origin": 4}]
DUPLICATES = ("duplicate-origin", "duplicate-store")
OF_A_RECORD = ("record-in-header", "record-beyond-device", "record-in-metadata",
               "record-beyond-origin", "area-beyond-device")


def extents_of(records, chunk_size, origin_size=None):
    """What changed, as (offset, length)."""
    result = []
    for chunk in sorted(origin for origin, _ in records):
        start, end = chunk * chunk_size, (chunk + 1) * chunk_size
        if origin_size is not None:
            end = min(end, origin_size)
        if result and sum(result[-1]) == start:
            result[-1] = (result[-1][0], end - result[-1][0])
        else:
            result.append((start, end - start))
    return result


class Good(Case):
    def setUp(self):
        super().setUp()
        self.store = self.image("store.img", records=RECORDS, device_size=20 * 4096 + 100)
        _, _, self.other = second_opinion(self.read("store.img"))

    def test_info(self):
        text = self.tool("info", "store.img")
        for line in ("length:         80.0 KiB (82020 bytes)", "snapshot:       valid",
                     "chunk size:     4.0 KiB (4096 bytes)", "generation:     none",
                     "records:        5 of 18 (27.8 %)", "saved:          20.0 KiB (20480 bytes)",
                     "highest chunk:  9", "stale tail:     none"):
            self.assertIn(line + "\n", text)

    def test_json_of_info_and_check(self):
        said = dmstore.describe(self.other)
        for command in ("info", "check"):
            document = self.json(command, "store.img")
            self.assertEqual(document["path"], "store.img")
            self.assertEqual(document["verdict"], "good")
            self.assertEqual(document["fault"], "")
            for mine, other in (("valid", "valid"), ("chunk_size_bytes", "chunk_size"),
                                ("chunks", "chunks"), ("areas", "areas"),
                                ("record_limit", "record_limit"), ("record_count", "records"),
                                ("highest_chunk", "highest_store_chunk")):
                self.assertEqual(document[mine], said[other], mine)

    def test_check(self):
        self.assertEqual(self.tool("check", "store.img"),
                         "store.img: good, 5 records of 18, chunk size 4.0 KiB\n")

    def test_dump(self):
        lines = self.tool("dump", "store.img").splitlines()
        self.assertEqual(lines[0], "# record origin store")
        self.assertEqual([tuple(map(int, line.split())) for line in lines[1:]],
                         [(n, *pair) for n, pair in enumerate(self.other.records)])
        document = self.json("dump", "store.img")
        self.assertEqual([(r["record"], r["origin"], r["store"]) for r in document["records"]],
                         [(n, *pair) for n, pair in enumerate(self.other.records)])
        self.assertEqual(document["verdict"], "good")
        self.assertEqual(document["record_count"], 5)

    def test_extents(self):
        wanted = extents_of(self.other.records, 4096)
        self.assertEqual(wanted, [(16384, 16384), (2867200, 4096)])
        lines = self.tool("extents", "store.img").splitlines()
        self.assertEqual([tuple(map(int, line.split())) for line in lines[1:]], wanted)
        document = self.json("extents", "store.img")
        self.assertEqual([(e["offset"], e["length"]) for e in document["extents"]], wanted)
        self.assertEqual(document["changed_bytes"], 20480)

    def test_last_chunk_of_an_origin(self):
        size = 700 * 4096 + 10
        self.file("origin", b"")
        os.truncate(self.path("origin"), size)
        for option in (("--origin", "origin"), ("--origin-size", size)):
            document = self.json("extents", "store.img", *option)
            self.assertEqual(document["extents"][1], {"offset": 700 * 4096, "length": 10})
        said = "record 1 "
        for option in (("--origin-size", 700 * 4096), ("--origin-size", "2M")):
            document = self.json("check", "store.img", *option, status=REFUSED, says=said)
            self.assertEqual(document["fault"], "record-beyond-origin")
            self.assertEqual(self.tool("extents", "store.img", *option, status=REFUSED, says=said),
                             "# offset length\n")

    def test_empty_store(self):
        self.image("empty.img", records=[])
        self.assertEqual(self.tool("dump", "empty.img"), "# record origin store\n")
        self.assertEqual(self.json("dump", "empty.img")["records"], [])
        self.assertEqual(self.json("extents", "empty.img")["extents"], [])
        self.assertIn("highest chunk:  none\n", self.tool("info", "empty.img"))

    def test_read_only(self):
        os.chmod(self.store, 0o444)
        before = self.read("store.img")
        for command in ("info", "check", "dump", "extents"):
            self.tool(command, "store.img")
        self.assertEqual(self.read("store.img"), before)


class Tail(Case):
    def test_stale_tail(self):
        self.image("store.img", records=[{"origin": 1}, None, {"origin": 2}])
        document = self.json("check", "store.img")
        self.assertEqual(document["record_count"], 1)
        # Behind record 0, and all that is not zero: the origin chunk and the store chunk of slot 2.
        end = document["stale_offset"] + document["stale_bytes"]
        self.assertIn(document["stale_offset"], range(4096 + 16, 4096 + 2 * 16 + 1))
        self.assertIn(end, range(4096 + 2 * 16 + 9, 4096 + 3 * 16 + 1))
        self.assertIn("a crash left", self.tool("check", "store.img"))
        self.assertIn("bytes at byte %d\n" % document["stale_offset"],
                      self.tool("info", "store.img"))


class Invalid(Case):
    def test_invalid(self):
        self.image("store.img", records=RECORDS, device_size=80000, valid=False)
        for command in ("info", "check", "dump", "extents"):
            document = self.json(command, "store.img", status=INVALID,
                                 says="store.img: the snapshot is marked invalid")
            self.assertEqual(document["verdict"], "invalid")
            self.assertEqual(document["valid"], False)
            self.assertEqual(document["record_count"], 0)
            self.tool(command, "store.img", status=INVALID, says="marked invalid")
        self.assertIn("snapshot:       marked invalid\n",
                      self.run_tool("info", "store.img").stdout)


class Refusals(Case):
    """Every fault has the name that the other implementation gives it."""

    def compare(self, data, **options):
        name, why, image = second_opinion(bytes(data), **options)
        self.file("store.img", data)
        more = []
        if "origin_size" in options:
            more = ["--origin-size", options["origin_size"]]
        status = REFUSED if name else GOOD if image.valid else INVALID
        says = name or ("" if image.valid else "marked invalid")
        if name in DUPLICATES:
            says = "record "
        document = self.json("dump", "store.img", *more, status=status, says=says)
        self.assertEqual(document["reason"] != "", name is not None)
        self.assertEqual(self.read("store.img"), bytes(data), "the image was changed")
        records = [(r["origin"], r["store"]) for r in document["records"]]
        self.assertEqual(document["record_count"], len(records))
        if name in DUPLICATES:
            # Pairs in the origin are found many records at a time. The one that completes a pair
            # may so be passed over, and what is wrong behind it be named.
            self.assertIn(document["fault"], DUPLICATES + OF_A_RECORD, why)
            self.assertEqual(records[:len(image.records)], image.records)
            return document["fault"]
        self.assertEqual(document["fault"], name or "", why)
        if image:
            self.assertEqual(document["chunk_size_bytes"], image.layout.chunk_size)
            self.assertEqual(records, image.records)
            self.assertEqual(document["stale_bytes"] > 0, image.stale_slots > 0)
        return name

    def base(self, **spec):
        if "records" not in spec:
            spec.update(records=RECORDS, device_size=20 * spec.get("chunk_size", 4096))
        self.image("base.img", **spec)
        return bytearray(self.read("base.img"))

    def header(self, at, word):
        data = self.base()
        data[at:at + 4] = struct.pack("<I", word)
        return self.compare(data)

    def record(self, origin, store, **options):
        data = self.base()
        data[4096 + 32:4096 + 48] = struct.pack("<QQ", origin, store)
        return self.compare(data, **options)

    def test_each(self):
        seen = [
            self.compare(b""), self.compare(b"\0" * 15), self.compare(b"\0" * 65536),
            self.compare(b"garbage!" * 8192), self.header(8, 2), self.header(12, 0),
            self.header(12, 7), self.header(12, 1 << 22), self.header(12, 1 << 21),
            self.compare(self.base()[:4096]), self.compare(self.base(chunk_size=512)[:512]),
            self.record(3, 0), self.record(3, 1000), self.record(3, 1),
            self.record(701, 8, origin_size=701 * 4096), self.record(5, 8), self.record(8, 2),
        ]
        full = self.base(chunk_size=512, device_size=34 * 512,
                         records=[{"origin": n} for n in range(31)])
        full[512 + 31 * 16:512 + 32 * 16] = struct.pack("<QQ", 99, 33)
        seen.append(self.compare(full))
        self.assertEqual(set(seen), {
            "device-too-short", "no-store", "bad-magic", "bad-version", "chunk-size-zero",
            "chunk-size-not-power-of-two", "chunk-size-too-large", "record-in-header",
            "record-beyond-device", "record-in-metadata", "record-beyond-origin",
            "duplicate-origin", "duplicate-store", "area-beyond-device"})

    def test_random_damage(self):
        rng = seeded()
        for _ in range(50 if SANITIZED else 300):
            count = rng.randrange(1, 70)
            data = self.base(chunk_size=512, device_size=80 * 512 + rng.randrange(1000),
                             records=[{"origin": n} for n in rng.sample(range(200), count)])
            for _ in range(rng.randrange(3)):
                slot = rng.choice((512, 34 * 512, 67 * 512)) + 16 * rng.randrange(32)
                data[slot:slot + 16] = struct.pack(
                    "<QQ", rng.choice((0, rng.randrange(220), rng.getrandbits(64))),
                    rng.choice((0, rng.randrange(82), rng.getrandbits(64))))
            if rng.randrange(20) == 0:
                data[rng.randrange(16)] ^= 1 << rng.randrange(8)
            self.compare(data, origin_size=210 * 512)

    def test_words_of_a_refusal(self):
        data = self.base()
        data[4096 + 32:4096 + 48] = struct.pack("<QQ", 3, 1)
        self.file("store.img", data)
        document = self.json("check", "store.img", status=REFUSED, says="cowsnap: store.img: ")
        self.assertTrue(document["reason"].startswith("record 2 "), document["reason"])
        self.tool("check", "store.img", status=REFUSED,
                  says=f"cowsnap: store.img: {document['reason']} (record-in-metadata)\n")
        text = self.tool("info", "store.img", status=REFUSED, says="record-in-metadata")
        self.assertIn(f"refused:        {document['reason']} (record-in-metadata)\n", text)


class Long(Case):
    """Lists longer than anybody wants in memory, and records far apart."""

    def write(self, name, records, distance):
        """Sparse: only the areas are there. Records in order, in order of the store."""
        layout = dmstore.Layout(4096, dmstore.size_for(4096, records))
        with open(self.path(name), "wb") as file:
            file.truncate(dmstore.size_for(4096, records))
            file.write(dmstore.HEADER.pack(dmstore.MAGIC, 1, 1, 8))
            for area in range(records // layout.per_area + 1):
                first = area * layout.per_area
                count = min(layout.per_area, records - first)
                numbers = []
                for n in range(first, first + count):
                    numbers += (n * distance, layout.data_chunk(n))
                file.seek(layout.area_chunk(area) * 4096)
                file.write(struct.pack("<%dQ" % len(numbers), *numbers))
        return layout

    def test_many(self):
        records = int(os.environ.get("COWSNAP_RECORDS", 300000))
        self.write("store.img", records, 1)
        with open(self.path("dump"), "wb") as out:
            self.tool("dump", "store.img", stdout=out)
        with open(self.path("dump"), encoding="ascii") as lines:
            self.assertEqual(sum(1 for line in lines), records + 1)
        with open(self.path("dump.json"), "wb") as out:
            self.tool("dump", "store.img", "--json", stdout=out)
        if not SANITIZED:
            # The map's 10 bytes for each record and the bitmap, not the list. This process counts
            # too: its children begin as copies of it.
            memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
            self.assertLess(memory, (64 << 20) + 20 * records)
        if records <= 1000000:
            with open(self.path("dump.json"), encoding="ascii") as text:
                document = json.load(text)
            self.assertEqual(len(document["records"]), records)
            self.assertEqual(document["records"][-1]["origin"], records - 1)
        self.assertEqual(self.json("extents", "store.img")["extents"],
                         [{"offset": 0, "length": records * 4096}])

    def test_far_apart(self):
        self.write("store.img", 1000, 1 << 39)
        document = self.json("extents", "store.img")
        self.assertEqual([e["offset"] for e in document["extents"]],
                         [n << 51 for n in range(1000)])


class NoStore(Case):
    def test_missing(self):
        for command in ("info", "check", "dump", "extents"):
            self.assertEqual(self.tool(command, "none", "--json", status=IO_ERROR,
                                       says="cowsnap: none: No such file or directory\n"), "")

    def test_directory(self):
        self.tool("check", self.directory, status=IO_ERROR, says="Is a directory")

    def test_device(self):
        self.tool("check", "/dev/null", status=IO_ERROR,
                  says="/dev/null: it is neither a regular file nor a block device\n")

    def test_origin_missing(self):
        self.image("store.img", records=RECORDS[:2])
        self.tool("check", "store.img", "--origin", "none", status=IO_ERROR,
                  says="cowsnap: none: No such file")
        self.file("empty", b"")
        self.tool("check", "store.img", "--origin", "empty", status=REFUSED,
                  says="cowsnap: empty: the file is empty\n")


if __name__ == "__main__":
    main()
