#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Instructions per operation, counted by callgrind, against tests/budget/budgets.txt.

    check.py PROGRAM [--write]

Wall times differ from machine to machine and hour to hour; instruction counts do not. A count more
than 10 % above what the file holds fails; whoever makes an operation dearer on purpose runs this
with --write and says in the commit why. Exit status 77 if there is no valgrind.
"""

import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile

OPERATIONS = 10000
MARGIN = 1.10
FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "budgets.txt")
SKIPPED = 77


def read_budgets():
    with open(FILE, encoding="utf-8") as f:
        words = [line.split() for line in f if line.strip() and not line.startswith("#")]
    return {name: float(count) for name, count in words}


def write_budgets(measured):
    with open(FILE, encoding="utf-8") as f:
        head = [line for line in f if line.startswith("#")]
    with open(FILE, "w", encoding="utf-8") as f:
        f.writelines(head)
        for name, count in measured.items():
            f.write("%-20s %8.1f\n" % (name, count))


def measure(program):
    """Returns {name: instructions per operation}, in the order of the run."""
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", "--callgrind-out-file=%s/out" % folder, program],
            capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit("budget: exit status %d\n%s" % (done.returncode, done.stderr))
        dumps = glob.glob(folder + "/out.*")
        for path in sorted(dumps, key=lambda p: int(p.rsplit(".", 1)[1])):
            with open(path, encoding="utf-8") as f:
                text = f.read()
            trigger = re.search(r"^desc: Trigger: Client Request: (\w+)", text, re.M)
            total = re.search(r"^(?:summary|totals): (\d+)", text, re.M)
            if trigger and total:
                measured[trigger.group(1)] = int(total.group(1)) / OPERATIONS
    return measured


def main():
    program = sys.argv[1]
    if not shutil.which("valgrind"):
        print("budget: skipped, there is no valgrind")
        return SKIPPED
    measured = measure(program)
    if "--write" in sys.argv[2:]:
        write_budgets(measured)
    budgets = read_budgets()
    failed = 0
    for name in sorted(set(budgets) | set(measured)):
        if name not in measured or name not in budgets:
            print("%-20s is in %s only" % (name, "budgets.txt" if name in budgets else "the run"))
            failed += 1
            continue
        ratio = measured[name] / budgets[name]
        verdict = "over budget" if ratio > MARGIN else "lower it" if ratio < 1 / MARGIN else "good"
        failed += ratio > MARGIN
        print("%-20s %8.1f of %8.1f instructions  %+5.1f %%  %s"
              % (name, measured[name], budgets[name], 100 * ratio - 100, verdict))
    print("budget: %d measured, %d wrong" % (len(measured), failed))
    return 1 if failed or not measured else 0


if __name__ == "__main__":
    sys.exit(main())
