# SPDX-License-Identifier: MIT
"""The little of QEMU's control protocol that the bench needs."""

import json
import socket


class Refused(Exception):
    """QEMU answered with an error."""


class Qmp:
    """A connection to a monitor: one command after the other. Events are kept until asked for."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(path)
        self.events = []
        self.lines = self.socket.makefile("r", encoding="utf-8")
        json.loads(self.lines.readline())  # the greeting
        self("qmp_capabilities")

    def __call__(self, command, **arguments):
        """Python has no dashes in names: an underscore is one."""
        arguments = {key.replace("_", "-"): value for key, value in arguments.items()}
        request = {"execute": command, "arguments": arguments}
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = self.read()
            if "error" in answer:
                raise Refused(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def read(self):
        message = json.loads(self.lines.readline())
        if "event" in message:
            self.events.append(message["event"])
        return message

    def wait_for(self, event):
        while event not in self.events:
            self.read()
        self.events.remove(event)

    def close(self):
        self.lines.close()
        self.socket.close()
