"""What this process sends: bytes on its TCP connections, as the kernel counts them, and collectives called."""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

# tcpi_bytes_sent of Linux's struct tcp_info: payload, what was sent again included.
_BYTES_SENT = struct.Struct("=200xQ")


def bytes_sent() -> int:
    """On all connections that are open, since each began. Gloo's, and the store's, which is used to set groups up."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.stat(f"/proc/self/fd/{name}").st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                total += _sent(connection)
        except FileNotFoundError:  # the folder's own descriptor
            continue
    return total


def _sent(connection: socket.socket) -> int:
    is_tcp = connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM
    if not is_tcp:
        return 0
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_SENT.size)
    if len(info) < _BYTES_SENT.size:
        raise RuntimeError("this kernel does not count the bytes of a connection: Linux 4.19 or newer is needed")
    return int(_BYTES_SENT.unpack(info)[0])


class _Collectives(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.names.append(func._opname.rstrip("_"))
        return func(*args, **(kwargs or {}))


def collectives(step: Callable[[], object]) -> list[str]:
    """Those of a step, in order."""
    with _Collectives() as seen:
        step()
    return seen.names
