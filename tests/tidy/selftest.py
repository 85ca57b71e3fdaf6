#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Shows that each rule of tidy fires on what it forbids and is silent on what it allows."""

import os
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import tidy
from tree import Tree

SPDX = "/* SPDX-License-Identifier: MIT */\n"
LAYERS = "# SPDX-License-Identifier: MIT\n0 sync\n0 alloc pool\n1 map*\n- apart\n"
DOC = """/*
 * cowsnap_a - does a
 * Returns: 0.
 * Context: any.
 * Lifetime: none.
 */
"""
LONG_BODY = "int f(void)\n{\n" + "\tg();\n" * 70 + "}\n"
HEADED = "/* Invariants: Locking: Failure: */\n"
LOAD = "int f(void)\n{\n\treturn atomic_load_explicit(&x, memory_order_acquire);\n}\n"

# (rule, {path: text}, how many findings)
CASES = [
    ("layout", {"lib/a.c": "int   a ;\n"}, 1),
    ("layout", {"lib/a.c": "int a;\n"}, 0),
    ("columns", {"lib/a.c": "/*" + "x" * 99 + "*/\n"}, 1),
    ("columns", {"lib/a.c": "\t" * 12 + "a;\n" + "\t" * 13 + "a;\n"}, 1),
    ("file_size", {"lib/a.c": "\n" * 801}, 1),
    ("file_size", {"lib/a.c": "\n" * 790}, 0),
    ("function_size", {"lib/a.c": LONG_BODY}, 1),
    ("function_size", {"lib/a.c": LONG_BODY.replace("\tg();\n" * 70, "\tg();\n" * 57)}, 0),
    ("function_size", {"lib/a.c": LONG_BODY.replace("(void)", "(void) CS_REQUIRES(*a)")}, 1),
    ("licence_line", {"lib/a.c": "int a;\n", "lib/b.c": SPDX}, 1),
    ("unfinished", {"lib/a.c": "/* %s */\n" % tidy.rules_text.UNFINISHED[0]}, 1),
    ("unfinished", {"lib/a.c": "/* methods to document */\n"}, 0),
    ("layers", {"lib/LAYERS": LAYERS, "lib/sync.h": "", "lib/alloc.h": '#include "sync.h"\n',
                "lib/map_a.c": '#include "map_b.h"\n#include "alloc.h"\n', "lib/map_b.h": ""}, 0),
    ("layers", {"lib/LAYERS": LAYERS, "lib/alloc.h": '#include "map.h"\n', "lib/map.h": ""}, 1),
    ("layers", {"lib/LAYERS": LAYERS, "lib/alloc.c": '#include "pool.h"\n', "lib/pool.h": ""}, 1),
    ("layers", {"lib/LAYERS": LAYERS, "lib/apart.c": '#include "sync.h"\n', "lib/sync.h": ""}, 1),
    ("layers", {"lib/LAYERS": LAYERS, "lib/map.c": '#include "gone.h"\n'}, 1),
    ("layers", {"lib/LAYERS": LAYERS, "lib/stranger.c": ""}, 1),
    ("dead_files", {"lib/CMakeLists.txt": "a.c\nb_a.c\n", "lib/a.c": "", "lib/b.c": ""}, 1),
    ("dead_files", {"tests/CMakeLists.txt": "unit/a.c\n", "tests/unit/a.c": ""}, 0),
    ("dead_files", {"tests/CMakeLists.txt": "unit/a.c\n", "tests/other/a.c": ""}, 1),
    ("header_fields", {"include/a.h": DOC + "COWSNAP_API int cowsnap_a(void);\n"}, 0),
    ("header_fields", {"include/a.h": "COWSNAP_API int cowsnap_a(void);\n"}, 4),
    ("header_fields", {"include/a.h": DOC + "COWSNAP_API int cowsnap_a(\n\tint b);\n"
                       "COWSNAP_API int cowsnap_b(void);\n"}, 1),
    ("header_fields", {"include/a.h": DOC.replace("Context", "Contents") +
                       "COWSNAP_API int cowsnap_a(void);\n"}, 1),
    ("header_fields", {"include/a.h": DOC + "COWSNAP_API int cowsnap_a(void);\n\n"
                       "COWSNAP_API int cowsnap_b(void);\n"}, 4),
    ("banned", {"lib/a.c": "void f(void)\n{\n\tx = malloc(1);\n\tfree (x);\n\tprintf(1);\n}\n"}, 3),
    ("banned", {"lib/alloc.c": "x = malloc(1);\n"}, 0),
    ("banned", {"lib/a.c": "t->free(x);\nt.alloc(1);\n/* malloc(1) */\ncs_free(x);\n"
                "snprintf(\"abort()\");\n"}, 0),
    ("banned", {"lib/a.c": "static _Thread_local int a;\nstatic __thread int b;\n"}, 2),
    ("banned", {"lib/a.c": "abort();\nexit(1);\npthread_create(a);\nsleep(1);\n"}, 4),
    ("banned", {"lib/a.c": "errno = 1;\nreturn -1;\ntypedef struct a b;\nvolatile int c;\n"}, 4),
    ("banned", {"lib/a.c": "if (errno == 1)\n\treturn -EINVAL;\n"}, 0),
    ("banned", {"lib/a.c": "atomic_thread_fence(memory_order_seq_cst);\n"}, 1),
    ("ordering", {"lib/a.c": LOAD}, 1),
    ("ordering", {"lib/a.c": "/* pairs with nobody */\n" + LOAD}, 1),
    ("ordering", {"lib/a.c": "/* pairs with f */\n" + LOAD}, 0),
    ("ordering", {"lib/a.c": "/* ... pairs with the release\n * in f. */\n" + LOAD}, 0),
    ("ordering", {"lib/a.c": "/* The acquires pair with f(). */\n" + LOAD}, 0),
    ("ordering", {"lib/a.c": "/* pairs with f */\n" + "\n" * 4 + LOAD}, 1),
    ("ordering", {"lib/a.c": "atomic_store(&a, 1);\natomic_fetch_add(&a, 1);\n"}, 2),
    ("ordering", {"lib/a.c": "atomic_fetch_add_explicit(&a, 1, memory_order_relaxed);\n"}, 0),
    ("ordering", {"lib/a.c": "cs_full_fence();\n"}, 1),
    ("headings", {"lib/LAYERS": LAYERS, "lib/pool.c": "cs_mutex_lock(&a);\n"}, 3),
    ("headings", {"lib/LAYERS": LAYERS, "lib/pool.c": "cs_mutex_lock(&a);\n",
                  "lib/pool.h": HEADED}, 0),
    ("headings", {"lib/LAYERS": LAYERS, "lib/map_a.c": "cs_mutex_lock(&a);\n",
                  "lib/map_b.c": HEADED}, 0),
    ("headings", {"lib/LAYERS": LAYERS, "lib/alloc.c": "cs_mutex_lock(&a);\n",
                  "lib/pool.c": HEADED}, 3),
    ("headings", {"lib/LAYERS": LAYERS,
                  "lib/pool.c": HEADED.replace("Locking", "Looking") + LOAD}, 1),
    ("headings", {"lib/LAYERS": LAYERS, "lib/pool.c": "int a;\n"}, 0),
    ("backward_goto", {"lib/a.c": "again:\n\tgoto again;\n"}, 1),
    ("backward_goto", {"lib/a.c": "\tgoto out;\nout:\n\treturn;\n"}, 0),
]

