# SPDX-License-Identifier: MIT
"""The servers side by side: each serves a file of its own over a Unix socket, and can freeze it.

All of them have the same life: start, take(n) freezes the volume n times at one moment, drop()
gives all of that up, stop. `live` is the URI of the volume, `image(i)` that of a frozen one, 0 the
oldest. Every file is on the same file system, and every byte of it was written before.
"""

import json
import os
import shutil
import socket
import subprocess
import time

import qmp

DEADLINE_S = 60


class Broken(Exception):
    """A server did not do what it should."""


def wait_until(condition, what):
    """Look until it is so. The pause only keeps the processor free."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            raise Broken(f"waited {DEADLINE_S} s in vain: {what}")
        time.sleep(0.005)


def write_file(path, size, byte):
    """A file without holes, so that nobody pays for new pages of it."""
    piece = bytes([byte]) * (1 << 20)
    with open(path, "wb") as file:
        for _ in range(size // len(piece)):
            file.write(piece)


class Server:
    """A process that serves `volume` in a directory of its own."""

    most_snapshots = 16
    options = {}

    def __init__(self, work, size, **options):
        self.directory = os.path.join(work, self.key)
        self.size = size
        self.options = {**self.options, **options}
        self.process = None
        self.log = None
        os.makedirs(self.directory)
        self.volume = self.path("volume")
        write_file(self.volume, size, 0x55)

    def path(self, name):
        return os.path.join(self.directory, name)

    def uri(self, export, name="nbd"):
        return f"nbd+unix:///{export}?socket={self.path(name)}"

    def run(self, *command, environment=None):
        """Starts a server; it is there when its file with its process number is."""
        pid = self.path("pid")
        if os.path.exists(pid):
            os.remove(pid)
        with open(self.path("log"), "ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environment or {})},
            )
        wait_until(
            lambda: process.poll() is not None or os.path.exists(pid), f"{self.key} to start"
        )
        if process.poll() is not None:
            with open(self.path("log"), encoding="utf-8", errors="replace") as log:
                raise Broken(f"{self.key} did not start: {log.read()[-2000:]}")
        return process

    def cpu_s(self):
        """Processor time that the server has used."""
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as stat:
            fields = stat.read().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self, process):
        process.terminate()
        try:
            process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise Broken(f"{self.key} did not end") from None

    def stop(self):
        if self.process is not None:
            process, self.process = self.process, None
            self.end(process)

    def remove(self):
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


class Cowsnap(Server):
    """The plug-in of this library in nbdkit, its store a file beside the volume."""

    key = "cowsnap"
    title = "cowsnap plug-in, store on the same file system"
    plugin = None
    store = "store"

    def start(self):
        if self.store != "memory":
            write_file(self.path("store"), self.size, 0)
        self.process = self.run(
            *("nbdkit", "--foreground", "--unix", self.path("nbd"), "--pidfile", self.path("pid")),
            *(self.plugin, f"file={self.volume}", f"control={self.path('control')}"),
            *(f"store={self.path('store') if self.store != 'memory' else 'memory'}",),
            *("chunk-size=4K", f"store-limit={self.size}"),
        )
        self.live = self.uri("")
        self.taken = 0

    def control(self, line):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(DEADLINE_S)
            connection.connect(self.path("control"))
            connection.sendall(line.encode() + b"\n")
            answer = json.loads(connection.makefile().readline())
        if not answer["ok"]:
            raise Broken(f"{self.key}: {line}: {answer}")
        return answer

    def take(self, count):
        for i in range(count):
            self.control(f"take s{i}")
        self.taken = count

    def image(self, i):
        return self.uri(f"@s{i}")

    def drop(self):
        for i in range(self.taken):
            self.control(f"drop s{i}")
        self.taken = 0
        wait_until(
            lambda: self.control("status")["store"]["used_bytes"] == 0, "the store to be empty"
        )


class CowsnapMemory(Cowsnap):
    """The same with the store in memory: its pages are new at the first touch of all."""

    key = "cowsnap-memory"
    title = "cowsnap plug-in, store in memory"
    store = "memory"


class Qemu(Server):
    """qemu-storage-daemon: for each snapshot a copy-before-write filter under the export, and a
    snapshot-access node on it. Taken and dropped while it serves, as a backup tool does it."""

    key = "qemu"
    title = "QEMU copy-before-write"
    options = {"aio": "threads", "target": "written"}

    def file_node(self, name, path):
        """A raw node on a file. Its cache is the page cache, as for all others."""
        self.command(
            "blockdev-add",
            driver="raw",
            node_name=name,
            file={"driver": "file", "filename": path, "aio": self.options["aio"]},
        )

    def start(self):
        self.process = self.run(
            *("qemu-storage-daemon", "--pidfile", self.path("pid")),
            *("--chardev", f"socket,id=c,path={self.path('qmp')},server=on,wait=off"),
            *("--monitor", "chardev=c"),
            *("--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')},max-connections=0"),
        )
        self.command = qmp.Qmp(self.path("qmp"))
        self.file_node("source", self.volume)
        self.command("blockdev-add", driver="raw", node_name="top", file="source")
        self.command(
            "block-export-add", type="nbd", id="live", node_name="top", name="disk", writable=True
        )
        self.live = self.uri("disk")
        self.taken = 0

    def target(self, i):
        path = self.path(f"target{i}")
        if self.options["target"] == "written":
            write_file(path, self.size, 0)
        else:
            with open(path, "wb") as file:
                file.truncate(self.size)
        return path

    def put_below_export(self, node):
        top = {"driver": "raw", "node-name": "top", "file": node}
        self.command("blockdev-reopen", options=[top])

    def take(self, count):
        """One filter on the other. Each must be below the export before the next one is made: a
        filter that somebody uses lets nobody else write below it."""
        for i in range(count):
            self.file_node(f"target{i}", self.target(i))
            self.command(
                "blockdev-add",
                driver="copy-before-write",
                node_name=f"filter{i}",
                file=self.below(i),
                target=f"target{i}",
            )
            self.put_below_export(f"filter{i}")
            self.command(
                "blockdev-add", driver="snapshot-access", node_name=f"access{i}", file=f"filter{i}"
            )
            self.command(
                "block-export-add",
                type="nbd",
                id=f"export{i}",
                node_name=f"access{i}",
                name=f"s{i}",
            )
        self.taken = count

    @staticmethod
    def below(i):
        return f"filter{i - 1}" if i else "source"

    def image(self, i):
        return self.uri(f"s{i}")

    def drop(self):
        for i in reversed(range(self.taken)):
            self.command("block-export-del", id=f"export{i}", mode="hard")
            self.command.wait_for("BLOCK_EXPORT_DELETED")
            self.command("blockdev-del", node_name=f"access{i}")
            self.put_below_export(self.below(i))
            self.command("blockdev-del", node_name=f"filter{i}")
            self.command("blockdev-del", node_name=f"target{i}")
            os.remove(self.path(f"target{i}"))
        self.taken = 0

    def stop(self):
        if self.process is not None:
            self.command.close()
        super().stop()


class NbdkitCow(Server):
    """nbdkit's file plug-in under its cow filter: writes go to an overlay, the file stays as it is.
    That is a copy-on-write overlay: its take and its drop are a restart of the server, and a
    drop gives up what was written, not the frozen image. Compared for the way of a write."""

    key = "nbdkit-cow"
    title = "nbdkit cow filter on its file plug-in"
    most_snapshots = 1
    options = {"block": "64K"}

    def serve(self, name, *arguments):
        if os.path.exists(self.path(name)):
            os.remove(self.path(name))  # nbdkit leaves its socket behind
        return self.run(
            *("nbdkit", "--foreground", "--unix", self.path(name), "--pidfile", self.path("pid")),
            *arguments,
            environment={"TMPDIR": self.directory},
        )

    def start(self):
        self.frozen = None
        self.process = self.serve("nbd", "file", self.volume)
        self.live = self.uri("")

    def take(self, count):
        super().stop()
        block = f"cow-block-size={self.options['block']}"
        self.process = self.serve("nbd", "--filter=cow", "file", self.volume, block)
        self.frozen = self.serve("frozen", "--readonly", "file", self.volume)

    def image(self, i):
        return self.uri("", "frozen")

    def drop(self):
        self.stop()
        self.start()

    def stop(self):
        if self.frozen is not None:
            frozen, self.frozen = self.frozen, None
            self.end(frozen)
        super().stop()
