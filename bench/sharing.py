#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Which cache lines do two threads share, of which at least one of them writes?

usage: sharing.py PATH/TO/cowsnap-bench-sharing

Runs the program under valgrind's lackey, which tells of each load and store, and has valgrind tell
which thread is running. Between the marks of a phase, each line of 64 bytes is noted with who wrote
and who read it. A line that one thread writes and the other one writes or reads is shared; those on
stacks cannot be. Each is printed with the functions that touched it. Exit status: 0 if no line is
shared in the phases named begin and end, 1 if one is, 2 if it could not be measured.
"""

import collections
import os
import re
import subprocess
import sys
import tempfile

LINE = 64
SCHED = re.compile(rb"SCHED\[(\d+)\]:\s+acquired lock")


class Program:
    """What the program says of itself before it begins."""

    def __init__(self, text):
        self.phases, self.maps = [], []
        for line in text.splitlines():
            words = line.split(None, 2)
            if words[0] == "marks":
                self.marks, self.mark_bytes = int(words[1], 16), int(words[2])
            elif words[0] == "phase":
                self.phases.append(words[2])
            elif words[0] == "map":
                m = re.match(r"map (\w+)-(\w+) \S+ (\w+) \S+ \S+\s+(/\S+)", line)
                if m:
                    self.maps.append((int(m[1], 16), int(m[2], 16), int(m[3], 16), m[4]))

    def place(self, address):
        """The file and the address in it."""
        for start, end, offset, path in self.maps:
            if start <= address < end:
                return path, address - start + offset
        return None, address


def names_of(program, addresses):
    """Functions of code addresses."""
    by_file = collections.defaultdict(set)
    names = {}
    for address in addresses:
        path, at = program.place(address)
        if path:
            by_file[path].add((at, address))
    for path, places in by_file.items():
        places = sorted(places)
        out = subprocess.run(["addr2line", "-f", "-e", path] + [hex(at) for at, _ in places],
                             capture_output=True, text=True, check=False).stdout.split("\n")
        for i, (_, address) in enumerate(places):
            name = out[2 * i] if 2 * i < len(out) else "??"
            names[address] = name if name != "??" else os.path.basename(path)
    return names


class Watch:
    """Lines touched between the marks, by phase."""

    def __init__(self, program):
        self.program = program
        self.phase = {}  # of each thread
        # phase -> line -> thread -> [loads, stores, code]
        self.lines = [collections.defaultdict(dict) for _ in program.phases]

    def mark(self, thread, value):
        self.phase[thread] = (value - 1) // 2 if value % 2 else None

    def touch(self, thread, code, address, size, stores):
        phase = self.phase.get(thread)
        if phase is None:
            return
        for line in range(address // LINE, (address + size - 1) // LINE + 1):
            seen = self.lines[phase][line].setdefault(thread, [0, 0, set()])
            seen[stores] += 1
            seen[2].add(code)


def watch(binary, log_path, out_path):
    with open(out_path, "w", encoding="ascii") as out:
        valgrind = subprocess.Popen(
            ["valgrind", "--tool=lackey", "--trace-mem=yes", "--basic-counts=no",
             "--trace-sched=yes", "--log-file=" + log_path, binary], stdout=out)
    watched, thread, code = None, 1, 0
    marks = {}
    with open(log_path, "rb") as log:
        for text in log:
            kind = text[:3]
            if kind == b"I  ":
                code = int(text[3:text.index(b",")], 16)
            elif kind in (b" S ", b" M ", b" L "):
                comma = text.index(b",")
                address = int(text[3:comma], 16)
                if watched is None:
                    with open(out_path, encoding="utf-8") as out:
                        said = out.read()
                    if "\nmap " not in said and "phase" not in said:
                        continue
                    program = Program(said)
                    if not program.phases:
                        continue
                    watched = Watch(program)
                offset = address - watched.program.marks
                if kind == b" S " and 0 <= offset < 2 * watched.program.mark_bytes and \
                        offset % watched.program.mark_bytes == 0:
                    # The n-th store of a thread to its mark is n.
                    marks[offset] = marks.get(offset, 0) + 1
                    watched.mark(thread, marks[offset])
                    continue
                watched.touch(thread, code, address, int(text[comma + 1:]), kind != b" L ")
            else:
                m = SCHED.search(text)
                if m:
                    thread = int(m[1])
    if valgrind.wait() or watched is None:
        sys.exit(2)
    # Said again when all is loaded.
    with open(out_path, encoding="utf-8") as out:
        watched.program = Program(out.read())
    return watched


def report(watched):
    """Returns: is a line shared that must not be?"""
    bad = False
    for phase, name in enumerate(watched.program.phases):
        lines = watched.lines[phase]
        shared = {line: who for line, who in lines.items()
                  if len(who) > 1 and any(seen[1] for seen in who.values())}
        threads = {t for who in lines.values() for t in who}
        if len(threads) != 2:
            print(f"{name}: {len(threads)} threads were seen, not 2")
            sys.exit(2)
        written = {t: sum(1 for who in lines.values() if t in who and who[t][1]) for t in threads}
        print(f"{name}: lines written by each thread: "
              f"{', '.join(str(n) for n in written.values())}; shared: {len(shared)}")
        code = {at for who in shared.values() for seen in who.values() for at in seen[2]}
        names = names_of(watched.program, code)
        for line, who in sorted(shared.items()):
            counts = "; ".join(f"thread {t}: {seen[0]} loads, {seen[1]} stores"
                               for t, seen in sorted(who.items()))
            functions = sorted({names.get(at, "?") for seen in who.values() for at in seen[2]})
            print(f"    {line * LINE:#x}: {counts}: {', '.join(functions)}")
        bad = bad or (shared and name.startswith("begin and end"))
    return bad


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        log = os.path.join(folder, "log")
        os.mkfifo(log)
        watched = watch(sys.argv[1], log, os.path.join(folder, "out"))
    sys.exit(1 if report(watched) else 0)


if __name__ == "__main__":
    main()
