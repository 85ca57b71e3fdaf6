#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs test programs that leave their stores behind (tests/support/image.h), and has dmstore.py
read each: it must find the good ones good, and the others what the tests say that they are.

    test_images.py PROGRAM...
"""

import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import dmstore


def verdict(path, origin_bytes):
    with open(path, "rb") as file:
        try:
            image = dmstore.read_image(file, origin_bytes or None)
        except dmstore.Refused as refused:
            return "absent" if refused.name == "no-store" else "refused", refused
    return ("good" if image.valid else "invalid"), None


def run(program, folder):
    """Returns: whether it passed."""
    done = subprocess.run([program], env=dict(os.environ, COWSNAP_KEEP_IMAGES=folder),
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace", check=False)
    if done.returncode != 0:
        print(done.stdout[-4000:])
        print("%s: exit %d" % (program, done.returncode))
    return done.returncode == 0


def main():
    failures = 0
    for program in sys.argv[1:]:
        counts = {}
        with tempfile.TemporaryDirectory() as folder:
            failures += not run(program, folder)
            names = os.listdir(folder)
            for name in names:
                _, origin_bytes, kind = name.split(".")
                found, why = verdict(os.path.join(folder, name), int(origin_bytes))
                counts[kind] = counts.get(kind, 0) + 1
                if found != kind:
                    failures += 1
                    print("%s: %s: dmstore says %s: %s" % (program, name, found, why))
        print("%s: %s" % (os.path.basename(program),
                          ", ".join("%d %s" % (counts[k], k) for k in sorted(counts))))
        failures += not counts
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
