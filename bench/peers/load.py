# SPDX-License-Identifier: MIT
"""The same load for every server: fio's writes, and a reader that drains a frozen image."""

import hashlib
import json
import os
import subprocess
import threading

BLOCK = 4096
PERCENTILES = (50, 90, 99, 99.9)


class Failed(Exception):
    """A client did not do what it should."""


def write(uri, depth, seed, work, size=None):
    """Random writes of 4 KiB, each block at most once; all of them, or `size` bytes. Returns what
    is to be kept of fio's report."""
    command = [
        *("fio", "--name=writes", "--thread", "--ioengine=nbd", f"--uri={uri}"),
        *("--rw=randwrite", f"--bs={BLOCK}", f"--iodepth={depth}", f"--randseed={seed}"),
        *("--lat_percentiles=1", "--percentile_list=" + ":".join(map(str, PERCENTILES))),
        "--output-format=json",
    ]
    if size is not None:
        command.append(f"--io_size={size}")
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, cwd=work
    )
    if done.returncode != 0:
        output = done.stdout[-1000:] + done.stderr[-1000:]
        raise Failed(f"fio ended with {done.returncode}: {output}")
    # With threads, fio puts a line before its JSON.
    job = json.loads(done.stdout[done.stdout.index("{\n") :])["jobs"][0]
    if job["error"]:
        raise Failed(f"fio met error {job['error']}")
    latency = job["write"]["lat_ns"]
    return {
        "writes": job["write"]["total_ios"],
        "iops": job["write"]["iops"],
        "mean_us": latency["mean"] / 1000,
        **{f"p{p:g}_us": latency["percentile"][f"{p:.6f}"] / 1000 for p in PERCENTILES},
    }


class Drain:
    """Reads an image from its beginning to its end, again and again, until the block is left. The
    reader is never killed in the middle: some servers do not survive that."""

    def __init__(self, uri):
        self.command = ["nbdcopy", uri, "null:"]
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.error = None
        self.passes = 0

    def run(self):
        while not self.stopping.is_set() and self.error is None:
            done = subprocess.run(
                self.command, capture_output=True, text=True, timeout=600, check=False
            )
            if done.returncode != 0:
                self.error = f"nbdcopy ended with {done.returncode}: {done.stderr[-1000:]}"
            self.passes += 1

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.stopping.set()
        self.thread.join()
        if self.error is not None:
            raise Failed(self.error)


def checksum_of_image(uri):
    """SHA-256 of all that an export holds."""
    with subprocess.Popen(["nbdcopy", uri, "-"], stdout=subprocess.PIPE) as reader:
        digest = hashlib.sha256()
        while piece := reader.stdout.read(1 << 20):
            digest.update(piece)
    if reader.returncode != 0:
        raise Failed(f"nbdcopy of {uri} ended with {reader.returncode}")
    return digest.hexdigest()


def checksum_of_file(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def free_bytes(path):
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize
