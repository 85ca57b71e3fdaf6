# SPDX-License-Identifier: MIT
"""Bad parameters: nbdkit does not start, says why, and nothing has changed."""

import os

from rig import check, main

SIZE = 1 << 20


def main_test(rig):
    data = os.urandom(SIZE)
    file = "file=" + rig.file("volume", data)
    os.mkdir(rig.path("directory"))
    os.mkfifo(rig.path("fifo"))
    rig.file("empty", b"")
    rig.file("small", b"s" * 65536)
    os.symlink("volume", rig.path("symlink"))
    os.link(rig.path("volume"), rig.path("hardlink"))
    same = "this is the volume itself"
    cases = (
        ("file=PATH is missing",),
        ("No such file", "file=" + rig.path("missing")),
        ("the path is empty", "file="),
        ("file=", "file=" + rig.path("directory")),
        ("not a file or block device", "file=" + rig.path("fifo")),
        ("not a file or block device", "file=" + rig.path("empty")),
        ("unknown parameter 'colour'", file, "colour=blue"),
        ("must be a power of two", file, "chunk-size=5000"),
        ("must be from 512 to", file, "chunk-size=256"),
        ("must be from 512 to", file, "chunk-size=2G"),
        ("must be more than 0", file, "chunk-size=0"),
        ("could not parse", file, "chunk-size=big"),
        ("cannot be negative", file, "chunk-size=-4k"),
        ("must be invalidate, fail or wait", file, "on-full=perhaps"),
        ("must be invalidate, fail or wait", file, "on-full="),
        ("only with on-full=wait", file, "on-full=fail", "on-full-wait=3"),
        ("on-full-wait", file, "on-full=wait", "on-full-wait=soon"),
        ("must be more than 0", file, "store-limit=0"),
        ("store-limit=1024", file, "store-limit=1k"),
        ("store-limit=131072", file, "store=" + rig.path("small"), "store-limit=128k"),
        ("not a file or block device", file, "store=" + rig.path("empty")),
        ("store=", file, "store=" + rig.path("directory")),
        ("No such file", file, "store=" + rig.path("missing/store")),
        ("the path is empty", file, "store="),
        ("store-format=dm wants store=FILE", file, "store-format=dm"),
        ("store-format=dm wants store=FILE", file, "store-format=dm", "store=memory"),
        ("must be transient or dm", file, "store-format=log"),
        ("must be transient or dm", file, "store-format="),
        ("the path is empty", file, "generation-file="),
        ("does not hold a number", file, "generation-file=" + rig.path("small")),
        ("does not hold a number", file, "generation-file=" + rig.path("empty")),
        (same, file, "store=" + rig.path("volume")),
        (same, file, "store=" + rig.path("symlink")),
        (same, file, "store=" + rig.path("hardlink")),
        (same, file, "store=" + rig.path("directory/../volume")),
        ("must be readonly, writable or release", file, "snapshots=yes"),
        ("must be readonly, writable or release", file, "snapshots="),
        ("cannot say what was released", file, "snapshots=release", "store-format=dm",
         "store=" + rig.path("missing")),
        ("only with store-format=dm", file, "handover-file=" + rig.path("missing")),
        ("the path is empty", file, "handover-file="),
        ("must be from 0 to 19", file, "snapshot-nice=20"),
        ("snapshot-nice", file, "snapshot-nice=-1"),
        ("snapshot-nice", file, "snapshot-nice=kind"),
        ("exists and is not a socket", file, "control=" + rig.path("small")),
        ("exists and is not a socket", file, "control=" + rig.path("directory")),
        ("No such file", file, "control=" + rig.path("missing/control")),
        ("longer than the", file, "control=/" + "c" * 200),
        ("the path is empty", file, "control="),
    )
    for wanted, *parameters in cases:
        rig.refused(wanted, *parameters)
    check(rig.read("volume") == data, "the volume was changed")
    check(rig.read("small") == b"s" * 65536, "another file was changed")
    return f"{len(cases)} bad command lines, each with its own reason"


main(main_test)
