# SPDX-License-Identifier: MIT
"""cowsnap changes: what it asks a server, page after page, and servers that answer badly. With a
real one it is tested in tests/nbdkit."""

import json
import socket
import threading

from rig import Case, IO_ERROR, REFUSED, WRONG_CALL, main


def page(changes, following, size=65536):
    return {"ok": True, "changes": changes, "next": following, "size": size,
            "complete": following == size}


class Changes(Case):
    def serve(self, *answers):
        """A server that gives these answers, and then closes. Returns what it was asked."""
        asked = []
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path("control"))
        listener.listen()

        def run():
            connection, _ = listener.accept()
            stream = connection.makefile("rwb")
            for answer in answers:
                asked.append(stream.readline().decode())
                if not isinstance(answer, bytes):
                    answer = json.dumps(answer).encode() + b"\n"
                stream.write(answer)
                stream.flush()
            stream.close()
            connection.close()
            listener.close()

        thread = threading.Thread(target=run)
        thread.start()
        self.addCleanup(thread.join)
        return asked

    def test_pages(self):
        asked = self.serve(page([[0, 4096], [8192, 4096]], 12288),
                           page([], 20480), page([[20480, 4096]], 24576),
                           page([[24576, 4096], [61440, 4096]], 65536))
        text = self.tool("changes", "control", "a", "b")
        self.assertEqual(text, "# offset length\n0 4096\n8192 4096\n20480 8192\n61440 4096\n")
        self.assertEqual(asked, [f"changes a b {n}\n" for n in (0, 12288, 20480, 24576)])

    def test_now(self):
        asked = self.serve(page([], 65536))
        document = json.loads(self.tool("changes", "--json", "control", "größe"))
        self.assertEqual(document, {"path": "control", "changes": [], "size_bytes": 65536,
                                    "changed_bytes": 0})
        self.assertEqual(asked, ["changes größe /now 0\n"])

    def refused(self, *answers, status=IO_ERROR, says):
        self.serve(*answers)
        self.assertEqual(self.tool("changes", "control", "a", status=status, says=says), "")

    def test_refusal(self):
        self.refused(page([[0, 4096]], 4096),
                     {"ok": False, "error": "ESTALE", "message": "it is not complete"},
                     status=REFUSED, says="it is not complete")

    def test_no_json(self):
        self.refused(b"hello\n", says="does not answer")

    def test_closed(self):
        self.refused(page([[0, 4096]], 4096), says="control")

    def test_no_progress(self):
        self.refused(page([], 4096), page([], 4096), says="cannot be understood")

    def test_other_json(self):
        self.refused({"ok": True}, says="cannot be understood")

    def test_bad_run(self):
        self.refused(page([[0]], 65536), says="cannot be understood")

    def test_call(self):
        wrong = {"status": WRONG_CALL}
        self.tool("changes", says="which SOCKET?", **wrong)
        self.tool("changes", "control", says="which A?", **wrong)
        self.tool("changes", "control", "a", "b", "c", says="one argument too many: 'c'", **wrong)
        for name in ("a b", "a\nb", " "):
            self.tool("changes", "control", name, says="no spaces", **wrong)
            self.tool("changes", "control", "a", name, says="no spaces", **wrong)
        self.tool("changes", "control", "a", status=IO_ERROR, says="no server can be reached")
        self.tool("changes", "s" * 200, "a", status=IO_ERROR, says="longer than")
        self.assertIn("SOCKET A [B]", self.tool("changes", "--help"))


main()
