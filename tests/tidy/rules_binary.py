# SPDX-License-Identifier: MIT
"""Rules about a built library: what it exports, whether it holds state."""

import re
import subprocess

from rules_code import PROTOTYPE

WRITABLE = re.compile(r"^\S+\s+(.{7})\s+(\.(?:data|bss|tdata|tbss)(?:\.(?!rel\.ro)\S+)?)\s+"
                      r"([0-9a-f]+)\s+(\S.*)$")
# Put there by the compiler's start files.
START_FILES = {"completed.0", "__dso_handle", "__TMC_END__", "__bss_start", "_edata", "_end"}


def output_of(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def exports(tree, library, headers):
    """What a library exports is what its headers declare: a symbol more is a promise nobody wrote
    down, one less is a program that does not link."""
    if not headers:
        return
    declared = {m.group(1) for h in headers for m in PROTOTYPE.finditer(tree.text(h))}
    exported = set()
    for line in output_of("nm", "-D", "--defined-only", library).splitlines():
        kind, name = line.split()[-2:]
        name = name.split("@")[0]
        if kind != "A":
            exported.add(name)
    for name in sorted(declared - exported):
        yield headers[0], 1, "%s is declared, %s does not export it" % (name, library)
    for name in sorted(exported - declared):
        yield headers[0], 1, "%s exports %s, which is not declared" % (library, name)


def state(tree, library, headers):
    """A library without variables of its own can be loaded twice, unloaded, and used by two parts
    of one program that do not know of each other."""
    del tree, headers
    for line in output_of("objdump", "-t", library).splitlines():
        match = WRITABLE.match(line)
        if match and int(match.group(3), 16) > 0 and match.group(4) not in START_FILES:
            yield library, 1, "%s lies in %s" % (match.group(4), match.group(2))


def names(tree, library, headers):
    """What files of the library share begins with cs_, because a static link puts it into the same
    name space as everything of the host's."""
    del tree, headers
    for line in output_of("nm", "-g", "--defined-only", library).splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[1] != "A" and not re.match(r"(cs|cowsnap)_", fields[2]):
            yield library, 1, "%s is neither cs_ nor cowsnap_" % fields[2]


RULES = [exports, state, names]
