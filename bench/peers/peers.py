#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The nbdkit plug-in beside its peers, in one run: the same writes by the same client to each, in
turn, in rounds. run.sh calls this with everything installed and built.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import load
import plot
import report
import servers

MIB = 1 << 20
DEPTHS = (1, 16)
COUNTS = (1, 4, 16)
PARTIAL = ("bare-part", "scattered", "many", "drained")  # a 16th of the volume
TUNE = 64 * MIB
TINY = 4 * MIB  # to see whether it runs: as little as can be measured at all
SUBJECTS = (servers.Cowsnap, servers.CowsnapMemory, servers.Qemu, servers.NbdkitCow)
CHOICES = {
    servers.Qemu: [
        {"aio": aio, "target": target}
        for aio in ("threads", "io_uring")
        for target in ("written", "sparse")
    ],
    servers.NbdkitCow: [{"block": "64K"}, {"block": "4K"}],
}


class Bench:
    """One run: the samples, and how to get one."""

    def __init__(self, options, work):
        self.options = options
        self.work = work
        self.size = options.size
        self.depths = DEPTHS if options.size > TINY else DEPTHS[-1:]
        self.counts = COUNTS if options.size > TINY else COUNTS[:-1]
        self.subjects = SUBJECTS
        if options.size <= TINY:
            self.subjects = (servers.Cowsnap, servers.Qemu)
        self.part = self.size // 16
        self.seed = 1
        self.samples = []

    def say(self, text):
        print(text, flush=True)

    def sample(self, server, **labels):
        """A run of fio, with what is said of it. The seed is the same for all of a phase."""
        size = self.part if labels["phase"] in PARTIAL else None
        cpu_before = server.cpu_s()
        began = time.monotonic()
        result = load.write(server.live, labels["depth"], self.seed, self.work, size)
        result["server_cpu_us"] = (server.cpu_s() - cpu_before) * 1e6 / result["writes"]
        result["wall_s"] = time.monotonic() - began
        self.samples.append({"subject": server.key, **labels, **result})
        self.say(
            f"  {labels['phase']:9} depth {labels['depth']:2}, snapshots {labels['snapshots']:2}, "
            f"{server.key:14} {result['iops']:8.0f} writes/s, mean {result['mean_us']:7.1f} us, "
            f"p99 {result['p99_us']:8.1f} us"
        )
        return self.samples[-1]

    def phase(self, active, number, depth, name, snapshots):
        self.seed += 1
        for server in active:
            self.sample(server, round=number, phase=name, depth=depth, snapshots=snapshots)

    def rates(self, active, number, depth):
        """Bare, first touch, again, after the drop; then blocks here and there."""
        self.phase(active, number, depth, "bare", 0)
        sums = {}
        for server in active:
            sums[server.key] = load.checksum_of_file(server.volume) if number == 0 else None
            server.take(1)
        self.phase(active, number, depth, "first", 1)
        for server in active:
            if number == 0 and load.checksum_of_image(server.image(0)) != sums[server.key]:
                raise servers.Broken(f"{server.key}: the image is not the volume at the take")
        self.phase(active, number, depth, "steady", 1)
        for server in active:
            server.drop()
        self.phase(active, number, depth, "after", 0)
        self.phase(active, number, depth, "bare-part", 0)
        for server in active:
            server.take(1)
        self.phase(active, number, depth, "scattered", 1)
        for server in active:
            server.drop()

    def many(self, active, number, depth, count):
        """First touches under so many snapshots: alone, and while the oldest image is drained."""
        able = [server for server in active if server.most_snapshots >= count]
        self.seed += 1
        for server in able:
            server.take(count)
            self.sample(server, round=number, phase="many", depth=depth, snapshots=count)
            server.drop()
        self.seed += 1
        for server in able:
            server.take(count)
            with load.Drain(server.image(0)) as drain:
                sample = self.sample(
                    server, round=number, phase="drained", depth=depth, snapshots=count
                )
            sample["drained_passes"] = drain.passes
            server.drop()

    def rounds(self, chosen, after_round):
        for number in range(self.options.rounds):
            self.say(f"round {number + 1} of {self.options.rounds}")
            active = []
            try:
                for subject in self.subjects:
                    active.append(subject(self.work, self.size, **chosen.get(subject.key, {})))
                    active[-1].start()
                for depth in self.depths:
                    self.rates(active, number, depth)
                    for count in self.counts:
                        self.many(active, number, depth, count)
            finally:
                for server in active:
                    server.remove()
            after_round(number + 1)

    def tune(self):
        """The peers at their best: each choice is tried twice, and the fastest is kept. What other
        users of the machine do only slows down, so the better of both counts."""
        tried = {}
        self.say("which settings are the peers' best?")
        for number in range(2):
            for subject, choices in CHOICES.items():
                for choice in choices:
                    rates = self.try_choice(subject, choice, number)
                    key = (subject.key, json.dumps(choice))
                    tried[key] = list(map(max, rates, tried.get(key, rates)))
        self.samples.clear()
        rows = [
            {
                "subject": key,
                "choice": json.loads(choice),
                "score": statistics.geometric_mean(rates),
            }
            for (key, choice), rates in tried.items()
        ]
        best = {}
        for row in sorted(rows, key=lambda row: row["score"]):
            best[row["subject"]] = row["choice"]
        return rows, best

    def try_choice(self, subject, choice, number):
        """The rates of both kinds of first touch, at all depths."""
        server = subject(self.work, min(self.size, TUNE), **choice)
        rates = []
        self.say(f" {server.key} {choice}")
        try:
            server.start()
            for depth in self.depths:
                for name in ("first", "scattered"):
                    server.take(1)
                    sample = self.sample(
                        server, round=number, phase=name, depth=depth, snapshots=1
                    )
                    rates.append(sample["iops"])
                    server.drop()
        finally:
            server.remove()
        return rates


