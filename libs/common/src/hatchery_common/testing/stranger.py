"""Another user of this host who listens where a machine should, and keeps whatever he is told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager

UID = 64_990
POSSIBLE = sys.platform == "linux" and os.geteuid() == 0  # only root can be another user

# The interpreter may lie where that user cannot pass: it is started by us, and is his before it binds.
_PROGRAM = """
import os, selectors, socket, sys
uid, ports = int(sys.argv[1]), sys.argv[2:]
os.setgroups([]); os.setgid(uid); os.setuid(uid)
wait = selectors.DefaultSelector()
for port in ports:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(port)))
    listener.listen()
    wait.register(listener, selectors.EVENT_READ, "listener")
wait.register(sys.stdin, selectors.EVENT_READ, "order")
print("listening", flush=True)
heard = b""
while True:
    ready = [key for key, _ in wait.select()]
    for key in ready:
        if key.data == "listener":
            wait.register(key.fileobj.accept()[0], selectors.EVENT_READ, "talk")
        elif key.data == "talk":
            found = key.fileobj.recv(65536)
            heard += found
            if found:
                key.fileobj.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\nconnection: close\\r\\n\\r\\n{}")
            wait.unregister(key.fileobj)
            key.fileobj.close()
    if [key.data for key in ready] != ["order"]:
        continue  # an order is obeyed when everything before it is done
    if not sys.stdin.readline():
        print(heard.hex(), flush=True)
        break
    for key in [key for key in wait.get_map().values() if key.data == "listener"]:
        wait.unregister(key.fileobj)
        key.fileobj.close()
    print("left", flush=True)
"""


class Stranger:
    """A listening program of another user; it answers whoever asks with an empty document."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def leave(self) -> None:
        """Stop listening, and keep the connections that were accepted."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("leave\n")
        self._process.stdin.flush()
        self._process.stdout.readline()

    def heard(self) -> bytes:
        """Everything that it was told; it has ended then."""
        told, _ = self._process.communicate(timeout=10)
        return bytes.fromhex(told.strip())


@contextmanager
def stranger(ports: Sequence[int], uid: int = UID) -> Generator[Stranger]:
    """A stranger who listens at these ports of loopback."""
    command = [sys.executable, "-c", _PROGRAM, str(uid), *map(str, ports)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "listening\n":
            raise RuntimeError(f"the stranger could not listen at {list(ports)}")
        yield Stranger(process)
    finally:
        process.kill()
        process.communicate(timeout=10)
