# SPDX-License-Identifier: MIT
"""How the tool is called: help, wrong calls, where its output goes, and what stops it."""

import json
import os
import signal
import subprocess

from rig import Case, GOOD, IO_ERROR, TOOL, WRONG_CALL, main

COMMANDS = ("info", "check", "dump", "extents", "create", "export", "repair", "merge")


class Call(Case):
    def setUp(self):
        super().setUp()
        self.file("origin", b"\1" * 65536)
        self.image("store.img", records=[{"origin": 5}, {"origin": 7}])

    def wrong(self, *arguments, says):
        self.assertEqual(self.tool(*arguments, status=WRONG_CALL, says=says), "")
        self.assertEqual(self.names(), ["origin", "store.img"])

    def test_version(self):
        for option in ("--version", "-V"):
            self.assertRegex(self.tool(option), r"^cowsnap \d+\.\d+\.\d+\n$")
        self.assertEqual(self.tool("dump", "--version"), self.tool("--version"))

    def test_help(self):
        text = self.tool("--help")
        self.assertTrue(text.startswith("Usage: cowsnap [OPTION...] COMMAND"), text)
        for command in COMMANDS:
            self.assertIn(f"\n  {command} ", text)
            more = self.tool(command, "--help")
            self.assertTrue(more.startswith(f"Usage: cowsnap {command} [OPTION...] STORE"), more)
            self.assertIn("--json", more)
            self.assertIn("Exit status: 0 good; 1 ", more)
        self.assertIn("--dry-run", self.tool("repair", "--help"))
        self.assertTrue(self.tool("dump", "--usage").startswith("Usage: cowsnap dump "))

    def test_commands(self):
        self.wrong(says="which command?")
        self.wrong("frobnicate", says="no command is called 'frobnicate'")
        self.wrong("--json", "info", "store.img", says="--json")
        self.wrong("", says="no command is called ''")
        for command in COMMANDS:
            self.wrong(command, "--frobnicate", "store.img",
                       says=f"cowsnap {command}: unrecognized option '--frobnicate'")

    def test_operands(self):
        for command in ("info", "check", "dump", "extents", "repair"):
            self.wrong(command, says="which STORE?")
            self.wrong(command, "store.img", "more", says="one argument too many: 'more'")
            self.wrong(command, "", says="an empty name")
        self.wrong("create", "new.img", "--size=1M", says="--origin FILE is needed")
        self.wrong("export", "store.img", "--origin=origin", says="which IMAGE?")
        self.wrong("export", "store.img", "image", says="--origin FILE is needed")
        self.wrong("merge", "store.img", says="--origin FILE is needed")
        self.wrong("merge", "store.img", "more", "--origin=origin", says="one argument too many")
        self.wrong("info", "store.img", "--dry-run", says="unrecognized option")
        self.wrong("check", "store.img", "--origin=origin", "--origin-size=1M",
                   says="exclude each other")
        self.wrong("create", "new.img", "--origin=origin", "--size=1M", "--records=2",
                   says="one of --size and --records")
        self.wrong("create", "new.img", "--origin=origin", "--records=1", "--size=1M",
                   says="one of --size and --records")

    def test_operands_anywhere(self):
        self.tool("export", "--origin", "origin", "store.img", "--json", "image")
        self.tool("dump", "--json", "store.img")
        os.rename(self.path("store.img"), self.path("--json"))
        self.assertIn("# record", self.tool("dump", "--", "--json"))

    def test_numbers(self):
        for size in ("", "K", "-1", "+1", " 1", "1 ", "1KB", "1.5M", "0x10", "0", "5000000T",
                     "18446744073709551616", "99999999999999999999999999", "16E", "4194305T"):
            self.wrong("check", "store.img", f"--origin-size={size}",
                       says=f"--origin-size: '{size}' is not a size")
            self.wrong("create", "new.img", "--origin=origin", f"--size={size}",
                       says=f"--size: '{size}' is not a size")
        for percent in ("%", "0%", "101%", "-5%", "1.5%", "1000000000%", "4G%"):
            self.wrong("create", "new.img", "--origin=origin", f"--size={percent}",
                       says=f"--size: '{percent}' is not 1% to 100%")
        for size in ("511", "0", "3K", "2G", "4096 ", "1T", "x"):
            self.wrong("create", "new.img", "--origin=origin", "--size=1M",
                       f"--chunk-size={size}", says=f"--chunk-size: '{size}' is not a power")
        for option in ("--records", "--generation"):
            for number in ("0", "-1", "x", "", "1K", "18446744073709551616"):
                self.wrong("create", "new.img", "--origin=origin", "-j",
                           f"{option}={number}", says=f"{option}: '{number}' is not a number")

    def test_suffixes(self):
        for text, size in (("65536", 65536), ("64K", 65536), ("64k", 65536), ("1M", 1 << 20),
                           ("1g", 1 << 30), ("1T", 1 << 40)):
            self.tool("create", "new.img", "--origin=origin", f"--size={text}")
            self.assertEqual(os.path.getsize(self.path("new.img")), size)
            os.unlink(self.path("new.img"))

    def test_names(self):
        """JSON of a name that is no UTF-8, or has quotes in it."""
        for name, shown in ((b"st\xffore", "st?ore"), ('s"t\\o\nré'.encode(), 's"t\\o\nré')):
            os.link(self.path("store.img"), os.path.join(self.directory.encode(), name))
            for command in ("info", "dump", "extents"):
                done = subprocess.run([TOOL, command, name, "--json"], cwd=self.directory,
                                      capture_output=True, check=True)
                self.assertEqual(json.loads(done.stdout)["path"], shown)


