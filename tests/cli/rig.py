# SPDX-License-Identifier: MIT
"""What the tests of the tool share: the tool itself (COWSNAP_TOOL), a directory that goes away, and
images made and read by the second implementation of the format, tests/interop/dmstore.py."""

import fcntl
import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "interop"))

import dmstore

TOOL = os.environ.get("COWSNAP_TOOL", "")
SANITIZED = bool(os.environ.get("COWSNAP_SANITIZED"))
DEADLINE_S = 60
GOOD, REFUSED, WRONG_CALL, IO_ERROR, INVALID = range(5)


def seeded():
    """A random generator whose seed is printed; COWSNAP_SEED=N repeats a run."""
    seed = int(os.environ.get("COWSNAP_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"seed {seed} (replay: COWSNAP_SEED={seed})", file=sys.stderr, flush=True)
    return random.Random(seed)


def wait_until(condition, what):
    """Look until it is so. The pause only keeps the processor free."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {DEADLINE_S} s in vain: {what}")
        time.sleep(0.005)


def lock(file, kind):
    """A lock of the whole file, as another process that has the store open holds it."""
    fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi", kind, os.SEEK_SET, 0, 0, 0))


def second_opinion(data, **options):
    """What dmstore.py says of an image: (name of the fault or None, why, Image or None). Of an
    image that is refused, the records up to the bad one are there."""
    file = io.BytesIO(data)
    image = None
    try:
        image = dmstore.read_header(file, len(data), dmstore.SECTOR)
        if image.valid:
            size = options.get("origin_size")
            chunks = None if size is None else -(-size // image.layout.chunk_size)
            dmstore.read_list(file, image, dmstore.Checker(image.layout, chunks))
            image.stale_slots = dmstore.count_stale(file, image)
    except dmstore.Refused as refused:
        return refused.name, str(refused), image
    return None, "", image


def fill_pipe():
    """A pipe that takes no byte more: (read end, write end). Who writes to it stops there."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for size in (65536, 1):
        try:
            while True:
                os.write(writer, b"." * size)
        except BlockingIOError:
            pass
    os.set_blocking(writer, True)
    return reader, writer


class Case(unittest.TestCase):
    """A test in a directory of its own."""

    maxDiff = 2000

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="cowsnap-cli-")
        self.addCleanup(shutil.rmtree, self.directory)

    def path(self, name):
        return os.path.join(self.directory, name)

    def file(self, name, data):
        with open(self.path(name), "wb") as file:
            file.write(data)
        return self.path(name)

    def read(self, name):
        with open(self.path(name), "rb") as file:
            return file.read()

    def image(self, name, **spec):
        """A store made by the second implementation."""
        with open(self.path(name), "w+b") as file:
            dmstore.write_image(spec, file)
        return self.path(name)

    def patch(self, name, offset, data):
        with open(self.path(name), "r+b") as file:
            file.seek(offset)
            file.write(data)

    def run_tool(self, *arguments, **options):
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        return subprocess.run([TOOL, *map(str, arguments)], cwd=self.directory, text=True,
                              timeout=DEADLINE_S, check=False, **options)

    def tool(self, *arguments, status=GOOD, says="", **options):
        """Runs the tool; checks its exit status and that standard error has these words, or nothing
        if there are none. Returns standard output."""
        done = self.run_tool(*arguments, **options)
        self.assertEqual(done.returncode, status, f"{arguments}: {done.stderr}")
        if says:
            self.assertIn(says, done.stderr)
        else:
            self.assertEqual(done.stderr, "")
        return done.stdout

    def run_script(self, script):
        """A shell script in a mount namespace of its own, with the tool as $0; 99: cannot."""
        command = ["unshare", "--mount", "sh", "-c", script, TOOL]
        try:
            done = subprocess.run(command, cwd=self.directory, text=True, timeout=DEADLINE_S,
                                  check=False, capture_output=True)
        except FileNotFoundError:
            self.skipTest("no unshare")
        if done.returncode == 99 or "unshare" in done.stderr:
            self.skipTest("no file system can be mounted here")
        return done

    def loop_device(self, name):
        """A block device on this file."""
        try:
            done = subprocess.run(["losetup", "--find", "--show", self.path(name)], text=True,
                                  capture_output=True, check=False)
        except FileNotFoundError:
            self.skipTest("no losetup")
        device = done.stdout.strip()
        if done.returncode or not os.path.exists(device):
            self.skipTest("no loop device to be had")
        self.addCleanup(subprocess.run, ["losetup", "--detach", device], check=True)
        return device

    def json(self, *arguments, **options):
        return json.loads(self.tool(*arguments, "--json", **options))

    def names(self):
        return sorted(os.listdir(self.directory))


def main():
    if not TOOL:
        sys.exit("COWSNAP_TOOL is not set")
    unittest.main()
