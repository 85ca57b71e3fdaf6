# SPDX-License-Identifier: MIT
"""Writes, zeroes and trims of any alignment and length against a model in memory."""

from rig import check, check_equal, main, seeded

import nbd

SIZE = (1 << 20) + 1539  # no multiple of a chunk or a sector
STEPS = 1500
CHUNK_SIZES = ("512", "4k", "64k")


def random_range(random):
    offset = random.randrange(SIZE)
    length = min(random.choice((1, 511, 512, 513, 4096, 10000, 100000)), SIZE - offset)
    return offset, length


def step(random, live, model):
    offset, length = random_range(random)
    flags = random.choice((0, nbd.CMD_FLAG_FUA))
    kind = random.randrange(10)
    if kind < 6:
        data = random.randbytes(length)
        live.pwrite(data, offset, flags)
        model[offset:offset + length] = data
    elif kind < 8:
        live.zero(length, offset, flags | random.choice((0, nbd.CMD_FLAG_NO_HOLE)))
        model[offset:offset + length] = bytes(length)
    elif kind < 9:
        live.trim(length, offset, flags)
        # A trimmed range reads as anything: take what it is.
        model[offset:offset + length] = live.pread(length, offset)
    else:
        live.flush()


def check_image(handle, image, what):
    check(handle.pread(SIZE, 0) == image, f"{what}: wrong content")
    position = 0

    def extent(_context, offset, entries, _error):
        nonlocal position
        position = offset
        for length, flags in zip(entries[::2], entries[1::2]):
            zero = flags & nbd.STATE_ZERO != 0
            check(not zero or not any(image[position:position + length]),
                  f"{what}: data at {position} is called zero")
            position += length
        return 0

    while position < SIZE:
        handle.block_status(SIZE - position, position, extent)


def one_run(rig, random, chunk_size):
    model = bytearray(random.randbytes(SIZE))
    server = rig.serve(rig.file("volume", model), f"chunk-size={chunk_size}")
    live = server.connect()
    images = {}
    for number in range(STEPS):
        if random.randrange(200) == 0:
            server.ok(f"take t{number}")
            images[f"t{number}"] = bytes(model)
        if images and random.randrange(300) == 0:
            name = random.choice(sorted(images))
            server.ok(f"drop {name}")
            del images[name]
        step(random, live, model)
    check_image(live, model, "live")
    for name, image in images.items():
        check_image(server.connect(name), image, name)
    try:
        live.pread(512, SIZE - 511)
        check(False, "a read beyond the end was done")
    except nbd.Error:
        pass
    live.shutdown()
    check_equal(rig.read("volume"), bytes(model), "the file")
    server.stop()


def main_test(rig):
    random = seeded()
    for chunk_size in CHUNK_SIZES:
        one_run(rig, random, chunk_size)
    return f"{STEPS} requests of any alignment for each chunk size of {', '.join(CHUNK_SIZES)}"


main(main_test)
