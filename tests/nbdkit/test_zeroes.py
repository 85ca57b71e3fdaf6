# SPDX-License-Identifier: MIT
"""What was a hole, or all zeroes, takes no space in the store and, a hole, is not read; and
snapshots stay what they were while many clients make and fill holes at once."""

from images import CHUNK, check_export, in_threads
from rig import check_equal, main, seeded

CHUNKS = 512
SIZE = CHUNKS * CHUNK
THREADS = 4
ROUNDS = 4


def sparse(rig, name, data):
    """A file of holes, with these chunks: number -> content."""
    with open(rig.path(name), "wb") as file:
        file.truncate(SIZE)
        for number, content in data.items():
            file.seek(number * CHUNK)
            file.write(content)
    return rig.path(name)


def test_space(rig):
    data = {number: b"\x5a" * CHUNK for number in range(0, CHUNKS, 8)}
    zeroes = {number: bytes(CHUNK) for number in range(1, CHUNKS, 8)}
    server = rig.serve(sparse(rig, "space", data | zeroes))
    server.ok("take one")
    server.connect().pwrite(b"w" * SIZE, 0)
    status = server.ok("status")
    check_equal(status["store"]["used_bytes"], len(data) * CHUNK, "bytes used")
    check_equal(status["stats"]["origin_bytes"], (len(data) + len(zeroes)) * CHUNK,
                "bytes read from the volume")
    image = bytearray(SIZE)
    for number, content in data.items():
        image[number * CHUNK:(number + 1) * CHUNK] = content
    check_export(server, "one", image)
    server.ok("drop one")
    server.wait_reclaimed()
    server.stop()


def turn_over(random, server, image, places):
    """Holes and data at random; each chunk is one thread's alone."""
    handle = server.connect()
    for number in places:
        at = number * CHUNK
        data = bytes(CHUNK) if random.randrange(2) else random.randbytes(16) * (CHUNK // 16)
        if any(data):
            handle.pwrite(data, at)
        else:
            handle.trim(CHUNK, at)
        image[at:at + CHUNK] = data
    handle.shutdown()


def test_race(rig, random):
    image = bytearray(SIZE)
    server = rig.serve(sparse(rig, "race", {}))
    kept = {}
    for number in range(ROUNDS):
        name = f"r{number}"
        server.ok(f"take {name}")
        kept[name] = bytes(image)
        jobs = []
        for thread in range(THREADS):
            places = [n for n in range(CHUNKS) if n % THREADS == thread] * 2
            random.shuffle(places)
            jobs.append(lambda places=places, seed=random.randrange(1 << 30): turn_over(
                type(random)(seed), server, image, places))
        in_threads(jobs)
        for other, wanted in kept.items():
            check_export(server, other, wanted)
    check_export(server, None, image)
    server.stop()


def main_test(rig):
    random = seeded()
    test_space(rig)
    test_race(rig, random)
    return f"{ROUNDS} snapshots while {THREADS} clients turned over holes and data"


main(main_test)
