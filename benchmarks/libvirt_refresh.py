"""Refresh pools of a libvirtd all at once, one thread for each: ``libvirt_refresh.py URI one|many POOL …``.

It prints the seconds. With ``one``, all threads share one connection, as in one program (libvirtd serves five requests
of a connection at a time: ``max_client_requests`` in libvirtd.conf). With ``many``, each has its own.

The Python that has libvirt's bindings runs it: Debian's.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import libvirt


def main(uri: str, connections: str, names: list[str]) -> None:
    shared = libvirt.open(uri)
    opened = [shared if connections == "one" else libvirt.open(uri) for _ in names]
    pools = [connection.storagePoolLookupByName(name) for connection, name in zip(opened, names, strict=True)]
    with ThreadPoolExecutor(len(pools)) as threads:
        began = time.perf_counter()
        list(threads.map(lambda pool: pool.refresh(), pools))
        print(time.perf_counter() - began)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
