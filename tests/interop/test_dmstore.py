#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Self-tests of dmstore.py: the page's example to the byte, each refusal, round trips."""

import io
import json
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import dmstore

PAGE = os.path.join(HERE, "..", "..", "docs", "design", "dm-format.md")
EXAMPLE = {"chunk_size": 4096, "records": [{"origin": 5, "fill": 0x11},
                                           {"origin": 700, "fill": 0x22}]}
DUMP_LINE = re.compile(r"^([0-9a-f]{8})((?:  ?[0-9a-f]{2})*)(?:  \|.*\|)?$")


def image_of(spec):
    with tempfile.TemporaryFile() as file:
        dmstore.write_image(spec, file)
        file.seek(0)
        return bytearray(file.read())


def read(data, **options):
    return dmstore.read_image(io.BytesIO(data), **options)


def undump(text):
    """The bytes of a hex dump in the style of hexdump -C."""
    data, repeat = bytearray(), b""
    star = False
    for line in text.splitlines():
        if line == "*":
            star = True
            continue
        match = DUMP_LINE.match(line)
        offset = int(match.group(1), 16)
        while star and len(data) < offset:
            data += repeat
        assert len(data) == offset, line
        star = False
        repeat = bytes.fromhex(match.group(2).replace(" ", ""))
        data += repeat
    return data


class Example(unittest.TestCase):
    def test_page(self):
        with open(PAGE, encoding="utf-8") as file:
            page = file.read()
        dump = page.split("## Example")[1].split("```")[1].strip()
        self.assertEqual(undump(dump), image_of(EXAMPLE))

    def test_every_name_is_on_the_page(self):
        with open(PAGE, encoding="utf-8") as file:
            page = file.read()
        names = set(re.findall(r"^\| `([a-z-]+)` \|", page.split("## What a reader checks")[1]
                               .split("\n## ")[0], re.M))
        with open(dmstore.__file__, encoding="utf-8") as file:
            used = set(re.findall(r'Refused\("([a-z-]+)"', file.read()))
        self.assertEqual(used - {"stale-tail"}, names)


