#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the seed corpus of fuzz_dm_open into a folder.

    make_corpus.py FOLDER

Images of dmstore.py: good ones, the same with each kind of damage, and those of regressions.txt.
"""

import os
import random
import struct
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "interop"))

import dmstore

FLAGS = {"none": 0, "no-flush": 1, "durable": 2, "write-loses": 4, "write-all": 8}


def image_of(spec):
    with tempfile.TemporaryFile() as file:
        dmstore.write_image(spec, file)
        file.seek(0)
        return bytearray(file.read())


def choices(flags, origin_bytes, step):
    return bytes([flags]) + struct.pack("<H", (origin_bytes - 1) // 2) + bytes([step])


def small(count, chunks=40, **more):
    return dict(more, chunk_size=512, device_size=chunks * 512,
                records=[{"origin": n, "fill": n + 1} for n in range(count)])


def good():
    """Yields (name, image, bytes of the origin)."""
    yield "empty", image_of(small(0)), 20480
    yield "few", image_of(small(3)), 20480
    yield "full-area", image_of(small(32)), 20480
    yield "two-areas", image_of(small(36, 42)), 30000
    yield "full", image_of(small(31, 34)), 20480
    yield "invalid", image_of(small(3, valid=False)), 20480
    yield "generation", image_of(small(3, generation=1 << 60)), 20480
    yield "stale", image_of({"chunk_size": 512, "device_size": 20480, "records":
                             [{"origin": 1}, None, {"origin": 2, "store": 7}]}), 20480
    yield "chunk-1k", image_of({"chunk_size": 1024, "device_size": 20480,
                                "records": [{"origin": 3}, {"origin": 1}]}), 9999
    yield "chunk-4k", image_of({"chunk_size": 4096, "device_size": 16384,
                                "records": [{"origin": 0}]}), 12345


def damaged():
    """Yields (name, image): one for each refusal."""
    words = {"no-store": (0, 0), "bad-magic": (0, 1), "bad-version": (8, 9), "size-zero": (12, 0),
             "size-odd": (12, 3), "size-large": (12, 1 << 22), "size-below": (12, 64)}
    for name, (at, word) in words.items():
        image = image_of(small(3))
        image[at:at + 4] = struct.pack("<I", word)
        yield name, image
    records = {"in-header": (9, 0), "beyond-device": (9, 40), "in-metadata": (9, 34),
               "beyond-origin": (1 << 40, 9), "duplicate-origin": (0, 9),
               "duplicate-store": (9, 2), "largest": ((1 << 64) - 1, (1 << 64) - 1)}
    for name, pair in records.items():
        image = image_of(small(3))
        image[512 + 48:512 + 64] = struct.pack("<QQ", *pair)
        yield name, image
    image = image_of(small(31, 34))
    image[512 + 31 * 16:1024] = struct.pack("<QQ", 35, 33)
    yield "no-end", image
    image = image_of(small(0))
    image[512:1024] = random.Random(1).randbytes(512)
    yield "garbage", image


def regressions():
    with open(os.path.join(HERE, "regressions.txt"), encoding="ascii") as file:
        for line in file:
            if line.strip() and not line.startswith("#"):
                name, *words = line.split()
                data = bytearray()
                for word in words:
                    text, _, times = word.partition("*")
                    data += bytes.fromhex(text) * int(times or 1)
                yield name, data


def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    inputs = {}
    for name, image, origin_bytes in good():
        for flag, value in FLAGS.items():
            inputs["good-%s-%s" % (name, flag)] = choices(value, origin_bytes, 1) + image
    for name, image in damaged():
        inputs["bad-" + name] = choices(0, 20480, 0) + image
    for name, data in regressions():
        inputs["regression-" + name] = data
    for name, data in inputs.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)
    print("%d inputs" % len(inputs))


if __name__ == "__main__":
    main()
