#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A second implementation of the persistent format, to hold the library against.

Written from docs/design/dm-format.md alone; it shares no code with the library. If the two
disagree, one of them or the page is wrong.

    dmstore.py check IMAGE [--origin-size N] [--block-size N] [--clean] [--json]
    dmstore.py dump IMAGE [--origin-size N] [--block-size N] [--digest]
    dmstore.py write SPEC.json IMAGE [--force]

check says whether a reader must accept the image, and why not. dump prints it as JSON. write makes
an image from a list of records:

    {"chunk_size": 4096,          default 4096
     "device_size": 1048576,      default: the least that holds the records
     "valid": true,               default true
     "generation": 7,             default 0
     "records": [{"origin": 5, "store": 2, "fill": 17}, ...]}

A record without "store" gets the lowest data chunk that no other has. Its data is "fill" (one
byte, repeated) or "hex" (then zeroes), else its origin chunk number, repeated as 8 bytes. A record
that is null leaves its slot empty: what follows is a stale tail.

Exit: 0 good; 1 refused; 2 wrong call or spec; 3 image not readable or writable; 4 marked invalid.
"""

import argparse
import hashlib
import json
import os
import struct
import sys

MAGIC = 0x70416E53
VERSION = 1
SECTOR = 512
CHUNK_SECTORS_MAX = 1 << 21
DEVICE_MAX = 1 << 62
HEADER = struct.Struct("<IIII")
GENERATION = struct.Struct("<Q")  # behind the header, where kernels leave zeroes
SLOT = struct.Struct("<QQ")
PIECE = 1 << 20  # bytes of an area that are read at once

GOOD, REFUSED, WRONG_CALL, IO_ERROR, INVALID = range(5)


class Refused(Exception):
    """The image is none that a reader may accept. `name` is that of the format page."""

    def __init__(self, name, text):
        super().__init__(text)
        self.name = name


class BadSpec(Exception):
    """write cannot make what the spec asks for."""


# ---- Arithmetic of the page ----


class Layout:
    def __init__(self, chunk_size, device_size):
        self.chunk_size = chunk_size
        self.per_area = chunk_size // SLOT.size
        self.stripe = self.per_area + 1
        self.chunks = device_size // chunk_size
        self.areas = -(-(self.chunks - 1) // self.stripe) if self.chunks > 1 else 0
        self.data_chunks = max(self.chunks - 1 - self.areas, 0)
        self.record_limit = max(min(self.data_chunks, self.areas * self.per_area - 1), 0)

    def area_chunk(self, area):
        return 1 + area * self.stripe

    def is_metadata(self, chunk):
        return chunk >= 1 and chunk % self.stripe == 1

    def data_chunk(self, number):
        return 2 + number + number // self.per_area

    def slot_offset(self, record):
        area, slot = divmod(record, self.per_area)
        return self.area_chunk(area) * self.chunk_size + slot * SLOT.size


def size_for(chunk_size, records):
    per_area = chunk_size // SLOT.size
    return (1 + records + records // per_area + 1) * chunk_size


def check_chunk_size(chunk_size, block_size):
    if chunk_size == 0:
        raise Refused("chunk-size-zero", "the chunk size is 0")
    if chunk_size & (chunk_size - 1):
        raise Refused("chunk-size-not-power-of-two", "chunk size %d bytes" % chunk_size)
    if chunk_size > CHUNK_SECTORS_MAX * SECTOR:
        raise Refused("chunk-size-too-large", "chunk size %d bytes" % chunk_size)
    if chunk_size % block_size:
        raise Refused("chunk-size-below-block",
                      "chunk size %d bytes, block %d" % (chunk_size, block_size))


# ---- Reader ----


class Image:
    """What was read. `records` are (origin, store) pairs; `end` is the terminator's record number,
    None if the snapshot is invalid and nothing was read."""

    def __init__(self, layout, valid, generation):
        self.layout = layout
        self.valid = valid
        self.generation = generation
        self.records = []
        self.end = None
        self.stale_slots = 0


def read_at(file, offset, length):
    file.seek(offset)
    data = file.read(length)
    if len(data) != length:
        raise OSError("short read of %d bytes at %d" % (length, offset))
    return data


def read_header(file, device_size, block_size):
    if device_size < HEADER.size:
        raise Refused("device-too-short", "the device has %d bytes" % device_size)
    magic, valid, version, sectors = HEADER.unpack(read_at(file, 0, HEADER.size))
    if magic == 0:
        raise Refused("no-store", "the magic is 0")
    if magic != MAGIC:
        raise Refused("bad-magic", "the magic is 0x%08x" % magic)
    if version != VERSION:
        raise Refused("bad-version", "version %d" % version)
    check_chunk_size(sectors * SECTOR, block_size)
    layout = Layout(sectors * SECTOR, min(device_size, DEVICE_MAX))
    if layout.chunks < 2:
        raise Refused("device-too-short", "%d chunks of %d bytes in %d bytes"
                      % (layout.chunks, layout.chunk_size, device_size))
    generation, = GENERATION.unpack(read_at(file, HEADER.size, GENERATION.size))
    return Image(layout, valid != 0, generation)


class Checker:
    """Takes the records one by one and remembers who has what."""

    def __init__(self, layout, origin_chunks):
        self.layout = layout
        self.origin_chunks = origin_chunks
        self.by_origin = {}
        self.by_store = {}

    def take(self, number, origin, store):
        layout = self.layout
        who = "record %d (area %d, slot %d)" % ((number,) + divmod(number, layout.per_area))
        if store == 0:
            raise Refused("record-in-header", "%s: origin chunk %d, store chunk 0" % (who, origin))
        if store >= layout.chunks:
            raise Refused("record-beyond-device", "%s: store chunk %d of %d"
                          % (who, store, layout.chunks))
        if layout.is_metadata(store):
            raise Refused("record-in-metadata", "%s: store chunk %d" % (who, store))
        if self.origin_chunks is not None and origin >= self.origin_chunks:
            raise Refused("record-beyond-origin", "%s: origin chunk %d of %d"
                          % (who, origin, self.origin_chunks))
        first = self.by_origin.setdefault(origin, number)
        if first != number:
            raise Refused("duplicate-origin", "%s: origin chunk %d is that of record %d"
                          % (who, origin, first))
        first = self.by_store.setdefault(store, number)
        if first != number:
            raise Refused("duplicate-store", "%s: store chunk %d is that of record %d"
                          % (who, store, first))


def read_list(file, image, checker):
    """Reads to the terminator and sets image.end."""
    layout = image.layout
    step = min(PIECE, layout.chunk_size)
    for area in range(layout.areas):
        start = layout.area_chunk(area) * layout.chunk_size
        for offset in range(start, start + layout.chunk_size, step):
            for origin, store in SLOT.iter_unpack(read_at(file, offset, step)):
                number = len(image.records)
                if origin == 0 and store == 0:
                    image.end = number
                    return
                checker.take(number, origin, store)
                image.records.append((origin, store))
    raise Refused("area-beyond-device",
                  "area %d would be the next, the device has %d" % (layout.areas, layout.areas))


def count_stale(file, image):
    """Slots that are not zero behind the terminator, in its area."""
    layout = image.layout
    offset = layout.slot_offset(image.end)
    end = layout.slot_offset(image.end - image.end % layout.per_area) + layout.chunk_size
    count = 0
    while offset < end:
        length = min(PIECE, end - offset)
        piece = read_at(file, offset, length)
        if piece.strip(b"\0"):
            count += sum(1 for slot in SLOT.iter_unpack(piece) if slot != (0, 0))
        offset += length
    return count


def read_image(file, origin_size=None, block_size=SECTOR):
    """Reads and checks a whole image, or raises Refused."""
    file.seek(0, os.SEEK_END)
    image = read_header(file, file.tell(), block_size)
    if not image.valid:
        return image
    origin_chunks = None
    if origin_size is not None:
        origin_chunks = -(-origin_size // image.layout.chunk_size)
    read_list(file, image, Checker(image.layout, origin_chunks))
    image.stale_slots = count_stale(file, image)
    return image


# ---- Writer ----


def fail_spec(text, *values):
    raise BadSpec(text % values if values else text)


def number_in(spec, key, default, what):
    value = spec.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 64:
        fail_spec('%s: "%s" must be a number from 0 to 2^64 - 1', what, key)
    return value


def place_records(layout, records):
    """Gives each record its store chunk. Returns the (origin, store) pairs, None for a gap."""
    pairs, wanted = [], set()
    for number, record in enumerate(records):
        if record is not None and not isinstance(record, dict):
            fail_spec("record %d must be an object or null", number)
        if record and "store" in record:
            wanted.add(number_in(record, "store", None, "record %d" % number))
    free = 0
    for number, record in enumerate(records):
        if record is None:
            pairs.append(None)
            continue
        origin = number_in(record, "origin", None, "record %d" % number)
        store = record.get("store")
        if store is None:
            while layout.data_chunk(free) in wanted:
                free += 1
            store = layout.data_chunk(free)
            free += 1
        pairs.append((origin, store))
    return pairs


def check_pairs(layout, pairs):
    """What comes before the first gap must be good; what comes behind it need only fit."""
    checker = Checker(layout, None)
    gap = False
    for number, pair in enumerate(pairs):
        gap = gap or pair is None
        if pair and not gap:
            try:
                checker.take(number, *pair)
            except Refused as refused:
                fail_spec("%s: %s", refused.name, refused)
        elif pair and (not 0 < pair[1] < layout.chunks or layout.is_metadata(pair[1])):
            fail_spec("record %d: store chunk %d is none for data", number, pair[1])


def data_of(record, number, chunk_size):
    if "fill" in record:
        fill = number_in(record, "fill", None, "record %d" % number)
        if fill > 255:
            fail_spec('record %d: "fill" must be a byte', number)
        return bytes([fill]) * chunk_size
    if "hex" in record:
        try:
            data = bytes.fromhex(record["hex"])
        except (TypeError, ValueError):
            fail_spec('record %d: "hex" must be hexadecimal digits', number)
        if len(data) > chunk_size:
            fail_spec('record %d: "hex" is longer than a chunk', number)
        return data.ljust(chunk_size, b"\0")
    return struct.pack("<Q", record["origin"]) * (chunk_size // 8)


def plan(spec):
    """Returns (layout, device size, what comes in the header, pairs, data) or raises BadSpec."""
    if not isinstance(spec, dict):
        fail_spec("the spec must be an object")
    unknown = set(spec) - {"chunk_size", "device_size", "valid", "generation", "records"}
    if unknown:
        fail_spec("unknown: %s", ", ".join(sorted(unknown)))
    records = spec.get("records", [])
    if not isinstance(records, list):
        fail_spec('"records" must be a list')
    chunk_size = number_in(spec, "chunk_size", 4096, "spec")
    try:
        check_chunk_size(chunk_size, SECTOR)
    except Refused as refused:
        fail_spec("%s: %s", refused.name, refused)
    device_size = number_in(spec, "device_size", max(size_for(chunk_size, len(records)),
                                                     3 * chunk_size), "spec")
    if device_size > DEVICE_MAX:
        fail_spec("a device of %d bytes is too long", device_size)
    layout = Layout(chunk_size, device_size)
    if layout.chunks < 3:
        fail_spec("device-too-short: %d chunks hold no record", layout.chunks)
    if len(records) > layout.record_limit:
        fail_spec("full: %d records, the device holds %d", len(records), layout.record_limit)
    pairs = place_records(layout, records)
    check_pairs(layout, pairs)
    data = [r and data_of(r, n, chunk_size) for n, r in enumerate(records)]
    header = bool(spec.get("valid", True)), number_in(spec, "generation", 0, "spec")
    return layout, device_size, header, pairs, data


def write_image(spec, file):
    layout, device_size, (valid, generation), pairs, data = plan(spec)
    file.truncate(0)
    file.truncate(device_size)
    for number, pair in enumerate(pairs):
        if pair is None:
            continue
        file.seek(layout.slot_offset(number))
        file.write(SLOT.pack(*pair))
        file.seek(pair[1] * layout.chunk_size)
        file.write(data[number])
    file.seek(0)
    file.write(HEADER.pack(MAGIC, int(valid), VERSION, layout.chunk_size // SECTOR))
    file.write(GENERATION.pack(generation))
    file.flush()
    os.fsync(file.fileno())


# ---- Commands ----


def describe(image):
    layout = image.layout
    result = {"valid": image.valid, "generation": image.generation,
              "chunk_size": layout.chunk_size, "chunks": layout.chunks, "areas": layout.areas,
              "record_limit": layout.record_limit}
    if image.end is not None:
        highest = max((store for _, store in image.records), default=1)
        result.update(records=len(image.records), stale_slots=image.stale_slots,
                      free_chunks=layout.data_chunks - len(image.records),
                      highest_store_chunk=highest)
    return result


def command_check(args):
    with open(args.image, "rb") as file:
        image = read_image(file, args.origin_size, args.block_size)
    result = describe(image)
    if args.json:
        print(json.dumps(result))
    elif not image.valid:
        print("%s: marked invalid, chunk size %d" % (args.image, image.layout.chunk_size))
    else:
        print("%s: good, %d records of %d, chunk size %d%s"
              % (args.image, result["records"], result["record_limit"], result["chunk_size"],
                 ", %d stale slots" % image.stale_slots if image.stale_slots else ""))
    if not image.valid:
        return INVALID
    if args.clean and image.stale_slots:
        raise Refused("stale-tail", "%d slots behind the end are not zero" % image.stale_slots)
    return GOOD


def command_dump(args):
    with open(args.image, "rb") as file:
        image = read_image(file, args.origin_size, args.block_size)
        result = describe(image)
        result["records"] = [{"origin": origin, "store": store}
                             for origin, store in image.records]
        size = image.layout.chunk_size
        for record in result["records"] if args.digest else []:
            data = read_at(file, record["store"] * size, size)
            record["sha256"] = hashlib.sha256(data).hexdigest()
    print(json.dumps(result, indent=1))
    return GOOD if image.valid else INVALID


def command_write(args):
    with open(args.spec, encoding="utf-8") as file:
        try:
            spec = json.load(file)
        except ValueError as error:
            raise BadSpec("%s: %s" % (args.spec, error)) from error
    plan(spec)  # before a file is made
    with open(args.image, "w+b" if args.force else "x+b") as file:
        write_image(spec, file)
    return GOOD


def arguments():
    def count(text):
        value = int(text, 0)
        if value <= 0:
            raise argparse.ArgumentTypeError("must be above 0")
        return value

    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="check | dump | write")
    for name, function in (("check", command_check), ("dump", command_dump)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("image")
        command.add_argument("--origin-size", type=count, help="bytes; bounds the origin chunks")
        command.add_argument("--block-size", type=count, default=SECTOR,
                             help="logical block of the devices (512)")
        if name == "check":
            command.add_argument("--clean", action="store_true", help="refuse a stale tail")
            command.add_argument("--json", action="store_true")
        else:
            command.add_argument("--digest", action="store_true", help="with SHA-256 of the data")
    command = commands.add_parser("write")
    command.set_defaults(function=command_write)
    command.add_argument("spec")
    command.add_argument("image")
    command.add_argument("--force", action="store_true", help="overwrite the image")
    return parser.parse_args()


def main():
    args = arguments()
    try:
        return args.function(args)
    except Refused as refused:
        print("dmstore: %s: %s: %s" % (args.image, refused.name, refused), file=sys.stderr)
        return REFUSED
    except BadSpec as error:
        print("dmstore: %s" % error, file=sys.stderr)
        return WRONG_CALL
    except OSError as error:
        print("dmstore: %s" % error, file=sys.stderr)
        return IO_ERROR


if __name__ == "__main__":
    sys.exit(main())
