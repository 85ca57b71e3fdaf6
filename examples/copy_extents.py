#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Copies some extents of an NBD export to a file, in their places.

    copy_extents.py URI IMAGE <LIST

LIST has an offset and a length in bytes on each line, as `cowsnap changes` prints them. The file
gets the length of the export. Prints how many bytes were copied.
"""

import sys

import nbd

REQUEST = 1 << 20


def extents(lines):
    for line in lines:
        if line.strip() and not line.startswith("#"):
            offset, length = line.split()
            yield int(offset), int(length)


def pieces(offset, length):
    """An extent as requests that a server takes."""
    for at in range(offset, offset + length, REQUEST):
        yield at, min(REQUEST, offset + length - at)


def copy(uri, image, lines):
    source = nbd.NBD()
    source.connect_uri(uri)
    copied = 0
    with open(image, "r+b") as file:
        file.truncate(source.get_size())
        for extent in extents(lines):
            for offset, length in pieces(*extent):
                file.seek(offset)
                file.write(source.pread(length, offset))
                copied += length
    source.shutdown()
    return copied


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(copy(sys.argv[1], sys.argv[2], sys.stdin))
