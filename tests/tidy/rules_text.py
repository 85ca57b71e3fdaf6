# SPDX-License-Identifier: MIT
"""Rules about files as text: layout, sizes, words, layers, dead files."""

import fnmatch
import os
import re
import subprocess

from tree import line_of

LINES_PER_FILE = 800
LINES_PER_FUNCTION = 60
COLUMNS = 100
TAB = 8
# Put together here, so that this file passes its own rule.
UNFINISHED = ["TO" + "DO", "FIX" + "ME", "X" * 3, "for " + "now", "not " + "implemented"]


def layout(tree):
    """Layout is clang-format's, so that nobody discusses it and a diff shows only meaning."""
    paths = tree.c_files()
    if not paths:
        return
    done = subprocess.run(["clang-format", "--dry-run", "-Werror", *paths],
                          cwd=tree.root, capture_output=True, text=True, check=False)
    seen = set()
    for match in re.finditer(r"^(.*?):(\d+):\d+: error: code should be", done.stderr, re.M):
        if match.group(1) not in seen:
            seen.add(match.group(1))
            yield match.group(1), int(match.group(2)), "run clang-format -i on it"
    if done.returncode != 0 and not seen:
        yield ".clang-format", 1, done.stderr.strip()[:200]


def columns(tree):
    """Lines end at column 100, so that two files fit beside each other."""
    for path in tree.paths:
        if path.endswith((".md", ".json")) or path == "LICENSE":
            continue
        for number, line in enumerate(tree.lines(path), 1):
            if len(line.expandtabs(TAB)) > COLUMNS:
                yield path, number, "%d columns" % len(line.expandtabs(TAB))


def file_size(tree):
    """A file of more than 800 lines holds more than one idea."""
    for path in tree.paths:
        count = len(tree.lines(path))
        if path.endswith((".c", ".h", ".py", ".sh")) and count > LINES_PER_FILE:
            yield path, count, "%d lines, at most %d" % (count, LINES_PER_FILE)


def function_size(tree):
    """A function of more than 60 lines does not fit on a screen, nor in a head."""
    for path, name, start, end in tree.functions(tree.c_files()):
        if end - start + 1 > LINES_PER_FUNCTION:
            yield path, start, "%s() has %d lines" % (name, end - start + 1)


def licence_line(tree):
    """Each file says its licence, because files get copied one by one."""
    for path in tree.paths:
        if path.endswith((".md", ".json", ".in")) or path == "LICENSE":
            continue
        if not any("SPDX-License-Identifier: MIT" in l for l in tree.lines(path)[:3]):
            yield path, 1, "no SPDX line among the first three"


def unfinished(tree):
    """What is not done is an issue, with somebody who answers for it, not a word in a file."""
    pattern = re.compile("|".join(r"\b%s\b" % re.escape(w) for w in UNFINISHED))
    for path in tree.paths:
        for match in pattern.finditer(tree.text(path)):
            yield path, line_of(tree.text(path), match.start()), match.group(0)


def read_layers(tree):
    """Returns (rungs, apart): lists of names per rung from low to high, names apart from them."""
    rungs, apart = [], []
    for line in tree.lines("lib/LAYERS"):
        words = line.split("#")[0].split()
        if words and words[0] == "-":
            apart.extend(words[1:])
        elif words:
            rungs.append(words[1:])
    return rungs, apart


def place(rungs, apart, stem):
    """Returns (rung number or None if apart, the name that stands for the file), or None."""
    for name in apart:
        if fnmatch.fnmatch(stem, name):
            return None, name
    for number, names in enumerate(rungs):
        for name in names:
            if fnmatch.fnmatch(stem, name):
                return number, name
    return None


def layers(tree):
    """A file includes only what is below it (lib/LAYERS), so that each level can be understood, and
    tested, without the ones above."""
    if "lib/LAYERS" not in tree.paths:
        return
    rungs, apart = read_layers(tree)
    files = [p for p in tree.c_files("lib") if p.count("/") == 1]
    for path in files:
        own = place(rungs, apart, os.path.splitext(os.path.basename(path))[0])
        if own is None:
            yield path, 1, "not listed in lib/LAYERS"
            continue
        for number, line in enumerate(tree.lines(path), 1):
            match = re.match(r'\s*#\s*include\s+"(.*)"', line)
            if not match:
                continue
            stem = os.path.splitext(match.group(1))[0]
            other = place(rungs, apart, stem)
            if "lib/" + match.group(1) not in tree.paths:
                yield path, number, '"%s" is not a header of lib/' % match.group(1)
            elif other is None or other == own:
                continue
            elif own[0] is None or other[0] is None or other[0] >= own[0]:
                yield path, number, "may not see %s: it is not below" % match.group(1)


def dead_files(tree):
    """A source that no CMake file names is neither built nor tested, and looks as if it were."""
    lists = {}
    for path in tree.paths:
        if os.path.basename(path) == "CMakeLists.txt" or path.endswith(".cmake"):
            folder = os.path.dirname(path)
            lists[folder] = lists.get(folder, "") + tree.text(path)
    for path in tree.c_files("lib", "tests", "bench", "examples"):
        if not path.endswith(".c"):
            continue
        folder = os.path.dirname(path)
        named = False
        while True:
            name = re.escape(os.path.relpath(path, folder or "."))
            if re.search(r"(?<!\w)%s(?!\w)" % name, lists.get(folder, "")):
                named = True
            if not folder:
                break
            folder = os.path.dirname(folder)
        if not named:
            yield path, 1, "no CMake file here or above names it"


RULES = [layout, columns, file_size, function_size, licence_line, unfinished, layers, dead_files]
