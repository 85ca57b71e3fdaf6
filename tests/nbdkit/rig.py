# SPDX-License-Identifier: MIT
"""What the tests of the nbdkit plug-in share: a server in a directory of its own, its control
socket, NBD connections, and waiting for things that happen, with a deadline.

The plug-in under test is named by COWSNAP_PLUGIN. Everything is gone when the rig is left.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse

import nbd

DEADLINE_S = 60
PLUGIN = os.environ.get("COWSNAP_PLUGIN", "")
CHECKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../interop/dmstore.py")


class Failed(Exception):
    """A check did not hold."""


def check(condition, text):
    if not condition:
        raise Failed(text)


def check_equal(got, wanted, text):
    check(got == wanted, f"{text}: got {got!r:.300}, wanted {wanted!r:.300}")


def wait_until(condition, what, seconds=DEADLINE_S):
    """Look until it is so. The pause only keeps the processor free."""
    end = time.monotonic() + seconds
    while not condition():
        check(time.monotonic() < end, f"waited {seconds} s in vain: {what}")
        time.sleep(0.005)


def seeded():
    """A random generator whose seed is printed; COWSNAP_SEED=N repeats a run."""
    seed = int(os.environ.get("COWSNAP_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"seed {seed} (replay: COWSNAP_SEED={seed})", flush=True)
    return random.Random(seed)


def server_environment(leaks=True, hold=None, fail=None):
    """A plug-in with AddressSanitizer needs its run-time in nbdkit before anything else.

    nbdkit does not free its own things when it could not start, or ends before its clients; then
    leaks are not looked for. hold names the file of the hold point in lseek, fail that of the
    failure in fdatasync.
    """
    environment = dict(os.environ)
    preload = []
    libraries = subprocess.run(["ldd", PLUGIN], capture_output=True, text=True, check=True).stdout
    for line in libraries.splitlines():
        if "libasan" in line:
            preload = [line.split()[2], os.environ["COWSNAP_PRELOAD"]]
    if not leaks:
        environment["ASAN_OPTIONS"] = "detect_leaks=0"
    if hold:
        preload.append(os.environ["COWSNAP_HOLD_LSEEK"])
        environment["COWSNAP_HOLD"] = hold
    if fail:
        preload.append(os.environ["COWSNAP_FAIL_FLUSH"])
        environment["COWSNAP_FAIL"] = fail
    if preload:
        environment["LD_PRELOAD"] = ":".join(preload)
    return environment


class Control:
    """One connection to the control socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(path)
        self.rest = b""

    def send(self, data):
        self.socket.sendall(data)

    def answer(self):
        """The next line, as an object; None when the server has closed."""
        while b"\n" not in self.rest:
            data = self.socket.recv(65536)
            if not data:
                check(self.rest == b"", "closed in the middle of an answer")
                return None
            self.rest += data
        line, self.rest = self.rest.split(b"\n", 1)
        return json.loads(line)

    def ask(self, command):
        self.send(command if isinstance(command, bytes) else command.encode() + b"\n")
        return self.answer()

    def end_input(self):
        self.socket.shutdown(socket.SHUT_WR)

    def close(self):
        self.socket.close()


