#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The library and dmstore.py on each other's images.

    test_library.py CONTINUE

CONTINUE is the program of continue.c. Images that dmstore.py writes (specs.json, golden/*.hex, and
random ones) are opened, read, continued and left by the library; then dmstore.py must find in them
what it had written, and what the library added.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import dmstore

CONTINUE = sys.argv.pop(1) if len(sys.argv) > 1 else None


def read_hex(path):
    """An image as text: lines "OFFSET HEX", the rest is zeroes; "size N" for its length."""
    with open(path, encoding="ascii") as file:
        data = bytearray()
        for line in file:
            if line.startswith("#") or not line.strip():
                continue
            word, value = line.split()
            if word == "size":
                data = bytearray(int(value))
                continue
            piece = bytes.fromhex(value)
            offset = int(word, 16)
            data[offset:offset + len(piece)] = piece
    return data


class Volume:
    """An origin and a store in files, and what the snapshot must hold."""

    def __init__(self, folder, store_bytes, origin_bytes, seed=1):
        self.store = os.path.join(folder, "store")
        self.origin = os.path.join(folder, "origin")
        self.image = os.path.join(folder, "image")
        self.live = bytearray(random.Random(seed).randbytes(origin_bytes))
        with open(self.store, "wb") as file:
            file.write(store_bytes)
        with open(self.origin, "wb") as file:
            file.write(self.live)
        self.snapshot = bytearray(self.live)

    def read(self):
        with open(self.store, "rb") as file:
            return dmstore.read_image(file, len(self.live))

    def data(self, chunk, size):
        with open(self.store, "rb") as file:
            return dmstore.read_at(file, chunk * size, size)

    def expect(self, image):
        """The snapshot is now what the origin has and the records replace."""
        size = image.layout.chunk_size
        for origin, store in image.records:
            self.snapshot[origin * size:(origin + 1) * size] = self.data(store, size)
        del self.snapshot[len(self.live):]

    def run(self, *words, code=0):
        done = subprocess.run([CONTINUE, self.origin, self.store, *words],
                              capture_output=True, text=True, check=False)
        if done.returncode != code:
            raise AssertionError("%s: exit %d: %s" % (words, done.returncode, done.stderr))
        return done

    def write(self, offset, length, value):
        self.live[offset:offset + length] = bytes([value]) * length
        return "write=%d,%d,%d" % (offset, length, value)


def spec_of(case):
    spec = dict(case["spec"])
    if "count" in case:
        chunks = case["origin_chunks"]
        spec["records"] = [{"origin": (n * 7 + 3) % chunks if chunks % 7 else n, "fill": n % 251}
                           for n in range(case["count"])]
    return spec


class Library(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def check_snapshot(self, volume):
        with open(volume.image, "rb") as file:
            self.assertEqual(file.read(), volume.snapshot)

    def check_store(self, volume, before, written):
        """The old records are there, in front, with their data; the new ones are those of the
        chunks that were written and had none; all of it reads as the snapshot."""
        image = volume.read()
        size = image.layout.chunk_size
        self.assertEqual(image.stale_slots, 0)
        self.assertEqual(image.records[:len(before.records)], before.records)
        self.assertEqual(image.generation, before.generation)
        had = {origin for origin, _ in before.records}
        added = [origin for origin, _ in image.records[len(before.records):]]
        self.assertEqual(sorted(added), sorted(written - had))
        for origin, store in image.records:
            must = volume.snapshot[origin * size:(origin + 1) * size]
            self.assertEqual(volume.data(store, size)[:len(must)], must)
        with open(volume.origin, "rb") as file:
            self.assertEqual(file.read(), volume.live)
        return image

    def go_on(self, volume, end="deactivate"):
        """Open, read, write until it is full or there is enough, leave; then dmstore looks."""
        before = volume.read()
        volume.expect(before)
        size = before.layout.chunk_size
        room = before.layout.record_limit - len(before.records)
        had = {origin for origin, _ in before.records}
        words, written = [], set()
        for chunk in range(-(-len(volume.live) // size)):
            new = len(written - had)
            if chunk % 3 == 1 or (chunk not in had and new == room):
                continue
            length = min(size // 3, len(volume.live) - chunk * size)
            words.append(volume.write(chunk * size, length, chunk % 256))
            written.add(chunk)
        volume.run("open", "image=" + volume.image, *words, end)
        self.check_snapshot(volume)
        after = self.check_store(volume, before, written)
        volume.run("open", "image=" + volume.image)
        self.check_snapshot(volume)
        return after

    def test_specs(self):
        with open(os.path.join(HERE, "specs.json"), encoding="utf-8") as file:
            cases = json.load(file)
        for case in cases:
            with self.subTest(case["name"]):
                volume = self.volume(spec_of(case), case["origin_chunks"],
                                     case.get("origin_cut", 0))
                self.go_on(volume)

    def volume(self, spec, origin_chunks, cut=0, seed=1):
        with tempfile.TemporaryFile() as file:
            dmstore.write_image(spec, file)
            file.seek(0)
            return Volume(self.folder.name, file.read(),
                          origin_chunks * spec.get("chunk_size", 4096) - cut, seed)

    def test_golden(self):
        folder = os.path.join(HERE, "golden")
        names = sorted(os.listdir(folder))
        self.assertGreaterEqual(len(names), 3)
        for name in names:
            with self.subTest(name):
                self.go_on(Volume(self.folder.name, read_hex(os.path.join(folder, name)),
                                  128 * 512))

    def test_random(self):
        seed = int(os.environ.get("COWSNAP_SEED", "0")) or random.SystemRandom().getrandbits(32)
        print("test_random: seed %d; to replay: COWSNAP_SEED=%d" % (seed, seed), file=sys.stderr)
        rng = random.Random(seed)
        for _ in range(40):
            size = rng.choice((512, 1024, 4096))
            layout = dmstore.Layout(size, rng.randint(3, 120) * size)
            chunks = rng.randint(1, 200)
            count = rng.randint(0, min(layout.record_limit, chunks))
            stores = rng.sample(range(layout.data_chunks), count)
            spec = {"chunk_size": size, "device_size": layout.chunks * size,
                    "generation": rng.choice((0, rng.getrandbits(64))),
                    "records": [{"origin": origin, "store": layout.data_chunk(k),
                                 "fill": rng.randrange(256)}
                                for origin, k in zip(rng.sample(range(chunks), count), stores)]}
            with self.subTest(seed=seed, spec=str(spec)[:200]):
                self.go_on(self.volume(spec, chunks, rng.choice((0, 1, size - 1)), seed),
                           rng.choice(("deactivate", "die")))

    def test_a_life_of_the_library_alone(self):
        volume = Volume(self.folder.name, bytes(40960), 100 * 512)
        words = [volume.write(n * 512 * 2, 100, 9) for n in range(40)]
        volume.run("create=512", "generation=4", *words, "usage", "die")
        image = volume.read()
        self.assertEqual(image.generation, 4)
        self.assertEqual([o for o, _ in image.records], [2 * n for n in range(40)])
        self.go_on(volume)

    def test_generation(self):
        volume = self.volume({"chunk_size": 512, "device_size": 40960, "generation": 8}, 100)
        self.assertIn("ESTALE", volume.run("open=9", code=1).stderr)
        volume.run("open=8", "generation=9")
        self.assertEqual(volume.read().generation, 9)
        self.go_on(volume)

    def test_invalid(self):
        volume = self.volume({"chunk_size": 512, "device_size": 40960, "valid": False,
                              "generation": 3}, 100)
        self.assertIn("ESTALE", volume.run("open", "image=" + volume.image, code=1).stderr)
        self.assertEqual((volume.read().valid, volume.read().generation), (False, 3))
        volume.run("open", "drop")
        with self.assertRaises(dmstore.Refused) as caught:
            volume.read()
        self.assertEqual(caught.exception.name, "no-store")

    def test_refused(self):
        volume = self.volume({"chunk_size": 512, "device_size": 40960,
                              "records": [{"origin": 5}, {"origin": 99}]}, 99)
        with open(volume.store, "rb") as file:
            before = file.read()
        self.assertIn("99", volume.run("open", code=1).stderr)
        with open(volume.store, "rb") as file:
            self.assertEqual(file.read(), before)


if __name__ == "__main__":
    unittest.main()
