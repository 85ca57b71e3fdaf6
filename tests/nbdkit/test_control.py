# SPDX-License-Identifier: MIT
"""The control socket: what it answers, and that no bad input gets further than its answer."""

import os
import stat
import threading

from rig import check, check_equal, main

BAD_LINES = (
    (b"take \n", "ENODATA"),
    (b"drop \n", "ENODATA"),
    (b"take\n", "EINVAL"),
    (b"drop\n", "EINVAL"),
    (b"take " + b"n" * 256 + b"\n", "ENAMETOOLONG"),
    (b"drop " + b"n" * 256 + b"\n", "ENAMETOOLONG"),
    (b"take \xff\xfe\n", "EILSEQ"),
    (b"take \xc3\n", "EILSEQ"),
    (b"take \xed\xa0\x80\n", "EILSEQ"),
    (b"take \xc0\xaf\n", "EILSEQ"),
    (b"take a\x00b\n", "EBADMSG"),
    (b"take a\tb\n", "EBADMSG"),
    (b"take a\x7f\n", "EBADMSG"),
    (b"take a\xc2\x85b\n", "EBADMSG"),
    (b"take a\r\n", "EBADMSG"),
    (b"take a/b\n", "EBADMSG"),
    (b"take a b\n", "E2BIG"),
    (b"take  a\n", "E2BIG"),
    (b"take a \n", "E2BIG"),
    (b"list all\n", "E2BIG"),
    (b"status \n", "E2BIG"),
    (b"help me\n", "E2BIG"),
    (b"drop missing\n", "ENOENT"),
    (b"take kept\n", "EEXIST"),
    (b"\n", "ENOSYS"),
    (b" take a\n", "ENOSYS"),
    (b"TAKE a\n", "ENOSYS"),
    (b"taken a\n", "ENOSYS"),
    (b"\x00\n", "ENOSYS"),
    (b"\xff\xff\xff\n", "ENOSYS"),
    (b"x" * 4096 + b"\n", "ENOSYS"),
    (b"take " + b"n" * 4091 + b"\n", "ENAMETOOLONG"),
    (b"take " + b"n" * 4092 + b"\n", "EMSGSIZE"),
    (b"x" * 100000 + b"\n", "EMSGSIZE"),
)


def names(server):
    return [snapshot["name"] for snapshot in server.ok("list")["snapshots"]]


def test_good(server):
    mode = os.stat(server.control_socket).st_mode
    check(stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600, f"mode of the socket {mode:o}")
    taken = server.ok("take kept")
    check_equal(taken["export"], "@kept", "take")
    check_equal(taken["size_bytes"], 1 << 20, "take")
    long_name = "n" * 255
    for name in (long_name, "größe-1.5", "日本語", "@at", "-", "..", '"quoted"\\'):
        answer = server.ok(f"take {name}")
        check_equal(answer["name"], name, "the name comes back")
        check(server.connect(name).get_size() == 1 << 20, f"export @{name}")
        server.ok(f"drop {name}")
    check_equal(names(server), ["kept"], "list")
    status = server.ok("status")
    check_equal(status["size_bytes"], 1 << 20, "size")
    check_equal(status["store"]["chunk_size_bytes"], 4096, "chunk size")
    for field in ("used_bytes", "limit_bytes", "high_water_bytes", "reclaimable_bytes"):
        check(isinstance(status["store"][field], int), f"status: store {field}")
    for field in ("writes", "copy_ns_p50", "copy_ns_p999", "snapshot_reads"):
        check(isinstance(status["stats"][field], int), f"status: stats {field}")
    check(isinstance(status["threads"], list), "status: threads")
    commands = " ".join(server.ok("help")["commands"])
    words = ("take", "drop", "downgrade", "release", "changes", "merge", "merge-status",
             "merge-stop", "merge-resume", "detach", "detach-stop", "throttle", "resize", "grow",
             "handover", "list", "status", "help")
    check(all(word in commands for word in words), commands)


def test_bad_lines(server):
    control = server.control()
    for line, error in BAD_LINES:
        server.refused(line, error)
        # The same connection goes on after an error.
        check_equal(control.ask(line)["error"], error, f"{line!r:.60} on an old connection")
        check_equal(control.ask("list")["ok"], True, "the connection after an error")
    control.close()
    check_equal(names(server), ["kept"], "bad lines changed the snapshots")


def test_unfinished(server):
    """A line without its end is not done, however the client goes."""
    control = server.control()
    control.send(b"list\ntake unfinished")
    control.end_input()
    check_equal(control.answer()["ok"], True, "the finished line")
    check_equal(control.answer()["error"], "EPROTO", "the unfinished line")
    check_equal(control.answer(), None, "the connection is closed then")
    control = server.control()
    control.send(b"y" * 5000)
    control.end_input()
    check_equal(control.answer()["error"], "EMSGSIZE", "too long and unfinished")
    check_equal(control.answer(), None, "the connection is closed then")
    control = server.control()
    control.end_input()
    check_equal(control.answer(), None, "a client that says nothing")
    for said in (b"", b"take gone", b"list\n" * 50, b"z" * 9000):
        control = server.control()
        control.send(said)
        control.close()
    check_equal(names(server), ["kept"], "unfinished lines changed the snapshots")


def test_slow(server):
    """Lines in pieces, lines in heaps, and a client that never reads its answers."""
    control = server.control()
    for byte in b"list\n":
        control.send(bytes([byte]))
        check_equal(names(server), ["kept"], "others are served meanwhile")
    check_equal(control.answer()["ok"], True, "a line byte by byte")
    control.send(b"take p\ntake p\ndrop p\ndrop p\n" * 200)
    for _ in range(200):
        got = [control.answer().get("error") for _ in range(4)]
        check_equal(got, [None, "EEXIST", None, "ENOENT"], "answers in order")
    control.close()

    deaf = server.control()
    deaf.socket.settimeout(0.2)
    try:
        for _ in range(10000):
            deaf.send(b"status\n" * 100)
    except TimeoutError:
        pass
    check_equal(names(server), ["kept"], "others are served while one does not listen")
    deaf.close()


def test_many(server):
    controls = [server.control() for _ in range(300)]
    for control in controls:
        control.send(b"li")
    for control in controls:
        control.send(b"st\n")
    for control in controls:
        check_equal(control.answer()["ok"], True, "one of 300 clients")
    for control in controls:
        control.close()

    taken = []

    def take_all(number):
        control = server.control()
        for n in range(30):
            if control.ask(f"take c{n}")["ok"]:
                taken.append((number, n))
        control.close()

    threads = [threading.Thread(target=take_all, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_equal(sorted(n for _, n in taken), list(range(30)), "each name was taken once")
    for n in range(30):
        server.ok(f"drop c{n}")


def main_test(rig):
    server = rig.serve(rig.file("volume", b"v" * (1 << 20)))
    test_good(server)
    test_bad_lines(server)
    test_unfinished(server)
    test_slow(server)
    test_many(server)
    server.ok("drop kept")
    check_equal(names(server), [], "list at the end")
    server.wait_reclaimed()
    server.stop()
    return f"{len(BAD_LINES)} bad lines, unfinished lines, deaf and dying clients, 300 clients"


main(main_test)
