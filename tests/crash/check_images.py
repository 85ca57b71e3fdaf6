#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Holds the second implementation of the format against what the library found after power cuts.

    check_images.py [--least N] PROGRAM...

Runs each test program with COWSNAP_CRASH_IMAGES set to a directory of its own, then reads every
image that was written there with tests/interop/dmstore.py and compares what it says with the
library: good, how many records and whether there is a stale tail behind them, invalid, no store, or
why it is refused.

Exit: 0 if they agree, on at least N images, with good, invalid and stale ones and ones without a
store among them.
"""

import argparse
import collections
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "interop"))
import dmstore  # noqa: E402

KINDS = ("good", "invalid", "no-store", "with a stale tail")


def second_opinion(path, origin_size):
    """Returns (verdict, records, stale tail or not) in the words of the index."""
    with open(path, "rb") as file:
        try:
            image = dmstore.read_image(file, origin_size)
        except dmstore.Refused as refused:
            return refused.name, 0, False
    if not image.valid:
        return "invalid", 0, False
    return "good", len(image.records), image.stale_slots > 0


def run(program, directory):
    environment = dict(os.environ, COWSNAP_CRASH_IMAGES=directory)
    done = subprocess.run(program.split(), env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit("%s failed:\n%s" % (program, done.stdout))


def compare(directory, seen):
    """Returns: how many images they do not agree on."""
    wrong = 0
    with open(os.path.join(directory, "index"), encoding="ascii") as index:
        lines = index.read().splitlines()
    for line in lines:
        name, verdict, records, stale, origin_size = line.split()
        first = (verdict, int(records), stale == "1")
        second = second_opinion(os.path.join(directory, name), int(origin_size))
        seen[verdict] += 1
        seen["with a stale tail"] += first[2]
        if first != second:
            wrong += 1
            print("%s: the library says %s, %d records, stale tail: %s; dmstore.py says %s, %d, %s"
                  % ((name,) + first + second))
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--least", type=int, default=1, metavar="N")
    parser.add_argument("programs", nargs="+", metavar="PROGRAM")
    args = parser.parse_args()
    seen, wrong = collections.Counter(), 0
    for program in args.programs:
        with tempfile.TemporaryDirectory(prefix="cowsnap-crash-") as directory:
            run(program, directory)
            wrong += compare(directory, seen)
    total = sum(seen[verdict] for verdict in seen if verdict != "with a stale tail")
    print("%d images: %s" % (total, ", ".join("%d %s" % (seen[v], v) for v in sorted(seen))))
    if wrong:
        return "they do not agree on %d images" % wrong
    if total < args.least or not all(seen[kind] for kind in KINDS):
        return "too few images"
    return 0


if __name__ == "__main__":
    sys.exit(main())