class Output(Case):
    def setUp(self):
        super().setUp()
        self.file("origin", b"\1" * (5000 * 512))
        self.image("store.img", chunk_size=512, records=[{"origin": n} for n in range(5000)])

    def calls(self):
        return (("info", "store.img"), ("check", "store.img"), ("dump", "store.img"),
                ("dump", "store.img", "--json"), ("extents", "store.img", "--json"),
                ("export", "store.img", "--origin=origin", "image", "--force"),
                ("repair", "store.img"), ("--help",), ("--version",))

    def test_full(self):
        for call in self.calls():
            with open("/dev/full", "w", encoding="ascii") as full:
                self.tool(*call, status=IO_ERROR, stdout=full,
                          says="cowsnap: standard output: No space left on device\n")

    def test_no_output(self):
        """Standard output is closed: nothing that is opened may take its place."""
        for call in self.calls():
            self.tool(*call, status=IO_ERROR, stdout=None, preexec_fn=lambda: os.close(1),
                      says="cowsnap: standard output: Bad file descriptor\n")
        with open(self.path("image"), "rb") as image:
            self.assertEqual(image.read(8), b"\0" * 8)
        self.assertEqual(self.names(), ["image", "origin", "store.img"])

    def test_no_standard_files(self):
        def close():
            for fd in (0, 1, 2):
                os.close(fd)
        before = self.read("store.img")
        done = self.run_tool("export", "store.img", "--origin=origin", "image", stdin=None,
                             stdout=None, stderr=None, preexec_fn=close)
        self.assertEqual(done.returncode, IO_ERROR)
        self.assertEqual(self.read("store.img"), before)
        self.assertEqual(os.path.getsize(self.path("image")), 5000 * 512)

    def test_head(self):
        """The reader goes away: no word about it."""
        for more in ((), ("--json",)):
            process = subprocess.Popen([TOOL, "dump", "store.img", *more], cwd=self.directory,
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            process.stdout.read(1)
            process.stdout.close()
            said = process.stderr.read()
            process.stderr.close()
            self.assertIn(process.wait(), (-signal.SIGPIPE, GOOD))
            self.assertEqual(said, b"")
        done = subprocess.run(["sh", "-c", '"$0" dump store.img | head -n 1', TOOL],
                              cwd=self.directory, capture_output=True, text=True, check=True)
        self.assertEqual((done.stdout, done.stderr), ("# record origin store\n", ""))


if __name__ == "__main__":
    main()
