# SPDX-License-Identifier: MIT
"""Rules about what C code says: header fields, banned calls, ordering comments, headings."""

import os
import re

from rules_text import place, read_layers
from tree import line_of

PROTOTYPE = re.compile(r"^COWSNAP_API\b[^;]*?\b(cowsnap_\w+)\s*\([^;]*;", re.M | re.S)
COMMENT_BEFORE = re.compile(r"/\*(?:(?!\*/).)*\*/\s*\Z", re.S)
FIELDS = ("Returns:", "Context:", "Lifetime:")

CALL = r"(?<![\w.>])(?:%s)\s*\("
BANS = [
    ("malloc|calloc|realloc|reallocarray|free|posix_memalign|aligned_alloc|strdup|strndup|asprintf"
     "|vasprintf|mmap|munmap|madvise",
     "memory comes from the allocator table, through lib/alloc.c", ("lib/alloc.c",)),
    ("printf|fprintf|vprintf|vfprintf|puts|fputs|putchar|perror|syslog|dprintf",
     "a library prints nothing; say it to the log", ()),
    ("abort|exit|_exit|_Exit|quick_exit|raise|kill|signal|sigaction",
     "a library does not end its host or take its signals", ()),
    ("pthread_create|thrd_create|fork", "the library starts no thread but workers, and no process",
     ("lib/workers.c",)),
    ("pthread_key_create|pthread_setspecific|tss_create",
     "thread-local state outlives a dlclose", ()),
    ("strcpy|strcat|sprintf|vsprintf|gets|alloca|strtok", "no bound on what it writes", ()),
    ("sleep|usleep|nanosleep|sched_yield", "waiting is a condition, not a duration", ()),
    ("synchronize_rcu", "it would wait for readers on the host's thread", ()),
    ("atomic_thread_fence|atomic_signal_fence|__sync_synchronize",
     "ThreadSanitizer does not see fences; use cs_full_fence()", ("lib/sync.h",)),
]
BANNED_WORDS = [
    (r"\b(?:_Thread_local|__thread|thread_local)\b",
     "thread-local state breaks dlopen and dlclose"),
    (r"\btypedef\s+(?:struct|union|enum)\b", "say struct where it is one"),
    (r"(?<![\w.>])errno\s*=[^=]", "errors are returned, errno is the host's"),
    (r"\breturn\s+-1\s*;", "an error has a name"),
    (r"\bvolatile\b", "it orders nothing between threads; use atomics"),
    (r"\bpthread_mutex_(?:lock|unlock|trylock)\b", "the analysis follows cs_mutex only"),
]
BANNED_WORDS_EXEMPT = {
    r"\bpthread_mutex_(?:lock|unlock|trylock)\b": ("lib/sync.h",),
    # It reads what the kernel writes into the thread's own rseq area.
    r"\bvolatile\b": ("lib/cpu.h",),
}

ORDERED = re.compile(
    r"\bmemory_order_(?:acquire|release|acq_rel|seq_cst|consume)\b"
    r"|\batomic_(?:load|store|exchange|fetch_(?:add|sub|or|and|xor)"
    r"|compare_exchange_(?:strong|weak)|flag_(?:test_and_set|clear))\s*\("
    r"|\bcs_full_fence\s*\("
    r"|\b__atomic_\w+\s*\(")
# The rest of the sentence: "pairs with the acquire in cs_map_find and with map_grow".
PARTNER = re.compile(r"\bpairs? with ([^.;:]{1,160})", re.I)
PAIR_DISTANCE = 5
# The primitives themselves: those who use them name the partner.
ORDERED_EXEMPT = ("lib/sync.h",)

HEADINGS = ("Invariants:", "Locking:", "Failure:")
STATEFUL = re.compile(r"\bcs_mutex_lock\b|\bmemory_order_(?:acquire|release|acq_rel|seq_cst)\b")


