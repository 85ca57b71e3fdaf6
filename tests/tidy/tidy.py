#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checks the tree against the rules of docs/HACKING.md that a machine can check.

    tidy.py [--root DIR] [--library FILE=[HEADER,...]]... [--only RULE] [--list]

Each rule is a function in rules_*.py; its docstring is the reason for the rule, printed with what
it finds. --library also looks at a built library, and compares what it exports with what its
headers declare.
"""

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import rules_binary
import rules_code
import rules_text
from tree import Tree

TEXT_RULES = rules_text.RULES + rules_code.RULES


def run(tree, libraries, only=None):
    """Returns a list of (rule, reason, findings) for the rules that found something."""
    results = []
    for rule in TEXT_RULES:
        if only in (None, rule.__name__):
            results.append((rule, list(rule(tree))))
    for rule in rules_binary.RULES:
        if libraries and only in (None, rule.__name__):
            found = [f for path, headers in libraries for f in rule(tree, path, headers)]
            results.append((rule, found))
    return [(r.__name__, " ".join(r.__doc__.split()), found) for r, found in results if found]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", default=os.path.join(os.path.dirname(__file__), "..", ".."))
    parser.add_argument("--library", action="append", default=[])
    parser.add_argument("--only")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    rules = TEXT_RULES + rules_binary.RULES
    if args.list:
        for rule in rules:
            print("%-14s %s" % (rule.__name__, " ".join(rule.__doc__.split())))
        return 0
    libraries = []
    for text in args.library:
        path, headers = text.split("=")
        libraries.append((path, [h for h in headers.split(",") if h]))
    tree = Tree(args.root)
    results = run(tree, libraries, args.only)
    for name, reason, findings in results:
        print("\n%s: %s" % (name, reason))
        for path, line, message in findings:
            print("  %s:%d: %s" % (path, line, message))
    print("tidy: %d rules, %d files, %d findings"
          % (len(rules), len(tree.paths), sum(len(f) for _, _, f in results)))
    return 1 if results else 0


if __name__ == "__main__":
    sys.exit(main())
