# SPDX-License-Identifier: MIT
"""Start and end: loading without jemalloc, the background, --run, SIGTERM, stale sockets."""

import os
import signal
import socket
import subprocess

from rig import PLUGIN, Control, check, check_equal, main, server_environment, wait_until

SIZE = 1 << 20


def nbdkit(rig, *arguments):
    return subprocess.run(["nbdkit", *arguments], capture_output=True, text=True, timeout=60,
                          env=server_environment(leaks=False), check=False, cwd=rig.directory)


def test_load(rig):
    libraries = subprocess.run(["ldd", PLUGIN], capture_output=True, text=True, check=True).stdout
    check("not found" not in libraries, libraries)
    check("jemalloc" not in libraries, "the plug-in needs jemalloc: " + libraries)
    dump = nbdkit(rig, PLUGIN, "--dump-plugin").stdout
    check("name=cowsnap\n" in dump and "thread_model=parallel\n" in dump, dump)
    help_text = nbdkit(rig, PLUGIN, "--help").stdout
    for word in ("chunk-size=", "store=", "store-format=", "store-limit=", "generation-file=",
                 "on-full=", "control="):
        check(word in help_text, f"--help does not tell of {word}")


def test_run(rig):
    done = nbdkit(rig, "-U", "-", PLUGIN, "volume", "control=control", "--run",
                  'nbdinfo --size "$uri"; test -S control')
    check_equal(done.returncode, 0, done.stderr)
    check_equal(done.stdout.strip(), str(SIZE), "nbdinfo under --run")
    wait_until(lambda: not os.path.exists(rig.path("control")), "the end of the captive server")


def test_background(rig, *parameters):
    """nbdkit forks, changes directory, and serves with threads made after that."""
    done = nbdkit(rig, "-U", rig.path("nbd"), "-P", rig.path("pid"), PLUGIN, "volume",
                  "store=store", "control=control", *parameters)
    check_equal(done.returncode, 0, done.stderr)
    wait_until(lambda: os.path.exists(rig.path("pid")) and rig.read("pid"), "the pid file")
    pid = int(rig.read("pid"))
    try:
        control = Control(rig.path("control"))
        check_equal(control.ask("take one")["ok"], True, "take")
        uri = f"nbd+unix:///@one?socket={rig.path('nbd')}"
        check_equal(rig.run("nbdinfo", "--size", uri).strip(), str(SIZE), "size of the snapshot")
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the server to end")
    check(not os.path.exists(rig.path("control")), "the control socket is left")
    check(os.path.exists(rig.path("store")), "the store was made beside the volume")
    os.unlink(rig.path("pid"))
    os.unlink(rig.path("nbd"))


def test_background_dm(rig):
    """A persistent store that was opened before the fork, and again after it."""
    keep = ("store-format=dm", "generation-file=generation")
    os.unlink(rig.path("store"))
    test_background(rig, *keep)
    check_equal(rig.read("store.name"), b"one\n", "the name of the snapshot")
    check_equal(rig.read("generation"), b"1\n", "one start, one generation")
    server = rig.serve(rig.path("volume"), "store=" + rig.path("store"), "store-format=dm",
                       "generation-file=" + rig.path("generation"))
    check_equal(server.state("one")["state"], "active", "the snapshot after the restart")
    server.ok("drop one")
    server.stop()


def test_end_with_clients(rig):
    """SIGTERM while clients are connected and snapshots live: all is closed in order.

    nbdkit lets its clients finish; a client of the control socket does not keep it.
    """
    server = rig.serve(rig.path("volume"), leaks=False)
    server.ok("take one")
    server.ok("take two")
    control = server.control()
    clients = [server.connect(), server.connect("one"), server.connect("two")]
    clients[0].pwrite(b"x" * 5000, 100)
    server.ok("drop two")
    server.terminate()
    clients.clear()
    server.handles.clear()  # the last references: the connections are closed
    server.wait_end()
    check_equal(control.answer(), None, "the control client sees the end")
    check("cannot close" not in server.log(), server.log())


def test_sockets(rig):
    """A socket nobody answers on is replaced; one that answers is not touched."""
    stale = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stale.bind(rig.path("control0"))
    stale.close()
    server = rig.serve(rig.path("volume"))
    control = "control=" + server.control_socket
    done = nbdkit(rig, "-U", "-", PLUGIN, "volume", control, "--run", "true")
    check(done.returncode != 0, "two servers on one control socket")
    check("another server uses this socket" in done.stderr, done.stderr)
    check_equal(server.ok("list")["snapshots"], [], "the first server still answers")

    # Another socket that took the place of ours is not ours to remove.
    os.unlink(server.control_socket)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(server.control_socket)
        server.process.send_signal(signal.SIGTERM)
        check_equal(server.process.wait(60), 0, "exit status")
        check(os.path.exists(server.control_socket), "somebody else's socket was removed")
        os.unlink(server.control_socket)


def main_test(rig):
    rig.file("volume", b"v" * SIZE)
    test_load(rig)
    test_run(rig)
    test_sockets(rig)
    test_background(rig)
    test_background_dm(rig)
    test_end_with_clients(rig)
    return "dlopen without jemalloc, --run, the background, SIGTERM with clients, stale sockets"


main(main_test)