class Server:
    """nbdkit in the foreground with the plug-in."""

    def __init__(self, rig, volume, *parameters, threads=8, leaks=True, hold=None, fail=None):
        self.handles = []
        number = len(rig.servers)
        self.nbd_socket = rig.path(f"nbd{number}")
        self.control_socket = rig.path(f"control{number}")
        self.pid_file = rig.path(f"pid{number}")
        self.log_path = rig.path(f"log{number}")
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                ["nbdkit", "-f", "-t", str(threads), "-U", self.nbd_socket, "-P", self.pid_file,
                 PLUGIN, f"file={volume}", f"control={self.control_socket}", *parameters],
                stdout=log, stderr=log, env=server_environment(leaks, hold, fail))
        rig.servers.append(self)
        wait_until(lambda: os.path.exists(self.pid_file) or self.process.poll() is not None,
                   "the server to start")
        check(self.process.poll() is None, "the server ended at once:\n" + self.log())

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as log:
            return log.read()

    def alive(self):
        return self.process.poll() is None

    def uri(self, snapshot=None):
        export = "" if snapshot is None else urllib.parse.quote("@" + snapshot, safe="@")
        return f"nbd+unix:///{export}?socket={self.nbd_socket}"

    def connect(self, snapshot=None):
        handle = nbd.NBD()
        handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        handle.connect_uri(self.uri(snapshot))
        self.handles.append(handle)
        return handle

    def control(self):
        return Control(self.control_socket)

    def ask(self, command):
        control = self.control()
        try:
            return control.ask(command)
        finally:
            control.close()

    def ok(self, command):
        answer = self.ask(command)
        check(answer is not None and answer["ok"] is True, f"{command}: {answer}")
        return answer

    def refused(self, command, error):
        answer = self.ask(command)
        check(answer is not None and answer["ok"] is False, f"{command!r:.80}: {answer}")
        check_equal(answer["error"], error, f"{command!r:.80}")
        check(answer["message"], "an error has words")

    def state(self, name):
        for snapshot in self.ok("list")["snapshots"]:
            if snapshot["name"] == name:
                return snapshot
        raise Failed(f"no snapshot {name} in the list")

    def wait_reclaimed(self):
        def empty():
            store = self.ok("status")["store"]
            return store["used_bytes"] == 0 and store["reclaimable_bytes"] == 0
        wait_until(empty, "the store to be empty after the drops")

    def disconnect(self):
        """All of its clients."""
        for handle in self.handles:
            if handle.aio_is_ready():
                handle.shutdown()
        wait_until(lambda: self.ok("status")["connections"] == 0, "the connections to be closed")

    def terminate(self):
        check(self.alive(), "the server died:\n" + self.log())
        self.process.send_signal(signal.SIGTERM)

    def kill(self):
        """End it as a crash would. Its sockets are left behind."""
        check(self.alive(), "the server died before:\n" + self.log())
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def stop(self):
        """End it as a service manager would; a clean end removes the control socket."""
        self.disconnect()
        self.terminate()
        self.wait_end()

    def wait_end(self):
        status = self.process.wait(DEADLINE_S)
        check_equal(status, 0, "exit status of the server; its log:\n" + self.log())
        check(not os.path.exists(self.control_socket), "the control socket was left behind")


class Rig:
    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix="cowsnap-test-")
        self.servers = []
        self.programs = []

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        for process in self.programs + [server.process for server in self.servers]:
            if process.poll() is None:
                process.kill()
                process.wait()
        shutil.rmtree(self.directory)

    def path(self, name):
        return os.path.join(self.directory, name)

    def file(self, name, data):
        with open(self.path(name), "wb") as file:
            file.write(data)
        return self.path(name)

    def read(self, name):
        with open(self.path(name), "rb") as file:
            return file.read()

    def serve(self, volume, *parameters, **options):
        return Server(self, volume, *parameters, **options)

    def refused(self, wanted, *parameters, prefix=(), run=("--run", "true")):
        """nbdkit does not start, and says the wanted words; nothing is made or removed. Without
        @run it may be that it has begun to start: then it ends."""
        files = sorted(os.listdir(self.directory))
        done = subprocess.run(
            [*prefix, "nbdkit", "-f", "-U", "-", PLUGIN, *parameters, *run],
            capture_output=True, text=True, timeout=DEADLINE_S,
            env=server_environment(leaks=False), check=False)
        check(done.returncode != 0, f"{parameters} was accepted")
        check(wanted in done.stderr, f"{parameters}: no '{wanted}' in: {done.stderr}")
        check_equal(sorted(os.listdir(self.directory)), files, f"{parameters}: the directory")

    def check_store(self, path, volume_size, *options, status=0):
        """The independent reader's word on a persistent store; returns what it found."""
        done = subprocess.run(
            [sys.executable, "-B", CHECKER, "check", "--json", "--origin-size", str(volume_size),
             *options, path], capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        check_equal(done.returncode, status, f"dmstore.py check {path}: {done.stderr}")
        return json.loads(done.stdout) if done.stdout else None

    def start(self, *command):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   cwd=self.directory)
        self.programs.append(process)
        return process

    def finish(self, process):
        output = process.communicate(timeout=DEADLINE_S * 2)[0].decode(errors="replace")
        check_equal(process.returncode, 0, f"{process.args[0]}: {output}")
        return output

    def run(self, *command):
        return self.finish(self.start(*command))

    def fio(self, server, *options):
        """Starts fio on the live volume."""
        return self.start("fio", "--name=load", "--thread", "--ioengine=nbd",
                          f"--uri={server.uri()}", "--bs=4k",
                          f"--directory={self.directory}", *options)


def main(test):
    """Run a test program: a function of a rig that returns what it verified."""
    check(PLUGIN, "COWSNAP_PLUGIN is not set")
    with Rig() as rig:
        try:
            said = test(rig)
        except BaseException:
            for server in rig.servers:
                sys.stderr.write(server.log())
            raise
    print(f"passed: {said}")