def header_fields(tree):
    """A prototype says what it returns, where it may be called and how long things live, because
    the header is the specification."""
    for path in tree.public_headers():
        text = tree.text(path)
        covered_to = -1
        comment = ""
        for match in PROTOTYPE.finditer(text):
            between = text[covered_to:match.start()] if covered_to >= 0 else None
            if between is None or between.strip() or between.count("\n") > 1:
                found = COMMENT_BEFORE.search(text[:match.start()])
                comment = found.group(0) if found else ""
            covered_to = match.end()
            line = line_of(text, match.start())
            name = match.group(1)
            for field in FIELDS:
                if field not in comment:
                    yield path, line, "%s: no %s" % (name, field)
            if not re.search(r"^\s*\*\s*%s - \S" % name, comment, re.M):
                yield path, line, "%s: no line '%s - what it does'" % (name, name)


def banned(tree):
    """Some calls have no place in a library that others embed; each has its reason."""
    for path in tree.c_files("lib"):
        code = tree.code(path)
        for names, reason, exempt in BANS:
            if path in exempt:
                continue
            for match in re.finditer(CALL % names, code):
                yield path, line_of(code, match.start()), \
                    "%s): %s" % (re.sub(r"\s", "", match.group(0)), reason)
        for pattern, reason in BANNED_WORDS:
            if path in BANNED_WORDS_EXEMPT.get(pattern, ()):
                continue
            for match in re.finditer(pattern, code):
                yield path, line_of(code, match.start()), "%s: %s" % (match.group(0), reason)


def window(comment_lines, number):
    """What the comments around a line say, as one line."""
    near = comment_lines[max(0, number - 1 - PAIR_DISTANCE):number + PAIR_DISTANCE]
    return " ".join(" ".join(re.sub(r"^\s*\*+", " ", l) for l in near).split())


def ordering(tree):
    """An acquire without a release does nothing: each non-relaxed atomic operation names the
    function it pairs with, within five lines, and that function exists."""
    known = {name for _, name, _, _ in tree.functions(tree.c_files("lib", "tests", "bench"))}
    for path in tree.public_headers():
        known.update(m.group(1) for m in PROTOTYPE.finditer(tree.text(path)))
    for path in tree.c_files("lib"):
        if path in ORDERED_EXEMPT:
            continue
        lines = tree.comments(path).split("\n")
        for number, line in enumerate(tree.code(path).split("\n"), 1):
            if not ORDERED.search(line):
                continue
            partners = PARTNER.findall(window(lines, number))
            if not partners:
                yield path, number, "no 'pairs with FUNCTION' within %d lines" % PAIR_DISTANCE
            elif not known.intersection(re.findall(r"\w+", " ".join(partners))):
                yield path, number, "pairs with %s: names no function of the tree" % partners[0]


def head_comments(tree, path):
    """The comment a source opens with; all comments of a header."""
    text = tree.text(path)
    if path.endswith(".c"):
        return text.split("*/")[0]
    return " ".join(re.findall(r"/\*.*?\*/", text, re.S))


def headings(tree):
    """A module with locks or ordering opens with its invariants, its locking and what failure
    leaves, because no single function shows them. A module is a name of lib/LAYERS: one file of a
    family may speak for all."""
    if "lib/LAYERS" not in tree.paths:
        return
    rungs, apart = read_layers(tree)
    modules = {}
    for path in tree.c_files("lib"):
        where = place(rungs, apart, os.path.splitext(os.path.basename(path))[0])
        modules.setdefault(where[1] if where else path, []).append(path)
    for files in modules.values():
        ordered = [p for p in files if p.endswith(".c") and STATEFUL.search(tree.code(p))]
        said = " ".join(head_comments(tree, p) for p in files)
        for heading in HEADINGS:
            if ordered and heading not in said:
                yield ordered[0], 1, "no '%s' in the head comments of its module" % heading


def backward_goto(tree):
    """A goto goes forward to a clean-up label; a loop is written as a loop."""
    for path in tree.c_files("lib", "include"):
        code = tree.code(path)
        for match in re.finditer(r"\bgoto\s+(\w+)\s*;", code):
            if not re.search(r"^\s*%s:" % match.group(1), code[match.end():], re.M):
                yield path, line_of(code, match.start()), "goto %s goes back" % match.group(1)


RULES = [header_fields, banned, ordering, headings, backward_goto]