# (rule, C source of a library, declared in the header, how many findings)
BINARY_CASES = [
    ("exports", "void cowsnap_a(void) {}", "cowsnap_a", 0),
    ("exports", "void cowsnap_a(void) {}\nvoid cs_b(void) {}", "cowsnap_a", 1),
    ("exports", "void cowsnap_b(void) {}", "cowsnap_a", 2),
    ("state", "int *cowsnap_a(void) { static int a; return &a; }", "cowsnap_a", 1),
    ("state", "static int b = 3; int *cowsnap_a(void) { return &b; }", "cowsnap_a", 1),
    ("state", "static __thread int b; int *cowsnap_a(void) { return &b; }", "cowsnap_a", 1),
    ("state", "static void *const t[] = {(void *)&t}; const void *cowsnap_a(void) { return t; }",
     "cowsnap_a", 0),
    ("names", "void cs_a(void) {}\nvoid cowsnap_a(void) {}\nvoid stray(void) {}", "cowsnap_a", 1),
]


def write(folder, files):
    for path, text in files.items():
        target = os.path.join(folder, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "w", encoding="utf-8") as f:
            f.write(text)


def findings(folder, rule, libraries=()):
    return [f for _, _, found in tidy.run(Tree(folder), libraries, rule) for f in found]


def check(name, found, expected):
    if len(found) == expected:
        return 0
    print("selftest: %s: expected %d findings, got %s" % (name, expected, found))
    return 1


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    wrong = 0
    fired = set()
    for number, (rule, files, expected) in enumerate(CASES):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(os.path.join(here, "..", "..", ".clang-format"), folder)
            write(folder, files)
            wrong += check("case %d, %s" % (number, rule), findings(folder, rule), expected)
            fired.update([rule] if expected else [])
    for rule, source, declared, expected in BINARY_CASES:
        with tempfile.TemporaryDirectory() as folder:
            write(folder, {"a.c": source + "\n",
                           "include/a.h": "COWSNAP_API void %s(void);\n" % declared})
            library = os.path.join(folder, "a.so")
            subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", library,
                            os.path.join(folder, "a.c")], check=True)
            found = findings(folder, rule, [(library, ["include/a.h"])])
            wrong += check("%s of %s" % (rule, source), found, expected)
            fired.update([rule] if expected else [])
    rules = {r.__name__ for r in tidy.TEXT_RULES + tidy.rules_binary.RULES}
    for rule in sorted(rules - fired):
        print("selftest: no case shows that %s fires" % rule)
        wrong += 1
    print("selftest: %d rules, %d cases, %d wrong"
          % (len(rules), len(CASES) + len(BINARY_CASES), wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
