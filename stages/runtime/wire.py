"""What a stage's asker, the warm process and a resident process tell each other: a request with files, a code."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence

_HEAD = struct.Struct("!I")
_CODE = struct.Struct("!i")
_PEER = struct.Struct("3i")  # pid, uid, gid of SO_PEERCRED


def require_own(connection: socket.socket) -> None:
    """PermissionError if another user is at the other end: names of sockets have no owner."""
    peer = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    if peer[1] != os.getuid():
        raise PermissionError(f"it is another user's: uid {peer[1]}")


def send_request(connection: socket.socket, request: bytes, files: Sequence[int]) -> None:
    """The request, and with it copies of three open files."""
    socket.send_fds(connection, [_HEAD.pack(len(request))], files)
    connection.sendall(request)


def receive_request(connection: socket.socket) -> tuple[bytes, list[int]]:
    """The request and the files; EOFError where the other end is gone."""
    head, files, _, _ = socket.recv_fds(connection, _HEAD.size, 3)
    try:
        head += _exactly(connection, _HEAD.size - len(head)) if head else b""
        if not head:
            raise EOFError("it closed the connection")
        return _exactly(connection, _HEAD.unpack(head)[0]), files
    except (OSError, EOFError):
        for file in files:
            os.close(file)
        raise


def send_code(connection: socket.socket, code: int) -> None:
    """A stage's exit code."""
    connection.sendall(_CODE.pack(code))


def receive_code(connection: socket.socket) -> int:
    """A stage's exit code; EOFError where the other end went away before it."""
    return int(_CODE.unpack(_exactly(connection, _CODE.size))[0])


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError("it closed the connection")
        data += part
    return data
