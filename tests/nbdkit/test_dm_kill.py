# SPDX-License-Identifier: MIT
"""store-format=dm: the server is killed in the middle of what it does. The snapshot is what the
volume was at the take, and every write that was answered is there."""

import time

from dm import BLOCK, Volume
from rig import check, check_equal, main, seeded

MIB = 1 << 20
SIZE = 8 * MIB
ROUNDS = 5
MOMENTS = 12


def test_load(volume):
    """Killed again and again under load, always the same snapshot."""
    server = volume.serve()
    server.ok("take kept")
    before = bytes(volume.after)
    records = 0
    for round_number in range(ROUNDS):
        volume.write_until(server, volume.random.randrange(1, 400 * (round_number + 1)),
                           server.kill)
        volume.check_live()
        found = volume.check_store()["records"]
        changed = sum(volume.after[at:at + BLOCK] != before[at:at + BLOCK]
                      for at in range(0, SIZE, BLOCK))
        check(found >= max(records, changed),
              f"{found} records, {records} before, {changed} blocks changed")
        server = volume.serve()
        volume.settle()
        check_equal(server.ok("status")["store"]["records"], found, "records after the restart")
        volume.check_store("--clean")
        volume.check_snapshot(server, "kept", before)
        records = found
    return server, before, records


def test_after(volume, server, before):
    """Writes go on, the snapshot stays; it is dropped, another is taken."""
    volume.write_until(server, 1000, lambda: None)
    volume.check_live()
    volume.check_snapshot(server, "kept", before)
    server.ok("drop kept")
    server.wait_reclaimed()
    check_equal(volume.name_kept(), None, "the name is gone with its snapshot")
    volume.write_until(server, 100, lambda: None)
    server.ok("take next")
    image = bytes(volume.after)
    volume.write_until(server, 100, lambda: None)
    volume.check_snapshot(server, "next", image)
    server.kill()
    server = volume.serve()
    volume.check_snapshot(server, "next", image)
    volume.check_live()
    server.ok("drop next")
    server.kill()
    server = volume.serve()
    check_equal(volume.names(server), [], "a snapshot that was dropped")
    server.stop()


def measure(server, command):
    """How long the command takes, about."""
    begin = time.monotonic()
    server.ok(command)
    return time.monotonic() - begin


def kill_while(server, moment_s, command):
    """The command is sent, and at that moment, before or after it is done, the server is killed.
    Returns whether it was answered."""
    control = server.control()
    control.socket.settimeout(0)
    control.send(command.encode() + b"\n")
    end = time.monotonic() + moment_s
    answer = None
    while answer is None and time.monotonic() < end:
        try:
            answer = control.answer()
        except BlockingIOError:
            pass
    server.kill()
    control.close()
    check(answer is None or answer["ok"], f"{command}: {answer}")
    return answer is not None


def test_moments(volume):
    """Killed while a snapshot is taken or dropped: it is there or it is not, and if the command was
    answered that is known."""
    taken = dropped = 0
    image = bytes(volume.after)
    server = volume.serve()
    take_s = measure(server, "take measured")
    drop_s = measure(server, "drop measured")
    server.stop()
    for number in range(MOMENTS):
        name = f"moment{number}"
        server = volume.serve()
        answered = kill_while(server, 1.5 * take_s * volume.random.random(), f"take {name}")
        server = volume.serve()
        found = volume.names(server)
        check(found == [name] or (found == [] and not answered), f"take: {answered}, {found}")
        taken += len(found)
        if found == []:
            server.ok(f"take {name}")
        volume.check_snapshot(server, name, image)
        answered = kill_while(server, 1.5 * drop_s * volume.random.random(), f"drop {name}")
        server = volume.serve()
        found = volume.names(server)
        check(found == [] or (found == [name] and not answered), f"drop: {answered}, {found}")
        dropped += 1 - len(found)
        if found == [name]:
            volume.check_snapshot(server, name, image)
            server.ok(f"drop {name}")
        server.stop()
    return taken, dropped


def main_test(rig):
    volume = Volume(rig, seeded(), SIZE)
    server, before, records = test_load(volume)
    test_after(volume, server, before)
    taken, dropped = test_moments(volume)
    return (f"{ROUNDS} kills under load with {records} records in the end, {2 * MOMENTS} around "
            f"take and drop, of which {taken} left a snapshot and {dropped} none")


main(main_test)