class Arithmetic(unittest.TestCase):
    def walk(self, per_area, chunks):
        """Kinds of the chunks, one after the other."""
        kinds = ["header"]
        while len(kinds) < chunks:
            kinds.append("area")
            kinds += ["data"] * per_area
        return kinds[:chunks]

    def test_against_a_walk(self):
        for size in (512, 1024):
            for chunks in range(2, 150):
                layout = dmstore.Layout(size, chunks * size + size - 1)
                kinds = self.walk(size // 16, chunks)
                data = [c for c, kind in enumerate(kinds) if kind == "data"]
                areas = [c for c, kind in enumerate(kinds) if kind == "area"]
                self.assertEqual([layout.is_metadata(c) for c in range(chunks)],
                                 [kind == "area" for kind in kinds])
                self.assertEqual([layout.data_chunk(k) for k in range(layout.data_chunks)], data)
                self.assertEqual([layout.area_chunk(a) for a in range(layout.areas)], areas)
                whole = (chunks - 1) % layout.stripe == 0
                self.assertEqual(layout.record_limit, len(data) - whole)

    def test_size(self):
        for size in (512, 4096):
            for n in range(600):
                need = dmstore.size_for(size, n)
                self.assertGreaterEqual(dmstore.Layout(size, need).record_limit, n)
                if n:
                    self.assertLess(dmstore.Layout(size, need - size).record_limit, n)


class Refusals(unittest.TestCase):
    def refuse(self, name, data, **options):
        with self.assertRaises(dmstore.Refused) as caught:
            read(data, **options)
        self.assertEqual(caught.exception.name, name)

    def header(self, name, at, word, **options):
        data = image_of(EXAMPLE)
        data[at:at + 4] = struct.pack("<I", word)
        self.refuse(name, data, **options)

    def record(self, name, origin, store, slot=1, **options):
        data = image_of(EXAMPLE)
        data[4096 + 16 * slot:4096 + 16 * slot + 16] = struct.pack("<QQ", origin, store)
        self.refuse(name, data, **options)

    def test_header(self):
        self.header("no-store", 0, 0)
        self.header("bad-magic", 0, 0x70416E54)
        self.header("bad-version", 8, 0)
        self.header("bad-version", 8, 2)
        self.header("chunk-size-zero", 12, 0)
        self.header("chunk-size-not-power-of-two", 12, 9)
        self.header("chunk-size-not-power-of-two", 12, 0xffffffff)
        self.header("chunk-size-too-large", 12, 1 << 22)
        self.header("chunk-size-below-block", 12, 4, block_size=4096)
        self.header("device-too-short", 12, 32)

    def test_short(self):
        self.refuse("device-too-short", b"")
        self.refuse("device-too-short", bytes(15))
        self.refuse("no-store", bytes(16))
        self.refuse("no-store", bytes(100000))
        self.refuse("device-too-short", image_of(EXAMPLE)[:8191])
        self.refuse("record-beyond-device", image_of(EXAMPLE)[:8192])

    def test_records(self):
        self.record("record-in-header", 1, 0)
        self.record("record-beyond-device", 1, 4)
        self.record("record-beyond-device", 1, (1 << 64) - 1)
        self.record("record-beyond-device", 1, 1 << 56 | 3)
        self.record("record-in-metadata", 1, 1)
        self.record("record-beyond-origin", 10, 3, origin_size=10 * 4096)
        self.record("record-beyond-origin", (1 << 64) - 1, 3, origin_size=10 * 4096)
        self.record("duplicate-origin", 5, 3)
        self.record("duplicate-store", 6, 2)

    def test_part_of_an_origin_chunk_counts(self):
        data = image_of(EXAMPLE)
        self.assertEqual(len(read(data, origin_size=700 * 4096 + 1).records), 2)
        self.refuse("record-beyond-origin", data, origin_size=700 * 4096)

    def test_no_end(self):
        data = image_of({"chunk_size": 512, "device_size": 34 * 512,
                         "records": [{"origin": n} for n in range(31)]})
        self.assertEqual(len(read(data).records), 31)
        data[512 + 31 * 16:512 + 32 * 16] = struct.pack("<QQ", 99, 33)
        self.refuse("area-beyond-device", data)

    def test_garbage(self):
        rng = random.Random(7)
        for _ in range(200):
            data = image_of({"device_size": 64 * 4096})
            data[4096:8192] = rng.randbytes(4096)
            with self.assertRaises(dmstore.Refused):
                read(data)


class Accepted(unittest.TestCase):
    def test_invalid(self):
        data = image_of(dict(EXAMPLE, valid=False))
        data[4096:8192] = b"\xff" * 4096
        image = read(data)
        self.assertFalse(image.valid)
        self.assertIsNone(image.end)

    def test_any_word_but_zero_is_valid(self):
        data = image_of(EXAMPLE)
        data[4:8] = b"\0\0\0\x80"
        self.assertTrue(read(data).valid)

    def test_rest_of_header_is_ignored(self):
        data = image_of(EXAMPLE)
        data[16:4096] = b"\xff" * 4080
        self.assertEqual(read(data).records, [(5, 2), (700, 3)])

    def test_generation(self):
        self.assertEqual(read(image_of(EXAMPLE)).generation, 0)
        for generation in (1, 0x1122334455667788, (1 << 64) - 1):
            data = image_of(dict(EXAMPLE, generation=generation))
            self.assertEqual(data[16:24], struct.pack("<Q", generation))
            self.assertEqual(read(data).generation, generation)
            self.assertEqual(read(image_of(dict(EXAMPLE, generation=generation, valid=False)))
                             .generation, generation)

    def test_stale_tail(self):
        records = [{"origin": 1}, None, {"origin": 3}, {"origin": 1, "store": 2}]
        image = read(image_of({"chunk_size": 512, "records": records}))
        self.assertEqual(image.records, [(1, 3)])
        self.assertEqual(image.stale_slots, 2)

    def test_chunk_of_several_pieces(self):
        spec = {"chunk_size": 4 << 20, "records": [{"origin": 3}, {"origin": 1}]}
        data = image_of(spec)
        data[2 * (4 << 20) - 1] = 1
        image = read(data)
        self.assertEqual(image.records, [(3, 2), (1, 3)])
        self.assertEqual(image.stale_slots, 1)

    def test_random_round_trips(self):
        rng = random.Random(int(os.environ.get("COWSNAP_SEED", "1")))
        for _ in range(150):
            size = rng.choice((512, 1024, 4096))
            layout = dmstore.Layout(size, rng.randint(3, 120) * size)
            count = rng.randint(0, layout.record_limit)
            stores = rng.sample(range(layout.data_chunks), count)
            origins = rng.sample(range(1 << 40), count)
            pairs = [(o, layout.data_chunk(k)) for o, k in zip(origins, stores)]
            data = image_of({"chunk_size": size, "device_size": layout.chunks * size,
                             "records": [{"origin": o, "store": s} for o, s in pairs]})
            image = read(data)
            self.assertEqual(image.records, pairs)
            self.assertEqual(image.stale_slots, 0)
            for origin, store in pairs:
                self.assertEqual(data[store * size:store * size + 8], struct.pack("<Q", origin))


class Specs(unittest.TestCase):
    def test_bad(self):
        good = {"origin": 1}
        for text, spec in (
                ("object", []), ("unknown", {"chunks": 1}), ("list", {"records": 5}),
                ("power-of-two", {"chunk_size": 1000}), ("zero", {"chunk_size": 0}),
                ("too-short", {"device_size": 8192}), ("too long", {"device_size": 1 << 63}),
                ("number", {"generation": -1}), ("number", {"generation": 1 << 64}),
                ("number", {"records": [{}]}), ("number", {"records": [{"origin": -1}]}),
                ("object", {"records": [7]}), ("byte", {"records": [dict(good, fill=256)]}),
                ("hexadecimal", {"records": [dict(good, hex="xy")]}),
                ("longer", {"records": [dict(good, hex="00" * 4097)]}),
                ("duplicate-origin", {"records": [good, good]}),
                ("duplicate-store", {"records": [dict(good, store=2), {"origin": 2, "store": 2}]}),
                ("record-in-metadata", {"records": [dict(good, store=1)]}),
                ("record-in-header", {"records": [dict(good, store=0)]}),
                ("record-beyond-device", {"records": [dict(good, store=9)]}),
                ("none for data", {"records": [None, dict(good, store=1)]}),
                ("full", {"device_size": 3 * 4096, "records": [good, {"origin": 2}]}),
                ("full", {"chunk_size": 512, "device_size": 34 * 512,
                          "records": [{"origin": n} for n in range(32)]})):
            with self.subTest(spec=str(spec)[:60]), self.assertRaises(dmstore.BadSpec) as caught:
                dmstore.plan(spec)
            self.assertIn(text, str(caught.exception))


class Program(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.image = os.path.join(self.folder.name, "image")

    def run_tool(self, *args):
        return subprocess.run([sys.executable, dmstore.__file__, *args], capture_output=True,
                              text=True, check=False)

    def write(self, spec, *options):
        path = os.path.join(self.folder.name, "spec.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(spec, file)
        return self.run_tool("write", path, self.image, *options)

    def test_write_check_dump(self):
        self.assertEqual(self.write(EXAMPLE).returncode, 0)
        checked = self.run_tool("check", self.image, "--clean", "--json")
        self.assertEqual(checked.returncode, 0, checked.stderr)
        self.assertEqual(json.loads(checked.stdout)["records"], 2)
        dumped = json.loads(self.run_tool("dump", self.image, "--digest").stdout)
        self.assertEqual([r["store"] for r in dumped["records"]], [2, 3])
        self.assertEqual(len(dumped["records"][0]["sha256"]), 64)
        self.assertEqual(self.write(EXAMPLE).returncode, 3)
        self.assertEqual(self.write(EXAMPLE, "--force").returncode, 0)

    def test_exits(self):
        self.assertEqual(self.run_tool("check", self.image).returncode, 3)
        self.assertEqual(self.run_tool("check").returncode, 2)
        self.assertEqual(self.write({"chunk_size": 3}).returncode, 2)
        self.assertFalse(os.path.exists(self.image))
        self.write(dict(EXAMPLE, valid=False))
        self.assertEqual(self.run_tool("check", self.image).returncode, 4)
        self.assertEqual(self.run_tool("dump", self.image).returncode, 4)
        self.write(EXAMPLE, "--force")
        refused = self.run_tool("check", self.image, "--origin-size", "4096")
        self.assertEqual(refused.returncode, 1)
        self.assertIn("record-beyond-origin: record 0 (area 0, slot 0): origin chunk 5 of 1",
                      refused.stderr)
        self.write({"records": [{"origin": 1}, None, {"origin": 2}]}, "--force")
        self.assertEqual(self.run_tool("check", self.image).returncode, 0)
        self.assertEqual(self.run_tool("check", self.image, "--clean").returncode, 1)


if __name__ == "__main__":
    unittest.main()