def version(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return found.group() if found else "unknown"


def filesystem(path):
    done = subprocess.run(
        ["stat", "--file-system", "--format=%T", path], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def machine(work):
    return {
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "filesystem": filesystem(work),
        "load_at_start": os.getloadavg()[0],
        "qemu": version("qemu-storage-daemon", "--version"),
        "nbdkit": version("nbdkit", "--version"),
        "fio": version("fio", "--version"),
        "nbdcopy": version("nbdcopy", "--version"),
    }


def parse_size(text):
    found = re.fullmatch(r"(\d+)([KMG])", text, re.IGNORECASE)
    if text == "tiny":
        return TINY
    if not found:
        raise argparse.ArgumentTypeError("a size is a number and K, M or G, or tiny")
    size = int(found.group(1)) << {"K": 10, "M": 20, "G": 30}[found.group(2).upper()]
    if size < MIB or size % MIB:
        raise argparse.ArgumentTypeError("a size is at least 1M and a multiple of it")
    return size


def parse_rounds(text):
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError("1 to 1000 rounds")
    return int(text)


def arguments():
    parser = argparse.ArgumentParser(prog="run.sh", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, no tuning of the peers")
    parser.add_argument("--rounds", type=parse_rounds, help="rounds (3; with --quick 1)")
    parser.add_argument("--size", type=parse_size, default=256 * MIB, help="of the volume (256M)")
    parser.add_argument("--work", help="a directory for the volumes (default: on a tmpfs)")
    parser.add_argument("--out", default="docs/bench", help="for the report (docs/bench)")
    parser.add_argument("--plugin", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--report-only", metavar="JSON", help="the report of an earlier run again")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


def work_directory(options):
    """Room for all volumes, stores and targets at once."""
    needed = (len(SUBJECTS) + 4 + max(COUNTS)) * options.size
    places = [options.work] if options.work else ["/dev/shm", "/run/shm", tempfile.gettempdir()]
    for place in places:
        if os.path.isdir(place) and load.free_bytes(place) > needed:
            return tempfile.mkdtemp(prefix="cowsnap-peers.", dir=place)
    sys.exit(
        f"run.sh: none of {', '.join(places)} has {needed // MIB} MiB free; use --size, --work"
    )


def measure(options):
    """Runs all rounds; the report of those that are done is there after each."""
    work = work_directory(options)
    try:
        bench = Bench(options, work)
        about = machine(work)
        tried, chosen = ([], {}) if options.quick else bench.tune()
        result = {
            "program": "cowsnap-peers",
            "quick": options.quick,
            "size_bytes": options.size,
            "part_bytes": bench.part,
            "depths": bench.depths,
            "counts": bench.counts,
            "machine": about,
            "subjects": [
                {
                    "key": subject.key,
                    "title": subject.title,
                    "options": {**subject.options, **chosen.get(subject.key, {})},
                    "most_snapshots": subject.most_snapshots,
                }
                for subject in bench.subjects
            ],
            "tried": tried,
            "samples": bench.samples,
        }

        def after_round(rounds):
            about["load_at_end"] = os.getloadavg()[0]
            result["rounds"] = rounds
            write_report(result, options.out)

        bench.rounds(chosen, after_round)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return result


def write_report(result, out):
    result.update(report.aggregate(result))
    with open(os.path.join(out, "peers.json"), "w", encoding="utf-8") as file:
        json.dump(report.rounded(result), file, indent=1)
        file.write("\n")
    with open(os.path.join(out, "peers.md"), "w", encoding="utf-8") as file:
        file.write(report.markdown(result))
    plot.draw(result, out)


def main():
    options = arguments()
    servers.Cowsnap.plugin = os.path.abspath(options.plugin)
    os.makedirs(options.out, exist_ok=True)
    if options.report_only:
        with open(options.report_only, encoding="utf-8") as file:
            result = json.load(file)
        write_report(result, options.out)
    else:
        result = measure(options)
    print(report.figures_text(result))
    print(f"report: {os.path.join(options.out, 'peers.md')}")


def ended(number, _frame):
    """So that the servers are ended, too."""
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, ended)
    signal.signal(signal.SIGINT, ended)
    try:
        main()
    except (servers.Broken, load.Failed) as failure:
        sys.exit(f"run.sh: {failure}")
