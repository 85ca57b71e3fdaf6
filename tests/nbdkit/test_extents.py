# SPDX-License-Identifier: MIT
"""What a snapshot calls a hole is one, while writers make and fill holes of the live volume."""

import os
import threading

from rig import check, check_equal, main, seeded, wait_until

import nbd

BLOCK = 65536
BLOCKS = 256
SIZE = BLOCK * BLOCKS
ROUNDS = 12


def make_volume(rig, random):
    """Each block is data or a hole, at random. Returns the holes."""
    holes = set()
    with open(rig.path("volume"), "wb") as file:
        file.truncate(SIZE)
        for block in range(BLOCKS):
            if random.randrange(2):
                holes.add(block)
            else:
                file.seek(block * BLOCK)
                file.write(b"\x5a" * BLOCK)
    return holes


def turn_over(server, order, holes):
    """Makes data of holes and holes of data, in that order."""
    live = server.connect()
    for block in order:
        if block in holes:
            live.pwrite(b"\xa5" * BLOCK, block * BLOCK)
        else:
            live.zero(BLOCK, block * BLOCK)
    live.shutdown()


def check_extents(handle, holes, size=SIZE):
    """Ask for all of the map once; returns how many blocks it called holes."""
    found = 0
    position = 0

    def extent(_context, offset, entries, _error):
        nonlocal position, found
        position = offset
        for length, flags in zip(entries[::2], entries[1::2]):
            if flags & (nbd.STATE_ZERO | nbd.STATE_HOLE):
                for block in range(position // BLOCK, (position + length - 1) // BLOCK + 1):
                    check(block in holes, f"data of the snapshot in block {block} called a hole")
                    found += 1
            position += length
        return 0

    while position < size:
        handle.block_status(size - position, position, extent)
    return found


def one_round(server, random, holes, number):
    server.ok(f"take r{number}")
    handle = server.connect(f"r{number}")
    order = random.sample(range(BLOCKS), BLOCKS)
    check(check_extents(handle, holes) == len(holes), "a hole is not reported before any write")
    writer = threading.Thread(target=turn_over, args=(server, order, holes))
    writer.start()
    questions = 0
    while writer.is_alive():
        check_extents(handle, holes)
        questions += 1
    writer.join()
    check_extents(handle, holes)
    server.ok(f"drop r{number}")
    handle.shutdown()
    return questions, set(range(BLOCKS)) - holes


def test_held(rig):
    """A hole is made of a data block just before the plug-in asks the file about it."""
    hold = rig.path("hold")
    server = rig.serve(rig.file("held", b"\x5a" * BLOCK), f"chunk-size={BLOCK}", hold=hold)
    server.ok("take one")
    live = server.connect()
    handle = server.connect("one")
    answer = []
    asker = threading.Thread(target=lambda: answer.append(check_extents(handle, set(), BLOCK)))
    rig.file("hold", b"")
    asker.start()
    wait_until(lambda: os.path.exists(hold + ".held"), "the question to the file")
    live.zero(BLOCK, 0)
    check_equal(rig.read("held"), bytes(BLOCK), "the live volume")
    os.unlink(hold)
    asker.join()
    check_equal(answer, [0], "holes in a snapshot that is all data")
    server.stop()


def main_test(rig):
    random = seeded()
    test_held(rig)
    holes = make_volume(rig, random)
    server = rig.serve(rig.path("volume"))
    total = 0
    for number in range(ROUNDS):
        questions, holes = one_round(server, random, holes, number)
        total += questions
    server.stop()
    return f"{total} maps of a snapshot while {ROUNDS * BLOCKS} blocks were turned over"


main(main_test)
