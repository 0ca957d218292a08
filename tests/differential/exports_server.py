"""As much of an NFS server as ``showmount --exports`` asks: a portmapper (RFC 1833, version 2) and MOUNT's list of exports
(RFC 1813, appendix I), in threads of this process."""

from __future__ import annotations

import socketserver
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Thread

PORTMAPPER, MOUNT = 100_000, 100_005
GETPORT, EXPORT = 3, 5

Exports = Mapping[str, Sequence[str]]
"""Directories, and to whom each is exported; to everyone where nobody is named."""


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">I", len(data)) + data + bytes(-len(data) % 4)


def _list(items: Iterable[bytes]) -> bytes:
    return b"".join(struct.pack(">I", 1) + item for item in items) + bytes(4)


def answer(call: bytes, port: int, exports: Exports) -> bytes:
    """The reply to a call (RFC 5531): accepted, without authentication."""
    number, _, _, program, version, procedure = struct.unpack_from(">6I", call)
    head = struct.pack(">6I", number, 1, 0, 0, 0, 0)
    if program == PORTMAPPER and version == 2 and procedure == GETPORT:
        return head + struct.pack(">I", port)
    if program == MOUNT and procedure == EXPORT:
        return head + _list(_string(path) + _list(map(_string, clients)) for path, clients in exports.items())
    if procedure == 0:
        return head
    return struct.pack(">6I", number, 1, 0, 0, 0, 2) + struct.pack(">2I", 2, 2)  # PROG_MISMATCH


@contextmanager
def exporting(address: str, exports: Exports) -> Iterator[None]:
    """Answer on this address of the loopback device, at the portmapper's own port: in a network namespace of one's own."""

    class Datagram(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            call, sock = self.request
            sock.sendto(answer(call, port, exports), self.client_address)

    class Stream(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while mark := self.rfile.read(4):
                call = self.rfile.read(struct.unpack(">I", mark)[0] & 0x7FFF_FFFF)
                reply = answer(call, port, exports)
                self.wfile.write(struct.pack(">I", len(reply) | 1 << 31) + reply)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True

    servers = [
        Server((address, 0), Stream),
        Server((address, 111), Stream),
        socketserver.UDPServer((address, 111), Datagram),
    ]
    port = servers[0].server_address[1]
    threads = [Thread(target=server.serve_forever, args=(0.05,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()
