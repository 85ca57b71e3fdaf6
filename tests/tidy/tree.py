# SPDX-License-Identifier: MIT
"""The files of the source tree, their lines, and C with its comments and strings blanked out."""

import os
import re
import subprocess

SKIP_DIRS = {".git", "build", "__pycache__"}
TEXT_ENDINGS = (".c", ".h", ".cpp", ".py", ".sh", ".cmake", ".txt", ".map", ".in", ".json", ".md")

COMMENT_OR_STRING = re.compile(
    r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.DOTALL)


def blank(match):
    return re.sub(r"[^\n]", " ", match.group(0))


class Tree:
    def __init__(self, root):
        self.root = os.path.abspath(root)
        self.paths = sorted(self._find())
        self._texts = {}

    def _find(self):
        for folder, dirs, files in os.walk(self.root):
            dirs[:] = [d for d in dirs if d not in SKIP_DIRS]
            for name in files:
                if name.endswith(TEXT_ENDINGS) or name in ("LAYERS", "LICENSE"):
                    yield os.path.relpath(os.path.join(folder, name), self.root)

    def text(self, path):
        if path not in self._texts:
            with open(os.path.join(self.root, path), encoding="utf-8", errors="replace") as f:
                self._texts[path] = f.read()
        return self._texts[path]

    def lines(self, path):
        return self.text(path).split("\n")

    def code(self, path):
        """The text with comments and strings replaced by blanks, line numbers kept."""
        return COMMENT_OR_STRING.sub(blank, self.text(path))

    def comments(self, path):
        """The comments alone, each ended by a full stop, line numbers kept."""
        kept, last = [], 0
        text = self.text(path)
        for match in COMMENT_OR_STRING.finditer(text):
            kept.append(re.sub(r"[^\n]", "", text[last:match.start()]))
            if match.group(0).startswith("/"):
                kept.append(re.sub(r"^/\*+|\*/$|^//", "", match.group(0)) + ". ")
            last = match.end()
        return "".join(kept) + re.sub(r"[^\n]", "", text[last:])

    def c_files(self, *folders):
        return [p for p in self.paths if p.endswith((".c", ".h"))
                and (not folders or p.startswith(tuple(f + "/" for f in folders)))]

    def public_headers(self):
        return [p for p in self.paths if p.startswith("include/") and p.endswith(".h")]

    def functions(self, paths):
        """Returns (path, name, first line, last line) of each function defined."""
        if not paths:
            return []
        output = subprocess.run(
            ["ctags", "-f", "-", "--language-force=C", "--kinds-C=f", "--fields=+ne",
             # Macros that stand between a declarator and its body.
             "-I", "CS_TSA+,CS_ACQUIRE+,CS_TRY_ACQUIRE+,CS_RELEASE+,CS_REQUIRES+,CS_EXCLUDES+",
             "-I", "CS_NO_TSA,CS_CAPABILITY+", *paths],
            cwd=self.root, capture_output=True, text=True, check=True).stdout
        found = []
        for line in output.splitlines():
            fields = line.split("\t")
            start = re.search(r"\tline:(\d+)", line)
            end = re.search(r"\tend:(\d+)", line)
            if start and end:
                found.append((fields[1], fields[0], int(start.group(1)), int(end.group(1))))
        return found


def line_of(text, position):
    return text.count("\n", 0, position) + 1
